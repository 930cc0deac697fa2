//! How migrations end: what is refused before the start, and the figures of a migration that
//! failed.

use crate::support::deciders::Never;
use crate::support::guest::{differences, Guest};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::relay::{at, Point, Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{blob, failure};
use brant::error::{Kind, Result};
use brant::memory::Whose;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::wire::RecordType;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

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
        let error = out.start(ConnectTo::Connected(fd)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        let expected = format!("expected a connected stream socket, found {found}");
        assert!(error.message().contains(&expected), "{error}");
        assert_eq!(out.wait(None).unwrap_err().kind(), Kind::State);
    }
    for (fd, found) in wrong() {
        let error = inc.start(AcceptFrom::Connected(fd)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.message().contains(found), "{error}");
        assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::State);
    }
    assert_eq!(pair.source.memory.ownership().whose(), Whose::Unknown);
    assert_eq!(pair.from.calls("early_save"), 0);
    // Both can still be started.
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(differences(&pair.source, &pair.destination), [""; 0]);
    pair.assert_sound("afterwards");
}

/// The way in which a migration ends.
#[derive(Clone, Copy)]
enum How {
    /// An operation of the source's VMM fails, or one of the destination's.
    From(&'static str),
    To(&'static str),
    /// An event while pages are copied.
    CancelSource,
    CancelDestination,
    Block,
    /// A block is longer at the destination.
    Longer,
    /// A fault of the connection.
    Relay(Point, Fault),
    /// A limit runs out: the source's while the destination builds itself, the destination's while
    /// pages are copied.
    SourceTimeout,
    DestinationTimeout,
}

#[derive(Clone, Copy)]
enum Fault {
    Cut,
    Swallow,
}

/// The rows of the table in `docs/errors.md`: the error of each side. No kind means success.
const ENDINGS: [(&str, How, &[Kind], &[Kind]); 18] = {
    use How::*;
    use Kind as K;
    const LOST: &[Kind] = &[Kind::PeerGone, Kind::Io];
    const RUNNING: Point = Point::Nth(RecordType::Running, 1);
    const HANDOVER: Point = Point::Nth(RecordType::Handover, 1);
    const MARKER: Point = Point::Nth(RecordType::Marker, 1);
    [
        (
            "cancel at the source",
            CancelSource,
            &[K::Cancelled],
            &[K::Cancelled],
        ),
        (
            "cancel at the destination",
            CancelDestination,
            &[K::Cancelled],
            &[K::Cancelled],
        ),
        (
            "early_save fails",
            From("early_save"),
            &[K::Vmm],
            &[K::Refused],
        ),
        ("pause fails", From("pause"), &[K::Vmm], &[K::Refused]),
        ("save fails", From("save"), &[K::Vmm], &[K::Refused]),
        ("release fails", From("release"), &[K::Vmm], &[K::Refused]),
        (
            "early_load fails",
            To("early_load"),
            &[K::Refused],
            &[K::Vmm],
        ),
        ("load fails", To("load"), &[K::Refused], &[K::Vmm]),
        ("loaded fails", To("loaded"), &[K::Refused], &[K::Vmm]),
        (
            "a blocker that comes meanwhile",
            Block,
            &[K::Blocked],
            &[K::Refused],
        ),
        ("layouts differ", Longer, &[K::Layout], &[K::Layout]),
        (
            "the connection breaks",
            Relay(MARKER, Fault::Cut),
            LOST,
            LOST,
        ),
        (
            "a limit of the source's while it agrees",
            SourceTimeout,
            &[K::Timeout],
            &[K::Refused],
        ),
        (
            "the destination's limit",
            DestinationTimeout,
            &[K::Refused],
            &[K::Timeout],
        ),
        ("run fails", To("run"), &[K::Unanswered], &[K::Vmm]),
        (
            "the hand-over is lost",
            Relay(HANDOVER, Fault::Swallow),
            &[K::Unanswered],
            &[K::Timeout],
        ),
        (
            "the answer is lost",
            Relay(RUNNING, Fault::Cut),
            &[K::Unanswered],
            &[],
        ),
        ("nothing happens", From("nothing"), &[], &[]),
    ]
};

/// Ends a migration in this way. Returns the result of each side.
fn end(how: How) -> (Result<()>, Result<()>) {
    let longer = if let How::Longer = how { 101 } else { 100 };
    let pair = Pair::of(
        Guest::new(&[ram("ram", 100)]),
        Guest::new(&[ram("ram", longer)]),
    );
    pair.source.fill(3);
    *pair.from.early.lock().unwrap() = vec![blob("cfg", 0, &[1])];
    let (mut from, mut to) = (quick(), quick());
    let (mut building, mut proxy) = (None, None);
    let (mut a, mut b) = socketpair();
    match how {
        How::From(operation) => pair.from.at(operation, || Err(failure())),
        How::To(operation) => pair.to.at(operation, || Err(failure())),
        How::Relay(point, verdict) => {
            let verdict = match verdict {
                Fault::Cut => Verdict::Cut,
                Fault::Swallow => Verdict::Swallow,
            };
            from.handover_timeout = MS * 500;
            let (man, source, destination) = Proxy::new(at(point, verdict));
            (proxy, a, b) = (Some(man), source, destination);
        }
        How::SourceTimeout => {
            from.total_timeout = Some(MS * 300);
            building = Some(pair.to.hold_at("early_load"));
        }
        How::DestinationTimeout => to.incoming_timeout = Some(MS * 500),
        _ => {}
    }
    let blockers = Blockers::new();
    let out: Arc<Outgoing> = pair
        .source
        .outgoing(&blockers, Arc::clone(&pair.from) as _, &from);
    let inc: Arc<Incoming> = incoming(&pair, &to);
    inc.start(AcceptFrom::Connected(b)).unwrap();
    let target = ConnectTo::Connected(a);
    let mut blocker = None;
    match how {
        How::CancelSource | How::CancelDestination | How::Block => {
            out.start_with(target, Box::new(Never)).unwrap();
            pair.from.wait_passes(2);
            match how {
                How::CancelSource => out.cancel().unwrap(),
                How::CancelDestination => inc.cancel().unwrap(),
                _ => blocker = Some(blockers.block("the test's")),
            }
        }
        How::DestinationTimeout => out.start_with(target, Box::new(Never)).unwrap(),
        _ => out.start(target).unwrap(),
    }
    let source = out.wait(Some(LONG));
    if let Some(building) = building {
        building.go();
    }
    let destination = inc.wait(Some(LONG));
    drop((blocker, proxy));
    pair.assert_sound("an ending");
    if !matches!(&source, Err(e) if e.kind() == Kind::Unanswered) && source.is_err() {
        pair.assert_runs_on("an ending");
    }
    (source, destination)
}

#[test]
fn each_ending_gives_each_side_the_code_that_the_table_says() {
    let kinds = |result: &Result<()>| result.as_ref().err().map(|e| e.kind());
    let is = |found: Option<Kind>, wanted: &[Kind]| match found {
        None => wanted.is_empty(),
        Some(kind) => wanted.contains(&kind),
    };
    std::thread::scope(|scope| {
        for (what, how, source, destination) in ENDINGS {
            scope.spawn(move || {
                let (out, inc) = end(how);
                let found = (kinds(&out), kinds(&inc));
                assert!(
                    is(found.0, source) && is(found.1, destination),
                    "{what}: {found:?}: {out:?} {inc:?}"
                );
            });
        }
    });
}

#[test]
fn the_table_of_endings_is_the_documents() {
    let page = include_str!("../../docs/errors.md");
    let name = |kind: &Kind| {
        let name = match kind {
            Kind::NotConverged => "NOT_CONVERGED".to_owned(),
            Kind::PeerGone => "PEER_GONE".to_owned(),
            kind => format!("{kind:?}").to_uppercase(),
        };
        format!("BRANT_E_{name}")
    };
    for (what, _, source, destination) in ENDINGS {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| {what} ")));
        let row = row.unwrap_or_else(|| panic!("docs/errors.md has no row for: {what}"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for (cell, kinds) in [(cells[2], source), (cells[3], destination)] {
            let wanted = match kinds {
                [] => "success".to_owned(),
                kinds => kinds.iter().map(name).collect::<Vec<_>>().join(" or "),
            };
            assert_eq!(cell, wanted, "{row}");
        }
    }
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
    // A part of the first pass has been sent at the cancel, and most has not.
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
