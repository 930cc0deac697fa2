//! [`Restore`] starts a guest from a file.

use super::devices::Restored;
use super::layout::matching;
use super::lazy::Lazy;
use super::report::{RestoreParams, State, Stats};
use super::task::{image_path, Ending, Task};
use super::watching::watching;
use crate::bits::Stretches;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::image::format::{BlobEntry, BlobKind};
use crate::image::{Announce, Filled, Image, Picker};
use crate::memory::access::{self, Access};
use crate::memory::ownership::{Claim, Stage};
use crate::memory::served::{Absent, Faulted, How, Served};
use crate::memory::{Block, Memory, Whose};
use crate::runtime::{catch, wait_ready_or, Deadline, Interest, Join, Role, Wake};
use crate::sys::disk::Caching;
use crate::units::Pages;
use crate::vmm::callbacks::Callbacks;
use crate::vmm::held::Arrivals;
use crate::vmm::{EventKind, StateBlob, Vmm};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

struct Shared {
    memory: Arc<Memory>,
    vmm: Arc<dyn Vmm>,
    params: RestoreParams,
    task: Task,
    filled: Arc<Filled>,
    begun: OnceLock<Instant>,
    /// The guest's devices, once image and guest were found to have the same.
    arrivals: OnceLock<Arc<Arrivals>>,
    coming: Coming,
}

/// A restore of a guest from a file that [`super::Save`] made. One object, one restore. For an
/// example see [`super::Save`].
///
/// The guest has blocks of the same names, lengths and page sizes as the saved guest, or adds them
/// in `early_load`. Header, index and blobs are checked before the first page of memory is written.
/// Each page is checked before it is written. After an error memory holds nothing of use, and no
/// guest is here.
///
/// All methods may be called from any thread. Inside an operation that this restore called,
/// [`Restore::wait`] is an error and [`Restore::cancel`] does not wait.
pub struct Restore {
    shared: Arc<Shared>,
}

impl Restore {
    /// A restore into `memory`. Checks the parameters.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a parameter outside of its range.
    pub fn new(memory: Arc<Memory>, vmm: Arc<dyn Vmm>, params: RestoreParams) -> Result<Restore> {
        params.check()?;
        Ok(Restore {
            shared: Arc::new(Shared {
                memory,
                vmm,
                params,
                task: Task::new("restore")?,
                filled: Arc::default(),
                begun: OnceLock::new(),
                arrivals: OnceLock::new(),
                coming: Coming::default(),
            }),
        })
    }

    /// Starts the restore from the image at `path`, and returns. [`Restore::wait`], the last event
    /// and the figures tell how it ends.
    ///
    /// # Errors
    /// [`Kind::Busy`] while a migration, a save or another restore of the same guest is going on.
    /// [`Kind::State`] when a guest is here, or this restore was started before.
    /// [`Kind::Invalid`] for an empty path. All that is found out about the file itself is an error
    /// of [`Restore::wait`]: [`Kind::NotFound`] for a file that does not exist.
    pub fn start(&self, path: impl AsRef<Path>) -> Result<()> {
        let ours = Arc::clone(&self.shared);
        let path = image_path(path.as_ref())?;
        let claim = || self.shared.memory.ownership().restore();
        self.shared.task.start(claim, move |claim| {
            let vmm = Callbacks::new(Arc::clone(&ours.vmm), ours.task.owner());
            let begun = *ours.begun.get_or_init(Instant::now);
            let restoring = Restoring {
                shared: ours,
                vmm,
                claim,
                path,
                begun,
                ends: Stage::NotArrived,
                stats: Stats {
                    state: State::Preparing,
                    ..Stats::default()
                },
            };
            restoring.run();
        })
    }

    /// Brings in what is left of a guest that was started before its memory was here
    /// ([`RestoreParams::lazy`]), with all reader threads, and waits as [`Restore::wait`] does. For
    /// another restore, and one that has not started its guest yet, only the wait.
    ///
    /// # Errors
    /// Those of [`Restore::wait`].
    pub fn finish(&self, limit: Option<Duration>) -> Result<()> {
        self.shared.coming.hurry();
        self.wait(limit)
    }

    /// Cancels the restore, and returns when its threads have ended. That takes a tenth of a second
    /// at most, unless an operation of the VMM's or a kernel call is in progress. A call of a device in
    /// progress is asked to return ([`Device::cancel`](crate::vmm::device::Device::cancel)). Inside an
    /// operation the call does not wait. A restore that has ended by itself is left alone;
    /// [`Restore::wait`] tells how it ended.
    ///
    /// When the guest of a lazy restore was started already, its pages that are not here are given up:
    /// the access of one raises SIGBUS. Do that only with a guest that nobody needs.
    pub fn cancel(&self) {
        self.shared.task.cancel(|| self.cancel_devices());
    }

    fn cancel_devices(&self) {
        if let Some(devices) = self.shared.arrivals.get() {
            devices.cancel();
        }
    }

    /// A guest that runs gets the rest of its memory before the restore is dropped.
    fn before_drop(&self) {
        let runs = |shared: &Shared| shared.memory.ownership().whose() == Whose::Incomplete;
        if !self.in_callback() && self.shared.coming.is_going_on() && runs(&self.shared) {
            let _ = self.finish(None);
        }
    }

    /// The current figures.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.task.stats();
        stats.data_pages = self.shared.filled.data_pages();
        stats.zero_pages = self.shared.filled.zero_pages();
        if let (false, Some(begun)) = (stats.state.is_over(), self.shared.begun.get()) {
            stats.elapsed = begun.elapsed();
        }
        self.shared.coming.figures(&mut stats);
        let done = Pages(stats.data_pages + stats.zero_pages + stats.lost_pages)
            .bytes()
            .0;
        stats.remaining_bytes = stats.total_bytes.saturating_sub(done);
        match stats.state {
            State::Completed if self.shared.params.trusted => {
                (stats.progress, stats.remaining_bytes) = (10_000, 0);
            }
            State::Completed => stats.progress = 10_000,
            _ => stats.advance(),
        }
        stats
    }
}

watching!(Restore, "restore", |restore: &Restore| restore
    .before_drop());

/// The pages of a lazy restore while they are coming.
#[derive(Default)]
struct Coming(Mutex<Service>);

#[derive(Default)]
struct Service {
    now: Option<(Arc<Served>, Arc<Lazy>)>,
    /// The VMM was in a hurry before there was anything to bring.
    hurry: bool,
    /// At the end.
    last: Option<Faulted>,
}

impl Coming {
    fn lock(&self) -> MutexGuard<'_, Service> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn begins(&self, served: &Arc<Served>, lazy: &Arc<Lazy>) {
        let mut service = self.lock();
        service.now = Some((Arc::clone(served), Arc::clone(lazy)));
        if service.hurry {
            lazy.hurry();
        }
    }

    fn ends(&self) {
        let mut service = self.lock();
        if let Some((served, _)) = service.now.take() {
            service.last = Some(served.figures());
        }
    }

    fn hurry(&self) {
        let mut service = self.lock();
        service.hurry = true;
        if let Some((_, lazy)) = &service.now {
            lazy.hurry();
        }
    }

    fn is_going_on(&self) -> bool {
        self.lock().now.is_some()
    }

    fn figures(&self, stats: &mut Stats) {
        let service = self.lock();
        let now = service.now.as_ref().map(|(served, _)| served.figures());
        if let Some(figures) = now.as_ref().or(service.last.as_ref()) {
            stats.lost_pages = figures.lost;
            stats.urgent_pages = figures.urgent;
            stats.faults = figures.faults;
            stats.fault_p50 = figures.latency.p50;
            stats.fault_p99 = figures.latency.p99;
            stats.fault_max = figures.latency.max;
        }
    }
}

/// The values that the restore's thread owns.
struct Restoring {
    shared: Arc<Shared>,
    vmm: Callbacks,
    claim: Claim,
    path: PathBuf,
    begun: Instant,
    /// The stage that the guest would be in if the restore ended now.
    ends: Stage,
    stats: Stats,
}

/// A blob that is about to be loaded.
type Loaded<'a> = (&'a BlobEntry, Vec<u8>);

impl Restoring {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        // Waiting threads wake last, when file, pins and claim are gone.
        let _end = Ending(&shared.task);
        let _inside = self.vmm.enter();
        let result = catch(|| self.restore()).and_then(|restored| restored);
        self.claim.comes_to(self.ends);
        self.stats.elapsed = self.begun.elapsed();
        let (kind, message) = match &result {
            Ok(()) => (EventKind::Completed, "the guest was restored".to_owned()),
            Err(error) => (EventKind::Failed, error.message().to_owned()),
        };
        shared.task.ends(&self.stats, result.err());
        self.vmm.event(kind, message);
    }

    fn restore(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (params, cancel) = (&shared.params, &shared.task.cancel);
        self.vmm.thread_start(Role::Snapshot)?;
        let caching = Caching::new(params.direct);
        let image = Arc::new(Image::open(&self.path, caching)?);
        self.stats.file_bytes = image.file_bytes();
        let index = image.index();
        let [early, state, streamed] = self.read_blobs(&image)?;
        for blob in &early {
            cancel.check("the restore")?;
            self.load("early_load", blob, |vmm, blob| vmm.early_load(blob))?;
        }
        let in_use = shared.memory.devices().in_use();
        let devices = Restored::new(in_use, self.vmm.clone())?;
        devices.check(streamed.iter().map(|(entry, _)| *entry))?;
        // A cancel that comes before this is found by the checks before each call.
        let _ = shared.arrivals.set(devices.arrivals());
        let map = shared.memory.map();
        self.stats.total_bytes = map.total().0;
        let blocks = matching(index, &map)
            .map_err(|e| e.context(format_args!("image `{}`", self.path.display())))?;
        let reach = |blocks: &[Arc<Block>]| {
            blocks.iter().try_for_each(|block| {
                access::file_reaches(block, &(Pages(0)..block.pages()), Access::Write)
            })
        };
        reach(&blocks)?;
        if params.lazy {
            return self.lazily(&image, &blocks, devices, &streamed, &state);
        }
        if params.trusted {
            image.check_mappable(&blocks)?;
        }
        self.enter(State::Filling);
        cancel.check("the restore")?;
        self.claim.comes_to(Stage::Restoring);
        if params.trusted {
            let mapped = image.map_into(&shared.memory, &blocks)?;
            return self.start_guest(devices, &streamed, &state, || mapped.keep());
        }
        let callbacks = self.vmm.clone();
        let announce: Announce = Arc::new(move |role| callbacks.thread_start(role));
        image.fill(
            &shared.memory,
            fallible::collect(blocks.iter().cloned(), "blocks")?,
            params.readers,
            cancel,
            &announce,
            &shared.filled,
        )?;
        // Zero pages were not touched, so only this check finds that their memory was cut off its
        // file.
        reach(&blocks)?;
        self.start_guest(devices, &streamed, &state, || ())
    }

    /// Loads the guest whose memory is here, and starts it. `here` is called when it is here.
    fn start_guest(
        &mut self,
        mut devices: Restored,
        streamed: &[Loaded<'_>],
        state: &[Loaded<'_>],
        here: impl FnOnce(),
    ) -> Result<()> {
        self.shared.memory.guest_ran();
        self.load_all(&mut devices, streamed, state)?;
        here();
        // From here on a whole guest is here, even if a later step fails.
        self.ends = Stage::Stands;
        devices.keep();
        if !self.shared.params.stay_paused {
            self.run_guest(&devices)?;
            self.ends = Stage::Arrived;
        }
        Ok(())
    }

    /// Loads the state of devices, and the VMM's.
    fn load_all(
        &mut self,
        devices: &mut Restored,
        streamed: &[Loaded<'_>],
        state: &[Loaded<'_>],
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let cancel = &shared.task.cancel;
        self.enter(State::Loading);
        for (entry, data) in streamed {
            cancel.check("the restore")?;
            let loaded = devices.load(entry, data);
            loaded.map_err(|e| cancel.or("the restore", e))?;
        }
        for blob in state {
            cancel.check("the restore")?;
            self.load("load", blob, |vmm, blob| vmm.load(blob))?;
        }
        let loaded = devices.loaded();
        loaded.map_err(|e| cancel.or("the restore", e))?;
        self.vmm
            .call_that_makes_threads("loaded", |vmm| vmm.loaded())?;
        cancel.check("the restore")
    }

    fn run_guest(&mut self, devices: &Restored) -> Result<()> {
        self.enter(State::Starting);
        devices.run()?;
        self.vmm.call_that_makes_threads("run", |vmm| vmm.run())
    }

    /// Loads and starts the guest at once, and brings its pages in when they are touched.
    fn lazily(
        &mut self,
        image: &Arc<Image>,
        blocks: &[Arc<Block>],
        mut devices: Restored,
        streamed: &[Loaded<'_>],
        state: &[Loaded<'_>],
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let cancel = &shared.task.cancel;
        let checked = Served::check(&shared.memory)?;
        let mut absent = Vec::new();
        for block in blocks {
            let pages = Stretches::new(block.pages().index())?;
            pages.set_range(0, block.pages().index());
            let block = Arc::clone(block);
            fallible::push(&mut absent, Absent { block, pages }, "blocks")?;
        }
        let blocks = fallible::collect(blocks.iter().cloned(), "blocks")?;
        let filled = Arc::clone(&shared.filled);
        let lazy = Arc::new(Lazy::new(Picker::new(Arc::clone(image)), blocks, filled)?);
        cancel.check("the restore")?;
        self.claim.comes_to(Stage::Restoring);
        let callbacks = self.vmm.clone();
        let announce: Announce = Arc::new(move |role| callbacks.thread_start(role));
        let on_fault_thread = Arc::clone(&announce);
        let served = Served::begin(
            &shared.memory,
            &checked,
            absent,
            How::default(),
            Arc::<Lazy>::clone(&lazy),
            Box::new(move |role| on_fault_thread(role)),
        )?;
        shared.memory.guest_ran();
        shared.coming.begins(&served, &lazy);
        let threads = lazy.start(&served, shared.params.readers, &announce);
        let result = threads.and_then(|threads| {
            let loaded = self
                .load_all(&mut devices, streamed, state)
                .and_then(|()| lazy.may_run());
            let result = match loaded {
                Ok(()) => {
                    devices.keep();
                    self.fill_behind(&devices, &lazy, &served)
                }
                // No guest is here, and its memory is nobody's.
                Err(error) => Err(error),
            };
            lazy.end();
            threads.into_iter().try_for_each(Join::join)?;
            result
        });
        lazy.end();
        shared.coming.ends();
        match self.ends {
            Stage::NotArrived => served.abandon(),
            // What is absent is given up when the last reference goes.
            _ if served.left().0 > 0 => {}
            _ => served.finish()?,
        }
        result
    }

    /// Starts the guest, and waits until its memory is here.
    fn fill_behind(&mut self, devices: &Restored, lazy: &Lazy, served: &Served) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.claim.comes_to(Stage::IncompleteStands);
        self.ends = Stage::Whole;
        let started = match shared.params.stay_paused {
            true => Ok(()),
            false => self.run_guest(devices),
        };
        if started.is_ok() && !shared.params.stay_paused {
            self.claim.comes_to(Stage::Incomplete);
        }
        self.enter(State::Filling);
        let mut told = false;
        loop {
            let trouble = Some(lazy.trouble.fd());
            let cancel = Some(&shared.task.cancel);
            let until = Deadline::never();
            let woken = wait_ready_or(lazy.all_here.fd(), Interest::Read, trouble, cancel, until)?;
            if woken == Wake::Cancelled {
                return Err(Error::new(
                    Kind::Cancelled,
                    format!(
                        "the restore: cancelled while the guest runs; {} pages of its memory are lost",
                        served.left()
                    ),
                ));
            }
            let _ = lazy.trouble.take();
            let over = lazy.all_here.is_cancelled();
            // A page that another thread brought in the end is not lost.
            let lost = lazy
                .lost()
                .map(|(error, unread)| (error, unread + served.figures().lost))
                .filter(|(_, pages)| *pages > 0);
            if let Some((error, _)) = lost.as_ref().filter(|_| !told) {
                told = true;
                let what = format!(
                    "the guest runs without a page of its memory, whose access raises SIGBUS: {error}"
                );
                self.vmm.event(EventKind::Warning, what);
            }
            match lost {
                _ if !over => {}
                None => return started,
                Some((error, pages)) => {
                    let what = format!("{pages} pages of the guest's memory are lost: {error}");
                    return started.and(Err(Error::new(error.kind(), what)));
                }
            }
        }
    }

    /// The VMM's early blobs and state blobs, and the state of devices. All of them are checked before
    /// the first is loaded.
    fn read_blobs<'a>(&mut self, image: &'a Image) -> Result<[Vec<Loaded<'a>>; 3]> {
        let shared = Arc::clone(&self.shared);
        let most = shared.params.max_state_bytes;
        let (mut early, mut state, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for blob in &image.index().blobs {
            shared.task.cancel.check("the restore")?;
            self.stats.state_bytes = self.stats.state_bytes.saturating_add(blob.length);
            if self.stats.state_bytes > most {
                return Err(Error::new(
                    Kind::Image,
                    format!(
                        "image `{}` holds more than the {most} bytes of state that are allowed here \
                         (max_state_bytes)",
                        self.path.display()
                    ),
                ));
            }
            let list = match blob.kind {
                BlobKind::Early => &mut early,
                BlobKind::State => &mut state,
                BlobKind::Device => &mut devices,
            };
            fallible::push(list, (blob, image.blob(blob)?), "state")?;
        }
        Ok([early, state, devices])
    }

    fn load(
        &self,
        name: &str,
        (entry, data): &Loaded<'_>,
        load: impl FnOnce(&dyn Vmm, &StateBlob<'_>) -> Result<()>,
    ) -> Result<()> {
        let blob = StateBlob {
            name: &entry.name,
            instance: entry.instance,
            version: entry.version,
            data,
        };
        self.vmm
            .call_that_makes_threads(name, |vmm| load(vmm, &blob))
    }

    fn enter(&mut self, state: State) {
        self.stats.state = state;
        self.stats.elapsed = self.begun.elapsed();
        self.shared.task.publish(&self.stats);
        self.vmm.event(EventKind::State, state.name().to_owned());
    }
}
