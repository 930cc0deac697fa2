//! The loops of [`super::portable`] for x86-64's vectors: written once, and compiled for AVX2 and
//! for AVX-512. Only the tables of the parent call them.

use super::super::GROUP_WORDS;
use super::portable;
use super::table::{Kernels, Level, Met};
use std::arch::x86_64::*;

/// A safe function for the table, around one with target features.
macro_rules! door {
    ($inner:path, ($($arg:ident: $type:ty),*) -> $out:ty) => {{
        fn door($($arg: $type),*) -> $out {
            // SAFETY: only `kernels` returns the table with this function, after it has checked
            // that the machine has the features.
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
            or_span: door!($m::or_span, (d: &mut [u64], s: &[u64], t: &mut Met) -> u64),
            or_span_shifted: door!($m::or_span_shifted,
                (d: &mut [u64], s: &[u64], p: u64, n: u32, t: &mut Met) -> u64),
            or_span_mixed: door!($m::or_span_mixed,
                (d: &mut [u64], s: &[u64], t: &mut Met) -> u64),
            or_span_shifted_mixed: door!($m::or_span_shifted_mixed,
                (d: &mut [u64], s: &[u64], p: u64, n: u32, t: &mut Met) -> u64),
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

/// How many lines ahead a sequential read prefetches: a page of memory.
const AHEAD: usize = 64;

/// Prefetches a line. Does nothing for an address without memory.
#[inline(always)]
pub(super) fn prefetch(line: *const [u64; GROUP_WORDS]) {
    // SAFETY: a hint; it cannot fault, and changes nothing that a program sees.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// Prefetches the line that a sequential loop reaches a page of memory later. The hardware's own
/// prefetching ends at each page. A merge asks so for its source. For its destination it asks only
/// behind a line that gets bits, because a destination that gets none is not read at all.
#[inline(always)]
fn ask_ahead(line: &[u64; GROUP_WORDS]) {
    prefetch(std::ptr::from_ref(line).wrapping_add(AHEAD));
}

/// The loops over groups, which are the same at every width. `$feature` names the features they
/// need. The following must be in scope: `Line` (8 words in registers), `load`, `store`, `union`,
/// `and_not`, `any`, `Sum` with `add` and `total`, and `shifted`.
macro_rules! loops {
    ($feature:literal) => {
        #[target_feature(enable = $feature)]
        pub(super) fn count(words: &[u64]) -> u64 {
            let (lines, rest) = words.as_chunks::<GROUP_WORDS>();
            let mut sum = Sum::zero();
            for line in lines {
                ask_ahead(line);
                sum.add(load(line));
            }
            sum.total() + portable::count(rest)
        }

        #[target_feature(enable = $feature)]
        pub(super) fn find_not(words: &[u64], fill: u64) -> Option<usize> {
            portable::find_not(words, fill)
        }

        /// ORs one line. Returns whether the source had a bit. Counts the bits that became set, and
        /// all bits of the source. Whether a bit was set before is not asked: where that is so now
        /// and then, no processor predicts it.
        #[target_feature(enable = $feature)]
        #[inline]
        fn or_line(
            dst: &mut [u64; GROUP_WORDS],
            value: Line,
            sum: &mut Sum,
            all: &mut Sum,
        ) -> bool {
            if !any(value) {
                return false;
            }
            let old = load(dst);
            let new = and_not(old, value);
            if any(new) {
                store(dst, union(old, new));
                sum.add(new);
            }
            all.add(value);
            true
        }

        #[target_feature(enable = $feature)]
        pub(super) fn or(dst: &mut [u64], src: &[u64]) -> u64 {
            let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
            let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
            let mut sum = Sum::zero();
            for (d, s) in to.iter_mut().zip(from) {
                or_line(d, load(s), &mut sum, &mut Sum::zero());
            }
            sum.total() + portable::or(to_rest, from_rest)
        }

        #[target_feature(enable = $feature)]
        pub(super) fn or_span(dst: &mut [u64], src: &[u64], met: &mut Met) -> u64 {
            let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
            let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
            let mut sum = Sum::zero();
            let mut all = Sum::zero();
            let mut mask = 0;
            for (g, (d, s)) in to.iter_mut().zip(from).enumerate() {
                ask_ahead(s);
                let some = or_line(d, load(s), &mut sum, &mut all);
                if some {
                    ask_ahead(d);
                }
                mask |= u64::from(some) << g;
            }
            let mut new = sum.total();
            met.again += all.total() - new;
            if !to_rest.is_empty() {
                let mut last = Met::default();
                new += portable::or_span(to_rest, from_rest, &mut last);
                mask |= last.groups << to.len();
                met.again += last.again;
            }
            met.groups |= mask;
            new
        }

        #[target_feature(enable = $feature)]
        pub(super) fn or_span_shifted(
            dst: &mut [u64],
            src: &[u64],
            previous: u64,
            shift: u32,
            met: &mut Met,
        ) -> u64 {
            let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
            let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
            let mut sum = Sum::zero();
            let mut all = Sum::zero();
            let mut mask = 0;
            let mut before = load(&[previous; GROUP_WORDS]);
            let by = Shift::new(shift);
            for (g, (d, s)) in to.iter_mut().zip(from).enumerate() {
                ask_ahead(s);
                let line = load(s);
                let value = shifted(before, line, by);
                before = line;
                let some = or_line(d, value, &mut sum, &mut all);
                if some {
                    ask_ahead(d);
                }
                mask |= u64::from(some) << g;
            }
            let mut new = sum.total();
            met.again += all.total() - new;
            if !to_rest.is_empty() {
                let mut last = Met::default();
                let previous = from.last().map_or(previous, |line| line[GROUP_WORDS - 1]);
                new += portable::or_span_shifted(to_rest, from_rest, previous, shift, &mut last);
                mask |= last.groups << to.len();
                met.again += last.again;
            }
            met.groups |= mask;
            new
        }

        /// Which lines of a span have a bit, found without a branch for each.
        #[target_feature(enable = $feature)]
        #[inline]
        fn lines_with_bits(lines: &[[u64; GROUP_WORDS]]) -> u64 {
            let mut mask = 0;
            for (g, line) in lines.iter().enumerate() {
                ask_ahead(line);
                mask |= u64::from(any(load(line))) << g;
            }
            mask
        }

        #[target_feature(enable = $feature)]
        pub(super) fn or_span_mixed(dst: &mut [u64], src: &[u64], met: &mut Met) -> u64 {
            let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
            let (from, _) = src.as_chunks::<GROUP_WORDS>();
            if !to_rest.is_empty() || to.len() != from.len() {
                return or_span(dst, src, met);
            }
            let mut sum = Sum::zero();
            let mut all = Sum::zero();
            let mask = lines_with_bits(from);
            for g in Each(mask) {
                prefetch(&to[g]);
            }
            for g in Each(mask) {
                or_line(&mut to[g], load(&from[g]), &mut sum, &mut all);
            }
            met.groups |= mask;
            met.again += all.total() - sum.total();
            sum.total()
        }

        #[target_feature(enable = $feature)]
        pub(super) fn or_span_shifted_mixed(
            dst: &mut [u64],
            src: &[u64],
            previous: u64,
            shift: u32,
            met: &mut Met,
        ) -> u64 {
            let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
            let (from, _) = src.as_chunks::<GROUP_WORDS>();
            if !to_rest.is_empty() || to.len() != from.len() {
                return or_span_shifted(dst, src, previous, shift, met);
            }
            let mut sum = Sum::zero();
            let mut all = Sum::zero();
            let mut mask = 0;
            let by = Shift::new(shift);
            // The last word of a line reaches into the next line.
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
                mask |= u64::from(or_line(&mut to[g], value, &mut sum, &mut all)) << g;
            }
            met.groups |= mask;
            met.again += all.total() - sum.total();
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
                or_line(&mut to[g], load(&from[g]), &mut sum, &mut Sum::zero());
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
        pub(super) fn drain_groups(dst: &mut [u64], src: &mut [u64], mut mask: u64) -> (u64, u64) {
            let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
            let (from, from_rest) = src.as_chunks_mut::<GROUP_WORDS>();
            // All lines are prefetched at once. If few groups are marked the hardware cannot
            // predict the next line, and the loop would wait for one cache miss after the other.
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
                if or_line(&mut to[g], line, &mut sum, &mut Sum::zero()) {
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
            // Bits per byte of both halves, at most 16, then summed into four words.
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

    /// AVX2 cannot count bits, so the bits of each half byte come from a table.
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
