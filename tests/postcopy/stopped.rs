//! One side of a postcopy stands still for some seconds, as a process does that was stopped or whose host
//! is out of breath. Within the limits for a silent peer, the other side waits and all goes on. Beyond
//! them both are interrupted, and a recovery brings the rest.

use super::processes::{destination, source, Other, Plan};
use crate::support::time::{LONG, MS};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: usize = 3000;

fn plan(limit: Duration) -> Plan {
    Plan {
        pages: PAGES,
        limit,
        // All of it takes two seconds.
        bandwidth: 6 << 20,
    }
}

fn wait_said(said: &Receiver<String>, what: &str) {
    loop {
        match said.recv_timeout(LONG) {
            Ok(line) if line == what => return,
            Ok(_) => {}
            Err(_) => panic!("never said: {what}"),
        }
    }
}

fn wait_touched(touched: &AtomicUsize, count: usize) {
    let begun = Instant::now();
    while touched.load(Ordering::SeqCst) < count {
        assert!(begun.elapsed() < LONG, "the guest stands still");
        std::thread::sleep(MS);
    }
}

/// The limit counts from the last word of the side that was stopped, which was a little earlier than
/// the signal.
fn assert_waited(signal: Instant, limit: Duration) {
    let waited = signal.elapsed();
    assert!(waited > limit / 2, "waited for {waited:?} of {limit:?}");
}

/// Stops the source for this long, which is here the other process. Returns the recoveries.
fn source_stops(limit: Duration, stopped: Duration) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(limit);
    let touched = Arc::new(AtomicUsize::new(0));
    let (tell, said) = channel();
    let mut other = Other::start("source", &plan, directory.path(), None);
    let here = {
        let (touched, at) = (Arc::clone(&touched), directory.path().to_owned());
        let say = move |what: &str| {
            println!("{what}");
            let _ = tell.send(what.to_owned());
        };
        std::thread::spawn(move || destination(&plan, &at, &touched, &say).unwrap())
    };
    wait_said(&said, "destination Completing");
    wait_touched(&touched, 20);
    let begun = Instant::now();
    other.signal(libc::SIGSTOP);
    if limit < stopped {
        wait_said(&said, "destination Interrupted");
        assert_waited(begun, limit);
    }
    std::thread::sleep(stopped.saturating_sub(begun.elapsed()));
    // Its threads wait for pages by now.
    let before = touched.load(Ordering::SeqCst);
    std::thread::sleep(MS * 100);
    assert_eq!(
        touched.load(Ordering::SeqCst),
        before,
        "pages of a source that is stopped"
    );
    other.signal(libc::SIGCONT);
    wait_touched(&touched, 3 * PAGES);
    let stats = here.join().unwrap();
    assert!(other.ended().success());
    assert!(stats.fault_max >= stopped / 2, "{stats:?}");
    stats.recoveries
}

/// Stops the destination for this long, which is here the other process. Returns the recoveries.
fn destination_stops(limit: Duration, stopped: Duration) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(limit);
    let (tell, said) = channel();
    let mut other = Other::start("destination", &plan, directory.path(), None);
    let here = {
        let at = directory.path().to_owned();
        let say = move |what: &str| {
            println!("{what}");
            let _ = tell.send(what.to_owned());
        };
        std::thread::spawn(move || source(&plan, &at, &AtomicBool::new(false), &say))
    };
    wait_said(&said, "source Serving");
    other.wait_said("destination Completing");
    let begun = Instant::now();
    other.signal(libc::SIGSTOP);
    if limit < stopped {
        wait_said(&said, "source Interrupted");
        assert_waited(begun, limit);
    }
    std::thread::sleep(stopped.saturating_sub(begun.elapsed()));
    other.signal(libc::SIGCONT);
    let (ended, out) = here.join().unwrap();
    ended.unwrap();
    // It has compared all of its memory.
    other.wait_said("whole");
    assert!(other.ended().success());
    out.stats().recoveries
}

#[test]
fn a_side_that_stands_still_within_the_limits_is_waited_for() {
    let (long, seconds) = (MS * 20_000, MS * 2000);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| source_stops(long, seconds));
        let other = scope.spawn(|| destination_stops(long, seconds));
        assert_eq!([one, other].map(|side| side.join().unwrap()), [0, 0]);
    });
}

#[test]
fn a_side_that_stands_still_for_longer_is_recovered_from_when_it_goes_on() {
    let (short, seconds) = (MS * 1000, MS * 2500);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| source_stops(short, seconds));
        let other = scope.spawn(|| destination_stops(short, seconds));
        let recoveries = [one, other].map(|side| side.join().unwrap());
        assert!(recoveries.iter().all(|count| *count >= 1), "{recoveries:?}");
    });
}
