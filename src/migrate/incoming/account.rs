//! The account of the source's blocks: which blocks the source has, which block of ours belongs to
//! each of them, and which blocks are gone here while the source still has them.
//!
//! The migration's thread owns the account, because every record about blocks comes on channel 0.
//! The account changes the table ([`super::targets`]) that all lanes read.

use super::known_zero::KnownZero;
use super::lane_account::LaneAccount;
use super::targets::{unknown, Table, Target, Targets, BLOCKS};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::{Block, Map, MapObserver, Memory};
use crate::migrate::layout::block_difference;
use crate::units::{Bytes, Pages};
use crate::wire;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The names of blocks that were removed here while a migration runs.
///
/// The source's word of a change takes a while to arrive. Example: a block is added at both sides
/// and removed again. The source's BLOCK_ADDED may arrive when the block is gone at both sides.
/// Without these names, such a block looks like one that the destination never had.
#[derive(Default)]
struct Removed(Mutex<HashSet<String>>);

impl MapObserver for Removed {
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()> {
        let gone = old.blocks_not_in(new)?;
        let mut names = self.names();
        for block in gone {
            fallible::add(
                &mut names,
                block.name().to_owned(),
                "names of removed blocks",
            )?;
        }
        Ok(())
    }
}

impl Removed {
    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The account, as the file's description says.
pub(super) struct Account {
    memory: Arc<Memory>,
    /// The table that the lanes read.
    table: Arc<Table>,
    /// The names of the blocks in the table.
    names: HashSet<String>,
    removed: Arc<Removed>,
    /// When all memory has arrived and no block was missing: the generation of the map at that
    /// moment.
    complete_in: Option<u64>,
}

impl Account {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        let removed: Arc<Removed> = Arc::default();
        let observer: Weak<dyn MapObserver> = {
            let weak: Weak<Removed> = Arc::downgrade(&removed);
            weak
        };
        memory.observe(observer);
        Account {
            memory,
            table: Arc::default(),
            names: HashSet::new(),
            removed,
            complete_in: None,
        }
    }

    /// The account of one lane, which says where the lane's pages go.
    pub(super) fn of_lane(&self) -> LaneAccount {
        LaneAccount::new(Arc::clone(&self.memory), self.table.view())
    }

    /// Called when the VMM has built itself. Blocks that it removed before are forgotten, because
    /// the source has said nothing of them yet.
    pub(super) fn built(&mut self) {
        self.removed.names().clear();
    }

    /// Whether a block of this name was removed here since the VMM built itself.
    pub(super) fn was_removed(&self, name: &str) -> bool {
        self.removed.names().contains(name)
    }

    /// Handles the source's word that it has added a block: takes the block's pages into our block
    /// of the same name. When our block is gone by now, its pages are dropped. The source then has
    /// to say before READY that its block is gone too.
    pub(super) fn added(&mut self, theirs: &wire::Block) -> Result<()> {
        let map = self.memory.map();
        let difference = match map.block_named(&theirs.name) {
            None => format!(
                "the source added block `{}` and the destination has none of that name",
                theirs.name
            ),
            Some(ours) => match block_difference(theirs, ours) {
                None => return self.add(theirs.id, ours),
                Some(difference) => format!("a block that the source added: {difference}"),
            },
        };
        // The map was read first. So a block that the map lacks has its removal recorded by now.
        if !self.was_removed(&theirs.name) {
            return Err(Error::new(Kind::Layout, difference));
        }
        self.check_new(theirs.id, &theirs.name)?;
        let target = Target {
            name: theirs.name.clone(),
            pages: Bytes(theirs.length).pages_down(),
            block: None,
            shared: false,
            zero: KnownZero::nothing(),
        };
        self.insert(theirs.id, target)?;
        Ok(())
    }

    /// Refuses a number or a name that is in use. So the number of blocks that a source can
    /// announce is bounded by the names that exist, or existed, here.
    fn check_new(&self, id: u32, name: &str) -> Result<()> {
        if self.table.now().contains_key(&id) {
            return Err(Error::new(
                Kind::Protocol,
                format!("block {id} is announced twice"),
            ));
        }
        if self.names.contains(name) {
            return Err(Error::new(
                Kind::Protocol,
                format!("block `{name}` is announced again, as {id}, and was not removed"),
            ));
        }
        Ok(())
    }

    fn insert(&mut self, id: u32, target: Target) -> Result<()> {
        fallible::add(&mut self.names, target.name.clone(), BLOCKS)?;
        self.table.insert(id, target)
    }

    /// `block` is the memory of the source's block `id` itself. It is not touched before the guest runs
    /// here.
    pub(super) fn add_shared(&mut self, id: u32, block: &Arc<Block>) -> Result<()> {
        self.check_new(id, block.name())?;
        let target = Target {
            name: block.name().to_owned(),
            pages: block.pages(),
            block: Some(Arc::clone(block)),
            shared: true,
            zero: KnownZero::nothing(),
        };
        self.insert(id, target)
    }

    /// Takes pages of the source's block `id` into `block` from now on.
    pub(super) fn add(&mut self, id: u32, block: &Arc<Block>) -> Result<()> {
        self.check_new(id, block.name())?;
        let pages = block.pages();
        let zero = match self.memory.pin(block) {
            Some(_pin) => {
                access::file_reaches(block, &(Pages(0)..pages), Access::Write)?;
                KnownZero::of(block)?
            }
            // The block was removed this very moment: no page will go there.
            None => KnownZero::nothing(),
        };
        let target = Target {
            name: block.name().to_owned(),
            pages,
            block: Some(Arc::clone(block)),
            shared: false,
            zero,
        };
        self.insert(id, target)?;
        Ok(())
    }

    /// Called when all memory has arrived. [`Account::missing`] reports blocks that are gone here.
    ///
    /// The guest stands still during this call. Freeing the bitmaps of a guest of 1 TiB takes 3 to
    /// 4 ms, and freeing what is known of 4,096 blocks takes as long. So [`Account::free`] does
    /// that later.
    pub(super) fn finish(&mut self) -> Result<()> {
        let map = self.memory.map();
        self.complete_in = Some(map.generation());
        for target in self.table.now().values() {
            let here = target.block.as_ref().and_then(|b| map.block(b.id()));
            let Some(block) = here else {
                self.complete_in = None;
                continue;
            };
            // Pages that are known to be zero were not touched. Only this check finds that the file
            // does not reach that far any more.
            if !target.shared {
                access::file_reaches(block, &(Pages(0)..target.pages), Access::Write)?;
            }
            // The VMM loads its device state next, and then the guest runs: both write to the
            // block.
            block.zeroed_no_more();
        }
        Ok(())
    }

    /// After [`Account::finish`]: a block that is gone here and that the source has not reported as
    /// removed. Returns the source's number of the block, and the error for it.
    pub(super) fn missing(&self) -> Option<(u32, Error)> {
        // The guest stands still, so an unchanged map costs no lookups.
        if self.complete_in == Some(self.memory.with_map(Map::generation)) {
            return None;
        }
        let map = self.memory.map();
        let targets = self.table.now();
        let gone = |target: &Target| {
            let here = target.block.as_ref().and_then(|b| map.block(b.id()));
            here.is_none()
        };
        let (id, target) = targets.iter().find(|(_, target)| gone(target))?;
        Some((*id, removed(&target.name)))
    }

    /// The bytes of the blocks that are the source's memory itself.
    pub(super) fn shared_bytes(&self) -> u64 {
        let targets = self.table.now();
        let shared = targets.values().filter(|target| target.shared);
        shared.map(|target| target.pages.bytes().0).sum()
    }

    /// The blocks that are here and hold a copy of the source's, by the source's numbers, in ascending
    /// order.
    pub(super) fn copied(&self) -> Result<Vec<(u32, Arc<Block>)>> {
        let targets = self.table.now();
        let copied = targets.iter().filter(|(_, target)| !target.shared);
        let here = copied.filter_map(|(id, target)| {
            let block = target.block.as_ref()?;
            Some((*id, Arc::clone(block)))
        });
        let mut blocks = fallible::collect(here, BLOCKS)?;
        blocks.sort_unstable_by_key(|(id, _)| *id);
        Ok(blocks)
    }

    /// Frees, once the guest runs, what [`Account::finish`] left. The lanes are gone by then.
    pub(super) fn free(&mut self) {
        self.table.clear();
        self.names = HashSet::new();
    }

    /// The targets of the source's blocks at this moment.
    pub(super) fn targets(&self) -> Arc<Targets> {
        self.table.now()
    }

    /// Forgets the source's block `id`.
    pub(super) fn remove(&mut self, id: u32) -> Result<()> {
        let target = self.table.remove(id)?.ok_or_else(|| unknown(id))?;
        self.names.remove(&target.name);
        Ok(())
    }
}

fn removed(name: &str) -> Error {
    Error::new(
        Kind::Layout,
        format!("block `{name}` was removed at the destination while the source still has it"),
    )
}
