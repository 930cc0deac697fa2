//! The real system calls.

#[rustfmt::skip]
pub use libc::{
    accept4, bind, connect, eventfd, fallocate, fcntl, fstat, fstatfs, fsync, ftruncate, getpeername,
    getrandom, getrusage, getsockname, getsockopt, ioctl, listen, lseek, madvise, memfd_create,
    mincore, mmap, mprotect, munmap, pipe2, ppoll, pread, pwrite, read, recvmsg, sendmsg,
    setsockopt, shutdown, sigaction, signalfd, socket, sysinfo, write, writev,
};

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

/// userfaultfd(2), which has no function in the C library.
///
/// # Safety
/// There is no condition: it takes an integer and accesses no memory. It is unsafe only to be like
/// the other calls.
pub unsafe fn userfaultfd(flags: libc::c_int) -> libc::c_int {
    // SAFETY: takes an integer and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as libc::c_int }
}

/// cachestat(2), which has no function in the C library.
///
/// # Safety
/// `range` is a structure of two words, `counts` one of five words that may be written.
pub unsafe fn cachestat<R, C>(fd: libc::c_int, range: *const R, counts: *mut C) -> libc::c_int {
    const CACHESTAT: libc::c_long = 451;
    const { assert!(size_of::<R>() == 16 && size_of::<C>() == 40) };
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(CACHESTAT, fd, range, counts, 0) as libc::c_int }
}

/// move_pages(2) of this process, which has no function in the C library: with nowhere to move
/// pages to, it tells where they are.
///
/// # Safety
/// `pages` are `count` addresses, and `status` has room for as many numbers.
pub unsafe fn move_pages(
    count: libc::c_ulong,
    pages: *const *const u8,
    status: *mut libc::c_int,
) -> libc::c_int {
    let nowhere: *const libc::c_int = std::ptr::null();
    // SAFETY: the caller's promise; the addresses are looked up, and nothing behind them is touched.
    let done = unsafe { libc::syscall(libc::SYS_move_pages, 0, count, pages, nowhere, status, 0) };
    done as libc::c_int
}

/// process_madvise(2) of this process, which has no function in the C library.
///
/// # Safety
/// `runs` has `count` entries, and the advice is allowed for all of them, as by madvise(2).
pub unsafe fn process_madvise(
    runs: *const libc::iovec,
    count: libc::size_t,
    advice: libc::c_int,
) -> libc::ssize_t {
    /// In place of a descriptor of the process; before Linux 6.15 the call fails.
    const PIDFD_SELF: libc::c_int = -10000;
    let number = libc::SYS_process_madvise;
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(number, PIDFD_SELF, runs, count, advice, 0) as libc::ssize_t }
}

/// io_setup(2), which has no function in the C library.
///
/// # Safety
/// `context` may be written.
pub unsafe fn io_setup(most: libc::c_uint, context: *mut libc::c_ulong) -> libc::c_int {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_io_setup, most, context) as libc::c_int }
}

/// io_submit(2), which has no function in the C library.
///
/// # Safety
/// `list` has `count` pointers to control blocks, whose buffers may be written until their reads end.
pub unsafe fn io_submit(
    context: libc::c_ulong,
    count: libc::c_long,
    list: *mut *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_io_submit, context, count, list) as libc::c_int }
}

/// io_getevents(2), which has no function in the C library.
///
/// # Safety
/// `ends` has room for `most` of them, and `time` is a time.
pub unsafe fn io_getevents(
    context: libc::c_ulong,
    least: libc::c_long,
    most: libc::c_long,
    ends: *mut libc::c_void,
    time: *mut libc::timespec,
) -> libc::c_int {
    // SAFETY: the caller's promise.
    let got = unsafe { libc::syscall(libc::SYS_io_getevents, context, least, most, ends, time) };
    got as libc::c_int
}

/// io_destroy(2), which has no function in the C library.
///
/// # Safety
/// There is no condition: it takes an integer, and a context that is not one is refused.
pub unsafe fn io_destroy(context: libc::c_ulong) -> libc::c_int {
    // SAFETY: takes an integer and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) as libc::c_int }
}

/// tgkill(2) to a thread of this process.
///
/// # Safety
/// There is no condition: it takes integers. A signal without a handler has its default action.
pub unsafe fn tgkill(thread: libc::pid_t, signal: libc::c_int) -> libc::c_int {
    // SAFETY: integers alone; getpid cannot fail.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) as libc::c_int }
}

/// open(2), closed on exec.
pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    options.open(path)
}

/// read(2) of a file.
pub fn read_file(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    io::Read::read(&mut file, buffer)
}

/// A second descriptor of the same file, closed on exec (`F_DUPFD_CLOEXEC`).
pub fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// lstat(2).
pub fn lstat(path: &Path) -> io::Result<Metadata> {
    std::fs::symlink_metadata(path)
}

/// unlink(2).
pub fn unlink(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// rename(2).
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// clone(2): a thread of this name and stack.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = std::thread::Builder::new();
    builder.name(name.into()).stack_size(stack).spawn(body)
}
