//! The boundary between brant and a descriptor that is driven by ioctls on structures:
//! VFIO devices, VFIO containers, iommufd.
//!
//! [`Ioctl`] is what tests put a model of the kernel behind: it sees each call as the kernel
//! would, number and bytes. What is in the structures is the business of [`super::vfio`] and
//! [`super::iommufd`].

use super::kernel;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Something that takes ioctls.
pub trait Ioctl: Send {
    /// One call. `size` is the bytes at `argument`, for whoever wants to look; the kernel goes
    /// by what the structure says itself.
    ///
    /// # Safety
    /// `argument` points to the structure that `request` takes, `size` bytes that may be read
    /// and written; what that points to in turn is as large as it says, and all of it
    /// lives until the call returns.
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()>;
}

/// A descriptor, whose ioctls are the kernel's.
#[derive(Debug)]
pub struct Descriptor(OwnedFd);

impl Descriptor {
    /// Takes `fd`. Whether it understands anything is found out by asking.
    pub fn new(fd: OwnedFd) -> Self {
        Descriptor(fd)
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

/// The C compiler accepts `c`: how numbers and layouts are compared with the system's headers.
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
