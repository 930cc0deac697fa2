//! The system calls for the crate's unit tests. Each asks [`plan`] first whether it has to fail.

use super::super::real;
use super::plan::{self, Fault};
use libc::{c_char, c_int, c_uint, c_ulong, c_void, iovec, msghdr, off_t, size_t, socklen_t};
use libc::{pollfd, rusage, sigset_t, sockaddr, ssize_t, timespec};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

fn set_errno(errno: c_int) {
    // SAFETY: the C library's errno of this thread.
    unsafe { *libc::__errno_location() = errno };
}

/// Calls that either work or fail, without partial results.
macro_rules! calls {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        pub unsafe fn $name($($argument: $type),*) -> $result {
            let fault = plan::next(stringify!($name));
            if let Some(Fault::Error(errno)) = fault {
                set_errno(errno);
                return -1isize as $result;
            }
            // SAFETY: the caller's promises are the call's own.
            let result = unsafe { real::$name($($argument),*) };
            if let Some(Fault::Done(errno)) = fault {
                set_errno(errno);
                return -1isize as $result;
            }
            result
        }
    )*};
}

calls! {
    fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int;
    fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    fn eventfd(count: c_uint, flags: c_int) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int;
    fn fstat(fd: c_int, stat: *mut libc::stat) -> c_int;
    fn fstatfs(fd: c_int, stat: *mut libc::statfs) -> c_int;
    fn fsync(fd: c_int) -> c_int;
    fn ftruncate(fd: c_int, length: off_t) -> c_int;
    fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    fn getrusage(who: c_int, usage: *mut rusage) -> c_int;
    fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut socklen_t)
        -> c_int;
    fn io_destroy(context: c_ulong) -> c_int;
    fn io_getevents(context: c_ulong, least: libc::c_long, most: libc::c_long, ends: *mut c_void,
        time: *mut timespec) -> c_int;
    fn io_setup(most: c_uint, context: *mut c_ulong) -> c_int;
    fn io_submit(context: c_ulong, count: libc::c_long, list: *mut *mut c_void) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
    fn madvise(address: *mut c_void, length: size_t, advice: c_int) -> c_int;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn mincore(address: *mut c_void, length: size_t, pages: *mut u8) -> c_int;
    fn mmap(address: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int,
        offset: off_t) -> *mut c_void;
    fn mprotect(address: *mut c_void, length: size_t, protection: c_int) -> c_int;
    fn move_pages(count: libc::c_ulong, pages: *const *const u8, status: *mut c_int) -> c_int;
    fn munmap(address: *mut c_void, length: size_t) -> c_int;
    fn pipe2(ends: *mut c_int, flags: c_int) -> c_int;
    fn ppoll(polls: *mut pollfd, count: libc::nfds_t, time: *const timespec, mask: *const sigset_t)
        -> c_int;
    fn process_madvise(runs: *const iovec, count: size_t, advice: c_int) -> ssize_t;
    fn read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: socklen_t)
        -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn sigaction(signal: c_int, action: *const libc::sigaction, before: *mut libc::sigaction) -> c_int;
    fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn sysinfo(info: *mut libc::sysinfo) -> c_int;
    fn tgkill(thread: libc::pid_t, signal: c_int) -> c_int;
    fn userfaultfd(flags: c_int) -> c_int;
    fn write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t;
    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
}

pub unsafe fn cachestat<R, C>(fd: c_int, range: *const R, counts: *mut C) -> c_int {
    if let Some(Fault::Error(errno)) = plan::next("cachestat") {
        set_errno(errno);
        return -1;
    }
    // SAFETY: the caller's promise.
    unsafe { real::cachestat(fd, range, counts) }
}

/// The types of an ioctl's or fcntl's last argument.
pub trait Word {
    fn word(self) -> usize;
}

impl<T> Word for &T {
    fn word(self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

impl<T> Word for &mut T {
    fn word(self) -> usize {
        std::ptr::from_mut(self) as usize
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self as usize
    }
}

impl Word for i32 {
    fn word(self) -> usize {
        self as usize
    }
}

impl Word for u64 {
    fn word(self) -> usize {
        self as usize
    }
}

pub unsafe fn ioctl(fd: c_int, request: c_ulong, argument: impl Word) -> c_int {
    let name = super::plausible::request(request);
    match plan::next(name) {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            -1
        }
        // SAFETY: the caller's promise.
        _ => unsafe { real::ioctl(fd, request, argument.word()) },
    }
}

pub unsafe fn fcntl(fd: c_int, command: c_int, argument: c_int) -> c_int {
    match plan::next("fcntl") {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            -1
        }
        // SAFETY: the caller's promise.
        _ => unsafe { real::fcntl(fd, command, argument) },
    }
}

/// The first parts of a message that together have `most` bytes.
///
/// # Safety
/// The message has the parts that it names.
unsafe fn cut(message: &msghdr, most: usize) -> Vec<iovec> {
    // SAFETY: the caller's promise.
    let parts = unsafe { std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen) };
    let mut left = most.max(1);
    let mut fewer = Vec::new();
    for part in parts {
        let length = part.iov_len.min(left);
        left -= length;
        fewer.push(iovec {
            iov_base: part.iov_base,
            iov_len: length,
        });
        if left == 0 {
            break;
        }
    }
    fewer
}

pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    match plan::next("sendmsg") {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            -1
        }
        Some(Fault::Short(most)) => {
            // SAFETY: the caller's promise.
            let mut less = unsafe { *message };
            // SAFETY: as above.
            let mut parts = unsafe { cut(&less, most) };
            (less.msg_iov, less.msg_iovlen) = (parts.as_mut_ptr(), parts.len() as _);
            // SAFETY: as above; the parts outlive the call.
            unsafe { real::sendmsg(fd, &less, flags) }
        }
        // SAFETY: as above.
        _ => unsafe { real::sendmsg(fd, message, flags) },
    }
}

pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    match plan::next("recvmsg") {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            -1
        }
        Some(Fault::End) => 0,
        Some(Fault::Short(most)) => {
            // SAFETY: the caller's promise.
            let mut less = unsafe { *message };
            // SAFETY: as above.
            let mut parts = unsafe { cut(&less, most) };
            (less.msg_iov, less.msg_iovlen) = (parts.as_mut_ptr(), parts.len() as _);
            // SAFETY: as above; the parts outlive the call.
            unsafe { real::recvmsg(fd, &mut less, flags) }
        }
        // SAFETY: as above.
        _ => unsafe { real::recvmsg(fd, message, flags) },
    }
}

pub unsafe fn pread(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t {
    let most = match plan::next("pread") {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            return -1;
        }
        Some(Fault::Short(most)) => most.max(1),
        _ => length,
    };
    // SAFETY: the caller's promise.
    unsafe { real::pread(fd, buffer, length.min(most), offset) }
}

pub unsafe fn pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    let most = match plan::next("pwrite") {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            return -1;
        }
        Some(Fault::Short(most)) => most.max(1),
        _ => length,
    };
    // SAFETY: the caller's promise.
    unsafe { real::pwrite(fd, buffer, length.min(most), offset) }
}

pub unsafe fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    let most = match plan::next("getrandom") {
        Some(Fault::Error(errno)) => {
            set_errno(errno);
            return -1;
        }
        Some(Fault::Short(most)) => most.max(1),
        _ => length,
    };
    // SAFETY: the caller's promise.
    unsafe { real::getrandom(buffer, length.min(most), flags) }
}

/// The error that a call of this name has to return.
fn check(name: &'static str) -> io::Result<()> {
    match plan::next(name) {
        Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    check("open")?;
    real::open(options, path)
}

pub fn read_file(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let most = match plan::next("read_file") {
        Some(Fault::Error(errno)) => return Err(io::Error::from_raw_os_error(errno)),
        Some(Fault::Short(most)) => most.max(1),
        _ => buffer.len(),
    };
    let length = buffer.len().min(most);
    real::read_file(file, &mut buffer[..length])
}

pub fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    check("duplicate")?;
    real::duplicate(fd)
}

pub fn lstat(path: &Path) -> io::Result<Metadata> {
    check("lstat")?;
    real::lstat(path)
}

pub fn unlink(path: &Path) -> io::Result<()> {
    check("unlink")?;
    real::unlink(path)
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    check("rename")?;
    real::rename(from, to)
}

/// The new thread belongs to the scope of the thread that starts it.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    check("clone")?;
    real::spawn(name, stack, plan::inherited(name, body))
}
