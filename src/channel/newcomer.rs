//! A connection that a listener has accepted and of which nobody knows yet what it wants.
//!
//! Not a channel: most are gone before that would be of use, and each costs the fewest system
//! calls. `migrate` reads of each what it has to say and makes a channel of the one it wants.

use super::connection::Channel;
use super::parts::{Part, PartMut};
use super::socket::Socket;
use crate::error::Result;
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

    /// Receives what is there now; how many bytes, 0 for the end of the stream.
    ///
    /// # Errors
    /// The kernel's: `WouldBlock` when nothing is there.
    pub fn recv(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let got = self.socket.recv(&[PartMut::bytes(room)])?;
        self.received += got;
        Ok(got)
    }

    /// Sends these bytes, if there is room for them now, and ends the connection.
    pub fn dismiss(&mut self, last: &[u8]) {
        // A stranger who does not hear it misses nothing.
        let _ = self.socket.send(&[Part::bytes(last)]);
        let _ = self.socket.shutdown();
    }

    /// The peer as messages name it; `None` where it has no address.
    pub fn peer(&self) -> Option<String> {
        self.socket.peer()
    }

    /// Where the peer is, roughly: its IPv4 address, or the network part of its IPv6 address.
    pub fn peer_network(&self) -> Option<IpAddr> {
        self.socket.peer_network()
    }

    /// What to poll for waiting.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// A channel, which has received so far what was received here.
    ///
    /// # Errors
    /// As for [`Channel::from_fd`]: the connection may be gone.
    pub fn into_channel(self) -> Result<Channel> {
        Channel::from_fd_after(self.socket.into_fd(), Bytes(self.received as u64))
    }
}
