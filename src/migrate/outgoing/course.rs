//! What the passes and syncs of a migration have shown so far: the facts for the decider. Pure.

use crate::dirty::tracker::ConsumerStats;
use crate::migrate::steering::bandwidth::{Bandwidth, DirtyRate};
use crate::migrate::steering::delivery::{Carried, Delivery};
use crate::migrate::steering::passes::Passes;
use crate::migrate::steering::recent::Recent;
use crate::migrate::steering::round_trip::RoundTrip;
use crate::migrate::steering::PassFacts;
use crate::units::{Pages, PAGE_SIZE};
use crate::walk::Put;
use std::time::{Duration, Instant};

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Course {
    pub(super) bandwidth: Bandwidth,
    pub(super) passes: Passes,
    pub(super) round_trip: RoundTrip,
    delivery: Delivery,
    dirtied: DirtyRate,
    this_pass: PassSoFar,
    last_pass: Option<PassFacts>,
    last_sync: Option<Instant>,
    /// The consumer's totals as of the last sync.
    tracked: ConsumerStats,
    /// How long the last syncs took.
    sync_times: Recent<Duration, SYNCS>,
}

/// So many syncs tell how long the next one takes.
const SYNCS: usize = 3;

/// What the current pass has sent.
#[derive(Debug, Default)]
struct PassSoFar {
    pages: u64,
    data: u64,
    /// Bytes of data pages that deltas saved.
    saved: u64,
    /// Time spent waiting for a cap on the bandwidth.
    waited: Duration,
}

impl Course {
    /// Tracking has begun.
    pub(super) fn begin(&mut self, now: Instant, tracked: ConsumerStats) {
        self.last_sync = Some(now);
        self.tracked = tracked;
    }

    /// A pass begins.
    pub(super) fn begin_pass(&mut self) {
        self.this_pass = PassSoFar::default();
    }

    /// Pages of this pass have been sent.
    pub(super) fn sent(&mut self, put: &Put) {
        self.this_pass.pages += put.read_pages();
        self.this_pass.data += put.data_pages;
        self.this_pass.saved += put.delta_saved;
    }

    /// Something is being sent from `now` on, a time since the migration's start.
    pub(super) fn sends(&mut self, now: Duration) {
        self.delivery.begins(now);
    }

    /// At `now`, `acknowledged` is all that the destination has acknowledged. `on_the_way` says
    /// whether more was sent.
    pub(super) fn delivered(&mut self, now: Duration, acknowledged: Carried, on_the_way: bool) {
        let trip = self.round_trip.estimate();
        let found = self.delivery.seen(now, acknowledged, on_the_way, trip);
        if let Some((bytes, time)) = found {
            self.bandwidth.delivered(bytes, time);
        }
    }

    /// A cap of the bandwidth made this pass wait.
    pub(super) fn waited(&mut self, time: Duration) {
        self.this_pass.waited += time;
    }

    /// Pass `number` has ended after `time`, and all that was sent is acknowledged.
    pub(super) fn end_pass(&mut self, number: u32, time: Duration) {
        let sent = &self.this_pass;
        if sent.pages > 0 {
            self.last_pass = Some(PassFacts {
                number,
                pages: Pages(sent.pages),
                data: Pages(sent.data.saturating_sub(sent.saved / PAGE_SIZE)),
                time: time.saturating_sub(sent.waited),
            });
        }
    }

    /// Records that a sync has ended. It took `took`; `tracked` are the consumer's totals after it;
    /// the migration began at `begun`. `all_sent` says that nothing was pending before the sync.
    /// Returns how many pages were found since the last call, also by other consumers' syncs.
    pub(super) fn synced(
        &mut self,
        now: Instant,
        begun: Instant,
        took: Duration,
        tracked: ConsumerStats,
        all_sent: bool,
    ) -> Pages {
        let since = self.since_sync(now, begun);
        let before = std::mem::replace(&mut self.tracked, tracked);
        let found = tracked.found - before.found;
        if tracked.failed_syncs != before.failed_syncs {
            // In this case nobody knows how much was written.
            self.dirtied = DirtyRate::default();
        } else {
            self.dirtied.found(found, since, all_sent);
        }
        self.last_sync = Some(now);
        self.sync_times.push(took);
        found
    }

    /// The time since the last sync, or since the migration began when there was none.
    pub(super) fn since_sync(&self, now: Instant, begun: Instant) -> Duration {
        now - self.last_sync.unwrap_or(begun)
    }

    /// The guest's dirty rate: pages in a second.
    pub(super) fn dirty_rate(&self) -> Option<f64> {
        self.dirtied.rate()
    }

    pub(super) fn last_pass(&self) -> Option<PassFacts> {
        self.last_pass
    }

    /// How long the next sync will take: the median of the last three, or the shorter of two. One
    /// sync may have waited for a busy machine.
    pub(super) fn sync_time(&self) -> Duration {
        self.sync_times.median().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last pass' bytes predict what the next pages will take of the link.
    #[test]
    fn pages_that_went_as_what_had_changed_count_by_their_bytes() {
        let mut course = Course::default();
        course.begin_pass();
        for _ in 0..10 {
            course.sent(&Put {
                data_pages: 100,
                zero_pages: 20,
                delta_pages: 80,
                delta_saved: 80 * 4000,
                ..Put::default()
            });
        }
        course.end_pass(3, Duration::from_millis(5));
        let pass = course.last_pass().unwrap();
        assert_eq!(pass.pages, Pages(1200));
        assert_eq!(pass.data, Pages(1000 - 800 * 4000 / 4096));
    }
}
