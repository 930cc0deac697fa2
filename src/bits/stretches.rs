//! [`Stretches`]: a bit for each page, set by many lanes at once.
//!
//! A stretch (2 MiB) belongs to one lane, and its bits fill one cache line. So a lane sets bits
//! without waiting for another lane's cache line. There is no summary above the words, because all
//! lanes would share it. Queries stay inside one stretch, as records do, so they look at eight
//! words.
//!
//! Bits are accessed with relaxed order. A caller asks about pages of its own lane, or of lanes
//! whose threads have been joined. In both cases earlier accesses are ordered already.

use super::heap::Words;
use super::{cut, group_rounded_words, WORD_BITS};
use crate::error::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A bit for each page, set by many lanes at once: the bits of a stretch of 2 MiB fill one cache
/// line. Any thread may call any method.
pub struct Stretches {
    words: Words,
    len: usize,
}

impl Stretches {
    /// `nbits` clear bits. Memory without a set bit is never touched. Fails with
    /// [`crate::error::Kind::NoMemory`].
    pub fn new(nbits: usize) -> Result<Stretches> {
        Ok(Stretches {
            words: Words::zeroed(group_rounded_words(nbits), "a bit for each page")?,
            len: nbits,
        })
    }

    /// How many bits there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes taken from the heap.
    pub fn heap_bytes(&self) -> usize {
        self.words.heap_bytes()
    }

    /// Sets `n` bits from `start` on. Bits past the end are ignored.
    pub fn set_range(&self, start: usize, n: usize) {
        self.each_word(start, n, |word, mask| {
            // A look costs less than a write of bits that are set already.
            if word.load(Relaxed) & mask != mask {
                word.fetch_or(mask, Relaxed);
            }
        });
    }

    /// Clears `n` bits from `start` on. Bits past the end are ignored.
    pub fn clear_range(&self, start: usize, n: usize) {
        self.each_word(start, n, |word, mask| {
            if word.load(Relaxed) & mask != 0 {
                word.fetch_and(!mask, Relaxed);
            }
        });
    }

    /// Whether bit `bit` is set. `false` past the end.
    pub fn is_set(&self, bit: usize) -> bool {
        bit < self.len && self.word(bit / WORD_BITS).load(Relaxed) >> (bit % WORD_BITS) & 1 != 0
    }

    /// The first run of set bits in `range`, cut at its end.
    pub fn next_run(&self, range: Range<usize>) -> Option<Range<usize>> {
        let end = range.end.min(self.len);
        let start = self.next(range.start, end, 0)?;
        let stop = self.next(start, end, u64::MAX).unwrap_or(end);
        Some(start..stop)
    }

    /// The first bit in `from..end` that differs from those of `flip`.
    fn next(&self, from: usize, end: usize, flip: u64) -> Option<usize> {
        let mut at = from;
        while at < end {
            let found = (self.word(at / WORD_BITS).load(Relaxed) ^ flip) >> (at % WORD_BITS);
            if found != 0 {
                let bit = at + found.trailing_zeros() as usize;
                return (bit < end).then_some(bit);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    fn each_word(&self, start: usize, n: usize, mut f: impl FnMut(&AtomicU64, u64)) {
        let range = cut(start, n, self.len);
        let mut at = range.start;
        while at < range.end {
            let (word, first) = (at / WORD_BITS, at % WORD_BITS);
            let count = (WORD_BITS - first).min(range.end - at);
            f(self.word(word), (u64::MAX >> (WORD_BITS - count)) << first);
            at += count;
        }
    }

    fn word(&self, i: usize) -> &AtomicU64 {
        assert!(i < self.words.len());
        // SAFETY: the index was just checked; the word is aligned, and alive as long as `self`. No
        // slice of these words is ever made: every access is an atomic one.
        unsafe { AtomicU64::from_ptr(self.words.as_ptr().add(i)) }
    }
}

impl std::fmt::Debug for Stretches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stretches")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::GROUP_BITS;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    proptest! {
        #[test]
        fn it_holds_what_a_list_of_bits_would(
            len in 1usize..3 * GROUP_BITS,
            steps in prop::collection::vec((any::<bool>(), 0usize..4 * GROUP_BITS, 0usize..700), 0..12),
            from in 0usize..4 * GROUP_BITS,
            count in 0usize..4 * GROUP_BITS,
        ) {
            let bits = Stretches::new(len).unwrap();
            let mut list = vec![false; len];
            for (set, start, n) in steps {
                if set { bits.set_range(start, n) } else { bits.clear_range(start, n) }
                for bit in list.iter_mut().skip(start).take(n) {
                    *bit = set;
                }
            }
            for (bit, set) in list.iter().enumerate() {
                prop_assert_eq!(bits.is_set(bit), *set);
            }
            prop_assert!(!bits.is_set(len));
            let end = (from + count).min(len);
            let start = (from..end).find(|bit| list[*bit]);
            let stop = start.map(|start| (start..end).find(|bit| !list[*bit]).unwrap_or(end));
            let run = start.zip(stop).map(|(start, stop)| start..stop);
            prop_assert_eq!(bits.next_run(from..from + count), run);
        }
    }

    /// Two threads that share stretches lose no bit of each other. (Lanes never share one.) The
    /// threads begin each round together. With plain loads and stores instead of atomic ones,
    /// hundreds of rounds lose bits where two cores are free.
    #[test]
    fn bits_that_two_threads_set_at_once_are_all_there() {
        const ROUNDS: usize = 5000;
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|_| Stretches::new(GROUP_BITS).unwrap())
            .collect();
        let arrived = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for lane in 0..2 {
                let (rounds, arrived) = (&rounds, &arrived);
                scope.spawn(move || {
                    for (round, bits) in rounds.iter().enumerate() {
                        arrived.fetch_add(1, SeqCst);
                        while arrived.load(SeqCst) < 2 * (round + 1) {
                            std::thread::yield_now();
                        }
                        for bit in (lane..GROUP_BITS).step_by(2) {
                            bits.set_range(bit, 1);
                        }
                    }
                });
            }
        });
        for bits in rounds {
            assert_eq!(bits.next_run(0..usize::MAX), Some(0..GROUP_BITS));
        }
    }

    #[test]
    fn a_terabyte_of_pages_costs_no_memory_before_a_bit_is_set() {
        let bits = Stretches::new(1 << 28).unwrap();
        bits.set_range(1 << 27, 512);
        let first = (bits.words.as_ptr() as usize).next_multiple_of(4096);
        let pages = (bits.words.len() * 8 - 4096) / 4096;
        let mut in_memory = vec![0u8; pages];
        // SAFETY: whole pages inside the words, and one byte for each.
        let done = unsafe { libc::mincore(first as *mut _, pages * 4096, in_memory.as_mut_ptr()) };
        assert_eq!(done, 0);
        let touched = in_memory.iter().filter(|page| **page & 1 != 0).count();
        // One page, or one huge page.
        assert!((1..=512).contains(&touched), "{touched} of {pages}");
    }
}
