//! The atomics, locks and counted references for data that is shared without locks.
//!
//! They are only names, in one file, so that the model checker can replace them: `tests/loom`
//! compiles the files that use them a second time.

pub(crate) use std::sync::atomic::{
    fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering,
};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// A full fence, right after a read-modify-write of an atomic. On x86 that operation is a full
/// fence by itself.
pub(crate) fn fence_after_update() {
    if cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}
