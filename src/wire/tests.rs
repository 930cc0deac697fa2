//! The promises of the wire, tested: fixtures, round trips, refusals.
//!
//! The fixtures in `tests/fixtures/wire` are bytes that no version may stop
//! understanding. They are written anew only with `BRANT_REGEN_FIXTURES=1`.

use super::*;
use crate::error::{Kind, Result};
use crate::units::{Pages, PAGE_SIZE};
use proptest::prelude::*;
use std::path::Path;

const TOKEN: Token = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

/// Any record that can be in a stream.
#[derive(Debug, Clone, PartialEq)]
enum Any {
    Control(Record),
    Blob(RecordType, Blob, Vec<u8>),
    Run(Header, Vec<u8>),
}

fn encode(any: &Any) -> Vec<u8> {
    let mut out = Vec::new();
    match any {
        Any::Control(record) => record.encode(&mut out).unwrap(),
        Any::Blob(kind, blob, data) => {
            blob.encode(*kind, &mut out).unwrap();
            out.extend_from_slice(data);
        }
        Any::Run(header, data) => {
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(data);
        }
    }
    out
}

/// What a receiver does with a whole record in memory. `None`: skipped.
fn decode(bytes: &[u8]) -> Result<Option<Any>> {
    let short = || crate::error::Error::new(Kind::Protocol, "cut short");
    let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or_else(short)?;
    let header = Header::decode(head)?;
    let Some(kind) = header.classify()? else {
        return Ok(None);
    };
    if payload.len() != header.payload as usize {
        return Err(short());
    }
    if kind.is_page_run() {
        header.check_run(Pages(u64::MAX))?;
        return Ok(Some(Any::Run(header, payload.to_vec())));
    }
    if kind.is_blob() {
        let (blob, at) = Blob::decode(&header, payload)?;
        return Ok(Some(Any::Blob(kind, blob, payload[at..].to_vec())));
    }
    Record::decode(&header, payload).map(|record| Some(Any::Control(record)))
}

/// One record of every type, with the fixture it is in.
fn examples() -> Vec<(&'static str, Any)> {
    let block = |id, name: &str, flags| Block {
        id,
        length: 0x1_4000_0000,
        page_size: 0x20_0000,
        flags,
        name: name.into(),
    };
    let blob = |name: &str, length| Blob {
        name: name.into(),
        instance: 3,
        version: 0x0102_0304,
        length,
    };
    let page = |n: usize| {
        (0..n)
            .map(|i| (i * 7 + i / 4096) as u8)
            .collect::<Vec<u8>>()
    };
    vec![
        (
            "hello",
            Any::Control(Record::Hello(Hello {
                version_min: 1,
                version_max: 2,
                features_offered: 0x8000_0000_0000_0003,
                features_required: 1,
                token: TOKEN,
                channel: 2,
                channels: 4,
                page_shift: 12,
                role: ROLE_URGENT,
                software: "brant 0.1".into(),
            })),
        ),
        (
            "hello_reply",
            Any::Control(Record::HelloReply(HelloReply {
                version: 1,
                features: 1,
                software: "grüße".into(),
            })),
        ),
        ("block", Any::Control(Record::Block(block(1, "pc.ram", 0)))),
        (
            "layout_end",
            Any::Control(Record::LayoutEnd(LayoutEnd {
                blocks: 2,
                bytes: 0x1_4002_0000,
            })),
        ),
        ("layout_ok", Any::Control(Record::LayoutOk)),
        (
            "pages",
            Any::Run(Header::pages(1, Pages(0x1_0000_01fe), 2), page(8192)),
        ),
        ("zeros", Any::Run(Header::zeros(1, Pages(512), 512), vec![])),
        (
            "marker",
            Any::Control(Record::Marker(Marker {
                number: 7,
                pass: 3,
                flags: MARKER_FLAG_FINAL,
                records: 0x0102_0304_0506_0708,
                data_pages: 1_000_000,
                zero_pages: 2_000_000,
            })),
        ),
        ("ack", Any::Control(Record::Ack(Ack { number: 7 }))),
        (
            "state",
            Any::Blob(RecordType::State, blob("vcpu", 5), b"regs!".to_vec()),
        ),
        (
            "state_end",
            Any::Control(Record::StateEnd(StateEnd {
                blobs: BlobEnd { count: 1, bytes: 5 },
                handover_millis: 30_000,
            })),
        ),
        (
            "early",
            Any::Blob(RecordType::Early, blob("machine", 0), vec![]),
        ),
        (
            "early_end",
            Any::Control(Record::EarlyEnd(BlobEnd { count: 1, bytes: 0 })),
        ),
        ("early_ok", Any::Control(Record::EarlyOk)),
        (
            "ready",
            Any::Control(Record::Ready(Ready { load_micros: 1500 })),
        ),
        (
            "handover",
            Any::Control(Record::Handover(Handover { token: TOKEN })),
        ),
        (
            "running",
            Any::Control(Record::Running(Running { run_micros: 250 })),
        ),
        (
            "abort",
            Any::Control(Record::Abort(Abort {
                code: Kind::Layout as i32,
                reason: "block \"pc.ram\" is missing".into(),
            })),
        ),
        ("keepalive", Any::Control(Record::Keepalive)),
        (
            "block_added",
            Any::Control(Record::BlockAdded(block(9, "dimm1", BLOCK_FLAG_ROM))),
        ),
        (
            "block_removed",
            Any::Control(Record::BlockRemoved { id: 9 }),
        ),
        (
            "ballooned",
            Any::Run(Header::ballooned(1, Pages(1536), 511), vec![]),
        ),
    ]
}

fn refused(result: Result<impl std::fmt::Debug>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn every_fixture_means_what_it_always_meant() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire");
    let examples = examples();
    let regenerate = std::env::var_os("BRANT_REGEN_FIXTURES").is_some();
    for (name, value) in &examples {
        let path = folder.join(format!("{name}.bin"));
        if regenerate {
            std::fs::write(&path, encode(value)).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(decode(&bytes).unwrap().as_ref(), Some(value), "{name}");
        assert_eq!(encode(value), bytes, "{name}");
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(
        files,
        examples.len(),
        "a fixture without a test, or the other way round"
    );
}

#[test]
fn there_is_an_example_of_every_type() {
    let mut numbers: Vec<u16> = examples()
        .iter()
        .map(|(_, value)| u16::from_le_bytes(encode(value)[4..6].try_into().unwrap()))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=22).collect::<Vec<u16>>());
    for kind in RecordType::ALL {
        assert_eq!(RecordType::from_number(kind.number()), Some(*kind));
    }
}

#[test]
fn the_specification_lists_the_types_as_they_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/wire.md");
    let text = std::fs::read_to_string(path).unwrap();
    for kind in RecordType::ALL {
        let way = match kind.direction() {
            Direction::ToDestination => "→",
            Direction::ToSource => "←",
            Direction::Either => "either",
        };
        let payload = match (*kind, kind.payload_limits()) {
            (RecordType::Pages, _) => "count × 4096".to_string(),
            (_, (least, PAYLOAD_MAX)) => format!("{least} to 2^30"),
            (_, (least, most)) if least == most => format!("{most}"),
            (_, (least, most)) => format!("{least} to {most}"),
        };
        let row = format!(
            "| {} | {} | {way} | {payload} |",
            kind.number(),
            kind.name()
        );
        assert!(text.contains(&row), "docs/wire.md has no row {row}");
    }
    for feature in FEATURES {
        let row = format!("| {} | {} |", feature.bit, feature.name);
        assert!(text.contains(&row), "docs/wire.md has no row {row}");
    }
}

#[test]
fn a_marker_is_these_bytes() {
    // By hand from docs/wire.md (the checksum from zlib), so that an error made
    // alike in encoding and decoding does not go unseen.
    #[rustfmt::skip]
    let bytes: &[u8] = &[
        b'B', b'R', b'N', b'T',  8, 0,  0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,  40, 0, 0, 0,  0x7c, 0x26, 0x8a, 0xce,
        7, 0, 0, 0, 0, 0, 0, 0,  3, 0, 0, 0,  1, 0, 0, 0,
        8, 7, 6, 5, 4, 3, 2, 1,
        0x40, 0x42, 0x0f, 0, 0, 0, 0, 0,  0x80, 0x84, 0x1e, 0, 0, 0, 0, 0,
    ];
    let (_, marker) = &examples()[7];
    assert_eq!(encode(marker), bytes);
}

#[test]
fn every_truncation_of_every_record_is_refused() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        for length in 0..bytes.len() {
            assert!(
                decode(&bytes[..length]).is_err(),
                "{name} cut to {length} bytes"
            );
        }
    }
}

/// The payload cut, and the header made to agree with it.
#[test]
fn every_truncation_that_the_header_owns_up_to_is_refused() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        for length in HEADER_LEN..bytes.len() {
            let mut cut = bytes[..length].to_vec();
            let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
            let payload = (length - HEADER_LEN) as u32;
            cut[..HEADER_LEN].copy_from_slice(&Header { payload, ..header }.encode());
            assert!(
                decode(&cut).is_err(),
                "{name} with a payload of {payload} bytes"
            );
        }
    }
}

#[test]
fn trailing_bytes_are_refused_even_when_the_header_counts_them() {
    for (name, value) in examples() {
        let mut bytes = encode(&value);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        for extra in [1, 2, 4096] {
            bytes.resize(HEADER_LEN + header.payload as usize + extra, 0);
            let payload = header.payload + extra as u32;
            let counted = Header { payload, ..header }.encode();
            assert!(decode(&bytes).is_err(), "{name}");
            bytes[..HEADER_LEN].copy_from_slice(&counted);
            assert!(decode(&bytes).is_err(), "{name}, counted");
            bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        }
    }
}

#[test]
fn every_single_bit_flip_of_a_header_is_refused() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = *bytes.first_chunk::<HEADER_LEN>().unwrap();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused(Header::decode(&flipped), &["expected", "found"]);
        }
        assert!(
            Header::decode(bytes.first_chunk().unwrap()).is_ok(),
            "{name}"
        );
    }
}

#[test]
fn header_errors_say_expected_and_found() {
    let header = Header::control(RecordType::Ready, 0, 8);
    let mut bytes = header.encode();
    bytes[..4].copy_from_slice(b"HTTP");
    refused(Header::decode(&bytes), &["BRNT", "0x50545448"]);
    for flags in [2, 0x8000, 3] {
        refused(
            Header::decode(&Header { flags, ..header }.encode()),
            &["READY", &format!("{flags:#x}")],
        );
    }
    refused(
        Header {
            payload: 9,
            ..header
        }
        .classify(),
        &["READY", "8 bytes", "found 9"],
    );
}

#[test]
fn an_unknown_type_is_skipped_with_the_flag_and_refused_without() {
    let unknown = Header {
        kind: 999,
        flags: FLAG_SKIPPABLE,
        block: 5,
        count: 6,
        first_page: 7,
        payload: SKIPPED_PAYLOAD_MAX,
    };
    let decoded = Header::decode(&unknown.encode()).unwrap();
    assert_eq!(decoded, unknown);
    assert_eq!(decoded.classify().unwrap(), None);
    refused(Record::decode(&decoded, &[]), &["999"]);
    refused(
        Header {
            flags: 0,
            ..unknown
        }
        .classify(),
        &["999", "1 to 22"],
    );
    refused(
        Header {
            kind: 0,
            flags: 0,
            ..unknown
        }
        .classify(),
        &["type 0"],
    );
    let much = Header {
        payload: SKIPPED_PAYLOAD_MAX + 1,
        ..unknown
    };
    refused(much.check_payload_limit(), &["65536", "65537"]);
}

#[test]
fn a_known_type_has_one_valid_form_of_flag_and_unused_fields() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        let kind = header.classify().unwrap().unwrap();
        let flags = header.flags ^ FLAG_SKIPPABLE;
        refused(Header { flags, ..header }.classify(), &["skippable"]);
        if !kind.is_page_run() {
            refused(Header { count: 1, ..header }.classify(), &["count 1"]);
            refused(
                Header {
                    first_page: 1,
                    ..header
                }
                .classify(),
                &["first page 1"],
            );
        }
        let block = Header {
            block: 77,
            ..header
        }
        .classify();
        assert_eq!(block.is_ok(), kind.uses_block(), "{name}");
    }
}

#[test]
fn a_payload_beyond_its_types_limit_is_refused_from_the_header_alone() {
    for &kind in RecordType::ALL {
        let (least, most) = kind.payload_limits();
        assert!(least <= most && most <= PAYLOAD_MAX, "{kind:?}");
        let base = match kind {
            RecordType::Pages => Header::pages(0, Pages(0), 1),
            RecordType::Zeros => Header::zeros(0, Pages(0), 1),
            RecordType::Ballooned => Header::ballooned(0, Pages(0), 1),
            _ => Header::control(kind, 0, 0),
        };
        for payload in [most + 1, u32::MAX] {
            refused(
                Header { payload, ..base }.check_payload_limit(),
                &[kind.name()],
            );
        }
        if let Some(payload) = least.checked_sub(1) {
            refused(
                Header { payload, ..base }.check_payload_limit(),
                &[kind.name()],
            );
        }
        if kind != RecordType::Pages {
            for payload in [least, most] {
                Header { payload, ..base }.check_payload_limit().unwrap();
            }
        }
    }
    let run = Header::pages(0, Pages(0), 512);
    run.check_payload_limit().unwrap();
    for count in [0, 513, 1 << 20, u32::MAX] {
        refused(Header { count, ..run }.check_payload_limit(), &["1 to 512"]);
    }
    refused(
        Header {
            payload: 4096,
            ..run
        }
        .check_payload_limit(),
        &["2097152", "4096"],
    );
}

#[test]
fn a_run_stays_inside_its_block_and_its_stretch() {
    let block = Pages(1500);
    for build in [Header::pages, Header::zeros, Header::ballooned] {
        for (first, count) in [
            (0, 1),
            (0, 512),
            (511, 1),
            (512, 512),
            (1499, 1),
            (1024, 476),
        ] {
            build(3, Pages(first), count).check_run(block).unwrap();
        }
        for (first, count) in [
            (0, 0),
            (0, 513),
            (511, 2),
            (1, 512),
            (1499, 2),
            (1500, 1),
            (1024, 477),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (u64::MAX - 511, 512),
            (0, u32::MAX),
        ] {
            refused(
                build(3, Pages(first), count).check_run(block),
                &["block 3", &format!("{count} pages from page {first}")],
            );
        }
        refused(build(3, Pages(0), 1).check_run(Pages(0)), &["0 pages"]);
    }
    // The largest that can be: no overflow on the way there.
    Header::zeros(0, Pages(u64::MAX - 1), 1)
        .check_run(Pages(u64::MAX))
        .unwrap();
    let data = Header::pages(3, Pages(0), 2);
    for payload in [0, 4096, 8191, 8193, u32::MAX] {
        refused(Header { payload, ..data }.check_run(block), &["8192"]);
    }
    let zeros = Header::zeros(3, Pages(0), 2);
    refused(
        Header {
            payload: 1,
            ..zeros
        }
        .check_run(block),
        &["0 bytes"],
    );
    refused(
        Header::control(RecordType::Ack, 0, 8).check_run(block),
        &["PAGES, ZEROS or BALLOONED"],
    );
}

fn state_end(count: u32, handover_millis: u32) -> Record {
    Record::StateEnd(StateEnd {
        blobs: BlobEnd { count, bytes: 0 },
        handover_millis,
    })
}

#[test]
fn invalid_fields_are_refused_both_ways() {
    let hello = |change: fn(&mut Hello)| {
        let Any::Control(Record::Hello(mut hello)) = examples()[0].1.clone() else {
            unreachable!()
        };
        change(&mut hello);
        Record::Hello(hello)
    };
    let block = |change: fn(&mut Block)| {
        let Any::Control(Record::Block(mut block)) = examples()[2].1.clone() else {
            unreachable!()
        };
        change(&mut block);
        Record::Block(block)
    };
    let marker = |number, flags| {
        Record::Marker(Marker {
            number,
            pass: 0,
            flags,
            records: 0,
            data_pages: 0,
            zero_pages: 0,
        })
    };
    for record in [
        hello(|h| h.version_min = 0),
        hello(|h| h.version_min = 3),
        hello(|h| h.features_required = 4),
        hello(|h| h.channels = 0),
        hello(|h| h.channels = 257),
        hello(|h| h.channel = 4),
        // Urgent, as the example is.
        hello(|h| h.channel = 0),
        hello(|h| h.software = "x".repeat(65)),
        hello(|h| h.software = "a\nb".into()),
        Record::HelloReply(HelloReply {
            version: 0,
            features: 0,
            software: String::new(),
        }),
        block(|b| b.length = 0),
        block(|b| b.length += 1),
        block(|b| b.length = 1 << 63),
        block(|b| b.page_size = 0),
        block(|b| b.page_size = 2048),
        block(|b| b.page_size = 12288),
        block(|b| b.flags = 2),
        block(|b| b.name = "\0".into()),
        block(|b| b.name = "x".repeat(256)),
        Record::LayoutEnd(LayoutEnd {
            blocks: BLOCKS_MAX + 1,
            bytes: 0,
        }),
        state_end(BLOBS_MAX + 1, 1),
        state_end(0, 0),
        state_end(0, HANDOVER_MILLIS_MAX + 1),
        marker(0, 0),
        marker(1, 2),
        Record::Ack(Ack { number: 0 }),
    ] {
        let mut out = vec![1, 2, 3];
        let error = record.encode(&mut out).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert_eq!(out, [1, 2, 3], "untouched on an error");
    }
    // The same, arriving: (fixture, offset in the payload, bytes put there).
    let mut too_many = 257u16.to_le_bytes().to_vec();
    too_many.push(12);
    for (name, at, patch) in [
        ("hello", 0, &[0, 0][..]),
        ("hello", 0, &[3, 0]),
        ("hello", 12, &[4]),
        ("hello", 36, &[4, 0]),
        ("hello", 38, &[0, 0]),
        ("hello", 38, &too_many),
        ("hello", 42, &[65]),
        ("hello", 43, &[0xff]),
        ("hello", 43, &[7]),
        ("hello", 36, &[0, 0]),
        ("hello_reply", 0, &[0, 0]),
        ("block", 0, &[1]),
        ("block", 0, &[0; 8]),
        ("block", 7, &[0x80]),
        ("block", 8, &[0; 8]),
        ("block", 8, &[1]),
        ("block", 16, &[2]),
        ("block", 20, &[0xff, 0xff]),
        ("block", 20, &[0, 1]),
        ("block", 22, &[0]),
        ("layout_end", 0, &[1, 0x80, 0, 0]),
        ("state_end", 0, &[1, 0, 1, 0]),
        ("state_end", 12, &[0; 4]),
        ("state_end", 12, &[0x81, 0xee, 0x36, 0]),
        ("early_end", 0, &[1, 0, 1, 0]),
        ("marker", 0, &[0; 8]),
        ("marker", 12, &[3]),
        ("ack", 0, &[0]),
        ("abort", 4, &[1, 4]),
        ("state", 0, &[0]),
        ("state", 0, &[129]),
        ("state", 1, &[0xc3]),
        ("state", 1, &[0x1b]),
        ("state", 13, &[4]),
        ("state", 13, &[6]),
        ("state", 20, &[0x80]),
    ] {
        let (_, value) = examples().into_iter().find(|(n, _)| *n == name).unwrap();
        let mut bytes = encode(&value);
        bytes[HEADER_LEN + at..][..patch.len()].copy_from_slice(patch);
        refused(decode(&bytes), &["found"]);
    }
}

#[test]
fn a_blob_can_be_read_piecewise() {
    let blob = Blob {
        name: "vga".into(),
        instance: 1,
        version: 2,
        length: 900 << 20,
    };
    let mut bytes = Vec::new();
    blob.encode(RecordType::State, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let prefix = &bytes[HEADER_LEN..];
    // The data is not there, and was not needed.
    assert_eq!(Blob::prefix_len_from(prefix[0]).unwrap(), prefix.len());
    assert_eq!(
        Blob::decode(&header, prefix).unwrap(),
        (blob.clone(), prefix.len())
    );
    assert!(blob.prefix_len() <= BLOB_PREFIX_MAX);
    for short in 0..prefix.len() {
        refused(Blob::decode(&header, &prefix[..short]), &["STATE"]);
    }
    // What comes after the payload is not read as part of it.
    let mut more = prefix.to_vec();
    more.resize(BLOB_PREFIX_MAX, 0xee);
    let small = Header {
        payload: 19,
        ..header
    };
    refused(Blob::decode(&small, &more), &["STATE"]);
    for first in [0, 129, 255] {
        refused(Blob::prefix_len_from(first), &["1 to 128"]);
    }
}

#[test]
fn a_blob_beyond_the_payload_limit_is_refused_when_encoded() {
    let most = u64::from(PAYLOAD_MAX) - 18;
    let blob = |length| Blob {
        name: "x".into(),
        instance: 0,
        version: 0,
        length,
    };
    let mut out = Vec::new();
    blob(most).encode(RecordType::State, &mut out).unwrap();
    let header = Header::decode(out.first_chunk().unwrap()).unwrap();
    assert_eq!(header.payload, PAYLOAD_MAX);
    header.classify().unwrap();
    out.clear();
    for length in [most + 1, u64::from(u32::MAX), u64::MAX] {
        let error = blob(length)
            .encode(RecordType::Early, &mut out)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
    }
    assert_eq!(
        blob(0)
            .encode(RecordType::Pages, &mut out)
            .unwrap_err()
            .kind(),
        Kind::Invalid
    );
    assert!(out.is_empty());
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    for (pad, kept) in [(0, 1023), (1, 1024), (2, 1022), (3, 1023)] {
        let reason = format!("{}{}", "x".repeat(pad), "€".repeat(600));
        let abort = Record::Abort(Abort {
            code: -16,
            reason: reason.clone(),
        });
        let bytes = encode(&Any::Control(abort));
        let Some(Any::Control(Record::Abort(cut))) = decode(&bytes).unwrap() else {
            panic!("not an abort");
        };
        assert!(reason.starts_with(&cut.reason));
        assert_eq!(cut.reason.len(), kept, "{pad}");
    }
}

#[test]
fn a_reason_that_is_not_utf_8_does_not_hide_the_code() {
    let abort = |reason: &str| {
        encode(&Any::Control(Record::Abort(Abort {
            code: -12,
            reason: reason.into(),
        })))
    };
    let mut bytes = abort("was abc");
    let at = bytes.len() - 2;
    bytes[at] = 0xff;
    let Some(Any::Control(Record::Abort(shown))) = decode(&bytes).unwrap() else {
        panic!("not an abort");
    };
    assert_eq!((shown.code, &*shown.reason), (-12, "was a\u{fffd}c"));
    // What becomes three times as long is cut again when it is passed on.
    let mut bytes = abort(&"x".repeat(1024));
    let from = bytes.len() - 1024;
    bytes[from..].fill(0xff);
    let Some(Any::Control(Record::Abort(long))) = decode(&bytes).unwrap() else {
        panic!("not an abort");
    };
    assert_eq!(long.reason, "\u{fffd}".repeat(1024));
    assert_eq!(abort(&long.reason).len(), from + 1023);
}

#[test]
fn page_runs_and_blobs_are_no_control_records() {
    for header in [
        Header::pages(0, Pages(0), 1),
        Header::zeros(0, Pages(0), 1),
        Header::control(RecordType::State, 0, 18),
        Header::control(RecordType::Early, 0, 18),
    ] {
        let payload = vec![0; header.payload as usize];
        refused(Record::decode(&header, &payload), &["control record"]);
    }
    refused(
        Blob::decode(&Header::control(RecordType::Ack, 0, 8), &[0; 8]),
        &["STATE or EARLY"],
    );
}

mod negotiation {
    use super::*;

    fn hello(min: u16, max: u16, offered: u64, required: u64) -> Hello {
        Hello {
            version_min: min,
            version_max: max,
            features_offered: offered,
            features_required: required,
            token: TOKEN,
            channel: 0,
            channels: 1,
            page_shift: 12,
            role: ROLE_BULK,
            software: String::new(),
        }
    }

    fn ours(min: u16, max: u16, offered: u64, required: u64) -> Ours {
        Ours {
            version_min: min,
            version_max: max,
            offered,
            required,
        }
    }

    #[test]
    fn the_newest_common_version_and_the_common_features_are_used() {
        for (theirs, here, chosen) in [
            (hello(1, 1, 1, 1), Ours::default(), (1, 1)),
            (hello(1, 9, 0xff, 1), Ours::default(), (1, 3)),
            (
                hello(1, 1, 3, 1),
                Ours::default().without(FEATURE_BALLOONED),
                (1, 1),
            ),
            (hello(2, 5, 0b1101, 0), ours(3, 9, 0b0111, 1), (5, 0b0101)),
            (
                hello(3, 9, 0b0111, 0b100),
                ours(2, 5, 0b1101, 1),
                (5, 0b0101),
            ),
            (hello(4, 4, 1, 0), ours(1, 4, 1, 0), (4, 1)),
        ] {
            assert_eq!(negotiate(&theirs, &here).unwrap(), chosen);
            let reply = HelloReply {
                version: chosen.0,
                features: chosen.1,
                software: String::new(),
            };
            let source = ours(
                theirs.version_min,
                theirs.version_max,
                theirs.features_offered,
                theirs.features_required,
            );
            check_reply(&reply, &source).unwrap();
        }
    }

    fn version_error<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Version, "{error}");
        for part in parts {
            assert!(error.message().contains(part), "no {part:?} in: {error}");
        }
    }

    #[test]
    fn version_ranges_apart_are_refused_and_both_named() {
        version_error(
            negotiate(&hello(2, 3, 1, 1), &Ours::default()),
            &["2 to 3", "1 to 1"],
        );
        version_error(
            negotiate(&hello(1, 3, 1, 1), &ours(4, 6, 1, 1)),
            &["1 to 3", "4 to 6"],
        );
    }

    #[test]
    fn requirements_that_cannot_be_met_are_refused_by_name() {
        version_error(
            negotiate(&hello(1, 1, 1 | 1 << 40, 1 | 1 << 40), &Ours::default()),
            &["unknown feature bit 40"],
        );
        version_error(
            negotiate(&hello(1, 1, 1, 1), &ours(1, 1, 2, 0)),
            &["source requires", "zero-runs (bit 0)"],
        );
        version_error(
            negotiate(&hello(1, 1, 2, 0), &Ours::default()),
            &["this side requires", "zero-runs"],
        );
    }

    #[test]
    fn other_page_sizes_are_refused() {
        let theirs = Hello {
            page_shift: 16,
            ..hello(1, 1, 1, 1)
        };
        let error = negotiate(&theirs, &Ours::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("2^12") && error.message().contains("2^16"));
    }

    #[test]
    fn a_reply_that_was_not_offered_is_refused() {
        let reply = |version, features| HelloReply {
            version,
            features,
            software: String::new(),
        };
        version_error(
            check_reply(&reply(2, 1), &Ours::default()),
            &["1 to 1", "found 2"],
        );
        version_error(check_reply(&reply(1, 5), &Ours::default()), &["bit 2"]);
        version_error(check_reply(&reply(1, 0), &Ours::default()), &["zero-runs"]);
    }

    #[test]
    fn features_have_one_name_and_one_bit_each() {
        for (i, feature) in FEATURES.iter().enumerate() {
            assert!(feature.bit < 64);
            assert!(FEATURES[..i]
                .iter()
                .all(|f| f.bit != feature.bit && f.name != feature.name));
        }
        assert_eq!(feature_names(0), "none");
        assert_eq!(feature_names(5), "zero-runs (bit 0), unknown feature bit 2");
    }
}

fn any_block() -> impl Strategy<Value = Block> {
    (
        any::<u32>(),
        1..1u64 << 40,
        12..40u32,
        0..2u32,
        "[^\\p{Cc}]{0,60}",
    )
        .prop_map(|(id, pages, shift, flags, name)| Block {
            id,
            length: pages * PAGE_SIZE,
            page_size: 1 << shift,
            flags,
            name,
        })
}

fn any_control() -> impl Strategy<Value = Record> {
    let end = || (0..=BLOBS_MAX, any::<u64>()).prop_map(|(count, bytes)| BlobEnd { count, bytes });
    prop_oneof![
        (
            (1..=u16::MAX, 1..=u16::MAX, any::<u64>(), any::<u64>()),
            (any::<Token>(), 1..=CHANNELS_MAX, any::<u16>(), any::<u8>()),
            "[^\\p{Cc}]{0,16}"
        )
            .prop_map(
                |((a, b, offered, required), (token, channels, channel, shift), software)| {
                    Record::Hello(Hello {
                        version_min: a.min(b),
                        version_max: a.max(b),
                        features_offered: offered,
                        features_required: offered & required,
                        token,
                        channel: channel % channels,
                        channels,
                        page_shift: shift,
                        role: if channel % channels == 0 {
                            ROLE_BULK
                        } else {
                            shift
                        },
                        software,
                    })
                }
            ),
        (1..=u16::MAX, any::<u64>(), "[^\\p{Cc}]{0,16}").prop_map(
            |(version, features, software)| Record::HelloReply(HelloReply {
                version,
                features,
                software
            })
        ),
        any_block().prop_map(Record::Block),
        any_block().prop_map(Record::BlockAdded),
        (0..=BLOCKS_MAX, any::<u64>())
            .prop_map(|(blocks, bytes)| Record::LayoutEnd(LayoutEnd { blocks, bytes })),
        Just(Record::LayoutOk),
        (1u64.., any::<u32>(), 0..2u32, any::<[u64; 3]>()).prop_map(
            |(number, pass, flags, [records, data_pages, zero_pages])| Record::Marker(Marker {
                number,
                pass,
                flags,
                records,
                data_pages,
                zero_pages
            })
        ),
        (1u64..).prop_map(|number| Record::Ack(Ack { number })),
        (end(), 1..=HANDOVER_MILLIS_MAX).prop_map(|(blobs, handover_millis)| {
            Record::StateEnd(StateEnd {
                blobs,
                handover_millis,
            })
        }),
        end().prop_map(Record::EarlyEnd),
        Just(Record::EarlyOk),
        any::<u64>().prop_map(|load_micros| Record::Ready(Ready { load_micros })),
        any::<Token>().prop_map(|token| Record::Handover(Handover { token })),
        any::<u64>().prop_map(|run_micros| Record::Running(Running { run_micros })),
        (any::<i32>(), ".{0,250}").prop_map(|(code, reason)| Record::Abort(Abort { code, reason })),
        Just(Record::Keepalive),
        any::<u32>().prop_map(|id| Record::BlockRemoved { id }),
    ]
}

fn any_record() -> impl Strategy<Value = Any> {
    let run = (any::<u32>(), any::<u64>(), 0..512u32, any::<bool>()).prop_map(
        |(block, first, count, zero)| {
            let first = first >> 1;
            let room = 512 - (first % 512) as u32;
            let count = 1 + count % room;
            if zero && count.is_multiple_of(2) {
                Any::Run(Header::ballooned(block, Pages(first), count), vec![])
            } else if zero {
                Any::Run(Header::zeros(block, Pages(first), count), vec![])
            } else {
                let count = count.min(3);
                let data = vec![first as u8; count as usize * 4096];
                Any::Run(Header::pages(block, Pages(first), count), data)
            }
        },
    );
    let blob = (
        prop::bool::ANY,
        "[^\\p{Cc}]{1,30}",
        any::<(u32, u32)>(),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(early, name, (instance, version), data)| {
            let kind = if early {
                RecordType::Early
            } else {
                RecordType::State
            };
            let length = data.len() as u64;
            Any::Blob(
                kind,
                Blob {
                    name,
                    instance,
                    version,
                    length,
                },
                data,
            )
        });
    prop_oneof![5 => any_control().prop_map(Any::Control), 1 => run, 1 => blob]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_encoded_is_decoded(value in any_record()) {
        let bytes = encode(&value);
        prop_assert_eq!(decode(&bytes).unwrap(), Some(value));
    }

    #[test]
    fn a_payload_that_is_decoded_is_the_only_form_of_it(
        value in any_record(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        // Whatever a decoder accepts, encodes to the same bytes again. The reason of an ABORT may
        // be other than UTF-8, and is shown all the same.
        let mut bytes = encode(&value);
        if bytes.len() > HEADER_LEN {
            let at = HEADER_LEN + at.index(bytes.len() - HEADER_LEN);
            bytes[at] = byte;
        }
        let mended = |value: &Any| match value {
            Any::Control(Record::Abort(abort)) => abort.reason.contains(char::REPLACEMENT_CHARACTER),
            _ => false,
        };
        if let Some(other) = decode(&bytes).ok().flatten().filter(|v| !mended(v)) {
            prop_assert_eq!(encode(&other), bytes);
        }
    }

    #[test]
    fn records_are_appended_and_follow_one_another(a in any_control(), b in any_control()) {
        let mut out = Vec::new();
        a.encode(&mut out).unwrap();
        let first = out.len();
        b.encode(&mut out).unwrap();
        prop_assert_eq!(decode(&out[..first]).unwrap(), Some(Any::Control(a)));
        prop_assert_eq!(decode(&out[first..]).unwrap(), Some(Any::Control(b)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = decode(&bytes);
    }

    #[test]
    fn arbitrary_payloads_under_a_valid_header_never_panic(
        kind in 0u16..25,
        flags in 0u16..2,
        fields in any::<(u32, u32, u64)>(),
        zeroed in any::<bool>(),
        announced in prop::option::of(any::<u32>()),
        payload in prop::collection::vec(prop_oneof![any::<u8>(), Just(0)], 0..120),
    ) {
        let (block, count, first_page) = if zeroed { (0, 0, 0) } else { fields };
        let header = Header {
            kind,
            flags,
            block,
            count,
            first_page,
            payload: announced.unwrap_or(payload.len() as u32),
        };
        let _ = header.check_run(Pages(fields.2));
        let _ = Record::decode(&header, &payload);
        let _ = Blob::decode(&header, &payload);
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&payload);
        let _ = decode(&bytes);
    }
}

#[test]
fn huge_lengths_are_refused_before_anything_is_allocated_for_them() {
    // Lengths inside the payload, far beyond what is there.
    for (name, at, patch) in [
        ("hello", 42, &[64][..]),
        ("block", 20, &[0xff, 0]),
        ("abort", 4, &[0, 4]),
        ("state", 0, &[128]),
        ("state", 13, &[0xff; 8]),
    ] {
        let (_, value) = examples().into_iter().find(|(n, _)| *n == name).unwrap();
        let mut bytes = encode(&value);
        bytes[HEADER_LEN + at..][..patch.len()].copy_from_slice(patch);
        refused(decode(&bytes), &["expected"]);
    }
    // A header that announces more than is there.
    for &kind in RecordType::ALL {
        let header = Header::control(kind, 0, kind.payload_limits().1);
        assert!(Blob::decode(&header, &[]).is_err());
        if header.payload > 0 {
            assert!(Record::decode(&header, &[]).is_err());
        }
    }
    // Text takes what it is long, no more.
    for (_, value) in examples() {
        let bytes = encode(&value);
        let text = match decode(&bytes).unwrap().unwrap() {
            Any::Control(Record::Hello(hello)) => hello.software,
            Any::Control(Record::Block(block)) => block.name,
            Any::Control(Record::Abort(abort)) => abort.reason,
            Any::Blob(_, blob, _) => blob.name,
            _ => continue,
        };
        assert!(text.capacity() <= bytes.len() - HEADER_LEN);
    }
}
