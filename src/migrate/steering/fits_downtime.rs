//! The default decider, with a downtime limit and a total timeout. It switches over when the rest
//! fits the limit. Pure.

use super::budget::{millis, Parts, ROUND_TRIPS};
use super::facts::{Bounds, Decider, Decision, Facts, Moment, Next, Verdict};
use super::limited_rings::too_large;
use crate::error::{Error, Kind};
use crate::units::Pages;
use std::time::Duration;

/// The default decider. It switches over when the whole downtime fits the limit: the rest of the
/// pages and every other part ([`Parts`]). Otherwise the migration goes on until its total timeout,
/// and then ends with an error that says what was missing.
///
/// **A limit that cannot be kept ends the migration at once.** Further passes make the pages fewer
/// and nothing else. So when the other parts alone exceed the limit, the error names the longest of
/// them: a round trip of 100 ms keeps no limit of 50 ms. With [`Overrun::CarryOn`] the limit then
/// counts for the pages alone.
///
/// **The limit is a ceiling and not a target.** Example: an idle guest of 2 GiB fits a limit of 300
/// ms when 700 MB of its first pass are left. Paused then, it would stand still while all of them
/// are sent. A few hundred milliseconds later nothing would be left to send. So no pass is cut
/// short. When the rest fits, passes go on as long as the last pass made the rest smaller. When a
/// pass did not, the guest dirties as much as a pass sends, and the next rest that fits is taken.
#[derive(Debug, Clone)]
pub struct FitsDowntime {
    limit: Duration,
    /// The highest that the limit can become. `None`: no limit is a reason to fail.
    ceiling: Option<Duration>,
    /// When the policy acts.
    deadline: Option<Duration>,
    total: Option<Duration>,
    slack: Duration,
    overrun: Overrun,
    /// How many syncs in a row have found that the fixed parts exceed the limit.
    beyond: u32,
    /// A migration without progress for this long has stalled.
    patience: Duration,
    /// Since when, and at how many syncs, what the guest writes during `pause` has broken the limit.
    writes_beyond: Option<(Duration, u32)>,
    /// The guest is paused although the limit cannot be kept.
    knowingly: bool,
    /// The current pass is sent although the rest fitted before it.
    further: bool,
    /// A pass after a fitting rest did not make the rest smaller, so no more such passes follow.
    settled: bool,
    /// The least time that devices' state that can be sent while the guest runs would have taken, and
    /// how many passes in a row have left no less.
    devices_left: Option<(Duration, u32)>,
}

/// What becomes of a migration whose downtime limit cannot be kept. The numbers are part of the C
/// ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Overrun {
    /// The migration fails and the guest runs on at the source.
    #[default]
    Fail = 0,
    /// The guest is switched over and stands still for longer than the limit.
    CarryOn = 1,
}

/// The most pauses that are aborted, because each one interrupts the guest.
pub const ABORTED_PAUSES_MAX: u32 = 3;

/// So many syncs in a row must find the fixed parts beyond the limit. One sync may have been slow
/// because the machine was busy.
const BEYOND: u32 = 3;

/// For so long a guest must write too much during `pause`, because it may soon write less.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many passes in a row that leave no less of devices' state end the trying.
const NOT_LESS: u32 = 3;

/// Devices' state that takes less time than this is not worth a pass.
const NOTICED: Duration = Duration::from_millis(2);

/// A rest that takes less time than this is not made smaller, because hardly anybody notices the
/// pause.
const UNNOTICED: Duration = Duration::from_micros(250);

impl FitsDowntime {
    /// A decider with a downtime limit and a limit for the whole migration.
    pub fn new(limit: Duration, total: Option<Duration>) -> Self {
        FitsDowntime {
            limit,
            ceiling: Some(limit),
            deadline: None,
            total,
            slack: Duration::ZERO,
            overrun: Overrun::Fail,
            beyond: 0,
            patience: PATIENCE,
            writes_beyond: None,
            knowingly: false,
            further: false,
            settled: false,
            devices_left: None,
        }
    }

    /// A pause is aborted only when the downtime would exceed the limit by more than `slack`.
    #[must_use]
    pub fn with_slack(self, slack: Duration) -> Self {
        FitsDowntime { slack, ..self }
    }

    /// Sets what becomes of a migration whose limit cannot be kept.
    #[must_use]
    pub fn on_overrun(self, overrun: Overrun) -> Self {
        FitsDowntime { overrun, ..self }
    }

    /// Whether no answer of the destination can come within `limit`, whatever remains.
    fn too_far(facts: &Facts, limit: Duration) -> bool {
        let trips = facts.round_trip.unwrap_or_default();
        facts.round_trip_certain && trips.saturating_mul(ROUND_TRIPS) > limit
    }

    /// The highest limit that a migration fails for, when it cannot be kept. `None`: it fails for
    /// none.
    fn fails_for(&self) -> Option<Duration> {
        self.ceiling.filter(|_| self.overrun == Overrun::Fail)
    }

    /// Counts the syncs that find the fixed parts beyond the limit. Returns whether these are enough
    /// to say that the limit cannot be kept.
    fn cannot_be_kept(&mut self, facts: &Facts, parts: &Parts) -> bool {
        self.beyond = match parts.fixed().total() > self.limit {
            true => self.beyond + 1,
            false => 0,
        };
        self.beyond >= BEYOND || Self::too_far(facts, self.limit)
    }

    /// Whether the guest has written so much during `pause` for so long that no pause keeps `limit`.
    /// Example: `pause` takes 100 ms, and a guest that dirties as fast as the link carries writes
    /// meanwhile what takes another 100 ms to send. No pass makes that less.
    fn writes_too_much(&mut self, facts: &Facts, limit: Duration) -> bool {
        let beyond = facts.during_pause().0 > 0 && facts.unavoidable().is_some_and(|t| t > limit);
        let before = self.writes_beyond.filter(|_| beyond);
        let (since, syncs) = before.unwrap_or((facts.elapsed, 0));
        self.writes_beyond = beyond.then_some((since, syncs + 1));
        beyond && syncs + 1 >= BEYOND && facts.elapsed.saturating_sub(since) >= self.patience
    }

    /// The error for a guest that writes too much during `pause`.
    fn written_in_pause(&self, facts: &Facts, limit: Duration) -> Error {
        let bytes = facts.during_pause().0 as f64;
        let unavoidable = facts.unavoidable().unwrap_or_default();
        Error::new(
            Kind::NotConverged,
            format!(
                "the downtime limit of {} ms cannot be kept: `pause` takes {}, in which the guest \
                 writes {:.1} MB ({:.1} MB/s), so the guest would stand still for {} with nothing \
                 else left to send. A higher downtime limit, a shorter `pause` or a policy that slows \
                 the guest would do",
                limit.as_millis(),
                millis(facts.operations.pause.unwrap_or_default()),
                bytes / 1e6,
                facts.dirty_rate.unwrap_or_default() * 4096.0 / 1e6,
                millis(unavoidable),
            ),
        )
    }

    /// The error for a limit that the fixed parts alone exceed.
    fn impossible(&self, facts: &Facts, parts: &Parts) -> Error {
        let fixed = parts.fixed();
        let (name, longest) = fixed.longest();
        let limit = self.ceiling.unwrap_or(self.limit);
        let what = match limit > self.limit {
            true => "downtime limit's ceiling",
            false => "downtime limit",
        };
        let mut message = format!("the {what} of {} ms cannot be kept: ", limit.as_millis());
        message += &match longest > limit {
            true => format!("{name} alone take{} {}", plural(name), millis(longest)),
            false => format!(
                "what no further pass makes smaller takes {} ({})",
                millis(fixed.total()),
                fixed.describe()
            ),
        };
        if let (true, Some(trip)) = (longest == fixed.round_trips, facts.round_trip) {
            message += &format!(" ({ROUND_TRIPS} of {})", millis(trip));
        }
        let state =
            facts.operations.state_bytes.unwrap_or(0) as f64 + facts.device_stopped.0 as f64;
        if longest == fixed.state && state > 0.0 {
            message += &match facts.bandwidth {
                Some(link) => format!(" ({:.1} MB at {:.1} MB/s)", state / 1e6, link / 1e6),
                None => format!(" ({:.1} MB)", state / 1e6),
            };
            let rest = fixed.total().saturating_sub(fixed.state);
            if let Some(rate) = needed(state, limit.saturating_sub(rest)) {
                message += &format!("; {rate} would do, or a higher downtime limit");
                return Error::new(Kind::NotConverged, message);
            }
        }
        message += ". A higher downtime limit would do";
        Error::new(Kind::NotConverged, message)
    }

    /// The downtime without the pages' part.
    fn without_pages(&self, facts: &Facts) -> Duration {
        let fixed = facts.parts().unwrap_or_default().fixed().total();
        facts.stood.saturating_add(fixed)
    }

    /// The error for a guest that stands still, and for longer than the limit if it is not resumed.
    fn broken(&self, facts: &Facts, expected: Duration) -> Error {
        let parts = facts.parts().unwrap_or_default();
        Error::new(
            Kind::NotConverged,
            format!(
                "the downtime limit of {} ms is not kept: {} pauses were aborted, and this one would \
                 take {} ({} so far, then {}). A higher downtime limit or more slack would do",
                self.limit.as_millis(),
                facts.aborted_pauses,
                millis(expected),
                millis(facts.stood),
                parts.describe()
            ),
        )
    }

    /// Judges a pass that was to make a fitting rest smaller. If it did not, no such pass is tried
    /// again: a guest whose rest fits only now and then must be paused when it fits.
    fn settle(&mut self, facts: &Facts) {
        if std::mem::take(&mut self.further) && !shrank(facts) {
            self.settled = true;
        }
    }

    /// Whether devices' state that can still be sent while the guest runs is worth a further pass
    /// although all fits: until [`NOT_LESS`] passes in a row have left no less of it.
    fn devices_shrink(&mut self, facts: &Facts, parts: &Parts) -> bool {
        let left = parts.state_running;
        if facts.moment != Moment::Synced || left <= NOTICED {
            return false;
        }
        // A twentieth less is less. What a device has at one moment goes up and down by a little.
        match self.devices_left {
            Some((least, passes)) if left >= least.mul_f64(0.95) => {
                self.devices_left = Some((least, passes + 1));
            }
            _ => self.devices_left = Some((left, 0)),
        }
        let passes = self.devices_left.map_or(0, |(_, passes)| passes);
        let in_time = self.total.is_none_or(|total| facts.elapsed < total / 2);
        passes < NOT_LESS && in_time
    }

    /// Whether a further pass is worth its time although the rest fits.
    ///
    /// If each pass makes the rest a quarter smaller, all passes together take four times the first
    /// rest. So the number of passes needs no other bound.
    fn worth_another(&self, facts: &Facts) -> bool {
        let (Some(sending), Some(pass)) = (facts.sending_pages(), facts.further_pass()) else {
            return false;
        };
        let in_time = |total| facts.elapsed.saturating_add(pass.saturating_mul(2)) < total;
        // When a cap makes passes slow, they may still add a quarter to the migration's time.
        let cheap = pass <= facts.elapsed / 4 || pass <= sending.saturating_mul(10);
        // The guest stands still during the last sync as well, whatever remains.
        let noticed = sending > UNNOTICED.max(facts.sync_time / 4);
        let in_time = self.total.is_none_or(in_time) && self.deadline.is_none_or(in_time);
        !self.settled && shrank(facts) && noticed && cheap && in_time
    }

    /// The error for a migration whose time is up.
    pub fn shortfall(&self, facts: &Facts) -> Error {
        let mb = |bytes: f64| bytes / 1e6;
        let remaining = mb(facts.remaining.0 as f64);
        let limit = self.limit.as_millis();
        let mut message = format!(
            "not converged within {:.1} s: {remaining:.1} MB remain after {} passes, ",
            facts.elapsed.as_secs_f64(),
            facts.pass,
        );
        match facts.bandwidth {
            Some(bandwidth) => {
                let fixed = facts.parts().unwrap_or_default().fixed().total();
                let fits = mb(bandwidth * self.limit.saturating_sub(fixed).as_secs_f64());
                message += &format!(
                    "{fits:.1} MB fit the downtime limit of {limit} ms at {:.1} MB/s",
                    mb(bandwidth)
                );
                // The rest does not yet include the guest's writes since the last sync.
                if facts.moment == Moment::Walking && remaining <= fits {
                    message += "; the time was up in the middle of a pass, before what the guest \
                                wrote during it was known";
                }
            }
            None => {
                message += "too little was sent to know the bandwidth";
                let fixed = facts.parts().unwrap_or_default().fixed().total();
                let left = facts.remaining.0 as f64 + facts.unacknowledged.0 as f64;
                if let Some(rate) = needed(left, self.limit.saturating_sub(fixed)) {
                    message += &format!(
                        "; {rate} would be needed to send what remains within the downtime limit of \
                         {limit} ms"
                    );
                }
            }
        }
        let devices = facts.device_running.0 + facts.device_stopped.0;
        if devices > 0 {
            message += &format!("; devices have {:.1} MB of state left", mb(devices as f64));
            if let Some(growth) = facts.device_growth.filter(|growth| *growth > 0.0) {
                message += &format!(", which grows by {:.1} MB/s", mb(growth));
                if facts.bandwidth.is_some_and(|b| b <= growth) {
                    message += ", more than the link carries";
                }
            }
        }
        if facts.sync_time > self.limit {
            message += &format!(
                "; the last sync alone took {:.1} ms",
                facts.sync_time.as_secs_f64() * 1e3
            );
        }
        if let Some(rings) = too_large(facts, self.ceiling.unwrap_or(self.limit)) {
            message += &format!("; {}", rings.describe());
        }
        if let Some(rate) = facts.dirty_rate {
            let bytes = rate * Pages(1).bytes().0 as f64;
            message += &format!(
                "; the guest dirties {:.1} MB/s ({rate:.0} pages/s)",
                mb(bytes)
            );
            if facts.bandwidth.is_some_and(|b| b <= bytes) {
                message += ", which is more than the link carries";
            }
        } else if facts.last_pass.is_some() {
            message += "; how fast the guest dirties is not known yet";
        } else {
            message += "; the first pass has not ended";
        }
        message += ". A longer timeout, a higher downtime limit, more bandwidth or a slower guest would do";
        Error::new(Kind::NotConverged, message)
    }
}

/// Whether the last pass left a quarter less than it sent. A smaller difference is chance.
fn shrank(facts: &Facts) -> bool {
    facts.last_pass.is_some_and(|pass| {
        let sent = pass.pages.bytes().0;
        facts.remaining.0 <= sent - sent / 4
    })
}

impl Decider for FitsDowntime {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let time_is_up = self.total.is_some_and(|total| facts.elapsed >= total);
        let fails_for = self.fails_for();
        let next = match facts.moment {
            Moment::Walking if time_is_up => Next::GiveUp(self.shortfall(facts)),
            Moment::Walking if fails_for.is_some_and(|limit| Self::too_far(facts, limit)) => {
                let round_trips = facts.round_trip.unwrap_or_default() * ROUND_TRIPS;
                let parts = Parts {
                    round_trips,
                    ..Parts::default()
                };
                Next::GiveUp(self.impossible(facts, &parts))
            }
            Moment::Walking => Next::GoOn,
            Moment::Synced | Moment::Paused | Moment::Saved => {
                self.settle(facts);
                let Some(parts) = facts.parts() else {
                    return match time_is_up {
                        true => Next::GiveUp(self.shortfall(facts)).into(),
                        false => Next::GoOn.into(),
                    };
                };
                let beyond = self.cannot_be_kept(facts, &parts);
                let fixed = parts.fixed().total();
                let too_long = |limit| fixed > limit || Self::too_far(facts, limit);
                if beyond && fails_for.is_some_and(too_long) {
                    return Next::GiveUp(self.impossible(facts, &parts)).into();
                }
                let written = self.writes_too_much(facts, self.ceiling.unwrap_or(self.limit));
                if let (true, Some(limit)) = (written, fails_for) {
                    return Next::GiveUp(self.written_in_pause(facts, limit)).into();
                }
                // While the limit can still rise, it is not broken knowingly.
                let beyond = (beyond || written) && fails_for.is_none();
                self.knowingly = beyond;
                let counts = match beyond {
                    true if written => Duration::ZERO,
                    true => parts.memory.saturating_add(parts.state_running),
                    false => parts.total(),
                };
                if counts <= self.limit {
                    self.further = self.worth_another(facts);
                    let devices = self.devices_shrink(facts, &parts);
                    let expected = parts.total();
                    match self.further || devices {
                        true => Next::GoOn,
                        false => Next::SwitchOver { expected },
                    }
                } else if time_is_up {
                    Next::GiveUp(self.shortfall(facts))
                } else {
                    Next::GoOn
                }
            }
        };
        next.into()
    }

    fn judge(&mut self, facts: &Facts) -> Verdict {
        let most = self.limit.saturating_add(self.slack);
        let fails_for = self.fails_for();
        match facts.expected_downtime() {
            Some(expected) if expected > most && !self.knowingly => match fails_for {
                // No pass makes these parts smaller.
                None if self.without_pages(facts) > most => Verdict::GoThrough,
                _ if facts.aborted_pauses < ABORTED_PAUSES_MAX => Verdict::Resume,
                // The limit would have risen so far.
                Some(ceiling) if expected > ceiling.saturating_add(self.slack) => {
                    Verdict::GiveUp(self.broken(facts, expected))
                }
                _ => Verdict::GoThrough,
            },
            _ => Verdict::GoThrough,
        }
    }

    fn set_bounds(&mut self, bounds: &Bounds) {
        if bounds.limit != self.limit {
            // Whether a further pass helps was judged for another limit.
            (self.settled, self.further, self.beyond) = (false, false, 0);
        }
        self.limit = bounds.limit;
        self.ceiling = bounds.ceiling.map(|ceiling| ceiling.max(bounds.limit));
        self.deadline = bounds.deadline;
        self.patience = bounds.patience;
    }
}

/// The rate that sends `bytes` in `time`, in words. `None` when no rate does.
fn needed(bytes: f64, time: Duration) -> Option<String> {
    let rate = bytes / time.as_secs_f64();
    (bytes > 0.0 && rate.is_finite()).then(|| format!("at least {:.1} MB/s", rate / 1e6))
}

/// The ending of the verb behind a part's name: "`load` takes", "the round trips take".
fn plural(name: &str) -> &'static str {
    match name.starts_with("the ") {
        true => "",
        false => "s",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::steering::{Operations, PassFacts};
    use crate::units::Bytes;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn bounds(limit: u64, ceiling: Option<u64>) -> Bounds {
        Bounds {
            limit: ms(limit),
            ceiling: ceiling.map(ms),
            deadline: None,
            patience: ms(1000),
        }
    }

    /// Right after a sync at so many milliseconds. 1 MB remains of 1 MB; the link carries 10 MB/s.
    fn synced(elapsed: u64) -> Facts {
        let pages = Bytes(1_000_000).pages_down();
        Facts {
            elapsed: ms(elapsed),
            remaining: Bytes(1_000_000),
            bandwidth: Some(10e6),
            last_pass: Some(PassFacts {
                number: 2,
                pages,
                data: pages,
                time: ms(100),
            }),
            ..Facts::default()
        }
    }

    /// Its guest writes 2.5 MB during a `pause` of 250 ms.
    fn slow_pause(elapsed: u64) -> Facts {
        Facts {
            dirty_rate: Some(10e6 / 4096.0),
            operations: Operations {
                pause: Some(ms(250)),
                ..Operations::default()
            },
            ..synced(elapsed)
        }
    }

    /// So many bytes of devices' state can still be sent while the guest runs; no page is left.
    fn devices(bytes: u64, elapsed: u64) -> Facts {
        Facts {
            remaining: Bytes(0),
            device_running: Bytes(bytes),
            ..synced(elapsed)
        }
    }

    #[test]
    fn devices_state_is_sent_while_the_guest_runs_as_long_as_passes_leave_less_of_it() {
        let mut decider = FitsDowntime::new(ms(300), None);
        let mut next = |bytes, elapsed| decider.decide(&devices(bytes, elapsed)).next;
        // All of it fits, at 10 MB/s.
        for (at, bytes) in [2_000_000, 1_000_000, 1_000_000, 500_000]
            .into_iter()
            .enumerate()
        {
            assert_eq!(next(bytes, at as u64), Next::GoOn, "{bytes}");
        }
        // It does not get less any more.
        let mut on = 0;
        while next(490_000, 10) == Next::GoOn {
            on += 1;
            assert!(on < 5, "the guest is never paused");
        }
        // What takes less than 2 ms is worth no pass.
        let mut decider = FitsDowntime::new(ms(300), None);
        let next = decider.decide(&devices(10_000, 1)).next;
        assert!(matches!(next, Next::SwitchOver { .. }), "{next:?}");
    }

    #[test]
    fn devices_state_that_grows_faster_than_the_link_is_named_when_the_time_is_up() {
        let mut decider = FitsDowntime::new(ms(300), Some(ms(1000)));
        let facts = Facts {
            device_growth: Some(20e6),
            ..devices(50_000_000, 1000)
        };
        let Next::GiveUp(error) = decider.decide(&facts).next else {
            panic!("it has no time left");
        };
        let message = error.message();
        assert!(
            message.contains("devices have 50.0 MB of state left"),
            "{message}"
        );
        assert!(
            message.contains("grows by 20.0 MB/s, more than the link carries"),
            "{message}"
        );
    }

    #[test]
    fn dirty_rings_that_are_too_large_for_the_limit_are_named_when_the_time_is_up() {
        let mut decider = FitsDowntime::new(ms(300), Some(ms(1000)));
        let mut error = |ring| {
            let facts = Facts {
                total: Bytes(8 << 30),
                limited_vcpus: 4,
                ring: Pages(ring),
                ..devices(50_000_000, 1000)
            };
            match decider.decide(&facts).next {
                Next::GiveUp(error) => error.message().to_owned(),
                other => panic!("{other:?}"),
            }
        };
        let named = "the dirty rings of 4 limited vCPUs have 65536 entries each";
        let message = error(65_536);
        assert!(message.contains(named), "{message}");
        assert!(!error(0).contains("entries"));
    }

    #[test]
    fn what_is_written_during_a_slow_pause_ends_a_migration_that_it_has_kept_for_long() {
        let mut decider = FitsDowntime::new(ms(300), None);
        decider.set_bounds(&bounds(300, Some(300)));
        for elapsed in (0..1000).step_by(100) {
            assert_eq!(decider.decide(&slow_pause(elapsed)).next, Next::GoOn);
        }
        let Next::GiveUp(error) = decider.decide(&slow_pause(1000)).next else {
            panic!("it goes on");
        };
        assert_eq!(error.kind(), Kind::NotConverged);
        let message = error.message();
        assert!(message.contains("`pause` takes 250.0 ms"), "{message}");
        assert!(message.contains("writes 2.5 MB (10.0 MB/s)"), "{message}");
        assert!(message.contains("stand still for 500.0"), "{message}");
    }

    #[test]
    fn a_guest_that_calms_down_in_time_is_not_given_up() {
        let mut decider = FitsDowntime::new(ms(300), None);
        decider.set_bounds(&bounds(300, Some(300)));
        for elapsed in (0..900).step_by(100) {
            assert_eq!(decider.decide(&slow_pause(elapsed)).next, Next::GoOn);
        }
        let mut calm = slow_pause(900);
        calm.dirty_rate = Some(0.0);
        decider.decide(&calm);
        for elapsed in (1000..1900).step_by(100) {
            assert_eq!(decider.decide(&slow_pause(elapsed)).next, Next::GoOn);
        }
    }

    #[test]
    fn who_pauses_to_finish_or_carries_on_switches_over_although_the_limit_cannot_be_kept() {
        let mut finish = FitsDowntime::new(ms(300), None);
        finish.set_bounds(&bounds(300, None));
        let mut carry_on = FitsDowntime::new(ms(300), None).on_overrun(Overrun::CarryOn);
        carry_on.set_bounds(&bounds(300, Some(300)));
        for decider in [&mut finish, &mut carry_on] {
            let mut ended = None;
            for elapsed in (0..=1000).step_by(100) {
                ended = Some(decider.decide(&slow_pause(elapsed)).next);
            }
            assert!(matches!(ended, Some(Next::SwitchOver { .. })), "{ended:?}");
            let mut paused = slow_pause(1300);
            (paused.moment, paused.stood) = (Moment::Paused, ms(600));
            assert_eq!(decider.judge(&paused), Verdict::GoThrough);
        }
    }

    #[test]
    fn a_refusal_says_which_rate_would_be_needed() {
        // 1 MB remains, and the bandwidth is not known.
        let facts = Facts {
            bandwidth: None,
            last_pass: None,
            ..synced(1000)
        };
        let mut decider = FitsDowntime::new(ms(50), Some(ms(1000)));
        let Next::GiveUp(error) = decider.decide(&facts).next else {
            panic!("it has no time left");
        };
        let message = error.message();
        assert!(
            message.contains("at least 20.0 MB/s would be needed"),
            "{message}"
        );
        // 3 MB of state at 10 MB/s, and `save` takes 100 ms of a limit of 250.
        let facts = Facts {
            operations: Operations {
                save: Some(ms(100)),
                state_bytes: Some(3_000_000),
                ..Operations::default()
            },
            ..synced(10)
        };
        let mut decider = FitsDowntime::new(ms(250), None);
        let mut next = Next::GoOn;
        for _ in 0..BEYOND {
            next = decider.decide(&facts).next;
        }
        let Next::GiveUp(error) = next else {
            panic!("it goes on");
        };
        let message = error.message();
        assert!(message.contains("3.0 MB at 10.0 MB/s"), "{message}");
        assert!(
            message.contains("at least 20.0 MB/s would do, or a higher downtime limit"),
            "{message}"
        );
    }

    /// The round trips take 160 ms.
    fn far(elapsed: u64) -> Facts {
        Facts {
            remaining: Bytes(0),
            round_trip: Some(ms(80)),
            round_trip_certain: true,
            ..synced(elapsed)
        }
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_no_failure_as_long_as_it_may_rise_so_far() {
        let ends = |ceiling: Option<u64>| {
            let mut decider = FitsDowntime::new(ms(50), None);
            decider.set_bounds(&bounds(50, ceiling));
            let mut walking = far(1);
            walking.moment = Moment::Walking;
            let early = decider.decide(&walking).next;
            (early, decider.decide(&far(1)).next)
        };
        assert_eq!(ends(Some(400)), (Next::GoOn, Next::GoOn));
        let (early, late) = ends(Some(100));
        let said = |next: Next| match next {
            Next::GiveUp(error) => error.message().to_owned(),
            other => format!("{other:?}"),
        };
        let words = "limit's ceiling of 100 ms cannot be kept: the round trips alone take 160.0 ms";
        assert!(said(early).contains(words));
        assert!(said(late).contains(words));
        // A pause to finish has no limit that is too short.
        let (_, finish) = ends(None);
        assert_eq!(finish, Next::SwitchOver { expected: ms(160) });
    }

    #[test]
    fn a_higher_limit_counts_at_once() {
        let mut decider = FitsDowntime::new(ms(50), None);
        decider.set_bounds(&bounds(50, Some(50)));
        let rest = synced(10_000);
        assert_eq!(decider.decide(&rest).next, Next::GoOn);
        decider.set_bounds(&bounds(200, Some(200)));
        let next = decider.decide(&rest).next;
        assert!(
            matches!(next, Next::SwitchOver { expected } if expected <= ms(101)),
            "{next:?}"
        );
        let mut paused = rest;
        (paused.moment, paused.stood) = (Moment::Paused, ms(150));
        assert_eq!(decider.judge(&paused), Verdict::Resume);
        decider.set_bounds(&bounds(300, Some(300)));
        assert_eq!(decider.judge(&paused), Verdict::GoThrough);
    }
}
