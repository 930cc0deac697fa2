//! One bit per chunk of 2^shift pages: the chunks that must be cleared in the kernel's log before
//! their first page is read for sending.
//!
//! This file has only the bits. The tracker knows when a chunk is armed (at a sync), when it is
//! disarmed (by the walk, before the chunk's first page is read), and what a clear is.

use super::heap::Words;
use super::{cut, words, WORD_BITS};
use crate::error::{Error, Kind, Result};
use std::ops::Range;

/// The smallest shift. A chunk then has 64 pages, one word of the kernel's bitmap.
/// KVM_CLEAR_DIRTY_LOG accepts no less.
pub const CHUNK_SHIFT_MIN: u32 = 6;
/// The largest shift. A slot has fewer than 2^31 pages, so one chunk holds all of them.
pub const CHUNK_SHIFT_MAX: u32 = 31;
/// The default: 2^18 pages, which is 1 GiB at 4 KiB a page.
pub const CHUNK_SHIFT_DEFAULT: u32 = 18;

/// Brings `shift` into the allowed range. The flag says whether it was changed, so that the caller
/// can warn.
pub fn clamp_shift(shift: u32) -> (u32, bool) {
    let clamped = shift.clamp(CHUNK_SHIFT_MIN, CHUNK_SHIFT_MAX);
    (clamped, clamped != shift)
}

/// Armed and disarmed chunks of a block of pages.
///
/// ```
/// use brant::bits::Chunks;
///
/// # fn main() -> brant::Result<()> {
/// // Chunks of 2^18 pages, 1 GiB each.
/// let mut chunks = Chunks::new(1 << 20, 18)?;
/// chunks.arm_range(300_000, 10);
/// assert_eq!(chunks.next_armed(0), Some(1));
/// assert_eq!(chunks.pages_of(1), 262_144..524_288);
/// assert!(chunks.disarm(1) && !chunks.disarm(1)); // once
/// # Ok(())
/// # }
/// ```
pub struct Chunks {
    words: Words,
    npages: usize,
    shift: u32,
    armed: usize,
}

impl Chunks {
    /// Chunks of 2^`shift` pages for a block of `npages` pages. No chunk is armed, and the last one
    /// may be short. [`Kind::Invalid`] if `shift` is out of range (see [`clamp_shift`]),
    /// [`Kind::NoMemory`] if there is no memory.
    pub fn new(npages: usize, shift: u32) -> Result<Chunks> {
        if clamp_shift(shift).1 {
            return Err(Error::new(
                Kind::Invalid,
                format!("chunk shift must be {CHUNK_SHIFT_MIN} to {CHUNK_SHIFT_MAX}, not {shift}"),
            ));
        }
        let nchunks = npages.div_ceil(1 << shift);
        Ok(Chunks {
            words: Words::zeroed(nchunks.div_ceil(WORD_BITS), "chunk bits")?,
            npages,
            shift,
            armed: 0,
        })
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.npages.div_ceil(1 << self.shift)
    }

    /// Whether there is no chunk, as for a block without pages.
    pub fn is_empty(&self) -> bool {
        self.npages == 0
    }

    /// log2 of the pages in a chunk.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// The chunk of `page`. A page beyond the block is not refused: its chunk is beyond
    /// [`Chunks::len`], and never armed.
    pub fn chunk_of(&self, page: usize) -> usize {
        page >> self.shift
    }

    /// The pages of `chunk`, cut at the end of the block. Empty for a chunk that does not exist.
    pub fn pages_of(&self, chunk: usize) -> Range<usize> {
        if chunk >= self.len() {
            return self.npages..self.npages;
        }
        cut(chunk << self.shift, 1 << self.shift, self.npages)
    }

    /// Arms every chunk with a page in `start_page..start_page + npages`, cut at the end of the
    /// block. Returns how many of them were not armed before.
    pub fn arm_range(&mut self, start_page: usize, npages: usize) -> usize {
        let pages = cut(start_page, npages, self.npages);
        if pages.is_empty() {
            return 0;
        }
        let first = self.chunk_of(pages.start);
        let last = self.chunk_of(pages.end - 1);
        let new = words::set_range(&mut self.words, first, last - first + 1) as usize;
        self.armed += new;
        new
    }

    /// Arms all chunks. Returns how many were not armed before.
    pub fn arm_all(&mut self) -> usize {
        self.arm_range(0, self.npages)
    }

    /// Disarms `chunk`. Returns whether it was armed: then the caller has to clear it.
    pub fn disarm(&mut self, chunk: usize) -> bool {
        if !self.is_armed(chunk) {
            return false;
        }
        self.words[chunk / WORD_BITS] &= !(1 << (chunk % WORD_BITS));
        self.armed -= 1;
        true
    }

    /// Whether `chunk` is armed. `false` for a chunk that does not exist.
    pub fn is_armed(&self, chunk: usize) -> bool {
        self.words
            .get(chunk / WORD_BITS)
            .is_some_and(|word| word >> (chunk % WORD_BITS) & 1 != 0)
    }

    /// How many chunks are armed. Takes constant time.
    pub fn count_armed(&self) -> usize {
        self.armed
    }

    /// The first armed chunk at or after `from`.
    pub fn next_armed(&self, from: usize) -> Option<usize> {
        words::next_set(&self.words, from, self.len())
    }

    /// Bytes taken from the heap.
    pub fn heap_bytes(&self) -> usize {
        self.words.heap_bytes()
    }
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks")
            .field("npages", &self.npages)
            .field("shift", &self.shift)
            .field("armed", &self.armed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_shift_out_of_range_is_clamped_and_said_so() {
        assert_eq!(clamp_shift(0), (6, true));
        assert_eq!(clamp_shift(5), (6, true));
        assert_eq!(clamp_shift(6), (6, false));
        assert_eq!(clamp_shift(CHUNK_SHIFT_DEFAULT), (18, false));
        assert_eq!(clamp_shift(31), (31, false));
        assert_eq!(clamp_shift(32), (31, true));
        assert_eq!(clamp_shift(u32::MAX), (31, true));
        for shift in [0, 5, 32, 64, u32::MAX] {
            assert_eq!(Chunks::new(1, shift).unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_block_of_no_pages_has_no_chunk() {
        let mut chunks = Chunks::new(0, 6).unwrap();
        assert!(chunks.is_empty());
        assert_eq!(chunks.arm_all(), 0);
        assert!(!chunks.is_armed(0) && !chunks.disarm(0));
        assert!(chunks.pages_of(0).is_empty());
    }

    #[test]
    fn huge_page_numbers_do_not_overflow() {
        let mut chunks = Chunks::new(100, 31).unwrap();
        assert_eq!(chunks.arm_range(1, usize::MAX), 1);
        assert_eq!(chunks.arm_range(usize::MAX, usize::MAX), 0);
        assert!(!chunks.disarm(usize::MAX));
        assert!(chunks.pages_of(usize::MAX).is_empty());
        assert_eq!(chunks.next_armed(usize::MAX), None);
    }

    proptest! {
        #[test]
        fn chunks_follow_a_set_of_armed_chunks(
            npages in 0usize..40_000,
            shift in 6u32..=12,
            ops in prop::collection::vec((0u8..4, 0usize..41_000, 0usize..9_000), 0..40),
        ) {
            let mut chunks = Chunks::new(npages, shift).unwrap();
            let mut armed = vec![false; npages.div_ceil(1 << shift)];
            prop_assert_eq!(chunks.len(), armed.len());
            for (op, a, n) in ops {
                let before = armed.iter().filter(|&&x| x).count();
                match op {
                    0 | 1 => {
                        for page in (a..a + n).filter(|&p| p < npages) {
                            armed[page >> shift] = true;
                        }
                        let now = armed.iter().filter(|&&x| x).count();
                        prop_assert_eq!(chunks.arm_range(a, n), now - before);
                    }
                    2 => {
                        let chunk = a >> shift;
                        let was = armed.get(chunk).copied().unwrap_or(false);
                        prop_assert_eq!(chunks.disarm(chunk), was);
                        if was { armed[chunk] = false; }
                    }
                    _ => {
                        if a % 8 == 0 {
                            prop_assert_eq!(chunks.arm_all(), armed.len() - before);
                            armed.fill(true);
                        }
                    }
                }
                prop_assert_eq!(chunks.count_armed(), armed.iter().filter(|&&x| x).count());
            }
            let mut pages = 0;
            for (chunk, &is) in armed.iter().enumerate() {
                prop_assert_eq!(chunks.is_armed(chunk), is);
                let range = chunks.pages_of(chunk);
                prop_assert_eq!(range.start, pages);
                prop_assert!(!range.is_empty());
                prop_assert_eq!(chunks.chunk_of(range.end - 1), chunk);
                pages = range.end;
                prop_assert_eq!(
                    chunks.next_armed(chunk),
                    (chunk..armed.len()).find(|&c| armed[c])
                );
            }
            prop_assert_eq!(pages, npages);
        }
    }
}
