//! Which of the guest's blocks the destination knows, and which changes it must be told of.

use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::{Block, BlockId, Map, Memory};
use crate::migrate::layout::describe;
use crate::units::Pages;
use crate::wire::Record;
use std::collections::{HashMap, HashSet};

/// The name of a table of blocks in the error of a failed allocation.
const BLOCKS: &str = "the guest's blocks";

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Announced {
    /// Their lengths, by their numbers.
    blocks: HashMap<BlockId, Pages>,
    /// The generation of the map whose removals the destination knows.
    at: Option<u64>,
    /// Those blocks whose memory the destination has in common with this side.
    shared: HashSet<BlockId>,
    /// No block may be copied.
    only_shared: bool,
}

impl Announced {
    /// Records that the destination was told of a block of the layout.
    pub(super) fn add(&mut self, block: &Block) -> Result<()> {
        fallible::insert(&mut self.blocks, block.id(), block.pages(), BLOCKS)?;
        Ok(())
    }

    /// Records that the destination was told of the whole layout of `map`.
    pub(super) fn all_of(&mut self, map: &Map) {
        self.at = Some(map.generation());
    }

    /// Records that the destination has these blocks in common with this side. With `only`, no other
    /// block may be announced from now on.
    pub(super) fn share(&mut self, blocks: &HashSet<BlockId>, only: bool) -> Result<()> {
        self.only_shared = only;
        for id in blocks {
            fallible::add(&mut self.shared, *id, BLOCKS)?;
        }
        Ok(())
    }

    /// The blocks that the destination has in common with this side.
    pub(super) fn shared(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.shared.iter().copied()
    }

    /// The blocks of which the destination has a copy, with their lengths.
    pub(super) fn copied(&self) -> impl Iterator<Item = (BlockId, Pages)> + '_ {
        let copied = self.blocks.iter();
        let copied = copied.filter(|(id, _)| !self.shared.contains(id));
        copied.map(|(id, pages)| (*id, *pages))
    }

    /// Whether `memory` has changed since the destination was told of all of it.
    pub(super) fn is_behind(&self, memory: &Memory) -> bool {
        self.at != Some(memory.with_map(Map::generation))
    }

    /// Whether the destination does not know a block of `taken` yet.
    pub(super) fn lacks(&self, taken: &Taken) -> bool {
        taken
            .blocks()
            .any(|block| !self.blocks.contains_key(&block.id()))
    }

    /// All changes of `memory` that the destination does not know yet, as bytes. For a migration
    /// with several channels, none of which has anything on its way at that moment.
    pub(super) fn all_news(&mut self, memory: &Memory) -> Result<Vec<u8>> {
        let map = memory.map();
        let mut news = Vec::new();
        // Removed blocks first: a new block may have the name of a removed one.
        let gone = self.blocks.keys().copied();
        let gone = gone.filter(|id| map.block(*id).is_none());
        for id in fallible::collect(gone, BLOCKS)? {
            Record::BlockRemoved { id: id.0 }.encode(&mut news)?;
            self.blocks.remove(&id);
        }
        for block in map.blocks() {
            if !self.blocks.contains_key(&block.id()) {
                self.check_copied(block)?;
                Record::BlockAdded(describe(block)).encode(&mut news)?;
                self.add(block)?;
            }
        }
        self.at = Some(map.generation());
        Ok(news)
    }

    /// Refuses a block that was added, where no block may be copied.
    fn check_copied(&self, block: &Block) -> Result<()> {
        if !self.only_shared {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unsupported,
            format!(
                "hand-over only: block `{}` has to be copied: it was added while the migration ran",
                block.name()
            ),
        ))
    }

    /// What the destination must be told before `taken` arrives: removed blocks, and blocks that
    /// were added since. The answer is bytes, which are sent together with the runs. If they were
    /// sent alone, a wait for the peer would also keep the runs' pins.
    pub(super) fn news(&mut self, memory: &Memory, taken: Option<&Taken>) -> Result<Vec<u8>> {
        let mut news = Vec::new();
        let blocks = || taken.into_iter().flat_map(Taken::blocks);
        // Removed blocks first: a new block may have the name of a removed one. Removals are looked
        // for only when the map has changed, because this function is called with every batch.
        if self.at != Some(memory.with_map(Map::generation)) {
            let map = memory.map();
            let gone = self.blocks.keys().copied();
            let gone = gone.filter(|id| map.block(*id).is_none());
            let mut gone = fallible::collect(gone, BLOCKS)?;
            // When runs of a removed block are still being sent, a later batch tells of its
            // removal.
            let before = gone.len();
            let sent = |id| blocks().any(|block| block.id() == id);
            gone.retain(|id| !sent(*id));
            for id in &gone {
                Record::BlockRemoved { id: id.0 }.encode(&mut news)?;
                self.blocks.remove(id);
            }
            if gone.len() == before {
                self.at = Some(map.generation());
            }
        }
        for block in blocks() {
            if self.blocks.contains_key(&block.id()) {
                continue;
            }
            self.check_copied(block)?;
            Record::BlockAdded(describe(block)).encode(&mut news)?;
            self.add(block)?;
        }
        Ok(news)
    }
}
