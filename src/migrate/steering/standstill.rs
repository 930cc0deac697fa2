//! Whether nothing moves in the middle of a pass, and why. Pure.
//!
//! Example: a cable is pulled while a terabyte is sent. The pass does not end for hours, so the
//! detector that judges passes ([`stall`](super::stall)) is not asked. But no byte moves, and the
//! migration's thread waits for its peer. When that has lasted for the policy's patience, the
//! migration stands still.
//!
//! **A standstill is told once.** It lasts until a byte moves, and has the time of the last byte for
//! a name. After that byte another standstill may begin, with another name.
//!
//! **The cause.** While the peer's host does not have all that was sent, the link stands still. When
//! it has all of it and acknowledges nothing, the destination does. Where many connections are
//! waited for, nobody knows which, and the link is named.

use super::stall::Cause;
use std::time::Duration;

/// Whether a migration stands still. See the file's description.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Standstill {
    /// The standstill that was told, by the time of its last byte, and its cause.
    told: Option<(Duration, Cause)>,
}

impl Standstill {
    /// Judges a wait in which no byte has moved for `still`, the last one at `moved_at` of any clock
    /// that does not go back. `held`: how many sent bytes the peer's host does not have, where that
    /// is known. Returns the cause of a standstill that was not told.
    pub fn judge(
        &self,
        still: Duration,
        moved_at: Duration,
        held: Option<u64>,
        patience: Duration,
    ) -> Option<Cause> {
        if still < patience || self.cause(moved_at).is_some() {
            return None;
        }
        Some(match held {
            Some(0) => Cause::Destination,
            _ => Cause::Link,
        })
    }

    /// The standstill since `moved_at` is told.
    pub fn told(&mut self, moved_at: Duration, cause: Cause) {
        self.told = Some((moved_at, cause));
    }

    /// The cause of the standstill that was told, when the last byte still moved at `moved_at`.
    pub fn cause(&self, moved_at: Duration) -> Option<Cause> {
        let (at, cause) = self.told?;
        (at == moved_at).then_some(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_told_once_with_its_cause_and_another_one_again() {
        let s = Duration::from_secs;
        let mut still = Standstill::default();
        // Seconds since the last byte, its time, bytes that the peer lacks, and the cause. The
        // patience is 10 s.
        let table = [
            (0, 5, Some(100), None),
            (9, 5, Some(100), None),
            (10, 5, Some(100), Some(Cause::Link)),
            (11, 5, Some(100), None),
            (99, 5, Some(0), None),
            // A byte has moved.
            (1, 110, Some(0), None),
            (12, 110, Some(0), Some(Cause::Destination)),
            (13, 110, Some(0), None),
            (10, 130, None, Some(Cause::Link)),
        ];
        for (passed, at, held, cause) in table {
            let found = still.judge(s(passed), s(at), held, s(10));
            assert_eq!(found, cause, "{passed} s after {at} s");
            if let Some(cause) = found {
                still.told(s(at), cause);
                assert_eq!(still.cause(s(at)), Some(cause));
            }
            assert_eq!(still.cause(s(at + 1)), None);
        }
    }

    #[test]
    fn a_shorter_patience_counts_at_once() {
        let s = Duration::from_secs;
        let still = Standstill::default();
        assert_eq!(still.judge(s(3), s(0), None, s(10)), None);
        assert_eq!(still.judge(s(3), s(0), None, s(2)), Some(Cause::Link));
    }
}
