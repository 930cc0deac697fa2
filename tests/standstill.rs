//! How long the guest stands still, which passes are made before that, and the figures for both.
//! Whole migrations in one process. Long work is counted and not timed, so that a busy machine
//! changes nothing. The times themselves are figures: `standstill.*` of `make bench`.

use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{at, Point, Proxy, Verdict};
use crate::support::time::LONG;
use crate::support::vmm::failure;
use brant::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use brant::error::{Error, Kind, Result};
use brant::memory::Map;
use brant::migrate::steering::{Facts, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{AcceptFrom, ConnectTo, Stats};
use brant::migrate::{Blockers, Decider, Decision, Incoming, Outgoing, Params, Resolution};
use brant::units::Pages;
use brant::vmm::EventKind;
use brant::wire::RecordType;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const MIB: usize = 256;

fn outgoing(pair: &Pair, params: &Params) -> Arc<Outgoing> {
    let tracker = Arc::clone(&pair.source.tracker);
    let vmm = Arc::clone(&pair.from);
    Arc::new(Outgoing::new(tracker, Blockers::new(), vmm, params.clone()).unwrap())
}

fn incoming(pair: &Pair, params: &Params) -> Arc<Incoming> {
    let memory = Arc::clone(&pair.destination.memory);
    let vmm = Arc::clone(&pair.to);
    Arc::new(Incoming::new(memory, vmm, params.clone()).unwrap())
}

/// Runs both sides over a socketpair until both have ended.
fn run(pair: &Pair, out: &Outgoing, inc: &Incoming) -> (Result<()>, Result<()>) {
    let (a, b) = UnixStream::pair().unwrap();
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    let ended = (out.wait(Some(LONG)), inc.wait(Some(LONG)));
    pair.assert_sound("a migration");
    ended
}

/// Makes a migration that completes, and returns the source's figures.
fn completes(pair: &Pair, params: &Params) -> Stats {
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    let (here, there) = run(pair, &out, &inc);
    here.unwrap();
    there.unwrap();
    assert_eq!(pair.world.who(), (false, true));
    out.stats()
}

fn passes(pair: &Pair) -> usize {
    pair.from.events(EventKind::Pass).len()
}

// --- the limit is a ceiling and not a target ------------------------------------------------

#[test]
fn an_idle_guest_stands_still_for_none_of_its_pages() {
    // Any part of the pass fits the limit of an hour.
    let params = Params {
        downtime_limit: Duration::from_secs(3600),
        switchover_bandwidth: Some(1 << 40),
        ..Params::default()
    };
    let pair = Pair::new(&[ram("ram", 32 * MIB), shared("shm", 8 * MIB)]);
    pair.source.fill(1);
    let stats = completes(&pair, &params);
    assert_eq!(stats.pass, 1);
    assert_eq!(stats.data_pages, 40 * MIB as u64 + stats.last_pages);
    // Only the page that `save` wrote was left.
    assert_eq!(stats.last_pages, 1, "{stats:?}");
}

#[test]
fn a_guest_that_writes_little_stands_still_for_a_few_of_its_pages() {
    let pair = Pair::new(&[ram("ram", 32 * MIB)]);
    pair.source.fill(1);
    // At least 16 writes a millisecond: after a pass of 32 MiB, hundreds of pages are dirty.
    pair.source.writers(1, MS);
    pair.source.track();
    let stats = completes(&pair, &Params::default());
    // The pages of the last millisecond or two. A cut first pass would leave thousands. A busy
    // machine may take fifty times as long.
    assert!(stats.last_pages < 2_000, "{stats:?}");
    assert!(stats.pass >= 2, "{stats:?}");
}

// --- everything is acknowledged before the pause --------------------------------------------

/// Migrates, and looks at the source's figures when `pause` is called.
fn unacknowledged_at_the_pause(pair: &Pair) -> u64 {
    let params = Params::default();
    let (out, inc) = (outgoing(pair, &params), incoming(pair, &params));
    let seen = Arc::new(AtomicU64::new(u64::MAX));
    let (weak, at_pause) = (Arc::downgrade(&out), Arc::clone(&seen));
    pair.from.at("pause", move || {
        let out = weak.upgrade().unwrap();
        at_pause.store(out.stats().unacknowledged_pages, Ordering::SeqCst);
        Ok(())
    });
    let (here, there) = run(pair, &out, &inc);
    here.unwrap();
    there.unwrap();
    seen.load(Ordering::SeqCst)
}

#[test]
fn zero_pages_and_holes_that_are_on_their_way_are_waited_for_before_the_pause() {
    // Never touched at the source, and with contents at the destination: each header makes the
    // destination write 2 MiB.
    for spec in [ram("ram", 64 * MIB), shared("ram", 64 * MIB)] {
        let pair = Pair::new(std::slice::from_ref(&spec));
        pair.destination.fill(1);
        assert_eq!(unacknowledged_at_the_pause(&pair), 0);
    }
    // Zero pages that were touched.
    let pair = Pair::new(&[ram("ram", 32 * MIB)]);
    let ram = pair.source.ram("ram");
    (0..ram.spec.pages).for_each(|page| ram.word(page * 4096).store(0, Ordering::Relaxed));
    pair.destination.fill(1);
    assert_eq!(unacknowledged_at_the_pause(&pair), 0);
}

#[test]
fn what_the_guest_writes_while_an_acknowledgement_is_awaited_is_not_sent_after_the_pause() {
    // Before the acknowledgement arrives, the guest has written a quarter of its memory. A source
    // that does not wait would find these pages in its last sync.
    // A quarter of 32 MiB takes so long that nobody would pause the guest for it, however fast the host.
    let pair = Pair::new(&[ram("ram", 32 * MIB)]);
    pair.source.fill(1);
    let held = Arc::new(AtomicBool::new(true));
    let (source, first) = (Arc::clone(&pair.source), Arc::clone(&held));
    let rule = move |header: &brant::wire::Header, _: &[u8]| {
        let ack = matches!(header.record_type(), Ok(Some(RecordType::Ack)));
        if ack && first.swap(false, Ordering::SeqCst) {
            (0..8 * MIB).for_each(|page| source.poke("ram", page * 4096 + 8, 7));
        }
        Verdict::Forward
    };
    let (proxy, a, b) = Proxy::new(Box::new(rule));
    let params = Params::default();
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a held acknowledgement");
    drop(proxy);
    assert!(!held.load(Ordering::SeqCst));
    let stats = out.stats();
    assert_eq!((stats.pass, stats.last_pages), (2, 1), "{stats:?}");
}

// --- passes end, and are limited in rate ----------------------------------------------------

/// What a log reports of the guest's memory as long as the guest runs.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    /// Every page was written.
    AllDirty,
    /// Nothing, because its harvest fails.
    Fails,
    /// Its harvest also fails when the guest stands still.
    FailsInTheEnd,
}

impl DirtyLog for Says {
    fn kind(&self) -> LogKind {
        LogKind::Vhost
    }
    fn start(&mut self, _: &Map) -> Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
        Ok(())
    }
    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        match (*self, when) {
            (Says::AllDirty, When::Running) => {
                for block in map.blocks() {
                    let origin = Origin::Block {
                        block: block.id(),
                        page: Pages(0),
                    };
                    sink.everything(origin, block.pages());
                }
                Ok(Harvested::Complete)
            }
            (Says::AllDirty | Says::Fails, When::Stopped) => Ok(Harvested::Complete),
            _ => Err(Error::new(Kind::Kernel, "the test's broken log")),
        }
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for block in map.blocks() {
            each(Extent::all_of(block));
        }
    }
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_guest_whose_dirty_pages_are_all_zero_is_switched_over_after_a_few_passes() {
    // Touched memory and untouched memory, written with zeros again and again. No contents are sent
    // before `save` writes some, so no bandwidth is ever known.
    let pair = Pair::new(&[ram("ram", 4 * MIB), ram("more", 16 * MIB)]);
    let ram = pair.source.ram("ram");
    (0..ram.spec.pages).for_each(|page| ram.word(page * 4096).store(0, Ordering::Relaxed));
    let log = Box::new(Says::AllDirty);
    pair.source.tracker.add_log(log).unwrap();
    let params = Params {
        total_timeout: Some(LONG),
        ..Params::default()
    };
    let stats = completes(&pair, &params);
    assert!(stats.zero_pages > 20 * MIB as u64, "{stats:?}");
    assert_eq!(stats.bandwidth, None);
    assert!(passes(&pair) <= 20, "{} passes", passes(&pair));
}

#[test]
fn a_log_that_always_fails_over_untouched_memory_ends_the_migration_and_says_so_once() {
    for says in [Says::Fails, Says::FailsInTheEnd] {
        let pair = Pair::new(&[ram("ram", 512 * MIB)]);
        pair.source.tracker.add_log(Box::new(says)).unwrap();
        let params = Params::default();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        let (here, _) = run(&pair, &out, &inc);
        assert!(passes(&pair) <= 20, "{} passes", passes(&pair));
        let warnings = pair.from.events(EventKind::Warning);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("the test's broken log"));
        // The dirty rate is unknown.
        assert_eq!(out.stats().dirty_pages_per_second, None);
        if says == Says::FailsInTheEnd {
            let error = here.unwrap_err();
            assert!(error.message().contains("the test's broken log"), "{error}");
            pair.assert_runs_on("a broken log");
        } else {
            here.unwrap();
        }
    }
}

/// Never switches over, and counts how often it was asked after a sync.
struct Never;

impl Decider for Never {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}

#[test]
fn passes_and_events_are_limited_in_rate_whatever_the_decider_says() {
    for busy in [false, true] {
        let pair = Pair::new(&[ram("ram", 4)]);
        if busy {
            pair.source.fill(1);
            pair.source.writers(1, Duration::ZERO);
        }
        let params = Params::default();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        let (a, b) = UnixStream::pair().unwrap();
        inc.start(AcceptFrom::Connected(b.into())).unwrap();
        let begun = Instant::now();
        out.start_with(ConnectTo::Connected(a.into()), Box::new(Never))
            .unwrap();
        // Enough for every pass that may be made without a pause.
        pair.from.wait_passes(if busy { 70 } else { 5 });
        out.cancel().unwrap();
        let intervals = begun.elapsed().as_millis() as usize / 50;
        let most = intervals + if busy { 66 } else { 2 };
        let made = passes(&pair);
        assert!(made <= most, "{made} passes, {most} allowed, busy: {busy}");
        let _ = inc.wait(Some(LONG));
    }
}

// --- a cap is not the link ------------------------------------------------------------------

#[test]
fn behind_a_cap_a_guest_that_fits_the_link_is_switched_over() {
    // A working set that takes a second at the cap, and milliseconds without one.
    let pair = Pair::new(&[ram("ram", 5 * MIB)]);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    pair.source.track();
    let params = Params {
        max_bandwidth: Some(4 << 20),
        total_timeout: Some(LONG - Duration::from_secs(5)),
        ..Params::default()
    };
    let stats = completes(&pair, &params);
    let bandwidth = stats.bandwidth.expect("it was measured");
    assert!(bandwidth > 2 * (4 << 20), "{bandwidth}");
    assert!(stats.last_pages as usize > MIB, "{stats:?}");
}

// --- figures --------------------------------------------------------------------------------

/// Fields that tell the present state.
const MAY_FALL: [&str; 21] = [
    "total_bytes",
    "remaining_bytes",
    "unacknowledged_pages",
    "unacknowledged_bytes",
    "throughput",
    "bandwidth",
    "switchover_bandwidth",
    "round_trip_ns",
    "dirty_pages_per_second",
    "time_left_ns",
    "expected_downtime_ns",
    "sync_ns",
    "downtime_limit_ns",
    "throttle",
    "limited_vcpus",
    "stall",
    "device_left_bytes",
    "missing_pages",
    "fault_waiting",
    "fault_p50_ns",
    "fault_p99_ns",
];

fn numbers(json: &str) -> BTreeMap<String, i64> {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    let fields = value.as_object().unwrap().clone();
    let known = fields.into_iter().filter_map(|(name, value)| {
        let number = value.as_i64()?;
        (!MAY_FALL.contains(&name.as_str())).then_some((name, number))
    });
    known.collect()
}

/// Checks that every figure of `now` is at least its value in `was`. The error number is negative.
fn grown(was: &BTreeMap<String, i64>, now: &BTreeMap<String, i64>) {
    for (name, before) in was {
        let after = now[name];
        let fell = after < *before && name != "error";
        assert!(!fell, "{name} fell from {before} to {after}");
    }
}

/// Waits until the figures are renewed.
fn look(fd: std::os::fd::BorrowedFd<'_>) {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, with a count of one.
    unsafe { libc::poll(&mut poll, 1, 20) };
    let mut value = [0u8; 8];
    if poll.revents & libc::POLLIN != 0 {
        // SAFETY: reads 8 bytes into 8.
        unsafe { libc::read(fd.as_raw_fd(), value.as_mut_ptr().cast(), 8) };
    }
}

#[test]
fn all_figures_but_those_that_the_header_names_only_grow() {
    let header = include_str!("../include/brant.h");
    let said = header
        .split("figures tell the present and may fall:")
        .nth(1);
    let said = said.unwrap().split("All others").next().unwrap();
    assert_eq!(said.matches('`').count(), 2 * MAY_FALL.len(), "{said}");
    for name in MAY_FALL {
        assert!(said.contains(&format!("`{name}`")), "{name} in: {said}");
    }
    // A migration that completes, with free pages, and one that is refused after its pause.
    for refused in [false, true] {
        let pair = Pair::new(&[ram("ram", 16 * MIB), shared("shm", 4 * MIB)]);
        pair.source.ram("ram").fill_all(&mut Random(1));
        pair.source.writers(1, MS);
        pair.source.track();
        if refused {
            pair.to.at("load", || Err(failure()));
        }
        let params = Params {
            max_bandwidth: Some(64 << 20),
            ..Params::default()
        };
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        let (a, b) = UnixStream::pair().unwrap();
        let read = || {
            (
                numbers(&out.stats_json().unwrap()),
                numbers(&inc.stats_json().unwrap()),
            )
        };
        let mut last = read();
        inc.start(AcceptFrom::Connected(b.into())).unwrap();
        out.start(ConnectTo::Connected(a.into())).unwrap();
        let mut samples = 0;
        loop {
            let over =
                out.wait(Some(Duration::ZERO)).err().map(|e| e.kind()) != Some(Kind::Pending);
            look(out.notify_fd());
            let now = read();
            grown(&last.0, &now.0);
            grown(&last.1, &now.1);
            last = now;
            samples += 1;
            if over {
                break;
            }
        }
        assert!(samples > 5);
        let _ = inc.wait(Some(LONG));
        assert_eq!(out.wait(None).is_err(), refused);
    }
}

#[test]
fn the_dirty_rate_and_the_time_left_are_unknown_through_the_first_pass() {
    let pair = Pair::new(&[ram("ram", 4 * MIB)]);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    pair.source.track();
    let params = Params {
        max_bandwidth: Some(8 << 20),
        switchover_bandwidth: Some(8 << 20),
        downtime_limit: MS * 20,
        total_timeout: None,
        ..Params::default()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let (a, b) = UnixStream::pair().unwrap();
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    let (begun, mut first) = (Instant::now(), 0);
    loop {
        assert!(begun.elapsed() < LONG);
        look(out.notify_fd());
        let stats = out.stats();
        if stats.syncs > 0 && stats.pass >= 2 {
            break;
        }
        if stats.pass == 1 && stats.syncs == 0 {
            first += 1;
            assert_eq!(stats.dirty_pages_per_second, None);
            assert_eq!(stats.time_left, None);
        }
    }
    assert!(first > 0);
    // The guest writes faster than 8 MiB/s, so there is a dirty rate but no downtime that would do.
    pair.from.wait_passes(3);
    let stats = out.stats();
    let dirty = stats.dirty_pages_per_second;
    assert!(dirty.is_some_and(|rate| rate > 0), "{dirty:?}");
    out.cancel().unwrap();
    let _ = inc.wait(Some(LONG));
}

#[test]
fn downtime_says_how_long_the_guest_stood_even_if_the_switchover_was_refused() {
    let pair = Pair::new(&[ram("ram", MIB)]);
    // Measured from inside `pause` to inside `resume`. The reported time has to be longer.
    let stood = Arc::new(Mutex::new((None, None)));
    let (from, to) = (Arc::clone(&stood), Arc::clone(&stood));
    pair.from.at("pause", move || {
        from.lock().unwrap().0 = Some(Instant::now());
        Ok(())
    });
    pair.from.at("resume", move || {
        to.lock().unwrap().1 = Some(Instant::now());
        Ok(())
    });
    pair.to.at("load", || Err(failure()));
    let params = Params::default();
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let (here, _) = run(&pair, &out, &inc);
    here.unwrap_err();
    pair.assert_runs_on("refused");
    let (from, to) = *stood.lock().unwrap();
    let least = to.unwrap() - from.unwrap();
    let said = out.stats().downtime.expect("it stood");
    assert!(said >= least, "{said:?}, {least:?} at least");
}

#[test]
fn downtime_of_an_unanswered_guest_is_told_again_when_it_was_resumed() {
    let pair = Pair::new(&[ram("ram", MIB)]);
    let rule = at(Point::Nth(RecordType::Handover, 1), Verdict::Cut);
    let (_proxy, a, b) = Proxy::new(rule);
    // The source reports UNANSWERED when the destination can no longer begin to run the guest.
    let params = Params {
        handover_timeout: MS * 200,
        ..Params::default()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Unanswered);
    inc.wait(Some(LONG)).unwrap_err();
    let until_known = out.stats().downtime.expect("it stands");
    let asked = Instant::now();
    // The time that the VMM needs to find out.
    std::thread::sleep(MS * 5);
    out.resolve(Resolution::Resume).unwrap();
    let in_all = out.stats().downtime.expect("it stood");
    let least = until_known + asked.elapsed();
    assert_eq!(out.state(), State::TakenBack);
    assert!(in_all >= until_known + MS * 5, "{in_all:?} of {least:?}");
}

// --- cancelled ------------------------------------------------------------------------------

#[test]
fn a_cancelled_side_reaches_the_other_as_cancelled_and_says_whose_cancel_it_was() {
    for (at_source, place) in [
        (true, "connecting"),
        (true, "copying"),
        (true, "save"),
        (true, "awaiting ready"),
        (false, "receiving"),
        (false, "load"),
    ] {
        let pair = Pair::new(&[ram("ram", MIB)]);
        pair.source.fill(1);
        let params = Params::default();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        let (weak_out, weak_inc) = (Arc::downgrade(&out), Arc::downgrade(&inc));
        let side = if at_source { &pair.from } else { &pair.to };
        side.at(place, move || {
            let _ = match at_source {
                true => weak_out.upgrade().unwrap().cancel(),
                false => weak_inc.upgrade().unwrap().cancel(),
            };
            Ok(())
        });
        let (here, there) = run(&pair, &out, &inc);
        let (ours, theirs, who) = match at_source {
            true => (here.unwrap_err(), there.unwrap_err(), "the source"),
            false => (there.unwrap_err(), here.unwrap_err(), "the destination"),
        };
        assert_eq!(ours.kind(), Kind::Cancelled, "{place}: {ours}");
        assert_eq!(ours.message(), "the migration was cancelled");
        assert_eq!(theirs.kind(), Kind::Cancelled, "{place}: {theirs}");
        let said = format!("{who} ended the migration: the migration was cancelled");
        assert_eq!(theirs.message(), said, "{place}");
        pair.assert_runs_on(place);
    }
}
