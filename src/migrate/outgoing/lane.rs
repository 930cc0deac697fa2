//! The source's end of one connection: an encoder, the account of pages that are not acknowledged,
//! and what the destination says.
//!
//! When a lane is dropped, it puts back the pages that did not arrive. A lane knows records and
//! their order. Its callers decide which pages come next and when the migration is over.

use super::devices::PieceBytes;
use super::encode::{Agreed, Encoder};
use super::ledger::Ledger;
use super::loaded::Loaded;
use super::packing::Packing;
use super::replies::Replies;
use super::unread::Unread;
use crate::channel::{Channel, Io, Part, ZeroCopy};
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::migrate::control::{self, Blobs, TELL};
use crate::migrate::lane_name::LaneName;
use crate::migrate::outbox::Outbox;
use crate::migrate::params::{self, Params};
use crate::migrate::steering::delivery::Carried;
use crate::migrate::steering::timed::Span;
use crate::runtime::{probes, Cancel, Deadline, Interest, Recall, Wake};
use crate::walk::Put;
use crate::wire::{DeviceLoaded, Record, RecordType, Request};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most markers that may wait for their acknowledgement: 16 GiB of pages, or a million runs.
const MARKERS_WAITING: usize = 256;

/// The most requests that may wait for an answer. Each has 256 runs.
const REQUESTS_WAITING: usize = 4096;

/// The most records that are read from the destination between two batches.
const LISTEN_RECORDS: usize = 64;

/// See the file's description.
#[derive(Debug)]
pub(super) struct Lane {
    name: LaneName,
    channel: Channel,
    replies: Replies,
    /// What the destination says about devices, on all lanes. `None` when there is none.
    loaded: Option<Arc<Loaded>>,
    /// On the urgent lane: requests that came while something else was awaited.
    requests: Option<Vec<Request>>,
    encoder: Encoder,
    ledger: Ledger,
    /// The totals of all that was sent.
    put: Put,
    /// When the first of the pages that are on their way was sent, and the bytes sent before it.
    on_their_way: Option<(Instant, u64)>,
    /// The last time in which pages were on their way.
    span: Option<Span>,
    /// How long the rest of a record that a cancel interrupted may take: [`TELL`], or longer in a
    /// test.
    patience: Duration,
}

impl Lane {
    /// A lane over `channel`, with a name for errors.
    pub(super) fn new(channel: Channel, name: LaneName) -> Self {
        Lane {
            name,
            channel,
            replies: Replies::default(),
            loaded: None,
            requests: None,
            encoder: Encoder::new(),
            ledger: Ledger::new(),
            put: Put::default(),
            on_their_way: None,
            span: None,
            patience: TELL,
        }
    }

    /// Sets where the lane puts what the destination says about devices.
    pub(super) fn hears_of_devices(&mut self, loaded: &Arc<Loaded>) {
        self.loaded = Some(Arc::clone(loaded));
    }

    /// This is the urgent lane: the destination's requests come here.
    pub(super) fn takes_requests(&mut self) {
        self.requests = Some(Vec::new());
    }

    /// The requests that came while something else was awaited.
    pub(super) fn requests(&mut self) -> Vec<Request> {
        self.requests
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Whether such a request waits.
    pub(super) fn has_requests(&self) -> bool {
        self.requests.as_ref().is_some_and(|list| !list.is_empty())
    }

    /// Keeps a request for later.
    fn requested(&mut self, request: Request) -> Result<()> {
        match &mut self.requests {
            Some(list) if list.len() < REQUESTS_WAITING => {
                fallible::push(list, request, "the destination's requests")
            }
            Some(_) => Err(self.name.before(Error::new(
                Kind::Protocol,
                format!("more than {REQUESTS_WAITING} records REQUEST before one was answered"),
            ))),
            None => Err(self.unexpected(RecordType::Request, "ACK")),
        }
    }

    /// The lane's name in messages.
    pub(super) fn name(&self) -> &LaneName {
        &self.name
    }

    /// The result with the lane's name before its error. An error that the destination told in an
    /// ABORT keeps the destination's words.
    pub(super) fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match self.replies.ended() {
            true => error,
            false => self.name.before(error),
        })
    }

    /// The error for a record that came where another was expected.
    pub(super) fn unexpected(&self, found: RecordType, expected: &str) -> Error {
        self.name.before(control::unexpected(found, expected))
    }

    /// Sets what the destination takes, as agreed, and how contents are compressed, if that was
    /// agreed.
    pub(super) fn agree(&mut self, agreed: Agreed, packing: Option<Packing>) {
        self.encoder.agree(agreed, packing);
    }

    /// Has re-sent pages go as deltas, with a cache of at most `cache` bytes.
    pub(super) fn use_deltas(&mut self, cache: u64) -> Result<()> {
        self.encoder.use_deltas(cache)
    }

    /// Has pages noted that are sent without being read.
    pub(super) fn note_unread(&mut self, unread: Arc<Unread>) {
        self.encoder.note_unread(unread);
    }

    /// The pages that follow belong to pass `pass`.
    fn in_pass(&mut self, pass: u32) {
        self.encoder.in_pass(pass);
    }

    /// What became of all pages that were sent.
    pub(super) fn put(&self) -> Put {
        self.put
    }

    /// Bytes that went over the connection.
    pub(super) fn sent(&self) -> u64 {
        self.channel.counters().sent.0
    }

    /// Has pages sent in place from now on, when the connection can do that.
    pub(super) fn send_in_place(&mut self) {
        self.channel.send_in_place();
    }

    /// What became of pages that were sent in place.
    pub(super) fn zero_copy(&self) -> ZeroCopy {
        self.channel.zero_copy()
    }

    /// Lets go of the pages whose sending in place is complete, without waiting. Returns whether
    /// the sending of others is not complete.
    pub(super) fn reap(&mut self) -> bool {
        self.channel.reap();
        self.channel.is_sending_in_place()
    }

    /// Waits until the kernel no longer reads any page that was sent in place.
    pub(super) fn land(&mut self, io: &Io<'_>) -> Result<()> {
        let landed = self.channel.land(&io.of("pages"));
        self.named(landed)
    }

    /// Makes the kernel stop reading pages that were sent in place. When nothing else helps, the
    /// connection is reset.
    pub(super) fn let_go(&mut self) {
        self.channel.let_go();
    }

    /// How many sent bytes the peer's host does not have yet. 0 if that is unknown.
    pub(super) fn held(&self) -> u64 {
        self.channel.held()
    }

    /// How long the cap on the bandwidth has held sending back.
    pub(super) fn paced(&self) -> Duration {
        self.channel.counters().paced
    }

    /// The last time in which pages were on their way.
    pub(super) fn span(&self) -> Option<Span> {
        self.span
    }

    /// How many pages were sent and are not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.ledger.unacknowledged()
    }

    /// See [`Ledger::arrived`].
    pub(super) fn arrived(&self) -> u64 {
        self.ledger.arrived()
    }

    /// See [`Ledger::delivered`].
    pub(super) fn delivered(&self) -> Carried {
        self.ledger.delivered()
    }

    /// See [`Ledger::on_the_way`].
    pub(super) fn on_the_way(&self) -> u64 {
        self.ledger.on_the_way()
    }

    /// See [`Ledger::silent_since`].
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.ledger.silent_since()
    }

    /// How long the connection had no room.
    pub(super) fn waited(&self) -> Duration {
        self.channel.counters().send_waited
    }

    /// Whether the destination has said ABORT here.
    pub(super) fn peer_ended(&self) -> bool {
        self.replies.ended()
    }

    /// As [`Lane::send`], and sends a marker when enough was sent since the last one. When the
    /// destination has too many markers to acknowledge, this waits for it.
    pub(super) fn send_counted(
        &mut self,
        first: &[u8],
        taken: Taken,
        pass: u32,
        recall: &Recall,
        params: &Params,
        io: &Io<'_>,
    ) -> Result<Put> {
        self.in_pass(pass);
        let sent = self.send(first, taken, recall, io);
        let put = self.named(sent)?;
        probes::lane_sent(self.name.text(), put.data_pages, put.zero_pages, put.bytes);
        if self.ledger.marker_is_due() {
            self.send_marker(pass, false, io)?;
            self.await_acknowledgements(MARKERS_WAITING, params, io)?;
        }
        Ok(put)
    }

    /// Waits until the destination says something, `work` is raised, or `stop` is cancelled.
    pub(super) fn wait_for_peer_or(&self, work: &Recall, stop: &Cancel) -> Result<Wake> {
        self.channel
            .wait_or(Interest::Read, Some(work), Some(stop), Deadline::never())
    }

    /// As [`Lane::wait_for_peer_or`], for as long as `until`.
    pub(super) fn wait_for_peer_until(
        &self,
        work: &Recall,
        stop: &Cancel,
        until: Deadline,
    ) -> Result<Wake> {
        self.channel
            .wait_or(Interest::Read, Some(work), Some(stop), until)
    }

    /// Sends taken pages, whose protection has been restored, and `first` before them. After an
    /// error or a panic, the taken pages are pending again. One case differs: when all of them had
    /// gone before a cancel was heeded, they are in the account of pages that are not acknowledged.
    ///
    /// When `recall` is raised while the peer is slow, the rest of the batch is copied and
    /// unpinned, and then sent.
    pub(super) fn send(
        &mut self,
        first: &[u8],
        mut taken: Taken,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<Put> {
        #[cfg(test)]
        let _planted = crate::migrate::planted::point("sending pages");
        // Before the first byte, because pages that were sent must always find room in the account.
        self.ledger.make_room()?;
        let begun = Instant::now();
        let records = self.encoder.encode(&taken)?;
        let (mut put, count) = (records.put(), records.count());
        let parts = records.parts(first)?;
        // A peer that takes a byte now and then does not get more time than this.
        let limited = io.within(params::transfer(io.idle, put.bytes).from_now());
        let channel = &mut self.channel;
        let sent_before = channel.counters().sent.0;
        self.on_their_way
            .get_or_insert_with(|| (Instant::now(), sent_before));
        let before = first.len() as u64;
        let result = match channel.sends_in_place() {
            false => channel.send_unless(&parts, recall, &limited),
            true => {
                let keep = Box::new(taken.pins()?);
                channel.send_held(&parts, &records.in_place()?, keep, recall, &limited)
            }
        };
        let sent = match result {
            Ok(sent) => sent,
            Err(e) => {
                // Only at a record's end can the destination be told why the migration ends. Pages
                // that it has taken, it has counted.
                let went = records.cut_short(before, channel, |channel, end| {
                    control::finish(channel, &parts, end, &e, self.patience)
                });
                self.put += went;
                let (fault, blocks) = (channel.fault(), taken.blocks());
                let error = access::name_fault(e, fault, blocks, Access::Read);
                if went.bytes == put.bytes {
                    // The last page went before the cancel was heeded: all are sent, and not
                    // acknowledged.
                    taken.unpin();
                    let (data, zero) = (put.data_pages, put.zero_pages);
                    self.ledger.sent(taken, count, data, zero, carried(&put));
                }
                return Err(error);
            }
        };
        let all = before + put.bytes;
        let rest = match (sent < all).then(|| records.copy_rest(first, sent)) {
            Some(Err(e)) => {
                // The copy failed. So the pages themselves are sent once more, up to the end of the
                // current record, because the destination can be told something only there. The
                // thread that recalls the pages waits a moment longer.
                self.put += records.cut_short(before, channel, |channel, end| {
                    control::finish_record(channel, &parts, end, self.patience)
                });
                return Err(e);
            }
            rest => rest.transpose()?,
        };
        put.time = begun.elapsed();
        #[cfg(test)]
        let _planted = crate::migrate::planted::point("the ledger");
        taken.unpin();
        self.ledger
            .sent(taken, count, put.data_pages, put.zero_pages, carried(&put));
        self.put += put;
        if rest.is_none() {
            self.encoder.sent(&put, self.channel.held(), put.time);
        }
        if let Some(rest) = rest {
            let limit = params::transfer(io.idle, rest.len() as u64).from_now();
            let parts = [Part::bytes(&rest)];
            let channel = &mut self.channel;
            channel
                .send_rest(&parts, &io.within(limit))
                .inspect_err(|e| {
                    let all = rest.len() as u64;
                    control::finish(channel, &parts, all, e, self.patience);
                })?;
        }
        Ok(put)
    }

    /// Sends a piece of a device's state, and a marker when one is due.
    pub(super) fn send_piece(
        &mut self,
        piece: &PieceBytes,
        pass: u32,
        params: &Params,
        io: &Io<'_>,
    ) -> Result<()> {
        self.ledger.make_room()?;
        let bytes = piece.all().len() as u64;
        let limited = io.within(params::transfer(io.idle, bytes).from_now());
        let sent_before = self.sent();
        self.on_their_way
            .get_or_insert_with(|| (Instant::now(), sent_before));
        let parts = [Part::bytes(piece.all())];
        let sent = control::send_whole(&mut self.channel, &parts, &limited.of("DEVICE"));
        self.named(sent)?;
        self.ledger.sent_piece(bytes);
        if self.ledger.marker_is_due() {
            self.send_marker(pass, false, io)?;
            self.await_acknowledgements(MARKERS_WAITING, params, io)?;
        }
        Ok(())
    }

    /// Sends the marker behind the last page run. Pieces of stopped devices follow.
    pub(super) fn end_pages(&mut self, pass: u32, io: &Io<'_>) -> Result<()> {
        let marker = self.ledger.pages_end(pass);
        self.say(&Record::Marker(marker), io)
    }

    /// Sends the marker behind the last page of a guest that ran here. No deltas follow.
    pub(super) fn begin_postcopy(&mut self, pass: u32, io: &Io<'_>) -> Result<()> {
        self.encoder.end_deltas();
        let marker = self.ledger.postcopy(pass);
        self.say(&Record::Marker(marker), io)
    }

    /// Whether pages were sent since the last marker.
    pub(super) fn has_unmarked(&self) -> bool {
        self.ledger.has_unmarked()
    }

    /// How many markers were sent and are not acknowledged.
    pub(super) fn markers_waiting(&self) -> usize {
        self.ledger.markers_waiting()
    }

    /// Sends a marker, the `last` one or not.
    pub(super) fn send_marker(&mut self, pass: u32, last: bool, io: &Io<'_>) -> Result<()> {
        let marker = self.ledger.next_marker(pass, last);
        self.say(&Record::Marker(marker), io)
    }

    /// Sends one control record.
    pub(super) fn say(&mut self, record: &Record, io: &Io<'_>) -> Result<()> {
        let said = control::send(&mut self.channel, record, io);
        self.named(said)
    }

    /// Sends control records that are encoded already, a few at once. `records` may be empty.
    pub(super) fn say_encoded(&mut self, records: &[u8], io: &Io<'_>) -> Result<()> {
        let said = control::send_bytes(&mut self.channel, records, io);
        self.named(said)
    }

    /// Sends the VMM's early configuration.
    pub(super) fn send_early(&mut self, blobs: &Blobs, io: &Io<'_>) -> Result<()> {
        let sent = blobs.send_early(&mut self.channel, io);
        self.named(sent)
    }

    /// Sends the VMM's state, and how long a hand-over counts.
    pub(super) fn send_state(
        &mut self,
        blobs: &Blobs,
        handover: Duration,
        io: &Io<'_>,
    ) -> Result<()> {
        let sent = blobs.send_state(&mut self.channel, handover, io);
        self.named(sent)
    }

    /// Waits for the next record of the destination. An ABORT becomes the error that it states.
    pub(super) fn hear(&mut self, io: &Io<'_>) -> Result<Record> {
        let heard = self.replies.wait(&mut self.channel, io);
        self.named(heard)
    }

    /// The destination's next record, when all of it has arrived. Does not wait.
    pub(super) fn hear_at_once(&mut self) -> Result<Option<Record>> {
        let heard = self.replies.poll(&mut self.channel);
        self.named(heard)
    }

    /// The code of the destination's ABORT, when one has come.
    pub(super) fn abort_code(&self) -> Option<i32> {
        self.replies.abort_code()
    }

    /// Sends an encoded record, and a descriptor with its first byte.
    pub(super) fn say_with_descriptor(
        &mut self,
        record: &[u8],
        descriptor: BorrowedFd<'_>,
        io: &Io<'_>,
    ) -> Result<()> {
        let sent = self.channel.send_with_descriptor(record, descriptor, io);
        self.named(sent)
    }

    /// The connection, to be waited for together with others.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// As [`Lane::hear`], but acknowledgements may come before the record, and are taken into
    /// account. `None` when `removals` is raised.
    pub(super) fn hear_after_acknowledgements(
        &mut self,
        removals: &Recall,
        io: &Io<'_>,
    ) -> Result<Option<Record>> {
        loop {
            let heard = self.replies.wait_unless(&mut self.channel, removals, io);
            match self.named(heard)? {
                Some(Record::Ack(ack)) => self.acknowledged(ack.number)?,
                Some(Record::DeviceLoaded(loaded)) => self.device_loaded(loaded)?,
                other => return Ok(other),
            }
        }
    }

    /// Reads what the destination has said so far: acknowledgements, or an ABORT.
    pub(super) fn listen(&mut self) -> Result<()> {
        // The number of reads is bounded: a destination that keeps talking must not hold up the
        // walk.
        for _ in 0..LISTEN_RECORDS {
            let heard = self.replies.poll(&mut self.channel);
            match self.named(heard)? {
                None => break,
                Some(Record::Ack(ack)) => self.acknowledged(ack.number)?,
                Some(Record::DeviceLoaded(loaded)) => self.device_loaded(loaded)?,
                Some(Record::Request(request)) => self.requested(request)?,
                Some(other) => return Err(self.unexpected(other.record_type(), "ACK")),
            }
        }
        Ok(())
    }

    /// Waits until at most `most` markers are not acknowledged. When a destination takes pages and
    /// acknowledges none, the account would grow without bound. Each acknowledgement has a time
    /// limit of its own, because a destination that says KEEPALIVE meanwhile would never count as
    /// idle.
    pub(super) fn await_acknowledgements(
        &mut self,
        most: usize,
        params: &Params,
        io: &Io<'_>,
    ) -> Result<()> {
        while self.ledger.markers_waiting() > most {
            let next = params.acknowledgement(self.channel.held());
            let io = Io { idle: next, ..*io };
            let io = io.within(next.from_now()).of("an acknowledgement");
            match self.hear(&io)? {
                Record::Ack(ack) => self.acknowledged(ack.number)?,
                Record::DeviceLoaded(loaded) => self.device_loaded(loaded)?,
                Record::Request(request) => self.requested(request)?,
                other => return Err(self.unexpected(other.record_type(), "ACK")),
            }
        }
        match most {
            // The destination has all pages, so the kernel has read them, or will in a moment.
            0 => self.land(io),
            _ => Ok(()),
        }
    }

    /// The destination has loaded what a device needs there before the pause.
    fn device_loaded(&mut self, loaded: DeviceLoaded) -> Result<()> {
        match &self.loaded {
            Some(heard) => self.named(heard.note(loaded)),
            None => Err(self.unexpected(RecordType::DeviceLoaded, "ACK")),
        }
    }

    /// Records that the destination has acknowledged marker `number`.
    pub(super) fn acknowledged(&mut self, number: u64) -> Result<()> {
        let acknowledged = self.ledger.acknowledged(number);
        probes::lane_acknowledged(self.name.text(), number, self.unacknowledged());
        if self.ledger.unacknowledged() == 0 {
            let sent = self.sent();
            if let Some((begun, before)) = self.on_their_way.take() {
                self.span = Some(Span {
                    begun,
                    ended: Instant::now(),
                    bytes: sent - before,
                });
            }
        }
        self.named(acknowledged)
    }

    /// When sending failed because the peer went away, the peer's own reason replaces `error`.
    pub(super) fn explain(&mut self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::PeerGone | Kind::Io) {
            return error;
        }
        self.reason().unwrap_or(error)
    }

    /// Puts back all pages that were not acknowledged.
    pub(super) fn give_up(&mut self) {
        self.ledger.give_up();
    }

    /// The destination's reason for the end, when it has arrived.
    pub(super) fn reason(&mut self) -> Option<Error> {
        let reason = self.replies.reason(&mut self.channel)?;
        self.named::<()>(Err(reason)).err()
    }

    /// As [`Lane::reason`], after a wait of at most `limit`.
    pub(super) fn await_reason(&mut self, limit: Duration) -> Option<Error> {
        let io = Io::patient(limit).within(Deadline::after(limit));
        loop {
            match self.replies.wait(&mut self.channel, &io) {
                Ok(_) => {}
                Err(error) => return self.peer_ended().then_some(error),
            }
        }
    }

    /// Tells the destination why the migration is over. Returns whether that could be told.
    pub(super) fn tell(&mut self, error: &Error) -> bool {
        control::abort(&mut self.channel, &mut Outbox::default(), error)
    }

    /// After [`Lane::tell`]: gives the destination time to read the reason, and ends the
    /// connection.
    pub(super) fn drain(&mut self) {
        self.replies.drain(&mut self.channel, TELL);
        self.close();
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        let _ = self.channel.shutdown();
    }
}

/// What the link carries of a batch.
fn carried(put: &Put) -> Carried {
    Carried {
        bytes: put.carried(),
        read: put.read_pages(),
        whole: put.data_pages - put.delta_pages,
    }
}

#[cfg(test)]
mod tests;
