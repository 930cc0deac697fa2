//! From READY to RUNNING: what the source waits for around the hand-over, and how long.

use super::{no_connection, Driver};
use crate::channel::Io;
use crate::error::{Error, Kind, Result};
use crate::migrate::switchover::window::MARGIN;
use crate::runtime::Timeout;
use crate::wire::{self, Record};

impl Driver {
    pub(super) fn await_ready(&mut self) -> Result<wire::Ready> {
        // A block may still be removed, at both sides. The destination is not ready before it knows
        // that each block which it lacks is gone at the source too.
        let ready = self.hear_ready(|driver, io| {
            let memory = driver.common.shared.guest.tracker.memory();
            let news = driver.announced.news(memory, None)?;
            let lanes = driver.lanes()?;
            if !news.is_empty() {
                // By then nothing about the block is on its way on any channel.
                lanes.await_further(&io.of("an acknowledgement"))?;
            }
            lanes.first().say_encoded(&news, &io.of("BLOCK_REMOVED"))
        })?;
        // The last acknowledgements of the other channels may still be on their way.
        let (stop, timeout) = (self.stop(), self.common.shared.params.switchover());
        let io = Io::until(&stop, timeout).within(self.switchover);
        let lanes = self.lanes()?;
        lanes.await_further(&io.of("an acknowledgement"))?;
        lanes.rejoin()?;
        let left = lanes.unacknowledged();
        if left > 0 {
            return Err(Error::new(
                Kind::Protocol,
                format!("the destination is ready and has not acknowledged {left} pages"),
            ));
        }
        self.open_window();
        Ok(ready)
    }

    /// Waits for READY. `tell` says what the destination may have to know first; it is called again
    /// when a block is being removed meanwhile.
    pub(super) fn hear_ready(
        &mut self,
        tell: impl Fn(&mut Driver, &Io<'_>) -> Result<()>,
    ) -> Result<wire::Ready> {
        let (stop, timeout) = (self.stop(), self.common.shared.params.switchover());
        let io = Io::until(&stop, timeout)
            .within(self.switchover)
            .of("READY");
        loop {
            self.walk.removals().lower();
            tell(self, &io)?;
            let lane = self.lanes.as_mut().ok_or_else(no_connection)?.first();
            match lane.hear_after_acknowledgements(self.walk.removals(), &io)? {
                Some(Record::Ready(ready)) => return Ok(ready),
                Some(other) => return Err(lane.unexpected(other.record_type(), "READY")),
                None => {}
            }
        }
    }

    /// The window opens after the receipt of READY, so that the destination's window began earlier.
    pub(super) fn open_window(&mut self) {
        let limit = self.common.shared.params.handover_timeout;
        self.common.open_window(limit);
    }

    pub(super) fn too_late(&self) -> Error {
        Error::new(
            Kind::Timeout,
            format!(
                "the destination was ready and the hand-over was not sent within the hand-over \
                 timeout of {:?}: a later one would run nothing, so the guest stays here",
                self.common.shared.params.handover_timeout
            ),
        )
    }

    /// The limits of a wait until the destination must have decided. No cancel ends it: the time
    /// for one is over.
    pub(super) fn until_decided(&self) -> Io<'static> {
        let left = self.common.until_decided();
        let of = Timeout::new(
            "the hand-over timeout and one second, counted from READY,",
            self.common.shared.params.handover_timeout + MARGIN,
        );
        Io::patient(of).within(of.with_left(left))
    }

    pub(super) fn await_running(&mut self) -> Result<u64> {
        let io = self.until_decided().of("RUNNING");
        let lane = self.first()?;
        match lane.hear(&io)? {
            Record::Running(running) => Ok(running.run_micros),
            other => Err(lane.unexpected(other.record_type(), "RUNNING")),
        }
    }
}
