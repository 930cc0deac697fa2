//! What a decider is shown and what it answers. Pure.
//!
//! A [`Decider`] is shown [`Facts`] and answers with a [`Decision`]. It is asked at two
//! moments: while a pass is being sent, whether to end it early with a sync, and right after
//! a sync, what to do next. Everything that steers a migration comes through here: throttling
//! the guest, deadlines and forecasts answer through the same [`Decision`].

use crate::error::Error;
use crate::units::{Bytes, Pages};
use std::time::Duration;

/// When the decider is asked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In the middle of a pass. The pages written since the last sync are unknown.
    Walking,
    /// Right after a sync. `remaining` includes every page written until then.
    #[default]
    Synced,
}

/// A pass that has ended: everything that was sent in it is acknowledged.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PassFacts {
    /// Its number, from 1.
    pub number: u32,
    /// Pages that were sent. Ballooned and free pages, which are sent without being read, do not
    /// count.
    pub pages: Pages,
    /// Of `pages`, those that went with their contents. The others were holes or zero. Deltas count
    /// as the number of pages that their bytes would fill.
    pub data: Pages,
    /// From the first page to the acknowledgement of the last, less the waits for a bandwidth cap.
    pub time: Duration,
}

/// The facts that a decider decides by. In [`Facts::default`], for tests of deciders, nothing is
/// known.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Facts {
    /// The moment of the decision.
    pub moment: Moment,
    /// Time since the migration started.
    pub elapsed: Duration,
    /// Time since the last sync ended (since tracking started, before the first).
    pub since_sync: Duration,
    /// The pass, from 1.
    pub pass: u32,
    /// All of the guest's memory.
    pub total: Bytes,
    /// Bytes pending.
    pub remaining: Bytes,
    /// The last pass that sent anything and has ended.
    pub last_pass: Option<PassFacts>,
    /// Bytes a second that the link carries, as measured or as the user stated for the switchover.
    /// `None` before anything is known.
    pub bandwidth: Option<f64>,
    /// Whether the user stated the bandwidth. A stated bandwidth overrides the measured one.
    pub stated: bool,
    /// Bytes a second that sending may use while the guest runs, when there is a cap.
    pub cap: Option<f64>,
    /// Pages a second that the guest dirtied between the last two syncs.
    pub dirty_rate: Option<f64>,
    /// How long the last sync took.
    pub sync_time: Duration,
    /// Bytes of device state to expect; 0 when unknown.
    pub state: Bytes,
}

impl Facts {
    /// The downtime if the switchover came now: the last sync, then the rest and the state. The
    /// time of the VMM's operations and of loading is not known beforehand and not included.
    pub fn expected_downtime(&self) -> Option<Duration> {
        Some(self.sync_time.saturating_add(self.sending()?))
    }

    /// The time to send the rest and the state while the guest stands still.
    ///
    /// The longer of two estimates counts. The first divides the bytes by the link's bandwidth. The
    /// second takes the time a page from the last pass. The bandwidth alone misses zero pages,
    /// which take no bandwidth but the destination's time. The last pass alone is one sample.
    /// `None` as long as neither is known.
    pub(super) fn sending(&self) -> Option<Duration> {
        let last = self.last_pass.filter(|pass| pass.pages.0 > 0);
        let similar = last.filter(|pass| self.resembles(pass));
        let by_link = self.link().map(|bandwidth| {
            // The next pages are expected to have the same share of zero pages as those of the last
            // pass. The first pass does not count: it sent pages that the guest never touched.
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

    /// The time that a further pass over the rest would take, a sync included.
    pub(super) fn further_pass(&self) -> Option<Duration> {
        let capped = self.cap.filter(|cap| *cap > 0.0);
        let capped = capped.map_or(0.0, |cap| self.remaining.0 as f64 / cap);
        let sending = self.sending()?.max(seconds(capped));
        Some(self.sync_time.saturating_add(sending))
    }

    fn link(&self) -> Option<f64> {
        self.bandwidth.filter(|bandwidth| *bandwidth > 0.0)
    }

    /// Whether a pass was long enough to predict the time of the rest from it. A pass of three
    /// pages measures a round trip only.
    fn resembles(&self, pass: &PassFacts) -> bool {
        pass.pages.bytes().0 >= self.remaining.0 / 4
    }
}

/// A duration of `seconds`, limited to what a `Duration` can hold.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// What the migration does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Go on sending.
    GoOn,
    /// End the pass with a sync, before all its pages are sent. After a sync: as `GoOn`.
    Sync,
    /// Stop the guest and switch over, expecting this downtime. In the middle of a pass: as `Sync`.
    SwitchOver {
        /// The time from pausing to running.
        expected: Duration,
    },
    /// Fail: the migration cannot finish in time.
    GiveUp(Error),
}

/// A decision. More fields will be added: how much to slow the guest, a forecast.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// What the migration does next.
    pub next: Next,
}

impl From<Next> for Decision {
    fn from(next: Next) -> Self {
        Decision { next }
    }
}

/// Steers a migration. Called on the migration's thread; must not block.
///
/// The decider is asked before each batch of pages ([`Moment::Walking`]) and after each sync
/// ([`Moment::Synced`]). An answer has these effects:
///
/// | answer | `Walking` | `Synced` |
/// |---|---|---|
/// | [`Next::GoOn`] | the batch is sent | the next pass begins |
/// | [`Next::Sync`] | the pass ends with a sync | as `GoOn` |
/// | [`Next::SwitchOver`] | as `Sync`: what is dirty is unknown before a sync; the decider is asked again after it | the guest is paused, unless ballooned pages have to be named first |
/// | [`Next::GiveUp`] | the migration fails with the error | the same |
///
/// When the total timeout runs out while the migration waits for the peer, the decider is asked
/// once more, with `Walking`. If the answer is `GiveUp`, its error is the migration's. After any
/// other answer, the error of the wait is.
///
/// The default is [`FitsDowntime`](super::FitsDowntime). A VMM passes a decider of its own to
/// [`Outgoing::start_with`](crate::migrate::Outgoing::start_with):
///
/// ```
/// use brant::migrate::{Decider, Decision, Facts, Moment, Next};
/// use std::time::Duration;
///
/// /// Switches over after the third pass, however long the guest will stand still.
/// struct ThirdPass;
///
/// impl Decider for ThirdPass {
///     fn decide(&mut self, facts: &Facts) -> Decision {
///         let next = match facts.expected_downtime() {
///             Some(expected) if facts.moment == Moment::Synced && facts.pass >= 3 => {
///                 Next::SwitchOver { expected }
///             }
///             _ => Next::GoOn,
///         };
///         next.into()
///     }
/// }
///
/// // A decider is a pure function: no migration is needed to test it.
/// let mut facts = Facts::default();
/// facts.pass = 2;
/// facts.bandwidth = Some(1e9);
/// assert_eq!(ThirdPass.decide(&facts).next, Next::GoOn);
/// facts.pass = 3;
/// let expected = Duration::ZERO;
/// assert_eq!(ThirdPass.decide(&facts).next, Next::SwitchOver { expected });
/// ```
pub trait Decider: Send {
    /// Decides what to do next, given `facts`. A panic fails the migration with
    /// [`Kind::Vmm`](crate::Kind::Vmm) and a message that names the decider.
    fn decide(&mut self, facts: &Facts) -> Decision;
}
