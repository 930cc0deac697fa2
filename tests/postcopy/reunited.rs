//! Recoveries that the two sides do not begin together: the source's VMM comes first, nobody comes, or
//! the destination has all of its guest and the source does not know it.

use super::scripted::Scripted;
use super::whole::{allowed, pair, Sides};
use super::wires::{Reach, Wires};
use crate::support::memory::ram;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::{
    AcceptFrom, ConnectTo, DestinationState, Endpoint, Params, Resolution, SourceState,
};
use brant::vmm::EventKind;
use std::time::Instant;

/// So slow that the rest takes seconds.
fn slow(channels: u32) -> Params {
    Params {
        max_bandwidth: Some(8 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        ..allowed(channels)
    }
}

/// Both sides are interrupted.
fn interrupted(params: &Params) -> Sides {
    let mut sides = Sides::start(pair(), params);
    sides.out.start_postcopy().unwrap();
    sides.wait_until(|sides| sides.out.state() == SourceState::Serving);
    sides.cut();
    assert!(sides.wait_until(Sides::is_interrupted));
    sides
}

/// An endpoint at which nobody listens, and the directory that it is in.
fn endpoint() -> (tempfile::TempDir, Endpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let at = Endpoint::parse(&format!("unix:{}", path.display())).unwrap();
    (directory, at)
}

#[test]
fn a_source_that_recovers_first_waits_for_the_destination_to_listen() {
    let sides = interrupted(&slow(2));
    let (_directory, at) = endpoint();
    sides.out.recover(ConnectTo::Endpoint(at.clone())).unwrap();
    assert_eq!(sides.out.state(), SourceState::Recovering);
    let again = sides.out.recover(ConnectTo::Endpoint(at.clone()));
    assert_eq!(again.unwrap_err().kind(), Kind::Busy);
    // It has tried by now.
    std::thread::sleep(MS * 50);
    assert_eq!(sides.out.state(), SourceState::Recovering);
    sides.inc.recover_at(&at).unwrap();
    assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
    sides.out.set_max_bandwidth(None).unwrap();
    sides.assert_whole("the source first");
    for vmm in [&sides.pair.from, &sides.pair.to] {
        let recovered = vmm.events(EventKind::Recovered);
        assert_eq!(recovered.len(), 1, "{recovered:?}");
        assert!(recovered[0].contains("pages are missing"), "{recovered:?}");
        assert_eq!(vmm.events(EventKind::Interrupted).len(), 1);
    }
    assert_eq!(sides.out.stats().recoveries, 1);
}

#[test]
fn a_recovery_to_nobody_ends_with_the_connect_timeout_and_says_why() {
    let params = Params {
        connect_timeout: MS * 300,
        ..slow(1)
    };
    let sides = interrupted(&params);
    let (_directory, at) = endpoint();
    let begun = Instant::now();
    sides.out.recover(ConnectTo::Endpoint(at)).unwrap();
    assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Interrupted));
    assert!(begun.elapsed() >= MS * 200, "{:?}", begun.elapsed());
    sides.wait_until(|sides| sides.pair.from.events(EventKind::Interrupted).len() == 2);
    let events = sides.pair.from.events(EventKind::Interrupted);
    let why = &events[1];
    assert!(
        why.contains("the recovery failed") && why.contains("connecting to unix:"),
        "{why}"
    );
    sides.out.resolve(Resolution::Destroy).unwrap();
    sides.inc.give_up().unwrap();
    sides.inc.wait(Some(LONG)).unwrap_err();
}

#[test]
fn a_resolution_ends_a_recovery_that_waits_for_the_destination() {
    let params = Params {
        connect_timeout: LONG,
        ..slow(1)
    };
    let sides = interrupted(&params);
    let (_directory, at) = endpoint();
    sides.out.recover(ConnectTo::Endpoint(at)).unwrap();
    let begun = Instant::now();
    sides.out.resolve(Resolution::Destroy).unwrap();
    assert!(begun.elapsed() < LONG / 4, "{:?}", begun.elapsed());
    assert_eq!(sides.out.state(), SourceState::GivenUp);
    sides.inc.give_up().unwrap();
    sides.inc.wait(Some(LONG)).unwrap_err();
}

/// Every page has come, and not one acknowledgement of them.
#[test]
fn a_source_that_lost_the_last_acknowledgements_is_told_that_nothing_is_missing() {
    let (pair, params) = (pair(), slow(1));
    let (wires, near, far) = Wires::new(2);
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start(ConnectTo::ConnectedAll(near)).unwrap();
    out.start_postcopy().unwrap();
    let wait = |what: &str, is: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !is() {
            assert!(begun.elapsed() < LONG, "{what}: {:?}", out.state());
            let _ = out.wait(Some(MS));
        }
    };
    wait("serving", &|| out.state() == SourceState::Serving);
    // The first acknowledgement on channel 0 is that of its last page, and no page was asked for.
    wires.cut_behind(0, 1, 0, Reach::All);
    out.set_max_bandwidth(None).unwrap();
    inc.wait(Some(LONG)).unwrap();
    wait("interrupted", &|| out.state() == SourceState::Interrupted);
    assert!(out.stats().missing_pages > 0);
    // Also when it breaks once more, and again at an endpoint.
    let (wires, near, far) = Wires::new(2);
    wires.cut_behind(0, 1, 40, Reach::All);
    out.recover(ConnectTo::ConnectedAll(near)).unwrap();
    inc.recover(AcceptFrom::ConnectedAll(far)).unwrap();
    wait("interrupted again", &|| {
        pair.from.events(EventKind::Interrupted).len() == 2
    });
    let (_directory, at) = endpoint();
    out.recover(ConnectTo::Endpoint(at.clone())).unwrap();
    wait(
        "the answer before it is over",
        &|| match inc.recover_at(&at) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Busy, "{error}");
                false
            }
        },
    );
    out.wait(Some(LONG)).unwrap();
    assert_eq!(out.state(), SourceState::Completed);
    assert_eq!(inc.state(), DestinationState::Running);
    assert_eq!((out.stats().missing_pages, out.stats().recoveries), (0, 1));
    wait("the destination's event", &|| {
        pair.to.events(EventKind::Recovered).len() == 1
    });
    pair.destination.pause();
    pair.assert_sound("told late");
    assert_eq!(pair.to.calls("run"), 1);
}

#[test]
fn a_late_source_is_answered_by_its_recovery_number_and_a_page_that_it_sends_is_refused() {
    let mut source = Scripted::begin(&ram("ram", 600), 1, &Params::default());
    let missing = [5..9, 512..600];
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    source.bulk[0].pages(5..9);
    source.bulk[0].pages(512..600);
    source.finish();
    source.incoming.wait(Some(LONG)).unwrap();
    // The word for it was lost.
    source.reconnect(1);
    assert_eq!(source.told(1), []);
    source.finish();
    let warnings = |source: &Scripted| source.to.events(EventKind::Warning).len();
    let answers = |source: &Scripted| source.to.events(EventKind::Recovered).len();
    let wait = |source: &Scripted, count: &dyn Fn(&Scripted) -> usize, all: usize| {
        let begun = Instant::now();
        while count(source) < all {
            assert!(begun.elapsed() < LONG);
            std::thread::sleep(MS);
        }
    };
    wait(&source, &answers, 1);
    let before = warnings(&source);
    source.reconnect(1);
    wait(&source, &warnings, before + 1);
    source.reconnect(2);
    assert_eq!(source.told(2), []);
    source.bulk[0].pages(5..9);
    wait(&source, &warnings, before + 2);
    source.reconnect(3);
    assert_eq!(source.told(3), []);
    source.finish();
    wait(&source, &answers, 2);
    source.assert_whole(&[]);
    assert_eq!(source.incoming.state(), DestinationState::Running);
}

#[test]
fn a_destination_that_is_freed_while_it_waits_for_new_connections_does_not_wait_for_their_time() {
    let sides = interrupted(&slow(1));
    let (_directory, at) = endpoint();
    sides.inc.recover_at(&at).unwrap();
    assert_eq!(sides.inc.state(), DestinationState::Completing);
    let again = sides.inc.recover_at(&at).unwrap_err();
    assert!(again.message().contains("memory arrives"), "{again}");
    let Sides { out, inc, pair, .. } = sides;
    // The connect timeout is ten seconds.
    let begun = Instant::now();
    drop(inc);
    assert!(begun.elapsed() < MS * 5000, "{:?}", begun.elapsed());
    out.resolve(Resolution::Destroy).unwrap();
    drop(pair);
}
