//! One block under userfaultfd's write protection: which of its memory is protected, and what was
//! written since it was.
//!
//! Protecting a page that was never touched costs page tables (2 MiB a GiB), and leaves a marker that
//! hides from everybody that the page holds nothing. So private memory is looked at first, a *piece*
//! of 2 MiB at a time:
//!
//! - A piece that holds nothing stays as it is. Nothing can be written to it without an entry in the
//!   page tables, so a look for entries finds what was written; then the piece is protected.
//! - Any other piece is protected, and of its pages that hold nothing a note is kept
//!   ([`HiddenHoles`]): the call that protects says of each page what it was in that moment.
//!
//! Shared memory is protected whole. A page of it can be written and lose its entry again (to
//! swap), and only a marker outlives that; what its file holds is asked of the file.
//!
//! Example of what must not be lost: page 5 of an empty piece is looked at, then written, then
//! protected. Looking and protecting apart would find it empty before and clean after. So what the
//! look found decides only *whether* the piece is protected; what is in it is told by the call that
//! protects.

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
/// A call that takes longer than this is followed by one of half the bytes; one that takes less than a
/// quarter of it, by one of twice as many.
const CALL: Duration = Duration::from_micros(200);
/// Bytes in a piece, where pages are no larger: what one page table maps.
const PIECE: u64 = 2 << 20;

/// Written pages, and nothing else in any mask: only in this form does the kernel take a
/// page whose entry is empty (discarded, swapped away) for a written one. Memory that is not
/// registered would count as written all over; `CHECK_WPASYNC` makes that an error.
const WRITTEN_PAGES: Query = Query {
    flags: WP_MATCHING | CHECK_WPASYNC,
    inverted: 0,
    all: WRITTEN,
    any: 0,
    report: WRITTEN,
};

/// The same, with what each page was. Kernels before July 2026 may leave out pages with an empty
/// entry, and then leave them unprotected too: [`WRITTEN_PAGES`] finds those.
const WHAT_PAGES_WERE: Query = Query {
    report: WRITTEN | PRESENT | SWAPPED | PFNZERO | FILE,
    ..WRITTEN_PAGES
};

/// Pages of private memory that were written at any time: with an entry that is neither the kernel's
/// page of zeros nor a page of the file below. Protects nothing.
const COPIES: Query = Query {
    flags: CHECK_WPASYNC,
    inverted: PFNZERO | FILE,
    all: PFNZERO | FILE,
    any: PRESENT | SWAPPED,
    report: PRESENT | SWAPPED,
};

/// How many bytes one call looks at. The kernel holds the process' memory map, shared, for as long as
/// a call takes, and whoever wants to change the map waits, and then whoever wants to look at it:
/// a first write to a page, say. A gigabyte without page tables is passed over in microseconds;
/// one whose tables have to be made takes tens of milliseconds.
struct Pace {
    step: Cell<u64>,
    /// Calls end at multiples of the step, and so never inside a huge page.
    least: u64,
}

impl Pace {
    /// For memory whose pieces have that many bytes, a power of two.
    fn new(piece: u64) -> Pace {
        Pace {
            step: Cell::new(STEP_FIRST.max(piece)),
            least: piece,
        }
    }

    /// Makes a call that begins at an address: `call` is told where to end, and says where it did.
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

    /// Calls `step` for each part of a range until it has got to the end.
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

/// Whether a page that was reported with these categories is one of [`COPIES`].
fn is_copy(categories: u64) -> bool {
    categories & (PRESENT | SWAPPED) != 0 && categories & (PFNZERO | FILE) == 0
}

/// See the file's description. The block is registered with the log's userfaultfd.
pub(super) struct Protected {
    block: Arc<Block>,
    range: Range<u64>,
    /// Bytes in a piece.
    piece: u64,
    pace: Pace,
    /// Pieces that are protected, by their address; `None`: all of the block is.
    pieces: Option<Bitmap>,
    hidden_holes: Arc<HiddenHoles>,
}

impl Protected {
    /// Protects what there is of a block. What was written before this returns may or may not be found
    /// later.
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
            // Without memory for the note pages are read that need not be.
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

    /// The addresses that are registered.
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Bytes held for it.
    pub(super) fn heap_bytes(&self) -> u64 {
        let pieces = self.pieces.as_ref().map_or(0, Bitmap::heap_bytes);
        pieces as u64 + self.hidden_holes.heap_bytes()
    }

    /// It is not protected any more, or soon will not be.
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

    /// Merges what was written into `pending`, and protects it again; how many pages were not
    /// pending before.
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
                    // With the list full the kernel stops, and has protected just what is on it:
                    // the walk goes on where it ended.
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

    /// Looks for pages that hold something in pieces that are not protected, and protects the pieces
    /// in which there are any. `written` is called with what they hold.
    fn find_filled(
        &mut self,
        pagemap: &Pagemap,
        range: Range<u64>,
        written: &mut dyn FnMut(Range<Pages>),
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            // One page is enough to know: what else the piece holds is told when it is protected.
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

    /// Protects whole pieces. `written` is called with pages that held something when that was done,
    /// and of the others a note is made.
    fn protect(
        &mut self,
        pagemap: &Pagemap,
        range: Range<u64>,
        written: &mut dyn FnMut(Range<Pages>),
    ) -> Result<()> {
        // Noted first: after an error part of it may be protected.
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
        // Pages that an old kernel left out, and with them what was written in between.
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

    /// Whether the piece at an address is protected, and up to where the pieces after it are alike.
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

/// Whether all of a range is private memory, and the largest page in it. No, where that is not known.
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

/// Pages of a region that lie in `range`, counted from `start`.
fn pages_of(region: &PageRegion, start: u64, range: &Range<u64>) -> Range<Pages> {
    let first = region.start.max(range.start);
    let end = region.end.min(range.end).max(first);
    Pages((first - start) / PAGE_SIZE)..Pages((end - start) / PAGE_SIZE)
}

/// Makes pages pending; how many they are.
fn set(pending: &mut Bitmap, pages: Range<Pages>) -> u64 {
    let count = pages.end.0 - pages.start.0;
    pending.set_range(pages.start.index(), count as usize);
    count
}

#[cfg(test)]
mod tests;
