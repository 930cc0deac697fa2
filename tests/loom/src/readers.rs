//! Replaces brant's `runtime/readers.rs`: two counters, which threads get in turn.

use crate::runtime::sync::{AtomicU64, AtomicUsize, Mutex};
use std::sync::atomic::{AtomicUsize as Plain, Ordering};

pub(super) const SHARDS: usize = 2;

pub(super) struct Shard(pub(super) [AtomicUsize; 2]);

pub(super) struct Readers {
    pub(super) shards: [Shard; SHARDS],
    pub(super) current: AtomicUsize,
    pub(super) rounds: AtomicU64,
    pub(super) step: Mutex<super::round::Step>,
    /// Not one of loom's: which thread gets which counter makes no difference.
    threads: Plain,
}

loom::lazy_static! {
    static ref READERS: Readers = Readers {
        shards: std::array::from_fn(|_| Shard(std::array::from_fn(|_| AtomicUsize::new(0)))),
        current: AtomicUsize::new(0),
        rounds: AtomicU64::new(0),
        step: Mutex::new(super::round::Step::Idle),
        threads: Plain::new(0),
    };
}

loom::thread_local! {
    static SHARD: usize = READERS.threads.fetch_add(1, Ordering::Relaxed) % SHARDS;
}

pub(super) fn readers() -> &'static Readers {
    &READERS
}

pub(super) fn shard() -> usize {
    SHARD.with(|shard| *shard)
}
