//! What leads logs and blocks through a change of the memory map, and back where it is refused. `follow`
//! leads a tracker's.
//!
//! A change is asked for before it happens: every tracker of the guest, and every log of each,
//! follows it, and any of them may refuse. Those before it are then led back. Two things must not be
//! lost by that.
//!
//! **What is pending.** Example: a backup was stopped with 100 pages of a block pending. The block is to
//! be removed; this tracker agrees, another refuses. The block stays, and the 100 pages must too. So a
//! block that goes is set aside until the change has happened ([`Change`]), and what is led back is
//! the same block.
//!
//! **A log's way.** Leading back can fail, where a log needs memory for it. Such a log is *astray*: it
//! knows the map that was refused and not the one that is ([`Log::knows`]). It may not watch memory that
//! it did watch. So it is not asked what was written: everything counts as dirty at each sync, with a
//! warning, until a sync or a later change has led it to the map that is.

use super::merge::{Nowhere, PendingSink};
use super::pending::Blocks;
use super::{DirtyLog, Extent};
use crate::error::{Error, Kind, Result};
use crate::memory::{Block, Map, Slot};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A log as the tracker has it.
pub(super) struct Log {
    log: Box<dyn DirtyLog>,
    /// The map that it knows, where that is not the tracker's.
    knows: Option<Arc<Map>>,
}

impl Log {
    pub fn new(log: Box<dyn DirtyLog>) -> Self {
        Log { log, knows: None }
    }

    /// Whether it does not know the tracker's map.
    pub fn is_astray(&self) -> bool {
        self.knows.is_some()
    }

    /// It has been started with the tracker's map, or is off.
    pub fn knows_the_map(&mut self) {
        self.knows = None;
    }

    /// Leads it from `old`, or from the map that it knows, to `new`. After an error it is where it was.
    pub fn lead(&mut self, old: &Arc<Map>, new: &Arc<Map>, blocks: &mut Blocks) -> Result<()> {
        let from = self.knows.as_ref().unwrap_or(old);
        let mut sink = PendingSink::new(from, blocks, self.log.rearms(), None);
        self.log.map_changes(from, new, &mut sink)?;
        if self.knows.take().is_some() {
            all_is_dirty(
                new,
                &mut PendingSink::new(new, blocks, self.log.rearms(), None),
            );
        }
        Ok(())
    }

    /// Leads it from `new` back to `old`. Where that fails, it is astray.
    pub fn lead_back(&mut self, new: &Arc<Map>, old: &Arc<Map>, blocks: &mut Blocks) {
        // The error that is told is that of whoever refused.
        if self.lead(new, old, blocks).is_err() {
            self.knows.get_or_insert_with(|| Arc::clone(new));
        }
    }

    /// Leads it to the tracker's map if it is astray. All counts as dirty then, and so it does where
    /// that fails. Whether it was astray.
    ///
    /// # Errors
    /// Why it still is.
    pub fn find_the_way(&mut self, map: &Arc<Map>, sink: &mut PendingSink<'_>) -> Result<bool> {
        let Some(from) = self.knows.clone() else {
            return Ok(false);
        };
        all_is_dirty(map, sink);
        // What it gives is all known to be dirty.
        let led = self.log.map_changes(&from, map, &mut Nowhere);
        led.map_err(|e| astray(e.kind(), &e))?;
        self.knows = None;
        Ok(true)
    }
}

impl Deref for Log {
    type Target = dyn DirtyLog;
    fn deref(&self) -> &Self::Target {
        &*self.log
    }
}

impl DerefMut for Log {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.log
    }
}

fn astray(kind: Kind, why: &Error) -> Error {
    Error::new(
        kind,
        format!("it has not followed the memory map since a refused change: {why}"),
    )
}

/// Every page of every block: a log that is astray cannot say what is in its care.
fn all_is_dirty(map: &Map, sink: &mut PendingSink<'_>) {
    for block in map.blocks() {
        Extent::all_of(block).everything(sink);
    }
}

/// What changes between two maps, listed before anything does: from then on nothing may fail for
/// want of memory.
pub(super) struct Change {
    pub(super) old: Arc<Map>,
    pub(super) new: Arc<Map>,
    pub(super) gone: Vec<Arc<Block>>,
    pub(super) came: Vec<Arc<Block>>,
    pub(super) hidden: Vec<Arc<Slot>>,
    pub(super) shown: Vec<Arc<Slot>>,
    /// What was known of the blocks that are gone.
    pub(super) aside: Blocks,
}

impl Change {
    pub fn new(old: &Arc<Map>, new: &Arc<Map>) -> Result<Self> {
        Ok(Change {
            gone: old.blocks_not_in(new)?,
            came: new.blocks_not_in(old)?,
            hidden: old.slots_not_in(new)?,
            shown: new.slots_not_in(old)?,
            old: Arc::clone(old),
            new: Arc::clone(new),
            aside: Blocks::default(),
        })
    }

    /// Gives the blocks that are set aside fresh chunks: the logs start in the middle of the change.
    pub fn make_aside(&mut self, chunk_shift: Option<u32>) -> Result<()> {
        for block in &self.gone {
            self.aside.add(block, chunk_shift)?;
        }
        Ok(())
    }

    /// Whether a change to `new` is this one taken back.
    pub fn is_taken_back_by(&self, new: &Arc<Map>) -> bool {
        Arc::ptr_eq(&self.old, new)
    }
}
