//! Which of the guest's blocks the destination knows, and what it has to hear of others.

use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::fallible;
use crate::memory::{BlockId, Map, Memory};
use crate::migrate::layout::describe;
use crate::wire::Record;
use std::collections::HashSet;

/// What a table of them is called when there is no memory for it.
const BLOCKS: &str = "the guest's blocks";

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Announced {
    blocks: HashSet<BlockId>,
    /// The map whose removals the destination has been told of.
    at: Option<u64>,
}

impl Announced {
    /// The destination is told of a block of the layout.
    pub(super) fn add(&mut self, block: BlockId) -> Result<()> {
        fallible::add(&mut self.blocks, block, BLOCKS)?;
        Ok(())
    }

    /// The whole layout of `map` has been told.
    pub(super) fn all_of(&mut self, map: &Map) {
        self.at = Some(map.generation());
    }

    /// Whether `memory` has changed since the destination was told of all of it.
    pub(super) fn is_behind(&self, memory: &Memory) -> bool {
        self.at != Some(memory.with_map(Map::generation))
    }

    /// Whether the destination does not know a block of `taken` yet.
    pub(super) fn lacks(&self, taken: &Taken) -> bool {
        taken
            .blocks()
            .any(|block| !self.blocks.contains(&block.id()))
    }

    /// All that the destination has to hear of `memory`, as bytes: for several channels, on which
    /// nothing is on its way then.
    pub(super) fn all_news(&mut self, memory: &Memory) -> Result<Vec<u8>> {
        let map = memory.map();
        let mut news = Vec::new();
        // Those that went first: one that comes may have the name of one that went.
        let gone = self.blocks.iter().copied();
        let gone = gone.filter(|id| map.block(*id).is_none());
        for id in fallible::collect(gone, BLOCKS)? {
            Record::BlockRemoved { id: id.0 }.encode(&mut news)?;
            self.blocks.remove(&id);
        }
        for block in map.blocks() {
            if !self.blocks.contains(&block.id()) {
                Record::BlockAdded(describe(block)).encode(&mut news)?;
                self.add(block.id())?;
            }
        }
        self.at = Some(map.generation());
        Ok(news)
    }

    /// What the destination has to hear before `taken`: of blocks that went, and of those that
    /// came since. As bytes, to be sent with the runs: what waits for the peer alone would wait
    /// with their pins.
    pub(super) fn news(&mut self, memory: &Memory, taken: Option<&Taken>) -> Result<Vec<u8>> {
        let mut news = Vec::new();
        let blocks = || taken.into_iter().flat_map(Taken::blocks);
        // Those that went first: one that comes may have the name of one that went. Only when the
        // map has changed: this is asked with every batch.
        if self.at != Some(memory.with_map(Map::generation)) {
            let map = memory.map();
            let gone = self.blocks.iter().copied();
            let gone = gone.filter(|id| map.block(*id).is_none());
            let mut gone = fallible::collect(gone, BLOCKS)?;
            // One that runs are still sent of is told of with a later batch.
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
            if self.blocks.contains(&block.id()) {
                continue;
            }
            Record::BlockAdded(describe(block)).encode(&mut news)?;
            self.add(block.id())?;
        }
        Ok(news)
    }
}
