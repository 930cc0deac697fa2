//! The records cover each page of each block, with the checksums of what memory holds, by however
//! many threads; holes stay untouched.

use super::*;
use crate::dirty::testing::Guest;
use crate::units::PAGE_SIZE;
use crate::vmm::Vmm;
use crate::wire::{Header, HEADER_LEN};
use std::sync::Mutex;

/// Five stretches and a half, in more than one piece.
const PAGES: u64 = 2 * PIECE.0 + 5 * STRETCH_PAGES + 256;

#[derive(Default)]
struct Roles(Mutex<Vec<Role>>);

impl Vmm for Roles {
    fn thread_start(&self, role: Role) {
        self.0.lock().unwrap().push(role);
    }
}

fn guest() -> (Guest, Vec<(u32, Arc<Block>)>) {
    let guest = Guest::new(2 * PAGES as usize);
    guest.block("a", PAGES);
    guest.block("b", 700);
    let map = guest.memory.map();
    let blocks: Vec<_> = (70..).zip(map.blocks().iter().cloned()).collect();
    // In the first stretch, in one of the middle, in the last page; all of "b".
    for page in [0, 5 * STRETCH_PAGES + 9, PAGES - 1] {
        fill(&blocks[0].1, page);
    }
    (0..700).for_each(|page| fill(&blocks[1].1, page));
    (guest, blocks)
}

fn fill(block: &Block, page: u64) {
    let address = block.page_address(Pages(page));
    // SAFETY: a page of the test's own memory, which nobody else uses now.
    unsafe { std::ptr::write_bytes(address, page as u8 | 1, PAGE_SIZE as usize) };
}

fn compute(
    guest: &Guest,
    blocks: &[(u32, Arc<Block>)],
    threads: usize,
    cancel: &Cancel,
) -> (Result<Digests>, usize) {
    let vmm = Arc::new(Roles::default());
    let calls = Callbacks::new(vmm.clone(), 1);
    let digests = Digests::compute(&guest.memory, blocks.to_vec(), threads, cancel, &calls);
    let roles = vmm.0.lock().unwrap();
    assert!(roles.iter().all(|role| *role == Role::Digest));
    (digests, roles.len())
}

fn records(digests: &Digests) -> Vec<Digest> {
    let mut all = Vec::new();
    digests
        .records(|mut bytes| {
            while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
                let header = Header::decode(head)?;
                let (payload, rest) = rest.split_at(header.payload as usize);
                match Record::decode(&header, payload)? {
                    Record::Digest(digest) => all.push(digest),
                    other => panic!("{other:?}"),
                }
                bytes = rest;
            }
            Ok(())
        })
        .unwrap();
    all
}

#[test]
fn records_say_what_each_page_holds_by_any_number_of_threads() {
    let (guest, blocks) = guest();
    let cancel = Cancel::new().unwrap();
    let mut first: Option<Digests> = None;
    for threads in [1, 2, 3, 64] {
        let (digests, helpers) = compute(&guest, &blocks, threads, &cancel);
        let digests = digests.unwrap();
        // One thread for each piece at most: three of "a", one of "b".
        assert_eq!(helpers, threads.min(4) - 1);
        assert_eq!(digests.pages(), PAGES + 700);
        let mut next = [0u64; 2];
        for digest in records(&digests) {
            let at = (digest.block - 70) as usize;
            assert_eq!(digest.first_page.0, next[at]);
            for page in next[at]..next[at] + u64::from(digest.pages) {
                let (_, block) = &blocks[at];
                let mut copy = vec![0; PAGE_SIZE as usize];
                let slice = block.slice(Pages(page), Pages(1)).unwrap();
                slice.copy_to(&mut copy[..]);
                let sum = digest.sums.get((page - next[at]) as usize);
                let sum = sum.copied().unwrap_or(OF_ZEROS);
                assert_eq!(sum, crc32fast::hash(&copy), "block {at}, page {page}");
            }
            next[at] += u64::from(digest.pages);
        }
        assert_eq!(next, [PAGES, 700]);
        match &first {
            None => first = Some(digests),
            Some(first) => assert_eq!(*first, digests),
        }
    }
    // Stretches of zeros have no checksums: the first stretch, one of the middle, the last, and
    // the two of "b" have.
    let sums = |digest: &Digest| !digest.sums.is_empty();
    let count = records(&first.unwrap()).iter().filter(|d| sums(d)).count();
    assert_eq!(count, 5);
}

#[test]
fn a_block_that_is_removed_is_left_out() {
    let (guest, blocks) = guest();
    let cancel = Cancel::new().unwrap();
    let (digests, _) = compute(&guest, &blocks, 2, &cancel);
    let mut digests = digests.unwrap();
    digests.remove(70);
    assert_eq!(digests.pages(), 700);
    guest.memory.remove_block(blocks[0].1.id()).unwrap();
    let (digests, _) = compute(&guest, &blocks, 2, &cancel);
    let digests = digests.unwrap();
    assert_eq!(digests.pages(), 700);
    assert!(records(&digests).iter().all(|digest| digest.block == 71));
}

#[test]
fn a_cancel_ends_it() {
    let (guest, blocks) = guest();
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    for threads in [1, 4] {
        let (digests, _) = compute(&guest, &blocks, threads, &cancel);
        assert_eq!(digests.unwrap_err().kind(), Kind::Cancelled);
    }
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_that_names_it() {
    let (guest, blocks) = guest();
    let cancel = Cancel::new().unwrap();
    let page = blocks[0].1.page_address(Pages(5 * STRETCH_PAGES + 9));
    // SAFETY: a page of the test's own memory, which becomes readable again below.
    let protected = |to| unsafe { libc::mprotect(page.cast(), PAGE_SIZE as usize, to) };
    assert_eq!(protected(libc::PROT_NONE), 0);
    let (digests, _) = compute(&guest, &blocks, 4, &cancel);
    assert_eq!(protected(libc::PROT_READ | libc::PROT_WRITE), 0);
    let error = digests.unwrap_err();
    assert_eq!(error.kind(), Kind::Memory);
    assert!(error.message().contains("block `a`"), "{error}");
}
