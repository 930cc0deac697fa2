//! Answers of a destination with a false field are refused by the source, with the expected value
//! in the message.

use super::as_destination::{sound, source_against, ANSWERS};
use super::bounds::bounded;
use super::params::quick;
use super::records::{patched, sample, with};
use crate::support::fuzz::bytes;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::wire;
use brant::wire::{Header, Record, RecordType};

#[test]
fn answers_that_lie_are_refused_with_what_was_expected_at_the_source() {
    use RecordType as R;
    bounded();
    let reply = |version, features| {
        bytes(&Record::HelloReply(wire::HelloReply {
            version,
            features,
            software: String::new(),
        }))
    };
    let unknown = |flags, payload: u32| {
        let mut header = Header::control(R::Keepalive, 0, payload);
        (header.kind, header.flags) = (999, flags);
        header.encode().to_vec()
    };
    let ack = |number| bytes(&Record::Ack(wire::Ack { number }));
    let cases: Vec<(&str, R, Vec<u8>, Kind, &str)> = vec![
        (
            "garbage",
            R::HelloReply,
            vec![0x55; 64],
            Kind::Protocol,
            "magic",
        ),
        (
            "version 0",
            R::HelloReply,
            patched(R::HelloReply, 0, &[0, 0]),
            Kind::Protocol,
            "version",
        ),
        ("version 2", R::HelloReply, reply(2, 1), Kind::Version, "2"),
        (
            "without a feature",
            R::HelloReply,
            reply(1, 0),
            Kind::Version,
            "zero-runs",
        ),
        (
            "with one too many",
            R::HelloReply,
            reply(1, 1 | 1 << 50),
            Kind::Version,
            "50",
        ),
        (
            "a long name",
            R::HelloReply,
            patched(R::HelloReply, 10, &[64]),
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "one byte too many",
            R::HelloReply,
            {
                let mut x = with(R::HelloReply, |h| h.payload += 1);
                x.push(0);
                x
            },
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "2^30 announced",
            R::HelloReply,
            with(R::HelloReply, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "an EARLY_OK with contents",
            R::EarlyOk,
            with(R::EarlyOk, |h| h.payload = 1),
            Kind::Protocol,
            "EARLY_OK",
        ),
        (
            "an ABORT of 2^30",
            R::EarlyOk,
            with(R::Abort, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "ABORT",
        ),
        (
            "an ABORT with a long reason",
            R::LayoutOk,
            patched(R::Abort, 4, &[0xff, 0xff]),
            Kind::Protocol,
            "ABORT",
        ),
        (
            "a blob of 2^30",
            R::LayoutOk,
            with(R::State, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "1073741856",
        ),
        (
            "a type that nobody knows",
            R::LayoutOk,
            unknown(0, 0),
            Kind::Protocol,
            "999",
        ),
        (
            "one to skip, too long",
            R::LayoutOk,
            unknown(1, 65_537),
            Kind::Protocol,
            "65536",
        ),
        (
            "marker 0",
            R::Ack,
            patched(R::Ack, 0, &[0; 8]),
            Kind::Protocol,
            "ACK",
        ),
        (
            "an unsent marker",
            R::Ack,
            ack(1000),
            Kind::Protocol,
            "marker 1000",
        ),
        (
            "the last of all markers",
            R::Ack,
            ack(u64::MAX),
            Kind::Protocol,
            "acknowledged marker",
        ),
        (
            "a marker twice",
            R::Ack,
            [ack(1), ack(1)].concat(),
            Kind::Protocol,
            "acknowledged marker 1",
        ),
        (
            "a flipped checksum",
            R::Ready,
            {
                let mut x = sample(R::Ready);
                x[30] ^= 4;
                x
            },
            Kind::Protocol,
            "checksum",
        ),
        (
            "READY cut short",
            R::Ready,
            with(R::Ready, |h| h.payload = 7),
            Kind::Protocol,
            "READY",
        ),
        (
            "an unsent marker before READY",
            R::Ready,
            ack(1 << 60),
            Kind::Protocol,
            "acknowledged marker",
        ),
        (
            "READY twice",
            R::Ready,
            sample(R::Ready).repeat(2),
            Kind::Protocol,
            "READY",
        ),
        (
            "RUNNING garbled",
            R::Running,
            vec![1; 40],
            Kind::Unanswered,
            "magic",
        ),
    ];
    for (what, place, wrong, kind, word) in cases {
        let (pair, out, result) =
            source_against(quick(), place == R::Ack, LONG, |raw, asked, right| {
                let here = ANSWERS.contains(&(asked, place));
                raw.say_bytes(if here { &wrong } else { &right });
                (!here).then_some(())
            });
        let error = result.clone().unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.message().contains(word), "{what}: {word} in: {error}");
        sound(&pair, &out, &result, what);
    }
    bounded();
}
