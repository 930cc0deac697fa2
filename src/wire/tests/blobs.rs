//! Blobs and reasons: read in parts, cut where necessary, refused when too long.

use super::*;

#[test]
fn a_blob_can_be_read_piecewise() {
    let blob = Blob {
        name: "vga".into(),
        instance: 1,
        version: 2,
        length: 900 << 20,
    };
    let mut bytes = Vec::new();
    blob.encode(RecordType::State, 0, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let prefix = &bytes[HEADER_LEN..];
    // The data are not there, and are not needed.
    assert_eq!(Blob::prefix_len_from(prefix[0]).unwrap(), prefix.len());
    assert_eq!(
        Blob::decode(&header, prefix).unwrap(),
        (blob.clone(), prefix.len())
    );
    assert!(blob.prefix_len() <= BLOB_PREFIX_MAX);
    for short in 0..prefix.len() {
        refused(Blob::decode(&header, &prefix[..short]), &["STATE"]);
    }
    // Bytes after the payload are not read as a part of it.
    let mut more = prefix.to_vec();
    more.resize(BLOB_PREFIX_MAX, 0xee);
    let small = Header {
        payload: 19,
        ..header
    };
    refused(Blob::decode(&small, &more), &["STATE"]);
    for first in [0, 129, 255] {
        refused(Blob::prefix_len_from(first), &["1 to 128"]);
    }
}

#[test]
fn a_blob_beyond_the_payload_limit_is_refused_when_encoded() {
    let most = u64::from(PAYLOAD_MAX) - 18;
    let blob = |length| Blob {
        name: "x".into(),
        instance: 0,
        version: 0,
        length,
    };
    let mut out = Vec::new();
    blob(most).encode(RecordType::State, 0, &mut out).unwrap();
    let header = Header::decode(out.first_chunk().unwrap()).unwrap();
    assert_eq!(header.payload, PAYLOAD_MAX);
    header.classify().unwrap();
    out.clear();
    for length in [most + 1, u64::from(u32::MAX), u64::MAX] {
        let error = blob(length)
            .encode(RecordType::Early, 0, &mut out)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
    }
    assert_eq!(
        blob(0)
            .encode(RecordType::Pages, 0, &mut out)
            .unwrap_err()
            .kind(),
        Kind::Invalid
    );
    assert!(out.is_empty());
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    for (pad, kept) in [(0, 1023), (1, 1024), (2, 1022), (3, 1023)] {
        let reason = format!("{}{}", "x".repeat(pad), "€".repeat(600));
        let abort = Record::Abort(Abort {
            code: -16,
            reason: reason.clone(),
        });
        let bytes = encode(&Any::Control(abort));
        let Some(Any::Control(Record::Abort(cut))) = decode(&bytes).unwrap() else {
            panic!("not an abort");
        };
        assert!(reason.starts_with(&cut.reason));
        assert_eq!(cut.reason.len(), kept, "{pad}");
    }
}

#[test]
fn a_reason_that_is_not_utf_8_does_not_hide_the_code() {
    let abort = |reason: &str| {
        encode(&Any::Control(Record::Abort(Abort {
            code: -12,
            reason: reason.into(),
        })))
    };
    let mut bytes = abort("was abc");
    let at = bytes.len() - 2;
    bytes[at] = 0xff;
    reseal(&mut bytes);
    let Some(Any::Control(Record::Abort(shown))) = decode(&bytes).unwrap() else {
        panic!("not an abort");
    };
    assert_eq!((shown.code, &*shown.reason), (-12, "was a\u{fffd}c"));
    // A text that becomes three times as long is cut again when it is passed on.
    let mut bytes = abort(&"x".repeat(1024));
    let from = bytes.len() - 1024;
    bytes[from..].fill(0xff);
    reseal(&mut bytes);
    let Some(Any::Control(Record::Abort(long))) = decode(&bytes).unwrap() else {
        panic!("not an abort");
    };
    assert_eq!(long.reason, "\u{fffd}".repeat(1024));
    assert_eq!(abort(&long.reason).len(), from + 1023);
}

#[test]
fn page_runs_and_blobs_are_no_control_records() {
    for header in [
        Header::pages(0, Pages(0), 1),
        Header::zeros(0, Pages(0), 1),
        Header::control(RecordType::State, 0, 18),
        Header::control(RecordType::Early, 0, 18),
    ] {
        let payload = vec![0; header.payload as usize];
        refused(Record::decode(&header, &payload), &["control record"]);
    }
    refused(
        Blob::decode(&Header::control(RecordType::Ack, 0, 8), &[0; 8]),
        &["STATE or EARLY"],
    );
}
