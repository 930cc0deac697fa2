//! Named cases of the model: courses that once lost a page, or could.

use super::*;

#[test]
fn a_write_between_harvest_and_take_is_in_what_is_read_after_the_take() {
    for mistake in [Mistake::None, Mistake::ReadBeforeClear] {
        let mut world = settled(SMALLEST, 256, 0, mistake);
        let slot = world.slots[0].slot;
        world.kvm.guest_write(slot, 5);
        world.sync(When::Running).unwrap();
        // Page 5 is no longer protected, and its bit is in the copy, so the kernel will not report
        // this write. The clear comes after the write, so the read must come after it too.
        world.kvm.race(Moment::BeforeClear, slot, 5);
        world.take(1, 1).unwrap();
        assert_eq!(world.finish().is_ok(), mistake == Mistake::None);
    }
}

#[test]
fn a_hole_written_between_harvest_and_take_is_not_lost() {
    for mistake in [Mistake::None, Mistake::HoleTestBeforeClear] {
        let setup = Setup {
            mode: KvmMode::InitiallySet,
            clearing: SMALLEST,
            start_with: StartWith::Everything,
            blocks: vec![256],
            slots: vec![SlotSpec {
                block: 0,
                first: 3,
                pages: 255,
                smm: false,
                gap: 0,
            }],
        };
        let mut world = World::new(&setup, mistake);
        world.sync(When::Running).unwrap();
        world.kvm.race(Moment::BeforeClear, world.slots[0].slot, 5);
        world.take(1, 64).unwrap();
        assert_eq!(world.finish().is_ok(), mistake == Mistake::None);
    }
}

#[test]
fn a_chunk_rounded_out_to_64_pages_leaves_its_neighbours_new_bits_alone() {
    for mistake in [Mistake::None, Mistake::ClearTwice] {
        // The slot begins at page 32 of the block, so word 0 of its bitmap lies in two chunks.
        let mut world = settled(SMALLEST, 256, 32, mistake);
        let slot = world.slots[0].slot;
        world.kvm.guest_write(slot, 10);
        world.kvm.guest_write(slot, 40);
        world.sync(When::Running).unwrap();
        // Page 42 of the block is in chunk 0. Its clear is rounded out over slot page 40, which is
        // page 72 of the block.
        world.take(1, 1).unwrap();
        assert!(world.kvm.is_protected(slot, 40));
        let flight = world.flight.pop().unwrap();
        assert_eq!(the_run(&flight.taken).pages.first().0, 42);
        world.read(flight);
        // Written again after it was read, which only the kernel's bit shows.
        world.kvm.guest_write(slot, 10);
        let clears = world.kvm.calls().clears;
        world.take(1, 1).unwrap();
        if mistake == Mistake::None {
            assert_eq!(
                world.kvm.calls().clears,
                clears,
                "there was nothing left to clear"
            );
        } else {
            // The effect of a second clear with a copy that was not consumed.
            world.kvm.guest_write(slot, 100);
            world.sync(When::Running).unwrap();
            // The first sync found page 10 again, so here it is taken, read, written ...
            world.drain().unwrap();
            world.kvm.guest_write(slot, 10);
            world.kvm.guest_write(slot, 200);
            world.sync(When::Running).unwrap();
            world.take(1, 1).unwrap();
            let flight = world.flight.pop().unwrap();
            world.read(flight);
            world.kvm.guest_write(slot, 10);
            // ... and the clear of another chunk uses the old words once more.
            world.take(1, 1).unwrap();
        }
        assert_eq!(world.finish().is_ok(), mistake == Mistake::None);
    }
}

#[test]
fn a_block_that_is_no_multiple_of_64_pages_costs_what_an_aligned_one_costs() {
    for clearing in [Clearing::AtSync, Clearing::default()] {
        let calls = [(4096, 0), (4133, 37), (4133, 1)].map(|(pages, first)| {
            let mut world = settled(clearing, pages, first, Mistake::None);
            let before = world.kvm.calls();
            for page in [0, 1, 100, 1023, 4095] {
                world.kvm.guest_write(world.slots[0].slot, page);
            }
            world.sync(When::Running).unwrap();
            world.drain().unwrap();
            let after = world.kvm.calls();
            world.finish().unwrap();
            (after.gets - before.gets, after.clears - before.clears)
        });
        assert!(calls.iter().all(|c| *c == calls[0]), "{calls:?}");
        assert_eq!(calls[0].1, 1, "one clear for all of it");
    }
}

#[test]
fn a_failed_get_when_a_slot_goes_loses_no_page() {
    let setup = Setup {
        mode: KvmMode::GetAndClear,
        clearing: SMALLEST,
        start_with: StartWith::Everything,
        blocks: vec![100],
        slots: vec![SlotSpec {
            block: 0,
            first: 3,
            pages: 99,
            smm: false,
            gap: 0,
        }],
    };
    let mut world = World::new(&setup, Mistake::None);
    world.drain().unwrap();
    world.kvm.guest_write(world.slots[0].slot, 7);
    world.apply(&Op::Fail { gets: 1, clears: 0 }).unwrap();
    world.apply(&Op::RemoveSlot(0)).unwrap();
    world.finish().unwrap();
}

#[test]
fn a_slot_that_was_deleted_before_it_was_removed_counts_as_dirty_and_is_not_made_again() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    let slot = world.slots.remove(0);
    world.kvm.guest_write(slot.slot, 7);
    // The wrong order: the slot is gone, and with it the writes that it logged.
    world.kvm.delete(slot.slot);
    let guest = GuestAddress(slot.guest);
    world.memory.remove_slot(slot.slot, guest).unwrap();
    assert!(
        !world.kvm.exists(slot.slot),
        "made anew by switching it off"
    );
    assert_eq!(world.consumer.pending(), Pages(256));
    world.finish().unwrap();
    // The same when the whole block goes.
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    let slot = world.slots.remove(0);
    world.kvm.delete(slot.slot);
    world
        .memory
        .remove_block(world.memory.find_block(&world.blocks[0].name).unwrap())
        .unwrap();
    assert!(!world.kvm.exists(slot.slot));
}

#[test]
fn a_take_of_any_number_of_pages_is_cut_at_the_stretch() {
    let world = settled(SMALLEST, 2000, 0, Mistake::None);
    world.consumer.mark_all();
    let taken = world
        .consumer
        .take(&mut Cursor::default(), usize::MAX, Pages(u64::MAX))
        .unwrap();
    let found: Vec<_> = taken
        .runs()
        .map(|r| (r.pages.first().0, r.pages.count().0))
        .collect();
    assert_eq!(found, [(0, 512), (512, 512), (1024, 512), (1536, 464)]);
}

#[test]
fn a_take_whose_clear_fails_takes_nothing_and_can_be_made_again() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    for page in [3, 100, 200] {
        world.kvm.guest_write(world.slots[0].slot, page);
    }
    world.sync(When::Running).unwrap();
    let mut cursor = Cursor::default();
    let first = world.consumer.take(&mut cursor, 1, Pages(1)).unwrap();
    first.delivered();
    let begun = cursor;
    world
        .kvm
        .race(Moment::BeforeClear, world.slots[0].slot, 200);
    world.kvm.fail(0, 1);
    let error = world.consumer.take(&mut cursor, 9, Pages(9)).unwrap_err();
    assert!(error.message().contains("of block `b1`"), "{error}");
    assert_eq!((cursor, world.consumer.pending()), (begun, Pages(2)));
    let runs = world.consumer.take(&mut cursor, 9, Pages(9)).unwrap();
    let found: Vec<_> = runs.runs().map(|r| r.pages.first().0).collect();
    assert_eq!(found, [100, 200]);
}

/// The observer of a second tracker, which refuses.
struct Refuses(AtomicBool);

impl MapObserver for Refuses {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Busy, "not now")),
            false => Ok(()),
        }
    }
}

#[test]
fn a_change_that_another_observer_refuses_loses_no_page() {
    for mode in [
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
    ] {
        let setup = Setup {
            mode,
            clearing: SMALLEST,
            start_with: StartWith::Everything,
            blocks: vec![300, 100],
            slots: vec![
                SlotSpec {
                    block: 0,
                    first: 3,
                    pages: 299,
                    smm: false,
                    gap: 0,
                },
                SlotSpec {
                    block: 1,
                    first: 3,
                    pages: 99,
                    smm: false,
                    gap: 0,
                },
            ],
        };
        let mut world = World::new(&setup, Mistake::None);
        let refuses = Arc::new(Refuses(AtomicBool::new(true)));
        let weak: Weak<dyn MapObserver> = {
            let weak: Weak<Refuses> = Arc::downgrade(&refuses);
            weak
        };
        world.memory.observe(weak);
        world.drain().unwrap();
        let slot = world.slots[0].slot;
        world.kvm.guest_write(slot, 7);
        world.vmm_write(0, 9 * 4 + 3, 1, false);
        let error = world
            .memory
            .remove_block(world.memory.find_block(&world.blocks[0].name).unwrap());
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
        let guest = GuestAddress(world.slots[1].guest);
        let error = world.memory.remove_slot(world.slots[1].slot, guest);
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
        world.kvm.guest_write(slot, 8);
        world.sync(When::Running).unwrap();
        assert!(world.consumer.pending().0 >= 3);
        let error = world.memory.add_block(BlockDescription {
            name: "refused".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { crate::memory::HostMemory::new((1u64 << 45) as *mut u8) },
            length: Bytes(77 * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
        world.drain().unwrap();
        refuses.0.store(false, Ordering::SeqCst);
        world.add_block(200);
        world.vmm_write(2, 199 * 4 + 3, 1, false);
        world.finish().unwrap();
    }
}

#[test]
fn a_change_that_a_later_log_refuses_loses_no_page() {
    struct Refusing;
    impl DirtyLog for Refusing {
        fn kind(&self) -> LogKind {
            LogKind::Vhost
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, _: &mut dyn Sink) -> Result<Harvested> {
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Err(Error::new(Kind::Busy, "not now"))
        }
    }
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    world.consumer.stop().unwrap();
    world.consumer.add_log(Box::new(Refusing)).unwrap();
    world.start(StartWith::Nothing);
    let (slot, guest) = (world.slots[0].slot, GuestAddress(world.slots[0].guest));
    world.kvm.guest_write(slot, 7);
    // After the harvest of the slot that was to go: only the kernel's bit has the write, and the
    // log that was led back has a copy of all ones.
    world.kvm.race(Moment::AfterGet, slot, 8);
    let error = world.memory.remove_slot(slot, guest).unwrap_err();
    assert!(error.message().starts_with("vhost: "), "{error}");
    world.take(1, 1).unwrap();
    world.finish().unwrap();
}

#[test]
fn a_start_knows_a_change_that_was_announced_and_not_yet_made() {
    /// Starts tracking in the middle of a change, after the tracker was told of the change.
    struct Starts(Mutex<Option<Consumer>>, AtomicBool);
    impl MapObserver for Starts {
        fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
            if let Some(consumer) = &*self.0.lock().unwrap() {
                consumer.start(StartWith::Everything)?;
                self.1.store(true, Ordering::SeqCst);
            }
            Ok(())
        }
    }
    let kvm = Kvm::new(ALL_CAPS);
    let memory = Arc::new(Memory::new().unwrap());
    let tracker = Tracker::new(Arc::clone(&memory), SMALLEST).unwrap();
    let log = KvmLog::new(kvm.vm(), KvmMode::Auto, LogSwitch::Brant);
    tracker.add_log(Box::new(log)).unwrap();
    let starts = Arc::new(Starts(Mutex::new(None), AtomicBool::new(false)));
    let weak: Weak<dyn MapObserver> = {
        let weak: Weak<Starts> = Arc::downgrade(&starts);
        weak
    };
    memory.observe(weak);
    let host = 0x2000_0000_0000u64;
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
            length: Bytes(100 * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    *starts.0.lock().unwrap() = Some(tracker.consumer());
    kvm.create(1, host, 100, 0);
    memory
        .add_slot(&SlotDescription {
            slot: 1,
            flags: 0,
            block: memory.find_block("ram").unwrap(),
            offset: Bytes(0),
            length: Bytes(100 * PAGE_SIZE),
            guest_address: GuestAddress(0),
        })
        .unwrap();
    assert!(starts.1.load(Ordering::SeqCst));
    assert!(kvm.logged(1), "the new slot is not logged");
    let consumer = starts.0.lock().unwrap().take().unwrap();
    consumer.stop().unwrap();
}

#[test]
fn a_start_that_fails_leaves_the_vm_as_it_was() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    for n in 0..3 {
        world.add_slot(
            &SlotSpec {
                block: 0,
                first: n * 400,
                pages: 30,
                smm: n == 1,
                gap: 1,
            },
            false,
        );
    }
    world.consumer.stop().unwrap();
    world.kvm.fail_regions(1);
    let error = world.consumer.start(StartWith::Everything).unwrap_err();
    assert!(error.message().starts_with("starting kvm-log"), "{error}");
    // Switching on one slot was undone, or a clear fails.
    world.kvm.fail(0, 1);
    world.consumer.start(StartWith::Nothing).unwrap_err();
    assert!(!world.consumer.is_started());
    assert!(world.slots.iter().all(|s| !world.kvm.logged(s.slot)));
    assert_eq!(world.kvm.mode(), 0);
    world.kvm.calm();
    world.start(StartWith::Everything);
    world.finish().unwrap();
}

#[test]
fn one_slot_that_cannot_be_switched_off_does_not_keep_the_others_logged() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    world.add_slot(
        &SlotSpec {
            block: 0,
            first: 3,
            pages: 30,
            smm: true,
            gap: 1,
        },
        false,
    );
    world.kvm.fail_regions(1);
    world.consumer.stop().unwrap();
    let logged = world.slots.iter().filter(|s| world.kvm.logged(s.slot));
    assert_eq!(logged.count(), 1);
    assert_eq!(world.kvm.mode(), 0);
}

#[test]
fn what_was_put_back_or_found_stays_pending_after_a_stop() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    world.kvm.guest_write(world.slots[0].slot, 3);
    world.vmm_write(0, 9 * 4 + 3, 1, false);
    world.consumer.stop().unwrap();
    assert_eq!(world.consumer.pending(), Pages(2));
    let block = world.blocks[0].id;
    world.consumer.put_back(block, Pages(3), Pages(2));
    assert_eq!(world.consumer.pending(), Pages(3));
    assert_eq!(world.consumer.stats().put_back, Pages(1));
}
