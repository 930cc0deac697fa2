//! Images of a chain that are missing, changed, exchanged or made by an enemy are refused by name, or
//! the guest is the one that was saved; and the format, byte by byte.

use super::chain::{next, paths};
use super::instant::holds;
use crate::error::Kind;
use crate::image::format::{ALIGN, HEADER_LEN};
use crate::memory::Whose;
use crate::snapshot::testing::*;
use crate::snapshot::{merge, Chain, RestoreParams, SaveParams};
use crate::units::PAGE_SIZE;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pages of the guest.
pub(super) const SMALL: u64 = 1100;

/// Four images of a guest in a directory, and its contents at the last.
pub(super) fn example() -> (tempfile::TempDir, Vec<PathBuf>, Vec<u8>, (World, Chain)) {
    let (directory, _) = place();
    let paths = paths(&directory, 4);
    let here = world_of(SMALL, Notes::default());
    let chain = Chain::new(Arc::clone(&here.tracker));
    for (number, path) in (1..).zip(&paths) {
        for page in (0..SMALL).filter(|page| page % number < 2 && page % 7 < 4) {
            here.fill(page, page as u8 ^ number as u8);
        }
        next(&here, &chain, SaveParams::default(), path).unwrap();
    }
    let contents = here.contents();
    (directory, paths, contents, (here, chain))
}

/// The error of a restore, which must not have touched memory, and that of a merge.
fn refused(path: &Path) -> [crate::Error; 2] {
    let there = world_of(SMALL, Notes::default());
    let error = there.restore_from(path).unwrap_err();
    assert_eq!(there.memory.ownership().whose(), Whose::Empty);
    assert!(!there.notes.calls().contains(&"run".into()));
    let to = path.with_file_name("merged");
    let other = merge(path, &to).unwrap_err();
    assert!(!to.exists());
    [error, other]
}

fn says(errors: [crate::Error; 2], kind: Kind, words: &[&str]) {
    for error in errors {
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.message().contains(word), "{word}: {error}");
        }
    }
}

#[test]
fn a_chain_that_lacks_an_image_or_has_another_in_its_place_says_which_was_expected_and_found() {
    let (_directory, paths, contents, _guest) = example();
    let aside = paths[0].with_file_name("aside");
    let move_file = |from: &Path, to: &Path| std::fs::rename(from, to).unwrap();
    // Missing.
    move_file(&paths[1], &aside);
    let words = ["image.2", "holds what changed since", "image.1"];
    says(refused(&paths[3]), Kind::NotFound, &words);
    // Another image, of the same chain.
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    let words = ["image.2", "expected as", "image.1", "found image"];
    says(refused(&paths[3]), Kind::Image, &words);
    // Exchanged with the next.
    move_file(&paths[2], &paths[1]);
    move_file(&aside, &paths[2]);
    says(refused(&paths[3]), Kind::Image, &["image.3", "found image"]);
    let other = paths[0].with_file_name("other");
    move_file(&paths[1], &other);
    move_file(&paths[2], &paths[1]);
    move_file(&other, &paths[2]);
    holds(&paths[3], SMALL, &contents);
    // The same guest saved once more has the same contents, and is another image.
    let whole = paths[0].with_file_name("whole");
    merge(&paths[0], &whole).unwrap();
    move_file(&whole, &paths[0]);
    let words = ["image.1", "image.0", "found image"];
    says(refused(&paths[3]), Kind::Image, &words);
    // A merge onto an image that others need.
    let error = merge(&paths[0], &paths[0]).map(|()| merge(&paths[3], &paths[1]).unwrap_err());
    assert!(error.is_ok());
}

#[test]
fn the_next_image_of_a_chain_is_refused_when_the_last_is_not_there_any_more() {
    let (directory, paths, _, (here, chain)) = example();
    here.fill(77, 77);
    let to = directory.path().join("next");
    let (last, aside) = (&paths[3], directory.path().join("aside"));
    let fails = |to: &Path, kind: Kind, words: &[&str]| {
        let error = next(&here, &chain, SaveParams::default(), to).unwrap_err();
        says([error.clone(), error], kind, words);
    };
    std::fs::rename(last, &aside).unwrap();
    fails(&to, Kind::NotFound, &["image.3", "begin a new chain"]);
    std::fs::copy(&paths[2], last).unwrap();
    fails(
        &to,
        Kind::Image,
        &["image.3", "found image", "begin a new chain"],
    );
    std::fs::rename(&aside, last).unwrap();
    // In another directory, or onto an image of the chain.
    let (_elsewhere, path) = place();
    fails(&path, Kind::NotFound, &["one directory"]);
    for path in &paths {
        fails(path, Kind::Invalid, &["another name"]);
    }
    assert!(!to.exists());
    // Nothing was lost by all that.
    next(&here, &chain, SaveParams::default(), &to).unwrap();
    holds(&to, SMALL, &here.contents());
    let error = merge(&to, &paths[2]).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    holds(&to, SMALL, &here.contents());
}

#[test]
fn a_chain_has_a_longest_length_and_says_so() {
    let (directory, _) = place();
    let paths = paths(&directory, 65);
    let here = world_of(16, Notes::default());
    let chain = Chain::new(Arc::clone(&here.tracker));
    for (number, path) in paths[..64].iter().enumerate() {
        here.fill(number as u64 % 16, number as u8);
        next(&here, &chain, SaveParams::default(), path).unwrap();
    }
    holds(&paths[63], 16, &here.contents());
    let error = next(&here, &chain, SaveParams::default(), &paths[64]).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.message().contains("at most 64 images"), "{error}");
}

#[test]
fn a_chain_with_any_file_changed_is_refused_or_the_guest_is_the_one_that_was_saved() {
    let (_directory, paths, contents, _guest) = example();
    let good: Vec<Vec<u8>> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    let mut numbers = Numbers::seeded();
    let mut refused = 0;
    for round in 0..120 {
        let which = numbers.below(4) as usize;
        let mut bad = good[which].clone();
        let end = bad.len() as u64;
        let table = ALIGN + SMALL * PAGE_SIZE;
        let from = [0, ALIGN, table][numbers.below(3) as usize];
        let length = [HEADER_LEN as u64, SMALL * PAGE_SIZE, end - table];
        let length = length[[0, ALIGN, table].iter().position(|f| *f == from).unwrap()];
        let at = (from + numbers.below(length)) as usize;
        bad[at] ^= 1 << numbers.below(8);
        std::fs::write(&paths[which], &bad).unwrap();
        let there = world_of(SMALL, Notes::default());
        let lazy = round % 2 == 1;
        let restore = there.restore(RestoreParams {
            stay_paused: true,
            lazy,
            ..RestoreParams::default()
        });
        restore.start(&paths[3]).unwrap();
        match restore.finish(Some(LONG)) {
            Ok(()) => assert!(
                there.contents() == contents,
                "round {round}: image {which}, {at}"
            ),
            Err(error) => {
                refused += 1;
                let kind = error.kind();
                let wrong = matches!(kind, Kind::Image | Kind::Version);
                assert!(wrong, "image {which}, {at}: {error}");
                assert!(error.message().contains("image."), "{error}");
            }
        }
        drop(restore);
        std::fs::write(&paths[which], &good[which]).unwrap();
    }
    assert!(refused > 40, "{refused} of 120");
    holds(&paths[3], SMALL, &contents);
}

/// A file as the documentation of the format says, for a guest of three pages whose block is `name`: a
/// table, and pages. `before` is the header of the image before, and its file's name.
fn by_hand(
    name: &str,
    table: [u32; 3],
    pages: [&[u8]; 3],
    flags: u32,
    before: Option<(&[u8], &str)>,
) -> Vec<u8> {
    let mut file = vec![0; ALIGN as usize];
    for page in pages {
        let start = file.len();
        file.extend_from_slice(page);
        file.resize(start + 4096, 0);
    }
    let start = file.len();
    for sum in table {
        file.extend(sum.to_le_bytes());
    }
    file.resize(start + 4096, 0);
    let piece = crc32fast::hash(&file[start..]);
    let index_at = file.len() as u64;
    let mut index = Vec::new();
    index.extend(1u32.to_le_bytes());
    index.extend((3u64 * 4096).to_le_bytes());
    index.extend(4096u64.to_le_bytes());
    index.extend(ALIGN.to_le_bytes());
    index.extend(flags.to_le_bytes());
    index.extend((name.len() as u16).to_le_bytes());
    index.extend(name.as_bytes());
    index.extend(piece.to_le_bytes());
    index.extend(0u32.to_le_bytes());
    file.extend(&index);
    let length = file.len() as u64;
    let header = &mut file[..4096];
    header[..8].copy_from_slice(b"BRANTIMG");
    header[8] = 1;
    header[16..24].copy_from_slice(&length.to_le_bytes());
    header[24..32].copy_from_slice(&index_at.to_le_bytes());
    header[32..36].copy_from_slice(&crc32fast::hash(&index).to_le_bytes());
    if let Some((before, name)) = before {
        header[8] = 2;
        header[36..52].fill(0xab);
        header[52..68].copy_from_slice(&before[36..52]);
        header[68..72].copy_from_slice(&before[4092..4096]);
        header[72..80].copy_from_slice(&before[16..24]);
        header[80..82].copy_from_slice(&(name.len() as u16).to_le_bytes());
        header[82..82 + name.len()].copy_from_slice(name.as_bytes());
    }
    let sum = crc32fast::hash(&header[..4092]);
    header[4092..].copy_from_slice(&sum.to_le_bytes());
    file
}

/// The first image is as an earlier brant wrote it: version 1, without a number.
#[test]
fn files_that_are_made_by_the_documentation_alone_are_read() {
    let (directory, _) = place();
    let paths = paths(&directory, 2);
    let here = world_of(3, Notes::default());
    let name = here.memory.map().blocks()[0].name().to_owned();
    let sum = |byte: u8| crc32fast::hash(&[byte; 4096]);
    // Four bytes whose checksum is 1, and zeros: a page of changes cannot have the checksum 1 or 0.
    let (one, two, junk) = (&[1; 4096][..], &[2; 4096][..], &[9; 4096][..]);
    let full = by_hand(&name, [sum(1), 0, sum(2)], [one, junk, two], 0, None);
    std::fs::write(&paths[0], &full).unwrap();
    holds(&paths[0], 3, &[one, &[0; 4096], two].concat());
    let changes = by_hand(
        &name,
        [0, sum(2), 1],
        [junk, two, junk],
        2,
        Some((&full[..4096], "image.0")),
    );
    std::fs::write(&paths[1], &changes).unwrap();
    holds(&paths[1], 3, &[one, two, &[0; 4096]].concat());
    // Flags of changes in a full image, and a name that leads out of the directory.
    let wrong = by_hand(&name, [sum(1), 0, sum(2)], [one, junk, two], 2, None);
    std::fs::write(&paths[0], &wrong).unwrap();
    says(three_refused(&paths[0]), Kind::Image, &["flags"]);
    for bad in ["", "..", ".", "a/b", "/etc/passwd"] {
        let before = Some((&full[..4096], bad));
        let file = by_hand(&name, [0; 3], [junk; 3], 2, before);
        std::fs::write(&paths[1], &file).unwrap();
        says(
            three_refused(&paths[1]),
            Kind::Image,
            &["name of the image before"],
        );
    }
    // The image before has no such block.
    let other = by_hand("other", [sum(1); 3], [one; 3], 0, None);
    std::fs::write(&paths[0], &other).unwrap();
    let file = by_hand(
        &name,
        [0; 3],
        [junk; 3],
        2,
        Some((&other[..4096], "image.0")),
    );
    std::fs::write(&paths[1], &file).unwrap();
    says(three_refused(&paths[1]), Kind::Image, &["no such block"]);
}

/// As [`refused`], for a guest of three pages.
fn three_refused(path: &Path) -> [crate::Error; 2] {
    let there = world_of(3, Notes::default());
    let error = there.restore_from(path).unwrap_err();
    let to = path.with_file_name("merged");
    let other = merge(path, &to).unwrap_err();
    assert!(!to.exists());
    [error, other]
}

/// Nobody can make two images each of which is before the other by accident. Checksums keep no enemy
/// from it.
#[test]
fn images_before_each_other_end_at_the_longest_length() {
    let (directory, _) = place();
    let paths = paths(&directory, 1);
    // The header of an image that names itself: its own checksum is part of what it covers, so the
    // number, the checksum and the length of the parent are those of a file whose checksum comes out
    // the same. A CRC has four bytes chosen for that.
    let junk = &[9; 4096][..];
    let mut file = by_hand("ram", [0; 3], [junk; 3], 2, Some((&[0; 4096], "image.0")));
    let length = (file.len() as u64).to_le_bytes();
    file[36..52].fill(0);
    file[72..80].copy_from_slice(&length);
    let wanted = u32::from_le_bytes([1, 2, 3, 4]);
    file[68..72].copy_from_slice(&wanted.to_le_bytes());
    // Searches for the four bytes before the checksum, bit by bit: a CRC is linear.
    let sum = |file: &[u8]| crc32fast::hash(&file[..4092]);
    let base = sum(&file);
    let mut rows: Vec<(u32, u32)> = (0..32)
        .map(|bit| {
            file[4088 + bit / 8] ^= 1 << (bit % 8);
            let row = (sum(&file) ^ base, 1u32 << bit);
            file[4088 + bit / 8] ^= 1 << (bit % 8);
            row
        })
        .collect();
    let (mut need, mut bits) = (base ^ wanted, 0);
    for bit in (0..32).rev() {
        let at = rows.iter().position(|row| row.0 >> bit & 1 == 1).unwrap();
        let (value, made) = rows.swap_remove(at);
        for row in rows.iter_mut().filter(|row| row.0 >> bit & 1 == 1) {
            row.0 ^= value;
            row.1 ^= made;
        }
        if need >> bit & 1 == 1 {
            need ^= value;
            bits ^= made;
        }
    }
    file[4088..4092].copy_from_slice(&bits.to_le_bytes());
    assert_eq!(sum(&file), wanted);
    file[4092..4096].copy_from_slice(&wanted.to_le_bytes());
    std::fs::write(&paths[0], &file).unwrap();
    says(
        three_refused(&paths[0]),
        Kind::Image,
        &["at most 64 images"],
    );
}
