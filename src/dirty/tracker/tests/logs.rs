//! Reports of a log of any kind, on any thread, reach the pages that they mean.

use super::*;

/// A log that reports what it is told to, by guest addresses or by pages of blocks.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Tell>>>);

#[derive(Debug, Clone)]
enum Tell {
    Bitmap(Origin, Vec<u64>, u64),
    List(Origin, Vec<u64>),
    Everything(Origin, u64),
}

impl DirtyLog for Told {
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
        for tell in self.0.lock().unwrap().drain(..) {
            match tell {
                Tell::Bitmap(origin, words, pages) => sink.bitmap(origin, &words, Pages(pages)),
                Tell::List(origin, pages) => sink.list(origin, &pages),
                Tell::Everything(origin, pages) => sink.everything(origin, Pages(pages)),
            }
        }
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for block in map.blocks() {
            each(Extent::all_of(block));
        }
    }
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

/// The pages of blocks that lie `page` pages after an origin.
fn naive(world: &World, origin: Origin, page: u64) -> Vec<(BlockId, u64)> {
    let block = |id| world.blocks.iter().find(|b| b.id == id);
    match origin {
        Origin::Block {
            block: id,
            page: base,
        } => block(id)
            .filter(|b| base.0 + page < b.pages)
            .map(|b| (b.id, base.0 + page))
            .into_iter()
            .collect(),
        Origin::Slot { slot, page: base } => world
            .slots
            .iter()
            .filter(|s| s.slot == slot && base.0 + page < s.pages)
            .map(|s| (s.block, s.first + base.0 + page))
            .collect(),
        Origin::Guest(GuestAddress(base)) | Origin::Iova(base) => {
            let at = base + page * PAGE_SIZE;
            world
                .slots
                .iter()
                .filter(|s| s.guest <= at && at < s.guest + s.pages * PAGE_SIZE)
                .map(|s| (s.block, s.first + (at - s.guest) / PAGE_SIZE))
                .collect()
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 128, ..Config::default() })]

    #[test]
    fn what_a_log_reports_ends_up_at_the_pages_it_means(
        blocks in prop::collection::vec(1..=1500u64, 1..4),
        slots in prop::collection::vec(slot_spec(), 0..6),
        tells in prop::collection::vec(
            (0..4u8, 0..3u8, any::<u32>(), 0..2000u64, prop::collection::vec(any::<u64>(), 0..20), 0..1300u64),
            0..6,
        ),
    ) {
        let setup = Setup {
            mode: KvmMode::GetAndClear,
            clearing: SMALLEST,
            start_with: StartWith::Nothing,
            blocks,
            slots,
        };
        let mut world = World::new(&setup, Mistake::None);
        world.consumer.stop().unwrap();
        let told = Told::default();
        world.consumer.add_log(Box::new(told.clone())).unwrap();
        world.start(StartWith::Nothing);
        let mut expected = HashSet::new();
        for (kind, what, selector, base, words, pages) in tells {
            let page = Pages(base);
            let slot = world.slots.get(selector as usize % world.slots.len().max(1));
            let origin = match kind {
                0 => Origin::Block {
                    block: world.blocks[selector as usize % world.blocks.len()].id,
                    page,
                },
                1 => Origin::Slot { slot: slot.map_or(77, |s| s.slot), page },
                2 => Origin::Guest(GuestAddress(base * PAGE_SIZE)),
                _ => Origin::Iova(base * PAGE_SIZE),
            };
            let (tell, told_pages): (Tell, Vec<u64>) = match what {
                0 => {
                    let limit = pages.min(words.len() as u64 * 64);
                    let set = |p: &u64| words[(p / 64) as usize] >> (p % 64) & 1 != 0;
                    (Tell::Bitmap(origin, words.clone(), pages), (0..limit).filter(set).collect())
                }
                1 => {
                    let list: Vec<u64> = words.iter().map(|w| w % 2000).collect();
                    (Tell::List(origin, list.clone()), list)
                }
                _ => (Tell::Everything(origin, pages), (0..pages).collect()),
            };
            told.0.lock().unwrap().push(tell);
            expected.extend(told_pages.into_iter().flat_map(|p| naive(&world, origin, p)));
        }
        let report = world.consumer.sync(When::Running).unwrap();
        prop_assert_eq!(report.found.0, expected.len() as u64);
        let mut got = HashSet::new();
        while world.take(64, 4000).unwrap() {
            for flight in std::mem::take(&mut world.flight) {
                let run = the_run(&flight.taken);
                let pages = run.pages.first().0..run.pages.end().0;
                got.extend(pages.map(|page| (run.block.id(), page)));
                flight.taken.delivered();
            }
        }
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn marks_from_many_threads_during_syncs_and_hotplug_are_all_found() {
    const PAGES: u64 = 3000;
    const THREADS: u64 = 3;
    let mut world = settled(SMALLEST, PAGES, 0, Mistake::None);
    let memory: Arc<Vec<AtomicU64>> = Arc::new((0..PAGES).map(|_| AtomicU64::new(0)).collect());
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let memory = Arc::clone(&memory);
            let (tracker, block) = (Arc::clone(&world.consumer), world.blocks[0].id);
            std::thread::spawn(move || {
                let mut at = n * 977;
                for i in 0..20_000u64 {
                    at = at
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let page = (at >> 33) % PAGES;
                    // Write first, then mark.
                    memory[page as usize].fetch_add(1, Ordering::Relaxed);
                    if i % 2 == 0 {
                        tracker.mark_block(block, Bytes(page * PAGE_SIZE + 7), 1);
                    } else {
                        tracker.mark_guest(GuestAddress(page * PAGE_SIZE + 7), 1);
                    }
                }
            })
        })
        .collect();
    let mut copy = vec![0; PAGES as usize];
    let mut last = false;
    loop {
        world.consumer.sync(When::Running).unwrap();
        // The map is swapped during the marks.
        world.add_block(64);
        world.apply(&Op::RemoveBlock(1)).unwrap();
        loop {
            let cursor = &mut world.cursor;
            let taken = world.consumer.take(cursor, 64, Pages(512)).unwrap();
            if taken.is_empty() {
                break;
            }
            let block = world.blocks[0].id;
            for run in taken.runs().filter(|r| r.block.id() == block) {
                for page in run.pages.first().index()..run.pages.end().index() {
                    copy[page] = memory[page].load(Ordering::Relaxed);
                }
            }
            taken.delivered();
        }
        if last {
            break;
        }
        // One more round after all threads have ended.
        last = threads.iter().all(|t| t.is_finished());
    }
    for thread in threads {
        thread.join().unwrap();
    }
    for (page, (copy, memory)) in copy.iter().zip(memory.iter()).enumerate() {
        assert_eq!(*copy, memory.load(Ordering::Relaxed), "page {page}");
    }
    assert_eq!(world.consumer.stray_marks(), 0);
}

/// The cost of a sync of 1 TiB without a dirty page, compared with one read of its bitmap. This
/// measures and tests nothing. Run it in a release build with `--ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn a_sync_of_a_clean_tebibyte_costs_about_one_read_of_its_bitmap() {
    let pages = 1u64 << 28;
    for clearing in [Clearing::default(), Clearing::AtSync] {
        let world = settled(clearing, 64, 0, Mistake::None);
        drop(world);
        let setup = Setup {
            mode: KvmMode::ManualProtect,
            clearing,
            start_with: StartWith::Nothing,
            blocks: vec![pages],
            slots: vec![],
        };
        let kvm = Kvm::new(ALL_CAPS);
        let memory = Arc::new(Memory::new().unwrap());
        let tracker = Tracker::new(Arc::clone(&memory), setup.clearing).unwrap();
        let log = KvmLog::new(kvm.vm(), setup.mode, LogSwitch::Brant);
        tracker.add_log(Box::new(log)).unwrap();
        let host = 0x2000_0000_0000u64;
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
                length: Bytes(pages * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        kvm.create(1, host, pages, 0);
        memory
            .add_slot(&SlotDescription {
                slot: 1,
                flags: 0,
                block: memory.find_block("ram").unwrap(),
                offset: Bytes(0),
                length: Bytes(pages * PAGE_SIZE),
                guest_address: GuestAddress(0),
            })
            .unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let mut words = vec![0u64; (pages / 64) as usize];
        let (mut read, mut get, mut sync) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let mut vm = kvm.vm();
        for _ in 0..7 {
            let begun = Instant::now();
            assert_eq!(crate::bits::words::count(&words), 0);
            read = read.min(begun.elapsed());
            let begun = Instant::now();
            vm.get_dirty_log(1, &mut words).unwrap();
            get = get.min(begun.elapsed());
            let begun = Instant::now();
            assert_eq!(consumer.sync(When::Running).unwrap().found, Pages(0));
            sync = sync.min(begun.elapsed());
        }
        assert_eq!(kvm.calls().clears, 0);
        eprintln!(
            "{clearing:?}: read {read:?}, the model's GET {get:?}, sync {sync:?}: \
             {:.2} reads beside the GET",
            (sync.as_secs_f64() - get.as_secs_f64()) / read.as_secs_f64()
        );
        consumer.stop().unwrap();
    }
}

#[test]
fn a_log_that_is_added_while_pages_are_tracked_is_refused_with_what_to_do() {
    let memory = Arc::new(Memory::new().unwrap());
    let tracker = Tracker::new(memory, Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    let error = tracker.add_log(Box::new(Told::default())).unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    assert!(error.message().contains("stop every consumer"), "{error}");
    consumer.stop().unwrap();
    tracker.add_log(Box::new(Told::default())).unwrap();
    consumer.start(StartWith::Everything).unwrap();
}
