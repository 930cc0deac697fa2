//! A running migration is changed from another thread: its limit, its policy, its cap, its deadline,
//! and the switchover now.

use super::{auto_converge, dirtying, link, policy};
use crate::support::pair::Pair;
use crate::support::sides::{outgoing, start_over};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::{OnDeadline, Outgoing, Params, Policy, SourceState};
use brant::vmm::EventKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A migration that does not converge by itself, changed after its second pass by a thread of its
/// own, ends well.
fn changed(pair: &Pair, change: impl FnOnce(&Outgoing) + Send + 'static) -> Arc<Outgoing> {
    let link = link();
    let (out, inc) = start_over(pair, &link, &policy(Policy::default()));
    pair.from.wait_passes(2);
    let other = Arc::clone(&out);
    std::thread::spawn(move || change(&other)).join().unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("changed");
    assert_eq!(pair.world.who(), (false, true));
    out
}

#[test]
fn a_higher_downtime_limit_ends_the_migration() {
    let pair = dirtying(1.5);
    let out = changed(&pair, |out| {
        out.set_downtime_limit(Duration::from_secs(8)).unwrap();
    });
    assert_eq!(out.stats().downtime_limit, Some(Duration::from_secs(8)));
    assert!(out.stats().promised_downtime.unwrap() > MS * 300);
}

#[test]
fn a_policy_that_slows_the_guest_ends_the_migration() {
    let pair = dirtying(1.5);
    let out = changed(&pair, |out| out.set_policy(auto_converge()).unwrap());
    assert!(!pair.from.events(EventKind::Throttle).is_empty());
    assert!(out.stats().promised_downtime.unwrap() <= MS * 300);
}

#[test]
fn a_deadline_with_a_pause_to_finish_ends_the_migration() {
    let pair = dirtying(1.5);
    changed(&pair, |out| {
        let deadline = out.stats().elapsed + MS * 1500;
        let policy = Policy {
            deadline: Some(deadline),
            on_deadline: OnDeadline::PauseToFinish,
            ..Policy::default()
        };
        out.set_policy(policy).unwrap();
    });
}

#[test]
fn the_switchover_now_is_not_aborted_by_limit_or_slack() {
    let pair = dirtying(1.5);
    let out = changed(&pair, |out| {
        out.switch_over().unwrap();
        // Once more changes nothing, unless the guest is paused already.
        let _ = out.switch_over();
    });
    let stats = out.stats();
    assert_eq!(stats.aborted_pauses, 0);
    assert!(stats.promised_downtime.unwrap() > MS * 300, "{stats:?}");
    let told = pair.from.events(EventKind::Downtime);
    assert!(told[0].contains("the switchover was asked for"), "{told:?}");
    let late = out.switch_over().unwrap_err();
    assert_eq!(late.kind(), Kind::State, "{late}");
}

#[test]
fn a_cap_that_is_lifted_ends_the_migration() {
    let pair = dirtying(0.2);
    let link = link();
    let params = Params {
        max_bandwidth: Some(1 << 20),
        ..policy(Policy::default())
    };
    let (out, inc) = start_over(&pair, &link, &params);
    pair.from.wait_state("copying");
    out.set_max_bandwidth(None).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a lifted cap");
}

#[test]
fn a_migration_that_is_told_before_its_start_switches_over_as_soon_as_it_knows_the_link() {
    let pair = dirtying(1.5);
    let link = link();
    let (near, far) = link.connect();
    let out = outgoing(&pair, &policy(Policy::default()));
    let inc = crate::support::sides::incoming(&pair, &Params::default());
    out.switch_over().unwrap();
    inc.start(brant::migrate::AcceptFrom::Connected(far))
        .unwrap();
    out.start(brant::migrate::ConnectTo::Connected(near))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("at once");
    let stats = out.stats();
    assert_eq!(stats.pass, 1, "{stats:?}");
    assert!(stats.promised_downtime.unwrap() > MS * 300, "{stats:?}");
}

#[test]
fn a_limit_that_is_raised_during_a_pause_keeps_it_from_being_aborted() {
    let pair = Pair::new(&[crate::support::memory::ram("ram", 1024)]);
    pair.source.fill(1);
    pair.source.track();
    let link = link();
    let (out, inc) = start_over(&pair, &link, &policy(Policy::default()));
    let (source, weak) = (Arc::clone(&pair.source), Arc::downgrade(&out));
    pair.from.at("pause", move || {
        for page in 0..1024 {
            source.poke("ram", page * 4096 + 64, page as u64 + 9);
        }
        let out = weak.upgrade().unwrap();
        out.set_downtime_limit(Duration::from_secs(60))
    });
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a limit that is raised");
    assert_eq!(out.stats().aborted_pauses, 0, "{:?}", out.stats());
}

#[test]
fn changes_out_of_range_say_the_range_and_change_nothing() {
    let pair = dirtying(0.1);
    let out = outgoing(&pair, &policy(Policy::default()));
    let long = Policy {
        deadline: Some(Duration::from_secs(7200)),
        ..Policy::default()
    };
    let ceiling = Policy {
        ceiling: Some(MS * 100),
        ..Policy::default()
    };
    let table: [(&str, brant::Result<()>); 4] = [
        (
            "it can be 1 ms to 1 h",
            out.set_downtime_limit(Duration::ZERO),
        ),
        (
            "it can be 1 ms to 1 h",
            out.set_downtime_limit(Duration::MAX),
        ),
        ("the total timeout of 1 h", out.set_policy(long)),
        (
            "it can be 300 to 3600000 ms",
            out.set_policy(ceiling.clone()),
        ),
    ];
    for (range, refused) in table {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.message().contains(range), "{error}");
    }
    // With a lower limit the same ceiling is in range, and holds the limit.
    out.set_downtime_limit(MS * 50).unwrap();
    out.set_policy(ceiling).unwrap();
    let error = out.set_downtime_limit(MS * 101).unwrap_err();
    assert!(error.message().contains("101 to 3600000 ms"), "{error}");
    assert_eq!(out.state(), SourceState::Idle);
}

#[test]
fn an_order_is_heard_at_once() {
    let pair = dirtying(1.5);
    let link = link();
    let (out, inc) = start_over(&pair, &link, &policy(Policy::default()));
    pair.from.wait_passes(1);
    let asked = Instant::now();
    out.switch_over().unwrap();
    pair.from.wait_state("pausing");
    // A batch, what is on its way, and a sync.
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
}
