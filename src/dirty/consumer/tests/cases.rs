//! Named cases of the model: what one consumer does, and which pages the others still have.

use super::*;

const SMALLEST: Clearing = Clearing::Chunked { shift: 6 };
const MODES: [KvmMode; 3] = [
    KvmMode::GetAndClear,
    KvmMode::ManualProtect,
    KvmMode::InitiallySet,
];

fn quiet(mode: KvmMode) -> World {
    let setup = Setup {
        mode,
        clearing: SMALLEST,
        blocks: vec![256],
    };
    World::new(&setup, Mistake::None)
}

/// The page of the example in the file's description.
#[test]
fn a_write_to_a_page_that_another_has_pending_is_found_by_a_consumer_that_started_clean() {
    for mode in MODES {
        let mut world = quiet(mode);
        world.apply(&Op::Make(false)).unwrap();
        world.apply(&Op::Guest(0, 5)).unwrap();
        world.apply(&Op::Sync(0)).unwrap();
        world.apply(&Op::Make(false)).unwrap();
        world.apply(&Op::Guest(0, 5)).unwrap();
        world.apply(&Op::Drain(0)).unwrap();
        world.apply(&Op::Sync(1)).unwrap();
        assert_eq!(world.copiers[1].consumer.pending(), Pages(1), "{mode:?}");
        world.finish().unwrap();
    }
}

#[test]
fn a_consumer_that_starts_clean_is_not_told_of_what_was_written_before() {
    for mode in MODES {
        let mut world = quiet(mode);
        world.apply(&Op::Make(true)).unwrap();
        // Some writes have been harvested, some pages taken, some writes are not known yet.
        for page in 0..200 {
            world.apply(&Op::Guest(0, page)).unwrap();
            if page == 100 {
                world.apply(&Op::Sync(0)).unwrap();
                world.apply(&Op::Take(0, 3, 70)).unwrap();
            }
        }
        world.apply(&Op::Make(false)).unwrap();
        for _ in 0..2 {
            world.apply(&Op::Sync(1)).unwrap();
            assert_eq!(world.copiers[1].consumer.pending(), Pages(0), "{mode:?}");
        }
        world.apply(&Op::Guest(0, 7)).unwrap();
        world.apply(&Op::Sync(0)).unwrap();
        assert_eq!(world.copiers[1].consumer.pending(), Pages(1), "{mode:?}");
        world.finish().unwrap();
    }
}

#[test]
fn what_one_takes_stays_pending_for_the_others_and_costs_them_no_second_clear() {
    for mode in MODES {
        let mut world = quiet(mode);
        world.apply(&Op::Make(false)).unwrap();
        world.apply(&Op::Make(false)).unwrap();
        for page in 0..100 {
            world.apply(&Op::Guest(0, page)).unwrap();
        }
        world.apply(&Op::Sync(0)).unwrap();
        world.apply(&Op::Drain(0)).unwrap();
        assert_eq!(world.copiers[0].consumer.pending(), Pages(0));
        assert_eq!(world.copiers[1].consumer.pending(), Pages(100), "{mode:?}");
        let clears = world.kvm.calls().clears;
        world.apply(&Op::Drain(1)).unwrap();
        assert_eq!(world.copiers[1].consumer.pending(), Pages(0));
        assert_eq!(world.kvm.calls().clears, clears, "{mode:?}");
        world.finish().unwrap();
    }
}

#[test]
fn the_logs_run_while_anybody_wants_them() {
    let world = quiet(KvmMode::Auto);
    let tracker = &world.tracker;
    let logged = || world.kvm.logged(world.blocks[0].slot);
    let [first, second] = [tracker.consumer(), tracker.consumer()];
    assert!(!logged() && !tracker.is_started());
    first.start(StartWith::Nothing).unwrap();
    let again = first.start(StartWith::Nothing).unwrap_err();
    assert_eq!(again.kind(), Kind::State);
    assert!(logged() && tracker.is_started() && !second.is_started());
    assert_eq!(second.sync(When::Running).unwrap_err().kind(), Kind::State);
    second.start(StartWith::Everything).unwrap();
    first.stop().unwrap();
    first.stop().unwrap();
    assert!(logged() && !first.is_started());
    first.start(StartWith::Everything).unwrap();
    drop(second);
    assert!(logged());
    first.abandon();
    assert!(!logged() && !tracker.is_started());
    assert_eq!(first.pending(), Pages(256), "abandoned, not freed");
}

#[test]
fn a_start_that_fails_leaves_the_others_what_they_have() {
    let mut world = quiet(KvmMode::ManualProtect);
    world.apply(&Op::Make(true)).unwrap();
    world.apply(&Op::Guest(0, 3)).unwrap();
    world.apply(&Op::Sync(0)).unwrap();
    let second = world.tracker.consumer();
    // The clear that would protect a page for it fails.
    world.kvm.fail(0, 1);
    second.start(StartWith::Nothing).unwrap_err();
    assert!(!second.is_started());
    assert_eq!(second.pending(), Pages(0));
    assert_eq!(world.copiers[0].consumer.pending(), Pages(256));
    world.kvm.calm();
    second.start(StartWith::Nothing).unwrap();
    world.apply(&Op::Guest(0, 3)).unwrap();
    second.sync(When::Running).unwrap();
    assert_eq!(second.pending(), Pages(1));
    drop(second);
    world.finish().unwrap();
}

#[test]
fn a_frozen_consumer_hears_of_new_memory_alone() {
    let mut world = quiet(KvmMode::Auto);
    world.apply(&Op::Make(false)).unwrap();
    world.apply(&Op::Migrate).unwrap();
    world.apply(&Op::Drain(1)).unwrap();
    world.apply(&Op::Pause).unwrap();
    // As with a device's log that reports each time all that it may write to.
    world.kvm.fail(1, 0);
    world.failures = true;
    world.apply(&Op::Sync(0)).unwrap();
    let migration = world.migration.as_ref().unwrap();
    assert_eq!(world.copiers[0].consumer.pending(), Pages(256));
    assert_eq!(migration.consumer.pending(), Pages(0));
    world.add_block(7);
    let migration = world.migration.as_ref().unwrap();
    assert_eq!(migration.consumer.pending(), Pages(7));
    world.finish().unwrap();
}

/// A log that reports each page once, straight into pending, and keeps nothing, as the VMM's marks
/// and rings do.
#[derive(Clone, Default)]
struct Moves(Arc<std::sync::Mutex<BTreeSet<u64>>>, Arc<AtomicBool>);

impl DirtyLog for Moves {
    fn kind(&self) -> LogKind {
        LogKind::Userfault
    }
    fn start(&mut self, _: &Map) -> Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
        Ok(())
    }
    fn harvest(&mut self, map: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
        let mut pages = std::mem::take(&mut *self.0.lock().unwrap());
        let fails = self.1.load(Ordering::SeqCst);
        sink.block(map.blocks()[0].id(), &mut |pending| {
            let mut new = 0;
            for page in std::mem::take(&mut pages) {
                new += pending.set_range(page as usize, 1);
            }
            match fails {
                true => Err(Error::new(Kind::Kernel, "after half of it")),
                false => Ok(new),
            }
        })?;
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        each(Extent {
            block: map.blocks()[0].id(),
            pages: 0..10,
        });
    }
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_log_moves_out_once_reaches_every_consumer() {
    let guest = testing::Guest::new(300);
    guest.block("ram", 300);
    let log = Moves::default();
    let first = guest.tracker(Box::new(log.clone()));
    let second = first.consumer();
    let third = first.consumer();
    first.start(StartWith::Nothing).unwrap();
    second.start(StartWith::Nothing).unwrap();
    let pages = |pages: &[u64]| pages.iter().map(|p| (0, *p)).collect::<BTreeSet<_>>();
    log.0.lock().unwrap().extend([3, 70, 299]);
    first.mark_block(BlockId(0), Bytes(40 * PAGE_SIZE), 1);
    let report = second.sync(When::Running).unwrap();
    assert_eq!((report.found, report.pending), (Pages(4), Pages(4)));
    assert_eq!(take_all(&first), pages(&[3, 40, 70, 299]));
    third.start(StartWith::Nothing).unwrap();
    log.0.lock().unwrap().extend([70, 71]);
    // A page that was pending already does not count again.
    assert_eq!(second.sync(When::Running).unwrap().found, Pages(1));
    assert_eq!(take_all(&first), pages(&[70, 71]));
    assert_eq!(take_all(&second), pages(&[3, 40, 70, 71, 299]));
    assert_eq!(take_all(&third), pages(&[70, 71]));
    assert_eq!(first.stats().found, Pages(6));
    assert_eq!(second.stats().found, Pages(5));
    assert_eq!(third.stats().syncs, 1);
    // A log that fails in the middle: the pages that it reported, and every page that it covers.
    log.0.lock().unwrap().insert(200);
    log.1.store(true, Ordering::SeqCst);
    assert_eq!(second.sync(When::Running).unwrap().warnings.len(), 1);
    for consumer in [&first, &second, &third] {
        assert_eq!(consumer.pending(), Pages(11));
        assert_eq!(consumer.stats().failed_syncs, 1);
    }
    log.1.store(false, Ordering::SeqCst);
}

#[test]
fn words_of_any_length_and_alignment_reach_every_consumer() {
    /// Reports a long bitmap from any page on.
    struct Long(Arc<AtomicU64>);
    impl DirtyLog for Long {
        fn kind(&self) -> LogKind {
            LogKind::Vhost
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
            let from = self.0.load(Ordering::SeqCst);
            let pages = PAGES - from;
            let mut words = vec![0u64; pages.div_ceil(64) as usize];
            for page in (0..pages).filter(|page| (page + from).is_multiple_of(977)) {
                words[(page / 64) as usize] |= 1 << (page % 64);
            }
            let block = BlockId(0);
            let page = Pages(from);
            sink.bitmap(Origin::Block { block, page }, &words, Pages(pages));
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Ok(())
        }
    }
    // Several slices of a merge, and a part of one.
    const PAGES: u64 = (200 << 10) + 77;
    let guest = testing::Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let from = Arc::new(AtomicU64::new(0));
    let first = guest.tracker(Box::new(Long(Arc::clone(&from))));
    let second = first.consumer();
    first.start(StartWith::Nothing).unwrap();
    second.start(StartWith::Nothing).unwrap();
    // That sync was one for the first consumer too.
    take_all(&first);
    for at in [0, 1, 63, 64, 65_535, 65_536, 131_073, PAGES - 1] {
        from.store(at, Ordering::SeqCst);
        let expected: BTreeSet<_> = (at..PAGES)
            .filter(|page| page.is_multiple_of(977))
            .map(|page| (0, page))
            .collect();
        let found = first.sync(When::Running).unwrap().found;
        assert_eq!(found.0, expected.len() as u64);
        assert_eq!(take_all(&first), expected, "from {at}");
        assert_eq!(take_all(&second), expected, "from {at}");
    }
}

/// Threads: two that write and mark, and three consumers that sync, take, put back, stop and start
/// at random.
#[test]
fn consumers_on_threads_of_their_own_miss_no_mark() {
    const PAGES: usize = 2048;
    let guest = testing::Guest::new(PAGES);
    let block = guest.block("ram", PAGES as u64);
    let first = guest.tracker(Box::new(Moves::default()));
    let tracker = Arc::clone(first.tracker());
    drop(first);
    let versions: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let (versions, tracker) = (&versions, &tracker);
    let stop = &AtomicBool::new(false);
    let rounds = if cfg!(debug_assertions) { 150 } else { 1500 };
    let copies: Vec<(Consumer, Vec<u64>)> = std::thread::scope(|s| {
        for n in 0..2u64 {
            s.spawn(move || {
                let mut at = n;
                while !stop.load(Ordering::Relaxed) {
                    at = at
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let page = (at >> 33) as usize % PAGES;
                    versions[page].fetch_add(1, Ordering::SeqCst);
                    tracker.mark_block(block, Bytes(page as u64 * PAGE_SIZE), 1);
                }
            });
        }
        let consumers: Vec<_> = (0..3u64)
            .map(|n| {
                s.spawn(move || {
                    let consumer = tracker.consumer();
                    let read = |page: usize| versions[page].load(Ordering::SeqCst);
                    let start = |copy: &mut Vec<u64>| {
                        // A write between the two is found, and its page is read again.
                        consumer.start(StartWith::Nothing).unwrap();
                        *copy = (0..PAGES).map(read).collect();
                    };
                    let mut copy = Vec::new();
                    start(&mut copy);
                    let mut cursor = Cursor::default();
                    for round in 0..rounds {
                        if round % 3 == n {
                            consumer.sync(When::Running).unwrap();
                        }
                        let taken = consumer.take(&mut cursor, 40, Pages(100)).unwrap();
                        for (i, taken) in apart(taken).into_iter().enumerate() {
                            if (round + i as u64).is_multiple_of(5) {
                                continue;
                            }
                            let run = the_run(&taken).pages;
                            let first = run.first().index();
                            let pages = &mut copy[first..run.end().index()];
                            for (i, page) in pages.iter_mut().enumerate() {
                                *page = read(first + i);
                            }
                            taken.delivered();
                        }
                        if round % 40 == 39 && n > 0 {
                            consumer.stop().unwrap();
                            start(&mut copy);
                        }
                    }
                    (consumer, copy)
                })
            })
            .collect();
        let copies = consumers.into_iter().map(|c| c.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        copies
    });
    copies[1].0.sync(When::Stopped).unwrap();
    for (n, (consumer, mut copy)) in copies.into_iter().enumerate() {
        for (_, page) in take_all(&consumer) {
            copy[page as usize] = versions[page as usize].load(Ordering::SeqCst);
        }
        for (page, version) in copy.into_iter().enumerate() {
            let now = versions[page].load(Ordering::SeqCst);
            assert_eq!(version, now, "page {page} is lost to consumer {n}");
        }
    }
}

#[test]
fn a_slot_that_comes_is_pending_for_everybody_who_is_started() {
    let guest = testing::Guest::new(100);
    guest.block("ram", 100);
    let first = guest.tracker(Box::new(Moves::default()));
    let [second, idle, done] = [first.consumer(), first.consumer(), first.consumer()];
    done.start(StartWith::Nothing).unwrap();
    done.stop().unwrap();
    first.start(StartWith::Nothing).unwrap();
    second.start(StartWith::Nothing).unwrap();
    guest.slot("ram", 10, 20, 0).unwrap();
    for (consumer, pages) in [(&first, 20), (&second, 20), (&idle, 0), (&done, 0)] {
        assert_eq!(consumer.pending(), Pages(pages));
    }
    guest.memory.remove_slot(NO_SLOT, GuestAddress(0)).unwrap();
    guest
        .memory
        .remove_block(guest.memory.find_block("ram").unwrap())
        .unwrap();
    assert_eq!(first.pending(), Pages(0));
}
