//! The data of [`super::ballooned`] and [`super::hints`]: for each consumer and block two bitmaps
//! beside pending, made when first needed, and for the tracker the current round of hints.

use super::run::Content;
use crate::bits::summary::Bitmap;
use std::ops::Range;

/// One block's bits beside its pending pages.
#[derive(Default)]
pub(super) struct Beside {
    /// Ballooned pages that were handed out as ballooned since they were inflated. Their protection
    /// was restored then, so such a page that is pending again was written.
    pub passed: Option<Bitmap>,
    /// Pages that a hint took out of pending, and that were not handed out since.
    pub free: Option<Bitmap>,
}

/// The same range as a first bit and a number of bits.
pub(super) fn range_of(range: &Range<u64>) -> (usize, usize) {
    (
        range.start as usize,
        range.end.saturating_sub(range.start) as usize,
    )
}

impl Beside {
    /// Whether no page is to be handed out as free.
    pub fn none_free(&self) -> bool {
        self.free.as_ref().is_none_or(Bitmap::is_empty)
    }

    pub fn heap_bytes(&self) -> u64 {
        let both = [&self.passed, &self.free];
        both.into_iter()
            .flatten()
            .map(|b| b.heap_bytes() as u64)
            .sum()
    }

    /// Forgets both bitmaps, because every page is pending again, and not because it was written.
    pub fn forget(&mut self) {
        for bits in [&mut self.passed, &mut self.free].into_iter().flatten() {
            bits.clear_all();
        }
    }

    pub fn put_back(&mut self, range: Range<u64>) {
        let (from, len) = range_of(&range);
        if let Some(passed) = &mut self.passed {
            passed.clear_range(from, len);
        }
    }

    pub fn handed_out(&mut self, range: Range<u64>, content: Content) {
        let (from, len) = range_of(&range);
        if let Some(free) = &mut self.free {
            free.clear_range(from, len);
        }
        match (&mut self.passed, content) {
            (Some(passed), Content::Ballooned) => passed.set_range(from, len),
            (Some(passed), Content::Used) => passed.clear_range(from, len),
            (_, Content::Free) | (None, _) => 0,
        };
    }
}

/// The current round of hints.
#[derive(Debug, Default)]
pub(super) struct Hints {
    last: u64,
    open: bool,
}

impl Hints {
    /// Ends the round: hints that were given so far count, and later ones come too late.
    pub fn close(&mut self) {
        self.open = false;
    }

    pub fn begin(&mut self) -> u64 {
        self.last += 1;
        self.open = true;
        self.last
    }

    pub fn goes_on(&self, round: u64) -> bool {
        self.open && self.last == round
    }
}
