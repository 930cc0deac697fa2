//! The removal of a block with taken pages. It is refused at once, by name, while a reader uses
//! them. It waits while a migration has them. It never happens in the middle of a use.

use super::*;
use crate::memory::{BlockPin, MapObserver, PinRecall};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::sync::Weak;
use std::time::Duration;

const PAGES: u64 = 1200;
const LIMIT: Duration = Duration::from_secs(30);

/// Counts the changes of the map that it is asked about.
#[derive(Clone, Default)]
struct Counts(Arc<AtomicUsize>);

impl DirtyLog for Counts {
    fn kind(&self) -> LogKind {
        LogKind::Userfault
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
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A guest of blocks `a` and `b`, and a consumer with all pages pending.
fn guest() -> (testing::Guest, Consumer, Counts) {
    let guest = testing::Guest::new(64 * PAGES as usize);
    guest.block("a", PAGES);
    guest.block("b", PAGES);
    let log = Counts::default();
    let consumer = guest.tracker(Box::new(log.clone()));
    consumer.start(StartWith::Everything).unwrap();
    (guest, consumer, log)
}

fn take(consumer: &Consumer, pages: u64) -> Taken {
    consumer
        .take(&mut Cursor::default(), usize::MAX, Pages(pages))
        .unwrap()
}

fn refused(guest: &testing::Guest, block: &str) -> String {
    let error = guest
        .memory
        .remove_block(guest.memory.find_block(block).unwrap())
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    error.to_string()
}

#[test]
fn a_block_is_not_removed_while_what_was_taken_of_it_is_in_use_and_nothing_changes() {
    let (guest, first, log) = guest();
    let second = first.consumer();
    second.start(StartWith::Everything).unwrap();
    guest.slot("a", 0, PAGES, 0).unwrap();
    let taken = take(&first, 700);
    assert_eq!(taken.blocks().count(), 1);
    let before = (
        guest.memory.map().generation(),
        log.0.load(Ordering::SeqCst),
        first.pending(),
        second.pending(),
    );
    let said = refused(&guest, "a");
    assert_eq!(
        said,
        "block `a` is not removed: consumer 1 of the tracker has taken pages of it and uses them \
         until what it took is delivered or dropped"
    );
    let after = (
        guest.memory.map().generation(),
        log.0.load(Ordering::SeqCst),
        first.pending(),
        second.pending(),
    );
    assert_eq!(after, before);
    // No consumer has a page of the other block.
    guest
        .memory
        .remove_block(guest.memory.find_block("b").unwrap())
        .unwrap();
    // Each consumer that has pages is named.
    let also = take(&second, 1);
    let said = refused(&guest, "a");
    assert!(
        said.contains("consumer 1 of") && said.contains("consumer 2 of"),
        "{said}"
    );
    drop(taken);
    let said = refused(&guest, "a");
    assert!(
        !said.contains("consumer 1 of") && said.contains("consumer 2 of"),
        "{said}"
    );
    also.delivered();
    guest
        .memory
        .remove_block(guest.memory.find_block("a").unwrap())
        .unwrap();
    for consumer in [&first, &second] {
        assert_eq!(consumer.pending(), Pages(0));
        // For a block that is gone nothing is put back.
        consumer.put_back(BlockId(0), Pages(3), Pages(5));
        assert_eq!(consumer.pending(), Pages(0));
    }
}

#[test]
fn a_part_of_what_was_taken_and_a_copy_of_its_pin_are_uses_too() {
    let (guest, consumer, _) = guest();
    let mut taken = take(&consumer, u64::MAX);
    let part = taken.split_off(|_, run| run.block() == BlockId(0)).unwrap();
    taken.delivered();
    guest
        .memory
        .remove_block(guest.memory.find_block("b").unwrap())
        .unwrap();
    refused(&guest, "a");
    let pin = BlockPin::clone(part.runs().next().unwrap().block);
    part.delivered();
    refused(&guest, "a");
    drop(pin);
    guest
        .memory
        .remove_block(guest.memory.find_block("a").unwrap())
        .unwrap();
    // Pages on their way that are no longer read are no use of the block.
    guest.block("c", PAGES);
    let mut taken = take(&consumer, u64::MAX);
    refused(&guest, "c");
    taken.unpin();
    guest
        .memory
        .remove_block(guest.memory.find_block("c").unwrap())
        .unwrap();
}

#[test]
fn two_trackers_of_a_guest_are_asked_before_either_changes() {
    let (guest, first, log) = guest();
    let other = guest.tracker(Box::new(Counts::default()));
    other.start(StartWith::Nothing).unwrap();
    other.mark_block(BlockId(0), Bytes(0), 1);
    other.sync(When::Running).unwrap();
    let taken = take(&other, 1);
    drop(first.stop());
    let changes = log.0.load(Ordering::SeqCst);
    refused(&guest, "a");
    assert_eq!(log.0.load(Ordering::SeqCst), changes);
    assert_eq!(first.pending(), Pages(2 * PAGES));
    drop(taken);
    guest
        .memory
        .remove_block(guest.memory.find_block("a").unwrap())
        .unwrap();
}

/// A migration's thread is asked to let go, and the removal waits for it.
#[test]
fn what_a_migration_takes_is_recalled_and_refuses_no_removal() {
    let (guest, consumer, _) = guest();
    let recall = PinRecall::of(&guest.memory).unwrap();
    let taken = consumer
        .take_recallable(&mut Cursor::default(), usize::MAX, Pages(600))
        .unwrap();
    let memory = Arc::clone(&guest.memory);
    let (done, removed) = mpsc::channel();
    let remover = std::thread::spawn(move || {
        done.send(memory.remove_block(memory.find_block("a").unwrap()))
            .unwrap();
    });
    while !recall.is_raised() {
        std::thread::yield_now();
    }
    assert!(removed.try_recv().is_err(), "waited for nobody");
    drop(taken);
    removed.recv_timeout(LIMIT).unwrap().unwrap();
    remover.join().unwrap();
}

/// Takes pages in the middle of a removal, and then refuses the removal.
struct TakesThenRefuses {
    consumer: Consumer,
    taken: std::sync::Mutex<Option<Taken>>,
}

impl MapObserver for TakesThenRefuses {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        *self.taken.lock().unwrap() = Some(take(&self.consumer, u64::MAX));
        Err(Error::new(Kind::Refused, "not today"))
    }
}

#[test]
fn a_walk_passes_over_a_block_that_is_being_removed_and_comes_to_it_if_it_stays() {
    let (guest, consumer, _) = guest();
    let observer = Arc::new(TakesThenRefuses {
        consumer,
        taken: Default::default(),
    });
    let weak: Weak<dyn MapObserver> = Arc::downgrade(&observer) as Weak<dyn MapObserver>;
    guest.memory.observe(weak);
    let error = guest
        .memory
        .remove_block(guest.memory.find_block("a").unwrap())
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    let taken = observer.taken.lock().unwrap().take().unwrap();
    let blocks: Vec<_> = taken.blocks().map(|b| b.name().to_owned()).collect();
    assert_eq!(blocks, ["b"]);
    // All pages that the tracker dropped when it agreed are pending again.
    let rest = take(&observer.consumer, u64::MAX);
    assert_eq!(rest.pages(), Pages(PAGES));
    assert_eq!(rest.blocks().next().unwrap().name(), "a");
}

/// Readers on threads of their own, and a thread that plugs and unplugs. No memory is unmapped
/// while it is read, no removal waits for a reader, and each succeeds when nobody reads.
#[test]
fn blocks_come_and_go_beside_readers_and_none_goes_while_it_is_read() {
    const ROUNDS: usize = 60;
    let (guest, first, _) = guest();
    let tracker = Arc::clone(first.tracker());
    let read: Vec<AtomicUsize> = (0..ROUNDS + 2).map(|_| AtomicUsize::new(0)).collect();
    let stop = AtomicBool::new(false);
    let busy = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for n in 0..2 {
            let (tracker, read, stop) = (&tracker, &read, &stop);
            s.spawn(move || {
                let mut consumer = tracker.consumer();
                consumer.start(StartWith::Nothing).unwrap();
                let mut cursor = Cursor::default();
                let mut rounds = 0;
                while !stop.load(Ordering::SeqCst) {
                    rounds += 1;
                    let taken = consumer.take(&mut cursor, 3, Pages(100)).unwrap();
                    for block in taken.blocks() {
                        read[block.id().index()].fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::yield_now();
                    for block in taken.blocks() {
                        read[block.id().index()].fetch_sub(1, Ordering::SeqCst);
                    }
                    match rounds % 3 {
                        0 => drop(taken),
                        _ => taken.delivered(),
                    }
                    if rounds % 50 == n {
                        // A consumer that ends while another thread removes the block.
                        consumer = tracker.consumer();
                        consumer.start(StartWith::Nothing).unwrap();
                    }
                }
            });
        }
        let end = std::time::Instant::now() + LIMIT;
        for round in 0..ROUNDS {
            let name = format!("dimm {round}");
            let id = guest.block(&name, 700);
            loop {
                assert!(std::time::Instant::now() < end, "a reader never lets go");
                match guest
                    .memory
                    .remove_block(guest.memory.find_block(&name).unwrap())
                {
                    Ok(()) => break,
                    Err(e) => assert_eq!(e.kind(), Kind::Busy, "{e}"),
                }
                busy.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
            assert_eq!(
                read[id.index()].load(Ordering::SeqCst),
                0,
                "unmapped under a reader"
            );
        }
        stop.store(true, Ordering::SeqCst);
    });
    println!("{} removals were refused", busy.load(Ordering::SeqCst));
}
