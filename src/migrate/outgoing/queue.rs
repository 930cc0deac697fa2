//! The queue of a lane: a few batches of taken pages, and markers between them.
//!
//! The migration's thread fills the queue, and the lane's worker empties it. Neither waits on a
//! lock. Each waits on a descriptor, and at the same time on a cancel and on its connection.
//!
//! **The removal of a block.** Pages in the queue are pinned. When the peer takes nothing, they may
//! wait there for as long as the I/O timeout. So the thread that removes a block takes the block's
//! pages out of the queue itself. They are not sent, because the block is gone. Pages that the
//! worker holds can be released only by the worker. [`Queue::pins`] asks it to; the worker lowers
//! this request before it takes the next batch.
//!
//! Example of a pin that is overlooked: a batch is taken, its block is removed, the queue is
//! searched, and then the batch is put into the queue. Nobody would look at it again before the
//! peer moves. So a batch is compared with the map after it was put in, under the queue's lock.
//! That is enough, because the map changes before the queue is searched.

use super::devices::PieceBytes;
use super::postcopy::Rest;
use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::fallible;
use crate::memory::{Map, MapObserver, Memory};
use crate::runtime::{Limit, Recall};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The most pieces of work in a queue: 16 MiB of contents. Where lanes share processors, one lane may
/// be held up for some milliseconds while the others send that much.
pub(super) const LENGTH: usize = 8;

/// One piece of work for a lane.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) what: What,
    /// The pass, which markers name.
    pub(super) pass: u32,
    /// The time by which the work must be done.
    pub(super) limit: Limit,
}

/// See [`Work`].
#[derive(Debug)]
pub(super) enum What {
    /// Pages to send, whose protection has been restored.
    Pages(Taken),
    /// A piece of a device's state.
    Piece(PieceBytes),
    /// The marker behind the last page run.
    PagesEnd,
    /// The marker where postcopy begins. Its work is done when it is acknowledged.
    Switch,
    /// All pages that are left, taken by the worker itself, and the final marker.
    Rest(Arc<Rest>),
    /// Answers to the destination's requests, until all pages were sent.
    Urgent(Arc<Rest>),
    /// A marker. Its work is done when everything before it is acknowledged.
    Marker {
        /// Whether this is the final marker, with nothing after it.
        last: bool,
    },
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Work>,
    /// The worker has taken a piece of work and has not finished it.
    busy: bool,
    /// No further work comes.
    closed: bool,
}

/// What the worker is to do.
#[derive(Debug)]
pub(super) enum Next {
    Work(Work),
    Nothing,
    Closed,
}

/// See the file's description.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Raised for the worker: there is work, or no further work comes.
    work: Recall,
    /// Raised for the worker: it is asked to let go of its pins.
    pins: Recall,
    /// Raised for the migration's thread: the queue has room, or all work is done.
    news: Arc<Recall>,
}

/// Whether all blocks of `taken` are in the map.
fn all_there(taken: &Taken, memory: &Memory) -> bool {
    memory.with_map(|map| taken.blocks().all(|block| map.block(block.id()).is_some()))
}

/// Puts back and unpins the pages of blocks that are no longer in the map.
pub(super) fn leave_out_removed(taken: &mut Taken, memory: &Memory) {
    if !all_there(taken, memory) {
        leave_out_all_but(taken, &memory.map());
    }
}

fn leave_out_all_but(taken: &mut Taken, map: &Map) {
    taken.leave_out(|block| map.block(block).is_none());
}

impl Queue {
    /// An empty queue, which is told when blocks are removed from `memory`. It raises `news` for
    /// the migration's thread.
    ///
    /// # Errors
    /// When there is no memory or no descriptor for the queue.
    pub(super) fn new(memory: &Memory, news: &Arc<Recall>) -> Result<Arc<Queue>> {
        let mut state = State::default();
        fallible::reserve_back(&mut state.waiting, LENGTH, "a channel's queue")?;
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            work: Recall::new()?,
            pins: Recall::new()?,
            news: Arc::clone(news),
        });
        let weak: Weak<Queue> = Arc::downgrade(&queue);
        memory.observe(weak);
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the worker waits for when it has no work.
    pub(super) fn work(&self) -> &Recall {
        &self.work
    }

    /// Asks the worker to let go of its pins.
    pub(super) fn pins(&self) -> &Recall {
        &self.pins
    }

    /// Adds work. When there is no room, the work is returned. Pages of blocks that are no longer
    /// in `memory` are put back instead of added.
    pub(super) fn add(&self, work: Work, memory: &Memory) -> Option<Work> {
        let mut state = self.lock();
        if state.waiting.len() >= LENGTH {
            return Some(work);
        }
        state.waiting.push_back(work);
        if let Some(What::Pages(taken)) = state.waiting.back_mut().map(|work| &mut work.what) {
            leave_out_removed(taken, memory);
        }
        drop(state);
        self.work.raise();
        None
    }

    /// Says that the worker's last piece of work is done, and takes the next.
    pub(super) fn next(&self) -> Next {
        self.work.lower();
        self.pins.lower();
        let mut state = self.lock();
        let was_busy = std::mem::take(&mut state.busy);
        let next = state.waiting.pop_front();
        let next = match next {
            Some(work) => {
                state.busy = true;
                Next::Work(work)
            }
            None if state.closed => Next::Closed,
            None => Next::Nothing,
        };
        drop(state);
        if was_busy || matches!(next, Next::Work(_)) {
            self.news.raise();
        }
        next
    }

    /// How many pieces of work wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether work can be added.
    pub(super) fn has_room(&self) -> bool {
        self.len() < LENGTH
    }

    /// Whether all work is done.
    pub(super) fn is_done(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && !state.busy
    }

    /// How many pages are in the queue.
    pub(super) fn pages(&self) -> u64 {
        let state = self.lock();
        let pages = state.waiting.iter().map(|work| match &work.what {
            What::Pages(taken) => taken.pages().0,
            What::Piece(_) | What::PagesEnd | What::Marker { .. } => 0,
            What::Switch | What::Rest(_) | What::Urgent(_) => 0,
        });
        pages.sum()
    }

    /// Says that no further work comes. The worker ends when all work is done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.raise();
    }

    /// Puts back all pages in the queue.
    pub(super) fn give_up(&self) {
        let left = {
            let mut state = self.lock();
            std::mem::take(&mut state.waiting)
        };
        drop(left);
    }
}

impl MapObserver for Queue {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        Ok(())
    }

    fn map_changed(&self, old: &Map, new: &Map) {
        // One change of the map either adds blocks or removes them.
        if new.blocks().len() >= old.blocks().len() {
            return;
        }
        let mut state = self.lock();
        for work in &mut state.waiting {
            if let What::Pages(taken) = &mut work.what {
                leave_out_all_but(taken, new);
            }
        }
        // Raised under the lock. When a worker takes a batch after this, the queue was searched
        // already. When it took its batch before this, it lowered the request before this raised
        // it.
        self.pins.raise();
    }
}
