//! Poisoned pages: their contents are lost, as the VMM has declared.
//!
//! When memory fails, the kernel takes the page away and sends the VMM SIGBUS (`BUS_MCEERR_AO`,
//! `BUS_MCEERR_AR`). There is nothing left to send, and an attempt to read the page is an error
//! ([`super::access`]). If a VMM wants its guest to go on, and to move, it declares such pages
//! ([`mark_poisoned`](crate::memory::Memory::mark_poisoned)). A declared page is neither read nor
//! sent, however often it is found dirty. At the destination it reads as zero, unless its contents
//! had arrived there before they were lost, and nothing was written since: then it holds those.
//!
//! The sender asks this file before it looks at a page, and so does rate sampling. Harvests and
//! pending do not: a page that gets contents again was never missing there.

use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::units::Pages;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// The poisoned pages of one block.
pub struct Poisoned {
    pages: u64,
    /// How many pages are declared. Without the lock this is only a hint.
    count: AtomicU64,
    /// Made when the first page is declared.
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

    /// Declares pages, or withdraws the declaration.
    pub(super) fn set(&self, range: &Range<u64>, poisoned: bool) -> Result<()> {
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

    /// Contents arrive for pages, which ends their declaration.
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

    /// Calls `each` with the runs that make up `range`, and whether a run's pages are declared. No
    /// lock is held during the call.
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

#[cfg(test)]
mod tests;
