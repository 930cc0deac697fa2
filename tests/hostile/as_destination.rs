//! A destination played to a source: it answers correctly until the test says otherwise. Also the
//! checks of the source afterwards.

use super::records::sample;
use crate::support::deciders::Never;
use crate::support::fuzz::mend;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::random::Random;
use crate::support::sides::outgoing;
use crate::support::time::LONG;
use brant::error::{Kind, Result};
use brant::migrate::switchover::source::State;
use brant::migrate::{ConnectTo, Outgoing, Params, Resolution};
use brant::wire;
use brant::wire::{Record, RecordType, HEADER_LEN};
use std::sync::Arc;
use std::time::Duration;

/// The records that a destination answers, with the answers.
pub const ANSWERS: [(RecordType, RecordType); 6] = [
    (RecordType::Hello, RecordType::HelloReply),
    (RecordType::EarlyEnd, RecordType::EarlyOk),
    (RecordType::LayoutEnd, RecordType::LayoutOk),
    (RecordType::Marker, RecordType::Ack),
    (RecordType::StateEnd, RecordType::Ready),
    (RecordType::Handover, RecordType::Running),
];

/// The right answer to a record.
pub fn answer(asked: RecordType, payload: &[u8]) -> Option<Vec<u8>> {
    let (_, kind) = ANSWERS.iter().find(|(question, _)| *question == asked)?;
    let mut right = sample(*kind);
    if *kind == RecordType::Ack {
        right[HEADER_LEN..].copy_from_slice(&payload[..8]);
        mend(&mut right);
    }
    Some(right)
}

/// A source that has pages to send and never converges, and its peer, which has said nothing.
pub fn sending(params: &Params) -> (Pair, Arc<Outgoing>, Raw) {
    let pair = Pair::new(&[ram("ram", 600)]);
    pair.source.fill(1);
    let (raw, fd) = Raw::pair();
    let out = outgoing(&pair, params);
    out.start_with(ConnectTo::Connected(fd), Box::new(Never))
        .unwrap();
    (pair, out, raw)
}

/// Plays a destination. `say` turns each right answer into what is sent, until it returns `None`.
/// Then the destination only listens, for at most this long.
pub fn play(
    mut raw: Raw,
    mut say: impl FnMut(&mut Raw, RecordType, Vec<u8>) -> Option<()>,
    patience: Duration,
) {
    let mut talks = true;
    while let Some((header, payload)) = raw.hear() {
        let kind = header.record_type().unwrap().unwrap();
        if let Some(right) = answer(kind, &payload).filter(|_| talks) {
            talks = say(&mut raw, kind, right).is_some();
            if !talks {
                raw.0.set_read_timeout(Some(patience)).unwrap();
            }
        }
    }
}

/// Starts a source, and plays a destination to it.
pub fn source_against(
    params: Params,
    goes_on: bool,
    patience: Duration,
    say: impl FnMut(&mut Raw, RecordType, Vec<u8>) -> Option<()> + Send,
) -> (Pair, Arc<Outgoing>, Result<()>) {
    let pair = Pair::new(&[ram("ram", 96)]);
    pair.source.ram("ram").fill(7, &mut Random(1));
    pair.source.track();
    let (raw, fd) = Raw::pair();
    let out = outgoing(&pair, &params);
    if goes_on {
        out.start_with(ConnectTo::Connected(fd), Box::new(Never))
            .unwrap();
    } else {
        out.start(ConnectTo::Connected(fd)).unwrap();
    }
    let result = std::thread::scope(|scope| {
        scope.spawn(|| play(raw, say, patience));
        out.wait(Some(LONG))
    });
    (pair, out, result)
}

/// Checks, whatever a destination did, that the guest runs here or the source says that it cannot
/// know.
pub fn sound(pair: &Pair, out: &Outgoing, result: &Result<()>, what: &str) {
    pair.assert_sound(what);
    if let Err(e) = result {
        assert_ne!(e.kind(), Kind::Internal, "{what}: {e}");
        assert!(!e.message().contains(char::is_control), "{what}: {e:?}");
    }
    match out.state() {
        State::Failed => {
            pair.assert_runs_on(what);
            assert!(out.resolve(Resolution::Resume).is_err());
        }
        State::Unanswered => {
            assert_eq!(pair.from.calls("resume"), 0, "{what}");
            assert!(!pair.source.is_running(), "{what}");
            out.resolve(Resolution::Resume).unwrap();
            assert!(pair.source.is_running(), "{what}");
        }
        State::Completed => assert!(!pair.source.is_running(), "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

pub fn reply() -> Record {
    Record::HelloReply(wire::HelloReply {
        version: 1,
        features: 1,
        software: "hostile".into(),
    })
}

/// A destination that agrees to everything up to the first page.
pub fn agree(raw: &mut Raw) {
    assert!(matches!(raw.hear_record(), Some(Record::Hello(_))));
    raw.say(&reply());
    while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::EarlyEnd)) {}
    raw.say(&Record::EarlyOk);
    while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::LayoutEnd)) {}
    raw.say(&Record::LayoutOk);
}
