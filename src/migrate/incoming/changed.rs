//! Applying a changed page to the version of the page that is in guest memory.
//!
//! The source encoded the page against the version that it sent last. Records of a lane are applied
//! in order, so our memory has that version unless something else has written to the page since.
//! That may be a VMM that touches memory while it arrives, or a mistake of the source's. A delta
//! applied to another version gives a page that never existed. So the version's checksum is
//! compared first. When it differs, the migration ends with an error that names the block and the
//! page.

use crate::error::{Error, Kind, Result};
use crate::memory::access;
use crate::memory::{BlockPin, PageRun};
use crate::page::delta::{self, PAGE};
use crate::wire::Delta;

/// Changes the page `at` of `block` as `delta` says. The page must have contents.
///
/// # Errors
/// [`Kind::Protocol`] when the page is another version, or when the encoding is invalid.
/// [`Kind::Memory`] when the page's contents were declared lost here, so that there is no version to
/// change. The page is unchanged then. Also every error of [`access::writable`].
pub(super) fn apply(block: &BlockPin, at: PageRun, delta: &Delta<'_>) -> Result<()> {
    let refuse = |kind, what: String| {
        Error::new(
            kind,
            format!(
                "DELTA: block `{}`: page {}: {what}",
                block.name(),
                delta.page
            ),
        )
    };
    if block.poisoned().next(at.range()).is_some() {
        let what = "the version that the source sent last has been declared lost here";
        return Err(refuse(Kind::Memory, what.into()));
    }
    access::writable(block, at.range())?;
    let memory = block.slice(at.first(), at.count())?;
    let mut page = [0; PAGE];
    memory.copy_to(&mut page[..]);
    let found = crc32fast::hash(&page);
    if found != delta.base {
        let what = format!(
            "expected in memory the version that the source sent last, with the checksum {:#010x}, \
             found one with {found:#010x}: something else has written to the page",
            delta.base
        );
        return Err(refuse(Kind::Protocol, what));
    }
    delta::decode(delta.encoding, &mut page).map_err(|corrupt| {
        let what = format!("the encoding is none: {corrupt}");
        refuse(Kind::Protocol, what)
    })?;
    memory.copy_from(&page);
    Ok(())
}
