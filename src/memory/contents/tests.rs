//! What is said of pages, compared with what was really done to them, for every kind of memory.
//! Asking touches no page.

use super::super::host::{discard, prefault};
use super::*;
use crate::memory::testing::kinds::{
    self, Area, Filler, HugePool, Made, HUGE, HUGE_KINDS, PAGE, SMALL,
};
use crate::memory::{BackingFile, BlockDescription, BlockFlags, Memory};
use crate::units::Bytes;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

const PAGES: usize = 1200;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn new(what: &str) -> Random {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_nanos() as u64
        });
        println!("{what}: SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn block(area: &Area) -> Arc<Block> {
    let memory = Memory::new().unwrap();
    let file = area.file.as_ref().filter(|_| area.made.is_told());
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own mapping, which is there until the end of the test.
            host: unsafe { crate::memory::HostMemory::new(area.at) },
            length: Bytes(area.length as u64),
            page_size: Bytes(area.made.page_size() as u64),
            file: file.map(|file| BackingFile {
                fd: file.try_clone().unwrap().into(),
                offset: 0,
            }),
            flags: BlockFlags::default(),
        })
        .unwrap();
    let block = Arc::clone(&memory.map().blocks()[0]);
    block
}

fn pages(range: Range<usize>) -> Range<Pages> {
    Pages(range.start as u64)..Pages(range.end as u64)
}

fn touched(contents: &mut Contents, block: &Block, range: Range<usize>) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut last = range.start;
    contents.refresh();
    contents
        .touched(block, pages(range.clone()), |run| {
            let run = run.start.index()..run.end.index();
            assert!(run.start >= last && run.end <= range.end && run.start < run.end);
            last = run.end;
            found.extend(run);
        })
        .unwrap();
    found
}

/// The runs and their contents, which cover the range without a gap.
fn split(contents: &mut Contents, block: &Block, range: Range<usize>) -> Vec<(usize, Held)> {
    let mut all = Vec::new();
    let mut at = range.start;
    contents.refresh();
    contents
        .split(block, pages(range.clone()), |run, held| {
            assert_eq!(run.start.index(), at);
            at = run.end.index();
            all.extend((run.start.index()..run.end.index()).map(|page| (page, held)));
        })
        .unwrap();
    assert_eq!(at, range.end);
    all
}

/// The same for runs of random lengths that lie apart, asked about together.
fn split_runs(contents: &mut Contents, block: &Block, random: &mut Random) -> Vec<(usize, Held)> {
    let (mut runs, mut at) = (Vec::new(), 0);
    let most = [1, 3, 40, 900][random.below(4)];
    loop {
        let gap = [1, 3, 70, 300][random.below(4)];
        let first = at + random.below(gap);
        let stretch = block.stretch_pages().index();
        let end = (first + 1 + random.below(most)).min((first / stretch + 1) * stretch);
        if end > block.pages().index() {
            break;
        }
        let count = Pages((end - first) as u64);
        runs.push(block.run(Pages(first as u64), count).unwrap());
        at = end;
    }
    let mut found = Vec::new();
    contents.refresh();
    contents
        .split_runs(block, &runs, |run, held| {
            let run = run.range();
            found.extend((run.start.index()..run.end.index()).map(|page| (page, held)));
        })
        .unwrap();
    let all = runs.iter().flat_map(|run| run.first().0..run.end().0);
    let pages = found.iter().map(|(page, _)| *page as u64);
    assert!(all.eq(pages), "each page once, in order");
    found
}

/// Ways to ask, as they remain on an old kernel, in a sandbox or without rights.
fn ways() -> Vec<(&'static str, Contents)> {
    let mut text = Contents::new();
    text.looks.ask_text_only();
    let mut smaps = Contents::new();
    smaps.looks.ask_smaps_only();
    let mut seeks = Contents::new();
    seeks.scratch.counts_nothing = true;
    let mut cached = Contents::new();
    cached.looks.find_no_files();
    vec![
        ("all", Contents::new()),
        ("no PROCMAP_QUERY", text),
        ("no userfaultfd", smaps),
        ("no cachestat", seeks),
        ("no map_files", cached),
    ]
}

/// Whether holes of such memory can be found in that way.
fn provable(made: Made, way: &str) -> bool {
    // SAFETY: asks who we are.
    let root = unsafe { libc::geteuid() } == 0;
    let finds_files = way != "no map_files" && root;
    match made {
        Made::Disk => false,
        Made::TmpfsUntold => finds_files,
        _ => true,
    }
}

/// Writes some pages in several ways. Returns which have contents, and which are zero again.
fn scatter(area: &Area, random: &mut Random) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let (mut filled, mut zero) = (BTreeSet::new(), BTreeSet::new());
    let total = area.pages();
    for _ in 0..random.below(60) {
        let first = random.below(total);
        let long = [1, 1, 1, 3, 9, 40, 600][random.below(7)];
        let past = area.file.is_some() && random.below(3) == 0;
        let value = if random.below(4) == 0 { 0 } else { 7 };
        for page in first..(first + long).min(total) {
            // A private mapping may have a copy of its own by then.
            if past && !area.made.is_shared() && filled.contains(&page) {
                continue;
            }
            if past {
                area.write_file(page, value);
            } else {
                area.write(page, value);
            }
            let (into, out) = match area.read_back(page) {
                0 => (&mut zero, &mut filled),
                _ => (&mut filled, &mut zero),
            };
            into.insert(page);
            out.remove(&page);
        }
    }
    (filled, zero)
}

impl Area {
    /// The contents of a written page.
    fn read_back(&self, page: usize) -> u8 {
        self.read(page)
    }
}

fn holds_what_it_says(made: Made, length: usize, random: &mut Random, rounds: usize) {
    for round in 0..rounds {
        let Some(area) = Area::new(made, length) else {
            eprintln!("skipped: no {made:?} memory is to be had");
            return;
        };
        let block = block(&area);
        for (way, contents) in &mut ways() {
            let what = format!("{made:?}, {way}, round {round}");
            if provable(made, way) {
                assert_eq!(
                    touched(contents, &block, 0..area.pages()),
                    BTreeSet::new(),
                    "{what}"
                );
            }
        }
        let (filled, zero) = scatter(&area, random);
        let backed = area.backed();
        for (way, contents) in &mut ways() {
            let what = format!("{made:?}, {way}, round {round}");
            let found = touched(contents, &block, 0..area.pages());
            assert!(filled.is_subset(&found), "{what}: something is lost");
            if provable(made, way) {
                let whole = made.page_size() / PAGE;
                let near = |page: &usize| {
                    let first = page / whole * whole;
                    (first..first + whole).any(|p| filled.contains(&p) || zero.contains(&p))
                };
                assert!(
                    found.iter().all(near),
                    "{what}: untouched pages count as touched"
                );
                assert_eq!(area.backed(), backed, "{what}: asking took memory");
                let mut at = 0;
                while at < area.pages() {
                    let to = (at + 1 + random.below(700)).min(area.pages());
                    for (page, held) in split(contents, &block, at..to) {
                        let is = filled.contains(&page);
                        let said = held == Held::Data;
                        assert_eq!(said, is, "{what}: page {page} is {held:?}");
                    }
                    at = to;
                }
                for _ in 0..20 {
                    for (page, held) in split_runs(contents, &block, random) {
                        let is = filled.contains(&page);
                        assert_eq!(held == Held::Data, is, "{what}: page {page} is {held:?}");
                    }
                }
                assert_eq!(area.backed(), backed, "{what}: splitting took memory");
            }
            for _ in 0..50 {
                let page = random.below(area.pages());
                let seen = contents.see(&block, Pages(page as u64)).unwrap();
                assert_eq!(
                    seen == Seen::Filled,
                    found.contains(&page),
                    "{what}: page {page}"
                );
                assert_ne!(seen, Seen::Absent, "{what}");
            }
        }
    }
}

#[test]
fn every_kind_of_memory_holds_what_is_said_of_it_and_asking_touches_nothing() {
    let mut random = Random::new("every_kind_of_memory_holds_what_is_said_of_it");
    for made in SMALL {
        holds_what_it_says(made, PAGES * PAGE, &mut random, 4);
    }
}

#[test]
fn huge_pages_hold_what_is_said_of_them_and_asking_takes_none() {
    let mut random = Random::new("huge_pages_hold_what_is_said_of_them");
    let Some(_pool) = HugePool::new(20) else {
        return;
    };
    for made in HUGE_KINDS {
        holds_what_it_says(made, 6 * HUGE, &mut random, 2);
    }
}

#[test]
fn pages_that_were_only_read_are_not_touched() {
    let area = Area::new(Made::Anonymous, PAGES * PAGE).unwrap();
    let (block, mut contents) = (block(&area), Contents::new());
    area.write(5, 9);
    // The shared zero page.
    assert_eq!((area.read(2), area.read(200)), (0, 0));
    assert_eq!(
        touched(&mut contents, &block, 0..PAGES),
        BTreeSet::from([5])
    );
    assert_eq!(touched(&mut contents, &block, 6..6), BTreeSet::new());
    // More runs than one scan reports.
    for page in (0..PAGES).step_by(2) {
        area.write(page, 9);
    }
    let mut all: BTreeSet<usize> = (0..PAGES).step_by(2).collect();
    all.insert(5);
    assert_eq!(touched(&mut contents, &block, 0..PAGES), all);
}

#[test]
fn scattered_pages_that_nobody_touched_are_holes_and_get_no_entry() {
    let area = Area::new(Made::Anonymous, PAGES * PAGE).unwrap();
    let (block, mut contents) = (block(&area), Contents::new());
    let pagemap = Pagemap::open().unwrap();
    let host = area.at as u64;
    let query = Query {
        any: PRESENT | SWAPPED,
        report: PRESENT,
        ..Query::default()
    };
    let entries = || pagemap.first(host..host + (PAGES * PAGE) as u64, &query);
    // Runs near each other, far from each other, and a single one.
    for stride in [2, 16, 64, 200, PAGES] {
        let each = (0..PAGES).step_by(stride);
        let each = each.map(|page| block.run(Pages(page as u64), Pages(1)).unwrap());
        let runs: Vec<PageRun> = each.collect();
        let mut holes = 0;
        contents.refresh();
        contents
            .split_runs(&block, &runs, |_, held| {
                holes += usize::from(held == Held::Hole)
            })
            .unwrap();
        assert_eq!(holes, runs.len(), "every {stride}th page");
        assert_eq!(entries().unwrap(), None, "every {stride}th page");
    }
}

#[test]
fn looking_for_holes_leaves_the_position_of_the_vmms_own_descriptor() {
    use std::io::{Seek, SeekFrom};
    for made in kinds::SMALL.into_iter().filter(|made| made.is_told()) {
        let Some(area) = Area::new(made, PAGES * PAGE) else {
            continue;
        };
        let mut file = area.file.as_ref().unwrap();
        area.write(700, 9);
        file.seek(SeekFrom::Start(123)).unwrap();
        let block = block(&area);
        for (way, mut contents) in ways() {
            split(&mut contents, &block, 0..PAGES);
            let position = file.stream_position().unwrap();
            assert_eq!(position, 123, "{made:?}, {way}");
        }
    }
}

#[test]
fn pages_that_were_discarded_are_gone_in_every_kind_of_memory_or_it_is_an_error() {
    let pool = HugePool::new(8);
    let huge: &[Made] = if pool.is_some() { &HUGE_KINDS } else { &[] };
    for made in SMALL.iter().chain(huge).copied() {
        let Some(area) = Area::new(made, 4 * HUGE) else {
            continue;
        };
        let (block, mut contents) = (block(&area), Contents::new());
        for page in [0, 600, 700, 1024, 1100] {
            area.write(page, 9);
        }
        let given = pages(512..1024);
        let gone = match discard(&mut contents, &block, given) {
            Ok(()) => true,
            Err(e) => {
                assert_eq!(e.kind(), Kind::Unsupported, "{made:?}: {e}");
                assert!(e.message().contains("`ram`"), "{e}");
                false
            }
        };
        let can = matches!(
            made,
            Made::Anonymous | Made::Memfd | Made::Tmpfs | Made::Huge | Made::HugeMemfd
        );
        assert_eq!(gone, can, "{made:?}");
        let left = if gone { 0 } else { 9 };
        assert_eq!((area.read(600), area.read(700)), (left, left), "{made:?}");
        assert_eq!((area.read(0), area.read(1024)), (9, 9), "{made:?}");
        // Part of a huge page: the kernel would return success and discard nothing.
        if made == Made::Huge {
            let error = discard(&mut contents, &block, pages(1024..1100)).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
        }
    }
}

#[test]
fn what_a_block_is_mapped_from_is_asked_when_it_matters() {
    let area = Area::new(Made::Anonymous, PAGES * PAGE).unwrap();
    let (block, mut contents) = (block(&area), Contents::new());
    assert_eq!(touched(&mut contents, &block, 0..PAGES), BTreeSet::new());
    // A file is mapped over part of the block. Its pages have no entries in our tables.
    let file = Area::new(Made::Memfd, PAGES * PAGE).unwrap();
    for page in [10, 100, 110, 599] {
        file.write(page, 3);
    }
    let fd = file.file.as_ref().unwrap().as_raw_fd();
    // SAFETY: over part of our own mapping.
    let over = unsafe {
        libc::mmap(
            area.page(100).cast(),
            500 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            fd,
            (100 * PAGE) as libc::off_t,
        )
    };
    assert_ne!(over, libc::MAP_FAILED);
    let found = touched(&mut contents, &block, 0..PAGES);
    let expected = BTreeSet::from([100, 110, 599]);
    assert!(
        expected.is_subset(&found),
        "pages of the file are lost: {found:?}"
    );
    assert!(!found.contains(&99) && !found.contains(&600));
    // If they were discarded as private memory, they would come back.
    let error = discard(&mut contents, &block, pages(90..120)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!((area.read(100), area.read(110)), (3, 3));
}

#[test]
fn pages_cut_off_a_file_are_an_error_and_no_hole() {
    for made in [Made::Memfd, Made::MemfdUntold, Made::MemfdPrivate] {
        let area = Area::new(made, PAGES * PAGE).unwrap();
        let (block, mut contents) = (block(&area), Contents::new());
        area.write(3, 1);
        let file = area.file.as_ref().unwrap();
        file.set_len((PAGES / 2 * PAGE) as u64).unwrap();
        let half = PAGES / 2;
        assert_eq!(split(&mut contents, &block, 0..half).len(), half);
        for (way, contents) in &mut ways() {
            if *way == "no map_files" && !made.is_told() {
                // The file is unknown then.
                continue;
            }
            contents.refresh();
            let error = contents
                .split(&block, pages(half - 1..half + 1), |_, _| ())
                .unwrap_err();
            assert_eq!(error.kind(), Kind::Memory, "{made:?}, {way}: {error}");
            assert!(error.message().contains("`ram`"), "{error}");
            // Pages near each other, of which the last two are cut off.
            let apart = (half - 18..=half + 2).step_by(2);
            let apart = apart.map(|page| block.run(Pages(page as u64), Pages(1)).unwrap());
            let error = contents
                .split_runs(&block, &apart.collect::<Vec<_>>(), |_, _| ())
                .unwrap_err();
            assert_eq!(error.kind(), Kind::Memory, "{made:?}, {way}: {error}");
        }
        file.set_len((PAGES * PAGE) as u64).unwrap();
    }
}

fn word(area: &Area, page: usize) -> u64 {
    // SAFETY: inside the mapping.
    unsafe { area.page(page).cast::<u64>().add(77).read_volatile() }
}

#[test]
fn memory_that_somebody_fills_on_demand_holds_what_he_fills_it_with() {
    let pool = HugePool::new(8);
    let mut kinds = vec![Made::Anonymous, Made::SharedAnonymous, Made::Memfd];
    kinds.extend([Made::Tmpfs, Made::MemfdUntold]);
    if pool.is_some() {
        kinds.extend([Made::Huge, Made::HugeMemfd]);
    }
    for made in kinds {
        for (way, mut contents) in ways() {
            for flags in [0, kinds::USER_MODE_ONLY] {
                let Some(area) = Area::new(made, 3 * HUGE) else {
                    continue;
                };
                let block = block(&area);
                let mine = if made.is_huge() { 512..1024 } else { 300..900 };
                assert_eq!(touched(&mut contents, &block, 0..900), BTreeSet::new());
                let Some(filler) = Filler::new(&area, mine.clone(), flags) else {
                    continue;
                };
                let what = format!("{made:?}, {way}, flags {flags}");
                // The answer of smaps is kept for a while.
                let anew = |contents: &mut Contents| {
                    if way == "no userfaultfd" {
                        *contents = Contents::new();
                        contents.looks.ask_smaps_only();
                    }
                };
                anew(&mut contents);
                // No answer from before the registration is kept.
                let found = touched(&mut contents, &block, 0..1200);
                assert!(found.iter().copied().eq(mine.clone()), "{what}: {found:?}");
                let page = Pages(mine.start as u64 + 5);
                assert_eq!(contents.see(&block, page).unwrap(), Seen::Absent, "{what}");
                assert_eq!(filler.served(), 0, "{what}: asking took memory");
                let error = discard(&mut contents, &block, pages(mine.clone())).unwrap_err();
                assert_eq!(error.kind(), Kind::Unsupported, "{what}");
                for (page, held) in split(&mut contents, &block, 0..1200) {
                    let expected = if mine.contains(&page) {
                        Held::Data
                    } else {
                        Held::Hole
                    };
                    assert_eq!(held, expected, "{what}: page {page}");
                }
                for page in mine.clone() {
                    assert_eq!(word(&area, page), kinds::filling(page), "{what}");
                }
                drop(filler);
                anew(&mut contents);
                let found = touched(&mut contents, &block, 0..1200);
                assert!(found.into_iter().eq(mine), "{what}: what he filled stays");
            }
        }
    }
}

#[test]
fn prefaulting_backs_pages_and_keeps_what_they_hold() {
    let area = Area::new(Made::Anonymous, PAGES * PAGE).unwrap();
    let (block, mut contents) = (block(&area), Contents::new());
    area.write(5, 9);
    prefault(&block, pages(4..8)).unwrap();
    assert_eq!((area.read(4), area.read(5)), (0, 9));
    let found = touched(&mut contents, &block, 0..PAGES);
    assert_eq!(found, (4..8).collect());
    prefault(&block, pages(PAGES..PAGES)).unwrap();
}

#[test]
fn ranges_past_the_end_of_a_block_are_refused_by_name() {
    let area = Area::new(Made::Anonymous, 300 * PAGE).unwrap();
    let (block, mut contents) = (block(&area), Contents::new());
    let past = pages(299..301);
    for error in [
        contents.touched(&block, past.clone(), |_| ()).unwrap_err(),
        contents.split(&block, past.clone(), |_, _| ()).unwrap_err(),
        discard(&mut contents, &block, past.clone()).unwrap_err(),
        prefault(&block, past).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains("`ram` has 300 pages"), "{error}");
    }
}

#[test]
fn a_block_whose_descriptor_or_offset_is_not_what_is_mapped_is_refused() {
    let (area, other) = (
        Area::new(Made::Memfd, 300 * PAGE).unwrap(),
        Area::new(Made::Memfd, 300 * PAGE).unwrap(),
    );
    // Two adjacent mappings of the same file are as good as one.
    // SAFETY: inside this test's own mapping.
    unsafe { libc::mprotect(area.at.cast(), 100 * PAGE, libc::PROT_READ) };
    let add = |from: &Area, offset| {
        Memory::new().unwrap().add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own mapping, which is there until the end of the test.
            host: unsafe { crate::memory::HostMemory::new(area.at) },
            length: Bytes(area.length as u64),
            page_size: Bytes(PAGE_SIZE),
            file: Some(BackingFile {
                fd: from.file.as_ref().unwrap().try_clone().unwrap().into(),
                offset,
            }),
            flags: BlockFlags::default(),
        })
    };
    add(&area, 0).unwrap();
    let error = add(&area, 3 * PAGE_SIZE).unwrap_err();
    assert!(error.message().contains("from offset 0"), "{error}");
    let error = add(&other, 0).unwrap_err();
    assert!(error.message().contains("another file"), "{error}");
}
