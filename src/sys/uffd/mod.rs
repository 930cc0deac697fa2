//! userfaultfd: the descriptor, and which address ranges are registered with it.
//!
//! | file | what |
//! |---|---|
//! | here | asynchronous write protection: the kernel notes what is written, and nobody waits. `PAGEMAP_SCAN` reads the notes and restores the protection, in [`super::pagemap`] |
//! | `faults` | missing, minor and write-protect faults: a thread waits until somebody has filled its page |
//! | `watch` | whether any userfaultfd watches an address |

use super::kernel;
use crate::error::{Error, Kind, Result};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

mod faults;
mod watch;

pub use faults::{Can, Fault, Faults, Fill, Filled, Modes, Stopped};
pub use watch::WatchProbe;

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_COPY: u64 = 0xc028_aa03;
/// On `/dev/userfaultfd` (6.1): makes a userfaultfd, with the flags of the system call.
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
/// Faults of user code only. This needs no permission (5.11).
const USER_MODE_ONLY: libc::c_int = 1;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const REGISTER_MODE_MINOR: u64 = 4;

/// Write protection of hugetlbfs and shared memory (5.19).
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Protection of anonymous pages that are not there yet (6.4).
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// The kernel itself lifts the protection, and wakes nobody (6.7).
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
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// The argument of `UFFDIO_UNREGISTER` and `UFFDIO_WAKE`.
#[repr(C)]
struct Span {
    start: u64,
    len: u64,
}

impl From<&Range<u64>> for Span {
    fn from(range: &Range<u64>) -> Span {
        Span {
            start: range.start,
            len: range.end.saturating_sub(range.start),
        }
    }
}

/// A userfaultfd of the process that opened it. In a child of fork() it still refers to the
/// parent's memory, and so do ranges that are registered through it.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// A userfaultfd for asynchronous write protection. [`Kind::Unsupported`] says what is missing:
    /// the system call, the permission, or the kernel's feature.
    pub fn write_protect_async() -> Result<Self> {
        let fd = new_fd(false)?;
        let wanted = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM;
        let Err(error) = api(&fd, wanted) else {
            return Ok(Userfault(fd));
        };
        // A refused request leaves the descriptor as it was, so that it can be asked for its
        // features.
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

    /// Has the kernel keep the written state of a range of addresses, in whole pages of the backing
    /// memory. [`Kind::Exists`] if part of it is registered with another userfaultfd.
    pub fn register(&self, range: Range<u64>) -> Result<()> {
        register(&self.0, &range, REGISTER_MODE_WP)
            .map(drop)
            .map_err(|error| refused(&range, error))
    }

    /// Ends the registration of a range, whose pages are as before then. (Closing the descriptor
    /// would not do that, because a child of fork() may hold another one of it.)
    pub fn unregister(&self, range: Range<u64>) -> Result<()> {
        unregister(&self.0, &range)
    }
}

/// `UFFDIO_REGISTER`: a bit for each ioctl that the range takes, by its number.
fn register(fd: &OwnedFd, range: &Range<u64>, mode: u64) -> std::io::Result<u64> {
    let Span { start, len } = range.into();
    let mut arg = Register {
        start,
        len,
        mode,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes the structure, which outlives the call. The contents of
    // the named memory stay as they are.
    if unsafe { kernel::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER as _, &mut arg) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(arg.ioctls)
}

/// The error of `UFFDIO_REGISTER` in words.
fn refused(range: &Range<u64>, error: std::io::Error) -> Error {
    let (start, end) = (range.start, range.end);
    match error.raw_os_error() {
        Some(libc::EBUSY) => Error::new(
            Kind::Exists,
            format!(
                "some of {start:#x}..{end:#x} is registered with another userfaultfd already; a \
                 page can be watched by one only"
            ),
        ),
        Some(libc::EINVAL) => Error::new(
            Kind::Invalid,
            format!(
                "UFFDIO_REGISTER of {start:#x}..{end:#x}: {error}; all of it is mapped memory, and \
                 of huge pages only whole ones"
            ),
        ),
        Some(libc::EPERM) => Error::new(
            Kind::Invalid,
            format!(
                "UFFDIO_REGISTER of {start:#x}..{end:#x}: {error}; it is a mapping that cannot be \
                 made writable"
            ),
        ),
        _ => Error::os(
            format_args!("UFFDIO_REGISTER of {start:#x}..{end:#x}"),
            error,
        ),
    }
}

/// `UFFDIO_UNREGISTER`.
fn unregister(fd: &OwnedFd, range: &Range<u64>) -> Result<()> {
    let mut arg = Span::from(range);
    // SAFETY: the kernel reads the structure, which outlives the call.
    if unsafe { kernel::ioctl(fd.as_raw_fd(), UFFDIO_UNREGISTER as _, &mut arg) } != 0 {
        return Err(Error::last_os(format_args!(
            "UFFDIO_UNREGISTER of {:#x}..{:#x}",
            range.start, range.end
        )));
    }
    Ok(())
}

/// `UFFDIO_API`: the features that the kernel has.
fn api(fd: &OwnedFd, features: u64) -> std::io::Result<u64> {
    let mut arg = Api {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes the structure, which outlives the call.
    if unsafe { kernel::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut arg) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(arg.features)
}

/// A new descriptor for faults of user code, and with `kernel` also for those of the kernel: a
/// vCPU's, vhost's, those of `read()` into the memory. The first kind needs no permission.
/// `/dev/userfaultfd` is for processes whose system call is filtered or not permitted.
fn new_fd(kernel: bool) -> Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | if kernel { 0 } else { USER_MODE_ONLY };
    // SAFETY: takes an integer and touches no memory of ours.
    let fd = unsafe { kernel::userfaultfd(flags) };
    if fd >= 0 {
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let refused = std::io::Error::last_os_error();
    let device = kernel::open(
        std::fs::OpenOptions::new().read(true).write(true),
        "/dev/userfaultfd".as_ref(),
    );
    let denied = match device {
        Ok(device) => {
            // SAFETY: takes an integer and touches no memory of ours.
            let fd = unsafe { kernel::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) };
            if fd >= 0 {
                // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            std::io::Error::last_os_error()
        }
        Err(error) => error,
    };
    if let Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) = refused.raw_os_error() {
        return Err(Error::os("userfaultfd", refused));
    }
    let advice = match refused.raw_os_error() {
        Some(libc::EPERM) if kernel => {
            "faults of the kernel need CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or access to \
             the device"
        }
        _ => "allow the call (a system call filter?) or give access to the device",
    };
    Err(Error::new(
        Kind::Unsupported,
        format!(
            "no userfaultfd is to be had: the system call says {refused}, /dev/userfaultfd \
             {denied}; {advice}"
        ),
    ))
}

#[cfg(test)]
mod tests;
