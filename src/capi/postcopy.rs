//! Postcopy, the source's part: the switch, and going on after lost connections.

use super::error::brant_error;
use super::outgoing::brant_outgoing;
use super::structs::{handle, taken_all, text};
use crate::channel::Endpoint;
use crate::migrate::ConnectTo;
use std::ffi::c_char;

/// Switches to postcopy as soon as possible: the guest is paused, and runs at the destination before the
/// pages that it lacks there have come. Any moment from the start to the pause will do. The pass in
/// progress ends with a sync. When the guest would stand still for longer than the downtime limit, the
/// switch does not come, the migration goes on as before, and a BRANT_EVENT_DOWNTIME has the figure: the
/// description of the missing pages, their discarding at the destination, and the device state all count.
/// Returns at once.
///
/// BRANT_E_UNSUPPORTED when `postcopy` of the parameters is BRANT_POSTCOPY_OFF. Before the start, after a
/// start that failed, from the pause on, and after the end: BRANT_E_STATE. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_start_postcopy(
    outgoing: *mut brant_outgoing,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(outgoing, "outgoing") }?
            .outgoing
            .start_postcopy()
    })
}

/// Continues a migration in BRANT_SOURCE_INTERRUPTED over new connections to `endpoint`, as many as at
/// the start. Returns at once, in BRANT_SOURCE_RECOVERING. The destination's VMM has to take the new
/// connections (brant_incoming_recover), and may do so later than this call: while they cannot be made,
/// or are lost before both sides have agreed, another try follows ten times a second, as long as the
/// connect timeout allows (`brant_params.connect_timeout_ms`, from this call on). How it ended:
///
/// - recovered: BRANT_SOURCE_SERVING, and BRANT_EVENT_RECOVERED;
/// - not: BRANT_SOURCE_INTERRUPTED as before, and another BRANT_EVENT_INTERRUPTED that says why. This may
///   be called again, any number of times.
///
/// The descriptor of brant_outgoing_event_fd becomes readable with each of these changes.
/// brant_outgoing_resolve ends the tries. In the moment in which both sides have agreed and the state is not
/// yet BRANT_SOURCE_SERVING it comes too late: it returns BRANT_E_STATE when the migration is over.
///
/// BRANT_E_STATE when the migration is not interrupted, or was resolved; BRANT_E_BUSY while a recovery is
/// in progress. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_recover(
    outgoing: *mut brant_outgoing,
    endpoint: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        // SAFETY: null or a string by contract.
        let endpoint = Endpoint::parse(unsafe { text(endpoint, "endpoint") }?)?;
        outgoing.outgoing.recover(ConnectTo::Endpoint(endpoint))
    })
}

/// As brant_outgoing_recover, over connected stream sockets: one for each channel, channel 0 first, and
/// one more behind them. What brant_outgoing_start_fds says of the list and of its ownership holds here.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_recover_fds(
    outgoing: *mut brant_outgoing,
    fds: *const i32,
    count: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: handed over by contract.
        let sockets = unsafe { taken_all(fds, count) }?;
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        outgoing.outgoing.recover(ConnectTo::ConnectedAll(sockets))
    })
}
