//! Replaces brant's `bits/cells.rs`. Each word is one of loom's atomics. A thread that has the
//! words for itself claims that from loom, which fails the model if any access to a word, or to the
//! words' address, is not ordered before or after.

use super::heap::Words;
use crate::error::Result;
use crate::runtime::sync::AtomicU64;
use std::cell::UnsafeCell;

pub(super) struct Cells {
    words: Vec<UnsafeCell<AtomicU64>>,
    /// Replaces the cell with the words' address.
    place: loom::cell::UnsafeCell<()>,
}

// SAFETY: loom runs one thread at a time, and checks what matters itself.
unsafe impl Sync for Cells {}

impl Cells {
    pub(super) fn zeroed(len: usize, _what: &str) -> Result<Cells> {
        let zeros = (0..len).map(|_| UnsafeCell::new(AtomicU64::new(0)));
        Ok(Cells {
            words: zeros.collect(),
            place: loom::cell::UnsafeCell::new(()),
        })
    }

    pub(super) fn heap_bytes(&mut self) -> usize {
        self.words.len() * 8
    }

    /// # Safety
    /// None needed here: loom says when it is wrong.
    pub(super) unsafe fn at(&self, i: usize) -> &AtomicU64 {
        self.place.with(|_| ());
        // SAFETY: never moves; `&mut` exists only inside `exclusively`.
        unsafe { &*self.words[i].get() }
    }

    /// # Safety
    /// As for `at`.
    pub(super) unsafe fn alone<R>(&self, f: impl FnOnce(&mut Words) -> R) -> R {
        let mut plain = Words::zeroed(self.words.len(), "a copy").unwrap();
        self.place.with_mut(|_| ());
        for (i, word) in plain.iter_mut().enumerate() {
            *word = self.exclusively(i, |word| *word);
        }
        let result = f(&mut plain);
        // Other threads may run here, and must have no access to these words.
        // SAFETY: as in `at`.
        self.words.iter().take(1).for_each(|word| unsafe {
            (*word.get()).meet();
        });
        self.place.with_mut(|_| ());
        for (i, &value) in plain.iter().enumerate() {
            self.exclusively(i, |word| *word = value);
        }
        result
    }

    fn exclusively<R>(&self, i: usize, f: impl FnOnce(&mut u64) -> R) -> R {
        // SAFETY: one of loom's threads runs at a time, and `f` does not switch.
        unsafe { (*self.words[i].get()).with_mut(f) }
    }
}
