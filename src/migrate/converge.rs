//! When to switch over, when to go on, when to give up. Pure.
//!
//! A [`Decider`] is shown [`Facts`] and answers with a [`Decision`]. It is asked at two
//! moments: while a pass is being sent, whether to end it early with a sync, and right after
//! a sync, what to do next. Everything that steers a migration comes through here: the one
//! below knows a downtime limit and a total timeout; throttling the guest, deadlines and
//! forecasts answer through the same [`Decision`].

use crate::error::{Error, Kind};
use crate::units::{Bytes, Pages};
use std::time::Duration;

/// When the decider is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In the middle of a pass: what is dirty since the last sync is unknown.
    Walking,
    /// Right after a sync: `remaining` is all there is.
    Synced,
}

/// A pass that has ended: everything that was sent in it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassFacts {
    /// Its number, from 1.
    pub number: u32,
    /// Pages that were sent. Given-back and free pages, which nobody looks at, do not count.
    pub pages: Pages,
    /// Of those, pages that went with their contents. The others were holes or zero.
    pub data: Pages,
    /// From the first page to the acknowledgement of the last, less what a cap of the
    /// bandwidth made it wait.
    pub time: Duration,
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// When this is.
    pub moment: Moment,
    /// Time since the migration started.
    pub elapsed: Duration,
    /// Time since the last sync ended (since tracking started, before the first).
    pub since_sync: Duration,
    /// The pass, from 1.
    pub pass: u32,
    /// All of the guest's memory.
    pub total: Bytes,
    /// What is pending.
    pub remaining: Bytes,
    /// The last pass that sent anything and has ended.
    pub last_pass: Option<PassFacts>,
    /// Bytes a second that the link carries, as measured or as the user stated for the
    /// switchover; `None` before anything is known.
    pub bandwidth: Option<f64>,
    /// Whether the user stated it. Then it is believed, whatever was measured.
    pub stated: bool,
    /// Bytes a second that sending may use while the guest runs, if that is limited.
    pub cap: Option<f64>,
    /// Pages a second that the guest dirtied between the last two syncs.
    pub dirty_rate: Option<f64>,
    /// How long the last sync took.
    pub sync_time: Duration,
    /// Bytes of device state to expect, 0 if unknown.
    pub state: Bytes,
}

impl Facts {
    /// The downtime if the switchover came now: the last sync, then what remains and the
    /// state. What the VMM's callbacks and the loading take comes on top and is not known
    /// beforehand.
    pub fn expected_downtime(&self) -> Option<Duration> {
        Some(self.sync_time.saturating_add(self.sending()?))
    }

    /// How long what remains, and the state, would take while the guest stands still.
    ///
    /// Two answers, of which the longer counts. What the link says: so many bytes at its rate.
    /// And what the last pass says: so many pages took so long to arrive. The link alone knows
    /// nothing of zero pages, which take no bandwidth and a destination's time; the last pass
    /// alone is one sample. `None` as long as neither is known.
    fn sending(&self) -> Option<Duration> {
        let last = self.last_pass.filter(|pass| pass.pages.0 > 0);
        let similar = last.filter(|pass| self.resembles(pass));
        let by_link = self.link().map(|bandwidth| {
            // Zero pages among what the guest dirtied: the next pages are as those of the last
            // pass were. The first pass says nothing of that, it sent what was never touched.
            let share = match similar {
                Some(pass) if pass.number > 1 && !self.stated => {
                    pass.data.0 as f64 / pass.pages.0 as f64
                }
                _ => 1.0,
            };
            (self.remaining.0 as f64 * share + self.state.0 as f64) / bandwidth
        });
        let by_pass = match by_link {
            None => last,
            Some(_) => similar.filter(|_| !self.stated),
        };
        let by_pass = by_pass.map(|pass| {
            let bytes = self.remaining.0.saturating_add(self.state.0) as f64;
            pass.time.as_secs_f64() * (bytes / pass.pages.bytes().0 as f64)
        });
        let longer = match (by_link, by_pass) {
            (Some(link), Some(pass)) => Some(link.max(pass)),
            (link, pass) => link.or(pass),
        };
        Some(seconds(longer?))
    }

    /// How long a further pass over what remains would take, a sync included.
    fn further_pass(&self) -> Option<Duration> {
        let capped = self.cap.filter(|cap| *cap > 0.0);
        let capped = capped.map_or(0.0, |cap| self.remaining.0 as f64 / cap);
        let sending = self.sending()?.max(seconds(capped));
        Some(self.sync_time.saturating_add(sending))
    }

    fn link(&self) -> Option<f64> {
        self.bandwidth.filter(|bandwidth| *bandwidth > 0.0)
    }

    /// Whether a pass was long enough to tell how long what remains would take. A pass of three
    /// pages is a round trip and nothing else.
    fn resembles(&self, pass: &PassFacts) -> bool {
        pass.pages.bytes().0 >= self.remaining.0 / 4
    }
}

/// A time that may be longer than there is a number for.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Send on.
    GoOn,
    /// End the pass with a sync, before all of it is sent.
    Sync,
    /// Stop the guest and switch over, expecting this downtime.
    SwitchOver {
        /// From pausing to running.
        expected: Duration,
    },
    /// It will not be done in time.
    GiveUp(Error),
}

/// A decision. More fields will join: how much to slow the guest, a forecast.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// What to do next.
    pub next: Next,
}

impl From<Next> for Decision {
    fn from(next: Next) -> Self {
        Decision { next }
    }
}

/// Steers a migration. Called on the migration's thread; must not block.
pub trait Decider: Send {
    /// What to do, given `facts`.
    fn decide(&mut self, facts: &Facts) -> Decision;
}

/// The first decider: *fits-downtime*. It switches over when what remains fits the downtime
/// limit; otherwise the migration goes on until its total timeout, and then ends with an error
/// that says what was missing.
///
/// **The limit is a ceiling and not a target.** An idle guest of 2 GiB fits a limit of 300 ms
/// when 700 MB of its first pass are left; paused then, it would stand still for all of them,
/// and a few hundred milliseconds later there is nothing left to stand still for. So no pass is
/// cut short, and where the rest fits, passes go on as long as the last one made the rest
/// smaller. When one did not, the guest dirties as much as a pass sends, and the next rest that
/// fits is taken.
#[derive(Debug, Clone)]
pub struct FitsDowntime {
    limit: Duration,
    total: Option<Duration>,
    /// The pass that is going on is sent although the rest fitted before it.
    further: bool,
    /// Such a pass made nothing smaller: no more of them.
    settled: bool,
}

/// A rest that takes less than this is not made smaller: hardly anybody notices.
const UNNOTICED: Duration = Duration::from_micros(250);

impl FitsDowntime {
    /// With a downtime limit and a limit for the whole migration.
    pub fn new(limit: Duration, total: Option<Duration>) -> Self {
        FitsDowntime {
            limit,
            total,
            further: false,
            settled: false,
        }
    }

    /// The pass that ended was to make a rest smaller that fitted already. If it did not, none
    /// will be tried again: a guest whose rest fits only now and then must be paused when it does.
    fn settle(&mut self, facts: &Facts) {
        if std::mem::take(&mut self.further) && !shrank(facts) {
            self.settled = true;
        }
    }

    /// Whether a further pass is worth its time although the rest fits.
    ///
    /// A rest that is a quarter smaller after each pass takes four times the first such rest in
    /// all, so there need be no other bound on their number.
    fn worth_another(&self, facts: &Facts) -> bool {
        let (Some(sending), Some(pass)) = (facts.sending(), facts.further_pass()) else {
            return false;
        };
        let in_time = |total| facts.elapsed.saturating_add(pass.saturating_mul(2)) < total;
        // Where a cap makes passes slow, they may still add a quarter to the migration.
        let cheap = pass <= facts.elapsed / 4 || pass <= sending.saturating_mul(10);
        // The last sync stands still as well, whatever remains.
        let noticed = sending > UNNOTICED.max(facts.sync_time / 4);
        !self.settled && shrank(facts) && noticed && cheap && self.total.is_none_or(in_time)
    }

    /// What to say when time is up.
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
                // What the guest wrote since the last sync is not among what remains yet.
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

/// Whether the last pass left a quarter less than it sent. Less than that is chance.
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

#[cfg(test)]
#[path = "converge_tests.rs"]
mod tests;
