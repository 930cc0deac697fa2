//! Peers that trickle or fall silent are given up within the limits, at every step.

use super::as_destination::{answer, reply, sound, source_against, ANSWERS};
use super::as_source::{accepted, reach, ready, Step};
use super::bounds::bounded;
use super::params::{quick, strict, LIMIT, SLACK};
use super::records::{hello, sample, PAGES};
use crate::support::fuzz::blob_bytes;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use brant::units::Pages;
use brant::wire::{Header, Record, RecordType, HEADER_LEN};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Sends bytes one at a time, each well within the limit on idleness, until nobody reads any more.
fn trickle(socket: &UnixStream, bytes: &[u8]) {
    trickle_every(socket, bytes, LIMIT / 12);
}

fn trickle_every(socket: &UnixStream, bytes: &[u8], pause: Duration) {
    let mut socket = socket;
    for byte in bytes {
        if socket.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(pause);
    }
}

#[test]
fn a_source_that_trickles_is_ended_in_every_step() {
    use RecordType as R;
    bounded();
    // 32 bytes take nearly seven times the limit.
    let cases = [
        (Step::Hello, sample(R::Hello)),
        (Step::Early, sample(R::Early)),
        (Step::Early, sample(R::EarlyEnd)),
        (Step::Layout, sample(R::Block)),
        (Step::Layout, sample(R::LayoutEnd)),
        (Step::Passes, sample(R::Pages)),
        (Step::Passes, sample(R::Zeros)),
        (Step::Passes, sample(R::Ballooned)),
        (Step::Passes, sample(R::Marker)),
        (Step::Passes, sample(R::BlockAdded)),
        (Step::State, blob_bytes(R::State, "x", &[0; 3000])),
        (Step::State, sample(R::StateEnd)),
        (Step::Handover, sample(R::Handover)),
    ];
    // The limit on one record, if the step has none of its own; and the step's limit, where a
    // record is allowed much more time.
    let step_alone = || Params {
        io_timeout: LONG,
        ..strict()
    };
    std::thread::scope(|scope| {
        for (step, record) in &cases {
            // The whole record slowly, or only the contents.
            for (from, own) in [
                (0, false),
                (HEADER_LEN, false),
                (0, true),
                (HEADER_LEN, true),
            ] {
                scope.spawn(move || {
                    let what = format!("{step:?}, from byte {from}, its own limit: {own}");
                    if record.len() < from + 8 {
                        return;
                    }
                    // These steps wait as long as the source goes on.
                    if own && matches!(step, Step::Passes | Step::State) {
                        return;
                    }
                    let params = if own { step_alone() } else { strict() };
                    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
                    let (mut raw, fd) = Raw::pair();
                    let inc = incoming(&pair, &params);
                    inc.start(AcceptFrom::Connected(fd)).unwrap();
                    reach(&mut raw, *step);
                    let begun = Instant::now();
                    raw.say_bytes(&record[..from]);
                    let socket = raw.0.try_clone().unwrap();
                    let slowly = record[from..].iter().copied().cycle().take(200);
                    let slowly: Vec<u8> = slowly.collect();
                    // A few bytes would all arrive before their time limit.
                    let complete = record.len() - from < 14;
                    let bytes = if complete { &slowly[..7] } else { &slowly[..] };
                    let told = std::thread::scope(|scope| {
                        scope.spawn(|| trickle(&socket, bytes));
                        let told = raw.hear_abort();
                        let _ = raw.0.shutdown(Shutdown::Both);
                        told
                    });
                    let took = begun.elapsed();
                    let error = inc.wait(Some(LONG)).unwrap_err();
                    assert_eq!(error.kind(), Kind::Timeout, "{what}: {error}");
                    assert_eq!(told.as_deref(), Some(error.message()), "{what}");
                    assert!(took >= LIMIT / 2, "{what}: {took:?}");
                    assert!(took < LIMIT + SLACK, "{what}: {took:?}");
                    assert_eq!(pair.to.calls("run"), 0, "{what}");
                });
            }
        }
    });
    bounded();
}

#[test]
fn a_destination_that_trickles_is_left_in_every_step() {
    use RecordType as R;
    bounded();
    std::thread::scope(|scope| {
        for (question, kind) in ANSWERS {
            // No acknowledgement is waited for during the copying, so the final marker's is tried.
            scope.spawn(move || {
                let what = format!("{} trickles", kind.name());
                let begun = Mutex::new(Instant::now());
                let (pair, out, result) =
                    source_against(strict(), false, LONG, |raw, asked, right| {
                        if asked != question {
                            raw.say_bytes(&right);
                            return Some(());
                        }
                        *begun.lock().unwrap() = Instant::now();
                        // RUNNING may come up to a second after the hand-over's limit.
                        let pause = match kind {
                            R::Running => LIMIT / 3,
                            _ => LIMIT / 12,
                        };
                        trickle_every(&raw.0, &right.repeat(4), pause);
                        None
                    });
                let took = begun.lock().unwrap().elapsed();
                let error = result.clone().unwrap_err();
                let expected = match kind {
                    R::Running => Kind::Unanswered,
                    _ => Kind::Timeout,
                };
                assert_eq!(error.kind(), expected, "{what}: {error}");
                // The step that waits for EARLY_OK may use both limits.
                assert!(took < LIMIT * 2 + SLACK, "{what}: {took:?}");
                sound(&pair, &out, &result, &what);
            });
        }
        // A destination that reads a byte now and then. While the guest runs, only the whole
        // migration's limit counts, because a connection that takes bytes is not dead.
        scope.spawn(|| {
            let pair = Pair::new(&[ram("ram", 6000)]);
            pair.source.fill(3);
            let (raw, fd) = Raw::pair();
            let params = Params {
                total_timeout: Some(LIMIT * 2),
                ..strict()
            };
            let out = outgoing(&pair, &params);
            let begun = Instant::now();
            out.start(ConnectTo::Connected(fd)).unwrap();
            let mut from = raw.0.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut raw = raw;
                for question in [R::Hello, R::EarlyEnd, R::LayoutEnd] {
                    while raw.hear().unwrap().0.record_type() != Ok(Some(question)) {}
                    raw.say_bytes(&answer(question, &[]).unwrap());
                }
                while from.read(&mut [0; 3000]).is_ok_and(|n| n > 0) {
                    std::thread::sleep(LIMIT / 40);
                }
            });
            let result = out.wait(Some(LONG));
            let took = begun.elapsed();
            drop(reader);
            let kind = result.as_ref().unwrap_err().kind();
            assert!(
                matches!(kind, Kind::Timeout | Kind::NotConverged),
                "{result:?}"
            );
            assert!(took < LIMIT * 2 + SLACK, "{took:?}");
            sound(&pair, &out, &result, "reads slowly");
        });
    });
    bounded();
}

#[test]
fn a_source_that_trickles_or_falls_silent_is_ended_within_the_limits() {
    bounded();
    let params = Params {
        connect_timeout: MS * 400,
        io_timeout: MS * 400,
        switchover_timeout: MS * 400,
        ..quick()
    };
    let mut first = Vec::new();
    Record::Hello(hello()).encode(&mut first).unwrap();
    let mut page = Header::pages(4, Pages(0), 1).encode().to_vec();
    page.resize(page.len() + 4096, 1);
    // What is said before, and what is then said a byte at a time.
    type Before = fn(&mut Raw);
    let cases: [(&str, Before, Vec<u8>); 5] = [
        ("HELLO", |_| (), first),
        ("a header", accepted, page.clone()),
        (
            "a page",
            |raw| {
                accepted(raw);
                raw.say_bytes(&Header::pages(4, Pages(0), 1).encode());
            },
            page,
        ),
        ("nothing", accepted, vec![]),
        ("no hand-over", ready, vec![]),
    ];
    for (what, before, bytes) in cases {
        let pair = Pair::new(&[ram("ram", 600)]);
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, &params);
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        before(&mut raw);
        let begun = Instant::now();
        for byte in bytes.iter().take(60) {
            if raw.0.write_all(&[*byte]).is_err() || inc.stats().error.is_some() {
                break;
            }
            std::thread::sleep(MS * 20);
        }
        let told = raw.hear_abort();
        let took = begun.elapsed();
        drop(raw);
        let error = inc.wait(Some(LONG)).unwrap_err();
        println!("{what}: {took:?}, {error}");
        assert_eq!(error.kind(), Kind::Timeout, "{what}: {error}");
        assert!(took < MS * 3000, "{what}: {took:?}");
        assert!(told.is_some(), "{what}: told why");
        assert_eq!(pair.to.calls("run"), 0, "{what}");
    }
    bounded();
}

#[test]
fn a_destination_that_trickles_is_left_within_the_limits() {
    bounded();
    let params = Params {
        connect_timeout: MS * 400,
        ..quick()
    };
    let pair = Pair::new(&[ram("ram", 65)]);
    let (mut raw, fd) = Raw::pair();
    let out = outgoing(&pair, &params);
    let begun = Instant::now();
    out.start(ConnectTo::Connected(fd)).unwrap();
    let mut bytes = Vec::new();
    reply().encode(&mut bytes).unwrap();
    for byte in bytes {
        if raw.0.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(MS * 30);
    }
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Timeout);
    assert!(begun.elapsed() < MS * 4000, "{:?}", begun.elapsed());
    pair.assert_runs_on("a trickle");
    bounded();
}
