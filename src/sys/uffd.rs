//! userfaultfd: the descriptor, which address ranges are registered with it, and whether any
//! userfaultfd watches an address ([`WatchProbe`]).
//!
//! Only what asynchronous write protection needs is here. `PAGEMAP_SCAN` reads and restores the
//! protection, in [`super::pagemap`].

use super::kernel;
use crate::error::{Error, Kind, Result};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

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

#[repr(C)]
struct Unregister {
    start: u64,
    len: u64,
}

/// A userfaultfd of the process that opened it. In a child of fork() it still refers to the
/// parent's memory, and so do ranges that are registered through it.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// A userfaultfd for asynchronous write protection. [`Kind::Unsupported`] says what is missing:
    /// the system call, the permission, or the kernel's feature.
    pub fn write_protect_async() -> Result<Self> {
        let fd = new_fd()?;
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
        let Err(error) = register(&self.0, &range, REGISTER_MODE_WP) else {
            return Ok(());
        };
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

    /// Ends the registration of a range, whose pages are as before then. (Closing the descriptor
    /// would not do that, because a child of fork() may hold another one of it.)
    pub fn unregister(&self, range: Range<u64>) -> Result<()> {
        let mut arg = Unregister {
            start: range.start,
            len: range.end.saturating_sub(range.start),
        };
        // SAFETY: the kernel reads the structure, which outlives the call.
        if unsafe { kernel::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER as _, &mut arg) } != 0 {
            return Err(Error::last_os(format_args!(
                "UFFDIO_UNREGISTER of {:#x}..{:#x}",
                range.start, range.end
            )));
        }
        Ok(())
    }
}

/// Tells whether any userfaultfd watches an address: one of this process, or one of another process
/// that was made for this process.
///
/// Linux has no call for that question. But `UFFDIO_COPY` fills a page only if *some* userfaultfd
/// watches it, and checks that before it reads the contents. So a userfaultfd of brant's own asks
/// to fill a page from memory that cannot be read. The answer is `ENOENT` if no userfaultfd
/// watches, and another error if one does. No page is filled either way. [`WatchProbe::open`] tries
/// once whether the kernel behaves like this.
#[derive(Debug)]
pub struct WatchProbe {
    fd: OwnedFd,
    unreadable: Unreadable,
}

impl WatchProbe {
    /// [`Kind::Unsupported`] if there is no userfaultfd, or if the kernel answers otherwise.
    pub fn open() -> Result<WatchProbe> {
        static ANSWERS: OnceLock<bool> = OnceLock::new();
        let fd = new_fd()?;
        api(&fd, 0).map_err(|e| Error::os("UFFDIO_API", e))?;
        let probe = WatchProbe {
            fd,
            unreadable: Unreadable::new()?,
        };
        let answers = match ANSWERS.get() {
            Some(answers) => *answers,
            None => {
                let answers = probe.answers_truly()?;
                *ANSWERS.get_or_init(|| answers)
            }
        };
        if !answers {
            return Err(Error::new(
                Kind::Unsupported,
                "this kernel does not say whether a userfaultfd is told of an address",
            ));
        }
        Ok(probe)
    }

    /// Whether a userfaultfd watches `address`, the first of a page, in whatever mode. `true` if
    /// that cannot be known.
    pub fn is_watched(&self, address: u64) -> bool {
        let mut arg = Copy {
            dst: address,
            src: self.unreadable.address(),
            len: Unreadable::LENGTH as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the kernel reads and writes the structure, which outlives the call. It fills no
        // page, because the contents cannot be read.
        let result = unsafe { kernel::ioctl(self.fd.as_raw_fd(), UFFDIO_COPY as _, &mut arg) };
        result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT)
    }

    /// Tries the question with a page that another userfaultfd watches, and then watches no more.
    fn answers_truly(&self) -> Result<bool> {
        let other = new_fd()?;
        api(&other, 0).map_err(|e| Error::os("UFFDIO_API", e))?;
        let page = self.unreadable.address();
        let range = page..page + Unreadable::LENGTH as u64;
        let before = self.is_watched(page);
        register(&other, &range, REGISTER_MODE_MISSING)
            .map_err(|e| Error::os("UFFDIO_REGISTER", e))?;
        let registered = self.is_watched(page);
        drop(other);
        Ok(!before && registered && !self.is_watched(page))
    }
}

/// A page without any permission.
#[derive(Debug)]
struct Unreadable(*mut libc::c_void);

// SAFETY: an address that is only passed to the kernel.
unsafe impl Send for Unreadable {}
// SAFETY: as above.
unsafe impl Sync for Unreadable {}

impl Unreadable {
    const LENGTH: usize = 4096;

    fn new() -> Result<Unreadable> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, where the kernel likes.
        let at = unsafe {
            kernel::mmap(
                std::ptr::null_mut(),
                Self::LENGTH,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os("mapping a page"));
        }
        Ok(Unreadable(at))
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and used by nobody else.
        unsafe { kernel::munmap(self.0, Self::LENGTH) };
    }
}

/// `UFFDIO_REGISTER`.
fn register(fd: &OwnedFd, range: &Range<u64>, mode: u64) -> std::io::Result<()> {
    let mut arg = Register {
        start: range.start,
        len: range.end.saturating_sub(range.start),
        mode,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes the structure, which outlives the call. The contents of
    // the named memory stay as they are.
    if unsafe { kernel::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER as _, &mut arg) } != 0 {
        return Err(std::io::Error::last_os_error());
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

/// A new descriptor. In asynchronous mode no thread ever waits for a fault. So the kind that
/// handles only faults of user code will do for writes of the kernel too, and needs no permission.
/// `/dev/userfaultfd` is for processes whose system call is filtered.
fn new_fd() -> Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
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

#[cfg(test)]
mod tests;
