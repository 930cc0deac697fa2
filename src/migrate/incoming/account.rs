//! Where arriving pages go: the destination's guest memory, through the source's block
//! numbers, with an account of what is known to be zero.
//!
//! A destination's memory is not assumed to be zero. Pages that were never touched there are
//! known to be (and stay untouched when a zero page arrives for them, so that an idle guest
//! costs no memory); every other page is written.

use super::known_zero::KnownZero;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::contents::Contents;
use crate::memory::host;
use crate::memory::{Block, BlockPin, Map, MapObserver, Memory, PageRun};
use crate::migrate::layout::block_difference;
use crate::units::{Bytes, Pages};
use crate::wire::{self, Header};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// What a table of them is called when there is no memory for it.
const BLOCKS: &str = "the source's blocks";

struct Target {
    /// The source's name for it, and ours.
    name: String,
    pages: Pages,
    /// Pinned for the time of a record only: between two of them the VMM may remove it. `None`
    /// where it had done so before the source's word of it arrived here.
    block: Option<Arc<Block>>,
    /// What is known of our block.
    zero: KnownZero,
}

/// The names of blocks that were removed here while a migration runs. What the source says is
/// on its way for a while: of a block that came and went again it may say that it came when
/// it is gone at both sides. Without this that could not be told from a block that the
/// destination never had.
#[derive(Default)]
struct Removed(Mutex<HashSet<String>>);

impl MapObserver for Removed {
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()> {
        let gone = old.blocks_not_in(new)?;
        let mut names = self.names();
        for block in gone {
            fallible::add(
                &mut names,
                block.name().to_owned(),
                "names of removed blocks",
            )?;
        }
        Ok(())
    }
}

impl Removed {
    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// See the file's description.
pub(super) struct Account {
    memory: Arc<Memory>,
    /// By the source's block number. A block of ours is the target of one at a time.
    targets: HashMap<u32, Target>,
    /// Their names.
    names: HashSet<String>,
    removed: Arc<Removed>,
    /// What our blocks' pages hold.
    contents: Contents,
    /// The targets when all has arrived.
    spent: HashMap<u32, Target>,
    /// The map in which all of them were there.
    complete_in: Option<u64>,
}

impl Account {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        let removed: Arc<Removed> = Arc::default();
        let observer: Weak<dyn MapObserver> = {
            let weak: Weak<Removed> = Arc::downgrade(&removed);
            weak
        };
        memory.observe(observer);
        Account {
            memory,
            targets: HashMap::new(),
            names: HashSet::new(),
            removed,
            contents: Contents::new(),
            spent: HashMap::new(),
            complete_in: None,
        }
    }

    /// The VMM has built itself: what it removed to that end is no news of the source's.
    pub(super) fn built(&mut self) {
        self.removed.names().clear();
    }

    /// Whether a block of that name was removed here since.
    pub(super) fn was_removed(&self, name: &str) -> bool {
        self.removed.names().contains(name)
    }

    /// The source has added a block, or had when it said so: takes its pages into ours of that
    /// name. Where ours is gone by now they go nowhere, and the source has to say before READY
    /// that its block is gone too.
    pub(super) fn added(&mut self, theirs: &wire::Block) -> Result<()> {
        let map = self.memory.map();
        let difference = match map.block_named(&theirs.name) {
            None => format!(
                "the source added block `{}` and the destination has none of that name",
                theirs.name
            ),
            Some(ours) => match block_difference(theirs, ours) {
                None => return self.add(theirs.id, ours),
                Some(difference) => format!("a block that the source added: {difference}"),
            },
        };
        // The map was looked at first: a block that it lacks is known to be removed by now.
        if !self.was_removed(&theirs.name) {
            return Err(Error::new(Kind::Layout, difference));
        }
        self.check_new(theirs.id, &theirs.name)?;
        let target = Target {
            name: theirs.name.clone(),
            pages: Bytes(theirs.length).pages_down(),
            block: None,
            zero: KnownZero::nothing(),
        };
        self.insert(theirs.id, target)?;
        Ok(())
    }

    /// One block of a number, and of a name, at a time. So what a source can announce is
    /// bounded by the names that there are, or were, here.
    fn check_new(&self, id: u32, name: &str) -> Result<()> {
        if self.targets.contains_key(&id) {
            return Err(Error::new(
                Kind::Protocol,
                format!("block {id} is announced twice"),
            ));
        }
        if self.names.contains(name) {
            return Err(Error::new(
                Kind::Protocol,
                format!("block `{name}` is announced again, as {id}, and was not removed"),
            ));
        }
        Ok(())
    }

    fn insert(&mut self, id: u32, target: Target) -> Result<()> {
        fallible::add(&mut self.names, target.name.clone(), BLOCKS)?;
        fallible::insert(&mut self.targets, id, target, BLOCKS)?;
        Ok(())
    }

    /// Takes pages of the source's block `id` into `block` from now on.
    pub(super) fn add(&mut self, id: u32, block: &Arc<Block>) -> Result<()> {
        self.check_new(id, block.name())?;
        let pages = block.pages();
        let zero = match self.memory.pin(block) {
            Some(_pin) => {
                access::file_reaches(block, &(Pages(0)..pages), Access::Write)?;
                KnownZero::of(block)?
            }
            // One that was removed this very moment: nothing will go there.
            None => KnownZero::nothing(),
        };
        let target = Target {
            name: block.name().to_owned(),
            pages,
            block: Some(Arc::clone(block)),
            zero,
        };
        self.insert(id, target)?;
        Ok(())
    }

    /// All has arrived. Of blocks that are gone here [`Account::missing`] tells.
    ///
    /// The guest stands still. Freeing the bitmaps of a guest of 1 TiB takes 3 to 4 ms, and what
    /// is known of 4,096 blocks as long, so that is left to [`Account::free`].
    pub(super) fn finish(&mut self) -> Result<()> {
        let map = self.memory.map();
        self.spent = std::mem::take(&mut self.targets);
        self.complete_in = Some(map.generation());
        for target in self.spent.values() {
            let here = target.block.as_ref().and_then(|b| map.block(b.id()));
            let Some(block) = here else {
                self.complete_in = None;
                continue;
            };
            // Pages that are known to be zero were not touched: nothing else would find that
            // they are gone.
            access::file_reaches(block, &(Pages(0)..target.pages), Access::Write)?;
            // The VMM loads its state next, and the guest runs.
            block.zeroed_no_more();
        }
        Ok(())
    }

    /// After [`Account::finish`]: a block that the source still has, by all that it said, and that
    /// is gone here: its number there, and the error that it comes to.
    pub(super) fn missing(&self) -> Option<(u32, Error)> {
        // The guest stands still: nothing is looked up in a map that has not changed.
        if self.complete_in == Some(self.memory.with_map(Map::generation)) {
            return None;
        }
        let map = self.memory.map();
        let gone = |target: &Target| {
            let here = target.block.as_ref().and_then(|b| map.block(b.id()));
            here.is_none()
        };
        let (id, target) = self.spent.iter().find(|(_, target)| gone(target))?;
        Some((*id, removed(&target.name)))
    }

    /// Frees what [`Account::finish`] left, once the guest runs.
    pub(super) fn free(&mut self) {
        self.spent = HashMap::new();
        self.names = HashSet::new();
    }

    /// Lets go of the source's block `id`.
    pub(super) fn remove(&mut self, id: u32) -> Result<()> {
        let target = self.targets.remove(&id).or_else(|| self.spent.remove(&id));
        let target = target.ok_or_else(|| unknown(id))?;
        self.names.remove(&target.name);
        Ok(())
    }

    /// A marker has come: what our memory is may have changed since the last one.
    pub(super) fn look_again(&mut self) {
        self.contents.refresh();
    }

    /// The target of a run of pages, and the run in our block, pinned; `None` for a block that is gone
    /// here. Its pages may still be on their way when both sides have removed it, and go nowhere.
    fn target(&mut self, header: &Header) -> Result<(&mut Target, Option<Place>, &mut Contents)> {
        let target = self
            .targets
            .get_mut(&header.block)
            .ok_or_else(|| unknown(header.block))?;
        header.check_run(target.pages)?;
        let pin = target.block.as_ref().and_then(|b| self.memory.pin(b));
        let (first, count) = (Pages(header.first_page), Pages(u64::from(header.count)));
        let place = match pin {
            Some(block) => {
                let run = block.run(first, count)?;
                Some((block, run))
            }
            None => None,
        };
        Ok((target, place, &mut self.contents))
    }

    /// Where the contents of a run of pages go; `None` if they go nowhere.
    pub(super) fn data(&mut self, header: &Header) -> Result<Option<Place>> {
        let (target, place, _) = self.target(header)?;
        if let Some((block, run)) = &place {
            target.zero.written(block, pages_of(run));
            block.ballooned().arrived(pages_of(run));
            block.poisoned().arrived(pages_of(run));
        }
        Ok(place)
    }

    /// Where the contents of a list of runs go: the block, pinned, and the runs in it, which take the
    /// place of what `runs` has; `None` if they go nowhere.
    pub(super) fn list(
        &mut self,
        header: &Header,
        list: &[u8],
        runs: &mut Vec<PageRun>,
    ) -> Result<Option<BlockPin>> {
        let target = self
            .targets
            .get_mut(&header.block)
            .ok_or_else(|| unknown(header.block))?;
        let pin = target.block.as_ref().and_then(|b| self.memory.pin(b));
        runs.clear();
        fallible::reserve(runs, header.count as usize, "a list of pages")?;
        wire::decode_list(header, list, target.pages, |first, count| {
            if let Some(block) = &pin {
                runs.push(block.run(first, Pages(u64::from(count)))?);
            }
            Ok(())
        })?;
        // Not before all of it is known to be good.
        if let Some(block) = &pin {
            for run in &*runs {
                target.zero.written(block, pages_of(run));
                block.ballooned().arrived(pages_of(run));
                block.poisoned().arrived(pages_of(run));
            }
        }
        Ok(pin)
    }

    /// The block that a record is about, pinned anew; `None` if it is gone here.
    pub(super) fn pin_block(&self, header: &Header) -> Option<BlockPin> {
        let block = self.targets.get(&header.block)?.block.as_ref()?;
        self.memory.pin(block)
    }

    /// Whether the host has to back pages of a run first, and it is the kernel's affair alone.
    pub(super) fn wants_backing(&mut self, place: &Place) -> bool {
        let (block, run) = place;
        self.contents.wants_backing(block, run.range())
    }

    /// Where the rest of a run's contents goes, the block pinned anew; `None` if it goes nowhere.
    pub(super) fn pin(&mut self, header: &Header) -> Result<Option<Place>> {
        Ok(self.target(header)?.1)
    }

    /// The contents of a run have been written, all or a part of them: users of a tracker of this
    /// guest, a backup from before it went away, have to hear of it.
    pub(super) fn arrived(&self, run: &PageRun) {
        self.memory.tell_written(run.block(), pages_of(run));
    }

    /// Takes a run of zero pages.
    pub(super) fn zeros(&mut self, header: &Header) -> Result<()> {
        let (target, place, contents) = self.target(header)?;
        let Some((block, run)) = place else {
            return Ok(());
        };
        block.ballooned().arrived(pages_of(&run));
        block.poisoned().arrived(pages_of(&run));
        let made = target.zero.make_zero(contents, &block, pages_of(&run));
        self.arrived(&run);
        made
    }

    /// Takes a run of ballooned pages.
    pub(super) fn ballooned(&mut self, header: &Header) -> Result<()> {
        let memory = Arc::clone(&self.memory);
        let (target, place, contents) = self.target(header)?;
        let Some((block, run)) = place else {
            return Ok(());
        };
        let range = pages_of(&run);
        block.poisoned().arrived(range.clone());
        let mut whole = Vec::new();
        // No guest's balloon has a ROM; it is not for a peer to say that its file has holes.
        if !block.flags().rom {
            memory.inflate_from_source(&block, range.clone(), |pages| whole.push(pages));
        }
        for pages in whole {
            // What cannot be discarded is written below.
            let _ = host::discard(contents, &block, Pages(pages.start)..Pages(pages.end));
        }
        // What is left: part of a larger host page, or memory that cannot be discarded.
        let made = target.zero.make_zero(contents, &block, range);
        self.arrived(&run);
        made
    }
}

/// A run of our block's, pinned.
pub(super) type Place = (BlockPin, PageRun);

/// The pages of a run.
fn pages_of(run: &PageRun) -> Range<u64> {
    run.first().0..run.end().0
}

fn removed(name: &str) -> Error {
    Error::new(
        Kind::Layout,
        format!("block `{name}` was removed at the destination while the source still has it"),
    )
}

fn unknown(id: u32) -> Error {
    Error::new(
        Kind::Protocol,
        format!("block {id} was never announced, or is gone"),
    )
}
