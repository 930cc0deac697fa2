//! What KVM's logs cost on this machine, before the VMM chooses between bitmaps and rings.

use super::error::{brant_error, invalid};
use super::structs::{put_text, read, sized, write};
use crate::dirty::kvm::measure::{measure, Cost, Costs, Measured, Workload, LIMIT};
use crate::error::Result;
use crate::units::Bytes;
use std::ffi::c_char;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The guest that is to be tracked, as far as the VMM knows it. All zero but the size: nothing is
/// known.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_workload {
    /// sizeof(brant_kvm_workload).
    pub size: usize,
    /// Bytes of its memory; 0: unknown, and what a sync of clean memory costs does not count.
    pub memory_bytes: u64,
    /// Different pages of 4 KiB that it writes in a tenth of a second, times ten
    /// (brant_rate_measure with a period of 100 ms says it of a guest like it). 0: unknown, and the
    /// worst case counts: a guest that writes as fast as it can.
    pub dirty_pages_per_second: u64,
    /// Milliseconds that the measurement takes at most, 20 to 10000; 0: 200.
    pub limit_ms: u64,
}

/// What one of KVM's logs costs, in nanoseconds of the processor that runs the guest or syncs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_cost {
    /// 1, or 0 where the kernel has no such log or there was no time; then the others are 0.
    pub measured: u64,
    /// The guest's first write to a clean page.
    pub first_write_ns: u64,
    /// A write of a guest that goes over its memory again and again, four times between two syncs:
    /// the mean of first writes and later ones. With a ring they are all first ones, because what
    /// a ring gave is protected again when a quarter of it is in use.
    pub busy_write_ns: u64,
    /// A sync, for each dirty page: finding it and protecting it again.
    pub sync_page_ns: u64,
    /// A sync, for each GiB of the guest in which nothing is dirty.
    pub sync_gib_ns: u64,
}

/// What `brant_kvm_measure` found. `brant_kvm_log.costs` takes it as it was filled.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_costs {
    /// sizeof(brant_kvm_costs).
    pub size: usize,
    /// The kind that costs this guest least, BRANT_KVM_*; never BRANT_KVM_AUTO.
    pub recommended: u64,
    /// As `brant_kvm_workload` said.
    pub memory_bytes: u64,
    /// As `brant_kvm_workload` said.
    pub dirty_pages_per_second: u64,
    /// A write of a guest that is not tracked.
    pub untracked_write_ns: u64,
    /// BRANT_KVM_GET_AND_CLEAR.
    pub get_and_clear: brant_kvm_cost,
    /// BRANT_KVM_MANUAL_PROTECT.
    pub manual_protect: brant_kvm_cost,
    /// BRANT_KVM_INITIALLY_SET.
    pub initially_set: brant_kvm_cost,
    /// BRANT_KVM_RING.
    pub ring: brant_kvm_cost,
}

sized!(brant_kvm_workload, brant_kvm_costs);

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl brant_kvm_cost {
    fn new(cost: Option<Cost>) -> Self {
        let measured = u64::from(cost.is_some());
        let cost = cost.unwrap_or_default();
        brant_kvm_cost {
            measured,
            first_write_ns: ns(cost.first_write),
            busy_write_ns: ns(cost.busy_write),
            sync_page_ns: ns(cost.sync_page),
            sync_gib_ns: ns(cost.sync_gib),
        }
    }

    fn of(self) -> Option<Cost> {
        (self.measured != 0).then_some(Cost {
            first_write: Duration::from_nanos(self.first_write_ns),
            busy_write: Duration::from_nanos(self.busy_write_ns),
            sync_page: Duration::from_nanos(self.sync_page_ns),
            sync_gib: Duration::from_nanos(self.sync_gib_ns),
        })
    }
}

impl brant_kvm_costs {
    fn new(recommended: u64, costs: &Costs, guest: Workload) -> Self {
        brant_kvm_costs {
            size: 0,
            recommended,
            memory_bytes: guest.memory.0,
            dirty_pages_per_second: guest.dirty_pages_per_second.unwrap_or(0),
            untracked_write_ns: ns(costs.untracked_write),
            get_and_clear: brant_kvm_cost::new(costs.get_and_clear),
            manual_protect: brant_kvm_cost::new(costs.manual_protect),
            initially_set: brant_kvm_cost::new(costs.initially_set),
            ring: brant_kvm_cost::new(costs.ring),
        }
    }
}

/// What is known of a guest, with 0 for what is not.
fn workload(memory_bytes: u64, dirty_pages_per_second: u64) -> Workload {
    Workload {
        memory: Bytes(memory_bytes),
        dirty_pages_per_second: (dirty_pages_per_second != 0).then_some(dirty_pages_per_second),
    }
}

/// What C hands back of a measurement, for AUTO.
///
/// # Safety
/// `costs` is null or points to a readable structure of as many bytes as its first field says.
pub(super) unsafe fn measured(costs: *const brant_kvm_costs) -> Result<Option<Measured>> {
    if costs.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract.
    let c = unsafe { read(costs) }?;
    let costs = Costs {
        untracked_write: Duration::from_nanos(c.untracked_write_ns),
        get_and_clear: c.get_and_clear.of(),
        manual_protect: c.manual_protect.of(),
        initially_set: c.initially_set.of(),
        ring: c.ring.of(),
    };
    let measured = Measured::of(costs, workload(c.memory_bytes, c.dirty_pages_per_second));
    measured.map(Some).ok_or_else(|| {
        invalid(
            "brant_kvm_log.costs has no kind that was measured: expected what brant_kvm_measure filled",
        )
    })
}

/// Measures what each of KVM's logs costs on this machine, and recommends one. Call it before
/// `brant_kvm_enable_ring` (KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING): on a VM with rings no bitmap
/// works any more, so later there is nothing to choose. Rings suit a huge guest that writes little;
/// a guest that writes its memory again and again faults more often with them.
///
/// Example: measure; enable rings if `costs.recommended` is BRANT_KVM_RING; make the VM's slots and
/// vCPUs; later add KVM's log with BRANT_KVM_AUTO and `brant_kvm_log.costs`.
///
/// A guest of brant's own is tried, in two virtual machines that come and go with 4 MiB of memory
/// each, on the calling thread and no other. It takes 0.2 s at most, or `workload->limit_ms`,
/// and about as long as KVM needs to end a virtual machine on top; the VMM's own virtual machines
/// are not looked at. Nothing of it stays, whatever the call returns. Any thread.
///
/// `kvm_fd` is a descriptor of /dev/kvm; brant keeps nothing of it. -1: brant opens /dev/kvm for
/// the time of the call. `workload` may be NULL: nothing is known of the guest. `costs` is filled,
/// with zeros when the call fails. The reason of the recommendation is copied to `buffer` as
/// `brant_tracker_get_kvm` does it; NULL and 0 for none, and `needed` may be NULL.
///
/// BRANT_E_NO_MEMORY where 1 GiB of address space, which is reserved and not touched, is not to be
/// had; BRANT_E_UNSUPPORTED on anything but x86-64, or where KVM does not run the guest;
/// BRANT_E_TIMEOUT when not even one kind was measured in time; BRANT_E_INVALID for a limit out of
/// range or a descriptor of something else; BRANT_E_KERNEL when KVM refuses a call.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_measure(
    kvm_fd: i32,
    workload: *const brant_kvm_workload,
    costs: *mut brant_kvm_costs,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // What cannot be filled is refused before anything is measured.
        // SAFETY: null or a structure by contract.
        unsafe {
            write(
                costs,
                &brant_kvm_costs::new(0, &Costs::default(), Workload::default()),
            )
        }?;
        if buffer.is_null() && capacity > 0 {
            return Err(invalid("the buffer is NULL and its capacity is not 0"));
        }
        let kvm = match kvm_fd {
            -1 => None,
            ..-1 => {
                return Err(invalid(format!(
                    "kvm_fd is {kvm_fd}: expected /dev/kvm or -1"
                )))
            }
            // SAFETY: open while this call lasts, by contract; what is not open fails in the first
            // call on it.
            fd => Some(unsafe { BorrowedFd::borrow_raw(fd) }),
        };
        let (guest, limit) = match workload.is_null() {
            true => (Workload::default(), LIMIT),
            false => {
                // SAFETY: not null, a structure by contract.
                let w = unsafe { read(workload) }?;
                let limit = match w.limit_ms {
                    0 => LIMIT,
                    ms => Duration::from_millis(ms),
                };
                let guest = self::workload(w.memory_bytes, w.dirty_pages_per_second);
                (guest, limit)
            }
        };
        let found = measure(kvm, guest, limit)?;
        let filled = brant_kvm_costs::new(found.choice.mode as u64, &found.costs, guest);
        // SAFETY: not null, a structure by contract.
        unsafe { write(costs, &filled) }?;
        // SAFETY: a buffer and a place by contract.
        unsafe { put_text(&found.choice.reason, buffer, capacity, needed) }
    })
}
