//! A tracker's figures, and the lock that they are taken from.
//!
//! Whoever looks at a tracker does not wait for a sync, which takes a tenth of a second where
//! a terabyte is tracked: what was true when the lock was last let go of is told. Whoever
//! changes a tracker takes the lock in turn ([`crate::runtime::fair`]).

use super::tracker::{ConsumerStats, Inner, Tracker, TrackerStats};
use crate::runtime::fair::FairGuard;
use crate::units::Pages;
use std::ops::{Deref, DerefMut};
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
    /// Of what is pending, given-back pages.
    pub returned: u64,
}

/// Where a consumer's figures are published. Held for the copying of a few words.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<ConsumerFigures>);

impl Published {
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

/// Holds the tracker's lock, and publishes the figures before it lets go.
pub(super) struct Locked<'a> {
    tracker: &'a Tracker,
    inner: FairGuard<'a, Inner>,
}

impl Deref for Locked<'_> {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for member in self.inner.members.iter().flatten() {
            *member.published.locked() = member.figures();
        }
        let now = self.inner.figures();
        *self.tracker.published() = now;
    }
}

impl Tracker {
    /// The lock, in turn.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            tracker: self,
            inner: self.inner.lock(),
        }
    }

    /// What was published last. Never waits for whoever holds the lock.
    pub(super) fn figures(&self) -> Figures {
        *self.published()
    }

    /// [`Figures::slow`], counted now if nobody holds the lock.
    pub(super) fn slow_figures(&self) -> Slow {
        match self.inner.try_lock() {
            Some(inner) => {
                let mut inner = Locked {
                    tracker: self,
                    inner,
                };
                inner.count_slowly();
                inner.slow
            }
            None => self.figures().slow,
        }
    }

    /// Held for the copying of a few words.
    fn published(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    fn figures(&self) -> Figures {
        Figures {
            stats: self.stats,
            started: self.started,
            slow: self.slow,
        }
    }

    /// Brings [`Figures::slow`] up to date.
    pub(super) fn count_slowly(&mut self) {
        self.slow = Slow {
            heap_bytes: self.blocks.heap_bytes()
                + self.logs.iter().map(|log| log.heap_bytes()).sum::<u64>(),
            strays: self.logs.iter().map(|log| log.strays()).sum(),
        };
    }
}

#[cfg(test)]
#[path = "figures_tests.rs"]
mod tests;
