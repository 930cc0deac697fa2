//! Which calls wait for a sync and which do not: a tracker with a log whose harvest lasts as long
//! as the test wants.

use crate::dirty::testing::Guest;
use crate::dirty::tracker::{StartWith, Tracker};
use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Sink, When};
use crate::error::Result;
use crate::memory::Map;
use crate::units::Pages;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(10);

/// Ends the syncing thread, also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reports how many blocks each harvest sees, and returns when it is told to.
struct Slow(Sender<usize>, Receiver<()>);

impl DirtyLog for Slow {
    fn kind(&self) -> LogKind {
        LogKind::Vfio
    }
    fn start(&mut self, _map: &Map) -> Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _map: &Map) -> Result<()> {
        Ok(())
    }
    fn harvest(&mut self, map: &Map, _: When, _sink: &mut dyn Sink) -> Result<Harvested> {
        // At the end of the test nobody receives any more.
        if self.0.send(map.blocks().len()).is_ok() {
            let _ = self.1.recv_timeout(LONG);
        }
        Ok(Harvested::Complete)
    }
    fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
    fn map_changes(&mut self, _old: &Map, _new: &Map, _sink: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn whoever_asks_for_figures_does_not_wait_for_a_sync() {
    let guest = Guest::new(100);
    guest.block("ram", 100);
    let (begun, harvests) = channel();
    let (go_on, told) = channel();
    let consumer = guest.tracker(Box::new(Slow(begun, told)));
    consumer.start(StartWith::Everything).unwrap();
    let tracker: Arc<Tracker> = Arc::clone(&consumer);
    std::thread::scope(|s| {
        s.spawn(|| consumer.sync(When::Running).unwrap());
        harvests.recv_timeout(LONG).unwrap();
        // The sync holds the lock, and goes on only after this.
        assert!(tracker.inner.try_lock().is_none());
        assert_eq!(consumer.pending(), Pages(100));
        assert_eq!(consumer.to_read(), Pages(100));
        assert!(consumer.is_started());
        assert_eq!(consumer.stats().syncs, 0);
        assert!(tracker.is_started());
        assert_eq!(tracker.stats().syncs, 0);
        assert_eq!(tracker.stray_marks(), 0);
        assert!(tracker.heap_bytes() > 0);
        assert!(format!("{tracker:?}").contains("started: true"));
        go_on.send(()).unwrap();
    });
    assert_eq!(tracker.stats().syncs, 1);
    drop(harvests);
}

#[test]
fn a_block_is_added_and_removed_between_two_syncs_that_follow_one_another() {
    let guest = Guest::new(1000);
    guest.block("ram", 10);
    let (begun, harvests) = channel();
    let (go_on, told) = channel();
    let consumer = guest.tracker(Box::new(Slow(begun, told)));
    consumer.start(StartWith::Everything).unwrap();
    let stop = AtomicBool::new(false);
    let next = || harvests.recv_timeout(LONG).unwrap();
    let until_somebody_waits = || {
        let begun = Instant::now();
        while consumer.inner.waiting() == 0 {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
    };
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                consumer.sync(When::Running).unwrap();
            }
        });
        let stops = Stops(&stop);
        for _ in 0..50 {
            assert_eq!(next(), 1);
            let change = s.spawn(|| guest.memory.add_block(guest.describe("more", 10)).unwrap());
            until_somebody_waits();
            go_on.send(()).unwrap();
            // The very next sync sees the block, so the addition came in between.
            assert_eq!(next(), 2);
            change.join().unwrap();
            let change = s.spawn(|| {
                guest
                    .memory
                    .remove_block(guest.memory.find_block("more").unwrap())
                    .unwrap()
            });
            until_somebody_waits();
            go_on.send(()).unwrap();
            assert_eq!(next(), 1);
            change.join().unwrap();
            go_on.send(()).unwrap();
        }
        drop((stops, go_on));
    });
    drop(harvests);
}
