//! The values that a take hands out: runs of pages, what they are, and how far a walk over pending
//! has come. [`super::taken::Taken`] owns the runs.

use crate::memory::{BlockId, BlockPin, PageRun};

/// The position of a walk over pending.
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

    /// A page of a block.
    pub(crate) fn to(block: BlockId, page: crate::units::Pages) -> Cursor {
        Cursor {
            block: block.0,
            page: page.0,
        }
    }

    /// The beginning of the next block.
    pub(super) fn next_block(self) -> Cursor {
        Cursor::at(BlockId(self.block + 1))
    }
}

/// A run of taken pages, with its block. Their protection was restored just before, so now is the
/// time to read them.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The block, pinned: its memory stays while the [`super::taken::Taken`] is borrowed.
    pub block: &'a BlockPin,
    /// The pages, within one stretch of 2 MiB.
    pub pages: PageRun,
    /// Whether the pages are to be read.
    pub content: Content,
    /// Whether these pages were certainly never handed out to this consumer since it was started or
    /// had every page made pending. `false` can be wrong (a walk over unread pages may have passed
    /// them), `true` never is.
    pub first_time: bool,
}

/// A run as a [`Taken`](super::taken::Taken) keeps it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub pages: PageRun,
    pub content: Content,
    pub first_time: bool,
}

/// How the blocks of taken pages are kept from being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A removal is refused. The reader may take as long as it likes.
    Held,
    /// A removal waits. The holder of the pages soon ends by itself, or is told of removals by a
    /// [`crate::memory::PinRecall`].
    Recallable,
}

/// What the pages of a run are. For a consumer that reads ballooned pages too
/// ([`super::consumer::Consumer::skip_ballooned`]) they are all [`Content::Used`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The guest uses it.
    Used,
    /// In the guest's balloon. The guest has to tell before it uses such a page again.
    Ballooned,
    /// The guest hinted that the page was free, and no log has found a write to it since. A
    /// destination without a copy of it makes one of zeros.
    Free,
}
