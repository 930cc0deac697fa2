//! How logs and blocks are led through a change of the memory map, and led back if the change is
//! refused. `follow` does this for a tracker.
//!
//! A change is asked for before it happens. Every tracker of the guest, and every log of each
//! tracker, follows it, and any of them may refuse it. Then those that followed before are led
//! back. Two things must not get lost by that.
//!
//! **Pending pages.** Example: a backup was stopped with 100 pages of a block pending. The block is
//! to be removed; this tracker agrees, another one refuses. The block stays, so the 100 pages must
//! stay too. For that, a block that goes is set aside until the change has happened ([`Change`]),
//! and leading back restores that same block.
//!
//! **A log's way back.** Leading back can fail if a log needs memory for it. Such a log is
//! *astray*: it knows the refused map ([`Log::knows`]) and not the tracker's, and may no longer
//! watch memory that it watched before. So it is not harvested: every page counts as dirty at each
//! sync, with a warning, until a sync or a later change has led the log to the tracker's map.

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
    /// The map that the log knows, if that is not the tracker's.
    knows: Option<Arc<Map>>,
}

impl Log {
    pub fn new(log: Box<dyn DirtyLog>) -> Self {
        Log { log, knows: None }
    }

    /// Whether the log knows another map than the tracker's.
    pub fn is_astray(&self) -> bool {
        self.knows.is_some()
    }

    /// Notes that the log was started with the tracker's map, or is off.
    pub fn knows_the_map(&mut self) {
        self.knows = None;
    }

    /// Leads the log to `new`, from `old` or from the map that it knows. After an error it knows
    /// the same map as before.
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

    /// Leads the log from `new` back to `old`. If that fails, the log is astray.
    pub fn lead_back(&mut self, new: &Arc<Map>, old: &Arc<Map>, blocks: &mut Blocks) {
        // The error that is returned is that of the log or tracker which refused the change.
        if self.lead(new, old, blocks).is_err() {
            self.knows.get_or_insert_with(|| Arc::clone(new));
        }
    }

    /// Leads a log that is astray to the tracker's map. Every page counts as dirty, also if this
    /// fails. Returns whether the log was astray.
    ///
    /// # Errors
    /// The reason why the log is still astray.
    pub fn find_the_way(&mut self, map: &Arc<Map>, sink: &mut PendingSink<'_>) -> Result<bool> {
        let Some(from) = self.knows.clone() else {
            return Ok(false);
        };
        all_is_dirty(map, sink);
        // Every page is reported as dirty below, so what the log reports is dropped.
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

/// Every page of every block: a log that is astray cannot tell which memory it covers.
fn all_is_dirty(map: &Map, sink: &mut PendingSink<'_>) {
    for block in map.blocks() {
        Extent::all_of(block).everything(sink);
    }
}

/// The difference between two maps, listed before any of it is applied. From then on no step may
/// fail for want of memory.
pub(super) struct Change {
    /// The maps that the logs are led by.
    pub(super) old: Arc<Map>,
    pub(super) new: Arc<Map>,
    /// The memory's maps, before and after.
    pub(super) whole: (Arc<Map>, Arc<Map>),
    pub(super) gone: Vec<Arc<Block>>,
    pub(super) came: Vec<Arc<Block>>,
    pub(super) hidden: Vec<Arc<Slot>>,
    pub(super) shown: Vec<Arc<Slot>>,
    /// The data on the blocks that are gone.
    pub(super) aside: Blocks,
}

impl Change {
    /// A change of the memory's map, by which the logs are led too.
    pub fn new(old: &Arc<Map>, new: &Arc<Map>) -> Result<Self> {
        Self::narrowed(old, new, old, new)
    }

    /// A change of the memory's map from `whole_old` to `whole_new`, for logs that do not watch all of
    /// it and are led from `old` to `new`.
    pub fn narrowed(
        old: &Arc<Map>,
        new: &Arc<Map>,
        whole_old: &Arc<Map>,
        whole_new: &Arc<Map>,
    ) -> Result<Self> {
        Ok(Change {
            gone: whole_old.blocks_not_in(whole_new)?,
            came: whole_new.blocks_not_in(whole_old)?,
            hidden: old.slots_not_in(new)?,
            shown: new.slots_not_in(old)?,
            old: Arc::clone(old),
            new: Arc::clone(new),
            whole: (Arc::clone(whole_old), Arc::clone(whole_new)),
            aside: Blocks::default(),
        })
    }

    /// The logs are led from `old` to the memory's map `whole`, which stays as it is.
    pub fn of_logs(old: &Arc<Map>, whole: &Arc<Map>) -> Result<Self> {
        let change = Self::new(old, whole)?;
        Ok(Change {
            whole: (Arc::clone(whole), Arc::clone(whole)),
            ..change
        })
    }

    /// Gives the blocks that are set aside fresh chunks, because the logs start in the middle of
    /// the change.
    pub fn make_aside(&mut self, chunk_shift: Option<u32>) -> Result<()> {
        for block in &self.gone {
            self.aside.add(block, chunk_shift)?;
        }
        Ok(())
    }

    /// Whether a change to `new` takes this change back.
    pub fn is_taken_back_by(&self, new: &Arc<Map>) -> bool {
        Arc::ptr_eq(&self.whole.0, new)
    }
}
