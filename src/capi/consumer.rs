//! Level two: who is told which pages were written, each with what is pending for it alone.

use super::error::{brant_error, invalid};
use super::reader::{brant_run, brant_sync, Reader};
use super::structs::{handle, put, sized, write};
use super::tracker::brant_tracker;

/// One more consumer of a tracker, beside the VMM itself: an incremental backup, a chain of
/// snapshots, a monitor. It has its own pending pages: all pages that were written since it was
/// made and that it has not taken. Neither another consumer nor a migration takes these pages from
/// it.
///
/// Example: a backup has copied memory and keeps a consumer. 100 pages are written and synced; a
/// migration of the guest begins, syncs, sends, and fails. The backup takes the 100 pages, and the
/// pages that the guest has written meanwhile.
///
/// From when it is made until it is freed a consumer costs memory for its pending pages: one bit
/// for each page of the guest. Parts of the bitmap without a set bit are never touched.
///
/// Threads: any, several at once. A call waits for a sync or take that is in progress on any
/// consumer of the tracker. `brant_consumer_free` is the last call: all others on it have returned
/// before it begins. The tracker may be freed before the consumer. A child made by `fork` has a
/// copy of the consumer: calls of the child end no use of runs in the parent.
pub struct brant_consumer {
    reader: Reader,
}

/// A consumer's running totals since it was made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_consumer_stats {
    /// sizeof(brant_consumer_stats).
    pub size: usize,
    /// Pages pending now.
    pub pending_pages: u64,
    /// Syncs since the consumer was made, by any consumer of the tracker.
    pub syncs: u64,
    /// Pages that became pending for the consumer by these syncs.
    pub found_pages: u64,
    /// Pages put back.
    pub put_back_pages: u64,
    /// Whether syncs still add pages to the consumer's pending: 1, or 0 after
    /// `brant_consumer_stop`.
    pub started: u64,
    /// The number of the consumer, for as long as the tracker lives. The VMM itself is 1.
    /// Migrations and measurements of the dirty rate get numbers too. Messages name a consumer by
    /// its number.
    pub number: u64,
}

sized!(brant_consumer_stats);

/// Makes a consumer of a tracker, and starts it at once. With BRANT_START_ALL every page of the
/// guest is pending for the consumer, with BRANT_START_CLEAN none. From then on every write is
/// found for it. The logs are switched on if nobody tracks yet, and off when the last consumer
/// ends. A start with BRANT_START_CLEAN beside other consumers harvests the logs for the others,
/// and restores the protection of the others' pending pages, one chunk after the other. Free the
/// consumer with `brant_consumer_free`.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_new(
    tracker: *mut brant_tracker,
    with: u32,
    consumer: *mut *mut brant_consumer,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        if consumer.is_null() {
            return Err(invalid("consumer is NULL"));
        }
        let reader = Reader::of(&tracker.tracker, false);
        reader.start(with)?;
        let made = Box::new(brant_consumer { reader });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(consumer, "consumer", Box::into_raw(made)) }
    })
}

/// Frees a consumer and its pending pages; NULL is fine. Other consumers keep theirs.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_free(consumer: *mut brant_consumer) {
    boundary!(or(), {
        if !consumer.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(consumer) });
        }
    })
}

/// Stops the consumer, after a last harvest: later writes are not found for it. Its pending pages
/// stay so and can be taken. The logs are switched off if nobody else tracks. A stopped consumer
/// cannot be started again: make another.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_stop(
    consumer: *mut brant_consumer,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(consumer, "consumer") }?.reader.stop()
    })
}

/// `brant_tracker_sync`, reported for this consumer.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_sync(
    consumer: *mut brant_consumer,
    when: u32,
    report: *mut brant_sync,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let reader = &unsafe { handle(consumer, "consumer") }?.reader;
        // SAFETY: null or a structure by contract.
        unsafe { reader.sync(when, report) }
    })
}

/// `brant_tracker_take` of this consumer's pending pages. The runs are in use until its next take,
/// until `brant_consumer_stop` or until `brant_consumer_free`.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_take(
    consumer: *mut brant_consumer,
    runs: *mut brant_run,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let reader = &unsafe { handle(consumer, "consumer") }?.reader;
        // SAFETY: room for `capacity` runs and a place for their number by contract.
        unsafe { reader.take(runs, capacity, count) }
    })
}

/// `brant_tracker_put_back` into this consumer's pending pages.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_put_back(
    consumer: *mut brant_consumer,
    block: u32,
    first_page: u64,
    pages: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let reader = &unsafe { handle(consumer, "consumer") }?.reader;
        reader.put_back(block, first_page, pages)
    })
}

/// Fills in the consumer's totals.
#[no_mangle]
pub unsafe extern "C" fn brant_consumer_get_stats(
    consumer: *const brant_consumer,
    stats: *mut brant_consumer_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let consumer = unsafe { handle(consumer, "consumer") }?.reader.consumer();
        let now = consumer.stats();
        let filled = brant_consumer_stats {
            size: 0,
            pending_pages: consumer.pending().0,
            syncs: now.syncs,
            found_pages: now.found.0,
            put_back_pages: now.put_back.0,
            started: u64::from(consumer.is_started()),
            number: consumer.number(),
        };
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &filled) }
    })
}
