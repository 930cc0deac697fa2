//! The two guests and their VMMs, and a migration that has every type of record: deltas and
//! compression are on.

use super::killing::die;
use crate::support::deciders::Scripted;
use crate::support::guest::Guest;
use crate::support::memory::{ram, rom, shared, Ram, Spec};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::time::MS;
use crate::support::vmm::{blob, TestVmm};
use brant::dirty::tracker::StartWith;
use brant::memory::map::{SlotDescription, NO_SLOT};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{Blockers, Compression, Decider, Incoming, Outgoing, Params};
use brant::units::{Bytes, PAGE_SIZE};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::GuestAddress;

/// Every time limit of a migration whose link falls silent, since any of them may run out.
pub const SHORT: Duration = Duration::from_millis(250);

/// 16 MiB, most of which is never touched.
pub fn specs() -> Vec<Spec> {
    vec![
        ram("ram", 2560),
        shared("shm", 1024),
        rom("rom", 8),
        ram("goes", 504),
    ]
}

/// The block that is added during the migration.
fn late(seed: u64) -> Ram {
    let ram = Ram::new(&shared("comes", 64));
    let mut random = Random(seed);
    (0..64)
        .step_by(9)
        .for_each(|page| ram.fill(page, &mut random));
    ram
}

pub fn guests() -> (Arc<Guest>, Arc<Guest>) {
    let (source, destination) = (Guest::new(&specs()), Guest::new(&specs()));
    let mut random = Random(7);
    for (_, ram) in source.rams() {
        for stretch in (0..ram.spec.pages).step_by(512) {
            // Data at the beginning and the end of a stretch, and zeros that were written.
            for page in [3, 4, 20, 511] {
                if stretch + page < ram.spec.pages {
                    ram.fill(stretch + page, &mut random);
                }
            }
            for page in [5, 6] {
                ram.word((stretch + page) * 4096)
                    .store(0, Ordering::Relaxed);
            }
        }
    }
    // Single pages that lie apart, enough for a list of them, in a stretch of their own: next to
    // pages that compress they would go with these.
    for page in (1600..1640).step_by(2) {
        source.ram("ram").fill(page, &mut random);
    }
    // Pages that compress, neighbours and apart.
    for page in (300..312).chain((330..350).step_by(3)) {
        for word in 0..512 {
            let at = page * 4096 + word * 8;
            let value = (page + word % 5) as u64;
            source.ram("shm").word(at).store(value, Ordering::Relaxed);
        }
    }
    // Some of the destination's memory has old contents.
    for (_, ram) in destination.rams() {
        for page in (0..ram.spec.pages).step_by(61) {
            ram.fill(page, &mut random);
        }
    }
    // Ballooned pages, never touched before.
    let slot = SlotDescription {
        slot: NO_SLOT,
        flags: 0,
        block: source.memory.find_block("ram").unwrap(),
        offset: Bytes(0),
        length: Bytes(2560 * PAGE_SIZE),
        guest_address: GuestAddress(0),
    };
    source.memory.add_slot(&slot).unwrap();
    source.memory.set_must_tell_host(true);
    source
        .memory
        .mark_ballooned(GuestAddress(40 * PAGE_SIZE), 4 * PAGE_SIZE);
    // A consumer was started before and has taken no page yet: in the end it must have all of them.
    source.track_with(StartWith::Everything);
    (source, destination)
}

/// Three passes; between them pages change, a block comes, a block goes.
pub fn script(source: &Arc<Guest>) -> Box<dyn Decider> {
    let source = Arc::downgrade(source);
    Box::new(Scripted(move |facts: &Facts| {
        if facts.moment != Moment::Synced {
            return Next::GoOn;
        }
        let source = source.upgrade().unwrap();
        match facts.pass {
            1 => drop(source.add(late(1))),
            2 => source.remove("goes"),
            _ => return Next::SwitchOver { expected: MS },
        }
        for page in [3, 100, 511, 512, 1300] {
            let value = 3 + u64::from(facts.pass);
            source.poke("ram", page * 4096 + 8, value);
            source.poke("shm", (page % 1024) * 4096 + 8, value);
        }
        Next::GoOn
    }))
}

pub fn equip_source(vmm: &TestVmm) {
    *vmm.early.lock().unwrap() = vec![blob("cfg", 0, b"x"), blob("cfg", 1, &[7; 300])];
    *vmm.state.lock().unwrap() = vec![blob("cpu", 0, &[1; 700]), blob("net", 3, &[])];
}

/// `place` is where the process kills itself, if it does.
pub fn equip_destination(vmm: &TestVmm, place: Option<&str>) {
    let guest = Arc::downgrade(&vmm.guest);
    let dies = place == Some("receiving");
    vmm.at("receiving", move || {
        guest.upgrade().unwrap().add(late(2));
        if dies {
            die()?;
        }
        Ok(())
    });
}

pub fn limits(limit: Duration) -> Params {
    Params {
        connect_timeout: limit,
        io_timeout: limit,
        switchover_timeout: limit,
        // The wait for a missing answer takes this long and one second more.
        handover_timeout: MS * 1500,
        switchover_bandwidth: Some(1 << 30),
        delta_cache_bytes: Some(1 << 20),
        compression: Compression::Always,
        ..Params::default()
    }
}

pub fn outgoing(pair: &Pair, params: Params) -> Arc<Outgoing> {
    let vmm = Arc::clone(&pair.from);
    pair.source.outgoing(&Blockers::new(), vmm, &params)
}

pub fn incoming(pair: &Pair, params: Params) -> Incoming {
    let memory = Arc::clone(&pair.destination.memory);
    Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap()
}
