//! The atomics, locks and counted references of what is shared without locks.
//!
//! Nothing but names, in one place, so that the model checker's can stand there
//! instead: `tests/loom` compiles the files that use them a second time.

pub(crate) use std::sync::atomic::{
    fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering,
};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard};

/// A full fence, right after a read-modify-write of an atomic. On x86 that was one already.
pub(crate) fn fence_after_update() {
    if cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}
