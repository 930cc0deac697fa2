//! The link is cut everywhere, and the peer is killed everywhere: a 16 MiB guest whose migration
//! holds every type of record, cut at each boundary between two records, at 200 bytes in between,
//! silenced without a word, and with the other process gone in each of its phases.
//!
//! After each of them: exactly the right side has the guest, it was over in time, and what the
//! tracker holds covers every page that was not acknowledged. The last is checked against what
//! the man in the middle saw, not against what brant says. `tests/migration` has the faults that are
//! not the network's.

mod support;

use brant::dirty::tracker::StartWith;
use brant::error::{Kind, Result};
use brant::memory::map::{SlotDescription, NO_SLOT};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{Blockers, Decider, Decision, Incoming, Outgoing, Params, Resolution};
use brant::migrate::{Source, Target};
use brant::units::{Bytes, PAGE_SIZE};
use brant::wire::{Header, Record, RecordType, HEADER_LEN, MARKER_FLAG_FINAL};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::guest::Guest;
use support::memory::{ram, rom, shared, Ram, Spec};
use support::pair::Pair;
use support::random::Random;
use support::time::LONG;
use support::vmm::{blob, TestVmm};
use vm_memory::GuestAddress;

const MS: Duration = Duration::from_millis(1);
/// Every limit of a migration whose link is cut: none of them may be needed.
const UNUSED: Duration = Duration::from_secs(8);
/// Every limit of one whose link falls silent: all of them may be.
const SHORT: Duration = Duration::from_millis(250);

// --- the man in the middle --------------------------------------------------------------------

/// A direction: 0 from the source, 1 from the destination.
type Way = usize;

/// So many records, or bytes, have gone this way since it began; or, because how many there are
/// of them is a little different each time, since its end came near: the source's final marker,
/// the destination's READY.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    way: Way,
    tail: bool,
    n: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Never,
    /// Both directions end as soon as so many records have gone through.
    After(Place),
    /// Both directions end when the record after those was sent, and does not get through.
    Before(Place),
    /// Both directions end as soon as the first record of this type has gone through.
    AfterFirst(RecordType),
    /// Both directions end as soon as so many bytes have gone through.
    Byte(Place),
    /// When so many records have, nothing gets through any more, either way, and nobody is told.
    Silent(Place),
}

/// What came by.
#[derive(Default)]
struct Log {
    records: [u64; 2],
    bytes: [u64; 2],
    /// Both of these when the end of the direction came near.
    tail: [Option<(u64, u64)>; 2],
    kinds: BTreeSet<&'static str>,
    /// Of each page the newest version: the number of the marker that comes after it.
    pages: HashMap<(u32, usize), u64>,
    markers: u64,
    /// The newest acknowledgement that was passed on.
    acked: u64,
    /// The source has said it: some of its bytes, at least.
    handover: bool,
    /// The record that was the last one to get through in the direction of the cut.
    cut_after: Option<&'static str>,
}

struct Wire {
    ends: [UnixStream; 2],
    threads: Vec<JoinHandle<()>>,
    log: Arc<Mutex<Log>>,
}

struct Middle {
    way: Way,
    cut: Cut,
    from: UnixStream,
    to: UnixStream,
    silent: Arc<AtomicBool>,
    log: Arc<Mutex<Log>>,
    last: &'static str,
}

impl Middle {
    fn end_both(&self) {
        self.log.lock().unwrap().cut_after = Some(self.last);
        let _ = self.from.shutdown(Shutdown::Both);
        let _ = self.to.shutdown(Shutdown::Both);
    }

    /// Whether this direction is `place.n` records (or bytes) from where `place` counts.
    fn is_at(&self, place: Place, log: &Log) -> bool {
        place.way == self.way && self.left(place, log) == Some((0, 0))
    }

    /// Records and bytes that are left to `place.n`; `None` before its beginning, and past it.
    fn left(&self, place: Place, log: &Log) -> Option<(u64, u64)> {
        let (records, bytes) = match place.tail {
            true => log.tail[self.way]?,
            false => (0, 0),
        };
        let end = |from: u64, now: u64| (from + place.n).checked_sub(now);
        match self.cut {
            Cut::Byte(_) => Some((0, end(bytes, log.bytes[self.way])?)),
            _ => Some((end(records, log.records[self.way])?, 0)),
        }
    }

    /// Whether the cut comes now, between two records; `read`: the next one was sent.
    fn at_boundary(&mut self, read: bool) -> bool {
        let log = self.log.lock().unwrap();
        let (here, silent) = match self.cut {
            Cut::After(place) => (self.is_at(place, &log), false),
            Cut::Before(place) => (read && self.is_at(place, &log), false),
            Cut::AfterFirst(kind) => (self.last == kind.name(), false),
            Cut::Silent(place) => (false, self.is_at(place, &log)),
            _ => (false, false),
        };
        drop(log);
        if here {
            self.end_both();
        }
        if silent && !self.silent.swap(true, Ordering::SeqCst) {
            self.log.lock().unwrap().cut_after = Some(self.last);
        }
        here
    }

    /// What is read counts as sent, whether or not it gets through.
    fn read(&mut self) -> Option<(Vec<u8>, RecordType)> {
        let mut bytes = vec![0u8; HEADER_LEN];
        self.from.read_exact(&mut bytes).ok()?;
        let header = Header::decode(bytes[..].try_into().unwrap()).unwrap();
        let kind = header.record_type().unwrap().expect("a type of our own");
        if kind == RecordType::Handover {
            self.log.lock().unwrap().handover = true;
        }
        if kind.is_page_run() {
            let mut log = self.log.lock().unwrap();
            let next = log.markers + 1;
            for page in 0..header.count as usize {
                log.pages
                    .insert((header.block, header.first_page as usize + page), next);
            }
        }
        bytes.resize(HEADER_LEN + header.payload as usize, 0);
        self.from.read_exact(&mut bytes[HEADER_LEN..]).ok()?;
        let mut log = self.log.lock().unwrap();
        log.kinds.insert(kind.name());
        let mut ends = kind == RecordType::Ready;
        if kind == RecordType::Marker {
            log.markers += 1;
            ends = bytes[HEADER_LEN + 12] & MARKER_FLAG_FINAL as u8 != 0;
        }
        if ends {
            log.tail[self.way] = Some((log.records[self.way], log.bytes[self.way]));
        }
        drop(log);
        Some((bytes, kind))
    }

    /// Passes a record on; whether there is to be another.
    fn write(&mut self, bytes: &[u8], kind: RecordType) -> bool {
        if self.silent.load(Ordering::SeqCst) {
            return true;
        }
        if let Cut::Byte(place) = self.cut {
            let left = self.left(place, &self.log.lock().unwrap());
            let left = left.filter(|_| place.way == self.way);
            if let Some((_, left)) = left.filter(|(_, left)| *left < bytes.len() as u64) {
                let _ = self.to.write_all(&bytes[..left as usize]);
                self.end_both();
                return false;
            }
        }
        if self.to.write_all(bytes).is_err() {
            return false;
        }
        self.last = kind.name();
        let mut log = self.log.lock().unwrap();
        log.records[self.way] += 1;
        log.bytes[self.way] += bytes.len() as u64;
        if kind == RecordType::Ack {
            log.acked = u64::from_le_bytes(bytes[HEADER_LEN..].try_into().unwrap());
        }
        true
    }

    fn run(mut self) {
        // Brant never says it, and takes it at any time: so it is said here, once each way.
        let mut keepalive = Vec::new();
        Record::Keepalive.encode(&mut keepalive).unwrap();
        let keepalive_after = [20, 4][self.way];
        let mut read = 0;
        loop {
            if self.at_boundary(false) {
                return;
            }
            let Some((bytes, kind)) = self.read() else {
                break;
            };
            if self.at_boundary(true) {
                return;
            }
            read += 1;
            if !self.write(&bytes, kind) {
                break;
            }
            if read == keepalive_after {
                if self.at_boundary(true) || !self.write(&keepalive, RecordType::Keepalive) {
                    return;
                }
                let name = RecordType::Keepalive.name();
                self.log.lock().unwrap().kinds.insert(name);
            }
        }
        if !self.silent.load(Ordering::SeqCst) {
            let _ = self.to.shutdown(Shutdown::Write);
            let _ = self.from.shutdown(Shutdown::Read);
        }
    }
}

impl Wire {
    /// And the ends for source and destination.
    fn new(cut: Cut) -> (Wire, OwnedFd, OwnedFd) {
        let (source, a) = UnixStream::pair().unwrap();
        let (b, destination) = UnixStream::pair().unwrap();
        let log: Arc<Mutex<Log>> = Arc::default();
        let silent: Arc<AtomicBool> = Arc::default();
        let way = |way, from: &UnixStream, to: &UnixStream| {
            let middle = Middle {
                way,
                cut,
                from: from.try_clone().unwrap(),
                to: to.try_clone().unwrap(),
                silent: Arc::clone(&silent),
                log: Arc::clone(&log),
                last: "nothing",
            };
            std::thread::spawn(move || middle.run())
        };
        let threads = vec![way(0, &a, &b), way(1, &b, &a)];
        let wire = Wire {
            ends: [a, b],
            threads,
            log,
        };
        (wire, source.into(), destination.into())
    }

    /// Once both sides are over: all that came by.
    fn finish(mut self) -> Log {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

// --- the guest --------------------------------------------------------------------------------

/// 16 MiB, most of it never touched.
fn specs() -> Vec<Spec> {
    vec![
        ram("ram", 2560),
        shared("shm", 1024),
        rom("rom", 8),
        ram("goes", 504),
    ]
}

/// The block that comes on the way.
fn late(seed: u64) -> Ram {
    let ram = Ram::new(&shared("comes", 64));
    let mut random = Random(seed);
    (0..64)
        .step_by(9)
        .for_each(|page| ram.fill(page, &mut random));
    ram
}

fn guests() -> (Arc<Guest>, Arc<Guest>) {
    let (source, destination) = (Guest::new(&specs()), Guest::new(&specs()));
    let mut random = Random(7);
    for (_, ram) in source.rams() {
        for stretch in (0..ram.spec.pages).step_by(512) {
            // Data at a stretch's beginning and end, and zeros that were written.
            for page in [3, 4, 20, 511] {
                if stretch + page < ram.spec.pages {
                    ram.fill(stretch + page, &mut random);
                }
            }
            for page in [5, 6] {
                ram.word((stretch + page) * 4096)
                    .store(0, Ordering::Relaxed);
            }
        }
    }
    // The destination's memory is garbage here and there.
    for (_, ram) in destination.rams() {
        for page in (0..ram.spec.pages).step_by(61) {
            ram.fill(page, &mut random);
        }
    }
    // Pages that the guest gave back, and never touched before.
    let slot = SlotDescription {
        slot: NO_SLOT,
        flags: 0,
        block: "ram".into(),
        offset: Bytes(0),
        length: Bytes(2560 * PAGE_SIZE),
        guest_address: GuestAddress(0),
    };
    source.memory.add_slot(&slot).unwrap();
    source.memory.set_must_tell_host(true);
    source
        .memory
        .mark_discarded(GuestAddress(40 * PAGE_SIZE), 4 * PAGE_SIZE);
    // Somebody used the tracker before and had seen nothing yet: it must get all of it back.
    source.track_with(StartWith::Everything);
    (source, destination)
}

struct Script<F>(F);

impl<F: FnMut(&Facts) -> Next + Send> Decider for Script<F> {
    fn decide(&mut self, facts: &Facts) -> Decision {
        (self.0)(facts).into()
    }
}

/// Three passes; between them pages change, a block comes, a block goes.
fn script(source: &Arc<Guest>) -> Box<dyn Decider> {
    let source = Arc::downgrade(source);
    Box::new(Script(move |facts: &Facts| {
        if facts.moment != Moment::Synced {
            return Next::GoOn;
        }
        let source = source.upgrade().unwrap();
        match facts.pass {
            1 => drop(source.add(late(1))),
            2 => source.remove("goes"),
            _ => return Next::SwitchOver { expected: MS },
        }
        for page in [3, 100, 511, 512, 1300] {
            let value = 3 + u64::from(facts.pass);
            source.poke("ram", page * 4096 + 8, value);
            source.poke("shm", (page % 1024) * 4096 + 8, value);
        }
        Next::GoOn
    }))
}

fn equip_source(vmm: &TestVmm) {
    *vmm.early.lock().unwrap() = vec![blob("cfg", 0, b"x"), blob("cfg", 1, &[7; 300])];
    *vmm.state.lock().unwrap() = vec![blob("cpu", 0, &[1; 700]), blob("net", 3, &[])];
}

/// `place` is where it ends by its own hand, if at all.
fn equip_destination(vmm: &TestVmm, place: Option<&str>) {
    let guest = Arc::downgrade(&vmm.guest);
    let dies = place == Some("receiving");
    vmm.at("receiving", move || {
        guest.upgrade().unwrap().add(late(2));
        if dies {
            die()?;
        }
        Ok(())
    });
}

fn limits(limit: Duration) -> Params {
    Params {
        connect_timeout: limit,
        io_timeout: limit,
        switchover_timeout: limit,
        // An answer that does not come is waited for, so long and a second.
        handover_timeout: MS * 1500,
        switchover_bandwidth: Some(1 << 30),
        ..Params::default()
    }
}

fn outgoing(pair: &Pair, params: Params) -> Arc<Outgoing> {
    let vmm = Arc::clone(&pair.from);
    pair.source.outgoing(&Blockers::new(), vmm, &params)
}

fn incoming(pair: &Pair, params: Params) -> Incoming {
    let memory = Arc::clone(&pair.destination.memory);
    Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap()
}

// --- what must be true afterwards -------------------------------------------------------------

/// How many pages were proved to be pending, and how many to be there.
#[derive(Default, Clone, Copy)]
struct Proved {
    pending: usize,
    there: usize,
}

/// Every page is pending at the source; or its newest version was sent, a marker after that
/// acknowledged, the acknowledgement passed on to the source, and the destination (if there is
/// one left to look at) has just that in its memory. The source's guest stands still.
fn covered(source: &Guest, destination: Option<&Guest>, log: &Log, what: &str) -> Proved {
    let pending = source.pending();
    let mut proved = Proved::default();
    let theirs = destination.map(Guest::rams);
    for (id, ram) in source.rams() {
        let name = ram.spec.name.to_owned();
        let other = theirs
            .as_ref()
            .map(|t| t.iter().find(|(_, r)| r.spec.name == name).map(|(_, r)| r));
        for page in 0..ram.spec.pages {
            if pending.contains(&(name.clone(), page)) {
                proved.pending += 1;
                continue;
            }
            let sent = log.pages.get(&(id.0, page));
            assert!(
                sent.is_some_and(|marker| *marker <= log.acked),
                "{what}: `{name}` page {page} is lost: not pending, and sent before marker \
                 {sent:?} while {} is acknowledged",
                log.acked
            );
            if let Some(other) = other {
                let same = other.is_some_and(|o| o.page(page) == ram.page(page));
                assert!(
                    same,
                    "{what}: `{name}` page {page} is lost: not pending, acknowledged, and not \
                     the same at the destination"
                );
            }
            proved.there += 1;
        }
    }
    proved
}

/// The source is over, one way or the other; `ran`: the destination has taken the guest.
fn settled(pair: &Pair, out: &Outgoing, result: &Result<()>, log: &Log, ran: bool, case: &Case) {
    let what = case.what.as_str();
    pair.assert_sound(what);
    let kind = result.as_ref().err().map(|e| e.kind());
    match out.state() {
        State::Completed => {
            assert!(log.handover && ran, "{what}");
            assert_eq!(pair.from.calls("resume"), 0, "{what}");
            assert!(!pair.source.is_running(), "{what}");
        }
        State::Failed => {
            assert!(
                !log.handover,
                "{what}: taken back after the hand-over: {result:?}"
            );
            let expected: &[Kind] = match case.cut {
                Cut::Silent(..) => &[Kind::Timeout],
                _ => &[Kind::PeerGone, Kind::Io],
            };
            assert!(
                expected.contains(&kind.unwrap()),
                "{what}: {kind:?} {result:?}"
            );
            pair.assert_runs_on(what);
            pair.source.wait_goes_on(pair.source.counter());
            assert!(out.resolve(Resolution::Resume).is_err(), "{what}");
        }
        State::Unanswered => {
            assert_eq!(kind, Some(Kind::Unanswered), "{what}");
            assert_eq!(pair.from.calls("resume"), 0, "{what}: never by itself");
            assert!(!pair.source.is_running(), "{what}");
            assert!(out.cancel().is_err(), "{what}: too late to cancel");
        }
        other => panic!("{what}: ended in {other:?}: {result:?}"),
    }
}

fn resolve(pair: &Pair, out: &Outgoing, ran: bool, case: &Case) {
    let what = case.what.as_str();
    let resume = !ran && case.number.is_multiple_of(2);
    let (first, then) = match resume {
        true => (Resolution::Resume, State::TakenBack),
        false => (Resolution::Destroy, State::GivenUp),
    };
    out.resolve(first).unwrap();
    assert_eq!(out.state(), then, "{what}");
    assert_eq!(out.resolve(first).unwrap_err().kind(), Kind::State);
    assert_eq!(pair.source.is_running(), resume, "{what}");
    if resume {
        pair.source.wait_goes_on(pair.source.counter());
    }
    pair.assert_sound(what);
}

// --- cutting ----------------------------------------------------------------------------------

struct Case {
    what: String,
    number: usize,
    cut: Cut,
}

impl Case {
    fn new(number: usize, cut: Cut) -> Case {
        Case {
            what: format!("{cut:?}"),
            number,
            cut,
        }
    }
}

/// What came of all cases.
#[derive(Default)]
struct Sum {
    outcomes: BTreeMap<String, usize>,
    cut_after: BTreeSet<&'static str>,
    proved: Proved,
    resolved: [usize; 2],
    longest: Duration,
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
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), script(&pair.source))
        .unwrap();
    let result = out.wait(Some(LONG));
    let there = inc.wait(Some(LONG));
    let took = begun.elapsed();
    // A limit may be waited for once on each side, and the source's silence be what the
    // destination waits for next. Neither is ever exceeded by much.
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

/// Runs all cases, several at a time; panics with the names of those that went wrong.
fn all(cases: Vec<Case>, threads: usize) -> Sum {
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

/// What came by in migrations that nobody disturbs: the longest of a few.
fn undisturbed() -> Log {
    let mut longest = Log::default();
    for _ in 0..3 {
        let sum = Mutex::default();
        let log = one(&Case::new(0, Cut::Never), &sum);
        let sum = sum.into_inner().unwrap();
        assert_eq!(
            sum.outcomes.keys().collect::<Vec<_>>(),
            ["completed, destination ran: true"]
        );
        // Every type but the one that says that it is over.
        let all = RecordType::ALL.iter().map(|k| k.name());
        let missing: Vec<_> = all.filter(|name| !log.kinds.contains(name)).collect();
        assert_eq!(missing, ["ABORT"]);
        if log.records > longest.records {
            longest = log;
        }
    }
    let (records, bytes) = (longest.records, longest.bytes);
    println!("records each way {records:?}, bytes {bytes:?}");
    longest
}

impl Log {
    /// Records and bytes that are left when the end comes near.
    fn tail(&self, way: Way) -> (u64, u64) {
        let (records, bytes) = self.tail[way].unwrap();
        (self.records[way] - records, self.bytes[way] - bytes)
    }
}

/// A place counted from the beginning, and one from where the end comes near.
fn early(way: Way, n: u64) -> Place {
    Place {
        way,
        tail: false,
        n,
    }
}

fn tail(way: Way, n: u64) -> Place {
    Place { way, tail: true, n }
}

#[test]
fn a_link_cut_at_any_boundary_between_records_loses_no_page_and_no_guest() {
    let log = undisturbed();
    assert!((60..400).contains(&log.records[0]), "{:?}", log.records);
    let mut cases = Vec::new();
    let mut add = |cut| cases.push(Case::new(cases.len(), cut));
    for way in 0..2 {
        for n in 0..=log.records[way] {
            add(Cut::After(early(way, n)));
            add(Cut::Before(early(way, n)));
        }
        // Where the guest changes hands: often enough for both resolutions.
        for n in 0..=log.tail(way).0 {
            for cut in [Cut::After(tail(way, n)), Cut::Before(tail(way, n))] {
                add(cut);
                add(cut);
            }
        }
    }
    // How many there are of the others is a little different each time, so counting alone
    // may pass over a type that comes once.
    for kind in RecordType::ALL {
        if *kind != RecordType::Abort {
            add(Cut::AfterFirst(*kind));
        }
    }
    let sum = all(cases, 4);
    for kind in RecordType::ALL {
        let never = *kind == RecordType::Abort;
        assert!(
            never || sum.cut_after.contains(kind.name()),
            "never cut after {}",
            kind.name()
        );
    }
    assert!(sum.proved.pending > 100_000 && sum.proved.there > 10_000);
    assert!(sum.resolved.iter().all(|n| *n > 0), "{:?}", sum.resolved);
}

#[test]
fn a_link_cut_at_any_byte_loses_no_page_and_no_guest() {
    let log = undisturbed();
    let seed = std::env::var("BRANT_SEED").ok();
    let seed = seed.map_or(0x5eed_c075, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    let mut random = Random(seed);
    let mut cases = Vec::new();
    for n in 0..200 {
        // The pages are most of the bytes: a third of the cuts goes to where the guest changes
        // hands, and a fifth to the destination's few words.
        let mut below = |n: u64| random.next() % n;
        let place = match n % 15 {
            0..=1 => early(1, below(log.bytes[1])),
            2 => tail(1, below(log.tail(1).1)),
            3..=7 => tail(0, below(log.tail(0).1)),
            _ => early(0, below(log.bytes[0])),
        };
        cases.push(Case::new(n, Cut::Byte(place)));
    }
    // Within HANDOVER, the last 48 bytes of the source's: both resolutions at each place.
    for back in [1, 8, 16, 17, 32, 48] {
        for _ in 0..2 {
            let place = tail(0, log.tail(0).1 - back);
            cases.push(Case::new(cases.len(), Cut::Byte(place)));
        }
    }
    let sum = all(cases, 4);
    assert!(sum.proved.pending > 100_000 && sum.proved.there > 10_000);
    assert!(sum.resolved.iter().all(|n| *n >= 6), "{:?}", sum.resolved);
}

#[test]
fn a_link_that_falls_silent_anywhere_ends_within_the_limits_and_loses_no_page() {
    let log = undisturbed();
    let mut random = Random(0x51_1e_47);
    let mut cases = Vec::new();
    let mut add = |place| cases.push(Case::new(cases.len(), Cut::Silent(place)));
    for way in 0..2 {
        (0..log.records[way].min(16)).for_each(|n| add(early(way, n)));
        (0..=log.tail(way).0).for_each(|n| add(tail(way, n)));
    }
    for _ in 0..16 {
        add(early(0, random.next() % log.records[0]));
    }
    all(cases, 8);
}

// --- killing ----------------------------------------------------------------------------------

/// No word, no destructor, no flush.
fn die() -> Result<()> {
    // SAFETY: a signal to this very process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("killed");
}

const ROLE: &str = "BRANT_TEST_ROLE";
const PLACE: &str = "BRANT_TEST_DIES_AT";

/// Runs one side in a process of its own, over this connection, to die at `place`.
fn spawn(role: &str, place: &str, connection: OwnedFd) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process"])
        .env(ROLE, role)
        .env(PLACE, place)
        .stdin(Stdio::from(connection))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test but the process that the tests below start: one side of a migration on its
/// standard input.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let place = std::env::var(PLACE).unwrap();
    let connection = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (source, destination) = guests();
    let pair = Pair::of(source, destination);
    if role == "source" {
        equip_source(&pair.from);
        pair.source.writer_within("ram", 1030..1042, MS / 4);
        pair.from.at(&place, die);
        let out = outgoing(&pair, limits(UNUSED));
        out.start_with(Target::Connected(connection), script(&pair.source))
            .unwrap();
        out.wait(Some(LONG)).unwrap();
    } else {
        // Nothing here to compare with: the source is elsewhere.
        let alone = Pair::of(Guest::new(&[]), Arc::clone(&pair.destination));
        equip_destination(&alone.to, Some(&place));
        if place != "receiving" {
            alone.to.at(&place, die);
        }
        let inc = incoming(&alone, limits(UNUSED));
        inc.start(Source::Connected(connection)).unwrap();
        inc.wait(Some(LONG)).unwrap();
    }
}

fn reap(mut child: Child, what: &str) {
    let status = child.wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(libc::SIGKILL),
        "{what}: it never came there: {status}"
    );
}

#[test]
fn a_destination_killed_in_any_phase_leaves_the_guest_where_it_belongs() {
    // Where it dies, and whether the guest was handed over by then: no, yes, perhaps.
    let places = [
        ("listening", Some(false)),
        ("negotiating", Some(false)),
        ("early_load", Some(false)),
        ("receiving", Some(false)),
        ("loading", Some(false)),
        ("load", Some(false)),
        ("loaded", Some(false)),
        ("ready", Some(false)),
        ("awaiting the hand-over", None),
        ("committing", Some(true)),
        ("starting", Some(true)),
        ("run", Some(true)),
        ("running", Some(true)),
    ];
    for (number, (place, handed_over)) in places.into_iter().cycle().take(26).enumerate() {
        let case = Case {
            what: format!("the destination dies at `{place}`"),
            // Both resolutions at each place.
            number: number + usize::from(number >= places.len()) * (1 - places.len() % 2),
            cut: Cut::Never,
        };
        let what = case.what.as_str();
        let (source, destination) = guests();
        let pair = Pair::of(source, destination);
        equip_source(&pair.from);
        pair.source.writer_within("ram", 1030..1042, MS / 4);
        let out = outgoing(&pair, limits(UNUSED));
        let (wire, a, b) = Wire::new(Cut::Never);
        let child = spawn("destination", place, b);
        let begun = Instant::now();
        out.start_with(Target::Connected(a), script(&pair.source))
            .unwrap();
        let result = out.wait(Some(LONG));
        let took = begun.elapsed();
        assert!(took < UNUSED, "{what}: {took:?}");
        reap(child, what);
        let log = wire.finish();
        let ran = matches!(place, "run" | "running");
        settled(&pair, &out, &result, &log, ran, &case);
        let unanswered = out.state() == State::Unanswered;
        assert!(
            unanswered || out.state() == State::Failed,
            "{what}: {result:?}"
        );
        if let Some(handed_over) = handed_over {
            assert_eq!(unanswered, handed_over, "{what}: {result:?}");
        }
        pair.source.pause();
        covered(&pair.source, None, &log, what);
        if unanswered {
            resolve(&pair, &out, ran, &case);
        }
    }
}

#[test]
fn a_source_killed_in_any_phase_never_leaves_a_destination_running_that_was_not_told_to() {
    let places = [
        ("connecting", false),
        ("negotiating", false),
        ("early_save", false),
        ("copying", false),
        ("pausing", false),
        ("pause", false),
        ("saving", false),
        ("save", false),
        ("last sync", false),
        ("sending the last pages", false),
        ("awaiting ready", false),
        ("releasing", false),
        ("release", false),
        ("committing", false),
        ("handing over", false),
        ("awaiting running", true),
        ("completed", true),
    ];
    for (place, runs) in places {
        let what = format!("the source dies at `{place}`");
        let pair = Pair::of(Guest::new(&[]), Guest::new(&specs()));
        equip_destination(&pair.to, None);
        let inc = incoming(&pair, limits(UNUSED));
        let (wire, a, b) = Wire::new(Cut::Never);
        let begun = Instant::now();
        inc.start(Source::Connected(b)).unwrap();
        let child = spawn("source", place, a);
        let result = inc.wait(Some(LONG));
        let took = begun.elapsed();
        assert!(took < UNUSED, "{what}: {took:?}");
        reap(child, &what);
        let log = wire.finish();
        assert_eq!(log.handover, runs, "{what}");
        assert_eq!(pair.to.calls("run"), usize::from(runs), "{what}");
        assert_eq!(pair.destination.is_running(), runs, "{what}");
        match result {
            Ok(()) => assert!(runs, "{what}"),
            Err(e) => {
                assert!(!runs, "{what}: {e}");
                assert!(
                    matches!(e.kind(), Kind::PeerGone | Kind::Io),
                    "{what}: {:?} {e}",
                    e.kind()
                );
            }
        }
    }
}
