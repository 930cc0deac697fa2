//! A vCPU of KVM's in memory that several machines share, so that a state can go from one to the next.

use brant::gate::{Config, Gate, Vcpu};
use brant::kvm_bindings::{kvm_regs, kvm_run, kvm_sregs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub const LENGTH: usize = 64 << 10;
const CODE_AT: u64 = 0x1000;
const KVM_EXIT_IO: u32 = 2;
const KVM_EXIT_HLT: u32 = 5;
const KVM_EXIT_INTR: u32 = 10;

/// Counts in `ebx`, tells each number, and asks for it: `in` must give what `out` told.
pub const ASKS: &[u8] = &[
    0x66, 0x43, //             again: inc ebx
    0x66, 0x89, 0xd8, //              mov eax, ebx
    0x66, 0xe7, 0x80, //              out 0x80, eax
    0x66, 0x31, 0xc0, //              xor eax, eax
    0x66, 0xe5, 0x81, //              in eax, 0x81
    0x66, 0x39, 0xd8, //              cmp eax, ebx
    0x74, 0xed, //                    je again
    0xe6, 0x82, //                    out 0x82, al: wrong
    0xf4, //                          hlt
];
/// Never exits by itself.
pub const LOOPS: &[u8] = &[0xeb, 0xfe];
/// Halts with interrupts off.
pub const HALTS: &[u8] = &[0xf4, 0xeb, 0xfd];

/// Memory of this process's, unmapped at the end.
pub struct Ram(*mut u8);

// SAFETY: an address; the guest and atomics access it.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub fn new(code: &[u8]) -> Arc<Ram> {
        let (both, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, both, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let ram = Ram(at.cast());
        for (i, byte) in code.iter().enumerate() {
            // SAFETY: inside the mapping; no guest runs yet.
            unsafe { ram.0.add(CODE_AT as usize + i).write_volatile(*byte) };
        }
        Arc::new(ram)
    }

    pub fn host(&self) -> *mut u8 {
        self.0
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the machines have it as long as they live.
        unsafe { libc::munmap(self.0.cast(), LENGTH) };
    }
}

/// What the devices of all machines of one guest have seen.
#[derive(Default)]
pub struct Seen {
    /// The last number that was told.
    pub told: AtomicU32,
    pub exits: AtomicU64,
    pub wrong: Mutex<Option<String>>,
}

impl Seen {
    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().get_or_insert(what);
    }

    pub fn check(&self) {
        assert_eq!(*self.wrong.lock().unwrap(), None);
    }
}

pub struct Machine {
    pub gate: Arc<Gate>,
    vcpu: Arc<VcpuFd>,
    // Kept for as long as the vCPU may run.
    _vm: VmFd,
    pub ram: Arc<Ram>,
    thread: Option<JoinHandle<()>>,
}

pub fn config() -> Config {
    Config {
        install_handler: true,
        ..Config::default()
    }
}

/// A vCPU's thread. What the VMM would do with an exit.
fn serve(vcpu: &Vcpu, run: *mut kvm_run, seen: &Seen) {
    loop {
        match vcpu.run() {
            Ok(()) => {}
            Err(e) if e.kind() == brant::Kind::Cancelled => return,
            Err(e) => return seen.complain(e.to_string()),
        }
        // SAFETY: mapped as long as the vCPU; KVM writes it only in KVM_RUN, on this thread.
        let exit = unsafe { (*run).exit_reason };
        match exit {
            KVM_EXIT_INTR => continue,
            // Nobody here wakes a vCPU that halted in this VMM.
            KVM_EXIT_HLT => {
                if vcpu.idle(None).is_err() {
                    return;
                }
            }
            KVM_EXIT_IO => {
                seen.exits.fetch_add(1, Ordering::Relaxed);
                // SAFETY: an exit of this reason has this part of the union, and data at its offset.
                unsafe {
                    let io = (*run).__bindgen_anon_1.io;
                    let data = run.cast::<u8>().add(io.data_offset as usize).cast::<u32>();
                    match io.port {
                        0x80 => {
                            let (now, before) =
                                (data.read_unaligned(), seen.told.load(Ordering::Relaxed));
                            if now != before.wrapping_add(1) {
                                seen.complain(format!("{now} was told after {before}"));
                            }
                            seen.told.store(now, Ordering::Relaxed);
                        }
                        0x81 => data.write_unaligned(seen.told.load(Ordering::Relaxed)),
                        port => seen.complain(format!("the guest used port {port:#x}")),
                    }
                }
            }
            other => return seen.complain(format!("exit {other}")),
        }
    }
}

impl Machine {
    /// A machine whose vCPU waits at its gate. With `interrupts`, KVM has the interrupt controller, and
    /// a halted vCPU stays in `KVM_RUN`.
    pub fn new(kvm: &Kvm, ram: &Arc<Ram>, seen: &Arc<Seen>, interrupts: bool) -> Machine {
        let vm = kvm.create_vm().unwrap();
        if interrupts {
            vm.create_irq_chip().unwrap();
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: LENGTH as u64,
            userspace_addr: ram.0 as u64,
        };
        // SAFETY: mapped as long as the machine has it.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        vcpu.set_regs(&kvm_regs {
            rip: CODE_AT,
            rflags: 2,
            ..kvm_regs::default()
        })
        .unwrap();
        let run = std::ptr::from_mut(vcpu.get_kvm_run()) as usize;
        let (gate, vcpu) = (Gate::new(config()).unwrap(), Arc::new(vcpu));
        let (at, fd, seen) = (Arc::clone(&gate), Arc::clone(&vcpu), Arc::clone(seen));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: open as long as `fd`.
            let lent = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
            let vcpu = at.add_vcpu(0, Some(lent)).unwrap();
            ready.send(()).unwrap();
            serve(&vcpu, run as *mut kvm_run, &seen);
        });
        is_ready.recv().unwrap();
        Machine {
            gate,
            vcpu,
            _vm: vm,
            ram: Arc::clone(ram),
            thread: Some(thread),
        }
    }

    /// The state of a vCPU that stands.
    pub fn state(&self) -> (kvm_regs, kvm_sregs) {
        (
            self.vcpu.get_regs().unwrap(),
            self.vcpu.get_sregs().unwrap(),
        )
    }

    pub fn set_state(&self, state: &(kvm_regs, kvm_sregs)) {
        self.vcpu.set_sregs(&state.1).unwrap();
        self.vcpu.set_regs(&state.0).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `None` where there is no KVM, which is said.
pub fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            println!("skipped: /dev/kvm: {e}");
            None
        }
    }
}
