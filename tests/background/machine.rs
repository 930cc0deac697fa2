//! A machine of the real KVM with one vCPU, which writes some pages, in order, and then some more a
//! little later; or writes nothing.

use brant::dirty::kvm::{ring, KvmLog, KvmMode, KvmRing, LogSwitch, Rings};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::Result;
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use brant::vmm::{Event, EventKind, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// Real mode, with a data segment over all memory. ESI: the first page; EBX: the end.
const CODE: &[u8] = &[
    0x66, 0x89, 0xf7, //                         again: mov edi, esi
    0x67, 0x66, 0xff, 0x07, //                   next:  inc dword [edi]
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //        add edi, 4096
    0x66, 0x39, 0xdf, //                                cmp edi, ebx
    0x72, 0xf0, //                                      jb next
    0xe6, 0x80, //                                      out 0x80, al
    0xeb, 0xe9, //                                      jmp again
];
const CODE_AT: u64 = 0x1000;
/// The pages of the machine; the guest writes those from [`FROM`] on.
pub const PAGES: u64 = 4096;
const FROM: u64 = 256;
/// So many pages are written at a time.
const STEP: u64 = 16;
const REST: Duration = Duration::from_millis(10);
/// KVM's smallest ring has more entries than a step writes pages.
const RING_BYTES: u64 = 1024 * 16;
const KVM_EXIT_DIRTY_RING_FULL: u32 = 31;

pub struct Machine {
    pub ram: GuestMemoryMmap,
    vm: VmFd,
    vcpu: Mutex<VcpuFd>,
    rings: Mutex<Option<Rings>>,
    writes: bool,
    runs: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Times that the vCPU came out of `KVM_RUN`, and pages that it wrote.
    seen: AtomicU64,
    pub written: AtomicU64,
    passes: AtomicU64,
    own: Weak<Machine>,
}

impl Machine {
    /// `None` without a KVM, or where it has no rings and `mode` wants them.
    pub fn new(mode: KvmMode, writes: bool) -> Option<Arc<Machine>> {
        let vm = Kvm::new().ok()?.create_vm().unwrap();
        if mode == KvmMode::Ring && ring::enable(&vm, RING_BYTES).is_err() {
            return None;
        }
        let range = (GuestAddress(0), PAGES as usize * 4096);
        let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[range]).unwrap();
        let region = ram.iter().next().unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region stays mapped as long as the machine has `ram`.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        for page in 0..PAGES {
            ram.write_obj(page + 1, GuestAddress(page * 4096 + 64))
                .unwrap();
        }
        ram.write_slice(CODE, GuestAddress(CODE_AT)).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
        vcpu.set_sregs(&sregs).unwrap();
        Some(Arc::new_cyclic(|own| Machine {
            ram,
            vm,
            vcpu: Mutex::new(vcpu),
            rings: Mutex::default(),
            writes,
            runs: AtomicBool::new(false),
            thread: Mutex::default(),
            seen: AtomicU64::new(0),
            written: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            own: own.clone(),
        }))
    }

    pub fn memory(&self) -> Arc<Memory> {
        let memory = Arc::new(Memory::new().unwrap());
        memory.add_guest_memory(&self.ram, 0).unwrap();
        memory
    }

    pub fn tracker(self: &Arc<Self>, mode: KvmMode) -> Arc<Tracker> {
        let clearing = Clearing::Chunked { shift: 6 };
        let tracker = Tracker::new(self.memory(), clearing).unwrap();
        if mode == KvmMode::Ring {
            let vmm: Arc<dyn Vmm> = Arc::<Machine>::clone(self) as _;
            let log = KvmRing::from_vm(&self.vm, LogSwitch::Brant, Some(vmm)).unwrap();
            log.rings().add_vcpu(0, &self.vcpu.lock().unwrap()).unwrap();
            *self.rings.lock().unwrap() = Some(log.rings());
            tracker.add_log(Box::new(log)).unwrap();
        } else {
            let log = KvmLog::from_vm(&self.vm, mode, LogSwitch::Brant).unwrap();
            tracker.add_log(Box::new(log)).unwrap();
        }
        tracker
    }

    /// Passes that events told of.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::SeqCst)
    }

    pub fn start(&self) {
        if !self.writes {
            return;
        }
        self.runs.store(true, Ordering::SeqCst);
        let machine = self.own.upgrade().unwrap();
        let thread = std::thread::spawn(move || machine.run_vcpu());
        *self.thread.lock().unwrap() = Some(thread);
    }

    fn run_vcpu(&self) {
        // Steps are spread over memory, so that the walk does not follow them.
        let steps = (PAGES - FROM) / STEP;
        let mut step = 0;
        while self.runs.load(Ordering::SeqCst) {
            let first = FROM + step * 97 % steps * STEP;
            let regs = kvm_regs {
                rip: CODE_AT,
                rflags: 2,
                rsi: first << 12,
                rbx: (first + STEP) << 12,
                ..kvm_regs::default()
            };
            let mut vcpu = self.vcpu.lock().unwrap();
            vcpu.set_regs(&regs).unwrap();
            loop {
                match vcpu.run() {
                    Ok(VcpuExit::IoOut(0x80, _)) => break,
                    Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                        self.seen.fetch_add(1, Ordering::SeqCst);
                        let rings = self.rings.lock().unwrap().clone().unwrap();
                        rings.full(0).unwrap();
                    }
                    other => panic!("the guest ended: {other:?}"),
                }
            }
            drop(vcpu);
            self.seen.fetch_add(1, Ordering::SeqCst);
            self.written.fetch_add(STEP, Ordering::SeqCst);
            step += 1;
            std::thread::sleep(REST);
        }
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.runs.store(false, Ordering::SeqCst);
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.start();
        Ok(())
    }
    /// The destination's guest stands still, so that its memory can be compared.
    fn run(&self) -> Result<()> {
        Ok(())
    }
    /// A step is short, so the vCPU comes out by itself.
    fn kick(&self) -> Result<()> {
        let before = self.seen.load(Ordering::SeqCst);
        while self.runs.load(Ordering::SeqCst) && self.seen.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
        Ok(())
    }
    fn throttle(&self, _: Option<u32>, _: u8) -> Result<()> {
        Ok(())
    }
    fn can_throttle(&self) -> bool {
        true
    }
    fn event(&self, event: &Event) {
        if event.kind == EventKind::Pass {
            self.passes.fetch_add(1, Ordering::SeqCst);
        }
    }
}
