//! The blocks that a tracker knows, by number, and the pending pages of each for each consumer.
//!
//! A block's number is never used again. A table with a place for every number would grow for as
//! long as memory is plugged and unplugged, so this one holds only present blocks. The total of a
//! consumer's pending pages is kept beside it: a migration asks for the total with every batch, and
//! a sum over thousands of blocks would cost more than the batch.

use super::beside::Beside;
use crate::bits::chunks::Chunks;
use crate::bits::summary::Bitmap;
use crate::bits::words;
use crate::error::Result;
use crate::memory::{Block, BlockId};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The number of one of a tracker's consumers: an index into the tracker's table of them.
pub(super) type Seat = usize;

/// Which news a consumer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// None: it has not been started, or was stopped.
    Stopped,
    /// The pages that each sync finds.
    Following,
    /// New memory only: the guest stands still, and the last harvest has been merged.
    Frozen,
}

/// One block's pages as one consumer sees them.
pub(super) struct PageSet {
    /// Pages that the consumer has still to take.
    pub pending: Pending,
    /// Pages that were named as ballooned or hinted as free.
    pub beside: Beside,
    /// The consumer's phase.
    pub phase: Phase,
    /// No page from this one on was handed out since the consumer was started, or had all pages
    /// made pending. A walk over all pages goes upwards, so one number tells first times from later
    /// ones.
    pub fresh_from: u64,
}

impl PageSet {
    /// Where a run that begins at `first` must end at the latest: a run is handed out for the first
    /// time as a whole or not at all.
    pub fn cut_at_fresh(&self, first: u64) -> u64 {
        match first < self.fresh_from {
            true => self.fresh_from,
            false => u64::MAX,
        }
    }
}

/// One block as the tracker knows it.
pub(super) struct BlockState {
    /// The block from which pins are made.
    pub pin_source: Arc<Block>,
    /// `None` if every log clears by itself, or everything is cleared at a sync.
    pub chunks: Option<Chunks>,
    /// The page sets, by consumer. `None` for a consumer that was never started.
    pub sets: Vec<Option<PageSet>>,
    /// Where a log that merges by itself merges to when there are several consumers. Empty except
    /// during that merge.
    pub between: Option<Bitmap>,
}

impl BlockState {
    pub fn new(block: &Arc<Block>, chunks: Option<Chunks>) -> Self {
        BlockState {
            pin_source: Arc::clone(block),
            chunks,
            sets: Vec::new(),
            between: None,
        }
    }

    pub fn set(&self, seat: Seat) -> Option<&PageSet> {
        self.sets.get(seat)?.as_ref()
    }

    pub fn set_mut(&mut self, seat: Seat) -> Option<&mut PageSet> {
        self.sets.get_mut(seat)?.as_mut()
    }

    /// Gives a consumer an empty set, in phase stopped. `total` counts its pending pages in all
    /// blocks.
    pub fn make_set(&mut self, seat: Seat, total: &Arc<AtomicU64>) -> Result<()> {
        let pages = self.pin_source.pages().index();
        if self.sets.len() <= seat {
            self.sets.resize_with(seat + 1, || None);
        }
        let others = self.sets.iter().enumerate();
        if others
            .filter(|(i, set)| *i != seat && set.is_some())
            .count()
            > 0
            && self.between.is_none()
        {
            self.between = Some(Bitmap::new(pages)?);
        }
        match &mut self.sets[seat] {
            Some(set) => {
                set.pending.with(Bitmap::clear_all);
                set.beside = Beside::default();
                set.phase = Phase::Stopped;
                set.fresh_from = 0;
            }
            empty => {
                *empty = Some(PageSet {
                    pending: Pending {
                        bits: Bitmap::on_huge_pages(pages)?,
                        total: Arc::clone(total),
                        counts: true,
                    },
                    beside: Beside::default(),
                    phase: Phase::Stopped,
                    fresh_from: 0,
                });
            }
        }
        Ok(())
    }

    /// Frees the set of a consumer that is gone.
    pub fn drop_set(&mut self, seat: Seat) {
        if let Some(set) = self.sets.get_mut(seat) {
            *set = None;
        }
        while self.sets.last().is_some_and(Option::is_none) {
            self.sets.pop();
        }
        if self.sets.iter().flatten().count() < 2 {
            self.between = None;
        }
    }

    /// Makes pages pending for every started consumer, also for a frozen one.
    pub fn set_for_all(&mut self, first: usize, pages: usize) {
        let sets = self.sets.iter_mut().flatten();
        for set in sets.filter(|set| set.phase != Phase::Stopped) {
            set.pending.set_range(first, pages);
        }
    }

    pub fn heap_bytes(&self) -> u64 {
        let sets = self.sets.iter().flatten();
        let of_sets = sets.map(|s| s.pending.heap_bytes() as u64 + s.beside.heap_bytes());
        of_sets.sum::<u64>()
            + self.chunks.as_ref().map_or(0, |c| c.heap_bytes() as u64)
            + self.between.as_ref().map_or(0, |b| b.heap_bytes() as u64)
    }
}

/// A block's pending pages. They are read like a [`Bitmap`]; each change also changes the total.
pub(super) struct Pending {
    bits: Bitmap,
    /// The consumer's total over all blocks. Changed only under the tracker's lock.
    total: Arc<AtomicU64>,
    /// Whether these pages are part of the total. They are not while the block is set aside.
    counts: bool,
}

impl Pending {
    /// Lets `change` change the bits in any way, and corrects the total.
    pub fn with<R>(&mut self, change: impl FnOnce(&mut Bitmap) -> R) -> R {
        /// Corrects the total also when `change` panics in the middle.
        struct Counting<'a>(&'a mut Pending, u64);
        impl Drop for Counting<'_> {
            fn drop(&mut self) {
                if self.0.counts {
                    let total = self.0.total.load(Ordering::Relaxed);
                    let total = total + self.0.bits.count() - self.1;
                    self.0.total.store(total, Ordering::Relaxed);
                }
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

    /// See [`Bitmap::merge_words`]; says also how many bits were pending before.
    pub fn merge_words(&mut self, at: usize, words: &[u64], nbits: usize) -> words::BitCounts {
        self.with(|bits| bits.merge_words_counted(at, words, nbits))
    }
}

impl Deref for Pending {
    type Target = Bitmap;
    fn deref(&self) -> &Bitmap {
        &self.bits
    }
}

impl Pending {
    /// Makes these pages part of the total, or not.
    fn set_counts(&mut self, counts: bool) {
        let total = self.total.load(Ordering::Relaxed);
        let total = match (self.counts, counts) {
            (true, false) => total - self.bits.count(),
            (false, true) => total + self.bits.count(),
            _ => total,
        };
        self.total.store(total, Ordering::Relaxed);
        self.counts = counts;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.set_counts(false);
    }
}

/// See the file's description.
#[derive(Default)]
pub(super) struct Blocks {
    by_id: BTreeMap<BlockId, BlockState>,
}

impl Blocks {
    /// Adds a block without any pending page. A block that is there already gets fresh chunks, none
    /// of them armed.
    pub fn add(&mut self, block: &Arc<Block>, chunk_shift: Option<u32>) -> Result<()> {
        let chunks = match chunk_shift {
            Some(shift) => Some(Chunks::new(block.pages().index(), shift)?),
            None => None,
        };
        match self.by_id.get_mut(&block.id()) {
            Some(state) => state.chunks = chunks,
            None => {
                self.by_id
                    .insert(block.id(), BlockState::new(block, chunks));
            }
        }
        Ok(())
    }

    pub fn get_mut(&mut self, id: BlockId) -> Option<&mut BlockState> {
        self.by_id.get_mut(&id)
    }

    /// The first block whose number is at least `id`.
    pub fn at_or_after(&mut self, id: BlockId) -> Option<(BlockId, &mut BlockState)> {
        let mut from = self.by_id.range_mut(id..);
        from.next().map(|(id, state)| (*id, state))
    }

    /// All blocks, by number.
    pub fn iter(&self) -> impl Iterator<Item = &BlockState> {
        self.by_id.values()
    }

    /// All blocks, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut BlockState> {
        self.by_id.values_mut()
    }

    pub fn remove(&mut self, id: BlockId) {
        self.by_id.remove(&id);
    }

    /// Moves these blocks to `other`, and with them all that is known of their pages. `counts` says
    /// whether the pages are part of the totals there.
    pub fn move_into(&mut self, other: &mut Blocks, blocks: &[Arc<Block>], counts: bool) {
        for block in blocks {
            if let Some(mut state) = self.by_id.remove(&block.id()) {
                for set in state.sets.iter_mut().flatten() {
                    set.pending.set_counts(counts);
                }
                other.by_id.insert(block.id(), state);
            }
        }
    }

    /// Bytes of memory that bitmaps hold.
    pub fn heap_bytes(&self) -> u64 {
        self.iter().map(BlockState::heap_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing::Guest;

    #[test]
    fn the_total_of_each_consumer_is_the_sum_over_the_blocks_whatever_changes_them() {
        let guest = Guest::new(3000);
        let ids: Vec<BlockId> = (0..3).map(|i| guest.block(&i.to_string(), 1000)).collect();
        let map = guest.memory.map();
        let mut blocks = Blocks::default();
        let totals: [Arc<AtomicU64>; 2] = Default::default();
        for id in &ids {
            blocks.add(map.block(*id).unwrap(), Some(6)).unwrap();
            let state = blocks.get_mut(*id).unwrap();
            for (seat, total) in totals.iter().enumerate() {
                state.make_set(seat, total).unwrap();
            }
        }
        let check = |blocks: &Blocks, expected: [u64; 2]| {
            for (seat, expected) in expected.into_iter().enumerate() {
                let sets = blocks.iter().filter_map(|b| b.set(seat));
                let sum: u64 = sets.map(|set| set.pending.count()).sum();
                let total = totals[seat].load(Ordering::Relaxed);
                assert_eq!((total, sum), (expected, expected));
            }
        };
        let mut change = |at: usize, seat: Seat, change: &dyn Fn(&mut Pending)| {
            let state = blocks.get_mut(ids[at]).unwrap();
            change(&mut state.set_mut(seat).unwrap().pending);
        };
        change(0, 0, &|p| assert_eq!(p.set_all(), 1000));
        change(1, 0, &|p| assert_eq!(p.set_range(10, 20), 20));
        change(1, 1, &|p| assert_eq!(p.set_range(0, 20), 20));
        change(0, 0, &|p| assert_eq!(p.clear_range(500, 9999), 500));
        change(2, 1, &|p| {
            assert_eq!(p.merge_words(999, &[0b1011], 64).new, 1)
        });
        check(&blocks, [520, 21]);
        let mut change = |at: usize, seat: Seat, change: &dyn Fn(&mut Pending)| {
            let state = blocks.get_mut(ids[at]).unwrap();
            change(&mut state.set_mut(seat).unwrap().pending);
        };
        change(2, 1, &|p| assert_eq!(p.with(Bitmap::clear_all), 1));
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            change(2, 1, &|p| {
                p.with(|bits| {
                    bits.set_range(0, 7);
                    std::panic::resume_unwind(Box::new(()))
                })
            })
        }));
        assert!(broken.is_err());
        check(&blocks, [520, 27]);
        blocks.remove(ids[0]);
        check(&blocks, [20, 27]);
        for state in blocks.iter_mut() {
            state.drop_set(1);
        }
        check(&blocks, [20, 0]);
        let state = blocks.get_mut(ids[1]).unwrap();
        state.make_set(0, &totals[0]).unwrap();
        check(&blocks, [0, 0]);
    }

    #[test]
    fn memory_is_there_for_those_consumers_that_are() {
        let guest = Guest::new(1 << 15);
        let id = guest.block("ram", 1 << 15);
        let map = guest.memory.map();
        let mut blocks = Blocks::default();
        blocks.add(map.block(id).unwrap(), None).unwrap();
        let total = Arc::default();
        assert_eq!(blocks.heap_bytes(), 0);
        let state = blocks.get_mut(id).unwrap();
        state.make_set(0, &total).unwrap();
        let one = state.heap_bytes();
        assert!(one > 0);
        state.make_set(2, &total).unwrap();
        let two = state.heap_bytes();
        assert!(two > one);
        state.drop_set(0);
        assert_eq!(state.heap_bytes(), one);
        assert!(state.set(2).is_some());
        state.drop_set(2);
        assert_eq!((state.heap_bytes(), state.sets.len()), (0, 0));
    }
}
