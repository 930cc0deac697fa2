//! The ring log under the tracker, tried with the model. Whatever guest, signals, overruns, hotplug
//! and failures do, a copy made of the pages that the tracker hands out ends up equal to the guest.
//! No vCPU hangs, and afterwards the rings are exact again.

mod cases;
mod limits;

use super::testing::model::{Interrupt, Model, Moment};
use super::*;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::taken::Taken;
use crate::dirty::testing::{apart, the_run};
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::dirty::vcpus::VcpuLimit;
use crate::memory::{BlockDescription, BlockFlags, BlockId, Memory, SlotDescription};
use crate::units::{Bytes, PAGE_SIZE};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vm_memory::GuestAddress;

const BLOCKS: [u64; 2] = [700, 130];

#[derive(Debug, Clone)]
enum Op {
    Write {
        vcpu: u8,
        slot: u8,
        page: u16,
    },
    /// Consecutive pages.
    Sweep {
        vcpu: u8,
        slot: u8,
        page: u16,
        pages: u16,
    },
    /// Emulated stores to one page. Each takes an entry, and nothing checks for room.
    Burst {
        vcpu: u8,
        slot: u8,
        page: u16,
        stores: u16,
    },
    Race {
        moment: Moment,
        vcpu: u8,
        slot: u8,
        page: u16,
    },
    Interrupt {
        after: u16,
        traced: bool,
    },
    FailReset,
    /// The kernel writes without a vCPU.
    Kernel {
        slot: u8,
        page: u16,
    },
    /// Sets the dirty limit of a vCPU, or lifts it. The others have none afterwards.
    Limit {
        vcpu: u8,
        pages_per_second: Option<u32>,
    },
    Sync,
    SyncStopped,
    Take {
        runs: u8,
        pages: u16,
    },
    Read(u8),
    PutBack(u8),
    AddVcpu,
    RemoveSlot(u8),
    AddSlot {
        block: u8,
        first: u16,
        pages: u16,
    },
    /// Stops and starts; `anew` with another tracker, which knows nothing of the rings.
    Restart {
        anew: bool,
    },
}

#[derive(Debug, Clone)]
struct Setup {
    entries: usize,
    vcpus: u8,
    with_bitmap: bool,
    start_with: StartWith,
}

struct SlotInfo {
    slot: u32,
    pages: u64,
    guest: u64,
}

struct World {
    setup: Setup,
    model: Model,
    memory: Arc<Memory>,
    consumer: Consumer,
    rings: Rings,
    vcpus: usize,
    blocks: Vec<(BlockId, u64, u64)>,
    slots: Vec<SlotInfo>,
    copy: HashMap<u64, u64>,
    /// Taken pages that are not read yet, one run each.
    flight: Vec<Taken>,
    cursor: Cursor,
    next: u64,
    /// A failure was planned.
    failures: bool,
}

type Verdict = std::result::Result<(), String>;

macro_rules! expect {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}

fn attach(model: &Model, memory: &Arc<Memory>, setup: &Setup, vcpus: usize) -> (Consumer, Rings) {
    let tracker = Tracker::new(Arc::clone(memory), Clearing::default()).unwrap();
    let log = KvmRing::new(
        Box::new(model.clone()),
        Arc::new(model.clone()),
        LogSwitch::Brant,
        None,
        setup.with_bitmap,
    );
    let rings = log.rings();
    for vcpu in 0..vcpus {
        rings.add(vcpu as u32, model.ring(vcpu)).unwrap();
    }
    tracker.add_log(Box::new(log)).unwrap();
    (tracker.consumer(), rings)
}

impl World {
    fn new(setup: &Setup) -> World {
        let model = Model::new(setup.with_bitmap);
        // The mode that an earlier user has left.
        model.set_mode(3);
        let memory = Arc::new(Memory::new().unwrap());
        let vcpus = usize::from(setup.vcpus);
        for _ in 0..vcpus {
            model.create_vcpu(setup.entries);
        }
        let (consumer, rings) = attach(&model, &memory, setup, vcpus);
        let mut world = World {
            setup: setup.clone(),
            model,
            memory,
            consumer,
            rings,
            vcpus,
            blocks: Vec::new(),
            slots: Vec::new(),
            copy: HashMap::new(),
            flight: Vec::new(),
            cursor: Cursor::default(),
            next: 1,
            failures: false,
        };
        for (i, pages) in BLOCKS.into_iter().enumerate() {
            let host = 0x2000_0000_0000 + i as u64 * (1 << 36);
            let id = world
                .memory
                .add_block(BlockDescription {
                    name: format!("b{i}"),
                    // SAFETY: the test's own memory, or an address that is never accessed.
                    host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
                    length: Bytes(pages * PAGE_SIZE),
                    page_size: Bytes(PAGE_SIZE),
                    file: None,
                    flags: BlockFlags::default(),
                })
                .unwrap();
            world.blocks.push((id, host, pages));
        }
        world.add_slot(0, 0, 500);
        world.add_slot(0, 513, 187);
        world.add_slot(1, 3, 127);
        world.start(setup.start_with);
        world
    }

    fn start(&mut self, with: StartWith) {
        self.consumer.start(with).unwrap();
        self.cursor = Cursor::default();
        self.copy.clear();
        if with == StartWith::Nothing {
            for &(_, host, pages) in &self.blocks {
                for page in 0..pages {
                    let at = host + page * PAGE_SIZE;
                    self.copy.insert(at, self.model.version(at));
                }
            }
        }
    }

    fn add_slot(&mut self, block: usize, first: u64, pages: u64) {
        let (_, host, all) = self.blocks[block % self.blocks.len()];
        let first = first % all;
        let pages = 1 + (pages - 1) % (all - first);
        let slot = self.next as u32;
        let guest = self.next * (1 << 30);
        self.next += 1;
        self.model
            .create(slot, host + first * PAGE_SIZE, pages, guest);
        self.memory
            .add_slot(&SlotDescription {
                slot,
                flags: 0,
                block: self
                    .memory
                    .find_block(&format!("b{}", block % self.blocks.len()))
                    .unwrap(),
                offset: Bytes(first * PAGE_SIZE),
                length: Bytes(pages * PAGE_SIZE),
                guest_address: GuestAddress(guest),
            })
            .unwrap();
        self.slots.push(SlotInfo { slot, pages, guest });
    }

    fn at(&self, vcpu: u8, slot: u8, page: u16) -> Option<(usize, u32, u64)> {
        let slot = self
            .slots
            .get(usize::from(slot) % self.slots.len().max(1))?;
        let vcpu = usize::from(vcpu) % self.vcpus;
        Some((vcpu, slot.slot, u64::from(page) % slot.pages))
    }

    /// KVM_RUN, which comes out at once as long as the ring is full.
    fn write(&self, vcpu: usize, slot: u32, page: u64, stores: u64) -> Verdict {
        for turn in 0..2000 {
            if turn % 50 == 49 && self.consumer.has_vcpu_limits() {
                // A vCPU that is far over its limit gets room by a sync only.
                let synced = self.consumer.sync(When::Running);
                synced.map_err(|e| e.to_string())?;
            }
            if !self.model.is_full(vcpu) {
                self.model.write(vcpu, slot, page, stores);
                return Ok(());
            }
            let done = self.rings.full(vcpu as u32);
            expect!(self.failures || done.is_ok(), "ring_full: {done:?}");
        }
        Err(format!("vCPU {vcpu} comes out full for ever"))
    }

    fn sync(&mut self, when: When) -> Verdict {
        match self.consumer.sync(when) {
            Ok(_) => Ok(()),
            Err(e) => {
                expect!(self.failures && when == When::Stopped, "sync failed: {e}");
                Ok(())
            }
        }
    }

    fn take(&mut self, runs: usize, pages: u64) -> std::result::Result<bool, String> {
        let taken = self
            .consumer
            .take(&mut self.cursor, runs, Pages(pages))
            .map_err(|e| e.to_string())?;
        let more = !taken.is_empty();
        self.flight.extend(apart(taken));
        Ok(more)
    }

    fn read(&mut self, taken: Taken) {
        let run = the_run(&taken);
        let host = run.block.host() as u64;
        for page in run.pages.first().0..run.pages.end().0 {
            let at = host + page * PAGE_SIZE;
            self.copy.insert(at, self.model.version(at));
        }
        taken.delivered();
    }

    fn drain(&mut self) -> Verdict {
        for _ in 0..2 {
            loop {
                let more = self.take(64, 100_000)?;
                for run in std::mem::take(&mut self.flight) {
                    self.read(run);
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
            Op::Write { vcpu, slot, page } => {
                if let Some((vcpu, slot, page)) = self.at(vcpu, slot, page) {
                    self.write(vcpu, slot, page, 1)?;
                }
            }
            Op::Sweep {
                vcpu,
                slot,
                page,
                pages,
            } => {
                for i in 0..pages {
                    if let Some((vcpu, slot, page)) = self.at(vcpu, slot, page.wrapping_add(i)) {
                        self.write(vcpu, slot, page, 1)?;
                    }
                }
            }
            Op::Burst {
                vcpu,
                slot,
                page,
                stores,
            } => {
                if let Some((vcpu, slot, page)) = self.at(vcpu, slot, page) {
                    self.write(vcpu, slot, page, stores.into())?;
                }
            }
            Op::Race {
                moment,
                vcpu,
                slot,
                page,
            } => {
                if let Some((vcpu, slot, page)) = self.at(vcpu, slot, page) {
                    self.model.race(moment, vcpu, slot, page);
                }
            }
            Op::Interrupt { after, traced } => self.model.interrupt(Interrupt {
                after: after.into(),
                traced,
            }),
            Op::FailReset => {
                self.failures = true;
                self.model.fail(1, 0);
            }
            Op::Kernel { slot, page } => {
                if let (true, Some((_, slot, page))) =
                    (self.setup.with_bitmap, self.at(0, slot, page))
                {
                    self.model.kernel_writes(slot, page);
                }
            }
            Op::Limit {
                vcpu,
                pages_per_second,
            } => {
                let vcpu = u32::from(vcpu) % self.vcpus as u32;
                let limits = pages_per_second.map(|limit| VcpuLimit {
                    vcpu,
                    pages_per_second: limit.into(),
                });
                // A vCPU that waits is not to make the test slow.
                self.rings.0.lock().limits.longest = Duration::from_micros(1);
                let limits: Vec<VcpuLimit> = limits.into_iter().collect();
                self.consumer
                    .limit_vcpus(&limits)
                    .map_err(|e| e.to_string())?;
                let limited = self.consumer.limited_vcpus();
                expect!(limited == limits.len() as u64, "{limited} are limited");
            }
            Op::Sync => self.sync(When::Running)?,
            Op::SyncStopped => {
                self.model.no_races();
                self.sync(When::Stopped)?;
            }
            Op::Take { runs, pages } => {
                self.take(runs.into(), pages.into())?;
            }
            Op::Read(which) => {
                if !self.flight.is_empty() {
                    let n = usize::from(which) % self.flight.len();
                    let run = self.flight.swap_remove(n);
                    self.read(run);
                }
            }
            Op::PutBack(which) => {
                if !self.flight.is_empty() {
                    let n = usize::from(which) % self.flight.len();
                    drop(self.flight.swap_remove(n));
                }
            }
            Op::AddVcpu => {
                let vcpu = self.model.create_vcpu(self.setup.entries);
                self.rings.add(vcpu as u32, self.model.ring(vcpu)).unwrap();
                self.vcpus += 1;
            }
            Op::RemoveSlot(which) => {
                self.model.no_races();
                if self.slots.len() > 1 {
                    let slot = self
                        .slots
                        .swap_remove(usize::from(which) % self.slots.len());
                    self.memory
                        .remove_slot(slot.slot, GuestAddress(slot.guest))
                        .unwrap();
                    self.model.delete(slot.slot);
                }
            }
            Op::AddSlot {
                block,
                first,
                pages,
            } => self.add_slot(block.into(), first.into(), u64::from(pages) + 1),
            Op::Restart { anew } => {
                self.flight.clear();
                self.model.calm();
                self.consumer.stop().map_err(|e| e.to_string())?;
                for slot in &self.slots {
                    expect!(!self.model.logged(slot.slot), "a slot stays logged");
                }
                if anew {
                    let (consumer, rings) =
                        attach(&self.model, &self.memory, &self.setup, self.vcpus);
                    self.consumer = consumer;
                    self.rings = rings;
                }
                self.start(StartWith::Everything);
            }
        }
        Ok(())
    }

    fn compare(&self) -> Verdict {
        for (i, &(_, host, pages)) in self.blocks.iter().enumerate() {
            for page in 0..pages {
                let at = host + page * PAGE_SIZE;
                let (guest, copy) = (self.model.version(at), self.copy.get(&at).copied());
                expect!(
                    copy == Some(guest),
                    "page {page} of b{i} is lost: the guest has {guest}, the copy {copy:?}"
                );
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Verdict {
        self.model.calm();
        self.failures = false;
        for (i, run) in std::mem::take(&mut self.flight).into_iter().enumerate() {
            if i % 2 == 0 {
                self.read(run);
            }
        }
        self.sync(When::Stopped)?;
        self.drain()?;
        self.compare()?;
        expect!(!self.model.broken(), "more was released than was in use");
        // The rings work again: new writes are found and, after a while, no other page is.
        for round in 0..4 {
            let before: u64 = self.rings.figures().recoveries;
            for vcpu in 0..self.vcpus {
                for page in [1, 2, 5] {
                    let (_, slot, page) = self.at(0, vcpu as u8, page + round).unwrap();
                    self.write(vcpu, slot, page, 1)?;
                }
            }
            self.sync(When::Stopped)?;
            let figures = self.rings.figures();
            let most = self.vcpus as u64 * 3 + figures.doubtful;
            let found = self.consumer.pending().0;
            expect!(
                round < 3 || found <= most || figures.recoveries > before,
                "{found} pages found, at most {most} written: {figures:?}"
            );
            expect!(
                round < 3 || figures.recoveries == before,
                "recovering goes on and on"
            );
            self.drain()?;
            self.compare()?;
        }
        if self.rings.figures().doubtful == 0 {
            for when in [When::Running, When::Stopped] {
                self.sync(when)?;
                let again = self.consumer.pending();
                expect!(again.0 == 0, "{again} clean pages were found again");
            }
        }
        expect!(!self.model.broken(), "more was released than was in use");
        self.consumer.stop().map_err(|e| e.to_string())?;
        expect!(!self.consumer.has_vcpu_limits(), "a vCPU stays limited");
        for slot in &self.slots {
            expect!(!self.model.logged(slot.slot), "a slot stays logged");
        }
        Ok(())
    }
}

fn verdict(setup: &Setup, ops: &[Op]) -> Verdict {
    let mut world = World::new(setup);
    for op in ops {
        world.apply(op)?;
    }
    world.finish()
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop::sample::select(vec![128usize, 256, 1024]),
        1..4u8,
        any::<bool>(),
        prop::sample::select(vec![StartWith::Everything, StartWith::Nothing]),
    )
        .prop_map(|(entries, vcpus, with_bitmap, start_with)| Setup {
            entries,
            vcpus,
            with_bitmap,
            start_with,
        })
}

fn ordinary() -> impl Strategy<Value = Op> {
    let at = || (any::<u8>(), any::<u8>(), any::<u16>());
    let moment = prop::sample::select(vec![Moment::Before, Moment::Within, Moment::After]);
    prop_oneof![
        8 => at().prop_map(|(vcpu, slot, page)| Op::Write { vcpu, slot, page }),
        4 => (at(), 1..400u16).prop_map(|((vcpu, slot, page), pages)| Op::Sweep { vcpu, slot, page, pages }),
        3 => (moment, at()).prop_map(|(moment, (vcpu, slot, page))| Op::Race { moment, vcpu, slot, page }),
        2 => (any::<u8>(), any::<u16>()).prop_map(|(slot, page)| Op::Kernel { slot, page }),
        2 => (any::<u8>(), prop::option::weighted(0.7, 1..2_000_000u32))
            .prop_map(|(vcpu, pages_per_second)| Op::Limit { vcpu, pages_per_second }),
        4 => Just(Op::Sync),
        1 => Just(Op::SyncStopped),
        6 => (1..6u8, 1..500u16).prop_map(|(runs, pages)| Op::Take { runs, pages }),
        4 => any::<u8>().prop_map(Op::Read),
        1 => any::<u8>().prop_map(Op::PutBack),
    ]
}

fn anything() -> impl Strategy<Value = Op> {
    let at = || (any::<u8>(), any::<u8>(), any::<u16>());
    let rare = prop_oneof![
        4 => (at(), 2..3000u16).prop_map(|((vcpu, slot, page), stores)| Op::Burst { vcpu, slot, page, stores }),
        3 => (0..200u16, any::<bool>()).prop_map(|(after, traced)| Op::Interrupt { after, traced }),
        1 => Just(Op::FailReset),
        1 => Just(Op::AddVcpu),
        1 => any::<u8>().prop_map(Op::RemoveSlot),
        1 => (any::<u8>(), any::<u16>(), any::<u16>()).prop_map(|(block, first, pages)| Op::AddSlot { block, first, pages }),
        1 => any::<bool>().prop_map(|anew| Op::Restart { anew }),
    ];
    prop_oneof![3 => ordinary(), 1 => rare]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_copy_equals_the_guest_whatever_happens_to_the_rings(
        setup in setup(),
        ops in prop::collection::vec(anything(), 0..100),
    ) {
        let verdict = verdict(&setup, &ops);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }

    #[test]
    fn rings_that_nothing_happens_to_never_overrun_and_are_exact(
        setup in setup(),
        ops in prop::collection::vec(ordinary(), 0..100),
    ) {
        let mut world = World::new(&setup);
        for op in &ops {
            let done = world.apply(op);
            prop_assert!(done.is_ok(), "{}", done.unwrap_err());
        }
        // A race can push onto a full ring, which is no ordinary write.
        if !world.model.overran() {
            prop_assert_eq!(world.rings.figures().overruns, 0);
            prop_assert_eq!(world.rings.figures().recoveries, 0);
        }
        let done = world.finish();
        prop_assert!(done.is_ok(), "{}", done.unwrap_err());
    }
}
