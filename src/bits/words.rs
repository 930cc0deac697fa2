//! Kernels on plain words: OR, count, move and find, on as many bits at a time as the machine can.
//!
//! Each hot loop has three versions: AVX-512 (with VPOPCNTDQ and VBMI2), AVX2, and a portable one
//! for every architecture. The first call chooses a table of them. The free functions use that
//! table. [`kernels`] returns a given table, for tests and benchmarks. The kernels have no state
//! and allocate nothing. `Bitmap`, `ConcurrentBitmap`, `Chunks` and the tracker's harvests call
//! them.
//!
//! Memory bounds these loops, so they save memory traffic. A destination line is not read if its
//! source is zero, and not written if no bit in it is new. (A line that is never written stays
//! clean in the cache, and a page that is never written is not even backed.)

use super::{cut, GROUP_WORDS, SPAN_WORDS, WORD_BITS};
use once_cell::sync::Lazy;
use table::Met;
pub(crate) use table::{or_word, BitCounts};
pub use table::{Kernels, Level};

/// A span with at least this many groups with a bit, and as many without, is mixed. At 1 dirty page
/// in 1,000 nearly half of the groups have a bit, and no processor predicts which.
const MIXED: u32 = 4;

static PORTABLE: Kernels = Kernels {
    level: Level::Portable,
    count: portable::count,
    find_not: portable::find_not,
    or: portable::or,
    or_span: portable::or_span,
    or_span_shifted: portable::or_span_shifted,
    or_span_mixed: portable::or_span,
    or_span_shifted_mixed: portable::or_span_shifted,
    or_groups: portable::or_groups,
    count_groups: portable::count_groups,
    drain_groups: portable::drain_groups,
};

static BEST: Lazy<&'static Kernels> = Lazy::new(|| {
    Level::ALL
        .into_iter()
        .rev()
        .find_map(kernels)
        .unwrap_or(&PORTABLE)
});

/// The table of `level`, or `None` if this machine cannot run it.
pub fn kernels(level: Level) -> Option<&'static Kernels> {
    match level {
        Level::Portable => Some(&PORTABLE),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt"))
            .then_some(&x86::AVX2),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vpopcntdq")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("popcnt"))
        .then_some(&x86::AVX512),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => None,
    }
}

/// The widest table that this machine can run.
pub fn best() -> &'static Kernels {
    &BEST
}

impl Kernels {
    /// The table's level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// See [`count`].
    pub fn count(&self, words: &[u64]) -> u64 {
        (self.count)(words)
    }

    /// See [`or_count`].
    pub fn or_count(&self, dst: &mut [u64], src: &[u64]) -> u64 {
        debug_assert_eq!(dst.len(), src.len());
        let n = dst.len().min(src.len());
        (self.or)(&mut dst[..n], &src[..n])
    }

    /// See [`is_zero`].
    pub fn is_zero(&self, words: &[u64]) -> bool {
        (self.find_not)(words, 0).is_none()
    }

    /// See [`find_nonzero`].
    pub fn find_nonzero(&self, words: &[u64], from: usize) -> Option<usize> {
        let rest = words.get(from..)?;
        (self.find_not)(rest, 0).map(|i| from + i)
    }

    /// See [`or_count_at`].
    pub fn or_count_at(&self, dst: &mut [u64], at_bit: usize, src: &[u64], nbits: usize) -> u64 {
        self.or_at(dst, at_bit, src, nbits, |_, _| {}).new
    }

    /// [`Kernels::or_count_at`] that also tells where it set bits. It calls `touched(s, mask)` with
    /// the index of a span of 64 groups of the destination, and a mask of the groups of it that got
    /// a bit. Groups are counted from `dst[0]`.
    pub(crate) fn or_at(
        &self,
        dst: &mut [u64],
        at_bit: usize,
        src: &[u64],
        nbits: usize,
        mut touched: impl FnMut(usize, u64),
    ) -> BitCounts {
        let mut merged = BitCounts::default();
        let bits = cut(at_bit, nbits, dst.len().saturating_mul(WORD_BITS));
        let nbits = bits.len().min(src.len().saturating_mul(WORD_BITS));
        if nbits == 0 {
            return merged;
        }
        let first = bits.start / WORD_BITS;
        let shift = (bits.start % WORD_BITS) as u32;
        let full = nbits / WORD_BITS;
        // Word i of the shifted source: the top bits of its left neighbour are below it.
        let carry = |i: usize| match (shift, i) {
            (0, _) | (_, 0) => 0,
            _ => src[i - 1] >> (64 - shift),
        };
        let mut i = 0;
        // A span is mostly like the one before it.
        let mut mixed = false;
        while i < full {
            let at = first + i;
            let in_span = at % SPAN_WORDS;
            let in_group = at % GROUP_WORDS;
            let mut met = Met::default();
            let n;
            if in_group != 0 {
                // Single words up to the next group, so that the rest goes by whole lines of the
                // destination.
                n = (GROUP_WORDS - in_group).min(full - i);
                for k in i..i + n {
                    let value = src[k] << shift | carry(k);
                    if value != 0 {
                        met.groups = 1;
                        merged.word(&mut dst[first + k], value);
                    }
                }
            } else {
                n = (SPAN_WORDS - in_span).min(full - i);
                let to = &mut dst[at..at + n];
                let from = &src[i..i + n];
                let previous = if i == 0 { 0 } else { src[i - 1] };
                merged.new += match (shift, mixed) {
                    (0, false) => (self.or_span)(to, from, &mut met),
                    (0, true) => (self.or_span_mixed)(to, from, &mut met),
                    (_, false) => (self.or_span_shifted)(to, from, previous, shift, &mut met),
                    (_, true) => (self.or_span_shifted_mixed)(to, from, previous, shift, &mut met),
                };
                merged.again += met.again;
                mixed = (MIXED..=SPAN_WORDS as u32 / GROUP_WORDS as u32 - MIXED)
                    .contains(&met.groups.count_ones());
            }
            if met.groups != 0 {
                touched(at / SPAN_WORDS, met.groups << (in_span / GROUP_WORDS));
            }
            i += n;
        }
        // The rest: the source's last, partial word, and the bits that the shift moves out of it or
        // of the last full word.
        let tail = nbits % WORD_BITS;
        let last = if tail == 0 {
            0
        } else {
            src[full] & low_mask(tail)
        };
        let mut put = |at: usize, value: u64| {
            if value != 0 {
                merged.word(&mut dst[at], value);
                touched(at / SPAN_WORDS, 1 << (at % SPAN_WORDS / GROUP_WORDS));
            }
        };
        put(first + full, last << shift | carry(full));
        if shift != 0 {
            put(first + full + 1, last >> (64 - shift));
        }
        merged
    }

    /// `dst |= src` in the groups of `mask` only. Both are one span (64 groups of 8 words) or the
    /// beginning of one; groups beyond are ignored. Returns how many bits became set.
    pub(crate) fn or_groups(&self, dst: &mut [u64], src: &[u64], mask: u64) -> u64 {
        let n = dst.len().min(src.len());
        (self.or_groups)(&mut dst[..n], &src[..n], mask)
    }

    /// The number of set bits in the groups of `mask`, in a span or the beginning of one.
    pub(crate) fn count_groups(&self, words: &[u64], mask: u64) -> u64 {
        (self.count_groups)(words, mask)
    }

    /// [`Kernels::or_groups`] that zeroes these groups of `src`. Returns how many bits became set
    /// in `dst`, and how many `src` had.
    pub(crate) fn drain_groups(&self, dst: &mut [u64], src: &mut [u64], mask: u64) -> (u64, u64) {
        let n = dst.len().min(src.len());
        (self.drain_groups)(&mut dst[..n], &mut src[..n], mask)
    }
}

/// The number of set bits.
pub fn count(words: &[u64]) -> u64 {
    best().count(words)
}

/// `dst |= src`. Returns how many bits of `dst` became set. The lengths must be equal; otherwise
/// the longer one is ignored beyond the end of the shorter.
pub fn or_count(dst: &mut [u64], src: &[u64]) -> u64 {
    best().or_count(dst, src)
}

/// `dst[at_bit..at_bit + nbits] |= src[0..nbits]`, for any alignment. Returns how many bits of
/// `dst` became set. Bits of `src` from `nbits` on are ignored, and so are bits that would fall
/// beyond the end of either. A misaligned merge makes the same passes over memory as an aligned
/// one.
pub fn or_count_at(dst: &mut [u64], at_bit: usize, src: &[u64], nbits: usize) -> u64 {
    best().or_count_at(dst, at_bit, src, nbits)
}

/// Copies `src` to `dst` and zeroes `src`. The lengths must be equal; otherwise the longer one is
/// ignored beyond the end of the shorter.
pub fn take(dst: &mut [u64], src: &mut [u64]) {
    debug_assert_eq!(dst.len(), src.len());
    // Half a first-level cache at a time, so that the zeros go to lines that are still in it.
    // memcpy and memset are as wide as the machine by themselves.
    const PIECE: usize = 2048;
    for (dst, src) in dst.chunks_mut(PIECE).zip(src.chunks_mut(PIECE)) {
        let n = dst.len().min(src.len());
        dst[..n].copy_from_slice(&src[..n]);
        src[..n].fill(0);
    }
}

/// Whether no bit is set.
pub fn is_zero(words: &[u64]) -> bool {
    best().is_zero(words)
}

/// The index of the first word at or after `from` that is not zero.
pub fn find_nonzero(words: &[u64], from: usize) -> Option<usize> {
    best().find_nonzero(words, from)
}

/// The first set bit in `from_bit..end_bit` (cut at the end of `words`).
pub fn next_set(words: &[u64], from_bit: usize, end_bit: usize) -> Option<usize> {
    next_not(words, from_bit, end_bit, 0)
}

/// The first clear bit in `from_bit..end_bit` (cut at the end of `words`).
pub fn next_clear(words: &[u64], from_bit: usize, end_bit: usize) -> Option<usize> {
    next_not(words, from_bit, end_bit, u64::MAX)
}

/// The first bit that differs from those of `fill`, which is 0 or `u64::MAX`.
#[inline]
fn next_not(words: &[u64], from_bit: usize, end_bit: usize, fill: u64) -> Option<usize> {
    let end_bit = end_bit.min(words.len().saturating_mul(WORD_BITS));
    if from_bit >= end_bit {
        return None;
    }
    let end = end_bit.div_ceil(WORD_BITS);
    let mut at = from_bit / WORD_BITS;
    let mut found = (words[at] ^ fill) & (u64::MAX << (from_bit % WORD_BITS));
    // The searched bit is mostly near. Only a longer search is worth the call through the table.
    let near = (at + GROUP_WORDS).min(end);
    while found == 0 {
        at += 1;
        if at == end {
            return None;
        }
        if at == near {
            at += (best().find_not)(&words[at..end], fill)?;
        }
        found = words[at] ^ fill;
    }
    let bit = at * WORD_BITS + found.trailing_zeros() as usize;
    (bit < end_bit).then_some(bit)
}

/// The number of set bits among the `len` bits from bit `start` on (cut at the end of `words`).
pub fn count_range(words: &[u64], start: usize, len: usize) -> u64 {
    let bits = cut(start, len, words.len().saturating_mul(WORD_BITS));
    let Some(parts) = Parts::of(&bits) else {
        return 0;
    };
    let mut n = u64::from((words[parts.first] & parts.head).count_ones());
    if parts.last > parts.first {
        n += best().count(&words[parts.first + 1..parts.last]);
        n += u64::from((words[parts.last] & parts.tail).count_ones());
    }
    n
}

/// Prefetches the word of this index, if there is one. A hint, which does nothing on architectures
/// without it.
pub fn prefetch(words: &[u64], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(word) = words.get(index) {
        x86::prefetch(std::ptr::from_ref(word).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, index);
}

/// The `len` bits from `start` on, at most 64, in the low bits of a word. Bits past the end are
/// clear.
pub(crate) fn bits_at(words: &[u64], start: usize, len: usize) -> u64 {
    let word = |i: usize| words.get(i).copied().unwrap_or(0);
    let (i, shift) = (start / 64, start % 64);
    let bits = match shift {
        0 => word(i),
        _ => word(i) >> shift | word(i + 1) << (64 - shift),
    };
    match len {
        64.. => bits,
        _ => bits & !(u64::MAX << len),
    }
}

/// Sets the `len` bits from bit `start` on (cut at the end of `words`). Returns how many were
/// clear.
pub fn set_range(words: &mut [u64], start: usize, len: usize) -> u64 {
    let bits = cut(start, len, words.len().saturating_mul(WORD_BITS));
    let Some(parts) = Parts::of(&bits) else {
        return 0;
    };
    let mut new = or_word(&mut words[parts.first], parts.head);
    if parts.last > parts.first {
        let middle = &mut words[parts.first + 1..parts.last];
        for piece in middle.chunks_mut(SPAN_WORDS) {
            // Counted and filled while it is in the cache.
            new += (piece.len() * WORD_BITS) as u64 - best().count(piece);
            piece.fill(u64::MAX);
        }
        new += or_word(&mut words[parts.last], parts.tail);
    }
    new
}

/// Clears the `len` bits from bit `start` on (cut at the end of `words`). Returns how many were
/// set. Words that are zero already are not written.
pub fn clear_range(words: &mut [u64], start: usize, len: usize) -> u64 {
    let bits = cut(start, len, words.len().saturating_mul(WORD_BITS));
    let Some(parts) = Parts::of(&bits) else {
        return 0;
    };
    let mut cleared = and_not_word(&mut words[parts.first], parts.head);
    if parts.last > parts.first {
        let middle = &mut words[parts.first + 1..parts.last];
        for piece in middle.chunks_mut(SPAN_WORDS) {
            let n = best().count(piece);
            if n != 0 {
                piece.fill(0);
            }
            cleared += n;
        }
        cleared += and_not_word(&mut words[parts.last], parts.tail);
    }
    cleared
}

/// A range of bits as words: the first with its mask, the last with its mask if it is another word,
/// and the whole words between.
struct Parts {
    first: usize,
    head: u64,
    last: usize,
    tail: u64,
}

impl Parts {
    fn of(bits: &std::ops::Range<usize>) -> Option<Parts> {
        if bits.is_empty() {
            return None;
        }
        let first = bits.start / WORD_BITS;
        let last = (bits.end - 1) / WORD_BITS;
        let tail = low_mask((bits.end - 1) % WORD_BITS + 1);
        let mut head = u64::MAX << (bits.start % WORD_BITS);
        if first == last {
            head &= tail;
        }
        Some(Parts {
            first,
            head,
            last,
            tail,
        })
    }
}

/// The lowest `n` bits, for `n` from 1 to 64.
pub(crate) fn low_mask(n: usize) -> u64 {
    debug_assert!((1..=64).contains(&n));
    u64::MAX >> (64 - n)
}

#[inline(always)]
fn and_not_word(word: &mut u64, value: u64) -> u64 {
    let gone = *word & value;
    if gone != 0 {
        *word &= !gone;
    }
    u64::from(gone.count_ones())
}

#[path = "words/portable.rs"]
mod portable;
#[path = "words/table.rs"]
mod table;

#[cfg(target_arch = "x86_64")]
#[path = "words/x86.rs"]
mod x86;

#[cfg(test)]
#[path = "words/tests.rs"]
mod tests;
