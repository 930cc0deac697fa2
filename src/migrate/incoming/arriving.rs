//! The part of an incoming migration that the VMM's object and the migration's threads share.

use super::devices::Devices;
use super::figures::Figures;
use crate::channel::Endpoint;
use crate::memory::Memory;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The shared part of an incoming migration.
pub(super) struct Arriving {
    pub(super) memory: Arc<Memory>,
    /// The endpoint that the migration listens at, or has listened at.
    endpoint: Mutex<Option<Endpoint>>,
    /// The figures of each channel, in the order of the channels.
    figures: Mutex<Vec<Arc<Figures>>>,
    /// The guest's devices, as long as the migration's thread has them.
    devices: Mutex<Weak<Devices>>,
}

impl Arriving {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        Arriving {
            memory,
            endpoint: Mutex::default(),
            figures: Mutex::default(),
            devices: Mutex::default(),
        }
    }

    /// Both sides have agreed on the devices.
    pub(super) fn has_devices(&self, devices: &Arc<Devices>) {
        let mut place = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Arc::downgrade(devices);
    }

    /// The migration is cancelled: asks every device to end the call that it is in.
    pub(super) fn cancel_devices(&self) {
        let place = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = place.upgrade();
        drop(place);
        if let Some(devices) = devices {
            devices.cancel();
        }
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Vec<Arc<Figures>>> {
        self.figures.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn endpoint(&self) -> MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(|e| e.into_inner())
    }
}
