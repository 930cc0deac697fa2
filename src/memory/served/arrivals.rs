//! Pages that arrive, checked to lie inside of a block that is served: [`Place`].

use super::placing::Inner;
use super::staging::Piece;
use super::supplier::Place;
use crate::error::{Error, Kind, Result};
use crate::memory::block::Block;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;

impl Inner {
    /// The block's number, and pages of it that were checked.
    fn pages(&self, block: &Block, pages: Range<Pages>) -> Result<(usize, Range<u64>)> {
        let name = block.name();
        let invalid = |what: &str| Error::new(Kind::Invalid, format!("block `{name}`: {what}"));
        if pages.start > pages.end || pages.end > block.pages() {
            return Err(invalid("pages outside of it"));
        }
        let Some((number, _)) = self.watched(block.id()) else {
            return Err(invalid("it is not served by fault"));
        };
        Ok((number, pages.start.0..pages.end.0))
    }
}

impl Place for Inner {
    fn place(&self, block: &Block, first: Pages, contents: &[u8]) -> Result<Pages> {
        let length = contents.len() as u64;
        if !length.is_multiple_of(PAGE_SIZE) {
            let what = format!("{length} bytes are not whole pages");
            return Err(Error::new(Kind::Invalid, what));
        }
        let pages = first..first + Pages(length / PAGE_SIZE);
        let (number, pages) = self.pages(block, pages)?;
        self.arrive(number, pages, Piece::Data(contents)).map(Pages)
    }

    fn place_zeros(&self, block: &Block, pages: Range<Pages>) -> Result<Pages> {
        let (number, pages) = self.pages(block, pages)?;
        self.arrive(number, pages, Piece::Zeros).map(Pages)
    }

    fn lose(&self, block: &Block, pages: Range<Pages>) -> Result<Pages> {
        let (number, pages) = self.pages(block, pages)?;
        Inner::lose(self, number, pages, true).map(Pages)
    }
}
