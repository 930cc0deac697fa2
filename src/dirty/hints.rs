//! Free-page hints (`VIRTIO_BALLOON_F_FREE_PAGE_HINT`): pages that the guest said were free.
//!
//! The guest may use such a page again without a word, so a hint takes the page out of pending once,
//! and only if each write since the page was free is certain to be found: the protection of
//! everything was restored before the round began ([`Tracker::begin_hints`] sees to that) and nothing
//! was harvested since. What a later sync finds is pending again and wins.
//!
//! Hints are used for consumers that do not read ballooned pages
//! ([`super::consumer::Consumer::skip_ballooned`]). What a migration does not read for a hint is
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

/// The most pages of a hint that are taken under one hold of the tracker's lock: 128 MiB.
const HINT_PAGES: u64 = 1 << 15;

impl Inner {
    /// Takes pages out of pending that were free when the guest said so, for each consumer that
    /// uses hints: some of the guest's pages `first..end`. The round is right. How many it took, and
    /// where to go on.
    pub(super) fn take_hint(&mut self, first: u64, end: u64) -> Result<(Pages, Option<u64>)> {
        let from = |page: u64| GuestAddress(page.saturating_mul(PAGE_SIZE));
        let map = Arc::clone(&self.map);
        let Some(ahead) = map.block_parts(from(first), Pages(end - first)).next() else {
            return Ok((Pages(0), None));
        };
        // What no slot maps costs nothing.
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
        // Not a look further than what is told.
        while let Some(run) = self.pending.next_run_before(at, pages.end) {
            used += self.pending.clear_range(run.start, run.len());
            free.set_range(run.start, run.len());
            at = run.end;
        }
        Ok(used)
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
    pub fn end_hints(&self, round: u64) {
        let mut inner = self.lock();
        if inner.hints.goes_on(round) {
            inner.hints.close();
        }
    }
}
