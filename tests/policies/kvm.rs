//! A guest of the real KVM that writes to its pages in turn, one and a half times as fast as the link
//! carries. Its vCPU thread keeps the throttle. Auto-converge makes it converge, and it arrives whole.

use super::{auto_converge, policy, LINK};
use crate::support::busy::{migrate, pair, Machine, Shape};
use crate::support::link::Link;
use brant::kvm_ioctls::Kvm;
use brant::migrate::{OnDeadline, Params, Policy, Stats};
use std::sync::Arc;
use std::time::Duration;

/// 8 MiB are written all the time.
const SHAPE: Shape = Shape {
    pages: 256 + 2048,
    region: 2048,
    writes: Some(1.5 * LINK as f64 / 4096.0),
    reads: None,
    rings: false,
    state: 0,
};

/// Migrates a guest that writes, and checks that it arrives whole and that nobody is slowed then.
/// `None`: there is no KVM.
fn moved(params: &Params) -> Option<(Arc<Machine>, Stats)> {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return None;
    };
    let ([here, there], tracker) = pair(&kvm, SHAPE);
    let link = Link::of(LINK, Duration::ZERO, 256 << 10);
    let moved = migrate(tracker, [&here, &there], &link, params);
    // A pause of a guest that is still slowed fails.
    moved.ended.unwrap();
    assert!(there.ran());
    assert_eq!(here.throttle_of(0), 0);
    assert!(here.bytes() == there.bytes(), "another guest arrived");
    Some((here, moved.stats))
}

#[test]
fn auto_converge_makes_a_kvm_guest_converge_that_dirties_one_and_a_half_times_the_link() {
    let Some((machine, stats)) = moved(&policy(auto_converge())) else {
        return;
    };
    let most = machine.most_throttled();
    println!(
        "slowed by {most} percent, {} passes, {:?}",
        stats.pass, stats.elapsed
    );
    assert!(most >= 30, "{most}");
    assert!(
        stats.promised_downtime.unwrap() <= Duration::from_millis(300),
        "{stats:?}"
    );
}

#[test]
fn a_kvm_guest_is_paused_to_finish_by_its_deadline() {
    let deadline = Duration::from_millis(3500);
    let finish = Policy {
        deadline: Some(deadline),
        on_deadline: OnDeadline::PauseToFinish,
        ..Policy::default()
    };
    let Some((_, stats)) = moved(&policy(finish)) else {
        return;
    };
    assert!(stats.elapsed < deadline * 2, "{stats:?}");
    assert_eq!(stats.aborted_pauses, 0, "{stats:?}");
}
