//! The cap on the bandwidth, over a real connection. Its other end counts the bytes that the kernel
//! has taken from the source.

use crate::support::deciders::Never;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, socketpair};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{
    AcceptFrom, ConnectTo, Decider, Decision, Facts, Moment, Next, Outgoing, Params,
};
use brant::units::Bytes;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Two times and a number of bytes. At some moment between the two times, so many bytes had been
/// sent.
type Sample = (Instant, Instant, u64);

/// A proxy between the two sides that counts the bytes of the source.
struct Counting {
    samples: Arc<Mutex<Vec<Sample>>>,
    threads: Vec<JoinHandle<()>>,
}

/// The number of bytes that wait to be read.
fn waiting(socket: &UnixStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    assert_eq!(result, 0);
    bytes as u64
}

impl Counting {
    fn new() -> (Counting, UnixStream, UnixStream) {
        let (source, mut a) = UnixStream::pair().unwrap();
        let (mut b, destination) = UnixStream::pair().unwrap();
        let samples = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&samples);
        let (mut back_from, mut back_to) = (b.try_clone().unwrap(), a.try_clone().unwrap());
        let forth = std::thread::spawn(move || {
            let mut read = 0;
            let mut bytes = vec![0; 64 << 10];
            loop {
                let before = Instant::now();
                let sent = read + waiting(&a);
                seen.lock().unwrap().push((before, Instant::now(), sent));
                let n = a.read(&mut bytes).unwrap_or(0);
                if n == 0 || b.write_all(&bytes[..n]).is_err() {
                    break;
                }
                read += n as u64;
            }
            let _ = b.shutdown(Shutdown::Write);
        });
        let back = std::thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(Shutdown::Write);
        });
        let threads = vec![forth, back];
        (Counting { samples, threads }, source, destination)
    }

    /// All samples. Called when both sides have ended.
    fn samples(self) -> Vec<Sample> {
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.samples.lock().unwrap())
    }
}

/// The most bytes in any second of `samples`. The figure is never too large, because a second by
/// the samples' clock is at most a second by the sender's.
fn fullest_second(samples: &[Sample]) -> u64 {
    let (mut first, mut most) = (0, 0);
    for (_, after, sent) in samples {
        while *after - samples[first].0 > Duration::from_secs(1) {
            first += 1;
        }
        most = most.max(sent.saturating_sub(samples[first].2));
    }
    most
}

fn wait_for_bytes(out: &Outgoing, bytes: u64) {
    let begun = Instant::now();
    while out.stats().wire_bytes < bytes {
        assert!(begun.elapsed() < LONG, "{:?}", out.stats());
        assert!(out.stats().error.is_none(), "{:?}", out.wait(None));
        let _ = out.wait(Some(Duration::from_millis(5)));
    }
}

#[test]
fn no_second_of_a_migration_carries_more_than_the_cap_which_can_be_changed_meanwhile() {
    const SLOW: u64 = 4 << 20;
    const FAST: u64 = 16 << 20;
    let pair = Pair::new(&[ram("ram", 8 << 10)]);
    pair.source.fill(1);
    let params = Params {
        max_bandwidth: Some(SLOW),
        ..Params::default()
    };
    let paused = Arc::new(OnceLock::new());
    let pausing = Arc::clone(&paused);
    pair.from.at("pause", move || {
        pausing.get_or_init(Instant::now);
        Ok(())
    });
    let (counting, a, b) = Counting::new();
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    wait_for_bytes(&out, 6 << 20);
    // When a new cap is refused, the present one stays in force.
    let error = out.set_max_bandwidth(Some(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.message().contains("65536 to"), "{error}");
    let changed = Instant::now();
    out.set_max_bandwidth(Some(FAST)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a capped migration");
    let paused = paused.get().copied().expect("it was paused");
    let samples = counting.samples();
    let until = |end| &samples[..samples.partition_point(|(_, after, _)| *after < end)];
    let slow = fullest_second(until(changed));
    // The cap does not apply to the switchover.
    let fast = fullest_second(until(paused));
    println!("{slow} bytes in a second of {SLOW}, {fast} of {FAST}");
    assert!(slow * 100 <= SLOW * 102 && fast * 100 <= FAST * 102);
    assert!(fast > SLOW * 3 / 2, "the new cap was not used");
}

/// A decider that switches over after the first pass, and keeps the facts that it was given.
struct AfterOnePass(Arc<Mutex<Vec<Facts>>>);

impl Decider for AfterOnePass {
    fn decide(&mut self, facts: &Facts) -> Decision {
        if facts.moment != Moment::Synced {
            return Next::GoOn.into();
        }
        self.0.lock().unwrap().push(*facts);
        let expected = facts.expected_downtime().unwrap_or_default();
        Next::SwitchOver { expected }.into()
    }
}

#[test]
fn a_cap_of_the_switchover_holds_from_the_pause_on_and_is_in_what_is_expected() {
    const CAP: u64 = 1 << 20;
    const PAGES: u64 = 256;
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    pair.source.fill(1);
    let params = Params {
        switchover_max_bandwidth: Some(CAP),
        ..Params::default()
    };
    // All pages are left for the switchover.
    let (tracker, block) = (
        Arc::clone(&pair.source.tracker),
        pair.source.memory.find_block("ram").unwrap(),
    );
    pair.from.at("pause", move || {
        tracker.mark_block(block, Bytes(0), PAGES * 4096);
        Ok(())
    });
    let (counting, a, b) = Counting::new();
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    let facts = Arc::new(Mutex::new(Vec::new()));
    let decider = AfterOnePass(Arc::clone(&facts));
    out.start_with(ConnectTo::Connected(a.into()), Box::new(decider))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a capped switchover");
    let stats = out.stats();
    assert_eq!(stats.last_pages, PAGES);
    // The least time at the cap, less the credit at the beginning.
    let least = (PAGES * 4096) as f64 / CAP as f64 * 0.98;
    assert!(stats.last_send.unwrap().as_secs_f64() >= least, "{stats:?}");
    // The link is far faster than the cap, and the expected downtime is computed with the cap.
    let facts = facts.lock().unwrap();
    assert!(facts
        .iter()
        .all(|facts| facts.bandwidth == Some(CAP as f64)));
    // The bandwidth in the figures is the link's, not the cap.
    assert_ne!(stats.bandwidth, Some(CAP));
    drop(counting.samples());
}

#[test]
fn with_several_channels_a_cap_is_not_taken_for_the_link() {
    const CAP: u64 = 4 << 20;
    let pair = Pair::new(&[ram("ram", 48 << 10)]);
    pair.source.fill(1);
    let params = Params {
        max_bandwidth: Some(CAP),
        channels: 8,
        ..Params::default()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let (near, far) = (0..params.channels).map(|_| socketpair()).unzip();
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start_with(ConnectTo::ConnectedAll(near), Box::new(Never))
        .unwrap();
    // The sockets carry some hundred megabytes a second. On a busy machine that shows when the
    // threads get their processors.
    let (begun, mut most) = (Instant::now(), 0);
    while most < 8 * CAP {
        most = most.max(out.stats().bandwidth.unwrap_or(0));
        assert!(
            begun.elapsed() < LONG,
            "at most {most} of {:?}",
            out.stats()
        );
        assert!(out.stats().error.is_none(), "{:?}", out.wait(None));
        let _ = out.wait(Some(Duration::from_millis(5)));
    }
    println!("{most} bytes a second after {:?}", begun.elapsed());
    out.cancel().unwrap();
    assert!(inc.wait(Some(LONG)).is_err());
    pair.assert_runs_on("capped");
}
