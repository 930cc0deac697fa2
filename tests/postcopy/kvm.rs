//! A real guest of KVM that runs on at the destination while its pages come.
//!
//! Its vCPU goes round a range of pages and adds one to a word in each, so at any moment the words fall at
//! most once, by one, from the first page to the last. A page with an old version shows as a rise.

use super::whole::CopiesOn;
use crate::support::busy::{pair, Shape};
use crate::support::sides::{quick, socketpair};
use crate::support::time::{LONG, MS};
use brant::kvm_ioctls::Kvm;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, DestinationState, Incoming, Outgoing, Params, SourceState,
};
use brant::vmm::Vmm;
use std::sync::Arc;
use std::time::Instant;

const PAGE: usize = 4096;
/// The first page that the vCPU writes.
const FROM: usize = 256;
const REGION: usize = 4000;

#[test]
fn a_guest_of_kvm_writes_on_while_its_pages_come_and_none_of_its_writes_is_lost() {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("skipped: no KVM here");
        return;
    };
    let shape = Shape {
        pages: (FROM + REGION + 700) as u64,
        region: REGION as u64,
        writes: None,
        reads: None,
        rings: false,
        state: 100,
    };
    let (machines, tracker) = pair(&kvm, shape);
    let params = Params {
        postcopy: true,
        max_bandwidth: Some(20 << 20),
        switchover_max_bandwidth: Some(20 << 20),
        ..quick()
    };
    let (near, far): (Vec<_>, Vec<_>) = (0..2).map(|_| socketpair()).unzip();
    let [here, there] = &machines;
    let incoming = Incoming::new(there.memory(), Arc::clone(there) as _, params.clone()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), Arc::clone(here) as _, params).unwrap();
    incoming.start(AcceptFrom::ConnectedAll(far)).unwrap();
    outgoing
        .start_with(ConnectTo::ConnectedAll(near), Box::new(CopiesOn))
        .unwrap();
    let begun = Instant::now();
    // Somewhere in the first pass.
    while outgoing.stats().data_pages < 500 {
        assert!(begun.elapsed() < LONG);
        let _ = outgoing.wait(Some(MS));
    }
    outgoing.start_postcopy().unwrap();
    while incoming.state() != DestinationState::Completing {
        assert!(!outgoing.state().is_over(), "{:?}", outgoing.stats());
        let told = here.told();
        assert!(
            !told.iter().any(|text| text.contains("would let")),
            "{told:?}"
        );
        let _ = outgoing.wait(Some(MS));
    }
    // `run` of this machine starts no vCPU.
    there.resume().unwrap();
    let ended = outgoing.wait(Some(LONG));
    assert!(
        ended.is_ok(),
        "{ended:?}, {:?}; here {:?}, there {:?}",
        outgoing.stats(),
        here.told(),
        there.told()
    );
    incoming.wait(Some(LONG)).unwrap();
    assert_eq!(outgoing.state(), SourceState::Completed);
    let stats = outgoing.stats();
    // A page that was asked for may have been in a batch of the bulk already, and count there.
    assert!(stats.requested_pages > 0, "{stats:?}");
    // It goes round once more, on memory that is whole.
    let wrote = there.work(0);
    while there.work(0) < wrote + 2 * REGION as u64 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    there.halt();
    let memory = there.bytes();
    let word = |page: usize| {
        let at = page * PAGE;
        u32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
    };
    let words: Vec<u32> = (FROM..FROM + REGION).map(word).collect();
    assert!(
        words.is_sorted_by(|a, b| a >= b),
        "a page has an old version"
    );
    assert!(
        words[0] - words[REGION - 1] <= 1,
        "{} to {}",
        words[0],
        words[REGION - 1]
    );
    // What the vCPU does not write is as it was at the source.
    assert!(here.bytes()[(FROM + REGION) * PAGE..] == memory[(FROM + REGION) * PAGE..]);
}
