//! The source's driver. It carries out the actions of [`crate::migrate::switchover::source`] on a
//! thread of its own, and turns each outcome into the next event. It decides nothing.

mod background;
mod copy;
mod devices;
mod hand_over;
mod looking;
mod negotiate;
mod rest;
mod verify;

use super::advance::Advance;
use super::announced::Announced;
use super::asking::Asked;
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
use crate::channel::handed_in::handed_in;
use crate::channel::{Channel, Endpoint, Io, Route};
use crate::dirty::consumer::Consumer;
use crate::dirty::When;
use crate::error::{Error, Kind, Result};
use crate::migrate::common::{Common, Migration};
use crate::migrate::control::Blobs;
use crate::migrate::params::PageChecksums;
use crate::migrate::report::{LaneState, LaneStats, ZeroCopyState, RENEW};
use crate::migrate::steering::budget::millis;
use crate::migrate::steering::forecast::Forecast;
use crate::migrate::steering::operations::Measured;
use crate::migrate::steering::{Moment, Operations, Verdict};
use crate::migrate::switchover::source::{Action, Event, State};
use crate::migrate::switchover::window::MARGIN;
use crate::migrate::work::Work;
use crate::runtime::{Cancel, Limit, Timeout};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::walk::{self, Outlet, Put, Walk, BATCH_PAGES};
use crate::wire::{self, HelloReply, Record, Token};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time between two looks at whether the removal of a block has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Where an outgoing migration gets its connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectTo {
    /// An endpoint to which brant connects.
    Endpoint(Endpoint),
    /// A connected stream socket that the VMM made, for one channel. The socket is brant's from
    /// here on.
    Connected(OwnedFd),
    /// Connected stream sockets for [`Params::channels`](crate::migrate::Params::channels)
    /// channels: one for each, channel 0 first; with
    /// [`Params::postcopy`](crate::migrate::Params::postcopy) one more behind them. Messages call socket `n` of the list `fds[n]`.
    ConnectedAll(Vec<OwnedFd>),
}

impl ConnectTo {
    /// The way to the destination for `channels` channels, and for an `urgent` lane. Descriptors that
    /// are no connections are refused, and so is another number of them.
    pub(super) fn route(self, channels: u32, urgent: bool) -> Result<Route> {
        let wanted = channels as usize + usize::from(urgent);
        let count = match &self {
            ConnectTo::Endpoint(_) => wanted,
            ConnectTo::Connected(_) => 1,
            ConnectTo::ConnectedAll(sockets) => sockets.len(),
        };
        if count != wanted {
            let more = match urgent {
                true => ", and one more for postcopy",
                false => "",
            };
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "expected a connected socket for each channel, {channels} by the parameters{more}; \
                     found {count}"
                ),
            ));
        }
        Ok(match self {
            ConnectTo::Endpoint(endpoint) => Route::Endpoint(endpoint),
            ConnectTo::Connected(socket) => Route::Connected([Channel::from_fd(socket)?].into()),
            ConnectTo::ConnectedAll(sockets) => Route::Connected(handed_in(sockets)?.into()),
        })
    }
}

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
        Ok(Driver {
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
            ended: false,
        })
    }

    /// Brings the figures up to date and notifies the VMM: when `now` is set, or when the last time
    /// is long enough ago.
    fn renew(&mut self, now: bool) {
        let Some(at) = self.common.renewed.due(now) else {
            return;
        };
        let elapsed = at - self.common.begun;
        let tracked = self.consumer.stats();
        let remaining = self.consumer.to_read();
        let stats = &mut self.common.stats;
        stats.elapsed = elapsed;
        if let Some(lanes) = &self.lanes {
            stats.wire_bytes = self.sent_before + lanes.sent();
            stats.unacknowledged_pages = lanes.unacknowledged();
            let mut put = lanes.put();
            put += self.before;
            stats.data_pages = put.data_pages;
            stats.zero_pages = put.zero_pages;
            stats.hole_pages = put.hole_pages;
            stats.ballooned_pages = put.ballooned_pages;
            stats.poisoned_pages = put.poisoned_pages;
            stats.compressed_pages = put.compressed_pages;
            stats.compressed_bytes = put.compressed_bytes;
            stats.delta_pages = put.delta_pages;
            stats.delta_saved_bytes = put.delta_saved;
            stats.delta_missed_pages = put.delta_misses;
            stats.delta_overflowed_pages = put.delta_overflows;
            stats.uneven = lanes.uneven();
            let zero_copy = lanes.zero_copy();
            stats.zero_copied_bytes = zero_copy.without.0;
            stats.copied_anyway_bytes = zero_copy.anyway.0;
            stats.zero_copy_refused = zero_copy.refused;
            stats.encoded_pages = put.copied_pages;
            let checksums = self.common.shared.params.page_checksums == PageChecksums::On;
            stats.zero_copy = ZeroCopyState::of(&zero_copy, checksums, put.copied_pages > 0);
            // In the first pass, pages may follow that are not worth compressing.
            let for_good = match stats.zero_copy {
                ZeroCopyState::Encoded => checksums || stats.pass > 1,
                _ => true,
            };
            let off = stats.zero_copy.why_off();
            let off = off.filter(|_| for_good && !self.told_copies);
            self.told_copies |= off.is_some();
            if let Some(why) = off {
                let text = format!("pages are copied when they are sent: {why}");
                self.common.vmm.event(EventKind::Warning, text);
            }
            let shared = &self.common.shared;
            let over = self.ended;
            shared
                .handle
                .publish_lanes(shared.params.channels, |stats| {
                    lanes.fill(stats);
                    if over {
                        let closed = |lane: &mut LaneStats| lane.state = LaneState::Closed;
                        stats.iter_mut().for_each(closed);
                    }
                });
        }
        let stats = &mut self.common.stats;
        [stats.requests, stats.requested_pages] = self.counts.now();
        // Of a session that was given up, the pages that did not go stay in the figures.
        let state = self.common.shared.handle.state();
        let interrupted = matches!(state, State::Interrupted | State::GivenUp);
        if self.ended {
            // As they were.
        } else if self.rest.is_some() || interrupted {
            let now = self.lanes.as_ref().map_or([0; 2], Lanes::arrived);
            [stats.urgent_pages, stats.bulk_pages] = sum(self.arrived_before, now);
            stats.missing_pages = remaining.0 + stats.unacknowledged_pages;
            if self.recovering && now != [0; 2] {
                stats.recoveries += 1;
                self.recovering = false;
            }
        } else if !matches!(state, State::Unanswered) {
            stats.missing_pages = 0;
        }
        stats.throughput = self.common.meter.rate(elapsed, stats.wire_bytes);
        stats.total_bytes = self
            .common
            .shared
            .guest
            .tracker
            .memory()
            .with_map(|map| map.total().0);
        if stats.pass == 0 {
            // Before the first pass marks all of memory, nothing is pending although all memory
            // remains.
            stats.remaining_bytes = stats.total_bytes.saturating_sub(stats.shared_bytes);
        } else if !self.ended {
            stats.remaining_bytes = remaining.bytes().0;
        }
        let left = self.streams.left();
        stats.device_left_bytes = left.running.saturating_add(left.stopped);
        stats.device_running_bytes = self.streams.running();
        stats.device_stopped_bytes = self.streams.stopped();
        stats.device_time = self.streams.time;
        stats.syncs = tracked.syncs;
        stats.found_pages = tracked.found.0;
        stats.clear_calls = tracked.clear_calls;
        stats.longest_clear = tracked.longest_clear;
        stats.put_back_pages = tracked.put_back.0;
        stats.hinted_pages = tracked.hinted.0;
        let facts = self.facts(Moment::Walking);
        let measured = self.course.bandwidth.estimate();
        let stats = &mut self.common.stats;
        if let Some(measured) = measured {
            stats.bandwidth = Some(measured as u64);
        }
        stats.dirty_pages_per_second = facts.dirty_rate.map(|rate| rate as u64);
        stats.downtime_limit = Some(self.steer.limit());
        stats.throttle = self.steer.throttle().into();
        stats.limited_vcpus = self.steer.limited() as u64;
        stats.stall = self.steer.stalled().map(|stalled| stalled.cause);
        if self.ended {
            self.common.shared.handle.publish(stats);
            return;
        }
        stats.unacknowledged_bytes = facts.unacknowledged.0;
        stats.round_trip = facts.round_trip;
        // The cap of the switchover alone is no measure of the bandwidth: the link may be slower.
        let link = measured.is_some() || facts.stated;
        stats.switchover_bandwidth = facts.bandwidth.filter(|_| link).map(|used| used as u64);
        if self.common.shared.guest.stood().is_none() {
            let parts = facts.parts();
            if stats.pass > 0 && (link || facts.last_pass.is_some()) {
                stats.expected_downtime = facts.expected_downtime().or(stats.expected_downtime);
            }
            let fixed = parts.unwrap_or_default().fixed().total();
            let limit = self.steer.limit();
            stats.predict(limit.saturating_sub(fixed), facts.bandwidth);
        }
        self.look_ahead(&facts);
        self.common.shared.handle.publish(&self.common.stats);
    }

    /// Ends the downtime: the paused guest runs again, or nobody knows when it will.
    fn stood_until_now(&mut self) {
        if let Some(stood) = self.common.shared.guest.stood() {
            self.common.stats.downtime = Some(stood);
        }
    }

    /// Harvests all logs of a guest that stands still.
    fn sync_stopped(&self) -> Result<()> {
        let cancel = &self.common.shared.handle.cancel;
        self.consumer.sync_unless(When::Stopped, cancel).map(drop)
    }

    /// Whether a guest that stands still is switched over, or switched to postcopy.
    fn may_switch(&mut self, moment: Moment) -> Result<bool> {
        if !self.to_postcopy {
            return self.judge(moment);
        }
        let against = self.against_switch(moment);
        self.aborting = against.as_ref().map(|why| why.message().to_owned());
        Ok(against.is_none())
    }

    /// Has the decider judge the pause. Returns whether the switchover goes on.
    fn judge(&mut self, moment: Moment) -> Result<bool> {
        let facts = self.facts(moment);
        match self.steer.judge(&facts)? {
            Verdict::GoThrough => Ok(true),
            Verdict::GiveUp(error) => Err(error),
            Verdict::Resume => {
                let expected = facts.expected_downtime().unwrap_or_default();
                self.aborting = Some(format!(
                    "the downtime would have been {} ({} so far, then {})",
                    millis(expected),
                    millis(facts.stood),
                    facts.parts().unwrap_or_default().describe()
                ));
                Ok(false)
            }
        }
    }

    /// The guest runs again after an aborted pause: forgets the pause and records its length.
    fn pause_aborted(&mut self, why: &str) {
        let guest = &self.common.shared.guest;
        let stood = guest.paused_at().take().map(|at| at.elapsed());
        let stood = stood.unwrap_or_default();
        guest.pacer.end_override();
        self.blobs = Blobs::default();
        if std::mem::take(&mut self.to_postcopy) {
            self.steer.drop_postcopy();
        }
        self.streams.go_on();
        // Devices may have to be waited for again.
        self.told_wait = false;
        let stats = &mut self.common.stats;
        stats.forget_pause(stood);
        let text = format!("the pause was aborted after {}: {why}", millis(stood));
        self.common.vmm.event(EventKind::Downtime, text);
    }

    /// Divides the downtime into its parts, and tells the VMM when it was longer than the limit. By
    /// now nothing can be undone, because the destination was ready.
    fn account_for(&mut self) {
        let limit = self.steer.limit();
        let stats = &mut self.common.stats;
        stats.account_for(self.last_bytes);
        let stood = stats.downtime.unwrap_or_default();
        let Some(over) = stood.checked_sub(limit).filter(|over| !over.is_zero()) else {
            return;
        };
        stats.overrun = over;
        let text = format!(
            "the guest stood still for {}, {} longer than the downtime limit: {}",
            millis(stood),
            millis(over),
            stats.why_longer(limit)
        );
        self.common.vmm.event(EventKind::Downtime, text);
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

    fn report(&mut self) {
        if self.common.shared.handle.state() == State::Completed {
            self.common.stats.progress = self.ahead.done();
            let stats = &self.common.stats;
            let outcome = Forecast {
                converges: true,
                passes: stats.pass,
                time: self.common.begun.elapsed(),
                bytes: self.sent() as f64,
                downtime: stats.downtime.unwrap_or_default(),
                ..Forecast::default()
            };
            self.common.shared.guest.foresight.completed(outcome);
            self.common.stats.time_left = Some(Duration::ZERO);
            self.common.stats.remaining_bytes = 0;
        } else {
            self.common.stats.time_left = None;
            let guest = &self.common.shared.guest;
            guest.foresight.freeze(Instant::now(), guest.pacer.sent());
        }
        self.renew(true);
    }

    fn too_late(&self) -> Error {
        Error::new(
            Kind::Timeout,
            format!(
                "the destination was ready and the hand-over was not sent within the hand-over \
                 timeout of {:?}: a later one would run nothing, so the guest stays here",
                self.common.shared.params.handover_timeout
            ),
        )
    }

    /// The limits of a wait until the destination must have decided. No cancel ends it: the time
    /// for one is over.
    fn until_decided(&self) -> Io<'static> {
        let left = self.common.until_decided();
        let of = Timeout::new(
            "the hand-over timeout and one second, counted from READY,",
            self.common.shared.params.handover_timeout + MARGIN,
        );
        Io::patient(of).within(of.with_left(left))
    }

    /// Called between two steps of the switchover. Fails when somebody has cancelled or the time is
    /// up.
    fn check_gate(&self) -> Result<()> {
        self.common.shared.handle.cancel.check("the switchover")?;
        if self.switchover.expired() {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "{} ran out while the guest stood still: it was {}",
                    self.switchover,
                    self.common.shared.handle.state().name()
                ),
            ));
        }
        Ok(())
    }

    /// Checks that no page is left to send. The guest stands still, but two things can have
    /// happened since the last walk. The VMM may have added memory. And the VMM may be removing a
    /// block, whose pages are set aside: when the block is gone, nobody needs them, but when the
    /// removal is refused, the destination would lack them. So this waits for the removal to end.
    fn check_all_sent(&self) -> Result<()> {
        let memory = self.common.shared.guest.tracker.memory();
        loop {
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
            if self.consumer.pending_in(&memory.map()) == Some(Pages(0)) {
                return Ok(());
            }
            self.check_gate()?;
            std::thread::sleep(LOOK_AGAIN);
        }
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

    /// Sends all pages that are left, the end marker and the device state. The guest stands still.
    fn send_last(&mut self) -> Result<()> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.common.shared);
        let stop = self.stop();
        let io = Io::until(&stop, shared.params.io())
            .within(self.switchover)
            .of("the last pages");
        let before = self.pages_sent();
        let bytes = self.sent();
        self.walk.restart();
        let mut batch_pages = BATCH_PAGES;
        // Until two walks in a row find nothing: the first of them may have begun in the middle of
        // memory.
        loop {
            self.check_gate()?;
            match self.step(batch_pages, &io) {
                Ok(Some(put)) => batch_pages = walk::next_size(&put, batch_pages),
                Ok(None) => break,
                Err(e) => return Err(self.explain(e)),
            }
        }
        let result = self.send_end(bytes, &io).map_err(|e| self.explain(e));
        self.common.stats.last_send = Some(begun.elapsed());
        self.common.stats.last_pages = self.pages_sent() - before;
        result
    }

    fn pages_sent(&self) -> u64 {
        let put = self.lanes.as_ref().map(Lanes::put).unwrap_or_default();
        put.data_pages + put.zero_pages
    }

    fn send_end(&mut self, before: u64, io: &Io<'_>) -> Result<()> {
        self.lanes()?.end_urgent()?;
        if self.streams.is_empty() {
            self.sending(io)?.2.finish()?;
            self.last_bytes = self.sent().saturating_sub(before);
        } else {
            self.end_running(io)?;
            self.sending(io)?.2.end_pages()?;
            self.last_bytes = self.sent().saturating_sub(before);
            self.send_stopped(io)?;
        }
        // The destination needs the limit before its READY: from that record on it counts the time
        // in which a hand-over counts.
        let limit = self.common.shared.params.handover_timeout;
        let lane = self.lanes.as_mut().ok_or_else(no_connection)?.first();
        lane.send_state(&self.blobs, limit, &io.of("device state"))
    }

    fn await_ready(&mut self) -> Result<wire::Ready> {
        // A block may still be removed, at both sides. The destination is not ready before it knows
        // that each block which it lacks is gone at the source too.
        let ready = self.hear_ready(|driver, io| {
            let memory = driver.common.shared.guest.tracker.memory();
            let news = driver.announced.news(memory, None)?;
            let lanes = driver.lanes()?;
            if !news.is_empty() {
                // By then nothing about the block is on its way on any channel.
                lanes.await_further(&io.of("an acknowledgement"))?;
            }
            lanes.first().say_encoded(&news, &io.of("BLOCK_REMOVED"))
        })?;
        // The last acknowledgements of the other channels may still be on their way.
        let (stop, timeout) = (self.stop(), self.common.shared.params.switchover());
        let io = Io::until(&stop, timeout).within(self.switchover);
        let lanes = self.lanes()?;
        lanes.await_further(&io.of("an acknowledgement"))?;
        lanes.rejoin()?;
        let left = lanes.unacknowledged();
        if left > 0 {
            return Err(Error::new(
                Kind::Protocol,
                format!("the destination is ready and has not acknowledged {left} pages"),
            ));
        }
        self.open_window();
        Ok(ready)
    }

    /// Waits for READY. `tell` says what the destination may have to know first; it is called again
    /// when a block is being removed meanwhile.
    fn hear_ready(
        &mut self,
        tell: impl Fn(&mut Driver, &Io<'_>) -> Result<()>,
    ) -> Result<wire::Ready> {
        let (stop, timeout) = (self.stop(), self.common.shared.params.switchover());
        let io = Io::until(&stop, timeout)
            .within(self.switchover)
            .of("READY");
        loop {
            self.walk.removals().lower();
            tell(self, &io)?;
            let lane = self.lanes.as_mut().ok_or_else(no_connection)?.first();
            match lane.hear_after_acknowledgements(self.walk.removals(), &io)? {
                Some(Record::Ready(ready)) => return Ok(ready),
                Some(other) => return Err(lane.unexpected(other.record_type(), "READY")),
                None => {}
            }
        }
    }

    /// The window opens after the receipt of READY, so that the destination's window began earlier.
    fn open_window(&mut self) {
        let limit = self.common.shared.params.handover_timeout;
        self.common.open_window(limit);
    }

    fn await_running(&mut self) -> Result<u64> {
        let io = self.until_decided().of("RUNNING");
        let lane = self.first()?;
        match lane.hear(&io)? {
            Record::Running(running) => Ok(running.run_micros),
            other => Err(lane.unexpected(other.record_type(), "RUNNING")),
        }
    }
}

fn sum(one: [u64; 2], other: [u64; 2]) -> [u64; 2] {
    [one[0] + other[0], one[1] + other[1]]
}

fn no_connection() -> Error {
    Error::new(Kind::Internal, "no connection in this state")
}
