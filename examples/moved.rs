//! A KVM guest that counts its moves while it runs: `cargo run --example moved` (needs /dev/kvm).
//!
//! Both sides are in one process, so that nothing has to be set up: one virtual machine here,
//! another one there, and TCP between them. Comments mark what a real VMM would split.

use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::dirty::WriteMarks;
use brant::error::{Error, Kind};
use brant::gate::{Config, Gate};
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::migrate::{Blockers, ConnectTo, Endpoint, Incoming, Outgoing, Params};
use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use brant::vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use brant::vmm::{StateBlob, StateSink, Vmm};
use brant::Result;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Real-mode code that counts in memory at 0x8000, and tells the VMM at each step.
const CODE: &[u8] = &[
    0x66, 0xff, 0x06, 0x00, 0x80, // again: inc dword [0x8000]
    0xe6, 0x80, //                   out 0x80, al
    0xeb, 0xf7, //                   jmp again
];
const CODE_AT: GuestAddress = GuestAddress(0x1000);
const COUNTER: GuestAddress = GuestAddress(0x8000);
const MIB: usize = 1 << 20;

type Ram = GuestMemoryMmap<WriteMarks>;

struct Machine {
    ram: Ram,
    vm: VmFd,
    vcpu: Mutex<VcpuFd>,
    gate: Arc<Gate>,
}

impl Machine {
    fn new(kvm: &Kvm) -> Result<Arc<Self>> {
        // Below and above the hole for devices.
        let ranges = [(GuestAddress(0), MIB), (GuestAddress(4 << 30), 64 * MIB)];
        let ram = Ram::from_ranges(&ranges)?;
        let vm = kvm.create_vm()?;
        for (slot, region) in (0..).zip(ram.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region stays mapped as long as the machine has `ram`.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&kvm_regs {
            rip: CODE_AT.0,
            rflags: 2,
            ..kvm_regs::default()
        })?;
        let machine = Arc::new(Machine {
            ram,
            vm,
            vcpu: Mutex::new(vcpu),
            gate: Gate::new(Config {
                install_handler: true,
                ..Config::default()
            })?,
        });
        // The vCPU waits at the gate until the machine has a guest.
        let own = Arc::clone(&machine);
        std::thread::spawn(move || {
            if let Err(e) = own.run_vcpu() {
                eprintln!("the guest ended: {e}");
            }
        });
        Ok(machine)
    }

    /// The memory as brant knows it.
    fn memory(&self) -> Result<Arc<Memory>> {
        let memory = Arc::new(Memory::new()?);
        memory.add_guest_memory(&self.ram, 0)?;
        Ok(memory)
    }

    fn counter(&self) -> Result<u32> {
        Ok(self.ram.read_obj(COUNTER)?)
    }

    fn vcpu(&self) -> MutexGuard<'_, VcpuFd> {
        self.vcpu.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn run_vcpu(&self) -> Result<()> {
        let fd = self.vcpu().as_raw_fd();
        // SAFETY: open as long as the machine has its vCPU.
        let vcpu = self
            .gate
            .add_vcpu(0, Some(unsafe { BorrowedFd::borrow_raw(fd) }))?;
        loop {
            vcpu.enter()?; // waits while the guest is paused
            let interrupted = match self.vcpu().run() {
                Ok(VcpuExit::IoOut(0x80, _)) => false,
                Err(e) if e.errno() == libc::EINTR => true,
                other => {
                    let what = format!("unexpected exit: {other:?}");
                    return Err(Error::new(Kind::Unsupported, what));
                }
            };
            vcpu.left(interrupted)?;
        }
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.gate.on_pause()
    }

    fn resume(&self) -> Result<()> {
        self.gate.on_resume();
        Ok(())
    }

    fn run(&self) -> Result<()> {
        self.gate.on_run()
    }

    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        // The state that this guest uses. A complete guest has some twenty blobs of state.
        let regs = self.vcpu().get_regs()?;
        let data: Vec<u8> = [regs.rip, regs.rax, regs.rflags]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .collect();
        sink.put(&StateBlob {
            name: "vcpu",
            instance: 0,
            version: 1,
            data: &data,
        })
    }

    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        let (words, rest) = blob.data.as_chunks::<8>();
        let ("vcpu", 1, [rip, rax, rflags], []) = (blob.name, blob.version, words, rest) else {
            let what = format!("`{}`, version {}: not known here", blob.name, blob.version);
            return Err(Error::new(Kind::Unsupported, what));
        };
        self.vcpu().set_regs(&kvm_regs {
            rip: u64::from_le_bytes(*rip),
            rax: u64::from_le_bytes(*rax),
            rflags: u64::from_le_bytes(*rflags),
            ..kvm_regs::default()
        })?;
        Ok(())
    }
}

fn main() -> Result<()> {
    let kvm = Kvm::new()?;

    // The destination: a machine that waits.
    let there = Machine::new(&kvm)?;
    let incoming = Incoming::new(there.memory()?, there.clone(), Params::default())?;
    let address = incoming.listen(&Endpoint::parse("tcp:127.0.0.1:0")?)?;

    // The source: a machine that runs.
    let here = Machine::new(&kvm)?;
    here.ram.write_slice(CODE, CODE_AT)?;
    here.gate.start()?;
    let tracker = Tracker::new(here.memory()?, Clearing::default())?;
    WriteMarks::connect(&here.ram, &tracker); // what this program writes
    let opened = Request::default().open(&here.vm)?; // what the guest writes
    println!("KVM's log: {:?}", opened.used.choice.mode);
    tracker.add_log(opened.log)?;

    let outgoing = Outgoing::new(tracker, Blockers::new(), here.clone(), Params::default())?;
    outgoing.start(ConnectTo::Endpoint(address))?;
    while let Err(e) = outgoing.wait(Some(Duration::from_millis(100))) {
        if e.kind() != Kind::Pending {
            return Err(e);
        }
        println!("{:.0} %", f64::from(outgoing.stats().progress) / 100.0);
    }
    incoming.wait(None)?;

    let stood = outgoing.stats().downtime.unwrap_or_default();
    let (left, arrived) = (here.counter()?, there.counter()?);
    assert!(arrived >= left && left > 0);
    while there.counter()? == arrived {
        std::thread::yield_now();
    }
    println!("moved at {left}; it stood still for {stood:?} and counts on");
    there.pause()
}
