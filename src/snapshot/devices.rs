//! Devices whose state is streamed, in an image: a save reads all of it after the pause, and a
//! restore loads it after memory.
//!
//! A save never calls `read_running`: an image is written once, and a device gives by `read_stopped`
//! whatever it has not given before.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::image::format::BlobEntry;
use crate::image::Blobs;
use crate::runtime::Cancel;
use crate::vmm::callbacks::Callbacks;
use crate::vmm::device::{described, InUse, Registered};
use crate::vmm::held::{self, Arrivals, Held};
use crate::vmm::{StateBlob, StateSink};
use std::sync::Arc;

/// The most bytes of one blob.
const PIECE: usize = 1 << 20;

/// Reads the state of all devices, which stand still, into `blobs`. Each device has at least one
/// blob.
pub(super) fn save(held: &Held, vmm: &Callbacks, blobs: &mut Blobs, cancel: &Cancel) -> Result<()> {
    let list = held.list();
    if list.is_empty() {
        return Ok(());
    }
    let mut buffer = Vec::new();
    fallible::reserve(&mut buffer, PIECE, "devices' state")?;
    buffer.resize(PIECE, 0);
    blobs.devices_begin();
    for device in list {
        let mut first = true;
        loop {
            cancel.check("the save")?;
            let read = |d: &dyn crate::vmm::device::Device, b: &mut [u8]| d.read_stopped(b);
            let read = held::read(vmm, &device, "read_stopped", &mut buffer, read);
            // A call that the cancel has ended is no failure of the device's.
            let length = read.map_err(|e| cancel.or("the save", e))?;
            if length > 0 || first {
                blobs.put(&StateBlob {
                    name: device.name(),
                    instance: device.instance(),
                    version: device.version(),
                    data: &buffer[..length],
                })?;
            }
            first = false;
            if length == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// The devices of a guest that is restored.
pub(super) struct Restored {
    in_use: InUse,
    vmm: Callbacks,
    /// Something was loaded, and the guest is not here yet.
    begun: bool,
    /// The guest is here.
    kept: bool,
    arrivals: Arc<Arrivals>,
}

impl Restored {
    pub(super) fn new(in_use: InUse, vmm: Callbacks) -> Result<Restored> {
        let list = fallible::collect(in_use.all().iter().cloned(), "devices")?;
        Ok(Restored {
            arrivals: Arc::new(Arrivals::new(vmm.clone(), list)),
            in_use,
            vmm,
            begun: false,
            kept: false,
        })
    }

    /// The devices as a cancel of the restore asks them to end their calls.
    pub(super) fn arrivals(&self) -> Arc<Arrivals> {
        Arc::clone(&self.arrivals)
    }

    fn named(&self, entry: &BlobEntry) -> Option<&Arc<Registered>> {
        self.in_use.find(&entry.name, entry.instance)
    }

    /// Whether image and guest have the same devices.
    ///
    /// # Errors
    /// [`Kind::Layout`] for a device that only one of them has, and for another version.
    pub(super) fn check<'a>(
        &self,
        entries: impl Iterator<Item = &'a BlobEntry> + Clone,
    ) -> Result<()> {
        let layout = |why: String| Err(Error::new(Kind::Layout, why));
        for entry in entries.clone() {
            let what = described(&entry.name, entry.instance);
            match self.named(entry) {
                None => return layout(format!("the image has {what} and the guest has none")),
                Some(device) if device.version() != entry.version => {
                    return layout(format!(
                        "{what}: the image's state has version {}, and the guest's has version {}",
                        entry.version,
                        device.version()
                    ))
                }
                Some(_) => {}
            }
        }
        let has = |d: &Registered| entries.clone().any(|e| d.is(&e.name, e.instance));
        match self.in_use.all().iter().find(|d| !has(d)) {
            None => Ok(()),
            Some(more) => layout(format!("the guest has {more} and the image has none")),
        }
    }

    /// Loads a piece of a device's state.
    pub(super) fn load(&mut self, entry: &BlobEntry, data: &[u8]) -> Result<()> {
        self.begun = true;
        match self.named(entry) {
            Some(device) if !data.is_empty() => {
                held::call(&self.vmm, device, "load_stopped", |d| d.load_stopped(data))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn loaded(&self) -> Result<()> {
        held::loaded(&self.vmm, self.in_use.all())
    }

    /// The guest is here.
    pub(super) fn keep(&mut self) {
        self.kept = true;
        self.arrivals.close();
    }

    pub(super) fn run(&self) -> Result<()> {
        held::run(&self.vmm, self.in_use.all())
    }
}

impl Drop for Restored {
    /// Has devices drop what they have loaded of a guest that did not come, and forget a cancel.
    fn drop(&mut self) {
        let was_cancelled = !self.arrivals.close();
        if !self.kept && (self.begun || was_cancelled) {
            held::reset(&self.vmm, self.in_use.all());
        }
    }
}
