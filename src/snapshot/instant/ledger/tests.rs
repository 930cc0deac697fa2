//! Every answer to a fault, by what has become of its unit.

use super::*;

const BASE: u64 = 1 << 40;
const UNIT: u64 = STRETCH_PAGES * PAGE_SIZE;

fn ledger(copies: u64) -> Ledger {
    let mut ledger = Ledger::new(copies * PAGE_SIZE);
    // Two units and a half, and huge pages of 4 MiB.
    let first = ledger.add("ram", BASE..BASE + 5 * UNIT / 2, PAGE_SIZE);
    let huge = ledger.add("huge", BASE - 4 * UNIT..BASE - 2 * UNIT, 2 * UNIT);
    assert_eq!((first.unwrap(), huge.unwrap()), (0, 1));
    ledger
}

fn page(at: u64) -> Range<u64> {
    BASE + at * PAGE_SIZE..BASE + (at + 1) * PAGE_SIZE
}

fn touch(ledger: &mut Ledger, at: u64, protected: bool) -> Answer {
    let touched = Touched {
        address: BASE + at * PAGE_SIZE,
        protected,
        by_walk: false,
    };
    ledger.touched(touched, |to| to.fill(at as u8)).unwrap()
}

const FIRST: Unit = Unit { area: 0, number: 0 };
const SECOND: Unit = Unit { area: 0, number: 1 };

#[test]
fn before_the_instant_a_hole_is_filled_and_nothing_is_kept() {
    let mut ledger = ledger(1);
    assert_eq!(touch(&mut ledger, 3, false), Answer::Zero(page(3)));
    assert_eq!(touch(&mut ledger, 3, true), Answer::Wake(page(3)));
    ledger.discarded(&page(3)).unwrap();
    assert!(!ledger.want(&page(3)).unwrap());
    ledger.arm();
    assert!(ledger.begin(FIRST).is_empty());
    assert_eq!(ledger.tally, Tally::default());
}

#[test]
fn a_page_is_kept_once_as_it_was_at_its_first_touch() {
    let mut ledger = ledger(4);
    ledger.arm();
    assert_eq!(touch(&mut ledger, 9, true), Answer::Unprotect(page(9)));
    assert_eq!(touch(&mut ledger, 2, false), Answer::Zero(page(2)));
    // Again, from another thread: the page may have been written since.
    let touched = Touched {
        address: page(9).start,
        protected: true,
        by_walk: false,
    };
    let again = ledger.touched(touched, |_| panic!("copied twice")).unwrap();
    assert_eq!(again, Answer::Unprotect(page(9)));
    assert_eq!(touch(&mut ledger, 2, false), Answer::Zero(page(2)));
    // A hole that was filled with zeros, and written, is still kept as a hole.
    let touched = Touched {
        address: page(2).start,
        protected: true,
        by_walk: false,
    };
    ledger
        .touched(touched, |_| panic!("a hole was copied"))
        .unwrap();
    assert_eq!(ledger.next(), Some(FIRST));
    let kept = ledger.begin(FIRST);
    assert_eq!(kept.iter().map(|k| k.page.0).collect::<Vec<_>>(), [2, 9]);
    assert!(kept[0].copy.is_none());
    let slot = kept[1].copy.unwrap();
    assert!(ledger.copy_of(slot).iter().all(|byte| *byte == 9));
    assert_eq!((ledger.tally.copied, ledger.tally.held), (1, 0));
}

#[test]
fn a_unit_that_is_being_read_is_left_alone_and_one_that_is_done_waits_for_nothing() {
    let mut ledger = ledger(4);
    ledger.arm();
    assert!(ledger.begin(FIRST).is_empty());
    for protected in [true, false] {
        assert_eq!(touch(&mut ledger, 1, protected), Answer::Leave);
    }
    assert_eq!(ledger.done(FIRST, &[]), BASE..BASE + UNIT);
    assert_eq!(touch(&mut ledger, 1, true), Answer::Wake(page(1)));
    assert_eq!(touch(&mut ledger, 1, false), Answer::Zero(page(1)));
    ledger.discarded(&page(1)).unwrap();
    assert!(!ledger.want(&page(1)).unwrap());
    // An address of nobody's.
    assert!(matches!(touch(&mut ledger, 1 << 20, true), Answer::Wake(_)));
}

#[test]
fn without_room_for_a_copy_the_thread_waits_and_its_unit_comes_first() {
    let mut ledger = ledger(1);
    ledger.arm();
    touch(&mut ledger, 1, true);
    let second = STRETCH_PAGES + 1;
    assert_eq!(touch(&mut ledger, second, true), Answer::Leave);
    assert_eq!(touch(&mut ledger, second + 1, true), Answer::Leave);
    // A hole needs no room.
    assert_eq!(
        touch(&mut ledger, 2 * STRETCH_PAGES, false),
        Answer::Zero(page(2 * STRETCH_PAGES))
    );
    assert_eq!((ledger.tally.copied, ledger.tally.held), (1, 2));
    assert_eq!(ledger.next(), Some(SECOND));
    let kept = ledger.begin(SECOND);
    assert!(kept.is_empty());
    ledger.done(SECOND, &kept);
    // The place of a copy is free again when its unit is done.
    assert_eq!(ledger.next(), Some(FIRST));
    let kept = ledger.begin(FIRST);
    ledger.done(FIRST, &kept);
    let third = 2 * STRETCH_PAGES + 5;
    assert_eq!(
        touch(&mut ledger, third, true),
        Answer::Unprotect(page(third))
    );
}

#[test]
fn behind_writes_one_behind_the_other_pages_are_copied_before_they_are_written() {
    let mut ledger = ledger(64);
    ledger.arm();
    // As far as pages are there: page 40 is a hole.
    let write = |ledger: &mut Ledger, at: u64| {
        let answer = touch(ledger, at, true);
        assert_eq!(answer, Answer::Unprotect(page(at)));
        let there = |behind: Range<u64>| behind.end.min(page(40).start);
        let copy = |address, to: &mut [u8]| to.fill(((address - BASE) / PAGE_SIZE) as u8);
        let end = ledger.copy_ahead(&page(at), there, copy).unwrap();
        (end - BASE) / PAGE_SIZE
    };
    // Far from the one before.
    assert_eq!(write(&mut ledger, 600), 601);
    assert_eq!(write(&mut ledger, 0), 1);
    assert_eq!(write(&mut ledger, 1), 10);
    // A hole that was filled is known.
    assert_eq!(touch(&mut ledger, 20, false), Answer::Zero(page(20)));
    assert_eq!(write(&mut ledger, 12), 20);
    // One half of the room is for pages that somebody waits for.
    assert_eq!(write(&mut ledger, 21), 34);
    let copied = ledger.tally.copied;
    assert_eq!((copied, ledger.tally.held), (32, 0));
    assert_eq!(write(&mut ledger, 34), 35);
    assert_eq!(ledger.tally.copied, 33);
    assert_eq!(ledger.next(), Some(SECOND));
    let kept = ledger.begin(SECOND);
    ledger.done(SECOND, &kept);
    let kept = ledger.begin(FIRST);
    for Kept { page, copy } in &kept {
        let right = |slot: &Slot| ledger.copy_of(*slot).iter().all(|it| *it == page.0 as u8);
        assert_eq!(copy.as_ref().is_some_and(right), page.0 != 20, "{page:?}");
    }
    ledger.done(FIRST, &kept);
    // Nothing is copied of a unit that is done, nor behind the end of one.
    let no = |_: Range<u64>| panic!("asked");
    let end = ledger.copy_ahead(&page(33), no, |_, _| panic!("copied"));
    assert_eq!(end.unwrap(), page(33).end);
}

#[test]
fn a_huge_page_is_never_copied_by_itself() {
    let mut ledger = ledger(10);
    ledger.arm();
    let touched = Touched {
        address: BASE - 3 * UNIT,
        protected: true,
        by_walk: false,
    };
    let answer = ledger.touched(touched, |_| panic!("copied")).unwrap();
    assert_eq!(answer, Answer::Leave);
    let huge = Unit { area: 1, number: 0 };
    assert_eq!(ledger.next(), Some(huge));
    assert_eq!(ledger.pages(huge), Pages(0)..Pages(2 * STRETCH_PAGES));
    ledger.begin(huge);
    assert_eq!(ledger.done(huge, &[]), BASE - 4 * UNIT..BASE - 2 * UNIT);
}

#[test]
fn the_walk_comes_to_every_unit_once_and_memory_behind_it_is_one_range() {
    let mut ledger = ledger(10);
    ledger.arm();
    touch(&mut ledger, STRETCH_PAGES, true);
    let mut order = Vec::new();
    while let Some(unit) = ledger.next() {
        let kept = ledger.begin(unit);
        ledger.done(unit, &kept);
        order.push((unit.area, unit.number));
        if order.len() == 1 {
            assert_eq!(ledger.behind(0), BASE..BASE);
        }
        if order.len() == 2 {
            assert_eq!(ledger.behind(0), BASE..BASE + 2 * UNIT);
        }
    }
    assert_eq!(order, [(0, 1), (0, 0), (0, 2), (1, 0)]);
    assert_eq!(ledger.behind(0), BASE..BASE + 5 * UNIT / 2);
    assert_eq!(ledger.left(), Bytes(0));
}

#[test]
fn memory_that_is_discarded_before_it_was_read_is_an_error_that_names_it() {
    let mut ledger = ledger(1);
    ledger.arm();
    let error = ledger
        .discarded(&(page(700).start..page(705).end))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::State);
    assert!(error.message().contains("block `ram`"), "{error}");
    assert!(ledger.want(&page(700)).unwrap());
    assert_eq!(ledger.next(), Some(SECOND));
    ledger.begin(SECOND);
    assert!(ledger.discarded(&page(700)).is_err());
    assert!(ledger.want(&page(700)).unwrap());
    ledger.done(SECOND, &[]);
    ledger.discarded(&page(700)).unwrap();
    assert!(!ledger.want(&page(700)).unwrap());
    // Memory that is not the guest's does not matter.
    ledger.discarded(&(0..PAGE_SIZE)).unwrap();
}

#[test]
fn the_walks_own_thread_never_waits_for_the_walk() {
    let mut ledger = ledger(1);
    ledger.arm();
    let mut touch = |at: u64| {
        let touched = Touched {
            address: page(at).start,
            protected: true,
            by_walk: true,
        };
        ledger.touched(touched, |_| {})
    };
    assert_eq!(touch(1).unwrap(), Answer::Unprotect(page(1)));
    let error = touch(2).unwrap_err();
    assert_eq!(error.kind(), Kind::NoMemory);
    assert!(error.message().contains("max_copy_bytes"), "{error}");
    ledger.begin(SECOND);
    let touched = Touched {
        address: page(STRETCH_PAGES).start,
        protected: false,
        by_walk: true,
    };
    let error = ledger.touched(touched, |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::State);
}
