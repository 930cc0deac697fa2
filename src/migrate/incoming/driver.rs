//! The destination's driver: carries out what [`crate::migrate::switchover::destination`] says, on a
//! thread of its own. It decides nothing, and believes nothing that the peer says.

use super::gather::gather;
use super::sink::PageSink;
use crate::channel::socket::{Channel, Io, PartMut};
use crate::channel::Listener;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::returned::Forgotten;
use crate::memory::{Memory, PinRecall};
use crate::migrate::callbacks::Callbacks;
use crate::migrate::handle::Handle;
use crate::migrate::layout::layout_difference;
use crate::migrate::outbox::Outbox;
use crate::migrate::params::Params;
use crate::migrate::report::{micros, Meter, Stats};
use crate::migrate::session;
use crate::migrate::switchover::destination::{Action, Event, State};
use crate::migrate::switchover::window::Window;
use crate::migrate::work::{self, Work};
use crate::runtime::{wait_ready, Deadline, Interest, Limit, Timeout};
use crate::sys::clock;
use crate::sys::net::Piece as _;
use crate::units::Pages;
use crate::vmm::{EventKind, StateBlob, Vmm};
use crate::wire::{self, Header, Hello, Marker, Record, RecordType, Token, HEADER_LEN};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a migration comes from.
#[derive(Debug)]
pub enum Source {
    /// The first who says HELLO at this listener.
    Listener(Listener),
    /// A connected stream socket that the VMM made; brant's from here on.
    Connected(OwnedFd),
}

/// Between two looks for room to acknowledge and for something to read.
const LOOK: Duration = Duration::from_millis(10);
/// How often the figures are renewed.
const RENEW: Duration = Duration::from_millis(50);
/// After telling the source that it is over, what it still sends is read for so long: closing
/// with unread bytes resets the connection, and the reason would be lost with it.
const LINGER: Duration = Duration::from_secs(1);
/// The same when somebody waits for a cancel.
const LINGER_CANCELLED: Duration = Duration::from_millis(10);

/// What the VMM's object and the thread share.
pub(super) struct Shared {
    pub(super) memory: Arc<Memory>,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) params: Params,
    pub(super) handle: Handle<State>,
}

/// What the thread owns.
pub(super) struct Driver {
    shared: Arc<Shared>,
    vmm: Callbacks,
    source: Option<Source>,
    channel: Option<Channel>,
    /// What a listener's connection began with.
    hello: Option<Hello>,
    /// The beginning of the next record's header, read along with the last one's payload.
    ahead: [u8; HEADER_LEN],
    ahead_len: usize,
    sink: PageSink,
    /// Raised by whoever removes a block.
    recall: Arc<PinRecall>,
    /// To be freed when the guest runs.
    forgotten: Forgotten,
    outbox: Outbox,
    token: Token,
    last_marker: u64,
    /// For how long a hand-over counts, as the source says.
    handover_limit: Duration,
    /// In which it counts, from just before READY.
    window: Option<Window>,
    /// Whether DISCARD records were agreed on.
    discards: bool,
    begun: Instant,
    /// When the guest has to be handed over, from the moment that there is a connection.
    limit: Limit,
    meter: Meter,
    stats: Stats,
    renewed: Option<Instant>,
    error: Option<Error>,
    /// See [`Work::done`].
    done: Option<Event>,
}

impl work::Shared for Shared {
    type Machine = State;
    fn handle(&self) -> &Handle<State> {
        &self.handle
    }
}

impl Work for Driver {
    type Shared = Shared;
    type Machine = State;

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn vmm(&self) -> &Callbacks {
        &self.vmm
    }

    fn error(&mut self) -> &mut Option<Error> {
        &mut self.error
    }

    fn done(&mut self) -> Option<Event> {
        self.done.take()
    }

    fn success(&self) -> String {
        "the guest runs here".to_owned()
    }

    fn enter(&mut self, state: State) {
        self.stats.phase = state as u32;
        self.renew(true);
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        let shared = Arc::clone(&self.shared);
        Ok(match action {
            Action::Accept => {
                self.channel = Some(self.accept()?);
                self.begun = Instant::now();
                self.limit = shared.params.incoming(self.begun);
                Some(Event::Accepted)
            }
            Action::Negotiate => {
                self.negotiate()?;
                Some(Event::Agreed)
            }
            Action::Receive => {
                self.receive()?;
                Some(Event::AllReceived)
            }
            Action::CallLoad => {
                self.load()?;
                Some(Event::Loaded)
            }
            Action::SendReady => {
                let ready = Record::Ready(wire::Ready {
                    load_micros: self.stats.load_us,
                });
                // Before it is sent, so that the source's begins later and ends later.
                self.window = Some(Window::new(clock::boottime(), self.handover_limit));
                self.send(&ready)?;
                Some(Event::ReadySent)
            }
            Action::AwaitHandover => {
                self.await_handover()?;
                Some(Event::Handover)
            }
            Action::TakeGate => {
                if !self.handover_counts() {
                    return Ok(Some(self.late()));
                }
                let won = shared.handle.commit();
                if !won {
                    self.error
                        .get_or_insert_with(|| Error::new(Kind::Cancelled, "cancelled"));
                }
                Some(if won { Event::GateWon } else { Event::GateLost })
            }
            Action::CallRun => {
                let begun = Instant::now();
                // The VMM was told of the state, which may have taken it a while.
                if !self.handover_counts() {
                    return Ok(Some(self.late()));
                }
                self.forgotten = shared.memory.settle_returned();
                self.vmm.call_that_makes_threads("run", |vmm| vmm.run())?;
                self.done = Some(Event::Started);
                self.stats.run_us = micros(begun.elapsed());
                self.done
            }
            Action::SendRunning => {
                let running = Record::Running(wire::Running {
                    run_micros: self.stats.run_us,
                });
                if let Some(channel) = &mut self.channel {
                    let io = shared.params.io();
                    let io = Io::patient(io).within(io.from_now()).of("RUNNING");
                    // The guest runs here whether or not the source hears of it.
                    if let Err(e) = self.outbox.send(channel, &running, &io) {
                        self.vmm.event(
                            EventKind::Warning,
                            format!("the guest runs, and the source could not be told: {e}"),
                        );
                    }
                }
                // Not before: freeing these takes milliseconds where the guest is huge.
                self.sink.free();
                self.forgotten = Forgotten::default();
                None
            }
            Action::TellPeer => {
                self.tell_peer();
                None
            }
            Action::Report => {
                if shared.handle.state() == State::Running {
                    self.stats.progress = 10_000;
                    self.stats.remaining_bytes = 0;
                } else {
                    shared.memory.abandon_returned();
                }
                self.renew(true);
                None
            }
        })
    }
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, vmm: Callbacks, source: Source) -> Result<Self> {
        let memory = Arc::clone(&shared.memory);
        let recall = PinRecall::of(&memory)?;
        Ok(Driver {
            shared,
            vmm,
            source: Some(source),
            channel: None,
            hello: None,
            ahead: [0; HEADER_LEN],
            ahead_len: 0,
            sink: PageSink::new(memory),
            recall,
            forgotten: Forgotten::default(),
            outbox: Outbox::default(),
            token: [0; 16],
            last_marker: 0,
            handover_limit: Duration::ZERO,
            window: None,
            discards: false,
            begun: Instant::now(),
            limit: Limit::never(),
            meter: Meter::default(),
            stats: Stats {
                phase: State::Idle as u32,
                ..Stats::default()
            },
            renewed: None,
            error: None,
            done: None,
        })
    }

    fn renew(&mut self, now: bool) {
        let at = Instant::now();
        if !now && self.renewed.is_some_and(|last| at - last < RENEW) {
            return;
        }
        self.renewed = Some(at);
        let elapsed = at - self.begun;
        let stats = &mut self.stats;
        // It began anew when the connection came.
        stats.elapsed_us = stats.elapsed_us.max(micros(elapsed));
        if let Some(channel) = &self.channel {
            stats.wire_bytes = channel.counters().received.0;
        }
        stats.throughput = self.meter.rate(elapsed, stats.wire_bytes);
        stats.data_pages = self.sink.data_pages;
        stats.zero_pages = self.sink.zero_pages;
        stats.skipped_pages = self.sink.skipped_pages;
        stats.total_bytes = self.shared.memory.with_map(|map| map.total().0);
        let seen = (stats.data_pages + stats.zero_pages) * crate::units::PAGE_SIZE;
        stats.remaining_bytes = stats.total_bytes.saturating_sub(seen);
        stats.advance();
        self.shared.handle.publish(stats);
    }

    fn tell_peer(&mut self) {
        let shared = Arc::clone(&self.shared);
        let (Some(channel), Some(error)) = (&mut self.channel, &self.error) else {
            return;
        };
        if error.kind() == Kind::PeerGone {
            return;
        }
        session::abort(channel, &mut self.outbox, error);
        // Somebody who cancels waits for this.
        if error.kind() != Kind::Cancelled {
            linger(channel, &Io::until(&shared.handle.cancel, LINGER));
        }
        if shared.handle.cancel.is_cancelled() {
            linger(channel, &Io::patient(LINGER_CANCELLED));
        }
        let _ = channel.shutdown();
    }

    /// Acknowledges what can be, without waiting.
    fn flush(&mut self) -> Result<()> {
        match &mut self.channel {
            Some(channel) => self.outbox.flush(channel),
            None => Ok(()),
        }
    }

    /// Says something that the source is waiting for.
    fn send(&mut self, record: &Record) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let io = shared.params.io();
        let io = Io::until(&shared.handle.cancel, io)
            .within(io.from_now())
            .within(self.limit)
            .of(record.record_type().name());
        let Driver {
            channel, outbox, ..
        } = self;
        let Some(channel) = channel else {
            return Err(Error::new(Kind::Internal, "no connection"));
        };
        let sent = outbox.send(channel, record, &io);
        sent.map_err(|e| self.explain(e))
    }

    /// If sending failed because the source went away, its own word for why is better, and came
    /// before that.
    fn explain(&mut self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::PeerGone | Kind::Io) {
            return error;
        }
        // It comes last, and a source that goes on talking has none to give.
        for _ in 0..64 {
            match self.next(Deadline::after(LOOK).into(), "ABORT") {
                Ok(Incomer::Control(_)) => {}
                Err(e) if !matches!(e.kind(), Kind::PeerGone | Kind::Io | Kind::Timeout) => {
                    return e;
                }
                _ => break,
            }
        }
        error
    }

    /// Waits for the source. Of a connection that the VMM made, HELLO is read when agreeing.
    fn accept(&mut self) -> Result<Channel> {
        let shared = Arc::clone(&self.shared);
        match self.source.take() {
            Some(Source::Listener(listener)) => {
                let vmm = self.vmm.clone();
                let mut warn = |message| vmm.event(EventKind::Warning, message);
                let params = &shared.params;
                let arrival = gather(&listener, params, &shared.handle.cancel, &mut warn)?;
                self.hello = Some(arrival.hello);
                Ok(arrival.channel)
            }
            Some(Source::Connected(fd)) => Channel::from_fd(fd),
            None => Err(Error::new(Kind::Internal, "accepted twice")),
        }
    }

    fn channel(&mut self) -> Result<&mut Channel> {
        self.channel
            .as_mut()
            .ok_or_else(|| Error::new(Kind::Internal, "no connection in this state"))
    }

    /// The next header, of `what`. The wait for its first byte is a wait for the source to have
    /// something to say; once it has begun, it has to come.
    fn header(&mut self, limit: Limit, what: &'static str) -> Result<Header> {
        let shared = Arc::clone(&self.shared);
        // Between two records the source's VMM may be pausing or saving, for as long as the
        // switchover may take.
        let patience = shared.params.io().longer(shared.params.switchover());
        let io = Io::until(&shared.handle.cancel, patience)
            .within(limit)
            .within(patience.from_now())
            .of(what);
        let Driver {
            channel,
            ahead,
            ahead_len,
            outbox,
            ..
        } = self;
        let Some(channel) = channel else {
            return Err(Error::new(Kind::Internal, "no connection"));
        };
        // The source may be waiting for an acknowledgement that found no room so far.
        while !outbox.is_empty() && *ahead_len < HEADER_LEN && !io.limit.expired() {
            outbox.flush(channel)?;
            let got = channel.try_recv(&[PartMut::bytes(&mut ahead[*ahead_len..])])?;
            *ahead_len += got;
            if got == 0 && !outbox.is_empty() {
                let soon = io.limit.at().earlier(Deadline::after(LOOK));
                wait_ready(channel.fd(), Interest::Write, io.cancel, soon)?;
                shared.handle.cancel.check("the migration")?;
            }
        }
        if *ahead_len < HEADER_LEN {
            channel.recv_exact(&[PartMut::bytes(&mut ahead[*ahead_len..])], &io)?;
        }
        *ahead_len = 0;
        Header::decode(ahead)
    }

    /// How long the payload of a record may take: the slowest link that is served, and some
    /// patience. So a peer that trickles is ended.
    fn record_io<'a>(shared: &'a Shared, header: &Header, limit: Limit) -> Io<'a> {
        let kind = RecordType::from_number(header.kind);
        Io::until(&shared.handle.cancel, shared.params.io())
            .within(limit)
            .within(shared.params.transfer(u64::from(header.payload)).from_now())
            .of(kind.map_or("a record of a later version", RecordType::name))
    }

    /// The next record that is no run of pages; what may be skipped is. A blob comes back as
    /// its header, with its payload unread. `what` it is to be, for messages.
    fn next(&mut self, limit: Limit, what: &'static str) -> Result<Incomer> {
        let shared = Arc::clone(&self.shared);
        // One wait, whatever is skipped meanwhile: a peer that says KEEPALIVE for ever says nothing.
        let patience = shared.params.io().longer(shared.params.switchover());
        let limit = limit.earlier(self.limit);
        let header_limit = limit.earlier(patience.from_now());
        loop {
            let header = self.header(header_limit, what)?;
            let kind = header.classify()?;
            match kind {
                Some(kind) if kind.is_page_run() => return Ok(Incomer::Pages(kind, header)),
                Some(kind) if kind.is_blob() => return Ok(Incomer::Blob(kind, header)),
                _ => {}
            }
            let io = Self::record_io(&shared, &header, limit);
            let payload = session::read_payload(self.channel()?, &header, &io)?;
            match kind {
                None | Some(RecordType::Keepalive) => {}
                Some(_) => {
                    return match Record::decode(&header, &payload)? {
                        Record::Abort(abort) => Err(session::refused("the source", &abort)),
                        record => Ok(Incomer::Control(record)),
                    };
                }
            }
        }
    }

    /// Reads blobs until their end, within the limit for both their data and their number.
    fn blobs(&mut self, kind: RecordType, limit: Limit) -> Result<(Vec<session::StoredBlob>, u64)> {
        let shared = Arc::clone(&self.shared);
        let most = shared.params.max_state;
        let mut list: Vec<session::StoredBlob> = Vec::new();
        let mut bytes = 0u64;
        let what = match kind {
            RecordType::Early => "EARLY or EARLY_END",
            _ => "STATE or STATE_END",
        };
        loop {
            match self.next(limit, what)? {
                Incomer::Blob(found, header) if found == kind => {
                    if u64::from(header.payload) > most.saturating_sub(bytes) {
                        return Err(Error::new(
                            Kind::Protocol,
                            format!(
                                "the source sends more {} than the {most} bytes allowed here",
                                kind.name()
                            ),
                        ));
                    }
                    if list.len() >= wire::BLOBS_MAX as usize {
                        return Err(Error::new(
                            Kind::Protocol,
                            format!("more than {} blobs", wire::BLOBS_MAX),
                        ));
                    }
                    let io = Self::record_io(&shared, &header, limit.earlier(self.limit));
                    let mut data = session::read_payload(self.channel()?, &header, &io)?;
                    let (blob, prefix) = wire::Blob::decode(&header, &data)?;
                    data.drain(..prefix);
                    bytes += u64::from(header.payload);
                    fallible::push(&mut list, session::StoredBlob { blob, data }, kind.name())?;
                }
                Incomer::Control(Record::EarlyEnd(end)) if kind == RecordType::Early => {
                    return check_end(&list, end).map(|sum| (list, sum));
                }
                Incomer::Control(Record::StateEnd(end)) if kind == RecordType::State => {
                    self.handover_limit = Duration::from_millis(end.handover_millis.into());
                    return check_end(&list, end.blobs).map(|sum| (list, sum));
                }
                other => return Err(session::unexpected(other.kind(), kind.name())),
            }
        }
    }

    fn negotiate(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        // One limit for all that the source has to say. What this side's VMM takes to build itself
        // does not count.
        let mut limit = shared.params.connect().from_now();
        let hello = match self.hello.take() {
            Some(hello) => hello,
            None => match self.next(limit, "HELLO")? {
                Incomer::Control(Record::Hello(hello)) => hello,
                other => return Err(session::unexpected(other.kind(), "HELLO")),
            },
        };
        let (version, features) = wire::negotiate(&hello, &shared.params.ours())?;
        self.discards = features & wire::FEATURE_DISCARDS != 0;
        if (hello.channel, hello.channels) != (0, 1) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the source wants {} channels; this version takes one",
                    hello.channels
                ),
            ));
        }
        self.token = hello.token;
        self.send(&Record::HelloReply(wire::HelloReply {
            version,
            features,
            software: session::software(),
        }))?;
        let (early, _) = self.blobs(RecordType::Early, limit)?;
        let building = Instant::now();
        for stored in &early {
            self.vmm
                .call_that_makes_threads("early_load", |vmm| vmm.early_load(&stored.as_blob()))?;
        }
        self.send(&Record::EarlyOk)?;
        limit = limit.extended(building.elapsed());
        let mut blocks: Vec<wire::Block> = Vec::new();
        loop {
            match self.next(limit, "BLOCK or LAYOUT_END")? {
                Incomer::Control(Record::Block(block)) => {
                    if blocks.len() >= crate::memory::block::BLOCKS_MAX {
                        return Err(Error::new(
                            Kind::Protocol,
                            format!("more than {} blocks", crate::memory::block::BLOCKS_MAX),
                        ));
                    }
                    fallible::push(&mut blocks, block, "the source's blocks")?;
                }
                Incomer::Control(Record::LayoutEnd(end)) => {
                    let bytes = blocks
                        .iter()
                        .fold(0u64, |sum, b| sum.saturating_add(b.length));
                    if (end.blocks as usize, end.bytes) != (blocks.len(), bytes) {
                        return Err(Error::new(
                            Kind::Protocol,
                            format!(
                                "the layout ends with {} blocks of {} bytes, and {} of {bytes} came",
                                end.blocks,
                                end.bytes,
                                blocks.len()
                            ),
                        ));
                    }
                    break;
                }
                other => return Err(session::unexpected(other.kind(), "BLOCK or LAYOUT_END")),
            }
        }
        let mut names = HashSet::new();
        for block in &blocks {
            if !fallible::add(&mut names, block.name.as_str(), "the source's blocks")? {
                return Err(Error::new(
                    Kind::Protocol,
                    format!("block `{}` is announced twice", block.name),
                ));
            }
        }
        let map = shared.memory.map();
        if let Some(difference) = layout_difference(&blocks, &names, &map) {
            return Err(Error::new(Kind::Layout, difference));
        }
        for theirs in &blocks {
            if let Some(ours) = map.block_named(&theirs.name) {
                self.sink.add(theirs.id, ours)?;
            }
        }
        self.send(&Record::LayoutOk)
    }

    /// Takes memory until the end marker.
    fn receive(&mut self) -> Result<()> {
        loop {
            match self.next(Limit::never(), "pages or a marker")? {
                Incomer::Pages(RecordType::Zeros, header) => self.sink.zeros(&header)?,
                Incomer::Pages(RecordType::Discard, header) => self.discard(&header)?,
                Incomer::Pages(_, header) => self.pages(&header)?,
                Incomer::Control(Record::Marker(marker)) => {
                    self.check_marker(&marker)?;
                    self.sink.look_again();
                    // Not what the source says if it goes back.
                    self.stats.pass = self.stats.pass.max(marker.pass);
                    self.outbox.acknowledge(marker.number);
                    self.flush()?;
                    if marker.is_final() {
                        // No pin is held while the VMM's operations run: they may change the map.
                        return self.sink.finish();
                    }
                }
                Incomer::Control(Record::BlockAdded(theirs)) => self.sink.added(&theirs)?,
                Incomer::Control(Record::BlockRemoved { id }) => self.sink.remove(id)?,
                other => {
                    return Err(session::unexpected(
                        other.kind(),
                        "pages, a marker or a change of blocks",
                    ))
                }
            }
            self.flush()?;
            self.renew(false);
        }
    }

    /// A run of pages that the guest has given back.
    fn discard(&mut self, header: &Header) -> Result<()> {
        if !self.discards {
            return Err(Error::new(
                Kind::Protocol,
                "DISCARD: expected only where the feature \"discards\" was agreed on, found without",
            ));
        }
        self.sink.discard(header)
    }

    /// A run of pages, straight into guest memory, and with it what there is already of the
    /// next header: one system call instead of two.
    fn pages(&mut self, header: &Header) -> Result<()> {
        let placed = self.place(header);
        self.sink.arrived(header);
        placed
    }

    fn place(&mut self, header: &Header) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let io = Self::record_io(&shared, header, self.limit);
        let Driver {
            channel,
            ahead,
            ahead_len,
            sink,
            recall,
            ..
        } = self;
        let Some(channel) = channel else {
            return Err(Error::new(Kind::Internal, "no connection"));
        };
        recall.lower();
        let mut pin = sink.data(header)?;
        let mut got = 0usize;
        let want = header.payload as usize;
        while got < want {
            let Some(block) = &pin else {
                return session::drop_bytes(channel, want - got, &io);
            };
            let room = block.part_mut(Pages(header.first_page), Pages(u64::from(header.count)))?;
            let parts = [room.cut(got, usize::MAX), PartMut::bytes(&mut ahead[..])];
            let some = channel.recv_some_unless(&parts, recall, &io).map_err(|e| {
                let blocks = std::iter::once(&**block);
                access::name_fault(e, channel.fault(), blocks, Access::Write)
            })?;
            if some == 0 {
                // Somebody removes a block, perhaps this one.
                recall.lower();
                drop(pin);
                pin = sink.pin(header)?;
            }
            got += some;
        }
        *ahead_len = got - want;
        Ok(())
    }

    /// The source's count of what it sent against ours of what came.
    fn check_marker(&mut self, marker: &Marker) -> Result<()> {
        let ours = (
            self.sink.records,
            self.sink.data_pages,
            self.sink.zero_pages,
        );
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
        Ok(())
    }

    fn load(&mut self) -> Result<()> {
        let (list, bytes) = self.blobs(RecordType::State, Limit::never())?;
        self.stats.state_bytes = bytes;
        let begun = Instant::now();
        for stored in &list {
            self.vmm
                .call_that_makes_threads("load", |vmm| vmm.load(&stored.as_blob()))?;
            self.shared.handle.cancel.check("loading")?;
        }
        self.vmm
            .call_that_makes_threads("loaded", |vmm| vmm.loaded())?;
        self.stats.load_us = micros(begun.elapsed());
        Ok(())
    }

    fn await_handover(&mut self) -> Result<()> {
        let left = self.window.map(|window| window.left(clock::boottime()));
        let window = Timeout::new("the source's hand-over timeout", self.handover_limit);
        let window = window.with_left(left.unwrap_or_default());
        let limit = self.shared.params.switchover().from_now().earlier(window);
        let came = self.next(limit, "HANDOVER");
        match came? {
            Incomer::Control(Record::Handover(handover)) if handover.token == self.token => Ok(()),
            Incomer::Control(Record::Handover(_)) => Err(Error::new(
                Kind::Protocol,
                "the hand-over has another token than this session",
            )),
            other => Err(session::unexpected(other.kind(), "HANDOVER")),
        }
    }

    /// Whether a hand-over that is acted on now is in time.
    fn handover_counts(&self) -> bool {
        self.window.is_some_and(|w| w.is_open(clock::boottime()))
    }

    /// It came and is not acted on.
    fn late(&mut self) -> Event {
        let error = Error::new(
            Kind::Timeout,
            format!(
                "the hand-over came later than the source's hand-over timeout of {:?} after \
                 ready: the source may have the guest back, so it does not run here",
                self.handover_limit
            ),
        );
        self.error.get_or_insert(error);
        // If a cancel is asked for now, it comes before any `run`.
        self.shared.handle.withdraw();
        Event::Late
    }
}

/// Reads on until the source has seen the reason and closes, or `io`'s time is up.
fn linger(channel: &mut Channel, io: &Io<'_>) {
    let io = io.within(io.idle.from_now());
    let mut buffer = [0u8; 16 << 10];
    while channel
        .recv_some(&[PartMut::bytes(&mut buffer)], &io)
        .is_ok_and(|n| n > 0)
    {}
}

/// A record that came.
enum Incomer {
    Control(Record),
    Pages(RecordType, Header),
    Blob(RecordType, Header),
}

impl Incomer {
    fn kind(&self) -> RecordType {
        match self {
            Incomer::Control(record) => record.record_type(),
            Incomer::Pages(kind, _) | Incomer::Blob(kind, _) => *kind,
        }
    }
}

impl session::StoredBlob {
    fn as_blob(&self) -> StateBlob<'_> {
        StateBlob {
            name: &self.blob.name,
            instance: self.blob.instance,
            version: self.blob.version,
            data: &self.data,
        }
    }
}

fn check_end(list: &[session::StoredBlob], end: wire::BlobEnd) -> Result<u64> {
    let bytes: u64 = list.iter().map(|b| b.data.len() as u64).sum();
    if (end.count as usize, end.bytes) != (list.len(), bytes) {
        return Err(Error::new(
            Kind::Protocol,
            format!(
                "the end says {} blobs of {} bytes, and {} of {bytes} came",
                end.count,
                end.bytes,
                list.len()
            ),
        ));
    }
    Ok(bytes)
}
