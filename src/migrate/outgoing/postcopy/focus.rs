//! Where the lanes go on with the rest of the pages: behind the last page that somebody waited for. Pure.
//!
//! Example: the guest reads a file that lies in a gibibyte of its memory, and the walk stands 100 GiB
//! before it. Each page would be waited for. Once the first one is asked for, the walk goes on there, and
//! the pages behind it arrive before the guest needs them. Lower neighbours come along, because a guest
//! may also go downwards.

use crate::dirty::consumer::Cursor;
use crate::memory::BlockId;
use crate::units::Pages;

/// So many pages before the one that was asked for are sent too.
const BEFORE: u64 = 32;

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Focus {
    cursor: Cursor,
    /// How often the cursor has jumped.
    jumps: u64,
}

/// The beginning of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct From {
    pub(super) cursor: Cursor,
    jumps: u64,
}

impl Focus {
    /// Somebody waits for this page.
    pub(super) fn asked(&mut self, block: BlockId, page: Pages) {
        self.cursor = Cursor::to(block, Pages(page.0.saturating_sub(BEFORE)));
        self.jumps += 1;
    }

    /// Where the next batch begins.
    pub(super) fn next(&self) -> From {
        From {
            cursor: self.cursor,
            jumps: self.jumps,
        }
    }

    /// A batch that began there has ended at `end`. When a page was asked for meanwhile, the batch says
    /// nothing about where to go on.
    pub(super) fn went(&mut self, from: From, end: Cursor) {
        if from.jumps == self.jumps {
            self.cursor = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: BlockId = BlockId(3);

    fn at(page: u64) -> Cursor {
        Cursor::to(BLOCK, Pages(page))
    }

    #[test]
    fn the_walk_goes_on_at_the_page_that_was_asked_for_and_then_in_order() {
        let mut focus = Focus::default();
        let first = focus.next();
        assert_eq!(first.cursor, Cursor::default());
        focus.went(first, at(100));
        assert_eq!(focus.next().cursor, at(100));
        focus.asked(BLOCK, Pages(5000));
        assert_eq!(focus.next().cursor, at(5000 - BEFORE));
        let near = focus.next();
        focus.went(near, at(5100));
        assert_eq!(focus.next().cursor, at(5100));
        focus.asked(BLOCK, Pages(7));
        assert_eq!(focus.next().cursor, at(0));
    }

    #[test]
    fn a_batch_that_began_before_a_request_does_not_lead_away_from_it() {
        let mut focus = Focus::default();
        let (one, other) = (focus.next(), focus.next());
        focus.asked(BLOCK, Pages(5000));
        focus.went(one, at(128));
        assert_eq!(focus.next().cursor, at(5000 - BEFORE));
        let near = focus.next();
        focus.went(near, at(5096));
        focus.went(other, at(256));
        assert_eq!(focus.next().cursor, at(5096));
    }
}
