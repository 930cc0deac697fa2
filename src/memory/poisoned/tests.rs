//! Declared pages, compared with a list.

use super::*;
use crate::error::Kind;
use crate::memory::{BlockDescription, BlockFlags, BlockId, Memory};
use crate::units::Bytes;
use proptest::prelude::*;

const PAGES: usize = 2048;

/// A guest with one block, `ram`, which is never touched. The block begins `skipped` pages behind a
/// multiple of 2 MiB.
fn memory(page_size: u64, skipped: usize) -> Memory {
    const TWO_MIB: usize = 2 << 20;
    // SAFETY: a new mapping at an address of the kernel's choice, kept for the life of the process.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGES * 4096 + 2 * TWO_MIB,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    let begin = (at as usize).next_multiple_of(TWO_MIB) + skipped * 4096;
    let memory = Memory::new().unwrap();
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { crate::memory::HostMemory::new(begin as *mut u8) },
            length: Bytes((PAGES * 4096) as u64),
            page_size: Bytes(page_size),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    memory
}

/// The declared pages, asked for in parts of `step` pages.
fn declared(memory: &Memory, step: usize) -> Vec<bool> {
    let map = memory.map();
    let mut found = Vec::new();
    for from in (0..PAGES).step_by(step) {
        let range = Pages(from as u64)..Pages((from + step).min(PAGES) as u64);
        let split = map.blocks()[0].poisoned().split(range, |run, lost| {
            assert!(run.start < run.end);
            assert_eq!(run.start.index(), found.len());
            found.resize(run.end.index(), lost);
            Ok(())
        });
        split.unwrap();
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_declared_and_not_taken_back_is_declared(
        calls in prop::collection::vec(
            (any::<bool>(), 0..(PAGES * 4096) as u64, 1..100_000u64), 1..20),
        step in 1..600usize,
    ) {
        let memory = memory(4096, 0);
        let mut model = vec![false; PAGES];
        for (mark, offset, length) in calls {
            let length = length.min((PAGES * 4096) as u64 - offset);
            let pages = (offset / 4096) as usize..(offset + length).div_ceil(4096) as usize;
            model[pages].fill(mark);
            if mark {
                memory.mark_poisoned(memory.find_block("ram").unwrap(), Bytes(offset), Bytes(length)).unwrap();
            } else {
                memory.clear_poisoned(memory.find_block("ram").unwrap(), Bytes(offset), Bytes(length)).unwrap();
            }
        }
        prop_assert_eq!(memory.poisoned_pages(), model.iter().filter(|b| **b).count() as u64);
        prop_assert_eq!(declared(&memory, step), model);
    }
}

#[test]
fn a_larger_page_of_the_hosts_is_lost_whole_and_cut_at_the_block() {
    // The block begins in the middle of a page of 2 MiB.
    let memory = memory(2 << 20, 100);
    let count = |from: u64, length: u64| {
        memory
            .mark_poisoned(
                memory.find_block("ram").unwrap(),
                Bytes(from),
                Bytes(length),
            )
            .unwrap();
        let found = declared(&memory, PAGES);
        let first = found.iter().position(|b| *b).unwrap();
        let pages = found.iter().filter(|b| **b).count();
        let all = Bytes((PAGES * 4096) as u64);
        memory
            .clear_poisoned(memory.find_block("ram").unwrap(), Bytes(0), all)
            .unwrap();
        assert_eq!(memory.poisoned_pages(), 0);
        (first, pages)
    };
    assert_eq!(count(0, 1), (0, 412));
    assert_eq!(count(412 * 4096, 1), (412, 512));
    assert_eq!(count(412 * 4096 - 1, 2), (0, 924));
    assert_eq!(count(2047 * 4096, 4096), (1948, 100));
}

#[test]
fn ranges_that_are_none_and_blocks_that_are_not_there_are_refused() {
    let memory = memory(4096, 0);
    let all = (PAGES * 4096) as u64;
    for (offset, length) in [(0, 0), (0, all + 1), (all, 1), (1, u64::MAX), (u64::MAX, 1)] {
        for refused in [
            memory.mark_poisoned(
                memory.find_block("ram").unwrap(),
                Bytes(offset),
                Bytes(length),
            ),
            memory.clear_poisoned(
                memory.find_block("ram").unwrap(),
                Bytes(offset),
                Bytes(length),
            ),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{error}");
            assert!(
                error.message().contains("block `ram` has 8388608 bytes"),
                "{error}"
            );
        }
    }
    let error = memory
        .mark_poisoned(BlockId(77), Bytes(0), Bytes(1))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(memory.poisoned_pages(), 0);
}

#[test]
fn a_message_lists_the_first_few() {
    let memory = memory(4096, 0);
    for page in 0..6 {
        let at = Bytes(page * 2 * 4096);
        memory
            .mark_poisoned(memory.find_block("ram").unwrap(), at, Bytes(1))
            .unwrap();
    }
    let text = memory.describe_poisoned();
    assert!(text.starts_with("block `ram`, offset 0x0, 4096 bytes, block `ram`, offset 0x2000,"));
    assert!(
        text.ends_with("offset 0x6000, 4096 bytes, and others"),
        "{text}"
    );
}
