//! How many pages a sync reports as written, in each mode of KVM's log. (Rings:
//! `kvm/ring/tests.rs`.)

use super::*;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::kvm::testing::model::{Kvm, ALL_CAPS};
use crate::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::memory::SlotDescription;
use crate::units::Bytes;
use vm_memory::GuestAddress;

const PAGES: u64 = 4096;
const SLOT: u32 = 7;

const MODES: [KvmMode; 3] = [
    KvmMode::GetAndClear,
    KvmMode::ManualProtect,
    KvmMode::InitiallySet,
];
/// Chunks of 64 pages.
const CHUNKED: Clearing = Clearing::Chunked { shift: 6 };

/// A guest of one slot, tracked by KVM's log, with all pages pending.
fn tracked(mode: KvmMode, clearing: Clearing) -> (Guest, Kvm, Consumer) {
    let guest = Guest::new(PAGES as usize);
    let id = guest.block("ram", PAGES);
    let kvm = Kvm::new(ALL_CAPS);
    let host = guest.memory.map().block(id).unwrap().host() as u64;
    kvm.create(SLOT, host, PAGES, 0);
    let slot = SlotDescription {
        slot: SLOT,
        flags: 0,
        block: id,
        offset: Bytes(0),
        length: Pages(PAGES).bytes(),
        guest_address: GuestAddress(0),
    };
    guest.memory.add_slot(&slot).unwrap();
    let tracker = Tracker::new(Arc::clone(&guest.memory), clearing).unwrap();
    let log = KvmLog::new(kvm.vm(), mode, LogSwitch::Brant);
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    (guest, kvm, consumer)
}

fn take(consumer: &Consumer, cursor: &mut Cursor, pages: u64) {
    let taken = consumer.take(cursor, usize::MAX, Pages(pages)).unwrap();
    assert_eq!(taken.pages(), Pages(pages));
    taken.delivered();
}

/// Pages written and pages observed.
fn sync(consumer: &Consumer) -> (u64, u64) {
    let report = consumer.sync(When::Running).unwrap();
    let logs = report.logs.iter().map(|log| log.written.0);
    assert_eq!(logs.sum::<u64>(), report.written.0);
    (report.written.0, report.observed.0)
}

#[test]
fn an_idle_guest_in_the_middle_of_its_first_pass_has_written_nothing_in_each_mode() {
    for mode in MODES {
        for clearing in [CHUNKED, Clearing::AtSync] {
            let what = format!("{mode:?}, {clearing:?}");
            let (_guest, _kvm, consumer) = tracked(mode, clearing);
            let mut cursor = Cursor::default();
            let mut walked = 0;
            for some in [1000, 24, 1, 640] {
                take(&consumer, &mut cursor, some);
                walked += some;
                let observed = match (mode, clearing) {
                    // The first clear of a chunk protects it.
                    (KvmMode::InitiallySet, CHUNKED) => walked.next_multiple_of(64),
                    _ => PAGES,
                };
                for again in 0..3 {
                    assert_eq!(sync(&consumer), (0, observed), "{what}, {walked}, {again}");
                }
            }
            assert_eq!(consumer.stats().written, Pages(0), "{what}");
        }
    }
}

#[test]
fn a_guest_that_writes_ahead_of_the_walk_is_seen_though_nothing_becomes_pending() {
    for mode in [KvmMode::GetAndClear, KvmMode::ManualProtect] {
        let (_guest, kvm, consumer) = tracked(mode, CHUNKED);
        take(&consumer, &mut Cursor::default(), 100);
        for page in 2000..2300 {
            kvm.guest_write(SLOT, page);
        }
        let report = consumer.sync(When::Running).unwrap();
        assert_eq!((report.found.0, report.written.0), (0, 300), "{mode:?}");
        assert_eq!(report.observed, Pages(PAGES), "{mode:?}");
        assert_eq!(consumer.stats().written, Pages(300), "{mode:?}");
    }
}

#[test]
fn a_page_that_is_not_protected_yet_counts_once_and_is_observed_again_after_its_clear() {
    for mode in [KvmMode::ManualProtect, KvmMode::InitiallySet] {
        let (_guest, kvm, consumer) = tracked(mode, CHUNKED);
        take(&consumer, &mut Cursor::default(), PAGES);
        assert_eq!(sync(&consumer), (0, PAGES), "{mode:?}");
        for page in [5, 70, 71] {
            kvm.guest_write(SLOT, page);
        }
        assert_eq!(sync(&consumer), (3, PAGES), "{mode:?}");
        // The page is written again, but KVM's bitmap has its bit already, so this cannot be seen.
        kvm.guest_write(SLOT, 70);
        kvm.guest_write(SLOT, 300);
        assert_eq!(sync(&consumer), (1, PAGES - 3), "{mode:?}");
        assert_eq!(sync(&consumer), (0, PAGES - 4), "{mode:?}");
        // The first chunk is cleared when page 5 is taken.
        take(&consumer, &mut Cursor::default(), 1);
        kvm.guest_write(SLOT, 5);
        assert_eq!(sync(&consumer), (1, PAGES - 3), "{mode:?}");
        assert_eq!(consumer.stats().written, Pages(5), "{mode:?}");
    }
}

#[test]
fn marks_count_as_written_whether_pending_or_not() {
    let (_guest, _kvm, consumer) = tracked(KvmMode::InitiallySet, CHUNKED);
    consumer.mark_guest(GuestAddress(0), 10 << 12);
    assert_eq!(sync(&consumer), (10, 0));
    assert_eq!(sync(&consumer), (0, 0));
    take(&consumer, &mut Cursor::default(), 64);
    // With a second consumer, marks are merged through a bitmap of their own.
    let other = consumer.consumer();
    other.start(StartWith::Everything).unwrap();
    consumer.mark_guest(GuestAddress(0), 3 << 12);
    assert_eq!(sync(&consumer), (3, 64));
    assert_eq!(other.stats().written, Pages(3));
}
