//! A bounded cache of pages as they were sent last. A later version of a page can be encoded
//! against the cached one.
//!
//! The invariant: what the cache holds for a page is, byte for byte, what the last record about the
//! page carries. Example of a violation: version 1 of a page is kept. Version 2 is sent straight
//! from guest memory, which the guest may be writing, so nobody has a copy of those bytes. Version
//! 3 is encoded against version 1, but the destination has version 2. So when a page is sent in any
//! other way than as a copy that is kept here, the sender calls [`SentPages::forget`]. The
//! destination also compares checksums, so a violation ends the migration and does not damage the
//! guest.
//!
//! The walk goes through memory in order, so a hot set larger than the cache passes by like a scan.
//! The usual rule is to evict the page that was used longest ago. Here that rule would evict each
//! page just before it comes back. Pages that are written only once pass by as well. So there are
//! three rules:
//! - A page that came by in this pass keeps its place. Then a part of a hot set that is too large
//!   stays.
//! - When all places of a page are taken, the page gets one only when it comes by again. Until then
//!   only its name is remembered, in a table of [`NAMES`] names for each place.
//! - Of the pages that may be evicted, the one that came by longest ago is evicted.
//!
//! A hash decides which [`WAYS`] neighbouring places a page can be in, so a lookup reads one cache
//! line. The lane that sends a page's stretch owns its cache; there is no lock.

use crate::bits::heap::Words;
use crate::error::{Error, Result};
use crate::memory::BlockId;
use crate::page::delta::PAGE;
use crate::units::Pages;

/// The number of places that one page can be in. Their keys fill one cache line.
const WAYS: usize = 8;
/// For each place, how many names are remembered of pages that found no place.
const NAMES: usize = 4;
/// Bytes for each page beside its contents: its key, its use, and names of others.
const BESIDE: u64 = 16 + 4 * NAMES as u64;
/// While delta is off, one set in this many is in use.
const SAMPLE: usize = 64;

/// A page, aligned to a cache line.
#[repr(align(64))]
struct Page([u8; PAGE]);

/// The name of a page: never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    /// The bits that number the pages of the largest block.
    const PAGE_BITS: u32 = 40;

    /// The key of a page. Block numbers are never used again, so a key never names another page.
    /// `None` after 16 million blocks: the pages of later blocks are not kept.
    pub(super) fn new(block: BlockId, page: Pages) -> Option<Key> {
        let fits = block.0 < (1 << (u64::BITS - Key::PAGE_BITS)) - 1;
        let (block, page) = (u64::from(block.0), page.0 & ((1 << Key::PAGE_BITS) - 1));
        fits.then_some(Key((block << Key::PAGE_BITS | page) + 1))
    }

    /// The hash of the key. Hashes of neighbouring pages lie far apart.
    fn hash(self) -> u64 {
        let mut hash = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
        hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^ hash >> 32
    }
}

/// For a place: the pass in which its page came by last, and where the page's bytes are. Both fit
/// into one word, so that a fresh table is all zero and need not be touched.
#[derive(Clone, Copy)]
struct Use {
    pass: u32,
    /// The number of the page in `pages`, from 1; 0 when there is none yet. A place keeps its
    /// number.
    slot: u32,
}

impl Use {
    fn of(word: u64) -> Use {
        Use {
            pass: (word >> 32) as u32,
            slot: word as u32,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.pass) << 32 | u64::from(self.slot)
    }
}

/// See the file's description.
pub(super) struct SentPages {
    sets: usize,
    ways: usize,
    /// By place: the page's key, 0 for none.
    keys: Words,
    /// By place: its [`Use`].
    uses: Words,
    /// Halves of the hashes of pages that found no place, two in a word.
    names: Words,
    /// The pages. The vector grows to the largest number ever kept at once, at most one for each
    /// place.
    pages: Vec<Page>,
    /// Places that hold a page.
    held: usize,
}

impl std::fmt::Debug for SentPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let places = self.sets * self.ways;
        write!(f, "SentPages({} of {places})", self.held)
    }
}

impl SentPages {
    /// A cache of as many pages as fit into `bytes`, at least one. Its memory is touched only when
    /// pages come.
    ///
    /// # Errors
    /// [`crate::error::Kind::NoMemory`].
    pub(super) fn new(bytes: u64) -> Result<Self> {
        let places = (bytes / (PAGE as u64 + BESIDE)).clamp(1, u64::from(u32::MAX >> 1)) as usize;
        let ways = places.min(WAYS);
        let sets = places / ways;
        let places = sets * ways;
        let what = "the cache of sent pages";
        let mut pages: Vec<Page> = Vec::new();
        pages
            .try_reserve_exact(places)
            .map_err(|_| Error::no_memory(what, bytes))?;
        Ok(SentPages {
            sets,
            ways,
            keys: Words::zeroed(places, what)?,
            uses: Words::zeroed(places, what)?,
            names: Words::zeroed(places * NAMES / 2, what)?,
            pages,
            held: 0,
        })
    }

    /// The most bytes that the cache can take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        let beside = [&self.keys, &self.uses, &self.names].map(Words::heap_bytes);
        let beside: usize = beside.iter().sum();
        (self.pages.capacity() * PAGE + beside) as u64
    }

    fn set(&self, key: Key) -> usize {
        ((u128::from(key.hash()) * self.sets as u128) >> 64) as usize
    }

    /// Whether the page is one of the sample that stays in use while delta is off.
    pub(super) fn is_sample(&self, key: Key) -> bool {
        self.set(key).is_multiple_of(SAMPLE)
    }

    fn place(&self, key: Key) -> Option<usize> {
        let first = self.set(key) * self.ways;
        let keys = &self.keys[first..first + self.ways];
        keys.iter().position(|k| *k == key.0).map(|way| first + way)
    }

    /// The page as it was sent last, when it is in the cache. The page came back in `pass`.
    pub(super) fn find(&mut self, key: Key, pass: u32) -> Option<Found<'_>> {
        let place = self.place(key)?;
        let slot = Use::of(self.uses[place]).slot;
        let page = self.pages.get_mut((slot as usize).checked_sub(1)?)?;
        self.uses[place] = Use { pass, slot }.word();
        Some(Found {
            page: &mut page.0,
            of: &mut self.uses[place],
        })
    }

    /// Remembers the name of a page that found no place. Returns whether the name was known
    /// already.
    fn remember(&mut self, key: Key) -> bool {
        let hash = key.hash();
        let spread = u128::from(hash.rotate_left(32)) * (2 * self.names.len()) as u128;
        let at = (spread >> 64) as usize;
        let (word, shift) = (&mut self.names[at / 2], 32 * (at as u32 % 2));
        let name = hash & u64::from(u32::MAX) | 1;
        let known = *word >> shift & u64::from(u32::MAX) == name;
        *word = *word & !(u64::from(u32::MAX) << shift) | name << shift;
        known
    }

    /// Keeps `page`, which is not in the cache and is sent with these bytes in `pass`, when it gets
    /// a place.
    pub(super) fn keep(&mut self, key: Key, pass: u32, page: &[u8; PAGE]) {
        debug_assert!(self.place(key).is_none());
        let first = self.set(key) * self.ways;
        let places = first..first + self.ways;
        let empty = places.clone().find(|place| self.keys[*place] == 0);
        let place = match empty {
            Some(place) => place,
            None if !self.remember(key) => return,
            None => {
                let uses = places.map(|place| (Use::of(self.uses[place]).pass, place));
                match uses.min() {
                    Some((last, place)) if last < pass => place,
                    _ => return,
                }
            }
        };
        let mut slot = Use::of(self.uses[place]).slot;
        match self.pages.get_mut((slot as usize).wrapping_sub(1)) {
            Some(there) => there.0 = *page,
            None => {
                // There is room: one page for each place was reserved.
                self.pages.push(Page(*page));
                slot = self.pages.len() as u32;
            }
        }
        self.held += usize::from(self.keys[place] == 0);
        self.keys[place] = key.0;
        self.uses[place] = Use { pass, slot }.word();
    }

    /// Forgets a page that is sent in another way, because the destination's version will differ
    /// from the cached one.
    pub(super) fn forget(&mut self, key: Key) {
        if self.held == 0 {
            return;
        }
        if let Some(place) = self.place(key) {
            self.keys[place] = 0;
            self.held -= 1;
        }
    }

    /// How many pages are in the cache.
    pub(super) fn held(&self) -> usize {
        self.held
    }
}

/// A page that is in the cache.
pub(super) struct Found<'a> {
    page: &'a mut [u8; PAGE],
    of: &'a mut u64,
}

impl Found<'_> {
    /// The page as it was sent last.
    pub(super) fn page(&self) -> &[u8; PAGE] {
        self.page
    }

    /// Replaces the cached version by `page`, which is sent now.
    pub(super) fn renew(self, page: &[u8; PAGE]) {
        *self.page = *page;
    }

    /// As [`Found::renew`], for a cached version that did not help: another page may take the
    /// place.
    pub(super) fn renew_in_vain(self, page: &[u8; PAGE]) {
        *self.page = *page;
        let slot = Use::of(*self.of).slot;
        *self.of = Use { pass: 0, slot }.word();
    }
}

#[cfg(test)]
mod tests;
