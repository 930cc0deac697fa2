//! Records of re-sent pages, where deltas are used: encodings, many in one DELTA, and copies of the
//! pages that go whole. The copy that is sent whole has to be the same copy that is kept, because
//! the next delta is a change of it.

use super::super::deltas::Resent;
use super::super::waiting::{Changed, Copied, Waiting};
use super::{packed, PinnedRun, Records, Source, OWN_PAGES, WORTH_A_LIST};
use crate::error::Result;
use crate::fallible;
use crate::memory::{BlockPin, PageRun};
use crate::page::delta::PAGE;
use crate::units::{Pages, PAGE_SIZE};
use crate::wire::{self, Header};
use std::ops::Range;

impl<'a> Records<'a> {
    /// Forgets pages that are sent in another way than as copies that are kept.
    pub(super) fn forget(&mut self, run: PageRun) {
        if let Some(waiting) = &mut self.waiting {
            waiting.deltas.forget(run);
        }
    }

    /// Adds pages with contents that have been sent before.
    pub(super) fn resent(&mut self, (block, run): PinnedRun<'a>) {
        // Pages that are sent as if there were no deltas.
        let mut plain: Option<Range<Pages>> = None;
        for page in (run.first().0..run.end().0).map(Pages) {
            match self.resend(block, run.part(page..page + Pages(1))) {
                Ok(true) => {
                    if let Some(range) = plain.take() {
                        self.data((block, run.part(range)));
                    }
                }
                Ok(false) => plain.get_or_insert(page..page).end = page + Pages(1),
                Err(e) => {
                    self.failed.get_or_insert(e);
                    return;
                }
            }
        }
        if let Some(range) = plain {
            self.data((block, run.part(range)));
        }
    }

    /// Adds one re-sent page. Returns `false` when the page is to go as if there were no deltas.
    fn resend(&mut self, block: &'a BlockPin, at: PageRun) -> Result<bool> {
        let page = at.first();
        let full = |waiting: &Waiting<'_>| !waiting.takes(at.block().0, page);
        if self.waiting.as_ref().is_some_and(full) {
            self.send_waiting()?;
        }
        let Some(waiting) = &mut self.waiting else {
            return Ok(false);
        };
        let Some(key) = waiting.deltas.wants(at.block(), page) else {
            return Ok(false);
        };
        waiting.block = at.block().0;
        let from = self.own.used;
        self.own.copy((block, at))?;
        let own = from..self.own.used;
        let Some(copy) = self.own.bytes[own.clone()].first_chunk::<PAGE>() else {
            return Ok(false);
        };
        let start = waiting.encodings.len();
        match waiting.deltas.encode(key, copy, &mut waiting.encodings)? {
            Resent::Changed { base } => {
                // The copy is kept in the cache. The next copy reuses its place here.
                self.own.used = from;
                let encoding = start..waiting.encodings.len();
                self.put.delta_pages += 1;
                self.put.delta_saved += PAGE_SIZE - encoding.len() as u64;
                let changed = Changed {
                    page,
                    base,
                    encoding,
                };
                fallible::push(&mut waiting.changed, changed, "changed pages")?;
            }
            Resent::Missed => {
                self.put.delta_misses += 1;
                waiting.copied(page, own, OWN_PAGES)?;
            }
            Resent::Overflowed => {
                self.put.delta_overflows += 1;
                waiting.copied(page, own, OWN_PAGES)?;
            }
        }
        Ok(true)
    }

    /// Makes records of the pages that wait.
    pub(super) fn send_waiting(&mut self) -> Result<()> {
        let Some(waiting) = &mut self.waiting else {
            return Ok(());
        };
        let block = waiting.block;
        let changed = std::mem::take(&mut waiting.changed);
        let encodings = std::mem::take(&mut waiting.encodings);
        let copies = std::mem::take(&mut waiting.copies);
        waiting.copied = 0;
        if !changed.is_empty() {
            let pages = changed.iter().map(|changed| wire::Delta {
                page: changed.page,
                base: changed.base,
                encoding: &encodings[changed.encoding.clone()],
            });
            wire::encode_delta(block, pages, &mut self.heads)?;
            self.record(changed.len() as u64, 0);
        }
        match self.packing {
            Some(_) => self.packed_copies(block, &copies)?,
            None => self.unpacked_copies(block, &copies)?,
        }
        // The room of the lists is kept.
        if let Some(waiting) = &mut self.waiting {
            (waiting.changed, waiting.encodings, waiting.copies) = (changed, encodings, copies);
            waiting.changed.clear();
            waiting.encodings.clear();
            waiting.copies.clear();
        }
        Ok(())
    }

    /// Makes records of pages that go whole where contents are compressed. The copies stay in the
    /// cache as they are: the frames take their place among the bytes that are sent.
    fn packed_copies(&mut self, block: u32, mut copies: &[Copied]) -> Result<()> {
        while !copies.is_empty() {
            let (these, rest) = packed::one_frame(copies, |copied| copied.count);
            copies = rest;
            match these.len() {
                0..packed::WORTH_A_LIST => {
                    for copied in these {
                        self.packed_or_not(block, std::slice::from_ref(copied))?;
                    }
                }
                _ => self.packed_or_not(block, these)?,
            }
        }
        Ok(())
    }

    /// Makes one record of `copies`, or several when they are not compressed.
    fn packed_or_not(&mut self, block: u32, copies: &[Copied]) -> Result<()> {
        let together = copies
            .windows(2)
            .all(|two| two[0].own.end == two[1].own.start);
        let ends = copies.first().zip(copies.last()).filter(|_| together);
        if let (Some((first, last)), Some(packing)) = (ends, &mut self.packing) {
            let own = first.own.start..last.own.end;
            if let Some(own) = self.own.squeeze(own, packing)? {
                let runs = copies
                    .iter()
                    .map(|copied| (copied.first, copied.count as u32));
                return self.frame(block, runs, own);
            }
        }
        self.unpacked_copies(block, copies)
    }

    fn unpacked_copies(&mut self, block: u32, copies: &[Copied]) -> Result<()> {
        // Copies are not sent from guest memory, so long runs gain nothing from records of their own.
        if copies.len() >= WORTH_A_LIST {
            return self.list_of_copies(block, copies);
        }
        copies
            .iter()
            .try_for_each(|copied| self.run_of_copies(block, copied))
    }

    fn run_of_copies(&mut self, block: u32, copied: &Copied) -> Result<()> {
        let header = match self.agreed.checksums {
            true => Header::checked_pages,
            false => Header::pages,
        };
        let header = header(block, copied.first, copied.count as u32).encode();
        fallible::reserve(&mut self.heads, header.len(), "a batch of records")?;
        self.heads.extend(header);
        self.contents_of_copies(std::slice::from_ref(copied))
    }

    fn list_of_copies(&mut self, block: u32, copies: &[Copied]) -> Result<()> {
        let runs = copies
            .iter()
            .map(|copied| (copied.first, copied.count as u32));
        match self.agreed.checksums {
            true => wire::encode_checked_list(block, runs, &mut self.heads)?,
            false => wire::encode_list(block, runs, &mut self.heads)?,
        }
        self.contents_of_copies(copies)
    }

    /// Adds the contents of a record whose header is there already, and their checksum.
    fn contents_of_copies(&mut self, copies: &[Copied]) -> Result<()> {
        fallible::reserve(&mut self.contents, copies.len() + 1, "a batch of records")?;
        let mut checksum = crc32fast::Hasher::new();
        for copied in copies {
            self.contents.push(Source::Own(copied.own.clone()));
            if self.agreed.checksums {
                checksum.update(&self.own.bytes[copied.own.clone()]);
            }
        }
        if self.agreed.checksums {
            let from = self.own.used;
            self.own.append(&checksum.finalize().to_le_bytes())?;
            self.contents.push(Source::Own(from..self.own.used));
        }
        self.record(copies.iter().map(|copied| copied.count).sum(), 0);
        Ok(())
    }
}
