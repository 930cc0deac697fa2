//! Waits for bytes that the peer has announced: what ends them, and what they leave behind.

use super::*;
use crate::channel::cursor::WAIT_BYTES;
use crate::channel::{IoPart as _, Part};
use crate::runtime::Interest;
use crate::sys::event::{self, Poll};
use crate::sys::net;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Longer than any test takes that works.
const LONG: Duration = Duration::from_secs(20);

fn patient() -> Io<'static> {
    Io::patient(LONG)
}

/// A channel, another descriptor of its socket, and the peer.
fn channel() -> (Channel, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nodelay(true).unwrap();
    let ours = listener.accept().unwrap().0;
    let same = ours.try_clone().unwrap();
    (Channel::from_fd(OwnedFd::from(ours)).unwrap(), same, peer)
}

/// How many bytes the kernel waits for.
fn low_water(socket: &impl AsFd) -> i32 {
    net::option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap()
}

fn is_ready(socket: &impl AsFd, within: Duration) -> bool {
    let mut polls = [Poll::new(socket.as_fd(), libc::POLLIN)];
    event::poll(&mut polls, Some(within)).unwrap();
    polls[0].found() != 0
}

/// Waits until `count` bytes can be read.
fn await_bytes(socket: &TcpStream, count: usize) {
    let mut buffer = vec![0; count];
    let begun = Instant::now();
    while socket.peek(&mut buffer).unwrap() < count {
        assert!(begun.elapsed() < LONG, "{count} bytes have arrived");
        std::thread::yield_now();
    }
}

/// Waits until the channel waits for many bytes. That lasts 10 ms, so on a busy machine it may be over
/// before this thread sees it. Then a second is enough.
fn await_wait(socket: &impl AsFd) {
    let begun = Instant::now();
    while low_water(socket) != WAIT_BYTES as i32 && begun.elapsed() < Duration::from_secs(1) {
        std::thread::yield_now();
    }
}

#[test]
fn a_wait_for_many_bytes_ends_with_the_last_of_them_and_one_for_any_with_the_first() {
    let (channel, same, mut peer) = channel();
    assert_eq!(channel.kind.wait_for_bytes(1000), 1000);
    peer.write_all(&[1; 999]).unwrap();
    await_bytes(&same, 999);
    assert!(!is_ready(&same, Duration::ZERO), "999 of 1000 bytes");
    peer.write_all(&[1]).unwrap();
    assert!(is_ready(&same, LONG), "1000 of 1000 bytes");
    channel.kind.wait_for_bytes(2000);
    assert!(!is_ready(&same, Duration::ZERO), "1000 of 2000 bytes");
    channel.kind.wait_for_bytes(1);
    assert!(is_ready(&same, LONG), "1000 bytes, where one is enough");
}

#[test]
fn the_end_of_the_stream_ends_a_wait_for_many_bytes() {
    let (channel, same, mut peer) = channel();
    channel.kind.wait_for_bytes(1000);
    peer.write_all(&[1; 10]).unwrap();
    await_bytes(&same, 10);
    assert!(!is_ready(&same, Duration::ZERO));
    drop(peer);
    assert!(is_ready(&same, LONG));
}

#[test]
fn a_peer_that_sends_little_is_not_waited_for_until_all_is_there() {
    let (mut channel, same, mut peer) = channel();
    let recall = Recall::new().unwrap();
    let mut room = vec![0; 1 << 20];
    peer.write_all(&[7; 1000]).unwrap();
    await_bytes(&same, 1000);
    let parts = [PartMut::bytes(&mut room)];
    // Before the bytes came the channel would wait for all of them. It takes what is there.
    let got = channel.recv_announced_unless(&parts, 1 << 20, &recall, &patient());
    assert_eq!(got.unwrap(), 1000);
    // Now nothing is there, and the rest comes while the channel waits.
    let sender = std::thread::spawn(move || {
        await_wait(&same);
        peer.write_all(&[8; 500]).unwrap();
        (same, peer)
    });
    let rest = [parts[0].cut(1000, usize::MAX)];
    let announced = (1 << 20) - 1000;
    let begun = Instant::now();
    let got = channel.recv_announced_unless(&rest, announced, &recall, &patient());
    assert_eq!(got.unwrap(), 500);
    // Not only when the limit on idleness has passed.
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    let (same, mut peer) = sender.join().unwrap();
    assert_eq!(room[..1500], [&[7; 1000][..], &[8; 500]].concat());
    // A wait for a record, of which nothing is announced, ends with its first bytes.
    let sender = std::thread::spawn(move || {
        let begun = Instant::now();
        while low_water(&same) != 1 {
            assert!(begun.elapsed() < LONG, "the channel waits for any byte");
            std::thread::yield_now();
        }
        peer.write_all(&[9; 3]).unwrap();
        peer
    });
    let mut header = [0; 32];
    let got = channel.recv_some(&[PartMut::bytes(&mut header)], &patient());
    assert_eq!(got.unwrap(), 3);
    drop(sender.join().unwrap());
}

#[test]
fn a_cancel_and_a_recall_end_a_wait_for_many_bytes() {
    let (mut channel, same, peer) = channel();
    let (recall, cancel) = (Recall::new().unwrap(), Cancel::new().unwrap());
    let mut room = vec![0; 1 << 20];
    let parts = [PartMut::bytes(&mut room)];
    let io = Io::until(&cancel, LONG);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            await_wait(&same);
            recall.raise();
        });
        let got = channel.recv_announced_unless(&parts, 1 << 20, &recall, &io);
        assert_eq!(got.unwrap(), 0);
    });
    recall.lower();
    channel.kind.wait_for_bytes(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            await_wait(&same);
            cancel.cancel();
        });
        let got = channel.recv_announced_unless(&parts, 1 << 20, &recall, &io);
        assert_eq!(got.unwrap_err().kind(), Kind::Cancelled);
    });
    drop(peer);
}

#[test]
fn a_socket_that_is_handed_in_waits_for_one_byte_whatever_was_set_on_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ours = listener.accept().unwrap().0;
    net::set_option(ours.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1 << 20).unwrap();
    let channel = Channel::from_fd(OwnedFd::from(ours)).unwrap();
    peer.write_all(&[1]).unwrap();
    let woken = channel.wait(Interest::Read, None, Deadline::after(LONG));
    assert_eq!(woken.unwrap(), Wake::Ready);
}

#[test]
fn other_sockets_than_tcp_wait_for_one_byte() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let channel = Channel::from_fd(OwnedFd::from(ours)).unwrap();
    let mut peer = Channel::from_fd(OwnedFd::from(theirs)).unwrap();
    assert_eq!(channel.kind.wait_for_bytes(1000), 1);
    peer.send(&[Part::bytes(&[1])], &patient()).unwrap();
    let woken = channel.wait(Interest::Read, None, Deadline::after(LONG));
    assert_eq!(woken.unwrap(), Wake::Ready);
}
