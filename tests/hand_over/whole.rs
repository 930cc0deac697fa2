//! Memory that is handed over is the same memory, and everything else arrives as ever.

use super::{pair, params};
use crate::support::memory::{ram, rom, shared, PAGE};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, start};
use crate::support::time::{LONG, MS};
use brant::dirty::tracker::StartWith;
use brant::memory::{SlotDescription, Whose, NO_SLOT};
use brant::migrate::{HandOver, Incoming, Outgoing, Params, Stats};
use brant::units::{Bytes, PAGE_SIZE};
use brant::vm_memory::GuestAddress;
use brant::vmm::EventKind;
use std::sync::atomic::Ordering;
use std::sync::Arc;

fn completes(pair: &Pair, params: &Params) -> (Stats, Stats) {
    let (out, inc) = start(pair, params);
    ended(pair, &out, &inc)
}

fn ended(pair: &Pair, out: &Arc<Outgoing>, inc: &Arc<Incoming>) -> (Stats, Stats) {
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a hand-over");
    assert_eq!(pair.world.who(), (false, true));
    (out.stats(), inc.stats())
}

#[test]
fn memory_of_a_memfd_is_handed_over_and_the_rest_is_copied_live() {
    for hand_over in [HandOver::Off, HandOver::WherePossible] {
        let there = match hand_over {
            HandOver::Off => vec![shared("high", 800), ram("low", 300)],
            _ => vec![ram("low", 300)],
        };
        let pair = pair(&[shared("high", 800), ram("low", 300)], &there);
        pair.source.fill(1);
        pair.source.writers(2, MS);
        let (there, here) = completes(&pair, &params(hand_over));
        let handed = (800 * PAGE) as u64;
        let (calls, bytes) = match hand_over {
            HandOver::Off => (0, 0),
            _ => (1, handed),
        };
        assert_eq!(pair.to.calls("map_block"), calls);
        assert_eq!((there.shared_bytes, here.shared_bytes), (bytes, bytes));
        assert_eq!(there.total_bytes, handed + (300 * PAGE) as u64);
        assert_eq!((there.progress, here.progress), (10_000, 10_000));
        // `compare` in `load` and `run` has compared all of it by now.
        if hand_over == HandOver::WherePossible {
            let all = pair.destination.rams();
            let found = all.iter().find(|(_, r)| r.spec.name == "high");
            let (_, theirs) = found.expect("the block is in the guest's map");
            theirs.word(4096).store(77, Ordering::Relaxed);
            assert_eq!(
                pair.source.ram("high").word(4096).load(Ordering::Relaxed),
                77
            );
            assert!(here.data_pages + here.zero_pages < 800, "{here:?}");
            let block = pair.destination.memory.map();
            let block = block.block_named("high").unwrap();
            assert!(block.file().is_some(), "it can be handed over again");
        }
    }
}

#[test]
fn a_guest_all_of_whose_memory_is_handed_over_sends_no_page() {
    for channels in [1, 3] {
        let pair = pair(&[shared("a", 700), shared("b", 3)], &[]);
        pair.source.fill(2);
        pair.source.writers(1, MS);
        let params = Params {
            channels,
            ..params(HandOver::Only)
        };
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        let (near, far): (Vec<_>, Vec<_>) = (0..channels)
            .map(|_| crate::support::sides::socketpair())
            .unzip();
        inc.start(brant::migrate::AcceptFrom::ConnectedAll(far))
            .unwrap();
        out.start(brant::migrate::ConnectTo::ConnectedAll(near))
            .unwrap();
        let (there, here) = ended(&pair, &out, &inc);
        let pages = |s: &Stats| (s.data_pages, s.zero_pages, s.remaining_bytes);
        assert_eq!(pages(&there), (0, 0, 0));
        assert_eq!(pages(&here), (0, 0, 0));
        assert_eq!(here.shared_bytes, here.total_bytes);
        assert_eq!(pair.to.calls("map_block"), 2);
        // The guest can leave the new process in the same way.
        assert_eq!(pair.destination.memory.ownership().whose(), Whose::Here);
        assert_eq!(pair.source.memory.ownership().whose(), Whose::HandedOver);
    }
}

#[test]
fn a_destination_without_map_block_gets_copies() {
    let both = [shared("high", 200), ram("low", 100)];
    let pair = pair(&both, &both);
    pair.to.can_map_blocks.store(false, Ordering::SeqCst);
    pair.source.fill(3);
    let (there, here) = completes(&pair, &params(HandOver::WherePossible));
    assert_eq!((there.shared_bytes, here.shared_bytes), (0, 0));
    assert_eq!(pair.to.calls("map_block"), 0);
}

#[test]
fn read_only_blocks_and_blocks_of_holes_are_handed_over_too() {
    let pair = pair(
        &[
            rom("flash", 16),
            crate::support::memory::Spec {
                rom: true,
                ..shared("bios", 16)
            },
            shared("sparse", 16 << 10),
        ],
        &[rom("flash", 16)],
    );
    pair.source
        .ram("sparse")
        .word(8 * PAGE)
        .store(5, Ordering::Relaxed);
    let bios = pair.source.memory.find_block("bios").unwrap();
    let (there, _) = completes(&pair, &params(HandOver::WherePossible));
    assert_eq!(there.shared_bytes, (64 << 20) + 16 * PAGE_SIZE);
    let map = pair.destination.memory.map();
    assert!(map.block_named("bios").unwrap().flags().rom, "{bios}");
}

#[test]
fn a_block_that_the_destination_has_described_before_is_mapped_over_and_keeps_its_slots() {
    let both = [shared("high", 100), ram("low", 100)];
    let pair = pair(&both, &[ram("high", 100), ram("low", 100)]);
    let memory = &pair.destination.memory;
    let before = memory.find_block("high").unwrap();
    let slot = SlotDescription {
        offset: Bytes(10 * PAGE_SIZE),
        ..SlotDescription::new(before, GuestAddress(1 << 20), Bytes(50 * PAGE_SIZE))
    };
    memory.add_slot(&slot).unwrap();
    pair.source.fill(4);
    let host = memory.map().block(before).unwrap().host();
    let (there, _) = completes(&pair, &params(HandOver::WherePossible));
    assert_eq!(there.shared_bytes, 100 * PAGE_SIZE);
    let map = memory.map();
    let now = map.block_named("high").unwrap();
    assert_ne!(now.id(), before);
    assert_eq!(now.host(), host);
    let slots: Vec<_> = map.slots_of(now.id(), 0..100).collect();
    assert_eq!(slots.len(), 1);
    let found = (
        slots[0].slot,
        slots[0].guest_address,
        slots[0].first.0,
        slots[0].pages.0,
    );
    assert_eq!(found, (NO_SLOT, GuestAddress(1 << 20), 10, 50));
}

#[test]
fn memory_is_untouched_by_a_hand_over_that_fails_before_its_end() {
    // The operation of either side that fails.
    let places = [
        ("to", "map_block"),
        ("to", "load"),
        ("to", "loaded"),
        ("from", "release"),
    ];
    for (side, place) in places {
        let pair = pair(&[shared("high", 300), ram("low", 100)], &[ram("low", 100)]);
        pair.source.fill(5);
        let high = pair.source.ram("high");
        let sums = |ram: &crate::support::memory::Ram| -> Vec<u32> {
            (0..300)
                .map(|page| crc32fast::hash(ram.page(page)))
                .collect()
        };
        let before = sums(&high);
        let vmm = if side == "to" { &pair.to } else { &pair.from };
        vmm.at(place, || {
            Err(brant::error::Error::new(
                brant::error::Kind::Vmm,
                "told to fail",
            ))
        });
        // A save writes to memory of the source's own.
        let (out, inc) = start(&pair, &params(HandOver::WherePossible));
        let error = out.wait(Some(LONG)).unwrap_err();
        assert!(error.message().contains("told to fail"), "{place}: {error}");
        inc.wait(Some(LONG)).unwrap_err();
        pair.assert_runs_on(place);
        pair.source.pause();
        // `save` of the test's VMM counts in the first page.
        assert_eq!(sums(&high)[1..], before[1..], "{place}");
        assert_eq!(pair.source.memory.ownership().whose(), Whose::Here);
    }
}

#[test]
fn after_a_failure_a_consumer_of_the_callers_has_every_shared_page_again() {
    let pair = pair(&[shared("high", 300), ram("low", 100)], &[ram("low", 100)]);
    pair.source.fill(6);
    pair.source.track_with(StartWith::Everything);
    pair.to.at("load", || {
        Err(brant::error::Error::new(
            brant::error::Kind::Vmm,
            "told to fail",
        ))
    });
    let (out, inc) = start(&pair, &params(HandOver::WherePossible));
    out.wait(Some(LONG)).unwrap_err();
    inc.wait(Some(LONG)).unwrap_err();
    pair.source.pause();
    let pending = pair.source.pending();
    let high = pending.iter().filter(|(name, _)| name == "high").count();
    assert_eq!(high, 300);
}

#[test]
fn a_verified_hand_over_finds_what_load_writes_into_shared_memory() {
    for writes in [false, true] {
        let pair = pair(&[shared("high", 3000), ram("low", 100)], &[ram("low", 100)]);
        pair.source.fill(7);
        pair.source.writers(1, MS);
        if writes {
            let guest = Arc::clone(&pair.destination);
            pair.to.at("load", move || {
                let high = guest.ram("high");
                for page in [2049, 2900] {
                    high.word(page * PAGE + 8).fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        let params = Params {
            verify: true,
            ..params(HandOver::WherePossible)
        };
        let (there, _) = completes(&pair, &params);
        let told = pair.from.events(EventKind::Mismatch);
        if writes {
            assert_eq!(there.mismatched_pages, 2);
            assert_eq!(told.len(), 1, "{told:?}");
            for part in [
                "block `high`: 2 pages",
                "the first is page 2049",
                "before `run`",
            ] {
                assert!(told[0].contains(part), "{part}: {told:?}");
            }
        } else {
            assert!(told.is_empty(), "{told:?}");
            assert_eq!((there.mismatched_pages, there.unverified_pages), (0, 0));
        }
        // Of what was copied, every page is compared as ever, and no page of what was not.
        assert_eq!(there.verified_pages, 100);
        // The last event counts the two apart.
        let last = pair.from.events(EventKind::Completed);
        let written = if writes { 2 } else { 0 };
        let said = format!(
            "100 pages verified, 0 of them differ, {written} pages of handed-over memory were \
             written before `run`"
        );
        assert!(last[0].contains(&said), "{last:?}");
    }
}
