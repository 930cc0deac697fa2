//! Descriptions of missing pages: short whichever way the pages lie, read once, and checked.

use super::*;
use crate::bits::Bitmap;
use std::ops::Range;

/// All records of a description of these pages of a block.
fn described(pages: u64, runs: &[Range<u64>]) -> Vec<Missing> {
    let mut bits = Bitmap::new(pages as usize).unwrap();
    for run in runs {
        bits.set_range(run.start as usize, (run.end - run.start) as usize);
    }
    let mut records = Vec::new();
    let total = describe(7, bits.words(), Pages(pages), |missing| {
        records.push(missing.clone());
        Ok(())
    });
    assert_eq!(total.unwrap(), Pages(bits.count()));
    records
}

fn bytes(records: &[Missing]) -> usize {
    let sizes = records.iter().map(|record| {
        let record = Any::Control(Record::Missing(record.clone()));
        let bytes = encode(&record);
        assert_eq!(decode(&bytes).unwrap(), Some(record));
        bytes.len()
    });
    sizes.sum()
}

/// The pages of these records, neighbours joined.
fn pages_of(records: &[Missing]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for run in records.iter().flat_map(Missing::runs) {
        match runs.last_mut() {
            Some(last) if last.end == run.start.0 => last.end = run.end.0,
            _ => runs.push(run.start.0..run.end.0),
        }
    }
    runs
}

const GIB: u64 = MISSING_PAGES_MAX as u64;

#[test]
fn a_description_is_short_whether_the_pages_lie_together_or_apart() {
    // 4 GiB. A bitmap of it has 131,072 bytes.
    let pages = 4 * GIB;
    let overhead = 4 * (HEADER_LEN + 18);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let scattered: Vec<_> = (0..pages)
        .filter(|_| random() % 100 == 0)
        .map(|page| page..page + 1)
        .collect();
    let records = described(pages, &scattered);
    assert!(bytes(&records) < scattered.len() * 5 / 2 + overhead);
    let all_pages = pages_of(&records).into_iter().flatten();
    assert!(all_pages.eq(scattered.iter().map(|page| page.start)));

    let clustered: Vec<_> = (0..20)
        .map(|i| i * 40_000 + 17..i * 40_000 + 2100)
        .collect();
    let records = described(pages, &clustered);
    assert_eq!(pages_of(&records), clustered);
    assert!(bytes(&records) < 20 * 6 + overhead);

    let all = described(pages, &[0..pages]);
    assert!(bytes(&all) <= 4 * 4 + overhead);

    // Every second page: runs would take two bytes for each, bits take one for eight pages.
    let half: Vec<_> = (0..pages / 2).map(|i| 2 * i..2 * i + 1).collect();
    let records = described(pages, &half);
    assert!(bytes(&records) <= (pages / 8) as usize + overhead);
    assert_eq!(pages_of(&records), half);

    assert!(described(pages, &[]).is_empty());
}

#[test]
fn a_described_block_need_not_be_a_multiple_of_anything() {
    for pages in [1, 7, 8, 9, 63, 64, 65, GIB - 1, GIB, GIB + 1] {
        for runs in [vec![0..pages], vec![pages - 1..pages]] {
            let records = described(pages, &runs);
            assert_eq!(pages_of(&records), runs);
            let mut account = Described::default();
            for record in &records {
                account.take(record, Pages(pages)).unwrap();
            }
            let pages = runs.iter().map(|run| run.end - run.start).sum();
            account
                .end(&MissingEnd {
                    pages: Pages(pages),
                    epoch: 0,
                })
                .unwrap();
        }
    }
}

proptest! {
    #[test]
    fn what_is_described_is_what_misses(
        parts in prop::collection::vec((1u64..3000, 1u64..3000), 0..60), dense in any::<bool>(),
    ) {
        let mut runs = Vec::new();
        let mut at = 0;
        for (gap, length) in parts {
            let (gap, length) = if dense { (gap % 3 + 1, length % 3 + 1) } else { (gap, length) };
            runs.push(at + gap..at + gap + length);
            at += gap + length;
        }
        let records = described(at + 5, &runs);
        prop_assert_eq!(pages_of(&records), runs);
        bytes(&records);
    }
}

/// A record with these fields and bytes, whatever the rules say.
fn record(first: u64, pages: u32, missing: u32, form: u8, rest: &[u8]) -> (Header, Vec<u8>) {
    let mut payload = first.to_le_bytes().to_vec();
    payload.extend(pages.to_le_bytes());
    payload.extend(missing.to_le_bytes());
    payload.push(form);
    payload.extend(rest);
    let header = Header {
        count: crc32fast::hash(&payload),
        ..Header::control(RecordType::Missing, 7, payload.len() as u32)
    };
    (header, payload)
}

#[test]
fn a_description_that_breaks_a_rule_is_refused_with_the_rule() {
    for (first, pages, missing, form, rest, part) in [
        (0, 0, 1, 0, &[0, 1][..], "1 to 262144 pages, found 0"),
        (0, GIB as u32 + 1, 1, 0, &[0, 1], "found 262145"),
        (u64::MAX, 1, 1, 0, &[0, 1], "below 2^64"),
        (0, 8, 1, 2, &[0, 1], "form"),
        // Runs.
        (0, 8, 2, 0, &[0, 1], "2 missing pages"),
        (0, 8, 0, 0, &[0, 0], "at least one page"),
        (0, 8, 2, 0, &[0, 1, 0, 1], "between two"),
        (0, 8, 9, 0, &[0, 9], "ends at 9"),
        (0, 8, 1, 0, &[0], "found their end"),
        (0, 8, 1, 0, &[0, 0x81], "found their end"),
        (0, 8, 1, 0, &[0, 0x81, 0], "shortest form"),
        (0, 8, 1, 0, &[0, 0x81, 0x80, 0x80, 1], "1 to 3 bytes"),
        // Bits.
        (0, 9, 1, 1, &[1], "2 bytes"),
        (0, 9, 1, 1, &[1, 0, 0], "2 bytes"),
        (0, 9, 2, 1, &[1, 2], "no bit behind"),
        (0, 9, 1, 1, &[1, 1], "found 2"),
        (0, 9, 0, 1, &[0, 0], "at least one"),
    ] {
        let (header, payload) = record(first, pages, missing, form, rest);
        refused(Record::decode(&header, &payload), &["MISSING", part]);
    }
    // Too long for a piece: refused by the header alone.
    let (header, _) = record(0, 8, 1, 1, &[0; 32769]);
    refused(header.classify(), &["18 to 32785", "32786"]);
    let (header, _) = record(0, 8, 1, 1, &[]);
    refused(header.classify(), &["18 to 32785", "17"]);
}

#[test]
fn a_description_ascends_and_ends_with_its_sum() {
    let records = described(3 * GIB, &[5..6, GIB + 5..GIB + 7]);
    let mut account = Described::default();
    refused(
        account.take(&records[0], Pages(GIB - 1)),
        &["inside the block's 262143 pages"],
    );
    account.take(&records[1], Pages(3 * GIB)).unwrap();
    refused(account.take(&records[0], Pages(3 * GIB)), &["ascend"]);
    refused(account.take(&records[1], Pages(3 * GIB)), &["ascend"]);
    let end = |pages| MissingEnd {
        pages: Pages(pages),
        epoch: 0,
    };
    refused(account.end(&end(3)), &["the 2 missing pages", "found 3"]);
    account.end(&end(2)).unwrap();
    let mut next = records[0].clone();
    next.block = 8;
    account.take(&next, Pages(3 * GIB)).unwrap();
    assert_eq!(account.pages(), Pages(3));
}

#[test]
fn a_request_has_a_few_runs_of_pages() {
    let request = |runs: Vec<(u64, u32)>| {
        let runs = runs.into_iter().map(|(first, pages)| (Pages(first), pages));
        Record::Request(Request {
            block: 7,
            runs: runs.collect(),
        })
    };
    for good in [
        vec![(9, 1)],
        vec![(9, GIB as u32), (3, 1)],
        vec![(1 << 40, 1); 256],
    ] {
        let any = Any::Control(request(good));
        assert_eq!(decode(&encode(&any)).unwrap(), Some(any));
    }
    for (bad, part) in [
        (vec![], "found 0"),
        (vec![(1, 1); 257], "found 257"),
        (vec![(1, 0)], "found 0 from page 1"),
        (vec![(1, GIB as u32 + 1)], "found 262145"),
        (vec![(u64::MAX, 1)], "below 2^64"),
    ] {
        let error = request(bad).encode(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains(part), "{error}");
    }
    let payload = [0; 13];
    let header = Header {
        count: crc32fast::hash(&payload),
        ..Header::control(RecordType::Request, 7, 13)
    };
    refused(Record::decode(&header, &payload), &["REQUEST", "found 1"]);
}
