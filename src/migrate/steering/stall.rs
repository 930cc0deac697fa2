//! Whether a migration makes no progress, why, and when to end it then. Pure.
//!
//! Example: a guest writes a log for three seconds and rests for one. Passes leave 400, 380, 410,
//! 120, 390 and 400 MB. No limit will ever fit 10 MB, so the migration has stalled. If it has to
//! end now, it should end after a pass that leaves 120 MB.
//!
//! **Progress is a new lowest rest.** A pass that leaves less than every pass before it is progress.
//! When no pass was progress for a set time, the migration has stalled. Only the ends of passes
//! count: in the middle of a pass, what the guest has written since the last sync is not known.
//!
//! **A local minimum is a rest close to the lowest of the last passes.** It is better than what has
//! just been seen, and waiting for a better one may take for ever.

use std::time::Duration;

/// A rest must be this share of the lowest one to be progress.
const PROGRESS: f64 = 0.95;
/// The number of passes whose rests are remembered.
const REMEMBERED: usize = 8;
/// A rest of this many times the lowest remembered one is as good.
const AS_GOOD: f64 = 1.05;
/// So many passes have to be seen before one of them is a local minimum.
const SEEN: usize = 3;
/// After so many passes without a local minimum, a rest not above the average is taken.
const LONG: u32 = 16;
/// A link that carries less than this share of the best has become slow.
const SLOW: f64 = 0.5;

/// The end of a pass, as the detector sees it.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct PassEnd {
    /// Time since the migration began.
    pub at: Duration,
    /// Bytes pending after the sync.
    pub left: f64,
    /// Bytes a second that the link carried in this pass; 0 when nothing got through.
    pub link: f64,
    /// Bytes a second that the guest dirties.
    pub dirty: f64,
    /// The share of the pass's time in which everything was sent and the destination's
    /// acknowledgement was awaited, 0 to 1.
    pub waited: f64,
    /// Whether a throttle is in force that cannot slow the guest further.
    pub slowed_most: bool,
}

/// Why a migration has stalled. The numbers are part of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum Cause {
    /// The link carries less than half of what it did.
    Link = 1,
    /// The destination takes the time: the source waits for its acknowledgements.
    Destination = 2,
    /// The guest cannot be slowed further and still dirties too much.
    Throttled = 3,
    /// The guest dirties as much as the link carries.
    Dirtying = 4,
}

impl Cause {
    /// The cause in words.
    pub(in crate::migrate) fn describe(self) -> &'static str {
        match self {
            Cause::Link => "the link carries less than half of what it did",
            Cause::Destination => "the destination takes the time to acknowledge pages",
            Cause::Throttled => {
                "the guest cannot be slowed further, and dirties as much as the link carries"
            }
            Cause::Dirtying => "the guest dirties as much as the link carries",
        }
    }
}

/// A migration that makes no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled {
    /// The end of the last pass that was progress, as a time since the migration began.
    pub since: Duration,
    /// Why.
    pub cause: Cause,
}

/// Finds out whether a migration has stalled. See the file's description.
#[derive(Debug, Clone, PartialEq)]
pub struct StallDetector {
    patience: Duration,
    /// The lowest rest, and when it was found.
    best: Option<(f64, Duration)>,
    best_link: f64,
    /// The rests of the last passes, the newest last.
    rests: Vec<f64>,
    /// Passes since the stall began.
    passes: u32,
    told: Option<Stalled>,
}

impl StallDetector {
    /// A detector that calls a migration stalled after `patience` without progress.
    pub fn new(patience: Duration) -> Self {
        StallDetector {
            patience,
            best: None,
            best_link: 0.0,
            rests: Vec::with_capacity(REMEMBERED),
            passes: 0,
            told: None,
        }
    }

    /// Records the end of a pass. Returns the stall when it begins and when its cause changes.
    pub fn pass_ended(&mut self, end: &PassEnd) -> Option<Stalled> {
        if self.rests.len() == REMEMBERED {
            self.rests.remove(0);
        }
        self.rests.push(end.left);
        self.best_link = self.best_link.max(end.link);
        let progress = self.best.is_none_or(|(left, _)| end.left < left * PROGRESS);
        if progress {
            self.best = Some((end.left, end.at));
            (self.passes, self.told) = (0, None);
            return None;
        }
        let (_, since) = self.best?;
        if end.at.saturating_sub(since) < self.patience {
            return None;
        }
        self.passes += 1;
        let now = Stalled {
            since,
            cause: self.cause(end),
        };
        let news = self.told != Some(now);
        self.told = Some(now);
        news.then_some(now)
    }

    /// The stall that the migration is in.
    pub fn stalled(&self) -> Option<Stalled> {
        self.told
    }

    /// Whether the rest after the last pass is as low as it gets: a migration that has stalled and
    /// has to end should end now.
    pub fn is_local_minimum(&self) -> bool {
        let Some((now, before)) = self.rests.split_last() else {
            return false;
        };
        if before.len() + 1 < SEEN {
            return false;
        }
        let lowest = before.iter().copied().fold(f64::INFINITY, f64::min);
        let average = before.iter().sum::<f64>() / before.len() as f64;
        *now <= lowest * AS_GOOD || (self.passes > LONG && *now <= average)
    }

    /// The order matters: a slow destination also makes the link look slow, and a slow link makes a
    /// guest look busy.
    fn cause(&self, end: &PassEnd) -> Cause {
        if end.waited > 0.5 {
            Cause::Destination
        } else if end.link < self.best_link * SLOW {
            Cause::Link
        } else if end.slowed_most {
            Cause::Throttled
        } else {
            Cause::Dirtying
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn end(second: u64, left: f64) -> PassEnd {
        PassEnd {
            at: Duration::from_secs(second),
            left,
            link: 100.0,
            dirty: 90.0,
            ..PassEnd::default()
        }
    }

    fn after(rests: &[f64]) -> StallDetector {
        let mut detector = StallDetector::new(PATIENCE);
        for (second, left) in (1..).zip(rests) {
            detector.pass_ended(&end(second, *left));
        }
        detector
    }

    #[test]
    fn no_progress_for_the_set_time_is_told_once_with_its_beginning() {
        let mut detector = StallDetector::new(PATIENCE);
        let mut told = Vec::new();
        for second in 1..=20 {
            let left = if second < 4 {
                1000.0 / second as f64
            } else {
                400.0
            };
            told.extend(detector.pass_ended(&end(second, left)).map(|s| (second, s)));
        }
        let stalled = Stalled {
            since: Duration::from_secs(3),
            cause: Cause::Dirtying,
        };
        assert_eq!(told, [(8, stalled)]);
        assert_eq!(detector.stalled(), Some(stalled));
        // A new lowest rest ends the stall.
        detector.pass_ended(&end(21, 100.0));
        assert_eq!(detector.stalled(), None);
    }

    #[test]
    fn a_migration_that_shrinks_never_stalls_however_slowly() {
        let mut detector = StallDetector::new(PATIENCE);
        let mut left = 1e12;
        for second in 1..200 {
            assert_eq!(detector.pass_ended(&end(second * 4, left)), None);
            left *= 0.9;
        }
    }

    #[test]
    fn the_cause_is_named() {
        let normal = end(20, 100.0);
        let table = [
            (normal, Cause::Dirtying),
            (
                PassEnd {
                    link: 40.0,
                    ..normal
                },
                Cause::Link,
            ),
            (
                PassEnd {
                    link: 0.0,
                    ..normal
                },
                Cause::Link,
            ),
            (
                PassEnd {
                    waited: 0.7,
                    ..normal
                },
                Cause::Destination,
            ),
            // The destination is slow, so the link looks slow.
            (
                PassEnd {
                    waited: 0.7,
                    link: 10.0,
                    ..normal
                },
                Cause::Destination,
            ),
            (
                PassEnd {
                    slowed_most: true,
                    ..normal
                },
                Cause::Throttled,
            ),
            (
                PassEnd {
                    slowed_most: true,
                    link: 10.0,
                    ..normal
                },
                Cause::Link,
            ),
        ];
        for (end, cause) in table {
            let told = after(&[100.0, 100.0]).pass_ended(&end);
            assert_eq!(told.map(|s| s.cause), Some(cause), "{end:?}");
        }
        // A cause that changes is news.
        let mut detector = after(&[100.0, 100.0]);
        assert!(detector.pass_ended(&normal).is_some());
        assert!(detector.pass_ended(&normal).is_none());
        let slow = PassEnd {
            link: 10.0,
            ..normal
        };
        assert_eq!(
            detector.pass_ended(&slow).map(|s| s.cause),
            Some(Cause::Link)
        );
    }

    #[test]
    fn a_local_minimum_is_a_rest_like_the_lowest_of_the_last_passes() {
        let rests = [400.0, 380.0, 410.0, 120.0, 390.0, 400.0, 395.0];
        assert!(!after(&rests).is_local_minimum());
        let again = [&rests[..], &[123.0]].concat();
        assert!(after(&again).is_local_minimum());
        assert!(
            !after(&[400.0, 100.0]).is_local_minimum(),
            "too few passes were seen"
        );
        assert!(after(&[400.0, 400.0, 400.0]).is_local_minimum());
        assert!(!StallDetector::new(PATIENCE).is_local_minimum());
    }

    proptest! {
        /// Whatever the rests are, a stalled migration comes to a local minimum.
        #[test]
        fn a_local_minimum_comes(rests in proptest::collection::vec(1.0f64..1e12, 8)) {
            let mut detector = StallDetector::new(PATIENCE);
            let mut waited = 0;
            // The same rests again and again.
            for (second, left) in (1..).zip(rests.iter().cycle()) {
                detector.pass_ended(&end(second, *left));
                if detector.stalled().is_some() && detector.is_local_minimum() {
                    break;
                }
                waited += 1;
                prop_assert!(waited < 60);
            }
        }
    }
}
