//! Free-page hints (`VIRTIO_BALLOON_F_FREE_PAGE_HINT`): pages that the guest said were free.
//!
//! The guest may use such a page again without a word. So a hint takes the page out of pending
//! once, and only if every write since the page was free is certain to be found. For that, the
//! protection of every page is restored before the round begins ([`Tracker::begin_hints`]), and no
//! harvest has come since. A page that a later sync finds is pending again, which overrides the
//! hint.
//!
//! Hints are used for consumers that skip ballooned pages
//! ([`super::consumer::Consumer::skip_ballooned`]). A page that a migration skips by a hint is
//! pending as before for a backup.

use super::pending::PageSet;
use super::state::Inner;
use super::tracker::Tracker;
use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The most pages of a hint that are taken in one hold of the tracker's lock: 128 MiB.
const HINT_PAGES: u64 = 1 << 15;

impl Inner {
    /// Takes hinted pages out of pending, for each consumer that uses hints: some of the guest's
    /// pages `first..end`. The caller has checked the round. Returns how many pages it took, and
    /// where to go on.
    pub(super) fn take_hint(&mut self, first: u64, end: u64) -> Result<(Pages, Option<u64>)> {
        let from = |page: u64| GuestAddress(page.saturating_mul(PAGE_SIZE));
        let map = Arc::clone(&self.map);
        let Some(ahead) = map.block_parts(from(first), Pages(end - first)).next() else {
            return Ok((Pages(0), None));
        };
        // Addresses without a slot cost nothing.
        let begin = first + ahead.before.0;
        let stop = end.min(begin + HINT_PAGES);
        let mut used = Pages(0);
        for seat in self.seats_that_skip_ballooned() {
            let mut here = 0;
            for part in map.block_parts(from(begin), Pages(stop - begin)) {
                let state = self.blocks.get_mut(part.block);
                let Some(set) = state.and_then(|s| s.set_mut(seat)) else {
                    continue;
                };
                let at = part.first.index();
                here += set.take_hint(at..at + part.pages.index())?;
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
        // The search ends where the hint does.
        while let Some(run) = self.pending.next_run_before(at, pages.end) {
            used += self.pending.clear_range(run.start, run.len());
            free.set_range(run.start, run.len());
            at = run.end;
        }
        Ok(used)
    }
}

impl Tracker {
    /// Begins a round of free-page hints and returns its number. Call this first, and only then ask
    /// the guest.
    ///
    /// It restores the protection of every chunk that still waits for it, which the walk would
    /// otherwise do chunk by chunk: one kernel call for each chunk with dirty pages. Before the
    /// first walk, with a log that starts without any page protected, that is the whole guest. A
    /// round ends with the next sync, with any change of the memory map, and with the next round.
    pub fn begin_hints(&self) -> Result<u64> {
        let not_started = || Error::new(Kind::State, "tracking is not started");
        if !self.is_started() {
            return Err(not_started());
        }
        self.rearm_slowly()?;
        let mut inner = self.lock();
        if !inner.started {
            return Err(not_started());
        }
        // Chunks that a sync armed meanwhile.
        inner.rearm_all()?;
        Ok(inner.hints.begin())
    }

    /// Takes a hint: after `round` began, the guest said that these bytes were free. Whole pages of
    /// them that are pending are pending no more. Returns how many pages they were. [`Kind::State`]
    /// if the round is over; then the hint is counted as late, and nothing happens.
    pub fn hint_free(&self, round: u64, address: GuestAddress, length: u64) -> Result<Pages> {
        let first = address.0.div_ceil(PAGE_SIZE);
        let end = address.0.saturating_add(length) / PAGE_SIZE;
        let mut used = Pages(0);
        let mut next = Some(first);
        while let Some(at) = next {
            // In parts, so that a migration can take pages in between.
            let mut inner = self.lock();
            if !inner.hints.goes_on(round) {
                if at > first {
                    // The round was right when the hint came. The rest of its pages is sent.
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

    /// Ends a round. Hints that come for it later are late.
    pub fn end_hints(&self, round: u64) {
        let mut inner = self.lock();
        if inner.hints.goes_on(round) {
            inner.hints.close();
        }
    }
}
