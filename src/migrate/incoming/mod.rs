//! The VMM's side of an incoming migration: start it, watch it, cancel it. The work is done by
//! the driver on a thread of its own.

mod account;
mod agreed;
mod arriving;
mod authenticate;
mod blobs;
mod changed;
mod driver;
mod figures;
mod gather;
mod known_zero;
mod lane;
mod lane_account;
mod negotiate;
mod placement;
mod prefault;
mod receiver;
mod targets;
mod workers;

pub use driver::AcceptFrom;

use crate::channel::{Endpoint, Listener};
use crate::error::{Error, Kind, Result};
use crate::memory::Memory;
use crate::migrate::common::Migration;
use crate::migrate::params::Params;
use crate::migrate::report::{LaneState, LaneStats};
use crate::migrate::switchover::destination::State;
use crate::migrate::watching::watching;
use crate::migrate::work;
use crate::runtime::thread::{spawn, Role};
use crate::vmm::Vmm;
use arriving::Arriving;
use driver::Driver;
use std::sync::Arc;
use std::time::Duration;

/// A migration from somewhere else to here. One object, one migration; threads as for
/// [`crate::migrate::Outgoing`].
///
/// ```
/// use brant::error::Kind;
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::migrate::{Endpoint, Incoming, Params};
/// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use brant::vmm::Vmm;
/// use std::sync::Arc;
///
/// struct Machine;
/// impl Vmm for Machine {
///     fn run(&self) -> brant::Result<()> {
///         Ok(()) // start the vCPUs
///     }
/// }
///
/// # fn main() -> brant::Result<()> {
/// // The same regions as at the source.
/// let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let incoming = Incoming::new(memory, Arc::new(Machine), Params::default())?;
/// let at = incoming.listen(&Endpoint::parse("tcp:127.0.0.1:0")?)?;
/// println!("send the guest to {at}");
/// // Nobody comes.
/// incoming.cancel()?;
/// assert_eq!(incoming.wait(None).unwrap_err().kind(), Kind::Cancelled);
/// # Ok(())
/// # }
/// ```
pub struct Incoming {
    shared: Arc<Migration<Arriving, State>>,
}

watching!(Incoming, State);

impl Incoming {
    /// A migration into `memory`. Checks the parameters.
    pub fn new(memory: Arc<Memory>, vmm: Arc<dyn Vmm>, params: Params) -> Result<Self> {
        Ok(Incoming {
            shared: Migration::new(Arriving::new(memory), vmm, params)?,
        })
    }

    /// Binds to `endpoint`, starts and returns the endpoint that it listens on (with the port
    /// that was found, if 0 was asked for). Refuses as [`Incoming::start`] does.
    ///
    /// Several connections are looked at together, and the first one on which a source's whole
    /// HELLO comes is the migration's. Strangers neither end nor delay the waiting, which has no
    /// limit. The address is free again when a source has said HELLO: after a migration that failed,
    /// another `Incoming` of the same memory can listen there.
    pub fn listen(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        self.start_with(|| Ok(AcceptFrom::Listener(Arc::new(Listener::bind(endpoint)?))))?;
        self.endpoint()
    }

    /// The endpoint that this migration listens at, or has listened at, with the port that was
    /// found: what [`Incoming::listen`] returned. It stays the same when a source has said HELLO, when
    /// nobody listens there any more, and when the migration is over.
    ///
    /// # Errors
    /// [`Kind::State`] where it does not listen: it was not started, or over a connection.
    pub fn endpoint(&self) -> Result<Endpoint> {
        self.shared.guest.endpoint().clone().ok_or_else(|| {
            let why = match self.state() {
                State::Idle => "it was not started",
                _ => "its connection was handed in",
            };
            Error::new(
                Kind::State,
                format!("this migration listens nowhere: {why}"),
            )
        })
    }

    /// Starts it and returns. [`Kind::State`] where a guest runs in `memory`, or may be taken back
    /// there; [`Kind::Busy`] where another migration has to do with it. One that was handed over is
    /// overwritten.
    pub fn start(&self, from: AcceptFrom) -> Result<()> {
        self.start_with(|| Ok(from))
    }

    fn start_with(&self, from: impl FnOnce() -> Result<AcceptFrom>) -> Result<()> {
        let shared = &self.shared;
        let claim = || shared.guest.memory.ownership().arrive();
        shared.handle.start(claim, || {
            let from = from()?;
            let bound = match &from {
                AcceptFrom::Listener(listener) => Some(listener.local_endpoint().clone()),
                AcceptFrom::Connected(_) | AcceptFrom::ConnectedAll(_) => None,
            };
            let driver = Driver::new(Arc::clone(shared), from)?;
            // It announces itself in there, where a panic of the VMM's ends the migration.
            let thread = spawn(Role::Migration, |_| (), move || work::run(driver))?;
            *shared.guest.endpoint() = bound;
            Ok(thread)
        })
    }

    /// The figures of one of the source's channels as they are now; all zero before it has come.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a channel that the parameters do not allow.
    pub fn lane_stats(&self, channel: u32) -> Result<LaneStats> {
        let most = self.shared.params.incoming_channels;
        if channel >= most {
            let message = format!("expected a channel from 0 to {}, found {channel}", most - 1);
            return Err(Error::new(Kind::Invalid, message));
        }
        let figures = self.shared.guest.figures();
        let mut stats = figures.get(channel as usize).map(|figures| figures.stats());
        if let Some(stats) = stats.as_mut().filter(|_| self.shared.handle.is_over()) {
            stats.state = LaneState::Closed;
        }
        Ok(stats.unwrap_or_default())
    }

    /// Ends it before the guest is taken over; then it never runs here, which a successful return
    /// proves. Returns within a tenth
    /// of a second unless a callback of the VMM's is in progress. Inside a callback it only
    /// asks for that. After the hand-over was received: [`Kind::State`].
    pub fn cancel(&self) -> Result<()> {
        self.shared.handle.cancel("the guest has been taken over")
    }

    /// Waits until the guest runs here, or the migration has failed, or for `limit`:
    /// [`Kind::Pending`].
    pub fn wait(&self, limit: Option<Duration>) -> Result<()> {
        self.shared.handle.wait(limit)
    }
}

impl Drop for Incoming {
    /// Cancels what is going on and waits for it.
    fn drop(&mut self) {
        self.shared.handle.shut_down();
    }
}
