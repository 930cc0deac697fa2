//! The ballooned pages: those with which the guest has inflated its balloon.
//!
//! They are kept with the guest's memory and not with a tracker, because they outlive migrations. A
//! balloon is usually inflated long before a migration begins, and a destination has the guest's
//! memory but no tracker yet. What a walk does with ballooned pages is the tracker's part
//! (`dirty/ballooned.rs`). The calls for the VMM's balloon device are in `balloon`: they come on
//! any thread, and wait only for a lock that is held for microseconds.
//!
//! **The gate.** A page may count as ballooned only if the guest has to tell before it uses the
//! page again (`VIRTIO_BALLOON_F_MUST_TELL_HOST`). The VMM says once whether it does
//! ([`set_must_tell_host`](crate::memory::Memory::set_must_tell_host)). Before that, marks are
//! ignored.
//!
//! **Larger host pages.** The balloon's unit is 4 KiB. A larger page of the host's is ballooned
//! when all its parts are, and no longer when the first of them is deflated.
//!
//! **The order of a deflate.** First the page stops being ballooned, then it is marked dirty. In
//! the other order a sync and a walk that come in between would use up the mark on a page that is
//! still ballooned.

use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard};

/// The most pages whose bits are moved in one hold of a block's lock: 128 MiB. A walk that waits
/// for the lock then waits for microseconds, and a single bit costs little to find and to move.
pub(super) const SLICE: usize = 1 << 15;
/// Pages whose bits are compared together.
const GROUP: usize = 512;

/// The gate is open: the guest has to tell first. (0 as long as the VMM has said nothing.)
const MUST_TELL: u8 = 1;
/// The gate is shut: the guest need not tell.
const NEED_NOT: u8 = 2;

/// The gate of a guest, for all its blocks.
#[derive(Default)]
pub(super) struct Gate {
    gate: AtomicU8,
    /// A source has named ballooned pages, and its guest does not run here yet.
    arriving: AtomicBool,
}

impl Gate {
    /// Takes the VMM's word whether the guest has to tell. Returns whether the pages ballooned so
    /// far stop being ballooned, because the guest need not tell or the device was reset. The order
    /// against marks and deflates is that of each block's lock.
    pub(super) fn set(&self, must: bool) -> bool {
        let gate = if must { MUST_TELL } else { NEED_NOT };
        let before = self.gate.swap(gate, Ordering::SeqCst);
        let again = before == MUST_TELL && !self.arriving.load(Ordering::SeqCst);
        !must || again
    }

    /// Whether the guest has to tell.
    pub(super) fn is_open(&self) -> bool {
        self.gate.load(Ordering::SeqCst) == MUST_TELL
    }

    /// Whether the VMM has said that the guest need not tell.
    pub(super) fn is_shut(&self) -> bool {
        self.gate.load(Ordering::SeqCst) == NEED_NOT
    }

    /// A source names its guest's ballooned pages.
    pub(super) fn arrives(&self) {
        self.arriving.store(true, Ordering::SeqCst);
    }

    /// The source's guest runs here now, or never will. Returns whether the source had named any
    /// page.
    pub(super) fn arrives_no_more(&self) -> bool {
        self.arriving.swap(false, Ordering::SeqCst)
    }
}

/// The ballooned pages of one block. Bits are pages of 4 KiB.
pub struct Ballooned {
    pages: u64,
    /// Pages of 4 KiB in one page of the host's.
    unit: u64,
    /// How many pages of 4 KiB of the first host page lie before the block.
    phase: u64,
    /// How many pages are ballooned. Without the lock this is only a hint.
    count: AtomicU64,
    state: Mutex<Option<State>>,
}

pub(super) struct State {
    /// Pages of 4 KiB in the guest's balloon.
    parts: Bitmap,
    /// Ballooned pages, as whole host pages, if host pages are larger.
    whole: Option<Bitmap>,
    /// Pages that became ballooned since a tracker last asked.
    fresh: Bitmap,
}

impl State {
    fn new(pages: usize, large: bool) -> Result<State> {
        Ok(State {
            parts: Bitmap::new(pages)?,
            whole: if large {
                Some(Bitmap::new(pages)?)
            } else {
                None
            },
            fresh: Bitmap::new(pages)?,
        })
    }

    /// The bits of ballooned pages.
    pub(super) fn counting(&self) -> &Bitmap {
        self.whole.as_ref().unwrap_or(&self.parts)
    }
}

/// What pages are that are about to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// This many pages are in use.
    Used(u64),
    /// This many pages are ballooned.
    Ballooned(u64),
    /// These pages (host pages, cut at the block) were written although they were ballooned, and
    /// are no longer ballooned.
    Written(Range<u64>),
}

impl std::fmt::Debug for Ballooned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ballooned({} of {})", self.count(), self.pages)
    }
}

impl Ballooned {
    /// For a block of `pages` pages at `host`, backed by host pages of `page_size` bytes.
    pub(super) fn new(host: u64, pages: Pages, page_size: u64) -> Self {
        let unit = page_size / PAGE_SIZE;
        Ballooned {
            pages: pages.0,
            unit,
            phase: host / PAGE_SIZE % unit,
            count: AtomicU64::new(0),
            state: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many pages are ballooned.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// How many pages of a range are ballooned.
    pub fn count_range(&self, range: Range<u64>) -> u64 {
        match &*self.lock() {
            Some(state) => state.counting().count_range(
                range.start as usize,
                range.end.saturating_sub(range.start) as usize,
            ),
            None => 0,
        }
    }

    fn cut(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.pages)..range.end.min(self.pages)
    }

    /// The pages of the host page that has a page, cut at the block.
    fn host_page(&self, page: u64) -> Range<u64> {
        let start = (page + self.phase) / self.unit * self.unit;
        start.saturating_sub(self.phase)..(start + self.unit - self.phase).min(self.pages)
    }

    /// The guest inflates its balloon with pages, if `allowed` is still true under the lock.
    /// `whole` is called with the pages that became ballooned. Without memory for the bits no page
    /// becomes ballooned.
    pub(crate) fn inflate(
        &self,
        range: Range<u64>,
        allowed: impl FnOnce() -> bool,
        mut whole: impl FnMut(Range<u64>),
    ) {
        let range = self.cut(range);
        if range.is_empty() {
            return;
        }
        let mut guard = self.lock();
        if !allowed() {
            return;
        }
        if guard.is_none() {
            *guard = State::new(self.pages as usize, self.unit > 1).ok();
        }
        let Some(state) = &mut *guard else {
            return;
        };
        let mut now = |from: u64, to: u64, fresh: &mut Bitmap| {
            fresh.set_range(from as usize, (to - from) as usize);
            whole(from..to);
        };
        let State {
            parts,
            whole: large,
            fresh,
        } = state;
        if let Some(large) = large {
            parts.set_range(range.start as usize, (range.end - range.start) as usize);
            let mut at = range.start;
            while at < range.end {
                let page = self.host_page(at);
                let (from, len) = (page.start as usize, (page.end - page.start) as usize);
                if !large.test(from) && parts.count_range(from, len) == len as u64 {
                    large.set_range(from, len);
                    now(page.start, page.end, fresh);
                }
                at = page.end;
            }
        } else {
            let mut at = range.start;
            while at < range.end {
                let (from, end) = (at as usize, range.end as usize);
                // Pages that were ballooned before are no news. The search ends with the range,
                // because the guest can repeat it as often as it likes.
                let start = parts.next_clear_before(from, end).unwrap_or(end);
                let stop = parts.next_set_before(start, end).unwrap_or(end);
                if start < stop {
                    parts.set_range(start, stop - start);
                    now(start as u64, stop as u64, fresh);
                }
                at = stop.max(start) as u64;
            }
        }
        self.count
            .store(state.counting().count(), Ordering::Relaxed);
    }

    /// The guest deflates the balloon by pages. Returns the range that is used again. It is larger
    /// than `range` if that is part of a ballooned host page. The caller marks it dirty afterwards.
    pub(crate) fn deflate(&self, range: Range<u64>) -> Range<u64> {
        let range = self.cut(range);
        if range.is_empty() {
            return range;
        }
        let mut guard = self.lock();
        let Some(state) = &mut *guard else {
            return range;
        };
        let mut used = range.clone();
        if state.whole.is_some() {
            let large = state.whole.as_ref();
            for page in [self.host_page(range.start), self.host_page(range.end - 1)] {
                if large.is_some_and(|large| large.test(page.start as usize)) {
                    used = used.start.min(page.start)..used.end.max(page.end);
                }
            }
        }
        state
            .parts
            .clear_range(range.start as usize, (range.end - range.start) as usize);
        let (from, len) = (used.start as usize, (used.end - used.start) as usize);
        if let Some(large) = &mut state.whole {
            large.clear_range(from, len);
        }
        state.fresh.clear_range(from, len);
        self.count
            .store(state.counting().count(), Ordering::Relaxed);
        used
    }

    /// Deflates pages whose contents arrive from a source. Nothing has to be marked then.
    pub(crate) fn arrived(&self, range: Range<u64>) {
        if self.count() != 0 || self.unit > 1 {
            self.deflate(range);
        }
    }

    /// The first ballooned page of `from..end`.
    pub(crate) fn next_before(&self, from: u64, end: u64) -> Option<u64> {
        if self.count() == 0 {
            return None;
        }
        let guard = self.lock();
        guard
            .as_ref()?
            .counting()
            .next_set_before(from as usize, end as usize)
            .map(|page| page as u64)
    }

    /// What the pages at the beginning of `range` (not empty) are. `passed` are pages that were
    /// named as ballooned before, with their protection restored. One of those that is asked about
    /// again was written since, unless it was ballooned anew, and is no longer ballooned.
    pub(crate) fn claim(&self, range: Range<u64>, passed: Option<&Bitmap>) -> Claim {
        let all = Claim::Used(range.end - range.start);
        if self.count() == 0 {
            return all;
        }
        let mut guard = self.lock();
        let Some(state) = &mut *guard else {
            return all;
        };
        let (from, len) = (range.start as usize, (range.end - range.start) as usize);
        // The search ends with the range. It is made for each run that is sent, in the downtime
        // too. A search for the next ballooned page of the whole block would cost the guest's size.
        let counting = state.counting();
        let Some(start) = counting.next_set_before(from, from + len) else {
            return all;
        };
        if start > from {
            return Claim::Used((start - from) as u64);
        }
        let end = counting
            .next_run_before(from, from + len)
            .map_or(from + 1, |run| run.end);
        let broken =
            |page: usize| passed.is_some_and(|passed| passed.test(page)) && !state.fresh.test(page);
        if passed.is_none_or(|passed| passed.next_set_before(from, end).is_none()) {
            return Claim::Ballooned((end - from) as u64);
        }
        if !broken(from) {
            let stop = (from..end).find(|&page| broken(page)).unwrap_or(end);
            return Claim::Ballooned((stop - from) as u64);
        }
        let stop = (from..end).find(|&page| !broken(page)).unwrap_or(end);
        let last = self.host_page(stop as u64 - 1);
        let page = self.host_page(range.start).start..last.end;
        let (from, len) = (page.start as usize, (page.end - page.start) as usize);
        state.parts.clear_range(from, len);
        if let Some(large) = &mut state.whole {
            large.clear_range(from, len);
        }
        state.fresh.clear_range(from, len);
        self.count
            .store(state.counting().count(), Ordering::Relaxed);
        Claim::Written(page)
    }

    /// Calls `each` with runs of pages that became ballooned since the last call.
    pub(crate) fn take_news(&self, mut each: impl FnMut(usize, &[u64], usize)) {
        let mut from = 0;
        while self.count() != 0 {
            let mut guard = self.lock();
            let Some(state) = &mut *guard else {
                return;
            };
            let Some(at) = state.fresh.next_set(from) else {
                return;
            };
            // In slices, so that a device's thread never waits for a whole guest's bits.
            let start = at / 64 * 64;
            let end = (start + SLICE).min(self.pages as usize);
            each(start, &state.fresh.words()[start / 64..], end - start);
            state.fresh.clear_range(start, end - start);
            from = end;
        }
    }

    /// How many pages of `pending` are ballooned. Costs the words that have bits in both, not the
    /// block's size.
    pub(crate) fn count_both(&self, pending: &Bitmap) -> u64 {
        let mut both = 0;
        let mut from = 0;
        while self.count() != 0 {
            let guard = self.lock();
            let Some(state) = &*guard else {
                break;
            };
            let counting = state.counting();
            let Some(at) = counting.next_set(from) else {
                break;
            };
            let Some(at) = pending.next_set(at) else {
                break;
            };
            let end = at.saturating_add(SLICE).min(self.pages as usize);
            let mut next = Some(at);
            while let Some(at) = next.and_then(|at| pending.next_set_before(at, end)) {
                let group = at / GROUP * GROUP;
                let stop = (group + GROUP).min(end);
                for i in at / 64..stop.div_ceil(64) {
                    let word = |bits: &Bitmap| bits.words().get(i).copied().unwrap_or(0);
                    let mut both_here = word(counting) & word(pending);
                    // The slice may begin or end inside a word.
                    if i * 64 < at {
                        both_here &= u64::MAX << (at % 64);
                    }
                    if (i + 1) * 64 > stop {
                        both_here &= u64::MAX >> (64 - stop % 64);
                    }
                    both += u64::from(both_here.count_ones());
                }
                next = counting.next_set_before(stop, end);
            }
            from = end;
        }
        both
    }

    /// Makes no page ballooned any more, and returns the old bits.
    pub(super) fn forget(&self) -> Option<State> {
        let mut guard = self.lock();
        self.count.store(0, Ordering::Relaxed);
        guard.take()
    }
}

/// Old bits. Freeing those of a huge guest takes milliseconds, so drop this while no thread waits.
#[must_use]
#[derive(Default)]
pub(crate) struct Forgotten(Vec<State>);

impl Forgotten {
    pub(super) fn add(&mut self, state: State) {
        self.0.push(state);
    }
}

#[cfg(test)]
mod tests;
