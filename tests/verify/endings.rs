//! Whatever happens after the hand-over, the migration has succeeded. The source says how far it
//! came, and waits no longer than its limits.

use super::{pair, verifying, PAGES};
use crate::integrity::damage::damaged;
use crate::support::pair::Pair;
use crate::support::relay::{at, Point, Proxy, Verdict};
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{cancel_promptly, LONG, MS};
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Params, SourceState, State, Stats};
use brant::vmm::EventKind;
use brant::wire::{HelloReply, Record, RecordType, FEATURE_VERIFY, HEADER_LEN};
use std::time::{Duration, Instant};

/// A verified migration through a link that does `verdict` at `point`. Returns the source's figures,
/// its warnings, and how long it took.
fn moved(pair: &Pair, point: Point, verdict: Verdict) -> (Stats, Vec<String>, Duration) {
    let params = Params {
        io_timeout: MS * 500,
        ..verifying()
    };
    let (_proxy, from, to) = Proxy::new(at(point, verdict));
    let (out, inc) = (outgoing(pair, &params), incoming(pair, &params));
    let begun = Instant::now();
    inc.start(AcceptFrom::Connected(to)).unwrap();
    out.start(ConnectTo::Connected(from)).unwrap();
    out.wait(Some(LONG)).unwrap();
    let took = begun.elapsed();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.state(), SourceState::Completed);
    (out.stats(), pair.from.events(EventKind::Warning), took)
}

#[test]
fn a_destination_that_dies_before_its_checksums_is_a_warning_and_the_migration_succeeds() {
    let cases = [
        (Point::Nth(RecordType::Digest, 1), Verdict::Cut, 0),
        (Point::Nth(RecordType::Digest, 1), Verdict::CutMid, 0),
        (Point::Nth(RecordType::Digest, 1), Verdict::Swallow, 0),
        (Point::Nth(RecordType::Digest, 2), Verdict::Cut, 512),
        (Point::Nth(RecordType::Running, 1), Verdict::CutAfter, 0),
    ];
    for (point, verdict, verified) in cases {
        let what = format!("{verdict:?} at {point:?}");
        let pair = pair();
        let (stats, warnings, took) = moved(&pair, point, verdict);
        assert_eq!(stats.verified_pages, verified, "{what}");
        assert_eq!(stats.error, None, "{what}");
        assert_eq!(stats.state, State::Source(SourceState::Completed));
        assert_eq!(warnings.len(), 1, "{what}: {warnings:?}");
        let left = format!("{} pages were not compared", PAGES - verified);
        for part in ["runs at the destination", &left, "DIGEST"] {
            assert!(warnings[0].contains(part), "{what}: {part}: {warnings:?}");
        }
        assert_eq!(pair.from.events(EventKind::Completed).len(), 1, "{what}");
        assert_eq!(pair.from.calls("resume"), 0, "{what}");
        assert_eq!(pair.world.who(), (false, true), "{what}");
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    }
}

/// The destination's checksums never come, and the source would wait for the I/O timeout of 30 s.
#[test]
fn a_cancel_while_memory_is_compared_ends_the_comparison_and_the_migration_has_succeeded() {
    for freed in [false, true] {
        let pair = pair();
        let nothing = at(Point::Nth(RecordType::Digest, 2), Verdict::Swallow);
        let (proxy, from, to) = Proxy::new(nothing);
        let params = verifying();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        inc.start(AcceptFrom::Connected(to)).unwrap();
        out.start(ConnectTo::Connected(from)).unwrap();
        let begun = Instant::now();
        while out.state() != SourceState::Verifying {
            assert!(begun.elapsed() < LONG, "{:?}", out.stats());
            std::thread::sleep(MS);
        }
        match freed {
            true => drop(out),
            false => {
                cancel_promptly("comparing", || out.cancel()).unwrap();
                out.wait(Some(MS)).unwrap();
                let stats = out.stats();
                assert_eq!(out.state(), SourceState::Completed);
                assert_eq!(stats.error, None);
                // The first 512 pages may have been compared before the cancel.
                assert!(stats.verified_pages <= 512, "{stats:?}");
                assert_eq!(stats.verified_pages + stats.unverified_pages, PAGES);
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it waited");
        let warnings = pair.from.events(EventKind::Warning);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for part in ["pages were not compared", "cancelled"] {
            assert!(warnings[0].contains(part), "{warnings:?}");
        }
        assert_eq!(pair.from.calls("resume"), 0);
        drop(proxy);
        inc.wait(Some(LONG)).unwrap();
        assert_eq!(pair.world.who(), (false, true));
    }
}

#[test]
fn a_destination_without_the_feature_is_refused_by_its_name() {
    let pair = pair();
    let (left, arrived) = damaged(
        &pair,
        &verifying(),
        (RecordType::HelloReply, 1),
        |header, bytes| {
            let Ok(Record::HelloReply(reply)) = Record::decode(header, &bytes[HEADER_LEN..]) else {
                panic!("no HELLO_REPLY");
            };
            bytes.clear();
            let without = HelloReply {
                features: reply.features & !FEATURE_VERIFY,
                ..reply
            };
            Record::HelloReply(without).encode(bytes).unwrap();
        },
    );
    let error = left.unwrap_err();
    assert_eq!(error.kind(), Kind::Version);
    assert!(error.message().contains("verify (bit 4)"), "{error}");
    assert!(arrived.is_err());
    pair.assert_runs_on("a destination without the feature");
}

#[test]
fn a_cancel_while_checksums_are_computed_keeps_the_guest() {
    let pair = Pair::new(&[crate::support::memory::ram("ram", 600)]);
    pair.source.fill(1);
    let params = verifying();
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    // The destination computes between this event and `load`.
    let cancelled = std::sync::Arc::downgrade(&inc);
    pair.to
        .at("loading", move || cancelled.upgrade().unwrap().cancel());
    let (a, b) = crate::support::sides::socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(pair.to.calls("load"), 0);
    pair.assert_runs_on("a cancel");
}
