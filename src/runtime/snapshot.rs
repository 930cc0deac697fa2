//! [`Snapshot`]: an immutable value that is read without locks and replaced whole.
//!
//! For the memory map: vCPU and device threads look at it with every mark, and it
//! changes a few times in a guest's life. Replacing waits for a grace period and
//! drops the old value on the replacing thread, never on a reader's.

use super::grace::{pin, GracePeriod, Guard};
use super::sync::{Arc, AtomicPtr, Mutex, Ordering};
use std::fmt;
use std::mem::ManuallyDrop;
use std::time::Duration;

/// How often a replacing thread looks up from its wait. Readers never hold a guard
/// across anything that blocks, so the loop around it ends.
const LOOK: Duration = Duration::from_millis(100);

/// See the file's description. `T` is shared by reference and by counted reference.
pub struct Snapshot<T> {
    /// Always a valid pointer from `Arc::into_raw`; this holds one count.
    current: AtomicPtr<T>,
    /// Old values are dropped by the replacing thread; one replaces at a time.
    writer: Mutex<()>,
}

// SAFETY: a Snapshot hands out `&T` and `Arc<T>` on any thread and drops T on the
// thread that replaces or drops it; that is what `Arc<T>: Send + Sync` needs.
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

    /// Lets `look` see the current value. Lock-free. `look` must not block and must not
    /// replace a snapshot.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(self.get(&pin()))
    }

    /// The current value, for a thread that is pinned already: one pin does for several looks.
    pub fn get<'g>(&'g self, _pinned: &'g Guard) -> &'g T {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: the pointer came from Arc::into_raw, and its count is only given up
        // after a grace period that began when it was no longer current; the guard, which
        // outlives the reference, is from before the load.
        unsafe { &*current }
    }

    /// A counted reference to the current value, to be held as long as one likes.
    pub fn load(&self) -> Arc<T> {
        let _guard = pin();
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: as in `with`, the count that the cell holds is there while we are
        // pinned, so there is a count to add to.
        unsafe {
            Arc::increment_strong_count(current);
            Arc::from_raw(current)
        }
    }

    /// Replaces the value. When it returns, no [`Snapshot::with`] sees the old value any
    /// more. Waits for readers, which do not block.
    pub fn replace(&self, value: Arc<T>) {
        self.update(|_| value);
    }

    /// Replaces the value and waits for nobody: readers that are there go on with the old one, which
    /// is the caller's to drop.
    pub fn retire(&self, value: Arc<T>) -> Retired<T> {
        let _writer = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        let old = self
            .current
            .swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        Retired {
            // SAFETY: the cell's own count of `old`, which is given up in `drop`, when nobody who
            // found `old` in the cell is left.
            old: ManuallyDrop::new(unsafe { Arc::from_raw(old) }),
            grace: GracePeriod::begin(),
        }
    }

    /// Replaces the value by what `change` makes of it; one change at a time. Waits as
    /// [`Snapshot::replace`] does.
    pub fn update(&self, change: impl FnOnce(&T) -> Arc<T>) {
        let _writer = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        // Only we could replace it.
        let value = change(&self.load());
        let old = self
            .current
            .swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        let grace = GracePeriod::begin();
        while !grace.wait(LOOK) {}
        // SAFETY: the cell's own count of `old`, which nobody can reach through the cell now.
        drop(unsafe { Arc::from_raw(old) });
    }
}

/// A value that was replaced and that readers may still look at. Dropping it waits for them.
pub struct Retired<T> {
    old: ManuallyDrop<Arc<T>>,
    grace: GracePeriod,
}

impl<T> Retired<T> {
    /// Whether nobody looks at it any more, so that dropping it does not wait.
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
        // Relaxed: `&mut self` says that nobody reads, and came after all who did.
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
