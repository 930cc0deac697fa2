//! Records whose contents are guest memory, and records whose contents are the encoder's own. For
//! both kinds the right bytes are sent, also after an interruption, and the account of what was
//! sent is right.

mod lists;
mod packed;

use super::*;
use crate::channel::IoPart as _;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::memory::Block;
use crate::wire::{decode_list, list_len, RecordType};
use std::sync::Arc;

/// A run that is longer than one record of the encoder's own, then single pages, then zeros.
const PAGES: u64 = 300;
const LONG_RUN: Range<u64> = 0..150;
const CHECKED: Agreed = Agreed {
    ballooned: false,
    checksums: true,
};

struct Side {
    _guest: Guest,
    block: Arc<Block>,
    taken: Taken,
    _consumer: Consumer,
}

fn holds_data(page: u64) -> bool {
    LONG_RUN.contains(&page) || page.is_multiple_of(3)
}

fn fill(block: &Block, page: u64, seed: u64) {
    let at = block.page_address(Pages(page)).cast::<u64>();
    for word in 0..PAGE_SIZE / 8 {
        let value = (page << 32 | word | 1).wrapping_mul(seed);
        // SAFETY: a page of the test's own memory, which nobody else uses now.
        unsafe { at.add(word as usize).write_volatile(value) };
    }
}

/// A guest whose pages are all taken.
fn side() -> Side {
    let guest = Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    let block = Arc::clone(&guest.memory.map().blocks()[0]);
    for page in (0..PAGES).filter(|page| holds_data(*page)) {
        fill(&block, page, 0x9e37_79b9_7f4a_7c15);
    }
    let taken = consumer
        .take(&mut Cursor::default(), 64, Pages(PAGES))
        .unwrap();
    Side {
        _guest: guest,
        block,
        taken,
        _consumer: consumer,
    }
}

fn bytes(parts: &[Part<'_>]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        // SAFETY: our own bytes, or the test's own memory, which nobody writes now.
        let bytes = unsafe { std::slice::from_raw_parts(part.address() as *const u8, part.len()) };
        all.extend_from_slice(bytes);
    }
    all
}

/// Where each record in `stream` ends, and for which pages it has contents.
fn records(mut stream: &[u8]) -> Vec<(u64, Vec<u64>)> {
    let (whole, mut found) = (stream.len(), Vec::new());
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER_LEN>() {
        let header = Header::decode(head).unwrap();
        let (payload, after) = rest.split_at(header.payload as usize);
        stream = after;
        let mut pages = Vec::new();
        let mut list = 0;
        match header.classify().unwrap().unwrap() {
            RecordType::Pages => {
                header.check_run(Pages(PAGES)).unwrap();
                let end = header.first_page + u64::from(header.count);
                pages.extend(header.first_page..end);
            }
            RecordType::PagesList => {
                list = list_len(header.count);
                decode_list(&header, &payload[..list], Pages(PAGES), |first, count| {
                    pages.extend(first.0..first.0 + u64::from(count));
                    Ok(())
                })
                .unwrap();
            }
            kind => assert!(matches!(kind, RecordType::Zeros | RecordType::ZerosList)),
        }
        if header.is_checked() {
            header.check_contents(&payload[list..]).unwrap();
        }
        found.push(((whole - stream.len()) as u64, pages));
    }
    found
}

/// An encoder for a destination with which so much was agreed.
fn encoder(agreed: Agreed) -> Encoder {
    let mut encoder = Encoder::new();
    encoder.agree(agreed, None);
    encoder
}

#[test]
fn all_pages_with_contents_are_sent_once_and_own_contents_have_their_checksum() {
    for agreed in [Agreed::default(), CHECKED] {
        let side = side();
        let mut encoder = encoder(agreed);
        let encoded = encoder.encode(&side.taken).unwrap();
        let stream = bytes(&encoded.parts(&[]).unwrap());
        assert_eq!(stream.len() as u64, encoded.put().bytes);
        let mut sent: Vec<u64> = records(&stream).into_iter().flat_map(|r| r.1).collect();
        sent.sort_unstable();
        let data: Vec<u64> = (0..PAGES).filter(|page| holds_data(*page)).collect();
        assert_eq!(sent, data, "{agreed:?}");
        assert_eq!(encoded.put().data_pages, data.len() as u64);
        assert_eq!(encoded.count(), records(&stream).len() as u64);
    }
}

#[test]
fn what_is_copied_later_is_the_rest_of_what_was_begun() {
    for agreed in [Agreed::default(), CHECKED] {
        let side = side();
        let mut encoder = encoder(agreed);
        let encoded = encoder.encode(&side.taken).unwrap();
        let first = [0xaa; 7];
        let stream = bytes(&encoded.parts(&first).unwrap());
        let all = stream.len() as u64;
        for sent in (0..all).step_by(1777).chain([0, 1, 7, 8, 39, 40, all - 1]) {
            let rest = encoded.copy_rest(&first, sent).unwrap();
            assert!(rest == stream[sent as usize..], "{agreed:?} from {sent}");
        }
    }
}

/// The reason for copies: the guest writes between the checksum and the sending.
#[test]
fn own_contents_stay_what_their_checksum_says_while_the_guest_writes() {
    let side = side();
    let mut encoder = encoder(CHECKED);
    let encoded = encoder.encode(&side.taken).unwrap();
    let before = bytes(&encoded.parts(&[]).unwrap());
    for page in 0..PAGES {
        fill(&side.block, page, 0x1234_5671);
    }
    let after = bytes(&encoded.parts(&[]).unwrap());
    assert!(before == after);
    assert!(before == encoded.copy_rest(&[], 0).unwrap());
    assert!(!records(&after).is_empty());
}

#[test]
fn a_batch_that_was_cut_short_counts_the_records_to_there() {
    for agreed in [Agreed::default(), CHECKED] {
        let side = side();
        let mut encoder = encoder(agreed);
        let encoded = encoder.encode(&side.taken).unwrap();
        let stream = bytes(&encoded.parts(&[]).unwrap());
        let mut before = 0;
        let mut pages = 0;
        for (end, brings) in records(&stream) {
            for at in [before + 1, end - 1, end] {
                // Up to the end of the record in which the byte lies.
                let (to, put) = encoded.cut(0, at, false);
                assert_eq!(to, end, "{agreed:?} at {at}");
                assert_eq!(put.data_pages, pages + brings.len() as u64);
                // Only records that were sent in full.
                let (to, put) = encoded.cut(0, at, true);
                let whole = if at == end { brings.len() as u64 } else { 0 };
                assert_eq!(to, if at == end { end } else { before });
                assert_eq!(put.data_pages, pages + whole);
            }
            (before, pages) = (end, pages + brings.len() as u64);
        }
    }
}

#[test]
fn the_room_for_own_contents_is_kept_and_is_not_larger_than_a_batch() {
    let side = side();
    let mut encoder = encoder(CHECKED);
    for _ in 0..3 {
        drop(encoder.encode(&side.taken).unwrap());
        assert!(encoder.own.bytes.len() as u64 <= (PAGES + 16) * PAGE_SIZE);
    }
    encoder.own.room(3 * OWN_KEPT).unwrap();
    encoder.own.empty();
    assert_eq!(encoder.own.bytes.capacity(), OWN_KEPT);
}
