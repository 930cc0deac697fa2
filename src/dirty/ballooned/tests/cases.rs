//! Named cases of the model, one course each: pages that are inflated, deflated or hinted.

use super::*;

#[test]
fn a_page_that_a_guest_wrote_although_it_gave_it_back_counts_as_taken_back() {
    for mode in MODES {
        let mut world = quiet(mode, SMALLEST, 256, &[(10, 100)]);
        world.drain();
        world.sync(When::Running).unwrap();
        world.drain();
        assert_eq!(world.consumer.stats().ballooned, Pages(100), "told once");
        // The guest breaks its promise.
        world.kvm.guest_write(SLOT, 50);
        world.balloon.lock().unwrap().remove(&50);
        world.finish().unwrap();
        assert_eq!(world.copy[&50], Has::Version(world.version(50)));
        let inner = world.consumer.lock();
        assert_eq!(inner.stats.ballooned_written, Pages(1));
    }
}

#[test]
fn a_log_that_failed_is_no_evidence_that_a_ballooned_page_was_written() {
    for mode in MODES {
        let mut world = quiet(mode, SMALLEST, 256, &[(10, 100)]);
        world.drain();
        world.sync(When::Running).unwrap();
        world.drain();
        world.kvm.fail(1, 0);
        world.sync(When::Running).unwrap();
        assert!(
            world.consumer.pending() >= Pages(156),
            "all counts as dirty"
        );
        world.finish().unwrap();
        assert_eq!(
            world.consumer.stats().ballooned_written,
            Pages(0),
            "{mode:?}"
        );
        assert!((10..110).all(|page| world.copy[&page] == Has::Ballooned));
    }
}

#[test]
fn one_walk_sends_all_of_a_host_page_that_was_written_although_it_was_ballooned() {
    let mut world = World::new(
        &Setup {
            mode: KvmMode::Auto,
            clearing: SMALLEST,
            pages: 256,
            unit: 5,
            balloon: vec![(32, 64)],
        },
        Mistake::None,
    );
    world.drain();
    world.sync(When::Running).unwrap();
    world.drain();
    world.kvm.guest_write(SLOT, 50);
    world.balloon.lock().unwrap().remove(&50);
    world.sync(When::Stopped).unwrap();
    // The walk has passed an earlier page of that host page when it finds the write.
    world.consumer.put_back(world.block, Pages(35), Pages(1));
    // As a source does while the guest stands still.
    while world.walk(3, 7) {
        world.read_all();
    }
    assert_eq!(world.consumer.pending(), Pages(0));
    for page in 32..64 {
        assert_eq!(world.copy[&page], Has::Version(world.version(page)));
    }
    assert!((64..96).all(|page| world.copy[&page] == Has::Ballooned));
    world.consumer.stop().unwrap();
}

#[test]
fn what_was_written_just_before_it_was_ballooned_stays_ballooned() {
    for mode in MODES {
        let mut world = quiet(mode, SMALLEST, 256, &[]);
        world.sync(When::Running).unwrap();
        world.drain();
        // Written and ballooned between two syncs, so the logs still have the write. The walk comes
        // by before they are harvested.
        for page in 0..40 {
            world.write(page);
        }
        world.inflate(0, 40);
        world.consumer.put_back(world.block, Pages(0), Pages(64));
        world.drain();
        world.sync(When::Running).unwrap();
        world.drain();
        assert_eq!(
            world.consumer.stats().ballooned_written,
            Pages(0),
            "{mode:?}"
        );
        assert!((0..40).all(|p| world.copy[&p] == Has::Ballooned));
        world.finish().unwrap();
    }
}

#[test]
fn what_was_written_in_spite_of_the_promise_is_left_to_read_once_a_sync_has_found_it() {
    for unit in [0, 3, 9] {
        let setup = Setup {
            mode: KvmMode::Auto,
            clearing: SMALLEST,
            pages: 2048,
            unit,
            balloon: vec![(0, 1536)],
        };
        let mut world = World::new(&setup, Mistake::None);
        world.drain();
        world.sync(When::Running).unwrap();
        world.drain();
        // Every eighth page, by a guest that breaks its promise or by a coarse log.
        for page in (0..1024).step_by(8) {
            world.kvm.guest_write(SLOT, page);
        }
        world.sync(When::Running).unwrap();
        let before = world.consumer.to_read();
        let whole = 1 << unit;
        assert_eq!(before, Pages(128 * whole.min(8)), "unit {unit}");
        // The decision on the downtime was made with this number of pages to read.
        let mut read = 0;
        let mut cursor = Cursor::default();
        loop {
            let all = Pages(u64::MAX);
            let taken = world.consumer.take(&mut cursor, 64, all).unwrap();
            if taken.is_empty() {
                break;
            }
            let used = taken.runs().filter(|r| r.content == Content::Used);
            read += used.map(|r| r.pages.count().0).sum::<u64>();
            taken.delivered();
        }
        assert_eq!(Pages(read), before, "unit {unit}");
        assert_eq!(world.consumer.stats().ballooned_written, before);
        world.consumer.stop().unwrap();
    }
}

#[test]
fn a_hint_takes_nothing_from_whoever_reads_ballooned_pages() {
    let world = quiet(KvmMode::Auto, SMALLEST, 256, &[]);
    world.consumer.stop().unwrap();
    world.consumer.skip_ballooned(false);
    world.consumer.start(StartWith::Everything).unwrap();
    let round = world.consumer.begin_hints().unwrap();
    let used = world.consumer.hint_free(round, address(0), 100 * PAGE_SIZE);
    assert_eq!(used.unwrap(), Pages(0));
    assert_eq!(world.consumer.pending(), Pages(256));
    world.consumer.stop().unwrap();
}

#[test]
fn a_consumer_that_reads_ballooned_pages_gets_them_like_others() {
    let world = quiet(KvmMode::Auto, SMALLEST, 256, &[(0, 200)]);
    world.consumer.stop().unwrap();
    world.consumer.skip_ballooned(false);
    world.consumer.start(StartWith::Everything).unwrap();
    assert_eq!(world.consumer.to_read(), Pages(256));
    let mut cursor = Cursor::default();
    let taken = world.consumer.take(&mut cursor, 9, Pages(9999)).unwrap();
    assert_eq!(taken.pages(), Pages(256));
    assert!(taken.runs().all(|r| r.content == Content::Used));
    world.consumer.stop().unwrap();
}

#[test]
fn ballooned_pages_are_not_counted_as_left_to_read() {
    let mut world = quiet(KvmMode::Auto, SMALLEST, 1000, &[(100, 700)]);
    assert_eq!(world.consumer.to_read(), Pages(300));
    world.walk(2, 100_000);
    world.drain();
    world.inflate(0, 60);
    let before = world.consumer.stats().ballooned;
    world.sync(When::Running).unwrap();
    assert_eq!(world.consumer.to_read(), Pages(0));
    assert!(world.consumer.pending() >= Pages(60));
    // Named without reading any other page, as before a switchover.
    world.apply(&Op::Unread).unwrap();
    assert!(world.consumer.stats().ballooned >= before + Pages(60));
    assert_eq!(world.consumer.pending(), Pages(0));
    world.finish().unwrap();
}

#[test]
fn a_page_put_back_by_a_failure_is_still_ballooned() {
    let mut world = quiet(KvmMode::Auto, SMALLEST, 256, &[(0, 256)]);
    world.drain();
    world.consumer.put_back(world.block, Pages(0), Pages(256));
    world.drain();
    assert_eq!(world.consumer.stats().ballooned_written, Pages(0));
    assert_eq!(world.consumer.stats().ballooned, Pages(512));
    world.finish().unwrap();
}

#[test]
fn a_hint_is_used_once_and_only_in_its_round() {
    for mode in MODES {
        for clearing in [SMALLEST, Clearing::AtSync] {
            let mut world = quiet(mode, clearing, 256, &[]);
            let early = world.consumer.begin_hints().unwrap();
            // Everything is protected now, whatever the mode, so writes are found.
            assert!(
                (0..256).all(|p| world.kvm.is_protected(SLOT, p)),
                "{mode:?}"
            );
            let free = |world: &World, round, page, n| {
                world
                    .consumer
                    .hint_free(round, address(page), n * PAGE_SIZE)
            };
            assert_eq!(free(&world, early, 0, 100).unwrap(), Pages(100));
            assert_eq!(free(&world, early, 50, 100).unwrap(), Pages(50));
            // Used again without a word.
            world.write(7);
            world.sync(When::Running).unwrap();
            let stale = free(&world, early, 200, 1).unwrap_err();
            assert_eq!(stale.kind(), Kind::State);
            // A later bit overrides the hint, and a round that begins after it does not undo it.
            assert_eq!(world.consumer.pending(), Pages(107));
            world.drain();
            assert_eq!(world.copy[&7], Has::Version(world.version(7)));
            assert_eq!(world.copy[&8], Has::Zero);
            let stats = world.consumer.stats();
            let stale = world.consumer.tracker().stats().stale_hints;
            assert_eq!((stats.hinted, stale), (Pages(150), 1));
            for page in 0..150 {
                world.free.insert(page, 1);
            }
            world.finish().unwrap();
        }
    }
}

#[test]
fn every_event_that_makes_a_hint_unsafe_ends_its_round() {
    let mut world = quiet(KvmMode::InitiallySet, SMALLEST, 256, &[]);
    type Event = (&'static str, fn(&mut World));
    let events: [Event; 5] = [
        ("sync", |w| w.sync(When::Running).unwrap()),
        ("all marked", |w| w.consumer.mark_all()),
        ("another round", |w| {
            w.consumer.begin_hints().unwrap();
        }),
        ("a new slot", |w| {
            w.kvm.create(2, HOST, 64, 1 << 40);
            w.memory
                .add_slot(&SlotDescription {
                    slot: 2,
                    flags: 0,
                    block: w.memory.find_block("ram").unwrap(),
                    offset: Bytes(0),
                    length: Bytes(64 * PAGE_SIZE),
                    guest_address: GuestAddress(1 << 40),
                })
                .unwrap();
        }),
        ("its end", |w| {
            let round = w.round.unwrap();
            w.consumer.end_hints(round);
        }),
    ];
    for (what, event) in events {
        let round = world.consumer.begin_hints().unwrap();
        world.round = Some(round);
        event(&mut world);
        let late = world.consumer.hint_free(round, address(0), PAGE_SIZE);
        assert_eq!(late.unwrap_err().kind(), Kind::State, "{what}");
    }
    world.consumer.stop().unwrap();
    assert_eq!(
        world.consumer.begin_hints().unwrap_err().kind(),
        Kind::State
    );
}

#[test]
fn what_was_hinted_and_not_told_is_pending_again_for_a_consumer_that_reads_ballooned_pages() {
    let world = quiet(KvmMode::Auto, SMALLEST, 256, &[]);
    let round = world.consumer.begin_hints().unwrap();
    world
        .consumer
        .hint_free(round, address(0), 256 * PAGE_SIZE)
        .unwrap();
    assert_eq!(world.consumer.pending(), Pages(0));
    world.consumer.skip_ballooned(false);
    assert_eq!(world.consumer.pending(), Pages(256));
}

#[test]
fn hints_of_nonsense_do_nothing() {
    let world = quiet(KvmMode::Auto, SMALLEST, 256, &[]);
    let round = world.consumer.begin_hints().unwrap();
    for (address, length) in [
        (u64::MAX, u64::MAX),
        (0, 0),
        (1, PAGE_SIZE),
        (256 * PAGE_SIZE, u64::MAX),
    ] {
        let used = world
            .consumer
            .hint_free(round, GuestAddress(address), length);
        assert_eq!(used.unwrap(), Pages(0), "{length} at {address:#x}");
    }
    assert_eq!(world.consumer.pending(), Pages(256));
}
