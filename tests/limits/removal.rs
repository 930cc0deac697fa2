//! The removal of a block soon gets back its pins, however slowly a migration's peer takes or sends
//! the block's pages. Pages that were on their way arrive all the same.

use crate::support::guest::differences;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::steering::{Facts, Next};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing, Params,
};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause between two small pieces. A whole batch would take minutes.
const SLOW: Duration = Duration::from_millis(200);
const PIECE: usize = 10_000;
/// The promise is milliseconds.
const SOON: Duration = Duration::from_secs(4);

/// Carries bytes from a source to a destination, slowly from some point on, and back at once.
struct Relay {
    carried: Arc<AtomicUsize>,
    hurry: Arc<AtomicBool>,
    ends: Vec<UnixStream>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Relay {
    /// A relay that is slow from byte `from` on: `piece` bytes at a time.
    fn new(from: usize, piece: usize) -> (Relay, UnixStream, UnixStream) {
        let (source, a) = UnixStream::pair().unwrap();
        let (b, destination) = UnixStream::pair().unwrap();
        let (carried, hurry) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let way = |mut from: UnixStream, mut to: UnixStream, slow: Option<usize>| {
            let (carried, hurry) = (Arc::clone(&carried), Arc::clone(&hurry));
            std::thread::spawn(move || {
                let mut buffer = vec![0; piece];
                loop {
                    let n = match from.read(&mut buffer) {
                        Ok(n) if n > 0 => n,
                        _ => break,
                    };
                    if to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                    if let Some(slow) = slow {
                        let all = carried.fetch_add(n, Ordering::SeqCst) + n;
                        let until = Instant::now() + SLOW;
                        while all > slow && !hurry.load(Ordering::SeqCst) && Instant::now() < until
                        {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Write);
            })
        };
        let clone = |s: &UnixStream| s.try_clone().unwrap();
        let threads = vec![
            way(clone(&a), clone(&b), Some(from)),
            way(clone(&b), clone(&a), None),
        ];
        let relay = Relay {
            carried,
            hurry,
            ends: vec![a, b],
            threads,
        };
        (relay, source, destination)
    }

    fn wait_carried(&self, bytes: usize) {
        let begun = Instant::now();
        while self.carried.load(Ordering::SeqCst) < bytes {
            assert!(begun.elapsed() < LONG, "nothing is sent");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.hurry.store(true, Ordering::SeqCst);
        for end in &self.ends {
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn params() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        // A pause that is held up on purpose goes through.
        downtime_slack: Duration::from_secs(60),
        ..Params::default()
    }
}

/// Two sides with a relay between them. It has begun to be slow in the middle of the block `gone`,
/// to which the walk comes first.
fn slow_in_the_block() -> (Pair, Outgoing, Incoming, Relay) {
    let pair = Pair::new(&[ram("gone", 600), ram("stays", 300)]);
    pair.source.fill(3);
    let (relay, a, b) = Relay::new(300_000, PIECE);
    let out = Outgoing::new(
        Arc::clone(&pair.source.tracker),
        Blockers::new(),
        Arc::clone(&pair.from) as _,
        params(),
    )
    .unwrap();
    let memory = Arc::clone(&pair.destination.memory);
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params()).unwrap();
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    relay.wait_carried(400_000);
    (pair, out, inc, relay)
}

fn promptly(what: &str, remove: impl FnOnce()) {
    let begun = Instant::now();
    remove();
    let took = begun.elapsed();
    println!("{what}: {took:?}");
    assert!(took < SOON, "{what}: {took:?}");
}

/// The peer hurries from now on, and the migration ends well.
fn ends_equal(pair: &Pair, out: &Outgoing, inc: &Incoming, relay: &Relay) {
    relay.hurry.store(true, Ordering::SeqCst);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a removal");
    pair.destination.pause();
    let differ = differences(&pair.source, &pair.destination);
    assert_eq!(differ, Vec::<String>::new());
}

#[test]
fn a_block_is_removed_soon_at_both_sides_while_its_pages_trickle_and_the_migration_goes_on() {
    let (pair, out, inc, relay) = slow_in_the_block();
    // Each side unmaps the memory as soon as it may.
    promptly("at the source", || pair.source.remove("gone"));
    promptly("at the destination", || pair.destination.remove("gone"));
    ends_equal(&pair, &out, &inc, &relay);
}

#[test]
fn what_is_copied_for_a_removal_is_what_would_have_been_sent() {
    // Another block is removed. The block on its way arrives, partly from the copy.
    let (pair, out, inc, relay) = slow_in_the_block();
    promptly("at the source", || pair.source.remove("stays"));
    promptly("at the destination", || pair.destination.remove("stays"));
    ends_equal(&pair, &out, &inc, &relay);
}

#[test]
fn a_removal_at_the_destination_only_is_prompt_and_ends_the_migration_with_its_name() {
    let (pair, out, inc, relay) = slow_in_the_block();
    promptly("at the destination", || pair.destination.remove("gone"));
    relay.hurry.store(true, Ordering::SeqCst);
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Layout, "{error}");
    assert!(error.message().contains("`gone`"), "{error}");
    out.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("a removal at the destination");
}

#[test]
fn a_cancel_is_prompt_while_pages_trickle() {
    let (pair, out, inc, _relay) = slow_in_the_block();
    promptly("the incoming's cancel", || inc.cancel().unwrap());
    promptly("the outgoing's cancel", || out.cancel().unwrap());
    pair.assert_runs_on("a cancel");
}

#[test]
fn a_thread_that_loses_its_processor_inside_a_mark_does_not_fail_the_switchover() {
    let pair = Pair::new(&[ram("ram", 100), ram("more", 100)]);
    pair.source.fill(3);
    let thread = Arc::new(std::sync::Mutex::new(None));
    let made = Arc::clone(&thread);
    pair.from.at("pause", move || {
        let (inside, there) = std::sync::mpsc::channel();
        *made.lock().unwrap() = Some(std::thread::spawn(move || {
            // As in a mark or any lookup in the map.
            let _pinned = brant::runtime::grace::pin();
            inside.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(400));
        }));
        there.recv().unwrap();
        Ok(())
    });
    let out = Outgoing::new(
        Arc::clone(&pair.source.tracker),
        Blockers::new(),
        Arc::clone(&pair.from) as _,
        params(),
    )
    .unwrap();
    let memory = Arc::clone(&pair.destination.memory);
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params()).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    thread.lock().unwrap().take().unwrap().join().unwrap();
    pair.assert_sound("a thread held up");
}

#[test]
fn a_slow_link_is_no_idle_peer() {
    // 100 KB a second, a little faster than the slowest peer that is allowed. The socket holds all
    // of the memory, so the acknowledgement takes far longer than the I/O timeout.
    let pair = Pair::new(&[ram("ram", 130)]);
    pair.source.fill(3);
    let (relay, a, b) = Relay::new(0, 2 * PIECE);
    set_send_buffer(&a, 1 << 20);
    let patient = || Params {
        io_timeout: Duration::from_millis(1500),
        // The link passes a piece on every 0.1 s, in each direction.
        downtime_limit: Duration::from_secs(5),
        ..params()
    };
    let out = Outgoing::new(
        Arc::clone(&pair.source.tracker),
        Blockers::new(),
        Arc::clone(&pair.from) as _,
        patient(),
    )
    .unwrap();
    let memory = Arc::clone(&pair.destination.memory);
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, patient()).unwrap();
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    drop(relay);
    pair.assert_sound("a slow link");
    pair.destination.pause();
    let differ = differences(&pair.source, &pair.destination);
    assert_eq!(differ, Vec::<String>::new());
}

#[test]
fn a_peer_that_takes_a_byte_now_and_then_is_left_at_the_limit_on_one_record() {
    // Batches of twelve pages, and a socket that holds less.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let pair = Pair::new(&[ram("ram", 600)]);
    pair.source.fill(3);
    let out = Outgoing::new(
        Arc::clone(&pair.source.tracker),
        Blockers::new(),
        Arc::clone(&pair.from) as _,
        Params {
            io_timeout: Duration::from_secs(2),
            max_bandwidth: Some(1 << 20),
            ..params()
        },
    )
    .unwrap();
    let source = UnixStream::connect(&path).unwrap();
    set_send_buffer(&source, 2048);
    out.start_with(ConnectTo::Connected(source.into()), Box::new(Never))
        .unwrap();
    let raw = Raw(listener.accept().unwrap().0);
    let mut slow = raw.0.try_clone().unwrap();
    let raw = agreeing(raw);
    let reader = std::thread::spawn(move || {
        // Never idle for long, and a batch takes nearly five seconds.
        while slow.read(&mut [0; 1000]).is_ok_and(|n| n > 0) {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    let says = ": the limit on one record";
    assert!(error.message().starts_with("sending pages to "), "{error}");
    assert!(error.message().contains(says), "{error}");
    drop(raw);
    reader.join().unwrap();
    pair.assert_runs_on("a trickle");
}

/// Ignores the machine's limit if the test runs as root. Otherwise the default is enough.
fn set_send_buffer(socket: &UnixStream, bytes: libc::c_int) {
    for option in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
        // SAFETY: four readable bytes on this stack frame.
        unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(socket),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                4,
            )
        };
    }
}

struct Never;

impl Decider for Never {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}

/// A destination that agrees to everything up to the first page.
fn agreeing(mut raw: Raw) -> Raw {
    use brant::wire::{HelloReply, Record, RecordType as R};
    raw.0.set_read_timeout(Some(LONG)).unwrap();
    for (question, right) in [
        (
            R::Hello,
            Record::HelloReply(HelloReply {
                version: 1,
                features: 1,
                software: "slow".into(),
            }),
        ),
        (R::EarlyEnd, Record::EarlyOk),
        (R::LayoutEnd, Record::LayoutOk),
    ] {
        while raw.hear().unwrap().0.record_type() != Ok(Some(question)) {}
        raw.say(&right);
    }
    raw
}
