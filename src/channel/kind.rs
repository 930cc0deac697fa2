//! The kinds of connection that carry a channel's bytes, and the verbs that each kind has.
//!
//! One kind so far. A second (TLS over a socket, say) is another variant and its own file; what
//! is above, the transfer and the channel, goes by these verbs and never by a descriptor. So a
//! kind may send where it was asked to receive, and wait for something else than was asked for.

use super::parts::{IoPart, Part, PartMut};
use super::socket::Socket;
use crate::error::Result;
use crate::runtime::{wait_ready_or, Cancel, Deadline, Interest, Recall, Wake};
use std::io;

/// See the file's description.
#[derive(Debug)]
pub(super) enum ConnectionKind {
    /// A stream socket, bytes as they are.
    Socket(Socket),
}

impl ConnectionKind {
    /// The peer as messages name it.
    pub fn peer(&self) -> String {
        match self {
            ConnectionKind::Socket(socket) => {
                socket.peer().unwrap_or_else(|| "the peer".to_owned())
            }
        }
    }

    /// Sends what goes now, without waiting; how many bytes. `WouldBlock` when nothing goes.
    pub fn send(&mut self, parts: &[Part<'_>]) -> io::Result<usize> {
        match self {
            ConnectionKind::Socket(socket) => socket.send(parts),
        }
    }

    /// Receives what is there, without waiting; how many bytes, 0 for the end of the stream.
    pub fn recv(&mut self, parts: &[PartMut<'_>]) -> io::Result<usize> {
        match self {
            ConnectionKind::Socket(socket) => socket.recv(parts),
        }
    }

    /// Waits until there is room to send, or something to receive; until `recall` is raised, which
    /// counts as ready too; until cancelled or late.
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

    /// How many bytes of what was sent the peer has not, as far as that is known.
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

    /// Ends the connection in both directions; twice is fine.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            ConnectionKind::Socket(socket) => socket.shutdown(),
        }
    }
}

/// Parts that go in one direction.
pub(super) trait Directed: IoPart {
    /// To the peer or from it.
    const DIRECTION: Direction;
    /// Moves what goes now.
    fn go(kind: &mut ConnectionKind, parts: &[Self]) -> io::Result<usize>;
}

impl Directed for Part<'_> {
    const DIRECTION: Direction = Direction::Send;
    fn go(kind: &mut ConnectionKind, parts: &[Self]) -> io::Result<usize> {
        kind.send(parts)
    }
}

impl Directed for PartMut<'_> {
    const DIRECTION: Direction = Direction::Receive;
    fn go(kind: &mut ConnectionKind, parts: &[Self]) -> io::Result<usize> {
        kind.recv(parts)
    }
}

/// To the peer or from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To it.
    Send,
    /// From it.
    Receive,
}

impl Direction {
    /// What to wait for where nothing goes.
    pub fn interest(self) -> Interest {
        match self {
            Direction::Send => Interest::Write,
            Direction::Receive => Interest::Read,
        }
    }
}
