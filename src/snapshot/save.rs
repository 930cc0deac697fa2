//! [`Save`] writes a guest to a file.

use super::converge::{pause_now, Facts};
use super::devices;
use super::report::{SaveParams, State, Stats};
use super::task::{image_path, Ending, Task};
use super::watching::watching;
use crate::channel::Pacer;
use crate::dirty::consumer::Consumer;
use crate::dirty::tracker::{StartWith, Tracker};
use crate::dirty::When;
use crate::error::{Error, Result};
use crate::image::{Announce, Blobs, Writer};
use crate::memory::blockers::Blockers;
use crate::memory::ownership::{Claim, Stage};
use crate::memory::Map;
use crate::runtime::{catch, Role};
use crate::sys::disk::Caching;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::vmm::callbacks::Callbacks;
use crate::vmm::held::Held;
use crate::vmm::{EventKind, Vmm};
use crate::walk::{Outlet, Put, Walk, BATCH_PAGES};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the figures are renewed.
const RENEW: Duration = Duration::from_millis(100);

struct Shared {
    tracker: Arc<Tracker>,
    blockers: Blockers,
    vmm: Arc<dyn Vmm>,
    params: SaveParams,
    /// Holds all writers together to the stated bandwidth.
    pacer: Arc<Pacer>,
    task: Task,
    /// The guest's devices whose state is streamed.
    devices: Held,
}

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
        params.check()?;
        Ok(Save {
            shared: Arc::new(Shared {
                tracker,
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

/// The values that the save's thread owns.
struct Saving {
    shared: Arc<Shared>,
    vmm: Callbacks,
    claim: Claim,
    path: PathBuf,
    begun: Instant,
    renewed: Instant,
    /// When the guest was paused, if the save paused it and has to resume it.
    paused_at: Option<Instant>,
    stats: Stats,
}

/// Stops tracking when it is dropped, so after a failure too.
struct Tracking(Consumer);

impl Drop for Tracking {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Saving {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        // Waiting threads wake last, when file, pins and claim are gone.
        let _end = Ending(&shared.task);
        let _inside = self.vmm.enter();
        self.shared
            .devices
            .hold(shared.tracker.memory().devices().in_use());
        let mut result = catch(|| self.save()).and_then(|saved| saved);
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
        } else if self.stats.downtime.is_none() {
            // The guest was never paused. For a guest that was, `resume` has already reported the
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

    fn save(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (params, cancel) = (&shared.params, &shared.task.cancel);
        self.vmm.thread_start(Role::Snapshot)?;
        let memory = shared.tracker.memory();
        self.stats.total_bytes = memory.with_map(|map| map.total()).0;
        self.stats.remaining_bytes = self.stats.total_bytes;
        let mut blobs = Blobs::default();
        self.vmm
            .call("early_save", |vmm| vmm.early_save(&mut blobs))?;
        let callbacks = self.vmm.clone();
        let announce: Announce = Arc::new(move |role| callbacks.thread_start(role));
        let caching = Caching::new(params.direct);
        let (path, writers) = (&self.path, params.writers);
        let pacer = &shared.pacer;
        let mut writer = Writer::begin(path, memory, writers, caching, cancel, pacer, &announce)?;
        let consumer = Tracking(shared.tracker.consumer());
        let mut walk = Walk::over(memory)?;
        if params.already_paused {
            self.claim.comes_to(Stage::SavePaused);
        }
        consumer.0.skip_ballooned(true);
        consumer.0.start(StartWith::Everything)?;
        if let Some(warning) = shared.tracker.warning() {
            self.vmm.event(EventKind::Warning, warning.to_owned());
        }
        let unless_cancelled = |e| cancel.check("the save").err().unwrap_or(e);
        let begun = shared.devices.begin(&self.vmm);
        begun.map_err(unless_cancelled)?;
        if !params.already_paused {
            self.passes(&consumer.0, &mut walk, &mut writer)?;
            self.pause()?;
        }
        self.enter(State::Paused);
        cancel.check("the save")?;
        // A call that the cancel has ended is no failure of the device's.
        let stopped = shared.devices.stop(&self.vmm);
        stopped.map_err(unless_cancelled)?;
        devices::save(&shared.devices, &self.vmm, &mut blobs, cancel)?;
        blobs.state_begins();
        self.vmm.call("save", |vmm| vmm.save(&mut blobs))?;
        self.stats.state_bytes = blobs.bytes();
        cancel.check("the save")?;
        consumer.0.sync(When::Stopped)?;
        // The guest is paused: it has written none of the pages that syncs of other consumers find
        // from here on.
        consumer.0.freeze();
        let map = self.pass(&consumer.0, &mut walk, &mut writer)?;
        writer.seal(&map)?;
        drop(consumer);
        if self.paused_at.is_some() && !params.stay_paused {
            self.resume()?;
        }
        self.enter(State::Finishing);
        self.stats.file_bytes = writer.finish_image(blobs, cancel)?;
        Ok(())
    }

    /// Writes memory while the guest runs, until another pass would not shorten the pause.
    fn passes(&mut self, consumer: &Consumer, walk: &mut Walk, writer: &mut Writer) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let params = &shared.params;
        let mut before = None;
        self.enter(State::Copying);
        loop {
            let (begun, data) = (Instant::now(), self.stats.data_pages);
            self.pass(consumer, walk, writer)?;
            let took = begun.elapsed();
            let report = consumer.sync(When::Running)?;
            for warning in report.warnings {
                self.vmm.event(EventKind::Warning, warning);
            }
            shared.blockers.check()?;
            let remaining = consumer.to_read().bytes();
            self.vmm.event(
                EventKind::Pass,
                format!(
                    "pass {} done: {} pages to write",
                    self.stats.pass,
                    remaining.pages_up()
                ),
            );
            let facts = Facts {
                pass: self.stats.pass,
                remaining,
                before,
                written: Pages(self.stats.data_pages - data).bytes(),
                took,
            };
            if pause_now(&facts, params.downtime_limit, params.max_passes) {
                return Ok(());
            }
            before = Some(remaining);
        }
    }

    /// Writes all pending pages, and waits until they are in the file. Returns the map whose pages
    /// these are: with a paused guest, no page of its blocks is pending.
    ///
    /// Example: another thread of the VMM's adds a block while the guest is paused. If the map were
    /// taken after the last look at the pending pages, a block added between the two would be in the
    /// map, and none of its pages in the file. So the map is taken first. The tracker makes a new
    /// block's pages pending before the map has the block, so the look that follows finds them. A
    /// block that is removed in between is not in the next map, and the pass goes on with that one.
    ///
    /// Another example: a block is being removed, which sets its pages aside, and a log then refuses.
    /// Its pages are pending again after the look. So the look counts pages that are set aside, and
    /// the pass goes on until the block is gone or its pages are taken.
    fn pass(
        &mut self,
        consumer: &Consumer,
        walk: &mut Walk,
        writer: &mut Writer,
    ) -> Result<Arc<Map>> {
        let shared = Arc::clone(&self.shared);
        self.stats.pass += 1;
        walk.restart();
        loop {
            shared.task.cancel.check("the save")?;
            writer.progress()?;
            match walk.step(consumer, BATCH_PAGES, writer)? {
                Some(put) => self.count(&put, consumer),
                None => {
                    writer.barrier()?;
                    // Pages whose pins a removal wanted back are pending again. While the guest
                    // runs, the next pass takes them.
                    let map = shared.tracker.memory().map();
                    let whole = consumer.pending_in(&map) == Some(Pages(0))
                        && shared.tracker.memory().map().generation() == map.generation();
                    #[cfg(test)]
                    super::testing::looked_at_pending();
                    if whole || self.stats.state != State::Paused {
                        return Ok(map);
                    }
                    std::thread::yield_now();
                }
            }
        }
    }

    fn count(&mut self, put: &Put, consumer: &Consumer) {
        self.stats.data_pages += put.data_pages;
        self.stats.zero_pages += put.zero_pages;
        self.stats.ballooned_pages += put.ballooned_pages;
        self.stats.poisoned_pages += put.poisoned_pages;
        if self.renewed.elapsed() >= RENEW {
            self.stats.remaining_bytes = Bytes(consumer.pending().0 * PAGE_SIZE).0;
            self.renew();
        }
    }

    fn renew(&mut self) {
        self.renewed = Instant::now();
        self.stats.elapsed = self.begun.elapsed();
        self.stats.advance();
        self.shared.task.publish(&self.stats);
    }

    fn enter(&mut self, state: State) {
        self.stats.state = state;
        self.renew();
        self.vmm.event(EventKind::State, state.name().to_owned());
    }

    fn pause(&mut self) -> Result<()> {
        self.shared.task.cancel.check("the save")?;
        self.shared.blockers.check()?;
        self.claim.comes_to(Stage::SavePaused);
        // From here on `resume` is due, whether `pause` succeeds or not.
        self.paused_at = Some(Instant::now());
        // The guest stands still: its last pages are not held back.
        self.shared.pacer.override_rate(None);
        self.vmm.call("pause", |vmm| vmm.pause())
    }

    fn resume(&mut self) -> Result<()> {
        let Some(paused_at) = self.paused_at.take() else {
            return Ok(());
        };
        let resumed = self.shared.devices.resume(&self.vmm);
        let resumed = resumed.and_then(|()| {
            self.vmm
                .call_that_makes_threads("resume", |vmm| vmm.resume())
        });
        self.stats.downtime = Some(paused_at.elapsed());
        self.claim.comes_to(match resumed {
            Ok(()) => Stage::Kept,
            Err(_) => Stage::Stands,
        });
        resumed
    }
}
