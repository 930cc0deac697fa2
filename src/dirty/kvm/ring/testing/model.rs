//! A model of KVM's dirty rings, for tests: the kernel at its least helpful.
//!
//! It pushes onto a full ring without an error, and the overwritten entries stay in use for ever.
//! An interrupted RESET consumes entries without protecting their pages. Switching logging on with
//! the initially-set flag protects no page. A page's contents are a version, as in
//! `kvm/testing/model.rs`.

use crate::error::{Error, Kind, Result};
use crate::sys::kvm::{
    UserMemoryRegion, Vm, CAP_MANUAL_DIRTY_LOG_PROTECT2, MANUAL_INITIALLY_SET, MEM_LOG_DIRTY_PAGES,
};
use crate::sys::kvm_ring::{Entry, Reset, ResetRings, RingMemory};
use crate::units::{PAGE_SHIFT, PAGE_SIZE};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

/// Entries that the kernel keeps free for the pushes of one exit.
const RESERVE: u64 = 64;
/// Pages that RESET protects together.
const BATCH: usize = 64;

/// At which point of a RESET a racing write lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Moment {
    Before,
    Within,
    After,
}

/// A signal during the next RESET.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interrupt {
    /// After how many entries it comes.
    pub after: u64,
    /// The thread was stopped, and can find that out. A short count shows in any case.
    pub traced: bool,
}

struct SlotState {
    region: UserMemoryRegion,
    writable: Vec<bool>,
    /// With `with_bitmap`: the pages that no vCPU wrote.
    bitmap: Vec<u64>,
}

impl SlotState {
    fn logged(&self) -> bool {
        self.region.flags & MEM_LOG_DIRTY_PAGES != 0
    }
}

struct Ring {
    entries: Arc<Vec<Entry>>,
    dirty: u64,
    reset: u64,
    /// Whether `exit_reason` says that the ring is full. It stays until KVM_RUN is entered again.
    exited_full: bool,
    /// `immediate_exit` is set.
    wanted_out: bool,
}

impl Ring {
    fn at(&self, index: u64) -> &Entry {
        &self.entries[index as usize % self.entries.len()]
    }
    fn used(&self) -> u64 {
        self.dirty - self.reset
    }
    fn is_full(&self) -> bool {
        self.used() >= self.entries.len() as u64 - RESERVE
    }
    fn push(&mut self, slot: u32, page: u64) -> bool {
        let entry = self.at(self.dirty);
        entry.slot.store(slot, Ordering::Relaxed);
        entry.offset.store(page, Ordering::Relaxed);
        entry.flags.store(1, Ordering::Release);
        self.dirty += 1;
        self.used() > self.entries.len() as u64
    }
}

#[derive(Default)]
struct State {
    mode: u64,
    with_bitmap: bool,
    slots: BTreeMap<u32, SlotState>,
    /// By host page.
    versions: HashMap<u64, u64>,
    rings: Vec<Ring>,
    races: BTreeMap<Moment, Vec<(usize, u32, u64)>>,
    interrupt: Option<Interrupt>,
    fail_resets: u32,
    fail_regions: u32,
    /// An entry was pushed onto a full ring.
    overran: bool,
    /// More entries were released than were in use: the kernel's counter is below zero for ever.
    broken: bool,
    resets: u64,
}

impl State {
    fn write(&mut self, vcpu: usize, slot: u32, page: u64, stores: u64) {
        let Some(state) = self.slots.get_mut(&slot) else {
            return;
        };
        let host = (state.region.host_address >> PAGE_SHIFT) + page;
        *self.versions.entry(host).or_default() += 1;
        let protected = !state.writable[page as usize];
        state.writable[page as usize] = true;
        if !state.logged() {
            return;
        }
        // An emulated store pushes each time, any other store only at the fault.
        let pushes = if stores > 1 { stores } else { protected.into() };
        for _ in 0..pushes {
            self.overran |= self.rings[vcpu].push(slot, page);
        }
    }

    fn races(&mut self, moment: Moment) {
        for (vcpu, slot, page) in self.races.remove(&moment).unwrap_or_default() {
            self.write(vcpu, slot, page, 1);
        }
    }

    fn protect(&mut self, batch: &mut Vec<(u32, u64)>) {
        for (slot, page) in batch.drain(..) {
            if let Some(state) = self.slots.get_mut(&slot) {
                if let Some(writable) = state.writable.get_mut(page as usize) {
                    *writable = false;
                }
            }
        }
    }
}

/// The kernel's side, for the test, and what the engine gets.
#[derive(Clone, Default)]
pub(crate) struct Model(Arc<Mutex<State>>);

struct Memory {
    model: Model,
    vcpu: usize,
    entries: Arc<Vec<Entry>>,
}

impl RingMemory for Memory {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }
    fn exited_full(&self) -> bool {
        self.model.state().rings[self.vcpu].exited_full
    }
    fn strike_out(&self) {
        self.model.state().rings[self.vcpu].exited_full = false;
    }
    fn is_wanted_out(&self) -> bool {
        self.model.state().rings[self.vcpu].wanted_out
    }
}

impl Model {
    pub fn new(with_bitmap: bool) -> Self {
        let model = Model::default();
        model.state().with_bitmap = with_bitmap;
        model
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn create_vcpu(&self, entries: usize) -> usize {
        let mut state = self.state();
        state.rings.push(Ring {
            entries: Arc::new((0..entries).map(|_| Entry::default()).collect()),
            dirty: 0,
            reset: 0,
            exited_full: false,
            wanted_out: false,
        });
        state.rings.len() - 1
    }

    pub fn ring(&self, vcpu: usize) -> Box<dyn RingMemory> {
        let entries = Arc::clone(&self.state().rings[vcpu].entries);
        Box::new(Memory {
            model: self.clone(),
            vcpu,
            entries,
        })
    }

    pub fn create(&self, slot: u32, host: u64, pages: u64, guest: u64) {
        let state = SlotState {
            region: UserMemoryRegion {
                slot,
                flags: 0,
                guest_address: guest,
                size: pages * PAGE_SIZE,
                host_address: host,
            },
            writable: vec![true; pages as usize],
            bitmap: vec![0; pages.div_ceil(64) as usize],
        };
        assert!(self.state().slots.insert(slot, state).is_none());
    }

    pub fn delete(&self, slot: u32) {
        assert!(self.state().slots.remove(&slot).is_some());
    }

    /// A vCPU writes a page `stores` times. If that is more than once, the stores are emulated.
    pub fn write(&self, vcpu: usize, slot: u32, page: u64, stores: u64) {
        self.state().write(vcpu, slot, page, stores);
    }

    /// The kernel itself writes, without a vCPU.
    pub fn kernel_writes(&self, slot: u32, page: u64) {
        let mut state = self.state();
        let Some(at) = state.slots.get_mut(&slot) else {
            return;
        };
        if at.logged() {
            at.bitmap[page as usize / 64] |= 1 << (page % 64);
        }
        let host = (at.region.host_address >> PAGE_SHIFT) + page;
        *state.versions.entry(host).or_default() += 1;
    }

    /// Sets or clears `immediate_exit`.
    pub fn want_out(&self, vcpu: usize, wanted: bool) {
        self.state().rings[vcpu].wanted_out = wanted;
    }

    /// Enters KVM_RUN. Returns whether it comes out at once.
    pub fn is_full(&self, vcpu: usize) -> bool {
        let ring = &mut self.state().rings[vcpu];
        ring.exited_full = ring.is_full();
        ring.exited_full
    }

    pub fn version(&self, host: u64) -> u64 {
        let state = self.state();
        state
            .versions
            .get(&(host >> PAGE_SHIFT))
            .copied()
            .unwrap_or(0)
    }

    pub fn race(&self, moment: Moment, vcpu: usize, slot: u32, page: u64) {
        let mut state = self.state();
        state
            .races
            .entry(moment)
            .or_default()
            .push((vcpu, slot, page));
    }

    pub fn no_races(&self) {
        self.state().races.clear();
    }

    pub fn interrupt(&self, interrupt: Interrupt) {
        self.state().interrupt = Some(interrupt);
    }

    pub fn fail(&self, resets: u32, regions: u32) {
        let mut state = self.state();
        state.fail_resets = resets;
        state.fail_regions = regions;
    }

    /// No failure from now on.
    pub fn calm(&self) {
        let mut state = self.state();
        state.races.clear();
        state.interrupt = None;
        state.fail_resets = 0;
        state.fail_regions = 0;
    }

    pub fn set_mode(&self, mode: u64) {
        self.state().mode = mode;
    }

    pub fn overran(&self) -> bool {
        self.state().overran
    }

    pub fn broken(&self) -> bool {
        self.state().broken
    }

    pub fn resets(&self) -> u64 {
        self.state().resets
    }

    pub fn logged(&self, slot: u32) -> bool {
        self.state().slots[&slot].logged()
    }
}

impl ResetRings for Model {
    fn reset(&self) -> Result<Reset> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.resets += 1;
        if state.fail_resets > 0 {
            state.fail_resets -= 1;
            return Err(Error::new(Kind::Kernel, "KVM_RESET_DIRTY_RINGS: EIO"));
        }
        state.races(Moment::Before);
        let interrupt = state.interrupt.take();
        let (mut count, mut stopped) = (0, false);
        'all: for vcpu in 0..state.rings.len() {
            let mut batch = Vec::new();
            loop {
                if interrupt.is_some_and(|i| count >= i.after) {
                    // The entries of this batch are consumed, and their pages are not protected.
                    stopped = true;
                    break 'all;
                }
                let ring = &mut state.rings[vcpu];
                let entry = ring.at(ring.reset);
                if entry.flags.load(Ordering::Acquire) & 2 == 0 {
                    break;
                }
                batch.push((
                    entry.slot.load(Ordering::Relaxed),
                    entry.offset.load(Ordering::Relaxed),
                ));
                entry.flags.store(0, Ordering::Release);
                ring.reset += 1;
                if ring.reset > ring.dirty {
                    state.broken = true;
                    ring.dirty = ring.reset;
                }
                count += 1;
                if batch.len() == BATCH {
                    state.protect(&mut batch);
                    state.races(Moment::Within);
                }
            }
            state.protect(&mut batch);
        }
        // If all entries were consumed and nothing shows the interruption, the engine cannot know
        // it.
        let rest = state
            .rings
            .iter()
            .any(|ring| ring.at(ring.reset).flags.load(Ordering::Acquire) & 2 != 0);
        state.races(Moment::After);
        Ok(Reset {
            count,
            disturbed: stopped && (!rest || interrupt.is_some_and(|i| i.traced)),
        })
    }
}

fn errno(call: &str, name: &str) -> Error {
    Error::new(Kind::Kernel, format!("{call}: {name}"))
}

impl Vm for Model {
    fn check_extension(&self, cap: u32) -> u64 {
        u64::from(cap == CAP_MANUAL_DIRTY_LOG_PROTECT2) * 3
    }

    fn enable_cap(&mut self, cap: u32, arg: u64) -> Result<()> {
        assert_eq!(cap, CAP_MANUAL_DIRTY_LOG_PROTECT2);
        self.state().mode = arg;
        Ok(())
    }

    fn set_region(&mut self, region: &UserMemoryRegion) -> Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.fail_regions > 0 {
            state.fail_regions -= 1;
            return Err(errno("KVM_SET_USER_MEMORY_REGION", "ENOMEM"));
        }
        let Some(slot) = state.slots.get_mut(&region.slot) else {
            return Err(errno("KVM_SET_USER_MEMORY_REGION", "no such slot"));
        };
        let was = slot.logged();
        slot.region = *region;
        match (was, slot.logged()) {
            (false, true) if state.mode & MANUAL_INITIALLY_SET == 0 => slot.writable.fill(false),
            (true, false) => {
                slot.writable.fill(true);
                slot.bitmap.fill(0);
            }
            _ => {}
        }
        Ok(())
    }

    fn get_dirty_log(&mut self, slot: u32, words: &mut [u64]) -> Result<()> {
        let mut state = self.state();
        if !state.with_bitmap {
            return Err(errno("KVM_GET_DIRTY_LOG", "ENXIO"));
        }
        let slot = state.slots.get_mut(&slot).filter(|s| s.logged());
        let Some(slot) = slot else {
            return Err(errno("KVM_GET_DIRTY_LOG", "ENOENT"));
        };
        words.copy_from_slice(&slot.bitmap);
        slot.bitmap.fill(0);
        Ok(())
    }

    fn clear_dirty_log(&mut self, _: u32, _: u64, _: u32, _: &[u64]) -> Result<()> {
        Err(errno("KVM_CLEAR_DIRTY_LOG", "ENXIO"))
    }
}
