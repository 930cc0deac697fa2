//! The boundary between brant and descriptors that are driven by ioctls on structures: VFIO
//! devices, VFIO containers, iommufd.
//!
//! Tests put a model of the kernel behind [`Ioctl`], which sees each call as the kernel does: a
//! number and bytes. [`super::vfio`] and [`super::iommufd`] know the structures.

use super::kernel;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A file that takes ioctls.
pub trait Ioctl: Send {
    /// Makes one call. `size` is the number of bytes at `argument`, for models of the kernel. The
    /// kernel itself goes by the sizes in the structure.
    ///
    /// # Safety
    /// `argument` points to the structure that `request` takes, of `size` bytes that may be read
    /// and written; for a request without a structure it is null and `size` is 0. Memory that the
    /// structure points to is as large as the structure says. All of it lives until the call returns.
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()>;
}

/// A descriptor, whose ioctls go to the kernel.
#[derive(Debug)]
pub struct Descriptor(OwnedFd);

impl Descriptor {
    /// Takes `fd`. The first call shows whether it is of the right kind.
    pub fn new(fd: OwnedFd) -> Self {
        Descriptor(fd)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Ioctl for Descriptor {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, _size: usize) -> io::Result<()> {
        // SAFETY: the caller's promise.
        let result = unsafe { kernel::ioctl(self.0.as_raw_fd(), request as _, argument) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Lets the C compiler check `c`, which compares numbers and layouts with the system's headers.
#[cfg(test)]
pub(super) fn assert_compiles(c: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layouts.c");
    std::fs::write(&file, c).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let done = std::process::Command::new(cc)
        .args(["-std=c11", "-fsyntax-only"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}
