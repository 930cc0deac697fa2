//! Grace periods: when one has passed, no thread has the replaced value any more. This is tried in
//! every order of up to three threads' steps (with a bounded number of preemptions).
//!
//! A reader reads a cell that loom watches. The thread that replaced the value writes to the old
//! cell after the grace period, as if it freed the cell. If both can happen at once, loom reports a
//! race.

use brant_loom::runtime::real::grace::{pin, GracePeriod};
use brant_loom::runtime::sync::{Arc, AtomicUsize, Ordering};
use loom::cell::UnsafeCell;
use loom::thread;

const VALUES: usize = 3;

/// The number of the value that is current, and the values.
struct Cell {
    current: AtomicUsize,
    values: [UnsafeCell<bool>; VALUES],
}

// SAFETY: what this is about; loom looks.
unsafe impl Sync for Cell {}
// SAFETY: as above.
unsafe impl Send for Cell {}

impl Cell {
    fn new() -> Cell {
        Cell {
            current: AtomicUsize::new(0),
            values: std::array::from_fn(|_| UnsafeCell::new(true)),
        }
    }

    /// As a mark does.
    fn look(&self) {
        let guard = pin();
        let now = self.current.load(Ordering::Acquire);
        // SAFETY: no thread frees it while this one is pinned.
        self.values[now].with(|usable| assert!(unsafe { *usable }, "value {now} was freed"));
        drop(guard);
    }

    /// As a replacement of the map does.
    fn replace(&self, old: usize, new: usize) {
        self.current.swap(new, Ordering::AcqRel);
        wait();
        self.free(old);
    }

    fn free(&self, value: usize) {
        // SAFETY: a grace period has passed since it was current.
        self.values[value].with_mut(|usable| unsafe { *usable = false });
    }
}

fn wait() {
    let grace = GracePeriod::begin();
    while !grace.has_passed() {
        thread::yield_now();
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.check(model);
}

#[test]
fn a_reader_never_sees_what_was_freed_after_a_grace_period() {
    check(3, || {
        let cell = Arc::new(Cell::new());
        let theirs = Arc::clone(&cell);
        let reader = thread::spawn(move || theirs.look());
        cell.replace(0, 1);
        reader.join().unwrap();
    });
}

/// Two periods in a row, with a reader under the number that was current before the first.
#[test]
fn a_reader_that_came_late_under_the_old_number_is_waited_for_by_the_next() {
    check(3, || {
        let cell = Arc::new(Cell::new());
        let theirs = Arc::clone(&cell);
        let reader = thread::spawn(move || {
            theirs.look();
            theirs.look();
        });
        cell.replace(0, 1);
        cell.replace(1, 2);
        reader.join().unwrap();
    });
}

/// Two readers, one on each counter.
#[test]
fn readers_on_different_counters_are_both_waited_for() {
    check(2, || {
        let cell = Arc::new(Cell::new());
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let theirs = Arc::clone(&cell);
                thread::spawn(move || theirs.look())
            })
            .collect();
        cell.replace(0, 1);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// Two waiting threads carry each other's rounds on. A period that begins in the middle of a round
/// does not end with it.
#[test]
fn a_period_that_begins_during_a_round_waits_for_the_next() {
    check(2, || {
        let cell = Arc::new(Cell::new());
        let theirs = Arc::clone(&cell);
        let other = thread::spawn(move || {
            let _ = theirs;
            wait();
        });
        let theirs = Arc::clone(&cell);
        let reader = thread::spawn(move || theirs.look());
        cell.replace(0, 1);
        reader.join().unwrap();
        other.join().unwrap();
    });
}
