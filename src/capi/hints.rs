//! Free-page hints: pages that are free at one moment, and are not sent.

use super::error::{brant_error, invalid};
use super::structs::{handle, put};
use super::tracker::brant_tracker;
use vm_memory::GuestAddress;

/// Begins a round of free-page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT), and puts its number into
/// `*round`. After this call give the guest a new command id. The call restores the protection of
/// all pages whose protection is not restored yet, by one kernel call for each chunk with dirty
/// pages. The migration would otherwise make the same kernel calls later. The round ends with the
/// next sync (a migration syncs at the end of each pass: BRANT_EVENT_PASS), with a change of the
/// map, and when the next round begins. Any thread; may wait for a sync. BRANT_E_STATE while
/// nothing is tracked. For a moment after the start of a migration nothing is tracked yet: try
/// again.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_begin_hints(
    tracker: *const brant_tracker,
    round: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        if round.is_null() {
            return Err(invalid("round is NULL"));
        }
        // SAFETY: not null, a place by contract.
        unsafe { put(round, "round", tracker.tracker.begin_hints()?) }
    })
}

/// Tells brant that the guest hinted `length` bytes at a guest physical address as free, in answer
/// to the command id that belongs to `round`. The whole pages in the range that are pending are not
/// sent this once, and read as zero at the destination. The guest may write to these pages later
/// without a word: such a write is found, and the page is sent. BRANT_E_STATE if the round is over:
/// the hint does nothing, and is counted (`stale_hints`). Any thread; may wait for a sync.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_hint_free(
    tracker: *const brant_tracker,
    round: u64,
    guest_address: u64,
    length: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        tracker
            .tracker
            .hint_free(round, GuestAddress(guest_address), length)
            .map(|_| ())
    })
}

/// Ends a round: hints of the round that come later do nothing. A round that is over already is
/// fine, and so is NULL for `tracker`. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_end_hints(tracker: *const brant_tracker, round: u64) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(t) = unsafe { tracker.as_ref() } {
            t.tracker.end_hints(round);
        }
    })
}
