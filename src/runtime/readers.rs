//! Where threads that look at something say that they do: counters that exist from the
//! beginning, so that a thread's first look allocates nothing.
//!
//! What the counters mean is in [`super::grace`]. They are in a file of their own because
//! the model checker puts its own in their place.

use super::sync::{AtomicU64, AtomicUsize, Mutex};
use crate::sys::thread;
use once_cell::sync::Lazy;

/// Threads are spread over so many counters. More would make each wait longer, which looks at all
/// of them; fewer would have more threads write to one cache line.
pub(super) const SHARDS: usize = 64;

/// Readers that came under either number, kept away from their neighbours' cache lines.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Shard(pub(super) [AtomicUsize; 2]);

/// All readers of the process, and how far the waiting for them is.
pub(super) struct Readers {
    pub(super) shards: [Shard; SHARDS],
    /// Under which of the two numbers readers come now; only the lowest bit counts.
    pub(super) current: AtomicUsize,
    /// Twice the rounds that were made, and one more while one goes on.
    pub(super) rounds: AtomicU64,
    /// What the round that goes on waits for.
    pub(super) step: Mutex<super::round::Step>,
}

static READERS: Lazy<Readers> = Lazy::new(|| Readers {
    shards: std::array::from_fn(|_| Shard::default()),
    current: AtomicUsize::new(0),
    rounds: AtomicU64::new(0),
    step: Mutex::new(super::round::Step::Idle),
});

/// All of them.
pub(super) fn readers() -> &'static Readers {
    &READERS
}

/// The counter of this thread. Some share one. It is found from where the C library keeps the
/// thread: a thread-local of ours could have to be allocated at its first use.
pub(super) fn shard() -> usize {
    const { assert!(SHARDS.is_power_of_two()) };
    // Addresses of threads differ in the middle: they lie at the ends of stacks.
    let spread = (thread::address() as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (spread >> (64 - SHARDS.trailing_zeros())) as usize
}
