//! Whole migrations in one process, through the public API: what arrives, who runs the guest
//! after every failure at every point, what is pending afterwards, and what hostile peers get.
//!
//! The guest, the VMMs and the proxy are in `support`. Tests are named after what they promise.

mod support;

use brant::channel::{Endpoint, Listener};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::{Kind, Result};
use brant::memory::contents::Contents;
use brant::memory::Memory;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{Blockers, Decider, Decision, Incoming, Outgoing, Params, Resolution};
use brant::migrate::{Source, Target};
use brant::units::{Pages, PAGE_SIZE};
use brant::vmm::EventKind;
use brant::wire::{self, Header, Record, RecordType};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::*;

const MS: Duration = Duration::from_millis(1);

/// Parameters for small guests: the bandwidth is known from the start.
fn quick() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        ..Params::default()
    }
}

fn outgoing(pair: &Pair, params: &Params) -> Arc<Outgoing> {
    let vmm = Arc::clone(&pair.from);
    pair.source.outgoing(&Blockers::new(), vmm, params)
}

fn incoming(pair: &Pair, params: &Params) -> Arc<Incoming> {
    let memory = Arc::clone(&pair.destination.memory);
    let vmm = Arc::clone(&pair.to);
    Arc::new(Incoming::new(memory, vmm, params.clone()).unwrap())
}

fn socketpair() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

/// Both sides, started over a socketpair.
fn start(pair: &Pair, params: &Params) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    (out, inc)
}

/// Decides what a closure says.
struct Scripted<F>(F);

impl<F: FnMut(&Facts) -> Next + Send> Decider for Scripted<F> {
    fn decide(&mut self, facts: &Facts) -> Decision {
        (self.0)(facts).into()
    }
}

/// Goes on copying until it is told to switch over.
fn until(told: &Arc<AtomicBool>) -> Box<dyn Decider> {
    let told = Arc::clone(told);
    Box::new(Scripted(move |facts: &Facts| {
        if facts.moment == Moment::Synced && told.load(Ordering::SeqCst) {
            let expected = MS;
            Next::SwitchOver { expected }
        } else {
            Next::GoOn
        }
    }))
}

/// A whole migration with what must be true after each.
fn migrates(pair: &Pair, run: impl FnOnce(&Outgoing, &Incoming)) {
    // The bandwidth has to be measured, so the first pass gets some way before it can end.
    let params = Params::default();
    let (out, inc) = (outgoing(pair, &params), incoming(pair, &params));
    run(&out, &inc);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a whole migration");
    assert_eq!(pair.world.who(), (false, true));
    assert_eq!(out.state(), State::Completed);
    for (vmm, wanted) in [
        (&pair.from, vec!["pause", "save", "release"]),
        (&pair.to, vec!["load", "loaded", "run"]),
    ] {
        let calls = vmm.all_calls();
        let of: Vec<&str> = calls.iter().map(String::as_str).collect();
        let mut of: Vec<&str> = of
            .into_iter()
            .filter(|c| !c.starts_with("early") && *c != "thread_start")
            .collect();
        of.dedup();
        assert_eq!(of, wanted);
        assert_eq!(vmm.events(EventKind::Completed).len(), 1);
    }
    assert!(!pair.source.tracker.is_started(), "logged for ever");
}

fn busy_pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 3000), shared("shm", 1500)]);
    pair.source.fill(1);
    pair.destination.fill(2);
    pair.source.writers(2, Duration::ZERO);
    pair.source.wait_goes_on(0);
    pair
}

fn goes_on_at_the_destination(pair: &Pair) {
    let left_at = pair.source.counter();
    pair.destination.writers(2, Duration::ZERO);
    pair.destination.wait_goes_on(left_at);
    assert_eq!(
        pair.source.counter(),
        left_at,
        "the source's guest stands still"
    );
}

// --- what arrives ---------------------------------------------------------------------------

#[test]
fn a_busy_guest_moves_over_tcp_and_goes_on_where_it_was() {
    let pair = busy_pair();
    migrates(&pair, |out, inc| {
        let at = inc
            .listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
            .unwrap();
        out.start(Target::Endpoint(at)).unwrap();
    });
    goes_on_at_the_destination(&pair);
}

#[test]
fn a_busy_guest_moves_over_a_unix_socket_and_goes_on_where_it_was() {
    let pair = busy_pair();
    let dir = tempfile::tempdir().unwrap();
    let at = Endpoint::Unix(dir.path().join("s"));
    migrates(&pair, |out, inc| {
        inc.start(Source::Listener(Listener::bind(&at).unwrap()))
            .unwrap();
        out.start(Target::Endpoint(at.clone())).unwrap();
    });
    goes_on_at_the_destination(&pair);
}

#[test]
fn a_busy_guest_moves_over_descriptors_and_goes_on_where_it_was() {
    let pair = busy_pair();
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(Source::Connected(b)).unwrap();
        out.start(Target::Connected(a)).unwrap();
    });
    goes_on_at_the_destination(&pair);
}

#[test]
fn ten_blocks_of_odd_sizes_arrive_byte_for_byte() {
    let specs = [
        ram("one", 1),
        ram("two", 2),
        shared("65", 65),
        ram("511+513", 1024),
        ram("511", 511),
        shared("513", 513),
        rom("rom", 3),
        shared("1023", 1023),
        ram("64", 64),
        Spec {
            page_size: 2 << 20,
            ..ram("big", 1024)
        },
    ];
    let pair = Pair::new(&specs);
    pair.source.fill(3);
    pair.destination.fill(4);
    pair.source.writers(1, Duration::ZERO);
    pair.source.wait_goes_on(0);
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(Source::Connected(b)).unwrap();
        out.start(Target::Connected(a)).unwrap();
    });
}

fn touched(guest: &Guest, name: &str) -> Vec<std::ops::Range<u64>> {
    let map = guest.memory.map();
    let block = map.block_named(name).unwrap();
    let mut contents = Contents::new();
    let mut runs = Vec::new();
    contents
        .touched(block, Pages(0)..block.pages(), |r| {
            runs.push(r.start.0..r.end.0)
        })
        .unwrap();
    runs
}

#[test]
fn what_was_never_touched_stays_untouched_and_garbage_becomes_zero() {
    let pair = Pair::new(&[ram("ram", 2000), shared("shm", 2000)]);
    let mut random = Random(5);
    for name in ["ram", "shm"] {
        // Of the source's pages only these are ever touched.
        for page in [0, 700, 701, 1999] {
            pair.source.ram(name).fill(page, &mut random);
        }
        // One of them holds zeros by now.
        for word in 0..512 {
            pair.source
                .ram(name)
                .word(701 * 4096 + word * 8)
                .store(0, Ordering::Relaxed);
        }
        // The destination's were full of something here.
        for page in 100..200 {
            pair.destination.ram(name).fill(page, &mut random);
        }
    }
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(Source::Connected(b)).unwrap();
        out.start(Target::Connected(a)).unwrap();
        out.wait(Some(LONG)).unwrap();
        let stats = out.stats();
        assert!(stats.hole_pages >= 2 * 1996, "{stats:?}");
        assert!(stats.data_pages < 20, "{stats:?}");
        inc.wait(Some(LONG)).unwrap();
        // 4 pages that the source touched, of which 701 is zero and need not be written; and
        // the 100 that were garbage. (Comparing has read every page: that fills a memfd's
        // holes, so that block has a test of its own.)
        let runs = touched(&pair.destination, "ram");
        let pages: u64 = runs.iter().map(|r| r.end - r.start).sum();
        assert!((103..=104).contains(&pages), "{pages} pages touched");
    });
    let ram = pair.destination.ram("ram");
    assert!((100..200).all(|page| ram.page(page).iter().all(|b| *b == 0)));
}

#[test]
fn the_holes_of_a_memfd_stay_holes_at_the_destination() {
    // No comparing VMM here: looking at a memfd's hole through a mapping fills it.
    let specs = [shared("shm", 4096)];
    let (source, destination) = (Guest::new(&specs), Guest::new(&specs));
    source.ram("shm").fill(9, &mut Random(1));
    source.ram("shm").fill(4000, &mut Random(2));
    let (a, b) = socketpair();
    struct Quiet;
    impl brant::vmm::Vmm for Quiet {
        fn pause(&self) -> Result<()> {
            Ok(())
        }
        fn run(&self) -> Result<()> {
            Ok(())
        }
    }
    let inc = Incoming::new(Arc::clone(&destination.memory), Arc::new(Quiet), quick()).unwrap();
    let out = Outgoing::new(
        Arc::clone(&source.tracker),
        Blockers::new(),
        Arc::new(Quiet),
        quick(),
    )
    .unwrap();
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(touched(&destination, "shm"), [9..10, 4000..4001]);
    assert_eq!(touched(&source, "shm"), [9..10, 4000..4001]);
    assert_eq!(differences(&source, &destination), Vec::<String>::new());
}

#[test]
fn state_blobs_of_nothing_and_of_megabytes_arrive_once_each_and_in_order() {
    let big: Vec<u8> = (0..5 << 20).map(|i: u32| (i >> 3) as u8).collect();
    for blobs in [
        vec![],
        vec![blob("empty", 0, &[])],
        vec![
            blob("vcpu", 0, &[1]),
            blob("vcpu", 1, &[]),
            blob("gpu", 9, &big),
            blob("net", 0, &[0; 4096]),
        ],
    ] {
        let pair = Pair::new(&[ram("ram", 600)]);
        pair.source.fill(1);
        *pair.from.state.lock().unwrap() = blobs.clone();
        let (out, inc) = start(&pair, &quick());
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        pair.assert_sound("state");
        assert_eq!(pair.to.loaded_blobs(), blobs);
        assert_eq!(pair.to.calls("loaded"), 1);
        let bytes: usize = blobs.iter().map(|b| b.data.len()).sum();
        assert_eq!(out.stats().state_bytes, bytes as u64);
    }
}

#[test]
fn state_past_the_destinations_limit_is_refused_and_the_guest_runs_on() {
    let pair = Pair::new(&[ram("ram", 600)]);
    *pair.from.state.lock().unwrap() = vec![blob("a", 0, &[7; 5000])];
    let small = Params {
        max_state: 4096,
        ..quick()
    };
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &small));
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    let error = out.wait(Some(LONG)).unwrap_err();
    assert!(error.message().contains("4096 bytes allowed"), "{error}");
    assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Protocol);
    assert_eq!(pair.to.calls("load"), 0);
    pair.assert_runs_on("too much state");
}

#[test]
fn early_blobs_come_before_the_layout_so_that_the_destination_builds_itself() {
    let specs = [ram("ram", 600), shared("late", 513)];
    let pair = Pair::of(Guest::new(&specs), Guest::new(&[]));
    pair.source.fill(6);
    *pair.from.early.lock().unwrap() = specs.iter().map(|s| blob(s.name, 1, b"x")).collect();
    for spec in &specs {
        pair.to
            .builds
            .lock()
            .unwrap()
            .insert(spec.name.to_owned(), spec.clone());
    }
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(Source::Connected(b)).unwrap();
        out.start(Target::Connected(a)).unwrap();
    });
    assert_eq!(pair.to.early_loaded(), *pair.from.early.lock().unwrap());
}

// --- layouts --------------------------------------------------------------------------------

#[test]
fn a_layout_that_differs_is_refused_by_name_at_both_ends() {
    let base = || vec![ram("ram", 1024), ram("vga", 512)];
    let mut cases: Vec<(&str, Vec<Spec>, Vec<&str>)> = Vec::new();
    let mut with = |what, change: &dyn Fn(&mut Vec<Spec>), words| {
        let mut specs = base();
        change(&mut specs);
        cases.push((what, specs, words));
    };
    with("name", &|s| s[1].name = "gpu", vec!["`vga`", "`gpu`"]);
    with(
        "length",
        &|s| s[1].pages = 1024,
        vec!["`vga`", "2097152", "4194304"],
    );
    with(
        "page size",
        &|s| s[1].page_size = 2 << 20,
        vec!["`vga`", "4096", "2097152"],
    );
    with(
        "missing",
        &|s| s.truncate(1),
        vec!["`vga`", "destination has none"],
    );
    with(
        "extra",
        &|s| s.push(ram("nvdimm", 3)),
        vec!["`nvdimm`", "source has none"],
    );
    with("rom", &|s| s[1].rom = true, vec!["`vga`", "ROM"]);
    with("nothing", &|s| s.clear(), vec!["`ram`", "`vga`"]);
    for (what, theirs, words) in cases {
        let pair = Pair::of(Guest::new(&base()), Guest::new(&theirs));
        pair.source.writers(1, MS);
        let (out, inc) = start(&pair, &quick());
        let here = out.wait(Some(LONG)).unwrap_err();
        let there = inc.wait(Some(LONG)).unwrap_err();
        for error in [&here, &there] {
            assert_eq!(error.kind(), Kind::Layout, "{what}: {error}");
            for word in &words {
                assert!(error.message().contains(word), "{what}: {word} in: {error}");
            }
        }
        assert_eq!(
            pair.to.calls("load") + pair.from.calls("pause"),
            0,
            "{what}"
        );
        pair.assert_runs_on(what);
        pair.source.wait_goes_on(pair.source.counter());
    }
}

// --- who runs the guest ---------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
enum How {
    Fail,
    Panic,
}

#[derive(Clone, Debug)]
enum Fault {
    /// An operation fails or panics.
    Op(Side, &'static str, How),
    /// The network does something.
    Net(Point, Verdict),
    /// A cancel inside this operation, or on entering this state.
    Cancel(Side, &'static str),
    /// The destination refuses its state, and then the source's `resume` fails.
    NotResumed(How),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The source's guest was never paused.
    Untouched,
    /// The source's guest runs on.
    RunsOn,
    /// It was paused and runs on.
    Resumed,
    /// Handed over, unanswered; the destination does not run.
    Unanswered,
    /// Handed over, unanswered; the destination runs.
    UnansweredThere,
    /// Nobody runs: resume failed.
    NotResumed,
    /// Too late: the destination runs.
    Completed,
    /// The destination does not run. Both sides ended at the same time.
    NotThere,
}

fn faults() -> Vec<(Fault, Then, Vec<Kind>)> {
    use Fault::*;
    use How::*;
    use RecordType as R;
    let vmm = vec![Kind::Vmm];
    let mut all = Vec::new();
    for how in [Fail, Panic] {
        all.push((
            Op(Side::Source, "early_save", how),
            Then::Untouched,
            vmm.clone(),
        ));
        for op in ["pause", "save", "release"] {
            all.push((Op(Side::Source, op, how), Then::Resumed, vmm.clone()));
        }
        let refused = vec![Kind::Refused];
        all.push((
            Op(Side::Destination, "early_load", how),
            Then::Untouched,
            refused.clone(),
        ));
        for op in ["load", "loaded"] {
            all.push((
                Op(Side::Destination, op, how),
                Then::Resumed,
                refused.clone(),
            ));
        }
        all.push((
            Op(Side::Destination, "run", how),
            Then::Unanswered,
            vec![Kind::Unanswered],
        ));
        all.push((NotResumed(how), Then::NotResumed, refused));
    }
    // The network, at each kind of record.
    let first = |kind| Point::Nth(kind, 1);
    let gone = || vec![Kind::PeerGone, Kind::Io];
    let points = [
        (first(R::Hello), Then::Untouched),
        (first(R::HelloReply), Then::Untouched),
        (first(R::Early), Then::Untouched),
        (first(R::EarlyEnd), Then::Untouched),
        (first(R::EarlyOk), Then::Untouched),
        (first(R::Block), Then::Untouched),
        (first(R::LayoutEnd), Then::Untouched),
        (first(R::LayoutOk), Then::Untouched),
        (first(R::Pages), Then::RunsOn),
        (first(R::Zeros), Then::RunsOn),
        (first(R::Marker), Then::RunsOn),
        (first(R::Ack), Then::RunsOn),
        (Point::FinalMarker, Then::Resumed),
        (first(R::State), Then::Resumed),
        (first(R::StateEnd), Then::Resumed),
        (Point::FinalAck, Then::Resumed),
        (first(R::Ready), Then::Resumed),
        (first(R::Handover), Then::Unanswered),
        (first(R::Running), Then::UnansweredThere),
    ];
    for (point, then) in points {
        let after = matches!(then, Then::Unanswered | Then::UnansweredThere);
        let kinds = |kinds| if after { vec![Kind::Unanswered] } else { kinds };
        for verdict in [Verdict::Cut, Verdict::CutMid] {
            all.push((Net(point, verdict), then, kinds(gone())));
        }
        all.push((
            Net(point, Verdict::Swallow),
            then,
            kinds(vec![Kind::Timeout]),
        ));
    }
    let late = vec![Kind::Unanswered];
    all.push((
        Net(first(R::Handover), Verdict::CutAfter),
        Then::UnansweredThere,
        late.clone(),
    ));
    all.push((
        Net(first(R::Handover), Verdict::Drop),
        Then::Unanswered,
        late.clone(),
    ));
    all.push((
        Net(first(R::Running), Verdict::Drop),
        Then::UnansweredThere,
        late.clone(),
    ));
    all.push((
        Net(first(R::Ready), Verdict::Drop),
        Then::Resumed,
        vec![Kind::Timeout, Kind::Refused],
    ));
    all.push((
        Net(Point::FinalAck, Verdict::Drop),
        Then::Resumed,
        vec![Kind::Protocol],
    ));
    let mut wrong = Vec::new();
    Record::Handover(wire::Handover { token: [9; 16] })
        .encode(&mut wrong)
        .unwrap();
    all.push((
        Net(first(R::Handover), Verdict::Replace(wrong)),
        Then::Unanswered,
        late,
    ));
    // Cancels.
    let cancelled = vec![Kind::Cancelled];
    for (place, then) in [
        ("connecting", Then::Untouched),
        ("negotiating", Then::Untouched),
        ("early_save", Then::Untouched),
        ("copying", Then::Untouched),
        ("pausing", Then::Resumed),
        ("pause", Then::Resumed),
        ("save", Then::Resumed),
        ("last sync", Then::Resumed),
        ("sending the last pages", Then::Resumed),
        ("awaiting ready", Then::Resumed),
        ("release", Then::Resumed),
        ("committing", Then::Resumed),
    ] {
        all.push((Cancel(Side::Source, place), then, cancelled.clone()));
    }
    for place in ["handing over", "awaiting running", "completed"] {
        all.push((Cancel(Side::Source, place), Then::Completed, vec![]));
    }
    let told = vec![Kind::Cancelled, Kind::PeerGone, Kind::Io];
    for (place, then) in [
        ("listening", Then::Untouched),
        ("negotiating", Then::Untouched),
        ("early_load", Then::Untouched),
        ("receiving", Then::RunsOn),
        ("load", Then::Resumed),
        ("loaded", Then::Resumed),
        ("loading", Then::Resumed),
        ("ready", Then::Resumed),
        ("awaiting the hand-over", Then::NotThere),
    ] {
        all.push((Cancel(Side::Destination, place), then, told.clone()));
    }
    all.push((
        Cancel(Side::Destination, "committing"),
        Then::Unanswered,
        vec![Kind::Unanswered],
    ));
    for place in ["run", "starting", "running"] {
        all.push((Cancel(Side::Destination, place), Then::Completed, vec![]));
    }
    all
}

fn break_it(how: How) -> Result<()> {
    match how {
        How::Fail => Err(failure()),
        How::Panic => panic!("the test's own panic"),
    }
}

/// One fault; `resolution` is what an unanswered guest comes to.
fn one_fault(fault: &Fault, then: Then, kinds: &[Kind], resolution: Resolution) {
    let what = &format!("{fault:?}");
    let pair = Pair::new(&[ram("ram", 700), shared("shm", 65), rom("rom", 3)]);
    pair.source.fill(1);
    // So that ZEROS are sent too, whatever the guest has written by then.
    let rom = pair.source.ram("rom");
    (0..512).for_each(|word| rom.word(4096 + word * 8).store(0, Ordering::Relaxed));
    pair.source.writers(1, MS);
    pair.source.track();
    *pair.from.early.lock().unwrap() = vec![blob("cfg", 0, b"x")];
    let patient = !matches!(fault, Fault::Net(_, Verdict::Swallow | Verdict::Drop));
    let limit = if patient { LONG } else { MS * 600 };
    let params = Params {
        connect_timeout: limit,
        io_timeout: limit,
        switchover_timeout: limit,
        // An answer that does not come is waited for, so long and a second.
        handover_timeout: MS * 2000,
        ..quick()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let mut rule = at(Point::Nth(RecordType::Keepalive, 1), Verdict::Forward);
    match fault.clone() {
        Fault::Op(Side::Source, op, how) => pair.from.at(op, move || break_it(how)),
        Fault::Op(Side::Destination, op, how) => pair.to.at(op, move || break_it(how)),
        Fault::NotResumed(how) => {
            pair.to.at("load", || Err(failure()));
            pair.from.at("resume", move || break_it(how));
        }
        Fault::Net(point, verdict) => rule = at(point, verdict),
        Fault::Cancel(Side::Source, place) => {
            let out = Arc::downgrade(&out);
            pair.from.at(place, move || {
                let _ = out.upgrade().unwrap().cancel();
                Ok(())
            });
        }
        Fault::Cancel(Side::Destination, place) => {
            let inc = Arc::downgrade(&inc);
            pair.to.at(place, move || {
                let _ = inc.upgrade().unwrap().cancel();
                Ok(())
            });
        }
    }
    let (proxy, a, b) = Proxy::new(rule);
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    let result = out.wait(Some(LONG));
    let _ = inc.wait(Some(LONG));
    pair.assert_sound(what);
    let states = pair.from.states();
    if then == Then::Completed {
        assert_eq!(result, Ok(()), "{what}");
        assert_eq!(pair.world.who(), (false, true), "{what}");
        return;
    }
    let error = result.unwrap_err();
    let mut kinds = kinds.to_vec();
    if then == Then::NotThere {
        kinds.push(Kind::Unanswered);
    }
    assert!(
        kinds.contains(&error.kind()),
        "{what}: {:?} {error}",
        error.kind()
    );
    assert_eq!(out.stats().error, error.kind() as i32, "{what}");
    let mut then = then;
    if then == Then::NotThere {
        then = match error.kind() {
            Kind::Unanswered => Then::Unanswered,
            _ => Then::Resumed,
        };
    }
    if !matches!(then, Then::Unanswered | Then::UnansweredThere) {
        assert_eq!(proxy.seen(RecordType::Handover), 0, "{what}: no hand-over");
    }
    match then {
        Then::Untouched | Then::RunsOn | Then::Resumed => {
            pair.assert_runs_on(what);
            if then != Then::RunsOn {
                let wanted = usize::from(then == Then::Resumed);
                assert_eq!(pair.from.calls("resume"), wanted, "{what}");
            }
            if matches!(fault, Fault::Cancel(Side::Source, "pausing" | "pause")) {
                assert_eq!(pair.from.calls("save"), 0, "{what}: nothing more is done");
            }
            assert_eq!(out.state(), State::Failed, "{what}");
            assert_eq!(pair.from.events(EventKind::Failed).len(), 1, "{what}");
            pair.source.wait_goes_on(pair.source.counter());
            assert_eq!(
                out.resolve(Resolution::Resume).unwrap_err().kind(),
                Kind::State,
                "{what}"
            );
            if states.iter().any(|s| s == "copying") {
                pair.source.pause();
                assert_eq!(
                    lost(&pair.source, &pair.destination),
                    Vec::<String>::new(),
                    "{what}"
                );
            }
        }
        Then::Unanswered | Then::UnansweredThere => {
            let there = then == Then::UnansweredThere;
            assert_eq!(pair.world.who(), (false, there), "{what}");
            assert_eq!(out.state(), State::Unanswered, "{what}");
            assert_eq!(pair.from.calls("resume"), 0, "{what}: never by itself");
            assert!(!pair.source.is_running(), "{what}");
            assert_eq!(pair.from.events(EventKind::Unanswered).len(), 1, "{what}");
            assert!(out.cancel().is_err(), "{what}: too late to cancel");
            let resolution = if there {
                Resolution::Destroy
            } else {
                resolution
            };
            out.resolve(resolution).unwrap();
            for again in [Resolution::Resume, Resolution::Destroy] {
                assert_eq!(
                    out.resolve(again).unwrap_err().kind(),
                    Kind::State,
                    "{what}: once"
                );
            }
            let resumed = resolution == Resolution::Resume;
            assert_eq!(pair.from.calls("resume"), usize::from(resumed), "{what}");
            assert_eq!(pair.world.who(), (resumed, there), "{what}");
            if resumed {
                pair.source.wait_goes_on(pair.source.counter());
            }
        }
        Then::NotResumed => {
            assert_eq!(pair.world.who(), (false, false), "{what}");
            assert_eq!(out.state(), State::ResumeFailed, "{what}");
            assert_eq!(pair.from.calls("resume"), 1, "{what}");
            assert_eq!(
                lost(&pair.source, &pair.destination),
                Vec::<String>::new(),
                "{what}"
            );
        }
        Then::Completed | Then::NotThere => unreachable!(),
    }
}

#[test]
fn at_every_fault_at_every_point_exactly_the_right_side_runs_the_guest() {
    let mut cases = Vec::new();
    for (fault, then, kinds) in faults() {
        cases.push((fault.clone(), then, kinds.clone(), Resolution::Resume));
        if then == Then::Unanswered {
            cases.push((fault, then, kinds, Resolution::Destroy));
        }
    }
    println!("{} cases", cases.len());
    let cases = Mutex::new(cases.into_iter());
    let wrong = Mutex::new(Vec::new());
    // Most of them wait for a time limit, so several at a time.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| loop {
                let Some((fault, then, kinds, resolution)) = cases.lock().unwrap().next() else {
                    return;
                };
                let begun = Instant::now();
                let one = || one_fault(&fault, then, &kinds, resolution);
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(one)).is_err() {
                    wrong
                        .lock()
                        .unwrap()
                        .push(format!("{fault:?}, expected {then:?}"));
                }
                let took = begun.elapsed();
                if took > MS * 4000 {
                    println!("{fault:?} took {took:?}");
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} cases went wrong: {wrong:#?}",
        wrong.len()
    );
}

#[test]
fn a_resolution_whose_resume_fails_can_be_given_again() {
    let pair = Pair::new(&[ram("ram", 65)]);
    pair.to.at("run", || Err(failure()));
    let (out, _inc) = start(&pair, &quick());
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Unanswered);
    pair.from.at("resume", || Err(failure()));
    assert_eq!(
        out.resolve(Resolution::Resume).unwrap_err().kind(),
        Kind::Vmm
    );
    assert_eq!(out.state(), State::Unanswered);
    pair.from.at("resume", || Ok(()));
    out.resolve(Resolution::Resume).unwrap();
    assert_eq!(pair.world.who(), (true, false));
    assert_eq!(out.state(), State::TakenBack);
}

#[test]
fn the_switchover_timeout_gives_the_guest_back_when_an_operation_takes_too_long() {
    for op in ["pause", "save", "release"] {
        let pair = Pair::new(&[ram("ram", 65)]);
        // Longer than the limit: there is no event for time that passes.
        pair.from.at(op, || {
            std::thread::sleep(MS * 150);
            Ok(())
        });
        let params = Params {
            switchover_timeout: MS * 100,
            ..quick()
        };
        let (a, b) = socketpair();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &quick()));
        inc.start(Source::Connected(b)).unwrap();
        out.start(Target::Connected(a)).unwrap();
        assert_eq!(
            out.wait(Some(LONG)).unwrap_err().kind(),
            Kind::Timeout,
            "{op}"
        );
        let _ = inc.wait(Some(LONG));
        pair.assert_runs_on(op);
        assert_eq!(pair.from.calls("resume"), 1, "{op}");
    }
}

#[test]
fn a_destination_that_gave_up_during_release_is_not_handed_the_guest() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let hold = pair.from.hold_at("release");
    let (out, inc) = start(&pair, &quick());
    hold.reached();
    cancel_promptly("the destination during release", || inc.cancel()).unwrap();
    hold.go();
    let error = out.wait(Some(LONG)).unwrap_err();
    assert!(
        matches!(error.kind(), Kind::Cancelled | Kind::PeerGone | Kind::Io),
        "{:?} {error}",
        error.kind()
    );
    pair.assert_runs_on("it gave up in time");
    assert_eq!(pair.from.calls("resume"), 1);
}

#[test]
fn of_two_resolutions_at_once_one_is_taken() {
    for round in 0..20 {
        let pair = Pair::new(&[ram("ram", 1)]);
        pair.to.at("run", || Err(failure()));
        let (out, _inc) = start(&pair, &quick());
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Unanswered);
        let barrier = std::sync::Barrier::new(2);
        let taken: Vec<bool> = std::thread::scope(|scope| {
            let resolve = |resolution| {
                let (out, barrier) = (&out, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    out.resolve(resolution).is_ok()
                })
            };
            let both = [resolve(Resolution::Resume), resolve(Resolution::Destroy)];
            both.map(|thread| thread.join().unwrap()).to_vec()
        });
        assert_eq!(taken.iter().filter(|t| **t).count(), 1, "round {round}");
        assert_eq!(pair.from.calls("resume"), usize::from(taken[0]));
        assert_eq!(pair.world.who(), (taken[0], false));
    }
}

// --- cancelling -----------------------------------------------------------------------------

/// Cancels and says how long that took.
fn cancel_promptly(what: &str, cancel: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    let result = cancel();
    let took = begun.elapsed();
    println!("cancelled {what} in {took:?}: {result:?}");
    assert!(took < Duration::from_secs(2), "{what}: {took:?}");
    result
}

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
        // From microseconds to tens of milliseconds, each size as likely.
        let wait = Duration::from_micros(1 << random.below(16))
            + Duration::from_micros(random.next() % 99);
        std::thread::sleep(wait);
        let result = cancel_promptly(&format!("after {wait:?}"), || out.cancel());
        let _ = inc.wait(Some(LONG));
        pair.assert_sound("a cancel");
        // It had ended, or was too late, or was in time.
        if result.is_err() || out.state() == State::Completed {
            out.wait(Some(LONG)).unwrap();
            assert_eq!(pair.world.who(), (false, true), "round {round}");
            ended[0] += 1;
            continue;
        }
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
        pair.assert_runs_on("a cancel");
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
    let rule = |header: &Header, _: &[u8]| match header.record_type() {
        Ok(Some(RecordType::Ack)) => Verdict::Drop,
        _ => Verdict::Forward,
    };
    let (proxy, a, b) = Proxy::new(Box::new(rule));
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&Arc::default()))
        .unwrap();
    // The destination has all of the first pass, and its word of that gets lost.
    let begun = Instant::now();
    while proxy.seen(RecordType::Ack) == 0 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    cancel_promptly("without an acknowledgement", || out.cancel()).unwrap();
    assert_eq!(pair.source.pending().len(), 1600);
    // The idle guest's pages were sent, and put back just once.
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
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&Arc::default()))
        .unwrap();
    // Everything of the first pass is acknowledged after some more.
    let begun = Instant::now();
    while out.stats().unacknowledged_pages > 0 || out.stats().pass < 2 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    pair.source.poke("ram", 77 * 4096, 1);
    out.cancel().unwrap();
    let pending = pair.source.pending();
    // Page 77, unless it was sent and acknowledged in the meantime.
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
        // SAFETY: changes the queue's length of a listening socket of ours.
        assert_eq!(unsafe { libc::listen(fd, 0) }, 0);
    }
    let at = tcp.local_addr().unwrap();
    let _first = TcpStream::connect(at).unwrap();
    let _second = TcpStream::connect_timeout(&at, MS * 50);
    let _other = UnixStream::connect(&path).unwrap();
    for at in [Endpoint::Tcp(at), Endpoint::Unix(path)] {
        let out = outgoing(&pair, &quick());
        let states = pair.from.states().len();
        out.start(Target::Endpoint(at.clone())).unwrap();
        while pair.from.states().len() == states {
            std::thread::yield_now();
        }
        cancel_promptly(&format!("connecting to {at}"), || out.cancel()).unwrap();
        let error = out.wait(None).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{at}: {error}");
        pair.assert_runs_on("connecting");
    }
    // Connected, and nobody answers.
    let (a, _black_hole) = socketpair();
    let out = outgoing(&pair, &quick());
    out.start(Target::Connected(a)).unwrap();
    pair.from.wait_state("negotiating");
    cancel_promptly("an unanswered HELLO", || out.cancel()).unwrap();
    // And at the destination: nobody comes, nobody speaks.
    let inc = incoming(&pair, &quick());
    inc.listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
        .unwrap();
    cancel_promptly("listening", || inc.cancel()).unwrap();
    let (b, _silent) = socketpair();
    let inc = incoming(&pair, &quick());
    inc.start(Source::Connected(b)).unwrap();
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
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    hold.reached();
    // Until the socket is full and nothing moves any more.
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
        let _ = inc.wait(Some(LONG));
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
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(1);
    let begun = Instant::now();
    drop(out);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!pair.source.tracker.is_started(), "logged for ever");
    inc.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("dropped");
    // The other way round.
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(2);
    drop(inc);
    out.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("destination dropped");
}

// --- use ------------------------------------------------------------------------------------

#[test]
fn waiting_inside_a_callback_is_an_error_and_cancelling_there_only_asks() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    let heard: Arc<Mutex<Vec<Kind>>> = Arc::default();
    let (weak, list) = (Arc::downgrade(&out), Arc::clone(&heard));
    pair.from.at("save", move || {
        let out = weak.upgrade().unwrap();
        assert!(out.in_callback());
        let mut list = list.lock().unwrap();
        list.push(out.wait(None).unwrap_err().kind());
        list.push(out.resolve(Resolution::Resume).unwrap_err().kind());
        let (a, _) = socketpair();
        list.push(out.start(Target::Connected(a)).unwrap_err().kind());
        out.cancel().unwrap();
        Ok(())
    });
    let (weak, list) = (Arc::downgrade(&inc), Arc::clone(&heard));
    pair.to.at("receiving", move || {
        list.lock()
            .unwrap()
            .push(weak.upgrade().unwrap().wait(None).unwrap_err().kind());
        Ok(())
    });
    assert!(!out.in_callback());
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    let _ = inc.wait(Some(LONG));
    assert_eq!(*heard.lock().unwrap(), [Kind::Callback; 4]);
    pair.assert_runs_on("callbacks");
}

#[test]
fn one_object_is_one_migration_and_one_tracker_has_one_at_a_time() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let fd = || socketpair().0;
    let kind = |r: Result<()>| r.unwrap_err().kind();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    assert_eq!(kind(out.wait(None)), Kind::State);
    assert_eq!(kind(inc.wait(None)), Kind::State);
    let told: Arc<AtomicBool> = Arc::default();
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&told)).unwrap();
    assert_eq!(kind(out.start(Target::Connected(fd()))), Kind::State);
    assert_eq!(kind(inc.start(Source::Connected(fd()))), Kind::State);
    let second = outgoing(&pair, &quick());
    assert_eq!(kind(second.start(Target::Connected(fd()))), Kind::Busy);
    assert_eq!(kind(out.wait(Some(MS))), Kind::Pending);
    told.store(true, Ordering::SeqCst);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(kind(out.start(Target::Connected(fd()))), Kind::State);
    assert_eq!(kind(out.cancel()), Kind::State);
    assert_eq!(kind(inc.cancel()), Kind::State);
    // One that was refused for that reason can be started later, once the guest is back.
    assert_eq!(kind(second.start(Target::Connected(fd()))), Kind::State);
    pair.source.memory.reclaim().unwrap();
    let (a, _peer) = socketpair();
    second.start(Target::Connected(a)).unwrap();
    second.cancel().unwrap();
    // Cancelled before its start, it never starts.
    let third = outgoing(&pair, &quick());
    third.cancel().unwrap();
    assert_eq!(kind(third.start(Target::Connected(fd()))), Kind::Cancelled);
}

#[test]
fn a_blocked_guest_does_not_start_and_one_that_becomes_blocked_is_never_paused() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let blockers = Blockers::new();
    let make = || {
        let tracker = Arc::clone(&pair.source.tracker);
        let vmm = Arc::clone(&pair.from);
        Outgoing::new(tracker, blockers.clone(), vmm, quick()).unwrap()
    };
    let out = make();
    let reason = blockers.block("a disk is local");
    let error = out.start(Target::Connected(socketpair().0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
    assert!(error.message().contains("a disk is local"), "{error}");
    drop(reason);
    let (a, b) = socketpair();
    let inc = incoming(&pair, &quick());
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(2);
    let _reason = blockers.block("a GPU came");
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
    assert!(error.message().contains("a GPU came"), "{error}");
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert!(error.message().contains("a GPU came"), "{error}");
    assert_eq!(pair.from.calls("pause"), 0);
    pair.assert_runs_on("blocked");
}

#[test]
fn parameters_out_of_range_are_refused_before_anything_starts() {
    let pair = Pair::new(&[ram("ram", 1)]);
    let d = Params::default;
    for params in [
        Params {
            downtime_limit: Duration::ZERO,
            ..d()
        },
        Params {
            max_bandwidth: Some(1),
            ..d()
        },
        Params {
            total_timeout: Some(Duration::ZERO),
            ..d()
        },
        Params { channels: 0, ..d() },
        Params {
            max_state: 1,
            ..d()
        },
    ] {
        let (tracker, vmm) = (Arc::clone(&pair.source.tracker), Arc::clone(&pair.from));
        let error = Outgoing::new(tracker, Blockers::new(), vmm, params.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let (memory, vmm) = (Arc::clone(&pair.destination.memory), Arc::clone(&pair.to));
        assert_eq!(
            Incoming::new(memory, vmm, params).unwrap_err().kind(),
            Kind::Invalid
        );
    }
}

#[test]
fn a_panic_in_any_operation_fails_the_migration_and_nothing_is_printed() {
    let test = "a_panic_in_any_operation_fails_the_migration_and_nothing_is_printed";
    if std::env::var_os("BRANT_TEST_CHILD").is_none() {
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env("BRANT_TEST_CHILD", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success() && text.contains("1 passed"),
            "{text}\n{out:?}"
        );
        assert_eq!(String::from_utf8_lossy(&out.stderr), "");
        return;
    }
    for op in ["thread_start", "early_save", "pause", "save", "release"] {
        let pair = Pair::new(&[ram("ram", 65)]);
        pair.source.writers(1, MS);
        pair.from.at(op, || panic!("planted"));
        let (out, inc) = start(&pair, &quick());
        let error = out.wait(Some(MS * 5000)).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{op}: {error}");
        assert!(
            error.message().contains(op) && error.message().contains("planted"),
            "{error}"
        );
        let _ = inc.wait(Some(LONG));
        pair.assert_runs_on(op);
        pair.source.wait_goes_on(pair.source.counter());
        assert!(!pair.source.tracker.is_started(), "{op}: logged for ever");
    }
    for op in ["thread_start", "early_load", "load", "loaded", "run"] {
        let pair = Pair::new(&[ram("ram", 65)]);
        *pair.from.early.lock().unwrap() = vec![blob("cfg", 0, b"x")];
        pair.to.at(op, || panic!("planted"));
        let (out, inc) = start(&pair, &quick());
        let error = inc.wait(Some(MS * 5000)).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{op}: {error}");
        let error = out.wait(Some(LONG)).unwrap_err();
        assert_eq!(
            error.kind() == Kind::Unanswered,
            op == "run",
            "{op}: {error}"
        );
        assert_eq!(pair.world.who(), (op != "run", false), "{op}");
    }
    // Events are only told; a panic there is the VMM's own.
    let pair = Pair::new(&[ram("ram", 65)]);
    pair.from.at("event", || panic!("planted"));
    pair.to.at("event", || panic!("planted"));
    let (out, inc) = start(&pair, &quick());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    // A decider is the caller's code too.
    let pair = Pair::new(&[ram("ram", 65)]);
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(Source::Connected(b)).unwrap();
    let decider = Scripted(|facts: &Facts| match facts.moment {
        Moment::Synced => panic!("planted"),
        Moment::Walking => Next::GoOn,
    });
    out.start_with(Target::Connected(a), Box::new(decider))
        .unwrap();
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Internal);
    let _ = inc.wait(Some(LONG));
    pair.assert_runs_on("decider");
}

// --- hotplug --------------------------------------------------------------------------------

#[test]
fn blocks_that_come_and_go_while_copying_end_equal_and_unmapped() {
    let specs = [ram("ram", 600), ram("goes", 1500)];
    let pair = Pair::new(&specs);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    let told: Arc<AtomicBool> = Arc::default();
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&told)).unwrap();
    pair.from.wait_passes(1);
    for round in 0..4 {
        let spec = match round % 2 {
            0 => ram("comes", 1030),
            _ => shared("comes", 513),
        };
        let garbage = Ram::new(&spec);
        garbage.fill_all(&mut Random(round));
        pair.destination.add(garbage);
        let fresh = Ram::new(&spec);
        (0..spec.pages)
            .step_by(3)
            .for_each(|p| fresh.fill(p, &mut Random(p as u64)));
        pair.source.add(fresh);
        let passes = pair.from.events(EventKind::Pass).len();
        pair.from.wait_passes(passes + 2);
        if round < 3 {
            // Returns when nobody can touch it any more; unmapped right after.
            pair.source.remove("comes");
            pair.destination.remove("comes");
        }
    }
    pair.source.remove("goes");
    pair.destination.remove("goes");
    told.store(true, Ordering::SeqCst);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("hotplug");
    assert_eq!(pair.destination.rams().len(), 2);
    assert_eq!(pair.world.who(), (false, true));
}

#[test]
fn a_block_added_here_only_ends_the_migration_by_its_name() {
    let pair = Pair::new(&[ram("ram", 600)]);
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(1);
    pair.source.add(Ram::new(&ram("dimm7", 65)));
    for error in [
        out.wait(Some(LONG)).unwrap_err(),
        inc.wait(Some(LONG)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Layout, "{error}");
        assert!(error.message().contains("`dimm7`"), "{error}");
    }
    pair.assert_runs_on("a block too many");
}

// --- convergence and figures ----------------------------------------------------------------

#[test]
fn a_guest_faster_than_its_link_is_given_up_with_both_rates_and_runs_on() {
    let pair = Pair::new(&[ram("ram", 1500)]);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    pair.source.track();
    let params = Params {
        max_bandwidth: Some(8 << 20),
        // The link is no faster than its cap, which a socketpair's estimate would deny.
        switchover_bandwidth: Some(8 << 20),
        downtime_limit: MS * 10,
        total_timeout: Some(MS * 2000),
        ..Params::default()
    };
    let begun = Instant::now();
    let (out, inc) = start(&pair, &params);
    let error = out.wait(Some(LONG)).unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    assert!(took >= MS * 2000 && took < MS * 8000, "{took:?}");
    let rates = error.message().matches("MB/s").count();
    assert!(rates >= 2 && error.message().contains("pages/s"), "{error}");
    assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Refused);
    // The cap was kept, with a socket's worth of slack.
    let sent = out.stats().wire_bytes as f64 / took.as_secs_f64();
    println!("{error}; {sent:.0} bytes/s");
    assert!(sent < 1.25 * (8 << 20) as f64, "{sent}");
    assert_eq!(pair.from.calls("pause"), 0);
    pair.assert_runs_on("not converged");
    pair.source.wait_goes_on(pair.source.counter());
    pair.source.pause();
    assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
}

/// Waits for the next renewal of the figures.
fn look(fd: std::os::fd::BorrowedFd<'_>) {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, with a count of one.
    unsafe { libc::poll(&mut poll, 1, 100) };
    let mut value = [0u8; 8];
    if poll.revents & libc::POLLIN != 0 {
        // SAFETY: reads 8 bytes into 8.
        unsafe { libc::read(fd.as_raw_fd(), value.as_mut_ptr().cast(), 8) };
    }
}

#[test]
fn progress_never_goes_back_and_what_was_promised_stays_as_it_was() {
    let pair = busy_pair();
    let capped = Params {
        max_bandwidth: Some(64 << 20),
        ..Params::default()
    };
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &capped), incoming(&pair, &capped));
    let before = out.stats();
    assert_eq!(
        (before.phase, before.progress, before.promised_downtime_us),
        (0, 0, 0)
    );
    for unknown in [
        before.bandwidth,
        before.time_left_us,
        before.expected_downtime_us,
    ] {
        assert_eq!(unknown, u64::MAX);
    }
    assert!(json(&out)["bandwidth"].is_null());
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    let (mut last, mut there) = (out.stats(), inc.stats());
    let mut samples = 0;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LONG, "never at 100 %: {last:?}");
        look(out.notify_fd());
        let (now, other) = (out.stats(), inc.stats());
        samples += 1;
        assert!(
            now.progress >= last.progress,
            "{} after {}",
            now.progress,
            last.progress
        );
        assert!(other.progress >= there.progress);
        assert!(now.phase >= last.phase && other.phase >= there.phase);
        assert!(now.pass >= last.pass && now.elapsed_us >= last.elapsed_us);
        assert!(now.wire_bytes >= last.wire_bytes && now.data_pages >= last.data_pages);
        assert!(now.progress < 10_000 || now.phase == State::Completed as u32);
        if last.promised_downtime_us != 0 {
            assert_eq!(now.promised_downtime_us, last.promised_downtime_us);
        }
        (last, there) = (now, other);
        if now.phase == State::Completed as u32 && now.progress == 10_000 {
            break;
        }
        assert!(now.error == 0, "{:?}", out.wait(None));
    }
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    println!("{samples} samples, {:?}", out.stats());
    assert!(samples >= 5);
    let stats = out.stats();
    assert_eq!(stats.progress, 10_000);
    assert_eq!((stats.remaining_bytes, stats.time_left_us), (0, 0));
    assert_eq!(stats.total_bytes, 4500 * PAGE_SIZE);
    assert!(stats.downtime_us > 0 && stats.promised_downtime_us > 0);
    let parts = [
        stats.pause_us,
        stats.save_us,
        stats.last_sync_us,
        stats.last_send_us,
        stats.ready_us,
        stats.release_us,
        stats.handover_us,
    ];
    assert!(parts.iter().sum::<u64>() <= stats.downtime_us, "{parts:?}");
    assert_eq!(inc.stats().data_pages, stats.data_pages);
    assert_eq!(inc.stats().zero_pages, stats.zero_pages);
    let wanted = [
        "connecting",
        "negotiating",
        "copying",
        "pausing",
        "saving",
        "last sync",
        "sending the last pages",
        "awaiting ready",
        "releasing",
        "committing",
        "handing over",
        "awaiting running",
        "completed",
    ];
    assert_eq!(pair.from.states(), wanted);
    let object = json(&out);
    assert_eq!(object["state"], "completed");
    for (name, value) in [
        ("progress", u64::from(stats.progress)),
        ("phase", u64::from(stats.phase)),
        ("data_pages", stats.data_pages),
        ("downtime_us", stats.downtime_us),
        ("promised_downtime_us", stats.promised_downtime_us),
        ("wire_bytes", stats.wire_bytes),
        ("elapsed_us", stats.elapsed_us),
        ("bandwidth", stats.bandwidth),
        ("load_us", stats.load_us),
    ] {
        assert_eq!(object[name], value, "{name}");
    }
}

fn json(out: &Outgoing) -> serde_json::Value {
    serde_json::from_str(&out.stats_json().unwrap()).unwrap()
}

// --- hostile peers --------------------------------------------------------------------------

fn hello() -> Record {
    Record::Hello(wire::Hello {
        version_min: 1,
        version_max: 1,
        features_offered: 1,
        features_required: 1,
        token: [5; 16],
        channel: 0,
        channels: 1,
        page_shift: 12,
        software: "hostile".into(),
    })
}

fn marker(number: u64, flags: u32, records: u64, data: u64, zero: u64) -> Record {
    Record::Marker(wire::Marker {
        number,
        pass: 1,
        flags,
        records,
        data_pages: data,
        zero_pages: zero,
    })
}

/// A source that has come as far as the first page. The destination has 600 pages, block 4.
fn accepted(raw: &mut Raw) {
    raw.say(&hello());
    assert!(matches!(raw.hear_record(), Some(Record::HelloReply(_))));
    raw.say(&Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
    assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    raw.say(&Record::Block(wire::Block {
        id: 4,
        length: 600 * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: "ram".into(),
    }));
    raw.say(&Record::LayoutEnd(wire::LayoutEnd {
        blocks: 1,
        bytes: 600 * PAGE_SIZE,
    }));
    assert_eq!(raw.hear_record(), Some(Record::LayoutOk));
}

/// And as far as ready.
fn ready(raw: &mut Raw) {
    accepted(raw);
    raw.say_bytes(&Header::zeros(4, Pages(0), 512).encode());
    raw.say(&marker(1, 1, 1, 0, 512));
    assert!(matches!(raw.hear_record(), Some(Record::Ack(_))));
    raw.say(&Record::StateEnd(wire::StateEnd {
        blobs: wire::BlobEnd { count: 0, bytes: 0 },
        handover_millis: 30_000,
    }));
    assert!(matches!(raw.hear_record(), Some(Record::Ready(_))));
}

#[test]
fn a_hostile_source_is_refused_with_a_reason_and_nothing_ever_runs() {
    let full_page = [7u8; 4096];
    type Play = Box<dyn Fn(&mut Raw) + Send + Sync>;
    let page_run = |block, first, count| {
        let mut bytes = Header::pages(block, Pages(first), count).encode().to_vec();
        bytes.extend_from_slice(&full_page.repeat(count as usize));
        bytes
    };
    let bytes = |bytes: Vec<u8>| -> Play {
        Box::new(move |raw: &mut Raw| {
            accepted(raw);
            raw.say_bytes(&bytes);
        })
    };
    let record = |record: Record| -> Play {
        Box::new(move |raw: &mut Raw| {
            accepted(raw);
            raw.say(&record);
        })
    };
    let mut garbled = Header::zeros(4, Pages(0), 1).encode();
    garbled[9] ^= 1;
    let cases: Vec<(&str, Play, &str)> = vec![
        (
            "garbage instead of HELLO",
            Box::new(|raw: &mut Raw| raw.say_bytes(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")),
            "",
        ),
        (
            "no HELLO",
            Box::new(|raw: &mut Raw| raw.say(&marker(1, 0, 0, 0, 0))),
            "HELLO",
        ),
        ("a garbled header", bytes(garbled.to_vec()), "checksum"),
        ("an unknown block", bytes(page_run(5, 0, 1)), "block 5"),
        ("past the end", bytes(page_run(4, 599, 2)), "600"),
        ("far past the end", bytes(page_run(4, u64::MAX, 1)), "600"),
        ("across a stretch", bytes(page_run(4, 511, 2)), "512"),
        (
            "too many records",
            record(marker(1, 0, 1, 0, 0)),
            "marker 1",
        ),
        (
            "data pages that never came",
            record(marker(1, 1, 0, 1, 0)),
            "marker 1",
        ),
        (
            "a marker out of order",
            record(marker(2, 0, 0, 0, 0)),
            "marker 2",
        ),
        (
            "the hand-over too early",
            record(Record::Handover(wire::Handover { token: [5; 16] })),
            "HANDOVER",
        ),
        ("HELLO twice", record(hello()), "HELLO"),
        (
            "state before the end",
            record(Record::StateEnd(wire::StateEnd {
                blobs: wire::BlobEnd { count: 0, bytes: 0 },
                handover_millis: 30_000,
            })),
            "STATE_END",
        ),
        (
            "a block removed that was never there",
            record(Record::BlockRemoved { id: 9 }),
            "block 9",
        ),
        (
            "another token in the hand-over",
            Box::new(|raw: &mut Raw| {
                ready(raw);
                raw.say(&Record::Handover(wire::Handover { token: [6; 16] }));
            }),
            "token",
        ),
        (
            "pages after the end",
            Box::new(|raw: &mut Raw| {
                ready(raw);
                raw.say_bytes(&Header::zeros(4, Pages(0), 1).encode());
            }),
            "ZEROS",
        ),
        (
            "two blocks of one name",
            Box::new(|raw: &mut Raw| {
                raw.say(&hello());
                raw.hear_record();
                raw.say(&Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
                raw.hear_record();
                for id in [1, 2] {
                    raw.say(&Record::Block(wire::Block {
                        id,
                        length: 600 * PAGE_SIZE,
                        page_size: PAGE_SIZE,
                        flags: 0,
                        name: "ram".into(),
                    }));
                }
                raw.say(&Record::LayoutEnd(wire::LayoutEnd {
                    blocks: 2,
                    bytes: 1200 * PAGE_SIZE,
                }));
            }),
            "`ram`",
        ),
        (
            "an ABORT with control characters",
            record(Record::Abort(wire::Abort {
                code: -1,
                reason: "bad\u{1b}[31m\nnews".into(),
            })),
            "-",
        ),
    ];
    for (what, play, reason) in cases {
        let pair = Pair::new(&[ram("ram", 600)]);
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, &quick());
        inc.start(Source::Connected(fd)).unwrap();
        play(&mut raw);
        let told = raw.hear_abort();
        drop(raw);
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert!(
            !error.message().contains(['\u{1b}', '\n']),
            "{what}: {error:?}"
        );
        if reason != "-" {
            assert_eq!(error.kind(), Kind::Protocol, "{what}: {error}");
            assert!(
                error.message().contains(reason),
                "{what}: {reason} in: {error}"
            );
            assert_eq!(told.as_deref(), Some(error.message()), "{what}");
        }
        assert_eq!(pair.to.calls("run"), 0, "{what}");
    }
}

#[test]
fn a_source_that_trickles_or_falls_silent_is_ended_within_the_limits() {
    let params = Params {
        connect_timeout: MS * 400,
        io_timeout: MS * 400,
        switchover_timeout: MS * 400,
        ..quick()
    };
    let mut first = Vec::new();
    hello().encode(&mut first).unwrap();
    let mut page = Header::pages(4, Pages(0), 1).encode().to_vec();
    page.resize(page.len() + 4096, 1);
    // What is said before, then what is said a byte at a time.
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
        inc.start(Source::Connected(fd)).unwrap();
        before(&mut raw);
        let begun = Instant::now();
        for byte in bytes.iter().take(60) {
            if raw.0.write_all(&[*byte]).is_err() || inc.stats().error != 0 {
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
}

#[test]
fn a_source_that_announces_much_and_sends_little_costs_little() {
    let data = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmData")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let pair = Pair::new(&[ram("ram", 600)]);
    let params = Params {
        max_state: 1 << 40,
        ..quick()
    };
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &params);
    inc.start(Source::Connected(fd)).unwrap();
    raw.say(&hello());
    raw.hear_record();
    let before = data();
    raw.say_bytes(&Header::control(RecordType::Early, 0, wire::PAYLOAD_MAX).encode());
    raw.say_bytes(&vec![1; 3 << 20]);
    // It has taken all of that when the socket is empty again.
    let begun = Instant::now();
    while inc.stats().phase != 34 || pending_bytes(&raw.0) > 0 {
        assert!(begun.elapsed() < LONG);
        std::thread::yield_now();
    }
    let grown = data().saturating_sub(before);
    println!("1 GiB announced, 3 MiB sent: {grown} KiB more");
    assert!(grown < 700 << 10, "{grown} KiB");
    inc.cancel().unwrap();
    // More than is allowed is refused at its header.
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &quick());
    inc.start(Source::Connected(fd)).unwrap();
    raw.say(&hello());
    raw.hear_record();
    raw.say_bytes(&Header::control(RecordType::Early, 0, (256 << 20) + 1).encode());
    assert!(raw.hear_abort().unwrap().contains("allowed here"));
}

/// Bytes that the peer has not taken yet.
fn pending_bytes(socket: &UnixStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    assert_eq!(result, 0);
    bytes
}

fn reply() -> Record {
    Record::HelloReply(wire::HelloReply {
        version: 1,
        features: 1,
        software: "hostile".into(),
    })
}

/// A destination that agrees to everything up to the first page.
fn agree(raw: &mut Raw) {
    assert!(matches!(raw.hear_record(), Some(Record::Hello(_))));
    raw.say(&reply());
    while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::EarlyEnd)) {}
    raw.say(&Record::EarlyOk);
    while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::LayoutEnd)) {}
    raw.say(&Record::LayoutOk);
}

#[test]
fn a_hostile_destination_is_left_and_the_guest_runs_on() {
    type Play = fn(&mut Raw);
    let cases: Vec<(&str, Play, Kind, &str)> = vec![
        ("garbage", |r| r.say_bytes(&[b'x'; 64]), Kind::Protocol, ""),
        (
            "no reply",
            |r| r.say(&Record::LayoutOk),
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "another version",
            |r| {
                r.say(&Record::HelloReply(wire::HelloReply {
                    version: 9,
                    features: 1,
                    software: String::new(),
                }));
            },
            Kind::Version,
            "9",
        ),
        (
            "ready while copying",
            |r| {
                agree(r);
                r.say(&Record::Ready(wire::Ready { load_micros: 0 }));
            },
            Kind::Protocol,
            "READY",
        ),
        (
            "running without a hand-over",
            |r| {
                agree(r);
                r.say(&Record::Running(wire::Running { run_micros: 0 }));
            },
            Kind::Protocol,
            "RUNNING",
        ),
        (
            "an acknowledgement of what was never sent",
            |r| {
                agree(r);
                r.say(&Record::Ack(wire::Ack { number: 1 << 40 }));
            },
            Kind::Protocol,
            "marker",
        ),
        (
            "a record of the wrong way",
            |r| {
                agree(r);
                r.say(&hello());
            },
            Kind::Protocol,
            "HELLO",
        ),
        ("the end", |r| agree(r), Kind::PeerGone, ""),
    ];
    for (what, play, kind, reason) in cases {
        let pair = Pair::new(&[ram("ram", 600)]);
        pair.source.fill(1);
        let (mut raw, fd) = Raw::pair();
        let out = outgoing(&pair, &quick());
        out.start_with(Target::Connected(fd), until(&Arc::default()))
            .unwrap();
        play(&mut raw);
        if kind == Kind::PeerGone {
            drop(raw);
        } else {
            // Reads on, so that the source is not held up.
            std::thread::spawn(move || raw.hear_abort());
        }
        let error = out.wait(Some(LONG)).unwrap_err();
        let gone = kind == Kind::PeerGone && error.kind() == Kind::Io;
        assert!(
            error.kind() == kind || gone,
            "{what}: {:?} {error}",
            error.kind()
        );
        assert!(
            error.message().contains(reason),
            "{what}: {reason} in: {error}"
        );
        assert_eq!(pair.from.calls("pause"), 0, "{what}");
        pair.assert_runs_on(what);
    }
}

#[test]
fn a_destination_that_trickles_is_left_within_the_limits() {
    let params = Params {
        connect_timeout: MS * 400,
        ..quick()
    };
    let pair = Pair::new(&[ram("ram", 65)]);
    let (mut raw, fd) = Raw::pair();
    let out = outgoing(&pair, &params);
    let begun = Instant::now();
    out.start(Target::Connected(fd)).unwrap();
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
}

/// Sends `records` as fast as a thread can, until told to stop, and reads all that comes.
struct Flood {
    socket: UnixStream,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn new(raw: Raw, record: &Record) -> Flood {
        let mut one = Vec::new();
        record.encode(&mut one).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flooded = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        {
            // One thread: a stream socket may mix the bytes of several.
            let (stop, flooded) = (Arc::clone(&stop), Arc::clone(&flooded));
            let (mut to, many) = (raw.0.try_clone().unwrap(), one.repeat(8000));
            // A failure must end, too.
            let begun = Instant::now();
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) && begun.elapsed() < MS * 5000 {
                    // Whole records only, or the peer finds garbage.
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
    {
        let pair = Pair::new(&[ram("ram", 600)]);
        pair.source.fill(1);
        let (mut raw, fd) = Raw::pair();
        let out = outgoing(&pair, &quick());
        out.start_with(Target::Connected(fd), until(&Arc::default()))
            .unwrap();
        agree(&mut raw);
        while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::Marker)) {}
        let flood = Flood::new(raw, &Record::Keepalive);
        cancel_promptly("under a destination's flood", || out.cancel()).unwrap();
        let error = out.wait(None).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        drop(flood);
        pair.assert_runs_on("a flood");
    }
    let pair = Pair::new(&[ram("ram", 600)]);
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &quick());
    inc.start(Source::Connected(fd)).unwrap();
    accepted(&mut raw);
    let flood = Flood::new(raw, &Record::Keepalive);
    cancel_promptly("under a source's flood", || inc.cancel()).unwrap();
    assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::Cancelled);
    drop(flood);
}

#[test]
fn an_acknowledgement_that_comes_twice_or_out_of_order_is_refused() {
    for numbers in [[1, 1], [2, 1]] {
        let pair = Pair::new(&[ram("ram", 600)]);
        pair.source.fill(1);
        let (mut raw, fd) = Raw::pair();
        let out = outgoing(&pair, &quick());
        out.start_with(Target::Connected(fd), until(&Arc::default()))
            .unwrap();
        agree(&mut raw);
        while raw.hear().unwrap().0.record_type() != Ok(Some(RecordType::Marker)) {}
        for number in numbers {
            raw.say(&Record::Ack(wire::Ack { number }));
        }
        // The source hears it between two batches, so somebody has to take those.
        let mut from = raw.0.try_clone().unwrap();
        let taker = std::thread::spawn(move || {
            let mut sink = vec![0; 1 << 20];
            while from.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let error = out.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{numbers:?}: {error}");
        assert!(error.message().contains("acknowledged marker"), "{error}");
        pair.assert_runs_on("a wrong acknowledgement");
        drop(out);
        taker.join().unwrap();
    }
}

#[test]
fn a_tracker_without_memory_and_a_guest_without_blocks_are_migrated_or_refused_but_never_hang() {
    let pair = Pair::of(Guest::new(&[]), Guest::new(&[]));
    let (out, inc) = start(&pair, &quick());
    let result = out.wait(Some(LONG));
    let there = inc.wait(Some(LONG));
    assert_eq!(result.is_ok(), there.is_ok(), "{result:?} {there:?}");
    pair.assert_sound("no memory");
    let memory = Arc::new(Memory::new().unwrap());
    Tracker::new(memory, Clearing::AtSync).unwrap();
}
