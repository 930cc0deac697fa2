//! What a frozen consumer's pending is used for behind a switch to postcopy: the account of the pages that
//! the other side lacks.
//!
//! The guest stands still here and is never written again, so pending changes only by takes. A page that
//! is asked for is taken out of it wherever the walk stands, and so leaves once. After a recovery the
//! other side says what it lacks, and pending becomes exactly that.

use super::consumer::Consumer;
use super::pending::PageSet;
use super::run::{Cursor, Manner};
use super::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::memory::{Block, BlockId};
use crate::units::{Pages, PAGE_SHIFT};
use std::ops::Range;

/// What a description of pending pages takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Pending pages.
    pub(crate) pages: u64,
    /// Runs of neighbours among them.
    pub(crate) runs: u64,
}

impl Consumer {
    /// Takes the pending ones of `pages`: at most `max_runs` runs. Empty when none of them is pending.
    /// [`Consumer::take`] says all else. A removal of the block waits for the caller.
    pub(crate) fn take_run(
        &self,
        block: BlockId,
        pages: Range<Pages>,
        max_runs: usize,
    ) -> Result<Taken> {
        let mut cursor = Cursor::to(block, pages.start);
        let most = Pages(pages.end.0.saturating_sub(pages.start.0));
        let which = (false, Some((block, pages.end.0)));
        self.take_within(&mut cursor, max_runs, most, which, Manner::Recallable)
    }

    /// Copies the bits of pending pages of a block from `first` on, a multiple of 64, into `into`. Bits
    /// behind the block are 0.
    ///
    /// # Errors
    /// [`Kind::State`] when the consumer knows no such block.
    pub(crate) fn pending_words(
        &self,
        block: BlockId,
        first: Pages,
        into: &mut [u64],
    ) -> Result<()> {
        let mut inner = self.lock();
        let set = inner.any_set(self.seat(), block).ok_or_else(unknown)?;
        let words = set.pending.words();
        let from = (first.index() / 64).min(words.len());
        let end = (from + into.len()).min(words.len());
        let (there, beyond) = into.split_at_mut(end - from);
        there.copy_from_slice(&words[from..end]);
        beyond.fill(0);
        Ok(())
    }

    /// Where pages of a block are larger than 4 KiB: makes each such page pending whole when a part of it
    /// is. The other side can only lack it whole.
    pub(crate) fn round_out(&self, block: &Block) -> Result<()> {
        let step = (block.page_size().0 >> PAGE_SHIFT).max(1) as usize;
        if step == 1 {
            return Ok(());
        }
        let mut inner = self.lock();
        let set = inner.any_set(self.seat(), block.id()).ok_or_else(unknown)?;
        let mut at = 0;
        while let Some(page) = set.pending.next_set(at) {
            let first = page / step * step;
            let count = step.min(block.pages().index() - first);
            set.pending.set_range(first, count);
            at = first + count;
        }
        Ok(())
    }

    /// How pending pages lie. Costs one read of pending.
    pub(crate) fn spread(&self) -> Spread {
        let mut inner = self.lock();
        let mut spread = Spread::default();
        for set in inner.all_sets(self.seat()) {
            for run in set.pending.runs(0) {
                spread.pages += run.len() as u64;
                spread.runs += 1;
            }
        }
        spread
    }

    /// Makes nothing pending. [`Consumer::put_back`] then adds what the other side lacks.
    pub(crate) fn forget_pending(&self) {
        let mut inner = self.lock();
        let clear = |set: &mut PageSet| {
            set.pending.with(crate::bits::Bitmap::clear_all);
            set.beside.forget();
        };
        inner.all_sets(self.seat()).for_each(clear);
        inner.count_ballooned();
    }
}

fn unknown() -> Error {
    Error::new(Kind::State, "the tracker does not know such a block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing::Guest;
    use crate::dirty::tracker::{Clearing, StartWith, Tracker};

    fn started(pages: u64) -> (Guest, BlockId, Consumer) {
        let guest = Guest::new(pages as usize);
        let id = guest.block("ram", pages);
        let tracker = Tracker::new(guest.memory.clone(), Clearing::default()).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Everything).unwrap();
        consumer.freeze();
        (guest, id, consumer)
    }

    fn pages_of(taken: &Taken) -> Vec<u64> {
        let ranges = taken.runs().map(|run| run.pages.range());
        ranges
            .flat_map(|range| range.start.0..range.end.0)
            .collect()
    }

    #[test]
    fn pages_that_are_asked_for_leave_pending_once_wherever_the_walk_stands() {
        let (_guest, id, consumer) = started(2000);
        let mut cursor = Cursor::default();
        let walked = consumer
            .take_recallable(&mut cursor, 256, Pages(100))
            .unwrap();
        assert_eq!(pages_of(&walked), (0..100).collect::<Vec<_>>());
        // Half of these have gone.
        let asked = consumer.take_run(id, Pages(90)..Pages(110), 256).unwrap();
        assert_eq!(pages_of(&asked), (100..110).collect::<Vec<_>>());
        // Over a border of stretches, and nothing behind the range.
        let far = consumer
            .take_run(id, Pages(1020)..Pages(1030), 256)
            .unwrap();
        assert_eq!(pages_of(&far), (1020..1030).collect::<Vec<_>>());
        assert!(consumer
            .take_run(id, Pages(1020)..Pages(1030), 256)
            .unwrap()
            .is_empty());
        walked.delivered();
        asked.delivered();
        far.delivered();
        let mut rest = Vec::new();
        loop {
            let taken = consumer
                .take_recallable(&mut cursor, 256, Pages(500))
                .unwrap();
            if taken.is_empty() {
                break;
            }
            rest.extend(pages_of(&taken));
            taken.delivered();
        }
        let left = (110..2000).filter(|page| !(1020..1030).contains(page));
        assert_eq!(rest, left.collect::<Vec<_>>());
    }

    #[test]
    fn pending_becomes_exactly_what_the_other_side_lacks() {
        let (_guest, id, consumer) = started(300);
        assert_eq!(
            consumer.spread(),
            Spread {
                pages: 300,
                runs: 1
            }
        );
        consumer.forget_pending();
        assert_eq!(consumer.pending(), Pages(0));
        consumer.put_back(id, Pages(3), Pages(2));
        consumer.put_back(id, Pages(299), Pages(1));
        assert_eq!(consumer.spread(), Spread { pages: 3, runs: 2 });
        let mut words = [u64::MAX; 6];
        consumer.pending_words(id, Pages(0), &mut words).unwrap();
        assert_eq!(words, [0b11000, 0, 0, 0, 1 << 43, 0]);
        consumer
            .pending_words(id, Pages(256), &mut words[..1])
            .unwrap();
        assert_eq!(words[0], 1 << 43);
    }
}
