//! The destination's driver carries out, on a thread of its own, what
//! [`crate::migrate::switchover::destination`] decides. The driver decides nothing, and believes
//! nothing that the peer says.

use super::accepting::{AcceptFrom, Accepting};
use super::account::Account;
use super::agreed::Agreed;
use super::arriving::Arriving;
use super::authenticate::{connections, is_urgent};
use super::blobs;
use super::devices::Devices;
use super::digests::Digests;
use super::figures::Figures;
use super::gather::Gathering;
use super::lane::{Incomer, Lane, Waits};
use super::negotiate::{answer, hellos, negotiate, Layout};
use super::placement::Placement;
use super::postcopy::described::Lacking;
use super::postcopy::Rest;
use super::prefault::{Backed, Prefault};
use super::receiver::{Came, Receiver};
use super::workers::Workers;
use crate::channel::Channel;
use crate::error::{Error, Kind, Result};
use crate::memory::ballooned::Forgotten;
use crate::memory::served::Checked;
use crate::migrate::common::{Common, Migration};
use crate::migrate::control;
use crate::migrate::lane_name::LaneName;
use crate::migrate::report::RENEW;
use crate::migrate::switchover::destination::{Action, Event, State};
use crate::migrate::work::Work;
use crate::runtime::{Deadline, Limit, Timeout};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{self, Hello, Record, RecordType};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) mod answer;
mod recover;
mod rejoin;
mod rest;

/// When a block of the source's is missing here, the destination waits this long for the source's
/// word that it has removed the block too. The source is required to remove it first.
const NEWS: Duration = Duration::from_secs(2);

/// What the thread owns.
pub(super) struct Driver {
    common: Common<Arriving, State>,
    accepting: Option<Accepting>,
    /// The source of the session's other channels, until all of them have come.
    gathering: Option<Gathering>,
    /// The lanes in the order of their channels, without those that have threads of their own.
    lanes: Vec<Receiver>,
    /// The HELLO of the first connection, where a listener accepted it.
    hello: Option<Hello>,
    account: Account,
    /// Values that are freed when the guest runs.
    forgotten: Forgotten,
    /// What both sides have agreed on.
    agreed: Agreed,
    /// The HELLO that opened the session, and the answer to it. Those of a recovery are the same.
    opened: Option<(Hello, Record)>,
    /// Figures of lanes that are none of the session's channels: the urgent one, and those whose
    /// connections were lost.
    others: Vec<Arc<Figures>>,
    /// The lane of pages that somebody waits for, until it has a thread of its own.
    urgent: Option<Receiver>,
    /// The pages that the source has described as missing, until they are served.
    described: Option<(Vec<Lacking>, Pages)>,
    /// How each block can be served, where postcopy was agreed on.
    servable: Option<Checked>,
    /// What takes the rest of the memory behind the switch to postcopy.
    rest: Option<Rest>,
    /// What memory holds, for a source that verifies.
    digests: Option<Digests>,
    /// The guest's devices, once both sides have agreed on them.
    devices: Option<Arc<Devices>>,
    /// `run` was called, or the devices began to run.
    may_have_run: bool,
    /// How long a hand-over is valid, as the source said.
    handover_limit: Duration,
    /// The limit for the hand-over of the guest. It begins when there is a connection.
    limit: Limit,
}

impl Work for Driver {
    type Machine = State;
    type Guest = Arriving;

    fn common(&mut self) -> &mut Common<Arriving, State> {
        &mut self.common
    }

    fn success(&self) -> String {
        "the guest runs here".to_owned()
    }

    fn enter(&mut self, state: State) {
        let interrupted = state == State::Interrupted;
        self.common.shared.guest.is_interrupted(interrupted);
        self.renew(true);
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        self.act(action).map_err(|error| self.explain(error))
    }
}

impl Driver {
    fn act(&mut self, action: Action) -> Result<Option<Event>> {
        let shared = Arc::clone(&self.common.shared);
        Ok(match action {
            Action::Accept => {
                self.accept()?;
                self.common.begun = Instant::now();
                self.limit = shared.params.incoming(self.common.begun);
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
                    load_micros: micros(self.common.stats.load),
                    digest_micros: micros(self.common.stats.digest),
                });
                self.agree_on_blocks()?;
                self.nothing_follows()?;
                // The window opens before READY is sent, so that the source's window begins later
                // and ends later.
                self.common.open_window(self.handover_limit);
                self.with_lane(|lane, waits| lane.send(waits, &ready))?;
                Some(Event::ReadySent)
            }
            Action::AwaitHandover => {
                self.await_handover()?;
                Some(Event::Handover)
            }
            Action::TakeGate => {
                if !self.common.handover_counts() {
                    return Ok(Some(self.late()));
                }
                let won = self.common.take_gate();
                Some(if won { Event::GateWon } else { Event::GateLost })
            }
            Action::CallRun => {
                let begun = Instant::now();
                // The VMM was told of the new state, and that call may have taken long.
                if !self.common.handover_counts() {
                    return Ok(Some(self.late()));
                }
                self.forgotten = shared.guest.memory.settle_ballooned();
                self.may_have_run = true;
                if let Some(devices) = &self.devices {
                    devices.run()?;
                }
                self.common
                    .vmm
                    .call_that_makes_threads("run", |vmm| vmm.run())?;
                self.common.done = Some(match self.rest {
                    Some(_) => Event::StartedToComplete,
                    None => Event::Started,
                });
                self.common.stats.run = Some(begun.elapsed());
                self.common.done
            }
            Action::SendRunning => {
                let running = Record::Running(wire::Running {
                    run_micros: micros(self.common.stats.run),
                });
                if let Some(receiver) = self.lanes.first_mut() {
                    // The guest runs here whether the source hears of it or not.
                    if let Err(e) = receiver.lane.send_last(&shared.params, &running) {
                        self.digests = None;
                        self.common.vmm.event(
                            EventKind::Warning,
                            format!("the guest runs, and the source could not be told: {e}"),
                        );
                    }
                }
                // The account is freed only now, because that takes milliseconds for a huge guest.
                // The rest of a postcopy still needs it.
                if self.rest.is_none() {
                    self.account.free();
                }
                self.forgotten = Forgotten::default();
                None
            }
            Action::Complete => {
                self.take_rest()?;
                Some(Event::AllHere)
            }
            Action::Reconnect => {
                self.reconnect()?;
                None
            }
            Action::SendComplete => {
                self.send_complete();
                None
            }
            Action::AwaitRecovery => Some(self.await_recovery()?),
            Action::SendDigests => {
                self.send_digests()?;
                None
            }
            Action::TellPeer => {
                self.tell_peer();
                None
            }
            Action::Report => {
                if shared.handle.state() == State::Incomplete {
                    // The guest is here, and so is its balloon.
                } else if shared.handle.state() == State::Running {
                    self.common.stats.progress = 10_000;
                    self.common.stats.remaining_bytes = 0;
                } else {
                    shared.guest.memory.abandon_ballooned();
                }
                // Where `run` failed, the guest is here and stands still, and so do its devices.
                if let (Some(devices), State::Failed) = (&self.devices, shared.handle.state()) {
                    devices.reset();
                }
                self.renew(true);
                None
            }
        })
    }

    /// Makes a driver. Refuses a descriptor that is no connected socket.
    pub(super) fn new(shared: Arc<Migration<Arriving, State>>, from: AcceptFrom) -> Result<Self> {
        let accepting = Accepting::new(from, &shared.params)?;
        let memory = Arc::clone(&shared.guest.memory);
        Ok(Driver {
            common: Common::new(shared),
            accepting: Some(accepting),
            gathering: None,
            lanes: Vec::new(),
            hello: None,
            account: Account::new(memory),
            forgotten: Forgotten::default(),
            agreed: Agreed::default(),
            opened: None,
            others: Vec::new(),
            urgent: None,
            described: None,
            servable: None,
            rest: None,
            digests: None,
            devices: None,
            may_have_run: false,
            handover_limit: Duration::ZERO,
            limit: Limit::never(),
        })
    }

    fn renew(&mut self, now: bool) {
        let Some(at) = self.common.renewed.due(now) else {
            return;
        };
        let elapsed = at - self.common.begun;
        let stats = &mut self.common.stats;
        // The elapsed time was restarted when the connection came.
        stats.elapsed = stats.elapsed.max(elapsed);
        for lane in &self.lanes {
            lane.renew_figures();
        }
        let figures = self.common.shared.guest.figures();
        let all = || figures.iter().chain(&self.others);
        (stats.wire_bytes, stats.data_pages, stats.zero_pages) = (0, 0, 0);
        for one in all().map(|figures| figures.stats()) {
            stats.wire_bytes += one.wire_bytes;
            stats.data_pages += one.data_pages;
            stats.zero_pages += one.zero_pages;
        }
        stats.ballooned_pages = all().map(|figures| figures.ballooned()).sum();
        let compressed = all().map(|figures| figures.compressed());
        (stats.compressed_pages, stats.compressed_bytes) =
            compressed.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let mut prefaulted = Backed::default();
        all().for_each(|one| prefaulted += one.prefaulted());
        stats.prefaulted_pages = prefaulted.pages;
        stats.prefault_failures = prefaulted.failures;
        if let Some(rest) = &self.rest {
            rest.figures(stats);
        }
        if let Some(devices) = &self.devices {
            let loaded = devices.figures();
            stats.device_running_bytes = loaded.running;
            stats.device_stopped_bytes = loaded.stopped;
            stats.device_time = loaded.time;
        }
        let passes = all().map(|figures| figures.last_pass());
        stats.pass = passes.max().unwrap_or(0);
        drop(figures);
        stats.throughput = self.common.meter.rate(elapsed, stats.wire_bytes);
        stats.total_bytes = self
            .common
            .shared
            .guest
            .memory
            .with_map(|map| map.total().0);
        let arrived = (stats.data_pages + stats.zero_pages) * crate::units::PAGE_SIZE;
        let seen = arrived + stats.shared_bytes;
        stats.remaining_bytes = stats.total_bytes.saturating_sub(seen);
        stats.advance();
        self.common.shared.handle.publish(stats);
    }

    /// Calls `f` with the lane of channel 0 and the limits of its waits. While other lanes take the
    /// rest of the memory, the waits also end when one of those fails.
    fn with_lane<R>(&mut self, f: impl FnOnce(&mut Lane, &Waits<'_>) -> Result<R>) -> Result<R> {
        let Driver {
            common,
            lanes,
            limit,
            rest,
            ..
        } = self;
        let first = lanes.first_mut().ok_or_else(no_connection)?;
        let mut waits = waits(&common.shared, *limit);
        if let Some(workers) = rest.as_ref().and_then(|rest| rest.workers.as_ref()) {
            waits.cancel = workers.stop();
        }
        let done = f(&mut first.lane, &waits);
        first.lane.named(done)
    }

    fn next(&mut self, limit: Limit, what: &'static str) -> Result<Incomer> {
        self.with_lane(|lane, waits| lane.next(waits, limit, what))
    }

    /// The error to report for `error`. When the source ends a migration, one connection may break
    /// before the source's reason has arrived on another one: that reason is better.
    fn explain(&mut self, error: Error) -> Error {
        let of_rest = self.rest.as_ref().and_then(Rest::failed);
        if let (Kind::Cancelled, Some(reason)) = (error.kind(), of_rest) {
            return reason;
        }
        if !matches!(error.kind(), Kind::PeerGone | Kind::Io) {
            return error;
        }
        let waits = waits(&self.common.shared, self.limit);
        let mut lanes = self.lanes.iter_mut().map(|receiver| &mut receiver.lane);
        let said = lanes.find_map(|lane| {
            let heard = lane.heed_abort(&waits).err();
            heard.filter(|_| lane.was_told())
        });
        said.unwrap_or(error)
    }

    fn tell_peer(&mut self) {
        let Some(error) = self.common.error.clone() else {
            return;
        };
        if let Some(rest) = self.rest.take() {
            // The guest never runs here.
            self.common.shared.guest.serves_no_more(&rest.served);
            self.lanes.extend(rest.abandon());
            let stats = &mut self.common.stats;
            (stats.missing_pages, stats.fault_waiting) = (0, 0);
            self.common.shared.guest.serves_nobody();
            self.common.stats.missing_pages = 0;
            self.common.stats.fault_waiting = 0;
        }
        // A source that has memory in common with this side may take the guest back only when this
        // side says that it never ran: with any code but this one.
        let error = match self.may_have_run && self.agreed.descriptors {
            true => Error::new(Kind::Unanswered, error.message()),
            false => error,
        };
        let error = &error;
        let Some((first, others)) = self.lanes.split_first_mut() else {
            return;
        };
        for other in &mut *others {
            other.lane.abort_at_once(error);
        }
        // When the only connection broke, there is no other one to tell.
        if error.kind() != Kind::PeerGone || !others.is_empty() {
            first.lane.abort(&self.common.shared.handle.cancel, error);
        }
        for other in others {
            other.lane.close();
        }
    }

    /// Waits for the source. The HELLO of a connection that the VMM made is read later, in the
    /// agreement.
    fn accept(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        match self.accepting.take() {
            Some(Accepting::Listener(listener)) => {
                let vmm = self.common.vmm.clone();
                let mut warn = |message| vmm.event(EventKind::Warning, message);
                let mut gathering = Gathering::new(listener, shared.params.clone());
                let arrival = gathering.open(&shared.handle.cancel, &mut warn)?;
                let channels = arrival.hello.channels;
                // With one connection all of them are there, and the address is free.
                self.gathering = (connections(&arrival.hello) > 1).then_some(gathering);
                self.hello = Some(arrival.hello);
                let name = LaneName::default();
                let first = receiver(&shared, &self.account, 0, name, arrival.channel, channels)?;
                self.add(first);
            }
            Some(Accepting::Connected(channels)) => {
                let count = channels.len() as u16;
                for (number, channel) in (0..).zip(channels) {
                    let name = match count {
                        1 => LaneName::default(),
                        _ => LaneName::before_hello(channel.handed_in()),
                    };
                    let lane = receiver(&shared, &self.account, number, name, channel, count)?;
                    self.add(lane);
                }
            }
            None => return Err(Error::new(Kind::Internal, "accepted twice")),
        }
        Ok(())
    }

    fn add(&mut self, lane: Receiver) {
        let mut figures = self.common.shared.guest.figures();
        figures.push(Arc::clone(&lane.figures));
        self.lanes.push(lane);
    }

    fn negotiate(&mut self) -> Result<()> {
        // One limit for everything that the source has to say, on its other connections too. The
        // time in which this side's VMM builds itself does not count.
        let limit = self.common.shared.params.connect().from_now();
        self.greet(limit)?;
        let Driver {
            common,
            lanes,
            limit: overall,
            account,
            ..
        } = self;
        let first = lanes.first_mut().ok_or_else(no_connection)?;
        let (shared, vmm) = (&common.shared, &common.vmm);
        let waits = waits(shared, *overall);
        let memory = &shared.guest.memory;
        let has = self.agreed;
        let agreed = negotiate(&mut first.lane, &waits, limit, &has, vmm, memory, account);
        let Layout {
            devices: list,
            in_use,
            servable,
        } = first.lane.named(agreed)?;
        self.servable = servable;
        common.stats.shared_bytes = account.shared_bytes();
        if self.agreed.devices {
            let most = shared.params.max_device_buffer;
            let cancelled = shared.handle.cancel.clone();
            let devices = Devices::new(list, in_use, most, lanes.len(), vmm.clone(), cancelled)?;
            shared.guest.has_devices(&devices);
            for lane in lanes {
                lane.takes_pieces(devices.lane()?);
            }
            self.devices = Some(devices);
        }
        Ok(())
    }

    /// Answers the HELLO of every channel.
    fn greet(&mut self, limit: Limit) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let waits = waits(&shared, self.limit);
        let hello = match self.hello.take() {
            Some(hello) => hello,
            None => hellos(&mut self.lanes, &waits, limit)?,
        };
        // Channel 0 carries the descriptors.
        let first = self.lanes.first().map(|first| &first.lane);
        let carries = first.is_some_and(Lane::carries_descriptors);
        let takes = carries && shared.vmm.can_map_blocks();
        let (reply, agreed) = answer(&hello, &shared.params, takes)?;
        self.agreed = agreed;
        self.opened = Some((hello.clone(), reply.clone()));
        for receiver in &mut self.lanes {
            if hello.channels > 1 && receiver.channel < hello.channels {
                receiver.is_channel(receiver.channel);
            }
            receiver.agreed(agreed);
            receiver.lane.send(&waits, &reply)?;
        }
        if let Some(mut gathering) = self.gathering.take() {
            let vmm = self.common.vmm.clone();
            let mut warn = |message| vmm.event(EventKind::Warning, message);
            let limit = limit.earlier(self.limit);
            gathering.others(&shared.handle.cancel, limit, &mut warn, &mut |arrived| {
                for came in arrived.drain(..) {
                    let (number, channels) = (came.hello.channel, came.hello.channels);
                    let name = match is_urgent(&came.hello) {
                        true => LaneName::urgent(None),
                        false => LaneName::of(number.into(), None),
                    };
                    let account = &self.account;
                    let mut lane =
                        receiver(&shared, account, number, name, came.channel, channels)?;
                    lane.agreed(agreed);
                    lane.lane.send(&waits, &reply)?;
                    self.add(lane);
                }
                let mut lanes = self.lanes.iter_mut();
                lanes.try_for_each(|receiver| receiver.lane.heed_abort(&waits))
            })?;
            self.lanes.sort_by_key(|lane| lane.channel);
        }
        if agreed.postcopy {
            // Its number is the one behind the last channel's.
            self.urgent = self.lanes.pop();
            let figures = self.urgent.iter().map(|lane| Arc::clone(&lane.figures));
            self.others.extend(figures);
        }
        let figures = self.lanes.iter().map(|lane| Arc::clone(&lane.figures));
        *shared.guest.figures() = figures.collect();
        Ok(())
    }

    /// Takes memory until the end marker of each channel, or until the marker of a switch to
    /// postcopy on each of them.
    fn receive(&mut self) -> Result<()> {
        if self.lanes.is_empty() {
            return Err(no_connection());
        }
        let others = self.lanes.split_off(1);
        if others.is_empty() {
            self.receive_first(None)?;
        } else {
            let shared = Arc::clone(&self.common.shared);
            let workers = Workers::start(&shared, self.limit, others)?;
            if let Err(error) = self.receive_first(Some(&workers)) {
                workers.offer(&self.lanes[0], error);
            }
            while !workers.wait(RENEW) {
                self.renew(false);
            }
            let (others, failure) = workers.join();
            self.lanes.extend(others);
            if let Some((_, error)) = failure {
                return Err(error);
            }
            shared.handle.cancel.check("the migration")?;
        }
        if self.switched()? {
            self.describe()?;
            self.account.finish()?;
            return self.serve();
        }
        match &self.devices {
            Some(devices) => devices.check_complete()?,
            // No pin is held while the VMM's operations run, because they may change the map.
            None => self.account.finish()?,
        }
        // Nobody waits for a page.
        self.urgent = None;
        Ok(())
    }

    /// Takes what comes on channel 0 until its end marker, or the marker of a switch.
    fn receive_first(&mut self, workers: Option<&Workers>) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let waits = match workers {
            None => waits(&shared, self.limit),
            Some(workers) => workers.waits(),
        };
        loop {
            let begins = waits.patience().from_now();
            // While nothing comes on channel 0, the other lanes go on and the figures are renewed.
            while workers.is_some() && !begins.expired() {
                waits.cancel.check("waiting for pages or a marker")?;
                let soon = Deadline::after(RENEW).earlier(begins.at());
                let first = &mut self.lanes[0].lane;
                let came = first.wait_for_more(waits.cancel, soon);
                if first.named(came)? {
                    break;
                }
                self.renew(false);
            }
            match self.lanes[0].take(&waits, begins)? {
                Came::Pages | Came::Piece => {}
                Came::PagesEnd => self.load_devices(&waits)?,
                Came::Switch => return self.lanes[0].lane.flush_all(&waits),
                Came::Marker(marker) if marker.is_final() => {
                    self.lanes[0].finish();
                    return Ok(());
                }
                Came::Marker(_) => {}
                Came::Other(Incomer::Control(Record::BlockAdded(theirs)))
                    if !self.lanes[0].pages_ended() =>
                {
                    self.account.added(&theirs)?;
                }
                Came::Other(Incomer::Control(Record::BlockRemoved { id })) => {
                    self.account.remove(id)?;
                }
                Came::Other(other) => {
                    let expected = "pages, a marker or a change of blocks";
                    let error = control::unexpected(other.kind(), expected);
                    return self.lanes[0].lane.named(Err(error));
                }
            }
            self.renew(false);
        }
    }

    /// All page runs of channel 0 have come: waits for those of the other channels, and lets the
    /// devices load their stopped parts.
    fn load_devices(&mut self, waits: &Waits<'_>) -> Result<()> {
        let Some(devices) = self.devices.clone() else {
            return Ok(());
        };
        devices.await_memory(waits)?;
        self.account.finish()?;
        if self.agreed.verify {
            self.compute_digests()?;
        }
        devices.open(waits)
    }

    fn load(&mut self) -> Result<()> {
        let state = self.with_lane(|lane, waits| {
            blobs::receive(lane, waits, RecordType::State, Limit::never())
        })?;
        self.handover_limit = state.handover_limit;
        self.common.stats.state_bytes = state.bytes;
        if self.agreed.verify && self.digests.is_none() {
            self.compute_digests()?;
        }
        // While the VMM's devices load, they look into memory. All of the memory has to be here by
        // now.
        self.agree_on_blocks()?;
        let begun = Instant::now();
        for stored in &state.list {
            self.common
                .vmm
                .call_that_makes_threads("load", |vmm| vmm.load(&stored.as_blob()))?;
            self.common.shared.handle.cancel.check("loading")?;
        }
        if let Some(devices) = &self.devices {
            devices.loaded(self.limit)?;
        }
        self.common
            .vmm
            .call_that_makes_threads("loaded", |vmm| vmm.loaded())?;
        self.common.stats.load = Some(begun.elapsed());
        Ok(())
    }

    /// Computes what memory holds. All pages are here, and nothing has been loaded.
    fn compute_digests(&mut self) -> Result<()> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.common.shared);
        let digests = Digests::compute(
            &shared.guest.memory,
            self.account.copied()?,
            self.lanes.len(),
            &shared.handle.cancel,
            &self.common.vmm,
        )?;
        self.digests = Some(digests);
        self.common.stats.digest = Some(begun.elapsed());
        self.renew(true);
        Ok(())
    }

    /// Sends the source what memory held. The guest runs here by now, whatever becomes of this.
    fn send_digests(&mut self) -> Result<()> {
        let (Some(digests), Some(first)) = (self.digests.take(), self.lanes.first_mut()) else {
            return Ok(());
        };
        let params = &self.common.shared.params;
        // The source compares while it reads, so it may take as long as reading its memory.
        let limit = params.digests(digests.pages()).from_now();
        let sent = digests.records(|bytes| first.lane.send_last_bytes(params, bytes, limit));
        sent.map_err(|e| e.context("sending the checksums of memory"))
    }

    /// Forgets a block that the source has removed.
    fn forget(&mut self, id: u32) -> Result<()> {
        self.account.remove(id)?;
        if let Some(digests) = &mut self.digests {
            digests.remove(id);
        }
        Ok(())
    }

    /// Makes sure that both sides have the same blocks. Asked before the device state is loaded,
    /// and as the last thing before READY.
    ///
    /// Blocks may still be removed. When a block is gone here it has to be gone at the source too,
    /// and the source's word of that may be on its way. No other record may come here. A source
    /// that sends HANDOVER before READY hands over a guest without knowing that the guest can run.
    fn agree_on_blocks(&mut self) -> Result<()> {
        let news = Timeout::new("the wait for the source's word of it", NEWS);
        // The block whose removal is waited for, and the limit. Each block has its own limit.
        let mut awaited: Option<(u32, Limit)> = None;
        let all = self.common.shared.params.switchover().from_now();
        loop {
            let missing = self.account.missing();
            if missing.is_none() && !self.with_lane(|lane, _| lane.has_more())? {
                return Ok(());
            }
            awaited = missing.as_ref().map(|(id, _)| match awaited {
                Some((before, word)) if before == *id => (before, word),
                _ => (*id, news.from_now()),
            });
            let word = awaited.map_or(Limit::never(), |(_, word)| word);
            let limit = word.earlier(all);
            let came =
                self.with_lane(|lane, waits| lane.next_or_skipped(waits, limit, "BLOCK_REMOVED"));
            match (came, missing) {
                (Ok(None), _) => {}
                (Ok(Some(Incomer::Control(Record::BlockRemoved { id }))), _) => {
                    self.forget(id)?;
                }
                (Ok(Some(other)), _) => {
                    let expected = "nothing but BLOCK_REMOVED before READY";
                    let error = control::unexpected(other.kind(), expected);
                    return self.with_lane(|_, _| Err(error));
                }
                (Err(e), Some((_, missing))) if e.kind() == Kind::Timeout && word.expired() => {
                    return Err(missing);
                }
                (Err(e), _) => return Err(e),
            }
        }
    }

    /// Makes sure, as the last thing before READY, that only channel 0 has anything after its final
    /// MARKER. When another connection has ended by then, it has done its work.
    fn nothing_follows(&mut self) -> Result<()> {
        let waits = waits(&self.common.shared, self.limit);
        let limit = waits.params.switchover().from_now();
        for Receiver { lane, .. } in self.lanes.iter_mut().skip(1) {
            while lane.has_more().unwrap_or(false) {
                let expected = "nothing after the final MARKER";
                let came = lane.next_or_skipped(&waits, limit, expected);
                if let Some(came) = lane.named(came)? {
                    return lane.named(Err(control::unexpected(came.kind(), expected)));
                }
            }
        }
        Ok(())
    }

    fn await_handover(&mut self) -> Result<()> {
        let window = Timeout::new("the source's hand-over timeout", self.handover_limit);
        let window = window.with_left(self.common.handover_left());
        let limit = self
            .common
            .shared
            .params
            .switchover()
            .from_now()
            .earlier(window);
        loop {
            return match self.next(limit, "HANDOVER")? {
                // The record was on its way when this side said that it is ready.
                Incomer::Control(Record::BlockRemoved { id }) => {
                    self.forget(id)?;
                    continue;
                }
                Incomer::Control(Record::Handover(handover))
                    if handover.token == self.agreed.token =>
                {
                    Ok(())
                }
                Incomer::Control(Record::Handover(_)) => {
                    let message = "the hand-over has another token than this session";
                    let error = Error::new(Kind::Protocol, message);
                    self.with_lane(|_, _| Err(error))
                }
                other => {
                    let error = control::unexpected(other.kind(), "HANDOVER");
                    self.with_lane(|_, _| Err(error))
                }
            };
        }
    }

    /// A HANDOVER came too late and is not acted on.
    fn late(&mut self) -> Event {
        let error = Error::new(
            Kind::Timeout,
            format!(
                "the hand-over came later than the source's hand-over timeout of {:?} after \
                 ready: the source may have the guest back, so it does not run here",
                self.handover_limit
            ),
        );
        // A cancel that is asked for now comes before any `run`.
        self.common.too_late(error);
        Event::Late
    }
}

/// The lane of channel `channel`, in a session of `channels` channels.
fn receiver(
    shared: &Migration<Arriving, State>,
    account: &Account,
    number: u16,
    name: LaneName,
    channel: Channel,
    channels: u16,
) -> Result<Receiver> {
    let memory = &shared.guest.memory;
    let prefault = || Prefault::new(Arc::clone(memory), shared.callbacks(), channels.into());
    let placement = Placement::new(shared.params.prefault.then(prefault));
    Receiver::new(number, name, channel, memory, account, placement)
}

fn waits(shared: &Migration<Arriving, State>, overall: Limit) -> Waits<'_> {
    Waits {
        cancel: &shared.handle.cancel,
        params: &shared.params,
        overall,
    }
}

fn no_connection() -> Error {
    Error::new(Kind::Internal, "no connection in this state")
}

/// A time in microseconds, the unit of the wire.
fn micros(time: Option<Duration>) -> u64 {
    let time = time.unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
