//! The forecast of a migration that has not begun, from a measured dirty rate. Pure.

use super::steering::forecast::{forecast, remedies, Forecast, Outlook};
use super::steering::policies::{Policies, Policy};
use super::steering::working_set::WorkingSet;
use super::steering::Facts;
use super::Params;
use crate::rate::Rate;
use crate::units::Bytes;
use std::time::Duration;

/// Forecasts the migration of a guest of `memory` bytes that writes at `rate`, over a link that carries
/// `bandwidth` bytes a second, with `params`: by their downtime limit, policy, caps, stated times and
/// timeout. All of memory counts as pages with contents, unpacked.
///
/// A probe cannot tell what the guest writes in longer times than its period. By log it counts in
/// two halves, and the forecast assumes that the working set goes on growing as it did from the
/// first half to the second. So measure for about as long as a pass over memory takes, or forecast
/// again with [`Outgoing::forecast`](super::Outgoing::forecast) once the migration runs.
///
/// ```
/// use brant::dirty::tracker::{Clearing, Tracker};
/// # use brant::memory::{Memory, NO_SLOT};
/// use brant::migrate::before::forecast_from;
/// use brant::migrate::Params;
/// use brant::rate::{Params as Measurement, Probe};
/// use brant::units::Bytes;
/// # use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// # use std::sync::Arc;
/// use std::time::Duration;
///
/// # fn main() -> brant::Result<()> {
/// # let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 30)])?;
/// # let memory = Arc::new(Memory::new()?);
/// # memory.add_guest_memory(&ram, NO_SLOT)?;
/// # let tracker = Tracker::new(memory, Clearing::default())?;
/// let measurement = Measurement {
///     period: Duration::from_millis(20),
///     ..Measurement::default()
/// };
/// let rate = Probe::new(tracker, measurement)?.measure()?;
/// let forecast = forecast_from(&rate, Bytes(1 << 30), 125_000_000, &Params::default());
/// // A guest that writes nothing: one pass at 1 Gb/s.
/// assert!(forecast.converges);
/// assert_eq!((forecast.passes, forecast.time.as_secs()), (1, 8));
/// # Ok(())
/// # }
/// ```
pub fn forecast_from(rate: &Rate, memory: Bytes, bandwidth: u64, params: &Params) -> Forecast {
    let curve = curve(rate);
    let switchover = params.switchover_bandwidth.unwrap_or(bandwidth);
    let carried = match params.switchover_max_bandwidth {
        Some(cap) => switchover.min(cap),
        None => switchover,
    };
    let outlook = Outlook {
        facts: Facts {
            total: memory,
            remaining: memory,
            bandwidth: Some(carried as f64),
            stated: true,
            cap: Some(params.max_bandwidth.unwrap_or(bandwidth).min(bandwidth) as f64),
            dirty_rate: Some(rate.pages_per_second),
            operations: params.expected,
            ..Facts::default()
        },
        pass_sent: Bytes(0),
        sent: Bytes(0),
        data: 1.0,
        last_pass: Duration::ZERO,
        working_set: &curve,
    };
    let decider = params.decider();
    let policies = Policies::new(params.policy.clone(), params.downtime_limit)
        .or_else(|_| Policies::new(Policy::default(), params.downtime_limit));
    let Ok(policies) = policies else {
        return Forecast::default();
    };
    let mut found = forecast(&outlook, &decider, &policies, 1.0);
    if !found.converges {
        found.remedies = remedies(&outlook, &decider, &policies);
    }
    found
}

/// The working-set curve that a measurement shows.
fn curve(rate: &Rate) -> WorkingSet {
    let mut curve = WorkingSet::default();
    if let Some(both) = rate.rewritten {
        // The halves are alike, so each found half of all that was found, counted twice where both
        // found it.
        let half = (rate.written.0 + both.0) as f64 / 2.0;
        curve.observe(rate.period / 2, half);
    }
    curve.observe(rate.period, rate.written.0 as f64);
    curve
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::steering::policies::Slowing;
    use crate::rate::estimate::{logged, sampled, Logged, Sampled};
    use crate::units::Pages;

    const SECOND: Duration = Duration::from_secs(1);
    const GIB: u64 = 1 << 30;

    /// A measurement of two seconds.
    fn by_log(half: u64, both: u64) -> Rate {
        logged(&Logged {
            first: Pages(half),
            second: Pages(half),
            both: Pages(both),
            period: SECOND * 2,
            ..Logged::default()
        })
    }

    fn of(rate: &Rate, bandwidth: u64) -> Forecast {
        forecast_from(rate, Bytes(8 * GIB), bandwidth, &Params::default())
    }

    #[test]
    fn a_guest_that_rewrites_the_same_pages_converges_and_one_that_goes_on_to_new_ones_does_not() {
        // 300,000 pages a second over a link of 256,000.
        let same = of(&by_log(300_000, 299_000), GIB);
        assert!(!same.converges, "1.2 GB do not fit 300 ms: {same:?}");
        let few = of(&by_log(30_000, 29_900), GIB);
        assert!(few.converges && few.passes <= 4, "{few:?}");
        assert!(few.time < SECOND * 10, "{few:?}");
        let new = of(&by_log(300_000, 0), GIB);
        assert!(!new.converges, "{new:?}");
        let help = new.remedies;
        assert!(help.bandwidth > Some(1.2e9), "{help:?}");
        assert!(help.throttle > Some(10), "{help:?}");
        let enough = of(&by_log(300_000, 0), help.bandwidth.unwrap() as u64);
        assert!(enough.converges, "{enough:?}");
    }

    #[test]
    fn a_policy_that_slows_the_guest_makes_it_converge() {
        let rate = by_log(300_000, 0);
        let mut params = Params::default();
        params.policy.slowing = Slowing::AutoConverge;
        let found = forecast_from(&rate, Bytes(8 * GIB), GIB, &params);
        assert!(found.converges && found.passes > 2, "{found:?}");
        assert_eq!(found.remedies, Default::default());
    }

    #[test]
    fn a_sampled_rate_is_a_point_of_the_curve_too() {
        let rate = sampled(
            &Sampled {
                total: Pages((8 * GIB) >> 12),
                read: Pages(4096),
                changed: Pages(41),
            },
            SECOND,
        );
        let found = of(&rate, GIB);
        assert!(found.converges && found.passes > 1, "{found:?}");
        assert!(found.bytes > 8.0 * GIB as f64, "{found:?}");
    }

    #[test]
    fn the_cap_the_limit_and_the_stated_times_count() {
        let rate = by_log(20_000, 0);
        let with = |params: Params| forecast_from(&rate, Bytes(8 * GIB), GIB, &params);
        let plain = with(Params::default());
        let capped = with(Params {
            max_bandwidth: Some(GIB / 2),
            ..Params::default()
        });
        assert!(capped.time >= SECOND * 16 && plain.time < SECOND * 10);
        assert!(capped.bytes > plain.bytes);
        let mut slow = Params::default();
        slow.expected.save = Some(SECOND);
        let slow = with(slow);
        assert!(!slow.converges, "{slow:?}");
        let help = slow.remedies.limit.unwrap();
        assert!(help >= SECOND && help < SECOND * 2, "{help:?}");
    }
}
