//! The VMM's side of an incoming migration: start it, watch it, cancel it. The driver does the work
//! on a thread of its own.

mod accepting;
mod account;
mod agreed;
mod arriving;
mod asker;
mod authenticate;
mod blobs;
mod changed;
mod devices;
mod digests;
mod driver;
mod figures;
mod gather;
mod handed;
mod known_zero;
mod lane;
mod lane_account;
mod late;
mod negotiate;
mod placement;
mod postcopy;
mod prefault;
mod receiver;
mod recorded;
mod targets;
mod workers;

pub use accepting::AcceptFrom;

use crate::channel::{Endpoint, Listener};
use crate::error::{Error, Kind, Result};
use crate::memory::served::{Blocked, Theirs};
use crate::memory::{Block, Memory};
use crate::migrate::common::Migration;
use crate::migrate::params::Params;
use crate::migrate::record;
use crate::migrate::report::LaneStats;
use crate::migrate::steering::forecast::Forecast;
use crate::migrate::steering::stall::Cause;
use crate::migrate::switchover::destination::State;
use crate::migrate::watching::watching;
use crate::migrate::work;
use crate::runtime::thread::{spawn, Role};
use crate::sys::uffd::Faults;
use crate::units::Pages;
use crate::vmm::Vmm;
use accepting::Accepting;
use arriving::{Arriving, Decision};
use driver::answer::answer;
use driver::Driver;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// A migration of a guest into this process. An object serves one migration. Rules for threads are
/// those of [`crate::migrate::Outgoing`].
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
    /// Only a source has a link that it judges.
    fn standing(&self) -> Option<Cause> {
        None
    }

    /// Only a source knows what its guest writes.
    fn forecast(&self) -> Option<Forecast> {
        None
    }

    /// Makes a migration into `memory`, after a check of the parameters. Nothing starts yet.
    pub fn new(memory: Arc<Memory>, vmm: Arc<dyn Vmm>, params: Params) -> Result<Self> {
        Ok(Incoming {
            shared: Migration::new(Arriving::new(memory), vmm, params)?,
        })
    }

    /// Binds to `endpoint`, starts the migration, and returns the endpoint that it listens on. When
    /// `endpoint` has port 0, the returned endpoint has the port that was found. Fails in the same
    /// cases as [`Incoming::start`].
    ///
    /// Several connections are looked at together. The first one on which a source's whole HELLO
    /// comes is the migration's. Strangers neither end nor delay the waiting, which has no limit.
    /// When a source has said HELLO, the address is free again. So after a migration that failed,
    /// another `Incoming` of the same memory can listen there.
    pub fn listen(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        self.start_with(|| Ok(AcceptFrom::Listener(Arc::new(Listener::bind(endpoint)?))))?;
        self.endpoint()
    }

    /// The endpoint that this migration listens at, or has listened at, as [`Incoming::listen`]
    /// returned it. The endpoint stays the same when a source has said HELLO, when nobody listens
    /// there any more, and when the migration is over.
    ///
    /// # Errors
    /// [`Kind::State`] when this migration was not started, or was started with a connection.
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

    /// Starts the migration and returns. A guest in `memory` that was handed over is overwritten.
    /// Fails with [`Kind::State`] when a guest runs in `memory` or may be taken back there, and
    /// with [`Kind::Busy`] when another migration uses `memory`.
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
            // The thread calls the VMM's `thread_start` in `work::run`, where a panic of the VMM's
            // ends the migration.
            let thread = spawn(Role::Migration, |_| (), move || work::run(driver))?;
            *shared.guest.endpoint() = bound;
            Ok(thread)
        })
    }

    /// The figures of one of the source's channels at this moment. All are zero before the source
    /// has come.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a channel number that the parameters do not allow.
    pub fn lane_stats(&self, channel: u32) -> Result<LaneStats> {
        let most = self.shared.params.incoming_channels;
        if channel >= most {
            let message = format!("expected a channel from 0 to {}, found {channel}", most - 1);
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(self.shared.lane(channel))
    }

    /// Ends the migration before the guest is taken over. A successful return proves that the guest
    /// never runs here. Returns within a tenth of a second unless a callback of the VMM's is in
    /// progress; a callback of a device is asked to return
    /// ([`Device::cancel`](crate::vmm::device::Device::cancel)). Inside a callback, this function only
    /// asks for the cancel. After the hand-over was received, it fails with [`Kind::State`].
    pub fn cancel(&self) -> Result<()> {
        let wake = || self.shared.guest.cancel_devices();
        self.shared
            .handle
            .cancel("the guest has been taken over", wake)
    }

    /// The pages that have not arrived, of a guest that was handed over before all of its memory
    /// was here: calls `run` with the block and the pages, in ascending order of pages within a
    /// block. Calls nothing when no page is missing. Pages may arrive meanwhile.
    pub fn missing(&self, mut run: impl FnMut(&Block, Range<Pages>)) {
        let Some(served) = self.shared.guest.served() else {
            return;
        };
        for block in self.shared.guest.memory.map().blocks() {
            let mut at = Pages(0);
            while let Some(found) = served.next_absent(block, at..block.pages()) {
                at = found.end;
                run(block, found);
            }
        }
    }

    /// Gives up the pages that are missing, when the connections are lost ([`State::Interrupted`])
    /// and the source is known to be gone for good. The migration ends as [`State::Incomplete`]. The
    /// guest runs on. From then on, an access of a missing page raises SIGBUS (SIGSEGV before Linux
    /// 6.6), as memory that the hardware has lost does. `KVM_RUN` and other system calls return EFAULT.
    /// Threads that wait for such a page are woken that way. The pages count as declared lost
    /// ([`Memory::mark_poisoned`](crate::memory::Memory::mark_poisoned)). Returns when all of this is
    /// done. Inside a callback, this function only asks for it.
    ///
    /// # Errors
    /// [`Kind::State`] when the migration is not interrupted.
    pub fn give_up(&self) -> Result<()> {
        self.decide(Decision::GiveUp, "giving up")?;
        if !self.in_callback() {
            self.shared.guest.await_begun();
        }
        Ok(())
    }

    /// How long each thread has waited for pages that had not arrived, by its number in the kernel.
    /// The figures stay when all pages are here.
    pub fn blocked(&self) -> Vec<Blocked> {
        self.shared.guest.blocked()
    }

    /// Serves page faults of another process, such as a vhost-user back end, which shares memory of
    /// the guest and touches pages that have not arrived. `fd` is a userfaultfd of that process, which
    /// has called UFFDIO_API on it and registers its mappings for missing faults. `regions` says what
    /// is where in that process; each lies inside a block of shared memory.
    ///
    /// Call it before the switch to postcopy, so between the start of the migration and the return of
    /// `early_load`, to be sure. Old contents of missing pages are then punched out of the files of
    /// shared memory at the switch, so that the other process does not find them. Faults are served
    /// until this migration is dropped.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a region that is not inside a block of shared memory, or overlaps
    /// another one; [`Kind::State`] behind a switch at which no such userfaultfd was known.
    pub fn add_uffd(&self, fd: OwnedFd, regions: Vec<Theirs>) -> Result<()> {
        self.shared.guest.add_uffd(Faults::adopt(fd)?, regions)
    }

    /// Takes new connections of the source for the pages that are missing, when the connections of
    /// this migration were lost after the guest was handed over ([`State::Interrupted`]). Returns at
    /// once. The source recovers too (`Outgoing::recover`), and has as many connections as before, the
    /// urgent one included. All of them have to come within the connect timeout. This side then says
    /// which pages it lacks, and asks again for those that somebody waits for. When the recovery
    /// fails, the migration is interrupted again, and can be recovered again.
    ///
    /// The source may not know that the guest is whole here ([`State::Running`]): the last pages had
    /// come, and the word for it was lost with the connections. Then this call takes the source's
    /// connections, tells it that nothing is missing, and closes them. The state here stays. An event says
    /// what became of it ([`EventKind::Recovered`](crate::vmm::EventKind::Recovered), or a warning). That
    /// is possible as often as necessary, until this migration is dropped.
    ///
    /// # Errors
    /// [`Kind::State`] when the migration is not interrupted, nor whole after a switch to postcopy;
    /// [`Kind::Busy`] while a source is told that nothing is missing; those of [`Incoming::start`] about
    /// descriptors.
    pub fn recover(&self, from: AcceptFrom) -> Result<()> {
        let bound = match &from {
            AcceptFrom::Listener(listener) => Some(listener.local_endpoint().clone()),
            AcceptFrom::Connected(_) | AcceptFrom::ConnectedAll(_) => None,
        };
        let accepting = Accepting::new(from, &self.shared.params)?;
        if self.state() == State::Running {
            self.answer(accepting)?;
            *self.shared.guest.endpoint() = bound;
            return Ok(());
        }
        self.decide(Decision::Recover(accepting), "recovering")?;
        *self.shared.guest.endpoint() = bound;
        // Whoever looks at the state afterwards must not take it for that of a recovery that failed.
        if !self.in_callback() {
            self.shared.guest.await_begun();
        }
        Ok(())
    }

    /// Binds to `endpoint`, and recovers as [`Incoming::recover`]. Returns the endpoint that it listens
    /// on, as [`Incoming::listen`].
    ///
    /// # Errors
    /// Those of [`Incoming::recover`] and [`Incoming::listen`].
    pub fn recover_at(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        // Nothing is bound for a migration that is not interrupted.
        let whole = || self.state() == State::Running && self.shared.guest.late.is_whole();
        let state = self.state();
        if state != State::Interrupted && !whole() {
            return Err(Arriving::undecidable("recovering", state));
        }
        self.shared.guest.late.check_free()?;
        let listener = Arc::new(Listener::bind(endpoint)?);
        let bound = listener.local_endpoint().clone();
        self.recover(AcceptFrom::Listener(listener))?;
        Ok(bound)
    }

    /// Tells a source that recovers that nothing is missing.
    fn answer(&self, accepting: Accepting) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        // The state is shown a little before the session is kept.
        shared.handle.wait_over();
        self.shared.guest.late.begin(|whole, stop| {
            let body = move || answer(&shared, accepting, &whole, &stop);
            spawn(Role::Migration, |_| (), body)
        })
    }

    fn decide(&self, decision: Decision, what: &str) -> Result<()> {
        self.shared.guest.decide(decision, what, || self.state())
    }

    /// Waits until the guest runs here or the migration has failed. When `limit` passes first,
    /// returns [`Kind::Pending`].
    pub fn wait(&self, limit: Option<Duration>) -> Result<()> {
        self.shared.handle.wait(limit)
    }
}

impl Drop for Incoming {
    /// Cancels a migration that is in progress, and waits for its end.
    fn drop(&mut self) {
        self.shared.guest.is_dropped();
        let wake = || self.shared.guest.cancel_devices();
        self.shared.handle.shut_down(wake);
        self.shared.guest.late.end(self.in_callback());
        record::shut_down(&*self.shared);
    }
}
