//! Blobs and blocks without end, and blocks that are gone when they are announced.

use super::as_source::{reach, sent_to_destination, Step};
use super::bounds::bounded;
use super::params::quick;
use super::records::{block, hello, marker, sample, state_end, PAGES};
use crate::support::fuzz::{blob_bytes, bytes, page_bytes};
use crate::support::guest::Guest;
use crate::support::memory::{ram, Ram};
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::random::Random;
use crate::support::sides::incoming;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, DestinationState, Params};
use brant::units::Pages;
use brant::wire;
use brant::wire::{Header, Record, RecordType};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

#[test]
fn more_blobs_or_blocks_than_there_can_be_are_refused_as_they_come() {
    bounded();
    let params = || Params {
        max_state_bytes: 1 << 40,
        ..quick()
    };
    let many = |kind: RecordType, count: usize| {
        let one = match kind {
            RecordType::Block => sample(kind),
            _ => blob_bytes(kind, "x", &[]),
        };
        let mut stream = one.repeat(count);
        // The blocks have the same name, which is checked only at the end.
        stream.extend(sample(kind));
        stream
    };
    for (step, kind, count, word) in [
        (Step::Early, RecordType::Early, 65_536, "65536 blobs"),
        (Step::State, RecordType::State, 65_536, "65536 blobs"),
        (Step::Layout, RecordType::Block, 4096, "4096 blocks"),
    ] {
        let (error, _) = sent_to_destination(step, &many(kind, count), params());
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.message().contains(word), "{error}");
    }
    bounded();
}

/// The result for a block that the source announced when it was gone here already.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Late {
    Arrives,
    Refused(Kind, &'static str),
}

#[test]
fn a_block_that_is_gone_again_when_it_is_announced_takes_nothing_and_has_to_go() {
    use Late::{Arrives, Refused};
    bounded();
    let added = |id, pages| bytes(&Record::BlockAdded(block(id, "late", pages)));
    let removed = |id| bytes(&Record::BlockRemoved { id });
    let zeros = |first, count| Header::zeros(9, Pages(first), count).encode().to_vec();
    let runs = || [page_bytes(9, 3, 2), zeros(0, 2)].concat();
    let last = |records, data, zero| {
        let last = marker(1, wire::MARKER_FLAG_FINAL, records, data, zero);
        bytes(&Record::Marker(last))
    };
    let removed_here = Refused(Kind::Layout, "`late` was removed at the destination");
    // Whether another block of its name has come here since, what the source says, and the result.
    let cases: Vec<(bool, Vec<Vec<u8>>, Late)> = vec![
        (
            false,
            vec![added(9, 8), runs(), removed(9), last(2, 2, 2)],
            Arrives,
        ),
        (
            true,
            vec![
                added(9, 8),
                runs(),
                removed(9),
                added(10, 16),
                last(2, 2, 2),
            ],
            Arrives,
        ),
        (
            false,
            vec![added(9, 8), runs(), last(2, 2, 2)],
            removed_here,
        ),
        (true, vec![added(9, 8), last(0, 0, 0)], removed_here),
        // Its records are checked like those for a block that exists.
        (
            false,
            vec![added(9, 8), zeros(7, 2)],
            Refused(Kind::Protocol, "8 pages"),
        ),
        (
            false,
            vec![added(9, 8), added(9, 8)],
            Refused(Kind::Protocol, "block 9 is announced twice"),
        ),
        (
            false,
            vec![added(9, 8), added(10, 8)],
            Refused(Kind::Protocol, "`late` is announced again, as 10"),
        ),
        (
            true,
            vec![added(9, 8), added(10, 16)],
            Refused(Kind::Protocol, "`late` is announced again, as 10"),
        ),
        (
            false,
            vec![added(9, 8), removed(9), zeros(0, 1)],
            Refused(Kind::Protocol, "block 9"),
        ),
        (
            false,
            vec![bytes(&Record::BlockAdded(block(9, "never", 8)))],
            Refused(Kind::Layout, "none of that name"),
        ),
    ];
    for (number, (another, say, then)) in cases.into_iter().enumerate() {
        let pair = Pair::of(Guest::new(&[]), Guest::new(&[ram("ram", PAGES as usize)]));
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, &quick());
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        reach(&mut raw, Step::Passes);
        pair.destination.add(Ram::new(&ram("late", 8)));
        pair.destination.remove("late");
        if another {
            let other = Ram::new(&ram("late", 16));
            other.fill_all(&mut Random(5));
            pair.destination.add(other);
        }
        raw.say_bytes(&say.concat());
        match then {
            Arrives => {
                assert!(
                    matches!(raw.hear_record(), Some(Record::Ack(_))),
                    "{number}"
                );
                raw.say(&Record::StateEnd(state_end(0, 0)));
                let ready = raw.hear_record();
                assert!(
                    matches!(ready, Some(Record::Ready(_))),
                    "{number}: {ready:?}"
                );
                if another {
                    let other = pair.destination.ram("late");
                    let kept = (0..16).all(|page| other.page(page).iter().any(|b| *b != 0));
                    assert!(kept, "{number}: pages went to another block of that name");
                }
                inc.cancel().unwrap();
            }
            Refused(kind, word) => {
                // The last moment at which the source can say that its block is gone too.
                raw.say_bytes(&bytes(&Record::StateEnd(state_end(0, 0))));
                let told = raw.hear_abort();
                drop(raw);
                let error = inc.wait(Some(LONG)).unwrap_err();
                assert_eq!(error.kind(), kind, "{number}: {error}");
                assert!(
                    error.message().contains(word),
                    "{number}: {word} in {error}"
                );
                assert_eq!(told.as_deref(), Some(error.message()), "{number}");
            }
        }
        assert_eq!(pair.to.calls("run"), 0, "{number}");
    }
    bounded();
}

#[test]
fn a_source_that_announces_much_and_sends_little_costs_little() {
    bounded();
    let data = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmData")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let pair = Pair::new(&[ram("ram", 600)]);
    let params = Params {
        max_state_bytes: 1 << 40,
        ..quick()
    };
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &params);
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    raw.say(&Record::Hello(hello()));
    raw.hear_record();
    let before = data();
    raw.say_bytes(&Header::control(RecordType::Early, 0, wire::PAYLOAD_MAX).encode());
    raw.say_bytes(&vec![1; 3 << 20]);
    // When the socket is empty again, the destination has taken everything.
    let begun = Instant::now();
    while inc.state() != DestinationState::Negotiating || pending_bytes(&raw.0) > 0 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    let grown = data().saturating_sub(before);
    println!("1 GiB announced, 3 MiB sent: {grown} KiB more");
    assert!(grown < 700 << 10, "{grown} KiB");
    inc.cancel().unwrap();
    // A block too many is refused by its header.
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &quick());
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    raw.say(&Record::Hello(hello()));
    raw.hear_record();
    raw.say_bytes(&Header::control(RecordType::Early, 0, (256 << 20) + 1).encode());
    assert!(raw.hear_abort().unwrap().contains("allowed here"));
    bounded();
}

/// How many bytes the peer has not taken yet.
fn pending_bytes(socket: &UnixStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    assert_eq!(result, 0);
    bytes
}
