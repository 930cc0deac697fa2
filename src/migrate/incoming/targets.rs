//! Which block of ours takes the pages of the source's block: a table that every lane reads with
//! each record, and that changes a few times in a migration.
//!
//! Each lane has a [`View`] of its own: a counted reference to the table, renewed when the table's
//! number of changes is another. So a record costs a lane one load of a number that hardly ever
//! changes, and lanes never write to memory that they share.
//!
//! Only the account changes the table, while no page run for the block is on its way: before the
//! first one, and at the barrier in front of BLOCK_ADDED and BLOCK_REMOVED. A source that keeps no
//! barrier has its runs placed by a table that is one change old: into a block of ours that is
//! pinned, or nowhere.

use super::known_zero::KnownZero;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::Block;
use crate::units::Pages;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a table of them is called when there is no memory for it.
pub(super) const BLOCKS: &str = "the source's blocks";

/// A block of the source's.
pub(super) struct Target {
    /// The source's name for it, and ours.
    pub(super) name: String,
    pub(super) pages: Pages,
    /// Pinned for the time of a record only: between two of them the VMM may remove it. `None`
    /// where it had done so before the source's word of it arrived here.
    pub(super) block: Option<Arc<Block>>,
    /// What is known of our block.
    pub(super) zero: KnownZero,
}

/// By the source's block number. A block of ours is the target of one at a time.
pub(super) type Targets = HashMap<u32, Arc<Target>>;

/// See the file's description.
#[derive(Default)]
pub(super) struct Table {
    /// How often it has changed. Raised after the change, so whoever sees the number finds it.
    changes: AtomicU64,
    now: Mutex<Arc<Targets>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Arc<Targets>> {
        self.now.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The table as it is.
    pub(super) fn now(&self) -> Arc<Targets> {
        Arc::clone(&self.lock())
    }

    /// Adds a block under a number that is free.
    pub(super) fn insert(&self, id: u32, target: Target) -> Result<()> {
        self.change(|targets| fallible::insert(targets, id, Arc::new(target), BLOCKS))?;
        Ok(())
    }

    /// Takes a block out.
    pub(super) fn remove(&self, id: u32) -> Result<Option<Arc<Target>>> {
        if !self.lock().contains_key(&id) {
            return Ok(None);
        }
        self.change(|targets| Ok(targets.remove(&id)))
    }

    /// Takes all of them out.
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        self.changes.fetch_add(1, Ordering::Release);
        drop(all);
    }

    fn change<R>(&self, change: impl FnOnce(&mut Targets) -> Result<R>) -> Result<R> {
        let mut now = self.lock();
        let changed = match Arc::get_mut(&mut now) {
            // No lane has seen it yet.
            Some(targets) => change(targets)?,
            None => {
                let mut copy = Targets::new();
                for (id, target) in now.iter() {
                    fallible::insert(&mut copy, *id, Arc::clone(target), BLOCKS)?;
                }
                let changed = change(&mut copy)?;
                *now = Arc::new(copy);
                changed
            }
        };
        self.changes.fetch_add(1, Ordering::Release);
        Ok(changed)
    }

    /// A lane's view of it.
    pub(super) fn view(self: &Arc<Self>) -> View {
        View {
            table: Arc::clone(self),
            // One that it never has: nothing is held before the first record.
            seen: u64::MAX,
            targets: Arc::default(),
        }
    }
}

/// One lane's view of the table.
pub(super) struct View {
    table: Arc<Table>,
    seen: u64,
    targets: Arc<Targets>,
}

impl View {
    /// The source's block `id`.
    pub(super) fn get(&mut self, id: u32) -> Result<&Target> {
        let changes = self.table.changes.load(Ordering::Acquire);
        if changes != self.seen {
            self.targets = self.table.now();
            self.seen = changes;
        }
        self.targets
            .get(&id)
            .map(|target| &**target)
            .ok_or_else(|| unknown(id))
    }
}

pub(super) fn unknown(id: u32) -> Error {
    Error::new(
        Kind::Protocol,
        format!("block {id} was never announced, or is gone"),
    )
}
