//! Zeroed words: aligned to a cache line, allocated fallibly, and not touched before they are used.
//! They lie on the heap, or, where the caller asks for it, on huge pages.
//!
//! This is no general vector: its length never changes. `Bitmap`, `Chunks` and `ConcurrentBitmap`
//! keep their words in it.

use crate::error::{Error, Result};
use crate::sys::own::OwnMemory;
use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a cache line, which is also the size of an AVX-512 register.
const LINE: usize = 64;

/// Words of fewer bytes lie on the heap, whatever was asked for. This many are the bits of 128 GiB
/// of pages. The memory of a smaller guest's bits is seldom missing from the processor's table of
/// addresses, and a touched huge page would be much of it.
const HUGE_FROM: usize = 4 << 20;

/// The memory of some words.
enum Block {
    /// None, for length 0.
    Nothing,
    Heap(NonNull<u8>, Layout),
    Own(OwnMemory),
}

/// A fixed number of zeroed words.
pub(crate) struct Words {
    block: Block,
    /// The first word: the beginning of the block, rounded up to a line.
    first: NonNull<u64>,
    len: usize,
}

impl Words {
    /// `len` words, all zero. Fails with [`crate::error::Kind::NoMemory`], which names `what`.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Words> {
        if len == 0 {
            return Ok(Words {
                block: Block::Nothing,
                first: NonNull::dangling(),
                len: 0,
            });
        }
        let no_memory = || Error::no_memory(what, (len as u64).saturating_mul(8));
        // The words are aligned to a line by hand. For more alignment than malloc gives by itself,
        // the standard library's system allocator cannot use calloc. It would write the zeros, and
        // so touch all of a bitmap of which perhaps no word is ever used.
        let bytes = len
            .checked_mul(8)
            .and_then(|bytes| bytes.checked_add(LINE - 8))
            .ok_or_else(no_memory)?;
        let layout = Layout::from_size_align(bytes, 8).map_err(|_| no_memory())?;
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let block = NonNull::new(raw).ok_or_else(no_memory)?;
        let skip = block.as_ptr().align_offset(LINE);
        debug_assert!(skip <= LINE - 8);
        // SAFETY: the allocation is 8-aligned, so at most LINE - 8 bytes are skipped. That many
        // were added beyond `len` words.
        let first = unsafe { block.add(skip) }.cast::<u64>();
        Ok(Words {
            block: Block::Heap(block, layout),
            first,
            len,
        })
    }

    /// [`Words::zeroed`] on huge pages, if the words are many and the kernel has huge pages. For
    /// words that are used all over: on ordinary pages each use of a word far from the last one
    /// also looks for the page's address, in tables that are in no cache either. A huge page that is
    /// touched in one place is in memory as a whole.
    pub(crate) fn zeroed_on_huge_pages(len: usize, what: &str) -> Result<Words> {
        let bytes = len.saturating_mul(8);
        if bytes < HUGE_FROM {
            return Words::zeroed(len, what);
        }
        let own = OwnMemory::new(bytes, what)?;
        Ok(Words {
            first: own.first().cast::<u64>(),
            block: Block::Own(own),
            len,
        })
    }

    /// The first word, for callers that share the words between threads. Writes through the pointer
    /// are allowed as long as no slice of these words is in use.
    pub(crate) fn as_ptr(&self) -> *mut u64 {
        self.first.as_ptr()
    }

    /// Bytes taken from the heap, or mapped beside it.
    pub(crate) fn heap_bytes(&self) -> usize {
        match &self.block {
            Block::Nothing => 0,
            Block::Heap(_, layout) => layout.size(),
            Block::Own(own) => own.len(),
        }
    }
}

impl Deref for Words {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        // SAFETY: `first` is aligned, and `len` initialised (zeroed) words follow it that live as
        // long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as for `deref`; `&mut self` makes this slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        if let Block::Heap(block, layout) = self.block {
            // SAFETY: allocated by alloc_zeroed with this layout, and freed once.
            unsafe { dealloc(block.as_ptr(), layout) };
        }
    }
}

// SAFETY: an owned allocation of plain integers, like Box<[u64]>.
unsafe impl Send for Words {}
// SAFETY: `&Words` only reads, except through `as_ptr`, whose callers make their own promises.
unsafe impl Sync for Words {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn words_are_zero_and_line_aligned() {
        for len in [0, 1, 7, 8, 9, 1000, 100_000] {
            let words = Words::zeroed(len, "test").unwrap();
            assert_eq!(words.len(), len);
            assert!(words.iter().all(|&w| w == 0));
            assert!(len == 0 || (words.as_ptr() as usize).is_multiple_of(LINE));
        }
        for len in [0, 8, HUGE_FROM / 8 - 1, HUGE_FROM / 8, HUGE_FROM / 8 + 9] {
            let mut words = Words::zeroed_on_huge_pages(len, "test").unwrap();
            assert_eq!(words.len(), len);
            assert!(words.heap_bytes() >= len * 8);
            assert!(words.iter().all(|&w| w == 0));
            assert!(len == 0 || (words.as_ptr() as usize).is_multiple_of(LINE));
            words.fill(u64::MAX);
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_and_not_an_abort() {
        // An unused allocation may be optimised away, and then never fails. The black box prevents
        // that.
        for len in [usize::MAX, usize::MAX / 8, usize::MAX / 16, 1 << 57] {
            for make in [Words::zeroed, Words::zeroed_on_huge_pages] {
                let made = std::hint::black_box(make(len, "test"));
                assert_eq!(made.err().unwrap().kind(), Kind::NoMemory);
            }
        }
    }
}
