//! Holes of a block that userfaultfd's protection hides.
//!
//! Protecting a page that was never touched puts a marker into its page-table entry. Queries then
//! take the page for one in swap. So the log notes which pages had no entry, as the call that
//! protected them reported, and removes a page from the note when it finds it written.
//! [`super::contents`] reads the note. A noted page reads as zero: it was a hole when it was
//! protected, and no harvest has found it written since. A write after the last harvest is found by
//! the next one.

use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::units::Pages;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// See the file's description.
#[derive(Debug)]
pub(crate) struct HiddenHoles(Mutex<Bitmap>);

impl HiddenHoles {
    /// An empty note for a block of `pages` pages. Its memory is touched only where pages are
    /// noted.
    pub(crate) fn new(pages: Pages) -> Result<HiddenHoles> {
        Ok(HiddenHoles(Mutex::new(Bitmap::new(pages.index())?)))
    }

    /// A note that stays empty, for want of memory. Holes are then read that need not be.
    pub(crate) fn none() -> Result<HiddenHoles> {
        HiddenHoles::new(Pages(0))
    }

    /// Notes pages that had no entry when they were protected.
    pub(crate) fn note(&self, range: Range<Pages>) {
        let count = range.end.0.saturating_sub(range.start.0);
        self.bits().set_range(range.start.index(), count as usize);
    }

    /// Removes pages that were found written.
    pub(crate) fn written(&self, range: Range<Pages>) {
        let mut bits = self.bits();
        // With an empty note, the cost must not grow with the number of written pages.
        if !bits.is_empty() {
            let count = range.end.0.saturating_sub(range.start.0);
            bits.clear_range(range.start.index(), count as usize);
        }
    }

    /// Calls `noted` with each run of noted pages of `range`, in order.
    pub(crate) fn runs(&self, range: Range<Pages>, mut noted: impl FnMut(Range<Pages>)) {
        let bits = self.bits();
        let mut at = range.start.index();
        let end = range.end.index();
        while at < end {
            let Some(run) = bits.next_run(at, end - at).filter(|run| run.start < end) else {
                return;
            };
            noted(Pages(run.start as u64)..Pages(run.end.min(end) as u64));
            at = run.end;
        }
    }

    /// Bytes of memory that the note holds.
    pub(crate) fn heap_bytes(&self) -> u64 {
        self.bits().heap_bytes() as u64
    }

    fn bits(&self) -> MutexGuard<'_, Bitmap> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
