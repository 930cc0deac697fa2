//! Changes of the map that an observer refuses: pending pages stay, and a log that cannot be led
//! back loses no write.

use super::*;
use crate::dirty::consumer::Consumer;
use crate::dirty::testing::{sync_all, take_all, Guest};
use crate::dirty::tracker::StartWith;
use crate::dirty::{DirtyLog, Extent, Harvested, Initial, Origin, Sink, When};
use crate::error::{Error, Kind};
use crate::memory::{Map, MapObserver};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Weak};

/// Refuses changes when told to, and does something in the middle of each.
struct Refuses(AtomicBool, Mutex<Option<Box<dyn Fn() + Send>>>);

impl MapObserver for Refuses {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        if let Some(meanwhile) = &*self.1.lock().unwrap() {
            meanwhile();
        }
        match self.0.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Refused, "not now")),
            false => Ok(()),
        }
    }
}

fn refuser(guest: &Guest) -> Arc<Refuses> {
    let refuses = Arc::new(Refuses(AtomicBool::new(true), Mutex::default()));
    let weak: Weak<dyn MapObserver> = {
        let weak: Weak<Refuses> = Arc::downgrade(&refuses);
        weak
    };
    guest.memory.observe(weak);
    refuses
}

fn refused(guest: &Guest, block: BlockId) {
    let error = guest.memory.remove_block(block).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
}

/// A log that watches only the blocks of the map that it was last led to. When told to, it fails to
/// be led back.
#[derive(Clone, Default)]
struct Watches {
    blocks: Arc<Mutex<BTreeSet<BlockId>>>,
    written: Arc<Mutex<Vec<(BlockId, u64)>>>,
    /// Fails to watch one more block.
    fails: Arc<AtomicBool>,
}

impl Watches {
    fn write(&self, block: BlockId, page: u64) {
        if self.blocks.lock().unwrap().contains(&block) {
            self.written.lock().unwrap().push((block, page));
        }
    }
}

impl DirtyLog for Watches {
    fn start(&mut self, map: &Map) -> Result<Initial> {
        *self.blocks.lock().unwrap() = map.blocks().into_iter().map(|b| b.id()).collect();
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
        Ok(())
    }
    fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
        for (block, page) in self.written.lock().unwrap().drain(..) {
            let page = Pages(page);
            sink.bitmap(Origin::Block { block, page }, &[1], Pages(1));
        }
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for block in map.blocks() {
            each(Extent::all_of(block));
        }
    }
    fn map_changes(&mut self, old: &Map, new: &Map, _: &mut dyn Sink) -> Result<()> {
        let came = new.blocks_not_in(old)?;
        if !came.is_empty() && self.fails.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::NoMemory, "no room for a block"));
        }
        let mut blocks = self.blocks.lock().unwrap();
        for block in old.blocks_not_in(new)? {
            blocks.remove(&block.id());
        }
        blocks.extend(came.iter().map(|b| b.id()));
        Ok(())
    }
}

/// A guest of two blocks of 100 pages, both watched by `log`, with no page pending.
fn watched(log: &Watches) -> (Guest, Consumer, [BlockId; 2]) {
    let guest = Guest::new(1000);
    let blocks = [guest.block("a", 100), guest.block("b", 100)];
    let consumer = guest.tracker(Box::new(log.clone()));
    consumer.start(StartWith::Nothing).unwrap();
    (guest, consumer, blocks)
}

#[test]
fn a_refused_removal_leaves_a_stopped_consumer_what_it_has_pending() {
    let (guest, consumer, [a, b]) = watched(&Watches::default());
    let stopped = consumer.consumer();
    stopped.start(StartWith::Nothing).unwrap();
    consumer.mark_block(a, Bytes(5 * PAGE_SIZE), 1);
    consumer.mark_block(a, Bytes(70 * PAGE_SIZE), 1);
    consumer.mark_block(b, Bytes(0), 1);
    stopped.stop().unwrap();
    let refuses = refuser(&guest);
    let has = [(a.0, 5), (a.0, 70), (b.0, 0)];
    for started in [true, false] {
        if !started {
            consumer.stop().unwrap();
        }
        refused(&guest, a);
        assert_eq!(stopped.pending(), Pages(3));
        // Taken before, and put back in the middle of the next refusal.
        let taken = stopped
            .take(&mut Default::default(), usize::MAX, Pages(u64::MAX))
            .unwrap();
        let mut taken = Some(taken).map(|mut taken| {
            taken.unpin();
            taken
        });
        let of: Arc<Mutex<_>> = Arc::new(Mutex::new(taken.take()));
        *refuses.1.lock().unwrap() = Some(Box::new(move || drop(of.lock().unwrap().take())));
        refused(&guest, a);
        *refuses.1.lock().unwrap() = None;
        assert_eq!(take_all(&stopped), has.into());
        for (block, page) in has {
            stopped.put_back(BlockId(block), Pages(page), Pages(1));
        }
    }
    refuses.0.store(false, Ordering::SeqCst);
    guest.memory.remove_block(a).unwrap();
    assert_eq!(stopped.pending(), Pages(1));
}

#[test]
fn a_consumer_that_starts_or_ends_in_the_middle_of_a_refused_removal_has_all_its_blocks() {
    let log = Watches::default();
    let (guest, consumer, [a, _]) = watched(&log);
    let (second, third) = (Arc::new(consumer.consumer()), consumer.consumer());
    third.start(StartWith::Everything).unwrap();
    let refuses = refuser(&guest);
    let (starts, ends) = (Arc::clone(&second), Mutex::new(Some(third)));
    *refuses.1.lock().unwrap() = Some(Box::new(move || {
        let _ = starts.start(StartWith::Nothing);
        drop(ends.lock().unwrap().take());
    }));
    refused(&guest, a);
    take_all(&second);
    log.write(a, 9);
    assert_eq!(sync_all(&second), [(a.0, 9)].into());
    // The third consumer's place is free, and its pending pages are gone.
    let next = consumer.consumer();
    assert_eq!(next.pending(), Pages(0));
    next.start(StartWith::Nothing).unwrap();
    assert_eq!(take_all(&next), BTreeSet::new());
}

#[test]
fn a_log_that_could_not_be_led_back_has_everything_count_as_dirty_until_it_is() {
    let log = Watches::default();
    let (guest, consumer, [a, b]) = watched(&log);
    let refuses = refuser(&guest);
    log.fails.store(true, Ordering::SeqCst);
    refused(&guest, a);
    take_all(&consumer);
    // Writes that the log does not see are not lost, however often it is asked.
    for _ in 0..2 {
        log.write(a, 3);
        let report = consumer.sync(When::Running).unwrap();
        assert!(report.failed);
        let told = &report.warnings[0];
        assert!(
            told.contains("other") && told.contains("no room for a block"),
            "{told}"
        );
        assert_eq!(take_all(&consumer).len(), 200);
    }
    let error = consumer.sync(When::Stopped).unwrap_err();
    assert_eq!(error.kind(), Kind::NoMemory, "{error}");
    take_all(&consumer);
    // The next sync that can leads the log back, and the sync after that is exact.
    log.fails.store(false, Ordering::SeqCst);
    log.write(a, 4);
    let report = consumer.sync(When::Stopped).unwrap();
    assert!(
        report.failed && report.warnings[0].contains("now it has"),
        "{report:?}"
    );
    assert_eq!(take_all(&consumer).len(), 200);
    log.write(a, 5);
    log.write(b, 6);
    assert_eq!(sync_all(&consumer), [(a.0, 5), (b.0, 6)].into());
    // A change that succeeds does the same.
    log.fails.store(true, Ordering::SeqCst);
    refused(&guest, a);
    take_all(&consumer);
    log.fails.store(false, Ordering::SeqCst);
    refuses.0.store(false, Ordering::SeqCst);
    let c = guest.block("c", 50);
    assert_eq!(take_all(&consumer).len(), 250);
    log.write(a, 7);
    log.write(c, 8);
    assert_eq!(sync_all(&consumer), [(a.0, 7), (c.0, 8)].into());
}
