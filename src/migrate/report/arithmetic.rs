//! Figures that follow from other figures: progress, time left, the parts of a downtime. Pure, but for the
//! probes that tell those parts.

use super::renew::RENEW;
use super::Stats;
use crate::migrate::state::State;
use crate::migrate::steering::budget::millis;
use crate::migrate::steering::stall::Cause;
use crate::migrate::steering::Parts;
use crate::migrate::switchover::source;
use crate::runtime::probes;
use crate::units::PAGE_SIZE;
use std::time::Duration;

/// A part that took less than this longer than promised explains no overrun.
const WORTH_TELLING: Duration = Duration::from_millis(1);

impl Stats {
    /// Divides what happened between `pause` and "running" into the parts that have no clock of their
    /// own. `pages` is how many bytes were sent after the pause before the device state.
    pub(in crate::migrate) fn account_for(&mut self, pages: u64) {
        let known = |part: Option<Duration>| part.unwrap_or_default();
        // The way to RUNNING and back was measured, that to READY is the one measured before the pause.
        let to_running = known(self.handover).saturating_sub(known(self.run));
        let link = (known(self.last_send) + known(self.ready))
            .saturating_sub(known(self.load))
            .saturating_sub(known(self.digest));
        let to_ready = known(self.round_trip).min(link);
        let link = link.saturating_sub(to_ready);
        let state = self.state_bytes + self.device_stopped_bytes;
        let share = pages as f64 / (pages + state).max(1) as f64;
        let memory = link.mul_f64(share.clamp(0.0, 1.0));
        self.round_trips = Some(to_ready + to_running);
        self.memory = Some(memory);
        self.state_sent = Some(link.saturating_sub(memory));
        for (name, part) in self.parts().named() {
            probes::downtime_part(name, part);
        }
    }

    /// Forgets a pause that was aborted after `stood`.
    pub(in crate::migrate) fn forget_pause(&mut self, stood: Duration) {
        let number = self.aborted_pauses as usize;
        if let Some(length) = self.aborted_pause.get_mut(number) {
            *length = stood;
        }
        self.aborted_pauses += 1;
        self.promised_downtime = None;
        self.promised = Parts::default();
        (self.pause, self.save, self.last_sync) = (None, None, None);
        self.state_bytes = 0;
        self.device_stopped = None;
    }

    /// The parts of the downtime as they were.
    fn parts(&self) -> Parts {
        let known = |part: Option<Duration>| part.unwrap_or_default();
        Parts {
            pause: known(self.pause),
            sync: known(self.last_sync),
            save: known(self.save),
            memory: known(self.memory),
            state: known(self.state_sent),
            state_running: Duration::ZERO,
            verify: known(self.digest),
            load: known(self.load),
            round_trips: known(self.round_trips),
            release: known(self.release),
            run: known(self.run),
        }
    }

    /// Why the downtime was longer than `limit`: which parts took longer than promised, the worst
    /// first, at most three; and the longest part, when the promise was above the limit.
    pub(in crate::migrate) fn why_longer(&self, limit: Duration) -> String {
        if self.promised_downtime.is_none() {
            return "nothing was promised, because nothing was measured before the pause"
                .to_owned();
        }
        let promised = self.promised.named();
        let mut longer: Vec<_> = (self.parts().named().into_iter().zip(promised))
            .map(|((name, took), (_, promised))| {
                (took.saturating_sub(promised), name, took, promised)
            })
            .filter(|(more, ..)| *more >= WORTH_TELLING)
            .collect();
        longer.sort_unstable_by_key(|(more, ..)| std::cmp::Reverse(*more));
        let words = longer.iter().take(3).map(|(_, name, took, promised)| {
            format!(
                "{name} took {}, promised were {}",
                millis(*took),
                millis(*promised)
            )
        });
        let mut words: Vec<_> = words.collect();
        let all = self.promised.total();
        if all > limit {
            let (name, part) = self.promised.longest();
            words.insert(
                0,
                format!(
                    "{} were promised, of which {name} was to take {}",
                    millis(all),
                    millis(part)
                ),
            );
        }
        match words.is_empty() {
            true => "no part took much longer than promised".to_owned(),
            false => words.join("; "),
        }
    }

    /// Computes a destination's progress anew: the pages received, as a part of these and the pages
    /// that remain. It never falls.
    pub(in crate::migrate) fn advance(&mut self) {
        let done = self.data_pages + self.zero_pages;
        let left = self.remaining_bytes / PAGE_SIZE;
        if done + left == 0 {
            return;
        }
        // Before the guest runs at the other side the progress is at most 99.99 %.
        let now = (u128::from(done) * 10_000 / u128::from(done + left)).min(9_999) as u32;
        self.progress = self.progress.max(now);
    }

    /// Makes figures that were renewed `age` ago those of now: nothing has moved since.
    pub(in crate::migrate) fn age(&mut self, age: Duration) {
        self.elapsed = self.elapsed.saturating_add(age);
        // Figures are renewed every 50 ms while something moves.
        if age > RENEW * 4 {
            let still = 1.0 - age.as_secs_f64();
            self.throughput = (self.throughput as f64 * still.max(0.0)) as u64;
        }
    }

    /// Shows that nothing moves in the middle of a pass. Passes that do not end judge nothing.
    pub(in crate::migrate) fn stands_still(&mut self, cause: Cause) {
        if self.state == State::Source(source::State::Copying) {
            self.stall = Some(cause);
        }
    }

    /// Predicts the time until the rest fits: the rest shrinks by the link's rate less the guest's.
    /// `None` when the rest does not shrink, and while either rate is unknown. `switchover` is the
    /// rate of the switchover in bytes a second, when it differs from the link's.
    ///
    /// Both rates are measured, and vary by a tenth or more from one pass to the next. When they
    /// differ by less than a fifth, the difference is chance, and no time follows from it.
    pub(in crate::migrate) fn predict(
        &mut self,
        downtime_limit: Duration,
        switchover: Option<f64>,
    ) {
        self.time_left = None;
        let (Some(bandwidth), Some(dirty)) = (self.bandwidth, self.dirty_pages_per_second) else {
            return;
        };
        let link = bandwidth as f64;
        let dirty = dirty as f64 * PAGE_SIZE as f64;
        let fits = switchover.unwrap_or(link) * downtime_limit.as_secs_f64();
        let excess = self.remaining_bytes as f64 - fits;
        if excess <= 0.0 {
            self.time_left = Some(Duration::ZERO);
        } else if dirty < link * 0.8 {
            self.time_left = Duration::try_from_secs_f64(excess / (link - dirty)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::nanos;
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
    fn figures_that_are_not_renewed_show_a_link_that_stands_still() {
        let mut stats = Stats {
            elapsed: Duration::from_secs(3),
            throughput: 1_000_000,
            wire_bytes: 5,
            ..Stats::default()
        };
        stats.age(RENEW);
        assert_eq!(stats.elapsed, Duration::from_millis(3050));
        assert_eq!(stats.throughput, 1_000_000);
        stats.age(Duration::from_millis(750));
        assert_eq!(stats.throughput, 250_000);
        stats.age(Duration::from_secs(100));
        assert_eq!((stats.throughput, stats.wire_bytes), (0, 5));
        assert_eq!(stats.elapsed, Duration::from_millis(103_800));
    }

    #[test]
    fn a_standstill_shows_only_while_memory_is_copied() {
        use source::State as S;
        for (state, shows) in [(S::Copying, true), (S::Pausing, false), (S::Failed, false)] {
            let mut stats = Stats {
                state: state.into(),
                ..Stats::default()
            };
            stats.stands_still(Cause::Link);
            assert_eq!(stats.stall.is_some(), shows, "{state:?}");
        }
    }

    #[test]
    fn the_time_left_is_unknown_unless_the_link_is_clearly_faster_than_the_guest() {
        // Each row: bytes a second of the link, pages a second of the guest, and the time left. The
        // rest is 590.4 MB more than fits.
        let table = [
            (Some(1_000_000_000), Some(100_000), Some(1_000_000_000)),
            (Some(1_000_000_000), Some(0), Some(590_400_000)),
            // Before the first sync.
            (Some(1_000_000_000), None, None),
            (None, Some(100_000), None),
            (Some(1_000_000_000), Some(300_000), None),
            // The rates are 1 % apart. By their difference alone the time left would be nine days.
            (Some(1_000_000_000), Some(241_700), None),
        ];
        for (bandwidth, dirty_pages_per_second, left) in table {
            let mut stats = Stats {
                bandwidth,
                dirty_pages_per_second,
                remaining_bytes: 890_400_000,
                ..Stats::default()
            };
            stats.predict(Duration::from_millis(300), None);
            let row = (bandwidth, dirty_pages_per_second);
            assert_eq!(stats.time_left.map(nanos), left, "{row:?}");
        }
        let mut fits = Stats {
            bandwidth: Some(1_000_000_000),
            dirty_pages_per_second: Some(300_000),
            ..Stats::default()
        };
        fits.predict(Duration::from_millis(300), None);
        assert_eq!(fits.time_left, Some(Duration::ZERO));
    }

    #[test]
    fn the_time_left_counts_with_the_rate_of_the_switchover() {
        let mut stats = Stats {
            bandwidth: Some(1_000_000_000),
            dirty_pages_per_second: Some(0),
            remaining_bytes: 130_000_000,
            ..Stats::default()
        };
        // At 100 MB/s, 30 MB fit into 300 ms. The other 100 MB are sent before that, at the link's
        // rate.
        stats.predict(Duration::from_millis(300), Some(1e8));
        assert_eq!(stats.time_left, Some(Duration::from_millis(100)));
    }

    #[test]
    fn the_parts_of_a_downtime_are_what_was_measured_and_the_links_time_is_divided_by_bytes() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let mut stats = Stats {
            pause: ms(1),
            last_sync: ms(2),
            save: ms(3),
            // 100 ms of pages, 300 ms of state, `load`, checksums and a round trip.
            last_send: ms(250),
            ready: ms(250),
            load: ms(70),
            digest: ms(10),
            release: ms(4),
            // A round trip and `run`.
            handover: ms(25),
            run: ms(5),
            round_trip: ms(20),
            state_bytes: 3_000_000,
            ..Stats::default()
        };
        stats.account_for(1_000_000);
        assert_eq!((stats.memory, stats.state_sent), (ms(100), ms(300)));
        assert_eq!(stats.round_trips, ms(40));
        let sum = stats.parts().total();
        assert_eq!(sum, Duration::from_millis(1 + 2 + 3 + 500 + 4 + 25));
        let nothing = "nothing was promised, because nothing was measured before the pause";
        assert_eq!(stats.why_longer(Duration::from_secs(1)), nothing);
        stats.promised_downtime = ms(450);
        stats.promised.state = Duration::from_millis(310);
        stats.promised.load = Duration::from_millis(10);
        stats.promised.round_trips = Duration::from_millis(30);
        stats.promised.memory = Duration::from_millis(100);
        assert_eq!(
            stats.why_longer(Duration::from_secs(1)),
            "`load` took 70.0 ms, promised were 10.0 ms; verifying took 10.0 ms, promised were 0.0 \
             ms; the round trips took 40.0 ms, promised were 30.0 ms"
        );
    }
}
