//! How migrations end: what is refused before anything begins, and what the figures say of one that
//! came to nothing.

use crate::support::guest::differences;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::memory::Whose;
use brant::migrate::{Params, Source, Target};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

#[test]
fn a_descriptor_that_is_no_connection_is_refused_at_the_start_and_nothing_has_begun() {
    let wrong = || -> [(OwnedFd, &str); 5] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        [
            (std::io::pipe().unwrap().1.into(), "a pipe"),
            (tempfile::tempfile().unwrap().into(), "a file"),
            (UnixDatagram::unbound().unwrap().into(), "a datagram socket"),
            (listener.into(), "a socket that listens"),
            (unconnected(), "a socket that is not connected"),
        ]
    };
    let pair = Pair::new(&[ram("ram", 100)]);
    pair.source.fill(1);
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    for (fd, found) in wrong() {
        let error = out.start(Target::Connected(fd)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        let expected = format!("expected a connected stream socket, found {found}");
        assert!(error.message().contains(&expected), "{error}");
        assert_eq!(out.wait(None).unwrap_err().kind(), Kind::State);
    }
    for (fd, found) in wrong() {
        let error = inc.start(Source::Connected(fd)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.message().contains(found), "{error}");
        assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::State);
    }
    assert_eq!(pair.source.memory.ownership().whose(), Whose::Unknown);
    assert_eq!(pair.from.calls("early_save"), 0);
    // Both can still be started.
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(differences(&pair.source, &pair.destination), [""; 0]);
    pair.assert_sound("afterwards");
}

fn unconnected() -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: makes a descriptor, which is ours.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn progress_says_how_far_a_migration_had_come_that_came_to_nothing() {
    let pair = Pair::new(&[ram("ram", 4000)]);
    pair.source.fill(2);
    // Some of the first pass has gone when it is cancelled, and most has not.
    let slow = Params {
        max_bandwidth: Some(4 << 20),
        ..Params::default()
    };
    let (out, inc) = start(&pair, &slow);
    let begun = std::time::Instant::now();
    while out.stats().progress == 0 || inc.stats().progress == 0 {
        assert!(begun.elapsed() < LONG, "nothing is sent");
        std::thread::yield_now();
    }
    let before = (out.stats(), inc.stats());
    out.cancel().unwrap();
    inc.wait(Some(LONG)).unwrap_err();
    let after = (out.stats(), inc.stats());
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        let sent = (after.data_pages + after.zero_pages) * 4096;
        assert!(sent < 3000 * 4096, "not cancelled in the middle: {after:?}");
        assert!(after.progress >= before.progress, "{before:?} {after:?}");
        let of_all = sent * 10_000 / after.total_bytes;
        assert!(u64::from(after.progress) <= of_all + 1, "{after:?}");
        assert_eq!(after.time_left, None, "{after:?}");
    }
    assert_eq!(
        after.0.remaining_bytes + (after.0.data_pages + after.0.zero_pages) * 4096,
        after.0.total_bytes,
        "{after:?}"
    );
    pair.assert_runs_on("cancelled");
}
