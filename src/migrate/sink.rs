//! Where arriving pages go: the destination's guest memory, through the source's block
//! numbers, with an account of what is known to be zero.
//!
//! A destination's memory is not assumed to be zero. Pages that were never touched there are
//! known to be (and stay untouched when a zero page arrives for them, so that an idle guest
//! costs no memory); every other page is written.

use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::memory::host::{self, HostView};
use crate::memory::{Block, BlockId, BlockPin, Map, Memory};
use crate::units::Pages;
use crate::wire::{self, Header};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// How many differences a message lists.
const DIFFERENCES: usize = 8;

struct Target {
    /// Pinned for the time of a record only: between two of them the VMM may remove it.
    block: Arc<Block>,
    /// Pages that read as zero without anybody having to look.
    zero: Bitmap,
}

/// See the file's description.
pub(super) struct PageSink {
    memory: Arc<Memory>,
    /// By the source's block number. A block of ours is the target of one at a time.
    targets: HashMap<u32, Target>,
    /// Blocks of ours that were a target before: they are not as the VMM gave them any more.
    used: HashSet<BlockId>,
    /// Page-run records taken.
    pub(super) records: u64,
    pub(super) data_pages: u64,
    /// Given-back ones included.
    pub(super) zero_pages: u64,
    pub(super) skipped_pages: u64,
}

/// What differs between a block of the source's and ours of the same name, in words.
pub(super) fn block_difference(theirs: &wire::Block, ours: &Block) -> Option<String> {
    let rom = theirs.flags & wire::BLOCK_FLAG_ROM != 0;
    let kind = |rom| if rom { "ROM" } else { "RAM" };
    let mut differences = Vec::new();
    if ours.length().0 != theirs.length {
        differences.push(format!(
            "has {} bytes at the source and {} at the destination",
            theirs.length,
            ours.length()
        ));
    }
    if ours.page_size().0 != theirs.page_size {
        differences.push(format!(
            "has pages of {} bytes at the source and of {} at the destination",
            theirs.page_size,
            ours.page_size()
        ));
    }
    if ours.flags().rom != rom {
        differences.push(format!(
            "is {} at the source and {} at the destination",
            kind(rom),
            kind(!rom)
        ));
    }
    (!differences.is_empty())
        .then(|| format!("block `{}` {}", theirs.name, differences.join(", and ")))
}

/// What differs between the source's blocks and this side's, in words; `None` if nothing.
pub(super) fn layout_difference(source: &[wire::Block], map: &Map) -> Option<String> {
    let mut differences = Vec::new();
    for theirs in source {
        let Some(ours) = map.block_named(&theirs.name) else {
            differences.push(format!(
                "the source has a block `{}` of {} bytes and the destination has none of that name",
                theirs.name, theirs.length
            ));
            continue;
        };
        differences.extend(block_difference(theirs, ours));
    }
    for ours in map.blocks() {
        if !source.iter().any(|theirs| theirs.name == ours.name()) {
            differences.push(format!(
                "the destination has a block `{}` of {} bytes and the source has none of that name",
                ours.name(),
                ours.length()
            ));
        }
    }
    if differences.is_empty() {
        return None;
    }
    let more = differences.len().saturating_sub(DIFFERENCES);
    differences.truncate(DIFFERENCES);
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    Some(differences.join("; "))
}

/// How a block is announced.
pub(super) fn describe(block: &Block) -> wire::Block {
    wire::Block {
        id: block.id().0,
        length: block.length().0,
        page_size: block.page_size().0,
        flags: if block.flags().rom {
            wire::BLOCK_FLAG_ROM
        } else {
            0
        },
        name: block.name().to_owned(),
    }
}

impl PageSink {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        PageSink {
            memory,
            targets: HashMap::new(),
            used: HashSet::new(),
            records: 0,
            data_pages: 0,
            zero_pages: 0,
            skipped_pages: 0,
        }
    }

    /// Takes pages of the source's block `id` into `block` from now on.
    pub(super) fn add(&mut self, id: u32, block: &Arc<Block>) -> Result<()> {
        if self.targets.contains_key(&id) {
            return Err(Error::new(
                Kind::Protocol,
                format!("block {id} is announced twice"),
            ));
        }
        if self.targets.values().any(|t| t.block.id() == block.id()) {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "block `{}` is announced again, as {id}, and was not removed",
                    block.name()
                ),
            ));
        }
        let _pin = self.memory.pin(block).ok_or_else(|| removed(block))?;
        let pages = block.pages();
        let mut zero = Bitmap::new(pages.index())?;
        let fresh = self.used.insert(block.id());
        if block.flags().zeroed && fresh {
            zero.set_all();
        } else {
            let view = HostView::new();
            if view.sees_holes(block) {
                zero.set_all();
                view.touched(block, Pages(0)..pages, |range| {
                    zero.clear_range(range.start.index(), (range.end - range.start).index());
                })?;
            }
        }
        self.targets.insert(
            id,
            Target {
                block: Arc::clone(block),
                zero,
            },
        );
        Ok(())
    }

    /// All has arrived. Lets go of all memory, and keeps the counts. A block that the source
    /// still has and that is gone here is an error now.
    pub(super) fn finish(&mut self) -> Result<()> {
        let map = self.memory.map();
        for (_, target) in self.targets.drain() {
            if map.block(target.block.id()).is_none() {
                return Err(removed(&target.block));
            }
        }
        Ok(())
    }

    /// Lets go of the source's block `id`.
    pub(super) fn remove(&mut self, id: u32) -> Result<()> {
        match self.targets.remove(&id) {
            Some(_) => Ok(()),
            None => Err(unknown(id)),
        }
    }

    /// The target of a run of pages, pinned; no pin for a block that is gone here. Its pages
    /// may still be on their way when both sides have removed it, and go nowhere.
    fn target(&mut self, header: &Header) -> Result<(&mut Target, Option<BlockPin>)> {
        let target = self
            .targets
            .get_mut(&header.block)
            .ok_or_else(|| unknown(header.block))?;
        header.check_run(target.block.pages())?;
        let pin = self.memory.pin(&target.block);
        Ok((target, pin))
    }

    /// The block that the contents of a run of pages go to, pinned; `None` if they go nowhere.
    /// They count as arrived.
    pub(super) fn data(&mut self, header: &Header) -> Result<Option<BlockPin>> {
        self.records += 1;
        self.data_pages += u64::from(header.count);
        let (target, pin) = self.target(header)?;
        target
            .zero
            .clear_range(header.first_page as usize, header.count as usize);
        target.block.returned().arrived(pages_of(header));
        Ok(pin)
    }

    /// Takes a run of zero pages.
    pub(super) fn zeros(&mut self, header: &Header) -> Result<()> {
        self.records += 1;
        self.zero_pages += u64::from(header.count);
        let (target, pin) = self.target(header)?;
        if pin.is_none() {
            return Ok(());
        }
        target.block.returned().arrived(pages_of(header));
        target.make_zero(pages_of(header))
    }

    /// Takes a run of pages that the guest has given back.
    pub(super) fn discard(&mut self, header: &Header) -> Result<()> {
        self.records += 1;
        self.zero_pages += u64::from(header.count);
        self.skipped_pages += u64::from(header.count);
        let memory = Arc::clone(&self.memory);
        let (target, pin) = self.target(header)?;
        if pin.is_none() {
            return Ok(());
        }
        let range = pages_of(header);
        let mut whole = Vec::new();
        memory.give_from_peer(&target.block, range.clone(), |pages| whole.push(pages));
        for pages in whole {
            if host::discard(&target.block, Pages(pages.start)..Pages(pages.end)).is_ok() {
                target
                    .zero
                    .set_range(pages.start as usize, (pages.end - pages.start) as usize);
            }
        }
        // What is left: part of a larger host page, or memory that cannot be given back.
        target.make_zero(range)
    }
}

/// The pages of a run.
fn pages_of(header: &Header) -> Range<u64> {
    header.first_page..header.first_page + u64::from(header.count)
}

impl Target {
    /// Has pages read as zero.
    fn make_zero(&mut self, range: Range<u64>) -> Result<()> {
        let target = self;
        let (mut at, end) = (range.start as usize, range.end as usize);
        while at < end {
            // From here, pages known to be zero, then pages that are not known to be.
            let known = target
                .zero
                .next_run(at, end - at)
                .filter(|run| run.start < end)
                .unwrap_or(end..end);
            if at < known.start {
                let unknown = Pages(at as u64)..Pages(known.start as u64);
                let mut to_write = Vec::new();
                // Reading costs less than writing and leaves shared pages shared.
                target.block.split_zeros(unknown, |range, zero| {
                    if !zero {
                        to_write.push(range);
                    }
                })?;
                for range in to_write {
                    target.block.write_zeros(range)?;
                }
                target.zero.set_range(at, known.start - at);
            }
            at = known.end;
        }
        Ok(())
    }
}

fn removed(block: &Block) -> Error {
    Error::new(
        Kind::Layout,
        format!(
            "block `{}` was removed at the destination while the source still has it",
            block.name()
        ),
    )
}

fn unknown(id: u32) -> Error {
    Error::new(
        Kind::Protocol,
        format!("block {id} was never announced, or is gone"),
    )
}
