//! Where arriving pages go: the destination's guest memory, through the source's block
//! numbers, with an account of what is known to be zero.
//!
//! A destination's memory is not assumed to be zero. Pages that were never touched there are
//! known to be (and stay untouched when a zero page arrives for them, so that an idle guest
//! costs no memory); every other page is written.

use crate::bits::summary::Bitmap;
use crate::channel::socket::PartMut;
use crate::error::{Error, Kind, Result};
use crate::memory::host::HostView;
use crate::memory::{Block, BlockPin, Map};
use crate::units::Pages;
use crate::wire::{self, Header};
use std::collections::HashMap;
use std::sync::Arc;

/// How many differences a message lists.
const DIFFERENCES: usize = 8;

struct Target {
    block: BlockPin,
    /// Pages that read as zero without anybody having to look.
    zero: Bitmap,
}

/// See the file's description.
#[derive(Default)]
pub(super) struct PageSink {
    /// By the source's block number.
    targets: HashMap<u32, Target>,
    /// Page-run records taken.
    pub(super) records: u64,
    pub(super) data_pages: u64,
    pub(super) zero_pages: u64,
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
        if ours.length().0 != theirs.length {
            differences.push(format!(
                "block `{}` has {} bytes at the source and {} at the destination",
                theirs.name,
                theirs.length,
                ours.length()
            ));
        }
        if ours.page_size().0 != theirs.page_size {
            differences.push(format!(
                "block `{}` has pages of {} bytes at the source and of {} at the destination",
                theirs.name,
                theirs.page_size,
                ours.page_size()
            ));
        }
        let rom = theirs.flags & wire::BLOCK_FLAG_ROM != 0;
        if ours.flags().rom != rom {
            let kind = |rom| if rom { "ROM" } else { "RAM" };
            differences.push(format!(
                "block `{}` is {} at the source and {} at the destination",
                theirs.name,
                kind(rom),
                kind(!rom)
            ));
        }
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
    /// Takes pages of the source's block `id` into `block` from now on.
    pub(super) fn add(&mut self, id: u32, block: &Arc<Block>) -> Result<()> {
        if self.targets.contains_key(&id) {
            return Err(Error::new(
                Kind::Protocol,
                format!("block {id} is announced twice"),
            ));
        }
        let pages = block.pages();
        let mut zero = Bitmap::new(pages.index())?;
        if block.flags().zeroed {
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
                block: BlockPin::new(block),
                zero,
            },
        );
        Ok(())
    }

    /// All has arrived: lets go of all memory, and keeps the counts.
    pub(super) fn finish(&mut self) {
        self.targets.clear();
    }

    /// Lets go of the source's block `id`.
    pub(super) fn remove(&mut self, id: u32) -> Result<()> {
        match self.targets.remove(&id) {
            Some(_) => Ok(()),
            None => Err(unknown(id)),
        }
    }

    fn target(&mut self, header: &Header) -> Result<&mut Target> {
        let target = self
            .targets
            .get_mut(&header.block)
            .ok_or_else(|| unknown(header.block))?;
        header.check_run(target.block.pages())?;
        Ok(target)
    }

    /// Where the contents of a run of pages go. They count as arrived.
    pub(super) fn data(&mut self, header: &Header) -> Result<PartMut<'_>> {
        self.records += 1;
        self.data_pages += u64::from(header.count);
        let target = self.target(header)?;
        let first = Pages(header.first_page);
        let count = Pages(u64::from(header.count));
        target.zero.clear_range(first.index(), count.index());
        target.block.part_mut(first, count)
    }

    /// Takes a run of zero pages.
    pub(super) fn zeros(&mut self, header: &Header) -> Result<()> {
        self.records += 1;
        self.zero_pages += u64::from(header.count);
        let target = self.target(header)?;
        let (mut at, end) = (
            header.first_page as usize,
            header.first_page as usize + header.count as usize,
        );
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

fn unknown(id: u32) -> Error {
    Error::new(
        Kind::Protocol,
        format!("block {id} was never announced, or is gone"),
    )
}
