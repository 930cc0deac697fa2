//! [`WatchProbe`]: whether any userfaultfd watches an address.

use super::{api, new_fd, register, Copy, REGISTER_MODE_MISSING, UFFDIO_COPY};
use crate::error::{Error, Kind, Result};
use crate::sys::kernel;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

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
        let fd = new_fd(false)?;
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
        let other = new_fd(false)?;
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
