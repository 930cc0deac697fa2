//! How the two objects may be used: once, not inside their own callbacks, not for a blocked guest,
//! and with parameters in range.

use crate::support::deciders::until;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair};
use crate::support::time::{LONG, MS};
use brant::error::{Kind, Result};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params, Resolution};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn waiting_inside_a_callback_is_an_error_and_cancelling_there_only_asks() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    let heard: Arc<Mutex<Vec<Kind>>> = Arc::default();
    let (weak, list) = (Arc::downgrade(&out), Arc::clone(&heard));
    pair.from.at("save", move || {
        let out = weak.upgrade().unwrap();
        assert!(out.in_callback());
        let mut list = list.lock().unwrap();
        list.push(out.wait(None).unwrap_err().kind());
        list.push(out.resolve(Resolution::Resume).unwrap_err().kind());
        let (a, _) = socketpair();
        list.push(out.start(ConnectTo::Connected(a)).unwrap_err().kind());
        out.cancel().unwrap();
        Ok(())
    });
    let (weak, list) = (Arc::downgrade(&inc), Arc::clone(&heard));
    pair.to.at("receiving", move || {
        list.lock()
            .unwrap()
            .push(weak.upgrade().unwrap().wait(None).unwrap_err().kind());
        Ok(())
    });
    assert!(!out.in_callback());
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    let _ = inc.wait(Some(LONG));
    assert_eq!(*heard.lock().unwrap(), [Kind::Callback; 4]);
    pair.assert_runs_on("callbacks");
}

#[test]
fn one_object_is_one_migration_and_one_tracker_has_one_at_a_time() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let fd = || socketpair().0;
    let kind = |r: Result<()>| r.unwrap_err().kind();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    assert_eq!(kind(out.wait(None)), Kind::State);
    assert_eq!(kind(inc.wait(None)), Kind::State);
    let told: Arc<AtomicBool> = Arc::default();
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&told))
        .unwrap();
    assert_eq!(kind(out.start(ConnectTo::Connected(fd()))), Kind::State);
    assert_eq!(kind(inc.start(AcceptFrom::Connected(fd()))), Kind::State);
    let second = outgoing(&pair, &quick());
    assert_eq!(kind(second.start(ConnectTo::Connected(fd()))), Kind::Busy);
    assert_eq!(kind(out.wait(Some(MS))), Kind::Pending);
    told.store(true, Ordering::SeqCst);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(kind(out.start(ConnectTo::Connected(fd()))), Kind::State);
    assert_eq!(kind(out.cancel()), Kind::State);
    assert_eq!(kind(inc.cancel()), Kind::State);
    // A migration that was refused for that reason can be started later, when the guest is back.
    assert_eq!(kind(second.start(ConnectTo::Connected(fd()))), Kind::State);
    pair.source.memory.reclaim().unwrap();
    let (a, _peer) = socketpair();
    second.start(ConnectTo::Connected(a)).unwrap();
    second.cancel().unwrap();
    // A migration that is cancelled before its start never starts.
    let third = outgoing(&pair, &quick());
    third.cancel().unwrap();
    assert_eq!(
        kind(third.start(ConnectTo::Connected(fd()))),
        Kind::Cancelled
    );
}

#[test]
fn a_blocked_guest_does_not_start_and_one_that_becomes_blocked_is_never_paused() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let blockers = Blockers::new();
    let make = || {
        let tracker = Arc::clone(&pair.source.tracker);
        let vmm = Arc::clone(&pair.from);
        Outgoing::new(tracker, blockers.clone(), vmm, quick()).unwrap()
    };
    let out = make();
    let reason = blockers.block("a disk is local");
    let error = out.start(ConnectTo::Connected(socketpair().0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
    assert!(error.message().contains("a disk is local"), "{error}");
    drop(reason);
    let (a, b) = socketpair();
    let inc = incoming(&pair, &quick());
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(2);
    let _reason = blockers.block("a GPU came");
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
    assert!(error.message().contains("a GPU came"), "{error}");
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert!(error.message().contains("a GPU came"), "{error}");
    assert_eq!(pair.from.calls("pause"), 0);
    pair.assert_runs_on("blocked");
}

#[test]
fn parameters_out_of_range_are_refused_before_anything_starts() {
    let pair = Pair::new(&[ram("ram", 1)]);
    let d = Params::default;
    for params in [
        Params {
            downtime_limit: Duration::ZERO,
            ..d()
        },
        Params {
            max_bandwidth: Some(1),
            ..d()
        },
        Params {
            total_timeout: Some(Duration::ZERO),
            ..d()
        },
        Params { channels: 0, ..d() },
        Params {
            max_state_bytes: 1,
            ..d()
        },
    ] {
        let (tracker, vmm) = (Arc::clone(&pair.source.tracker), Arc::clone(&pair.from));
        let error = Outgoing::new(tracker, Blockers::new(), vmm, params.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let (memory, vmm) = (Arc::clone(&pair.destination.memory), Arc::clone(&pair.to));
        assert_eq!(
            Incoming::new(memory, vmm, params).unwrap_err().kind(),
            Kind::Invalid
        );
    }
}
