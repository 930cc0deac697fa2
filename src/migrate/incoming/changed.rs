//! A changed page onto the version of it that is in guest memory.
//!
//! The source encoded the page against the version that it sent last. That version is in our memory,
//! because records of a lane are applied in order, unless something else has written to the page
//! since: a VMM that touches memory while it arrives, or a mistake of the source's. A delta on another
//! version gives a page that never was. So the version's checksum is compared first, and a page that is
//! another ends the migration with its block and number.

use crate::error::{Error, Kind, Result};
use crate::memory::access;
use crate::memory::{BlockPin, PageRun};
use crate::page::delta::{self, PAGE};
use crate::wire::Delta;

/// Changes the page `at` of our memory, which has contents, as `delta` says.
///
/// # Errors
/// [`Kind::Protocol`] for a page that is another version, or whose contents were lost here, and for an
/// encoding that is none; the page is as it was then. And what [`access::writable`] refuses.
pub(super) fn apply(block: &BlockPin, at: PageRun, delta: &Delta<'_>) -> Result<()> {
    let refuse = |what: String| {
        Error::new(
            Kind::Protocol,
            format!(
                "DELTA: block `{}`: page {}: {what}",
                block.name(),
                delta.page
            ),
        )
    };
    if block.poisoned().next(at.range()).is_some() {
        return Err(refuse(
            "the version that the source sent last has been declared lost here".into(),
        ));
    }
    access::writable(block, at.range())?;
    let memory = block.slice(at.first(), at.count())?;
    let mut page = [0; PAGE];
    memory.copy_to(&mut page[..]);
    let found = crc32fast::hash(&page);
    if found != delta.base {
        return Err(refuse(format!(
            "expected in memory the version that the source sent last, with the checksum {:#010x}, \
             found one with {found:#010x}: something else has written to the page",
            delta.base
        )));
    }
    delta::decode(delta.encoding, &mut page)
        .map_err(|corrupt| refuse(format!("the encoding is none: {corrupt}")))?;
    memory.copy_from(&page);
    Ok(())
}
