//! How far a guest's clocks go on between saving and loading. Pure arithmetic.
//!
//! A guest that has been moved finds that its clocks went on while it stood still, as if it had not
//! been scheduled: neither did they stand, nor do they go back. What has passed is known by the two
//! hosts' clocks of the day (`CLOCK_REALTIME`), which have to be set alike (by NTP or PTP). A
//! difference of a few milliseconds between them is a jump of as much, forward only.

use std::time::Duration;

/// When the hosts' clocks say that more than this has passed, they are not set alike, or the state
/// comes from a file. The guest's clocks then go on from where they stood.
pub const GONE_MAX: Duration = Duration::from_secs(60);

/// What has passed between two times of day, as far as it counts.
pub(super) fn gone(then: Duration, now: Duration) -> Duration {
    match now.checked_sub(then) {
        Some(gone) if gone <= GONE_MAX => gone,
        _ => Duration::ZERO,
    }
}

/// What a counter of `khz` counts in that time.
pub(super) fn cycles(time: Duration, khz: u64) -> u64 {
    (time.as_nanos() * u128::from(khz) / 1_000_000) as u64
}

/// Whether two frequencies are so close that KVM takes them for the same (250 ppm, its own default
/// tolerance). A frequency of 0 is unknown.
pub(super) fn same_frequency(a: u64, b: u64) -> bool {
    a == 0 || b == 0 || a.abs_diff(b) <= a.max(b) / 4000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_never_back() {
        let then = Duration::from_secs(1_000_000);
        let later = |ms| then + Duration::from_millis(ms);
        assert_eq!(gone(then, later(30)), Duration::from_millis(30));
        assert_eq!(
            gone(later(30), then),
            Duration::ZERO,
            "a clock that is behind"
        );
        assert_eq!(gone(then, later(60_001)), Duration::ZERO, "an old file");
        assert_eq!(cycles(Duration::from_millis(2), 3_000_000), 6_000_000);
        assert_eq!(
            cycles(GONE_MAX, u64::from(u32::MAX)),
            60_000 * u64::from(u32::MAX)
        );
    }

    #[test]
    fn close_frequencies_are_the_same() {
        assert!(same_frequency(2_600_000, 2_600_600));
        assert!(!same_frequency(2_600_000, 2_601_000));
        assert!(same_frequency(0, 5));
    }
}
