//! Runs of pages into records, straight from guest memory to the socket, and an account of
//! what the destination has not acknowledged.

use crate::channel::{Channel, Io, Part};
use crate::dirty::consumer::{Content, Run};
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::contents::{Contents, Held};
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
/// What the ledger is called when there is no memory for it.
const ACCOUNT: &str = "the account of what is sent";

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

/// The sending side of one channel.
#[derive(Debug)]
pub(super) struct Sender {
    contents: Contents,
    /// Whether the destination takes DISCARD records.
    discards: bool,
    marker: Marker,
    /// Pages that were sent and are not acknowledged, each lot with the number of the first marker
    /// behind it. Whatever becomes of the migration, they are put back unless that is acknowledged.
    ledger: VecDeque<(u64, Taken)>,
    /// How many pages those are.
    waiting: u64,
    /// The newest marker that was acknowledged.
    acknowledged: u64,
    /// Pages and runs sent since the last marker.
    since_marker: (u64, usize),
    /// Since when the destination has had markers to acknowledge and has acknowledged none.
    silent_since: Option<Instant>,
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
            ledger: VecDeque::new(),
            waiting: 0,
            acknowledged: 0,
            since_marker: (0, 0),
            silent_since: None,
        }
    }

    /// Whether the destination takes DISCARD records, as agreed.
    pub(super) fn set_discards(&mut self, on: bool) {
        self.discards = on;
    }

    /// Pages sent and not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.waiting
    }

    /// Sends taken pages, whose protection has been restored, and before them `first`. Pages that
    /// hold nothing are found without reading them. After an error, or a panic, what was taken is
    /// pending again.
    ///
    /// When `recall` is raised while the peer takes its time, what is left is copied: it has to
    /// be sent next, by [`Sender::send_rest`]. Nothing is pinned any more when this returns.
    pub(super) fn send(
        &mut self,
        channel: &mut Channel,
        first: &[u8],
        mut taken: Taken,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<(Batch, Option<Vec<u8>>)> {
        #[cfg(test)]
        let _planted = crate::migrate::planted::point("sending pages");
        // Before the first byte: what was sent needs no room to be accounted for.
        fallible::reserve_back(&mut self.ledger, 1, ACCOUNT)?;
        let sent = self.send_runs(channel, first, &taken, recall, io)?;
        #[cfg(test)]
        let _planted = crate::migrate::planted::point("the ledger");
        taken.unpin();
        let pages = taken.pages().0;
        self.since_marker.0 += pages;
        self.since_marker.1 += taken.run_count();
        self.waiting += pages;
        self.ledger.push_back((self.marker.number + 1, taken));
        Ok(sent)
    }

    fn send_runs(
        &mut self,
        channel: &mut Channel,
        first: &[u8],
        taken: &Taken,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<(Batch, Option<Vec<u8>>)> {
        let begun = Instant::now();
        let mut records = Records::for_runs(taken)?;
        // The runs' protection is back, so what is asked from here on is true of them.
        self.contents.refresh();
        for run in taken.runs() {
            // A guest has run here.
            run.block.zeroed_no_more();
            let range = run.pages.range();
            if run.content != Content::Used {
                records.unread(&run, range, self.discards);
                continue;
            }
            let Sender { contents, .. } = &mut *self;
            run.block.poisoned().split(range, |range, lost| {
                if lost {
                    records.poisoned(&run, range);
                    return Ok(());
                }
                contents.split(run.block, range, |range, held| {
                    records.held(run, range, held)
                })
            })?;
        }
        let parts = records.parts(first)?;
        // A peer that takes a byte now and then is not waited for any longer than this.
        let io = io.within(params::transfer(io.idle, records.batch.bytes).from_now());
        let sent = channel.send_unless(&parts, recall, &io).map_err(|e| {
            let blocks = taken.runs().map(|run| &**run.block);
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
        (self.marker.number - self.acknowledged) as usize
    }

    /// For how long the destination has had markers to acknowledge and has acknowledged none;
    /// `None` where it has none.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.silent_since.map(|since| since.elapsed())
    }

    /// Whether enough was sent since the last marker for another.
    pub(super) fn marker_is_due(&self) -> bool {
        let (pages, runs) = self.since_marker;
        pages >= MARKER_PAGES || runs >= MARKER_RUNS
    }

    /// Sends a marker: the destination acknowledges it when all before it is in memory.
    pub(super) fn send_marker(
        &mut self,
        channel: &mut Channel,
        pass: u32,
        last: bool,
        io: &Io<'_>,
    ) -> Result<()> {
        self.marker.number += 1;
        self.marker.pass = pass;
        self.marker.flags = if last { MARKER_FLAG_FINAL } else { 0 };
        self.since_marker = (0, 0);
        self.silent_since.get_or_insert_with(Instant::now);
        session::send(channel, &Record::Marker(self.marker), io)
    }

    /// The destination has acknowledged a marker, and so all before it. It may leave markers
    /// out, and never goes back.
    pub(super) fn acknowledged(&mut self, number: u64) -> Result<()> {
        let waiting = self.acknowledged + 1..=self.marker.number;
        if !waiting.contains(&number) {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "the destination acknowledged marker {number}; {}",
                    match waiting.is_empty() {
                        false => format!("waiting are {} to {}", waiting.start(), waiting.end()),
                        true => "none is waiting for that".to_owned(),
                    }
                ),
            ));
        }
        self.acknowledged = number;
        while self.ledger.front().is_some_and(|(n, _)| *n <= number) {
            if let Some((_, taken)) = self.ledger.pop_front() {
                self.waiting -= taken.pages().0;
                taken.delivered();
            }
        }
        self.silent_since = (self.markers_waiting() > 0).then(Instant::now);
        Ok(())
    }

    /// Gives everything that was not acknowledged back.
    pub(super) fn give_up(&mut self) {
        self.ledger.clear();
        self.waiting = 0;
    }
}

/// A batch of records in the making.
#[derive(Default)]
struct Records<'a> {
    /// Header, and for a run with contents, where they are.
    list: Vec<([u8; HEADER_LEN], Option<Piece<'a>>)>,
    batch: Batch,
}

type Piece<'a> = (Run<'a>, Range<Pages>);

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

    fn zeros(&mut self, run: &Run<'_>, range: Range<Pages>) {
        let count = range.end - range.start;
        let header = Header::zeros(run.block.id().0, range.start, count.0 as u32);
        self.list.push((header.encode(), None));
        self.batch.zero_pages += count.0;
        self.batch.bytes += HEADER_LEN as u64;
    }

    /// Pages whose contents are lost: what they were is not to be had, so they become zero.
    fn poisoned(&mut self, run: &Run<'_>, range: Range<Pages>) {
        self.batch.poisoned_pages += range.end.0 - range.start.0;
        self.zeros(run, range);
    }

    /// Pages that nobody looks at: they read as zero at the destination.
    fn unread(&mut self, run: &Run<'_>, range: Range<Pages>, discards: bool) {
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
    fn held(&mut self, run: Run<'a>, range: Range<Pages>, held: Held) {
        let count = range.end - range.start;
        match held {
            Held::Hole => {
                self.batch.hole_pages += count.0;
                self.zeros(&run, range);
            }
            Held::Zero => self.zeros(&run, range),
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
                access::readable(run.block, first..range.end)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::consumer::{Consumer, Cursor};
    use crate::dirty::testing::Guest;
    use crate::dirty::tracker::{Clearing, StartWith, Tracker};
    use crate::migrate::planted;
    use std::os::unix::net::UnixStream;
    use std::panic::{catch_unwind, AssertUnwindSafe};
    use std::sync::Arc;

    const PAGES: u64 = 100;

    struct Side {
        _guest: Guest,
        consumer: Consumer,
        sender: Sender,
        channel: Channel,
        peer: UnixStream,
    }

    /// A guest of whose pages every one is pending, and a sender of them.
    fn side() -> Side {
        let guest = Guest::new(PAGES as usize);
        guest.block("ram", PAGES);
        let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Everything).unwrap();
        let (ours, peer) = UnixStream::pair().unwrap();
        Side {
            _guest: guest,
            consumer,
            sender: Sender::new(),
            channel: Channel::from_fd(ours.into()).unwrap(),
            peer,
        }
    }

    impl Side {
        fn send(&mut self) -> Result<()> {
            let taken = self
                .consumer
                .take(&mut Cursor::default(), 64, Pages(PAGES))?;
            assert_eq!(self.consumer.pending(), Pages(0));
            let io = Io::patient(Duration::from_secs(10));
            let recall = Recall::new()?;
            let (_, rest) = self
                .sender
                .send(&mut self.channel, &[], taken, &recall, &io)?;
            assert!(rest.is_none());
            Ok(())
        }

        fn send_marker(&mut self) {
            let io = Io::patient(Duration::from_secs(10));
            self.sender
                .send_marker(&mut self.channel, 1, false, &io)
                .unwrap();
        }

        /// Every page is pending again, and counted as put back once.
        fn has_all(&self, what: &str) {
            assert_eq!(self.consumer.pending(), Pages(PAGES), "{what}");
            assert_eq!(self.consumer.stats().put_back, Pages(PAGES), "{what}");
        }
    }

    #[test]
    fn a_panic_between_take_and_ledger_loses_nothing() {
        for place in [
            "before sending pages",
            "before the ledger",
            "after the ledger",
            "after sending pages",
        ] {
            let mut side = side();
            let fired = planted::plant(place);
            let sent = catch_unwind(AssertUnwindSafe(|| side.send()));
            assert!(sent.is_err() && fired.load(std::sync::atomic::Ordering::SeqCst));
            side.sender.give_up();
            side.has_all(place);
        }
    }

    #[test]
    fn an_error_while_pages_are_sent_puts_them_back() {
        let mut side = side();
        side.peer.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(side.send().is_err());
        assert_eq!(side.sender.unacknowledged(), 0);
        side.has_all("an error");
    }

    #[test]
    fn a_sender_that_is_dropped_puts_back_what_was_not_acknowledged() {
        let mut side = side();
        side.send().unwrap();
        side.send_marker();
        assert_eq!(side.sender.unacknowledged(), PAGES);
        side.sender = Sender::new();
        side.has_all("a dropped sender");
    }

    #[test]
    fn a_marker_delivers_what_was_sent_before_it_and_nothing_else() {
        let mut side = side();
        side.send().unwrap();
        side.send_marker();
        let block = side.consumer.memory().map().blocks()[0].id();
        side.consumer.put_back(block, Pages(3), Pages(1));
        side.send().unwrap();
        assert_eq!(side.sender.unacknowledged(), PAGES + 1);
        for wrong in [0, 2, u64::MAX] {
            assert!(side.sender.acknowledged(wrong).is_err(), "marker {wrong}");
        }
        side.sender.acknowledged(1).unwrap();
        assert!(side.sender.acknowledged(1).is_err());
        assert_eq!(side.sender.unacknowledged(), 1);
        assert_eq!(side.consumer.pending(), Pages(0));
        side.sender.give_up();
        assert_eq!(side.consumer.pending(), Pages(1));
    }
}
