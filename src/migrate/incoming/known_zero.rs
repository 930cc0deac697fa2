//! What is known of a block at the destination without looking, and how its pages become zero.
//!
//! Nothing is known of most memory: when a zero page arrives, [`Contents`] is asked about just that
//! page, and one that holds nothing stays untouched. So a record costs what it says, whatever the
//! block's size and however its memory is broken up: an incoming that is cancelled ends soon, and a
//! source that announces a block again and again gets nothing looked at by that.
//!
//! Of a block that the VMM knows to read as zero (`BRANT_RAM_ZEROED`), pages that did not arrive yet
//! are known. That holds while nobody has written to it: the block remembers that, because the
//! next incoming is told of the same block. Used by the page account.

use crate::bits::Stretches;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access;
use crate::memory::contents::{Contents, Held};
use crate::memory::{Block, PageRun};
use crate::units::Pages;
use std::ops::Range;

/// See the file's description.
pub(super) struct KnownZero {
    /// Of a block that reads as zero, pages that do not any more.
    written: Option<Stretches>,
}

impl KnownZero {
    /// Of a block of which nothing is known.
    pub(super) fn nothing() -> Self {
        KnownZero { written: None }
    }

    /// Of `block`, as the VMM gave it to us or an earlier incoming left it.
    pub(super) fn of(block: &Block) -> Result<Self> {
        let written = match block.is_zeroed() {
            true => Some(Stretches::new(block.pages().index())?),
            false => None,
        };
        Ok(KnownZero { written })
    }

    /// Pages of `block` are about to be written with contents.
    pub(super) fn written(&self, block: &Block, range: Range<u64>) {
        block.zeroed_no_more();
        if let Some(written) = &self.written {
            let count = range.end - range.start;
            written.set_range(range.start as usize, count as usize);
        }
    }

    /// Has runs of pages of `block`, which this is the knowledge of, read as zero.
    pub(super) fn make_zero(
        &self,
        contents: &mut Contents,
        block: &Block,
        runs: &[PageRun],
    ) -> Result<()> {
        let Some(written) = &self.written else {
            return write_zeros(contents, block, runs);
        };
        let mut not_zero = Vec::new();
        for run in runs {
            let (mut at, end) = (run.first().index(), run.end().index());
            while let Some(found) = written.next_run(at..end) {
                at = found.end;
                let part = run.part(Pages(found.start as u64)..Pages(found.end as u64));
                fallible::push(&mut not_zero, part, "pages that are to be zero")?;
            }
        }
        write_zeros(contents, block, &not_zero)
    }
}

fn write_zeros(contents: &mut Contents, block: &Block, runs: &[PageRun]) -> Result<()> {
    let mut to_write = Vec::new();
    // Reading costs less than writing and leaves shared pages shared.
    contents
        .split_runs(block, runs, |run, held| {
            if held == Held::Data {
                to_write.push(run.range());
            }
        })
        .map_err(|e| unwritable(e, block, runs))?;
    for run in to_write {
        block.zeroed_no_more();
        block.write_zeros(run)?;
    }
    Ok(())
}

/// Pages of a block that could not be looked at, in the words of what was wanted of them: they
/// were to be written, if they are not zero already.
fn unwritable(error: Error, block: &Block, runs: &[PageRun]) -> Error {
    let refused = |run: &PageRun| access::writable(block, run.range()).err();
    match error.kind() {
        Kind::Memory => runs.iter().find_map(refused).unwrap_or(error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{BlockDescription, BlockFlags, Memory};
    use crate::units::{Bytes, PAGE_SIZE, STRETCH_PAGES};
    use std::sync::Arc;

    const PAGES: u64 = 5 * STRETCH_PAGES - 7;

    struct Area {
        at: *mut u8,
        block: Arc<Block>,
    }

    impl Area {
        fn new(zeroed: bool) -> Area {
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
                    flags: BlockFlags {
                        zeroed,
                        ..BlockFlags::default()
                    },
                })
                .unwrap();
            let block = Arc::clone(&memory.map().blocks()[0]);
            Area {
                at: at.cast(),
                block,
            }
        }

        /// Pages as runs, each inside one stretch.
        fn runs(&self, range: Range<u64>) -> Vec<PageRun> {
            let (mut runs, mut at) = (Vec::new(), range.start);
            while at < range.end {
                let end = (at / STRETCH_PAGES + 1) * STRETCH_PAGES;
                let count = Pages(end.min(range.end) - at);
                runs.push(self.block.run(Pages(at), count).unwrap());
                at = end;
            }
            runs
        }

        fn write(&self, page: u64) {
            // SAFETY: inside our own mapping.
            unsafe { self.block.page_address(Pages(page)).write_volatile(9) };
        }

        fn read(&self, page: u64) -> u8 {
            // SAFETY: inside our own mapping.
            unsafe { self.block.page_address(Pages(page)).read_volatile() }
        }

        fn touched(&self) -> u64 {
            let mut pages = 0;
            let mut contents = Contents::new();
            contents
                .touched(&self.block, Pages(0)..Pages(PAGES), |r| {
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
        let area = Area::new(false);
        let mut contents = Contents::new();
        // Every other page of the second stretch, more regions than one look returns; and the
        // last page.
        let broken = (STRETCH_PAGES..2 * STRETCH_PAGES).step_by(2);
        let written: Vec<u64> = broken.chain([PAGES - 1]).collect();
        written.iter().for_each(|page| area.write(*page));
        let before = area.touched();
        assert_eq!(before, written.len() as u64);
        let known = KnownZero::of(&area.block).unwrap();
        for stretch in [4, 0, 2, 1, 3] {
            let begin = stretch * STRETCH_PAGES;
            let range = begin + 1..(begin + STRETCH_PAGES).min(PAGES);
            known
                .make_zero(&mut contents, &area.block, &area.runs(range))
                .unwrap();
        }
        assert_eq!(area.touched(), before, "none was touched that was not");
        // The first page of a stretch was not asked for.
        assert_eq!(area.read(STRETCH_PAGES), 9);
        for page in &written[1..] {
            assert_eq!(area.read(*page), 0, "page {page}");
        }
    }

    #[test]
    fn what_arrived_becomes_zero_again_whatever_was_known_of_the_block() {
        for zeroed in [false, true] {
            let area = Area::new(zeroed);
            let mut contents = Contents::new();
            let known = KnownZero::of(&area.block).unwrap();
            known.written(&area.block, 3..5);
            area.write(3);
            area.write(4);
            known
                .make_zero(&mut contents, &area.block, &area.runs(0..10))
                .unwrap();
            assert_eq!((area.read(3), area.read(4)), (0, 0));
            // And after it.
            known.written(&area.block, 3..4);
            area.write(3);
            known
                .make_zero(&mut contents, &area.block, &area.runs(0..10))
                .unwrap();
            assert_eq!(area.read(3), 0);
        }
    }

    #[test]
    fn a_block_counts_as_zeroed_until_something_arrives_for_it() {
        let area = Area::new(true);
        let mut contents = Contents::new();
        // Not so, and nobody looks: that is what the VMM promised.
        area.write(7);
        let known = KnownZero::of(&area.block).unwrap();
        known
            .make_zero(&mut contents, &area.block, &area.runs(0..PAGES))
            .unwrap();
        assert_eq!(area.read(7), 9, "the page was looked at");
        // Another incoming, after one that brought only zeros.
        let known = KnownZero::of(&area.block).unwrap();
        known.written(&area.block, 100..101);
        let known = KnownZero::of(&area.block).unwrap();
        known
            .make_zero(&mut contents, &area.block, &area.runs(0..PAGES))
            .unwrap();
        assert_eq!(
            area.read(7),
            0,
            "a later incoming took the block for zeroed"
        );
    }
}
