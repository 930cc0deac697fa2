//! VMs and memory for these tests: mappings, and KVM's regions over them.

use brant::sys::kvm as sys;
use brant::sys::kvm::UserMemoryRegion;
use brant::units::PAGE_SIZE;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// The time limit of a test in a process of its own.
pub const LIMIT: Duration = Duration::from_secs(120);
/// The page of the code in the first slot, which the guest only reads.
pub const CODE: u64 = 1;
pub const LOGGED: u32 = sys::MEM_LOG_DIRTY_PAGES;

pub fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {e}");
            None
        }
    }
}

pub fn boundary(vm: &VmFd) -> sys::VmFd {
    // SAFETY: the descriptor is open while `vm` is.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    sys::VmFd::new(fd.try_clone_to_owned().unwrap()).unwrap()
}

/// Private anonymous memory, unmapped when dropped.
pub struct Ram(pub *mut u8, pub usize);

impl Ram {
    pub fn new(pages: u64) -> Ram {
        let length = (pages * PAGE_SIZE) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Ram(at.cast(), length)
    }

    pub fn byte(&self, page: u64) -> u8 {
        assert!((page * PAGE_SIZE) < self.1 as u64);
        // SAFETY: inside the mapping (just checked); the guest does not run meanwhile.
        unsafe { self.0.add((page * PAGE_SIZE) as usize).read_volatile() }
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset as usize + bytes.len() <= self.1);
        // SAFETY: inside the mapping (just checked); the guest does not run meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset as usize), bytes.len())
        };
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping; the VM that used it is gone or does not run.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

pub fn region(vm: &VmFd, slot: u32, flags: u32, guest: u64, pages: u64, host: u64) {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: guest * PAGE_SIZE,
        memory_size: pages * PAGE_SIZE,
        userspace_addr: host,
    };
    // SAFETY: the memory outlives the VM's use of it.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

pub fn words(pages: u64) -> Vec<u64> {
    vec![0; pages.div_ceil(64) as usize]
}

/// All ones, without bits past the end.
pub fn ones(pages: u64) -> Vec<u64> {
    let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
    if !pages.is_multiple_of(64) {
        *words.last_mut().unwrap() = (1 << (pages % 64)) - 1;
    }
    words
}

/// A VM with one slot, logging off.
pub fn one_slot(kvm: &Kvm, pages: u64) -> (VmFd, sys::VmFd, Ram, UserMemoryRegion) {
    let vm = kvm.create_vm().unwrap();
    let ram = Ram::new(pages);
    region(&vm, 0, 0, 0, pages, ram.0 as u64);
    let logged = UserMemoryRegion {
        slot: 0,
        flags: LOGGED,
        guest_address: 0,
        size: pages * PAGE_SIZE,
        host_address: ram.0 as u64,
    };
    let fd = boundary(&vm);
    (vm, fd, ram, logged)
}
