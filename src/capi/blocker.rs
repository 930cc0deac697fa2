//! Reasons why a guest cannot move.

use super::error::brant_error;
use super::guest::brant_guest;
use super::structs::{handle, put, text};
use crate::migrate::Blocker;
use std::ffi::c_char;

/// A reason why a guest cannot migrate. It counts until `brant_blocker_free` takes it back.
///
/// Threads: any. `brant_blocker_free` is the last call on a blocker. It may come after the guest
/// was freed, and while a migration starts: that migration is then refused or not.
pub struct brant_blocker {
    _blocker: Blocker,
}

/// Tells brant that the guest cannot migrate, and why, until the blocker is freed. A migration that
/// is started meanwhile is refused with BRANT_E_BLOCKED and the reason. A migration that is already
/// in progress fails with BRANT_E_BLOCKED, unless it has paused the guest already. `blocker` may be
/// NULL: then the reason counts as long as the guest exists.
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
