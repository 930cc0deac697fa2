//! A tracker's questions to the logs that tell vCPUs apart, and the limits that it has them keep. None
//! of them waits for a sync.

use super::tracker::Tracker;
use super::vcpus::{VcpuLimit, VcpuPages, Vcpus};
use crate::error::{Error, Kind, Result};
use crate::runtime::thread::catch;
use crate::units::Pages;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Tracker {
    /// Calls `call` with the vCPUs of each log that tells them apart. A panic there is passed over,
    /// because it may be a log of the VMM's own.
    fn each_vcpus(&self, mut call: impl FnMut(&dyn Vcpus) -> Result<()>) -> Result<()> {
        let logs: Vec<Arc<dyn Vcpus>> = self.vcpus().clone();
        let mut done = Ok(());
        for log in &logs {
            done = done.and(catch(|| call(&**log)).unwrap_or(Ok(())));
        }
        done
    }

    /// The pages that each vCPU has written by the harvests so far, in the order of the vCPUs'
    /// numbers. `None` when no log tells. The counts begin at any value: differences mean something.
    /// Does not wait for a sync.
    pub fn vcpu_counts(&self) -> Option<Vec<VcpuPages>> {
        self.counts(|log, each| log.written(each))
    }

    /// As [`Tracker::vcpu_counts`], by [`Vcpus::allowed`]: a vCPU that stands still because it is over
    /// its dirty limit counts as writing as much as it may.
    pub(crate) fn allowed_counts(&self) -> Option<Vec<VcpuPages>> {
        self.counts(|log, each| log.allowed(each))
    }

    fn counts(
        &self,
        ask: impl Fn(&dyn Vcpus, &mut dyn FnMut(VcpuPages)),
    ) -> Option<Vec<VcpuPages>> {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        let mut tells = false;
        let _ = self.each_vcpus(|log| {
            tells = true;
            ask(log, &mut |one| {
                *counts.entry(one.vcpu).or_default() += one.pages;
            });
            Ok(())
        });
        let counts = counts.into_iter();
        tells.then(|| {
            counts
                .map(|(vcpu, pages)| VcpuPages { vcpu, pages })
                .collect()
        })
    }

    /// Whether a log tells what each vCPU has written.
    pub fn counts_vcpus(&self) -> bool {
        !self.vcpus().is_empty()
    }

    /// Whether [`Tracker::limit_vcpus`] works: with KVM's dirty rings.
    pub fn can_limit_vcpus(&self) -> bool {
        let mut can = false;
        let _ = self.each_vcpus(|log| {
            can |= log.can_limit();
            Ok(())
        });
        can
    }

    /// How many pages a vCPU over its limit may write before it stands still: the entries of its dirty
    /// ring. 0 where no log keeps limits.
    pub(crate) fn limit_granularity(&self) -> Pages {
        let mut most = 0;
        let _ = self.each_vcpus(|log| {
            most = most.max(log.granularity());
            Ok(())
        });
        Pages(most)
    }

    /// Replaces the dirty limits of all vCPUs. A vCPU that is not among them has none, so an empty
    /// list lifts all limits. The limits end when tracking stops.
    ///
    /// A vCPU over its limit finds its ring full, because nobody empties it. It then waits inside
    /// [`Rings::full`](super::kvm::Rings::full), a slice of at most 5 ms at a time. The wait ends
    /// before each pause and kick by brant, with any signal to the vCPU's thread, and when the limit
    /// goes.
    ///
    /// **The ring's size is the granularity.** A sync of the running guest empties every ring. So
    /// a vCPU may write one ring more than its limit allows between two syncs. For a limit of 1,000
    /// pages a second and a sync each second, a ring of 4,096 entries hardly limits, and one of 1,024
    /// entries halves what is written.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when no log can limit vCPUs, [`Kind::State`] while nothing is tracked,
    /// [`Kind::Invalid`] for a limit that is no positive number. An empty list never fails.
    pub fn limit_vcpus(&self, limits: &[VcpuLimit]) -> Result<()> {
        for limit in limits {
            limit.check()?;
        }
        if !limits.is_empty() && !self.can_limit_vcpus() {
            return Err(Error::new(
                Kind::Unsupported,
                "a dirty limit for single vCPUs needs KVM's dirty rings, and this tracker has none",
            ));
        }
        self.each_vcpus(|log| log.limit(limits))
    }

    /// How many vCPUs have a dirty limit now.
    pub fn limited_vcpus(&self) -> u64 {
        let mut limited = 0;
        let _ = self.each_vcpus(|log| {
            limited += log.limited();
            Ok(())
        });
        limited
    }

    /// Whether any vCPU has a dirty limit now.
    pub fn has_vcpu_limits(&self) -> bool {
        self.limited_vcpus() > 0
    }
}
