//! How long a guest stands still when it is handed over to another process on the same host: with 16
//! GiB of memory beside 1 GiB, of which equally much is touched.
//!
//! Both sides are in this process, which maps the memfd twice, as two processes do. KVM has the whole
//! memory as a slot, and its log is the tracker's. A block of private memory is copied beside it.

use crate::machine::kvm;
use crate::report::{alternate, Report};
use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::Result;
use brant::kvm_bindings::kvm_userspace_memory_region;
use brant::kvm_ioctls::{Kvm, VmFd};
use brant::memory::{BackingFile, BlockDescription, HostMemory, Memory, SlotDescription};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, HandOver, Incoming, Outgoing, Params, SourceState,
};
use brant::units::Bytes;
use brant::vm_memory::GuestAddress;
use brant::vmm::{MappedBlock, StateBlob, StateSink, Vmm};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

const FAMILY: &str = "handover.";
const RUNS: usize = 11;
const SMALL: u64 = 1 << 30;
const LARGE: u64 = 16 << 30;
/// How much of the memory is touched, spread over all of it.
const TOUCHED: u64 = 64 << 20;
/// The private block.
const COPIED: u64 = 1 << 20;
const STATE: usize = 200_000;

/// A mapping of this process's.
struct Mapping(*mut u8, usize);

// SAFETY: an address range that nothing but the migration and this file's loops access.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(length: u64, file: Option<(BorrowedFd<'_>, u64)>) -> Mapping {
        let (flags, fd, offset) = match file {
            Some((fd, offset)) => (libc::MAP_SHARED, fd.as_raw_fd(), offset),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (at, length) = (std::ptr::null_mut(), length as usize);
        let flags = flags | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let host = unsafe { libc::mmap(at, length, protection, flags, fd, offset as i64) };
        assert_ne!(host, libc::MAP_FAILED);
        Mapping(host.cast(), length)
    }

    /// Writes to equally many pages, however long it is.
    fn touch(&self) {
        let pages = TOUCHED / 4096;
        let apart = (self.1 as u64 / pages) & !4095;
        for page in 0..pages {
            // SAFETY: inside the mapping, which no one else uses yet.
            unsafe { self.0.add((page * apart) as usize).write_volatile(1) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and not used any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// A VMM whose guest does nothing.
struct Machine {
    mappings: Mutex<Vec<Mapping>>,
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        sink.put(&StateBlob {
            name: "machine",
            instance: 0,
            version: 1,
            data: &[7; STATE],
        })
    }
    fn load(&self, _: &StateBlob<'_>) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
    fn map_block(
        &self,
        _: &str,
        file: BorrowedFd<'_>,
        length: u64,
        offset: u64,
    ) -> Result<MappedBlock> {
        let mapping = Mapping::new(length, Some((file, offset)));
        let host = mapping.0;
        self.mappings.lock().unwrap().push(mapping);
        // SAFETY: mapped until the machine is gone, after both sides.
        Ok(unsafe { MappedBlock::new(host) })
    }
    fn can_map_blocks(&self) -> bool {
        true
    }
}

/// A machine with its private block, and its memory in brant.
fn machine() -> (Arc<Machine>, Arc<Memory>) {
    let memory = Arc::new(Memory::new().unwrap());
    let copied = Mapping::new(COPIED, None);
    // SAFETY: mapped until the machine is gone.
    let host = unsafe { HostMemory::new(copied.0) };
    memory
        .add_block(BlockDescription::new("low", host, Bytes(COPIED)))
        .unwrap();
    let mappings = Mutex::new(vec![copied]);
    (Arc::new(Machine { mappings }), memory)
}

/// The guest's memory as a block of the source's, and as a slot of KVM's.
fn describe(memory: &Memory, vm: &VmFd, length: u64) -> Mapping {
    // SAFETY: a new descriptor of this function's.
    let fd = unsafe {
        let fd = libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, length as i64), 0);
        OwnedFd::from_raw_fd(fd)
    };
    let mapping = Mapping::new(length, Some((fd.as_fd(), 0)));
    mapping.touch();
    // SAFETY: mapped until both sides are gone.
    let host = unsafe { HostMemory::new(mapping.0) };
    let block = memory
        .add_block(BlockDescription {
            file: Some(BackingFile { fd, offset: 0 }),
            ..BlockDescription::new("ram", host, Bytes(length))
        })
        .unwrap();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: length,
        userspace_addr: mapping.0 as u64,
    };
    // SAFETY: mapped for as long as the VM is used.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    memory
        .add_slot(&SlotDescription {
            slot: 0,
            ..SlotDescription::new(block, GuestAddress(0), Bytes(length))
        })
        .unwrap();
    mapping
}

/// The downtime of one hand-over of a guest of so much memory, in milliseconds.
fn downtime(kvm: &Kvm, length: u64) -> f64 {
    let vm = kvm.create_vm().unwrap();
    let (here, memory) = machine();
    let ram = describe(&memory, &vm, length);
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    let opened = Request::default().open(&vm).unwrap();
    tracker.add_log(opened.log).unwrap();
    let (there, new) = machine();
    let params = Params {
        hand_over: HandOver::WherePossible,
        ..Params::default()
    };
    let (a, b) = UnixStream::pair().unwrap();
    let incoming = Incoming::new(new, there, params.clone()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), here, params).unwrap();
    incoming.start(AcceptFrom::Connected(b.into())).unwrap();
    outgoing.start(ConnectTo::Connected(a.into())).unwrap();
    outgoing.wait(None).unwrap();
    incoming.wait(None).unwrap();
    assert_eq!(outgoing.state(), SourceState::Completed);
    let stats = outgoing.stats();
    assert_eq!(stats.shared_bytes, length);
    drop((outgoing, incoming, ram));
    stats.downtime.unwrap().as_secs_f64() * 1e3
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped(FAMILY, &reason),
    };
    let [large, small] = alternate(RUNS, |contender| match contender {
        0 => downtime(&kvm, LARGE),
        _ => downtime(&kvm, SMALL),
    });
    report.compared("handover.downtime_ratio", "ms", &large, "1 GiB", &small);
}
