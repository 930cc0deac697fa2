//! The counters of readers for [`super::grace`]. They exist from the start, so that a thread's
//! first pin allocates nothing.
//!
//! They have a file of their own because the model checker replaces them.

use super::sync::{AtomicU64, AtomicUsize, Mutex};
use crate::sys::thread;
use once_cell::sync::Lazy;

/// Threads are spread over this many counters. With more, each wait takes longer, because it looks
/// at all of them. With fewer, more threads write to one cache line.
pub(super) const SHARDS: usize = 64;

/// How many readers there are under either number. Kept off the cache lines of neighbours.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Shard(pub(super) [AtomicUsize; 2]);

/// All readers of the process, and the state of the rounds.
pub(super) struct Readers {
    pub(super) shards: [Shard; SHARDS],
    /// The number under which readers are counted now. Only the lowest bit counts.
    pub(super) current: AtomicUsize,
    /// Twice the number of complete rounds, plus one while a round is in progress.
    pub(super) rounds: AtomicU64,
    /// The step of the round in progress.
    pub(super) step: Mutex<super::round::Step>,
}

static READERS: Lazy<Readers> = Lazy::new(|| Readers {
    shards: std::array::from_fn(|_| Shard::default()),
    current: AtomicUsize::new(0),
    rounds: AtomicU64::new(0),
    step: Mutex::new(super::round::Step::Idle),
});

/// The readers of this process.
pub(super) fn readers() -> &'static Readers {
    &READERS
}

/// The counter of this thread, which others may share. It is chosen by the address of the C
/// library's data on the thread: a thread-local of brant's might have to be allocated at its first
/// use.
pub(super) fn shard() -> usize {
    const { assert!(SHARDS.is_power_of_two()) };
    // The middle bits of these addresses differ, because they lie at the ends of stacks.
    let spread = (thread::address() as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (spread >> (64 - SHARDS.trailing_zeros())) as usize
}
