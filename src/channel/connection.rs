//! One connection: sends and receives bytes, straight from and into guest memory, until all is
//! moved, the peer is gone, time is up or it is cancelled.
//!
//! Not a codec and not a pacer. `connect` and `listener` make channels. A [`ConnectionKind`] carries
//! the bytes, and `transfer` moves them. One thread uses a channel at a time: the workers of
//! `migrate`.

use super::cursor::Cursor;
use super::io::Io;
use super::kind::{ConnectionKind, Direction};
use super::parts::{IoPart, Part, PartMut};
use super::socket::Socket;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::{Cancel, Deadline, Interest, Recall, Wake};
use crate::units::Bytes;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What a channel has done so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes the kernel took (not: bytes that arrived).
    pub sent: Bytes,
    /// Bytes received.
    pub received: Bytes,
    /// Calls of the connection's `send` that moved bytes.
    pub send_calls: u64,
    /// Calls of the connection's `recv` that moved bytes.
    pub recv_calls: u64,
    /// Time spent waiting for room to send: the link, or the peer, was the slower.
    pub send_waited: Duration,
    /// Time spent waiting for bytes to receive.
    pub recv_waited: Duration,
}

/// See the file's description.
#[derive(Debug)]
pub struct Channel {
    pub(super) kind: ConnectionKind,
    pub(super) peer: String,
    pub(super) counters: Counters,
    /// A send (a receive) ended in the middle of its parts. What is sent (or
    /// received) next would be taken for the rest of them, so nothing is but that rest.
    send_broken: bool,
    recv_broken: bool,
    /// How many bytes of its parts the last send moved that failed.
    cut_at: u64,
    pub(super) fault: Option<usize>,
}

impl Channel {
    /// Takes a connected stream socket (TCP, unix, vsock). It is ours from now
    /// on, also on failure.
    ///
    /// # Errors
    /// `Invalid` when it is not a stream socket or not connected.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Channel::from_fd_after(fd, Bytes(0))
    }

    /// The same of a socket from which `received` bytes were read before.
    ///
    /// # Errors
    /// As for [`from_fd`](Self::from_fd).
    pub fn from_fd_after(fd: OwnedFd, received: Bytes) -> Result<Self> {
        let kind = ConnectionKind::Socket(Socket::new(fd)?);
        Ok(Channel {
            peer: kind.peer(),
            kind,
            counters: Counters {
                received,
                ..Counters::default()
            },
            send_broken: false,
            recv_broken: false,
            cut_at: 0,
            fault: None,
        })
    }

    /// The peer as messages name it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// After an error of kind `Memory`: the address that the kernel could not read from, or
    /// write to. Whoever knows the parts makes words of it.
    pub fn fault(&self) -> Option<usize> {
        self.fault
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sends all bytes of all parts, in order. Sent is taken by this kernel,
    /// not received by the peer.
    ///
    /// After an error some of the bytes may be gone. The stream has then no
    /// known position and every later send is refused.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout` (the limit, or nothing taken for `io.idle`);
    /// `PeerGone`; `Memory` where the kernel cannot read a part, see
    /// [`fault`](Self::fault); `State` after an earlier error; `Io`.
    pub fn send(&mut self, parts: &[Part<'_>], io: &Io<'_>) -> Result<()> {
        self.send_some(parts, None, io).map(|_| ())
    }

    /// The same until `recall` is raised: how many bytes went. The rest of them has to be sent
    /// next, from wherever it is by then, by [`send_rest`](Self::send_rest) or
    /// [`send_on`](Self::send_on): until then every other send is refused.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_unless(&mut self, parts: &[Part<'_>], recall: &Recall, io: &Io<'_>) -> Result<u64> {
        self.send_some(parts, Some(recall), io)
    }

    /// Sends the rest of what a recalled send was given, from another place.
    ///
    /// # Errors
    /// As for [`send`](Self::send); then nothing may follow.
    pub fn send_rest(&mut self, rest: &[Part<'_>], io: &Io<'_>) -> Result<()> {
        let mut cursor = Cursor::new(rest);
        let result = self.transfer(&mut cursor, io, false, None);
        self.send_broken = result.is_err();
        self.cut_at = cursor.moved;
        result
    }

    fn send_some(
        &mut self,
        parts: &[Part<'_>],
        recall: Option<&Recall>,
        io: &Io<'_>,
    ) -> Result<u64> {
        self.check(Direction::Send)?;
        let mut cursor = Cursor::new(parts);
        let result = self.transfer(&mut cursor, io, false, recall);
        self.send_broken = cursor.moved > 0 && !cursor.is_done();
        self.cut_at = cursor.moved;
        result.map(|()| cursor.moved)
    }

    /// After a send that failed or was recalled: how many bytes of its parts went.
    pub fn cut_at(&self) -> u64 {
        self.cut_at
    }

    /// After a send of `parts` that a cancel, a limit or a recall ended in the middle: sends on, up to
    /// byte `to` of them. There something else may follow.
    ///
    /// # Errors
    /// As for [`send`](Self::send); then nothing may follow.
    pub fn send_on(&mut self, parts: &[Part<'_>], to: u64, io: &Io<'_>) -> Result<()> {
        let mut rest = Vec::new();
        let mut at = 0;
        for part in parts {
            let end = at + part.len() as u64;
            let (first, last) = (self.cut_at.max(at), to.min(end));
            if first < last {
                let piece = part.cut((first - at) as usize, (last - first) as usize);
                fallible::push(&mut rest, piece, "the rest of a record")?;
            }
            at = end;
        }
        let mut cursor = Cursor::new(&rest);
        let result = self.transfer(&mut cursor, io, false, None);
        self.send_broken = result.is_err();
        self.cut_at += cursor.moved;
        result
    }

    /// Receives until all parts are full. A peer that sends a byte now and
    /// then is ended by the limit only: give one.
    ///
    /// # Errors
    /// As for [`send`](Self::send); `PeerGone` also when the stream ends
    /// before, or in the middle of, the parts.
    pub fn recv_exact(&mut self, parts: &[PartMut<'_>], io: &Io<'_>) -> Result<()> {
        self.check(Direction::Receive)?;
        let mut cursor = Cursor::new(parts);
        let result = self.transfer(&mut cursor, io, false, None);
        self.recv_broken = result.is_err() && cursor.moved > 0;
        result
    }

    /// Receives what there is, at least one byte (none for parts without
    /// room), and returns how many.
    ///
    /// # Errors
    /// As for [`recv_exact`](Self::recv_exact).
    pub fn recv_some(&mut self, parts: &[PartMut<'_>], io: &Io<'_>) -> Result<usize> {
        self.recv_some_or(parts, None, io)
    }

    /// The same until `recall` is raised: 0 then.
    ///
    /// # Errors
    /// As for [`recv_exact`](Self::recv_exact).
    pub fn recv_some_unless(
        &mut self,
        parts: &[PartMut<'_>],
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<usize> {
        self.recv_some_or(parts, Some(recall), io)
    }

    fn recv_some_or(
        &mut self,
        parts: &[PartMut<'_>],
        recall: Option<&Recall>,
        io: &Io<'_>,
    ) -> Result<usize> {
        self.check(Direction::Receive)?;
        let mut cursor = Cursor::new(parts);
        self.transfer(&mut cursor, io, true, recall)?;
        Ok(cursor.moved as usize)
    }

    /// Receives what is there now, without waiting; 0 when there is nothing.
    ///
    /// # Errors
    /// `PeerGone` at the end of the stream; else as for
    /// [`recv_exact`](Self::recv_exact).
    pub fn try_recv(&mut self, parts: &[PartMut<'_>]) -> Result<usize> {
        self.check(Direction::Receive)?;
        self.at_once(parts)
    }

    /// Sends what goes now of `bytes`, without waiting, and returns how many; 0 when
    /// nothing goes. What is left has to be sent before anything else.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn try_send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.check(Direction::Send)?;
        self.at_once(&[Part::bytes(bytes)])
    }

    /// Waits until there is room to send, or something to receive. Either may turn out to be
    /// little, or nothing: try.
    ///
    /// # Errors
    /// `Kernel` or `NoMemory` when it cannot be waited.
    pub fn wait(
        &self,
        interest: Interest,
        cancel: Option<&Cancel>,
        until: Deadline,
    ) -> Result<Wake> {
        self.kind.wait(interest, None, cancel, until)
    }

    /// How many bytes of what was sent the peer has not: its kernel (TCP), or itself (a unix
    /// socket). 0 where that is not known.
    pub fn held(&self) -> u64 {
        self.kind.unsent()
    }

    /// Whether the peer has closed its end, or the connection has failed.
    /// Bytes that it sent before may still be there to receive. Does not wait.
    ///
    /// # Errors
    /// `Kernel` when poll fails.
    pub fn peer_hung_up(&self) -> Result<bool> {
        self.kind.hung_up().map_err(|e| Error::os("poll", e))
    }

    /// Ends the connection in both directions: the peer finds the end of the
    /// stream once it has received what was sent. Twice is fine.
    ///
    /// # Errors
    /// `Kernel`.
    pub fn shutdown(&self) -> Result<()> {
        self.kind.shutdown().map_err(|e| Error::os("shutdown", e))
    }

    /// Refuses to go on where an earlier transfer ended in the middle.
    fn check(&self, direction: Direction) -> Result<()> {
        let (broken, what) = match direction {
            Direction::Send => (self.send_broken, "send"),
            Direction::Receive => (self.recv_broken, "receive"),
        };
        if !broken {
            return Ok(());
        }
        let message = format!(
            "{what} on the channel to {}: an earlier one ended in the middle, nothing can follow it",
            self.peer
        );
        Err(Error::new(Kind::State, message))
    }
}
