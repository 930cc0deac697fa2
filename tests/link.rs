//! The link that tests and benchmarks migrate over: rate, delay and buffer are what they are said to
//! be. Times have loose bounds above, because the machine may be busy, and exact ones below.

use crate::support::link::{Link, Way};
use crate::support::time::{LONG, MS};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn ends((a, b): (OwnedFd, OwnedFd)) -> (UnixStream, UnixStream) {
    let (a, b) = (UnixStream::from(a), UnixStream::from(b));
    for end in [&a, &b] {
        end.set_read_timeout(Some(LONG)).unwrap();
        end.set_write_timeout(Some(LONG)).unwrap();
    }
    (a, b)
}

/// Sends `bytes` from a thread of its own, and returns when all have arrived.
fn carry(from: &mut UnixStream, to: &mut UnixStream, bytes: &[u8]) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(bytes).unwrap());
        let mut got = vec![0; bytes.len()];
        to.read_exact(&mut got).unwrap();
        got
    })
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn bytes_take_as_long_as_the_rate_says_and_arrive_in_order() {
    let link = Link::of(4_000_000, Duration::ZERO, 64 << 10);
    let (mut a, mut b) = ends(link.connect());
    let bytes = pattern(1_000_000);
    let begun = Instant::now();
    assert!(carry(&mut a, &mut b, &bytes) == bytes);
    let took = begun.elapsed();
    // 250 ms, less the piece that waits at the start.
    assert!(took >= 245 * MS, "{took:?}");
    assert!(took < 10 * 250 * MS, "{took:?}");
    assert_eq!(link.carried().0, 1_000_000);
}

#[test]
fn a_byte_arrives_after_the_delay_and_not_before() {
    let way = Way {
        delay: 40 * MS,
        ..Way::OPEN
    };
    let link = Link::new(way, way);
    let (mut a, mut b) = ends(link.connect());
    let begun = Instant::now();
    carry(&mut a, &mut b, &[1]);
    let there = begun.elapsed();
    carry(&mut b, &mut a, &[2]);
    let round_trip = begun.elapsed();
    assert!(there >= 40 * MS, "{there:?}");
    assert!((80 * MS..800 * MS).contains(&round_trip), "{round_trip:?}");
}

#[test]
fn the_buffer_takes_what_it_is_said_to_take_and_no_more() {
    for buffer in [0, 1 << 20] {
        // In a second, nothing to speak of leaves the buffer.
        let link = Link::of(10_000, Duration::ZERO, buffer);
        let (mut a, _b) = ends(link.connect());
        a.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        let mut taken = 0;
        // Until nothing was taken for a while.
        let mut last = Instant::now();
        while last.elapsed() < 200 * MS && begun.elapsed() < LONG {
            match a.write(&[0; 4096]) {
                Ok(length) => {
                    taken += length;
                    last = Instant::now();
                }
                Err(_) => std::thread::sleep(MS),
            }
        }
        // Beside the link's buffer the kernel has its own, of 64 KiB at each end.
        assert!(taken >= buffer, "{taken} of {buffer}");
        assert!(taken <= buffer + (400 << 10), "{taken} of {buffer}");
        assert!(link.most_held() <= buffer.max(64), "{}", link.most_held());
    }
}

#[test]
fn connections_share_the_link() {
    let link = Link::of(4_000_000, Duration::ZERO, 64 << 10);
    let bytes = pattern(250_000);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (mut a, mut b) = ends(link.connect());
            let bytes = &bytes;
            scope.spawn(move || assert!(carry(&mut a, &mut b, bytes) == *bytes));
        }
    });
    let took = begun.elapsed();
    assert!(took >= 245 * MS, "{took:?}");
}

#[test]
fn its_properties_change_while_it_runs() {
    let link = Link::of(100_000, Duration::ZERO, 4096);
    let (mut a, mut b) = ends(link.connect());
    carry(&mut a, &mut b, &pattern(4096));
    link.set(Way::OPEN, Way::OPEN);
    let begun = Instant::now();
    // 100 s at the old rate.
    carry(&mut a, &mut b, &pattern(10_000_000));
    assert!(begun.elapsed() < LONG / 2);
}

#[test]
fn a_stopped_link_passes_nothing_and_loses_nothing() {
    let link = Link::new(Way::OPEN, Way::OPEN);
    let (mut a, mut b) = ends(link.connect());
    carry(&mut a, &mut b, &[1]);
    link.stop();
    a.write_all(&[2]).unwrap();
    b.set_read_timeout(Some(50 * MS)).unwrap();
    assert!(b.read(&mut [0]).is_err(), "nothing arrives");
    b.set_read_timeout(Some(LONG)).unwrap();
    link.go_on();
    let mut got = [0];
    b.read_exact(&mut got).unwrap();
    assert_eq!(got, [2]);
}

#[test]
fn an_end_arrives_after_the_last_byte_and_a_cut_at_once() {
    let link = Link::of(1_000_000, 20 * MS, 1 << 20);
    let (mut a, mut b) = ends(link.connect());
    let bytes = pattern(100_000);
    a.write_all(&bytes).unwrap();
    drop(a);
    let mut got = Vec::new();
    b.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    let (a, mut b) = ends(link.connect());
    link.cut();
    assert!(matches!(b.read(&mut [0]), Ok(0) | Err(_)));
    drop(a);
}

#[test]
fn a_link_with_nothing_to_do_sleeps() {
    let link = Link::of(1_000_000, 10 * MS, 1 << 20);
    let (mut a, mut b) = ends(link.connect());
    carry(&mut a, &mut b, &pattern(1000));
    let before = link.wakes();
    std::thread::sleep(200 * MS);
    assert!(link.wakes() <= before + 4, "{}", link.wakes() - before);
}

#[test]
fn connections_over_tcp_go_through_it_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = Link::of(4_000_000, 10 * MS, 64 << 10);
    let near = link.listen(listener.local_addr().unwrap());
    let mut a = TcpStream::connect(near).unwrap();
    let (mut b, _) = listener.accept().unwrap();
    let bytes = pattern(400_000);
    let begun = Instant::now();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || a.write_all(&sent).map(|()| drop(a)));
    let mut got = Vec::new();
    b.read_to_end(&mut got).unwrap();
    sender.join().unwrap().unwrap();
    assert!(got == bytes);
    assert!(begun.elapsed() >= 95 * MS, "{:?}", begun.elapsed());
}
