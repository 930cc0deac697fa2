//! Times that tests share, and a cancel that must be prompt.

use brant::error::Result;
use std::time::{Duration, Instant};

/// Longer than anything takes that works.
pub const LONG: Duration = Duration::from_secs(30);
/// One millisecond, for multiples of it.
pub const MS: Duration = Duration::from_millis(1);

/// Cancels, and fails if that took long.
pub fn cancel_promptly(what: &str, cancel: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    let result = cancel();
    let took = begun.elapsed();
    println!("cancelled {what} in {took:?}: {result:?}");
    assert!(took < Duration::from_secs(2), "{what}: {took:?}");
    result
}
