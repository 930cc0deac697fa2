//! Ballooned pages in a walk: which pending pages are named as ballooned instead of read, and which
//! of them were written after all.
//!
//! A page stays ballooned until the guest deflates the balloon by it. The set of ballooned pages is
//! kept with the block ([`crate::memory::ballooned`]). It is empty unless the guest has to tell
//! before it uses such a page again.
//!
//! A consumer that skips ballooned pages ([`super::consumer::Consumer::skip_ballooned`]) gets them
//! as [`super::run::Content::Ballooned`]. They are named once, for the holder of a copy, and are
//! not to be read. Their protection is restored before that, as for every page. If such a page is
//! found dirty *afterwards*, the guest broke its promise, or somebody marked the page. It is no
//! longer ballooned then, since a broken promise is no reason to lose memory. A log cannot tell a
//! write before the inflate from a write after it if both come between two harvests. There the
//! guest's promise counts.
//!
//! Each consumer has this state for itself: a page that a migration skips is pending as before for
//! a backup. Hints of free pages are in [`super::hints`].

use super::beside::range_of;
use super::pending::{BlockState, PageSet, Seat};
use crate::bits::summary::Bitmap;
use crate::memory::ballooned::Claim;
use crate::memory::Block;
use crate::units::STRETCH_PAGES;
use std::ops::Range;

impl BlockState {
    /// What the pages from the start of `range` are for a consumer that skips ballooned pages.
    /// Their protection has been restored.
    pub(super) fn claim(&mut self, seat: Seat, range: Range<u64>) -> Claim {
        let BlockState {
            pin_source, sets, ..
        } = self;
        let Some(Some(set)) = sets.get_mut(seat) else {
            return Claim::Used(range.end - range.start);
        };
        let claim = set.claim(pin_source, range);
        if let Claim::Written(page) = &claim {
            // Every other consumer that was told that the host page is ballooned is told that it is
            // not.
            for set in sets
                .iter_mut()
                .flatten()
                .filter(|s| s.beside.passed.is_some())
            {
                set.is_used(page);
            }
        }
        claim
    }
}

impl PageSet {
    fn claim(&mut self, block: &Block, range: Range<u64>) -> Claim {
        let passed = &mut self.beside.passed;
        let all = Claim::Used(range.end - range.start);
        let claim = block.ballooned().claim(range, passed.as_ref());
        match &claim {
            Claim::Ballooned(_) if passed.is_none() => match Bitmap::new(block.pages().index()) {
                Ok(bits) => *passed = Some(bits),
                // The page is sent like any other, and stays ballooned.
                Err(_) => return all,
            },
            Claim::Written(page) => self.is_used(page),
            _ => {}
        }
        claim
    }

    /// The guest uses these pages again, so they must be read.
    fn is_used(&mut self, pages: &Range<u64>) {
        let (from, len) = range_of(pages);
        self.pending.set_range(from, len);
        if let Some(passed) = &mut self.beside.passed {
            passed.clear_range(from, len);
        }
    }

    /// The next run of pages in `from..end` that are both pending and ballooned.
    pub(super) fn next_ballooned(&self, block: &Block, from: u64, end: u64) -> Option<Range<u64>> {
        let ballooned = block.ballooned();
        let mut at = from;
        loop {
            let page = ballooned.next_before(at, end)?;
            let run = self.next_pending(page, end)?;
            if run.start == page {
                return Some(run);
            }
            at = run.start;
        }
    }

    /// The next run of pending pages in `from..end`, cut at the end of its stretch, where every run
    /// that is handed out ends. A longer look would cost all pending pages again for each stretch.
    pub(super) fn next_pending(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let start = self.pending.next_set_before(from as usize, end as usize)?;
        let stretch_end = (start as u64 / STRETCH_PAGES + 1) * STRETCH_PAGES;
        let run = self
            .pending
            .next_run_before(start, end.min(stretch_end) as usize)?;
        Some(run.start as u64..run.end as u64)
    }

    /// The next run of pages in `from..end`, within one stretch, that are to be handed out as free.
    pub(super) fn next_free(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let free = self.beside.free.as_ref()?;
        let run = free.next_run_before(from as usize, end as usize)?;
        let start = run.start as u64;
        let stretch_end = (start / STRETCH_PAGES + 1) * STRETCH_PAGES;
        let end = (run.end as u64).min(stretch_end);
        Some(start..end.min(self.cut_at_fresh(start)))
    }

    /// The next page from `from` on that is pending although it was named as ballooned.
    fn next_passed(&self, from: u64) -> Option<u64> {
        let passed = self.beside.passed.as_ref()?;
        let mut at = from as usize;
        loop {
            let page = passed.next_set(at)?;
            at = self.pending.next_set(page)?;
            if at == page {
                return Some(page as u64);
            }
        }
    }

    /// The number of pending pages.
    fn count(&self) -> u64 {
        self.pending.count()
    }
}

impl BlockState {
    /// Ends the ballooning of pages that were written since a consumer was told of them. Returns
    /// how many pages they were, and how many of them were not pending for that consumer before.
    pub(super) fn clear_written(&mut self, seat: Seat) -> (u64, u64) {
        let before = self.set(seat).map_or(0, PageSet::count);
        let (mut broken, mut at) = (0, 0);
        while let Some((from, end)) = self.set(seat).and_then(|set| {
            let from = set.next_passed(at)?;
            let stretch_end = (from / STRETCH_PAGES + 1) * STRETCH_PAGES;
            let run = set.next_pending(from, stretch_end);
            Some((from, run.map_or(from + 1, |run| run.end)))
        }) {
            at = match self.claim(seat, from..end) {
                Claim::Used(count) | Claim::Ballooned(count) => from + count,
                Claim::Written(used) => {
                    broken += used.end - used.start;
                    used.end
                }
            };
        }
        (broken, self.set(seat).map_or(0, PageSet::count) - before)
    }
}

#[cfg(test)]
mod tests;
