//! The ioctls that read and write the state of a virtual machine and of its vCPUs, x86-64.
//!
//! Structures are sequences of words: their bytes as the kernel has them, at an address that is a
//! multiple of 8. Whoever has to look inside knows the offsets. So the state of a vCPU can be saved
//! and loaded without a conversion for each structure. `kvm-ioctls` has most of these calls, but only
//! on a `VcpuFd` that it has made itself, and a C VMM has a descriptor.
//!
//! The functions check that the kernel gets a buffer as large as it will use, and nothing else.

use super::kernel;
use super::kvm::{Vm, VmFd};
use super::kvm_kind::found;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_run, KVM_CAP_XSAVE2};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One of KVM's calls that read or write a structure.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// As the kernel's headers name it.
    pub name: &'static str,
    number: u64,
}

impl Request {
    const fn new(name: &'static str, number: u64) -> Request {
        Request { name, number }
    }

    /// The words of the structure. The size in bytes is a part of the request's number.
    pub const fn words(&self) -> usize {
        ((self.number >> 16 & 0x3fff) as usize).div_ceil(8)
    }
}

macro_rules! requests {
    ($($name:ident, $number:literal;)*) => {$(
        #[doc = concat!("`KVM_", stringify!($name), "`.")]
        pub const $name: Request = Request::new(concat!("KVM_", stringify!($name)), $number);
    )*
        #[cfg(test)]
        const REQUESTS: &[Request] = &[$($name),*];
    };
}

requests! {
    GET_REGS, 0x8090_ae81;
    SET_REGS, 0x4090_ae82;
    GET_SREGS, 0x8138_ae83;
    SET_SREGS, 0x4138_ae84;
    GET_SREGS2, 0x8140_aecc;
    SET_SREGS2, 0x4140_aecd;
    GET_FPU, 0x81a0_ae8c;
    SET_FPU, 0x41a0_ae8d;
    GET_XSAVE, 0x9000_aea4;
    SET_XSAVE, 0x5000_aea5;
    GET_XSAVE2, 0x9000_aecf;
    GET_XCRS, 0x8188_aea6;
    SET_XCRS, 0x4188_aea7;
    GET_LAPIC, 0x8400_ae8e;
    SET_LAPIC, 0x4400_ae8f;
    GET_MP_STATE, 0x8004_ae98;
    SET_MP_STATE, 0x4004_ae99;
    GET_VCPU_EVENTS, 0x8040_ae9f;
    SET_VCPU_EVENTS, 0x4040_aea0;
    GET_DEBUGREGS, 0x8080_aea1;
    SET_DEBUGREGS, 0x4080_aea2;
    GET_NESTED_STATE, 0xc080_aebe;
    SET_NESTED_STATE, 0x4080_aebf;
    GET_MSRS, 0xc008_ae88;
    SET_MSRS, 0x4008_ae89;
    GET_CPUID2, 0xc008_ae91;
    GET_SUPPORTED_CPUID, 0xc008_ae05;
    GET_MSR_INDEX_LIST, 0xc004_ae02;
    GET_DEVICE_ATTR, 0x4018_aee2;
    SET_DEVICE_ATTR, 0x4018_aee1;
    GET_TSC_KHZ, 0xaea3;
    SET_TSC_KHZ, 0xaea2;
    KVMCLOCK_CTRL, 0xaead;
    GET_IRQCHIP, 0xc208_ae62;
    SET_IRQCHIP, 0x8208_ae63;
    GET_PIT2, 0x8070_ae9f;
    SET_PIT2, 0x4070_aea0;
    GET_CLOCK, 0x8030_ae7c;
    SET_CLOCK, 0x4030_ae7b;
}

/// The most entries of CPUID that KVM takes (`KVM_MAX_CPUID_ENTRIES`).
pub const CPUID_MAX: usize = 256;
/// More model-specific registers than any kernel lists.
const MSR_LIST_MAX: usize = 4096;
/// At most so many registers go with one call; the kernel's limit is 256 (`MAX_IO_MSRS`).
const MSRS_AT_ONCE: usize = 128;

/// A model-specific register and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msr {
    /// Its number.
    pub index: u32,
    /// What is in it.
    pub value: u64,
}

/// One entry of CPUID.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// EAX at the entry of CPUID.
    pub function: u32,
    /// ECX at the entry of CPUID; 0 where it does not matter.
    pub index: u32,
    /// What CPUID leaves in EAX, EBX, ECX and EDX.
    pub registers: [u32; 4],
}

impl Leaf {
    /// The entry as KVM has it.
    pub fn of(entry: &kvm_cpuid_entry2) -> Leaf {
        Leaf {
            function: entry.function,
            index: entry.index,
            registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
        }
    }
}

/// A descriptor of KVM's: `/dev/kvm`, a VM or a vCPU.
pub trait AsKvmFd {
    /// The descriptor, lent.
    fn kvm_fd(&self) -> BorrowedFd<'_>;
}

impl AsKvmFd for BorrowedFd<'_> {
    fn kvm_fd(&self) -> BorrowedFd<'_> {
        *self
    }
}

macro_rules! kvm_fds {
    ($($type:ty),*) => {$(
        impl AsKvmFd for $type {
            fn kvm_fd(&self) -> BorrowedFd<'_> {
                // SAFETY: the descriptor is open as long as its owner, which is borrowed.
                unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
            }
        }
    )*};
}

kvm_fds!(kvm_ioctls::Kvm, kvm_ioctls::VmFd, kvm_ioctls::VcpuFd);

/// Makes a call on a structure, or on a number.
///
/// # Safety
/// `argument` is what the request takes: a number, or the address of a structure as large as the
/// kernel uses, which lives until the call returns and may be written if the kernel writes it.
unsafe fn call(fd: BorrowedFd<'_>, request: Request, argument: u64) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    match unsafe { kernel::ioctl(fd.as_raw_fd(), request.number as _, argument) } {
        done @ 0.. => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes an error of the system's. A call that this kind of descriptor does not have says what was
/// expected.
fn refused(fd: BorrowedFd<'_>, request: Request, error: io::Error) -> Error {
    let expected = match request.name {
        "KVM_GET_SUPPORTED_CPUID" | "KVM_GET_MSR_INDEX_LIST" => "/dev/kvm",
        "KVM_GET_IRQCHIP" | "KVM_SET_IRQCHIP" | "KVM_GET_PIT2" | "KVM_SET_PIT2"
        | "KVM_GET_CLOCK" | "KVM_SET_CLOCK" => "the descriptor that KVM_CREATE_VM returned",
        _ => "the descriptor that KVM_CREATE_VCPU returned",
    };
    let name = request.name;
    let found = match error.raw_os_error() {
        Some(libc::EBADF | libc::ENOTTY | libc::EIO) => found(fd),
        _ => return Error::os(name, error),
    };
    let text = format_args!("{name}: expected {expected}, found {found}");
    Error::os(text, error).into_kind(Kind::Invalid)
}

/// As many words of 0.
fn zeroed(words: usize) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    fallible::reserve(&mut all, words, "the state of a vCPU")?;
    all.resize(words, 0);
    Ok(all)
}

/// Lets the kernel fill, or read and fill, a structure.
pub fn fill(fd: BorrowedFd<'_>, request: Request, words: &mut [u64]) -> Result<()> {
    assert!(words.len() >= request.words());
    // SAFETY: the buffer has the size that the request's number says. The callers of the requests
    // whose structure ends in an array have made it as large as its first word says.
    unsafe { call(fd, request, words.as_mut_ptr() as u64) }.map_err(|e| refused(fd, request, e))?;
    Ok(())
}

/// Reads a structure.
pub fn get(fd: BorrowedFd<'_>, request: Request) -> Result<Vec<u64>> {
    let mut words = zeroed(request.words())?;
    fill(fd, request, &mut words)?;
    Ok(words)
}

/// As [`fill`], for a structure that this vCPU or VM may not have: whether the kernel filled it. For what
/// is not there it answers `EINVAL` or `ENXIO`.
pub fn fill_if_there(fd: BorrowedFd<'_>, request: Request, words: &mut [u64]) -> Result<bool> {
    assert!(words.len() >= request.words());
    // SAFETY: as large as the request's number says.
    match unsafe { call(fd, request, words.as_mut_ptr() as u64) } {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENXIO)) => Ok(false),
        Err(e) => Err(refused(fd, request, e)),
    }
}

/// Reads a structure that this vCPU or VM may not have.
pub fn get_if_there(fd: BorrowedFd<'_>, request: Request) -> Result<Option<Vec<u64>>> {
    let mut words = zeroed(request.words())?;
    let there = fill_if_there(fd, request, &mut words)?;
    Ok(there.then_some(words))
}

/// Writes a structure of the size that the request's number says.
pub fn set(fd: BorrowedFd<'_>, request: Request, words: &[u64]) -> Result<()> {
    assert!(words.len() >= request.words());
    // SAFETY: as large as the request's number says; the kernel only reads it.
    unsafe { call(fd, request, words.as_ptr() as u64) }.map_err(|e| refused(fd, request, e))?;
    Ok(())
}

/// The bytes of the extended state of the VM's vCPUs (`KVM_CAP_XSAVE2`), at least the 4096 of
/// `struct kvm_xsave`.
pub fn xsave_bytes(vm: &VmFd) -> usize {
    let bytes = vm.check_extension(KVM_CAP_XSAVE2) as usize;
    bytes.max(GET_XSAVE.words() * 8)
}

/// Reads the extended state, of any size.
pub fn get_xsave(vm: &VmFd, vcpu: BorrowedFd<'_>) -> Result<Vec<u64>> {
    let request = match vm.check_extension(KVM_CAP_XSAVE2) {
        0 => GET_XSAVE,
        _ => GET_XSAVE2,
    };
    let mut words = zeroed(xsave_bytes(vm).div_ceil(8))?;
    fill(vcpu, request, &mut words)?;
    Ok(words)
}

/// Writes the extended state; what `words` lack at the end is 0.
pub fn set_xsave(vm: &VmFd, vcpu: BorrowedFd<'_>, words: &[u64]) -> Result<()> {
    // The kernel reads as much as it reports.
    let mut all = zeroed(xsave_bytes(vm).div_ceil(8).max(words.len()))?;
    all[..words.len()].copy_from_slice(words);
    set(vcpu, SET_XSAVE, &all)
}

/// Reads the state of nested virtualisation, of at most `most` bytes (`KVM_CAP_NESTED_STATE`).
pub fn get_nested(vcpu: BorrowedFd<'_>, most: usize) -> Result<Vec<u64>> {
    let mut words = zeroed(most.div_ceil(8).max(GET_NESTED_STATE.words()))?;
    words[0] = ((words.len() * 8) as u64) << 32;
    fill(vcpu, GET_NESTED_STATE, &mut words)?;
    let used = (words[0] >> 32) as usize;
    words.truncate(used.div_ceil(8).max(GET_NESTED_STATE.words()));
    Ok(words)
}

/// Writes the state of nested virtualisation. The kernel reads as many bytes as the header says.
pub fn set_nested(vcpu: BorrowedFd<'_>, words: &[u64]) -> Result<()> {
    assert!((words[0] >> 32) as usize <= words.len() * 8);
    set(vcpu, SET_NESTED_STATE, words)
}

/// Reads the registers of `indices` that the vCPU has.
pub fn get_msrs(vcpu: BorrowedFd<'_>, indices: &[u32]) -> Result<Vec<Msr>> {
    let mut found = Vec::new();
    fallible::reserve(&mut found, indices.len(), "the vCPU's MSRs")?;
    let mut rest = indices;
    let mut words = zeroed(1 + 2 * MSRS_AT_ONCE)?;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(MSRS_AT_ONCE)];
        words[0] = some.len() as u64;
        for (at, index) in some.iter().enumerate() {
            words[1 + 2 * at] = u64::from(*index);
            words[2 + 2 * at] = 0;
        }
        // SAFETY: room for as many entries as the first word says.
        let done = unsafe { call(vcpu, GET_MSRS, words.as_mut_ptr() as u64) };
        let done = done.map_err(|e| refused(vcpu, GET_MSRS, e))? as usize;
        for (at, index) in some.iter().enumerate().take(done) {
            found.push(Msr {
                index: *index,
                value: words[2 + 2 * at],
            });
        }
        // The kernel stops at the first register that it cannot read. That one is left out.
        rest = &rest[some.len().min(done + 1)..];
    }
    Ok(found)
}

/// Writes registers in this order. The error names the one that the kernel refuses.
pub fn set_msrs(vcpu: BorrowedFd<'_>, msrs: &[Msr]) -> Result<()> {
    for some in msrs.chunks(MSRS_AT_ONCE) {
        let mut words = zeroed(1 + 2 * some.len())?;
        words[0] = some.len() as u64;
        for (at, msr) in some.iter().enumerate() {
            words[1 + 2 * at] = u64::from(msr.index);
            words[2 + 2 * at] = msr.value;
        }
        // SAFETY: as many entries as the first word says; the kernel only reads them.
        let done = unsafe { call(vcpu, SET_MSRS, words.as_ptr() as u64) };
        let done = done.map_err(|e| refused(vcpu, SET_MSRS, e))? as usize;
        if let Some(msr) = some.get(done) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "KVM_SET_MSRS: this kernel refuses the value {:#x} of MSR {:#x}",
                    msr.value, msr.index
                ),
            ));
        }
    }
    Ok(())
}

/// The numbers of the registers that this kernel saves and restores.
pub fn msr_list(kvm: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut words = zeroed((4 + 4 * MSR_LIST_MAX).div_ceil(8))?;
    words[0] = MSR_LIST_MAX as u64;
    fill(kvm, GET_MSR_INDEX_LIST, &mut words)?;
    let count = (words[0] as u32 as usize).min(MSR_LIST_MAX);
    let halves = words.iter().flat_map(|w| [*w as u32, (*w >> 32) as u32]);
    fallible::collect(halves.skip(1).take(count), "the kernel's list of MSRs")
}

/// The CPUID of a vCPU (`GET_CPUID2`), or what KVM supports (`GET_SUPPORTED_CPUID`, on `/dev/kvm`).
pub fn cpuid(fd: BorrowedFd<'_>, request: Request) -> Result<Vec<Leaf>> {
    const ENTRY: usize = size_of::<kvm_cpuid_entry2>() / 8;
    let mut words = zeroed(1 + ENTRY * CPUID_MAX)?;
    words[0] = CPUID_MAX as u64;
    fill(fd, request, &mut words)?;
    let count = (words[0] as u32 as usize).min(CPUID_MAX);
    let entries = words[1..].chunks_exact(ENTRY).take(count).map(|e| Leaf {
        function: e[0] as u32,
        index: (e[0] >> 32) as u32,
        registers: [
            (e[1] >> 32) as u32,
            e[2] as u32,
            (e[2] >> 32) as u32,
            e[3] as u32,
        ],
    });
    fallible::collect(entries, "CPUID")
}

/// The frequency of the vCPU's time-stamp counter in kHz; 0 when the kernel does not tell.
pub fn tsc_khz(vcpu: BorrowedFd<'_>) -> Result<u64> {
    // SAFETY: takes nothing.
    match unsafe { call(vcpu, GET_TSC_KHZ, 0) } {
        Ok(khz) => Ok(khz as u64),
        // An unstable counter: "returns -EIO" (KVM's API documentation).
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
        Err(e) => Err(refused(vcpu, GET_TSC_KHZ, e)),
    }
}

/// Sets that frequency.
pub fn set_tsc_khz(vcpu: BorrowedFd<'_>, khz: u64) -> Result<()> {
    // SAFETY: takes a number.
    unsafe { call(vcpu, SET_TSC_KHZ, khz) }.map_err(|e| refused(vcpu, SET_TSC_KHZ, e))?;
    Ok(())
}

/// Adds to what the vCPU's time-stamp counter is ahead of the host's (`KVM_VCPU_TSC_OFFSET`, Linux
/// 5.16). Whether this kernel could.
pub fn shift_tsc(vcpu: BorrowedFd<'_>, by: u64) -> bool {
    let mut offset = 0u64;
    // struct kvm_device_attr: flags and group (KVM_VCPU_TSC_CTRL, 0), attribute (0), address.
    let attribute = [0u64, 0, (&raw mut offset) as u64];
    // SAFETY: the kernel reads the structure, and writes the word that it names.
    if unsafe { call(vcpu, GET_DEVICE_ATTR, attribute.as_ptr() as u64) }.is_err() {
        return false;
    }
    offset = offset.wrapping_add(by);
    let attribute = [0u64, 0, (&raw mut offset) as u64];
    // SAFETY: the kernel reads the structure, and the word that it names.
    unsafe { call(vcpu, SET_DEVICE_ATTR, attribute.as_ptr() as u64) }.is_ok()
}

/// Tells the guest at its next entry that it was stopped (`KVM_KVMCLOCK_CTRL`), so that it does not
/// take the time for a hang. Whether it has a clock of KVM's to be told by.
pub fn clock_stopped(vcpu: BorrowedFd<'_>) -> Result<bool> {
    // SAFETY: takes nothing.
    match unsafe { call(vcpu, KVMCLOCK_CTRL, 0) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(e) => Err(refused(vcpu, KVMCLOCK_CTRL, e)),
    }
}

/// Writes the CR8 that KVM takes from `struct kvm_run` at each entry of a vCPU whose local APIC is
/// not the kernel's.
pub fn set_run_cr8(vcpu: BorrowedFd<'_>, cr8: u64) -> Result<()> {
    const PAGE: usize = 4096;
    const { assert!(offset_of!(kvm_run, cr8) + 8 <= PAGE) };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes.
    let at = unsafe {
        let fd = vcpu.as_raw_fd();
        kernel::mmap(std::ptr::null_mut(), PAGE, both, libc::MAP_SHARED, fd, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os("mapping the vCPU's struct kvm_run"));
    }
    // SAFETY: inside the page just mapped. The vCPU does not run; the VMM's mapping is another one.
    unsafe {
        let place = at.cast::<u8>().add(offset_of!(kvm_run, cr8)).cast::<u64>();
        place.write_volatile(cr8);
        kernel::munmap(at, PAGE);
    }
    Ok(())
}

const _: () = assert!(size_of::<kvm_msr_entry>() == 16 && size_of::<kvm_cpuid_entry2>() == 40);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ioctl::assert_compiles;
    use std::os::fd::AsFd;

    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        let mut c = String::from("#include <linux/kvm.h>\n");
        for Request { name, number } in REQUESTS {
            c += &format!("_Static_assert({name} == {number:#x}u, \"{name}\");\n");
        }
        assert_compiles(&c);
    }

    #[test]
    fn a_descriptor_of_another_kind_is_named() {
        let pipe = std::fs::File::open("/dev/null").unwrap();
        let error = get(pipe.as_fd(), GET_REGS).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(
            text.contains("KVM_CREATE_VCPU returned, found a character device"),
            "{text}"
        );
    }
}
