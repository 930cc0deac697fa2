//! The dirty log of vhost and vhost-user back ends: shared memory in which all of them set bits,
//! one for each 4 KiB of guest-physical memory from address 0 on.
//!
//! brant makes the memory, and the VMM passes it to its back ends ([`VhostBackEnds`]): the kernel's
//! vhost takes the address of the mapping, vhost-user the descriptor. A back end writes guest
//! memory first, and then sets the bit by an atomic OR. A harvest reads and reports the bits, and
//! each bit is cleared before its page is handed out (`bits`). What reads and clears acquires what
//! the OR released, so a page whose bit was reported is read with that write in it.
//!
//! **One log for all.** A harvest reads each log once, however many back ends set bits in it. So
//! back ends that can share a log do. A back end that goes away leaves its bits in the log, where
//! the next harvest finds them; brant need not be told of it.
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

mod bits;
mod memory;

pub use memory::{LogMemory, REACH_MAX};

use super::{DirtyLog, Extent, Harvested, Initial, LogKind, Rearmed, Sink, When};
use crate::error::{Error, Kind, Result};
use crate::memory::{BlockId, Map, Slot};
use crate::units::PAGE_SIZE;
use bits::LogBits;
use memory::{log_bytes, pages_of};
use std::ops::Range;
use std::sync::Arc;

/// The most logs that are kept because the VMM could not move or stop all back ends, and some may
/// still write to them.
const REFUSED_MAX: usize = 4;

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
    /// Whether each harvest clears what it reports.
    clear_at_harvest: bool,
    current: Option<LogBits>,
    /// Logs to which some back end may write although not all do. They are read as long as logging
    /// is on.
    refused: Vec<LogBits>,
    strays: u64,
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
            clear_at_harvest: false,
            current: None,
            refused: Vec::new(),
            strays: 0,
        })
    }

    fn reach(&self, map: &Map) -> u64 {
        self.reach.max(map.guest_end())
    }

    /// A log's memory that reaches as far as `map`: that of a log refused before, or a new one.
    fn memory_for(&mut self, map: &Map) -> Result<LogBits> {
        let reach = self.reach(map);
        let fits = |log: &LogBits| log.memory().length() >= log_bytes(reach);
        if let Some(at) = self.refused.iter().position(fits) {
            self.refused[at].memory().reserve_all(map)?;
            let again = self.refused.swap_remove(at);
            return Ok(LogBits::new(again.into_memory(), !self.clear_at_harvest));
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
        let before = self.current.as_ref().map(LogBits::memory);
        let memory = match before.map(|before| roomy(before, reach)) {
            // A limit on files or on memory may leave no room for more than the map needs.
            Some(roomy) => LogMemory::new(roomy).or_else(|_| LogMemory::new(reach))?,
            None => LogMemory::new(reach)?,
        };
        memory.reserve_all(map)?;
        Ok(LogBits::new(memory, !self.clear_at_harvest))
    }

    /// All logs to which back ends may write.
    fn logs(&mut self) -> impl Iterator<Item = &mut LogBits> {
        self.current.iter_mut().chain(&mut self.refused)
    }

    /// Reads and clears the bits that all logs have for a slot.
    fn take_slot(&mut self, slot: &Slot, maps: &[&Map], sink: &mut dyn Sink) -> Result<()> {
        let mut strays = 0;
        let pages = pages_of(slot);
        let result = self.logs().try_for_each(|log| {
            strays += log.take_pages(pages.clone(), maps, sink)?;
            Ok(())
        });
        self.strays += strays;
        result
    }

    /// Moves all back ends to a longer log.
    fn grow(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        let log = self.memory_for(new)?;
        if let Err(e) = self.back_ends.log_on(log.memory()) {
            // Some back ends may have moved.
            self.refused.push(log);
            return Err(e.context("moving vhost back ends to a longer log"));
        }
        // Only now can no back end set a bit in the old log any more.
        match self.current.replace(log) {
            None => {}
            Some(mut before) => match before.take_all(&[old, new], sink) {
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

impl DirtyLog for VhostLog {
    fn kind(&self) -> LogKind {
        LogKind::Vhost
    }

    fn strays(&self) -> u64 {
        self.strays
    }

    fn clear_at_harvest(&mut self, whole: bool) -> bool {
        self.clear_at_harvest = whole;
        whole
    }

    fn rearms(&self) -> bool {
        !self.clear_at_harvest
    }

    fn heap_bytes(&self) -> u64 {
        let logs = self.current.iter().chain(&self.refused);
        logs.map(LogBits::heap_bytes).sum()
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        let log = self.memory_for(map)?;
        // What was reported before this start was reported to others. A take must not clear a bit
        // that has not been reported since.
        self.refused.iter_mut().for_each(LogBits::forget_seen);
        if let Err(e) = self.back_ends.log_on(log.memory()) {
            // Some back ends may log already.
            if self.back_ends.log_off().is_err() {
                self.refused.push(log);
            } else {
                self.refused.clear();
            }
            return Err(e.context("having vhost back ends log"));
        }
        // A log that is used again may have bits from before. A page too many does no harm.
        self.current = Some(log);
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
        if !self.on {
            return Ok(Harvested::Complete);
        }
        let mut strays = 0;
        let result = self.logs().try_for_each(|log| {
            strays += log.harvest(&[map], sink)?;
            Ok(())
        });
        self.strays += strays;
        result.map(|()| Harvested::Complete)
    }

    fn rearm(&mut self, map: &Map, block: BlockId, pages: Range<u64>) -> Result<Rearmed> {
        let mut done = Rearmed::default();
        for slot in map.slots_of(block, pages.clone()) {
            let from = pages.start.max(slot.first.0);
            let to = pages.end.min(slot.first.0 + slot.pages.0);
            if from < to {
                let shown = pages_of(slot).start;
                let pages = shown + from - slot.first.0..shown + to - slot.first.0;
                let cleared = self.logs().map(|log| log.clear_seen(pages.clone()));
                done.bits += cleared.sum::<u64>();
            }
        }
        Ok(done)
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
            if self.take_slot(slot, &maps, sink).is_err() {
                Extent::of(slot).everything(sink);
            }
        }
        let Some(current) = self.current.as_ref().map(LogBits::memory) else {
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
        let logs = self.current.take().into_iter();
        for log in logs.chain(self.refused.drain(..)) {
            log.into_memory().0.leave_mapped();
        }
    }
}

#[cfg(test)]
mod tests;
