//! userfaultfd: the descriptor, and which address ranges it is told of.
//!
//! Only what asynchronous write protection needs. Reading and restoring the protection is
//! `PAGEMAP_SCAN`'s part, in [`super::pagemap`].

use crate::error::{Error, Kind, Result};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
/// On `/dev/userfaultfd` (6.1): a new userfaultfd, with the flags of the system call.
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
/// Faults of user code only. No permission is asked for with it (5.11).
const USER_MODE_ONLY: libc::c_int = 1;
const REGISTER_MODE_WP: u64 = 2;

/// Write protection of hugetlbfs and shared memory (5.19).
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Protection of anonymous pages that are not there yet (6.4).
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// The kernel lifts the protection itself and wakes nobody (6.7).
const FEATURE_WP_ASYNC: u64 = 1 << 15;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Unregister {
    start: u64,
    len: u64,
}

/// A userfaultfd of the process that opened it: a child of fork() that uses it reaches its
/// parent's memory, and so do ranges that are registered through it.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// One for asynchronous write protection. [`Kind::Unsupported`] says what is missing:
    /// the system call, the permission, or the kernel's feature.
    pub fn write_protect_async() -> Result<Self> {
        let fd = new_fd()?;
        let wanted = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM;
        let Err(error) = api(&fd, wanted) else {
            return Ok(Userfault(fd));
        };
        // A refused question leaves the descriptor as it was, so it can be asked what it has.
        let has = match api(&fd, 0) {
            Ok(features) => format!("its features are {features:#x}"),
            Err(_) => format!("UFFDIO_API: {error}"),
        };
        Err(Error::new(
            Kind::Unsupported,
            format!(
                "this kernel's userfaultfd has no asynchronous write protection (features \
                 {wanted:#x}; Linux 6.7 has them): {has}"
            ),
        ))
    }

    /// Has the kernel keep the written state of a range of addresses. Whole pages of what
    /// backs it; [`Kind::Exists`] when another userfaultfd has some of it.
    pub fn register(&self, range: Range<u64>) -> Result<()> {
        let mut arg = Register {
            start: range.start,
            len: range.end.saturating_sub(range.start),
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure, which outlives the call. What is
        // in the memory named stays as it is.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER as _, &mut arg) } == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        let (start, end) = (range.start, range.end);
        Err(match error.raw_os_error() {
            Some(libc::EBUSY) => Error::new(
                Kind::Exists,
                format!(
                    "some of {start:#x}..{end:#x} is registered with another userfaultfd \
                     already; a page can be watched by one only"
                ),
            ),
            Some(libc::EINVAL) => Error::new(
                Kind::Invalid,
                format!(
                    "UFFDIO_REGISTER of {start:#x}..{end:#x}: {error}; all of it is mapped \
                     memory, and of huge pages only whole ones"
                ),
            ),
            Some(libc::EPERM) => Error::new(
                Kind::Invalid,
                format!(
                    "UFFDIO_REGISTER of {start:#x}..{end:#x}: {error}; it is a mapping that \
                     cannot be made writable"
                ),
            ),
            _ => Error::os(
                format_args!("UFFDIO_REGISTER of {start:#x}..{end:#x}"),
                error,
            ),
        })
    }

    /// Takes a range back: its pages are as they were before. (Closing the descriptor would
    /// not do: a child of fork() may hold another of it.)
    pub fn unregister(&self, range: Range<u64>) -> Result<()> {
        let mut arg = Unregister {
            start: range.start,
            len: range.end.saturating_sub(range.start),
        };
        // SAFETY: the kernel reads the structure, which outlives the call.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER as _, &mut arg) } != 0 {
            return Err(Error::last_os(format_args!(
                "UFFDIO_UNREGISTER of {:#x}..{:#x}",
                range.start, range.end
            )));
        }
        Ok(())
    }
}

/// `UFFDIO_API`: the features that the kernel has.
fn api(fd: &OwnedFd, features: u64) -> std::io::Result<u64> {
    let mut arg = Api {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes the structure, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut arg) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(arg.features)
}

/// A new descriptor. Nobody ever waits for a fault in asynchronous mode, so the kind that
/// only handles user code's faults does for the kernel's writes too, and needs no
/// permission; `/dev/userfaultfd` is for where the system call itself is filtered.
fn new_fd() -> Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: takes an integer and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd >= 0 {
        // SAFETY: the kernel just made this descriptor and nobody else has it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
    }
    let refused = std::io::Error::last_os_error();
    let denied = match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")
    {
        Ok(device) => {
            // SAFETY: takes an integer and touches no memory of ours.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) };
            if fd >= 0 {
                // SAFETY: the kernel just made this descriptor and nobody else has it.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            std::io::Error::last_os_error()
        }
        Err(error) => error,
    };
    match refused.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(Error::os("userfaultfd", refused)),
        _ => Err(Error::new(
            Kind::Unsupported,
            format!(
                "no userfaultfd is to be had: the system call says {refused}, /dev/userfaultfd \
                 {denied}; allow the call (a system call filter?) or give access to the device"
            ),
        )),
    }
}
