//! How long a thread at the destination waits for a page that is missing, beside a bare round trip
//! over the same kind of connection whose answer is a page that is then copied.
//!
//! On the idle link nothing else is sent: the cap on bandwidth, which holds for all lanes but the
//! urgent one, is next to nothing. One case has memory of huge pages, each of which is a fault. On the
//! paced link all lanes send the rest meanwhile, either as fast as the link takes it, so that a page
//! queues behind its buffer, or capped below the link's rate.

use crate::kinds::{HugePool, Made};
use crate::link::{Link, Way};
use crate::memory::{Idle, Ram, Random, PAGE};
use crate::report::{Report, Runs};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, DestinationState, Incoming, Outgoing, Params, SourceState,
};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A huge page of the processor's.
const HUGE: usize = 2 << 20;
const FAMILY: &str = "postcopy.fault_";
const RUNS: usize = 5;
/// A touch that takes less met a page that had come already.
const NO_FAULT: Duration = Duration::from_micros(3);
/// Bytes of a request and of an answer's head.
const SMALL: usize = 40;
/// Bytes a second of the paced link, and what it holds.
const RATE: u64 = 100_000_000;
const BUFFER: usize = 256 << 10;
const LONG: Duration = Duration::from_secs(120);

/// One kind of link.
struct Case {
    name: &'static str,
    /// Bytes a second of all lanes but the urgent one.
    cap: Option<u64>,
    channels: u32,
    faults: usize,
    length: usize,
    paced: bool,
    /// Bytes of a page of the guest's memory.
    page: usize,
}

const CASES: [Case; 4] = [
    Case {
        name: "",
        cap: Some(1 << 20),
        channels: 1,
        faults: 2000,
        length: 128 << 20,
        paced: false,
        page: PAGE,
    },
    Case {
        name: "/2MiB",
        cap: Some(1 << 20),
        channels: 1,
        faults: 48,
        length: 128 << 20,
        paced: false,
        page: HUGE,
    },
    Case {
        name: "/bulk",
        cap: None,
        channels: 4,
        faults: 400,
        length: 512 << 20,
        paced: true,
        page: PAGE,
    },
    Case {
        name: "/bulk_capped",
        cap: Some(RATE / 10 * 8),
        channels: 4,
        faults: 400,
        length: 512 << 20,
        paced: true,
        page: PAGE,
    },
];

/// Connected sockets, by side, and what carries them.
fn connections(case: &Case, count: usize) -> (Vec<OwnedFd>, Vec<OwnedFd>, Option<Link>) {
    if case.paced {
        let way = Way {
            rate: Some(RATE),
            delay: Duration::from_millis(1),
            buffer: BUFFER,
        };
        let link = Link::new(way, way);
        let (near, far) = link.connect_all(count);
        return (near, far, Some(link));
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let pairs = (0..count).map(|_| {
        let near = TcpStream::connect(at).unwrap();
        let far = listener.accept().unwrap().0;
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        (near.into(), far.into())
    });
    let (near, far) = pairs.unzip();
    (near, far, None)
}

/// The median and the 99th percentile, in microseconds.
fn percentiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    [at(50), at(99)]
}

/// Private memory in pages of so many bytes.
fn made(page: usize) -> Made {
    match page > PAGE {
        true => Made::Huge,
        false => Made::Anonymous,
    }
}

/// Waits of a thread that touches missing pages.
fn waits(case: &Case, source: &Ram, seed: u64) -> [f64; 2] {
    let there = Ram::of(made(case.page), source.length());
    let params = Params {
        postcopy: true,
        channels: case.channels,
        // Nothing but the switch is wanted before it.
        max_bandwidth: Some(1 << 20),
        switchover_max_bandwidth: Some(1 << 20),
        switchover_bandwidth: Some(1 << 30),
        downtime_slack: LONG,
        ..Params::default()
    };
    let (near, far, link) = connections(case, case.channels as usize + 1);
    let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
    let inc = Incoming::new(Arc::clone(&there.memory), Arc::new(Idle), params.clone()).unwrap();
    let out = Outgoing::new(tracker, Blockers::new(), Arc::new(Idle), params).unwrap();
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start(ConnectTo::ConnectedAll(near)).unwrap();
    out.start_postcopy().unwrap();
    while inc.state() != DestinationState::Completing || out.state() != SourceState::Serving {
        assert!(!out.state().is_over(), "{:?}", out.wait(None));
        std::thread::sleep(Duration::from_millis(1));
    }
    out.set_max_bandwidth(case.cap).unwrap();
    // The lanes are at work when the first page is touched.
    std::thread::sleep(Duration::from_millis(50));
    let mut times = Vec::new();
    let step = case.page / PAGE;
    for number in Random(seed).shuffled(there.pages() / step) {
        let page = number * step;
        if times.len() == case.faults || inc.state() != DestinationState::Completing {
            break;
        }
        let begun = Instant::now();
        let found = there.read(page);
        let waited = begun.elapsed();
        assert_eq!(found, source.read(page));
        if waited > NO_FAULT {
            times.push(waited);
        }
    }
    assert!(times.len() >= case.faults / 4, "{}", times.len());
    out.set_max_bandwidth(None).unwrap();
    if let Some(link) = &link {
        link.set(Way::OPEN, Way::OPEN);
    }
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    drop((out, inc));
    source.memory.reclaim().unwrap();
    percentiles(times)
}

/// Round trips over an idle connection of the case's kind: a small request, a page as the answer, and
/// the page copied to memory that was not touched.
fn round_trips(case: &Case) -> [f64; 2] {
    let (near, far, _link) = connections(case, 1);
    let [mut near, mut far] = [near, far].map(|mut end| File::from(end.remove(0)));
    let length = case.page;
    let to = Ram::of(made(length), case.faults * length);
    let count = case.faults;
    let answers = std::thread::spawn(move || {
        let (mut request, answer) = ([0; SMALL], vec![7; SMALL + length]);
        for _ in 0..count {
            near.read_exact(&mut request).unwrap();
            near.write_all(&answer).unwrap();
        }
    });
    let (request, mut answer) = ([1; SMALL], vec![0; SMALL + length]);
    let times = (0..count).map(|page| {
        let begun = Instant::now();
        far.write_all(&request).unwrap();
        far.read_exact(&mut answer).unwrap();
        // SAFETY: a page of our own mapping, and a page of the answer.
        unsafe {
            let into = to.host().add(page * length);
            into.copy_from_nonoverlapping(answer.as_ptr().add(SMALL), length);
        }
        begun.elapsed()
    });
    let times = times.collect();
    answers.join().unwrap();
    percentiles(times)
}

/// The figures of faults.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    for case in &CASES {
        let names = ["p50", "p99"].map(|which| format!("{FAMILY}{which}{}", case.name));
        if !names.iter().any(|name| report.wants(name)) {
            continue;
        }
        let pool = (case.page > PAGE).then(|| HugePool::new(3 * case.length / HUGE));
        if matches!(pool, Some(None)) {
            report.skipped(&names[1], "huge pages cannot be reserved");
            continue;
        }
        let source = Ram::of(made(case.page), case.length);
        (0..source.pages()).for_each(|page| source.fill(page));
        let mut all: [[Runs; 2]; 2] = Default::default();
        for turn in 0..=RUNS {
            let figures = [waits(case, &source, turn as u64 + 1), round_trips(case)];
            if turn > 0 {
                for (runs, figures) in all.iter_mut().zip(figures) {
                    runs.iter_mut()
                        .zip(figures)
                        .for_each(|(runs, it)| runs.push(it));
                }
            }
        }
        let [ours, theirs] = &all;
        let peer = "round trip and page";
        for (which, name) in names.iter().enumerate() {
            report.compared(name, "us", &ours[which], peer, &theirs[which]);
        }
    }
}
