//! Huge guests that cost nothing: VMs of the real KVM whose memory is reserved and never touched.
//! They are tracked; the kernel's calls are timed, and clears can be changed. The figures of syncs
//! use them; this file measures nothing itself.
//!
//! No vCPU runs. Logging starts with every bit set, and a density is made by clearing all but the
//! wanted share. From then on the kernel answers each GET with the same bits, because the clears of
//! walks between the syncs do not reach it.

use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::kvm::{KvmLog, KvmMode, KvmRing, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, SyncReport, Tracker};
use brant::dirty::{DirtyLog, When};
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::sys::kvm::{UserMemoryRegion, Vm, VmFd, CAP_MANUAL_DIRTY_LOG_PROTECT2};
use brant::sys::kvm_ring::{self, RingMap};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use kvm_bindings::{kvm_userspace_memory_region, KVM_CAP_DIRTY_LOG_RING_ACQ_REL};
use kvm_ioctls::{Kvm, VcpuFd};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

pub const GIB: u64 = 1 << 30;

/// What happens to a clear.
pub enum Clear {
    /// It reaches the kernel.
    Pass,
    /// It reaches the kernel without the wanted pages: one in `1 / density`, scattered.
    Leave { density: f64 },
    /// It does not reach the kernel.
    Drop,
}

pub struct Control {
    clear: Clear,
    /// Time in GET, and in CLEAR.
    pub get: Duration,
    pub clearing: Duration,
    /// How often CLEAR was called.
    pub clears: u64,
}

/// The kernel, with timed calls and changed clears.
struct Timed(VmFd, Arc<Mutex<Control>>);

impl Vm for Timed {
    fn check_extension(&self, cap: u32) -> u64 {
        self.0.check_extension(cap)
    }
    fn enable_cap(&mut self, cap: u32, arg: u64) -> brant::Result<()> {
        self.0.enable_cap(cap, arg)
    }
    fn set_region(&mut self, region: &UserMemoryRegion) -> brant::Result<()> {
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
        control.clears += 1;
        result
    }
}

/// `words` without a scattered share of its bits.
fn without(words: &[u64], density: f64) -> Vec<u64> {
    let mut words = words.to_vec();
    scattered(&mut words, density, 0, |word, bit| *word &= !bit);
    words
}

/// Calls `f` with the word and the bit of each bit of a scattered share of `words`. Each `seed`
/// gives another share.
pub fn scattered(words: &mut [u64], density: f64, seed: u64, f: impl Fn(&mut u64, u64)) {
    if density > 0.0 {
        let mut state = 0x1234_5678_9abc_def1u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut at = 0;
        loop {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let gap = (state >> 32) as f64 / (1u64 << 32) as f64 * 2.0 * (1.0 / density - 0.5);
            at += gap as usize;
            match words.get_mut(at / 64) {
                Some(word) => f(word, 1 << (at % 64)),
                None => break,
            }
            at += 1;
        }
    }
}

/// Reserved address space for a slot.
pub struct Reserved(*mut u8, usize);

impl Reserved {
    pub fn new(length: u64) -> Reserved {
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

    pub fn address(&self) -> *mut u8 {
        self.0
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the VM is dropped before it.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// How a guest's memory is laid out and tracked.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Of guest memory.
    pub length: u64,
    /// The number of slots.
    pub slots: u64,
    /// Blocks are cut one page past a multiple of 64, and guest addresses differ from both by one
    /// page.
    pub odd: bool,
    pub mode: KvmMode,
    pub clearing: Clearing,
    /// How many vCPUs there are. They never run, and have dirty rings of the default size, which
    /// are the log then, whatever `mode` is. 0: no vCPUs and no rings.
    pub ring_vcpus: u64,
}

impl Shape {
    /// One slot, tracked with the defaults.
    pub fn plain(length: u64) -> Shape {
        Shape {
            length,
            slots: 1,
            odd: false,
            mode: KvmMode::InitiallySet,
            clearing: Clearing::default(),
            ring_vcpus: 0,
        }
    }
}

/// A tracked VM.
pub struct Machine {
    pub consumer: Consumer,
    pub control: Arc<Mutex<Control>>,
    /// Bytes of all dirty rings. They are the kernel's memory, but a cost of the VMM's all the
    /// same.
    pub ring_bytes: u64,
    vcpus: Vec<VcpuFd>,
    vm: kvm_ioctls::VmFd,
    _ram: Reserved,
}

impl Machine {
    /// Makes a machine whose tracker is not started yet. `others`: logs beside KVM's.
    pub fn new(kvm: &Kvm, shape: &Shape, others: Vec<Box<dyn DirtyLog>>) -> Machine {
        let vm = kvm.create_vm().unwrap();
        let ring = match shape.ring_vcpus {
            0 => 0,
            _ => kvm_ring::enable(&mut boundary(&vm), 0).unwrap().bytes,
        };
        let odd = u64::from(shape.odd);
        let pages = shape.length / PAGE_SIZE;
        let ram = Reserved::new(shape.length + odd * PAGE_SIZE);
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: mapped until the benchmark ends.
                host: unsafe { brant::memory::HostMemory::new(ram.0) },
                length: Bytes(ram.1 as u64),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        let cut = |i| pages / shape.slots * i / 64 * 64 + odd;
        for slot in 0..shape.slots {
            let first = cut(slot);
            let end = match slot + 1 == shape.slots {
                true => pages + odd,
                false => cut(slot + 1),
            };
            let guest = (first + odd) * PAGE_SIZE;
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: guest,
                memory_size: (end - first) * PAGE_SIZE,
                userspace_addr: ram.0 as u64 + first * PAGE_SIZE,
            };
            // SAFETY: the memory outlives the VM.
            unsafe { vm.set_user_memory_region(region) }.unwrap();
            memory
                .add_slot(&SlotDescription {
                    slot: slot as u32,
                    flags: 0,
                    block: memory.find_block("ram").unwrap(),
                    offset: Bytes(first * PAGE_SIZE),
                    length: Bytes((end - first) * PAGE_SIZE),
                    guest_address: GuestAddress(guest),
                })
                .unwrap();
        }
        let control = Arc::new(Mutex::new(Control {
            clear: Clear::Pass,
            get: Duration::ZERO,
            clearing: Duration::ZERO,
            clears: 0,
        }));
        let timed = Timed(boundary(&vm), Arc::clone(&control));
        let tracker = Tracker::new(memory, shape.clearing).unwrap();
        let vcpus = (0..shape.ring_vcpus).map(|i| vm.create_vcpu(i).unwrap());
        let vcpus: Vec<VcpuFd> = vcpus.collect();
        let log: Box<dyn DirtyLog> = if vcpus.is_empty() {
            Box::new(KvmLog::new(Box::new(timed), shape.mode, LogSwitch::Brant))
        } else {
            let log = KvmRing::from_fd(boundary(&vm), LogSwitch::Brant, None).unwrap();
            for (i, vcpu) in vcpus.iter().enumerate() {
                // SAFETY: the descriptor is open while `vcpu` is.
                let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
                let map = RingMap::new(fd, ring).unwrap();
                log.rings().add(i as u32, Box::new(map)).unwrap();
            }
            Box::new(log)
        };
        tracker.add_log(log).unwrap();
        for log in others {
            tracker.add_log(log).unwrap();
        }
        let consumer = tracker.consumer();
        Machine {
            consumer,
            control,
            ring_bytes: shape.ring_vcpus * ring,
            vcpus,
            vm,
            _ram: ram,
        }
    }

    /// Starts the tracker with a share of the pages dirty, which every later sync finds again.
    pub fn start_dirty(&self, density: f64) {
        self.clears(Clear::Leave { density });
        // This clears everything but the wanted pages.
        self.consumer.start(StartWith::Nothing).unwrap();
        self.clears(Clear::Drop);
    }

    pub fn clears(&self, clear: Clear) {
        let mut control = self.control.lock().unwrap();
        control.clear = clear;
        control.clearing = Duration::ZERO;
        control.clears = 0;
    }

    /// Takes everything that is pending.
    pub fn drain(&self) {
        drain(&self.consumer);
    }

    /// Lets KVM write `each` pages for each vCPU, other ones for each, all over the guest.
    pub fn write(&self, each: u64, length: u64) {
        let all = each * self.vcpus.len() as u64;
        for (n, vcpu) in self.vcpus.iter().enumerate() {
            for i in 0..each {
                let page = n as u64 * each + i;
                // Address 0 would switch the clock off.
                write_clock(vcpu, (length / PAGE_SIZE / all * page + 1) * PAGE_SIZE);
            }
        }
    }

    /// A sync, and its time in the kernel's GET.
    pub fn sync(&self) -> (SyncReport, Duration) {
        self.control.lock().unwrap().get = Duration::ZERO;
        let report = self.consumer.sync(When::Running).unwrap();
        (report, self.control.lock().unwrap().get)
    }

    /// Lets the kernel write the bitmap of the first slot.
    pub fn get(&self, words: &mut [u64]) {
        boundary(&self.vm).get_dirty_log(0, words).unwrap();
    }
}

/// Takes everything that is pending.
pub fn drain(consumer: &Consumer) {
    let mut cursor = Cursor::default();
    loop {
        let taken = consumer.take(&mut cursor, 4096, Pages(1 << 20)).unwrap();
        if taken.is_empty() {
            break;
        }
        taken.delivered();
    }
}

/// Lets KVM store the time at a guest address, in three stores, by the path that logs this vCPU's
/// writes.
pub fn write_clock(vcpu: &VcpuFd, address: u64) {
    #[repr(C)]
    struct Msrs {
        count: u32,
        pad: u32,
        index: u32,
        reserved: u32,
        data: u64,
    }
    /// `KVM_SET_MSRS`, `MSR_KVM_WALL_CLOCK_NEW`.
    const SET_MSRS: u64 = 0x4008_ae89;
    const WALL_CLOCK: u32 = 0x4b56_4d00;
    let msrs = Msrs {
        count: 1,
        pad: 0,
        index: WALL_CLOCK,
        reserved: 0,
        data: address,
    };
    // SAFETY: the kernel only reads the structure; what it writes is guest memory.
    let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_MSRS as _, &msrs) };
    assert_eq!(set, 1, "KVM writes the time");
}

/// The VM as brant's boundary.
pub fn boundary(vm: &kvm_ioctls::VmFd) -> VmFd {
    // SAFETY: the descriptor is open while `vm` is.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    VmFd::new(fd.try_clone_to_owned().unwrap()).unwrap()
}

/// Whether it has dirty rings.
pub fn has_rings(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into()) > 0
}

/// KVM with initially-set logs, or the reason why there is none.
pub fn kvm() -> Result<Kvm, String> {
    match Kvm::new() {
        Ok(kvm) if kvm.check_extension_raw(CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) & 3 == 3 => {
            Ok(kvm)
        }
        Ok(_) => Err("this KVM has no initially-set dirty logs".into()),
        Err(e) => Err(format!("/dev/kvm cannot be opened: {e}")),
    }
}
