//! Nothing stays throttled: after a success, a failure, a cancel, the peer's death, an aborted pause
//! and a panic. `TestVmm` also notes every `pause` of a guest that is still slowed.

use super::{auto_converge, dirtying, link, policy};
use crate::support::pair::Pair;
use crate::support::sides::start_over;
use crate::support::time::LONG;
use crate::support::vmm::failure;
use brant::error::Kind;
use brant::migrate::{Incoming, Outgoing, Params, Policy};
use brant::vmm::EventKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// A policy that slows the guest and a limit that it cannot reach.
fn hopeless() -> Params {
    policy(Policy {
        throttle_max: 20,
        ..auto_converge()
    })
}

/// A migration whose guest is slowed by now. `end` ends it.
fn slowed(pair: &Pair, end: impl FnOnce(&Arc<Outgoing>, &Arc<Incoming>)) -> brant::Result<()> {
    let link = link();
    let (out, inc) = start_over(pair, &link, &hopeless());
    pair.from.wait_event(EventKind::Throttle);
    assert!(pair.from.throttle.load(Ordering::SeqCst) > 0);
    let shown = Instant::now();
    while out.stats().throttle == 0 {
        assert!(shown.elapsed() < LONG, "the figures do not show it");
        std::thread::sleep(Duration::from_millis(5));
    }
    end(&out, &inc);
    let ended = out.wait(Some(LONG));
    let _ = inc.wait(Some(LONG));
    pair.assert_sound("slowed");
    assert_eq!(pair.from.throttle.load(Ordering::SeqCst), 0, "{ended:?}");
    let stats = out.stats();
    assert_eq!((stats.throttle, stats.limited_vcpus), (0, 0), "{ended:?}");
    let told = pair.from.events(EventKind::Throttle);
    assert!(told.last().unwrap().contains("not slowed"), "{told:?}");
    ended
}

#[test]
fn after_a_success_nobody_is_slowed() {
    let pair = dirtying(1.5);
    slowed(&pair, |out, _| out.switch_over().unwrap()).unwrap();
    assert_eq!(pair.world.who(), (false, true));
}

#[test]
fn after_a_failure_nobody_is_slowed() {
    let pair = dirtying(1.5);
    let error = slowed(&pair, |out, _| {
        let policy = Policy {
            deadline: Some(Duration::from_millis(1)),
            ..hopeless().policy
        };
        out.set_policy(policy).unwrap();
    })
    .unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    assert!(error.message().contains("slowed by"), "{error}");
    pair.assert_runs_on("not converged");
}

#[test]
fn after_a_cancel_nobody_is_slowed() {
    let pair = dirtying(1.5);
    let error = slowed(&pair, |out, _| out.cancel().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    pair.assert_runs_on("cancelled");
}

#[test]
fn after_the_peers_death_nobody_is_slowed() {
    let pair = dirtying(1.5);
    slowed(&pair, |_, inc| inc.cancel().unwrap()).unwrap_err();
    pair.assert_runs_on("the peer is gone");
}

#[test]
fn a_policy_that_is_switched_off_lets_the_guest_go_before_the_pass_ends() {
    let pair = dirtying(1.5);
    let link = link();
    let migration: Arc<OnceLock<Weak<Outgoing>>> = Arc::default();
    // How many passes had ended at each call of `throttle`.
    let passes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let (vmm, known, seen) = (
        Arc::downgrade(&pair.from),
        Arc::clone(&migration),
        Arc::clone(&passes),
    );
    pair.from.at("throttle", move || {
        let mut seen = seen.lock().unwrap();
        seen.push(vmm.upgrade().unwrap().events(EventKind::Pass).len());
        if seen.len() == 1 {
            let out = known.get().and_then(Weak::upgrade).expect("started");
            out.set_policy(Policy::default())?;
        }
        Ok(())
    });
    let (out, inc) = start_over(&pair, &link, &hopeless());
    migration.set(Arc::downgrade(&out)).unwrap();
    let begun = Instant::now();
    while passes.lock().unwrap().len() < 2 {
        assert!(begun.elapsed() < LONG, "it stays slowed");
        std::thread::sleep(Duration::from_millis(5));
    }
    out.cancel().unwrap();
    let _ = (out.wait(Some(LONG)), inc.wait(Some(LONG)));
    let passes = passes.lock().unwrap();
    assert_eq!(passes[0], passes[1], "{passes:?}");
    assert_eq!(pair.from.throttle.load(Ordering::SeqCst), 0);
    pair.assert_sound("switched off");
}

#[test]
fn after_a_panic_in_an_operation_nobody_is_slowed() {
    let pair = dirtying(1.5);
    pair.from.at("pause", || panic!("a defect of the VMM's"));
    let error = slowed(&pair, |out, _| out.switch_over().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Vmm, "{error}");
    pair.assert_runs_on("a panic in `pause`");
}

#[test]
fn a_guest_whose_pause_is_aborted_is_slowed_again_and_not_in_between() {
    let pair = dirtying(1.5);
    // In the first pause so much is written that the pause is aborted.
    let (source, pauses) = (Arc::clone(&pair.source), AtomicUsize::new(0));
    pair.from.at("pause", move || {
        if pauses.fetch_add(1, Ordering::SeqCst) == 0 {
            for page in 0..2048 {
                let value = source
                    .ram("ram")
                    .word(page * 4096 + 64)
                    .load(Ordering::Relaxed);
                source.poke("ram", page * 4096 + 64, value + 1);
            }
        }
        Ok(())
    });
    let (throttle, resumed) = (
        Arc::clone(&pair.from.throttle),
        Arc::new(AtomicUsize::new(99)),
    );
    let seen = Arc::clone(&resumed);
    pair.from.at("resume", move || {
        seen.store(throttle.load(Ordering::SeqCst).into(), Ordering::SeqCst);
        Ok(())
    });
    let link = link();
    let (out, inc) = start_over(&pair, &link, &policy(auto_converge()));
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("aborted");
    assert!(out.stats().aborted_pauses >= 1, "{:?}", out.stats());
    assert_eq!(resumed.load(Ordering::SeqCst), 0);
    let told = pair.from.events(EventKind::Throttle);
    let free = |text: &&String| text.contains("not slowed");
    assert!(
        told.iter().filter(free).count() >= 2,
        "slowed again: {told:?}"
    );
}

#[test]
fn a_throttle_that_fails_is_one_warning_and_the_migration_goes_on() {
    let pair = dirtying(1.5);
    pair.from.at("throttle", || Err(failure()));
    let link = link();
    let (out, inc) = start_over(&pair, &link, &hopeless());
    pair.from.wait_event(EventKind::Warning);
    let passes = pair.from.events(EventKind::Pass).len();
    pair.from.wait_passes(passes + 3);
    out.switch_over().unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a throttle that fails");
    let mut told = pair.from.events(EventKind::Warning);
    told.retain(|text| text.contains("`throttle`"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("the migration goes on"), "{told:?}");
    assert!(told[0].contains(failure().message()), "{told:?}");
    // Asked once, and twice to let the guest go: at once, and before it is paused.
    assert!(
        pair.from.calls("throttle") <= 3,
        "{}",
        pair.from.calls("throttle")
    );
    assert_eq!(out.stats().throttle, 0);
}

#[test]
fn a_throttle_that_panics_is_a_failure_of_the_operation_only() {
    let pair = dirtying(1.5);
    pair.from.at("throttle", || panic!("a defect of the VMM's"));
    let link = link();
    let (out, inc) = start_over(&pair, &link, &hopeless());
    pair.from.wait_event(EventKind::Warning);
    out.switch_over().unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a throttle that panics");
}

#[test]
fn a_policy_that_needs_throttle_is_refused_by_name_where_the_vmm_has_none() {
    let pair = dirtying(0.1);
    pair.from.can_throttle.store(false, Ordering::SeqCst);
    let out = crate::support::sides::outgoing(&pair, &hopeless());
    let (a, _b) = crate::support::sides::socketpair();
    let error = out
        .start(brant::migrate::ConnectTo::Connected(a))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert!(error.message().contains("operation `throttle`"), "{error}");
    // Nothing has begun: with another policy the same migration starts.
    out.set_policy(Policy::default()).unwrap();
    let (a, b) = crate::support::sides::socketpair();
    let inc = crate::support::sides::incoming(&pair, &Params::default());
    inc.start(brant::migrate::AcceptFrom::Connected(b)).unwrap();
    out.start(brant::migrate::ConnectTo::Connected(a)).unwrap();
    let refused = out.set_policy(auto_converge());
    // The migration may be over by now, which changes nothing about the refusal.
    assert_eq!(refused.unwrap_err().kind(), Kind::Invalid);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let limits = Policy {
        slowing: brant::migrate::Slowing::DirtyLimit,
        ..Policy::default()
    };
    let error = out.set_policy(limits).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert!(error.message().contains("dirty rings"), "{error}");
}
