//! Words that end at an inaccessible page: a buffer for a bitmap whose length the kernel knows
//! better than brant.
//!
//! `KVM_GET_DIRTY_LOG` writes the bitmap of the slot as it is now, and takes no length. If a VMM
//! has replaced the slot by a larger one without telling brant yet, the kernel writes past the end
//! of a buffer made for the old slot. With this buffer the kernel meets the guard page, stops, and
//! answers `EFAULT`.

use super::own::Mapping;
use super::{kernel, mem};
use crate::error::{Error, Result};
use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;
/// Buffers of this many bytes lie on huge pages, if the kernel has any: it writes all of a bitmap, and
/// all of it is read.
const HUGE_FROM: usize = 4 << 20;

/// A number of words, zero at first, directly before a page without permissions.
#[derive(Debug)]
pub struct Guarded {
    mapping: Mapping,
    /// Bytes before the guard page: whole pages.
    body: usize,
    words: usize,
}

impl Guarded {
    /// `words` words. `what` names them in the error when there is no memory.
    pub fn new(words: usize, what: impl std::fmt::Display) -> Result<Guarded> {
        let bytes = words.saturating_mul(8);
        let no_memory = || Error::no_memory(&what, bytes as u64);
        let body = bytes.checked_next_multiple_of(PAGE).ok_or_else(no_memory)?;
        let all = body.checked_add(PAGE).ok_or_else(no_memory)?;
        let mapping = Mapping::new(all).ok_or_else(no_memory)?;
        let base = mapping.base();
        if body >= HUGE_FROM {
            mem::prefer_huge_pages(base.as_ptr(), body);
        }
        // SAFETY: the last page of the new mapping.
        let done =
            unsafe { kernel::mprotect(base.as_ptr().add(body).cast(), PAGE, libc::PROT_NONE) };
        if done != 0 {
            return Err(Error::last_os("mprotect of a guard page"));
        }
        Ok(Guarded {
            mapping,
            body,
            words,
        })
    }

    /// The last `words` words, which end at the guard page.
    pub fn tail(&mut self, words: usize) -> &mut [u64] {
        let skip = self.words.saturating_sub(words);
        &mut self[skip..]
    }

    fn first(&self) -> *mut u64 {
        self.mapping
            .base()
            .as_ptr()
            .wrapping_add(self.body - self.words * 8)
            .cast()
    }
}

impl Deref for Guarded {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        // SAFETY: the words lie in the mapping, before the guard page, aligned to 8.
        unsafe { std::slice::from_raw_parts(self.first(), self.words) }
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.first(), self.words) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_words_are_zero_and_all_there_is_before_the_guard_page() {
        for words in [1, 2, 511, 512, 513, 5000] {
            let mut guarded = Guarded::new(words, "test").unwrap();
            assert_eq!((guarded.len(), guarded.iter().max()), (words, Some(&0)));
            guarded.fill(u64::MAX);
            let tail = guarded.tail(1).as_mut_ptr();
            assert!(guarded.tail(words + 1).len() == words);
            // SAFETY: one past the end of the words, not read here.
            let end = unsafe { tail.add(1) };
            // When the kernel has to write from there on, or across it, it answers EFAULT.
            let zero = std::fs::File::open("/dev/zero").unwrap();
            for (from, bytes) in [(end.cast::<u8>(), 8), (tail.cast::<u8>(), 16)] {
                // SAFETY: the words are the test's own; the kernel's write behind them is what is
                // tested.
                let got = unsafe { libc::read(zero.as_raw_fd(), from.cast(), bytes) };
                assert!(got < bytes as isize, "{words} words: {got} bytes");
            }
        }
        assert!(Guarded::new(usize::MAX, "test").is_err());
        assert_eq!(Guarded::new(0, "test").unwrap().len(), 0);
    }
}
