//! A machine of the real KVM with dirty rings and two vCPUs: one reads and tells each step, one
//! writes a byte to page after page.

use brant::dirty::consumer::Consumer;
use brant::dirty::kvm::{ring, KvmRing, LogSwitch, Rings};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::error::Result;
use brant::kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use brant::vmm::{Event, EventKind, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;

/// Entries of each ring, 4 KiB of them.
pub const ENTRIES: u64 = 1024;
/// Pages that the writer writes, in order, again and again.
pub const PAGES: u64 = 8192;
pub const READER: u32 = 0;
pub const WRITER: u32 = 1;

const DATA: u64 = 2 << 20;
/// All memory.
pub const BYTES: usize = (DATA + PAGES * 4096) as usize;
const KVM_EXIT_DIRTY_RING_FULL: u32 = 31;

/// Reads, waits a while, and tells by `out`.
const READS: &[u8] = &[
    0x8a, 0x06, //                   again: mov al, [esi]
    0xb9, 0x40, 0x00, 0x00, 0x00, // mov ecx, 64
    0x49, //                         wait: dec ecx
    0x75, 0xfd, //                   jnz wait
    0xe6, 0x80, //                   out 0x80, al
    0xeb, 0xf2, //                   jmp again
];
const READS_AT: u64 = 0x1000;

/// Writes `PAGES` pages, each with some instructions in between: a KVM that emulates this code in
/// batches of 1,024 instructions then pushes fewer entries in a batch than the kernel keeps free.
const WRITES: &[u8] = &[
    0xbf, 0x00, 0x00, 0x20, 0x00, //       begin: mov edi, 2 MiB
    0xb9, 0x00, 0x20, 0x00, 0x00, //       mov ecx, 8192
    0xfe, 0xc0, //                         inc al
    0x88, 0x07, //                         page: mov [edi], al
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
    0xba, 0x0a, 0x00, 0x00, 0x00, //       mov edx, 10
    0x4a, //                               wait: dec edx
    0x75, 0xfd, //                         jnz wait
    0x49, //                               dec ecx
    0x75, 0xed, //                         jnz page
    0xeb, 0xdf, //                         jmp begin
];
const WRITES_AT: u64 = 0x1100;

extern "C" fn nothing(_: libc::c_int) {}

/// The signal that takes a vCPU out of `KVM_RUN`.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// One vCPU, with the thread that runs it.
struct Vcpu {
    fd: Mutex<VcpuFd>,
    /// `kvm_run.immediate_exit`, which other threads set.
    immediate_exit: *mut u8,
    thread: Mutex<Option<(JoinHandle<()>, libc::pthread_t)>>,
    /// How often the thread was seen outside of `KVM_RUN`.
    seen: AtomicU64,
    steps: AtomicU64,
}

// SAFETY: the pointer is to a byte that the kernel and any thread may write, and is used for one
// volatile store at a time.
unsafe impl Send for Vcpu {}
// SAFETY: as above.
unsafe impl Sync for Vcpu {}

pub struct Machine {
    ram: GuestMemoryMmap,
    _vm: VmFd,
    vcpus: Vec<Vcpu>,
    runs: AtomicBool,
    rings: Mutex<Option<Rings>>,
    /// How often it was told that the guest is slowed more or less.
    pub throttled: AtomicU64,
    warnings: Mutex<Vec<String>>,
    own: Weak<Machine>,
}

/// `None` where there is no KVM with rings.
pub fn machine() -> Option<(Arc<Machine>, Consumer)> {
    let kvm = Kvm::new().ok().filter(|_| cfg!(target_arch = "x86_64"))?;
    let vm = kvm.create_vm().unwrap();
    if ring::enable(&vm, ENTRIES * 16).is_err() {
        eprintln!("skipped: this KVM has no dirty rings");
        return None;
    }
    // SAFETY: all zero is a valid value of that plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the structure lives on this stack frame; the handler does nothing.
    unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) };

    let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).unwrap();
    for region in GuestMemoryBackend::iter(&ram) {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region stays mapped as long as the machine has `ram`.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    }
    ram.write_slice(READS, GuestAddress(READS_AT)).unwrap();
    ram.write_slice(WRITES, GuestAddress(WRITES_AT)).unwrap();
    let vcpus = vec![vcpu(&vm, 0, READS_AT), vcpu(&vm, 1, WRITES_AT)];

    let memory = Arc::new(Memory::new().unwrap());
    memory.add_guest_memory(&ram, 0).unwrap();
    let machine = Arc::new_cyclic(|own| Machine {
        ram,
        vcpus,
        runs: AtomicBool::new(false),
        rings: Mutex::default(),
        throttled: AtomicU64::new(0),
        warnings: Mutex::default(),
        own: own.clone(),
        _vm: vm,
    });
    let vmm: Arc<dyn Vmm> = Arc::<Machine>::clone(&machine) as _;
    let log = KvmRing::from_vm(&machine._vm, LogSwitch::Brant, Some(vmm)).unwrap();
    for (number, vcpu) in (0..).zip(&machine.vcpus) {
        log.rings()
            .add_vcpu(number, &vcpu.fd.lock().unwrap())
            .unwrap();
    }
    *machine.rings.lock().unwrap() = Some(log.rings());
    let tracker = Tracker::new(memory, Clearing::default()).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    Some((machine, consumer))
}

/// A vCPU with flat segments of 32 bits.
fn vcpu(vm: &VmFd, number: u64, code: u64) -> Vcpu {
    let mut fd = vm.create_vcpu(number).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    sregs.cr0 |= 1;
    let flat = |type_| kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = flat(11);
    let data = flat(3);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    fd.set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rip: code,
        rsi: DATA,
        rflags: 2,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).unwrap();
    let immediate_exit = &raw mut fd.get_kvm_run().immediate_exit;
    Vcpu {
        fd: Mutex::new(fd),
        immediate_exit,
        thread: Mutex::default(),
        seen: AtomicU64::new(0),
        steps: AtomicU64::new(0),
    }
}

impl Vcpu {
    fn want_out(&self, wanted: u8) {
        // SAFETY: the byte is mapped as long as the vCPU's descriptor is open.
        unsafe { self.immediate_exit.write_volatile(wanted) };
    }

    fn thread(&self) -> MutexGuard<'_, Option<(JoinHandle<()>, libc::pthread_t)>> {
        self.thread.lock().unwrap()
    }

    fn signal(&self) {
        if let Some((_, thread)) = &*self.thread() {
            // SAFETY: the thread is joined only by those who take it out of here first.
            unsafe { libc::pthread_kill(*thread, kick_signal()) };
        }
    }
}

impl Machine {
    pub fn rings(&self) -> Rings {
        self.rings.lock().unwrap().clone().unwrap()
    }

    /// Makes every page that the writer writes one that has to be sent.
    pub fn fill(&self) {
        let data = vec![0x5a; (PAGES * 4096) as usize];
        self.ram.write_slice(&data, GuestAddress(DATA)).unwrap();
    }

    /// How many steps the reader has told of.
    pub fn steps(&self) -> u64 {
        self.vcpus[READER as usize].steps.load(Ordering::SeqCst)
    }

    /// How many warnings have these words.
    pub fn warnings(&self, words: &str) -> usize {
        let warnings = self.warnings.lock().unwrap();
        warnings.iter().filter(|text| text.contains(words)).count()
    }

    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    fn run_vcpu(&self, number: u32) {
        let vcpu = &self.vcpus[number as usize];
        let rings = self.rings();
        while self.runs.load(Ordering::SeqCst) {
            match vcpu.fd.lock().unwrap().run() {
                Ok(VcpuExit::IoOut(0x80, _)) => {
                    vcpu.steps.fetch_add(1, Ordering::SeqCst);
                }
                Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => rings.full(number).unwrap(),
                Ok(other) => panic!("vCPU {number} ended: {other:?}"),
                Err(e) => match e.errno() {
                    libc::EINTR => {
                        vcpu.want_out(0);
                        vcpu.seen.fetch_add(1, Ordering::SeqCst);
                    }
                    libc::EAGAIN => {}
                    _ => panic!("vCPU {number}: {e}"),
                },
            }
        }
    }

    pub fn start(&self) {
        self.runs.store(true, Ordering::SeqCst);
        for number in [READER, WRITER] {
            let (tell, hear) = std::sync::mpsc::channel();
            let machine = self.own.upgrade().unwrap();
            let thread = std::thread::spawn(move || {
                // SAFETY: asks for this thread's own identity.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                machine.run_vcpu(number);
            });
            let identity = hear.recv().unwrap();
            *self.vcpus[number as usize].thread() = Some((thread, identity));
        }
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.runs.store(false, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            vcpu.want_out(1);
            vcpu.signal();
        }
        for vcpu in &self.vcpus {
            let thread = vcpu.thread().take();
            if let Some((thread, _)) = thread {
                thread.join().unwrap();
            }
            vcpu.want_out(0);
        }
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.start();
        Ok(())
    }

    fn event(&self, event: &Event) {
        let throttle = event.kind == EventKind::Throttle;
        self.throttled.fetch_add(throttle.into(), Ordering::SeqCst);
        if event.kind == EventKind::Warning {
            self.warnings.lock().unwrap().push(event.message.clone());
        }
    }

    /// Returns when each vCPU was seen outside of `KVM_RUN`.
    fn kick(&self) -> Result<()> {
        for vcpu in &self.vcpus {
            let before = vcpu.seen.load(Ordering::SeqCst);
            vcpu.want_out(1);
            vcpu.signal();
            while self.runs.load(Ordering::SeqCst) && vcpu.seen.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}
