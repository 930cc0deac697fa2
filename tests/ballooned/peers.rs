//! Peers that send BALLOONED where it is not allowed, and peers without the feature.

use super::machine::{touched, Machine};
use crate::support::memory::ram;
use crate::support::peer::{self, Raw};
use crate::support::sides::quick;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, Params};
use brant::units::{Pages, PAGE_SIZE};
use brant::wire;
use brant::wire::{Header, Record, RecordType};

fn accepted(raw: &mut Raw, features: u64) {
    raw.say(&Record::Hello(wire::Hello {
        features_offered: features,
        token: [5; 16],
        software: "hostile".into(),
        ..peer::hello()
    }));
    match raw.hear_record() {
        Some(Record::HelloReply(reply)) => assert_eq!(reply.features, features),
        other => panic!("{other:?}"),
    }
    raw.say(&Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
    assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    raw.say(&Record::Block(wire::Block {
        id: 4,
        length: 2000 * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: "ram".into(),
    }));
    raw.say(&Record::LayoutEnd(wire::LayoutEnd {
        blocks: 1,
        bytes: 2000 * PAGE_SIZE,
    }));
    assert_eq!(raw.hear_record(), Some(Record::LayoutOk));
}

#[test]
fn ballooned_records_that_are_out_of_place_are_refused_by_name_and_touch_nothing() {
    let with = |header: Header| header.encode().to_vec();
    let ballooned = |block, first, count| Header::ballooned(block, Pages(first), count);
    let cases: Vec<(&str, u64, Vec<u8>, &str)> = vec![
        ("not agreed on", 1, with(ballooned(4, 0, 1)), "ballooned"),
        (
            "another block",
            3,
            with(ballooned(5, 0, 1)),
            "never announced",
        ),
        ("past the end", 3, with(ballooned(4, 1999, 2)), "2000 pages"),
        (
            "far past it",
            3,
            with(ballooned(4, u64::MAX, 2)),
            "2000 pages",
        ),
        ("nothing", 3, with(ballooned(4, 0, 0)), "at least one page"),
        ("two stretches", 3, with(ballooned(4, 511, 2)), "stretch"),
        (
            "with contents",
            3,
            with(Header {
                payload: 4096,
                ..ballooned(4, 0, 1)
            }),
            "payload of 0 bytes",
        ),
        (
            "skippable",
            3,
            with(Header {
                flags: wire::FLAG_SKIPPABLE,
                ..ballooned(4, 0, 1)
            }),
            "skippable",
        ),
        (
            "miscounted",
            3,
            {
                let mut bytes = with(ballooned(4, 7, 2));
                Record::Marker(wire::Marker {
                    number: 1,
                    pass: 1,
                    flags: 1,
                    records: 0,
                    data_pages: 0,
                    zero_pages: 0,
                })
                .encode(&mut bytes)
                .unwrap();
                bytes
            },
            "zero pages",
        ),
    ];
    for (what, features, bytes, reason) in cases {
        let to = Machine::new(&[ram("ram", 2000)]);
        to.guest.fill(9);
        let inc = to.incoming(&quick());
        let (mut raw, fd) = Raw::pair();
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        accepted(&mut raw, features);
        raw.say_bytes(&bytes);
        let heard = raw.hear_abort().unwrap_or_default();
        assert!(heard.contains(reason), "{what}: {heard}");
        assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Protocol);
        let left = touched(&to.guest.memory, 0).len();
        let miscounted = if what == "miscounted" { 2 } else { 0 };
        assert_eq!(left, 2000 - miscounted, "{what}");
    }
}

#[test]
fn a_source_without_the_feature_is_answered_without_it() {
    let to = Machine::new(&[ram("ram", 2000)]);
    let inc = to.incoming(&Params {
        skip_ballooned: false,
        ..quick()
    });
    let (mut raw, fd) = Raw::pair();
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    raw.say(&Record::Hello(wire::Hello {
        features_offered: 3,
        token: [5; 16],
        software: "other".into(),
        ..peer::hello()
    }));
    match raw.hear_record() {
        Some(Record::HelloReply(reply)) => assert_eq!(reply.features, 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(RecordType::Ballooned.number(), 22);
}
