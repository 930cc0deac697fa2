//! Blocks that come and go, that are read-only, and that have huge pages.

use super::watched::{log, map, tracked, tracked_with, Ram, PAGE};
use brant::error::Kind;
use brant::units::{Bytes, PAGE_SIZE};
use std::collections::BTreeSet;

#[test]
fn blocks_come_and_go_while_they_are_written() {
    let Some(t) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    t.start();
    let extra: Vec<Ram> = vec![Ram::anonymous(33), Ram::shared(7), Ram::huge(600)];
    for round in 1..=5u64 {
        for (i, ram) in extra.iter().enumerate() {
            ram.write(0, round);
            let id = t
                .memory
                .add_block(ram.describe(&format!("extra{i}")))
                .unwrap();
            // All of its contents are new.
            let new = t.take();
            assert_eq!(new.len(), ram.pages);
            assert!(new.iter().all(|(block, _)| *block == id.index()));
            ram.write(2, round);
            t.blocks[0].write(9, round);
            assert_eq!(t.found(), BTreeSet::from([(0, 9), (id.index(), 2)]));
        }
        for ram in &extra {
            ram.write(3, round);
        }
        t.blocks[0].write(10, round);
        for i in 0..extra.len() {
            t.memory
                .remove_block(t.memory.find_block(&format!("extra{i}")).unwrap())
                .unwrap();
        }
        assert_eq!(t.found(), BTreeSet::from([(0, 10)]));
    }
    // A removed block is no longer watched, so another log may watch it now.
    let other = tracked_with(log().unwrap(), extra);
    other.start();
    // A block that cannot be watched is refused, and the tracker goes on as before.
    let error = t
        .memory
        .add_block(other.blocks[1].describe("theirs"))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert_eq!(t.memory.map().blocks().len(), 1);
    t.blocks[0].write(11, 1);
    other.blocks[1].write(1, 1);
    assert_eq!(t.found(), BTreeSet::from([(0, 11)]));
    assert_eq!(other.found(), BTreeSet::from([(1, 1)]));
}

#[test]
fn a_read_only_block_is_not_watched_and_its_marks_count() {
    let Some(t) = tracked(vec![Ram::anonymous(8)]) else {
        return;
    };
    let flash = Ram::anonymous(8);
    let mut described = flash.describe("flash");
    described.flags.rom = true;
    let id = t.memory.add_block(described).unwrap();
    t.start();
    flash.write(1, 1);
    t.blocks[0].write(2, 1);
    assert_eq!(t.found(), BTreeSet::from([(0, 2)]));
    t.consumer.mark_block(id, Bytes(PAGE_SIZE), 1);
    assert_eq!(t.found(), BTreeSet::from([(id.index(), 1)]));
}

#[test]
fn a_huge_page_of_hugetlbfs_counts_whole() {
    const HUGE: usize = 512;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let Some(at) = map(4 * HUGE * PAGE, flags, None) else {
        eprintln!("skipped: no huge pages are reserved here");
        return;
    };
    let ram = Ram {
        at,
        pages: 4 * HUGE,
        before: 0,
        whole: 4 * HUGE * PAGE,
        file: None,
    };
    let Some(t) = tracked(vec![ram]) else { return };
    t.start();
    assert_eq!(t.found(), BTreeSet::new());
    for round in 0..3 {
        t.blocks[0].write(HUGE + 5, round);
        let whole = (HUGE..2 * HUGE).map(|page| (0, page)).collect();
        assert_eq!(t.found(), whole);
    }
    t.blocks[0].write(0, 1);
    t.blocks[0].write(3 * HUGE, 1);
    assert_eq!(t.found().len(), 2 * HUGE);
}
