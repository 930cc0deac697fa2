//! Ballooned pages, compared with a plain set, with host pages of several sizes.

use super::*;
use crate::memory::{
    Block, BlockDescription, BlockFlags, BlockId, Memory, SlotDescription, WrittenObserver, NO_SLOT,
};
use crate::units::Bytes;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use vm_memory::GuestAddress;

const GUEST: u64 = 0x10_0000;

/// The marks that were made, as pages of blocks.
#[derive(Default)]
struct Marks(Mutex<Vec<Range<u64>>>);

impl WrittenObserver for Marks {
    fn written(&self, _: BlockId, first: Pages, count: Pages) {
        self.0.lock().unwrap().push(first.0..first.0 + count.0);
    }
}

/// A block of `pages` pages whose first page lies behind `phase` others in its host page.
fn memory(pages: u64, page_size: u64, phase: u64) -> (Arc<Memory>, Arc<Block>, Arc<Marks>) {
    let memory = Arc::new(Memory::new().unwrap());
    // This memory is never accessed, and nothing is mapped there.
    let host = 0x2000_0000_0000 + phase * PAGE_SIZE;
    let length = Bytes(pages * PAGE_SIZE);
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
            length,
            page_size: Bytes(page_size),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    memory
        .add_slot(&SlotDescription {
            slot: NO_SLOT,
            flags: 0,
            block: memory.find_block("ram").unwrap(),
            offset: Bytes(0),
            length,
            guest_address: GuestAddress(GUEST),
        })
        .unwrap();
    let block = Arc::clone(&memory.map().blocks()[0]);
    let marks = Arc::new(Marks::default());
    let weak: Weak<dyn WrittenObserver> = {
        let weak: Weak<Marks> = Arc::downgrade(&marks);
        weak
    };
    memory.observe_written(weak);
    (memory, block, marks)
}

fn at(page: u64) -> GuestAddress {
    GuestAddress(GUEST + page * PAGE_SIZE)
}

#[test]
fn nothing_counts_until_the_guest_must_tell_and_nothing_does_when_it_need_not() {
    let (memory, block, marks) = memory(100, 4096, 0);
    memory.mark_ballooned(at(0), 100 * PAGE_SIZE);
    assert_eq!(block.ballooned().count(), 0);
    memory.set_must_tell_host(true);
    assert_eq!(
        block.ballooned().count(),
        0,
        "what was said before is not known to hold"
    );
    memory.mark_ballooned(at(10), 20 * PAGE_SIZE);
    assert_eq!(memory.count_ballooned(at(0), 100 * PAGE_SIZE), 20);
    marks.0.lock().unwrap().clear();
    memory.set_must_tell_host(false);
    assert_eq!(*marks.0.lock().unwrap(), vec![10..30; 1]);
    memory.set_must_tell_host(true);
    assert_eq!(memory.count_ballooned(at(0), 100 * PAGE_SIZE), 0);
}

#[test]
fn a_device_that_is_set_up_again_knows_nothing_of_what_was_ballooned_before() {
    let (memory, block, marks) = memory(100, 4096, 0);
    memory.set_must_tell_host(true);
    memory.mark_ballooned(at(10), 20 * PAGE_SIZE);
    // The guest was reset, and boots with all of its memory in use.
    memory.set_must_tell_host(true);
    assert_eq!(block.ballooned().count(), 0);
    assert_eq!(*marks.0.lock().unwrap(), vec![10..30; 1]);
    // A destination may say this before its memory comes and after; the second time is no reset.
    memory.inflate_from_source(&block, 40..50, |_| {});
    memory.set_must_tell_host(true);
    assert_eq!(block.ballooned().count(), 10);
    drop(memory.settle_ballooned());
    assert_eq!(block.ballooned().count(), 10);
    // The guest runs here now, and resets its device here.
    memory.set_must_tell_host(true);
    assert_eq!(block.ballooned().count(), 0);
}

#[test]
fn what_a_source_said_is_forgotten_when_its_guest_does_not_come() {
    let (memory, block, _marks) = memory(100, 4096, 0);
    memory.inflate_from_source(&block, 40..50, |_| {});
    assert_eq!(block.ballooned().count(), 10);
    memory.abandon_ballooned();
    // Another guest boots in this memory.
    memory.set_must_tell_host(true);
    assert_eq!(block.ballooned().count(), 0);
    memory.mark_ballooned(at(1), PAGE_SIZE);
    memory.abandon_ballooned();
    assert_eq!(block.ballooned().count(), 1, "this one's own is kept");
}

#[test]
fn a_whole_guest_is_inflated_and_deflated_in_one_call() {
    // Larger than the part that is moved in one hold of the lock, with host pages across its edges.
    for (page_size, phase) in [(4096, 0), (2 << 20, 0), (2 << 20, 77)] {
        let pages = 3 * SLICE as u64 + 512 * 5;
        let (memory, block, marks) = memory(pages, page_size, phase);
        memory.set_must_tell_host(true);
        memory.mark_ballooned(at(0), pages * PAGE_SIZE);
        assert_eq!(block.ballooned().count(), pages);
        let mut pending = Bitmap::new(pages as usize).unwrap();
        let mut both = 0;
        for page in (0..pages as usize).step_by(997) {
            both += pending.set_range(page, page % 700);
            assert_eq!(block.ballooned().count_both(&pending), both);
        }
        let mut news = 0;
        block.ballooned().take_news(|at, words, n| {
            assert!(at % 64 == 0 && n <= words.len() * 64);
            news += words
                .iter()
                .take(n.div_ceil(64))
                .map(|w| u64::from(w.count_ones()))
                .sum::<u64>();
        });
        assert_eq!(news, pages);
        memory.clear_ballooned(at(1), (pages - 2) * PAGE_SIZE);
        let marked: u64 = marks
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|m| m.end - m.start)
            .sum();
        assert!(marked >= pages - 2);
        assert_eq!(
            block.ballooned().count(),
            if page_size == 4096 { 2 } else { 0 }
        );
    }
}

#[test]
fn only_whole_pages_are_ballooned_and_touched_ones_are_not() {
    let (memory, block, marks) = memory(8, 4096, 0);
    memory.set_must_tell_host(true);
    memory.mark_ballooned(GuestAddress(GUEST + 1), 3 * PAGE_SIZE);
    assert_eq!(block.ballooned().count_range(0..8), 2);
    assert_eq!(block.ballooned().next_before(0, u64::MAX), Some(1));
    memory.clear_ballooned(GuestAddress(GUEST + 2 * PAGE_SIZE - 1), 1);
    assert_eq!(block.ballooned().next_before(0, u64::MAX), Some(2));
    assert_eq!(*marks.0.lock().unwrap(), vec![1..2; 1]);
    // Beyond all memory, and of no length.
    memory.mark_ballooned(GuestAddress(u64::MAX - 1), u64::MAX);
    memory.clear_ballooned(GuestAddress(u64::MAX), u64::MAX);
    memory.mark_ballooned(GuestAddress(0), u64::MAX);
    memory.mark_ballooned(at(0), 0);
    memory.clear_ballooned(at(2), 0);
    assert_eq!(block.ballooned().count(), 8);
}

#[test]
fn what_is_inflated_or_deflated_from_many_threads_is_counted_right() {
    let (memory, block, _marks) = memory(4096, 4096, 0);
    memory.set_must_tell_host(true);
    std::thread::scope(|s| {
        for n in 0..4u64 {
            let memory = &memory;
            s.spawn(move || {
                for i in 0..2000u64 {
                    // A quarter of the pages for each thread, so that each thread's final state is
                    // known.
                    let page = n * 1024 + i * 7 % 1024;
                    memory.mark_ballooned(at(page), PAGE_SIZE);
                    if page % 3 == 0 {
                        memory.clear_ballooned(at(page), PAGE_SIZE);
                    }
                }
            });
        }
    });
    let left = (0..4096).filter(|p| p % 3 != 0).count() as u64;
    assert_eq!(block.ballooned().count(), left);
    assert_eq!(block.ballooned().count_range(0..4096), left);
}

proptest! {
    #[test]
    fn a_host_page_counts_when_every_part_is_ballooned(
        pages in 1..400u64,
        shift in 0..8u32,
        phase in 0..128u64,
        ops in prop::collection::vec((any::<bool>(), 0..400u64, 1..120u64), 1..60),
    ) {
        let unit = 1u64 << shift;
        let pages = pages.div_ceil(unit) * unit;
        let phase = phase % unit;
        let (memory, block, marks) = memory(pages, unit * PAGE_SIZE, phase);
        memory.set_must_tell_host(true);
        let ballooned = block.ballooned();
        let mut parts = BTreeSet::new();
        let host_page = |p: u64| (p + phase) / unit;
        for (give, first, count) in ops {
            let first = first % pages;
            let range = first..(first + count).min(pages);
            let counted: BTreeSet<u64> = (0..pages)
                .filter(|p| (0..pages).filter(|q| host_page(*q) == host_page(*p)).all(|q| parts.contains(&q)))
                .collect();
            marks.0.lock().unwrap().clear();
            let bytes = (range.end - range.start) * PAGE_SIZE;
            if give {
                memory.mark_ballooned(at(first), bytes);
                parts.extend(range);
            } else {
                memory.clear_ballooned(at(first), bytes);
                let marked = marks.0.lock().unwrap().clone();
                for p in range {
                    prop_assert!(marked.iter().any(|m| m.contains(&p)), "{p} is not marked");
                    parts.remove(&p);
                    // Every ballooned page of the same host page ends too.
                    for q in (0..pages).filter(|q| counted.contains(q) && host_page(*q) == host_page(p)) {
                        prop_assert!(marked.iter().any(|m| m.contains(&q)), "{q} is not marked");
                    }
                }
            }
            let mut count = 0;
            for p in 0..pages {
                let all = (0..pages)
                    .filter(|q| host_page(*q) == host_page(p))
                    .all(|q| parts.contains(&q));
                prop_assert_eq!(ballooned.count_range(p..p + 1), u64::from(all), "page {}", p);
                count += u64::from(all);
            }
            prop_assert_eq!(ballooned.count(), count);
            prop_assert_eq!(ballooned.count_range(0..pages), count);
            let mut all = Bitmap::new(pages as usize).unwrap();
            all.set_all();
            prop_assert_eq!(ballooned.count_both(&all), count);
        }
    }
}
