//! What a take hands out: runs of pages, what they are, and how far a walk over pending has come.
//! Plain values; who makes them is [`super::consumer`].

use crate::memory::{BlockId, BlockPin};
use crate::units::Pages;

/// Where a walk over pending is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    pub(super) block: u32,
    pub(super) page: u64,
}

impl Cursor {
    /// The beginning of a block.
    pub(super) fn at(block: BlockId) -> Cursor {
        Cursor {
            block: block.0,
            page: 0,
        }
    }

    /// The beginning of the next block.
    pub(super) fn next_block(self) -> Cursor {
        Cursor::at(BlockId(self.block + 1))
    }
}

/// A run of pages taken out of pending. Their protection is restored; read them now, or put
/// them back.
#[derive(Debug, Clone)]
pub struct Run {
    /// The block, held so that its memory stays.
    pub block: BlockPin,
    /// First page.
    pub first: Pages,
    /// How many; they lie in one stretch.
    pub count: Pages,
    /// Whether they are to be read at all.
    pub content: Content,
}

/// What a run of pages is. Everything is [`Content::Used`] unless given-back pages are
/// skipped ([`super::consumer::Consumer::skip_returned`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The guest uses it.
    Used,
    /// The guest has given it back, and must tell before it uses it again.
    Returned,
    /// The guest hinted that it was free, and has not written it since as far as is known.
    /// Whoever has no copy of it yet makes one of zeros.
    Free,
}
