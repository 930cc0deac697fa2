//! [`Save`] writes a guest to a file.

use super::chain::{Chain, Linked};
use super::report::{SaveInstant, SaveParams, State, Stats};
use super::saving::{Saving, Shared};
use super::task::{image_path, Ending, Task};
use super::watching::watching;
use crate::channel::Pacer;
use crate::dirty::tracker::Tracker;
use crate::error::{Error, Result};
use crate::memory::blockers::Blockers;
use crate::memory::ownership::Stage;
use crate::runtime::catch;
use crate::vmm::callbacks::Callbacks;
use crate::vmm::held::Held;
use crate::vmm::{EventKind, Vmm};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A save of a guest to a file. One object, one save.
///
/// The file gets its name when it is whole and on its device. Until then a file that had the name
/// stays as it is. A save that fails or is cancelled leaves no new file, and the guest runs on.
///
/// All methods may be called from any thread. Inside an operation that this save called,
/// [`Save::wait`] is an error and [`Save::cancel`] does not wait.
///
/// ```
/// use brant::dirty::tracker::{Clearing, Tracker};
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::migrate::Blockers;
/// use brant::snapshot::{Restore, RestoreParams, Save, SaveParams};
/// use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// use brant::vmm::Vmm;
/// use std::sync::Arc;
///
/// /// Stops and starts vCPUs, saves and loads their state. This one has none.
/// struct Nothing;
/// impl Vmm for Nothing {
///     fn pause(&self) -> brant::Result<()> { Ok(()) }
///     fn resume(&self) -> brant::Result<()> { Ok(()) }
///     fn run(&self) -> brant::Result<()> { Ok(()) }
/// }
///
/// # fn main() -> brant::Result<()> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("guest.image");
/// let ram = || GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
/// let guest = |ram: &GuestMemoryMmap| -> brant::Result<Arc<Memory>> {
///     let memory = Arc::new(Memory::new()?);
///     memory.add_guest_memory(ram, NO_SLOT)?;
///     Ok(memory)
/// };
/// let here = ram()?;
/// here.write_obj(42u8, GuestAddress(4096))?;
/// let tracker = Tracker::new(guest(&here)?, Clearing::default())?;
/// let save = Save::new(tracker, Blockers::new(), Arc::new(Nothing), SaveParams::default())?;
/// save.start(&path)?;
/// save.wait(None)?;
///
/// // Later, or at another host.
/// let there = ram()?;
/// let restore = Restore::new(guest(&there)?, Arc::new(Nothing), RestoreParams::default())?;
/// restore.start(&path)?;
/// restore.wait(None)?;
/// assert_eq!(there.read_obj::<u8>(GuestAddress(4096))?, 42);
/// # Ok(())
/// # }
/// ```
pub struct Save {
    shared: Arc<Shared>,
}

impl Save {
    /// A save of the guest that `tracker` tracks. Checks the parameters.
    ///
    /// # Errors
    /// [`crate::Kind::Invalid`] for a parameter outside of its range.
    pub fn new(
        tracker: Arc<Tracker>,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: SaveParams,
    ) -> Result<Save> {
        Save::made(tracker, None, blockers, vmm, params)
    }

    /// A save that makes the next image of `chain`: a full one at first, and then what changed since
    /// the one before. Until it is over, another save of the chain does not begin
    /// ([`crate::Kind::Busy`]). When it fails, nothing is lost: the next image holds what changed
    /// since the last whole one.
    ///
    /// [`Save::wait`] also fails when the image before is not beside the new one or is another file
    /// ([`crate::Kind::NotFound`], [`crate::Kind::Image`]), for a path of an image of the chain
    /// ([`crate::Kind::Invalid`]), and when nobody knows what changed, because a restore or a
    /// migration has filled the guest's memory since ([`crate::Kind::State`]).
    ///
    /// # Errors
    /// [`crate::Kind::Invalid`] for a parameter outside of its range.
    pub fn in_chain(
        chain: &Chain,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: SaveParams,
    ) -> Result<Save> {
        let tracker = Arc::clone(chain.tracker());
        Save::made(tracker, Some(chain.linked()), blockers, vmm, params)
    }

    fn made(
        tracker: Arc<Tracker>,
        chain: Option<Arc<Linked>>,
        blockers: Blockers,
        vmm: Arc<dyn Vmm>,
        params: SaveParams,
    ) -> Result<Save> {
        params.check()?;
        Ok(Save {
            shared: Arc::new(Shared {
                tracker,
                chain,
                blockers,
                vmm,
                params,
                pacer: Arc::new(Pacer::new(params.max_bandwidth)),
                task: Task::new("save")?,
                devices: Held::default(),
            }),
        })
    }

    /// Starts the save and returns. [`Save::wait`], the last event and the figures tell how it
    /// ends. The image gets the name `path`, where nothing exists yet, or a regular file that is
    /// replaced. The file system needs room for the image beside that file.
    ///
    /// # Errors
    /// [`crate::Kind::Busy`] while a migration, another save or a restore of the same guest is
    /// going on. [`crate::Kind::State`] when the guest is not here, or this save was started
    /// before. [`crate::Kind::Blocked`]. [`crate::Kind::Invalid`] for an empty path. All that is
    /// found out about the file itself is an error of [`Save::wait`]: [`crate::Kind::NotFound`] for
    /// a directory that does not exist, [`crate::Kind::Invalid`] for a path of something else than a
    /// file.
    pub fn start(&self, path: impl AsRef<Path>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let path = image_path(path.as_ref())?;
        let claim = || {
            shared.blockers.check()?;
            shared.tracker.memory().guest_ran();
            shared.tracker.memory().ownership().save()
        };
        let ours = Arc::clone(&self.shared);
        self.shared.task.start(claim, move |claim| {
            let task_owner = ours.task.owner();
            let vmm = Callbacks::new(Arc::clone(&ours.vmm), task_owner);
            let saving = Saving {
                stats: Stats {
                    state: State::Preparing,
                    ..Stats::default()
                },
                shared: ours,
                vmm,
                claim,
                path,
                begun: Instant::now(),
                renewed: Instant::now(),
                paused_at: None,
                runs_again: false,
            };
            saving.run();
        })
    }

    /// Cancels the save, and returns when the guest runs on and the file is gone. That takes a
    /// tenth of a second at most, unless an operation of the VMM's or a kernel call is in progress.
    /// A call of a device in progress is asked to return
    /// ([`Device::cancel`](crate::vmm::device::Device::cancel)). Inside an operation the call does not
    /// wait. A save that has ended by itself is left alone.
    pub fn cancel(&self) {
        self.shared.task.cancel(|| self.cancel_devices());
    }

    fn cancel_devices(&self) {
        let shared = &self.shared;
        let vmm = Callbacks::new(Arc::clone(&shared.vmm), shared.task.owner());
        shared.devices.cancel(&vmm);
    }

    /// The current figures.
    pub fn stats(&self) -> Stats {
        self.shared.task.stats()
    }
}

watching!(Save, "save");

impl Saving {
    /// The body of the save's thread.
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        // Waiting threads wake last, when file, pins and claim are gone.
        let _end = Ending(&shared.task);
        let _inside = self.vmm.enter();
        self.shared
            .devices
            .hold(shared.tracker.memory().devices().in_use());
        let mut result = catch(|| match shared.params.instant {
            SaveInstant::End => self.save_end(),
            SaveInstant::Start => self.save_start(),
        })
        .and_then(|saved| saved);
        self.shared.devices.end(&self.vmm);
        if self.paused_at.is_some() {
            match (&result, shared.params.stay_paused) {
                // The devices stand still with the vCPUs; the VMM resumes both.
                (Ok(()), true) => self.claim.comes_to(Stage::Stands),
                _ => {
                    if let Err(not_resumed) = self.resume() {
                        let error = result.err().unwrap_or_else(|| not_resumed.clone());
                        result = Err(Error::new(
                            error.kind(),
                            format!("{}; the guest stands: {not_resumed}", error.message()),
                        ));
                    }
                }
            }
        } else if shared.params.already_paused {
            // The devices were stopped here, and the guest goes on standing as its VMM wants it.
            if let Err(not_resumed) = self.shared.devices.resume(&self.vmm) {
                result = result.and(Err(not_resumed));
            }
            self.claim.comes_to(Stage::PausedByVmm);
        } else if self.stats.downtime.is_none() || self.runs_again {
            // The guest was never paused, or has been running for long. For a guest that was, `resume` has already reported the
            // stage.
            self.claim.comes_to(Stage::Kept);
        }
        shared.devices.let_go();
        self.stats.elapsed = self.begun.elapsed();
        let (kind, message) = match &result {
            Ok(()) => {
                (self.stats.progress, self.stats.remaining_bytes) = (10_000, 0);
                let message = format!("the guest was saved in {} bytes", self.stats.file_bytes);
                (EventKind::Completed, message)
            }
            Err(error) => (EventKind::Failed, error.message().to_owned()),
        };
        shared.task.ends(&self.stats, result.err());
        self.vmm.event(kind, message);
    }
}
