//! A page as the changes in it since another version of it: the field's XBZRLE encoding.
//!
//! Pure: bytes in, bytes out. This file knows no block, no cache and no record. The source encodes
//! the page that it sends against the version that it sent before. The destination applies the
//! encoding to that version.
//!
//! An encoding is a sequence of pairs. Each pair skips some bytes that have not changed, and then
//! gives the new values of some bytes:
//!
//! ```text
//! page = { skipped length, given length, given bytes }
//! ```
//!
//! A length is 1 or 2 bytes of 7 bits each, the lowest bits first. The highest bit of the first
//! byte says that a second byte follows (ULEB128). Only the first pair may skip 0 bytes, and every
//! pair gives at least 1. Unchanged bytes at the page's end are left out, so an unchanged page has
//! an encoding of 0 bytes.
//!
//! Example: a page in which bytes 5 and 200 to 202 have become 9 is `05 01 09 C2 01 03 09 09 09`.
//!
//! A single unchanged byte between two changed ones is given like them, because a pair of its own
//! would take two bytes to save one. So the encoding is never longer than one in which each
//! unchanged byte ends a pair, and every decoder of XBZRLE reads it.
//!
//! Both pages are the caller's own memory, which nobody else writes to. The caller copies guest
//! memory first.

use super::level::Level;
use crate::units::PAGE_SIZE;
use std::fmt;

/// The number of bytes in a page.
pub const PAGE: usize = PAGE_SIZE as usize;
const GROUP: usize = 64;
const GROUPS: usize = PAGE / GROUP;

/// A bit for each byte of a page.
type Mask = [u64; GROUPS];
/// A bit for each group of a page: as many as a word has.
type Groups = u64;

const _: () = assert!(GROUPS == Groups::BITS as usize);

/// Writes the encoding of `page`, as a change of `base`, to the beginning of `out`, and returns its
/// length. `None` when the encoding is longer than `out`. All of `out` may be overwritten.
pub fn encode(base: &[u8; PAGE], page: &[u8; PAGE], out: &mut [u8]) -> Option<usize> {
    let mut mask = [0; GROUPS];
    let some = Level::best().differing(base, page, &mut mask);
    match some {
        0 => Some(0),
        Groups::MAX if least(&mask) > out.len() => None,
        _ => write(Edges::of(&mut mask, some), page, out),
    }
}

/// Bytes that an encoding has at least: those of groups that have changed as a whole, and a pair. A
/// page that was written anew is known by it at once.
fn least(mask: &Mask) -> usize {
    let whole = mask.iter().filter(|word| **word == u64::MAX);
    whole.count() * GROUP + 2
}

/// The positions in a page at which the runs of given bytes begin and end, by turns. Groups without
/// such a position are passed over at once: reading the mask of an unchanged page word by word would
/// cost as much as making it.
///
/// The positions take the place of the mask: copying it would cost as much as finding them.
struct Edges<'a> {
    /// A set bit for each position.
    words: &'a Mask,
    /// The groups with a set bit, but those that were begun.
    groups: Groups,
    /// The group that was begun, and its bits that are left.
    group: usize,
    word: u64,
}

impl Edges<'_> {
    /// Given are the bytes of `mask`, and each single byte between two of them. `some` has the
    /// groups in which `mask` has a bit.
    fn of(mask: &mut Mask, some: Groups) -> Edges<'_> {
        let mut groups = 0;
        // The last group that was dealt with, and whether its last byte is given.
        let (mut last, mut last_given) = (0, 0);
        // A run may end at the beginning of a group without a bit.
        let mut left = some | some << 1;
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            // A group before this one that was passed over gives nothing.
            let before = if last + 1 == group { last_given } else { 0 };
            let word = mask[group];
            let after = mask.get(group + 1).map_or(0, |next| next << 63);
            let given = word | (word << 1 | before) & (word >> 1 | after);
            let edges = given ^ (given << 1 | before);
            mask[group] = edges;
            groups |= Groups::from(edges != 0) << group;
            (last, last_given) = (group, given >> 63);
        }
        Edges {
            words: mask,
            groups,
            group: 0,
            word: 0,
        }
    }
}

impl Iterator for Edges<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.word == 0 {
            self.group = self.groups.trailing_zeros() as usize;
            self.word = *self.words.get(self.group)?;
            self.groups &= self.groups - 1;
        }
        let bit = self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(self.group * GROUP + bit)
    }
}

/// Writes the encoding that gives the bytes of `page` between `edges`.
fn write(mut edges: Edges<'_>, page: &[u8; PAGE], out: &mut [u8]) -> Option<usize> {
    let (mut length, mut end) = (0, 0);
    while let Some(start) = edges.next() {
        let skipped = start - end;
        // The last run may end with the page.
        end = edges.next().unwrap_or(PAGE);
        let bytes = end - start;
        // Most runs are short: copying a fixed number of bytes is cheaper than copying exactly the
        // run. What is skipped takes one byte or two, and no processor predicts which, so there is
        // no branch for it: the second byte is overwritten where it does not count.
        if bytes <= SHORT {
            let from = page.get(start..start + SHORT);
            let to = out.get_mut(length..length + 3 + SHORT);
            if let (Some(from), Some([low, to @ ..])) = (from, to) {
                let two = usize::from(skipped >= 0x80);
                *low = skipped as u8 | (two as u8) << 7;
                to[0] = (skipped >> 7) as u8;
                to[two] = bytes as u8;
                to[two + 1..][..SHORT].copy_from_slice(from);
                length += 2 + two + bytes;
                continue;
            }
        }
        if size(skipped) + size(bytes) + bytes > out.len() - length {
            return None;
        }
        length += put(skipped, &mut out[length..]);
        length += put(bytes, &mut out[length..]);
        out[length..length + bytes].copy_from_slice(&page[start..end]);
        length += bytes;
    }
    Some(length)
}

const SHORT: usize = 16;

/// The number of bytes that an encoded length takes.
#[inline]
fn size(length: usize) -> usize {
    1 + usize::from(length >= 0x80)
}

#[inline]
fn put(length: usize, out: &mut [u8]) -> usize {
    out[0] = length as u8;
    if length < 0x80 {
        return 1;
    }
    out[0] |= 0x80;
    out[1] = (length >> 7) as u8;
    2
}

/// Why some bytes are no valid encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt {
    /// The position in the encoding at which the fault shows.
    pub at: usize,
    /// What was expected at that position.
    pub expected: &'static str,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: expected {}", self.at, self.expected)
    }
}

/// Changes `page` from the version that was encoded against to the version that was encoded. Writes
/// to nothing but `page`, whatever `encoding` holds.
///
/// # Errors
/// [`Corrupt`] for bytes that are no valid encoding. `page` may have been changed in part.
pub fn decode(encoding: &[u8], page: &mut [u8; PAGE]) -> Result<(), Corrupt> {
    let (mut at, mut to) = (0, 0);
    while at < encoding.len() {
        let pair = at;
        let refuse = |at, expected| Err(Corrupt { at, expected });
        let skipped = length(encoding, &mut at)?;
        if skipped == 0 && pair > 0 {
            return refuse(pair, "a pair that skips 1 byte or more");
        }
        if skipped > PAGE - to {
            return refuse(pair, "a pair that skips no byte past the page's end");
        }
        to += skipped;
        let run = at;
        let bytes = length(encoding, &mut at)?;
        if bytes == 0 {
            return refuse(run, "a pair that gives 1 byte or more");
        }
        if bytes > PAGE - to {
            return refuse(run, "a pair that gives no byte past the page's end");
        }
        if bytes > encoding.len() - at {
            return refuse(run, "a pair that gives no more bytes than follow");
        }
        page[to..to + bytes].copy_from_slice(&encoding[at..at + bytes]);
        (at, to) = (at + bytes, to + bytes);
    }
    Ok(())
}

/// Reads the length at position `at`, and moves `at` past it.
#[inline]
fn length(encoding: &[u8], at: &mut usize) -> Result<usize, Corrupt> {
    let cut_off = |at| Corrupt {
        at,
        expected: "a length, found the encoding's end",
    };
    let low = *encoding.get(*at).ok_or(cut_off(*at))?;
    *at += 1;
    if low < 0x80 {
        return Ok(usize::from(low));
    }
    let high = *encoding.get(*at).ok_or(cut_off(*at))?;
    if high >= 0x80 {
        return Err(Corrupt {
            at: *at - 1,
            expected: "a length of 2 bytes or less",
        });
    }
    *at += 1;
    Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
}

impl Level {
    /// Fills `mask` with the bytes in which two pages differ. Returns the groups that have such a
    /// byte. The machine has to have the instructions of the level.
    #[inline]
    fn differing(self, a: &[u8; PAGE], b: &[u8; PAGE], mask: &mut Mask) -> Groups {
        match self {
            // SAFETY: `best`, and in tests the list of levels, give only levels that the machine
            // has.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Level::Avx512 => unsafe { x86::differing_avx512(a, b, mask) },
            // SAFETY: as above.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Level::Avx2 => unsafe { x86::differing_avx2(a, b, mask) },
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Level::Sse2 => x86::differing_sse2(a, b, mask),
            Level::Words => differing_words(a, b, mask),
        }
    }
}

/// The loop for machines without vector instructions of their own below.
fn differing_words(a: &[u8; PAGE], b: &[u8; PAGE], mask: &mut Mask) -> Groups {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let mut some = 0;
    for (group, bits) in mask.iter_mut().enumerate() {
        *bits = 0;
        let at = group * GROUP..(group + 1) * GROUP;
        let (a, _) = a[at.clone()].as_chunks::<8>();
        let (b, _) = b[at].as_chunks::<8>();
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let x = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
            // Sets the highest bit of each byte that is not 0, and then puts those bits side by
            // side.
            let high = (((x & LOW) + LOW) | x) & !LOW;
            *bits |= ((high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
        }
        some |= Groups::from(*bits != 0) << group;
    }
    some
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    //! The comparison for each width of vector.

    use super::{Groups, Mask, GROUP, PAGE};
    use std::arch::x86_64::*;

    /// The groups of 64 bytes of two pages, in pairs.
    #[inline(always)]
    fn groups<'a>(
        a: &'a [u8; PAGE],
        b: &'a [u8; PAGE],
    ) -> impl Iterator<Item = (&'a [u8; GROUP], &'a [u8; GROUP])> {
        let (a, _) = a.as_chunks::<GROUP>();
        let (b, _) = b.as_chunks::<GROUP>();
        a.iter().zip(b)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn differing_avx512(a: &[u8; PAGE], b: &[u8; PAGE], mask: &mut Mask) -> Groups {
        let mut some = 0;
        for (group, (a, b)) in groups(a, b).enumerate() {
            // SAFETY: 64 bytes each, and the loads need no alignment.
            let (a, b) = unsafe {
                (
                    _mm512_loadu_si512(a.as_ptr().cast()),
                    _mm512_loadu_si512(b.as_ptr().cast()),
                )
            };
            let bits = _mm512_cmpneq_epi8_mask(a, b);
            mask[group] = bits;
            some |= Groups::from(bits != 0) << group;
        }
        some
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn differing_avx2(a: &[u8; PAGE], b: &[u8; PAGE], mask: &mut Mask) -> Groups {
        let mut some = 0;
        for (group, (a, b)) in groups(a, b).enumerate() {
            let half = |half: usize| {
                let (a, b) = (&a[32 * half..][..32], &b[32 * half..][..32]);
                // SAFETY: 32 bytes each, and the loads need no alignment.
                let (a, b) = unsafe {
                    (
                        _mm256_loadu_si256(a.as_ptr().cast()),
                        _mm256_loadu_si256(b.as_ptr().cast()),
                    )
                };
                u64::from(!_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b)) as u32)
            };
            let bits = half(0) | half(1) << 32;
            mask[group] = bits;
            some |= Groups::from(bits != 0) << group;
        }
        some
    }

    /// Every x86-64 machine has SSE2.
    pub(super) fn differing_sse2(a: &[u8; PAGE], b: &[u8; PAGE], mask: &mut Mask) -> Groups {
        let mut some = 0;
        for (group, (a, b)) in groups(a, b).enumerate() {
            let mut bits = 0;
            for quarter in 0..4 {
                let (a, b) = (&a[16 * quarter..][..16], &b[16 * quarter..][..16]);
                // SAFETY: 16 bytes each, the loads need no alignment, and every x86-64 machine has
                // SSE2.
                let equal = unsafe {
                    let a = _mm_loadu_si128(a.as_ptr().cast());
                    let b = _mm_loadu_si128(b.as_ptr().cast());
                    _mm_movemask_epi8(_mm_cmpeq_epi8(a, b))
                };
                bits |= u64::from(!equal as u16) << (16 * quarter);
            }
            mask[group] = bits;
            some |= Groups::from(bits != 0) << group;
        }
        some
    }
}

#[cfg(test)]
mod tests;
