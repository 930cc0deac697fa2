//! What happens in the middle of a long pass, between two batches, so that a policy knows how fast the
//! guest writes: a background sync, or a look at the counts of vCPUs.
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
//! the time of a harvest. While dirty rings keep the limits of vCPUs there are none, because each one
//! would let every limited vCPU write one ring more than its limit ([`Policies::in_pass`]).
//!
//! [`Policies::in_pass`]: crate::migrate::steering::policies::Policies::in_pass

use super::Driver;
use crate::error::Result;
use crate::migrate::outgoing::course::At;
use crate::migrate::steering::policies::InPass;
use crate::migrate::steering::Moment;
use std::time::{Duration, Instant};

impl Driver {
    /// Syncs or counts when that is due. Called in a pass, between two batches.
    pub(super) fn look_in_pass(&mut self) -> Result<()> {
        let (what, every) = self.steer.in_pass();
        if !self.is_due(what, every) {
            return Ok(());
        }
        match what {
            InPass::Nothing => return Ok(()),
            InPass::Sync => {
                self.sync(At::Middle)?;
            }
            InPass::Count => self.count_vcpus()?,
        }
        // The answer about the pass is asked for before the next batch anyway.
        let facts = self.facts(Moment::Walking);
        self.steer.ask(&facts, Some(&self.rates.fresh()))?;
        self.follow_speed();
        Ok(())
    }

    fn is_due(&self, what: InPass, every: Duration) -> bool {
        match what {
            InPass::Nothing => false,
            InPass::Sync => {
                // A sync that takes long does not follow the one before at once.
                let least = self.course.sync_time() * SHARE;
                self.course.since_sync(Instant::now(), self.common.begun) >= every.max(least)
            }
            InPass::Count => self.rates.since_counted(self.common.begun.elapsed()) >= every,
        }
    }

    /// The guest's dirty rate, in pages a second.
    pub(super) fn dirty_rate(&self) -> Option<f64> {
        self.course
            .dirty_rate(self.steer.in_pass().0 != InPass::Nothing)
    }
}

/// Between two background syncs there is at least this many times the time of a sync.
const SHARE: u32 = 20;
