//! A page that cannot be read, at the source and while a dirty rate is sampled.

use super::migrate::{assert_names, migrate, migrate_by, migrate_with, After, Hook};
use super::side::{each, small_tmpfs, unmount, words, Broken, Made, Side, PAGE, PAGES};
use super::LIMIT;
use crate::support::alone::alone;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::{BlockDescription, BlockFlags, Memory};
use brant::rate::{self, Probe, Way};
use brant::units::Bytes;
use brant::Kind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

const UNREADABLE: [Broken; 4] = [
    Broken::Poisoned,
    Broken::Forbidden,
    Broken::ByKey,
    Broken::CutOff,
];

#[test]
fn a_page_that_cannot_be_read_at_the_source_fails_the_migration_and_the_guest_runs_on() {
    alone(LIMIT, || {
        each(&UNREADABLE, |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            if !source.make(broken, 100) {
                return;
            }
            let outcome = migrate(&source, &destination, None);
            outcome.assert_source_failed(100, &words(broken, made, "read"));
            // The destination was told the whole reason: no record was cut short.
            let told = outcome.destination.unwrap_err();
            assert_names(&told, Kind::Refused, 100, "");
            // The guest's other pages are unchanged.
            assert_eq!((source.get(0), source.get(99)), (7, 7));
        });
    });
}

#[test]
fn a_page_that_breaks_while_the_guest_stands_fails_the_migration_and_the_guest_runs_on() {
    alone(LIMIT, || {
        each(&UNREADABLE, |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
            let marks = Arc::clone(&tracker);
            let (breaks, id) = (Arc::clone(&source), source.memory.map().blocks()[0].id());
            let can = Arc::new(AtomicBool::new(true));
            let could = Arc::clone(&can);
            let hook = move || {
                could.store(breaks.make(broken, 31), Ordering::SeqCst);
                marks.mark_block(id, Bytes(31 * PAGE as u64), 1);
            };
            let outcome = migrate_with(tracker, &destination, Some(Box::new(hook)));
            if can.load(Ordering::SeqCst) {
                outcome.assert_source_failed(31, &words(broken, made, "read"));
            }
        });
    });
}

#[test]
fn a_page_that_cannot_be_read_fails_the_sampling_of_the_dirty_rate() {
    alone(LIMIT, || {
        each(&UNREADABLE, |made, broken| {
            let side = Side::new(made);
            side.fill(7);
            if !side.make(broken, 150) {
                return;
            }
            let tracker = Tracker::new(Arc::clone(&side.memory), Clearing::default()).unwrap();
            let params = rate::Params {
                way: Way::Sample {
                    per_gib: rate::SAMPLES_MAX,
                },
                period: rate::PERIOD_MIN,
            };
            let error = Probe::new(tracker, params).unwrap().measure().unwrap_err();
            assert_names(&error, Kind::Memory, 150, &words(broken, made, "read"));
        });
    });
}

/// Holds this thread, and threads that it starts, without privileges until it is dropped.
struct Rights([u32; 6]);

const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

impl Rights {
    fn given_up() -> Rights {
        // Effective, permitted and inheritable, twice.
        let mut rights = [0u32; 6];
        // SAFETY: the kernel reads two words and fills six.
        let got =
            unsafe { libc::syscall(libc::SYS_capget, CAPABILITIES.as_ptr(), rights.as_mut_ptr()) };
        assert_eq!(got, 0);
        let mut none = rights;
        (none[0], none[3]) = (0, 0);
        Rights::set(&none);
        Rights(rights)
    }

    fn set(rights: &[u32; 6]) {
        // SAFETY: the kernel reads two words and six.
        let set =
            unsafe { libc::syscall(libc::SYS_capset, CAPABILITIES.as_ptr(), rights.as_ptr()) };
        assert_eq!(set, 0);
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        Rights::set(&self.0);
    }
}

#[test]
fn a_full_tmpfs_at_the_source_is_no_trouble_where_its_holes_are_known_and_an_error_elsewhere() {
    alone(LIMIT, || {
        let Some(dir) = small_tmpfs(64) else {
            return;
        };
        let path = dir.path().to_str();
        let source = Side::with(Made::Tmpfs, false, path);
        for page in 0..64 {
            source.set(page * 4, 7);
        }
        let destination = Side::new(Made::Private);
        let outcome = migrate(&source, &destination, None);
        outcome.source.unwrap();
        assert_eq!((destination.get(0), destination.get(252)), (7, 7));
        // The same memory without its descriptor. A process with the right to look behind mappings
        // finds the file.
        let blind = Memory::new().unwrap();
        blind
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { brant::memory::HostMemory::new(source.host) },
                length: Bytes((PAGES * PAGE) as u64),
                page_size: Bytes(PAGE as u64),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        let blind = Arc::new(blind);
        let migrate = || {
            let tracker = Tracker::new(Arc::clone(&blind), Clearing::default()).unwrap();
            migrate_with(tracker, &Side::new(Made::Private), None)
        };
        migrate().source.unwrap();
        // Without that right every page counts as touched.
        let rights = Rights::given_up();
        let outcome = migrate();
        drop(rights);
        outcome.assert_source_failed(1, "is its file system full");
        unmount(&dir);
    });
}

#[test]
fn a_page_that_breaks_between_two_passes_fails_the_migration_and_the_guest_runs_on() {
    alone(LIMIT, || {
        each(&UNREADABLE, |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
            let id = source.memory.map().blocks()[0].id();
            let can = Arc::new(AtomicBool::new(true));
            let hook: Hook = {
                let (source, marks, can) =
                    (Arc::clone(&source), Arc::clone(&tracker), Arc::clone(&can));
                let done = AtomicBool::new(false);
                Box::new(move || {
                    // Only once: the first pass has read the page.
                    if !done.swap(true, Ordering::SeqCst) {
                        can.store(source.make(broken, 100), Ordering::SeqCst);
                        marks.mark_block(id, Bytes(0), (PAGES * PAGE) as u64);
                    }
                })
            };
            let decider = Box::new(After(3));
            let outcome = migrate_by(tracker, &destination, Some(decider), None, Some(hook));
            if can.load(Ordering::SeqCst) {
                assert!(outcome.stats.pass >= 2);
                outcome.assert_source_failed(100, &words(broken, made, "read"));
            }
        });
    });
}
