//! Sources of a postcopy that break the protocol: each is refused with a reason. Before the hand-over
//! no guest runs here; behind it the guest runs on.

use super::scripted::{missing_records, postcopy_hello, Scripted, INTERRUPTED};
use crate::support::memory::ram;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, DestinationState, Params};
use brant::units::Pages;
use brant::wire::{self, MissingEnd, Record, MARKER_FLAG_FINAL, MARKER_FLAG_POSTCOPY};

const PAGES: u64 = 1100;

fn begin(channels: u16) -> Scripted {
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), channels, &Params::default());
    source.precopy(&[]);
    source
}

/// The destination ends with a protocol error that has `word`, and runs nothing.
fn refused(source: &mut Scripted, word: &str) {
    // The destination waits for the source to read its reason.
    assert!(source.bulk[0].raw.hear_abort().is_some(), "{word}");
    source.lose();
    let error = source.incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{word}: {error}");
    assert!(error.message().contains(word), "{word}: {error}");
    assert_eq!(source.to.calls("run"), 0, "{word}");
    assert_eq!(source.incoming.state(), DestinationState::Failed, "{word}");
}

fn end(pages: u64) -> Record {
    end_of(pages, 0)
}

fn end_of(pages: u64, epoch: u32) -> Record {
    Record::MissingEnd(MissingEnd {
        pages: Pages(pages),
        epoch,
    })
}

#[test]
fn a_description_that_is_wrong_is_refused_before_anything_is_discarded() {
    let one = || Record::Missing(missing_records(PAGES, &[3..4]).remove(0));
    let beyond = Record::Missing(missing_records(PAGES + 64, &[PAGES + 3..PAGES + 4]).remove(0));
    let mut unknown = missing_records(PAGES, &[3..4]).remove(0);
    unknown.block = 9;
    let unknown = Record::Missing(unknown);
    let cases: Vec<(Vec<Record>, &str)> = vec![
        (vec![beyond], "MISSING"),
        (vec![unknown], "block 9"),
        (vec![one(), one()], "MISSING"),
        (vec![one(), end(2)], "MISSING_END"),
        (vec![end(1)], "MISSING_END"),
        (vec![one(), end_of(1, 1)], "expected epoch 0"),
        (vec![Record::Keepalive, Record::EarlyOk], "EARLY_OK"),
    ];
    for (records, word) in cases {
        let mut source = begin(1);
        source.bulk[0].marked(MARKER_FLAG_POSTCOPY);
        for record in &records {
            source.bulk[0].raw.say(record);
        }
        refused(&mut source, word);
    }
}

#[test]
fn a_description_before_the_switch_and_pages_before_the_description_are_refused() {
    let mut source = begin(1);
    source.describe(&[3..4]);
    refused(&mut source, "MISSING");
    let mut source = begin(1);
    source.bulk[0].marked(MARKER_FLAG_POSTCOPY);
    source.bulk[0].pages(3..4);
    refused(&mut source, "PAGES");
}

#[test]
fn a_switch_on_some_channels_only_is_refused() {
    let mut source = begin(2);
    source.bulk[1].marked(MARKER_FLAG_FINAL);
    source.bulk[0].marker(MARKER_FLAG_POSTCOPY);
    refused(&mut source, "begins postcopy");
}

#[test]
fn a_second_switch_and_changes_of_pages_behind_it_are_refused() {
    let mut source = begin(2);
    source.switch(&[3..4]);
    source.bulk[1].marker(MARKER_FLAG_POSTCOPY);
    source.state_end(0, 0);
    refused(&mut source, "begins postcopy");
    let mut source = begin(2);
    source.switch(&[3..4]);
    let mut delta = Vec::new();
    let change = wire::Delta {
        page: Pages(3),
        base: 0,
        encoding: &[],
    };
    wire::encode_delta(super::scripted::BLOCK, [change].into_iter(), &mut delta).unwrap();
    source.bulk[1].raw.say_bytes(&delta);
    source.state_end(0, 0);
    refused(&mut source, "DELTA");
}

#[test]
fn what_breaks_the_protocol_behind_the_hand_over_interrupts_and_the_guest_runs_on() {
    let wrong = [
        Record::EarlyOk,
        end(1),
        Record::Complete(wire::Complete {
            pages: Pages(1),
            epoch: 0,
        }),
    ];
    for record in wrong {
        for on_urgent in [false, true] {
            let mut source = begin(1);
            source.switch(&[3..4]);
            source.hand_over();
            let lane = match on_urgent {
                true => &mut source.urgent,
                false => &mut source.bulk[0],
            };
            lane.raw.say(&record);
            source.to.wait_state(INTERRUPTED);
            let here = source.reader([1, 2, 9]);
            assert_eq!(here.join().unwrap(), [1, 2, 9].map(super::scripted::word));
            source.incoming.give_up().unwrap();
            let error = source.incoming.wait(Some(LONG)).unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol, "{error}");
            assert_eq!(source.incoming.state(), DestinationState::Incomplete);
        }
    }
}

#[test]
fn an_urgent_connection_without_postcopy_is_refused() {
    use crate::support::peer::Raw;
    let guest = crate::support::guest::Guest::new(&[ram("ram", 8)]);
    let world = std::sync::Arc::new(crate::support::vmm::World::default());
    let side = crate::support::vmm::Side::Destination;
    let to = crate::support::vmm::TestVmm::new(&guest, None, &world, side);
    let memory = std::sync::Arc::clone(&guest.memory);
    let incoming = brant::migrate::Incoming::new(memory, to, Params::default()).unwrap();
    let (mut one, first) = Raw::pair();
    let (mut other, second) = Raw::pair();
    incoming
        .start(AcceptFrom::ConnectedAll(vec![first, second]))
        .unwrap();
    for (channel, raw) in [(0, &mut one), (1, &mut other)] {
        let hello = postcopy_hello(channel, 1);
        raw.say(&Record::Hello(wire::Hello {
            features_required: wire::FEATURE_ZERO_RUNS,
            ..hello
        }));
    }
    let error = incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
}
