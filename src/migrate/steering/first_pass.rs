//! Makes points of the working-set curve of what syncs find while the first pass still walks. Pure.
//!
//! A page can only be seen being written from when it was sent. After half a minute of the pass, the
//! pages sent so far have been visible for 0 to 30 s, so the share that was written is an average of
//! the curve over these times. Two such averages tell the curve between them.
//!
//! **Written pages may lie where the walk has been already.** Example: a guest writes a quarter of its
//! memory, that with the lowest addresses, and the walk goes by address. When a quarter of memory was
//! sent, all that the guest writes was sent. Divided by the quarter, its working set would look four
//! times as large as it is. A sync tells better: it finds pages that are written, wherever they lie,
//! and which of them were sent already. When more of them were sent than chance explains, the share
//! of the written pages that the walk has passed is larger than the share of memory, by the same
//! factor.

use super::working_set::WorkingSet;
use std::time::Duration;

/// What a sync in the first pass has found.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Found {
    /// The time since the pass began.
    pub passed: Duration,
    /// The share of all pages that was sent, 0 to 1.
    pub walked: f64,
    /// Pages that were sent and have been written again, in all of the pass.
    pub again: f64,
    /// Pages that were written since the sync before, sent or not. `None` where it is not known.
    pub written: Option<f64>,
}

/// See the file's description.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct FirstPass {
    /// Seconds since the pass began, and the time times the average, of the last point.
    point: (f64, f64),
    /// The share of memory that was sent, and the pages written again, at the last sync.
    walked: f64,
    again: f64,
    /// The written pages lie so many times as densely where the walk began as in all of memory.
    denser: f64,
    /// Seconds after which all pages that are written had been sent, when that was before the pass's
    /// end.
    all_by: Option<f64>,
}

/// The second of two averages comes this many times as late as the first.
const APART: f64 = 1.1;
/// So many standard deviations are no chance.
const NO_CHANCE: f64 = 3.0;

impl FirstPass {
    /// Records what a sync has found.
    pub fn found(&mut self, curve: &mut WorkingSet, found: &Found) {
        let time = found.passed.as_secs_f64();
        self.learn_place(found);
        let (before, area_before) = self.point;
        let walked = (found.walked * self.denser.max(1.0)).min(1.0);
        if time <= before * APART || walked <= 0.0 || !found.again.is_finite() {
            return;
        }
        let average = found.again / walked;
        if walked >= 1.0 && found.walked < 1.0 {
            // Every page that is written was sent by then, and the pages have been visible for as
            // long or longer than since then.
            let all_by = *self.all_by.get_or_insert(time);
            curve.observe(
                Duration::try_from_secs_f64(time - all_by / 2.0).unwrap_or(Duration::MAX),
                average,
            );
            self.point = (time, time * average);
            return;
        }
        let area = time * average;
        // The curve rises and gets flatter, so its end is at least its average and at most twice it.
        // A guest whose phase changed shows more or less than that.
        let pages = (area - area_before) / (time - before);
        let pages = pages.clamp(average, 2.0 * average);
        curve.observe(
            Duration::try_from_secs_f64((before + time) / 2.0).unwrap_or(Duration::MAX),
            pages,
        );
        self.point = (time, area);
    }

    /// Learns how densely the written pages lie where the walk has passed. Pages that are written again
    /// and again are found once only, so the first syncs tell it best.
    fn learn_place(&mut self, found: &Found) {
        let again = found.again - std::mem::replace(&mut self.again, found.again);
        let before = std::mem::replace(&mut self.walked, found.walked);
        let Some(written) = found.written.filter(|written| *written > 0.0) else {
            return;
        };
        // The share of memory that was sent, on average between the two syncs.
        let meanwhile = (before + found.walked) / 2.0;
        let by_chance = written * meanwhile;
        if meanwhile > 0.0 && again > by_chance + NO_CHANCE * by_chance.sqrt() {
            let share = again.min(written) / written;
            self.denser = self.denser.max(share / meanwhile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::working_set::Pool;
    use super::*;
    use proptest::prelude::*;

    /// A guest of 40,000 pages writes 10,000 of them in turn, 1,000 a second. The pass takes 100 s,
    /// with a sync each second until `end`. The written pages are spread over memory, or all at its
    /// beginning.
    fn seen(end: u32, at_the_beginning: bool) -> WorkingSet {
        let (mut curve, mut first) = (WorkingSet::default(), FirstPass::default());
        let pool = Pool {
            pages: 10e3,
            rate: 1e3,
        };
        let share: f64 = if at_the_beginning { 0.25 } else { 1.0 };
        let steps = 1000;
        for second in 1..=end {
            let time = f64::from(second);
            // The average over the pages that were sent, by when.
            let last = (share * 100.0).min(time);
            let written: f64 = (0..steps)
                .map(|i| last * (f64::from(i) + 0.5) / f64::from(steps))
                .map(|sent_at| pool.distinct(time - sent_at))
                .sum::<f64>()
                / f64::from(steps);
            let found = Found {
                passed: Duration::from_secs(second.into()),
                walked: time / 100.0,
                again: written * last / (share * 100.0),
                written: Some(1e3),
            };
            first.found(&mut curve, &found);
        }
        curve
    }

    #[test]
    fn syncs_of_the_first_pass_show_a_working_set_before_the_pass_ends() {
        let curve = seen(60, false);
        for seconds in [3.0f64, 8.0, 20.0, 100.0] {
            let (is, seen) = ((seconds * 1e3).min(10e3), curve.distinct(seconds));
            assert!(
                (seen / is - 1.0).abs() < 0.15,
                "{seconds} s: {seen}, not {is}"
            );
        }
    }

    #[test]
    fn a_working_set_that_the_walk_has_passed_does_not_look_larger_than_it_is() {
        for end in [20, 30, 60, 100] {
            let curve = seen(end, true);
            for seconds in [3.0f64, 8.0, 20.0, 100.0] {
                let (is, seen) = ((seconds * 1e3).min(10e3), curve.distinct(seconds));
                assert!(
                    (seen / is - 1.0).abs() < 0.35,
                    "after {end} s, {seconds} s: {seen}, not {is}"
                );
            }
        }
    }

    proptest! {
        /// Where the written pages are spread evenly, chance is not taken for a place.
        #[test]
        fn pages_that_are_spread_evenly_have_no_place(
            counts in proptest::collection::vec((0.0f64..1e6, 0.0f64..1.0), 1..50),
        ) {
            let mut first = FirstPass::default();
            let (mut curve, mut again) = (WorkingSet::default(), 0.0);
            let steps = counts.len() as f64;
            for (i, (written, clean)) in counts.iter().enumerate() {
                let (before, walked) = (i as f64 / steps, (i + 1) as f64 / steps);
                again += written * clean * (before + walked) / 2.0;
                let found = Found {
                    passed: Duration::from_secs(i as u64 + 1),
                    walked,
                    again,
                    written: Some(*written),
                };
                first.found(&mut curve, &found);
            }
            prop_assert_eq!(first.denser, 0.0);
        }
    }
}
