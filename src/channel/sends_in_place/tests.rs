//! Tests of sending in place over real sockets. On loopback the kernel copies each time and says
//! so. On a veth pair with a packet filter it does not copy (tests/migration/zero_copy.rs).

use super::*;
use crate::channel::{Endpoint, Listener, PartMut};
use crate::runtime::Cancel;
use crate::sys::kernel::plan::{Call, Fault, Scope, CALLER};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Receiver, TryRecvError};

const LONG: Duration = Duration::from_secs(20);
const BATCH: usize = 1 << 20;

fn tcp_pair() -> (Channel, Channel) {
    let cancel = Cancel::new().unwrap();
    let listener = Listener::bind(&Endpoint::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let until = Deadline::after(LONG);
    let mut client = Channel::connect(listener.local_endpoint(), &cancel, until).unwrap();
    client.send_in_place();
    (client, listener.accept(&cancel, until).unwrap())
}

/// A value that keeps memory. The receiver's other end is closed when the value is dropped.
fn keep() -> (Keep, Receiver<()>) {
    let (kept, dropped) = channel::<()>();
    (Box::new(kept), dropped)
}

fn is_kept(dropped: &Receiver<()>) -> bool {
    dropped.try_recv() == Err(TryRecvError::Empty)
}

/// Sends a header, and contents whose memory stays unchanged.
fn send(from: &mut Channel, bytes: &[u8], keep: Keep) -> Result<u64> {
    let parts = [Part::bytes(b"head"), Part::bytes(bytes)];
    let recall = Recall::new()?;
    from.send_held(&parts, &[false, true], keep, &recall, &Io::patient(LONG))
}

fn receive(to: &mut Channel, length: usize) -> Vec<u8> {
    let mut all = vec![0; 4 + length];
    to.recv_exact(&[PartMut::bytes(&mut all)], &Io::patient(LONG))
        .unwrap();
    assert_eq!(&all[..4], b"head");
    all.split_off(4)
}

#[test]
fn memory_is_kept_until_the_kernel_has_read_it_and_no_longer() {
    let (mut from, mut to) = tcp_pair();
    let bytes: Vec<u8> = (0..BATCH).map(|i| (i ^ (i >> 8)) as u8).collect();
    let (kept, dropped) = keep();
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| receive(&mut to, BATCH));
        assert_eq!(send(&mut from, &bytes, kept).unwrap(), BATCH as u64 + 4);
        reader.join().unwrap()
    });
    assert_eq!(reader, bytes);
    from.land(&Io::patient(LONG)).unwrap();
    assert!(!is_kept(&dropped));
    // Every byte but the header's is counted.
    let so_far = from.zero_copy();
    assert_eq!((so_far.without + so_far.anyway).0, BATCH as u64);
}

#[test]
fn loopback_copies_each_time_which_is_noticed_and_switched_off() {
    let (mut from, mut to) = tcp_pair();
    let bytes = vec![7; BATCH];
    std::thread::scope(|scope| {
        scope.spawn(|| (0..64).for_each(|_| assert_eq!(receive(&mut to, BATCH), bytes)));
        for _ in 0..64 {
            send(&mut from, &bytes, keep().0).unwrap();
            from.land(&Io::patient(LONG)).unwrap();
        }
    });
    let so_far = from.zero_copy();
    assert_eq!((so_far.copying, so_far.without.0), (Copying::Anyway, 0));
    assert!(
        so_far.anyway.0 < 64 * BATCH as u64,
        "it went on: {so_far:?}"
    );
    assert!(!from.sends_in_place());
}

/// Reads what comes, until the connection ends.
fn drain(peer: &mut Channel) {
    let mut room = vec![0; 64 << 10];
    let mut more = || peer.recv_some(&[PartMut::bytes(&mut room)], &Io::patient(LONG));
    while more().is_ok() {}
}

#[test]
fn connections_between_the_same_addresses_find_out_together_that_the_kernel_copies() {
    let (mut first, mut peer) = tcp_pair();
    let (mut second, _second_peer) = tcp_pair();
    assert!(second.learns_with(&first));
    // A connection to another address may go another way.
    let cancel = Cancel::new().unwrap();
    let listener = Listener::bind(&Endpoint::parse("tcp:127.0.0.2:0").unwrap()).unwrap();
    let until = Deadline::after(LONG);
    let mut other = Channel::connect(listener.local_endpoint(), &cancel, until).unwrap();
    other.send_in_place();
    assert!(!other.learns_with(&first));
    let bytes = vec![7; BATCH];
    std::thread::scope(|scope| {
        scope.spawn(|| drain(&mut peer));
        while first.sends_in_place() {
            send(&mut first, &bytes, keep().0).unwrap();
            first.land(&Io::patient(LONG)).unwrap();
        }
        first.shutdown().unwrap();
    });
    // The second connection has sent nothing, and knows already.
    assert!(!second.sends_in_place());
    let known = second.zero_copy();
    assert_eq!((known.copying, known.calls), (Copying::Anyway, 0));
    assert!(other.sends_in_place());
}

#[test]
fn a_peer_that_reads_nothing_has_memory_kept_until_the_connection_is_reset() {
    let (mut from, to) = tcp_pair();
    // More bytes than both sockets hold.
    let bytes = vec![7; 64 << 20];
    let (kept, dropped) = keep();
    let recall = Recall::new().unwrap();
    let parts = [Part::bytes(&bytes)];
    let short = Io::patient(Duration::from_millis(50));
    let error = from
        .send_held(&parts, &[true], kept, &recall, &short)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    let error = from.land(&short).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    assert!(error.message().contains("still sends"), "{error}");
    assert!(is_kept(&dropped));
    from.let_go();
    assert!(!is_kept(&dropped));
    drop(to);
}

#[test]
fn a_channel_that_is_dropped_leaves_no_memory_with_the_kernel() {
    let (mut from, to) = tcp_pair();
    let bytes = vec![7; 64 << 20];
    let (kept, dropped) = keep();
    let recall = Recall::new().unwrap();
    let short = Io::patient(Duration::from_millis(50));
    from.send_held(&[Part::bytes(&bytes)], &[true], kept, &recall, &short)
        .unwrap_err();
    assert!(is_kept(&dropped));
    drop(from);
    assert!(!is_kept(&dropped));
    // The peer finds the bytes that arrived, and then a reset: nothing is sent from memory that was
    // let go of.
    let mut to = to;
    let mut all = vec![0; bytes.len()];
    let error = to.recv_exact(&[PartMut::bytes(&mut all)], &Io::patient(LONG));
    assert_eq!(error.unwrap_err().kind(), Kind::PeerGone);
}

#[test]
fn a_refusal_for_want_of_lockable_memory_is_copied_and_counted() {
    let (mut from, mut to) = tcp_pair();
    let bytes = vec![9; BATCH];
    let scope = Scope::default();
    // Call 0 sends the header, which is copied in any case.
    let call = Call {
        role: CALLER,
        name: "sendmsg",
        number: 1,
    };
    scope.plan(call, Fault::Error(libc::ENOBUFS));
    std::thread::scope(|threads| {
        threads.spawn(|| assert_eq!(receive(&mut to, BATCH), bytes));
        let (kept, dropped) = keep();
        scope.enter(|| send(&mut from, &bytes, kept)).unwrap();
        assert!(!is_kept(&dropped), "the kernel has read none of it");
    });
    assert!(scope.fired());
    let so_far = from.zero_copy();
    // No call was on its way whose completion could make room.
    assert_eq!((so_far.refused, so_far.copying), (1, Copying::Limit));
    assert_eq!((so_far.without.0, so_far.anyway.0), (0, 0));
}

#[test]
fn a_unix_socket_copies_and_says_so() {
    let (ours, _peer) = UnixStream::pair().unwrap();
    let mut channel = Channel::from_fd(ours.into()).unwrap();
    assert_eq!(channel.zero_copy().copying, Copying::Asked);
    channel.send_in_place();
    assert_eq!(channel.zero_copy().copying, Copying::Unsupported);
    assert!(!channel.sends_in_place());
}
