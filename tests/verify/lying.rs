//! Checksums that cannot be true are refused with what was expected, and the source believes none
//! of them. Before RUNNING they have no place.

use super::{pair, verifying};
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use brant::units::Pages;
use brant::vmm::EventKind;
use brant::wire::{Digest, Header, Record, RecordType, Running, HEADER_LEN};

fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).unwrap();
    bytes
}

fn digest(block: u32, first: u64, pages: u32, sums: &[u32]) -> Vec<u8> {
    bytes(&Record::Digest(Digest {
        block,
        first_page: Pages(first),
        pages,
        sums: sums.to_vec(),
    }))
}

/// The source's result and warnings when `lie` is said instead of the `n`th record of a type.
fn lied(kind: RecordType, n: usize, lie: Vec<u8>) -> (brant::Result<()>, Vec<String>, usize) {
    let pair = pair();
    let mut seen = 0;
    let (_proxy, from, to) = Proxy::new(Box::new(move |header, _| {
        seen += usize::from(header.record_type() == Ok(Some(kind)));
        match header.record_type() == Ok(Some(kind)) && seen == n {
            true => Verdict::Replace(lie.clone()),
            false => Verdict::Forward,
        }
    }));
    let params = Params {
        io_timeout: MS * 500,
        ..verifying()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(to)).unwrap();
    out.start(ConnectTo::Connected(from)).unwrap();
    let result = out.wait(Some(LONG));
    let _ = inc.wait(Some(LONG));
    let mismatches = pair.from.events(EventKind::Mismatch).len();
    (result, pair.from.events(EventKind::Warning), mismatches)
}

#[test]
fn checksums_that_cannot_be_true_end_the_comparison_and_not_the_migration() {
    let id = pair().source.rams()[0].0 .0;
    let mut damaged = digest(id, 512, 1, &[1]);
    *damaged.last_mut().unwrap() ^= 1;
    let long = {
        let header = Header::control(RecordType::Digest, id, 1 << 20);
        header.encode().to_vec()
    };
    // In place of the second record, which is about pages 512 to 1023 of the first block.
    let cases = [
        (
            "twice",
            digest(id, 0, 512, &[]),
            "from page 512 on, found page 0",
        ),
        (
            "a gap",
            digest(id, 513, 1, &[]),
            "from page 512 on, found page 513",
        ),
        (
            "past the end",
            digest(id, 512, 689, &[]),
            "at most 688 pages",
        ),
        (
            "far past the end",
            digest(id, 512, 1 << 18, &[]),
            "at most 688",
        ),
        ("another block", digest(id + 99, 0, 1, &[]), "no such block"),
        ("damaged", damaged, "damaged on its way"),
        ("too long", long, "16 to 2064"),
        (
            "another record",
            bytes(&Record::Running(Running { run_micros: 1 })),
            "expected DIGEST",
        ),
        ("garbage", vec![0x55; HEADER_LEN], "magic"),
    ];
    for (what, lie, part) in cases {
        let (result, warnings, mismatches) = lied(RecordType::Digest, 2, lie);
        assert_eq!(result, Ok(()), "{what}");
        assert_eq!(warnings.len(), 1, "{what}: {warnings:?}");
        assert!(warnings[0].contains(part), "{what}: {part} in {warnings:?}");
        assert_eq!(mismatches, 0, "{what}");
    }
}

#[test]
fn false_checksums_are_differences_and_do_no_harm() {
    let id = pair().source.rams()[0].0 .0;
    let lie = digest(id, 0, 512, &[0x1234_5678; 512]);
    let (result, warnings, mismatches) = lied(RecordType::Digest, 1, lie);
    assert_eq!((result, warnings, mismatches), (Ok(()), vec![], 1));
}

#[test]
fn checksums_before_the_guest_runs_are_refused() {
    let (result, ..) = lied(RecordType::Ready, 1, digest(1, 0, 1, &[]));
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
    assert!(
        error.message().contains("expected READY, found DIGEST"),
        "{error}"
    );
}
