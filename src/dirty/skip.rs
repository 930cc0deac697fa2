//! What a walk does not read: pages that the guest has given back, and pages that it hinted to
//! be free.
//!
//! **Given back** (the balloon). Sticky, kept with the block ([`crate::memory::returned`]), and
//! only where the guest must tell before it uses the page again. A walk of a consumer that
//! skips ([`Consumer::skip_returned`]) hands them out as [`Content::Returned`], once, so that whoever
//! keeps a copy hears of it. Protection is restored before that, as for any page (rule 1). So a
//! page that is found dirty *afterwards* was written by a guest that broke its promise, or by
//! somebody who marked it, and counts as taken back: what was promised is not what memory is lost
//! for. A log cannot tell a write before the giving back from one after it if both come between
//! two harvests; then the guest's promise counts.
//!
//! **Hinted free** (`VIRTIO_BALLOON_F_FREE_PAGE_HINT`). The guest may use such a page again
//! without a word, so a hint takes the page out of pending once, and only if each write since the
//! page was free is certain to be found: the protection of everything was restored before the
//! round began ([`Tracker::hint_begin`] sees to that) and nothing was harvested since. What a
//! later sync finds is pending again and wins.
//!
//! Both are a consumer's own: what a migration skips is pending as before for a backup.

use super::beside::range_of;
use super::blocks::{BlockState, PageSet, Phase, Seat};
use super::consumer::{Consumer, Cursor};
use super::taken::Taken;
use super::tracker::{Inner, Tracker};
use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::memory::returned::{Claim, TakenBack};
use crate::memory::{Block, BlockId};
use crate::units::{Pages, PAGE_SIZE, STRETCH_PAGES};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The most pages of a hint that are taken under one hold of the tracker's lock: 128 MiB.
const HINT_PAGES: u64 = 1 << 15;

impl BlockState {
    /// What the pages from the start of `range` are for a consumer that skips. Their protection is
    /// restored.
    pub(super) fn claim(&mut self, seat: Seat, range: Range<u64>) -> Claim {
        let BlockState {
            pin_source, sets, ..
        } = self;
        let Some(Some(set)) = sets.get_mut(seat) else {
            return Claim::Used(range.end - range.start);
        };
        let claim = set.claim(pin_source, range);
        if let Claim::Broken(page) = &claim {
            // Whoever else was told that all of the host page is given back hears that it is not.
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
        let claim = block.returned().claim(range, passed.as_ref());
        match &claim {
            Claim::Returned(_) if passed.is_none() => match Bitmap::new(block.pages().index()) {
                Ok(bits) => *passed = Some(bits),
                // Sent like any other. It stays given back.
                Err(_) => return all,
            },
            Claim::Broken(page) => self.is_used(page),
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

    /// The next run of pages of `from..end` that are pending and given back.
    pub(super) fn next_returned(&self, block: &Block, from: u64, end: u64) -> Option<Range<u64>> {
        let returned = block.returned();
        let mut at = from;
        loop {
            let page = returned.next_before(at, end)?;
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
    /// Takes back what was written since a consumer was told of it, and returns how many pages
    /// that were and how many of them were not pending there before.
    fn take_back_broken(&mut self, seat: Seat) -> (u64, u64) {
        let before = self.set(seat).map_or(0, PageSet::count);
        let (mut broken, mut at) = (0, 0);
        while let Some((from, end)) = self.set(seat).and_then(|set| {
            let from = set.next_passed(at)?;
            let stretch_end = (from / STRETCH_PAGES + 1) * STRETCH_PAGES;
            let run = set.next_pending(from, stretch_end);
            Some((from, run.map_or(from + 1, |run| run.end)))
        }) {
            at = match self.claim(seat, from..end) {
                Claim::Used(count) | Claim::Returned(count) => from + count,
                Claim::Broken(used) => {
                    broken += used.end - used.start;
                    used.end
                }
            };
        }
        (broken, self.set(seat).map_or(0, PageSet::count) - before)
    }
}

impl Inner {
    /// The consumers that follow and have given-back pages told apart.
    fn skipping(&self) -> Vec<Seat> {
        let mut seats = self.seats(Phase::Following);
        seats.retain(|seat| self.members[*seat].as_ref().is_some_and(|m| m.skipping));
        seats
    }

    pub(super) fn count_broken(&mut self, seat: Seat, pages: Pages) {
        self.stats.broken += pages;
        if let Some(member) = self.member(seat) {
            member.stats.broken += pages;
        }
    }

    /// Takes back what was found written since it was told, and returns how many pages became
    /// pending with it for `whose`. Right after the harvest and not in the walk alone: what is to
    /// be sent must not look as if it were not, least of all to whoever decides on the downtime.
    pub(super) fn take_back_broken(&mut self, whose: Option<Seat>) -> Pages {
        let mut found = 0;
        for seat in self.skipping() {
            let mut all = 0;
            for state in self.blocks.iter_mut() {
                let (broken, new) = state.take_back_broken(seat);
                all += broken;
                if Some(seat) == whose {
                    found += new;
                }
            }
            self.count_broken(seat, Pages(all));
        }
        Pages(found)
    }

    /// A consumer that skipped does not any more: what was to be handed out as free is pending
    /// again.
    fn stop_skipping(&mut self, seat: Seat) {
        if let Some(member) = self.member(seat) {
            member.skipping = false;
            member.returned = 0;
        }
        for set in self.blocks.sets_mut(seat) {
            if let Some(mut free) = set.beside.free.take() {
                set.pending.with(|pending| free.take_all_into(pending));
            }
            set.beside.passed = None;
        }
    }

    /// Counts what of pending is given back, for each consumer that skips.
    pub(super) fn count_returned(&mut self) {
        for seat in self.skipping() {
            let blocks = self.blocks.iter();
            let returned = blocks.filter_map(|b| {
                let set = b.set(seat)?;
                Some(b.pin_source.returned().count_both(&set.pending))
            });
            let returned = returned.sum();
            if let Some(member) = self.member(seat) {
                member.returned = returned;
            }
        }
    }

    /// A consumer that starts with all pages, and starts the logs, is not told of pages that
    /// were given back before.
    pub(super) fn forget_news(&mut self, seat: Seat) {
        if self.member(seat).is_some_and(|m| m.skipping) {
            for block in self.map.blocks() {
                block.returned().take_news(|_, _, _| {});
            }
        }
    }

    /// Makes pending what was given back since the last sync, for each consumer that skips, so
    /// that it is told; how many pages that were for `whose`.
    pub(super) fn harvest_news(&mut self, whose: Option<Seat>) -> Pages {
        let mut found = 0;
        let seats = self.skipping();
        if seats.is_empty() {
            return Pages(0);
        }
        for state in self.blocks.iter_mut() {
            let BlockState {
                pin_source, sets, ..
            } = state;
            pin_source.returned().take_news(|at, words, pages| {
                for &seat in &seats {
                    let Some(Some(set)) = sets.get_mut(seat) else {
                        continue;
                    };
                    let new = set.pending.merge_words(at, words, pages);
                    if Some(seat) == whose {
                        found += new;
                    }
                    if let Some(passed) = &mut set.beside.passed {
                        clear_words(passed, at, words, pages);
                    }
                }
            });
        }
        Pages(found)
    }

    /// Takes pages out of pending that were free when the guest said so, for each consumer that
    /// skips: some of the guest's pages `first..end`. The round is right. How many it took, and
    /// where to go on.
    fn take_hint(&mut self, first: u64, end: u64) -> Result<(Pages, Option<u64>)> {
        let from = |page: u64| GuestAddress(page.saturating_mul(PAGE_SIZE));
        let map = Arc::clone(&self.map);
        let Some(ahead) = map.pieces(from(first), Pages(end - first)).next() else {
            return Ok((Pages(0), None));
        };
        // What no slot maps costs nothing.
        let begin = first + ahead.skipped.0;
        let stop = end.min(begin + HINT_PAGES);
        let mut used = Pages(0);
        for seat in self.skipping() {
            let mut here = 0;
            for piece in map.pieces(from(begin), Pages(stop - begin)) {
                let state = self.blocks.get_mut(piece.block);
                let Some(set) = state.and_then(|s| s.set_mut(seat)) else {
                    continue;
                };
                let at = piece.first.index();
                here += set.take_hint(at..at + piece.pages.index())?;
            }
            if let Some(member) = self.member(seat) {
                member.stats.hinted += Pages(here);
            }
            used += Pages(here);
        }
        self.stats.hinted += used;
        Ok((used, (stop < end).then_some(stop)))
    }
}

impl PageSet {
    fn take_hint(&mut self, pages: Range<usize>) -> Result<u64> {
        let free = match &mut self.beside.free {
            Some(free) => free,
            empty => empty.insert(Bitmap::new(self.pending.len())?),
        };
        let (mut at, mut used) = (pages.start, 0);
        // Not a look further than what is told.
        while let Some(run) = self.pending.next_run_before(at, pages.end) {
            used += self.pending.clear_range(run.start, run.len());
            free.set_range(run.start, run.len());
            at = run.end;
        }
        Ok(used)
    }
}

/// Clears in `bits` what `words` has set, from bit `at` on, a multiple of 64.
fn clear_words(bits: &mut Bitmap, at: usize, words: &[u64], pages: usize) {
    if bits.is_empty() {
        return;
    }
    for (i, word) in words.iter().take(pages.div_ceil(64)).enumerate() {
        // Only what is set in both costs more than a look.
        let mut left = word & bits.words().get(at / 64 + i).copied().unwrap_or(0);
        while left != 0 {
            let from = left.trailing_zeros();
            let len = (left >> from).trailing_ones();
            bits.clear_range(at + i * 64 + from as usize, len as usize);
            left &= !((u64::MAX >> (64 - len)) << from);
        }
    }
}

impl Tracker {
    /// Begins a round of free-page hints and returns its number; call it, and only then ask the
    /// guest.
    ///
    /// Restores the protection of every chunk that still waits for it, which is what the walk would
    /// have done piece by piece: one kernel call for each chunk with dirty pages. With a log
    /// that starts with nothing protected, before the first walk, that is the whole guest.
    /// A round ends with the next sync, with any change of the memory map, and with the next round.
    pub fn hint_begin(&self) -> Result<u64> {
        let not_started = || Error::new(Kind::State, "tracking is not started");
        if !self.is_started() {
            return Err(not_started());
        }
        self.rearm_slowly()?;
        let mut inner = self.lock();
        if !inner.started {
            return Err(not_started());
        }
        // What a sync armed meanwhile.
        inner.rearm_all()?;
        Ok(inner.hints.begin())
    }

    /// The guest said, after `round` began, that these bytes were free: what of it is pending, as
    /// whole pages, is pending no more. Returns how many pages that were. [`Kind::State`] if the
    /// round is over; the hint is counted and nothing happens.
    pub fn hint_free(&self, round: u64, address: GuestAddress, length: u64) -> Result<Pages> {
        let first = address.0.div_ceil(PAGE_SIZE);
        let end = address.0.saturating_add(length) / PAGE_SIZE;
        let mut used = Pages(0);
        let mut next = Some(first);
        while let Some(at) = next {
            // Some at a time, so that whoever sends gets on meanwhile.
            let mut inner = self.lock();
            if !inner.hints.goes_on(round) {
                if at > first {
                    // It was right when it came; the rest is sent.
                    break;
                }
                inner.stats.stale_hints += 1;
                return Err(Error::new(
                    Kind::State,
                    format!("the round of hints {round} is over"),
                ));
            }
            if at >= end {
                break;
            }
            let (some, then) = inner.take_hint(at, end)?;
            used += some;
            next = then;
        }
        Ok(used)
    }

    /// Ends a round: hints of it that come later are stale.
    pub fn hint_end(&self, round: u64) {
        let mut inner = self.lock();
        if inner.hints.goes_on(round) {
            inner.hints.close();
        }
    }
}

impl Consumer {
    /// Has given-back pages told apart from others in what is handed out, and hinted pages
    /// handed out as [`super::consumer::Content::Free`]; or neither, which is so unless it is said. Before
    /// [`Consumer::start`].
    pub fn skip_returned(&self, on: bool) {
        let seat = self.seat();
        let mut inner = self.lock();
        inner.stop_skipping(seat);
        if let Some(member) = inner.member(seat) {
            member.skipping = on;
        }
    }

    /// Pages that are pending and have to be read: what is known to be given back is left out.
    pub fn to_read(&self) -> Pages {
        let now = self.published().now();
        Pages(now.pending.0.saturating_sub(now.returned))
    }

    /// [`Consumer::take`] of what is not read: given-back and free pages.
    pub fn take_unread(&self, cursor: &mut Cursor, max_runs: usize) -> Result<Taken> {
        self.take_what(cursor, max_runs, Pages(u64::MAX), true)
    }
}

impl TakenBack for super::reported::Reported {
    fn taken_back(&self, block: BlockId, first: Pages, count: Pages) {
        self.mark_block(block, first.bytes(), count.bytes().0);
    }
}

#[cfg(test)]
#[path = "skip_tests.rs"]
mod tests;
