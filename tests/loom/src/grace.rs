//! Replaces brant's `runtime/grace.rs`: the smallest epoch with the same promises.
//!
//! Each thread has a counter, which is odd while the thread is pinned. A grace period remembers the
//! odd counters, and has passed when each of them has changed. The fences are where crossbeam-epoch
//! has them: after the announcement of a pin, and before the look at who is pinned. An unpin is a
//! release, and seeing it an acquire.

use crate::runtime::sync::{fence, AtomicUsize, Ordering};
use std::sync::atomic::AtomicUsize as Plain;
use std::time::Duration;

/// As many threads as loom has.
const THREADS: usize = 5;

struct Readers {
    /// Not one of loom's: a thread that is not counted yet has not pinned either.
    registered: Plain,
    counters: [AtomicUsize; THREADS],
}

loom::lazy_static! {
    static ref READERS: Readers = Readers {
        registered: Plain::new(0),
        counters: std::array::from_fn(|_| AtomicUsize::new(0)),
    };
}

struct Me {
    counter: usize,
    /// Pins inside pins; only the outermost counts.
    depth: std::cell::Cell<usize>,
}

loom::thread_local! {
    static ME: Me = Me {
        counter: READERS.registered.fetch_add(1, Ordering::Relaxed),
        depth: std::cell::Cell::new(0),
    };
}

/// Pinned until dropped.
pub struct Guard(());

pub fn pin() -> Guard {
    ME.with(|me| {
        if me.depth.replace(me.depth.get() + 1) == 0 {
            let counter = &READERS.counters[me.counter];
            // An exchange, as in crossbeam-epoch on x86: a thread that sees this pin has also
            // acquired the unpin before it. (A plain store would end the release sequence, and loom
            // finds the difference.)
            counter.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    });
    Guard(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        ME.with(|me| {
            me.depth.set(me.depth.get() - 1);
            if me.depth.get() == 0 {
                let counter = &READERS.counters[me.counter];
                counter.fetch_add(1, Ordering::Release);
                // A waiting thread may go on here, before this thread does anything more.
                counter.meet();
            }
        });
    }
}

/// The readers that were pinned at its beginning, each with its counter at that time.
#[derive(Debug)]
pub struct GracePeriod(Vec<(usize, usize)>);

impl GracePeriod {
    pub fn begin() -> Self {
        fence(Ordering::SeqCst);
        let registered = READERS.registered.load(Ordering::Relaxed);
        let counters = READERS.counters[..registered].iter();
        let now = counters.map(|c| c.load(Ordering::Acquire)).enumerate();
        GracePeriod(now.filter(|(_, count)| count % 2 == 1).collect())
    }

    pub fn has_passed(&self) -> bool {
        let mut pinned = self.0.iter();
        pinned.all(|&(i, then)| READERS.counters[i].load(Ordering::Acquire) != then)
    }

    /// As [`GracePeriod::wait`], because no model cancels.
    pub fn wait_unless(&self, limit: Duration, _given_up: impl Fn() -> bool) -> bool {
        self.wait(limit)
    }

    /// Looks once if the limit is zero; otherwise waits as long as it takes.
    pub fn wait(&self, limit: Duration) -> bool {
        while !self.has_passed() {
            if limit.is_zero() {
                return false;
            }
            loom::thread::yield_now();
        }
        true
    }
}
