//! Messages of a destination while pages are copied: its ABORT is noticed at once, and READY
//! without an acknowledgement is refused.

use super::as_destination::{agree, answer, sending, sound, source_against};
use super::bounds::bounded;
use super::params::quick;
use super::records::sample;
use crate::support::deciders::Never;
use crate::support::fuzz::{bytes, mend};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::sides::outgoing;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{ConnectTo, Params};
use brant::vmm::EventKind;
use brant::wire;
use brant::wire::{Record, RecordType, HEADER_LEN};
use std::io::Read;

#[test]
fn a_destination_that_gives_up_is_heard_in_the_middle_of_a_pass() {
    use RecordType as R;
    bounded();
    let unsent = bytes(&Record::Ack(wire::Ack { number: 1000 }));
    let mut cancelled = bytes(&Record::Abort(wire::Abort {
        code: Kind::Cancelled as i32,
        reason: "Abbruch: v\u{f6}llig".into(),
    }));
    // Cut in the middle of a character.
    let mut text = cancelled[HEADER_LEN..].iter_mut();
    *text.find(|b| **b == 0xc3).unwrap() = b'?';
    mend(&mut cancelled);
    for (what, says, kind) in [
        ("it gives up", sample(R::Abort), Kind::Refused),
        ("it was cancelled, in no UTF-8", cancelled, Kind::Cancelled),
        ("an unsent marker", unsent, Kind::Protocol),
        ("READY", sample(R::Ready), Kind::Protocol),
    ] {
        // At this rate a pass takes much longer than any wait of this test.
        let pair = Pair::new(&[ram("ram", 3000)]);
        pair.source.fill(1);
        let params = Params {
            max_bandwidth: Some(64 << 10),
            ..quick()
        };
        let (mut raw, fd) = Raw::pair();
        let out = outgoing(&pair, &params);
        out.start_with(ConnectTo::Connected(fd), Box::new(Never))
            .unwrap();
        for question in [R::Hello, R::EarlyEnd, R::LayoutEnd] {
            while raw.hear().unwrap().0.record_type() != Ok(Some(question)) {}
            raw.say_bytes(&answer(question, &[]).unwrap());
        }
        // The first page is on its way.
        raw.0.read_exact(&mut [0; HEADER_LEN]).unwrap();
        raw.say_bytes(&says);
        // The destination goes on reading, so that only its message can end the migration.
        let mut from = raw.0.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut sink = vec![0; 1 << 16];
            while from.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let result = out.wait(Some(LONG));
        let error = result.clone().unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert_eq!(pair.from.events(EventKind::Pass), Vec::<String>::new());
        assert_eq!(pair.from.calls("pause"), 0, "{what}");
        sound(&pair, &out, &result, what);
        drop(out);
        reader.join().unwrap();
    }
    bounded();
}

#[test]
fn ready_without_an_acknowledgement_is_not_believed() {
    bounded();
    // The idle guest's first pass is acknowledged, for which the source waits. Nothing later is.
    let mut markers = 0;
    let (pair, out, result) = source_against(quick(), false, LONG, |raw, asked, right| {
        markers += usize::from(asked == RecordType::Marker);
        if asked != RecordType::Marker || markers == 1 {
            raw.say_bytes(&right);
        }
        (asked != RecordType::StateEnd).then_some(())
    });
    let error = result.clone().unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(error.message().contains("has not acknowledged"), "{error}");
    sound(&pair, &out, &result, "unacknowledged");
    bounded();
}

#[test]
fn an_acknowledgement_that_comes_twice_or_out_of_order_is_refused() {
    bounded();
    for numbers in [[1, 1], [2, 1]] {
        let (pair, out, mut raw) = sending(&quick());
        agree(&mut raw);
        while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::Marker)) {}
        for number in numbers {
            raw.say(&Record::Ack(wire::Ack { number }));
        }
        // The source reads the message between two batches, so these have to be taken.
        let mut from = raw.0.try_clone().unwrap();
        let taker = std::thread::spawn(move || {
            let mut sink = vec![0; 1 << 20];
            while from.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let error = out.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{numbers:?}: {error}");
        assert!(error.message().contains("acknowledged marker"), "{error}");
        pair.assert_runs_on("a wrong acknowledgement");
        drop(out);
        taker.join().unwrap();
    }
    bounded();
}
