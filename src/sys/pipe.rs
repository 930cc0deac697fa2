//! Pipes (pipe(7)), and reads and writes of a descriptor that never wait.
//!
//! `device` moves the state of devices through them. What else in `sys` needs a pipe, or a descriptor
//! that never waits, calls these too.

use super::kernel;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A new pipe, closed on exec: the end to read from and the end to write to. `flags` is
/// `O_NONBLOCK`, or 0 for ends that wait.
pub fn pipe(flags: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors.
    if unsafe { kernel::pipe2(ends.as_mut_ptr(), flags | libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made both, and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Sets that calls on this open file never wait. The flag belongs to the open file: whoever has a
/// duplicate does not wait either.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_GETFL, 0) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted: i32 = flags | libc::O_NONBLOCK;
    // SAFETY: F_SETFL takes an integer.
    if unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// read(2).
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is writable for its length.
    let n = unsafe { kernel::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// write(2). To a pipe that nobody reads it raises SIGPIPE, which threads of brant's mask.
pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the data is readable for its length.
    let n = unsafe { kernel::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn bytes_go_through_a_pipe_and_a_closed_end_is_the_end() {
        let (out, into) = pipe(0).unwrap();
        set_nonblocking(out.as_fd()).unwrap();
        let mut buffer = [0; 8];
        let empty = read(out.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(empty.raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(write(into.as_fd(), b"state").unwrap(), 5);
        assert_eq!(read(out.as_fd(), &mut buffer).unwrap(), 5);
        drop(into);
        assert_eq!(read(out.as_fd(), &mut buffer).unwrap(), 0);
    }
}
