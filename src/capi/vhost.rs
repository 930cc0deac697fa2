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
/// `log[page / 8] |= 1 << page % 8`. A back end sets the bit with an atomic `or`, after its write.
/// This structure is valid during the callback only. The memory and the descriptor that it names
/// exist until all back ends use another log or have stopped logging.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vhost_memory {
    /// sizeof(brant_vhost_memory) as brant knows it.
    pub size: usize,
    /// The address of the log in this process, which VHOST_SET_LOG_BASE of the kernel's vhost
    /// takes.
    pub address: *mut c_void,
    /// Bytes; a multiple of 4096. The `mmap_size` of vhost-user's SET_LOG_BASE, whose
    /// `mmap_offset` is 0.
    pub length: u64,
    /// A memfd of that length, sealed against shrinking and growing, for vhost-user's SET_LOG_BASE.
    /// The descriptor stays brant's: duplicate it to keep it longer than the callback. Sending it
    /// over a socket duplicates it.
    pub fd: i32,
    /// 0.
    pub reserved: u32,
}

/// Back ends of vhost and vhost-user that share one log. All back ends of a guest share one as a
/// rule: a sync reads each log once, however many back ends set bits in it.
///
/// A back end may come or go while logging is on, and brant need not be told. One that comes: give
/// it the log of the last `log_on`, of which keep a duplicate descriptor, before it writes. One
/// that goes: stop its rings, and leave it out of later operations. The next sync finds the bits
/// that it has set.
///
/// brant calls the operations on the thread that starts or stops tracking or changes the guest's
/// memory, under brant's own locks. So inside them call no function of brant's but marks and
/// `brant_reason_set`, and take no lock that another thread holds around a brant_guest_* or
/// brant_tracker_* call. An operation returns 0, or any other value for a failure; then it may set
/// the reason.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vhost_log {
    /// sizeof(brant_vhost_log).
    pub size: usize,
    /// Given to the operations, until the tracker is freed and no migration uses it any more.
    pub opaque: *mut c_void,
    /// The log reaches at least to this guest address (exclusive), which is at most 2^48. 0: it
    /// reaches to the end of the highest slot, which is enough when used rings are in guest memory.
    pub reach: u64,
    /// Required. Have every back end log to this memory from now on; return when each back end
    /// does. For the kernel's vhost: VHOST_SET_LOG_BASE, VHOST_SET_FEATURES with VHOST_F_LOG_ALL,
    /// VHOST_SET_VRING_ADDR with VHOST_VRING_F_LOG. For vhost-user: SET_LOG_BASE and its reply,
    /// then SET_FEATURES, and SET_VRING_ADDR, acknowledged.
    ///
    /// Called when tracking starts, and again with a longer log when a new slot lies beyond the end
    /// of the log. At such a later call only the log base changes, and the old log is gone when the
    /// call has returned. So add the slot to brant first, and tell back ends of the new memory
    /// after that. When the first call fails, tracking does not start, and `log_off` follows. When
    /// a later call fails, the slot is refused, and back ends may go on in either log.
    pub log_on: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            log: *const brant_vhost_memory,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Required. Have every back end stop logging (the features again without VHOST_F_LOG_ALL);
    /// return when no back end writes to a log any more. Also called when a first `log_on` failed.
    /// When this fails, the log stays mapped until the next start uses it again; without a next
    /// start it stays mapped for ever.
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

/// Adds a log that vhost and vhost-user back ends write to; before tracking starts. brant makes the
/// log's memory when tracking starts, and gives it to the back ends by `log_on`. One log for all
/// devices is usual; several may be added. Bits beyond the guest's memory are counted
/// (`stray_marks`) and otherwise ignored. For these devices *paused* means that all rings have
/// stopped: GET_VRING_BASE was answered for each ring, and no write is in flight.
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
