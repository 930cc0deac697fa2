//! How often figures are renewed, and the rate over the last second.

use std::time::{Duration, Instant};

/// How often the figures are renewed and the VMM is notified.
pub(in crate::migrate) const RENEW: Duration = Duration::from_millis(50);

/// When a migration's figures were renewed last.
#[derive(Debug, Default)]
pub(in crate::migrate) struct Renewed(Option<Instant>);

impl Renewed {
    /// The current time if the figures are to be renewed: when [`RENEW`] has passed, or when `now`
    /// is set.
    pub(in crate::migrate) fn due(&mut self, now: bool) -> Option<Instant> {
        let at = Instant::now();
        let due = now || self.0.is_none_or(|last| at - last >= RENEW);
        due.then(|| *self.0.insert(at))
    }
}

/// Bytes a second over about the last second.
#[derive(Debug, Default)]
pub(in crate::migrate) struct Meter {
    at: Duration,
    bytes: u64,
    rate: u64,
}

impl Meter {
    /// Takes the total of `bytes` sent until `now`. Returns the rate, which is renewed every half
    /// second.
    pub(in crate::migrate) fn rate(&mut self, now: Duration, bytes: u64) -> u64 {
        let passed = now.saturating_sub(self.at);
        let first = self.at.is_zero() && !passed.is_zero();
        if passed >= Duration::from_millis(500) || first {
            self.rate = (bytes.saturating_sub(self.bytes) as f64 / passed.as_secs_f64()) as u64;
            if passed >= Duration::from_millis(500) {
                self.at = now;
                self.bytes = bytes;
            }
        }
        self.rate
    }
}
