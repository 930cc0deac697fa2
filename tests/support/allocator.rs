//! The allocator of the program `counted`: it counts what is in use, and fails when a test asks for
//! that. All of it belongs to the process, so a test that needs the counts or failures for itself
//! runs alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

/// Bytes in use.
pub static LIVE: AtomicUsize = AtomicUsize::new(0);
/// The most bytes that were in use at a time.
pub static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The largest allocation, in bytes.
pub static LARGEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Allocations of this thread. In the program's own block of thread locals, which exists from
    /// the start.
    pub static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The size of a large allocation, in bytes.
pub const LARGE: usize = 8 << 10;
/// How many large allocations still succeed before one fails; below 0, all do.
pub static LEFT: AtomicI64 = AtomicI64::new(-1);
/// Whether one has failed.
pub static FAILED: AtomicBool = AtomicBool::new(false);

fn fails(size: usize) -> bool {
    if size < LARGE || LEFT.load(Ordering::Relaxed) < 0 {
        return false;
    }
    let fails = LEFT.fetch_sub(1, Ordering::Relaxed) == 0;
    if fails {
        FAILED.store(true, Ordering::Relaxed);
    }
    fails
}

fn grown(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
    LARGEST.fetch_max(size, Ordering::Relaxed);
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

struct Counting;

// SAFETY: the system's allocator, with counts beside it, or null, which every caller has to expect.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails(layout.size()) {
            return null_mut();
        }
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if fails(layout.size()) {
            return null_mut();
        }
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if fails(size) {
            return null_mut();
        }
        grown(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
