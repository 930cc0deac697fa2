//! A file that is torn, too short or of another kind is refused, with the place of the damage, and
//! never restored.

use crate::error::Kind;
use crate::image::format::{ImageHeader, HEADER_LEN};
use crate::image::Image;
use crate::memory::Whose;
use crate::snapshot::testing::*;
use crate::snapshot::RestoreParams;
use crate::sys::disk::Caching;
use crate::units::PAGE_SIZE;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A small image with every kind of content.
fn example(path: &Path) -> (World, Vec<u8>) {
    let notes = Notes {
        blobs: [vec![("early", vec![3; 77])], vec![("cpu", vec![4; 5000])]],
        ..Notes::default()
    };
    let here = world_of(1500, notes);
    for page in (0..1500).filter(|page| page % 7 < 3) {
        here.fill(page, page as u8);
        here.write(page, page * 77);
    }
    here.save_to(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    (here, bytes)
}

fn restored(path: &Path) -> (World, crate::Result<()>) {
    let there = world_of(1500, Notes::default());
    let result = there.restore_from(path);
    (there, result)
}

#[test]
fn a_file_that_was_changed_anywhere_is_refused_or_the_guest_is_the_one_that_was_saved() {
    let (_directory, path) = place();
    let (here, good) = example(&path);
    let contents = here.contents();
    let image = Image::open(&path, Caching::Cached).unwrap();
    let first = image.index().blocks[0].offset;
    let end = good.len() as u64;
    let mut numbers = Numbers::seeded();
    let mut refused = 0;
    for round in 0..150 {
        let mut bad = good.clone();
        let what = match round % 5 {
            // One bit in the header, in the index or in a blob.
            0 => {
                let tail = image.index().blocks[0].table();
                let at = match numbers.below(2) {
                    0 => numbers.below(HEADER_LEN as u64),
                    _ => tail + numbers.below(end - tail),
                };
                let bit = numbers.below(8);
                bad[at as usize] ^= 1 << bit;
                format!("bit {bit} of byte {at}")
            }
            // One byte of the pages.
            1 => {
                let at = first + numbers.below(1500 * PAGE_SIZE);
                bad[at as usize] = bad[at as usize].wrapping_add(1 + numbers.below(255) as u8);
                format!("byte {at}")
            }
            // Cut off, or longer.
            2 => {
                let length = numbers.below(end);
                bad.truncate(length as usize);
                format!("{length} of {end} bytes")
            }
            // A torn write: some device blocks have their old contents.
            3 => {
                let at = numbers.below(end / 512) as usize * 512;
                let length = (1 + numbers.below(16) as usize) * 512;
                let to = (at + length).min(bad.len());
                bad[at..to].fill(numbers.next() as u8);
                format!("bytes {at}..{to}")
            }
            // Two parts exchanged.
            _ => {
                let place = |n: u64| (first + n * PAGE_SIZE) as usize;
                let (a, b) = (place(numbers.below(1500)), place(numbers.below(1500)));
                for i in 0..PAGE_SIZE as usize {
                    bad.swap(a + i, b + i);
                }
                format!("pages at {a} and {b} exchanged")
            }
        };
        std::fs::write(&path, &bad).unwrap();
        let (there, result) = restored(&path);
        match result {
            // The change is in no page: in a hole's bytes, or to the same bytes as before.
            Ok(()) => assert!(there.contents() == contents, "round {round}: {what}"),
            Err(e) => {
                refused += 1;
                let kind = e.kind();
                assert!(matches!(kind, Kind::Image | Kind::Version), "{what}: {e}");
                assert!(e.message().contains("guest.image"), "{what}: {e}");
                assert_eq!(there.memory.ownership().whose(), Whose::Empty);
                assert!(!there.notes.calls().contains(&"run".into()), "{what}");
            }
        }
    }
    assert!(refused > 60, "{refused} of 150");
}

#[test]
fn a_damaged_page_is_named_by_block_page_and_place_and_never_reaches_the_guest() {
    let (_directory, path) = place();
    let (_here, _) = example(&path);
    let image = Image::open(&path, Caching::Cached).unwrap();
    let block = &image.index().blocks[0];
    let at = block.offset + 701 * PAGE_SIZE;
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x55; 16], at + 2000).unwrap();
    let (there, result) = restored(&path);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Image);
    let words = format!(
        "block `{}`, page 701, at offset {at} of the file",
        block.name
    );
    assert!(error.message().contains(&words), "{error}");
    for word in ["expected checksum", "found", "guest.image"] {
        assert!(error.message().contains(word), "{error}");
    }
    let page = &there.contents()[701 * 4096..702 * 4096];
    assert!(
        page.iter().all(|b| *b == 0),
        "a page with a wrong checksum is in guest memory"
    );
}

#[test]
fn a_damaged_table_blob_or_end_is_named_too() {
    let (_directory, path) = place();
    let (_here, good) = example(&path);
    let image = Image::open(&path, Caching::Cached).unwrap();
    let (block, blobs) = (image.index().blocks[0].clone(), image.index().blobs.clone());
    let try_with = |at: u64, words: &str| {
        let mut bad = good.clone();
        bad[at as usize] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let (there, result) = restored(&path);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Image, "{error}");
        assert!(error.message().contains(words), "{words}: {error}");
        there
    };
    try_with(block.table() + 8, "checksums at offset");
    // No blob is loaded if one of the state is damaged, and memory is not touched.
    let there = try_with(blobs[1].offset + 4999, "state `cpu`, 5000 bytes");
    assert!(there.notes.loaded.lock().unwrap().is_empty());
    assert!(there.contents().iter().all(|b| *b == 0));
    try_with(good.len() as u64 - 1, "its index at offset");
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    let error = restored(&path).1.unwrap_err();
    assert!(error.message().contains("cut or has grown"), "{error}");
    std::fs::write(&path, b"").unwrap();
    let error = restored(&path).1.unwrap_err();
    assert!(error.message().contains("no image"), "{error}");
}

#[test]
fn an_image_that_promises_much_costs_no_memory() {
    let (_directory, path) = place();
    // A hole of 2^40 bytes, with a header that says so.
    let header = ImageHeader {
        file_length: 1 << 40,
        index_offset: (1 << 40) - (64 << 20),
        index_sum: 1,
        number: [0; 16],
        zeros: false,
        parent: None,
    };
    let file = std::fs::File::create(&path).unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = restored(&path).1.unwrap_err();
    assert!(error.message().contains("index at offset"), "{error}");
    // State that is longer than allowed is not read.
    let notes = Notes {
        blobs: [Vec::new(), vec![("large", vec![1; 5000])]],
        ..Notes::default()
    };
    let here = world_of(16, notes);
    here.save_to(&path).unwrap();
    let there = world_of(16, Notes::default());
    let restore = there.restore(RestoreParams {
        max_state_bytes: 4999,
        ..RestoreParams::default()
    });
    restore.start(&path).unwrap();
    let error = restore.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Image, "{error}");
    assert!(error.message().contains("max_state_bytes"), "{error}");
    assert!(there.notes.loaded.lock().unwrap().is_empty());
}
