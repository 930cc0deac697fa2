//! Which actions take memory and which do not. Blocks that were plugged and unplugged leave nothing
//! behind, however long a guest lives. A thread's first mark allocates nothing.
//!
//! Each test runs in a process of its own, because the allocator counts for the whole process.

use crate::allocator::{ALLOCATIONS, LIVE};
use crate::support::alone::alone;
use brant::dirty::consumer::Cursor;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription, NO_SLOT};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::GuestAddress;

/// The time limit of a test in a process of its own.
const LIMIT: Duration = Duration::from_secs(120);
/// The memory is never accessed.
const HOST: u64 = 0x2000_0000_0000;
const PAGES: u64 = 4096;

fn plug(memory: &Memory, name: &str, at: u64) {
    memory
        .add_block(BlockDescription {
            name: name.into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
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
            block: memory.find_block(name).unwrap(),
            offset: Bytes(0),
            length: Pages(PAGES).bytes(),
            guest_address: GuestAddress(at),
        })
        .unwrap();
}

#[test]
fn twenty_thousand_blocks_that_came_and_went_leave_nothing() {
    alone(LIMIT, || {
        let memory = Arc::new(Memory::new().unwrap());
        plug(&memory, "ram", 0);
        let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Everything).unwrap();
        let turn = |n: u64| {
            // A few exist at a time, and the last ones were made last.
            let name = |i: u64| format!("dimm{}", i % 4);
            let at = |i: u64| (1 + i % 4) << 30;
            for i in 0..n {
                if i >= 4 {
                    memory
                        .remove_block(memory.find_block(&name(i)).unwrap())
                        .unwrap();
                }
                plug(&memory, &name(i), at(i));
                consumer.mark_guest(GuestAddress(at(i)), 1);
                if i % 500 == 0 {
                    consumer.sync(When::Running).unwrap();
                    let mut cursor = Cursor::default();
                    let taken = consumer.take(&mut cursor, 1000, Pages(u64::MAX)).unwrap();
                    taken.delivered();
                }
            }
            for i in 0..4 {
                memory
                    .remove_block(memory.find_block(&name(i)).unwrap())
                    .unwrap();
            }
            consumer.sync(When::Running).unwrap();
            (LIVE.load(Ordering::Relaxed), tracker.heap_bytes())
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
    });
}

/// An allocation may need the process' memory map, which a scan of page tables may hold. It would
/// wait as long as the scan takes.
#[test]
fn no_mark_allocates_not_even_a_thread_s_first() {
    alone(LIMIT, || {
        let memory = Arc::new(Memory::new().unwrap());
        for i in 0..40 {
            plug(&memory, &format!("ram{i}"), i << 30);
        }
        let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let id = memory.map().blocks()[7].id();
        for first in 0..4 {
            let tracker = Arc::clone(&tracker);
            let marker = std::thread::spawn(move || {
                let before = ALLOCATIONS.with(Cell::get);
                for i in first..first + 4 {
                    match i % 4 {
                        0 => tracker.mark_guest(GuestAddress(5 << 30), 1),
                        1 => tracker.mark_guest(GuestAddress(0), u64::MAX),
                        2 => tracker.mark_block(id, Bytes(0), 1),
                        _ => tracker.mark_words(GuestAddress(0), &[u64::MAX; 100], 6400),
                    }
                }
                ALLOCATIONS.with(Cell::get) - before
            });
            assert_eq!(marker.join().unwrap(), 0, "beginning with mark {first}");
        }
        assert_eq!(consumer.sync(When::Running).unwrap().found.0, 40 * PAGES);
    });
}
