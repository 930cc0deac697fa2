//! Marks by address and by bitmap, compared with the same marks page by page.

use super::*;
use crate::dirty::consumer::Consumer;
use crate::dirty::testing::{sync_all, Guest};
use crate::dirty::tracker::StartWith;
use crate::memory::map::GUEST_ADDRESS_BITS;
use crate::runtime::grace;
use proptest::prelude::*;
use std::time::Instant;

fn started(guest: &Guest) -> Consumer {
    let log = ReportedLog::new(Arc::new(Reported::new(Arc::clone(&guest.memory))));
    let consumer = guest.tracker(Box::new(log));
    consumer.start(StartWith::Nothing).unwrap();
    consumer
}

#[test]
fn a_mark_of_every_address_there_is_costs_what_is_mapped() {
    let guest = Guest::new(40);
    guest.block("low", 10);
    guest.block("high", 10);
    guest.slot("low", 0, 10, 16).unwrap();
    guest
        .slot("high", 0, 10, (1 << (GUEST_ADDRESS_BITS - 12)) - 10)
        .unwrap();
    let consumer = started(&guest);
    let begun = Instant::now();
    for _ in 0..100 {
        consumer.mark_guest(GuestAddress(0), u64::MAX);
        consumer.mark_guest(GuestAddress(5), u64::MAX - 5);
    }
    // This takes microseconds. A walk over all addresses would take minutes.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(sync_all(&consumer).len(), 20);
    assert_eq!(consumer.stray_marks(), 200);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_bitmap_marks_what_its_bits_mark_one_by_one(
        slots in prop::collection::vec((0..300u64, 1..90u64, 0..900u64), 1..6),
        from in 0..800u64,
        words in prop::collection::vec(
            prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>(), Just(1 << 63)], 0..6),
        pages in prop_oneof![Just(u64::MAX), 0..400u64],
        low in 0..4096u64,
    ) {
        let guest = Guest::new(800);
        guest.block("a", 390);
        guest.block("b", 390);
        for (i, (first, count, at)) in slots.into_iter().enumerate() {
            // A slot that overlaps another one is refused.
            let _ = guest.slot(["a", "b"][i % 2], first, count, at);
        }
        let (by_words, by_bits) = (started(&guest), started(&guest));
        by_words.mark_words(GuestAddress(from * PAGE_SIZE + low), &words, pages);
        for i in 0..pages.min(words.len() as u64 * 64) {
            if words[i as usize / 64] >> (i % 64) & 1 != 0 {
                by_bits.mark_guest(GuestAddress((from + i) * PAGE_SIZE), 1);
            }
        }
        prop_assert_eq!(sync_all(&by_words), sync_all(&by_bits));
        prop_assert_eq!(by_words.stray_marks(), by_bits.stray_marks());
    }
}

#[test]
fn a_bitmap_at_the_end_of_all_addresses_is_stray_and_harms_nothing() {
    let guest = Guest::new(10);
    guest.block("ram", 10);
    guest.slot("ram", 0, 10, 0).unwrap();
    let consumer = started(&guest);
    let words = [u64::MAX; 1024];
    consumer.mark_words(GuestAddress(u64::MAX - 4095), &words, u64::MAX);
    assert_eq!(sync_all(&consumer).len(), 0);
    assert_eq!(consumer.stray_marks(), 65536);
    // No bit is set, so no page is marked and none is stray.
    consumer.mark_words(GuestAddress(0), &[0; 100], 6400);
    assert_eq!(consumer.stray_marks(), 65536);
}

#[test]
fn a_thread_held_up_in_a_mark_is_told_of_once_and_in_the_same_words_each_time() {
    let guest = Guest::new(30);
    for name in ["a", "b", "c"] {
        guest.block(name, 10);
    }
    let reported = Arc::new(Reported::new(Arc::clone(&guest.memory)));
    let log = ReportedLog {
        grace: Duration::from_millis(3),
        ..ReportedLog::new(Arc::clone(&reported))
    };
    let consumer = guest.tracker(Box::new(log));
    consumer.start(StartWith::Nothing).unwrap();
    let mark_all = || {
        for block in guest.memory.map().blocks() {
            reported.mark_block(block.id(), Bytes(0), 1);
        }
    };
    let (inside, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let warnings = std::thread::scope(|s| {
        s.spawn(|| {
            let _pinned = grace::pin();
            inside.wait();
            go.wait();
        });
        inside.wait();
        let warnings: Vec<Vec<String>> = (0..3)
            .map(|_| {
                mark_all();
                consumer.sync(When::Running).unwrap().warnings
            })
            .collect();
        go.wait();
        warnings
    });
    // One sentence for all blocks, without a time that would differ from sync to sync.
    assert_eq!(warnings[0].len(), 1, "{warnings:?}");
    assert!(warnings[0][0].contains("for 3ms"), "{warnings:?}");
    assert!(warnings.iter().all(|w| *w == warnings[0]), "{warnings:?}");
    assert_eq!(sync_all(&consumer).len(), 3);
}

/// A thread that stands inside a mark until it is told to go on.
fn standing_inside<R>(then: impl FnOnce() -> R) -> R {
    let (inside, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _pinned = grace::pin();
            inside.wait();
            go.wait();
        });
        inside.wait();
        let done = then();
        go.wait();
        done
    })
}

#[test]
fn a_cancel_ends_the_wait_of_a_sync_for_a_thread_inside_a_mark_and_loses_no_mark() {
    let guest = Guest::new(10);
    let block = guest.block("ram", 10);
    let consumer = guest.tracker(Box::new(ReportedLog::new(Arc::new(Reported::new(
        Arc::clone(&guest.memory),
    )))));
    consumer.start(StartWith::Nothing).unwrap();
    consumer.mark_block(block, Bytes(0), 1);
    let cancel = Cancel::new().unwrap();
    let begun = Instant::now();
    let error = standing_inside(|| {
        cancel.cancel();
        consumer.sync_unless(When::Stopped, &cancel).unwrap_err()
    });
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    // The wait ended early, before the time limit of a last sync.
    assert!(begun.elapsed() < GRACE_LAST, "{:?}", begun.elapsed());
    assert_eq!(sync_all(&consumer), [(block.0, 0)].into());
}

#[test]
fn tracking_starts_stops_and_follows_the_map_while_a_thread_stands_inside_a_mark() {
    let guest = Guest::new(20);
    let block = guest.block("ram", 10);
    let consumer = started(&guest);
    standing_inside(|| {
        consumer.stop().unwrap();
        consumer.start(StartWith::Nothing).unwrap();
        consumer.mark_block(block, Bytes(0), 1);
    });
    assert_eq!(sync_all(&consumer), [(block.0, 0)].into());
}
