//! Level three, the destination: a migration from somewhere else to here.

use super::error::{brant_error, invalid, BRANT_E_CALLBACK, BRANT_E_INTERNAL, BRANT_E_INVALID};
use super::guest::brant_guest;
use super::ops::Ops;
use super::outgoing::limit;
use super::params::{brant_params, params};
use super::stats::brant_stats;
use super::structs::{check_room, handle, put, put_text, taken, text, write};
use crate::channel::Endpoint;
use crate::migrate::{AcceptFrom, Incoming};
use std::ffi::c_char;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// A migration from somewhere else to here, into a guest whose blocks match the source's by
/// name, length and page size. The guest runs only after the source handed it over, and in time:
/// the source says how long a hand-over counts, and a later one runs nothing
/// (BRANT_DESTINATION_FAILED).
///
/// It is started only where no guest runs in that memory and nothing else is in progress with it:
/// else BRANT_E_STATE or BRANT_E_BUSY. A guest that was handed over from here, or given up, is
/// overwritten by the one that arrives.
///
/// Who may connect is the VMM's decision (by the address, or the permissions of a socket's
/// directory): a listener takes the first connection on which a source speaks, and that is no
/// proof of who it is. Hand in a connected socket where that is not enough.
///
/// Threads: any, several at once. `brant_incoming_cancel` may be called by any number of threads,
/// also while others wait, whose waits it ends. `brant_incoming_free` is the last call: all others
/// on it have returned before it begins. Inside a callback of the same migration, waiting and
/// freeing are BRANT_E_CALLBACK, and cancelling only asks.
pub struct brant_incoming {
    incoming: Incoming,
}

/// Makes a migration into `guest`, whose operations must have `run`: else BRANT_E_INVALID. They
/// need `load` too if the source saves state, and `early_load` if it saves configuration.
/// `parameters` may be NULL for what ships.
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
/// that runs here runs on. 0, or BRANT_E_CALLBACK inside one of its own callbacks, where nothing
/// is freed. The last call on the migration, as brant_outgoing_free.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_free(incoming: *mut brant_incoming) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        match unsafe { incoming.as_ref() } {
            None => 0,
            Some(i) if i.incoming.in_callback() => BRANT_E_CALLBACK,
            Some(_) => {
                // SAFETY: from Box::into_raw above, not freed before, by contract.
                drop(unsafe { Box::from_raw(incoming) });
                0
            }
        }
    })
}

/// Listens on "tcp:ADDRESS:PORT" or "unix:/PATH", as for `brant_outgoing_start`, and returns at
/// once. Port 0 is any free one; `brant_incoming_get_endpoint` tells which. Waits for a source
/// without a limit.
///
/// Strangers end nothing and delay nothing. Several connections are looked at together; the
/// first one on which all of a source's first record comes is the migration's, and the others are
/// closed. So is a connection on which something else is said, or for as long as the connect
/// timeout nothing, and the oldest when there are more than 128. When the process has no
/// descriptor left for a connection, the connection waits until there is one, and a
/// BRANT_EVENT_WARNING says so.
///
/// The port, or the socket's file, is let go of when there is a source. To listen again after a
/// migration that failed: free this brant_incoming, make another one of the same guest, and
/// listen at what `brant_incoming_get_endpoint` says, which is free at once.
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
/// with the real port where 0 was asked for, and the address that an interface's name or a host's
/// name stood for. Copied to `buffer`, of `capacity` bytes, cut where it is longer, and with a NUL
/// at the end. The bytes that all of it takes, the NUL included, are in `needed`, which may be
/// NULL. `buffer` may be NULL where `capacity` is 0.
///
/// The same from the return of `brant_incoming_listen` until `brant_incoming_free`, also when
/// there is a source and when the migration is over: then nothing listens there any more.
/// BRANT_E_STATE before, and for a migration over a descriptor. Any thread, also inside callbacks.
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

/// Starts it over a connected stream socket (TCP, unix, vsock), which is brant's from here on,
/// whatever the call returns. BRANT_E_INVALID for any other descriptor, with what it is: then
/// nothing has begun.
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

/// Ends it before the guest is taken over. 0 proves that the guest never runs here, now or later: a
/// source without an answer may take it back. Returns within 100 ms unless a callback is in
/// progress. Inside one of its callbacks it only asks for that. After the hand-over was received:
/// BRANT_E_STATE. The memory is then half of a guest's: what comes in next has to be a whole one,
/// through a new brant_incoming.
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
/// ever; 0: not at all): 0, BRANT_E_PENDING if it is still going on, else why it failed.
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

/// Fills in the figures as they are now. Any thread, also inside callbacks.
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

/// As `brant_outgoing_event_fd`.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_event_fd(incoming: *const brant_incoming) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        match unsafe { incoming.as_ref() } {
            Some(i) => i.incoming.notify_fd().as_raw_fd(),
            None => BRANT_E_INVALID,
        }
    })
}
