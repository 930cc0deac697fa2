//! The KVM dirty bitmap of each memory slot, in the older get-and-clear mode and in manual-protect
//! mode.
//!
//! **Get-and-clear.** `KVM_GET_DIRTY_LOG` clears the bits and protects the pages again before it
//! returns. No clear follows.
//!
//! **Manual protect** (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`). GET only copies the bits.
//! `KVM_CLEAR_DIRTY_LOG` clears the bits that it is given, and protects their pages. Each slot
//! keeps the copy that the last GET made. It says which bits may be cleared: those that a harvest
//! has seen. A clear *consumes* the copy: the words that it used are zeroed. A second clear with
//! the same words would erase a bit that the guest has set again since, and that write would be
//! lost. CLEAR demands ranges of 64 pages, and rounding out a range with a copy that was not
//! consumed would do the same to the range's neighbours.
//!
//! **Initially set** (the second flag). Logging starts with every bit set and no page protected, so
//! a start is cheap. The first clear of a range protects its pages. The kernel does this whenever
//! it creates a bitmap, so the copy is all ones whenever logging is switched on.

use super::choose::{choose, Offer};
use super::mode::KvmMode;
use super::switch::LogSwitch;
use super::SLOTS;
use crate::dirty::{
    DirtyLog, Exact, Extent, Harvested, Initial, LogKind, Origin, Rearmed, Sink, When,
};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::{BlockId, Map, Slot};
use crate::sys::guarded::Guarded;
use crate::sys::kvm::{Vm, VmFd, CAP_MANUAL_DIRTY_LOG_PROTECT2};
use crate::units::Pages;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// Bitmaps of up to this many words (slots below 1 GiB) are read into one buffer that all such
/// slots share, and copied from there. A mapping with a guard page for each of thousands of small
/// slots would exhaust the mappings that a process may have.
const SHARED_WORDS: usize = 4096;

/// The copy of one slot's bitmap: bits seen in a harvest and not cleared since.
enum SlotCopy {
    /// Copied from the buffer that small slots share.
    Small(Vec<u64>),
    /// The kernel writes into it.
    Large(Guarded),
}

impl SlotCopy {
    fn new(slot: &Slot) -> Result<Self> {
        let len = slot.pages.0.div_ceil(64) as usize;
        let what = format_args!("dirty bitmap of slot {:#x}", slot.slot);
        if len > SHARED_WORDS {
            return Guarded::new(len, what).map(SlotCopy::Large);
        }
        let mut words = Vec::new();
        words
            .try_reserve_exact(len)
            .map_err(|_| Error::no_memory(what, len as u64 * 8))?;
        words.resize(len, 0);
        Ok(SlotCopy::Small(words))
    }

    fn words(&mut self) -> &mut [u64] {
        match self {
            SlotCopy::Small(words) => words,
            SlotCopy::Large(words) => words,
        }
    }

    fn bytes(&self) -> u64 {
        8 * match self {
            SlotCopy::Small(words) => words.capacity() as u64,
            SlotCopy::Large(words) => words.len() as u64,
        }
    }

    fn fill_ones(&mut self, pages: Pages) {
        let words = self.words();
        words.fill(u64::MAX);
        if !pages.0.is_multiple_of(64) {
            if let Some(last) = words.last_mut() {
                *last = (1 << (pages.0 % 64)) - 1;
            }
        }
    }

    /// Has the kernel fill the bitmap. An error if the slot in KVM is larger than described: the
    /// kernel then meets a guard page, not the memory behind the words.
    fn get(&mut self, vm: &mut dyn Vm, slot: u32, room: &mut Option<Guarded>) -> Result<()> {
        let words = match self {
            SlotCopy::Large(words) => return vm.get_dirty_log(slot, words),
            SlotCopy::Small(words) => words,
        };
        if room.is_none() {
            *room = Some(Guarded::new(SHARED_WORDS, "room for dirty bitmaps")?);
        }
        if let Some(room) = room {
            let room = room.tail(words.len());
            // For a slot that was made smaller the kernel fills only the beginning.
            room.fill(0);
            vm.get_dirty_log(slot, room)?;
            words.copy_from_slice(room);
        }
        Ok(())
    }
}

/// The data kept for one slot.
struct LoggedSlot {
    copy: SlotCopy,
    /// How many bits of the copy are set. Their pages are not protected, so further writes to them
    /// cannot be seen. The next GET has all these bits again, because only brant's own CLEAR takes
    /// them away.
    known: u64,
}

/// KVM's dirty bitmap of each memory slot as a tracker's log, in get-and-clear mode or in
/// manual-protect mode ([`KvmMode`]).
pub struct KvmLog {
    vm: Box<dyn Vm>,
    switch: LogSwitch,
    asked: KvmMode,
    /// The mode that `asked` led to on this kernel. `Auto` until the first start.
    mode: KvmMode,
    clear_at_harvest: bool,
    started: bool,
    /// By slot number. Only slots whose logging is on are here.
    copies: BTreeMap<u32, LoggedSlot>,
    /// The shared buffer for bitmaps of small slots.
    room: Option<Guarded>,
    /// CLEARs made inside harvests, for the report.
    clears_at_harvest: Rearmed,
}

impl std::fmt::Debug for KvmLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmLog")
            .field("mode", &self.mode)
            .field("clear_at_harvest", &self.clear_at_harvest)
            .field("slots", &self.copies.keys())
            .finish_non_exhaustive()
    }
}

impl KvmLog {
    /// A log of the virtual machine behind `vm`.
    #[doc(hidden)]
    pub fn new(vm: Box<dyn Vm>, mode: KvmMode, switch: LogSwitch) -> Self {
        KvmLog {
            vm,
            switch,
            asked: mode,
            mode,
            clear_at_harvest: false,
            started: false,
            copies: BTreeMap::new(),
            room: None,
            clears_at_harvest: Rearmed::default(),
        }
    }

    /// A log of the virtual machine behind a descriptor, which brant owns from now on.
    pub fn from_fd(vm: OwnedFd, mode: KvmMode, switch: LogSwitch) -> Result<Self> {
        Ok(KvmLog::new(Box::new(VmFd::new(vm)?), mode, switch))
    }

    /// A log of the virtual machine of a VMM that uses `kvm-ioctls`. The descriptor is duplicated.
    pub fn from_vm(vm: &kvm_ioctls::VmFd, mode: KvmMode, switch: LogSwitch) -> Result<Self> {
        KvmLog::from_fd(VmFd::duplicate(vm)?, mode, switch)
    }

    /// The mode in use. After the first start it is never [`KvmMode::Auto`].
    pub fn mode(&self) -> KvmMode {
        self.mode
    }

    /// The mode for what was asked, on this kernel. This log reads bitmaps, so rings are not
    /// offered.
    fn choose_mode(&self) -> Result<KvmMode> {
        let offer = Offer {
            manual: self.vm.check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2),
            ring: false,
            bitmap: true,
        };
        Ok(choose(self.asked, offer, None)?.mode)
    }

    /// Tells the kernel the mode. The mode can be switched at any time. Slots whose logging is on
    /// already keep theirs.
    fn apply_mode(&mut self, mode: KvmMode) -> Result<()> {
        let arg = mode.manual();
        if arg == 0 && self.vm.check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2) == 0 {
            return Ok(());
        }
        self.vm.enable_cap(CAP_MANUAL_DIRTY_LOG_PROTECT2, arg)
    }

    fn manual(&self) -> bool {
        matches!(self.mode, KvmMode::ManualProtect | KvmMode::InitiallySet)
    }

    fn switch(&mut self, slots: &[&Slot], on: bool) -> Result<()> {
        self.switch.set(&mut *self.vm, slots, on)
    }

    fn start_slots(&mut self, slots: &[&Slot]) -> Result<()> {
        for slot in slots {
            let mut kept = LoggedSlot {
                copy: SlotCopy::new(slot)?,
                known: 0,
            };
            if self.mode == KvmMode::InitiallySet {
                kept.copy.fill_ones(slot.pages);
                kept.known = slot.pages.0;
            }
            self.copies.insert(slot.slot, kept);
        }
        self.switch(slots, true).inspect_err(|_| {
            for slot in slots {
                self.copies.remove(&slot.slot);
            }
        })
    }

    fn harvest_slot(&mut self, slot: &Slot, sink: &mut dyn Sink) -> Result<()> {
        let manual = self.manual();
        let Some(LoggedSlot { copy, known }) = self.copies.get_mut(&slot.slot) else {
            return Ok(());
        };
        copy.get(&mut *self.vm, slot.slot, &mut self.room)?;
        let words = copy.words();
        let origin = Origin::Slot {
            slot: slot.slot,
            page: Pages(0),
        };
        if !manual {
            // GET has protected every page again, so each bit is a write since the last GET.
            sink.bitmap(origin, words, slot.pages);
            return Ok(());
        }
        *known = sink.lasting_bitmap(origin, words, slot.pages, Pages(*known));
        if self.clear_at_harvest {
            // The bits are in the sink by now. So the clear comes after they were seen, and before
            // any page is read.
            let done = clear(&mut *self.vm, slot, words, 0..slot.pages.0)?;
            *known = known.saturating_sub(done.bits);
            self.clears_at_harvest.calls += done.calls;
            self.clears_at_harvest.bits += done.bits;
        }
        Ok(())
    }
}

/// Clears the bits of `words` for the pages `range` of a slot, rounded out to what CLEAR accepts,
/// and consumes them.
fn clear(vm: &mut dyn Vm, slot: &Slot, words: &mut [u64], range: Range<u64>) -> Result<Rearmed> {
    use crate::bits::words as kernels;
    let all = (range.start / 64) as usize..(range.end.div_ceil(64) as usize).min(words.len());
    // The ends are cut to the first and last word with a bit. Most chunks of a settled guest have
    // no bit, and cost no call.
    let Some(first) = kernels::find_nonzero(&words[..all.end], all.start) else {
        return Ok(Rearmed::default());
    };
    let end = 1 + words[first..all.end]
        .iter()
        .rposition(|w| *w != 0)
        .map_or(0, |i| first + i);
    let start_page = first as u64 * 64;
    // CLEAR takes a multiple of 64 pages, unless the range ends where the slot does.
    let end_page = (end as u64 * 64).min(slot.pages.0);
    let used = &mut words[first..end];
    vm.clear_dirty_log(slot.slot, start_page, (end_page - start_page) as u32, used)?;
    let bits = kernels::count(used);
    used.fill(0);
    Ok(Rearmed { calls: 1, bits })
}

impl DirtyLog for KvmLog {
    fn kind(&self) -> LogKind {
        LogKind::KvmLog
    }

    fn exact(&self) -> Exact {
        // With page-modification logging a GET kicks the vCPUs to empty their buffers, so a harvest
        // has every write that came before it. Writes by vCPU ioctls end when the vCPUs' state has
        // been saved.
        Exact::Always
    }

    fn clear_at_harvest(&mut self, whole: bool) -> bool {
        self.clear_at_harvest = whole;
        whole
    }

    fn rearms(&self) -> bool {
        self.manual() && !self.clear_at_harvest
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        super::logged(map, each);
    }

    fn heap_bytes(&self) -> u64 {
        let room = self.room.as_ref().map_or(0, |room| room.len() as u64 * 8);
        room + self
            .copies
            .values()
            .map(|kept| kept.copy.bytes())
            .sum::<u64>()
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        if self.started {
            return Err(Error::new(Kind::State, "this dirty log is started already"));
        }
        self.mode = self.choose_mode()?;
        self.apply_mode(self.mode)?;
        let slots = super::slots(map)?;
        if let Err(e) = self.start_slots(&slots) {
            let _ = self.apply_mode(KvmMode::GetAndClear);
            return Err(e);
        }
        self.started = true;
        Ok(match self.mode {
            KvmMode::InitiallySet => Initial::Unprotected,
            _ => Initial::Clean,
        })
    }

    fn stop(&mut self, map: &Map) -> Result<()> {
        if !self.started {
            return Ok(());
        }
        self.started = false;
        let slots = map.slots().iter();
        let slots = slots.filter(|s| self.copies.contains_key(&s.slot));
        let result = fallible::collect(slots, SLOTS).and_then(|slots| self.switch(&slots, false));
        self.copies.clear();
        // The mode applies to bitmaps made from now on. The VM is left in the mode in which it was
        // found.
        result.and(self.apply_mode(KvmMode::GetAndClear))
    }

    fn harvest(&mut self, map: &Map, _when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        let mut first_error = None;
        for slot in map.slots().iter().filter(|s| s.is_logged()) {
            if let Err(e) = self.harvest_slot(slot, sink) {
                // One slot failed, and in get-and-clear mode its bits may be gone. The other slots'
                // bits are in the sink.
                sink.everything(
                    Origin::Slot {
                        slot: slot.slot,
                        page: Pages(0),
                    },
                    slot.pages,
                );
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(Harvested::Complete), Err)
    }

    fn rearm(&mut self, map: &Map, block: BlockId, pages: Range<u64>) -> Result<Rearmed> {
        let mut total = Rearmed::default();
        if !self.rearms() {
            return Ok(total);
        }
        // A clear covers every slot that shows the block: aliases and the SMM address space have
        // bitmaps of their own for the same memory.
        for slot in map.slots_of(block, pages.clone()) {
            let from = pages.start.max(slot.first.0);
            let to = pages.end.min(slot.first.0 + slot.pages.0);
            if from >= to {
                continue;
            }
            let Some(LoggedSlot { copy, known }) = self.copies.get_mut(&slot.slot) else {
                continue;
            };
            let range = from - slot.first.0..to - slot.first.0;
            let done = clear(&mut *self.vm, slot, copy.words(), range)?;
            *known = known.saturating_sub(done.bits);
            total.calls += done.calls;
            total.bits += done.bits;
        }
        Ok(total)
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        if !self.started {
            return Ok(());
        }
        let (gone, fresh) = (old.slots_not_in(new)?, new.slots_not_in(old)?);
        // Every list is made before anything changes.
        let gone = gone.iter().map(|slot| &**slot);
        let gone = fallible::collect(gone.filter(|s| self.copies.contains_key(&s.slot)), SLOTS)?;
        let fresh = super::of_kvm(&fresh)?;
        let mut read = fallible::collect(gone.iter().copied(), SLOTS)?;
        read.clear();
        for slot in &gone {
            // The bitmap is read here because deleting the slot frees it. A failed GET may have
            // cleared bits that it did not deliver, so every page counts as dirty then: the block
            // can stay, and be seen through another slot. The failure does not refuse the change,
            // since the slot goes in any case.
            if self.harvest_slot(slot, sink).is_ok() {
                read.push(slot);
            } else {
                sink.everything(
                    Origin::Slot {
                        slot: slot.slot,
                        page: Pages(0),
                    },
                    slot.pages,
                );
            }
        }
        for slot in &gone {
            self.copies.remove(&slot.slot);
        }
        // Logging is switched off because the slot may stay in KVM. A slot whose logging cannot be
        // switched off costs speed, and goes all the same. A slot that could not be read may be
        // deleted already, and KVM_SET_USER_MEMORY_REGION would make it anew, over memory that may
        // be unmapped soon.
        let _ = self.switch(&read, false);
        self.start_slots(&fresh)?;
        if self.clear_at_harvest && self.mode == KvmMode::InitiallySet {
            // The tracker makes every page of these slots pending now. Without this harvest the
            // next sync would find all of them once more.
            for slot in &fresh {
                // On a failure the bits stay in the kernel, for the next sync.
                let _ = self.harvest_slot(slot, sink);
            }
        }
        Ok(())
    }
}
