//! A connected stream socket (TCP, unix, vsock) that is set up and never blocks. It is the first
//! kind of [`ConnectionKind`](super::kind::ConnectionKind).
//!
//! Each verb is one system call. Waiting and trying again are done by `transfer`.

use super::attached::Attached;
use super::parts::{iovecs, Part, PartMut};
use crate::error::{Error, Kind, Result};
use crate::sys::errqueue::{self, Said};
use crate::sys::event::{self, Poll};
use crate::sys::fd::what_is;
use crate::sys::net::{self, Address, Manner};
use crate::sys::passing;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What tells a socket from others, as far as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    cookie: Option<u64>,
    /// The addresses of this end and of the peer, for TCP.
    ends: Option<(Address, Address)>,
}

impl Identity {
    /// Whether both are one socket under two descriptors.
    pub fn is_same_as(&self, other: &Identity) -> bool {
        self.cookie.is_some() && self.cookie == other.cookie
    }

    /// The hosts' addresses of this end and of the peer, for TCP.
    pub fn way(&self) -> Option<(IpAddr, IpAddr)> {
        match &self.ends {
            Some((Address::Inet(local), Address::Inet(peer))) => Some((local.ip(), peer.ip())),
            _ => None,
        }
    }

    /// Whether both are the ends of one TCP connection.
    pub fn is_other_end_of(&self, other: &Identity) -> bool {
        match (&self.ends, &other.ends) {
            (Some((local, peer)), Some((other_local, other_peer))) => {
                (local, peer) == (other_peer, other_local)
            }
            _ => false,
        }
    }
}

/// The socket, as the file's description says.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// How many bytes make a wait for bytes end (`SO_RCVLOWAT`). `None`: always one, because it is no
    /// TCP socket.
    low_water: Option<AtomicU32>,
    /// The descriptors that the peer has attached. `None`: the kernel closes them.
    attached: Option<Attached>,
}

impl Socket {
    /// Takes a connected stream socket, which is ours from now on, also after a failure. Makes it
    /// non-blocking and closed on exec, and for TCP sets no-delay and keep-alive. Buffer sizes are
    /// left alone: a size that is set ends the kernel's own tuning, and its cap is lower.
    ///
    /// # Errors
    /// `Invalid` for a descriptor that is not a stream socket or is not connected. The message says
    /// what it is.
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
            // EBADF: the descriptor is open for its path only (`O_PATH`).
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSOCK | libc::EBADF)) => {
                return Err(invalid(what_is(fd.as_fd())));
            }
            Err(e) => return Err(failed(e)),
        }
        match net::peer_address(fd.as_fd()) {
            Ok(_) => {}
            Err(e) => match e.raw_os_error() {
                // EINVAL: the socket was shut down before this call (getpeername(2)).
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
        let mut low_water = None;
        if protocol.is_ok_and(|p| p == libc::IPPROTO_TCP) {
            net::set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).map_err(failed)?;
            net::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).map_err(failed)?;
            // Whoever made the socket may have chosen another value.
            net::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1).map_err(failed)?;
            low_water = Some(AtomicU32::new(1));
        }
        Ok(Socket {
            fd,
            low_water,
            attached: None,
        })
    }

    /// Takes a socket that was just accepted. It is connected, non-blocking and closed on exec.
    /// Nothing else has been set up yet.
    pub(super) fn accepted(fd: OwnedFd) -> Self {
        Socket {
            fd,
            low_water: None,
            attached: None,
        }
    }

    /// Gives the descriptor back, for a set-up by [`Socket::new`].
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The peer's name for messages. `None` when the peer has no address.
    pub fn peer(&self) -> Option<String> {
        match net::peer_address(self.fd.as_fd()).ok()? {
            Address::Inet(address) => Some(format!("tcp:{address}")),
            Address::Unix(path) => Some(format!("unix:{}", path.display())),
            Address::Unnamed => None,
        }
    }

    /// What tells this socket from others.
    pub fn identity(&self) -> Identity {
        let ends = || {
            let local = net::local_address(self.fd()).ok()?;
            let peer = net::peer_address(self.fd()).ok()?;
            matches!(local, Address::Inet(_)).then_some((local, peer))
        };
        Identity {
            cookie: net::cookie(self.fd()).ok(),
            ends: ends(),
        }
    }

    /// The peer's network: its IPv4 address, or the network part of its IPv6 address.
    pub fn peer_network(&self) -> Option<IpAddr> {
        match net::peer_address(self.fd.as_fd()).ok()? {
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

    /// Sends as much of `parts` as the socket takes now. Returns the number of bytes.
    pub fn send(&self, parts: &[Part<'_>], manner: Manner) -> io::Result<usize> {
        // SAFETY: whoever made a part promised that its memory may be read.
        unsafe { net::send(self.fd.as_fd(), iovecs(parts), manner) }
    }

    /// Lets the kernel send in place when it is asked to. Fails when the kernel cannot on this kind
    /// of socket.
    pub fn allow_in_place(&self) -> io::Result<()> {
        net::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)
    }

    /// The kernel's next message about sends in place.
    pub fn said(&self) -> io::Result<Said> {
        errqueue::next(self.fd.as_fd())
    }

    /// Ends the connection at once. Bytes that were not sent are dropped.
    pub fn reset(&self) -> io::Result<()> {
        net::reset(self.fd.as_fd())
    }

    /// Receives the bytes that are there now. Returns their number, or 0 at the end of the stream.
    pub fn recv(&mut self, parts: &[PartMut<'_>]) -> io::Result<usize> {
        let Some(attached) = &mut self.attached else {
            // SAFETY: whoever made a part promised that its memory may be written.
            return unsafe { net::recv(self.fd.as_fd(), iovecs(parts)) };
        };
        let parts = iovecs(parts);
        let parts = &parts[..parts.len().min(net::PARTS_MAX)];
        // SAFETY: as above.
        let received = unsafe { passing::receive_into(self.fd.as_fd(), parts, 1) }?;
        attached.came(received.descriptors, received.cut);
        Ok(received.bytes)
    }

    /// Whether it is a unix socket, with which descriptors can travel.
    pub(super) fn is_unix(&self) -> bool {
        let domain = net::option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN);
        domain.is_ok_and(|domain| domain == libc::AF_UNIX)
    }

    /// Keeps descriptors that the peer attaches from now on, or lets the kernel close them. Those
    /// that were kept so far are closed.
    pub(super) fn keep_descriptors(&mut self, keep: bool) {
        self.attached = keep.then(Attached::default);
    }

    /// The descriptors that the peer has attached, while they are kept.
    pub(super) fn attached(&mut self) -> Option<&mut Attached> {
        self.attached.as_mut()
    }

    /// Sends as much of `bytes` as the socket takes now, and `descriptor` with the first byte.
    pub(super) fn send_with_descriptor(
        &self,
        bytes: &[u8],
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        passing::send(self.fd.as_fd(), bytes, Some(descriptor))
    }

    /// The descriptor to poll.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The number of sent bytes that have not arrived: at the peer's kernel (TCP), or at the peer
    /// itself (a unix socket). 0 when the kernel does not tell.
    pub fn unsent(&self) -> u64 {
        net::unsent(self.fd.as_fd()).unwrap_or(0)
    }

    /// From now on a wait for bytes ends when `bytes` of them are there, when the kernel has no room
    /// for so many, or at the end of the stream. Returns how many bytes the wait is really for: one
    /// where the socket is no TCP socket, and the number from before if the kernel refuses.
    pub(super) fn wait_for_bytes(&self, bytes: u32) -> u32 {
        let Some(low_water) = &self.low_water else {
            return 1;
        };
        let before = low_water.load(Ordering::Relaxed);
        if before != bytes {
            let value = i32::try_from(bytes).unwrap_or(i32::MAX);
            if net::set_option(self.fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value).is_err() {
                return before;
            }
            low_water.store(bytes, Ordering::Relaxed);
        }
        bytes
    }

    /// Whether the peer has closed its end, or the connection has failed.
    pub fn hung_up(&self) -> io::Result<bool> {
        let mut polls = [Poll::new(self.fd.as_fd(), libc::POLLRDHUP)];
        loop {
            match event::poll(&mut polls, Some(Duration::ZERO)) {
                Ok(_) => return Ok(polls[0].found() & event::HUNG_UP != 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Ends the connection in both directions. A second call does no harm.
    pub fn shutdown(&self) -> io::Result<()> {
        match net::shutdown(self.fd.as_fd()) {
            Err(e) if e.raw_os_error() != Some(libc::ENOTCONN) => Err(e),
            _ => Ok(()),
        }
    }
}
