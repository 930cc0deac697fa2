//! Named cases of the model: overruns, interrupted RESETs, kicks, and the cost of a sync.

use super::*;

fn simple(entries: usize, vcpus: u8) -> World {
    World::new(&Setup {
        entries,
        vcpus,
        with_bitmap: false,
        start_with: StartWith::Nothing,
    })
}

#[test]
fn each_size_of_overrun_is_noticed_told_and_survived() {
    for entries in [128, 256] {
        for stores in (2..entries as u64 * 5).step_by(13) {
            let mut world = simple(entries, 2);
            world.write(0, 1, 7, stores).unwrap();
            world.write(1, 1, 9, 1).unwrap();
            let overran = world.model.overran();
            let report = world.consumer.sync(When::Running).unwrap();
            // An exactly full ring is taken for an overrun too.
            let full = stores >= entries as u64;
            assert!(!overran || full);
            assert_eq!(world.rings.figures().overruns, u64::from(full), "{stores}");
            assert_eq!(report.warnings.len(), usize::from(full), "{stores}");
            if full {
                assert!(
                    report.warnings[0].contains("vCPU 0") && report.warnings[0].contains("overran")
                );
                assert_eq!(report.pending.0, 500 + 187 + 127);
            }
            world
                .finish()
                .unwrap_or_else(|e| panic!("{entries} entries, {stores} stores: {e}"));
        }
    }
}

#[test]
fn a_gap_that_only_a_last_look_can_find_is_found_and_told() {
    let mut world = simple(256, 1);
    // The result of a RESET that races with an overrun: three entries in use that hold no page.
    {
        let ring = world.model.ring(0);
        world.write(0, 1, 1, 3).unwrap();
        for entry in &ring.entries()[..3] {
            entry.flags.store(0, Ordering::SeqCst);
        }
    }
    world.write(0, 1, 50, 1).unwrap();
    let report = world.consumer.sync(When::Stopped).unwrap();
    assert_eq!(world.rings.figures().overruns, 1);
    assert_eq!(world.rings.figures().lost, 3);
    assert!(report.warnings[0].contains("overran"), "{report:?}");
    world.finish().unwrap();
}

#[test]
fn pages_that_an_overrun_lost_are_not_lost_when_their_slot_goes_before_the_next_sync() {
    let mut world = simple(128, 1);
    world.write(0, 1, 0, 1).unwrap();
    world.write(0, 2, 1, 300).unwrap();
    world.apply(&Op::RemoveSlot(0)).unwrap();
    world.finish().unwrap();
}

#[test]
fn an_interrupted_reset_keeps_its_last_pages_dirty_to_the_end() {
    for traced in [false, true] {
        let mut world = simple(1024, 1);
        for page in 0..100 {
            world.write(0, 1, page, 1).unwrap();
        }
        world.model.interrupt(Interrupt { after: 90, traced });
        world.consumer.sync(When::Running).unwrap();
        world.drain().unwrap();
        // The pages of the last consumed entries were not protected, so these writes leave no
        // trace.
        for page in 0..100 {
            world.write(0, 1, page, 1).unwrap();
        }
        assert_eq!(world.rings.figures().interrupted, 1);
        world
            .finish()
            .unwrap_or_else(|e| panic!("traced {traced}: {e}"));
    }
}

#[test]
fn a_page_is_handed_out_only_after_its_reset() {
    let mut world = simple(256, 1);
    world.write(0, 1, 5, 1).unwrap();
    // Until RESET has protected it, the page is still writable, and a write leaves no trace. So a
    // read of the page has to come later.
    world.model.race(Moment::Before, 0, 1, 5);
    world.consumer.sync(When::Running).unwrap();
    world.drain().unwrap();
    world.compare().unwrap();
    world.finish().unwrap();
}

#[test]
fn saying_full_many_times_for_nothing_does_not_break_a_ring() {
    let world = simple(256, 1);
    // Once before there was any exit, and once with an exit that was answered long ago.
    for filled in [0, 192] {
        for page in 0..filled {
            world.write(0, 1, page, 1).unwrap();
        }
        assert_eq!(world.model.is_full(0), filled > 0);
        for _ in 0..50 {
            world.rings.full(0).unwrap();
        }
        assert!(!world.model.broken());
        assert_eq!(world.rings.figures().overruns, 0);
    }
    assert_eq!(world.rings.full(9).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_sync_with_nothing_dirty_makes_no_reset_and_one_with_something_makes_one() {
    let world = simple(256, 3);
    let before = world.model.resets();
    world.consumer.sync(When::Running).unwrap();
    assert_eq!(world.model.resets(), before);
    for vcpu in 0..3 {
        world.write(vcpu, 1, vcpu as u64, 1).unwrap();
    }
    world.consumer.sync(When::Running).unwrap();
    assert_eq!(world.model.resets(), before + 1);
    assert_eq!(world.rings.dirtied(2).unwrap(), 1);
}

/// Counts kicks, and writes a page in each: one that a processor held back.
struct Kicked(Model, AtomicU64);

impl Vmm for Kicked {
    fn kick(&self) -> Result<()> {
        let n = self.1.fetch_add(1, Ordering::SeqCst);
        self.0.write(0, 1, 20 + n, 1);
        Ok(())
    }
}

#[test]
fn an_idle_guest_in_the_middle_of_its_first_pass_has_written_nothing() {
    let mut world = World::new(&Setup {
        entries: 1024,
        vcpus: 2,
        with_bitmap: false,
        start_with: StartWith::Everything,
    });
    let all: u64 = world.blocks.iter().map(|(_, _, pages)| pages).sum();
    world.take(9, 100).unwrap();
    for _ in 0..3 {
        let report = world.consumer.sync(When::Running).unwrap();
        assert_eq!((report.written.0, report.observed.0), (0, all));
    }
    // One taken page, and one that is still pending. Both count as writes.
    let slot = world.slots[0].slot;
    for page in [3, 300] {
        world.write(0, slot, page, 1).unwrap();
    }
    let report = world.consumer.sync(When::Running).unwrap();
    assert_eq!((report.written.0, report.found.0), (2, 1));
    let report = world.consumer.sync(When::Running).unwrap();
    assert_eq!(report.written.0, 0);
}

#[test]
fn a_running_guest_is_kicked_before_the_harvest_and_a_stopped_one_is_not() {
    let world = simple(256, 1);
    let model = world.model.clone();
    let kicked = Arc::new(Kicked(model.clone(), AtomicU64::new(0)));
    world.consumer.stop().unwrap();
    let mut log = KvmRing::new(
        Box::new(model.clone()),
        Arc::new(model.clone()),
        LogSwitch::Brant,
        Some(Arc::<Kicked>::clone(&kicked)),
        false,
    );
    log.rings().add(0, model.ring(0)).unwrap();
    let tracker = Tracker::new(Arc::clone(&world.memory), Clearing::default()).unwrap();
    assert_eq!(log.exact(), Exact::VcpusStopped);
    let _ = log.clear_at_harvest(true);
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(consumer.sync(When::Running).unwrap().found.0, 1);
    assert_eq!(consumer.sync(When::Stopped).unwrap().found.0, 0);
    assert_eq!(kicked.1.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reset_that_fails_fails_the_last_sync_and_makes_everything_dirty_in_others() {
    let mut world = simple(256, 1);
    world.write(0, 1, 3, 1).unwrap();
    world.model.fail(1, 0);
    let report = world.consumer.sync(When::Running).unwrap();
    assert_eq!(report.pending.0, 814);
    world.write(0, 1, 4, 1).unwrap();
    world.model.fail(1, 0);
    assert!(world.consumer.sync(When::Stopped).is_err());
    world.finish().unwrap();
}

#[test]
fn a_sync_of_a_tebibyte_costs_what_was_dirtied() {
    let model = Model::new(false);
    model.create_vcpu(1024);
    let memory = Arc::new(Memory::new().unwrap());
    let setup = Setup {
        entries: 1024,
        vcpus: 1,
        with_bitmap: false,
        start_with: StartWith::Nothing,
    };
    let (consumer, rings) = attach(&model, &memory, &setup, 1);
    let pages = 1u64 << 28;
    memory
        .add_block(BlockDescription {
            name: "huge".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { crate::memory::HostMemory::new(0x1000_0000_0000 as *mut u8) },
            length: Bytes(pages * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    // The model has a small slot far into it. Nothing is allocated for the rest.
    let first = pages - 5000;
    model.create(1, 0x1000_0000_0000 + first * PAGE_SIZE, 5000, 0);
    memory
        .add_slot(&SlotDescription {
            slot: 1,
            flags: 0,
            block: memory.find_block("huge").unwrap(),
            offset: Bytes(first * PAGE_SIZE),
            length: Bytes(5000 * PAGE_SIZE),
            guest_address: GuestAddress(0),
        })
        .unwrap();
    consumer.start(StartWith::Nothing).unwrap();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    for page in 0..1000 {
        while model.is_full(0) {
            rings.full(0).unwrap();
        }
        model.write(0, 1, page * 5, 1);
    }
    assert_eq!(consumer.sync(When::Running).unwrap().found.0, 1000);
    assert_eq!(consumer.sync(When::Stopped).unwrap().found.0, 0);
    // The touched part of 2 x 32 MiB of bitmaps. Other tests run at the same time.
    let touched = resident().saturating_sub(before);
    assert!(touched < 4096, "{touched} pages of memory were touched");
}

/// Leaves three entries in use that hold no page, as a RESET that races with an overrun does.
fn leave_a_gap(world: &World, page: u64, at: usize) {
    let ring = world.model.ring(0);
    world.write(0, 1, page, 3).unwrap();
    for i in at..at + 3 {
        let entry = &ring.entries()[i % ring.entries().len()];
        assert_eq!(entry.flags.swap(0, Ordering::SeqCst), 1);
    }
}

#[test]
fn a_gap_long_after_a_ring_that_was_just_full_is_news_and_loses_nothing() {
    let mut world = simple(256, 1);
    // Full to the last entry and not beyond, so there are no phantoms.
    world.write(0, 1, 7, 256).unwrap();
    world.consumer.sync(When::Running).unwrap();
    assert_eq!(world.rings.figures().recoveries, 1);
    world.drain().unwrap();
    // In order again, and seen in order.
    for page in 10..14 {
        world.write(0, 1, page, 1).unwrap();
        world.consumer.sync(When::Running).unwrap();
        world.drain().unwrap();
    }
    leave_a_gap(&world, 1, 4);
    world.write(0, 1, 50, 1).unwrap();
    let report = world.consumer.sync(When::Stopped).unwrap();
    assert_eq!(world.rings.figures().overruns, 2);
    assert!(report.warnings[0].contains("overran"), "{report:?}");
    world.finish().unwrap();
}

#[test]
fn entries_of_a_disturbed_reset_that_are_pushed_onto_at_once_leave_no_page_unprotected() {
    for more in [1, 66, 67, 192, 193, 194, 195, 196, 220, 250] {
        let mut world = simple(256, 1);
        for page in 0..190 {
            world.write(0, 1, page, 1).unwrap();
        }
        // All entries are consumed, and the last batch is not protected. Before that is noticed,
        // the guest goes on, and comes round to the entries that named those pages. (Its stores are
        // emulated, so nothing checks whether the ring is full.)
        world.model.interrupt(Interrupt {
            after: 190,
            traced: true,
        });
        for page in 0..more {
            world.model.race(Moment::After, 0, 1, 200 + page);
        }
        world.consumer.sync(When::Running).unwrap();
        world.model.no_races();
        world.consumer.sync(When::Running).unwrap();
        world.drain().unwrap();
        for page in 0..190 {
            world.write(0, 1, page, 1).unwrap();
        }
        world
            .finish()
            .unwrap_or_else(|e| panic!("{more} pages more: {e}"));
    }
}

/// Fails at the beginning of a thread.
struct Unannounced(AtomicU64);

impl Vmm for Unannounced {
    fn thread_start(&self, _: crate::runtime::thread::Role) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("no seccomp filter");
    }
}

#[test]
fn each_thread_that_makes_rounds_is_announced_and_what_came_of_that_is_told() {
    let world = simple(256, 1);
    world.consumer.stop().unwrap();
    let vmm = Arc::new(Unannounced(AtomicU64::new(0)));
    let log = KvmRing::new(
        Box::new(world.model.clone()),
        Arc::new(world.model.clone()),
        LogSwitch::Brant,
        Some(Arc::<Unannounced>::clone(&vmm)),
        false,
    );
    let rings = log.rings();
    rings.add(0, world.model.ring(0)).unwrap();
    // No page is tracked yet.
    rings.full(0).unwrap();
    assert_eq!(vmm.0.load(Ordering::SeqCst), 1);
    let tracker = Tracker::new(Arc::clone(&world.memory), Clearing::default()).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(vmm.0.load(Ordering::SeqCst), 2);
    let report = consumer.sync(When::Running).unwrap();
    assert!(
        report.warnings.iter().any(|w| w.contains("no seccomp")),
        "{report:?}"
    );
}

#[test]
fn two_trackers_in_turn_find_what_is_written_at_each_sync_and_call_it_no_overrun() {
    let mut world = simple(256, 1);
    for round in 0..6 {
        for page in 0..30 {
            world.write(0, 1, round * 30 + page, 1).unwrap();
        }
        let report = world.consumer.sync(When::Running).unwrap();
        assert_eq!(report.found.0, 30, "round {round}: {report:?}");
        assert!(report.warnings.is_empty(), "{report:?}");
        world.consumer.stop().unwrap();
        // Another tracker uses the rings for a while. The first one stays.
        let (other, _) = attach(&world.model, &world.memory, &world.setup, 1);
        other.start(StartWith::Nothing).unwrap();
        for page in 0..7 {
            world.write(0, 1, 400 + page, 1).unwrap();
        }
        assert_eq!(other.sync(When::Running).unwrap().found.0, 7);
        other.stop().unwrap();
        world.start(StartWith::Nothing);
    }
    assert_eq!(world.rings.figures().overruns, 0);
    world.finish().unwrap();
}

#[test]
fn slots_that_somebody_left_logged_with_nothing_protected_lose_nothing() {
    let mut world = simple(256, 1);
    world.consumer.stop().unwrap();
    let setup = world.setup.clone();
    // In initially-set mode every page stays writable, and switching on again changes nothing.
    for (slot, first, pages, block) in [(1, 0, 500, 0), (2, 513, 187, 0), (3, 3, 127, 1)] {
        let mut model = world.model.clone();
        model.set_mode(3);
        model
            .set_region(&crate::sys::kvm::UserMemoryRegion {
                slot,
                flags: crate::sys::kvm::MEM_LOG_DIRTY_PAGES,
                guest_address: u64::from(slot) << 30,
                size: pages * PAGE_SIZE,
                host_address: world.blocks[block].1 + first * PAGE_SIZE,
            })
            .unwrap();
    }
    let (consumer, rings) = attach(&world.model, &world.memory, &setup, 1);
    (world.consumer, world.rings) = (consumer, rings);
    world.start(StartWith::Nothing);
    for page in 0..100 {
        world.write(0, 1, page, 1).unwrap();
    }
    assert_eq!(world.consumer.sync(When::Running).unwrap().found.0, 100);
    world.finish().unwrap();
}

#[test]
fn a_reset_that_stops_at_an_entry_pushed_onto_is_told_at_once_and_not_in_the_last_sync() {
    let mut world = simple(256, 1);
    for page in 0..190 {
        world.write(0, 1, page, 1).unwrap();
    }
    // Between harvest and RESET: onto the first harvested entry.
    for page in 200..280 {
        world.model.race(Moment::Before, 0, 1, page);
    }
    let report = world.consumer.sync(When::Running).unwrap();
    assert!(world.model.overran());
    assert_eq!(world.rings.figures().overruns, 1);
    assert!(report.warnings[0].contains("overran"), "{report:?}");
    world.finish().unwrap();
}
