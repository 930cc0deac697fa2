//! Deals an image's pages to the reader threads, in the order of the file. Pure: the caller reads
//! the file.
//!
//! Pages are dealt a stretch at a time, not a piece of a table at a time. Example: a guest of 128 MiB
//! has two pieces, so with whole pieces two of four readers would have nothing to do. All readers
//! together read one part of the file after the other, as one reader would.

use super::buffer::Buffer;
use super::format::{BlockEntry, PIECE_PAGES};
use crate::error::Result;
use crate::units::STRETCH_PAGES;
use std::ops::Range;
use std::sync::Arc;

/// The most pages that are dealt at once.
pub(super) const PAGES_AT_ONCE: u64 = STRETCH_PAGES;

/// The checksums of a piece of a block, and which image of a chain has each page.
#[derive(Debug)]
pub(super) struct Sums {
    bytes: Buffer,
    /// The image of each page, by its place in the chain. Empty: the first has all of them.
    layers: Vec<u8>,
    /// The piece's first page.
    first: u64,
}

impl Sums {
    /// The checksums in `bytes`, of the pages from `first` on.
    pub(super) fn new(bytes: Buffer, layers: Vec<u8>, first: u64) -> Sums {
        Sums {
            bytes,
            layers,
            first,
        }
    }

    /// The image that has a page, by its place in the chain: 0 is the newest.
    pub(super) fn layer(&self, page: u64) -> usize {
        let layer = self.layers.get((page - self.first) as usize);
        layer.copied().unwrap_or(0).into()
    }

    /// Where a page comes from: `None` for a zero page, else the image that has it.
    pub(super) fn source(&self, page: u64) -> Option<usize> {
        (self.of(page) != 0).then(|| self.layer(page))
    }

    /// The checksum of a page of the block; 0 for a zero page.
    pub(super) fn of(&self, page: u64) -> u32 {
        let at = (page - self.first) as usize * 4;
        let bytes = self.bytes.bytes();
        u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]))
    }
}

/// Pages of one block, side by side, all of them zero or all of one image.
#[derive(Debug)]
pub(super) struct Hand {
    /// The block's place in the index.
    pub(super) entry: usize,
    pub(super) pages: Range<u64>,
    /// Which image of a chain has them; `None` for zero pages.
    pub(super) source: Option<usize>,
    sums: Arc<Sums>,
}

impl Hand {
    /// The checksum that a page has by the image.
    pub(super) fn sum(&self, page: u64) -> u32 {
        self.sums.of(page)
    }
}

/// Where the next pages are dealt.
#[derive(Debug, Default)]
pub(super) struct Deal {
    entry: usize,
    page: u64,
    /// The checksums of the piece that `page` lies in, once they were read.
    sums: Option<Arc<Sums>>,
}

impl Deal {
    /// The next pages of these blocks; `None` after the last. `read` gets the number of a block and
    /// of a piece of it, and returns the piece's checksums. After an error of `read` the same pages
    /// come next.
    pub(super) fn next(
        &mut self,
        blocks: &[BlockEntry],
        read: impl FnOnce(usize, usize) -> Result<Sums>,
    ) -> Result<Option<Hand>> {
        let block = loop {
            match blocks.get(self.entry) {
                None => return Ok(None),
                Some(block) if self.page < block.pages() => break block,
                Some(_) => (self.entry, self.page, self.sums) = (self.entry + 1, 0, None),
            }
        };
        let piece = self.page / PIECE_PAGES;
        let first = piece * PIECE_PAGES;
        let sums = match &self.sums {
            Some(sums) if sums.first == first => Arc::clone(sums),
            _ => {
                let sums = read(self.entry, piece as usize)?;
                Arc::clone(self.sums.insert(Arc::new(sums)))
            }
        };
        let source = sums.source(self.page);
        let last = block.pages().min(first + PIECE_PAGES);
        let last = last.min(self.page + PAGES_AT_ONCE);
        let end = (self.page + 1..last)
            .find(|page| sums.source(*page) != source)
            .unwrap_or(last);
        let hand = Hand {
            entry: self.entry,
            pages: self.page..end,
            source,
            sums,
        };
        self.page = end;
        Ok(Some(hand))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    /// The checksums of one piece, of which the pages in `zero` are zero.
    fn table(first: u64, pages: u64, zero: impl Fn(u64) -> bool) -> Sums {
        let mut buffer = Buffer::new(pages as usize * 4).unwrap();
        for (page, sum) in (first..).zip(buffer.bytes_mut().chunks_exact_mut(4)) {
            let value = if zero(page) { 0 } else { page as u32 + 7 };
            sum.copy_from_slice(&value.to_le_bytes());
        }
        Sums::new(buffer, Vec::new(), first)
    }

    fn block(pages: u64) -> BlockEntry {
        BlockEntry {
            name: "ram".into(),
            length: pages * 4096,
            page_size: 4096,
            rom: false,
            changes: false,
            offset: 0,
            pieces: Vec::new(),
        }
    }

    #[test]
    fn each_page_is_dealt_once_in_the_files_order_and_each_table_read_once() {
        let lengths = [PIECE_PAGES + 700, 1, 3 * PIECE_PAGES];
        let blocks = lengths.map(block);
        let zero = |entry: usize, page: u64| page / (300 + entry as u64) % 3 == 1;
        let (mut deal, mut read) = (Deal::default(), Vec::new());
        let (mut entry, mut page) = (0, 0);
        while let Some(hand) = deal
            .next(&blocks, |entry, piece| {
                read.push((entry, piece));
                let first = piece as u64 * PIECE_PAGES;
                let pages = (lengths[entry] - first).min(PIECE_PAGES);
                Ok(table(first, pages, |page| zero(entry, page)))
            })
            .unwrap()
        {
            if page == lengths[entry] {
                (entry, page) = (entry + 1, 0);
            }
            assert_eq!((hand.entry, hand.pages.start), (entry, page));
            assert!(!hand.pages.is_empty() && hand.pages.end - page <= PAGES_AT_ONCE);
            for page in hand.pages.clone() {
                assert_eq!(
                    hand.source.is_none(),
                    zero(entry, page),
                    "block {entry}, page {page}"
                );
                let expected = if hand.source.is_none() {
                    0
                } else {
                    page as u32 + 7
                };
                assert_eq!(hand.sum(page), expected);
            }
            page = hand.pages.end;
        }
        assert_eq!((entry, page), (2, lengths[2]));
        assert_eq!(read, [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]);
    }

    #[test]
    fn pages_of_different_images_are_dealt_apart() {
        let blocks = [block(6)];
        let sums = |_, _| {
            let mut sums = table(0, 6, |page| page == 2);
            sums.layers = vec![1, 1, 0, 1, 3, 3];
            Ok(sums)
        };
        let mut deal = Deal::default();
        let mut hands = Vec::new();
        while let Some(hand) = deal.next(&blocks, sums).unwrap() {
            hands.push((hand.pages, hand.source));
        }
        let expected = [
            (0..2, Some(1)),
            (2..3, None),
            (3..4, Some(1)),
            (4..6, Some(3)),
        ];
        assert_eq!(hands, expected);
    }

    #[test]
    fn after_a_table_that_cannot_be_read_the_same_pages_come_next() {
        let blocks = [block(2)];
        let mut deal = Deal::default();
        let error = deal.next(&blocks, |_, _| Err(Error::new(Kind::Image, "damaged")));
        assert_eq!(error.unwrap_err().kind(), Kind::Image);
        let hand = deal.next(&blocks, |_, _| Ok(table(0, 2, |_| false)));
        assert_eq!(hand.unwrap().unwrap().pages, 0..2);
    }
}
