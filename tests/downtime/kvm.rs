//! A guest of the real KVM, which counts its steps in memory, over a slow link: its pause is aborted
//! after `save`, it runs on, and it arrives whole.

use crate::support::link::Link;
use crate::support::time::{LONG, MS};
use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::dirty::WriteMarks;
use brant::error::{Error, Kind, Result};
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use brant::vmm::{StateBlob, StateSink, Vmm};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Counts in memory at 0x8000 and leaves KVM_RUN at each step, in real mode.
const CODE: &[u8] = &[
    0x66, 0xff, 0x06, 0x00, 0x80, // again: inc dword [0x8000]
    0xe6, 0x80, //                   out 0x80, al
    0xeb, 0xf7, //                   jmp again
];
const CODE_AT: GuestAddress = GuestAddress(0x1000);
const COUNTER: GuestAddress = GuestAddress(0x8000);
const HIGH: GuestAddress = GuestAddress(4 << 30);
const MIB: usize = 1 << 20;

struct Machine {
    ram: GuestMemoryMmap<WriteMarks>,
    vm: VmFd,
    vcpu: Mutex<VcpuFd>,
    runs: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    saves: AtomicUsize,
    resumes: AtomicUsize,
    own: Weak<Machine>,
}

impl Machine {
    fn new(kvm: &Kvm) -> Arc<Self> {
        let ranges = [(GuestAddress(0), MIB), (HIGH, 8 * MIB)];
        let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let vm = kvm.create_vm().unwrap();
        for (slot, region) in (0..).zip(GuestMemoryBackend::iter(&ram)) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region stays mapped as long as the machine has `ram`.
            unsafe { vm.set_user_memory_region(region) }.unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_regs {
            rip: CODE_AT.0,
            rflags: 2,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs).unwrap();
        Arc::new_cyclic(|own| Machine {
            ram,
            vm,
            vcpu: Mutex::new(vcpu),
            runs: AtomicBool::new(false),
            thread: Mutex::default(),
            saves: AtomicUsize::new(0),
            resumes: AtomicUsize::new(0),
            own: own.clone(),
        })
    }

    fn memory(&self) -> Arc<Memory> {
        let memory = Arc::new(Memory::new().unwrap());
        memory.add_guest_memory(&self.ram, 0).unwrap();
        memory
    }

    fn counter(&self) -> u32 {
        self.ram.read_obj(COUNTER).unwrap()
    }

    fn vcpu(&self) -> MutexGuard<'_, VcpuFd> {
        self.vcpu.lock().unwrap()
    }

    fn run_vcpu(&self) {
        while self.runs.load(Ordering::SeqCst) {
            match self.vcpu().run() {
                Ok(VcpuExit::IoOut(0x80, _)) => {}
                other => panic!("the guest ended: {other:?}"),
            }
        }
        // Completes the exit of the last `out`.
        let mut vcpu = self.vcpu();
        vcpu.set_kvm_immediate_exit(1);
        let _ = vcpu.run();
        vcpu.set_kvm_immediate_exit(0);
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
        self.resumes.fetch_add(1, Ordering::SeqCst);
        self.run()
    }
    fn run(&self) -> Result<()> {
        self.runs.store(true, Ordering::SeqCst);
        let machine = self.own.upgrade().unwrap();
        *self.thread.lock().unwrap() = Some(std::thread::spawn(move || machine.run_vcpu()));
        Ok(())
    }
    /// The first time, a device writes 6 MiB of guest memory.
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        if self.saves.fetch_add(1, Ordering::SeqCst) == 0 {
            self.ram.write_slice(&vec![0x5a; 6 * MIB], HIGH).unwrap();
        }
        let regs = self.vcpu().get_regs().unwrap();
        let registers = [regs.rip, regs.rax, regs.rflags];
        let data: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
        sink.put(&StateBlob {
            name: "vcpu",
            instance: 0,
            version: 1,
            data: &data,
        })
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        let (words, _) = blob.data.as_chunks::<8>();
        let [rip, rax, rflags] = words else {
            return Err(Error::new(Kind::Unsupported, "another vCPU"));
        };
        let regs = kvm_regs {
            rip: u64::from_le_bytes(*rip),
            rax: u64::from_le_bytes(*rax),
            rflags: u64::from_le_bytes(*rflags),
            ..kvm_regs::default()
        };
        self.vcpu().set_regs(&regs).unwrap();
        Ok(())
    }
}

#[test]
fn a_kvm_guest_whose_pause_is_aborted_runs_on_and_arrives_whole() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return;
    };
    let (here, there) = (Machine::new(&kvm), Machine::new(&kvm));
    here.ram.write_slice(CODE, CODE_AT).unwrap();
    here.ram.write_slice(&vec![7; 8 * MIB], HIGH).unwrap();
    here.run().unwrap();
    let tracker = Tracker::new(here.memory(), Clearing::default()).unwrap();
    WriteMarks::connect(&here.ram, &tracker);
    tracker
        .add_log(Request::default().open(&here.vm).unwrap().log)
        .unwrap();
    let params = Params {
        downtime_limit: MS * 300,
        ..Params::default()
    };
    let link = Link::of(10_000_000, MS * 10, 1 << 20);
    let (near, far) = link.connect();
    let incoming = Incoming::new(there.memory(), there.clone(), Params::default()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), here.clone(), params).unwrap();
    incoming.start(AcceptFrom::Connected(far)).unwrap();
    outgoing.start(ConnectTo::Connected(near)).unwrap();
    outgoing.wait(Some(LONG)).unwrap();
    incoming.wait(Some(LONG)).unwrap();
    let stats = outgoing.stats();
    assert!(stats.aborted_pauses >= 1, "{stats:?}");
    assert_eq!(
        here.resumes.load(Ordering::SeqCst) as u64,
        stats.aborted_pauses
    );
    assert!(stats.promised.round_trips >= MS * 20, "{stats:?}");
    assert!(
        stats.downtime.unwrap() < Duration::from_millis(1500),
        "{stats:?}"
    );
    let (left, arrived) = (here.counter(), there.counter());
    assert!(arrived >= left && left > 0, "{arrived} after {left}");
    let begun = Instant::now();
    while there.counter() == arrived {
        assert!(begun.elapsed() < LONG, "it stands still there");
        std::thread::yield_now();
    }
    there.pause().unwrap();
    let (mut ours, mut theirs) = (vec![0; 8 * MIB], vec![0; 8 * MIB]);
    here.ram.read_slice(&mut ours, HIGH).unwrap();
    there.ram.read_slice(&mut theirs, HIGH).unwrap();
    assert!(ours == theirs);
    assert_eq!(here.counter(), left, "it stands still here");
}
