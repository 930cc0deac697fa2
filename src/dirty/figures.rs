//! A tracker's figures, as published for queries.
//!
//! A sync of a terabyte takes a tenth of a second, and a query does not wait for it. The query
//! returns the figures of the moment when the tracker's lock was last released.

use super::report::{ConsumerStats, TrackerStats};
use crate::units::Pages;
use std::sync::{Mutex, MutexGuard};

/// The tracker's figures when its lock was last released.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub stats: TrackerStats,
    pub started: bool,
    /// As of the last sync, start or stop, or of the last query that did not have to wait.
    pub slow: Slow,
}

/// The figures of one consumer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConsumerFigures {
    pub stats: ConsumerStats,
    pub started: bool,
    pub pending: Pages,
    /// How many of the pending pages are ballooned.
    pub ballooned: u64,
}

/// Where a consumer's figures are published. Its lock is held for the copying of a few words.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<ConsumerFigures>);

impl Published {
    pub fn publish(&self, figures: ConsumerFigures) {
        *self.locked() = figures;
    }

    pub fn now(&self) -> ConsumerFigures {
        *self.locked()
    }

    fn locked(&self) -> MutexGuard<'_, ConsumerFigures> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Figures that are summed over blocks, or asked of each log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slow {
    /// Bytes of memory that bitmaps and rings hold.
    pub heap_bytes: u64,
    /// Pages that logs were told of and that are no guest memory.
    pub strays: u64,
}

#[cfg(test)]
mod tests;
