//! What brant asks of the VMM: one trait, with a default for everything that
//! not every VMM has.
//!
//! The C face implements it over its table of callbacks; a Rust VMM implements
//! it directly. Each method says which thread calls it and what it may do in it.
//! No method may wait for, or free, the migration that is calling it.

pub(crate) mod callbacks;

use crate::error::{Error, Kind, Result};

/// One named blob of device or vCPU state, or of configuration.
#[derive(Debug, Clone, Copy)]
pub struct StateBlob<'a> {
    /// What it is the state of; 1 to 128 bytes.
    pub name: &'a str,
    /// Which one of several of that name.
    pub instance: u32,
    /// Version of the format of `data`, the VMM's own numbering.
    pub version: u32,
    /// The bytes; brant does not look inside.
    pub data: &'a [u8],
}

/// Where a VMM puts its state while it saves.
pub trait StateSink {
    /// Appends one blob. The data is copied (or sent) before this returns.
    fn put(&mut self, blob: &StateBlob<'_>) -> Result<()>;
}

/// What a thread of brant's is for. The VMM hears it before the thread does anything.
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
    /// Something worth telling that is not an error: a clamped parameter, a log that
    /// failed and was taken as all dirty.
    Warning = 3,
    /// The migration is over and succeeded.
    Completed = 4,
    /// The migration is over and failed or was cancelled; on a source the guest runs on.
    Failed = 5,
    /// Handed over and never answered: the guest stays paused until the VMM resolves it.
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

/// The operations of a VMM. Unless said otherwise they are called on the migration's
/// own thread, one at a time.
///
/// Two words' exact sense, on which the safety of a migration rests:
/// - *Paused* means: every vCPU is out of `KVM_RUN` with pending I/O retired, no thread
///   stands between a write to guest memory and its mark, no device writes guest memory.
/// - *Write first, then mark*: a mark made before its write can be collected before the write lands.
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
    /// Source: stop the guest; returns when it is paused in the sense above. From before this
    /// call until `resume` has returned well no `kick` is called, whichever tracker wants one;
    /// those that had begun have ended.
    fn pause(&self) -> Result<()> {
        Err(has_no("pause"))
    }

    /// Source: let the guest run on after a migration that did not happen. Called after
    /// `pause` was called, whether or not that succeeded; takes back what `release` let go.
    fn resume(&self) -> Result<()> {
        Err(has_no("resume"))
    }

    /// Source, guest paused: put all device and vCPU state into `sink`. May write guest memory.
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let _ = sink;
        Ok(())
    }

    /// Destination: all of memory is here; take one blob. Called once for each, in the
    /// order of saving. An error refuses the switchover and the source runs on.
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        Err(Error::new(
            Kind::Vmm,
            format!(
                "this VMM has no `load` operation and the source sent state `{}`",
                blob.name
            ),
        ))
    }

    /// Destination: every blob was loaded. The last chance to refuse.
    fn loaded(&self) -> Result<()> {
        Ok(())
    }

    /// Source, guest running, before the connection is made: configuration that the
    /// destination needs in order to build itself.
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

    /// Source, guest paused, the destination is ready: let go of what only one may
    /// hold (disk locks). An error keeps the guest here; `resume` follows.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// Destination: the guest is yours, let it run. Start it without long work before: one second
    /// after the hand-over's limit has run out the source's VMM takes it that the guest runs here,
    /// or never will. Fail only with the guest stopped.
    fn run(&self) -> Result<()> {
        Err(has_no("run"))
    }

    /// Switch dirty logging on for KVM memory slots (numbers as the VMM gave them), where
    /// the VMM chose to do that itself. Any thread that starts a tracker or adds a slot.
    fn log_on(&self, slots: &[u32]) -> Result<()> {
        let _ = slots;
        Err(has_no("log_on"))
    }

    /// Switch it off again. Any thread that stops a tracker.
    fn log_off(&self, slots: &[u32]) -> Result<()> {
        let _ = slots;
        Err(has_no("log_off"))
    }

    /// Make every vCPU leave `KVM_RUN` once and go on; returns when each has, or was outside. A
    /// processor with page-modification logging hands what it holds to a dirty ring only then.
    /// Called before a harvest of rings while the guest runs, on any thread that syncs. Must not
    /// wait for a thread that is inside a call of brant's, except one that says that a ring is full.
    ///
    /// May be done by pausing the guest and resuming it: never called between `pause` and
    /// `resume`, after a hand-over, or where a guest arrives or should have arrived.
    fn kick(&self) -> Result<()> {
        Ok(())
    }

    /// Something happened. Any thread of brant's; must not block for long.
    fn event(&self, event: &Event) {
        let _ = event;
    }

    /// First thing on each new thread of brant's, on that thread: the place to set
    /// affinity or a seccomp filter. All signals are masked already.
    fn thread_start(&self, role: Role) {
        let _ = role;
    }
}
