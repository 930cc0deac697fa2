//! A migration whose operations use the helpers: memory and state go to another machine, and what the
//! destination cannot take is refused before any memory is sent.

use super::machine::{kvm, Chips, Machine, Ram, RAM};
use super::programs::{Program, DUMP, INPUT};
use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::Result;
use brant::kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use brant::kvm_ioctls::Kvm;
use brant::kvmstate::{
    check_compat, load_vcpu, load_vm, save_compat, save_vcpu, save_vm, stood_still, COMPAT, VCPU,
};
use brant::memory::{BlockDescription, HostMemory, Memory, SlotDescription};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::Bytes;
use brant::vm_memory::GuestAddress;
use brant::vmm::{StateBlob, StateSink, Vmm};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// A VMM: nothing of KVM's state is its own business.
struct Mover {
    machine: Mutex<Machine>,
    cpuid: CpuId,
    memory: Arc<Memory>,
    loads: Mutex<Vec<String>>,
}

impl Mover {
    fn new(kvm: &Kvm, cpuid: CpuId) -> Arc<Mover> {
        let ram = Ram::new();
        let machine = Machine::new(kvm, &ram, Chips::Kernel);
        let memory = Arc::new(Memory::new().unwrap());
        // SAFETY: mapped as long as the machine.
        let host = unsafe { HostMemory::new(machine.ram.host()) };
        let block = memory
            .add_block(BlockDescription::new("ram", host, Bytes(RAM as u64)))
            .unwrap();
        memory
            .add_slot(&SlotDescription {
                slot: 0,
                ..SlotDescription::new(block, GuestAddress(0), Bytes(RAM as u64))
            })
            .unwrap();
        Arc::new(Mover {
            machine: Mutex::new(machine),
            cpuid,
            memory,
            loads: Mutex::default(),
        })
    }
}

impl Vmm for Mover {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        stood_still(&self.machine.lock().unwrap().vcpu)
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
    fn early_save(&self, sink: &mut dyn StateSink) -> Result<()> {
        save_compat(
            &self.machine.lock().unwrap().kernel,
            self.cpuid.as_slice(),
            sink,
        )
    }
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        assert_eq!(blob.name, COMPAT);
        let here = Some(self.cpuid.as_slice());
        check_compat(&self.machine.lock().unwrap().kernel, here, blob)
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let m = self.machine.lock().unwrap();
        save_vcpu(&m.kernel, &m.vcpu, 0, sink)?;
        save_vm(&m.kernel, sink)
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        self.loads.lock().unwrap().push(blob.name.to_owned());
        let m = self.machine.lock().unwrap();
        match blob.name {
            VCPU => load_vcpu(&m.kernel, &m.vcpu, blob),
            _ => load_vm(&m.kernel, blob),
        }
    }
}

fn migrate(from: &Arc<Mover>, to: &Arc<Mover>) -> Result<()> {
    let tracker = Tracker::new(Arc::clone(&from.memory), Clearing::default())?;
    let log = Request::default()
        .open(&from.machine.lock().unwrap().vm)?
        .log;
    tracker.add_log(log)?;
    let outgoing = Outgoing::new(tracker, Blockers::new(), from.clone(), Params::default())?;
    let incoming = Incoming::new(Arc::clone(&to.memory), to.clone(), Params::default())?;
    let (a, b) = UnixStream::pair()?;
    incoming.start(AcceptFrom::Connected(b.into()))?;
    outgoing.start(ConnectTo::Connected(a.into()))?;
    outgoing.wait(None)
}

#[test]
fn a_guest_moves_with_the_helpers_alone() {
    let Some(kvm) = kvm() else { return };
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let (from, to) = (Mover::new(&kvm, cpuid.clone()), Mover::new(&kvm, cpuid));
    {
        let mut m = from.machine.lock().unwrap();
        for at in 0..12 {
            m.ram
                .put(INPUT + 8 * at, if at == 9 { 0x600 } else { 0x1000 * at });
        }
        m.ram.put(INPUT + 8 * 11, 3);
        m.ram.put(INPUT + 8 * 5, 0x0007_0106_0007_0406);
        m.begin(Program::System);
        assert_eq!(m.run(), 1);
    }
    migrate(&from, &to).unwrap();
    assert_eq!(*to.loads.lock().unwrap(), ["kvm-vcpu", "kvm-vm"]);
    let mut m = to.machine.lock().unwrap();
    assert_eq!(m.run(), 2);
    for at in [0, 1, 3, 4, 5, 6, 7, 8, 10, 11] {
        assert_eq!(
            m.ram.get(DUMP + 8 * at),
            m.ram.get(INPUT + 8 * at),
            "word {at}"
        );
    }
}

#[test]
fn a_destination_with_another_cpuid_refuses_before_memory_is_sent() {
    let Some(kvm) = kvm() else { return };
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let mut less = cpuid.clone();
    let leaf = less
        .as_mut_slice()
        .iter_mut()
        .find(|leaf| leaf.function == 1);
    leaf.unwrap().edx ^= 1 << 26; // SSE2
    let (from, to) = (Mover::new(&kvm, cpuid), Mover::new(&kvm, less));
    from.machine.lock().unwrap().ram.put(DUMP, 42);
    let error = migrate(&from, &to).unwrap_err();
    assert!(error.message().contains("leaf 0x1.0 EDX"), "{error}");
    assert!(
        error.message().contains("bits 0x4000000 are missing here"),
        "{error}"
    );
    assert!(to.loads.lock().unwrap().is_empty());
    assert_eq!(to.machine.lock().unwrap().ram.get(DUMP), 0);
}
