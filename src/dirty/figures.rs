//! A tracker's figures, as they are published for whoever only looks.
//!
//! Whoever looks at a tracker does not wait for a sync, which takes a tenth of a second where
//! a terabyte is tracked: what was true when the tracker's lock was last let go of is told.

use super::report::{ConsumerStats, TrackerStats};
use crate::units::Pages;
use std::sync::{Mutex, MutexGuard};

/// The tracker as it was when its lock was last let go of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub stats: TrackerStats,
    pub started: bool,
    /// As of the last sync, start or stop, or of the last look that did not have to wait.
    pub slow: Slow,
}

/// The same of one consumer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConsumerFigures {
    pub stats: ConsumerStats,
    pub started: bool,
    pub pending: Pages,
    /// Of what is pending, ballooned pages.
    pub ballooned: u64,
}

/// Where a consumer's figures are published. Held for the copying of a few words.
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

/// What is counted block by block, or asked of each log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slow {
    /// Bytes of bitmaps and rings.
    pub heap_bytes: u64,
    /// Pages that logs were told of and that are no memory of the guest's.
    pub strays: u64,
}

#[cfg(test)]
mod tests;
