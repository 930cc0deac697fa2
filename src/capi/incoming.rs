//! Level three, the destination: a migration from somewhere else to here.

use super::error::{brant_error, invalid, BRANT_E_INTERNAL};
use super::guest::brant_guest;
use super::ops::Ops;
use super::params::{brant_params, limit, params};
use super::stats::{brant_lane_stats, brant_stats};
use super::structs::{
    check_room, free, handle, lent_fd, put, put_text, taken, taken_all, text, write,
};
use crate::channel::Endpoint;
use crate::migrate::{AcceptFrom, Incoming};
use std::ffi::c_char;
use std::sync::Arc;

/// A migration from somewhere else to here, into a guest whose blocks match the source's by name,
/// length and page size. The guest runs only after the source has handed it over in time: the
/// source says how long a hand-over counts. After a later hand-over no guest runs here
/// (BRANT_DESTINATION_FAILED).
///
/// The start succeeds only when no guest runs in that memory and no other migration, save or
/// restore of the guest is in progress: else it is BRANT_E_STATE or BRANT_E_BUSY. A guest that was
/// handed over from here, or given up, is overwritten by the one that arrives.
///
/// Who may connect is the VMM's decision (by the address, or the permissions of a socket's
/// directory): a listener takes the first connection on which a source speaks, which does not prove
/// who the source is. When that is not enough, hand in connected sockets: brant_incoming_start_fd for
/// one channel, brant_incoming_start_fds for several.
///
/// Threads: any, several at once. `brant_incoming_cancel` may be called by any number of threads,
/// also while others wait, whose waits it ends. `brant_incoming_free` is the last call: all others
/// on it have returned before it begins. Inside a callback of the same migration, waiting and
/// freeing are BRANT_E_CALLBACK, and cancelling only asks.
pub struct brant_incoming {
    pub(super) incoming: Incoming,
}

/// Makes a migration into `guest`, whose operations must have `run`: else BRANT_E_INVALID. The
/// operations need `load` too if the source saves device state, and `early_load` if the source
/// saves early configuration. `parameters` may be NULL for the defaults.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_new(
    guest: *mut brant_guest,
    parameters: *const brant_params,
    incoming: *mut *mut brant_incoming,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest.ops.check_destination()?;
        // SAFETY: null or a structure by contract.
        let params = unsafe { params(parameters) }?;
        if incoming.is_null() {
            return Err(invalid("incoming is NULL"));
        }
        let made = Box::new(brant_incoming {
            incoming: Incoming::new(
                Arc::clone(&guest.memory),
                Arc::<Ops>::clone(&guest.ops),
                params,
            )?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(incoming, "incoming", Box::into_raw(made)) }
    })
}

/// Cancels a migration that is going on, waits for its end, and frees it; NULL is fine. A guest
/// that runs here runs on. Returns 0, or BRANT_E_CALLBACK inside one of the migration's own
/// callbacks, where nothing is freed. This is the last call on the migration, like
/// brant_outgoing_free.
///
/// Postcopy: while missing pages arrive, the call waits for all of them. An interrupted migration
/// gives them up, as brant_incoming_give_up: an access of one raises SIGBUS, so install a handler
/// first.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_free(incoming: *mut brant_incoming) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null, or from Box::into_raw above and not freed before, by contract.
        unsafe { free(incoming, |object| object.incoming.in_callback()) }
    })
}

/// Listens on "tcp:ADDRESS:PORT" or "unix:/PATH", as for `brant_outgoing_start`, and returns at
/// once. Port 0 is any free one; `brant_incoming_get_endpoint` tells which. Waits for a source
/// without a limit.
///
/// A connection from a stranger neither ends nor delays the migration. brant reads several
/// connections together. The first connection on which all of a source's first record arrives is
/// the migration's. When that source has several channels, its other connections are found by what
/// they say first, in any order, among those of strangers; they have the connect timeout, which
/// begins with the first one. All other connections are closed. brant also closes a connection on
/// which anything else arrives, a connection that is silent for the connect timeout, and the oldest
/// of more than 128 that do not belong to the source. When the process has no descriptor left for a
/// connection, the connection waits until there is one, and a BRANT_EVENT_WARNING says so.
///
/// brant frees the port, or removes the socket's file, when the source has all its connections. To
/// listen again after a migration that failed, free this brant_incoming, make another one of the same guest, and
/// listen at the endpoint of `brant_incoming_get_endpoint`, which is free at once.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_listen(
    incoming: *mut brant_incoming,
    endpoint: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        // SAFETY: null or a string by contract.
        let endpoint = Endpoint::parse(unsafe { text(endpoint, "endpoint") }?)?;
        incoming.incoming.listen(&endpoint)?;
        Ok(())
    })
}

/// The endpoint that the migration listens at, as text for the source's `brant_outgoing_start`:
/// with the real port when port 0 was given, and the address that an interface's name or a host's
/// name stood for. The text is copied to `buffer`, cut to `capacity` bytes and NUL-terminated.
/// `*needed` (may be NULL) gets the bytes that the whole text takes, with its NUL. `buffer` may be
/// NULL when `capacity` is 0.
///
/// The endpoint stays the same from the return of `brant_incoming_listen` until
/// `brant_incoming_free`. It stays so when there is a source and when the migration is over,
/// although brant no longer listens there. BRANT_E_STATE before `brant_incoming_listen`, and for a
/// migration over a descriptor. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_get_endpoint(
    incoming: *const brant_incoming,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        check_room(buffer, capacity)?;
        let endpoint = incoming.incoming.endpoint()?;
        // SAFETY: the caller's contract.
        unsafe { put_text(&endpoint.to_string(), buffer, capacity, needed) }
    })
}

/// Starts the migration over a connected stream socket (TCP, unix, vsock), from a source with one
/// channel. From this call on brant owns the socket and its blocking mode. When the call fails, brant
/// closes the socket, also on a migration that was started before (BRANT_E_STATE). BRANT_E_INVALID
/// for any other descriptor; the message says what the descriptor is. Nothing has begun then, and the
/// same migration can be started again.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_start_fd(
    incoming: *mut brant_incoming,
    fd: i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: handed over by contract.
        let fd = unsafe { taken(fd, "fd") }?;
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        incoming.incoming.start(AcceptFrom::Connected(fd))
    })
}

/// Starts the migration over connected stream sockets, one for each channel of the source: `fds` has
/// `count` of them, in any order: the first record on each one says which channel it is. The limit for
/// these records is the connect timeout. When it has run out, brant tells the source and waits up to
/// one second for it to read the reason, so the migration ends that much later. `count` is the number
/// of the source's channels, and may be less than `channels` of the parameters. (At the source the
/// two are equal.) With a source that allows postcopy it is one more. A source with another number of channels is refused.
///
/// From this call on brant owns the sockets and their blocking mode. When the call fails, brant closes
/// all of them, also on a migration that was started before (BRANT_E_STATE). The sockets stay the
/// VMM's only when the list itself is wrong: `fds` is NULL, `count` is 0 or above 64, or a number is
/// in the list twice. BRANT_E_INVALID for a wrong list, for more sockets than `channels` of the
/// parameters and one, for any other descriptor, for one socket under two numbers (dup), and for both ends of
/// one TCP connection. The message names the socket, for example `fds[2] (descriptor 17)`. Nothing
/// has begun then, and the same migration can be started again. Both ends of one unix pair are not
/// noticed here: such a migration fails when the connect timeout has run out. A later error names the
/// sockets on which nothing came, or something else than the source's first record. From then on
/// errors name the channel, for example "channel 2 (descriptor 17)".
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_start_fds(
    incoming: *mut brant_incoming,
    fds: *const i32,
    count: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: handed over by contract.
        let sockets = unsafe { taken_all(fds, count) }?;
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        incoming.incoming.start(AcceptFrom::ConnectedAll(sockets))
    })
}

/// Ends the migration before the hand-over is received. 0 proves that the guest never runs here,
/// now or later: the source of an unanswered migration may take the guest back. The call returns
/// within 100 ms, unless a callback is in progress. Inside one of the migration's own callbacks the
/// call only asks for the end. After the hand-over was received it is BRANT_E_STATE. A cancelled
/// migration leaves the memory of half a guest: the next guest has to come in whole, through a new
/// brant_incoming.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_cancel(
    incoming: *mut brant_incoming,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(incoming, "incoming") }?.incoming.cancel()
    })
}

/// Waits until the guest runs here, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
/// ever; 0: not at all). Returns 0 if the guest runs here, BRANT_E_PENDING if the migration is
/// still in progress, else the code that says why it failed.
///
/// Postcopy: the wait is over when all pages are here. Until then it is BRANT_E_PENDING, although the
/// guest runs, also in BRANT_DESTINATION_INTERRUPTED. In BRANT_DESTINATION_INCOMPLETE, where the guest
/// runs without pages that were given up, the code is that of the loss of the connections, as a rule
/// BRANT_E_PEER_GONE.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_wait(
    incoming: *mut brant_incoming,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        incoming.incoming.wait(limit(timeout_ms))
    })
}

/// Fills in the latest figures; brant_stats says when they stand still. Any thread, also inside
/// callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_get_stats(
    incoming: *const brant_incoming,
    stats: *mut brant_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let now = unsafe { handle(incoming, "incoming") }?.incoming.stats();
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// Fills in the latest figures of one channel, counted from 0; all zero before the source has it.
/// BRANT_E_INVALID for a channel that `channels` of the parameters does not allow. Any thread, also
/// inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_lane_stats(
    incoming: *const brant_incoming,
    channel: u32,
    stats: *mut brant_lane_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        let now = incoming.incoming.lane_stats(channel)?;
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// As `brant_outgoing_get_stats_json`.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_get_stats_json(
    incoming: *const brant_incoming,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let json = unsafe { handle(incoming, "incoming") }?
            .incoming
            .stats_json()?;
        // SAFETY: the caller's contract.
        unsafe { put_text(&json, buffer, capacity, needed) }
    })
}

/// As `brant_outgoing_get_line`.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_get_line(
    incoming: *const brant_incoming,
    buffer: *mut c_char,
    capacity: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let line = unsafe { handle(incoming, "incoming") }?.incoming.line();
        // SAFETY: the caller's contract.
        unsafe { put_text(&line, buffer, capacity, std::ptr::null_mut()) }
    })
}

/// As `brant_outgoing_event_fd`.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_event_fd(incoming: *const brant_incoming) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        unsafe { lent_fd(incoming, |object| object.incoming.notify_fd()) }
    })
}
