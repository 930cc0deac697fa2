//! Channels over real sockets: loopback TCP, unix paths and socket pairs.

use super::*;
use crate::error::{Kind, Result};
use crate::runtime::{wait_ready, Cancel, Deadline, Interest, Recall, Timeout};
use crate::sys::event;
use crate::sys::kernel::plan::Scope;
use crate::sys::net::{self, Address, PARTS_MAX};
use crate::units::{Bytes, PAGE_SIZE};
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

/// The socket under a channel, for calls that a channel does not make.
fn fd(channel: &Channel) -> BorrowedFd<'_> {
    match &channel.kind {
        kind::ConnectionKind::Socket(socket) => socket.fd(),
    }
}

/// Longer than any test takes that works.
const LONG: Duration = Duration::from_secs(20);

fn soon() -> Deadline {
    Deadline::after(LONG)
}

fn tcp_pair() -> (Channel, Channel) {
    pair_at(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
}

fn pair_at(endpoint: &Endpoint) -> (Channel, Channel) {
    let cancel = Cancel::new().unwrap();
    let listener = Listener::bind(endpoint).unwrap();
    let client = Channel::connect(listener.local_endpoint(), &cancel, soon()).unwrap();
    (client, listener.accept(&cancel, soon()).unwrap())
}

fn socketpair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (
        Channel::from_fd(a.into()).unwrap(),
        Channel::from_fd(b.into()).unwrap(),
    )
}

/// Makes buffers so small that most calls move only a part of their bytes. Only on the sending
/// side, because with a tiny receive window TCP waits for its window probes.
fn tiny_buffers(channel: &Channel) {
    net::set_option(fd(channel), libc::SOL_SOCKET, libc::SO_SNDBUF, 4096).unwrap();
}

/// Bytes by which order and place both show.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// Cuts `bytes` into parts, whose lengths repeat those in `lengths`.
fn cut_up<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

#[test]
fn all_bytes_arrive_in_order_through_tiny_buffers() {
    let dir = tempfile::tempdir().unwrap();
    let unix = Endpoint::Unix(dir.path().join("s"));
    for (name, (mut from, mut to)) in [
        ("tcp", tcp_pair()),
        ("unix", pair_at(&unix)),
        ("socketpair", socketpair()),
    ] {
        tiny_buffers(&from);
        tiny_buffers(&to);
        let data = pattern(1_500_000);
        // More than 1,024 parts of all sizes, empty ones included.
        let pieces = cut_up(&data, &[1, 0, 4096, 7, 64, 3000, 2, 0, 1, 100, 5]);
        assert!(pieces.len() > 2 * PARTS_MAX, "{}", pieces.len());
        let parts: Vec<Part> = pieces.iter().map(|p| Part::bytes(p)).collect();
        let mut got = vec![0u8; data.len()];
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut room: Vec<PartMut> = Vec::new();
                let mut rest = &mut got[..];
                for length in [333, 0, 5000, 1, 17].iter().cycle() {
                    if rest.is_empty() {
                        break;
                    }
                    let (piece, left) = rest.split_at_mut((*length).min(rest.len()));
                    room.push(PartMut::bytes(piece));
                    rest = left;
                }
                to.recv_exact(&room, &Io::patient(LONG)).unwrap();
            });
            from.send(&parts, &Io::patient(LONG)).unwrap();
        });
        assert!(got == data, "{name}");
        assert_eq!(from.counters().sent, Bytes(data.len() as u64));
        assert_eq!(to.counters().received, Bytes(data.len() as u64));
        assert!(from.counters().send_calls > 1);
    }
}

/// Runs `blocked` until it waits, cancels it, and expects it to return soon.
fn cancelled_soon<T: Send>(name: &str, blocked: impl FnOnce(&Cancel) -> Result<T> + Send) {
    let cancel = Cancel::new().unwrap();
    let (sender, receiver) = mpsc::channel();
    let error = std::thread::scope(|s| {
        let cancel = &cancel;
        let thread = s.spawn(move || {
            // SAFETY: takes nothing, returns an id.
            sender.send(unsafe { libc::gettid() }).unwrap();
            blocked(cancel).map(|_| ())
        });
        wait_until_asleep(receiver.recv().unwrap());
        let start = Instant::now();
        assert!(cancel.cancel());
        let result = thread.join().unwrap();
        println!("{name}: back {:?} after cancel", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(2), "{name}");
        result.unwrap_err()
    });
    assert_eq!(error.kind(), Kind::Cancelled, "{name}: {error}");
}

/// Returns when the kernel shows the thread in ppoll.
fn wait_until_asleep(tid: i32) {
    let path = format!("/proc/self/task/{tid}/syscall");
    let poll = format!("{} ", libc::SYS_ppoll);
    let limit = soon();
    while !std::fs::read_to_string(&path).is_ok_and(|s| s.starts_with(&poll)) {
        assert!(!limit.expired(), "never waited");
        std::thread::yield_now();
    }
}

#[test]
fn a_blocked_send_is_back_soon_after_cancel() {
    for (mut from, _to) in [tcp_pair(), socketpair()] {
        let data = vec![0u8; 64 << 20];
        cancelled_soon("send", |cancel| {
            from.send(&[Part::bytes(&data)], &Io::until(cancel, LONG))
        });
    }
}

#[test]
fn a_blocked_receive_is_back_soon_after_cancel() {
    for (_from, mut to) in [tcp_pair(), socketpair()] {
        let mut room = [0u8; 10];
        cancelled_soon("receive", |cancel| {
            to.recv_exact(&[PartMut::bytes(&mut room)], &Io::until(cancel, LONG))
        });
        cancelled_soon("receive some", |cancel| {
            to.recv_some(&[PartMut::bytes(&mut room)], &Io::until(cancel, LONG))
        });
    }
}

#[test]
fn a_send_to_a_fast_reader_is_back_soon_after_cancel() {
    let (mut from, mut to) = socketpair();
    let data = vec![0u8; 1 << 20];
    let parts = vec![Part::bytes(&data); 1 << 20]; // a TiB
    let cancel = Cancel::new().unwrap();
    let io = Io::until(&cancel, LONG);
    std::thread::scope(|s| {
        let cancel = &cancel;
        let reader = s.spawn(move || {
            let mut room = vec![0u8; 1 << 20];
            let mut started = None;
            let patient = Io::patient(LONG);
            while to.recv_some(&[PartMut::bytes(&mut room)], &patient).is_ok() {
                if started.is_none() && to.counters().received > Bytes(32 << 20) {
                    started = Some(Instant::now());
                    cancel.cancel();
                }
            }
            started.unwrap()
        });
        let error = from.send(&parts, &io).unwrap_err();
        let end = Instant::now();
        assert_eq!(error.kind(), Kind::Cancelled);
        drop(from);
        let late = end - reader.join().unwrap();
        println!("send to a fast reader: back {late:?} after cancel");
        assert!(late < Duration::from_secs(2));
    });
}

#[test]
fn nothing_is_moved_once_cancelled() {
    let (mut from, to) = socketpair();
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let io = Io::until(&cancel, LONG);
    let error = from.send(&[Part::bytes(b"x")], &io).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(from.counters().sent, Bytes(0));
    drop(to);
}

/// A TCP listener whose queue is full, so that the next connection gets no answer.
fn deaf_tcp_listener() -> (OwnedFd, Vec<OwnedFd>, Endpoint) {
    let any = Endpoint::parse("tcp:127.0.0.1:0").unwrap().address();
    let listener = net::stream_socket(&any).unwrap();
    net::bind(listener.as_fd(), &any).unwrap();
    net::listen(listener.as_fd(), 0).unwrap();
    let address = net::local_address(listener.as_fd()).unwrap();
    let Address::Inet(inet) = address else {
        panic!("not TCP");
    };
    // A queue of length 0 holds one connection. The connections after it stay half open.
    let fill = |_| {
        let fd = net::stream_socket(&address).unwrap();
        let _ = net::connect(fd.as_fd(), &address);
        fd
    };
    let queue = (0..4).map(fill).collect();
    (listener, queue, Endpoint::Tcp(inet))
}

fn deaf_unix_listener(path: &std::path::Path) -> (OwnedFd, Vec<OwnedFd>, Endpoint) {
    let endpoint = Endpoint::Unix(path.to_owned());
    let address = endpoint.address();
    let listener = net::stream_socket(&address).unwrap();
    net::bind(listener.as_fd(), &address).unwrap();
    net::listen(listener.as_fd(), 0).unwrap();
    let fill = |_| {
        let fd = net::stream_socket(&address).unwrap();
        let _ = net::connect(fd.as_fd(), &address);
        fd
    };
    let queue = (0..4).map(fill).collect();
    (listener, queue, endpoint)
}

#[test]
fn a_connect_without_an_answer_ends_at_its_deadline_or_soon_after_cancel() {
    let dir = tempfile::tempdir().unwrap();
    for (_listener, _queue, endpoint) in [
        deaf_tcp_listener(),
        deaf_unix_listener(&dir.path().join("s")),
    ] {
        let cancel = Cancel::new().unwrap();
        let limit = Deadline::after(Duration::from_millis(30));
        let start = Instant::now();
        let error = Channel::connect(&endpoint, &cancel, limit).unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout, "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(error.message().contains(&endpoint.to_string()), "{error}");
        cancelled_soon("connect", |cancel| {
            Channel::connect(&endpoint, cancel, Deadline::never())
        });
    }
}

#[test]
fn a_refused_connection_fails_at_once_and_names_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = Listener::bind(&Endpoint::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let free = tcp.local_endpoint().clone();
    drop(tcp);
    let cancel = Cancel::new().unwrap();
    for endpoint in [free, Endpoint::Unix(dir.path().join("none"))] {
        let start = Instant::now();
        let error = Channel::connect(&endpoint, &cancel, soon()).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.message().contains(&endpoint.to_string()), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    let zero = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
    let error = Channel::connect(&zero, &cancel, soon()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn the_end_of_the_stream_is_the_peer_gone_and_says_how_far_it_came() {
    for (mut from, mut to) in [tcp_pair(), socketpair()] {
        from.send(&[Part::bytes(b"abc")], &Io::patient(LONG))
            .unwrap();
        assert!(!to.peer_hung_up().unwrap());
        from.shutdown().unwrap();
        from.shutdown().unwrap();
        wait_ready(fd(&to), Interest::Read, None, soon()).unwrap();
        let mut room = [0u8; 10];
        let error = to
            .recv_exact(&[PartMut::bytes(&mut room)], &Io::patient(LONG))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::PeerGone);
        assert!(error.message().contains("3 of 10 bytes"), "{error}");
        assert!(to.peer_hung_up().unwrap());
        // The position in the stream is lost, so no later byte may be taken for more of it.
        let error = to.try_recv(&[PartMut::bytes(&mut room)]).unwrap_err();
        assert_eq!(error.kind(), Kind::State);
    }
}

#[test]
fn sending_to_a_peer_that_is_gone_is_an_error_and_no_signal() {
    for (mut from, to) in [tcp_pair(), socketpair()] {
        drop(to);
        // Rust ignores SIGPIPE from its start. A blocked signal becomes pending even if it is
        // ignored, so this shows whether one was raised.
        let _blocked = event::SignalMask::full().put().unwrap();
        let data = vec![0u8; 8 << 20];
        let error = from
            .send(&[Part::bytes(&data)], &Io::patient(LONG))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::PeerGone, "{error}");
        // SAFETY: the set is plain integers on this stack frame.
        let raised = unsafe {
            let mut pending: libc::sigset_t = std::mem::zeroed();
            assert_eq!(libc::sigpending(&mut pending), 0);
            libc::sigismember(&pending, libc::SIGPIPE)
        };
        assert_eq!(raised, 0, "SIGPIPE was raised");
    }
}

#[test]
fn a_reset_is_the_peer_gone() {
    let (from, mut to) = tcp_pair();
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option's value is a linger on this stack frame.
    let set = unsafe {
        libc::setsockopt(
            fd(&from).as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    assert_eq!(set, 0);
    drop(from);
    let mut room = [0u8; 1];
    let error = to
        .recv_some(&[PartMut::bytes(&mut room)], &Io::patient(LONG))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::PeerGone, "{error}");
}

#[test]
fn a_peer_that_does_nothing_is_given_up_after_the_idle_time() {
    let (mut from, mut to) = tcp_pair();
    let io = Io::patient(Duration::from_millis(50));
    let mut room = [0u8; 1];
    let start = Instant::now();
    let error = to.recv_some(&[PartMut::bytes(&mut room)], &io).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.message().contains("sent nothing"), "{error}");
    assert!(error.message().contains("50 ms ran out"), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(50));
    let data = vec![0u8; 64 << 20];
    let error = from.send(&[Part::bytes(&data)], &io).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.message().contains("took nothing"), "{error}");
    assert!(from.counters().send_waited >= Duration::from_millis(50));
    // A part was sent, so the peer would read the next bytes as the rest.
    let error = from.send(&[Part::bytes(b"x")], &io).unwrap_err();
    assert_eq!(error.kind(), Kind::State);
}

#[test]
fn a_deadline_ends_a_wait_before_the_idle_time_does() {
    let (_from, mut to) = socketpair();
    let limit = Timeout::new("the connect timeout", Duration::from_millis(30)).from_now();
    let mut room = [0u8; 1];
    let io = Io::patient(LONG).within(limit).of("HELLO");
    let error = to
        .recv_exact(&[PartMut::bytes(&mut room)], &io)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    let says = "waiting for HELLO from the peer: the connect timeout of 30 ms ran out";
    assert_eq!(error.message(), says);
    assert!(limit.expired());
}

#[test]
fn a_peer_that_trickles_is_ended_by_the_deadline() {
    let (mut from, mut to) = socketpair();
    let done = Cancel::new().unwrap();
    std::thread::scope(|s| {
        let done = &done;
        s.spawn(move || {
            while !done.wait(Duration::from_millis(2)) {
                from.send(&[Part::bytes(b"x")], &Io::patient(LONG)).unwrap();
            }
        });
        let mut room = [0u8; 1 << 16];
        let limit = Timeout::new("the total timeout", Duration::from_millis(300)).from_now();
        let io = Io::patient(Duration::from_millis(200)).within(limit);
        let start = Instant::now();
        let error = to
            .recv_exact(&[PartMut::bytes(&mut room)], &io)
            .unwrap_err();
        let message = error.message();
        assert!(
            message.contains("the total timeout of 300 ms ran out"),
            "{error}"
        );
        assert!(message.contains("of 65536 bytes moved"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(to.counters().received > Bytes(0));
        done.cancel();
    });
}

#[test]
fn a_wake_up_that_a_recall_left_ends_one_wait_and_not_every_one() {
    let (mut channel, _peer) = socketpair();
    let recall = Recall::new().unwrap();
    recall.raise_around(|| recall.lower());
    let scope = Scope::default();
    let io = Io::patient(Duration::from_millis(300));
    let mut receive = |io: &Io<'_>| {
        let mut byte = [0];
        channel.recv_some_unless(&[PartMut::bytes(&mut byte)], &recall, io)
    };
    let error = scope.enter(|| receive(&io));
    assert_eq!(error.unwrap_err().kind(), Kind::Timeout);
    // One wait is ended by what was left, one by the limit. It was one in every two milliseconds.
    let waits = scope.calls().iter().filter(|c| c.name == "ppoll").count();
    assert_eq!(waits, 2);
    // The next recall is noticed too.
    std::thread::scope(|s| {
        let waiter = s.spawn(|| receive(&Io::patient(LONG)));
        recall.raise();
        assert_eq!(waiter.join().unwrap().unwrap(), 0);
    });
}

#[test]
fn after_a_recalled_send_nothing_but_its_rest_is_sent() {
    let (mut channel, mut peer) = socketpair();
    let recall = Recall::new().unwrap();
    let bytes = pattern(4 << 20);
    let sent = std::thread::scope(|s| {
        let sender = s.spawn(|| {
            let parts = [Part::bytes(&bytes)];
            channel.send_unless(&parts, &recall, &Io::patient(LONG))
        });
        let mut first = [0];
        peer.recv_exact(&[PartMut::bytes(&mut first)], &Io::patient(LONG))
            .unwrap();
        recall.raise();
        sender.join().unwrap().unwrap()
    });
    assert!((1..bytes.len() as u64).contains(&sent), "{sent}");
    let io = Io::patient(LONG);
    let error = channel.send(&[Part::bytes(b"next")], &io).unwrap_err();
    assert_eq!(error.kind(), Kind::State);
    std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut rest = vec![0; bytes.len() - 1 + 4];
            peer.recv_exact(&[PartMut::bytes(&mut rest)], &Io::patient(LONG))
                .unwrap();
            rest
        });
        let rest = [Part::bytes(&bytes[sent as usize..])];
        channel.send_rest(&rest, &io).unwrap();
        channel.send(&[Part::bytes(b"next")], &io).unwrap();
        let heard = reader.join().unwrap();
        assert!(heard == [&bytes[1..], b"next"].concat());
    });
}

#[test]
fn trying_to_receive_never_waits() {
    let (mut from, mut to) = socketpair();
    let mut room = [0u8; 4];
    assert_eq!(to.try_recv(&[PartMut::bytes(&mut room)]).unwrap(), 0);
    from.send(&[Part::bytes(b"abc")], &Io::patient(LONG))
        .unwrap();
    assert_eq!(to.try_recv(&[PartMut::bytes(&mut room)]).unwrap(), 3);
    assert_eq!(&room[..3], b"abc");
    assert_eq!(to.try_recv(&[]).unwrap(), 0);
    drop(from);
    let error = to.try_recv(&[PartMut::bytes(&mut room)]).unwrap_err();
    assert_eq!(error.kind(), Kind::PeerGone);
}

/// Three pages, the middle one not mapped.
struct Holed(*mut u8);

impl Holed {
    const PAGE: usize = PAGE_SIZE as usize;

    fn new() -> Self {
        // SAFETY: a fresh mapping, whose middle page is unmapped again.
        unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                3 * Self::PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(base, libc::MAP_FAILED);
            let middle = base.cast::<u8>().add(Self::PAGE);
            assert_eq!(
                libc::mprotect(middle.cast(), Self::PAGE, libc::PROT_NONE),
                0
            );
            Holed(base.cast())
        }
    }
}

impl Drop for Holed {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing points there any more.
        unsafe { libc::munmap(self.0.cast(), 3 * Self::PAGE) };
    }
}

#[test]
fn guest_memory_that_is_not_there_is_an_error_that_names_the_page() {
    for (mut from, mut to) in [tcp_pair(), socketpair()] {
        let memory = Holed::new();
        let hole = memory.0 as usize + Holed::PAGE;
        let named = |access: &str| format!("memory at {hole:#x} cannot be {access}");
        // SAFETY: the mapping outlives the part; nothing refers to it.
        let part = unsafe { Part::raw(memory.0.add(100), 3 * Holed::PAGE - 100) };
        let io = Io::patient(LONG);
        let error = from.send(&[Part::bytes(b"head"), part], &io).unwrap_err();
        assert_eq!((error.kind(), from.fault()), (Kind::Memory, Some(hole)));
        assert!(error.message().contains(&named("read")), "{error}");
        let data = vec![1u8; 3 * Holed::PAGE];
        to.send(&[Part::bytes(&data)], &io).unwrap();
        // SAFETY: the mapping outlives the part; nothing refers to it.
        let room = unsafe { PartMut::raw(memory.0, 3 * Holed::PAGE) };
        let error = from.recv_exact(&[room], &io).unwrap_err();
        assert_eq!((error.kind(), from.fault()), (Kind::Memory, Some(hole)));
        assert!(error.message().contains(&named("written")), "{error}");
    }
}

#[test]
fn only_a_connected_stream_socket_is_taken() {
    let refuse = |fd: OwnedFd, why: &str| {
        let error = Channel::from_fd(fd).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let expected = "expected a connected stream socket, found ";
        let found = error.message().strip_prefix(expected);
        assert!(found.is_some_and(|found| found.starts_with(why)), "{error}");
    };
    let file = std::fs::File::open("/dev/null").unwrap();
    refuse(file.into(), "a character device");
    refuse(std::io::pipe().unwrap().0.into(), "a pipe");
    refuse(tempfile::tempfile().unwrap().into(), "a file");
    refuse(
        crate::sys::event::eventfd().unwrap(),
        "a descriptor that is neither",
    );
    let path_only = std::os::unix::fs::OpenOptionsExt::custom_flags(
        std::fs::File::options().read(true),
        libc::O_PATH,
    )
    .open("/")
    .unwrap();
    refuse(
        path_only.into(),
        "a descriptor that is open for its path only",
    );
    let datagram = std::os::unix::net::UnixDatagram::pair().unwrap().0;
    refuse(datagram.into(), "a datagram socket");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    refuse(listener.into(), "a socket that listens");
    let any = Endpoint::parse("tcp:127.0.0.1:1").unwrap().address();
    refuse(
        net::stream_socket(&any).unwrap(),
        "a socket that is not connected",
    );
}

#[test]
fn a_descriptor_handed_in_is_set_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // SAFETY: takes and returns integers.
    unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_SETFD, 0) };
    let channel = Channel::from_fd(stream.into()).unwrap();
    // SAFETY: take and return integers.
    let (status, descriptor) = unsafe {
        (
            libc::fcntl(fd(&channel).as_raw_fd(), libc::F_GETFL),
            libc::fcntl(fd(&channel).as_raw_fd(), libc::F_GETFD),
        )
    };
    assert_ne!(status & libc::O_NONBLOCK, 0);
    assert_ne!(descriptor & libc::FD_CLOEXEC, 0);
    for (level, name) in [
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    ] {
        assert_ne!(net::option(fd(&channel), level, name).unwrap(), 0);
    }
    assert!(channel.peer().starts_with("tcp:127.0.0.1:"));
}

#[test]
fn a_transfer_does_not_block_when_somebody_cleared_the_nonblocking_flag() {
    let (_from, mut to) = socketpair();
    // SAFETY: takes and returns integers.
    unsafe { libc::fcntl(fd(&to).as_raw_fd(), libc::F_SETFL, 0) };
    let mut room = [0u8; 1];
    assert_eq!(to.try_recv(&[PartMut::bytes(&mut room)]).unwrap(), 0);
}

#[test]
fn a_route_is_not_used_up_by_its_first_use() {
    let cancel = Cancel::new().unwrap();
    let listener = Listener::bind(&Endpoint::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let mut route = Route::Endpoint(listener.local_endpoint().clone());
    assert!(route.ready(1).is_none());
    for _ in 0..3 {
        let _ours = route.connect(1, &cancel, soon()).unwrap();
        listener.accept(&cancel, soon()).unwrap();
    }
    let (first, _a) = socketpair();
    let (second, _b) = socketpair();
    let mut route = Route::Connected([first, second].into());
    assert!(route.ready(3).is_none());
    assert!(route.ready(1).is_some());
    assert!(route.connect(1, &cancel, soon()).is_ok());
    assert!(route.ready(1).is_none());
    let error = route.connect(1, &cancel, soon()).unwrap_err();
    assert_eq!(error.kind(), Kind::State);
}

#[test]
fn many_connections_are_made_together_and_none_is_left_where_one_fails() {
    let cancel = Cancel::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let unix = Endpoint::Unix(dir.path().join("many"));
    for endpoint in [Endpoint::parse("tcp:127.0.0.1:0").unwrap(), unix] {
        let listener = Listener::bind(&endpoint).unwrap();
        let mut route = Route::Endpoint(listener.local_endpoint().clone());
        let ours = route.connect(64, &cancel, soon()).unwrap();
        assert_eq!(ours.len(), 64);
        // In the order in which they were begun.
        for (number, mut channel) in (0u8..).zip(ours) {
            let io = Io::patient(Duration::from_secs(10));
            channel.send(&[Part::bytes(&[number])], &io).unwrap();
            let mut theirs = listener.accept(&cancel, soon()).unwrap();
            let mut heard = [0xff];
            theirs
                .recv_exact(&[PartMut::bytes(&mut heard)], &io)
                .unwrap();
            assert_eq!(heard, [number], "{endpoint}");
        }
        drop(listener);
        let error = route.connect(3, &cancel, soon()).unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{error}");
        let message = error.message();
        assert!(
            message.starts_with("channel 0 of 3: connecting to "),
            "{message}"
        );
    }
}

#[test]
fn the_last_word_goes_out_however_late_its_thread_is_and_whatever_the_cap() {
    let (mut from, mut to) = socketpair();
    // The cap's allowance is used up.
    let pacer = Arc::new(Pacer::new(Some(1000)));
    from.set_pacer(Arc::clone(&pacer));
    let mut turn = pacer.turn();
    while matches!(turn.ask(u64::MAX), pacing::Grant::Bytes(_)) {}
    drop(turn);
    from.send_last(b"over", Duration::ZERO).unwrap();
    let mut got = [0; 4];
    let room = || Io::patient(LONG).within(soon());
    to.recv_exact(&[PartMut::bytes(&mut got)], &room()).unwrap();
    assert_eq!(&got, b"over");

    // The rest of a record that a limit has cut: it goes on as far as there is room.
    let (mut from, mut to) = socketpair();
    let bytes = pattern(64 << 20);
    let parts = [Part::bytes(&bytes)];
    let error = from.send(&parts, &Io::patient(Duration::from_millis(1)));
    assert_eq!(error.unwrap_err().kind(), Kind::Timeout);
    let cut = from.cut_at();
    let mut got = vec![0; cut as usize];
    to.recv_exact(&[PartMut::bytes(&mut got)], &room()).unwrap();
    let late = Io::patient(LONG).within(Deadline::after(Duration::ZERO));
    from.send_on(&parts, cut + 1000, &late).unwrap();
    got.resize(1000, 0);
    to.recv_exact(&[PartMut::bytes(&mut got)], &room()).unwrap();
    assert_eq!(got[..1000], bytes[cut as usize..][..1000]);
}
