//! The part of an incoming migration that the VMM's object and the migration's threads share.

use super::figures::Figures;
use crate::channel::Endpoint;
use crate::memory::Memory;
use std::sync::{Arc, Mutex, MutexGuard};

/// The shared part of an incoming migration.
pub(super) struct Arriving {
    pub(super) memory: Arc<Memory>,
    /// The endpoint that the migration listens at, or has listened at.
    endpoint: Mutex<Option<Endpoint>>,
    /// The figures of each channel, in the order of the channels.
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
