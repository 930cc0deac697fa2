//! How long a vCPU waits that has written more pages than its limit allows. Pure.
//!
//! Example: a vCPU may write 1,000 pages a second, and its ring has just reported 64 pages that it
//! wrote in 4 ms. It is 60 pages ahead of its limit, so it has to wait 60 ms. It waits in slices of
//! at most [`SLICE_MAX`], and between two of them its thread looks whether the VMM wants to pause
//! it. So whatever the limit, a pause is never later than one slice.

use std::time::Duration;

/// The longest wait without a look at what else the vCPU's thread is wanted for.
pub(super) const SLICE_MAX: Duration = Duration::from_millis(5);
/// A vCPU that wrote less than it may for a while does not save more than what it may write in this
/// time. So after a rest it cannot fill a pass at full speed.
const SAVED_MAX: Duration = Duration::from_millis(50);

/// What one vCPU may write. The unit is pages; times are of any clock that does not go back.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Slices {
    /// Pages a second. `None`: no limit.
    limit: Option<f64>,
    /// Pages that the vCPU may write at once. Negative: it is over its limit.
    credit: f64,
    at: Duration,
    /// Pages that the vCPU owed when limits were removed, and that were forgotten.
    forgotten: f64,
}

impl Slices {
    /// Sets the limit in pages a second from `now` on. `None` removes it, and what the vCPU wrote
    /// too much is forgotten. A limit that is no positive number counts as none.
    pub fn set(&mut self, now: Duration, limit: Option<f64>) {
        self.advance(now);
        self.limit = limit.filter(|limit| limit.is_finite() && *limit > 0.0);
        match self.limit {
            Some(limit) => self.credit = self.credit.min(limit * SAVED_MAX.as_secs_f64()),
            None => {
                self.forgotten += (-self.credit).max(0.0);
                self.credit = 0.0;
            }
        }
    }

    /// How many of the pages that the ring has reported were more than the limits allowed until
    /// `now`. The other ones grow by the limit while the vCPU is over it.
    pub fn beyond(&mut self, now: Duration) -> u64 {
        self.advance(now);
        (self.forgotten + (-self.credit).max(0.0)).ceil() as u64
    }

    /// Records that the vCPU's ring reported `pages`.
    pub fn wrote(&mut self, now: Duration, pages: u64) {
        self.advance(now);
        if self.limit.is_some() {
            self.credit -= pages as f64;
        }
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether the vCPU is over its limit. The reaper then leaves its ring alone.
    pub fn is_over(&mut self, now: Duration) -> bool {
        self.advance(now);
        self.limit.is_some() && self.credit < 0.0
    }

    /// The next slice: how long the vCPU waits before it asks again. At most `longest`, and zero when
    /// the vCPU is within its limit.
    pub fn wait(&mut self, now: Duration, longest: Duration) -> Duration {
        self.advance(now);
        match self.limit {
            Some(limit) if self.credit < 0.0 => {
                let wait = Duration::try_from_secs_f64(-self.credit / limit);
                wait.unwrap_or(longest)
                    .clamp(Duration::from_micros(1), longest)
            }
            _ => Duration::ZERO,
        }
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        if let Some(limit) = self.limit {
            let most = limit * SAVED_MAX.as_secs_f64();
            self.credit = (self.credit + passed * limit).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_vcpu_over_its_limit_waits_in_slices_of_five_milliseconds() {
        let mut slices = Slices::default();
        slices.set(Duration::ZERO, Some(1000.0));
        slices.wrote(ms(4), 64);
        // Four pages were allowed meanwhile, so 60 ms are to wait.
        let (mut now, mut waits) = (ms(4), 0);
        while slices.is_over(now) {
            let wait = slices.wait(now, SLICE_MAX);
            assert!(wait <= SLICE_MAX && wait > Duration::ZERO, "{wait:?}");
            now += wait;
            waits += 1;
        }
        assert!(now >= ms(63) && now <= ms(66), "{now:?}");
        assert!(waits >= 12, "{waits}");
        assert_eq!(slices.wait(now, SLICE_MAX), Duration::ZERO);
    }

    #[test]
    fn a_vcpu_without_a_limit_or_within_it_never_waits() {
        let mut slices = Slices::default();
        slices.wrote(ms(1), 1 << 40);
        assert_eq!(slices.wait(ms(1), SLICE_MAX), Duration::ZERO);
        slices.set(ms(1), Some(1000.0));
        for t in 1..1000 {
            slices.wrote(ms(t), 1);
            assert_eq!(slices.wait(ms(t + 1), SLICE_MAX), Duration::ZERO, "{t}");
        }
        // Removed: nothing is owed any more.
        slices.wrote(ms(1000), 1_000_000);
        assert!(slices.is_over(ms(1000)));
        for none in [None, Some(0.0), Some(f64::NAN), Some(-1.0)] {
            slices.set(ms(1000), none);
            assert!(!slices.is_over(ms(1000)), "{none:?}");
        }
    }

    /// Example: 1,024 pages at once under a limit of 1,000 a second. For a second the vCPU stands
    /// still, and whoever asks meanwhile how fast it writes is to hear 1,000 and not 0.
    #[test]
    fn a_vcpu_over_its_limit_counts_as_writing_what_it_may() {
        let mut slices = Slices::default();
        slices.set(Duration::ZERO, Some(1000.0));
        slices.wrote(ms(0), 1024);
        let mut before = 0;
        for now in [100, 200, 300, 1000] {
            let allowed = 1024 - slices.beyond(ms(now));
            assert_eq!(allowed, now);
            assert!(allowed >= before);
            before = allowed;
        }
        assert_eq!(slices.beyond(ms(5000)), 0);
        // What is forgotten with a limit does not come back as something that was written just now.
        slices.wrote(ms(5000), 2050);
        assert_eq!(slices.beyond(ms(6000)), 1000);
        slices.set(ms(6000), None);
        slices.wrote(ms(6000), 7);
        assert_eq!(slices.beyond(ms(9000)), 1000);
    }

    proptest! {
        /// A vCPU that writes as fast as it is let never exceeds its limit by more than one ring and
        /// what it may save.
        #[test]
        fn the_limit_is_kept_to_within_a_ring(limit in 1.0f64..1e6, ring in 1u64..4096) {
            let mut slices = Slices::default();
            slices.set(Duration::ZERO, Some(limit));
            let (mut now, mut written) = (Duration::ZERO, 0);
            for _ in 0..2000 {
                let wait = slices.wait(now, SLICE_MAX);
                prop_assert!(wait <= SLICE_MAX);
                if wait.is_zero() {
                    slices.wrote(now, ring);
                    written += ring;
                } else {
                    now += wait;
                }
                let allowed = limit * (now.as_secs_f64() + SAVED_MAX.as_secs_f64()) + ring as f64;
                prop_assert!(written as f64 <= allowed + 1.0, "{written} of {allowed}");
                if wait.is_zero() {
                    now += Duration::from_micros(10);
                }
            }
        }
    }
}
