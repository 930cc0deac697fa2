//! A model of KVM's dirty bitmaps behind [`Vm`], for tests: how a guest's write changes bits and
//! protection, and how GET and CLEAR change both.
//!
//! It is the kernel at its least helpful. A write to a page that is not protected leaves no trace.
//! Initially-set logging protects no page. A GET that fails in get-and-clear mode has cleared the
//! bits. A page's contents are a version, a number that grows with each write. Versions are kept by
//! host address, so two slots that show the same memory share them.

use crate::error::{Error, Kind, Result};
use crate::sys::kvm::{
    UserMemoryRegion, Vm, CAP_MANUAL_DIRTY_LOG_PROTECT2, MANUAL_INITIALLY_SET,
    MANUAL_PROTECT_ENABLE, MEM_LOG_DIRTY_PAGES, MEM_READONLY,
};
use crate::units::{PAGE_SHIFT, PAGE_SIZE};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

/// The bits of the capability's answer: every mode that KVM has.
pub(crate) const ALL_CAPS: u64 = MANUAL_PROTECT_ENABLE | MANUAL_INITIALLY_SET;

/// A slot in the kernel.
struct SlotState {
    region: UserMemoryRegion,
    /// While logging is on.
    bitmap: Option<Vec<u64>>,
    /// Pages that the guest can write without a fault, one bit each.
    writable: Vec<u64>,
}

impl SlotState {
    fn pages(&self) -> u64 {
        self.region.size >> PAGE_SHIFT
    }

    /// All ones, without bits past the end.
    fn ones(&self) -> Vec<u64> {
        let pages = self.pages();
        let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
        if !pages.is_multiple_of(64) {
            *words.last_mut().unwrap() = (1 << (pages % 64)) - 1;
        }
        words
    }
}

/// At which point of a call a racing write of the guest lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Moment {
    BeforeGet,
    AfterGet,
    BeforeClear,
    AfterClear,
}

/// The calls made, and how much they covered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Calls {
    pub gets: u64,
    pub clears: u64,
    pub bits_cleared: u64,
    pub regions: u64,
}

#[derive(Default)]
struct State {
    caps: u64,
    mode: u64,
    slots: BTreeMap<u32, SlotState>,
    /// By host page.
    versions: HashMap<u64, u64>,
    races: BTreeMap<Moment, Vec<(u32, u64)>>,
    fail_gets: u32,
    fail_clears: u32,
    fail_regions: u32,
    clear_twice: bool,
    /// With `clear_twice`, the words of each slot's last CLEAR.
    last_clear: HashMap<u32, (u64, Vec<u64>)>,
    calls: Calls,
}

/// The kernel's side, for the test. The engine gets [`Kvm::vm`].
#[derive(Clone, Default)]
pub(crate) struct Kvm(Arc<Mutex<State>>);

fn errno(call: &str, slot: u32, name: &str) -> Error {
    Error::new(
        Kind::Kernel,
        format!("{call} on memory slot {slot:#x}: {name}"),
    )
}

impl State {
    fn write(&mut self, slot: u32, page: u64) {
        let Some(state) = self.slots.get_mut(&slot) else {
            return;
        };
        if page >= state.pages() || state.region.flags & MEM_READONLY != 0 {
            return;
        }
        *self
            .versions
            .entry((state.region.host_address >> PAGE_SHIFT) + page)
            .or_default() += 1;
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        if state.writable[word] & bit == 0 {
            // The fault sets the bit, and further writes are not seen.
            state.writable[word] |= bit;
            if let Some(bitmap) = &mut state.bitmap {
                bitmap[word] |= bit;
            }
        }
    }

    fn races(&mut self, moment: Moment) {
        for (slot, page) in self.races.remove(&moment).unwrap_or_default() {
            self.write(slot, page);
        }
    }

    /// CLEAR as the kernel does it, once it has accepted the arguments.
    fn clear(&mut self, slot: u32, first: u64, words: &[u64]) {
        let state = self.slots.get_mut(&slot).unwrap();
        let bitmap = state.bitmap.as_mut().unwrap();
        let from = (first / 64) as usize;
        for (i, &mask) in words.iter().enumerate().filter(|(_, w)| **w != 0) {
            let Some(word) = bitmap.get_mut(from + i) else {
                break;
            };
            // Bits that are clear already, and their pages, do not change.
            let hit = *word & mask;
            *word &= !hit;
            state.writable[from + i] &= !hit;
            self.calls.bits_cleared += u64::from(hit.count_ones());
        }
    }
}

impl Kvm {
    /// A VM whose `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` answers `caps`.
    pub fn new(caps: u64) -> Self {
        let kvm = Kvm::default();
        kvm.state().caps = caps;
        kvm
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The engine's handle.
    pub fn vm(&self) -> Box<dyn Vm> {
        Box::new(self.clone())
    }

    /// `KVM_SET_USER_MEMORY_REGION` by the VMM: creates a slot, not logged.
    pub fn create(&self, slot: u32, host: u64, pages: u64, guest: u64) {
        let mut state = SlotState {
            region: UserMemoryRegion {
                slot,
                flags: 0,
                guest_address: guest,
                size: pages * PAGE_SIZE,
                host_address: host,
            },
            bitmap: None,
            writable: Vec::new(),
        };
        // Mapped and writable already, which is the hardest case for a start of logging.
        state.writable = state.ones();
        assert!(self.state().slots.insert(slot, state).is_none());
    }

    /// Deletes a slot, and its bitmap with it.
    pub fn delete(&self, slot: u32) {
        assert!(self.state().slots.remove(&slot).is_some());
    }

    /// Whether there is a slot of that number.
    pub fn exists(&self, slot: u32) -> bool {
        self.state().slots.contains_key(&slot)
    }

    /// The guest writes to a page of a slot.
    pub fn guest_write(&self, slot: u32, page: u64) {
        self.state().write(slot, page);
    }

    /// A write that KVM does not see.
    pub fn other_write(&self, host: u64) {
        *self.state().versions.entry(host >> PAGE_SHIFT).or_default() += 1;
    }

    /// The version of a page.
    pub fn version(&self, host: u64) -> u64 {
        let state = self.state();
        state
            .versions
            .get(&(host >> PAGE_SHIFT))
            .copied()
            .unwrap_or(0)
    }

    /// Lets the guest write to a page at a moment of the next call.
    pub fn race(&self, moment: Moment, slot: u32, page: u64) {
        self.state()
            .races
            .entry(moment)
            .or_default()
            .push((slot, page));
    }

    /// Lets the next `gets` and `clears` calls fail.
    pub fn fail(&self, gets: u32, clears: u32) {
        let mut state = self.state();
        state.fail_gets = gets;
        state.fail_clears = clears;
    }

    /// Lets the next `n` region calls fail.
    pub fn fail_regions(&self, n: u32) {
        self.state().fail_regions = n;
    }

    /// Repeats every CLEAR with the words of the CLEAR before it, as an engine does that does not
    /// consume its copy.
    pub fn clear_twice(&self) {
        self.state().clear_twice = true;
    }

    /// No failure and no race from now on.
    pub fn calm(&self) {
        let mut state = self.state();
        state.fail_gets = 0;
        state.fail_clears = 0;
        state.fail_regions = 0;
        state.races.clear();
    }

    /// Forgets the planned racing writes.
    pub fn no_races(&self) {
        self.state().races.clear();
    }

    /// The calls made so far.
    pub fn calls(&self) -> Calls {
        self.state().calls
    }

    /// Whether a slot is logged, and the mode that was last set.
    pub fn logged(&self, slot: u32) -> bool {
        let state = self.state();
        let state = &state.slots[&slot];
        assert_eq!(
            state.bitmap.is_some(),
            state.region.flags & MEM_LOG_DIRTY_PAGES != 0
        );
        state.bitmap.is_some()
    }

    /// The capability's argument as last set.
    pub fn mode(&self) -> u64 {
        self.state().mode
    }

    /// Whether a page is protected, so that its next write leaves a trace.
    pub fn is_protected(&self, slot: u32, page: u64) -> bool {
        self.state().slots[&slot].writable[(page / 64) as usize] >> (page % 64) & 1 == 0
    }
}

impl Vm for Kvm {
    fn check_extension(&self, cap: u32) -> u64 {
        match cap {
            CAP_MANUAL_DIRTY_LOG_PROTECT2 => self.state().caps,
            _ => 0,
        }
    }

    fn enable_cap(&mut self, cap: u32, arg: u64) -> Result<()> {
        let mut state = self.state();
        // The second flag needs the first.
        let allowed = state.caps & ALL_CAPS;
        if cap != CAP_MANUAL_DIRTY_LOG_PROTECT2
            || arg & !allowed != 0
            || arg == MANUAL_INITIALLY_SET
        {
            return Err(errno("KVM_ENABLE_CAP", cap, "EINVAL"));
        }
        state.mode = arg;
        Ok(())
    }

    fn set_region(&mut self, region: &UserMemoryRegion) -> Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.calls.regions += 1;
        let call = "KVM_SET_USER_MEMORY_REGION";
        if state.fail_regions > 0 {
            state.fail_regions -= 1;
            return Err(errno(call, region.slot, "ENOMEM"));
        }
        // The kernel makes a slot for a number that it does not know. The engine never wants that.
        let slot = state.slots.entry(region.slot).or_insert_with(|| {
            let mut made = SlotState {
                region: UserMemoryRegion {
                    flags: region.flags & !MEM_LOG_DIRTY_PAGES,
                    ..*region
                },
                bitmap: None,
                writable: Vec::new(),
            };
            made.writable = made.ones();
            made
        });
        let was = slot.region;
        // Only the flags of an existing slot can change here. Moving a slot is the VMM's part.
        let flags = was.flags & !MEM_LOG_DIRTY_PAGES | region.flags & MEM_LOG_DIRTY_PAGES;
        if (UserMemoryRegion { flags, ..was }) != *region {
            return Err(errno(call, region.slot, "EINVAL"));
        }
        slot.region = *region;
        if region.flags & MEM_LOG_DIRTY_PAGES == 0 {
            slot.bitmap = None;
            slot.writable = slot.ones();
        } else if slot.bitmap.is_none() {
            if state.mode & MANUAL_INITIALLY_SET != 0 {
                // Every bit set, no page protected.
                slot.bitmap = Some(slot.ones());
            } else {
                slot.bitmap = Some(vec![0; slot.writable.len()]);
                slot.writable.fill(0);
            }
        }
        Ok(())
    }

    fn get_dirty_log(&mut self, slot: u32, words: &mut [u64]) -> Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.calls.gets += 1;
        state.races(Moment::BeforeGet);
        let manual = state.mode & MANUAL_PROTECT_ENABLE != 0;
        let call = "KVM_GET_DIRTY_LOG";
        let Some(bitmap) = state.slots.get_mut(&slot).filter(|s| s.bitmap.is_some()) else {
            return Err(errno(call, slot, "ENOENT"));
        };
        let SlotState {
            bitmap, writable, ..
        } = bitmap;
        let bitmap = bitmap.as_mut().unwrap();
        assert_eq!(
            words.len(),
            bitmap.len(),
            "the kernel writes the whole bitmap"
        );
        let fails = state.fail_gets > 0;
        // A copy that fails half-way has written half of the words.
        let copied = if fails { words.len() / 2 } else { words.len() };
        words[..copied].copy_from_slice(&bitmap[..copied]);
        if !manual {
            for (word, writable) in bitmap.iter_mut().zip(writable) {
                *writable &= !*word;
                *word = 0;
            }
        }
        if fails {
            state.fail_gets -= 1;
            return Err(errno(call, slot, "EFAULT"));
        }
        state.races(Moment::AfterGet);
        Ok(())
    }

    fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: u32, words: &[u64]) -> Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.calls.clears += 1;
        state.races(Moment::BeforeClear);
        let call = "KVM_CLEAR_DIRTY_LOG";
        let Some(found) = state.slots.get(&slot).filter(|s| s.bitmap.is_some()) else {
            return Err(errno(call, slot, "ENOENT"));
        };
        let (size, pages) = (found.pages(), u64::from(pages));
        if !first.is_multiple_of(64)
            || first > size
            || pages > size - first
            || (!pages.is_multiple_of(64) && first + pages != size)
        {
            return Err(errno(call, slot, "EINVAL"));
        }
        assert!(
            words.len() as u64 >= pages.div_ceil(64),
            "read past the buffer"
        );
        if state.fail_clears > 0 {
            state.fail_clears -= 1;
            return Err(errno(call, slot, "EFAULT"));
        }
        let words = words[..pages.div_ceil(64) as usize].to_vec();
        state.clear(slot, first, &words);
        if state.clear_twice {
            if let Some((first, words)) = state.last_clear.insert(slot, (first, words)) {
                state.clear(slot, first, &words);
            }
        }
        state.races(Moment::AfterClear);
        Ok(())
    }
}

mod tests {
    use super::*;

    fn one_slot(pages: u64, mode: u64) -> Kvm {
        let mut kvm = Kvm::new(ALL_CAPS);
        kvm.create(3, 0x10_0000, pages, 0);
        kvm.enable_cap(CAP_MANUAL_DIRTY_LOG_PROTECT2, mode).unwrap();
        let region = UserMemoryRegion {
            flags: MEM_LOG_DIRTY_PAGES,
            ..kvm.state().slots[&3].region
        };
        kvm.set_region(&region).unwrap();
        kvm
    }

    #[test]
    fn the_model_clears_as_the_kernel_does() {
        let mut kvm = one_slot(130, ALL_CAPS);
        let mut words = [0; 3];
        kvm.get_dirty_log(3, &mut words).unwrap();
        assert_eq!(words, [u64::MAX, u64::MAX, 3]);
        let ones = [u64::MAX; 3];
        for (first, pages, fine) in [
            (0, 64, true),
            (64, 66, true),
            (128, 2, true),
            (0, 130, true),
            (1, 64, false),
            (0, 65, false),
            (64, 128, false),
            (128, 64, false),
            (192, 0, false),
        ] {
            let done = kvm.clear_dirty_log(3, first, pages, &ones);
            assert_eq!(done.is_ok(), fine, "first {first}, pages {pages}");
        }
        assert!(kvm.clear_dirty_log(4, 0, 64, &ones).is_err());
    }

    #[test]
    fn the_model_hides_writes_to_pages_that_are_not_protected() {
        let mut kvm = one_slot(64, ALL_CAPS);
        let mut words = [0];
        kvm.clear_dirty_log(3, 0, 64, &[0b110]).unwrap();
        assert!(!kvm.is_protected(3, 0) && kvm.is_protected(3, 1));
        kvm.guest_write(3, 1);
        kvm.guest_write(3, 1);
        kvm.get_dirty_log(3, &mut words).unwrap();
        assert_eq!(words, [!0b100]);
        assert_eq!(kvm.version(0x10_1000), 2);
        // A clear without the bit does nothing to the page.
        kvm.clear_dirty_log(3, 0, 64, &[0]).unwrap();
        assert!(!kvm.is_protected(3, 1));
    }

    #[test]
    fn a_failed_get_of_the_model_loses_bits_in_get_and_clear_mode_only() {
        for (mode, left) in [(0, 0), (1, 0b1000)] {
            let mut kvm = one_slot(64, mode);
            let mut words = [0];
            kvm.guest_write(3, 3);
            kvm.fail(1, 0);
            assert!(kvm.get_dirty_log(3, &mut words).is_err());
            kvm.get_dirty_log(3, &mut words).unwrap();
            assert_eq!(words, [left], "mode {mode}");
        }
    }
}
