//! Which of KVM's descriptors a descriptor is, `/dev/kvm`, a VM or a vCPU, and which number a vCPU has. x86-64.

use super::fd::what_is;
use super::kernel;
use super::kvm::{KVM_CHECK_EXTENSION, KVM_GET_API_VERSION};
use crate::error::{Error, Kind, Result};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const KVM_GET_REGS: u64 = 0x8090_ae81;
/// Linux 5.14.
const KVM_GET_STATS_FD: u64 = 0xaece;
/// `sizeof(struct kvm_regs)`.
const REGS_BYTES: usize = 0x90;
/// The only version that exists.
const API_VERSION: i32 = 12;

/// What a descriptor has to be, and what the caller calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `/dev/kvm`.
    Kvm,
    /// Of a VM.
    Vm,
    /// Of a vCPU.
    Vcpu,
}

impl Role {
    /// The argument of the functions that save and load, and what it has to be.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Role::Kvm => ("kvm_fd", "a descriptor of /dev/kvm"),
            Role::Vm => ("vm_fd", "the descriptor that KVM_CREATE_VM returned"),
            Role::Vcpu => ("vcpu_fd", "the descriptor that KVM_CREATE_VCPU returned"),
        }
    }
}

/// Makes a call that takes a number and touches no memory.
fn call(fd: BorrowedFd<'_>, request: u64) -> io::Result<i32> {
    // SAFETY: the callers' requests take a number.
    match unsafe { kernel::ioctl(fd.as_raw_fd(), request as _, 0u64) } {
        answer @ 0.. => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `KVM_GET_REGS`, which only vCPUs have, and which changes nothing.
fn registers(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut regs = [0u64; REGS_BYTES / 8];
    // SAFETY: KVM fills as many bytes as the request's number says, which `regs` has.
    match unsafe { kernel::ioctl(fd.as_raw_fd(), KVM_GET_REGS as _, regs.as_mut_ptr()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a descriptor is, for a message that another one was expected.
pub fn found(fd: BorrowedFd<'_>) -> &'static str {
    // SAFETY: F_GETFD takes no pointer.
    if unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_GETFD, 0) } < 0 {
        return "no open descriptor";
    }
    if call(fd, KVM_GET_API_VERSION).is_ok() {
        return "/dev/kvm itself";
    }
    match call(fd, KVM_CHECK_EXTENSION) {
        Ok(_) => "the descriptor of a VM",
        // "VM ioctls from another process": KVM compares the address spaces first.
        Err(e) if e.raw_os_error() == Some(libc::EIO) => "a VM or vCPU of another process",
        Err(_) if registers(fd).is_ok() => "the descriptor of a vCPU",
        Err(_) => what_is(fd),
    }
}

/// Whether a descriptor is what it has to be.
///
/// # Errors
/// [`Kind::Invalid`]: it is not. The message names the argument, and says what was expected and found.
/// [`Kind::Kernel`]: the kernel cannot tell now.
pub fn expect(fd: BorrowedFd<'_>, role: Role) -> Result<()> {
    let (name, expected) = role.names();
    let asked = match role {
        Role::Kvm => call(fd, KVM_GET_API_VERSION).map(|version| version == API_VERSION),
        // /dev/kvm answers this question too, and a VM has no version.
        Role::Vm => call(fd, KVM_CHECK_EXTENSION).map(|_| call(fd, KVM_GET_API_VERSION).is_err()),
        Role::Vcpu => registers(fd).map(|()| true),
    };
    match asked {
        Ok(true) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::EINTR)) => Err(Error::os(
            format_args!("{name}: asking whether it is {expected}"),
            e,
        )),
        _ => Err(Error::new(
            Kind::Invalid,
            format!("{name}: expected {expected}, found {}", found(fd)),
        )),
    }
}

/// The number of a vCPU: what `KVM_CREATE_VCPU` was given, which on x86 is its APIC's number at reset.
/// `None` when the kernel does not tell (before Linux 5.14, or without a free descriptor). KVM has no call
/// for it, but puts it into the name of the vCPU's statistics: `kvm-4711/vcpu-3`.
pub fn vcpu_number(vcpu: BorrowedFd<'_>) -> Option<u32> {
    /// `struct kvm_stats_header`, behind which the name stands.
    const HEADER: usize = 24;
    let stats = call(vcpu, KVM_GET_STATS_FD).ok()?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    let stats = unsafe { OwnedFd::from_raw_fd(stats) };
    let mut bytes = [0u8; HEADER + 48];
    // SAFETY: as many bytes as the buffer has.
    let read =
        unsafe { kernel::pread(stats.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let name = bytes.get(HEADER..usize::try_from(read).ok()?)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let (_, number) = std::str::from_utf8(name).ok()?.rsplit_once("/vcpu-")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_of_no_kvm_is_named_with_its_argument() {
        let null = std::fs::File::open("/dev/null").unwrap();
        for (role, expected) in [
            (Role::Kvm, "kvm_fd: expected a descriptor of /dev/kvm"),
            (
                Role::Vm,
                "vm_fd: expected the descriptor that KVM_CREATE_VM returned",
            ),
            (
                Role::Vcpu,
                "vcpu_fd: expected the descriptor that KVM_CREATE_VCPU returned",
            ),
        ] {
            let error = expect(null.as_fd(), role).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            let whole = format!("{expected}, found a character device");
            assert_eq!(error.message(), whole);
        }
        assert_eq!(vcpu_number(null.as_fd()), None);
    }
}
