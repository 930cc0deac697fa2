//! What brant asks of the VMM: the trait [`Vmm`]. An operation that only some VMMs need has a
//! default.
//!
//! A Rust VMM implements the trait directly; the C interface implements it over `brant_ops`. Each
//! method says which thread calls it and what it may do there.

pub(crate) mod callbacks;
pub mod device;
pub(crate) mod held;
pub mod states;
pub(crate) mod watch;

use crate::error::{Error, Kind, Result};
use std::os::fd::BorrowedFd;

/// One named blob of device or vCPU state, or of configuration.
#[derive(Debug, Clone, Copy)]
pub struct StateBlob<'a> {
    /// The name of the device, vCPU or configuration: 1 to 128 bytes.
    pub name: &'a str,
    /// Tells blobs of one name apart.
    pub instance: u32,
    /// Version of the format of `data`, by the VMM's own numbering.
    pub version: u32,
    /// The contents. brant does not look inside.
    pub data: &'a [u8],
}

/// Where a VMM puts its state while it saves.
pub trait StateSink {
    /// Appends one blob. Its data has been copied or sent when this call returns.
    fn put(&mut self, blob: &StateBlob<'_>) -> Result<()>;
}

/// What a thread of brant's is for. brant tells the VMM before the thread does anything.
#[doc(inline)]
pub use crate::runtime::thread::Role;
pub use states::States;

/// What an [`Event`] is about. The numbers are part of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum EventKind {
    /// The migration entered another state; the message names it.
    State = 1,
    /// A pass over memory ended and a sync followed.
    Pass = 2,
    /// Something that does not fail the migration but should be known: a clamped parameter, or a
    /// log that failed, so that all its pages count as dirty.
    Warning = 3,
    /// The migration is over and succeeded.
    Completed = 4,
    /// The migration is over: it failed or was cancelled. At a source the guest runs on.
    Failed = 5,
    /// The source handed the guest over, and no answer came. The guest stays paused until the VMM
    /// resolves the migration.
    Unanswered = 6,
    /// Source: pages at the destination differ from those here
    /// ([`Params::verify`](crate::migrate::Params::verify)). The message names the block, the first
    /// such page and their number. The guest runs at the destination.
    Mismatch = 7,
    /// Source: about the time in which the guest stands still. The message says which: a pause was
    /// aborted, after how long and why; the downtime was longer than the limit, and which parts took
    /// longer than promised; the limit rises; or the guest is paused however long that takes.
    Downtime = 8,
    /// Source: the migration makes no progress: passes do not leave less, or nothing moves in the middle
    /// of a pass. The message says for how long and why. With
    /// [`Params::zero_copy`](crate::migrate::Params::zero_copy), do not remove a block inside this event:
    /// the removal would wait for the link.
    Stalled = 9,
    /// Source: the guest is slowed by another percentage than before, or not any more.
    Throttle = 10,
    /// Postcopy: the connections were lost after the guest was handed over, and pages of its memory are
    /// not at the destination. Both sides keep what they have until their VMMs recover or resolve the
    /// migration. The message says why, and how many pages are missing. Also at the end of a recovery
    /// that failed; the message says so.
    Interrupted = 11,
    /// Postcopy: a migration that was interrupted goes on over new connections. The message says how many
    /// pages are missing.
    Recovered = 12,
}

impl EventKind {
    /// The kind in one word, for logs.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::State => "state",
            EventKind::Pass => "pass",
            EventKind::Warning => "warning",
            EventKind::Completed => "completed",
            EventKind::Failed => "failed",
            EventKind::Unanswered => "unanswered",
            EventKind::Mismatch => "mismatch",
            EventKind::Downtime => "downtime",
            EventKind::Stalled => "stalled",
            EventKind::Throttle => "throttle",
            EventKind::Interrupted => "interrupted",
            EventKind::Recovered => "recovered",
        }
    }
}

/// Something that happened, told through [`Vmm::event`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Event {
    /// What it is about.
    pub kind: EventKind,
    /// One sentence.
    pub message: String,
}

/// Where a VMM has mapped the file of a block that another process hands over ([`Vmm::map_block`]).
#[derive(Debug)]
pub struct MappedBlock(*mut u8);

impl MappedBlock {
    /// Memory that the VMM has mapped at `start`.
    ///
    /// # Safety
    /// From `start` on, as many bytes as [`Vmm::map_block`] was asked for are mapped, shared
    /// (`MAP_SHARED`), from the file and the offset that it was given. They stay mapped, and are
    /// accessed, as [`HostMemory::new`](crate::memory::HostMemory::new) demands.
    pub const unsafe fn new(start: *mut u8) -> Self {
        MappedBlock(start)
    }

    /// The address.
    pub fn start(&self) -> *mut u8 {
        self.0
    }
}

fn has_no(what: &str) -> Error {
    Error::new(Kind::Vmm, format!("this VMM has no `{what}` operation"))
}

/// The operations of a VMM. A migration calls them one at a time on its own thread, unless a method
/// says otherwise. A [save](crate::snapshot::Save) calls the operations of a source, a
/// [restore](crate::snapshot::Restore) those of a destination, each on a thread of its own.
///
/// **Memory.** A guest's memory depends on two contracts:
/// - *Paused* means: every vCPU is out of `KVM_RUN` and its pending I/O is retired. No thread
///   stands between a write to guest memory and its mark. No device writes guest memory. To retire
///   I/O after an I/O or MMIO exit, set `immediate_exit` and enter `KVM_RUN` again until it fails
///   with `EINTR`: one retirement can be followed by another exit. A `KVM_RUN` that fails with
///   `EINTR` leaves the `exit_reason` of the exit before.
/// - *Write first, then mark*: a mark made before its write can be collected before the write
///   lands. Then the write is lost.
///
/// **Signals.** All signals are masked on brant's thread, except in the operations that may make
/// threads. `early_load`, `load`, `loaded`, `run` and `resume` have the signal mask of the thread
/// that started the migration. So a vCPU thread that is made in one of them can be kicked by a
/// signal, and a signal handler of the VMM's may run on brant's thread meanwhile. A thread that is
/// made in any other operation inherits a mask of all signals and has to clear it first.
///
/// **Stacks.** The thread of a migration, a save or a restore has a stack of 8 MiB. Every other
/// thread of brant's has 2 MiB.
///
/// **Locks.** `cancel`, `wait` and the drop of a migration, a save or a restore wait for its
/// thread, which may be inside an operation. So do not call them while you hold a lock that an
/// operation takes. Inside an operation, `wait` on the object that called it is [`Kind::Callback`],
/// and `cancel` only asks. Every other call is allowed. `log_on`, `log_off` and `kick` are called
/// under brant's own locks: inside them call nothing of brant's but marks, and take no lock that
/// another thread holds around a call on the [`Memory`](crate::memory::Memory) or a tracker.
///
/// **vCPUs that end.** A vCPU thread that ends while the guest migrates, because the guest has shut
/// down, counts as paused in `pause` and as outside of `KVM_RUN` in `kick`. Keep its descriptor
/// open until the migration is over. Unless the guest is to start again at the destination, cancel
/// the migration.
///
/// **A panic** in an operation that a migration, a save or a restore calls is caught and counts as
/// its failure. A panic in `event` is dropped.
///
/// ```
/// use brant::error::{Error, Kind};
/// use brant::vmm::{StateBlob, StateSink, Vmm};
/// use brant::Result;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::sync::Mutex;
///
/// /// A machine with one device, whose state is a few bytes.
/// #[derive(Default)]
/// struct Machine {
///     runs: AtomicBool,
///     uart: Mutex<Vec<u8>>,
/// }
///
/// impl Vmm for Machine {
///     fn pause(&self) -> Result<()> {
///         self.runs.store(false, Ordering::SeqCst); // and wait until each vCPU has seen it
///         Ok(())
///     }
///     fn resume(&self) -> Result<()> {
///         self.run()
///     }
///     fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
///         let data = &self.uart.lock().unwrap();
///         sink.put(&StateBlob { name: "uart", instance: 0, version: 1, data })
///     }
///     fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
///         if (blob.name, blob.version) != ("uart", 1) {
///             let what = format!("no `{}` of version {} here", blob.name, blob.version);
///             return Err(Error::new(Kind::Unsupported, what));
///         }
///         *self.uart.lock().unwrap() = blob.data.to_vec();
///         Ok(())
///     }
///     fn run(&self) -> Result<()> {
///         self.runs.store(true, Ordering::SeqCst);
///         Ok(())
///     }
/// }
///
/// /// What a migration does between the two sides.
/// struct Wire<'a>(&'a Machine);
///
/// impl StateSink for Wire<'_> {
///     fn put(&mut self, blob: &StateBlob<'_>) -> Result<()> {
///         self.0.load(blob)
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let (here, there) = (Machine::default(), Machine::default());
/// *here.uart.lock().unwrap() = vec![1, 2, 3];
/// here.pause()?;
/// here.save(&mut Wire(&there))?;
/// there.run()?;
/// assert_eq!(*there.uart.lock().unwrap(), [1, 2, 3]);
/// # Ok(())
/// # }
/// ```
pub trait Vmm: Send + Sync {
    /// Source: stop the guest, and return when it is paused in the sense above. No `kick` is in
    /// progress when this is called, and no tracker calls one until `resume` has succeeded. For a
    /// guest that its user has paused already, return `Ok`, and remember for `resume` that the user
    /// wants it paused.
    fn pause(&self) -> Result<()> {
        Err(has_no("pause"))
    }

    /// Source: let the guest run on after a migration that did not happen, after an aborted pause
    /// ([`Params::downtime_slack`](crate::migrate::Params::downtime_slack)), or after the last page
    /// of a save was written. Follows a call of `pause`, whether or not `pause` succeeded. Takes
    /// back what `release` let go. brant does not know whether the guest stood still before
    /// `pause`: leave a guest paused that its user has paused, before the migration or since, and
    /// return `Ok`. [`resolve`](crate::migrate::Outgoing::resolve) calls this on its caller's
    /// thread. On an error the guest counts as standing still here
    /// ([`Stands`](crate::memory::Whose::Stands)).
    fn resume(&self) -> Result<()> {
        Err(has_no("resume"))
    }

    /// Source, guest paused: put all device and vCPU state into `sink`. May write guest memory: the
    /// last sync comes after this call. An aborted pause resumes the guest after this call too, and
    /// the next pause calls it again. So it must leave every device able to run on.
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let _ = sink;
        Ok(())
    }

    /// Destination: take one blob. All of the guest's memory has arrived before. Called once for
    /// each blob, in the order of saving. May write guest memory, except blocks that came by
    /// descriptor ([`Vmm::map_block`]): no page arrives after this call.
    /// When a tracker of this guest is started here (a backup's, from before the guest went away),
    /// mark the writes. On an error the destination refuses the switchover, and the guest runs on
    /// at the source.
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        Err(Error::new(
            Kind::Vmm,
            format!(
                "this VMM has no `load` operation and the source sent state `{}`",
                blob.name
            ),
        ))
    }

    /// Destination: every blob has been loaded. An error here is the last chance to refuse the
    /// guest.
    fn loaded(&self) -> Result<()> {
        Ok(())
    }

    /// Source, guest running, before the connection is made or the image's file: put into `sink`
    /// the configuration that the destination needs before it can build its machine.
    fn early_save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let _ = sink;
        Ok(())
    }

    /// Destination, before the memory layouts are compared: take one configuration blob. Blocks and
    /// slots may be added here.
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        Err(Error::new(
            Kind::Vmm,
            format!(
                "this VMM has no `early_load` operation and the source sent configuration `{}`",
                blob.name
            ),
        ))
    }

    /// Destination, after `early_load` and before the memory layouts are compared: map `length` bytes of
    /// `file` from `offset` on, shared (`MAP_SHARED`), and return where. Called once for each block
    /// that comes by descriptor from a source on the same host
    /// ([`Params::hand_over`](crate::migrate::Params::hand_over)). `file` is brant's: duplicate it to
    /// keep it. After the call the block is in the guest's map, without a slot; find its number by
    /// its name. A block of that name that the VMM has added before is replaced by the new one: map
    /// the file over its memory (`MAP_FIXED`) and return the same address. Its slots stay, and it has
    /// a new number.
    ///
    /// **Nothing writes this memory before `run`**: not this call, not `load`, not `loaded`, no
    /// device. It is the memory of the guest that runs at the source, and the source keeps the guest
    /// when the migration fails. What must write waits for `run`. Two things write although they do
    /// not look like it: KVM writes the guest's clock page when `MSR_KVM_WALL_CLOCK` is set, and a
    /// mapping with `MAP_POPULATE` of a sparse file fills it with zeros, which costs the source memory.
    fn map_block(
        &self,
        name: &str,
        file: BorrowedFd<'_>,
        length: u64,
        offset: u64,
    ) -> Result<MappedBlock> {
        let _ = (name, file, length, offset);
        Err(has_no("map_block"))
    }

    /// Whether this VMM has `map_block`. Otherwise a source copies all blocks, or is refused.
    fn can_map_blocks(&self) -> bool {
        false
    }

    /// Source, guest paused, destination ready: let go of what only one side may hold, such as disk
    /// locks. The hand-over comes next, or `resume`. On an error the guest stays here, and `resume`
    /// follows. A save calls no `release`.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// Destination: the guest is this side's now; let it run, without long work before. A guest
    /// that its user had paused at the source may stay paused, if the source's `save` said so. One
    /// second after the hand-over's time limit has passed, the source's VMM may assume that this
    /// was called here or never will be. When this fails, the guest must be stopped.
    fn run(&self) -> Result<()> {
        Err(has_no("run"))
    }

    /// Switch dirty logging on for KVM memory slots, by the numbers that the VMM gave them. Called
    /// only when the VMM chose to switch logging itself, on any thread that starts a tracker or
    /// adds a slot, under brant's own locks: see above.
    fn log_on(&self, slots: &[u32]) -> Result<()> {
        let _ = slots;
        Err(has_no("log_on"))
    }

    /// Switch dirty logging of these slots off again. Called on any thread that stops a tracker or
    /// removes a slot, under brant's own locks: see above.
    fn log_off(&self, slots: &[u32]) -> Result<()> {
        let _ = slots;
        Err(has_no("log_off"))
    }

    /// Make every vCPU leave `KVM_RUN` once and go on. Return when each vCPU has left, or was
    /// outside already. A processor with page-modification logging passes the pages that it holds
    /// to a dirty ring only at such an exit. Called before a harvest of rings while the guest runs,
    /// on any thread that syncs, under brant's own locks: see above. Must not wait for a thread
    /// that is inside a call of brant's, except a call that reports a full ring, and marks.
    ///
    /// A VMM may kick by pausing the guest and resuming it, because brant never calls this between
    /// `pause` and `resume`, after a hand-over, or on a side where a guest arrives or failed to
    /// arrive. A guest that its user has paused must stay paused after a kick.
    fn kick(&self) -> Result<()> {
        Ok(())
    }

    /// Source, guest running: slow a vCPU, or all of them when `vcpu` is `None`. The vCPU sleeps for
    /// `percent` of its time, 0 to 99, in slices of a few milliseconds. The percentage replaces the
    /// one before; a call for all vCPUs replaces those of each. 0 lets the vCPU run freely. Must
    /// not wait for a vCPU.
    ///
    /// Called when the policy slows the guest ([`Params::policy`](crate::migrate::Params::policy)).
    /// Whenever a guest was slowed, 0 for all follows before `pause`, and at every end of the
    /// migration. `pause` must end the sleep of a vCPU all the same, because 0 may come in the
    /// middle of one. When this fails, an event says so, and the migration goes on without slowing
    /// the guest.
    fn throttle(&self, vcpu: Option<u32>, percent: u8) -> Result<()> {
        let _ = (vcpu, percent);
        Err(has_no("throttle"))
    }

    /// Whether this VMM has `throttle`. A policy that slows the guest by it is refused otherwise.
    fn can_throttle(&self) -> bool {
        false
    }

    /// Hears of an [`Event`]. Called on any thread of brant's; must not block for long.
    fn event(&self, event: &Event) {
        let _ = event;
    }

    /// Called first on each new thread of brant's, on that thread: the place to set affinity or a
    /// seccomp filter. All signals are masked already.
    fn thread_start(&self, role: Role) {
        let _ = role;
    }
}
