//! Errors as C sees them: a code that never changes meaning, and an optional object with the
//! sentence.

use crate::error::{Error, Kind, Result};
use crate::runtime::thread::catch;
use std::ffi::{c_char, CString};

/// An argument is outside its stated limits.
pub const BRANT_E_INVALID: i32 = -1;
/// The call is not allowed in the state the object is in.
pub const BRANT_E_STATE: i32 = -2;
/// The object is in use by something else; try again when that has ended.
pub const BRANT_E_BUSY: i32 = -3;
/// No such block, slot, or file.
pub const BRANT_E_NOT_FOUND: i32 = -4;
/// Another object has this name or this place already.
pub const BRANT_E_EXISTS: i32 = -5;
/// Memory could not be allocated.
pub const BRANT_E_NO_MEMORY: i32 = -6;
/// The kernel, the machine or the peer cannot do this.
pub const BRANT_E_UNSUPPORTED: i32 = -7;
/// A system call failed, and the arguments of the caller are not the reason.
pub const BRANT_E_KERNEL: i32 = -8;
/// The connection could not be made, or failed.
pub const BRANT_E_IO: i32 = -9;
/// The peer closed the connection.
pub const BRANT_E_PEER_GONE: i32 = -10;
/// A time limit passed.
pub const BRANT_E_TIMEOUT: i32 = -11;
/// The operation was cancelled, here or by the peer. When the peer cancelled it, the message names
/// the peer.
pub const BRANT_E_CANCELLED: i32 = -12;
/// The peer sent what the protocol does not allow.
pub const BRANT_E_PROTOCOL: i32 = -13;
/// The two sides' memory blocks differ.
pub const BRANT_E_LAYOUT: i32 = -14;
/// No protocol version or required feature in common.
pub const BRANT_E_VERSION: i32 = -15;
/// The peer refused, and said why.
pub const BRANT_E_REFUSED: i32 = -16;
/// A callback of the VMM failed.
pub const BRANT_E_VMM: i32 = -17;
/// The remaining pages did not get few enough in time: the guest writes too fast, or the link or
/// its cap is too slow.
pub const BRANT_E_NOT_CONVERGED: i32 = -18;
/// The guest can be neither migrated nor saved, for a reason that the VMM gave.
pub const BRANT_E_BLOCKED: i32 = -19;
/// The guest was handed over, and the destination did not say that the guest runs: it said nothing,
/// or said that it failed. The guest stands paused at the source until the VMM resolves the
/// migration.
pub const BRANT_E_UNANSWERED: i32 = -20;
/// The function was called inside a callback of the same object, where it would wait for itself.
pub const BRANT_E_CALLBACK: i32 = -21;
/// A defect in brant itself, caught at the boundary.
pub const BRANT_E_INTERNAL: i32 = -22;
/// Not over yet: the time of the wait ended first. Nothing ever fails with this code.
pub const BRANT_E_PENDING: i32 = -23;
/// Guest memory could not be read or written: poisoned, without permission, cut off the end of
/// its file, or without room to be allocated. The message names the block and the offset.
pub const BRANT_E_MEMORY: i32 = -24;
/// The file is not a whole image of a guest: it is torn, short, or something else. The message
/// names the file, the place in it, what was expected there and what was found.
pub const BRANT_E_IMAGE: i32 = -25;

/// The detail of an error. A function that can fail returns 0 or one of the `BRANT_E_*` codes. Its
/// last parameter is a `brant_error **`, which may be NULL. Otherwise the function sets `*error`,
/// whatever it held before: to NULL on success, to a new error on failure. The caller owns the new
/// error. brant sets no errno and keeps no last error, and it writes nothing to stdout or stderr.
///
/// Threads: any, several at once. `brant_error_free` is the last call on an error, and ends the
/// life of its message.
pub struct brant_error {
    error: Error,
    message: CString,
}

impl brant_error {
    fn new(error: Error) -> Self {
        let text: Vec<u8> = error
            .message()
            .bytes()
            .map(|b| if b == 0 { b' ' } else { b })
            .collect();
        brant_error {
            error,
            // There is no NUL in it any more.
            message: CString::new(text).unwrap_or_default(),
        }
    }
}

/// The error's code, one of `BRANT_E_*`; 0 for NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_error_code(error: *const brant_error) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: by contract null, or an error that brant made.
        unsafe { error.as_ref() }.map_or(0, |e| e.error.kind() as i32)
    })
}

/// What went wrong, in one sentence: what was expected and what was found. UTF-8; lives as
/// long as the error. "" for NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_error_message(error: *const brant_error) -> *const c_char {
    boundary!(or c"".as_ptr(), {
        // SAFETY: by contract null, or an error that brant made.
        unsafe { error.as_ref() }.map_or(c"".as_ptr(), |e| e.message.as_ptr())
    })
}

/// Frees an error; NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn brant_error_free(error: *mut brant_error) {
    boundary!(or(), {
        if !error.is_null() {
            // SAFETY: made by Box::into_raw below and not freed before, by contract.
            drop(unsafe { Box::from_raw(error) });
        }
    })
}

/// A short name for a code, as "timed out"; static. "success" for 0, "unknown error" for a
/// code this library does not know.
#[no_mangle]
pub extern "C" fn brant_error_name(code: i32) -> *const c_char {
    boundary!(or c"unknown error".as_ptr(), {
        match code {
            0 => c"success",
            BRANT_E_INVALID => c"invalid argument",
            BRANT_E_STATE => c"wrong state",
            BRANT_E_BUSY => c"busy",
            BRANT_E_NOT_FOUND => c"not found",
            BRANT_E_EXISTS => c"already exists",
            BRANT_E_NO_MEMORY => c"out of memory",
            BRANT_E_UNSUPPORTED => c"not supported",
            BRANT_E_KERNEL => c"system call failed",
            BRANT_E_IO => c"connection error",
            BRANT_E_PEER_GONE => c"peer gone",
            BRANT_E_TIMEOUT => c"timed out",
            BRANT_E_CANCELLED => c"cancelled",
            BRANT_E_PROTOCOL => c"protocol error",
            BRANT_E_LAYOUT => c"memory layouts differ",
            BRANT_E_VERSION => c"no common version",
            BRANT_E_REFUSED => c"refused by the peer",
            BRANT_E_VMM => c"VMM callback failed",
            BRANT_E_NOT_CONVERGED => c"did not converge",
            BRANT_E_BLOCKED => c"blocked by the VMM",
            BRANT_E_UNANSWERED => c"handed over, not answered",
            BRANT_E_CALLBACK => c"called from its own callback",
            BRANT_E_INTERNAL => c"internal error",
            BRANT_E_PENDING => c"not over yet",
            BRANT_E_MEMORY => c"guest memory not accessible",
            BRANT_E_IMAGE => c"no whole image",
            _ => c"unknown error",
        }
        .as_ptr()
    })
}

/// Runs an export's body: a panic is an error, and an error is a code and an object.
pub(super) fn status(error: *mut *mut brant_error, body: impl FnOnce() -> Result<()>) -> i32 {
    let result = catch(body).and_then(|result| result);
    let (code, object) = match result {
        Ok(()) => (0, None),
        Err(e) => (e.kind() as i32, Some(e)),
    };
    if !error.is_null() {
        let object = match object {
            // Making the object may fail too, for want of memory; then the code has to do.
            Some(e) => catch(|| Box::into_raw(Box::new(brant_error::new(e))))
                .unwrap_or(std::ptr::null_mut()),
            None => std::ptr::null_mut(),
        };
        // SAFETY: not null, and a place for a pointer by contract.
        unsafe { error.write(object) };
    }
    code
}

/// An argument that is wrong.
pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn every_kind_has_its_code_and_name() {
        let codes = [
            (Kind::Invalid, BRANT_E_INVALID),
            (Kind::State, BRANT_E_STATE),
            (Kind::Busy, BRANT_E_BUSY),
            (Kind::NotFound, BRANT_E_NOT_FOUND),
            (Kind::Exists, BRANT_E_EXISTS),
            (Kind::NoMemory, BRANT_E_NO_MEMORY),
            (Kind::Unsupported, BRANT_E_UNSUPPORTED),
            (Kind::Kernel, BRANT_E_KERNEL),
            (Kind::Io, BRANT_E_IO),
            (Kind::PeerGone, BRANT_E_PEER_GONE),
            (Kind::Timeout, BRANT_E_TIMEOUT),
            (Kind::Cancelled, BRANT_E_CANCELLED),
            (Kind::Protocol, BRANT_E_PROTOCOL),
            (Kind::Layout, BRANT_E_LAYOUT),
            (Kind::Version, BRANT_E_VERSION),
            (Kind::Refused, BRANT_E_REFUSED),
            (Kind::Vmm, BRANT_E_VMM),
            (Kind::NotConverged, BRANT_E_NOT_CONVERGED),
            (Kind::Blocked, BRANT_E_BLOCKED),
            (Kind::Unanswered, BRANT_E_UNANSWERED),
            (Kind::Callback, BRANT_E_CALLBACK),
            (Kind::Internal, BRANT_E_INTERNAL),
            (Kind::Pending, BRANT_E_PENDING),
            (Kind::Memory, BRANT_E_MEMORY),
            (Kind::Image, BRANT_E_IMAGE),
        ];
        for (i, (kind, code)) in codes.into_iter().enumerate() {
            assert_eq!(kind as i32, code);
            assert_eq!(code, -(i as i32) - 1);
            // SAFETY: a static string.
            let name = unsafe { CStr::from_ptr(brant_error_name(code)) };
            assert_eq!(name.to_str().unwrap(), kind.name());
        }
    }

    #[test]
    fn a_panic_below_an_export_is_an_error_object() {
        let mut error = std::ptr::null_mut();
        let code = status(&mut error, || panic!("planted"));
        assert_eq!(code, BRANT_E_INTERNAL);
        // SAFETY: just made.
        unsafe {
            assert_eq!(brant_error_code(error), BRANT_E_INTERNAL);
            let text = CStr::from_ptr(brant_error_message(error));
            assert!(text.to_str().unwrap().contains("planted"));
            brant_error_free(error);
            assert_eq!(status(&mut error, || Ok(())), 0);
        }
        assert!(error.is_null());
    }
}
