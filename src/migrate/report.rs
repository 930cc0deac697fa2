//! What a user sees of a migration: one structure of figures, the same as JSON.
//!
//! Filled by the drivers; the arithmetic (progress, time left) is pure and here.

use crate::error::{Error, Kind, Result};
use crate::units::PAGE_SIZE;
use serde::Serialize;
use std::time::Duration;

/// The number of the state that a side is in: [`super::switchover::source::State`] or
/// [`super::switchover::destination::State`].
pub type Phase = u32;

/// In a field of time or rate: not known yet.
pub const UNKNOWN: u64 = u64::MAX;

/// The figures of a migration, at either side. Times are microseconds, sizes bytes, pages
/// 4 KiB. What says how it is now may fall: `total_bytes`, `remaining_bytes`,
/// `unacknowledged_pages`, `throughput`, `bandwidth`, `dirty_pages_per_second`, `time_left_us`,
/// `expected_downtime_us` and `sync_us`. All others only grow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// Number of the state.
    pub phase: Phase,
    /// The pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// 0, or why it failed: a [`crate::error::Kind`].
    pub error: i32,
    /// Hundredths of a percent, 0 to 10000. 10000 only when it has completed.
    pub progress: u32,
    /// The guest's memory.
    pub total_bytes: u64,
    /// Source: pending now.
    pub remaining_bytes: u64,
    /// Bytes that went over the connection, headers included.
    pub wire_bytes: u64,
    /// Pages sent (received) with their contents; a page sent twice counts twice.
    pub data_pages: u64,
    /// Pages sent (received) as zero, without contents: holes, given-back and free pages included.
    pub zero_pages: u64,
    /// Of those, pages that were never touched and so never read. Source only.
    pub hole_pages: u64,
    /// Pages sent that the destination has not acknowledged. Source only.
    pub unacknowledged_pages: u64,
    /// Since the start.
    pub elapsed_us: u64,
    /// Bytes a second over the last second or so, everything included.
    pub throughput: u64,
    /// Bytes a second that the link carries, as measured while sending; [`UNKNOWN`] at first.
    pub bandwidth: u64,
    /// Pages a second that the guest wrote, as syncs found them when everything before had been
    /// sent; a page that was written many times between two syncs counts once. [`UNKNOWN`]
    /// before the first such sync, so all through the first pass.
    pub dirty_pages_per_second: u64,
    /// Until the rest fits the downtime limit, at these rates; [`UNKNOWN`] while one of them is
    /// unknown, and when the link is not clearly faster than the guest.
    pub time_left_us: u64,
    /// The downtime if the switchover came now; [`UNKNOWN`] at first.
    pub expected_downtime_us: u64,
    /// What was expected when the guest was paused, kept to be compared. 0 before.
    pub promised_downtime_us: u64,
    /// How long the guest stood still: from the call of `pause` to the destination's word that
    /// it runs or, where it did not come to that, to the return of `resume`. 0 before. Of a guest
    /// that still stands (unanswered, or not resumed): until that was known.
    pub downtime_us: u64,
    /// Of the downtime: the VMM's `pause`.
    pub pause_us: u64,
    /// Of the downtime: the VMM's `save`.
    pub save_us: u64,
    /// Of the downtime: the last harvest of all logs.
    pub last_sync_us: u64,
    /// Of the downtime: sending the last pages and the state.
    pub last_send_us: u64,
    /// Of the downtime: waiting for the destination to receive and load.
    pub ready_us: u64,
    /// Of the downtime: the VMM's `release`.
    pub release_us: u64,
    /// Of the downtime: the hand-over and the destination's `run`.
    pub handover_us: u64,
    /// Destination: the VMM's `load` (told to the source).
    pub load_us: u64,
    /// Destination: the VMM's `run` (told to the source).
    pub run_us: u64,
    /// Pages sent while the guest was paused.
    pub last_pages: u64,
    /// Bytes of device state.
    pub state_bytes: u64,
    /// Syncs made.
    pub syncs: u64,
    /// The last sync that was made with the guest running.
    pub sync_us: u64,
    /// Pages that syncs found.
    pub found_pages: u64,
    /// Calls that cleared chunks.
    pub clear_calls: u64,
    /// The longest restoring of one chunk.
    pub longest_clear_us: u64,
    /// Pages put back into the tracker after a failure.
    pub put_back_pages: u64,
    /// Of the zero pages, those that the guest has given back, neither read nor sent (received as
    /// such); one that is told again counts again.
    pub skipped_pages: u64,
    /// Pages that free-page hints took out of what was to be sent. Source only.
    pub hinted_pages: u64,
    /// Of the zero pages, those whose contents the VMM has declared lost, neither read nor sent; one
    /// that is told again counts again. Source only.
    pub poisoned_pages: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            phase: 0,
            pass: 0,
            error: 0,
            progress: 0,
            total_bytes: 0,
            remaining_bytes: 0,
            wire_bytes: 0,
            data_pages: 0,
            zero_pages: 0,
            hole_pages: 0,
            unacknowledged_pages: 0,
            elapsed_us: 0,
            throughput: 0,
            bandwidth: UNKNOWN,
            dirty_pages_per_second: UNKNOWN,
            time_left_us: UNKNOWN,
            expected_downtime_us: UNKNOWN,
            promised_downtime_us: 0,
            downtime_us: 0,
            pause_us: 0,
            save_us: 0,
            last_sync_us: 0,
            last_send_us: 0,
            ready_us: 0,
            release_us: 0,
            handover_us: 0,
            load_us: 0,
            run_us: 0,
            last_pages: 0,
            state_bytes: 0,
            syncs: 0,
            sync_us: 0,
            found_pages: 0,
            clear_calls: 0,
            longest_clear_us: 0,
            put_back_pages: 0,
            skipped_pages: 0,
            hinted_pages: 0,
            poisoned_pages: 0,
        }
    }
}

impl Stats {
    /// As one JSON object with a field for each of the structure's, by the same names;
    /// unknown figures are `null`.
    pub fn to_json(&self, phase: &str) -> Result<String> {
        let failed = |e: serde_json::Error| Error::new(Kind::Internal, format!("JSON: {e}"));
        let mut value = serde_json::to_value(self).map_err(failed)?;
        if let Some(fields) = value.as_object_mut() {
            for field in fields.values_mut() {
                if field.as_u64() == Some(UNKNOWN) {
                    *field = serde_json::Value::Null;
                }
            }
            fields.insert("state".into(), phase.into());
        }
        serde_json::to_string(&value).map_err(failed)
    }

    /// Moves the progress on, never back: pages that are done, of those and what remains.
    pub(super) fn advance(&mut self) {
        let done = self.data_pages + self.zero_pages;
        let left = self.remaining_bytes / PAGE_SIZE;
        if done + left == 0 {
            return;
        }
        // 99.99 % is as far as it goes before the guest runs at the other side.
        let now = (u128::from(done) * 10_000 / u128::from(done + left)).min(9_999) as u32;
        self.progress = self.progress.max(now);
    }

    /// How long until the rest fits: what remains shrinks by the link's rate less the
    /// guest's. [`UNKNOWN`] when it does not shrink, and as long as either rate is unknown.
    ///
    /// Both are measured, and vary by a tenth or more from one pass to the next. When they are
    /// closer than a fifth, their difference is chance, and a time that follows from it is none.
    pub(super) fn predict(&mut self, downtime_limit: Duration) {
        self.time_left_us = UNKNOWN;
        if self.bandwidth == UNKNOWN || self.dirty_pages_per_second == UNKNOWN {
            return;
        }
        let link = self.bandwidth as f64;
        let dirty = self.dirty_pages_per_second as f64 * PAGE_SIZE as f64;
        let fits = link * downtime_limit.as_secs_f64();
        let excess = self.remaining_bytes as f64 - fits;
        if excess <= 0.0 {
            self.time_left_us = 0;
        } else if dirty < link * 0.8 {
            self.time_left_us = (excess / (link - dirty) * 1e6) as u64;
        }
    }
}

/// Whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(UNKNOWN - 1)
}

/// Bytes a second over about the last second.
#[derive(Debug, Default)]
pub(super) struct Meter {
    at: Duration,
    bytes: u64,
    rate: u64,
}

impl Meter {
    /// `bytes` in all have gone at `now`; the rate, renewed every half second.
    pub(super) fn rate(&mut self, now: Duration, bytes: u64) -> u64 {
        let passed = now.saturating_sub(self.at);
        let first = self.at.is_zero() && !passed.is_zero();
        if passed >= Duration::from_millis(500) || first {
            self.rate = (bytes.saturating_sub(self.bytes) as f64 / passed.as_secs_f64()) as u64;
            if passed >= Duration::from_millis(500) {
                self.at = now;
                self.bytes = bytes;
            }
        }
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back_and_is_whole_only_at_the_end() {
        let mut stats = Stats {
            data_pages: 900,
            remaining_bytes: 100 * PAGE_SIZE,
            ..Stats::default()
        };
        stats.advance();
        assert_eq!(stats.progress, 9000);
        // A sync found much.
        stats.remaining_bytes = 5000 * PAGE_SIZE;
        stats.advance();
        assert_eq!(stats.progress, 9000);
        stats.remaining_bytes = 0;
        stats.advance();
        assert_eq!(stats.progress, 9999);
    }

    #[test]
    fn the_time_left_is_unknown_unless_the_link_is_clearly_faster_than_the_guest() {
        // Bytes a second of the link, pages a second of the guest, and the time left of 590.4 MB
        // more than fit.
        let table = [
            (1_000_000_000, 100_000, 1_000_000),
            (1_000_000_000, 0, 590_400),
            // Before the first sync.
            (1_000_000_000, UNKNOWN, UNKNOWN),
            (UNKNOWN, 100_000, UNKNOWN),
            (1_000_000_000, 300_000, UNKNOWN),
            // 1 % apart: nine days, if it were so.
            (1_000_000_000, 241_700, UNKNOWN),
        ];
        for (bandwidth, dirty_pages_per_second, left) in table {
            let mut stats = Stats {
                bandwidth,
                dirty_pages_per_second,
                remaining_bytes: 890_400_000,
                ..Stats::default()
            };
            stats.predict(Duration::from_millis(300));
            let row = (bandwidth, dirty_pages_per_second);
            assert_eq!(stats.time_left_us, left, "{row:?}");
        }
        let mut fits = Stats {
            bandwidth: 1_000_000_000,
            dirty_pages_per_second: 300_000,
            ..Stats::default()
        };
        fits.predict(Duration::from_millis(300));
        assert_eq!(fits.time_left_us, 0);
    }

    #[test]
    fn json_has_every_field_and_null_for_what_is_unknown() {
        let json = Stats::default().to_json("idle").unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["state"], "idle");
        assert!(value["bandwidth"].is_null());
        assert_eq!(value["pass"], 0);
        assert_eq!(value.as_object().unwrap().len(), 39 + 1);
    }
}
