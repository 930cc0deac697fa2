//! Static probes (USDT) at what an operator asks about: states, operations, passes, syncs, lanes,
//! parts of the downtime, faults. `docs/tracing.md` has the list, with a line of bpftrace for each.
//!
//! A probe is one `nop` and a note in the library's `.note.stapsdt`. While nobody is attached, it
//! costs that `nop` and its arguments, which are numbers that the caller has anyway. Each is a
//! function here, so that the list is in one place; without the feature `probes` they do nothing.
//!
//! A name is passed as an address and a length: it has no NUL.

use std::time::Duration;

/// A probe of the provider `brant`, with at most 6 numbers as arguments.
macro_rules! probe {
    ($name:ident $(, $argument:expr)*) => {{
        #[cfg(feature = "probes")]
        ::probe::probe!(brant, $name $(, $argument)*);
        #[cfg(not(feature = "probes"))]
        let _ = ($($argument,)*);
    }};
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A migration enters a state.
pub(crate) fn state(number: u32, name: &str) {
    probe!(state, number, name.as_ptr(), name.len());
}

/// An operation of the VMM's is called.
pub(crate) fn operation_begin(name: &str) {
    probe!(operation_begin, name.as_ptr(), name.len());
}

/// An operation of the VMM's has returned.
pub(crate) fn operation_end(name: &str, failed: bool) {
    probe!(operation_end, name.as_ptr(), name.len(), failed);
}

/// A pass begins.
pub(crate) fn pass_begin(pass: u32) {
    probe!(pass_begin, pass);
}

/// A pass and the sync behind it have ended.
pub(crate) fn pass_end(pass: u32, found: u64, to_send: u64) {
    probe!(pass_end, pass, found, to_send);
}

/// A sync of all logs begins.
pub(crate) fn sync_begin(stopped: bool) {
    probe!(sync_begin, stopped);
}

/// A sync has ended.
pub(crate) fn sync_end(stopped: bool, found: u64, pending: u64, took: Duration) {
    probe!(sync_end, stopped, found, pending, nanoseconds(took));
}

/// One log's part of a sync has ended.
pub(crate) fn log_end(name: &str, found: u64, took: Duration) {
    probe!(log_end, name.as_ptr(), name.len(), found, nanoseconds(took));
}

/// A lane of a source has sent a batch.
pub(crate) fn lane_sent(lane: &str, data_pages: u64, zero_pages: u64, bytes: u64) {
    probe!(
        lane_sent,
        lane.as_ptr(),
        lane.len(),
        data_pages,
        zero_pages,
        bytes
    );
}

/// The destination has acknowledged a lane's marker.
pub(crate) fn lane_acknowledged(lane: &str, marker: u64, unacknowledged: u64) {
    probe!(
        lane_acknowledged,
        lane.as_ptr(),
        lane.len(),
        marker,
        unacknowledged
    );
}

/// A marker has come to a lane of a destination: all before it is in memory.
pub(crate) fn lane_arrived(lane: &str, marker: u64, data_pages: u64, zero_pages: u64) {
    probe!(
        lane_arrived,
        lane.as_ptr(),
        lane.len(),
        marker,
        data_pages,
        zero_pages
    );
}

/// One part of a downtime that has ended.
pub(crate) fn downtime_part(name: &str, took: Duration) {
    probe!(downtime_part, name.as_ptr(), name.len(), nanoseconds(took));
}

/// A thread waits for a page that is not here.
pub(crate) fn fault_begin(thread: u32, block: usize, page: u64) {
    probe!(fault_begin, thread, block, page);
}

/// A page that a thread waited for is here.
pub(crate) fn fault_end(thread: u32, block: usize, page: u64, waited: Duration) {
    probe!(fault_end, thread, block, page, nanoseconds(waited));
}
