//! Where harvests go: positions of any kind become pages of blocks, and are merged into the pending
//! pages of each consumer.
//!
//! Slots and blocks begin at any page, so a word of a log seldom lies on one word of pending. The
//! merge shifts words ([`Bitmap::merge_words`]) and never goes bit by bit.
//!
//! With one consumer a merge is one pass over the harvested words. With more, the words are merged
//! in slices that stay in the cache, so the second consumer costs next to nothing. Every consumer
//! gets all harvested words, not only those that were new to one: a consumer can have a page
//! pending that another one has just taken.

use super::pending::{BlockState, Blocks, PageSet, Phase, Seat};
use super::{Origin, Sink};
use crate::bits::summary::Bitmap;
use crate::bits::words;
use crate::error::Result;
use crate::memory::{BlockId, BlockPart, Map};
use crate::runtime::Cancel;
use crate::units::Pages;
use vm_memory::GuestAddress;

impl BlockState {
    /// The block's length in pages.
    fn pages(&self) -> u64 {
        self.pin_source.pages().0
    }

    /// Arms the chunks of a range of pages.
    fn arm(&mut self, first: u64, pages: u64) {
        if let Some(chunks) = &mut self.chunks {
            chunks.arm_range(first as usize, pages as usize);
        }
    }

    /// Starts to load the bits of a page into the cache.
    fn prefetch(&mut self, page: usize) {
        for (_, set) in self.following() {
            set.pending.prefetch(page);
        }
    }

    /// The page sets that a harvest is merged into, with the consumers they belong to.
    fn following(&mut self) -> impl Iterator<Item = (Seat, &mut PageSet)> {
        let sets = self.sets.iter_mut().enumerate();
        let sets = sets.filter_map(|(seat, set)| Some((seat, set.as_mut()?)));
        sets.filter(|(_, set)| set.phase == Phase::Following)
    }

    /// Calls `merge` for each page set that a harvest is merged into. Returns its result for the
    /// set of `whose`.
    fn merge(&mut self, whose: Option<Seat>, mut merge: impl FnMut(&mut PageSet) -> u64) -> u64 {
        let mut found = 0;
        for (seat, set) in self.following() {
            let new = merge(set);
            if Some(seat) == whose {
                found += new;
            }
        }
        found
    }

    /// Merges the first `pages` bits of `words` into each set, at page `first`. Counts the bits,
    /// and the pages that became pending for `whose`.
    fn merge_words(
        &mut self,
        whose: Option<Seat>,
        first: usize,
        words: &[u64],
        pages: usize,
    ) -> Merged {
        let mut merged = Merged::default();
        // With several sets in slices, so that each word comes from memory once.
        let slice = match self.following().take(2).count() {
            0 => {
                merged.bits = words::count_range(words, 0, pages);
                return merged;
            }
            1 => pages.max(1),
            _ => SLICE,
        };
        for at in (0..pages).step_by(slice) {
            let (some, words) = (slice.min(pages - at), &words[at / 64..]);
            let mut bits = 0;
            merged.found += self.merge(whose, |set| {
                let merged = set.pending.merge_words(first + at, words, some);
                bits = merged.bits();
                merged.new
            });
            merged.bits += bits;
        }
        merged
    }

    /// Has a log merge by itself: into the pending pages, or, if there are several sets, into a
    /// bitmap that is then merged into each. What was merged before an error counts too.
    fn merge_by(
        &mut self,
        whose: Option<Seat>,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> (Merged, Result<()>) {
        let none = Merged::default();
        if self.following().nth(1).is_none() {
            let mut merged = Ok(0);
            // Counted here, because an error can come after some pages were merged.
            let found = self.merge(whose, |set| {
                let before = set.pending.count();
                merged = set.pending.with(|pending| merge(pending));
                set.pending.count() - before
            });
            let bits = *merged.as_ref().unwrap_or(&found);
            return (Merged { found, bits }, merged.map(|_| ()));
        }
        // The log moves its pages, and so can merge them only once.
        let between = self
            .between
            .take()
            .map_or_else(|| Bitmap::new(self.pin_source.pages().index()), Result::Ok);
        let mut between = match between {
            Ok(between) => between,
            Err(e) => return (none, Err(e)),
        };
        let merged = merge(&mut between);
        let found = self.merge(whose, |set| {
            set.pending.with(|pending| pending.merge(&between))
        });
        let bits = between.count();
        between.clear_all();
        self.between = Some(between);
        (Merged { found, bits }, merged.map(|_| ()))
    }
}

/// The result of a merge.
#[derive(Debug, Default, Clone, Copy)]
struct Merged {
    /// Pages that became pending for the counted consumer.
    found: u64,
    /// Pages that were reported.
    bits: u64,
}

impl std::ops::AddAssign for Merged {
    fn add_assign(&mut self, other: Merged) {
        self.found += other.found;
        self.bits += other.bits;
    }
}

/// Pages that are merged into every consumer before the next pages are: 8 KiB of words.
const SLICE: usize = 64 << 10;

/// A sink that drops reports, for pages that are known to be dirty already.
pub(super) struct Nowhere;

impl Sink for Nowhere {
    fn bitmap(&mut self, _: Origin, _: &[u64], _: Pages) {}
    fn list(&mut self, _: Origin, _: &[u64]) {}
    fn block(&mut self, _: BlockId, _: &mut dyn FnMut(&mut Bitmap) -> Result<u64>) -> Result<()> {
        Ok(())
    }
    fn everything(&mut self, _: Origin, _: Pages) {}
}

/// How many pages ahead in a list their words are prefetched. In a huge guest these words are in
/// memory that nobody has touched lately.
const AHEAD: usize = 16;

/// Turns positions into pages of blocks, and merges them into pending.
pub(super) struct PendingSink<'a> {
    /// The map whose slots and addresses the log means.
    pub map: &'a Map,
    /// The blocks with their pending pages.
    pub blocks: &'a mut Blocks,
    /// Whether merged pages must be cleared before they are handed out.
    pub arms: bool,
    /// The consumer whose pages are counted.
    pub whose: Option<Seat>,
    /// Pages that became pending for that consumer. A page counts when its bit first becomes set.
    pub found: u64,
    /// Pages that were reported as written, pending or not. Pages reported because a log lost track
    /// of them do not count.
    pub reported: u64,
    /// How many of those were reported before and have not been protected since.
    pub known: u64,
    /// See [`Sink::given_up`].
    pub given_up: Option<Cancel>,
}

impl<'a> PendingSink<'a> {
    /// A sink for a log's reports by `map`. `arms`: the log leaves clearing to the tracker.
    pub fn new(map: &'a Map, blocks: &'a mut Blocks, arms: bool, whose: Option<Seat>) -> Self {
        PendingSink {
            map,
            blocks,
            arms,
            whose,
            found: 0,
            reported: 0,
            known: 0,
            given_up: None,
        }
    }
}

impl PendingSink<'_> {
    /// Calls `f` with each part of a block that belongs to the `pages` pages from `origin` on.
    fn block_parts(
        &mut self,
        origin: Origin,
        pages: Pages,
        mut f: impl FnMut(&mut BlockState, BlockPart) -> Merged,
    ) -> u64 {
        let map = self.map;
        let mut found = Merged::default();
        let blocks = &mut *self.blocks;
        let mut give = |mut part: BlockPart| {
            if let Some(state) = blocks.get_mut(part.block) {
                // A log's last word can reach past the block's end. Nothing was written there.
                let room = state.pages().saturating_sub(part.first.0);
                part.pages = Pages(part.pages.0.min(room));
                if part.pages > Pages(0) {
                    found += f(state, part);
                }
            }
        };
        match origin {
            Origin::Block { block, page } => give(BlockPart {
                block,
                first: page,
                pages,
                before: Pages(0),
            }),
            Origin::Slot { slot, page } => {
                if let Some(slot) = map.slot(slot) {
                    give(BlockPart {
                        block: slot.block,
                        first: Pages(slot.first.0.saturating_add(page.0)),
                        pages: Pages(pages.0.min(slot.pages.0.saturating_sub(page.0))),
                        before: Pages(0),
                    });
                }
            }
            Origin::Guest(_) | Origin::Iova(_) => {
                let from = match origin {
                    Origin::Guest(address) => address,
                    Origin::Iova(iova) => GuestAddress(iova),
                    _ => return 0,
                };
                for part in map.block_parts(from, pages) {
                    give(part);
                }
            }
        }
        self.found += found.found;
        self.reported += found.bits;
        found.bits
    }

    /// Merges a bitmap, and returns how many of its bits are pages of blocks.
    fn merge_bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages) -> u64 {
        let (arms, whose) = (self.arms, self.whose);
        let pages = Pages(pages.0.min(words.len() as u64 * 64));
        self.block_parts(origin, pages, |state, part| {
            if arms {
                // Every chunk of the slot is armed, dirty or not. Which of them have bits is found
                // by the walk, which reads a chunk's words once, outside of the sync.
                state.arm(part.first.0, part.pages.0);
            }
            let (first, pages) = (part.first.index(), part.pages.index());
            let skip = part.before.index();
            if skip.is_multiple_of(64) {
                state.merge_words(whose, first, &words[skip / 64..], pages)
            } else {
                // The part begins inside a word of the log: its head is shifted down here, and the
                // rest goes word by word.
                let head = (64 - skip % 64).min(pages);
                let shifted = words[skip / 64] >> (skip % 64);
                let mut new = state.merge_words(whose, first, &[shifted], head);
                if head < pages {
                    let rest = &words[skip / 64 + 1..];
                    new += state.merge_words(whose, first + head, rest, pages - head);
                }
                new
            }
        })
    }
}

impl Sink for PendingSink<'_> {
    fn given_up(&self) -> Option<Cancel> {
        self.given_up.clone()
    }

    fn bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages) {
        self.merge_bitmap(origin, words, pages);
    }

    fn lasting_bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages, known: Pages) -> u64 {
        let bits = self.merge_bitmap(origin, words, pages);
        self.known += known.0.min(bits);
        bits
    }

    fn list(&mut self, origin: Origin, pages: &[u64]) {
        // One lookup is enough when all pages are of one block, as in the reports of rings.
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
            let room = room.min(state.pages().saturating_sub(base));
            let bit = |page: u64| base.saturating_add(from).saturating_add(page) as usize;
            for &page in pages.iter().take(AHEAD) {
                state.prefetch(bit(page));
            }
            let mut at = 0;
            while let Some(&page) = pages.get(at) {
                if let Some(&later) = pages.get(at + AHEAD) {
                    state.prefetch(bit(later));
                }
                // Consecutive pages are merged as one range.
                let row = pages[at..].iter().zip(0u64..);
                let mut n = row
                    .take_while(|(&next, i)| page.checked_add(*i) == Some(next))
                    .count() as u64;
                at += n as usize;
                let first = from.saturating_add(page);
                n = n.min(room.saturating_sub(first));
                if n == 0 {
                    continue;
                }
                let first = base.saturating_add(first);
                if self.arms {
                    state.arm(first, n);
                }
                let (first, n) = (first as usize, n as usize);
                self.found += state.merge(self.whose, |set| set.pending.set_range(first, n));
                self.reported += n as u64;
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
        let Some(state) = self.blocks.get_mut(block) else {
            return Ok(());
        };
        let (found, merged) = state.merge_by(self.whose, merge);
        self.found += found.found;
        self.reported += found.bits;
        merged
    }

    fn everything(&mut self, origin: Origin, pages: Pages) {
        let (arms, whose) = (self.arms, self.whose);
        self.block_parts(origin, pages, |state, part| {
            if arms {
                state.arm(part.first.0, part.pages.0);
            }
            let pages = part.first.0..part.first.0.saturating_add(part.pages.0);
            let found = state.merge(whose, |set| {
                // A lost track is no evidence that a ballooned page was written.
                set.beside.put_back(pages.clone());
                set.pending
                    .set_range(part.first.index(), part.pages.index())
            });
            // How many of these pages were written is unknown.
            Merged { found, bits: 0 }
        });
    }
}
