//! Compressed contents: which runs share a frame, and what becomes of contents that compress badly.

use super::super::*;
use super::lists::{received, take, tracked, PAGES};
use super::CHECKED;
use crate::dirty::testing::Guest;
use crate::dirty::When;
use crate::migrate::params::{Compression, Params};
use crate::wire::RecordType::{self, Compressed, CompressedList, PagesList};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An encoder that compresses all contents.
fn encoder(agreed: Agreed) -> Encoder {
    let params = Params {
        compression: Compression::Always,
        ..Params::default()
    };
    let mut encoder = Encoder::new();
    encoder.agree(agreed, Packing::of(&params).unwrap());
    encoder
}

/// Fills pages: each begins with `first`, and is noise behind that if `noise` says so.
fn fill(guest: &Guest, pages: impl Iterator<Item = u64>, first: u8, noise: bool) {
    let map = guest.memory.map();
    let mut seed = u64::from(first);
    for page in pages {
        let at = map.blocks()[0].page_address(Pages(page));
        for i in 0..PAGE_SIZE as usize {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let byte = match i {
                0 => first,
                _ if noise => (seed >> 33) as u8,
                _ => page as u8,
            };
            // SAFETY: a page of the test's own memory, which nobody else uses now.
            unsafe { at.add(i).write_volatile(byte) };
        }
    }
}

/// The pages that hold `byte`, of those that were received.
fn holding(pages: &BTreeMap<u64, u8>, byte: u8) -> Vec<u64> {
    let all = pages.iter().filter(|(_, held)| **held == byte);
    all.map(|(page, _)| *page).collect()
}

fn count(kinds: &[RecordType], kind: RecordType) -> usize {
    kinds.iter().filter(|k| **k == kind).count()
}

#[test]
fn scattered_pages_share_frames_of_at_most_64_pages() {
    for agreed in [Agreed::default(), CHECKED] {
        let (guest, _tracker, consumer) = tracked();
        let scattered: Vec<u64> = (0..PAGES).step_by(2).collect();
        fill(&guest, scattered.iter().copied(), 7, false);
        let taken = take(&consumer);
        let mut encoder = encoder(agreed);
        let records = encoder.encode(&taken).unwrap();
        let (kinds, pages) = received(&records);
        assert_eq!(holding(&pages, 7), scattered);
        // 200 pages are three frames of 64 and one of 8.
        assert_eq!(count(&kinds, CompressedList), 4, "{kinds:?}");
        assert_eq!(count(&kinds, Compressed), 0, "{kinds:?}");
        let put = records.put();
        assert_eq!((put.data_pages, put.compressed_pages), (200, 200));
        assert!(put.compressed_bytes < 200 * 200, "{put:?}");
        drop(records);
        taken.delivered();
    }
}

#[test]
fn two_scattered_pages_are_frames_of_their_own() {
    let (guest, _tracker, consumer) = tracked();
    fill(&guest, [3, 9].into_iter(), 7, false);
    let taken = take(&consumer);
    let mut encoder = encoder(Agreed::default());
    let records = encoder.encode(&taken).unwrap();
    let (kinds, pages) = received(&records);
    assert_eq!(holding(&pages, 7), [3, 9]);
    assert_eq!(count(&kinds, Compressed), 2, "{kinds:?}");
    drop(records);
    taken.delivered();
}

#[test]
fn scattered_pages_that_do_not_compress_go_in_a_list_as_they_are() {
    for agreed in [Agreed::default(), CHECKED] {
        let (guest, _tracker, consumer) = tracked();
        let scattered: Vec<u64> = (0..120).step_by(2).collect();
        fill(&guest, scattered.iter().copied(), 7, true);
        let taken = take(&consumer);
        let mut encoder = encoder(agreed);
        let records = encoder.encode(&taken).unwrap();
        let (kinds, pages) = received(&records);
        assert_eq!(holding(&pages, 7), scattered, "{agreed:?}");
        assert_eq!(count(&kinds, PagesList), 1, "{kinds:?}");
        let put = records.put();
        assert_eq!((put.data_pages, put.compressed_pages), (60, 0));
        drop(records);
        taken.delivered();
    }
}

/// A copy in the cache of sent pages is the page, whatever becomes of the copy that is sent.
#[test]
fn pages_that_go_whole_because_a_delta_missed_are_compressed_and_are_bases_of_the_next() {
    // A run of its own, and pages that lie apart.
    let again = || (10..30).chain((40..140).step_by(3));
    let all = again().count() as u64;
    for (agreed, noise) in [
        (Agreed::default(), false),
        (CHECKED, false),
        (Agreed::default(), true),
        (CHECKED, true),
    ] {
        let (guest, tracker, consumer) = tracked();
        let block = Arc::clone(&guest.memory.map().blocks()[0]);
        fill(&guest, again(), 1, noise);
        let mut encoder = encoder(agreed);
        encoder.use_deltas(8 << 20).unwrap();
        for pass in 1..4u8 {
            let what = format!("{agreed:?}, noise: {noise}, pass {pass}");
            for page in again() {
                // SAFETY: a page of the test's own memory, which nobody else uses now.
                unsafe { block.page_address(Pages(page)).write_volatile(pass) };
                tracker.mark_block(block.id(), Pages(page).bytes(), 8);
            }
            consumer.sync(When::Stopped).unwrap();
            let taken = take(&consumer);
            encoder.in_pass(u32::from(pass));
            let records = encoder.encode(&taken).unwrap();
            let put = records.put();
            let (misses, deltas) = match pass {
                1 => (0, 0),
                2 => (all, 0),
                _ => (0, all),
            };
            assert_eq!(
                (put.delta_misses, put.delta_pages),
                (misses, deltas),
                "{what}"
            );
            if deltas == 0 {
                let (kinds, pages) = received(&records);
                assert_eq!(holding(&pages, pass), again().collect::<Vec<_>>(), "{what}");
                let packed = if noise { 0 } else { all };
                assert_eq!(put.compressed_pages, packed, "{what}: {kinds:?}");
                let expected = if noise { PagesList } else { CompressedList };
                assert!(count(&kinds, expected) > 0, "{what}: {kinds:?}");
            }
            drop(records);
            taken.delivered();
        }
    }
}

#[test]
fn room_for_frames_is_bounded_by_the_longest_frame() {
    let (guest, _tracker, consumer) = tracked();
    fill(&guest, 0..PAGES, 7, false);
    let taken = take(&consumer);
    let mut encoder = encoder(Agreed::default());
    drop(encoder.encode(&taken).unwrap());
    let longest = (OWN_PAGES * PAGE_SIZE) as usize;
    assert!(encoder.own.frame.len() < longest);
    // A frame takes the place of the copy that it was made of.
    assert!(encoder.own.bytes.len() < 2 * longest);
    taken.delivered();
}
