//! What brant asks of the VMM: the trait [`Vmm`]. An operation that only some VMMs need has a
//! default.
//!
//! A Rust VMM implements the trait directly; the C interface implements it over `brant_ops`. Each
//! method says which thread calls it and what it may do there. No method may wait for the migration
//! that calls it, nor free it.

pub(crate) mod callbacks;

use crate::error::{Error, Kind, Result};

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

fn has_no(what: &str) -> Error {
    Error::new(Kind::Vmm, format!("this VMM has no `{what}` operation"))
}

/// The operations of a VMM. brant calls them on the migration's own thread, one at a time, unless a
/// method says otherwise.
///
/// The safety of a migration rests on the exact sense of two words:
/// - *Paused* means: every vCPU is out of `KVM_RUN` and its pending I/O is retired. No thread
///   stands between a write to guest memory and its mark. No device writes guest memory.
/// - *Write first, then mark*: a mark made before its write can be collected before the write
///   lands.
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
    /// progress when this is called, and no tracker calls one until `resume` has succeeded.
    fn pause(&self) -> Result<()> {
        Err(has_no("pause"))
    }

    /// Source: let the guest run on after a migration that did not happen. Follows a call of
    /// `pause`, whether or not `pause` succeeded. Takes back what `release` let go.
    fn resume(&self) -> Result<()> {
        Err(has_no("resume"))
    }

    /// Source, guest paused: put all device and vCPU state into `sink`. May write guest memory.
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let _ = sink;
        Ok(())
    }

    /// Destination: take one blob. All of the guest's memory has arrived before. Called once for
    /// each blob, in the order of saving. On an error the destination refuses the switchover, and
    /// the guest runs on at the source.
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

    /// Source, guest running, before the connection is made: put into `sink` the configuration that
    /// the destination needs before it can build its machine.
    fn early_save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let _ = sink;
        Ok(())
    }

    /// Destination, before the memory layouts are compared: take one configuration blob.
    /// Blocks may be added to the memory map here.
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        Err(Error::new(
            Kind::Vmm,
            format!(
                "this VMM has no `early_load` operation and the source sent configuration `{}`",
                blob.name
            ),
        ))
    }

    /// Source, guest paused, destination ready: let go of what only one side may hold, such as disk
    /// locks. On an error the guest stays here, and `resume` follows.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// Destination: the guest is this side's now; let it run, without long work before. One second
    /// after the hand-over's time limit has passed, the source's VMM may assume that the guest runs
    /// here or never will. When this fails, the guest must be stopped.
    fn run(&self) -> Result<()> {
        Err(has_no("run"))
    }

    /// Switch dirty logging on for KVM memory slots, by the numbers that the VMM gave them. Called
    /// only when the VMM chose to switch logging itself, on any thread that starts a tracker or
    /// adds a slot.
    fn log_on(&self, slots: &[u32]) -> Result<()> {
        let _ = slots;
        Err(has_no("log_on"))
    }

    /// Switch dirty logging of these slots off again. Called on any thread that stops a tracker.
    fn log_off(&self, slots: &[u32]) -> Result<()> {
        let _ = slots;
        Err(has_no("log_off"))
    }

    /// Make every vCPU leave `KVM_RUN` once and go on. Return when each vCPU has left, or was
    /// outside already. A processor with page-modification logging passes the pages that it holds
    /// to a dirty ring only at such an exit. Called before a harvest of rings while the guest runs,
    /// on any thread that syncs. Must not wait for a thread that is inside a call of brant's,
    /// except a call that reports a full ring.
    ///
    /// A VMM may kick by pausing the guest and resuming it. For brant never calls this between
    /// `pause` and `resume`, after a hand-over, or on a side where a guest arrives or failed to
    /// arrive.
    fn kick(&self) -> Result<()> {
        Ok(())
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
