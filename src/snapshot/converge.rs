//! Whether a save makes another pass or pauses the guest. Pure: no clock, no thread.
//!
//! A migration that cannot converge fails. A save can pause the guest at any time, because the
//! guest runs on here afterwards. So the only question is whether another pass makes the pause
//! shorter.

use crate::units::Bytes;
use std::time::Duration;

/// The facts after a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// How many passes were made.
    pub(super) pass: u32,
    /// Bytes that the guest wrote during the last pass.
    pub(super) remaining: Bytes,
    /// The value of `remaining` after the pass before.
    pub(super) before: Option<Bytes>,
    /// Bytes with contents that were written in the last pass, and the time that it took.
    pub(super) written: Bytes,
    pub(super) took: Duration,
}

/// Whether to pause now.
pub(super) fn pause_now(facts: &Facts, downtime_limit: Duration, max_passes: u32) -> bool {
    let left = facts.remaining.0 as f64;
    // A pass that wrote next to nothing does not measure the disk.
    let rate = facts.written.0 as f64 / facts.took.as_secs_f64().max(1e-3);
    let fits = left <= rate * downtime_limit.as_secs_f64() / 2.0;
    // Another pass is worth its time if the last one left a quarter less.
    let stuck = facts
        .before
        .is_some_and(|before| left > before.0 as f64 * 0.75);
    facts.remaining.0 == 0 || fits || stuck || facts.pass >= max_passes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn facts(pass: u32, remaining: u64, before: Option<u64>) -> Facts {
        Facts {
            pass,
            remaining: Bytes(remaining),
            before: before.map(Bytes),
            written: Bytes(1000 * MB),
            took: Duration::from_secs(1),
        }
    }

    fn pauses(facts: Facts) -> bool {
        pause_now(&facts, Duration::from_millis(300), 30)
    }

    #[test]
    fn a_guest_is_paused_when_the_rest_takes_half_of_the_limit_at_the_rate_of_the_last_pass() {
        assert!(pauses(facts(1, 150 * MB, None)));
        assert!(!pauses(facts(1, 151 * MB, None)));
        assert!(pauses(facts(1, 0, None)));
    }

    #[test]
    fn a_guest_that_writes_as_fast_as_the_disk_is_paused_all_the_same() {
        assert!(!pauses(facts(2, 740 * MB, Some(1000 * MB))));
        assert!(pauses(facts(2, 760 * MB, Some(1000 * MB))));
        assert!(pauses(facts(30, 200 * MB, Some(1000 * MB))));
        assert!(pause_now(
            &facts(1, 900 * MB, None),
            Duration::from_millis(300),
            1
        ));
    }

    #[test]
    fn passes_end_whatever_the_guest_does() {
        // The most stubborn guest: always just a quarter less.
        let (mut remaining, mut before, mut pass) = (u64::MAX >> 8, None, 0);
        loop {
            pass += 1;
            if pauses(facts(pass, remaining, before)) {
                break;
            }
            before = Some(remaining);
            remaining = remaining / 4 * 3;
        }
        assert!(pass <= 30);
    }
}
