//! The part of brant's `memory` that `reported.rs` uses: blocks of a few pages, each at the guest
//! address that is its number, 1 MiB apart, in a map that is kept as brant keeps it.

#[path = "../../../src/memory/tree.rs"]
pub mod tree;

use crate::error::Result;
use crate::runtime::grace::Guard;
use crate::runtime::snapshot::Snapshot;
use crate::runtime::sync::Arc;
use crate::units::Pages;
use vm_memory::GuestAddress;

const APART: u64 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

pub struct Block(u32, u64);

impl Block {
    pub fn id(&self) -> BlockId {
        BlockId(self.0)
    }
    pub fn pages(&self) -> Pages {
        Pages(self.1)
    }
}

pub struct BlockPart {
    pub block: BlockId,
    pub first: Pages,
    pub pages: Pages,
    pub before: Pages,
}

pub struct HostPart {
    pub block: BlockId,
    pub offset: crate::units::Bytes,
    pub host: u64,
    pub length: u64,
}

#[derive(Default, Clone)]
pub struct Map(Vec<Arc<Block>>);

impl Map {
    /// Blocks 0 to `n` of `pages` pages each.
    pub fn of(n: u32, pages: u64) -> Map {
        Map((0..n).map(|i| Arc::new(Block(i, pages))).collect())
    }
    pub fn block(&self, id: BlockId) -> Option<&Arc<Block>> {
        self.0.iter().find(|block| block.id() == id)
    }
    pub fn blocks(&self) -> &[Arc<Block>] {
        &self.0
    }
    pub fn blocks_not_in(&self, other: &Map) -> Result<Vec<Arc<Block>>> {
        let lacks = |block: &&Arc<Block>| other.0.iter().all(|b| b.id() != block.id());
        Ok(self.0.iter().filter(lacks).cloned().collect())
    }
    /// No model marks by address.
    pub fn host_part(&self, _host: u64, _end: u64) -> Option<HostPart> {
        None
    }
    pub fn block_parts(
        &self,
        from: GuestAddress,
        pages: Pages,
    ) -> impl Iterator<Item = BlockPart> + '_ {
        let first = from.0 / crate::units::PAGE_SIZE;
        let here = self.0.get((first / APART) as usize);
        here.into_iter().map(move |block| BlockPart {
            block: block.id(),
            first: Pages(first % APART),
            pages,
            before: Pages(0),
        })
    }
}

pub struct Memory(Snapshot<Map>);

impl Memory {
    pub fn new(map: Map) -> Memory {
        Memory(Snapshot::new(map))
    }
    pub fn map_pinned<'g>(&'g self, pinned: &'g Guard) -> &'g Map {
        self.0.get(pinned)
    }
}
