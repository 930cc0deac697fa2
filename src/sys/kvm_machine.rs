//! A virtual machine of brant's own, for measuring: one vCPU, a few pages of memory, and a program
//! that writes one byte to each page that it is told. x86-64 only.
//!
//! The guest starts in 64-bit mode at privilege level 3 and stays there. Level 3 runs natively on
//! every KVM, while a KVM without virtualisation in hardware emulates level 0. There is no IDT. The
//! program needs no privilege: it ends with a store to an address without memory (`KVM_EXIT_MMIO`).
//! The next `KVM_RUN` begins it anew, with the contents of its mailbox. The segments have the
//! values that VMX checks at every entry (Intel SDM vol. 3, "Checks on Guest Segment Registers").
//!
//! Nothing in this file knows of dirty logs. It makes the machine, lets it write, and removes it
//! when it is dropped.

use super::kvm::{UserMemoryRegion, Vm, VmFd, MEM_LOG_DIRTY_PAGES};
use super::kvm_kind::{expect, Role};
use super::kvm_ring::RingMap;
use super::{file, kernel};
use crate::error::{Error, Kind, Result};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use kvm_bindings::{
    kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_run, kvm_segment, kvm_sregs,
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_INTR, KVM_EXIT_MMIO,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;

const KVM_CREATE_VM: u64 = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const KVM_GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
const KVM_CREATE_VCPU: u64 = 0xae41;
const KVM_RUN: u64 = 0xae80;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_SET_SREGS: u64 = 0x4138_ae84;
const KVM_SET_CPUID2: u64 = 0x4008_ae90;

/// Guest addresses: descriptors, page tables, code and mailbox, each a page.
const DESCRIPTORS: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const CODE: u64 = 0x5000;
const MAILBOX: u64 = 0x6000;
/// Those pages and some more: slot 0, which is never logged.
const CONTROL_BYTES: u64 = 0x8000;
const CONTROL_SLOT: u32 = 0;
/// The pages that the guest writes begin here, and end at `NOTHING` at the latest.
const DATA: u64 = 2 << 20;
/// An address that the page tables map, without memory behind it.
const NOTHING: u64 = 0x3fe0_0000;

/// The slot of the pages that are written.
pub const DATA_SLOT: u32 = 1;
/// The slot of the memory that is never touched.
pub const IDLE_SLOT: u32 = 2;
/// The guest address of that memory, beyond all that the guest can reach.
const IDLE: u64 = 4 << 30;

/// Present, writable, user, accessed (for a table); also dirty and of 2 MiB (for a page). With
/// these bits set the processor never writes to the entries.
const TABLE_BITS: u64 = 0x27;
const PAGE_BITS: u64 = 0xe7;

/// `mov rdi,[r8]; mov rcx,[r8+8]; l: mov [rdi],cl; add rdi,4096; dec rcx; jnz l; mov [r9],cl; jmp start`
const PROGRAM: [u8; 26] = [
    0x49, 0x8b, 0x38, 0x49, 0x8b, 0x48, 0x08, // read the mailbox
    0x88, 0x0f, 0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75,
    0xf2, // write
    0x41, 0x88, 0x09, 0xeb, 0xe6, // tell, and again
];

/// The reason why the guest came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It has written all pages that it was told to.
    Done,
    /// Its dirty ring is full: empty it and go on.
    RingFull,
    /// A signal for this thread interrupted it.
    Interrupted,
}

/// Memory of brant's own, unmapped when dropped.
#[derive(Debug)]
struct Memory {
    at: NonNull<u8>,
    bytes: usize,
}

impl Memory {
    /// Anonymous memory.
    fn new(bytes: Bytes, flags: libc::c_int) -> Result<Memory> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        Memory::map(bytes.0 as usize, flags, -1)
    }

    fn map(bytes: usize, flags: libc::c_int, fd: libc::c_int) -> Result<Memory> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { kernel::mmap(std::ptr::null_mut(), bytes, both, flags, fd, 0) };
        match NonNull::new(at.cast()) {
            Some(start) if at != libc::MAP_FAILED => Ok(Memory { at: start, bytes }),
            _ => Err(Error::last_os(format_args!(
                "mapping {bytes} bytes for a measuring guest"
            ))),
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.bytes);
        // SAFETY: inside the mapping, as just checked. The guest does not run, so the access need
        // not be volatile.
        unsafe {
            let to = self.at.as_ptr().add(at as usize);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    fn put_word(&mut self, at: u64, word: u64) {
        self.put(at, &word.to_le_bytes());
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a mapping of this object's own, to which no reference was given out.
        unsafe { kernel::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// See the file's description.
#[derive(Debug)]
pub struct Machine {
    // The fields are dropped in this order, so nothing runs any more when the memory is unmapped.
    /// The vCPU's `struct kvm_run`.
    run: Memory,
    vcpu: OwnedFd,
    /// Used for the calls of [`Vm`].
    pub vm: VmFd,
    control: Memory,
    data: Memory,
    idle: Memory,
}

fn answer(result: libc::c_int) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn refused(what: &str, error: io::Error) -> Error {
    Error::os(format_args!("{what} of a measuring guest"), error)
}

/// Makes an ioctl without an argument.
fn call(fd: BorrowedFd<'_>, what: &str, request: u64) -> Result<i32> {
    raw_call(fd, request).map_err(|e| refused(what, e))
}

/// [`call`] that returns the system's own error.
fn raw_call(fd: BorrowedFd<'_>, request: u64) -> io::Result<i32> {
    // SAFETY: 0 is no address.
    answer(unsafe { kernel::ioctl(fd.as_raw_fd(), request as _, 0u64) })
}

/// Makes an ioctl on a structure, whose size and layout are in the request's number or in its
/// manual.
fn call_with<T>(fd: BorrowedFd<'_>, what: &str, request: u64, argument: &mut T) -> Result<()> {
    // SAFETY: the kernel reads or fills the structure, which is borrowed for the call.
    let done = answer(unsafe { kernel::ioctl(fd.as_raw_fd(), request as _, argument) });
    done.map_err(|e| refused(what, e))?;
    Ok(())
}

/// Makes an ioctl that returns a descriptor. KVM makes no virtual machine while a signal is
/// pending, so it is repeated.
fn make(fd: BorrowedFd<'_>, what: &str, request: u64) -> Result<OwnedFd> {
    let made = loop {
        match raw_call(fd, request) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            made => break made.map_err(|e| refused(what, e))?,
        }
    };
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// `/dev/kvm`, opened, or a second descriptor of the given one.
pub fn kvm(fd: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let Some(fd) = fd else {
        let mut options = File::options();
        options.read(true).write(true);
        let opened = kernel::open(&options, Path::new("/dev/kvm"));
        return opened
            .map(OwnedFd::from)
            .map_err(|e| Error::os("opening /dev/kvm", e));
    };
    expect(fd, Role::Kvm)?;
    file::duplicate(fd).map_err(|e| Error::os("duplicating the descriptor of /dev/kvm", e))
}

/// The segments of a vCPU in 64-bit mode, all of them flat. Tests make their guests by them too.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    /// Selectors of code and data; their lower two bits are the privilege level.
    pub code: u16,
    /// As above.
    pub data: u16,
    /// The selector of the task segment, and where it is.
    pub task: (u16, u64),
    /// Where the descriptors are, and how many.
    pub descriptors: (u64, u16),
}

impl Segments {
    /// Puts them into a vCPU's special registers, together with the mode: protected, long, with page tables at
    /// `tables`. What an entry checks is in the file's description.
    pub fn enter(&self, sregs: &mut kvm_sregs, tables: u64) {
        let flat = |selector: u16, type_: u8, code: bool| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl: selector as u8 & 3,
            db: u8::from(!code),
            s: 1,
            l: u8::from(code),
            g: 1,
            ..Default::default()
        };
        sregs.cs = flat(self.code, 11, true);
        let data = flat(self.data, 3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            base: self.task.1,
            limit: 0x67,
            selector: self.task.0,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        sregs.ldt = kvm_segment {
            type_: 2,
            unusable: 1,
            ..Default::default()
        };
        sregs.gdt = kvm_dtable {
            base: self.descriptors.0,
            limit: self.descriptors.1 * 8 - 1,
            ..Default::default()
        };
        sregs.cr0 = 0x8005_0033; // PG AM WP NE ET MP PE
        sregs.cr3 = tables;
        sregs.cr4 = 0x20; // PAE
        sregs.efer = 0x500; // LMA LME
    }
}

impl Machine {
    /// A machine whose guest writes to `data` pages, and that has `idle` bytes beside them. With
    /// `ring_bytes`, dirty rings of that size are enabled; 0 for none.
    pub fn new(kvm: BorrowedFd<'_>, data: Pages, idle: Bytes, ring_bytes: u64) -> Result<Machine> {
        assert!(DATA + data.bytes().0 <= NOTHING);
        let mut vm = VmFd::new(make(kvm, "KVM_CREATE_VM", KVM_CREATE_VM)?)?;
        if ring_bytes > 0 {
            super::kvm_ring::enable(&mut vm, ring_bytes)?;
        }
        let vcpu = make(vm.fd(), "KVM_CREATE_VCPU", KVM_CREATE_VCPU)?;
        let bytes = call(kvm, "KVM_GET_VCPU_MMAP_SIZE", KVM_GET_VCPU_MMAP_SIZE)? as usize;
        if bytes < size_of::<kvm_run>() {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "KVM_GET_VCPU_MMAP_SIZE: at least {} bytes expected, {bytes} found",
                    size_of::<kvm_run>()
                ),
            ));
        }
        let mut machine = Machine {
            run: Memory::map(bytes, libc::MAP_SHARED, vcpu.as_raw_fd())?,
            vcpu,
            vm,
            control: control()?,
            // The memory is touched here and not in the guest's first sweep, because that is far
            // cheaper.
            data: Memory::new(data.bytes(), libc::MAP_POPULATE)?,
            idle: Memory::new(idle, libc::MAP_NORESERVE)?,
        };
        machine.set_cpuid(kvm)?;
        for slot in [CONTROL_SLOT, DATA_SLOT, IDLE_SLOT] {
            machine.log(slot, false)?;
        }
        machine.reset()?;
        Ok(machine)
    }

    /// The vCPU needs long mode, so it is told of every feature that this KVM supports.
    fn set_cpuid(&self, kvm: BorrowedFd<'_>) -> Result<()> {
        #[repr(C)]
        struct Cpuid {
            count: u32,
            padding: u32,
            entries: [kvm_cpuid_entry2; 256],
        }
        let mut cpuid = Box::new(Cpuid {
            count: 256,
            padding: 0,
            entries: [kvm_cpuid_entry2::default(); 256],
        });
        call_with(
            kvm,
            "KVM_GET_SUPPORTED_CPUID",
            KVM_GET_SUPPORTED_CPUID,
            &mut *cpuid,
        )?;
        let vcpu = self.vcpu.as_fd();
        call_with(vcpu, "KVM_SET_CPUID2", KVM_SET_CPUID2, &mut *cpuid)
    }

    /// Switches the logging of a slot on or off.
    pub fn log(&mut self, slot: u32, on: bool) -> Result<()> {
        let (memory, guest_address) = match slot {
            CONTROL_SLOT => (&self.control, 0),
            DATA_SLOT => (&self.data, DATA),
            _ => (&self.idle, IDLE),
        };
        // The memory belongs to this machine, and is unmapped after the VM and the vCPU are gone.
        let region = UserMemoryRegion {
            slot,
            flags: if on { MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_address,
            size: memory.bytes as u64,
            host_address: memory.at.as_ptr() as u64,
        };
        self.vm.set_region(&region)
    }

    fn reset(&self) -> Result<()> {
        let vcpu = self.vcpu.as_fd();
        let mut sregs = kvm_sregs::default();
        call_with(vcpu, "KVM_GET_SREGS", KVM_GET_SREGS, &mut sregs)?;
        let segments = Segments {
            code: 1 << 3 | 3,
            data: 2 << 3 | 3,
            task: (3 << 3, DESCRIPTORS + 0x100),
            descriptors: (DESCRIPTORS, 5),
        };
        segments.enter(&mut sregs, TABLES);
        sregs.idt = kvm_dtable::default();
        call_with(vcpu, "KVM_SET_SREGS", KVM_SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            r8: MAILBOX,
            r9: NOTHING,
            ..Default::default()
        };
        call_with(vcpu, "KVM_SET_REGS", KVM_SET_REGS, &mut regs)
    }

    /// The vCPU's ring, if rings were asked for.
    pub fn ring(&self) -> Result<RingMap> {
        RingMap::new(self.vcpu.as_fd(), 0)
    }

    /// Tells the guest which pages to write at its next entry: `pages` pages from `first` on of the
    /// data slot, at least one.
    pub fn order(&mut self, first: Pages, pages: Pages) {
        assert!(pages.0 > 0 && (first.0 + pages.0) * PAGE_SIZE <= self.data.bytes as u64);
        self.control.put_word(MAILBOX, DATA + first.bytes().0);
        self.control.put_word(MAILBOX + 8, pages.0);
    }

    /// Enters the guest once.
    pub fn enter(&mut self) -> Result<Exit> {
        if let Err(e) = raw_call(self.vcpu.as_fd(), KVM_RUN) {
            return match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
                _ => Err(refused("KVM_RUN", e)),
            };
        }
        // SAFETY: mapped, and at least that long. The kernel writes it only in KVM_RUN.
        let run = unsafe { self.run.at.cast::<kvm_run>().as_ref() };
        match run.exit_reason {
            KVM_EXIT_MMIO => {
                // SAFETY: for this exit reason the union holds an MMIO access.
                let mmio = unsafe { run.__bindgen_anon_1.mmio };
                match (mmio.phys_addr, mmio.is_write) {
                    (NOTHING, 1..) => Ok(Exit::Done),
                    (other, _) => Err(unexpected(format_args!("an access to {other:#x}"))),
                }
            }
            KVM_EXIT_DIRTY_RING_FULL => Ok(Exit::RingFull),
            KVM_EXIT_INTR => Ok(Exit::Interrupted),
            other => Err(unexpected(format_args!("exit {other}"))),
        }
    }
}

fn unexpected(found: std::fmt::Arguments<'_>) -> Error {
    Error::new(
        Kind::Unsupported,
        format!("a measuring guest: expected it to write and say so, found {found}"),
    )
}

/// Descriptors, page tables and the program, as the guest finds them.
fn control() -> Result<Memory> {
    let mut memory = Memory::new(Bytes(CONTROL_BYTES), libc::MAP_POPULATE)?;
    let tss = DESCRIPTORS + 0x100;
    memory.put_word(DESCRIPTORS + 8, 0x00af_fb00_0000_ffff); // code, level 3, 64-bit, accessed
    memory.put_word(DESCRIPTORS + 16, 0x00cf_f300_0000_ffff); // data, level 3, accessed
    memory.put_word(DESCRIPTORS + 24, 0x0000_8b00_0000_0067 | tss << 16); // busy TSS below 16 MiB
    memory.put(tss + 0x66, &[0x68]); // no I/O bitmap: it begins at the end

    // One table of each level, and all of the first GiB in 2 MiB pages, one to one.
    memory.put_word(TABLES, (TABLES + PAGE_SIZE) | TABLE_BITS);
    memory.put_word(TABLES + PAGE_SIZE, (TABLES + 2 * PAGE_SIZE) | TABLE_BITS);
    for entry in 0..512 {
        memory.put_word(TABLES + 2 * PAGE_SIZE + entry * 8, entry << 21 | PAGE_BITS);
    }
    memory.put(CODE, &PROGRAM);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_as_large_as_its_request_says() {
        for (request, size) in [
            (KVM_SET_REGS, size_of::<kvm_regs>()),
            (KVM_GET_SREGS, size_of::<kvm_sregs>()),
            (KVM_SET_SREGS, size_of::<kvm_sregs>()),
        ] {
            assert_eq!(request >> 16 & 0x3fff, size as u64, "{request:#x}");
        }
        assert_eq!(size_of::<kvm_cpuid_entry2>(), 40);
    }
}
