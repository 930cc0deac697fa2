//! Pages whose contents are lost, as the VMM has declared them.
//!
//! Memory fails by hardware: the kernel takes the page away and sends the VMM SIGBUS
//! (`BUS_MCEERR_AO`, `BUS_MCEERR_AR`). There is nothing left to send, and an attempt to read is an
//! error ([`super::access`]). A VMM that wants its guest to go on, and to move, declares such
//! pages here. A declared page is neither read nor sent, however often it is found dirty. At the
//! destination it reads as zero, unless its contents had arrived there before they were lost and
//! nothing was written since: then it holds those.
//!
//! Who asks: the sender, before it looks at a page, and rate sampling. Harvests and pending know
//! nothing of this: a page that gets contents again was never missing there.

use super::block::Block;
use super::map::{no_block, Memory};
use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How many runs of pages a message lists.
const DESCRIBED: usize = 4;

/// The poisoned pages of one block.
pub struct Poisoned {
    pages: u64,
    /// Only a hint without the lock.
    count: AtomicU64,
    /// Made with the first of them.
    bits: Mutex<Option<Bitmap>>,
}

impl std::fmt::Debug for Poisoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Poisoned({} of {})", self.count(), self.pages)
    }
}

impl Poisoned {
    pub(super) fn new(pages: Pages) -> Self {
        Poisoned {
            pages: pages.0,
            count: AtomicU64::new(0),
            bits: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Bitmap>> {
        self.bits.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many pages are declared.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn set(&self, range: &Range<u64>, poisoned: bool) -> Result<()> {
        let (from, len) = (range.start as usize, (range.end - range.start) as usize);
        let mut guard = self.lock();
        if guard.is_none() && poisoned {
            *guard = Some(Bitmap::new(self.pages as usize)?);
        }
        if let Some(bits) = &mut *guard {
            if poisoned {
                bits.set_range(from, len);
            } else {
                bits.clear_range(from, len);
            }
            self.count.store(bits.count(), Ordering::Release);
        }
        Ok(())
    }

    /// Contents arrive for pages: they have some again.
    pub(crate) fn arrived(&self, range: Range<u64>) {
        if self.count() != 0 {
            // Clearing allocates nothing.
            let _ = self.set(&range, false);
        }
    }

    /// The first run of declared pages in `range`.
    pub fn next(&self, range: Range<Pages>) -> Option<Range<Pages>> {
        if self.count() == 0 || range.start >= range.end {
            return None;
        }
        let guard = self.lock();
        let (from, end) = (range.start.index(), range.end.index());
        let start = guard.as_ref()?.next_set_before(from, end)?;
        let run = guard.as_ref()?.next_run(start, end - start)?;
        Some(Pages(start as u64)..Pages(run.end.min(end) as u64))
    }

    /// Calls `each` with the runs that `range` is made of, and whether a run's pages are declared.
    /// No lock is held meanwhile.
    pub fn split(
        &self,
        range: Range<Pages>,
        mut each: impl FnMut(Range<Pages>, bool) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let lost = self.next(at..range.end).unwrap_or(range.end..range.end);
            if at < lost.start {
                each(at..lost.start, false)?;
            }
            if lost.start < lost.end {
                each(lost.clone(), true)?;
            }
            at = lost.end;
        }
        Ok(())
    }
}

impl Memory {
    /// The contents of `length` bytes at `offset` of a block are lost. Every page with a byte in
    /// the range counts: a page of what backs the block, as the kernel takes it away whole. Any
    /// thread, at any time; takes a lock that is held for microseconds.
    pub fn mark_poisoned(&self, block: &str, offset: Bytes, length: Bytes) -> Result<()> {
        let (block, range) = self.backing_pages(block, offset, length)?;
        block.poisoned().set(&range, true)
    }

    /// The pages of a range have contents again, written by the VMM or by a guest that is being
    /// reset: they count as written, for every tracker.
    pub fn clear_poisoned(&self, block: &str, offset: Bytes, length: Bytes) -> Result<()> {
        let (block, range) = self.backing_pages(block, offset, length)?;
        let mut at = Pages(range.start);
        while let Some(run) = block.poisoned().next(at..Pages(range.end)) {
            let run = run.start.0..run.end.0;
            // It stops being passed over first: a walk between the two would use the mark up.
            block.poisoned().set(&run, false)?;
            at = Pages(run.end);
            self.tell_taken(block.id(), run);
        }
        Ok(())
    }

    /// How many pages are declared, in all blocks.
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
        name: &str,
        offset: Bytes,
        length: Bytes,
    ) -> Result<(Arc<Block>, Range<u64>)> {
        let map = self.map();
        let block = map.block_named(name).ok_or_else(|| no_block(name))?;
        let end = offset.0.checked_add(length.0);
        let Some(end) = end.filter(|end| *end <= block.length().0 && length.0 > 0) else {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "block `{name}` has {} bytes; {length} from offset {offset} are none, or \
                     reach past its end",
                    block.length()
                ),
            ));
        };
        // The block may begin and end in the middle of what backs it.
        let (host, unit) = (block.host() as u64, block.page_size().0);
        let first = ((host + offset.0) / unit * unit).saturating_sub(host);
        let last = ((host + end).div_ceil(unit) * unit - host).min(block.length().0);
        Ok((Arc::clone(block), first / PAGE_SIZE..last / PAGE_SIZE))
    }
}

#[cfg(test)]
mod tests;
