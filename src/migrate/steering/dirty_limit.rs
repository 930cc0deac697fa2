//! The dirty limit: how many pages a second each vCPU may write, so that passes shrink. Pure.
//!
//! Example: three vCPUs write 0, 1,000 and 9,000 pages a second, and 4,000 may be written in all.
//! Auto-converge would slow all three by 60 %, the one that only reads too. The dirty limit gives
//! the third vCPU 3,000 and leaves the two others alone.
//!
//! **The shares are max-min fair.** There is one level for all vCPUs. Whoever writes less than the
//! level is not limited. Whoever would write more is limited to it. The level is the highest at
//! which the sum is allowed.
//!
//! **What a limited vCPU would write is not visible.** Its rate shows its limit. So the rate that it
//! had before counts until it writes clearly less than its limit. When other vCPUs become quiet, the
//! level rises, and the limit disappears once the level exceeds what the vCPU would write.

use super::throttle::{Load, RELAXED, STRAINED};
use crate::error::{Error, Kind, Result};

/// The limits aim at this ratio of dirtying to bandwidth.
pub(super) const AIM: f64 = 0.43;
/// A limited vCPU that writes less than this share of its limit shows what it would write.
const SHOWS: f64 = 0.8;
/// The smallest limit, in pages a second. A vCPU below it would hardly run.
pub const LEAST: f64 = 64.0;
/// What passes leave although the limits are kept was written by somebody else. The limits take it
/// into account down to this share of what they would be.
const TIGHTEST: f64 = 1.0 / 64.0;

#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Vcpu {
    /// Pages a second that it would write.
    would: f64,
    limit: Option<f64>,
}

/// The per-vCPU dirty limit. See the file's description.
///
/// ```
/// use brant::migrate::steering::dirty_limit::DirtyLimit;
/// use brant::migrate::steering::throttle::Load;
///
/// # fn main() -> brant::Result<()> {
/// let mut limit = DirtyLimit::default();
/// let mut load = Load::default();
/// load.link = Some(100e6); // 24,414 pages a second
/// limit.next(&load, &[0.0, 500.0, 90_000.0])?;
/// let limits: Vec<_> = limit.limits().collect();
/// assert_eq!(limits[..2], [None, None]);
/// assert_eq!(limits[2].map(f64::round), Some(9_998.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DirtyLimit {
    vcpus: Vec<Vcpu>,
    level: Option<f64>,
    /// The share of the allowed sum that vCPUs get. Below 1 when others write too.
    tight: f64,
}

impl Default for DirtyLimit {
    fn default() -> Self {
        DirtyLimit {
            vcpus: Vec::new(),
            level: None,
            tight: 1.0,
        }
    }
}

impl DirtyLimit {
    /// The limit of each vCPU in pages a second, in the order of the rates. `None`: not limited.
    pub fn limits(&self) -> impl Iterator<Item = Option<f64>> + '_ {
        self.vcpus.iter().map(|vcpu| vcpu.limit)
    }

    /// The share of its speed that each vCPU keeps, in the order of the rates. `None`: not limited.
    pub fn speeds(&self) -> impl Iterator<Item = Option<f64>> + '_ {
        self.vcpus
            .iter()
            .map(|vcpu| Some((vcpu.limit? / vcpu.would).min(1.0)))
    }

    /// How many vCPUs are limited.
    pub fn limited(&self) -> usize {
        self.limits().flatten().count()
    }

    /// Whether the limits cannot be lower.
    pub fn is_at_most(&self) -> bool {
        self.level.is_some_and(|level| level <= LEAST)
    }

    /// The limits from now on. `rates` are the pages that each vCPU wrote, a second, since the last
    /// call. Call it at each sync. [`Kind::NoMemory`] when there is none for so many vCPUs; the
    /// limits are the earlier ones then.
    pub fn next(&mut self, load: &Load, rates: &[f64]) -> Result<()> {
        if rates.len() > self.vcpus.len() {
            let more = rates.len() - self.vcpus.len();
            self.vcpus.try_reserve(more).map_err(|_| {
                Error::new(
                    Kind::NoMemory,
                    format!("no memory for the dirty limits of {} vCPUs", rates.len()),
                )
            })?;
        }
        self.vcpus.resize(rates.len(), Vcpu::default());
        for (vcpu, rate) in self.vcpus.iter_mut().zip(rates) {
            let rate = if rate.is_finite() { rate.max(0.0) } else { 0.0 };
            vcpu.would = match vcpu.limit {
                Some(limit) if rate >= limit * SHOWS => vcpu.would.max(rate),
                _ => rate,
            };
        }
        let Some(link) = load.link.filter(|link| link.is_finite() && *link > 0.0) else {
            return Ok(());
        };
        self.tighten(load);
        let link = link / 4096.0 * self.tight;
        let ratio = |level: f64| {
            let sum: f64 = self.vcpus.iter().map(|vcpu| vcpu.would.min(level)).sum();
            sum / link
        };
        let would = ratio(f64::INFINITY);
        let new = || Some(self.highest(AIM * link).max(LEAST));
        // As with auto-converge, nothing changes between two ratios. What a small change of one
        // vCPU leaves for the others may be large, so the level itself is no measure.
        self.level = match self.level {
            None if would > STRAINED => new(),
            Some(level) if would > AIM => match ratio(level) {
                RELAXED..=STRAINED => Some(level),
                _ => new(),
            },
            _ => None,
        };
        let level = self.level;
        for vcpu in &mut self.vcpus {
            vcpu.limit = level.filter(|level| vcpu.would > *level);
        }
        Ok(())
    }

    /// No vCPU is limited any more, whatever became of the migration.
    pub fn end(&mut self) {
        *self = DirtyLimit::default();
    }

    /// Judges the last pass. While limits are in force, a pass that did not shrink says that more is
    /// written than the vCPUs' rates tell.
    fn tighten(&mut self, load: &Load) {
        let Some((sent, left)) = load.pass else {
            return;
        };
        let ratio = left / sent;
        if !ratio.is_finite() || self.level.is_none() {
            return;
        }
        if ratio > STRAINED {
            self.tight = (self.tight * AIM / ratio).max(TIGHTEST);
        } else if ratio < RELAXED {
            self.tight = (self.tight * (AIM / ratio).min(2.0)).min(1.0);
        }
    }

    /// The highest level at which the sum of all vCPUs is `allowed` at most.
    fn highest(&self, allowed: f64) -> f64 {
        // The level is between 0 and the largest rate. Each step halves the range: 64 steps reach
        // the precision of the number, whatever the number of vCPUs.
        let most = self.vcpus.iter().map(|v| v.would).fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, most);
        for _ in 0..64 {
            let middle = (low + high) / 2.0;
            let sum: f64 = self.vcpus.iter().map(|v| v.would.min(middle)).sum();
            match sum <= allowed {
                true => low = middle,
                false => high = middle,
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A link of so many pages a second.
    fn link(pages: f64) -> Load {
        Load {
            link: Some(pages * 4096.0),
            ..Load::default()
        }
    }

    fn limits(allowed: f64, rates: &[f64]) -> Vec<Option<f64>> {
        let mut limit = DirtyLimit::default();
        limit.next(&link(allowed / AIM), rates).unwrap();
        limit.limits().map(|l| l.map(f64::round)).collect()
    }

    #[test]
    fn only_those_that_dirty_are_slowed_and_they_share_evenly() {
        /// What is allowed, the rates of the vCPUs, and their limits.
        type Row<'a> = (f64, &'a [f64], &'a [Option<f64>]);
        let table: [Row<'_>; 6] = [
            (4000.0, &[0.0, 1000.0, 9000.0], &[None, None, Some(3000.0)]),
            (4000.0, &[9000.0, 9000.0], &[Some(2000.0), Some(2000.0)]),
            (
                4000.0,
                &[500.0, 2500.0, 5000.0],
                &[None, Some(1750.0), Some(1750.0)],
            ),
            (4000.0, &[1000.0, 2000.0], &[None, None]),
            (4000.0, &[], &[]),
            (10.0, &[0.0, 9000.0], &[None, Some(LEAST)]),
        ];
        for (allowed, rates, expected) in table {
            assert_eq!(limits(allowed, rates), expected, "{allowed} {rates:?}");
        }
    }

    #[test]
    fn a_limited_vcpu_is_not_taken_for_a_quiet_one() {
        let mut limit = DirtyLimit::default();
        let load = link(4000.0 / AIM);
        limit.next(&load, &[0.0, 1000.0, 9000.0]).unwrap();
        for _ in 0..10 {
            // It writes as much as it may.
            limit.next(&load, &[0.0, 1000.0, 2900.0]).unwrap();
            assert_eq!(limit.limited(), 1);
        }
    }

    #[test]
    fn limits_relax_when_the_others_become_quiet_and_go_when_nobody_exceeds_them() {
        let mut limit = DirtyLimit::default();
        let load = link(4000.0 / AIM);
        limit.next(&load, &[9000.0, 9000.0]).unwrap();
        limit.next(&load, &[2000.0, 0.0]).unwrap();
        let now: Vec<_> = limit.limits().collect();
        assert_eq!(now[1], None);
        assert!((now[0].unwrap() - 4000.0).abs() < 1.0, "{now:?}");
        limit.next(&load, &[500.0, 0.0]).unwrap();
        assert_eq!(limit.limited(), 0);
        limit.next(&load, &[9000.0, 9000.0]).unwrap();
        assert_eq!(limit.limited(), 2);
        limit.end();
        assert_eq!(limit.limited(), 0);
    }

    #[test]
    fn pages_that_others_write_make_the_limits_tighter_down_to_the_least() {
        let mut limit = DirtyLimit::default();
        let mut load = link(4000.0 / AIM);
        limit.next(&load, &[9000.0]).unwrap();
        let first = limit.limits().next().unwrap().unwrap();
        load.pass = Some((100.0, 95.0));
        limit.next(&load, &[4000.0]).unwrap();
        let second = limit.limits().next().unwrap().unwrap();
        assert!(second < first * 0.6, "{first} {second}");
        for _ in 0..20 {
            limit.next(&load, &[second]).unwrap();
        }
        assert!(limit.limits().flatten().all(|limit| limit >= LEAST));
        load.pass = Some((100.0, 1.0));
        for _ in 0..20 {
            limit.next(&load, &[9000.0]).unwrap();
        }
        let last = limit.limits().next().unwrap().unwrap();
        assert!((0.69..1.01).contains(&(last / first)), "{first} {last}");
    }

    proptest! {
        #[test]
        fn the_sum_is_allowed_no_reader_is_slowed_and_shares_are_max_min_fair(
            rates in proptest::collection::vec(
                prop_oneof![Just(0.0), 0.0f64..100.0, 0.0f64..1e6], 0..900),
            allowed in 1e3f64..1e7,
        ) {
            let mut limit = DirtyLimit::default();
            limit.next(&link(allowed / AIM), &rates).unwrap();
            let limits: Vec<_> = limit.limits().collect();
            prop_assert_eq!(limits.len(), rates.len());
            let kept = |(rate, limit): (&f64, &Option<f64>)| limit.unwrap_or(*rate).min(*rate);
            let sum: f64 = rates.iter().zip(&limits).map(kept).sum();
            let limited = limits.iter().flatten().count();
            if limited == 0 {
                prop_assert!(sum <= allowed * STRAINED / AIM + 1e-6);
            } else {
                prop_assert!(sum <= allowed.max(rates.len() as f64 * LEAST) + 1e-6);
                // One level: nobody below it is limited, everybody above it is.
                let level = limits.iter().flatten().fold(0.0, |a: f64, b| a.max(*b));
                for (rate, limit) in rates.iter().zip(&limits) {
                    prop_assert_eq!(*limit, (*rate > level).then_some(level));
                }
            }
        }

        /// vCPUs that would always write the same, with 5 % of noise, have the same limits after the
        /// first few syncs.
        #[test]
        fn limits_do_not_oscillate_on_steady_vcpus(
            would in proptest::collection::vec(1e3f64..1e6, 1..32),
            share in 0.05f64..3.0,
            noise in proptest::collection::vec(-0.05f64..0.05, 40),
        ) {
            let sum: f64 = would.iter().sum();
            let load = link(sum * share);
            let mut limit = DirtyLimit::default();
            let (mut moves, mut last) = (0, None);
            for noise in noise {
                let current: Vec<Option<f64>> = if limit.vcpus.is_empty() {
                    vec![None; would.len()]
                } else {
                    limit.limits().collect()
                };
                let rates: Vec<f64> = would.iter().zip(&current)
                    .map(|(would, limit)| {
                        limit.map_or(*would * (1.0 + noise), |l| l.min(*would * (1.0 + noise)))
                    })
                    .collect();
                limit.next(&load, &rates).unwrap();
                moves += u32::from(limit.level != last);
                last = limit.level;
            }
            prop_assert!(moves <= 4, "the level moved {moves} times");
        }
    }
}
