//! The position in a list of parts that are being moved, and the parts that the next call gets.

use super::in_flight::LEAST;
use super::parts::IoPart;
use crate::sys::net::{Manner, PARTS_MAX};
use crate::units::PAGE_SIZE;

/// The most bytes of one system call. When the peer drains as fast as this side fills, a call goes
/// on as long as it has bytes, and a cancel has to wait for its end. Copying this many takes a
/// millisecond or two.
pub(super) const CALL_BYTES: usize = 4 << 20;
/// The most bytes that one wait is for. A thread that is woken by the first bytes of many goes to
/// sleep again a moment later, and each wake-up costs the sender as much as the copying of some
/// pages. Half a megabyte is a few wake-ups a millisecond on the fastest link.
pub(super) const WAIT_BYTES: u32 = 512 << 10;
/// The number of parts that are copied for a call that begins in the middle of a part.
pub(super) const CUT_PARTS: usize = 64;

/// The position in a list of parts.
pub(super) struct Cursor<'p, P> {
    /// The parts that are not moved entirely. The first one may be moved in part.
    parts: &'p [P],
    /// The number of bytes of the first part that are moved.
    offset: usize,
    /// The number of bytes that are moved.
    pub moved: u64,
    /// Whether each call gets one page. Set when a part could not be read or written, to find the
    /// page that fails.
    narrow: bool,
    /// For each part that is left, whether its memory is kept until the kernel has read it. Empty
    /// when no part's is.
    kept: &'p [bool],
    /// How many of the bytes are certain to come, because the peer has announced them.
    announced: usize,
}

impl<'p, P: IoPart> Cursor<'p, P> {
    pub fn new(parts: &'p [P]) -> Self {
        let mut cursor = Cursor {
            parts,
            offset: 0,
            moved: 0,
            narrow: false,
            kept: &[],
            announced: 0,
        };
        cursor.advance(0);
        cursor
    }

    /// The same for parts of which the peer has announced the first `bytes` bytes.
    pub fn announced(parts: &'p [P], bytes: usize) -> Self {
        let mut cursor = Cursor::new(parts);
        cursor.announced = bytes;
        cursor
    }

    /// How many bytes a wait is for: as many as have been announced, but at most [`WAIT_BYTES`].
    pub fn awaited(&self) -> u32 {
        (self.announced as u64).clamp(1, u64::from(WAIT_BYTES)) as u32
    }

    /// The same for a list in which the memory of some parts is `kept` until the kernel has read
    /// it. Parts that are kept and parts that are not never go in one call.
    pub fn keeping(parts: &'p [P], kept: &'p [bool]) -> Self {
        debug_assert_eq!(parts.len(), kept.len());
        let mut cursor = Cursor {
            parts,
            offset: 0,
            moved: 0,
            narrow: false,
            kept,
            announced: 0,
        };
        cursor.advance(0);
        cursor
    }

    /// Treats all parts as not kept from now on.
    pub fn keep_none(&mut self) {
        self.kept = &[];
    }

    /// The manner of the next call, which has `bytes` bytes.
    pub fn manner(&self, bytes: usize) -> Manner {
        match self.kept.first() {
            Some(true) if !self.narrow && bytes >= LEAST => Manner::InPlace,
            Some(false) if self.parts.len() > self.alike() => Manner::CopiedAndMore,
            _ => Manner::Copied,
        }
    }

    /// The number of leading parts that are kept or not kept like the first one.
    fn alike(&self) -> usize {
        match self.kept.first() {
            Some(first) => self.kept.iter().take_while(|kept| *kept == first).count(),
            None => self.parts.len(),
        }
    }

    pub fn is_done(&self) -> bool {
        self.parts.is_empty()
    }

    /// The number of all bytes, moved or not.
    pub fn total(&self) -> u64 {
        let left: u64 = self.parts.iter().map(|p| p.len() as u64).sum();
        self.moved + left - self.offset as u64
    }

    /// The address of the next byte.
    pub fn address(&self) -> usize {
        self.parts
            .first()
            .map_or(0, |p| p.address().wrapping_add(self.offset))
    }

    /// Moves on by `bytes`, and past parts that are done or empty.
    pub fn advance(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        self.announced = self.announced.saturating_sub(bytes);
        self.offset += bytes;
        while let [first, rest @ ..] = self.parts {
            if self.offset < first.len() {
                return;
            }
            self.offset -= first.len();
            self.parts = rest;
            self.kept = self.kept.get(1..).unwrap_or(&[]);
        }
        self.offset = 0;
    }

    /// Gives each call one page from now on. Returns false when that was so already.
    pub fn narrow(&mut self) -> bool {
        !std::mem::replace(&mut self.narrow, true)
    }

    /// The number of bytes that are not moved, but at most [`CALL_BYTES`].
    pub fn left(&self) -> usize {
        let mut left = 0usize;
        for part in self.parts {
            left = left.saturating_add(part.len());
            if left - self.offset >= CALL_BYTES {
                return CALL_BYTES;
            }
        }
        left - self.offset
    }

    /// The parts of the next call, with `most` bytes at most. `most` is at most [`CALL_BYTES`].
    /// When the call begins at the start of a part and need not end within one, the parts are
    /// returned as they are. Otherwise they are copied to `cut`, with the first and the last one
    /// cut.
    pub fn window<'s>(&self, most: usize, cut: &'s mut [P; CUT_PARTS]) -> &'s [P]
    where
        'p: 's,
    {
        let Some(first) = self.parts.first() else {
            return &[];
        };
        if self.narrow {
            let page = PAGE_SIZE as usize;
            cut[0] = first.cut(self.offset, most.min(page - self.address() % page));
            return &cut[..1];
        }
        let mut bytes = 0usize;
        if self.offset == 0 && first.len() <= CALL_BYTES && most >= CALL_BYTES {
            let alike = self.alike().min(PARTS_MAX);
            let fits = self.parts.iter().take(alike).take_while(|p| {
                bytes = bytes.saturating_add(p.len());
                bytes <= CALL_BYTES
            });
            return &self.parts[..fits.count()];
        }
        let mut offset = self.offset;
        let mut count = 0;
        for (to, part) in cut.iter_mut().zip(&self.parts[..self.alike()]) {
            *to = part.cut(offset, most - bytes);
            (bytes, offset, count) = (bytes + to.len(), 0, count + 1);
            if bytes == most {
                break;
            }
        }
        &cut[..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Part;
    use proptest::prelude::*;

    #[test]
    fn no_wait_is_for_more_bytes_than_are_announced_or_than_one_wait_may_take() {
        // SAFETY: the part is an address only, and is never passed to the kernel.
        let parts = [unsafe { Part::raw(4096 as *const u8, 4 << 20) }];
        assert_eq!(Cursor::new(&parts).awaited(), 1);
        let mut cursor = Cursor::announced(&parts, 2 << 20);
        assert_eq!(cursor.awaited(), WAIT_BYTES);
        cursor.advance((2 << 20) - 100);
        assert_eq!(cursor.awaited(), 100);
        cursor.advance(100);
        assert_eq!(cursor.awaited(), 1, "what follows is not announced");
        cursor.advance(32);
        assert_eq!(cursor.awaited(), 1);
    }

    proptest! {
        #[test]
        fn windows_cover_every_byte_once_and_in_order(
            lengths in prop::collection::vec(
                prop_oneof![Just(0usize), 1usize..5000, Just(CALL_BYTES), 1usize..(3 * CALL_BYTES)],
                0..200,
            ),
            shares in prop::collection::vec(1usize..=1000, 1..20),
            narrow_from in 0u64..(8 * CALL_BYTES as u64),
            limits in prop::collection::vec(
                prop_oneof![Just(CALL_BYTES), (CALL_BYTES / 64)..CALL_BYTES], 1..5,
            ),
        ) {
            // The parts are addresses only: no system call is made with them.
            let mut next = 4096usize;
            let mut parts = Vec::new();
            for length in &lengths {
                // SAFETY: never passed to the kernel.
                parts.push(unsafe { Part::raw(next as *const u8, *length) });
                next += length + 13; // apart, so that a step from one to another shows
            }
            let total: u64 = lengths.iter().map(|l| *l as u64).sum();
            // The address of the byte at `position` in the list.
            let place = |mut position: u64| {
                let mut address = 4096u64;
                for length in &lengths {
                    if position < *length as u64 {
                        return address + position;
                    }
                    position -= *length as u64;
                    address += *length as u64 + 13;
                }
                unreachable!()
            };
            let mut cursor = Cursor::new(&parts);
            for (share, most) in shares.iter().cycle().zip(limits.iter().cycle()) {
                prop_assert_eq!(cursor.total(), total);
                let left = (total - cursor.moved).min(CALL_BYTES as u64);
                prop_assert_eq!(cursor.left() as u64, left);
                if cursor.is_done() {
                    break;
                }
                // The cursor is narrow for a while only, because the test would take long by single
                // pages.
                cursor.narrow = (narrow_from..narrow_from + 100_000).contains(&cursor.moved);
                let mut cut = [Part::EMPTY; CUT_PARTS];
                let window = cursor.window(*most, &mut cut);
                let bytes: usize = window.iter().map(|p| p.len()).sum();
                prop_assert!((1..=*most).contains(&bytes), "{bytes}");
                prop_assert!(window.len() <= PARTS_MAX);
                let mut position = cursor.moved;
                for part in window.iter().filter(|p| !p.is_empty()) {
                    prop_assert_eq!(part.address() as u64, place(position));
                    position += part.len() as u64;
                    prop_assert_eq!(part.address() as u64 + part.len() as u64 - 1, place(position - 1));
                }
                cursor.advance((bytes * share / 1000).max(1));
            }
            prop_assert_eq!(cursor.moved, total);
        }
    }
}
