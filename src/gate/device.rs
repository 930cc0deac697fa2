//! A device at a gate: its threads are inside while they write guest memory, and outside while the
//! guest is paused.

use super::protocol::{DeviceRecord, Protocol};
use crate::error::{Error, Kind, Result};
use crate::runtime::Deadline;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// The gate and the device that this thread is inside of, once for each time.
    static INSIDE: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
}

fn address<T>(of: &Arc<T>) -> usize {
    Arc::as_ptr(of) as usize
}

/// Refuses a wait for a device that the calling thread is inside of.
pub(super) fn check_outside(protocol: &Arc<Protocol>) -> Result<()> {
    let at = address(protocol);
    if INSIDE.with_borrow(|list| list.iter().any(|(gate, _)| *gate == at)) {
        let what =
            "the pause was called inside a device, which would have to go out for it: go out first";
        return Err(Error::new(Kind::Callback, what));
    }
    Ok(())
}

/// A device, until it is dropped. Any number of threads may use it. When it is dropped, the device is
/// gone for the gate.
pub struct Device {
    protocol: Arc<Protocol>,
    record: Arc<DeviceRecord>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.record.name)
            .finish_non_exhaustive()
    }
}

/// A thread is inside a device until this is dropped.
#[must_use]
#[derive(Debug)]
pub struct Inside<'a> {
    device: &'a Device,
    /// It belongs to its thread.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Device {
    pub(super) fn new(protocol: &Arc<Protocol>, name: &str) -> Result<Device> {
        Ok(Device {
            protocol: Arc::clone(protocol),
            record: protocol.add_device(name.to_owned())?,
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    fn place(&self) -> (usize, usize) {
        (address(&self.protocol), address(&self.record))
    }

    /// Comes in: until the value is dropped, no pause returns. Waits while the devices have to stand
    /// still, for `time`, or `None` for as long as it takes. A thread that is inside of any device of
    /// this gate comes in without waiting.
    ///
    /// # Errors
    /// `Pending` when `time` is up first, `Cancelled` when the guest has shut down.
    pub fn enter(&self, time: Option<Duration>) -> Result<Inside<'_>> {
        self.come_in(time)?;
        Ok(Inside {
            device: self,
            not_send: std::marker::PhantomData,
        })
    }

    /// [`Device::enter`] without a guard: [`Device::leave`] follows on the same thread.
    ///
    /// # Errors
    /// As [`Device::enter`].
    pub fn come_in(&self, time: Option<Duration>) -> Result<()> {
        let place = self.place();
        if INSIDE.with_borrow(|list| list.iter().any(|(gate, _)| *gate == place.0)) {
            self.protocol.come_in_again(&self.record);
        } else {
            let deadline = time.map_or(Deadline::never(), Deadline::after);
            self.protocol.come_in(&self.record, deadline)?;
        }
        INSIDE.with_borrow_mut(|list| list.push(place));
        Ok(())
    }

    /// Goes out, after the marks of all that was written.
    ///
    /// # Errors
    /// `State` when this thread is not inside.
    pub fn leave(&self) -> Result<()> {
        let place = self.place();
        let was_inside = INSIDE.with_borrow_mut(|list| {
            let at = list.iter().rposition(|entry| *entry == place);
            at.map(|at| list.remove(at)).is_some()
        });
        if !was_inside {
            let name = &self.record.name;
            let what = format!("device `{name}`: this thread is not inside");
            return Err(Error::new(Kind::State, what));
        }
        self.protocol.go_out(&self.record);
        Ok(())
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // This thread is inside, as this value shows.
        let _ = self.device.leave();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.protocol.remove_device(&self.record);
    }
}
