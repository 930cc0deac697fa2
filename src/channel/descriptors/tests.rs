//! Descriptors over a channel: in the order of their records, one each, and none left over.

use super::*;
use crate::channel::parts::PartMut;
use crate::sys::passing;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn io() -> Io<'static> {
    Io::patient(Duration::from_secs(10))
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    let of = |end: UnixStream| Channel::from_fd(end.into()).unwrap();
    (of(a), of(b))
}

fn inode(fd: &impl AsFd) -> u64 {
    let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().unwrap());
    file.metadata().unwrap().ino()
}

fn read(channel: &mut Channel, bytes: usize) -> Vec<u8> {
    let mut room = vec![0; bytes];
    let part = PartMut::bytes(&mut room);
    channel.recv_exact(&[part], &io()).unwrap();
    room
}

#[test]
fn a_descriptor_is_taken_with_its_record_also_when_a_read_reaches_further() {
    let (mut a, mut b) = pair();
    assert!(a.carries_descriptors());
    b.keep_descriptors(true);
    let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
    a.send(&[Part::bytes(b"plain")], &io()).unwrap();
    for file in &files {
        a.send_with_descriptor(b"record", file.as_fd(), &io())
            .unwrap();
    }
    // One byte of the next record is read along with each.
    assert_eq!(read(&mut b, 6), b"plainr");
    for file in &files[..2] {
        assert_eq!(read(&mut b, 6), b"ecordr");
        let taken = b.take_descriptor().unwrap();
        assert_eq!(inode(&taken), inode(file));
    }
    assert_eq!(read(&mut b, 5), b"ecord");
    assert_eq!(inode(&b.take_descriptor().unwrap()), inode(&files[2]));
    b.check_no_descriptor().unwrap();
    let none = b.take_descriptor().unwrap_err();
    assert_eq!(none.kind(), Kind::Protocol, "{none}");
}

#[test]
fn more_descriptors_than_records_are_refused_and_closed() {
    // Each peer sends as much as its entry says, and the reader never has more than two.
    for count in [1, 2, 5] {
        let (mut a, mut b) = pair();
        b.keep_descriptors(true);
        let (reader, writer) = std::io::pipe().unwrap();
        for _ in 0..count {
            a.send_with_descriptor(b"x", writer.as_fd(), &io()).unwrap();
        }
        read(&mut b, count);
        let refused = b.check_no_descriptor().unwrap_err();
        assert_eq!(refused.kind(), Kind::Protocol, "{refused}");
        drop((writer, a, b));
        // The pipe has no writer any more, so every duplicate was closed.
        let mut end = [0];
        use std::io::Read;
        assert_eq!((&reader).read(&mut end).unwrap(), 0, "{count}");
    }
}

#[test]
fn without_being_kept_descriptors_are_closed_by_the_kernel() {
    let (mut a, mut b) = pair();
    let (reader, writer) = std::io::pipe().unwrap();
    a.send_with_descriptor(b"x", writer.as_fd(), &io()).unwrap();
    drop(writer);
    read(&mut b, 1);
    use std::io::Read;
    assert_eq!((&reader).read(&mut [0]).unwrap(), 0);
    b.check_no_descriptor().unwrap();
}

#[test]
fn two_descriptors_at_one_record_are_one_too_many() {
    let (mine, theirs) = UnixStream::pair().unwrap();
    let mut b = Channel::from_fd(theirs.into()).unwrap();
    b.keep_descriptors(true);
    let file = tempfile::tempfile().unwrap();
    passing::testing::send_two(mine.as_fd(), b"x", file.as_fd()).unwrap();
    read(&mut b, 1);
    let refused = b.take_descriptor().unwrap_err();
    assert!(refused.message().contains("found more"), "{refused}");
}

#[test]
fn a_tcp_connection_carries_none() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let end = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(!Channel::from_fd(end.into()).unwrap().carries_descriptors());
}
