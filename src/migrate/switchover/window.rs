//! How long a hand-over may take: the limit that both sides count, each by its own clock.
//!
//! Pure: times come from the caller and are of a clock that goes on while the host sleeps
//! ([`crate::sys::clock::boottime`]). A clock that stood still meanwhile would let a
//! destination that was asleep believe that the hand-over came in time.

use std::time::Duration;

/// This long after the limit the destination has begun to run the guest, or never will. The margin
/// covers the time between the destination's look at the clock and its call of `run`, and the drift
/// of the two clocks (an hour at 100 parts in a million is 0.36 s).
pub const MARGIN: Duration = Duration::from_secs(1);

/// The time in which a hand-over counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    opened: Duration,
    limit: Duration,
}

impl Window {
    /// A window that begins `now` and is `limit` long.
    pub fn new(now: Duration, limit: Duration) -> Self {
        Window { opened: now, limit }
    }

    /// The length of the window.
    pub fn limit(self) -> Duration {
        self.limit
    }

    /// The time left in the window; zero when it is over.
    pub fn left(self, now: Duration) -> Duration {
        self.opened.saturating_add(self.limit).saturating_sub(now)
    }

    /// Whether a hand-over counts that is sent now, or acted on now.
    pub fn is_open(self, now: Duration) -> bool {
        !self.left(now).is_zero()
    }

    /// Source: how long until the destination has decided for certain; zero when it has.
    pub fn until_decided(self, now: Duration) -> Duration {
        let certain = self
            .opened
            .saturating_add(self.limit)
            .saturating_add(MARGIN);
        certain.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_window_closes_at_its_limit_and_the_doubt_ends_a_margin_later() {
        let window = Window::new(100 * S, 30 * S);
        assert!(window.is_open(100 * S));
        assert_eq!(window.left(110 * S), 20 * S);
        assert!(window.is_open(130 * S - Duration::from_nanos(1)));
        assert!(!window.is_open(130 * S));
        assert!(!window.is_open(1000 * S));
        assert_eq!(window.until_decided(130 * S), MARGIN);
        assert_eq!(window.until_decided(130 * S + MARGIN), Duration::ZERO);
        assert_eq!(window.until_decided(Duration::MAX), Duration::ZERO);
    }

    #[test]
    fn a_destination_that_counts_from_earlier_closes_before_the_source_does() {
        let ready_sent = 7 * S;
        let ready_received = ready_sent + Duration::from_nanos(1);
        let (destination, source) = (Window::new(ready_sent, S), Window::new(ready_received, S));
        let closes = ready_sent + S;
        assert!(!destination.is_open(closes) && source.is_open(closes));
    }
}
