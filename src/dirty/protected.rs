//! One block under userfaultfd's write protection: which parts of it are protected, and which pages
//! were written since.
//!
//! Protecting a page that was never touched costs page tables (2 MiB a GiB). It also leaves a
//! marker, which hides that the page is a hole. So private memory is looked at first, in *pieces*
//! of 2 MiB:
//!
//! - A piece of holes stays as it is. Nothing can be written to it without an entry in the page
//!   tables. So a later look for entries finds what was written, and then the piece is protected.
//! - Any other piece is protected, and its holes are noted ([`HiddenHoles`]): the call that
//!   protects reports what each page was at that moment.
//!
//! Shared memory is protected as a whole. A page of it can be written and lose its entry again (to
//! swap), and only a marker outlives that. Its holes are found by asking its file.
//!
//! Example of a loss that this avoids: page 5 of an empty piece is looked at, then written, then
//! protected. If looking and protecting were told apart, the page would be empty before and clean
//! after. So the look decides only *whether* a piece is protected; the call that protects tells
//! what is in it.

use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::memory::{Block, HiddenHoles};
use crate::sys::maps::Maps;
use crate::sys::pagemap::{
    PageRegion, Pagemap, Query, CHECK_WPASYNC, FILE, PFNZERO, PRESENT, SWAPPED, WP_MATCHING,
    WRITTEN,
};
use crate::units::{Pages, PAGE_SIZE};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most bytes that one call looks at: see [`Pace`].
const STEP_MAX: u64 = 1 << 30;
/// The bytes that the first call looks at.
const STEP_FIRST: u64 = 64 << 20;
/// After a call that takes longer than this, the next one looks at half the bytes. After one that
/// takes less than a quarter of it, the next one looks at twice as many.
const CALL: Duration = Duration::from_micros(200);
/// Bytes of a piece where pages are no larger: the range of one page table.
const PIECE: u64 = 2 << 20;

/// Written pages, and nothing else in any mask. Only in this form does the kernel report a page
/// whose entry is empty (discarded, swapped away) as written. Memory that is not registered would
/// count as written everywhere; `CHECK_WPASYNC` makes it an error.
const WRITTEN_PAGES: Query = Query {
    flags: WP_MATCHING | CHECK_WPASYNC,
    inverted: 0,
    all: WRITTEN,
    any: 0,
    report: WRITTEN,
};

/// Written pages, with what each page was. Kernels before July 2026 may leave out pages with an
/// empty entry, and then leave them unprotected too: [`WRITTEN_PAGES`] finds those.
const WHAT_PAGES_WERE: Query = Query {
    report: WRITTEN | PRESENT | SWAPPED | PFNZERO | FILE,
    ..WRITTEN_PAGES
};

/// Pages of private memory that were written at any time: their entry is neither the kernel's page
/// of zeros nor a page of the file below. This query protects nothing.
const COPIES: Query = Query {
    flags: CHECK_WPASYNC,
    inverted: PFNZERO | FILE,
    all: PFNZERO | FILE,
    any: PRESENT | SWAPPED,
    report: PRESENT | SWAPPED,
};

/// How many bytes one call looks at. During a call the kernel holds the process' memory map,
/// shared. A thread that wants to change the map waits for the call, and then threads that want to
/// look at the map wait for that thread: one that first writes to a page, for example. A gigabyte
/// without page tables takes microseconds; one whose tables must be made takes tens of
/// milliseconds.
struct Pace {
    step: Cell<u64>,
    /// Calls end at multiples of this step, and so never inside a huge page.
    least: u64,
}

impl Pace {
    /// A pace for memory with pieces of this many bytes, a power of two.
    fn new(piece: u64) -> Pace {
        Pace {
            step: Cell::new(STEP_FIRST.max(piece)),
            least: piece,
        }
    }

    /// Makes a call that begins at an address. `call` is told where to end, and returns where it
    /// ended.
    fn call<T>(&self, at: u64, call: impl FnOnce(u64) -> Result<T>) -> Result<T> {
        let step = self.step.get();
        let begun = Instant::now();
        let done = call((at / step + 1).saturating_mul(step))?;
        let took = begun.elapsed();
        if took > CALL {
            self.step.set((step / 2).max(self.least));
        } else if took < CALL / 4 {
            self.step.set((step * 2).min(STEP_MAX.max(self.least)));
        }
        Ok(done)
    }

    /// Calls `step` for each part of a range until the end is reached.
    fn walk(
        &self,
        range: &Range<u64>,
        mut step: impl FnMut(Range<u64>) -> Result<u64>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let walked = self.call(at, |end| step(at..end.min(range.end)))?;
            if walked <= at {
                return Err(Error::new(
                    Kind::Kernel,
                    format!("PAGEMAP_SCAN made no progress at {at:#x}"),
                ));
            }
            at = walked;
        }
        Ok(())
    }
}

/// Whether a page that was reported with these categories matches [`COPIES`].
fn is_copy(categories: u64) -> bool {
    categories & (PRESENT | SWAPPED) != 0 && categories & (PFNZERO | FILE) == 0
}

/// See the file's description. The block is registered with the log's userfaultfd.
pub(super) struct Protected {
    block: Arc<Block>,
    range: Range<u64>,
    /// Bytes of a piece.
    piece: u64,
    pace: Pace,
    /// The protected pieces, by address; `None` if the whole block is protected.
    pieces: Option<Bitmap>,
    hidden_holes: Arc<HiddenHoles>,
}

impl Protected {
    /// Protects a block's memory. Writes that come before this returns may be found later, or may
    /// not.
    pub(super) fn new(block: &Arc<Block>, pagemap: &Pagemap) -> Result<Protected> {
        let start = block.host() as u64;
        let range = start..start + block.length().0;
        let (private, page_size) = what_is_mapped(&range);
        let piece = PIECE.max(page_size).max(block.page_size().0);
        let mut this = Protected {
            block: Arc::clone(block),
            piece,
            pace: Pace::new(piece),
            pieces: None,
            // Without memory for the notes, holes are read that need not be.
            hidden_holes: Arc::new(match private {
                true => HiddenHoles::new(block.pages()).or_else(|_| HiddenHoles::none())?,
                false => HiddenHoles::none()?,
            }),
            range,
        };
        if private {
            let count = this.piece_of(this.range.end - 1) + 1;
            this.pieces = Some(Bitmap::new(count as usize)?);
        }
        block.watch(Some(Arc::clone(&this.hidden_holes)));
        this.begin(pagemap).inspect_err(|_| {
            block.watch(None);
        })?;
        Ok(this)
    }

    /// The registered addresses.
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Bytes of memory that bitmaps and notes hold.
    pub(super) fn heap_bytes(&self) -> u64 {
        let pieces = self.pieces.as_ref().map_or(0, Bitmap::heap_bytes);
        pieces as u64 + self.hidden_holes.heap_bytes()
    }

    /// Tells that the block is no longer protected, or soon will not be.
    pub(super) fn end(&self) {
        self.block.watch(None);
    }

    fn begin(&mut self, pagemap: &Pagemap) -> Result<()> {
        if self.pieces.is_none() {
            let protect = |part| pagemap.protect(part, &WRITTEN_PAGES);
            return self.pace.walk(&self.range, protect);
        }
        let all = self.range.clone();
        self.find_filled(pagemap, all, &mut |_| {})
    }

    /// Merges written pages into `pending`, and protects them again. Returns how many of them were
    /// not pending before.
    pub(super) fn collect(
        &mut self,
        pagemap: &Pagemap,
        regions: &mut [PageRegion],
        pending: &mut Bitmap,
    ) -> Result<u64> {
        let start = self.range.start;
        let mut new = 0;
        let mut at = start;
        while at < self.range.end {
            let (protected, end) = self.alike(at);
            if protected {
                let Protected {
                    hidden_holes, pace, ..
                } = &*self;
                pace.walk(&(at..end), |part| {
                    // When the list is full the kernel stops, and has protected exactly the pages
                    // on it. The walk goes on from there.
                    let (found, walked) = pagemap.scan(part, &WRITTEN_PAGES, regions)?;
                    for region in &regions[..found] {
                        let pages = pages_of(region, start, &(at..end));
                        hidden_holes.written(pages.clone());
                        new += set(pending, pages);
                    }
                    Ok(walked)
                })?;
            } else {
                self.find_filled(pagemap, at..end, &mut |pages| {
                    new += set(pending, pages);
                })?;
            }
            at = end;
        }
        Ok(new)
    }

    /// Looks for written pages in pieces that are not protected, and protects the pieces that have
    /// any. `written` is called with these pages.
    fn find_filled(
        &mut self,
        pagemap: &Pagemap,
        range: Range<u64>,
        written: &mut dyn FnMut(Range<Pages>),
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            // One page is enough to decide. The call that protects the piece tells of the others.
            let (to, first) = self.pace.call(at, |end| {
                let to = end.min(range.end);
                Ok((to, pagemap.first(at..to, &COPIES)?))
            })?;
            at = match first {
                None => to,
                Some(page) => {
                    let begin = page / self.piece * self.piece;
                    let end = begin.saturating_add(self.piece).min(range.end);
                    self.protect(pagemap, begin.max(range.start)..end, written)?;
                    end
                }
            };
        }
        Ok(())
    }

    /// Protects whole pieces. `written` is called with the pages that held contents at that moment.
    /// The other pages are noted as holes.
    fn protect(
        &mut self,
        pagemap: &Pagemap,
        range: Range<u64>,
        written: &mut dyn FnMut(Range<Pages>),
    ) -> Result<()> {
        // Noted first, because after an error some pieces may be protected.
        let first = self.piece_of(range.start);
        let count = self.piece_of(range.end - 1) + 1 - first;
        if let Some(pieces) = &mut self.pieces {
            pieces.set_range(first as usize, count as usize);
        }
        let start = self.range.start;
        let mut regions = [PageRegion::default(); 128];
        self.pace.walk(&range, |part| {
            let (found, walked) = pagemap.scan(part, &WHAT_PAGES_WERE, &mut regions)?;
            for region in &regions[..found] {
                let pages = pages_of(region, start, &range);
                if is_copy(region.categories) {
                    written(pages);
                } else {
                    self.hidden_holes.note(pages);
                }
            }
            Ok(walked)
        })?;
        // Finds pages that an old kernel left out, with writes that came in between.
        self.pace.walk(&range, |part| {
            let (found, walked) = pagemap.scan(part, &WRITTEN_PAGES, &mut regions)?;
            for region in &regions[..found] {
                let pages = pages_of(region, start, &range);
                self.hidden_holes.written(pages.clone());
                written(pages);
            }
            Ok(walked)
        })
    }

    /// Whether the piece at an address is protected, and where the pieces of the same kind after it
    /// end.
    fn alike(&self, at: u64) -> (bool, u64) {
        let Some(pieces) = &self.pieces else {
            return (true, self.range.end);
        };
        let first = self.piece_of(at) as usize;
        let protected = pieces.test(first);
        let next = match protected {
            true => pieces.next_clear(first),
            false => pieces.next_set(first),
        };
        let end = next.map(|next| (self.range.start / self.piece + next as u64) * self.piece);
        (protected, end.unwrap_or(u64::MAX).min(self.range.end))
    }

    fn piece_of(&self, address: u64) -> u64 {
        address / self.piece - self.range.start / self.piece
    }
}

/// Whether a whole range is private memory, and the size of its largest page. `false` where that is
/// unknown.
fn what_is_mapped(range: &Range<u64>) -> (bool, u64) {
    let Ok(maps) = Maps::open() else {
        return (false, PAGE_SIZE);
    };
    let (mut private, mut page_size, mut end) = (true, PAGE_SIZE, range.start);
    let asked = maps.over(range.clone(), |area| {
        private &= !area.shared;
        page_size = page_size.max(area.page_size);
        end = area.end;
        private
    });
    (private && asked.is_ok() && end >= range.end, page_size)
}

/// The pages of a region that lie in `range`, counted from `start`.
fn pages_of(region: &PageRegion, start: u64, range: &Range<u64>) -> Range<Pages> {
    let first = region.start.max(range.start);
    let end = region.end.min(range.end).max(first);
    Pages((first - start) / PAGE_SIZE)..Pages((end - start) / PAGE_SIZE)
}

/// Makes pages pending, and returns their number.
fn set(pending: &mut Bitmap, pages: Range<Pages>) -> u64 {
    let count = pages.end.0 - pages.start.0;
    pending.set_range(pages.start.index(), count as usize);
    count
}

#[cfg(test)]
mod tests;
