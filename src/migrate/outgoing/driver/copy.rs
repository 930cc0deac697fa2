//! The passes: memory is sent while the guest runs, until the decider says that the rest fits. This
//! part of the source's driver decides nothing. It shows the facts to the decider.

use super::Driver;
use crate::channel::pacing::burst_bytes;
use crate::channel::Io;
use crate::dirty::consumer::Cursor;
use crate::dirty::tracker::{StartWith, SyncReport};
use crate::dirty::When;
use crate::error::{Error, Kind, Result};
use crate::migrate::outgoing::course::{At, Synced};
use crate::migrate::outgoing::lanes::Lanes;
use crate::migrate::outgoing::still::StillWatch;
use crate::migrate::steering::budget::{millis, ROUND_TRIPS};
use crate::migrate::steering::timed::proven;
use crate::migrate::steering::{Facts, Moment, Next};
use crate::runtime::{probes, Timeout};
use crate::units::{Bytes, Pages, PAGE_SHIFT};
use crate::vmm::EventKind;
use crate::walk::{self, Outlet, BATCH_PAGES};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The guest runs and writes while the destination is told of ballooned pages. When the telling
/// takes longer than this, the promise about the downtime is out of date, and the decider is asked
/// again. That happens only [`TELL_AGAIN`] times, because a guest may give pages back all the time.
const TELLING: Duration = Duration::from_millis(2);
/// An error of a migration whose time ran out tells of a link that stood still for so long.
const SILENT: Duration = Duration::from_secs(1);
/// How often the decider is asked again.
const TELL_AGAIN: u32 = 4;

impl Driver {
    /// Sends memory until the decider says that the rest fits. Called again after an aborted pause.
    pub(super) fn copy(&mut self) -> Result<()> {
        match self.common.stats.pass {
            0 => self.begin_copying()?,
            _ => self.steer.go_on(self.rates.fresh().vcpus),
        }
        self.make_passes()
    }

    fn begin_copying(&mut self) -> Result<()> {
        self.begin_devices()?;
        self.consumer
            .skip_ballooned(self.common.shared.params.skip_ballooned);
        if self.consumer.is_started() {
            self.consumer.mark_all();
        } else {
            self.consumer.start(StartWith::Everything)?;
            self.we_started_tracking = true;
        }
        if let Some(warning) = self.common.shared.guest.tracker.warning() {
            self.common
                .vmm
                .event(EventKind::Warning, warning.to_owned());
        }
        self.course.begin(Instant::now(), self.consumer.stats());
        self.check_distance()
    }

    fn make_passes(&mut self) -> Result<()> {
        let mut told_again = 0;
        loop {
            self.common.stats.pass += 1;
            probes::pass_begin(self.common.stats.pass);
            let read = self.streams.running();
            let all_sent = self.walk()?;
            self.judge_devices()?;
            let (report, found) = self.sync(At::End { all_sent })?;
            let to_send = report.pending - report.ballooned;
            probes::pass_end(self.common.stats.pass, found.0, to_send.0);
            self.renew(true);
            self.common.vmm.event(
                EventKind::Pass,
                format!(
                    "pass {} done: {} pages found dirty, {} to send",
                    self.common.stats.pass, found, to_send
                ),
            );
            self.common.shared.handle.cancel.check("the migration")?;
            let facts = self.facts(Moment::Synced);
            let next = self.steer.ask(&facts, Some(&self.rates.fresh()))?;
            self.follow_speed();
            self.common.shared.guest.blockers.check()?;
            match next {
                Next::SwitchOver { .. } if !self.devices_may_pause() => {
                    self.send_initial()?;
                    self.await_turn(false);
                }
                Next::SwitchOver { expected } => {
                    let begun = Instant::now();
                    let told = self.send_unread()?;
                    // The guest wrote meanwhile, and the promised downtime does not cover those
                    // writes.
                    let took = begun.elapsed();
                    let again = told && took > TELLING && told_again < TELL_AGAIN;
                    let knowingly = self.steer.knowingly();
                    if knowingly.is_some() || (took <= self.steer.limit() && !again) {
                        if let Some(why) = knowingly {
                            let text = format!(
                                "the guest is paused for about {}, because {why}",
                                millis(expected)
                            );
                            self.common.vmm.event(EventKind::Downtime, text);
                        }
                        // The promise is kept unchanged, to be compared with the real downtime.
                        self.common.stats.promised_downtime = Some(expected);
                        self.common.stats.promised = facts.parts().unwrap_or_default();
                        return Ok(());
                    }
                    told_again += 1;
                    self.await_turn(false);
                }
                Next::Postcopy { why } if self.begin_switch(why)? => return Ok(()),
                Next::Postcopy { .. } => self.await_turn(false),
                Next::GiveUp(error) => return Err(self.naming_who_waits(error)),
                Next::GoOn | Next::Sync if self.devices_go_on(read) => {}
                Next::GoOn | Next::Sync => self.await_turn(self.consumer.pending().0 == 0),
            }
        }
    }

    /// Makes ready for a switch to postcopy, because of `why`. Returns whether it comes now. An order is
    /// dropped where the guest would stand still for too long; where the policy wants the switch, the
    /// migration fails then.
    fn begin_switch(&mut self, why: &str) -> Result<bool> {
        self.send_unread()?;
        let against = match self.common.shared.guest.devices.any() {
            true => Some(Error::new(
                Kind::Unsupported,
                "the guest has devices whose state is streamed, and postcopy does not serve them",
            )),
            false => self.against_switch(Moment::Synced),
        };
        let Some(against) = against else {
            let text = format!("the guest is sent ahead of its memory, because {why}");
            self.common.vmm.event(EventKind::Downtime, text);
            self.promise_switch();
            self.to_postcopy = true;
            return Ok(true);
        };
        if !self.steer.postcopy_is_ordered() {
            return Err(against);
        }
        self.steer.drop_postcopy();
        self.common
            .vmm
            .event(EventKind::Downtime, against.message().to_owned());
        Ok(false)
    }

    /// Waits until the next pass may begin, when passes would follow one another too closely.
    /// `idle` says that nothing is pending, so that the decider waits for something else than a
    /// smaller rest.
    fn await_turn(&mut self, idle: bool) {
        let wait = self.course.passes.next(self.common.begun.elapsed(), idle);
        if !wait.is_zero() {
            self.common.shared.handle.cancel.wait(wait);
        }
    }

    /// Harvests the logs at a point of the pass, and stores the result. Also returns how many pages
    /// were found in the pass so far, by other consumers' syncs too.
    pub(super) fn sync(&mut self, at: At) -> Result<(SyncReport, Pages)> {
        let cancel = &self.common.shared.handle.cancel;
        let report = self.consumer.sync_unless(When::Running, cancel)?;
        // When the wait was cancelled, its error is of no interest.
        cancel.check("syncing")?;
        // When a log fails at each sync, the VMM is told once.
        if report.warnings != self.warned {
            for warning in &report.warnings {
                self.common.vmm.event(EventKind::Warning, warning.clone());
            }
            self.warned.clone_from(&report.warnings);
        }
        let memory = self.common.shared.guest.tracker.memory();
        let sync = Synced {
            took: report.time,
            tracked: self.consumer.stats(),
            total: memory.with_map(|map| map.total().pages_down()),
            observed: report.observed,
            pending: report.pending - report.ballooned,
        };
        let (now, pass) = (Instant::now(), self.common.stats.pass);
        let found = self.course.synced(now, self.common.begun, pass, at, &sync);
        self.common.stats.sync = Some(report.time);
        self.count_vcpus()?;
        Ok((report, found))
    }

    /// Measures how fast each vCPU has written since the last call.
    pub(super) fn count_vcpus(&mut self) -> Result<()> {
        let counts = self.consumer.tracker().allowed_counts();
        self.rates.counted(self.common.begun.elapsed(), counts)
    }

    /// Tells the destination which pages the sync found ballooned or free, so that this takes no
    /// time while the guest stands still. Returns whether there were any.
    fn send_unread(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.common.shared);
        // The decider may switch over at the very moment when the time is up. Then this must end
        // within the downtime limit.
        let total = match self.total() {
            total if total.expired() => {
                Timeout::new("the downtime limit", self.steer.limit()).from_now()
            }
            total => total,
        };
        let stop = self.stop();
        let watch = self.watch();
        let io = Io::until(&stop, shared.params.io())
            .within(total)
            .watched(&watch)
            .of("pages");
        let mut cursor = Cursor::default();
        let mut any = false;
        loop {
            shared.handle.cancel.check("the migration")?;
            let (walk, consumer, mut lanes) = self.sending(&io)?;
            let put = lanes
                .progress()
                .and_then(|()| walk.step_unread(&mut cursor, consumer, &mut lanes));
            self.tell_poisoned();
            if put.map_err(|e| self.explain(e))?.is_none() {
                break;
            }
            any = true;
        }
        if any {
            // One record of 32 bytes may take the destination as long as 2 MiB of pages, and
            // thousands of such records fit into a socket's buffer. None of them may be left when
            // the guest stands still.
            self.acknowledge_all(&io).map_err(|e| self.explain(e))?;
        }
        Ok(any)
    }

    /// Waits until all that was sent is in the destination's memory.
    pub(super) fn acknowledge_all(&mut self, io: &Io<'_>) -> Result<()> {
        self.sending(io)?.2.barrier()?;
        self.streams.acknowledged();
        Ok(())
    }

    pub(super) fn ask_walking(&mut self) -> Result<Next> {
        let facts = self.facts(Moment::Walking);
        self.steer.ask(&facts, None)
    }

    /// Asks in the middle of a pass whether it goes on, or ends with a sync.
    pub(super) fn pass_goes_on(&mut self) -> Result<bool> {
        match self.ask_walking()? {
            Next::GoOn => Ok(true),
            Next::Sync | Next::SwitchOver { .. } | Next::Postcopy { .. } => Ok(false),
            Next::GiveUp(error) => Err(self.naming_who_waits(error)),
        }
    }

    pub(super) fn facts(&self, moment: Moment) -> Facts {
        let now = Instant::now();
        let params = &self.common.shared.params;
        let stated = params.switchover_bandwidth;
        let bandwidth = stated
            .map(|stated| stated as f64)
            .or_else(|| self.course.bandwidth.estimate());
        let lanes = self.lanes.as_ref();
        let devices = self.streams.left();
        Facts {
            moment,
            elapsed: now - self.common.begun,
            since_sync: self.course.since_sync(now, self.common.begun),
            pass: self.common.stats.pass,
            total: Bytes(self.common.stats.total_bytes),
            remaining: self.consumer.to_read().bytes(),
            unacknowledged: Bytes(lanes.map_or(0, Lanes::on_the_way)),
            last_pass: self.course.last_pass(),
            // What the link could carry above the switchover's cap does not shorten the downtime.
            bandwidth: match params.switchover_max_bandwidth {
                Some(cap) => Some(bandwidth.unwrap_or(f64::MAX).min(cap as f64)),
                None => bandwidth,
            },
            stated: stated.is_some(),
            cap: self
                .common
                .shared
                .guest
                .pacer
                .stated()
                .map(|cap| cap as f64),
            dirty_rate: self.dirty_rate(),
            sync_time: self.course.sync_time(),
            round_trip: self.course.round_trip.estimate(),
            round_trip_certain: self.course.round_trip.is_certain(),
            operations: self.operations,
            device_running: Bytes(devices.running),
            device_rate: self.streams.rate(),
            device_growth: devices.growth,
            device_stopped: Bytes(devices.stopped),
            limited_vcpus: self.steer.limited_in_rings(),
            ring: self.steer.ring(),
            stood: self.common.shared.guest.stood().unwrap_or_default(),
            aborted_pauses: self.common.stats.aborted_pauses as u32,
        }
    }

    /// Walks once over pending, or over a part of it when the decider wants a sync. Returns when
    /// all that was sent is acknowledged. The answer says whether all of pending was sent.
    fn walk(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.common.shared);
        let params = &shared.params;
        let total = self.total();
        let stop = self.stop();
        // A link that stalls does not keep the policy from ending the migration in time.
        let watch = self.watch();
        let io = Io::until(&stop, params.io())
            .within(total)
            .watched(&watch)
            .of("pages");
        let begun = Instant::now();
        self.course.begin_pass(begun);
        let walked = self.send_pass(&io).and_then(|all| {
            let waits = Instant::now();
            let on_the_link = self.on_the_link();
            self.acknowledge_all(&io)?;
            let waited = waits.elapsed().saturating_sub(on_the_link);
            self.rates.waited(waited, begun.elapsed());
            let rest = self.lanes()?.sent_since_put();
            self.course.sent(&rest);
            let (at, took) = (self.common.begun.elapsed(), begun.elapsed());
            // The time of what was delivered includes a round trip, which may be unknown so far.
            self.measure_round_trip(waits.elapsed(), &io)?;
            self.delivered_at(at);
            self.course.end_pass(self.common.stats.pass, took);
            Ok(all)
        });
        walked.map_err(|e| {
            let e = self.explain(e);
            let over = total.expired() || watch.cancels().expired();
            match (e.kind(), over) {
                (Kind::Timeout, true) => {
                    let e = self.out_of_time(e);
                    self.naming_who_waits(e)
                }
                _ => e,
            }
        })
    }

    /// What this thread looks at in waits that begin now.
    pub(super) fn watch(&self) -> StillWatch {
        let common = &self.common;
        StillWatch::new(&common.shared, common.begun, common.stats.pass)
    }

    /// How long the last bytes that were sent need to reach the destination's host, and their
    /// acknowledgement to come back. The destination takes whatever is waited for beyond that.
    fn on_the_link(&self) -> Duration {
        let held = self.lanes.as_ref().map_or(0, Lanes::held) as f64;
        let trip = self.course.round_trip.estimate().unwrap_or_default();
        let link = self.course.bandwidth.estimate();
        let link = link.filter(|link| *link > 0.0);
        let sending = link.map_or(0.0, |link| held / link);
        trip.saturating_add(Duration::try_from_secs_f64(sending).unwrap_or(Duration::MAX))
    }

    /// Tells the course what the destination has acknowledged.
    pub(super) fn delivered(&mut self) {
        self.delivered_at(self.common.begun.elapsed());
    }

    /// As [`Driver::delivered`], of a time since the migration's start that has just passed and in
    /// which no page has arrived since.
    fn delivered_at(&mut self, now: Duration) {
        if let Some(lanes) = &self.lanes {
            let (delivered, left) = (lanes.delivered(), lanes.on_the_way() > 0);
            self.course.delivered(now, delivered, left);
        }
    }

    /// Measures the round trip, when nothing is on its way and `bound` is all that is known of it.
    /// A round trip that keeps no downtime limit is measured several times, because the migration
    /// ends by it.
    fn measure_round_trip(&mut self, bound: Duration, io: &Io<'_>) -> Result<()> {
        let now = self.common.begun.elapsed();
        if !self.course.round_trip.at_most(now, bound) {
            return Ok(());
        }
        let limit = self.steer.limit();
        loop {
            let (begun, paced) = (Instant::now(), self.paced());
            self.acknowledge_all(io)?;
            let held = self.paced().saturating_sub(paced);
            let took = begun.elapsed().saturating_sub(held);
            let trip = &mut self.course.round_trip;
            trip.measured(self.common.begun.elapsed(), took);
            let trips = trip.estimate().unwrap_or_default() * ROUND_TRIPS;
            if trips <= limit || trip.is_certain() {
                return Ok(());
            }
        }
    }

    /// Measures the round trip before the first page, when the handshake was so slow that the
    /// downtime limit may not be kept. So the migration does not send all of memory in vain.
    fn check_distance(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let limit = self.steer.limit();
        if self.greeted.saturating_mul(ROUND_TRIPS) <= limit {
            return Ok(());
        }
        let stop = self.stop();
        let watch = self.watch();
        let io = Io::until(&stop, shared.params.io())
            .within(self.total())
            .watched(&watch)
            .of("an acknowledgement");
        self.measure_round_trip(self.greeted, &io)
            .map_err(|e| self.explain(e))
    }

    /// The error of a migration whose total time ran out in a wait, which failed with `error`. In
    /// the usual case the decider says what was missing, and the message adds what was waited for.
    /// When the destination has acknowledged nothing for most of the time, the message says that
    /// instead: the decider knows only what was sent, and would blame the guest. A shorter silence
    /// at the end is told beside what the decider says.
    fn out_of_time(&mut self, error: Error) -> Error {
        let elapsed = self.common.begun.elapsed();
        let half = elapsed / 2;
        let silence = self.lanes.as_ref().and_then(Lanes::silence);
        if let Some(silence) = silence.filter(|silence| *silence >= half) {
            let sent = Pages(self.unacknowledged()).bytes();
            return Error::new(
                Kind::Timeout,
                format!(
                    "no end within {:.1} s: the destination has acknowledged nothing for {:.1} s, \
                     and {:.1} MB sent to it are not known to have arrived ({})",
                    elapsed.as_secs_f64(),
                    silence.as_secs_f64(),
                    sent.0 as f64 / 1e6,
                    error.message()
                ),
            );
        }
        // Where no marker was sent, because the connection took nothing, bytes tell it.
        let still = self.common.shared.guest.pacer.still();
        let silence = silence.unwrap_or_default().max(still);
        let quiet = match silence >= SILENT.min(half) {
            true => format!(
                "; nothing was acknowledged for {:.1} s",
                silence.as_secs_f64()
            ),
            false => String::new(),
        };
        match self.ask_walking() {
            Err(why) | Ok(Next::GiveUp(why)) => Error::new(
                why.kind(),
                format!("{} ({}{quiet})", why.message(), error.message()),
            ),
            _ => error,
        }
    }

    fn unacknowledged(&self) -> u64 {
        self.lanes.as_ref().map_or(0, Lanes::unacknowledged)
    }

    /// Sends what is pending. Returns whether all of it was sent.
    fn send_pass(&mut self, io: &Io<'_>) -> Result<bool> {
        let shared = Arc::clone(&self.common.shared);
        let mut batch_pages = BATCH_PAGES;
        // Whether the last batch was one that measures the link.
        let mut contents = false;
        loop {
            shared.handle.cancel.check("the migration")?;
            self.look_in_pass()?;
            if !self.pass_goes_on()? {
                return Ok(false);
            }
            self.read_devices(io)?;
            let cap = shared.guest.pacer.stated();
            let whole = Instant::now();
            let timing = cap.is_some() && contents && self.prepare_timing(io)?;
            if let Some(cap) = cap {
                batch_pages = capped_batch(cap, timing);
            }
            let (begun, paced) = (Instant::now(), self.paced());
            self.course.sends(self.common.begun.elapsed());
            let Some(batch) = self.step(batch_pages, io)? else {
                self.drain_devices(io)?;
                return Ok(true);
            };
            self.course.sent(&batch);
            self.delivered();
            self.course.waited(self.paced().saturating_sub(paced));
            batch_pages = walk::next_size(&batch, batch_pages);
            contents = batch.measures_the_link();
            if contents && timing {
                self.acknowledge_all(io)?;
                self.delivered();
                let mut spans = self.lanes()?.spans_since(begun)?;
                if let Some((bytes, time)) = proven(&mut spans) {
                    // In the unit of the other figures: bytes of pages without compression.
                    let plain = bytes as f64 * batch.carried() as f64 / batch.bytes.max(1) as f64;
                    let (now, whole) = (self.common.begun.elapsed(), whole.elapsed());
                    self.course.bandwidth.timed(now, plain as u64, time, whole);
                }
            }
            self.renew(false);
        }
    }

    /// Bytes that went over the connections.
    pub(super) fn sent(&self) -> u64 {
        self.lanes.as_ref().map_or(0, Lanes::sent)
    }

    /// How long the cap on the bandwidth has held sending back.
    fn paced(&self) -> Duration {
        self.lanes.as_ref().map_or(Duration::ZERO, Lanes::paced)
    }

    /// Prepares the measurement of a link behind a cap, when one is due. The next batch is then
    /// timed until it has arrived. For that batch nothing else is on its way, and a wait has saved
    /// up enough of the cap that the batch goes at the speed of the link. Returns whether the next
    /// batch is timed.
    fn prepare_timing(&mut self, io: &Io<'_>) -> Result<bool> {
        if !self
            .course
            .bandwidth
            .wants_timed(self.common.begun.elapsed())
        {
            return Ok(false);
        }
        self.acknowledge_all(io)?;
        self.delivered();
        let shared = &self.common.shared;
        let wait = shared.guest.pacer.until_full();
        shared.handle.cancel.wait(wait);
        self.course.waited(wait);
        Ok(true)
    }
}

/// The pages of a batch under a cap: what the cap lets through in 50 ms, so that a cancel waits no
/// longer. When the batch is `timed`, as many as are sent at the speed of the link.
pub(super) fn capped_batch(cap: u64, timed: bool) -> Pages {
    let bytes = if timed { burst_bytes(cap) } else { cap / 20 };
    Pages((bytes >> PAGE_SHIFT).clamp(1, BATCH_PAGES.0))
}
