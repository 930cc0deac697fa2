//! Grace periods: waiting until no thread can still see a value that was just replaced.
//!
//! Readers [`pin`]. That is two additions to a counter, without a lock, a wait or memory from the
//! heap. The first mark of a thread must not wait for the process' memory map, which a scan of page
//! tables may hold. A thread that replaced a value begins a [`GracePeriod`]. When it has passed,
//! every reader that could have loaded the old value has unpinned.
//!
//! Readers are counted under one of two numbers, 0 or 1: the *current* one at that time. The counts
//! are spread over many counters (`readers.rs`). A *round* waits in two steps:
//!
//! 1. until no reader is left under the number that is not current;
//! 2. that number becomes current, and then until no reader is left under the other.
//!
//! New readers are counted under the number that is not waited for, so each step ends, however many
//! readers come. A grace period has passed when a round that began after it is complete. Each
//! waiting thread carries the round on as far as it goes, so no thread depends on another one for
//! that.
//!
//! Why this is correct for a reader that pinned before the grace period began: the reader is
//! counted under one of the two numbers. The round looks at that counter under both numbers, after
//! it began, and goes on only when it has seen 0. A counter is never below the number of its
//! readers, because a reader leaves the same counter. It is also correct for a reader whose pin the
//! look has missed. There is a full fence between a reader's pin and its load of a value, and
//! another between the replacement and the look. Since the look missed the pin, the load cannot
//! miss the replacement.
//!
//! A child of fork() has the counters of all its parent's threads, but only one of the threads. In
//! the child, a reader that was pinned at that moment is waited for without end.

use super::readers::{readers, shard, Readers};
use super::round::Step;
use super::sync::{fence, fence_after_update, AtomicUsize, Ordering};
use std::sync::TryLockError;
use std::time::{Duration, Instant};

/// A reader, until it is dropped.
pub struct Guard(&'static AtomicUsize);

/// Makes this thread a reader until the guard is dropped. Never waits and never allocates. Allowed
/// in a signal handler too.
pub fn pin() -> Guard {
    let readers = readers();
    // A number that is no longer current does no harm: the next round also waits for this reader
    // then.
    let number = readers.current.load(Ordering::Relaxed) & 1;
    let count = &readers.shards[shard()].0[number];
    count.fetch_add(1, Ordering::Relaxed);
    fence_after_update();
    Guard(count)
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Release: this thread's reads come before any free or reuse by a thread that sees the
        // counter.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Readers {
    fn none_under(&self, number: usize) -> bool {
        let mut shards = self.shards.iter();
        // Acquires what readers did before they left.
        shards.all(|shard| shard.0[number].load(Ordering::Acquire) == 0)
    }

    /// Carries the round on, or begins one, as far as that goes without waiting.
    fn go_on(&self, wanted: u64) {
        let mut step = match self.step.try_lock() {
            Ok(step) => step,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            // Another thread carries it on.
            Err(TryLockError::WouldBlock) => return,
        };
        // The look at the counters comes after all that the thread before did.
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
                    // Passes what readers did before they left to threads that find the round
                    // complete.
                    self.rounds.fetch_add(1, Ordering::Release);
                    *step = Step::Idle;
                }
                Step::Before | Step::After(_) => return,
            }
        }
    }
}

/// A wait that ends when every guard that existed at [`GracePeriod::begin`] has been dropped.
#[derive(Debug)]
pub struct GracePeriod {
    /// The value of [`Readers::rounds`] at which it has passed.
    wanted: u64,
}

impl GracePeriod {
    /// Begins a grace period. Call it after the new value has been published.
    pub fn begin() -> Self {
        // The new value must be published before the round begins that this thread sees not to have
        // begun.
        fence(Ordering::SeqCst);
        let now = readers().rounds.load(Ordering::Relaxed);
        // The first round that begins after this moment. A round in progress does not count.
        GracePeriod {
            wanted: now.next_multiple_of(2) + 2,
        }
    }

    /// Whether it has passed. Carries the round on, and never waits.
    pub fn has_passed(&self) -> bool {
        let readers = readers();
        if readers.rounds.load(Ordering::Acquire) >= self.wanted {
            return true;
        }
        readers.go_on(self.wanted);
        readers.rounds.load(Ordering::Acquire) >= self.wanted
    }

    /// Waits until it has passed, but at most for `limit`. Returns whether it has. The caller must
    /// not hold a guard.
    ///
    /// Readers pin for nanoseconds, so the wait spins first. A reader that was preempted while
    /// pinned needs a time slice, so then the wait yields the processor.
    pub fn wait(&self, limit: Duration) -> bool {
        self.wait_unless(limit, || false)
    }

    /// [`GracePeriod::wait`] that ends early, within a millisecond, once `given_up` returns true.
    pub fn wait_unless(&self, limit: Duration, given_up: impl Fn() -> bool) -> bool {
        // Readers pin for nanoseconds. An early yield gives away a whole time slice if other
        // threads want the processor (milliseconds, as measured).
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
