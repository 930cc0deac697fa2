//! KVM's dirty rings: one for each vCPU, which lists the pages that it wrote.
//!
//! The cost of a sync grows with the dirtied pages, not with the mapped memory. The protocol of one
//! ring is in `protocol`, a round over all of them and what can go wrong in `rounds`, the thread
//! that makes rounds in `reaper`; this file is the [`DirtyLog`] over them.
//!
//! **Never with initially-set bitmaps.** In that mode switching logging on protects no page, no
//! bitmap shows it, and the rings stay empty while the guest writes. So the capability is set to 0
//! before logging is switched on.
//!
//! **After an overrun**, or when too many pages are in doubt, lost pages stay writable, and the
//! kernel never reports them again. So logging is switched off and on for all slots, which protects
//! every page, and then all pages are reported. The report covers writes before it, and later
//! writes are logged. So this is exact with the guest running, as long as the report comes after
//! the switching. The next sync does it and not the reaper, because the VMM may do the switching,
//! under the contract of `log_on`. The reaper repairs the rings themselves at once, so that no vCPU
//! hangs meanwhile.

mod found;
mod limits;
#[doc(hidden)]
pub mod protocol;
mod reaper;
mod rounds;
mod waits;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use reaper::Rings;
pub use rounds::Figures;

use super::switch::LogSwitch;
use crate::dirty::vcpus::Vcpus;
use crate::dirty::{DirtyLog, Exact, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::error::{Error, Kind, Result};
use crate::memory::{Map, Ownership, Slot};
use crate::sys::guarded::Guarded;
use crate::sys::kvm::{Vm, VmFd, CAP_MANUAL_DIRTY_LOG_PROTECT2};
pub use crate::sys::kvm_ring::Enabled;
use crate::sys::kvm_ring::{has_bitmap, is_enabled, ResetRings, RingVm};
use crate::units::Pages;
use crate::vmm::Vmm;
use reaper::{AskedRounds, Reaper};
use rounds::{Look, Ring};
use std::sync::Arc;

/// How often one harvest sets up logging anew. Once is enough unless rings overrun faster than
/// that.
const RECOVERIES: u32 = 3;

/// A VMM that has nothing to kick.
struct NoVmm;
impl Vmm for NoVmm {}

/// Enables rings of `bytes` for each vCPU (0: brant's default, 256 KiB), and the backup bitmap
/// where the kernel has one. The virtual machine must not have a vCPU or a memory slot yet.
/// Afterwards no bitmap works on it. [`measure`](super::measure::measure()) says beforehand which
/// log suits the guest.
pub fn enable(vm: &kvm_ioctls::VmFd, bytes: u64) -> Result<Enabled> {
    crate::sys::kvm_ring::enable(&mut VmFd::new(VmFd::duplicate(vm)?)?, bytes)
}

/// KVM's dirty rings as a tracker's log: one ring for each vCPU, which lists the pages that the vCPU
/// wrote. A thread of brant's empties the rings while it tracks. The cost of a sync grows with the
/// dirtied pages, not with the mapped memory. [`Rings`] takes the vCPUs.
pub struct KvmRing {
    vm: Box<dyn Vm>,
    switch: LogSwitch,
    /// For `kick` and `thread_start`.
    vmm: Arc<dyn Vmm>,
    /// Says when the vCPUs may be kicked.
    guest: Arc<Ownership>,
    shared: Arc<AskedRounds>,
    /// The thread that makes rounds, while the log is started.
    reaper: Option<Reaper>,
    /// Whether there is also a bitmap, for writes that no vCPU made.
    with_bitmap: bool,
    /// Where the kernel puts the bitmap.
    words: Option<Guarded>,
}

impl std::fmt::Debug for KvmRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmRing")
            .field("rings", &self.rings())
            .field("with_bitmap", &self.with_bitmap)
            .finish_non_exhaustive()
    }
}

impl KvmRing {
    /// A log of the rings of `vm`, which has them enabled. Add the vCPUs next ([`Rings::add`]).
    /// While vCPUs run, a harvest first asks `vmm` to `kick` them. `vmm` is also told of the
    /// reaper's thread.
    pub fn new(
        vm: Box<dyn Vm>,
        reset: Arc<dyn ResetRings>,
        switch: LogSwitch,
        vmm: Option<Arc<dyn Vmm>>,
        with_bitmap: bool,
    ) -> Self {
        let vmm = vmm.unwrap_or_else(|| Arc::new(NoVmm));
        KvmRing {
            vm,
            switch,
            vmm: Arc::clone(&vmm),
            guest: Arc::default(),
            shared: Arc::new(AskedRounds::new(reset, vmm)),
            reaper: None,
            with_bitmap,
            words: None,
        }
    }

    /// A log of the rings of a virtual machine whose VMM uses `kvm-ioctls`. Rings must be enabled
    /// ([`enable`]). The descriptor is duplicated.
    ///
    /// ```
    /// use brant::dirty::kvm::{ring, KvmRing, LogSwitch};
    /// use brant::dirty::tracker::{Clearing, StartWith, Tracker};
    /// use brant::dirty::{DirtyLog, When};
    /// use brant::memory::{BlockDescription, BlockFlags, HostMemory, Memory, SlotDescription};
    /// use brant::units::Bytes;
    /// use kvm_bindings::kvm_userspace_memory_region;
    /// use std::sync::Arc;
    /// use vm_memory::GuestAddress;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Ok(kvm) = kvm_ioctls::Kvm::new() else { return Ok(()) };
    /// let vm = kvm.create_vm()?;
    /// // Before the first memory slot and the first vCPU.
    /// # if kvm.check_extension_raw(223) == 0 { return Ok(()) }
    /// ring::enable(&vm, 0)?;
    ///
    /// // 16 pages of memory; on page 1 a program that writes to page 8 and halts.
    /// let layout = std::alloc::Layout::from_size_align(16 * 4096, 4096)?;
    /// // SAFETY: not empty; freed when the process ends.
    /// let ram = unsafe { std::alloc::alloc_zeroed(layout) };
    /// let program = [0xa2, 0x00, 0x80, 0xf4]; // mov [0x8000], al; hlt
    /// // SAFETY: inside the memory.
    /// unsafe { ram.add(0x1000).copy_from(program.as_ptr(), program.len()) };
    /// // SAFETY: the memory outlives the VM.
    /// unsafe {
    ///     vm.set_user_memory_region(kvm_userspace_memory_region {
    ///         memory_size: 16 * 4096,
    ///         userspace_addr: ram as u64,
    ///         ..Default::default()
    ///     })?;
    /// }
    /// let mut vcpu = vm.create_vcpu(0)?;
    /// let mut sregs = vcpu.get_sregs()?;
    /// (sregs.cs.base, sregs.cs.selector) = (0, 0);
    /// vcpu.set_sregs(&sregs)?;
    /// let mut regs = vcpu.get_regs()?;
    /// (regs.rip, regs.rflags) = (0x1000, 2);
    /// vcpu.set_regs(&regs)?;
    ///
    /// let memory = Memory::new()?;
    /// let ram = memory.add_block(BlockDescription {
    ///     name: "ram".into(),
    ///     // SAFETY: 16 pages that stay until the program ends.
    ///     host: unsafe { HostMemory::new(ram) },
    ///     length: Bytes(16 * 4096),
    ///     page_size: Bytes(4096),
    ///     file: None,
    ///     flags: BlockFlags::default(),
    /// })?;
    /// memory.add_slot(&SlotDescription {
    ///     slot: 0,
    ///     flags: 0,
    ///     block: ram,
    ///     offset: Bytes(0),
    ///     length: Bytes(16 * 4096),
    ///     guest_address: GuestAddress(0),
    /// })?;
    ///
    /// let log = KvmRing::from_vm(&vm, LogSwitch::Brant, None)?;
    /// let rings = log.rings();
    /// rings.add_vcpu(0, &vcpu)?;
    /// let tracker = Tracker::new(Arc::new(memory), Clearing::default())?;
    /// tracker.add_log(Box::new(log))?;
    /// let consumer = tracker.consumer();
    /// consumer.start(StartWith::Nothing)?;
    ///
    /// vcpu.run()?; // KVM_EXIT_HLT. After KVM_EXIT_DIRTY_RING_FULL: rings.full(0)?, and again.
    /// assert!(consumer.sync(When::Stopped)?.found.0 >= 1);
    /// assert!(rings.dirtied(0)? >= 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_vm(
        vm: &kvm_ioctls::VmFd,
        switch: LogSwitch,
        vmm: Option<Arc<dyn Vmm>>,
    ) -> Result<Self> {
        KvmRing::from_fd(VmFd::new(VmFd::duplicate(vm)?)?, switch, vmm)
    }

    /// A log of the rings of the virtual machine behind a descriptor. Rings must be enabled.
    pub fn from_fd(mut vm: VmFd, switch: LogSwitch, vmm: Option<Arc<dyn Vmm>>) -> Result<Self> {
        if !is_enabled(&vm) {
            return Err(Error::new(
                Kind::State,
                "this VM's dirty rings are not enabled: that is done before its first vCPU is made",
            ));
        }
        let with_bitmap = has_bitmap(&mut vm)?;
        let reset = Arc::new(RingVm::new(&vm)?);
        Ok(KvmRing::new(Box::new(vm), reset, switch, vmm, with_bitmap))
    }

    /// Access for vCPU threads and queries. It stays usable after the log was given to a tracker.
    pub fn rings(&self) -> Rings {
        Rings(Arc::clone(&self.shared))
    }

    /// Whether there is also a bitmap, for writes that no vCPU made.
    pub fn with_bitmap(&self) -> bool {
        self.with_bitmap
    }

    fn switch(&mut self, slots: &[&Slot], on: bool) -> Result<()> {
        self.switch.set(&mut *self.vm, slots, on)
    }

    /// Makes a round, and sets up logging anew if pages were lost. Returns whether pages were lost:
    /// then the caller reports every page.
    fn collect(&mut self, map: &Map, look: Look) -> Result<bool> {
        let mut lost = false;
        for _ in 0..=RECOVERIES {
            if let Err(e) = self.shared.round(look, None) {
                // The pages that the failed round harvested may be unprotected.
                self.shared.lock().rounds.lost = true;
                return Err(e);
            }
            {
                let mut state = self.shared.lock();
                if !std::mem::take(&mut state.rounds.lost) {
                    return Ok(lost);
                }
                state.rounds.figures.recoveries += 1;
                state.rounds.found.no_doubt();
            }
            lost = true;
            let slots = super::slots(map)?;
            let done = self
                .switch(&slots, false)
                .and_then(|()| self.switch(&slots, true));
            if let Err(e) = done {
                self.shared.lock().rounds.lost = true;
                return Err(e.context("setting up logging anew after an overrun"));
            }
        }
        // The rings go on overrunning, and the next harvest repairs them. In the last harvest the
        // guest is paused, so nothing overruns them any more.
        self.shared.lock().rounds.lost = true;
        match look {
            Look::All => Err(Error::new(
                Kind::Internal,
                format!("dirty rings overran {RECOVERIES} times with the vCPUs stopped"),
            )),
            _ => Ok(true),
        }
    }

    fn get_bitmap(&mut self, slot: &Slot, sink: &mut dyn Sink) -> Result<()> {
        let len = slot.pages.0.div_ceil(64) as usize;
        if self.words.as_ref().is_none_or(|words| words.len() < len) {
            let what = format_args!("backup bitmap of slot {:#x}", slot.slot).to_string();
            self.words = Some(Guarded::new(len, what)?);
        }
        let Some(words) = &mut self.words else {
            return Ok(());
        };
        let words = words.tail(len);
        words.fill(0);
        self.vm.get_dirty_log(slot.slot, words)?;
        let origin = Origin::Slot {
            slot: slot.slot,
            page: Pages(0),
        };
        sink.bitmap(origin, words, slot.pages);
        Ok(())
    }

    /// Reads the bitmaps, after the rings: writes of the kernel itself.
    fn get_bitmaps(&mut self, slots: &[&Slot], sink: &mut dyn Sink) -> Result<()> {
        if !self.with_bitmap {
            return Ok(());
        }
        let mut result = Ok(());
        for slot in slots {
            result = result.and(self.get_bitmap(slot, sink));
        }
        result
    }

    fn begin(&mut self, map: &Map) -> Result<()> {
        {
            let mut state = self.shared.lock();
            state.rounds.rings.values_mut().for_each(Ring::begin);
        }
        // Entries of an earlier user of the rings do not belong to this log's slots, so they are
        // dropped.
        self.shared.round(Look::Unknown, None)?;
        {
            let mut state = self.shared.lock();
            let rounds = &mut state.rounds;
            rounds.lost = false;
            rounds.figures = Figures::default();
            rounds.found = Default::default();
            rounds.found.fit(map)?;
            rounds.tracking = true;
        }
        if self.vm.check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2) != 0 {
            self.vm.enable_cap(CAP_MANUAL_DIRTY_LOG_PROTECT2, 0)?;
        }
        let slots = super::slots(map)?;
        if matches!(self.switch, LogSwitch::Brant) {
            // If logging had been left on, switching it on would protect no page.
            self.switch(&slots, false)?;
        }
        self.switch(&slots, true)
    }

    fn end(&mut self) {
        {
            let mut state = self.shared.lock();
            // From here on nobody empties a ring unasked, and no vCPU may be kept waiting.
            state.lift_all(self.shared.now());
            state.rounds.tracking = false;
            state.rounds.found.clear();
            state.rounds.lost = false;
        }
        self.reaper = None;
    }
}

impl DirtyLog for KvmRing {
    fn kind(&self) -> LogKind {
        LogKind::KvmRing
    }

    fn exact(&self) -> Exact {
        // With page-modification logging a running vCPU holds back pages in a buffer.
        Exact::VcpusStopped
    }

    fn joins(&mut self, guest: &Arc<Ownership>) {
        self.guest = Arc::clone(guest);
        self.shared.joins(guest);
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        super::logged(map, each);
    }

    fn heap_bytes(&self) -> u64 {
        self.rings().heap_bytes()
            + self
                .words
                .as_ref()
                .map_or(0, |words| words.len() as u64 * 8)
    }

    fn vcpus(&self) -> Option<Arc<dyn Vcpus>> {
        Some(Arc::clone(&self.shared) as Arc<dyn Vcpus>)
    }

    fn strays(&self) -> u64 {
        self.rings().figures().strays
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        if self.reaper.is_some() {
            return Err(Error::new(Kind::State, "this dirty log is started already"));
        }
        if self.rings().vcpus().0 == 0 {
            return Err(Error::new(
                Kind::State,
                "no vCPU's ring was added: what the guest writes would be lost (expected \
                 brant_tracker_add_vcpu for each vCPU first)",
            ));
        }
        self.shared.lock().rounds.notes.clear();
        self.reaper = Some(Reaper::start(&self.shared)?);
        if let Err(e) = self.begin(map) {
            self.end();
            return Err(e);
        }
        Ok(Initial::Clean)
    }

    fn stop(&mut self, map: &Map) -> Result<()> {
        if self.reaper.is_none() {
            return Ok(());
        }
        let slots = super::slots(map)?;
        let result = self.switch(&slots, false);
        // The kernel pushes no more entries. A ring that stayed full would stop its vCPU again and
        // again.
        let emptied = self.shared.round(Look::Unknown, None);
        self.end();
        result.and(emptied)
    }

    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        let look = match when {
            When::Stopped => Look::All,
            When::Running => Look::Unknown,
        };
        let mut told = Vec::new();
        if when == When::Running {
            // A processor hands over the pages that it holds back when its vCPU leaves the guest.
            // Without the kick they come with a later exit. A guest that is paused for a migration
            // holds nothing back, and a guest that was handed over must not be woken.
            if let Some(Err(e)) = self.guest.kick(|| self.vmm.kick()) {
                told.push(format!("`kick`: {}", e.message()));
            }
        }
        let lost = self.collect(map, look);
        let slots = super::slots(map)?;
        let bitmaps = self.get_bitmaps(&slots, sink);
        {
            let mut state = self.shared.lock();
            told.append(&mut state.rounds.notes);
            state.rounds.found.give(sink)?;
        }
        bitmaps?;
        if lost? {
            self.covered(map, &mut |extent| extent.everything(sink));
        }
        Ok(match told.is_empty() {
            true => Harvested::Complete,
            false => Harvested::Told(told),
        })
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        if self.reaper.is_none() {
            return Ok(());
        }
        let (gone, fresh) = (old.slots_not_in(new)?, new.slots_not_in(old)?);
        let (gone, fresh) = (super::of_kvm(&gone)?, super::of_kvm(&fresh)?);
        // Entries name the slots as they were when they were pushed.
        let collected = self.shared.round(Look::Unknown, None);
        let bitmaps = self.get_bitmaps(&gone, sink);
        // If pages were lost, the log reports every page that it covers then, and the slots that go
        // are no longer among them.
        let lost = self.shared.lock().rounds.lost;
        if bitmaps.is_err() || collected.is_err() || lost {
            for slot in &gone {
                let origin = Origin::Slot {
                    slot: slot.slot,
                    page: Pages(0),
                };
                sink.everything(origin, slot.pages);
            }
        }
        {
            let mut state = self.shared.lock();
            // The next sync reports the loss.
            state.rounds.lost |= collected.is_err();
            state.rounds.found.give(sink)?;
            state.rounds.found.fit(new)?;
        }
        // Deleting the slots is the VMM's part. Had it deleted one already,
        // KVM_SET_USER_MEMORY_REGION would make that slot anew, over memory that may be unmapped
        // soon. For bitmaps a failed GET shows this; here nothing does. A VMM that switches logging
        // itself knows.
        if matches!(self.switch, LogSwitch::Vmm(_)) {
            // A slot whose logging cannot be switched off costs speed, and goes all the same.
            let _ = self.switch(&gone, false);
        }
        self.switch(&fresh, true).inspect_err(|_| {
            // The lists for blocks of the old map are still there, or were emptied just now. If
            // there is no memory for the others, nothing in them is kept, and every page counts as
            // lost.
            let mut state = self.shared.lock();
            if state.rounds.found.fit(old).is_err() {
                state.rounds.lost = true;
            }
        })
    }
}
