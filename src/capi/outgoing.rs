//! Level three, the source: a migration from here to somewhere else.

use super::error::{brant_error, invalid, BRANT_E_INTERNAL};
use super::forecast::brant_forecast;
use super::ops::Ops;
use super::params::{brant_params, limit, params};
use super::stats::{brant_lane_stats, brant_stats};
use super::structs::{free, handle, lent_fd, put, put_text, taken, taken_all, text, write};
use super::tracker::brant_tracker;
use crate::channel::Endpoint;
use crate::error::{Error, Kind};
use crate::migrate::{ConnectTo, Outgoing, Resolution};
use std::ffi::c_char;
use std::sync::Arc;

/// A migration from here to another process or host. One object is one migration; make a new object
/// for another migration, which starts from all pages. The start succeeds only when the guest is
/// here and no other migration of the guest is in progress, in either direction and through any
/// tracker. Else the start is BRANT_E_STATE (the guest was handed over, was given up or is
/// unanswered) or BRANT_E_BUSY.
///
/// Threads: any, several at once. `brant_outgoing_cancel` may be called by any number of threads,
/// also while others wait, whose waits it ends. `brant_outgoing_free` is the last call: all others
/// on it have returned before it begins. Inside a callback of the same migration, waiting and
/// freeing are BRANT_E_CALLBACK, and cancelling only asks.
pub struct brant_outgoing {
    pub(super) outgoing: Outgoing,
}

/// Makes a migration of the guest that `tracker` was made from. The operations of that guest must
/// have `pause` and `resume`: else BRANT_E_INVALID. `parameters` may be NULL for the defaults.
/// Nothing happens before the migration is started.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_new(
    tracker: *mut brant_tracker,
    parameters: *const brant_params,
    outgoing: *mut *mut brant_outgoing,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        tracker.ops.check_source()?;
        // SAFETY: null or a structure by contract.
        let params = unsafe { params(parameters) }?;
        if outgoing.is_null() {
            return Err(invalid("outgoing is NULL"));
        }
        let made = Box::new(brant_outgoing {
            outgoing: Outgoing::new(
                Arc::clone(&tracker.tracker),
                tracker.blockers.clone(),
                Arc::<Ops>::clone(&tracker.ops),
                params,
            )?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(outgoing, "outgoing", Box::into_raw(made)) }
    })
}

/// Cancels a migration that is in progress, waits for its end, and frees it; NULL is fine. After
/// the hand-over the call does not cancel: it waits for the answer, for at most the hand-over
/// timeout and one second, and ends a comparison of memory (BRANT_SOURCE_VERIFYING). When the migration
/// is unanswered and not resolved, the guest then counts as handed over (`brant_guest_reclaim`). An
/// interrupted postcopy is given up: when the destination has said that the guest runs there, as by
/// brant_outgoing_resolve with BRANT_RESOLVE_DESTROY, otherwise as an unanswered migration. A postcopy
/// whose pages are on their way (BRANT_SOURCE_SERVING) is waited for. Returns 0, or BRANT_E_CALLBACK inside one of the
/// migration's own callbacks, where nothing is freed.
///
/// This is the last call on the migration. When other threads wait for it, call
/// brant_outgoing_cancel, join those threads, then free.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_free(outgoing: *mut brant_outgoing) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null, or from Box::into_raw above and not freed before, by contract.
        unsafe { free(outgoing, |object| object.outgoing.in_callback()) }
    })
}

/// Starts the migration to "tcp:ADDRESS:PORT" (a numeric IPv4 address, an IPv6 address in brackets,
/// or localhost) or "unix:/PATH", and returns at once. brant makes a connection for each of the
/// `channels` of the parameters, and with `postcopy` one more. `brant_outgoing_wait`, the events and the
/// figures tell how it goes and how it ends.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_start(
    outgoing: *mut brant_outgoing,
    endpoint: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        // SAFETY: null or a string by contract.
        let endpoint = Endpoint::parse(unsafe { text(endpoint, "endpoint") }?)?;
        outgoing.outgoing.start(ConnectTo::Endpoint(endpoint))
    })
}

/// Starts the migration over a connected stream socket (TCP, unix, vsock), which is its one channel.
/// From this call on brant owns the socket and its blocking mode. When the call fails, brant closes
/// the socket, also on a migration that was started before (BRANT_E_STATE).
///
/// BRANT_E_INVALID for any other descriptor (the message says what the descriptor is), and when
/// `channels` of the parameters is more than 1 or `postcopy` is on. Nothing has begun then, and the same migration can be
/// started again.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_start_fd(
    outgoing: *mut brant_outgoing,
    fd: i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: handed over by contract.
        let fd = unsafe { taken(fd, "fd") }?;
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        outgoing.outgoing.start(ConnectTo::Connected(fd))
    })
}

/// Starts the migration over connected stream sockets, one for each channel: `fds` has `count` of
/// them, channel 0 first, and `count` is `channels` of the parameters; with `postcopy` there is one more
/// socket, the last one. From this call on brant owns
/// the sockets and their blocking mode. When the call fails, brant closes all of them, also on a
/// migration that was started before (BRANT_E_STATE). The sockets stay the VMM's only when the list
/// itself is wrong: `fds` is NULL, `count` is 0 or above 64, or a number is in the list twice.
///
/// BRANT_E_INVALID for a wrong list, for another number of sockets (the message says how many are
/// expected), for any other descriptor, for one socket under two numbers (dup), and for both ends of
/// one TCP connection. The message names the socket, for example `fds[2] (descriptor 17)`. Nothing
/// has begun then, and the same migration can be started again. Both ends of one unix pair are not
/// noticed here: such a migration fails when the connect timeout has run out. When a channel fails
/// later, the error names it, for example "channel 2 (descriptor 17)".
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_start_fds(
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
        outgoing.outgoing.start(ConnectTo::ConnectedAll(sockets))
    })
}

/// Changes the cap on the bandwidth (`brant_params.max_bandwidth`) of a migration, started or not:
/// at once, for all channels together. 0 is no cap. BRANT_E_INVALID for a cap out of range, which
/// changes nothing. From the pause on, and after the end, the call returns 0 and has no effect: the
/// switchover has a cap of its own (`brant_params.switchover_max_bandwidth`). Any thread, also
/// inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_set_max_bandwidth(
    outgoing: *mut brant_outgoing,
    bytes_per_second: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        let cap = (bytes_per_second != 0).then_some(bytes_per_second);
        // SAFETY: null or ours by contract.
        unsafe { handle(outgoing, "outgoing") }?
            .outgoing
            .set_max_bandwidth(cap)
    })
}

/// Ends the migration at any moment before the hand-over, and returns when the guest runs on:
/// within 100 ms, unless a callback or a kernel call is in progress. Inside one of the migration's
/// own callbacks the call only asks for the end. On a migration that has ended the call does
/// nothing. After the hand-over it is BRANT_E_STATE, with one exception: while memory is compared
/// (BRANT_SOURCE_VERIFYING) the call ends the comparison. The migration has succeeded then, and
/// brant_outgoing_wait returns 0; pages that were not compared count in `unverified_pages`.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_cancel(
    outgoing: *mut brant_outgoing,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(outgoing, "outgoing") }?.outgoing.cancel()
    })
}

/// Waits until the migration is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
/// ever; 0: not at all). Returns 0 if the guest runs at the destination, BRANT_E_PENDING if the
/// migration is still in progress, else the code that says why it failed. After a failure other
/// than BRANT_E_UNANSWERED the guest runs on here as if nothing had been. (If `resume` itself
/// failed, the guest stands paused: BRANT_SOURCE_RESUME_FAILED.)
///
/// After BRANT_E_UNANSWERED the guest is paused and the VMM has to resolve the migration: ask the
/// destination's VMM whether its `run` was called. By then `run` was called or never will be. This
/// holds also when the destination said that it ended (the hand-over came too late, `run` failed,
/// the migration was cancelled): brant does not take a guest back by itself once the guest was
/// handed over, and the message holds the destination's words. A migration that was handed over
/// ends with 0 or BRANT_E_UNANSWERED and nothing else. The last event and the figures agree.
///
/// An interrupted postcopy (BRANT_SOURCE_INTERRUPTED) is in progress: the wait goes on until the session
/// is recovered and ends, or is given up. A session that was given up with brant_outgoing_resolve is
/// BRANT_E_UNANSWERED in the state BRANT_SOURCE_GIVEN_UP, because every other code says that the guest
/// runs on here. It is resolved, and the message says that the guest runs at the destination and how
/// many pages did not go.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_wait(
    outgoing: *mut brant_outgoing,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        outgoing.outgoing.wait(limit(timeout_ms))
    })
}

/// The VMM knows that the destination does not run the guest: the guest runs on here.
pub const BRANT_RESOLVE_RESUME: u32 = 1;
/// The VMM knows that the destination runs the guest, or nobody shall run it: the guest never runs
/// here again.
pub const BRANT_RESOLVE_DESTROY: u32 = 2;

/// Resolves an unanswered migration, once: the VMM decides who has the guest. With
/// BRANT_RESOLVE_RESUME `resume` is called on this thread; if `resume` fails, the migration can be
/// resolved again. When the migration is not unanswered: BRANT_E_STATE. Until the migration is
/// resolved, no migration, save or restore of the guest can start. Decide by what the destination's
/// VMM says of its brant_incoming:
///
/// - its `run` was called, or BRANT_DESTINATION_RUNNING: BRANT_RESOLVE_DESTROY;
/// - BRANT_DESTINATION_FAILED or _START_FAILED, `brant_incoming_cancel` returned 0, or the
///   destination's process is gone and cannot have a running guest: BRANT_RESOLVE_RESUME.
///
/// BRANT_RESOLVE_RESUME is BRANT_E_STATE when memory was handed over by descriptor, unless the
/// destination has said that it never ran the guest: both sides have that memory in common.
///
/// An interrupted postcopy (BRANT_SOURCE_INTERRUPTED) is given up by BRANT_RESOLVE_DESTROY, for good: the
/// pages that did not go are lost to the guest. When the destination has said that the guest runs there,
/// BRANT_RESOLVE_RESUME is BRANT_E_STATE, because the memory here is that of the switch. When it has not,
/// the call works as for an unanswered migration.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_resolve(
    outgoing: *mut brant_outgoing,
    resolution: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        let resolution = match resolution {
            BRANT_RESOLVE_RESUME => Resolution::Resume,
            BRANT_RESOLVE_DESTROY => Resolution::Destroy,
            other => {
                return Err(invalid(format!(
                    "it is resolved with BRANT_RESOLVE_RESUME (1) or BRANT_RESOLVE_DESTROY (2), \
                     not {other}"
                )))
            }
        };
        outgoing.outgoing.resolve(resolution)
    })
}

/// Fills in the latest figures; brant_stats says when they stand still. Any thread, also inside
/// callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_get_stats(
    outgoing: *const brant_outgoing,
    stats: *mut brant_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let now = unsafe { handle(outgoing, "outgoing") }?.outgoing.stats();
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// Fills in the latest figures of one channel, counted from 0 (brant_lane_stats says when they stand
/// still); all zero before there is a connection. BRANT_E_INVALID for a channel that the parameters
/// do not have. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_lane_stats(
    outgoing: *const brant_outgoing,
    channel: u32,
    stats: *mut brant_lane_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        let now = outgoing.outgoing.lane_stats(channel)?;
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// Fills in the forecast of this moment; it is fresh also while the link stalls. BRANT_E_PENDING until
/// the bandwidth is measured or stated and the first pass has begun. The forecast counts with brant's
/// own decider, the limits and the policy in use. From the pause on it stays as it was; of a
/// completed migration it has the true figures. While there is none, the fields are 0. The call takes
/// this thread some microseconds, or some milliseconds when the migration does not converge. Any
/// thread, also inside callbacks.
///
/// Experimental: what is forecast, and from which figures, may change.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_get_forecast(
    outgoing: *const brant_outgoing,
    forecast: *mut brant_forecast,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        // SAFETY: null or a structure by contract.
        unsafe { write(forecast, &brant_forecast::nothing()) }?;
        let Some(found) = outgoing.outgoing.forecast() else {
            return Err(Error::new(
                Kind::Pending,
                "there is no forecast before the first pass and before the bandwidth is known",
            ));
        };
        // SAFETY: a structure by contract.
        unsafe { write(forecast, &(&found).into()) }
    })
}

/// Room for every text of `brant_outgoing_get_stats_json` and `brant_incoming_get_stats_json` of the
/// library with this header, the NUL included. A later library may have more figures: `needed` tells.
pub const BRANT_STATS_JSON_SIZE: u32 = 8192;

/// Room for every text of `brant_outgoing_get_line` and `brant_incoming_get_line`, the NUL included.
pub const BRANT_LINE_SIZE: u32 = 256;

/// The figures of brant_stats as one JSON object, by the same names. An unknown figure is null, and
/// "state" is the name of the state. "forecast" is an object with the fields of brant_forecast, or
/// null as long as there is none. The text in `buffer` is NUL-terminated and cut to `capacity`
/// bytes, of which BRANT_STATS_JSON_SIZE are enough; `*needed` (may be NULL) gets the bytes that the
/// whole text takes.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_get_stats_json(
    outgoing: *const brant_outgoing,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let json = unsafe { handle(outgoing, "outgoing") }?
            .outgoing
            .stats_json()?;
        // SAFETY: the caller's contract.
        unsafe { put_text(&json, buffer, capacity, needed) }
    })
}

/// The figures as one line for a person, such as "copying, pass 3, 87.1 %, 1.2 GB/s, guest writes 310
/// MB/s, 2.1 GB to send, downtime would be 120 ms of 300 ms, about 12 s left", or "completed, 100.0 %,
/// 988 kB in 90 s, downtime 45 ms of 300 ms allowed". What is unknown is left out. The words may change
/// in any version; figures for programs are in `brant_outgoing_get_stats`. The text in `buffer` is
/// NUL-terminated and cut to `capacity` bytes; BRANT_LINE_SIZE is always enough.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_get_line(
    outgoing: *const brant_outgoing,
    buffer: *mut c_char,
    capacity: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let line = unsafe { handle(outgoing, "outgoing") }?.outgoing.line();
        // SAFETY: the caller's contract.
        unsafe { put_text(&line, buffer, capacity, std::ptr::null_mut()) }
    })
}

/// An eventfd that becomes readable when the figures have changed, for poll; reading it resets it.
/// The descriptor stays the migration's: do not close it. A negative code if `outgoing` is NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_event_fd(outgoing: *const brant_outgoing) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        unsafe { lent_fd(outgoing, |object| object.outgoing.notify_fd()) }
    })
}
