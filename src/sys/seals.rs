//! Seals of a file in memory (fcntl(2), "File Sealing"): what nobody can do to it any more.

use super::kernel;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The seals of a file. `EINVAL` for a file that can have none.
pub fn of(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: asks for flags and touches no memory.
    let seals = unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS, 0) };
    match seals {
        0.. => Ok(seals),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds `seals`, which stay for as long as the file is there. Those that it has already are no
/// error, also when the file takes no further seals.
pub fn add(fd: BorrowedFd<'_>, seals: i32) -> io::Result<()> {
    if of(fd)? & seals == seals {
        return Ok(());
    }
    // SAFETY: F_ADD_SEALS takes an integer.
    match unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Seals in words, by the kernel's names.
pub fn names(seals: i32) -> String {
    let all = [
        (libc::F_SEAL_SEAL, "F_SEAL_SEAL"),
        (libc::F_SEAL_SHRINK, "F_SEAL_SHRINK"),
        (libc::F_SEAL_GROW, "F_SEAL_GROW"),
        (libc::F_SEAL_WRITE, "F_SEAL_WRITE"),
        (libc::F_SEAL_FUTURE_WRITE, "F_SEAL_FUTURE_WRITE"),
    ];
    let there = all.iter().filter(|(seal, _)| seals & seal != 0);
    let names: Vec<&str> = there.map(|(_, name)| *name).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}
