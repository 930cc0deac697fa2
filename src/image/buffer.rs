//! A page-aligned buffer, which `O_DIRECT` needs.

use crate::error::{Error, Result};
use crate::units::PAGE_SIZE;

/// A page-aligned buffer of bytes.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Allocates `length` bytes, or fails with [`crate::error::Kind::NoMemory`].
    pub(super) fn new(length: usize) -> Result<Buffer> {
        let page = PAGE_SIZE as usize;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length + page)
            .map_err(|_| Error::no_memory("a buffer for pages", length as u64))?;
        bytes.resize(length + page, 0);
        let start = bytes.as_ptr().align_offset(page);
        Ok(Buffer {
            bytes,
            start,
            length,
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// Whether `bytes` may be written at `offset` past the page cache.
pub(super) fn is_aligned(bytes: &[u8], offset: u64) -> bool {
    let page = PAGE_SIZE as usize;
    bytes.as_ptr().addr().is_multiple_of(page)
        && bytes.len().is_multiple_of(page)
        && offset.is_multiple_of(PAGE_SIZE)
}
