//! Parameters of these tests: short time limits, the seed, and many cases at a time.

use crate::support::time::MS;
use brant::migrate::Params;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The time limits of these tests, and how much longer a busy machine may take. That includes the
/// second for which a destination listens after it has said why it ends.
pub const LIMIT: Duration = Duration::from_millis(400);

pub const SLACK: Duration = Duration::from_millis(4000);

pub fn quick() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        max_state_bytes: 1 << 20,
        // The wait for a missing answer takes this long and one second more.
        handover_timeout: MS * 1000,
        ..Params::default()
    }
}

/// Does something with each of many values, several at a time, because most of them wait for a
/// limit.
pub fn each<T: Sync>(all: &[T], what: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::SeqCst)) {
                    what(one);
                }
            });
        }
    });
}

pub fn strict() -> Params {
    Params {
        connect_timeout: LIMIT,
        io_timeout: LIMIT,
        switchover_timeout: LIMIT,
        handover_timeout: LIMIT,
        ..quick()
    }
}

pub fn seed() -> u64 {
    let seed = std::env::var("BRANT_SEED").ok();
    let seed = seed.map_or(0xb4a2, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    seed
}
