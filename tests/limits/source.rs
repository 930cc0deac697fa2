//! Time limits of the source. At each place where it waits for its peer, the peer stays silent,
//! trickles or chatters. The wait ends at the earliest limit that applies, with a message that
//! names the limit and what was waited for. A cancel ends each of these waits promptly.

use super::slow::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::time::LONG;
use crate::support::vmm::blob;
use brant::channel::Endpoint;
use brant::error::Kind;
use brant::memory::{SlotDescription, NO_SLOT};
use brant::migrate::steering::{Facts, Next};
use brant::migrate::{Blockers, ConnectTo, Decider, Decision, Outgoing, Params, Resolution};
use brant::units::{Bytes, PAGE_SIZE};
use brant::wire::{self, Record, RecordType as R};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Instant;
use vm_memory::GuestAddress;

/// The block's pages.
const PAGES: u64 = 600;

/// What the source waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    HelloReply,
    EarlyOk,
    LayoutOk,
    /// Room for pages while the guest runs.
    Room,
    /// Acknowledgements before the guest is paused.
    Ack,
    /// Room for device state while the guest stands still.
    StateRoom,
    Ready,
    Running,
}

const ANSWERS: [Answer; 7] = [
    Answer::HelloReply,
    Answer::EarlyOk,
    Answer::LayoutOk,
    Answer::Room,
    Answer::Ack,
    Answer::StateRoom,
    Answer::Ready,
];

/// The right answer to a record of the source's.
fn answer(asked: R, payload: &[u8]) -> Option<Vec<u8>> {
    Some(bytes(&match asked {
        R::Hello => Record::HelloReply(wire::HelloReply {
            version: 1,
            features: 1,
            software: "limits".into(),
        }),
        R::EarlyEnd => Record::EarlyOk,
        R::LayoutEnd => Record::LayoutOk,
        R::Marker => Record::Ack(wire::Ack {
            number: u64::from_le_bytes(payload[..8].try_into().unwrap()),
        }),
        R::StateEnd => Record::Ready(wire::Ready {
            load_micros: 1,
            digest_micros: 0,
        }),
        R::Handover => Record::Running(wire::Running { run_micros: 1 }),
        _ => return None,
    }))
}

/// Answers as a correct destination until it is asked for `at`. Returns what would be right next.
fn answers_until(raw: &mut Raw, at: Answer) -> Option<Vec<u8>> {
    loop {
        let (header, payload) = raw.hear()?;
        let kind = header.record_type().unwrap().unwrap();
        let right = answer(kind, &payload);
        let is_final = kind == R::Marker && payload[12] & 1 != 0;
        let here = match at {
            Answer::HelloReply => kind == R::Hello,
            Answer::EarlyOk => kind == R::EarlyEnd,
            Answer::LayoutOk => kind == R::LayoutEnd,
            Answer::Room => {
                if kind == R::LayoutEnd {
                    raw.say_bytes(&right?);
                    return Some(Vec::new());
                }
                false
            }
            Answer::Ack => kind == R::Marker,
            Answer::StateRoom => is_final,
            Answer::Ready => kind == R::StateEnd,
            Answer::Running => kind == R::Handover,
        };
        if here {
            return right;
        }
        if let Some(right) = right {
            raw.say_bytes(&right);
        }
    }
}

/// Switches over in the second pass if that is possible.
struct Second;

impl Decider for Second {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let expected = MS;
        match facts.pass {
            1 => Next::GoOn.into(),
            _ => Next::SwitchOver { expected }.into(),
        }
    }
}

/// A source whose peer stays at `at` in its manner. `then` is called at that moment.
fn source(at: Answer, manner: Manner, short: Short, then: impl FnOnce(&Outgoing)) -> End {
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    pair.source.fill(3);
    pair.source
        .memory
        .add_slot(&SlotDescription {
            slot: NO_SLOT,
            flags: 0,
            block: pair.source.memory.find_block("ram").unwrap(),
            offset: Bytes(0),
            length: Bytes(PAGES * PAGE_SIZE),
            guest_address: GuestAddress(0),
        })
        .unwrap();
    if at == Answer::StateRoom {
        let mut state = pair.from.state.lock().unwrap();
        state.push(blob("gpu", 0, &vec![1; 8 << 20]));
    }
    // The guest balloons all the time, so pages have to be named before each pause.
    let memory = Arc::clone(&pair.source.memory);
    memory.set_must_tell_host(true);
    let passes = std::sync::atomic::AtomicU64::new(0);
    pair.from.at("event", move || {
        let at = passes.fetch_add(1, Ordering::SeqCst) % PAGES;
        memory.mark_ballooned(GuestAddress(at * PAGE_SIZE), PAGE_SIZE);
        Ok(())
    });
    let (mut raw, fd) = Raw::pair();
    let out = Outgoing::new(
        Arc::clone(&pair.source.tracker),
        Blockers::new(),
        Arc::clone(&pair.from) as _,
        short.params(),
    )
    .unwrap();
    let stop = AtomicBool::new(false);
    let (there, reached) = mpsc::channel();
    let end = std::thread::scope(|scope| {
        scope.spawn(|| {
            let right = answers_until(&mut raw, at).unwrap_or_default();
            there.send(()).unwrap();
            let reads = matches!(at, Answer::Room | Answer::StateRoom);
            stay(&raw.0, manner, &right, reads, &stop);
        });
        let begun = Instant::now();
        let target = ConnectTo::Connected(fd);
        match at {
            // With pages to wait for, the decider's own words would be in the message.
            Answer::Ack => out.start_with(target, Box::new(Second)).unwrap(),
            _ => out.start(target).unwrap(),
        }
        reached.recv_timeout(LONG).unwrap();
        then(&out);
        let error = out.wait(Some(LONG)).unwrap_err();
        let took = begun.elapsed();
        stop.store(true, Ordering::SeqCst);
        End { error, took }
    });
    let what = format!("{at:?} {manner:?} {short:?}: {}", end.error);
    if at == Answer::Running {
        pair.assert_sound(&what);
        assert_eq!(pair.world.who(), (false, false), "{what}");
        out.resolve(Resolution::Destroy).unwrap();
    } else {
        pair.assert_runs_on(&what);
    }
    end
}

#[test]
fn a_source_leaves_its_peer_at_the_earliest_limit_and_says_what_it_waited_for() {
    use Answer as A;
    let all = [Silent, Trickles, Chatters];
    let deaf = [Silent, Chatters];
    // What is waited for; the manners; the short limit; what the message says.
    let cases: [(A, &[Manner], Short, &str); 15] = [
        (
            A::Running,
            &all,
            Short::Handover,
            "waiting for RUNNING from the peer: ",
        ),
        (
            A::HelloReply,
            &all,
            Short::Connect,
            "waiting for HELLO_REPLY from the peer: ",
        ),
        (
            A::HelloReply,
            &all,
            Short::Total,
            "waiting for HELLO_REPLY from the peer: ",
        ),
        (
            A::HelloReply,
            &[Silent],
            Short::Io,
            "waiting for HELLO_REPLY from the peer: ",
        ),
        (
            A::EarlyOk,
            &all,
            Short::Connect,
            "waiting for EARLY_OK from the peer: ",
        ),
        (
            A::EarlyOk,
            &all,
            Short::Total,
            "waiting for EARLY_OK from the peer: ",
        ),
        (
            A::LayoutOk,
            &all,
            Short::Connect,
            "waiting for LAYOUT_OK from the peer: ",
        ),
        (
            A::LayoutOk,
            &all,
            Short::Total,
            "waiting for LAYOUT_OK from the peer: ",
        ),
        (A::Room, &deaf, Short::Io, "sending pages to the peer: "),
        (A::Room, &all, Short::Total, "sending pages to the peer: "),
        (
            A::Ack,
            &[Silent],
            Short::Io,
            "waiting for an acknowledgement from the peer: ",
        ),
        (
            A::Ack,
            &all,
            Short::Total,
            "waiting for an acknowledgement from the peer: ",
        ),
        (
            A::StateRoom,
            &deaf,
            Short::Io,
            "sending device state to the peer: ",
        ),
        (
            A::StateRoom,
            &all,
            Short::Switchover,
            "sending device state to the peer: ",
        ),
        (
            A::Ready,
            &all,
            Short::Switchover,
            "waiting for READY from the peer: ",
        ),
    ];
    std::thread::scope(|scope| {
        for (at, manners, short, awaited) in cases {
            for manner in manners {
                scope.spawn(move || {
                    let what = format!("{at:?} {manner:?} {short:?}");
                    let end = source(at, *manner, short, |_| ());
                    let kinds = match at {
                        A::Running => [Kind::Unanswered; 2],
                        _ => [Kind::Timeout, Kind::NotConverged],
                    };
                    // Bytes that the connection may still hold give an acknowledgement more time.
                    let limit = match (at, short) {
                        (A::Ack, Short::Io) => "the I/O timeout",
                        _ => short.name(),
                    };
                    end.check(&what, &kinds, awaited, limit);
                    if (at, short) == (A::Ack, Short::Total) {
                        // The guest is idle and was sent as a whole, so it is not the cause.
                        assert_eq!(end.error.kind(), Kind::Timeout, "{what}: {}", end.error);
                        let cause = "has acknowledged nothing for ";
                        assert!(end.error.message().contains(cause), "{what}: {}", end.error);
                    }
                });
            }
        }
    });
}

#[test]
fn connecting_ends_at_the_earliest_limit() {
    // A listener whose queue is full.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: changes the queue's length of this test's listening socket.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let at = listener.local_addr().unwrap();
    let _first = TcpStream::connect(at).unwrap();
    let _second = TcpStream::connect_timeout(&at, MS * 50);
    for short in [Short::Connect, Short::Total] {
        let pair = Pair::new(&[ram("ram", 65)]);
        let out = Outgoing::new(
            Arc::clone(&pair.source.tracker),
            Blockers::new(),
            Arc::clone(&pair.from) as _,
            short.params(),
        )
        .unwrap();
        let begun = Instant::now();
        out.start(ConnectTo::Endpoint(Endpoint::Tcp(at))).unwrap();
        let error = out.wait(Some(LONG)).unwrap_err();
        let took = begun.elapsed();
        let awaited = format!("connecting to tcp:{at}: ");
        let end = End { error, took };
        end.check("connecting", &[Kind::Timeout], &awaited, short.name());
        pair.assert_runs_on("connecting");
    }
}

#[test]
fn a_total_timeout_of_half_a_second_against_a_silent_peer_ends_in_half_a_second() {
    let pair = Pair::new(&[ram("ram", 65)]);
    pair.source.fill(3);
    let (_silent, fd) = Raw::pair();
    let total = MS * 500;
    // Every other limit is longer by far.
    let params = Params {
        total_timeout: Some(total),
        ..Params::default()
    };
    let out = Outgoing::new(
        Arc::clone(&pair.source.tracker),
        Blockers::new(),
        Arc::clone(&pair.from) as _,
        params,
    )
    .unwrap();
    let begun = Instant::now();
    out.start(ConnectTo::Connected(fd)).unwrap();
    let error = out.wait(Some(LONG)).unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    let name = "the total timeout of 500 ms ran out";
    assert!(error.message().contains(name), "{error}");
    // Ten times as long, on a busy machine.
    assert!(total <= took && took < total * 10, "{took:?}");
    pair.assert_runs_on("a silent peer");
}

#[test]
fn a_switchover_that_takes_too_long_says_where_it_was() {
    for (operation, state) in [("pause", "pausing"), ("save", "saving")] {
        let pair = Pair::new(&[ram("ram", 65)]);
        pair.from.at(operation, || {
            std::thread::sleep(SHORT + MS * 100);
            Ok(())
        });
        let (raw, fd) = Raw::pair();
        let out = Outgoing::new(
            Arc::clone(&pair.source.tracker),
            Blockers::new(),
            Arc::clone(&pair.from) as _,
            Short::Switchover.params(),
        )
        .unwrap();
        let begun = Instant::now();
        out.start(ConnectTo::Connected(fd)).unwrap();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut raw = raw;
                answers_until(&mut raw, Answer::Ready);
            });
            out.wait(Some(LONG)).unwrap_err()
        });
        let took = begun.elapsed();
        let awaited = format!("the guest stood still: it was {state}");
        let end = End { error, took };
        let limit = Short::Switchover.name();
        end.check(operation, &[Kind::Timeout], &awaited, limit);
        pair.assert_runs_on(operation);
    }
}

#[test]
fn a_cancel_is_prompt_wherever_a_source_waits() {
    std::thread::scope(|scope| {
        for at in ANSWERS {
            for manner in [Silent, Trickles, Chatters] {
                scope.spawn(move || {
                    let what = format!("{at:?} {manner:?}");
                    let end = source(at, manner, Short::None, |out| {
                        prompt(&what, || out.cancel().unwrap());
                    });
                    assert_eq!(end.error.kind(), Kind::Cancelled, "{what}: {}", end.error);
                });
            }
        }
    });
}
