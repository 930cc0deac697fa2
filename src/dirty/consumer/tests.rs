//! Several consumers of one tracker, tried with a model of KVM. Whatever each consumer does, and
//! whatever migrations run in between, no consumer misses a write since its start.
//!
//! The oracle is a copy for each consumer, made only of the pages that it takes. Engines with known
//! mistakes ([`Mistake`]) show that the oracle can fail.

mod cases;
mod removal;

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

/// The mistake of the engine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A consumer starts clean while chunks are still armed.
    StartsUnprotected,
    /// A migration begins by forgetting every consumer's pending pages.
    MigrationForgets,
    /// A take empties every consumer's pending.
    TakesFromAll,
    /// Other consumers get only the pages that were new to the one that synced.
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
    /// A sync by any consumer, which may be the migration.
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
    /// The guest is paused, and the last harvest is made.
    Pause,
    /// The migration ends, whatever it has delivered, and the guest runs.
    EndMigration,
    /// The guest hints that pages are free, which is true.
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

/// A consumer with its copy.
struct Copier {
    consumer: Consumer,
    /// By host address.
    copy: Versions,
    cursor: Cursor,
    /// Taken pages that are not read yet, one run each.
    flight: Vec<Taken>,
    /// The guest's contents when the consumer was stopped.
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
    /// The guest is paused, and the migration's last harvest has been made.
    paused: bool,
    /// Calls of the model fail now and then.
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
                // SAFETY: the memory is never accessed.
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
            block: id,
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

    /// Starts a consumer. `false` if that failed, which is allowed when the kernel's calls fail.
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
        // The copy is made anew, or has these pages already.
        copier.flight.drain(..).for_each(Taken::delivered);
        copier.cursor = Cursor::default();
        // A consumer that starts with nothing has a copy already.
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
        copier.consumer.skip_ballooned(skips);
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
        // No consumer loses pages by another one's sync.
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

    /// The pages of a run are read some time after the take.
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
            // A paused guest writes nothing.
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
                    // A write in the middle of a start may be found or not, because the copy that
                    // is made afterwards has it.
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
                // A write in the middle of the last harvest may come before the harvest's end or
                // after it.
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
                    // A round ends with any consumer's sync, so this one is as short as possible.
                    let round = match self.tracker.begin_hints() {
                        Ok(round) => round,
                        Err(_) if self.failures => return Ok(()),
                        Err(e) => return Err(format!("a round of hints: {e}")),
                    };
                    let others: Vec<Pages> =
                        self.copiers.iter().map(|c| c.consumer.pending()).collect();
                    let hinted = self.tracker.hint_free(round, at, 3 * PAGE_SIZE);
                    hinted.map_err(|e| e.to_string())?;
                    self.tracker.end_hints(round);
                    let now = self.copiers.iter().map(|c| c.consumer.pending());
                    if !now.eq(others) {
                        return Err(
                            "a hint took pages from a consumer that reads ballooned pages".into(),
                        );
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
                    // No consumer was told of these pages, so they are pending for all.
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
                    self.memory
                        .remove_block(self.memory.find_block(&block.name).unwrap())
                        .unwrap();
                    self.kvm.delete(block.slot);
                }
            }
        }
        Ok(())
    }

    /// The guest stands still: a page that a copy lacks now is lost.
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
        // One sync serves all consumers, whoever makes it.
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

/// Whether the oracle finds a loss in any of `cases` random courses, always the same ones.
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
