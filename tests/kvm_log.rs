//! The dirty log against the real KVM: what the kernel must do for the model in the unit
//! tests to be right, and the tracker with a guest that really writes.
//!
//! The guest is a few real-mode instructions for each page that it writes, so these tests
//! are about exactness and not about speed. Without `/dev/kvm` they say so and pass.

use alone::alone;
use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::sys::kvm as sys;
use brant::sys::kvm::{Region, Vm};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::Vmm;
use brant::Kind;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::GuestAddress;

#[path = "support/alone.rs"]
mod alone;

/// For a test in a process of its own.
const LIMIT: Duration = Duration::from_secs(120);
/// The code's page in the first slot; the guest only reads it.
const CODE: u64 = 1;
const LOGGED: u32 = sys::MEM_LOG_DIRTY_PAGES;

fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {e}");
            None
        }
    }
}

fn boundary(vm: &VmFd) -> sys::VmFd {
    // SAFETY: the descriptor is open while `vm` is.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    sys::VmFd::new(fd.try_clone_to_owned().unwrap()).unwrap()
}

/// Private anonymous memory, unmapped when dropped.
struct Ram(*mut u8, usize);

impl Ram {
    fn new(pages: u64) -> Ram {
        let length = (pages * PAGE_SIZE) as usize;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Ram(at.cast(), length)
    }

    fn byte(&self, page: u64) -> u8 {
        assert!((page * PAGE_SIZE) < self.1 as u64);
        // SAFETY: inside the mapping (just checked); the guest does not run meanwhile.
        unsafe { self.0.add((page * PAGE_SIZE) as usize).read_volatile() }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset as usize + bytes.len() <= self.1);
        // SAFETY: inside the mapping (just checked); the guest does not run meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset as usize), bytes.len())
        };
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the VM that used it is gone or does not run.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

fn region(vm: &VmFd, slot: u32, flags: u32, guest: u64, pages: u64, host: u64) {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: guest * PAGE_SIZE,
        memory_size: pages * PAGE_SIZE,
        userspace_addr: host,
    };
    // SAFETY: the memory outlives the VM's use of it.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

fn words(pages: u64) -> Vec<u64> {
    vec![0; pages.div_ceil(64) as usize]
}

/// All ones, without bits past the end.
fn ones(pages: u64) -> Vec<u64> {
    let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
    if !pages.is_multiple_of(64) {
        *words.last_mut().unwrap() = (1 << (pages % 64)) - 1;
    }
    words
}

/// A VM with one slot, logging off.
fn one_slot(kvm: &Kvm, pages: u64) -> (VmFd, sys::VmFd, Ram, Region) {
    let vm = kvm.create_vm().unwrap();
    let ram = Ram::new(pages);
    region(&vm, 0, 0, 0, pages, ram.0 as u64);
    let logged = Region {
        slot: 0,
        flags: LOGGED,
        guest_address: 0,
        size: pages * PAGE_SIZE,
        host_address: ram.0 as u64,
    };
    let fd = boundary(&vm);
    (vm, fd, ram, logged)
}

#[test]
fn initially_set_logs_are_all_ones_each_time_logging_is_switched_on() {
    let Some(kvm) = kvm() else { return };
    for pages in [1, 63, 64, 65, 130, 200] {
        let (_vm, mut fd, _ram, on) = one_slot(&kvm, pages);
        if fd.check_extension(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2) & 3 != 3 {
            eprintln!("skipped: this KVM has no initially-set dirty logs");
            return;
        }
        fd.enable_cap(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2, 3)
            .unwrap();
        for _ in 0..2 {
            fd.set_region(&on).unwrap();
            let mut got = words(pages);
            // GET only copies, so a second one says the same.
            for _ in 0..2 {
                got.fill(0);
                fd.get_dirty_log(0, &mut got).unwrap();
                assert_eq!(got, ones(pages), "{pages} pages");
            }
            fd.clear_dirty_log(0, 0, pages as u32, &got).unwrap();
            fd.get_dirty_log(0, &mut got).unwrap();
            assert_eq!(got, words(pages), "{pages} pages");
            fd.set_region(&Region { flags: 0, ..on }).unwrap();
            fd.get_dirty_log(0, &mut got).unwrap_err();
        }
    }
}

#[test]
fn clear_takes_whole_words_and_the_end_of_a_slot() {
    let Some(kvm) = kvm() else { return };
    let (_vm, mut fd, _ram, on) = one_slot(&kvm, 130);
    fd.enable_cap(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2, 3)
        .unwrap();
    fd.set_region(&on).unwrap();
    let all = [u64::MAX; 4];
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
        let done = fd.clear_dirty_log(0, first, pages, &all);
        assert_eq!(done.is_ok(), fine, "first {first}, pages {pages}: {done:?}");
    }
}

#[test]
fn the_older_mode_starts_with_nothing_set() {
    let Some(kvm) = kvm() else { return };
    for mode in [0, 1] {
        let (_vm, mut fd, _ram, on) = one_slot(&kvm, 130);
        fd.enable_cap(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2, mode)
            .unwrap();
        fd.set_region(&on).unwrap();
        let mut got = words(130);
        fd.get_dirty_log(0, &mut got).unwrap();
        assert_eq!(got, words(130));
    }
}

/// A guest of 250 pages in three slots that are no multiples of 64 pages, with a gap, and a
/// fourth that shows pages of the second again.
struct Guest {
    vm: VmFd,
    vcpu: VcpuFd,
    ram: Ram,
    memory: Arc<Memory>,
    consumer: Consumer,
    copy: Vec<u8>,
    cursor: Cursor,
}

const PAGES: u64 = 220;
/// Slot, first page of the block, pages, first page frame of the guest.
const SLOTS: [(u32, u64, u64, u64); 4] = [
    (0, 0, 70, 0),
    (1, 70, 33, 70),
    (2, 103, 117, 110),
    (3, 80, 20, 230),
];

/// Switches logging as a VMM would.
struct Switches {
    vm: Mutex<sys::VmFd>,
    host: u64,
    calls: Mutex<Vec<(bool, Vec<u32>)>>,
}

impl Switches {
    fn switch(&self, slots: &[u32], on: bool) -> brant::Result<()> {
        self.calls.lock().unwrap().push((on, slots.to_vec()));
        for (slot, first, pages, guest) in SLOTS {
            if slots.contains(&slot) {
                self.vm.lock().unwrap().set_region(&Region {
                    slot,
                    flags: if on { LOGGED } else { 0 },
                    guest_address: guest * PAGE_SIZE,
                    size: pages * PAGE_SIZE,
                    host_address: self.host + first * PAGE_SIZE,
                })?;
            }
        }
        Ok(())
    }
}

impl Vmm for Switches {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn log_on(&self, slots: &[u32]) -> brant::Result<()> {
        self.switch(slots, true)
    }
    fn log_off(&self, slots: &[u32]) -> brant::Result<()> {
        self.switch(slots, false)
    }
}

impl Guest {
    fn new(kvm: &Kvm, mode: KvmMode, clearing: Clearing, by_vmm: bool) -> (Guest, Arc<Switches>) {
        let vm = kvm.create_vm().unwrap();
        let ram = Ram::new(PAGES);
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
                host: unsafe { brant::memory::HostMemory::new(ram.0) },
                length: Bytes(PAGES * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        for (slot, first, pages, guest) in SLOTS {
            region(&vm, slot, 0, guest, pages, ram.0 as u64 + first * PAGE_SIZE);
            memory
                .add_slot(&SlotDescription {
                    slot,
                    flags: 0,
                    block: "ram".into(),
                    offset: Bytes(first * PAGE_SIZE),
                    length: Bytes(pages * PAGE_SIZE),
                    guest_address: GuestAddress(guest * PAGE_SIZE),
                })
                .unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        let switches = Arc::new(Switches {
            vm: Mutex::new(boundary(&vm)),
            host: ram.0 as u64,
            calls: Mutex::default(),
        });
        let switch = match by_vmm {
            true => LogSwitch::Vmm(Arc::clone(&switches) as Arc<dyn Vmm>),
            false => LogSwitch::Brant,
        };
        let tracker = Tracker::new(Arc::clone(&memory), clearing).unwrap();
        tracker
            .add_log(Box::new(KvmLog::from_vm(&vm, mode, switch).unwrap()))
            .unwrap();
        let guest = Guest {
            vm,
            vcpu,
            ram,
            memory,
            consumer: tracker.consumer(),
            copy: vec![0; PAGES as usize],
            cursor: Cursor::default(),
        };
        (guest, switches)
    }

    /// Has the guest increment the first byte of each of these page frames.
    fn writes(&mut self, frames: &[u64]) {
        let mut code = Vec::new();
        for frame in frames {
            let [low, high] = ((frame * PAGE_SIZE / 16) as u16).to_le_bytes();
            // mov ax, segment; mov ds, ax; inc byte [0]
            code.extend([0xb8, low, high, 0x8e, 0xd8, 0xfe, 0x06, 0, 0]);
        }
        code.push(0xf4);
        self.ram.write(CODE * PAGE_SIZE, &code);
        // The VMM's own write: KVM does not log it.
        self.consumer
            .mark_guest(GuestAddress(CODE * PAGE_SIZE), code.len() as u64);
        let mut sregs = self.vcpu.get_sregs().unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        self.vcpu.set_sregs(&sregs).unwrap();
        let mut regs = self.vcpu.get_regs().unwrap();
        regs.rip = CODE * PAGE_SIZE;
        regs.rflags = 2;
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => break,
                Ok(other) => panic!("the guest stopped with {other:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => panic!("KVM_RUN: {e}"),
            }
        }
    }

    /// Takes and reads everything pending; `between` runs after the first take.
    fn drain(&mut self, mut between: impl FnMut(&mut Self)) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        loop {
            let taken = self.consumer.take(&mut self.cursor, 1, Pages(8)).unwrap();
            if taken.is_empty() {
                return found;
            }
            if found.is_empty() {
                between(self);
            }
            for run in taken.runs() {
                for page in run.pages.first().0..run.pages.end().0 {
                    self.copy[page as usize] = self.ram.byte(page);
                    found.insert(page);
                }
            }
            taken.delivered();
        }
    }

    fn assert_copied(&self) {
        for page in 0..PAGES {
            assert_eq!(self.copy[page as usize], self.ram.byte(page), "page {page}");
        }
    }

    fn flags_are_off(&self) -> bool {
        let mut fd = boundary(&self.vm);
        SLOTS
            .iter()
            .all(|&(slot, _, pages, _)| fd.get_dirty_log(slot, &mut words(pages)).is_err())
    }
}

#[test]
fn every_page_the_guest_writes_is_found_and_none_twice() {
    let Some(kvm) = kvm() else { return };
    let modes = [
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
    ];
    let clearings = [
        Clearing::Chunked { shift: 6 },
        Clearing::default(),
        Clearing::AtSync,
    ];
    for (mode, clearing) in modes.iter().flat_map(|m| clearings.map(|c| (*m, c))) {
        let (mut guest, _) = Guest::new(&kvm, mode, clearing, false);
        assert!(guest.flags_are_off());
        // Frames that are mapped before logging begins.
        guest.writes(&[2, 69, 70, 226]);
        guest.consumer.start(StartWith::Everything).unwrap();
        assert_eq!(guest.consumer.pending(), Pages(PAGES));
        guest.consumer.sync(When::Running).unwrap();
        let all = guest.drain(|guest| guest.writes(&[2, 63, 64, 69, 70, 226]));
        assert_eq!(all.len() as u64, PAGES, "{mode:?} {clearing:?}");

        // Guest frames; the block's pages are 2, 63, 64, 69, 70, 102, 103, 219, and 85
        // through the second look at it.
        guest.writes(&[2, 63, 64, 69, 70, 102, 110, 226, 235]);
        guest.consumer.sync(When::Running).unwrap();
        let wrote = BTreeSet::from([CODE, 2, 63, 64, 69, 70, 85, 102, 103, 219]);
        let first = guest.drain(|_| ());
        assert_eq!(first, wrote, "{mode:?} {clearing:?}");

        // Written again between the harvest and the taking of the rest.
        guest.writes(&[64, 226]);
        guest.consumer.sync(When::Running).unwrap();
        guest.drain(|guest| guest.writes(&[64, 65, 226, 85, 235]));
        let last = guest.consumer.sync(When::Stopped).unwrap();
        assert!(last.warnings.is_empty());
        guest.drain(|_| ());
        guest.assert_copied();
        for _ in 0..2 {
            let still = guest.consumer.sync(When::Stopped).unwrap();
            assert_eq!(still.found, Pages(0), "{mode:?} {clearing:?}");
        }
        guest.consumer.stop().unwrap();
        assert!(guest.flags_are_off(), "{mode:?} {clearing:?}");

        // And again: the kernel makes new bitmaps.
        guest.copy.fill(0xff);
        guest.consumer.start(StartWith::Nothing).unwrap();
        assert_eq!(guest.consumer.pending(), Pages(0));
        assert_eq!(guest.consumer.sync(When::Running).unwrap().found, Pages(0));
        guest.writes(&[69, 226]);
        guest.consumer.sync(When::Running).unwrap();
        assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 69, 219]));
    }
}

#[test]
fn a_write_through_another_slot_of_the_same_memory_is_found() {
    let Some(kvm) = kvm() else { return };
    for clearing in [
        Clearing::Chunked { shift: 6 },
        Clearing::default(),
        Clearing::AtSync,
    ] {
        let (mut guest, _) = Guest::new(&kvm, KvmMode::Auto, clearing, false);
        guest.consumer.start(StartWith::Everything).unwrap();
        guest.consumer.sync(When::Running).unwrap();
        guest.drain(|_| ());
        // Pages 80 and 85 lie in slot 1, and at frames 230 and 235 in slot 3.
        for frames in [[80, 235], [230, 85], [235, 85], [230, 230]] {
            guest.writes(&frames);
            guest.consumer.sync(When::Running).unwrap();
            // Taking a page protects it in both: what is written then, through either, shows
            // in the next sync.
            guest.drain(|guest| guest.writes(&frames));
            guest.consumer.sync(When::Stopped).unwrap();
            guest.drain(|_| ());
            guest.assert_copied();
        }
        let still = guest.consumer.sync(When::Stopped).unwrap();
        assert_eq!(still.found, Pages(0), "{clearing:?}");
    }
}

#[test]
fn a_chunk_rounded_out_over_a_page_that_was_sent_leaves_its_new_bit_alone() {
    let Some(kvm) = kvm() else { return };
    let clearing = Clearing::Chunked { shift: 6 };
    let (mut guest, _) = Guest::new(&kvm, KvmMode::Auto, clearing, false);
    guest.consumer.start(StartWith::Everything).unwrap();
    guest.consumer.sync(When::Running).unwrap();
    guest.drain(|_| ());
    // Pages 127 and 128 of the block, two chunks, are pages 24 and 25 of slot 2: one word.
    let (before, after) = (134, 135);
    guest.writes(&[before, after]);
    guest.consumer.sync(When::Running).unwrap();
    let mut taken = Vec::new();
    for _ in [CODE, 127, 128] {
        let one = guest.consumer.take(&mut guest.cursor, 1, Pages(1)).unwrap();
        let page = one.runs().next().unwrap().pages.first().0;
        one.delivered();
        taken.push(page);
        guest.copy[page as usize] = guest.ram.byte(page);
        if page == 127 {
            guest.writes(&[before]);
        }
    }
    assert_eq!(taken, [CODE, 127, 128]);
    guest.consumer.sync(When::Stopped).unwrap();
    guest.cursor = Cursor::default();
    assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 127]));
    guest.assert_copied();
}

#[test]
fn a_misaligned_block_of_4_mib_is_cleared_by_one_ioctl() {
    let Some(kvm) = kvm() else { return };
    const FOUR_MIB: u64 = 1024;
    for first in [0, 1, 37, 63] {
        let vm = kvm.create_vm().unwrap();
        let ram = Ram::new(first + FOUR_MIB);
        let host = ram.0 as u64 + first * PAGE_SIZE;
        region(&vm, 0, 0, 1, FOUR_MIB, host);
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
                host: unsafe { brant::memory::HostMemory::new(ram.0) },
                length: Bytes((first + FOUR_MIB) * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        memory
            .add_slot(&SlotDescription {
                slot: 0,
                flags: 0,
                block: "ram".into(),
                offset: Bytes(first * PAGE_SIZE),
                length: Bytes(FOUR_MIB * PAGE_SIZE),
                guest_address: GuestAddress(PAGE_SIZE),
            })
            .unwrap();
        let tracker = Tracker::new(memory, Clearing::default()).unwrap();
        let log = KvmLog::from_vm(&vm, KvmMode::Auto, LogSwitch::Brant).unwrap();
        tracker.add_log(Box::new(log)).unwrap();
        let consumer = tracker.consumer();
        // Every page is dirty.
        consumer.start(StartWith::Everything).unwrap();
        consumer.sync(When::Running).unwrap();
        let mut cursor = Cursor::default();
        loop {
            let taken = consumer.take(&mut cursor, 64, Pages(4096)).unwrap();
            if taken.is_empty() {
                break;
            }
            taken.delivered();
        }
        let stats = consumer.stats();
        if boundary(&vm).check_extension(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2) & 3 == 3 {
            assert_eq!(
                (stats.clear_calls, stats.clear_bits),
                (1, FOUR_MIB),
                "{first}"
            );
        }
        assert_eq!(consumer.sync(When::Stopped).unwrap().found, Pages(0));
        consumer.stop().unwrap();
    }
}

#[test]
fn the_vmm_can_switch_the_logging_itself() {
    let Some(kvm) = kvm() else { return };
    let (mut guest, switches) = Guest::new(&kvm, KvmMode::Auto, Clearing::default(), true);
    guest.consumer.start(StartWith::Nothing).unwrap();
    guest.writes(&[5, 226]);
    guest.consumer.sync(When::Running).unwrap();
    assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 5, 219]));
    guest.consumer.stop().unwrap();
    assert!(guest.flags_are_off());
    let calls = switches.calls.lock().unwrap();
    let all = vec![0, 1, 2, 3];
    assert_eq!(*calls, [(true, all.clone()), (false, all)]);
}

/// A VMM whose `log_on` forgets to do it.
struct Forgets(Mutex<Vec<bool>>);

impl Vmm for Forgets {
    fn log_on(&self, _: &[u32]) -> brant::Result<()> {
        self.0.lock().unwrap().push(true);
        Ok(())
    }
    fn log_off(&self, _: &[u32]) -> brant::Result<()> {
        self.0.lock().unwrap().push(false);
        Ok(())
    }
}

#[test]
fn a_log_on_that_switched_nothing_on_is_named_at_the_start() {
    let Some(kvm) = kvm() else { return };
    let (guest, _) = Guest::new(&kvm, KvmMode::Auto, Clearing::default(), true);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let forgets = Arc::new(Forgets(Mutex::default()));
    let switch = LogSwitch::Vmm(Arc::clone(&forgets) as Arc<dyn Vmm>);
    let log = KvmLog::from_vm(&guest.vm, KvmMode::Auto, switch).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    let error = consumer.start(StartWith::Everything).unwrap_err();
    assert_eq!(error.kind(), Kind::Vmm);
    for part in ["`log_on`", "slot 0x0", "KVM_MEM_LOG_DIRTY_PAGES"] {
        assert!(error.message().contains(part), "{part} in: {error}");
    }
    assert_eq!(*forgets.0.lock().unwrap(), [true, false]);
    assert!(guest.flags_are_off());
}

#[test]
fn a_slot_that_kvm_does_not_have_is_an_error_and_is_not_made() {
    let Some(kvm) = kvm() else { return };
    let (guest, _) = Guest::new(&kvm, KvmMode::Auto, Clearing::default(), false);
    let free = GuestAddress(1 << 30);
    let slot = SlotDescription {
        slot: 9,
        flags: 0,
        block: "ram".into(),
        offset: Bytes(0),
        length: Bytes(8 * PAGE_SIZE),
        guest_address: free,
    };
    guest.memory.add_slot(&slot).unwrap();
    let error = guest.consumer.start(StartWith::Everything).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains("no memory slot 0x9"), "{error}");
    // Whoever makes it now makes a new one; of one that exists, size and memory cannot change.
    region(&guest.vm, 9, 0, free.0, 16, guest.ram.0 as u64);
    assert!(guest.flags_are_off(), "the slots that exist are not logged");
    guest.memory.remove_slot(9, free).unwrap();
    guest.consumer.start(StartWith::Everything).unwrap();
    guest.consumer.stop().unwrap();
}

#[test]
fn a_slot_that_goes_is_harvested_and_one_that_comes_is_logged() {
    let Some(kvm) = kvm() else { return };
    for mode in [
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
    ] {
        let (mut guest, _) = Guest::new(&kvm, mode, Clearing::Chunked { shift: 6 }, false);
        guest.consumer.start(StartWith::Everything).unwrap();
        guest.drain(|_| ());
        guest.consumer.sync(When::Running).unwrap();
        guest.drain(|_| ());
        // Page 85 through slot 3, which then goes.
        guest.writes(&[235]);
        let (slot, first, pages, frame) = SLOTS[3];
        let at = GuestAddress(frame * PAGE_SIZE);
        guest.memory.remove_slot(slot, at).unwrap();
        region(&guest.vm, slot, 0, frame, 0, 0);
        guest.consumer.sync(When::Running).unwrap();
        assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 85]), "{mode:?}");
        // It comes back.
        let host = guest.ram.0 as u64 + first * PAGE_SIZE;
        region(&guest.vm, slot, 0, frame, pages, host);
        guest
            .memory
            .add_slot(&SlotDescription {
                slot,
                flags: 0,
                block: "ram".into(),
                offset: Bytes(first * PAGE_SIZE),
                length: Bytes(pages * PAGE_SIZE),
                guest_address: at,
            })
            .unwrap();
        assert_eq!(guest.drain(|_| ()), (80..100).collect(), "{mode:?}");
        guest.writes(&[236]);
        guest.consumer.sync(When::Stopped).unwrap();
        assert!(guest.drain(|_| ()).contains(&86), "{mode:?}");
        guest.assert_copied();
        assert_eq!(
            guest.consumer.sync(When::Stopped).unwrap().found,
            Pages(0),
            "{mode:?}"
        );
    }
}

#[test]
fn a_slot_that_was_replaced_by_a_larger_one_counts_as_dirty_and_nothing_else_is_written() {
    alone(LIMIT, || {
        let Some(kvm) = kvm() else {
            return;
        };
        for mode in [
            KvmMode::GetAndClear,
            KvmMode::ManualProtect,
            KvmMode::InitiallySet,
        ] {
            // A bitmap of 512 bytes and one of 64 KiB and a word, and what KVM has then.
            for (pages, larger) in [(4096, 1 << 20), ((1 << 19) + 64, 1 << 20)] {
                replace_slot(&kvm, mode, pages, larger);
            }
        }
    });
}

/// KVM's slot 0 becomes larger behind brant's back, and then what it was.
fn replace_slot(kvm: &Kvm, mode: KvmMode, pages: u64, larger: u64) {
    let vm = kvm.create_vm().unwrap();
    let reserved = (larger * PAGE_SIZE) as usize;
    // SAFETY: a new mapping where the kernel likes; nothing of it is touched.
    let host = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), reserved, access, flags, -1, 0)
    };
    assert_ne!(host, libc::MAP_FAILED);
    let set = |pages: u64, flags: u32| {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping outlives the machine.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    };
    set(pages, 0);
    let memory = Arc::new(Memory::new().unwrap());
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { brant::memory::HostMemory::new(host.cast()) },
            length: Bytes(pages * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    let slot = SlotDescription {
        slot: 0,
        flags: 0,
        block: "ram".into(),
        offset: Bytes(0),
        length: Bytes(pages * PAGE_SIZE),
        guest_address: GuestAddress(0),
    };
    memory.add_slot(&slot).unwrap();
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    let log = KvmLog::from_vm(&vm, mode, LogSwitch::Brant).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    let named = format!("{mode:?}, {pages} pages");
    let take_all = || {
        let (mut cursor, mut all) = (Cursor::default(), 0);
        loop {
            let taken = consumer.take(&mut cursor, 1024, Pages(1 << 20)).unwrap();
            if taken.is_empty() {
                return all;
            }
            all += taken.pages().0;
            taken.delivered();
        }
    };
    consumer.sync(When::Running).unwrap();
    take_all();
    set(0, 0);
    set(larger, LOGGED);
    for _ in 0..2 {
        let report = consumer.sync(When::Running).unwrap();
        assert!(
            report.warnings.iter().any(|w| w.contains("slot 0x0")),
            "{named}: {report:?}"
        );
        assert_eq!(take_all(), pages, "{named}");
    }
    // In the right order all is well again.
    memory.remove_slot(0, GuestAddress(0)).unwrap();
    set(0, 0);
    set(pages, 0);
    memory.add_slot(&slot).unwrap();
    let report = consumer.sync(When::Running).unwrap();
    assert_eq!(report.warnings, [""; 0], "{named}");
    take_all();
    assert_eq!(
        consumer.sync(When::Running).unwrap().found,
        Pages(0),
        "{named}"
    );
    consumer.stop().unwrap();
    // SAFETY: our own mapping; the machine does not run.
    unsafe { libc::munmap(host, reserved) };
}
