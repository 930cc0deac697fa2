//! Records of checksums: a checksum for each page, or none for pages that are all zero.

use super::*;

fn digest(first: u64, pages: u32, sums: usize) -> Digest {
    Digest {
        block: 7,
        first_page: Pages(first),
        pages,
        sums: (0..sums as u32).collect(),
    }
}

/// A record with these fields and bytes, whatever the rules say.
fn record(first: u64, pages: u32, sums: u32, rest: &[u8]) -> (Header, Vec<u8>) {
    let mut payload = first.to_le_bytes().to_vec();
    payload.extend(pages.to_le_bytes());
    payload.extend(sums.to_le_bytes());
    payload.extend(rest);
    let header = Header {
        count: crc32fast::hash(&payload),
        ..Header::control(RecordType::Digest, 7, payload.len() as u32)
    };
    (header, payload)
}

#[test]
fn a_digest_has_a_checksum_for_each_page_or_none() {
    for good in [
        digest(0, 1, 1),
        digest(512, 512, 512),
        digest(1, DIGEST_PAGES_MAX, 0),
        digest(u64::MAX - 3, 3, 3),
    ] {
        let any = Any::Control(Record::Digest(good));
        assert_eq!(decode(&encode(&any)).unwrap(), Some(any));
    }
    for (bad, part) in [
        (digest(0, 0, 0), "found 0"),
        (digest(0, DIGEST_PAGES_MAX + 1, 0), "found 262145"),
        (digest(0, 2, 1), "found 1 for 2 pages"),
        (digest(0, 1, 2), "found 2 for 1 pages"),
        (digest(0, 513, 512), "found 512 for 513 pages"),
        (digest(u64::MAX, 1, 1), "pages below 2^64"),
    ] {
        let sums: Vec<u8> = bad.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let (header, payload) = record(bad.first_page.0, bad.pages, bad.sums.len() as u32, &sums);
        refused(Record::decode(&header, &payload), &["DIGEST", part]);
        let error = Record::Digest(bad).encode(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn a_digest_that_is_too_long_or_ends_inside_a_checksum_is_refused() {
    // Refused by the header alone, before any byte of it is read.
    let (header, payload) = record(0, 513, 513, &[0; 513 * 4]);
    refused(header.classify(), &["16 to 2064", "2068"]);
    refused(Record::decode(&header, &payload), &["16 to 2064"]);
    let (header, payload) = record(0, 1, 1, &[0; 3]);
    refused(Record::decode(&header, &payload), &["sums", "found 3"]);
    // Nothing is allocated for checksums that are not there.
    let (header, payload) = record(0, 1, u32::MAX, &[0; 4]);
    refused(Record::decode(&header, &payload), &["sums", "found 0"]);
    let (header, payload) = record(0, 1, 0, &[0; 4]);
    refused(Record::decode(&header, &payload), &["4 more"]);
    let (header, payload) = record(0, 1, 0, &[]);
    refused(Record::decode(&header, &payload[..15]), &["16 bytes"]);
}
