//! What the passes and syncs of a migration have shown so far: the facts for the decider and for the
//! forecast. Pure.

use crate::dirty::tracker::ConsumerStats;
use crate::migrate::steering::bandwidth::{Bandwidth, DirtyRate, WriteRate};
use crate::migrate::steering::delivery::{Carried, Delivery};
use crate::migrate::steering::first_pass::{FirstPass, Found};
use crate::migrate::steering::passes::Passes;
use crate::migrate::steering::recent::Recent;
use crate::migrate::steering::round_trip::RoundTrip;
use crate::migrate::steering::working_set::WorkingSet;
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
    written: WriteRate,
    /// What the guest writes, as slow as it is now.
    pub(super) working_set: WorkingSet,
    first_pass: FirstPass,
    this_pass: PassSoFar,
    last_pass: Option<PassFacts>,
    last_sync: Option<Instant>,
    /// The consumer's totals as of the last sync.
    tracked: ConsumerStats,
    /// Pages that became pending in this pass, by syncs in its middle.
    found_in_pass: Pages,
    /// How long the pass took that ended last, its sync included.
    pass_took: Duration,
    /// How long the last syncs took.
    sync_times: Recent<Duration, SYNCS>,
}

/// So many syncs tell how long the next one takes.
const SYNCS: usize = 3;

/// The writes between two syncs tell of all of memory when at least this share of it could be observed.
const OBSERVED: f64 = 0.1;
/// A shorter time between two syncs tells nothing, because a guest's writes come in bursts.
const SYNCS_APART: Duration = Duration::from_millis(50);

/// A sync that has ended.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Synced {
    /// How long it took.
    pub(super) took: Duration,
    /// The consumer's totals after it.
    pub(super) tracked: ConsumerStats,
    /// All of the guest's pages, and those of which a write since the sync before could be found.
    pub(super) total: Pages,
    pub(super) observed: Pages,
    /// Pages to send after it.
    pub(super) pending: Pages,
}

/// The point of a pass at which it is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// The middle: pages of the pass are still to be sent.
    Middle,
    /// The end. `all_sent`: nothing was pending before the sync.
    End { all_sent: bool },
}

/// What the current pass has sent.
#[derive(Debug, Default)]
struct PassSoFar {
    began: Option<Instant>,
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
    pub(super) fn begin_pass(&mut self, now: Instant) {
        self.this_pass = PassSoFar {
            began: Some(now),
            ..PassSoFar::default()
        };
    }

    /// Whether the last pass has ended and the next one has not begun.
    pub(super) fn is_between_passes(&self) -> bool {
        self.this_pass.began.is_none()
    }

    /// How long the current pass has taken so far; zero between two passes.
    pub(super) fn in_pass(&self, now: Instant) -> Duration {
        self.this_pass.began.map_or(Duration::ZERO, |at| now - at)
    }

    /// How long the pass before the current one took, its sync included; zero in the first.
    pub(super) fn pass_took(&self) -> Duration {
        self.pass_took
    }

    /// Pages that syncs in the middle of the current pass found. They are pending and lie behind the
    /// walk, so the next pass sends them.
    pub(super) fn found_in_pass(&self) -> Pages {
        self.found_in_pass
    }

    /// Pages that the current pass has sent, and how many of them had contents.
    pub(super) fn pass_sent(&self) -> (Pages, Pages) {
        (Pages(self.this_pass.pages), Pages(self.this_pass.data))
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

    /// Records a sync of pass `number`. The migration began at `begun`. Returns how many pages were
    /// found in the pass so far, also by other consumers' syncs.
    pub(super) fn synced(
        &mut self,
        now: Instant,
        begun: Instant,
        number: u32,
        at: At,
        sync: &Synced,
    ) -> Pages {
        let since = self.since_sync(now, begun);
        let before = std::mem::replace(&mut self.tracked, sync.tracked);
        let found = sync.tracked.found - before.found;
        let written = sync.tracked.written - before.written;
        let failed = sync.tracked.failed_syncs != before.failed_syncs;
        self.found_in_pass += found;
        let in_pass = self.found_in_pass;
        if failed {
            // In this case nobody knows how much was written.
            self.dirtied = DirtyRate::default();
            self.written = WriteRate::default();
        } else {
            let all_sent = at == At::End { all_sent: true };
            self.dirtied.found(found, since, all_sent);
            self.written
                .found(written, sync.observed, sync.total, since);
            self.learn(now, number, at, sync, written, since);
        }
        if let At::End { .. } = at {
            self.pass_took = self.in_pass(now);
            self.found_in_pass = Pages(0);
            self.this_pass = PassSoFar::default();
        }
        self.last_sync = Some(now);
        self.sync_times.push(sync.took);
        in_pass
    }

    /// Adds to the working-set curve what a sync found, of `written` pages `since` the sync before.
    fn learn(
        &mut self,
        now: Instant,
        number: u32,
        at: At,
        sync: &Synced,
        written: Pages,
        since: Duration,
    ) {
        let passed = self.in_pass(now);
        let found = self.found_in_pass.0 as f64;
        // Where only a part of memory could be observed, the rest is taken to be like it.
        let observed = sync.observed.0 as f64 / (sync.total.0 as f64).max(1.0);
        let written = (observed >= OBSERVED).then(|| written.0 as f64 / observed.min(1.0));
        if let Some(written) = written.filter(|_| since >= SYNCS_APART) {
            self.working_set.bound(since, written);
        }
        match at {
            _ if number <= 1 => {
                // Pages that are pending and were not found in this pass lie ahead of the walk.
                let ahead = sync.pending.0 as f64 - found;
                let walked = match at {
                    At::End { all_sent: true } => 1.0,
                    _ => 1.0 - ahead / (sync.total.0 as f64).max(1.0),
                };
                let found = Found {
                    passed,
                    walked: walked.min(1.0),
                    again: found,
                    written,
                };
                self.first_pass.found(&mut self.working_set, &found);
            }
            At::End { .. } => self.working_set.observe(passed, sync.pending.0 as f64),
            At::Middle => {}
        }
    }

    /// The time since the last sync, or since the migration began when there was none.
    pub(super) fn since_sync(&self, now: Instant, begun: Instant) -> Duration {
        now - self.last_sync.unwrap_or(begun)
    }

    /// The guest's dirty rate: pages in a second. `background`: syncs come in the middle of passes
    /// too. They find pages that the guest writes again while they are pending, so the rate is that
    /// of the pages found written.
    pub(super) fn dirty_rate(&self, background: bool) -> Option<f64> {
        match background {
            true => self.written.rate(),
            false => self.dirtied.rate(),
        }
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
        course.begin_pass(Instant::now());
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
