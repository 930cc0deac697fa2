//! Words that are atomics while threads share them, and plain memory while one thread has them for
//! itself.
//!
//! `ConcurrentBitmap` knows when a thread has them for itself; this file does not. `tests/loom`
//! replaces this file by words that detect a wrong use.

use super::heap::Words;
use crate::error::Result;
use std::cell::UnsafeCell;
use std::sync::atomic::AtomicU64;

/// See the file's description. A cell, because the thread that has the words for itself may also
/// exchange their memory for other memory.
pub(super) struct Cells(UnsafeCell<Words>);

impl Cells {
    /// `len` words, all zero. `what` names them in the error when there is no memory.
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
    /// No thread is inside [`Cells::alone`].
    #[inline]
    pub(super) unsafe fn at(&self, i: usize) -> &AtomicU64 {
        // SAFETY: by the caller's promise no thread writes the cell.
        let words = unsafe { &*self.0.get() };
        assert!(i < words.len());
        // SAFETY: the index was just checked; the word is aligned, and alive as long as `words`.
        // While words are shared, every access is an atomic one.
        unsafe { AtomicU64::from_ptr(words.as_ptr().add(i)) }
    }

    /// Calls `f` with all words as plain memory.
    ///
    /// # Safety
    /// Until this returns, no other thread calls this function or [`Cells::at`], or has a result of
    /// `at`. All accesses of other threads happened before.
    pub(super) unsafe fn alone<R>(&self, f: impl FnOnce(&mut Words) -> R) -> R {
        // SAFETY: by the caller's promise no other thread accesses the cell or the words.
        f(unsafe { &mut *self.0.get() })
    }
}

// SAFETY: the words themselves are Sync, and callers of `alone` promise the rest for the cell.
unsafe impl Sync for Cells {}
