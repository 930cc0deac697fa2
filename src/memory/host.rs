//! Discarding pages, which frees their memory on the host, and having pages backed ahead of use.
//!
//! The kind of memory can change after the VMM described it. So this file asks again before it
//! discards pages.

use super::access;
use super::block::Block;
use super::contents::Contents;
use super::ground::{Below, Tables, Watcher};
use crate::error::{Error, Kind, Result};
use crate::sys::mem;
use crate::units::Pages;
use std::ops::Range;

/// Discards pages: they read as zero afterwards and cost no memory. [`Kind::Unsupported`] where the
/// kernel would not do so: a file whose descriptor the VMM did not give, a private mapping of a
/// file, part of a huge page, memory that a userfaultfd of somebody else's fills. Some of the pages
/// may have been discarded by then.
pub fn discard(contents: &mut Contents, block: &Block, range: Range<Pages>) -> Result<()> {
    contents.on_ground(block, range, |contents, ground, range| {
        let count = range.end - range.start;
        let slice = block.slice(range.start, count)?;
        let whole = |pages: Pages| {
            pages.0 > 0
                && range.start.0.is_multiple_of(pages.0)
                && range.end.0.is_multiple_of(pages.0)
        };
        match (ground.tables, ground.below) {
            _ if ground.watcher == Watcher::Somebody => {}
            // Of part of a huge page the kernel discards nothing, and returns no error.
            (Tables::Private, Below::Zero) if ground.huge.is_none_or(whole) => {
                // SAFETY: the range lies in the block, and is private memory of the guest's,
                // without a file.
                return unsafe {
                    mem::discard_private(slice.ptr_guard_mut().as_ptr(), slice.len())
                };
            }
            (Tables::Silent, Below::Tmpfs(at)) | (Tables::Present, Below::Hugetlbfs(at))
                if at.is_given() =>
            {
                if let Some(file) = contents.file(block, at) {
                    return mem::punch_hole(file, at.offset(range.start), count.bytes().0);
                }
            }
            _ => {}
        }
        Err(Error::new(
            Kind::Unsupported,
            format!(
                "block `{}` is here neither private memory without a file nor a shared mapping of \
                 a tmpfs file whose descriptor was given, or a userfaultfd fills it, so its pages \
                 cannot be discarded",
                block.name()
            ),
        ))
    })
}

/// Has the host back pages now, with their contents kept, so that their first write is cheap. An
/// error if one of them cannot be written.
pub fn prefault(block: &Block, range: Range<Pages>) -> Result<()> {
    access::writable(block, range)
}
