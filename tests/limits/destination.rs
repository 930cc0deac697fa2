//! Time limits of the destination. At each place where it waits for its peer, the peer stays
//! silent, trickles or chatters. The wait ends at the earliest limit that applies, with a message
//! that names the limit and what was waited for. A cancel ends each of these waits promptly.

use super::slow::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::{self, Raw};
use crate::support::time::LONG;
use brant::channel::Endpoint;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, Incoming, Params};
use brant::units::{Pages, PAGE_SIZE};
use brant::wire::{self, Header, Record, RecordType as R, HEADER_LEN};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// Pages of the destination's one block, which the source here calls 4.
const PAGES: u64 = 600;

const TOKEN: [u8; 16] = [5; 16];

/// What the destination waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Hello,
    Early,
    EarlyData,
    Layout,
    Pages,
    PagesData,
    State,
    StateData,
    Handover,
}

const STEPS: [Step; 9] = [
    Step::Hello,
    Step::Early,
    Step::EarlyData,
    Step::Layout,
    Step::Pages,
    Step::PagesData,
    Step::State,
    Step::StateData,
    Step::Handover,
];

impl Step {
    /// Whether the wait is in the middle of a record.
    fn is_data(self) -> bool {
        matches!(self, Step::EarlyData | Step::PagesData | Step::StateData)
    }
}

fn hello() -> Record {
    Record::Hello(wire::Hello {
        token: TOKEN,
        software: "limits".into(),
        ..peer::hello()
    })
}

fn blob_bytes(kind: R, length: usize) -> Vec<u8> {
    let blob = wire::Blob {
        name: "x".into(),
        instance: 0,
        version: 1,
        length: length as u64,
    };
    let mut bytes = Vec::new();
    let data = vec![7; length];
    blob.encode(kind, crc32fast::hash(&data), &mut bytes)
        .unwrap();
    bytes.extend_from_slice(&data);
    bytes
}

fn no_blobs() -> wire::BlobEnd {
    wire::BlobEnd { count: 0, bytes: 0 }
}

/// Speaks as a correct source until `step`. Returns what would be right next.
fn speaks_until(raw: &mut Raw, step: Step, handover_millis: u32) -> Vec<u8> {
    if step == Step::Hello {
        return bytes(&hello());
    }
    raw.say(&hello());
    assert!(matches!(raw.hear_record(), Some(Record::HelloReply(_))));
    let early_end = bytes(&Record::EarlyEnd(no_blobs()));
    match step {
        Step::Early => return early_end,
        Step::EarlyData => {
            let blob = blob_bytes(R::Early, 3000);
            raw.say_bytes(&blob[..HEADER_LEN + 50]);
            return blob[HEADER_LEN + 50..].to_vec();
        }
        _ => raw.say_bytes(&early_end),
    }
    assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    let block = Record::Block(wire::Block {
        id: 4,
        length: PAGES * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: "ram".into(),
    });
    if step == Step::Layout {
        return bytes(&block);
    }
    raw.say(&block);
    raw.say(&Record::LayoutEnd(wire::LayoutEnd {
        blocks: 1,
        bytes: PAGES * PAGE_SIZE,
    }));
    assert_eq!(raw.hear_record(), Some(Record::LayoutOk));
    let zeros = Header::zeros(4, Pages(0), 512).encode();
    match step {
        Step::Pages => return zeros.to_vec(),
        Step::PagesData => {
            raw.say_bytes(&Header::pages(4, Pages(0), 2).encode());
            raw.say_bytes(&[7; 100]);
            return vec![7; 2 * PAGE_SIZE as usize - 100];
        }
        _ => raw.say_bytes(&zeros),
    }
    raw.say(&Record::Marker(wire::Marker {
        number: 1,
        pass: 1,
        flags: 1,
        records: 1,
        data_pages: 0,
        zero_pages: 512,
    }));
    assert!(matches!(raw.hear_record(), Some(Record::Ack(_))));
    let state_end = |handover_millis| {
        bytes(&Record::StateEnd(wire::StateEnd {
            blobs: no_blobs(),
            handover_millis,
        }))
    };
    match step {
        Step::State => return state_end(1000),
        Step::StateData => {
            let blob = blob_bytes(R::State, 3000);
            raw.say_bytes(&blob[..HEADER_LEN + 50]);
            return blob[HEADER_LEN + 50..].to_vec();
        }
        _ => raw.say_bytes(&state_end(handover_millis)),
    }
    assert!(matches!(raw.hear_record(), Some(Record::Ready(_))));
    bytes(&Record::Handover(wire::Handover { token: TOKEN }))
}

/// A destination whose peer stays at `step` in its manner. `then` is called at that moment.
fn destination(step: Step, manner: Manner, short: Short, then: impl FnOnce(&Incoming)) -> End {
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    let (mut raw, fd) = Raw::pair();
    let memory = Arc::clone(&pair.destination.memory);
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, short.params()).unwrap();
    let begun = Instant::now();
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    let handover_millis = if short == Short::Handover {
        1000
    } else {
        600_000
    };
    let mut right = speaks_until(&mut raw, step, handover_millis);
    if !step.is_data() {
        // Only the header trickles.
        right.truncate(HEADER_LEN);
    }
    let stop = AtomicBool::new(false);
    let end = std::thread::scope(|scope| {
        scope.spawn(|| stay(&raw.0, manner, &right, false, &stop));
        then(&inc);
        let mut told = None;
        if short != Short::None {
            // The peer hears the reason while it stays.
            let socket = raw.0.try_clone().unwrap();
            told = hear_abort(&socket);
        }
        let _ = raw.0.shutdown(Shutdown::Both);
        let error = inc.wait(Some(LONG)).unwrap_err();
        let took = begun.elapsed();
        stop.store(true, Ordering::SeqCst);
        if let Some(told) = told {
            assert_eq!(told, error.message(), "{step:?} {manner:?} {short:?}");
        }
        End { error, took }
    });
    assert_eq!(pair.to.calls("run"), 0, "{step:?} {manner:?} {short:?}");
    end
}

/// The reason that a destination gives, whatever the socket's read timeout.
fn hear_abort(socket: &UnixStream) -> Option<String> {
    let mut heard = Vec::new();
    let mut socket = socket;
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        if let Some(head) = heard.first_chunk::<HEADER_LEN>() {
            let header = Header::decode(head).unwrap();
            let length = HEADER_LEN + header.payload as usize;
            if heard.len() >= length {
                return match Record::decode(&header, &heard[HEADER_LEN..length]) {
                    Ok(Record::Abort(abort)) => Some(abort.reason),
                    other => panic!("no ABORT: {other:?}"),
                };
            }
        }
        let mut more = [0; 2048];
        match socket.read(&mut more) {
            Ok(0) => return None,
            Ok(n) => heard.extend_from_slice(&more[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    None
}

#[test]
fn a_destination_leaves_its_peer_at_the_earliest_limit_and_says_what_it_waited_for() {
    use Step as S;
    let all: &[Manner] = &[Silent, Trickles, Chatters];
    let halting: &[Manner] = &[Silent, Trickles];
    let (own, both) = (Short::Connect, Short::IoAndSwitchover);
    // What is waited for; the manners; the short limit; the message's words for both.
    let cases: [(S, &[Manner], Short, &str, &str); 20] = [
        (
            S::Handover,
            all,
            Short::Switchover,
            "waiting for HANDOVER from the peer: ",
            "",
        ),
        (
            S::Handover,
            all,
            Short::Handover,
            "waiting for HANDOVER from the peer: ",
            "the source's hand-over timeout of 1 s ran out",
        ),
        (
            S::Handover,
            all,
            Short::Total,
            "waiting for HANDOVER from the peer: ",
            "",
        ),
        (
            S::Hello,
            all,
            own,
            "waiting for HELLO from the peer: ",
            own.name(),
        ),
        (
            S::Hello,
            all,
            Short::Total,
            "waiting for HELLO from the peer: ",
            "",
        ),
        (
            S::Early,
            all,
            own,
            "waiting for EARLY or EARLY_END from the peer: ",
            "",
        ),
        (
            S::Early,
            all,
            Short::Total,
            "waiting for EARLY or EARLY_END from",
            "",
        ),
        (
            S::EarlyData,
            halting,
            own,
            "waiting for EARLY from the peer: ",
            "",
        ),
        (
            S::EarlyData,
            halting,
            Short::Total,
            "waiting for EARLY from the peer: ",
            "",
        ),
        (
            S::Layout,
            all,
            own,
            "waiting for BLOCK or LAYOUT_END from the peer: ",
            "",
        ),
        (
            S::Layout,
            all,
            Short::Total,
            "waiting for BLOCK or LAYOUT_END from",
            "",
        ),
        (
            S::Pages,
            all,
            both,
            "waiting for pages or a marker from the peer: ",
            "",
        ),
        (
            S::Pages,
            all,
            Short::Total,
            "waiting for pages or a marker from",
            "",
        ),
        (
            S::PagesData,
            &[Silent],
            Short::Io,
            "waiting for PAGES from the peer: ",
            "",
        ),
        (
            S::PagesData,
            &[Trickles],
            Short::Io,
            "waiting for PAGES from the peer: ",
            RECORD,
        ),
        (
            S::PagesData,
            halting,
            Short::Total,
            "waiting for PAGES from the peer: ",
            "",
        ),
        (
            S::State,
            all,
            both,
            "waiting for STATE or STATE_END from the peer: ",
            "",
        ),
        (
            S::State,
            all,
            Short::Total,
            "waiting for STATE or STATE_END from",
            "",
        ),
        (
            S::StateData,
            &[Trickles],
            Short::Io,
            "waiting for STATE from the peer: ",
            RECORD,
        ),
        (
            S::StateData,
            halting,
            Short::Total,
            "waiting for STATE from the peer: ",
            "",
        ),
    ];
    std::thread::scope(|scope| {
        for (step, manners, short, awaited, limit) in cases {
            for manner in manners {
                scope.spawn(move || {
                    let what = format!("{step:?} {manner:?} {short:?}");
                    let end = destination(step, *manner, short, |_| ());
                    let limit = if limit.is_empty() {
                        short.name()
                    } else {
                        limit
                    };
                    end.check(&what, &[Kind::Timeout], awaited, limit);
                });
            }
        }
    });
}

#[test]
fn waiting_for_somebody_to_connect_does_not_count() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let memory = Arc::clone(&pair.destination.memory);
    let params = Params {
        incoming_timeout: Some(MS),
        ..Params::default()
    };
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap();
    let at = inc
        .listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
        .unwrap();
    let error = inc.wait(Some(MS * 100)).unwrap_err();
    assert_eq!(error.kind(), Kind::Pending, "{error}");
    let Endpoint::Tcp(at) = at else {
        panic!("not a TCP endpoint");
    };
    let mut source = TcpStream::connect(at).unwrap();
    source.write_all(&bytes(&hello())).unwrap();
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    assert!(
        error
            .message()
            .contains("the incoming migration's total timeout of 1 ms"),
        "{error}"
    );
}

#[test]
fn what_the_vmm_takes_to_build_itself_is_not_the_peers_time() {
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    pair.to.at("early_load", || {
        std::thread::sleep(SHORT * 2);
        Ok(())
    });
    let (mut raw, fd) = Raw::pair();
    let memory = Arc::clone(&pair.destination.memory);
    let params = Short::Connect.params();
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap();
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    raw.say(&hello());
    assert!(matches!(raw.hear_record(), Some(Record::HelloReply(_))));
    raw.say_bytes(&blob_bytes(R::Early, 10));
    raw.say(&Record::EarlyEnd(wire::BlobEnd {
        count: 1,
        bytes: 10,
    }));
    assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    drop(raw);
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert!(matches!(error.kind(), Kind::PeerGone | Kind::Io), "{error}");
}

#[test]
fn a_cancel_is_prompt_wherever_a_destination_waits() {
    std::thread::scope(|scope| {
        for step in STEPS {
            for manner in [Silent, Trickles, Chatters] {
                // A KEEPALIVE in the middle of a record is a part of it.
                if manner == Chatters && step.is_data() {
                    continue;
                }
                scope.spawn(move || {
                    let what = format!("{step:?} {manner:?}");
                    let end = destination(step, manner, Short::None, |inc| {
                        prompt(&what, || inc.cancel().unwrap());
                    });
                    assert_eq!(end.error.kind(), Kind::Cancelled, "{what}: {}", end.error);
                });
            }
        }
    });
}

#[test]
fn a_cancel_does_not_wait_for_a_peer_that_said_nonsense_and_stays() {
    // The destination reads on for a second, so that the peer hears the reason. The fastest of a
    // few cancels shows that this is not the machine's load.
    let fastest = (0..5).map(|_| {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let (mut raw, fd) = Raw::pair();
        let memory = Arc::clone(&pair.destination.memory);
        let params = Params::default();
        let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap();
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        raw.say_bytes(&[b'x'; HEADER_LEN]);
        assert!(raw.hear_abort().is_some());
        let begun = Instant::now();
        inc.cancel().unwrap();
        let took = begun.elapsed();
        let error = inc.wait(None).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "why it failed stays: {error}");
        took
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < MS * 500, "{fastest:?}");
}

// --- few bytes that cost much -----------------------------------------------------------------

#[test]
fn announcing_a_block_again_and_again_costs_its_bytes_and_not_its_size() {
    // Every other page of 256 MiB is present. A look through all of it takes tens of milliseconds.
    let pages = 64 << 10;
    let pair = Pair::new(&[ram("ram", pages)]);
    let there = pair.destination.ram("ram");
    for page in (0..pages).step_by(2) {
        there
            .word(page * PAGE_SIZE as usize)
            .store(7, Ordering::Relaxed);
    }
    let (mut raw, fd) = Raw::pair();
    let memory = Arc::clone(&pair.destination.memory);
    let params = Params::default();
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap();
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    raw.say(&hello());
    raw.say(&Record::EarlyEnd(no_blobs()));
    let block = |id: u32| wire::Block {
        id,
        length: pages as u64 * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: "ram".into(),
    };
    raw.say(&Record::Block(block(0)));
    raw.say(&Record::LayoutEnd(wire::LayoutEnd {
        blocks: 1,
        bytes: pages as u64 * PAGE_SIZE,
    }));
    while raw.hear_record().unwrap() != Record::LayoutOk {}
    let mut again = Vec::new();
    for id in 0..2000 {
        again.extend(bytes(&Record::BlockRemoved { id }));
        again.extend(bytes(&Record::BlockAdded(block(id + 1))));
    }
    let begun = Instant::now();
    raw.say_bytes(&again);
    // A zero page, for which its whole stretch is looked at; then the end of the pages.
    raw.say_bytes(&Header::zeros(2000, Pages(600), 1).encode());
    raw.say(&Record::Marker(wire::Marker {
        number: 1,
        pass: 1,
        flags: 0,
        records: 1,
        data_pages: 0,
        zero_pages: 1,
    }));
    assert_eq!(
        raw.hear_record(),
        Some(Record::Ack(wire::Ack { number: 1 }))
    );
    let took = begun.elapsed();
    println!("2,000 times: {took:?}");
    assert!(took < SOON, "{took:?}");
    let word = |page: usize| {
        there
            .word(page * PAGE_SIZE as usize)
            .load(Ordering::Relaxed)
    };
    assert_eq!((word(600), word(602)), (0, 7));
    prompt("in the middle of passes", || inc.cancel().unwrap());
}
