//! A guest of two blocks, private memory and a memfd. One of several logs finds its writes.

use crate::dirty::kvm::{ring, KvmLog, KvmMode, KvmRing, LogSwitch};
use crate::dirty::tracker::{Clearing, Tracker};
use crate::dirty::userfault::UserfaultLog;
use crate::error::Result;
use crate::memory::block::BackingFile;
use crate::memory::{BlockDescription, BlockFlags, HostMemory, Memory, SlotDescription, NO_SLOT};
use crate::units::{Bytes, PAGE_SIZE};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The number of pages in each block.
pub const PAGES: usize = 48;
const PAGE: usize = PAGE_SIZE as usize;
/// The first page frame of each block.
const FRAMES: [u64; 2] = [0, 128];
/// The page of the first block that has the guest's program.
const CODE: usize = 1;

/// The log that finds the guest's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The VMM's marks alone.
    Marks,
    /// userfaultfd.
    Userfault,
    /// KVM's bitmaps, with protection restored by `KVM_CLEAR_DIRTY_LOG`.
    Kvm,
    /// KVM's rings, and a reaper.
    Ring,
}

/// The memory of one block.
struct Ram {
    host: *mut u8,
    file: Option<OwnedFd>,
}

// SAFETY: a mapping of its own.
unsafe impl Send for Ram {}
// SAFETY: as above; it is read only while no thread writes.
unsafe impl Sync for Ram {}

impl Ram {
    fn new(shared: bool) -> Ram {
        let length = PAGES * PAGE;
        let file = shared.then(|| {
            // SAFETY: a literal name; the descriptor is owned at once.
            let file = unsafe {
                OwnedFd::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC))
            };
            // SAFETY: changes only the length of our own file.
            let cut = unsafe { libc::ftruncate(file.as_raw_fd(), length as i64) };
            assert_eq!(cut, 0);
            file
        });
        let flags = match shared {
            true => libc::MAP_SHARED,
            false => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        };
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file.as_ref().map_or(-1, |file| file.as_raw_fd()),
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        Ram {
            host: host.cast(),
            file,
        }
    }

    fn page(&self, page: usize) -> [u8; PAGE] {
        assert!(page < PAGES);
        // SAFETY: inside the mapping, and no thread writes meanwhile.
        unsafe {
            self.host
                .add(page * PAGE)
                .cast::<[u8; PAGE]>()
                .read_volatile()
        }
    }

    fn write(&self, page: usize, at: usize, bytes: &[u8]) {
        assert!(page < PAGES && at + bytes.len() <= PAGE);
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping.
            unsafe { self.host.add(page * PAGE + at + i).write_volatile(*byte) };
        }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no longer used.
        unsafe { libc::munmap(self.host.cast(), PAGES * PAGE) };
    }
}

/// A guest's memory, at either side.
pub struct Machine {
    ram: [Ram; 2],
}

impl Machine {
    pub fn new() -> Machine {
        Machine {
            ram: [Ram::new(false), Ram::new(true)],
        }
    }

    /// Describes the memory to brant. In this method, only brant's calls may fail.
    pub fn memory(&self) -> Result<Arc<Memory>> {
        let memory = Arc::new(Memory::new()?);
        for (index, name) in ["private", "shared"].into_iter().enumerate() {
            let ram = &self.ram[index];
            memory.add_block(BlockDescription {
                name: name.to_owned(),
                // SAFETY: the machine outlives the memory.
                host: unsafe { HostMemory::new(ram.host) },
                length: Bytes((PAGES * PAGE) as u64),
                page_size: Bytes(PAGE_SIZE),
                file: ram.file.as_ref().map(|file| BackingFile {
                    fd: file.as_fd().try_clone_to_owned().unwrap(),
                    offset: 0,
                }),
                flags: BlockFlags::default(),
            })?;
        }
        Ok(memory)
    }

    /// The pages in which two machines differ, as (block, page).
    pub fn differences(&self, other: &Machine) -> Vec<(usize, usize)> {
        let all = (0..2).flat_map(|block| (0..PAGES).map(move |page| (block, page)));
        all.filter(|&(block, page)| self.ram[block].page(page) != other.ram[block].page(page))
            .collect()
    }
}

/// The running guest at the source.
pub struct Guest {
    pub machine: Machine,
    pub tracker: Arc<Tracker>,
    log: Log,
    /// The guest's vCPU, and the rings to report to when its ring is full.
    vcpu: Option<(VcpuFd, Option<ring::Rings>)>,
    _vm: Option<VmFd>,
}

/// Whether this machine has what `log` needs.
pub fn is_here(log: Log) -> bool {
    match log {
        Log::Marks => true,
        Log::Userfault => UserfaultLog::new().is_ok(),
        Log::Kvm => Kvm::new().is_ok(),
        Log::Ring => Kvm::new().is_ok_and(|kvm| kvm.check_extension_raw(223) > 0),
    }
}

impl Guest {
    /// Makes a guest. Calls of brant's may fail in here, and the test's own may not.
    pub fn new(log: Log) -> Result<Guest> {
        let machine = Machine::new();
        for (block, ram) in machine.ram.iter().enumerate() {
            for page in (0..PAGES).step_by(2 + block) {
                ram.write(page, 100, &[page as u8 + 1, block as u8, 7]);
            }
        }
        let memory = machine.memory()?;
        let (mut vm, mut vcpu) = (None, None);
        let dirty_log: Option<Box<dyn crate::dirty::DirtyLog>> = match log {
            Log::Marks => None,
            Log::Userfault => Some(Box::new(UserfaultLog::new()?)),
            Log::Kvm | Log::Ring => {
                let kvm = Kvm::new().unwrap();
                let made = kvm.create_vm().unwrap();
                if log == Log::Ring {
                    ring::enable(&made, 0)?;
                }
                for (slot, ram) in machine.ram.iter().enumerate() {
                    let region = kvm_bindings::kvm_userspace_memory_region {
                        slot: slot as u32,
                        flags: 0,
                        guest_phys_addr: FRAMES[slot] * PAGE_SIZE,
                        memory_size: (PAGES * PAGE) as u64,
                        userspace_addr: ram.host as u64,
                    };
                    // SAFETY: the machine outlives the VM.
                    unsafe { made.set_user_memory_region(region) }.unwrap();
                }
                let cpu = made.create_vcpu(0).unwrap();
                let found: Box<dyn crate::dirty::DirtyLog> = if log == Log::Ring {
                    let ring = KvmRing::from_vm(&made, LogSwitch::Brant, None)?;
                    let rings = ring.rings();
                    rings.add_vcpu(0, &cpu)?;
                    vcpu = Some((cpu, Some(rings)));
                    Box::new(ring)
                } else {
                    vcpu = Some((cpu, None));
                    let mode = KvmMode::ManualProtect;
                    Box::new(KvmLog::from_vm(&made, mode, LogSwitch::Brant)?)
                };
                vm = Some(made);
                Some(found)
            }
        };
        for (index, block) in ["private", "shared"].into_iter().enumerate() {
            memory.add_slot(&SlotDescription {
                slot: if vm.is_some() { index as u32 } else { NO_SLOT },
                flags: 0,
                block: memory.find_block(block).unwrap(),
                offset: Bytes(0),
                length: Bytes((PAGES * PAGE) as u64),
                guest_address: GuestAddress(FRAMES[index] * PAGE_SIZE),
            })?;
        }
        let tracker = Tracker::new(memory, Clearing::Chunked { shift: 6 })?;
        if let Some(dirty_log) = dirty_log {
            tracker.add_log(dirty_log)?;
        }
        Ok(Guest {
            machine,
            tracker,
            log,
            vcpu,
            _vm: vm,
        })
    }

    /// Has the guest write to the pages with these numbers, counted from 0, in both blocks.
    pub fn write(&mut self, pages: &[usize]) {
        let all = || (0..2).flat_map(|block| pages.iter().map(move |page| (block, *page)));
        if self.vcpu.is_none() {
            for (block, page) in all() {
                let [byte, ..] = self.machine.ram[block].page(page);
                self.machine.ram[block].write(page, 0, &[byte.wrapping_add(1)]);
                if self.log == Log::Marks {
                    self.mark(block, page);
                }
            }
            return;
        }
        let mut code = Vec::new();
        for (block, page) in all().filter(|at| *at != (0, CODE)) {
            let frame = FRAMES[block] + page as u64;
            let [low, high] = ((frame * PAGE_SIZE / 16) as u16).to_le_bytes();
            // mov ax, segment; mov ds, ax; inc byte [0]
            code.extend([0xb8, low, high, 0x8e, 0xd8, 0xfe, 0x06, 0, 0]);
        }
        code.push(0xf4);
        self.vmm_writes(CODE, &code);
        self.run();
    }

    /// Has the VMM write to a page of the first block, and mark it.
    pub fn vmm_writes(&self, page: usize, bytes: &[u8]) {
        self.machine.ram[0].write(page, 0, bytes);
        self.mark(0, page);
    }

    fn mark(&self, block: usize, page: usize) {
        let address = GuestAddress((FRAMES[block] + page as u64) * PAGE_SIZE);
        self.tracker.mark_guest(address, PAGE_SIZE);
    }

    fn run(&mut self) {
        let Some((vcpu, rings)) = &mut self.vcpu else {
            return;
        };
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (CODE as u64 * PAGE_SIZE, 2);
        vcpu.set_regs(&regs).unwrap();
        loop {
            match vcpu.run() {
                Ok(VcpuExit::Hlt) => break,
                // KVM_EXIT_DIRTY_RING_FULL.
                Ok(VcpuExit::Unsupported(31)) => {
                    // When the ring cannot be harvested now, the next exit reports it again.
                    let _ = rings.as_ref().unwrap().full(0);
                }
                Ok(other) => panic!("the guest stopped with {other:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => panic!("KVM_RUN: {e}"),
            }
        }
    }
}
