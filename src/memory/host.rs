//! What the host knows about a block's pages: which were never touched, and how to
//! give pages back or have them backed ahead of use.
//!
//! A page that was never touched reads as zero, and need not be read to know it (reading
//! it would make the host back it). Callers restore the protection of a range before
//! they ask: a page found untouched afterwards is written under the log's eyes.

use super::access;
use super::block::{Backing, Block};
use crate::error::{Error, Kind, Result};
use crate::sys::mem;
use crate::sys::pagemap::{Pagemap, Query, Region, PFNZERO, PRESENT, SWAPPED};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::AsFd;

/// A way to ask which pages were never touched. One for each thread that asks.
#[derive(Debug)]
pub struct HostView {
    /// `None` where the kernel has no `PAGEMAP_SCAN`: then private memory has no holes.
    pagemap: Option<Pagemap>,
}

impl HostView {
    /// Looks what this kernel can tell.
    pub fn new() -> Self {
        HostView {
            pagemap: Pagemap::open().ok(),
        }
    }

    /// Whether never-touched pages of `block` can be told from others here.
    pub fn sees_holes(&self, block: &Block) -> bool {
        match block.backing() {
            Backing::PrivateAnonymous => self.pagemap.is_some(),
            Backing::SharedFile => true,
            Backing::Unknown => false,
        }
    }

    /// Calls `touched` with each run of pages of `range` that may hold something, in
    /// order. What it is not called with reads as zero.
    pub fn touched(
        &self,
        block: &Block,
        range: Range<Pages>,
        mut touched: impl FnMut(Range<Pages>),
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            at = self.look(block, at..range.end, &mut touched)?;
        }
        Ok(())
    }

    /// The same for a first part of `range`, which is not empty; where that part ends. It is as
    /// much as the kernel tells in about a millisecond (of a file: up to its next hole).
    pub fn look(
        &self,
        block: &Block,
        range: Range<Pages>,
        mut touched: impl FnMut(Range<Pages>),
    ) -> Result<Pages> {
        if range.end > block.pages() {
            return Err(Error::new(
                Kind::Invalid,
                format!("block `{}` has {} pages", block.name(), block.pages()),
            ));
        }
        match (block.backing(), &self.pagemap, block.file()) {
            (Backing::PrivateAnonymous, Some(pagemap), _) => {
                look_private(pagemap, block, range, touched)
            }
            (Backing::SharedFile, _, Some(file)) => {
                let base = file.offset;
                let at = base + range.start.bytes().0;
                let end = base + range.end.bytes().0;
                let data = mem::seek_data(file.fd.as_fd(), at)?.unwrap_or(end);
                // What was cut off a file looks like a hole.
                if data > at {
                    let hole_end = Bytes(data.min(end) - base).pages_up();
                    access::file_reaches(block, &(range.start..hole_end))?;
                }
                if data >= end {
                    return Ok(range.end);
                }
                let hole = mem::seek_hole(file.fd.as_fd(), data)?
                    .unwrap_or(end)
                    .min(end);
                let run = Bytes(data - base).pages_down()..Bytes(hole - base).pages_up();
                touched(run.clone());
                Ok(run.end)
            }
            _ => {
                touched(range.clone());
                Ok(range.end)
            }
        }
    }
}

impl Default for HostView {
    fn default() -> Self {
        HostView::new()
    }
}

/// The most that one question asks about: the kernel walks 1 GiB of small pages in some
/// milliseconds, and nothing ends that walk early.
const LOOK_BYTES: u64 = 256 << 20;

fn look_private(
    pagemap: &Pagemap,
    block: &Block,
    range: Range<Pages>,
    mut touched: impl FnMut(Range<Pages>),
) -> Result<Pages> {
    let base = block.host() as u64;
    let at = base + range.start.bytes().0;
    let end = base + range.end.bytes().0;
    let end = end.min(at.saturating_add(LOOK_BYTES));
    let query = Query {
        any: PRESENT | SWAPPED,
        report: PRESENT | SWAPPED | PFNZERO,
        ..Query::default()
    };
    let mut regions = [Region::default(); 64];
    let (found, walked) = pagemap.scan(at..end, &query, &mut regions)?;
    for region in &regions[..found] {
        // The shared zero page was put there by a read; nobody has written.
        if region.categories & PFNZERO == 0 {
            touched(
                Pages((region.start - base) / PAGE_SIZE)..Pages((region.end - base) / PAGE_SIZE),
            );
        }
    }
    if walked <= at {
        return Err(Error::new(
            Kind::Kernel,
            format!("PAGEMAP_SCAN made no progress at {at:#x}"),
        ));
    }
    Ok(Pages((walked - base) / PAGE_SIZE))
}

/// Gives pages back to the host: they read as zero afterwards and cost no memory.
/// [`Kind::Unsupported`] for memory whose kind brant does not know.
pub fn discard(block: &Block, range: Range<Pages>) -> Result<()> {
    let count = Pages(range.end.0.saturating_sub(range.start.0));
    let slice = block.slice(range.start, count)?;
    if count.0 == 0 {
        return Ok(());
    }
    match (block.backing(), block.file()) {
        // SAFETY: the range lies in the block, which is private anonymous memory of the guest's.
        (Backing::PrivateAnonymous, _) => unsafe {
            mem::discard_private(slice.ptr_guard_mut().as_ptr(), slice.len())
        },
        (Backing::SharedFile, Some(file)) => mem::punch_hole(
            file.fd.as_fd(),
            file.offset + range.start.bytes().0,
            count.bytes().0,
        ),
        _ => Err(Error::new(
            Kind::Unsupported,
            format!(
                "block `{}` is neither private anonymous memory nor a shared mapping whose \
                 descriptor was given, so its pages cannot be given back",
                block.name()
            ),
        )),
    }
}

/// Has the host back pages now, contents kept, so that their first write is cheap. An error
/// where one of them cannot be written.
pub fn prefault(block: &Block, range: Range<Pages>) -> Result<()> {
    access::writable(block, range)
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
