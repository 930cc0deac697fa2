//! A gate for the threads of a VMM: a pause shuts it, and then vCPUs and devices stand still. It
//! carries out `pause`, `resume`, `run` and `kick` of [`Vmm`](crate::vmm::Vmm), and the VMM's own
//! pauses. It saves no state and knows no migration.
//!
//! A vCPU thread has a [`Vcpu`] and enters the guest through it. A thread that writes guest memory
//! otherwise (a device, a back end, a loader) has a [`Device`], and comes in before it writes and goes
//! out after its mark. The gate is the VMM's: brant starts no thread for it.
//!
//! The signal is the VMM's too. A gate sends one signal to threads that are in `KVM_RUN`, and needs a
//! handler for it that does nothing. It installs one only when it is told to ([`Config::install_handler`]).
//!
//! A device, and who holds the guest:
//!
//! ```
//! # fn main() -> brant::Result<()> {
//! use brant::gate::{Config, Device, Gate, Holder, Holds, Inside};
//! use std::time::Duration;
//!
//! let gate = Gate::new(Config { install_handler: true, ..Config::default() })?;
//! let disk: Device = gate.add_device("disk")?;
//! gate.start()?;
//! let inside: Inside<'_> = disk.enter(None)?;
//! // A request writes guest memory, and marks it.
//! drop(inside);
//! gate.pause(Duration::from_secs(1))?;
//! let holds: Holds = gate.holds();
//! assert!(holds.by(Holder::User) && !holds.is_open());
//! # Ok(())
//! # }
//! ```
//!
//! A vCPU:
//!
//! ```no_run
//! # fn main() -> brant::Result<()> {
//! # let vcpu_fd: std::os::fd::BorrowedFd<'static> = todo();
//! # fn todo() -> std::os::fd::BorrowedFd<'static> { loop {} }
//! # fn handle_exit() -> bool { true }
//! use brant::gate::{Config, Gate, Vcpu};
//! use std::time::Duration;
//!
//! let gate = Gate::new(Config { install_handler: true, ..Config::default() })?;
//! let at = gate.clone();
//! let thread = std::thread::spawn(move || -> brant::Result<()> {
//!     let vcpu: Vcpu = at.add_vcpu(0, Some(vcpu_fd))?;
//!     loop {
//!         vcpu.run()?; // waits here while the guest is paused
//!         if !handle_exit() {
//!             return Ok(());
//!         }
//!     }
//! });
//! gate.start()?;
//! gate.pause(Duration::from_secs(1))?; // the vCPU is out of KVM_RUN, with nothing pending
//! gate.resume()?;
//! gate.shut_down();
//! # Ok(())
//! # }
//! ```

mod device;
mod holds;
mod protocol;
mod vcpu;

pub use device::{Device, Inside};
pub use holds::{Holder, Holds};
pub use vcpu::Vcpu;

use crate::error::{Error, Kind, Result};
use crate::sys::signal::{self, Disposition};
use protocol::Protocol;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The longest name of a device, in bytes.
pub const DEVICE_NAME_MAX: usize = 128;
/// How long the operations wait when the configuration does not say it.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(5);

/// How a gate is made.
#[derive(Debug, Clone)]
pub struct Config {
    /// The signal that takes a thread out of `KVM_RUN`. The VMM uses it for nothing else on these
    /// threads, or has a handler that can stand further calls.
    pub signal: i32,
    /// Installs a handler that does nothing, if the signal has its default action. A handler of the
    /// VMM's is left alone. The handler stays when the gate is gone.
    pub install_handler: bool,
    /// How long the operations `pause` and `kick` wait for threads.
    pub wait: Duration,
}

impl Default for Config {
    /// The signal `SIGRTMIN + 4`, no handler, [`WAIT_DEFAULT`].
    fn default() -> Self {
        Config {
            signal: signal::default_for_kicks(),
            install_handler: false,
            wait: WAIT_DEFAULT,
        }
    }
}

/// Says whether the guest may run here: an error of [`Kind::State`] when it is elsewhere.
type Owner = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// See the module's description.
pub struct Gate {
    protocol: Arc<Protocol>,
    signal: i32,
    wait: Duration,
    owner: OnceLock<Owner>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("holds", &self.holds())
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate that is shut, because the guest has not started.
    ///
    /// # Errors
    /// `Invalid` for a signal that cannot be used. `Unsupported` when a handler is asked for, and the
    /// signal is ignored.
    pub fn new(config: Config) -> Result<Arc<Gate>> {
        signal::check(config.signal)?;
        let gate = Gate {
            protocol: Arc::new(Protocol::new()),
            signal: config.signal,
            wait: config.wait,
            owner: OnceLock::new(),
        };
        if config.install_handler && signal::disposition(gate.signal)? == Disposition::Default {
            signal::install_nothing(gate.signal)?;
        }
        if config.install_handler {
            gate.check_signal()?;
        }
        Ok(Arc::new(gate))
    }

    /// A signal without a handler would end the process, or would not take a thread out.
    fn check_signal(&self) -> Result<()> {
        let found = match signal::disposition(self.signal)? {
            Disposition::Handler => return Ok(()),
            Disposition::Default => "it has its default action, which would end the process",
            Disposition::Ignored => "it is ignored, and would take no thread out of KVM_RUN",
        };
        Err(Error::new(
            Kind::State,
            format!(
                "the gate's signal {} needs a handler, and {found}: install one that does nothing, or \
                 let the gate do it when it is made",
                self.signal
            ),
        ))
    }

    /// Says how the gate finds out whether the guest may run here: as a rule by
    /// [`Memory::runs_here`](crate::memory::Memory::runs_here). Without it the gate believes its caller.
    /// Only the first call counts, and returns `true`.
    pub fn set_owner(&self, owner: impl Fn() -> Result<()> + Send + Sync + 'static) -> bool {
        self.owner.set(Box::new(owner)).is_ok()
    }

    fn may_run(&self) -> Result<()> {
        self.owner.get().map_or(Ok(()), |owner| owner())
    }

    /// A vCPU, to be called on its own thread. The signal is unblocked on this thread. With a
    /// descriptor, [`Vcpu::run`] enters the guest; without one, the VMM does that between
    /// [`Vcpu::enter`] and [`Vcpu::left`], and the vCPU is something else than KVM's.
    ///
    /// # Errors
    /// `Exists` when the number is in use, `State` when the signal has no handler, `Invalid` for a
    /// descriptor of no vCPU, `Cancelled` when the guest has shut down.
    pub fn add_vcpu(&self, number: u32, fd: Option<BorrowedFd<'_>>) -> Result<Vcpu> {
        self.check_signal()?;
        Vcpu::new(&self.protocol, number, fd, self.signal)
    }

    /// A device, or any other thread that writes guest memory.
    ///
    /// # Errors
    /// `Exists` when the name is in use, `Invalid` when it is none, `Cancelled` when the guest has shut
    /// down.
    pub fn add_device(&self, name: &str) -> Result<Device> {
        if !(1..=DEVICE_NAME_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "a device's name has 1 to {DEVICE_NAME_MAX} bytes and no control characters; \
                     found `{}`",
                    name.escape_debug()
                ),
            ));
        }
        Device::new(&self.protocol, name)
    }

    /// Who holds the guest still.
    pub fn holds(&self) -> Holds {
        self.protocol.holds()
    }

    /// Refuses a wait that would wait for its own thread.
    fn check_caller(&self) -> Result<()> {
        vcpu::check_other_thread(&self.protocol)?;
        device::check_outside(&self.protocol)
    }

    // ---- the VMM's own calls ----

    /// The guest runs here from now on: it was started, or a guest that was handed over has been
    /// reclaimed. A pause of the user's stays.
    ///
    /// # Errors
    /// `State` or `Busy` when the guest may not run here, or not now; `Cancelled` when it has shut down.
    pub fn start(&self) -> Result<()> {
        let seen = self.protocol.migrations();
        self.may_run()?;
        // Without an owner nobody knows whether a migration is over.
        self.protocol.start(Some(seen))
    }

    /// Pauses the guest for a user of the VMM's. Returns when it stands still. Each pause that succeeds is taken
    /// back by one [`Gate::resume`]: of two users, each has its own, and the guest runs when both have
    /// taken theirs back.
    ///
    /// # Errors
    /// After an error there is nothing to take back. `Timeout` with the names of those who did not come in time:
    /// the guest runs on, as if nothing had been asked. `Callback` on a thread of this gate that would have to stand still for it. `Cancelled`
    /// when the guest has shut down, `State` when a resume has taken this pause back meanwhile.
    pub fn pause(&self, wait: Duration) -> Result<()> {
        self.check_caller()?;
        self.check_signal_if_used()?;
        self.protocol.hold(Holder::User, wait)
    }

    /// Takes one user's pause back. The guest stays paused while another user, a migration or a save needs it
    /// so. Fine when no user has paused it.
    ///
    /// # Errors
    /// `State` when the guest was handed over, or may not run here for another reason: the pause is taken
    /// back, and the guest stays paused. `Cancelled` when it has shut down.
    pub fn resume(&self) -> Result<()> {
        // A guest that has not started here cannot run by this.
        if !self.holds().by(Holder::Start) {
            match self.may_run() {
                // A migration will resume the guest, or has it.
                Err(e) if e.kind() == Kind::Busy => {}
                Err(e) => {
                    // The pause is over all the same, or the guest would stand when it comes back. What
                    // the migration holds keeps it from running here.
                    if self.holds().by(Holder::Migration) {
                        self.protocol.lift(Holder::User)?;
                    }
                    return Err(e);
                }
                Ok(()) => {}
            }
        }
        self.protocol.lift(Holder::User)
    }

    /// The guest has shut down. Every thread of this gate is told so, a pause that waits ends with an
    /// error, and the gate stays shut. Waits for nothing; any thread.
    pub fn shut_down(&self) {
        // Without a handler the signal would end the process. Then vCPUs leave at their next exit.
        self.protocol.shut_down();
    }

    /// Makes a vCPU's thread come by the VMM's code soon: [`Vcpu::run`] returns, [`Vcpu::idle`] ends.
    /// Waits for nothing; any thread.
    ///
    /// # Errors
    /// `NotFound` when there is no vCPU of that number.
    pub fn kick_vcpu(&self, number: u32) -> Result<()> {
        self.protocol.check_vcpu(number)?;
        self.check_signal()?;
        self.protocol.kick_one(number)
    }

    fn check_signal_if_used(&self) -> Result<()> {
        match self.protocol.has_vcpus() {
            true => self.check_signal(),
            false => Ok(()),
        }
    }

    // ---- the operations ----

    /// Carries out [`Vmm::pause`](crate::vmm::Vmm::pause): vCPUs first, then devices.
    ///
    /// # Errors
    /// As [`Gate::pause`].
    pub fn on_pause(&self) -> Result<()> {
        self.check_caller()?;
        self.check_signal_if_used()?;
        self.protocol.hold(Holder::Migration, self.wait)
    }

    /// Carries out [`Vmm::resume`](crate::vmm::Vmm::resume). A guest that its user has paused stays so.
    pub fn on_resume(&self) {
        // A guest that has shut down has nothing to resume.
        let _ = self.protocol.lift(Holder::Migration);
    }

    /// Carries out [`Vmm::run`](crate::vmm::Vmm::run): the guest has arrived. A guest that its user has
    /// paused here stays so.
    ///
    /// # Errors
    /// `Cancelled` when the VMM has shut this guest down.
    pub fn on_run(&self) -> Result<()> {
        self.protocol.start(None)
    }

    /// Carries out [`Vmm::kick`](crate::vmm::Vmm::kick).
    ///
    /// # Errors
    /// `Timeout` with the numbers of vCPUs that did not leave `KVM_RUN`.
    pub fn on_kick(&self) -> Result<()> {
        self.check_signal_if_used()?;
        self.protocol.kick_all(self.wait)
    }
}
