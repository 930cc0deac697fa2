//! A recall of pins: a thread that waits for its peer with pages pinned is told when a block is
//! removed.
//!
//! Example: a peer takes 10,000 bytes every second of a batch of 2 MiB. The pages are pinned until
//! the kernel has taken the last of them, and [`super::Memory::remove_block`] waits. So the sender
//! waits for room in the socket and for this recall. On a recall it copies the rest of the batch,
//! drops its pins, and sends the copy.

use super::map::{Map, MapObserver, Memory};
use crate::error::Result;
use crate::runtime::Recall;
use std::sync::{Arc, Weak};

/// Raised when a block has been removed. Lower it before you pin blocks. It is raised after the map
/// has changed, so a later pin finds the block gone.
#[derive(Debug)]
pub struct PinRecall(Recall);

impl PinRecall {
    /// A recall that is told of removals from `memory` from now on.
    ///
    /// # Errors
    /// Those of [`Recall::new`].
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
        // One change adds blocks or removes some, never both.
        if new.blocks().len() < old.blocks().len() {
            self.raise();
        }
    }
}
