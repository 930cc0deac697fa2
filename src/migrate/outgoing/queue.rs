//! What waits for a further lane: a few batches of taken pages, and markers between them.
//!
//! The migration's thread fills the queue, the lane's worker empties it. Nobody waits on a lock: each
//! of the two waits on a descriptor, and beside it on a cancel and on its connection.
//!
//! **The removal of a block.** Pages that wait here are pinned, and a peer that takes nothing may
//! have them wait for as long as the I/O timeout. So whoever removes a block takes the block's pages
//! out of the queue, on the thread of the removal. They are not sent: the block is gone. Pages that
//! the worker has in its hands are the worker's to let go of. It is asked by [`Queue::pins`], which it
//! lowers before it takes the next batch.
//!
//! Example of the loss of a pin: a batch is taken, the block is removed, the queue is searched, the
//! batch is put into the queue. Nobody would look at it again before the peer moves. So a batch is
//! held against the map once it is in, under the queue's lock: the map changes before the queue is
//! searched.

use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::fallible;
use crate::memory::{Map, MapObserver, Memory};
use crate::runtime::{Limit, Recall};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Pieces of work that may wait for a lane.
const LENGTH: usize = 4;

/// One piece of work for a lane.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) what: What,
    /// The pass, which markers say.
    pub(super) pass: u32,
    /// When it has to be done.
    pub(super) limit: Limit,
}

/// See [`Work`].
#[derive(Debug)]
pub(super) enum What {
    /// Pages to send, whose protection has been restored.
    Pages(Taken),
    /// A marker, the final one or not. Done when everything is acknowledged.
    Marker {
        /// After it comes nothing.
        last: bool,
    },
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Work>,
    /// The worker has taken a piece of work and has not done it.
    busy: bool,
    /// Nothing comes any more.
    closed: bool,
}

/// What there is to do.
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
    /// Raised for the worker: there is something to do, or nothing comes any more.
    work: Recall,
    /// Raised for the worker: it is to let go of its pins.
    pins: Recall,
    /// Raised for the migration's thread: there is room, or all is done.
    news: Arc<Recall>,
}

/// Whether all blocks of `taken` are in the map.
fn all_there(taken: &Taken, memory: &Memory) -> bool {
    memory.with_map(|map| taken.blocks().all(|block| map.block(block.id()).is_some()))
}

/// Puts back, and lets go of, what belongs to blocks that are not in the map any more.
pub(super) fn leave_out_removed(taken: &mut Taken, memory: &Memory) {
    if !all_there(taken, memory) {
        leave_out_all_but(taken, &memory.map());
    }
}

fn leave_out_all_but(taken: &mut Taken, map: &Map) {
    taken.leave_out(|block| map.block(block).is_none());
}

impl Queue {
    /// An empty one, which hears of blocks that are removed from `memory`; `news` is raised for the
    /// migration's thread.
    ///
    /// # Errors
    /// When there is no memory or no descriptor for it.
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

    /// What the worker waits for when it has nothing to do.
    pub(super) fn work(&self) -> &Recall {
        &self.work
    }

    /// Asks the worker to let go of its pins.
    pub(super) fn pins(&self) -> &Recall {
        &self.pins
    }

    /// Adds work; gives it back where there is no room. Pages of blocks that are not in `memory`
    /// any more are put back instead.
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

    /// The worker has done its last piece of work, and asks for the next.
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

    /// Whether work can be added.
    pub(super) fn has_room(&self) -> bool {
        self.lock().waiting.len() < LENGTH
    }

    /// Whether all work is done.
    pub(super) fn is_done(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && !state.busy
    }

    /// How many pages wait.
    pub(super) fn pages(&self) -> u64 {
        let state = self.lock();
        let pages = state.waiting.iter().map(|work| match &work.what {
            What::Pages(taken) => taken.pages().0,
            What::Marker { .. } => 0,
        });
        pages.sum()
    }

    /// Nothing comes any more: the worker ends when all work is done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.raise();
    }

    /// Puts everything back that waits.
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
        // One change adds blocks or removes them, never both.
        if new.blocks().len() >= old.blocks().len() {
            return;
        }
        let mut state = self.lock();
        for work in &mut state.waiting {
            if let What::Pages(taken) = &mut work.what {
                leave_out_all_but(taken, new);
            }
        }
        // Under the lock: a worker that takes a batch after this finds it searched, and one that took
        // it before has lowered this already.
        self.pins.raise();
    }
}
