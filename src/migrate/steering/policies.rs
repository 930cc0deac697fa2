//! What is done about a migration that does not converge by itself: the policy. Pure.
//!
//! Example: a guest dirties one and a half times what the link carries, under a limit of 50 ms and a
//! deadline of 60 s. Without a policy the migration runs until it times out. With auto-converge the
//! guest is slowed and the rest shrinks. With a ceiling the limit rises. With
//! [`OnDeadline::PauseToFinish`] the guest is paused early enough that all is sent by the deadline.
//!
//! A policy does not decide whether the rest fits the downtime limit: another decider does, and its
//! answer is an argument of [`Policies::steer`]. What the policy adds:
//!
//! - how much to slow the guest ([`AutoConverge`], [`DirtyLimit`]);
//! - a higher limit ([`RisingLimit`]);
//! - the end when time is up or nothing helps ([`StallDetector`]).
//!
//! **A guest that is paused, and one whose migration ends, is not slowed.** So every answer other
//! than "go on" comes with a throttle of 0 and no limits.

use super::dirty_limit::DirtyLimit;
use super::facts::{Bounds, Facts, Moment, Next, Verdict};
use super::limited_rings::too_large;
use super::rising::RisingLimit;
use super::stall::{PassEnd, StallDetector, Stalled};
use super::throttle::{AutoConverge, Load};
use crate::error::{Error, Kind, Result};
use crate::units::Bytes;
use std::time::Duration;

pub use super::policy::{OnDeadline, Policy, Slowing};

/// A pass that leaves less than this share of what it sent has made the rest smaller. Example: a guest
/// that writes 0.9 of what the link carries converges by itself, so its limit does not rise. A ratio of
/// 0.97 takes 76 passes to leave a tenth.
const SHRINKS: f64 = 0.97;
/// So many syncs in a row must find that no pass keeps the limit.
const BEYOND: u32 = 3;

/// What is done in the middle of a long pass, so that a policy knows how fast the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InPass {
    /// Nothing.
    Nothing,
    /// Dirty state is synced.
    Sync,
    /// What each vCPU has written is read from the counts of its log, without a sync.
    Count,
}

/// What a policy answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Steer {
    /// What the migration does next. [`Next::SwitchOver`] with a downtime above the limit is a pause
    /// to finish.
    pub next: Next,
    /// The throttle for all vCPUs, in percent. The limits of single vCPUs are in
    /// [`Policies::limits`].
    pub throttle: u8,
    /// The downtime limit from now on.
    pub limit: Duration,
    /// A stall that has just begun, or whose cause has changed.
    pub stalled: Option<Stalled>,
}

/// A policy at work in one migration.
#[derive(Debug, Clone, PartialEq)]
pub struct Policies {
    policy: Policy,
    /// The downtime limit that was wished, below which the limit in use never is.
    limit: Duration,
    throttle: AutoConverge,
    limits: DirtyLimit,
    rising: RisingLimit,
    stall: StallDetector,
    /// The pass whose end has been judged.
    judged: u32,
    /// How many syncs in a row have found that no pass keeps the limit.
    beyond: u32,
    /// The throttle and the limits are off, because the guest is paused or the migration has ended.
    off: bool,
}

impl Policies {
    /// Puts a policy to work, in a migration with the downtime limit `limit`. [`Kind::Invalid`] as
    /// [`Policy::check`] says.
    pub fn new(policy: Policy, limit: Duration) -> Result<Self> {
        policy.check(limit)?;
        Ok(Policies {
            throttle: AutoConverge::new(policy.throttle_max),
            limits: DirtyLimit::default(),
            rising: RisingLimit::new(limit, policy.ceiling.unwrap_or(limit)),
            stall: StallDetector::new(policy.patience),
            judged: 0,
            beyond: 0,
            off: false,
            policy,
            limit,
        })
    }

    /// Replaces the policy and the downtime limit while the migration runs. A throttle or limits of
    /// another kind end; what is known about progress stays when the patience is the same.
    pub fn set(&mut self, policy: Policy, limit: Duration) -> Result<()> {
        policy.check(limit)?;
        let same = policy.slowing == self.policy.slowing
            && policy.throttle_max == self.policy.throttle_max;
        if !same {
            self.throttle = AutoConverge::new(policy.throttle_max);
            self.limits.end();
        }
        if (limit, policy.ceiling) != (self.limit, self.policy.ceiling) {
            self.rising = RisingLimit::new(limit, policy.ceiling.unwrap_or(limit));
        }
        if policy.patience != self.policy.patience {
            self.stall = StallDetector::new(policy.patience);
        }
        (self.policy, self.limit) = (policy, limit);
        Ok(())
    }

    /// The downtime limit. The decider that judges the rest uses it.
    pub fn limit(&self) -> Duration {
        self.rising.limit()
    }

    /// The bounds of the downtime, for the decider that judges the rest.
    pub fn bounds(&self) -> Bounds {
        let limit = self.limit();
        Bounds {
            limit,
            ceiling: match self.policy.on_deadline {
                OnDeadline::PauseToFinish => None,
                _ => Some(self.policy.ceiling.unwrap_or(limit)),
            },
            deadline: match self.policy.on_deadline {
                OnDeadline::CarryOn => None,
                _ => self.policy.deadline,
            },
            patience: self.policy.patience,
        }
    }

    /// The same policies with another downtime limit. A ceiling below it rises to it.
    pub(super) fn with_limit(&self, limit: Duration) -> Self {
        let ceiling = self.policy.ceiling.unwrap_or(limit);
        Policies {
            limit,
            rising: RisingLimit::new(limit, ceiling),
            ..self.clone()
        }
    }

    /// The highest that the downtime limit can become.
    pub(in crate::migrate) fn highest(&self) -> Duration {
        self.policy.ceiling.unwrap_or(self.limit).max(self.limit)
    }

    /// The throttle of all vCPUs now, in percent.
    pub fn throttle(&self) -> u8 {
        if self.off {
            0
        } else {
            self.throttle.percent()
        }
    }

    /// The same policies for a guest with one vCPU that writes for all.
    pub(super) fn lumped(&self) -> Self {
        Policies {
            limits: DirtyLimit::default(),
            ..self.clone()
        }
    }

    /// The dirty limit of each vCPU in pages a second; `None`: not limited. Empty before the first
    /// limits.
    pub fn limits(&self) -> impl Iterator<Item = Option<f64>> + '_ {
        self.limits.limits().filter(|_| !self.off)
    }

    /// The share of its speed that each vCPU keeps; `None`: not limited. Empty before the first
    /// limits.
    pub fn speeds(&self) -> impl Iterator<Item = Option<f64>> + '_ {
        self.limits.speeds().filter(|_| !self.off)
    }

    /// The VMM cannot slow the guest. The policy goes on without that.
    pub fn stop_slowing(&mut self) {
        self.policy.slowing = Slowing::Off;
        self.throttle.end();
        self.limits.end();
    }

    /// What is to be done in the middle of a long pass, every [`Policy::sync`]: a policy that may slow
    /// the guest needs fresh rates, even before it first acts. `rings`: dirty rings keep the limits of
    /// single vCPUs.
    ///
    /// A sync empties every ring, also that of a vCPU over its limit, which then writes one ring more
    /// than it may. Example: a ring of 16,384 entries and a sync every 2 s let 33 MB/s through, whatever
    /// the limit. So while rings keep limits, none is synced before the pass ends. The rings count what
    /// each vCPU writes without a sync.
    pub fn in_pass(&self, rings: bool) -> InPass {
        match self.policy.slowing {
            Slowing::Off => InPass::Nothing,
            Slowing::DirtyLimit if rings && self.limits.limited() > 0 => InPass::Count,
            Slowing::DirtyLimit | Slowing::AutoConverge => InPass::Sync,
        }
    }

    /// The policy at work.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The stall that the migration is in.
    pub fn stalled(&self) -> Option<Stalled> {
        self.stall.stalled()
    }

    /// Decides. `fits` is what the downtime decider answered to the same facts, with the limit of
    /// [`Policies::limit`]. `vcpus` are the pages a second that each vCPU wrote, empty when no log
    /// tells. `waited` is the share of the last pass in which the destination's acknowledgement was
    /// awaited.
    ///
    /// [`Kind::NoMemory`] when there is none for the limits of so many vCPUs.
    pub fn steer(
        &mut self,
        facts: &Facts,
        fits: &Next,
        vcpus: &[f64],
        waited: f64,
    ) -> Result<Steer> {
        let load = Load::of(facts);
        self.judge_limit(facts);
        let stalled = self.judge_pass(facts, &load, waited);
        let next = self.next(facts, fits);
        self.off = matches!(
            next,
            Next::SwitchOver { .. } | Next::Postcopy { .. } | Next::GiveUp(_)
        );
        if !self.off {
            self.slow(facts, &load, vcpus)?;
        }
        Ok(Steer {
            next,
            throttle: self.throttle(),
            limit: self.limit(),
            stalled,
        })
    }

    /// Decides in the middle of a pass, when nothing new is known about what the guest dirties. The
    /// throttle stays as it is: to slow the guest twice for one measurement would slow it too much.
    pub fn walking(&self, facts: &Facts, fits: &Next) -> Next {
        self.next(facts, fits)
    }

    /// What becomes of a pause about which the downtime decider says `verdict`. Example: the limit has
    /// risen from 50 to 113 ms and may become 400, and the pause will take 113.3 ms. To abort it would
    /// interrupt the guest for nothing, because the next limit is 169 ms. So a limit that has risen
    /// rises to what the pause takes, and the pause goes through. A limit that has not risen is what was
    /// wished, and the verdict stands. Then the aborted pause counts as a pass that made nothing smaller.
    pub fn judge(&mut self, facts: &Facts, verdict: Verdict) -> Verdict {
        if verdict == Verdict::GoThrough {
            return verdict;
        }
        let expected = facts.expected_downtime();
        let rose = self.limit() > self.limit;
        if rose && expected.is_some_and(|expected| self.rising.rise_to(expected)) {
            return Verdict::GoThrough;
        }
        self.rising.pass_ended(false);
        verdict
    }

    /// A pause was aborted, and the guest runs on: it is slowed as before the pause.
    pub fn go_on(&mut self) {
        self.off = false;
    }

    /// The migration has ended, however. Returns the throttle to set: 0. No vCPU has a limit.
    pub fn end(&mut self) -> u8 {
        self.off = true;
        self.limits.end();
        self.throttle.end()
    }

    /// Raises a limit that no further pass keeps. One sync may have been slow because the machine
    /// was busy, so several in a row must say so.
    fn judge_limit(&mut self, facts: &Facts) {
        if facts.moment != Moment::Synced {
            return;
        }
        let beyond = facts.unavoidable().is_some_and(|t| t > self.limit());
        self.beyond = if beyond { self.beyond + 1 } else { 0 };
        if self.beyond >= BEYOND {
            self.rising.pass_ended(false);
        }
    }

    /// At the end of a pass: whether it was progress.
    fn judge_pass(&mut self, facts: &Facts, load: &Load, waited: f64) -> Option<Stalled> {
        let pass = facts.last_pass.filter(|pass| {
            facts.moment == Moment::Synced && pass.number > self.judged && pass.pages.0 > 0
        })?;
        self.judged = pass.number;
        let sent = pass.pages.bytes().0 as f64;
        let left = facts.remaining.0 as f64;
        if pass.number > 1 {
            self.rising.pass_ended(left <= sent * SHRINKS);
        }
        let seconds = pass.time.as_secs_f64();
        self.stall.pass_ended(&PassEnd {
            at: facts.elapsed,
            left,
            link: if seconds > 0.0 { sent / seconds } else { 0.0 },
            dirty: load.dirty.unwrap_or(0.0),
            waited,
            slowed_most: match self.policy.slowing {
                Slowing::Off => false,
                Slowing::AutoConverge => self.throttle.is_at_most(),
                Slowing::DirtyLimit => self.limits.is_at_most(),
            },
        })
    }

    /// Slows the guest or lets it go. The first pass sends all memory, so slowing the guest then
    /// would cost it the most and help the least. Once the rest fits, the guest is slowed as before:
    /// the passes that still follow need no further slowing.
    fn slow(&mut self, facts: &Facts, load: &Load, vcpus: &[f64]) -> Result<()> {
        let expected = facts.expected_downtime();
        let fits = facts.moment == Moment::Synced && expected.is_some_and(|e| e <= self.limit());
        if facts.last_pass.is_none() || fits {
            return Ok(());
        }
        match self.policy.slowing {
            Slowing::Off => {}
            Slowing::AutoConverge => {
                self.throttle.next(load);
            }
            Slowing::DirtyLimit => self.limits.next(load, vcpus)?,
        }
        Ok(())
    }

    /// Why the guest is to be sent ahead of its pages now.
    fn to_postcopy(&self, facts: &Facts, fits: &Next) -> Option<&'static str> {
        if self.policy.on_deadline != OnDeadline::Postcopy {
            return None;
        }
        let passed = self.policy.deadline.is_some_and(|at| facts.elapsed >= at);
        match fits {
            Next::SwitchOver { .. } | Next::Postcopy { .. } => None,
            Next::GiveUp(error) if error.kind() == Kind::NotConverged => {
                Some("the downtime limit cannot be kept otherwise")
            }
            Next::GiveUp(_) => None,
            _ if passed => Some("the policy's deadline has passed"),
            _ if self.stall.stalled().is_some() => Some("the migration makes no progress"),
            _ => None,
        }
    }

    fn next(&self, facts: &Facts, fits: &Next) -> Next {
        if let Some(why) = self.to_postcopy(facts, fits) {
            return match facts.moment {
                Moment::Synced => Next::Postcopy { why },
                _ => Next::Sync,
            };
        }
        if matches!(fits, Next::SwitchOver { .. } | Next::GiveUp(_)) {
            return fits.clone();
        }
        let to_finish = self.policy.on_deadline == OnDeadline::PauseToFinish;
        if facts.moment != Moment::Synced {
            return match self.time_is_up(facts) {
                Some(error) => Next::GiveUp(error),
                None if to_finish && self.must_end_pass(facts) => Next::Sync,
                None => fits.clone(),
            };
        }
        let stalled = self.stall.stalled().is_some() && self.stall.is_local_minimum();
        if let Some(expected) = facts.expected_downtime() {
            let within = expected <= self.limit();
            let rose = self.limit() > self.limit;
            if (to_finish && (stalled || self.is_last_chance(facts, expected)))
                || (rose && within && self.is_settled(facts))
            {
                return Next::SwitchOver { expected };
            }
        }
        match self.time_is_up(facts) {
            Some(error) => Next::GiveUp(error),
            None => fits.clone(),
        }
    }

    /// Whether the last pass left hardly less than it sent, so that another one does not help.
    fn is_settled(&self, facts: &Facts) -> bool {
        facts
            .last_pass
            .is_some_and(|pass| facts.remaining.0 as f64 > 0.9 * pass.pages.bytes().0 as f64)
    }

    /// The guest has to be paused now: after a further pass it would be too late.
    fn is_last_chance(&self, facts: &Facts, expected: Duration) -> bool {
        let another = facts.further_pass().unwrap_or(expected);
        self.policy.deadline.is_some_and(|deadline| {
            let after = facts.elapsed.saturating_add(another);
            // What remains after a further pass is not known; as much as now is the worst case of
            // a guest that does not get faster.
            after.saturating_add(expected) > deadline
        })
    }

    /// The pass has to end with a sync, so that the guest can be paused in time.
    fn must_end_pass(&self, facts: &Facts) -> bool {
        let unseen = facts.dirty_rate.unwrap_or(0.0) * facts.since_sync.as_secs_f64() * 4096.0;
        let mut then = *facts;
        let remaining = (facts.remaining.0 as f64 + unseen).min(facts.total.0 as f64);
        then.remaining = Bytes((remaining as u64).max(facts.remaining.0));
        then.moment = Moment::Synced;
        let Some(expected) = then.expected_downtime() else {
            return false;
        };
        self.policy.deadline.is_some_and(|deadline| {
            let now = facts.elapsed.saturating_add(facts.sync_time);
            now.saturating_add(expected) >= deadline
        })
    }

    fn time_is_up(&self, facts: &Facts) -> Option<Error> {
        let deadline = self.policy.deadline?;
        let cancel = self.policy.on_deadline == OnDeadline::Cancel;
        (cancel && facts.elapsed >= deadline).then(|| {
            let slowed = match self.policy.slowing {
                Slowing::Off => "the guest was not slowed".to_owned(),
                Slowing::AutoConverge => {
                    format!("the guest is slowed by {} percent", self.throttle.percent())
                }
                Slowing::DirtyLimit => {
                    format!("{} vCPUs have a dirty limit", self.limits.limited())
                }
            };
            // A limit may just be decided on, and not be in force yet.
            let limited = u32::try_from(self.limits.limited()).unwrap_or(u32::MAX);
            let facts = &Facts {
                limited_vcpus: facts.limited_vcpus.max(limited),
                ..*facts
            };
            let rings = match too_large(facts, self.highest()) {
                Some(rings) => format!(": {}", rings.describe()),
                None => String::new(),
            };
            Error::new(
                Kind::NotConverged,
                format!(
                    "not converged by the deadline of {:.1} s: {:.1} MB remain after {} passes, and \
                     {slowed}{rings}. A later deadline, a higher downtime limit or a policy that slows the guest more would do",
                    deadline.as_secs_f64(),
                    facts.remaining.0 as f64 / 1e6,
                    facts.pass,
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests;
