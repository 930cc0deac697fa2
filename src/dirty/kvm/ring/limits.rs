//! The dirty limit of single vCPUs: who is over it waits when its ring is full.
//!
//! Example: a vCPU may write 1,000 pages a second, and has just written 4,000. The reaper leaves its
//! ring alone, so the vCPU fills it and comes out of `KVM_RUN`. In `Rings::full` it waits until 4,000
//! pages are within its limit, in slices. Between two slices its thread is the VMM's, because brant
//! cannot know what else the VMM wants of it. The ring stays full meanwhile, so `KVM_RUN` comes out
//! again at once. The next slice follows.
//!
//! **The ring's size is the granularity.** A sync harvests every ring, limited or not: it may neither
//! lose nor delay a page. So between two syncs a vCPU gets through with one ring more than its limit.
//!
//! **Nobody waits while the guest is being paused or kicked.** Each of these first ends the waits,
//! and no wait begins before it is over ([`Ownership::may_keep_waiting`]). A removed vCPU, a lifted
//! limit and the end of tracking end the wait as well.

use super::reaper::{no_ring, AskedRounds, State};
use crate::dirty::vcpus::{VcpuLimit, VcpuPages, Vcpus};
use crate::error::Result;
use crate::memory::{KeepsWaiting, Ownership};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

impl AskedRounds {
    /// The guest whose pauses and kicks end the waits.
    pub fn joins(self: &Arc<Self>, guest: &Arc<Ownership>) {
        self.lock().limits.guest = Arc::clone(guest);
        let here = Arc::clone(self) as Arc<dyn KeepsWaiting>;
        guest.ends_waits_of(Arc::downgrade(&here));
    }

    /// Called on the thread of a vCPU whose ring is full, once for each exit. Waits one slice if the vCPU is over its
    /// limit. Returns whether it is within its limit then, and gets room in its ring.
    pub fn may_go_on(&self, vcpu: u32) -> Result<bool> {
        let (nap, slice) = {
            let mut guard = self.lock();
            let state = &mut *guard;
            let rings = &mut state.rounds.rings;
            let ring = rings.get_mut(&vcpu).ok_or_else(|| no_ring(vcpu))?;
            state.rounds.figures.full_exits += 1;
            let (now, limits) = (self.now(), &state.limits);
            let Some(naps) = limits.naps.as_ref().filter(|_| ring.is_left_alone(now)) else {
                return Ok(true);
            };
            if !limits.guest.may_keep_waiting() {
                return Ok(true);
            }
            if ring.is_wanted_out() {
                return Ok(false);
            }
            state.rounds.figures.limit_waits += 1;
            (naps.begin(), ring.slices.wait(now, limits.longest))
        };
        nap.take(slice);
        let mut state = self.lock();
        let now = self.now();
        let over = |ring: &mut super::Ring| ring.is_left_alone(now);
        // A vCPU that was removed meanwhile has no ring.
        Ok(state.rounds.rings.get_mut(&vcpu).map(over) == Some(false))
    }

    /// Sets or lifts the limit of one vCPU.
    pub fn limit_one(&self, vcpu: u32, pages_per_second: Option<f64>) -> Result<()> {
        if let Some(pages_per_second) = pages_per_second {
            let limit = VcpuLimit {
                vcpu,
                pages_per_second,
            };
            limit.check()?;
        }
        let mut guard = self.lock();
        let state = &mut *guard;
        let rings = &mut state.rounds.rings;
        let ring = rings.get_mut(&vcpu).ok_or_else(|| no_ring(vcpu))?;
        if pages_per_second.is_some() {
            state.limits.need(state.rounds.tracking)?;
        }
        ring.slices.set(self.now(), pages_per_second);
        state.limits.end();
        Ok(())
    }
}

impl State {
    /// Removes all limits.
    pub fn lift_all(&mut self, now: Duration) {
        for ring in self.rounds.rings.values_mut() {
            ring.slices.set(now, None);
        }
        // Dropping it ends the waits.
        self.limits.naps = None;
    }
}

impl KeepsWaiting for AskedRounds {
    fn end_waits(&self) {
        self.lock().limits.end();
    }
}

impl Vcpus for AskedRounds {
    fn written(&self, each: &mut dyn FnMut(VcpuPages)) {
        for (&vcpu, ring) in &self.lock().rounds.rings {
            let pages = ring.harvested;
            each(VcpuPages { vcpu, pages });
        }
    }

    fn allowed(&self, each: &mut dyn FnMut(VcpuPages)) {
        let now = self.now();
        for (&vcpu, ring) in &mut self.lock().rounds.rings {
            let pages = ring.harvested.saturating_sub(ring.slices.beyond(now));
            each(VcpuPages { vcpu, pages });
        }
    }

    fn granularity(&self) -> u64 {
        let state = self.lock();
        state
            .rounds
            .rings
            .values()
            .next()
            .map_or(0, |r| r.entries())
    }

    fn can_limit(&self) -> bool {
        true
    }

    fn limit(&self, limits: &[VcpuLimit]) -> Result<()> {
        // The last one for a vCPU counts.
        let mut by_vcpu = BTreeMap::new();
        by_vcpu.extend(limits.iter().map(|one| (one.vcpu, one.pages_per_second)));
        let mut guard = self.lock();
        let state = &mut *guard;
        if by_vcpu.is_empty() {
            state.lift_all(self.now());
            return Ok(());
        }
        state.limits.need(state.rounds.tracking)?;
        let now = self.now();
        for (vcpu, ring) in &mut state.rounds.rings {
            ring.slices.set(now, by_vcpu.get(vcpu).copied());
        }
        // A limit that rose or went may end a wait.
        state.limits.end();
        Ok(())
    }

    fn limited(&self) -> u64 {
        let state = self.lock();
        let rings = state.rounds.rings.values();
        rings.filter(|ring| ring.slices.is_limited()).count() as u64
    }
}
