//! The guest as it arrives: what the VMM's object and the migration's threads share of it.

use super::figures::Figures;
use crate::channel::Endpoint;
use crate::memory::Memory;
use std::sync::{Arc, Mutex, MutexGuard};

/// Where the guest arrives.
pub(super) struct Arriving {
    pub(super) memory: Arc<Memory>,
    /// Where it listens, or has listened.
    endpoint: Mutex<Option<Endpoint>>,
    /// Of each channel, in their order.
    figures: Mutex<Vec<Arc<Figures>>>,
}

impl Arriving {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        Arriving {
            memory,
            endpoint: Mutex::default(),
            figures: Mutex::default(),
        }
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Vec<Arc<Figures>>> {
        self.figures.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn endpoint(&self) -> MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(|e| e.into_inner())
    }
}
