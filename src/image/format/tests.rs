//! What is written is read back, and nothing else is taken for an image.

use super::*;
use proptest::prelude::*;

fn entry(name: &str, pages: u64, offset: u64) -> BlockEntry {
    BlockEntry {
        name: name.to_owned(),
        length: pages * PAGE_SIZE,
        page_size: PAGE_SIZE,
        rom: pages == 1,
        changes: false,
        offset,
        pieces: (0..piece_count(pages) as u32).collect(),
    }
}

/// A small image's index, its bytes and its header.
fn example() -> (Index, Vec<u8>, ImageHeader) {
    let ram = entry("ram", 3 * PIECE_PAGES + 1, ALIGN);
    let rom = entry("röm", 1, ram.end().next_multiple_of(ALIGN));
    let free = rom.end();
    let blob = |kind, name: &str, offset, length| BlobEntry {
        kind,
        name: name.to_owned(),
        instance: 7,
        version: 2,
        offset,
        length,
        sum: 99,
    };
    let index = Index {
        blocks: vec![ram, rom],
        blobs: vec![
            blob(BlobKind::Early, "config", free, 10),
            blob(BlobKind::State, "cpu", free + 10, 0),
        ],
    };
    let bytes = index.encode().unwrap();
    let index_offset = free + 10;
    let header = ImageHeader {
        file_length: index_offset + bytes.len() as u64,
        index_offset,
        index_sum: crc32fast::hash(&bytes),
        number: [0x5a; 16],
        zeros: true,
        parent: None,
    };
    (index, bytes, header)
}

/// Decodes bytes with a correct checksum.
fn decode(bytes: &[u8], header: &ImageHeader) -> Result<Index> {
    let index_sum = crc32fast::hash(bytes);
    let header = ImageHeader {
        index_sum,
        ..header.clone()
    };
    Index::decode(bytes, &header)
}

#[test]
fn header_and_index_are_read_as_they_were_written() {
    let (index, bytes, header) = example();
    let first = header.encode();
    assert_eq!(
        ImageHeader::decode(&first, header.file_length).unwrap(),
        header
    );
    assert_eq!(Index::decode(&bytes, &header).unwrap(), index);
    // The documented places.
    assert_eq!(&first[..12], b"BRANTIMG\x01\0\0\0");
    assert_eq!(first[16..24], header.file_length.to_le_bytes());
    assert_eq!(first[24..32], header.index_offset.to_le_bytes());
}

#[test]
fn a_header_that_is_not_ours_or_not_whole_says_what_was_found() {
    let (_, _, header) = example();
    let (good, length) = (header.encode(), header.file_length);
    let refused = |bytes: &[u8], length, words: &[&str]| {
        let error = ImageHeader::decode(bytes, length).unwrap_err();
        for word in words {
            assert!(error.message().contains(word), "{word}: {error}");
        }
        error.kind()
    };
    assert_eq!(refused(b"", 0, &["no image"]), Kind::Image);
    assert_eq!(
        refused(b"QEVM\0\0\0\x03", 8, &["no image", "51"]),
        Kind::Image
    );
    let short = refused(&good[..100], 100, &["cut off", "4096", "100 bytes"]);
    assert_eq!(short, Kind::Image);
    let grown = refused(&good, length + 1, &["cut or has grown"]);
    assert_eq!(grown, Kind::Image);
    let mut newer = good;
    newer[8] = 3;
    assert_eq!(refused(&newer, length, &["version 3"]), Kind::Version);
    let mut damaged = good;
    damaged[30] ^= 1;
    assert_eq!(
        refused(&damaged, length, &["header is damaged"]),
        Kind::Image
    );
    for index_offset in [0, 4095, length + 1, u64::MAX] {
        let bytes = ImageHeader {
            index_offset,
            ..header.clone()
        }
        .encode();
        assert_eq!(refused(&bytes, length, &["its index begins"]), Kind::Image);
    }
    let sparse = ImageHeader {
        file_length: 1 << 40,
        index_offset: 4096,
        index_sum: 0,
        number: [0; 16],
        zeros: false,
        parent: None,
    };
    let long = refused(&sparse.encode(), 1 << 40, &["its index begins"]);
    assert_eq!(long, Kind::Image);
}

#[test]
fn every_cut_of_an_index_is_refused() {
    let (_, bytes, header) = example();
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length], &header).unwrap_err();
        assert_eq!(error.kind(), Kind::Image, "{length}: {error}");
    }
    let mut longer = bytes;
    longer.push(0);
    let error = decode(&longer, &header).unwrap_err();
    assert!(error.message().contains("left over"), "{error}");
}

#[test]
fn a_place_that_is_not_the_blocks_own_is_refused_by_name() {
    let (good, _, header) = example();
    let end = header.index_offset;
    let ram = good.blocks[0].clone();
    for (offset, length) in [
        (0, ram.length),
        (4096, ram.length),
        (ram.offset + ALIGN, u64::MAX - 4095),
        (end.next_multiple_of(ALIGN), ram.length),
        (1 << 63, ram.length),
        (ram.offset, 0),
        (ram.offset, 4097),
    ] {
        let mut index = good.clone();
        index.blocks[0].offset = offset;
        index.blocks[0].length = length;
        let error = decode(&index.encode().unwrap(), &header).unwrap_err();
        assert_eq!(error.kind(), Kind::Image);
        assert!(error.message().contains("block `ram`"), "{error}");
    }
    // Areas that overlap, come twice, or a blob inside a block.
    let mut index = good.clone();
    index.blocks[1].offset = ram.offset;
    let error = decode(&index.encode().unwrap(), &header).unwrap_err();
    assert!(error.message().contains("block `röm`"), "{error}");
    let mut index = good.clone();
    index.blocks[1].name = "ram".into();
    let error = decode(&index.encode().unwrap(), &header).unwrap_err();
    assert!(error.message().contains("two blocks `ram`"), "{error}");
    for (offset, length) in [(0, 1), (end, 1), (end - 1, u64::MAX), (u64::MAX, 1)] {
        let mut index = good.clone();
        (index.blobs[0].offset, index.blobs[0].length) = (offset, length);
        let error = decode(&index.encode().unwrap(), &header).unwrap_err();
        assert!(error.message().contains("blob `config`"), "{error}");
    }
}

#[test]
fn an_index_that_promises_much_gets_no_room_for_it() {
    let (_, _, header) = example();
    // 2^32 - 1 blocks in eight bytes.
    let error = decode(&[0xff; 8], &header).unwrap_err();
    assert!(error.message().contains("expected 0 at most"), "{error}");
    let error = decode(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &header).unwrap_err();
    assert!(error.message().contains("blobs"), "{error}");
}

#[test]
fn no_page_with_contents_has_the_sum_of_a_zero_page() {
    assert_ne!(page_sum(&[0; 4096]), 0);
    // Four bytes chosen so that the checksum is 0: the bytes of any message's CRC state, inverted.
    let zero_sum = [0xff, 0xff, 0xff, 0xff];
    assert_eq!(crc32fast::hash(&zero_sum), 0xffff_ffff);
    let zero_sum = [0x9d, 0x0a, 0xd9, 0x6d];
    assert_eq!(crc32fast::hash(&zero_sum), 0);
    assert_eq!(page_sum(&zero_sum), u32::MAX);
}

proptest! {
    #[test]
    fn whatever_an_index_holds_it_is_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        index_offset in any::<u64>(),
    ) {
        let header = ImageHeader { file_length: 0, index_offset, index_sum: 0, number: [0; 16], zeros: false, parent: None };
        if index_offset < u64::MAX - 600 {
            let _ = decode(&bytes, &header);
        }
    }

    #[test]
    fn whatever_one_byte_becomes_the_index_is_read_or_refused(at in 0usize..4096, byte in any::<u8>()) {
        let (_, mut bytes, header) = example();
        let at = at % bytes.len();
        bytes[at] = byte;
        match decode(&bytes, &header) {
            Ok(index) => {
                for block in &index.blocks {
                    prop_assert!(block.end() <= header.index_offset);
                    prop_assert_eq!(block.pieces.len() as u64, piece_count(block.pages()));
                }
            }
            Err(e) => prop_assert_eq!(e.kind(), Kind::Image),
        }
    }
}
