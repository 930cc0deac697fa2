//! Records of compressed contents: one run each, or a list of short runs with one frame for all.
//!
//! A frame for each scattered page would compress badly and cost both sides a call of the codec and
//! a record for 4 KiB. So short runs share a frame of up to [`OWN_PAGES`] pages.

use super::super::packing::Packing;
use super::{lists, Own, PinnedRun, Records, Source, OWN_PAGES};
use crate::error::Result;
use crate::fallible;
use crate::units::Pages;
use crate::wire::{self, Header, CHECKSUM_LEN, LIST_RUNS_MAX};
use std::ops::Range;

/// Fewer short runs than this are sent as records of their own: a list costs the destination a
/// second read.
pub(super) const WORTH_A_LIST: usize = 3;

impl Own {
    /// Compresses the contents at `at` into their checksum and a frame, which take the beginning of
    /// the contents' place. `None` when compression is not worth it; the contents are as they were
    /// then.
    pub(super) fn squeeze(
        &mut self,
        at: Range<usize>,
        packing: &mut Packing,
    ) -> Result<Option<Range<usize>>> {
        let most = Packing::room(at.len());
        if self.frame.len() < most {
            let more = most - self.frame.len();
            fallible::reserve(&mut self.frame, more, "compressed contents")?;
            self.frame.resize(most, 0);
        }
        let contents = &mut self.bytes[at.clone()];
        let Some(length) = packing.pack(contents, &mut self.frame[..most]) else {
            return Ok(None);
        };
        let sum = crc32fast::hash(contents).to_le_bytes();
        let end = CHECKSUM_LEN + length;
        // A frame that is worth sending is shorter than its contents by more than a checksum.
        contents[..CHECKSUM_LEN].copy_from_slice(&sum);
        contents[CHECKSUM_LEN..end].copy_from_slice(&self.frame[..length]);
        Ok(Some(at.start..at.start + end))
    }

    /// Compresses a copy of `runs`. `None` when that is not worth it; no room is used then.
    fn pack(
        &mut self,
        runs: &[PinnedRun<'_>],
        packing: &mut Packing,
    ) -> Result<Option<Range<usize>>> {
        let from = self.used;
        runs.iter().try_for_each(|run| self.copy(*run))?;
        let packed = self.squeeze(from..self.used, packing)?;
        self.used = packed.as_ref().map_or(from, |own| own.end);
        Ok(packed)
    }
}

/// The beginning of `items`, with at most as many pages and runs as one frame has, and the rest.
/// `pages` says how many pages an item has, which is no more than that.
pub(super) fn one_frame<T>(items: &[T], pages: impl Fn(&T) -> u64) -> (&[T], &[T]) {
    let mut all = 0;
    let fit = items.iter().take_while(|item| {
        all += pages(item);
        all <= OWN_PAGES
    });
    items.split_at(fit.count().clamp(1, LIST_RUNS_MAX as usize))
}

impl<'a> Records<'a> {
    /// Adds compressed contents of `runs`, which ascend in one block. Returns false when contents
    /// are not to be compressed, or when compression is not worth it.
    pub(super) fn packed(&mut self, runs: &[PinnedRun<'a>]) -> bool {
        let Some(packing) = &mut self.packing else {
            return false;
        };
        let Some((block, listed)) = lists(runs.iter().map(|(_, run)| *run)) else {
            return false;
        };
        let added = match self.own.pack(runs, packing) {
            Ok(Some(own)) => self.frame(block, listed, own),
            Ok(None) => return false,
            Err(e) => Err(e),
        };
        if let Err(e) = added {
            self.failed.get_or_insert(e);
        }
        true
    }

    /// Adds the record of `runs` of `block`, whose checksum and frame are at `own`.
    pub(super) fn frame(
        &mut self,
        block: u32,
        runs: impl ExactSizeIterator<Item = (Pages, u32)> + Clone,
        own: Range<usize>,
    ) -> Result<()> {
        let frame = (own.len() - CHECKSUM_LEN) as u32;
        let pages = runs.clone().map(|(_, count)| u64::from(count)).sum();
        match (runs.len(), runs.clone().next()) {
            (1, Some((first, count))) => {
                let head = Header::compressed(block, first, count, frame).encode();
                fallible::reserve(&mut self.heads, head.len(), "a batch of records")?;
                self.heads.extend(head);
            }
            _ => wire::encode_compressed_list(block, runs, frame, &mut self.heads)?,
        }
        self.put.compressed_pages += pages;
        self.put.compressed_bytes += own.len() as u64;
        fallible::push(&mut self.contents, Source::Own(own), "a batch of records")?;
        self.record(pages, 0);
        Ok(())
    }

    /// Makes records of short runs where contents are compressed.
    pub(super) fn packed_short(&mut self, mut short: &[PinnedRun<'a>]) {
        while !short.is_empty() {
            let (these, rest) = one_frame(short, |(_, run)| run.count().0);
            short = rest;
            match these.len() {
                0..WORTH_A_LIST => these.iter().for_each(|run| self.data_record(*run)),
                _ if self.packed(these) => {}
                _ => self.unpacked_short(these),
            }
        }
    }
}
