//! Syncs in the middle of a long pass, on guests of the real KVM; and figures and forecasts that stay
//! fresh.

mod fresh;
mod machine;
mod still;

use crate::support::sides::socketpair;
use crate::support::time::{LONG, MS};
use brant::dirty::kvm::KvmMode;
use brant::migrate::steering::policies::Slowing;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params, Stats};
use brant::vm_memory::{Bytes, GuestAddress};
use machine::{Machine, PAGES};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MODES: [KvmMode; 4] = [
    KvmMode::GetAndClear,
    KvmMode::ManualProtect,
    KvmMode::InitiallySet,
    KvmMode::Ring,
];
const SYNC: Duration = Duration::from_millis(100);

/// What was seen in the first pass of a migration, and what became of it.
struct Seen {
    /// The dirty rates in the first pass, in pages a second.
    rates: Vec<u64>,
    /// Of these, the ones that were there before the eighth sync: that at the pass's end comes later.
    early: Vec<u64>,
    /// Syncs in the first pass, before the one at its end.
    syncs: u64,
    /// Pages that the guest wrote, a second.
    wrote: f64,
    stats: Stats,
    /// Passes that events told of.
    passes: u64,
}

/// Migrates a guest of 16 MiB over a link that takes at least 2 s for it. `None` where the KVM does
/// not have the mode.
fn migrate(mode: KvmMode, writes: bool, slowing: Slowing) -> Option<Seen> {
    let (here, there) = (Machine::new(mode, writes)?, Machine::new(mode, false)?);
    let mut params = Params {
        max_bandwidth: Some(8 << 20),
        ..Params::default()
    };
    params.policy.slowing = slowing;
    params.policy.sync = SYNC;
    let (near, far) = socketpair();
    let incoming = Incoming::new(there.memory(), there.clone(), Params::default()).unwrap();
    let tracker = here.tracker(mode);
    let outgoing = Outgoing::new(tracker, Blockers::new(), here.clone(), params).unwrap();
    here.start();
    incoming.start(AcceptFrom::Connected(far)).unwrap();
    outgoing.start(ConnectTo::Connected(near)).unwrap();
    let (begun, mut rates, mut early, mut syncs) = (Instant::now(), Vec::new(), Vec::new(), 0);
    loop {
        assert!(begun.elapsed() < LONG, "{mode:?}: no end");
        let stats = outgoing.stats();
        // Before the sync at the pass's end.
        if stats.pass == 1 && stats.remaining_bytes > 0 {
            syncs = syncs.max(stats.syncs);
            rates.extend(stats.dirty_pages_per_second);
            if stats.syncs < 8 {
                early.extend(stats.dirty_pages_per_second);
            }
        }
        if stats.pass > 1 || outgoing.wait(Some(MS * 20)).is_ok() {
            break;
        }
    }
    let wrote = here.written.load(Ordering::SeqCst) as f64 / begun.elapsed().as_secs_f64();
    outgoing.wait(Some(LONG)).unwrap();
    incoming.wait(Some(LONG)).unwrap();
    for page in 0..PAGES {
        let at = GuestAddress(page * 4096);
        let (mut sent, mut arrived) = ([0; 4096], [1; 4096]);
        here.ram.read_slice(&mut sent, at).unwrap();
        there.ram.read_slice(&mut arrived, at).unwrap();
        assert!(sent == arrived, "{mode:?}: page {page} differs");
    }
    let stats = outgoing.stats();
    println!(
        "{mode:?}: {} syncs of {:?}, rates {rates:?}, wrote {wrote:.0} pages a second",
        stats.syncs, stats.sync
    );
    Some(Seen {
        rates,
        early,
        syncs,
        wrote,
        stats,
        passes: here.passes(),
    })
}

#[test]
fn an_idle_guest_in_the_middle_of_its_first_pass_has_rate_0_in_each_mode_of_kvm() {
    for mode in MODES {
        let Some(seen) = migrate(mode, false, Slowing::AutoConverge) else {
            continue;
        };
        assert!(seen.syncs >= 3, "{mode:?}: {} syncs", seen.syncs);
        assert!(!seen.rates.is_empty(), "{mode:?}: no rate");
        assert!(seen.rates.iter().all(|rate| *rate == 0), "{mode:?}");
        // The pass keeps its number, and no event tells of a sync.
        assert_eq!(seen.passes, u64::from(seen.stats.pass), "{mode:?}");
        assert_eq!(seen.stats.pass, 1, "{mode:?}");
    }
}

#[test]
fn the_first_pass_shows_how_much_a_guest_writes_and_every_page_arrives() {
    for mode in MODES {
        let Some(seen) = migrate(mode, true, Slowing::AutoConverge) else {
            continue;
        };
        assert!(seen.syncs >= 9, "{mode:?}: {} syncs", seen.syncs);
        let mut rates = seen.early.clone();
        rates.sort_unstable();
        let median = *rates.get(rates.len() / 2).expect("a rate") as f64;
        // The guest's thread and the syncs share a busy machine.
        assert!(
            median > seen.wrote / 3.0 && median < seen.wrote * 3.0,
            "{mode:?}: {median}, wrote {}",
            seen.wrote
        );
        assert_eq!(seen.passes, u64::from(seen.stats.pass), "{mode:?}");
    }
}

#[test]
fn without_a_policy_that_slows_the_guest_no_pass_is_synced_in_its_middle() {
    let Some(seen) = migrate(KvmMode::GetAndClear, false, Slowing::Off) else {
        return;
    };
    assert_eq!(seen.syncs, 0);
    assert_eq!(seen.rates, Vec::<u64>::new(), "nobody knows a rate");
}
