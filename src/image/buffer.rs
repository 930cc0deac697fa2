//! A page-aligned buffer, which `O_DIRECT` needs.
//!
//! A buffer of 2 MiB lies on a huge page, if the kernel has any. A device takes a limited number of
//! pieces of memory in one request, often one or two hundred. 2 MiB of ordinary pages are up to 512
//! such pieces, so reading them takes several requests; reading a huge page takes one.

use crate::error::Result;
use crate::sys::own::OwnMemory;
use crate::units::PAGE_SIZE;

/// A page-aligned buffer of bytes.
#[derive(Debug)]
pub(super) struct Buffer(OwnMemory);

impl Buffer {
    /// `length` bytes, or an error of [`crate::error::Kind::NoMemory`].
    pub(super) fn new(length: usize) -> Result<Buffer> {
        OwnMemory::new(length, "a buffer for pages").map(Buffer)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Whether `bytes` may be written at `offset` past the page cache.
pub(super) fn is_aligned(bytes: &[u8], offset: u64) -> bool {
    let page = PAGE_SIZE as usize;
    bytes.as_ptr().addr().is_multiple_of(page)
        && bytes.len().is_multiple_of(page)
        && offset.is_multiple_of(PAGE_SIZE)
}
