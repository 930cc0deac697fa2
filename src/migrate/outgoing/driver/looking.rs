//! Looking ahead: the source's driver shows what forecasts are made of, and keeps the progress by
//! them. It decides nothing.

use super::Driver;
use crate::migrate::outgoing::advance::in_hundredths;
use crate::migrate::outgoing::foresight::Seen;
use crate::migrate::steering::Facts;
use crate::units::{Bytes, PAGE_SIZE};
use std::time::{Duration, Instant};

/// A look ahead for the progress follows the one before after this time at the earliest, because
/// short passes follow one another quickly.
const LOOK: Duration = Duration::from_millis(200);

impl Driver {
    /// Brings forecast and progress up to date. `facts` are those of now.
    pub(super) fn look_ahead(&mut self, facts: &Facts) {
        let guest = &self.common.shared.guest;
        let now = Instant::now();
        // What was found behind the walk is a part of the later passes.
        let behind = self.course.found_in_pass().bytes().0;
        if guest.stood().is_some() {
            guest.foresight.freeze(now, guest.pacer.sent());
        } else if facts.pass > 0 && (self.course.bandwidth.estimate().is_some() || facts.stated) {
            let seen = self.seen(now, facts, behind);
            if self.ahead.last.is_none_or(|(at, _)| now - at >= LOOK) {
                self.ahead.last = Some((now, seen.after_this_pass()));
            }
            guest.foresight.show(seen);
        }
        let stats = &mut self.common.stats;
        // Holes and zero pages count as pages too: they are a part of the walk.
        let done = (stats.data_pages + stats.zero_pages) * PAGE_SIZE;
        let later = self.ahead.last.map_or(0.0, |(_, later)| later);
        let to_come = stats.remaining_bytes.saturating_sub(behind) as f64 + later;
        let progress = &mut self.ahead.progress;
        stats.progress = in_hundredths(progress.update(done as f64, Some(to_come)));
    }

    /// The guest may be slowed otherwise since the last sync: what is known of it is known for its
    /// new speed.
    pub(super) fn follow_speed(&mut self) {
        let speed = |percent: u8| 1.0 - f64::from(percent) / 100.0;
        let now = self.steer.throttle();
        let before = std::mem::replace(&mut self.ahead.throttle, now);
        if now != before {
            let factor = speed(now) / speed(before);
            self.course.working_set.change_speed(factor);
        }
    }

    /// What is seen at `now`, in the middle of a pass, with `behind` bytes found behind the walk.
    fn seen(&self, now: Instant, facts: &Facts, behind: u64) -> Seen {
        let stats = &self.common.stats;
        let (pages, data) = self.course.pass_sent();
        let mut facts = *facts;
        facts.since_sync = self.course.in_pass(now);
        // A pass that has ended is not the one to come.
        facts.pass += u32::from(self.course.is_between_passes());
        // Until it is measured, the handshake's answer is the best that is known.
        facts.round_trip = facts.round_trip.or(Some(self.greeted));
        facts.remaining = Bytes(facts.remaining.0.saturating_sub(behind));
        Seen {
            at: now,
            facts,
            pass_sent: data.bytes(),
            sent: Bytes(stats.data_pages * PAGE_SIZE),
            wire: self.sent(),
            moved: self.common.shared.guest.pacer.sent(),
            data: match pages.0 {
                0 => 1.0,
                pages => data.0 as f64 / pages as f64,
            },
            last_pass: self.course.pass_took(),
            working_set: self.course.working_set.clone(),
            decider: self.steer.forecaster(),
            policies: self.steer.policies().clone(),
        }
    }
}
