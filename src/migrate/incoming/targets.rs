//! The table that says which block of ours takes the pages of each of the source's blocks. Every
//! lane reads the table with each record, and the table changes a few times in a migration.
//!
//! Each lane has a [`View`] of its own: a counted reference to the table, which is renewed when the
//! table's number of changes differs. So a record costs a lane one load of a number that hardly
//! ever changes, and lanes never write to memory that they share.
//!
//! Only the account changes the table, while no page run for the changed block is on its way. That
//! is before the first page run, and at the barrier in front of BLOCK_ADDED and BLOCK_REMOVED. When
//! a source keeps no barrier, its runs may be placed by a table that is one change old. They then
//! go into a block of ours that is pinned, or nowhere.

use super::known_zero::KnownZero;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::Block;
use crate::units::Pages;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The name of the table in the error for a lack of memory.
pub(super) const BLOCKS: &str = "the source's blocks";

/// One of the source's blocks, and where its pages go.
pub(super) struct Target {
    /// The block's name, the same at both sides.
    pub(super) name: String,
    pub(super) pages: Pages,
    /// Our block. It is pinned for the time of one record only, and the VMM may remove it between
    /// two records. `None` when the VMM had removed it before the source's word of the block
    /// arrived here.
    pub(super) block: Option<Arc<Block>>,
    /// Our block is the source's memory itself: its file came by descriptor, and no page may come.
    pub(super) shared: bool,
    /// What is known of our block's contents.
    pub(super) zero: KnownZero,
}

/// Targets by the source's block numbers. A block of ours is the target of one number at a time.
pub(super) type Targets = HashMap<u32, Arc<Target>>;

/// The table, as the file's description says.
#[derive(Default)]
pub(super) struct Table {
    /// The number of changes. It is raised after the change, so whoever reads a number also finds
    /// its change.
    changes: AtomicU64,
    now: Mutex<Arc<Targets>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Arc<Targets>> {
        self.now.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The table at this moment.
    pub(super) fn now(&self) -> Arc<Targets> {
        Arc::clone(&self.lock())
    }

    /// Adds a block under a number that is not in use.
    pub(super) fn insert(&self, id: u32, target: Target) -> Result<()> {
        self.change(|targets| fallible::insert(targets, id, Arc::new(target), BLOCKS))?;
        Ok(())
    }

    /// Takes block `id` out of the table and returns it.
    pub(super) fn remove(&self, id: u32) -> Result<Option<Arc<Target>>> {
        if !self.lock().contains_key(&id) {
            return Ok(None);
        }
        self.change(|targets| Ok(targets.remove(&id)))
    }

    /// Takes all blocks out of the table.
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        self.changes.fetch_add(1, Ordering::Release);
        drop(all);
    }

    fn change<R>(&self, change: impl FnOnce(&mut Targets) -> Result<R>) -> Result<R> {
        let mut now = self.lock();
        let changed = match Arc::get_mut(&mut now) {
            // No lane has a reference to this version of the table.
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

    /// A view of the table, for one lane.
    pub(super) fn view(self: &Arc<Self>) -> View {
        View {
            table: Arc::clone(self),
            // The table never has this number, so the first record renews the view. Nothing is held
            // before.
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

impl Target {
    /// Refuses pages of a block that is the source's memory itself.
    pub(super) fn check_copied(&self) -> Result<()> {
        if !self.shared {
            return Ok(());
        }
        Err(Error::new(
            Kind::Protocol,
            format!(
                "found pages of block `{}`, whose memory came by descriptor",
                self.name
            ),
        ))
    }
}

pub(super) fn unknown(id: u32) -> Error {
    Error::new(
        Kind::Protocol,
        format!("block {id} was never announced, or is gone"),
    )
}
