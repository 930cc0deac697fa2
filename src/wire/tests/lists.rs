//! Lists of short runs: an encoded list is decoded, and no other list is accepted.

use super::*;

const LISTS: [RecordType; 3] = [
    RecordType::PagesList,
    RecordType::ZerosList,
    RecordType::CompressedList,
];

/// What a receiver decodes from a list with these entries, in a block of `pages`.
fn decoded(
    kind: RecordType,
    first: u64,
    entries: &[(u32, u32)],
    pages: u64,
) -> Result<Vec<(u64, u32)>> {
    let mut bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(offset, count)| [offset.to_le_bytes(), count.to_le_bytes()].concat())
        .collect();
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let contents: u32 = entries.iter().map(|(_, count)| count % 512).sum();
    let contents = match kind {
        RecordType::PagesList => contents.max(entries.len() as u32) * 4096,
        // A checksum, and a byte of a frame.
        RecordType::CompressedList => 5,
        _ => 0,
    };
    let header = Header {
        kind: kind.number(),
        flags: 0,
        block: 7,
        count: entries.len() as u32,
        first_page: first,
        payload: bytes.len() as u32 + contents,
    };
    runs(&header, &bytes, pages)
}

fn runs(header: &Header, list: &[u8], pages: u64) -> Result<Vec<(u64, u32)>> {
    let mut found = Vec::new();
    decode_list(header, list, Pages(pages), |first, count| {
        found.push((first.0, count));
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn a_list_ascends_inside_its_block_and_each_run_inside_one_stretch() {
    for kind in LISTS {
        let good = decoded(kind, 510, &[(0, 2), (2, 1), (40, 3)], 553).unwrap();
        assert_eq!(good, [(510, 2), (512, 1), (550, 3)]);
    }
    for (first, entries, word) in [
        (510, &[(0, 2), (2, 1), (40, 4)][..], "the block's 553 pages"),
        (510, &[(0, 3)], "one aligned stretch"),
        (510, &[(0, 0)], "at least one page"),
        (510, &[(1, 1)], "ascend"),
        (510, &[(0, 1), (0, 1)], "ascend"),
        (500, &[(0, 5), (4, 1)], "ascend"),
        (500, &[(0, 5), (9, 1), (7, 1)], "ascend"),
        (u64::MAX, &[(0, 1)], "below 2^64"),
        (u64::MAX - 7, &[(0, 1), (8, 1)], "the block's 553 pages"),
        (0, &[(u32::MAX, 1)], "the block's 553 pages"),
        (0, &[(0, u32::MAX)], "the block's 553 pages"),
        (600, &[(0, 1)], "the block's 553 pages"),
    ] {
        for kind in LISTS {
            refused(decoded(kind, first, entries, 553), &[kind.name(), word]);
        }
    }
}

#[test]
fn a_list_that_is_damaged_or_of_another_length_is_refused() {
    for kind in [RecordType::PagesList, RecordType::ZerosList] {
        let Any::Run(header, payload) = list(kind, 5, &[(510, 2), (513, 1), (9000, 1)]) else {
            unreachable!()
        };
        let whole = &payload[..list_len(header.count)];
        let with_contents = kind == RecordType::PagesList;
        assert_eq!(header.data_pages(), if with_contents { 4 } else { 0 });
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = runs(&header, &flipped, u64::MAX);
            refused(found, &[kind.name(), "checksum"]);
        }
        for length in 0..whole.len() {
            refused(
                runs(&header, &whole[..length], u64::MAX),
                &[kind.name(), "a list of 28 bytes"],
            );
        }
        // Exactly as many contents as the list says.
        for pages in [1, 2, 3, 5, 6, 512] {
            let payload = whole.len() as u32 + pages * 4096;
            let other = Header { payload, ..header };
            refused(runs(&other, whole, u64::MAX), &[kind.name()]);
        }
        for (count, payload, word) in [
            (0, header.payload, "1 to 256 runs"),
            (257, header.payload, "1 to 256 runs"),
            (u32::MAX, header.payload, "1 to 256 runs"),
            (3, 28 + 4096 * 513, "payload"),
            (3, 28 + 4097 * 3, "payload"),
            (3, 0, "payload"),
            (3, 27, "payload"),
            (3, 29, "payload"),
            (2, header.payload + 1, "payload"),
            (3, u32::MAX, "payload"),
        ] {
            let header = Header {
                count,
                payload,
                ..header
            };
            refused(header.classify(), &[kind.name(), word]);
        }
        // A list is no run.
        refused(header.check_run(Pages(u64::MAX)), &["PAGES, ZEROS"]);
    }
    // And a run is no list.
    let run = Header::zeros(5, Pages(0), 1);
    refused(runs(&run, &[], u64::MAX), &["found type 7"]);
}

/// The header alone cannot tell how many pages the frame of a COMPRESSED_LIST stands for.
#[test]
fn the_frame_of_a_list_is_shorter_than_the_pages_of_the_list() {
    let of = |given: &[(u64, u32)], frame| {
        let mut bytes = Vec::new();
        let each = given.iter().map(|(first, count)| (Pages(*first), *count));
        encode_compressed_list(5, each, frame, &mut bytes).unwrap();
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(header.data_pages(), 0);
        assert!(!header.is_checked());
        let found = header
            .classify()
            .and_then(|_| runs(&header, &bytes[HEADER_LEN..], u64::MAX));
        found.map(|found| assert_eq!(found, given))
    };
    let three = &[(510, 2), (513, 1)];
    for frame in [1, 4096, 3 * 4096 - 1] {
        of(three, frame).unwrap();
    }
    of(&[(0, 512)], 512 * 4096 - 1).unwrap();
    for frame in [3 * 4096, 3 * 4096 + 1, 512 * 4096 - 1] {
        let words = ["COMPRESSED_LIST", "block 5", "3 pages", &frame.to_string()];
        refused(of(three, frame), &words);
    }
    for frame in [0, 512 * 4096, u32::MAX] {
        refused(of(three, frame), &["COMPRESSED_LIST", "payload"]);
    }
    let more = [(0, 512), (512, 1)];
    refused(of(&more, 9), &["COMPRESSED_LIST", "at most 512 pages"]);
    let damaged = |bit: usize| {
        let Any::Run(header, mut payload) = packed_list(5, &[(510, 2), (513, 62)]) else {
            unreachable!()
        };
        payload[bit / 8] ^= 1 << (bit % 8);
        runs(&header, &payload[..list_len(header.count)], u64::MAX)
    };
    for bit in 0..list_len(2) * 8 {
        refused(damaged(bit), &["COMPRESSED_LIST", "checksum"]);
    }
}

#[test]
fn a_list_of_zeros_has_no_more_pages_than_a_list_with_contents_may_have() {
    let whole = [(0, 256), (256, 256)];
    assert_eq!(
        decoded(RecordType::ZerosList, 0, &whole, 4096).unwrap(),
        [(0, 256), (256, 256)]
    );
    let more = [(0, 256), (256, 256), (600, 1)];
    refused(
        decoded(RecordType::ZerosList, 0, &more, 4096),
        &["ZEROS_LIST", "at most 512 pages", "found 513"],
    );
}

proptest! {
    #[test]
    fn the_runs_of_a_list_come_back_as_they_were(
        gaps in prop::collection::vec((0u64..5000, 1u32..3), 1..=256),
        begin in 0u64..1 << 40,
    ) {
        let mut at = begin;
        let given: Vec<(u64, u32)> = gaps
            .into_iter()
            .map(|(gap, count)| {
                let mut first = at + gap;
                if first % 512 + u64::from(count) > 512 {
                    first = first.next_multiple_of(512);
                }
                at = first + u64::from(count);
                (first, count)
            })
            .collect();
        for kind in LISTS {
            let given: Vec<(u64, u32)> = match kind {
                // At most 512 pages.
                RecordType::ZerosList | RecordType::CompressedList => given.iter().map(|(first, _)| (*first, 1)).collect(),
                _ => given.clone(),
            };
            let Any::Run(header, payload) = list(kind, 1, &given) else {
                unreachable!()
            };
            let found = runs(&header, &payload[..list_len(header.count)], u64::MAX).unwrap();
            prop_assert_eq!(found, given);
        }
    }
}
