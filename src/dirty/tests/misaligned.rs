//! Blocks and slots that begin and end at any page: a tracker over the model of KVM and a log of
//! guest addresses, compared with a second tracker that keeps single pages, and knows nothing of
//! words, shifts or runs.
//!
//! Both get the same writes, syncs and takes. They must agree on three figures: how many pages each
//! log found (a page counts once, when its bit first becomes set in pending), which pages are
//! pending, and how often the kernel was called.

use crate::bits::chunks::CHUNK_SHIFT_DEFAULT;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::kvm::testing::model::{Kvm, ALL_CAPS};
use crate::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::error::Result;
use crate::memory::{BlockDescription, BlockFlags, Map, Memory, SlotDescription};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use vm_memory::GuestAddress;

/// A log of guest addresses, like vhost's. Its next harvest reports the pages that it was told.
#[derive(Clone, Default)]
struct ByAddress(Arc<Mutex<Vec<Report>>>);

/// `pages` pages from page frame `from`.
#[derive(Debug, Clone)]
struct Report {
    from: u64,
    words: Vec<u64>,
    pages: u64,
}

impl DirtyLog for ByAddress {
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
        for report in self.0.lock().unwrap().drain(..) {
            let from = Origin::Guest(GuestAddress(report.from * PAGE_SIZE));
            sink.bitmap(from, &report.words, Pages(report.pages));
        }
        Ok(Harvested::Complete)
    }
    fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

/// How memory is divided. All figures are in pages.
#[derive(Debug, Clone)]
struct Layout {
    mode: KvmMode,
    clearing: Clearing,
    blocks: Vec<u64>,
    slots: Vec<Cut>,
}

/// A slot: a part of a block, at a guest page frame.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    slot: u32,
    block: usize,
    first: u64,
    pages: u64,
    frame: u64,
}

/// The expected behaviour of the tracker, page by page.
struct Model {
    layout: Layout,
    /// By block and page.
    pending: Vec<Vec<bool>>,
    /// By slot and page: the kernel's bit; whether the page can be written without a fault; whether
    /// a harvest has seen the bit since it was last cleared.
    bit: Vec<Vec<bool>>,
    writable: Vec<Vec<bool>>,
    seen: Vec<Vec<bool>>,
    /// By block: the chunks that have to be cleared before their next page is taken.
    armed: Vec<BTreeSet<u64>>,
    reports: Vec<Report>,
    marks: Vec<(usize, u64)>,
    clears: u64,
}

impl Model {
    fn new(layout: &Layout) -> Model {
        let slots = |value| -> Vec<Vec<bool>> {
            let slots = layout.slots.iter();
            slots.map(|s| vec![value; s.pages as usize]).collect()
        };
        Model {
            pending: layout
                .blocks
                .iter()
                .map(|b| vec![false; *b as usize])
                .collect(),
            bit: slots(false),
            writable: slots(false),
            seen: slots(false),
            armed: vec![BTreeSet::new(); layout.blocks.len()],
            reports: Vec::new(),
            marks: Vec::new(),
            clears: 0,
            layout: layout.clone(),
        }
    }

    fn write(&mut self, slot: usize, page: u64) {
        let page = page as usize;
        if !self.writable[slot][page] {
            self.writable[slot][page] = true;
            self.bit[slot][page] = true;
        }
    }

    fn found(&mut self, block: usize, page: u64) -> u64 {
        let was = std::mem::replace(&mut self.pending[block][page as usize], true);
        u64::from(!was)
    }

    /// Clears the seen bits for the pages `range` of a slot, by whole words.
    fn clear(&mut self, slot: usize, range: std::ops::Range<u64>) {
        let end = (range.end.div_ceil(64) * 64).min(self.layout.slots[slot].pages);
        let mut any = false;
        for page in (range.start / 64 * 64) as usize..end as usize {
            if std::mem::take(&mut self.seen[slot][page]) {
                any = true;
                if std::mem::take(&mut self.bit[slot][page]) {
                    self.writable[slot][page] = false;
                }
            }
        }
        self.clears += u64::from(any);
    }

    /// How many pages each log finds: the VMM's marks, KVM, guest addresses.
    fn sync(&mut self) -> [u64; 3] {
        let mut found = [0; 3];
        for (block, page) in std::mem::take(&mut self.marks) {
            found[0] += self.found(block, page);
        }
        for i in 0..self.layout.slots.len() {
            let cut = self.layout.slots[i].clone();
            for page in 0..cut.pages {
                // Each GET makes the copy anew.
                self.seen[i][page as usize] = self.bit[i][page as usize];
                if self.bit[i][page as usize] {
                    found[1] += self.found(cut.block, cut.first + page);
                }
            }
            match (self.layout.mode, self.layout.clearing) {
                (KvmMode::GetAndClear, _) => {
                    let before = self.clears;
                    self.clear(i, 0..cut.pages);
                    // The kernel protects the pages itself, so these clears do not count.
                    self.clears = before;
                }
                (_, Clearing::AtSync) => self.clear(i, 0..cut.pages),
                (_, Clearing::Chunked { shift }) => {
                    let chunks = cut.first >> shift..=(cut.first + cut.pages - 1) >> shift;
                    self.armed[cut.block].extend(chunks);
                }
            }
        }
        for report in std::mem::take(&mut self.reports) {
            for page in 0..report.pages.min(report.words.len() as u64 * 64) {
                if report.words[(page / 64) as usize] >> (page % 64) & 1 == 0 {
                    continue;
                }
                let frame = report.from + page;
                for cut in self.layout.slots.clone() {
                    if cut.frame <= frame && frame < cut.frame + cut.pages {
                        found[2] += self.found(cut.block, cut.first + frame - cut.frame);
                    }
                }
            }
        }
        found
    }

    /// Takes a page if it is pending.
    fn take(&mut self, block: usize, page: u64) -> bool {
        if let Clearing::Chunked { shift } = self.layout.clearing {
            let chunk = page >> shift;
            if self.armed[block].remove(&chunk) {
                let (from, to) = (chunk << shift, (chunk + 1) << shift);
                for i in 0..self.layout.slots.len() {
                    let cut = &self.layout.slots[i];
                    let range = from.max(cut.first)..to.min(cut.first + cut.pages);
                    if cut.block == block && range.start < range.end {
                        let first = cut.first;
                        self.clear(i, range.start - first..range.end - first);
                    }
                }
            }
        }
        std::mem::take(&mut self.pending[block][page as usize])
    }

    fn count(&self) -> u64 {
        let all = self.pending.iter().flatten();
        all.filter(|pending| **pending).count() as u64
    }
}

/// The tracker and the model.
struct Both {
    kvm: Kvm,
    memory: Arc<Memory>,
    consumer: Consumer,
    by_address: ByAddress,
    cursor: Cursor,
    model: Model,
    clears: u64,
}

impl Both {
    fn new(layout: &Layout) -> Both {
        let kvm = Kvm::new(ALL_CAPS);
        let memory = Arc::new(Memory::new().unwrap());
        let host = |block: usize| 0x2000_0000_0000 + block as u64 * (1 << 36);
        for (i, pages) in layout.blocks.iter().enumerate() {
            memory
                .add_block(BlockDescription {
                    name: format!("b{i}"),
                    // SAFETY: an address that is never accessed.
                    host: unsafe { crate::memory::HostMemory::new(host(i) as *mut u8) },
                    length: Bytes(pages * PAGE_SIZE),
                    page_size: Bytes(PAGE_SIZE),
                    file: None,
                    flags: BlockFlags::default(),
                })
                .unwrap();
        }
        for cut in &layout.slots {
            let at = host(cut.block) + cut.first * PAGE_SIZE;
            kvm.create(cut.slot, at, cut.pages, cut.frame * PAGE_SIZE);
            memory
                .add_slot(&SlotDescription {
                    slot: cut.slot,
                    flags: 0,
                    block: memory.find_block(&format!("b{}", cut.block)).unwrap(),
                    offset: Bytes(cut.first * PAGE_SIZE),
                    length: Bytes(cut.pages * PAGE_SIZE),
                    guest_address: GuestAddress(cut.frame * PAGE_SIZE),
                })
                .unwrap();
        }
        let tracker = Tracker::new(Arc::clone(&memory), layout.clearing).unwrap();
        let log = KvmLog::new(kvm.vm(), layout.mode, LogSwitch::Brant);
        tracker.add_log(Box::new(log)).unwrap();
        let by_address = ByAddress::default();
        tracker.add_log(Box::new(by_address.clone())).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        Both {
            clears: kvm.calls().clears,
            kvm,
            memory,
            consumer,
            by_address,
            cursor: Cursor::default(),
            model: Model::new(layout),
        }
    }

    fn write(&mut self, slot: usize, page: u64) {
        self.kvm
            .guest_write(self.model.layout.slots[slot].slot, page);
        self.model.write(slot, page);
    }

    fn report(&mut self, report: Report) {
        self.by_address.0.lock().unwrap().push(report.clone());
        self.model.reports.push(report);
    }

    fn mark(&mut self, block: usize, page: u64) {
        let id = self.memory.map().blocks()[block].id();
        self.consumer.mark_block(id, Bytes(page * PAGE_SIZE), 1);
        self.model.marks.push((block, page));
    }

    fn sync(&mut self) {
        let report = self.consumer.sync(When::Running).unwrap();
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        let found: Vec<u64> = report.logs.iter().map(|l| l.found.0).collect();
        assert_eq!(found, self.model.sync(), "what each log found");
        assert_eq!(report.pending.0, self.model.count(), "what is pending");
        self.same_clears("a sync");
    }

    /// Takes some pending pages. Returns whether there were any.
    fn take(&mut self, pages: u64) -> bool {
        let taken = self
            .consumer
            .take(&mut self.cursor, 16, Pages(pages))
            .unwrap();
        for run in taken.runs() {
            let block = run.block.id().index();
            for page in run.pages.first().0..run.pages.end().0 {
                assert!(self.model.take(block, page), "page {page} was not pending");
            }
        }
        self.same_clears("a take");
        assert_eq!(self.consumer.pending().0, self.model.count());
        let more = !taken.is_empty();
        taken.delivered();
        more
    }

    fn drain(&mut self) {
        while self.take(1 << 20) || self.consumer.pending().0 != 0 {}
        assert_eq!(self.model.count(), 0);
    }

    fn same_clears(&self, after: &str) {
        let clears = self.kvm.calls().clears - self.clears;
        assert_eq!(clears, self.model.clears, "clear calls after {after}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u32, u32, u32),
    Report(Report),
    Mark(u32, u32),
    Sync,
    Take(u64),
    Drain,
}

/// Slots that follow one another, and some that show a part of a block once more: at other guest
/// addresses, or at any address in the second address space.
fn layout() -> impl Strategy<Value = Layout> {
    let mode = prop::sample::select(vec![
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
        KvmMode::InitiallySet,
    ]);
    let clearing = prop_oneof![
        3 => (6..=9u32).prop_map(|shift| Clearing::Chunked { shift }),
        1 => Just(Clearing::default()),
        1 => Just(Clearing::AtSync),
    ];
    let block = (
        prop_oneof![1..=200u64, 900..=1400u64],
        prop::collection::vec(any::<u32>(), 0..4),
        prop::collection::vec((any::<u32>(), any::<u32>(), any::<bool>(), 0..70u64), 0..2),
    );
    let blocks = prop::collection::vec(block, 1..4);
    (mode, clearing, 0..200u64, blocks).prop_map(|(mode, clearing, gap, blocks)| {
        let mut layout = Layout {
            mode,
            clearing,
            blocks: Vec::new(),
            slots: Vec::new(),
        };
        let mut frame = gap;
        let mut add = |space: u32, block, first, pages, frame| {
            let number = space << 16 | layout.slots.len() as u32;
            layout.slots.push(Cut {
                slot: number,
                block,
                first,
                pages,
                frame,
            });
        };
        let mut smm = 0;
        for (i, (pages, cuts, again)) in blocks.into_iter().enumerate() {
            layout.blocks.push(pages);
            let mut ends: BTreeSet<u64> = cuts.iter().map(|c| u64::from(*c) % pages).collect();
            ends.remove(&0);
            ends.insert(pages);
            let mut first = 0;
            for end in ends {
                add(0, i, first, end - first, frame);
                frame += end - first;
                first = end;
            }
            for (from, length, in_smm, gap) in again {
                let first = u64::from(from) % pages;
                let length = 1 + u64::from(length) % (pages - first);
                let at = if in_smm { &mut smm } else { &mut frame };
                *at += gap;
                add(u32::from(in_smm), i, first, length, *at);
                *at += length;
            }
        }
        layout
    })
}

fn step() -> impl Strategy<Value = Step> {
    let report = (
        0..4000u64,
        prop::collection::vec(
            prop_oneof![2 => Just(0), 2 => any::<u64>(), 1 => Just(u64::MAX)],
            0..40,
        ),
        0..2600u64,
    );
    prop_oneof![
        8 => (any::<u32>(), any::<u32>(), 1..80u32).prop_map(|(s, p, n)| Step::Write(s, p, n)),
        2 => report.prop_map(|(from, words, pages)| Step::Report(Report { from, words, pages })),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(block, page)| Step::Mark(block, page)),
        4 => Just(Step::Sync),
        4 => (1..400u64).prop_map(Step::Take),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn blocks_cut_at_any_page_are_tracked_as_if_page_by_page(
        layout in layout(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut both = Both::new(&layout);
        for step in steps {
            match step {
                Step::Write(slot, page, pages) => {
                    let slot = slot as usize % layout.slots.len();
                    let all = layout.slots[slot].pages;
                    let first = u64::from(page) % all;
                    for page in first..all.min(first + u64::from(pages)) {
                        both.write(slot, page);
                    }
                }
                Step::Report(report) => both.report(report),
                Step::Mark(block, page) => {
                    let block = block as usize % layout.blocks.len();
                    both.mark(block, u64::from(page) % layout.blocks[block]);
                }
                Step::Sync => both.sync(),
                Step::Take(pages) => {
                    both.take(pages);
                }
                Step::Drain => both.drain(),
            }
        }
        both.sync();
        both.drain();
        // A page that was written while it was pending, after its chunk was cleared, comes once
        // more.
        both.sync();
        both.drain();
        let still = both.consumer.sync(When::Stopped).unwrap();
        prop_assert_eq!(still.found, Pages(0));
    }
}

/// A block of 4 MiB whose slots begin one page behind a multiple of 64, at guest addresses that are
/// one page off too.
fn four_mib(clearing: Clearing, first: u64, slots: u64) -> Layout {
    const PAGES: u64 = 1024;
    let mut layout = Layout {
        mode: KvmMode::InitiallySet,
        clearing,
        blocks: vec![first + PAGES],
        slots: Vec::new(),
    };
    let mut at = 0;
    for i in 0..slots {
        let end = match i + 1 == slots {
            true => PAGES,
            false => PAGES / slots * (i + 1) / 64 * 64 + 1,
        };
        layout.slots.push(Cut {
            slot: i as u32,
            block: 0,
            first: first + at,
            pages: end - at,
            frame: 1 + at,
        });
        at = end;
    }
    layout
}

/// Makes all pages dirty, by the kernel and by a log of guest addresses that is one page off.
/// Returns how often the kernel is called to clear them.
fn clears_of_all(layout: &Layout) -> u64 {
    let mut both = Both::new(layout);
    for slot in 0..layout.slots.len() {
        for page in 0..layout.slots[slot].pages {
            both.write(slot, page);
        }
    }
    both.report(Report {
        from: 0,
        words: vec![u64::MAX; 17],
        pages: 1025,
    });
    let before = both.kvm.calls().clears;
    both.sync();
    both.drain();
    both.kvm.calls().clears - before
}

#[test]
fn what_is_held_for_a_page_is_counted_with_what_the_logs_hold() {
    let mut layout = four_mib(Clearing::AtSync, 0, 1);
    layout.blocks = vec![1 << 20];
    layout.slots[0].pages = 1 << 20;
    let words = (1u64 << 20) / 8;
    let both = Both::new(&layout);
    let held = both.consumer.heap_bytes();
    // Pending, the copy of the slot's bitmap, and two buffers for the VMM's marks. Their summaries
    // take a 512th more.
    assert!(
        (4 * words..4 * words + words / 64).contains(&held),
        "{held}"
    );
    both.consumer.stop().unwrap();
    // Pages may still be pending.
    let held = both.consumer.heap_bytes();
    assert!((words..words + words / 64).contains(&held), "{held}");
}

#[test]
fn a_misaligned_block_of_4_mib_is_cleared_by_one_call() {
    for clearing in [Clearing::default(), Clearing::AtSync] {
        for first in 0..64 {
            assert_eq!(
                clears_of_all(&four_mib(clearing, first, 1)),
                1,
                "from page {first}"
            );
        }
    }
}

#[test]
fn a_misaligned_block_costs_one_clear_for_each_chunk_of_each_slot() {
    for slots in 1..=5 {
        for clearing in [Clearing::default(), Clearing::AtSync] {
            assert_eq!(clears_of_all(&four_mib(clearing, 37, slots)), slots);
        }
    }
    for shift in 6..=CHUNK_SHIFT_DEFAULT {
        for (first, slots) in [(0, 1), (1, 1), (37, 3), (63, 5)] {
            let layout = four_mib(Clearing::Chunked { shift }, first, slots);
            let chunks = layout.slots.iter().map(|s| {
                let last = s.first + s.pages - 1;
                (last >> shift) - (s.first >> shift) + 1
            });
            // A chunk costs no call if the neighbour's clear has covered its words.
            let most: u64 = chunks.sum();
            let clears = clears_of_all(&layout);
            assert!(
                clears <= most,
                "{clears} clears of {most} chunks, shift {shift}"
            );
        }
    }
}

#[test]
fn memory_in_two_slots_is_cleared_in_both_before_it_is_handed_out() {
    // The second slot is at other guest addresses, or in the address space of system management
    // mode.
    for space in [0, 1] {
        for clearing in [
            Clearing::Chunked { shift: 6 },
            Clearing::default(),
            Clearing::AtSync,
        ] {
            let layout = Layout {
                mode: KvmMode::InitiallySet,
                clearing,
                blocks: vec![300],
                slots: vec![
                    Cut {
                        slot: 0,
                        block: 0,
                        first: 0,
                        pages: 300,
                        frame: 0,
                    },
                    Cut {
                        slot: space << 16 | 1,
                        block: 0,
                        first: 33,
                        pages: 200,
                        frame: 1000,
                    },
                ],
            };
            let mut both = Both::new(&layout);
            let again = layout.slots[1].slot;
            // Page 100 is written through either slot, and counts once.
            both.write(0, 100);
            both.write(1, 67);
            both.sync();
            assert_eq!(both.consumer.pending(), Pages(1));
            both.drain();
            assert!(both.kvm.is_protected(0, 100) && both.kvm.is_protected(again, 67));
            // Written through the second slot only, so only that slot's bit shows it.
            both.write(1, 67);
            both.sync();
            assert_eq!(both.consumer.pending(), Pages(1));
            both.drain();
            both.sync();
            assert_eq!(both.consumer.pending(), Pages(0));
        }
    }
}

#[test]
fn a_chunk_rounded_out_over_a_neighbour_that_was_sent_takes_none_of_its_new_bits() {
    // Wherever the slot begins, pages 63 and 64 of the block lie in two chunks. Unless it begins at
    // a multiple of 64, they lie in one word of the slot's bitmap.
    for first in 0..=63 {
        let mut both = Both::new(&Layout {
            mode: KvmMode::InitiallySet,
            clearing: Clearing::Chunked { shift: 6 },
            blocks: vec![300],
            slots: vec![Cut {
                slot: 0,
                block: 0,
                first,
                pages: 300 - first,
                frame: 5,
            }],
        });
        both.write(0, 63 - first);
        both.write(0, 64 - first);
        both.sync();
        // Page 63 is taken, and then written again.
        assert!(both.take(1));
        both.write(0, 63 - first);
        // The clear for page 64 comes after that write.
        assert!(both.take(1));
        both.sync();
        assert_eq!(both.consumer.pending(), Pages(1), "from page {first}");
        both.drain();
        let still = both.consumer.sync(When::Stopped).unwrap();
        assert_eq!(still.found, Pages(0));
    }
}
