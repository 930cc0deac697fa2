//! A guest that stands still: the last sync and the last pages, and whether the switchover goes on.

use super::{no_connection, Driver};
use crate::channel::Io;
use crate::dirty::When;
use crate::error::{Error, Kind, Result};
use crate::migrate::control::Blobs;
use crate::migrate::steering::budget::millis;
use crate::migrate::steering::{Moment, Verdict};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::walk::{self, Outlet, BATCH_PAGES};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time between two looks at whether the removal of a block has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Driver {
    /// Harvests all logs of a guest that stands still.
    pub(super) fn sync_stopped(&self) -> Result<()> {
        let cancel = &self.common.shared.handle.cancel;
        self.consumer.sync_unless(When::Stopped, cancel).map(drop)
    }

    /// Whether a guest that stands still is switched over, or switched to postcopy.
    pub(super) fn may_switch(&mut self, moment: Moment) -> Result<bool> {
        if !self.to_postcopy {
            return self.judge(moment);
        }
        let against = self.against_switch(moment);
        self.aborting = against.as_ref().map(|why| why.message().to_owned());
        Ok(against.is_none())
    }

    /// Has the decider judge the pause. Returns whether the switchover goes on.
    pub(super) fn judge(&mut self, moment: Moment) -> Result<bool> {
        let facts = self.facts(moment);
        match self.steer.judge(&facts)? {
            Verdict::GoThrough => Ok(true),
            Verdict::GiveUp(error) => Err(error),
            Verdict::Resume => {
                let expected = facts.expected_downtime().unwrap_or_default();
                self.aborting = Some(format!(
                    "the downtime would have been {} ({} so far, then {})",
                    millis(expected),
                    millis(facts.stood),
                    facts.parts().unwrap_or_default().describe()
                ));
                Ok(false)
            }
        }
    }

    /// The guest runs again after an aborted pause: forgets the pause and records its length.
    pub(super) fn pause_aborted(&mut self, why: &str) {
        let guest = &self.common.shared.guest;
        let stood = guest.paused_at().take().map(|at| at.elapsed());
        let stood = stood.unwrap_or_default();
        guest.pacer.end_override();
        self.blobs = Blobs::default();
        if std::mem::take(&mut self.to_postcopy) {
            self.steer.drop_postcopy();
        }
        self.streams.go_on();
        // Devices may have to be waited for again.
        self.told_wait = false;
        let stats = &mut self.common.stats;
        stats.forget_pause(stood);
        let text = format!("the pause was aborted after {}: {why}", millis(stood));
        self.common.vmm.event(EventKind::Downtime, text);
    }

    /// Called between two steps of the switchover. Fails when somebody has cancelled or the time is
    /// up.
    pub(super) fn check_gate(&self) -> Result<()> {
        self.common.shared.handle.cancel.check("the switchover")?;
        if self.switchover.expired() {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "{} ran out while the guest stood still: it was {}",
                    self.switchover,
                    self.common.shared.handle.state().name()
                ),
            ));
        }
        Ok(())
    }

    /// Sends all pages that are left, the end marker and the device state. The guest stands still.
    pub(super) fn send_last(&mut self) -> Result<()> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.common.shared);
        let stop = self.stop();
        let io = Io::until(&stop, shared.params.io())
            .within(self.switchover)
            .of("the last pages");
        let before = self.pages_sent();
        let bytes = self.sent();
        self.walk.restart();
        let mut batch_pages = BATCH_PAGES;
        // Until two walks in a row find nothing: the first of them may have begun in the middle of
        // memory.
        loop {
            self.check_gate()?;
            match self.step(batch_pages, &io) {
                Ok(Some(put)) => batch_pages = walk::next_size(&put, batch_pages),
                Ok(None) => break,
                Err(e) => return Err(self.explain(e)),
            }
        }
        let result = self.send_end(bytes, &io).map_err(|e| self.explain(e));
        self.common.stats.last_send = Some(begun.elapsed());
        self.common.stats.last_pages = self.pages_sent() - before;
        result
    }

    pub(super) fn send_end(&mut self, before: u64, io: &Io<'_>) -> Result<()> {
        self.lanes()?.end_urgent()?;
        if self.streams.is_empty() {
            self.sending(io)?.2.finish()?;
            self.last_bytes = self.sent().saturating_sub(before);
        } else {
            self.end_running(io)?;
            self.sending(io)?.2.end_pages()?;
            self.last_bytes = self.sent().saturating_sub(before);
            self.send_stopped(io)?;
        }
        // The destination needs the limit before its READY: from that record on it counts the time
        // in which a hand-over counts.
        let limit = self.common.shared.params.handover_timeout;
        let lane = self.lanes.as_mut().ok_or_else(no_connection)?.first();
        lane.send_state(&self.blobs, limit, &io.of("device state"))
    }

    /// Checks that no page is left to send. The guest stands still, but two things can have
    /// happened since the last walk. The VMM may have added memory. And the VMM may be removing a
    /// block, whose pages are set aside: when the block is gone, nobody needs them, but when the
    /// removal is refused, the destination would lack them. So this waits for the removal to end.
    pub(super) fn check_all_sent(&self) -> Result<()> {
        let memory = self.common.shared.guest.tracker.memory();
        loop {
            let left = self.consumer.pending();
            if left.0 > 0 {
                return Err(Error::new(
                    Kind::State,
                    format!(
                        "memory was added after the last pages were sent: {left} pages would be \
                         missing at the destination, so the guest stays here; add none between \
                         `pause` and the migration's end"
                    ),
                ));
            }
            if self.consumer.pending_in(&memory.map()) == Some(Pages(0)) {
                return Ok(());
            }
            self.check_gate()?;
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}
