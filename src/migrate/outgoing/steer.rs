//! Steers a migration: asks the decider and the policy, tells the VMM how much to slow the guest, and
//! takes in what the VMM's threads order meanwhile.
//!
//! **Nothing stays throttled.** Example: a guest is slowed by 90 %, the peer dies, and the migration
//! fails. A guest that stayed slowed would run at a tenth of its speed until somebody noticed. So
//! everything that slows the guest is one value, [`Steer`]. The driver has it let go on entering
//! every state but the one in which memory is copied, and it lets go when it is dropped, also by a
//! panic.

use super::asking::{self, Asked};
use super::leaving::Leaving;
use super::orders::Order;
use crate::dirty::vcpus::VcpuLimit;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::common::Migration;
use crate::migrate::steering::budget::millis;
use crate::migrate::steering::limited_rings::too_large;
use crate::migrate::steering::policies::{InPass, OnDeadline, Policies, Policy, Slowing};
use crate::migrate::steering::stall::Stalled;
use crate::migrate::steering::{Bounds, Decider, Facts, FitsDowntime, Moment, Next, Verdict};
use crate::migrate::switchover::source::State;
use crate::units::Pages;
use crate::vmm::{EventKind, Vmm};
use std::sync::Arc;
use std::time::Duration;

/// What a sync has shown beside the [`Facts`].
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Fresh<'a> {
    /// The vCPUs' numbers. Empty when no log tells vCPUs apart.
    pub(super) vcpus: &'a [u32],
    /// Pages a second that each of them wrote since the last sync.
    pub(super) rates: &'a [f64],
    /// The share of the last pass in which the destination's acknowledgement was awaited.
    pub(super) waited: f64,
}

/// How much the VMM was last told to slow the guest, in percent of the time of a vCPU.
#[derive(Debug, Default)]
struct Told {
    all: u8,
    /// By place among the vCPUs; empty as long as no vCPU was slowed by itself.
    each: Vec<u8>,
    /// How many vCPUs have a limit that dirty rings keep.
    in_rings: usize,
}

impl Told {
    fn is_slowed(&self) -> bool {
        self.all > 0 || self.slowed() > 0 || self.in_rings > 0
    }

    /// A number that changes when the guest is slowed otherwise.
    fn sum(&self) -> usize {
        let each = (1..).zip(&self.each);
        let each = each.map(|(vcpu, percent)| vcpu * usize::from(*percent));
        let rings = self.in_rings << 16;
        each.fold(usize::from(self.all) + rings, usize::wrapping_add)
    }

    /// How many vCPUs are slowed by themselves.
    fn slowed(&self) -> usize {
        self.each.iter().filter(|percent| **percent > 0).count()
    }
}

/// See the file's description.
pub(super) struct Steer {
    shared: Arc<Migration<Leaving, State>>,
    vmm: Callbacks,
    decider: Asked,
    policies: Policies,
    /// The orders that the policies are set by.
    order: Order,
    bounds: Option<Bounds>,
    told: Told,
    /// The VMM was told that slowing the guest failed.
    warned: bool,
    /// Letting the guest go has failed. It is tried once more before the guest is paused.
    owed: bool,
    /// The VMM was told that this deadline has passed, and that the migration carries on.
    passed: Option<Duration>,
    /// Why the guest is paused however long the downtime is.
    knowingly: Option<&'static str>,
    /// See [`Steer::ring`].
    ring: Pages,
    /// The VMM was told that the rings are too large.
    told_rings: bool,
}

/// Refuses a policy that slows a guest which cannot be slowed so.
pub(super) fn check(policy: &Policy, guest: &Leaving, vmm: &dyn Vmm) -> Result<()> {
    let needs = match policy.slowing {
        Slowing::Off => false,
        Slowing::AutoConverge => true,
        Slowing::DirtyLimit if !guest.tracker.counts_vcpus() => return Err(Error::new(
            Kind::Unsupported,
            "the policy limits single vCPUs, and no dirty log of this guest tells them apart: it \
                 needs KVM's dirty rings",
        )),
        Slowing::DirtyLimit => !guest.tracker.can_limit_vcpus(),
    };
    if needs && !vmm.can_throttle() {
        return Err(Error::new(
            Kind::Invalid,
            "the policy slows the guest: it needs the operation `throttle`, which this VMM does not \
             have",
        ));
    }
    Ok(())
}

impl Steer {
    pub(super) fn new(shared: &Arc<Migration<Leaving, State>>, decider: Asked) -> Result<Self> {
        let order = shared.guest.orders.lock().clone();
        Ok(Steer {
            vmm: shared.callbacks(),
            shared: Arc::clone(shared),
            decider,
            policies: Policies::new(order.policy.clone(), order.limit)?,
            order,
            bounds: None,
            told: Told::default(),
            warned: false,
            owed: false,
            passed: None,
            knowingly: None,
            ring: shared.guest.tracker.limit_granularity(),
            told_rings: false,
        })
    }

    /// The downtime limit in use.
    pub(super) fn limit(&self) -> Duration {
        self.policies.limit()
    }

    /// Why the guest is paused for however long it takes; `None` when the limit counts.
    pub(super) fn knowingly(&self) -> Option<&'static str> {
        self.knowingly
    }

    /// What the policy wants in the middle of a pass, and how often.
    pub(super) fn in_pass(&self) -> (InPass, Duration) {
        let rings = self.ring.0 > 0;
        (self.policies.in_pass(rings), self.policies.policy().sync)
    }

    /// The entries of a vCPU's dirty ring where rings can keep limits; 0 elsewhere.
    pub(super) fn ring(&self) -> Pages {
        self.ring
    }

    /// How many vCPUs are limited by their rings.
    pub(super) fn limited_in_rings(&self) -> u32 {
        u32::try_from(self.told.in_rings).unwrap_or(u32::MAX)
    }

    /// By how much all vCPUs are slowed, in percent.
    pub(super) fn throttle(&self) -> u8 {
        self.told.all
    }

    /// How many vCPUs have a limit of their own.
    pub(super) fn limited(&self) -> usize {
        self.told.slowed() + self.told.in_rings
    }

    /// The policy at work.
    pub(super) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The decider of forecasts: brant's own as it is now. Where the VMM has one of its own, brant's
    /// with the migration's parameters and the policy's bounds.
    pub(super) fn forecaster(&self) -> FitsDowntime {
        let bounds = self.policies.bounds();
        let mut decider = match &self.decider {
            Asked::Own(own) => own.clone(),
            Asked::Vmm(_) => self.shared.params.decider(),
        };
        decider.set_bounds(&bounds);
        decider
    }

    /// The stall that the migration is in.
    pub(super) fn stalled(&self) -> Option<Stalled> {
        self.policies.stalled()
    }

    /// Asks what to do next. `fresh` is what a sync has just shown. Without it the guest is slowed
    /// as before.
    pub(super) fn ask(&mut self, facts: &Facts, fresh: Option<&Fresh<'_>>) -> Result<Next> {
        self.take_orders()?;
        self.tell_deadline(facts);
        self.knowingly = None;
        let fits = asking::ask(self.decider.asked(), facts)?.next;
        let Some(fresh) = fresh else {
            return Ok(match (self.order.now, facts.expected_downtime()) {
                _ if self.order.postcopy => Next::Sync,
                (true, Some(_)) => Next::Sync,
                _ => self.policies.walking(facts, &fits),
            });
        };
        let fits = match (self.order.now, facts.expected_downtime()) {
            (true, Some(expected)) if facts.moment == Moment::Synced => {
                self.knowingly = Some("the switchover was asked for");
                Next::SwitchOver { expected }
            }
            _ => fits,
        };
        let limit = self.limit();
        let steer = self
            .policies
            .steer(facts, &fits, fresh.rates, fresh.waited)?;
        if let Some(stalled) = &steer.stalled {
            self.tell_stalled(facts, stalled);
        }
        self.tell_limit(limit);
        if self.order.postcopy && !matches!(steer.next, Next::GiveUp(_)) {
            self.policies.end();
            self.slow(fresh.vcpus);
            let why = "it was asked for";
            return Ok(Next::Postcopy { why });
        }
        let paused = matches!(steer.next, Next::SwitchOver { .. });
        if paused && !matches!(fits, Next::SwitchOver { .. }) && self.finishes() {
            self.knowingly = Some("the policy pauses it to finish");
        }
        self.ring = self.shared.guest.tracker.limit_granularity();
        self.slow(fresh.vcpus);
        self.tell_rings(facts);
        Ok(steer.next)
    }

    /// Asks whether a guest that stands still is switched over.
    pub(super) fn judge(&mut self, facts: &Facts) -> Result<Verdict> {
        self.take_orders()?;
        if self.knowingly.is_some() || self.order.now {
            return Ok(Verdict::GoThrough);
        }
        let verdict = asking::judge(self.decider.asked(), facts)?;
        let limit = self.limit();
        let verdict = self.policies.judge(facts, verdict);
        self.tell_limit(limit);
        Ok(verdict)
    }

    /// Tells that the downtime limit has risen above `before`.
    fn tell_limit(&self, before: Duration) {
        if self.limit() > before {
            let text = format!("the downtime limit rises to {}", millis(self.limit()));
            self.vmm.event(EventKind::Downtime, text);
        }
    }

    /// Whether the VMM has ordered the switch to postcopy.
    pub(super) fn postcopy_is_ordered(&self) -> bool {
        self.order.postcopy
    }

    /// An order for postcopy is not followed, and forgotten.
    pub(super) fn drop_postcopy(&mut self) {
        self.shared.guest.orders.lock().postcopy = false;
        self.order.postcopy = false;
        self.policies.go_on();
    }

    /// After an aborted pause: slows the guest as before the pause, until the next sync shows more.
    pub(super) fn go_on(&mut self, vcpus: &[u32]) {
        self.policies.go_on();
        self.slow(vcpus);
    }

    /// Nobody is slowed any more: the guest is about to be paused, or the migration is over.
    pub(super) fn let_go(&mut self) {
        let again = std::mem::take(&mut self.owed);
        let result = match again {
            true => self.throttle_all(0).and(self.lift()),
            false => self.lift(),
        };
        let Err(e) = result else { return };
        // Whoever fails twice would fail again, at a moment when the guest stands still.
        self.told = Told::default();
        if !std::mem::replace(&mut self.warned, true) {
            let text = format!("the guest may stay slowed: {e}");
            self.vmm.event(EventKind::Warning, text);
        }
    }

    fn lift(&mut self) -> Result<()> {
        if !self.told.is_slowed() && !self.has_limits_of_others() {
            return Ok(());
        }
        self.limit_in_rings(&[])?;
        if self.told.all > 0 || self.told.slowed() > 0 {
            self.throttle_all(0)?;
        }
        self.tell_throttle();
        Ok(())
    }

    fn finishes(&self) -> bool {
        self.policies.policy().on_deadline == OnDeadline::PauseToFinish
    }

    /// Puts new orders into effect.
    fn take_orders(&mut self) -> Result<()> {
        let order = self.shared.guest.orders.lock().clone();
        if order != self.order {
            let (now, was) = (&order.policy, &self.order.policy);
            let same = (now.slowing, now.throttle_max) == (was.slowing, was.throttle_max);
            if !same {
                // A pass may take hours, and nothing is learnt about the guest before its end when
                // the new policy does not slow it.
                self.let_go();
            }
            self.told_rings = false;
            self.policies.set(order.policy.clone(), order.limit)?;
            self.order = order;
        }
        let bounds = self.policies.bounds();
        if self.bounds.replace(bounds) != Some(bounds) {
            self.decider.asked().set_bounds(&bounds);
        }
        Ok(())
    }

    /// Slows the guest as the policy says. When that fails, the guest is not slowed any more and the
    /// migration goes on.
    fn slow(&mut self, vcpus: &[u32]) {
        let before = self.told.sum();
        let Err(e) = self.try_slow(vcpus) else {
            if before != self.told.sum() {
                self.tell_throttle();
            }
            return;
        };
        self.policies.stop_slowing();
        let now = match self.lift() {
            Ok(()) => "is not slowed",
            Err(_) => {
                self.told = Told::default();
                self.owed = true;
                "may stay slowed"
            }
        };
        if !std::mem::replace(&mut self.warned, true) {
            let text = format!("the guest {now}, and the migration goes on: {e}");
            self.vmm.event(EventKind::Warning, text);
        }
    }

    fn try_slow(&mut self, vcpus: &[u32]) -> Result<()> {
        let percent = self.policies.throttle();
        if percent != self.told.all {
            self.throttle_all(percent)?;
        }
        if !self.shared.guest.tracker.can_limit_vcpus() {
            return self.slow_vcpus(vcpus);
        }
        let mut limits = Vec::new();
        fallible::reserve(&mut limits, vcpus.len(), "the dirty limits of vCPUs")?;
        let each = vcpus.iter().zip(self.policies.limits());
        limits.extend(each.filter_map(|(vcpu, limit)| {
            Some(VcpuLimit {
                vcpu: *vcpu,
                pages_per_second: limit?,
            })
        }));
        self.limit_in_rings(&limits)
    }

    /// Whether rings keep limits that the VMM has set, and that this policy replaces.
    fn has_limits_of_others(&self) -> bool {
        self.policies.policy().slowing == Slowing::DirtyLimit
            && self.shared.guest.tracker.has_vcpu_limits()
    }

    /// Replaces the limits that dirty rings keep.
    fn limit_in_rings(&mut self, limits: &[VcpuLimit]) -> Result<()> {
        if limits.is_empty() && self.told.in_rings == 0 && !self.has_limits_of_others() {
            return Ok(());
        }
        self.told.in_rings = self.told.in_rings.max(limits.len());
        self.shared.guest.tracker.limit_vcpus(limits)?;
        self.told.in_rings = limits.len();
        Ok(())
    }

    /// Slows all vCPUs by `percent`, whatever was told of each before. A call that fails may have had
    /// its effect.
    fn throttle_all(&mut self, percent: u8) -> Result<()> {
        self.told.all = self.told.all.max(percent);
        self.vmm
            .call("throttle", |vmm| vmm.throttle(None, percent))?;
        self.told.all = percent;
        self.told.each.fill(0);
        Ok(())
    }

    /// Slows single vCPUs so that each keeps its limit.
    fn slow_vcpus(&mut self, vcpus: &[u32]) -> Result<()> {
        let most = self.policies.policy().throttle_max;
        let told = &mut self.told.each;
        if let Some(more) = vcpus.len().checked_sub(told.len()).filter(|more| *more > 0) {
            fallible::reserve(told, more, "the throttles of vCPUs")?;
            told.resize(vcpus.len(), 0);
        }
        let speeds = self.policies.speeds().chain(std::iter::repeat(None));
        for ((vcpu, told), speed) in vcpus.iter().zip(told).zip(speeds) {
            let percent = speed.map_or(0, |speed| percent_of(speed, most));
            if percent != *told {
                *told = percent.max(*told);
                self.vmm
                    .call("throttle", |vmm| vmm.throttle(Some(*vcpu), percent))?;
                *told = percent;
            }
        }
        Ok(())
    }

    fn tell_throttle(&self) {
        let text = match (self.told.all, self.limited()) {
            (0, 0) => "the guest is not slowed any more".to_owned(),
            (0, 1) => "1 vCPU is slowed".to_owned(),
            (0, vcpus) => format!("{vcpus} vCPUs are slowed"),
            (percent, _) => format!("the guest is slowed by {percent} percent"),
        };
        self.vmm.event(EventKind::Throttle, text);
    }

    /// Says once, when the limits of vCPUs take effect, that their rings are too large for the
    /// downtime limit.
    fn tell_rings(&mut self, facts: &Facts) {
        if self.told_rings || self.told.in_rings == 0 {
            return;
        }
        let mut facts = *facts;
        (facts.limited_vcpus, facts.ring) = (self.limited_in_rings(), self.ring);
        if let Some(rings) = too_large(&facts, self.policies.highest()) {
            self.vmm.event(EventKind::Warning, rings.describe());
            self.told_rings = true;
        }
    }

    /// A migration that carries on after its deadline says so once.
    fn tell_deadline(&mut self, facts: &Facts) {
        let policy = self.policies.policy();
        let passed = policy.deadline.filter(|deadline| {
            policy.on_deadline == OnDeadline::CarryOn && facts.elapsed >= *deadline
        });
        if let Some(deadline) = passed.filter(|_| passed != self.passed) {
            let text = format!(
                "the deadline of {:.1} s has passed, and the migration goes on",
                deadline.as_secs_f64()
            );
            self.vmm.event(EventKind::Warning, text);
            self.passed = passed;
        }
    }

    fn tell_stalled(&self, facts: &Facts, stalled: &Stalled) {
        let without = facts.elapsed.saturating_sub(stalled.since);
        let text = format!(
            "no progress for {:.1} s: {}",
            without.as_secs_f64(),
            stalled.cause.describe()
        );
        self.vmm.event(EventKind::Stalled, text);
    }
}

/// The throttle of a vCPU that may go on at this share of its speed.
fn percent_of(speed: f64, most: u8) -> u8 {
    let percent = (100.0 * (1.0 - speed)).ceil();
    (percent.clamp(0.0, 99.0) as u8).min(most)
}

impl Drop for Steer {
    fn drop(&mut self) {
        self.let_go();
    }
}
