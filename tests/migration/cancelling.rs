//! A cancel at any moment is prompt, the guest stays here, and no page is lost.

use crate::support::deciders::until;
use crate::support::guest::{differences, lost};
use crate::support::hold::Hold;
use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::{cancel_promptly, LONG, MS};
use brant::channel::Endpoint;
use brant::error::Kind;
use brant::memory::BlockId;
use brant::migrate::switchover::source::State;
use brant::migrate::{AcceptFrom, ConnectTo};
use brant::units::Bytes;
use brant::wire::{Header, RecordType};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

#[test]
fn a_cancel_at_any_moment_leaves_the_guest_here_and_no_page_unaccounted_for() {
    let seed = Instant::now().elapsed().subsec_nanos() as u64
        ^ std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_nanos() as u64;
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut ended = [0; 2];
    for round in 0..30 {
        let pair = Pair::new(&[ram("ram", 2000), shared("shm", 1111)]);
        pair.source.fill(1);
        pair.source.writers(1, Duration::ZERO);
        pair.source.track();
        let (out, inc) = start(&pair, &quick());
        // From microseconds to tens of milliseconds; each order of magnitude is as likely.
        let wait = Duration::from_micros(1 << random.below(16))
            + Duration::from_micros(random.next() % 99);
        std::thread::sleep(wait);
        let result = cancel_promptly(&format!("after {wait:?}"), || out.cancel());
        let _ = inc.wait(Some(LONG));
        pair.assert_sound("a cancel");
        // The migration had ended, or the cancel came too late, or in time.
        if result.is_err() || out.state() == State::Completed {
            out.wait(Some(LONG)).unwrap();
            assert_eq!(pair.world.who(), (false, true), "round {round}");
            ended[0] += 1;
            continue;
        }
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
        pair.assert_runs_on("a cancel");
        let (sent, received) = (out.stats(), inc.stats());
        assert!(
            received.data_pages <= sent.data_pages && received.zero_pages <= sent.zero_pages,
            "round {round}: more came than went: {sent:?} {received:?}"
        );
        pair.source.wait_goes_on(pair.source.counter());
        pair.source.pause();
        if pair.from.states().iter().any(|s| s == "copying") {
            assert_eq!(
                lost(&pair.source, &pair.destination),
                Vec::<String>::new(),
                "round {round}"
            );
        }
        ended[1] += 1;
    }
    println!("{} completed, {} cancelled", ended[0], ended[1]);
}

#[test]
fn what_was_never_acknowledged_is_pending_even_if_it_arrived() {
    let pair = Pair::new(&[ram("ram", 1000), shared("shm", 600)]);
    pair.source.fill(1);
    pair.source.track();
    // The number of the marker that has all pages before it, and whether it was acknowledged.
    let (mut last, acknowledged) = (u64::MAX, Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&acknowledged);
    let rule = move |header: &Header, payload: &[u8]| {
        let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
        match header.record_type() {
            Ok(Some(RecordType::Ack)) => {
                seen.fetch_or(word(0) == last, Ordering::SeqCst);
                return Verdict::Drop;
            }
            Ok(Some(RecordType::Marker)) if word(24) + word(32) == 1600 => last = word(0),
            _ => {}
        }
        Verdict::Forward
    };
    let (_proxy, a, b) = Proxy::new(Box::new(rule));
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&Arc::default()))
        .unwrap();
    // The destination has the whole first pass, and its acknowledgement gets lost.
    let begun = Instant::now();
    while !acknowledged.load(Ordering::SeqCst) {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    cancel_promptly("without an acknowledgement", || out.cancel()).unwrap();
    assert_eq!(pair.source.pending().len(), 1600);
    // The idle guest's pages were sent, and put back exactly once.
    assert_eq!(out.stats().put_back_pages, 1600);
    assert_eq!(out.stats().unacknowledged_pages, 0);
    inc.wait(Some(LONG)).unwrap_err();
    pair.source.pause();
    assert_eq!(
        differences(&pair.source, &pair.destination),
        Vec::<String>::new()
    );
}

#[test]
fn what_was_acknowledged_and_not_written_since_is_not_pending() {
    let pair = Pair::new(&[ram("ram", 1000)]);
    pair.source.fill(1);
    pair.source.track();
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&Arc::default()))
        .unwrap();
    // After a while the whole first pass is acknowledged.
    let begun = Instant::now();
    while out.stats().unacknowledged_pages > 0 || out.stats().pass < 2 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    pair.source.poke("ram", 77 * 4096, 1);
    out.cancel().unwrap();
    let pending = pair.source.pending();
    // Page 77, unless it was sent and acknowledged meanwhile.
    assert!(pending.len() <= 1, "{pending:?}");
}

#[test]
fn a_cancel_while_connecting_is_prompt() {
    let pair = Pair::new(&[ram("ram", 65)]);
    // A TCP listener and a unix one whose queues are full.
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    for fd in [tcp.as_raw_fd(), unix.as_raw_fd()] {
        // SAFETY: changes the queue's length of this test's listening socket.
        assert_eq!(unsafe { libc::listen(fd, 0) }, 0);
    }
    let at = tcp.local_addr().unwrap();
    let _first = TcpStream::connect(at).unwrap();
    let _second = TcpStream::connect_timeout(&at, MS * 50);
    let _other = UnixStream::connect(&path).unwrap();
    for at in [Endpoint::Tcp(at), Endpoint::Unix(path)] {
        let out = outgoing(&pair, &quick());
        let states = pair.from.states().len();
        out.start(ConnectTo::Endpoint(at.clone())).unwrap();
        while pair.from.states().len() == states {
            std::thread::yield_now();
        }
        cancel_promptly(&format!("connecting to {at}"), || out.cancel()).unwrap();
        let error = out.wait(None).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{at}: {error}");
        pair.assert_runs_on("connecting");
    }
    // Connected, without an answer.
    let (a, _black_hole) = socketpair();
    let out = outgoing(&pair, &quick());
    out.start(ConnectTo::Connected(a)).unwrap();
    pair.from.wait_state("negotiating");
    cancel_promptly("an unanswered HELLO", || out.cancel()).unwrap();
    // At the destination: no connection comes, or no record.
    let inc = incoming(&pair, &quick());
    inc.listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
        .unwrap();
    cancel_promptly("listening", || inc.cancel()).unwrap();
    let (b, _silent) = socketpair();
    let inc = incoming(&pair, &quick());
    inc.start(AcceptFrom::Connected(b)).unwrap();
    pair.to.wait_state("negotiating");
    cancel_promptly("waiting for HELLO", || inc.cancel()).unwrap();
    assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::Cancelled);
    pair.assert_runs_on("nobody came");
}

#[test]
fn a_cancel_while_the_peer_takes_nothing_is_prompt() {
    let pair = Pair::new(&[ram("ram", 4000)]);
    pair.source.fill(1);
    pair.source.track();
    // The proxy stops reading at the third run of pages.
    let hold = Hold::new();
    let held = Arc::clone(&hold);
    let mut runs = 0;
    let rule = move |header: &Header, _: &[u8]| {
        runs += usize::from(header.record_type() == Ok(Some(RecordType::Pages)));
        if runs == 3 {
            held.pass();
        }
        Verdict::Forward
    };
    let (_proxy, a, b) = Proxy::new(Box::new(rule));
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    hold.reached();
    // Until the socket is full and no byte moves any more.
    let (mut last, mut still) = (0, 0);
    while still < 5 {
        std::thread::sleep(MS * 10);
        let now = out.stats().wire_bytes;
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    cancel_promptly("a peer that takes nothing", || out.cancel()).unwrap();
    assert_eq!(out.wait(None).unwrap_err().kind(), Kind::Cancelled);
    hold.go();
    inc.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("a peer that takes nothing");
    pair.source.pause();
    assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
}

#[test]
fn a_cancel_from_another_thread_is_prompt_in_the_last_pass_and_while_the_destination_loads() {
    for place in ["sending the last pages", "awaiting ready"] {
        let pair = Pair::new(&[ram("ram", 2000)]);
        pair.source.fill(1);
        pair.source.track();
        let hold = match place {
            "awaiting ready" => pair.to.hold_at("load"),
            _ => pair.from.hold_at(place),
        };
        let (out, inc) = start(&pair, &quick());
        hold.reached();
        pair.from.wait_state(place);
        if place == "awaiting ready" {
            // The destination is deep inside a load.
            cancel_promptly(place, || out.cancel()).unwrap();
            hold.go();
        } else {
            std::thread::scope(|scope| {
                let cancel = scope.spawn(|| out.cancel());
                hold.go();
                let _ = cancel.join().unwrap();
            });
        }
        // Both, because the destination may run the guest before the source hears of it.
        let (_, _) = (inc.wait(Some(LONG)), out.wait(Some(LONG)));
        if out.state() != State::Completed {
            pair.assert_runs_on(place);
            assert_eq!(pair.from.calls("resume"), 1);
            pair.source.pause();
            assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
        }
        pair.assert_sound(place);
    }
}

#[test]
fn dropping_a_running_migration_cancels_it() {
    let pair = Pair::new(&[ram("ram", 2000)]);
    pair.source.fill(1);
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(1);
    let begun = Instant::now();
    drop(out);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!pair.source.tracker.is_started(), "logged for ever");
    inc.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("dropped");
    // The cancel at the other side.
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(2);
    drop(inc);
    out.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("destination dropped");
}

/// The last sync waits up to two seconds for a thread of the VMM that was preempted inside a mark.
/// A cancel does not wait.
#[test]
fn a_cancel_in_the_last_sync_does_not_wait_for_a_thread_inside_a_mark() {
    let pair = Pair::new(&[ram("ram", 2000)]);
    pair.source.fill(1);
    pair.source.track();
    let tracker = Arc::clone(&pair.source.tracker);
    let (inside, go) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let marking = {
        let (inside, go) = (Arc::clone(&inside), Arc::clone(&go));
        std::thread::spawn(move || {
            inside.wait();
            let _pinned = brant::runtime::grace::pin();
            inside.wait();
            go.wait();
        })
    };
    let met = Arc::clone(&inside);
    pair.from.at("save", move || {
        tracker.mark_block(BlockId(0), Bytes(0), 1);
        met.wait();
        met.wait();
        Ok(())
    });
    let (out, inc) = start(&pair, &quick());
    pair.from.wait_state("last sync");
    let _ = cancel_promptly("in the last sync", || out.cancel());
    let ended = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(ended.kind(), Kind::Cancelled, "{ended}");
    // Only now does the thread go on.
    go.wait();
    marking.join().unwrap();
    let _ = inc.wait(Some(LONG));
    pair.assert_runs_on("a cancel in the last sync");
    pair.source.pause();
    assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
}
