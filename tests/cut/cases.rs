//! Many places to cut at, several at a time, and a sum of the results.

use super::afterwards::{covered, resolve, settled, Proved};
use super::guests::{
    equip_destination, equip_source, guests, incoming, limits, outgoing, script, SHORT,
};
use super::middle::{Cut, Log, Place, Way, Wire, UNUSED};
use crate::support::pair::Pair;
use crate::support::time::{LONG, MS};
use brant::migrate::switchover::source::State;
use brant::migrate::{AcceptFrom, ConnectTo};
use brant::wire::RecordType;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub struct Case {
    pub what: String,
    pub number: usize,
    pub cut: Cut,
}

impl Case {
    pub fn new(number: usize, cut: Cut) -> Case {
        Case {
            what: format!("{cut:?}"),
            number,
            cut,
        }
    }
}

/// The results of all cases.
#[derive(Default)]
pub struct Sum {
    pub outcomes: BTreeMap<String, usize>,
    pub cut_after: BTreeSet<&'static str>,
    pub proved: Proved,
    pub resolved: [usize; 2],
    pub longest: Duration,
}

fn one(case: &Case, sum: &Mutex<Sum>) -> Log {
    let what = case.what.as_str();
    let limit = match case.cut {
        Cut::Silent(..) => SHORT,
        _ => UNUSED,
    };
    let (source, destination) = guests();
    let pair = Pair::of(source, destination);
    equip_source(&pair.from);
    equip_destination(&pair.to, None);
    pair.source.writer_within("ram", 1030..1042, MS / 4);
    let (out, inc) = (
        outgoing(&pair, limits(limit)),
        incoming(&pair, limits(limit)),
    );
    let (wire, a, b) = Wire::new(case.cut);
    let begun = Instant::now();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), script(&pair.source))
        .unwrap();
    let result = out.wait(Some(LONG));
    let there = inc.wait(Some(LONG));
    let took = begun.elapsed();
    // Each side may wait for one limit, and the destination may begin its wait when the source
    // falls silent. Neither limit is exceeded by much.
    let most = match case.cut {
        Cut::Silent(..) => SHORT * 4 + MS * 3000,
        _ => UNUSED,
    };
    assert!(took < most, "{what}: took {took:?}: {result:?}, {there:?}");
    let log = wire.finish();
    let ran = pair.to.calls("run") > 0;
    assert_eq!(ran, there.is_ok(), "{what}: {there:?}");
    settled(&pair, &out, &result, &log, ran, case);
    let state = out.state();
    let mut sum = {
        pair.source.pause();
        let proved = match state {
            State::Completed => Proved::default(),
            _ => covered(&pair.source, Some(&pair.destination), &log, what),
        };
        if state == State::Unanswered {
            resolve(&pair, &out, ran, case);
        }
        let mut sum = sum.lock().unwrap();
        sum.proved.pending += proved.pending;
        sum.proved.there += proved.there;
        sum
    };
    let outcome = match (state, pair.from.calls("pause")) {
        (State::Failed, 0) => "failed, never paused".to_owned(),
        (State::Failed, _) => "failed, resumed".to_owned(),
        (state, _) => format!("{}, destination ran: {ran}", state.name()),
    };
    *sum.outcomes.entry(outcome).or_default() += 1;
    sum.cut_after.extend(log.cut_after);
    match out.state() {
        State::TakenBack => sum.resolved[0] += 1,
        State::GivenUp => sum.resolved[1] += 1,
        _ => {}
    }
    sum.longest = sum.longest.max(took);
    log
}

/// Runs all cases, several at a time. Panics with the names of those that failed.
pub fn all(cases: Vec<Case>, threads: usize) -> Sum {
    let sum = Mutex::new(Sum::default());
    let wrong = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loop {
                let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) else {
                    return;
                };
                let run = || drop(one(case, &sum));
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                    wrong.lock().unwrap().push(case.what.clone());
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {} cases went wrong: {wrong:#?}",
        wrong.len(),
        cases.len()
    );
    let sum = sum.into_inner().unwrap();
    println!(
        "{} cases, the longest {:?}: {:#?}; {} times taken back, {} times given up; {} pages \
         proved to be pending and {} to be there; cut after {:?}",
        cases.len(),
        sum.longest,
        sum.outcomes,
        sum.resolved[0],
        sum.resolved[1],
        sum.proved.pending,
        sum.proved.there,
        sum.cut_after
    );
    sum
}

/// The record types that an undisturbed migration of these tests does not send: ABORT, that of a
/// migration that is verified, those of a guest with devices, those of postcopy, and that of a hand-over.
/// `verify`, `devices`, `postcopy` and `hand_over` cut those.
pub const NEVER_SENT: [&str; 12] = [
    "ABORT",
    "DIGEST",
    "DEVICE",
    "DEVICE_LOADED",
    "DEVICE_NAMED",
    "MISSING",
    "MISSING_END",
    "REQUEST",
    "COMPLETE",
    "RECOVER",
    "RECOVER_REPLY",
    "BLOCK_FD",
];

/// The records of undisturbed migrations: the longest of a few.
pub fn undisturbed() -> Log {
    let mut longest = Log::default();
    for _ in 0..3 {
        let sum = Mutex::default();
        let log = one(&Case::new(0, Cut::Never), &sum);
        let sum = sum.into_inner().unwrap();
        assert_eq!(
            sum.outcomes.keys().collect::<Vec<_>>(),
            ["completed, destination ran: true"]
        );
        // Every other type.
        let all = RecordType::ALL.iter().map(|k| k.name());
        let missing: Vec<_> = all.filter(|name| !log.kinds.contains(name)).collect();
        assert_eq!(missing, NEVER_SENT);
        if log.records > longest.records {
            longest = log;
        }
    }
    let (records, bytes) = (longest.records, longest.bytes);
    println!("records each way {records:?}, bytes {bytes:?}");
    longest
}

/// A place counted from the beginning, and one counted from near the end.
pub fn early(way: Way, n: u64) -> Place {
    Place {
        way,
        tail: false,
        n,
    }
}

pub fn tail(way: Way, n: u64) -> Place {
    Place { way, tail: true, n }
}
