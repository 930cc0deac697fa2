//! The part of brant's `dirty` that `reported.rs` implements and calls.

use crate::bits::summary::Bitmap;
use crate::error::{Error, Result};
use crate::memory::{Block, BlockId, Map};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Running,
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    Clean,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    Reported,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    pub block: BlockId,
    pub pages: std::ops::Range<u64>,
}

impl Extent {
    pub fn all_of(block: &Block) -> Extent {
        Extent {
            block: block.id(),
            pages: 0..block.pages().0,
        }
    }
}

pub trait Sink {
    fn block(
        &mut self,
        block: BlockId,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> Result<()>;

    fn given_up(&self) -> Option<crate::runtime::Cancel> {
        None
    }
}

#[derive(Debug)]
pub enum Harvested {
    Complete,
    Postponed(Error),
}

pub trait DirtyLog: Send {
    fn kind(&self) -> LogKind;
    fn start(&mut self, map: &Map) -> Result<Initial>;
    fn stop(&mut self, map: &Map) -> Result<()>;
    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested>;
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent));
    fn heap_bytes(&self) -> u64;
    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()>;
}
