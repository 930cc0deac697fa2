//! Peers that flood the connection extend no time limit and delay no cancel.

use super::as_destination::{agree, sending, sound, source_against, ANSWERS};
use super::as_source::{accepted, reach, Step};
use super::bounds::bounded;
use super::params::{quick, strict, LIMIT, SLACK};
use super::records::{sample, state_end, PAGES};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::sides::incoming;
use crate::support::time::LONG;
use crate::support::time::{cancel_promptly, MS};
use brant::error::Kind;
use brant::migrate::AcceptFrom;
use brant::wire::{Record, RecordType};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// Sends KEEPALIVE as fast as the socket takes it, for much longer than the limit.
fn flood(socket: &UnixStream, first: Option<&Record>) {
    let many = sample(RecordType::Keepalive).repeat(4096);
    let begun = Instant::now();
    let mut socket = socket;
    if let Some(first) = first {
        // In one write, because a pause would end the time for records before READY.
        let mut bytes = Vec::new();
        first.encode(&mut bytes).unwrap();
        bytes.extend_from_slice(&many);
        let _ = socket.write_all(&bytes);
    }
    while begun.elapsed() < LIMIT + SLACK && socket.write_all(&many).is_ok() {}
}

#[test]
fn a_flood_of_keepalives_extends_no_step_that_has_a_limit() {
    use RecordType as R;
    bounded();
    for (step, first) in [
        (Step::Hello, None),
        (Step::Early, None),
        (Step::Layout, None),
        (Step::Handover, None),
        // Before READY the destination reads what the source may still send.
        (Step::State, Some(Record::StateEnd(state_end(0, 0)))),
    ] {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, &strict());
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        reach(&mut raw, step);
        let begun = Instant::now();
        let socket = raw.0.try_clone().unwrap();
        let told = std::thread::scope(|scope| {
            scope.spawn(|| flood(&socket, first.as_ref()));
            let told = raw.hear_abort();
            let _ = raw.0.shutdown(Shutdown::Both);
            told
        });
        let took = begun.elapsed();
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout, "{step:?}: {error}");
        assert!(told.is_some(), "{step:?}");
        assert!(took < LIMIT + SLACK, "{step:?}: {took:?}");
    }
    for (question, kind) in ANSWERS {
        let what = format!("keepalives for {}", kind.name());
        if kind == R::Ack {
            continue;
        }
        let begun = Instant::now();
        let (pair, out, result) = source_against(strict(), false, LONG, |raw, asked, right| {
            if asked != question {
                raw.say_bytes(&right);
                return Some(());
            }
            flood(&raw.0, None);
            None
        });
        let expected = match kind {
            R::Running => Kind::Unanswered,
            _ => Kind::Timeout,
        };
        assert_eq!(
            result.as_ref().unwrap_err().kind(),
            expected,
            "{what}: {result:?}"
        );
        assert!(
            begun.elapsed() < LIMIT * 2 + SLACK,
            "{what}: {:?}",
            begun.elapsed()
        );
        sound(&pair, &out, &result, &what);
    }
    bounded();
}

/// Sends `records` as fast as a thread can until told to stop, and reads everything that comes.
struct Flood {
    socket: UnixStream,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    /// `first` is sent once, before all others.
    fn new(raw: Raw, first: Option<&Record>, record: &Record) -> Flood {
        let (mut one, mut begin) = (Vec::new(), Vec::new());
        record.encode(&mut one).unwrap();
        if let Some(first) = first {
            first.encode(&mut begin).unwrap();
        }
        begin.extend(one.repeat(8000));
        let stop = Arc::new(AtomicBool::new(false));
        let flooded = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        {
            // One thread, because a stream socket may mix the bytes of several.
            let (stop, flooded) = (Arc::clone(&stop), Arc::clone(&flooded));
            let (mut to, many) = (raw.0.try_clone().unwrap(), one.repeat(8000));
            // This must end after a failure too.
            let begun = Instant::now();
            threads.push(std::thread::spawn(move || {
                if to.write_all(&begin).is_err() {
                    return;
                }
                while !stop.load(Ordering::SeqCst) && begun.elapsed() < MS * 5000 {
                    // Whole records only, because the peer would take other bytes for damage.
                    if to.write_all(&many).is_err() {
                        break;
                    }
                    flooded.fetch_add(1, Ordering::SeqCst);
                }
            }));
        }
        let mut from = raw.0.try_clone().unwrap();
        threads.push(std::thread::spawn(move || {
            let mut sink = vec![0; 1 << 20];
            while from.read(&mut sink).is_ok_and(|n| n > 0) {}
        }));
        let begun = Instant::now();
        while flooded.load(Ordering::SeqCst) < 10 {
            assert!(begun.elapsed() < LONG, "nothing is read");
            std::thread::yield_now();
        }
        Flood {
            socket: raw.0,
            stop,
            threads,
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_peer_that_floods_cannot_hold_up_a_cancel() {
    bounded();
    {
        let (pair, out, mut raw) = sending(&quick());
        agree(&mut raw);
        while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::Marker)) {}
        let flood = Flood::new(raw, None, &Record::Keepalive);
        cancel_promptly("under a destination's flood", || out.cancel()).unwrap();
        let error = out.wait(None).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        drop(flood);
        pair.assert_runs_on("a flood");
    }
    let pair = Pair::new(&[ram("ram", 600)]);
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &quick());
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    accepted(&mut raw);
    let flood = Flood::new(raw, None, &Record::Keepalive);
    cancel_promptly("under a source's flood", || inc.cancel()).unwrap();
    assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::Cancelled);
    drop(flood);
    let pair = Pair::new(&[ram("ram", 600)]);
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &quick());
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    reach(&mut raw, Step::State);
    let end = Record::StateEnd(state_end(0, 0));
    let flood = Flood::new(raw, Some(&end), &Record::Keepalive);
    cancel_promptly("under a flood before READY", || inc.cancel()).unwrap();
    assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::Cancelled);
    drop(flood);
    bounded();
}
