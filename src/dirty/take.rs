//! A take: the next run of a consumer's pending pages has its protection restored, and moves into a
//! [`Taken`]. This runs under the tracker's lock.

use super::pending::{BlockState, Seat};
use super::run::{Content, Cursor, Kept};
use super::state::Inner;
use super::taken::Taken;
use crate::error::Result;
use crate::memory::ballooned::Claim;
use crate::memory::BlockId;
use crate::units::{Pages, STRETCH_PAGES};
use std::ops::Range;

/// Pages that a walk looks ahead: 8 GiB, 64 words of a summary.
const WINDOW: u64 = 1 << 21;

/// The pages that a walk asks for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The consumer.
    pub seat: Seat,
    /// Ballooned pages are named, not read.
    pub skip_ballooned: bool,
    /// Only pages that are not read: ballooned and free ones.
    pub unread: bool,
    /// Only pages of this block, and only those before this one.
    pub within: Option<(BlockId, u64)>,
}

impl Inner {
    /// Takes the next run into `taken`, which has room for it.
    pub(super) fn take_one(
        &mut self,
        cursor: &mut Cursor,
        max_pages: u64,
        what: Wanted,
        taken: &mut Taken,
    ) -> Result<Option<Kept>> {
        let seat = what.seat;
        loop {
            let Some((id, state)) = self.blocks.at_or_after(BlockId(cursor.block)) else {
                return Ok(None);
            };
            if id.0 != cursor.block {
                *cursor = Cursor::at(id);
            }
            let end_of_wanted = match what.within {
                Some((block, _)) if block != id => return Ok(None),
                Some((_, end)) => end,
                None => u64::MAX,
            };
            if cursor.page >= end_of_wanted {
                return Ok(None);
            }
            let BlockState {
                pin_source, sets, ..
            } = state;
            let set = sets.get_mut(seat).and_then(Option::as_mut);
            let Some(set) = set.filter(|s| !s.pending.is_empty() || !s.beside.none_free()) else {
                *cursor = cursor.next_block();
                continue;
            };
            // A large block is not searched as a whole. There are two bitmaps, and one may have no
            // bit for a long way. It would be searched again for each run that the other one has.
            let window = cursor.page.saturating_add(WINDOW).min(end_of_wanted);
            let found = if what.unread && !what.skip_ballooned {
                None
            } else if what.unread {
                set.next_ballooned(pin_source, cursor.page, window)
            } else {
                set.next_pending(cursor.page, window)
            };
            // A hinted page that was found written since is pending, and is handed out as such.
            let before = found.as_ref().map_or(window, |found| found.start);
            let free = match what.within {
                None => set.next_free(cursor.page, before),
                Some(_) => None,
            };
            if let Some(free) = free {
                let end = free.end;
                match state.hand_out(seat, free, Content::Free, taken)? {
                    Some(run) => {
                        cursor.page = end;
                        return Ok(Some(run));
                    }
                    None => {
                        *cursor = cursor.next_block();
                        continue;
                    }
                }
            }
            let Some(found) = found else {
                cursor.page = window;
                if window >= pin_source.pages().0 {
                    *cursor = cursor.next_block();
                }
                continue;
            };
            let first = found.start;
            let stretch_end = (first / STRETCH_PAGES + 1) * STRETCH_PAGES;
            let end = found
                .end
                .min(stretch_end)
                .min(set.cut_at_fresh(first))
                .min(end_of_wanted)
                .min(first.saturating_add(max_pages));
            // The protection of a page is restored before anything looks at the page, even if only
            // to decide that it need not be read. Otherwise a page could be lost: GET; the page is
            // a hole; the guest writes it; CLEAR with the old copy takes its bit.
            self.rearm(id, first..end)?;
            let Some(state) = self.blocks.get_mut(id) else {
                return Ok(None);
            };
            let (count, content) = if what.skip_ballooned {
                match state.claim(seat, first..end) {
                    Claim::Used(count) => (count, Content::Used),
                    Claim::Ballooned(count) => (count, Content::Ballooned),
                    Claim::Written(used) => {
                        // The page was written although it was ballooned. The guest uses the whole
                        // host page again. All its pages are pending now, this one included.
                        self.count_broken(seat, Pages(used.end - used.start));
                        // Some of them may lie before this page, and the walk must not end before
                        // it has taken them.
                        cursor.page = cursor.page.min(used.start);
                        continue;
                    }
                }
            } else {
                (end - first, Content::Used)
            };
            if what.unread && content == Content::Used {
                // The guest deflated the page a moment ago.
                cursor.page = first + count;
                continue;
            }
            let Some(run) = state.hand_out(seat, first..first + count, content, taken)? else {
                *cursor = cursor.next_block();
                continue;
            };
            cursor.page = first + count;
            if content == Content::Ballooned {
                self.stats.ballooned += Pages(count);
                if let Some(member) = self.member(seat) {
                    member.ballooned = member.ballooned.saturating_sub(count);
                    member.stats.ballooned += Pages(count);
                }
            }
            return Ok(Some(run));
        }
    }
}

impl BlockState {
    /// Moves pages from a consumer's pending into `taken`, which has room for a run. Returns
    /// `None`, and the pages stay pending, if the block is just being removed.
    fn hand_out(
        &mut self,
        seat: Seat,
        pages: Range<u64>,
        content: Content,
        taken: &mut Taken,
    ) -> Result<Option<Kept>> {
        let (first, count) = (Pages(pages.start), Pages(pages.end - pages.start));
        let mut run = Kept {
            pages: self.pin_source.run(first, count)?,
            content,
            first_time: false,
        };
        let set = self.sets.get_mut(seat).and_then(Option::as_mut);
        if let Some(set) = set {
            run.first_time = set.fresh_from <= pages.start;
            // Added there first and removed here second: in between, the pages are in both places,
            // not in none.
            if !taken.push(&self.pin_source, run)? {
                return Ok(None);
            }
            set.fresh_from = set.fresh_from.max(pages.end);
            if content != Content::Free {
                // A free page that is also pending was written since, so it stays pending.
                set.pending.clear_range(first.index(), count.index());
            }
            set.beside.handed_out(pages, content);
        }
        Ok(Some(run))
    }
}
