//! Postcopy at the source: the switch, the pages that follow the guest, and recoveries. `docs/postcopy.md`
//! tells what a VMM sees of it, `docs/wire.md` has the order of the records.

use super::figures::sum;
use super::{no_connection, Driver};
use crate::channel::{Channel, Io, Route};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::BlockId;
use crate::migrate::outgoing::decisions::Decision;
use crate::migrate::outgoing::lanes::Lanes;
use crate::migrate::outgoing::postcopy::Rest;
use crate::migrate::report::RENEW;
use crate::migrate::steering::fits_downtime::ABORTED_PAUSES_MAX;
use crate::migrate::steering::to_postcopy::{Cost, Switch};
use crate::migrate::steering::{Facts, Moment, Parts};
use crate::migrate::switchover::source::Event;
use crate::runtime::{Cancel, Deadline, Limit};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{self, Described, Missing, MissingEnd, Record, MISSING_PAGES_MAX};
use std::sync::Arc;
use std::time::Duration;

/// The pause between two tries to recover.
const RETRY: Duration = Duration::from_millis(100);

/// One call sends at most about this many bytes of a description.
const DESCRIPTION_BYTES: usize = 256 << 10;

impl Driver {
    /// What a switch to postcopy would cost now.
    fn cost_of_switch(&self, moment: Moment) -> Cost {
        self.cost_by(&self.facts(moment))
    }

    /// Records what is promised about the downtime of a switch that begins. Nothing is, when nothing is
    /// known about the link by now.
    pub(super) fn promise_switch(&mut self) {
        let facts = self.facts(Moment::Synced);
        let measured = self.course.bandwidth.estimate().is_some() || facts.round_trip.is_some();
        if measured || facts.stated || facts.last_pass.is_some() {
            let cost = self.cost_by(&facts);
            let stats = &mut self.common.stats;
            stats.promised_downtime = Some(cost.total());
            stats.promised = Parts {
                memory: cost.description.saturating_add(cost.discards),
                ..facts.parts_without_pages().fixed()
            };
        }
    }

    fn cost_by(&self, facts: &Facts) -> Cost {
        let spread = self.consumer.spread();
        let switch = Switch {
            total: facts.total.pages_down(),
            missing: Pages(spread.pages),
            runs: spread.runs,
            sent: Pages(self.pages_sent()),
            bandwidth: facts.bandwidth,
            fixed: facts.parts_without_pages().fixed(),
            stood: facts.stood,
        };
        switch.cost()
    }

    /// Why a switch to postcopy is not possible now.
    pub(super) fn against_switch(&self, moment: Moment) -> Option<Error> {
        let limit = self.steer.limit();
        let cost = self.cost_of_switch(moment);
        // A pause that has begun is aborted by the same rules as any other.
        let paused = matches!(moment, Moment::Paused | Moment::Saved);
        if paused && self.common.stats.aborted_pauses >= u64::from(ABORTED_PAUSES_MAX) {
            return None;
        }
        let slack = match paused {
            true => self.common.shared.params.downtime_slack,
            false => Duration::ZERO,
        };
        let too_long = cost.total() > limit.saturating_add(slack);
        too_long.then(|| Error::new(Kind::NotConverged, cost.too_long(limit)))
    }

    /// Says what is missing at the destination, has the other lanes send it, and sends the device state.
    /// The guest stands still.
    pub(super) fn switch(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let stop = self.stop();
        let io = Io::until(&stop, shared.params.io())
            .within(self.switchover)
            .of("the switch to postcopy");
        let switched = self.describe_and_serve(&io);
        switched.map_err(|e| self.explain(e))
    }

    fn describe_and_serve(&mut self, io: &Io<'_>) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let bytes = self.sent();
        let memory = shared.guest.tracker.memory();
        memory.ownership().memory_follows(true);
        self.sending(io)?.2.begin_postcopy()?;
        self.check_gate()?;
        let missing = self.describe_missing(io)?;
        self.last_bytes = self.sent().saturating_sub(bytes);
        let blocks = self.announced.copied();
        let rest = Rest::new(&self.consumer, blocks, missing, 0, &self.counts)?;
        self.rest = Some(Arc::clone(&rest));
        self.sending(io)?.2.serve(&rest)?;
        let limit = shared.params.handover_timeout;
        let lane = self.lanes.as_mut().ok_or_else(no_connection)?.first();
        lane.send_state(&self.blobs, limit, &io.of("device state"))
    }

    /// No page follows the guest any more.
    pub(super) fn end_following(&self) {
        let memory = self.common.shared.guest.tracker.memory();
        memory.ownership().memory_follows(false);
    }

    fn describe_missing(&mut self, io: &Io<'_>) -> Result<Pages> {
        const WORDS: usize = MISSING_PAGES_MAX as usize / 64;
        let memory = Arc::clone(self.common.shared.guest.tracker.memory());
        let map = memory.map();
        let mut blocks = fallible::collect(self.announced.copied(), "the guest's blocks")?;
        blocks.sort_unstable_by_key(|(id, _)| id.0);
        let mut words = Vec::new();
        fallible::reserve(&mut words, WORDS, "a description")?;
        words.resize(WORDS, 0);
        let (mut total, mut bytes) = (Pages(0), Vec::new());
        for (id, pages) in blocks {
            if let Some(block) = map.block(id) {
                self.consumer.round_out(block)?;
            }
            let mut first = Pages(0);
            while first < pages {
                let count =
                    MISSING_PAGES_MAX.min((pages - first).0.min(u64::from(u32::MAX)) as u32);
                let piece = &mut words[..count.div_ceil(64) as usize];
                self.consumer.pending_words(id, first, piece)?;
                if let Some(missing) = Missing::piece(id.0, first, count, piece)? {
                    total += Pages(u64::from(missing.missing));
                    Record::Missing(missing).encode(&mut bytes)?;
                }
                if bytes.len() >= DESCRIPTION_BYTES {
                    self.first()?.say_encoded(&bytes, &io.of("MISSING"))?;
                    bytes.clear();
                }
                first += Pages(u64::from(count));
            }
        }
        let end = MissingEnd {
            pages: total,
            epoch: 0,
        };
        Record::MissingEnd(end).encode(&mut bytes)?;
        self.first()?.say_encoded(&bytes, &io.of("MISSING_END"))?;
        Ok(total)
    }

    /// READY of a destination that lacks pages: other lanes are at work meanwhile.
    pub(super) fn await_ready_to_serve(&mut self) -> Result<wire::Ready> {
        let ready = self.hear_ready(|_, _| Ok(()))?;
        self.open_window();
        Ok(ready)
    }

    /// Sends the rest of the pages. The guest runs at the destination.
    pub(super) fn serve(&mut self) -> Result<()> {
        let rest = self.rest.clone().ok_or_else(no_connection)?;
        if self.recovering {
            let text = format!(
                "the migration goes on over new connections; {} pages are missing",
                rest.described
            );
            self.common.vmm.event(EventKind::Recovered, text);
        }
        // The cap of the switchover ends with the switchover.
        self.common.shared.guest.pacer.end_override();
        self.common.stats.progress = self.ahead.done();
        let sent = self.send_rest(&rest).or_else(|error| self.is_over(error));
        // A recovery that had no page to send counts as well.
        let recovered = std::mem::take(&mut self.recovering) && sent.is_ok();
        self.common.stats.recoveries += u64::from(recovered);
        sent
    }

    /// Whether the migration is complete although a connection failed with `error`.
    fn is_over(&mut self, error: Error) -> Result<()> {
        // What the destination said last counts for more than a connection that broke.
        if self.lanes()?.hear_what_is_there() {
            return Ok(());
        }
        let left = self.lanes()?.unacknowledged();
        if self.consumer.pending() > Pages(0) || left > 0 {
            return Err(self.explain(error));
        }
        // The destination closes its connections behind COMPLETE, in any order, and COMPLETE may be on
        // its way.
        if self.lanes()?.await_complete() {
            return Ok(());
        }
        // Nothing is missing that could be sent again.
        let text = format!(
            "every page is at the destination, which was not heard to say so: {}",
            error.message()
        );
        self.common.vmm.event(EventKind::Warning, text);
        Ok(())
    }

    fn send_rest(&mut self, rest: &Arc<Rest>) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let pass = self.common.stats.pass;
        loop {
            let lanes = self.lanes.as_mut().ok_or_else(no_connection)?;
            if !lanes.serve_on_first(rest, pass, self.walk.removals())? {
                break;
            }
            self.renew(false);
        }
        let stop = self.stop();
        let io = Io::until(&stop, shared.params.io()).of("the rest of the pages");
        let first = self.first()?;
        first.send_marker(pass, true, &io)?;
        first.await_acknowledgements(0, &shared.params, &io)?;
        // Lanes may be at work for long, and each bounds its own waits.
        loop {
            let lanes = self.lanes()?;
            match lanes.await_further(&io.within(Deadline::after(RENEW))) {
                Err(e) if e.kind() == Kind::Timeout && !stop.is_cancelled() => self.renew(false),
                done => break done?,
            }
        }
        self.lanes()?.rejoin()?;
        let lane = self.first()?;
        match lane.hear(&io.within(io.idle.from_now()).of("COMPLETE"))? {
            Record::Complete(complete)
                if (complete.epoch, complete.pages) == (rest.epoch, rest.described) =>
            {
                Ok(())
            }
            Record::Complete(complete) => Err(Error::new(
                Kind::Protocol,
                format!(
                    "COMPLETE: expected the {} pages of epoch {}, found {} of epoch {}",
                    rest.described, rest.epoch, complete.pages, complete.epoch
                ),
            )),
            other => Err(lane.unexpected(other.record_type(), "COMPLETE")),
        }
    }

    /// Closes all connections, and puts the pages back that were not acknowledged.
    fn leave_lanes(&mut self) {
        if let Some(lanes) = &mut self.lanes {
            lanes.give_up();
            lanes.close();
        }
        // The last acknowledgements that these lanes have heard count.
        self.renew(true);
        if let Some(lanes) = self.lanes.take() {
            self.before += lanes.put();
            self.sent_before += lanes.sent();
            self.arrived_before = sum(self.arrived_before, lanes.arrived());
        }
        self.rest = None;
    }

    fn interrupt(&mut self) {
        self.leave_lanes();
        self.recovering = false;
        self.common.stats.unacknowledged_pages = 0;
        self.renew(true);
    }

    /// The connections are lost. Waits for the VMM's decision, and carries it out.
    pub(super) fn await_recovery(&mut self) -> Result<Event> {
        self.interrupt();
        let why = self.common.error.as_ref().map_or("", Error::message);
        let why = why.to_owned();
        let text = format!(
            "the guest was handed over and {} pages of its memory are not there yet; they stay here until \
             the migration is recovered or resolved ({why})",
            self.consumer.pending()
        );
        self.common.vmm.event(EventKind::Interrupted, text);
        let shared = Arc::clone(&self.common.shared);
        let attempts = self.attempts.as_ref().ok_or_else(no_connection)?;
        match shared.guest.decisions.next(attempts) {
            Decision::Retire if self.common.stats.run.is_some() => {
                let text = format!("{} pages were not sent: {why}", self.consumer.pending());
                self.common.error = Some(Error::new(Kind::Unanswered, text));
                Ok(Event::RetireRunning)
            }
            Decision::Retire => Ok(Event::Retire),
            Decision::Recover(route) => {
                self.common.error = None;
                self.recovery = Some(route);
                Ok(Event::Recover)
            }
        }
    }

    /// Takes the interrupted migration up again over new connections. While these cannot be made, or are
    /// lost before both sides have agreed, it tries again, as long as the connect timeout allows: the
    /// destination's VMM may recover later than this side's.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let mut route = self.recovery.take().ok_or_else(no_connection)?;
        let attempt = self.attempts.clone().ok_or_else(no_connection)?;
        let limit = shared.params.connect().from_now();
        let recovered = loop {
            let result = self.recover(&mut route, &attempt, limit);
            let Err(error) = result.map_err(|e| self.explain(e)) else {
                break Ok(());
            };
            let again = matches!(error.kind(), Kind::Io | Kind::PeerGone | Kind::Timeout);
            if !again || !route.can_be_used_again() || limit.expired() || attempt.is_cancelled() {
                break Err(error.context("the recovery failed"));
            }
            self.leave_lanes();
            if attempt.wait(RETRY.min(limit.at().remaining().unwrap_or(RETRY))) {
                break Err(error.context("the recovery was ended"));
            }
        };
        shared.guest.decisions.attempted();
        self.recovering = recovered.is_ok();
        recovered
    }

    /// Agrees with the destination on what it lacks, and has the other lanes send that.
    fn recover(&mut self, route: &mut Route, attempt: &Cancel, limit: Limit) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let params = &shared.params;
        let cancel = &shared.handle.cancel;
        let count = params.channels as usize + 1;
        let channels: Vec<Channel> = match route.ready(count) {
            Some(ready) => ready,
            None => route.connect(count, attempt, limit)?,
        };
        let pacer = &shared.guest.pacer;
        self.lanes = Some(Lanes::over(channels, true, pacer, params, cancel)?);
        // Whatever becomes of this attempt, the next one counts as newer.
        self.epoch += 1;
        let epoch = self.epoch;
        let io = Io::until(attempt, params.io()).within(limit);
        self.greet(&io, Some(epoch))?;
        let missing = self.hear_missing(&io)?;
        let total = missing.iter().map(|m| u64::from(m.missing)).sum();
        self.consumer.forget_pending();
        for missing in &missing {
            for run in missing.runs() {
                let pages = run.end - run.start;
                self.consumer
                    .put_back(BlockId(missing.block), run.start, pages);
            }
        }
        let blocks = self.announced.copied();
        let rest = Rest::new(&self.consumer, blocks, Pages(total), epoch, &self.counts)?;
        self.rest = Some(Arc::clone(&rest));
        let memory = shared.guest.tracker.memory();
        let vmm = self.common.vmm.clone();
        self.lanes()?.start(memory, &vmm)?;
        let io = Io::until(cancel, params.io());
        self.sending(&io)?.2.serve(&rest)
    }

    /// The destination's description of what it lacks.
    fn hear_missing(&mut self, io: &Io<'_>) -> Result<Vec<Missing>> {
        let epoch = self.epoch;
        let lengths: std::collections::HashMap<BlockId, Pages> = self.announced.copied().collect();
        let lane = self.first()?;
        match lane.hear(&io.of("RECOVER_REPLY"))? {
            Record::RecoverReply(reply) if reply.epoch == epoch => {}
            other => {
                return Err(lane.unexpected(other.record_type(), "RECOVER_REPLY of this epoch"))
            }
        }
        let (mut described, mut all) = (Described::default(), Vec::new());
        loop {
            match lane.hear(&io.of("MISSING or MISSING_END"))? {
                Record::Missing(missing) => {
                    let length = lengths.get(&BlockId(missing.block));
                    let taken = described.take(&missing, length.copied().unwrap_or_default());
                    lane.named(taken)?;
                    fallible::push(&mut all, missing, "a description")?;
                }
                Record::MissingEnd(end) if end.epoch == epoch => {
                    let ended = described.end(&end);
                    lane.named(ended)?;
                    return Ok(all);
                }
                other => return Err(lane.unexpected(other.record_type(), "MISSING or MISSING_END")),
            }
        }
    }
}
