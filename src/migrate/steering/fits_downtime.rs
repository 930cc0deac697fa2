//! The default decider, with a downtime limit and a total timeout. It switches over when the rest
//! fits the limit. Pure.

use super::facts::{Decider, Decision, Facts, Moment, Next};
use crate::error::{Error, Kind};
use crate::units::Pages;
use std::time::Duration;

/// The default decider. It switches over when the rest fits the downtime limit. Otherwise the
/// migration goes on until its total timeout, and then ends with an error that says what was
/// missing.
///
/// **The limit is a ceiling and not a target.** Example: an idle guest of 2 GiB fits a limit of 300
/// ms when 700 MB of its first pass are left. Paused then, it would stand still while all of them
/// are sent. A few hundred milliseconds later nothing would be left to send. So no pass is cut
/// short. When the rest fits, passes go on as long as the last pass made the rest smaller. When a
/// pass did not, the guest dirties as much as a pass sends, and the next rest that fits is taken.
#[derive(Debug, Clone)]
pub struct FitsDowntime {
    limit: Duration,
    total: Option<Duration>,
    /// The current pass is sent although the rest fitted before it.
    further: bool,
    /// A pass after a fitting rest did not make the rest smaller, so no more such passes follow.
    settled: bool,
}

/// A rest that takes less time than this is not made smaller, because hardly anybody notices the
/// pause.
const UNNOTICED: Duration = Duration::from_micros(250);

impl FitsDowntime {
    /// A decider with a downtime limit and a limit for the whole migration.
    pub fn new(limit: Duration, total: Option<Duration>) -> Self {
        FitsDowntime {
            limit,
            total,
            further: false,
            settled: false,
        }
    }

    /// Judges a pass that was to make a fitting rest smaller. If it did not, no such pass is tried
    /// again: a guest whose rest fits only now and then must be paused when it fits.
    fn settle(&mut self, facts: &Facts) {
        if std::mem::take(&mut self.further) && !shrank(facts) {
            self.settled = true;
        }
    }

    /// Whether a further pass is worth its time although the rest fits.
    ///
    /// If each pass makes the rest a quarter smaller, all passes together take four times the first
    /// rest. So the number of passes needs no other bound.
    fn worth_another(&self, facts: &Facts) -> bool {
        let (Some(sending), Some(pass)) = (facts.sending(), facts.further_pass()) else {
            return false;
        };
        let in_time = |total| facts.elapsed.saturating_add(pass.saturating_mul(2)) < total;
        // When a cap makes passes slow, they may still add a quarter to the migration's time.
        let cheap = pass <= facts.elapsed / 4 || pass <= sending.saturating_mul(10);
        // The guest stands still during the last sync as well, whatever remains.
        let noticed = sending > UNNOTICED.max(facts.sync_time / 4);
        !self.settled && shrank(facts) && noticed && cheap && self.total.is_none_or(in_time)
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
                let fits = mb(bandwidth * self.limit.saturating_sub(facts.sync_time).as_secs_f64());
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
            None => message += "too little was sent to know the bandwidth",
        }
        if facts.sync_time > self.limit {
            message += &format!(
                "; the last sync alone took {:.1} ms",
                facts.sync_time.as_secs_f64() * 1e3
            );
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
        let next = match facts.moment {
            Moment::Walking if time_is_up => Next::GiveUp(self.shortfall(facts)),
            Moment::Walking => Next::GoOn,
            Moment::Synced => {
                self.settle(facts);
                // An empty rest fits whatever the link does.
                let empty = (facts.remaining.0 == 0).then_some(facts.sync_time);
                match facts.expected_downtime().or(empty) {
                    Some(expected) if expected <= self.limit => {
                        self.further = self.worth_another(facts);
                        match self.further {
                            true => Next::GoOn,
                            false => Next::SwitchOver { expected },
                        }
                    }
                    _ if time_is_up => Next::GiveUp(self.shortfall(facts)),
                    _ => Next::GoOn,
                }
            }
        };
        next.into()
    }
}
