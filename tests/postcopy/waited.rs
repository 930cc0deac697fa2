//! Recoveries of a postcopy while threads at the destination wait for pages, and what the figures say of
//! recoveries that fail.

use super::whole::{allowed, connections, pair, Sides};
use crate::support::memory::PAGE;
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::{
    AcceptFrom, ConnectTo, DestinationState, Params, Resolution, SourceState, Stats,
};
use brant::vmm::EventKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

const READERS: usize = 8;

/// A session that sends the rest slowly, from its switch on.
fn serving(channels: u32) -> Sides {
    let params = Params {
        max_bandwidth: Some(8 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        ..allowed(channels)
    };
    let sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
    sides
}

/// Cuts all connections. Returns once both sides know.
fn interrupt(sides: &mut Sides) -> Stats {
    sides.cut();
    let interrupted = sides.wait_until(Sides::is_interrupted);
    assert!(
        interrupted,
        "{:?}, {:?}; here {:?}, there {:?}",
        sides.out.wait(Some(LONG)),
        sides.out.stats(),
        sides.pair.from.states(),
        sides.pair.to.states()
    );
    sides.out.stats()
}

/// Threads that each read some missing pages. All of them wait when this returns.
fn readers(sides: &Sides) -> Vec<JoinHandle<()>> {
    let mut missing = Vec::new();
    sides.inc.missing(|block, pages| {
        if block.name() == "ram" {
            missing.extend(pages.start.index()..pages.end.index());
        }
    });
    assert!(missing.len() > 40 * READERS, "{}", missing.len());
    let faults = || sides.inc.blocked().iter().map(|b| b.faults).sum::<u64>();
    let before = faults();
    let step = missing.len() / READERS;
    let readers = missing.chunks(step).take(READERS).map(|chunk| {
        let pages: Vec<usize> = chunk.iter().rev().step_by(7).take(5).copied().collect();
        let ram = sides.pair.destination.ram("ram");
        std::thread::spawn(move || {
            for page in pages {
                ram.word(page * PAGE).load(Ordering::SeqCst);
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    assert!(sides.wait_until(|_| faults() >= before + READERS as u64));
    readers
}

#[test]
fn a_recovery_goes_on_while_threads_wait_for_pages() {
    for channels in [1, 2] {
        let mut sides = serving(channels);
        for round in 1..=4 {
            let left = interrupt(&mut sides).missing_pages;
            let readers = readers(&sides);
            sides.recover(channels);
            let done = |_: &Sides| readers.iter().all(JoinHandle::is_finished);
            let told = |sides: &Sides| sides.pair.from.events(EventKind::Interrupted);
            assert!(sides.wait_until(|sides| done(sides) || told(sides).len() > round));
            assert_eq!(told(&sides).len(), round, "{:?}", told(&sides));
            // Pages count once they are acknowledged.
            assert!(sides.wait_until(|sides| {
                let stats = sides.out.stats();
                stats.recoveries == round as u64 && stats.urgent_pages > 0
            }));
            let stats = sides.out.stats();
            assert!(stats.missing_pages < left, "{left}: {stats:?}");
        }
        sides.out.set_max_bandwidth(None).unwrap();
        sides.assert_whole("recovered with waiting threads");
        assert_eq!(sides.out.stats().recoveries, 4);
        // Nobody was told that something is amiss.
        let warnings = sides.pair.from.events(EventKind::Warning);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn a_second_recovery_is_refused_while_one_is_in_progress_and_nothing_of_it_is_left_over() {
    let mut sides = serving(1);
    interrupt(&mut sides);
    // The destination does not answer yet.
    let (near, far, ends) = connections(1);
    sides.out.recover(ConnectTo::ConnectedAll(near)).unwrap();
    let again = |sides: &Sides| {
        let (near, ..) = connections(1);
        sides
            .out
            .recover(ConnectTo::ConnectedAll(near))
            .unwrap_err()
    };
    assert_eq!(again(&sides).kind(), Kind::Busy);
    // Nor when the source waits for the answer.
    source_spoke(&far[0]);
    assert_eq!(again(&sides).kind(), Kind::Busy);
    sides.inc.recover(AcceptFrom::ConnectedAll(far)).unwrap();
    assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
    assert_eq!(again(&sides).kind(), Kind::State);
    for end in ends {
        let _ = end.shutdown(std::net::Shutdown::Both);
    }
    interrupt(&mut sides);
    sides.recover(1);
    sides.out.set_max_bandwidth(None).unwrap();
    sides.assert_whole("recovered once more");
    // One for the switch's connections, one for the first recovery's.
    assert_eq!(sides.pair.from.events(EventKind::Interrupted).len(), 2);
}

/// Waits until the source has said something on a connection.
fn source_spoke(far: &OwnedFd) {
    let mut poll = libc::pollfd {
        fd: far.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor.
    let ready = unsafe { libc::poll(&mut poll, 1, LONG.as_millis() as i32) };
    assert_eq!(ready, 1);
}

#[test]
fn a_recovery_that_fails_changes_no_figure() {
    let mut sides = serving(1);
    let before = interrupt(&mut sides);
    for round in 2..4 {
        // The destination is not there.
        let (near, far, _) = connections(1);
        drop(far);
        sides.out.recover(ConnectTo::ConnectedAll(near)).unwrap();
        let told = |sides: &Sides| sides.pair.from.events(EventKind::Interrupted).len();
        assert!(sides.wait_until(|sides| told(sides) == round));
    }
    let after = sides.out.stats();
    assert_eq!(after.recoveries, 0);
    let pages = |stats: &Stats| [stats.missing_pages, stats.urgent_pages, stats.bulk_pages];
    assert_eq!(pages(&after), pages(&before));
    sides.recover(1);
    sides.out.set_max_bandwidth(None).unwrap();
    sides.assert_whole("recovered");
    let stats = sides.out.stats();
    assert_eq!(stats.recoveries, 1);
    // A page counts once it is there, and once.
    assert!(stats.bulk_pages <= 6700, "{stats:?}");
}

#[test]
fn a_session_that_is_given_up_says_that_its_guest_runs_at_the_destination() {
    for by_resolving in [true, false] {
        let mut sides = serving(1);
        let left = interrupt(&mut sides).missing_pages;
        if by_resolving {
            sides.out.resolve(Resolution::Destroy).unwrap();
            assert_eq!(sides.out.state(), SourceState::GivenUp);
            let again = sides.out.resolve(Resolution::Destroy).unwrap_err();
            assert_eq!(again.kind(), Kind::State);
            let error = sides.out.wait(Some(LONG)).unwrap_err();
            // Every other kind says that the guest runs on here.
            assert_eq!(error.kind(), Kind::Unanswered);
            assert!(
                error.message().contains("runs at the destination"),
                "{error}"
            );
            assert!(
                error.message().contains(&format!("{left} pages")),
                "{error}"
            );
            assert_eq!(sides.out.stats().missing_pages, left);
        }
        let inc = std::sync::Arc::clone(&sides.inc);
        let from = std::sync::Arc::clone(&sides.pair.from);
        drop(sides);
        let last = from.events(EventKind::Unanswered);
        assert_eq!(last.len(), 1, "{last:?}");
        assert!(last[0].contains("runs at the destination"), "{last:?}");
        assert!(!last[0].contains("did not say"), "{last:?}");
        inc.give_up().unwrap();
        assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::PeerGone);
    }
}

#[test]
fn a_migration_that_did_not_start_is_not_switched_to_postcopy() {
    let pair = pair();
    let out = crate::support::sides::outgoing(&pair, &allowed(1));
    let none = out.start(ConnectTo::ConnectedAll(Vec::new())).unwrap_err();
    assert_eq!(none.kind(), Kind::Invalid, "{none}");
    assert_eq!(out.start_postcopy().unwrap_err().kind(), Kind::State);
    assert_eq!(out.wait(None).unwrap_err().kind(), Kind::State);
}

#[test]
fn nothing_is_missing_after_a_switch_that_was_dropped_or_failed() {
    // Dropped: `load` would take too long.
    let params = Params {
        downtime_limit: MS * 20,
        expected: brant::migrate::Operations {
            load: Some(MS * 500),
            ..Default::default()
        },
        overrun: brant::migrate::Overrun::CarryOn,
        max_bandwidth: Some(8 << 20),
        ..allowed(1)
    };
    let sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    let dropped = |sides: &Sides| {
        let told = sides.pair.from.events(EventKind::Downtime);
        told.iter()
            .any(|text| text.contains("a switch to postcopy"))
    };
    assert!(sides.wait_until(dropped));
    assert!(sides.wait_until(|sides| sides.out.stats().missing_pages == 0));
    sides.out.cancel().unwrap();
    sides.out.wait(Some(LONG)).unwrap_err();
    sides.inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(sides.out.stats().missing_pages, 0);
    // Failed: `load` returns an error.
    let sides = Sides::start(pair(), &allowed(1));
    sides.pair.to.at("load", || {
        Err(brant::error::Error::new(Kind::Vmm, "no such device"))
    });
    sides.out.start_postcopy().unwrap();
    sides.out.wait(Some(LONG)).unwrap_err();
    sides.inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(sides.inc.state(), DestinationState::Failed);
    let stats = [sides.out.stats(), sides.inc.stats()];
    assert_eq!(stats.map(|stats| stats.missing_pages), [0, 0]);
    sides.pair.assert_runs_on("`load` failed");
}
