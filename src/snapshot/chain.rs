//! [`Chain`]: images of one guest, of which each later one holds what changed since the one before.
//!
//! A chain has a consumer of the tracker, which begins to hear of writes in the pause of the first
//! save and never stops. A later save writes the consumer's pages. Example of a page that must not be
//! lost: the third save takes page 5 and writes it, and then the disk is full. There is no third
//! image, and page 5 is in no bitmap any more. So a save notes each page that it takes
//! ([`Source`]), and every end but a whole image makes those pages pending again.
//!
//! Some changes enter no log. A page that the guest has given to its balloon reads as zero after a
//! restore, although nobody wrote it, and the tracker tells the consumer of it. A page that the VMM has
//! declared lost does so too, and is put to the consumer's pages at the instant.

use super::report::SaveInstant;
use crate::bits::summary::Bitmap;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::taken::Taken;
use crate::dirty::tracker::{StartWith, Tracker};
use crate::dirty::When;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::image::identity::{ImageId, Parent};
use crate::image::{file_at, Base, Image, Writer};
use crate::memory::{Block, BlockId, Map};
use crate::runtime::Recall;
use crate::sys::disk::Caching;
use crate::units::Pages;
use crate::walk::{Outlet, Put};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Runs that are taken at once.
const RUNS: usize = 256;

/// Images of one guest: the first holds all of its memory, each later one what changed since the one
/// before. [`Save::in_chain`](super::Save::in_chain) makes the next. All of them lie in one directory,
/// and a [`Restore`](super::Restore) takes the path of any. [`merge`](super::merge()) makes one full image
/// of an image and those before it.
///
/// The chain follows all writes from the first image until it is dropped and no save of it is in
/// progress. Logs are on for that long. A clone is the same chain.
///
/// ```
/// use brant::dirty::tracker::{Clearing, Tracker};
/// use brant::dirty::WriteMarks;
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::migrate::Blockers;
/// use brant::snapshot::{merge, Chain, Restore, RestoreParams, Save, SaveParams};
/// use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// use brant::vmm::Vmm;
/// use std::sync::Arc;
///
/// struct Nothing;
/// impl Vmm for Nothing {
///     fn pause(&self) -> brant::Result<()> { Ok(()) }
///     fn resume(&self) -> brant::Result<()> { Ok(()) }
///     fn run(&self) -> brant::Result<()> { Ok(()) }
/// }
///
/// # fn main() -> brant::Result<()> {
/// # let directory = tempfile::tempdir()?;
/// # let image = |name: &str| directory.path().join(name);
/// let ranges = [(GuestAddress(0), 1 << 20)];
/// let ram = GuestMemoryMmap::<WriteMarks>::from_ranges(&ranges)?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
/// WriteMarks::connect(&ram, &tracker);
///
/// let chain = Chain::new(tracker);
/// for (page, name) in (0..).zip(["first", "second", "third"]) {
///     ram.write_obj(7u8, GuestAddress(page * 4096))?;
///     let (vmm, params) = (Arc::new(Nothing), SaveParams::default());
///     let save = Save::in_chain(&chain, Blockers::new(), vmm, params)?;
///     save.start(image(name))?;
///     save.wait(None)?;
///     assert_eq!(save.stats().data_pages, 1); // the one that was written since
/// }
/// merge(image("third"), image("whole"))?;
///
/// let there = GuestMemoryMmap::<()>::from_ranges(&ranges)?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&there, NO_SLOT)?;
/// let restore = Restore::new(memory, Arc::new(Nothing), RestoreParams::default())?;
/// restore.start(image("whole"))?; // or `image("third")`, with those before beside it
/// restore.wait(None)?;
/// assert_eq!(there.read_obj::<u8>(GuestAddress(2 * 4096))?, 7);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Chain {
    linked: Arc<Linked>,
}

/// What a chain's clones and saves share.
pub(super) struct Linked {
    pub(super) tracker: Arc<Tracker>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Hears of every write since the last image.
    consumer: Option<Arc<Consumer>>,
    last: Option<Last>,
    images: u64,
}

/// The newest image.
#[derive(Clone)]
struct Last {
    path: PathBuf,
    id: ImageId,
    /// The blocks that it has.
    blocks: Arc<HashSet<u32>>,
    /// How often memory had been filled from elsewhere.
    fills: u64,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("images", &self.images())
            .finish_non_exhaustive()
    }
}

impl Chain {
    /// A chain of images of the guest that `tracker` tracks; no image yet.
    pub fn new(tracker: Arc<Tracker>) -> Chain {
        Chain {
            linked: Arc::new(Linked {
                tracker,
                state: Mutex::default(),
            }),
        }
    }

    /// How many whole images were made.
    pub fn images(&self) -> u64 {
        self.linked.lock().images
    }

    /// The tracker whose guest this is of.
    pub fn tracker(&self) -> &Arc<Tracker> {
        &self.linked.tracker
    }

    pub(super) fn linked(&self) -> Arc<Linked> {
        Arc::clone(&self.linked)
    }
}

impl Linked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Pages that a save has taken from a chain's consumer.
#[derive(Default)]
struct Owed(HashMap<BlockId, Bitmap>);

impl Owed {
    fn note(&mut self, taken: &Taken) -> Result<()> {
        for run in taken.runs() {
            let block = run.block.id();
            if !self.0.contains_key(&block) {
                let bits = Bitmap::new(run.block.pages().index())?;
                fallible::insert(&mut self.0, block, bits, "pages of an image")?;
            }
            if let Some(bits) = self.0.get_mut(&block) {
                let pages = run.pages;
                bits.set_range(pages.first().index(), pages.count().index());
            }
        }
        Ok(())
    }

    fn put_back(&mut self, consumer: &Consumer) {
        for (block, bits) in self.0.drain() {
            let mut at = 0;
            while let Some(run) = bits.next_run(at, usize::MAX) {
                at = run.end;
                consumer.put_back(block, Pages(run.start as u64), Pages(run.len() as u64));
            }
        }
    }
}

/// Where a save's pages come from, and what becomes of them when it ends: a consumer of its own, or
/// that of a chain.
pub(super) struct Source {
    consumer: Arc<Consumer>,
    chain: Option<Arc<Linked>>,
    /// The image of whose guest this one holds the changes.
    last: Option<Last>,
    owed: Owed,
    /// The tracker's syncs before the consumer was frozen.
    frozen: Option<u64>,
    settled: bool,
}

impl Source {
    /// The source of a save; nothing is started yet.
    ///
    /// # Errors
    /// [`Kind::State`] for a chain that does not know what was written since its last image.
    pub(super) fn begin(tracker: &Arc<Tracker>, chain: Option<Arc<Linked>>) -> Result<Source> {
        let (mut known, mut last) = (None, None);
        if let Some(chain) = &chain {
            let state = chain.lock();
            known = state.consumer.clone();
            last = state.last.clone();
        }
        let consumer = match (&last, known) {
            (Some(last), Some(consumer)) => {
                last.check(tracker, &consumer)?;
                consumer
            }
            _ => Arc::new(match &chain {
                None => tracker.consumer(),
                Some(_) => tracker.consumer_that(
                    |number| format!("a chain of images (consumer {number} of the tracker)"),
                    "its pages are in an image",
                ),
            }),
        };
        Ok(Source {
            consumer,
            chain,
            last,
            owed: Owed::default(),
            frozen: None,
            settled: false,
        })
    }

    /// Where an image at `path` continues: its parent, whose files are checked.
    ///
    /// # Errors
    /// [`Kind::NotFound`] and [`Kind::Image`] when the image before is not there or is another one,
    /// [`Kind::Invalid`] for the name of an image of the chain.
    pub(super) fn base(&self, path: &Path, caching: Caching) -> Result<Option<Base>> {
        let Some(last) = &self.last else {
            return Ok(None);
        };
        let Some(name) = last.path.file_name() else {
            return Err(Error::new(Kind::Internal, "an image without a name"));
        };
        let there = path.with_file_name(name);
        let named = |e: Error| {
            e.context(format_args!(
                "image `{}` would hold what changed since image {}, the chain's last, expected as `{}`; \
                 keep the images of a chain in one directory, or begin a new chain, whose first image \
                 holds all of memory",
                path.display(),
                last.id,
                there.display()
            ))
        };
        let image = Image::open(&there, caching).map_err(named)?;
        if image.id() != last.id {
            let found = format!("found image {} there", image.id());
            return Err(named(Error::new(Kind::Image, found)));
        }
        image.check_for_one_more().map_err(named)?;
        if let Some(file) = file_at(path) {
            if image.layer_in_file(file)?.is_some() {
                let what = "expected another name: it is the name of an image of the chain";
                return Err(named(Error::new(Kind::Invalid, what)));
            }
        }
        Ok(Some(Base {
            parent: Parent::new(last.id, name)?,
            blocks: Arc::clone(&last.blocks),
        }))
    }

    /// Whether the image holds changes only.
    pub(super) fn continues(&self) -> bool {
        self.last.is_some()
    }

    /// Whether the save belongs to a chain.
    pub(super) fn is_chained(&self) -> bool {
        self.chain.is_some()
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Starts following writes, or brings what is known up to date. The guest runs.
    pub(super) fn start(&self, instant: SaveInstant) -> Result<()> {
        if self.continues() {
            // What this finds is written while the guest runs.
            return self.consumer.sync(When::Running).map(drop);
        }
        self.consumer.skip_ballooned(true);
        self.consumer.start(match instant {
            SaveInstant::End => StartWith::Everything,
            SaveInstant::Start => StartWith::Nothing,
        })
    }

    /// The last harvest, with the guest paused.
    pub(super) fn harvest(&mut self, map: &Map) -> Result<()> {
        self.find_unlogged(map);
        self.consumer.sync(When::Stopped).map(drop)
    }

    /// Puts pages to the consumer's that changed although nobody wrote them: those that the VMM has
    /// declared lost. The tracker tells of those that the guest gave to its balloon.
    fn find_unlogged(&self, map: &Map) {
        let Some(last) = &self.last else {
            return;
        };
        let known = |block: &&Arc<Block>| last.blocks.contains(&block.id().0);
        for block in map.blocks().iter().filter(known) {
            let mut at = Pages(0);
            while let Some(lost) = block.poisoned().next(at..block.pages()) {
                at = lost.end;
                let count = lost.end - lost.start;
                self.consumer.put_back(block.id(), lost.start, count);
            }
        }
    }

    /// Takes all pages at the instant, for an image that gets them later; those of a full image are
    /// known without. Writes from here on belong to the next image.
    pub(super) fn take_all(&mut self) -> Result<()> {
        let mut cursor = Cursor::default();
        loop {
            let taken = self
                .consumer
                .take_recallable(&mut cursor, RUNS, Pages(u64::MAX))?;
            if taken.is_empty() {
                return Ok(());
            }
            if self.continues() {
                self.owed.note(&taken)?;
            }
            taken.delivered();
        }
    }

    /// The pages of a block that [`Source::take_all`] took.
    pub(super) fn taken(&self, block: BlockId) -> Option<&Bitmap> {
        self.owed.0.get(&block)
    }

    /// From here on the consumer gets no page from syncs of others, because the guest stands still.
    pub(super) fn freeze(&mut self) {
        if self.frozen.is_none() {
            self.frozen = Some(self.consumer.tracker().stats().syncs);
            self.consumer.freeze();
        }
    }

    /// The guest is about to run: its writes belong to the next image.
    pub(super) fn thaw(&mut self) {
        if let Some(syncs) = self.frozen.take() {
            self.consumer.unfreeze();
            // Nobody knows what a sync of another consumer has found meanwhile.
            if self.consumer.tracker().stats().syncs != syncs {
                self.consumer.mark_all();
            }
        }
    }

    /// An outlet that notes what is taken.
    pub(super) fn noting<'a>(&'a mut self, writer: &'a mut Writer) -> (Arc<Consumer>, Noting<'a>) {
        let owed = self.continues().then_some(&mut self.owed);
        (Arc::clone(&self.consumer), Noting { writer, owed })
    }

    /// The image at `path` is whole, and has the blocks of `map`.
    pub(super) fn settle(&mut self, path: &Path, id: ImageId, map: &Map) -> Result<()> {
        let Some(chain) = &self.chain else {
            return Ok(());
        };
        let mut blocks = HashSet::new();
        for block in map.blocks() {
            fallible::add(&mut blocks, block.id().0, "an image's blocks")?;
        }
        let ownership = chain.tracker.memory().ownership();
        let mut state = chain.lock();
        state.consumer = Some(Arc::clone(&self.consumer));
        state.images += 1;
        state.last = Some(Last {
            path: path.to_owned(),
            id,
            blocks: Arc::new(blocks),
            fills: ownership.fills(),
        });
        drop(state);
        self.settled = true;
        Ok(())
    }
}

impl Drop for Source {
    /// Without a whole image, a chain's pages are pending again. A consumer without a chain, or of a
    /// chain without an image, ends.
    fn drop(&mut self) {
        match (self.settled, &self.last) {
            (true, _) => {}
            (false, Some(_)) => {
                self.thaw();
                self.owed.put_back(&self.consumer);
            }
            (false, None) => self.consumer.abandon(),
        }
    }
}

impl Last {
    /// Whether the consumer knows all that was written since this image.
    fn check(&self, tracker: &Tracker, consumer: &Consumer) -> Result<()> {
        let refused = |what: &str| {
            Err(Error::new(
                Kind::State,
                format!(
                    "{what} since image `{}`, so nobody knows what changed since; begin a new chain, \
                     whose first image holds all of memory",
                    self.path.display()
                ),
            ))
        };
        if tracker.memory().ownership().fills() != self.fills {
            return refused("the guest's memory was filled by a restore or a migration");
        }
        match consumer.is_started() {
            true => Ok(()),
            false => refused("tracking for the chain was stopped"),
        }
    }
}

/// An outlet that notes the pages of a chain before it passes them on.
pub(super) struct Noting<'a> {
    writer: &'a mut Writer,
    owed: Option<&'a mut Owed>,
}

impl Outlet for Noting<'_> {
    fn put(&mut self, taken: Taken, recall: &Recall) -> Result<Put> {
        if let Some(owed) = &mut self.owed {
            owed.note(&taken)?;
        }
        self.writer.put(taken, recall)
    }

    fn progress(&mut self) -> Result<()> {
        self.writer.progress()
    }

    fn barrier(&mut self) -> Result<()> {
        self.writer.barrier()
    }

    fn finish(&mut self) -> Result<()> {
        self.writer.finish()
    }
}
