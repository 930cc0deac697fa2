//! Limits on the whole process: how much memory is in use, how large one allocation is, and that
//! brant does not panic. The allocator counts, and each test checks before and after.

use crate::allocator::{LARGEST, PEAK};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Once;

/// The largest allocation: a list of as many blobs as there can be, of about 100 bytes each. The
/// tests themselves make no larger one either.
const ONE_ALLOCATION: usize = 8 << 20;

/// The most memory for all tests together, with everything that they migrate.
const AT_ONCE: usize = 64 << 20;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Includes panics of failed assertions, whose messages take memory.
static ANY_PANICS: AtomicUsize = AtomicUsize::new(0);

/// Call this first and last in each test.
#[allow(
    clippy::disallowed_methods,
    reason = "this program's hook: it counts panics"
)]
pub fn bounded() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Panics of brant, caught or not. Failed assertions of tests do not count here.
            let ours = info
                .location()
                .is_some_and(|at| !at.file().contains("tests/"));
            PANICS.fetch_add(usize::from(ours), Ordering::SeqCst);
            ANY_PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "panics inside brant");
    if ANY_PANICS.load(Ordering::SeqCst) > 0 {
        return;
    }
    let (largest, peak) = (
        LARGEST.load(Ordering::Relaxed),
        PEAK.load(Ordering::Relaxed),
    );
    assert!(
        largest <= ONE_ALLOCATION,
        "one allocation of {largest} bytes"
    );
    assert!(peak <= AT_ONCE, "{peak} bytes at once");
}
