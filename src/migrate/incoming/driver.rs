//! The destination's driver: carries out what [`crate::migrate::switchover::destination`] says, on a
//! thread of its own. It decides nothing, and believes nothing that the peer says.

use super::account::Account;
use super::blobs;
use super::gather::gather;
use super::lane::{Incomer, Lane, Waits};
use super::negotiate::{negotiate, Agreed};
use super::placement::Placement;
use super::prefault::Prefault;
use super::receiver::{Came, Receiver};
use crate::channel::{Channel, Endpoint, Listener};
use crate::error::{Error, Kind, Result};
use crate::memory::ballooned::Forgotten;
use crate::memory::Memory;
use crate::migrate::common::{Common, Migration};
use crate::migrate::control;
use crate::migrate::switchover::destination::{Action, Event, State};
use crate::migrate::work::Work;
use crate::runtime::{Limit, Timeout};
use crate::vmm::EventKind;
use crate::wire::{self, Hello, Record, RecordType};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Where an incoming migration gets its connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcceptFrom {
    /// The first who says HELLO at this listener. It stays the VMM's too, and can be used for
    /// the next migration; what a VMM drops is free again once there is a source.
    Listener(Arc<Listener>),
    /// A connected stream socket that the VMM made; brant's from here on.
    Connected(OwnedFd),
}

/// How long a destination that misses a block waits for the source's word that it is gone there too.
/// By the order that is asked for it was gone there first.
const NEWS: Duration = Duration::from_secs(2);

/// A [`AcceptFrom`] that may be one.
enum Way {
    Listener(Arc<Listener>),
    Connected(Channel),
}

/// Where the guest arrives.
pub(super) struct Arriving {
    pub(super) memory: Arc<Memory>,
    /// Where it listens, or has listened.
    endpoint: Mutex<Option<Endpoint>>,
}

impl Arriving {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        Arriving {
            memory,
            endpoint: Mutex::default(),
        }
    }

    pub(super) fn endpoint(&self) -> MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What the thread owns.
pub(super) struct Driver {
    common: Common<Arriving, State>,
    way: Option<Way>,
    /// Channel 0.
    receiver: Option<Receiver>,
    /// What a listener's connection began with.
    hello: Option<Hello>,
    account: Account,
    /// To be freed when the guest runs.
    forgotten: Forgotten,
    agreed: Agreed,
    /// For how long a hand-over counts, as the source says.
    handover_limit: Duration,
    /// When the guest has to be handed over, from the moment that there is a connection.
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

    fn enter(&mut self, _: State) {
        self.renew(true);
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        let shared = Arc::clone(&self.common.shared);
        Ok(match action {
            Action::Accept => {
                let channel = self.accept()?;
                let memory = &shared.guest.memory;
                let prefault = Prefault::new(Arc::clone(memory), shared.callbacks());
                let placement = Placement::new(Some(prefault));
                let receiver = Receiver::new(channel, memory, &self.account, placement)?;
                self.receiver = Some(receiver);
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
                });
                self.agree_on_blocks()?;
                // Before it is sent, so that the source's begins later and ends later.
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
                // The VMM was told of the state, which may have taken it a while.
                if !self.common.handover_counts() {
                    return Ok(Some(self.late()));
                }
                self.forgotten = shared.guest.memory.settle_ballooned();
                self.common
                    .vmm
                    .call_that_makes_threads("run", |vmm| vmm.run())?;
                self.common.done = Some(Event::Started);
                self.common.stats.run = Some(begun.elapsed());
                self.common.done
            }
            Action::SendRunning => {
                let running = Record::Running(wire::Running {
                    run_micros: micros(self.common.stats.run),
                });
                if let Some(receiver) = &mut self.receiver {
                    // The guest runs here whether or not the source hears of it.
                    if let Err(e) = receiver.lane.send_last(&shared.params, &running) {
                        self.common.vmm.event(
                            EventKind::Warning,
                            format!("the guest runs, and the source could not be told: {e}"),
                        );
                    }
                }
                // Not before: freeing these takes milliseconds where the guest is huge.
                self.account.free();
                self.forgotten = Forgotten::default();
                None
            }
            Action::TellPeer => {
                self.tell_peer();
                None
            }
            Action::Report => {
                if shared.handle.state() == State::Running {
                    self.common.stats.progress = 10_000;
                    self.common.stats.remaining_bytes = 0;
                } else {
                    shared.guest.memory.abandon_ballooned();
                }
                self.renew(true);
                None
            }
        })
    }
}

impl Driver {
    /// Refuses a descriptor that is no connection.
    pub(super) fn new(shared: Arc<Migration<Arriving, State>>, from: AcceptFrom) -> Result<Self> {
        let way = match from {
            AcceptFrom::Listener(listener) => Way::Listener(listener),
            AcceptFrom::Connected(fd) => Way::Connected(Channel::from_fd(fd)?),
        };
        let memory = Arc::clone(&shared.guest.memory);
        Ok(Driver {
            common: Common::new(shared),
            way: Some(way),
            receiver: None,
            hello: None,
            account: Account::new(memory),
            forgotten: Forgotten::default(),
            agreed: Agreed::default(),
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
        // It began anew when the connection came.
        stats.elapsed = stats.elapsed.max(elapsed);
        if let Some(Receiver { lane, .. }) = &self.receiver {
            stats.wire_bytes = lane.received();
            let counts = lane.counts();
            stats.data_pages = counts.data_pages;
            stats.zero_pages = counts.zero_pages;
            stats.ballooned_pages = counts.ballooned_pages;
        }
        stats.throughput = self.common.meter.rate(elapsed, stats.wire_bytes);
        stats.total_bytes = self
            .common
            .shared
            .guest
            .memory
            .with_map(|map| map.total().0);
        let seen = (stats.data_pages + stats.zero_pages) * crate::units::PAGE_SIZE;
        stats.remaining_bytes = stats.total_bytes.saturating_sub(seen);
        stats.advance();
        self.common.shared.handle.publish(stats);
    }

    /// What this side waits for and says on its connection, and the limits of that.
    fn with_lane<R>(&mut self, f: impl FnOnce(&mut Lane, &Waits<'_>) -> Result<R>) -> Result<R> {
        let Driver {
            common,
            receiver,
            limit,
            ..
        } = self;
        let receiver = receiver.as_mut().ok_or_else(no_connection)?;
        f(&mut receiver.lane, &waits(&common.shared, *limit))
    }

    fn next(&mut self, limit: Limit, what: &'static str) -> Result<Incomer> {
        self.with_lane(|lane, waits| lane.next(waits, limit, what))
    }

    fn tell_peer(&mut self) {
        let (Some(receiver), Some(error)) = (&mut self.receiver, &self.common.error) else {
            return;
        };
        if error.kind() != Kind::PeerGone {
            receiver
                .lane
                .abort(&self.common.shared.handle.cancel, error);
        }
    }

    /// Waits for the source. Of a connection that the VMM made, HELLO is read when agreeing.
    fn accept(&mut self) -> Result<Channel> {
        let shared = Arc::clone(&self.common.shared);
        match self.way.take() {
            Some(Way::Listener(listener)) => {
                let vmm = self.common.vmm.clone();
                let mut warn = |message| vmm.event(EventKind::Warning, message);
                let params = &shared.params;
                let arrival = gather(&listener, params, &shared.handle.cancel, &mut warn)?;
                self.hello = Some(arrival.hello);
                Ok(arrival.channel)
            }
            Some(Way::Connected(channel)) => Ok(channel),
            None => Err(Error::new(Kind::Internal, "accepted twice")),
        }
    }

    fn negotiate(&mut self) -> Result<()> {
        let Driver {
            common,
            receiver,
            limit,
            account,
            ..
        } = self;
        let receiver = receiver.as_mut().ok_or_else(no_connection)?;
        let lane = &mut receiver.lane;
        let (shared, vmm) = (&common.shared, &common.vmm);
        let waits = waits(shared, *limit);
        let map = || shared.guest.memory.map();
        self.agreed = negotiate(lane, &waits, self.hello.take(), vmm, map, account)?;
        receiver.agreed(self.agreed);
        Ok(())
    }

    /// Takes memory until the end marker.
    fn receive(&mut self) -> Result<()> {
        loop {
            let Driver {
                common,
                receiver,
                limit,
                account,
                ..
            } = self;
            let receiver = receiver.as_mut().ok_or_else(no_connection)?;
            match receiver.take(&waits(&common.shared, *limit))? {
                Came::Pages => {}
                Came::Marker(marker) => {
                    // Not what the source says if it goes back.
                    common.stats.pass = common.stats.pass.max(marker.pass);
                    if marker.is_final() {
                        receiver.finish();
                        // No pin is held while the VMM's operations run: they may change the map.
                        return account.finish();
                    }
                }
                Came::Other(Incomer::Control(Record::BlockAdded(theirs))) => {
                    account.added(&theirs)?;
                }
                Came::Other(Incomer::Control(Record::BlockRemoved { id })) => account.remove(id)?,
                Came::Other(other) => {
                    return Err(control::unexpected(
                        other.kind(),
                        "pages, a marker or a change of blocks",
                    ))
                }
            }
            self.renew(false);
        }
    }

    fn load(&mut self) -> Result<()> {
        let state = self.with_lane(|lane, waits| {
            blobs::receive(lane, waits, RecordType::State, Limit::never())
        })?;
        self.handover_limit = state.handover_limit;
        self.common.stats.state_bytes = state.bytes;
        // The VMM's devices look into memory while they load: all of it has to be here by now.
        self.agree_on_blocks()?;
        let begun = Instant::now();
        for stored in &state.list {
            self.common
                .vmm
                .call_that_makes_threads("load", |vmm| vmm.load(&stored.as_blob()))?;
            self.common.shared.handle.cancel.check("loading")?;
        }
        self.common
            .vmm
            .call_that_makes_threads("loaded", |vmm| vmm.loaded())?;
        self.common.stats.load = Some(begun.elapsed());
        Ok(())
    }

    /// What the source has said since its state: asked before it is loaded, and as the last thing
    /// before READY. Blocks may still go: one that is gone here has to be gone there, and the source's
    /// word of that may be on its way. Nothing else has a place here. A HANDOVER before READY is of a source that hands over a
    /// guest without knowing that it can run.
    fn agree_on_blocks(&mut self) -> Result<()> {
        let news = Timeout::new("the wait for the source's word of it", NEWS);
        // The block that is waited for, and until when: each has its own time.
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
                    self.account.remove(id)?;
                }
                (Ok(Some(other)), _) => {
                    let expected = "nothing but BLOCK_REMOVED before READY";
                    return Err(control::unexpected(other.kind(), expected));
                }
                (Err(e), Some((_, missing))) if e.kind() == Kind::Timeout && word.expired() => {
                    return Err(missing);
                }
                (Err(e), _) => return Err(e),
            }
        }
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
                // It was on its way when this side said that it is ready.
                Incomer::Control(Record::BlockRemoved { id }) => {
                    self.account.remove(id)?;
                    continue;
                }
                Incomer::Control(Record::Handover(handover))
                    if handover.token == self.agreed.token =>
                {
                    Ok(())
                }
                Incomer::Control(Record::Handover(_)) => Err(Error::new(
                    Kind::Protocol,
                    "the hand-over has another token than this session",
                )),
                other => Err(control::unexpected(other.kind(), "HANDOVER")),
            };
        }
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
        // If a cancel is asked for now, it comes before any `run`.
        self.common.too_late(error);
        Event::Late
    }
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

/// The wire's unit of a time.
fn micros(time: Option<Duration>) -> u64 {
    let time = time.unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
