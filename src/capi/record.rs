//! A migration recorded as JSON lines.

use super::error::brant_error;
use super::incoming::brant_incoming;
use super::outgoing::brant_outgoing;
use super::structs::{duplicated, handle, sized, text, write};
use crate::error::Result;
use crate::migrate::{RecordParams, Recorded};
use std::ffi::c_char;
use std::time::Duration;

/// The version of the lines of `brant_outgoing_record`, which their first line has. A line that means
/// something else gets another version; new fields and kinds of lines do not.
pub const BRANT_RECORD_VERSION: u32 = 1;

/// What became of a recording.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_recorded {
    /// sizeof(brant_recorded).
    pub size: usize,
    /// Lines that were written.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lines that were dropped, because the descriptor took nothing for too long.
    pub dropped: u64,
}

sized!(brant_recorded);

/// # Safety
/// Null or a string.
unsafe fn record_params(interval_ms: u64, what: *const c_char) -> Result<RecordParams> {
    let mut params = RecordParams::default();
    if interval_ms != 0 {
        params.interval = Duration::from_millis(interval_ms);
    }
    if !what.is_null() {
        // SAFETY: the caller's contract.
        params.what = unsafe { text(what, "what") }?.to_owned();
    }
    Ok(params)
}

/// # Safety
/// Null or a structure as its size says.
unsafe fn ended(done: Recorded, recorded: *mut brant_recorded) -> Result<()> {
    let found = brant_recorded {
        size: size_of::<brant_recorded>(),
        lines: done.lines,
        bytes: done.bytes,
        dropped: done.dropped,
    };
    if !recorded.is_null() {
        // SAFETY: the caller's contract.
        unsafe { write(recorded, &found) }?;
    }
    done.error.map_or(Ok(()), Err)
}

/// Records the migration as JSON lines on `fd`: a file, a pipe, a socket, whatever is open for writing.
/// `python -m brant plot` and `timeline` show such a file. Call it before the start or at any time after
/// it; what happened before is not in the lines, but for the figures. One recording at a time:
/// BRANT_E_EXISTS.
///
/// `fd` stays the VMM's: brant duplicates it, and the VMM may close its own when the call has returned. The
/// duplicate is closed when the recording ends, so that a reader of a pipe finds the end; its blocking mode
/// is not changed. `interval_ms` is the time between two looks at the figures, 10 to 3600000, or 0 for 50;
/// figures that have not changed are not written again. `what` is a text of at most 1024 bytes for the
/// first line, or NULL. BRANT_E_INVALID for a descriptor that is not open for writing, an interval out of
/// range and a longer text.
///
/// A thread of brant's (BRANT_ROLE_RECORD) writes. It never holds up the migration: while nobody reads a
/// pipe, up to 256 KiB of lines wait, and further ones are dropped and counted. A descriptor that fails, for
/// example a pipe whose reader is gone, ends the recording and nothing else; SIGPIPE is not raised in any
/// thread of the VMM's. The recording ends with the migration, by `brant_outgoing_end_record`, or with
/// `brant_outgoing_free`. A terminal, and a pipe that others write to as well, can hold up brant's thread,
/// and with it these two calls: give the recording a pipe of its own.
///
/// Each line is one object. `time_ns` counts from the call, and `kind` says what it is:
///
/// - "begin", the first line: `version` (BRANT_RECORD_VERSION), `library`, `what`, `interval_ns`;
/// - "stats": the figures of `brant_outgoing_get_stats_json`, among them `state`, `throughput`,
///   `dirty_pages_per_second`, `remaining_bytes`, `throttle`, `expected_downtime_ns`, and each part of the
///   downtime, promised and measured; `lanes`, a list of the channels' figures by the names of
///   brant_lane_stats; and `dropped`, how many lines were dropped so far;
/// - "event": `event`, the kind in lower case as in BRANT_EVENT_*, and `message`;
/// - "end", the last line of a migration that is over: `error`, 0 or a BRANT_E_* code, `message`, `dropped`.
///
/// A reader ignores fields and kinds that it does not know. Any thread, also inside callbacks.
///
/// Experimental: fields may be added.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_record(
    outgoing: *mut brant_outgoing,
    fd: i32,
    interval_ms: u64,
    what: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        // SAFETY: null or a string by contract.
        let params = unsafe { record_params(interval_ms, what) }?;
        // SAFETY: lent by contract.
        outgoing
            .outgoing
            .record(unsafe { duplicated(fd, "fd") }?, params)
    })
}

/// Ends the recording when all that happened is written, and closes the duplicate of its descriptor. While
/// nobody reads a pipe, the call waits a second for it, and then drops the rest. `recorded` (may be NULL)
/// gets what became of the recording, also when it failed. Returns 0 for a recording that has ended with its
/// migration or by this call, else why it ended before: BRANT_E_IO when nobody reads any more, or the code
/// of a write that failed. BRANT_E_STATE when nothing is recorded, BRANT_E_CALLBACK inside one of the
/// migration's own callbacks. Any thread; one call ends one recording.
///
/// Experimental: as `brant_outgoing_record`.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_end_record(
    outgoing: *mut brant_outgoing,
    recorded: *mut brant_recorded,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // A wrong size ends nothing, and where nothing was recorded the figures are 0.
        // SAFETY: null or a structure by contract.
        unsafe { ended(Recorded::default(), recorded) }?;
        // SAFETY: null or ours by contract.
        let done = unsafe { handle(outgoing, "outgoing") }?
            .outgoing
            .end_record()?;
        // SAFETY: null or a structure by contract.
        unsafe { ended(done, recorded) }
    })
}

/// As `brant_outgoing_record`, with the figures of the destination.
///
/// Experimental: as `brant_outgoing_record`.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_record(
    incoming: *mut brant_incoming,
    fd: i32,
    interval_ms: u64,
    what: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        // SAFETY: null or a string by contract.
        let params = unsafe { record_params(interval_ms, what) }?;
        // SAFETY: lent by contract.
        incoming
            .incoming
            .record(unsafe { duplicated(fd, "fd") }?, params)
    })
}

/// As `brant_outgoing_end_record`.
///
/// Experimental: as `brant_outgoing_record`.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_end_record(
    incoming: *mut brant_incoming,
    recorded: *mut brant_recorded,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // A wrong size ends nothing, and where nothing was recorded the figures are 0.
        // SAFETY: null or a structure by contract.
        unsafe { ended(Recorded::default(), recorded) }?;
        // SAFETY: null or ours by contract.
        let done = unsafe { handle(incoming, "incoming") }?
            .incoming
            .end_record()?;
        // SAFETY: null or a structure by contract.
        unsafe { ended(done, recorded) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_of_the_lines() {
        assert_eq!(BRANT_RECORD_VERSION, crate::migrate::RECORD_VERSION);
    }
}
