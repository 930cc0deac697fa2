//! Lane 0's own pages, while the walk runs ahead for the other lanes.
//!
//! The migration's thread deals batches to all lanes and sends lane 0's pages itself. Example of
//! what goes wrong when it sends them at once: lane 1 has nothing left, and gets nothing for as
//! long as the thread is busy with 2 MiB of lane 0. And when lane 1's queue is full, lane 0 has
//! nothing to send while the thread waits for room. With two channels on two processors each lane
//! was idle for a sixth of the time.
//!
//! So lane 0 has a queue too, and its pages wait there as long as another lane has too little to
//! do. The queue is the same as the workers', so the thread that removes a block finds these pages.

use super::queue::{Next, Queue, What, Work, LENGTH};
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::memory::Memory;
use crate::runtime::Recall;
use std::sync::Arc;

/// A lane with less work than this in its queue is fed before lane 0's pages are sent. One piece is
/// not enough: the lane may end it before the walk has found the next.
pub(super) const HUNGRY: usize = LENGTH / 2;

/// Lane 0's queue, when there are other lanes.
#[derive(Debug, Default)]
pub(super) struct Ahead(Option<Arc<Queue>>);

impl Ahead {
    /// # Errors
    /// When there is no memory or no descriptor for the queue.
    pub(super) fn over(memory: &Memory, news: &Arc<Recall>) -> Result<Ahead> {
        Ok(Ahead(Some(Queue::new(memory, news)?)))
    }

    /// How many pages wait.
    pub(super) fn pages(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.pages())
    }

    /// Whether a batch can be added.
    pub(super) fn has_room(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.has_room())
    }

    /// Adds a batch; there must be room.
    pub(super) fn add(&self, work: Work, memory: &Memory) -> Result<()> {
        let full = || Error::new(Kind::Internal, "no room for channel 0's pages");
        let queue = self.0.as_ref().ok_or_else(full)?;
        match queue.add(work, memory) {
            None => Ok(()),
            // The work is dropped, which puts its pages back.
            Some(_) => Err(full()),
        }
    }

    /// The next batch, and the signal that a block of it was removed; `None` when no batch waits.
    pub(super) fn next(&self) -> Option<(Taken, Arc<Queue>)> {
        let queue = self.0.as_ref()?;
        loop {
            match queue.next() {
                Next::Work(Work {
                    what: What::Pages(taken),
                    ..
                }) if !taken.is_empty() => return Some((taken, Arc::clone(queue))),
                // The batch is empty because its block was removed.
                Next::Work(_) => {}
                Next::Nothing | Next::Closed => return None,
            }
        }
    }

    /// Puts back all pages that wait.
    pub(super) fn give_up(&self) {
        self.0.iter().for_each(|queue| queue.give_up());
    }
}
