//! A policy that slows writers, in migrations of a guest of the real KVM with dirty rings: what would
//! never converge arrives, and whatever the end, no vCPU stays limited.

use super::machine::{machine, BYTES};
use super::until;
use crate::support::link::Link;
use crate::support::time::{LONG, MS};
use brant::dirty::consumer::Consumer;
use brant::error::Kind;
use brant::memory::Memory;
use brant::migrate::steering::policies::{Policy, Slowing};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use brant::vmm::Vmm;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

/// Memory to which the guest moves, where it does not run.
struct Shelf;
impl Vmm for Shelf {
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
}

/// Over a link of 20 MB/s. The writer writes several times as much.
fn params() -> Params {
    Params {
        downtime_limit: MS * 1000,
        policy: Policy {
            slowing: Slowing::DirtyLimit,
            // If each look emptied the ring of 4 MiB of pages, twice as much as the link carries would
            // get through.
            sync: MS * 100,
            ..Policy::default()
        },
        ..Params::default()
    }
}

fn begin(
    machine: &Arc<super::Machine>,
    consumer: &Consumer,
    ram: &GuestMemoryMmap,
    params: Params,
) -> (Outgoing, Incoming, Link) {
    let memory = Arc::new(Memory::new().unwrap());
    memory.add_guest_memory(ram, 0).unwrap();
    let link = Link::of(20_000_000, MS, 256 << 10);
    let (near, far) = link.connect();
    let incoming = Incoming::new(memory, Arc::new(Shelf), Params::default()).unwrap();
    let tracker = Arc::clone(consumer.tracker());
    let outgoing = Outgoing::new(tracker, Blockers::new(), machine.clone(), params).unwrap();
    incoming.start(AcceptFrom::Connected(far)).unwrap();
    outgoing.start(ConnectTo::Connected(near)).unwrap();
    (outgoing, incoming, link)
}

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).unwrap()
}

#[test]
fn a_guest_that_writes_faster_than_the_link_arrives_when_its_writer_is_slowed() {
    let Some((machine, consumer)) = machine() else {
        return;
    };
    machine.fill();
    machine.start();
    let there = ram();
    let (outgoing, incoming, _link) = begin(&machine, &consumer, &there, params());
    let ended = outgoing.wait(Some(LONG));
    assert!(
        ended.is_ok(),
        "{ended:?}: {:?}, {:?}",
        outgoing.stats(),
        machine.rings().figures()
    );
    incoming.wait(Some(LONG)).unwrap();
    let stats = outgoing.stats();
    assert!(machine.throttled.load(Ordering::SeqCst) >= 2, "{stats:?}");
    assert!(machine.rings().figures().limit_waits > 0, "{stats:?}");
    assert_eq!(stats.limited_vcpus, 0);
    assert!(!consumer.has_vcpu_limits());
    let (mut ours, mut theirs) = (vec![0; BYTES], vec![0; BYTES]);
    machine
        .memory()
        .read_slice(&mut ours, GuestAddress(0))
        .unwrap();
    there.read_slice(&mut theirs, GuestAddress(0)).unwrap();
    assert!(ours == theirs, "another guest arrived");
}

#[test]
fn no_vcpu_stays_limited_after_a_cancel_or_a_lost_peer() {
    let Some((machine, consumer)) = machine() else {
        return;
    };
    machine.fill();
    machine.start();
    for lost in [false, true] {
        let there = ram();
        let (outgoing, incoming, link) = begin(&machine, &consumer, &there, params());
        let begun = Instant::now();
        until(begun, "the first limit", || consumer.has_vcpu_limits());
        match lost {
            false => outgoing.cancel().unwrap(),
            true => link.cut(),
        }
        outgoing.wait(Some(LONG)).unwrap_err();
        incoming.wait(Some(LONG)).unwrap_err();
        // Tracking goes on for the other consumer, and nobody is limited.
        assert!(!consumer.has_vcpu_limits() && consumer.is_started());
        assert_eq!(outgoing.stats().limited_vcpus, 0);
    }
    machine.pause().unwrap();
}

/// 150 ms at 20 MB/s are 3 MB, and a ring is 4 MiB of pages. (On a busy machine a sync alone may take 50
/// ms.)
#[test]
fn a_ring_that_no_downtime_limit_fits_is_named_when_the_limit_takes_effect_and_at_the_end() {
    let Some((machine, consumer)) = machine() else {
        return;
    };
    machine.fill();
    machine.start();
    let there = ram();
    let mut params = params();
    params.downtime_limit = MS * 150;
    params.policy.deadline = Some(MS * 4000);
    let (outgoing, incoming, _link) = begin(&machine, &consumer, &there, params);
    let begun = Instant::now();
    let named = "the dirty ring of 1 limited vCPU has 1024 entries";
    until(begun, "the warning", || machine.warnings(named) == 1);
    let error = outgoing.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    for part in [named, "no ring is small enough; a downtime limit of "] {
        assert!(error.message().contains(part), "{error}");
    }
    incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(machine.warnings(named), 1, "told more than once");
    machine.pause().unwrap();
}
