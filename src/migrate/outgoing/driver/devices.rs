//! The state of devices at the source, as a part of the driver: rounds of reads between batches of
//! pages, and the reads after the stop. [`super::super::devices`] knows whose turn it is.

use super::copy::capped_batch;
use super::Driver;
use crate::channel::Io;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::switchover::source::State;
use crate::runtime::Limit;
use crate::vmm::EventKind;
use crate::wire::PIECE_BYTES_MAX;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At the end of a pass, devices are read for at most this long before the sync.
const TAIL: Duration = Duration::from_secs(1);
/// A pass that sent at least this much of devices' state is followed by the next at once.
const WORTH: u64 = 64 << 10;

impl Driver {
    /// A migration begins.
    pub(super) fn begin_devices(&mut self) -> Result<()> {
        self.calling_devices(self.total(), |driver| {
            let devices = &driver.common.shared.guest.devices;
            devices.begin(&driver.common.vmm)
        })
    }

    /// When a migration ends that is still copying: at the total timeout, or at a deadline of the
    /// policy's that cancels it.
    pub(super) fn ends_at(&self) -> Limit {
        self.total().earlier(self.watch().cancels())
    }

    /// Has `calls` call devices, which are asked to return when `limit` passes meanwhile.
    fn calling_devices<T>(
        &mut self,
        limit: Limit,
        calls: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let Some(watch) = self.streams.watch() else {
            return calls(self);
        };
        let watched = watch.within(limit)?;
        calls(self).map_err(|e| self.unless_cancelled(watched.explain(e)))
    }

    /// The migration is over, whatever its outcome.
    pub(super) fn end_devices(&mut self) {
        let devices = &self.common.shared.guest.devices;
        devices.end(&self.common.vmm);
        if self.common.shared.handle.state() != State::Unanswered {
            devices.let_go();
        }
    }

    /// The vCPUs stand still: stops all devices, which then write no guest memory.
    pub(super) fn stop_devices(&mut self) -> Result<()> {
        if self.streams.is_empty() {
            return Ok(());
        }
        self.calling_devices(self.switchover, |driver| {
            let devices = &driver.common.shared.guest.devices;
            devices.stop(&driver.common.vmm)?;
            driver.streams.stops();
            driver.streams.look(&driver.common.vmm)
        })
    }

    /// Asks every device how much is left.
    fn look_at_devices(&mut self) -> Result<()> {
        self.calling_devices(self.ends_at(), |driver| {
            driver.streams.look(&driver.common.vmm)
        })
    }

    /// The error of a device's call. A call that the cancel has ended is no failure of the device's.
    fn unless_cancelled(&self, error: Error) -> Error {
        let cancel = &self.common.shared.handle.cancel;
        cancel.or("the migration", error)
    }

    /// One round between two batches, unless the last one was so slow that pages are due.
    pub(super) fn read_devices(&mut self, io: &Io<'_>) -> Result<()> {
        if !self.streams.is_empty() && self.streams.may_read() {
            self.read_device(io)?;
        }
        Ok(())
    }

    /// Reads and sends one piece. Returns whether there was one.
    fn read_device(&mut self, io: &Io<'_>) -> Result<bool> {
        let cap = self.common.shared.guest.pacer.stated();
        let most = cap.map_or(PIECE_BYTES_MAX, |cap| {
            capped_batch(cap, false).bytes().0 as usize
        });
        // A cancel that came before a device's `begin` ended has been forgotten there.
        self.common.shared.handle.cancel.check("the migration")?;
        let piece = self.calling_devices(self.ends_at(), |driver| {
            driver.streams.round(most, &driver.common.vmm)
        });
        let Some(piece) = piece? else {
            return Ok(false);
        };
        self.course.sends(self.common.begun.elapsed());
        self.sending(io)?.2.put_piece(piece)?;
        self.delivered();
        Ok(true)
    }

    /// All pages of a pass are sent: sends what devices have now, for a while.
    pub(super) fn drain_devices(&mut self, io: &Io<'_>) -> Result<()> {
        if self.streams.is_empty() {
            return Ok(());
        }
        self.look_at_devices()?;
        let (begun, before) = (Instant::now(), self.streams.running());
        let enough = before.saturating_add(self.streams.left().running);
        loop {
            self.common.shared.handle.cancel.check("the migration")?;
            if !self.pass_goes_on()? {
                return Ok(());
            }
            let more = self.read_device(io)?;
            self.renew(false);
            if !more || self.streams.running() >= enough || begun.elapsed() >= TAIL {
                return Ok(());
            }
        }
    }

    /// Looks at what is left of devices' state, and hears what the destination has loaded. Called
    /// after a pass, when all that was sent is acknowledged.
    pub(super) fn judge_devices(&mut self) -> Result<()> {
        if self.streams.is_empty() {
            return Ok(());
        }
        for loaded in self.loaded.take() {
            self.streams.loaded(loaded.number, loaded.bytes)?;
        }
        self.look_at_devices()?;
        let growth = self.streams.left().growth.unwrap_or(0.0);
        let link = self.course.bandwidth.estimate().unwrap_or(f64::INFINITY);
        if growth > link && !std::mem::replace(&mut self.told_growth, true) {
            let text = format!(
                "the state of devices grows by {:.1} MB/s, and the link carries {:.1} MB/s: the \
                 migration does not converge before that changes",
                growth / 1e6,
                link / 1e6
            );
            self.common.vmm.event(EventKind::Warning, text);
        }
        Ok(())
    }

    /// Whether the guest may be paused as far as devices are concerned: what must be loaded before
    /// the pause is.
    pub(super) fn devices_may_pause(&mut self) -> bool {
        let Some(why) = self.streams.not_ready() else {
            return true;
        };
        if !std::mem::replace(&mut self.told_wait, true) {
            let text = format!("the pause waits: {why}");
            self.common.vmm.event(EventKind::Warning, text);
        }
        false
    }

    /// The error of a migration that is given up, with the device that the pause waited for.
    pub(super) fn naming_who_waits(&self, error: Error) -> Error {
        match self.streams.not_ready() {
            Some(why) => error.context(format_args!("the pause waited: {why}")),
            None => error,
        }
    }

    /// The guest would be paused if what devices need at the destination were there: sends it, for a
    /// while, and waits until it has arrived.
    pub(super) fn send_initial(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let stop = self.stop();
        let io = Io::until(&stop, shared.params.io())
            .within(self.total())
            .of("devices' state");
        let begun = Instant::now();
        while begun.elapsed() < TAIL && self.streams.not_read() {
            let sent = self.read_device(&io);
            let sent = sent.map_err(|e| self.explain_initial(e))?;
            if !sent {
                break;
            }
            self.renew(false);
        }
        let acknowledged = self.acknowledge_all(&io);
        acknowledged.map_err(|e| self.explain_initial(e))
    }

    /// The error of sending what the pause waits for.
    fn explain_initial(&mut self, error: Error) -> Error {
        let error = self.explain(error);
        match error.kind() {
            Kind::Timeout => self.naming_who_waits(error),
            _ => error,
        }
    }

    /// Whether the pass that began when `before` bytes were read sent so much of devices' state that
    /// the next one shall not wait.
    pub(super) fn devices_go_on(&self, before: u64) -> bool {
        self.streams.running().saturating_sub(before) >= WORTH
    }

    /// The guest stands still, and no pause is aborted any more: says where the running parts end, so
    /// that the destination notices when the last bytes of one are missing.
    pub(super) fn end_running(&mut self, io: &Io<'_>) -> Result<()> {
        let ends = fallible::collect(self.streams.running_ends(), "the ends of devices' state")?;
        for end in ends {
            self.sending(io)?.2.put_piece(end?)?;
        }
        Ok(())
    }

    /// The guest stands still and its pages have ended: sends the rest of all devices' state, and the
    /// final markers.
    pub(super) fn send_stopped(&mut self, io: &Io<'_>) -> Result<()> {
        let begun = Instant::now();
        let io = &io.of("devices' state");
        loop {
            let piece = self.calling_devices(self.switchover, |driver| {
                driver.streams.read_stopped(&driver.common.vmm)
            });
            let Some(piece) = piece? else {
                break;
            };
            self.check_gate()?;
            self.sending(io)?.2.put_piece(piece)?;
            self.lanes()?.listen()?;
        }
        self.sending(io)?.2.finish_devices()?;
        self.common.stats.device_stopped = Some(begun.elapsed());
        Ok(())
    }
}
