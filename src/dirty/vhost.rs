//! The dirty log of vhost and vhost-user back ends: shared memory in which all of them set bits,
//! one for each 4 KiB of guest-physical memory from address 0 on.
//!
//! brant makes the memory, and the VMM passes it to its back ends ([`VhostBackEnds`]): the kernel's
//! vhost takes the address of the mapping, vhost-user the descriptor. A back end writes guest
//! memory first, and then sets the bit by an atomic OR. A harvest takes each word that is not zero
//! by an atomic exchange. The exchange acquires what the OR released, so a page whose bit was taken
//! is read with that write in it.
//!
//! **Growing.** When guest memory comes to reach further than the log, a longer log is made and all
//! back ends are moved to it. Only then is the old log read a last time, because bits arrive in it
//! until the last back end has moved. Moving reads one log and takes memory for another, and both
//! are as long as guest memory reaches. So the new log is at least an eighth longer than the old
//! one: when memory is plugged in small pieces, back ends move now and then and not each time.
//!
//! **Other changes of the map** cost what they change. When a slot goes, its bits are read. When
//! one comes, memory for its bits is taken.
//!
//! A log's memory is backed for the addresses at which RAM is. The rest, which stands for holes in
//! guest memory, takes no memory until a back end writes there.

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
/// Words in one page of the log. They stand for 128 MiB of guest memory.
const PAGE_WORDS: usize = 512;
/// Words that are looked at together: one cache line.
const LINE: usize = 8;
/// The most logs that are kept because the VMM could not move or stop all back ends, and some may
/// still write to them.
const REFUSED_MAX: usize = 4;

/// The memory of a log, which the VMM passes to back ends.
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

    /// A memfd of exactly [`LogMemory::length`] bytes, sealed against shrinking and growing. It is
    /// the descriptor that vhost-user's `SET_LOG_BASE` carries, with offset 0. The VMM may keep a
    /// duplicate.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// The address of the mapping in this process, for the kernel's `VHOST_SET_LOG_BASE`.
    pub fn address(&self) -> *mut u8 {
        self.0.address()
    }

    /// The length in bytes, a multiple of 4096.
    pub fn length(&self) -> u64 {
        self.0.length()
    }

    /// Takes memory for the bits of these pages.
    fn reserve(&self, pages: &Range<u64>) -> Result<()> {
        self.0.reserve(pages.start / 8, pages.end.div_ceil(8))
    }

    /// Takes memory for the bits of all addresses at which a map has RAM.
    fn reserve_all(&self, map: &Map) -> Result<()> {
        // Slots come in order of addresses, so adjacent ones are joined into one call.
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

/// The bytes, in whole pages, of a log that reaches to a guest address.
fn log_bytes(reach: u64) -> u64 {
    reach
        .div_ceil(PAGE_SIZE)
        .div_ceil(8)
        .next_multiple_of(PAGE_SIZE)
}

/// The VMM's back ends that share one log.
///
/// The calls come on the thread that starts or stops tracking or changes the memory map, under the
/// tracker's lock. So inside them only marks may be called, and no other function of brant's.
pub trait VhostBackEnds: Send + Sync {
    /// Has every back end log to this memory from now on, and returns when each of them does.
    /// Called when tracking starts, and again with a longer log when guest memory has come to reach
    /// further; after that return the log before is gone. An error of the first call refuses the
    /// start, and `log_off` follows. An error of a later call refuses the change of the map, and
    /// back ends may go on in either log.
    fn log_on(&self, memory: &LogMemory) -> Result<()>;

    /// Has every back end stop logging, and returns when none of them writes to a log of brant's
    /// any more. Also called after a first `log_on` that failed. After an error the log's memory
    /// stays mapped, even when the log itself is dropped.
    fn log_off(&self) -> Result<()>;
}

/// The log of vhost and vhost-user back ends: shared memory in which all of them set bits, one for
/// each 4 KiB of guest physical memory from address 0 on. brant makes the memory, and the VMM brings
/// it to its back ends ([`VhostBackEnds`]).
///
/// There is one log for all back ends of a guest. The example has one of them, in this process.
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
    /// Logs to which some back end may write although not all do. They are read as long as logging
    /// is on.
    refused: Vec<LogMemory>,
    strays: u64,
}

/// The guest's pages that a slot shows.
fn pages_of(slot: &Slot) -> Range<u64> {
    let first = slot.guest_address.0 / PAGE_SIZE;
    first..first + slot.pages.0
}

impl VhostLog {
    /// A log for `back_ends` that reaches at least to guest address `reach`, exclusive. With 0 it
    /// reaches to the end of RAM, which is enough as a rule, because used rings are in RAM.
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

    /// A log's memory that reaches as far as `map`: that of a log refused before, or a new one.
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
            // A limit on files or on memory may leave no room for more than the map needs.
            Some(roomy) => LogMemory::new(roomy).or_else(|_| LogMemory::new(reach))?,
            None => LogMemory::new(reach)?,
        };
        memory.reserve_all(map)?;
        Ok(memory)
    }

    /// Reads all logs to which back ends may write. Pages of RAM in one of `maps` are no strays.
    fn drain_all(&mut self, maps: &[&Map], sink: &mut dyn Sink) -> Result<()> {
        for memory in self.current.iter().chain(&self.refused) {
            self.strays += drain(memory, maps, sink)?;
        }
        Ok(())
    }

    /// Reads the bits that all logs have for a slot.
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
            // Some back ends may have moved.
            self.refused.push(memory);
            return Err(e.context("moving vhost back ends to a longer log"));
        }
        // Only now can no back end set a bit in the old log any more.
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

/// The reach of the log that follows `before`, for guest memory that reaches to `reach`: an eighth
/// longer than `before`, so that the next slots find room in it.
fn roomy(before: &LogMemory, reach: u64) -> u64 {
    let length = before.length() + before.length() / 8;
    let further = length.saturating_mul(8 * PAGE_SIZE).min(REACH_MAX);
    reach.max(further)
}

/// Takes a log's bits into `sink`, and returns how many of them are RAM in none of `maps`.
fn drain(memory: &LogMemory, maps: &[&Map], sink: &mut dyn Sink) -> Result<u64> {
    let all = memory.0.words();
    let mut strays = 0;
    let mut from = 0;
    // Pages of the log that were never written have no memory, and need not be read. A bit set in
    // one of them from now on belongs to the next harvest.
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

/// Takes the bits of these pages, by whole words. The end of the backed part is not looked for: the
/// kernel would go through all of it.
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

/// Takes the words of a part of the log that begins at the log's word `at`.
fn drain_page(page: &[AtomicU64], at: usize, maps: &[&Map], sink: &mut dyn Sink) -> u64 {
    let mut taken = [0u64; PAGE_WORDS];
    let mut range: Option<Range<usize>> = None;
    for (line, words) in page.chunks(LINE).enumerate() {
        // Most words are zero, so eight are looked at together. This look needs no order, because
        // it only decides whether to look again. A bit that it misses was set after the harvest
        // began.
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
            // Acquires the write that the bit was set for. Releases, so that a back end that sees
            // the bit clear and sets it again comes after this harvest.
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
    // Bits of RAM are removed, so that strays remain.
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
            // Some back ends may log already.
            if self.back_ends.log_off().is_err() {
                self.refused.push(memory);
            } else {
                self.refused.clear();
            }
            return Err(e.context("having vhost back ends log"));
        }
        // A log that is used again may have bits from before. A page too many does no harm.
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
                // A back end may still write to this log, by the address of its mapping.
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
            // The bits of a slot that goes are understood by the old map.
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
    /// A log that could not be switched off is never unmapped: its back end goes on writing to the
    /// address that it was given, and would hit whatever was mapped there next.
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
