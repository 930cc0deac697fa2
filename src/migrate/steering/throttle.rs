//! Auto-converge: how much to slow a guest so that each pass leaves less than it sent. Pure.
//!
//! Example: a guest dirties 1,400 MB/s and the link carries 300 MB/s. Each pass leaves as much as
//! it sent, so the migration never ends. Slowed by 91 %, the guest dirties 127 MB/s. Each pass then
//! leaves less than half of what it sent.
//!
//! **The measure is the ratio of what the guest dirties to what the link carries.** Both the rates
//! and the passes tell it: a pass that sent 100 MB and leaves 90 MB had a ratio of 0.9. The larger
//! of the two counts. Rates that were measured over a whole pass say too little about a guest that
//! writes to the same pages again and again, and so does a pass that sent clean pages.
//!
//! **The speed is changed by the factor that the ratio lacks.** A guest at a ratio of 4.7 gets a
//! tenth of its speed at once, and not after a dozen steps of 10 %. Slowing a guest never makes it
//! dirty more, and the ratio falls by at most the same factor as the speed. So a steady guest is
//! only ever slowed further until it fits, and the throttle does not swing. Between [`RELAXED`] and
//! [`STRAINED`] nothing changes, so that noise does not move the throttle either.

use super::facts::{Facts, Moment};

/// Above this ratio the guest is slowed. With a ratio of a half, every pass halves the rest.
pub const STRAINED: f64 = 0.55;
/// A slowed guest whose ratio is below this one gets faster.
pub const RELAXED: f64 = 0.30;
/// A change aims at this ratio.
const AIM: f64 = 0.43;
/// A guest that gets faster gets at most this many times as fast in one step, because what it does
/// with its new speed is not known yet.
const FASTER: f64 = 2.0;

/// What a throttle decides by.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Load {
    /// Bytes a second that the guest dirties, as slow as it is now. `None` before a measurement.
    pub dirty: Option<f64>,
    /// Bytes a second that the link carries. `None` before a measurement.
    pub link: Option<f64>,
    /// What the last pass sent and what it left, in bytes. `None` in the middle of a pass.
    pub pass: Option<(f64, f64)>,
}

impl Load {
    /// The load that `facts` show. The first pass does not count as a pass: it sent all memory, and
    /// what it left is no measure of the next one.
    pub fn of(facts: &Facts) -> Load {
        let carried = |rate: &f64| rate.is_finite() && *rate > 0.0;
        let capped = match (facts.bandwidth.filter(carried), facts.cap.filter(carried)) {
            (Some(link), Some(cap)) => Some(link.min(cap)),
            (link, cap) => link.or(cap),
        };
        let ended = facts
            .last_pass
            .filter(|pass| facts.moment == Moment::Synced && pass.number > 1 && pass.pages.0 > 0);
        Load {
            dirty: facts.dirty_rate.map(|pages| pages * 4096.0),
            link: capped,
            pass: ended.map(|pass| {
                let sent = pass.pages.bytes().0 as f64;
                (sent, facts.remaining.0 as f64)
            }),
        }
    }

    /// What the guest dirties for each byte that the link carries: below 1, passes shrink. `None`
    /// when nothing tells.
    pub fn ratio(&self) -> Option<f64> {
        let sane = |ratio: &f64| ratio.is_finite() && *ratio >= 0.0;
        let by_rate = match (self.dirty, self.link) {
            (Some(dirty), Some(link)) if link > 0.0 => Some(dirty / link).filter(sane),
            _ => None,
        };
        let by_pass = self
            .pass
            .and_then(|(sent, left)| Some(left / sent).filter(sane));
        match (by_rate, by_pass) {
            (Some(rate), Some(pass)) => Some(rate.max(pass)),
            (rate, pass) => rate.or(pass),
        }
    }
}

/// Auto-converge. See the file's description.
///
/// ```
/// use brant::migrate::steering::throttle::{AutoConverge, Load};
///
/// let mut throttle = AutoConverge::default();
/// let mut load = Load::default();
/// (load.dirty, load.link) = (Some(1.4e9), Some(300e6));
/// assert_eq!(throttle.next(&load), 91);
/// // Slowed, the guest dirties 126 MB/s.
/// load.dirty = Some(126e6);
/// assert_eq!(throttle.next(&load), 91);
/// assert_eq!(throttle.end(), 0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AutoConverge {
    most: u8,
    percent: u8,
}

/// The largest percentage. At 100 the guest would stand still.
pub const MOST: u8 = 99;

impl Default for AutoConverge {
    fn default() -> Self {
        AutoConverge::new(MOST)
    }
}

impl AutoConverge {
    /// A throttle of at most `most` percent. More than [`MOST`] counts as [`MOST`].
    pub fn new(most: u8) -> Self {
        AutoConverge {
            most: most.min(MOST),
            percent: 0,
        }
    }

    /// The share of the vCPUs' time that is taken from them now, in percent.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// Whether the guest cannot be slowed further.
    pub fn is_at_most(&self) -> bool {
        self.percent == self.most
    }

    /// The percentage from now on, 0 to the largest allowed. Call it at each sync.
    pub fn next(&mut self, load: &Load) -> u8 {
        let Some(ratio) = load.ratio() else {
            return self.percent;
        };
        let strained = ratio > STRAINED;
        let relaxed = ratio < RELAXED && self.percent > 0;
        if strained || relaxed {
            let speed = 1.0 - f64::from(self.percent) / 100.0;
            let factor = (AIM / ratio).min(FASTER);
            // Rounded to the slower side. Near 99 % one percent is half of the speed.
            let percent = (100.0 * (1.0 - speed * factor)).ceil().clamp(0.0, 99.0) as u8;
            self.percent = match strained {
                true => percent.max(self.percent),
                false => percent.min(self.percent),
            }
            .min(self.most);
        }
        self.percent
    }

    /// The throttle is over, whatever became of the migration. Returns the percentage to set: 0.
    pub fn end(&mut self) -> u8 {
        self.percent = 0;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::PassFacts;
    use crate::units::{Bytes, Pages};
    use proptest::prelude::*;
    use std::time::Duration;

    fn rates(dirty: f64, link: f64) -> Load {
        Load {
            dirty: Some(dirty),
            link: Some(link),
            pass: None,
        }
    }

    #[test]
    fn the_first_step_is_computed_from_dirty_rate_over_bandwidth() {
        // Dirty rate, bandwidth, percent.
        let table = [
            (0.0, 300.0, 0),
            (90.0, 300.0, 0),
            (160.0, 300.0, 0),
            (270.0, 300.0, 53),
            (450.0, 300.0, 72),
            (900.0, 300.0, 86),
            (1400.0, 300.0, 91),
            (1e6, 300.0, 99),
        ];
        for (dirty, link, percent) in table {
            let next = AutoConverge::default().next(&rates(dirty, link));
            assert_eq!(next, percent, "{dirty} over {link}");
        }
    }

    #[test]
    fn what_is_not_known_or_makes_no_sense_changes_nothing() {
        let mut throttle = AutoConverge::default();
        throttle.next(&rates(450.0, 300.0));
        for load in [
            Load::default(),
            rates(450.0, 0.0),
            rates(f64::NAN, 300.0),
            rates(-1.0, 300.0),
            rates(1.0, f64::INFINITY * 0.0),
            Load {
                pass: Some((0.0, 0.0)),
                ..Load::default()
            },
        ] {
            assert_eq!(throttle.next(&load), 72, "{load:?}");
        }
    }

    #[test]
    fn a_pass_that_leaves_what_it_sent_slows_the_guest_further_even_if_the_rates_look_low() {
        let mut throttle = AutoConverge::default();
        let load = Load {
            pass: Some((100.0, 95.0)),
            ..rates(10.0, 300.0)
        };
        let mut last = 0;
        for _ in 0..8 {
            let percent = throttle.next(&load);
            assert!(percent > last || percent == MOST, "{percent} after {last}");
            last = percent;
        }
        assert!(throttle.is_at_most());
    }

    #[test]
    fn the_guest_gets_its_speed_back_when_it_dirties_less() {
        let mut throttle = AutoConverge::default();
        assert_eq!(throttle.next(&rates(1400.0, 300.0)), 91);
        let mut steps = 0;
        while throttle.next(&rates(0.0, 300.0)) > 0 {
            steps += 1;
            assert!(steps < 8);
        }
    }

    #[test]
    fn the_first_pass_and_a_sync_in_the_middle_of_a_pass_are_no_passes() {
        let mut facts = Facts::default();
        (facts.remaining, facts.bandwidth) = (Bytes(90), Some(300.0));
        facts.dirty_rate = Some(1.0);
        let pass = |number| PassFacts {
            number,
            pages: Pages(1),
            data: Pages(1),
            time: Duration::from_secs(1),
        };
        facts.last_pass = Some(pass(1));
        assert_eq!(Load::of(&facts).pass, None);
        facts.last_pass = Some(pass(2));
        assert_eq!(Load::of(&facts).pass, Some((4096.0, 90.0)));
        facts.moment = Moment::Walking;
        assert_eq!(Load::of(&facts).pass, None);
        facts.cap = Some(200.0);
        assert_eq!(Load::of(&facts).link, Some(200.0));
        assert_eq!(Load::of(&facts).dirty, Some(4096.0));
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_ends_at_zero(
            most in 0u8..=200,
            loads in proptest::collection::vec((0.0f64..1e12, 0.0f64..1e12, any::<bool>()), 1..100),
        ) {
            let mut throttle = AutoConverge::new(most);
            for (a, b, pass) in loads {
                let load = match pass {
                    true => Load { pass: Some((a, b)), ..Load::default() },
                    false => rates(a, b),
                };
                let percent = throttle.next(&load);
                prop_assert!(percent <= most.min(MOST));
                prop_assert_eq!(percent, throttle.percent());
            }
            prop_assert_eq!(throttle.end(), 0);
            prop_assert_eq!(throttle.percent(), 0);
        }

        #[test]
        fn a_guest_that_dirties_more_is_slowed_at_least_as_much(
            link in 1e6f64..1e11, a in 0.0f64..100.0, b in 0.0f64..100.0,
        ) {
            let percent = |ratio: f64| AutoConverge::default().next(&rates(ratio * link, link));
            prop_assert!(percent(a.min(b)) <= percent(a.max(b)));
        }

        /// The guest's response to its speed is anything between none (its pages are written by a
        /// device) and proportional, with noise of 12 %. Then the throttle is raised and settles. It
        /// may turn once, because near 99 % one percent is half of the guest's speed.
        #[test]
        fn it_does_not_oscillate_on_a_steady_guest(
            ratio in 0.01f64..50.0,
            elasticity in 0.0f64..1.0,
            noise in proptest::collection::vec(-0.12f64..0.12, 100),
        ) {
            let mut throttle = AutoConverge::default();
            let (mut last, mut moves, mut turns, mut up) = (0, 0, 0, true);
            for noise in noise {
                let speed = 1.0 - f64::from(throttle.percent()) / 100.0;
                let dirty = ratio * speed.powf(elasticity) * (1.0 + noise);
                let percent = throttle.next(&rates(dirty, 1.0));
                if percent != last {
                    turns += u32::from((percent > last) != up);
                    up = percent > last;
                    moves += 1;
                }
                last = percent;
            }
            prop_assert!(turns <= 1, "{turns} turns");
            prop_assert!(moves <= 20, "still moving after {moves} steps");
        }

        /// When the guest's load changes, the throttle turns at most once.
        #[test]
        fn after_a_change_it_settles_without_turning_twice(
            before in 0.1f64..20.0, after in 0.01f64..20.0,
        ) {
            let mut throttle = AutoConverge::default();
            let mut turns = 0;
            let (mut last, mut direction) = (0i32, 0);
            for step in 0..60 {
                let ratio = if step < 20 { before } else { after };
                let speed = 1.0 - f64::from(throttle.percent()) / 100.0;
                let percent = i32::from(throttle.next(&rates(ratio * speed, 1.0)));
                let now = (percent - last).signum();
                if now != 0 && direction != 0 && now != direction {
                    turns += 1;
                }
                if now != 0 {
                    direction = now;
                }
                last = percent;
            }
            prop_assert!(turns <= 1, "{turns} turns");
        }
    }
}
