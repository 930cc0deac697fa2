//! [`Policy`]: what a VMM wishes to be done about a migration that does not converge, and in which range
//! each wish is. What comes of it in a migration is decided by [`Policies`](super::policies::Policies).
//! Pure.

use super::throttle::MOST;
use crate::error::{Error, Kind, Result};
use std::time::Duration;

/// How a guest is slowed that dirties too much.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slowing {
    /// It is not slowed.
    #[default]
    Off,
    /// All vCPUs by the same percentage.
    AutoConverge,
    /// Only vCPUs that dirty, by a limit on the pages that each may write. Needs a log that tells
    /// vCPUs apart.
    DirtyLimit,
}

/// What happens to a migration that has not converged by its deadline.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDeadline {
    /// It fails, and the guest runs on at the source.
    #[default]
    Cancel,
    /// It goes on until it converges.
    CarryOn,
    /// The guest is paused so early that everything is sent by the deadline, however long it stands
    /// still. A migration that has stalled does not wait for the deadline.
    PauseToFinish,
    /// The guest runs on at the destination, and the pages that it lacks there follow it (postcopy). A
    /// migration that has stalled, or whose downtime limit cannot be kept, does not wait for the deadline.
    /// When the guest would stand still for longer than the limit even so, the migration fails.
    Postcopy,
}

/// A policy. It may be replaced while a migration runs. Fields may be added in later versions: name
/// the fields that you set, and take the others from [`Policy::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How the guest is slowed. It is not, by default.
    pub slowing: Slowing,
    /// The most by which a vCPU is slowed, 1 to 99 percent of its time; 99. Limits on the pages that
    /// a vCPU may write have no such bound where dirty rings keep them.
    pub throttle_max: u8,
    /// The ceiling up to which the downtime limit rises: from the limit to 1 h. `None`: the limit
    /// does not rise.
    pub ceiling: Option<Duration>,
    /// The time for the whole migration, counted from its start: 1 ms to 30 days, and no longer than
    /// the total timeout. `None`: there is no deadline.
    pub deadline: Option<Duration>,
    /// What happens at the deadline. The migration is cancelled, by default.
    pub on_deadline: OnDeadline,
    /// A migration without progress for this long has stalled, and so has one in which nothing moves
    /// for so long in the middle of a pass: 1 ms to 1 day; 10 s.
    pub patience: Duration,
    /// The time between two syncs in a long pass, 100 ms to 1 h; 2 s. Only a policy that slows the
    /// guest syncs in the middle of a pass, and not while dirty rings keep limits: then it reads every
    /// so often what each vCPU has written.
    pub sync: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            slowing: Slowing::Off,
            throttle_max: MOST,
            ceiling: None,
            deadline: None,
            on_deadline: OnDeadline::Cancel,
            patience: Duration::from_secs(10),
            sync: Duration::from_secs(2),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Policy {
    /// Refuses a field that is out of its range, for a migration that begins with the downtime limit
    /// `limit`: [`Kind::Invalid`] with the range.
    pub fn check(&self, limit: Duration) -> Result<()> {
        let invalid = |message: String| Err(Error::new(Kind::Invalid, message));
        if !(1..=MOST).contains(&self.throttle_max) {
            return invalid(format!(
                "the largest throttle is {} percent; it can be 1 to {MOST}",
                self.throttle_max
            ));
        }
        let times = [
            (
                "the ceiling of the downtime limit",
                self.ceiling,
                limit,
                HOUR,
            ),
            (
                "the deadline",
                self.deadline,
                Duration::from_millis(1),
                DAY * 30,
            ),
            (
                "the time without progress that makes a stall",
                Some(self.patience),
                Duration::from_millis(1),
                DAY,
            ),
            (
                "the time between two background syncs",
                Some(self.sync),
                Duration::from_millis(100),
                HOUR,
            ),
        ];
        for (name, time, least, most) in times {
            let Some(time) = time.filter(|time| !(least..=most).contains(time)) else {
                continue;
            };
            return invalid(format!(
                "{name} is {} ms; it can be {} to {} ms",
                time.as_millis(),
                least.as_millis(),
                most.as_millis()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_outside_its_limits_is_refused_with_the_range() {
        let d = Policy::default;
        let (ms, secs) = (Duration::from_millis, Duration::from_secs);
        let throttle_max = |throttle_max| Policy {
            throttle_max,
            ..d()
        };
        let ceiling = |ceiling| Policy {
            ceiling: Some(ceiling),
            ..d()
        };
        let deadline = |deadline| Policy {
            deadline: Some(deadline),
            ..d()
        };
        let patience = |patience| Policy { patience, ..d() };
        let sync = |sync| Policy { sync, ..d() };
        let table = [
            (throttle_max(0), "throttle is 0 percent; it can be 1 to 99"),
            (
                throttle_max(100),
                "throttle is 100 percent; it can be 1 to 99",
            ),
            (
                ceiling(ms(10)),
                "limit is 10 ms; it can be 300 to 3600000 ms",
            ),
            (ceiling(secs(3601)), "it can be 300 to 3600000 ms"),
            (
                deadline(ms(0)),
                "the deadline is 0 ms; it can be 1 to 2592000000",
            ),
            (deadline(secs(1 << 40)), "it can be 1 to 2592000000 ms"),
            (
                patience(ms(0)),
                "a stall is 0 ms; it can be 1 to 86400000 ms",
            ),
            (patience(Duration::MAX), "it can be 1 to 86400000 ms"),
            (
                sync(ms(99)),
                "background syncs is 99 ms; it can be 100 to 3600000 ms",
            ),
            (sync(Duration::MAX), "it can be 100 to 3600000 ms"),
        ];
        for (policy, range) in table {
            let error = policy.check(Duration::from_millis(300)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(range), "{error}");
        }
    }
}
