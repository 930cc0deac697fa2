//! Background syncs: dirty state is synced in the middle of a long pass, between two batches.
//!
//! Example: the first pass of a terabyte takes a quarter of an hour. Without a sync nobody learns
//! meanwhile what the guest writes, so a policy that slows the guest would begin too late, and a
//! forecast would rest on nothing.
//!
//! **The walk is not disturbed.** A sync makes pages pending and takes none. A page ahead of the walk
//! goes in its newest version anyway. A page behind it goes with the next pass, as it would have
//! without the sync. The pass keeps its number, and no event is sent.
//!
//! The syncs come only while a policy that may slow the guest is enabled, because each one costs
//! the time of a harvest.

use super::Driver;
use crate::error::Result;
use crate::migrate::outgoing::course::At;
use crate::migrate::steering::Moment;
use std::time::{Duration, Instant};

impl Driver {
    /// The time between two syncs, when background syncs are wanted.
    fn background(&self) -> Option<Duration> {
        self.steer.background_sync()
    }

    /// Syncs when a background sync is due. Called in a pass, between two batches.
    pub(super) fn sync_in_background(&mut self) -> Result<()> {
        let Some(every) = self.background() else {
            return Ok(());
        };
        let now = Instant::now();
        // A sync that takes long does not follow the one before at once.
        let least = self.course.sync_time() * SHARE;
        if self.course.since_sync(now, self.common.begun) >= every.max(least) {
            self.sync(At::Middle)?;
            // The answer about the pass is asked for before the next batch anyway.
            let facts = self.facts(Moment::Walking);
            self.steer.ask(&facts, Some(&self.rates.fresh()))?;
            self.follow_speed();
        }
        Ok(())
    }

    /// The guest's dirty rate, in pages a second.
    pub(super) fn dirty_rate(&self) -> Option<f64> {
        self.course.dirty_rate(self.background().is_some())
    }
}

/// Between two background syncs there is at least this many times the time of a sync.
const SHARE: u32 = 20;
