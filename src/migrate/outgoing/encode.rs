//! Makes records of taken pages: what each page holds, the headers that say so, and where the
//! contents are.
//!
//! Contents are of two kinds. The first is guest memory, which only the kernel reads when it sends,
//! so that no page is copied. The second is bytes of the encoder's own: copies of pages, or results
//! of computing on such copies. Computing on guest memory itself would be wrong, because the guest
//! writes meanwhile.

mod packed;
mod resent;

use super::deltas::Deltas;
use super::packing::Packing;
use super::unread::Unread;
use super::waiting::Waiting;
use crate::channel::{Channel, Part};
use crate::dirty::consumer::Content;
use crate::dirty::taken::Taken;
use crate::error::{Error, Result};
use crate::fallible;
use crate::memory::access;
use crate::memory::contents::{Contents, Held};
use crate::memory::{BlockPin, PageRun};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::walk::{Put, BATCH_PAGES};
use crate::wire::{self, Header, HEADER_LEN, LIST_PAGES_MAX, LIST_RUNS_MAX};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Makes the records of one lane.
#[derive(Debug)]
pub(super) struct Encoder {
    contents: Contents,
    agreed: Agreed,
    own: Own,
    /// `None`: contents are not compressed.
    packing: Option<Packing>,
    /// The delta encoder of re-sent pages, when deltas were agreed on.
    deltas: Option<Deltas>,
    /// Where pages are noted that are sent without being read, when the migration is verified.
    unread: Option<Arc<Unread>>,
}

/// What the destination takes, as agreed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Agreed {
    /// BALLOONED records.
    pub(super) ballooned: bool,
    /// Contents with a checksum behind them. When this is set, no contents go without one.
    pub(super) checksums: bool,
}

impl Agreed {
    /// What the feature bits of the destination's reply say.
    pub(super) fn of(features: u64) -> Self {
        Agreed {
            ballooned: features & wire::FEATURE_BALLOONED != 0,
            checksums: features & wire::FEATURE_PAGE_CHECKSUMS != 0,
        }
    }
}

impl Encoder {
    pub(super) fn new() -> Self {
        Encoder {
            contents: Contents::new(),
            agreed: Agreed::default(),
            own: Own::default(),
            packing: None,
            deltas: None,
            unread: None,
        }
    }

    /// Has pages noted that are sent without being read.
    pub(super) fn note_unread(&mut self, unread: Arc<Unread>) {
        self.unread = Some(unread);
    }

    /// Sets what the destination takes, as agreed, and how contents are compressed, if that was
    /// agreed.
    pub(super) fn agree(&mut self, agreed: Agreed, packing: Option<Packing>) {
        self.agreed = agreed;
        self.packing = packing;
    }

    /// Records that the last batch was sent in `time`. After that the socket's buffer holds `held`
    /// bytes.
    pub(super) fn sent(&mut self, put: &Put, held: u64, time: Duration) {
        if let Some(packing) = &mut self.packing {
            // A delta is as long in either way.
            let contents = Pages(put.data_pages - put.delta_pages).bytes().0;
            packing.sent(contents, put.bytes, held, time);
        }
    }

    /// Has re-sent pages go as deltas, with a cache of at most `cache` bytes.
    pub(super) fn use_deltas(&mut self, cache: u64) -> Result<()> {
        self.deltas = Some(Deltas::new(cache)?);
        Ok(())
    }

    /// Has no page go as a delta any more.
    pub(super) fn end_deltas(&mut self) {
        self.deltas = None;
    }

    /// The pages that follow belong to pass `pass`.
    pub(super) fn in_pass(&mut self, pass: u32) {
        if let Some(deltas) = &mut self.deltas {
            deltas.in_pass(pass);
        }
    }

    /// Makes the records of taken pages, whose protection has been restored. Holes are found
    /// without reading the pages.
    pub(super) fn encode<'t>(&'t mut self, taken: &'t Taken) -> Result<Records<'t>> {
        self.own.empty();
        let wanted = self.packing.as_mut().is_some_and(Packing::wanted);
        let packing = self.packing.as_mut().filter(|_| wanted);
        let mut records = Records::for_runs(taken, self.agreed, packing, &mut self.own)?;
        records.waiting = self.deltas.as_mut().map(Waiting::with);
        // The runs' protection is back, so a later write to a page is logged. What is found out
        // about the pages from here on is therefore safe to use.
        self.contents.refresh();
        let mut used = Used::default();
        for run in taken.runs() {
            // A guest has run here, so the block is no longer known to be all zero.
            run.block.zeroed_no_more();
            if run.content != Content::Used {
                if let Some(unread) = &self.unread {
                    unread.note(run.block, &run.pages, true)?;
                }
                used.look(&mut self.contents, &mut records)?;
                records.unread(run.pages, run.content);
                continue;
            }
            let other = used.block.is_some_and(|block| block.id() != run.block.id());
            if other || used.first_time != run.first_time {
                used.look(&mut self.contents, &mut records)?;
            }
            used.block = Some(run.block);
            used.first_time = run.first_time;
            run.block
                .poisoned()
                .split(run.pages.range(), |range, lost| {
                    let part = run.pages.part(range);
                    if let Some(unread) = &self.unread {
                        unread.note(run.block, &part, lost)?;
                    }
                    if lost {
                        used.look(&mut self.contents, &mut records)?;
                        records.poisoned(part);
                        return Ok(());
                    }
                    fallible::push(&mut used.runs, part, "runs of pages")
                })?;
        }
        used.look(&mut self.contents, &mut records)?;
        records.gathered();
        records.send_waiting()?;
        match records.failed.take() {
            Some(error) => Err(error),
            None => Ok(records),
        }
    }
}

/// Runs of one block that the guest uses. All of them are sent for the first time, or all were sent
/// before. They are gathered so that one look finds out what all of them hold.
#[derive(Default)]
struct Used<'t> {
    block: Option<&'t BlockPin>,
    first_time: bool,
    runs: Vec<PageRun>,
}

impl<'t> Used<'t> {
    /// Makes records of the runs gathered so far.
    fn look(&mut self, contents: &mut Contents, records: &mut Records<'t>) -> Result<()> {
        let Some(block) = self.block else {
            return Ok(());
        };
        let looked = contents.split_runs(block, &self.runs, |run, held| {
            records.held(block, run, held, self.first_time);
        });
        self.runs.clear();
        looked
    }
}

/// Runs of at most this many pages are gathered into lists. A list saves a call at the destination
/// for each run. For longer runs that saving is small beside the cost of copying them.
const SHORT: u64 = 8;
/// When pages are sent in place, the contents of a record with fewer pages than this are copied. To
/// pin pages and to hear that they were sent costs more than such a small copy.
const IN_PLACE_PAGES: u64 = 4;
/// Fewer short runs than this are sent as records of their own.
const WORTH_A_LIST: usize = 16;
/// As `SHORT`, for zero pages, which cost no copying.
const SHORT_ZEROS: u64 = 64;
/// Fewer runs of zero pages than this are sent as records of their own: a list costs a second read.
const ZEROS_WORTH_A_LIST: usize = 3;

/// The most pages of one record whose contents are the encoder's own: 256 KiB. That much stays in a
/// processor's cache from copying to sending, and at the destination likewise.
const OWN_PAGES: u64 = 64;
/// The most room that is kept from one batch to the next: that of a usual batch, and of the
/// checksums and headers around its contents.
const OWN_KEPT: usize = (BATCH_PAGES.0 * PAGE_SIZE) as usize + (64 << 10);

/// Bytes of the encoder's own: the contents of one batch's records, one behind the other. They are
/// no more than the pages of the batch and a little for each record. The room is kept from one
/// batch to the next.
#[derive(Debug, Default)]
struct Own {
    bytes: Vec<u8>,
    used: usize,
    /// Room for one frame: compressed contents.
    frame: Vec<u8>,
}

impl Own {
    fn empty(&mut self) {
        self.used = 0;
        if self.bytes.len() > OWN_KEPT {
            self.bytes.truncate(OWN_KEPT);
            self.bytes.shrink_to_fit();
        }
    }

    /// Room for `length` bytes behind the used ones, which count as used from now on. The room
    /// holds leftovers of earlier batches.
    fn room(&mut self, length: usize) -> Result<&mut [u8]> {
        let (from, end) = (self.used, self.used + length);
        if end > self.bytes.len() {
            let more = end - self.bytes.len();
            fallible::reserve(&mut self.bytes, more, "a copy of pages that are being sent")?;
            self.bytes.resize(end, 0);
        }
        self.used = end;
        Ok(&mut self.bytes[from..end])
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.room(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Copies pages as they are now. They are readable: [`Contents::split`] read them a moment ago.
    fn copy(&mut self, (block, run): PinnedRun<'_>) -> Result<()> {
        let slice = block.slice(run.first(), run.count())?;
        slice.copy_to(self.room(slice.len())?);
        Ok(())
    }
}

/// A batch of records in the making.
pub(super) struct Records<'a> {
    list: Vec<Record>,
    /// All headers, one behind the other. The header of a list has its list behind it.
    heads: Vec<u8>,
    /// For each record with contents, where they are.
    contents: Vec<Source<'a>>,
    own: &'a mut Own,
    /// The compression, when contents are to be compressed.
    packing: Option<&'a mut Packing>,
    agreed: Agreed,
    /// Short runs of one block with contents, which are in no record yet.
    short: Vec<PinnedRun<'a>>,
    short_pages: u64,
    /// Re-sent pages, where deltas are used.
    waiting: Option<Waiting<'a>>,
    /// Short runs of zero pages of the same block, which are in no record yet.
    zeros: Vec<PageRun>,
    zeros_pages: u64,
    /// The last run that was looked at.
    last: Option<PageRun>,
    put: Put,
    /// The first error. After it there are no records.
    failed: Option<Error>,
}

/// One record of the batch.
struct Record {
    head: Range<usize>,
    contents: Range<usize>,
    /// Length in bytes of header and contents.
    length: u64,
    data_pages: u64,
    zero_pages: u64,
}

/// Where the contents of a record are.
enum Source<'a> {
    /// Pages of guest memory, as they are when they are sent.
    Guest(PinnedRun<'a>),
    /// Bytes of [`Own`].
    Own(Range<usize>),
}

impl Source<'_> {
    fn length(&self) -> usize {
        match self {
            Source::Guest((_, run)) => run.count().bytes().0 as usize,
            Source::Own(range) => range.len(),
        }
    }
}

type PinnedRun<'a> = (&'a BlockPin, PageRun);

/// Whether `run` fits into one list with `runs`, which have `pages` pages in all and come before
/// it.
fn fits(mut runs: impl ExactSizeIterator<Item = PageRun>, pages: u64, run: PageRun) -> bool {
    let count = runs.len();
    runs.next().is_none_or(|first| {
        (run.first() - first.first()).0 <= u64::from(u32::MAX)
            && count < LIST_RUNS_MAX as usize
            && pages + run.count().0 <= u64::from(LIST_PAGES_MAX)
    })
}

/// Runs in the form of a list record, and their block.
fn lists<I: ExactSizeIterator<Item = PageRun> + Clone>(
    runs: I,
) -> Option<(u32, impl ExactSizeIterator<Item = (Pages, u32)> + Clone)> {
    let first = runs.clone().next()?;
    let runs = runs.map(|run| (run.first(), run.count().0 as u32));
    Some((first.block().0, runs))
}

/// A record's header as bytes. `of` makes a header that describes one run.
fn header(of: fn(u32, Pages, u32) -> Header, run: PageRun) -> [u8; HEADER_LEN] {
    of(run.block().0, run.first(), run.count().0 as u32).encode()
}

impl<'a> Records<'a> {
    /// No records yet, with room for all that `runs` can become: one record for each page that is
    /// read, and one for each run that is not read.
    fn for_runs(
        taken: &Taken,
        agreed: Agreed,
        packing: Option<&'a mut Packing>,
        own: &'a mut Own,
    ) -> Result<Self> {
        let read = taken.runs().filter(|run| run.content == Content::Used);
        let most = taken.run_count() + read.map(|run| run.pages.count().index()).sum::<usize>();
        let mut records = Records {
            list: Vec::new(),
            heads: Vec::new(),
            contents: Vec::new(),
            own,
            packing,
            agreed,
            short: Vec::new(),
            short_pages: 0,
            waiting: None,
            zeros: Vec::new(),
            zeros_pages: 0,
            last: None,
            put: Put::default(),
            failed: None,
        };
        let what = "a batch of records";
        fallible::reserve(&mut records.list, most, what)?;
        fallible::reserve(&mut records.heads, most * HEADER_LEN, what)?;
        fallible::reserve(&mut records.contents, most, what)?;
        fallible::reserve(&mut records.short, LIST_RUNS_MAX as usize, what)?;
        fallible::reserve(&mut records.zeros, LIST_RUNS_MAX as usize, what)?;
        Ok(records)
    }

    /// Makes one record of the bytes behind the last record's header and of the entries of
    /// `contents` behind that record's contents.
    fn record(&mut self, data_pages: u64, zero_pages: u64) {
        let (head, contents) = match self.list.last() {
            Some(last) => (last.head.end, last.contents.end),
            None => (0, 0),
        };
        let (head, contents) = (head..self.heads.len(), contents..self.contents.len());
        let sources = &self.contents[contents.clone()];
        let from_guest = sources.iter().any(|s| matches!(s, Source::Guest(_)));
        let bytes = sources.iter().map(Source::length);
        let length = (head.len() + bytes.sum::<usize>()) as u64;
        self.put.bytes += length;
        self.put.data_pages += data_pages;
        self.put.zero_pages += zero_pages;
        if !from_guest {
            self.put.copied_pages += data_pages;
        }
        self.list.push(Record {
            head,
            contents,
            length,
            data_pages,
            zero_pages,
        });
    }

    fn zeros(&mut self, run: PageRun) {
        self.forget(run);
        if run.count().0 <= SHORT_ZEROS {
            return self.short_zeros(run);
        }
        self.gathered();
        self.zeros_record(run);
    }

    fn zeros_record(&mut self, run: PageRun) {
        self.heads.extend(header(Header::zeros, run));
        self.record(0, run.count().0);
    }

    fn data(&mut self, (block, run): PinnedRun<'a>) {
        if run.count().0 <= SHORT {
            return self.short((block, run));
        }
        self.gathered();
        self.data_record((block, run));
    }

    fn data_record(&mut self, (block, run): PinnedRun<'a>) {
        if !self.agreed.checksums && self.packing.is_none() {
            return self.plain((block, run));
        }
        let mut first = run.first();
        while first < run.end() {
            let end = (first + Pages(OWN_PAGES)).min(run.end());
            let part = run.part(first..end);
            if !self.packed(&[(block, part)]) {
                self.unpacked((block, part));
            }
            first = end;
        }
    }

    /// Adds contents that are not compressed.
    fn unpacked(&mut self, run: PinnedRun<'a>) {
        match self.agreed.checksums {
            true => self.sealed(run),
            false => self.plain(run),
        }
    }

    /// Adds contents that are sent straight from guest memory.
    fn plain(&mut self, (block, run): PinnedRun<'a>) {
        self.heads.extend(header(Header::pages, run));
        self.contents.push(Source::Guest((block, run)));
        self.record(run.count().0, 0);
    }

    /// Adds a copy of contents, with its checksum.
    fn sealed(&mut self, (block, run): PinnedRun<'a>) {
        self.heads.extend(header(Header::checked_pages, run));
        if let Some(own) = self.checked(&[(block, run)]) {
            self.contents.push(Source::Own(own));
            self.record(run.count().0, 0);
        }
    }

    /// Copies the contents of `runs` and computes the checksum. `None` after an error, which is
    /// stored.
    fn checked(&mut self, runs: &[PinnedRun<'a>]) -> Option<Range<usize>> {
        let own = &mut *self.own;
        let from = own.used;
        let copied = runs
            .iter()
            .try_for_each(|run| own.copy(*run))
            .and_then(|()| {
                let sum = crc32fast::hash(&own.bytes[from..own.used]);
                own.append(&sum.to_le_bytes())
            });
        match copied {
            Ok(()) => Some(from..own.used),
            Err(e) => {
                self.failed.get_or_insert(e);
                None
            }
        }
    }

    /// Prepares for the next run. When the run does not come after the runs that are in no record
    /// yet, those become records first. The reason: a walk may step back to pages that it has seen,
    /// and the newest record about a page has to be the last.
    fn next(&mut self, run: PageRun) {
        let after = |last: PageRun| last.block() == run.block() && run.first() >= last.end();
        if !self.last.is_some_and(after) {
            self.gathered();
            if let Err(e) = self.send_waiting() {
                self.failed.get_or_insert(e);
            }
        }
        self.last = Some(run);
    }

    /// Adds a short run with contents.
    fn short(&mut self, (block, run): PinnedRun<'a>) {
        if !fits(
            self.short.iter().map(|(_, run)| *run),
            self.short_pages,
            run,
        ) {
            self.gathered();
        }
        self.short_pages += run.count().0;
        self.short.push((block, run));
    }

    /// Adds a short run of zero pages.
    fn short_zeros(&mut self, run: PageRun) {
        if !fits(self.zeros.iter().copied(), self.zeros_pages, run) {
            self.gathered();
        }
        self.zeros_pages += run.count().0;
        self.zeros.push(run);
    }

    /// Makes records of the short runs so far, as lists or one by one.
    fn gathered(&mut self) {
        let zeros = std::mem::take(&mut self.zeros);
        let pages = std::mem::take(&mut self.zeros_pages);
        let listed = zeros.len() >= ZEROS_WORTH_A_LIST
            && lists(zeros.iter().copied()).is_some_and(|(block, runs)| {
                wire::encode_zeros_list(block, runs, &mut self.heads).is_ok()
            });
        if listed {
            self.record(0, pages);
        } else {
            zeros.iter().for_each(|run| self.zeros_record(*run));
        }
        // The vector's room is kept for later runs.
        self.zeros = zeros;
        self.zeros.clear();

        let short = std::mem::take(&mut self.short);
        self.short_pages = 0;
        match self.packing {
            Some(_) => self.packed_short(&short),
            None => self.unpacked_short(&short),
        }
        self.short = short;
        self.short.clear();
    }

    /// Makes records of short runs that are not compressed: a list, or one record for each.
    fn unpacked_short(&mut self, short: &[PinnedRun<'a>]) {
        let pages = short.iter().map(|(_, run)| run.count().0).sum();
        let checksums = self.agreed.checksums;
        let listed = short.len() >= WORTH_A_LIST && {
            let runs = short.iter().map(|(_, run)| *run);
            // There is room, because a list is shorter than the headers that it replaces.
            match (lists(runs), checksums) {
                (Some((block, runs)), true) => {
                    wire::encode_checked_list(block, runs, &mut self.heads).is_ok()
                }
                (Some((block, runs)), false) => {
                    wire::encode_list(block, runs, &mut self.heads).is_ok()
                }
                (None, _) => false,
            }
        };
        if listed && checksums {
            if let Some(own) = self.checked(short) {
                self.contents.push(Source::Own(own));
                self.record(pages, 0);
            }
        } else if listed {
            self.contents
                .extend(short.iter().map(|run| Source::Guest(*run)));
            self.record(pages, 0);
        } else {
            short.iter().for_each(|run| self.unpacked(*run));
        }
    }

    /// Adds poisoned pages. Their contents are lost, so they become zero.
    fn poisoned(&mut self, run: PageRun) {
        self.next(run);
        self.put.poisoned_pages += run.count().0;
        self.zeros(run);
    }

    /// Adds pages that are not read: they read as zero at the destination.
    fn unread(&mut self, run: PageRun, content: Content) {
        self.next(run);
        let count = run.count().0;
        match content {
            Content::Ballooned => self.put.ballooned_pages += count,
            _ => self.put.free_pages += count,
        }
        if content == Content::Ballooned && self.agreed.ballooned {
            self.gathered();
            self.forget(run);
            self.heads.extend(header(Header::ballooned, run));
            self.record(0, count);
        } else {
            self.zeros(run);
        }
    }

    /// Adds pages according to what they hold.
    fn held(&mut self, block: &'a BlockPin, run: PageRun, held: Held, first_time: bool) {
        self.next(run);
        let count = run.count();
        match held {
            Held::Hole => {
                self.put.hole_pages += count.0;
                self.zeros(run);
            }
            Held::Zero => self.zeros(run),
            Held::Data if first_time || self.waiting.is_none() => {
                // An older copy in the cache must not become the base of a later delta.
                self.forget(run);
                self.data((block, run));
            }
            Held::Data => self.resent((block, run)),
        }
    }

    /// The totals of the records so far.
    pub(super) fn put(&self) -> Put {
        self.put
    }

    /// How many records there are.
    pub(super) fn count(&self) -> u64 {
        self.list.len() as u64
    }

    /// The parts to give to the socket: `first`, then the records.
    pub(super) fn parts<'p>(&'p self, first: &'p [u8]) -> Result<Vec<Part<'p>>> {
        let mut parts = Vec::new();
        let count = 1 + self.list.len() + self.contents.len();
        fallible::reserve(&mut parts, count, "a batch of records")?;
        parts.push(Part::bytes(first));
        for record in &self.list {
            parts.push(Part::bytes(&self.heads[record.head.clone()]));
            for source in &self.contents[record.contents.clone()] {
                parts.push(match source {
                    Source::Guest((block, run)) => block.part(run.range())?,
                    Source::Own(range) => Part::bytes(&self.own.bytes[range.clone()]),
                });
            }
        }
        Ok(parts)
    }

    /// For each part, whether it is guest memory that may be sent in place. A record with few pages
    /// is copied whole.
    pub(super) fn in_place(&self) -> Result<Vec<bool>> {
        let mut held = Vec::new();
        let count = 1 + self.list.len() + self.contents.len();
        fallible::reserve(&mut held, count, "a batch of records")?;
        held.push(false);
        for record in &self.list {
            held.push(false);
            let much = record.data_pages >= IN_PLACE_PAGES;
            for source in &self.contents[record.contents.clone()] {
                held.push(much && matches!(source, Source::Guest(_)));
            }
        }
        Ok(held)
    }

    /// Where sending ended at byte `at` of `first` and the records after it: the end of the record
    /// in which the byte lies. Also the totals of all records up to that end, or of those before it
    /// that are `whole`.
    fn cut(&self, first: u64, at: u64, whole: bool) -> (u64, Put) {
        let (mut end, mut put) = (first.min(at), Put::default());
        if at > 0 {
            end = first;
        }
        for record in &self.list {
            if end >= at {
                break;
            }
            let next = end + record.length;
            if whole && next > at {
                break;
            }
            (end, put.bytes) = (next, next - first);
            put.data_pages += record.data_pages;
            put.zero_pages += record.zero_pages;
        }
        (end, put)
    }

    /// For sending that ended in the middle, at the position that the channel knows. `finish` sends
    /// the rest of the interrupted record. Returns which pages the destination has.
    pub(super) fn cut_short(
        &self,
        first: u64,
        channel: &mut Channel,
        finish: impl FnOnce(&mut Channel, u64) -> bool,
    ) -> Put {
        let (end, all_to_there) = self.cut(first, channel.cut_at(), false);
        match finish(channel, end) {
            true => all_to_there,
            false => self.cut(first, channel.cut_at(), true).1,
        }
    }

    /// A copy of all bytes behind the first `sent`, with the pages as they are now.
    pub(super) fn copy_rest(&self, first: &[u8], sent: u64) -> Result<Vec<u8>> {
        let all = first.len() as u64 + self.put.bytes;
        let mut rest = Vec::new();
        rest.try_reserve_exact((all - sent) as usize)
            .map_err(|_| Error::no_memory("a copy of the pages that are being sent", all - sent))?;
        // Bytes that are still to be skipped.
        let mut skip = sent as usize;
        let mut own = |bytes: &[u8], skip: &mut usize| {
            let from = bytes.len().min(*skip);
            *skip -= from;
            rest.extend_from_slice(&bytes[from..]);
        };
        own(first, &mut skip);
        for record in &self.list {
            own(&self.heads[record.head.clone()], &mut skip);
            for source in &self.contents[record.contents.clone()] {
                let (block, run) = match source {
                    Source::Guest(run) => run,
                    Source::Own(range) => {
                        own(&self.own.bytes[range.clone()], &mut skip);
                        continue;
                    }
                };
                let from = source.length().min(skip);
                skip -= from;
                if from < source.length() {
                    let mut copy = [0u8; PAGE_SIZE as usize];
                    let first = run.first() + Bytes(from as u64).pages_down();
                    access::readable(block, first..run.end())?;
                    let mut from = from % copy.len();
                    for page in first.0..run.end().0 {
                        let slice = block.slice(Pages(page), Pages(1))?;
                        slice.copy_to(&mut copy[..]);
                        own(&copy[from..], &mut 0);
                        from = 0;
                    }
                }
            }
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests;
