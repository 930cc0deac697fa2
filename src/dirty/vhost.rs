//! What vhost and vhost-user back ends write: a log in shared memory that all of them set
//! bits in, one bit for each 4 KiB of guest physical memory from address 0 on.
//!
//! brant makes the memory and the VMM brings it to its back ends ([`VhostBackEnds`]): the
//! kernel's vhost takes the address of the mapping, vhost-user the descriptor. A back end
//! writes guest memory first and then sets the bit by an atomic or; a harvest takes each word
//! that is not zero by an atomic exchange. The exchange acquires what the or released, so a
//! page whose bit was taken is read with what was written to it.
//!
//! **Growing.** When guest memory comes to reach further than the log: a longer one is made,
//! all back ends are moved to it, and only then the old one is read a last time. Until
//! the last of them has moved, bits arrive in the old one. Moving reads a log and takes memory for
//! one, both as long as guest memory is. So the new one is an eighth longer than the old one at
//! least, and memory that is plugged in small pieces moves back ends now and then, not each time.
//!
//! **Other changes of the map** cost what they change: of a slot that goes, the bits are read; for
//! one that comes, memory is taken.
//!
//! A log's memory is backed where RAM is; the rest of it, which holes in guest memory
//! stand for, takes none until somebody writes there.

use super::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::bits::words;
use crate::error::{Error, Kind, Result};
use crate::memory::{Map, Slot};
use crate::sys::{mem, shm::Shm};
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The highest guest address that a log can reach: 2^48, a log of 8 GiB (of address space).
pub const REACH_MAX: u64 = 1 << 48;
/// Words of one page of the log; they stand for 128 MiB.
const PAGE_WORDS: usize = 512;
/// Words that are looked at together: a cache line.
const LINE: usize = 8;
/// Logs that back ends may still write to because the VMM could not move or stop them all.
const REFUSED_MAX: usize = 4;

/// The memory of a log, for the VMM to hand to back ends.
#[derive(Debug)]
pub struct LogMemory(Shm);

impl LogMemory {
    fn new(reach: u64) -> Result<LogMemory> {
        if reach > REACH_MAX {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "a vhost log reaches to guest address {REACH_MAX:#x} at most, and {reach:#x} \
                     was asked for"
                ),
            ));
        }
        let length = log_bytes(reach).max(PAGE_SIZE);
        Ok(LogMemory(Shm::new(c"brant-vhost-log", length)?))
    }

    /// A memfd of exactly [`LogMemory::length`] bytes, sealed against shrinking and growing: what
    /// vhost-user's `SET_LOG_BASE` carries, with offset 0. A duplicate of it may be kept.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// Address of the mapping in this process: what the kernel's `VHOST_SET_LOG_BASE` takes.
    pub fn address(&self) -> *mut u8 {
        self.0.address()
    }

    /// Bytes; a multiple of 4096.
    pub fn length(&self) -> u64 {
        self.0.length()
    }

    /// Takes memory for the bits of these pages.
    fn reserve(&self, pages: &Range<u64>) -> Result<()> {
        self.0.reserve(pages.start / 8, pages.end.div_ceil(8))
    }

    /// Takes memory for the bits of all that a map has RAM at.
    fn reserve_all(&self, map: &Map) -> Result<()> {
        // Slots come by address: those that touch are one call.
        let mut joined: Option<Range<u64>> = None;
        for slot in map.slots() {
            let next = pages_of(slot);
            match &mut joined {
                Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
                last => {
                    if let Some(done) = last.replace(next) {
                        self.reserve(&done)?;
                    }
                }
            }
        }
        joined.map_or(Ok(()), |last| self.reserve(&last))
    }
}

/// Bytes of a log that reaches to a guest address, whole pages.
fn log_bytes(reach: u64) -> u64 {
    reach
        .div_ceil(PAGE_SIZE)
        .div_ceil(8)
        .next_multiple_of(PAGE_SIZE)
}

/// The VMM's back ends, all that use one log.
///
/// Called on whichever thread starts or stops tracking or changes the memory map, under the
/// tracker's lock: nothing of brant's may be called in here but marks.
pub trait VhostBackEnds: Send + Sync {
    /// Have every back end log to this memory from now on; return when each does. Called when
    /// tracking starts, and again, with a longer one, when guest memory has come to reach
    /// further: then the one before is gone after the return. An error from the first
    /// call refuses the start, and `log_off` follows; from a later one it refuses the change
    /// of the map, and back ends may go on in either.
    fn log_on(&self, memory: &LogMemory) -> Result<()>;

    /// Have every back end stop logging; return when none writes to a log of brant's any more.
    /// Also called after a first `log_on` that failed. After an error the memory of the log stays
    /// mapped, also when the log itself is dropped.
    fn log_off(&self) -> Result<()>;
}

/// See the file's description.
///
/// One log for all back ends of a guest; here is one of them, in this process.
///
/// ```
/// use brant::dirty::tracker::{Clearing, StartWith, Tracker};
/// use brant::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
/// use brant::dirty::When;
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::units::Pages;
/// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use brant::Result;
/// use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
/// use std::sync::Arc;
///
/// /// A back end, as it knows the log: where its bits are, or null.
/// #[derive(Default)]
/// struct BackEnd(AtomicPtr<AtomicU8>);
///
/// impl BackEnd {
///     /// It has written a page of the guest.
///     fn wrote(&self, page: usize) {
///         let log = self.0.load(Ordering::Acquire);
///         if !log.is_null() {
///             // SAFETY: the log reaches to the end of RAM, and is there until `log_off` returns.
///             unsafe { &*log.add(page / 8) }.fetch_or(1 << (page % 8), Ordering::Release);
///         }
///     }
/// }
///
/// impl VhostBackEnds for BackEnd {
///     /// For a back end in another process: SET_LOG_BASE with `memory.fd()`.
///     fn log_on(&self, memory: &LogMemory) -> Result<()> {
///         self.0.store(memory.address().cast(), Ordering::Release);
///         Ok(())
///     }
///     fn log_off(&self) -> Result<()> {
///         self.0.store(std::ptr::null_mut(), Ordering::Release);
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
/// let back_end = Arc::new(BackEnd::default());
/// let back_ends: Arc<dyn VhostBackEnds> = Arc::clone(&back_end) as _;
/// tracker.add_log(Box::new(VhostLog::new(back_ends, 0)?))?;
///
/// let consumer = tracker.consumer();
/// consumer.start(StartWith::Nothing)?;
/// back_end.wrote(7);
/// assert_eq!(consumer.sync(When::Running)?.found, Pages(1));
/// # Ok(())
/// # }
/// ```
pub struct VhostLog {
    back_ends: Arc<dyn VhostBackEnds>,
    reach: u64,
    on: bool,
    current: Option<LogMemory>,
    /// Logs that some back end may write to though not all do: read as long as logging is on.
    refused: Vec<LogMemory>,
    strays: u64,
}

/// The guest's pages that a slot shows.
fn pages_of(slot: &Slot) -> Range<u64> {
    let first = slot.guest_address.0 / PAGE_SIZE;
    first..first + slot.pages.0
}

impl VhostLog {
    /// A log for `back_ends` that reaches to guest address `reach` at least, exclusive; 0 if to
    /// the end of RAM is enough (used rings are in RAM as a rule).
    pub fn new(back_ends: Arc<dyn VhostBackEnds>, reach: u64) -> Result<Self> {
        if reach > REACH_MAX {
            return Err(Error::new(
                Kind::Invalid,
                format!("a vhost log reaches to {REACH_MAX:#x} at most, not to {reach:#x}"),
            ));
        }
        Ok(VhostLog {
            back_ends,
            reach,
            on: false,
            current: None,
            refused: Vec::new(),
            strays: 0,
        })
    }

    fn reach(&self, map: &Map) -> u64 {
        self.reach.max(map.guest_end())
    }

    /// A log that reaches as far as `map`: one that was refused before, or a new one.
    fn memory_for(&mut self, map: &Map) -> Result<LogMemory> {
        let reach = self.reach(map);
        let fits = |m: &LogMemory| m.length() >= log_bytes(reach);
        if let Some(at) = self.refused.iter().position(fits) {
            self.refused[at].reserve_all(map)?;
            return Ok(self.refused.swap_remove(at));
        }
        if self.refused.len() >= REFUSED_MAX {
            return Err(Error::new(
                Kind::Vmm,
                format!(
                    "{REFUSED_MAX} vhost logs were refused already, and back ends may be writing \
                     to each of them"
                ),
            ));
        }
        let memory = match self.current.as_ref().map(|before| roomy(before, reach)) {
            // A limit on files, or on memory, may leave no room for more than is needed.
            Some(roomy) => LogMemory::new(roomy).or_else(|_| LogMemory::new(reach))?,
            None => LogMemory::new(reach)?,
        };
        memory.reserve_all(map)?;
        Ok(memory)
    }

    /// Reads all logs that back ends may write to. `maps`: those whose RAM is no stray.
    fn drain_all(&mut self, maps: &[&Map], sink: &mut dyn Sink) -> Result<()> {
        for memory in self.current.iter().chain(&self.refused) {
            self.strays += drain(memory, maps, sink)?;
        }
        Ok(())
    }

    /// Reads what all logs have of a slot.
    fn drain_slot(&mut self, slot: &Slot, maps: &[&Map], sink: &mut dyn Sink) -> Result<()> {
        for memory in self.current.iter().chain(&self.refused) {
            self.strays += drain_pages(memory, pages_of(slot), maps, sink)?;
        }
        Ok(())
    }

    /// Moves all back ends to a longer log.
    fn grow(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        let memory = self.memory_for(new)?;
        if let Err(e) = self.back_ends.log_on(&memory) {
            // Some may have moved.
            self.refused.push(memory);
            return Err(e.context("moving vhost back ends to a longer log"));
        }
        // Only now has the last of them set its last bit in the one before.
        match self.current.replace(memory) {
            None => {}
            Some(before) => match drain(&before, &[old, new], sink) {
                Ok(strays) => self.strays += strays,
                Err(_) => self.covered(old, &mut |extent| extent.everything(sink)),
            },
        }
        Ok(())
    }
}

/// How far a log reaches that follows `before` and reaches to `reach` at least: an eighth further,
/// so that the next slots find room in it.
fn roomy(before: &LogMemory, reach: u64) -> u64 {
    let length = before.length() + before.length() / 8;
    let further = length.saturating_mul(8 * PAGE_SIZE).min(REACH_MAX);
    reach.max(further)
}

/// Takes what a log holds into `sink`; returns how many pages were RAM in none of `maps`.
fn drain(memory: &LogMemory, maps: &[&Map], sink: &mut dyn Sink) -> Result<u64> {
    let all = memory.0.words();
    let mut strays = 0;
    let mut from = 0;
    // What has never been written has no memory, and need not be read. A bit that is set
    // now, where none was, belongs to the next harvest.
    while let Some(data) = mem::seek_data(memory.fd(), from)? {
        let end = mem::seek_hole(memory.fd(), data)?.unwrap_or(memory.length());
        let words = (data / 8) as usize..((end / 8) as usize).min(all.len());
        for (i, page) in all[words.clone()].chunks(PAGE_WORDS).enumerate() {
            strays += drain_page(page, words.start + i * PAGE_WORDS, maps, sink);
        }
        if end <= from {
            break;
        }
        from = end;
    }
    Ok(strays)
}

/// The same of the words that the bits of these pages are in. The end of what has memory is not
/// looked for: the kernel goes through all of it for that.
fn drain_pages(
    memory: &LogMemory,
    pages: Range<u64>,
    maps: &[&Map],
    sink: &mut dyn Sink,
) -> Result<u64> {
    let all = memory.0.words();
    let mut at = (pages.start / 64) as usize;
    let end = (pages.end.div_ceil(64) as usize).min(all.len());
    let mut strays = 0;
    while at < end {
        let Some(data) = mem::seek_data(memory.fd(), at as u64 * 8)? else {
            break;
        };
        at = at.max((data / 8) as usize);
        let stop = (at + 1).next_multiple_of(PAGE_WORDS).min(end);
        if at < stop {
            strays += drain_page(&all[at..stop], at, maps, sink);
        }
        at = stop;
    }
    Ok(strays)
}

/// The words of a part of the log that begins at its word `at`.
fn drain_page(page: &[AtomicU64], at: usize, maps: &[&Map], sink: &mut dyn Sink) -> u64 {
    let mut taken = [0u64; PAGE_WORDS];
    let mut range: Option<Range<usize>> = None;
    for (line, words) in page.chunks(LINE).enumerate() {
        // Most of them are zero: one look at eight. It needs no order, because it only
        // decides whether to look again; a bit that it misses was set after the harvest began.
        let any = words
            .iter()
            .fold(0, |any, w| any | w.load(Ordering::Relaxed));
        if any == 0 {
            continue;
        }
        for (i, word) in words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let at = line * LINE + i;
            // Acquires the write that a bit was set for; and releases, so that a back end that
            // sees its bit clear and sets it again comes after.
            taken[at] = word.swap(0, Ordering::AcqRel);
            range = Some(range.map_or(at, |r| r.start)..at + 1);
        }
    }
    let Some(range) = range else {
        return 0;
    };
    let taken = &mut taken[range.clone()];
    let first = (at + range.start) as u64 * 64;
    let pages = taken.len() as u64 * 64;
    sink.bitmap(
        Origin::Guest(GuestAddress(first * PAGE_SIZE)),
        taken,
        Pages(pages),
    );
    // What is left without all that is RAM.
    for map in maps {
        for part in map.block_parts(GuestAddress(first * PAGE_SIZE), Pages(pages)) {
            words::clear_range(taken, part.before.index(), part.pages.index());
        }
    }
    words::count(taken)
}

impl DirtyLog for VhostLog {
    fn kind(&self) -> LogKind {
        LogKind::Vhost
    }

    fn strays(&self) -> u64 {
        self.strays
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        let memory = self.memory_for(map)?;
        if let Err(e) = self.back_ends.log_on(&memory) {
            // Some of them may log already.
            if self.back_ends.log_off().is_err() {
                self.refused.push(memory);
            } else {
                self.refused.clear();
            }
            return Err(e.context("having vhost back ends log"));
        }
        // Bits of a log that is used again may be from before; a page too many is no harm.
        self.current = Some(memory);
        self.on = true;
        Ok(Initial::Clean)
    }

    fn stop(&mut self, _map: &Map) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        self.on = false;
        let current = self.current.take();
        match self.back_ends.log_off() {
            Ok(()) => {
                self.refused.clear();
                Ok(())
            }
            Err(e) => {
                // It may still be written to, by the address of its mapping.
                self.refused.extend(current);
                Err(e.context("having vhost back ends stop logging"))
            }
        }
    }

    fn harvest(&mut self, map: &Map, _when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        if self.on {
            self.drain_all(&[map], sink)?;
        }
        Ok(Harvested::Complete)
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for slot in map.slots() {
            each(Extent::of(slot));
        }
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        let (gone, fresh) = (old.slots_not_in(new)?, new.slots_not_in(old)?);
        // A back end may have been told of new memory already.
        let maps = [old, new];
        for slot in &gone {
            // What was logged of it is understood by the old map.
            if self.drain_slot(slot, &maps, sink).is_err() {
                Extent::of(slot).everything(sink);
            }
        }
        let Some(current) = &self.current else {
            return Ok(());
        };
        if current.length() < log_bytes(self.reach(new)) {
            return self.grow(old, new, sink);
        }
        fresh
            .iter()
            .try_for_each(|slot| current.reserve(&pages_of(slot)))
    }
}

impl Drop for VhostLog {
    /// Whatever could not be switched off writes on, by the address that it was given: what was
    /// mapped there next would be written to.
    fn drop(&mut self) {
        for memory in self
            .current
            .take()
            .into_iter()
            .chain(self.refused.drain(..))
        {
            memory.0.leave_mapped();
        }
    }
}

#[cfg(test)]
mod tests;
