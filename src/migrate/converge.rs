//! When to switch over, when to go on, when to give up. Pure.
//!
//! A [`Decider`] is shown [`Facts`] and answers with a [`Decision`]. It is asked at two
//! moments: while a pass is being sent, whether to end it early with a sync, and right after
//! a sync, what to do next. Everything that steers a migration comes through here: the one
//! below knows a downtime limit and a total timeout; throttling the guest, deadlines and
//! forecasts answer through the same [`Decision`].

use crate::error::{Error, Kind};
use crate::units::{Bytes, Pages};
use std::time::Duration;

/// When the decider is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In the middle of a pass: what is dirty since the last sync is unknown.
    Walking,
    /// Right after a sync: `remaining` is all there is.
    Synced,
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// When this is.
    pub moment: Moment,
    /// Time since the migration started.
    pub elapsed: Duration,
    /// Time since the last sync ended (since the start, before the first).
    pub since_sync: Duration,
    /// The pass, from 1.
    pub pass: u32,
    /// All of the guest's memory.
    pub total: Bytes,
    /// What is pending.
    pub remaining: Bytes,
    /// Bytes a second that the link carries, as measured or as the user stated for the
    /// switchover; `None` before anything is known.
    pub bandwidth: Option<f64>,
    /// Pages a second that the guest dirtied between the last two syncs.
    pub dirty_rate: Option<f64>,
    /// How long the last sync took.
    pub sync_time: Duration,
    /// Bytes of device state to expect, 0 if unknown.
    pub state: Bytes,
}

impl Facts {
    /// The downtime if the switchover came now: the last sync, then what remains and the
    /// state at the link's rate. What the VMM's callbacks and the loading take comes on top
    /// and is not known beforehand.
    pub fn expected_downtime(&self) -> Option<Duration> {
        let bandwidth = self.bandwidth.filter(|b| *b > 0.0)?;
        let bytes = self.remaining.0.saturating_add(self.state.0) as f64;
        let sending = Duration::try_from_secs_f64(bytes / bandwidth).unwrap_or(Duration::MAX);
        Some(self.sync_time.saturating_add(sending))
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Send on.
    GoOn,
    /// End the pass with a sync: what is left of it could fit into the downtime.
    Sync,
    /// Stop the guest and switch over, expecting this downtime.
    SwitchOver {
        /// From pausing to running.
        expected: Duration,
    },
    /// It will not be done in time.
    GiveUp(Error),
}

/// A decision. More fields will join: how much to slow the guest, a forecast.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// What to do next.
    pub next: Next,
}

impl From<Next> for Decision {
    fn from(next: Next) -> Self {
        Decision { next }
    }
}

/// Steers a migration. Called on the migration's thread; must not block.
pub trait Decider: Send {
    /// What to do, given `facts`.
    fn decide(&mut self, facts: &Facts) -> Decision;
}

/// The first decider: *fits-downtime*. It switches over when what remains fits the downtime
/// limit at the measured bandwidth; otherwise the migration goes on until its total timeout,
/// and then ends with an error that says what was missing.
#[derive(Debug, Clone)]
pub struct FitsDowntime {
    limit: Duration,
    total: Option<Duration>,
}

/// A pass is not cut short by a sync until so many times the last sync's duration have
/// passed: syncing then takes at most a twentieth of the time.
const SYNC_SHARE: u32 = 20;

impl FitsDowntime {
    /// With a downtime limit and a limit for the whole migration.
    pub fn new(limit: Duration, total: Option<Duration>) -> Self {
        FitsDowntime { limit, total }
    }

    /// What to say when time is up.
    pub fn shortfall(&self, facts: &Facts) -> Error {
        let mb = |bytes: f64| bytes / 1e6;
        let remaining = mb(facts.remaining.0 as f64);
        let limit = self.limit.as_millis();
        let mut message = format!(
            "not converged within {:.1} s: {remaining:.1} MB remain after {} passes, ",
            facts.elapsed.as_secs_f64(),
            facts.pass,
        );
        match facts.bandwidth {
            Some(bandwidth) => {
                message += &format!(
                    "{:.1} MB fit the downtime limit of {limit} ms at {:.1} MB/s",
                    mb(bandwidth * self.limit.saturating_sub(facts.sync_time).as_secs_f64()),
                    mb(bandwidth)
                )
            }
            None => message += "too little was sent to know the bandwidth",
        }
        if let Some(rate) = facts.dirty_rate {
            let bytes = rate * Pages(1).bytes().0 as f64;
            message += &format!(
                "; the guest dirties {:.1} MB/s ({rate:.0} pages/s)",
                mb(bytes)
            );
            if facts.bandwidth.is_some_and(|b| b <= bytes) {
                message += ", which is more than the link carries";
            }
        } else {
            message += "; the first pass has not ended";
        }
        message += ". A longer timeout, a higher downtime limit, more bandwidth or a slower guest would do";
        Error::new(Kind::NotConverged, message)
    }
}

impl Decider for FitsDowntime {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let expected = facts.expected_downtime();
        let fits = expected.filter(|e| *e <= self.limit);
        let next = match (facts.moment, fits) {
            (Moment::Synced, Some(expected)) => Next::SwitchOver { expected },
            // An empty rest fits whatever the link does.
            (Moment::Synced, None) if facts.remaining.0 == 0 && expected.is_none() => {
                Next::SwitchOver {
                    expected: facts.sync_time,
                }
            }
            _ if self.total.is_some_and(|total| facts.elapsed >= total) => {
                Next::GiveUp(self.shortfall(facts))
            }
            (Moment::Walking, Some(_)) if facts.since_sync >= facts.sync_time * SYNC_SHARE => {
                Next::Sync
            }
            _ => Next::GoOn,
        };
        next.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            moment: Moment::Synced,
            elapsed: Duration::from_secs(2),
            since_sync: Duration::from_secs(1),
            pass: 3,
            total: Bytes(1 << 30),
            remaining: Bytes(100_000_000),
            bandwidth: Some(1e9),
            dirty_rate: Some(1000.0),
            sync_time: Duration::from_millis(10),
            state: Bytes(0),
        }
    }

    fn decide(facts: &Facts) -> Next {
        FitsDowntime::new(Duration::from_millis(300), Some(Duration::from_secs(60)))
            .decide(facts)
            .next
    }

    #[test]
    fn it_switches_over_exactly_when_the_rest_and_the_sync_fit_the_limit() {
        let fits = Facts {
            remaining: Bytes(290_000_000),
            ..facts()
        };
        assert!(
            matches!(decide(&fits), Next::SwitchOver { expected } if expected.as_millis() == 300)
        );
        let too_much = Facts {
            remaining: Bytes(291_000_000),
            ..facts()
        };
        assert_eq!(decide(&too_much), Next::GoOn);
        let slow_sync = Facts {
            sync_time: Duration::from_millis(250),
            ..facts()
        };
        assert_eq!(decide(&slow_sync), Next::GoOn);
        let much_state = Facts {
            state: Bytes(300_000_000),
            ..facts()
        };
        assert_eq!(decide(&much_state), Next::GoOn);
    }

    #[test]
    fn it_never_switches_over_in_the_middle_of_a_pass() {
        let walking = Facts {
            moment: Moment::Walking,
            ..facts()
        };
        assert_eq!(decide(&walking), Next::Sync);
        let just_synced = Facts {
            since_sync: Duration::from_millis(1),
            ..walking
        };
        assert_eq!(decide(&just_synced), Next::GoOn);
    }

    #[test]
    fn without_a_known_bandwidth_only_an_empty_rest_fits() {
        let unknown = Facts {
            bandwidth: None,
            ..facts()
        };
        assert_eq!(decide(&unknown), Next::GoOn);
        let empty = Facts {
            remaining: Bytes(0),
            ..unknown
        };
        assert!(matches!(decide(&empty), Next::SwitchOver { .. }));
    }

    #[test]
    fn when_time_is_up_it_says_dirty_rate_and_bandwidth() {
        let late = Facts {
            elapsed: Duration::from_secs(60),
            remaining: Bytes(900_000_000),
            dirty_rate: Some(400_000.0),
            ..facts()
        };
        let Next::GiveUp(error) = decide(&late) else {
            panic!("expected to give up");
        };
        assert_eq!(error.kind(), Kind::NotConverged);
        for needed in [
            "1638.4 MB/s",
            "400000 pages/s",
            "1000.0 MB/s",
            "900.0 MB remain",
            "more than the link",
        ] {
            assert!(error.message().contains(needed), "{needed} in: {error}");
        }
        // Time up and yet it fits: done is better than given up.
        let fits = Facts {
            elapsed: Duration::from_secs(61),
            ..facts()
        };
        assert!(matches!(decide(&fits), Next::SwitchOver { .. }));
    }

    /// A guest of 64 GiB against a link, in simulated time: no machine here has either.
    #[test]
    fn in_simulation_it_converges_below_the_link_and_gives_up_above() {
        let run = |dirty_bytes: f64, working_set: f64| {
            let (total, bandwidth) = (64e9, 1.25e9);
            let mut decider =
                FitsDowntime::new(Duration::from_millis(300), Some(Duration::from_secs(600)));
            let (mut elapsed, mut remaining, mut pass) = (0.0, total, 1);
            loop {
                let sending = remaining / bandwidth;
                elapsed += sending;
                remaining = (dirty_bytes * sending).min(working_set);
                pass += 1;
                let facts = Facts {
                    moment: Moment::Synced,
                    elapsed: Duration::from_secs_f64(elapsed),
                    since_sync: Duration::from_secs_f64(sending),
                    pass,
                    total: Bytes(total as u64),
                    remaining: Bytes(remaining as u64),
                    bandwidth: Some(bandwidth),
                    dirty_rate: Some(dirty_bytes / 4096.0),
                    sync_time: Duration::from_millis(20),
                    state: Bytes(1 << 20),
                };
                match decider.decide(&facts).next {
                    Next::SwitchOver { expected } => return Ok(expected),
                    Next::GiveUp(e) => return Err(e),
                    _ => {}
                }
            }
        };
        assert!(run(0.5e9, 32e9).unwrap() <= Duration::from_millis(300));
        assert!(
            run(5e9, 0.2e9).is_ok(),
            "a small working set fits however fast it is dirtied"
        );
        assert!(run(1.5e9, 32e9).is_err());
    }
}
