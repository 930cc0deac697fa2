//! The destination's records have to cover every page once, and what they say is compared with
//! memory, but for the pages that are left out.

use super::*;
use crate::dirty::testing::Guest;
use crate::units::PAGE_SIZE;
use crate::wire::DIGEST_SUMS_MAX;

fn record(block: u32, first: u64, pages: u32, sums: &[u32]) -> Digest {
    Digest {
        block,
        first_page: Pages(first),
        pages,
        sums: sums.to_vec(),
    }
}

fn coverage(blocks: &[(u32, u64)]) -> Coverage {
    let blocks = blocks
        .iter()
        .map(|(id, pages)| (BlockId(*id), Pages(*pages)));
    Coverage::of(blocks).unwrap()
}

#[test]
fn records_cover_each_page_of_each_block_once() {
    let mut all = coverage(&[(3, 1000), (7, 512)]);
    assert_eq!(all.left(), 1512);
    let range = all.take(&record(3, 0, 512, &[1; DIGEST_SUMS_MAX])).unwrap();
    assert_eq!(range, (BlockId(3), Pages(0)..Pages(512)));
    // Records of several blocks may alternate.
    all.take(&record(7, 0, 512, &[])).unwrap();
    let range = all.take(&record(3, 512, 488, &[])).unwrap();
    assert_eq!(range, (BlockId(3), Pages(512)..Pages(1000)));
    assert_eq!(all.left(), 0);
}

#[test]
fn a_record_twice_with_a_gap_past_the_end_or_of_no_block_is_refused_and_changes_nothing() {
    let mut all = coverage(&[(3, 1000), (7, 512)]);
    all.take(&record(3, 0, 512, &[])).unwrap();
    let bad = [
        (record(3, 0, 512, &[]), "expected checksums from page 512"),
        (record(3, 513, 1, &[]), "from page 512 on, found page 513"),
        (record(3, 512, 489, &[]), "at most 488 pages"),
        (record(3, 512, u32::MAX, &[]), "at most 488 pages"),
        (record(3, u64::MAX, 1, &[]), "from page 512 on"),
        (record(7, 1, 1, &[]), "from page 0 on"),
        (record(8, 0, 1, &[]), "block 8: the destination knows no"),
    ];
    for (bad, part) in bad {
        let error = all.take(&bad).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.message().contains(part), "{part}: {error}");
        assert_eq!(all.left(), 1000);
    }
    all.take(&record(3, 512, 488, &[])).unwrap();
    let more = all.take(&record(3, 1000, 1, &[1])).unwrap_err();
    assert!(more.message().contains("at most 0 pages"), "{more}");
}

#[test]
fn what_was_found_in_a_block_is_told_when_all_of_it_is_compared() {
    let mut all = coverage(&[(3, 1024), (7, 512)]);
    let one = |mismatched, first: Option<u64>| Found {
        verified: 500,
        unverified: 12,
        mismatched,
        first: first.map(Pages),
    };
    all.take(&record(3, 0, 512, &[])).unwrap();
    assert_eq!(all.found(BlockId(3), one(2, Some(40))), None);
    let parts: Vec<_> = all.parts().filter(|(id, _)| id.0 == 3).collect();
    assert_eq!(parts, [(BlockId(3), one(2, Some(40)))]);
    all.take(&record(3, 512, 512, &[])).unwrap();
    let whole = all.found(BlockId(3), one(1, Some(600))).unwrap();
    assert_eq!((whole.verified, whole.unverified), (1000, 24));
    assert_eq!((whole.mismatched, whole.first), (3, Some(Pages(40))));
}

const PAGES: u64 = 10_000;

/// A guest with data in every third page of its first half.
fn guest() -> (Guest, Arc<Block>) {
    let guest = Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let block = Arc::clone(&guest.memory.map().blocks()[0]);
    for page in (0..PAGES / 2).step_by(3) {
        fill(&block, page, page as u8 | 1);
    }
    (guest, block)
}

fn fill(block: &Block, page: u64, byte: u8) {
    let address = block.page_address(Pages(page));
    // SAFETY: a page of the test's own memory, which nobody else uses now.
    unsafe { std::ptr::write_bytes(address, byte, PAGE_SIZE as usize) };
}

/// The records of a destination whose memory is that of `block`.
fn records(block: &Block) -> Vec<Digest> {
    let (mut contents, mut sums) = (Contents::new(), Vec::new());
    let mut records = Vec::new();
    for first in (0..PAGES / 2).step_by(512) {
        let end = (first + 512).min(PAGES / 2);
        of_pages(&mut contents, block, Pages(first)..Pages(end), &mut sums).unwrap();
        records.push(record(block.id().0, first, (end - first) as u32, &sums));
    }
    let zeros = (PAGES - PAGES / 2) as u32;
    records.push(record(block.id().0, PAGES / 2, zeros, &[]));
    records
}

fn compared(guest: &Guest, unread: &Unread, records: &[Digest]) -> Found {
    let mut comparer = Comparer::new(&guest.memory, unread);
    let mut found = Found::default();
    for digest in records {
        let range = digest.first_page..digest.first_page + Pages(digest.pages.into());
        let id = BlockId(digest.block);
        found.add(comparer.compare(id, range, digest).unwrap());
    }
    found
}

#[test]
fn equal_memory_has_no_difference_and_each_changed_page_is_one() {
    let (guest, block) = guest();
    let records = records(&block);
    let equal = compared(&guest, &Unread::default(), &records);
    assert_eq!(
        equal,
        Found {
            verified: PAGES,
            ..Found::default()
        }
    );
    // A data page, a zero page among data, a page in a long run of zeros.
    for page in [3, 1000, PAGES - 1] {
        fill(&block, page, 0xee);
    }
    let changed = compared(&guest, &Unread::default(), &records);
    assert_eq!((changed.mismatched, changed.first), (3, Some(Pages(3))));
    assert_eq!(changed.verified, PAGES);
}

#[test]
fn unread_ballooned_and_poisoned_pages_are_left_out() {
    let (guest, block) = guest();
    let records = records(&block);
    guest.slot("ram", 0, PAGES, 0).unwrap();
    let at = |page: u64| vm_memory::GuestAddress(page * PAGE_SIZE);
    let unread = Unread::default();
    unread
        .note(&block, &block.run(Pages(30), Pages(10)).unwrap(), true)
        .unwrap();
    guest.memory.set_must_tell_host(true);
    guest.memory.mark_ballooned(at(4090), 10 * PAGE_SIZE);
    let lost = Pages(9000).bytes();
    guest
        .memory
        .mark_poisoned(block.id(), lost, Pages(1).bytes())
        .unwrap();
    for page in (30..40).chain(4090..4100).chain([9000]) {
        fill(&block, page, 0xee);
    }
    let found = compared(&guest, &unread, &records);
    assert_eq!(
        found,
        Found {
            verified: PAGES - 21,
            unverified: 21,
            ..Found::default()
        }
    );
    // One page beside each of them is seen.
    for page in [29, 40, 4089, 4100, 8999] {
        fill(&block, page, 0xdd);
    }
    let found = compared(&guest, &unread, &records);
    assert_eq!((found.mismatched, found.first), (5, Some(Pages(29))));
}

#[test]
fn a_block_that_is_gone_is_left_out() {
    let (guest, block) = guest();
    let records = records(&block);
    let id = block.id();
    drop(block);
    guest.memory.remove_block(id).unwrap();
    let found = compared(&guest, &Unread::default(), &records);
    assert_eq!((found.verified, found.unverified), (0, PAGES));
    assert_eq!(name_of(&guest.memory, id), format!("block {id}"));
}
