//! A guest's memory mapped privately from an image's file, for an image that the VMM trusts.
//!
//! A mapping cannot be checked: the kernel reads a page when the guest touches it, and nobody compares
//! its checksum. A file that is cut afterwards raises SIGBUS, and one that is written afterwards
//! changes the guest's memory. So only the VMM can say that this file stays as it is.
//!
//! Writes of the guest stay in its own copies of pages. What was mapped before is gone, the VMM's
//! advice for it (huge pages, locks, NUMA) included.

use super::reader::Image;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::{Block, BlockPin, Memory};
use crate::sys::maps::Maps;
use crate::sys::mem;
use crate::sys::uffd::{Faults, Modes};
use crate::units::PAGE_SIZE;
use std::sync::Arc;

/// Blocks whose memory is mapped from an image. Dropped, they are new memory again, all zero, unless
/// [`Mapped::keep`] was called.
#[derive(Debug, Default)]
pub struct Mapped {
    blocks: Vec<BlockPin>,
}

fn refused(block: &Block, kind: Kind, why: &str) -> Error {
    let name = block.name();
    let what = format!("block `{name}` cannot be mapped from an image: {why}");
    Error::new(kind, what)
}

/// Whether a block's memory may be replaced by a mapping.
fn check(maps: &Maps, faults: Option<&Faults>, block: &Block) -> Result<()> {
    let no = |why: &str| Err(refused(block, Kind::Unsupported, why));
    if block.page_size().0 != PAGE_SIZE {
        return no("its pages are huge pages");
    }
    let (start, end) = (block.host() as u64, block.host() as u64 + block.length().0);
    let mut at = start;
    let mut result = Ok(());
    maps.over(start..end, |area| {
        if area.start > at {
            return false;
        }
        if area.shared {
            result = no("it is shared memory, whose other mappings would not change");
        } else if area.inode != 0 || area.huge_anonymous {
            result = no("it is a private mapping of a file");
        }
        at = area.end;
        result.is_ok()
    })?;
    result?;
    if at < end {
        return no("not all of it is mapped");
    }
    // Without the right to a userfaultfd nobody else in this process has one for guest memory either.
    let Some(faults) = faults else {
        return Ok(());
    };
    let missing = Modes {
        missing: true,
        ..Modes::default()
    };
    match faults.register(start..end, missing) {
        Ok(_) => faults.unregister(start..end),
        Err(e) if e.kind() == Kind::Exists => Err(refused(
            block,
            Kind::Exists,
            "another userfaultfd watches it",
        )),
        Err(_) => Ok(()),
    }
}

impl Image {
    /// Whether all `blocks`, the guest's in the order of the index, can be mapped from this image.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] and [`Kind::Exists`] with the block's name and the reason. Nothing was
    /// touched.
    pub fn check_mappable(&self, blocks: &[Arc<Block>]) -> Result<()> {
        self.mappable()?;
        let (maps, faults) = (Maps::open()?, Faults::open().ok());
        (blocks.iter()).try_for_each(|block| check(&maps, faults.as_ref(), block))
    }

    /// Maps the file in place of the memory of `blocks`, which [`Image::check_mappable`] has found
    /// good.
    ///
    /// # Errors
    /// Those of the kernel, and when a block is being removed. The blocks are all zero then.
    pub fn map_into(&self, memory: &Memory, blocks: &[Arc<Block>]) -> Result<Mapped> {
        let layer = self.mappable()?;
        let mut mapped = Mapped::default();
        fallible::reserve(&mut mapped.blocks, blocks.len(), "blocks")?;
        for (entry, block) in layer.index.blocks.iter().zip(blocks) {
            let Some(pin) = memory.pin(block) else {
                return Err(refused(block, Kind::Layout, "it is being removed"));
            };
            let pages = 0..pin.pages().0;
            pin.zeroed_no_more();
            pin.ballooned().arrived(pages.clone());
            pin.poisoned().arrived(pages.clone());
            mapped.blocks.push(pin.clone());
            // SAFETY: memory of a block that is pinned, so mapped; the VMM has given it for the guest's
            // contents, and nobody has a reference to guest memory.
            unsafe {
                mem::map_file_privately(
                    pin.host(),
                    pin.length().0 as usize,
                    layer.file(),
                    entry.offset,
                )
            }
            .map_err(|e| e.context(format_args!("block `{}`", pin.name())))?;
            memory.tell_written(pin.id(), pages);
        }
        Ok(mapped)
    }
}

impl Mapped {
    /// The guest is here, and keeps this memory.
    pub fn keep(mut self) {
        self.blocks.clear();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for block in &self.blocks {
            // SAFETY: as in `map_into`. No guest is here. After a failure the file stays mapped, which
            // costs the next restore its choice and nothing else.
            let _ = unsafe { mem::map_zeros(block.host(), block.length().0 as usize) };
        }
    }
}
