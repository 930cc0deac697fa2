//! The promises on taken pages: none is lost whatever happens to them, and they tell whether they
//! are handed out for the first time.

use super::*;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::units::Pages;
use std::panic::{catch_unwind, AssertUnwindSafe};

const PAGES: u64 = 2000;

/// A guest of two blocks, with all pages pending.
fn guest() -> (Guest, Consumer) {
    let guest = Guest::new(2 * PAGES as usize);
    guest.block("a", PAGES);
    guest.block("b", PAGES);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    (guest, consumer)
}

fn take(consumer: &Consumer, pages: u64) -> Taken {
    consumer
        .take(&mut Cursor::default(), usize::MAX, Pages(pages))
        .unwrap()
}

/// The runs of a block: first page, number of pages, and whether it is the first time.
fn runs(taken: &Taken, block: u32) -> Vec<(u64, u64, bool)> {
    let runs = taken.runs().filter(|run| run.block.id().0 == block);
    runs.map(|r| (r.pages.first().0, r.pages.count().0, r.first_time))
        .collect()
}

#[test]
fn only_what_is_delivered_is_gone_from_pending() {
    let (_guest, consumer) = guest();
    let all = consumer.pending();
    drop(take(&consumer, 700));
    assert_eq!(consumer.pending(), all);
    assert_eq!(consumer.stats().put_back, Pages(700));
    let taken = take(&consumer, 700);
    assert_eq!(consumer.pending(), Pages(all.0 - 700));
    let broken = catch_unwind(AssertUnwindSafe(|| {
        let _taken = taken;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(broken.is_err());
    assert_eq!(consumer.pending(), all);
    take(&consumer, 700).delivered();
    assert_eq!(consumer.pending(), Pages(all.0 - 700));
    assert_eq!(consumer.stats().put_back, Pages(1400));
}

#[test]
fn each_half_of_a_split_is_delivered_or_put_back_by_itself() {
    let (_guest, consumer) = guest();
    let all = consumer.pending();
    let mut taken = take(&consumer, u64::MAX);
    assert_eq!((taken.run_count(), taken.pages()), (8, all));
    // By stretch, as pages are assigned to lanes.
    let odd = taken
        .split_off(|_, run| run.first().0 / 512 % 2 == 1)
        .unwrap();
    assert_eq!(runs(&odd, 0), [(512, 512, true), (1536, 464, true)]);
    assert_eq!(runs(&taken, 1), [(0, 512, true), (1024, 512, true)]);
    assert_eq!(odd.blocks().count(), 2);
    assert_eq!(odd.pages().0 + taken.pages().0, all.0);
    odd.delivered();
    assert_eq!(consumer.pending(), Pages(0));
    drop(taken);
    assert_eq!(consumer.pending(), Pages(4 * 512));
    // A predicate that panics loses no page either.
    let mut taken = take(&consumer, u64::MAX);
    let broken = catch_unwind(AssertUnwindSafe(|| {
        let mut left = 3;
        taken.split_off(|_, _| {
            left -= 1;
            assert!(left > 0, "planted");
            left % 2 == 0
        })
    }));
    assert!(broken.is_err());
    drop(taken);
    assert_eq!(consumer.pending(), Pages(4 * 512));
}

#[test]
fn a_block_is_removed_while_its_pages_are_on_their_way() {
    let (guest, consumer) = guest();
    let mut taken = take(&consumer, u64::MAX);
    assert_eq!(taken.blocks().count(), 2);
    taken.unpin();
    assert_eq!(taken.runs().count(), 0);
    assert_eq!(taken.pages(), Pages(2 * PAGES));
    // The removal waits for no pin.
    guest
        .memory
        .remove_block(guest.memory.find_block("a").unwrap())
        .unwrap();
    drop(taken);
    assert_eq!(consumer.pending(), Pages(PAGES));
}

#[test]
fn what_is_left_out_is_pinned_no_more_and_the_rest_stays() {
    let (guest, consumer) = guest();
    let mut taken = take(&consumer, u64::MAX);
    let gone = guest.memory.find_block("a").unwrap();
    // Nothing of it is there.
    let mut half = taken.split_off(|_, run| run.block() != gone).unwrap();
    half.leave_out(|block| block == gone);
    assert_eq!(half.pages(), Pages(PAGES));
    taken.leave_out(|block| block == gone);
    assert!(taken.is_empty());
    // A block that stays has its pages back, once.
    assert_eq!(consumer.pending(), Pages(PAGES));
    assert_eq!(consumer.stats().put_back, Pages(PAGES));
    guest.memory.remove_block(gone).unwrap();
    drop(taken);
    assert_eq!(consumer.pending(), Pages(0));
    assert_eq!(half.blocks().count(), 1);
    drop(half);
    assert_eq!(consumer.pending(), Pages(PAGES));
}

#[test]
fn the_consumers_place_is_kept_until_nothing_of_it_is_on_its_way() {
    let (guest, consumer) = guest();
    let tracker = Arc::clone(consumer.tracker());
    let taken = take(&consumer, 100);
    drop(consumer);
    assert!(tracker.is_started());
    let other = tracker.consumer();
    other.start(StartWith::Nothing).unwrap();
    drop(taken);
    assert_eq!(other.pending(), Pages(0), "put back into another's");
    drop(other);
    assert!(!tracker.is_started());
    drop(guest);
}

#[test]
fn a_tracker_whose_lock_was_held_in_a_panic_takes_pages_back() {
    let (_guest, consumer) = guest();
    let all = consumer.pending();
    let taken = take(&consumer, 100);
    let broken = catch_unwind(AssertUnwindSafe(|| {
        let _inner = consumer.lock();
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(broken.is_err());
    drop(taken);
    assert_eq!(consumer.pending(), all);
}

#[test]
fn a_run_says_whether_its_pages_are_handed_out_for_the_first_time() {
    let (guest, consumer) = guest();
    let a = guest.memory.map().blocks()[0].id();
    let mut cursor = Cursor::default();
    let first = consumer.take(&mut cursor, 1, Pages(300)).unwrap();
    assert_eq!(runs(&first, 0), [(0, 300, true)]);
    drop(first);
    // Pages that were written meanwhile or put back are not new. The rest of the stretch is.
    let again = consumer
        .take(&mut Cursor::default(), 2, Pages(512))
        .unwrap();
    assert_eq!(runs(&again, 0), [(0, 300, false), (300, 212, true)]);
    again.delivered();
    consumer.put_back(a, Pages(5), Pages(2));
    let rest = take(&consumer, u64::MAX);
    assert_eq!(runs(&rest, 0)[..2], [(5, 2, false), (512, 512, true)]);
    assert!(runs(&rest, 1).iter().all(|(_, _, first)| *first));
    rest.delivered();
    // A block that comes later is new, whatever was sent before.
    let c = guest_block(&consumer);
    let new = take(&consumer, u64::MAX);
    assert_eq!(runs(&new, c), [(0, 64, true)]);
    new.delivered();
    // A second migration by the same consumer begins anew.
    consumer.mark_all();
    let all = take(&consumer, u64::MAX);
    assert!(all.runs().all(|run| run.first_time));
    all.delivered();
    consumer.mark_all();
    consumer.stop().unwrap();
    consumer.start(StartWith::Nothing).unwrap();
    consumer.put_back(a, Pages(7), Pages(1));
    assert_eq!(runs(&take(&consumer, 1), 0), [(7, 1, true)]);
}

/// Adds a block whose memory is never accessed.
fn guest_block(consumer: &Consumer) -> u32 {
    let block = consumer
        .memory()
        .add_block(crate::memory::BlockDescription {
            name: "c".to_owned(),
            // SAFETY: an address that is never accessed.
            host: unsafe {
                crate::memory::HostMemory::new(std::ptr::without_provenance_mut(1 << 45))
            },
            length: Pages(64).bytes(),
            page_size: crate::units::Bytes(4096),
            file: None,
            flags: crate::memory::BlockFlags::default(),
        });
    block.unwrap().0
}
