//! Several consumers of one tracker against a model of KVM: whatever each of them does, and whatever
//! migrations come to between, no consumer misses a write since its start.
//!
//! The oracle is a copy for each consumer, made from what that consumer's takes hand out and nothing
//! else. That it can fail is shown by engines with known mistakes ([`Mistake`]).

use super::*;
use crate::dirty::kvm::testing::model::{Kvm, Moment, ALL_CAPS};
use crate::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use crate::dirty::testing::oracle::{self, any_of, arrives, verdict, Model, Verdict};
use crate::dirty::testing::{self, apart, take_all, the_run};
use crate::dirty::tracker::Clearing;
use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink};
use crate::memory::{
    BlockDescription, BlockFlags, HostMemory, Map, Memory, SlotDescription, NO_SLOT,
};
use crate::units::{Bytes, PAGE_SIZE};
use proptest::prelude::*;
use proptest::test_runner::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vm_memory::GuestAddress;

/// What is wrong with the engine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A consumer starts clean while chunks wait for their clear.
    StartsUnprotected,
    /// A migration begins by forgetting what everybody has pending.
    MigrationForgets,
    /// A take empties what is pending for everybody.
    TakesFromAll,
    /// Only what is new to the one who asked is given to the others.
    GivesWhatIsNew,
}

#[derive(Debug, Clone)]
struct Setup {
    mode: KvmMode,
    clearing: Clearing,
    blocks: Vec<u64>,
}

#[derive(Debug, Clone)]
enum Op {
    /// The guest writes.
    Guest(u32, u32),
    /// The VMM writes, then marks.
    Vmm(u32, u32),
    /// The guest writes in the middle of a later call to the kernel.
    Race(Moment, u32, u32),
    Make(bool),
    /// Any consumer, the migration among them.
    Sync(u32),
    Take(u32, u32, u32),
    Read(u32),
    PutBack(u32),
    Drain(u32),
    Stop(u32),
    Restart(u32, bool),
    Free(u32),
    /// A migration begins on the tracker as it is.
    Migrate,
    /// The guest is paused and the last harvest made.
    Pause,
    /// The migration is over, whatever it has delivered; the guest runs.
    EndMigration,
    /// The guest hints that pages are free, and they are.
    Hint(u32, u32),
    Fail(u32, u32),
    AddBlock(u64),
    RemoveBlock(u32),
}

struct BlockInfo {
    id: BlockId,
    name: String,
    host: u64,
    pages: u64,
    slot: u32,
    guest: u64,
}

type Versions = BTreeMap<u64, u64>;

/// A consumer, and the copy that is kept with it.
struct Copier {
    consumer: Consumer,
    /// By host address.
    copy: Versions,
    cursor: Cursor,
    /// Each of one run.
    flight: Vec<Taken>,
    /// What the guest had when it was stopped.
    stopped: Option<Versions>,
}

struct World {
    mistake: Mistake,
    kvm: Kvm,
    memory: Arc<Memory>,
    tracker: Arc<Tracker>,
    blocks: Vec<BlockInfo>,
    copiers: Vec<Copier>,
    migration: Option<Copier>,
    /// Since the migration's last harvest.
    paused: bool,
    /// Something fails now and then.
    failures: bool,
    next: u64,
}

impl World {
    fn new(setup: &Setup, mistake: Mistake) -> World {
        let kvm = Kvm::new(ALL_CAPS);
        let memory = Arc::new(Memory::new().unwrap());
        let tracker = Tracker::new(Arc::clone(&memory), setup.clearing).unwrap();
        let log = KvmLog::new(kvm.vm(), setup.mode, LogSwitch::Brant);
        tracker.add_log(Box::new(log)).unwrap();
        let mut world = World {
            mistake,
            kvm,
            memory,
            tracker,
            blocks: Vec::new(),
            copiers: Vec::new(),
            migration: None,
            paused: false,
            failures: false,
            next: 1,
        };
        for &pages in &setup.blocks {
            world.add_block(pages);
        }
        world
    }

    fn add_block(&mut self, pages: u64) {
        let host = 0x2000_0000_0000 + self.next * (1 << 36);
        let (name, slot) = (format!("b{}", self.next), self.next as u32);
        let guest = self.next << 32;
        self.next += 1;
        let id = self
            .memory
            .add_block(BlockDescription {
                name: name.clone(),
                // SAFETY: nobody looks at the memory.
                host: unsafe { HostMemory::new(host as *mut u8) },
                length: Bytes(pages * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        self.kvm.create(slot, host, pages, guest);
        let added = self.memory.add_slot(&SlotDescription {
            slot,
            flags: 0,
            block: name.clone(),
            offset: Bytes(0),
            length: Bytes(pages * PAGE_SIZE),
            guest_address: GuestAddress(guest),
        });
        added.unwrap();
        self.blocks.push(BlockInfo {
            id,
            name,
            host,
            pages,
            slot,
            guest,
        });
    }

    fn page(&self, block: u32, page: u32) -> (&BlockInfo, u64) {
        let block = &self.blocks[block as usize % self.blocks.len()];
        (block, u64::from(page) % block.pages)
    }

    fn versions(&self) -> Versions {
        let all = self.blocks.iter();
        let all = all.flat_map(|b| (0..b.pages).map(move |p| b.host + p * PAGE_SIZE));
        all.map(|at| (at, self.kvm.version(at))).collect()
    }

    fn copier(&mut self, which: u32) -> Option<&mut Copier> {
        let n = self.copiers.len() + usize::from(self.migration.is_some());
        let at = which as usize % n.max(1);
        match at < self.copiers.len() {
            true => self.copiers.get_mut(at),
            false => self.migration.as_mut(),
        }
    }

    /// Starts a consumer; false if that failed, as it may where the kernel fails.
    fn start(
        &mut self,
        copier: &mut Copier,
        everything: bool,
    ) -> std::result::Result<bool, String> {
        let with = match everything {
            true => StartWith::Everything,
            false => StartWith::Nothing,
        };
        if self.mistake == Mistake::StartsUnprotected && self.tracker.is_started() && !everything {
            let mut inner = self.tracker.lock();
            inner.sync(When::Running, None).unwrap();
            let seat = copier.consumer.seat();
            let total = Arc::clone(&inner.member(seat).unwrap().total);
            for state in inner.blocks.iter_mut() {
                state.make_set(seat, &total).unwrap();
            }
            inner.set_phase(seat, Phase::Following);
        } else if let Err(e) = copier.consumer.start(with) {
            if self.failures {
                return Ok(false);
            }
            return Err(format!("start failed: {e}"));
        }
        copier.stopped = None;
        // The copy is made anew, or has them.
        copier.flight.drain(..).for_each(Taken::delivered);
        copier.cursor = Cursor::default();
        // Whoever starts with nothing has a copy already.
        copier.copy = match everything {
            true => Versions::new(),
            false => self.versions(),
        };
        Ok(true)
    }

    fn make(
        &mut self,
        everything: bool,
        skips: bool,
    ) -> std::result::Result<Option<Copier>, String> {
        let mut copier = Copier {
            consumer: self.tracker.consumer(),
            copy: Versions::new(),
            cursor: Cursor::default(),
            flight: Vec::new(),
            stopped: None,
        };
        copier.consumer.skip_returned(skips);
        let started = self.start(&mut copier, everything)?;
        Ok(started.then_some(copier))
    }

    fn sync(&mut self, which: u32) -> Verdict {
        let others: Vec<(Seat, Pages)> = {
            let all = self.copiers.iter().chain(&self.migration);
            all.map(|c| (c.consumer.seat(), c.consumer.pending()))
                .collect()
        };
        let (failures, mistake) = (self.failures, self.mistake);
        let Some(copier) = self.copier(which) else {
            return Ok(());
        };
        let before = copier.consumer.pending();
        let seat = copier.consumer.seat();
        let had: BTreeMap<_, _> = match mistake {
            Mistake::GivesWhatIsNew => {
                let inner = copier.consumer.lock();
                let sets = inner.blocks.iter();
                let sets = sets.filter_map(|b| Some((b.pin_source.id(), b.set(seat)?)));
                sets.map(|(id, set)| (id, set.pending.try_clone().unwrap()))
                    .collect()
            }
            _ => BTreeMap::new(),
        };
        let report = match copier.consumer.sync(When::Running) {
            Ok(report) => report,
            Err(e) if e.kind() == Kind::State => return Ok(()),
            Err(e) => return Err(format!("sync failed: {e}")),
        };
        let after = copier.consumer.pending();
        if report.found + before != after || report.pending != after {
            return Err(format!(
                "{before} pending before a sync, {after} after: {report:?}"
            ));
        }
        if !report.warnings.is_empty() && !failures {
            return Err(format!("warned: {:?}", report.warnings));
        }
        if mistake == Mistake::GivesWhatIsNew {
            let mut inner = self.tracker.lock();
            for state in inner.blocks.iter_mut() {
                let Some(had) = had.get(&state.pin_source.id()) else {
                    continue;
                };
                for set in state.sets.iter_mut().flatten() {
                    for page in 0..had.len() {
                        if had.test(page) {
                            set.pending.clear_range(page, 1);
                        }
                    }
                }
                if let Some(set) = state.set_mut(seat) {
                    set.pending.with(|pending| pending.merge(had));
                }
            }
        }
        // Nobody loses by another's sync.
        for copier in self.copiers.iter().chain(&self.migration) {
            let (_, before) = others
                .iter()
                .find(|(s, _)| *s == copier.consumer.seat())
                .unwrap();
            if copier.consumer.pending() < *before && mistake == Mistake::None {
                return Err("a sync took pages from another".into());
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        which: u32,
        max_runs: u32,
        max_pages: u32,
    ) -> std::result::Result<bool, String> {
        let failures = self.failures;
        let mistake = self.mistake;
        let tracker = Arc::clone(&self.tracker);
        let Some(copier) = self.copier(which) else {
            return Ok(false);
        };
        let before = copier.consumer.pending();
        let taken = copier.consumer.take(
            &mut copier.cursor,
            max_runs as usize,
            Pages(max_pages.into()),
        );
        let taken = match taken {
            Err(_) if failures => return Ok(false),
            Err(e) => return Err(format!("take failed: {e}")),
            Ok(taken) => taken,
        };
        let used = taken.runs().filter(|r| r.content == Content::Used);
        let got: u64 = used.map(|r| r.pages.count().0).sum();
        if copier.consumer.pending() != before - Pages(got) {
            return Err("pages vanished in a take".into());
        }
        if mistake == Mistake::TakesFromAll {
            let mut inner = tracker.lock();
            for run in taken.runs() {
                let state = inner.blocks.get_mut(run.block.id()).unwrap();
                for set in state.sets.iter_mut().flatten() {
                    set.pending
                        .clear_range(run.pages.first().index(), run.pages.count().index());
                }
            }
        }
        let more = !taken.is_empty();
        copier.flight.extend(apart(taken));
        Ok(more)
    }

    /// What a run holds is read some time after it was taken.
    fn read(kvm: &Kvm, copy: &mut Versions, taken: Taken) {
        arrives(taken, |run, page| {
            let at = run.block.host() as u64 + page * PAGE_SIZE;
            copy.insert(at, kvm.version(at));
        });
    }

    fn drain(&mut self, which: u32) -> Verdict {
        let kvm = self.kvm.clone();
        for _ in 0..2 {
            loop {
                let more = self.take(which, 64, 100_000)?;
                let Some(copier) = self.copier(which) else {
                    return Ok(());
                };
                for run in std::mem::take(&mut copier.flight) {
                    World::read(&kvm, &mut copier.copy, run);
                }
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Verdict {
        match *op {
            // A guest that is paused writes nothing.
            Op::Guest(..) | Op::Vmm(..) | Op::Race(..) if self.paused => {}
            Op::Guest(block, page) => {
                let (block, page) = self.page(block, page);
                self.kvm.guest_write(block.slot, page);
            }
            Op::Vmm(block, page) => {
                let (block, page) = self.page(block, page);
                self.kvm.other_write(block.host + page * PAGE_SIZE);
                self.tracker
                    .mark_block(block.id, Bytes(page * PAGE_SIZE + 17), 9);
            }
            Op::Race(moment, block, page) => {
                let (block, page) = self.page(block, page);
                self.kvm.race(moment, block.slot, page);
            }
            Op::Make(everything) => {
                if self.copiers.len() < 4 {
                    // What is written in the middle of a start may be found or not: it is in
                    // the copy that is made after it.
                    let made = self.make(everything, false)?;
                    self.copiers.extend(made);
                }
            }
            Op::Sync(which) => self.sync(which)?,
            Op::Take(which, runs, pages) => {
                self.take(which, runs, pages)?;
            }
            Op::Read(which) => {
                let kvm = self.kvm.clone();
                if let Some(copier) = self.copier(which) {
                    if let Some(run) = any_of(&mut copier.flight, which / 7) {
                        World::read(&kvm, &mut copier.copy, run);
                    }
                }
            }
            Op::PutBack(which) => {
                if let Some(copier) = self.copier(which) {
                    drop(any_of(&mut copier.flight, which / 7));
                }
            }
            Op::Drain(which) => self.drain(which)?,
            Op::Stop(which) => {
                // What lands in the middle of the last harvest was written before it ends or not.
                self.kvm.no_races();
                let versions = self.versions();
                let n = self.copiers.len().max(1);
                if let Some(copier) = self.copiers.get_mut(which as usize % n) {
                    if copier.consumer.is_started() {
                        copier.consumer.stop().map_err(|e| e.to_string())?;
                        copier.stopped = Some(versions);
                    }
                }
            }
            Op::Restart(which, everything) => {
                let n = self.copiers.len().max(1);
                let at = which as usize % n;
                if self.copiers.get(at).is_some_and(|c| c.stopped.is_some()) {
                    let mut copier = self.copiers.swap_remove(at);
                    if self.start(&mut copier, everything)? {
                        self.copiers.push(copier);
                    }
                }
            }
            Op::Free(which) => {
                let n = self.copiers.len().max(1);
                if (which as usize % n) < self.copiers.len() {
                    drop(self.copiers.swap_remove(which as usize % n));
                }
            }
            Op::Migrate => {
                if self.migration.is_none() {
                    if self.mistake == Mistake::MigrationForgets {
                        let mut inner = self.tracker.lock();
                        for state in inner.blocks.iter_mut() {
                            for set in state.sets.iter_mut().flatten() {
                                set.pending.with(|pending| pending.clear_all());
                            }
                        }
                    }
                    self.migration = self.make(true, true)?;
                }
            }
            Op::Pause => {
                if let Some(migration) = self.migration.as_ref().filter(|_| !self.paused) {
                    self.kvm.no_races();
                    if migration.consumer.sync(When::Stopped).is_ok() {
                        migration.consumer.freeze();
                        self.paused = true;
                    }
                }
            }
            Op::EndMigration => {
                if let Some(migration) = self.migration.take() {
                    migration.consumer.unfreeze();
                    self.paused = false;
                }
            }
            Op::Hint(block, page) => {
                if self.tracker.is_started() {
                    let (block, page) = self.page(block, page);
                    let at = GuestAddress(block.guest + page * PAGE_SIZE);
                    // A round ends with any sync of anybody's; this one is as short as can be.
                    let round = match self.tracker.hint_begin() {
                        Ok(round) => round,
                        Err(_) if self.failures => return Ok(()),
                        Err(e) => return Err(format!("a round of hints: {e}")),
                    };
                    let others: Vec<Pages> =
                        self.copiers.iter().map(|c| c.consumer.pending()).collect();
                    let hinted = self.tracker.hint_free(round, at, 3 * PAGE_SIZE);
                    hinted.map_err(|e| e.to_string())?;
                    self.tracker.hint_end(round);
                    let now = self.copiers.iter().map(|c| c.consumer.pending());
                    if !now.eq(others) {
                        return Err("a hint took pages from a consumer that skips nothing".into());
                    }
                }
            }
            Op::Fail(gets, clears) => {
                self.failures = true;
                self.kvm.fail(gets, clears);
            }
            Op::AddBlock(pages) => {
                if !self.paused {
                    self.add_block(pages);
                    // Nobody has heard of it: all of it is pending for everybody.
                }
            }
            Op::RemoveBlock(which) => {
                if self.blocks.len() > 1 {
                    self.kvm.no_races();
                    let block = self.blocks.swap_remove(which as usize % self.blocks.len());
                    for copier in self.copiers.iter_mut().chain(&mut self.migration) {
                        copier
                            .flight
                            .retain(|run| the_run(run).block.id() != block.id);
                    }
                    self.memory.remove_block(&block.name).unwrap();
                    self.kvm.delete(block.slot);
                }
            }
        }
        Ok(())
    }

    /// The guest is still: what a copy lacks is lost.
    fn finish(&mut self) -> Verdict {
        self.kvm.calm();
        self.failures = false;
        self.apply(&Op::EndMigration)?;
        let kvm = self.kvm.clone();
        for copier in &mut self.copiers {
            for (i, run) in std::mem::take(&mut copier.flight).into_iter().enumerate() {
                match i % 2 {
                    0 => World::read(&kvm, &mut copier.copy, run),
                    _ => drop(run),
                }
            }
        }
        // One sync is for all of them, whoever asks.
        if let Some(any) = self.copiers.iter().find(|c| c.consumer.is_started()) {
            any.consumer
                .sync(When::Stopped)
                .map_err(|e| e.to_string())?;
        }
        for i in 0..self.copiers.len() {
            self.drain(i as u32)?;
            let copier = &self.copiers[i];
            if copier.consumer.pending() != Pages(0) {
                return Err("a drain left pages behind".into());
            }
            let now = self.versions();
            for block in &self.blocks {
                for page in 0..block.pages {
                    let at = block.host + page * PAGE_SIZE;
                    let has = copier.copy.get(&at).copied();
                    let fine = match &copier.stopped {
                        None => has == Some(now[&at]),
                        // A page that was taken later may be newer.
                        Some(then) => then.get(&at).is_none_or(|then| has >= Some(*then)),
                    };
                    if !fine {
                        return Err(format!(
                            "page {page} of {} is lost to consumer {i} (stopped: {}): the guest \
                             has {}, the copy {has:?}",
                            block.name,
                            copier.stopped.is_some(),
                            now[&at],
                        ));
                    }
                }
            }
        }
        self.copiers.clear();
        if self.tracker.is_started() || self.blocks.iter().any(|b| self.kvm.logged(b.slot)) {
            return Err("a guest whom nobody watches is logged".into());
        }
        Ok(())
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
    let pages = prop_oneof![4 => 1..=300u64, 2 => 300..=1500u64];
    (
        prop::sample::select(vec![
            KvmMode::GetAndClear,
            KvmMode::ManualProtect,
            KvmMode::InitiallySet,
        ]),
        prop_oneof![
            4 => (6..=9u32).prop_map(|shift| Clearing::Chunked { shift }),
            1 => Just(Clearing::AtSync),
        ],
        prop::collection::vec(pages, 1..3),
    )
        .prop_map(|(mode, clearing, blocks)| Setup {
            mode,
            clearing,
            blocks,
        })
}

fn ordinary() -> impl Strategy<Value = Op> {
    let moment = prop::sample::select(vec![
        Moment::BeforeGet,
        Moment::AfterGet,
        Moment::BeforeClear,
        Moment::AfterClear,
    ]);
    // Few pages, so that several consumers meet on them.
    let page = || prop_oneof![3 => 0..6u32, 1 => any::<u32>()];
    prop_oneof![
        10 => (0..2u32, page()).prop_map(|(block, page)| Op::Guest(block, page)),
        2 => (0..2u32, page()).prop_map(|(block, page)| Op::Vmm(block, page)),
        3 => (moment, 0..2u32, page()).prop_map(|(m, block, page)| Op::Race(m, block, page)),
        3 => any::<bool>().prop_map(Op::Make),
        5 => any::<u32>().prop_map(Op::Sync),
        6 => (any::<u32>(), 1..4u32, 1..600u32).prop_map(|(c, runs, pages)| Op::Take(c, runs, pages)),
        3 => any::<u32>().prop_map(Op::Read),
        2 => any::<u32>().prop_map(Op::PutBack),
        2 => any::<u32>().prop_map(Op::Drain),
        1 => Just(Op::Migrate),
        1 => Just(Op::Pause),
        1 => Just(Op::EndMigration),
    ]
}

fn anything() -> impl Strategy<Value = Op> {
    let rare = prop_oneof![
        2 => any::<u32>().prop_map(Op::Stop),
        2 => (any::<u32>(), any::<bool>()).prop_map(|(c, with)| Op::Restart(c, with)),
        2 => any::<u32>().prop_map(Op::Free),
        2 => (0..2u32, 0..6u32).prop_map(|(block, page)| Op::Hint(block, page)),
        1 => (0..3u32, 0..3u32).prop_map(|(gets, clears)| Op::Fail(gets, clears)),
        1 => (1..200u64).prop_map(Op::AddBlock),
        1 => any::<u32>().prop_map(Op::RemoveBlock),
    ];
    prop_oneof![4 => ordinary(), 1 => rare]
}

proptest! {
    #![proptest_config(Config { cases: 384, ..Config::default() })]

    #[test]
    fn no_consumer_misses_a_write_since_its_start_whatever_others_and_migrations_do(
        setup in setup(),
        ops in prop::collection::vec(anything(), 0..150),
    ) {
        let verdict = verdict::<World>(&setup, &ops, Mistake::None);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }
}

/// Whether the oracle condemns any of `cases` random courses, always the same ones.
fn condemned(mistake: Mistake, cases: u32) -> Option<String> {
    oracle::condemned::<World>(setup(), ordinary(), 40..120, mistake, cases)
}

#[test]
fn the_oracle_acquits_an_engine_without_a_mistake() {
    assert_eq!(condemned(Mistake::None, 100), None);
}

#[test]
fn the_oracle_catches_a_clean_start_while_chunks_wait_for_their_clear() {
    let found = condemned(Mistake::StartsUnprotected, 400).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_a_migration_that_forgets_what_others_have_pending() {
    let found = condemned(Mistake::MigrationForgets, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_a_take_that_empties_what_others_have_pending() {
    let found = condemned(Mistake::TakesFromAll, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_a_sync_that_gives_others_only_what_is_new_to_one() {
    let found = condemned(Mistake::GivesWhatIsNew, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

const SMALLEST: Clearing = Clearing::Chunked { shift: 6 };
const MODES: [KvmMode; 3] = [
    KvmMode::GetAndClear,
    KvmMode::ManualProtect,
    KvmMode::InitiallySet,
];

fn quiet(mode: KvmMode) -> World {
    let setup = Setup {
        mode,
        clearing: SMALLEST,
        blocks: vec![256],
    };
    World::new(&setup, Mistake::None)
}

/// The page that the file's description tells of.
#[test]
fn a_write_to_a_page_that_another_has_pending_is_found_by_a_consumer_that_started_clean() {
    for mode in MODES {
        let mut world = quiet(mode);
        world.apply(&Op::Make(false)).unwrap();
        world.apply(&Op::Guest(0, 5)).unwrap();
        world.apply(&Op::Sync(0)).unwrap();
        world.apply(&Op::Make(false)).unwrap();
        world.apply(&Op::Guest(0, 5)).unwrap();
        world.apply(&Op::Drain(0)).unwrap();
        world.apply(&Op::Sync(1)).unwrap();
        assert_eq!(world.copiers[1].consumer.pending(), Pages(1), "{mode:?}");
        world.finish().unwrap();
    }
}

#[test]
fn a_consumer_that_starts_clean_is_not_told_of_what_was_written_before() {
    for mode in MODES {
        let mut world = quiet(mode);
        world.apply(&Op::Make(true)).unwrap();
        // Some of it harvested, some of it taken, some of it not known yet.
        for page in 0..200 {
            world.apply(&Op::Guest(0, page)).unwrap();
            if page == 100 {
                world.apply(&Op::Sync(0)).unwrap();
                world.apply(&Op::Take(0, 3, 70)).unwrap();
            }
        }
        world.apply(&Op::Make(false)).unwrap();
        for _ in 0..2 {
            world.apply(&Op::Sync(1)).unwrap();
            assert_eq!(world.copiers[1].consumer.pending(), Pages(0), "{mode:?}");
        }
        world.apply(&Op::Guest(0, 7)).unwrap();
        world.apply(&Op::Sync(0)).unwrap();
        assert_eq!(world.copiers[1].consumer.pending(), Pages(1), "{mode:?}");
        world.finish().unwrap();
    }
}

#[test]
fn what_one_takes_stays_pending_for_the_others_and_costs_them_no_second_clear() {
    for mode in MODES {
        let mut world = quiet(mode);
        world.apply(&Op::Make(false)).unwrap();
        world.apply(&Op::Make(false)).unwrap();
        for page in 0..100 {
            world.apply(&Op::Guest(0, page)).unwrap();
        }
        world.apply(&Op::Sync(0)).unwrap();
        world.apply(&Op::Drain(0)).unwrap();
        assert_eq!(world.copiers[0].consumer.pending(), Pages(0));
        assert_eq!(world.copiers[1].consumer.pending(), Pages(100), "{mode:?}");
        let clears = world.kvm.calls().clears;
        world.apply(&Op::Drain(1)).unwrap();
        assert_eq!(world.copiers[1].consumer.pending(), Pages(0));
        assert_eq!(world.kvm.calls().clears, clears, "{mode:?}");
        world.finish().unwrap();
    }
}

#[test]
fn the_logs_run_while_anybody_wants_them() {
    let world = quiet(KvmMode::Auto);
    let tracker = &world.tracker;
    let logged = || world.kvm.logged(world.blocks[0].slot);
    let [first, second] = [tracker.consumer(), tracker.consumer()];
    assert!(!logged() && !tracker.is_started());
    first.start(StartWith::Nothing).unwrap();
    let again = first.start(StartWith::Nothing).unwrap_err();
    assert_eq!(again.kind(), Kind::State);
    assert!(logged() && tracker.is_started() && !second.is_started());
    assert_eq!(second.sync(When::Running).unwrap_err().kind(), Kind::State);
    second.start(StartWith::Everything).unwrap();
    first.stop().unwrap();
    first.stop().unwrap();
    assert!(logged() && !first.is_started());
    first.start(StartWith::Everything).unwrap();
    drop(second);
    assert!(logged());
    first.abandon();
    assert!(!logged() && !tracker.is_started());
    assert_eq!(first.pending(), Pages(256), "abandoned, not freed");
}

#[test]
fn a_start_that_fails_leaves_the_others_what_they_have() {
    let mut world = quiet(KvmMode::ManualProtect);
    world.apply(&Op::Make(true)).unwrap();
    world.apply(&Op::Guest(0, 3)).unwrap();
    world.apply(&Op::Sync(0)).unwrap();
    let second = world.tracker.consumer();
    // The clear that would protect for it.
    world.kvm.fail(0, 1);
    second.start(StartWith::Nothing).unwrap_err();
    assert!(!second.is_started());
    assert_eq!(second.pending(), Pages(0));
    assert_eq!(world.copiers[0].consumer.pending(), Pages(256));
    world.kvm.calm();
    second.start(StartWith::Nothing).unwrap();
    world.apply(&Op::Guest(0, 3)).unwrap();
    second.sync(When::Running).unwrap();
    assert_eq!(second.pending(), Pages(1));
    drop(second);
    world.finish().unwrap();
}

#[test]
fn a_frozen_consumer_hears_of_new_memory_alone() {
    let mut world = quiet(KvmMode::Auto);
    world.apply(&Op::Make(false)).unwrap();
    world.apply(&Op::Migrate).unwrap();
    world.apply(&Op::Drain(1)).unwrap();
    world.apply(&Op::Pause).unwrap();
    // As of a device's log that reports all that it may write to, each time.
    world.kvm.fail(1, 0);
    world.failures = true;
    world.apply(&Op::Sync(0)).unwrap();
    let migration = world.migration.as_ref().unwrap();
    assert_eq!(world.copiers[0].consumer.pending(), Pages(256));
    assert_eq!(migration.consumer.pending(), Pages(0));
    world.add_block(7);
    let migration = world.migration.as_ref().unwrap();
    assert_eq!(migration.consumer.pending(), Pages(7));
    world.finish().unwrap();
}

/// A log that gives what it has once, straight into pending, and keeps nothing: as the VMM's marks
/// and rings do.
#[derive(Clone, Default)]
struct Moves(Arc<std::sync::Mutex<BTreeSet<u64>>>, Arc<AtomicBool>);

impl DirtyLog for Moves {
    fn kind(&self) -> LogKind {
        LogKind::Userfault
    }
    fn start(&mut self, _: &Map) -> Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
        Ok(())
    }
    fn harvest(&mut self, map: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
        let mut pages = std::mem::take(&mut *self.0.lock().unwrap());
        let fails = self.1.load(Ordering::SeqCst);
        sink.block(map.blocks()[0].id(), &mut |pending| {
            let mut new = 0;
            for page in std::mem::take(&mut pages) {
                new += pending.set_range(page as usize, 1);
            }
            match fails {
                true => Err(Error::new(Kind::Kernel, "after half of it")),
                false => Ok(new),
            }
        })?;
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        each(Extent {
            block: map.blocks()[0].id(),
            pages: 0..10,
        });
    }
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_log_moves_out_once_reaches_every_consumer() {
    let guest = testing::Guest::new(300);
    guest.block("ram", 300);
    let log = Moves::default();
    let first = guest.tracker(Box::new(log.clone()));
    let second = first.consumer();
    let third = first.consumer();
    first.start(StartWith::Nothing).unwrap();
    second.start(StartWith::Nothing).unwrap();
    let pages = |pages: &[u64]| pages.iter().map(|p| (0, *p)).collect::<BTreeSet<_>>();
    log.0.lock().unwrap().extend([3, 70, 299]);
    first.mark_block(BlockId(0), Bytes(40 * PAGE_SIZE), 1);
    let report = second.sync(When::Running).unwrap();
    assert_eq!((report.found, report.pending), (Pages(4), Pages(4)));
    assert_eq!(take_all(&first), pages(&[3, 40, 70, 299]));
    third.start(StartWith::Nothing).unwrap();
    log.0.lock().unwrap().extend([70, 71]);
    // A page that was pending already does not count again.
    assert_eq!(second.sync(When::Running).unwrap().found, Pages(1));
    assert_eq!(take_all(&first), pages(&[70, 71]));
    assert_eq!(take_all(&second), pages(&[3, 40, 70, 71, 299]));
    assert_eq!(take_all(&third), pages(&[70, 71]));
    assert_eq!(first.stats().found, Pages(6));
    assert_eq!(second.stats().found, Pages(5));
    assert_eq!(third.stats().syncs, 1);
    // One that fails in the middle: what it gave, and all that it covers.
    log.0.lock().unwrap().insert(200);
    log.1.store(true, Ordering::SeqCst);
    assert_eq!(second.sync(When::Running).unwrap().warnings.len(), 1);
    for consumer in [&first, &second, &third] {
        assert_eq!(consumer.pending(), Pages(11));
        assert_eq!(consumer.stats().failed_syncs, 1);
    }
    log.1.store(false, Ordering::SeqCst);
}

#[test]
fn words_of_any_length_and_alignment_reach_every_consumer() {
    /// Gives a long bitmap from any page on.
    struct Long(Arc<AtomicU64>);
    impl DirtyLog for Long {
        fn kind(&self) -> LogKind {
            LogKind::Vhost
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
            let from = self.0.load(Ordering::SeqCst);
            let pages = PAGES - from;
            let mut words = vec![0u64; pages.div_ceil(64) as usize];
            for page in (0..pages).filter(|page| (page + from).is_multiple_of(977)) {
                words[(page / 64) as usize] |= 1 << (page % 64);
            }
            let block = BlockId(0);
            let page = Pages(from);
            sink.bitmap(Origin::Block { block, page }, &words, Pages(pages));
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Ok(())
        }
    }
    // Several slices of a merge, and a part of one.
    const PAGES: u64 = (200 << 10) + 77;
    let guest = testing::Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let from = Arc::new(AtomicU64::new(0));
    let first = guest.tracker(Box::new(Long(Arc::clone(&from))));
    let second = first.consumer();
    first.start(StartWith::Nothing).unwrap();
    second.start(StartWith::Nothing).unwrap();
    // That was a sync for the first.
    take_all(&first);
    for at in [0, 1, 63, 64, 65_535, 65_536, 131_073, PAGES - 1] {
        from.store(at, Ordering::SeqCst);
        let expected: BTreeSet<_> = (at..PAGES)
            .filter(|page| page.is_multiple_of(977))
            .map(|page| (0, page))
            .collect();
        let found = first.sync(When::Running).unwrap().found;
        assert_eq!(found.0, expected.len() as u64);
        assert_eq!(take_all(&first), expected, "from {at}");
        assert_eq!(take_all(&second), expected, "from {at}");
    }
}

/// Threads: two that write and mark, and three consumers that sync, take, put back, stop and start
/// as they like.
#[test]
fn consumers_on_threads_of_their_own_miss_no_mark() {
    const PAGES: usize = 2048;
    let guest = testing::Guest::new(PAGES);
    let block = guest.block("ram", PAGES as u64);
    let first = guest.tracker(Box::new(Moves::default()));
    let tracker = Arc::clone(first.tracker());
    drop(first);
    let versions: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let (versions, tracker) = (&versions, &tracker);
    let stop = &AtomicBool::new(false);
    let rounds = if cfg!(debug_assertions) { 150 } else { 1500 };
    let copies: Vec<(Consumer, Vec<u64>)> = std::thread::scope(|s| {
        for n in 0..2u64 {
            s.spawn(move || {
                let mut at = n;
                while !stop.load(Ordering::Relaxed) {
                    at = at
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let page = (at >> 33) as usize % PAGES;
                    versions[page].fetch_add(1, Ordering::SeqCst);
                    tracker.mark_block(block, Bytes(page as u64 * PAGE_SIZE), 1);
                }
            });
        }
        let consumers: Vec<_> = (0..3u64)
            .map(|n| {
                s.spawn(move || {
                    let consumer = tracker.consumer();
                    let read = |page: usize| versions[page].load(Ordering::SeqCst);
                    let start = |copy: &mut Vec<u64>| {
                        // What is written between the two is found, and read again.
                        consumer.start(StartWith::Nothing).unwrap();
                        *copy = (0..PAGES).map(read).collect();
                    };
                    let mut copy = Vec::new();
                    start(&mut copy);
                    let mut cursor = Cursor::default();
                    for round in 0..rounds {
                        if round % 3 == n {
                            consumer.sync(When::Running).unwrap();
                        }
                        let taken = consumer.take(&mut cursor, 40, Pages(100)).unwrap();
                        for (i, taken) in apart(taken).into_iter().enumerate() {
                            if (round + i as u64).is_multiple_of(5) {
                                continue;
                            }
                            let run = the_run(&taken).pages;
                            let first = run.first().index();
                            let pages = &mut copy[first..run.end().index()];
                            for (i, page) in pages.iter_mut().enumerate() {
                                *page = read(first + i);
                            }
                            taken.delivered();
                        }
                        if round % 40 == 39 && n > 0 {
                            consumer.stop().unwrap();
                            start(&mut copy);
                        }
                    }
                    (consumer, copy)
                })
            })
            .collect();
        let copies = consumers.into_iter().map(|c| c.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        copies
    });
    copies[1].0.sync(When::Stopped).unwrap();
    for (n, (consumer, mut copy)) in copies.into_iter().enumerate() {
        for (_, page) in take_all(&consumer) {
            copy[page as usize] = versions[page as usize].load(Ordering::SeqCst);
        }
        for (page, version) in copy.into_iter().enumerate() {
            let now = versions[page].load(Ordering::SeqCst);
            assert_eq!(version, now, "page {page} is lost to consumer {n}");
        }
    }
}

#[test]
fn a_slot_that_comes_is_pending_for_everybody_who_is_started() {
    let guest = testing::Guest::new(100);
    guest.block("ram", 100);
    let first = guest.tracker(Box::new(Moves::default()));
    let [second, idle, done] = [first.consumer(), first.consumer(), first.consumer()];
    done.start(StartWith::Nothing).unwrap();
    done.stop().unwrap();
    first.start(StartWith::Nothing).unwrap();
    second.start(StartWith::Nothing).unwrap();
    guest.slot("ram", 10, 20, 0).unwrap();
    for (consumer, pages) in [(&first, 20), (&second, 20), (&idle, 0), (&done, 0)] {
        assert_eq!(consumer.pending(), Pages(pages));
    }
    guest.memory.remove_slot(NO_SLOT, GuestAddress(0)).unwrap();
    guest.memory.remove_block("ram").unwrap();
    assert_eq!(first.pending(), Pages(0));
}
