//! Grace periods: waiting until no thread can still see what was just replaced.
//!
//! Readers [`pin`] (two stores to memory of their own, no lock, no wait). Whoever
//! replaced something begins a [`GracePeriod`]; when it has passed, every reader that
//! could have loaded the old value has unpinned. It rests on crossbeam-epoch with a
//! collector of our own that defers nothing but the raising of a flag: with the
//! default collector, destructors of strangers (and ours: `munmap`, `close`) would run
//! on whichever thread happens to pin, a vCPU thread under seccomp for one.
//!
//! What is built on this is model-checked (`tests/loom`) over a simpler epoch with the same
//! promises; crossbeam-epoch itself is not.

pub use crossbeam_epoch::Guard;
use crossbeam_epoch::{Collector, LocalHandle};
use once_cell::sync::Lazy;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

static COLLECTOR: Lazy<Collector> = Lazy::new(Collector::new);

thread_local! {
    static HANDLE: LocalHandle = COLLECTOR.register();
}

/// Makes this thread a reader until the guard is dropped. Never waits. Allocates the
/// first time on each thread only (its registration), and again when called while the
/// thread's locals are being destroyed.
pub fn pin() -> Guard {
    HANDLE
        .try_with(LocalHandle::pin)
        .unwrap_or_else(|_| COLLECTOR.register().pin())
}

/// Passes when every guard that existed at [`GracePeriod::begin`] has been dropped.
#[derive(Debug)]
pub struct GracePeriod {
    passed: Arc<AtomicBool>,
}

impl GracePeriod {
    /// Begins one. Call it after the new value has been published.
    pub fn begin() -> Self {
        let passed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&passed);
        let guard = pin();
        // The flag is raised by whichever thread finds the epoch two steps on; Release
        // here and Acquire in `has_passed` order what readers did before unpinning.
        guard.defer(move || flag.store(true, Ordering::Release));
        guard.flush();
        GracePeriod { passed }
    }

    /// Whether it has passed; tries to move the epoch on. Never waits.
    pub fn has_passed(&self) -> bool {
        if self.passed.load(Ordering::Acquire) {
            return true;
        }
        pin().flush();
        self.passed.load(Ordering::Acquire)
    }

    /// Waits until it has passed, `limit` at the most; whether it has. The caller must
    /// not hold a guard.
    ///
    /// Readers pin for nanoseconds, so spinning comes first; one that was preempted
    /// while pinned needs a time slice, so then the processor is given away.
    pub fn wait(&self, limit: Duration) -> bool {
        /// The epoch has to move on twice; tried this often even with a limit of zero.
        const AT_LEAST: u32 = 4;
        // Readers pin for nanoseconds; yielding early gives a whole time slice away where others
        // want the processor (milliseconds, measured).
        const SPINS: u32 = 1024;
        const YIELDS: u32 = 1088;
        let begun = Instant::now();
        let mut round = 0u32;
        while !self.has_passed() {
            round += 1;
            if round < AT_LEAST {
                continue;
            }
            let elapsed = begun.elapsed();
            if elapsed >= limit {
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
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_grace_period_passes_at_once_without_readers_and_not_while_one_is_pinned() {
        assert!(GracePeriod::begin().wait(Duration::from_secs(5)));

        let (pinned_tx, pinned_rx) = mpsc::channel();
        let (let_go_tx, let_go_rx) = mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let guard = pin();
            pinned_tx.send(()).unwrap();
            let_go_rx.recv().unwrap();
            drop(guard);
        });
        pinned_rx.recv().unwrap();
        let grace = GracePeriod::begin();
        assert!(
            !grace.wait(Duration::from_millis(20)),
            "a reader is still pinned"
        );
        let_go_tx.send(()).unwrap();
        assert!(grace.wait(Duration::from_secs(10)));
        reader.join().unwrap();
    }
}
