//! A vCPU's descriptor, as far as a gate needs it: `KVM_RUN`, and two fields of `struct kvm_run`.

use super::fd::what_is;
use super::{file, kernel};
use crate::error::{Error, Kind, Result};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};

const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// `sizeof(struct kvm_regs)` on x86-64.
const REGS_BYTES: usize = 0x90;
/// The offsets of two fields in `struct kvm_run`.
const IMMEDIATE_EXIT_AT: usize = 1;
const EXIT_REASON_AT: usize = 8;
/// `KVM_EXIT_INTR`, after which every VMM enters the guest again.
const EXIT_INTR: u32 = 10;
/// As much of `struct kvm_run` as is used here.
const BYTES: usize = 4096;

/// How `KVM_RUN` came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// With an exit.
    Exit,
    /// By a signal or `immediate_exit`, with nothing pending.
    Interrupted,
    /// It waited for the guest to start this vCPU, and wants to be called again.
    Again,
}

/// A duplicate of a vCPU's descriptor, and a mapping of the first page of its `struct kvm_run`.
#[derive(Debug)]
pub struct VcpuFd {
    fd: OwnedFd,
    run: NonNull<u8>,
}

// SAFETY: a mapping that lives as long as this; the fields that are used are atomics.
unsafe impl Send for VcpuFd {}
// SAFETY: as above.
unsafe impl Sync for VcpuFd {}

impl VcpuFd {
    /// Keeps a duplicate of `fd`, which `KVM_CREATE_VCPU` returned. The vCPU does not run.
    ///
    /// # Errors
    /// `Invalid` for any other descriptor.
    pub fn new(fd: BorrowedFd<'_>) -> Result<VcpuFd> {
        let fd = file::duplicate(fd).map_err(|e| match e.raw_os_error() {
            Some(libc::EBADF) => Error::new(
                Kind::Invalid,
                format!("expected the descriptor that KVM_CREATE_VCPU returned: {e}"),
            ),
            _ => Error::os("duplicating a vCPU's descriptor", e),
        })?;
        let expected = |e: io::Error| {
            let found = what_is(fd.as_fd());
            let what = format_args!(
                "expected the descriptor that KVM_CREATE_VCPU returned, found {found}"
            );
            Error::os(what, e).into_kind(Kind::Invalid)
        };
        let mut regs = [0u64; REGS_BYTES / 8];
        // SAFETY: KVM fills as many bytes as the request's number says, which `regs` has.
        let asked = unsafe { kernel::ioctl(fd.as_raw_fd(), KVM_GET_REGS as _, regs.as_mut_ptr()) };
        if asked < 0 {
            return Err(expected(io::Error::last_os_error()));
        }
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            kernel::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast()) {
            Some(run) if at != libc::MAP_FAILED => Ok(VcpuFd { fd, run }),
            _ => Err(Error::last_os("mapping a vCPU's kvm_run")),
        }
    }

    /// Whether the next `KVM_RUN` returns at once (`KVM_CAP_IMMEDIATE_EXIT`, Linux 4.11).
    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: inside the mapping. The kernel reads the byte at each KVM_RUN.
        let field = unsafe { AtomicU8::from_ptr(self.run.as_ptr().add(IMMEDIATE_EXIT_AT)) };
        field.store(u8::from(on), Ordering::SeqCst);
    }

    /// Makes the last exit look like one by a signal.
    pub fn strike_out(&self) {
        // SAFETY: inside the mapping, and aligned: the mapping is, and the offset is 8.
        let field = unsafe { AtomicU32::from_ptr(self.run.as_ptr().add(EXIT_REASON_AT).cast()) };
        field.store(EXIT_INTR, Ordering::Relaxed);
    }

    /// `KVM_RUN`.
    pub fn run(&self) -> Result<Left> {
        // SAFETY: KVM_RUN takes nothing. What the guest may write is the VMM's affair.
        if unsafe { kernel::ioctl(self.fd.as_raw_fd(), KVM_RUN as _, 0u64) } >= 0 {
            return Ok(Left::Exit);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(Left::Interrupted),
            Some(libc::EAGAIN) => Ok(Left::Again),
            _ => Err(Error::os("KVM_RUN", error)),
        }
    }
}

impl Drop for VcpuFd {
    fn drop(&mut self) {
        // SAFETY: this object's own mapping, to which no reference was given out.
        unsafe { kernel::munmap(self.run.as_ptr().cast(), BYTES) };
    }
}
