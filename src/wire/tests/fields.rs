//! Which values a record's fields may have, both when encoding and when decoding.

use super::*;

#[test]
fn a_run_stays_inside_its_block_and_its_stretch() {
    let block = Pages(1500);
    for build in [
        Header::pages,
        Header::checked_pages,
        Header::zeros,
        Header::ballooned,
    ] {
        for (first, count) in [
            (0, 1),
            (0, 512),
            (511, 1),
            (512, 512),
            (1499, 1),
            (1024, 476),
        ] {
            build(3, Pages(first), count).check_run(block).unwrap();
        }
        for (first, count) in [
            (0, 0),
            (0, 513),
            (511, 2),
            (1, 512),
            (1499, 2),
            (1500, 1),
            (1024, 477),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (u64::MAX - 511, 512),
            (0, u32::MAX),
        ] {
            refused(
                build(3, Pages(first), count).check_run(block),
                &["block 3", &format!("{count} pages from page {first}")],
            );
        }
        refused(build(3, Pages(0), 1).check_run(Pages(0)), &["0 pages"]);
    }
    // The largest possible values: no overflow on the way there.
    Header::zeros(0, Pages(u64::MAX - 1), 1)
        .check_run(Pages(u64::MAX))
        .unwrap();
    let data = Header::pages(3, Pages(0), 2);
    for payload in [0, 4096, 8191, 8193, u32::MAX] {
        refused(Header { payload, ..data }.check_run(block), &["8192"]);
    }
    let zeros = Header::zeros(3, Pages(0), 2);
    refused(
        Header {
            payload: 1,
            ..zeros
        }
        .check_run(block),
        &["0 bytes"],
    );
    refused(
        Header::control(RecordType::Ack, 0, 8).check_run(block),
        &["PAGES, ZEROS, BALLOONED or"],
    );
}

#[test]
fn every_flipped_bit_in_checked_contents_is_found_and_the_pages_are_named() {
    let Some((_, Any::Run(header, payload))) = examples()
        .into_iter()
        .find(|(name, _)| *name == "pages_checked")
    else {
        unreachable!()
    };
    assert!(header.is_checked());
    assert_eq!(header.data_pages(), 2);
    assert_eq!(header.check_contents(&payload).unwrap(), &payload[..8192]);
    for bit in 0..payload.len() * 8 {
        let mut flipped = payload.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(
            header.check_contents(&flipped),
            &["pages 4294967806 to 4294967807", "checksum"],
        );
    }
    refused(header.check_contents(&payload[..3]), &["no checksum"]);
}

#[test]
fn a_header_tells_by_its_payload_whether_a_checksum_follows_the_contents() {
    let plain = Header::pages(1, Pages(0), 512);
    let checked = Header::checked_pages(1, Pages(0), 512);
    for (header, is) in [(plain, false), (checked, true)] {
        assert_eq!(header.is_checked(), is);
        assert_eq!(header.data_pages(), 512);
        assert_eq!(header.classify(), Ok(Some(RecordType::Pages)));
    }
    // No other record has one.
    assert!(!Header::control(RecordType::State, 0, 4100).is_checked());
    for payload in [checked.payload - 1, checked.payload + 1, 4, u32::MAX] {
        let wrong = Header { payload, ..checked };
        refused(wrong.classify(), &["PAGES", "payload"]);
    }
}

#[test]
fn a_compressed_run_is_shorter_than_its_pages_and_lies_in_one_stretch() {
    for (first, count, frame) in [(0, 1, 1), (0, 1, 4095), (511, 1, 9), (512, 512, 2_097_151)] {
        let header = Header::compressed(3, Pages(first), count, frame);
        assert_eq!(header.classify(), Ok(Some(RecordType::Compressed)));
        header.check_run(Pages(1024)).unwrap();
        assert_eq!(header.data_pages(), u64::from(count));
        assert!(!header.is_checked());
    }
    for (count, frame) in [
        (1, 0),
        (1, 4096),
        (512, 2_097_152),
        (0, 1),
        (513, 1),
        (u32::MAX, 1),
    ] {
        let header = Header::compressed(3, Pages(0), count, frame);
        refused(header.classify(), &["COMPRESSED", "expected"]);
        refused(header.check_run(Pages(1024)), &["COMPRESSED"]);
    }
    for (first, count) in [(511, 2), (1023, 2), (u64::MAX, 1)] {
        let header = Header::compressed(3, Pages(first), count, 9);
        refused(header.check_run(Pages(1024)), &["block 3"]);
    }
}

fn state_end(count: u32, handover_millis: u32) -> Record {
    Record::StateEnd(StateEnd {
        blobs: BlobEnd { count, bytes: 0 },
        handover_millis,
    })
}

#[test]
fn invalid_fields_are_refused_both_ways() {
    let hello = |change: fn(&mut Hello)| {
        let Any::Control(Record::Hello(mut hello)) = examples()[0].1.clone() else {
            unreachable!()
        };
        change(&mut hello);
        Record::Hello(hello)
    };
    let block = |change: fn(&mut Block)| {
        let Any::Control(Record::Block(mut block)) = examples()[2].1.clone() else {
            unreachable!()
        };
        change(&mut block);
        Record::Block(block)
    };
    let marker = |number, flags| {
        Record::Marker(Marker {
            number,
            pass: 0,
            flags,
            records: 0,
            data_pages: 0,
            zero_pages: 0,
        })
    };
    let file = |offset, length| {
        Record::BlockFd(BlockFd {
            id: 1,
            offset,
            length,
        })
    };
    for record in [
        file(1, 4096),
        file(0, 0),
        file(0, 4095),
        file(1 << 62, 1 << 62),
        file(u64::MAX - 4095, 4096),
        hello(|h| h.version_min = 0),
        hello(|h| h.version_min = 3),
        hello(|h| h.features_required = 4),
        hello(|h| h.channels = 0),
        hello(|h| h.channels = 257),
        hello(|h| h.channel = 5),
        hello(|h| (h.channel, h.role) = (4, ROLE_BULK)),
        // The example is urgent.
        hello(|h| h.channel = 0),
        hello(|h| h.software = "x".repeat(65)),
        hello(|h| h.software = "a\nb".into()),
        Record::HelloReply(HelloReply {
            version: 0,
            features: 0,
            software: String::new(),
        }),
        block(|b| b.length = 0),
        block(|b| b.length += 1),
        block(|b| b.length = 1 << 63),
        block(|b| b.page_size = 0),
        block(|b| b.page_size = 2048),
        block(|b| b.page_size = 12288),
        block(|b| b.flags = 2),
        block(|b| b.name = "\0".into()),
        block(|b| b.name = "x".repeat(256)),
        Record::LayoutEnd(LayoutEnd {
            blocks: BLOCKS_MAX + 1,
            bytes: 0,
        }),
        state_end(BLOBS_MAX + 1, 1),
        state_end(0, 0),
        state_end(0, HANDOVER_MILLIS_MAX + 1),
        marker(0, 0),
        marker(1, 3),
        marker(1, 5),
        marker(1, 8),
        Record::Ack(Ack { number: 0 }),
    ] {
        let mut out = vec![1, 2, 3];
        let error = record.encode(&mut out).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert_eq!(out, [1, 2, 3], "untouched on an error");
    }
    // The same when decoding: (fixture, offset in the payload, bytes written there).
    let mut too_many = 257u16.to_le_bytes().to_vec();
    too_many.push(12);
    for (name, at, patch) in [
        ("hello", 0, &[0, 0][..]),
        ("hello", 0, &[3, 0]),
        ("hello", 12, &[4]),
        ("hello", 36, &[5, 0]),
        ("hello", 38, &[0, 0]),
        ("hello", 38, &too_many),
        ("hello", 42, &[65]),
        ("hello", 43, &[0xff]),
        ("hello", 43, &[7]),
        ("hello", 36, &[0, 0]),
        ("hello_reply", 0, &[0, 0]),
        ("block", 0, &[1]),
        ("block", 0, &[0; 8]),
        ("block", 7, &[0x80]),
        ("block", 8, &[0; 8]),
        ("block", 8, &[1]),
        ("block", 16, &[2]),
        ("block", 20, &[0xff, 0xff]),
        ("block", 20, &[0, 1]),
        ("block", 22, &[0]),
        ("layout_end", 0, &[1, 0x80, 0, 0]),
        ("state_end", 0, &[1, 0, 1, 0]),
        ("state_end", 12, &[0; 4]),
        ("state_end", 12, &[0x81, 0xee, 0x36, 0]),
        ("early_end", 0, &[1, 0, 1, 0]),
        ("marker", 0, &[0; 8]),
        ("marker", 12, &[3]),
        ("ack", 0, &[0]),
        ("abort", 4, &[1, 4]),
        ("state", 0, &[0]),
        ("state", 0, &[129]),
        ("state", 1, &[0xc3]),
        ("state", 1, &[0x1b]),
        ("state", 13, &[4]),
        ("state", 13, &[6]),
        ("state", 20, &[0x80]),
    ] {
        let (_, value) = examples().into_iter().find(|(n, _)| *n == name).unwrap();
        let mut bytes = encode(&value);
        bytes[HEADER_LEN + at..][..patch.len()].copy_from_slice(patch);
        reseal(&mut bytes);
        refused(decode(&bytes), &["found"]);
    }
}
