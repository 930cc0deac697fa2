//! Whole sessions with one mistake: no guest runs that was not handed over, and the guest stays
//! where it belongs.

use super::as_destination::{agree, sending};
use super::as_source::{accepted, reach, ready, Step};
use super::bounds::bounded;
use super::params::quick;
use super::records::{hello, marker, state_end};
use crate::support::fuzz::bytes as bytes_of;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::sides::incoming;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::AcceptFrom;
use brant::units::{Pages, PAGE_SIZE};
use brant::wire;
use brant::wire::{Header, Record};

#[test]
fn a_hostile_source_is_refused_with_a_reason_and_nothing_ever_runs() {
    bounded();
    let full_page = [7u8; 4096];
    type Play = Box<dyn Fn(&mut Raw) + Send + Sync>;
    let page_run = |block, first, count| {
        let mut bytes = Header::pages(block, Pages(first), count).encode().to_vec();
        bytes.extend_from_slice(&full_page.repeat(count as usize));
        bytes
    };
    let bytes = |bytes: Vec<u8>| -> Play {
        Box::new(move |raw: &mut Raw| {
            accepted(raw);
            raw.say_bytes(&bytes);
        })
    };
    let record = |record: Record| -> Play {
        Box::new(move |raw: &mut Raw| {
            accepted(raw);
            raw.say(&record);
        })
    };
    let mut garbled = Header::zeros(4, Pages(0), 1).encode();
    garbled[9] ^= 1;
    let cases: Vec<(&str, Play, &str)> = vec![
        (
            "garbage instead of HELLO",
            Box::new(|raw: &mut Raw| raw.say_bytes(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")),
            "",
        ),
        (
            "no HELLO",
            Box::new(|raw: &mut Raw| raw.say(&Record::Marker(marker(1, 0, 0, 0, 0)))),
            "HELLO",
        ),
        ("a garbled header", bytes(garbled.to_vec()), "checksum"),
        ("an unknown block", bytes(page_run(5, 0, 1)), "block 5"),
        ("past the end", bytes(page_run(4, 599, 2)), "600"),
        ("far past the end", bytes(page_run(4, u64::MAX, 1)), "600"),
        ("across a stretch", bytes(page_run(4, 511, 2)), "512"),
        (
            "too many records",
            record(Record::Marker(marker(1, 0, 1, 0, 0))),
            "marker 1",
        ),
        (
            "data pages that never came",
            record(Record::Marker(marker(1, 1, 0, 1, 0))),
            "marker 1",
        ),
        (
            "a marker out of order",
            record(Record::Marker(marker(2, 0, 0, 0, 0))),
            "marker 2",
        ),
        (
            "the hand-over too early",
            record(Record::Handover(wire::Handover { token: [5; 16] })),
            "HANDOVER",
        ),
        ("HELLO twice", record(Record::Hello(hello())), "HELLO"),
        (
            "state before the end",
            record(Record::StateEnd(wire::StateEnd {
                blobs: wire::BlobEnd { count: 0, bytes: 0 },
                handover_millis: 30_000,
            })),
            "STATE_END",
        ),
        (
            "a block removed that was never there",
            record(Record::BlockRemoved { id: 9 }),
            "block 9",
        ),
        (
            "another token in the hand-over",
            Box::new(|raw: &mut Raw| {
                ready(raw);
                raw.say(&Record::Handover(wire::Handover { token: [6; 16] }));
            }),
            "token",
        ),
        (
            "the hand-over in one burst with the state",
            Box::new(|raw: &mut Raw| {
                reach(raw, Step::State);
                let mut burst = bytes_of(&Record::StateEnd(state_end(0, 0)));
                burst.extend(bytes_of(&Record::Handover(wire::Handover {
                    token: hello().token,
                })));
                raw.say_bytes(&burst);
            }),
            "nothing but BLOCK_REMOVED before READY, found HANDOVER",
        ),
        (
            "half of the hand-over before READY",
            Box::new(|raw: &mut Raw| {
                reach(raw, Step::State);
                let mut burst = bytes_of(&Record::StateEnd(state_end(0, 0)));
                let handover = bytes_of(&Record::Handover(wire::Handover {
                    token: hello().token,
                }));
                burst.extend(&handover[..7]);
                raw.say_bytes(&burst);
                raw.say_bytes(&handover[7..]);
            }),
            "nothing but BLOCK_REMOVED before READY, found HANDOVER",
        ),
        (
            "pages after the end",
            Box::new(|raw: &mut Raw| {
                ready(raw);
                raw.say_bytes(&Header::zeros(4, Pages(0), 1).encode());
            }),
            "ZEROS",
        ),
        (
            "two blocks of one name",
            Box::new(|raw: &mut Raw| {
                raw.say(&Record::Hello(hello()));
                raw.hear_record();
                raw.say(&Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
                raw.hear_record();
                for id in [1, 2] {
                    raw.say(&Record::Block(wire::Block {
                        id,
                        length: 600 * PAGE_SIZE,
                        page_size: PAGE_SIZE,
                        flags: 0,
                        name: "ram".into(),
                    }));
                }
                raw.say(&Record::LayoutEnd(wire::LayoutEnd {
                    blocks: 2,
                    bytes: 1200 * PAGE_SIZE,
                }));
            }),
            "`ram`",
        ),
        (
            "an ABORT with control characters",
            record(Record::Abort(wire::Abort {
                code: -1,
                reason: "bad\u{1b}[31m\nnews".into(),
            })),
            "-",
        ),
    ];
    for (what, play, reason) in cases {
        let pair = Pair::new(&[ram("ram", 600)]);
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, &quick());
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        play(&mut raw);
        let told = raw.hear_abort();
        drop(raw);
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert!(
            !error.message().contains(['\u{1b}', '\n']),
            "{what}: {error:?}"
        );
        if reason != "-" {
            assert_eq!(error.kind(), Kind::Protocol, "{what}: {error}");
            assert!(
                error.message().contains(reason),
                "{what}: {reason} in: {error}"
            );
            assert_eq!(told.as_deref(), Some(error.message()), "{what}");
        }
        assert_eq!(pair.to.calls("run"), 0, "{what}");
    }
    bounded();
}

#[test]
fn a_hostile_destination_is_left_and_the_guest_runs_on() {
    bounded();
    type Play = fn(&mut Raw);
    let cases: Vec<(&str, Play, Kind, &str)> = vec![
        ("garbage", |r| r.say_bytes(&[b'x'; 64]), Kind::Protocol, ""),
        (
            "no reply",
            |r| r.say(&Record::LayoutOk),
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "another version",
            |r| {
                r.say(&Record::HelloReply(wire::HelloReply {
                    version: 9,
                    features: 1,
                    software: String::new(),
                }));
            },
            Kind::Version,
            "9",
        ),
        (
            "ready while copying",
            |r| {
                agree(r);
                r.say(&Record::Ready(wire::Ready {
                    load_micros: 0,
                    digest_micros: 0,
                }));
            },
            Kind::Protocol,
            "READY",
        ),
        (
            "running without a hand-over",
            |r| {
                agree(r);
                r.say(&Record::Running(wire::Running { run_micros: 0 }));
            },
            Kind::Protocol,
            "RUNNING",
        ),
        (
            "an acknowledgement of what was never sent",
            |r| {
                agree(r);
                r.say(&Record::Ack(wire::Ack { number: 1 << 40 }));
            },
            Kind::Protocol,
            "marker",
        ),
        (
            "a record of the wrong way",
            |r| {
                agree(r);
                r.say(&Record::Hello(hello()));
            },
            Kind::Protocol,
            "HELLO",
        ),
        ("the end", |r| agree(r), Kind::PeerGone, ""),
    ];
    for (what, play, kind, reason) in cases {
        let (pair, out, mut raw) = sending(&quick());
        play(&mut raw);
        if kind == Kind::PeerGone {
            drop(raw);
        } else {
            // Reads on, so that the source can go on.
            std::thread::spawn(move || raw.hear_abort());
        }
        let error = out.wait(Some(LONG)).unwrap_err();
        let gone = kind == Kind::PeerGone && error.kind() == Kind::Io;
        assert!(
            error.kind() == kind || gone,
            "{what}: {:?} {error}",
            error.kind()
        );
        assert!(
            error.message().contains(reason),
            "{what}: {reason} in: {error}"
        );
        assert_eq!(pair.from.calls("pause"), 0, "{what}");
        pair.assert_runs_on(what);
    }
    bounded();
}
