//! A guest of KVM that counts in two blocks, one of a memfd and one of private memory, and stops when
//! the counts and its own register differ: so a lost write, a repeated one and a wrong state of the
//! vCPU all show.

use brant::dirty::kvm::{ring, Request, Rings};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::{Error, Kind, Result};
use brant::gate::{Config, Gate};
use brant::kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::{BackingFile, BlockDescription, HostMemory, Memory, SlotDescription};
use brant::units::Bytes;
use brant::vm_memory::GuestAddress;
use brant::vmm::{Event, MappedBlock, StateBlob, StateSink, Vmm};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

/// Counts in `ebx`, at 0x5000 of the first block and at the same place of the second.
const CODE: &[u8] = &[
    0x66, 0xa1, 0x00, 0x50, //             again: mov eax, [0x5000]
    0x66, 0x39, 0xd8, //                   cmp eax, ebx
    0x75, 0x1d, //                         jne wrong
    0x26, 0x66, 0xa1, 0x00, 0x50, //       mov eax, es:[0x5000]
    0x66, 0x39, 0xd8, //                   cmp eax, ebx
    0x75, 0x13, //                         jne wrong
    0x66, 0x43, //                         inc ebx
    0x66, 0x89, 0x1e, 0x00, 0x50, //       mov [0x5000], ebx
    0x26, 0x66, 0x89, 0x1e, 0x00, 0x50, // mov es:[0x5000], ebx
    0xe6, 0x80, //                         out 0x80, al
    0xeb, 0xda, //                         jmp again
    0xf4, //                               wrong: hlt
];
/// `KVM_EXIT_DIRTY_RING_FULL`.
const DIRTY_RING_FULL: u32 = 31;
const CODE_AT: u64 = 0x1000;
const COUNTER_AT: usize = 0x5000;
pub const LENGTH: u64 = 256 << 10;
pub const SHARED: &str = "shared";
pub const PRIVATE: &str = "private";

/// Memory of this process's, unmapped at the end.
struct Mapping(*mut u8);

// SAFETY: an address; accesses are atomic or the guest's.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: Option<(BorrowedFd<'_>, u64)>) -> Mapping {
        let (flags, fd, offset) = match file {
            Some((fd, offset)) => (libc::MAP_SHARED, fd.as_raw_fd(), offset),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (at, length) = (std::ptr::null_mut(), LENGTH as usize);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let host = unsafe { libc::mmap(at, length, protection, flags, fd, offset as i64) };
        assert_ne!(host, libc::MAP_FAILED);
        Mapping(host.cast())
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= LENGTH as usize);
        // SAFETY: aligned, inside the mapping, which lives as long as this.
        unsafe { &*self.0.add(offset).cast() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the guest does not run any more.
        unsafe { libc::munmap(self.0.cast(), LENGTH as usize) };
    }
}

/// What a test does in an operation, or when a state is entered.
type Hook = Box<dyn Fn() + Send + Sync>;

/// The vCPU, which its thread shares with the machine.
struct Cpu {
    /// Locked by the thread while it is in `KVM_RUN`, and free while it stands at the gate.
    fd: Mutex<VcpuFd>,
    /// The guest has found a difference.
    wrong: AtomicBool,
    rings: OnceLock<Rings>,
}

/// What the guest wants from the VMM.
enum Wants {
    Nothing,
    RingEmptied,
    End,
}

impl Cpu {
    /// Enters the guest once; whether it was interrupted, and what it wants.
    fn once(&self) -> (bool, Wants) {
        match self.fd.lock().unwrap().run() {
            Ok(VcpuExit::IoOut(0x80, _)) => (false, Wants::Nothing),
            Ok(VcpuExit::Hlt) => {
                self.wrong.store(true, Ordering::SeqCst);
                (false, Wants::End)
            }
            Ok(VcpuExit::Unsupported(DIRTY_RING_FULL)) => (false, Wants::RingEmptied),
            Err(e) if e.errno() == libc::EINTR => (true, Wants::Nothing),
            Err(e) if e.errno() == libc::EAGAIN => (false, Wants::Nothing),
            other => panic!("the guest ended: {other:?}"),
        }
    }

    /// The vCPU's thread.
    fn serve(&self, gate: &Gate) {
        let raw = self.fd.lock().unwrap().as_raw_fd();
        // SAFETY: open as long as this.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        let vcpu = gate.add_vcpu(0, Some(fd)).unwrap();
        while vcpu.enter().is_ok() {
            let (interrupted, wants) = self.once();
            if vcpu.left(interrupted).is_err() {
                return;
            }
            match wants {
                Wants::Nothing => {}
                Wants::RingEmptied => self.rings.get().unwrap().full(0).unwrap(),
                Wants::End => return,
            }
        }
    }
}

pub struct Machine {
    vm: VmFd,
    cpu: Arc<Cpu>,
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
    blocks: Mutex<HashMap<&'static str, Mapping>>,
    pub memory: Arc<Memory>,
    tracker: OnceLock<Arc<Tracker>>,
    hooks: Mutex<HashMap<String, Hook>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The vCPU's thread uses the blocks.
        self.gate.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Machine {
    /// A machine with both blocks, or one that waits for the shared one.
    pub fn new(kvm: &Kvm, here: bool, ring: bool) -> Arc<Machine> {
        let vm = kvm.create_vm().unwrap();
        if ring {
            ring::enable(&vm, 4096 * 16).unwrap();
        }
        let cpu = Arc::new(Cpu {
            fd: Mutex::new(vm.create_vcpu(0).unwrap()),
            wrong: AtomicBool::new(false),
            rings: OnceLock::new(),
        });
        let gate = Gate::new(Config {
            install_handler: true,
            ..Config::default()
        })
        .unwrap();
        let (own, at) = (Arc::clone(&cpu), Arc::clone(&gate));
        let machine = Machine {
            vm,
            cpu,
            gate,
            thread: Some(std::thread::spawn(move || own.serve(&at))),
            blocks: Mutex::default(),
            memory: Arc::new(Memory::new().unwrap()),
            tracker: OnceLock::new(),
            hooks: Mutex::default(),
        };
        machine.describe(PRIVATE, Mapping::new(None), None);
        if here {
            // SAFETY: a new descriptor of this test's.
            let fd = unsafe {
                let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
                let fd = libc::memfd_create(c"ram".as_ptr(), flags);
                assert!(fd >= 0);
                assert_eq!(libc::ftruncate(fd, LENGTH as i64), 0);
                OwnedFd::from_raw_fd(fd)
            };
            let mapping = Mapping::new(Some((std::os::fd::AsFd::as_fd(&fd), 0)));
            for (at, byte) in CODE.iter().enumerate() {
                // SAFETY: inside the mapping, and the guest does not run yet.
                unsafe { mapping.0.add(CODE_AT as usize + at).write_volatile(*byte) };
            }
            machine.describe(SHARED, mapping, Some(fd));
            machine.begin();
            machine.track();
        }
        Arc::new(machine)
    }

    /// Describes memory that is all of this process's own.
    fn describe(&self, name: &'static str, mapping: Mapping, file: Option<OwnedFd>) {
        // SAFETY: mapped until the machine is gone.
        let host = unsafe { HostMemory::new(mapping.0) };
        self.memory
            .add_block(BlockDescription {
                file: file.map(|fd| BackingFile { fd, offset: 0 }),
                ..BlockDescription::new(name, host, Bytes(LENGTH))
            })
            .unwrap();
        self.blocks.lock().unwrap().insert(name, mapping);
        self.show(name);
    }

    /// Gives a block to KVM, and to brant's map.
    fn show(&self, name: &'static str) {
        let (slot, guest) = match name {
            SHARED => (0, 0),
            _ => (1, 0x4_0000),
        };
        let blocks = self.blocks.lock().unwrap();
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: LENGTH,
            userspace_addr: blocks[name].0 as u64,
        };
        // SAFETY: mapped for as long as the VM is used.
        unsafe { self.vm.set_user_memory_region(region) }.unwrap();
        let block = self.memory.find_block(name).unwrap();
        self.memory
            .add_slot(&SlotDescription {
                slot,
                ..SlotDescription::new(block, GuestAddress(guest), Bytes(LENGTH))
            })
            .unwrap();
    }

    fn begin(&self) {
        let vcpu = self.cpu.fd.lock().unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.es.base, sregs.es.selector) = (0x4_0000, 0x4000);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_regs {
            rip: CODE_AT,
            rflags: 2,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs).unwrap();
    }

    /// Makes a tracker with KVM's log: that of rings where they are enabled. The vCPU does not run.
    fn track(&self) {
        let tracker = Tracker::new(Arc::clone(&self.memory), Clearing::default()).unwrap();
        let opened = Request::default().open(&self.vm).unwrap();
        if let Some(rings) = opened.used.rings {
            rings.add_vcpu(0, &self.cpu.fd.lock().unwrap()).unwrap();
            self.cpu.rings.set(rings).unwrap();
        }
        tracker.add_log(opened.log).unwrap();
        self.tracker.set(tracker).unwrap();
    }

    /// The tracker of a machine that has both blocks from the beginning.
    pub fn tracker(&self) -> Arc<Tracker> {
        Arc::clone(self.tracker.get().unwrap())
    }

    pub fn at(&self, place: &str, hook: impl Fn() + Send + Sync + 'static) {
        self.hooks
            .lock()
            .unwrap()
            .insert(place.to_owned(), Box::new(hook));
    }

    fn hook(&self, place: &str) {
        if let Some(hook) = self.hooks.lock().unwrap().get(place) {
            hook();
        }
    }

    /// The count in a block.
    pub fn count(&self, name: &str) -> u32 {
        self.blocks.lock().unwrap()[name]
            .word(COUNTER_AT)
            .load(Ordering::SeqCst)
    }

    /// The count of the vCPU, which does not run.
    pub fn count_of_vcpu(&self) -> u32 {
        self.cpu.fd.lock().unwrap().get_regs().unwrap().rbx as u32
    }

    pub fn is_wrong(&self) -> bool {
        self.cpu.wrong.load(Ordering::SeqCst)
    }

    /// Waits until the guest has counted to `to`, or has found a difference.
    pub fn count_to(&self, to: u32) {
        let begun = std::time::Instant::now();
        while self.count(SHARED) < to && !self.is_wrong() {
            assert!(
                begun.elapsed() < crate::support::time::LONG,
                "the guest stands still"
            );
            std::thread::yield_now();
        }
        assert!(!self.is_wrong(), "the guest found a difference");
    }

    /// A guest that begins here.
    pub fn start(&self) {
        self.gate.start().unwrap();
    }

    /// For good.
    pub fn stop(&self) {
        self.gate.pause(crate::support::time::LONG).unwrap();
    }
}

fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: plain integers of KVM's interface, without padding that matters.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn of_bytes<T: Copy>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: as many bytes as the plain structure has, every pattern valid.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.gate.on_pause()?;
        self.hook("pause");
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.hook("resume");
        self.gate.on_resume();
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        self.hook("save");
        let vcpu = self.cpu.fd.lock().unwrap();
        let (regs, sregs) = (vcpu.get_regs().unwrap(), vcpu.get_sregs().unwrap());
        for (name, data) in [("regs", bytes_of(&regs)), ("sregs", bytes_of(&sregs))] {
            sink.put(&StateBlob {
                name,
                instance: 0,
                version: 1,
                data,
            })?;
        }
        Ok(())
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        self.hook("load");
        let vcpu = self.cpu.fd.lock().unwrap();
        match blob.name {
            "regs" => vcpu.set_regs(&of_bytes::<kvm_regs>(blob.data)).unwrap(),
            "sregs" => vcpu.set_sregs(&of_bytes::<kvm_sregs>(blob.data)).unwrap(),
            other => {
                let what = format!("no state `{other}` here");
                return Err(Error::new(Kind::Unsupported, what));
            }
        }
        Ok(())
    }
    fn loaded(&self) -> Result<()> {
        self.hook("loaded");
        // By now the block is in the guest's map.
        self.show(SHARED);
        Ok(())
    }
    fn release(&self) -> Result<()> {
        self.hook("release");
        Ok(())
    }
    fn map_block(
        &self,
        name: &str,
        file: BorrowedFd<'_>,
        length: u64,
        offset: u64,
    ) -> Result<MappedBlock> {
        self.hook("map_block");
        assert_eq!((name, length), (SHARED, LENGTH));
        let mapping = Mapping::new(Some((file, offset)));
        let host = mapping.0;
        self.blocks.lock().unwrap().insert(SHARED, mapping);
        // SAFETY: mapped until the machine is gone.
        Ok(unsafe { MappedBlock::new(host) })
    }
    fn can_map_blocks(&self) -> bool {
        true
    }
    fn run(&self) -> Result<()> {
        self.hook("run");
        self.gate.on_run()?;
        self.hook("ran");
        Ok(())
    }
    fn event(&self, event: &Event) {
        if event.kind == brant::vmm::EventKind::State {
            self.hook(&event.message);
        }
    }
}
