//! A further lane's worker thread. It takes work from a queue, encodes, sends, reads
//! acknowledgements, and gives the lane back when it ends.
//!
//! It decides nothing. When it finds an error, it tells all lanes ([`Failure`]) before it ends.

use super::balance::{Balance, Load};
use super::lane::Lane;
use super::postcopy::Bounds;
use super::queue::{Next, Queue, What, Work};
use crate::channel::{Io, ZeroCopy};
use crate::error::{Error, Kind, Result};
use crate::memory::Memory;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::failure::{Cause, Failure};
use crate::migrate::lane_name::LaneName;
use crate::migrate::params::Params;
use crate::migrate::steering::delivery::Carried;
use crate::migrate::steering::timed::Span;
use crate::runtime::thread::{catch, spawn, Join, Role};
use crate::runtime::{Recall, Wake};
use crate::walk::Put;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The figures of a lane, for other threads.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Figures {
    /// The totals of all pages that were sent.
    pub(super) put: Put,
    /// Bytes that went over the connection.
    pub(super) sent: u64,
    /// How many pages were sent and are not acknowledged.
    pub(super) unacknowledged: u64,
    /// How many pages were acknowledged since the switch to postcopy.
    pub(super) arrived: u64,
    /// All that was acknowledged.
    pub(super) delivered: Carried,
    /// Bytes that were sent and are not acknowledged.
    pub(super) on_the_way: u64,
    /// The moment since which the destination has had markers and has acknowledged none.
    pub(super) silent_since: Option<Instant>,
    /// How long the lane had nothing to send.
    pub(super) idle: Duration,
    /// How long the connection had no room.
    pub(super) waited: Duration,
    /// How long the cap on the bandwidth held it back.
    pub(super) paced: Duration,
    /// What became of pages that were sent in place.
    pub(super) zero_copy: ZeroCopy,
    /// The last time in which the lane had pages on their way.
    pub(super) span: Option<Span>,
}

impl Figures {
    pub(super) fn of(lane: &Lane) -> Figures {
        Figures {
            put: lane.put(),
            sent: lane.sent(),
            unacknowledged: lane.unacknowledged(),
            arrived: lane.arrived(),
            delivered: lane.delivered(),
            on_the_way: lane.on_the_way(),
            silent_since: lane.silent_since(),
            idle: Duration::ZERO,
            waited: lane.waited(),
            paced: lane.paced(),
            zero_copy: lane.zero_copy(),
            span: lane.span(),
        }
    }
}

/// What the threads of all lanes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) failure: Failure,
    pub(super) balance: Balance,
    /// Raised for the migration's thread: a queue has room, or all its work is done.
    pub(super) news: Arc<Recall>,
    pub(super) params: Params,
}

/// A lane at work on its thread.
#[derive(Debug)]
pub(super) struct Worker {
    name: LaneName,
    queue: Arc<Queue>,
    figures: Arc<Mutex<Figures>>,
    thread: Join<Lane>,
    /// How long the migration's thread has waited for room in the queue.
    pub(super) full: Duration,
}

impl Worker {
    /// Starts a thread for `lane`. `shares`: whether the lane has a share of all pages, so that a time
    /// without work counts as uneven.
    ///
    /// # Errors
    /// When there is no thread, descriptor or memory for the lane. The lane is dropped then, with
    /// nothing on its way.
    pub(super) fn start(
        lane: Lane,
        shared: &Arc<Shared>,
        memory: &Memory,
        vmm: &Callbacks,
        shares: bool,
    ) -> Result<Worker> {
        let queue = Queue::new(memory, &shared.news)?;
        let figures = Arc::new(Mutex::new(Figures::of(&lane)));
        let mut work = Working {
            lane,
            queue: Arc::clone(&queue),
            figures: Arc::clone(&figures),
            shared: Arc::clone(shared),
            shares,
            idle: Duration::ZERO,
        };
        let (vmm, name) = (vmm.clone(), work.lane.name().clone());
        let body = move || {
            work.run(&vmm);
            work.lane
        };
        Ok(Worker {
            name,
            queue,
            figures,
            thread: spawn(Role::Channel, |_| (), body)?,
            full: Duration::ZERO,
        })
    }

    /// The lane's name in messages.
    pub(super) fn name(&self) -> &LaneName {
        &self.name
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The current figures of the lane.
    pub(super) fn figures(&self) -> Figures {
        *lock(&self.figures)
    }

    /// Ends the thread: at once when the lanes are stopped, otherwise when its work is done.
    /// Returns the lane, with its account of pages that are not acknowledged.
    pub(super) fn end(self) -> Result<Lane> {
        self.queue.close();
        let lane = self.thread.join();
        self.queue.give_up();
        lane
    }
}

fn lock(figures: &Mutex<Figures>) -> MutexGuard<'_, Figures> {
    figures.lock().unwrap_or_else(|e| e.into_inner())
}

/// What the thread owns.
struct Working {
    lane: Lane,
    queue: Arc<Queue>,
    figures: Arc<Mutex<Figures>>,
    shared: Arc<Shared>,
    shares: bool,
    idle: Duration,
}

/// What a thread that is inside a long piece of work tells others.
struct Publish<'a> {
    queue: &'a Queue,
    figures: &'a Mutex<Figures>,
    idle: Duration,
}

impl Publish<'_> {
    fn pins(&self) -> &Recall {
        self.queue.pins()
    }

    fn now(&self, lane: &Lane) {
        *lock(self.figures) = Figures {
            idle: self.idle,
            ..Figures::of(lane)
        };
    }
}

impl Working {
    /// The body of the thread.
    fn run(&mut self, vmm: &Callbacks) {
        // After a panic, the lane and its account are still there for the thread that joins.
        let done = catch(|| {
            vmm.thread_start(Role::Channel)?;
            self.work()
        });
        if let Err(error) = done.and_then(|done| done) {
            let error = self.lane.explain(error);
            let cause = Cause::of(&error, self.lane.peer_ended());
            self.shared.failure.offer(cause, error);
            // Nothing more gets done, so nobody may wait for it.
            self.shared.news.raise();
        }
        let _ = catch(|| self.publish());
    }

    fn publish(&mut self) {
        *lock(&self.figures) = Figures {
            idle: self.idle,
            ..Figures::of(&self.lane)
        };
    }

    fn work(&mut self) -> Result<()> {
        loop {
            self.lane.listen()?;
            self.publish();
            match self.queue.next() {
                Next::Work(work) => {
                    let last = matches!(work.what, What::Rest(_) | What::Urgent(_));
                    self.perform(work)?;
                    if last {
                        // Says that the work is done. The destination may close this connection from
                        // here on, before the migration's thread has heard that it has all pages.
                        drop(self.queue.next());
                        return Ok(());
                    }
                }
                Next::Closed => return Ok(()),
                Next::Nothing => self.wait()?,
            }
        }
    }

    fn perform(&mut self, work: Work) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let params = &shared.params;
        let io = Io::until(shared.failure.stop(), params.io())
            .within(work.limit)
            .of("pages");
        match work.what {
            // The batch is empty because its block was removed.
            What::Pages(taken) if taken.is_empty() => Ok(()),
            What::Pages(taken) => {
                let pins = self.queue.pins();
                self.lane
                    .send_counted(&[], taken, work.pass, pins, params, &io)
                    .map(drop)
            }
            What::Piece(bytes) => self.lane.send_piece(&bytes, work.pass, params, &io),
            What::PagesEnd => self.lane.end_pages(work.pass, &io),
            What::Switch => {
                self.lane.begin_postcopy(work.pass, &io)?;
                self.publish();
                self.lane.await_acknowledgements(0, params, &io)
            }
            What::Rest(rest) => {
                let (lane, publish, bounds) = self.for_the_rest(&shared);
                rest.bulk(lane, work.pass, publish.pins(), &bounds, |lane| {
                    publish.now(lane)
                })
            }
            What::Urgent(rest) => {
                let (lane, publish, bounds) = self.for_the_rest(&shared);
                rest.urgent(lane, work.pass, publish.pins(), &bounds, |lane| {
                    publish.now(lane)
                })
            }
            What::Marker { last } => {
                self.lane.send_marker(work.pass, last, &io)?;
                // Others see the unacknowledged pages while this waits for the marker.
                self.publish();
                self.lane.await_acknowledgements(0, params, &io)
            }
        }
    }

    fn for_the_rest<'a>(
        &'a mut self,
        shared: &'a Shared,
    ) -> (&'a mut Lane, Publish<'a>, Bounds<'a>) {
        let publish = Publish {
            queue: &self.queue,
            figures: &self.figures,
            idle: self.idle,
        };
        let bounds = Bounds {
            stop: shared.failure.stop(),
            params: &shared.params,
        };
        (&mut self.lane, publish, bounds)
    }

    /// Waits for work, and for records of the destination.
    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        let idle = self.shares.then(|| self.shared.balance.be(Load::Idle));
        let stop = self.shared.failure.stop();
        let woken = self.lane.wait_for_peer_or(self.queue.work(), stop);
        drop(idle);
        self.idle += begun.elapsed();
        match woken? {
            Wake::Cancelled => Err(Error::new(Kind::Cancelled, "a channel was stopped")),
            Wake::Ready | Wake::TimedOut => {
                self.queue.work().settle();
                Ok(())
            }
        }
    }
}
