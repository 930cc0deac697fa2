//! The tracker's log for memory of this process that no hypervisor watches.

use super::error::brant_error;
use super::structs::handle;
use super::tracker::brant_tracker;
use crate::dirty::userfault::UserfaultLog;

/// Adds userfaultfd's write protection to the logs of the tracker, before tracking starts. It
/// watches all memory of the guest's blocks, except those with BRANT_RAM_ROM. So any memory of this
/// process can be a guest, without KVM: private and shared memory, files and transparent huge
/// pages. A huge page of hugetlbfs counts whole. Tracking starts in the process that calls
/// `brant_tracker_start`; between this call and that one the process may fork. In a child that is
/// made later each harvest fails, and the parent's tracking goes on.
///
/// It finds writes through the block's own mapping: by any thread, by the kernel for a thread
/// (`read`), by a KVM guest, or by `process_vm_writev`. It misses other writes, which the VMM has
/// to mark: writes to shared memory through another mapping, by `pwrite` or by another process;
/// holes punched into shared memory; writes to pinned pages (DMA, O_DIRECT reads, io_uring's
/// registered buffers).
///
/// Memory can be registered with one userfaultfd only. When another userfaultfd has a block, the
/// start of tracking is BRANT_E_EXISTS and names the block. This call and the start are
/// BRANT_E_UNSUPPORTED when the kernel has no asynchronous write protection (Linux 6.7 has it), or
/// when no userfaultfd can be made. No privilege is needed: it is enough that the system call is
/// allowed, or that this process can open /dev/userfaultfd. A process that is not dumpable (setuid
/// without exec) cannot read its own /proc/self/pagemap: BRANT_E_KERNEL.
///
/// The first write to each page after a harvest costs a fault (about 2 microseconds); a harvest
/// walks the page tables of the memory that the guest has touched (about a millisecond a GiB).
/// Private memory that nobody has touched costs next to nothing. Shared memory gets page tables
/// when tracking starts, 2 MiB a GiB. A transparent huge page is mapped in small pages once it is
/// written. A new transparent huge page counts as written whole.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_userfault(
    tracker: *mut brant_tracker,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        tracker.tracker.add_log(Box::new(UserfaultLog::new()?))
    })
}
