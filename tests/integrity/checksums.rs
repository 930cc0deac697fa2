//! Checksums of contents: a flipped bit is found, and the guest runs on at the source.

use super::damage::damaged;
use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::{incoming, outgoing, quick, start};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, PageChecksums, Params};
use brant::wire::{list_len, Header, RecordType, CHECKSUM_LEN};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn checked() -> Params {
    Params {
        page_checksums: PageChecksums::On,
        ..quick()
    }
}

/// A guest with pages in long runs, and with single pages that lie apart.
fn pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 600), shared("shm", 400)]);
    let mut random = Random(11);
    for (_, ram) in pair.source.rams() {
        for page in (0..ram.spec.pages).filter(|page| *page < 200 || page % 2 == 0) {
            ram.fill(page, &mut random);
        }
    }
    pair
}

#[test]
fn contents_with_checksums_arrive_whole_while_the_guest_writes() {
    let pair = pair();
    pair.destination.fill(2);
    pair.source.writers(2, Duration::from_micros(200));
    pair.source.wait_goes_on(0);
    let (out, inc) = start(&pair, &checked());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("with checksums");
    assert_eq!(pair.world.who(), (false, true));
}

/// Flips one bit of the contents behind a header. The record must not be a list.
fn flip(header: &Header, bytes: &mut [u8], random: &mut Random) {
    let list = match header.record_type() {
        Ok(Some(RecordType::PagesList)) => list_len(header.count),
        _ => 0,
    };
    let before = bytes.len() - header.payload as usize + list;
    let at = before + random.below(bytes.len() - before);
    bytes[at] ^= 1 << random.below(8);
}

#[test]
fn every_flipped_bit_in_contents_is_found_and_the_guest_runs_on() {
    let seed = 7;
    println!("seed {seed}");
    let random = Arc::new(Mutex::new(Random(seed)));
    for (kind, n) in [
        (RecordType::Pages, 1),
        (RecordType::Pages, 2),
        (RecordType::Pages, 3),
        (RecordType::PagesList, 1),
        (RecordType::PagesList, 2),
    ] {
        for _ in 0..3 {
            let pair = pair();
            let random = Arc::clone(&random);
            let flip = move |header: &Header, bytes: &mut Vec<u8>| {
                flip(header, bytes, &mut random.lock().unwrap());
            };
            let (left, arrived) = damaged(&pair, &checked(), (kind, n), flip);
            let error = arrived.unwrap_err();
            let what = format!("{} {n}: {error}", kind.name());
            assert_eq!(error.kind(), Kind::Protocol, "{what}");
            for word in ["block `", "page", "checksum"] {
                assert!(error.message().contains(word), "no {word}: {what}");
            }
            assert!(left.unwrap_err().message().contains("checksum"), "{what}");
            pair.assert_runs_on(&what);
        }
    }
}

/// The counterpart of the test above: without checksums the same damage is not found.
#[test]
fn without_checksums_a_flipped_bit_in_contents_arrives() {
    let pair = pair();
    let flip = |_: &Header, bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let (left, arrived) = damaged(&pair, &quick(), (RecordType::Pages, 1), flip);
    assert_eq!((left, arrived), (Ok(()), Ok(())));
    assert!(
        !pair.world.wrongs.lock().unwrap().is_empty(),
        "seen by the test's VMM, which compares"
    );
}

#[test]
fn contents_without_a_checksum_where_one_was_agreed_on_are_refused() {
    let pair = pair();
    let (_, arrived) = damaged(
        &pair,
        &checked(),
        (RecordType::Pages, 1),
        |header, bytes| {
            let length = bytes.len() - CHECKSUM_LEN;
            bytes.truncate(length);
            let plain = Header {
                payload: header.payload - CHECKSUM_LEN as u32,
                ..*header
            };
            bytes[..brant::wire::HEADER_LEN].copy_from_slice(&plain.encode());
        },
    );
    let error = arrived.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
    assert!(
        error.message().contains("\"page-checksums\" is agreed on"),
        "{error}"
    );
    pair.assert_runs_on("a record without a checksum");
}

#[test]
fn contents_with_a_checksum_where_none_was_agreed_on_are_refused() {
    let pair = pair();
    let (_, arrived) = damaged(&pair, &quick(), (RecordType::Pages, 1), |header, bytes| {
        bytes.extend([0; CHECKSUM_LEN]);
        let longer = Header {
            payload: header.payload + CHECKSUM_LEN as u32,
            ..*header
        };
        bytes[..brant::wire::HEADER_LEN].copy_from_slice(&longer.encode());
    });
    let error = arrived.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
    assert!(
        error
            .message()
            .contains("\"page-checksums\" is not agreed on"),
        "{error}"
    );
    pair.assert_runs_on("a record with a checksum");
}

#[test]
fn a_side_that_insists_on_checksums_refuses_one_that_has_them_off() {
    let of = |page_checksums| Params {
        page_checksums,
        ..quick()
    };
    let (on, off) = (of(PageChecksums::On), of(PageChecksums::Off));
    for (source, destination) in [(&on, &off), (&off, &on)] {
        let pair = pair();
        let (a, b) = crate::support::sides::socketpair();
        let (out, inc) = (outgoing(&pair, source), incoming(&pair, destination));
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start(ConnectTo::Connected(a)).unwrap();
        let errors = [out.wait(Some(LONG)), inc.wait(Some(LONG))].map(Result::unwrap_err);
        for error in errors {
            assert!(error.message().contains("page-checksums"), "{error}");
        }
        pair.assert_runs_on("no agreement");
    }
}
