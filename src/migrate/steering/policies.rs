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
use super::throttle::{AutoConverge, Load, MOST};
use crate::error::{Error, Kind, Result};
use crate::units::Bytes;
use std::time::Duration;

/// How a guest is slowed that dirties too much.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slowing {
    /// It is not slowed.
    #[default]
    Off,
    /// All vCPUs by the same percentage.
    AutoConverge,
    /// Only vCPUs that dirty, by a limit on the pages that each may write. Needs a log that tells
    /// vCPUs apart.
    DirtyLimit,
}

/// What happens to a migration that has not converged by its deadline.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDeadline {
    /// It fails, and the guest runs on at the source.
    #[default]
    Cancel,
    /// It goes on until it converges.
    CarryOn,
    /// The guest is paused so early that everything is sent by the deadline, however long it stands
    /// still. A migration that has stalled does not wait for the deadline.
    PauseToFinish,
    /// The guest runs on at the destination, and the pages that it lacks there follow it (postcopy). A
    /// migration that has stalled, or whose downtime limit cannot be kept, does not wait for the deadline.
    /// When the guest would stand still for longer than the limit even so, the migration fails.
    Postcopy,
}

/// A policy. It may be replaced while a migration runs. Fields may be added in later versions: name
/// the fields that you set, and take the others from [`Policy::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How the guest is slowed. It is not, by default.
    pub slowing: Slowing,
    /// The most by which a vCPU is slowed, 1 to 99 percent of its time; 99. Limits on the pages that
    /// a vCPU may write have no such bound where dirty rings keep them.
    pub throttle_max: u8,
    /// The ceiling up to which the downtime limit rises: from the limit to 1 h. `None`: the limit
    /// does not rise.
    pub ceiling: Option<Duration>,
    /// The time for the whole migration, counted from its start: 1 ms to 30 days, and no longer than
    /// the total timeout. `None`: there is no deadline.
    pub deadline: Option<Duration>,
    /// What happens at the deadline. The migration is cancelled, by default.
    pub on_deadline: OnDeadline,
    /// A migration without progress for this long has stalled, and so has one in which nothing moves
    /// for so long in the middle of a pass: 1 ms to 1 day; 10 s.
    pub patience: Duration,
    /// The time between two syncs in a long pass, 100 ms to 1 h; 2 s. Only a policy that slows the
    /// guest syncs in the middle of a pass, and not while dirty rings keep limits: then it reads every
    /// so often what each vCPU has written.
    pub sync: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            slowing: Slowing::Off,
            throttle_max: MOST,
            ceiling: None,
            deadline: None,
            on_deadline: OnDeadline::Cancel,
            patience: Duration::from_secs(10),
            sync: Duration::from_secs(2),
        }
    }
}

/// A pass that leaves less than this share of what it sent has made the rest smaller. Example: a guest
/// that writes 0.9 of what the link carries converges by itself, so its limit does not rise. A ratio of
/// 0.97 takes 76 passes to leave a tenth.
const SHRINKS: f64 = 0.97;
/// So many syncs in a row must find that no pass keeps the limit.
const BEYOND: u32 = 3;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Policy {
    /// Refuses a field that is out of its range, for a migration that begins with the downtime limit
    /// `limit`: [`Kind::Invalid`] with the range.
    pub fn check(&self, limit: Duration) -> Result<()> {
        let invalid = |message: String| Err(Error::new(Kind::Invalid, message));
        if !(1..=MOST).contains(&self.throttle_max) {
            return invalid(format!(
                "the largest throttle is {} percent; it can be 1 to {MOST}",
                self.throttle_max
            ));
        }
        let times = [
            (
                "the ceiling of the downtime limit",
                self.ceiling,
                limit,
                HOUR,
            ),
            (
                "the deadline",
                self.deadline,
                Duration::from_millis(1),
                DAY * 30,
            ),
            (
                "the time without progress that makes a stall",
                Some(self.patience),
                Duration::from_millis(1),
                DAY,
            ),
            (
                "the time between two background syncs",
                Some(self.sync),
                Duration::from_millis(100),
                HOUR,
            ),
        ];
        for (name, time, least, most) in times {
            let Some(time) = time.filter(|time| !(least..=most).contains(time)) else {
                continue;
            };
            return invalid(format!(
                "{name} is {} ms; it can be {} to {} ms",
                time.as_millis(),
                least.as_millis(),
                most.as_millis()
            ));
        }
        Ok(())
    }
}

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
mod tests {
    use super::*;
    use crate::migrate::PassFacts;
    use crate::units::Pages;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_millis(300);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// After the `number`th pass, which sent `sent` MB and left `left` MB, on a link of 100 MB/s, at
    /// `elapsed` seconds. The guest dirties 150 MB/s.
    fn after(number: u32, sent: u64, left: u64, elapsed: u64) -> Facts {
        let pages = Bytes(sent * 1_000_000).pages_down();
        Facts {
            pass: number,
            elapsed: secs(elapsed),
            total: Bytes(10_000_000_000),
            remaining: Bytes(left * 1_000_000),
            bandwidth: Some(100e6),
            dirty_rate: Some(150e6 / 4096.0),
            last_pass: Some(PassFacts {
                number,
                pages,
                data: pages,
                time: Duration::from_millis(sent * 10),
            }),
            ..Facts::default()
        }
    }

    fn steer(policies: &mut Policies, facts: &Facts) -> Steer {
        policies.steer(facts, &Next::GoOn, &[], 0.0).unwrap()
    }

    fn with(policy: Policy) -> Policies {
        Policies::new(policy, LIMIT).unwrap()
    }

    #[test]
    fn without_a_policy_the_downtime_decider_decides_alone() {
        let mut policies = with(Policy::default());
        for next in [
            Next::GoOn,
            Next::Sync,
            Next::SwitchOver { expected: secs(1) },
            Next::GiveUp(Error::new(Kind::NotConverged, "no")),
        ] {
            let facts = after(3, 100, 100, 1_000_000);
            let steer = policies.steer(&facts, &next, &[1e9], 0.0).unwrap();
            assert_eq!((steer.next, steer.throttle), (next, 0));
            assert_eq!(policies.limits().flatten().count(), 0);
        }
        assert_eq!(policies.in_pass(true), InPass::Nothing);
    }

    #[test]
    fn auto_converge_acts_from_the_end_of_the_first_pass() {
        let mut policies = with(Policy {
            slowing: Slowing::AutoConverge,
            ..Policy::default()
        });
        assert_eq!(policies.in_pass(true), InPass::Sync);
        let mut first = after(1, 1000, 1000, 1);
        (first.moment, first.last_pass) = (Moment::Walking, None);
        assert_eq!(steer(&mut policies, &first).throttle, 0);
        assert_eq!(steer(&mut policies, &after(1, 1000, 1000, 10)).throttle, 72);
    }

    #[test]
    fn a_guest_at_nine_tenths_of_the_link_converges_by_itself_and_its_limit_does_not_rise() {
        let mut policies = with(Policy {
            ceiling: Some(secs(1)),
            ..Policy::default()
        });
        for (pass, left) in (2..12).zip([90, 91, 89, 92, 88, 95, 90, 85, 91, 90]) {
            let steer = steer(&mut policies, &after(pass, 100, left, 11));
            assert_eq!(steer.limit, LIMIT, "{left} of 100 MB");
        }
        assert!(steer(&mut policies, &after(12, 100, 98, 11)).limit > LIMIT);
    }

    #[test]
    fn a_pause_within_the_ceiling_goes_through_once_the_limit_has_risen() {
        let paused = |left: u64| Facts {
            moment: Moment::Paused,
            ..after(3, 100, left, 11)
        };
        let ceiling = Some(Duration::from_millis(700));
        let policy = |ceiling| Policy {
            ceiling,
            ..Policy::default()
        };
        // 31 MB take 310 ms. The limit of 300 ms was wished and has not risen.
        let mut policies = with(policy(ceiling));
        assert_eq!(
            policies.judge(&paused(31), Verdict::Resume),
            Verdict::Resume
        );
        // The aborted pause has raised it to 450 ms.
        assert_eq!(policies.limit(), Duration::from_millis(450));
        let verdict = policies.judge(&paused(46), Verdict::Resume);
        assert_eq!(verdict, Verdict::GoThrough);
        assert_eq!(policies.limit().as_millis(), 460);
        // Nothing goes beyond the ceiling.
        assert_eq!(
            policies.judge(&paused(71), Verdict::Resume),
            Verdict::Resume
        );
        // Without a ceiling each limit is what was wished.
        let mut policies = with(policy(None));
        for _ in 0..3 {
            assert_eq!(
                policies.judge(&paused(31), Verdict::Resume),
                Verdict::Resume
            );
            assert_eq!(policies.limit(), LIMIT);
        }
    }

    #[test]
    fn while_rings_keep_limits_only_the_ends_of_passes_sync() {
        let mut policies = with(Policy {
            slowing: Slowing::DirtyLimit,
            ..Policy::default()
        });
        // Nobody is limited yet.
        assert_eq!(policies.in_pass(true), InPass::Sync);
        let facts = after(3, 100, 100, 11);
        let mut steer = |rates: &[f64]| {
            policies.steer(&facts, &Next::GoOn, rates, 0.0).unwrap();
            (policies.in_pass(true), policies.in_pass(false))
        };
        assert_eq!(steer(&[0.0, 36_000.0]), (InPass::Count, InPass::Sync));
        // The writer becomes quiet, and its limit goes.
        assert_eq!(steer(&[0.0, 500.0]), (InPass::Sync, InPass::Sync));
        steer(&[0.0, 36_000.0]);
        policies.stop_slowing();
        assert_eq!(policies.in_pass(true), InPass::Nothing);
    }

    #[test]
    fn an_error_at_the_deadline_names_rings_that_are_too_large() {
        let mut policies = with(Policy {
            slowing: Slowing::DirtyLimit,
            deadline: Some(secs(10)),
            ..Policy::default()
        });
        let mut facts = after(3, 100, 100, 11);
        let error = |policies: &mut Policies, facts: &Facts| match steer(policies, facts).next {
            Next::GiveUp(error) => error.message().to_owned(),
            other => panic!("{other:?}"),
        };
        (facts.limited_vcpus, facts.ring) = (2, Pages(1024));
        assert!(!error(&mut policies, &facts).contains("entries"));
        facts.ring = Pages(16_384);
        let text = error(&mut policies, &facts);
        assert!(
            text.contains("the dirty rings of 2 limited vCPUs have 16384 entries each"),
            "{text}"
        );
        assert!(text.contains("rings of 2048 entries or"), "{text}");
    }

    #[test]
    fn a_guest_whose_rest_fits_is_not_slowed_further() {
        let mut policies = with(Policy {
            slowing: Slowing::AutoConverge,
            ..Policy::default()
        });
        assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
        // 20 MB fit 300 ms, and 60 MB do not.
        for (left, more) in [(20, false), (60, true)] {
            let throttle = steer(&mut policies, &after(3 + left as u32, 60, left, 11)).throttle;
            assert_eq!(throttle > 72, more, "{left} MB: {throttle}");
        }
    }

    #[test]
    fn after_an_aborted_pause_the_guest_is_slowed_as_before_without_a_further_sync() {
        let mut policies = with(Policy {
            slowing: Slowing::AutoConverge,
            ..Policy::default()
        });
        assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
        let pause = Next::SwitchOver { expected: secs(0) };
        let steer = policies.steer(&after(3, 100, 20, 11), &pause, &[], 0.0);
        assert_eq!(steer.unwrap().throttle, 0);
        policies.go_on();
        assert_eq!(policies.throttle(), 72);
    }

    #[test]
    fn nothing_is_slowed_when_the_guest_is_paused_and_the_throttle_is_back_if_it_is_resumed() {
        let mut policies = with(Policy {
            slowing: Slowing::AutoConverge,
            ..Policy::default()
        });
        assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
        let pause = Next::SwitchOver { expected: secs(0) };
        let facts = after(3, 100, 40, 11);
        assert_eq!(
            policies.steer(&facts, &pause, &[], 0.0).unwrap().throttle,
            0
        );
        // The pause was aborted.
        let mut again = after(4, 40, 16, 12);
        again.dirty_rate = Some(42e6 / 4096.0);
        assert_eq!(steer(&mut policies, &again).throttle, 72);
        assert_eq!(policies.end(), 0);

        let mut policies = with(Policy {
            slowing: Slowing::DirtyLimit,
            ..Policy::default()
        });
        let facts = after(3, 100, 100, 11);
        policies
            .steer(&facts, &Next::GoOn, &[0.0, 36_000.0], 0.0)
            .unwrap();
        assert_eq!(policies.limits().flatten().count(), 1);
        policies
            .steer(&facts, &pause, &[0.0, 10_000.0], 0.0)
            .unwrap();
        assert_eq!(policies.limits().flatten().count(), 0);
        policies
            .steer(&facts, &Next::GoOn, &[0.0, 10_000.0], 0.0)
            .unwrap();
        assert_eq!(policies.limits().flatten().count(), 1);
        policies.end();
        assert_eq!(policies.limits().flatten().count(), 0);
    }

    #[test]
    fn a_rising_limit_takes_the_rest_once_it_fits_and_not_above_the_ceiling() {
        let policy = |ceiling| Policy {
            ceiling: Some(Duration::from_millis(ceiling)),
            ..Policy::default()
        };
        let with = |policy| Policies::new(policy, Duration::from_millis(50)).unwrap();
        // 20 MB take 200 ms.
        let mut policies = with(policy(400));
        let mut passes = 0;
        let limit = loop {
            passes += 1;
            let steer = steer(&mut policies, &after(1 + passes, 20, 20, 10));
            if let Next::SwitchOver { expected } = steer.next {
                assert_eq!(expected.as_millis(), 200);
                break steer.limit;
            }
            assert!(passes < 10);
        };
        assert_eq!(passes, 4);
        assert!(limit >= Duration::from_millis(200) && limit < Duration::from_millis(400));
        let mut policies = with(policy(150));
        for pass in 2..50 {
            assert_eq!(
                steer(&mut policies, &after(pass, 20, 20, 10)).next,
                Next::GoOn
            );
        }
        assert_eq!(policies.limit(), Duration::from_millis(150));
    }

    #[test]
    fn a_limit_that_no_pass_keeps_rises_for_an_idle_guest_too() {
        let policy = Policy {
            ceiling: Some(Duration::from_millis(400)),
            ..Policy::default()
        };
        let mut policies = Policies::new(policy, Duration::from_millis(50)).unwrap();
        let mut idle = after(2, 0, 0, 1);
        (idle.last_pass, idle.round_trip) = (None, Some(Duration::from_millis(80)));
        let limits: Vec<_> = (0..8)
            .map(|_| steer(&mut policies, &idle).limit.as_millis())
            .collect();
        // Two syncs may have been slow by chance. It rises no further than what takes 160 ms.
        assert_eq!(limits, [50, 50, 75, 112, 168, 168, 168, 168]);
    }

    #[test]
    fn at_the_deadline_each_policy_does_what_it_says() {
        let policy = |on_deadline| Policy {
            deadline: Some(secs(60)),
            on_deadline,
            patience: secs(1000),
            ..Policy::default()
        };
        // 500 MB take 5 s. A further pass ends 10 s before the deadline, or 9.
        let (early, late, over) = (
            after(5, 500, 500, 49),
            after(5, 500, 500, 51),
            after(5, 500, 500, 60),
        );
        let mut cancel = with(policy(OnDeadline::Cancel));
        assert_eq!(steer(&mut cancel, &late).next, Next::GoOn);
        let Next::GiveUp(error) = steer(&mut cancel, &over).next else {
            panic!("it goes on");
        };
        assert_eq!(error.kind(), Kind::NotConverged);
        assert!(error.to_string().contains("60.0 s"), "{error}");
        let mut walking = over;
        walking.moment = Moment::Walking;
        assert!(matches!(steer(&mut cancel, &walking).next, Next::GiveUp(_)));

        let mut on = with(policy(OnDeadline::CarryOn));
        assert_eq!(steer(&mut on, &over).next, Next::GoOn);

        let mut finish = with(policy(OnDeadline::PauseToFinish));
        assert_eq!(steer(&mut finish, &early).next, Next::GoOn);
        let paused = steer(&mut finish, &late).next;
        assert!(matches!(paused, Next::SwitchOver { expected } if expected.as_millis() == 5000));
    }

    #[test]
    fn a_long_pass_ends_early_enough_to_pause_before_the_deadline() {
        let mut policies = with(Policy {
            deadline: Some(secs(60)),
            on_deadline: OnDeadline::PauseToFinish,
            ..Policy::default()
        });
        // 1,000 MB of the pass are left, and 1,000 MB were written: 20 s.
        let walking = |elapsed| {
            let mut facts = after(1, 1000, 1000, elapsed);
            (facts.moment, facts.last_pass) = (Moment::Walking, None);
            facts.dirty_rate = Some(100e6 / 4096.0);
            facts.since_sync = secs(10);
            facts
        };
        assert_eq!(steer(&mut policies, &walking(39)).next, Next::GoOn);
        assert_eq!(steer(&mut policies, &walking(41)).next, Next::Sync);
    }

    #[test]
    fn a_stalled_migration_is_paused_to_finish_at_a_local_minimum() {
        let mut policies = with(Policy {
            on_deadline: OnDeadline::PauseToFinish,
            patience: secs(10),
            ..Policy::default()
        });
        let rests = [400, 380, 410, 120, 390, 400, 380, 410, 390, 120];
        let mut told = 0;
        for (pass, left) in (2..).zip(rests) {
            let steer = steer(&mut policies, &after(pass, 400, left, u64::from(pass) * 3));
            told += u32::from(steer.stalled.is_some());
            let paused = matches!(steer.next, Next::SwitchOver { .. });
            assert_eq!(paused, pass == 11, "pass {pass}");
        }
        assert_eq!(told, 1);
    }

    #[test]
    fn a_policy_outside_its_limits_is_refused_with_the_range() {
        let d = Policy::default;
        let ms = Duration::from_millis;
        let throttle_max = |throttle_max| Policy {
            throttle_max,
            ..d()
        };
        let ceiling = |ceiling| Policy {
            ceiling: Some(ceiling),
            ..d()
        };
        let deadline = |deadline| Policy {
            deadline: Some(deadline),
            ..d()
        };
        let patience = |patience| Policy { patience, ..d() };
        let sync = |sync| Policy { sync, ..d() };
        let table = [
            (throttle_max(0), "throttle is 0 percent; it can be 1 to 99"),
            (
                throttle_max(100),
                "throttle is 100 percent; it can be 1 to 99",
            ),
            (
                ceiling(ms(10)),
                "limit is 10 ms; it can be 300 to 3600000 ms",
            ),
            (ceiling(secs(3601)), "it can be 300 to 3600000 ms"),
            (
                deadline(ms(0)),
                "the deadline is 0 ms; it can be 1 to 2592000000",
            ),
            (deadline(secs(1 << 40)), "it can be 1 to 2592000000 ms"),
            (
                patience(ms(0)),
                "a stall is 0 ms; it can be 1 to 86400000 ms",
            ),
            (patience(Duration::MAX), "it can be 1 to 86400000 ms"),
            (
                sync(ms(99)),
                "background syncs is 99 ms; it can be 100 to 3600000 ms",
            ),
            (sync(Duration::MAX), "it can be 100 to 3600000 ms"),
        ];
        for (policy, range) in table {
            let error = Policies::new(policy, LIMIT).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(range), "{error}");
        }
    }

    #[test]
    fn a_policy_changes_while_the_migration_runs() {
        let mut policies = with(Policy {
            slowing: Slowing::AutoConverge,
            ..Policy::default()
        });
        assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
        let policy = Policy {
            slowing: Slowing::DirtyLimit,
            ..Policy::default()
        };
        policies.set(policy, LIMIT).unwrap();
        let facts = after(3, 100, 100, 11);
        let steer = policies
            .steer(&facts, &Next::GoOn, &[36_000.0], 0.0)
            .unwrap();
        assert_eq!(steer.throttle, 0);
        assert_eq!(policies.limits().flatten().count(), 1);
        policies.set(Policy::default(), secs(1)).unwrap();
        assert_eq!(policies.limit(), secs(1));
        assert_eq!(policies.limits().flatten().count(), 0);
    }

    proptest! {
        /// Whatever the facts are: a guest that is paused, and one whose migration has ended, is not
        /// slowed, the throttle stays in its bounds, and the limit never falls or exceeds the
        /// ceiling.
        #[test]
        fn nothing_stays_throttled(
            slowing in prop_oneof![
                Just(Slowing::Off), Just(Slowing::AutoConverge), Just(Slowing::DirtyLimit)],
            on_deadline in prop_oneof![
                Just(OnDeadline::Cancel), Just(OnDeadline::CarryOn), Just(OnDeadline::PauseToFinish)],
            throttle_max in 1u8..=99,
            passes in proptest::collection::vec(
                (0u64..1000, 0u64..1000, any::<bool>(), any::<bool>(), 0.0f64..1e6), 1..40),
        ) {
            let mut policies = with(Policy {
                slowing,
                on_deadline,
                throttle_max,
                ceiling: Some(secs(2)),
                deadline: Some(secs(60)),
                ..Policy::default()
            });
            let mut limit = policies.limit();
            for (pass, (sent, left, walking, fits, rate)) in (1..).zip(passes) {
                let mut facts = after(pass, sent, left, u64::from(pass) * 2);
                facts.dirty_rate = Some(rate);
                if walking {
                    facts.moment = Moment::Walking;
                }
                let inner = match fits {
                    true => Next::SwitchOver { expected: secs(0) },
                    false => Next::GoOn,
                };
                let steer = policies.steer(&facts, &inner, &[0.0, rate], 0.0).unwrap();
                let limited = policies.limits().flatten().count();
                prop_assert!(steer.throttle <= throttle_max);
                prop_assert!(steer.limit >= limit && steer.limit <= secs(2));
                limit = steer.limit;
                if matches!(steer.next, Next::SwitchOver { .. } | Next::GiveUp(_)) {
                    prop_assert_eq!((steer.throttle, limited), (0, 0));
                }
            }
            prop_assert_eq!(policies.end(), 0);
            prop_assert_eq!(policies.limits().flatten().count(), 0);
        }
    }
}
