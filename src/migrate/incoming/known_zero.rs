//! What is known of a block's contents at the destination without looking, and how its pages become
//! zero.
//!
//! Nothing is known of most memory. When a zero page arrives, [`Contents`] is asked about just that
//! page, and a page that holds nothing stays untouched. So a record costs what its pages cost,
//! however large the block is and however its memory is broken up. An incoming migration that is
//! cancelled ends soon, and a source that announces a block again and again causes no looks at its
//! memory.
//!
//! When the VMM says that a block reads as zero (`BRANT_RAM_ZEROED`), the pages that have not
//! arrived yet are known to be zero. That is true until somebody writes to the block. The block
//! itself remembers the write, because the next incoming migration is given the same block.
//!
//! Used by the page account.

use crate::bits::Stretches;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access;
use crate::memory::contents::{Contents, Held};
use crate::memory::{Block, PageRun};
use crate::units::Pages;
use std::ops::Range;

/// What is known of one block, as the file's description says.
pub(super) struct KnownZero {
    /// For a block that reads as zero: the pages that have been written since. `None` when nothing
    /// is known of the block.
    written: Option<Stretches>,
}

impl KnownZero {
    /// For a block of which nothing is known.
    pub(super) fn nothing() -> Self {
        KnownZero { written: None }
    }

    /// What is known of `block`, as the VMM gave it to us or as an earlier incoming migration left
    /// it.
    pub(super) fn of(block: &Block) -> Result<Self> {
        let written = match block.is_zeroed() {
            true => Some(Stretches::new(block.pages().index())?),
            false => None,
        };
        Ok(KnownZero { written })
    }

    /// Called before pages of `block` are written with contents.
    pub(super) fn written(&self, block: &Block, range: Range<u64>) {
        block.zeroed_no_more();
        if let Some(written) = &self.written {
            let count = range.end - range.start;
            written.set_range(range.start as usize, count as usize);
        }
    }

    /// Makes runs of pages of `block` read as zero. `block` must be the one that this value is
    /// about.
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

/// The error for pages of a block that could not be looked at. It says that they cannot be written,
/// because they were to be written if they were not zero already.
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
            // SAFETY: a new mapping, at an address of the kernel's choice.
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
            // Otherwise a touch of one page would back a whole huge page.
            // SAFETY: advice about our own mapping.
            unsafe { libc::madvise(at, length, libc::MADV_NOHUGEPAGE) };
            let memory = Memory::new().unwrap();
            memory
                .add_block(BlockDescription {
                    name: "ram".into(),
                    // SAFETY: the test's own memory, or an address that nothing reads or writes.
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

        /// The pages of `range` as runs, each inside one stretch.
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
            // SAFETY: mapped in `new`, and no longer used by anybody.
            unsafe { libc::munmap(self.at.cast(), (PAGES * PAGE_SIZE) as usize) };
        }
    }

    #[test]
    fn untouched_pages_stay_untouched_and_all_others_become_zero() {
        let area = Area::new(false);
        let mut contents = Contents::new();
        // Written are every other page of the second stretch, which is more regions than one look
        // returns, and the last page of the block.
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
        // The first page of the stretch was not in the range.
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
            // The same for a page that arrives after it became zero.
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
        // The page is not zero, but nobody looks at it: the VMM promised that it is.
        area.write(7);
        let known = KnownZero::of(&area.block).unwrap();
        known
            .make_zero(&mut contents, &area.block, &area.runs(0..PAGES))
            .unwrap();
        assert_eq!(area.read(7), 9, "the page was looked at");
        // Another incoming migration begins after one that brought only zero pages.
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
