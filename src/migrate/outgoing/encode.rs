//! Taken pages into records: what each page holds, the headers that say so, and where the
//! contents are in guest memory. No page is copied.

use crate::channel::{Channel, Part};
use crate::dirty::consumer::Content;
use crate::dirty::taken::Taken;
use crate::error::{Error, Result};
use crate::fallible;
use crate::memory::access;
use crate::memory::contents::{Contents, Held};
use crate::memory::{BlockPin, PageRun};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::walk::Put;
use crate::wire::{self, Header, HEADER_LEN, LIST_PAGES_MAX, LIST_RUNS_MAX};
use std::ops::Range;

/// Makes the records of one lane.
#[derive(Debug)]
pub(super) struct Encoder {
    contents: Contents,
    /// Whether the destination takes BALLOONED records.
    ballooned: bool,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Encoder {
            contents: Contents::new(),
            ballooned: false,
        }
    }

    /// Whether the destination takes BALLOONED records, as agreed.
    pub(super) fn set_ballooned(&mut self, on: bool) {
        self.ballooned = on;
    }

    /// The records of taken pages, whose protection has been restored. Pages that hold nothing
    /// are found without reading them.
    pub(super) fn encode<'t>(&mut self, taken: &'t Taken) -> Result<Records<'t>> {
        let mut records = Records::for_runs(taken)?;
        // The runs' protection is back, so what is asked from here on is true of them.
        self.contents.refresh();
        for run in taken.runs() {
            // A guest has run here.
            run.block.zeroed_no_more();
            if run.content != Content::Used {
                records.unread(run.pages, run.content, self.ballooned);
                continue;
            }
            let contents = &mut self.contents;
            run.block
                .poisoned()
                .split(run.pages.range(), |range, lost| {
                    if lost {
                        records.poisoned(run.pages.part(range));
                        return Ok(());
                    }
                    contents.split(run.block, range, |range, held| {
                        records.held(run.block, run.pages.part(range), held)
                    })
                })?;
        }
        records.gathered();
        Ok(records)
    }
}

/// Runs of so many pages and less are gathered into lists. What a list saves, a call at the
/// destination for each run, is little beside the copying of more.
const SHORT: u64 = 8;
/// Fewer short runs than this go as records of their own.
const WORTH_A_LIST: usize = 16;

/// A batch of records in the making.
#[derive(Default)]
pub(super) struct Records<'a> {
    list: Vec<Record>,
    /// All headers, one behind the other, and the lists behind those of lists.
    heads: Vec<u8>,
    /// Where the contents are of those that have contents.
    contents: Vec<PinnedRun<'a>>,
    /// Short runs with contents, of one block, that are in no record yet.
    short: Vec<PinnedRun<'a>>,
    short_pages: u64,
    put: Put,
}

/// One of them.
struct Record {
    head: Range<usize>,
    contents: Range<usize>,
    data_pages: u64,
    zero_pages: u64,
}

impl Record {
    fn length(&self) -> u64 {
        self.head.len() as u64 + Pages(self.data_pages).bytes().0
    }
}

type PinnedRun<'a> = (&'a BlockPin, PageRun);

/// A record's header, as bytes: `of` is one of those that describe a run.
fn header(of: fn(u32, Pages, u32) -> Header, run: PageRun) -> [u8; HEADER_LEN] {
    of(run.block().0, run.first(), run.count().0 as u32).encode()
}

impl<'a> Records<'a> {
    /// None yet, with room for all that can become of `runs`: a record for each page that is read,
    /// and one for each run that is not.
    fn for_runs(taken: &Taken) -> Result<Self> {
        let read = taken.runs().filter(|run| run.content == Content::Used);
        let most = taken.run_count() + read.map(|run| run.pages.count().index()).sum::<usize>();
        let mut records = Records::default();
        let what = "a batch of records";
        fallible::reserve(&mut records.list, most, what)?;
        fallible::reserve(&mut records.heads, most * HEADER_LEN, what)?;
        fallible::reserve(&mut records.contents, most, what)?;
        fallible::reserve(&mut records.short, LIST_RUNS_MAX as usize, what)?;
        Ok(records)
    }

    /// What stands behind the last record's header, and is in `contents` behind its contents, is a
    /// record.
    fn record(&mut self, data_pages: u64, zero_pages: u64) {
        let (head, contents) = match self.list.last() {
            Some(last) => (last.head.end, last.contents.end),
            None => (0, 0),
        };
        let record = Record {
            head: head..self.heads.len(),
            contents: contents..self.contents.len(),
            data_pages,
            zero_pages,
        };
        self.put.bytes += record.length();
        self.put.data_pages += data_pages;
        self.put.zero_pages += zero_pages;
        self.list.push(record);
    }

    fn zeros(&mut self, run: PageRun) {
        self.heads.extend(header(Header::zeros, run));
        self.record(0, run.count().0);
    }

    fn data(&mut self, (block, run): PinnedRun<'a>) {
        self.heads.extend(header(Header::pages, run));
        self.contents.push((block, run));
        self.record(run.count().0, 0);
    }

    /// A short run with contents.
    fn short(&mut self, (block, run): PinnedRun<'a>) {
        let fits = self.short.first().is_none_or(|(_, first)| {
            first.block() == run.block()
                && run.first() >= first.end()
                && (run.first() - first.first()).0 <= u64::from(u32::MAX)
                && self.short.len() < LIST_RUNS_MAX as usize
                && self.short_pages + run.count().0 <= u64::from(LIST_PAGES_MAX)
        });
        if !fits {
            self.gathered();
        }
        self.short_pages += run.count().0;
        self.short.push((block, run));
    }

    /// The short runs so far go, as a list or each by itself.
    fn gathered(&mut self) {
        let short = std::mem::take(&mut self.short);
        let pages = std::mem::take(&mut self.short_pages);
        let first = short.first().filter(|_| short.len() >= WORTH_A_LIST);
        let listed = first.is_some_and(|(_, first)| {
            let runs = short
                .iter()
                .map(|(_, run)| (run.first(), run.count().0 as u32));
            // There is room: a list is shorter than the headers that it stands for.
            wire::encode_list(first.block().0, runs, &mut self.heads).is_ok()
        });
        if listed {
            self.contents.extend_from_slice(&short);
            self.record(pages, 0);
        } else {
            short.iter().for_each(|run| self.data(*run));
        }
        // The room is kept.
        self.short = short;
        self.short.clear();
    }

    /// Pages whose contents are lost: what they were is not to be had, so they become zero.
    fn poisoned(&mut self, run: PageRun) {
        self.put.poisoned_pages += run.count().0;
        self.zeros(run);
    }

    /// Pages that nobody looks at: they read as zero at the destination.
    fn unread(&mut self, run: PageRun, content: Content, ballooned: bool) {
        let count = run.count().0;
        match content {
            Content::Ballooned => self.put.ballooned_pages += count,
            _ => self.put.free_pages += count,
        }
        if content == Content::Ballooned && ballooned {
            self.heads.extend(header(Header::ballooned, run));
            self.record(0, count);
        } else {
            self.zeros(run);
        }
    }

    /// Pages by what they hold.
    fn held(&mut self, block: &'a BlockPin, run: PageRun, held: Held) {
        let count = run.count();
        match held {
            Held::Hole => {
                self.put.hole_pages += count.0;
                self.zeros(run);
            }
            Held::Zero => self.zeros(run),
            Held::Data if count.0 <= SHORT => self.short((block, run)),
            Held::Data => self.data((block, run)),
        }
    }

    /// What became of the pages so far.
    pub(super) fn put(&self) -> Put {
        self.put
    }

    /// How many records there are.
    pub(super) fn count(&self) -> u64 {
        self.list.len() as u64
    }

    /// What to give to the socket after `first`: no page is copied.
    pub(super) fn parts<'p>(&'p self, first: &'p [u8]) -> Result<Vec<Part<'p>>> {
        let mut parts = Vec::new();
        let count = 1 + self.list.len() + self.contents.len();
        fallible::reserve(&mut parts, count, "a batch of records")?;
        parts.push(Part::bytes(first));
        for record in &self.list {
            parts.push(Part::bytes(&self.heads[record.head.clone()]));
            for (block, run) in &self.contents[record.contents.clone()] {
                parts.push(block.part(run.range())?);
            }
        }
        Ok(parts)
    }

    /// Of `first` and the records after it, byte `at` is where sending ended: where the record ends
    /// that it lies in, and the pages of all records to there, or of those that are `whole` before it.
    fn cut(&self, first: u64, at: u64, whole: bool) -> (u64, Put) {
        let (mut end, mut put) = (first.min(at), Put::default());
        if at > 0 {
            end = first;
        }
        for record in &self.list {
            if end >= at {
                break;
            }
            let next = end + record.length();
            if whole && next > at {
                break;
            }
            (end, put.bytes) = (next, next - first);
            put.data_pages += record.data_pages;
            put.zero_pages += record.zero_pages;
        }
        (end, put)
    }

    /// Sending these after `first` bytes ended where the channel says. Has `finish` send on to the
    /// end of the record that it lies in; which pages the destination has.
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

    /// The same bytes, but the first `sent`, as they are now.
    pub(super) fn copy_rest(&self, first: &[u8], sent: u64) -> Result<Vec<u8>> {
        let all = first.len() as u64 + self.put.bytes;
        let mut rest = Vec::new();
        rest.try_reserve_exact((all - sent) as usize)
            .map_err(|_| Error::no_memory("a copy of the pages that are being sent", all - sent))?;
        // Bytes that are still to be left out.
        let mut skip = sent as usize;
        let mut own = |bytes: &[u8], skip: &mut usize| {
            let from = bytes.len().min(*skip);
            *skip -= from;
            rest.extend_from_slice(&bytes[from..]);
        };
        own(first, &mut skip);
        for record in &self.list {
            own(&self.heads[record.head.clone()], &mut skip);
            for (block, run) in &self.contents[record.contents.clone()] {
                let length = run.count().bytes().0 as usize;
                let from = length.min(skip);
                skip -= from;
                if from < length {
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
