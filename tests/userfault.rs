//! The userfaultfd log on the real kernel: any memory of this process, and who writes to it.
//!
//! Where the kernel has no asynchronous write protection (before Linux 6.7) these tests say
//! so and pass.

use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::userfault::UserfaultLog;
use brant::dirty::{DirtyLog, LogKind, When};
use brant::error::Kind;
use brant::memory::{BackingFile, BlockDescription, BlockFlags, BlockId, Memory};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;

fn log() -> Option<Box<UserfaultLog>> {
    match UserfaultLog::new() {
        Ok(log) => Some(Box::new(log)),
        Err(e) => {
            assert_eq!(e.kind(), Kind::Unsupported, "{e}");
            eprintln!("skipped: {e}");
            None
        }
    }
}

/// A mapping, unmapped when dropped.
struct Ram {
    at: *mut u8,
    pages: usize,
    /// Bytes before `at` that belong to it.
    before: usize,
    whole: usize,
    file: Option<File>,
}

// SAFETY: an address; it is only written and read by atomic and volatile accesses.
unsafe impl Sync for Ram {}
// SAFETY: as above.
unsafe impl Send for Ram {}

fn map(length: usize, flags: libc::c_int, file: Option<&File>) -> Option<*mut u8> {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, rw, flags, fd, 0) };
    (at != libc::MAP_FAILED).then_some(at.cast())
}

fn memfd(length: usize) -> File {
    // SAFETY: a new descriptor from a static name.
    let file = unsafe {
        let fd = libc::memfd_create(c"userfault".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.set_len(length as u64).unwrap();
    file
}

impl Ram {
    fn of(pages: usize, flags: libc::c_int, file: Option<File>) -> Ram {
        let at = map(pages * PAGE, flags, file.as_ref()).expect("mmap");
        Ram {
            at,
            pages,
            before: 0,
            whole: pages * PAGE,
            file,
        }
    }

    fn anonymous(pages: usize) -> Ram {
        Ram::of(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
    }

    fn shared(pages: usize) -> Ram {
        Ram::of(pages, libc::MAP_SHARED, Some(memfd(pages * PAGE)))
    }

    /// Private to a file: pages are copied when they are first written.
    fn copied(pages: usize) -> Ram {
        Ram::of(pages, libc::MAP_PRIVATE, Some(memfd(pages * PAGE)))
    }

    /// Anonymous memory in transparent huge pages, wherever a whole one fits.
    fn huge(pages: usize) -> Ram {
        const HUGE: usize = 2 << 20;
        let whole = pages * PAGE + HUGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let from = map(whole, flags, None).expect("mmap");
        let before = from.align_offset(HUGE);
        // SAFETY: there is one huge page more than is used.
        let at = unsafe { from.add(before) };
        // SAFETY: inside the mapping.
        unsafe { libc::madvise(at.cast(), pages * PAGE, libc::MADV_HUGEPAGE) };
        let ram = Ram {
            at,
            pages,
            before,
            whole,
            file: None,
        };
        for page in 0..pages {
            ram.write(page, 1);
        }
        ram
    }

    fn word(&self, page: usize, at: usize) -> &AtomicU64 {
        assert!(page < self.pages && at < PAGE / 8);
        // SAFETY: inside the mapping, which outlives the reference.
        unsafe { &*self.at.add(page * PAGE + at * 8).cast::<AtomicU64>() }
    }

    fn write(&self, page: usize, value: u64) {
        self.word(page, page % 512).store(value, Ordering::Relaxed);
    }

    fn copy(&self, page: usize, to: &mut [u64]) {
        for (i, to) in to.iter_mut().enumerate() {
            *to = self.word(page, i).load(Ordering::Relaxed);
        }
    }

    fn describe(&self, name: &str) -> BlockDescription {
        BlockDescription {
            name: name.to_owned(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { brant::memory::HostMemory::new(self.at) },
            length: Bytes((self.pages * PAGE) as u64),
            page_size: Bytes(PAGE_SIZE),
            file: self.file.as_ref().map(|file| BackingFile {
                fd: OwnedFd::from(file.try_clone().unwrap()),
                offset: 0,
            }),
            flags: BlockFlags::default(),
        }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping, that nobody uses any more.
        unsafe { libc::munmap(self.at.sub(self.before).cast(), self.whole) };
    }
}

struct Tracked {
    // Before the memory: it stops first.
    consumer: Consumer,
    memory: Arc<Memory>,
    blocks: Vec<Ram>,
}

fn tracked_with(log: Box<dyn DirtyLog>, blocks: Vec<Ram>) -> Tracked {
    let memory = Arc::new(Memory::new().unwrap());
    for (i, ram) in blocks.iter().enumerate() {
        memory.add_block(ram.describe(&format!("ram{i}"))).unwrap();
    }
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    tracker.add_log(log).unwrap();
    Tracked {
        consumer: tracker.consumer(),
        memory,
        blocks,
    }
}

fn tracked(blocks: Vec<Ram>) -> Option<Tracked> {
    Some(tracked_with(log()?, blocks))
}

impl Tracked {
    fn start(&self) {
        self.consumer.start(StartWith::Nothing).unwrap();
    }

    /// How many pages a sync finds; it has no complaints.
    fn sync(&self, when: When) -> u64 {
        let report = self.consumer.sync(when).unwrap();
        assert_eq!(report.warnings, Vec::<String>::new());
        assert!(!report.postponed);
        let of = |kind| report.logs.iter().find(move |l| l.kind == kind);
        let own = of(LogKind::Userfault).unwrap().found.0;
        let marks = of(LogKind::Reported).unwrap().found.0;
        assert_eq!(own + marks, report.found.0);
        report.found.0
    }

    /// All that is pending, as (block, page).
    fn take(&self) -> BTreeSet<(usize, usize)> {
        let mut pages = BTreeSet::new();
        let (mut cursor, mut runs) = (Cursor::default(), Vec::new());
        loop {
            let all = Pages(u64::MAX);
            self.consumer.take(&mut cursor, 64, all, &mut runs).unwrap();
            for run in &runs {
                for page in run.first.0..run.first.0 + run.count.0 {
                    let fresh = pages.insert((run.block.id().index(), page as usize));
                    assert!(fresh, "page {page} was handed out twice");
                }
            }
            if runs.is_empty() {
                return pages;
            }
        }
    }

    fn found(&self) -> BTreeSet<(usize, usize)> {
        let found = self.sync(When::Running);
        let pages = self.take();
        assert_eq!(found, pages.len() as u64);
        pages
    }
}

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

/// Ten blocks, of every kind of memory and of sizes that no power of two divides.
fn ten_blocks() -> Vec<Ram> {
    vec![
        Ram::anonymous(1),
        Ram::shared(3),
        Ram::anonymous(511),
        Ram::huge(1024),
        Ram::shared(2049),
        Ram::copied(77),
        Ram::huge(513),
        Ram::anonymous(4097),
        Ram::shared(64),
        Ram::huge(3000),
    ]
}

#[test]
fn each_written_page_is_found_once_and_no_other() {
    let Some(t) = tracked(ten_blocks()) else {
        return;
    };
    let mut random = Random::new("each_written_page_is_found_once_and_no_other");
    t.start();
    assert_eq!(t.found(), BTreeSet::new(), "nobody has written yet");
    for round in 0..40 {
        let mut written = BTreeSet::new();
        for _ in 0..random.below(2000) {
            let block = random.below(t.blocks.len());
            let first = random.below(t.blocks[block].pages);
            let longest = t.blocks[block].pages - first;
            let pages = if random.below(10) == 0 {
                longest.min(700)
            } else {
                1
            };
            for page in first..first + pages {
                t.blocks[block].write(page, round);
                written.insert((block, page));
            }
        }
        // Reading is not writing.
        for _ in 0..500 {
            let block = random.below(t.blocks.len());
            let page = random.below(t.blocks[block].pages);
            std::hint::black_box(t.blocks[block].word(page, 0).load(Ordering::Relaxed));
        }
        assert_eq!(t.found(), written, "round {round}");
        assert_eq!(
            t.sync(When::Stopped),
            0,
            "round {round}: a page was found twice"
        );
    }
}

#[test]
fn more_runs_than_one_call_reports_are_all_found_and_none_again() {
    const PAGES: usize = 40_000;
    let Some(t) = tracked(vec![Ram::anonymous(PAGES), Ram::shared(PAGES)]) else {
        return;
    };
    t.start();
    for round in 0..3 {
        let mut written = BTreeSet::new();
        for page in (round % 2..PAGES).step_by(2) {
            for block in 0..2 {
                t.blocks[block].write(page, 1);
                written.insert((block, page));
            }
        }
        assert_eq!(t.found(), written, "round {round}");
        assert_eq!(t.sync(When::Running), 0);
    }
}

extern "C" fn on_signal(_: libc::c_int) {}

/// Sends a signal to a thread again and again, for as long as it lives. System calls of that thread are
/// interrupted by it, not begun anew.
struct Pester {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Pester {
    fn this_thread() -> Pester {
        // SAFETY: a handler that does nothing, without SA_RESTART.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            assert_eq!(
                libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()),
                0
            );
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // SAFETY: no arguments.
        let target = unsafe { libc::pthread_self() } as usize;
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                // SAFETY: the thread is alive until this one is joined.
                unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGUSR2) };
                sent += 1;
                std::thread::yield_now();
            }
            sent
        });
        Pester {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Pester {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Threads write at full speed while another syncs, takes and copies, and all of them are
/// interrupted by signals.
fn writers_lose_nothing(blocks: Vec<Ram>) {
    const WRITERS: usize = 4;
    let Some(t) = tracked(blocks) else { return };
    t.start();
    let mut copies: Vec<Vec<u64>> = t
        .blocks
        .iter()
        .map(|ram| {
            let mut copy = vec![0; ram.pages * 512];
            for (page, to) in copy.chunks_exact_mut(512).enumerate() {
                ram.copy(page, to);
            }
            copy
        })
        .collect();
    let (stop, ready) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut seen = BTreeSet::new();
    let mut taken = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let (blocks, stop, ready) = (&t.blocks, &stop, &ready);
                scope.spawn(move || {
                    let _pester = Pester::this_thread();
                    let mut random = Random(n as u64 + 1);
                    let mut record = BTreeSet::new();
                    let mut value = 0;
                    while !stop.load(Ordering::Relaxed) {
                        value += 1;
                        let block = random.below(blocks.len());
                        let page = random.below(blocks[block].pages);
                        // Each writer in a word of its own, so that each write changes something.
                        let word = blocks[block].word(page, n * 64 + page % 64);
                        word.store(value, Ordering::Relaxed);
                        record.insert((block, page));
                        if value == 1000 {
                            ready.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    record
                })
            })
            .collect();
        let _pester = Pester::this_thread();
        let mut syncs = 0;
        while syncs < 25 || ready.load(Ordering::Relaxed) < WRITERS as u64 {
            syncs += 1;
            for (block, page) in t.found_while_written() {
                let to = &mut copies[block][page * 512..][..512];
                t.blocks[block].copy(page, to);
                seen.insert((block, page));
                taken += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let records: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        t.sync(When::Stopped);
        for (block, page) in t.take() {
            t.blocks[block].copy(page, &mut copies[block][page * 512..][..512]);
            seen.insert((block, page));
            taken += 1;
        }
        for record in records {
            assert!(record.len() > 100);
            let lost: Vec<_> = record.difference(&seen).take(5).collect();
            assert!(lost.is_empty(), "written and never found: {lost:?}");
        }
    });
    println!("{taken} pages taken");
    assert_eq!(
        t.sync(When::Stopped),
        0,
        "a page was found though nobody writes"
    );
    let mut now = vec![0; 512];
    for (block, ram) in t.blocks.iter().enumerate() {
        for page in 0..ram.pages {
            ram.copy(page, &mut now);
            assert!(
                now == copies[block][page * 512..][..512],
                "block {block}, page {page}: its last write was not found"
            );
        }
    }
}

impl Tracked {
    fn found_while_written(&self) -> BTreeSet<(usize, usize)> {
        self.sync(When::Running);
        self.take()
    }
}

#[test]
fn writers_at_full_speed_lose_nothing_among_signals() {
    writers_lose_nothing(ten_blocks());
}

#[test]
fn writers_of_few_pages_lose_nothing_among_signals() {
    writers_lose_nothing(vec![Ram::anonymous(5), Ram::shared(4), Ram::huge(512)]);
}

/// Whether `work` said yes.
fn asked_of_a_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: `work` makes system calls and stores to memory, nothing that needs a lock.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::_exit(if work() { 0 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status == 0
    }
}

fn in_a_child(work: impl FnOnce() -> bool) {
    assert!(asked_of_a_child(work));
}

#[test]
fn what_the_kernel_writes_for_somebody_is_found() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(64)]) else {
        return;
    };
    t.start();
    let zero = File::open("/dev/zero").unwrap();
    for (block, ram) in t.blocks.iter().enumerate() {
        // A read into it, across two pages.
        // SAFETY: inside the mapping.
        let got = unsafe {
            let to = ram.at.add(10 * PAGE - 8);
            libc::read(zero.as_raw_fd(), to.cast(), 16)
        };
        assert_eq!(got, 16);
        assert_eq!(t.found(), BTreeSet::from([(block, 9), (block, 10)]));
        // Another process that writes into this one.
        let parent = std::process::id() as libc::pid_t;
        // SAFETY: numbers only. Some systems let only those write who are named; others do not
        // know the call.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        let written = asked_of_a_child(|| {
            let from = [7u8; 8];
            let local = libc::iovec {
                iov_base: from.as_ptr().cast_mut().cast(),
                iov_len: 8,
            };
            let remote = libc::iovec {
                iov_base: ram.at.wrapping_add(20 * PAGE).cast(),
                iov_len: 8,
            };
            // SAFETY: the parent has it mapped.
            unsafe { libc::process_vm_writev(parent, &local, 1, &remote, 1, 0) == 8 }
        });
        if !written {
            eprintln!("skipped: no process may write into another here");
            continue;
        }
        assert_eq!(t.found(), BTreeSet::from([(block, 20)]));
    }
}

#[test]
fn what_page_tables_do_not_see_is_missed_as_documented_and_found_when_marked() {
    let Some(t) = tracked(vec![Ram::shared(64)]) else {
        return;
    };
    let ram = &t.blocks[0];
    let file = ram.file.as_ref().unwrap();
    for page in 0..64 {
        ram.write(page, 1);
    }
    t.start();
    let other = map(64 * PAGE, libc::MAP_SHARED, Some(file)).unwrap();
    let hidden: [(&str, &dyn Fn(u64)); 4] = [
        ("another mapping", &|page| {
            // SAFETY: inside that mapping.
            unsafe { other.add(page as usize * PAGE).write_volatile(9) };
        }),
        ("pwrite", &|page| {
            file.write_all_at(b"hidden", page * PAGE_SIZE).unwrap();
        }),
        ("another process", &|page| {
            in_a_child(|| {
                // SAFETY: inherited, and shared.
                unsafe { ram.at.add(page as usize * PAGE).write_volatile(9) };
                true
            });
        }),
        ("a hole that is punched", &|page| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, length) = ((page * PAGE_SIZE) as i64, PAGE as i64);
            // SAFETY: changes the file.
            let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, at, length) };
            assert_eq!(result, 0);
        }),
    ];
    for (i, (what, write)) in hidden.iter().enumerate() {
        let page = 7 * i as u64;
        write(page);
        assert_eq!(
            t.found(),
            BTreeSet::new(),
            "{what} is seen here: mend the documentation"
        );
        t.consumer
            .mark_block(BlockId(0), Bytes(page * PAGE_SIZE), PAGE_SIZE);
        assert_eq!(t.found(), BTreeSet::from([(0, page as usize)]), "{what}");
    }
    // SAFETY: our own mapping.
    unsafe { libc::munmap(other.cast(), 64 * PAGE) };
}

#[test]
fn pages_that_private_memory_gave_back_count_as_written() {
    let Some(t) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    for page in 0..64 {
        t.blocks[0].write(page, 1);
    }
    t.start();
    // SAFETY: inside the mapping.
    let result = unsafe {
        let from = t.blocks[0].at.add(5 * PAGE);
        libc::madvise(from.cast(), 2 * PAGE, libc::MADV_DONTNEED)
    };
    assert_eq!(result, 0);
    assert_eq!(t.found(), BTreeSet::from([(0, 5), (0, 6)]));
}

#[test]
fn whole_page_tables_of_memory_that_was_given_back_count_as_written() {
    // The kernel may free a page table that a give-back left empty, and its protection with it.
    const TABLE: usize = 512;
    let Some(t) = tracked(vec![Ram::anonymous(6 * TABLE)]) else {
        return;
    };
    for page in 0..6 * TABLE {
        t.blocks[0].write(page, 1);
    }
    t.start();
    assert_eq!(t.found(), BTreeSet::new());
    // SAFETY: inside the mapping.
    let result = unsafe {
        let from = t.blocks[0].at.add(3 * PAGE);
        libc::madvise(from.cast(), 4 * TABLE * PAGE, libc::MADV_DONTNEED)
    };
    assert_eq!(result, 0);
    let given: BTreeSet<_> = (3..3 + 4 * TABLE).map(|page| (0, page)).collect();
    assert_eq!(t.found(), given);
    // And again, with what is empty now protected.
    assert_eq!(t.found(), BTreeSet::new());
    t.blocks[0].write(2 * TABLE, 7);
    assert_eq!(t.found(), BTreeSet::from([(0, 2 * TABLE)]));
}

#[test]
fn a_child_that_uses_or_drops_what_it_inherited_takes_nothing_from_the_parent() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(64)]) else {
        return;
    };
    t.start();
    t.blocks[0].write(3, 2);
    t.blocks[1].write(4, 2);
    in_a_child(|| {
        let known = t.consumer.sync(When::Running).unwrap();
        // Nothing is known of this process' copy.
        known.warnings.len() == 1 && known.pending == Pages(128)
    });
    assert_eq!(t.found(), BTreeSet::from([(0, 3), (1, 4)]));
    t.blocks[0].write(5, 2);
    in_a_child(|| t.consumer.sync(When::Stopped).is_err() && t.consumer.stop().is_ok());
    t.blocks[1].write(6, 2);
    assert_eq!(t.found(), BTreeSet::from([(0, 5), (1, 6)]));
}

#[test]
fn a_child_s_copy_of_the_memory_changes_nothing_for_the_parent() {
    let Some(t) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    for page in 0..32 {
        t.blocks[0].write(page, 1);
    }
    t.start();
    t.blocks[0].write(3, 2);
    // Both write the same pages, protected and not, while they share them.
    in_a_child(|| {
        for page in [3, 4, 40] {
            // SAFETY: the child's copy.
            unsafe { t.blocks[0].at.add(page * PAGE).write_volatile(9) };
        }
        true
    });
    assert_eq!(t.found(), BTreeSet::from([(0, 3)]));
    t.blocks[0].write(4, 2);
    t.blocks[0].write(40, 2);
    assert_eq!(t.found(), BTreeSet::from([(0, 4), (0, 40)]));
}

fn replace(ram: &Ram, first: usize, pages: usize) {
    // SAFETY: our own mapping, that nobody has a reference into.
    unsafe {
        let at = ram.at.add(first * PAGE).cast();
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        assert_eq!(libc::mmap(at, pages * PAGE, rw, flags, -1, 0), at);
    }
}

#[test]
fn a_scan_that_fails_makes_everything_dirty_and_the_next_is_a_good_one() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(10)]) else {
        return;
    };
    t.start();
    t.blocks[0].write(1, 1);
    replace(&t.blocks[0], 30, 4);
    let report = t.consumer.sync(When::Running).unwrap();
    assert_eq!(report.warnings.len(), 1);
    let warning = &report.warnings[0];
    assert!(
        warning.contains("userfault") && warning.contains("ram0"),
        "{warning}"
    );
    assert_eq!(report.pending.0, 74);
    assert_eq!(t.take().len(), 74);
    t.blocks[0].write(31, 1);
    t.blocks[0].write(2, 1);
    assert_eq!(t.found(), BTreeSet::from([(0, 2), (0, 31)]));
    // The last sync of all may not guess.
    replace(&t.blocks[0], 0, 64);
    let error = t.consumer.sync(When::Stopped).unwrap_err();
    assert!(error.message().contains("userfault"), "{error}");
    assert_eq!(t.take().len(), 74);
}

#[test]
fn memory_of_another_userfaultfd_is_refused_by_name_and_stays_the_other_s() {
    let Some(first) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    first.start();
    let taken = &first.blocks[0];
    let free = Ram::anonymous(8);
    let memory = Arc::new(Memory::new().unwrap());
    memory.add_block(free.describe("free")).unwrap();
    memory.add_block(taken.describe("taken")).unwrap();
    let tracker = Tracker::new(memory, Clearing::default()).unwrap();
    tracker.add_log(log().unwrap()).unwrap();
    let consumer = tracker.consumer();
    let error = consumer.start(StartWith::Nothing).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.message().contains("`taken`"), "{error}");
    assert!(error.message().contains("another userfaultfd"), "{error}");
    taken.write(5, 1);
    assert_eq!(first.found(), BTreeSet::from([(0, 5)]), "the first goes on");
    // What the failed start had registered already is free again.
    let third = tracked_with(log().unwrap(), vec![]);
    third.memory.add_block(free.describe("free")).unwrap();
    third.start();
    third.consumer.stop().unwrap();
    first.consumer.stop().unwrap();
    consumer.start(StartWith::Nothing).unwrap();
    consumer.stop().unwrap();
}

#[test]
fn stopping_gives_the_memory_back_even_when_a_child_holds_the_descriptor() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(64)]) else {
        return;
    };
    t.start();
    t.blocks[0].write(1, 1);
    let mut pipe = [0; 2];
    // SAFETY: two descriptors; the child only waits for its end of file and goes.
    let child = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            libc::close(pipe[1]);
            let mut byte = 0u8;
            libc::read(pipe[0], (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        child
    };
    t.consumer.stop().unwrap();
    assert_eq!(t.take(), BTreeSet::from([(0, 1)]), "a stop harvests first");
    let again = t.consumer.start(StartWith::Nothing);
    // SAFETY: our own descriptors and child.
    unsafe {
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    again.unwrap();
    t.blocks[1].write(2, 1);
    assert_eq!(t.found(), BTreeSet::from([(1, 2)]));
}

#[test]
fn blocks_come_and_go_while_they_are_written() {
    let Some(t) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    t.start();
    let extra: Vec<Ram> = vec![Ram::anonymous(33), Ram::shared(7), Ram::huge(600)];
    for round in 1..=5u64 {
        for (i, ram) in extra.iter().enumerate() {
            ram.write(0, round);
            let id = t
                .memory
                .add_block(ram.describe(&format!("extra{i}")))
                .unwrap();
            // Its contents are new, all of them.
            let new = t.take();
            assert_eq!(new.len(), ram.pages);
            assert!(new.iter().all(|(block, _)| *block == id.index()));
            ram.write(2, round);
            t.blocks[0].write(9, round);
            assert_eq!(t.found(), BTreeSet::from([(0, 9), (id.index(), 2)]));
        }
        for ram in &extra {
            ram.write(3, round);
        }
        t.blocks[0].write(10, round);
        for i in 0..extra.len() {
            t.memory.remove_block(&format!("extra{i}")).unwrap();
        }
        assert_eq!(t.found(), BTreeSet::from([(0, 10)]));
    }
    // Removed means given back: another may watch it now.
    let other = tracked_with(log().unwrap(), extra);
    other.start();
    // A block that cannot be watched is refused, and the tracker goes on as before.
    let error = t
        .memory
        .add_block(other.blocks[1].describe("theirs"))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert_eq!(t.memory.map().blocks().len(), 1);
    t.blocks[0].write(11, 1);
    other.blocks[1].write(1, 1);
    assert_eq!(t.found(), BTreeSet::from([(0, 11)]));
    assert_eq!(other.found(), BTreeSet::from([(1, 1)]));
}

#[test]
fn a_read_only_block_is_not_watched_and_its_marks_count() {
    let Some(t) = tracked(vec![Ram::anonymous(8)]) else {
        return;
    };
    let flash = Ram::anonymous(8);
    let mut described = flash.describe("flash");
    described.flags.rom = true;
    let id = t.memory.add_block(described).unwrap();
    t.start();
    flash.write(1, 1);
    t.blocks[0].write(2, 1);
    assert_eq!(t.found(), BTreeSet::from([(0, 2)]));
    t.consumer.mark_block(id, Bytes(PAGE_SIZE), 1);
    assert_eq!(t.found(), BTreeSet::from([(id.index(), 1)]));
}

#[test]
fn a_huge_page_of_hugetlbfs_counts_whole() {
    const HUGE: usize = 512;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let Some(at) = map(4 * HUGE * PAGE, flags, None) else {
        eprintln!("skipped: no huge pages are reserved here");
        return;
    };
    let ram = Ram {
        at,
        pages: 4 * HUGE,
        before: 0,
        whole: 4 * HUGE * PAGE,
        file: None,
    };
    let Some(t) = tracked(vec![ram]) else { return };
    t.start();
    assert_eq!(t.found(), BTreeSet::new());
    for round in 0..3 {
        t.blocks[0].write(HUGE + 5, round);
        let whole = (HUGE..2 * HUGE).map(|page| (0, page)).collect();
        assert_eq!(t.found(), whole);
    }
    t.blocks[0].write(0, 1);
    t.blocks[0].write(3 * HUGE, 1);
    assert_eq!(t.found().len(), 2 * HUGE);
}
