//! Who runs the guest after each fault at each point of a migration: exactly the right side.

use crate::support::guest::lost;
use crate::support::memory::{ram, rom, shared};
use crate::support::pair::Pair;
use crate::support::relay::{at, Point, Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, quick};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{blob, failure, Side};
use brant::error::{Kind, Result};
use brant::migrate::switchover::source::State;
use brant::migrate::{AcceptFrom, ConnectTo, Params, Resolution};
use brant::vmm::EventKind;
use brant::wire;
use brant::wire::{Record, RecordType};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
enum How {
    Fail,
    Panic,
}

#[derive(Clone, Debug)]
enum Fault {
    /// An operation fails or panics.
    Op(Side, &'static str, How),
    /// A fault of the network.
    Net(Point, Verdict),
    /// A cancel inside this operation, or when this state is entered.
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
    /// The source's guest was paused and runs on.
    Resumed,
    /// Handed over, unanswered; the destination does not run.
    Unanswered,
    /// Handed over, unanswered; the destination runs.
    UnansweredThere,
    /// The guest runs nowhere, because `resume` failed.
    NotResumed,
    /// The fault came too late, and the destination runs.
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
    // What goes astray in silence is found by a time limit. On a busy machine a short limit can run
    // out before the record that goes astray: such a migration says nothing, and another one with a
    // longer limit does.
    let patient = !matches!(fault, Fault::Net(_, Verdict::Swallow | Verdict::Drop));
    let limits: &[Duration] = match patient {
        true => &[LONG],
        false => &[
            MS.saturating_mul(600),
            MS.saturating_mul(3000),
            MS.saturating_mul(12_000),
        ],
    };
    let came = |limit: &Duration| comes_to_fault(fault, then, kinds, resolution, *limit);
    assert!(limits.iter().any(came), "{fault:?}: never came to it");
}

/// A migration with these time limits, and what becomes of it. False if it ended before the record
/// that the fault is about.
fn comes_to_fault(
    fault: &Fault,
    then: Then,
    kinds: &[Kind],
    resolution: Resolution,
    limit: Duration,
) -> bool {
    let what = &format!("{fault:?}");
    let pair = Pair::new(&[ram("ram", 700), shared("shm", 65), rom("rom", 3)]);
    pair.source.fill(1);
    // So that ZEROS are sent too, whatever the guest has written by then.
    let rom = pair.source.ram("rom");
    (0..512).for_each(|word| rom.word(4096 + word * 8).store(0, Ordering::Relaxed));
    pair.source.writers(1, MS);
    pair.source.track();
    *pair.from.early.lock().unwrap() = vec![blob("cfg", 0, b"x")];
    let params = Params {
        connect_timeout: limit,
        io_timeout: limit,
        switchover_timeout: limit,
        // The wait for a missing answer takes this long and one second more.
        handover_timeout: MS * 2000,
        ..quick()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let mut rule = at(Point::Nth(RecordType::Keepalive, 1), Verdict::Forward);
    let reached = Arc::new(AtomicBool::new(true));
    match fault.clone() {
        Fault::Op(Side::Source, op, how) => pair.from.at(op, move || break_it(how)),
        Fault::Op(Side::Destination, op, how) => pair.to.at(op, move || break_it(how)),
        Fault::NotResumed(how) => {
            pair.to.at("load", || Err(failure()));
            pair.from.at("resume", move || break_it(how));
        }
        Fault::Net(point, verdict) => {
            let mut planned = at(point, verdict);
            let seen = Arc::clone(&reached);
            seen.store(false, Ordering::SeqCst);
            rule = Box::new(move |header: &wire::Header, payload: &[u8]| {
                let verdict = planned(header, payload);
                if !matches!(verdict, Verdict::Forward) {
                    seen.store(true, Ordering::SeqCst);
                }
                verdict
            });
        }
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
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    let result = out.wait(Some(LONG));
    let _ = inc.wait(Some(LONG));
    pair.assert_sound(what);
    if !reached.load(Ordering::SeqCst) {
        println!("{what}: over before it, with {result:?}");
        return false;
    }
    let states = pair.from.states();
    if then == Then::Completed {
        assert_eq!(result, Ok(()), "{what}");
        assert_eq!(pair.world.who(), (false, true), "{what}");
        return true;
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
    assert_eq!(out.stats().error, Some(error.kind()), "{what}");
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
    true
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
    // Several at a time, because most of them wait for a time limit.
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
