//! The VMM's declarations on lost contents: which pages have lost them, and which have contents
//! again.
//!
//! This file turns bytes of a block into pages of its backing memory. What a declared page means to
//! the rest of brant is in `poisoned`.

use super::block::{Block, BlockId};
use super::map::{no_block, Memory};
use crate::error::{Error, Kind, Result};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::Arc;

/// How many runs of pages a message lists.
const DESCRIBED: usize = 4;

impl Memory {
    /// Declares the contents of `length` bytes at `offset` of a block lost. Every page with a byte
    /// in the range counts, in the unit of the block's backing memory, because the kernel takes it
    /// away whole. May be called on any thread at any time; takes a lock that is held for
    /// microseconds.
    pub fn mark_poisoned(&self, block: BlockId, offset: Bytes, length: Bytes) -> Result<()> {
        let (block, range) = self.backing_pages(block, offset, length)?;
        block.poisoned().set(&range, true)
    }

    /// Says that the pages of a range have contents again, written by the VMM or by a guest that is
    /// being reset. They count as written, for every tracker.
    pub fn clear_poisoned(&self, block: BlockId, offset: Bytes, length: Bytes) -> Result<()> {
        let (block, range) = self.backing_pages(block, offset, length)?;
        let mut at = Pages(range.start);
        while let Some(run) = block.poisoned().next(at..Pages(range.end)) {
            let run = run.start.0..run.end.0;
            // The pages stop being ignored first. Otherwise a walk in between would use the mark
            // up.
            block.poisoned().set(&run, false)?;
            at = Pages(run.end);
            self.tell_written(block.id(), run);
        }
        Ok(())
    }

    /// How many pages are declared lost, in all blocks.
    pub fn poisoned_pages(&self) -> u64 {
        self.with_map(|map| map.blocks().iter().map(|b| b.poisoned().count()).sum())
    }

    /// Where the declared pages are, in words: the first few runs.
    pub(crate) fn describe_poisoned(&self) -> String {
        let map = self.map();
        let mut runs = Vec::new();
        for block in map.blocks() {
            let mut at = Pages(0);
            while let Some(run) = block.poisoned().next(at..block.pages()) {
                if runs.len() == DESCRIBED {
                    runs.push("and others".to_owned());
                    return runs.join(", ");
                }
                at = run.end;
                runs.push(format!(
                    "block `{}`, offset {:#x}, {} bytes",
                    block.name(),
                    run.start.bytes().0,
                    (run.end - run.start).bytes()
                ));
            }
        }
        runs.join(", ")
    }

    fn backing_pages(
        &self,
        id: BlockId,
        offset: Bytes,
        length: Bytes,
    ) -> Result<(Arc<Block>, Range<u64>)> {
        let map = self.map();
        let block = map.block(id).ok_or_else(|| no_block(id))?;
        let end = offset.0.checked_add(length.0);
        let Some(end) = end.filter(|end| *end <= block.length().0 && length.0 > 0) else {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "block `{}` has {} bytes; {length} from offset {offset} are none, or reach \
                     past its end",
                    block.name(),
                    block.length()
                ),
            ));
        };
        // The block may begin and end in the middle of a page of its backing memory.
        let (host, unit) = (block.host() as u64, block.page_size().0);
        let first = ((host + offset.0) / unit * unit).saturating_sub(host);
        let last = ((host + end).div_ceil(unit) * unit - host).min(block.length().0);
        Ok((Arc::clone(block), first / PAGE_SIZE..last / PAGE_SIZE))
    }
}
