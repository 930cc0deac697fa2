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
use crate::wire::{Header, HEADER_LEN};

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
        Ok(records)
    }
}

/// How many pages a page run's header is of.
fn count(header: &[u8; HEADER_LEN]) -> Pages {
    Pages(Header::decode(header).map_or(0, |header| header.count.into()))
}

/// A batch of records in the making.
#[derive(Default)]
pub(super) struct Records<'a> {
    /// Header, and for a run with contents, where they are.
    list: Vec<([u8; HEADER_LEN], Option<PinnedRun<'a>>)>,
    put: Put,
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
        fallible::reserve(&mut records.list, most, "a batch of records")?;
        Ok(records)
    }

    fn zeros(&mut self, run: PageRun) {
        self.list.push((header(Header::zeros, run), None));
        self.put.zero_pages += run.count().0;
        self.put.bytes += HEADER_LEN as u64;
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
            self.list.push((header(Header::ballooned, run), None));
            self.put.zero_pages += count;
            self.put.bytes += HEADER_LEN as u64;
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
            Held::Data => {
                let header = header(Header::pages, run);
                self.list.push((header, Some((block, run))));
                self.put.data_pages += count.0;
                self.put.bytes += HEADER_LEN as u64 + count.bytes().0;
            }
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
        fallible::reserve(&mut parts, 1 + self.list.len() * 2, "a batch of records")?;
        parts.push(Part::bytes(first));
        for (header, contents) in &self.list {
            parts.push(Part::bytes(header));
            if let Some((block, run)) = contents {
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
        for (header, contents) in &self.list {
            if end >= at {
                break;
            }
            let (pages, data) = match contents {
                Some((_, run)) => (run.count(), true),
                None => (count(header), false),
            };
            let bytes = if data { pages.bytes().0 } else { 0 };
            let next = end + HEADER_LEN as u64 + bytes;
            if whole && next > at {
                break;
            }
            (end, put.bytes) = (next, next - first);
            match data {
                true => put.data_pages += pages.0,
                false => put.zero_pages += pages.0,
            }
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
        for (header, contents) in &self.list {
            own(header, &mut skip);
            let Some((block, run)) = contents else {
                continue;
            };
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
        Ok(rest)
    }
}
