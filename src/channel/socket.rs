//! One connection: sends and receives bytes over a stream socket, straight
//! from and into guest memory, until all is moved, the peer is gone, time is
//! up or it is cancelled.
//!
//! Not a codec and not a pacer. One thread uses a channel at a time: the
//! workers of `migrate`.

use super::endpoint::Endpoint;
use super::parts::{iovecs, Part, PartMut, Piece};
use crate::error::{Error, Kind, Result};
use crate::runtime::{
    wait_ready, wait_ready_or, Cancel, Deadline, Interest, Limit, Recall, Timeout, Wake,
};
use crate::sys::event::{self, Poll};
use crate::sys::fd::what_is;
use crate::sys::net::{self, Address, PARTS_MAX};
use crate::units::{Bytes, PAGE_SIZE};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The most bytes one system call is given. Against a reader that drains as
/// fast as we fill, one call would go on for as long as it has bytes, and a
/// cancel would wait for it. This much takes a millisecond or two to copy.
const CALL_BYTES: usize = 4 << 20;
/// Parts that are copied to begin a call in the middle of one.
const CUT_PARTS: usize = 64;
/// How long to leave a socket alone that was called ready and moved nothing
/// (TCP short of memory does that): long enough not to spin.
const BACK_OFF: Duration = Duration::from_millis(1);
/// Between two tries to connect to a unix listener whose queue is full: the
/// kernel offers nothing to poll for.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

/// For what, how long, and until what, a transfer may wait.
#[derive(Debug, Clone, Copy)]
pub struct Io<'a> {
    /// Ends it with `Cancelled`.
    pub cancel: Option<&'a Cancel>,
    /// Ends it with `Timeout`, however well it goes.
    pub limit: Limit,
    /// Ends it with `Timeout` when not one byte has moved for this long.
    pub idle: Timeout,
    /// What is sent or waited for, for messages; "" for bytes of no name.
    pub what: &'static str,
}

impl<'a> Io<'a> {
    /// No cancel and no limit but that on idleness.
    pub fn patient(idle: impl Into<Timeout>) -> Io<'static> {
        Io {
            cancel: None,
            limit: Limit::never(),
            idle: idle.into(),
            what: "",
        }
    }

    /// Until `cancel`, without a limit but that on idleness.
    pub fn until(cancel: &'a Cancel, idle: impl Into<Timeout>) -> Io<'a> {
        Io {
            cancel: Some(cancel),
            ..Io::patient(idle)
        }
    }

    /// The same, no longer than to `limit`.
    #[must_use]
    pub fn within(self, limit: impl Into<Limit>) -> Io<'a> {
        Io {
            limit: self.limit.earlier(limit),
            ..self
        }
    }

    /// The same, for `what`.
    #[must_use]
    pub fn of(self, what: &'static str) -> Io<'a> {
        Io { what, ..self }
    }
}

/// What a channel has done so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes the kernel took (not: bytes that arrived).
    pub sent: Bytes,
    /// Bytes received.
    pub received: Bytes,
    /// `sendmsg` calls that moved bytes.
    pub send_calls: u64,
    /// `recvmsg` calls that moved bytes.
    pub recv_calls: u64,
    /// Time spent waiting for room to send: the link, or the peer, was the slower.
    pub send_waited: Duration,
    /// Time spent waiting for bytes to receive.
    pub recv_waited: Duration,
}

/// A connected stream socket.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    peer: String,
    counters: Counters,
    /// A send (a receive) ended in the middle of its parts. What is sent (or
    /// received) next would be taken for the rest of them, so nothing is.
    send_broken: bool,
    recv_broken: bool,
    fault: Option<usize>,
}

impl Channel {
    /// Connects to `endpoint`. Refused is refused: whether to try again is the
    /// caller's to decide. (A unix listener with a full queue is waited for.)
    ///
    /// # Errors
    /// `Io` with the address when the connection cannot be made, `Timeout`,
    /// `Cancelled`, `Invalid` for port 0.
    pub fn connect(endpoint: &Endpoint, cancel: &Cancel, limit: impl Into<Limit>) -> Result<Self> {
        let limit = limit.into();
        if matches!(endpoint, Endpoint::Tcp(at) if at.port() == 0) {
            let message = format!("connecting to {endpoint}: port 0 cannot be connected to");
            return Err(Error::new(Kind::Invalid, message));
        }
        let address = endpoint.address();
        let fd = net::stream_socket(&address)
            .map_err(|e| Error::os(format_args!("a socket for {endpoint}"), e))?;
        let failed = |e: io::Error| {
            let kind = match e.raw_os_error() {
                Some(libc::ENOMEM) => Kind::NoMemory,
                _ => Kind::Io,
            };
            Error::new(kind, format!("connecting to {endpoint}: {e}"))
        };
        let cancelled = || {
            let message = format!("connecting to {endpoint}: cancelled");
            Error::new(Kind::Cancelled, message)
        };
        let late = || {
            let message = format!("connecting to {endpoint}: {limit} ran out");
            Error::new(Kind::Timeout, message)
        };
        loop {
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            if limit.expired() {
                return Err(late());
            }
            let Err(e) = net::connect(fd.as_fd(), &address) else {
                break;
            };
            match e.raw_os_error() {
                // A signal does not stop it: connect(2), EINTR is EINPROGRESS.
                Some(libc::EINPROGRESS | libc::EINTR) => {
                    match wait_ready(fd.as_fd(), Interest::Write, Some(cancel), limit.at())? {
                        Wake::Ready => {}
                        Wake::Cancelled => return Err(cancelled()),
                        Wake::TimedOut => return Err(late()),
                    }
                    match net::take_error(fd.as_fd()).map_err(failed)? {
                        Some(e) => return Err(failed(e)),
                        None => break,
                    }
                }
                Some(libc::EAGAIN) if matches!(address, Address::Unix(_)) => {
                    let left = limit.at().remaining().unwrap_or(CONNECT_RETRY);
                    cancel.wait(left.min(CONNECT_RETRY));
                }
                _ => return Err(failed(e)),
            }
        }
        // TCP lets a socket connect to itself when it is given, by chance, the
        // very port it calls and nobody listens there.
        if let Address::Inet(_) = address {
            let local = net::local_address(fd.as_fd()).map_err(failed)?;
            let peer = net::peer_address(fd.as_fd()).map_err(failed)?;
            if local == peer {
                return Err(failed(io::Error::from_raw_os_error(libc::ECONNREFUSED)));
            }
        }
        Channel::from_fd(fd).map_err(|e| e.context(format_args!("connecting to {endpoint}")))
    }

    /// Takes a connected stream socket (TCP, unix, vsock). It is ours from now
    /// on, also on failure. Sets it non-blocking and closed on exec, and for
    /// TCP no delay and keep-alive. Buffer sizes are left alone: setting one
    /// ends the kernel's own tuning and caps it lower.
    ///
    /// # Errors
    /// `Invalid` when it is not a stream socket or not connected, with what it is.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
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
            Err(e) if e.raw_os_error() == Some(libc::ENOTSOCK) => {
                return Err(invalid(what_is(fd.as_fd())));
            }
            Err(e) => return Err(failed(e)),
        }
        let peer = match net::peer_address(fd.as_fd()) {
            Ok(Address::Inet(address)) => format!("tcp:{address}"),
            Ok(Address::Unix(path)) => format!("unix:{}", path.display()),
            Ok(Address::Unnamed) => "the peer".to_owned(),
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
        };
        net::set_nonblocking_cloexec(fd.as_fd()).map_err(failed)?;
        let protocol = net::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL);
        if protocol.is_ok_and(|p| p == libc::IPPROTO_TCP) {
            net::set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).map_err(failed)?;
            net::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).map_err(failed)?;
        }
        Ok(Channel {
            fd,
            peer,
            counters: Counters::default(),
            send_broken: false,
            recv_broken: false,
            fault: None,
        })
    }

    /// The descriptor, for poll and for reading options.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    /// The same of a socket from which `received` bytes were read before.
    ///
    /// # Errors
    /// As for [`from_fd`](Self::from_fd).
    pub fn from_fd_after(fd: OwnedFd, received: Bytes) -> Result<Self> {
        let mut channel = Channel::from_fd(fd)?;
        channel.counters.received = received;
        Ok(channel)
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
        if self.send_broken {
            return Err(self.broken("send"));
        }
        let mut cursor = Cursor::new(parts);
        let result = self.transfer(&mut cursor, io, Direction::Send, send, false, None);
        self.send_broken = result.is_err() && cursor.moved > 0;
        result
    }

    /// The same until `recall` is raised: how many bytes went. The rest of them has to be sent
    /// next, from wherever it is by then.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_unless(&mut self, parts: &[Part<'_>], recall: &Recall, io: &Io<'_>) -> Result<u64> {
        if self.send_broken {
            return Err(self.broken("send"));
        }
        let mut cursor = Cursor::new(parts);
        let recall = Some(recall);
        let result = self.transfer(&mut cursor, io, Direction::Send, send, false, recall);
        self.send_broken = result.is_err() && cursor.moved > 0;
        result.map(|()| cursor.moved)
    }

    /// Receives until all parts are full. A peer that sends a byte now and
    /// then is ended by the limit only: give one.
    ///
    /// # Errors
    /// As for [`send`](Self::send); `PeerGone` also when the stream ends
    /// before, or in the middle of, the parts.
    pub fn recv_exact(&mut self, parts: &[PartMut<'_>], io: &Io<'_>) -> Result<()> {
        if self.recv_broken {
            return Err(self.broken("receive"));
        }
        let mut cursor = Cursor::new(parts);
        let result = self.transfer(&mut cursor, io, Direction::Receive, recv, false, None);
        self.recv_broken = result.is_err() && cursor.moved > 0;
        result
    }

    /// Receives what there is, at least one byte (none for parts without
    /// room), and returns how many.
    ///
    /// # Errors
    /// As for [`recv_exact`](Self::recv_exact).
    pub fn recv_some(&mut self, parts: &[PartMut<'_>], io: &Io<'_>) -> Result<usize> {
        if self.recv_broken {
            return Err(self.broken("receive"));
        }
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
        if self.recv_broken {
            return Err(self.broken("receive"));
        }
        self.recv_some_or(parts, Some(recall), io)
    }

    fn recv_some_or(
        &mut self,
        parts: &[PartMut<'_>],
        recall: Option<&Recall>,
        io: &Io<'_>,
    ) -> Result<usize> {
        let mut cursor = Cursor::new(parts);
        self.transfer(&mut cursor, io, Direction::Receive, recv, true, recall)?;
        Ok(cursor.moved as usize)
    }

    /// Receives what is there now, without waiting; 0 when there is nothing.
    ///
    /// # Errors
    /// `PeerGone` at the end of the stream; else as for
    /// [`recv_exact`](Self::recv_exact).
    pub fn try_recv(&mut self, parts: &[PartMut<'_>]) -> Result<usize> {
        if self.recv_broken {
            return Err(self.broken("receive"));
        }
        let mut cursor = Cursor::new(parts);
        while !cursor.is_done() {
            let mut cut = [PartMut::EMPTY; CUT_PARTS];
            match recv(self.fd.as_fd(), cursor.window(&mut cut)) {
                Ok(0) => return Err(self.closed(&cursor, &at_once())),
                Ok(n) => {
                    self.count(Direction::Receive, n);
                    return Ok(n);
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(0),
                    Some(libc::EINTR) => {}
                    Some(libc::EFAULT) if cursor.narrow() => {}
                    _ => return Err(self.failed(Direction::Receive, &cursor, &at_once(), e)),
                },
            }
        }
        Ok(0)
    }

    /// Sends what the socket takes now of `bytes`, without waiting, and returns how many; 0 when
    /// it takes nothing. What is left has to be sent before anything else.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn try_send(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.send_broken {
            return Err(self.broken("send"));
        }
        let parts = [Part::bytes(bytes)];
        let cursor = Cursor::new(&parts);
        loop {
            match send(self.fd.as_fd(), &parts) {
                Ok(n) => {
                    self.count(Direction::Send, n);
                    return Ok(n);
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(0),
                    Some(libc::EINTR) => {}
                    _ => return Err(self.failed(Direction::Send, &cursor, &at_once(), e)),
                },
            }
        }
    }

    /// How many bytes of what was sent the peer has not: its kernel (TCP), or itself (a unix
    /// socket). 0 where the kernel does not tell.
    pub fn held(&self) -> u64 {
        net::unsent(self.fd.as_fd()).unwrap_or(0)
    }

    /// Whether the peer has closed its end, or the connection has failed.
    /// Bytes that it sent before may still be there to receive. Does not wait.
    ///
    /// # Errors
    /// `Kernel` when poll fails.
    pub fn peer_hung_up(&self) -> Result<bool> {
        let mut polls = [Poll::new(self.fd.as_fd(), libc::POLLRDHUP)];
        loop {
            match event::poll(&mut polls, Some(Duration::ZERO)) {
                Ok(_) => return Ok(polls[0].found() & event::HUNG_UP != 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::os("poll", e)),
            }
        }
    }

    /// Ends the connection in both directions: the peer finds the end of the
    /// stream once it has received what was sent. Twice is fine.
    ///
    /// # Errors
    /// `Kernel`.
    pub fn shutdown(&self) -> Result<()> {
        match net::shutdown(self.fd.as_fd()) {
            Err(e) if e.raw_os_error() != Some(libc::ENOTCONN) => Err(Error::os("shutdown", e)),
            _ => Ok(()),
        }
    }

    fn broken(&self, what: &str) -> Error {
        let message = format!(
            "{what} on the channel to {}: an earlier one ended in the middle, nothing can follow it",
            self.peer
        );
        Error::new(Kind::State, message)
    }

    /// Moves the cursor's bytes by `call`; `some`: returns once any have moved. Returns early,
    /// too, when `recall` is raised.
    fn transfer<P: Piece>(
        &mut self,
        cursor: &mut Cursor<'_, P>,
        io: &Io<'_>,
        direction: Direction,
        call: fn(BorrowedFd<'_>, &[P]) -> io::Result<usize>,
        some: bool,
        recall: Option<&Recall>,
    ) -> Result<()> {
        let mut idle_until = None;
        let mut woken = false;
        while !cursor.is_done() {
            // Also between calls that succeed: a fast link never makes us wait.
            if io.cancel.is_some_and(Cancel::is_cancelled) {
                return Err(self.stopped(Kind::Cancelled, direction, cursor, io, "cancelled"));
            }
            if io.limit.expired() {
                let why = format!("{} ran out", io.limit);
                return Err(self.stopped(Kind::Timeout, direction, cursor, io, &why));
            }
            if recall.is_some_and(Recall::is_raised) {
                return Ok(());
            }
            let mut cut = [P::EMPTY; CUT_PARTS];
            match call(self.fd.as_fd(), cursor.window(&mut cut)) {
                Ok(0) if direction == Direction::Receive => {
                    return Err(self.closed(cursor, io));
                }
                Ok(n) if n > 0 => {
                    cursor.advance(n);
                    self.count(direction, n);
                    if some {
                        return Ok(());
                    }
                    (idle_until, woken) = (None, false);
                    continue;
                }
                Ok(_) => {}
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => {}
                    Some(libc::EFAULT) if cursor.narrow() => continue,
                    _ => return Err(self.failed(direction, cursor, io, e)),
                },
            }
            // The limit on idleness runs from the first wait after a byte moved.
            let idle = *idle_until.get_or_insert_with(|| io.idle.from_now());
            if idle.expired() {
                let why = match direction {
                    Direction::Send => format!("{idle} ran out: the peer took nothing"),
                    Direction::Receive => format!("{idle} ran out: the peer sent nothing"),
                };
                return Err(self.stopped(Kind::Timeout, direction, cursor, io, &why));
            }
            let until = io.limit.earlier(idle).at();
            let start = Instant::now();
            let wake = if woken {
                let pause = Deadline::after(BACK_OFF).earlier(until);
                pause_until(io.cancel, pause)?
            } else {
                let other = recall.map(Recall::fd);
                wait_ready_or(
                    self.fd.as_fd(),
                    direction.interest(),
                    other,
                    io.cancel,
                    until,
                )?
            };
            self.waited(direction, start.elapsed());
            // After a pause the socket is tried, then waited for again.
            woken = !woken && wake == Wake::Ready;
        }
        Ok(())
    }

    fn count(&mut self, direction: Direction, bytes: usize) {
        let counters = &mut self.counters;
        match direction {
            Direction::Send => {
                counters.sent += Bytes(bytes as u64);
                counters.send_calls += 1;
            }
            Direction::Receive => {
                counters.received += Bytes(bytes as u64);
                counters.recv_calls += 1;
            }
        }
    }

    fn waited(&mut self, direction: Direction, time: Duration) {
        match direction {
            Direction::Send => self.counters.send_waited += time,
            Direction::Receive => self.counters.recv_waited += time,
        }
    }

    #[cold]
    fn closed<P: Piece>(&self, at: &Cursor<'_, P>, io: &Io<'_>) -> Error {
        let why = "the peer closed the connection";
        self.stopped(Kind::PeerGone, Direction::Receive, at, io, why)
    }

    #[cold]
    fn stopped<P: Piece>(
        &self,
        kind: Kind,
        to: Direction,
        at: &Cursor<'_, P>,
        io: &Io<'_>,
        why: &str,
    ) -> Error {
        let mut message = format!("{}: {why}", self.doing(to, io.what));
        if at.moved > 0 {
            message += &format!(" ({} of {} bytes moved)", at.moved, at.total());
        }
        Error::new(kind, message)
    }

    /// What is being done, for messages.
    fn doing(&self, to: Direction, what: &str) -> String {
        match (to, what) {
            (Direction::Send, "") => format!("sending to {}", self.peer),
            (Direction::Send, what) => format!("sending {what} to {}", self.peer),
            (Direction::Receive, "") => format!("receiving from {}", self.peer),
            (Direction::Receive, what) => format!("waiting for {what} from {}", self.peer),
        }
    }

    #[cold]
    fn failed<P: Piece>(
        &mut self,
        to: Direction,
        at: &Cursor<'_, P>,
        io: &Io<'_>,
        error: io::Error,
    ) -> Error {
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => {
                let why = format!("the peer is gone: {error}");
                self.stopped(Kind::PeerGone, to, at, io, &why)
            }
            Some(libc::EFAULT) => {
                let access = match to {
                    Direction::Send => "read",
                    Direction::Receive => "written",
                };
                self.fault = Some(at.address());
                let why = format!("memory at {:#x} cannot be {access}", at.address());
                self.stopped(Kind::Memory, to, at, io, &why)
            }
            // Keep-alive gave up, or a router on the way did.
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
                self.stopped(Kind::Io, to, at, io, &error.to_string())
            }
            _ => Error::os(self.doing(to, io.what), error),
        }
    }
}

/// Sends what the socket takes now.
pub fn send(fd: BorrowedFd<'_>, parts: &[Part<'_>]) -> io::Result<usize> {
    // SAFETY: what a part names was promised when it was made.
    unsafe { net::send(fd, iovecs(parts)) }
}

/// Receives what is there now.
pub fn recv(fd: BorrowedFd<'_>, parts: &[PartMut<'_>]) -> io::Result<usize> {
    // SAFETY: as above.
    unsafe { net::recv(fd, iovecs(parts)) }
}

/// Of a transfer that does not wait.
fn at_once() -> Io<'static> {
    Io::patient(Duration::ZERO)
}

/// Waits for `pause` to pass, or the cancel. A pause that passes is `Ready`.
fn pause_until(cancel: Option<&Cancel>, pause: Deadline) -> Result<Wake> {
    let left = pause.remaining().unwrap_or(BACK_OFF);
    match cancel {
        Some(cancel) if cancel.wait(left) => Ok(Wake::Cancelled),
        Some(_) => Ok(Wake::Ready),
        None => {
            std::thread::sleep(left);
            Ok(Wake::Ready)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Send,
    Receive,
}

impl Direction {
    fn interest(self) -> Interest {
        match self {
            Direction::Send => Interest::Write,
            Direction::Receive => Interest::Read,
        }
    }
}

/// How far a list of parts has been moved.
struct Cursor<'p, P> {
    /// What is left; the first is not moved entirely.
    parts: &'p [P],
    /// Bytes of the first part that are moved.
    offset: usize,
    /// Bytes moved.
    moved: u64,
    /// A part could not be read or written: go page by page to find which.
    narrow: bool,
}

impl<'p, P: Piece> Cursor<'p, P> {
    fn new(parts: &'p [P]) -> Self {
        let mut cursor = Cursor {
            parts,
            offset: 0,
            moved: 0,
            narrow: false,
        };
        cursor.advance(0);
        cursor
    }

    fn is_done(&self) -> bool {
        self.parts.is_empty()
    }

    /// All bytes, moved and left.
    fn total(&self) -> u64 {
        let left: u64 = self.parts.iter().map(|p| p.len() as u64).sum();
        self.moved + left - self.offset as u64
    }

    /// The address of the next byte.
    fn address(&self) -> usize {
        self.parts
            .first()
            .map_or(0, |p| p.address().wrapping_add(self.offset))
    }

    /// Moves on by `bytes`, and over parts that are done or empty.
    fn advance(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        self.offset += bytes;
        while let [first, rest @ ..] = self.parts {
            if self.offset < first.len() {
                return;
            }
            self.offset -= first.len();
            self.parts = rest;
        }
        self.offset = 0;
    }

    /// Goes page by page from here on. False if it already did.
    fn narrow(&mut self) -> bool {
        !std::mem::replace(&mut self.narrow, true)
    }

    /// The parts of the next call: as they are, where it begins at the start
    /// of one; else copied to `cut`, whose first begins in the middle.
    fn window<'s>(&self, cut: &'s mut [P; CUT_PARTS]) -> &'s [P]
    where
        'p: 's,
    {
        let Some(first) = self.parts.first() else {
            return &[];
        };
        if self.narrow {
            let page = PAGE_SIZE as usize;
            cut[0] = first.cut(self.offset, page - self.address() % page);
            return &cut[..1];
        }
        let mut bytes = 0usize;
        if self.offset == 0 && first.len() <= CALL_BYTES {
            let fits = self.parts.iter().take(PARTS_MAX).take_while(|p| {
                bytes = bytes.saturating_add(p.len());
                bytes <= CALL_BYTES
            });
            return &self.parts[..fits.count()];
        }
        let mut offset = self.offset;
        let mut count = 0;
        for (to, part) in cut.iter_mut().zip(self.parts) {
            *to = part.cut(offset, CALL_BYTES - bytes);
            (bytes, offset, count) = (bytes + to.len(), 0, count + 1);
            if bytes == CALL_BYTES {
                break;
            }
        }
        &cut[..count]
    }
}

#[cfg(test)]
mod tests;
