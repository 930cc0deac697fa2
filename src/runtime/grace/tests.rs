use super::*;
use std::sync::atomic::{AtomicBool, AtomicPtr};
use std::sync::{mpsc, Arc};

/// A thread that is pinned until it is told to let go.
struct Reader(mpsc::Sender<()>, std::thread::JoinHandle<()>);

impl Reader {
    fn new() -> Reader {
        let (pinned_tx, pinned_rx) = mpsc::channel();
        let (let_go_tx, let_go_rx) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let guard = pin();
            pinned_tx.send(()).unwrap();
            // This also returns when the test has failed.
            let _ = let_go_rx.recv();
            drop(guard);
        });
        pinned_rx.recv().unwrap();
        Reader(let_go_tx, thread)
    }

    fn end(self) {
        drop(self.0);
        self.1.join().unwrap();
    }
}

#[test]
fn a_grace_period_passes_at_once_without_readers_and_not_while_one_is_pinned() {
    assert!(GracePeriod::begin().wait(Duration::from_secs(5)));
    let reader = Reader::new();
    let grace = GracePeriod::begin();
    assert!(
        !grace.wait(Duration::from_millis(20)),
        "a reader is still pinned"
    );
    reader.end();
    assert!(grace.wait(Duration::from_secs(10)));
}

#[test]
fn readers_that_came_later_are_not_waited_for() {
    let before = Reader::new();
    let grace = GracePeriod::begin();
    // The round begins, and makes the other number current or waits for it.
    assert!(!grace.has_passed());
    let after: Vec<Reader> = (0..4).map(|_| Reader::new()).collect();
    let later = GracePeriod::begin();
    before.end();
    assert!(grace.wait(Duration::from_secs(10)));
    assert!(!later.wait(Duration::from_millis(20)));
    for reader in after {
        reader.end();
    }
    assert!(later.wait(Duration::from_secs(10)));
}

#[test]
fn pins_inside_pins_count_each() {
    let outer = pin();
    let grace = GracePeriod::begin();
    drop(pin());
    assert!(!grace.has_passed());
    drop(outer);
    assert!(grace.wait(Duration::from_secs(10)));
}

/// Readers that load a box and read it, and writers that replace it and make the old one unusable
/// after a grace period. There are more threads than counters.
#[test]
fn nobody_sees_what_was_made_unusable_after_a_grace_period() {
    const READERS: usize = 90;
    struct Cell(AtomicPtr<u64>);
    let cell = Arc::new(Cell(AtomicPtr::new(Box::into_raw(Box::new(7)))));
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (cell, stop) = (Arc::clone(&cell), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let guard = pin();
                    let at = cell.0.load(Ordering::Acquire);
                    // SAFETY: freed only after a grace period, and this thread is pinned.
                    let seen = unsafe { at.read_volatile() };
                    drop(guard);
                    assert_eq!(seen, 7);
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let cell = Arc::clone(&cell);
            std::thread::spawn(move || {
                for _ in 0..300 {
                    let new = Box::into_raw(Box::new(7));
                    let old = cell.0.swap(new, Ordering::AcqRel);
                    let grace = GracePeriod::begin();
                    assert!(grace.wait(Duration::from_secs(60)));
                    // SAFETY: out of the cell, and no thread can have it any more.
                    unsafe {
                        old.write_volatile(0);
                        drop(Box::from_raw(old));
                    }
                }
            })
        })
        .collect();
    let ended: Vec<bool> = writers.into_iter().map(|w| w.join().is_ok()).collect();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    assert_eq!(ended, [true, true]);
    // SAFETY: the last one, which no thread has now.
    drop(unsafe { Box::from_raw(cell.0.load(Ordering::Acquire)) });
}
