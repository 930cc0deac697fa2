//! Bitmaps of pages. Every bit operation of the crate is in this module.
//!
//! Bit `i` of a bitmap is bit `i % 64` of the 64-bit word `i / 64`, as in the kernel's dirty logs
//! on little-endian machines. No file in here knows what a bit stands for, does I/O, or starts a
//! thread. The layers above call it: the tracker and its logs, the sender's walk, and the bitmap
//! functions of the C interface.
//!
//! | file | what |
//! |---|---|
//! | `words` | kernels on plain slices of words, vectorised, chosen at run time |
//! | [`summary`] | [`Bitmap`]: words, a summary level above them, and a count |
//! | [`runs`] | iterators over runs of set bits |
//! | [`chunks`] | [`Chunks`]: one bit per 2^shift pages |
//! | [`concurrent`] | [`ConcurrentBitmap`]: the bitmap that any thread marks without waiting |
//! | [`stretches`] | [`Stretches`]: a bit for each page, set by many lanes at once |

mod cells;
pub mod chunks;
pub mod concurrent;
pub(crate) mod heap;
pub mod runs;
pub mod stretches;
pub mod summary;
#[doc(hidden)]
pub mod words;

pub use chunks::Chunks;
pub use concurrent::{Collected, ConcurrentBitmap};
pub use runs::Runs;
pub use stretches::Stretches;
pub use summary::Bitmap;

/// Bits in a word.
pub(crate) const WORD_BITS: usize = 64;
/// Words in a group: one cache line, and one stretch (2 MiB) of pages of 4 KiB.
pub(crate) const GROUP_WORDS: usize = 8;
/// Bits in a group. One summary bit stands for this many.
pub(crate) const GROUP_BITS: usize = GROUP_WORDS * WORD_BITS;
/// Words that one summary word stands for. The group kernels work on this many.
pub(crate) const SPAN_WORDS: usize = GROUP_WORDS * WORD_BITS;

const _: () = assert!(GROUP_BITS as u64 == crate::units::STRETCH_PAGES);

/// The words of a bitmap of `nbits` bits, rounded up to whole groups.
pub(crate) fn group_rounded_words(nbits: usize) -> usize {
    nbits.div_ceil(GROUP_BITS) * GROUP_WORDS
}

/// The range `start..start + n`, cut at `len`. An empty range becomes `len..len` or `start..start`.
/// Never overflows.
pub(crate) fn cut(start: usize, n: usize, len: usize) -> std::ops::Range<usize> {
    let start = start.min(len);
    start..start.saturating_add(n).min(len)
}
