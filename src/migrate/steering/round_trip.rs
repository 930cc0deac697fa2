//! The round trip to the destination, from markers and their acknowledgements. Pure.
//!
//! A marker that follows pages is acknowledged when the pages are in memory. So its time is a round
//! trip and the time of everything before it: an upper bound. Only a marker with nothing on its way
//! measures the round trip. Such a marker is sent before a pause when the bound is no good.

use super::recent::Recent;
use std::time::Duration;

/// How many measurements are remembered.
const REMEMBERED: usize = 5;
/// A measurement is good for this long.
const FRESH: Duration = Duration::from_secs(1);
/// A bound that is lower than this is as good as a measurement.
const NEAR_ENOUGH: Duration = Duration::from_millis(1);
/// A round trip counts as certain after so many measurements.
const CERTAIN: usize = 3;

/// See the file's description.
#[derive(Debug, Default, Clone)]
pub(in crate::migrate) struct RoundTrip {
    measured: Recent<Duration, REMEMBERED>,
    /// When the last measurement was made.
    at: Option<Duration>,
}

impl RoundTrip {
    /// Records that at `now` a marker was acknowledged `took` after it was sent, with nothing else on
    /// its way. `now` is of any clock that does not go back.
    pub(in crate::migrate) fn measured(&mut self, now: Duration, took: Duration) {
        self.measured.push(took);
        self.at = Some(now);
    }

    /// Records that at `now` a marker behind pages was acknowledged `took` after it was sent.
    /// Returns whether the round trip has to be measured, because the bound is no good and no
    /// measurement is fresh.
    pub(in crate::migrate) fn at_most(&mut self, now: Duration, took: Duration) -> bool {
        if took <= NEAR_ENOUGH {
            self.measured(now, took);
            return false;
        }
        self.at.is_none_or(|at| now.saturating_sub(at) >= FRESH)
    }

    /// The median of the last measurements. `None` before the first.
    pub(in crate::migrate) fn estimate(&self) -> Option<Duration> {
        self.measured.median()
    }

    /// Whether enough measurements were made to rely on the estimate.
    pub(in crate::migrate) fn is_certain(&self) -> bool {
        self.measured.len() >= CERTAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_late_acknowledgement_does_not_change_the_round_trip() {
        let mut trip = RoundTrip::default();
        assert_eq!(trip.estimate(), None);
        for took in [100, 101, 900, 99, 102] {
            trip.measured(ms(0), ms(took));
        }
        assert_eq!(trip.estimate(), Some(ms(101)));
        assert!(trip.is_certain());
        // A changed route shows after a few.
        for _ in 0..3 {
            trip.measured(ms(0), ms(20));
        }
        assert_eq!(trip.estimate(), Some(ms(20)));
    }

    #[test]
    fn a_marker_behind_pages_asks_for_a_measurement_unless_there_is_a_fresh_one() {
        let mut trip = RoundTrip::default();
        assert!(
            trip.at_most(ms(500), ms(800)),
            "800 ms may be the pages' time"
        );
        trip.measured(ms(600), ms(100));
        assert!(!trip.at_most(ms(900), ms(800)));
        assert!(trip.at_most(ms(1700), ms(800)));
        assert_eq!(trip.estimate(), Some(ms(100)));
    }

    #[test]
    fn a_short_wait_is_the_measurement() {
        let mut trip = RoundTrip::default();
        let took = Duration::from_micros(300);
        assert!(!trip.at_most(ms(500), took));
        assert_eq!(trip.estimate(), Some(took));
        assert!(!trip.is_certain());
    }
}
