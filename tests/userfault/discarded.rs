//! Discarded memory counts as written.

use super::watched::{tracked, Ram, PAGE};
use std::collections::BTreeSet;

#[test]
fn discarded_pages_of_private_memory_count_as_written() {
    let Some(t) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    for page in 0..64 {
        t.blocks[0].write(page, 1);
    }
    t.start();
    // SAFETY: inside the mapping.
    let result = unsafe {
        let from = t.blocks[0].at.add(5 * PAGE);
        libc::madvise(from.cast(), 2 * PAGE, libc::MADV_DONTNEED)
    };
    assert_eq!(result, 0);
    assert_eq!(t.found(), BTreeSet::from([(0, 5), (0, 6)]));
}

#[test]
fn whole_page_tables_of_memory_that_was_discarded_count_as_written() {
    // The kernel may free a page table that a discard has emptied, and with it the protection.
    const TABLE: usize = 512;
    let Some(t) = tracked(vec![Ram::anonymous(6 * TABLE)]) else {
        return;
    };
    for page in 0..6 * TABLE {
        t.blocks[0].write(page, 1);
    }
    t.start();
    assert_eq!(t.found(), BTreeSet::new());
    // SAFETY: inside the mapping.
    let result = unsafe {
        let from = t.blocks[0].at.add(3 * PAGE);
        libc::madvise(from.cast(), 4 * TABLE * PAGE, libc::MADV_DONTNEED)
    };
    assert_eq!(result, 0);
    let given: BTreeSet<_> = (3..3 + 4 * TABLE).map(|page| (0, page)).collect();
    assert_eq!(t.found(), given);
    // Once more, with the empty memory protected.
    assert_eq!(t.found(), BTreeSet::new());
    t.blocks[0].write(2 * TABLE, 7);
    assert_eq!(t.found(), BTreeSet::from([(0, 2 * TABLE)]));
}
