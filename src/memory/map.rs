//! The map: the guest's blocks, and the guest addresses and KVM slots that show them.
//!
//! A [`Map`] is immutable. [`Memory`] holds the current map and swaps it by epoch, so that a mark
//! from a vCPU thread looks up a guest address without a lock. A tracker learns of a change before
//! it takes effect ([`MapObserver`]).

use super::ballooned::Gate;
use super::block::{Block, BlockDescription, BlockId, BlockPin, BLOCKS_MAX};
use super::index::{Blocks, ByBlock, ByGuest, ByHost, ById, ByName, ByNumber, Named, Slots};
use super::leaving::Leaving;
use super::needed::Needed;
use super::ownership::Ownership;
use super::tree::{Index as _, Tree};
use super::written::{WrittenObserver, WrittenObservers};
use crate::error::{Error, Kind, Result};
use crate::runtime::grace::Guard;
use crate::runtime::snapshot::Snapshot;
use crate::sys::kvm::MAX_SLOT_PAGES;
use crate::sys::mem;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::vmm::device::{Device, Devices};
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};
use vm_memory::GuestAddress;

pub use super::slot::{Slot, SlotDescription, NO_SLOT};

/// The most slots in one map; KVM's own limit is 32764 an address space.
pub const SLOTS_MAX: usize = 65536;
/// The most bits of a guest physical address, by the architecture's page tables. A processor may
/// have fewer; KVM refuses slots beyond its limit.
pub const GUEST_ADDRESS_BITS: u32 = if cfg!(target_arch = "riscv64") {
    // Sv57x4: the guest's addresses are two bits longer.
    59
} else {
    // x86-64; Arm with LPA2.
    52
};

/// The memory of a guest at one time. Immutable, and cheap to clone.
#[derive(Default, Clone)]
pub struct Map {
    generation: u64,
    blocks: Tree<ById>,
    names: Tree<ByName>,
    hosts: Tree<ByHost>,
    slots: Tree<ByGuest>,
    numbers: Tree<ByNumber>,
    shown: Tree<ByBlock>,
    /// See [`Map::total`].
    total: u64,
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map")
            .field("generation", &self.generation)
            .field("blocks", &self.blocks())
            .field("slots", &self.slots())
            .finish_non_exhaustive()
    }
}

/// A part of a block that a range of guest addresses maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPart {
    /// The block.
    pub block: BlockId,
    /// Its first page.
    pub first: Pages,
    /// How many pages.
    pub pages: Pages,
    /// The pages between the start of the queried range and this part.
    pub before: Pages,
}

/// Bytes of this process that belong to one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostPart {
    /// The block.
    pub(crate) block: BlockId,
    /// Where in the block they begin.
    pub(crate) offset: Bytes,
    /// Where in this process they begin.
    pub(crate) host: u64,
    /// How many.
    pub(crate) length: u64,
}

impl Map {
    /// The number of changes so far. Two maps of one guest with the same generation are the same.
    pub fn generation(&self) -> u64 {
        self.generation
    }
    /// The blocks, by id.
    pub fn blocks(&self) -> Blocks<'_> {
        Blocks(&self.blocks)
    }
    /// The slots, by guest address.
    pub fn slots(&self) -> Slots<'_> {
        Slots(&self.slots)
    }
    /// The block with that id.
    pub fn block(&self, id: BlockId) -> Option<&Arc<Block>> {
        self.blocks.get(&id)
    }
    /// The block with that name.
    pub fn block_named(&self, name: &str) -> Option<&Arc<Block>> {
        self.names.get_by(|other: &Named| other.name().cmp(name))
    }
    /// The slot with that KVM number.
    pub fn slot(&self, slot: u32) -> Option<&Slot> {
        self.numbers.get(&slot).map(|slot| &**slot)
    }
    /// One past the highest guest address that a slot maps; 0 without slots.
    pub fn guest_end(&self) -> u64 {
        self.slots.reach().unwrap_or(0)
    }
    /// All bytes of all blocks.
    pub fn total(&self) -> Bytes {
        Bytes(self.total)
    }

    /// Blocks of this map that `other` lacks. If one map was made from the other, the cost is that
    /// of the difference.
    pub fn blocks_not_in(&self, other: &Map) -> Result<Vec<Arc<Block>>> {
        // A number stands for one block for ever.
        self.blocks.not_in(&other.blocks, |_, _| true)
    }

    /// Slots of this map that `other` lacks or has with other values. If one map was made from the
    /// other, the cost is that of the difference.
    pub fn slots_not_in(&self, other: &Map) -> Result<Vec<Arc<Slot>>> {
        self.slots.not_in(&other.slots, |a, b| a == b)
    }

    /// The slots that show any of these pages of a block.
    pub fn slots_of(&self, block: BlockId, pages: Range<u64>) -> impl Iterator<Item = &Arc<Slot>> {
        let mut after = None;
        std::iter::from_fn(move || {
            let (before, past) = ((block, pages.end, 0, 0), (block, pages.start));
            let next = self.shown.next_reaching(after.as_ref(), &before, past)?;
            after = Some(ByBlock::key(next));
            Some(next)
        })
    }

    /// The parts of blocks that `pages` pages from a guest address on map to, in the order of
    /// addresses. Addresses that no slot maps are left out, and cost nothing. The low 12 bits of
    /// the address count as 0. Allocates nothing.
    pub fn block_parts(
        &self,
        from: GuestAddress,
        pages: Pages,
    ) -> impl Iterator<Item = BlockPart> + '_ {
        let from = from.0 & !(PAGE_SIZE - 1);
        let end = from.saturating_add(pages.bytes().0);
        let mut after = None;
        std::iter::from_fn(move || {
            if from >= end {
                return None;
            }
            let slot = self.slots.next_reaching(after.as_ref(), &(end, 0), from)?;
            after = Some(ByGuest::key(slot));
            let start = slot.guest_address.0.max(from);
            let stop = slot.guest_end().min(end);
            Some(BlockPart {
                block: slot.block,
                first: slot.first + Pages((start - slot.guest_address.0) / PAGE_SIZE),
                pages: Pages((stop - start) / PAGE_SIZE),
                before: Pages((start - from) / PAGE_SIZE),
            })
        })
    }

    /// Of the bytes of this process from `host` to `end`, those that the first of their blocks has.
    /// Allocates nothing.
    pub(crate) fn host_part(&self, host: u64, end: u64) -> Option<HostPart> {
        let block = self.hosts.next_reaching(None, &end, host)?;
        let start = block.host() as u64;
        let (from, to) = (start.max(host), (start + block.length().0).min(end));
        Some(HostPart {
            block: block.id(),
            offset: Bytes(from - start),
            host: from,
            length: to - from,
        })
    }

    /// The block that has any of these bytes of the process.
    fn block_at(&self, host: u64, length: u64) -> Option<&Arc<Block>> {
        let end = host.saturating_add(length);
        self.hosts.next_reaching(None, &end, host)
    }

    /// The slot of address space `space` that has any of these guest addresses.
    fn slot_at(&self, space: u32, guest: Range<u64>) -> Option<&Arc<Slot>> {
        let mut after = None;
        loop {
            let before = (guest.end, 0);
            let slot = self
                .slots
                .next_reaching(after.as_ref(), &before, guest.start)?;
            if slot.space() == space {
                return Some(slot);
            }
            after = Some(ByGuest::key(slot));
        }
    }

    /// This map without some blocks and their slots. Its generation tells it from no other map.
    pub(crate) fn without(&self, blocks: &[BlockId]) -> Map {
        let mut map = self.clone();
        for block in blocks {
            if let Some(block) = self.block(*block) {
                map.remove_block(block);
            }
        }
        map.generation = self.generation;
        map
    }

    fn add_block(&mut self, block: Arc<Block>) {
        self.generation += 1;
        self.total += block.length().0;
        self.names.insert(Arc::clone(&block));
        self.hosts.insert(Arc::clone(&block));
        self.blocks.insert(block);
    }

    /// Removes the block and the slots that show it.
    fn remove_block(&mut self, block: &Arc<Block>) {
        // Slots go one by one, because a list of them could be as long as all slots.
        loop {
            let slot = self.slots_of(block.id(), 0..u64::MAX).next().cloned();
            let Some(slot) = slot else {
                break;
            };
            self.remove_slot(&slot);
        }
        self.generation += 1;
        self.total -= block.length().0;
        self.names.remove(&ByName::key(block));
        self.hosts.remove(&ByHost::key(block));
        self.blocks.remove(&block.id());
    }

    fn add_slot(&mut self, slot: Arc<Slot>) {
        self.generation += 1;
        if slot.slot != NO_SLOT {
            self.numbers.insert(Arc::clone(&slot));
        }
        self.shown.insert(Arc::clone(&slot));
        self.slots.insert(slot);
    }

    fn remove_slot(&mut self, slot: &Arc<Slot>) {
        self.generation += 1;
        if slot.slot != NO_SLOT {
            self.numbers.remove(&slot.slot);
        }
        self.shown.remove(&ByBlock::key(slot));
        self.slots.remove(&ByGuest::key(slot));
    }
}

/// An observer of the map that must know of a change before it happens: a tracker.
pub trait MapObserver: Send + Sync {
    /// The map is about to change from `old` to `new`. The logs of the old map's slots can still be
    /// read. An error refuses the change. Observers that had agreed to the change are then called
    /// for the change back.
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()>;

    /// The map has changed from `old` to `new`. If a block was removed, its removal next waits
    /// until nobody pins the block.
    fn map_changed(&self, old: &Map, new: &Map) {
        let _ = (old, new);
    }
}

/// The memory of a guest: the current [`Map`], and how it changes.
///
/// Reading ([`Memory::map`], [`Memory::with_map`]) is allowed on any thread at any time;
/// changes come from any thread and wait for one another.
#[derive(Default)]
pub struct Memory {
    current: Snapshot<Map>,
    change: Mutex<Changing>,
    pub(super) gate: Gate,
    written: WrittenObservers,
    ownership: Arc<Ownership>,
    devices: Devices,
    pub(super) needed: Needed,
}

#[derive(Default)]
pub(super) struct Changing {
    next_block: u32,
    observers: Vec<Weak<dyn MapObserver>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.map().fmt(f)
    }
}

impl Memory {
    /// No memory yet. [`Kind::Unsupported`] where the host's base page is not 4 KiB.
    pub fn new() -> Result<Self> {
        let host = mem::base_page_size();
        if host != PAGE_SIZE {
            return Err(Error::new(
                Kind::Unsupported,
                format!("brant tracks pages of {PAGE_SIZE} bytes; this host's have {host}"),
            ));
        }
        Ok(Memory::default())
    }

    /// Who has the guest.
    pub fn ownership(&self) -> &Arc<Ownership> {
        &self.ownership
    }

    /// Adds a device whose state migrations of this guest stream, behind all that were added
    /// before. `name` (1 to 128 bytes) and `instance` together name the device at both sides;
    /// `version` is that of its state's format, by the device's own numbering. Both sides have the
    /// same devices, in any order of adding: the source's order is the order of loading.
    /// At a destination, devices may be added until
    /// [`Vmm::early_load`](crate::vmm::Vmm::early_load) of the last blob has returned.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a bad name, a second device of the same name and instance, and more
    /// than [`DEVICES_MAX`](crate::vmm::device::DEVICES_MAX) devices. [`Kind::Busy`] while a
    /// migration, a save or a restore uses the devices.
    pub fn add_device(
        &self,
        name: &str,
        instance: u32,
        version: u32,
        device: Arc<dyn Device>,
    ) -> Result<()> {
        self.devices.add(name, instance, version, device)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such device. [`Kind::Busy`] as in
    /// [`Memory::add_device`].
    pub fn remove_device(&self, name: &str, instance: u32) -> Result<()> {
        self.devices.remove(name, instance)
    }

    /// The guest's devices.
    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The current map.
    pub fn map(&self) -> Arc<Map> {
        self.current.load()
    }

    /// Calls `look` with the current map, without a lock and without counting a reference. `look`
    /// must not block.
    pub fn with_map<R>(&self, look: impl FnOnce(&Map) -> R) -> R {
        self.current.with(look)
    }

    /// The map as it is now, for a thread that is pinned.
    pub(crate) fn map_pinned<'g>(&'g self, pinned: &'g Guard) -> &'g Map {
        self.current.get(pinned)
    }

    /// Pins a block that is in the map now. `None` if the block is not in the map: then
    /// [`Memory::remove_block`] may have returned, and the VMM may have unmapped the memory.
    pub fn pin(&self, block: &Arc<Block>) -> Option<BlockPin> {
        // Pins first, then looks. A removal takes the block out of the map before it waits for
        // pins. So a removal that this look misses will see the pin.
        let pin = BlockPin::new(block);
        self.with_map(|map| map.block(block.id()).is_some())
            .then_some(pin)
    }

    /// Tells `observer` of every change to the returned map from now on, until it is dropped.
    pub fn observe(&self, observer: Weak<dyn MapObserver>) -> Arc<Map> {
        let mut change = self.lock();
        change.observers.retain(|o| o.strong_count() > 0);
        change.observers.push(observer);
        // No change can be under way while we hold the lock.
        self.map()
    }

    /// Tells `observer` of pages that count as written although no log saw a write, from now on,
    /// until the observer is dropped.
    pub fn observe_written(&self, observer: Weak<dyn WrittenObserver>) {
        let _change = self.lock();
        self.written.add(observer);
    }

    /// Makes pages count as written in every tracker. Call it after the write.
    pub(crate) fn tell_written(&self, block: BlockId, range: Range<u64>) {
        self.written.tell(block, range);
    }

    /// Whether a call of [`Memory::tell_written`] would reach anybody.
    pub(super) fn has_written_observers(&self) -> bool {
        !self.written.is_empty()
    }

    /// Adds a block, which no guest address shows until a slot is added. The block's number is
    /// never used again in the life of the guest, even after the block's removal. The two sides of a
    /// migration match blocks by name. While the guest is tracked, all pages of the new block count
    /// as dirty.
    ///
    /// While the guest migrates, add the block first at the destination, then at the source, and
    /// while the source is in [`Copying`](crate::migrate::SourceState::Copying). Before that state
    /// the two sides compare their blocks, and a block that only one side has is
    /// [`Kind::Layout`]. A block that is added at the source after `pause` was called may come too
    /// late to be sent: then the migration fails with [`Kind::State`] before the hand-over.
    ///
    /// While the guest is saved to an image, blocks may be added and removed at any time. The image
    /// has the blocks that the guest had when the last page was written, each with all of its pages.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a description that cannot be, with what was expected and found.
    /// [`Kind::Exists`] for a name that another block has, or memory that it overlaps.
    /// [`Kind::Busy`] while some of the guest's memory has not arrived
    /// ([`Incomplete`](super::Whose::Incomplete)), and while it follows a guest that was switched to
    /// postcopy.
    pub fn add_block(&self, description: BlockDescription) -> Result<BlockId> {
        self.ownership.may_change_blocks("adding a block")?;
        let mut change = self.lock();
        let mut map = Map::clone(&self.map());
        if map.blocks().len() >= BLOCKS_MAX {
            return Err(Error::new(
                Kind::Invalid,
                format!("at most {BLOCKS_MAX} blocks"),
            ));
        }
        if map.block_named(&description.name).is_some() {
            return Err(Error::new(
                Kind::Exists,
                format!("there is a block named `{}` already", description.name),
            ));
        }
        if let Some(other) = map.block_at(description.host.start() as u64, description.length.0) {
            return Err(Error::new(
                Kind::Exists,
                format!(
                    "block `{}` overlaps block `{}` in host memory; map it to further guest \
                     addresses with slots instead",
                    description.name,
                    other.name()
                ),
            ));
        }
        let id = BlockId(change.next_block);
        let Some(next) = id.0.checked_add(1) else {
            return Err(Error::new(
                Kind::Invalid,
                format!("at most {} blocks in the life of a guest", u32::MAX),
            ));
        };
        map.add_block(Arc::new(Block::new(id, description)?));
        // The number is used up even when the change is refused: an observer may have seen it.
        change.next_block = next;
        self.publish(&mut change, map)?;
        Ok(id)
    }

    /// The VMM says that the guest runs here, when brant cannot know it. [`Kind::State`] or
    /// [`Kind::Busy`] when the guest must not run here. No block counts as zeroed any more.
    pub fn runs_here(&self) -> Result<()> {
        self.guest_ran();
        self.ownership().runs_here()
    }

    /// The VMM says that no other copy of the guest runs or ever will: the guest is here again.
    /// [`Kind::State`] or [`Kind::Busy`] when that cannot be. No block counts as zeroed any more.
    pub fn reclaim(&self) -> Result<()> {
        self.guest_ran();
        self.ownership().reclaim()
    }

    /// The VMM says that the guest has ended here: another guest may arrive in its memory.
    /// [`Kind::State`] or [`Kind::Busy`] when that cannot be. No block counts as zeroed any more.
    pub fn give_up(&self) -> Result<()> {
        self.guest_ran();
        self.ownership().give_up()
    }

    /// A guest runs, or has run, in this memory: no block counts as zeroed any more
    /// ([`super::BlockFlags::zeroed`]).
    pub(crate) fn guest_ran(&self) {
        self.with_map(|map| {
            for block in map.blocks() {
                block.zeroed_no_more();
            }
        });
    }

    /// The number of the block with that name.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn find_block(&self, name: &str) -> Result<BlockId> {
        self.with_map(|map| map.block_named(name).map(|block| block.id()))
            .ok_or_else(|| {
                let message = format!("there is no block named `{name}`");
                Error::new(Kind::NotFound, message)
            })
    }

    /// Removes a block and its slots. In this order:
    ///
    /// 1. Make sure that nothing writes to the block any more: the vCPUs are stopped, or the guest no
    ///    longer uses the block. Marks of the block may still come; they are ignored.
    /// 2. Call this. It reads the logs of the block's slots and switches their logging off, so the
    ///    slots must still be in KVM (see [`Memory::remove_slot`]). It returns when no thread of
    ///    brant's touches the block's memory any more: within milliseconds, however slow the peer of
    ///    a migration is. A migration's thread that waits for its peer while it holds pages of the
    ///    block is asked to let go of them ([`PinRecall`](super::PinRecall)).
    /// 3. Delete the slots from KVM, and unmap the memory.
    ///
    /// While the guest migrates, remove the block first at the source, then, when that call has
    /// returned, at the destination. This may happen at any moment from
    /// [`Copying`](crate::migrate::SourceState::Copying) on, also while the guest is paused. Example:
    /// the VMM removes the block in [`Vmm::save`](crate::vmm::Vmm::save), says so in its state, and
    /// removes the block at the destination in [`Vmm::load`](crate::vmm::Vmm::load). A block that
    /// only the source removes stays at the destination. A block that is gone only at the
    /// destination ends the migration with [`Kind::Layout`] until the destination is ready; from
    /// then on it is missing when the guest runs.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where there is no such block any more.
    ///
    /// [`Kind::Busy`] while a consumer uses pages of the block that it took
    /// ([`Consumer::take`](crate::dirty::consumer::Consumer::take)). The message names the
    /// consumer. Nothing has changed, and nothing was waited for. The same while some of the guest's
    /// memory has not arrived ([`Incomplete`](super::Whose::Incomplete)), or follows a guest that was
    /// switched to postcopy.
    pub fn remove_block(&self, id: BlockId) -> Result<()> {
        self.ownership.may_change_blocks("removing a block")?;
        let block = {
            let mut change = self.lock();
            let mut map = Map::clone(&self.map());
            let Some(block) = map.block(id).cloned() else {
                return Err(no_block(id));
            };
            // Nobody begins to hold the block until the map has changed, or the change was refused.
            let _leaving = Leaving::begin(&block)?;
            map.remove_block(&block);
            self.publish(&mut change, map)?;
            Arc::clone(&block)
        };
        block.uses().wait();
        Ok(())
    }

    /// Adds a slot: guest addresses that show part of a block. Unless its number is [`NO_SLOT`], the
    /// slot exists in KVM already, under that number, with this size and in this place. So add a
    /// slot to KVM first and then here; remove it here first and then from KVM. While the guest is
    /// tracked, brant switches the new slot's logging on (or has the VMM do it), and all its pages
    /// count as dirty. A block may have any number of slots, at any page. Marks by guest address
    /// reach the slot when this call has returned.
    ///
    /// When the VMM replaces a KVM slot by one of another size and does not tell brant first, brant
    /// cannot read its log: all its pages count as dirty at each sync, with a warning.
    pub fn add_slot(&self, description: &SlotDescription) -> Result<()> {
        let mut change = self.lock();
        let mut map = Map::clone(&self.map());
        let d = description;
        let Some(block) = map.block(d.block) else {
            return Err(no_block(d.block));
        };
        let invalid = |what: String| {
            Err(Error::new(
                Kind::Invalid,
                format!("slot {:#x} of block `{}`: {what}", d.slot, block.name()),
            ))
        };
        if map.slots().len() >= SLOTS_MAX {
            return invalid(format!("at most {SLOTS_MAX} slots"));
        }
        if map.slot(d.slot).is_some() {
            return Err(Error::new(
                Kind::Exists,
                format!("there is a slot {:#x} already", d.slot),
            ));
        }
        if !d.offset.is_page_aligned() || !d.length.is_page_aligned() || d.length.0 == 0 {
            return invalid(format!(
                "offset and length are whole pages of {PAGE_SIZE} bytes and the length is not 0; \
                 found offset {}, length {}",
                d.offset, d.length
            ));
        }
        let end = d.offset.0.checked_add(d.length.0);
        if end.is_none_or(|end| end > block.length().0) {
            return invalid(format!(
                "offset {} and length {} reach past the block's {} bytes",
                d.offset,
                d.length,
                block.length()
            ));
        }
        if !d.guest_address.0.is_multiple_of(PAGE_SIZE)
            || d.guest_address.0.checked_add(d.length.0).is_none()
        {
            return invalid(format!(
                "guest address {:#x} is page-aligned and does not wrap around",
                d.guest_address.0
            ));
        }
        let most = 1u64 << GUEST_ADDRESS_BITS;
        if d.guest_address.0 + d.length.0 > most {
            return invalid(format!(
                "guest addresses end at {most:#x} on this architecture; found {:#x} to {:#x}",
                d.guest_address.0,
                d.guest_address.0 + d.length.0
            ));
        }
        if d.slot != NO_SLOT && d.length.pages_down().0 > MAX_SLOT_PAGES {
            return invalid(format!(
                "KVM's slots have at most {MAX_SLOT_PAGES} pages, this one {}",
                d.length.pages_down()
            ));
        }
        let new = Slot {
            slot: d.slot,
            flags: d.flags & !crate::sys::kvm::MEM_LOG_DIRTY_PAGES,
            block: block.id(),
            first: d.offset.pages_down(),
            pages: d.length.pages_down(),
            guest_address: d.guest_address,
            host_address: block.host() as u64 + d.offset.0,
            rom: block.flags().rom,
        };
        let range = new.guest_address.0..new.guest_end();
        if let Some(other) = map.slot_at(new.space(), range) {
            return Err(Error::new(
                Kind::Exists,
                format!(
                    "slot {:#x} at {:#x}..{:#x} overlaps slot {:#x} at {:#x}..{:#x}",
                    new.slot,
                    new.guest_address.0,
                    new.guest_end(),
                    other.slot,
                    other.guest_address.0,
                    other.guest_end()
                ),
            ));
        }
        map.add_slot(Arc::new(new));
        self.publish(&mut change, map)
    }

    /// Removes a slot by its number (or [`NO_SLOT`]) and guest address. The block stays. To delete a
    /// slot, or to move, resize or replace it:
    ///
    /// 1. Stop the vCPUs, or know that the guest does not use the slot. No thread may be between a
    ///    write to the slot and its mark by guest address: after step 2 such a mark finds no memory.
    /// 2. Call this while KVM's slot is as it was described. It harvests the slot's log, and switches
    ///    its logging off by setting the slot once more as it was.
    /// 3. Delete or move the slot in KVM, and make the slot that takes its place.
    /// 4. Describe the new slot with [`Memory::add_slot`]: all its pages count as dirty.
    /// 5. Let the vCPUs run.
    ///
    /// Another order is worse. When the slot was deleted in KVM first, its log is lost, and all its
    /// pages count as dirty. When the slot was moved in KVM first, step 2 sets it back to its old
    /// place.
    pub fn remove_slot(&self, slot: u32, guest_address: GuestAddress) -> Result<()> {
        let mut change = self.lock();
        let mut map = Map::clone(&self.map());
        let Some(gone) = map.slots.get(&(guest_address.0, slot)).cloned() else {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "there is no slot {slot:#x} at guest address {:#x}",
                    guest_address.0
                ),
            ));
        };
        map.remove_slot(&gone);
        self.publish(&mut change, map)
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Changing> {
        self.change.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Asks the observers, then swaps the map.
    fn publish(&self, change: &mut Changing, map: Map) -> Result<()> {
        let map = Arc::new(map);
        let old = self.map();
        change.observers.retain(|o| o.strong_count() > 0);
        let observers: Vec<_> = change.observers.iter().filter_map(Weak::upgrade).collect();
        for (agreed, observer) in observers.iter().enumerate() {
            if let Err(e) = observer.map_changes(&old, &map) {
                for observer in &observers[..agreed] {
                    // The first error is the one that is returned.
                    let _ = observer.map_changes(&map, &old);
                }
                return Err(e);
            }
        }
        self.current.replace(Arc::clone(&map));
        for observer in &observers {
            observer.map_changed(&old, &map);
        }
        Ok(())
    }
}

pub(super) fn no_block(id: BlockId) -> Error {
    Error::new(
        Kind::NotFound,
        format!(
            "there is no block with number {id}, or it has been removed (its number is not used again)"
        ),
    )
}

#[cfg(test)]
mod tests;
