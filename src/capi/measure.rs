//! What KVM's logs cost on this machine, before the VMM chooses between bitmaps and rings.

use super::error::{brant_error, invalid};
use super::structs::{put_text, read, sized, write};
use crate::dirty::kvm::measure::{measure, Cost, Costs, Measured, Workload, LIMIT};
use crate::error::Result;
use crate::units::Bytes;
use std::ffi::c_char;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The guest that will be tracked, as far as the VMM knows it. A field that is 0 is unknown.
///
/// Experimental: how the cost of a log is measured may change, and with it what is measured.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_workload {
    /// sizeof(brant_kvm_workload).
    pub size: usize,
    /// Bytes of the guest's memory. 0: unknown, and the cost of a sync of clean memory does not
    /// count.
    pub memory_bytes: u64,
    /// Distinct pages of 4 KiB that the guest writes in a tenth of a second, times ten.
    /// (brant_rate_measure with a period of 100 ms measures this on a similar guest.) 0: unknown,
    /// and the worst case counts, a guest that writes as fast as it can.
    pub dirty_pages_per_second: u64,
    /// Milliseconds that the measurement takes at most, 20 to 10000; 0: 200.
    pub limit_ms: u64,
}

/// What one of KVM's logs costs, in nanoseconds of the processor that runs the guest or syncs.
///
/// Experimental: how the cost of a log is measured may change, and with it what is measured.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_cost {
    /// 1 if this log was measured. 0 if the kernel has no such log or the time ran out; then all
    /// other fields are 0.
    pub measured: u64,
    /// The guest's first write to a clean page.
    pub first_write_ns: u64,
    /// A write of a guest that writes its whole memory four times between two syncs: the mean of
    /// first and later writes. With a ring each is a first write, because pages that the ring gave
    /// are protected again when a quarter of the ring is in use.
    pub busy_write_ns: u64,
    /// The cost of a sync for each dirty page: finding the page and protecting it again.
    pub sync_page_ns: u64,
    /// The cost of a sync for each GiB of the guest that has no dirty page.
    pub sync_gib_ns: u64,
}

/// The result of `brant_kvm_measure`. Give it unchanged to `brant_kvm_log.costs`.
///
/// Experimental: how the cost of a log is measured may change, and with it what is measured.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_costs {
    /// sizeof(brant_kvm_costs).
    pub size: usize,
    /// The log that costs this guest least, BRANT_KVM_*; never BRANT_KVM_AUTO.
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
/// works, so later there is no choice. Rings suit a huge guest that writes little; a guest that
/// writes the same memory again and again faults more often with rings.
///
/// Example: measure; enable rings if `costs.recommended` is BRANT_KVM_RING; make the VM's slots and
/// vCPUs; later add KVM's log with BRANT_KVM_AUTO and `brant_kvm_log.costs`.
///
/// The call runs a guest of brant's own in two temporary virtual machines with 4 MiB of memory
/// each, on the calling thread alone. It takes at most 0.2 s (or `workload->limit_ms`), plus about
/// the time that KVM needs to end a virtual machine. It does not touch the VMM's own virtual
/// machines. Whatever the call returns, it leaves nothing behind. Any thread.
///
/// `kvm_fd` is a descriptor of /dev/kvm; brant keeps no duplicate of it. With -1 brant opens
/// /dev/kvm for the time of the call. `workload` may be NULL when the VMM knows nothing of the
/// guest. `costs` is filled in, with zeros when the call fails. The reason of the recommendation is
/// copied to `buffer` as `brant_tracker_get_kvm` does; `buffer` NULL and `capacity` 0 give no text,
/// and `needed` may be NULL.
///
/// BRANT_E_NO_MEMORY when 1 GiB of address space cannot be reserved (it is not touched);
/// BRANT_E_UNSUPPORTED on any machine but x86-64, or when KVM does not run the guest;
/// BRANT_E_TIMEOUT when not one log was measured in time; BRANT_E_INVALID for a limit out of range,
/// or a descriptor that is not one of /dev/kvm; BRANT_E_KERNEL when KVM refuses a call.
///
/// Experimental: how the cost of a log is measured may change, and with it what is measured.
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
