//! How the two sides compare their RAM blocks: what the source announces, and how the destination's
//! blocks differ, in words.

use crate::memory::{Block, Map};
use crate::wire;
use std::collections::HashSet;

/// How many differences a message lists.
const DIFFERENCES: usize = 8;

/// How a block of the source's differs from this side's block of the same name, in words.
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

/// How the source's blocks, whose names are `names`, differ from this side's, in words; `None` when
/// they do not. The text has the first few differences, and how many more there are. A block that
/// this side lacks is no difference when it is `gone`: removed here after the source may have
/// listed it.
pub(super) fn layout_difference(
    source: &[wire::Block],
    names: &HashSet<&str>,
    map: &Map,
    gone: impl Fn(&str) -> bool,
) -> Option<String> {
    let theirs = source
        .iter()
        .filter_map(|theirs| match map.block_named(&theirs.name) {
            Some(ours) => block_difference(theirs, ours),
            None if gone(&theirs.name) => None,
            None => Some(format!(
                "the source has a block `{}` of {} bytes and the destination has none of that name",
                theirs.name, theirs.length
            )),
        });
    let ours = map.blocks().iter();
    let ours = ours
        .filter(|ours| !names.contains(ours.name()))
        .map(|ours| {
            format!(
                "the destination has a block `{}` of {} bytes and the source has none of that name",
                ours.name(),
                ours.length()
            )
        });
    let mut differences = theirs.chain(ours);
    let mut told: Vec<String> = differences.by_ref().take(DIFFERENCES).collect();
    let more = differences.count();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// The announcement of a block.
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
