//! A downtime limit that rises up to a ceiling while the migration makes no progress. Pure.
//!
//! Example: 50 ms are wanted and 400 ms are acceptable. The rest takes 180 ms and passes do not
//! shrink it. The limit rises to 75, 113, 169 and 253 ms, one step for each such pass, and then the
//! rest fits. A guest that would have fitted 75 ms after the first step has not stood still for 400.

use std::time::Duration;

/// Each step multiplies the limit by this.
const STEP: f64 = 1.5;
/// A limit of zero begins to rise here.
const FIRST: Duration = Duration::from_millis(1);

/// The downtime limit. See the file's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RisingLimit {
    limit: Duration,
    ceiling: Duration,
}

impl RisingLimit {
    /// A limit that begins at `limit`. A `ceiling` below it means that it never rises.
    pub fn new(limit: Duration, ceiling: Duration) -> Self {
        RisingLimit {
            limit,
            ceiling: ceiling.max(limit),
        }
    }

    /// The limit now.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether the limit cannot rise further.
    pub fn is_at_ceiling(&self) -> bool {
        self.limit == self.ceiling
    }

    /// Raises the limit to `time`, when that is not above the ceiling. Returns whether it covers `time`
    /// then.
    pub fn rise_to(&mut self, time: Duration) -> bool {
        let covers = time <= self.ceiling;
        if covers {
            self.limit = self.limit.max(time);
        }
        covers
    }

    /// Records the end of a pass: `shrank` says whether it left clearly less than it sent. Returns
    /// the limit from now on.
    pub fn pass_ended(&mut self, shrank: bool) -> Duration {
        if !shrank {
            let next = Duration::try_from_secs_f64(self.limit.as_secs_f64() * STEP);
            self.limit = next.unwrap_or(self.ceiling).max(FIRST).min(self.ceiling);
        }
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_limit_rises_with_each_pass_that_does_not_shrink_the_rest() {
        let mut rising = RisingLimit::new(ms(40), ms(100));
        assert_eq!(rising.limit(), ms(40));
        assert_eq!(rising.pass_ended(true), ms(40));
        assert_eq!(rising.pass_ended(false), ms(60));
        assert_eq!(rising.pass_ended(false), ms(90));
        assert_eq!(rising.pass_ended(true), ms(90));
        assert_eq!(rising.pass_ended(false), ms(100));
        assert!(rising.is_at_ceiling());
        assert_eq!(rising.pass_ended(false), ms(100));
    }

    #[test]
    fn it_rises_to_a_time_that_the_ceiling_allows_and_to_no_other() {
        let mut rising = RisingLimit::new(ms(40), ms(100));
        assert!(rising.rise_to(ms(30)) && rising.limit() == ms(40));
        assert!(rising.rise_to(ms(75)) && rising.limit() == ms(75));
        assert!(!rising.rise_to(ms(101)) && rising.limit() == ms(75));
    }

    #[test]
    fn without_room_below_the_ceiling_it_never_rises() {
        let mut rising = RisingLimit::new(ms(300), ms(100));
        assert_eq!(rising.pass_ended(false), ms(300));
        let mut rising = RisingLimit::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(rising.pass_ended(false), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn it_never_falls_never_exceeds_the_ceiling_and_reaches_it(
            from in 0u64..100_000, ceiling in 0u64..1_000_000, shrank in any::<[bool; 32]>(),
        ) {
            let mut rising = RisingLimit::new(ms(from), ms(ceiling));
            let mut last = rising.limit();
            for shrank in shrank {
                let limit = rising.pass_ended(shrank);
                prop_assert!(limit >= last && limit <= ms(ceiling.max(from)));
                last = limit;
            }
            for _ in 0..60 {
                rising.pass_ended(false);
            }
            prop_assert_eq!(rising.limit(), ms(ceiling.max(from)));
        }
    }
}
