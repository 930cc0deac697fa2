//! A block that is left out costs no log anything, and comes back to whoever needs it.

use super::*;
use crate::dirty::testing::{sync_all, take_all, Guest};
use crate::dirty::tracker::StartWith;
use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::memory::Map;
use crate::units::{Bytes, Pages};
use std::collections::BTreeSet;
use std::sync::Mutex;

/// A log that notes the blocks of each map that it is led by, and finds nothing.
struct Watches(Arc<Mutex<Vec<u32>>>);

impl Watches {
    fn note(&self, map: &Map) {
        let ids = map.blocks().iter().map(|block| block.id().0);
        *self.0.lock().unwrap() = ids.collect();
    }
}

impl DirtyLog for Watches {
    fn start(&mut self, map: &Map) -> Result<Initial> {
        self.note(map);
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
        self.0.lock().unwrap().clear();
        Ok(())
    }
    fn harvest(&mut self, map: &Map, _: When, _: &mut dyn Sink) -> Result<Harvested> {
        self.note(map);
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        map.blocks().iter().for_each(|b| each(Extent::all_of(b)));
    }
    fn map_changes(&mut self, _: &Map, new: &Map, _: &mut dyn Sink) -> Result<()> {
        self.note(new);
        Ok(())
    }
}

fn pages(block: BlockId, range: std::ops::Range<u64>) -> BTreeSet<(u32, u64)> {
    range.map(|page| (block.0, page)).collect()
}

struct Setup {
    guest: Guest,
    watched: Arc<Mutex<Vec<u32>>>,
    consumer: Consumer,
    shared: BlockId,
    copied: BlockId,
}

fn setup() -> Setup {
    let guest = Guest::new(400);
    let (shared, copied) = (guest.block("shared", 100), guest.block("copied", 100));
    guest.slot("shared", 0, 100, 0).unwrap();
    guest.slot("copied", 0, 100, 100).unwrap();
    let watched = Arc::default();
    let consumer = guest.tracker(Box::new(Watches(Arc::clone(&watched))));
    consumer.leave_out(vec![shared]);
    Setup {
        guest,
        watched,
        consumer,
        shared,
        copied,
    }
}

impl Setup {
    fn watched(&self) -> Vec<u32> {
        self.watched.lock().unwrap().clone()
    }

    fn mark(&self, block: BlockId) {
        self.consumer.mark_block(block, Bytes(5 * 4096), 1);
    }
}

#[test]
fn no_log_watches_a_block_that_is_left_out_and_no_page_of_it_is_pending() {
    let s = setup();
    s.consumer.start(StartWith::Everything).unwrap();
    assert_eq!(s.watched(), [s.copied.0]);
    assert_eq!(s.consumer.pending(), Pages(100));
    assert_eq!(
        s.consumer.pending_in(&s.guest.memory.map()),
        Some(Pages(100))
    );
    assert_eq!(take_all(&s.consumer), pages(s.copied, 0..100));
    s.mark(s.shared);
    s.mark(s.copied);
    // Marks of memory that nobody wants to hear of are no mistakes of the VMM's.
    s.consumer.mark_guest(vm_memory::GuestAddress(7 * 4096), 1);
    assert_eq!(sync_all(&s.consumer), pages(s.copied, 5..6));
    assert_eq!(s.consumer.stray_marks(), 0);
    assert_eq!(s.watched(), [s.copied.0]);
    s.consumer.mark_all();
    assert_eq!(s.consumer.pending(), Pages(100));
    // A block that is added is watched.
    let added = s.guest.block("added", 10);
    assert_eq!(s.watched(), [s.copied.0, added.0]);
    assert_eq!(s.consumer.pending(), Pages(110));
    // A block that is left out may go.
    s.guest.memory.remove_block(s.shared).unwrap();
    assert_eq!(s.watched(), [s.copied.0, added.0]);
    s.consumer.stop().unwrap();
}

#[test]
fn a_consumer_that_leaves_out_less_has_the_logs_watch_the_block_again() {
    for with in [StartWith::Everything, StartWith::Nothing] {
        let s = setup();
        s.consumer.start(StartWith::Everything).unwrap();
        let backup = s.consumer.tracker().consumer();
        backup.start(with).unwrap();
        assert_eq!(s.watched(), [s.shared.0, s.copied.0]);
        let begun = match with {
            StartWith::Everything => 200,
            StartWith::Nothing => 0,
        };
        assert_eq!(backup.pending(), Pages(begun));
        take_all(&backup);
        take_all(&s.consumer);
        s.mark(s.shared);
        s.mark(s.copied);
        assert_eq!(
            sync_all(&backup),
            pages(s.shared, 5..6)
                .union(&pages(s.copied, 5..6))
                .copied()
                .collect()
        );
        assert_eq!(take_all(&s.consumer), pages(s.copied, 5..6));
    }
}

#[test]
fn beside_others_a_block_is_left_out_of_one_consumer_only() {
    let s = setup();
    let backup = s.consumer.tracker().consumer();
    backup.start(StartWith::Everything).unwrap();
    s.consumer.start(StartWith::Everything).unwrap();
    assert_eq!(s.watched(), [s.shared.0, s.copied.0]);
    assert_eq!(
        (backup.pending(), s.consumer.pending()),
        (Pages(200), Pages(100))
    );
}

#[test]
fn what_was_left_out_is_pending_again_when_it_was_not_delivered() {
    for dirty in [true, false] {
        for stopped in [true, false] {
            let s = setup();
            s.consumer.start(StartWith::Everything).unwrap();
            take_all(&s.consumer);
            if stopped {
                s.consumer.stop().unwrap();
            }
            s.consumer.take_in(dirty).unwrap();
            let expected = match dirty {
                true => pages(s.shared, 0..100),
                false => BTreeSet::new(),
            };
            assert_eq!(take_all(&s.consumer), expected, "{dirty} {stopped}");
            if !stopped {
                assert_eq!(s.watched(), [s.shared.0, s.copied.0]);
                s.mark(s.shared);
                assert_eq!(sync_all(&s.consumer), pages(s.shared, 5..6));
            }
        }
    }
}

#[test]
fn after_a_stop_the_logs_start_with_every_block() {
    let s = setup();
    s.consumer.start(StartWith::Everything).unwrap();
    s.consumer.stop().unwrap();
    s.consumer.leave_out(Vec::new());
    s.consumer.start(StartWith::Everything).unwrap();
    assert_eq!(s.watched(), [s.shared.0, s.copied.0]);
    assert_eq!(s.consumer.pending(), Pages(200));
}

/// Refuses every change of the map but its own start.
struct Refuses;

impl crate::memory::MapObserver for Refuses {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        Err(Error::new(Kind::State, "refused"))
    }
}

#[test]
fn a_refused_change_leads_back_to_the_map_without_the_block() {
    let s = setup();
    s.consumer.start(StartWith::Everything).unwrap();
    take_all(&s.consumer);
    let refuses: Arc<dyn crate::memory::MapObserver> = Arc::new(Refuses);
    s.guest.memory.observe(Arc::downgrade(&refuses));
    for gone in [s.shared, s.copied] {
        s.guest.memory.remove_block(gone).unwrap_err();
        assert_eq!(s.watched(), [s.copied.0]);
    }
    drop(refuses);
    // The block that was set aside and came back counts as written.
    assert_eq!(sync_all(&s.consumer), pages(s.copied, 0..100));
    s.guest.memory.remove_block(s.copied).unwrap();
    assert_eq!(s.watched(), Vec::<u32>::new());
}

/// A log of guest addresses, as vhost and vhost-user back ends share one: it knows no blocks, and each
/// harvest finds every page of the guest.
struct Addresses;

impl DirtyLog for Addresses {
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
        let start = Origin::Guest(vm_memory::GuestAddress(0));
        sink.bitmap(start, &[u64::MAX; 4], Pages(200));
        sink.list(start, &[3, 103]);
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        map.blocks().iter().for_each(|b| each(Extent::all_of(b)));
    }
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_back_end_writes_to_a_block_that_is_left_out_is_nobodys_page() {
    let s = setup();
    s.consumer.tracker().add_log(Box::new(Addresses)).unwrap();
    s.consumer.start(StartWith::Everything).unwrap();
    take_all(&s.consumer);
    let report = s.consumer.sync(When::Stopped).unwrap();
    assert!(report.warnings.is_empty() && !report.failed, "{report:?}");
    assert_eq!(report.found, Pages(100));
    assert_eq!(take_all(&s.consumer), pages(s.copied, 0..100));
    assert_eq!(s.consumer.stray_marks(), 0);
}
