//! Pins that whoever removes a block gets back soon: a thread that waits for its peer with pages
//! pinned is told when a block is removed.
//!
//! Example: a peer takes 10,000 bytes every second of a batch of 2 MiB. The pages are pinned
//! until the kernel has taken the last of them, and [`super::Memory::remove_block`] waits. So the
//! sender waits for two things, room in the socket and this; then it copies what is left, drops
//! its pins, and sends the copy.

use super::map::{Map, MapObserver, Memory};
use crate::error::Result;
use crate::runtime::Recall;
use std::sync::{Arc, Weak};

/// Raised when a block was removed, to be lowered before blocks are pinned. Raised after the map
/// has changed: whoever pins after that finds the block gone.
#[derive(Debug)]
pub struct PinRecall(Recall);

impl PinRecall {
    /// One that hears of removals from `memory` from now on.
    ///
    /// # Errors
    /// As for [`Recall::new`].
    pub fn of(memory: &Memory) -> Result<Arc<PinRecall>> {
        let recall = Arc::new(PinRecall(Recall::new()?));
        let observer: Weak<dyn MapObserver> = {
            let weak: Weak<PinRecall> = Arc::downgrade(&recall);
            weak
        };
        memory.observe(observer);
        Ok(recall)
    }
}

impl std::ops::Deref for PinRecall {
    type Target = Recall;
    fn deref(&self) -> &Recall {
        &self.0
    }
}

impl MapObserver for PinRecall {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        Ok(())
    }

    fn map_changed(&self, old: &Map, new: &Map) {
        // One change adds blocks or removes them, never both.
        if new.blocks().len() < old.blocks().len() {
            self.raise();
        }
    }
}
