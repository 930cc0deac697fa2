//! The kinds of connection that carry a channel's bytes, and the operations of each kind.
//!
//! There is one kind so far. A second one (TLS over a socket, for example) is another variant, with
//! a file of its own. The layers above, transfer and channel, use these operations and never a
//! descriptor. So a kind may send while it was asked to receive, and may wait for another event
//! than it was asked for.

use super::attached::Attached;
use super::parts::{IoPart, Part, PartMut};
use super::socket::{Identity, Socket};
use crate::error::Result;
use crate::runtime::{wait_ready_or, Cancel, Deadline, Interest, Recall, Wake};
use crate::sys::errqueue::Said;
use crate::sys::fd;
use crate::sys::net::Manner;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// See the file's description.
#[derive(Debug)]
pub(super) enum ConnectionKind {
    /// A stream socket, bytes as they are.
    Socket(Socket),
}

impl ConnectionKind {
    /// The peer's name in messages.
    pub fn peer(&self) -> String {
        match self {
            ConnectionKind::Socket(socket) => {
                socket.peer().unwrap_or_else(|| "the peer".to_owned())
            }
        }
    }

    /// A second descriptor of its socket.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            ConnectionKind::Socket(socket) => fd::duplicate_of(socket.fd()),
        }
    }

    /// What tells its socket from others.
    pub fn identity(&self) -> Identity {
        match self {
            ConnectionKind::Socket(socket) => socket.identity(),
        }
    }

    /// The way that its bytes go: its own address and the peer's, where they have addresses.
    pub fn way(&self) -> Option<(IpAddr, IpAddr)> {
        match self {
            ConnectionKind::Socket(socket) => socket.identity().way(),
        }
    }

    /// Sends as much as it can without waiting, and returns how many bytes. `WouldBlock` if none.
    pub fn send(&mut self, parts: &[Part<'_>], manner: Manner) -> io::Result<usize> {
        match self {
            ConnectionKind::Socket(socket) => socket.send(parts, manner),
        }
    }

    /// Has the kernel send in place ([`Manner::InPlace`]). An error if it cannot.
    pub fn allow_in_place(&mut self) -> io::Result<()> {
        match self {
            ConnectionKind::Socket(socket) => socket.allow_in_place(),
        }
    }

    /// What the kernel says next of sends in place.
    pub fn said(&mut self) -> io::Result<Said> {
        match self {
            ConnectionKind::Socket(socket) => socket.said(),
        }
    }

    /// Ends the connection at once: nothing more is sent.
    pub fn reset(&mut self) -> io::Result<()> {
        match self {
            ConnectionKind::Socket(socket) => socket.reset(),
        }
    }

    /// Receives the bytes that are there, without waiting, and returns how many; 0 at the end of
    /// the stream.
    pub fn recv(&mut self, parts: &[PartMut<'_>]) -> io::Result<usize> {
        match self {
            ConnectionKind::Socket(socket) => socket.recv(parts),
        }
    }

    /// Whether descriptors can travel with its bytes.
    pub fn carries_descriptors(&self) -> bool {
        match self {
            ConnectionKind::Socket(socket) => socket.is_unix(),
        }
    }

    /// Keeps descriptors that the peer attaches from now on, or lets the kernel close them.
    pub fn keep_descriptors(&mut self, keep: bool) {
        match self {
            ConnectionKind::Socket(socket) => socket.keep_descriptors(keep),
        }
    }

    /// The descriptors that the peer has attached, while they are kept.
    pub fn attached(&mut self) -> Option<&mut Attached> {
        match self {
            ConnectionKind::Socket(socket) => socket.attached(),
        }
    }

    /// Sends as much of `bytes` as it can without waiting, and `descriptor` with the first byte.
    pub fn send_with_descriptor(
        &mut self,
        bytes: &[u8],
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        match self {
            ConnectionKind::Socket(socket) => socket.send_with_descriptor(bytes, descriptor),
        }
    }

    /// Waits until there is room to send, or something to receive. Also ends as ready when `recall`
    /// is raised, and ends on a cancel or at the deadline.
    pub fn wait(
        &self,
        interest: Interest,
        recall: Option<&Recall>,
        cancel: Option<&Cancel>,
        until: Deadline,
    ) -> Result<Wake> {
        let recall = recall.map(Recall::fd);
        match self {
            ConnectionKind::Socket(socket) => {
                wait_ready_or(socket.fd(), interest, recall, cancel, until)
            }
        }
    }

    /// The descriptor to poll for any byte to read, when several connections are waited for.
    pub fn fd_to_read(&self) -> BorrowedFd<'_> {
        self.wait_for_bytes(1);
        match self {
            ConnectionKind::Socket(socket) => socket.fd(),
        }
    }

    /// From now on a wait for bytes is for `bytes` of them, where the kind of connection can do that.
    /// Returns how many bytes the wait is really for.
    pub fn wait_for_bytes(&self, bytes: u32) -> u32 {
        match self {
            ConnectionKind::Socket(socket) => socket.wait_for_bytes(bytes),
        }
    }

    /// How many sent bytes the peer does not have, as far as that is known.
    pub fn unsent(&self) -> u64 {
        match self {
            ConnectionKind::Socket(socket) => socket.unsent(),
        }
    }

    /// Whether the peer has closed its end, or the connection has failed.
    pub fn hung_up(&self) -> io::Result<bool> {
        match self {
            ConnectionKind::Socket(socket) => socket.hung_up(),
        }
    }

    /// Ends the connection in both directions. A second call does no harm.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            ConnectionKind::Socket(socket) => socket.shutdown(),
        }
    }
}

/// Parts that are moved in one direction.
pub(super) trait Directed: IoPart {
    /// To the peer or from it.
    const DIRECTION: Direction;
    /// Moves as many bytes as possible without waiting.
    fn go(kind: &mut ConnectionKind, parts: &[Self], manner: Manner) -> io::Result<usize>;
}

impl Directed for Part<'_> {
    const DIRECTION: Direction = Direction::Send;
    fn go(kind: &mut ConnectionKind, parts: &[Self], manner: Manner) -> io::Result<usize> {
        kind.send(parts, manner)
    }
}

impl Directed for PartMut<'_> {
    const DIRECTION: Direction = Direction::Receive;
    fn go(kind: &mut ConnectionKind, parts: &[Self], _: Manner) -> io::Result<usize> {
        kind.recv(parts)
    }
}

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the peer.
    Send,
    /// From the peer.
    Receive,
}

impl Direction {
    /// The event to wait for when no byte can be moved.
    pub fn interest(self) -> Interest {
        match self {
            Direction::Send => Interest::Write,
            Direction::Receive => Interest::Read,
        }
    }
}
