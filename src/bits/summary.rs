//! A bitmap with a summary level above its words and a count beside them. The cost of its
//! operations grows with the set bits and not with its length.
//!
//! One summary bit stands for a group of 8 words: 512 pages, a stretch of 2 MiB, one cache line.
//! The bitmap of 8 TiB of guest memory has 256 MiB of words and 512 KiB of summary. Threads must
//! not share it (`ConcurrentBitmap` is for that), and it does not know what its bits stand for. The
//! tracker uses it for pending and for the sets beside it.
//!
//! Invariants:
//! - a summary bit is set if and only if its group has a set bit. (After a clear, the groups at
//!   both ends are looked at again, one line each);
//! - `count` is the number of set bits;
//! - no bit at or beyond `len` is set, whatever a caller asked for.

use super::heap::Words;
use super::words::{self, BitCounts, Kernels};
use super::{cut, group_rounded_words, GROUP_BITS, GROUP_WORDS, SPAN_WORDS, WORD_BITS};
use crate::error::{Error, Kind, Result};
use std::ops::Range;

/// A set of pages, or of whatever else a bit stands for, of fixed size.
///
/// ```
/// use brant::bits::Bitmap;
///
/// # fn main() -> brant::Result<()> {
/// let mut written = Bitmap::new(1 << 20)?; // 4 GiB of pages
/// assert_eq!(written.set_range(600, 4), 4);
/// assert_eq!(written.set_range(602, 4), 2); // how many of them are new
/// assert_eq!(written.next_run(0, 100), Some(600..606));
/// assert_eq!((written.count(), written.next_set(606)), (6, None));
/// # Ok(())
/// # }
/// ```
pub struct Bitmap {
    /// Rounded up to whole groups.
    words: Words,
    /// One bit for each group.
    summary: Words,
    nbits: usize,
    count: u64,
}

impl Bitmap {
    /// `nbits` clear bits; 0 is allowed. Memory without a set bit is not touched.
    /// [`Kind::NoMemory`] if there is no memory.
    pub fn new(nbits: usize) -> Result<Bitmap> {
        Bitmap::with(nbits, Words::zeroed)
    }

    /// [`Bitmap::new`] for bits that are used all over: the words of a large bitmap lie on huge
    /// pages, if the kernel has any. A huge page with one set bit takes 2 MiB of memory.
    pub fn on_huge_pages(nbits: usize) -> Result<Bitmap> {
        Bitmap::with(nbits, Words::zeroed_on_huge_pages)
    }

    fn with(nbits: usize, words: fn(usize, &str) -> Result<Words>) -> Result<Bitmap> {
        let nwords = group_rounded_words(nbits);
        Ok(Bitmap {
            words: words(nwords, "bitmap")?,
            summary: Words::zeroed(nwords.div_ceil(SPAN_WORDS), "bitmap summary")?,
            nbits,
            count: 0,
        })
    }

    /// The number of bits, set or not.
    pub fn len(&self) -> usize {
        self.nbits
    }

    /// How many bits are set. Takes constant time.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether no bit is set. Takes constant time.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether bit `i` is set. `false` beyond the end.
    pub fn test(&self, i: usize) -> bool {
        self.words
            .get(i / WORD_BITS)
            .is_some_and(|word| word >> (i % WORD_BITS) & 1 != 0)
    }

    /// The words: `len` / 64 of them, rounded up. Bits from [`Bitmap::len`] on are zero.
    pub fn words(&self) -> &[u64] {
        &self.words[..self.nbits.div_ceil(WORD_BITS)]
    }

    /// Bytes taken from the heap. This is address space: untouched pages of it are not backed.
    pub fn heap_bytes(&self) -> usize {
        self.words.heap_bytes() + self.summary.heap_bytes()
    }

    /// Sets every bit. Returns how many were clear.
    pub fn set_all(&mut self) -> u64 {
        self.set_range(0, self.nbits)
    }

    /// Clears every bit. Returns how many were set. The cost grows with the set bits.
    pub fn clear_all(&mut self) -> u64 {
        for (span, mask) in dirty_spans(&self.summary) {
            for_each_group(mask, |g| {
                let at = span * SPAN_WORDS + g * GROUP_WORDS;
                self.words[at..at + GROUP_WORDS].fill(0);
            });
        }
        for word in self.summary.iter_mut().filter(|word| **word != 0) {
            *word = 0;
        }
        std::mem::take(&mut self.count)
    }

    /// Sets the `n` bits from `start` on, cut at the end. Returns how many were clear.
    pub fn set_range(&mut self, start: usize, n: usize) -> u64 {
        let bits = cut(start, n, self.nbits);
        if bits.is_empty() {
            return 0;
        }
        let new = words::set_range(&mut self.words, bits.start, bits.len());
        if new != 0 {
            let groups = groups_of(&bits);
            words::set_range(&mut self.summary, groups.start, groups.len());
            self.count += new;
        }
        new
    }

    /// Starts to load a bit's memory into the cache, for a [`Bitmap::set_range`] a little later.
    /// Changes nothing. A bit past the end is ignored.
    pub fn prefetch(&self, bit: usize) {
        words::prefetch(&self.words, bit / WORD_BITS);
        words::prefetch(&self.summary, bit / GROUP_BITS / WORD_BITS);
    }

    /// Clears the `n` bits from `start` on, cut at the end. Returns how many were set. The cost
    /// grows with the set bits there.
    pub fn clear_range(&mut self, start: usize, n: usize) -> u64 {
        let bits = cut(start, n, self.nbits);
        if bits.is_empty() || self.count == 0 {
            return 0;
        }
        let mut cleared = 0;
        let groups = groups_of(&bits);
        let mut from = groups.start;
        while let Some(first) = words::next_set(&self.summary, from, groups.end) {
            // Consecutive groups with bits are taken together. The run is cut so short that its
            // count leaves it in the cache for the clear.
            let end = groups.end.min(first + WORD_BITS);
            let end = words::next_clear(&self.summary, first, end).unwrap_or(end);
            let part = bits.start.max(first * GROUP_BITS)..bits.end.min(end * GROUP_BITS);
            cleared += words::clear_range(&mut self.words, part.start, part.len());
            // Groups that lie inside as a whole are empty now. The first and the last may not be.
            let keep_first = !self.group_is_zero(first);
            let keep_last = !self.group_is_zero(end - 1);
            words::clear_range(&mut self.summary, first, end - first);
            if keep_first {
                words::set_range(&mut self.summary, first, 1);
            }
            if keep_last {
                words::set_range(&mut self.summary, end - 1, 1);
            }
            from = end;
        }
        self.count -= cleared;
        cleared
    }

    fn group_is_zero(&self, group: usize) -> bool {
        let at = group * GROUP_WORDS;
        self.words[at..at + GROUP_WORDS]
            .iter()
            .fold(0, |all, w| all | w)
            == 0
    }

    /// `self[at..at + nbits] |= words[0..nbits]`, for any alignment. Returns how many bits became
    /// set. Bits of `words` from `nbits` on are ignored, and so are bits that would fall beyond the
    /// end of either. Costs one read of `words`, and one line of `self` for each group that gets
    /// bits.
    pub fn merge_words(&mut self, at: usize, words: &[u64], nbits: usize) -> u64 {
        self.merge_words_with(words::best(), at, words, nbits)
    }

    /// [`Bitmap::merge_words`] that also returns how many bits were set before.
    pub(crate) fn merge_words_counted(
        &mut self,
        at: usize,
        words: &[u64],
        nbits: usize,
    ) -> BitCounts {
        self.merge_by(words::best(), at, words, nbits)
    }

    /// [`Bitmap::merge_words`] with a given table of kernels, for tests and benchmarks.
    pub fn merge_words_with(
        &mut self,
        kernels: &Kernels,
        at: usize,
        words: &[u64],
        nbits: usize,
    ) -> u64 {
        self.merge_by(kernels, at, words, nbits).new
    }

    fn merge_by(&mut self, kernels: &Kernels, at: usize, words: &[u64], nbits: usize) -> BitCounts {
        let bits = cut(at, nbits, self.nbits);
        let summary = &mut self.summary;
        let merged = kernels.or_at(
            &mut self.words,
            bits.start,
            words,
            bits.len(),
            |span, mask| summary[span] |= mask,
        );
        self.count += merged.new;
        merged
    }

    /// `self |= other`. Returns how many bits became set. The cost grows with the set bits of
    /// `other`. If the lengths differ, bits of `other` beyond the end of `self` are ignored.
    pub fn merge(&mut self, other: &Bitmap) -> u64 {
        if other.nbits > self.nbits {
            return self.merge_words(0, other.words(), other.nbits);
        }
        let kernels = words::best();
        let mut new = 0;
        for (span, mask) in dirty_spans(&other.summary) {
            let dst = span_of(&self.words, span);
            let src = span_of(&other.words, span);
            new += kernels.or_groups(&mut self.words[dst], &other.words[src], mask);
            self.summary[span] |= mask;
        }
        self.count += new;
        new
    }

    /// Moves every set bit of `self` to `dst`, and leaves `self` empty. Returns how many bits of
    /// `dst` became set. The cost grows with the set bits of `self`. If the lengths differ, bits
    /// beyond the end of `dst` stay in `self`.
    pub fn take_all_into(&mut self, dst: &mut Bitmap) -> u64 {
        if self.nbits > dst.nbits {
            let new = dst.merge(self);
            self.clear_range(0, dst.nbits);
            return new;
        }
        let (new, _) = drain(&mut self.words, &mut self.summary, dst);
        self.count = 0;
        new
    }

    /// The first set bit at or after `from`. Costs a read of the summary between the two.
    pub fn next_set(&self, from: usize) -> Option<usize> {
        if from >= self.nbits {
            return None;
        }
        // This group comes first, because a walk mostly finds the next bit in it.
        let group = from / GROUP_BITS;
        let in_group = words::next_set(&self.words, from, (group + 1) * GROUP_BITS);
        in_group.or_else(|| {
            let group = words::next_set(&self.summary, group + 1, self.ngroups())?;
            words::next_set(&self.words, group * GROUP_BITS, (group + 1) * GROUP_BITS)
        })
    }

    /// The first set bit in `from..end`. The search ends at `end`.
    pub fn next_set_before(&self, from: usize, end: usize) -> Option<usize> {
        let end = end.min(self.nbits);
        if from >= end {
            return None;
        }
        let group = from / GROUP_BITS;
        let of = |group: usize| (group + 1).saturating_mul(GROUP_BITS).min(end);
        let in_group = words::next_set(&self.words, from, of(group));
        in_group.or_else(|| {
            let groups = end.div_ceil(GROUP_BITS);
            let group = words::next_set(&self.summary, group + 1, groups)?;
            words::next_set(&self.words, group * GROUP_BITS, of(group))
        })
    }

    /// The first run of set bits in `from..end`, cut there. The search ends at `end`.
    pub fn next_run_before(&self, from: usize, end: usize) -> Option<Range<usize>> {
        let start = self.next_set_before(from, end)?;
        Some(self.run_at(start, end - start))
    }

    /// The first clear bit in `from..end`; `None` if all of them are set. The search ends at `end`.
    pub fn next_clear_before(&self, from: usize, end: usize) -> Option<usize> {
        words::next_clear(&self.words, from, end.min(self.nbits))
    }

    /// The first clear bit at or after `from`.
    pub fn next_clear(&self, from: usize) -> Option<usize> {
        words::next_clear(&self.words, from, self.nbits)
    }

    /// The first run of set bits at or after `from`, cut at `max_len` bits (0 counts as 1).
    pub fn next_run(&self, from: usize, max_len: usize) -> Option<Range<usize>> {
        let start = self.next_set(from)?;
        Some(self.run_at(start, max_len.max(1)))
    }

    /// The run that begins at `start`, a set bit, cut at `max_len`.
    pub(super) fn run_at(&self, start: usize, max_len: usize) -> Range<usize> {
        let most = cut(start, max_len, self.nbits);
        let end = words::next_clear(&self.words, start, most.end).unwrap_or(most.end);
        start..end
    }

    /// How many of the `n` bits from `start` on are set.
    pub fn count_range(&self, start: usize, n: usize) -> u64 {
        let bits = cut(start, n, self.nbits);
        if bits.len() == self.nbits {
            return self.count;
        }
        words::count_range(&self.words, bits.start, bits.len())
    }

    /// A copy. [`Kind::NoMemory`] if there is no memory.
    pub fn try_clone(&self) -> Result<Bitmap> {
        let mut copy = Bitmap::new(self.nbits)?;
        copy.merge(self);
        Ok(copy)
    }

    fn ngroups(&self) -> usize {
        self.nbits.div_ceil(GROUP_BITS)
    }

    /// Refuses a bitmap of another length than `nbits`.
    pub(super) fn check_len(&self, nbits: usize) -> Result<()> {
        if self.nbits == nbits {
            return Ok(());
        }
        Err(Error::new(
            Kind::Invalid,
            format!(
                "bitmap of {nbits} bits expected, found one of {}",
                self.nbits
            ),
        ))
    }
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitmap({} of {})", self.count, self.nbits)
    }
}

/// Moves the groups that `summary` names from `words` to `dst`, which is at least as long, and
/// zeroes both. Returns how many bits became set in `dst`, and how many were moved.
pub(super) fn drain(words: &mut [u64], summary: &mut [u64], dst: &mut Bitmap) -> (u64, u64) {
    let kernels = words::best();
    let (mut new, mut all) = (0, 0);
    let mut span = 0;
    while let Some(found) = words::find_nonzero(summary, span) {
        span = found;
        let mask = summary[span];
        let from = span_of(words, span);
        let to = span_of(&dst.words, span);
        let (n, a) = kernels.drain_groups(&mut dst.words[to], &mut words[from], mask);
        new += n;
        all += a;
        dst.summary[span] |= mask;
        summary[span] = 0;
        span += 1;
    }
    dst.count += new;
    (new, all)
}

/// [`drain`] for words and summary of the same length as those of `dst`. It moves the smaller set
/// of groups. If `dst` has far fewer groups with bits than the words, the two exchange their
/// memory. The old groups of `dst` are drained into it then, and the others only have to be
/// counted. If `dst` is empty, no group is moved.
pub(super) fn drain_or_exchange(
    words: &mut Words,
    summary: &mut Words,
    dst: &mut Bitmap,
) -> (u64, u64) {
    /// Counting a group reads one line; moving it reads two and writes two.
    const MUCH: u64 = 3;
    let same = words.len() == dst.words.len() && summary.len() == dst.summary.len();
    let groups_in = |summary: &[u64]| words::count(summary);
    let fewer = dst.is_empty() || groups_in(&dst.summary) < groups_in(summary) / MUCH;
    if !same || !fewer {
        return drain(words, summary, dst);
    }
    let kernels = words::best();
    let marked = dirty_spans(summary)
        .map(|(span, mask)| {
            // Groups outside of the mask are zero. If most groups are in it, all of them are read
            // in order.
            let mask = if mask.count_ones() > 32 {
                u64::MAX
            } else {
                mask
            };
            kernels.count_groups(&words[span_of(words, span)], mask)
        })
        .sum();
    std::mem::swap(words, &mut dst.words);
    std::mem::swap(summary, &mut dst.summary);
    let before = std::mem::replace(&mut dst.count, marked);
    if before != 0 {
        // This leaves the words clean, as those of an empty bitmap.
        drain(words, summary, dst);
    }
    (dst.count - before, marked)
}

/// The words of the summary word `span`.
pub(super) fn span_of(words: &[u64], span: usize) -> Range<usize> {
    cut(span * SPAN_WORDS, SPAN_WORDS, words.len())
}

/// The summary words that are not zero, each with its index.
fn dirty_spans(summary: &[u64]) -> impl Iterator<Item = (usize, u64)> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let span = words::find_nonzero(summary, from)?;
        from = span + 1;
        Some((span, summary[span]))
    })
}

/// Calls `f` with the index of each set bit.
pub(super) fn for_each_group(mut mask: u64, mut f: impl FnMut(usize)) {
    while mask != 0 {
        f(mask.trailing_zeros() as usize);
        mask &= mask - 1;
    }
}

/// The groups that have a part of `bits`, which is not empty.
fn groups_of(bits: &Range<usize>) -> Range<usize> {
    bits.start / GROUP_BITS..(bits.end - 1) / GROUP_BITS + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::words::{kernels, Level};
    use proptest::prelude::*;

    /// Checks the invariants, and that the bits are those of the model.
    fn check(map: &Bitmap, model: &[bool]) {
        assert_eq!(map.len(), model.len());
        assert_eq!(map.count(), model.iter().filter(|&&b| b).count() as u64);
        assert_eq!(map.is_empty(), map.count() == 0);
        for (i, word) in map.words.iter().enumerate() {
            let mut expected = 0u64;
            for (k, _) in (0..64)
                .filter_map(|k| model.get(i * 64 + k).map(|&b| (k, b)))
                .filter(|&(_, b)| b)
            {
                expected |= 1 << k;
            }
            assert_eq!(*word, expected, "word {i}");
        }
        for group in 0..map.words.len() / GROUP_WORDS {
            let set = map.summary[group / 64] >> (group % 64) & 1 != 0;
            assert_eq!(set, !map.group_is_zero(group), "summary of group {group}");
        }
        let beyond = map.words.len() / GROUP_WORDS;
        assert_eq!(words::next_set(&map.summary, beyond, usize::MAX), None);
    }

    fn pair(model: &[bool]) -> Bitmap {
        let mut map = Bitmap::new(model.len()).unwrap();
        for i in (0..model.len()).filter(|&i| model[i]) {
            assert_eq!(map.set_range(i, 1), 1);
        }
        map
    }

    fn or(dst: &mut [bool], at: usize, src: impl IntoIterator<Item = bool>) -> u64 {
        let mut new = 0;
        for (i, bit) in src.into_iter().enumerate() {
            if let Some(d) = dst.get_mut(at.saturating_add(i)).filter(|d| bit && !**d) {
                *d = true;
                new += 1;
            }
        }
        new
    }

    #[derive(Debug, Clone)]
    enum Op {
        Set(usize, usize),
        Clear(usize, usize),
        Merge(usize, Vec<u64>, usize),
        MergeMap(Vec<(usize, usize)>, usize),
        TakeInto(usize),
        SetAll,
        ClearAll,
    }

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![4 => Just(0), 1 => Just(u64::MAX), 1 => any::<u64>()]
    }

    fn op(max: usize) -> impl Strategy<Value = Op> {
        let len = prop_oneof![0usize..3, 0usize..600, 0..max + 10];
        let len2 = prop_oneof![0usize..3, 0usize..600, 0..max + 10];
        prop_oneof![
            6 => (0..max + 10, len).prop_map(|(a, n)| Op::Set(a, n)),
            6 => (0..max + 10, len2).prop_map(|(a, n)| Op::Clear(a, n)),
            4 => (0..max + 10, prop::collection::vec(word(), 0..max / 50), 0..max + 100)
                .prop_map(|(a, w, n)| Op::Merge(a, w, n)),
            2 => (prop::collection::vec((0..max, 0usize..700), 0..4), 0..max)
                .prop_map(|(r, n)| Op::MergeMap(r, n)),
            1 => (0..2 * max).prop_map(Op::TakeInto),
            1 => Just(Op::SetAll),
            1 => Just(Op::ClearAll),
        ]
    }

    const MAX: usize = 40_000;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_bitmap_agrees_with_a_list_of_bools_whatever_is_done_to_it(
            nbits in prop_oneof![0usize..1200, 32_000usize..MAX],
            ops in prop::collection::vec(op(MAX), 0..16),
        ) {
            let mut map = Bitmap::new(nbits).unwrap();
            let mut model = vec![false; nbits];
            for op in ops {
                match op {
                    Op::Set(a, n) => {
                        let new = or(&mut model, a, std::iter::repeat_n(true, n));
                        prop_assert_eq!(map.set_range(a, n), new);
                    }
                    Op::Clear(a, n) => {
                        let mut gone = 0;
                        for bit in model.iter_mut().skip(a).take(n) {
                            gone += u64::from(std::mem::take(bit));
                        }
                        prop_assert_eq!(map.clear_range(a, n), gone);
                    }
                    Op::Merge(a, words, n) => {
                        let all: Vec<bool> = (0..words.len() * 64)
                            .map(|i| words[i / 64] >> (i % 64) & 1 != 0)
                            .collect();
                        let level = Level::ALL[n % 3];
                        let k = kernels(level).unwrap_or(words::best());
                        let new = or(&mut model, a, all.into_iter().take(n));
                        prop_assert_eq!(map.merge_words_with(k, a, &words, n), new);
                    }
                    Op::MergeMap(ranges, len) => {
                        // Of any length, and of the same length.
                        for len in [len, nbits] {
                            let mut other = vec![false; len];
                            for &(a, n) in &ranges {
                                or(&mut other, a, std::iter::repeat_n(true, n));
                            }
                            let other_map = pair(&other);
                            let new = or(&mut model, 0, other);
                            prop_assert_eq!(map.merge(&other_map), new);
                        }
                    }
                    Op::TakeInto(len) => {
                        for len in [len, nbits] {
                            let mut other: Vec<bool> = (0..len).map(|i| i % 1001 == 0).collect();
                            let mut other_map = pair(&other);
                            let new = or(&mut other, 0, model.iter().copied());
                            prop_assert_eq!(map.take_all_into(&mut other_map), new);
                            let n = len.min(model.len());
                            model[..n].fill(false);
                            check(&other_map, &other);
                        }
                    }
                    Op::SetAll => {
                        let n = model.len();
                        let new = or(&mut model, 0, std::iter::repeat_n(true, n));
                        prop_assert_eq!(map.set_all(), new);
                    }
                    Op::ClearAll => {
                        prop_assert_eq!(map.clear_all(), model.iter().filter(|&&b| b).count() as u64);
                        model.fill(false);
                    }
                }
                check(&map, &model);
            }
            let copy = map.try_clone().unwrap();
            check(&copy, &model);
        }

        #[test]
        fn draining_moves_all_bits_whichever_way_the_memory_goes(
            from in prop::collection::vec((0..MAX, 0usize..9000), 0..8),
            into in prop::collection::vec((0..MAX, 0usize..9000), 0..8),
            nbits in prop_oneof![1usize..1200, 32_000usize..MAX],
        ) {
            let model = |ranges: &[(usize, usize)]| {
                let mut bits = vec![false; nbits];
                for &(at, n) in ranges {
                    or(&mut bits, at, std::iter::repeat_n(true, n));
                }
                bits
            };
            let (marked, mut expected) = (model(&from), model(&into));
            let (mut source, mut dst) = (pair(&marked), pair(&expected));
            let found = drain_or_exchange(&mut source.words, &mut source.summary, &mut dst);
            let new = or(&mut expected, 0, marked.iter().copied());
            prop_assert_eq!(found, (new, marked.iter().filter(|&&b| b).count() as u64));
            check(&dst, &expected);
            source.count = 0;
            check(&source, &vec![false; nbits]);
        }

        #[test]
        fn searches_agree_with_a_list_of_bools(
            model in super::super::runs::tests::clumps(),
            from in 0usize..6000, n in 0usize..6000, max_len in 0usize..100,
        ) {
            let map = pair(&model);
            check(&map, &model);
            let set = (from..model.len()).find(|&i| model[i]);
            prop_assert_eq!(map.next_set(from), set);
            prop_assert_eq!(map.next_set_before(from, from + n), set.filter(|&i| i < from + n));
            prop_assert_eq!(map.next_set_before(from, usize::MAX), set);
            prop_assert_eq!(map.next_clear(from), (from..model.len()).find(|&i| !model[i]));
            prop_assert_eq!(map.test(from), model.get(from).copied().unwrap_or(false));
            let inside = model.iter().skip(from).take(n).filter(|&&b| b).count() as u64;
            prop_assert_eq!(map.count_range(from, n), inside);
            let run = set.map(|start| {
                let most = (start + max_len.max(1)).min(model.len());
                start..(start..most).find(|&i| !model[i]).unwrap_or(most)
            });
            prop_assert_eq!(map.next_run(from, max_len), run);
        }
    }

    #[test]
    fn bits_beyond_the_end_are_never_set() {
        for nbits in [1, 63, 64, 65, 511, 512, 513, 32_767, 32_769] {
            let mut map = Bitmap::new(nbits).unwrap();
            let ones = vec![u64::MAX; nbits / 64 + 20];
            assert_eq!(map.merge_words(0, &ones, usize::MAX), nbits as u64);
            assert_eq!(map.set_range(nbits, usize::MAX), 0);
            assert_eq!(map.set_range(0, usize::MAX), 0);
            assert!(!map.test(nbits) && !map.test(usize::MAX));
            check(&map, &vec![true; nbits]);
            assert_eq!(map.clear_range(0, usize::MAX), nbits as u64);
            check(&map, &vec![false; nbits]);
        }
    }

    #[test]
    fn a_bitmap_of_nothing_works() {
        let mut map = Bitmap::new(0).unwrap();
        assert_eq!((map.len(), map.count(), map.heap_bytes()), (0, 0, 0));
        assert!(map.words().is_empty());
        assert_eq!(
            map.set_all() + map.clear_all() + map.merge_words(0, &[1], 1),
            0
        );
        assert_eq!(map.next_set(0), None);
        assert_eq!(map.next_run(0, 1), None);
        assert_eq!(map.runs(0).count(), 0);
        assert_eq!(Bitmap::new(usize::MAX).unwrap_err().kind(), Kind::NoMemory);
    }

    #[test]
    fn an_empty_bitmap_of_an_8_tib_guest_costs_no_memory_and_no_time() {
        // 2^31 pages. If touched, the words would take 256 MiB.
        let mut map = Bitmap::new(1 << 31).unwrap();
        map.set_range((1 << 31) - 1, 1);
        map.set_range(12_345_678, 3);
        assert_eq!(map.next_run(0, usize::MAX), Some(12_345_678..12_345_681));
        assert_eq!(map.runs(0).count(), 2);
        assert_eq!(map.clear_range(0, 1 << 30), 3);
        let mut other = Bitmap::new(1 << 31).unwrap();
        assert_eq!(map.take_all_into(&mut other), 1);
        assert_eq!(other.next_set(0), Some((1 << 31) - 1));
    }
}
