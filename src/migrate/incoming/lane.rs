//! The destination's end of one connection: what comes on it, and what is sent on it.
//!
//! A lane counts the pages that came on it, compares the count with the source's markers, and has
//! acknowledgements of its own. It knows records and their order in time, and nothing of guest
//! memory. [`super::account`] knows where pages go, and the driver knows which record may come now.

use super::asker::Asker;
use crate::channel::{Channel, Counters, Io, IoPart as _, Part, PartMut};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::control;
use crate::migrate::lane_name::LaneName;
use crate::migrate::outbox::Outbox;
use crate::migrate::params::Params;
use crate::runtime::{probes, Cancel, Deadline, Interest, Limit, Recall, Timeout};
use crate::wire::{list_len, Header, Marker, Record, RecordType, HEADER_LEN};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The pause between two looks, when there is something to acknowledge and something to read.
const LOOK: Duration = Duration::from_millis(10);
/// After this side has told the source that the migration is over, it reads for this long what the
/// source still sends. Closing a connection with unread bytes resets it, and the reason would be
/// lost.
const LINGER: Duration = Duration::from_secs(1);
/// The same limit when somebody waits for a cancel.
const LINGER_CANCELLED: Duration = Duration::from_millis(10);

/// The limits of every wait for the source.
#[derive(Clone, Copy)]
pub(super) struct Waits<'a> {
    pub(super) cancel: &'a Cancel,
    pub(super) params: &'a Params,
    /// The limit for the hand-over of the guest.
    pub(super) overall: Limit,
}

impl<'a> Waits<'a> {
    /// How long the source may be silent. Between two records its VMM may be pausing or saving,
    /// which may take as long as the switchover.
    pub(super) fn patience(&self) -> Timeout {
        self.params.io().longer(self.params.switchover())
    }

    /// The limit for the payload of a record: its time on the slowest link that is served, and some
    /// patience. So a peer that trickles bytes is ended.
    pub(super) fn record(&self, header: &Header, limit: Limit) -> Io<'a> {
        let kind = RecordType::from_number(header.kind);
        Io::until(self.cancel, self.params.io())
            .within(limit)
            .within(self.overall)
            .within(self.params.transfer(u64::from(header.payload)).from_now())
            .of(kind.map_or("a record of a later version", RecordType::name))
    }
}

/// A record that came. Of a page run, a blob and a piece of a device's state, only the header was
/// read.
pub(super) enum Incomer {
    Control(Record),
    Pages(RecordType, Header),
    Blob(RecordType, Header),
    Piece(Header),
}

impl Incomer {
    pub(super) fn kind(&self) -> RecordType {
        match self {
            Incomer::Control(record) => record.record_type(),
            Incomer::Pages(kind, _) | Incomer::Blob(kind, _) => *kind,
            Incomer::Piece(_) => RecordType::Device,
        }
    }
}

/// Counts of the page runs that were taken since the lane began.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    records: u64,
    pub(super) data_pages: u64,
    /// Zero pages, ballooned ones included.
    pub(super) zero_pages: u64,
    pub(super) ballooned_pages: u64,
    /// Those of the data pages that came compressed.
    pub(super) compressed_pages: u64,
    pub(super) compressed_bytes: u64,
}

/// See the file's description.
pub(super) struct Lane {
    name: LaneName,
    channel: Channel,
    /// The beginning of the next record's header, when it was read along with the last record's
    /// payload.
    ahead: [u8; HEADER_LEN],
    ahead_len: usize,
    /// Shared with the thread that serves faults, on the urgent lane ([`Lane::asker`]).
    outbox: Arc<Mutex<Outbox>>,
    counts: Counts,
    last_marker: u64,
    /// Whether the source's ABORT has come.
    told: bool,
}

fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// A lane over `channel`, with a name for errors.
    pub(super) fn new(channel: Channel, name: LaneName) -> Self {
        Lane {
            name,
            channel,
            ahead: [0; HEADER_LEN],
            ahead_len: 0,
            outbox: Arc::default(),
            counts: Counts::default(),
            last_marker: 0,
            told: false,
        }
    }

    /// A way to send on this lane from another thread.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub(super) fn asker(&self) -> Result<Asker> {
        Ok(Asker::new(self.channel.twin()?, &self.outbox))
    }

    /// The lane's name in messages.
    pub(super) fn name(&self) -> &LaneName {
        &self.name
    }

    /// Whether descriptors can travel over the connection.
    pub(super) fn carries_descriptors(&self) -> bool {
        self.channel.carries_descriptors()
    }

    /// From now on descriptors that the source attaches are kept, or are closed.
    pub(super) fn keep_descriptors(&mut self, keep: bool) {
        self.channel.keep_descriptors(keep);
    }

    /// The descriptor that came with the record which was just read.
    pub(super) fn take_descriptor(&mut self) -> Result<OwnedFd> {
        self.channel.take_descriptor()
    }

    /// Checks that no descriptor came which no record has taken.
    pub(super) fn check_no_descriptor(&mut self) -> Result<()> {
        self.channel.check_no_descriptor()
    }

    /// The HELLO has said which channel of several this is.
    pub(super) fn is_channel(&mut self, number: u16) {
        self.name = LaneName::of(number.into(), self.channel.handed_in());
    }

    /// The HELLO has said that this is the urgent lane.
    pub(super) fn is_urgent(&mut self) {
        self.name = LaneName::urgent(self.channel.handed_in());
    }

    /// The result with the lane's name before its error. An error that the source told in an ABORT
    /// keeps the source's words.
    pub(super) fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match self.told {
            true => error,
            false => self.name.before(error),
        })
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// What the connection has done so far.
    pub(super) fn counters(&self) -> Counters {
        self.channel.counters()
    }

    /// The address of the memory that the last read could not write to, if it failed for that
    /// reason.
    pub(super) fn fault(&self) -> Option<usize> {
        self.channel.fault()
    }

    /// The next record that may not be skipped. A run of pages, a blob or a piece comes back as its
    /// header, with its payload unread. `what` names the awaited record in messages.
    pub(super) fn next(
        &mut self,
        waits: &Waits<'_>,
        limit: Limit,
        what: &'static str,
    ) -> Result<Incomer> {
        // One limit for all skipped records together: a peer that sends only KEEPALIVE says
        // nothing.
        let begins = limit.earlier(waits.patience().from_now());
        loop {
            if let Some(came) = self.one(waits, begins, limit, what)? {
                return Ok(came);
            }
        }
    }

    /// The same, when only the wait for the record's header has a limit.
    pub(super) fn next_by(
        &mut self,
        waits: &Waits<'_>,
        begins: Limit,
        what: &'static str,
    ) -> Result<Incomer> {
        loop {
            if let Some(came) = self.one(waits, begins, Limit::never(), what)? {
                return Ok(came);
            }
        }
    }

    /// The same, but returns `None` for a record that may be skipped.
    pub(super) fn next_or_skipped(
        &mut self,
        waits: &Waits<'_>,
        limit: Limit,
        what: &'static str,
    ) -> Result<Option<Incomer>> {
        self.one(waits, limit, limit, what)
    }

    /// Reads one record. Its header has to come by `begins`.
    fn one(
        &mut self,
        waits: &Waits<'_>,
        begins: Limit,
        limit: Limit,
        what: &'static str,
    ) -> Result<Option<Incomer>> {
        let patience = waits.patience();
        let limit = limit.earlier(waits.overall);
        let io = Io::until(waits.cancel, patience)
            .within(limit)
            .within(begins)
            .within(patience.from_now())
            .of(what);
        let header = self.header(&io)?;
        let kind = header.classify()?;
        match kind {
            Some(kind) if kind.is_page_run() => return Ok(Some(Incomer::Pages(kind, header))),
            Some(kind) if kind.is_blob() => return Ok(Some(Incomer::Blob(kind, header))),
            Some(kind) if kind.is_piece() => return Ok(Some(Incomer::Piece(header))),
            _ => {}
        }
        let payload = self.payload(&header, &waits.record(&header, limit))?;
        match kind {
            None | Some(RecordType::Keepalive) => Ok(None),
            Some(_) => match Record::decode(&header, &payload)? {
                Record::Abort(abort) => {
                    self.told = true;
                    Err(control::refused("the source", &abort))
                }
                record => Ok(Some(Incomer::Control(record))),
            },
        }
    }

    /// Whether at least a part of another record has come.
    pub(super) fn has_more(&mut self) -> Result<bool> {
        if self.ahead_len == 0 {
            let ahead = PartMut::bytes(&mut self.ahead[..]);
            self.ahead_len = self.channel.try_recv(&[ahead])?;
        }
        Ok(self.ahead_len > 0)
    }

    /// Waits until the source says something, until `until`, or until `cancel`. Meanwhile sends
    /// acknowledgements as far as there is room. Returns whether something has come.
    pub(super) fn wait_for_more(&mut self, cancel: &Cancel, until: Deadline) -> Result<bool> {
        if self.has_more()? {
            return Ok(true);
        }
        self.flush()?;
        self.channel.wait(Interest::Read, Some(cancel), until)?;
        self.has_more()
    }

    /// As [`Lane::wait_for_more`], and also ends when `recall` is raised.
    pub(super) fn wait_for_more_unless(
        &mut self,
        recall: &Recall,
        cancel: &Cancel,
        until: Deadline,
    ) -> Result<bool> {
        if self.has_more()? {
            return Ok(true);
        }
        self.flush()?;
        let until = match lock(&self.outbox).is_empty() {
            true => until,
            // There is no room for what is to be sent. The source may have nothing to say.
            false => until.earlier(Deadline::after(LOOK)),
        };
        if recall.is_raised() {
            return Ok(false);
        }
        self.channel
            .wait_or(Interest::Read, Some(recall), Some(cancel), until)?;
        recall.settle();
        self.has_more()
    }

    /// Whether this lane failed because of the source's ABORT.
    pub(super) fn was_told(&self) -> bool {
        self.told
    }

    /// Reads the source's ABORT, if the next record is one.
    ///
    /// # Errors
    /// The error that the ABORT carries, or the loss of the connection.
    pub(super) fn heed_abort(&mut self, waits: &Waits<'_>) -> Result<()> {
        let heeded = self.look_for_abort(waits);
        self.named(heeded)
    }

    fn look_for_abort(&mut self, waits: &Waits<'_>) -> Result<()> {
        if !self.has_more()? || self.ahead_len < HEADER_LEN {
            return Ok(());
        }
        let kind = Header::decode(&self.ahead)?.classify()?;
        match kind == Some(RecordType::Abort) {
            true => self
                .next(waits, waits.params.io().from_now(), "ABORT")
                .map(drop),
            false => Ok(()),
        }
    }

    /// Reads the next header. Until its first byte comes, the source may have nothing to say. After
    /// that byte, the rest has to follow.
    fn header(&mut self, io: &Io<'_>) -> Result<Header> {
        let Lane {
            channel,
            ahead,
            ahead_len,
            outbox,
            ..
        } = self;
        // The source may be waiting for an acknowledgement that found no room so far.
        while *ahead_len < HEADER_LEN && !io.limit.expired() && !lock(outbox).is_empty() {
            lock(outbox).flush(channel)?;
            let got = channel.try_recv(&[PartMut::bytes(&mut ahead[*ahead_len..])])?;
            *ahead_len += got;
            if got == 0 && !lock(outbox).is_empty() {
                let soon = io.limit.at().earlier(Deadline::after(LOOK));
                channel.wait(Interest::Write, io.cancel, soon)?;
                if let Some(cancel) = io.cancel {
                    cancel.check("the migration")?;
                }
            }
        }
        if *ahead_len < HEADER_LEN {
            channel.recv_exact(&[PartMut::bytes(&mut ahead[*ahead_len..])], io)?;
        } else {
            // With a source that floods there is never a wait, so a cancel is noticed only here.
            channel.heed(io)?;
        }
        *ahead_len = 0;
        Header::decode(ahead)
    }

    /// Reads all of a record's payload.
    pub(super) fn payload(&mut self, header: &Header, io: &Io<'_>) -> Result<Vec<u8>> {
        control::read_payload(&mut self.channel, header, io)
    }

    /// Reads some of the `left` bytes of a record's payload into `room`. When `room` has space for
    /// all of them, the same system call also reads the part of the next header that has come,
    /// which saves a call. Returns 0 when `recall` is raised.
    pub(super) fn payload_into(
        &mut self,
        room: PartMut<'_>,
        left: usize,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<usize> {
        let Lane { channel, ahead, .. } = self;
        let parts = [room, PartMut::bytes(&mut ahead[..])];
        let parts = if room.len() < left {
            &parts[..1]
        } else {
            &parts[..]
        };
        let announced = left.min(room.len());
        let got = channel.recv_announced_unless(parts, announced, recall, io)?;
        self.ahead_len = got.saturating_sub(left);
        Ok(got.min(left))
    }

    /// Reads all `left` bytes into several separate places, or fewer when `recall` is raised. The
    /// places together have the size of the rest of the payload.
    pub(super) fn payload_into_each<'a>(
        &'a mut self,
        mut rooms: Vec<PartMut<'a>>,
        left: usize,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<usize> {
        let Lane { channel, ahead, .. } = self;
        fallible::push(
            &mut rooms,
            PartMut::bytes(&mut ahead[..]),
            "places of pages",
        )?;
        let (mut next, mut done) = (0, 0);
        while done < left {
            let got = channel.recv_announced_unless(&rooms[next..], left - done, recall, io)?;
            if got == 0 {
                break;
            }
            done += got;
            let mut moved = got;
            while let Some(room) = rooms.get_mut(next) {
                if moved < room.len() {
                    *room = room.cut(moved, usize::MAX);
                    break;
                }
                moved -= room.len();
                next += 1;
            }
        }
        self.ahead_len = done.saturating_sub(left);
        Ok(done.min(left))
    }

    /// Reads the beginning of the payload of `header`: fills `bytes`.
    pub(super) fn payload_begins(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        io: &Io<'_>,
    ) -> Result<()> {
        let payload = header.payload as usize;
        self.channel
            .recv_exact_of(&[PartMut::bytes(bytes)], payload, io)
    }

    /// Reads `left` bytes of a record's payload and drops them.
    pub(super) fn skip(&mut self, left: usize, io: &Io<'_>) -> Result<()> {
        control::drop_bytes(&mut self.channel, left, io)
    }

    /// Counts a run of pages that has reached its place.
    pub(super) fn taken(&mut self, kind: RecordType, header: &Header) {
        let (counts, pages) = (&mut self.counts, u64::from(header.count));
        counts.records += 1;
        match kind {
            RecordType::Zeros => counts.zero_pages += pages,
            RecordType::Ballooned => {
                counts.zero_pages += pages;
                counts.ballooned_pages += pages;
            }
            RecordType::Compressed => {
                counts.data_pages += pages;
                counts.compressed_pages += pages;
                counts.compressed_bytes += u64::from(header.payload);
            }
            _ => counts.data_pages += header.data_pages(),
        }
    }

    /// Counts a list of runs whose `pages` pages have reached their places.
    pub(super) fn taken_list(&mut self, kind: RecordType, header: &Header, pages: u64) {
        let counts = &mut self.counts;
        counts.records += 1;
        match kind {
            RecordType::ZerosList => counts.zero_pages += pages,
            RecordType::CompressedList => {
                let list = list_len(header.count) as u64;
                counts.data_pages += pages;
                counts.compressed_pages += pages;
                counts.compressed_bytes += u64::from(header.payload).saturating_sub(list);
            }
            _ => counts.data_pages += pages,
        }
    }

    /// Compares the source's count of what it sent on this lane with what came, and acknowledges
    /// the marker.
    pub(super) fn marker(&mut self, marker: &Marker) -> Result<()> {
        let counts = &self.counts;
        let ours = (counts.records, counts.data_pages, counts.zero_pages);
        let theirs = (marker.records, marker.data_pages, marker.zero_pages);
        if ours != theirs || marker.number != self.last_marker + 1 {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "marker {} counts {} records, {} data pages and {} zero pages; expected \
                     marker {} and found {}, {} and {}",
                    marker.number,
                    theirs.0,
                    theirs.1,
                    theirs.2,
                    self.last_marker + 1,
                    ours.0,
                    ours.1,
                    ours.2
                ),
            ));
        }
        self.last_marker = marker.number;
        probes::lane_arrived(
            self.name.text(),
            marker.number,
            counts.data_pages,
            counts.zero_pages,
        );
        lock(&self.outbox).acknowledge(marker.number);
        self.flush()
    }

    /// Sends `record` before the next acknowledgement.
    pub(super) fn say(&mut self, record: &Record) -> Result<()> {
        lock(&self.outbox).say(record)?;
        self.flush()
    }

    /// Sends acknowledgements as far as that needs no wait.
    pub(super) fn flush(&mut self) -> Result<()> {
        lock(&self.outbox).flush(&mut self.channel)
    }

    /// Sends all acknowledgements, and waits for room. For the time when nothing is to be read any
    /// more.
    pub(super) fn flush_all(&mut self, waits: &Waits<'_>) -> Result<()> {
        let limit = waits.params.io().from_now().earlier(waits.overall);
        loop {
            self.flush()?;
            if lock(&self.outbox).is_empty() {
                return Ok(());
            }
            waits.cancel.check("the migration")?;
            if limit.expired() {
                let message = format!(
                    "sending ACK to {}: {limit} ran out: the peer took nothing",
                    self.channel.peer()
                );
                return Err(Error::new(Kind::Timeout, message));
            }
            let until = limit.at();
            self.channel
                .wait(Interest::Write, Some(waits.cancel), until)?;
        }
    }

    /// Sends a record that the source is waiting for.
    pub(super) fn send(&mut self, waits: &Waits<'_>, record: &Record) -> Result<()> {
        let io = waits.params.io();
        let io = Io::until(waits.cancel, io)
            .within(io.from_now())
            .within(waits.overall)
            .of(record.record_type().name());
        let sent = lock(&self.outbox).send(&mut self.channel, record, &io);
        let sent = sent.map_err(|e| self.explain(waits, e));
        self.named(sent)
    }

    /// Sends a record even after a cancel, because the guest runs here by now.
    pub(super) fn send_last(&mut self, params: &Params, record: &Record) -> Result<()> {
        let io = params.io();
        let io = Io::patient(io)
            .within(io.from_now())
            .of(record.record_type().name());
        let sent = lock(&self.outbox).send(&mut self.channel, record, &io);
        self.named(sent)
    }

    /// Sends encoded records after [`Lane::send_last`], within `limit`.
    pub(super) fn send_last_bytes(
        &mut self,
        params: &Params,
        bytes: &[u8],
        limit: Limit,
    ) -> Result<()> {
        let io = Io::patient(params.io()).within(limit).of("DIGEST");
        self.channel.send(&[Part::bytes(bytes)], &io)
    }

    /// The error to report when sending failed. When the source went away, its own reason is
    /// better, and was sent before it went.
    fn explain(&mut self, waits: &Waits<'_>, error: Error) -> Error {
        if !matches!(error.kind(), Kind::PeerGone | Kind::Io) {
            return error;
        }
        // The reason is the last record. A source that goes on sending has none to give.
        for _ in 0..64 {
            match self.next(waits, Deadline::after(LOOK).into(), "ABORT") {
                Ok(Incomer::Control(_)) => {}
                Err(e) if !matches!(e.kind(), Kind::PeerGone | Kind::Io | Kind::Timeout) => {
                    return e;
                }
                _ => break,
            }
        }
        error
    }

    /// Tells the source why the migration is over, and waits until the source has read it.
    pub(super) fn abort(&mut self, cancel: &Cancel, error: &Error) {
        control::abort(&mut self.channel, &mut lock(&self.outbox), error);
        // A cancel is waited for by its caller, so it gets less time.
        if error.kind() != Kind::Cancelled {
            self.linger(&Io::until(cancel, LINGER));
        }
        if cancel.is_cancelled() {
            self.linger(&Io::patient(LINGER_CANCELLED));
        }
        let _ = self.channel.shutdown();
    }

    /// Sends the reason as far as the socket takes it at once, and waits for nobody.
    pub(super) fn abort_at_once(&mut self, error: &Error) {
        lock(&self.outbox).last_at_once(&mut self.channel, &control::goodbye(error));
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        let _ = self.channel.shutdown();
    }

    /// Reads on until the source has seen the reason and closes, or until the time of `io` is up.
    fn linger(&mut self, io: &Io<'_>) {
        let io = io.within(io.idle.from_now());
        let mut buffer = [0u8; 16 << 10];
        while self
            .channel
            .recv_some(&[PartMut::bytes(&mut buffer)], &io)
            .is_ok_and(|n| n > 0)
        {}
    }
}
