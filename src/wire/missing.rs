//! MISSING, MISSING_END, REQUEST and COMPLETE: which pages a destination does not have yet, which of
//! them it waits for, and that it has them all.
//!
//! A description is a sequence of MISSING records and one MISSING_END. Each MISSING tells of at most
//! 1 GiB of one block, in whichever form is shorter: runs of pages, or a bit for each page. One page in a
//! hundred, here and there, takes about two bytes a page as runs, where bits would take twelve; a
//! gibibyte that misses whole takes four bytes. Where half of the pages miss, here and there, bits are
//! shorter. [`describe`] reads a bitmap once, piece by piece, so that a piece's second form is made from
//! words that are still in the processor's cache.
//!
//! After the switch to postcopy the source describes what it has not sent, and during a recovery the
//! destination describes what it has not received.

use super::body::{check_end, Body, Checked};
use super::cursor::Reader;
use super::kind::{MISSING_BYTES_MAX, MISSING_PAGES_MAX, REQUEST_RUNS_MAX};
use crate::bits::runs;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::Pages;
use std::ops::Range;

/// The form of a MISSING whose bytes are runs.
const FORM_RUNS: u8 = 0;
/// The form of a MISSING whose bytes are bits.
const FORM_BITS: u8 = 1;
/// Bytes of a number in a list of runs: 7 bits each, and a piece has at most 2^18 pages.
const NUMBER_MOST: usize = 3;

/// MISSING: the pages of a piece of a block that are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The source's number of the block. It travels in the header.
    pub block: u32,
    /// The first page of the piece.
    pub first_page: Pages,
    /// How many pages the piece has, missing or not: 1 to [`MISSING_PAGES_MAX`].
    pub pages: u32,
    /// How many of them miss: at least one.
    pub missing: u32,
    form: u8,
    bytes: Vec<u8>,
}

impl Missing {
    /// A record with an empty piece, for [`Missing::fill`].
    fn empty(block: u32) -> Missing {
        Missing {
            block,
            first_page: Pages(0),
            pages: 0,
            missing: 0,
            form: FORM_RUNS,
            bytes: Vec::new(),
        }
    }

    /// Makes the record that of a piece of `pages` pages from `first_page` on, whose missing pages have
    /// their bits set in `words`. Bits behind the piece are 0. Returns whether a page misses.
    fn fill(&mut self, first_page: Pages, pages: u32, words: &[u64]) -> Result<bool> {
        let bits = (pages as usize).div_ceil(8);
        self.bytes.clear();
        fallible::reserve(&mut self.bytes, bits + 2 * NUMBER_MOST, "a description")?;
        (self.first_page, self.pages, self.missing) = (first_page, pages, 0);
        self.form = FORM_RUNS;
        let mut after = 0;
        for run in runs::of_words(words, pages as usize) {
            self.missing += run.len() as u32;
            if self.form == FORM_BITS {
                continue;
            }
            put_number((run.start - after) as u32, &mut self.bytes);
            put_number(run.len() as u32, &mut self.bytes);
            after = run.end;
            if self.bytes.len() > bits {
                self.form = FORM_BITS;
            }
        }
        if self.form == FORM_BITS {
            self.bytes.clear();
            let all = words.iter().flat_map(|word| word.to_le_bytes());
            self.bytes.extend(all.take(bits));
        }
        Ok(self.missing > 0)
    }

    /// The record of a piece of `pages` pages of a block from `first_page` on, whose missing pages have
    /// their bits set in `words`; bits behind the piece are 0. `None` when no page misses.
    ///
    /// # Errors
    /// [`Kind::NoMemory`].
    pub fn piece(
        block: u32,
        first_page: Pages,
        pages: u32,
        words: &[u64],
    ) -> Result<Option<Missing>> {
        let mut piece = Missing::empty(block);
        Ok(piece.fill(first_page, pages, words)?.then_some(piece))
    }

    /// The missing pages in ascending order, as ranges of pages of the block. A record that was decoded
    /// has been checked: the ranges lie in its piece, and none is empty.
    pub fn runs(&self) -> MissingRuns<'_> {
        MissingRuns {
            of: self,
            at: 0,
            page: 0,
        }
    }

    /// The last page of the piece, and one.
    fn end(&self) -> u64 {
        self.first_page.0.saturating_add(u64::from(self.pages))
    }

    fn check_runs(&self) -> Checked {
        let (mut at, mut page, mut missing) = (0, 0u64, 0u64);
        while at < self.bytes.len() {
            let first = at == 0;
            let gap = number(&self.bytes, &mut at)?;
            let length = number(&self.bytes, &mut at)?;
            if length == 0 || (gap == 0 && !first) {
                return Err(format!(
                    "expected runs of at least one page, and at least one page between two, found a run \
                     of {length} pages {gap} pages behind page {page} of the piece"
                ));
            }
            page += u64::from(gap) + u64::from(length);
            missing += u64::from(length);
            if page > u64::from(self.pages) {
                return Err(format!(
                    "expected runs inside the piece's {} pages, found one that ends at {page}",
                    self.pages
                ));
            }
        }
        self.check_count(missing)
    }

    fn check_bits(&self) -> Checked {
        let bytes = (self.pages as usize).div_ceil(8);
        if self.bytes.len() != bytes {
            return Err(format!(
                "expected {bytes} bytes with a bit for each of {} pages, found {}",
                self.pages,
                self.bytes.len()
            ));
        }
        let used = self.pages % 8;
        let last = self.bytes.last().copied().unwrap_or_default();
        if used != 0 && last >> used != 0 {
            return Err(format!(
                "expected no bit behind the piece's {} pages, found {last:#04x} as the last byte",
                self.pages
            ));
        }
        self.check_count(self.bytes.iter().map(|b| u64::from(b.count_ones())).sum())
    }

    fn check_count(&self, found: u64) -> Checked {
        if found == u64::from(self.missing) && found > 0 {
            return Ok(());
        }
        Err(format!(
            "expected the {} missing pages that the record announces, and at least one; found {found}",
            self.missing
        ))
    }
}

impl Body for Missing {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first_page.0.to_le_bytes());
        out.extend_from_slice(&self.pages.to_le_bytes());
        out.extend_from_slice(&self.missing.to_le_bytes());
        out.push(self.form);
        out.extend_from_slice(&self.bytes);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Missing {
            block: 0,
            first_page: Pages(reader.u64("first_page")?),
            pages: reader.u32("pages")?,
            missing: reader.u32("missing")?,
            form: reader.u8("form")?,
            bytes: reader.rest("runs or bits", MISSING_BYTES_MAX)?,
        })
    }

    fn problem(&self) -> Checked {
        if !(1..=MISSING_PAGES_MAX).contains(&self.pages) {
            return Err(format!(
                "expected a piece of 1 to {MISSING_PAGES_MAX} pages, found {}",
                self.pages
            ));
        }
        check_end(self.first_page, self.pages)?;
        match self.form {
            FORM_RUNS => self.check_runs(),
            FORM_BITS => self.check_bits(),
            other => Err(format!(
                "expected the form {FORM_RUNS} (runs) or {FORM_BITS} (bits), found {other}"
            )),
        }
    }
}

/// The iterator of [`Missing::runs`].
#[derive(Debug, Clone)]
pub struct MissingRuns<'a> {
    of: &'a Missing,
    at: usize,
    page: u32,
}

impl MissingRuns<'_> {
    fn next_bits(&mut self) -> Option<(u32, u32)> {
        let bit = |page: u32| {
            let byte = self.of.bytes.get(page as usize / 8);
            byte.is_some_and(|byte| byte >> (page % 8) & 1 != 0)
        };
        let mut start = self.page;
        while start < self.of.pages && !bit(start) {
            let whole =
                start.is_multiple_of(8) && self.of.bytes.get(start as usize / 8) == Some(&0);
            start += if whole { 8 } else { 1 };
        }
        if start >= self.of.pages {
            return None;
        }
        let mut end = start + 1;
        while end < self.of.pages && bit(end) {
            end += 1;
        }
        Some((start, end))
    }

    fn next_run(&mut self) -> Option<(u32, u32)> {
        let gap = number(&self.of.bytes, &mut self.at).ok()?;
        let length = number(&self.of.bytes, &mut self.at).ok()?;
        let start = self.page.checked_add(gap)?;
        Some((start, start.checked_add(length)?))
    }
}

impl Iterator for MissingRuns<'_> {
    type Item = Range<Pages>;

    fn next(&mut self) -> Option<Range<Pages>> {
        let (start, end) = match self.of.form {
            FORM_BITS => self.next_bits()?,
            _ => self.next_run()?,
        };
        self.page = end;
        let page = |offset: u32| self.of.first_page + Pages(u64::from(offset));
        Some(page(start)..page(end))
    }
}

impl std::iter::FusedIterator for MissingRuns<'_> {}

/// Appends a number below 2^21, 7 bits a byte, the lower first; all bytes but the last have bit 7 set.
fn put_number(number: u32, out: &mut Vec<u8>) {
    let mut left = number;
    while left > 0x7f {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// Reads a number at `at`, and moves `at` behind it.
fn number(bytes: &[u8], at: &mut usize) -> std::result::Result<u32, String> {
    let begin = *at;
    let mut number = 0;
    for shift in 0..NUMBER_MOST {
        let Some(byte) = bytes.get(begin + shift) else {
            return Err(format!(
                "expected a number at byte {begin} of the runs, found their end"
            ));
        };
        number |= u32::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            if *byte == 0 && shift > 0 {
                break;
            }
            *at = begin + shift + 1;
            return Ok(number);
        }
    }
    Err(format!(
        "expected a number of 1 to {NUMBER_MOST} bytes in its shortest form at byte {begin} of the runs"
    ))
}

/// Calls `each` with a record for each piece of a block that misses a page, in ascending order.
/// `words` has a bit for each of the block's `pages` pages, and 0 behind them. Returns how many pages
/// miss.
///
/// # Errors
/// [`Kind::NoMemory`], and those of `each`.
pub fn describe(
    block: u32,
    words: &[u64],
    pages: Pages,
    mut each: impl FnMut(&Missing) -> Result<()>,
) -> Result<Pages> {
    const STEP: u64 = MISSING_PAGES_MAX as u64;
    let mut piece = Missing::empty(block);
    let mut missing = Pages(0);
    let mut first = 0;
    while first < pages.0 {
        let count = STEP.min(pages.0 - first);
        let from = (first / 64) as usize;
        let words = &words[from..from + count.div_ceil(64) as usize];
        if piece.fill(Pages(first), count as u32, words)? {
            missing += Pages(u64::from(piece.missing));
            each(&piece)?;
        }
        first += STEP;
    }
    Ok(missing)
}

/// The receiver's account of a description: its records ascend, and MISSING_END has their sum.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Described {
    last: Option<(u32, u64)>,
    pages: Pages,
}

impl Described {
    /// Takes the next record. `block_pages` is the length of its block.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for a record that goes beyond its block or does not ascend.
    pub fn take(&mut self, missing: &Missing, block_pages: Pages) -> Result<()> {
        let refuse = |what: String| {
            let message = format!("MISSING: block {}: {what}", missing.block);
            Err(Error::new(Kind::Protocol, message))
        };
        if missing.end() > block_pages.0 {
            return refuse(format!(
                "expected a piece inside the block's {block_pages} pages, found {} pages from page {}",
                missing.pages, missing.first_page
            ));
        }
        if let Some((block, end)) = self.last {
            if (missing.block, missing.first_page.0) < (block, end) {
                return refuse(format!(
                    "expected pieces that ascend from page {end} of block {block} on, found page {}",
                    missing.first_page
                ));
            }
        }
        self.last = Some((missing.block, missing.end()));
        self.pages += Pages(u64::from(missing.missing));
        Ok(())
    }

    /// How many pages miss so far.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Takes the record that ends the description.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for another sum.
    pub fn end(&self, end: &MissingEnd) -> Result<()> {
        if end.pages == self.pages {
            return Ok(());
        }
        let message = format!(
            "MISSING_END: expected the {} missing pages of the description, found {}",
            self.pages, end.pages
        );
        Err(Error::new(Kind::Protocol, message))
    }
}

/// MISSING_END: the end of a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingEnd {
    /// How many pages miss.
    pub pages: Pages,
    /// Which description of the session this is: 0 at the switch, one more with each recovery.
    pub epoch: u32,
}

impl Body for MissingEnd {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.pages.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(MissingEnd {
            pages: Pages(reader.u64("pages")?),
            epoch: reader.u32("epoch")?,
        })
    }
}

/// COMPLETE: the destination has every page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Complete {
    /// How many pages of the last description have come: all of them.
    pub pages: Pages,
    /// The epoch of that description.
    pub epoch: u32,
}

impl Body for Complete {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.pages.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Complete {
            pages: Pages(reader.u64("pages")?),
            epoch: reader.u32("epoch")?,
        })
    }
}

/// REQUEST: pages that the destination waits for, the most urgent first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The source's number of the block. It travels in the header.
    pub block: u32,
    /// The first page and the length of 1 to [`REQUEST_RUNS_MAX`] runs. Each has 1 to
    /// [`MISSING_PAGES_MAX`] pages.
    pub runs: Vec<(Pages, u32)>,
}

impl Body for Request {
    fn write(&self, out: &mut Vec<u8>) {
        for (first, pages) in &self.runs {
            out.extend_from_slice(&first.0.to_le_bytes());
            out.extend_from_slice(&pages.to_le_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let mut runs = Vec::new();
        // The payload's limit bounds how many there are.
        while !reader.is_at_end() {
            let run = (Pages(reader.u64("first_page")?), reader.u32("pages")?);
            fallible::push(&mut runs, run, "requested pages")?;
        }
        Ok(Request { block: 0, runs })
    }

    fn problem(&self) -> Checked {
        if !(1..=REQUEST_RUNS_MAX as usize).contains(&self.runs.len()) {
            return Err(format!(
                "expected 1 to {REQUEST_RUNS_MAX} runs, found {}",
                self.runs.len()
            ));
        }
        for (first, pages) in &self.runs {
            let inside = first.0.checked_add(u64::from(*pages)).is_some();
            if !(1..=MISSING_PAGES_MAX).contains(pages) || !inside {
                return Err(format!(
                    "expected runs of 1 to {MISSING_PAGES_MAX} pages below 2^64, found {pages} from page \
                     {first}"
                ));
            }
        }
        Ok(())
    }
}

/// RECOVER: a new connection of a session whose connections were lost after the guest was handed over.
/// It comes right behind HELLO, on each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recover {
    /// Which recovery this is: 1 for the session's first. At least 1.
    pub epoch: u32,
}

impl Body for Recover {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Recover {
            epoch: reader.u32("epoch")?,
        })
    }

    fn problem(&self) -> Checked {
        if self.epoch == 0 {
            return Err("expected recoveries to be numbered from 1, found 0".into());
        }
        Ok(())
    }
}

/// RECOVER_REPLY: the destination takes the recovery. Its description follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoverReply {
    /// The epoch of RECOVER.
    pub epoch: u32,
    /// How many pages miss.
    pub pages: Pages,
}

impl Body for RecoverReply {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.pages.0.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(RecoverReply {
            epoch: reader.u32("epoch")?,
            pages: Pages(reader.u64("pages")?),
        })
    }

    fn problem(&self) -> Checked {
        if self.epoch == 0 {
            return Err("expected recoveries to be numbered from 1, found 0".into());
        }
        Ok(())
    }
}
