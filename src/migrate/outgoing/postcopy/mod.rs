//! The rest of a guest that runs at the destination already: the pages that were not sent before the
//! switch to postcopy.
//!
//! All lanes take these pages out of the frozen consumer's pending, so each page leaves once: the urgent
//! lane those that the destination asks for, the others whatever lies behind the last request
//! ([`focus`]), a few milliseconds' worth at a time ([`batch`]). A lane that is lost puts its unacknowledged pages back. That is the whole account: a
//! recovery replaces it by what the destination says.

mod batch;
mod focus;

use super::lane::Lane;
use crate::channel::Io;
use crate::dirty::consumer::Consumer;
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::BlockId;
use crate::migrate::params::Params;
use crate::runtime::{Cancel, Deadline, Recall};
use crate::units::Pages;
use crate::wire::{Record, Request};
use batch::Batch;
use focus::Focus;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Runs of one batch of a bulk lane. Its pages are those of [`Batch`].
const BULK_RUNS: usize = 128;
/// Runs and pages of one answer on the urgent lane. A host page of a gibibyte goes in several.
const URGENT_RUNS: usize = 256;
const URGENT_PAGES: u64 = 512;
/// An answer on the urgent lane is followed by a marker after this time, when no further one comes.
const SETTLE: Duration = Duration::from_millis(50);

/// See the file's description.
#[derive(Debug)]
pub(super) struct Rest {
    consumer: Arc<Consumer>,
    /// The blocks that the destination knows, with their lengths.
    blocks: HashMap<BlockId, Pages>,
    focus: Mutex<Focus>,
    batch: Mutex<Batch>,
    /// Raised when nothing is pending any more.
    all_taken: Recall,
    /// Pages of the last description.
    pub(super) described: Pages,
    /// The description's number.
    pub(super) epoch: u32,
    counts: Arc<Counts>,
}

/// What the destination has asked for since the switch, over all recoveries.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Records with requests.
    requests: AtomicU64,
    /// Pages that were asked for.
    requested: AtomicU64,
}

impl Counts {
    /// Requests, and pages that were asked for.
    pub(super) fn now(&self) -> [u64; 2] {
        [&self.requests, &self.requested].map(|count| count.load(Relaxed))
    }
}

impl Rest {
    /// The rest of what `consumer` has pending: `described` pages of `blocks`.
    ///
    /// # Errors
    /// When there is no memory or no descriptor for it.
    pub(super) fn new(
        consumer: &Arc<Consumer>,
        blocks: impl Iterator<Item = (BlockId, Pages)>,
        described: Pages,
        epoch: u32,
        counts: &Arc<Counts>,
    ) -> Result<Arc<Rest>> {
        let mut known = HashMap::new();
        for (block, pages) in blocks {
            fallible::insert(&mut known, block, pages, "the guest's blocks")?;
        }
        Ok(Arc::new(Rest {
            consumer: Arc::clone(consumer),
            blocks: known,
            focus: Mutex::default(),
            batch: Mutex::default(),
            all_taken: Recall::new()?,
            described,
            epoch,
            counts: Arc::clone(counts),
        }))
    }

    fn focus(&self) -> MutexGuard<'_, Focus> {
        self.focus.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether each page has been taken by some lane.
    fn is_all_taken(&self) -> bool {
        self.consumer.pending() == Pages(0)
    }

    /// The next pages of the walk. Empty when all are taken.
    fn take(&self, stop: &Cancel) -> Result<Taken> {
        loop {
            let from = self.focus().next();
            let mut end = from.cursor;
            let most = self.batch().pages();
            let taken = self.consumer.take_recallable(&mut end, BULK_RUNS, most)?;
            self.focus().went(from, end);
            if !taken.is_empty() {
                return Ok(taken);
            }
            if self.is_all_taken() {
                self.all_taken.raise();
                return Ok(taken);
            }
            if from.cursor == Default::default() {
                // What is left belongs to a block that is just being removed or added.
                stop.wait(Duration::from_millis(1));
            }
            stop.check("a channel")?;
        }
    }

    /// Sends a batch of what is left on one lane. Returns whether anything was left.
    pub(super) fn step(
        &self,
        lane: &mut Lane,
        pass: u32,
        recall: &Recall,
        bounds: &Bounds<'_>,
    ) -> Result<bool> {
        lane.listen()?;
        bounds.stop.check("a channel")?;
        let taken = self.take(bounds.stop)?;
        if taken.is_empty() {
            return Ok(false);
        }
        let sent = lane.send_counted(&[], taken, pass, recall, bounds.params, &bounds.io())?;
        self.batch().sent(Pages(sent.data_pages), sent.time);
        Ok(true)
    }

    /// Sends what is left on one lane, and the lane's final marker. `each` is called after each batch.
    /// Returns when all of it is acknowledged.
    pub(super) fn bulk(
        &self,
        lane: &mut Lane,
        pass: u32,
        recall: &Recall,
        bounds: &Bounds<'_>,
        mut each: impl FnMut(&Lane),
    ) -> Result<()> {
        while self.step(lane, pass, recall, bounds)? {
            each(lane);
        }
        lane.send_marker(pass, true, &bounds.io())?;
        each(lane);
        lane.await_acknowledgements(0, bounds.params, &bounds.io())
    }

    /// Answers the destination's requests on the urgent lane, until every page was sent.
    pub(super) fn urgent(
        &self,
        lane: &mut Lane,
        pass: u32,
        recall: &Recall,
        bounds: &Bounds<'_>,
        mut each: impl FnMut(&Lane),
    ) -> Result<()> {
        let mut said = Instant::now();
        loop {
            let (mut unmarked, mut news) = (false, false);
            for request in lane.requests() {
                unmarked |= self.answer(lane, &request, pass, recall, bounds)?;
            }
            while let Some(record) = lane.hear_at_once()? {
                match record {
                    Record::Request(request) => {
                        unmarked |= self.answer(lane, &request, pass, recall, bounds)?;
                    }
                    Record::Ack(ack) => {
                        lane.acknowledged(ack.number)?;
                        news = true;
                    }
                    other => return Err(lane.unexpected(other.record_type(), "REQUEST")),
                }
            }
            bounds.stop.check("the urgent channel")?;
            if unmarked {
                said = Instant::now();
            }
            if unmarked || news {
                each(lane);
            }
            if self.is_all_taken() {
                break;
            }
            if lane.has_requests() {
                continue;
            }
            // A destination that hears nothing takes the connection for lost.
            let quiet = bounds.params.io_timeout / 3;
            let due = match lane.has_unmarked() {
                true => SETTLE,
                false => quiet,
            };
            let until = Deadline::after(due.saturating_sub(said.elapsed()));
            lane.wait_for_peer_until(&self.all_taken, bounds.stop, until)?;
            self.all_taken.settle();
            if said.elapsed() >= due {
                match lane.has_unmarked() {
                    true => lane.send_marker(pass, false, &bounds.io())?,
                    false => lane.say(&Record::Keepalive, &bounds.io())?,
                }
                said = Instant::now();
            }
        }
        lane.send_marker(pass, true, &bounds.io())?;
        each(lane);
        // A request that comes now is for pages that are on their way.
        while lane.markers_waiting() > 0 {
            let io = bounds.io();
            match lane.hear(&io.within(io.idle.from_now()).of("an acknowledgement"))? {
                Record::Ack(ack) => lane.acknowledged(ack.number)?,
                Record::Request(_) => {}
                other => return Err(lane.unexpected(other.record_type(), "ACK")),
            }
        }
        lane.land(&bounds.io())
    }

    /// Sends those of the requested pages that no lane has taken. Returns whether there were any.
    fn answer(
        &self,
        lane: &mut Lane,
        request: &Request,
        pass: u32,
        recall: &Recall,
        bounds: &Bounds<'_>,
    ) -> Result<bool> {
        let block = BlockId(request.block);
        let length = self.blocks.get(&block).copied().unwrap_or_default();
        self.counts.requests.fetch_add(1, Relaxed);
        let mut any = false;
        for (first, count) in &request.runs {
            let count = u64::from(*count);
            let end = Pages(first.0.saturating_add(count));
            if end > length {
                let message = format!(
                    "REQUEST: block {}: expected pages inside the block's {length} pages, found {count} \
                     from page {first}",
                    request.block
                );
                return Err(Error::new(Kind::Protocol, message));
            }
            self.counts.requested.fetch_add(count, Relaxed);
            self.focus().asked(block, *first);
            let mut at = *first;
            while at < end {
                let part = Pages(end.0.min(at.0 + URGENT_PAGES));
                loop {
                    let taken = self.consumer.take_run(block, at..part, URGENT_RUNS)?;
                    if taken.is_empty() {
                        break;
                    }
                    any = true;
                    lane.send_counted(&[], taken, pass, recall, bounds.params, &bounds.io())?;
                }
                at = part;
            }
        }
        Ok(any)
    }
}

/// What bounds the work of a lane.
pub(super) struct Bounds<'a> {
    /// Ends it.
    pub(super) stop: &'a Cancel,
    pub(super) params: &'a Params,
}

impl Bounds<'_> {
    fn io(&self) -> Io<'_> {
        Io::until(self.stop, self.params.io()).of("pages")
    }
}
