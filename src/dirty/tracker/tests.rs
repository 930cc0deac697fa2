//! The tracker, tried with a model of KVM. Whatever the guest, the VMM, failures and hotplug do, a
//! copy made of the pages that [`Consumer::take`] hands out ends up equal to the guest.
//!
//! The oracle is that copy. It gets a page's version when a run is *read*, which happens at any
//! time after the take. It assumes nothing else about the tracker. Engines with known mistakes
//! ([`Mistake`]) show that the oracle can fail.

mod cases;
mod logs;

use super::*;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::kvm::testing::model::{Kvm, Moment, ALL_CAPS};
use crate::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use crate::dirty::taken::Taken;
use crate::dirty::testing::oracle::{self, any_of, arrives, verdict, Model, Verdict};
use crate::dirty::testing::{apart, the_run};
use crate::dirty::{Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::memory::{BlockDescription, BlockFlags, SlotDescription};
use crate::units::{Bytes, PAGE_SIZE, STRETCH_PAGES};
use proptest::prelude::*;
use proptest::test_runner::Config;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The mistake of the engine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A page is read before the clear of its chunk.
    ReadBeforeClear,
    /// One harvested copy is used for two clears.
    ClearTwice,
    /// Whether a page is a hole, and need not be read, is looked up before the clear.
    HoleTestBeforeClear,
}

#[derive(Debug, Clone)]
struct SlotSpec {
    block: u32,
    first: u32,
    pages: u32,
    /// Address space 1, which system management mode uses.
    smm: bool,
    gap: u32,
}

#[derive(Debug, Clone)]
struct Setup {
    mode: KvmMode,
    clearing: Clearing,
    start_with: StartWith,
    blocks: Vec<u64>,
    slots: Vec<SlotSpec>,
}

#[derive(Debug, Clone)]
enum Op {
    /// The guest writes.
    Guest {
        slot: u32,
        page: u32,
    },
    /// The VMM writes, then marks.
    Vmm {
        block: u32,
        page: u32,
        pages: u32,
        by_guest: bool,
    },
    /// The guest writes in the middle of a later call to the kernel.
    Race {
        moment: Moment,
        slot: u32,
        page: u32,
    },
    Sync,
    SyncStopped,
    Take {
        runs: u32,
        pages: u32,
    },
    /// A run that was taken and not read yet is read.
    Read(u32),
    PutBack(u32),
    /// Every pending page is taken and read.
    Drain,
    MarkAll,
    Fail {
        gets: u32,
        clears: u32,
    },
    AddSlot(SlotSpec),
    RefusedSlot(SlotSpec),
    RemoveSlot(u32),
    AddBlock(u64),
    RemoveBlock(u32),
    Restart,
}

struct BlockInfo {
    id: BlockId,
    name: String,
    host: u64,
    pages: u64,
}

struct SlotInfo {
    slot: u32,
    block: BlockId,
    first: u64,
    pages: u64,
    guest: u64,
}

struct Flight {
    /// Taken pages of one run.
    taken: Taken,
    /// Pages that an engine with a mistake has decided on before the take: versions by host page.
    early: Rc<HashMap<u64, u64>>,
}

struct World {
    mistake: Mistake,
    kvm: Kvm,
    memory: Arc<Memory>,
    consumer: Consumer,
    blocks: Vec<BlockInfo>,
    slots: Vec<SlotInfo>,
    /// By host address.
    copy: HashMap<u64, u64>,
    flight: Vec<Flight>,
    cursor: Cursor,
    /// GETs and CLEARs may fail.
    failures: bool,
    next: u64,
    guest_end: [u64; 2],
}

macro_rules! expect {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}

/// One of `pages` pages. Pages at multiples of 64 and at the ends come more often, because mistakes
/// show there. A few pages come again and again.
fn pick(selector: u32, pages: u64) -> u64 {
    let s = u64::from(selector / 4);
    let page = match selector % 4 {
        0 => s % 8 * (pages / 8),
        1 => (s % (pages / 64 + 1) * 64).saturating_sub(s / 7 % 2),
        2 => pages - 1 - s % pages.min(3),
        _ => s % pages,
    };
    page.min(pages - 1)
}

impl World {
    fn new(setup: &Setup, mistake: Mistake) -> World {
        let kvm = Kvm::new(ALL_CAPS);
        if mistake == Mistake::ClearTwice {
            kvm.clear_twice();
        }
        let memory = Arc::new(Memory::new().unwrap());
        let tracker = Tracker::new(Arc::clone(&memory), setup.clearing).unwrap();
        tracker
            .add_log(Box::new(KvmLog::new(
                kvm.vm(),
                setup.mode,
                LogSwitch::Brant,
            )))
            .unwrap();
        let mut world = World {
            mistake,
            kvm,
            memory,
            consumer: tracker.consumer(),
            blocks: Vec::new(),
            slots: Vec::new(),
            copy: HashMap::new(),
            flight: Vec::new(),
            cursor: Cursor::default(),
            failures: false,
            next: 1,
            guest_end: [0; 2],
        };
        for &pages in &setup.blocks {
            world.add_block(pages);
        }
        for slot in &setup.slots {
            world.add_slot(slot, false);
        }
        world.start(setup.start_with);
        world
    }

    fn start(&mut self, with: StartWith) {
        self.consumer.start(with).unwrap();
        self.cursor = Cursor::default();
        self.copy.clear();
        if with == StartWith::Nothing {
            // A consumer that starts with nothing has a copy already.
            for block in &self.blocks {
                for page in 0..block.pages {
                    let at = block.host + page * PAGE_SIZE;
                    self.copy.insert(at, self.kvm.version(at));
                }
            }
        }
    }

    fn add_block(&mut self, pages: u64) {
        // Addresses of the test's choice, at which nothing is mapped: this memory is never
        // accessed.
        let host = 0x2000_0000_0000 + self.next * (1 << 36);
        let name = format!("b{}", self.next);
        self.next += 1;
        let id = self
            .memory
            .add_block(BlockDescription {
                name: name.clone(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
                length: Bytes(pages * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        self.blocks.push(BlockInfo {
            id,
            name,
            host,
            pages,
        });
    }

    fn add_slot(&mut self, spec: &SlotSpec, refused: bool) {
        if self.blocks.is_empty() {
            return;
        }
        let block = &self.blocks[spec.block as usize % self.blocks.len()];
        let first = pick(spec.first, block.pages);
        let pages = 1 + u64::from(spec.pages) % (block.pages - first);
        let space = usize::from(spec.smm);
        let guest = self.guest_end[space] + u64::from(spec.gap) * PAGE_SIZE;
        let slot = (space as u32) << 16 | self.next as u32;
        self.next += 1;
        self.guest_end[space] = guest + pages * PAGE_SIZE;
        // The VMM creates the slot, then announces it.
        self.kvm
            .create(slot, block.host + first * PAGE_SIZE, pages, guest);
        if refused {
            self.kvm.fail_regions(1);
        }
        let added = self.memory.add_slot(&SlotDescription {
            slot,
            flags: 0,
            block: self.memory.find_block(&block.name).unwrap(),
            offset: Bytes(first * PAGE_SIZE),
            length: Bytes(pages * PAGE_SIZE),
            guest_address: GuestAddress(guest),
        });
        if refused {
            self.kvm.fail_regions(0);
            added.unwrap_err();
            self.kvm.delete(slot);
            return;
        }
        added.unwrap();
        self.slots.push(SlotInfo {
            slot,
            block: block.id,
            first,
            pages,
            guest,
        });
    }

    fn slot_page(&self, slot: u32, page: u32) -> Option<(u32, u64)> {
        let at = slot as usize % self.slots.len().max(1);
        let slot = self.slots.get(at)?;
        Some((slot.slot, pick(page, slot.pages)))
    }

    fn vmm_write(&mut self, block: u32, page: u32, pages: u32, by_guest: bool) {
        let at = block as usize % self.blocks.len().max(1);
        let Some(block) = self.blocks.get(at) else {
            return;
        };
        let first = pick(page, block.pages);
        let pages = u64::from(pages).min(block.pages - first);
        for page in first..first + pages {
            self.kvm.other_write(block.host + page * PAGE_SIZE);
        }
        // From the middle of the first page to the first byte of the last.
        let offset = first * PAGE_SIZE + 4095;
        let length = (pages - 1) * PAGE_SIZE + 1 - (pages > 1) as u64 * 4094;
        let shown = self.slots.iter().find(|s| {
            by_guest
                && s.block == block.id
                && s.first <= first
                && first + pages <= s.first + s.pages
        });
        match shown {
            Some(slot) => {
                let guest = slot.guest + (offset - slot.first * PAGE_SIZE);
                self.consumer.mark_guest(GuestAddress(guest), length);
            }
            None => self.consumer.mark_block(block.id, Bytes(offset), length),
        }
    }

    fn sync(&mut self, when: When) -> Verdict {
        let before = self.consumer.pending().0;
        let report = match self.consumer.sync(when) {
            Ok(report) => report,
            Err(e) => {
                expect!(self.failures && when == When::Stopped, "sync failed: {e}");
                return Ok(());
            }
        };
        expect!(
            report.warnings.is_empty() || self.failures,
            "warned: {:?}",
            report.warnings
        );
        let after = self.consumer.pending().0;
        // A page that was pending already does not count again.
        expect!(
            report.found.0 == after - before && report.pending.0 == after,
            "{before} pending, found {}, {} pending by the report and {after} in truth",
            report.found,
            report.pending
        );
        let sum: u64 = report.logs.iter().map(|l| l.found.0).sum();
        expect!(sum == report.found.0, "the logs' shares do not add up");
        Ok(())
    }

    fn take(&mut self, max_runs: u32, max_pages: u32) -> std::result::Result<bool, String> {
        let early = Rc::new(self.early());
        let before = self.consumer.pending().0;
        let taken =
            self.consumer
                .take(&mut self.cursor, max_runs as usize, Pages(max_pages.into()));
        let got = taken.as_ref().map_or(0, |taken| taken.pages().0);
        expect!(
            self.consumer.pending().0 == before - got,
            "pages vanished in a take"
        );
        let taken = match taken {
            Ok(taken) => taken,
            Err(e) => {
                expect!(self.failures, "take failed: {e}");
                return Ok(true);
            }
        };
        expect!(
            got <= u64::from(max_pages) && taken.run_count() <= max_runs as usize,
            "more was handed out than asked for"
        );
        let more = !taken.is_empty();
        for taken in apart(taken) {
            let pages = the_run(&taken).pages;
            expect!(
                pages.first().0 / STRETCH_PAGES == (pages.end().0 - 1) / STRETCH_PAGES,
                "a run crosses a stretch"
            );
            self.flight.push(Flight {
                taken,
                early: Rc::clone(&early),
            });
        }
        Ok(more)
    }

    /// The pages that an engine with a mistake decides on before the take.
    fn early(&self) -> HashMap<u64, u64> {
        let hosts = self
            .blocks
            .iter()
            .flat_map(|b| (0..b.pages).map(|p| b.host + p * PAGE_SIZE));
        let versions = hosts.map(|at| (at, self.kvm.version(at)));
        match self.mistake {
            Mistake::ReadBeforeClear => versions.collect(),
            // A page that was never written is a hole: it is zero, and not read.
            Mistake::HoleTestBeforeClear => versions.filter(|(_, v)| *v == 0).collect(),
            Mistake::None | Mistake::ClearTwice => HashMap::new(),
        }
    }

    fn read(&mut self, flight: Flight) {
        arrives(flight.taken, |run, page| {
            let at = run.block.host() as u64 + page * PAGE_SIZE;
            let early = flight.early.get(&at).copied();
            let version = early.unwrap_or_else(|| self.kvm.version(at));
            self.copy.insert(at, version);
        });
    }

    fn drain(&mut self) -> Verdict {
        // A walk that begins in the middle comes to the end first.
        for _ in 0..2 {
            while self.take(64, 100_000)? {
                if self.failures && self.flight.is_empty() {
                    return Ok(());
                }
                for flight in std::mem::take(&mut self.flight) {
                    self.read(flight);
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Verdict {
        match op {
            Op::Guest { slot, page } => {
                if let Some((slot, page)) = self.slot_page(*slot, *page) {
                    self.kvm.guest_write(slot, page);
                }
            }
            Op::Vmm {
                block,
                page,
                pages,
                by_guest,
            } => {
                self.vmm_write(*block, *page, *pages, *by_guest);
            }
            Op::Race { moment, slot, page } => {
                if let Some((slot, page)) = self.slot_page(*slot, *page) {
                    self.kvm.race(*moment, slot, page);
                }
            }
            Op::Sync => self.sync(When::Running)?,
            Op::SyncStopped => self.sync(When::Stopped)?,
            Op::Take { runs, pages } => {
                self.take(*runs, *pages)?;
            }
            Op::Read(which) => {
                if let Some(flight) = any_of(&mut self.flight, *which) {
                    self.read(flight);
                }
            }
            Op::PutBack(which) => {
                drop(any_of(&mut self.flight, *which));
            }
            Op::Drain => self.drain()?,
            Op::MarkAll => self.consumer.mark_all(),
            Op::Fail { gets, clears } => {
                self.failures = true;
                self.kvm.fail(*gets, *clears);
            }
            Op::AddSlot(spec) => self.add_slot(spec, false),
            Op::RefusedSlot(spec) => self.add_slot(spec, true),
            Op::RemoveSlot(which) => {
                // By contract nobody writes through a slot that goes.
                self.kvm.no_races();
                if !self.slots.is_empty() {
                    let slot = self.slots.swap_remove(*which as usize % self.slots.len());
                    self.memory
                        .remove_slot(slot.slot, GuestAddress(slot.guest))
                        .unwrap();
                    self.kvm.delete(slot.slot);
                }
            }
            Op::AddBlock(pages) => self.add_block(*pages),
            Op::RemoveBlock(which) => {
                if self.blocks.len() > 1 {
                    self.kvm.no_races();
                    let block = self.blocks.swap_remove(*which as usize % self.blocks.len());
                    // The removal waits for the holder of a run of the block.
                    self.flight
                        .retain(|f| the_run(&f.taken).block.id() != block.id);
                    self.memory
                        .remove_block(self.memory.find_block(&block.name).unwrap())
                        .unwrap();
                    let (gone, slots) = std::mem::take(&mut self.slots)
                        .into_iter()
                        .partition(|s| s.block == block.id);
                    self.slots = slots;
                    for slot in gone as Vec<SlotInfo> {
                        self.kvm.delete(slot.slot);
                    }
                }
            }
            Op::Restart => {
                self.flight.clear();
                self.consumer.stop().map_err(|e| e.to_string())?;
                for slot in &self.slots {
                    expect!(!self.kvm.logged(slot.slot), "a slot stays logged");
                }
                self.kvm.calm();
                self.start(StartWith::Everything);
            }
        }
        Ok(())
    }

    /// The guest stands still: a page that the copy lacks now is lost.
    fn finish(&mut self) -> Verdict {
        self.kvm.calm();
        self.failures = false;
        let flight = std::mem::take(&mut self.flight);
        for (i, flight) in flight.into_iter().enumerate() {
            if i % 2 == 0 {
                self.read(flight);
            }
        }
        self.sync(When::Stopped)?;
        self.drain()?;
        expect!(self.consumer.pending().0 == 0, "a drain left pages behind");
        for block in &self.blocks {
            for page in 0..block.pages {
                let at = block.host + page * PAGE_SIZE;
                let (guest, copy) = (self.kvm.version(at), self.copy.get(&at).copied());
                expect!(
                    copy == Some(guest),
                    "page {page} of {} is lost: the guest has version {guest}, the copy {copy:?}",
                    block.name
                );
            }
        }
        // No clean page comes twice.
        for when in [When::Running, When::Stopped] {
            self.sync(when)?;
            let again = self.consumer.pending();
            expect!(again.0 == 0, "{again} clean pages were found again");
        }
        self.consumer.stop().map_err(|e| e.to_string())?;
        for slot in &self.slots {
            expect!(!self.kvm.logged(slot.slot), "a slot stays logged");
        }
        expect!(self.kvm.mode() == 0, "the mode stays set");
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

fn block_pages() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1..=300u64, 4 => 300..=3000u64, 1 => 12_000..=12_300u64]
}

fn slot_spec() -> impl Strategy<Value = SlotSpec> {
    let parts = (
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        prop::bool::weighted(0.25),
        0..3u32,
    );
    parts.prop_map(|(block, first, pages, smm, gap)| SlotSpec {
        block,
        first,
        pages,
        smm,
        gap,
    })
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop::sample::select(vec![
            KvmMode::GetAndClear,
            KvmMode::ManualProtect,
            KvmMode::InitiallySet,
        ]),
        prop_oneof![
            2 => (6..=8u32).prop_map(|shift| Clearing::Chunked { shift }),
            2 => (6..=20u32).prop_map(|shift| Clearing::Chunked { shift }),
            1 => Just(Clearing::AtSync),
        ],
        prop_oneof![
            3 => Just(StartWith::Everything),
            1 => Just(StartWith::Nothing),
        ],
        prop::collection::vec(block_pages(), 1..4),
        prop::collection::vec(slot_spec(), 0..7),
    )
        .prop_map(|(mode, clearing, start_with, blocks, slots)| Setup {
            mode,
            clearing,
            start_with,
            blocks,
            slots,
        })
}

/// The ordinary events of a migration.
fn ordinary() -> impl Strategy<Value = Op> {
    let moment = prop::sample::select(vec![
        Moment::BeforeGet,
        Moment::AfterGet,
        Moment::BeforeClear,
        Moment::AfterClear,
    ]);
    prop_oneof![
        8 => (any::<u32>(), any::<u32>()).prop_map(|(slot, page)| Op::Guest { slot, page }),
        3 => (any::<u32>(), any::<u32>(), 1..5u32, any::<bool>()).prop_map(
            |(block, page, pages, by_guest)| Op::Vmm { block, page, pages, by_guest }
        ),
        4 => (moment, any::<u32>(), any::<u32>())
            .prop_map(|(moment, slot, page)| Op::Race { moment, slot, page }),
        4 => Just(Op::Sync),
        6 => (1..6u32, 1..1500u32).prop_map(|(runs, pages)| Op::Take { runs, pages }),
        4 => any::<u32>().prop_map(Op::Read),
        2 => any::<u32>().prop_map(Op::PutBack),
        2 => Just(Op::Drain),
    ]
}

/// Failures and hotplug as well.
fn anything() -> impl Strategy<Value = Op> {
    let rare = prop_oneof![
        1 => Just(Op::SyncStopped),
        1 => Just(Op::MarkAll),
        3 => (0..3u32, 0..3u32).prop_map(|(gets, clears)| Op::Fail { gets, clears }),
        2 => slot_spec().prop_map(Op::AddSlot),
        1 => slot_spec().prop_map(Op::RefusedSlot),
        2 => any::<u32>().prop_map(Op::RemoveSlot),
        1 => block_pages().prop_map(Op::AddBlock),
        1 => any::<u32>().prop_map(Op::RemoveBlock),
        1 => Just(Op::Restart),
    ];
    prop_oneof![4 => ordinary(), 1 => rare]
}

proptest! {
    #![proptest_config(Config { cases: 256, ..Config::default() })]

    #[test]
    fn the_copy_equals_the_guest_whatever_happens_in_between(
        setup in setup(),
        ops in prop::collection::vec(anything(), 0..120),
    ) {
        let verdict = verdict::<World>(&setup, &ops, Mistake::None);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }

    #[test]
    fn the_copy_equals_the_guest_in_an_undisturbed_migration(
        setup in setup(),
        ops in prop::collection::vec(ordinary(), 0..120),
    ) {
        let verdict = verdict::<World>(&setup, &ops, Mistake::None);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }
}

/// Whether the oracle finds a loss in any of `cases` random migrations, always the same ones.
fn condemned(mistake: Mistake, cases: u32) -> Option<String> {
    oracle::condemned::<World>(setup(), ordinary(), 40..120, mistake, cases)
}

#[test]
fn the_oracle_acquits_an_engine_without_a_mistake() {
    assert_eq!(condemned(Mistake::None, 60), None);
}

#[test]
fn the_oracle_catches_a_read_before_the_clear() {
    let found = condemned(Mistake::ReadBeforeClear, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_one_copy_used_for_two_clears() {
    let found = condemned(Mistake::ClearTwice, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

#[test]
fn the_oracle_catches_a_hole_test_before_the_clear() {
    let found = condemned(Mistake::HoleTestBeforeClear, 200).expect("the page is lost");
    assert!(found.contains("is lost"), "{found}");
}

/// One block of `pages` in one slot from page `first` on, with a complete copy.
fn settled(clearing: Clearing, pages: u64, first: u32, mistake: Mistake) -> World {
    let setup = Setup {
        mode: KvmMode::InitiallySet,
        clearing,
        start_with: StartWith::Everything,
        blocks: vec![pages],
        slots: vec![],
    };
    let mut world = World::new(&setup, mistake);
    let length = pages as u32 - first;
    world.add_slot(
        &SlotSpec {
            block: 0,
            // `pick` makes exactly `first` of this.
            first: first * 4 + 3,
            pages: length - 1,
            smm: false,
            gap: 0,
        },
        false,
    );
    assert_eq!(world.slots[0].first, u64::from(first));
    assert_eq!(world.slots[0].pages, u64::from(length));
    world.sync(When::Running).unwrap();
    world.drain().unwrap();
    world
}

const SMALLEST: Clearing = Clearing::Chunked { shift: 6 };
