//! The kernels in plain Rust, for any architecture. The vectorised kernels use them for the rest at
//! an end. Only the tables of the parent call them.

use super::super::GROUP_WORDS;
use super::table::{or_word, Met};

#[inline(always)]
pub fn count(words: &[u64]) -> u64 {
    words.iter().map(|w| u64::from(w.count_ones())).sum()
}

#[inline(always)]
pub fn find_not(words: &[u64], fill: u64) -> Option<usize> {
    // By whole lines without a branch, which the compiler turns into vectors, and then by words.
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

/// ORs a group. Returns whether the source had a bit. Counts the bits that became set, and those
/// that were set before. The loops have no branch, so that the compiler can use the architecture's
/// vectors.
#[inline(always)]
fn or_group(
    dst: &mut [u64; GROUP_WORDS],
    src: &[u64; GROUP_WORDS],
    sum: &mut u64,
    again: &mut u64,
) -> bool {
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
    if new != *src {
        *again += count(src) - count(&new);
    }
    true
}

/// `dst |= src`, of the same length. Returns how many bits became set.
#[inline(always)]
pub fn or(dst: &mut [u64], src: &[u64]) -> u64 {
    let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
    let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
    let mut new = 0;
    for (d, s) in to.iter_mut().zip(from) {
        or_group(d, s, &mut new, &mut 0);
    }
    for (d, &s) in to_rest.iter_mut().zip(from_rest) {
        new += or_word(d, s);
    }
    new
}

/// [`or`] on at most one span that begins at a group. `met` gets a bit for each group whose source
/// is not zero.
#[inline(always)]
pub fn or_span(dst: &mut [u64], src: &[u64], met: &mut Met) -> u64 {
    or_span_shifted_by(dst, src, met, |s| s)
}

/// [`or_span`] of the source shifted up by `shift` (1 to 63). `previous` is the word before
/// `src[0]`.
#[inline(always)]
pub fn or_span_shifted(
    dst: &mut [u64],
    src: &[u64],
    mut previous: u64,
    shift: u32,
    met: &mut Met,
) -> u64 {
    or_span_shifted_by(dst, src, met, |s| {
        let value = s << shift | previous >> (64 - shift);
        previous = s;
        value
    })
}

#[inline(always)]
fn or_span_shifted_by(
    dst: &mut [u64],
    src: &[u64],
    met: &mut Met,
    mut value: impl FnMut(u64) -> u64,
) -> u64 {
    let (to, to_rest) = dst.as_chunks_mut::<GROUP_WORDS>();
    let (from, from_rest) = src.as_chunks::<GROUP_WORDS>();
    let mut new = 0;
    let mut mask = 0;
    for (g, (d, s)) in to.iter_mut().zip(from).enumerate() {
        let shifted = s.map(&mut value);
        mask |= u64::from(or_group(d, &shifted, &mut new, &mut met.again)) << g;
    }
    for (d, &s) in to_rest.iter_mut().zip(from_rest) {
        let v = value(s);
        mask |= u64::from(v != 0) << to.len();
        let set = or_word(d, v);
        new += set;
        met.again += u64::from(v.count_ones()) - set;
    }
    met.groups |= mask;
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
