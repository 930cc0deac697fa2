//! The source's driver. It carries out the actions of [`crate::migrate::switchover::source`] on a
//! thread of its own, and turns each outcome into the next event. It decides nothing.

mod background;
mod copy;
mod decided;
mod devices;
mod figures;
mod hand_over;
mod looking;
mod negotiate;
mod rest;
mod standing;
mod verify;

use super::advance::Advance;
use super::announced::Announced;
use super::asking::Asked;
use super::connect_to::ConnectTo;
use super::course::Course;
use super::devices::{self as streams, Streams};
use super::lane::Lane;
use super::lanes::{Lanes, Sending};
use super::leaving::Leaving;
use super::loaded::Loaded;
use super::postcopy::{Counts, Rest};
use super::rates::Rates;
use super::steer::Steer;
use super::unread::Unread;
use super::untouched::Untouched;
use crate::channel::{Io, Route};
use crate::dirty::consumer::Consumer;
use crate::error::{Error, Kind, Result};
use crate::migrate::common::{Common, Migration};
use crate::migrate::control::Blobs;
use crate::migrate::report::RENEW;
use crate::migrate::steering::operations::Measured;
use crate::migrate::steering::{Moment, Operations};
use crate::migrate::switchover::source::{Action, Event, State};
use crate::migrate::work::Work;
use crate::runtime::{Cancel, Limit};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::walk::{Outlet, Put, Walk};
use crate::wire::{self, HelloReply, Record, Token};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the migration's thread owns.
pub(super) struct Driver {
    common: Common<Leaving, State>,
    consumer: Arc<Consumer>,
    /// Whether the consumer is the caller's.
    lent: bool,
    route: Route,
    steer: Steer,
    lanes: Option<Lanes>,
    /// Blocks that the destination knows.
    announced: Announced,
    /// The pages that were sent without being read, for verifying.
    unread: Option<Arc<Unread>>,
    /// What the shared memory held at the pause, for verifying.
    untouched: Option<Untouched>,
    token: Token,
    we_started_tracking: bool,
    walk: Walk,
    /// How many poisoned pages are among those that were sent.
    lost: u64,
    /// The number of poisoned pages that the VMM was last told of.
    told_poisoned: u64,
    /// Whether the VMM was told that pages are copied although zero-copy sending was asked for.
    told_copies: bool,
    course: Course,
    ahead: Advance,
    rates: Rates,
    /// How long the destination took to answer HELLO: a bound of the round trip.
    greeted: Duration,
    /// How long the operations of both VMMs take, as stated or measured.
    operations: Operations,
    /// How long `pause` and `save` have taken.
    pauses: Measured,
    saves: Measured,
    /// Pages that were to be verified and were not compared.
    uncompared: u64,
    /// Of the pages that differed: those of memory that was handed over by descriptor, which were
    /// written between the pause and the hand-over.
    written_early: u64,
    /// Why the pause is being aborted.
    aborting: Option<String>,
    /// Bytes that were sent after the pause, before the device state.
    last_bytes: u64,
    /// The warnings of the last sync.
    warned: Vec<String>,
    blobs: Blobs,
    switchover: Limit,
    /// The state of the guest's devices, as it is read.
    streams: Streams,
    /// What the destination has said of it.
    loaded: Arc<Loaded>,
    /// The VMM was told that the pause waits for a device.
    told_wait: bool,
    /// The VMM was told that the state of devices grows too fast.
    told_growth: bool,
    /// The guest is to be sent ahead of its pages.
    to_postcopy: bool,
    /// The pages that follow the guest.
    rest: Option<Arc<Rest>>,
    /// What was done with such pages.
    counts: Arc<Counts>,
    /// The number of the last recovery.
    epoch: u32,
    /// What the destination chose at the beginning.
    agreed: Option<HelloReply>,
    /// What was sent over connections that are lost, and the pages that arrived over them since the
    /// switch, as [`Lanes::arrived`] has them.
    before: Put,
    sent_before: u64,
    arrived_before: [u64; 2],
    /// Both sides have agreed on a recovery, and no page has arrived over its connections.
    recovering: bool,
    /// The VMM's new connections for a recovery.
    recovery: Option<Route>,
    /// Ends attempts to recover: once, for good, because a resolved migration is not recovered any more.
    /// Made before the start, with postcopy: an interrupted migration waits also when no descriptor is left.
    attempts: Option<Cancel>,
    /// The migration is over and asks the consumer nothing any more: its figures stay as they are.
    ended: bool,
}

impl Work for Driver {
    type Machine = State;
    type Guest = Leaving;

    fn common(&mut self) -> &mut Common<Leaving, State> {
        &mut self.common
    }

    fn success(&self) -> String {
        let stood = self.common.stats.downtime.unwrap_or_default();
        let stood = format!("downtime {:.1} ms", stood.as_secs_f64() * 1e3);
        if !self.common.shared.params.verify {
            return stood;
        }
        let stats = &self.common.stats;
        let mut text = format!(
            "{stood}; {} pages verified, {} of them differ",
            stats.verified_pages,
            stats.mismatched_pages - self.written_early
        );
        if stats.shared_bytes > 0 {
            let written = self.written_early;
            text += &format!(", {written} pages of handed-over memory were written before `run`");
        }
        if self.uncompared > 0 {
            text += &format!(", {} not compared", self.uncompared);
        }
        text
    }

    fn enter(&mut self, state: State) {
        if state != State::Copying {
            self.steer.let_go();
        }
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
                *self.common.shared.guest.paused_at() = Some(begun);
                let params = &self.common.shared.params;
                self.switchover = params.switchover().from_now();
                let pacer = &self.common.shared.guest.pacer;
                pacer.override_rate(params.switchover_max_bandwidth);
                self.common.vmm.call("pause", |vmm| vmm.pause())?;
                self.stop_devices()?;
                self.common.stats.pause = Some(begun.elapsed());
                let stated = self.common.shared.params.expected.pause;
                self.operations.pause = self.pauses.took(stated, begun.elapsed());
                self.check_gate()?;
                let begun = Instant::now();
                self.sync_stopped()?;
                self.common.stats.last_sync = Some(begun.elapsed());
                self.check_gate()?;
                Some(match self.may_switch(Moment::Paused)? {
                    true => Event::Paused,
                    false => Event::DoesNotFit,
                })
            }
            Action::CallSave => {
                let begun = Instant::now();
                let mut blobs = Blobs::default();
                self.common.vmm.call("save", |vmm| vmm.save(&mut blobs))?;
                self.common.stats.save = Some(begun.elapsed());
                self.common.stats.state_bytes = blobs.bytes();
                let stated = self.common.shared.params.expected.save;
                self.operations.save = self.saves.took(stated, begun.elapsed());
                self.operations.state_bytes = Some(blobs.bytes());
                self.blobs = blobs;
                self.check_gate()?;
                Some(Event::Saved)
            }
            Action::SyncLast => {
                let begun = Instant::now();
                self.sync_stopped()?;
                let first = self.common.stats.last_sync.unwrap_or_default();
                self.common.stats.last_sync = Some(first + begun.elapsed());
                self.check_gate()?;
                if !self.may_switch(Moment::Saved)? {
                    // The consumer must not be frozen: what another consumer's sync finds before the
                    // guest runs on is a page of this migration too.
                    return Ok(Some(Event::DoesNotFit));
                }
                // From here on the guest writes nothing. Pages that other consumers' syncs find now
                // are not the guest's writes.
                self.consumer.freeze();
                self.note_shared()?;
                Some(Event::Synced)
            }
            Action::SendLast => {
                match self.to_postcopy {
                    true => self.switch()?,
                    false => self.send_last()?,
                }
                Some(Event::Sent)
            }
            Action::AwaitReady => {
                let begun = Instant::now();
                let ready = match self.rest {
                    Some(_) => self.await_ready_to_serve(),
                    None => self.await_ready(),
                };
                let ready = ready.map_err(|e| self.explain(e));
                self.common.stats.ready = Some(begun.elapsed());
                let ready = ready?;
                self.common.stats.load = Some(Duration::from_micros(ready.load_micros));
                if self.common.shared.params.verify {
                    self.common.stats.digest = Some(Duration::from_micros(ready.digest_micros));
                }
                Some(Event::PeerReady)
            }
            Action::CallRelease => {
                let begun = Instant::now();
                self.common.vmm.call("release", |vmm| vmm.release())?;
                self.common.stats.release = Some(begun.elapsed());
                self.check_gate()?;
                // Checked before the destination's message is read, which could only say that the
                // wait was too long.
                if !self.common.handover_counts() {
                    return Err(self
                        .too_late()
                        .context(format_args!("`release` took {:?}", begun.elapsed())));
                }
                // A destination that has given up meanwhile has sent an ABORT or closed the
                // connection. This is the last moment to find that and keep the guest.
                let listened = self.lanes()?.listen();
                listened.map_err(|e| self.explain(e))?;
                if self.rest.is_none() {
                    self.check_all_sent()?;
                }
                self.tell_written("");
                Some(Event::Released)
            }
            Action::TakeGate => {
                if !self.common.handover_counts() {
                    return Err(self.too_late());
                }
                let won = self.common.take_gate();
                Some(if won { Event::GateWon } else { Event::GateLost })
            }
            Action::SendHandover => {
                if !self.common.handover_counts() {
                    let error = self.too_late();
                    self.common.too_late(error);
                    return Ok(Some(Event::Late));
                }
                let io = self.until_decided().of("HANDOVER");
                let record = Record::Handover(wire::Handover { token: self.token });
                self.first()?.say(&record, &io)?;
                self.common.done = Some(Event::HandoverSent);
                self.common.done
            }
            Action::AwaitRunning => {
                let begun = Instant::now();
                let run = self.await_running();
                if run.is_err() {
                    self.note_abort();
                }
                self.common.stats.handover = Some(begun.elapsed());
                self.common.stats.run = Some(Duration::from_micros(run?));
                self.common.done = Some(match self.common.shared.params.verify {
                    _ if self.rest.is_some() => Event::PeerRunningToServe,
                    true => Event::PeerRunningToVerify,
                    false => Event::PeerRunning,
                });
                self.stood_until_now();
                self.account_for();
                self.common.done
            }
            Action::Verify => {
                // A defect in the comparison changes nothing either.
                self.common.done = Some(Event::Verified);
                self.verify();
                self.common.done
            }
            Action::WaitOut => {
                loop {
                    let left = self.common.until_decided();
                    if left.is_zero() {
                        break;
                    }
                    // In short sleeps, so that the thread soon notices when the host was suspended
                    // meanwhile.
                    std::thread::sleep(left.min(RENEW));
                }
                Some(match self.rest {
                    Some(_) => Event::DecidedToServe,
                    None => Event::Decided,
                })
            }
            Action::Serve => {
                self.serve()?;
                Some(Event::Served)
            }
            Action::AwaitRecovery => Some(self.await_recovery()?),
            Action::Reconnect => {
                self.reconnect()?;
                Some(Event::Recovered)
            }
            Action::CallResume => {
                if let (Some(_), Some(lanes)) = (self.rest.take(), &mut self.lanes) {
                    // Nobody may read a page on its way out while the guest writes it again.
                    lanes.stop_serving();
                }
                self.end_following();
                self.consumer.unfreeze();
                self.tell_written("; the guest, which runs on here, finds it written");
                let vmm = &self.common.vmm;
                let resumed = self.common.shared.guest.devices.resume(vmm);
                let resumed = resumed
                    .and_then(|()| vmm.call_that_makes_threads("resume", |vmm| vmm.resume()));
                if resumed.is_ok() {
                    self.common.done = Some(Event::Resumed);
                }
                match self.aborting.take().filter(|_| resumed.is_ok()) {
                    Some(why) => self.pause_aborted(&why),
                    None => self.stood_until_now(),
                }
                resumed?;
                self.common.done
            }
            Action::PutBack => {
                if let Some(lanes) = &mut self.lanes {
                    lanes.give_up();
                }
                None
            }
            Action::TellPeer => {
                // After a success there is no error, whatever failed later.
                let error = self.common.shared.handle.error();
                if let (Some(lanes), Some(error)) = (&mut self.lanes, error) {
                    lanes.abort(&error);
                }
                None
            }
            Action::StopTracking => {
                self.ended = true;
                self.end_following();
                self.end_devices();
                if !self.lent {
                    // Nobody takes pages from this consumer any more.
                    self.consumer.abandon();
                    return Ok(None);
                }
                self.consumer.skip_ballooned(false);
                self.consumer.unfreeze();
                if self.we_started_tracking {
                    // A failure here does not change the outcome of the migration.
                    if let Err(e) = self.consumer.stop() {
                        self.common
                            .vmm
                            .event(EventKind::Warning, format!("stopping to track: {e}"));
                    }
                }
                // What the destination has in common with this side counts as delivered.
                let dirty = self.common.shared.handle.state() != State::Completed;
                self.consumer.take_in(dirty)?;
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
    /// Fails when a descriptor is no connection.
    pub(super) fn new(
        shared: Arc<Migration<Leaving, State>>,
        to: ConnectTo,
        decider: Asked,
    ) -> Result<Self> {
        let route = to.route(shared.params.channels, shared.params.postcopy)?;
        let walk = Walk::over(shared.guest.tracker.memory())?;
        let lent = shared.guest.lent().clone();
        let operations = shared.params.expected;
        let devices = shared.guest.tracker.memory().devices().in_use();
        shared.guest.devices.hold(devices);
        let streams = Streams::of(shared.guest.devices.list(), streams::watch(&shared))?;
        let attempts = shared.params.postcopy;
        let attempts = attempts.then(|| Cancel::under(&shared.handle.cancel));
        Ok(Driver {
            attempts: attempts.transpose()?,
            lent: lent.is_some(),
            consumer: lent.unwrap_or_else(|| Arc::new(shared.guest.tracker.consumer())),
            steer: Steer::new(&shared, decider)?,
            common: Common::new(shared),
            route,
            lanes: None,
            announced: Announced::default(),
            unread: None,
            untouched: None,
            token: [0; 16],
            we_started_tracking: false,
            walk,
            lost: 0,
            told_poisoned: 0,
            told_copies: false,
            course: Course::default(),
            ahead: Advance::default(),
            rates: Rates::default(),
            greeted: Duration::ZERO,
            operations,
            pauses: Measured::default(),
            saves: Measured::default(),
            uncompared: 0,
            written_early: 0,
            aborting: None,
            last_bytes: 0,
            warned: Vec::new(),
            blobs: Blobs::default(),
            switchover: Limit::never(),
            streams,
            loaded: Arc::default(),
            told_wait: false,
            told_growth: false,
            to_postcopy: false,
            rest: None,
            counts: Arc::default(),
            epoch: 0,
            agreed: None,
            before: Put::default(),
            sent_before: 0,
            arrived_before: [0; 2],
            recovering: false,
            recovery: None,
            ended: false,
        })
    }

    /// What ends a wait for the destination: a cancel, or an error on another channel.
    fn stop(&self) -> Cancel {
        match &self.lanes {
            Some(lanes) => lanes.stop().clone(),
            None => self.common.shared.handle.cancel.clone(),
        }
    }

    fn lanes(&mut self) -> Result<&mut Lanes> {
        self.lanes.as_mut().ok_or_else(no_connection)
    }

    /// The lane of channel 0, which carries every record that is not about pages.
    fn first(&mut self) -> Result<&mut Lane> {
        self.lanes().map(Lanes::first)
    }

    /// The walk, the consumer whose pages it takes, and the lanes that send them.
    fn sending<'a, 'io>(
        &'a mut self,
        io: &'a Io<'io>,
    ) -> Result<(&'a mut Walk, &'a Consumer, Sending<'a, 'io>)> {
        let sending = Sending {
            lanes: self.lanes.as_mut().ok_or_else(no_connection)?,
            announced: &mut self.announced,
            memory: self.common.shared.guest.tracker.memory(),
            params: &self.common.shared.params,
            pass: self.common.stats.pass,
            io,
        };
        Ok((&mut self.walk, &self.consumer, sending))
    }

    /// The limit of the whole migration: its switchover must have come by then.
    fn total(&self) -> Limit {
        self.common.shared.params.total(self.common.begun)
    }

    /// When sending failed because the peer went away, the peer's own reason replaces `error`.
    fn explain(&mut self, error: Error) -> Error {
        let error = match &mut self.lanes {
            Some(lanes) => lanes.explain(error),
            None => error,
        };
        self.streams.naming_untaken(error)
    }

    /// Sends some pages. `None` when the walk has come to its end.
    fn step(&mut self, most: Pages, io: &Io<'_>) -> Result<Option<Put>> {
        loop {
            let (walk, consumer, mut lanes) = self.sending(io)?;
            let put = lanes
                .progress()
                .and_then(|()| walk.step(consumer, most, &mut lanes));
            self.tell_poisoned();
            // When pages were put back behind the walk's position, the walk takes them again.
            if !matches!(put, Ok(None)) || !self.lanes()?.take_again() {
                return put;
            }
        }
    }

    /// Tells the VMM how many pages are poisoned, when it does not know that number yet.
    fn tell_poisoned(&mut self) {
        let lost = self.lanes.as_ref().map_or(0, |l| l.put().poisoned_pages);
        if lost == std::mem::replace(&mut self.lost, lost) {
            return;
        }
        let memory = self.common.shared.guest.tracker.memory();
        let pages = memory.poisoned_pages();
        if pages == std::mem::replace(&mut self.told_poisoned, pages) {
            return;
        }
        let text = format!(
            "{pages} pages whose contents are declared lost are not sent: {}",
            memory.describe_poisoned()
        );
        self.common.vmm.event(EventKind::Warning, text);
    }
}

fn no_connection() -> Error {
    Error::new(Kind::Internal, "no connection in this state")
}
