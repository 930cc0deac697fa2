//! Each policy ends a migration that would not end by itself, in its own way.

use super::{auto_converge, dirtying, link, policy, LINK};
use crate::support::link::Link;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{migrate_over, start_over};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::steering::stall::Cause;
use brant::migrate::{OnDeadline, Operations, Params, Policy};
use brant::vmm::EventKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn auto_converge_makes_a_guest_converge_that_dirties_one_and_a_half_times_what_the_link_carries() {
    let pair = dirtying(1.5);
    let (out, ended) = migrate_over(&pair, &link(), &policy(auto_converge()));
    ended.unwrap();
    let stats = out.stats();
    let most = pair.from.most.load(Ordering::SeqCst);
    println!(
        "slowed by {most} percent, {} passes, {:?}",
        stats.pass, stats.elapsed
    );
    assert!((30..=99).contains(&most), "{most}");
    assert!(stats.promised_downtime.unwrap() <= MS * 300, "{stats:?}");
}

#[test]
fn at_the_deadline_a_migration_that_has_not_converged_is_cancelled_and_says_what_would_help() {
    let pair = dirtying(1.5);
    let params = policy(Policy {
        deadline: Some(MS * 2500),
        ..Policy::default()
    });
    let (_, ended) = migrate_over(&pair, &link(), &params);
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    assert!(error.message().contains("deadline of 2.5 s"), "{error}");
    assert!(error.message().contains("policy that slows"), "{error}");
    pair.assert_runs_on("cancelled by its deadline");
}

#[test]
fn a_deadline_is_kept_although_the_link_stands_still() {
    let pair = dirtying(1.5);
    let params = policy(Policy {
        deadline: Some(MS * 1500),
        ..Policy::default()
    });
    let link = link();
    let (out, inc) = start_over(&pair, &link, &params);
    pair.from.wait_state("copying");
    link.stop();
    let error = out.wait(Some(LONG)).unwrap_err();
    assert!(
        matches!(error.kind(), Kind::NotConverged | Kind::Timeout),
        "{error}"
    );
    // The limit on a peer that moves no byte is 30 s.
    assert!(out.stats().elapsed < Duration::from_secs(15), "{error}");
    link.cut();
    let _ = inc.wait(Some(LONG));
    pair.assert_runs_on("a link that stands still");
}

#[test]
fn a_pause_to_finish_keeps_its_deadline_and_is_not_aborted() {
    let pair = dirtying(1.5);
    let deadline = MS * 3500;
    let params = policy(Policy {
        deadline: Some(deadline),
        on_deadline: OnDeadline::PauseToFinish,
        ..Policy::default()
    });
    let (out, ended) = migrate_over(&pair, &link(), &params);
    ended.unwrap();
    let stats = out.stats();
    println!(
        "{:?} of {deadline:?}, stood {:?}",
        stats.elapsed, stats.downtime
    );
    assert!(stats.elapsed < deadline * 2, "{stats:?}");
    // The pause was longer than its limit, by more than any slack, and nothing aborted it.
    assert!(stats.promised_downtime.unwrap() > MS * 300, "{stats:?}");
    assert_eq!(stats.aborted_pauses, 0);
    let told = pair.from.events(EventKind::Downtime);
    assert!(
        told[0].contains("the policy pauses it to finish"),
        "{told:?}"
    );
}

#[test]
fn who_carries_on_is_told_that_the_deadline_has_passed() {
    let pair = dirtying(1.5);
    let params = policy(Policy {
        deadline: Some(MS * 100),
        on_deadline: OnDeadline::CarryOn,
        ..Policy::default()
    });
    let link = link();
    let (out, inc) = start_over(&pair, &link, &params);
    pair.from.wait_passes(2);
    let mut told = pair.from.events(EventKind::Warning);
    told.retain(|text| text.contains("deadline"));
    assert_eq!(told.len(), 1, "{told:?}");
    out.switch_over().unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("carries on");
}

#[test]
fn the_limit_rises_until_the_rest_fits_and_not_above_its_ceiling() {
    let pair = dirtying(1.5);
    let ceiling = Duration::from_secs(8);
    let params = policy(Policy {
        ceiling: Some(ceiling),
        ..Policy::default()
    });
    let (out, ended) = migrate_over(&pair, &link(), &params);
    ended.unwrap();
    let stats = out.stats();
    let limit = stats.downtime_limit.unwrap();
    assert!(limit > MS * 300 && limit <= ceiling, "{stats:?}");
    assert!(stats.promised_downtime.unwrap() <= limit, "{stats:?}");
    let mut told = pair.from.events(EventKind::Downtime);
    told.retain(|text| text.contains("rises to"));
    assert!(!told.is_empty());
}

#[test]
fn a_limit_below_the_round_trips_rises_for_an_idle_guest_and_fails_above_its_ceiling() {
    let far = || Link::of(LINK, MS * 80, 256 << 10);
    let idle = || {
        let pair = Pair::new(&[ram("ram", 256)]);
        pair.source.fill(1);
        pair.source.track();
        pair
    };
    let params = |ceiling| Params {
        downtime_limit: MS * 50,
        policy: Policy {
            ceiling: Some(ceiling),
            ..Policy::default()
        },
        ..Params::default()
    };
    let pair = idle();
    let (out, ended) = migrate_over(&pair, &far(), &params(Duration::from_secs(2)));
    ended.unwrap();
    assert!(
        out.stats().downtime_limit.unwrap() >= MS * 160,
        "{:?}",
        out.stats()
    );
    let (_, ended) = migrate_over(&idle(), &far(), &params(MS * 100));
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    assert!(error.message().contains("ceiling of 100 ms"), "{error}");
}

#[test]
fn a_stall_is_told_with_its_cause_and_ends_at_a_local_minimum_when_the_policy_finishes() {
    let pair = dirtying(1.5);
    let params = policy(Policy {
        patience: MS * 200,
        on_deadline: OnDeadline::PauseToFinish,
        ..Policy::default()
    });
    let (out, ended) = migrate_over(&pair, &link(), &params);
    ended.unwrap();
    let told = pair.from.events(EventKind::Stalled);
    assert!(!told.is_empty());
    assert!(told[0].contains("no progress for"), "{told:?}");
    assert!(told[0].contains("the guest dirties as much"), "{told:?}");
    assert_eq!(out.stats().stall, Some(Cause::Dirtying));
    assert!(out.stats().pass >= 3, "{:?}", out.stats());
}

/// Without a policy, passes would follow one another until the total timeout.
#[test]
fn what_a_guest_writes_during_a_slow_pause_ends_the_migration_with_an_error_that_says_so() {
    let pair = dirtying(1.5);
    let params = Params {
        downtime_limit: MS * 300,
        expected: Operations {
            pause: Some(MS * 250),
            ..Operations::default()
        },
        policy: Policy {
            patience: MS * 100,
            ..Policy::default()
        },
        ..Params::default()
    };
    let (_, ended) = migrate_over(&pair, &link(), &params);
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    let message = error.message();
    assert!(message.contains("`pause` takes 250.0 ms"), "{message}");
    assert!(message.contains("the guest writes"), "{message}");
    pair.assert_runs_on("too much is written in a pause");
}
