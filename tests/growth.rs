//! What is plugged and unplugged for as long as a guest lives leaves nothing behind. Counted by
//! an allocator that knows what is in use, in a program of its own for that reason.

use brant::dirty::consumer::Cursor;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription, NO_SLOT};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use vm_memory::GuestAddress;

struct Counting;

static IN_USE: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator, and a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Nobody looks at the memory.
const HOST: u64 = 0x2000_0000_0000;
const PAGES: u64 = 4096;

fn plug(memory: &Memory, name: &str, at: u64) {
    memory
        .add_block(BlockDescription {
            name: name.into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { brant::memory::HostMemory::new((HOST + at) as *mut u8) },
            length: Pages(PAGES).bytes(),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    memory
        .add_slot(&SlotDescription {
            slot: NO_SLOT,
            flags: 0,
            block: name.into(),
            offset: Bytes(0),
            length: Pages(PAGES).bytes(),
            guest_address: GuestAddress(at),
        })
        .unwrap();
}

#[test]
fn twenty_thousand_blocks_that_came_and_went_leave_nothing() {
    let memory = Arc::new(Memory::new().unwrap());
    plug(&memory, "ram", 0);
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    let mut runs = Vec::new();
    let mut turn = |n: u64| {
        // A few are there at a time, and the last of them were made last.
        let name = |i: u64| format!("dimm{}", i % 4);
        let at = |i: u64| (1 + i % 4) << 30;
        for i in 0..n {
            if i >= 4 {
                memory.remove_block(&name(i)).unwrap();
            }
            plug(&memory, &name(i), at(i));
            consumer.mark_guest(GuestAddress(at(i)), 1);
            if i % 500 == 0 {
                consumer.sync(When::Running).unwrap();
                let mut cursor = Cursor::default();
                consumer
                    .take(&mut cursor, 1000, Pages(u64::MAX), &mut runs)
                    .unwrap();
                runs.clear();
            }
        }
        for i in 0..4 {
            memory.remove_block(&name(i)).unwrap();
        }
        consumer.sync(When::Running).unwrap();
        (IN_USE.load(Ordering::Relaxed), tracker.heap_bytes())
    };
    let few = turn(500);
    let many = turn(20_000);
    assert_eq!(few.1, many.1, "bytes that the tracker says it holds");
    // A byte for each would be 20,000.
    assert!(
        many.0 < few.0 + 10_000,
        "{} bytes in use after 500 blocks, {} after 20,000",
        few.0,
        many.0
    );
}
