//! Whole migrations of guests that give memory back and hint at free pages while they move: what
//! they use is never lost, what they gave back reads as zero at the destination, costs no memory
//! there, and is given back there too.

mod support;

use brant::error::{Kind, Result};
use brant::memory::contents::Contents;
use brant::memory::host;
use brant::memory::{Block, Memory, SlotDescription, NO_SLOT};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{Blockers, Decider, Decision, Incoming, Outgoing, Params, Source, Target};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::{Event, EventKind, Vmm};
use brant::wire::{self, Header, Record, RecordType};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::Duration;
use support::guest::{differences, Guest};
use support::memory::{ram, shared, Spec};
use support::peer::Raw;
use support::random::Random;
use support::time::LONG;
use vm_memory::GuestAddress;

const MS: Duration = Duration::from_millis(1);
const PAGE: usize = PAGE_SIZE as usize;
/// Between the guest addresses of two blocks.
const APART: u64 = 1 << 32;

fn quick() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        ..Params::default()
    }
}

fn socketpair() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

/// A guest with its blocks at guest addresses.
fn guest(specs: &[Spec]) -> Arc<Guest> {
    let guest = Guest::new(specs);
    for (n, spec) in specs.iter().enumerate() {
        guest
            .memory
            .add_slot(&SlotDescription {
                slot: NO_SLOT,
                flags: 0,
                block: spec.name.into(),
                offset: Bytes(0),
                length: Bytes((spec.pages * PAGE) as u64),
                guest_address: GuestAddress(n as u64 * APART),
            })
            .unwrap();
    }
    guest
}

fn block(memory: &Memory, n: usize) -> Arc<Block> {
    Arc::clone(&memory.map().blocks()[n])
}

fn address(n: usize, page: usize) -> GuestAddress {
    GuestAddress(n as u64 * APART + (page * PAGE) as u64)
}

/// The pages that cost memory.
fn touched(memory: &Memory, n: usize) -> BTreeSet<usize> {
    let block = block(memory, n);
    let mut contents = Contents::new();
    let mut pages = BTreeSet::new();
    contents
        .touched(&block, Pages(0)..block.pages(), |r| {
            pages.extend(r.start.index()..r.end.index());
        })
        .unwrap();
    pages
}

type Place = (usize, usize);
type Hook = Box<dyn FnMut(&Event) + Send>;

/// What the guest knows of its memory.
#[derive(Default)]
struct Knows {
    /// Pages in the balloon.
    balloon: BTreeSet<Place>,
    /// Pages that are free: nobody cares what they hold, until they are written.
    free: BTreeSet<Place>,
    /// Pages on their way to the VMM as hints, with the round that asked for them.
    hints: Vec<(u64, Place, usize)>,
}

/// A guest that works, and the VMM's balloon device.
struct Machine {
    guest: Arc<Guest>,
    knows: Mutex<Knows>,
    round: AtomicU64,
    running: RwLock<bool>,
    stop: AtomicBool,
    /// Does something at each event.
    event: Mutex<Option<Hook>>,
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        *self.running.write().unwrap() = false;
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        *self.running.write().unwrap() = true;
        Ok(())
    }
    fn loaded(&self) -> Result<()> {
        // What the balloon's state says.
        self.guest.memory.set_must_tell_host(true);
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.resume()
    }
    fn event(&self, event: &Event) {
        if let Some(each) = &mut *self.event.lock().unwrap() {
            each(event);
        }
    }
}

impl Machine {
    fn new(specs: &[Spec]) -> Arc<Machine> {
        Arc::new(Machine {
            guest: guest(specs),
            knows: Mutex::default(),
            round: AtomicU64::new(0),
            running: RwLock::new(true),
            stop: AtomicBool::new(false),
            event: Mutex::default(),
        })
    }

    fn give(&self, knows: &mut Knows, n: usize, first: usize, count: usize) {
        let block = block(&self.guest.memory, n);
        let range = Pages(first as u64)..Pages((first + count) as u64);
        // Discarded first or last, as VMMs do.
        if first.is_multiple_of(2) {
            host::discard(&mut Contents::new(), &block, range.clone()).unwrap();
        }
        let length = (count * PAGE) as u64;
        self.guest.memory.mark_discarded(address(n, first), length);
        if first % 2 == 1 {
            host::discard(&mut Contents::new(), &block, range).unwrap();
        }
        for page in first..first + count {
            knows.balloon.insert((n, page));
            knows.free.remove(&(n, page));
        }
    }

    fn write(&self, knows: &mut Knows, random: &mut Random, n: usize, page: usize) {
        let (id, ram) = self.guest.rams()[n].clone();
        knows.free.remove(&(n, page));
        let offset = page * PAGE + random.below(512) * 8;
        ram.word(offset).store(random.next(), Ordering::Relaxed);
        self.guest.tracker.mark_block(id, Bytes(offset as u64), 8);
    }

    fn work(&self, seed: u64, hints: bool) {
        let mut random = Random(seed);
        let blocks = self.guest.rams().len();
        while !self.stop.load(Ordering::SeqCst) {
            let running = self.running.read().unwrap();
            if !*running {
                drop(running);
                std::thread::yield_now();
                continue;
            }
            let n = random.below(blocks);
            let pages = self.guest.rams()[n].1.spec.pages;
            let first = random.below(pages);
            let count = (1 + random.below(40)).min(pages - first);
            let mut knows = self.knows.lock().unwrap();
            let all = |set: &BTreeSet<Place>| {
                let set = set.range((n, first)..(n, first + count)).count();
                (set == count, set == 0)
            };
            match random.below(if hints { 20 } else { 6 }) {
                0..=2 => {
                    if !knows.balloon.contains(&(n, first)) {
                        self.write(&mut knows, &mut random, n, first);
                    }
                }
                3 => {
                    if all(&knows.balloon).1 {
                        self.give(&mut knows, n, first, count);
                    }
                }
                4 => {
                    // Back again, with the VMM's leave, and used at once or later.
                    for page in first..first + count {
                        if knows.balloon.remove(&(n, page)) {
                            self.guest.memory.mark_taken(address(n, page), PAGE_SIZE);
                            if random.below(2) == 0 {
                                self.write(&mut knows, &mut random, n, page);
                            }
                        }
                    }
                }
                5 => std::thread::yield_now(),
                6 => {
                    // Some hints of the last round are still on their way.
                    if let Ok(round) = self.guest.tracker.hint_begin() {
                        self.round.store(round, Ordering::SeqCst);
                        knows.hints.truncate(3);
                    }
                }
                7..=13 => {
                    let round = self.round.load(Ordering::SeqCst);
                    if round != 0 && all(&knows.balloon).1 {
                        knows.hints.push((round, (n, first), count));
                        // From here on nobody cares what they hold.
                        knows.free.extend((first..first + count).map(|p| (n, p)));
                    }
                }
                _ => {
                    let waiting = knows.hints.len();
                    if waiting > 0 {
                        let (round, (n, page), count) =
                            knows.hints.swap_remove(random.below(waiting));
                        let length = (count * PAGE) as u64;
                        // It may be over by now: then nothing happens.
                        let _ = self
                            .guest
                            .tracker
                            .hint_free(round, address(n, page), length);
                    }
                }
            }
        }
    }

    fn outgoing(self: &Arc<Self>, params: &Params) -> Arc<Outgoing> {
        self.guest.outgoing(&Blockers::new(), self.clone(), params)
    }

    fn incoming(self: &Arc<Self>, params: &Params) -> Incoming {
        let memory = Arc::clone(&self.guest.memory);
        Incoming::new(memory, self.clone(), params.clone()).unwrap()
    }
}

/// Goes on until it is told to switch over.
struct Told(Arc<AtomicBool>);

impl Decider for Told {
    fn decide(&mut self, facts: &Facts) -> Decision {
        if facts.moment == Moment::Synced && self.0.load(Ordering::SeqCst) {
            Next::SwitchOver { expected: MS }.into()
        } else {
            Next::GoOn.into()
        }
    }
}

/// What must be true of a destination whose guest has not been written since it arrived.
fn assert_arrived(source: &Machine, destination: &Machine, what: &str) {
    let knows = source.knows.lock().unwrap();
    let (theirs, ours) = (source.guest.rams(), destination.guest.rams());
    for n in 0..theirs.len() {
        // Before anybody looks: reading fills the holes of a memfd.
        let resident = touched(&destination.guest.memory, n);
        let pages = theirs[n].1.spec.pages;
        for page in 0..pages {
            let place = (n, page);
            let returned = destination
                .guest
                .memory
                .discarded_pages(address(n, page), PAGE_SIZE);
            let has = ours[n].1.page(page);
            if knows.balloon.contains(&place) {
                assert!(!resident.contains(&page), "{what}: {place:?} costs memory");
                assert!(has.iter().all(|b| *b == 0), "{what}: {place:?} is not zero");
                assert_eq!(returned, 1, "{what}: {place:?} is not known as given back");
                continue;
            }
            assert_eq!(returned, 0, "{what}: {place:?} is in use");
            let zero = has.iter().all(|b| *b == 0);
            let fine = has == theirs[n].1.page(page) || (zero && knows.free.contains(&place));
            assert!(fine, "{what}: {place:?} is lost");
        }
    }
}

fn specs() -> [Spec; 2] {
    [ram("ram", 3000), shared("shm", 1500)]
}

fn busy(seed: u64, hints: bool) -> (Arc<Machine>, Vec<std::thread::JoinHandle<()>>) {
    let machine = Machine::new(&specs());
    machine.guest.memory.set_must_tell_host(true);
    machine.guest.fill(seed);
    {
        let mut knows = machine.knows.lock().unwrap();
        // Long before anybody thinks of migrating.
        machine.give(&mut knows, 0, 500, 1000);
        machine.give(&mut knows, 1, 1, 512);
    }
    let threads = (0..2)
        .map(|n| {
            let machine = Arc::clone(&machine);
            std::thread::spawn(move || machine.work(seed * 10 + n, hints))
        })
        .collect();
    (machine, threads)
}

fn end(machine: &Machine, threads: Vec<std::thread::JoinHandle<()>>) {
    machine.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Migrates `from` to a new machine, after some passes.
fn moves(from: &Arc<Machine>, params: &Params) -> (Arc<Machine>, Arc<Outgoing>, Incoming) {
    let to = Machine::new(&specs());
    // It is not as clean as it could be.
    to.guest.fill(77);
    let told = Arc::new(AtomicBool::new(false));
    let passes = AtomicU64::new(0);
    let tell = Arc::clone(&told);
    *from.event.lock().unwrap() = Some(Box::new(move |event| {
        if event.kind == EventKind::Pass && passes.fetch_add(1, Ordering::SeqCst) == 4 {
            tell.store(true, Ordering::SeqCst);
        }
    }));
    // Slow enough for passes in which something can happen.
    let params = Params {
        max_bandwidth: Some(256 << 20),
        ..params.clone()
    };
    let (out, inc) = (from.outgoing(&params), to.incoming(&quick()));
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(Target::Connected(a), Box::new(Told(told)))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    *from.event.lock().unwrap() = None;
    (to, out, inc)
}

#[test]
fn a_guest_that_gives_back_takes_back_and_hints_while_it_moves_arrives_whole() {
    let (mut skipped, mut hinted, mut again) = (0, 0, 0);
    for seed in 1..=6 {
        let what = format!("seed {seed}");
        let (from, threads) = busy(seed, seed % 3 != 0);
        let (to, out, inc) = moves(&from, &quick());
        // The source's guest stands still from here on; so does the destination's.
        assert_arrived(&from, &to, &what);
        let (sent, got) = (out.stats(), inc.stats());
        assert_eq!(sent.skipped_pages, got.skipped_pages, "{what}");
        assert_eq!(sent.zero_pages, got.zero_pages, "{what}");
        assert!(sent.zero_pages >= sent.skipped_pages, "{what}");
        skipped += sent.skipped_pages;
        hinted += sent.hinted_pages;
        end(&from, threads);
        // And on from there: what was given back is skipped again, at once.
        {
            let mut theirs = to.knows.lock().unwrap();
            let knows = from.knows.lock().unwrap();
            theirs.balloon.clone_from(&knows.balloon);
            theirs.free.clone_from(&knows.free);
        }
        let (third, out, _inc) = moves(&to, &quick());
        assert_arrived(&to, &third, &format!("{what}, a second time"));
        assert!(out.stats().skipped_pages as usize >= to.knows.lock().unwrap().balloon.len());
        again += out.stats().skipped_pages;
    }
    assert!(skipped > 6 * 1500, "{skipped} pages skipped");
    assert!(hinted > 0, "no hint was ever used");
    assert!(again > 0);
}

#[test]
fn a_migration_that_is_cancelled_loses_nothing_of_what_comes_and_goes() {
    for seed in 1..=4u64 {
        let (from, threads) = busy(seed, true);
        let to = Machine::new(&specs());
        // Somebody tracks already, so that what is written after the cancel is known too.
        from.guest.track();
        let (out, inc) = (from.outgoing(&quick()), to.incoming(&quick()));
        let (a, b) = socketpair();
        inc.start(Source::Connected(b)).unwrap();
        let never = Arc::new(AtomicBool::new(false));
        let (heard, passed) = std::sync::mpsc::channel();
        *from.event.lock().unwrap() = Some(Box::new(move |event| {
            if event.kind == EventKind::Pass {
                let _ = heard.send(());
            }
        }));
        out.start_with(Target::Connected(a), Box::new(Told(never)))
            .unwrap();
        for _ in 0..seed {
            passed.recv_timeout(LONG).unwrap();
        }
        out.cancel().unwrap();
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
        inc.wait(Some(LONG)).unwrap_err();
        from.pause().unwrap();
        // What is neither the same over there nor pending is lost.
        {
            let pending = from.guest.pending();
            let knows = from.knows.lock().unwrap();
            for (n, (_, ram)) in from.guest.rams().into_iter().enumerate() {
                let other = &to.guest.rams()[n].1;
                for page in 0..ram.spec.pages {
                    let cares =
                        !knows.balloon.contains(&(n, page)) && !knows.free.contains(&(n, page));
                    let same = ram.page(page) == other.page(page);
                    let waits = pending.contains(&(ram.spec.name.to_owned(), page));
                    assert!(!cares || same || waits, "seed {seed}: {n}, {page} is lost");
                }
            }
        }
        from.resume().unwrap();
        let (to, _out, _inc) = moves(&from, &quick());
        assert_arrived(&from, &to, &format!("seed {seed}, after a cancel"));
        end(&from, threads);
    }
}

/// A guest that stands still, with pages 100 to 1099 in the balloon and rubbish left in them.
fn still(told_first: bool) -> Arc<Machine> {
    let machine = Machine::new(&[ram("ram", 2000)]);
    machine.guest.memory.set_must_tell_host(told_first);
    machine.guest.fill(3);
    machine
        .guest
        .memory
        .mark_discarded(address(0, 100), 1000 * PAGE_SIZE);
    machine
}

fn move_still(
    from: &Arc<Machine>,
    source: &Params,
    destination: &Params,
) -> (Arc<Machine>, Arc<Outgoing>) {
    let to = Machine::new(&[ram("ram", 2000)]);
    to.guest.fill(4);
    let (out, inc) = (from.outgoing(source), to.incoming(destination));
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    // After one whole pass.
    let told = Arc::new(AtomicBool::new(true));
    out.start_with(Target::Connected(a), Box::new(Told(told)))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    (to, out)
}

#[test]
fn a_given_back_page_is_neither_read_nor_sent_whatever_the_host_left_in_it() {
    let from = still(true);
    let (to, out) = move_still(&from, &quick(), &quick());
    let stats = out.stats();
    assert_eq!((stats.skipped_pages, stats.data_pages), (1000, 1000));
    assert_eq!(stats.last_pages, 0, "nothing of it in the downtime");
    assert!(stats.wire_bytes < 1000 * PAGE_SIZE + 10_000);
    let resident = touched(&to.guest.memory, 0);
    assert_eq!(resident, (0..100).chain(1100..2000).collect());
    assert_eq!(
        to.guest
            .memory
            .discarded_pages(address(0, 0), 2000 * PAGE_SIZE),
        1000
    );
}

#[test]
fn nothing_is_skipped_for_a_guest_that_need_not_tell_first() {
    let from = still(false);
    let (to, out) = move_still(&from, &quick(), &quick());
    assert_eq!(
        (out.stats().skipped_pages, out.stats().data_pages),
        (0, 2000)
    );
    assert_eq!(differences(&from.guest, &to.guest), Vec::<String>::new());
}

#[test]
fn nothing_is_skipped_when_it_is_switched_off() {
    let off = Params {
        skip_returned: false,
        ..quick()
    };
    let from = still(true);
    let (to, out) = move_still(&from, &off, &quick());
    assert_eq!(
        (out.stats().skipped_pages, out.stats().data_pages),
        (0, 2000)
    );
    assert_eq!(differences(&from.guest, &to.guest), Vec::<String>::new());
    // At the destination alone: told as zeros, and the host keeps the memory.
    let from = still(true);
    let (to, out) = move_still(&from, &quick(), &off);
    assert_eq!(
        (out.stats().skipped_pages, out.stats().data_pages),
        (1000, 1000)
    );
    assert_eq!(touched(&to.guest.memory, 0).len(), 2000);
    let ram = to.guest.ram("ram");
    assert!((100..1100).all(|page| ram.page(page).iter().all(|b| *b == 0)));
    assert_eq!(
        to.guest
            .memory
            .discarded_pages(address(0, 0), 2000 * PAGE_SIZE),
        0
    );
}

#[test]
fn a_hint_leaves_no_rubbish_behind_where_skipping_is_switched_off() {
    // At the source, at the destination, at neither.
    for (source, destination) in [(false, true), (true, false), (true, true)] {
        /// Hints before the first page is sent.
        struct Hints(Arc<Machine>, bool);
        impl Decider for Hints {
            fn decide(&mut self, facts: &Facts) -> Decision {
                let tracker = &self.0.guest.tracker;
                if !std::mem::replace(&mut self.1, true) {
                    let round = tracker.hint_begin().unwrap();
                    tracker
                        .hint_free(round, address(0, 200), 300 * PAGE_SIZE)
                        .unwrap();
                }
                match facts.moment {
                    Moment::Synced => Next::SwitchOver { expected: MS }.into(),
                    _ => Next::GoOn.into(),
                }
            }
        }
        let params = |skip_returned| Params {
            skip_returned,
            ..quick()
        };
        let (from, to) = (
            Machine::new(&[ram("ram", 2000)]),
            Machine::new(&[ram("ram", 2000)]),
        );
        from.guest.fill(3);
        to.guest.fill(4);
        let out = from.outgoing(&params(source));
        let inc = to.incoming(&params(destination));
        let (a, b) = socketpair();
        inc.start(Source::Connected(b)).unwrap();
        let decider = Hints(Arc::clone(&from), false);
        out.start_with(Target::Connected(a), Box::new(decider))
            .unwrap();
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        let (theirs, ours) = (from.guest.ram("ram"), to.guest.ram("ram"));
        for page in 0..2000 {
            let zero = source && (200..500).contains(&page);
            let has = ours.page(page);
            let right = match zero {
                true => has.iter().all(|b| *b == 0),
                false => has == theirs.page(page),
            };
            assert!(right, "page {page}, {source} at the source, {destination}");
        }
    }
}

#[test]
fn a_destination_whose_guest_does_not_come_forgets_what_was_given_back() {
    struct Cancels(Arc<Mutex<Option<Arc<Outgoing>>>>);
    impl Decider for Cancels {
        fn decide(&mut self, facts: &Facts) -> Decision {
            if facts.moment == Moment::Synced {
                let out = self.0.lock().unwrap();
                out.as_ref().unwrap().cancel().unwrap();
            }
            Next::GoOn.into()
        }
    }
    let from = still(true);
    let to = Machine::new(&[ram("ram", 2000)]);
    let out = Arc::new(Mutex::new(Some(from.outgoing(&quick()))));
    let inc = to.incoming(&quick());
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    let decider = Box::new(Cancels(Arc::clone(&out)));
    out.lock()
        .unwrap()
        .as_ref()
        .unwrap()
        .start_with(Target::Connected(a), decider)
        .unwrap();
    inc.wait(Some(LONG)).unwrap_err();
    let out = out.lock().unwrap().take().unwrap();
    out.wait(Some(LONG)).unwrap_err();
    assert_eq!(out.stats().skipped_pages, 1000);
    // Another guest boots in that memory, with a balloon of its own.
    let memory = &to.guest.memory;
    memory.set_must_tell_host(true);
    assert_eq!(memory.discarded_pages(address(0, 0), 2000 * PAGE_SIZE), 0);
}

#[test]
fn a_destination_that_is_not_told_of_the_promise_forgets_what_was_given_back() {
    struct Plain(Arc<Machine>);
    impl Vmm for Plain {
        fn run(&self) -> Result<()> {
            // The guest begins to run with nothing to be skipped.
            self.0.run()
        }
    }
    let from = still(true);
    let to = Machine::new(&[ram("ram", 2000)]);
    let memory = Arc::clone(&to.guest.memory);
    let plain = Arc::new(Plain(Arc::clone(&to)));
    let inc = Incoming::new(Arc::clone(&memory), plain, quick()).unwrap();
    let out = from.outgoing(&quick());
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().skipped_pages, 1000);
    memory.set_must_tell_host(true);
    assert_eq!(memory.discarded_pages(address(0, 0), 2000 * PAGE_SIZE), 0);
}

#[test]
fn what_is_given_back_during_the_last_pass_is_told_before_the_pause() {
    struct Gives(Arc<Machine>, bool);
    impl Decider for Gives {
        fn decide(&mut self, facts: &Facts) -> Decision {
            // In the middle of the second pass; the sync after it finds them.
            if facts.pass == 2 && facts.moment == Moment::Walking && !self.1 {
                self.1 = true;
                let memory = &self.0.guest.memory;
                memory.mark_discarded(address(0, 1200), 700 * PAGE_SIZE);
            }
            match (facts.moment, facts.pass) {
                (Moment::Synced, 2) => {
                    assert_eq!(facts.remaining, Bytes(0), "given back is not left to send");
                    Next::SwitchOver { expected: MS }.into()
                }
                _ => Next::GoOn.into(),
            }
        }
    }
    /// Looks, when it is paused, whether the destination is done with all of it.
    struct Looks(Arc<Machine>, OnceLock<Weak<Outgoing>>, AtomicU64);
    impl Vmm for Looks {
        fn pause(&self) -> Result<()> {
            let out = self.1.get().unwrap().upgrade().unwrap();
            let left = out.stats().unacknowledged_pages;
            self.2.store(left, Ordering::SeqCst);
            self.0.pause()
        }
        fn resume(&self) -> Result<()> {
            self.0.resume()
        }
    }
    let from = still(true);
    let to = Machine::new(&[ram("ram", 2000)]);
    let looks = Arc::new(Looks(
        Arc::clone(&from),
        OnceLock::new(),
        AtomicU64::new(u64::MAX),
    ));
    let tracker = Arc::clone(&from.guest.tracker);
    let out = Outgoing::new(tracker, Blockers::new(), looks.clone(), quick()).unwrap();
    let out = Arc::new(out);
    looks.1.set(Arc::downgrade(&out)).unwrap();
    let inc = to.incoming(&quick());
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start_with(
        Target::Connected(a),
        Box::new(Gives(Arc::clone(&from), false)),
    )
    .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let stats = out.stats();
    assert_eq!(stats.skipped_pages, 1700);
    assert_eq!(looks.2.load(Ordering::SeqCst), 0, "and acknowledged");
    assert_eq!(stats.last_pages, 0, "nothing of it in the downtime");
    assert_eq!(
        touched(&to.guest.memory, 0),
        (0..100).chain(1100..1200).chain(1900..2000).collect()
    );
}

#[test]
fn of_larger_host_pages_only_whole_ones_are_skipped_and_arrive_as_such() {
    let spec = Spec {
        page_size: 2 << 20,
        ..ram("ram", 2048)
    };
    let specs = [spec];
    let (from, to) = (Machine::new(&specs), Machine::new(&specs));
    from.guest.memory.set_must_tell_host(true);
    from.guest.fill(3);
    to.guest.fill(4);
    let phase = |machine: &Machine| block(&machine.guest.memory, 0).host() as usize / PAGE % 512;
    // One host page but for 4 KiB, one whole one, two halves, by where the memory happens to lie.
    let begins = (512 - phase(&from)) % 512;
    for page in 0..511 {
        from.guest
            .memory
            .mark_discarded(address(0, begins + page), PAGE_SIZE);
    }
    for page in (512..1024).rev() {
        from.guest
            .memory
            .mark_discarded(address(0, begins + page), PAGE_SIZE);
    }
    let (out, inc) = (from.outgoing(&quick()), to.incoming(&quick()));
    let (a, b) = socketpair();
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().skipped_pages, 512);
    let (theirs, ours) = (from.guest.ram("ram"), to.guest.ram("ram"));
    for page in 0..2048 {
        let returned = (begins + 512..begins + 1024).contains(&page);
        let has = ours.page(page);
        if returned {
            assert!(has.iter().all(|b| *b == 0), "page {page}");
        } else {
            assert!(has == theirs.page(page), "page {page}");
        }
    }
}

// --- hostile peers --------------------------------------------------------------------------

fn accepted(raw: &mut Raw, features: u64) {
    raw.say(&Record::Hello(wire::Hello {
        version_min: 1,
        version_max: 1,
        features_offered: features,
        features_required: 1,
        token: [5; 16],
        channel: 0,
        channels: 1,
        page_shift: 12,
        software: "hostile".into(),
    }));
    match raw.hear_record() {
        Some(Record::HelloReply(reply)) => assert_eq!(reply.features, features),
        other => panic!("{other:?}"),
    }
    raw.say(&Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
    assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    raw.say(&Record::Block(wire::Block {
        id: 4,
        length: 2000 * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: "ram".into(),
    }));
    raw.say(&Record::LayoutEnd(wire::LayoutEnd {
        blocks: 1,
        bytes: 2000 * PAGE_SIZE,
    }));
    assert_eq!(raw.hear_record(), Some(Record::LayoutOk));
}

#[test]
fn discards_that_are_out_of_place_are_refused_by_name_and_touch_nothing() {
    let with = |header: Header| header.encode().to_vec();
    let discard = |block, first, count| Header::discard(block, Pages(first), count);
    let cases: Vec<(&str, u64, Vec<u8>, &str)> = vec![
        ("not agreed on", 1, with(discard(4, 0, 1)), "discards"),
        (
            "another block",
            3,
            with(discard(5, 0, 1)),
            "never announced",
        ),
        ("past the end", 3, with(discard(4, 1999, 2)), "2000 pages"),
        (
            "far past it",
            3,
            with(discard(4, u64::MAX, 2)),
            "2000 pages",
        ),
        ("nothing", 3, with(discard(4, 0, 0)), "at least one page"),
        ("two stretches", 3, with(discard(4, 511, 2)), "stretch"),
        (
            "with contents",
            3,
            with(Header {
                payload: 4096,
                ..discard(4, 0, 1)
            }),
            "payload of 0 bytes",
        ),
        (
            "skippable",
            3,
            with(Header {
                flags: wire::FLAG_SKIPPABLE,
                ..discard(4, 0, 1)
            }),
            "skippable",
        ),
        (
            "miscounted",
            3,
            {
                let mut bytes = with(discard(4, 7, 2));
                Record::Marker(wire::Marker {
                    number: 1,
                    pass: 1,
                    flags: 1,
                    records: 0,
                    data_pages: 0,
                    zero_pages: 0,
                })
                .encode(&mut bytes)
                .unwrap();
                bytes
            },
            "zero pages",
        ),
    ];
    for (what, features, bytes, reason) in cases {
        let to = Machine::new(&[ram("ram", 2000)]);
        to.guest.fill(9);
        let inc = to.incoming(&quick());
        let (mut raw, fd) = Raw::pair();
        inc.start(Source::Connected(fd)).unwrap();
        accepted(&mut raw, features);
        raw.say_bytes(&bytes);
        let heard = raw.hear_abort().unwrap_or_default();
        assert!(heard.contains(reason), "{what}: {heard}");
        assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Protocol);
        let left = touched(&to.guest.memory, 0).len();
        let miscounted = if what == "miscounted" { 2 } else { 0 };
        assert_eq!(left, 2000 - miscounted, "{what}");
    }
}

#[test]
fn a_source_without_the_feature_is_answered_without_it() {
    let to = Machine::new(&[ram("ram", 2000)]);
    let inc = to.incoming(&Params {
        skip_returned: false,
        ..quick()
    });
    let (mut raw, fd) = Raw::pair();
    inc.start(Source::Connected(fd)).unwrap();
    raw.say(&Record::Hello(wire::Hello {
        version_min: 1,
        version_max: 1,
        features_offered: 3,
        features_required: 1,
        token: [5; 16],
        channel: 0,
        channels: 1,
        page_shift: 12,
        software: "other".into(),
    }));
    match raw.hear_record() {
        Some(Record::HelloReply(reply)) => assert_eq!(reply.features, 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(RecordType::Discard.number(), 22);
}
