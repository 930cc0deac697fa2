//! [`Snapshot`]: an immutable value that is read without a lock and replaced as a whole.
//!
//! The memory map is such a value. vCPU and device threads read it with every mark, and it changes
//! a few times in a guest's life. A replacement waits for a grace period, and the replacing thread
//! drops the old value, so no reader ever does.

use super::grace::{pin, GracePeriod, Guard};
use super::sync::{Arc, AtomicPtr, Mutex, Ordering};
use std::fmt;
use std::mem::ManuallyDrop;
use std::time::Duration;

/// How long one wait of a replacing thread lasts before the next. The loop of waits ends, because
/// readers hold no guard across calls that block.
const LOOK: Duration = Duration::from_millis(100);

/// See the file's description. Readers get `T` by reference, or as an `Arc`.
pub struct Snapshot<T> {
    /// Always a valid pointer from `Arc::into_raw`, for which this holds one count.
    current: AtomicPtr<T>,
    /// Held by the thread that replaces the value and drops the old one.
    writer: Mutex<()>,
}

// SAFETY: a Snapshot hands out `&T` and `Arc<T>` on any thread, and drops T on the thread that
// replaces or drops it. `Arc<T>: Send + Sync` needs the same.
unsafe impl<T: Send + Sync> Send for Snapshot<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Snapshot<T> {}

impl<T> Snapshot<T> {
    /// Begins with `value`.
    pub fn new(value: T) -> Self {
        Snapshot {
            current: AtomicPtr::new(Arc::into_raw(Arc::new(value)).cast_mut()),
            writer: Mutex::new(()),
        }
    }

    /// Calls `look` with the current value. Takes no lock. `look` must not block, and must not
    /// replace a snapshot.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(self.get(&pin()))
    }

    /// The current value, for a thread that is pinned already. One pin is enough for several looks.
    pub fn get<'g>(&'g self, _pinned: &'g Guard) -> &'g T {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: the pointer came from Arc::into_raw. Its count is given up only after a grace
        // period that began when the pointer was no longer current. The guard, which outlives the
        // reference, was made before the load.
        unsafe { &*current }
    }

    /// A counted reference to the current value, which may be kept for any time.
    pub fn load(&self) -> Arc<T> {
        let _guard = pin();
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: as in `with`, the cell's own count exists while this thread is pinned, so it can
        // be added to.
        unsafe {
            Arc::increment_strong_count(current);
            Arc::from_raw(current)
        }
    }

    /// Replaces the value. When this returns, no [`Snapshot::with`] sees the old value any more.
    /// Waits for readers, which do not block.
    pub fn replace(&self, value: Arc<T>) {
        self.update(|_| value);
    }

    /// Replaces the value without waiting. Current readers go on with the old value, which the
    /// caller has to drop.
    pub fn retire(&self, value: Arc<T>) -> Retired<T> {
        let _writer = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        let old = self
            .current
            .swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        Retired {
            // SAFETY: the cell's own count of `old`. It is given up in `drop`, after every reader
            // that found `old` in the cell has gone.
            old: ManuallyDrop::new(unsafe { Arc::from_raw(old) }),
            grace: GracePeriod::begin(),
        }
    }

    /// Replaces the value by the result of `change`; one change at a time. Waits as
    /// [`Snapshot::replace`] does.
    pub fn update(&self, change: impl FnOnce(&T) -> Arc<T>) {
        let _writer = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        // Other threads cannot replace the value while this one holds the lock.
        let value = change(&self.load());
        let old = self
            .current
            .swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        let grace = GracePeriod::begin();
        while !grace.wait(LOOK) {}
        // SAFETY: the cell's own count of `old`, which no thread can reach through the cell now.
        drop(unsafe { Arc::from_raw(old) });
    }
}

/// A replaced value that readers may still use. Dropping it waits for them.
pub struct Retired<T> {
    old: ManuallyDrop<Arc<T>>,
    grace: GracePeriod,
}

impl<T> Retired<T> {
    /// Whether no reader uses it any more, so that dropping it does not wait.
    pub fn is_free(&self) -> bool {
        self.grace.has_passed()
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        while !self.grace.wait(LOOK) {}
        // SAFETY: dropped here and nowhere else.
        unsafe { ManuallyDrop::drop(&mut self.old) };
    }
}

impl<T: Default> Default for Snapshot<T> {
    fn default() -> Self {
        Snapshot::new(T::default())
    }
}

impl<T> Drop for Snapshot<T> {
    fn drop(&mut self) {
        // Relaxed: `&mut self` says that no thread reads now, and that all earlier reads happened
        // before.
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: the cell's own count.
        drop(unsafe { Arc::from_raw(current) });
    }
}

impl<T: fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with(|value| value.fmt(f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    struct Tracked(u64, Arc<AtomicUsize>);
    impl Drop for Tracked {
        fn drop(&mut self) {
            self.0 = u64::MAX;
            self.1.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn readers_never_see_a_dropped_value_and_every_value_is_dropped() {
        let alive = Arc::new(AtomicUsize::new(1));
        let cell = Arc::new(Snapshot::new(Tracked(0, Arc::clone(&alive))));
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (cell, stop) = (Arc::clone(&cell), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let seen = cell.with(|t| t.0);
                        assert!(seen != u64::MAX && seen >= last);
                        last = seen;
                        let held = cell.load();
                        std::thread::yield_now();
                        assert_ne!(held.0, u64::MAX);
                    }
                })
            })
            .collect();
        for i in 1..=200 {
            alive.fetch_add(1, Ordering::SeqCst);
            cell.replace(Arc::new(Tracked(i, Arc::clone(&alive))));
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(cell.with(|t| t.0), 200);
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        drop(cell);
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}
