//! Kernels on plain words: or, count, move, find, with as many bits at a time
//! as the machine has.
//!
//! Three versions of each hot loop exist: AVX-512 (with VPOPCNTDQ and VBMI2), AVX2, and a portable one that
//! every architecture compiles. One table of them is chosen at the first call.
//! The free functions use that table; [`kernels`] hands out a certain one, for
//! tests and benchmarks. No state, no allocation. `Bitmap`, `Shared`, `Chunks` and the tracker's
//! harvests call this.
//!
//! The loops are bound by memory, so what they save is memory traffic: a
//! destination line is not read when its source is zero, and not written when
//! nothing in it is new. (A line that is never written stays clean in the cache, and
//! a page that is never written is not even backed.)

use super::{cut, GROUP_WORDS, SPAN_WORDS, WORD_BITS};
use once_cell::sync::Lazy;

/// How wide the kernels of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, for any architecture.
    Portable,
    /// AVX2 and POPCNT.
    Avx2,
    /// AVX-512 F, VPOPCNTDQ and VBMI2.
    Avx512,
}

impl Level {
    /// All of them, narrowest first.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];
}

/// A span with this many groups that have a bit, and as many that have none, is mixed: at 1
/// dirty page in 1,000 nearly half of them have one, and no processor guesses which.
const MIXED: u32 = 4;

/// Destination, source, mask of groups; returns bits newly set, and bits found.
type DrainGroups = fn(&mut [u64], &mut [u64], u64) -> (u64, u64);

/// A table of kernels of one level. There is one only where the machine can
/// run it.
pub struct Kernels {
    level: Level,
    count: fn(&[u64]) -> u64,
    find_not: fn(&[u64], u64) -> Option<usize>,
    or: fn(&mut [u64], &[u64]) -> u64,
    or_span: fn(&mut [u64], &[u64], &mut u64) -> u64,
    or_span_shifted: fn(&mut [u64], &[u64], u64, u32, &mut u64) -> u64,
    /// The same two for spans of which some lines have a bit and some have none.
    or_span_mixed: fn(&mut [u64], &[u64], &mut u64) -> u64,
    or_span_shifted_mixed: fn(&mut [u64], &[u64], u64, u32, &mut u64) -> u64,
    or_groups: fn(&mut [u64], &[u64], u64) -> u64,
    count_groups: fn(&[u64], u64) -> u64,
    drain_groups: DrainGroups,
}

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
    /// Which level this is.
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
        self.or_at(dst, at_bit, src, nbits, |_, _| {})
    }

    /// [`Kernels::or_count_at`] that also says where it put bits:
    /// `touched(s, mask)` is called with the index of a span of 64 groups of
    /// the destination, and with a bit for each group of it that had a
    /// set bit merged into it. Groups are counted from `dst[0]`.
    pub(crate) fn or_at(
        &self,
        dst: &mut [u64],
        at_bit: usize,
        src: &[u64],
        nbits: usize,
        mut touched: impl FnMut(usize, u64),
    ) -> u64 {
        let bits = cut(at_bit, nbits, dst.len().saturating_mul(WORD_BITS));
        let nbits = bits.len().min(src.len().saturating_mul(WORD_BITS));
        if nbits == 0 {
            return 0;
        }
        let first = bits.start / WORD_BITS;
        let shift = (bits.start % WORD_BITS) as u32;
        let full = nbits / WORD_BITS;
        let mut new = 0;
        // Word i of the source, with its left neighbour's top bits below it.
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
            let mut mask = 0;
            let n;
            if in_group != 0 {
                // Up to the next group by single words, so that what follows
                // is whole lines of the destination.
                n = (GROUP_WORDS - in_group).min(full - i);
                for k in i..i + n {
                    let value = src[k] << shift | carry(k);
                    if value != 0 {
                        mask = 1;
                        new += or_word(&mut dst[first + k], value);
                    }
                }
            } else {
                n = (SPAN_WORDS - in_span).min(full - i);
                let to = &mut dst[at..at + n];
                let from = &src[i..i + n];
                let previous = if i == 0 { 0 } else { src[i - 1] };
                new += match (shift, mixed) {
                    (0, false) => (self.or_span)(to, from, &mut mask),
                    (0, true) => (self.or_span_mixed)(to, from, &mut mask),
                    (_, false) => (self.or_span_shifted)(to, from, previous, shift, &mut mask),
                    (_, true) => (self.or_span_shifted_mixed)(to, from, previous, shift, &mut mask),
                };
                mixed = (MIXED..=SPAN_WORDS as u32 / GROUP_WORDS as u32 - MIXED)
                    .contains(&mask.count_ones());
            }
            if mask != 0 {
                touched(at / SPAN_WORDS, mask << (in_span / GROUP_WORDS));
            }
            i += n;
        }
        // What is left: the source's last, partial word, and what the shift
        // pushes out of it or of the last full one.
        let tail = nbits % WORD_BITS;
        let last = if tail == 0 {
            0
        } else {
            src[full] & low_mask(tail)
        };
        let mut put = |at: usize, value: u64| {
            if value != 0 {
                new += or_word(&mut dst[at], value);
                touched(at / SPAN_WORDS, 1 << (at % SPAN_WORDS / GROUP_WORDS));
            }
        };
        put(first + full, last << shift | carry(full));
        if shift != 0 {
            put(first + full + 1, last >> (64 - shift));
        }
        new
    }

    /// `dst |= src` in the groups of `mask` only. Both are one span (64
    /// groups of 8 words) or what is left of one; groups beyond are ignored.
    /// Returns the number of bits newly set.
    pub(crate) fn or_groups(&self, dst: &mut [u64], src: &[u64], mask: u64) -> u64 {
        let n = dst.len().min(src.len());
        (self.or_groups)(&mut dst[..n], &src[..n], mask)
    }

    /// Number of set bits in the groups of `mask`, of a span or what is left of one.
    pub(crate) fn count_groups(&self, words: &[u64], mask: u64) -> u64 {
        (self.count_groups)(words, mask)
    }

    /// [`Kernels::or_groups`], and zeroes these groups of `src`. Returns how
    /// many bits were newly set in `dst`, and how many `src` had.
    pub(crate) fn drain_groups(&self, dst: &mut [u64], src: &mut [u64], mask: u64) -> (u64, u64) {
        let n = dst.len().min(src.len());
        (self.drain_groups)(&mut dst[..n], &mut src[..n], mask)
    }
}

/// Number of set bits.
pub fn count(words: &[u64]) -> u64 {
    best().count(words)
}

/// `dst |= src`; returns how many bits of `dst` became set. The lengths must
/// be equal; if they are not, what is longer is left alone beyond the shorter one.
pub fn or_count(dst: &mut [u64], src: &[u64]) -> u64 {
    best().or_count(dst, src)
}

/// `dst[at_bit..at_bit + nbits] |= src[0..nbits]`, for any alignment; returns
/// how many bits of `dst` became set. Bits of `src` from `nbits` on are
/// ignored; what would fall beyond the end of either is left out. A misaligned
/// merge makes the same passes over memory as an aligned one.
pub fn or_count_at(dst: &mut [u64], at_bit: usize, src: &[u64], nbits: usize) -> u64 {
    best().or_count_at(dst, at_bit, src, nbits)
}

/// Copies `src` to `dst` and zeroes `src`. The lengths must be equal; if they
/// are not, what is longer is left alone beyond the shorter one.
pub fn take(dst: &mut [u64], src: &mut [u64]) {
    debug_assert_eq!(dst.len(), src.len());
    // Half a first-level cache at a time, so that the zeros go to lines that are still
    // there. memcpy and memset are as wide as the machine without our help.
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
    // The bit wanted is mostly near: only a longer search is worth the call
    // through the table.
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

/// Number of set bits among the `len` bits from bit `start` on (cut at the end of `words`).
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

/// Says that the word of this index will be needed soon, if there is one. A hint, and nothing
/// where the architecture has none.
pub fn prefetch(words: &[u64], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(word) = words.get(index) {
        x86::prefetch(std::ptr::from_ref(word).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, index);
}

/// The `len` bits from `start` on, 64 at most, in the low bits of a word; clear past the end.
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

/// Sets the `len` bits from bit `start` on (cut at the end of `words`);
/// returns how many were clear.
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

/// Clears the `len` bits from bit `start` on (cut at the end of `words`);
/// returns how many were set. Words that are zero already are not written.
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

/// A range of bits as words: the first with its mask, the last with its mask
/// (where it is another), whole words between.
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
pub(crate) fn or_word(word: &mut u64, value: u64) -> u64 {
    let new = value & !*word;
    if new != 0 {
        *word |= new;
    }
    u64::from(new.count_ones())
}

#[inline(always)]
fn and_not_word(word: &mut u64, value: u64) -> u64 {
    let gone = *word & value;
    if gone != 0 {
        *word &= !gone;
    }
    u64::from(gone.count_ones())
}

/// The loops in plain Rust: the fallback, what the wide ones use for what is
/// left at an end, and the model of what those do.
mod portable {
    use super::{or_word, GROUP_WORDS};

    #[inline(always)]
    pub fn count(words: &[u64]) -> u64 {
        words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    #[inline(always)]
    pub fn find_not(words: &[u64], fill: u64) -> Option<usize> {
        // A line at a time without a branch in it, which the compiler turns into
        // vectors; then the word.
        let mut blocks = words.chunks_exact(GROUP_WORDS);
        let mut at = 0;
        for block in blocks.by_ref() {
            if block.iter().fold(0, |all, w| all | (w ^ fill)) != 0 {
                return block.iter().position(|&w| w != fill).map(|i| at + i);
            }
            at += GROUP_WORDS;
        }
        let rest = blocks.remainder();
        rest.iter().position(|&w| w != fill).map(|i| at + i)
    }

    /// A group: returns whether the source had a bit, and adds the bits newly
    /// set. No branch inside the loops, so that the compiler can use what
    /// vectors the architecture has.
    #[inline(always)]
    fn or_group(dst: &mut [u64; GROUP_WORDS], src: &[u64; GROUP_WORDS], sum: &mut u64) -> bool {
        if src.iter().fold(0, |all, w| all | w) == 0 {
            return false;
        }
        let mut new = *src;
        for (n, d) in new.iter_mut().zip(dst.iter()) {
            *n &= !d;
        }
        if new.iter().fold(0, |all, w| all | w) != 0 {
            for (d, n) in dst.iter_mut().zip(&new) {
                *d |= n;
            }
            *sum += count(&new);
        }
        true
    }

    /// `dst |= src`, the same length. Returns the bits newly set.
    #[inline(always)]
    pub fn or(dst: &mut [u64], src: &[u64]) -> u64 {
        let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
        let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
        let mut new = 0;
        for (d, s) in to.iter_mut().zip(from) {
            or_group(d, s, &mut new);
        }
        for (d, &s) in to_rest.iter_mut().zip(from_rest) {
            new += or_word(d, s);
        }
        new
    }

    /// [`or`] on at most one span that begins at a group. `touched` gets a bit for
    /// each group whose source was not zero.
    #[inline(always)]
    pub fn or_span(dst: &mut [u64], src: &[u64], touched: &mut u64) -> u64 {
        or_span_shifted_by(dst, src, touched, |s| s)
    }

    /// [`or_span`] of the source shifted up by `shift` (1 to 63), where
    /// `previous` is the word before `src[0]`.
    #[inline(always)]
    pub fn or_span_shifted(
        dst: &mut [u64],
        src: &[u64],
        mut previous: u64,
        shift: u32,
        touched: &mut u64,
    ) -> u64 {
        or_span_shifted_by(dst, src, touched, |s| {
            let value = s << shift | previous >> (64 - shift);
            previous = s;
            value
        })
    }

    #[inline(always)]
    fn or_span_shifted_by(
        dst: &mut [u64],
        src: &[u64],
        touched: &mut u64,
        mut value: impl FnMut(u64) -> u64,
    ) -> u64 {
        let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
        let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
        let mut new = 0;
        let mut mask = 0;
        for (g, (d, s)) in to.iter_mut().zip(from).enumerate() {
            let shifted = s.map(&mut value);
            mask |= u64::from(or_group(d, &shifted, &mut new)) << g;
        }
        for (d, &s) in to_rest.iter_mut().zip(from_rest) {
            let v = value(s);
            mask |= u64::from(v != 0) << to.len();
            new += or_word(d, v);
        }
        *touched |= mask;
        new
    }

    #[inline(always)]
    pub fn or_groups(dst: &mut [u64], src: &[u64], mut mask: u64) -> u64 {
        let mut new = 0;
        while mask != 0 {
            let at = mask.trailing_zeros() as usize * GROUP_WORDS;
            mask &= mask - 1;
            if at >= dst.len() {
                break;
            }
            let end = (at + GROUP_WORDS).min(dst.len());
            new += or(&mut dst[at..end], &src[at..end]);
        }
        new
    }

    #[inline(always)]
    pub fn count_groups(words: &[u64], mask: u64) -> u64 {
        let groups = words.chunks(GROUP_WORDS).enumerate();
        groups
            .filter(|(g, _)| mask >> g & 1 != 0)
            .map(|(_, group)| count(group))
            .sum()
    }

    #[inline(always)]
    pub fn drain_groups(dst: &mut [u64], src: &mut [u64], mut mask: u64) -> (u64, u64) {
        let (mut new, mut all) = (0, 0);
        while mask != 0 {
            let at = mask.trailing_zeros() as usize * GROUP_WORDS;
            mask &= mask - 1;
            if at >= dst.len() {
                break;
            }
            let end = (at + GROUP_WORDS).min(dst.len());
            let src = &mut src[at..end];
            new += or(&mut dst[at..end], src);
            all += count(src);
            src.fill(0);
        }
        (new, all)
    }
}

/// The same loops for x86-64's vectors.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{portable, Kernels, Level, GROUP_WORDS};
    use std::arch::x86_64::*;

    /// A safe function for the table, round one with target features.
    macro_rules! door {
        ($inner:path, ($($arg:ident: $type:ty),*) -> $out:ty) => {{
            fn door($($arg: $type),*) -> $out {
                // SAFETY: the table this goes into is handed out by `kernels`
                // alone, after it has seen that the machine has the features.
                unsafe { $inner($($arg),*) }
            }
            door
        }};
    }

    macro_rules! table {
        ($level:expr, $m:ident) => {
            Kernels {
                level: $level,
                count: door!($m::count, (w: &[u64]) -> u64),
                find_not: door!($m::find_not, (w: &[u64], fill: u64) -> Option<usize>),
                or: door!($m::or, (d: &mut [u64], s: &[u64]) -> u64),
                or_span: door!($m::or_span, (d: &mut [u64], s: &[u64], t: &mut u64) -> u64),
                or_span_shifted: door!($m::or_span_shifted,
                    (d: &mut [u64], s: &[u64], p: u64, n: u32, t: &mut u64) -> u64),
                or_span_mixed: door!($m::or_span_mixed,
                    (d: &mut [u64], s: &[u64], t: &mut u64) -> u64),
                or_span_shifted_mixed: door!($m::or_span_shifted_mixed,
                    (d: &mut [u64], s: &[u64], p: u64, n: u32, t: &mut u64) -> u64),
                or_groups: door!($m::or_groups, (d: &mut [u64], s: &[u64], m: u64) -> u64),
                count_groups: door!($m::count_groups, (w: &[u64], m: u64) -> u64),
                drain_groups: door!($m::drain_groups,
                    (d: &mut [u64], s: &mut [u64], m: u64) -> (u64, u64)),
            }
        };
    }

    pub(super) static AVX2: Kernels = table!(Level::Avx2, avx2);
    pub(super) static AVX512: Kernels = table!(Level::Avx512, avx512);

    /// The numbers of a mask's set bits.
    struct Each(u64);

    impl Iterator for Each {
        type Item = usize;
        #[inline(always)]
        fn next(&mut self) -> Option<usize> {
            let bit = (self.0 != 0).then(|| self.0.trailing_zeros() as usize)?;
            self.0 &= self.0 - 1;
            Some(bit)
        }
    }

    /// So many lines ahead of what is read in order: a page of memory.
    const AHEAD: usize = 64;

    /// Says that a line will be needed. Where there is none it does nothing.
    #[inline(always)]
    pub(super) fn prefetch(line: *const [u64; GROUP_WORDS]) {
        // SAFETY: a hint; it cannot fault and changes nothing that a program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    /// The loops over groups, which are the same at every width. `$feature` is what they
    /// need, and these must be in scope: `Line` (8 words in registers),
    /// `load`, `store`, `union`, `and_not`, `any`, `Sum` with `add` and `total`,
    /// and `shifted`.
    macro_rules! loops {
        ($feature:literal) => {
            #[target_feature(enable = $feature)]
            pub(super) fn count(words: &[u64]) -> u64 {
                let (lines, rest) = words.as_chunks::<GROUP_WORDS>();
                let mut sum = Sum::zero();
                for line in lines {
                    // The hardware's own looking ahead ends with each page of memory.
                    prefetch(std::ptr::from_ref(line).wrapping_add(AHEAD));
                    sum.add(load(line));
                }
                sum.total() + portable::count(rest)
            }

            #[target_feature(enable = $feature)]
            pub(super) fn find_not(words: &[u64], fill: u64) -> Option<usize> {
                portable::find_not(words, fill)
            }

            /// One line: returns whether the source had a bit.
            #[target_feature(enable = $feature)]
            #[inline]
            fn or_line(dst: &mut [u64; GROUP_WORDS], value: Line, sum: &mut Sum) -> bool {
                if !any(value) {
                    return false;
                }
                let old = load(dst);
                let new = and_not(old, value);
                if any(new) {
                    store(dst, union(old, new));
                    sum.add(new);
                }
                true
            }

            #[target_feature(enable = $feature)]
            pub(super) fn or(dst: &mut [u64], src: &[u64]) -> u64 {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
                let mut sum = Sum::zero();
                for (d, s) in to.iter_mut().zip(from) {
                    or_line(d, load(s), &mut sum);
                }
                sum.total() + portable::or(to_rest, from_rest)
            }

            #[target_feature(enable = $feature)]
            pub(super) fn or_span(dst: &mut [u64], src: &[u64], touched: &mut u64) -> u64 {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
                let mut sum = Sum::zero();
                let mut mask = 0;
                for (g, (d, s)) in to.iter_mut().zip(from).enumerate() {
                    mask |= u64::from(or_line(d, load(s), &mut sum)) << g;
                }
                let mut new = sum.total();
                if !to_rest.is_empty() {
                    let mut last = 0;
                    new += portable::or_span(to_rest, from_rest, &mut last);
                    mask |= last << to.len();
                }
                *touched |= mask;
                new
            }

            #[target_feature(enable = $feature)]
            pub(super) fn or_span_shifted(
                dst: &mut [u64],
                src: &[u64],
                previous: u64,
                shift: u32,
                touched: &mut u64,
            ) -> u64 {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
                let mut sum = Sum::zero();
                let mut mask = 0;
                let mut before = load(&[previous; GROUP_WORDS]);
                let by = Shift::new(shift);
                for (g, (d, s)) in to.iter_mut().zip(from).enumerate() {
                    let line = load(s);
                    let value = shifted(before, line, by);
                    before = line;
                    mask |= u64::from(or_line(d, value, &mut sum)) << g;
                }
                let mut new = sum.total();
                if !to_rest.is_empty() {
                    let mut last = 0;
                    let previous = from.last().map_or(previous, |line| line[GROUP_WORDS - 1]);
                    new +=
                        portable::or_span_shifted(to_rest, from_rest, previous, shift, &mut last);
                    mask |= last << to.len();
                }
                *touched |= mask;
                new
            }

            /// Which lines of a span have a bit, without a branch for each.
            #[target_feature(enable = $feature)]
            #[inline]
            fn lines_with_bits(lines: &[[u64; GROUP_WORDS]]) -> u64 {
                let mut mask = 0;
                for (g, line) in lines.iter().enumerate() {
                    prefetch(std::ptr::from_ref(line).wrapping_add(AHEAD));
                    mask |= u64::from(any(load(line))) << g;
                }
                mask
            }

            #[target_feature(enable = $feature)]
            pub(super) fn or_span_mixed(dst: &mut [u64], src: &[u64], touched: &mut u64) -> u64 {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, _) = src.as_chunks::<GROUP_WORDS>();
                if !to_rest.is_empty() || to.len() != from.len() {
                    return or_span(dst, src, touched);
                }
                let mut sum = Sum::zero();
                let mask = lines_with_bits(from);
                for g in Each(mask) {
                    prefetch(&to[g]);
                }
                for g in Each(mask) {
                    or_line(&mut to[g], load(&from[g]), &mut sum);
                }
                *touched |= mask;
                sum.total()
            }

            #[target_feature(enable = $feature)]
            pub(super) fn or_span_shifted_mixed(
                dst: &mut [u64],
                src: &[u64],
                previous: u64,
                shift: u32,
                touched: &mut u64,
            ) -> u64 {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, _) = src.as_chunks::<GROUP_WORDS>();
                if !to_rest.is_empty() || to.len() != from.len() {
                    return or_span_shifted(dst, src, previous, shift, touched);
                }
                let mut sum = Sum::zero();
                let mut mask = 0;
                let by = Shift::new(shift);
                // The last word of a line reaches into the next one.
                let lines = lines_with_bits(from);
                let reached = lines | lines << 1 | 1;
                let len = to.len();
                for g in Each(reached).take_while(|g| *g < len) {
                    prefetch(&to[g]);
                }
                for g in Each(reached).take_while(|g| *g < len) {
                    let before = match g {
                        0 => load(&[previous; GROUP_WORDS]),
                        g => load(&from[g - 1]),
                    };
                    let value = shifted(before, load(&from[g]), by);
                    mask |= u64::from(or_line(&mut to[g], value, &mut sum)) << g;
                }
                *touched |= mask;
                sum.total()
            }

            #[target_feature(enable = $feature)]
            pub(super) fn or_groups(dst: &mut [u64], src: &[u64], mut mask: u64) -> u64 {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
                let mut sum = Sum::zero();
                while mask != 0 {
                    let g = mask.trailing_zeros() as usize;
                    if g >= to.len() || g >= from.len() {
                        break;
                    }
                    mask &= mask - 1;
                    or_line(&mut to[g], load(&from[g]), &mut sum);
                }
                let mut new = sum.total();
                if mask != 0 && mask.trailing_zeros() as usize == to.len() {
                    new += portable::or(to_rest, from_rest);
                }
                new
            }

            #[target_feature(enable = $feature)]
            pub(super) fn count_groups(words: &[u64], mut mask: u64) -> u64 {
                let (lines, rest) = words.as_chunks::<GROUP_WORDS>();
                if mask == u64::MAX {
                    return count(words);
                }
                for line in Each(mask).filter_map(|g| lines.get(g)) {
                    prefetch(line);
                }
                let mut sum = Sum::zero();
                while mask != 0 {
                    let g = mask.trailing_zeros() as usize;
                    let Some(line) = lines.get(g) else {
                        break;
                    };
                    mask &= mask - 1;
                    sum.add(load(line));
                }
                let mut all = sum.total();
                if mask != 0 && mask.trailing_zeros() as usize == lines.len() {
                    all += portable::count(rest);
                }
                all
            }

            #[target_feature(enable = $feature)]
            pub(super) fn drain_groups(
                dst: &mut [u64],
                src: &mut [u64],
                mut mask: u64,
            ) -> (u64, u64) {
                let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
                let (from, from_rest) = src.as_chunks_mut::<GROUP_WORDS>();
                // All at once: where few groups are marked the hardware does not see which
                // line comes next, and one miss after the other would be waited for.
                for g in Each(mask) {
                    if let (Some(to), Some(from)) = (to.get(g), from.get(g)) {
                        prefetch(from);
                        prefetch(to);
                    }
                }
                let mut sum = Sum::zero();
                let mut all = Sum::zero();
                while mask != 0 {
                    let g = mask.trailing_zeros() as usize;
                    if g >= to.len() || g >= from.len() {
                        break;
                    }
                    mask &= mask - 1;
                    let line = load(&from[g]);
                    if or_line(&mut to[g], line, &mut sum) {
                        all.add(line);
                        from[g] = [0; GROUP_WORDS];
                    }
                }
                let (mut new, mut all) = (sum.total(), all.total());
                if mask != 0 && mask.trailing_zeros() as usize == to.len() {
                    let rest = portable::drain_groups(to_rest, from_rest, 1);
                    new += rest.0;
                    all += rest.1;
                }
                (new, all)
            }
        };
    }

    mod avx512 {
        use super::*;

        type Line = __m512i;

        #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
        #[inline]
        fn load(from: &[u64; GROUP_WORDS]) -> Line {
            // SAFETY: 64 readable bytes; the load asks for no alignment.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }

        #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
        #[inline]
        fn store(to: &mut [u64; GROUP_WORDS], line: Line) {
            // SAFETY: 64 writable bytes; the store asks for no alignment.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), line) }
        }

        #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
        #[inline]
        fn union(a: Line, b: Line) -> Line {
            _mm512_or_si512(a, b)
        }

        /// `!a & b`
        #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
        #[inline]
        fn and_not(a: Line, b: Line) -> Line {
            _mm512_andnot_si512(a, b)
        }

        #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
        #[inline]
        fn any(line: Line) -> bool {
            _mm512_test_epi64_mask(line, line) != 0
        }

        struct Sum(__m512i);

        impl Sum {
            #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
            #[inline]
            fn zero() -> Sum {
                Sum(_mm512_setzero_si512())
            }
            #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
            #[inline]
            fn add(&mut self, line: Line) {
                self.0 = _mm512_add_epi64(self.0, _mm512_popcnt_epi64(line));
            }
            #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
            #[inline]
            fn total(&self) -> u64 {
                _mm512_reduce_add_epi64(self.0) as u64
            }
        }

        #[derive(Clone, Copy)]
        struct Shift(__m512i);

        impl Shift {
            #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
            #[inline]
            fn new(up: u32) -> Shift {
                Shift(_mm512_set1_epi64(i64::from(up)))
            }
        }

        /// `line` moved up by `by` bits as one long number, filled from the top of
        /// `before`, the eight words below it.
        #[target_feature(enable = "avx512f,avx512vpopcntdq,avx512vbmi2,popcnt")]
        #[inline]
        fn shifted(before: Line, line: Line, by: Shift) -> Line {
            // Word 7 of `before`, then words 0 to 6 of `line`.
            let below = _mm512_alignr_epi64::<7>(line, before);
            _mm512_shldv_epi64(line, below, by.0)
        }

        loops!("avx512f,avx512vpopcntdq,avx512vbmi2,popcnt");
    }

    mod avx2 {
        use super::*;

        type Line = (__m256i, __m256i);

        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn load(from: &[u64; GROUP_WORDS]) -> Line {
            let from: *const __m256i = from.as_ptr().cast();
            // SAFETY: 64 readable bytes; the loads ask for no alignment.
            unsafe { (_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))) }
        }

        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn store(to: &mut [u64; GROUP_WORDS], line: Line) {
            let to: *mut __m256i = to.as_mut_ptr().cast();
            // SAFETY: 64 writable bytes; the stores ask for no alignment.
            unsafe {
                _mm256_storeu_si256(to, line.0);
                _mm256_storeu_si256(to.add(1), line.1);
            }
        }

        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn union(a: Line, b: Line) -> Line {
            (_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1))
        }

        /// `!a & b`
        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn and_not(a: Line, b: Line) -> Line {
            (_mm256_andnot_si256(a.0, b.0), _mm256_andnot_si256(a.1, b.1))
        }

        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn any(line: Line) -> bool {
            let both = _mm256_or_si256(line.0, line.1);
            _mm256_testz_si256(both, both) == 0
        }

        struct Sum(__m256i);

        impl Sum {
            #[target_feature(enable = "avx2,popcnt")]
            #[inline]
            fn zero() -> Sum {
                Sum(_mm256_setzero_si256())
            }
            #[target_feature(enable = "avx2,popcnt")]
            #[inline]
            fn add(&mut self, line: Line) {
                // Bits per byte of both halves, at most 16, then summed into four
                // words.
                let bytes = _mm256_add_epi8(bits_per_byte(line.0), bits_per_byte(line.1));
                let four = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
                self.0 = _mm256_add_epi64(self.0, four);
            }
            #[target_feature(enable = "avx2,popcnt")]
            #[inline]
            fn total(&self) -> u64 {
                let mut out = [0u64; 4];
                // SAFETY: 32 writable bytes; the store asks for no alignment.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), self.0) };
                out.iter().sum()
            }
        }

        /// AVX2 has no count of bits: the bits of each half byte by table.
        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn bits_per_byte(v: __m256i) -> __m256i {
            let table = _mm256_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, //
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            );
            let half = _mm256_set1_epi8(0x0f);
            let low = _mm256_and_si256(v, half);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(v), half);
            _mm256_add_epi8(
                _mm256_shuffle_epi8(table, low),
                _mm256_shuffle_epi8(table, high),
            )
        }

        #[derive(Clone, Copy)]
        struct Shift(__m128i, __m128i);

        impl Shift {
            #[target_feature(enable = "avx2,popcnt")]
            #[inline]
            fn new(up: u32) -> Shift {
                Shift(
                    _mm_cvtsi32_si128(up as i32),
                    _mm_cvtsi32_si128(64 - up as i32),
                )
            }
        }

        /// `line` moved up by `by` bits as one long number, filled from the top of
        /// `before`, the eight words below it.
        #[target_feature(enable = "avx2,popcnt")]
        #[inline]
        fn shifted(before: Line, line: Line, by: Shift) -> Line {
            // Each register one word up, its lowest word from the register below.
            let top = _mm256_permute4x64_epi64::<0b10_01_00_11>(before.1);
            let a = _mm256_permute4x64_epi64::<0b10_01_00_11>(line.0);
            let b = _mm256_permute4x64_epi64::<0b10_01_00_11>(line.1);
            let below = (
                _mm256_blend_epi32::<0b11>(a, top),
                _mm256_blend_epi32::<0b11>(b, a),
            );
            (
                _mm256_or_si256(
                    _mm256_sll_epi64(line.0, by.0),
                    _mm256_srl_epi64(below.0, by.1),
                ),
                _mm256_or_si256(
                    _mm256_sll_epi64(line.1, by.0),
                    _mm256_srl_epi64(below.1, by.1),
                ),
            )
        }

        loops!("avx2,popcnt");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Bits = Vec<bool>;

    fn bits_of(words: &[u64]) -> Bits {
        (0..words.len() * 64)
            .map(|i| words[i / 64] >> (i % 64) & 1 != 0)
            .collect()
    }

    fn ones(bits: &[bool]) -> u64 {
        bits.iter().filter(|&&b| b).count() as u64
    }

    fn levels() -> impl Iterator<Item = &'static Kernels> {
        Level::ALL.into_iter().filter_map(kernels)
    }

    /// Words as they come: mostly zero in one place, full or mixed in another.
    fn words(max: usize) -> impl Strategy<Value = Vec<u64>> {
        let word = prop_oneof![
            4 => Just(0u64),
            2 => Just(u64::MAX),
            2 => any::<u64>(),
            1 => (0u32..64).prop_map(|i| 1 << i),
            1 => Just(1u64 << 63 | 1),
        ];
        prop::collection::vec((word, 1usize..20), 0..max / 5).prop_map(move |parts| {
            let mut out: Vec<u64> = Vec::new();
            for (w, n) in parts {
                out.extend(std::iter::repeat_n(w, n));
            }
            out.truncate(max);
            out
        })
    }

    #[test]
    fn every_level_this_machine_has_is_tried_and_the_best_is_the_widest() {
        let all: Vec<_> = levels().map(Kernels::level).collect();
        assert_eq!(all.last(), Some(&best().level()));
        assert!(all.contains(&Level::Portable));
    }

    #[test]
    fn nothing_is_a_fine_argument() {
        for k in levels() {
            assert_eq!(k.count(&[]), 0);
            assert_eq!(k.or_count(&mut [], &[]), 0);
            assert!(k.is_zero(&[]));
            assert_eq!(k.find_nonzero(&[], 0), None);
            assert_eq!(k.find_nonzero(&[1], 2), None);
            assert_eq!(k.or_count_at(&mut [], 0, &[], 0), 0);
            assert_eq!(k.or_count_at(&mut [0], usize::MAX, &[1], usize::MAX), 0);
            assert_eq!(k.or_count_at(&mut [0], 63, &[3], usize::MAX), 1);
        }
        assert_eq!(next_set(&[], 0, 10), None);
        assert_eq!(next_clear(&[u64::MAX], 0, usize::MAX), None);
        assert_eq!(set_range(&mut [0], 60, usize::MAX), 4);
        assert_eq!(clear_range(&mut [u64::MAX], usize::MAX, usize::MAX), 0);
        assert_eq!(count_range(&[u64::MAX], 60, usize::MAX), 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn count_and_find_agree_with_the_model_at_every_level(
            words in words(300), from in 0usize..310, skip in 0usize..9,
        ) {
            let words = &words[skip.min(words.len())..];
            for k in levels() {
                prop_assert_eq!(k.count(words), ones(&bits_of(words)), "{:?}", k.level());
                prop_assert_eq!(k.is_zero(words), words.iter().all(|&w| w == 0));
                prop_assert_eq!(
                    k.find_nonzero(words, from),
                    (from..words.len()).find(|&i| words[i] != 0)
                );
                prop_assert_eq!(
                    (k.find_not)(words, u64::MAX),
                    words.iter().position(|&w| w != u64::MAX)
                );
            }
        }

        #[test]
        fn or_count_agrees_with_the_model_at_every_level(
            dst in words(300), src in words(300), skip in 0usize..9,
        ) {
            let n = dst.len().min(src.len());
            let skip = skip.min(n);
            let (dst, src) = (&dst[skip..n], &src[skip..n]);
            let model: Vec<u64> = dst.iter().zip(src).map(|(a, b)| a | b).collect();
            let new = ones(&bits_of(&model)) - ones(&bits_of(dst));
            for k in levels() {
                let mut out = dst.to_vec();
                prop_assert_eq!(k.or_count(&mut out, src), new, "{:?}", k.level());
                prop_assert_eq!(&out, &model);
            }
        }

        #[test]
        fn or_count_at_agrees_with_the_model_at_every_level_and_alignment(
            dst in words(1200), src in words(1200), at in 0usize..40_000,
            near in 0usize..1200, nbits in 0usize..80_000,
        ) {
            // Half of the time near the start, where much fits.
            let at = if nbits % 2 == 0 { at } else { near };
            let mut model = bits_of(&dst);
            let from = bits_of(&src);
            let mut new = 0;
            let mut groups = vec![false; dst.len().div_ceil(8)];
            for (i, _) in from.iter().enumerate().take(nbits).filter(|&(_, &b)| b) {
                if let Some(bit) = model.get_mut(at + i) {
                    new += u64::from(!*bit);
                    *bit = true;
                    groups[(at + i) / 512] = true;
                }
            }
            for k in levels() {
                let mut out = dst.clone();
                let mut seen = vec![false; groups.len()];
                let got = k.or_at(&mut out, at, &src, nbits, |span, mask| {
                    for g in (0..64).filter(|g| mask >> g & 1 != 0) {
                        seen[span * 64 + g] = true;
                    }
                });
                prop_assert_eq!(got, new, "{:?}", k.level());
                prop_assert_eq!(&bits_of(&out), &model);
                prop_assert_eq!(&seen, &groups);
                let mut again = dst.clone();
                prop_assert_eq!(k.or_count_at(&mut again, at, &src, nbits), new);
                prop_assert_eq!(&again, &out);
            }
        }

        #[test]
        fn the_group_kernels_touch_only_the_groups_of_the_mask(
            dst in words(512), src in words(512), mask in any::<u64>(),
        ) {
            let n = dst.len().min(src.len());
            let chosen = |i: usize| mask >> (i / 8) & 1 != 0;
            let (mut or, mut left, mut new, mut all) = (dst.clone(), src.clone(), 0, 0);
            for i in (0..n).filter(|&i| chosen(i)) {
                new += u64::from((src[i] & !dst[i]).count_ones());
                all += u64::from(src[i].count_ones());
                or[i] |= src[i];
                left[i] = 0;
            }
            for k in levels() {
                let mut out = dst.clone();
                prop_assert_eq!(k.or_groups(&mut out, &src, mask), new, "{:?}", k.level());
                prop_assert_eq!(&out, &or);
                let (mut out, mut from) = (dst.clone(), src.clone());
                prop_assert_eq!(k.drain_groups(&mut out, &mut from, mask), (new, all));
                prop_assert_eq!(&out, &or);
                prop_assert_eq!(&from, &left);
                prop_assert_eq!(k.count_groups(&src[..n], mask), all);
            }
        }

        #[test]
        fn take_moves_everything(src in words(5000)) {
            let mut from = src.clone();
            let mut to = vec![0xabcd; src.len()];
            take(&mut to, &mut from);
            prop_assert_eq!(&to, &src);
            prop_assert!(is_zero(&from));
        }

        #[test]
        fn ranges_and_searches_agree_with_the_model(
            words in words(200), a in 0usize..13_000, len in 0usize..13_000, short in 0usize..130,
        ) {
            for len in [len, short] {
                let bits = bits_of(&words);
                let range = a.min(bits.len())..(a + len).min(bits.len());
                let inside = &bits[range.clone()];
                prop_assert_eq!(count_range(&words, a, len), ones(inside));
                let find = |want: bool| range.clone().find(|&i| bits[i] == want);
                prop_assert_eq!(next_set(&words, a, a + len), find(true));
                prop_assert_eq!(next_clear(&words, a, a + len), find(false));

                let mut set = words.clone();
                prop_assert_eq!(set_range(&mut set, a, len), inside.len() as u64 - ones(inside));
                let mut clear = words.clone();
                prop_assert_eq!(clear_range(&mut clear, a, len), ones(inside));
                let (set, clear) = (bits_of(&set), bits_of(&clear));
                for i in 0..bits.len() {
                    prop_assert_eq!(set[i], bits[i] || range.contains(&i));
                    prop_assert_eq!(clear[i], bits[i] && !range.contains(&i));
                }
            }
        }
    }

    #[test]
    fn spans_of_which_half_the_lines_have_a_bit_are_merged_alike_at_every_width() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // Six spans and a bit; after the first the others are known to be mixed.
        let mut some = |share: u64| -> Vec<u64> {
            let mut words = vec![0; 6 * SPAN_WORDS + 13];
            for line in words.chunks_mut(GROUP_WORDS) {
                if random() % 100 < share {
                    let at = random() as usize % line.len();
                    line[at] |= 1 << (random() % 64) | 1 << 63;
                }
            }
            words
        };
        for share in [3, 40, 60, 97] {
            for shift in [0, 1, 17, 63, 64, 511] {
                let (src, dst) = (some(share), some(30));
                let merged = |kernels: &Kernels| {
                    let mut dst = [&dst[..], &[0; 16]].concat();
                    let mut touched = Vec::new();
                    let nbits = src.len() * 64 - 5;
                    let new = kernels.or_at(&mut dst, shift, &src, nbits, |span, mask| {
                        touched.push((span, mask));
                    });
                    (new, dst, touched)
                };
                let expected = merged(kernels(Level::Portable).unwrap());
                for level in Level::ALL {
                    if let Some(kernels) = kernels(level) {
                        assert!(
                            merged(kernels) == expected,
                            "{level:?}, {share} %, shifted by {shift}"
                        );
                    }
                }
            }
        }
    }
}
