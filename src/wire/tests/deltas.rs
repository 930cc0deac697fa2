//! Records of changed pages: what is encoded is decoded, and no other record is believed.

use super::*;

type Page = (u64, u32, Vec<u8>);

fn record(first: u64, entries: &[(u32, u32, u16)], encodings: &[u8]) -> (Header, Vec<u8>) {
    let mut payload = vec![0; 4];
    for (offset, base, length) in entries {
        payload.extend(offset.to_le_bytes());
        payload.extend(base.to_le_bytes());
        payload.extend(length.to_le_bytes());
    }
    payload.extend(encodings);
    let sum = crc32fast::hash(&payload[4..]);
    payload[..4].copy_from_slice(&sum.to_le_bytes());
    let header = Header {
        kind: RecordType::Delta.number(),
        flags: 0,
        block: 7,
        count: entries.len() as u32,
        first_page: first,
        payload: payload.len() as u32,
    };
    (header, payload)
}

fn decoded(header: &Header, payload: &[u8], block: u64) -> Result<Vec<Page>> {
    let pages = decode_delta(header, payload, Pages(block))?;
    Ok(pages
        .map(|delta| (delta.page.0, delta.base, delta.encoding.to_vec()))
        .collect())
}

#[test]
fn changed_pages_ascend_inside_their_block_and_the_table_says_how_long_each_is() {
    let entries = [(0, 0xaabb_ccdd, 2), (1, 1, 0), (42, 2, 3)];
    let (header, payload) = record(510, &entries, b"abcde");
    let good = decoded(&header, &payload, 553).unwrap();
    let expected = [
        (510, 0xaabb_ccdd, b"ab".to_vec()),
        (511, 1, vec![]),
        (552, 2, b"cde".to_vec()),
    ];
    assert_eq!(good, expected);
    assert_eq!(header.data_pages(), 3);
    for (first, entries, encodings, word) in [
        (
            510,
            &[(0, 0, 0), (43, 0, 0)][..],
            0,
            "the block's 553 pages",
        ),
        (553, &[(0, 0, 0)], 0, "the block's 553 pages"),
        (
            0,
            &[(0, 0, 0), (u32::MAX, 0, 0)],
            0,
            "the block's 553 pages",
        ),
        (510, &[(1, 0, 0)], 0, "ascend"),
        (510, &[(0, 0, 0), (0, 0, 0)], 0, "ascend"),
        (510, &[(0, 0, 0), (9, 0, 0), (8, 0, 0)], 0, "ascend"),
        (u64::MAX, &[(0, 0, 0)], 0, "the block's 553 pages"),
        (
            u64::MAX - 7,
            &[(0, 0, 0), (8, 0, 0)],
            0,
            "the block's 553 pages",
        ),
        (510, &[(0, 0, 4097), (1, 0, 0)], 4097, "at most 4096 bytes"),
        (510, &[(0, 0, 3), (1, 0, 3)], 7, "encodings of 6 bytes"),
        (510, &[(0, 0, 3), (1, 0, 3)], 5, "encodings of 6 bytes"),
        (510, &[(0, 0, 3)], 0, "encodings of 3 bytes"),
    ] {
        let (header, payload) = record(first, entries, &vec![0x5a; encodings]);
        // Some are refused for their length alone.
        refused(decoded(&header, &payload, 553), &["DELTA", word]);
    }
}

#[test]
fn a_record_of_changed_pages_that_is_damaged_or_of_another_length_is_refused() {
    let (header, payload) = record(9, &[(0, 5, 2), (7, 6, 1)], b"abc");
    for bit in 0..payload.len() * 8 {
        let mut flipped = payload.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(decoded(&header, &flipped, u64::MAX), &["checksum"]);
    }
    for length in 0..payload.len() {
        let cut = &payload[..length];
        refused(decoded(&header, cut, u64::MAX), &["a payload of 27 bytes"]);
    }
    for (count, payload, word) in [
        (0, 4, "1 to 512 pages"),
        (513, 4 + 513 * 10, "1 to 512 pages"),
        (u32::MAX, 27, "1 to 512 pages"),
        (2, 23, "a payload of 24 to 8216 bytes"),
        (2, 8217, "a payload of 24 to 8216 bytes"),
        (2, u32::MAX, "a payload of 24 to 8216 bytes"),
    ] {
        let header = Header {
            count,
            payload,
            ..header
        };
        refused(header.classify(), &["DELTA", word]);
    }
    refused(header.check_run(Pages(u64::MAX)), &["PAGES, ZEROS"]);
}

proptest! {
    #[test]
    fn changed_pages_come_back_as_they_were(
        pages in prop::collection::vec(
            (1u64..5000, any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)),
            1..=512,
        ),
        begin in 0u64..1 << 40,
    ) {
        let mut at = begin;
        let given: Vec<Page> = pages
            .into_iter()
            .map(|(gap, base, encoding)| {
                at += gap;
                (at, base, encoding)
            })
            .collect();
        let mut bytes = vec![1, 2, 3];
        encode_delta(3, given.iter().map(as_delta), &mut bytes).unwrap();
        let head = bytes[3..].first_chunk().unwrap();
        let header = Header::decode(head).unwrap();
        let found = decoded(&header, &bytes[3 + HEADER_LEN..], u64::MAX).unwrap();
        prop_assert_eq!(found, given);
    }

    #[test]
    fn any_table_is_decoded_or_refused(
        entries in prop::collection::vec(any::<(u32, u32, u16)>(), 1..5),
        encodings in prop::collection::vec(any::<u8>(), 0..40),
        first in any::<u64>(),
        block in any::<u64>(),
    ) {
        let (header, payload) = record(first, &entries, &encodings);
        if let Ok(pages) = decoded(&header, &payload, block) {
            prop_assert!(pages.iter().all(|(page, ..)| *page < block));
        }
    }
}

fn as_delta((page, base, encoding): &Page) -> Delta<'_> {
    Delta {
        page: Pages(*page),
        base: *base,
        encoding,
    }
}
