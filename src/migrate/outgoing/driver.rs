//! The source's driver: carries out what [`crate::migrate::switchover::source`] says, on a thread of
//! its own, and turns what came of it into the next event. It decides nothing.

mod copy;
mod negotiate;

use self::copy::PassSoFar;
use super::replies::Replies;
use super::sender::{Batch, Sender};
use crate::channel::Endpoint;
use crate::channel::{Channel, Io, Part};
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::taken::Taken;
use crate::dirty::tracker::{ConsumerStats, Tracker};
use crate::dirty::When;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::{BlockId, Map, PinRecall};
use crate::migrate::blockers::Blockers;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::handle::Handle;
use crate::migrate::layout::describe;
use crate::migrate::outbox::Outbox;
use crate::migrate::params::Params;
use crate::migrate::report::{Meter, Stats};
use crate::migrate::session::{self, Blobs, TELL};
use crate::migrate::steering::bandwidth::{Bandwidth, DirtyRate};
use crate::migrate::steering::passes::Passes;
use crate::migrate::steering::{Decider, Moment, PassFacts};
use crate::migrate::switchover::source::{Action, Event, State};
use crate::migrate::switchover::window::{Window, MARGIN};
use crate::migrate::work::{self, Work};
use crate::runtime::{Limit, Timeout};
use crate::sys::clock;
use crate::units::Pages;
use crate::vmm::{EventKind, Vmm};
use crate::wire::{self, Record, Token};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// Where a migration goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Target {
    /// A connection that brant makes.
    Endpoint(Endpoint),
    /// A connected stream socket that the VMM made; brant's from here on.
    Connected(OwnedFd),
}

/// The most runs in one batch.
const BATCH_RUNS: usize = 256;
/// The most pages in one batch: 2 MiB, a millisecond or less on a link worth its name.
const BATCH_PAGES: u64 = 512;
/// The most markers that may wait for their acknowledgement: 16 GiB of pages, or a million runs.
const MARKERS_WAITING: usize = 256;
/// The most records that are read from the destination between two batches.
const LISTEN_RECORDS: usize = 64;
/// What a table of them is called when there is no memory for it.
const BLOCKS: &str = "the guest's blocks";
/// How often the figures are renewed and the VMM is told to look.
const RENEW: Duration = Duration::from_millis(50);

/// A [`Target`] that may be one.
enum Way {
    Endpoint(Endpoint),
    Connected(Channel),
}

/// What the VMM's object and the thread share.
pub(super) struct Shared {
    pub(super) tracker: Arc<Tracker>,
    pub(super) blockers: Blockers,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) params: Params,
    pub(super) handle: Handle<State>,
    /// When `pause` was called.
    pub(super) paused_at: OnceLock<Instant>,
    /// A consumer of the caller's that the migration is to use instead of one of its own. Nobody
    /// else takes from it until the migration is over.
    pub(super) lent: Mutex<Option<Arc<Consumer>>>,
}

impl Shared {
    /// How long the guest has stood still, if it was paused.
    pub(super) fn stood(&self) -> Option<Duration> {
        self.paused_at.get().map(Instant::elapsed)
    }

    pub(super) fn lent(&self) -> MutexGuard<'_, Option<Arc<Consumer>>> {
        self.lent.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What the thread owns.
pub(super) struct Driver {
    shared: Arc<Shared>,
    vmm: Callbacks,
    consumer: Arc<Consumer>,
    /// Whether that is the caller's.
    lent: bool,
    way: Option<Way>,
    decider: Box<dyn Decider>,
    channel: Option<Channel>,
    replies: Replies,
    sender: Sender,
    begun: Instant,
    /// Blocks that the destination knows.
    announced: HashSet<BlockId>,
    /// The map whose removals it has been told of.
    announced_at: Option<u64>,
    token: Token,
    we_started_tracking: bool,
    cursor: Cursor,
    /// Raised by whoever removes a block.
    recall: Arc<PinRecall>,
    /// How many poisoned pages there were when the VMM was last told of them.
    told_poisoned: u64,
    bandwidth: Bandwidth,
    meter: Meter,
    dirtied: DirtyRate,
    passes: Passes,
    this_pass: PassSoFar,
    last_pass: Option<PassFacts>,
    /// What the last sync warned of.
    warned: Vec<String>,
    last_sync: Option<Instant>,
    /// The consumer's totals as of that.
    tracked: ConsumerStats,
    sync_time: Duration,
    blobs: Blobs,
    switchover: Limit,
    /// In which the hand-over counts, from the receipt of READY.
    window: Option<Window>,
    stats: Stats,
    renewed: Option<Instant>,
    /// It is over, and nothing is asked of the consumer any more: how far it came stays as it was.
    ended: bool,
    /// The first thing that went wrong.
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
        let stood = self.stats.downtime.unwrap_or_default();
        format!("downtime {:.1} ms", stood.as_secs_f64() * 1e3)
    }

    fn enter(&mut self, state: State) {
        self.stats.phase = state as u32;
        if let State::Unanswered = state {
            self.stood_until_now();
        }
        self.renew(true);
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        Ok(match action {
            Action::Connect => {
                self.connect()?;
                Some(Event::Connected)
            }
            Action::Negotiate => {
                self.negotiate()?;
                Some(Event::Agreed)
            }
            Action::Copy => {
                self.copy()?;
                Some(Event::SwitchOver)
            }
            Action::CallPause => {
                let begun = Instant::now();
                let _ = self.shared.paused_at.set(begun);
                self.switchover = self.shared.params.switchover().from_now();
                self.vmm.call("pause", |vmm| vmm.pause())?;
                self.stats.pause = Some(begun.elapsed());
                self.check_gate()?;
                Some(Event::Paused)
            }
            Action::CallSave => {
                let begun = Instant::now();
                let mut blobs = Blobs::default();
                self.vmm.call("save", |vmm| vmm.save(&mut blobs))?;
                self.stats.save = Some(begun.elapsed());
                self.stats.state_bytes = blobs.bytes();
                self.blobs = blobs;
                self.check_gate()?;
                Some(Event::Saved)
            }
            Action::SyncLast => {
                let begun = Instant::now();
                self.consumer.sync(When::Stopped)?;
                // What the syncs of others find from here on, the guest has not written.
                self.consumer.freeze();
                self.stats.last_sync = Some(begun.elapsed());
                self.check_gate()?;
                Some(Event::Synced)
            }
            Action::SendLast => {
                self.send_last()?;
                Some(Event::Sent)
            }
            Action::AwaitReady => {
                let begun = Instant::now();
                let ready = self.await_ready();
                self.stats.ready = Some(begun.elapsed());
                self.stats.load = Some(Duration::from_micros(ready?));
                Some(Event::PeerReady)
            }
            Action::CallRelease => {
                let begun = Instant::now();
                self.vmm.call("release", |vmm| vmm.release())?;
                self.stats.release = Some(begun.elapsed());
                self.check_gate()?;
                // Before the destination's word, which can only be that it waited too long.
                if !self.handover_counts() {
                    return Err(self
                        .too_late()
                        .context(format_args!("`release` took {:?}", begun.elapsed())));
                }
                // A destination that has given up meanwhile has said so, or is gone: the last
                // moment to hear it and keep the guest.
                self.listen()?;
                self.check_all_sent()?;
                Some(Event::Released)
            }
            Action::TakeGate => {
                if !self.handover_counts() {
                    return Err(self.too_late());
                }
                let won = self.shared.handle.commit();
                if !won {
                    self.error
                        .get_or_insert_with(|| Error::new(Kind::Cancelled, "cancelled"));
                }
                Some(if won { Event::GateWon } else { Event::GateLost })
            }
            Action::SendHandover => {
                if !self.handover_counts() {
                    let error = self.too_late();
                    self.error.get_or_insert(error);
                    self.shared.handle.withdraw();
                    return Ok(Some(Event::Late));
                }
                let io = self.until_decided().of("HANDOVER");
                let record = Record::Handover(wire::Handover { token: self.token });
                session::send(self.channel()?, &record, &io)?;
                self.done = Some(Event::HandoverSent);
                self.done
            }
            Action::AwaitRunning => {
                let begun = Instant::now();
                let run = self.await_running();
                self.stats.handover = Some(begun.elapsed());
                self.stats.run = Some(Duration::from_micros(run?));
                self.done = Some(Event::PeerRunning);
                self.stood_until_now();
                self.done
            }
            Action::WaitOut => {
                loop {
                    let left = self.window.map_or(Duration::ZERO, |window| {
                        window.until_decided(clock::boottime())
                    });
                    if left.is_zero() {
                        break;
                    }
                    // A host that slept meanwhile is seen soon.
                    std::thread::sleep(left.min(RENEW));
                }
                Some(Event::Decided)
            }
            Action::CallResume => {
                self.consumer.unfreeze();
                let resumed = self
                    .vmm
                    .call_that_makes_threads("resume", |vmm| vmm.resume());
                if resumed.is_ok() {
                    self.done = Some(Event::Resumed);
                }
                self.stood_until_now();
                resumed?;
                self.done
            }
            Action::PutBack => {
                self.sender.give_up();
                None
            }
            Action::TellPeer => {
                // A success has none, whatever went wrong after it.
                let error = self.shared.handle.error();
                if let (Some(channel), Some(error)) = (&mut self.channel, error) {
                    session::abort(channel, &mut Outbox::default(), &error);
                    self.replies.drain(channel, TELL);
                    let _ = channel.shutdown();
                }
                None
            }
            Action::StopTracking => {
                self.ended = true;
                if !self.lent {
                    // Nobody takes from it any more.
                    self.consumer.abandon();
                    return Ok(None);
                }
                self.consumer.skip_returned(false);
                self.consumer.unfreeze();
                if self.we_started_tracking {
                    // Whatever the migration came to, this does not change it.
                    if let Err(e) = self.consumer.stop() {
                        self.vmm
                            .event(EventKind::Warning, format!("stopping to track: {e}"));
                    }
                }
                None
            }
            Action::Report => {
                self.report();
                None
            }
        })
    }
}

impl Driver {
    /// Refuses a descriptor that is no connection.
    pub(super) fn new(
        shared: Arc<Shared>,
        vmm: Callbacks,
        target: Target,
        decider: Box<dyn Decider>,
    ) -> Result<Self> {
        let way = match target {
            Target::Endpoint(endpoint) => Way::Endpoint(endpoint),
            Target::Connected(fd) => Way::Connected(Channel::from_fd(fd)?),
        };
        let recall = PinRecall::of(shared.tracker.memory())?;
        let lent = shared.lent().clone();
        Ok(Driver {
            vmm,
            lent: lent.is_some(),
            consumer: lent.unwrap_or_else(|| Arc::new(shared.tracker.consumer())),
            shared,
            way: Some(way),
            decider,
            channel: None,
            replies: Replies::default(),
            sender: Sender::new(),
            begun: Instant::now(),
            announced: HashSet::new(),
            announced_at: None,
            token: [0; 16],
            we_started_tracking: false,
            cursor: Cursor::default(),
            recall,
            told_poisoned: 0,
            bandwidth: Bandwidth::default(),
            meter: Meter::default(),
            dirtied: DirtyRate::default(),
            passes: Passes::default(),
            this_pass: PassSoFar::default(),
            last_pass: None,
            warned: Vec::new(),
            last_sync: None,
            tracked: ConsumerStats::default(),
            sync_time: Duration::ZERO,
            blobs: Blobs::default(),
            switchover: Limit::never(),
            window: None,
            stats: Stats::default(),
            renewed: None,
            ended: false,
            error: None,
            done: None,
        })
    }

    /// Brings the figures up to date and tells the VMM to look, not too often.
    fn renew(&mut self, now: bool) {
        let at = Instant::now();
        if !now && self.renewed.is_some_and(|last| at - last < RENEW) {
            return;
        }
        self.renewed = Some(at);
        let elapsed = at - self.begun;
        let tracked = self.consumer.stats();
        let remaining = self.consumer.to_read();
        let stats = &mut self.stats;
        stats.elapsed = elapsed;
        if let Some(channel) = &self.channel {
            stats.wire_bytes = channel.counters().sent.0;
        }
        stats.throughput = self.meter.rate(elapsed, stats.wire_bytes);
        stats.total_bytes = self.shared.tracker.memory().with_map(|map| map.total().0);
        if stats.phase >= State::Copying as u32 && !self.ended {
            stats.remaining_bytes = remaining.bytes().0;
        }
        stats.unacknowledged_pages = self.sender.unacknowledged();
        stats.syncs = tracked.syncs;
        stats.found_pages = tracked.found.0;
        stats.clear_calls = tracked.clear_calls;
        stats.longest_clear = tracked.longest_clear;
        stats.put_back_pages = tracked.put_back.0;
        stats.hinted_pages = tracked.hinted.0;
        let facts = self.facts(Moment::Walking);
        let stats = &mut self.stats;
        if let Some(bandwidth) = facts.bandwidth {
            stats.bandwidth = Some(bandwidth as u64);
        }
        stats.dirty_pages_per_second = self.dirtied.rate().map(|rate| rate as u64);
        if self.ended {
            self.shared.handle.publish(stats);
            return;
        }
        if self.shared.paused_at.get().is_none() {
            if let Some(expected) = facts.expected_downtime() {
                stats.expected_downtime = Some(expected);
            }
            stats.predict(self.shared.params.downtime_limit);
        }
        stats.advance();
        self.shared.handle.publish(stats);
    }

    /// What was paused runs again, or nobody knows when it will.
    fn stood_until_now(&mut self) {
        if let Some(stood) = self.shared.stood() {
            self.stats.downtime = Some(stood);
        }
    }

    fn channel(&mut self) -> Result<&mut Channel> {
        self.channel
            .as_mut()
            .ok_or_else(|| Error::new(Kind::Internal, "no connection in this state"))
    }

    fn report(&mut self) {
        if self.shared.handle.state() == State::Completed {
            self.stats.progress = 10_000;
            self.stats.time_left = Some(Duration::ZERO);
            self.stats.remaining_bytes = 0;
        } else {
            self.stats.time_left = None;
        }
        self.renew(true);
    }

    /// Whether a hand-over that is sent now is one that the destination acts on.
    fn handover_counts(&self) -> bool {
        self.window.is_some_and(|w| w.is_open(clock::boottime()))
    }

    fn too_late(&self) -> Error {
        Error::new(
            Kind::Timeout,
            format!(
                "the destination was ready and the hand-over was not sent within the hand-over \
                 timeout of {:?}: a later one would run nothing, so the guest stays here",
                self.shared.params.handover_timeout
            ),
        )
    }

    /// No cancel (it is too late for that), until the destination must have decided.
    fn until_decided(&self) -> Io<'static> {
        let left = self.window.map_or(Duration::ZERO, |window| {
            window.until_decided(clock::boottime())
        });
        let of = Timeout::new(
            "the hand-over timeout and one second, counted from READY,",
            self.shared.params.handover_timeout + MARGIN,
        );
        Io::patient(of).within(of.with_left(left))
    }

    /// Between two steps of the switchover: has somebody cancelled, is the time up?
    fn check_gate(&self) -> Result<()> {
        self.shared.handle.cancel.check("the switchover")?;
        if self.switchover.expired() {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "{} ran out while the guest stood still: it was {}",
                    self.switchover,
                    self.shared.handle.state().name()
                ),
            ));
        }
        Ok(())
    }

    /// The guest stands still, but its VMM can still have added memory after the last walk.
    fn check_all_sent(&self) -> Result<()> {
        let left = self.consumer.pending();
        if left.0 > 0 {
            return Err(Error::new(
                Kind::State,
                format!(
                    "memory was added after the last pages were sent: {left} pages would be \
                     missing at the destination, so the guest stays here; add none between \
                     `pause` and the migration's end"
                ),
            ));
        }
        Ok(())
    }

    /// When the whole migration has to have come to its switchover.
    fn total(&self) -> Limit {
        self.shared.params.total(self.begun)
    }

    /// What the destination said meanwhile: acknowledgements, or that it is over.
    fn listen(&mut self) -> Result<()> {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        // Not for ever: a destination that keeps talking must not keep the walk from looking up.
        for _ in 0..LISTEN_RECORDS {
            let Some(record) = self.replies.poll(channel)? else {
                break;
            };
            match record {
                Record::Ack(ack) => self.sender.acknowledged(ack.number)?,
                other => return Err(session::unexpected(other.record_type(), "ACK")),
            }
        }
        Ok(())
    }

    /// A destination that takes pages and acknowledges none would have the account of them grow
    /// without bound. Each next acknowledgement has its limit: one that says KEEPALIVE meanwhile
    /// would never be idle.
    fn await_acknowledgements(&mut self, most: usize, io: &Io<'_>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        while self.sender.markers_waiting() > most {
            let Driver {
                channel,
                replies,
                sender,
                ..
            } = self;
            let Some(channel) = channel else {
                return Ok(());
            };
            let next = shared.params.acknowledgement(channel.held());
            let io = Io { idle: next, ..*io };
            let io = io.within(next.from_now()).of("an acknowledgement");
            match replies.wait(channel, &io)? {
                Record::Ack(ack) => sender.acknowledged(ack.number)?,
                other => return Err(session::unexpected(other.record_type(), "ACK")),
            }
        }
        Ok(())
    }

    /// If sending failed because the peer went away, its own word for why is better.
    fn explain(&mut self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::PeerGone | Kind::Io) {
            return error;
        }
        match &mut self.channel {
            Some(channel) => self.replies.reason(channel).unwrap_or(error),
            None => error,
        }
    }

    /// Sends some pages; `None` when the walk has come to its end.
    fn send_batch(&mut self, pages: Pages, io: &Io<'_>) -> Result<Option<Batch>> {
        let mut cursor = self.cursor;
        let batch = self.batch(io, |consumer| consumer.take(&mut cursor, BATCH_RUNS, pages));
        self.cursor = cursor;
        batch
    }

    /// Sends what `take` takes; `None` when that is nothing.
    fn batch(
        &mut self,
        io: &Io<'_>,
        take: impl FnOnce(&Consumer) -> Result<Taken>,
    ) -> Result<Option<Batch>> {
        // Nothing is pinned now: whoever removes a block from here on and waits for us is heard.
        self.recall.lower();
        let taken = take(&self.consumer)?;
        if taken.is_empty() {
            return Ok(None);
        }
        let news = self.news(Some(&taken))?;
        let Driver {
            channel, sender, ..
        } = self;
        let channel = channel
            .as_mut()
            .ok_or_else(|| Error::new(Kind::Internal, "no connection"))?;
        let (batch, rest) = sender.send(channel, &news, taken, &self.recall, io)?;
        if let Some(rest) = rest {
            sender.send_rest(channel, &rest, io)?;
        }
        self.stats.data_pages += batch.data_pages;
        self.stats.zero_pages += batch.zero_pages;
        self.stats.hole_pages += batch.hole_pages;
        self.stats.skipped_pages += batch.skipped_pages;
        self.stats.poisoned_pages += batch.poisoned_pages;
        if batch.poisoned_pages > 0 {
            self.tell_poisoned();
        }
        if self.sender.marker_is_due() {
            self.send_marker(io)?;
            self.await_acknowledgements(MARKERS_WAITING, io)?;
        }
        Ok(Some(batch))
    }

    /// Tells the VMM what its guest loses, when that is not what it was told last.
    fn tell_poisoned(&mut self) {
        let memory = self.shared.tracker.memory();
        let pages = memory.poisoned_pages();
        if pages == std::mem::replace(&mut self.told_poisoned, pages) {
            return;
        }
        let text = format!(
            "{pages} pages whose contents are declared lost are not sent: {}",
            memory.describe_poisoned()
        );
        self.vmm.event(EventKind::Warning, text);
    }

    fn send_marker(&mut self, io: &Io<'_>) -> Result<()> {
        let channel = self
            .channel
            .as_mut()
            .ok_or_else(|| Error::new(Kind::Internal, "no connection"))?;
        self.sender.send_marker(channel, self.stats.pass, false, io)
    }

    /// What the destination has to hear before `taken`: of blocks that went, and of those that
    /// came since. As bytes, to be sent with the runs: what waits for the peer alone would wait
    /// with their pins.
    fn news(&mut self, taken: Option<&Taken>) -> Result<Vec<u8>> {
        let mut news = Vec::new();
        let blocks = || taken.into_iter().flat_map(Taken::blocks);
        // Those that went first: one that comes may have the name of one that went. Only when the
        // map has changed: this is asked with every batch.
        let memory = self.shared.tracker.memory();
        if self.announced_at != Some(memory.with_map(Map::generation)) {
            let map = memory.map();
            let gone = self.announced.iter().copied();
            let gone = gone.filter(|id| map.block(*id).is_none());
            let mut gone = fallible::collect(gone, BLOCKS)?;
            // One that runs are still sent of is told of with a later batch.
            let before = gone.len();
            let sent = |id| blocks().any(|block| block.id() == id);
            gone.retain(|id| !sent(*id));
            for id in &gone {
                Record::BlockRemoved { id: id.0 }.encode(&mut news)?;
                self.announced.remove(id);
            }
            if gone.len() == before {
                self.announced_at = Some(map.generation());
            }
        }
        for block in blocks() {
            if self.announced.contains(&block.id()) {
                continue;
            }
            Record::BlockAdded(describe(block)).encode(&mut news)?;
            fallible::add(&mut self.announced, block.id(), BLOCKS)?;
        }
        Ok(news)
    }

    /// Everything that is left, the end marker, the state. The guest stands still.
    fn send_last(&mut self) -> Result<()> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.shared);
        let io = Io::until(&shared.handle.cancel, shared.params.io())
            .within(self.switchover)
            .of("the last pages");
        let before = self.stats.data_pages + self.stats.zero_pages;
        self.cursor = Cursor::default();
        // Two walks in a row that find nothing: the first may have begun in the middle.
        loop {
            self.check_gate()?;
            self.listen()?;
            match self.send_batch(Pages(BATCH_PAGES), &io) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => return Err(self.explain(e)),
            }
        }
        let result = self.send_end(&io).map_err(|e| self.explain(e));
        self.stats.last_send = Some(begun.elapsed());
        self.stats.last_pages = self.stats.data_pages + self.stats.zero_pages - before;
        result
    }

    fn send_end(&mut self, io: &Io<'_>) -> Result<()> {
        let news = self.news(None)?;
        let channel = self
            .channel
            .as_mut()
            .ok_or_else(|| Error::new(Kind::Internal, "no connection"))?;
        channel.send(&[Part::bytes(&news)], io)?;
        self.sender
            .send_marker(channel, self.stats.pass, true, io)?;
        // By the destination's READY it knows how long a hand-over counts.
        let limit = self.shared.params.handover_timeout;
        self.blobs
            .send_state(channel, limit, &io.of("device state"))
    }

    fn await_ready(&mut self) -> Result<u64> {
        let shared = Arc::clone(&self.shared);
        let io = Io::until(&shared.handle.cancel, shared.params.switchover())
            .within(self.switchover)
            .of("READY");
        loop {
            let record = {
                let Driver {
                    channel, replies, ..
                } = &mut *self;
                let Some(channel) = channel else {
                    return Err(Error::new(Kind::Internal, "no connection"));
                };
                replies.wait(channel, &io)?
            };
            match record {
                Record::Ack(ack) => self.sender.acknowledged(ack.number)?,
                Record::Ready(ready) => {
                    let left = self.sender.unacknowledged();
                    if left > 0 {
                        return Err(Error::new(
                            Kind::Protocol,
                            format!(
                                "the destination is ready and has not acknowledged {left} pages"
                            ),
                        ));
                    }
                    // After the receipt, so that the destination's has begun before.
                    let limit = self.shared.params.handover_timeout;
                    self.window = Some(Window::new(clock::boottime(), limit));
                    return Ok(ready.load_micros);
                }
                other => return Err(session::unexpected(other.record_type(), "READY")),
            }
        }
    }

    fn await_running(&mut self) -> Result<u64> {
        let io = self.until_decided().of("RUNNING");
        let Driver {
            channel, replies, ..
        } = &mut *self;
        let Some(channel) = channel else {
            return Err(Error::new(Kind::Internal, "no connection"));
        };
        match replies.wait(channel, &io)? {
            Record::Running(running) => Ok(running.run_micros),
            other => Err(session::unexpected(other.record_type(), "RUNNING")),
        }
    }
}
