//! Memory of brant's own, outside of the heap: aligned to a page, and, from a huge page on, on huge
//! pages if the kernel has any.
//!
//! Why not the heap: it gives the same memory to one user after the other. So ordinary pages of an
//! earlier user would stay where huge pages are asked for, and huge pages where nobody asks.

use super::kernel;
use super::mem;
use crate::error::{Error, Result};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const PAGE: usize = 4096;
/// The size and alignment of a huge page of the processor's.
const HUGE_PAGE: usize = 2 << 20;

/// A mapping of new memory, until it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is the object's own.
unsafe impl Send for Mapping {}
// SAFETY: as above; its owners write it through `&mut` only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// So many bytes, zero at first, where the kernel likes. `None`: it gives none.
    pub(super) fn new(bytes: usize) -> Option<Mapping> {
        // SAFETY: a new mapping, where the kernel likes.
        let base = unsafe {
            kernel::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED)?;
        Some(Mapping { base, bytes })
    }

    /// Its first byte.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no borrow of it is left.
        unsafe { kernel::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A number of bytes, zero at first and not touched before they are used.
#[derive(Debug)]
pub struct OwnMemory {
    mapping: Mapping,
    /// Bytes of the mapping before the first one.
    skip: usize,
    length: usize,
}

impl OwnMemory {
    /// `length` bytes. `what` names them in the error when there is no memory.
    pub fn new(length: usize, what: &str) -> Result<OwnMemory> {
        let no_memory = || Error::no_memory(what, length as u64);
        let huge = length >= HUGE_PAGE;
        let align = if huge { HUGE_PAGE } else { PAGE };
        // Room to begin at a huge page, wherever the mapping begins.
        let mapped = length
            .max(1)
            .checked_next_multiple_of(PAGE)
            .and_then(|whole| whole.checked_add(align - PAGE))
            .ok_or_else(no_memory)?;
        let mapping = Mapping::new(mapped).ok_or_else(no_memory)?;
        let skip = mapping.base().as_ptr().align_offset(align);
        debug_assert!(skip + length <= mapped);
        let own = OwnMemory {
            mapping,
            skip,
            length,
        };
        if huge {
            mem::prefer_huge_pages(own.first().as_ptr(), length);
        }
        Ok(own)
    }

    /// The first byte, for callers that share the memory. Writes through the pointer are allowed as
    /// long as no slice of the memory is in use.
    pub fn first(&self) -> NonNull<u8> {
        // SAFETY: inside of the mapping, which begins at a page.
        unsafe { self.mapping.base().add(self.skip) }
    }
}

impl Deref for OwnMemory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes of the mapping, which are zero or were written.
        unsafe { std::slice::from_raw_parts(self.first().as_ptr(), self.length) }
    }
}

impl DerefMut for OwnMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.first().as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn memory_of_our_own_is_zero_and_aligned_to_the_largest_page_that_it_fills() {
        for length in [0, 1, PAGE, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1] {
            let mut own = OwnMemory::new(length, "test").unwrap();
            assert_eq!(own.len(), length);
            assert!(own.iter().all(|byte| *byte == 0));
            own.fill(0xa5);
            let align = if length >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
            assert!(own.as_ptr().addr().is_multiple_of(align), "{length}");
        }
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        for length in [usize::MAX, usize::MAX / 2, 1 << 60] {
            let error = OwnMemory::new(length, "test").unwrap_err();
            assert_eq!(error.kind(), Kind::NoMemory);
        }
    }
}
