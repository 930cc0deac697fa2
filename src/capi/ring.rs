//! KVM's dirty rings: enabling them, the vCPUs' rings, and what was picked of KVM's logs.

use super::error::{brant_error, invalid};
use super::structs::{handle, put, put_text, sized, taken, write};
use super::tracker::{brant_tracker, BRANT_KVM_AUTO};
use crate::dirty::kvm::{Choice, Rings};
use crate::error::{Error, Kind, Result};
use crate::sys::kvm::VmFd;
use crate::sys::kvm_ring::{enable, RingMap};
use std::ffi::c_char;
use std::os::fd::AsFd;

/// What the tracker uses of KVM.
pub(super) struct KvmUse {
    pub choice: Choice,
    pub with_bitmap: bool,
    /// In mode ring.
    pub rings: Option<Rings>,
    /// Bytes of a ring, as the VMM said; 0 if it did not.
    pub ring_bytes: u64,
}

/// What was picked of KVM's dirty logs, and how its rings fare. All but the first six fields are
/// about rings, and 0 in other modes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_kvm_info {
    /// sizeof(brant_kvm_info).
    pub size: usize,
    /// BRANT_KVM_*; BRANT_KVM_AUTO only as long as no KVM log was added.
    pub mode: u32,
    /// 1 if a bitmap is read besides the rings, for what no vCPU writes.
    pub with_bitmap: u32,
    /// vCPUs added.
    pub vcpus: u64,
    /// Bytes of each vCPU's ring; 16 an entry.
    pub ring_bytes: u64,
    /// Bytes of bitmaps held for what the rings gave between syncs.
    pub heap_bytes: u64,
    /// Rounds over all rings, each with one KVM_RESET_DIRTY_RINGS at most.
    pub rounds: u64,
    /// Entries harvested. A page that is written, harvested and written again counts twice.
    pub harvested: u64,
    /// Calls of `brant_tracker_ring_full`.
    pub full_exits: u64,
    /// Times that a ring overran: the kernel pushed onto a full one.
    pub overruns: u64,
    /// Pushes that were lost in that, as far as they are known. No page is: see `recoveries`.
    pub lost_pushes: u64,
    /// Times that all slots were protected again and every page counted as dirty, after a loss.
    pub recoveries: u64,
    /// Resets that were interrupted, or may have been: the process was stopped, traced or frozen.
    pub interrupted: u64,
    /// Pages that may have lost their protection in one of those, reported in every sync.
    pub doubtful_pages: u64,
    /// Entries that named no page of the guest.
    pub stray_entries: u64,
}

sized!(brant_kvm_info);

/// Enables KVM's dirty rings on a virtual machine that has no vCPU and no memory slot yet:
/// `bytes` for each vCPU, a power of two from 4096 to 1 MiB (65536 entries of 16 bytes), or 0 for
/// what brant thinks best, 256 KiB. `*bytes_in_use` (may be NULL) gets the size. Where the
/// kernel offers one, the backup bitmap for writes that no vCPU makes is enabled too. `vm_fd` is a
/// duplicate (dup) of what KVM_CREATE_VM returned: brant's from here on, whatever the call returns.
/// BRANT_E_UNSUPPORTED without rings in this kernel, BRANT_E_STATE if they are enabled already.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_enable_ring(
    vm_fd: i32,
    bytes: u64,
    bytes_in_use: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        let mut vm = VmFd::new(
            // SAFETY: handed over by contract; ours from here on, whatever comes.
            unsafe { taken(vm_fd, "vm_fd") }?,
        )?;
        let enabled = enable(&mut vm, bytes)?;
        if !bytes_in_use.is_null() {
            // SAFETY: a place for a number by contract.
            unsafe { put(bytes_in_use, "bytes_in_use", enabled.bytes) }?;
        }
        Ok(())
    })
}

/// Tells a tracker in mode ring of a vCPU, under any number that is not in use: for each vCPU before
/// tracking starts, and for one that is added later before it first runs. `vcpu_fd` is a
/// duplicate (dup) of what KVM_CREATE_VCPU returned: brant's from here on, whatever the call
/// returns. A vCPU that is not told of is not tracked.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_vcpu(
    tracker: *mut brant_tracker,
    vcpu: u32,
    vcpu_fd: i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: handed over by contract; ours from here on, whatever comes.
        let fd = unsafe { taken(vcpu_fd, "vcpu_fd") }?;
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        let (rings, expected) = rings(tracker)?;
        let ring = RingMap::new(fd.as_fd(), expected)
            .map_err(|e| e.context(format_args!("vCPU {vcpu}")))?;
        rings.add(vcpu, Box::new(ring))
    })
}

/// Says that a vCPU came out of KVM_RUN with KVM_EXIT_DIRTY_RING_FULL. On that vCPU's thread, once
/// for each such exit, also while nothing is tracked. Returns when there is room: enter KVM_RUN
/// again. It waits for one round over all rings, made on a thread of brant's, and for nothing else: not
/// for a sync, nor for whoever pauses the guest meanwhile. An error means that the kernel
/// refuses to reset the ring.
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

/// How many pages a vCPU has dirtied since it was added, into `*pages`. A page that it dirties
/// again after a harvest counts again, and so does one that several vCPUs share. Any thread.
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

/// Says which of KVM's logs the tracker uses, and why: the reason is copied to `buffer`, cut to
/// `capacity` bytes and NUL-terminated; `*needed` (may be NULL) gets the bytes that it takes. NULL
/// and 0 for no text. Before `brant_tracker_add_kvm` the mode is BRANT_KVM_AUTO. Any thread.
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
            ring_bytes: ring_bytes.max(used.map_or(0, |used| used.ring_bytes)),
            heap_bytes: rings.map_or(0, Rings::heap_bytes),
            rounds: figures.rounds,
            harvested: figures.harvested,
            full_exits: figures.full_exits,
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
