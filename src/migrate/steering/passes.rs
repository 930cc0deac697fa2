//! How often a pass may begin. Pure.
//!
//! A pass and its events cost little, and a pass of a few pages is over in microseconds. A decider
//! may always say to go on: when no page is dirty and it waits for something else, or when all
//! dirty pages are zero pages, which need no bandwidth. Without a limit such a migration would make
//! a hundred thousand passes a second.
//!
//! Passes that converge are not held up, because a wait gives the guest time to dirty more. So
//! [`AT_ONCE`] passes may follow one another without a wait. A rest that shrinks by a tenth with
//! each pass needs that many from a second down to a millisecond.

use std::time::Duration;

/// In the long run, one pass in this time.
const INTERVAL: Duration = Duration::from_millis(50);
/// Passes that may follow one another at once.
const AT_ONCE: u32 = 64;

/// Spaces passes.
#[derive(Debug, Default, Clone)]
pub(in crate::migrate) struct Passes {
    /// The time at which all passes so far are paid for, with one interval each.
    paid_at: Duration,
}

impl Passes {
    /// How long to wait from `now` before the next pass begins. `now` is of any clock that does not
    /// go back. `idle` means that there is nothing to send, so a wait loses nothing.
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

    /// The number of passes in ten seconds when each takes `time`.
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
        // Each pass is a tenth shorter than the one before, from a second down to a millisecond.
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
