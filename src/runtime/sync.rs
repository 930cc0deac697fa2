//! The atomics, locks and counted references of what is shared without locks.
//!
//! Nothing but names, in one place, so that the model checker's can stand there
//! instead: `tests/loom` compiles the files that use them a second time.

pub(crate) use std::sync::atomic::{
    fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering,
};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
