//! Which records the taken pages become, and in which order.

use super::super::*;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::page::compress::Decompressor;
use crate::wire::{list_len, RecordType, CHECKSUM_LEN};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const PAGES: u64 = 400;

/// A guest with one block whose pages are all pending.
fn guest() -> (Guest, Consumer) {
    let (guest, _, consumer) = tracked();
    (guest, consumer)
}

/// The same, and its tracker.
pub(super) fn tracked() -> (Guest, Arc<Tracker>, Consumer) {
    let guest = Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    (guest, tracker, consumer)
}

/// Writes `value` to pages.
fn write(guest: &Guest, pages: impl Iterator<Item = u64>, value: u8) {
    let map = guest.memory.map();
    for page in pages {
        // SAFETY: a page of the test's own memory, which nobody else uses now.
        unsafe {
            map.blocks()[0]
                .page_address(Pages(page))
                .write_volatile(value)
        };
    }
}

pub(super) fn take(consumer: &Consumer) -> Taken {
    let all = consumer.take(&mut Cursor::default(), 256, Pages(PAGES));
    all.unwrap()
}

/// What a destination reads from the records: their types, and the first byte of each page.
pub(super) fn received(records: &Records<'_>) -> (Vec<RecordType>, BTreeMap<u64, u8>) {
    let bytes = records.copy_rest(&[], 0).unwrap();
    assert_eq!(bytes.len() as u64, records.put().bytes);
    let (mut kinds, mut pages) = (Vec::new(), BTreeMap::new());
    let mut rest = &bytes[..];
    while let Some((head, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let header = Header::decode(head).unwrap();
        let kind = header.classify().unwrap().unwrap();
        let (payload, next) = after.split_at(header.payload as usize);
        let mut runs = Vec::new();
        let mut contents = payload;
        if kind.is_list() {
            let (list, behind) = payload.split_at(list_len(header.count));
            contents = behind;
            wire::decode_list(&header, list, Pages(PAGES), |first, count| {
                runs.push((first.0, count));
                Ok(())
            })
            .unwrap();
        } else {
            header.check_run(Pages(PAGES)).unwrap();
            runs.push((header.first_page, header.count));
        }
        let mut decoded = Vec::new();
        if matches!(kind, RecordType::Compressed | RecordType::CompressedList) {
            let (sum, frame) = contents.split_first_chunk::<CHECKSUM_LEN>().unwrap();
            let pages: u32 = runs.iter().map(|(_, count)| count).sum();
            decoded.resize((u64::from(pages) * PAGE_SIZE) as usize, 0);
            let mut decompressor = Decompressor::new().unwrap();
            decompressor.decompress(frame, &mut decoded).unwrap();
            assert_eq!(u32::from_le_bytes(*sum), crc32fast::hash(&decoded));
            contents = &decoded;
        } else if header.is_checked() {
            contents = header.check_contents(contents).unwrap();
        }
        for page in runs.iter().flat_map(|(f, c)| *f..*f + u64::from(*c)) {
            let (byte, behind) = match contents.split_at_checked(PAGE_SIZE as usize) {
                Some((page, behind)) => (page[0], behind),
                None => (0, contents),
            };
            pages.insert(page, byte);
            contents = behind;
        }
        assert!(contents.is_empty());
        kinds.push(kind);
        rest = next;
    }
    assert_eq!(kinds.len() as u64, records.count());
    (kinds, pages)
}

use RecordType::{Pages as Data, PagesList, Zeros, ZerosList};

#[test]
fn scattered_pages_go_in_one_list_those_that_are_zero_in_another() {
    let (guest, consumer) = guest();
    // Every other page holds something. Some of the others were touched and are zero.
    write(&guest, (0..PAGES).step_by(2), 7);
    write(&guest, (1..PAGES).step_by(4), 0);
    let taken = take(&consumer);
    let mut encoder = Encoder::new();
    let records = encoder.encode(&taken).unwrap();
    let (kinds, pages) = received(&records);
    assert_eq!(kinds, [ZerosList, PagesList]);
    let right = |(page, byte): (&u64, &u8)| *byte == if page % 2 == 0 { 7 } else { 0 };
    assert_eq!(pages.len() as u64, PAGES);
    assert!(pages.iter().all(right));
    let put = records.put();
    assert_eq!((put.data_pages, put.zero_pages), (PAGES / 2, PAGES / 2));
    assert_eq!(put.hole_pages, PAGES / 4);
    taken.delivered();
}

#[test]
fn long_runs_and_a_few_short_ones_are_records_of_their_own_in_the_order_of_their_pages() {
    let (guest, consumer) = guest();
    let data = (20..40).chain(41..43).chain(50..300).chain([301, 303]);
    write(&guest, data, 7);
    let taken = take(&consumer);
    let mut encoder = Encoder::new();
    let records = encoder.encode(&taken).unwrap();
    let (kinds, _) = received(&records);
    // 0, 20 | 40, 43, 41 | 50 | 300, 302, 301, 303 | 304
    let expected = [
        Zeros, Data, Zeros, Zeros, Data, Data, Zeros, Zeros, Data, Data, Zeros,
    ];
    assert_eq!(kinds, expected);
    taken.delivered();
}

#[test]
fn the_newest_word_on_a_page_is_the_last_where_a_walk_steps_back() {
    let (guest, consumer) = guest();
    write(&guest, 0..PAGES, 7);
    let taken = take(&consumer);
    let block = taken.runs().next().unwrap().block;
    let run = |page, count| block.run(Pages(page), Pages(count)).unwrap();
    let mut own = Own::default();
    let mut records = Records::for_runs(&taken, Agreed::default(), None, &mut own).unwrap();
    // Enough pages for lists, and then the same pages again with the other kind of contents.
    for page in (0..80).step_by(4) {
        records.held(block, run(page, 1), Held::Data, true);
        records.held(block, run(page + 2, 1), Held::Zero, true);
    }
    records.held(block, run(40, 1), Held::Zero, true);
    records.held(block, run(42, 1), Held::Data, true);
    records.unread(run(44, 1), Content::Free);
    records.held(block, run(10, 1), Held::Data, true);
    records.gathered();
    let (_, pages) = received(&records);
    for (page, byte) in [(36, 7), (38, 0), (40, 0), (42, 7), (44, 0), (10, 7)] {
        assert_eq!(pages[&page], byte, "page {page}");
    }
    drop(records);
    taken.delivered();
}
