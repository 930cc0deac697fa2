//! Replaces brant's `runtime/sync.rs` by loom's types. Each atomic has a second one, which is
//! written just before every access.
//!
//! The second one only marks that threads met here. Loom takes two loads for independent, and
//! remembers only the last access of a location. So it never tries the order in which another
//! thread's load comes between a load and a store. Most possible mistakes of brant's have that
//! order (load a word, then OR a bit into it). Two writes are dependent for loom, which tries both
//! orders.

use loom::sync::atomic as inner;
pub use loom::sync::atomic::{fence, Ordering};
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};

macro_rules! atomic {
    ($name:ident $(<$t:ident>)?, $inner:ty, $value:ty) => {
        pub struct $name $(<$t>)? {
            met: inner::AtomicBool,
            value: $inner,
        }

        impl $(<$t>)? $name $(<$t>)? {
            pub fn new(value: $value) -> Self {
                let met = inner::AtomicBool::new(false);
                $name { met, value: <$inner>::new(value) }
            }
            /// Only a place where loom may switch threads.
            pub fn meet(&self) -> &$inner {
                self.met.store(true, Ordering::Relaxed);
                &self.value
            }
            pub fn load(&self, order: Ordering) -> $value {
                self.meet().load(order)
            }
            pub fn store(&self, value: $value, order: Ordering) {
                self.meet().store(value, order)
            }
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.meet().swap(value, order)
            }
        }
    };
}

atomic!(AtomicBool, inner::AtomicBool, bool);
atomic!(AtomicU32, inner::AtomicU32, u32);
atomic!(AtomicU64, inner::AtomicU64, u64);
atomic!(AtomicUsize, inner::AtomicUsize, usize);
atomic!(AtomicPtr<T>, inner::AtomicPtr<T>, *mut T);

impl AtomicUsize {
    pub fn fetch_add(&self, n: usize, order: Ordering) -> usize {
        self.meet().fetch_add(n, order)
    }
    pub fn fetch_sub(&self, n: usize, order: Ordering) -> usize {
        self.meet().fetch_sub(n, order)
    }
}

/// As on a processor whose updates are no fences.
pub fn fence_after_update() {
    fence(Ordering::SeqCst);
}

impl AtomicU32 {
    pub fn compare_exchange(
        &self,
        was: u32,
        now: u32,
        order: Ordering,
        failed: Ordering,
    ) -> Result<u32, u32> {
        self.meet().compare_exchange(was, now, order, failed)
    }
}

impl AtomicU64 {
    pub fn fetch_add(&self, n: u64, order: Ordering) -> u64 {
        self.meet().fetch_add(n, order)
    }
    pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.meet().fetch_or(bits, order)
    }
    pub fn fetch_sub(&self, n: u64, order: Ordering) -> u64 {
        self.meet().fetch_sub(n, order)
    }
    pub fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.meet().fetch_and(bits, order)
    }
    /// Claims that no other thread can access the value, which loom checks.
    pub fn with_mut<R>(&mut self, f: impl FnOnce(&mut u64) -> R) -> R {
        self.value.with_mut(f)
    }
}
