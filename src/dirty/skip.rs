//! What a walk does not read: pages that the guest has given back, and pages that it hinted to
//! be free.
//!
//! **Given back** (the balloon). Sticky, kept with the block ([`crate::memory::returned`]), and
//! only where the guest must tell before it uses the page again. A walk of a lease that skips
//! ([`Lease::skip_returned`]) hands them out as [`Content::Returned`], once, so that whoever
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

use super::blocks::BlockState;
use super::tracker::{Content, Cursor, Inner, Lease, Run, Tracker};
use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::memory::returned::{Claim, TakenBack};
use crate::memory::{BlockId, BlockPin};
use crate::units::{Pages, PAGE_SIZE, STRETCH_PAGES};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The most pages of a hint that are taken under one hold of the tracker's lock: 128 MiB.
const HINT_PAGES: u64 = 1 << 15;

/// A block's bits beside pending. Made when first needed.
#[derive(Default)]
pub(super) struct Beside {
    /// Given-back pages that were handed out as such since they were given back: their
    /// protection was restored, so one that is pending again was written.
    passed: Option<Bitmap>,
    /// Pages that a hint took out of pending and that were not handed out since.
    free: Option<Bitmap>,
}

fn range_of(range: &Range<u64>) -> (usize, usize) {
    (
        range.start as usize,
        range.end.saturating_sub(range.start) as usize,
    )
}

impl Beside {
    /// Whether no page is to be handed out as free.
    pub(super) fn none_free(&self) -> bool {
        self.free.as_ref().is_none_or(Bitmap::is_empty)
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let both = [&self.passed, &self.free];
        both.into_iter()
            .flatten()
            .map(|b| b.heap_bytes() as u64)
            .sum()
    }

    /// All is pending again, and not because it was written.
    pub(super) fn forget(&mut self) {
        for bits in [&mut self.passed, &mut self.free].into_iter().flatten() {
            bits.clear_all();
        }
    }

    pub(super) fn put_back(&mut self, range: Range<u64>) {
        let (from, len) = range_of(&range);
        if let Some(passed) = &mut self.passed {
            passed.clear_range(from, len);
        }
    }

    pub(super) fn handed_out(&mut self, range: Range<u64>, content: Content) {
        let (from, len) = range_of(&range);
        if let Some(free) = &mut self.free {
            free.clear_range(from, len);
        }
        match (&mut self.passed, content) {
            (Some(passed), Content::Returned) => passed.set_range(from, len),
            (Some(passed), _) => passed.clear_range(from, len),
            (None, _) => 0,
        };
    }
}

impl BlockState {
    pub(super) fn run(&self, pages: Range<u64>, content: Content) -> Run {
        Run {
            block: BlockPin::new(&self.pin_source),
            first: Pages(pages.start),
            count: Pages(pages.end - pages.start),
            content,
        }
    }

    /// What the pages from the start of `range` are. Their protection is restored.
    pub(super) fn claim(&mut self, range: Range<u64>) -> Claim {
        let passed = &mut self.beside.passed;
        let all = Claim::Used(range.end - range.start);
        let claim = self
            .pin_source
            .returned()
            .claim(range.clone(), passed.as_ref());
        match &claim {
            Claim::Returned(_) if passed.is_none() => {
                match Bitmap::new(self.pin_source.pages().index()) {
                    Ok(bits) => *passed = Some(bits),
                    // Sent like any other. It stays given back.
                    Err(_) => return all,
                }
            }
            Claim::Broken(page) => {
                let (from, len) = range_of(page);
                self.pending.set_range(from, len);
                if let Some(passed) = passed {
                    passed.clear_range(from, len);
                }
            }
            _ => {}
        }
        claim
    }

    /// The next run of pages of `from..end` that are pending and given back.
    pub(super) fn next_returned(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let returned = self.pin_source.returned();
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

    /// The next run of pages of `from..end` that are pending.
    pub(super) fn next_pending(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let run = self.pending.next_run_before(from as usize, end as usize)?;
        Some(run.start as u64..run.end as u64)
    }

    /// The next run of pages of `from..end`, in one stretch, that are to be handed out as free.
    pub(super) fn next_free(&mut self, from: u64, end: u64) -> Option<Range<u64>> {
        let free = self.beside.free.as_mut()?;
        let run = free.next_run_before(from as usize, end as usize)?;
        let start = run.start as u64;
        let stretch_end = (start / STRETCH_PAGES + 1) * STRETCH_PAGES;
        let end = (run.end as u64).min(stretch_end);
        free.clear_range(run.start, (end - start) as usize);
        Some(start..end)
    }
}

impl BlockState {
    /// Takes back what was written since it was told, and returns how many pages that were and
    /// how many of them were not pending before.
    fn take_back_broken(&mut self) -> (u64, u64) {
        let (mut broken, before) = (0, self.pending.count());
        let mut at = 0;
        while let Some(from) = self.next_passed(at) {
            let stretch_end = (from / STRETCH_PAGES + 1) * STRETCH_PAGES;
            let run = self.next_pending(from, stretch_end);
            let end = run.map_or(from + 1, |run| run.end);
            at = match self.claim(from..end) {
                Claim::Used(count) | Claim::Returned(count) => from + count,
                Claim::Broken(used) => {
                    broken += used.end - used.start;
                    used.end
                }
            };
        }
        (broken, self.pending.count() - before)
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
}

impl Inner {
    /// Takes back what was found written since it was told, and returns how many pages became
    /// pending with it. Right after the harvest and not in the walk alone: what is to be sent must
    /// not look as if it were not, least of all to whoever decides on the downtime.
    pub(super) fn take_back_broken(&mut self) -> Pages {
        let mut found = 0;
        if self.skipping {
            for state in self.blocks.iter_mut() {
                let (broken, new) = state.take_back_broken();
                self.stats.broken += Pages(broken);
                found += new;
            }
        }
        Pages(found)
    }

    /// Whoever skipped does not any more: what was to be handed out as free is pending again.
    pub(super) fn stop_skipping(&mut self) {
        self.skipping = false;
        self.hints_off = false;
        self.returned = 0;
        for state in self.blocks.iter_mut() {
            if let Some(mut free) = state.beside.free.take() {
                state.pending.with(|pending| free.take_all_into(pending));
            }
            state.beside.passed = None;
        }
    }

    /// Counts what of pending is given back.
    pub(super) fn count_returned(&mut self) -> Pages {
        self.returned = 0;
        if self.skipping {
            let blocks = self.blocks.iter();
            self.returned = blocks
                .map(|b| b.pin_source.returned().count_both(&b.pending))
                .sum();
        }
        Pages(self.returned)
    }

    /// What was given back before now is no news to whoever starts with all pages.
    pub(super) fn forget_news(&mut self) {
        if self.skipping {
            for state in self.blocks.iter() {
                state.pin_source.returned().take_news(|_, _, _| {});
            }
        }
    }

    /// Makes pending what was given back since the last sync, so that it is told.
    pub(super) fn harvest_news(&mut self) -> Pages {
        let mut found = 0;
        if self.skipping {
            for state in self.blocks.iter_mut() {
                let BlockState {
                    pin_source,
                    pending,
                    beside,
                    ..
                } = state;
                pin_source.returned().take_news(|at, words, pages| {
                    found += pending.merge_words(at, words, pages);
                    if let Some(passed) = &mut beside.passed {
                        clear_words(passed, at, words, pages);
                    }
                });
            }
        }
        Pages(found)
    }

    /// Restores the protection of the next armed chunk at or after `at`, a block and a chunk of
    /// it. `None` when there is none.
    fn rearm_next(&mut self, at: (BlockId, usize)) -> Result<Option<(BlockId, usize)>> {
        let (mut block, mut chunk) = at;
        while let Some((id, state)) = self.blocks.at_or_after(block) {
            if id != block {
                chunk = 0;
            }
            let armed = state
                .chunks
                .as_ref()
                .and_then(|c| c.next_armed(chunk).map(|n| (n, c.pages_of(n))));
            if let Some((n, pages)) = armed {
                self.rearm(id, pages.start as u64..pages.end as u64)?;
                return Ok(Some((id, n + 1)));
            }
            (block, chunk) = (BlockId(id.0 + 1), 0);
        }
        Ok(None)
    }

    /// Takes pages out of pending that were free when the guest said so: some of the guest's pages
    /// `first..end`. The round is right. How many it took, and where to go on.
    fn take_hint(&mut self, first: u64, end: u64) -> Result<(Pages, Option<u64>)> {
        let from = |page: u64| GuestAddress(page.saturating_mul(PAGE_SIZE));
        let map = Arc::clone(&self.map);
        let Some(ahead) = map.pieces(from(first), Pages(end - first)).next() else {
            return Ok((Pages(0), None));
        };
        // What no slot maps costs nothing.
        let begin = first + ahead.skipped.0;
        let stop = end.min(begin + HINT_PAGES);
        let mut used = 0;
        for piece in map.pieces(from(begin), Pages(stop - begin)) {
            let Some(state) = self.blocks.get_mut(piece.block) else {
                continue;
            };
            if self.skipping && state.beside.free.is_none() {
                state.beside.free = Some(Bitmap::new(state.pin_source.pages().index())?);
            }
            let mut at = piece.first.index();
            let end = at + piece.pages.index();
            // Not a look further than what is told.
            while let Some(run) = state.pending.next_run_before(at, end) {
                used += state.pending.clear_range(run.start, run.len());
                if let Some(free) = &mut state.beside.free {
                    free.set_range(run.start, run.len());
                }
                at = run.end;
            }
        }
        self.stats.hinted += Pages(used);
        Ok((Pages(used), (stop < end).then_some(stop)))
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

/// The round of hints that goes on.
#[derive(Debug, Default)]
pub(super) struct Hints {
    last: u64,
    open: bool,
}

impl Hints {
    /// What was hinted so far holds; what comes from now on is too late.
    pub(super) fn close(&mut self) {
        self.open = false;
    }

    pub(super) fn begin(&mut self) -> u64 {
        self.last += 1;
        self.open = true;
        self.last
    }

    fn goes_on(&self, round: u64) -> bool {
        self.open && self.last == round
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
        let not_started = || Err(Error::new(Kind::State, "tracking is not started"));
        let mut at = (BlockId(0), 0);
        loop {
            let mut inner = self.lock();
            if !inner.started {
                return not_started();
            }
            // One chunk at a time, so that whoever sends gets on meanwhile.
            match inner.rearm_next(at)? {
                Some(next) => at = next,
                None => break,
            }
        }
        let mut inner = self.lock();
        if !inner.started {
            return not_started();
        }
        // What a sync armed meanwhile.
        at = (BlockId(0), 0);
        while let Some(next) = inner.rearm_next(at)? {
            at = next;
        }
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
            if at >= end || inner.hints_off {
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

impl Lease {
    /// Has given-back pages told apart from others in what is handed out, until the lease is
    /// given up; and hinted pages handed out as [`Content::Free`]. With `false` hints do nothing
    /// for as long: the page has to be sent, because nobody would say what it is. Before
    /// [`Lease::start`].
    pub fn skip_returned(&self, on: bool) {
        let mut inner = self.lock();
        inner.stop_skipping();
        inner.skipping = on;
        inner.hints_off = !on;
    }

    /// Pages that are pending and have to be read: what is known to be given back is left out.
    pub fn to_read(&self) -> Pages {
        let figures = self.figures();
        Pages(figures.pending.0.saturating_sub(figures.returned))
    }

    /// [`Lease::take`] of what is not read: given-back and free pages.
    pub fn take_unread(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        self.take_what(cursor, max_runs, Pages(u64::MAX), true, runs)
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
