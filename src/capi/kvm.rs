//! Which of KVM's dirty logs a tracker uses: asking for one, and what was picked.

use super::error::{brant_error, invalid};
use super::measure::{brant_kvm_costs, measured};
use super::ops::Ops;
use super::structs::{duplicated, handle, put_text, read, sized, write};
use super::tracker::brant_tracker;
use crate::dirty::kvm::{KvmMode, LogSwitch, Request, Rings};
use std::ffi::c_char;
use std::sync::Arc;

/// brant chooses. When the VM's rings are enabled, it takes the ring (no bitmap works then). Else
/// it takes the bitmaps that `brant_kvm_log.costs` recommends. Without `costs` it takes the first
/// of initially set, manual protect and get-and-clear that the kernel has. `brant_tracker_get_kvm`
/// says which log brant chose, and why. This mode measures nothing: call `brant_kvm_measure` before
/// you enable rings to learn which log suits the guest.
pub const BRANT_KVM_AUTO: u32 = 0;
/// KVM_GET_DIRTY_LOG reads and clears.
pub const BRANT_KVM_GET_AND_CLEAR: u32 = 1;
/// KVM_CLEAR_DIRTY_LOG clears; the start of tracking protects all pages.
pub const BRANT_KVM_MANUAL_PROTECT: u32 = 2;
/// KVM_CLEAR_DIRTY_LOG clears; the start of tracking protects no page, and every page counts as
/// dirty once.
pub const BRANT_KVM_INITIALLY_SET: u32 = 3;
/// Each vCPU's dirty ring, for a VM whose rings were enabled (`brant_kvm_enable_ring`). Call
/// `brant_tracker_add_vcpu` for each vCPU, and `brant_tracker_ring_full` at each exit with a full
/// ring.
pub const BRANT_KVM_RING: u32 = 4;

/// brant switches logging by KVM_SET_USER_MEMORY_REGION, with the slot as it was described.
pub const BRANT_SWITCHED_BY_BRANT: u32 = 0;
/// The VMM switches logging, in the guest's operations `log_on` and `log_off`.
pub const BRANT_SWITCHED_BY_VMM: u32 = 1;

/// KVM's dirty bitmaps or rings.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_log {
    /// sizeof(brant_kvm_log).
    pub size: usize,
    /// What KVM_CREATE_VM returned. brant keeps a duplicate.
    pub vm_fd: i32,
    /// BRANT_KVM_*. brant enables the capability while it tracks and disables it afterwards.
    pub mode: u32,
    /// BRANT_SWITCHED_*.
    pub switched_by: u32,
    /// 0.
    pub reserved: u32,
    /// In mode ring: bytes of each vCPU's ring, as `brant_kvm_enable_ring` returned them; a vCPU
    /// whose ring has another size is refused. 0: the size that the kernel names.
    pub ring_bytes: u64,
    /// The costs that `brant_kvm_measure` filled in, from which BRANT_KVM_AUTO chooses; or NULL.
    /// Read during the call.
    pub costs: *const brant_kvm_costs,
}

/// Which of KVM's dirty logs was chosen, and the totals of its rings. All fields but the first six
/// are about rings, and 0 in other modes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_info {
    /// sizeof(brant_kvm_info).
    pub size: usize,
    /// BRANT_KVM_*; BRANT_KVM_AUTO only as long as no KVM log was added.
    pub mode: u32,
    /// 1 if a bitmap is read besides the rings, for writes that no vCPU makes.
    pub with_bitmap: u32,
    /// vCPUs added.
    pub vcpus: u64,
    /// Bytes of each vCPU's ring; 16 an entry.
    pub ring_bytes: u64,
    /// Bytes of the bitmaps that hold the rings' pages between syncs.
    pub heap_bytes: u64,
    /// Rounds over all rings, each with one KVM_RESET_DIRTY_RINGS at most.
    pub rounds: u64,
    /// Entries harvested. A page that is written, harvested and written again counts twice.
    pub harvested: u64,
    /// Calls of `brant_tracker_ring_full`.
    pub full_exits: u64,
    /// Times that a ring overran: the kernel pushed onto a full one.
    pub overruns: u64,
    /// Pushes that were lost in overruns, as far as brant knows. No page is lost: see
    /// `recoveries`.
    pub lost_pushes: u64,
    /// Times that all slots were protected again and every page counted as dirty, after a loss of
    /// pushes.
    pub recoveries: u64,
    /// Resets that were interrupted, or may have been: the process was stopped, traced or frozen.
    pub interrupted: u64,
    /// Pages that may have lost their protection in an interrupted reset; every sync reports
    /// them.
    pub doubtful_pages: u64,
    /// Entries that named no page of the guest.
    pub stray_entries: u64,
    /// vCPUs that have a dirty limit now.
    pub limited_vcpus: u64,
    /// Calls of `brant_tracker_ring_full` that waited a slice because the vCPU was over its dirty
    /// limit.
    pub limit_waits: u64,
}

sized!(brant_kvm_log, brant_kvm_info);

/// Adds KVM's dirty bitmaps or rings to the logs of the tracker, before tracking starts. With
/// BRANT_SWITCHED_BY_VMM brant calls the guest's operations `log_on` and `log_off`, which are then
/// required. With rings it calls `kick` and `thread_start`, if the guest has them. A virtual
/// machine has one dirty log, and only one tracker may harvest it at a time: each of two trackers
/// would miss the pages that the other harvests. BRANT_E_INVALID if `vm_fd` is of no VM of this
/// process.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_kvm(
    tracker: *mut brant_tracker,
    kvm: *const brant_kvm_log,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let kvm = unsafe { read(kvm) }?;
        if kvm.size < std::mem::offset_of!(brant_kvm_log, mode) {
            return Err(invalid("brant_kvm_log.size leaves no room for vm_fd"));
        }
        if kvm.reserved != 0 {
            return Err(invalid("brant_kvm_log.reserved is not 0"));
        }
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        let mode = match kvm.mode {
            BRANT_KVM_AUTO => KvmMode::Auto,
            BRANT_KVM_GET_AND_CLEAR => KvmMode::GetAndClear,
            BRANT_KVM_MANUAL_PROTECT => KvmMode::ManualProtect,
            BRANT_KVM_INITIALLY_SET => KvmMode::InitiallySet,
            BRANT_KVM_RING => KvmMode::Ring,
            other => {
                return Err(invalid(format!(
                    "brant_kvm_log.mode is 0 to 4, not {other}"
                )))
            }
        };
        let switch = match kvm.switched_by {
            BRANT_SWITCHED_BY_BRANT => LogSwitch::Brant,
            BRANT_SWITCHED_BY_VMM => {
                tracker.ops.check_log_switch()?;
                LogSwitch::Vmm(Arc::<Ops>::clone(&tracker.ops))
            }
            other => {
                return Err(invalid(format!(
                    "brant_kvm_log.switched_by is 0 or 1, not {other}"
                )))
            }
        };
        let request = Request {
            mode,
            switch,
            vmm: Some(Arc::<Ops>::clone(&tracker.ops)),
            // SAFETY: null or a structure by contract.
            measured: unsafe { measured(kvm.costs) }?,
            ring_bytes: kvm.ring_bytes,
        };
        // SAFETY: open during the call by contract.
        let fd = unsafe { duplicated(kvm.vm_fd, "brant_kvm_log.vm_fd") }?;
        let opened = request.open_fd(fd)?;
        tracker.tracker.add_log(opened.log)?;
        *tracker.kvm() = Some(opened.used);
        Ok(())
    })
}

/// Says which of KVM's logs the tracker uses, and why. The reason is copied to `buffer`, cut to
/// `capacity` bytes and NUL-terminated. `*needed` (may be NULL) gets the bytes that the whole
/// reason takes. `buffer` NULL and `capacity` 0 give no text. Before `brant_tracker_add_kvm` the
/// mode is BRANT_KVM_AUTO. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_get_kvm(
    tracker: *const brant_tracker,
    info: *mut brant_kvm_info,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        let used = tracker.kvm();
        let used = used.as_ref();
        let rings = used.and_then(|used| used.rings.as_ref());
        let figures = rings.map(Rings::figures).unwrap_or_default();
        let (vcpus, ring_bytes) = rings.map_or((0, 0), Rings::vcpus);
        let filled = brant_kvm_info {
            size: 0,
            mode: used.map_or(BRANT_KVM_AUTO, |used| used.choice.mode as u32),
            with_bitmap: u32::from(used.is_some_and(|used| used.with_bitmap)),
            vcpus,
            limited_vcpus: rings.map_or(0, Rings::limited),
            ring_bytes: ring_bytes.max(used.map_or(0, |used| used.ring_bytes)),
            heap_bytes: rings.map_or(0, Rings::heap_bytes),
            rounds: figures.rounds,
            harvested: figures.harvested,
            full_exits: figures.full_exits,
            limit_waits: figures.limit_waits,
            overruns: figures.overruns,
            lost_pushes: figures.lost,
            recoveries: figures.recoveries,
            interrupted: figures.interrupted,
            doubtful_pages: figures.doubtful,
            stray_entries: figures.strays,
        };
        // SAFETY: null or a structure by contract.
        unsafe { write(info, &filled) }?;
        let reason = used.map_or("no KVM log was added to this tracker", |used| {
            &used.choice.reason
        });
        // SAFETY: a buffer and a place by contract.
        unsafe { put_text(reason, buffer, capacity, needed) }
    })
}
