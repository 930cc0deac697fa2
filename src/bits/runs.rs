//! Iterators over runs of set bits.
//!
//! They read and never clear. The sender's walk and the chunked clear use them.
//! [`Bitmap::next_run`] is the same as single steps, for callers that change the bitmap in between.

use super::summary::Bitmap;
use super::words;
use std::ops::Range;

/// The runs of set bits of a [`Bitmap`], in order: see [`Bitmap::runs`].
#[derive(Clone)]
pub struct Runs<'a> {
    bitmap: &'a Bitmap,
    at: usize,
    max_len: usize,
    grid: usize,
}

impl Bitmap {
    /// The runs of set bits from `from` on, in order. A run around `from` begins at `from`.
    pub fn runs(&self, from: usize) -> Runs<'_> {
        Runs::new(self, from)
    }
}

impl<'a> Runs<'a> {
    pub(super) fn new(bitmap: &'a Bitmap, from: usize) -> Self {
        Runs {
            bitmap,
            at: from,
            max_len: usize::MAX,
            grid: usize::MAX,
        }
    }

    /// Cuts runs that are longer than `max_len` bits (0 counts as 1).
    pub fn max_len(mut self, max_len: usize) -> Self {
        self.max_len = max_len.max(1);
        self
    }

    /// Also cuts runs at every multiple of `grid` bits (0 counts as 1). With 512, no run crosses
    /// from one stretch of 2 MiB into the next, which no record may do.
    pub fn cut_at_multiples_of(mut self, grid: usize) -> Self {
        self.grid = grid.max(1);
        self
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<usize>;
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.bitmap.next_set(self.at)?;
        let most = self.max_len.min(self.grid - start % self.grid);
        let run = self.bitmap.run_at(start, most);
        self.at = run.end;
        Some(run)
    }
}

impl std::iter::FusedIterator for Runs<'_> {}

/// The runs of set bits among the first `nbits` bits of plain `words` (cut at their end), in order.
/// Costs one read of the words.
pub fn of_words(words: &[u64], nbits: usize) -> WordRuns<'_> {
    WordRuns {
        words,
        at: 0,
        end: nbits.min(words.len().saturating_mul(64)),
    }
}

/// The iterator of [`of_words`].
#[derive(Clone, Debug)]
pub struct WordRuns<'a> {
    words: &'a [u64],
    at: usize,
    end: usize,
}

impl Iterator for WordRuns<'_> {
    type Item = Range<usize>;
    fn next(&mut self) -> Option<Range<usize>> {
        let start = words::next_set(self.words, self.at, self.end)?;
        let end = words::next_clear(self.words, start, self.end).unwrap_or(self.end);
        self.at = end;
        Some(start..end)
    }
}

impl std::iter::FusedIterator for WordRuns<'_> {}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bits: &[bool], from: usize, max_len: usize, grid: usize) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        for i in (from..bits.len()).filter(|&i| bits[i]) {
            match out.last_mut() {
                Some(r) if r.end == i && r.len() < max_len && i % grid != 0 => r.end = i + 1,
                _ => out.push(i..i + 1),
            }
        }
        out
    }

    /// Bits in clumps, so that there are long runs and short ones.
    pub(crate) fn clumps() -> impl Strategy<Value = Vec<bool>> {
        prop::collection::vec((any::<bool>(), 0usize..300), 0..20).prop_map(|parts| {
            parts
                .into_iter()
                .flat_map(|(bit, n)| std::iter::repeat_n(bit, n))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn runs_are_all_set_bits_in_order_and_never_cross_a_cut(
            bits in clumps(), from in 0usize..700, max_len in 1usize..700, grid in 1usize..700,
        ) {
            let mut map = Bitmap::new(bits.len()).unwrap();
            for i in (0..bits.len()).filter(|&i| bits[i]) {
                map.set_range(i, 1);
            }
            let whole: Vec<_> = map.runs(from).collect();
            prop_assert_eq!(whole, naive(&bits, from, usize::MAX, usize::MAX));
            let cut: Vec<_> = map.runs(from).max_len(max_len).collect();
            prop_assert_eq!(cut, naive(&bits, from, max_len, usize::MAX));
            let both: Vec<_> = map.runs(from).max_len(max_len).cut_at_multiples_of(grid).collect();
            prop_assert_eq!(both, naive(&bits, from, max_len, grid));
            let plain: Vec<_> = of_words(map.words(), bits.len()).collect();
            prop_assert_eq!(plain, naive(&bits, 0, usize::MAX, usize::MAX));
        }
    }
}
