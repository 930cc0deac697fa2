//! A sync by dirty rings costs as much as there are dirtied pages: 1,000 pages in guests of 1 GiB
//! to 1 TiB, compared with KVM's bitmap of the same guest. KVM's reset of the rings is a part of it
//! that grows with the guest; brant's own part is reported apart from it.
//!
//! The memory is reserved, and only those pages are touched. KVM itself writes them, for a vCPU
//! that never runs: setting the wall-clock MSR makes it store the time at an address, by the path
//! that logs a guest's writes. It stores three times, so the ring gets 3,000 entries.

use crate::machine::{boundary, kvm, write_clock, Reserved, GIB};
use crate::report::{alternate, Report, Runs};
use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::kvm::ring::KvmRing;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::{DirtyLog, When};
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::sys::kvm_ring::{self, Reset, ResetRings, RingMap, RingVm};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;
use vm_memory::GuestAddress;

const RUNS: usize = 7;
const FAMILY: &str = "ring.sync_us";
const SIZES: [(&str, u64); 4] = [
    ("1GiB", GIB),
    ("16GiB", 16 * GIB),
    ("256GiB", 256 * GIB),
    ("1TiB", 1024 * GIB),
];
const DIRTY: u64 = 1000;

/// The kernel's RESET, timed.
struct Timed(RingVm, Arc<AtomicU64>);

impl ResetRings for Timed {
    fn reset(&self) -> brant::Result<Reset> {
        let begun = Instant::now();
        let result = self.0.reset();
        let nanoseconds = begun.elapsed().as_nanos() as u64;
        self.1.fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }
}

/// A guest that writes when it is told to.
struct Guest {
    /// Nanoseconds in RESET.
    in_reset: Arc<AtomicU64>,
    vcpu: VcpuFd,
    consumer: Consumer,
    length: u64,
    _vm: kvm_ioctls::VmFd,
    _ram: Reserved,
}

impl Guest {
    fn new(kvm: &Kvm, length: u64, by_ring: bool) -> brant::Result<Guest> {
        let vm = kvm.create_vm().unwrap();
        let bytes = match by_ring {
            true => kvm_ring::enable(&mut boundary(&vm), 0)?.bytes,
            false => 0,
        };
        let ram = Reserved::new(length);
        let memory = Arc::new(Memory::new()?);
        memory.add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: mapped until the benchmark ends.
            host: unsafe { brant::memory::HostMemory::new(ram.address()) },
            length: Bytes(length),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: length,
            userspace_addr: ram.address() as u64,
        };
        // SAFETY: the memory outlives the VM.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        memory.add_slot(&SlotDescription {
            slot: 0,
            flags: 0,
            block: memory.find_block("ram").unwrap(),
            offset: Bytes(0),
            length: Bytes(length),
            guest_address: GuestAddress(0),
        })?;
        let vcpu = vm.create_vcpu(0).unwrap();
        let in_reset = Arc::default();
        let log: Box<dyn DirtyLog> = if by_ring {
            let ours = boundary(&vm);
            let timed = Timed(RingVm::new(&ours)?, Arc::clone(&in_reset));
            let switch = LogSwitch::Brant;
            let log = KvmRing::new(Box::new(ours), Arc::new(timed), switch, None, false);
            // SAFETY: the descriptor is open while `vcpu` is.
            let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
            log.rings().add(0, Box::new(RingMap::new(fd, bytes)?))?;
            Box::new(log)
        } else {
            let vm = Box::new(boundary(&vm));
            Box::new(KvmLog::new(vm, KvmMode::InitiallySet, LogSwitch::Brant))
        };
        let tracker = Tracker::new(memory, Clearing::default())?;
        tracker.add_log(log)?;
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing)?;
        let guest = Guest {
            in_reset,
            vcpu,
            consumer,
            length,
            _vm: vm,
            _ram: ram,
        };
        guest.sync();
        Ok(guest)
    }

    /// Lets KVM write the pages, all over the guest.
    fn write(&self) {
        for page in 0..DIRTY {
            // Address 0 would switch the clock off.
            let page = self.length / PAGE_SIZE / DIRTY * page + 1;
            write_clock(&self.vcpu, page * PAGE_SIZE);
        }
    }

    /// Syncs, and then takes every page. Returns the sync's microseconds and pages.
    fn sync(&self) -> (f64, u64) {
        let report = self.consumer.sync(When::Running).unwrap();
        let mut cursor = Cursor::default();
        loop {
            let taken = self
                .consumer
                .take(&mut cursor, 4096, Pages(1 << 20))
                .unwrap();
            if taken.is_empty() {
                break;
            }
            taken.delivered();
        }
        (report.time.as_secs_f64() * 1e6, report.found.0)
    }
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped(FAMILY, &reason),
    };
    let mut guests = Vec::new();
    for (_, length) in SIZES {
        for by_ring in [true, false] {
            match Guest::new(&kvm, length, by_ring) {
                Ok(guest) => guests.push(guest),
                Err(e) => return report.skipped(FAMILY, &e.to_string()),
            }
        }
    }
    let mut kernel: [Runs; SIZES.len()] = Default::default();
    let mut own: [Runs; SIZES.len()] = Default::default();
    let all: [Runs; 2 * SIZES.len()] = alternate(RUNS, |contender| {
        let guest = &guests[contender];
        guest.write();
        guest.in_reset.store(0, Ordering::Relaxed);
        let (time, found) = guest.sync();
        assert_eq!(found, DIRTY, "each page counts once");
        if contender % 2 == 0 {
            let in_reset = guest.in_reset.load(Ordering::Relaxed) as f64 / 1e3;
            kernel[contender / 2].push(in_reset);
            own[contender / 2].push(time - in_reset);
        }
        time
    });
    for (i, (size, _)) in SIZES.iter().enumerate() {
        let name = format!("{FAMILY}/{size}");
        report.compared(&name, "us", &all[2 * i], "bitmap", &all[2 * i + 1]);
        let name = format!("{FAMILY}/{size}/kernel");
        report.compared(&name, "us", &kernel[i], "the whole sync", &all[2 * i]);
        let name = format!("{FAMILY}/{size}/own");
        report.compared(&name, "us", &own[i], "the whole sync", &all[2 * i]);
    }
    let [smallest, .., largest] = &own;
    let name = format!("{FAMILY}/own");
    report.compared(&name, "us", largest, "1 GiB", smallest);
    let rings = || (0..SIZES.len()).map(|i| all[2 * i].median());
    let slowest = rings().fold(0.0, f64::max);
    let fastest = rings().fold(f64::INFINITY, f64::min);
    let (slowest, fastest) = (Runs::of(slowest), Runs::of(fastest));
    report.compared(FAMILY, "us", &slowest, "the fastest size", &fastest);
}
