//! A guest that migrates by its gate: the operations, and who may resume it when.

use super::machine::{kvm, Machine, Ram, Seen, ASKS, LENGTH};
use super::LONG;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::gate::{Gate, Holder};
use brant::kvm_bindings::{kvm_regs, kvm_sregs};
use brant::memory::{BlockDescription, HostMemory, Memory};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::Bytes;
use brant::vmm::{StateBlob, StateSink, Vmm};
use brant::{Kind, Result};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Both sides share memory and devices, so that the guest goes on where it was.
struct Host {
    machine: Machine,
    memory: Arc<Memory>,
    refuses: AtomicBool,
}

impl Host {
    fn new(machine: Machine) -> Arc<Host> {
        let memory = Arc::new(Memory::new().unwrap());
        // SAFETY: mapped as long as the machine.
        let host = unsafe { HostMemory::new(machine.ram.host()) };
        memory
            .add_block(BlockDescription::new("ram", host, Bytes(LENGTH as u64)))
            .unwrap();
        let of = Arc::clone(&memory);
        assert!(machine.gate.set_owner(move || of.runs_here()));
        Arc::new(Host {
            machine,
            memory,
            refuses: AtomicBool::new(false),
        })
    }

    fn gate(&self) -> &Gate {
        &self.machine.gate
    }
}

fn bytes<T>(value: &T) -> &[u8] {
    // SAFETY: plain integers of KVM's interface.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

impl Vmm for Host {
    fn pause(&self) -> Result<()> {
        self.gate().on_pause()
    }
    fn resume(&self) -> Result<()> {
        self.gate().on_resume();
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.gate().on_run()
    }
    fn kick(&self) -> Result<()> {
        self.gate().on_kick()
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let state = self.machine.state();
        sink.put(&StateBlob {
            name: "vcpu",
            instance: 0,
            version: 1,
            data: bytes(&state),
        })
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(brant::Error::new(Kind::Unsupported, "not this processor"));
        }
        assert_eq!(blob.data.len(), size_of::<(kvm_regs, kvm_sregs)>());
        // SAFETY: as long as the plain structures, every pattern valid.
        let state = unsafe {
            blob.data
                .as_ptr()
                .cast::<(kvm_regs, kvm_sregs)>()
                .read_unaligned()
        };
        self.machine.set_state(&state);
        Ok(())
    }
}

fn migrate(from: &Arc<Host>, to: &Arc<Host>) -> Result<()> {
    let tracker = Tracker::new(Arc::clone(&from.memory), Clearing::default())?;
    let out = Outgoing::new(tracker, Blockers::new(), from.clone(), Params::default())?;
    let inc = Incoming::new(Arc::clone(&to.memory), to.clone(), Params::default())?;
    let (a, b) = UnixStream::pair().unwrap();
    inc.start(AcceptFrom::Connected(b.into()))?;
    out.start(ConnectTo::Connected(a.into()))?;
    let left = out.wait(Some(LONG));
    let _ = inc.wait(Some(LONG));
    left
}

#[test]
fn a_guest_moves_by_its_gate_and_is_not_resumed_where_it_left() {
    let Some(kvm) = kvm() else { return };
    let (ram, seen) = (Ram::new(ASKS), Arc::new(Seen::default()));
    // The two sides have memory of their own; the guest's program is all that is in it.
    let (here, there) = (
        Host::new(Machine::new(&kvm, &ram, &seen, false)),
        Host::new(Machine::new(&kvm, &Ram::new(&[]), &seen, false)),
    );
    let more = |what: &str| {
        let before = seen.told.load(Ordering::Relaxed);
        let begun = std::time::Instant::now();
        while seen.told.load(Ordering::Relaxed) == before {
            assert!(begun.elapsed() < LONG, "{what}: the guest stands");
            std::thread::yield_now();
        }
        seen.check();
    };
    here.gate().start().unwrap();
    more("started");
    // A refusal resumes it, unless its user has paused it.
    there.refuses.store(true, Ordering::SeqCst);
    migrate(&here, &there).unwrap_err();
    more("resumed after a refusal");
    here.gate().pause(LONG).unwrap();
    migrate(&here, &there).unwrap_err();
    let told = seen.told.load(Ordering::Relaxed);
    assert!(here.gate().holds().by(Holder::User) && !here.gate().holds().by(Holder::Migration));
    here.gate().resume().unwrap();
    more("resumed by its user");
    assert!(seen.told.load(Ordering::Relaxed) > told);
    there.refuses.store(false, Ordering::SeqCst);
    migrate(&here, &there).unwrap();
    more("arrived");
    // It was handed over: nothing that the VMM does here lets it run here.
    here.gate().pause(LONG).unwrap();
    let refused = here.gate().resume().unwrap_err();
    assert_eq!(refused.kind(), Kind::State, "{refused}");
    assert!(refused.message().contains("handed over"), "{refused}");
    assert_eq!(here.gate().start().unwrap_err().kind(), Kind::State);
    here.gate().on_kick().unwrap();
    assert!(here.gate().holds().by(Holder::Migration));
    more("there all the time");
    // Each of these pauses is over, although the guest did not run: it would stand when it comes back.
    assert_eq!(here.gate().holds().user_pauses(), 0);
    here.gate().pause(LONG).unwrap();
    // When the copy there is gone, it may.
    there.gate().pause(LONG).unwrap();
    there.memory.give_up().unwrap();
    here.memory.reclaim().unwrap();
    here.gate().start().unwrap();
    assert!(!here.gate().holds().is_open(), "its user has paused it");
    here.machine.set_state(&there.machine.state());
    here.gate().resume().unwrap();
    more("reclaimed");
    assert!(there.gate().resume().is_err());
}
