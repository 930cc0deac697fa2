//! Pages that the VMM has declared poisoned: the guest moves without them.

use super::migrate::{migrate, migrate_by, After, Hook};
use super::side::{each, Broken, Made, Side, PAGE, PAGES};
use super::LIMIT;
use crate::support::alone::alone;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::rate::{self, Probe, Way};
use brant::units::{Bytes, Pages};
use std::sync::Arc;

#[test]
fn a_migration_goes_on_without_pages_that_are_declared_poisoned_however_often_they_are_dirty() {
    alone(LIMIT, || {
        const PASSES: u32 = 5;
        each(&[Broken::Poisoned, Broken::Forbidden], |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            destination.fill(8);
            if !source.make(broken, 100) || !source.make(broken, 102) {
                return;
            }
            let (at, length) = (Bytes(100 * PAGE as u64 + 1), Bytes(3 * PAGE as u64 - 2));
            source
                .memory
                .mark_poisoned(source.memory.find_block("ram").unwrap(), at, length)
                .unwrap();
            let id = source.memory.map().blocks()[0].id();
            let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
            let marks = Arc::clone(&tracker);
            let dirty = move || marks.mark_block(id, at, length.0);
            let again = dirty.clone();
            let decider = Box::new(After(PASSES));
            let (save, pass): (Hook, Hook) = (Box::new(dirty), Box::new(again));
            let outcome = migrate_by(tracker, &destination, Some(decider), Some(save), Some(pass));
            outcome.source.unwrap();
            outcome.destination.unwrap();
            for page in 0..PAGES {
                let lost = (100..103).contains(&page);
                assert_eq!(
                    destination.get(page),
                    if lost { 0 } else { 7 },
                    "page {page}"
                );
            }
            let told = outcome.stats.poisoned_pages;
            assert!(
                (3 * u64::from(PASSES)..=3 * u64::from(PASSES + 2)).contains(&told),
                "{told}"
            );
            let words =
                "3 pages whose contents are declared lost are not sent: block `ram`, offset \
                         0x64000, 12288 bytes";
            assert_eq!(outcome.warnings, [words]);
        });
    });
}

#[test]
fn a_page_that_arrived_before_it_was_lost_is_what_it_was() {
    alone(LIMIT, || {
        let (source, destination) = (Side::new(Made::Private), Side::new(Made::Private));
        source.fill(7);
        let lost = Arc::clone(&source);
        let hook = move || {
            lost.protect(50, libc::PROT_NONE);
            let at = Bytes(50 * PAGE as u64);
            lost.memory
                .mark_poisoned(lost.memory.find_block("ram").unwrap(), at, Bytes(1))
                .unwrap();
        };
        let outcome = migrate(&source, &destination, Some(Box::new(hook)));
        outcome.source.unwrap();
        assert_eq!((destination.get(50), outcome.stats.poisoned_pages), (7, 0));
    });
}

#[test]
fn a_page_that_has_contents_again_is_sent_again() {
    alone(LIMIT, || {
        let (source, destination) = (Side::new(Made::Private), Side::new(Made::Private));
        source.fill(7);
        source.protect(50, libc::PROT_NONE);
        let (at, one) = (Bytes(50 * PAGE as u64), Bytes(1));
        source
            .memory
            .mark_poisoned(source.memory.find_block("ram").unwrap(), at, one)
            .unwrap();
        // Contents that arrive end a declaration at the destination too.
        destination
            .memory
            .mark_poisoned(destination.memory.find_block("ram").unwrap(), Bytes(0), one)
            .unwrap();
        let again = Arc::clone(&source);
        let hook = move || {
            again.protect(50, libc::PROT_READ | libc::PROT_WRITE);
            again.set(50, 9);
            again
                .memory
                .clear_poisoned(again.memory.find_block("ram").unwrap(), at, one)
                .unwrap();
        };
        let outcome = migrate(&source, &destination, Some(Box::new(hook)));
        outcome.source.unwrap();
        assert_eq!((destination.get(49), destination.get(50)), (7, 9));
        assert_eq!(destination.memory.poisoned_pages(), 0);
    });
}

#[test]
fn sampling_passes_over_pages_that_are_declared_poisoned() {
    alone(LIMIT, || {
        let side = Side::new(Made::Private);
        side.fill(7);
        side.protect(150, libc::PROT_NONE);
        let at = Bytes(150 * PAGE as u64);
        side.memory
            .mark_poisoned(side.memory.find_block("ram").unwrap(), at, Bytes(1))
            .unwrap();
        let tracker = Tracker::new(Arc::clone(&side.memory), Clearing::default()).unwrap();
        let params = rate::Params {
            way: Way::Sample {
                per_gib: rate::SAMPLES_MAX,
            },
            period: rate::PERIOD_MIN,
        };
        let rate = Probe::new(tracker, params).unwrap().measure().unwrap();
        assert_eq!(rate.written, Pages(0));
    });
}
