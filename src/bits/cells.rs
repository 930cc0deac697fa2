//! Words that are atomics while threads share them, and plain memory while one thread
//! is alone with them.
//!
//! Who is alone when is not known here: `ConcurrentBitmap` knows. `tests/loom` puts words
//! in this place that notice when it is wrong.

use super::heap::Words;
use crate::error::Result;
use std::cell::UnsafeCell;
use std::sync::atomic::AtomicU64;

/// See the file's description. A cell, because who is alone may also exchange the memory for
/// other.
pub(super) struct Cells(UnsafeCell<Words>);

impl Cells {
    /// `len` words, all zero; `what` they are for is named when there is no memory.
    pub(super) fn zeroed(len: usize, what: &str) -> Result<Cells> {
        Ok(Cells(UnsafeCell::new(Words::zeroed(len, what)?)))
    }

    /// Bytes taken from the heap.
    pub(super) fn heap_bytes(&mut self) -> usize {
        self.0.get_mut().heap_bytes()
    }

    /// Word `i`, shared.
    ///
    /// # Safety
    /// Nobody is alone with these words.
    #[inline]
    pub(super) unsafe fn at(&self, i: usize) -> &AtomicU64 {
        // SAFETY: by the caller's promise nobody writes the cell.
        let words = unsafe { &*self.0.get() };
        assert!(i < words.len());
        // SAFETY: inside (just checked), aligned, and alive as long as `words`. While
        // they are shared they are reached only in this way.
        unsafe { AtomicU64::from_ptr(words.as_ptr().add(i)) }
    }

    /// Calls `f` with all words as plain memory.
    ///
    /// # Safety
    /// Until it returns nobody else comes here or to `at`, nor has what `at` gave, and all
    /// that others did happened before.
    pub(super) unsafe fn alone<R>(&self, f: impl FnOnce(&mut Words) -> R) -> R {
        // SAFETY: by the caller's promise nobody else reads or writes cell or words.
        f(unsafe { &mut *self.0.get() })
    }
}

// SAFETY: the words themselves are Sync, and whoever calls `alone` answers for the cell.
unsafe impl Sync for Cells {}
