//! The log of vhost and vhost-user back ends.

use super::error::{brant_error, invalid};
use super::ops::{brant_reason, call_back};
use super::structs::{handle, read, sized};
use super::tracker::brant_tracker;
use crate::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
use crate::error::Result;
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// The memory of a vhost log: one bit for each 4 KiB of guest physical memory from address 0 on,
/// `log[page / 8] |= 1 << page % 8`, set by an atomic or after the write. Valid during the
/// callback only; what it names is there until all back ends have been moved to another log or
/// switched off.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vhost_memory {
    /// sizeof(brant_vhost_memory) as brant knows it.
    pub size: usize,
    /// Where it is mapped in this process: what VHOST_SET_LOG_BASE of the kernel's vhost takes.
    pub address: *mut c_void,
    /// Bytes; a multiple of 4096. The `mmap_size` of vhost-user's SET_LOG_BASE, whose
    /// `mmap_offset` is 0.
    pub length: u64,
    /// A memfd of that length, sealed against shrinking and growing: what goes with
    /// vhost-user's SET_LOG_BASE. It stays brant's: duplicate it to keep it longer than the
    /// callback. Sending it over a socket duplicates it.
    pub fd: i32,
    /// 0.
    pub reserved: u32,
}

/// Back ends of vhost and vhost-user that share one log.
///
/// The operations are called on whichever thread starts or stops tracking or changes the
/// guest's memory, under brant's own locks: in there call nothing of brant's but marks and
/// `brant_reason_set`, and take no lock that another thread holds around a brant_guest_* or
/// brant_tracker_* call. They return 0, or anything else for a failure, whose reason they may set.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vhost_log {
    /// sizeof(brant_vhost_log).
    pub size: usize,
    /// Given to the operations, until the tracker is freed and no migration uses it any more.
    pub opaque: *mut c_void,
    /// The log reaches to this guest address at least (exclusive); at most 2^48. 0: to the end of
    /// the highest slot, which is enough where used rings are in guest memory.
    pub reach: u64,
    /// Required. Have every back end log to this memory from now on; return when each does. For
    /// the kernel's vhost: VHOST_SET_LOG_BASE, VHOST_SET_FEATURES with VHOST_F_LOG_ALL,
    /// VHOST_SET_VRING_ADDR with VHOST_VRING_F_LOG. For vhost-user: SET_LOG_BASE and its reply,
    /// then SET_FEATURES, and SET_VRING_ADDR, acknowledged.
    ///
    /// Called when tracking starts, and again, with a longer log, when a slot is added that the
    /// one before does not reach: then the log base is all that changes, and the log before is
    /// gone after the return. So add the slot to brant first, and tell back ends of the new
    /// memory after that. A failure of the first call refuses the start, and `log_off`
    /// follows; a failure of a later one refuses the slot, and back ends may go on in either log.
    pub log_on: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            log: *const brant_vhost_memory,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Required. Have every back end stop logging (the features again without VHOST_F_LOG_ALL);
    /// return when none writes to a log any more. Also called after a first `log_on` that failed.
    /// A failure leaves the log mapped, used again by the next start; for ever, if there is none.
    pub log_off:
        Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
}

sized!(brant_vhost_log, brant_vhost_memory);

/// The table as the trait that the crate asks for.
struct Table(brant_vhost_log);

// SAFETY: the VMM gave table and opaque for use on any thread; that is the contract of
// `brant_vhost_log`.
unsafe impl Send for Table {}
// SAFETY: as above; the operations are called one at a time, under the tracker's lock.
unsafe impl Sync for Table {}

impl VhostBackEnds for Table {
    fn log_on(&self, memory: &LogMemory) -> Result<()> {
        let log = brant_vhost_memory {
            size: size_of::<brant_vhost_memory>(),
            address: memory.address().cast(),
            length: memory.length(),
            fd: memory.fd().as_raw_fd(),
            reserved: 0,
        };
        match self.0.log_on {
            // SAFETY: the VMM's function, called as the table says; `log` outlives the call.
            Some(f) => call_back(self.0.opaque, |opaque, reason| unsafe {
                f(opaque, &log, reason)
            }),
            None => Ok(()),
        }
    }

    fn log_off(&self) -> Result<()> {
        match self.0.log_off {
            // SAFETY: the VMM's function, called as the table says.
            Some(f) => call_back(self.0.opaque, |opaque, reason| unsafe { f(opaque, reason) }),
            None => Ok(()),
        }
    }
}

/// Adds a log that vhost and vhost-user back ends write to; before tracking starts. brant makes
/// the memory when tracking starts and brings it to the back ends by `log_on`. One for all
/// devices is the usual; several may be added. Bits beyond the guest's memory are counted
/// (`stray_marks`) and otherwise ignored. Paused means, for these, that all rings have stopped:
/// GET_VRING_BASE answered for each, and no write in flight.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_vhost(
    tracker: *mut brant_tracker,
    vhost: *const brant_vhost_log,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        // SAFETY: null or a structure by contract.
        let vhost = unsafe { read(vhost) }?;
        for (name, there) in [
            ("log_on", vhost.log_on.is_some()),
            ("log_off", vhost.log_off.is_some()),
        ] {
            if !there {
                return Err(invalid(format!(
                    "brant_vhost_log.{name} is required and is NULL"
                )));
            }
        }
        let log = VhostLog::new(Arc::new(Table(vhost)), vhost.reach)?;
        tracker.tracker.add_log(Box::new(log))
    })
}
