//! Who has a guest: what brant knows of it, and what only the VMM can say.

use super::error::brant_error;
use super::guest::brant_guest;
use super::structs::{handle, put};

/// In `brant_guest_get_state`: brant knows nothing of the guest yet. The VMM runs it, or waits for
/// a guest to arrive.
pub const BRANT_GUEST_UNKNOWN: u32 = 0;
/// In `brant_guest_get_state`: the guest runs here. A migration from here was tried, a migration to
/// here has arrived, or `brant_guest_runs_here` said so.
pub const BRANT_GUEST_HERE: u32 = 1;
/// In `brant_guest_get_state`: the guest is here and stands still. `resume` or `run` failed, or a
/// save or restore left the guest paused (BRANT_IMAGE_STAY_PAUSED). No `kick` is called in this
/// state, so the VMM calls `brant_guest_runs_here` before the vCPUs run again. A guest that its VMM
/// pauses by itself is not in this state: brant knows nothing of that pause.
pub const BRANT_GUEST_STANDS: u32 = 2;
/// In `brant_guest_get_state`: an outgoing migration is in progress, and the guest runs here.
pub const BRANT_GUEST_LEAVING: u32 = 3;
/// In `brant_guest_get_state`: an outgoing migration has paused the guest, which is here.
pub const BRANT_GUEST_PAUSED: u32 = 4;
/// In `brant_guest_get_state`: the guest is being handed over, and stands still here.
pub const BRANT_GUEST_HANDING_OVER: u32 = 5;
/// In `brant_guest_get_state`: the guest was handed over and runs at another place. Its memory is
/// still here, and `brant_guest_reclaim` may take the guest back.
pub const BRANT_GUEST_HANDED_OVER: u32 = 6;
/// In `brant_guest_get_state`: the guest was handed over without an answer, and the VMM decides by
/// `brant_outgoing_resolve`.
pub const BRANT_GUEST_UNANSWERED: u32 = 7;
/// In `brant_guest_get_state`: the guest was given up here: BRANT_RESOLVE_DESTROY,
/// `brant_guest_give_up`, or an incoming migration that failed after it had begun to overwrite a
/// guest that was handed over. A guest that was overwritten so cannot be reclaimed.
pub const BRANT_GUEST_GIVEN_UP: u32 = 8;
/// In `brant_guest_get_state`: an incoming migration is in progress.
pub const BRANT_GUEST_ARRIVING: u32 = 9;
/// In `brant_guest_get_state`: an incoming migration failed or was cancelled. No guest is here,
/// unless the VMM has made one since.
pub const BRANT_GUEST_EMPTY: u32 = 10;
/// In `brant_guest_get_state`: a save to an image is in progress, and the guest runs here.
pub const BRANT_GUEST_SAVING: u32 = 11;
/// In `brant_guest_get_state`: a save to an image has paused the guest.
pub const BRANT_GUEST_SAVE_PAUSED: u32 = 12;
/// In `brant_guest_get_state`: a restore from an image is in progress.
pub const BRANT_GUEST_RESTORING: u32 = 13;
/// In `brant_guest_get_state`: the guest is here and may run, and some of its memory has not
/// arrived. A thread that touches such a page waits until the page is here. Until the guest's memory
/// is whole, migrations, saves, restores, trackers, measurements of the dirty rate, and changes of
/// blocks and of the balloon are refused with BRANT_E_BUSY.
pub const BRANT_GUEST_INCOMPLETE: u32 = 14;

/// Puts the guest state, which says who has the guest, into `*state`: BRANT_GUEST_*. Any thread,
/// also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_get_state(
    guest: *const brant_guest,
    state: *mut u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        let whose = guest.memory.ownership().whose();
        // SAFETY: null or a place by contract.
        unsafe { put(state, "state", whose as u32) }
    })
}

/// Tells brant that the guest runs here. Only the VMM knows that when it has started a guest that
/// did not arrive by a migration. The call is optional; a good moment is before the vCPUs run for
/// the first time. From then on an incoming migration is refused. The call itself is refused when
/// the guest must not run here: BRANT_E_STATE when the guest was handed over or given up, or its
/// migration is unanswered; BRANT_E_BUSY when a migration, a save or a restore has paused the guest
/// or fills its memory, and will call `resume` or `run`.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_runs_here(
    guest: *mut brant_guest,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest.memory.runs_here()
    })
}

/// Takes back a guest that was handed over or given up. By this call the VMM asserts that no other
/// copy of the guest runs or ever will (the destination's host has died, or the destination's VMM
/// has ended the guest). The guest then counts as running here; make the call before the vCPUs run.
/// The guest goes on from where it was paused, and everything that it did at the other place is
/// lost. `resume` is not called.
///
/// That holds for an interrupted postcopy too, once it was resolved or freed: its guest ran at the
/// destination, and the call asserts that it has ended there. The guest then goes on from the switch.
///
/// BRANT_E_STATE when an incoming migration that failed has overwritten the guest's memory, when
/// memory was handed over by descriptor (brant_params.hand_over) and the destination has not said
/// that it never ran the guest, and while an unanswered migration has to be resolved. What a process
/// wrote to memory that was handed over by descriptor is in the memory here too: no guest is left
/// that could go on here, whether that process is alive or not. When the VMM frees an unanswered migration and
/// does not resolve it, the guest counts as handed over and can be reclaimed. BRANT_E_BUSY while a
/// migration is in progress.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_reclaim(
    guest: *mut brant_guest,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest.memory.reclaim()
    })
}

/// Tells brant that nobody needs the guest that is here: it has ended, it arrived and could not be
/// started, it was handed over, or the VMM waits for another guest. The guest state is
/// BRANT_GUEST_GIVEN_UP from then on. Another guest may arrive in its memory, no guest leaves from
/// here, and no vCPU is kicked. `brant_guest_reclaim` undoes this call. BRANT_E_BUSY while a
/// migration is in progress, BRANT_E_STATE while an unanswered migration has to be resolved.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_give_up(
    guest: *mut brant_guest,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest.memory.give_up()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Whose;

    #[test]
    fn the_numbers_of_who_has_a_guest_are_those_of_the_header() {
        let numbers = [
            (Whose::Unknown, BRANT_GUEST_UNKNOWN),
            (Whose::Here, BRANT_GUEST_HERE),
            (Whose::Stands, BRANT_GUEST_STANDS),
            (Whose::Leaving, BRANT_GUEST_LEAVING),
            (Whose::Paused, BRANT_GUEST_PAUSED),
            (Whose::HandingOver, BRANT_GUEST_HANDING_OVER),
            (Whose::HandedOver, BRANT_GUEST_HANDED_OVER),
            (Whose::Unanswered, BRANT_GUEST_UNANSWERED),
            (Whose::GivenUp, BRANT_GUEST_GIVEN_UP),
            (Whose::Arriving, BRANT_GUEST_ARRIVING),
            (Whose::Empty, BRANT_GUEST_EMPTY),
            (Whose::Saving, BRANT_GUEST_SAVING),
            (Whose::SavePaused, BRANT_GUEST_SAVE_PAUSED),
            (Whose::Restoring, BRANT_GUEST_RESTORING),
            (Whose::Incomplete, BRANT_GUEST_INCOMPLETE),
        ];
        for (whose, number) in numbers {
            assert_eq!(whose as u32, number);
        }
    }
}
