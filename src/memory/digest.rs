//! Checksums of pages, one for each page: two copies of a guest's memory are compared by them.
//!
//! The caller holds the memory still: the source's guest was handed over, or the destination's guest
//! does not run yet. Holes are not touched.

use super::block::Block;
use super::contents::{Contents, Held};
use crate::error::Result;
use crate::fallible;
use crate::units::{Pages, PAGE_SIZE, STRETCH_PAGES};
use std::ops::Range;

const PAGE: usize = PAGE_SIZE as usize;

/// How many pages are looked at in one call: 16 MiB. A cancel, and the removal of a block, wait for
/// that many.
pub const PIECE: Pages = Pages(8 * STRETCH_PAGES);

/// The checksum of a page of zeros: the CRC-32 of 4,096 zero bytes.
pub const OF_ZEROS: u32 = 0xc71c_0011;

/// Fills `sums` with the checksum (CRC-32) of each page of `range`. What `sums` had before is
/// dropped.
///
/// # Errors
/// When a page cannot be read: the error names the page.
pub fn of_pages(
    contents: &mut Contents,
    block: &Block,
    range: Range<Pages>,
    sums: &mut Vec<u32>,
) -> Result<()> {
    let count = Pages(range.end.0.saturating_sub(range.start.0));
    sums.clear();
    // The call also checks that the block has all of these pages.
    let slice = block.slice(range.start, count)?;
    fallible::reserve(sums, count.index(), "checksums of pages")?;
    let mut page = [0u8; PAGE];
    contents.split(block, range.clone(), |run, held| {
        let first = (run.start - range.start).index();
        let end = (run.end - range.start).index();
        if held != Held::Data {
            sums.resize(end, OF_ZEROS);
            return;
        }
        for at in first..end {
            // Copied first: a reference to memory that others may write to would be unsound. The
            // question above has just found the page readable.
            if let Ok(part) = slice.subslice(at * PAGE, PAGE) {
                part.copy_to(&mut page[..]);
            }
            sums.push(crc32fast::hash(&page));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing::Guest;
    use std::sync::Arc;

    #[test]
    fn each_page_has_the_checksum_of_its_contents_and_holes_that_of_zeros() {
        assert_eq!(OF_ZEROS, crc32fast::hash(&[0; PAGE]));
        let guest = Guest::new(20);
        guest.block("ram", 20);
        let block = Arc::clone(&guest.memory.map().blocks()[0]);
        for page in [3, 4, 11] {
            // SAFETY: a page of the test's own memory, which nobody else uses now.
            unsafe { std::ptr::write_bytes(block.page_address(Pages(page)), 0x5a, PAGE) };
        }
        let (mut contents, mut sums) = (Contents::new(), vec![1, 2, 3]);
        of_pages(&mut contents, &block, Pages(2)..Pages(13), &mut sums).unwrap();
        let data = crc32fast::hash(&[0x5a; PAGE]);
        let expected: Vec<u32> = (2..13)
            .map(|page| match page {
                3 | 4 | 11 => data,
                _ => OF_ZEROS,
            })
            .collect();
        assert_eq!(sums, expected);
        let past = of_pages(&mut contents, &block, Pages(2)..Pages(21), &mut sums);
        assert!(past.is_err());
    }
}
