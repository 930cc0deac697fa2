//! The tracker's log for memory of this process that no hypervisor watches.

use super::error::brant_error;
use super::structs::handle;
use super::tracker::brant_tracker;
use crate::dirty::userfault::UserfaultLog;

/// Adds userfaultfd's write protection to what the tracker harvests; before tracking starts. All
/// memory of the guest's blocks is watched from then on, but that of BRANT_RAM_ROM: any memory of
/// this process can be a guest, with no KVM. Private and shared memory, files, transparent huge
/// pages; of hugetlbfs a huge page counts whole. Tracking starts in the process that calls
/// `brant_tracker_start`; between this call and that one it may fork. In a child made later each
/// harvest fails, and the parent's tracking is left alone.
///
/// It finds what is written through the block's own mapping, by any thread, by the kernel for one
/// (`read`), by a KVM guest, or by `process_vm_writev`. It misses, and the VMM marks after the
/// write: writes to shared memory through another mapping, by `pwrite` or by another process; holes
/// punched into it; what goes to pinned pages (DMA, O_DIRECT reads, io_uring's registered buffers).
///
/// Memory can be registered with one userfaultfd only: starting to track what another has is
/// BRANT_E_EXISTS and names the block. Here and at the start, BRANT_E_UNSUPPORTED where the
/// kernel has no asynchronous write protection (Linux 6.7 has) or userfaultfd cannot be had; no
/// privilege is needed, only that the system call is not filtered or /dev/userfaultfd can be
/// opened. A process that is not dumpable (setuid without exec) cannot read its own
/// /proc/self/pagemap: BRANT_E_KERNEL.
///
/// The first write to each page after a harvest costs a fault (about 2 microseconds); a harvest
/// walks the page tables of what the guest has touched (about a millisecond a GiB). Private memory
/// that nobody has touched costs next to nothing; shared memory gets page tables when tracking
/// starts, 2 MiB a GiB. A transparent huge page is mapped in small pages once it is written, and
/// one that is new counts as written whole.
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
