//! A slot: the part of a block that the guest sees at one place of its address space.
//!
//! The list of a guest's slots, and the check that they do not overlap, are in `map`.

use super::block::BlockId;
use crate::sys::kvm::MEM_READONLY;
use crate::units::{Bytes, Pages};
use std::ops::Range;
use vm_memory::GuestAddress;

/// The slot number of a slot that KVM does not know.
pub const NO_SLOT: u32 = u32::MAX;

/// A slot as the VMM describes it: `length` bytes of a block, at a guest address. Fields may be
/// added: [`SlotDescription::new`] has the usual values for those that are not named. Example:
/// [`BlockDescription`](super::block::BlockDescription).
#[derive(Debug, Clone)]
pub struct SlotDescription {
    /// KVM's slot number, with the address space in the upper 16 bits. [`NO_SLOT`] if KVM does not
    /// know the slot.
    pub slot: u32,
    /// `KVM_MEM_*` flags as the VMM set them, without `KVM_MEM_LOG_DIRTY_PAGES`.
    pub flags: u32,
    /// The block.
    pub block: BlockId,
    /// Where in the block it begins.
    pub offset: Bytes,
    /// How long it is.
    pub length: Bytes,
    /// Guest physical address of its first byte.
    pub guest_address: GuestAddress,
}

impl SlotDescription {
    /// A slot that shows a block's first `length` bytes at a guest address, with the number
    /// [`NO_SLOT`].
    pub fn new(block: BlockId, guest_address: GuestAddress, length: Bytes) -> Self {
        SlotDescription {
            slot: NO_SLOT,
            flags: 0,
            block,
            offset: Bytes(0),
            length,
            guest_address,
        }
    }
}

/// A slot in the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// KVM's number, or [`NO_SLOT`].
    pub slot: u32,
    /// `KVM_MEM_*` flags, without the logging flag.
    pub flags: u32,
    /// The block that the slot shows.
    pub block: BlockId,
    /// The first page of the block that the slot shows.
    pub first: Pages,
    /// How many pages.
    pub pages: Pages,
    /// Guest physical address of the first byte.
    pub guest_address: GuestAddress,
    /// Host virtual address of the first byte.
    pub host_address: u64,
    /// Whether the guest cannot write the block.
    pub rom: bool,
}

impl Slot {
    /// Whether KVM logs guest writes to the slot: KVM knows it, and it is writable.
    pub fn is_logged(&self) -> bool {
        self.slot != NO_SLOT && self.flags & MEM_READONLY == 0 && !self.rom
    }

    /// The guest addresses at which the slot shows its block.
    pub(crate) fn guest_range(&self) -> Range<u64> {
        self.guest_address.0..self.guest_end()
    }

    pub(super) fn guest_end(&self) -> u64 {
        self.guest_address.0 + self.pages.bytes().0
    }

    /// KVM's address space of the slot.
    pub(super) fn space(&self) -> u32 {
        match self.slot {
            NO_SLOT => 0,
            slot => slot >> 16,
        }
    }
}
