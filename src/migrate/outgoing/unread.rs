//! The pages that were sent without being read: ballooned, hinted and poisoned ones. A source that
//! verifies a migration leaves them out, because the destination has zeros for whatever they hold
//! here.
//!
//! The encoders of all lanes note in one place how they sent each page last. A page belongs to one
//! lane, so they never disagree.

use crate::bits::Stretches;
use crate::error::Result;
use crate::fallible;
use crate::memory::{Block, BlockId, PageRun};
use crate::units::Pages;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Whether any page was noted. A guest without such pages costs no lock.
    any: AtomicBool,
    /// A bit for each page. A block without such a page has none.
    blocks: Mutex<HashMap<BlockId, Arc<Stretches>>>,
}

impl Unread {
    fn lock(&self) -> MutexGuard<'_, HashMap<BlockId, Arc<Stretches>>> {
        self.blocks.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn of(&self, block: BlockId) -> Option<Arc<Stretches>> {
        self.lock().get(&block).cloned()
    }

    /// Notes that pages were sent without being read, or (`unread` is false) that they were read.
    ///
    /// # Errors
    /// When there is no memory for the bits of a block.
    pub(super) fn note(&self, block: &Block, run: &PageRun, unread: bool) -> Result<()> {
        let (first, count) = (run.first().index(), run.count().index());
        if !unread {
            // The notes on this lane's pages are this thread's own.
            if self.any.load(Ordering::Relaxed) {
                if let Some(bits) = self.of(block.id()) {
                    bits.clear_range(first, count);
                }
            }
            return Ok(());
        }
        self.any.store(true, Ordering::Relaxed);
        let bits = match self.of(block.id()) {
            Some(bits) => bits,
            None => {
                let new = Arc::new(Stretches::new(block.pages().index())?);
                let mut blocks = self.lock();
                // Another lane may have been first.
                match blocks.get(&block.id()) {
                    Some(bits) => Arc::clone(bits),
                    None => {
                        let bits = Arc::clone(&new);
                        fallible::insert(&mut blocks, block.id(), new, "pages that are not read")?;
                        bits
                    }
                }
            }
        };
        bits.set_range(first, count);
        Ok(())
    }

    /// Calls `each` with each run of pages of `range` that was sent last without being read.
    pub(super) fn runs(
        &self,
        block: BlockId,
        range: Range<Pages>,
        mut each: impl FnMut(Range<Pages>),
    ) {
        let Some(bits) = self.of(block) else {
            return;
        };
        let (mut at, end) = (range.start.index(), range.end.index());
        while let Some(run) = bits.next_run(at..end) {
            at = run.end;
            each(Pages(run.start as u64)..Pages(run.end as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing::Guest;

    #[test]
    fn a_page_counts_as_unread_when_its_last_sending_did_not_read_it() {
        let guest = Guest::new(2000);
        guest.block("ram", 2000);
        let block = Arc::clone(&guest.memory.map().blocks()[0]);
        let unread = Unread::default();
        let note = |first, count, is| {
            let run = block.run(Pages(first), Pages(count)).unwrap();
            unread.note(&block, &run, is).unwrap();
        };
        let now = || {
            let mut runs = Vec::new();
            unread.runs(block.id(), Pages(0)..Pages(2000), |run| {
                runs.push((run.start.0, run.end.0));
            });
            runs
        };
        note(5, 10, false);
        assert_eq!(now(), []);
        note(510, 2, true);
        note(512, 100, true);
        assert_eq!(now(), [(510, 612)]);
        note(550, 10, false);
        note(1999, 1, true);
        assert_eq!(now(), [(510, 550), (560, 612), (1999, 2000)]);
        note(555, 1, true);
        assert_eq!(now(), [(510, 550), (555, 556), (560, 612), (1999, 2000)]);
    }
}
