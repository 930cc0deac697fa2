//! Grace periods: waiting until no thread can still see what was just replaced.
//!
//! Readers [`pin`]: two additions to a counter, no lock, no wait, no memory from the heap. A mark
//! of a thread that has never made one before must not have to wait for the process' memory map,
//! which a scan of page tables may hold. Whoever replaced something begins a [`GracePeriod`]; when
//! it has passed, every reader that could have loaded the old value has unpinned.
//!
//! Readers come under one of two numbers, 0 or 1, the *current* one, and are counted under it,
//! spread over many counters (`readers.rs`). A *round* waits in two steps:
//!
//! 1. until nobody is left under the number that is not current;
//! 2. that number is made current, and then until nobody is left under the other.
//!
//! New readers come under the number that is not waited for, so each step ends, however many
//! there are. A grace period has passed when a round that began after it has been made. Whoever
//! waits carries the round on as far as it goes; nobody else has to be there for that.
//!
//! Why it is right, for a reader that was pinned before the grace period began: it is counted under
//! one of the two numbers, the round looks at its counter under both, after having begun, and goes
//! on only when it has seen 0 there. Counters are never below the readers that they count, because
//! a reader leaves where it came. And for a reader whose coming the look at its counter has missed:
//! between its coming and its loading of a value there is a full fence, and one between the
//! replacing and the look. The look missed the coming, so the loading cannot miss the
//! replacing.
//!
//! A child of fork() has the counters of all threads of its parent, and only one of the threads:
//! a reader that was pinned at that moment is waited for there for ever.

use super::readers::{readers, shard, Readers};
use super::round::Step;
use super::sync::{fence, fence_after_update, AtomicUsize, Ordering};
use std::sync::TryLockError;
use std::time::{Duration, Instant};

/// A reader, until it is dropped.
pub struct Guard(&'static AtomicUsize);

/// Makes this thread a reader until the guard is dropped. Never waits and never allocates; in a
/// signal handler too.
pub fn pin() -> Guard {
    let readers = readers();
    // A number that is not current any more only makes the next round wait for us as well.
    let number = readers.current.load(Ordering::Relaxed) & 1;
    let count = &readers.shards[shard()].0[number];
    count.fetch_add(1, Ordering::Relaxed);
    fence_after_update();
    Guard(count)
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What was read before this is read before whoever sees it frees or reuses it.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Readers {
    fn none_under(&self, number: usize) -> bool {
        let mut shards = self.shards.iter();
        // Acquires what readers did before they left.
        shards.all(|shard| shard.0[number].load(Ordering::Acquire) == 0)
    }

    /// Carries the round on, or begins one, as far as it goes without waiting.
    fn go_on(&self, wanted: u64) {
        let mut step = match self.step.try_lock() {
            Ok(step) => step,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            // Somebody else is at it.
            Err(TryLockError::WouldBlock) => return,
        };
        // The look at the counters is after whatever the one before us did.
        fence(Ordering::SeqCst);
        while self.rounds.load(Ordering::Relaxed) < wanted {
            let current = self.current.load(Ordering::Relaxed) & 1;
            match *step {
                Step::Idle => {
                    self.rounds.fetch_add(1, Ordering::Relaxed);
                    // The fence stands between the replacements, made by threads that rely on this
                    // round, and the looks at counters.
                    fence(Ordering::SeqCst);
                    *step = Step::Before;
                }
                Step::Before if self.none_under(1 - current) => {
                    self.current.store(1 - current, Ordering::Relaxed);
                    *step = Step::After(current);
                }
                Step::After(number) if self.none_under(number) => {
                    // Releases what readers did before they left to whoever finds that it is over.
                    self.rounds.fetch_add(1, Ordering::Release);
                    *step = Step::Idle;
                }
                Step::Before | Step::After(_) => return,
            }
        }
    }
}

/// Passes when every guard that existed at [`GracePeriod::begin`] has been dropped.
#[derive(Debug)]
pub struct GracePeriod {
    /// What [`Readers::rounds`] comes to when it has passed.
    wanted: u64,
}

impl GracePeriod {
    /// Begins one. Call it after the new value has been published.
    pub fn begin() -> Self {
        // The new value is published before the round, which is seen not to have begun, begins.
        fence(Ordering::SeqCst);
        let now = readers().rounds.load(Ordering::Relaxed);
        // The round after this moment: not the one that goes on, if one does.
        GracePeriod {
            wanted: now.next_multiple_of(2) + 2,
        }
    }

    /// Whether it has passed; tries to bring that about. Never waits.
    pub fn has_passed(&self) -> bool {
        let readers = readers();
        if readers.rounds.load(Ordering::Acquire) >= self.wanted {
            return true;
        }
        readers.go_on(self.wanted);
        readers.rounds.load(Ordering::Acquire) >= self.wanted
    }

    /// Waits until it has passed, `limit` at the most; whether it has. The caller must
    /// not hold a guard.
    ///
    /// Readers pin for nanoseconds, so spinning comes first; one that was preempted
    /// while pinned needs a time slice, so then the processor is given away.
    pub fn wait(&self, limit: Duration) -> bool {
        self.wait_unless(limit, || false)
    }

    /// [`GracePeriod::wait`], which ends early, within a millisecond, once `given_up` says so.
    pub fn wait_unless(&self, limit: Duration, given_up: impl Fn() -> bool) -> bool {
        // Readers pin for nanoseconds; yielding early gives a whole time slice away where others
        // want the processor (milliseconds, measured).
        const SPINS: u32 = 1024;
        const YIELDS: u32 = 1088;
        let begun = Instant::now();
        let mut round = 0u32;
        while !self.has_passed() {
            round += 1;
            let elapsed = begun.elapsed();
            if elapsed >= limit || (round > SPINS && given_up()) {
                return false;
            }
            if round < SPINS {
                std::hint::spin_loop();
            } else if round < YIELDS {
                std::thread::yield_now();
            } else {
                let step = Duration::from_micros(20 << ((round - YIELDS) / 16).min(5));
                std::thread::sleep(step.min(limit - elapsed));
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "grace/tests.rs"] // tests/loom has this file elsewhere
mod tests;
