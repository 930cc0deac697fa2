//! The bits of one vhost log: read by a harvest, and cleared before the pages that they stand for
//! are handed out.
//!
//! Back ends set bits at any time, so a bit is cleared by an atomic operation and by no other. Such
//! an operation takes as long as reading a hundred words. When one page in 100 is dirty, every
//! second word has a bit, and a harvest that cleared all of them would take ten times as long as one
//! that only reads. So a harvest reads, and the bits stay set until a take comes to their chunk, as
//! in KVM's manual-protect mode. The last harvest, with the guest paused, clears nothing either.
//!
//! **Which bits may be cleared** is what `seen` says: those that a harvest has reported. Example of
//! the loss without it: a harvest finds page 5; a back end writes page 6 and sets its bit, in the
//! same word; a take of page 5 clears the word. Page 6 was reported by no harvest, and its bit is
//! gone.
//!
//! **Reading.** A part of the log is copied first, and the copy is worked on. A bit that is set
//! during the copying may be missed: it was set after the harvest began, stays set, and is the next
//! harvest's.

use super::memory::LogMemory;
use crate::bits::heap::Words;
use crate::bits::words;
use crate::dirty::{Origin, Sink};
use crate::error::Result;
use crate::memory::Map;
use crate::sys::mem;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::GuestAddress;

/// Words in one page of the log. They stand for 128 MiB of guest memory.
const PAGE_WORDS: usize = 512;
/// Words that are copied together: as much as stays in a first-level cache while it is merged.
const PIECE_WORDS: usize = 4 * PAGE_WORDS;
/// Words in a cache line.
const LINE: usize = 8;

/// The memory of a log, and which of its bits a harvest has reported.
pub(super) struct LogBits {
    memory: LogMemory,
    /// `None` where each harvest clears what it reports.
    seen: Option<Seen>,
}

/// Bits that harvests have reported and that are set still. Plain words and no bitmap with a
/// summary, so that a harvest of a log with many bits copies right into them.
struct Seen {
    words: Words,
    /// How many bits are set.
    count: u64,
}

impl LogBits {
    /// The bits of `memory`. With `stay` they stay set in a harvest. Where there is no memory for
    /// the account of them, harvests clear them.
    pub fn new(memory: LogMemory, stay: bool) -> LogBits {
        let words = || Words::zeroed(memory.0.words().len(), "reported bits of a vhost log");
        let seen = stay.then(words).and_then(Result::ok);
        LogBits {
            seen: seen.map(|words| Seen { words, count: 0 }),
            memory,
        }
    }

    pub fn memory(&self) -> &LogMemory {
        &self.memory
    }

    pub fn into_memory(self) -> LogMemory {
        self.memory
    }

    /// Forgets what was reported: every bit that is set is reported by the next harvest as new.
    pub fn forget_seen(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.clear(0..seen.words.len());
        }
    }

    /// Bytes beside the log's own.
    pub fn heap_bytes(&self) -> u64 {
        self.seen
            .as_ref()
            .map_or(0, |seen| seen.words.heap_bytes() as u64)
    }

    /// Reports all bits to `sink`. Bits of pages that are RAM in none of `maps` are cleared and not
    /// reported; returns how many there were.
    pub fn harvest(&mut self, maps: &[&Map], sink: &mut dyn Sink) -> Result<u64> {
        let LogBits { memory, seen } = self;
        let Some(seen) = seen else {
            return self.take_all(maps, sink);
        };
        let mut room = [0u64; PIECE_WORDS];
        let (mut strays, mut bits) = (0, 0);
        // All bits that were seen before are among those that are found now.
        let mut known = seen.count;
        // A piece of the log is mostly like the one before it.
        let mut any = false;
        let done = each_piece(memory, |at| {
            let log = &memory.0.words()[at.clone()];
            let seen = &mut seen.words[at.clone()];
            if any {
                memory.0.read(at.start, seen);
                any = !words::is_zero(seen);
            } else {
                // Where no bit is found, nothing is written.
                let copy = &mut room[..at.len()];
                memory.0.read(at.start, copy);
                any = !words::is_zero(copy);
                if any {
                    seen.copy_from_slice(copy);
                }
            }
            if any {
                // The copying used no order. A page is read after this at the earliest, and so with
                // the write in it that its bit was set for.
                std::sync::atomic::fence(Ordering::Acquire);
                strays += remove_strays(seen, Some(log), at.start, maps);
                let (origin, pages) = place(&at);
                let found = sink.lasting_bitmap(origin, seen, pages, Pages(known));
                known = known.saturating_sub(found);
                bits += found;
            }
        });
        // After an error the pieces that were not reached have what is left of the known bits.
        seen.count = bits + if done.is_err() { known } else { 0 };
        done.map(|()| strays)
    }

    /// [`LogBits::harvest`] that clears all bits.
    pub fn take_all(&mut self, maps: &[&Map], sink: &mut dyn Sink) -> Result<u64> {
        let mut strays = 0;
        let LogBits { memory, seen } = self;
        each_piece(memory, |at| {
            strays += take(memory, seen.as_mut(), at, maps, sink);
        })?;
        Ok(strays)
    }

    /// Reports and clears the bits of these pages, by whole words. Returns how many were strays.
    /// The end of the backed part is not looked for: the kernel would go through all of it.
    pub fn take_pages(
        &mut self,
        pages: Range<u64>,
        maps: &[&Map],
        sink: &mut dyn Sink,
    ) -> Result<u64> {
        let mut at = (pages.start / 64) as usize;
        let end = (pages.end.div_ceil(64) as usize).min(self.memory.0.words().len());
        let mut strays = 0;
        while at < end {
            let Some(data) = mem::seek_data(self.memory.fd(), at as u64 * 8)? else {
                break;
            };
            at = at.max((data / 8) as usize);
            let stop = (at + 1).next_multiple_of(PAGE_WORDS).min(end);
            if at < stop {
                strays += take(&self.memory, self.seen.as_mut(), at..stop, maps, sink);
            }
            at = stop;
        }
        Ok(strays)
    }

    /// Clears the bits of these pages that a harvest has reported, by whole words. Returns how many
    /// it cleared.
    pub fn clear_seen(&mut self, pages: Range<u64>) -> u64 {
        let Some(seen) = self.seen.as_mut().filter(|seen| seen.count > 0) else {
            return 0;
        };
        let log = self.memory.0.words();
        let end = (pages.end.div_ceil(64) as usize).min(log.len());
        let (mut at, mut bits) = ((pages.start / 64) as usize, 0);
        while let Some(first) = words::find_nonzero(&seen.words[..end], at) {
            let stop = (first + 1).next_multiple_of(PAGE_WORDS).min(end);
            clear(&log[first..stop], &seen.words[first..stop]);
            bits += seen.clear(first..stop);
            at = stop;
        }
        bits
    }
}

impl Seen {
    /// Forgets the bits of some words. Returns how many there were.
    fn clear(&mut self, at: Range<usize>) -> u64 {
        let words = &mut self.words[at];
        let bits = words::count(words);
        if bits > 0 {
            words.fill(0);
        }
        self.count = self.count.saturating_sub(bits);
        bits
    }
}

/// Calls `f` with the words of each piece of a log that may have a bit.
fn each_piece(memory: &LogMemory, mut f: impl FnMut(Range<usize>)) -> Result<()> {
    let mut from = 0;
    // Pages of the log that were never written have no memory, and need not be read. A bit set in
    // one of them from now on belongs to the next harvest.
    while let Some(data) = mem::seek_data(memory.fd(), from)? {
        let end = mem::seek_hole(memory.fd(), data)?;
        let end = end.unwrap_or(u64::MAX).min(memory.length());
        let words = (data / 8) as usize..(end / 8) as usize;
        for at in words.clone().step_by(PIECE_WORDS) {
            f(at..(at + PIECE_WORDS).min(words.end));
        }
        if end <= from {
            break;
        }
        from = end;
    }
    Ok(())
}

/// The pages that the bits of some words of a log stand for.
fn place(at: &Range<usize>) -> (Origin, Pages) {
    let first = GuestAddress(at.start as u64 * 64 * PAGE_SIZE);
    (Origin::Guest(first), Pages(at.len() as u64 * 64))
}

/// Reports and clears the bits of some words of a log, at most [`PIECE_WORDS`]. Returns how many
/// were strays.
fn take(
    memory: &LogMemory,
    seen: Option<&mut Seen>,
    at: Range<usize>,
    maps: &[&Map],
    sink: &mut dyn Sink,
) -> u64 {
    let mut room = [0u64; PIECE_WORDS];
    let copy = &mut room[..at.len()];
    memory.0.read(at.start, copy);
    if words::is_zero(copy) {
        return 0;
    }
    // The copying has brought these words into the cache, so none of the exchanges waits for
    // memory, which it would do one after the other.
    let log = &memory.0.words()[at.clone()];
    for (copy, log) in copy.iter_mut().zip(log).filter(|(copy, _)| **copy != 0) {
        // Acquires the write that the bit was set for. Releases, so that a back end that sees the
        // bit clear and sets it again comes after this harvest.
        *copy = log.swap(0, Ordering::AcqRel);
    }
    if let Some(seen) = seen {
        seen.clear(at.clone());
    }
    let strays = remove_strays(copy, None, at.start, maps);
    let (origin, pages) = place(&at);
    sink.bitmap(origin, copy, pages);
    strays
}

/// Clears the bits of `seen` in the log.
fn clear(log: &[AtomicU64], seen: &[u64]) {
    // An atomic operation lets no later one begin before its own line has come. So all lines are
    // asked for first.
    for (log, seen) in log.chunks(LINE).zip(seen.chunks(LINE)) {
        if seen.iter().any(|word| *word != 0) {
            crate::sys::shm::prefetch_to_write(&log[0]);
        }
    }
    for (log, seen) in log.iter().zip(seen).filter(|(_, seen)| **seen != 0) {
        // Acquires the writes of a bit that was set once more since it was reported: its page is
        // read after this. Releases, so that a back end that sees the bit clear and sets it again
        // comes after the harvest that reported it.
        log.fetch_and(!seen, Ordering::AcqRel);
    }
}

/// Removes the bits of pages that are RAM in none of `maps` from `copy`, and from the log that it is
/// a copy of if they are `set` there still. Returns how many there were. `first` is the first
/// copied word of the log.
fn remove_strays(copy: &mut [u64], set: Option<&[AtomicU64]>, first: usize, maps: &[&Map]) -> u64 {
    let from = GuestAddress(first as u64 * 64 * PAGE_SIZE);
    let pages = Pages(copy.len() as u64 * 64);
    let ram_in = |map: &Map| {
        let parts = map.block_parts(from, pages);
        parts.map(|part| part.pages.0).sum::<u64>()
    };
    if maps.iter().any(|map| ram_in(map) == pages.0) {
        return 0;
    }
    let mut room = [0u64; PIECE_WORDS];
    let strays = &mut room[..copy.len()];
    strays.copy_from_slice(copy);
    for part in maps.iter().flat_map(|map| map.block_parts(from, pages)) {
        words::clear_range(strays, part.before.index(), part.pages.index());
    }
    for (i, (stray, copy)) in strays.iter().zip(copy).enumerate() {
        if *stray != 0 {
            *copy &= !stray;
            if let Some(log) = set {
                log[i].fetch_and(!stray, Ordering::AcqRel);
            }
        }
    }
    words::count(strays)
}
