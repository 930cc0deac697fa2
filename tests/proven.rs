//! "Zero" and "never touched" are proven, in every kind of memory. A page that may have contents is
//! read, and a hole is touched on neither side.
//!
//! A test that would end in a signal if the promise were broken runs in a process of its own.

use crate::support::alone::alone;
use crate::support::kinds::{
    self, filling, Area, Filler, HugePool, Made, HUGE, HUGE_KINDS, PAGE, SMALL,
};
use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::userfault::UserfaultLog;
use brant::dirty::When;
use brant::memory::contents::{Contents, Held};
use brant::memory::{BackingFile, BlockDescription, BlockFlags, BlockId, HostMemory, Memory};
use brant::migrate::steering::{Decider, Decision, Facts, Moment, Next};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params, Stats};
use brant::units::{Bytes, Pages};
use brant::vmm::{Event, EventKind, StateBlob, StateSink, Vmm};
use brant::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
/// The time limit of a test in a process of its own.
const LIMIT: Duration = Duration::from_secs(240);

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

fn memory_of(area: &Area, zeroed: bool) -> Arc<Memory> {
    let memory = Memory::new().unwrap();
    let file = area.file.as_ref().filter(|_| area.made.is_told());
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the areas of a test outlive its migrations.
            host: unsafe { HostMemory::new(area.at) },
            length: Bytes(area.length as u64),
            page_size: Bytes(area.made.page_size() as u64),
            file: file.map(|file| BackingFile {
                fd: file.try_clone().unwrap().into(),
                offset: 0,
            }),
            flags: BlockFlags {
                zeroed,
                ..BlockFlags::default()
            },
        })
        .unwrap();
    Arc::new(memory)
}

fn tracker_of(memory: &Arc<Memory>) -> Arc<Tracker> {
    Tracker::new(Arc::clone(memory), Clearing::default()).unwrap()
}

type Hook = Box<dyn FnMut() -> Result<()> + Send>;

/// A VMM whose operations do what the test asks for.
#[derive(Default)]
struct Plain {
    at_pass: Mutex<Option<Hook>>,
    at_save: Mutex<Option<Hook>>,
    at_load: Mutex<Option<Hook>>,
    runs: AtomicU32,
}

impl Plain {
    fn hook(at: &Mutex<Option<Hook>>) -> Result<()> {
        match &mut *at.lock().unwrap() {
            Some(hook) => hook(),
            None => Ok(()),
        }
    }
}

impl Vmm for Plain {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn save(&self, _: &mut dyn StateSink) -> Result<()> {
        Plain::hook(&self.at_save)
    }
    fn load(&self, _: &StateBlob<'_>) -> Result<()> {
        Plain::hook(&self.at_load)
    }
    fn run(&self) -> Result<()> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn event(&self, event: &Event) {
        if event.kind == EventKind::Pass {
            Plain::hook(&self.at_pass).unwrap();
        }
    }
}

/// Switches over after this many passes.
struct After(u32);

impl Decider for After {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let next = match facts.moment {
            Moment::Synced if facts.pass >= self.0 => Next::SwitchOver {
                expected: Duration::ZERO,
            },
            _ => Next::GoOn,
        };
        next.into()
    }
}

struct Outcome {
    source: Result<()>,
    destination: Result<()>,
    stats: Stats,
    /// The destination's.
    theirs: Stats,
}

impl Outcome {
    fn completed(&self, what: &str) {
        for side in [&self.source, &self.destination] {
            if let Err(e) = side {
                panic!("{what}: {e}");
            }
        }
    }
}

fn migrate(tracker: &Arc<Tracker>, destination: &Arc<Memory>, passes: u32, vmm: Plain) -> Outcome {
    migrate_by(tracker, destination, passes, vmm, Params::default())
}

/// The same with parameters of the destination's.
fn migrate_by(
    tracker: &Arc<Tracker>,
    destination: &Arc<Memory>,
    passes: u32,
    vmm: Plain,
    theirs: Params,
) -> Outcome {
    let (here, there) = UnixStream::pair().unwrap();
    let to: Arc<dyn Vmm> = Arc::new(Plain::default());
    let incoming = Incoming::new(Arc::clone(destination), to, theirs).unwrap();
    incoming.start(AcceptFrom::Connected(there.into())).unwrap();
    let from: Arc<dyn Vmm> = Arc::new(vmm);
    let params = Params::default();
    let outgoing = Outgoing::new(Arc::clone(tracker), Blockers::new(), from, params).unwrap();
    outgoing
        .start_with(ConnectTo::Connected(here.into()), Box::new(After(passes)))
        .unwrap();
    Outcome {
        source: outgoing.wait(Some(LONG)),
        destination: incoming.wait(Some(LONG)),
        stats: outgoing.stats(),
        theirs: incoming.stats(),
    }
}

fn word(area: &Area, page: usize) -> u64 {
    // SAFETY: inside the mapping.
    unsafe { area.page(page).cast::<u64>().add(77).read_volatile() }
}

fn set(area: &Area, page: usize, value: u64) {
    // SAFETY: inside the mapping.
    unsafe { area.page(page).cast::<u64>().add(77).write_volatile(value) };
}

/// Checks that each page of `area` has the contents that `should` returns.
fn assert_holds(area: &Area, should: impl Fn(usize) -> u64, what: &str) {
    let wrong: BTreeMap<usize, (u64, u64)> = (0..area.pages())
        .map(|page| (page, (word(area, page), should(page))))
        .filter(|(_, (is, should))| is != should)
        .collect();
    assert!(wrong.is_empty(), "{what}: {}", kinds::differing(&wrong));
}

#[test]
fn memory_that_somebody_fills_on_demand_arrives_as_he_fills_it() {
    alone(LIMIT, || {
        let pool = HugePool::new(32);
        let mut made = vec![Made::Anonymous, Made::Memfd, Made::SharedAnonymous];
        made.extend([Made::MemfdUntold, Made::Tmpfs]);
        if pool.is_some() {
            made.extend([Made::Huge, Made::HugeMemfd]);
        }
        #[derive(Debug, Clone, Copy, PartialEq)]
        enum Registered {
            BeforeTheBlock,
            AfterTheBlock,
            WhileItMoves,
        }
        use Registered::*;
        for made in made {
            for when in [BeforeTheBlock, AfterTheBlock, WhileItMoves] {
                for flags in [0, kinds::USER_MODE_ONLY] {
                    let what = format!("{made:?}, registered {when:?}, flags {flags}");
                    let Some(area) = Area::new(made, 4 * HUGE) else {
                        continue;
                    };
                    let area = Arc::new(area);
                    let mine = if made.is_huge() { 512..1536 } else { 300..1324 };
                    let inside = mine.clone();
                    let filler = |on: &Area| Filler::new(on, mine.clone(), flags);
                    let mut served = (when == BeforeTheBlock).then(|| filler(&area));
                    let memory = memory_of(&area, false);
                    if when == AfterTheBlock {
                        served = Some(filler(&area));
                    }
                    set(&area, 5, 5);
                    let tracker = tracker_of(&memory);
                    let vmm = Plain::default();
                    let later = Arc::new(Mutex::new(None));
                    if when == WhileItMoves {
                        // Memory that the first pass finds untouched is another mapping in the
                        // second.
                        let (later, tracker) = (Arc::clone(&later), Arc::clone(&tracker));
                        let (area, mine) = (Arc::clone(&area), mine.clone());
                        let length = area.length as u64;
                        *vmm.at_pass.lock().unwrap() = Some(Box::new(move || {
                            let mut later = later.lock().unwrap();
                            if later.is_none() {
                                *later = Some(Filler::new(&area, mine.clone(), flags));
                                tracker.mark_block(BlockId(0), Bytes(0), length);
                            }
                            Ok(())
                        }));
                    } else if matches!(served, Some(None)) {
                        continue;
                    }
                    let kind = if made.is_huge() {
                        Made::Huge
                    } else {
                        Made::Anonymous
                    };
                    let to = Area::new(kind, 4 * HUGE).unwrap();
                    let outcome = migrate(&tracker, &memory_of(&to, false), 2, vmm);
                    outcome.completed(&what);
                    if matches!(*later.lock().unwrap(), Some(None)) {
                        continue;
                    }
                    let should = |page: usize| match page {
                        5 => 5,
                        page if inside.contains(&page) => filling(page),
                        _ => 0,
                    };
                    assert_holds(&to, should, &what);
                    assert_holds(&area, should, &what);
                    drop((served, later));
                }
            }
        }
    });
}

#[test]
fn pages_that_are_in_a_file_already_arrive_as_he_who_maps_them_leaves_them() {
    alone(LIMIT, || {
        let source = Area::new(Made::Memfd, 4 * HUGE).unwrap();
        let mine = 300..1324;
        // The page cache has them, and not yet what they are to hold.
        for page in mine.clone() {
            source.write_file(page, 0xee);
        }
        let Some(filler) = Filler::minor(&source, mine.clone()) else {
            return;
        };
        let tracker = tracker_of(&memory_of(&source, false));
        let to = Area::new(Made::Anonymous, 4 * HUGE).unwrap();
        let outcome = migrate(&tracker, &memory_of(&to, false), 2, Plain::default());
        outcome.completed("minor faults");
        let should = |page: usize| {
            if mine.contains(&page) {
                filling(page)
            } else {
                0
            }
        };
        assert_holds(&to, should, "minor faults");
        assert!(filler.served() > 0, "nobody asked him");
    });
}

#[test]
fn pages_that_were_mapped_over_since_the_first_pass_arrive_as_they_are_now() {
    let source = Area::new(Made::Anonymous, 4 * HUGE).unwrap();
    let file = Area::new(Made::Memfd, 4 * HUGE).unwrap();
    let (over, held) = (600..900, [601, 700, 899]);
    held.iter().for_each(|page| set(&file, *page, 8));
    set(&source, 5, 5);
    set(&source, 650, 6);
    let tracker = tracker_of(&memory_of(&source, false));
    let vmm = Plain::default();
    let length = source.length as u64;
    let (at, count) = (source.page(over.start) as usize, over.len());
    let fd = file.file.as_ref().unwrap().try_clone().unwrap();
    let (theirs, mut mapped) = (Arc::clone(&tracker), false);
    *vmm.at_pass.lock().unwrap() = Some(Box::new(move || {
        if !std::mem::replace(&mut mapped, true) {
            // SAFETY: over part of the test's own mapping, which nobody uses now.
            let now = unsafe {
                libc::mmap(
                    at as *mut _,
                    count * PAGE,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    std::os::fd::AsRawFd::as_raw_fd(&fd),
                    (600 * PAGE) as libc::off_t,
                )
            };
            assert_ne!(now, libc::MAP_FAILED);
            theirs.mark_block(BlockId(0), Bytes(0), length);
        }
        Ok(())
    }));
    let to = Area::new(Made::Anonymous, 4 * HUGE).unwrap();
    migrate(&tracker, &memory_of(&to, false), 2, vmm).completed("mapped over");
    let should = |page: usize| match page {
        5 => 5,
        page if held.contains(&page) => 8,
        _ => 0,
    };
    assert_holds(&to, should, "mapped over");
    assert_eq!(
        file.backed(),
        held.len() * PAGE,
        "a hole of the file was filled"
    );
}

/// The wrong pages of the destination after a second guest came into it.
fn second_guest(what: &str, first: impl Fn(&Area, &Arc<Memory>)) {
    const LENGTH: usize = 4 << 20;
    for made in [Made::Anonymous, Made::Memfd, Made::Disk] {
        let what = format!("{what}, {made:?}");
        let to = Area::new(made, LENGTH).unwrap();
        let memory = memory_of(&to, true);
        first(&to, &memory);
        let second = Area::new(Made::Anonymous, LENGTH).unwrap();
        for page in (0..second.pages()).step_by(7) {
            set(&second, page, 3);
        }
        let tracker = tracker_of(&memory_of(&second, false));
        migrate(&tracker, &memory, 2, Plain::default()).completed(&what);
        assert_holds(&to, |page| if page % 7 == 0 { 3 } else { 0 }, &what);
    }
}

/// A guest whose pages all have contents.
fn full(pages: usize) -> Area {
    let area = Area::new(Made::Anonymous, pages * PAGE).unwrap();
    for page in 0..area.pages() {
        set(&area, page, 9);
    }
    area
}

#[test]
fn a_destination_that_was_zeroed_is_looked_at_after_a_migration_that_broke() {
    second_guest("broken at the end", |to, memory| {
        let source = full(to.pages());
        let tracker = tracker_of(&memory_of(&source, false));
        let vmm = Plain::default();
        *vmm.at_save.lock().unwrap() =
            Some(Box::new(|| Err(Error::new(Kind::Vmm, "the test says no"))));
        let outcome = migrate(&tracker, memory, 1, vmm);
        assert_eq!(outcome.source.unwrap_err().kind(), Kind::Vmm);
        assert!(outcome.destination.is_err());
        assert_eq!(word(to, 1), 9, "pages had arrived");
    });
}

#[test]
fn a_destination_that_was_zeroed_is_looked_at_when_its_guest_has_run_and_gone() {
    second_guest("handed over", |to, memory| {
        // The guest with which this VMM began.
        for page in 0..to.pages() {
            set(to, page, 9);
        }
        let elsewhere = Area::new(Made::Anonymous, to.length).unwrap();
        let outcome = migrate(
            &tracker_of(memory),
            &memory_of(&elsewhere, false),
            1,
            Plain::default(),
        );
        outcome.completed("the first guest");
    });
}

#[test]
fn a_destination_that_was_zeroed_is_not_looked_at_in_vain() {
    // The flag counts again if the migration before brought no page.
    let to = Area::new(Made::Disk, 4 << 20).unwrap();
    let memory = memory_of(&to, true);
    let source = Area::new(Made::Anonymous, 4 << 20).unwrap();
    let tracker = tracker_of(&memory_of(&source, false));
    let vmm = Plain::default();
    *vmm.at_save.lock().unwrap() =
        Some(Box::new(|| Err(Error::new(Kind::Vmm, "the test says no"))));
    migrate(&tracker, &memory, 1, vmm).source.unwrap_err();
    migrate(&tracker, &memory, 1, Plain::default()).completed("the second");
    assert_eq!(to.backed(), 0, "a file on a disk was read");
}

/// Makes every page dirty again after each pass, in one long run or page by page.
fn all_dirty(tracker: &Arc<Tracker>, length: usize, scattered: bool) -> Hook {
    let tracker = Arc::clone(tracker);
    Box::new(move || {
        if scattered {
            for page in (0..length / PAGE).step_by(2) {
                tracker.mark_block(BlockId(0), Bytes((page * PAGE) as u64), 1);
            }
        } else {
            tracker.mark_block(BlockId(0), Bytes(0), length as u64);
        }
        Ok(())
    })
}

#[test]
fn passes_in_which_all_is_dirty_touch_no_hole() {
    const LENGTH: usize = 1 << 30;
    const TOUCHED: usize = 16 << 20;
    for scattered in [false, true] {
        let source = Area::new(Made::Memfd, LENGTH).unwrap();
        for page in 0..TOUCHED / PAGE {
            set(&source, page * 5, 1 + page as u64);
        }
        assert_eq!(source.backed(), TOUCHED);
        let tracker = tracker_of(&memory_of(&source, false));
        let vmm = Plain::default();
        *vmm.at_pass.lock().unwrap() = Some(all_dirty(&tracker, LENGTH, scattered));
        let to = Area::new(Made::Memfd, LENGTH).unwrap();
        let outcome = migrate(&tracker, &memory_of(&to, false), 5, vmm);
        outcome.completed("all dirty");
        let sent = outcome.stats.data_pages as usize;
        assert!(sent > TOUCHED / PAGE, "{sent} pages were sent");
        assert_eq!(
            source.backed(),
            TOUCHED,
            "scattered: {scattered}; at the source"
        );
        assert_eq!(
            to.backed(),
            TOUCHED,
            "scattered: {scattered}; at the destination"
        );
        for page in 0..TOUCHED / PAGE {
            assert_eq!(word(&to, page * 5), 1 + page as u64);
        }
    }
}

/// Whether brant can prove on this machine that pages of such memory are holes.
fn provable(made: Made) -> bool {
    // SAFETY: asks who we are.
    made != Made::Disk && (made != Made::TmpfsUntold || unsafe { libc::geteuid() } == 0)
}

#[test]
fn what_holds_nothing_takes_memory_on_neither_side_in_any_kind_of_memory() {
    const LENGTH: usize = 64 << 20;
    for made in SMALL.into_iter().filter(|made| provable(*made)) {
        let source = Area::new(made, LENGTH).unwrap();
        for page in 0..512 {
            set(&source, page * 3, 1);
        }
        let touched = source.backed();
        let tracker = tracker_of(&memory_of(&source, false));
        let to = Area::new(made, LENGTH).unwrap();
        let vmm = Plain::default();
        *vmm.at_pass.lock().unwrap() = Some(all_dirty(&tracker, LENGTH, false));
        let outcome = migrate(&tracker, &memory_of(&to, false), 2, vmm);
        outcome.completed(&format!("{made:?}"));
        assert_eq!(source.backed(), touched, "{made:?}, at the source");
        assert_eq!(to.backed(), touched, "{made:?}, at the destination");
        let should = |page: usize| u64::from(page < 3 * 512 && page.is_multiple_of(3));
        assert_holds(&to, should, &format!("{made:?}"));
    }
}

#[test]
fn untouched_huge_pages_stay_untouched_where_the_pool_is_too_small_for_them() {
    alone(LIMIT, || {
        const LENGTH: usize = 64 << 20;
        for made in HUGE_KINDS {
            // One page for each side.
            let Some(_pool) = HugePool::new(2) else {
                return;
            };
            let source = Area::new(made, LENGTH).expect("no page is reserved");
            let to = Area::new(made, LENGTH).expect("no page is reserved");
            set(&source, 7 * 512 + 3, 4);
            assert_eq!(HugePool::free(), 1);
            let tracker = tracker_of(&memory_of(&source, false));
            let vmm = Plain::default();
            *vmm.at_pass.lock().unwrap() = Some(all_dirty(&tracker, LENGTH, false));
            let outcome = migrate(&tracker, &memory_of(&to, false), 5, vmm);
            outcome.completed(&format!("{made:?}"));
            assert_eq!(HugePool::free(), 0, "{made:?}");
            assert_eq!(word(&to, 7 * 512 + 3), 4, "{made:?}");
            drop((source, to, tracker));
            assert_eq!(HugePool::free(), 2, "{made:?}");
        }
    });
}

#[test]
fn huge_pages_that_the_pool_does_not_have_are_an_error_and_no_signal() {
    alone(LIMIT, || {
        for made in HUGE_KINDS {
            let Some(_pool) = HugePool::new(1) else {
                return;
            };
            let source = Area::new(made, 8 * HUGE).unwrap();
            set(&source, 700, 4);
            let to = Area::new(made, 8 * HUGE).unwrap();
            let tracker = tracker_of(&memory_of(&source, false));
            let outcome = migrate(&tracker, &memory_of(&to, false), 1, Plain::default());
            let error = outcome.destination.unwrap_err();
            assert!(
                matches!(error.kind(), Kind::Memory | Kind::NoMemory),
                "{made:?}: {error}"
            );
            assert!(error.message().contains("`ram`"), "{error}");
            outcome.source.unwrap_err();
            assert_eq!(word(&source, 700), 4);
        }
    });
}

fn userfault_log() -> Option<Box<UserfaultLog>> {
    match UserfaultLog::new() {
        Ok(log) => Some(Box::new(log)),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

/// Bytes of this process' page tables.
fn page_tables() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmPTE:")).unwrap();
    let kilobytes = line.split_ascii_whitespace().next().unwrap();
    kilobytes.parse::<u64>().unwrap() << 10
}

#[test]
fn what_nobody_touched_is_neither_protected_nor_read_while_userfaultfd_tracks() {
    alone(LIMIT, || {
        const LENGTH: usize = 8 << 30;
        let Some(log) = userfault_log() else {
            return;
        };
        let source = Area::new(Made::Anonymous, LENGTH).unwrap();
        // One page alone in its 2 MiB, two in the same 2 MiB, and a whole 2 MiB.
        let touched: BTreeSet<usize> = [100 * 512 + 9, 800_000, 800_001]
            .into_iter()
            .chain(512 * 50..512 * 51)
            .collect();
        for page in &touched {
            set(&source, *page, 6);
        }
        let tables = page_tables();
        let memory = memory_of(&source, false);
        let tracker = tracker_of(&memory);
        tracker.add_log(log).unwrap();
        let to = Area::new(Made::Anonymous, LENGTH).unwrap();
        let vmm = Plain::default();
        *vmm.at_pass.lock().unwrap() = Some(all_dirty(&tracker, LENGTH, false));
        let outcome = migrate(&tracker, &memory_of(&to, false), 5, vmm);
        outcome.completed("sparse");
        // Protecting all of it took 16 MiB, and reading it as much again.
        let more = page_tables().saturating_sub(tables);
        assert!(more < 2 << 20, "{more} bytes of page tables were made");
        let pages = (LENGTH / PAGE) as u64;
        let holes = outcome.stats.hole_pages;
        assert!(
            holes >= 2 * (pages - touched.len() as u64),
            "{holes} holes were found"
        );
        assert_eq!(source.backed(), touched.len() * PAGE);
        assert_eq!(to.backed(), touched.len() * PAGE);
        for page in &touched {
            assert_eq!(word(&to, *page), 6, "page {page}");
        }
    });
}

/// A copy that is updated only by the dirty log and by what is said of pages.
struct Copy {
    consumer: Consumer,
    contents: Contents,
    copy: Vec<u64>,
    holes: u64,
}

impl Copy {
    fn new(area: &Area) -> Option<Copy> {
        let memory = memory_of(area, false);
        let tracker = tracker_of(&memory);
        tracker.add_log(userfault_log()?).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Everything).unwrap();
        Some(Copy {
            consumer,
            contents: Contents::new(),
            copy: vec![0; area.pages()],
            holes: 0,
        })
    }

    /// Takes every pending page, as a migration does.
    fn pass(&mut self, area: &Area) {
        let mut cursor = Cursor::default();
        loop {
            let taken = self.consumer.take(&mut cursor, 256, Pages(512)).unwrap();
            if taken.is_empty() {
                return;
            }
            self.contents.refresh();
            for run in taken.runs() {
                let Copy {
                    contents,
                    copy,
                    holes,
                    ..
                } = self;
                contents
                    .split(run.block, run.pages.range(), |pages, held| {
                        let range = pages.start.index()..pages.end.index();
                        for (page, copied) in range.clone().zip(&mut copy[range]) {
                            *copied = match held {
                                Held::Data => word(area, page),
                                _ => 0,
                            };
                        }
                        if held == Held::Hole {
                            *holes += pages.end.0 - pages.start.0;
                        }
                    })
                    .unwrap();
            }
        }
    }

    fn sync(&mut self) {
        let report = self.consumer.sync(When::Running).unwrap();
        assert_eq!(report.warnings, Vec::<String>::new());
    }

    fn assert_same(&self, area: &Area, what: &str) {
        assert_holds(area, |page| self.copy[page], what);
    }
}

#[test]
fn a_copy_by_userfaultfds_log_is_exact_whatever_was_written_read_or_discarded_between_syncs() {
    let mut random = Random::new("a_copy_by_userfaultfds_log_is_exact");
    for made in SMALL {
        // This log does not see writes that go past the mapping.
        let area = Area::new(made, 60 * HUGE + 5 * PAGE).unwrap();
        // Most of the memory begins untouched.
        for page in 0..area.pages() / 4 {
            if random.below(10) == 0 {
                set(&area, page, 1);
            }
        }
        let Some(mut copy) = Copy::new(&area) else {
            return;
        };
        for round in 0..30 {
            copy.pass(&area);
            copy.assert_same(&area, &format!("{made:?}, round {round}"));
            for _ in 0..random.below(20) {
                let first = random.below(area.pages());
                let end = (first + [1, 1, 2, 30, 700][random.below(5)]).min(area.pages());
                match random.below(5) {
                    0 => (first..end).for_each(|page| {
                        std::hint::black_box(word(&area, page));
                    }),
                    // Shared memory keeps its contents, and a private file mapping gets those of
                    // the file.
                    1 if made == Made::Anonymous => {
                        // SAFETY: inside this test's own mapping.
                        let given = unsafe {
                            let length = (end - first) * PAGE;
                            libc::madvise(area.page(first).cast(), length, libc::MADV_DONTNEED)
                        };
                        assert_eq!(given, 0);
                    }
                    2 => (first..end).for_each(|page| set(&area, page, 0)),
                    _ => {
                        for page in first..end {
                            set(&area, page, 1 + random.below(1000) as u64);
                        }
                    }
                }
            }
            copy.sync();
        }
        copy.pass(&area);
        copy.assert_same(&area, &format!("{made:?}, at the end"));
    }
}

#[test]
fn pages_first_written_while_the_log_looks_at_them_are_not_lost() {
    let mut random = Random::new("pages_first_written_while_the_log_looks_at_them");
    for round in 0..6 {
        let area = Area::new(Made::Anonymous, 64 << 20).unwrap();
        // Some pieces are protected from the start, which hides their holes.
        for _ in 0..8 {
            set(&area, random.below(area.pages()), 1);
        }
        let stop = AtomicBool::new(false);
        let seed = random.below(1 << 30) as u64;
        let copy = std::thread::scope(|scope| {
            for writer in 0..2 {
                let (area, stop) = (&area, &stop);
                scope.spawn(move || {
                    let mut random = Random(seed + writer);
                    while !stop.load(Ordering::Relaxed) {
                        let first = random.below(area.pages());
                        let end = (first + 1 + random.below(4)).min(area.pages());
                        for page in first..end {
                            set(area, page, 1 + random.below(1000) as u64);
                        }
                        std::thread::yield_now();
                    }
                });
            }
            let copy = Copy::new(&area).map(|mut copy| {
                for _ in 0..40 {
                    copy.pass(&area);
                    copy.sync();
                }
                copy
            });
            stop.store(true, Ordering::Relaxed);
            copy
        });
        let Some(mut copy) = copy else {
            return;
        };
        copy.sync();
        copy.pass(&area);
        copy.assert_same(&area, &format!("round {round}"));
        assert!(copy.holes > 0, "no hole was seen, so nothing was tried");
    }
}

/// A guest of 512 MiB that holds 16 pages in each of its stretches.
fn sparse() -> (Area, impl Fn(usize) -> u64) {
    let source = Area::new(Made::Anonymous, 512 << 20).unwrap();
    let should = |page: usize| if page % 512 < 16 { 5 } else { 0 };
    for page in (0..source.pages()).filter(|page| should(*page) != 0) {
        set(&source, page, should(page));
    }
    (source, should)
}

#[test]
fn the_host_backs_memory_ahead_of_contents_where_that_is_wanted_and_nothing_else() {
    let (source, should) = sparse();
    let tracker = tracker_of(&memory_of(&source, false));
    let to = Area::new(Made::Anonymous, source.length).unwrap();
    for (prefault, fresh) in [(true, true), (true, false), (false, true)] {
        let what = format!("prefault {prefault}, fresh {fresh}");
        if fresh {
            // SAFETY: the test's own mapping, which nobody uses now.
            let gone = unsafe { libc::madvise(to.at.cast(), to.length, libc::MADV_DONTNEED) };
            assert_eq!(gone, 0);
        }
        tracker.memory().reclaim().unwrap();
        let theirs = Params {
            prefault,
            ..Params::default()
        };
        let memory = memory_of(&to, false);
        let outcome = migrate_by(&tracker, &memory, 1, Plain::default(), theirs);
        outcome.completed(&what);
        let backed = outcome.theirs.prefaulted_pages as usize;
        let expected = if prefault && fresh {
            source.pages() / 32
        } else {
            0
        };
        assert_eq!(backed, expected, "{what}");
        assert_eq!(outcome.theirs.prefault_failures, 0, "{what}");
        assert_eq!(to.backed(), source.pages() / 32 * PAGE, "{what}");
        assert_holds(&to, &should, &what);
    }
}

/// A memory cgroup that this process is in. It goes when the process has left it.
struct Limited(std::path::PathBuf);

impl Limited {
    /// `None` where none can be made.
    fn to(bytes: usize) -> Option<Limited> {
        let root = std::path::Path::new("/sys/fs/cgroup/memory");
        let group = root.join(format!("brant-test-{}", std::process::id()));
        std::fs::create_dir(&group).ok()?;
        let limited = Limited(group);
        let write = |file: &str, text: String| std::fs::write(limited.0.join(file), text);
        write("memory.limit_in_bytes", bytes.to_string()).ok()?;
        write("cgroup.procs", std::process::id().to_string()).ok()?;
        Some(limited)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let root = "/sys/fs/cgroup/memory/cgroup.procs";
        let _ = std::fs::write(root, std::process::id().to_string());
        // What was charged to it is charged to its parent from here on.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn backing_ahead_meets_no_limit_of_a_cgroup_that_the_contents_do_not_meet() {
    alone(LIMIT, || {
        let (source, should) = sparse();
        let tracker = tracker_of(&memory_of(&source, false));
        let to = Area::new(Made::Anonymous, source.length).unwrap();
        let memory = memory_of(&to, false);
        // Contents of 16 MiB come. With the 2 MiB around each run it would be 512 MiB, and the kernel
        // would end the process.
        let Some(limited) = Limited::to(96 << 20) else {
            eprintln!("skipped: no memory cgroup can be made here");
            return;
        };
        let outcome = migrate(&tracker, &memory, 1, Plain::default());
        drop(limited);
        outcome.completed("limited");
        assert_eq!(
            outcome.theirs.prefaulted_pages as usize,
            source.pages() / 32
        );
        assert_holds(&to, should, "limited");
    });
}
