//! A connection that a listener has accepted, and whose purpose is still unknown.
//!
//! It is no channel, because most newcomers are dismissed soon, and each should cost few system
//! calls. `migrate` reads the first bytes of each, and makes a channel of the one that it wants.

use super::connection::Channel;
use super::parts::{Part, PartMut};
use super::socket::Socket;
use crate::error::Result;
use crate::sys::net::Manner;
use crate::units::Bytes;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// See the file's description.
#[derive(Debug)]
pub struct Newcomer {
    socket: Socket,
    received: usize,
}

impl Newcomer {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Newcomer {
            socket: Socket::accepted(fd),
            received: 0,
        }
    }

    /// Receives the bytes that are there, and returns how many; 0 at the end of the stream.
    ///
    /// # Errors
    /// The kernel's: `WouldBlock` if there are none.
    pub fn recv(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let got = self.socket.recv(&[PartMut::bytes(room)])?;
        self.received += got;
        Ok(got)
    }

    /// Sends these bytes if there is room for them now, and ends the connection.
    pub fn dismiss(&mut self, last: &[u8]) {
        // If this fails, the stranger only misses the reason.
        let _ = self.socket.send(&[Part::bytes(last)], Manner::Copied);
        let _ = self.socket.shutdown();
    }

    /// The peer's name in messages; `None` if it has no address.
    pub fn peer(&self) -> Option<String> {
        self.socket.peer()
    }

    /// The peer's network: its IPv4 address, or the network part of its IPv6 address.
    pub fn peer_network(&self) -> Option<IpAddr> {
        self.socket.peer_network()
    }

    /// The descriptor to poll.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// A channel that counts the bytes received here.
    ///
    /// # Errors
    /// Those of [`Channel::from_fd`]: the connection may be gone.
    pub fn into_channel(self) -> Result<Channel> {
        Channel::from_fd_after(self.socket.into_fd(), Bytes(self.received as u64))
    }
}
