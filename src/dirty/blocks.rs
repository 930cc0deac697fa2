//! The blocks that a tracker knows, by number, and what of each is pending.
//!
//! A block's number is never used again, so a table with a place for every number would grow
//! for as long as memory is plugged and unplugged. This one holds what is there now. The
//! total of what is pending is kept beside it: whoever sends asks for it with every batch, and a
//! sum over thousands of blocks would cost more than the batch.

use super::skip::Beside;
use crate::bits::chunks::Chunks;
use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::memory::{Block, BlockId};
use crate::units::Pages;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// One block as the tracker knows it.
pub(super) struct BlockState {
    /// What pins are made from.
    pub pin_source: Arc<Block>,
    /// Pages still to be handed out.
    pub pending: Pending,
    /// `None` when no log leaves clearing to us, or all is cleared at sync.
    pub chunks: Option<Chunks>,
    /// What was skipped, and what was hinted at.
    pub beside: Beside,
}

/// A block's pending pages. Read like a [`Bitmap`]; what changes them changes the total too.
pub(super) struct Pending {
    bits: Bitmap,
    /// Of all blocks. Changed under the tracker's lock alone.
    total: Arc<AtomicU64>,
}

impl Pending {
    /// Lets `change` change the bits in any way.
    pub fn with<R>(&mut self, change: impl FnOnce(&mut Bitmap) -> R) -> R {
        /// Also when `change` panics in the middle.
        struct Counting<'a>(&'a mut Pending, u64);
        impl Drop for Counting<'_> {
            fn drop(&mut self) {
                let total = self.0.total.load(Ordering::Relaxed);
                let total = total + self.0.bits.count() - self.1;
                self.0.total.store(total, Ordering::Relaxed);
            }
        }
        let before = self.bits.count();
        let counting = Counting(self, before);
        change(&mut counting.0.bits)
    }

    /// [`Bitmap::set_range`].
    pub fn set_range(&mut self, start: usize, n: usize) -> u64 {
        self.with(|bits| bits.set_range(start, n))
    }

    /// [`Bitmap::clear_range`].
    pub fn clear_range(&mut self, start: usize, n: usize) -> u64 {
        self.with(|bits| bits.clear_range(start, n))
    }

    /// [`Bitmap::set_all`].
    pub fn set_all(&mut self) -> u64 {
        self.with(Bitmap::set_all)
    }

    /// [`Bitmap::merge_words`].
    pub fn merge_words(&mut self, at: usize, words: &[u64], nbits: usize) -> u64 {
        self.with(|bits| bits.merge_words(at, words, nbits))
    }
}

impl Deref for Pending {
    type Target = Bitmap;
    fn deref(&self) -> &Bitmap {
        &self.bits
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let total = self.total.load(Ordering::Relaxed);
        self.total
            .store(total - self.bits.count(), Ordering::Relaxed);
    }
}

/// See the file's description.
#[derive(Default)]
pub(super) struct Blocks {
    by_id: BTreeMap<BlockId, BlockState>,
    total: Arc<AtomicU64>,
}

impl Blocks {
    /// Adds a block, of which no page is pending; the number must be new.
    pub fn add(&mut self, block: &Arc<Block>, chunk_shift: Option<u32>) -> Result<()> {
        let pages = block.pages().index();
        let state = BlockState {
            pin_source: Arc::clone(block),
            pending: Pending {
                bits: Bitmap::new(pages)?,
                total: Arc::clone(&self.total),
            },
            chunks: match chunk_shift {
                Some(shift) => Some(Chunks::new(pages, shift)?),
                None => None,
            },
            beside: Beside::default(),
        };
        self.by_id.insert(block.id(), state);
        Ok(())
    }

    pub fn get_mut(&mut self, id: BlockId) -> Option<&mut BlockState> {
        self.by_id.get_mut(&id)
    }

    /// The first block whose number is `id` or more.
    pub fn at_or_after(&mut self, id: BlockId) -> Option<(BlockId, &mut BlockState)> {
        let mut from = self.by_id.range_mut(id..);
        from.next().map(|(id, state)| (*id, state))
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = &BlockState> {
        self.by_id.values()
    }

    /// All of them, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut BlockState> {
        self.by_id.values_mut()
    }

    pub fn clear(&mut self) {
        self.by_id.clear();
    }

    pub fn remove(&mut self, id: BlockId) {
        self.by_id.remove(&id);
    }

    /// Pages pending in all of them.
    pub fn pending(&self) -> Pages {
        Pages(self.total.load(Ordering::Relaxed))
    }

    /// Bytes of bitmaps.
    pub fn heap_bytes(&self) -> u64 {
        let each = self.iter().map(|b| {
            b.pending.heap_bytes() as u64
                + b.beside.heap_bytes()
                + b.chunks.as_ref().map_or(0, |c| c.heap_bytes() as u64)
        });
        each.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing::Guest;

    #[test]
    fn the_total_is_the_sum_over_the_blocks_whatever_changes_them() {
        let guest = Guest::new(3000);
        let ids: Vec<BlockId> = (0..3).map(|i| guest.block(&i.to_string(), 1000)).collect();
        let map = guest.memory.map();
        let mut blocks = Blocks::default();
        for id in &ids {
            blocks.add(map.block(*id).unwrap(), Some(6)).unwrap();
        }
        let check = |blocks: &Blocks, expected: u64| {
            let sum: u64 = blocks.iter().map(|b| b.pending.count()).sum();
            assert_eq!((blocks.pending().0, sum), (expected, expected));
        };
        check(&blocks, 0);
        blocks.get_mut(ids[0]).unwrap().pending.set_all();
        check(&blocks, 1000);
        blocks.get_mut(ids[1]).unwrap().pending.set_range(10, 20);
        blocks.get_mut(ids[1]).unwrap().pending.set_range(0, 20);
        check(&blocks, 1030);
        blocks
            .get_mut(ids[0])
            .unwrap()
            .pending
            .clear_range(500, 9999);
        check(&blocks, 530);
        let words = [0b1011];
        let merged = |b: &mut BlockState| b.pending.merge_words(999, &words, 64);
        assert_eq!(blocks.get_mut(ids[2]).map(merged), Some(1));
        check(&blocks, 531);
        blocks
            .get_mut(ids[2])
            .unwrap()
            .pending
            .with(|b| b.clear_all());
        check(&blocks, 530);
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let pending = &mut blocks.get_mut(ids[2]).unwrap().pending;
            pending.with(|b| {
                b.set_range(0, 7);
                std::panic::resume_unwind(Box::new(()))
            })
        }));
        assert!(broken.is_err());
        check(&blocks, 537);
        blocks.remove(ids[0]);
        check(&blocks, 37);
        blocks.remove(ids[1]);
        check(&blocks, 7);
        blocks.clear();
        check(&blocks, 0);
    }
}
