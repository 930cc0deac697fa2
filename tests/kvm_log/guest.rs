//! A guest of 250 pages that writes what it is told to, its tracker, and a VMM that switches
//! logging.

use super::vm::*;
use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::sys::kvm as sys;
use brant::sys::kvm::{UserMemoryRegion, Vm};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::Vmm;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use vm_memory::GuestAddress;

/// A guest of 250 pages in three slots, whose lengths are no multiples of 64 pages, with a gap, and
/// a fourth slot that shows pages of the second one again.
pub struct Guest {
    pub vm: VmFd,
    pub vcpu: VcpuFd,
    pub ram: Ram,
    pub memory: Arc<Memory>,
    pub consumer: Consumer,
    pub copy: Vec<u8>,
    pub cursor: Cursor,
}

pub const PAGES: u64 = 220;
/// Slot, first page of the block, pages, first page frame of the guest.
pub const SLOTS: [(u32, u64, u64, u64); 4] = [
    (0, 0, 70, 0),
    (1, 70, 33, 70),
    (2, 103, 117, 110),
    (3, 80, 20, 230),
];

/// Switches logging as a VMM does.
pub struct Switches {
    pub vm: Mutex<sys::VmFd>,
    pub host: u64,
    pub calls: Mutex<Vec<(bool, Vec<u32>)>>,
}

impl Switches {
    pub fn switch(&self, slots: &[u32], on: bool) -> brant::Result<()> {
        self.calls.lock().unwrap().push((on, slots.to_vec()));
        for (slot, first, pages, guest) in SLOTS {
            if slots.contains(&slot) {
                self.vm.lock().unwrap().set_region(&UserMemoryRegion {
                    slot,
                    flags: if on { LOGGED } else { 0 },
                    guest_address: guest * PAGE_SIZE,
                    size: pages * PAGE_SIZE,
                    host_address: self.host + first * PAGE_SIZE,
                })?;
            }
        }
        Ok(())
    }
}

impl Vmm for Switches {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn log_on(&self, slots: &[u32]) -> brant::Result<()> {
        self.switch(slots, true)
    }
    fn log_off(&self, slots: &[u32]) -> brant::Result<()> {
        self.switch(slots, false)
    }
}

impl Guest {
    pub fn new(
        kvm: &Kvm,
        mode: KvmMode,
        clearing: Clearing,
        by_vmm: bool,
    ) -> (Guest, Arc<Switches>) {
        let vm = kvm.create_vm().unwrap();
        let ram = Ram::new(PAGES);
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { brant::memory::HostMemory::new(ram.0) },
                length: Bytes(PAGES * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        for (slot, first, pages, guest) in SLOTS {
            region(&vm, slot, 0, guest, pages, ram.0 as u64 + first * PAGE_SIZE);
            memory
                .add_slot(&SlotDescription {
                    slot,
                    flags: 0,
                    block: memory.find_block("ram").unwrap(),
                    offset: Bytes(first * PAGE_SIZE),
                    length: Bytes(pages * PAGE_SIZE),
                    guest_address: GuestAddress(guest * PAGE_SIZE),
                })
                .unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        let switches = Arc::new(Switches {
            vm: Mutex::new(boundary(&vm)),
            host: ram.0 as u64,
            calls: Mutex::default(),
        });
        let switch = match by_vmm {
            true => LogSwitch::Vmm(Arc::clone(&switches) as Arc<dyn Vmm>),
            false => LogSwitch::Brant,
        };
        let tracker = Tracker::new(Arc::clone(&memory), clearing).unwrap();
        tracker
            .add_log(Box::new(KvmLog::from_vm(&vm, mode, switch).unwrap()))
            .unwrap();
        let guest = Guest {
            vm,
            vcpu,
            ram,
            memory,
            consumer: tracker.consumer(),
            copy: vec![0; PAGES as usize],
            cursor: Cursor::default(),
        };
        (guest, switches)
    }

    /// Lets the guest increment the first byte of each of these page frames.
    pub fn writes(&mut self, frames: &[u64]) {
        let mut code = Vec::new();
        for frame in frames {
            let [low, high] = ((frame * PAGE_SIZE / 16) as u16).to_le_bytes();
            // mov ax, segment; mov ds, ax; inc byte [0]
            code.extend([0xb8, low, high, 0x8e, 0xd8, 0xfe, 0x06, 0, 0]);
        }
        code.push(0xf4);
        self.ram.write(CODE * PAGE_SIZE, &code);
        // The VMM's own write: KVM does not log it.
        self.consumer
            .mark_guest(GuestAddress(CODE * PAGE_SIZE), code.len() as u64);
        let mut sregs = self.vcpu.get_sregs().unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        self.vcpu.set_sregs(&sregs).unwrap();
        let mut regs = self.vcpu.get_regs().unwrap();
        regs.rip = CODE * PAGE_SIZE;
        regs.rflags = 2;
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => break,
                Ok(other) => panic!("the guest stopped with {other:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => panic!("KVM_RUN: {e}"),
            }
        }
    }

    /// Takes and reads everything pending; `between` runs after the first take.
    pub fn drain(&mut self, mut between: impl FnMut(&mut Self)) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        loop {
            let taken = self.consumer.take(&mut self.cursor, 1, Pages(8)).unwrap();
            if taken.is_empty() {
                return found;
            }
            if found.is_empty() {
                between(self);
            }
            for run in taken.runs() {
                for page in run.pages.first().0..run.pages.end().0 {
                    self.copy[page as usize] = self.ram.byte(page);
                    found.insert(page);
                }
            }
            taken.delivered();
        }
    }

    pub fn assert_copied(&self) {
        for page in 0..PAGES {
            assert_eq!(self.copy[page as usize], self.ram.byte(page), "page {page}");
        }
    }

    pub fn flags_are_off(&self) -> bool {
        let mut fd = boundary(&self.vm);
        SLOTS
            .iter()
            .all(|&(slot, _, pages, _)| fd.get_dirty_log(slot, &mut words(pages)).is_err())
    }
}
