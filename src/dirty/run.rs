//! What a take hands out: runs of pages, what they are, and how far a walk over pending has come.
//! Plain values; [`super::taken::Taken`] owns them.

use crate::memory::{BlockId, BlockPin, PageRun};

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

/// A run of taken pages, with its block. Their protection is restored: read them now.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The block, pinned: its memory stays while the [`super::taken::Taken`] is borrowed.
    pub block: &'a BlockPin,
    /// Which of its pages; they lie in one stretch of 2 MiB.
    pub pages: PageRun,
    /// Whether they are to be read at all.
    pub content: Content,
    /// Whether these pages were certainly never handed out to this consumer before, since it was
    /// started or had every page made pending. Pages that were may be called old although they
    /// were not (a walk of unread pages went past them), never the other way round.
    pub first_time: bool,
}

/// A run as it is kept while it is on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub pages: PageRun,
    pub content: Content,
    pub first_time: bool,
}

/// How the blocks of what is taken are kept from being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A removal is refused: whoever reads the pages does so for as long as they like.
    Held,
    /// A removal waits: whoever has the pages is done at once, or hears of removals by a
    /// [`crate::memory::PinRecall`].
    Recallable,
}

/// What a run of pages is. Everything is [`Content::Used`] for a consumer that reads ballooned pages
/// too ([`super::consumer::Consumer::skip_ballooned`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The guest uses it.
    Used,
    /// In the guest's balloon: the guest must tell before it uses it again.
    Ballooned,
    /// The guest hinted that it was free, and has not written it since as far as is known.
    /// Whoever has no copy of it yet makes one of zeros.
    Free,
}
