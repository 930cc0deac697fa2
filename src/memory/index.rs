//! The orders in which a map keeps its blocks and slots, and the lists of them.

use super::block::{Block, BlockId};
use super::slot::Slot;
use super::tree::{Index, Iter, Tree};
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Blocks in order of their numbers.
pub(super) struct ById;

impl Index for ById {
    type Value = Arc<Block>;
    type Key = BlockId;
    type Reach = ();
    fn key(block: &Arc<Block>) -> BlockId {
        block.id()
    }
    fn reach(_: &Arc<Block>) {}
}

/// Blocks in order of host addresses. A block reaches to its end there.
pub(super) struct ByHost;

impl Index for ByHost {
    type Value = Arc<Block>;
    type Key = u64;
    type Reach = u64;
    fn key(block: &Arc<Block>) -> u64 {
        block.host() as u64
    }
    fn reach(block: &Arc<Block>) -> u64 {
        block.host() as u64 + block.length().0
    }
}

/// Blocks in order of names.
pub(super) struct ByName;

/// A block's name, by a reference to the block instead of a copy.
#[derive(Clone)]
pub(super) struct Named(Arc<Block>);

impl Named {
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}
impl Eq for Named {}
impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Named {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name())
    }
}

impl Index for ByName {
    type Value = Arc<Block>;
    type Key = Named;
    type Reach = ();
    fn key(block: &Arc<Block>) -> Named {
        Named(Arc::clone(block))
    }
    fn reach(_: &Arc<Block>) {}
}

/// Slots in order of guest addresses, then of numbers (for slots of different address spaces). A
/// slot reaches to its last address.
pub(super) struct ByGuest;

impl Index for ByGuest {
    type Value = Arc<Slot>;
    type Key = (u64, u32);
    type Reach = u64;
    fn key(slot: &Arc<Slot>) -> (u64, u32) {
        (slot.guest_address.0, slot.slot)
    }
    fn reach(slot: &Arc<Slot>) -> u64 {
        slot.guest_end()
    }
}

/// KVM's slots in order of numbers.
pub(super) struct ByNumber;

impl Index for ByNumber {
    type Value = Arc<Slot>;
    type Key = u32;
    type Reach = ();
    fn key(slot: &Arc<Slot>) -> u32 {
        slot.slot
    }
    fn reach(_: &Arc<Slot>) {}
}

/// Slots in order of the blocks and pages that they show.
pub(super) struct ByBlock;

impl Index for ByBlock {
    type Value = Arc<Slot>;
    type Key = (BlockId, u64, u64, u32);
    type Reach = (BlockId, u64);
    fn key(slot: &Arc<Slot>) -> Self::Key {
        let (guest, number) = ByGuest::key(slot);
        (slot.block, slot.first.0, guest, number)
    }
    fn reach(slot: &Arc<Slot>) -> (BlockId, u64) {
        (slot.block, slot.first.0 + slot.pages.0)
    }
}

macro_rules! list {
    ($(#[$doc:meta])* $list:ident, $iter:ident, $index:ident, $item:ty, $of:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $list<'a>(pub(super) &'a Tree<$index>);

        impl<'a> $list<'a> {
            /// An iterator over the list, in order.
            pub fn iter(&self) -> $iter<'a> {
                $iter(self.0.iter())
            }
            /// The number of entries.
            pub fn len(&self) -> usize {
                self.0.len()
            }
            /// Whether the list is empty.
            pub fn is_empty(&self) -> bool {
                self.0.len() == 0
            }
            /// The entry at place `n`, from 0.
            pub fn nth(&self, n: usize) -> Option<&'a $item> {
                self.0.nth(n).map($of)
            }
        }

        impl<'a> IntoIterator for $list<'a> {
            type Item = &'a $item;
            type IntoIter = $iter<'a>;
            fn into_iter(self) -> $iter<'a> {
                self.iter()
            }
        }

        impl fmt::Debug for $list<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.iter()).finish()
            }
        }

        /// The entry at a place. The place must exist.
        impl std::ops::Index<usize> for $list<'_> {
            type Output = $item;
            fn index(&self, n: usize) -> &$item {
                let len = self.len();
                self.nth(n)
                    .unwrap_or_else(|| panic!("place {n} in a list of {len}"))
            }
        }

        /// An iterator over a list.
        pub struct $iter<'a>(Iter<'a, $index>);

        impl<'a> Iterator for $iter<'a> {
            type Item = &'a $item;
            fn next(&mut self) -> Option<&'a $item> {
                self.0.next().map($of)
            }
        }
    };
}

list!(
    /// The blocks of a map, by number.
    Blocks,
    BlocksIter,
    ById,
    Arc<Block>,
    |block| block
);
list!(
    /// The slots of a map, by guest address.
    Slots,
    SlotsIter,
    ByGuest,
    Slot,
    |slot| &**slot
);

impl PartialEq for Slots<'_> {
    /// Fast if one map was made from the other without a change to its slots.
    fn eq(&self, other: &Self) -> bool {
        self.0.is_same(other.0) || self.len() == other.len() && self.iter().eq(other.iter())
    }
}
