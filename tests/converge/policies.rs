//! A guest that writes one and a half times what the link carries, under each policy.

use crate::support::busy::{has_rings, migrate, pair, Moved, Shape};
use crate::support::link::Link;
use crate::support::time::MS;
use brant::error::Kind;
use brant::kvm_ioctls::Kvm;
use brant::migrate::{OnDeadline, Params, Policy, Slowing};
use std::time::Duration;

/// Bytes a second. Little, so that a busy machine keeps it.
const RATE: u64 = 20_000_000;
const WRITES: f64 = 1.5 * RATE as f64 / 4096.0;
/// 12 MiB, which take 630 ms on the link, are written all the time.
const SHAPE: Shape = Shape {
    pages: 4096,
    region: 3072,
    writes: Some(WRITES),
    reads: None,
    rings: false,
    state: 1000,
};
/// 1 MB.
const SHORT: Duration = Duration::from_millis(50);
/// 8 MB. A full dirty ring is at most 4 MB, and each sync lets a limited vCPU fill one.
const LIMIT: Duration = Duration::from_millis(400);

/// Migrates the guest under `policy`, with the downtime limit `limit`. `None`: there is no KVM for it here.
fn under(policy: Policy, limit: Duration, rings: bool, total: Duration) -> Option<Moved> {
    let kvm = match Kvm::new() {
        Ok(kvm) if !rings || has_rings(&kvm) => kvm,
        _ => {
            println!("skipped: no /dev/kvm, or no dirty rings");
            return None;
        }
    };
    let shape = Shape { rings, ..SHAPE };
    let ([here, there], tracker) = pair(&kvm, shape);
    let params = Params {
        downtime_limit: limit,
        total_timeout: Some(total),
        policy,
        ..Params::default()
    };
    let link = Link::of(RATE, Duration::ZERO, 256 << 10);
    let moved = migrate(tracker, [&here, &there], &link, &params);
    println!("{:?}: {:?}", moved.ended, moved.stats);
    // Nothing stays slowed, and the guest runs in one place.
    assert_eq!(here.throttle_of(0), 0);
    assert_eq!((moved.stats.throttle, moved.stats.limited_vcpus), (0, 0));
    assert_eq!(there.ran(), moved.ended.is_ok());
    if moved.ended.is_ok() {
        assert!(here.bytes() == there.bytes(), "the memory differs");
    } else {
        let work = here.work(0);
        let begun = std::time::Instant::now();
        while here.work(0) == work {
            assert!(begun.elapsed() < crate::support::time::LONG, "it stands");
            std::thread::yield_now();
        }
    }
    here.halt();
    Some(moved)
}

fn assert_converged(moved: &Moved) {
    moved.ended.as_ref().unwrap();
    let stats = &moved.stats;
    assert!(stats.promised_downtime.unwrap() <= LIMIT, "{stats:?}");
    assert!(stats.downtime.unwrap() < LIMIT + MS * 1000, "{stats:?}");
}

#[test]
fn without_a_policy_a_guest_that_outruns_the_link_fails_at_its_timeout_and_says_why() {
    let Some(moved) = under(Policy::default(), SHORT, false, MS * 4000) else {
        return;
    };
    let error = moved.ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    assert!(moved.took < MS * 10_000, "{:?}", moved.took);
}

#[test]
fn a_guest_that_outruns_the_link_converges_when_all_vcpus_are_slowed() {
    let policy = Policy {
        slowing: Slowing::AutoConverge,
        ..Policy::default()
    };
    if let Some(moved) = under(policy, LIMIT, false, MS * 60_000) {
        assert_converged(&moved);
    }
}

#[test]
fn a_guest_that_outruns_the_link_converges_when_its_writers_are_limited_in_their_rings() {
    let policy = Policy {
        slowing: Slowing::DirtyLimit,
        ..Policy::default()
    };
    if let Some(moved) = under(policy, LIMIT, true, MS * 60_000) {
        assert_converged(&moved);
    }
}

#[test]
fn a_guest_that_outruns_the_link_converges_when_the_limit_may_rise_to_what_it_needs() {
    let policy = Policy {
        ceiling: Some(MS * 2000),
        ..Policy::default()
    };
    let Some(moved) = under(policy, SHORT, false, MS * 60_000) else {
        return;
    };
    moved.ended.unwrap();
    let stats = &moved.stats;
    let risen = stats.downtime_limit.unwrap();
    assert!(SHORT < risen && risen <= MS * 2000, "{stats:?}");
    assert!(stats.promised_downtime.unwrap() <= risen, "{stats:?}");
}

#[test]
fn a_guest_that_outruns_the_link_is_paused_in_time_to_finish_by_the_deadline() {
    let policy = Policy {
        deadline: Some(MS * 4000),
        on_deadline: OnDeadline::PauseToFinish,
        ..Policy::default()
    };
    let Some(moved) = under(policy, SHORT, false, MS * 60_000) else {
        return;
    };
    moved.ended.unwrap();
    let stats = &moved.stats;
    assert!(stats.downtime.unwrap() > SHORT, "{stats:?}");
    // It is promised what it takes.
    assert!(stats.promised_downtime.unwrap() > SHORT, "{stats:?}");
    assert!(moved.took < MS * 10_000, "{:?}", moved.took);
}
