//! The comparison of a migrated guest with its source: the destination's checksums against the
//! memory here, in which nothing is written any more.
//!
//! [`Coverage`] is pure. It checks that the destination's records cover each page of each block
//! once, and collects what was found. [`Comparer`] reads memory. The driver receives the records
//! and tells the VMM.

use super::unread::Unread;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::ballooned::Claim;
use crate::memory::contents::Contents;
use crate::memory::digest::{of_pages, OF_ZEROS, PIECE};
use crate::memory::{Block, BlockId, Memory};
use crate::units::Pages;
use crate::wire::Digest;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// What a comparison of some pages found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Pages whose contents were compared.
    pub(super) verified: u64,
    /// Pages that were left out.
    pub(super) unverified: u64,
    /// Pages that differ.
    pub(super) mismatched: u64,
    /// The first page that differs.
    pub(super) first: Option<Pages>,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.verified += other.verified;
        self.unverified += other.unverified;
        self.mismatched += other.mismatched;
        self.first = self.first.or(other.first);
    }
}

/// One block during the comparison.
#[derive(Debug)]
struct Covered {
    pages: Pages,
    /// The page at which the next record begins.
    next: Pages,
    found: Found,
}

/// How far the destination's records have come, and what was found.
#[derive(Debug)]
pub(super) struct Coverage {
    blocks: HashMap<BlockId, Covered>,
    /// Pages that no record has covered yet.
    left: u64,
}

impl Coverage {
    /// Nothing is covered yet of `blocks`, which have these lengths.
    pub(super) fn of(blocks: impl Iterator<Item = (BlockId, Pages)>) -> Result<Coverage> {
        let mut coverage = Coverage {
            blocks: HashMap::new(),
            left: 0,
        };
        for (id, pages) in blocks {
            let covered = Covered {
                pages,
                next: Pages(0),
                found: Found::default(),
            };
            fallible::insert(&mut coverage.blocks, id, covered, "the guest's blocks")?;
            coverage.left += pages.0;
        }
        Ok(coverage)
    }

    /// How many pages no record has covered yet. 0: the comparison is whole.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes a record. Returns the block and the pages that it is about.
    ///
    /// # Errors
    /// [`Kind::Protocol`] when the record does not begin where the last one of its block ended, or
    /// reaches past the block.
    pub(super) fn take(&mut self, digest: &Digest) -> Result<(BlockId, Range<Pages>)> {
        let id = BlockId(digest.block);
        let refuse =
            |what: String| Error::new(Kind::Protocol, format!("DIGEST: block {id}: {what}"));
        let Some(block) = self.blocks.get_mut(&id) else {
            return Err(refuse("the destination knows no such block".to_owned()));
        };
        let (first, count) = (digest.first_page, Pages(u64::from(digest.pages)));
        if first != block.next {
            return Err(refuse(format!(
                "expected checksums from page {} on, found page {first}",
                block.next
            )));
        }
        if count > block.pages - block.next {
            return Err(refuse(format!(
                "expected at most {} pages from page {first} on, found {count}",
                block.pages - block.next
            )));
        }
        block.next = first + count;
        self.left -= count.0;
        Ok((id, first..block.next))
    }

    /// Adds what a comparison of pages of block `id` has found. When all of the block has been
    /// compared, returns what was found in it.
    pub(super) fn found(&mut self, id: BlockId, found: Found) -> Option<Found> {
        let block = self.blocks.get_mut(&id)?;
        block.found.add(found);
        (block.next == block.pages).then_some(block.found)
    }

    /// What was found in blocks of which only a part was compared.
    pub(super) fn parts(&self) -> impl Iterator<Item = (BlockId, Found)> + '_ {
        let parts = self.blocks.iter();
        let parts = parts.filter(|(_, block)| block.next < block.pages);
        parts.map(|(id, block)| (*id, block.found))
    }
}

/// Compares checksums with the memory here.
pub(super) struct Comparer<'a> {
    memory: &'a Memory,
    unread: &'a Unread,
    contents: Contents,
    sums: Vec<u32>,
    left_out: Vec<bool>,
}

impl<'a> Comparer<'a> {
    /// `unread` has the pages that were sent without being read.
    pub(super) fn new(memory: &'a Memory, unread: &'a Unread) -> Self {
        Comparer {
            memory,
            unread,
            contents: Contents::new(),
            sums: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Compares the pages `range` of block `id`, which `digest` is about. A block that the VMM has
    /// removed is left out.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub(super) fn compare(
        &mut self,
        id: BlockId,
        range: Range<Pages>,
        digest: &Digest,
    ) -> Result<Found> {
        let block = self.memory.map().block(id).cloned();
        let mut found = Found::default();
        let mut at = range.start;
        while at < range.end {
            let end = (at + PIECE).min(range.end);
            // Pinned for one piece only, as at the destination.
            let pin = block.as_ref().and_then(|block| self.memory.pin(block));
            match pin {
                Some(block) => found.add(self.piece(&block, at..end, digest)?),
                None => found.unverified += (end - at).0,
            }
            at = end;
        }
        Ok(found)
    }

    fn piece(&mut self, block: &Block, range: Range<Pages>, digest: &Digest) -> Result<Found> {
        self.contents.refresh();
        self.leave_out(block, range.clone())?;
        let mut found = Found::default();
        let count = self.left_out.len();
        let mut at = 0;
        while at < count {
            let out = self.left_out[at];
            let same = self.left_out[at..].iter().take_while(|is| **is == out);
            let end = at + same.count();
            let pages = range.start + Pages(at as u64)..range.start + Pages(end as u64);
            at = end;
            let length = (pages.end - pages.start).0;
            if out {
                found.unverified += length;
                continue;
            }
            of_pages(&mut self.contents, block, pages.clone(), &mut self.sums)?;
            found.verified += length;
            for (page, ours) in (pages.start.0..pages.end.0).zip(&self.sums) {
                let theirs = (page - digest.first_page.0) as usize;
                if *ours != digest.sums.get(theirs).copied().unwrap_or(OF_ZEROS) {
                    found.mismatched += 1;
                    found.first.get_or_insert(Pages(page));
                }
            }
        }
        Ok(found)
    }

    /// Notes which pages of `range` are left out: those that were sent without being read, and
    /// those that are ballooned or poisoned by now. A ballooned page may have been sent before it
    /// entered the balloon, and a poisoned page cannot be read.
    fn leave_out(&mut self, block: &Block, range: Range<Pages>) -> Result<()> {
        let count = (range.end - range.start).index();
        let left_out = &mut self.left_out;
        left_out.clear();
        fallible::reserve(left_out, count, "pages that are left out")?;
        left_out.resize(count, false);
        let mut mark = |pages: Range<Pages>| {
            let first = (pages.start - range.start).index();
            left_out[first..(pages.end - range.start).index()].fill(true);
        };
        self.unread.runs(block.id(), range.clone(), &mut mark);
        block.poisoned().split(range.clone(), |pages, lost| {
            if lost {
                mark(pages);
            }
            Ok(())
        })?;
        let mut at = range.start;
        while at < range.end {
            let (count, ballooned) = match block.ballooned().claim(at.0..range.end.0, None) {
                Claim::Used(count) => (count, false),
                Claim::Ballooned(count) => (count, true),
                // Only a page that was named before can have been written since.
                Claim::Written(pages) => (pages.end.saturating_sub(at.0).max(1), false),
            };
            let end = (at + Pages(count)).min(range.end);
            if ballooned {
                mark(at..end);
            }
            at = end;
        }
        Ok(())
    }
}

/// The name of a block for people, when it is still here.
pub(super) fn name_of(memory: &Memory, id: BlockId) -> String {
    match memory.map().block(id).map(Arc::clone) {
        Some(block) => format!("block `{}`", block.name()),
        None => format!("block {id}"),
    }
}

#[cfg(test)]
mod tests;
