//! The VMM's side of an outgoing migration: start it, watch it, cancel it, resolve it. The driver
//! does the work, on a thread of its own.

mod advance;
mod ahead;
mod announced;
mod asking;
mod assignment;
mod balance;
mod connect_to;
mod course;
mod decisions;
mod deltas;
mod devices;
mod driver;
mod encode;
mod foresight;
mod lane;
mod lanes;
mod leaving;
mod ledger;
mod loaded;
mod orders;
mod packing;
mod postcopy;
mod queue;
mod rates;
mod recorded;
mod replies;
mod sent_pages;
mod steer;
mod still;
mod unread;
mod untouched;
mod verify;
mod waiting;
mod worker;

pub use connect_to::ConnectTo;

use crate::channel::Pacer;
use crate::dirty::consumer::Consumer;
use crate::dirty::tracker::Tracker;
use crate::error::{Error, Kind, Result};
use crate::migrate::callbacks::check_not_inside;
use crate::migrate::common::Migration;
use crate::migrate::params::{check_max_bandwidth, Params};
use crate::migrate::record;
use crate::migrate::report::LaneStats;
use crate::migrate::steering::forecast::Forecast;
use crate::migrate::steering::policies::Policy;
use crate::migrate::steering::stall::Cause;
use crate::migrate::steering::Decider;
use crate::migrate::switchover::source::{step, Action, Event, Resolution, State};
use crate::migrate::watching::watching;
use crate::migrate::work;
use crate::migrate::Blockers;
use crate::runtime::thread::{spawn, Role};
use crate::runtime::Cancel;
use crate::vmm::held::Held;
use crate::vmm::Vmm;
use asking::Asked;
use decisions::Decisions;
use driver::Driver;
use foresight::Foresight;
use leaving::Leaving;
use orders::{Order, Orders};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A migration of the guest from this host to another. One object serves one migration.
///
/// All methods may be called from any thread. Inside a callback of the same migration,
/// [`Outgoing::wait`] is an error and [`Outgoing::cancel`] does not wait.
///
/// ```
/// use brant::dirty::tracker::{Clearing, Tracker};
/// use brant::error::Kind;
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::migrate::{Blockers, Incoming, Outgoing, Params, AcceptFrom, ConnectTo};
/// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use brant::vmm::Vmm;
/// use std::os::unix::net::UnixStream;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// /// Says how far it is until it is over.
/// fn watch(migration: &Outgoing) -> brant::Result<()> {
///     loop {
///         // A VMM with an event loop polls notify_fd() instead.
///         match migration.wait(Some(Duration::from_millis(200))) {
///             Err(e) if e.kind() == Kind::Pending => {
///                 let stats = migration.stats();
///                 let done = f64::from(stats.progress) / 100.0;
///                 println!("pass {}, {done:.1} %, time left {:?}", stats.pass, stats.time_left);
///             }
///             over => return over,
///         }
///     }
/// }
///
/// # struct Nothing;
/// # impl Vmm for Nothing {
/// #     fn pause(&self) -> brant::Result<()> { Ok(()) }
/// #     fn resume(&self) -> brant::Result<()> { Ok(()) }
/// #     fn run(&self) -> brant::Result<()> { Ok(()) }
/// # }
/// # fn guest() -> brant::Result<Arc<Memory>> {
/// #     let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// #     let memory = Arc::new(Memory::new()?);
/// #     memory.add_guest_memory(&ram, NO_SLOT)?;
/// #     Ok(memory)
/// # }
/// # fn main() -> brant::Result<()> {
/// # let (a, b) = UnixStream::pair()?;
/// # let incoming = Incoming::new(guest()?, Arc::new(Nothing), Params::default())?;
/// # incoming.start(AcceptFrom::Connected(b.into()))?;
/// let tracker = Tracker::new(guest()?, Clearing::default())?;
/// let outgoing = Outgoing::new(tracker, Blockers::new(), Arc::new(Nothing), Params::default())?;
/// outgoing.start(ConnectTo::Connected(a.into()))?;
/// watch(&outgoing)?;
/// let stats = outgoing.stats();
/// println!("moved, the guest stood still for {:?}", stats.downtime.unwrap());
/// assert_eq!(stats.progress, 10_000);
/// # Ok(())
/// # }
/// ```
pub struct Outgoing {
    shared: Arc<Migration<Leaving, State>>,
}

watching!(Outgoing, State);

impl Outgoing {
    /// A migration of the guest that `tracker` tracks. The parameters are checked here.
    pub fn new(
        tracker: Arc<Tracker>,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: Params,
    ) -> Result<Self> {
        Self::make(tracker, None, blockers, vmm, params)
    }

    /// As [`Outgoing::new`], with a consumer of the caller's instead of one of the migration's own.
    /// It is for a caller that wants to know which pages did not arrive: see
    /// [`Outgoing::leftover`]. When the consumer is started already, it stays started.
    pub fn with_consumer(
        consumer: Consumer,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: Params,
    ) -> Result<Self> {
        let tracker = Arc::clone(consumer.tracker());
        Self::make(tracker, Some(Arc::new(consumer)), blockers, vmm, params)
    }

    fn make(
        tracker: Arc<Tracker>,
        lent: Option<Arc<Consumer>>,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: Params,
    ) -> Result<Self> {
        let guest = Leaving {
            tracker,
            blockers,
            pacer: Arc::new(Pacer::new(params.max_bandwidth)),
            orders: Orders::new(params.policy.clone(), params.downtime_limit),
            paused_at: Mutex::default(),
            lent: Mutex::new(lent),
            foresight: Foresight::default(),
            standstill: Mutex::default(),
            comparison: Cancel::new()?,
            devices: Held::default(),
            shared: leaving::Shared::default(),
            decisions: Decisions::default(),
        };
        Ok(Outgoing {
            shared: Migration::new(guest, vmm, params)?,
        })
    }

    /// The consumer that [`Outgoing::with_consumer`] was given, once the migration is over. Its
    /// pending pages are those that the destination has not acknowledged, and those that were
    /// written after they were sent. `None` before the end, and from the second call on.
    pub fn leftover(&self) -> Option<Consumer> {
        if !self.shared.handle.is_over() {
            return None;
        }
        self.shared.guest.lent().take().and_then(Arc::into_inner)
    }

    /// Starts the migration and returns. [`Outgoing::wait`], the events and the figures tell how
    /// the migration goes and ends.
    ///
    /// [`Kind::State`] when the guest was handed over and not taken back, or has to be resolved.
    /// [`Kind::Busy`] when another migration of the same guest is in progress, in either direction.
    pub fn start(&self, to: ConnectTo) -> Result<()> {
        self.start_asking(to, Asked::Own(self.shared.params.decider()))
    }

    /// As [`Outgoing::start`], with a decider of the caller's.
    pub fn start_with(&self, to: ConnectTo, decider: Box<dyn Decider>) -> Result<()> {
        self.start_asking(to, Asked::Vmm(decider))
    }

    fn start_asking(&self, to: ConnectTo, decider: Asked) -> Result<()> {
        let shared = &self.shared;
        self.check_policy(&shared.guest.orders.lock().policy)?;
        let claim = || {
            shared.guest.blockers.check()?;
            shared.guest.tracker.memory().guest_ran();
            shared.guest.tracker.memory().ownership().leave()
        };
        shared.handle.start(claim, || {
            let driver = Driver::new(Arc::clone(shared), to, decider)?;
            // The thread announces itself inside `run`, where a panic of the VMM's ends the
            // migration.
            spawn(Role::Migration, |_| (), move || work::run(driver))
        })
    }

    /// Changes [`Params::max_bandwidth`] before the migration starts or while it runs. The new cap
    /// counts at once, for all connections together. `None` is no cap. At the switchover and after
    /// the end, the call changes nothing.
    ///
    /// [`Kind::Invalid`] for a bandwidth out of its range; the cap stays as it was.
    pub fn set_max_bandwidth(&self, bytes_per_second: Option<u64>) -> Result<()> {
        check_max_bandwidth(bytes_per_second)?;
        self.shared.guest.pacer.state_rate(bytes_per_second);
        Ok(())
    }

    /// Replaces [`Params::policy`] before the migration starts or while it runs. The new policy counts
    /// from the next decision on: within one batch of pages. While the link takes nothing, no batch
    /// ends: then only a deadline that cancels, and the patience, count within a fifth of a second. At
    /// the switchover and after the end, the call changes nothing.
    ///
    /// [`Kind::Invalid`] for a policy out of its range, and for one that needs [`Vmm::throttle`] where
    /// the VMM has none. [`Kind::Unsupported`] for limits of single vCPUs where no log tells them
    /// apart. An error changes nothing. Before the start, only the ranges are checked here, and the
    /// rest at the start.
    pub fn set_policy(&self, policy: Policy) -> Result<()> {
        if self.state() != State::Idle {
            self.check_policy(&policy)?;
        }
        self.order(|order| order.policy = policy)
    }

    /// Replaces [`Params::downtime_limit`] before the migration starts or while it runs, as
    /// [`Outgoing::set_policy`] replaces the policy. When the guest is paused just now, the new limit
    /// decides whether that pause is aborted.
    ///
    /// [`Kind::Invalid`] for a limit out of its range, or above the policy's ceiling; the limit stays
    /// as it was.
    pub fn set_downtime_limit(&self, limit: Duration) -> Result<()> {
        self.order(|order| order.limit = limit)
    }

    /// Switches over as soon as possible, however long the guest stands still: the pass ends with a
    /// sync, and the guest is paused. Neither the limit nor the slack aborts that pause. A migration
    /// that sends nothing yet, or that has not started, first sends as much as shows the link's
    /// bandwidth, so that the promise about the downtime is one.
    ///
    /// [`Kind::State`] from the pause on, and after the end.
    pub fn switch_over(&self) -> Result<()> {
        let state = self.state();
        match state {
            State::Idle
            | State::Connecting
            | State::Negotiating
            | State::Copying
            | State::AbortingPause => {
                self.shared.guest.orders.lock().now = true;
                Ok(())
            }
            _ => Err(Error::new(
                Kind::State,
                format!(
                    "a migration is switched over before its guest is paused; this one is `{}`",
                    state.name()
                ),
            )),
        }
    }

    /// Switches to postcopy as soon as possible: the guest is paused, and runs at the destination before
    /// the pages that it still lacks there have come. Any moment from the start to the pause will do, and any thread.
    /// The pass in progress ends with a sync. The order is dropped, and an event
    /// ([`EventKind::Downtime`](crate::vmm::EventKind::Downtime)) says with which figure, when the guest
    /// would stand still for longer than the downtime limit. See `docs/postcopy.md`.
    ///
    /// [`Kind::State`] before the start, from the pause on, and after the end. [`Kind::Unsupported`] when
    /// [`Params::postcopy`] is off, and for a guest with devices whose state is streamed.
    pub fn start_postcopy(&self) -> Result<()> {
        let shared = &self.shared;
        if !shared.params.postcopy {
            let why = "the parameters of this migration do not allow postcopy";
            return Err(Error::new(Kind::Unsupported, why));
        }
        let state = self.state();
        match state {
            State::Connecting
            | State::Negotiating
            | State::Copying
            | State::AbortingPause => {
                shared.guest.orders.lock().postcopy = true;
                Ok(())
            }
            State::Idle => {
                let why = "this migration was not started, or its start failed";
                Err(Error::new(Kind::State, why))
            }
            _ => Err(Error::new(
                Kind::State,
                format!(
                    "a migration is switched to postcopy before its guest is paused; this one is `{}`",
                    state.name()
                ),
            )),
        }
    }

    /// Continues an interrupted migration ([`State::Interrupted`]) over new connections: one for each
    /// channel and one more, as at the start. The call returns at once, in state
    /// [`State::Recovering`]. With an endpoint, a connection that cannot be made, or is lost before both
    /// sides have agreed, is tried again for the connect timeout: so either VMM may be the first one to
    /// recover. Then the state is [`State::Serving`], with an event
    /// ([`EventKind::Recovered`](crate::vmm::EventKind::Recovered)); or it is [`State::Interrupted`] as
    /// before, with an event that says why. [`Outgoing::notify_fd`] becomes readable with each change of
    /// the state. The destination's VMM has to take new connections too.
    ///
    /// [`Kind::State`] when the migration is not interrupted, or was resolved. [`Kind::Busy`] when a
    /// recovery is in progress. [`Kind::Invalid`] for descriptors that are no connections.
    pub fn recover(&self, to: ConnectTo) -> Result<()> {
        let shared = &self.shared;
        let refused = |state: State| match state {
            State::Interrupted => Ok(()),
            State::Recovering => Err(decisions::under_way()),
            _ => Err(Error::new(
                Kind::State,
                format!(
                    "only an interrupted migration is recovered; this one is `{}`",
                    state.name()
                ),
            )),
        };
        refused(self.state())?;
        let route = to.route(shared.params.channels, true)?;
        // Whoever looks at the state after this call must not take it for that of a recovery that failed.
        shared.handle.go(|state| {
            refused(state)?;
            Ok((step(state, Event::Recover).state, ()))
        })?;
        shared.guest.decisions.recover(route).inspect_err(|_| {
            // It was resolved in between.
            let back = |state| match state {
                State::Recovering => State::Interrupted,
                other => other,
            };
            let _ = shared.handle.go(|state| Ok((back(state), ())));
        })
    }

    /// Changes the orders, when they are in range afterwards.
    fn order(&self, change: impl FnOnce(&mut Order)) -> Result<()> {
        let mut orders = self.shared.guest.orders.lock();
        let mut order = orders.clone();
        change(&mut order);
        let changed = Params {
            policy: order.policy.clone(),
            downtime_limit: order.limit,
            ..self.shared.params.clone()
        };
        changed.check()?;
        *orders = order;
        Ok(())
    }

    fn check_policy(&self, policy: &Policy) -> Result<()> {
        steer::check(policy, &self.shared.guest, &*self.shared.vmm)
    }

    /// Ends the migration at any point before the hand-over, and returns when the guest runs on.
    /// That takes at most a tenth of a second, unless a callback of the VMM's or a kernel call is
    /// in progress; a callback of a device is asked to return
    /// ([`Device::cancel`](crate::vmm::device::Device::cancel)). Inside a callback the method
    /// requests the end and returns. When the migration has ended already, nothing happens.
    ///
    /// After the hand-over a cancel is too late: [`Kind::State`]. While the memory of a guest that runs
    /// at the destination is compared ([`State::Verifying`]), a cancel ends the comparison: the
    /// migration has succeeded, and the pages that are left count as not compared.
    pub fn cancel(&self) -> Result<()> {
        if self.shared.handle.state() == State::Verifying {
            self.shared.guest.comparison.cancel();
            self.shared.handle.wait_over();
            return Ok(());
        }
        let wake = || self.cancel_devices();
        self.shared
            .handle
            .cancel("the guest has been handed over", wake)
    }

    fn cancel_devices(&self) {
        self.shared.guest.devices.cancel(&self.shared.callbacks());
    }

    /// The latest figures of one channel, counted from 0; all zero before there is a connection.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the parameters have no such channel.
    pub fn lane_stats(&self, channel: u32) -> Result<LaneStats> {
        let shared = &self.shared;
        shared.handle.lane_stats(shared.params.channels, channel)
    }

    /// Whether the migration will converge, in how many passes, time and bytes, with what downtime;
    /// and what would make it converge, when it will not. The answer is that of this moment, also
    /// while the link stalls. It assumes that guest and link go on as they were seen last, and
    /// counts with brant's own decider and the policy at work. It takes this thread some
    /// microseconds; some milliseconds when the migration does not converge.
    ///
    /// `None` until the bandwidth is measured or stated and the first pass has begun. From the pause
    /// on the forecast stays as it was. Of a completed migration it has the true figures.
    pub fn forecast(&self) -> Option<Forecast> {
        self.shared.forecast()
    }

    fn standing(&self) -> Option<Cause> {
        self.shared.standing()
    }

    /// Waits until the migration is over, for at most `limit`. After `limit` the error is
    /// [`Kind::Pending`]. Any other error says why the migration failed. After [`Kind::Unanswered`]
    /// the VMM has to call [`Outgoing::resolve`].
    pub fn wait(&self, limit: Option<Duration>) -> Result<()> {
        self.shared.handle.wait(limit)
    }

    /// Takes the VMM's decision about a guest that was handed over without an answer, or whose postcopy
    /// was interrupted. In any other state this is an error. When the decision is to resume, `resume` is
    /// called on this thread. No recovery follows. A guest that is known to have run at the destination
    /// cannot be resumed here, because its memory here is older.
    ///
    /// [`Kind::State`] for [`Resolution::Resume`] also when memory was handed over by descriptor
    /// ([`Params::hand_over`]), unless the destination has said that it never ran the guest.
    pub fn resolve(&self, resolution: Resolution) -> Result<()> {
        let handle = &self.shared.handle;
        check_not_inside(handle.owner(), "resolve")?;
        if matches!(handle.state(), State::Interrupted | State::Recovering) {
            let ran = handle.stats(None).run.is_some();
            if resolution == Resolution::Resume && ran {
                let why = "the guest has run at the destination, so it cannot run on here";
                return Err(Error::new(Kind::State, why));
            }
            self.shared.guest.decisions.retire();
            handle.wait_over();
            if handle.state() == State::GivenUp {
                return Ok(());
            }
        }
        // The state is published a little before the thread ends, and the VMM may call this in
        // between.
        if handle.state() == State::Unanswered {
            handle.wait_over();
        }
        let over = handle.is_over();
        let (resolved, resume) = handle.go(|state| {
            if state != State::Unanswered || !over {
                return Err(Error::new(
                    Kind::State,
                    format!(
                        "only a migration that was handed over and not answered is resolved; this \
                         one is `{}`",
                        state.name()
                    ),
                ));
            }
            let memory = self.shared.guest.after_hand_over();
            if resolution == Resolution::Resume && !memory.may_resume() {
                return Err(Error::new(
                    Kind::State,
                    "the guest's memory was handed over by descriptor, and the destination has not \
                     said that it never ran the guest: what it wrote is in the memory here too, and \
                     vCPUs and devices here do not fit it; destroy the guest here",
                ));
            }
            let step = step(state, Event::Resolve(resolution));
            let resume = step.actions.contains(&Action::CallResume);
            Ok((step.state, (step.state, resume)))
        })?;
        let callbacks = self.shared.callbacks();
        let result = if resume {
            let devices = &self.shared.guest.devices;
            let resumed = devices.resume(&callbacks);
            resumed.and_then(|()| callbacks.call("resume", |vmm| vmm.resume()))
        } else {
            Ok(())
        };
        if let (true, Some(stood)) = (resume, self.shared.guest.stood()) {
            handle.amend(|stats| stats.downtime = Some(stood));
        }
        match &result {
            // Until here nothing else could claim the guest.
            Ok(()) => {
                self.shared.guest.devices.let_go();
                handle.settle(resolved);
            }
            Err(_) => handle.go(|state| Ok((step(state, Event::ResumeFailed).state, ())))?,
        }
        handle.notify.raise();
        result
    }
}

impl Drop for Outgoing {
    /// Cancels the migration in progress and waits for its end. After the hand-over, waits for the
    /// destination's answer instead, at most for the hand-over timeout. Memory is not compared any more.
    fn drop(&mut self) {
        self.shared.guest.comparison.cancel();
        // An interrupted migration would wait for its VMM for ever.
        self.shared.guest.decisions.retire();
        self.shared.handle.shut_down(|| self.cancel_devices());
        record::shut_down(&*self.shared);
    }
}
