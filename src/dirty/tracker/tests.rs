//! The tracker against a model of KVM: whatever the guest, the VMM, failures and hotplug
//! do in between, a copy made from what [`Consumer::take`] hands out ends up equal to the
//! guest.
//!
//! The oracle is that copy. It gets a page's version when a run is *read*, which the tests
//! put at any time after the take. Nothing else is assumed of how the tracker works. That
//! the oracle can fail is shown by giving it engines with known mistakes ([`Mistake`]).

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

/// What is wrong with the engine under test.
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
    /// Address space 1, which system-management mode uses.
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
    /// One of the runs taken and not read yet is read.
    Read(u32),
    PutBack(u32),
    /// Everything pending is taken and read.
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
    /// One run.
    taken: Taken,
    /// What the engine with a mistake has made its mind up about: versions by host page.
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
    /// Gets and clears that may fail.
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

/// A page of `pages`, more often one where something could go wrong: at multiples of 64,
/// at the ends, and a few that come again and again.
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
            // Whoever starts with nothing has a copy already.
            for block in &self.blocks {
                for page in 0..block.pages {
                    let at = block.host + page * PAGE_SIZE;
                    self.copy.insert(at, self.kvm.version(at));
                }
            }
        }
    }

    fn add_block(&mut self, pages: u64) {
        // Addresses of our own choice: nobody looks at this memory, and nothing is there.
        let host = 0x2000_0000_0000 + self.next * (1 << 36);
        let name = format!("b{}", self.next);
        self.next += 1;
        let id = self
            .memory
            .add_block(BlockDescription {
                name: name.clone(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
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
            block: block.name.clone(),
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

    /// What an engine with a mistake decides before the take.
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
                // The contract: nobody writes through a slot that goes.
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
                    // The removal waits for whoever holds a run of it.
                    self.flight
                        .retain(|f| the_run(&f.taken).block.id() != block.id);
                    self.memory.remove_block(&block.name).unwrap();
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

    /// The guest is still: what the copy lacks is lost.
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

/// What happens in the ordinary course of a migration.
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

/// And what goes wrong, comes and goes.
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

/// How many of `cases` random migrations the oracle condemns, all of them always the same.
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

/// One block of `pages` in one slot from page `first` on, all of the copy made already.
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
            // As `pick` reads it: exactly `first`.
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

#[test]
fn a_write_between_harvest_and_take_is_in_what_is_read_after_the_take() {
    for mistake in [Mistake::None, Mistake::ReadBeforeClear] {
        let mut world = settled(SMALLEST, 256, 0, mistake);
        let slot = world.slots[0].slot;
        world.kvm.guest_write(slot, 5);
        world.sync(When::Running).unwrap();
        // Page 5 is not protected any more, and its bit is in the copy: the kernel will not
        // tell of this write. The clear comes after it, so the reading must too.
        world.kvm.race(Moment::BeforeClear, slot, 5);
        world.take(1, 1).unwrap();
        assert_eq!(world.finish().is_ok(), mistake == Mistake::None);
    }
}

#[test]
fn a_hole_written_between_harvest_and_take_is_not_lost() {
    for mistake in [Mistake::None, Mistake::HoleTestBeforeClear] {
        let setup = Setup {
            mode: KvmMode::InitiallySet,
            clearing: SMALLEST,
            start_with: StartWith::Everything,
            blocks: vec![256],
            slots: vec![SlotSpec {
                block: 0,
                first: 3,
                pages: 255,
                smm: false,
                gap: 0,
            }],
        };
        let mut world = World::new(&setup, mistake);
        world.sync(When::Running).unwrap();
        world.kvm.race(Moment::BeforeClear, world.slots[0].slot, 5);
        world.take(1, 64).unwrap();
        assert_eq!(world.finish().is_ok(), mistake == Mistake::None);
    }
}

#[test]
fn a_chunk_rounded_out_to_64_pages_leaves_its_neighbours_new_bits_alone() {
    for mistake in [Mistake::None, Mistake::ClearTwice] {
        // The slot begins at page 32 of the block: word 0 of its bitmap is in two chunks.
        let mut world = settled(SMALLEST, 256, 32, mistake);
        let slot = world.slots[0].slot;
        world.kvm.guest_write(slot, 10);
        world.kvm.guest_write(slot, 40);
        world.sync(When::Running).unwrap();
        // Block page 42: chunk 0. Its clear is rounded out over slot page 40, block page 72.
        world.take(1, 1).unwrap();
        assert!(world.kvm.is_protected(slot, 40));
        let flight = world.flight.pop().unwrap();
        assert_eq!(the_run(&flight.taken).pages.first().0, 42);
        world.read(flight);
        // Written again after it was read: only the kernel's bit knows.
        world.kvm.guest_write(slot, 10);
        let clears = world.kvm.calls().clears;
        world.take(1, 1).unwrap();
        if mistake == Mistake::None {
            assert_eq!(
                world.kvm.calls().clears,
                clears,
                "there was nothing left to clear"
            );
        } else {
            // What the second clear of an unconsumed copy does.
            world.kvm.guest_write(slot, 100);
            world.sync(When::Running).unwrap();
            // The first sync found page 10 again, so here it is taken, read, written ...
            world.drain().unwrap();
            world.kvm.guest_write(slot, 10);
            world.kvm.guest_write(slot, 200);
            world.sync(When::Running).unwrap();
            world.take(1, 1).unwrap();
            let flight = world.flight.pop().unwrap();
            world.read(flight);
            world.kvm.guest_write(slot, 10);
            // ... and the clear of another chunk uses the old words once more.
            world.take(1, 1).unwrap();
        }
        assert_eq!(world.finish().is_ok(), mistake == Mistake::None);
    }
}

#[test]
fn a_block_that_is_no_multiple_of_64_pages_costs_what_an_aligned_one_costs() {
    for clearing in [Clearing::AtSync, Clearing::default()] {
        let calls = [(4096, 0), (4133, 37), (4133, 1)].map(|(pages, first)| {
            let mut world = settled(clearing, pages, first, Mistake::None);
            let before = world.kvm.calls();
            for page in [0, 1, 100, 1023, 4095] {
                world.kvm.guest_write(world.slots[0].slot, page);
            }
            world.sync(When::Running).unwrap();
            world.drain().unwrap();
            let after = world.kvm.calls();
            world.finish().unwrap();
            (after.gets - before.gets, after.clears - before.clears)
        });
        assert!(calls.iter().all(|c| *c == calls[0]), "{calls:?}");
        assert_eq!(calls[0].1, 1, "one clear for all of it");
    }
}

#[test]
fn a_failed_get_when_a_slot_goes_loses_no_page() {
    let setup = Setup {
        mode: KvmMode::GetAndClear,
        clearing: SMALLEST,
        start_with: StartWith::Everything,
        blocks: vec![100],
        slots: vec![SlotSpec {
            block: 0,
            first: 3,
            pages: 99,
            smm: false,
            gap: 0,
        }],
    };
    let mut world = World::new(&setup, Mistake::None);
    world.drain().unwrap();
    world.kvm.guest_write(world.slots[0].slot, 7);
    world.apply(&Op::Fail { gets: 1, clears: 0 }).unwrap();
    world.apply(&Op::RemoveSlot(0)).unwrap();
    world.finish().unwrap();
}

#[test]
fn a_slot_that_was_deleted_before_it_was_removed_counts_as_dirty_and_is_not_made_again() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    let slot = world.slots.remove(0);
    world.kvm.guest_write(slot.slot, 7);
    // The wrong order: what it logged is gone, and so is the slot.
    world.kvm.delete(slot.slot);
    let guest = GuestAddress(slot.guest);
    world.memory.remove_slot(slot.slot, guest).unwrap();
    assert!(
        !world.kvm.exists(slot.slot),
        "made anew by switching it off"
    );
    assert_eq!(world.consumer.pending(), Pages(256));
    world.finish().unwrap();
    // And so when the whole block goes.
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    let slot = world.slots.remove(0);
    world.kvm.delete(slot.slot);
    world.memory.remove_block(&world.blocks[0].name).unwrap();
    assert!(!world.kvm.exists(slot.slot));
}

#[test]
fn a_take_of_any_number_of_pages_is_cut_at_the_stretch() {
    let world = settled(SMALLEST, 2000, 0, Mistake::None);
    world.consumer.mark_all();
    let taken = world
        .consumer
        .take(&mut Cursor::default(), usize::MAX, Pages(u64::MAX))
        .unwrap();
    let found: Vec<_> = taken
        .runs()
        .map(|r| (r.pages.first().0, r.pages.count().0))
        .collect();
    assert_eq!(found, [(0, 512), (512, 512), (1024, 512), (1536, 464)]);
}

#[test]
fn a_take_whose_clear_fails_takes_nothing_and_can_be_made_again() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    for page in [3, 100, 200] {
        world.kvm.guest_write(world.slots[0].slot, page);
    }
    world.sync(When::Running).unwrap();
    let mut cursor = Cursor::default();
    let first = world.consumer.take(&mut cursor, 1, Pages(1)).unwrap();
    first.delivered();
    let begun = cursor;
    world
        .kvm
        .race(Moment::BeforeClear, world.slots[0].slot, 200);
    world.kvm.fail(0, 1);
    let error = world.consumer.take(&mut cursor, 9, Pages(9)).unwrap_err();
    assert!(error.message().contains("of block `b1`"), "{error}");
    assert_eq!((cursor, world.consumer.pending()), (begun, Pages(2)));
    let runs = world.consumer.take(&mut cursor, 9, Pages(9)).unwrap();
    let found: Vec<_> = runs.runs().map(|r| r.pages.first().0).collect();
    assert_eq!(found, [100, 200]);
}

/// The observer of a second tracker, which refuses.
struct Refuses(AtomicBool);

impl MapObserver for Refuses {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Busy, "not now")),
            false => Ok(()),
        }
    }
}

#[test]
fn a_change_that_another_observer_refuses_loses_no_page() {
    for mode in [
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
    ] {
        let setup = Setup {
            mode,
            clearing: SMALLEST,
            start_with: StartWith::Everything,
            blocks: vec![300, 100],
            slots: vec![
                SlotSpec {
                    block: 0,
                    first: 3,
                    pages: 299,
                    smm: false,
                    gap: 0,
                },
                SlotSpec {
                    block: 1,
                    first: 3,
                    pages: 99,
                    smm: false,
                    gap: 0,
                },
            ],
        };
        let mut world = World::new(&setup, Mistake::None);
        let refuses = Arc::new(Refuses(AtomicBool::new(true)));
        let weak: Weak<dyn MapObserver> = {
            let weak: Weak<Refuses> = Arc::downgrade(&refuses);
            weak
        };
        world.memory.observe(weak);
        world.drain().unwrap();
        let slot = world.slots[0].slot;
        world.kvm.guest_write(slot, 7);
        world.vmm_write(0, 9 * 4 + 3, 1, false);
        let error = world.memory.remove_block(&world.blocks[0].name);
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
        let guest = GuestAddress(world.slots[1].guest);
        let error = world.memory.remove_slot(world.slots[1].slot, guest);
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
        world.kvm.guest_write(slot, 8);
        world.sync(When::Running).unwrap();
        assert!(world.consumer.pending().0 >= 3);
        let error = world.memory.add_block(BlockDescription {
            name: "refused".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { crate::memory::HostMemory::new((1u64 << 45) as *mut u8) },
            length: Bytes(77 * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
        world.drain().unwrap();
        refuses.0.store(false, Ordering::SeqCst);
        world.add_block(200);
        world.vmm_write(2, 199 * 4 + 3, 1, false);
        world.finish().unwrap();
    }
}

#[test]
fn a_change_that_a_later_log_refuses_loses_no_page() {
    struct Refusing;
    impl DirtyLog for Refusing {
        fn kind(&self) -> LogKind {
            LogKind::Vhost
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, _: &mut dyn Sink) -> Result<Harvested> {
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Err(Error::new(Kind::Busy, "not now"))
        }
    }
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    world.consumer.stop().unwrap();
    world.consumer.add_log(Box::new(Refusing)).unwrap();
    world.start(StartWith::Nothing);
    let (slot, guest) = (world.slots[0].slot, GuestAddress(world.slots[0].guest));
    world.kvm.guest_write(slot, 7);
    // After the harvest of the slot that was to go: only the kernel's bit knows, and the
    // log, led back, has a copy of all ones.
    world.kvm.race(Moment::AfterGet, slot, 8);
    let error = world.memory.remove_slot(slot, guest).unwrap_err();
    assert!(error.message().starts_with("vhost: "), "{error}");
    world.take(1, 1).unwrap();
    world.finish().unwrap();
}

#[test]
fn a_start_knows_a_change_that_was_announced_and_not_yet_made() {
    /// Starts tracking in the middle of a change, after the tracker has been told of it.
    struct Starts(Mutex<Option<Consumer>>, AtomicBool);
    impl MapObserver for Starts {
        fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
            if let Some(consumer) = &*self.0.lock().unwrap() {
                consumer.start(StartWith::Everything)?;
                self.1.store(true, Ordering::SeqCst);
            }
            Ok(())
        }
    }
    let kvm = Kvm::new(ALL_CAPS);
    let memory = Arc::new(Memory::new().unwrap());
    let tracker = Tracker::new(Arc::clone(&memory), SMALLEST).unwrap();
    let log = KvmLog::new(kvm.vm(), KvmMode::Auto, LogSwitch::Brant);
    tracker.add_log(Box::new(log)).unwrap();
    let starts = Arc::new(Starts(Mutex::new(None), AtomicBool::new(false)));
    let weak: Weak<dyn MapObserver> = {
        let weak: Weak<Starts> = Arc::downgrade(&starts);
        weak
    };
    memory.observe(weak);
    let host = 0x2000_0000_0000u64;
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
            length: Bytes(100 * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    *starts.0.lock().unwrap() = Some(tracker.consumer());
    kvm.create(1, host, 100, 0);
    memory
        .add_slot(&SlotDescription {
            slot: 1,
            flags: 0,
            block: "ram".into(),
            offset: Bytes(0),
            length: Bytes(100 * PAGE_SIZE),
            guest_address: GuestAddress(0),
        })
        .unwrap();
    assert!(starts.1.load(Ordering::SeqCst));
    assert!(kvm.logged(1), "the new slot is not logged");
    let consumer = starts.0.lock().unwrap().take().unwrap();
    consumer.stop().unwrap();
}

#[test]
fn a_start_that_fails_leaves_the_vm_as_it_was() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    for n in 0..3 {
        world.add_slot(
            &SlotSpec {
                block: 0,
                first: n * 400,
                pages: 30,
                smm: n == 1,
                gap: 1,
            },
            false,
        );
    }
    world.consumer.stop().unwrap();
    world.kvm.fail_regions(1);
    let error = world.consumer.start(StartWith::Everything).unwrap_err();
    assert!(error.message().starts_with("starting kvm-log"), "{error}");
    // A slot was switched on in vain, or a clear fails.
    world.kvm.fail(0, 1);
    world.consumer.start(StartWith::Nothing).unwrap_err();
    assert!(!world.consumer.is_started());
    assert!(world.slots.iter().all(|s| !world.kvm.logged(s.slot)));
    assert_eq!(world.kvm.mode(), 0);
    world.kvm.calm();
    world.start(StartWith::Everything);
    world.finish().unwrap();
}

#[test]
fn one_slot_that_cannot_be_switched_off_does_not_keep_the_others_logged() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    world.add_slot(
        &SlotSpec {
            block: 0,
            first: 3,
            pages: 30,
            smm: true,
            gap: 1,
        },
        false,
    );
    world.kvm.fail_regions(1);
    world.consumer.stop().unwrap();
    let logged = world.slots.iter().filter(|s| world.kvm.logged(s.slot));
    assert_eq!(logged.count(), 1);
    assert_eq!(world.kvm.mode(), 0);
}

#[test]
fn what_was_put_back_or_found_stays_pending_after_a_stop() {
    let mut world = settled(SMALLEST, 256, 0, Mistake::None);
    world.kvm.guest_write(world.slots[0].slot, 3);
    world.vmm_write(0, 9 * 4 + 3, 1, false);
    world.consumer.stop().unwrap();
    assert_eq!(world.consumer.pending(), Pages(2));
    let block = world.blocks[0].id;
    world.consumer.put_back(block, Pages(3), Pages(2));
    assert_eq!(world.consumer.pending(), Pages(3));
    assert_eq!(world.consumer.stats().put_back, Pages(1));
}

/// A log that reports what it is told to, by guest addresses or pages of blocks.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Tell>>>);

#[derive(Debug, Clone)]
enum Tell {
    Bitmap(Origin, Vec<u64>, u64),
    List(Origin, Vec<u64>),
    Everything(Origin, u64),
}

impl DirtyLog for Told {
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
        for tell in self.0.lock().unwrap().drain(..) {
            match tell {
                Tell::Bitmap(origin, words, pages) => sink.bitmap(origin, &words, Pages(pages)),
                Tell::List(origin, pages) => sink.list(origin, &pages),
                Tell::Everything(origin, pages) => sink.everything(origin, Pages(pages)),
            }
        }
        Ok(Harvested::Complete)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for block in map.blocks() {
            each(Extent::all_of(block));
        }
    }
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

/// Pages of blocks that `page` pages after an origin is.
fn naive(world: &World, origin: Origin, page: u64) -> Vec<(BlockId, u64)> {
    let block = |id| world.blocks.iter().find(|b| b.id == id);
    match origin {
        Origin::Block {
            block: id,
            page: base,
        } => block(id)
            .filter(|b| base.0 + page < b.pages)
            .map(|b| (b.id, base.0 + page))
            .into_iter()
            .collect(),
        Origin::Slot { slot, page: base } => world
            .slots
            .iter()
            .filter(|s| s.slot == slot && base.0 + page < s.pages)
            .map(|s| (s.block, s.first + base.0 + page))
            .collect(),
        Origin::Guest(GuestAddress(base)) | Origin::Iova(base) => {
            let at = base + page * PAGE_SIZE;
            world
                .slots
                .iter()
                .filter(|s| s.guest <= at && at < s.guest + s.pages * PAGE_SIZE)
                .map(|s| (s.block, s.first + (at - s.guest) / PAGE_SIZE))
                .collect()
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 128, ..Config::default() })]

    #[test]
    fn what_a_log_reports_ends_up_at_the_pages_it_means(
        blocks in prop::collection::vec(1..=1500u64, 1..4),
        slots in prop::collection::vec(slot_spec(), 0..6),
        tells in prop::collection::vec(
            (0..4u8, 0..3u8, any::<u32>(), 0..2000u64, prop::collection::vec(any::<u64>(), 0..20), 0..1300u64),
            0..6,
        ),
    ) {
        let setup = Setup {
            mode: KvmMode::GetAndClear,
            clearing: SMALLEST,
            start_with: StartWith::Nothing,
            blocks,
            slots,
        };
        let mut world = World::new(&setup, Mistake::None);
        world.consumer.stop().unwrap();
        let told = Told::default();
        world.consumer.add_log(Box::new(told.clone())).unwrap();
        world.start(StartWith::Nothing);
        let mut expected = HashSet::new();
        for (kind, what, selector, base, words, pages) in tells {
            let page = Pages(base);
            let slot = world.slots.get(selector as usize % world.slots.len().max(1));
            let origin = match kind {
                0 => Origin::Block {
                    block: world.blocks[selector as usize % world.blocks.len()].id,
                    page,
                },
                1 => Origin::Slot { slot: slot.map_or(77, |s| s.slot), page },
                2 => Origin::Guest(GuestAddress(base * PAGE_SIZE)),
                _ => Origin::Iova(base * PAGE_SIZE),
            };
            let (tell, told_pages): (Tell, Vec<u64>) = match what {
                0 => {
                    let limit = pages.min(words.len() as u64 * 64);
                    let set = |p: &u64| words[(p / 64) as usize] >> (p % 64) & 1 != 0;
                    (Tell::Bitmap(origin, words.clone(), pages), (0..limit).filter(set).collect())
                }
                1 => {
                    let list: Vec<u64> = words.iter().map(|w| w % 2000).collect();
                    (Tell::List(origin, list.clone()), list)
                }
                _ => (Tell::Everything(origin, pages), (0..pages).collect()),
            };
            told.0.lock().unwrap().push(tell);
            expected.extend(told_pages.into_iter().flat_map(|p| naive(&world, origin, p)));
        }
        let report = world.consumer.sync(When::Running).unwrap();
        prop_assert_eq!(report.found.0, expected.len() as u64);
        let mut got = HashSet::new();
        while world.take(64, 4000).unwrap() {
            for flight in std::mem::take(&mut world.flight) {
                let run = the_run(&flight.taken);
                let pages = run.pages.first().0..run.pages.end().0;
                got.extend(pages.map(|page| (run.block.id(), page)));
                flight.taken.delivered();
            }
        }
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn marks_from_many_threads_during_syncs_and_hotplug_are_all_found() {
    const PAGES: u64 = 3000;
    const THREADS: u64 = 3;
    let mut world = settled(SMALLEST, PAGES, 0, Mistake::None);
    let memory: Arc<Vec<AtomicU64>> = Arc::new((0..PAGES).map(|_| AtomicU64::new(0)).collect());
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let memory = Arc::clone(&memory);
            let (tracker, block) = (Arc::clone(&world.consumer), world.blocks[0].id);
            std::thread::spawn(move || {
                let mut at = n * 977;
                for i in 0..20_000u64 {
                    at = at
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let page = (at >> 33) % PAGES;
                    // Write first, then mark.
                    memory[page as usize].fetch_add(1, Ordering::Relaxed);
                    if i % 2 == 0 {
                        tracker.mark_block(block, Bytes(page * PAGE_SIZE + 7), 1);
                    } else {
                        tracker.mark_guest(GuestAddress(page * PAGE_SIZE + 7), 1);
                    }
                }
            })
        })
        .collect();
    let mut copy = vec![0; PAGES as usize];
    let mut last = false;
    loop {
        world.consumer.sync(When::Running).unwrap();
        // A map that is swapped under the marks.
        world.add_block(64);
        world.apply(&Op::RemoveBlock(1)).unwrap();
        loop {
            let cursor = &mut world.cursor;
            let taken = world.consumer.take(cursor, 64, Pages(512)).unwrap();
            if taken.is_empty() {
                break;
            }
            let block = world.blocks[0].id;
            for run in taken.runs().filter(|r| r.block.id() == block) {
                for page in run.pages.first().index()..run.pages.end().index() {
                    copy[page] = memory[page].load(Ordering::Relaxed);
                }
            }
            taken.delivered();
        }
        if last {
            break;
        }
        // One more round after all have ended.
        last = threads.iter().all(|t| t.is_finished());
    }
    for thread in threads {
        thread.join().unwrap();
    }
    for (page, (copy, memory)) in copy.iter().zip(memory.iter()).enumerate() {
        assert_eq!(*copy, memory.load(Ordering::Relaxed), "page {page}");
    }
    assert_eq!(world.consumer.stray_marks(), 0);
}

/// What a sync of 1 TiB costs in which nothing is dirty, against one read of its bitmap.
/// Not a test: it measures. Run it in a release build with `--ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn a_sync_of_a_clean_tebibyte_costs_about_one_read_of_its_bitmap() {
    let pages = 1u64 << 28;
    for clearing in [Clearing::default(), Clearing::AtSync] {
        let world = settled(clearing, 64, 0, Mistake::None);
        drop(world);
        let setup = Setup {
            mode: KvmMode::ManualProtect,
            clearing,
            start_with: StartWith::Nothing,
            blocks: vec![pages],
            slots: vec![],
        };
        let kvm = Kvm::new(ALL_CAPS);
        let memory = Arc::new(Memory::new().unwrap());
        let tracker = Tracker::new(Arc::clone(&memory), setup.clearing).unwrap();
        let log = KvmLog::new(kvm.vm(), setup.mode, LogSwitch::Brant);
        tracker.add_log(Box::new(log)).unwrap();
        let host = 0x2000_0000_0000u64;
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
                host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
                length: Bytes(pages * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        kvm.create(1, host, pages, 0);
        memory
            .add_slot(&SlotDescription {
                slot: 1,
                flags: 0,
                block: "ram".into(),
                offset: Bytes(0),
                length: Bytes(pages * PAGE_SIZE),
                guest_address: GuestAddress(0),
            })
            .unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let mut words = vec![0u64; (pages / 64) as usize];
        let (mut read, mut get, mut sync) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let mut vm = kvm.vm();
        for _ in 0..7 {
            let begun = Instant::now();
            assert_eq!(crate::bits::words::count(&words), 0);
            read = read.min(begun.elapsed());
            let begun = Instant::now();
            vm.get_dirty_log(1, &mut words).unwrap();
            get = get.min(begun.elapsed());
            let begun = Instant::now();
            assert_eq!(consumer.sync(When::Running).unwrap().found, Pages(0));
            sync = sync.min(begun.elapsed());
        }
        assert_eq!(kvm.calls().clears, 0);
        eprintln!(
            "{clearing:?}: read {read:?}, the model's GET {get:?}, sync {sync:?}: \
             {:.2} reads beside the GET",
            (sync.as_secs_f64() - get.as_secs_f64()) / read.as_secs_f64()
        );
        consumer.stop().unwrap();
    }
}
