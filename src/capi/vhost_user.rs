//! The internal state of vhost-user back ends, streamed.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::ops::{brant_reason, call_back};
use super::structs::{handle, lent, put, read, sized, taken, text};
use crate::device::vhost_user::{messages, Direction, Front, VhostUserDevice, SILENCE};
use crate::error::Result;
use std::ffi::{c_char, c_void};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// The direction of a transfer: the back end gives its state.
pub const BRANT_VHOST_USER_SAVE: u32 = 0;
/// The direction of a transfer: the back end takes its state.
pub const BRANT_VHOST_USER_LOAD: u32 = 1;

/// A vhost-user back end that keeps a state of its own, such as the open files of a file system. The
/// two callbacks send the vhost-user messages for it and wait for the replies. The connection is the
/// VMM's, whose other threads use it too, so brant does not write to it by itself. A VMM without
/// code for the messages calls brant_vhost_user_set_device_state_fd and
/// brant_vhost_user_check_device_state in them, with its own lock on the connection held.
///
/// The callbacks run on threads of the migration with all signals masked: at the source after
/// `pause`, at the destination before `loaded`. All rings of the back end have stopped then
/// (GET_VRING_BASE was answered): `pause` stops them, and `run` or `resume` starts them. Each
/// callback returns 0, or any other value for a failure; then it may set the reason.
///
/// Experimental: tested with a back end of this project's only. What other back ends need may
/// change it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vhost_user_device {
    /// sizeof(brant_vhost_user_device).
    pub size: usize,
    /// 1 to 128 bytes of UTF-8 without control characters; copied. Name and `instance` together
    /// name the device at both sides.
    pub name: *const c_char,
    /// Passed to the callbacks, until the device is removed or the guest freed.
    pub opaque: *mut c_void,
    /// Tells devices of one name apart.
    pub instance: u32,
    /// How long the back end may give no byte of its state, or take none, before the migration
    /// fails; milliseconds, 1 to 3600000. 0: 10000.
    pub silence_ms: u32,
    /// The version of the format of the state, by the back end's own numbering. A destination with
    /// another version refuses the migration before the first page.
    pub version: u32,
    /// 0.
    pub reserved: u32,
    /// How many bytes of state to expect; they count in the downtime that a pause is planned with. 0:
    /// unknown, and from the second pause on as many as at the pause before.
    pub expected_bytes: u64,
    /// Required. Send SET_DEVICE_STATE_FD with `direction` (BRANT_VHOST_USER_SAVE,
    /// BRANT_VHOST_USER_LOAD; the protocol has the same numbers), phase 0 (stopped) and `fd`. When the
    /// back end gives a descriptor instead, put it into `*given`, which is -1 before: it is brant's
    /// then. `fd` stays brant's, which closes it after the call: sending it duplicates it.
    pub set_device_state_fd: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            direction: u32,
            fd: i32,
            given: *mut i32,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Required. Send CHECK_DEVICE_STATE; succeed if the back end replies 0.
    pub check_device_state:
        Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// NULL, or: the migration was cancelled, or a timeout of it has passed, and the other two
    /// callbacks should return soon with any error. Called on the thread that cancels or on one of
    /// brant's, possibly while one of the other two runs; must not block and must call nothing of
    /// brant's. Not needed by a VMM whose callbacks wait nowhere but in
    /// brant_vhost_user_set_device_state_fd and brant_vhost_user_check_device_state, on the thread that
    /// brant calls them on: these return BRANT_E_CANCELLED then.
    pub cancel: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
}

sized!(brant_vhost_user_device);

/// The two callbacks as the trait that the crate asks for.
struct Table {
    opaque: *mut c_void,
    set: unsafe extern "C" fn(*mut c_void, u32, i32, *mut i32, *mut brant_reason) -> i32,
    check: unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32,
    cancel: Option<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: the VMM gave functions and opaque for use on brant's threads; that is the contract of
// `brant_vhost_user_device`.
unsafe impl Send for Table {}
// SAFETY: as above; the callbacks are called one at a time, but for `cancel`, which may be called
// meanwhile.
unsafe impl Sync for Table {}

impl Front for Table {
    fn set_device_state_fd(&self, direction: Direction, fd: OwnedFd) -> Result<Option<OwnedFd>> {
        let mut given = -1;
        call_back(self.opaque, |opaque, reason| {
            // SAFETY: the VMM's function, called as the structure says; `given` outlives the call.
            unsafe { (self.set)(opaque, direction as u32, fd.as_raw_fd(), &mut given, reason) }
        })?;
        match given {
            ..0 => Ok(None),
            given => {
                // SAFETY: handed over by the contract of the callback.
                unsafe { taken(given, "the descriptor that a vhost-user back end gave") }.map(Some)
            }
        }
    }

    fn check_device_state(&self) -> Result<()> {
        // SAFETY: the VMM's function, called as the structure says.
        call_back(self.opaque, |opaque, reason| unsafe {
            (self.check)(opaque, reason)
        })
    }

    fn cancel(&self) {
        if let Some(cancel) = self.cancel {
            // SAFETY: the VMM's function, called as the structure says.
            unsafe { cancel(self.opaque) }
        }
    }
}

/// Adds a vhost-user back end whose internal state migrations of this guest stream after the pause
/// (VHOST_USER_PROTOCOL_F_DEVICE_STATE, bit 19 of the protocol features, which back end and VMM have
/// negotiated). Otherwise as brant_guest_add_device, which see: brant_guest_remove_device takes it
/// away. State of rings and features that the VMM keeps goes through `save`, as always; and the
/// pages that the back end writes are another matter, see brant_tracker_add_vhost.
///
/// At the source the pipe is read to its end, and the back end is asked whether that was all. At the
/// destination the pipe is written and closed, and the back end is asked whether it understood. A
/// "no", a refusal or silence fails the migration by the device's name, and the guest runs on at the
/// source. Threads: any.
///
/// Experimental: tested with a back end of this project's only. What other back ends need may
/// change it.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_vhost_user_device(
    guest: *mut brant_guest,
    device: *const brant_vhost_user_device,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let asked = unsafe { read(device) }?;
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let name = unsafe { text(asked.name, "brant_vhost_user_device.name") }?;
        if asked.reserved != 0 {
            return Err(invalid("brant_vhost_user_device.reserved is not 0"));
        }
        let required = |name| {
            invalid(format!(
                "brant_vhost_user_device.{name} is required and is NULL"
            ))
        };
        let table = Table {
            opaque: asked.opaque,
            set: asked
                .set_device_state_fd
                .ok_or_else(|| required("set_device_state_fd"))?,
            check: asked
                .check_device_state
                .ok_or_else(|| required("check_device_state"))?,
            cancel: asked.cancel,
        };
        let device = VhostUserDevice::new(Arc::new(table));
        device.set_silence(match asked.silence_ms {
            0 => SILENCE,
            ms => Duration::from_millis(ms.into()),
        })?;
        if asked.expected_bytes > 0 {
            device.expect(asked.expected_bytes);
        }
        guest
            .memory
            .add_device(name, asked.instance, asked.version, Arc::new(device))
    })
}

/// Sends SET_DEVICE_STATE_FD on a vhost-user connection and waits for the reply, at most `timeout_ms`
/// milliseconds. `direction` and `fd` are those that `set_device_state_fd` of brant_vhost_user_device
/// got, and `given` is where it puts a descriptor; -1 is put there when the back end gave none, and
/// nothing after an error.
///
/// `connection` is a connected unix socket, lent for the call: no other thread sends on it or reads
/// from it meanwhile, and no reply is outstanding. After BRANT_E_IO, _PEER_GONE, _PROTOCOL, _TIMEOUT or
/// _CANCELLED the connection is of no more use. BRANT_E_REFUSED: the back end refused.
/// BRANT_E_CANCELLED: called in a callback of brant_vhost_user_device, and the migration was cancelled or
/// has run out of time. Threads: any.
///
/// Experimental: tested with a back end of this project's only. What other back ends need may
/// change it.
#[no_mangle]
pub unsafe extern "C" fn brant_vhost_user_set_device_state_fd(
    connection: i32,
    direction: u32,
    fd: i32,
    timeout_ms: u32,
    given: *mut i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        let direction = match direction {
            BRANT_VHOST_USER_SAVE => Direction::Save,
            BRANT_VHOST_USER_LOAD => Direction::Load,
            other => {
                return Err(invalid(format!(
                    "direction is {other}; expected BRANT_VHOST_USER_SAVE or BRANT_VHOST_USER_LOAD"
                )))
            }
        };
        if given.is_null() {
            return Err(invalid("given is NULL"));
        }
        // SAFETY: open during the call by contract.
        let connection = unsafe { lent(connection, "connection") }?;
        // SAFETY: open during the call by contract.
        let fd = unsafe { lent(fd, "fd") }?;
        let patience = Duration::from_millis(timeout_ms.into());
        let found = messages::set_device_state_fd(connection, direction, fd, patience)?;
        let found = found.map_or(-1, IntoRawFd::into_raw_fd);
        // SAFETY: a place for a number by contract.
        unsafe { put(given, "given", found) }
    })
}

/// Sends CHECK_DEVICE_STATE on a vhost-user connection and waits for the reply, at most `timeout_ms`
/// milliseconds. Connection and errors as for brant_vhost_user_set_device_state_fd; BRANT_E_REFUSED:
/// the back end says that the transfer of its state failed. Threads: any.
///
/// Experimental: tested with a back end of this project's only. What other back ends need may
/// change it.
#[no_mangle]
pub unsafe extern "C" fn brant_vhost_user_check_device_state(
    connection: i32,
    timeout_ms: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: open during the call by contract.
        let connection = unsafe { lent(connection, "connection") }?;
        messages::check_device_state(connection, Duration::from_millis(timeout_ms.into()))
    })
}
