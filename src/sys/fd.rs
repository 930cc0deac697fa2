//! Descriptors from outside of the crate: whether they are open, what they are of, and whether they
//! are closed on exec.

use super::kernel;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Takes over a descriptor and sets it to be closed on exec, so that no program that the VMM starts
/// keeps guest memory, a virtual machine or a connection alive.
///
/// # Errors
/// `EBADF` when `fd` is no open descriptor (-1, the result of a failed `dup`, is none). Nothing is
/// closed then.
///
/// # Safety
/// No other code closes `fd`.
pub unsafe fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer.
    let flags = unsafe { kernel::fcntl(fd, libc::F_GETFD, 0) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: an open descriptor, which by the caller's promise nobody else owns.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: F_SETFD takes an integer.
    if unsafe { kernel::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(owned)
}

/// A second descriptor of the open file of `fd`, closed on exec, so that no program that the VMM
/// starts keeps guest memory or a virtual machine alive. `fd` stays as it is.
///
/// # Errors
/// `EBADF` when `fd` is no open descriptor (-1, the result of a failed `dup`, is none).
///
/// # Safety
/// No code closes `fd` during the call.
pub unsafe fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not -1. If it is open it stays open during the call, by the caller's promise. If not,
    // the kernel says so.
    kernel::duplicate(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// As [`duplicate`], of a descriptor that is known to be open.
pub fn duplicate_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    kernel::duplicate(fd)
}

/// The same file, with a position of its own, so that a search by `lseek` does not move a position
/// from which the VMM reads. `fd` itself if that is not possible: without /proc, or if the process
/// may not open the file anew.
pub fn with_own_position(fd: OwnedFd) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // Holes are punched through this descriptor too, which needs the permission to write.
    let flags = status_flags(fd.as_fd());
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(flags & libc::O_ACCMODE == libc::O_RDWR);
    match kernel::open(&options, Path::new(&path)) {
        Ok(file) => file.into(),
        Err(_) => fd,
    }
}

/// The kind of file behind a descriptor, for a message that another kind was expected.
pub fn what_is(fd: BorrowedFd<'_>) -> &'static str {
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { kernel::fstat(fd.as_raw_fd(), &mut stat) } != 0 {
        return "a descriptor of which the kernel says nothing";
    }
    if is_path_only(fd) {
        return "a descriptor that is open for its path only (O_PATH)";
    }
    kind_of(stat.st_mode)
}

/// The kind of a file with the mode `st_mode`, in words.
pub fn kind_of(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFIFO => "a pipe",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a directory",
        libc::S_IFCHR => "a character device",
        libc::S_IFBLK => "a block device",
        libc::S_IFSOCK => "a socket",
        _ => "a descriptor that is neither socket, pipe nor file (an eventfd, for example)",
    }
}

/// The flags with which a file was opened (`F_GETFL`); negative if the kernel does not tell.
fn status_flags(fd: BorrowedFd<'_>) -> libc::c_int {
    // SAFETY: asks for flags and touches no memory.
    unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_GETFL, 0) }
}

/// Whether a descriptor names a file without access to it (`O_PATH`, open(2)).
pub fn is_path_only(fd: BorrowedFd<'_>) -> bool {
    let flags = status_flags(fd);
    flags >= 0 && flags & libc::O_PATH != 0
}

/// Whether a descriptor gives no right to read its file (`O_WRONLY`).
pub fn is_write_only(fd: BorrowedFd<'_>) -> bool {
    let flags = status_flags(fd);
    flags >= 0 && flags & libc::O_ACCMODE == libc::O_WRONLY
}

/// Whether a descriptor gives the right to read and write its file.
pub fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let flags = status_flags(fd);
    flags >= 0 && flags & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDWR
}

/// Whether a memfd is sealed so that it can be written through mappings at most. `false` for a file
/// that takes no seals.
pub fn is_sealed_for_writing(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: F_GET_SEALS takes no pointer.
    let seals = unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS, 0) };
    seals >= 0 && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_taken_is_closed_on_exec() {
        // SAFETY: a new descriptor of this test's.
        let fd = unsafe { libc::memfd_create(c"taken".as_ptr(), 0) };
        // SAFETY: nobody else owns it.
        let taken = unsafe { take(fd) }.unwrap();
        // SAFETY: F_GETFD takes no pointer.
        let flags = unsafe { libc::fcntl(taken.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }

    #[test]
    fn a_duplicate_is_closed_on_exec_and_leaves_the_first_as_it_is() {
        // SAFETY: a new descriptor of this test's.
        let first = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"first".as_ptr(), 0)) };
        // SAFETY: open until the end of this test.
        let second = unsafe { duplicate(first.as_raw_fd()) }.unwrap();
        let closed_on_exec = |fd: &OwnedFd| {
            // SAFETY: F_GETFD takes no pointer.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert!(flags >= 0);
            flags & libc::FD_CLOEXEC != 0
        };
        assert_ne!(first.as_raw_fd(), second.as_raw_fd());
        assert!(closed_on_exec(&second));
        assert!(!closed_on_exec(&first));
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        // The highest number a process can have is far below this.
        for fd in [-1, i32::MIN, i32::MAX] {
            // SAFETY: no descriptor.
            let error = unsafe { take(fd) }.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{fd}");
            // SAFETY: no descriptor.
            let error = unsafe { duplicate(fd) }.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{fd}");
        }
    }
}
