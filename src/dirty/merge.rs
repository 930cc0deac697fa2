//! Where harvests go: positions of any kind become pages of blocks and are merged into
//! what is pending.
//!
//! Slots and blocks begin at any page, so a word of a log seldom lies on a word of
//! pending. The merge shifts ([`Bitmap::merge_words`]); nothing is done bit by bit.

use super::blocks::{BlockState, Blocks};
use super::{Origin, Sink};
use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::memory::{BlockId, Map};
use crate::units::Pages;
use vm_memory::GuestAddress;

/// A sink for what is known already.
pub(super) struct Nowhere;

impl Sink for Nowhere {
    fn bitmap(&mut self, _: Origin, _: &[u64], _: Pages) {}
    fn list(&mut self, _: Origin, _: &[u64]) {}
    fn block(&mut self, _: BlockId, _: &mut dyn FnMut(&mut Bitmap) -> Result<u64>) -> Result<()> {
        Ok(())
    }
    fn everything(&mut self, _: Origin, _: Pages) {}
}

/// How many pages of a list ahead their words are asked for: in a huge guest each is in
/// memory that nobody has touched lately.
const AHEAD: usize = 16;

/// Turns positions into blocks and merges into pending.
pub(super) struct PendingSink<'a> {
    /// By which slots and addresses are understood.
    pub map: &'a Map,
    /// What is pending.
    pub blocks: &'a mut Blocks,
    /// Whether what is merged must be cleared before it is handed out.
    pub arms: bool,
    /// Pages that became pending: each counts when its bit first becomes set.
    pub found: u64,
}

impl PendingSink<'_> {
    /// Calls `f` with each piece of a block that `pages` pages from `origin` are.
    fn pieces(
        &mut self,
        origin: Origin,
        pages: Pages,
        mut f: impl FnMut(&mut BlockState, Piece) -> u64,
    ) {
        let map = self.map;
        let mut found = 0;
        let blocks = &mut *self.blocks;
        let mut give = |block: BlockId, piece: Piece| {
            if let Some(state) = blocks.get_mut(block) {
                found += f(state, piece);
            }
        };
        match origin {
            Origin::Block { block, page } => give(
                block,
                Piece {
                    first: page.0,
                    pages: pages.0,
                    skipped: 0,
                },
            ),
            Origin::Slot { slot, page } => {
                if let Some(slot) = map.slot(slot) {
                    let pages = pages.0.min(slot.pages.0.saturating_sub(page.0));
                    give(
                        slot.block,
                        Piece {
                            first: slot.first.0 + page.0,
                            pages,
                            skipped: 0,
                        },
                    );
                }
            }
            Origin::Guest(_) | Origin::Iova(_) => {
                let from = match origin {
                    Origin::Guest(address) => address,
                    Origin::Iova(iova) => GuestAddress(iova),
                    _ => return,
                };
                for piece in map.pieces(from, pages) {
                    give(
                        piece.block,
                        Piece {
                            first: piece.first.0,
                            pages: piece.pages.0,
                            skipped: piece.skipped.0,
                        },
                    );
                }
            }
        }
        self.found += found;
    }
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    first: u64,
    pages: u64,
    skipped: u64,
}

impl Sink for PendingSink<'_> {
    fn bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages) {
        let arms = self.arms;
        let pages = Pages(pages.0.min(words.len() as u64 * 64));
        self.pieces(origin, pages, |state, piece| {
            if arms {
                if let Some(chunks) = &mut state.chunks {
                    // Every chunk of the slot, dirty or not: looking is left to the walk, which
                    // reads a chunk's words once, outside the sync.
                    chunks.arm_range(piece.first as usize, piece.pages as usize);
                }
            }
            let skip = piece.skipped as usize;
            if skip.is_multiple_of(64) {
                state.pending.merge_words(
                    piece.first as usize,
                    &words[skip / 64..],
                    piece.pages as usize,
                )
            } else {
                // The piece begins inside a word of the log: its head is shifted down by
                // hand, the rest goes word by word.
                let head = (64 - skip % 64).min(piece.pages as usize);
                let first = words[skip / 64] >> (skip % 64);
                let mut new = state
                    .pending
                    .merge_words(piece.first as usize, &[first], head);
                if head < piece.pages as usize {
                    new += state.pending.merge_words(
                        piece.first as usize + head,
                        &words[skip / 64 + 1..],
                        piece.pages as usize - head,
                    );
                }
                new
            }
        });
    }

    fn list(&mut self, origin: Origin, pages: &[u64]) {
        // One look for all of them where all are of one block: that is what rings give.
        let (block, base, room) = match origin {
            Origin::Slot { slot, page } => match self.map.slot(slot) {
                Some(slot) => (slot.block, slot.first.0, Some((page.0, slot.pages.0))),
                None => return,
            },
            Origin::Block { block, page } => (block, 0, Some((page.0, u64::MAX))),
            Origin::Guest(_) | Origin::Iova(_) => (BlockId(0), 0, None),
        };
        if let Some((from, room)) = room {
            let Some(state) = self.blocks.get_mut(block) else {
                return;
            };
            let bit = |page: u64| base.saturating_add(from).saturating_add(page) as usize;
            for &page in pages.iter().take(AHEAD) {
                state.pending.prefetch(bit(page));
            }
            let mut at = 0;
            while let Some(&page) = pages.get(at) {
                if let Some(&later) = pages.get(at + AHEAD) {
                    state.pending.prefetch(bit(later));
                }
                // A row of pages is one range.
                let row = pages[at..].iter().zip(page..);
                let mut n = row
                    .take_while(|(&page, expected)| page == *expected)
                    .count() as u64;
                at += n as usize;
                let first = from.saturating_add(page);
                n = n.min(room.saturating_sub(first));
                if n == 0 {
                    continue;
                }
                let first = base.saturating_add(first) as usize;
                if let (true, Some(chunks)) = (self.arms, &mut state.chunks) {
                    chunks.arm_range(first, n as usize);
                }
                self.found += state.pending.set_range(first, n as usize);
            }
            return;
        }
        for &page in pages {
            let at = match origin {
                Origin::Slot { .. } | Origin::Block { .. } => return,
                Origin::Guest(base) => {
                    Origin::Guest(GuestAddress(base.0.saturating_add(Pages(page).bytes().0)))
                }
                Origin::Iova(base) => Origin::Iova(base.saturating_add(Pages(page).bytes().0)),
            };
            self.bitmap(at, &[1], Pages(1));
        }
    }

    fn block(
        &mut self,
        block: BlockId,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> Result<()> {
        if let Some(state) = self.blocks.get_mut(block) {
            // Counted here, because an error can come after part of it was merged.
            let before = state.pending.count();
            let merged = state.pending.with(|pending| merge(pending));
            self.found += state.pending.count() - before;
            merged?;
        }
        Ok(())
    }

    fn everything(&mut self, origin: Origin, pages: Pages) {
        let arms = self.arms;
        self.pieces(origin, pages, |state, piece| {
            if arms {
                if let Some(chunks) = &mut state.chunks {
                    chunks.arm_range(piece.first as usize, piece.pages as usize);
                }
            }
            // That nothing is known is no evidence that a page which was given back was written.
            let pages = piece.first..piece.first.saturating_add(piece.pages);
            state.beside.put_back(pages);
            state
                .pending
                .set_range(piece.first as usize, piece.pages as usize)
        });
    }
}
