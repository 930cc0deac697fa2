//! How often a pass may begin. Pure.
//!
//! A pass and its events cost little, and a pass of a few pages is over in microseconds. Where
//! the decider only ever says to go on (nothing is dirty and something else is awaited, or all
//! that is dirty is zero pages, which need no bandwidth), nothing else would keep a migration
//! from a hundred thousand passes a second.
//!
//! Passes that converge are not held up: a wait gives the guest time to dirty more, so those
//! that follow one another closely are let go, as many as a rest that shrinks by a tenth needs
//! from a second to a millisecond.

use std::time::Duration;

/// In the long run, one pass in this time.
const INTERVAL: Duration = Duration::from_millis(50);
/// Passes that may follow one another at once.
const AT_ONCE: u32 = 64;

/// Spaces passes.
#[derive(Debug, Default, Clone)]
pub(in crate::migrate) struct Passes {
    /// When all passes so far are paid for, an interval each.
    paid_at: Duration,
}

impl Passes {
    /// How long to wait, from `now` (any clock that does not go back), before the next pass
    /// begins. `idle`: there is nothing to send, so nothing is lost by waiting.
    pub(in crate::migrate) fn next(&mut self, now: Duration, idle: bool) -> Duration {
        self.paid_at = self.paid_at.max(now) + INTERVAL;
        if idle {
            return INTERVAL;
        }
        self.paid_at
            .saturating_sub(now)
            .saturating_sub(INTERVAL * AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes of `time` each in ten seconds.
    fn passes(time: Duration, idle: bool) -> u32 {
        let (mut passes, mut limit, mut now) = (0, Passes::default(), Duration::ZERO);
        while now < Duration::from_secs(10) {
            now += limit.next(now, idle) + time;
            passes += 1;
        }
        passes
    }

    #[test]
    fn passes_are_limited_in_rate_and_long_ones_never_wait() {
        let table = [
            (Duration::from_micros(13), false, 264..=266),
            (Duration::from_micros(13), true, 200..=201),
            (Duration::from_millis(20), false, 264..=266),
            (Duration::from_millis(50), false, 200..=200),
            (Duration::from_millis(100), false, 100..=100),
        ];
        for (time, idle, expected) in table {
            let passes = passes(time, idle);
            assert!(expected.contains(&passes), "{time:?}, {idle}: {passes}");
        }
    }

    #[test]
    fn passes_that_converge_follow_one_another_at_once() {
        // Each a tenth shorter than the one before, from a second down to a millisecond.
        let (mut limit, mut now) = (Passes::default(), Duration::ZERO);
        let mut time = Duration::from_secs(1);
        while time > Duration::from_millis(1) {
            let wait = limit.next(now, false);
            assert_eq!(wait, Duration::ZERO, "before a pass of {time:?}");
            now += time;
            time = time * 9 / 10;
        }
    }
}
