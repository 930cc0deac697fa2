//! A walk over pending pages: what is taken next, and into which [`Outlet`].
//!
//! A walk takes pages from a consumer batch by batch. It knows no socket and no file, decides
//! neither when a pass ends nor when the guest is paused, and holds nothing between two steps:
//! pages are the outlet's from the moment they are taken.

mod batch;
mod outlet;
#[cfg(test)]
mod tests;

pub use batch::{next_size, BATCH_PAGES};
pub use outlet::{Outlet, Put};

use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::memory::{Memory, PinRecall};
use crate::runtime::Recall;
use crate::units::Pages;
use std::sync::Arc;

/// The most runs in one batch.
const BATCH_RUNS: usize = 256;

/// See the file's description.
#[derive(Debug)]
pub struct Walk {
    cursor: Cursor,
    /// Raised by whoever removes a block.
    recall: Arc<PinRecall>,
}

impl Walk {
    /// A walk over blocks of `memory`, at the beginning of the first.
    ///
    /// # Errors
    /// When there is no descriptor for hearing of removed blocks.
    pub fn over(memory: &Memory) -> Result<Walk> {
        Ok(Walk {
            cursor: Cursor::default(),
            recall: PinRecall::of(memory)?,
        })
    }

    /// Raised when a block has been removed, until it is lowered or the walk goes on: for who waits
    /// between two steps and has to hear of that.
    pub fn removals(&self) -> &Recall {
        &self.recall
    }

    /// Begins again at the first block.
    pub fn restart(&mut self) {
        self.cursor = Cursor::default();
    }

    /// Puts the next `most` pending pages or fewer into `outlet`; `None` when the walk has come
    /// to its end, and the next step begins again.
    ///
    /// # Errors
    /// Of taking and of the outlet. What was taken is not lost.
    pub fn step(
        &mut self,
        consumer: &Consumer,
        most: Pages,
        outlet: &mut impl Outlet,
    ) -> Result<Option<Put>> {
        let mut cursor = self.cursor;
        let put = self.put(outlet, || {
            consumer.take_recallable(&mut cursor, BATCH_RUNS, most)
        });
        self.cursor = cursor;
        put
    }

    /// The same for pages that need not be read (ballooned, free), on a walk of their own.
    ///
    /// # Errors
    /// As for [`Walk::step`].
    pub fn step_unread(
        &mut self,
        cursor: &mut Cursor,
        consumer: &Consumer,
        outlet: &mut impl Outlet,
    ) -> Result<Option<Put>> {
        self.put(outlet, || {
            consumer.take_unread_recallable(cursor, BATCH_RUNS)
        })
    }

    fn put(
        &mut self,
        outlet: &mut impl Outlet,
        take: impl FnOnce() -> Result<Taken>,
    ) -> Result<Option<Put>> {
        // Nothing is pinned now: whoever removes a block from here on and waits for us is heard.
        self.recall.lower();
        let taken = take()?;
        if taken.is_empty() {
            return Ok(None);
        }
        outlet.put(taken, &self.recall).map(Some)
    }
}
