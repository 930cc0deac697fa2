//! What is known of a block at the destination: which of its pages read as zero, so that a zero
//! page that arrives for one of them leaves it untouched.
//!
//! The host is asked a stretch at a time, and only when a zero page arrives there. So what one
//! record costs is bounded by its stretch, whatever the block's size and however its memory is
//! broken up: an incoming that is cancelled ends soon, and a source that announces a block again
//! and again gets nothing looked at by that. Used by the page sink.

use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::memory::host::HostView;
use crate::memory::Block;
use crate::units::{Pages, STRETCH_PAGES};
use std::ops::Range;

/// See the file's description.
pub(super) struct KnownZero {
    /// Pages that read as zero without anybody having to look.
    zero: Bitmap,
    /// Stretches of which the host was not asked yet.
    unseen: Bitmap,
}

impl KnownZero {
    /// Of a block of `pages` of which nothing is known, and of which the host can tell nothing.
    pub(super) fn nothing(pages: Pages) -> Result<Self> {
        Ok(KnownZero {
            zero: Bitmap::new(pages.index())?,
            unseen: Bitmap::new(0)?,
        })
    }

    /// Of a block that reads as zero.
    pub(super) fn everything(pages: Pages) -> Result<Self> {
        let mut known = KnownZero::nothing(pages)?;
        known.zero.set_all();
        Ok(known)
    }

    /// Of a block of which the host knows more than we do yet.
    pub(super) fn to_be_asked(pages: Pages) -> Result<Self> {
        let mut known = KnownZero::nothing(pages)?;
        known.unseen = Bitmap::new(pages.0.div_ceil(STRETCH_PAGES) as usize)?;
        known.unseen.set_all();
        Ok(known)
    }

    /// Pages were, or are about to be, written with contents.
    pub(super) fn written(&mut self, range: Range<u64>) {
        let count = range.end - range.start;
        self.zero.clear_range(range.start as usize, count as usize);
    }

    /// Pages were given back to the host.
    pub(super) fn given_back(&mut self, range: Range<u64>) {
        let count = range.end - range.start;
        self.zero.set_range(range.start as usize, count as usize);
    }

    /// Has pages of `block`, which this is the knowledge of, read as zero.
    pub(super) fn make_zero(
        &mut self,
        view: &HostView,
        block: &Block,
        range: Range<u64>,
    ) -> Result<()> {
        self.ask(view, block, &range)?;
        let (mut at, end) = (range.start as usize, range.end as usize);
        while at < end {
            // From here, pages known to be zero, then pages that are not known to be.
            let known = self
                .zero
                .next_run(at, end - at)
                .filter(|run| run.start < end)
                .unwrap_or(end..end);
            if at < known.start {
                let unknown = Pages(at as u64)..Pages(known.start as u64);
                let mut to_write = Vec::new();
                // Reading costs less than writing and leaves shared pages shared.
                block.split_zeros(unknown, |range, zero| {
                    if !zero {
                        to_write.push(range);
                    }
                })?;
                for range in to_write {
                    block.write_zeros(range)?;
                }
                self.zero.set_range(at, known.start - at);
            }
            at = known.end;
        }
        Ok(())
    }

    /// Asks the host about the stretches of `range` that it was not asked about. It tells of more
    /// than that where it says so in one go, as it does of memory that nobody has touched.
    fn ask(&mut self, view: &HostView, block: &Block, range: &Range<u64>) -> Result<()> {
        let last = range.end.div_ceil(STRETCH_PAGES) as usize;
        let mut stretch = (range.start / STRETCH_PAGES) as usize;
        while let Some(next) = self.unseen.next_set_before(stretch, last) {
            let begin = next as u64 * STRETCH_PAGES;
            // To the next stretch that is known, at the furthest.
            let known = self.unseen.next_clear(next).unwrap_or(self.unseen.len());
            let end = (known as u64 * STRETCH_PAGES).min(block.pages().0);
            let needed = (begin + STRETCH_PAGES).min(end);
            let mut touched = Vec::new();
            let mut at = begin;
            while at < needed {
                let rest = Pages(at)..Pages(end);
                at = view
                    .look(block, rest, |r| touched.push(r.start.0..r.end.0))?
                    .0;
            }
            // A stretch that was looked at in part counts as not looked at.
            if at < end {
                at = (at / STRETCH_PAGES * STRETCH_PAGES).max(needed);
            }
            self.given_back(begin..at);
            for run in touched {
                self.written(run.start.min(at)..run.end.min(at));
            }
            let seen = at.div_ceil(STRETCH_PAGES) as usize;
            self.unseen.clear_range(next, seen - next);
            stretch = seen;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{BlockDescription, BlockFlags, Memory};
    use crate::units::{Bytes, PAGE_SIZE};
    use std::sync::Arc;

    const PAGES: u64 = 5 * STRETCH_PAGES - 7;

    struct Area {
        at: *mut u8,
        block: Arc<Block>,
    }

    impl Area {
        fn new() -> Area {
            let length = (PAGES * PAGE_SIZE) as usize;
            // SAFETY: a new mapping where the kernel likes.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(at, libc::MAP_FAILED);
            // Huge pages would be touched whole.
            // SAFETY: advice about our own mapping.
            unsafe { libc::madvise(at, length, libc::MADV_NOHUGEPAGE) };
            let memory = Memory::new().unwrap();
            memory
                .add_block(BlockDescription {
                    name: "ram".into(),
                    // SAFETY: the test's own memory, or an address that nothing looks at.
                    host: unsafe { crate::memory::HostMemory::new(at.cast()) },
                    length: Pages(PAGES).bytes(),
                    page_size: Bytes(PAGE_SIZE),
                    file: None,
                    flags: BlockFlags::default(),
                })
                .unwrap();
            let block = Arc::clone(&memory.map().blocks()[0]);
            Area {
                at: at.cast(),
                block,
            }
        }

        fn write(&self, page: u64) {
            // SAFETY: inside our own mapping.
            unsafe { self.block.page_address(Pages(page)).write_volatile(9) };
        }

        fn read(&self, page: u64) -> u8 {
            // SAFETY: inside our own mapping.
            unsafe { self.block.page_address(Pages(page)).read_volatile() }
        }

        fn touched(&self, view: &HostView) -> u64 {
            let mut pages = 0;
            view.touched(&self.block, Pages(0)..Pages(PAGES), |r| {
                pages += r.end.0 - r.start.0;
            })
            .unwrap();
            pages
        }
    }

    impl Drop for Area {
        fn drop(&mut self) {
            // SAFETY: mapped in `new`, and nobody uses it any more.
            unsafe { libc::munmap(self.at.cast(), (PAGES * PAGE_SIZE) as usize) };
        }
    }

    #[test]
    fn untouched_pages_stay_untouched_and_all_others_become_zero() {
        let area = Area::new();
        let view = HostView::new();
        // Every other page of the second stretch, more regions than one look returns; and the
        // last page.
        let broken = (STRETCH_PAGES..2 * STRETCH_PAGES).step_by(2);
        let written: Vec<u64> = broken.chain([PAGES - 1]).collect();
        written.iter().for_each(|page| area.write(*page));
        let before = area.touched(&view);
        assert_eq!(before, written.len() as u64);
        let mut known = KnownZero::to_be_asked(Pages(PAGES)).unwrap();
        for stretch in [4, 0, 2, 1, 3] {
            let begin = stretch * STRETCH_PAGES;
            let range = begin + 1..(begin + STRETCH_PAGES).min(PAGES);
            known.make_zero(&view, &area.block, range).unwrap();
        }
        assert_eq!(area.touched(&view), before, "none was touched that was not");
        // The first page of a stretch was not asked for.
        assert_eq!(area.read(STRETCH_PAGES), 9);
        for page in &written[1..] {
            assert_eq!(area.read(*page), 0, "page {page}");
        }
    }

    #[test]
    fn what_arrives_before_the_host_was_asked_is_not_taken_for_untouched() {
        let area = Area::new();
        let view = HostView::new();
        let mut known = KnownZero::to_be_asked(Pages(PAGES)).unwrap();
        known.written(3..5);
        area.write(3);
        area.write(4);
        known.make_zero(&view, &area.block, 0..10).unwrap();
        assert_eq!((area.read(3), area.read(4)), (0, 0));
        // And after it.
        known.written(3..4);
        area.write(3);
        known.make_zero(&view, &area.block, 0..10).unwrap();
        assert_eq!(area.read(3), 0);
    }

    #[test]
    fn a_record_asks_about_untouched_memory_once() {
        let area = Area::new();
        let view = HostView::new();
        let mut known = KnownZero::to_be_asked(Pages(PAGES)).unwrap();
        known.make_zero(&view, &area.block, 0..1).unwrap();
        assert!(known.unseen.is_empty(), "one look told of all of it");
        assert_eq!(known.zero.count(), PAGES);
        assert_eq!(area.touched(&view), 0);
    }
}
