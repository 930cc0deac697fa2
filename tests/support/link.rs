//! A link between two machines: with a rate, a delay and a buffer in each direction. All connections
//! through it share it.
//!
//! A byte waits in the buffer until the link is free, takes `1 / rate` to leave it, and arrives
//! `delay` later. A full buffer takes nothing, so the sender waits. Order, ends and errors of each
//! connection are kept. One thread serves all connections. It sleeps until a socket or a time wakes
//! it. Tests and benchmarks use this file; it knows nothing of brant.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The properties of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Bytes a second; `None`: as fast as the machine.
    pub rate: Option<u64>,
    /// The time from a byte's leaving the buffer to its arrival.
    pub delay: Duration,
    /// Bytes that wait for the link at most, over all connections. At least one piece of
    /// [`PIECE_TIME`] waits, however small this is.
    pub buffer: usize,
}

impl Way {
    /// No limit and no delay.
    pub const OPEN: Way = Way {
        rate: None,
        delay: Duration::ZERO,
        buffer: 1 << 20,
    };
}

/// Bytes are passed on in pieces that take this long on the link.
pub const PIECE_TIME: Duration = Duration::from_millis(2);
/// The longest piece.
const PIECE: usize = 64 << 10;
/// As many bytes may be between the buffer and their receiver, on one connection. A receiver that
/// reads nothing holds its sender up.
const UNDERWAY: usize = 64 << 20;

/// Bytes on their way on one connection.
#[derive(Debug)]
struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    /// How many of them were delivered.
    done: usize,
}

/// One direction of one connection.
#[derive(Debug, Default)]
struct Stream {
    underway: VecDeque<Piece>,
    bytes: usize,
    /// The sender has ended the stream. The receiver learns it after the last byte, at this time.
    ends: Option<Instant>,
    /// The receiver was told of the end, or is gone.
    over: bool,
}

/// One direction of the link.
#[derive(Debug)]
struct Direction {
    way: Way,
    /// When the last byte in the buffer will have left it.
    free_at: Instant,
    /// When each piece in the buffer will have left it, and its length.
    waiting: VecDeque<(Instant, usize)>,
    held: usize,
    carried: u64,
    most_held: usize,
}

impl Direction {
    fn new(way: Way) -> Self {
        Direction {
            way,
            free_at: Instant::now(),
            waiting: VecDeque::new(),
            held: 0,
            carried: 0,
            most_held: 0,
        }
    }

    fn piece(&self) -> usize {
        let by_rate = |rate: u64| (rate as f64 * PIECE_TIME.as_secs_f64()) as usize;
        self.way.rate.map_or(PIECE, by_rate).clamp(64, PIECE)
    }

    /// How many bytes the buffer takes now.
    fn room(&mut self, now: Instant) -> usize {
        while self
            .waiting
            .front()
            .is_some_and(|(leaves, _)| *leaves <= now)
        {
            self.held -= self.waiting.pop_front().map_or(0, |(_, length)| length);
        }
        let piece = self.piece();
        match self.held {
            0 => piece,
            held => self.way.buffer.saturating_sub(held).min(piece),
        }
    }

    /// When the buffer will next have room. `None`: it has.
    fn has_room_at(&self) -> Option<Instant> {
        let full = self.held > 0 && self.held >= self.way.buffer;
        self.waiting
            .front()
            .filter(|_| full)
            .map(|(leaves, _)| *leaves)
    }

    /// Takes `length` bytes. Returns when they arrive.
    fn take(&mut self, now: Instant, length: usize) -> Instant {
        let time = |rate: u64| Duration::from_secs_f64(length as f64 / rate as f64);
        let leaves = self.free_at.max(now) + self.way.rate.map_or(Duration::ZERO, time);
        self.free_at = leaves;
        self.waiting.push_back((leaves, length));
        self.held += length;
        self.most_held = self.most_held.max(self.held);
        self.carried += length as u64;
        leaves + self.way.delay
    }
}

/// An end of a connection.
#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Unix(socket) => socket.read(bytes),
            Socket::Tcp(socket) => socket.read(bytes),
        }
    }
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Socket::Unix(socket) => socket.write(bytes),
            Socket::Tcp(socket) => socket.write(bytes),
        }
    }
    fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Socket::Unix(socket) => socket.shutdown(how),
            Socket::Tcp(socket) => socket.shutdown(how),
        };
    }
    fn nonblocking(&self) {
        match self {
            Socket::Unix(socket) => socket.set_nonblocking(true).unwrap(),
            Socket::Tcp(socket) => socket.set_nonblocking(true).unwrap(),
        }
    }
    /// Has the kernel hold as little as it can, so that the link's own buffer is the one that counts.
    fn hold_little(&self) {
        set_option(self.fd(), libc::SO_SNDBUF, 32 << 10);
        set_option(self.fd(), libc::SO_RCVBUF, 32 << 10);
    }
}

fn set_option(fd: BorrowedFd<'_>, name: libc::c_int, value: libc::c_int) {
    // SAFETY: passes one int, with its size.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// One connection: the ends at the source's and at the destination's side, and both streams.
#[derive(Debug)]
struct Connection {
    ends: [Socket; 2],
    streams: [Stream; 2],
}

impl Connection {
    fn is_over(&self) -> bool {
        self.streams.iter().all(|stream| stream.over)
    }
}

/// What the link's thread and its owner share.
#[derive(Debug)]
struct State {
    /// To the destination, and back.
    directions: [Direction; 2],
    connections: Vec<Connection>,
    /// Accepts connections that are to go on to that address.
    listener: Option<(TcpListener, SocketAddr)>,
    stopped: bool,
    ended: bool,
    /// How often the thread woke up.
    wakes: u64,
}

/// See the file's description. Its thread ends when it is dropped, and with it every connection.
pub struct Link {
    state: Arc<Mutex<State>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

impl Link {
    /// A link with these properties to the destination, and these back.
    pub fn new(there: Way, back: Way) -> Link {
        let state = Arc::new(Mutex::new(State {
            directions: [Direction::new(there), Direction::new(back)],
            connections: Vec::new(),
            listener: None,
            stopped: false,
            ended: false,
            wakes: 0,
        }));
        // SAFETY: makes a descriptor, which nobody else owns.
        let wake = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        assert!(wake >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: as above.
        let wake = Arc::new(unsafe { OwnedFd::from_raw_fd(wake) });
        let (shared, woken) = (Arc::clone(&state), Arc::clone(&wake));
        let thread = std::thread::spawn(move || serve(&shared, &woken));
        Link {
            state,
            wake,
            thread: Some(thread),
        }
    }

    /// A link of `rate` bytes a second and a round trip of `round_trip`. Its buffer on the way to the
    /// destination has `buffer` bytes.
    pub fn of(rate: u64, round_trip: Duration, buffer: usize) -> Link {
        let there = Way {
            rate: Some(rate),
            delay: round_trip / 2,
            buffer,
        };
        Link::new(
            there,
            Way {
                buffer: 1 << 20,
                ..there
            },
        )
    }

    /// A new connection over the link: the source's end and the destination's.
    pub fn connect(&self) -> (OwnedFd, OwnedFd) {
        let (source, near) = UnixStream::pair().unwrap();
        let (far, destination) = UnixStream::pair().unwrap();
        for end in [&source, &near, &far, &destination] {
            Socket::Unix(end.try_clone().unwrap()).hold_little();
        }
        self.add(Socket::Unix(near), Socket::Unix(far));
        (source.into(), destination.into())
    }

    /// `count` connections over the link, by side.
    pub fn connect_all(&self, count: usize) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
        (0..count).map(|_| self.connect()).unzip()
    }

    /// Listens on a TCP port of this host. Each connection goes on to `to`, over the link.
    pub fn listen(&self, to: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        // Accepted sockets inherit it, before the first byte.
        set_option(listener.as_fd(), libc::SO_RCVBUF, 32 << 10);
        let address = listener.local_addr().unwrap();
        self.change(|state| state.listener = Some((listener, to)));
        address
    }

    fn add(&self, near: Socket, far: Socket) {
        near.nonblocking();
        far.nonblocking();
        self.change(|state| {
            state.connections.push(Connection {
                ends: [near, far],
                streams: Default::default(),
            });
        });
    }

    /// Changes the properties. Bytes that the link has taken keep their times.
    pub fn set(&self, there: Way, back: Way) {
        self.change(|state| {
            state.directions[0].way = there;
            state.directions[1].way = back;
        });
    }

    /// Passes nothing on from now on, until [`Link::go_on`]. No side is told.
    pub fn stop(&self) {
        self.change(|state| state.stopped = true);
    }

    /// Goes on after [`Link::stop`].
    pub fn go_on(&self) {
        self.change(|state| state.stopped = false);
    }

    /// Cuts all connections. Bytes on their way are lost.
    pub fn cut(&self) {
        self.change(|state| state.connections.clear());
    }

    /// Bytes taken to the destination so far, and back.
    pub fn carried(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.directions[0].carried, state.directions[1].carried)
    }

    /// The most bytes that have waited in the buffer to the destination.
    pub fn most_held(&self) -> usize {
        lock(&self.state).directions[0].most_held
    }

    /// How often the link's thread woke up.
    pub fn wakes(&self) -> u64 {
        lock(&self.state).wakes
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut lock(&self.state));
        let one = 1u64;
        // SAFETY: writes the 8 bytes of `one`.
        unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.change(|state| state.ended = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread waits for.
struct Waiting {
    fds: Vec<libc::pollfd>,
    until: Option<Instant>,
}

impl Waiting {
    fn on(&mut self, fd: BorrowedFd<'_>, events: libc::c_short) {
        self.fds.push(libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        });
    }
    fn until(&mut self, at: Instant) {
        self.until = Some(self.until.map_or(at, |until| until.min(at)));
    }
    fn wait(&mut self) {
        let left = self
            .until
            .map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        });
        let time = left
            .as_ref()
            .map_or(std::ptr::null(), |left| &raw const *left);
        // SAFETY: the list has as many entries as its length says; the time outlives the call.
        unsafe {
            libc::ppoll(
                self.fds.as_mut_ptr(),
                self.fds.len() as libc::nfds_t,
                time,
                std::ptr::null(),
            )
        };
    }
}

/// The thread's body.
fn serve(state: &Mutex<State>, wake: &OwnedFd) {
    let mut buffer = vec![0u8; PIECE];
    let mut first = 0;
    loop {
        let mut waiting = Waiting {
            fds: Vec::new(),
            until: None,
        };
        waiting.on(wake.as_fd(), libc::POLLIN);
        {
            let mut state = lock(state);
            if state.ended {
                state.connections.clear();
                return;
            }
            state.wakes += 1;
            if let Some((listener, _)) = &state.listener {
                waiting.on(listener.as_fd(), libc::POLLIN);
            }
            if !state.stopped {
                state.pass_on(&mut buffer, first, &mut waiting);
                first = first.wrapping_add(1);
            }
        }
        waiting.wait();
        let mut woken = [0u8; 8];
        // SAFETY: reads at most 8 bytes into 8.
        unsafe { libc::read(wake.as_raw_fd(), woken.as_mut_ptr().cast(), 8) };
        lock(state).accept();
    }
}

impl State {
    fn accept(&mut self) {
        let Some((listener, to)) = &self.listener else {
            return;
        };
        while let Ok((near, _)) = listener.accept() {
            // A destination that is gone ends the connection.
            let Ok(far) = TcpStream::connect(to) else {
                continue;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (near, far) = (Socket::Tcp(near), Socket::Tcp(far));
            for end in [&near, &far] {
                end.hold_little();
                end.nonblocking();
            }
            self.connections.push(Connection {
                ends: [near, far],
                streams: Default::default(),
            });
        }
    }

    /// Takes what the senders have, as far as there is room, and delivers what is due. `first` is
    /// the connection that is served first, so that each has its turn.
    fn pass_on(&mut self, buffer: &mut [u8], first: usize, waiting: &mut Waiting) {
        let count = self.connections.len();
        for way in 0..2 {
            let direction = &mut self.directions[way];
            // One piece of each connection in turn, until there is no room or nothing more.
            let mut idle = 0;
            let mut at = first;
            while idle < count {
                let now = Instant::now();
                let room = direction.room(now);
                if room == 0 {
                    break;
                }
                let connection = &mut self.connections[at % count];
                at += 1;
                let ended = connection.streams[way].ends.is_some();
                let took = take_in(connection, way, &mut buffer[..room]);
                match took {
                    0 => idle += 1,
                    length => {
                        idle = 0;
                        let due = direction.take(now, length);
                        let stream = &mut connection.streams[way];
                        stream.bytes += length;
                        stream.underway.push_back(Piece {
                            due,
                            bytes: buffer[..length].to_vec(),
                            done: 0,
                        });
                    }
                }
                if let (false, Some(ends)) = (ended, &mut connection.streams[way].ends) {
                    // The end travels as a byte does.
                    *ends = direction.free_at.max(now) + direction.way.delay;
                }
            }
            let full = direction.has_room_at();
            if let Some(at) = full {
                waiting.until(at);
            }
            for connection in &mut self.connections {
                deliver(connection, way, waiting);
                let stream = &connection.streams[way];
                let reads = stream.ends.is_none() && stream.bytes < UNDERWAY && !stream.over;
                if reads && full.is_none() {
                    waiting.on(connection.ends[way].fd(), libc::POLLIN);
                }
            }
        }
        self.connections.retain(|connection| !connection.is_over());
    }
}

/// Reads from the sender of a stream. Returns how many bytes came.
fn take_in(connection: &mut Connection, way: usize, buffer: &mut [u8]) -> usize {
    let stream = &mut connection.streams[way];
    if stream.ends.is_some() || stream.over || stream.bytes >= UNDERWAY {
        return 0;
    }
    match connection.ends[way].read(buffer) {
        Ok(0) => stream.ends = Some(Instant::now()),
        Ok(length) => return length,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        // A reset: the peer learns of it as of an end.
        Err(_) => stream.ends = Some(Instant::now()),
    }
    0
}

/// Gives the receiver of a stream what is due.
fn deliver(connection: &mut Connection, way: usize, waiting: &mut Waiting) {
    let now = Instant::now();
    let stream = &mut connection.streams[way];
    let [near, far] = &mut connection.ends;
    let (from, to) = if way == 0 { (near, far) } else { (far, near) };
    while let Some(piece) = stream.underway.front_mut() {
        if stream.over {
            break;
        }
        if piece.due > now {
            waiting.until(piece.due);
            return;
        }
        match to.write(&piece.bytes[piece.done..]) {
            Ok(length) => {
                piece.done += length;
                stream.bytes -= length;
                if piece.done == piece.bytes.len() {
                    stream.underway.pop_front();
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                waiting.on(to.fd(), libc::POLLOUT);
                return;
            }
            Err(_) => {
                // The receiver is gone. Its peer must not wait for it.
                stream.over = true;
                stream.underway.clear();
                from.shutdown(Shutdown::Read);
            }
        }
    }
    if let Some(ends) = stream.ends.filter(|_| !stream.over) {
        if ends > now {
            waiting.until(ends);
        } else {
            to.shutdown(Shutdown::Write);
            stream.over = true;
        }
    }
}
