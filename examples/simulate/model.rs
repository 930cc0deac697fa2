//! A model of a migration: a guest that writes, a link that carries, and brant's own deciders.
//!
//! Time goes in small steps. In each one the guest writes some pages and the link carries some. What
//! the deciders see is what a source sees: pages found by a sync, the time of passes, the link's
//! rate. What they do not see is what the guest will write next.
//!
//! A guest has [`Pool`]s: pages that are written in turn. A pool is a queue of segments, the longest
//! unwritten pages in front. A segment's pages are *ahead* (pending, sent in this pass or the next),
//! *clean* (sent and not written since) or *dirty* (written since they were sent, and not yet found
//! by a sync). Two facts of brant are in the model: a page is protected again just before it is sent,
//! so a write ahead of the walk costs nothing; and pages are sent in an order that has nothing to do
//! with when they were written.

use brant::migrate::steering::first_pass::{FirstPass, Found};
use brant::migrate::steering::forecast::{forecast, Forecast, Outlook};
use brant::migrate::steering::policies::{InPass, Policies, Policy, Slowing};
use brant::migrate::steering::working_set::{Pool, WorkingSet};
use brant::migrate::{Decider, Facts, FitsDowntime, Moment, Next, PassFacts};
use brant::units::{Bytes, Pages};
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes of a page.
pub const PAGE: f64 = 4096.0;
/// Steps of a pass, and segments of a pool.
const STEPS: f64 = 200.0;
/// No migration goes on for more passes.
const PASSES: u32 = 200;

/// What a guest writes for a time.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    /// How long it lasts.
    pub seconds: f64,
    /// What it writes. Pools of the same place in two phases share pages.
    pub pools: Vec<Pool>,
}

/// A guest.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// All of its memory, in pages.
    pub pages: f64,
    /// The share of pages that have contents. The others are never written: they are not in the
    /// model.
    pub data: f64,
    /// How many vCPUs it has, and how many of them write. Each writer has the same part of all
    /// writes; the others only read.
    pub vcpus: usize,
    pub writers: usize,
    /// The phases, one after the other and then from the beginning.
    pub phases: Vec<Phase>,
}

impl Guest {
    /// The phase at a time, and when it ends.
    fn phase(&self, at: f64) -> (&Phase, f64) {
        let all: f64 = self.phases.iter().map(|phase| phase.seconds).sum();
        let mut end = (at / all).floor() * all;
        for phase in &self.phases {
            end += phase.seconds;
            if at < end {
                return (phase, end);
            }
        }
        (&self.phases[0], end + self.phases[0].seconds)
    }
}

/// The conditions of a migration.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Bytes a second.
    pub link: f64,
    /// Seconds from a message to its answer.
    pub round_trip: f64,
    pub policy: Policy,
    /// The downtime limit.
    pub limit: Duration,
    /// Seconds between two background syncs, when the policy wants them.
    pub background: f64,
}

/// What became of a migration.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub converged: bool,
    pub passes: u32,
    /// Seconds in all, and of the downtime; the downtime that was promised.
    pub time: f64,
    pub downtime: f64,
    pub promised: f64,
    pub bytes: f64,
    /// The highest throttle in percent, and the most vCPUs with a dirty limit.
    pub throttle: u8,
    pub limited: usize,
    /// The guest's writes beside those of a guest that is not slowed, 0 to 1.
    pub work: f64,
    /// The last forecast that was issued before a quarter of the time had passed.
    pub forecast: Option<Forecast>,
}

impl Outcome {
    /// How far the forecast was off: time, bytes and passes, as fractions. `None` when the migration
    /// or the forecast did not converge.
    pub fn errors(&self) -> Option<[f64; 3]> {
        let forecast = self.forecast.filter(|f| f.converges && self.converged)?;
        let off = |forecast: f64, was: f64| (forecast - was).abs() / was;
        Some([
            off(forecast.time.as_secs_f64(), self.time),
            off(forecast.bytes, self.bytes),
            off(f64::from(forecast.passes), f64::from(self.passes)),
        ])
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    ahead: f64,
    clean: f64,
    dirty: f64,
}

impl Segment {
    fn pages(&self) -> f64 {
        self.ahead + self.clean + self.dirty
    }

    /// Takes a share of it away.
    fn split(&mut self, share: f64) -> Segment {
        let part = Segment {
            ahead: self.ahead * share,
            clean: self.clean * share,
            dirty: self.dirty * share,
        };
        self.ahead -= part.ahead;
        self.clean -= part.clean;
        self.dirty -= part.dirty;
        part
    }

    fn add(&mut self, other: Segment) {
        self.ahead += other.ahead;
        self.clean += other.clean;
        self.dirty += other.dirty;
    }
}

/// The guest's memory: the pages that nobody writes, and the pools.
#[derive(Debug, Default)]
struct Memory {
    cold: Segment,
    pools: Vec<VecDeque<Segment>>,
}

impl Memory {
    fn sum(&self, of: impl Fn(&Segment) -> f64) -> f64 {
        let pools = self.pools.iter().flatten().map(&of);
        of(&self.cold) + pools.sum::<f64>()
    }

    fn each(&mut self, mut change: impl FnMut(&mut Segment)) {
        change(&mut self.cold);
        self.pools.iter_mut().flatten().for_each(change);
    }

    /// Makes the pools as large as the phase has them: pages come from the cold ones, and those that
    /// were not written for longest become cold.
    fn shape(&mut self, pools: &[Pool]) {
        while self.pools.len() < pools.len() {
            self.pools.push(VecDeque::new());
        }
        for (i, segments) in self.pools.iter_mut().enumerate() {
            let wanted = pools.get(i).map_or(0.0, |pool| pool.pages);
            let mut has: f64 = segments.iter().map(Segment::pages).sum();
            while has > wanted * 1.000_001 {
                let Some(front) = segments.front_mut() else {
                    break;
                };
                let pages = front.pages();
                let share = ((has - wanted) / pages).min(1.0);
                self.cold.add(front.split(share));
                if share >= 1.0 {
                    segments.pop_front();
                }
                has -= pages * share;
            }
            let cold = self.cold.pages();
            if has < wanted && cold > 0.0 {
                let share = ((wanted - has) / cold).min(1.0);
                segments.push_front(self.cold.split(share));
            }
        }
    }

    /// The guest writes so many pages of a pool, one after the other. Returns how many clean pages
    /// it wrote.
    fn write(&mut self, pool: usize, mut pages: f64) -> f64 {
        let segments = &mut self.pools[pool];
        let all: f64 = segments.iter().map(Segment::pages).sum();
        // After a whole lap, a further one changes nothing.
        pages = pages.min(all);
        let mut newly = 0.0;
        let mut written = Segment::default();
        while pages > all * 1e-9 {
            let Some(front) = segments.front_mut() else {
                break;
            };
            let has = front.pages();
            let share = (pages / has.max(1e-9)).min(1.0);
            let part = front.split(share);
            newly += part.clean;
            written.add(Segment {
                ahead: part.ahead,
                clean: 0.0,
                dirty: part.clean + part.dirty,
            });
            pages -= has * share;
            if share >= 1.0 {
                segments.pop_front();
            }
        }
        // Small segments are one, so that there are not more than a lap has steps.
        match segments
            .back_mut()
            .filter(|back| back.pages() < all / STEPS)
        {
            Some(back) => back.add(written),
            None => segments.push_back(written),
        }
        newly
    }
}

/// A migration that runs.
struct Run<'a> {
    guest: &'a Guest,
    plan: &'a Plan,
    memory: Memory,
    now: f64,
    link: f64,
    sync: f64,
    /// The throttle in percent, and the limit of the writers.
    throttle: u8,
    limit: Option<f64>,
    /// Writes that were made, and that a free guest would have made.
    wrote: f64,
    would: f64,
    /// Writes of each pool since the last sync, and distinct pages a second that were written between
    /// the last two syncs.
    since_sync: Vec<f64>,
    synced_at: f64,
    rate: f64,
    /// Distinct pages that were written since the last sync, at most: of the phases that have ended,
    /// and the writes of each pool in the phase that has not.
    written: f64,
    in_phase: Vec<(Pool, f64)>,
}

impl Run<'_> {
    /// How fast the guest is beside a free one that writes `rate` pages a second.
    fn speed(&self, rate: f64) -> f64 {
        let throttled = 1.0 - f64::from(self.throttle) / 100.0;
        let limited = self.limit.map_or(1.0, |limit| {
            limit * self.guest.writers as f64 / rate.max(1e-9)
        });
        throttled.min(limited).min(1.0)
    }

    /// One step: the guest writes for `dt` seconds, and `carried` pages leave. Returns clean pages
    /// that were written.
    fn step(&mut self, dt: f64, carried: f64) -> f64 {
        let phase = self.guest.phase(self.now).0;
        self.memory.shape(&phase.pools);
        let rate: f64 = phase.pools.iter().map(|pool| pool.rate).sum();
        let speed = self.speed(rate);
        let mut newly = 0.0;
        let pools = phase.pools.len().max(self.since_sync.len());
        self.since_sync.resize(pools, 0.0);
        let same = |(i, pool): (usize, &Pool)| self.in_phase.get(i).is_some_and(|(p, _)| p == pool);
        if !phase.pools.iter().enumerate().all(same) || self.in_phase.len() != phase.pools.len() {
            self.written += self.in_phase.drain(..).map(distinct).sum::<f64>();
            self.in_phase = phase.pools.iter().map(|pool| (*pool, 0.0)).collect();
        }
        for (i, pool) in phase.pools.iter().enumerate() {
            self.in_phase[i].1 += pool.rate * speed * dt;
            newly += self.memory.write(i, pool.rate * speed * dt);
            self.since_sync[i] += pool.rate * speed * dt;
        }
        self.wrote += rate * speed * dt;
        self.would += rate * dt;
        let ahead = self.memory.sum(|segment| segment.ahead);
        let share = if ahead > 0.0 {
            (carried / ahead).min(1.0)
        } else {
            0.0
        };
        self.memory.each(|segment| {
            let sent = segment.ahead * share;
            segment.ahead -= sent;
            segment.clean += sent;
        });
        self.now += dt;
        newly
    }

    /// The most distinct pages that were written since this was last called.
    fn written(&mut self) -> f64 {
        let written = self.in_phase.iter().copied().map(distinct).sum::<f64>() + self.written;
        self.written = 0.0;
        self.in_phase
            .iter_mut()
            .for_each(|(_, writes)| *writes = 0.0);
        written
    }

    /// The guest runs while a sync takes its time. Then what it wrote is found.
    fn sync(&mut self) -> f64 {
        self.step(self.sync, 0.0);
        let mut found = 0.0;
        self.memory.each(|segment| {
            found += segment.dirty;
            segment.ahead += segment.dirty;
            segment.dirty = 0.0;
        });
        found
    }

    /// The rate of each vCPU since the last sync, which a ring tells. A ring is emptied so often that
    /// all writes count. In a bitmap a page counts once, however often it was written.
    fn vcpus(&mut self) -> Vec<f64> {
        let time = (self.now - self.synced_at).max(1e-9);
        let mut rates = vec![0.0; self.guest.vcpus];
        let pools = &self.guest.phase(self.now).0.pools;
        let rings = self.plan.policy.slowing == Slowing::DirtyLimit;
        let seen = self.since_sync.iter().enumerate();
        let seen = seen.map(|(i, writes)| match pools.get(i) {
            Some(pool) if !rings => writes.min(pool.pages),
            _ => *writes,
        });
        self.rate = seen.sum::<f64>() / time;
        for rate in rates.iter_mut().take(self.guest.writers) {
            *rate = self.rate / self.guest.writers.max(1) as f64;
        }
        self.since_sync.fill(0.0);
        self.synced_at = self.now;
        rates
    }
}

/// The distinct pages of so many writes to a pool.
fn distinct((pool, writes): (Pool, f64)) -> f64 {
    writes.min(pool.pages)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// What a dirty-rate probe of one second says of the guest.
fn probe(guest: &Guest) -> WorkingSet {
    let mut curve = WorkingSet::default();
    let distinct = |time: f64| -> f64 {
        let pools = &guest.phase(0.0).0.pools;
        pools.iter().map(|pool| pool.distinct(time)).sum()
    };
    for time in [0.5, 1.0] {
        curve.observe(seconds(time), distinct(time));
    }
    curve
}

/// Migrates the guest.
pub fn migrate(guest: &Guest, plan: &Plan) -> Outcome {
    let mut policies = Policies::new(plan.policy.clone(), plan.limit).expect("a policy of ours");
    let mut decider = FitsDowntime::new(policies.limit(), None);
    let mut bounds = policies.bounds();
    decider.set_bounds(&bounds);
    let (mut curve, mut first) = (probe(guest), FirstPass::default());
    let mut run = Run {
        guest,
        plan,
        memory: Memory::default(),
        now: 0.0,
        link: plan.link / PAGE,
        // The bitmap is read at 10 GB/s, one bit a page.
        sync: 50e-6 + guest.pages / 8.0 / 10e9,
        throttle: 0,
        limit: None,
        wrote: 0.0,
        would: 0.0,
        since_sync: Vec::new(),
        synced_at: 0.0,
        rate: 0.0,
        written: 0.0,
        in_phase: Vec::new(),
    };
    run.memory.cold = Segment {
        ahead: guest.pages * guest.data,
        ..Segment::default()
    };
    let mut outcome = Outcome::default();
    let mut issued: Vec<(f64, Forecast)> = Vec::new();
    let mut facts = Facts::default();
    facts.total = Bytes((guest.pages * PAGE) as u64);
    facts.bandwidth = Some(run.link * PAGE);
    facts.sync_time = seconds(run.sync);
    facts.round_trip = Some(seconds(plan.round_trip));
    let (mut number, mut sent, mut last_pass) = (1, 0.0, 0.0);
    loop {
        let begun = run.now;
        let to_send = run.memory.sum(|segment| segment.ahead);
        let mut pass_sent = 0.0;
        let mut next_sync = run.now + plan.background;
        let mut found_in_pass = 0.0;
        issued.push((
            run.now,
            issue(
                &facts,
                &run,
                &decider,
                &policies,
                &curve,
                (number, sent, 0.0, begun, last_pass),
            ),
        ));
        loop {
            let ahead = run.memory.sum(|segment| segment.ahead);
            if ahead <= 1e-3 + to_send * 1e-9 {
                break;
            }
            let dt = (to_send / run.link / STEPS).min(ahead / run.link).max(1e-7);
            let dt = dt.min((guest.phase(run.now).1 - run.now).max(1e-7));
            let carried = (run.link * dt).min(ahead);
            found_in_pass += run.step(dt, carried);
            pass_sent += carried;
            if policies.in_pass(true) != InPass::Nothing && run.now >= next_sync {
                next_sync = run.now + plan.background;
                let walked = pass_sent / to_send;
                let passed = run.now - begun;
                let (since, written) = (run.now - run.synced_at, run.written());
                let vcpus = run.vcpus();
                curve.bound(seconds(since), written);
                if number == 1 && walked > 0.0 {
                    let found = Found {
                        passed: seconds(passed),
                        walked,
                        again: found_in_pass,
                        written: Some(written),
                    };
                    first.found(&mut curve, &found);
                }
                let mut facts = facts;
                facts.moment = Moment::Walking;
                facts.elapsed = seconds(run.now);
                facts.since_sync = seconds(passed);
                facts.pass = number;
                facts.remaining = Bytes((run.memory.sum(|s| s.ahead) * PAGE) as u64);
                facts.dirty_rate = Some(run.rate);
                policies
                    .steer(&facts, &Next::GoOn, &vcpus, 0.0)
                    .expect("memory");
                apply(&mut run, &mut outcome, &policies, &mut curve);
                let numbers = (number, sent + pass_sent, pass_sent, begun, last_pass);
                issued.push((
                    run.now,
                    issue(&facts, &run, &decider, &policies, &curve, numbers),
                ));
            }
        }
        // The last page's acknowledgement is awaited.
        run.step(plan.round_trip, 0.0);
        let time = run.now - begun;
        run.sync();
        // Counted anew from here.
        run.written();
        sent += pass_sent;
        last_pass = run.now - begun;
        let left = run.memory.sum(|segment| segment.ahead);
        match number {
            1 => {
                let found = Found {
                    passed: seconds(last_pass),
                    walked: 1.0,
                    again: left,
                    written: None,
                };
                first.found(&mut curve, &found);
            }
            _ => curve.observe(seconds(last_pass), left),
        }
        facts.moment = Moment::Synced;
        facts.elapsed = seconds(run.now);
        facts.pass = number;
        facts.remaining = Bytes((left * PAGE) as u64);
        let vcpus = run.vcpus();
        facts.dirty_rate = Some(run.rate);
        facts.last_pass = Some({
            let mut pass = PassFacts::default();
            pass.number = number;
            pass.pages = Pages(pass_sent.ceil() as u64);
            pass.data = pass.pages;
            pass.time = seconds(time);
            pass
        });
        if policies.bounds() != bounds {
            bounds = policies.bounds();
            decider.set_bounds(&bounds);
        }
        let fits = decider.decide(&facts).next;
        let steer = policies.steer(&facts, &fits, &vcpus, 0.0).expect("memory");
        apply(&mut run, &mut outcome, &policies, &mut curve);
        outcome.passes = number;
        if let Next::SwitchOver { expected } = steer.next {
            outcome.promised = expected.as_secs_f64();
            // The guest stands still: two syncs, the rest, and the answers.
            outcome.downtime = 2.0 * run.sync + left / run.link + 2.0 * plan.round_trip;
            run.now += outcome.downtime;
            sent += left;
            outcome.converged = true;
            break;
        }
        if matches!(steer.next, Next::GiveUp(_)) || number >= PASSES {
            break;
        }
        number += 1;
    }
    outcome.time = run.now;
    outcome.bytes = sent * PAGE;
    outcome.work = if run.would > 0.0 {
        run.wrote / run.would
    } else {
        1.0
    };
    let early = issued.iter().rev().find(|(at, _)| *at <= run.now / 4.0);
    outcome.forecast = early.map(|(_, forecast)| *forecast);
    outcome
}

/// Sets the throttle and the limits. What is known of the guest is known for its new speed.
fn apply(run: &mut Run, outcome: &mut Outcome, policies: &Policies, curve: &mut WorkingSet) {
    let phase = run.guest.phase(run.now).0;
    let rate: f64 = phase.pools.iter().map(|pool| pool.rate).sum();
    let before = run.speed(rate);
    run.throttle = policies.throttle();
    run.limit = policies.limits().flatten().next();
    curve.change_speed(run.speed(rate) / before);
    outcome.throttle = outcome.throttle.max(run.throttle);
    outcome.limited = outcome.limited.max(policies.limits().flatten().count());
}

/// Issues a forecast. `numbers`: the pass, pages sent in all and in the pass, when it began, and how
/// long the pass before it took.
fn issue(
    facts: &Facts,
    run: &Run,
    decider: &FitsDowntime,
    policies: &Policies,
    curve: &WorkingSet,
    numbers: (u32, f64, f64, f64, f64),
) -> Forecast {
    let (number, sent, pass_sent, begun, last_pass) = numbers;
    let mut facts = *facts;
    facts.moment = Moment::Walking;
    facts.elapsed = seconds(run.now);
    facts.since_sync = seconds(run.now - begun);
    facts.pass = number;
    facts.remaining = Bytes((run.memory.sum(|segment| segment.ahead) * PAGE) as u64);
    let outlook = Outlook {
        facts,
        pass_sent: Bytes((pass_sent * PAGE) as u64),
        sent: Bytes((sent * PAGE) as u64),
        data: 1.0,
        last_pass: seconds(last_pass),
        working_set: curve,
    };
    forecast(&outlook, decider, policies, 1.0)
}

/// A policy that slows the guest.
pub fn slowing(slowing: Slowing) -> Policy {
    Policy {
        slowing,
        ..Policy::default()
    }
}
