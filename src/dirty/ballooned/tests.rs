//! Ballooned pages and hints, tried with a model of KVM and with a guest that uses pages again at
//! the worst moments. The oracle is a copy made as a destination makes it: contents at the time of
//! reading, zeros for pages that are not read. In the end a page that the guest uses must be equal,
//! and a ballooned page must be named as ballooned. Engines with known mistakes show that the
//! oracle can fail.

mod cases;
mod costs;

use super::*;
use crate::dirty::consumer::{Consumer, Content, Cursor};
use crate::dirty::kvm::testing::model::{Kvm, Moment, ALL_CAPS};
use crate::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use crate::dirty::taken::Taken;
use crate::dirty::testing::oracle::{self, arrives, verdict, Model, Verdict};
use crate::dirty::testing::{apart, the_run};
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::dirty::When;
use crate::error::{Kind, Result};
use crate::memory::{BlockDescription, BlockFlags, BlockId, HostMemory, Memory, SlotDescription};
use crate::sys::kvm::{UserMemoryRegion, Vm};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use proptest::prelude::*;
use proptest::test_runner::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use vm_memory::GuestAddress;

/// The mistake of the engine or the VMM under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A deflate does not mark the page.
    ForgetsToMark,
    /// A hint of any round is used.
    AnyRound,
    /// A round begins without restoring the protection of armed chunks.
    BeginsUnprotected,
    /// Whether a page is ballooned is looked up before the clear, and then the chunk is not
    /// cleared.
    SkipsWithoutClearing,
}

/// The destination's knowledge of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    Version(u64),
    /// Named as ballooned.
    Ballooned,
    /// Zero, because the page was hinted to be free.
    Zero,
}

type Hook = Box<dyn FnOnce() + Send>;

/// The model's handle, with actions in the middle of its calls.
struct Hooked {
    vm: Box<dyn Vm>,
    hooks: Arc<Mutex<BTreeMap<Moment, Vec<Hook>>>>,
}

impl Hooked {
    fn at(&self, moment: Moment) {
        let hooks = self.hooks.lock().unwrap().remove(&moment);
        for hook in hooks.unwrap_or_default() {
            hook();
        }
    }
}

impl Vm for Hooked {
    fn check_extension(&self, cap: u32) -> u64 {
        self.vm.check_extension(cap)
    }
    fn enable_cap(&mut self, cap: u32, arg: u64) -> Result<()> {
        self.vm.enable_cap(cap, arg)
    }
    fn set_region(&mut self, region: &UserMemoryRegion) -> Result<()> {
        self.vm.set_region(region)
    }
    fn get_dirty_log(&mut self, slot: u32, words: &mut [u64]) -> Result<()> {
        self.at(Moment::BeforeGet);
        let done = self.vm.get_dirty_log(slot, words);
        self.at(Moment::AfterGet);
        done
    }
    fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: u32, words: &[u64]) -> Result<()> {
        self.at(Moment::BeforeClear);
        let done = self.vm.clear_dirty_log(slot, first, pages, words);
        self.at(Moment::AfterClear);
        done
    }
}

#[derive(Debug, Clone)]
struct Setup {
    mode: KvmMode,
    clearing: Clearing,
    pages: u64,
    /// log2 of the pages of 4 KiB in one page of the host's.
    unit: u32,
    /// Pages ballooned before tracking starts.
    balloon: Vec<(u64, u64)>,
}

#[derive(Debug, Clone)]
enum Op {
    /// The guest writes to a page that is not ballooned.
    Write(u64),
    /// The guest writes to such a page in the middle of a call to the kernel.
    Race(Moment, u64),
    /// The guest inflates its balloon. The VMM discards the pages before or after it tells brant.
    Inflate(u64, u64),
    /// The guest deflates its balloon and writes to the first page.
    Deflate(u64, u64),
    /// The guest does so in the middle of a call to the kernel.
    RaceTake(Moment, u64, u64),
    Sync,
    Walk(usize, u64),
    Read(usize),
    PutBack(usize),
    Unread,
    Drain,
    MarkAll,
    /// The VMM begins a round of hints.
    Begin,
    /// The guest puts free pages on its list, if a round has begun.
    Hint(u64, u64),
    /// A hint reaches the VMM.
    Deliver(usize),
    End,
}

/// One taken run.
struct Flight {
    taken: Taken,
}

impl Flight {
    fn stretch(&self) -> u64 {
        the_run(&self.taken).pages.first().0 / STRETCH_PAGES
    }
}

struct Listed {
    round: u64,
    first: u64,
    count: u64,
    versions: Vec<u64>,
}

struct World {
    mistake: Mistake,
    kvm: Kvm,
    hooks: Arc<Mutex<BTreeMap<Moment, Vec<Hook>>>>,
    memory: Arc<Memory>,
    consumer: Consumer,
    block: BlockId,
    pages: u64,
    unit: u64,
    /// The pages in the guest's balloon.
    balloon: Arc<Mutex<BTreeSet<u64>>>,
    copy: BTreeMap<u64, Has>,
    flight: Vec<Flight>,
    cursor: Cursor,
    round: Option<u64>,
    listed: Vec<Listed>,
    /// The pages of used hints, with the versions that they had when they were free.
    free: BTreeMap<u64, u64>,
    /// How often the balloon was inflated.
    given: u64,
}

const HOST: u64 = 0x2000_0000_0000;
const SLOT: u32 = 1;

fn address(page: u64) -> GuestAddress {
    GuestAddress(page * PAGE_SIZE)
}

impl World {
    fn new(setup: &Setup, mistake: Mistake) -> World {
        let kvm = Kvm::new(ALL_CAPS);
        let hooks = Arc::new(Mutex::new(BTreeMap::new()));
        let memory = Arc::new(Memory::new().unwrap());
        memory.set_must_tell_host(true);
        let tracker = Tracker::new(Arc::clone(&memory), setup.clearing).unwrap();
        let vm = Hooked {
            vm: kvm.vm(),
            hooks: Arc::clone(&hooks),
        };
        tracker
            .add_log(Box::new(KvmLog::new(
                Box::new(vm),
                setup.mode,
                LogSwitch::Brant,
            )))
            .unwrap();
        let unit = 1 << setup.unit;
        let pages = setup.pages.div_ceil(unit) * unit;
        let length = Bytes(pages * PAGE_SIZE);
        let block = memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { crate::memory::HostMemory::new(HOST as *mut u8) },
                length,
                page_size: Bytes(unit * PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        kvm.create(SLOT, HOST, pages, 0);
        memory
            .add_slot(&SlotDescription {
                slot: SLOT,
                flags: 0,
                block: memory.find_block("ram").unwrap(),
                offset: Bytes(0),
                length,
                guest_address: GuestAddress(0),
            })
            .unwrap();
        let mut world = World {
            mistake,
            kvm,
            hooks,
            memory,
            consumer: tracker.consumer(),
            block,
            pages,
            unit,
            balloon: Arc::default(),
            copy: BTreeMap::new(),
            flight: Vec::new(),
            cursor: Cursor::default(),
            round: None,
            listed: Vec::new(),
            free: BTreeMap::new(),
            given: 0,
        };
        for page in 0..pages {
            world.write(page);
        }
        for (first, count) in &setup.balloon {
            world.inflate(*first, *count);
        }
        world.consumer.skip_ballooned(true);
        world.consumer.start(StartWith::Everything).unwrap();
        world
    }

    fn version(&self, page: u64) -> u64 {
        self.kvm.version(HOST + page * PAGE_SIZE)
    }

    fn range(&self, first: u64, count: u64) -> std::ops::Range<u64> {
        let first = first % self.pages;
        first..(first + count).min(self.pages)
    }

    fn write(&mut self, page: u64) {
        let page = page % self.pages;
        if !self.balloon.lock().unwrap().contains(&page) {
            self.kvm.guest_write(SLOT, page);
        }
    }

    /// Does something at a moment of the next call.
    fn hook(&mut self, moment: Moment, hook: Hook) {
        self.hooks
            .lock()
            .unwrap()
            .entry(moment)
            .or_default()
            .push(hook);
    }

    fn inflate(&mut self, first: u64, count: u64) {
        self.given += 1;
        let before = self.given.is_multiple_of(2);
        for page in self.range(first, count) {
            if !self.balloon.lock().unwrap().insert(page) {
                continue;
            }
            // A discard changes the contents, and no log sees that.
            if before {
                self.kvm.other_write(HOST + page * PAGE_SIZE);
            }
            self.memory.mark_ballooned(address(page), PAGE_SIZE);
            if !before {
                self.kvm.other_write(HOST + page * PAGE_SIZE);
            }
        }
    }

    /// A deflate: the VMM's part, then the guest's.
    fn deflate(&mut self, first: u64, count: u64) {
        let range = self.range(first, count);
        let mut written = false;
        for page in range {
            if !self.balloon.lock().unwrap().remove(&page) {
                continue;
            }
            match self.mistake {
                Mistake::ForgetsToMark => {
                    let map = self.memory.map();
                    map.blocks()[0].ballooned().deflate(page..page + 1);
                }
                _ => self.memory.clear_ballooned(address(page), PAGE_SIZE),
            }
            if !written {
                self.kvm.guest_write(SLOT, page);
                written = true;
            }
        }
    }

    fn sync(&mut self, when: When) -> Verdict {
        let before = self.consumer.pending().0;
        let report = self.consumer.sync(when).map_err(|e| e.to_string())?;
        let after = self.consumer.pending().0;
        if report.found.0 + report.newly_ballooned.0 != after - before {
            return Err(format!("{before} became {after}: {report:?}"));
        }
        let read = self.consumer.to_read().0;
        if report.ballooned.0 + read != after {
            return Err(format!("{after} pending, {read} to read: {report:?}"));
        }
        Ok(())
    }

    fn walk(&mut self, runs: usize, pages: u64) -> bool {
        if self.mistake == Mistake::SkipsWithoutClearing {
            self.read_all();
            let mut inner = self.consumer.lock();
            for state in inner.blocks.iter_mut() {
                let block = Arc::clone(&state.pin_source);
                let set = state.set_mut(self.consumer.seat()).unwrap();
                while let Some(run) = set.next_ballooned(&block, 0, u64::MAX) {
                    for page in run.clone() {
                        self.copy.insert(page, Has::Ballooned);
                    }
                    set.pending
                        .clear_range(run.start as usize, (run.end - run.start) as usize);
                }
            }
        }
        let taken = self
            .consumer
            .take(&mut self.cursor, runs, Pages(pages))
            .unwrap();
        self.take_in(taken)
    }

    fn take_in(&mut self, taken: Taken) -> bool {
        let more = !taken.is_empty();
        for taken in apart(taken) {
            let flight = Flight { taken };
            let run = the_run(&flight.taken);
            assert_eq!(flight.stretch(), (run.pages.end().0 - 1) / STRETCH_PAGES);
            if run.content == Content::Used {
                self.flight.push(flight);
            } else {
                // Ballooned pages are not read. Records of one stretch are sent in the order of the
                // takes.
                self.read_stretch(flight.stretch());
                self.read(flight);
            }
        }
        more
    }

    fn read(&mut self, flight: Flight) {
        arrives(flight.taken, |run, page| {
            let has = match run.content {
                Content::Used => Has::Version(self.version(page)),
                Content::Ballooned => Has::Ballooned,
                Content::Free => Has::Zero,
            };
            self.copy.insert(page, has);
        });
    }

    fn one(&mut self, which: usize) -> Option<Flight> {
        let n = self.flight.len();
        (n > 0).then(|| self.flight.remove(which % n))
    }

    fn read_stretch(&mut self, stretch: u64) {
        let (of_it, rest) = std::mem::take(&mut self.flight)
            .into_iter()
            .partition::<Vec<_>, _>(|f| f.stretch() == stretch);
        self.flight = rest;
        for flight in of_it {
            self.read(flight);
        }
    }

    fn read_all(&mut self) {
        for flight in std::mem::take(&mut self.flight) {
            self.read(flight);
        }
    }

    fn drain(&mut self) {
        self.read_all();
        for _ in 0..2 {
            while self.walk(64, 100_000) {
                self.read_all();
            }
        }
    }

    fn apply(&mut self, op: &Op) -> Verdict {
        match *op {
            Op::Write(page) => self.write(page),
            Op::Race(moment, page) => {
                let page = page % self.pages;
                let (kvm, balloon) = (self.kvm.clone(), Arc::clone(&self.balloon));
                self.hook(
                    moment,
                    Box::new(move || {
                        if !balloon.lock().unwrap().contains(&page) {
                            kvm.guest_write(SLOT, page);
                        }
                    }),
                );
            }
            Op::Inflate(first, count) => {
                // Pages in flight may be read while they are discarded; either contents are fine.
                self.inflate(first, count);
            }
            Op::Deflate(first, count) => self.deflate(first, count),
            Op::RaceTake(moment, first, count) => {
                if self.mistake != Mistake::None {
                    return Ok(());
                }
                let range = self.range(first, count);
                let (kvm, balloon) = (self.kvm.clone(), Arc::clone(&self.balloon));
                let memory = Arc::clone(&self.memory);
                self.hook(
                    moment,
                    Box::new(move || {
                        for page in range {
                            if balloon.lock().unwrap().remove(&page) {
                                memory.clear_ballooned(address(page), PAGE_SIZE);
                                kvm.guest_write(SLOT, page);
                            }
                        }
                    }),
                );
            }
            Op::Sync => self.sync(When::Running)?,
            Op::Walk(runs, pages) => {
                self.walk(runs, pages);
            }
            Op::Read(which) => {
                if !self.flight.is_empty() {
                    let flight = &self.flight[which % self.flight.len()];
                    let stretch = flight.stretch();
                    self.read_stretch(stretch);
                }
            }
            Op::PutBack(which) => {
                drop(self.one(which));
            }
            Op::Unread => {
                let mut cursor = Cursor::default();
                loop {
                    let taken = self.consumer.take_unread(&mut cursor, 7).unwrap();
                    if taken.runs().any(|run| run.content == Content::Used) {
                        return Err("a page to be read among those that are not".into());
                    }
                    if !self.take_in(taken) {
                        break;
                    }
                }
            }
            Op::Drain => self.drain(),
            Op::MarkAll => self.consumer.mark_all(),
            Op::Begin => {
                self.round = Some(match self.mistake {
                    Mistake::BeginsUnprotected => self.consumer.lock().hints.begin(),
                    _ => self.consumer.begin_hints().map_err(|e| e.to_string())?,
                });
            }
            Op::Hint(first, count) => {
                let range = self.range(first, count);
                let free = {
                    let balloon = self.balloon.lock().unwrap();
                    range.clone().all(|p| !balloon.contains(&p))
                };
                if let Some(round) = self.round.filter(|_| free) {
                    self.listed.push(Listed {
                        round,
                        first: range.start,
                        count: range.end - range.start,
                        versions: range.map(|p| self.version(p)).collect(),
                    });
                }
            }
            Op::Deliver(which) => {
                if self.listed.is_empty() {
                    return Ok(());
                }
                let n = self.listed.len();
                let hint = self.listed.remove(which % n);
                let length = hint.count * PAGE_SIZE;
                let used = match self.mistake {
                    Mistake::AnyRound => {
                        let from = address(hint.first).0 / PAGE_SIZE;
                        let done = self.consumer.lock().take_hint(from, from + hint.count);
                        done.map_err(|e| e.to_string())?;
                        true
                    }
                    _ => self
                        .consumer
                        .hint_free(hint.round, address(hint.first), length)
                        .is_ok(),
                };
                if used {
                    for (i, version) in hint.versions.into_iter().enumerate() {
                        let latest = self.free.entry(hint.first + i as u64).or_default();
                        *latest = version.max(*latest);
                    }
                }
            }
            Op::End => {
                if let Some(round) = self.round.take() {
                    self.consumer.end_hints(round);
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Verdict {
        self.hooks.lock().unwrap().clear();
        // Half of the runs in flight arrive, in order. The others are put back.
        let half = self.flight.len() / 2;
        for (i, flight) in std::mem::take(&mut self.flight).into_iter().enumerate() {
            if i < half {
                self.read(flight);
            }
        }
        self.sync(When::Stopped)?;
        self.drain();
        if self.consumer.pending().0 != 0 {
            return Err("a drain left pages behind".into());
        }
        let balloon = self.balloon.lock().unwrap().clone();
        for page in 0..self.pages {
            let host_page = page / self.unit * self.unit;
            let ballooned = (host_page..host_page + self.unit).all(|p| balloon.contains(&p));
            let version = self.version(page);
            let has = self.copy.get(&page).copied();
            let fine = match has {
                Some(Has::Version(v)) if v == version => !ballooned,
                Some(Has::Ballooned) => ballooned,
                // The page was free, and has not been written since.
                Some(Has::Zero) => self.free.get(&page) == Some(&version),
                _ => false,
            };
            // The contents of a ballooned part of a host page do not matter. The VMM may have
            // discarded it.
            let fine = fine || (has.is_some() && !ballooned && balloon.contains(&page));
            if !fine {
                return Err(format!(
                    "page {page} is lost: the guest has version {version} (ballooned: {ballooned}), \
                     the copy {has:?}"
                ));
            }
        }
        self.sync(When::Running)?;
        let again = self.consumer.pending();
        if again.0 != 0 {
            return Err(format!("{again} clean pages were found again"));
        }
        self.consumer.stop().map_err(|e| e.to_string())
    }
}

impl Model for World {
    type Setup = Setup;
    type Step = Op;
    type Mistake = Mistake;

    fn begin(setup: &Setup, mistake: Mistake) -> World {
        World::new(setup, mistake)
    }
    fn step(&mut self, op: &Op) -> Verdict {
        self.apply(op)
    }
    fn end(&mut self) -> Verdict {
        self.finish()
    }
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop::sample::select(vec![
            KvmMode::GetAndClear,
            KvmMode::ManualProtect,
            KvmMode::InitiallySet,
        ]),
        prop_oneof![
            3 => (6..=8u32).prop_map(|shift| Clearing::Chunked { shift }),
            1 => Just(Clearing::AtSync),
        ],
        prop_oneof![3 => 1..=260u64, 1 => 500..=1600u64],
        prop_oneof![2 => Just(0u32), 1 => 1..=5u32],
        prop::collection::vec((any::<u64>(), 1..200u64), 0..4),
    )
        .prop_map(|(mode, clearing, pages, unit, balloon)| Setup {
            mode,
            clearing,
            pages,
            unit,
            balloon,
        })
}

fn moment() -> impl Strategy<Value = Moment> {
    prop::sample::select(vec![
        Moment::BeforeGet,
        Moment::AfterGet,
        Moment::BeforeClear,
        Moment::AfterClear,
    ])
}

/// A few pages come often, so that actions meet.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0..40u64, 1 => any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => page().prop_map(Op::Write),
        4 => (moment(), page()).prop_map(|(m, p)| Op::Race(m, p)),
        4 => (page(), 1..70u64).prop_map(|(p, n)| Op::Inflate(p, n)),
        4 => (page(), 1..20u64).prop_map(|(p, n)| Op::Deflate(p, n)),
        2 => (moment(), page(), 1..8u64).prop_map(|(m, p, n)| Op::RaceTake(m, p, n)),
        5 => Just(Op::Sync),
        6 => (1..6usize, 1..300u64).prop_map(|(r, p)| Op::Walk(r, p)),
        4 => any::<usize>().prop_map(Op::Read),
        1 => any::<usize>().prop_map(Op::PutBack),
        1 => Just(Op::Unread),
        3 => Just(Op::Drain),
        1 => Just(Op::MarkAll),
        3 => Just(Op::Begin),
        5 => (page(), 1..30u64).prop_map(|(p, n)| Op::Hint(p, n)),
        5 => any::<usize>().prop_map(Op::Deliver),
        1 => Just(Op::End),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 512, ..Config::default() })]

    #[test]
    fn no_page_is_lost_whatever_is_inflated_deflated_and_hinted(
        setup in setup(),
        ops in prop::collection::vec(op(), 0..140),
    ) {
        let verdict = verdict::<World>(&setup, &ops, Mistake::None);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }
}

/// The oracle's verdict on `cases` random migrations, always the same ones.
fn condemned(mistake: Mistake, cases: u32) -> Option<String> {
    oracle::condemned::<World>(setup(), op(), 40..140, mistake, cases)
}

#[test]
fn the_oracle_acquits_an_engine_without_a_mistake() {
    assert_eq!(condemned(Mistake::None, 100), None);
}

#[test]
fn the_oracle_catches_taking_back_without_a_mark() {
    let found = condemned(Mistake::ForgetsToMark, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_a_mark_before_the_page_stops_being_ballooned() {
    for right in [true, false] {
        let mut world = quiet(KvmMode::Auto, SMALLEST, 256, &[(3, 1)]);
        // The VMM's part, in two steps. The guest does not write to the page.
        let clear = |world: &World| world.memory.map().blocks()[0].ballooned().deflate(3..4);
        let mark = |world: &World| {
            world
                .consumer
                .mark_block(world.block, Bytes(3 * PAGE_SIZE), 1)
        };
        if right {
            clear(&world);
        } else {
            mark(&world);
        }
        world.sync(When::Running).unwrap();
        world.drain();
        if right {
            mark(&world);
        } else {
            clear(&world);
        }
        world.balloon.lock().unwrap().clear();
        let found = world.finish();
        assert_eq!(found.is_ok(), right, "{found:?}");
    }
}

#[test]
fn the_oracle_catches_a_hint_whose_round_is_over() {
    let found = condemned(Mistake::AnyRound, 400).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_a_round_that_began_before_protection_was_restored() {
    for mode in MODES {
        for mistake in [Mistake::None, Mistake::BeginsUnprotected] {
            let setup = Setup {
                mode,
                clearing: SMALLEST,
                pages: 256,
                unit: 0,
                balloon: vec![],
            };
            let ops = [
                // Page 5 is dirty, and the kernel need not report it again.
                Op::Drain,
                Op::Write(5),
                Op::Write(9),
                Op::Sync,
                Op::Begin,
                Op::Hint(5, 1),
                // Used again without a word, before its chunk is cleared for page 9.
                Op::Write(5),
                Op::Deliver(0),
                Op::Drain,
            ];
            let found = verdict::<World>(&setup, &ops, mistake);
            // In the older mode a GET has protected everything.
            let harmless = mistake == Mistake::None || mode == KvmMode::GetAndClear;
            assert_eq!(found.is_ok(), harmless, "{mode:?}, {mistake:?}: {found:?}");
        }
    }
}

#[test]
fn the_oracle_catches_a_ballooned_page_that_leaves_the_chunk_uncleared() {
    let found = condemned(Mistake::SkipsWithoutClearing, 400).expect("pages come again");
    assert!(
        found.contains("found again") || found.contains("is lost"),
        "{found}"
    );
}

fn quiet(mode: KvmMode, clearing: Clearing, pages: u64, balloon: &[(u64, u64)]) -> World {
    World::new(
        &Setup {
            mode,
            clearing,
            pages,
            unit: 0,
            balloon: balloon.to_vec(),
        },
        Mistake::None,
    )
}

const SMALLEST: Clearing = Clearing::Chunked { shift: 6 };
const MODES: [KvmMode; 3] = [
    KvmMode::GetAndClear,
    KvmMode::ManualProtect,
    KvmMode::InitiallySet,
];
