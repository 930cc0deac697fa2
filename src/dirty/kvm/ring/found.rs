//! What the rings gave since the last sync: a bitmap for each block.
//!
//! A list would grow with time, as a busy page is found again and again; a bitmap with a
//! summary does not, and costs nothing where nothing was found. Pages are
//! translated when they are harvested, by the slots that there were when they were pushed.

use crate::bits::summary::Bitmap;
use crate::dirty::Sink;
use crate::error::Result;
use crate::memory::{BlockId, Map, Slot};
use std::collections::BTreeSet;
use std::sync::Arc;

/// More pages than that in doubt, and starting over is cheaper.
const DOUBTFUL_MAX: usize = 8192;

/// See the file's description.
#[derive(Default)]
pub(super) struct Found {
    map: Arc<Map>,
    /// By block id.
    blocks: Vec<Option<Bitmap>>,
    /// The slot of the last page: most come in a row.
    last: Option<Slot>,
    /// Pages that may have lost their protection, in every sync again.
    doubtful: BTreeSet<(BlockId, u64)>,
    /// Entries that named no page of the map.
    strays: u64,
}

impl Found {
    /// From now on pages are those of `map`. Blocks that stay keep what was found of them.
    pub fn fit(&mut self, map: &Map) -> Result<()> {
        let len = map.blocks().last().map_or(0, |b| b.id().index() + 1);
        let mut blocks = Vec::new();
        blocks.resize_with(len, || None);
        for block in map.blocks() {
            let i = block.id().index();
            blocks[i] = match self.blocks.get_mut(i) {
                Some(Some(_)) => None,
                _ => Some(Bitmap::new(block.pages().index())?),
            };
        }
        // Nothing fails from here on.
        for (i, kept) in self.blocks.iter_mut().enumerate() {
            if i < len && blocks[i].is_none() && map.block(BlockId(i as u32)).is_some() {
                blocks[i] = kept.take();
            }
        }
        self.doubtful
            .retain(|(block, _)| map.block(*block).is_some());
        self.blocks = blocks;
        self.map = Arc::new(map.clone());
        self.last = None;
        Ok(())
    }

    fn page_of(&mut self, slot: u32, offset: u64) -> Option<(BlockId, u64)> {
        if self.last.as_ref().is_none_or(|last| last.slot != slot) {
            self.last = self.map.slot(slot).cloned();
        }
        match &self.last {
            Some(s) if offset < s.pages.0 => Some((s.block, s.first.0 + offset)),
            _ => {
                self.strays += 1;
                None
            }
        }
    }

    /// An entry of a ring.
    pub fn page(&mut self, slot: u32, offset: u64) {
        if let Some((block, page)) = self.page_of(slot, offset) {
            if let Some(Some(bits)) = self.blocks.get_mut(block.index()) {
                bits.set_range(page as usize, 1);
            }
        }
    }

    /// An entry of which it is not known whether its page was protected again.
    pub fn in_doubt(&mut self, slot: u32, offset: u64) {
        if let Some(page) = self.page_of(slot, offset) {
            self.doubtful.insert(page);
        }
    }

    /// Whether too many pages are in doubt.
    pub fn in_too_much_doubt(&self) -> bool {
        self.doubtful.len() > DOUBTFUL_MAX
    }

    /// How many pages are.
    pub fn doubtful(&self) -> u64 {
        self.doubtful.len() as u64
    }

    /// All are protected again.
    pub fn no_doubt(&mut self) {
        self.doubtful.clear();
    }

    /// Moves all of it to `sink`. Costs what was found.
    pub fn give(&mut self, sink: &mut dyn Sink) -> Result<()> {
        for &(block, page) in &self.doubtful {
            if let Some(Some(bits)) = self.blocks.get_mut(block.index()) {
                bits.set_range(page as usize, 1);
            }
        }
        for (i, bits) in self.blocks.iter_mut().enumerate() {
            let Some(bits) = bits.as_mut().filter(|bits| !bits.is_empty()) else {
                continue;
            };
            sink.block(BlockId(i as u32), &mut |pending| {
                Ok(bits.take_all_into(pending))
            })?;
        }
        Ok(())
    }

    /// Forgets everything; nothing is tracked.
    pub fn clear(&mut self) {
        *self = Found::default();
    }

    /// Bytes held.
    pub fn heap_bytes(&self) -> u64 {
        let blocks = self.blocks.iter().flatten();
        blocks.map(|bits| bits.heap_bytes() as u64).sum()
    }

    /// Entries that named no page.
    pub fn strays(&self) -> u64 {
        self.strays
    }
}
