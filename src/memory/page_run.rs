//! [`PageRun`]: some pages of one block that follow one another, checked once.
//!
//! Example of what the check is for: a record of pages 510 to 513 belongs to two stretches, and so
//! to two lanes. A run that ends past its block is foreign memory. The pages of a `PageRun` are
//! inside the block and inside one stretch, so no second check is needed. A `PageRun` is a plain
//! value and pins nothing. [`Block::run`] makes it.

use super::block::{Block, BlockId};
use crate::error::{Error, Kind, Result};
use crate::units::{Pages, STRETCH_PAGES};
use std::ops::Range;

/// Some pages of one block that follow one another, checked once: they are inside the block and
/// inside one stretch of 2 MiB. A plain value, which pins nothing. [`Block::run`] makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    first: Pages,
    block: BlockId,
    /// A stretch of the largest host page has 2^18 pages.
    count: u32,
}

impl PageRun {
    /// The block that the pages belong to.
    pub fn block(&self) -> BlockId {
        self.block
    }

    /// The first page, counted from the block's beginning.
    pub fn first(&self) -> Pages {
        self.first
    }

    /// How many pages: at least one.
    pub fn count(&self) -> Pages {
        Pages(u64::from(self.count))
    }

    /// The page behind the last one.
    pub fn end(&self) -> Pages {
        self.first + self.count()
    }

    /// All of them, as pages of the block.
    pub fn range(&self) -> Range<Pages> {
        self.first..self.end()
    }

    /// The pages of `range`, as a run. A range that reaches out of this run is cut.
    pub fn part(&self, range: Range<Pages>) -> PageRun {
        let last = self.end() - Pages(1);
        let first = range.start.clamp(self.first, last);
        let end = range.end.clamp(first + Pages(1), self.end());
        PageRun {
            first,
            block: self.block,
            count: (end - first).0 as u32,
        }
    }
}

impl Block {
    /// Pages in a stretch of this block: 2 MiB of them, or one page of the host's where that is
    /// larger. All records about a stretch travel on one lane.
    pub fn stretch_pages(&self) -> Pages {
        Pages(self.page_size().pages_down().0.max(STRETCH_PAGES))
    }

    /// Some of the block's pages as a run.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a run of no page, for one that reaches past the block's end, and for
    /// one that crosses from one stretch into the next.
    pub fn run(&self, first: Pages, count: Pages) -> Result<PageRun> {
        let end = first.0.checked_add(count.0);
        let stretch = self.stretch_pages().0;
        let what = match end {
            _ if count.0 == 0 => "a run has at least one page".to_owned(),
            Some(end) if end <= self.pages().0 => {
                if first.0 / stretch == (end - 1) / stretch {
                    return Ok(PageRun {
                        first,
                        block: self.id(),
                        count: count.0 as u32,
                    });
                }
                format!("a run lies inside one stretch of {stretch} pages")
            }
            _ => format!("the block has {} pages", self.pages()),
        };
        Err(Error::new(
            Kind::Invalid,
            format!(
                "block `{}`: {what}; found {count} pages from page {first} on",
                self.name()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{BlockDescription, BlockFlags, HostMemory, Memory};
    use crate::units::Bytes;

    #[test]
    fn a_run_is_inside_its_block_and_inside_one_stretch_of_it() {
        let memory = Memory::new().unwrap();
        let add = |name: &str, at: usize, page_size: u64| {
            let id = memory
                .add_block(BlockDescription {
                    name: name.into(),
                    // SAFETY: an address that nothing looks at.
                    host: unsafe { HostMemory::new(std::ptr::without_provenance_mut(at)) },
                    length: Bytes(2 << 30),
                    page_size: Bytes(page_size),
                    file: None,
                    flags: BlockFlags::default(),
                })
                .unwrap();
            std::sync::Arc::clone(memory.map().block(id).unwrap())
        };
        let (small, large) = (add("small", 1 << 40, 4096), add("large", 1 << 41, 1 << 30));
        assert_eq!(small.stretch_pages(), Pages(512));
        assert_eq!(large.stretch_pages(), Pages(1 << 18));
        let pages = small.pages().0;
        for (first, count, in_small, in_large) in [
            (0, 1, true, true),
            (0, 512, true, true),
            (511, 1, true, true),
            (511, 2, false, true),
            (0, 513, false, true),
            (0, 1 << 18, false, true),
            (1, 1 << 18, false, false),
            (0, 0, false, false),
            (pages - 1, 1, true, true),
            (pages - 1, 2, false, false),
            (pages, 1, false, false),
            (u64::MAX, 1, false, false),
            (1, u64::MAX, false, false),
        ] {
            for (block, right) in [(&small, in_small), (&large, in_large)] {
                let run = block.run(Pages(first), Pages(count));
                assert_eq!(run.is_ok(), right, "{first}, {count} of `{}`", block.name());
                match run {
                    Ok(run) => {
                        assert_eq!(run.block(), block.id());
                        assert_eq!(run.range(), Pages(first)..Pages(first + count));
                        assert_eq!(run.count(), Pages(count));
                        // A part is a run, and never more than it is a part of.
                        assert_eq!(run.part(run.range()), run);
                        let last = run.part(run.end() - Pages(1)..run.end());
                        assert_eq!((last.count(), last.end()), (Pages(1), run.end()));
                        for cut in [Pages(0)..Pages(0), Pages(0)..Pages(u64::MAX)] {
                            let part = run.part(cut);
                            assert!(part.first() >= run.first() && part.end() <= run.end());
                            assert!(part.count() >= Pages(1));
                        }
                    }
                    Err(e) => assert!(e.message().contains(block.name()), "{e}"),
                }
            }
        }
    }
}
