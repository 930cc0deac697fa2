//! A connected stream socket (TCP, unix, vsock), set up and never blocking: what the first kind
//! of [`ConnectionKind`](super::kind::ConnectionKind) is made of.
//!
//! Each verb is one system call. Waiting and trying again is the transfer's.

use super::parts::{iovecs, Part, PartMut};
use crate::error::{Error, Kind, Result};
use crate::sys::errqueue::{self, Said};
use crate::sys::event::{self, Poll};
use crate::sys::fd::what_is;
use crate::sys::net::{self, Address, Manner};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// See the file's description.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes a connected stream socket. It is ours from now on, also on failure. Sets it
    /// non-blocking and closed on exec, and for TCP no delay and keep-alive. Buffer sizes are left
    /// alone: setting one ends the kernel's own tuning and caps it lower.
    ///
    /// # Errors
    /// `Invalid` when it is not a stream socket or not connected, with what it is.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let invalid = |found: &str| {
            let message = format!("expected a connected stream socket, found {found}");
            Error::new(Kind::Invalid, message)
        };
        let failed = |e| Error::os("setting up a socket", e);
        match net::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE) {
            Ok(libc::SOCK_STREAM) => {}
            Ok(libc::SOCK_DGRAM) => return Err(invalid("a datagram socket")),
            Ok(libc::SOCK_SEQPACKET) => return Err(invalid("a socket of packets")),
            Ok(_) => return Err(invalid("a socket of another type")),
            // EBADF: open for its path only.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSOCK | libc::EBADF)) => {
                return Err(invalid(what_is(fd.as_fd())));
            }
            Err(e) => return Err(failed(e)),
        }
        match net::peer_address(fd.as_fd()) {
            Ok(_) => {}
            Err(e) => match e.raw_os_error() {
                // EINVAL: shut down before it was looked at (getpeername(2)).
                Some(libc::ENOTCONN | libc::EINVAL) => {
                    let listens = net::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
                    return Err(invalid(match listens {
                        Ok(1) => "a socket that listens",
                        _ => "a socket that is not connected, or not any more",
                    }));
                }
                _ => return Err(failed(e)),
            },
        }
        net::set_nonblocking_cloexec(fd.as_fd()).map_err(failed)?;
        let protocol = net::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL);
        if protocol.is_ok_and(|p| p == libc::IPPROTO_TCP) {
            net::set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).map_err(failed)?;
            net::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).map_err(failed)?;
        }
        Ok(Socket(fd))
    }

    /// One that was just accepted: connected, non-blocking and closed on exec, and nothing else
    /// is done to it yet.
    pub(super) fn accepted(fd: OwnedFd) -> Self {
        Socket(fd)
    }

    /// The descriptor back, to be set up by [`Socket::new`].
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The peer as messages name it; `None` where it has no address.
    pub fn peer(&self) -> Option<String> {
        match net::peer_address(self.0.as_fd()).ok()? {
            Address::Inet(address) => Some(format!("tcp:{address}")),
            Address::Unix(path) => Some(format!("unix:{}", path.display())),
            Address::Unnamed => None,
        }
    }

    /// Where the peer is, roughly: its IPv4 address, or the network part of its IPv6 address.
    pub fn peer_network(&self) -> Option<IpAddr> {
        match net::peer_address(self.0.as_fd()).ok()? {
            Address::Inet(address) => Some(match address.ip().to_canonical() {
                IpAddr::V6(ip) => {
                    let network = u128::from(ip) & !u128::from(u64::MAX);
                    IpAddr::V6(network.into())
                }
                ip => ip,
            }),
            _ => None,
        }
    }

    /// Sends what the socket takes now of `parts`; how many bytes.
    pub fn send(&self, parts: &[Part<'_>], manner: Manner) -> io::Result<usize> {
        // SAFETY: what a part names was promised when it was made.
        unsafe { net::send(self.0.as_fd(), iovecs(parts), manner) }
    }

    /// Has the kernel send in place where it is asked to. An error where it cannot on this kind of
    /// socket.
    pub fn allow_in_place(&self) -> io::Result<()> {
        net::set_option(self.0.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)
    }

    /// What the kernel says next of sends in place.
    pub fn said(&self) -> io::Result<Said> {
        errqueue::next(self.0.as_fd())
    }

    /// Ends the connection at once: nothing more is sent.
    pub fn reset(&self) -> io::Result<()> {
        net::reset(self.0.as_fd())
    }

    /// Receives what is there now; how many bytes, 0 for the end of the stream.
    pub fn recv(&self, parts: &[PartMut<'_>]) -> io::Result<usize> {
        // SAFETY: as above.
        unsafe { net::recv(self.0.as_fd(), iovecs(parts)) }
    }

    /// What to poll for waiting.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// How many bytes of what was sent the peer has not: its kernel (TCP), or itself (a unix
    /// socket). 0 where the kernel does not tell.
    pub fn unsent(&self) -> u64 {
        net::unsent(self.0.as_fd()).unwrap_or(0)
    }

    /// Whether the peer has closed its end, or the connection has failed.
    pub fn hung_up(&self) -> io::Result<bool> {
        let mut polls = [Poll::new(self.0.as_fd(), libc::POLLRDHUP)];
        loop {
            match event::poll(&mut polls, Some(Duration::ZERO)) {
                Ok(_) => return Ok(polls[0].found() & event::HUNG_UP != 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Ends the connection in both directions; twice is fine.
    pub fn shutdown(&self) -> io::Result<()> {
        match net::shutdown(self.0.as_fd()) {
            Err(e) if e.raw_os_error() != Some(libc::ENOTCONN) => Err(e),
            _ => Ok(()),
        }
    }
}
