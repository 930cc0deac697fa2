//! A VM with one vCPU in 64-bit mode, at privilege level 0 or 3, and the programs of `programs`. Two
//! machines may have the same memory: then a test moves the vCPU alone.

use super::programs::{Program, IMAGE, SIGNAL};
use crate::support::time::LONG;
use brant::error::Result;
use brant::kvm_bindings::{
    kvm_dtable, kvm_pit_config, kvm_regs, kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES,
};
use brant::kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use brant::kvmstate::{load_vcpu, load_vm, save_vcpu, save_vm, Kernel, VCPU};
use brant::sys::kvm_machine::Segments;
use brant::vmm::{StateBlob, StateSink};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

/// Bytes of memory, from guest address 0 on.
pub const RAM: usize = 2 << 20;
const DESCRIPTORS: u64 = 0x1000;
const TSS: u64 = 0x1100;
const IDT: u64 = 0x3000;
const TABLES: u64 = 0x8000;
pub const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x4_0000;

/// Memory of a guest.
pub struct Ram(*mut u8);

// SAFETY: an address; accesses are atomic or the guest's.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub fn new() -> Arc<Ram> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), RAM, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let ram = Ram(at.cast());
        ram.fill();
        Arc::new(ram)
    }

    pub fn host(&self) -> *mut u8 {
        self.0
    }

    pub fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at as usize + 8 <= RAM);
        // SAFETY: aligned, inside the mapping, which lives as long as this.
        unsafe { &*self.0.add(at as usize).cast() }
    }

    pub fn get(&self, at: u64) -> u64 {
        self.word(at).load(Ordering::SeqCst)
    }

    pub fn put(&self, at: u64, value: u64) {
        self.word(at).store(value, Ordering::SeqCst);
    }

    fn fill(&self) {
        for (at, entry) in [
            0,
            0x00af_9b00_0000_ffff, // 1: code of level 0
            0x00cf_9300_0000_ffff, // 2: data of level 0
            0x00af_fb00_0000_ffff, // 3: code of level 3
            0x00cf_f300_0000_ffff, // 4: data of level 3
            0x0000_8b00_0000_0067 | TSS << 16,
        ]
        .into_iter()
        .enumerate()
        {
            self.put(DESCRIPTORS + 8 * at as u64, entry);
        }
        self.put(TSS + 0x60, 0x68 << 48); // no I/O bitmap
                                          // One to one: the first GiB, and the fourth, where the APICs are.
        self.put(TABLES, (TABLES + 0x1000) | 0x27);
        for (gib, table) in [(0u64, TABLES + 0x2000), (3, TABLES + 0x3000)] {
            self.put(TABLES + 0x1000 + 8 * gib, table | 0x27);
            for entry in 0..512 {
                self.put(table + 8 * entry, (gib << 30 | entry << 21) | 0xe7);
            }
        }
        let image = IMAGE();
        for (at, byte) in image.iter().enumerate() {
            // SAFETY: inside the mapping, and no guest runs yet.
            unsafe { self.0.add(CODE as usize + at).write_volatile(*byte) };
        }
    }

    /// Has the processor enter `program` when it takes the interrupt or exception `vector` at level 0.
    pub fn gate(&self, vector: u64, program: Program) {
        let at = CODE + program.offset();
        self.put(
            IDT + 16 * vector,
            (at & 0xffff) | 1 << 19 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48,
        );
        self.put(IDT + 16 * vector + 8, at >> 32);
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; no guest has it any more.
        unsafe { libc::munmap(self.0.cast(), RAM) };
    }
}

/// Where interrupts come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chips {
    /// The VMM has no interrupt controllers.
    None,
    /// PIC, I/O APIC, local APIC and PIT are the kernel's.
    Kernel,
}

pub struct Machine {
    pub kernel: Kernel,
    pub vcpu: VcpuFd,
    pub vm: VmFd,
    pub ram: Arc<Ram>,
}

/// `/dev/kvm`, or `None` with a word why the test is skipped.
pub fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            println!("skipped: /dev/kvm: {e}");
            None
        }
    }
}

/// A vCPU that has what KVM supports.
pub fn new_vcpu(kvm: &Kvm, vm: &VmFd, number: u64) -> VcpuFd {
    let vcpu = vm.create_vcpu(number).unwrap();
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        // Older kernels have the timer's deadline and do not list its bit.
        let leaf = cpuid
            .as_mut_slice()
            .iter_mut()
            .find(|leaf| leaf.function == 1);
        leaf.unwrap().ecx |= 1 << 24;
    }
    vcpu.set_cpuid2(&cpuid).unwrap();
    vcpu
}

impl Machine {
    pub fn new(kvm: &Kvm, ram: &Arc<Ram>, chips: Chips) -> Machine {
        let vm = kvm.create_vm().unwrap();
        if chips == Chips::Kernel {
            vm.create_irq_chip().unwrap();
            vm.create_pit2(kvm_pit_config::default()).unwrap();
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: ram.host() as u64,
        };
        // SAFETY: mapped for as long as the VM is used: the machine holds it.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let vcpu = new_vcpu(kvm, &vm, 0);
        let kernel = Kernel::new(Some(kvm), &vm).unwrap();
        Machine {
            kernel,
            vcpu,
            vm,
            ram: Arc::clone(ram),
        }
    }

    /// Puts the vCPU at the beginning of a program.
    pub fn begin(&self, program: Program) {
        let level = program.level();
        let mut s = self.vcpu.get_sregs().unwrap();
        let segments = Segments {
            code: if level == 3 { 3 << 3 | 3 } else { 1 << 3 },
            data: if level == 3 { 4 << 3 | 3 } else { 2 << 3 },
            task: (5 << 3, TSS),
            descriptors: (DESCRIPTORS, 7),
        };
        segments.enter(&mut s, TABLES);
        s.idt = kvm_dtable {
            base: IDT,
            limit: 0xfff,
            ..Default::default()
        };
        s.cr4 |= 0x600; // OSXMMEXCPT OSFXSR
        if program == Program::Avx {
            s.cr4 |= 1 << 18; // OSXSAVE
        }
        self.vcpu.set_sregs(&s).unwrap();
        self.vcpu
            .set_regs(&kvm_regs {
                rip: CODE + program.offset(),
                rsp: STACK,
                rflags: 2,
                ..Default::default()
            })
            .unwrap();
    }

    /// Runs until the guest signals; what it signals. Its last access is retired afterwards.
    pub fn run(&mut self) -> u8 {
        let begun = Instant::now();
        let kicks = Kicks::begin(LONG);
        let signal = loop {
            match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(SIGNAL, data)) => break data[0],
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                    let regs = self.vcpu.get_regs().unwrap();
                    assert!(begun.elapsed() < LONG, "the guest hangs: {regs:x?}");
                }
                other => panic!("the guest ended: {other:?}"),
            }
        };
        drop(kicks);
        self.retire();
        signal
    }

    /// Runs until the guest stands in `hlt`.
    pub fn run_until_halted(&mut self) {
        const HALTED: u32 = 3;
        let begun = Instant::now();
        let kicks = Kicks::begin(Duration::from_millis(2));
        while self.vcpu.get_mp_state().unwrap().mp_state != HALTED {
            match self.vcpu.run() {
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {}
                other => panic!("the guest ended: {other:?}"),
            }
            assert!(begun.elapsed() < LONG, "the guest does not halt");
        }
        drop(kicks);
    }

    /// Queues an interrupt as a VMM without in-kernel interrupt controllers does.
    pub fn interrupt(&self, vector: u32) {
        const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
        // SAFETY: the kernel reads the number.
        let done = unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_INTERRUPT as _, &vector) };
        assert_eq!(done, 0);
    }

    /// Sends an interrupt to the in-kernel local APIC, as a device's message does.
    pub fn interrupt_by_apic(&self, vector: u32) {
        let msi = brant::kvm_bindings::kvm_msi {
            address_lo: 0xfee0_0000,
            data: vector,
            ..Default::default()
        };
        assert_eq!(self.vm.signal_msi(msi).unwrap(), 1);
    }

    /// Whether guests have AVX here. If so, it is switched on.
    pub fn has_avx(&self) -> bool {
        let cpuid = self.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let leaf = cpuid.as_slice().iter().find(|leaf| leaf.function == 1);
        if leaf.unwrap().ecx >> 26 & 0b101 != 0b101 {
            return false;
        }
        let mut xcrs = self.vcpu.get_xcrs().unwrap();
        xcrs.xcrs[0].value = 7;
        self.vcpu.set_xcrs(&xcrs).unwrap();
        true
    }

    fn retire(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        let end = self.vcpu.run().map(|_| ());
        assert_eq!(end.unwrap_err().errno(), libc::EINTR);
        self.vcpu.set_kvm_immediate_exit(0);
    }

    /// The blobs of the vCPU and of the VM.
    pub fn save(&self) -> Saved {
        let mut saved = Saved::default();
        save_vcpu(&self.kernel, &self.vcpu, 7, &mut saved).unwrap();
        save_vm(&self.kernel, &mut saved).unwrap();
        saved
    }

    pub fn load(&self, saved: &Saved) -> Result<()> {
        saved.each(|blob| match blob.name {
            VCPU => load_vcpu(&self.kernel, &self.vcpu, blob),
            _ => load_vm(&self.kernel, blob),
        })
    }

    /// Loads what is the VM's alone.
    pub fn load_vm_of(&self, other: &Machine) -> Result<()> {
        let mut saved = Saved::default();
        save_vm(&other.kernel, &mut saved)?;
        self.load(&saved)
    }
}

/// Blobs as a destination gets them.
#[derive(Default, Clone)]
pub struct Saved(pub Vec<(String, u32, u32, Vec<u8>)>);

impl StateSink for Saved {
    fn put(&mut self, blob: &StateBlob<'_>) -> Result<()> {
        let data = blob.data.to_vec();
        self.0
            .push((blob.name.into(), blob.instance, blob.version, data));
        Ok(())
    }
}

impl Saved {
    pub fn each(&self, load: impl Fn(&StateBlob<'_>) -> Result<()>) -> Result<()> {
        for (name, instance, version, data) in &self.0 {
            load(&StateBlob {
                name,
                instance: *instance,
                version: *version,
                data,
            })?;
        }
        Ok(())
    }
}

/// Signals that make this thread's `KVM_RUN` return, after a time and then again and again.
struct Kicks(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

extern "C" fn nothing(_: libc::c_int) {}

impl Kicks {
    fn begin(after: Duration) -> Kicks {
        let signal = libc::SIGRTMIN() + 4;
        // SAFETY: a handler that does nothing, for a signal that nobody else here uses; an all-zero
        // sigaction is a valid value.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
        // SAFETY: takes nothing.
        let this = unsafe { libc::pthread_self() };
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(after) {
                // SAFETY: the thread joins this one before it ends.
                unsafe { libc::pthread_kill(this, signal) };
            }
        });
        Kicks(Some((stop, thread)))
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        let (stop, thread) = self.0.take().unwrap();
        drop(stop);
        thread.join().unwrap();
    }
}
