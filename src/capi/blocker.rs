//! Reasons why a guest can be neither migrated nor saved.

use super::error::brant_error;
use super::guest::brant_guest;
use super::structs::{handle, put, text};
use crate::migrate::Blocker;
use std::ffi::c_char;

/// A reason why a guest can be neither migrated nor saved, until `brant_blocker_free` takes it back.
///
/// Threads: any. `brant_blocker_free` is the last call, also after the guest was freed, and also
/// while a migration or a save starts: that one is refused or is not.
pub struct brant_blocker {
    _blocker: Blocker,
}

/// Says that the guest can be neither migrated nor saved, and why, until the blocker is taken back.
/// A migration or save that is started meanwhile is refused with BRANT_E_BLOCKED and the reason. One
/// that is running fails with it unless the guest is paused already. `blocker` may be NULL: then the reason
/// stays as long as the guest does.
#[no_mangle]
pub unsafe extern "C" fn brant_blocker_new(
    guest: *mut brant_guest,
    reason: *const c_char,
    blocker: *mut *mut brant_blocker,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let reason = unsafe { text(reason, "reason") }?;
        let made = guest.blockers.block(reason);
        if blocker.is_null() {
            made.keep();
            return Ok(());
        }
        let made = Box::new(brant_blocker { _blocker: made });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(blocker, "blocker", Box::into_raw(made)) }
    })
}

/// Takes a blocker's reason back and frees the blocker; NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn brant_blocker_free(blocker: *mut brant_blocker) {
    boundary!(or(), {
        if !blocker.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(blocker) });
        }
    })
}
