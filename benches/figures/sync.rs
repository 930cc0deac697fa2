//! What a sync costs beside the kernel's own work, and how long clearing a chunk takes, on slots
//! of 256 GiB and 1 TiB of the real KVM.
//!
//! The memory is reserved and never touched, and no vCPU runs. Logging starts with every bit
//! set, so a density is made by clearing all but the wanted share; from then on the kernel
//! answers each GET with the same bits, because the clears of the walks between the syncs are
//! kept from it.

use crate::report::{alternate, Report, Runs};
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, Cursor, Lease, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::sys::kvm::{Region, Vm, VmFd, CAP_MANUAL_DIRTY_LOG_PROTECT2};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

const RUNS: usize = 5;
const GIB: u64 = 1 << 30;

/// What happens to a clear.
enum Clear {
    /// It reaches the kernel.
    Pass,
    /// It reaches the kernel without the pages wanted: one in `1 / density`, scattered.
    Leave { density: f64 },
    /// It does not.
    Drop,
}

struct Control {
    clear: Clear,
    /// Time in GET, and in CLEAR.
    get: Duration,
    clearing: Duration,
}

/// The kernel with a clock, and with a hand on its clears.
struct Timed(VmFd, Arc<Mutex<Control>>);

impl Vm for Timed {
    fn check_extension(&self, cap: u32) -> u64 {
        self.0.check_extension(cap)
    }
    fn enable_cap(&mut self, cap: u32, arg: u64) -> brant::Result<()> {
        self.0.enable_cap(cap, arg)
    }
    fn set_region(&mut self, region: &Region) -> brant::Result<()> {
        self.0.set_region(region)
    }
    fn get_dirty_log(&mut self, slot: u32, words: &mut [u64]) -> brant::Result<()> {
        let begun = Instant::now();
        let result = self.0.get_dirty_log(slot, words);
        self.1.lock().unwrap().get += begun.elapsed();
        result
    }
    fn clear_dirty_log(
        &mut self,
        slot: u32,
        first: u64,
        pages: u32,
        words: &[u64],
    ) -> brant::Result<()> {
        let mut control = self.1.lock().unwrap();
        let begun = Instant::now();
        let result = match control.clear {
            Clear::Pass => self.0.clear_dirty_log(slot, first, pages, words),
            Clear::Drop => Ok(()),
            Clear::Leave { density } => {
                let left = without(words, density);
                self.0.clear_dirty_log(slot, first, pages, &left)
            }
        };
        control.clearing += begun.elapsed();
        result
    }
}

/// `words` without a scattered share of its bits.
fn without(words: &[u64], density: f64) -> Vec<u64> {
    let mut words = words.to_vec();
    if density > 0.0 {
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut at = 0;
        loop {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let gap = (state >> 32) as f64 / (1u64 << 32) as f64 * 2.0 * (1.0 / density - 0.5);
            at += gap as usize;
            match words.get_mut(at / 64) {
                Some(word) => *word &= !(1 << (at % 64)),
                None => break,
            }
            at += 1;
        }
    }
    words
}

/// Address space for a slot.
struct Reserved(*mut u8, usize);

impl Reserved {
    fn new(length: u64) -> Reserved {
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{length} bytes of address space");
        Reserved(at.cast(), length as usize)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the VM is dropped before it.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// A tracked VM of one slot.
struct Machine {
    lease: Lease,
    control: Arc<Mutex<Control>>,
    vm: kvm_ioctls::VmFd,
    _ram: Reserved,
}

impl Machine {
    fn new(kvm: &Kvm, length: u64) -> Machine {
        let vm = kvm.create_vm().unwrap();
        let ram = Reserved::new(length);
        let memory = Arc::new(Memory::new().unwrap());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: length,
            userspace_addr: ram.0 as u64,
        };
        // SAFETY: the memory outlives the VM.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                host: ram.0,
                length: Bytes(length),
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
                offset: Bytes(0),
                length: Bytes(length),
                guest_address: GuestAddress(0),
            })
            .unwrap();
        let control = Arc::new(Mutex::new(Control {
            clear: Clear::Pass,
            get: Duration::ZERO,
            clearing: Duration::ZERO,
        }));
        let timed = Timed(boundary(&vm), Arc::clone(&control));
        let tracker = Tracker::new(memory, Clearing::default()).unwrap();
        let log = KvmLog::new(Box::new(timed), KvmMode::InitiallySet, LogSwitch::Brant);
        tracker.add_log(Box::new(log)).unwrap();
        let lease = tracker.lease().unwrap();
        Machine {
            lease,
            control,
            vm,
            _ram: ram,
        }
    }

    fn clears(&self, clear: Clear) {
        let mut control = self.control.lock().unwrap();
        control.clear = clear;
        control.clearing = Duration::ZERO;
    }

    /// Takes everything that is pending.
    fn drain(&self) {
        let mut cursor = Cursor::default();
        let mut runs = Vec::new();
        loop {
            self.lease
                .take(&mut cursor, 4096, Pages(1 << 20), &mut runs)
                .unwrap();
            if runs.is_empty() {
                break;
            }
        }
    }

    /// A sync's time outside the kernel.
    fn sync(&self) -> Duration {
        self.control.lock().unwrap().get = Duration::ZERO;
        let report = self.lease.sync(When::Running).unwrap();
        report.time - self.control.lock().unwrap().get
    }
}

fn boundary(vm: &kvm_ioctls::VmFd) -> VmFd {
    // SAFETY: the descriptor is open while `vm` is.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    VmFd::new(fd.try_clone_to_owned().unwrap()).unwrap()
}

const SIZES: [(&str, u64); 2] = [("256GiB", 256 * GIB), ("1TiB", 1024 * GIB)];
const DENSITIES: [(&str, f64); 4] = [("0%", 0.0), ("0.1%", 0.001), ("1%", 0.01), ("10%", 0.1)];

/// All figures of syncing and clearing.
pub fn measure(report: &mut Report) {
    if !report.wants_any("sync.over_kernel/") && !report.wants("clear.longest_ms") {
        return;
    }
    let kvm = match Kvm::new() {
        Ok(kvm) if kvm.check_extension_raw(CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) & 3 == 3 => kvm,
        Ok(_) => {
            report.skipped(
                "sync.over_kernel/",
                "this KVM has no initially-set dirty logs",
            );
            return report.skipped("clear.longest_ms", "the same");
        }
        Err(e) => {
            let reason = format!("/dev/kvm cannot be opened: {e}");
            report.skipped("sync.over_kernel/", &reason);
            return report.skipped("clear.longest_ms", &reason);
        }
    };
    for (size, length) in SIZES {
        for (density_name, density) in DENSITIES {
            let name = format!("sync.over_kernel/{size}-{density_name}");
            if report.wants(&name) {
                over_kernel(report, &kvm, &name, length, density);
            }
        }
    }
    if report.wants("clear.longest_ms") {
        longest_clear(report, &kvm);
    }
}

fn over_kernel(report: &mut Report, kvm: &Kvm, name: &str, length: u64, density: f64) {
    let machine = Machine::new(kvm, length);
    let words = (length / PAGE_SIZE / 64) as usize;
    machine.clears(Clear::Leave { density });
    // Clears everything, and so leaves what is wanted.
    machine.lease.start(StartWith::Nothing).unwrap();
    machine.clears(Clear::Drop);
    let (mut from, mut to) = (vec![1u64; words], vec![1u64; words]);
    let mut pages = None;
    let [sync, memcpy]: [Runs; 2] = alternate(RUNS, |contender| {
        if contender == 0 {
            let time = machine.sync();
            let pending = machine.lease.pending().0;
            assert_eq!(
                *pages.get_or_insert(pending),
                pending,
                "each sync finds the same"
            );
            let wanted = (length / PAGE_SIZE) as f64 * density;
            assert!(
                (pending as f64 - wanted).abs() <= wanted * 0.02,
                "{pending} of {wanted}"
            );
            machine.drain();
            time.as_secs_f64() * 1e3
        } else {
            // A GET has just written what a sync reads; so here.
            getting(&machine.vm, &mut from);
            let begun = Instant::now();
            to.copy_from_slice(&from);
            std::hint::black_box(&mut to);
            begun.elapsed().as_secs_f64() * 1e3
        }
    });
    machine.lease.stop().unwrap();
    report.compared(name, "ms", &sync, "memcpy", &memcpy);
}

/// Has the kernel write the bitmap.
fn getting(vm: &kvm_ioctls::VmFd, words: &mut [u64]) {
    boundary(vm).get_dirty_log(0, words).unwrap();
}

fn longest_clear(report: &mut Report, kvm: &Kvm) {
    let machine = Machine::new(kvm, SIZES[0].1);
    let [chunk, whole]: [Runs; 2] = alternate(RUNS, |contender| {
        machine.clears(Clear::Pass);
        let time = if contender == 0 {
            machine.lease.start(StartWith::Everything).unwrap();
            machine.drain();
            machine.lease.stats().longest_clear
        } else {
            // Starting clean is one clear of the whole slot.
            machine.lease.start(StartWith::Nothing).unwrap();
            machine.control.lock().unwrap().clearing
        };
        machine.lease.stop().unwrap();
        time.as_secs_f64() * 1e3
    });
    report.compared("clear.longest_ms", "ms", &chunk, "one clear of all", &whole);
}
