//! Guests of KVM with 1, 2 and 4 vCPUs that run ahead of their memory, and touch it at random, in order, and
//! one hot page. The guest checks what it finds.

use super::checker::{Machine, Order, PAGES, REGION};
use super::whole::CopiesOn;
use crate::support::sides::{quick, socketpair};
use crate::support::time::{LONG, MS};
use brant::kvm_ioctls::Kvm;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, DestinationState, Incoming, Outgoing, Params, SourceState,
};
use std::sync::Arc;
use std::time::Instant;

/// Moves a guest in the middle of its first pass. Returns how many pages its vCPUs waited for.
fn moved(kvm: &Kvm, orders: &[Order], channels: u32) -> u64 {
    let what = format!("{orders:?}");
    let (machines, tracker) = Machine::pair(kvm, orders);
    let [here, there] = &machines;
    let params = Params {
        postcopy: true,
        channels,
        max_bandwidth: Some(24 << 20),
        switchover_max_bandwidth: Some(24 << 20),
        ..quick()
    };
    let (near, far): (Vec<_>, Vec<_>) = (0..=channels).map(|_| socketpair()).unzip();
    let incoming = Incoming::new(there.memory(), Arc::clone(there) as _, params.clone()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), Arc::clone(here) as _, params).unwrap();
    incoming.start(AcceptFrom::ConnectedAll(far)).unwrap();
    let to = ConnectTo::ConnectedAll(near);
    outgoing.start_with(to, Box::new(CopiesOn)).unwrap();
    let begun = Instant::now();
    let wait = |done: &dyn Fn() -> bool| {
        while !done() {
            let wrong = [here.wrong(), there.wrong()];
            assert!(
                begun.elapsed() < LONG && wrong.iter().all(Vec::is_empty),
                "{what}: {wrong:?}"
            );
            let _ = outgoing.wait(Some(MS));
        }
    };
    // The guest has written every page, and part of them is sent.
    wait(&|| outgoing.stats().data_pages >= PAGES / 8 && here.work() > 64);
    outgoing.start_postcopy().unwrap();
    wait(&|| incoming.state() == DestinationState::Completing || outgoing.state().is_over());
    assert!(!outgoing.state().is_over(), "{what}: {:?}", here.told());
    let ended = outgoing.wait(Some(LONG));
    assert!(
        ended.is_ok(),
        "{what}: {ended:?}, {:?}, {:?}",
        here.told(),
        there.told()
    );
    incoming.wait(Some(LONG)).unwrap();
    assert_eq!(outgoing.state(), SourceState::Completed, "{what}");
    let stats = incoming.stats();
    // Twice round, on memory that is whole.
    let work = there.work();
    wait(&|| there.work() > work + 2 * REGION);
    there.halt();
    there.assert_exact(here, &what);
    assert_eq!(stats.missing_pages, 0, "{what}");
    println!(
        "{what}: {} faults, {} urgent",
        stats.faults, stats.urgent_pages
    );
    stats.urgent_pages
}

#[test]
fn guests_of_one_two_and_four_vcpus_find_all_of_their_memory_in_whatever_order_they_touch_it() {
    use Order::{Hot, Random, Upwards};
    let Ok(kvm) = Kvm::new() else {
        eprintln!("skipped: no KVM here");
        return;
    };
    let cases: [&[Order]; 6] = [
        &[Random],
        &[Upwards],
        &[Hot],
        &[Random, Upwards],
        &[Random, Random, Upwards, Hot],
        &[Hot, Hot, Random, Upwards],
    ];
    for (orders, channels) in cases.into_iter().zip([1, 2].into_iter().cycle()) {
        let urgent = moved(&kvm, orders, channels);
        // One hot page may come before anybody needs it.
        assert!(urgent > 0 || orders == [Hot], "{orders:?}: nobody waited");
    }
}
