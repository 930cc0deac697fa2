//! Chains of images: each later one holds what changed since the one before.

use super::error::{brant_error, invalid};
use super::structs::{handle, put};
use super::tracker::brant_tracker;
use crate::snapshot::Chain;
use std::sync::Arc;

/// A chain of images of one guest. The first save with it (`brant_image_save_params.chain`) holds all
/// of the guest's memory, each later one what changed since the one before. All images of a chain lie
/// in one directory. A restore takes the path of any of them, and finds those before by the names that
/// they had when they were made. `brant_image_merge` makes one full image of an image and those before
/// it. A chain has at most 64 images.
///
/// Each image names the one before by its checksum. Restores, merges and the next save fail with
/// BRANT_E_NOT_FOUND or BRANT_E_IMAGE when an image is missing, changed or another one; the message has
/// the image that was expected and the one that was found. The next save fails with BRANT_E_INVALID
/// for a path of an image of the chain, and with BRANT_E_STATE when a restore or a migration has filled
/// the guest's memory since the last image: make a new chain then. A save that fails loses nothing: the
/// next image holds what changed since the last whole one.
///
/// The chain is a consumer of the tracker: from the first image on the dirty logs are on, until the
/// chain is freed and no save with it is there. Memory that the VMM discards by itself, and not because
/// the guest gave it to its balloon, must be marked as written, as for a migration.
///
/// Threads: any, several at once. `brant_image_chain_free` is the last call: all others with the
/// chain, `brant_image_save_new` included, have returned before it begins. The tracker may be freed
/// before.
pub struct brant_image_chain {
    pub(super) chain: Chain,
}

/// Makes a chain of images of the guest that `tracker` was made from. It has no image yet, and nothing
/// is tracked for it. Free it with `brant_image_chain_free`.
#[no_mangle]
pub unsafe extern "C" fn brant_image_chain_new(
    tracker: *mut brant_tracker,
    chain: *mut *mut brant_image_chain,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        if chain.is_null() {
            return Err(invalid("chain is NULL"));
        }
        let made = Box::new(brant_image_chain {
            chain: Chain::new(Arc::clone(&tracker.tracker)),
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(chain, "chain", Box::into_raw(made)) }
    })
}

/// Frees a chain; NULL is fine. Its images stay and can be restored. No image can be added to them any
/// more; a save with the chain that was made before still can.
#[no_mangle]
pub unsafe extern "C" fn brant_image_chain_free(chain: *mut brant_image_chain) {
    boundary!(or(), {
        if !chain.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(chain) });
        }
    })
}
