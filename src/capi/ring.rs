//! KVM's dirty rings: enabling them, and the vCPUs' rings.

use super::error::{brant_error, invalid};
use super::structs::{duplicated, handle, put};
use super::tracker::brant_tracker;
use crate::dirty::kvm::Rings;
use crate::error::{Error, Kind, Result};
use crate::sys::kvm::VmFd;
use crate::sys::kvm_ring::enable;
use std::os::fd::AsFd;

/// Enables KVM's dirty rings on a virtual machine that has no vCPU and no memory slot yet: `bytes`
/// for each vCPU, a power of two from 4096 to 1 MiB (65536 entries of 16 bytes), or 0 for the
/// default of 256 KiB. `*bytes_in_use` (may be NULL) gets the size. When the kernel has a backup
/// bitmap, for writes that no vCPU makes, it is enabled too. `vm_fd` is the descriptor that
/// KVM_CREATE_VM returned; brant keeps no duplicate of it. Afterwards no bitmap works on this VM,
/// so call `brant_kvm_measure` first to learn whether rings suit the guest. BRANT_E_UNSUPPORTED if
/// this kernel has no rings, BRANT_E_STATE if the VM's rings are enabled already, BRANT_E_INVALID
/// if `vm_fd` is of no VM of this process.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_enable_ring(
    vm_fd: i32,
    bytes: u64,
    bytes_in_use: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        let mut vm = VmFd::new(
            // SAFETY: open during the call by contract.
            unsafe { duplicated(vm_fd, "vm_fd") }?,
        )?;
        let enabled = enable(&mut vm, bytes)?;
        if !bytes_in_use.is_null() {
            // SAFETY: a place for a number by contract.
            unsafe { put(bytes_in_use, "bytes_in_use", enabled.bytes) }?;
        }
        Ok(())
    })
}

/// Adds a vCPU to a tracker in mode ring, under any number that is not in use. Add each vCPU before
/// tracking starts; add a vCPU that is made later before it first runs. `vcpu_fd` is the descriptor
/// that KVM_CREATE_VCPU returned; brant maps the vCPU's ring and keeps no descriptor. A vCPU that
/// was not added is not tracked. BRANT_E_INVALID for a descriptor without a dirty ring.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_vcpu(
    tracker: *mut brant_tracker,
    vcpu: u32,
    vcpu_fd: i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        let (rings, expected) = rings(tracker)?;
        // SAFETY: open during the call by contract.
        let fd = unsafe { duplicated(vcpu_fd, "vcpu_fd") }?;
        rings.add_fd(vcpu, fd.as_fd(), expected)
    })
}

/// Removes a vCPU that was added, after a last harvest of its ring. The vCPU has left KVM_RUN for
/// good, or is about to be unplugged. If it runs again, what it writes is lost until it is added
/// once more. The call ends a wait of that vCPU's thread in `brant_tracker_ring_full`. Any thread.
/// BRANT_E_NOT_FOUND for a vCPU that was not added.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_remove_vcpu(
    tracker: *mut brant_tracker,
    vcpu: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        rings(tracker)?.0.remove(vcpu)
    })
}

/// Limits how many pages a second a vCPU may write, while the tracker is started; 0 lifts the limit.
/// A vCPU over its limit waits in `brant_tracker_ring_full`; a vCPU that only reads is never slowed.
/// The limit ends when tracking stops. A migration whose policy has `slowing` BRANT_SLOWING_WRITERS
/// replaces the limits of all vCPUs, and lifts all of them at its end.
///
/// The ring's size is the granularity: each sync of the running guest empties every ring, so between
/// two syncs a vCPU gets through with one ring more than its limit. For low limits enable small
/// rings. A migration whose policy limits vCPUs syncs at the ends of passes alone. Any thread. BRANT_E_NOT_FOUND for a vCPU that was not added, BRANT_E_STATE while nothing is
/// tracked.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_limit_vcpu(
    tracker: *mut brant_tracker,
    vcpu: u32,
    pages_per_second: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        let limit = (pages_per_second > 0).then_some(pages_per_second as f64);
        rings(tracker)?.0.limit(vcpu, limit)
    })
}

/// Tells brant that a vCPU left KVM_RUN with KVM_EXIT_DIRTY_RING_FULL. Call it on that vCPU's
/// thread, once for each such exit, also while nothing is tracked. It returns when the ring has
/// room; then enter KVM_RUN again. The call waits for one round over all rings, which a thread of
/// brant's makes. It waits for no sync, and for no thread that pauses the guest meanwhile. An error
/// means that the kernel refuses to reset the ring.
///
/// A vCPU over its dirty limit (BRANT_SLOWING_WRITERS, `brant_tracker_limit_vcpu`) waits in this
/// call, for 5 ms at most: brant does not know when the VMM wants to pause the guest by itself. Then
/// the call returns 0 although the ring is still full. KVM_RUN comes out again at once, and the next
/// call waits the next slice. So look for requests of the VMM's own between the two. The wait ends
/// early with any signal to the thread, also a blocked one; always before the operations `pause` and
/// `kick`; and when the limit goes: at the end of the migration, when tracking stops, or when the
/// vCPU is removed. A call for a removed vCPU is BRANT_E_NOT_FOUND. `immediate_exit` of the vCPU's
/// kvm_run is looked at when the wait begins: to end one that has begun, set it and send a signal.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_ring_full(
    tracker: *mut brant_tracker,
    vcpu: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        rings(tracker)?.0.full(vcpu)
    })
}

/// Counts the pages that a vCPU has dirtied since it was added, and puts the count into `*pages`. A
/// page that the vCPU dirties again after a harvest counts again. A page that several vCPUs dirty
/// counts for each of them. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_vcpu_dirty(
    tracker: *const brant_tracker,
    vcpu: u32,
    pages: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        if pages.is_null() {
            return Err(invalid("pages is NULL"));
        }
        let dirtied = rings(tracker)?.0.dirtied(vcpu)?;
        // SAFETY: null or a place by contract.
        unsafe { put(pages, "pages", dirtied) }
    })
}

fn no_kvm() -> Error {
    Error::new(
        Kind::State,
        "this tracker has no KVM log: brant_tracker_add_kvm comes first",
    )
}

fn rings(tracker: &brant_tracker) -> Result<(Rings, u64)> {
    let used = tracker.kvm();
    let used = used.as_ref().ok_or_else(no_kvm)?;
    let rings = used.rings.clone().ok_or_else(|| {
        Error::new(
            Kind::State,
            format!(
                "this tracker uses no dirty rings: {} (mode {})",
                used.choice.reason, used.choice.mode as u32
            ),
        )
    })?;
    Ok((rings, used.ring_bytes))
}
