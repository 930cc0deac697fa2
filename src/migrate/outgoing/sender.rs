//! Runs of pages into records, straight from guest memory to the socket, and an account of
//! what the destination has not acknowledged.

use crate::channel::{Channel, Io, Part};
use crate::dirty::consumer::{Consumer, Content, Run};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::contents::{Contents, Held};
use crate::memory::BlockId;
use crate::migrate::params;
use crate::migrate::session;
use crate::runtime::Recall;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::wire::{Header, Marker, Record, HEADER_LEN, MARKER_FLAG_FINAL};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// After so many pages a marker is due, so that the account stays short.
const MARKER_PAGES: u64 = 16 << 10;
/// Or after so many runs.
const MARKER_RUNS: usize = 4096;

/// What one batch was.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Batch {
    /// Bytes given to the socket.
    pub(super) bytes: u64,
    pub(super) data_pages: u64,
    /// Holes and what was not read included.
    pub(super) zero_pages: u64,
    pub(super) hole_pages: u64,
    /// Given-back pages.
    pub(super) skipped_pages: u64,
    /// Pages hinted to be free.
    pub(super) free_pages: u64,
    /// Pages whose contents are lost, as the VMM has declared.
    pub(super) poisoned_pages: u64,
    /// From looking at the first page to the kernel's having taken the last byte.
    pub(super) time: Duration,
}

impl Batch {
    /// Pages that went with contents, or were found to be zero or holes.
    pub(super) fn read_pages(&self) -> u64 {
        let unread = self.skipped_pages + self.free_pages + self.poisoned_pages;
        self.data_pages + self.zero_pages - unread
    }

    /// Whether the time says something of the link: not if most of it went into finding zeros.
    pub(super) fn measures_the_link(&self) -> bool {
        2 * self.data_pages >= self.read_pages()
    }
}

#[derive(Debug, Default)]
struct Sent {
    runs: Vec<(BlockId, Pages, Pages)>,
    pages: u64,
}

/// The sending side of one channel.
#[derive(Debug)]
pub(super) struct Sender {
    contents: Contents,
    /// Whether the destination takes DISCARD records.
    discards: bool,
    marker: Marker,
    /// Sent since the last marker.
    current: Sent,
    /// Sent before a marker that is not acknowledged, by the marker's number.
    waiting: VecDeque<(u64, Sent)>,
    waiting_pages: u64,
}

impl Sender {
    pub(super) fn new() -> Self {
        Sender {
            contents: Contents::new(),
            discards: false,
            marker: Marker {
                number: 0,
                pass: 0,
                flags: 0,
                records: 0,
                data_pages: 0,
                zero_pages: 0,
            },
            current: Sent::default(),
            waiting: VecDeque::new(),
            waiting_pages: 0,
        }
    }

    /// Whether the destination takes DISCARD records, as agreed.
    pub(super) fn set_discards(&mut self, on: bool) {
        self.discards = on;
    }

    /// Pages sent and not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.waiting_pages + self.current.pages
    }

    /// Has room to account for so many runs, which [`Sender::send`] needs before anything can fail.
    pub(super) fn make_room(&mut self, runs: usize) -> Result<()> {
        fallible::reserve(&mut self.current.runs, runs, "the account of what is sent")
    }

    /// Sends runs whose protection has been restored, and before them `first`. Pages that hold
    /// nothing are found without reading them.
    ///
    /// When `recall` is raised while the peer takes its time, what is left is copied: it has to
    /// be sent next, by [`Sender::send_rest`], once nothing is pinned any more.
    pub(super) fn send(
        &mut self,
        channel: &mut Channel,
        first: &[u8],
        runs: &[Run],
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<(Batch, Option<Vec<u8>>)> {
        // Accounted for before anything can fail: what is not acknowledged goes back.
        for run in runs {
            // A guest has run here.
            run.block.zeroed_no_more();
            self.current
                .runs
                .push((run.block.id(), run.first, run.count));
            self.current.pages += run.count.0;
        }
        let begun = Instant::now();
        let mut records = Records::for_runs(runs)?;
        // The runs' protection is back, so what is asked from here on is true of them.
        self.contents.refresh();
        for run in runs {
            let range = run.first..run.first + run.count;
            if run.content != Content::Used {
                records.unread(run, range, self.discards);
                continue;
            }
            let Sender { contents, .. } = &mut *self;
            run.block.poisoned().split(range, |range, lost| {
                if lost {
                    records.poisoned(run, range);
                    return Ok(());
                }
                contents.split(&run.block, range, |range, held| {
                    records.held(run, range, held)
                })
            })?;
        }
        let parts = records.parts(first)?;
        // A peer that takes a byte now and then is not waited for any longer than this.
        let io = io.within(params::transfer(io.idle, records.batch.bytes).from_now());
        let sent = channel.send_unless(&parts, recall, &io).map_err(|e| {
            let blocks = runs.iter().map(|run| &*run.block);
            access::name_fault(e, channel.fault(), blocks, Access::Read)
        })?;
        let all = first.len() as u64 + records.batch.bytes;
        let rest = (sent < all)
            .then(|| records.copy_rest(first, sent))
            .transpose()?;
        let mut batch = records.batch;
        batch.time = begun.elapsed();
        self.marker.records += records.list.len() as u64;
        self.marker.data_pages += batch.data_pages;
        self.marker.zero_pages += batch.zero_pages;
        Ok((batch, rest))
    }

    /// Sends what a batch left.
    pub(super) fn send_rest(&self, channel: &mut Channel, rest: &[u8], io: &Io<'_>) -> Result<()> {
        let limit = params::transfer(io.idle, rest.len() as u64).from_now();
        channel.send(&[Part::bytes(rest)], &io.within(limit))
    }

    /// Markers sent and not acknowledged.
    pub(super) fn markers_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether enough was sent since the last marker for another.
    pub(super) fn marker_is_due(&self) -> bool {
        self.current.pages >= MARKER_PAGES || self.current.runs.len() >= MARKER_RUNS
    }

    /// Sends a marker: the destination acknowledges it when all before it is in memory.
    pub(super) fn send_marker(
        &mut self,
        channel: &mut Channel,
        pass: u32,
        last: bool,
        io: &Io<'_>,
    ) -> Result<()> {
        fallible::reserve_back(&mut self.waiting, 1, "the account of what is sent")?;
        self.marker.number += 1;
        self.marker.pass = pass;
        self.marker.flags = if last { MARKER_FLAG_FINAL } else { 0 };
        let sent = std::mem::take(&mut self.current);
        self.waiting_pages += sent.pages;
        self.waiting.push_back((self.marker.number, sent));
        session::send(channel, &Record::Marker(self.marker), io)
    }

    /// The destination has acknowledged a marker, and so all before it. It may leave markers
    /// out, and never goes back.
    pub(super) fn acknowledged(&mut self, number: u64) -> Result<()> {
        let next = self.waiting.front().map(|(number, _)| *number);
        if number > self.marker.number || next.is_none_or(|next| number < next) {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "the destination acknowledged marker {number}; {}",
                    match next {
                        Some(next) => format!("waiting are {next} to {}", self.marker.number),
                        None => "none is waiting for that".to_owned(),
                    }
                ),
            ));
        }
        while self.waiting.front().is_some_and(|(n, _)| *n <= number) {
            if let Some((_, sent)) = self.waiting.pop_front() {
                self.waiting_pages -= sent.pages;
            }
        }
        Ok(())
    }

    /// Gives everything that was not acknowledged back; how many pages that was.
    pub(super) fn put_back(&mut self, consumer: &Consumer) -> u64 {
        let pages = self.unacknowledged();
        let waiting = self.waiting.drain(..).map(|(_, sent)| sent);
        for sent in waiting.chain([std::mem::take(&mut self.current)]) {
            for (block, first, count) in sent.runs {
                consumer.put_back(block, first, count);
            }
        }
        self.waiting_pages = 0;
        pages
    }
}

/// A batch of records in the making.
#[derive(Default)]
struct Records<'a> {
    /// Header, and for a run with contents, where they are.
    list: Vec<([u8; HEADER_LEN], Option<Piece<'a>>)>,
    batch: Batch,
}

type Piece<'a> = (&'a Run, Range<Pages>);

impl<'a> Records<'a> {
    /// None yet, with room for all that can become of `runs`: a record for each page that is read,
    /// and one for each run that is not.
    fn for_runs(runs: &[Run]) -> Result<Self> {
        let read = runs.iter().filter(|run| run.content == Content::Used);
        let most = runs.len() + read.map(|run| run.count.index()).sum::<usize>();
        let mut records = Records::default();
        fallible::reserve(&mut records.list, most, "a batch of records")?;
        Ok(records)
    }

    fn zeros(&mut self, run: &Run, range: Range<Pages>) {
        let count = range.end - range.start;
        let header = Header::zeros(run.block.id().0, range.start, count.0 as u32);
        self.list.push((header.encode(), None));
        self.batch.zero_pages += count.0;
        self.batch.bytes += HEADER_LEN as u64;
    }

    /// Pages whose contents are lost: what they were is not to be had, so they become zero.
    fn poisoned(&mut self, run: &Run, range: Range<Pages>) {
        self.batch.poisoned_pages += range.end.0 - range.start.0;
        self.zeros(run, range);
    }

    /// Pages that nobody looks at: they read as zero at the destination.
    fn unread(&mut self, run: &Run, range: Range<Pages>, discards: bool) {
        let count = range.end.0 - range.start.0;
        match run.content {
            Content::Returned => self.batch.skipped_pages += count,
            _ => self.batch.free_pages += count,
        }
        if run.content == Content::Returned && discards {
            let header = Header::discard(run.block.id().0, range.start, count as u32);
            self.list.push((header.encode(), None));
            self.batch.zero_pages += count;
            self.batch.bytes += HEADER_LEN as u64;
        } else {
            self.zeros(run, range);
        }
    }

    /// Pages by what they hold.
    fn held(&mut self, run: &'a Run, range: Range<Pages>, held: Held) {
        let count = range.end - range.start;
        match held {
            Held::Hole => {
                self.batch.hole_pages += count.0;
                self.zeros(run, range);
            }
            Held::Zero => self.zeros(run, range),
            Held::Data => {
                let header = Header::pages(run.block.id().0, range.start, count.0 as u32);
                self.list.push((header.encode(), Some((run, range))));
                self.batch.data_pages += count.0;
                self.batch.bytes += HEADER_LEN as u64 + count.bytes().0;
            }
        }
    }

    /// What to give to the socket after `first`: no page is copied.
    fn parts<'p>(&'p self, first: &'p [u8]) -> Result<Vec<Part<'p>>> {
        let mut parts = Vec::new();
        fallible::reserve(&mut parts, 1 + self.list.len() * 2, "a batch of records")?;
        parts.push(Part::bytes(first));
        for (header, contents) in &self.list {
            parts.push(Part::bytes(header));
            if let Some((run, range)) = contents {
                parts.push(run.block.part(range.start, range.end - range.start)?);
            }
        }
        Ok(parts)
    }

    /// The same bytes, but the first `sent`, as they are now.
    fn copy_rest(&self, first: &[u8], sent: u64) -> Result<Vec<u8>> {
        let all = first.len() as u64 + self.batch.bytes;
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
            let Some((run, range)) = contents else {
                continue;
            };
            let length = (range.end - range.start).bytes().0 as usize;
            let from = length.min(skip);
            skip -= from;
            if from < length {
                let mut copy = [0u8; PAGE_SIZE as usize];
                let first = range.start + Bytes(from as u64).pages_down();
                access::readable(&run.block, first..range.end)?;
                let mut from = from % copy.len();
                for page in first.0..range.end.0 {
                    let slice = run.block.slice(Pages(page), Pages(1))?;
                    slice.copy_to(&mut copy[..]);
                    own(&copy[from..], &mut 0);
                    from = 0;
                }
            }
        }
        Ok(rest)
    }
}
