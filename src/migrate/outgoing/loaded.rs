//! What the destination has said about devices: DEVICE_LOADED comes on any lane, and the migration's
//! thread wants to know.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::wire::{DeviceLoaded, DEVICES_MAX};
use std::sync::{Mutex, MutexGuard};

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Loaded(Mutex<Vec<DeviceLoaded>>);

impl Loaded {
    fn list(&self) -> MutexGuard<'_, Vec<DeviceLoaded>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A lane has heard this.
    pub(super) fn note(&self, loaded: DeviceLoaded) -> Result<()> {
        let mut list = self.list();
        // Of each device at most one is on its way.
        if list.len() >= DEVICES_MAX as usize {
            return Err(Error::new(
                Kind::Protocol,
                format!("more than {DEVICES_MAX} records DEVICE_LOADED"),
            ));
        }
        fallible::push(&mut list, loaded, "the destination's records")
    }

    /// What was heard since the last call.
    pub(super) fn take(&self) -> Vec<DeviceLoaded> {
        std::mem::take(&mut self.list())
    }
}
