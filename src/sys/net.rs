//! System calls on stream sockets: make, bind, connect, accept, and transfers with scatter lists.
//!
//! Each function is one call; errors are `io::Error`. `channel`, the only caller, knows what an
//! error means, waits and retries.

use super::{kernel, pipe};
use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The longest path of a unix socket, in bytes: `sun_path` has 108 with the closing NUL (unix(7)).
pub const UNIX_PATH_MAX: usize = 107;

/// The most parts one `sendmsg` or `recvmsg` takes (`UIO_MAXIOV`, 1024).
pub const PARTS_MAX: usize = 1024;

/// How bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The kernel copies them.
    Copied,
    /// The kernel copies them, and more follow at once (`MSG_MORE`).
    CopiedAndMore,
    /// The kernel reads them while it sends (`MSG_ZEROCOPY`): the memory stays as it is until the
    /// socket's [error queue](super::errqueue) says that the call is complete.
    InPlace,
}

impl Manner {
    fn flag(self) -> i32 {
        match self {
            Manner::Copied => 0,
            Manner::CopiedAndMore => libc::MSG_MORE,
            Manner::InPlace => libc::MSG_ZEROCOPY,
        }
    }
}

/// The address of a stream socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Inet(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
    /// A unix socket without a path, or another address family.
    Unnamed,
}

/// An address in the kernel's form.
struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddress {
    fn empty() -> Self {
        RawAddress {
            // SAFETY: sockaddr_storage is plain integers; all zero is AF_UNSPEC.
            storage: unsafe { std::mem::zeroed() },
            len: size_of::<libc::sockaddr_storage>() as libc::socklen_t,
        }
    }

    fn encode(address: &Address) -> io::Result<Self> {
        let mut raw = RawAddress::empty();
        let place = &raw mut raw.storage;
        match address {
            Address::Inet(SocketAddr::V4(v4)) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*v4.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is large and aligned enough for any sockaddr.
                unsafe { place.cast::<libc::sockaddr_in>().write(sin) };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            Address::Inet(SocketAddr::V6(v6)) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { place.cast::<libc::sockaddr_in6>().write(sin6) };
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
            Address::Unix(path) => {
                let bytes = path.as_os_str().as_bytes();
                if bytes.is_empty() || bytes.len() > UNIX_PATH_MAX || bytes.contains(&0) {
                    return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
                }
                let mut sun = libc::sockaddr_un {
                    sun_family: libc::AF_UNIX as libc::sa_family_t,
                    sun_path: [0; 108],
                };
                for (to, from) in sun.sun_path.iter_mut().zip(bytes) {
                    *to = *from as libc::c_char;
                }
                // SAFETY: as above.
                unsafe { place.cast::<libc::sockaddr_un>().write(sun) };
                raw.len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
            }
            Address::Unnamed => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        Ok(raw)
    }

    fn decode(&self) -> Address {
        let place = &raw const self.storage;
        let len = self.len as usize;
        match i32::from(self.storage.ss_family) {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: the family tells what the kernel wrote there, and every bit pattern is
                // valid.
                let sin = unsafe { place.cast::<libc::sockaddr_in>().read() };
                Address::Inet(SocketAddr::V4(SocketAddrV4::new(
                    Ipv4Addr::from(u32::from_be(sin.sin_addr.s_addr)),
                    u16::from_be(sin.sin_port),
                )))
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above.
                let sin6 = unsafe { place.cast::<libc::sockaddr_in6>().read() };
                Address::Inet(SocketAddr::V6(SocketAddrV6::new(
                    Ipv6Addr::from(sin6.sin6_addr.s6_addr),
                    u16::from_be(sin6.sin6_port),
                    sin6.sin6_flowinfo,
                    sin6.sin6_scope_id,
                )))
            }
            libc::AF_UNIX => {
                // SAFETY: as above; storage is larger than sockaddr_un and was zeroed.
                let sun = unsafe { place.cast::<libc::sockaddr_un>().read() };
                let bytes = sun.sun_path.map(|c| c as u8);
                let start = std::mem::offset_of!(libc::sockaddr_un, sun_path);
                let given = bytes.get(..len.saturating_sub(start)).unwrap_or(&bytes);
                let path = given.split(|b| *b == 0).next().unwrap_or(&[]);
                if path.is_empty() {
                    Address::Unnamed // unnamed or abstract
                } else {
                    Address::Unix(PathBuf::from(OsStr::from_bytes(path)))
                }
            }
            _ => Address::Unnamed,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A new stream socket for `address`'s family, non-blocking and closed on exec.
pub fn stream_socket(address: &Address) -> io::Result<OwnedFd> {
    let family = match address {
        Address::Inet(SocketAddr::V4(_)) => libc::AF_INET,
        Address::Inet(SocketAddr::V6(_)) => libc::AF_INET6,
        Address::Unix(_) | Address::Unnamed => libc::AF_UNIX,
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { kernel::socket(family, kind, 0) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bind(2).
pub fn bind(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let raw = RawAddress::encode(address)?;
    // SAFETY: storage holds an encoded address of `len` bytes.
    check(unsafe { kernel::bind(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len) })?;
    Ok(())
}

/// connect(2). On a non-blocking socket TCP answers `EINPROGRESS`: wait until the socket is
/// writable, then ask [`take_error`]. A unix socket whose listener has a full queue answers
/// `EAGAIN`, and can only be tried again.
pub fn connect(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let raw = RawAddress::encode(address)?;
    // SAFETY: storage holds an encoded address of `len` bytes.
    check(unsafe { kernel::connect(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len) })?;
    Ok(())
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { kernel::listen(fd.as_raw_fd(), backlog) })?;
    Ok(())
}

/// accept4(2): the connection is non-blocking and closed on exec.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null pointers ask for no address.
    let new = check(unsafe {
        kernel::accept4(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// The address to which this end is bound.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut raw = RawAddress::empty();
    // SAFETY: storage and len are writable and len is storage's size.
    check(unsafe {
        kernel::getsockname(
            fd.as_raw_fd(),
            (&raw mut raw.storage).cast(),
            &raw mut raw.len,
        )
    })?;
    Ok(raw.decode())
}

/// The address of the other end; `ENOTCONN` without one.
pub fn peer_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut raw = RawAddress::empty();
    // SAFETY: storage and len are writable and len is storage's size.
    check(unsafe {
        kernel::getpeername(
            fd.as_raw_fd(),
            (&raw mut raw.storage).cast(),
            &raw mut raw.len,
        )
    })?;
    Ok(raw.decode())
}

/// Sets an integer socket option.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is four readable bytes on this stack frame.
    check(unsafe {
        kernel::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Reads an integer socket option.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: value is four writable bytes on this stack frame, as len says.
    check(unsafe {
        kernel::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value)
}

/// The number that the kernel gives to a socket and to no other (`SO_COOKIE`), whatever descriptor
/// it is asked through.
pub fn cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut value = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value is eight writable bytes on this stack frame, as len says.
    check(unsafe {
        kernel::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value)
}

/// Takes and clears the error that a socket holds (`SO_ERROR`).
pub fn take_error(fd: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    let error = option(fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
    Ok((error != 0).then(|| io::Error::from_raw_os_error(error)))
}

/// Sets `O_NONBLOCK` on the open file and `FD_CLOEXEC` on the descriptor.
pub fn set_nonblocking_cloexec(fd: BorrowedFd<'_>) -> io::Result<()> {
    pipe::set_nonblocking(fd)?;
    let fd = fd.as_raw_fd();
    // SAFETY: these commands take and return integers.
    unsafe {
        let flags = check(kernel::fcntl(fd, libc::F_GETFD, 0))?;
        check(kernel::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC))?;
    }
    Ok(())
}

/// Ends a connection at once (`connect` to no address, connect(2)): what was not sent is not sent,
/// and the peer finds it reset.
pub fn reset(fd: BorrowedFd<'_>) -> io::Result<()> {
    let raw = RawAddress::empty();
    // SAFETY: storage is a whole address of family AF_UNSPEC.
    check(unsafe { kernel::connect(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len) })?;
    Ok(())
}

/// shutdown(2) of both directions.
pub fn shutdown(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { kernel::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) })?;
    Ok(())
}

/// How many sent bytes a socket still holds. TCP: those that the peer's kernel has not
/// acknowledged. Unix socket: those that the peer has not read (`SIOCOUTQ`, tcp(7)).
pub fn unsent(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    let into = &raw mut bytes;
    // SAFETY: the request writes one int, on this stack frame.
    check(unsafe { kernel::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, into) })?;
    Ok(bytes.max(0) as u64)
}

/// The first [`PARTS_MAX`] parts as a message without address and control data. It points to `parts`.
pub(super) fn message(parts: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain integers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut();
    message.msg_iovlen = parts.len().min(PARTS_MAX) as _;
    message
}

/// Sends as much of the first [`PARTS_MAX`] parts as the socket takes now, and returns the number
/// of bytes. Never waits, whatever `O_NONBLOCK` says: the flag belongs to the open file, which
/// other code may also use. Never raises SIGPIPE.
///
/// # Safety
/// The owner of each part's memory wants it to be sent to the peer. (Memory that is not mapped is
/// `EFAULT`, not undefined: the kernel reads it.)
pub unsafe fn send(fd: BorrowedFd<'_>, parts: &[libc::iovec], manner: Manner) -> io::Result<usize> {
    let message = message(parts);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | manner.flag();
    // SAFETY: the count is at most the slice's. The caller vouches for the memory of each part,
    // which the kernel only reads.
    let n = unsafe { kernel::sendmsg(fd.as_raw_fd(), &message, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Receives the bytes that are there now into the first [`PARTS_MAX`] parts, and returns their
/// number: 0 at the end of the stream (or without room). Never waits. Descriptors that a peer
/// attaches are dropped by the kernel, because there is no room for them.
///
/// # Safety
/// The peer may write the memory of each part, and no Rust reference covers it. (Memory that is not
/// mapped is `EFAULT`.)
pub unsafe fn recv(fd: BorrowedFd<'_>, parts: &[libc::iovec]) -> io::Result<usize> {
    let mut message = message(parts);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the count is at most the slice's. The caller vouches for the memory of each part.
    let n = unsafe { kernel::recvmsg(fd.as_raw_fd(), &mut message, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
