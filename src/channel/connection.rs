//! One connection: sends and receives bytes, straight from and into guest memory, until all are
//! moved, the peer is gone, a time limit passes or it is cancelled.
//!
//! It neither encodes nor paces. `connect` and `listener` make channels. A [`ConnectionKind`]
//! carries the bytes, and `transfer` moves them. One thread at a time uses a channel: a worker of
//! `migrate`.

use super::cursor::Cursor;
use super::in_flight::InFlight;
use super::io::Io;
use super::kind::{ConnectionKind, Direction};
use super::pacing::Pacer;
use super::parts::{IoPart, Part, PartMut};
use super::socket::Socket;
use super::socket_name::SocketName;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::{Cancel, Deadline, Interest, Recall, Wake};
use crate::units::Bytes;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Counters of a channel.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that this kernel took. They may not have arrived.
    pub sent: Bytes,
    /// Bytes received.
    pub received: Bytes,
    /// Calls of the connection's `send` that moved bytes.
    pub send_calls: u64,
    /// Calls of the connection's `recv` that moved bytes.
    pub recv_calls: u64,
    /// Time spent waiting for room to send, because the link or the peer was slower.
    pub send_waited: Duration,
    /// Time spent waiting for bytes to receive.
    pub recv_waited: Duration,
    /// Time spent waiting for the pacer, which is no part of `send_waited`.
    pub paced: Duration,
}

/// See the file's description.
#[derive(Debug)]
pub struct Channel {
    pub(super) kind: ConnectionKind,
    pub(super) peer: String,
    pub(super) counters: Counters,
    /// A send (a receive) ended in the middle of its parts. The peer would take the next bytes for
    /// the rest of these parts, so only that rest may follow.
    send_broken: bool,
    recv_broken: bool,
    /// How many bytes of its parts the last failed send moved.
    cut_at: u64,
    pub(super) fault: Option<usize>,
    /// What holds sending to a stated bandwidth, if anything does.
    pub(super) pacer: Option<Arc<Pacer>>,
    pub(super) in_flight: InFlight,
    /// Set when the VMM made the connection.
    pub(super) handed_in: Option<SocketName>,
}

impl Channel {
    /// Takes a connected stream socket (TCP, unix, vsock). It is brant's from now on, also after an
    /// error.
    ///
    /// # Errors
    /// `Invalid` when it is no stream socket, or not connected.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Channel::from_fd_after(fd, Bytes(0))
    }

    /// [`from_fd`](Self::from_fd) for a socket from which `received` bytes were read before.
    ///
    /// # Errors
    /// Those of [`from_fd`](Self::from_fd).
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
            pacer: None,
            in_flight: InFlight::default(),
            handed_in: None,
        })
    }

    /// A second channel over the same connection, for a thread that sends a little while another one
    /// receives. Both may send only what goes without waiting, under one lock.
    ///
    /// # Errors
    /// `Kernel` when there is no descriptor for it.
    pub fn twin(&self) -> Result<Channel> {
        let fd = self.kind.duplicate();
        let fd = fd.map_err(|e| Error::os("a second descriptor of a connection", e))?;
        let mut twin = Channel::from_fd(fd)?;
        twin.handed_in = self.handed_in;
        Ok(twin)
    }

    /// From now on nothing is sent before `pacer` grants it, headers and control records included.
    /// Except what completes a record that an error has cut ([`Channel::send_on`]), and what goes
    /// without waiting ([`Channel::try_send`]).
    pub fn set_pacer(&mut self, pacer: Arc<Pacer>) {
        self.pacer = Some(pacer);
    }

    /// The connection's name when the VMM made it and handed it in.
    pub fn handed_in(&self) -> Option<SocketName> {
        self.handed_in
    }

    /// The peer's name in messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// After an error of kind `Memory`: the address that the kernel could not read or write. The
    /// code that made the parts turns it into words.
    pub fn fault(&self) -> Option<usize> {
        self.fault
    }

    /// The counters so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sends all bytes of all parts, in order. When this returns, this kernel has taken them; the
    /// peer may not have received them.
    ///
    /// After an error some of the bytes may have been sent. The position in the stream is unknown
    /// then, and every later send is refused.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout` (the limit, or no byte taken for `io.idle`); `PeerGone`; `Memory`
    /// when the kernel cannot read a part, see [`fault`](Self::fault); `State` after an earlier
    /// error; `Io`.
    pub fn send(&mut self, parts: &[Part<'_>], io: &Io<'_>) -> Result<()> {
        self.send_some(parts, None, io).map(|_| ())
    }

    /// [`send`](Self::send) that ends when `recall` is raised. Returns how many bytes were sent.
    /// The others have to be sent next, from wherever they are by then, by
    /// [`send_rest`](Self::send_rest) or [`send_on`](Self::send_on). Until then every other send is
    /// refused.
    ///
    /// # Errors
    /// Those of [`send`](Self::send).
    pub fn send_unless(&mut self, parts: &[Part<'_>], recall: &Recall, io: &Io<'_>) -> Result<u64> {
        self.send_some(parts, Some(recall), io)
    }

    /// Sends the rest of a recalled send from another place.
    ///
    /// # Errors
    /// Those of [`send`](Self::send). After an error nothing may follow.
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
        self.send_from(Cursor::new(parts), recall, io)
    }

    /// Sends what the cursor has left; how many bytes went.
    pub(super) fn send_from(
        &mut self,
        mut cursor: Cursor<'_, Part<'_>>,
        recall: Option<&Recall>,
        io: &Io<'_>,
    ) -> Result<u64> {
        self.check(Direction::Send)?;
        let result = self.transfer(&mut cursor, io, false, recall);
        self.send_broken = cursor.moved > 0 && !cursor.is_done();
        self.cut_at = cursor.moved;
        result.map(|()| cursor.moved)
    }

    /// How many bytes of its parts a failed or recalled send has sent.
    pub fn cut_at(&self) -> u64 {
        self.cut_at
    }

    /// Goes on with a send of `parts` that a cancel, a limit or a recall ended in the middle, up to
    /// byte `to` of them. Other bytes may follow there.
    ///
    /// # Errors
    /// Those of [`send`](Self::send). After an error nothing may follow.
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
        let (moved, result) = self.send_at_last(&rest, io);
        self.send_broken = result.is_err();
        self.cut_at += moved;
        result
    }

    /// Sends the last bytes of this connection: at once as far as there is room, and the rest
    /// within `patience`. No cap holds them back.
    ///
    /// # Errors
    /// Those of [`send`](Self::send). After an error nothing may follow.
    pub fn send_last(&mut self, bytes: &[u8], patience: Duration) -> Result<()> {
        self.check(Direction::Send)?;
        let io = Io::patient(patience).within(Deadline::after(patience));
        let (moved, result) = self.send_at_last(&[Part::bytes(bytes)], &io);
        self.send_broken = moved > 0 && result.is_err();
        result
    }

    /// Sends `parts` at the end of a migration, which has a tenth of a second in all. So no cap
    /// holds them back. The first call is made whatever the time is: on a busy host this thread may
    /// get a processor only when the limit has passed, and the peer has room all the same. Returns
    /// how many bytes went.
    fn send_at_last(&mut self, parts: &[Part<'_>], io: &Io<'_>) -> (u64, Result<()>) {
        let mut cursor = Cursor::new(parts);
        let result = self.at_once(parts).and_then(|first| {
            cursor.advance(first);
            let pacer = self.pacer.take();
            let result = self.transfer(&mut cursor, io, false, None);
            self.pacer = pacer;
            result
        });
        (cursor.moved, result)
    }

    /// Receives until all parts are full. Set a limit: nothing else ends the wait for a peer that
    /// sends a byte now and then.
    ///
    /// # Errors
    /// Those of [`send`](Self::send); `PeerGone` also when the stream ends before the parts or in
    /// the middle of them.
    pub fn recv_exact(&mut self, parts: &[PartMut<'_>], io: &Io<'_>) -> Result<()> {
        self.recv_exact_of(parts, 0, io)
    }

    /// [`recv_exact`](Self::recv_exact) when the peer has announced `announced` bytes, which begin
    /// with `parts`. See [`recv_announced_unless`](Self::recv_announced_unless).
    ///
    /// # Errors
    /// Those of [`recv_exact`](Self::recv_exact).
    pub fn recv_exact_of(
        &mut self,
        parts: &[PartMut<'_>],
        announced: usize,
        io: &Io<'_>,
    ) -> Result<()> {
        self.check(Direction::Receive)?;
        let mut cursor = Cursor::announced(parts, announced);
        let result = self.transfer(&mut cursor, io, false, None);
        self.recv_broken = result.is_err() && cursor.moved > 0;
        result
    }

    /// Receives the bytes that are there, and waits for at least one (for none if the parts have no
    /// room). Returns how many.
    ///
    /// # Errors
    /// Those of [`recv_exact`](Self::recv_exact).
    pub fn recv_some(&mut self, parts: &[PartMut<'_>], io: &Io<'_>) -> Result<usize> {
        self.recv_some_or(Cursor::new(parts), None, io)
    }

    /// [`recv_some`](Self::recv_some) that returns 0 when `recall` is raised.
    ///
    /// # Errors
    /// Those of [`recv_exact`](Self::recv_exact).
    pub fn recv_some_unless(
        &mut self,
        parts: &[PartMut<'_>],
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<usize> {
        self.recv_some_or(Cursor::new(parts), Some(recall), io)
    }

    /// [`recv_some_unless`](Self::recv_some_unless) when the peer has announced the first
    /// `announced` bytes of `parts`. A wait is for many of these, so that fewer waits are needed. On
    /// a slow link it ends after 10 ms with what is there.
    ///
    /// # Errors
    /// Those of [`recv_exact`](Self::recv_exact).
    pub fn recv_announced_unless(
        &mut self,
        parts: &[PartMut<'_>],
        announced: usize,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<usize> {
        self.recv_some_or(Cursor::announced(parts, announced), Some(recall), io)
    }

    fn recv_some_or(
        &mut self,
        mut cursor: Cursor<'_, PartMut<'_>>,
        recall: Option<&Recall>,
        io: &Io<'_>,
    ) -> Result<usize> {
        self.check(Direction::Receive)?;
        self.transfer(&mut cursor, io, true, recall)?;
        Ok(cursor.moved as usize)
    }

    /// Receives the bytes that are there, without waiting; 0 if there are none.
    ///
    /// # Errors
    /// `PeerGone` at the end of the stream; otherwise those of [`recv_exact`](Self::recv_exact).
    pub fn try_recv(&mut self, parts: &[PartMut<'_>]) -> Result<usize> {
        self.check(Direction::Receive)?;
        self.at_once(parts)
    }

    /// Sends as many of `bytes` as it can without waiting, and returns how many; 0 if none. The
    /// others have to be sent before anything else.
    ///
    /// # Errors
    /// Those of [`send`](Self::send).
    pub fn try_send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.check(Direction::Send)?;
        self.at_once(&[Part::bytes(bytes)])
    }

    /// Waits until there is room to send, or something to receive. The next call may still find
    /// little or nothing.
    ///
    /// # Errors
    /// `Kernel` or `NoMemory` when the wait itself fails.
    pub fn wait(
        &self,
        interest: Interest,
        cancel: Option<&Cancel>,
        until: Deadline,
    ) -> Result<Wake> {
        self.wait_or(interest, None, cancel, until)
    }

    /// [`wait`](Self::wait) that also ends as ready when `recall` is raised.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn wait_or(
        &self,
        interest: Interest,
        recall: Option<&Recall>,
        cancel: Option<&Cancel>,
        until: Deadline,
    ) -> Result<Wake> {
        if interest == Interest::Read {
            self.kind.wait_for_bytes(1);
        }
        self.kind.wait(interest, recall, cancel, until)
    }

    /// How many sent bytes the peer does not have: its kernel (TCP), or the peer itself (a unix
    /// socket). 0 if that is unknown.
    pub fn held(&self) -> u64 {
        self.kind.unsent()
    }

    /// Whether the peer has closed its end, or the connection has failed. Earlier bytes of the peer
    /// may still be there to receive. Does not wait.
    ///
    /// # Errors
    /// `Kernel` when poll fails.
    pub fn peer_hung_up(&self) -> Result<bool> {
        self.kind.hung_up().map_err(|e| Error::os("poll", e))
    }

    /// Ends the connection in both directions. The peer finds the end of the stream after it has
    /// received what was sent. A second call does no harm.
    ///
    /// # Errors
    /// `Kernel`.
    pub fn shutdown(&self) -> Result<()> {
        self.kind.shutdown().map_err(|e| Error::os("shutdown", e))
    }

    /// Refuses a transfer after an earlier one that ended in the middle.
    pub(super) fn check(&self, direction: Direction) -> Result<()> {
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
