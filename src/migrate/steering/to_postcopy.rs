//! How long the guest stands still at a switch to postcopy, and whether that keeps the downtime limit.
//! Pure.
//!
//! The pages that remain are not sent in the downtime; their description is. The destination then throws
//! away what it has of them. Example: 16 GiB of guest memory, of which 1 % is dirty page by page. The
//! description has some 100 KB, and the destination discards 42,000 pages one by one, which takes 84 ms.
//! A terabyte like that would take 5 s. So a switch is judged before the guest is paused.
//!
//! The costs are those of the slowest way: private memory. They were measured on the machine that this was
//! built on, in microseconds: 2.0 for a discard of one page of 4 KiB, most of which is the call, and 0.1
//! for each further page of a run.

use super::budget::{millis, Parts};
use crate::units::Pages;
use std::time::Duration;

/// Of each run that is discarded.
const DISCARD_RUN: Duration = Duration::from_nanos(2000);
/// Of each page of a run.
const DISCARD_PAGE: Duration = Duration::from_nanos(100);
/// Bytes of a description for each run of pages: two numbers, of which one may have two bytes.
const RUN_BYTES: f64 = 2.5;
/// Bytes of a record around them, for a gibibyte.
const PIECE_BYTES: f64 = 50.0;

/// What is known about a switch that may come now.
#[derive(Debug, Default, Clone, Copy)]
pub struct Switch {
    /// All of the guest's memory.
    pub total: Pages,
    /// Pages that are missing at the destination.
    pub missing: Pages,
    /// Runs of neighbours among them.
    pub runs: u64,
    /// Pages that were sent so far: the destination has no more to throw away.
    pub sent: Pages,
    /// Bytes a second that the link carries, if known.
    pub bandwidth: Option<f64>,
    /// The parts that every switchover has: operations, state, syncs and round trips.
    pub fixed: Parts,
    /// How long the guest has stood still already.
    pub stood: Duration,
}

/// The parts of a switch to postcopy.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Sending the description.
    pub description: Duration,
    /// Discarding stale pages.
    pub discards: Duration,
    /// All else.
    pub rest: Duration,
}

impl Cost {
    /// All parts together.
    pub fn total(&self) -> Duration {
        let own = self.description.saturating_add(self.discards);
        own.saturating_add(self.rest)
    }

    /// The error's words for a switch that takes too long.
    pub fn too_long(&self, limit: Duration) -> String {
        format!(
            "a switch to postcopy would let the guest stand still for {}, longer than the downtime limit \
             of {}: the description of the missing pages {}, discarding stale ones {}, all else {}",
            millis(self.total()),
            millis(limit),
            millis(self.description),
            millis(self.discards),
            millis(self.rest)
        )
    }
}

impl Switch {
    /// Bytes of the description.
    pub fn description_bytes(&self) -> u64 {
        let bits = self.total.0 as f64 / 8.0;
        let pieces = (self.total.0 as f64 / f64::from(1 << 18)).ceil();
        ((self.runs as f64 * RUN_BYTES).min(bits) + pieces * PIECE_BYTES) as u64
    }

    /// What the switch costs.
    pub fn cost(&self) -> Cost {
        let stale = self.missing.0.min(self.sent.0);
        let runs = self.runs.min(stale);
        let times = |each: Duration, count: u64| each.as_secs_f64() * count as f64;
        let discards = times(DISCARD_RUN, runs) + times(DISCARD_PAGE, stale);
        let link = self.bandwidth.filter(|link| *link > 0.0);
        let description = link.map_or(0.0, |link| self.description_bytes() as f64 / link);
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Cost {
            description: time(description),
            discards: time(discards),
            rest: self.fixed.total().saturating_add(self.stood),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 18;

    #[test]
    fn scattered_pages_cost_a_discard_each_and_neighbours_one_together() {
        let sixteen = Switch {
            total: Pages(16 * GIB),
            missing: Pages(42_000),
            runs: 42_000,
            sent: Pages(16 * GIB),
            bandwidth: Some(1e9),
            ..Switch::default()
        };
        let cost = sixteen.cost();
        assert!((80..100).contains(&cost.discards.as_millis()), "{cost:?}");
        assert!(cost.description < Duration::from_millis(1), "{cost:?}");
        let together = Switch {
            runs: 20,
            ..sixteen
        };
        assert!(together.cost().total() < cost.total() / 10);
    }

    #[test]
    fn a_destination_that_has_nothing_yet_has_nothing_to_throw_away() {
        let nothing = Switch {
            total: Pages(16 * GIB),
            missing: Pages(16 * GIB),
            runs: 1,
            bandwidth: None,
            ..Switch::default()
        };
        assert_eq!(nothing.cost().total(), Duration::ZERO);
        let some = Switch {
            sent: Pages(1000),
            ..nothing
        };
        assert!(some.cost().total() < Duration::from_millis(1));
    }

    #[test]
    fn the_whole_downtime_counts_and_is_told_part_by_part() {
        let switch = Switch {
            total: Pages(GIB),
            missing: Pages(1000),
            runs: 1000,
            sent: Pages(GIB),
            bandwidth: Some(1e5),
            fixed: Parts {
                load: Duration::from_millis(40),
                ..Parts::default()
            },
            stood: Duration::from_millis(2),
        };
        let cost = switch.cost();
        assert_eq!(cost.rest, Duration::from_millis(42));
        // 2,550 bytes at 100 kB/s.
        assert_eq!(cost.description.as_millis(), 25);
        let text = cost.too_long(Duration::from_millis(30));
        assert!(
            text.contains("69.6 ms") && text.contains("30.0 ms"),
            "{text}"
        );
    }

    #[test]
    fn a_description_is_never_longer_than_a_bit_for_each_page() {
        let half = Switch {
            total: Pages(24 << 28),
            missing: Pages(12 << 28),
            runs: 12 << 28,
            ..Switch::default()
        };
        assert!(half.description_bytes() < (24 << 28) / 8 + 24 * 1024 * 51);
    }
}
