//! The account of the source's blocks: which of them there are, which block of ours each one is,
//! and which of ours are gone while the source still has them.
//!
//! The migration's thread owns it, since everything that is said of blocks comes on channel 0. It
//! changes the table ([`super::targets`]) that all lanes read.

use super::known_zero::KnownZero;
use super::lane_account::LaneAccount;
use super::targets::{unknown, Table, Target, BLOCKS};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::{Block, Map, MapObserver, Memory};
use crate::migrate::layout::block_difference;
use crate::units::{Bytes, Pages};
use crate::wire;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The names of blocks that were removed here while a migration runs. What the source says is
/// on its way for a while: of a block that came and went again it may say that it came when
/// it is gone at both sides. Without this that could not be told from a block that the
/// destination never had.
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

/// See the file's description.
pub(super) struct Account {
    memory: Arc<Memory>,
    /// What the lanes read.
    table: Arc<Table>,
    /// The names of the blocks in it.
    names: HashSet<String>,
    removed: Arc<Removed>,
    /// When all has arrived: the map in which all of them were there.
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

    /// What a lane puts its pages in.
    pub(super) fn of_lane(&self) -> LaneAccount {
        LaneAccount::new(Arc::clone(&self.memory), self.table.view())
    }

    /// The VMM has built itself: what it removed to that end is no news of the source's.
    pub(super) fn built(&mut self) {
        self.removed.names().clear();
    }

    /// Whether a block of that name was removed here since.
    pub(super) fn was_removed(&self, name: &str) -> bool {
        self.removed.names().contains(name)
    }

    /// The source has added a block, or had when it said so: takes its pages into ours of that
    /// name. Where ours is gone by now they go nowhere, and the source has to say before READY
    /// that its block is gone too.
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
        // The map was looked at first: a block that it lacks is known to be removed by now.
        if !self.was_removed(&theirs.name) {
            return Err(Error::new(Kind::Layout, difference));
        }
        self.check_new(theirs.id, &theirs.name)?;
        let target = Target {
            name: theirs.name.clone(),
            pages: Bytes(theirs.length).pages_down(),
            block: None,
            zero: KnownZero::nothing(),
        };
        self.insert(theirs.id, target)?;
        Ok(())
    }

    /// One block of a number, and of a name, at a time. So what a source can announce is
    /// bounded by the names that there are, or were, here.
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

    /// Takes pages of the source's block `id` into `block` from now on.
    pub(super) fn add(&mut self, id: u32, block: &Arc<Block>) -> Result<()> {
        self.check_new(id, block.name())?;
        let pages = block.pages();
        let zero = match self.memory.pin(block) {
            Some(_pin) => {
                access::file_reaches(block, &(Pages(0)..pages), Access::Write)?;
                KnownZero::of(block)?
            }
            // One that was removed this very moment: nothing will go there.
            None => KnownZero::nothing(),
        };
        let target = Target {
            name: block.name().to_owned(),
            pages,
            block: Some(Arc::clone(block)),
            zero,
        };
        self.insert(id, target)?;
        Ok(())
    }

    /// All has arrived. Of blocks that are gone here [`Account::missing`] tells.
    ///
    /// The guest stands still. Freeing the bitmaps of a guest of 1 TiB takes 3 to 4 ms, and what
    /// is known of 4,096 blocks as long, so that is left to [`Account::free`].
    pub(super) fn finish(&mut self) -> Result<()> {
        let map = self.memory.map();
        self.complete_in = Some(map.generation());
        for target in self.table.now().values() {
            let here = target.block.as_ref().and_then(|b| map.block(b.id()));
            let Some(block) = here else {
                self.complete_in = None;
                continue;
            };
            // Pages that are known to be zero were not touched: nothing else would find that
            // they are gone.
            access::file_reaches(block, &(Pages(0)..target.pages), Access::Write)?;
            // The VMM loads its state next, and the guest runs.
            block.zeroed_no_more();
        }
        Ok(())
    }

    /// After [`Account::finish`]: a block that the source still has, by all that it said, and that
    /// is gone here: its number there, and the error that it comes to.
    pub(super) fn missing(&self) -> Option<(u32, Error)> {
        // The guest stands still: nothing is looked up in a map that has not changed.
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

    /// Frees what [`Account::finish`] left, once the guest runs. The lanes are gone by then.
    pub(super) fn free(&mut self) {
        self.table.clear();
        self.names = HashSet::new();
    }

    /// Lets go of the source's block `id`.
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
