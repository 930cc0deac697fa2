//! [`Restore`] starts a guest from a file.

use super::devices::Restored;
use super::report::{RestoreParams, State, Stats};
use super::task::{image_path, Ending, Task};
use super::watching::watching;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::image::format::{BlobEntry, BlobKind, BlockEntry, Index};
use crate::image::{Announce, Filled, Image};
use crate::memory::access::{self, Access};
use crate::memory::ownership::{Claim, Stage};
use crate::memory::{Block, Map, Memory};
use crate::runtime::{catch, Role};
use crate::sys::disk::Caching;
use crate::units::Pages;
use crate::vmm::callbacks::Callbacks;
use crate::vmm::held::Arrivals;
use crate::vmm::{EventKind, StateBlob, Vmm};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// How many differences a message lists.
const DIFFERENCES: usize = 8;

struct Shared {
    memory: Arc<Memory>,
    vmm: Arc<dyn Vmm>,
    params: RestoreParams,
    task: Task,
    filled: Arc<Filled>,
    begun: OnceLock<Instant>,
    /// The guest's devices, once image and guest were found to have the same.
    arrivals: OnceLock<Arc<Arrivals>>,
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

    /// Cancels the restore, and returns when its threads have ended. That takes a tenth of a second
    /// at most, unless an operation of the VMM's or a kernel call is in progress. A call of a device in
    /// progress is asked to return ([`Device::cancel`](crate::vmm::device::Device::cancel)). Inside an
    /// operation the call does not wait. A restore that has ended by itself is left alone;
    /// [`Restore::wait`] tells how it ended.
    pub fn cancel(&self) {
        self.shared.task.cancel(|| self.cancel_devices());
    }

    fn cancel_devices(&self) {
        if let Some(devices) = self.shared.arrivals.get() {
            devices.cancel();
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
        let done = Pages(stats.data_pages + stats.zero_pages).bytes().0;
        stats.remaining_bytes = stats.total_bytes.saturating_sub(done);
        match stats.state {
            State::Completed => stats.progress = 10_000,
            _ => stats.advance(),
        }
        stats
    }
}

watching!(Restore, "restore");

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
        let mut devices = Restored::new(in_use, self.vmm.clone())?;
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
        self.enter(State::Filling);
        cancel.check("the restore")?;
        self.claim.comes_to(Stage::Restoring);
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
        shared.memory.guest_ran();
        self.enter(State::Loading);
        for (entry, data) in &streamed {
            cancel.check("the restore")?;
            let loaded = devices.load(entry, data);
            loaded.map_err(|e| cancel.check("the restore").err().unwrap_or(e))?;
        }
        for blob in &state {
            cancel.check("the restore")?;
            self.load("load", blob, |vmm, blob| vmm.load(blob))?;
        }
        let loaded = devices.loaded();
        loaded.map_err(|e| cancel.check("the restore").err().unwrap_or(e))?;
        self.vmm
            .call_that_makes_threads("loaded", |vmm| vmm.loaded())?;
        cancel.check("the restore")?;
        // From here on a whole guest is here, even if a later step fails.
        self.ends = Stage::Stands;
        devices.keep();
        if !params.stay_paused {
            self.enter(State::Starting);
            devices.run()?;
            self.vmm.call_that_makes_threads("run", |vmm| vmm.run())?;
            self.ends = Stage::Arrived;
        }
        Ok(())
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

/// The difference between a block of the image and this guest's block of the same name, in words.
fn difference(theirs: &BlockEntry, ours: &Block) -> Option<String> {
    let kind = |rom| if rom { "ROM" } else { "RAM" };
    let mut differences = Vec::new();
    if ours.length().0 != theirs.length {
        differences.push(format!(
            "has {} bytes in the image and {} in the guest",
            theirs.length,
            ours.length()
        ));
    }
    if ours.page_size().0 != theirs.page_size {
        differences.push(format!(
            "has pages of {} bytes in the image and of {} in the guest",
            theirs.page_size,
            ours.page_size()
        ));
    }
    if ours.flags().rom != theirs.rom {
        differences.push(format!(
            "is {} in the image and {} in the guest",
            kind(theirs.rom),
            kind(!theirs.rom)
        ));
    }
    let name = &theirs.name;
    (!differences.is_empty()).then(|| format!("block `{name}` {}", differences.join(", and ")))
}

/// The guest's blocks in the order of the image's, if they are the same.
fn matching(index: &Index, map: &Map) -> Result<Vec<Arc<Block>>> {
    let mut blocks = Vec::new();
    let mut told = Vec::new();
    let mut names = HashSet::new();
    for theirs in &index.blocks {
        fallible::add(&mut names, theirs.name.as_str(), "an image's blocks")?;
        match map.block_named(&theirs.name) {
            None => told.push(format!(
                "the image has a block `{}` of {} bytes and the guest has none of that name",
                theirs.name, theirs.length
            )),
            Some(ours) => {
                told.extend(difference(theirs, ours));
                fallible::push(&mut blocks, Arc::clone(ours), "an image's blocks")?;
            }
        }
    }
    let missing = map
        .blocks()
        .iter()
        .filter(|ours| !names.contains(ours.name()));
    told.extend(missing.map(|ours| {
        format!(
            "the guest has a block `{}` of {} bytes and the image has none of that name",
            ours.name(),
            ours.length()
        )
    }));
    if told.is_empty() {
        return Ok(blocks);
    }
    let more = told.len().saturating_sub(DIFFERENCES);
    told.truncate(DIFFERENCES);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    Err(Error::new(Kind::Layout, told.join("; ")))
}
