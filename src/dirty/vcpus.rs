//! Single vCPUs, for the logs that tell them apart: how many pages each has written, and how many a
//! second it may write.
//!
//! KVM's rings tell both, because each vCPU has its own. Bitmaps tell neither.

use crate::error::{Error, Kind, Result};
use std::time::Duration;

/// What one vCPU has written, by its log's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuPages {
    /// The VMM's number of the vCPU.
    pub vcpu: u32,
    /// Pages. A page that is written again after a harvest counts again.
    pub pages: u64,
}

/// What one vCPU may write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VcpuLimit {
    /// The VMM's number of the vCPU.
    pub vcpu: u32,
    /// Pages a second, above 0.
    pub pages_per_second: f64,
}

impl VcpuLimit {
    /// [`Kind::Invalid`] unless the limit is a positive number.
    pub(super) fn check(&self) -> Result<()> {
        let VcpuLimit {
            vcpu,
            pages_per_second: limit,
        } = self;
        if limit.is_finite() && *limit > 0.0 {
            return Ok(());
        }
        Err(Error::new(
            Kind::Invalid,
            format!(
                "vCPU {vcpu}: a dirty limit is a positive number of pages a second, not {limit}"
            ),
        ))
    }
}

/// The vCPUs of a log. Any thread calls these methods, also while the log itself is in use, so they
/// must not wait for a harvest.
pub trait Vcpus: Send + Sync {
    /// Calls `each` for every vCPU that the log knows, in the order of their numbers. The counts
    /// begin at any value and only grow.
    fn written(&self, each: &mut dyn FnMut(VcpuPages));

    /// As [`Vcpus::written`], without the pages that a vCPU wrote beyond its limits. So the count of a
    /// vCPU that stands still because it is over its limit grows by that limit.
    fn allowed(&self, each: &mut dyn FnMut(VcpuPages)) {
        self.written(each);
    }

    /// How many pages a vCPU over its limit may have written before it stands still: the entries of
    /// its ring. 0 when [`Vcpus::limit`] does nothing.
    fn granularity(&self) -> u64 {
        0
    }

    /// Whether [`Vcpus::limit`] does anything.
    fn can_limit(&self) -> bool {
        false
    }

    /// Replaces all limits: a vCPU that is not among them may write as much as it likes. A vCPU
    /// that is not known is passed over.
    ///
    /// # Errors
    /// [`Kind::State`] for limits while the log is not started. An empty list never fails.
    fn limit(&self, limits: &[VcpuLimit]) -> Result<()> {
        let _ = limits;
        Ok(())
    }

    /// How many vCPUs have a limit now.
    fn limited(&self) -> u64 {
        0
    }
}

/// How fast each vCPU writes, from counts at two moments. Pure.
///
/// Each vCPU keeps the place at which it was first seen. So the rates of two calls are of the same
/// vCPUs, place by place, also when vCPUs come and go.
///
/// ```
/// use brant::dirty::vcpus::{VcpuPages, VcpuRates};
/// use std::time::Duration;
///
/// # fn main() -> brant::Result<()> {
/// let counts = |a, b| [VcpuPages { vcpu: 0, pages: a }, VcpuPages { vcpu: 7, pages: b }];
/// let mut rates = VcpuRates::default();
/// rates.update(Duration::from_secs(1), &counts(500, 0))?;
/// rates.update(Duration::from_secs(3), &counts(700, 3000))?;
/// assert_eq!(rates.vcpus(), [0, 7]);
/// assert_eq!(rates.rates(), [100.0, 1500.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default, Clone, PartialEq)]
pub struct VcpuRates {
    vcpus: Vec<u32>,
    rates: Vec<f64>,
    counts: Vec<u64>,
    at: Option<Duration>,
}

impl VcpuRates {
    /// The vCPUs' numbers.
    pub fn vcpus(&self) -> &[u32] {
        &self.vcpus
    }

    /// Pages a second, in the order of [`VcpuRates::vcpus`]. A vCPU that was seen once has rate 0.
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// The rates from the last call to this one. `now` is the time of any clock that does not go
    /// back. Without time between two calls, the rates stay. [`Kind::NoMemory`] when there is none
    /// for so many vCPUs; nothing has changed then.
    pub fn update(&mut self, now: Duration, counts: &[VcpuPages]) -> Result<()> {
        let room = |_| {
            let bytes = counts.len() as u64 * 20;
            Error::no_memory("the dirty rates of vCPUs", bytes)
        };
        self.vcpus.try_reserve(counts.len()).map_err(room)?;
        self.rates.try_reserve(counts.len()).map_err(room)?;
        self.counts.try_reserve(counts.len()).map_err(room)?;
        let seconds = self.at.map(|at| now.saturating_sub(at).as_secs_f64());
        if seconds.is_some_and(|seconds| seconds <= 0.0) {
            return Ok(());
        }
        self.at = Some(now);
        // A vCPU that is gone writes nothing.
        self.rates.fill(0.0);
        for (i, count) in counts.iter().enumerate() {
            let here = self.vcpus.get(i) == Some(&count.vcpu);
            let place = match here {
                true => Some(i),
                false => self.vcpus.iter().position(|&vcpu| vcpu == count.vcpu),
            };
            match place {
                Some(place) => {
                    // A vCPU that was removed and added again counts from 0.
                    let pages = count.pages.saturating_sub(self.counts[place]);
                    self.rates[place] = seconds.map_or(0.0, |seconds| pages as f64 / seconds);
                    self.counts[place] = count.pages;
                }
                None => {
                    self.vcpus.push(count.vcpu);
                    self.rates.push(0.0);
                    self.counts.push(count.pages);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(u32, u64)]) -> Vec<VcpuPages> {
        let all = all.iter();
        all.map(|&(vcpu, pages)| VcpuPages { vcpu, pages })
            .collect()
    }

    #[test]
    fn rates_are_of_the_time_between_two_calls_and_keep_their_places() {
        let mut rates = VcpuRates::default();
        let mut next = |at_ms, all: &[(u32, u64)]| {
            let at = Duration::from_millis(at_ms);
            rates.update(at, &counts(all)).unwrap();
            (rates.vcpus().to_vec(), rates.rates().to_vec())
        };
        assert_eq!(next(0, &[]), (vec![], vec![]));
        assert_eq!(next(100, &[(3, 50), (9, 7)]), (vec![3, 9], vec![0.0, 0.0]));
        assert_eq!(next(600, &[(3, 150), (9, 7)]).1, [200.0, 0.0]);
        // No time has passed: nothing is known.
        assert_eq!(next(600, &[(3, 950), (9, 7)]).1, [200.0, 0.0]);
        // A vCPU with a smaller number comes: the others keep their places.
        let (vcpus, now) = next(1600, &[(0, 10_000), (3, 1150), (9, 17)]);
        assert_eq!((vcpus, now), (vec![3, 9, 0], vec![1000.0, 10.0, 0.0]));
        // One goes, and comes back with a count of its own.
        assert_eq!(next(2600, &[(0, 10_100), (9, 17)]).1, [0.0, 0.0, 100.0]);
        assert_eq!(
            next(3600, &[(0, 10_100), (3, 5), (9, 18)]).1,
            [0.0, 1.0, 0.0]
        );
        assert_eq!(
            next(4600, &[(0, 10_100), (3, 25), (9, 18)]).1,
            [20.0, 0.0, 0.0]
        );
    }
}
