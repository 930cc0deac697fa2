//! The lanes of a migration. Together they are the walk's outlet.
//!
//! Lane 0 belongs to the migration's thread, which sends pages on it, and every record that is not
//! about pages. Each further lane has a worker from the end of the handshake until the destination
//! is ready. With one channel there is no worker, no queue and no lock.
//!
//! Every stretch belongs to one lane ([`Assignment`]). So a batch is split. The workers' shares go
//! into their queues, and lane 0's share into its own ([`Ahead`]). Lane 0 sends its pages while the
//! workers have enough to send.

use super::ahead::{Ahead, HUNGRY};
use super::announced::Announced;
use super::assignment::Assignment;
use super::balance::{Balance, Load};
use super::devices::PieceBytes;
use super::lane::Lane;
use super::loaded::Loaded;
use super::postcopy::{Bounds, Rest};
use super::queue::{What, Work};
use super::worker::{Figures, Shared, Worker};
use crate::channel::{Channel, Copying, Io, Pacer, ZeroCopy};
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::Memory;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::control::TELL;
use crate::migrate::failure::{Cause, Failure};
use crate::migrate::lane_name::LaneName;
use crate::migrate::params::Params;
use crate::migrate::report::{LaneState, LaneStats};
use crate::migrate::steering::delivery::Carried;
use crate::migrate::steering::timed::Span;
use crate::runtime::{wait_ready_or, Cancel, Deadline, Interest, Limit, Recall, Wake};
use crate::walk::{Outlet, Put};
use crate::wire::Record;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// On how many channels brant tries to tell the destination why the migration is over. Each try may
/// take [`TELL`], and a cancel has a tenth of a second in all.
const TOLD_ON: usize = 3;

/// So many pieces of devices' state wait for a further lane before lane 0 sends one.
const PIECES_AHEAD: usize = 2;

/// How often the thread, while lane 0 waits for other lanes, checks whether lane 0's sends in place
/// are complete.
const REAP: Duration = Duration::from_millis(5);

/// The lane of a further channel.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are 63 at most, and nearly all are lanes"
)]
enum Further {
    /// The migration's thread has the lane.
    Here(Lane),
    /// A worker has the lane.
    Working(Worker),
    /// The lane is gone with its worker.
    Gone,
}

/// See the file's description.
#[derive(Debug)]
pub(super) struct Lanes {
    first: Lane,
    /// The lanes of the channels 1, 2 and so on.
    further: Vec<Further>,
    /// The lane of pages that the destination asks for, when postcopy was agreed on. None of the pages
    /// before the switch go over it. Boxed, because a lane has kilobytes, and this value moves.
    urgent: Option<Box<Further>>,
    /// The urgent lane of a migration that does not switch to postcopy.
    unused: Option<Box<Lane>>,
    /// Lane 0's pages that wait.
    ahead: Ahead,
    shared: Arc<Shared>,
    assignment: Assignment,
    /// How much of the lanes' sending the walk was told of.
    told: Put,
    /// When the work at the current batch began.
    since: Option<Instant>,
    /// Pages were put back behind the walk's position.
    again: bool,
}

/// The figures of a lane other than lane 0.
fn figures(further: &Further) -> Figures {
    match further {
        Further::Here(lane) => Figures::of(lane),
        Further::Working(worker) => worker.figures(),
        Further::Gone => Figures::default(),
    }
}

impl Lanes {
    /// A lane for each channel, channel 0 first, all under the cap of `pacer`. When `urgent` is set, the
    /// last one is none of the channels but the urgent lane. `cancel` ends the migration.
    ///
    /// # Errors
    /// When there is no channel, and when there is no descriptor for what the lanes share.
    pub(super) fn over(
        mut channels: Vec<Channel>,
        urgent: bool,
        pacer: &Arc<Pacer>,
        params: &Params,
        cancel: &Cancel,
    ) -> Result<Lanes> {
        let several = channels.len() > 1;
        let last = channels.len().saturating_sub(1);
        let stop = match several {
            true => Cancel::under(cancel)?,
            false => cancel.clone(),
        };
        for at in 1..channels.len() {
            let (before, rest) = channels.split_at_mut(at);
            for other in before {
                if rest[0].learns_with(other) {
                    break;
                }
            }
        }
        let mut lanes = channels
            .into_iter()
            .enumerate()
            .map(|(number, mut channel)| {
                // Somebody waits for what the urgent lane carries.
                if !urgent || number < last {
                    channel.set_pacer(Arc::clone(pacer));
                }
                let name = match several {
                    true => LaneName::of(number, channel.handed_in()),
                    false => LaneName::default(),
                };
                let mut lane = Lane::new(channel, name);
                if urgent && number == last {
                    lane.takes_requests();
                }
                if params.zero_copy {
                    lane.send_in_place();
                }
                lane
            });
        let first = lanes
            .next()
            .ok_or_else(|| Error::new(Kind::Internal, "no channel for a migration"))?;
        let mut further: Vec<Further> = lanes.map(Further::Here).collect();
        Ok(Lanes {
            first,
            urgent: match urgent {
                true => further.pop().map(Box::new),
                false => None,
            },
            unused: None,
            assignment: Assignment::to(1 + further.len()),
            further,
            ahead: Ahead::default(),
            shared: Arc::new(Shared {
                failure: Failure::new(stop),
                balance: Balance::default(),
                news: Arc::new(Recall::new()?),
                params: params.clone(),
            }),
            told: Put::default(),
            since: None,
            again: false,
        })
    }

    /// Sets where all lanes put what the destination says about devices. Called before workers start.
    pub(super) fn hear_of_devices(&mut self, loaded: &Arc<Loaded>) {
        self.all().for_each(|lane| lane.hears_of_devices(loaded));
    }

    /// The further lane with the least work, when that is so little that a piece is better off there
    /// than on lane 0.
    fn free_worker(&self) -> Option<usize> {
        let queued = self
            .further
            .iter()
            .enumerate()
            .filter_map(|(at, further)| match further {
                Further::Working(worker) => Some((worker.queue().len(), at)),
                Further::Here(_) | Further::Gone => None,
            });
        let (length, at) = queued.min()?;
        (length < PIECES_AHEAD).then_some(at)
    }

    /// Starts a worker for each further lane.
    ///
    /// # Errors
    /// When a worker cannot be started.
    pub(super) fn start(&mut self, memory: &Memory, vmm: &Callbacks) -> Result<()> {
        if self.several() {
            self.ahead = Ahead::over(memory, &self.shared.news)?;
        }
        for further in &mut self.further {
            if let Further::Here(lane) = std::mem::replace(further, Further::Gone) {
                *further = Further::Working(Worker::start(lane, &self.shared, memory, vmm, true)?);
            }
        }
        // An urgent lane that has nothing to do says nothing about how well the others share the work.
        if let Some(urgent) = &mut self.urgent {
            if let Further::Here(lane) = std::mem::replace(&mut **urgent, Further::Gone) {
                **urgent = Further::Working(Worker::start(lane, &self.shared, memory, vmm, false)?);
            }
        }
        Ok(())
    }

    /// What ends a wait on any lane: a cancel of the migration, or the failure of another lane.
    pub(super) fn stop(&self) -> &Cancel {
        self.shared.failure.stop()
    }

    /// Whether there is more than one lane for pages before the switchover.
    pub(super) fn several(&self) -> bool {
        !self.further.is_empty()
    }

    /// Whether there is one lane and no other, so no thread but this one.
    fn is_alone(&self) -> bool {
        !self.several() && self.urgent.is_none()
    }

    /// Lane 0.
    pub(super) fn first(&mut self) -> &mut Lane {
        &mut self.first
    }

    /// All lanes that the migration's thread has, in the order of their channels. Before workers
    /// are started and after they have ended, these are all lanes.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Lane> {
        let others = self.further.iter_mut().chain(self.urgent.as_deref_mut());
        let others = others.filter_map(|further| match further {
            Further::Here(lane) => Some(lane),
            Further::Working(_) | Further::Gone => None,
        });
        std::iter::once(&mut self.first).chain(others)
    }

    fn workers(&mut self) -> impl Iterator<Item = &mut Worker> {
        let others = self.further.iter_mut().chain(self.urgent.as_deref_mut());
        others.filter_map(|further| match further {
            Further::Working(worker) => Some(worker),
            Further::Here(_) | Further::Gone => None,
        })
    }

    fn working(&self) -> impl Iterator<Item = &Worker> {
        let others = self.further.iter().chain(self.urgent.as_deref());
        others.filter_map(|further| match further {
            Further::Working(worker) => Some(worker),
            Further::Here(_) | Further::Gone => None,
        })
    }

    fn further(&self) -> impl Iterator<Item = Figures> + '_ {
        let others = self.further.iter().chain(self.urgent.as_deref());
        others.map(figures)
    }

    fn figures(&self) -> impl Iterator<Item = Figures> + '_ {
        std::iter::once(Figures::of(&self.first)).chain(self.further())
    }

    /// The totals of all pages that were sent.
    pub(super) fn put(&self) -> Put {
        self.figures().fold(Put::default(), |mut put, lane| {
            put += lane.put;
            put
        })
    }

    /// Bytes that went over the connections.
    pub(super) fn sent(&self) -> u64 {
        self.figures().map(|lane| lane.sent).sum()
    }

    /// What became of pages that were sent in place, on all lanes. As long as one lane sends in
    /// place, the state is "on".
    pub(super) fn zero_copy(&self) -> ZeroCopy {
        let mut all = Figures::of(&self.first).zero_copy;
        for lane in self.further() {
            all.calls += lane.zero_copy.calls;
            all.without += lane.zero_copy.without;
            all.anyway += lane.zero_copy.anyway;
            all.refused += lane.zero_copy.refused;
            if lane.zero_copy.copying == Copying::No {
                all.copying = Copying::No;
            }
        }
        all
    }

    /// How many sent bytes the destination's host does not have yet, about: the lanes are taken to be
    /// alike.
    pub(super) fn held(&self) -> u64 {
        self.first.held() * (1 + self.further.len()) as u64
    }

    /// How long the cap on the bandwidth has held back the slowest lane.
    pub(super) fn paced(&self) -> Duration {
        self.figures()
            .map(|lane| lane.paced)
            .max()
            .unwrap_or_default()
    }

    /// The spans of pages that were sent after `since`, one of each lane that has sent any. All of
    /// them are acknowledged by now.
    pub(super) fn spans_since(&self, since: Instant) -> Result<Vec<Span>> {
        let spans = self.figures().filter_map(|lane| lane.span);
        fallible::collect(spans.filter(|span| span.begun >= since), "times of a batch")
    }

    /// How many pages were sent and are not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.figures().map(|lane| lane.unacknowledged).sum()
    }

    /// How many pages were acknowledged since the switch to postcopy: on the urgent lane, and on all
    /// others.
    pub(super) fn arrived(&self) -> [u64; 2] {
        let all: u64 = self.figures().map(|lane| lane.arrived).sum();
        let urgent = self
            .urgent
            .as_deref()
            .map_or(0, |lane| figures(lane).arrived);
        [urgent, all - urgent]
    }

    /// All that was acknowledged on all lanes.
    pub(super) fn delivered(&self) -> Carried {
        self.figures().fold(Carried::default(), |mut all, lane| {
            all += lane.delivered;
            all
        })
    }

    /// Bytes of pages that were sent and are not acknowledged.
    pub(super) fn on_the_way(&self) -> u64 {
        self.figures().map(|lane| lane.on_the_way).sum()
    }

    /// The longest time, over all lanes, for which the destination has had markers to acknowledge
    /// and has acknowledged none.
    pub(super) fn silence(&self) -> Option<Duration> {
        let since = self.figures().filter_map(|lane| lane.silent_since).min();
        since.map(|since| since.elapsed())
    }

    /// How long one lane had more pages than it could send while another had none.
    pub(super) fn uneven(&self) -> Duration {
        self.shared.balance.uneven()
    }

    /// What all lanes have sent since the last call.
    fn sent_meanwhile(&mut self) -> Put {
        let now = self.put();
        now.since(&std::mem::replace(&mut self.told, now))
    }

    /// What several lanes have sent since the last batch was put: the end of a pass, which is still
    /// in their queues then.
    pub(super) fn sent_since_put(&mut self) -> Put {
        match self.several() {
            true => self.sent_meanwhile(),
            false => Put::default(),
        }
    }

    /// Whether a lane has so little to do that the walk goes on before lane 0 sends. When lane 0's
    /// queue is full, the walk cannot go on.
    fn is_one_hungry(&mut self) -> bool {
        self.ahead.has_room() && self.workers().any(|worker| worker.queue().len() < HUNGRY)
    }

    /// Whether each queue has room for one piece of work.
    fn have_room(&mut self) -> bool {
        self.ahead.has_room() && self.workers().all(|worker| worker.queue().has_room())
    }

    /// Sends a batch of what is left on lane 0. Returns whether anything was left.
    pub(super) fn serve_on_first(
        &mut self,
        rest: &Rest,
        pass: u32,
        recall: &Recall,
    ) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let bounds = Bounds {
            stop: shared.failure.stop(),
            params: &shared.params,
        };
        rest.step(&mut self.first, pass, recall, &bounds)
    }

    /// Whether pages were put back behind the walk's position since the last call.
    pub(super) fn take_again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    /// Writes the figures of each lane to `stats`.
    pub(super) fn fill(&self, stats: &mut [LaneStats]) {
        let ahead = (self.ahead.pages(), Duration::ZERO);
        let queued =
            std::iter::once(ahead).chain(self.further.iter().map(|further| match further {
                Further::Working(worker) => (worker.queue().pages(), worker.full),
                Further::Here(_) | Further::Gone => (0, Duration::ZERO),
            }));
        for ((stats, lane), (queued, full)) in stats.iter_mut().zip(self.figures()).zip(queued) {
            let idle = lane.unacknowledged == 0 && queued == 0;
            stats.state = match idle {
                true => LaneState::Idle,
                false => LaneState::Busy,
            };
            stats.wire_bytes = lane.sent;
            stats.data_pages = lane.put.data_pages;
            stats.zero_pages = lane.put.zero_pages;
            stats.unacknowledged_pages = lane.unacknowledged;
            stats.queued_pages = queued;
            // When a worker has ended, its queue has no more figures.
            stats.queue_wait = stats.queue_wait.max(full);
            stats.send_wait = lane.waited;
            stats.idle = stats.idle.max(lane.idle);
            stats.silence = lane.silent_since.map(|since| since.elapsed());
        }
    }

    /// Reads what the destination has said so far on any lane.
    ///
    /// # Errors
    /// When a lane has failed.
    pub(super) fn listen(&mut self) -> Result<()> {
        self.all().try_for_each(Lane::listen)?;
        self.check()
    }

    /// Fails when a worker has failed.
    fn check(&self) -> Result<()> {
        match self.is_alone() {
            false => self.stop().check("a channel"),
            true => Ok(()),
        }
    }

    /// Waits until no worker is `awaited`. A worker signals a change by its news.
    fn wait(&mut self, io: &Io<'_>, awaited: impl Fn(&Worker) -> bool) -> Result<()> {
        let news = Arc::clone(&self.shared.news);
        loop {
            news.lower();
            self.check()?;
            if !self.working().any(&awaited) {
                return Ok(());
            }
            if let Some(limit) = io.look_and_tell(|| None) {
                return Err(self.ran_out(io, limit, &awaited));
            }
            let stop = self.shared.failure.stop();
            let mut until = io.until_look(io.limit.at());
            // The thread that removes a block waits for the pages that lane 0 has sent in place,
            // and only this thread can let go of them.
            if self.first.reap() {
                until = until.earlier(Deadline::after(REAP));
            }
            match wait_ready_or(news.fd(), Interest::Read, None, Some(stop), until)? {
                Wake::Ready => news.settle(),
                Wake::Cancelled => self.check()?,
                Wake::TimedOut if !io.limit.expired() => {}
                Wake::TimedOut => return Err(self.ran_out(io, io.limit, &awaited)),
            }
        }
    }

    /// The error of a wait that has run out of `limit`.
    fn ran_out(&self, io: &Io<'_>, limit: Limit, awaited: impl Fn(&Worker) -> bool) -> Error {
        let left = self.working().filter(|worker| awaited(worker));
        let names: Vec<String> = left.map(|worker| worker.name().to_string()).collect();
        let what = io.what;
        let message = format!("{}: sending {what}: {limit} ran out", names.join(", "));
        Error::new(Kind::Timeout, message)
    }

    /// Waits until each queue has room. Lane 0 has nothing to send during this wait.
    fn await_room(&mut self, io: &Io<'_>) -> Result<()> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.shared);
        let _full = shared.balance.be(Load::Full);
        let _idle = shared.balance.be(Load::Idle);
        // Bit n: the queue of worker n is full.
        let full = (self.working().enumerate()).fold(0u64, |full, (at, worker)| {
            full | u64::from(!worker.queue().has_room()) << at
        });
        let waited = self.wait(io, |worker| !worker.queue().has_room());
        for (at, worker) in self.workers().enumerate() {
            if full & 1 << at != 0 {
                worker.full += begun.elapsed();
            }
        }
        waited
    }

    /// Gives `work` to a worker. There must be room in its queue.
    fn give(&mut self, at: usize, work: Work, memory: &Memory) -> Result<()> {
        let Further::Working(worker) = &self.further[at] else {
            return Err(Error::new(Kind::Internal, "a channel without its thread"));
        };
        match worker.queue().add(work, memory) {
            None => Ok(()),
            // The work is dropped here, which puts its pages back.
            Some(_) => Err(Error::new(Kind::Internal, "a channel's queue is full")),
        }
    }

    /// Waits until the workers have done all their work. When the last piece of work was a marker,
    /// every acknowledgement has arrived then.
    pub(super) fn await_further(&mut self, io: &Io<'_>) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        self.wait(io, |worker| !worker.queue().is_done())
    }

    /// Ends the workers, whose work is done. Their lanes belong to this thread again.
    ///
    /// # Errors
    /// The workers' errors.
    pub(super) fn rejoin(&mut self) -> Result<()> {
        self.end_workers();
        match self.shared.failure.reason() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn end_workers(&mut self) {
        for further in self.further.iter_mut().chain(self.urgent.as_deref_mut()) {
            if let Further::Working(_) = further {
                if let Further::Working(worker) = std::mem::replace(further, Further::Gone) {
                    match worker.end() {
                        Ok(lane) => *further = Further::Here(lane),
                        Err(error) => self.shared.failure.offer(Cause::Found, error),
                    }
                }
            }
        }
    }

    fn stop_workers(&mut self) {
        if self.working().next().is_some() {
            self.stop().cancel();
            for worker in self.working() {
                worker.queue().close();
            }
            self.end_workers();
        }
    }

    /// The reason why sending failed with `error`: the first reason that a lane found. When that is
    /// only a broken connection, the peer's own reason replaces it. All workers have ended after
    /// this call.
    pub(super) fn explain(&mut self, error: Error) -> Error {
        if self.is_alone() {
            return self.first.explain(error);
        }
        let cause = Cause::of(&error, self.first.peer_ended());
        self.shared.failure.offer(cause, error.clone());
        self.stop_workers();
        let Some((cause, reason)) = self.shared.failure.reason() else {
            return error;
        };
        if cause != Cause::Broke {
            return reason;
        }
        let heard = self.all().find_map(Lane::reason);
        // The peer's reason comes on another connection than the broken one, and may come a little
        // later.
        heard
            .or_else(|| self.first.await_reason(TELL))
            .unwrap_or(reason)
    }

    /// All pages are sent before the hand-over, so nobody will ask for one. The destination may close the
    /// urgent connection from the final markers on.
    pub(super) fn end_urgent(&mut self) -> Result<()> {
        match self.urgent.take().map(|urgent| *urgent) {
            Some(Further::Working(worker)) => self.unused = Some(Box::new(worker.end()?)),
            Some(Further::Here(lane)) => self.unused = Some(Box::new(lane)),
            Some(Further::Gone) | None => {}
        }
        Ok(())
    }

    /// Closes all connections, without a word.
    pub(super) fn close(&mut self) {
        self.stop_workers();
        for lane in self.all() {
            lane.close();
            lane.let_go();
        }
    }

    /// Ends the threads of all lanes, and takes in what the destination has said on any of them before it
    /// was lost. Returns whether COMPLETE was among that.
    pub(super) fn hear_what_is_there(&mut self) -> bool {
        self.stop_workers();
        let mut complete = false;
        for lane in self.all() {
            while let Ok(Some(record)) = lane.hear_at_once() {
                match record {
                    Record::Ack(ack) if lane.acknowledged(ack.number).is_err() => break,
                    Record::Complete(_) => complete = true,
                    _ => {}
                }
            }
        }
        complete
    }

    /// Waits for COMPLETE on lane 0, for as long as a peer gets to tell why it ends. Returns whether it
    /// has come. All threads of lanes have ended.
    pub(super) fn await_complete(&mut self) -> bool {
        let io = Io::patient(TELL)
            .within(Deadline::after(TELL))
            .of("COMPLETE");
        loop {
            match self.first.hear(&io) {
                Ok(Record::Complete(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends the threads of all lanes, whose pages are read no more.
    pub(super) fn stop_serving(&mut self) {
        self.stop_workers();
    }

    /// Puts back all pages that were not acknowledged.
    pub(super) fn give_up(&mut self) {
        self.stop_workers();
        self.ahead.give_up();
        self.all().for_each(Lane::give_up);
    }

    /// Tells the destination why the migration is over, and closes all connections. The reason goes
    /// out on channel 0. When a record was cut there, it goes out on the first channel where that
    /// is possible.
    pub(super) fn abort(&mut self, error: &Error) {
        self.stop_workers();
        let told = self
            .all()
            .take(TOLD_ON)
            .find_map(|lane| lane.tell(error).then_some(lane));
        if let Some(lane) = told {
            // When a connection is closed before the reason is read, the reason is lost.
            lane.drain();
        }
        for lane in self.all() {
            lane.close();
            // The VMM may reuse the memory once the migration is over.
            lane.let_go();
        }
    }
}

impl Drop for Lanes {
    /// Ends the threads of a migration that is dropped before its end.
    fn drop(&mut self) {
        self.stop_workers();
    }
}

/// The lanes during some steps, with the time limits of these steps.
pub(super) struct Sending<'a, 'io> {
    pub(super) lanes: &'a mut Lanes,
    pub(super) announced: &'a mut Announced,
    pub(super) memory: &'a Memory,
    pub(super) params: &'a Params,
    /// The current pass, which markers name.
    pub(super) pass: u32,
    pub(super) io: &'a Io<'io>,
}

impl Sending<'_, '_> {
    fn work(&self, what: What) -> Work {
        Work {
            what,
            pass: self.pass,
            limit: self.io.limit,
        }
    }

    /// Sends a batch over several lanes.
    fn spread(&mut self, mut taken: Taken) -> Result<Put> {
        let since = self.lanes.since.take().unwrap_or_else(Instant::now);
        if self.announced.lacks(&taken) {
            // The block was added after the last announcement. The destination is told of it later,
            // when nothing is pinned.
            self.lanes.again = true;
            drop(taken);
            self.announce()?;
            return Ok(Put::default());
        }
        let assignment = self.lanes.assignment;
        let count = self.lanes.further.len();
        // Bit n: lane n has a share of the batch.
        let lanes = taken.runs().fold(0u64, |lanes, run| {
            lanes | 1 << assignment.lane(run.block, &run.pages)
        });
        for at in 0..count {
            if lanes & 2 << at != 0 {
                let share = taken.split_off(|block, run| assignment.lane(block, run) == at + 1)?;
                self.lanes
                    .give(at, self.work(What::Pages(share)), self.memory)?;
            }
        }
        if !taken.is_empty() {
            let work = self.work(What::Pages(taken));
            self.lanes.ahead.add(work, self.memory)?;
        }
        while !self.lanes.is_one_hungry() && self.send_ahead()? {}
        let mut put = self.lanes.sent_meanwhile();
        put.time = since.elapsed();
        Ok(put)
    }

    /// Sends one batch of lane 0. Returns whether one was waiting.
    fn send_ahead(&mut self) -> Result<bool> {
        let Some((taken, queue)) = self.lanes.ahead.next() else {
            return Ok(false);
        };
        let shared = Arc::clone(&self.lanes.shared);
        let _full = shared.balance.be(Load::Full);
        let (pass, params, io) = (self.pass, self.params, self.io);
        let first = &mut self.lanes.first;
        first.send_counted(&[], taken, pass, queue.pins(), params, io)?;
        self.lanes.check()?;
        Ok(true)
    }

    /// Gives each worker such work, and sends all pages of lane 0 that wait.
    fn give_each(&mut self, what: impl Fn() -> What) -> Result<()> {
        if !self.lanes.several() {
            return Ok(());
        }
        self.make_room()?;
        for at in 0..self.lanes.further.len() {
            let work = self.work(what());
            self.lanes.give(at, work, self.memory)?;
        }
        while self.send_ahead()? {}
        Ok(())
    }

    /// Says on every lane that the pages of a guest that ran here end, and waits until the destination
    /// has acknowledged that on all of them.
    pub(super) fn begin_postcopy(&mut self) -> Result<()> {
        self.announce_last()?;
        self.give_each(|| What::Switch)?;
        let first = &mut self.lanes.first;
        first.begin_postcopy(self.pass, self.io)?;
        first.await_acknowledgements(0, self.params, self.io)?;
        self.lanes.await_further(self.io)
    }

    /// Has every lane but lane 0 send what is left, the urgent one by request.
    pub(super) fn serve(&mut self, rest: &Arc<Rest>) -> Result<()> {
        for at in 0..self.lanes.further.len() {
            let work = self.work(What::Rest(Arc::clone(rest)));
            self.lanes.give(at, work, self.memory)?;
        }
        let work = self.work(What::Urgent(Arc::clone(rest)));
        match self.lanes.urgent.as_deref() {
            Some(Further::Working(worker)) => match worker.queue().add(work, self.memory) {
                None => Ok(()),
                Some(_) => Err(Error::new(Kind::Internal, "the urgent queue is full")),
            },
            _ => Err(Error::new(Kind::Internal, "no urgent channel")),
        }
    }

    /// Makes room in each queue for one share of a batch. So nothing is in hand during the wait.
    fn make_room(&mut self) -> Result<()> {
        while !self.lanes.have_room() {
            if !self.send_ahead()? {
                self.lanes.await_room(self.io)?;
            }
        }
        Ok(())
    }

    /// Sends a piece of a device's state, on the lane with the least work.
    pub(super) fn put_piece(&mut self, bytes: PieceBytes) -> Result<()> {
        self.lanes.check()?;
        match self.lanes.free_worker() {
            Some(at) => {
                let work = self.work(What::Piece(bytes));
                self.lanes.give(at, work, self.memory)
            }
            None => {
                let first = &mut self.lanes.first;
                first.send_piece(&bytes, self.pass, self.params, self.io)
            }
        }
    }

    /// Says on every lane that its page runs have ended. Pieces of stopped devices follow, and then
    /// [`Sending::finish_devices`].
    pub(super) fn end_pages(&mut self) -> Result<()> {
        self.announce_last()?;
        self.give_each(|| What::PagesEnd)?;
        self.lanes.first.end_pages(self.pass, self.io)
    }

    /// Says on every lane that nothing follows the pieces of stopped devices.
    pub(super) fn finish_devices(&mut self) -> Result<()> {
        self.give_each(|| What::Marker { last: true })?;
        self.lanes.first.send_marker(self.pass, true, self.io)
    }

    /// Tells the destination of changed blocks before its last pages end.
    fn announce_last(&mut self) -> Result<()> {
        if !self.lanes.several() {
            let news = self.announced.news(self.memory, None)?;
            return self.lanes.first.say_encoded(&news, self.io);
        }
        match self.announced.is_behind(self.memory) {
            true => self.announce(),
            false => Ok(()),
        }
    }

    /// Tells the destination of added and removed blocks, by the rule for several connections.
    /// First all that was sent is acknowledged. Then channel 0 carries the news, and all lanes wait
    /// until the destination has applied it.
    fn announce(&mut self) -> Result<()> {
        self.barrier()?;
        let news = self.announced.all_news(self.memory)?;
        let first = &mut self.lanes.first;
        first.say_encoded(&news, self.io)?;
        first.send_marker(self.pass, false, self.io)?;
        first.await_acknowledgements(0, self.params, self.io)
    }
}

impl Outlet for Sending<'_, '_> {
    fn put(&mut self, taken: Taken, recall: &Recall) -> Result<Put> {
        if self.lanes.several() {
            return self.spread(taken);
        }
        let news = self.announced.news(self.memory, Some(&taken))?;
        let lane = &mut self.lanes.first;
        lane.send_counted(&news, taken, self.pass, recall, self.params, self.io)
    }

    fn progress(&mut self) -> Result<()> {
        self.lanes.listen()?;
        if self.lanes.several() {
            self.lanes.since.get_or_insert_with(Instant::now);
            if self.announced.is_behind(self.memory) {
                self.announce()?;
            }
            self.make_room()?;
        }
        Ok(())
    }

    /// Waits until the destination has worked through all that was sent. What is on its way or in a
    /// socket's buffer costs the destination time: a header of 32 bytes that says that 2 MiB are
    /// zero may take as long as 2 MiB of pages. None of it may be left when the guest is paused.
    fn barrier(&mut self) -> Result<()> {
        self.give_each(|| What::Marker { last: false })?;
        let first = &mut self.lanes.first;
        first.send_marker(self.pass, false, self.io)?;
        first.await_acknowledgements(0, self.params, self.io)?;
        self.lanes.await_further(self.io)
    }

    fn finish(&mut self) -> Result<()> {
        self.announce_last()?;
        self.finish_devices()
    }
}

#[cfg(test)]
mod tests;
