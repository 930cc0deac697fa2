//! Re-sent pages of one block that are in no record yet, where deltas are used: encodings, and
//! copies of pages that go whole. This is a list of plain values. The encoder fills it and makes
//! records of it.

use super::deltas::Deltas;
use crate::error::Result;
use crate::fallible;
use crate::units::{Pages, STRETCH_PAGES};
use crate::wire::{DELTA_PAGES_MAX, LIST_PAGES_MAX, LIST_RUNS_MAX};
use std::ops::Range;

/// When encodings have this many bytes, a DELTA is full: so many stay in a processor's cache until
/// they are sent.
const ENCODINGS: usize = 256 << 10;

/// The delta encoder, and the re-sent pages of one block that are in no record yet.
pub(super) struct Waiting<'a> {
    pub(super) deltas: &'a mut Deltas,
    pub(super) block: u32,
    pub(super) changed: Vec<Changed>,
    pub(super) encodings: Vec<u8>,
    pub(super) copies: Vec<Copied>,
    /// How many pages `copies` holds.
    pub(super) copied: u64,
}

/// A page that goes as its encoding.
pub(super) struct Changed {
    pub(super) page: Pages,
    pub(super) base: u32,
    pub(super) encoding: Range<usize>,
}

/// Neighbouring pages that go whole, and where their copies are in the encoder's own bytes.
pub(super) struct Copied {
    pub(super) first: Pages,
    pub(super) count: u64,
    pub(super) own: Range<usize>,
}

impl<'a> Waiting<'a> {
    pub(super) fn with(deltas: &'a mut Deltas) -> Self {
        Waiting {
            deltas,
            block: 0,
            changed: Vec::new(),
            encodings: Vec::new(),
            copies: Vec::new(),
            copied: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.copies.is_empty()
    }

    /// Whether `page` may join the waiting pages: it comes after all of them, and is near enough.
    pub(super) fn takes(&self, block: u32, page: Pages) -> bool {
        let last = self.changed.last().map(|changed| changed.page);
        let last_copy = self.copies.last().map(|copied| copied.first);
        let first = self.changed.first().map(|changed| changed.page);
        let first_copy = self.copies.first().map(|copied| copied.first);
        let ends = [last, last_copy, first, first_copy];
        let mut ends = ends.into_iter().flatten();
        self.is_empty()
            || (self.block == block
                && ends.all(|end| page > end && (page - end).0 <= u64::from(u32::MAX))
                && self.changed.len() < DELTA_PAGES_MAX as usize
                && self.encodings.len() < ENCODINGS
                && self.copies.len() < LIST_RUNS_MAX as usize
                && self.copied < u64::from(LIST_PAGES_MAX))
    }

    /// Adds a page that was copied to `own` and goes whole. A record holds at most `most` such
    /// neighbours.
    pub(super) fn copied(&mut self, page: Pages, own: Range<usize>, most: u64) -> Result<()> {
        self.copied += 1;
        if let Some(last) = self.copies.last_mut() {
            let one_stretch = last.first.0 / STRETCH_PAGES == page.0 / STRETCH_PAGES;
            let follows = last.first + Pages(last.count) == page && last.own.end == own.start;
            if follows && one_stretch && last.count < most {
                last.count += 1;
                last.own.end = own.end;
                return Ok(());
            }
        }
        let copied = Copied {
            first: page,
            count: 1,
            own,
        };
        fallible::push(&mut self.copies, copied, "copies of pages")
    }
}
