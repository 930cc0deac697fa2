//! Whether somebody wrote to memory that was handed over by descriptor between the pause and the
//! hand-over. Nobody may: it is the memory of a guest that is still the source's.
//!
//! Example: the new process's `load` writes a virtio ring, as it may in memory that is copied. Then the
//! migration fails, and the guest goes on here with a ring that its device does not know. So a
//! migration that is verified compares checksums of these pages. It is an aid for testing: the guest
//! stands still while the pages are read, twice. Holes are not touched.

use crate::error::Result;
use crate::fallible;
use crate::memory::contents::Contents;
use crate::memory::digest::{of_pages, OF_ZEROS, PIECE};
use crate::memory::{Block, BlockId, Memory};
use crate::runtime::Cancel;
use crate::units::Pages;
use std::sync::Arc;

const WHAT: &str = "checksums of shared pages";

/// The checksums of the pages at one moment, while the guest stands still.
pub(super) struct Untouched {
    blocks: Vec<OfBlock>,
}

struct OfBlock {
    block: Arc<Block>,
    /// Of each piece; empty when all of its pages are zero.
    pieces: Vec<Vec<u32>>,
}

/// The pages of one block that were written meanwhile.
pub(super) struct Written {
    pub(super) name: String,
    pub(super) pages: u64,
    pub(super) first: Pages,
}

impl Untouched {
    /// Reads the pages of `blocks`.
    ///
    /// # Errors
    /// When a page cannot be read; `NoMemory`; `Cancelled`.
    pub(super) fn of(
        memory: &Memory,
        blocks: impl Iterator<Item = BlockId>,
        cancel: &Cancel,
    ) -> Result<Untouched> {
        let map = memory.map();
        let mut found = Untouched { blocks: Vec::new() };
        for block in blocks.filter_map(|id| map.block(id)) {
            let mut pieces = Vec::new();
            each_piece(memory, block, Some(cancel), |_, sums| {
                let mut kept = Vec::new();
                if sums.iter().any(|sum| *sum != OF_ZEROS) {
                    fallible::reserve(&mut kept, sums.len(), WHAT)?;
                    kept.extend_from_slice(sums);
                }
                fallible::push(&mut pieces, kept, WHAT)?;
                Ok(())
            })?;
            let block = Arc::clone(block);
            fallible::push(&mut found.blocks, OfBlock { block, pieces }, WHAT)?;
        }
        Ok(found)
    }

    /// Reads the pages again. Blocks that are gone are left out. No cancel ends it: the guest may be
    /// about to run on after one.
    ///
    /// # Errors
    /// When a page cannot be read; `NoMemory`.
    pub(super) fn written(&self, memory: &Memory) -> Result<Vec<Written>> {
        let mut found = Vec::new();
        for OfBlock { block, pieces } in &self.blocks {
            let mut written = Written {
                name: block.name().to_owned(),
                pages: 0,
                first: Pages(0),
            };
            let mut pieces = pieces.iter();
            each_piece(memory, block, None, |first, sums| {
                let before = pieces.next().map_or(&[][..], |piece| piece);
                for (at, sum) in (0..).zip(sums) {
                    if before.get(at as usize).unwrap_or(&OF_ZEROS) != sum {
                        if written.pages == 0 {
                            written.first = first + Pages(at);
                        }
                        written.pages += 1;
                    }
                }
                Ok(())
            })?;
            if written.pages > 0 {
                fallible::push(&mut found, written, WHAT)?;
            }
        }
        Ok(found)
    }
}

/// Calls `each` with the checksums of each piece of a block: with its first page, in order.
fn each_piece(
    memory: &Memory,
    block: &Arc<Block>,
    cancel: Option<&Cancel>,
    mut each: impl FnMut(Pages, &[u32]) -> Result<()>,
) -> Result<()> {
    let (mut contents, mut sums) = (Contents::new(), Vec::new());
    let mut first = Pages(0);
    while first < block.pages() {
        if let Some(cancel) = cancel {
            cancel.check("the switchover")?;
        }
        let Some(pin) = memory.pin(block) else {
            return Ok(());
        };
        let end = Pages((first + PIECE).0.min(block.pages().0));
        of_pages(&mut contents, &pin, first..end, &mut sums)?;
        each(first, &sums)?;
        first = end;
    }
    Ok(())
}
