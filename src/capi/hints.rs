//! Free-page hints: pages that are free at one moment, and are not sent.

use super::error::{brant_error, invalid};
use super::structs::{handle, put};
use super::tracker::brant_tracker;
use vm_memory::GuestAddress;

/// Begins a round of free-page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT) and gives its number in
/// `*round`. Call it, then give the guest a new command id. Restores the protection of all pages
/// that still wait for it: one kernel call for each chunk with dirty pages, all of which the
/// migration would make as well, later. The round is over with the next sync (a migration syncs
/// at the end of each pass: BRANT_EVENT_PASS), with a change of the memory map and with the next
/// round. Any thread; may wait for a sync. BRANT_E_STATE while nothing is tracked, also a moment
/// after a migration was started: try again.
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

/// The guest hinted, answering the command id that belongs to `round`, that `length` bytes at a
/// guest physical address are free. Whole pages of them that are pending are not sent, this once,
/// and read as zero at the destination; what the guest writes to them later is found and sent. It
/// need not say a word before that. BRANT_E_STATE if the round is over: nothing happens, and the
/// hint is counted (`stale_hints`). Any thread; may wait for a sync.
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

/// Ends a round: hints of it that come later do nothing. One that is over already is fine, and
/// so is NULL. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_end_hints(tracker: *const brant_tracker, round: u64) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(t) = unsafe { tracker.as_ref() } {
            t.tracker.end_hints(round);
        }
    })
}
