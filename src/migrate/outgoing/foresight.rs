//! The forecast of a running migration.
//!
//! The migration's thread shows what a forecast is made of: the facts, and what the guest has been
//! seen to write. Whoever asks for the forecast walks through the passes to come, on a thread of the
//! asker's. So a forecast is always as fresh as the moment of the question, also while the
//! migration's thread waits for a link that stalls, and the migration pays for none that nobody asks
//! for.

use crate::migrate::steering::forecast::{forecast, remedies, Forecast, Outlook, Remedies};
use crate::migrate::steering::policies::Policies;
use crate::migrate::steering::working_set::WorkingSet;
use crate::migrate::steering::{Facts, FitsDowntime};
use crate::units::Bytes;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a forecast is made of, at one moment of a pass.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// When it was seen.
    pub(super) at: Instant,
    /// The facts. `since_sync` is the time since the pass began.
    pub(super) facts: Facts,
    /// Bytes of pages with contents that were sent, in this pass and in all.
    pub(super) pass_sent: Bytes,
    pub(super) sent: Bytes,
    /// Bytes that went over the connections.
    pub(super) wire: u64,
    /// What the connections had sent by their own count, [`Pacer::sent`](crate::channel::Pacer::sent).
    pub(super) moved: u64,
    /// Of what remains, the share that has contents.
    pub(super) data: f64,
    /// How long the pass before this one took.
    pub(super) last_pass: Duration,
    pub(super) working_set: WorkingSet,
    /// The decider of the migration as it is now, with the policy's bounds.
    pub(super) decider: FitsDowntime,
    pub(super) policies: Policies,
}

impl Seen {
    /// What is seen at `now`, when the connections have sent `moved` by their own count. A batch that
    /// is being sent has left in part.
    fn at(&self, now: Instant, moved: u64) -> Seen {
        let mut seen = self.clone();
        let since = now.saturating_duration_since(self.at);
        seen.at = self.at.max(now);
        seen.facts.elapsed = self.facts.elapsed.saturating_add(since);
        seen.facts.since_sync = self.facts.since_sync.saturating_add(since);
        let bytes = moved.saturating_sub(self.moved);
        seen.moved += bytes;
        seen.wire += bytes;
        let pages = (bytes as f64 / self.packed()) as u64;
        let pages = Bytes(pages.min(self.facts.remaining.0));
        seen.facts.remaining.0 -= pages.0;
        seen.pass_sent.0 += pages.0;
        seen.sent.0 += pages.0;
        seen
    }

    /// Bytes that went over the connections for each byte of a page. Compressed pages and deltas take
    /// fewer bytes than pages. What is to come will be like what was sent.
    fn packed(&self) -> f64 {
        let sent = self.sent.0 as f64;
        match sent > 0.0 && self.wire > 0 {
            true => self.wire as f64 / sent,
            false => 1.0,
        }
    }

    fn outlook(&self) -> Outlook<'_> {
        Outlook {
            facts: self.facts,
            pass_sent: self.pass_sent,
            sent: self.sent,
            data: self.data,
            last_pass: self.last_pass,
            working_set: &self.working_set,
        }
    }

    /// The forecast, without remedies. Its `bytes` are those of uncompressed pages.
    fn of_pages(&self) -> Forecast {
        forecast(&self.outlook(), &self.decider, &self.policies, 1.0)
    }

    /// The forecast at `now`, when the connections have sent `moved` by their own count.
    pub(super) fn forecast(&self, now: Instant, moved: u64) -> Forecast {
        let seen = self.at(now, moved);
        let mut found = seen.of_pages();
        let sent = seen.sent.0 as f64;
        found.bytes = seen.wire as f64 + (found.bytes - sent).max(0.0) * seen.packed();
        if !found.converges {
            found.remedies = seen.remedies();
        }
        found
    }

    fn remedies(&self) -> Remedies {
        remedies(&self.outlook(), &self.decider, &self.policies)
    }

    /// Bytes of pages that will be sent after the current pass.
    pub(super) fn after_this_pass(&self) -> f64 {
        let share = match self.facts.pass {
            0 | 1 => self.data,
            _ => 1.0,
        };
        let this_pass = self.facts.remaining.0 as f64 * share;
        (self.of_pages().bytes - self.sent.0 as f64 - this_pass).max(0.0)
    }
}

/// What the VMM's object and the migration's thread share of it.
#[derive(Debug, Default)]
pub(super) struct Foresight(Mutex<Show>);

#[derive(Debug, Default)]
enum Show {
    /// No bandwidth is known yet.
    #[default]
    Nothing,
    Seen(Box<Seen>),
    /// The guest stands still, or the migration is over: the forecast does not change any more.
    Last(Forecast),
}

impl Foresight {
    pub(super) fn show(&self, seen: Seen) {
        *self.locked() = Show::Seen(Box::new(seen));
    }

    /// The forecast stays as it is now.
    pub(super) fn freeze(&self, now: Instant, moved: u64) {
        if let Some(seen) = self.seen() {
            *self.locked() = Show::Last(seen.forecast(now, moved));
        }
    }

    /// The migration has completed: these are its figures.
    pub(super) fn completed(&self, outcome: Forecast) {
        *self.locked() = Show::Last(outcome);
    }

    /// The forecast at `now`, when the connections have sent `moved` by their own count.
    pub(super) fn forecast(&self, now: Instant, moved: u64) -> Option<Forecast> {
        if let Show::Last(last) = &*self.locked() {
            return Some(*last);
        }
        // The walk is made outside of the lock, which the migration's thread takes.
        self.seen().map(|seen| seen.forecast(now, moved))
    }

    fn seen(&self) -> Option<Box<Seen>> {
        match &*self.locked() {
            Show::Seen(seen) => Some(seen.clone()),
            Show::Nothing | Show::Last(_) => None,
        }
    }

    fn locked(&self) -> MutexGuard<'_, Show> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::steering::policies::Policy;
    use crate::migrate::steering::Moment;

    const SECOND: Duration = Duration::from_secs(1);

    /// Four seconds into the first pass of 10 GB over 1 GB/s, half of it zero. Pages travel at half
    /// of their size.
    fn seen() -> Seen {
        Seen {
            at: Instant::now(),
            facts: Facts {
                moment: Moment::Walking,
                elapsed: SECOND * 4,
                since_sync: SECOND * 4,
                pass: 1,
                total: Bytes(10_000_000_000),
                remaining: Bytes(2_000_000_000),
                bandwidth: Some(1e9),
                ..Facts::default()
            },
            pass_sent: Bytes(4_000_000_000),
            sent: Bytes(4_000_000_000),
            wire: 2_000_000_000,
            moved: 7,
            data: 0.5,
            last_pass: Duration::ZERO,
            working_set: WorkingSet::default(),
            decider: FitsDowntime::new(SECOND / 10, None),
            policies: Policies::new(Policy::default(), SECOND / 10).unwrap(),
        }
    }

    #[test]
    fn bytes_to_come_are_packed_as_those_that_were_sent() {
        let seen = seen();
        let forecast = seen.forecast(seen.at, 7);
        assert!(forecast.converges);
        assert_eq!(forecast.bytes.round(), 2.5e9);
        assert_eq!(forecast.time, SECOND * 5);
        assert_eq!(seen.after_this_pass(), 0.0);
    }

    #[test]
    fn while_nothing_is_renewed_the_end_moves_on_with_the_clock() {
        let seen = seen();
        let forecast = seen.forecast(seen.at + SECOND * 7, 7);
        assert_eq!(forecast.time, SECOND * 12);
        // A guest that writes meanwhile leaves more.
        let mut busy = seen.clone();
        busy.working_set.observe(SECOND, 10e3);
        busy.working_set.observe(SECOND * 100, 1e6);
        let (now, later) = (
            busy.after_this_pass(),
            busy.at(busy.at + SECOND * 7, 7).after_this_pass(),
        );
        assert!(later > now * 1.5, "{now}, {later}");
    }

    #[test]
    fn a_batch_that_is_being_sent_does_not_put_the_end_off() {
        // A tenth of a second later a tenth of a second's bytes have left. Pages travel at half of
        // their size, and half of the pages have contents.
        let seen = seen();
        let later = seen.forecast(seen.at + SECOND / 10, 7 + 50_000_000);
        let now = seen.forecast(seen.at, 7);
        assert!((later.bytes / now.bytes - 1.0).abs() < 0.02, "{later:?}");
        let off = later.time.as_secs_f64() - now.time.as_secs_f64();
        assert!(off.abs() < 0.06, "{later:?} {now:?}");
    }

    #[test]
    fn what_would_help_is_said_only_of_a_migration_that_does_not_converge() {
        let foresight = Foresight::default();
        assert_eq!(foresight.forecast(Instant::now(), 0), None);
        let mut seen = seen();
        foresight.show(seen.clone());
        let idle = foresight.forecast(seen.at, 7).unwrap();
        assert_eq!((idle.converges, idle.remedies), (true, Remedies::default()));
        seen.working_set.observe(SECOND, 500e3);
        seen.working_set.observe(SECOND * 4, 2e6);
        foresight.show(seen.clone());
        let busy = foresight.forecast(seen.at, 7).unwrap();
        assert!(!busy.converges);
        let found = busy.remedies;
        assert!(
            found.bandwidth > Some(1e9) && found.throttle > Some(0),
            "{found:?}"
        );
        // After the pause nothing changes any more.
        foresight.freeze(seen.at + SECOND, 7);
        let frozen = foresight.forecast(seen.at + SECOND * 9, 7);
        assert_eq!(frozen, foresight.forecast(seen.at + SECOND * 99, 7));
    }
}
