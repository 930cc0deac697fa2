//! What a sync shows about single vCPUs and about the waits of a pass, for the policy. Pure.

use super::steer::Fresh;
use crate::dirty::vcpus::{VcpuPages, VcpuRates};
use crate::error::Result;
use std::time::Duration;

/// The rates between the last two counts.
#[derive(Debug, Default)]
pub(super) struct Rates {
    vcpus: VcpuRates,
    /// When vCPUs were last counted.
    at: Duration,
    /// See [`Fresh::waited`].
    waited: f64,
}

impl Rates {
    /// What is known after the last count.
    pub(super) fn fresh(&self) -> Fresh<'_> {
        Fresh {
            vcpus: self.vcpus.vcpus(),
            rates: self.vcpus.rates(),
            waited: self.waited,
        }
    }

    /// A pass that took `pass` awaited the destination's acknowledgement for `waited` of it.
    pub(super) fn waited(&mut self, waited: Duration, pass: Duration) {
        let pass = pass.as_secs_f64();
        self.waited = match pass > 0.0 {
            true => waited.as_secs_f64() / pass,
            false => 0.0,
        };
    }

    /// At `now`, a time since the migration's start, `counts` are the pages that each vCPU has
    /// written so far, when a log tells.
    /// [`Kind::NoMemory`](crate::Kind::NoMemory) when there is none for so many vCPUs.
    pub(super) fn counted(&mut self, now: Duration, counts: Option<Vec<VcpuPages>>) -> Result<()> {
        self.at = now;
        self.vcpus.update(now, &counts.unwrap_or_default())
    }

    /// The time since vCPUs were last counted, or since the migration's start.
    pub(super) fn since_counted(&self, now: Duration) -> Duration {
        now.saturating_sub(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_of_a_pass_is_a_share_of_it() {
        let mut rates = Rates::default();
        rates.waited(Duration::from_millis(30), Duration::from_millis(40));
        assert_eq!(rates.fresh().waited, 0.75);
        rates.waited(Duration::ZERO, Duration::ZERO);
        assert_eq!(rates.fresh().waited, 0.0);
    }
}
