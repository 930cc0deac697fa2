//! Ballooned pages in a walk: which of them are pending, named instead of read, or written.
//!
//! A page stays ballooned until the guest says otherwise. The set is kept with the block
//! ([`crate::memory::ballooned`]), and is empty unless the guest must tell before it uses such a page
//! again.
//!
//! A consumer that wants it ([`super::consumer::Consumer::skip_ballooned`]) gets ballooned pages as
//! [`super::run::Content::Ballooned`]: named, once, for whoever keeps a copy, and not to be read.
//! Their protection is restored before that, as for any page (rule 1). A page that is found dirty
//! *afterwards* was written by a guest that broke its promise, or by somebody who marked it. It is
//! ballooned no longer: memory is not lost for a promise. A log cannot tell a write before the
//! inflate from one after it when both come between two harvests; then the guest's promise counts.
//!
//! Each consumer has this for itself: a page that a migration does not read is pending as before for
//! a backup. Hints of free pages are in [`super::hints`].

use super::beside::range_of;
use super::pending::{BlockState, PageSet, Seat};
use crate::bits::summary::Bitmap;
use crate::memory::ballooned::Claim;
use crate::memory::Block;
use crate::units::STRETCH_PAGES;
use std::ops::Range;

impl BlockState {
    /// What the pages from the start of `range` are for a consumer that has ballooned pages named.
    /// Their protection is restored.
    pub(super) fn claim(&mut self, seat: Seat, range: Range<u64>) -> Claim {
        let BlockState {
            pin_source, sets, ..
        } = self;
        let Some(Some(set)) = sets.get_mut(seat) else {
            return Claim::Used(range.end - range.start);
        };
        let claim = set.claim(pin_source, range);
        if let Claim::Written(page) = &claim {
            // Whoever else was told that all of the host page is ballooned hears that it is not.
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
                // Sent like any other. It stays ballooned.
                Err(_) => return all,
            },
            Claim::Written(page) => self.is_used(page),
            _ => {}
        }
        claim
    }

    /// Pages are the guest's again, and to be read.
    fn is_used(&mut self, pages: &Range<u64>) {
        let (from, len) = range_of(pages);
        self.pending.set_range(from, len);
        if let Some(passed) = &mut self.beside.passed {
            passed.clear_range(from, len);
        }
    }

    /// The next run of pages of `from..end` that are pending and ballooned.
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

    /// The next run of pages of `from..end` that are pending, cut at the end of its stretch: what is
    /// handed out ends there, and to look on would cost all that is pending, for each stretch.
    pub(super) fn next_pending(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let start = self.pending.next_set_before(from as usize, end as usize)?;
        let stretch_end = (start as u64 / STRETCH_PAGES + 1) * STRETCH_PAGES;
        let run = self
            .pending
            .next_run_before(start, end.min(stretch_end) as usize)?;
        Some(run.start as u64..run.end as u64)
    }

    /// The next run of pages of `from..end`, in one stretch, that are to be handed out as free.
    pub(super) fn next_free(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let free = self.beside.free.as_ref()?;
        let run = free.next_run_before(from as usize, end as usize)?;
        let start = run.start as u64;
        let stretch_end = (start / STRETCH_PAGES + 1) * STRETCH_PAGES;
        let end = (run.end as u64).min(stretch_end);
        Some(start..end.min(self.cut_at_fresh(start)))
    }

    /// The next page, from `from` on, that is pending although it was passed.
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

    /// How many pages are pending.
    fn count(&self) -> u64 {
        self.pending.count()
    }
}

impl BlockState {
    /// Ends the ballooning of pages written since a consumer was told of them. Returns how many pages
    /// that were and how many of them were not pending there before.
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
