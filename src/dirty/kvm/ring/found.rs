//! Pages that the rings reported since the last sync: for each block a short list, and a bitmap for
//! when the list gets long.
//!
//! The list keeps the cost of a sync proportional to the dirtied pages: they go from it straight to
//! pending, and no other structure of the guest's size is touched. A busy page is found again and
//! again, so the list would grow with time; a full list therefore goes into the bitmap. Pages are
//! translated when they are harvested, by the slots that were there when they were pushed.

use crate::bits::summary::Bitmap;
use crate::dirty::{Origin, Sink};
use crate::error::{Error, Result};
use crate::memory::{BlockId, Map, Slot};
use crate::units::Pages;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most pages in doubt. With more, protecting every page anew is cheaper.
const DOUBTFUL_MAX: usize = 8192;

/// The longest list: 64 KiB, or as many pages as the block has. From there on the bitmap is
/// cheaper. Tests reach both cases.
const LIST_MAX: usize = if cfg!(test) { 48 } else { 8192 };

/// The pages that were found in one block.
struct Pile {
    /// Never longer than `room`, for which it has the capacity.
    list: Vec<u64>,
    room: usize,
    bits: Bitmap,
}

impl Pile {
    fn new(pages: Pages) -> Result<Self> {
        let mut list = Vec::new();
        let room = LIST_MAX.min(pages.index());
        list.try_reserve_exact(room)
            .map_err(|_| Error::no_memory("pages found by rings", room as u64 * 8))?;
        Ok(Pile {
            list,
            room,
            bits: Bitmap::new(pages.index())?,
        })
    }

    fn add(&mut self, page: u64) {
        // A write that KVM emulates is reported many times in a row.
        if self.list.last() == Some(&page) {
            return;
        }
        if self.list.len() >= self.room {
            for page in self.list.drain(..) {
                self.bits.set_range(page as usize, 1);
            }
        }
        self.list.push(page);
    }
}

/// See the file's description.
#[derive(Default)]
pub(super) struct Found {
    map: Arc<Map>,
    blocks: BTreeMap<BlockId, Pile>,
    /// The slot of the last page. Most pages come from the same slot as the one before.
    last: Option<Slot>,
    /// Pages that may have lost their protection. They are reported in every sync.
    doubtful: BTreeSet<(BlockId, u64)>,
    /// Entries that named no page of the map.
    strays: u64,
}

impl Found {
    /// Translates entries by `map` from now on. What was found in blocks that stay is kept.
    pub fn fit(&mut self, map: &Map) -> Result<()> {
        let mut fresh = Vec::new();
        for block in map.blocks_not_in(&self.map)? {
            fresh.push((block.id(), Pile::new(block.pages())?));
        }
        // No step from here on can fail.
        self.blocks.extend(fresh);
        for block in self.map.blocks_not_in(map)? {
            self.blocks.remove(&block.id());
        }
        self.doubtful
            .retain(|(block, _)| map.block(*block).is_some());
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

    /// Takes an entry of a ring.
    pub fn page(&mut self, slot: u32, offset: u64) {
        if let Some((block, page)) = self.page_of(slot, offset) {
            if let Some(pile) = self.blocks.get_mut(&block) {
                pile.add(page);
            }
        }
    }

    /// Takes an entry whose page may not be protected again.
    pub fn in_doubt(&mut self, slot: u32, offset: u64) {
        if let Some(page) = self.page_of(slot, offset) {
            self.doubtful.insert(page);
        }
    }

    /// Whether too many pages are in doubt.
    pub fn in_too_much_doubt(&self) -> bool {
        self.doubtful.len() > DOUBTFUL_MAX
    }

    /// How many pages are in doubt.
    pub fn doubtful(&self) -> u64 {
        self.doubtful.len() as u64
    }

    /// Notes that every page is protected again.
    pub fn no_doubt(&mut self) {
        self.doubtful.clear();
    }

    /// Moves the pages to `sink`. The cost grows with their number alone.
    pub fn give(&mut self, sink: &mut dyn Sink) -> Result<()> {
        for &(block, page) in &self.doubtful {
            if let Some(pile) = self.blocks.get_mut(&block) {
                pile.add(page);
            }
        }
        for (&block, Pile { list, bits, .. }) in &mut self.blocks {
            if !bits.is_empty() {
                sink.block(block, &mut |pending| {
                    let reported = bits.count();
                    bits.take_all_into(pending);
                    Ok(reported)
                })?;
            }
            if !list.is_empty() {
                // In order, so that neighbours become one run.
                list.sort_unstable();
                list.dedup();
                let page = Pages(0);
                sink.list(Origin::Block { block, page }, list);
                list.clear();
            }
        }
        Ok(())
    }

    /// Forgets everything. Called when nothing is tracked.
    pub fn clear(&mut self) {
        *self = Found::default();
    }

    /// Bytes of memory that lists and bitmaps hold.
    pub fn heap_bytes(&self) -> u64 {
        let bytes = |pile: &Pile| (pile.bits.heap_bytes() + pile.list.capacity() * 8) as u64;
        self.blocks.values().map(bytes).sum()
    }

    /// How many entries named no page of the map.
    pub fn strays(&self) -> u64 {
        self.strays
    }
}
