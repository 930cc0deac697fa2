//! Records that are cut short, have a flipped bit, are of an unknown type or are too long: refused
//! by the header alone if it shows.

use super::*;

#[test]
fn every_truncation_of_every_record_is_refused() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        for length in 0..bytes.len() {
            assert!(
                decode(&bytes[..length]).is_err(),
                "{name} cut to {length} bytes"
            );
        }
    }
}

/// The payload is cut, and the header changed to agree with it.
#[test]
fn every_truncation_that_the_header_owns_up_to_is_refused() {
    // A piece of a device's state is as long as its payload says: one that is cut is a shorter piece. And
    // a request of fewer runs is a request.
    let whole = |(name, _): &(&str, Any)| *name != "device";
    let runs =
        |name: &str, payload: usize| name == "request" && payload > 0 && payload.is_multiple_of(12);
    for (name, value) in examples().into_iter().filter(whole) {
        let bytes = encode(&value);
        for length in (HEADER_LEN..bytes.len()).filter(|n| !runs(name, n - HEADER_LEN)) {
            let mut cut = bytes[..length].to_vec();
            let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
            let payload = (length - HEADER_LEN) as u32;
            if header.is_checked() && length == bytes.len() - CHECKSUM_LEN {
                // All of the contents and no checksum: right where none was agreed on.
                continue;
            }
            cut[..HEADER_LEN].copy_from_slice(&Header { payload, ..header }.encode());
            reseal(&mut cut);
            assert!(
                decode(&cut).is_err(),
                "{name} with a payload of {payload} bytes"
            );
        }
    }
}

#[test]
fn trailing_bytes_are_refused_even_when_the_header_counts_them() {
    // As above: a longer payload is a longer piece.
    let piece = ["device", "device_running_end"];
    let whole = |(name, _): &(&str, Any)| !piece.contains(name);
    for (name, value) in examples().into_iter().filter(whole) {
        let mut bytes = encode(&value);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        for extra in [1, 2, 4096] {
            bytes.resize(HEADER_LEN + header.payload as usize + extra, 0);
            let payload = header.payload + extra as u32;
            let counted = Header { payload, ..header }.encode();
            assert!(decode(&bytes).is_err(), "{name}");
            bytes[..HEADER_LEN].copy_from_slice(&counted);
            reseal(&mut bytes);
            assert!(decode(&bytes).is_err(), "{name}, counted");
            bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        }
    }
}

#[test]
fn every_single_bit_flip_of_a_header_is_refused() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = *bytes.first_chunk::<HEADER_LEN>().unwrap();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused(Header::decode(&flipped), &["expected", "found"]);
        }
        assert!(
            Header::decode(bytes.first_chunk().unwrap()).is_ok(),
            "{name}"
        );
    }
}

/// A flipped bit in any payload but pages.
#[test]
fn every_single_bit_flip_of_a_payload_is_refused_and_a_blob_is_named() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        if matches!(value, Any::Run(..)) {
            continue;
        }
        for bit in HEADER_LEN * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = decode(&flipped).unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol, "{name}, bit {bit}: {error}");
        }
        if let Any::Blob(_, blob, data) = &value {
            if data.is_empty() {
                continue;
            }
            let mut flipped = bytes.clone();
            let last = flipped.len() - 1;
            flipped[last] ^= 1;
            refused(
                decode(&flipped),
                &["checksum", &format!("blob `{}` (3)", blob.name)],
            );
        }
    }
}

#[test]
fn header_errors_say_expected_and_found() {
    let header = Header::control(RecordType::Ready, 0, 16);
    let mut bytes = header.encode();
    bytes[..4].copy_from_slice(b"HTTP");
    refused(Header::decode(&bytes), &["BRNT", "0x50545448"]);
    for flags in [2, 0x8000, 3] {
        refused(
            Header::decode(&Header { flags, ..header }.encode()),
            &["READY", &format!("{flags:#x}")],
        );
    }
    refused(
        Header {
            payload: 9,
            ..header
        }
        .classify(),
        &["READY", "16 bytes", "found 9"],
    );
}

#[test]
fn an_unknown_type_is_skipped_with_the_flag_and_refused_without() {
    let unknown = Header {
        kind: 999,
        flags: FLAG_SKIPPABLE,
        block: 5,
        count: 6,
        first_page: 7,
        payload: SKIPPED_PAYLOAD_MAX,
    };
    let decoded = Header::decode(&unknown.encode()).unwrap();
    assert_eq!(decoded, unknown);
    assert_eq!(decoded.classify().unwrap(), None);
    refused(Record::decode(&decoded, &[]), &["999"]);
    refused(
        Header {
            flags: 0,
            ..unknown
        }
        .classify(),
        &["999", "1 to 38"],
    );
    refused(
        Header {
            kind: 0,
            flags: 0,
            ..unknown
        }
        .classify(),
        &["type 0"],
    );
    let much = Header {
        payload: SKIPPED_PAYLOAD_MAX + 1,
        ..unknown
    };
    refused(much.check_payload_limit(), &["65536", "65537"]);
}

#[test]
fn a_known_type_has_one_valid_form_of_flag_and_unused_fields() {
    for (name, value) in examples() {
        let bytes = encode(&value);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        let kind = header.classify().unwrap().unwrap();
        let flags = header.flags ^ FLAG_SKIPPABLE;
        refused(Header { flags, ..header }.classify(), &["skippable"]);
        if !kind.is_page_run() {
            let count = header.count ^ 1;
            refused(
                Header { count, ..header }.check_payload(&bytes[HEADER_LEN..]),
                &[kind.name(), "checksum"],
            );
            refused(
                Header {
                    first_page: 1,
                    ..header
                }
                .classify(),
                &["first page 1"],
            );
        }
        let block = Header {
            block: 77,
            ..header
        }
        .classify();
        assert_eq!(block.is_ok(), kind.uses_block(), "{name}");
    }
}

#[test]
fn a_payload_beyond_its_types_limit_is_refused_from_the_header_alone() {
    for &kind in RecordType::ALL {
        let (least, most) = kind.payload_limits();
        assert!(least <= most && most <= PAYLOAD_MAX, "{kind:?}");
        let base = match kind {
            RecordType::Pages => Header::pages(0, Pages(0), 1),
            RecordType::Compressed => Header::compressed(0, Pages(0), 512, 1),
            RecordType::Zeros => Header::zeros(0, Pages(0), 1),
            RecordType::Ballooned => Header::ballooned(0, Pages(0), 1),
            RecordType::PagesList
            | RecordType::ZerosList
            | RecordType::CompressedList
            | RecordType::Delta => Header {
                count: 1,
                ..Header::control(kind, 0, 0)
            },
            _ => Header::control(kind, 0, 0),
        };
        for payload in [most + 1, u32::MAX] {
            refused(
                Header { payload, ..base }.check_payload_limit(),
                &[kind.name()],
            );
        }
        if let Some(payload) = least.checked_sub(1) {
            refused(
                Header { payload, ..base }.check_payload_limit(),
                &[kind.name()],
            );
        }
        // The count of these types determines the payload, or its limits.
        let by_count = [RecordType::Pages, RecordType::Delta];
        if !by_count.contains(&kind) && !kind.is_list() {
            for payload in [least, most] {
                Header { payload, ..base }.check_payload_limit().unwrap();
            }
        }
    }
    let run = Header::pages(0, Pages(0), 512);
    run.check_payload_limit().unwrap();
    for count in [0, 513, 1 << 20, u32::MAX] {
        refused(Header { count, ..run }.check_payload_limit(), &["1 to 512"]);
    }
    refused(
        Header {
            payload: 4096,
            ..run
        }
        .check_payload_limit(),
        &["2097152", "4096"],
    );
}
