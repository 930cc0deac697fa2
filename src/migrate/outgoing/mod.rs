//! The VMM's side of an outgoing migration: start it, watch it, cancel it, resolve it. The work
//! is done by the driver on a thread of its own.

mod announced;
mod asking;
mod assignment;
mod balance;
mod course;
mod deltas;
mod driver;
mod encode;
mod lane;
mod lanes;
mod ledger;
mod packing;
mod queue;
mod replies;
mod sent_pages;
mod waiting;
mod worker;

pub use driver::ConnectTo;

use crate::channel::Pacer;
use crate::dirty::consumer::Consumer;
use crate::dirty::tracker::Tracker;
use crate::error::{Error, Kind, Result};
use crate::migrate::callbacks::check_not_inside;
use crate::migrate::common::Migration;
use crate::migrate::params::{check_max_bandwidth, Params};
use crate::migrate::report::LaneStats;
use crate::migrate::steering::{Decider, FitsDowntime};
use crate::migrate::switchover::source::{step, Action, Event, Resolution, State};
use crate::migrate::watching::watching;
use crate::migrate::work;
use crate::migrate::Blockers;
use crate::runtime::thread::{spawn, Role};
use crate::vmm::Vmm;
use driver::{Driver, Leaving};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// A migration from here to somewhere else. One object, one migration.
///
/// All methods may be called from any thread; inside a callback of the same migration,
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
    /// A migration of the guest that `tracker` tracks. Checks the parameters.
    pub fn new(
        tracker: Arc<Tracker>,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: Params,
    ) -> Result<Self> {
        Self::make(tracker, None, blockers, vmm, params)
    }

    /// The same with a consumer of the caller's instead of one of the migration's own, for a
    /// caller that wants to know which pages did not arrive: see [`Outgoing::leftover`]. A
    /// consumer that is started already stays so.
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
            paused_at: OnceLock::new(),
            lent: Mutex::new(lent),
        };
        Ok(Outgoing {
            shared: Migration::new(guest, vmm, params)?,
        })
    }

    /// The consumer that [`Outgoing::with_consumer`] was given, once the migration is over.
    /// Pending for it are the pages that the destination has not acknowledged, and what was
    /// written since they were sent. `None` before that, and the second time.
    pub fn leftover(&self) -> Option<Consumer> {
        if !self.shared.handle.is_over() {
            return None;
        }
        self.shared.guest.lent().take().and_then(Arc::into_inner)
    }

    /// Starts it and returns. What it comes to is told by [`Outgoing::wait`], the events and
    /// the figures.
    ///
    /// [`Kind::State`] where the guest was handed over and not taken back, or has to be resolved;
    /// [`Kind::Busy`] where another migration of the same guest is in progress, in either
    /// direction.
    pub fn start(&self, to: ConnectTo) -> Result<()> {
        self.start_with(
            to,
            Box::new(FitsDowntime::new(
                self.shared.params.downtime_limit,
                self.shared.params.total_timeout,
            )),
        )
    }

    /// The same with a decider of the caller's.
    pub fn start_with(&self, to: ConnectTo, decider: Box<dyn Decider>) -> Result<()> {
        let shared = &self.shared;
        let claim = || {
            shared.guest.blockers.check()?;
            shared.guest.tracker.memory().guest_ran();
            shared.guest.tracker.memory().ownership().leave()
        };
        shared.handle.start(claim, || {
            let driver = Driver::new(Arc::clone(shared), to, decider)?;
            // It announces itself in there, where a panic of the VMM's ends the migration.
            spawn(Role::Migration, |_| (), move || work::run(driver))
        })
    }

    /// Changes [`Params::max_bandwidth`] while the migration runs, or before it starts: at once, for
    /// all connections together. `None` is no cap. At the switchover, and after the end, the call
    /// changes nothing.
    ///
    /// [`Kind::Invalid`] for a bandwidth out of its range; the cap stays as it was.
    pub fn set_max_bandwidth(&self, bytes_per_second: Option<u64>) -> Result<()> {
        check_max_bandwidth(bytes_per_second)?;
        self.shared.guest.pacer.state_rate(bytes_per_second);
        Ok(())
    }

    /// Ends the migration, wherever it is before the hand-over, and returns when the guest
    /// runs on: within a tenth of a second, unless a callback of the VMM's or a kernel call is in progress.
    /// Inside a callback it only asks for that. One that has ended by itself is left alone.
    ///
    /// After the hand-over it is too late: [`Kind::State`].
    pub fn cancel(&self) -> Result<()> {
        self.shared.handle.cancel("the guest has been handed over")
    }

    /// The latest figures of one channel, counted from 0; all zero before there is a connection.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the parameters have no such channel.
    pub fn lane_stats(&self, channel: u32) -> Result<LaneStats> {
        let shared = &self.shared;
        shared.handle.lane_stats(shared.params.channels, channel)
    }

    /// Waits until the migration is over, or for `limit`: [`Kind::Pending`]. An error says why
    /// it failed; [`Kind::Unanswered`], that the VMM has to [`Outgoing::resolve`] it.
    pub fn wait(&self, limit: Option<Duration>) -> Result<()> {
        self.shared.handle.wait(limit)
    }

    /// The VMM's decision about a guest that was handed over without an answer. Only then;
    /// calls `resume` on this thread if that is the decision.
    pub fn resolve(&self, resolution: Resolution) -> Result<()> {
        let handle = &self.shared.handle;
        check_not_inside(handle.owner(), "resolve")?;
        // The state is told a little before the thread's end, and whoever hears it may be quick.
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
            let step = step(state, Event::Resolve(resolution));
            let resume = step.actions.contains(&Action::CallResume);
            Ok((step.state, (step.state, resume)))
        })?;
        let callbacks = self.shared.callbacks();
        let result = if resume {
            callbacks.call("resume", |vmm| vmm.resume())
        } else {
            Ok(())
        };
        if let (true, Some(stood)) = (resume, self.shared.guest.stood()) {
            handle.amend(|stats| stats.downtime = Some(stood));
        }
        match &result {
            // Until here nothing else could begin with the guest.
            Ok(()) => handle.settle(resolved),
            Err(_) => handle.go(|state| Ok((step(state, Event::ResumeFailed).state, ())))?,
        }
        handle.notify.raise();
        result
    }
}

impl Drop for Outgoing {
    /// Cancels what is going on and waits for it. After the hand-over it waits for the answer
    /// instead, as long as the hand-over timeout.
    fn drop(&mut self) {
        self.shared.handle.shut_down();
    }
}
