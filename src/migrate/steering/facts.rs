//! What a decider is shown and what it answers. Pure.
//!
//! A [`Decider`] is shown [`Facts`] and answers with a [`Decision`]. It is asked at two
//! moments: while a pass is being sent, whether to end it early with a sync, and right after
//! a sync, what to do next. When the guest stands still, the decider may still have it resumed: that
//! is its [`Verdict`]. Slowing the guest, deadlines and a limit that rises are the policy's
//! ([`policies`](super::policies)), which is shown the same facts and the decider's answer.

use super::operations::Operations;
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
    /// The guest stands still: right after the first sync that followed `pause`.
    Paused,
    /// The guest stands still and its state is saved: right after the last sync. `remaining` is all
    /// that will be sent.
    Saved,
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
    /// Bytes of pages that were sent and that the destination has not acknowledged. They are in
    /// buffers on the way, and still have to be delivered.
    pub unacknowledged: Bytes,
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
    /// The time from a message to its answer, when nothing else is on its way. `None` before a
    /// measurement.
    pub round_trip: Option<Duration>,
    /// Whether `round_trip` was measured several times.
    pub round_trip_certain: bool,
    /// How long the operations of both VMMs take, and how large the device state is.
    pub operations: Operations,
    /// Bytes of devices' state that can be sent while the guest runs, and are not.
    pub device_running: Bytes,
    /// Bytes of devices' state that can be sent only after the pause.
    pub device_stopped: Bytes,
    /// Bytes a second at which devices give their state, once measured. One device after the other is
    /// read after the pause, so a slow one is a part of the downtime.
    pub device_rate: Option<f64>,
    /// Bytes a second by which what devices can send while the guest runs grows, once measured.
    pub device_growth: Option<f64>,
    /// How many vCPUs the policy limits by their dirty rings.
    pub limited_vcpus: u32,
    /// Pages that such a vCPU may write before it stands still, in each pass: the entries of its ring.
    /// 0 where no rings keep limits.
    pub ring: Pages,
    /// How long the guest has stood still; zero while it runs.
    pub stood: Duration,
    /// How many pauses were aborted so far.
    pub aborted_pauses: u32,
}

impl Facts {
    /// The downtime if the switchover came now: everything from the call of `pause` to "running".
    /// [`Facts::parts`] has its parts.
    pub fn expected_downtime(&self) -> Option<Duration> {
        Some(self.stood.saturating_add(self.parts()?.total()))
    }

    /// The time that a further pass over the rest would take, a sync included.
    pub(super) fn further_pass(&self) -> Option<Duration> {
        let capped = self.cap.filter(|cap| *cap > 0.0);
        let capped = capped.map_or(0.0, |cap| self.remaining.0 as f64 / cap);
        let sending = self.sending_pages()?.max(seconds(capped));
        let answered = self
            .sync_time
            .saturating_add(self.round_trip.unwrap_or_default());
        Some(answered.saturating_add(sending))
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
    /// Stop the guest, and let its pages follow it. In the middle of a pass: as `Sync`.
    Postcopy {
        /// Why, for the VMM.
        why: &'static str,
    },
    /// Fail: the migration cannot finish in time.
    GiveUp(Error),
}

/// A decision. Fields may be added.
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

/// The answer about a guest that stands still.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Go through with the switchover.
    GoThrough,
    /// Abort the pause: the guest is resumed, and passes go on.
    Resume,
    /// Fail. The guest is resumed.
    GiveUp(Error),
}

/// The bounds that a policy sets to the downtime. They change while a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// The downtime limit from now on.
    pub limit: Duration,
    /// The highest that the limit can become. `None`: the policy pauses the guest to finish, however
    /// long it stands still then, so no limit is a reason to fail.
    pub ceiling: Option<Duration>,
    /// When the policy acts because of its deadline: a time since the migration's start.
    pub deadline: Option<Duration>,
    /// A migration without progress for this long has stalled.
    pub patience: Duration,
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

    /// Judges a pause, given `facts` with [`Moment::Paused`] or [`Moment::Saved`]. Nothing has been
    /// sent since the guest was paused, so the pause can still be aborted. Whoever does not
    /// implement this goes through with every switchover. A panic fails the migration, as one in
    /// [`Decider::decide`] does.
    fn judge(&mut self, facts: &Facts) -> Verdict {
        let _ = facts;
        Verdict::GoThrough
    }

    /// Takes in the bounds of the downtime: before the first question, and whenever they change.
    /// Whoever does not implement this is not told.
    fn set_bounds(&mut self, bounds: &Bounds) {
        let _ = bounds;
    }
}
