//! A point in time at which a wait is given up. It is on the monotonic clock. Nothing waits in this
//! file.

use std::time::{Duration, Instant};

/// A moment on the monotonic clock, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// A deadline that never comes. It reads no clock.
    pub const fn never() -> Self {
        Deadline(None)
    }

    /// `duration` from now, or never if the clock does not go that far.
    pub fn after(duration: Duration) -> Self {
        Deadline(Instant::now().checked_add(duration))
    }

    /// The deadline at `instant`.
    pub const fn at(instant: Instant) -> Self {
        Deadline(Some(instant))
    }

    /// The time left: `None` for never, zero once the deadline has passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether the deadline has passed.
    pub fn expired(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// The earlier of the two.
    #[must_use]
    pub fn earlier(self, other: Deadline) -> Deadline {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Deadline(Some(a.min(b))),
            (a, b) => Deadline(a.or(b)),
        }
    }

    /// The deadline `by` later, or never if the clock does not go that far.
    #[must_use]
    pub fn later(self, by: Duration) -> Deadline {
        Deadline(self.0.and_then(|at| at.checked_add(by)))
    }

    /// The time left as poll(2) takes it, in milliseconds: -1 for never, at most `i32::MAX`. It is
    /// rounded up, because the last fraction would otherwise be a busy loop.
    pub fn poll_timeout_ms(self) -> i32 {
        self.remaining().map_or(-1, round_up_ms)
    }
}

fn round_up_ms(left: Duration) -> i32 {
    let ms = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(ms).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_does_not_expire_and_the_unreachable_is_never() {
        assert_eq!(Deadline::never().remaining(), None);
        assert!(!Deadline::never().expired());
        assert_eq!(Deadline::never().poll_timeout_ms(), -1);
        assert_eq!(Deadline::after(Duration::MAX), Deadline::never());
    }

    #[test]
    fn what_has_passed_has_nothing_left() {
        let past = Deadline::after(Duration::ZERO);
        assert!(past.expired());
        assert_eq!(past.remaining(), Some(Duration::ZERO));
        assert_eq!(past.poll_timeout_ms(), 0);
        let future = Deadline::after(Duration::from_secs(60));
        assert!(!future.expired());
        assert!(future.remaining().unwrap() > Duration::from_secs(50));
    }

    #[test]
    fn the_earlier_of_two_wins_and_never_always_loses() {
        let soon = Deadline::at(Instant::now());
        let late = Deadline::after(Duration::from_secs(60));
        assert_eq!(soon.earlier(late), soon);
        assert_eq!(late.earlier(soon), soon);
        assert_eq!(Deadline::never().earlier(late), late);
        assert_eq!(late.earlier(Deadline::never()), late);
    }

    #[test]
    fn milliseconds_round_up_and_saturate() {
        for (nanos, ms) in [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)] {
            assert_eq!(round_up_ms(Duration::from_nanos(nanos)), ms);
        }
        assert_eq!(round_up_ms(Duration::MAX), i32::MAX);
    }
}
