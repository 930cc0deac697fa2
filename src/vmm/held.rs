//! What the devices of a guest are told, and in which order, by a migration, a save or a restore.
//!
//! [`Held`] is the side that the guest leaves, or that saves it. It knows what each device was told,
//! so that each is resumed exactly once after it was quiesced, and ended once after it began. It
//! outlives the migration's thread: a guest that was handed over without an answer may be taken back
//! later. The functions here are for the side where the guest arrives.

use super::callbacks::Callbacks;
use super::device::{Device, InUse, Registered};
use crate::error::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// Calls one operation of a device.
pub(crate) fn call<T>(
    vmm: &Callbacks,
    device: &Registered,
    name: &str,
    operation: impl FnOnce(&dyn Device) -> Result<T>,
) -> Result<T> {
    let called = vmm.call(name, |_| operation(&*device.device));
    called.map_err(|e| e.context(device))
}

/// What the devices were told, as the file's description says.
#[derive(Default)]
pub(crate) struct Held(Mutex<Told>);

#[derive(Default)]
struct Told {
    in_use: Option<InUse>,
    /// How many devices were called `begin`, from the first on.
    begun: usize,
    /// How many devices were called `quiesce`, from the first on.
    quiesced: usize,
    /// Those that have begun were called `cancel`.
    cancelled: bool,
}

impl Held {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes the guest's devices for this migration.
    pub(crate) fn hold(&self, in_use: InUse) {
        self.told().in_use = Some(in_use);
    }

    /// The devices, in the order in which they were added.
    pub(crate) fn list(&self) -> Vec<Arc<Registered>> {
        let told = self.told();
        told.in_use
            .as_ref()
            .map_or(Vec::new(), |in_use| in_use.all().to_vec())
    }

    /// Whether there is any device.
    pub(crate) fn any(&self) -> bool {
        self.told()
            .in_use
            .as_ref()
            .is_some_and(|in_use| !in_use.all().is_empty())
    }

    /// A migration begins.
    pub(crate) fn begin(&self, vmm: &Callbacks) -> Result<()> {
        self.told().cancelled = false;
        for device in self.list() {
            self.told().begun += 1;
            call(vmm, &device, "begin", |d| d.begin())?;
        }
        Ok(())
    }

    /// The vCPUs stand still: quiesces all devices, and then stops all of them.
    pub(crate) fn stop(&self, vmm: &Callbacks) -> Result<()> {
        let list = self.list();
        for device in &list {
            self.told().quiesced += 1;
            call(vmm, device, "quiesce", |d| d.quiesce())?;
        }
        list.iter()
            .try_for_each(|device| call(vmm, device, "stop", |d| d.stop()))
    }

    /// Before the VMM's `resume`: lets each device that was quiesced run on. All of them are told,
    /// whatever one of them answers.
    ///
    /// # Errors
    /// The first error of a device.
    pub(crate) fn resume(&self, vmm: &Callbacks) -> Result<()> {
        let mut list = self.list();
        list.truncate(std::mem::take(&mut self.told().quiesced));
        let mut done = Ok(());
        for device in &list {
            done = done.and(call(vmm, device, "wake", |d| d.wake()));
        }
        for device in &list {
            done = done.and(call(vmm, device, "resume", |d| d.resume()));
        }
        done
    }

    /// The migration is cancelled, or its time is over. Each device is told once. Only devices that have begun and not ended are told, so that no
    /// cancel reaches the next migration: hence the lock during the calls, for which `end` waits.
    pub(crate) fn cancel(&self, vmm: &Callbacks) {
        let mut told = self.told();
        if std::mem::replace(&mut told.cancelled, true) {
            return;
        }
        if let Some(in_use) = &told.in_use {
            let begun = told.begun.min(in_use.all().len());
            cancel(vmm, &in_use.all()[..begun]);
        }
    }

    /// The migration is over.
    pub(crate) fn end(&self, vmm: &Callbacks) {
        let mut list = self.list();
        list.truncate(std::mem::take(&mut self.told().begun));
        tell(vmm, &list, "end", |d| d.end());
    }

    /// The guest's devices may change again.
    pub(crate) fn let_go(&self) {
        let in_use = self.told().in_use.take();
        drop(in_use);
    }
}

/// The devices of the side where the guest arrives, as far as a cancel asks them to end their calls.
pub(crate) struct Arrivals {
    vmm: Callbacks,
    list: Vec<Arc<Registered>>,
    /// The devices are told of a cancel, once. The lock is held during the calls, so that no cancel
    /// comes after `run` or `reset`.
    open: Mutex<bool>,
}

impl Arrivals {
    pub(crate) fn new(vmm: Callbacks, list: Vec<Arc<Registered>>) -> Arrivals {
        Arrivals {
            vmm,
            list,
            open: Mutex::new(true),
        }
    }

    /// Asks every device to end the call that it is in.
    pub(crate) fn cancel(&self) {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if std::mem::take(&mut *open) {
            cancel(&self.vmm, &self.list);
        }
    }

    /// The guest is this side's, or never runs here: no cancel comes any more. Returns whether none
    /// came.
    pub(crate) fn close(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        std::mem::take(&mut *open)
    }
}

/// Puts the next bytes of a device into `buffer` by its operation `name`.
///
/// # Errors
/// Those of the device, and when it says that it has written more than there was room.
pub(crate) fn read(
    vmm: &Callbacks,
    device: &Registered,
    name: &str,
    buffer: &mut [u8],
    operation: impl FnOnce(&dyn Device, &mut [u8]) -> Result<usize>,
) -> Result<usize> {
    let room = buffer.len();
    let read = call(vmm, device, name, |d| operation(d, buffer))?;
    if read > room {
        return Err(Error::new(
            Kind::Vmm,
            format!("{device}: `{name}` returned {read} bytes, and there was room for {room}"),
        ));
    }
    Ok(read)
}

/// Tells devices something that they cannot refuse. Only a panic is an error then, and it is dropped:
/// the migration is over or cancelled anyway.
fn tell(vmm: &Callbacks, list: &[Arc<Registered>], name: &str, operation: impl Fn(&dyn Device)) {
    for device in list {
        let _ = call(vmm, device, name, |d| {
            operation(d);
            Ok(())
        });
    }
}

/// Asks every device to end the call that it is in.
fn cancel(vmm: &Callbacks, list: &[Arc<Registered>]) {
    tell(vmm, list, "cancel", |d| d.cancel());
}

/// Tells every device that all state is here.
pub(crate) fn loaded(vmm: &Callbacks, list: &[Arc<Registered>]) -> Result<()> {
    list.iter()
        .try_for_each(|device| call(vmm, device, "loaded", |d| d.loaded()))
}

/// The guest is this side's: all devices run.
pub(crate) fn run(vmm: &Callbacks, list: &[Arc<Registered>]) -> Result<()> {
    list.iter()
        .try_for_each(|device| call(vmm, device, "wake", |d| d.wake()))?;
    list.iter()
        .try_for_each(|device| call(vmm, device, "run", |d| d.run()))
}

/// The guest never runs here: all devices drop what they have loaded.
pub(crate) fn reset(vmm: &Callbacks, list: &[Arc<Registered>]) {
    tell(vmm, list, "reset", |d| d.reset());
}
