//! Bits stay in the log when a harvest has reported them, and are cleared before their pages are
//! handed out: what is found then, and what is not.

use super::*;
use crate::dirty::consumer::Cursor;
use crate::dirty::tracker::{Clearing, Tracker};

impl Ends {
    fn is_set(&self, page: u64) -> bool {
        let log = self.log.read().unwrap();
        let word = &log.as_ref().unwrap().words[page as usize / 64];
        word.load(Ordering::Acquire) >> (page % 64) & 1 != 0
    }
}

/// Syncs. Returns how many pages became pending, and how many the vhost log found written.
fn sync(consumer: &Consumer) -> (u64, u64) {
    let report = consumer.sync(When::Running).unwrap();
    let vhost = report.logs.iter().find(|log| log.kind == LogKind::Vhost);
    (report.found.0, vhost.unwrap().written.0)
}

#[test]
fn a_bit_is_set_until_its_page_is_taken_and_its_page_counts_once() {
    let (_guest, ends, consumer) = simple(1000);
    consumer.start(StartWith::Nothing).unwrap();
    ends.set(70);
    assert_eq!(sync(&consumer), (1, 1));
    assert!(ends.is_set(70));
    // The bit is read once more. The page is pending already, and nobody has written it since.
    assert_eq!(sync(&consumer), (0, 0));
    ends.set(71);
    assert_eq!(sync(&consumer), (1, 1));
    assert_eq!(take_all(&consumer), [(0, 70), (0, 71)].into());
    assert!(!ends.is_set(70) && !ends.is_set(71));
    assert_eq!(sync(&consumer), (0, 0));
    // Written once more after it was taken.
    ends.set(70);
    assert_eq!(sync(&consumer), (1, 1));
    assert_eq!(take_all(&consumer), [(0, 70)].into());
}

#[test]
fn a_bit_set_between_a_harvest_and_a_take_is_the_next_harvests() {
    let (_guest, ends, consumer) = simple(1000);
    consumer.start(StartWith::Nothing).unwrap();
    ends.set(70);
    consumer.sync(When::Running).unwrap();
    // In the same word, and in another one of the same chunk. No harvest has reported these two.
    ends.set(69);
    ends.set(500);
    assert_eq!(take_all(&consumer), [(0, 70)].into());
    assert_eq!(sync_all(&consumer), [(0, 69), (0, 500)].into());
}

#[test]
fn a_take_clears_the_bits_of_its_own_chunk() {
    let guest = Guest::new(1000);
    guest.block("ram", 1000);
    guest.slot("ram", 0, 1000, 5).unwrap();
    let ends = Arc::new(Ends::default());
    let log = VhostLog::new(Arc::clone(&ends) as _, 0).unwrap();
    let clearing = Clearing::Chunked { shift: 6 };
    let tracker = Tracker::new(Arc::clone(&guest.memory), clearing).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    // Page 10 of the block is in its first chunk, pages 700 and 701 are in its eleventh.
    let shown = |page: u64| page + 5;
    for page in [10, 700, 701] {
        ends.set(shown(page));
    }
    consumer.sync(When::Running).unwrap();
    let mut cursor = Cursor::default();
    let taken = consumer.take(&mut cursor, 1, Pages(1)).unwrap();
    assert!(!ends.is_set(shown(10)) && ends.is_set(shown(700)));
    taken.delivered();
    let taken = consumer.take(&mut cursor, 1, Pages(1)).unwrap();
    // One take clears for the whole chunk.
    assert!(!ends.is_set(shown(700)) && !ends.is_set(shown(701)));
    taken.delivered();
    assert_eq!(consumer.stats().clear_bits, 3);
    assert_eq!(take_all(&consumer), [(0, 701)].into());
}

#[test]
fn with_clearing_at_a_sync_each_harvest_clears_what_it_reports() {
    let guest = Guest::new(1000);
    guest.block("ram", 1000);
    guest.slot("ram", 0, 1000, 0).unwrap();
    let ends = Arc::new(Ends::default());
    let log = VhostLog::new(Arc::clone(&ends) as _, 0).unwrap();
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::AtSync).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    for page in [0, 64, 65, 999] {
        ends.set(page);
    }
    assert_eq!(sync(&consumer), (4, 4));
    assert!([0, 64, 65, 999].iter().all(|page| !ends.is_set(*page)));
    ends.set(64);
    // Written twice, and pending once.
    assert_eq!(sync(&consumer), (0, 1));
    assert_eq!(take_all(&consumer).len(), 4);
}

#[test]
fn strays_are_cleared_when_they_are_counted() {
    let guest = Guest::new(100);
    guest.block("ram", 100);
    guest.slot("ram", 0, 100, 10).unwrap();
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 1 << 30);
    consumer.start(StartWith::Nothing).unwrap();
    for page in [9, 10, 109, 110] {
        ends.set(page);
    }
    for _ in 0..3 {
        consumer.sync(When::Running).unwrap();
        assert_eq!(consumer.stray_marks(), 2);
        assert!(!ends.is_set(9) && ends.is_set(10) && ends.is_set(109) && !ends.is_set(110));
    }
    assert_eq!(take_all(&consumer), [(0, 0), (0, 99)].into());
}

/// Bits of a log that could not be switched off were reported before the stop. Who starts after it
/// has not been told of them.
#[test]
fn a_start_forgets_which_bits_were_reported_before_it() {
    let guest = Guest::new(2000);
    guest.block("ram", 1000);
    guest.slot("ram", 0, 1000, 0).unwrap();
    guest.block("more", 1);
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 0);
    consumer.start(StartWith::Nothing).unwrap();
    // A longer log is refused, and kept for the next start.
    ends.refuse_on.store(true, Ordering::Relaxed);
    assert!(guest.slot("more", 0, 1, 1 << 20).is_err());
    ends.refuse_on.store(false, Ordering::Relaxed);
    ends.set(70);
    assert_eq!(sync(&consumer).0, 1);
    ends.refuse_off.store(true, Ordering::Relaxed);
    let _ = consumer.stop();
    ends.refuse_off.store(false, Ordering::Relaxed);
    let before = ends.log.write().unwrap().take().unwrap();
    consumer.start(StartWith::Nothing).unwrap();
    // The back end writes page 70 once more, into the log that it has not left. Its bit is set.
    assert!(!before.set(70));
    // New memory in the same chunk has that chunk cleared.
    guest.slot("ram", 0, 1, 2000).unwrap();
    take_all(&consumer);
    assert!(sync_all(&consumer).contains(&(0, 70)));
}
