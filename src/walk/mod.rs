//! A walk over pending pages: it takes them from a consumer batch by batch and puts them into an
//! [`Outlet`].
//!
//! A walk knows no socket and no file. Its caller decides when a pass ends and when the guest is
//! paused. Between two steps a walk holds no page: each page is the outlet's from the moment it is
//! taken.

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

/// A walk over a consumer's pending pages, batch by batch, into an [`Outlet`].
#[derive(Debug)]
pub struct Walk {
    cursor: Cursor,
    /// Raised by the removal of a block.
    recall: Arc<PinRecall>,
}

impl Walk {
    /// A walk over blocks of `memory`, at the beginning of the first.
    ///
    /// # Errors
    /// When no descriptor can be made for the signal that a block was removed.
    pub fn over(memory: &Memory) -> Result<Walk> {
        Ok(Walk {
            cursor: Cursor::default(),
            recall: PinRecall::of(memory)?,
        })
    }

    /// The signal that a block has been removed, for a thread that waits between two steps. It
    /// stays raised until that thread lowers it or the walk goes on.
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
    /// Those of taking and of the outlet. Pages that were taken are not lost.
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

    /// [`Walk::step`] for pages that need not be read: ballooned and free ones. They need a walk of
    /// their own.
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
        // The walk pins nothing now. A removal from here on raises the signal again.
        self.recall.lower();
        let taken = take()?;
        if taken.is_empty() {
            return Ok(None);
        }
        outlet.put(taken, &self.recall).map(Some)
    }
}
