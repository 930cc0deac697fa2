//! Records cut short at any byte, and headers with any flipped bit, are refused on both sides.

use super::as_destination::{sound, source_against, ANSWERS};
use super::bounds::bounded;
use super::params::{each, quick};
use super::records::sample;
use crate::support::fuzz;
use crate::support::random::Random;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::wire::{Blob, Header, RecordType, HEADER_LEN};
use std::net::Shutdown;

#[test]
fn a_record_cut_short_at_any_byte_is_refused_at_the_destination() {
    bounded();
    let session = fuzz::session();
    let whole = session.concat();
    let pages: usize = session[..8].iter().map(Vec::len).sum();
    let mut count = 0;
    // The contents of pages are long and uniform, so only one byte in a hundred is tried there.
    for length in (0..whole.len()).filter(|n| !(pages..pages + 12_384).contains(n) || n % 100 == 0)
    {
        let outcome = fuzz::destination(&whole[..length]);
        let error = outcome.result.unwrap_err();
        let gone = matches!(error.kind(), Kind::PeerGone | Kind::Io);
        assert!(gone, "{length}: {:?} {error}", error.kind());
        count += 1;
    }
    assert_eq!(fuzz::destination(&whole).result, Ok(()));
    println!("{count} lengths");
    bounded();
}

#[test]
fn a_flipped_bit_in_a_header_is_always_refused_at_the_destination() {
    bounded();
    let session = fuzz::session();
    let mut random = Random(1);
    for at in 0..session.len() {
        for byte in 0..HEADER_LEN {
            let mut flipped = session.clone();
            flipped[at][byte] ^= 1 << random.below(8);
            let error = fuzz::destination(&flipped.concat()).result.unwrap_err();
            assert_eq!(
                error.kind(),
                Kind::Protocol,
                "record {at}, byte {byte}: {error}"
            );
        }
    }
    bounded();
}

/// A flipped bit in a vCPU's state once arrived without an error.
#[test]
fn a_flipped_bit_in_state_or_a_control_record_is_always_refused_at_the_destination() {
    bounded();
    let session = fuzz::session();
    let mut random = Random(3);
    let (mut count, mut blobs) = (0, 0);
    for at in 0..session.len() {
        let header = Header::decode(session[at].first_chunk().unwrap()).unwrap();
        let kind = header.classify().unwrap().unwrap();
        if kind.is_page_run() || header.payload == 0 {
            continue;
        }
        for _ in 0..12 {
            let mut flipped = session.clone();
            let byte = HEADER_LEN + random.below(header.payload as usize);
            flipped[at][byte] ^= 1 << random.below(8);
            let error = fuzz::destination(&flipped.concat()).result.unwrap_err();
            let what = format!("record {at}, {}, byte {byte}: {error}", kind.name());
            assert_eq!(error.kind(), Kind::Protocol, "{what}");
            count += 1;
        }
        let blob = Blob::decode(&header, &session[at][HEADER_LEN..]);
        if let Some((blob, _)) = blob.ok().filter(|(blob, _)| blob.length > 0) {
            // The last byte is from the VMM.
            let mut flipped = session.clone();
            *flipped[at].last_mut().unwrap() ^= 1;
            let error = fuzz::destination(&flipped.concat()).result.unwrap_err();
            let named = format!("blob `{}`", blob.name);
            assert!(error.message().contains(&named), "{error}");
            assert!(error.message().contains("checksum"), "{error}");
            blobs += 1;
        }
    }
    assert!(count > 50 && blobs > 0, "{count}, {blobs}");
    bounded();
}

#[test]
fn an_answer_cut_short_leaves_the_guest_where_it_belongs() {
    bounded();
    let mut cases = Vec::new();
    for (question, kind) in ANSWERS {
        // No byte, some of the header, all of the header, some of the contents.
        let whole = sample(kind).len();
        let mut lengths = vec![0, 1, 17, 31, 32, 33, whole - 1];
        lengths.retain(|length| *length < whole);
        lengths.dedup();
        cases.extend(lengths.iter().map(|length| (question, kind, *length)));
    }
    each(&cases, |&(question, kind, length)| {
        let what = format!("{} cut to {length} bytes", kind.name());
        let (pair, out, result) = source_against(quick(), false, LONG, |raw, asked, right| {
            let here = asked == question;
            raw.say_bytes(if here { &right[..length] } else { &right });
            if here {
                let _ = raw.0.shutdown(Shutdown::Write);
            }
            (!here).then_some(())
        });
        let error = result.clone().unwrap_err();
        let expected: &[Kind] = match kind {
            RecordType::Running => &[Kind::Unanswered],
            _ => &[Kind::PeerGone, Kind::Io],
        };
        assert!(expected.contains(&error.kind()), "{what}: {error}");
        sound(&pair, &out, &result, &what);
    });
    bounded();
}

#[test]
fn a_flipped_bit_in_an_answers_header_is_always_refused_at_the_source() {
    bounded();
    let mut random = Random(2);
    let mut cases = Vec::new();
    for (number, (question, kind)) in ANSWERS.into_iter().enumerate() {
        // Every byte in two of the answers.
        for byte in (number % 3..HEADER_LEN).step_by(3) {
            cases.push((question, kind, byte, 1 << random.below(8)));
        }
    }
    each(&cases, |&(question, kind, byte, bit)| {
        let bit: u8 = bit;
        let what = format!("{}, byte {byte} ^ {bit}", kind.name());
        let (pair, out, result) = source_against(quick(), false, LONG, |raw, asked, mut right| {
            let here = asked == question;
            if here {
                right[byte] ^= bit;
            }
            raw.say_bytes(&right);
            (!here).then_some(())
        });
        let error = result.clone().unwrap_err();
        let expected = match kind {
            RecordType::Running => Kind::Unanswered,
            _ => Kind::Protocol,
        };
        assert_eq!(error.kind(), expected, "{what}: {error}");
        sound(&pair, &out, &result, &what);
    });
    bounded();
}
