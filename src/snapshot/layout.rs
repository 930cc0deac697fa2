//! Whether an image and a guest have the same blocks. Pure.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::image::format::{BlockEntry, Index};
use crate::memory::{Block, Map};
use std::collections::HashSet;
use std::sync::Arc;

/// How many differences a message lists.
const DIFFERENCES: usize = 8;

/// The difference between a block of the image and this guest's block of the same name, in words.
fn difference(theirs: &BlockEntry, ours: &Block) -> Option<String> {
    let kind = |rom| if rom { "ROM" } else { "RAM" };
    let mut differences = Vec::new();
    if ours.length().0 != theirs.length {
        differences.push(format!(
            "has {} bytes in the image and {} in the guest",
            theirs.length,
            ours.length()
        ));
    }
    if ours.page_size().0 != theirs.page_size {
        differences.push(format!(
            "has pages of {} bytes in the image and of {} in the guest",
            theirs.page_size,
            ours.page_size()
        ));
    }
    if ours.flags().rom != theirs.rom {
        differences.push(format!(
            "is {} in the image and {} in the guest",
            kind(theirs.rom),
            kind(!theirs.rom)
        ));
    }
    let name = &theirs.name;
    (!differences.is_empty()).then(|| format!("block `{name}` {}", differences.join(", and ")))
}

/// The guest's blocks in the order of the image's, if they are the same.
pub(super) fn matching(index: &Index, map: &Map) -> Result<Vec<Arc<Block>>> {
    let mut blocks = Vec::new();
    let mut told = Vec::new();
    let mut names = HashSet::new();
    for theirs in &index.blocks {
        fallible::add(&mut names, theirs.name.as_str(), "an image's blocks")?;
        match map.block_named(&theirs.name) {
            None => told.push(format!(
                "the image has a block `{}` of {} bytes and the guest has none of that name",
                theirs.name, theirs.length
            )),
            Some(ours) => {
                told.extend(difference(theirs, ours));
                fallible::push(&mut blocks, Arc::clone(ours), "an image's blocks")?;
            }
        }
    }
    let missing = map
        .blocks()
        .iter()
        .filter(|ours| !names.contains(ours.name()));
    told.extend(missing.map(|ours| {
        format!(
            "the guest has a block `{}` of {} bytes and the image has none of that name",
            ours.name(),
            ours.length()
        )
    }));
    if told.is_empty() {
        return Ok(blocks);
    }
    let more = told.len().saturating_sub(DIFFERENCES);
    told.truncate(DIFFERENCES);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    Err(Error::new(Kind::Layout, told.join("; ")))
}
