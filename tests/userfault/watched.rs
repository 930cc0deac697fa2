//! Memory of this process that the log watches: of each kind, written, and compared with the found
//! pages. If the kernel has no asynchronous write protection the tests say so and pass.

use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::userfault::UserfaultLog;
use brant::dirty::{DirtyLog, LogKind, When};
use brant::error::Kind;
use brant::memory::{BackingFile, BlockDescription, BlockFlags, Memory};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

pub const PAGE: usize = PAGE_SIZE as usize;

pub fn log() -> Option<Box<UserfaultLog>> {
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
pub struct Ram {
    pub at: *mut u8,
    pub pages: usize,
    /// Bytes before `at` that belong to it.
    pub before: usize,
    pub whole: usize,
    pub file: Option<File>,
}

// SAFETY: an address; it is only written and read by atomic and volatile accesses.
unsafe impl Sync for Ram {}

// SAFETY: as above.
unsafe impl Send for Ram {}

pub fn map(length: usize, flags: libc::c_int, file: Option<&File>) -> Option<*mut u8> {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
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
    pub fn of(pages: usize, flags: libc::c_int, file: Option<File>) -> Ram {
        let at = map(pages * PAGE, flags, file.as_ref()).expect("mmap");
        Ram {
            at,
            pages,
            before: 0,
            whole: pages * PAGE,
            file,
        }
    }

    pub fn anonymous(pages: usize) -> Ram {
        Ram::of(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
    }

    pub fn shared(pages: usize) -> Ram {
        Ram::of(pages, libc::MAP_SHARED, Some(memfd(pages * PAGE)))
    }

    /// A private mapping of a file: pages are copied at their first write.
    pub fn copied(pages: usize) -> Ram {
        Ram::of(pages, libc::MAP_PRIVATE, Some(memfd(pages * PAGE)))
    }

    /// Anonymous memory in transparent huge pages, wherever a whole one fits.
    pub fn huge(pages: usize) -> Ram {
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

    pub fn word(&self, page: usize, at: usize) -> &AtomicU64 {
        assert!(page < self.pages && at < PAGE / 8);
        // SAFETY: inside the mapping, which outlives the reference.
        unsafe { &*self.at.add(page * PAGE + at * 8).cast::<AtomicU64>() }
    }

    pub fn write(&self, page: usize, value: u64) {
        self.word(page, page % 512).store(value, Ordering::Relaxed);
    }

    pub fn copy(&self, page: usize, to: &mut [u64]) {
        for (i, to) in to.iter_mut().enumerate() {
            *to = self.word(page, i).load(Ordering::Relaxed);
        }
    }

    pub fn describe(&self, name: &str) -> BlockDescription {
        BlockDescription {
            name: name.to_owned(),
            // SAFETY: the test's own memory, or an address that is never accessed.
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
        // SAFETY: this test's own mapping, that nobody uses any more.
        unsafe { libc::munmap(self.at.sub(self.before).cast(), self.whole) };
    }
}

pub struct Tracked {
    // Dropped before the memory, so that tracking stops first.
    pub consumer: Consumer,
    pub memory: Arc<Memory>,
    pub blocks: Vec<Ram>,
}

pub fn tracked_with(log: Box<dyn DirtyLog>, blocks: Vec<Ram>) -> Tracked {
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

pub fn tracked(blocks: Vec<Ram>) -> Option<Tracked> {
    Some(tracked_with(log()?, blocks))
}

impl Tracked {
    pub fn start(&self) {
        self.consumer.start(StartWith::Nothing).unwrap();
    }

    /// How many pages a sync finds. It must not warn.
    pub fn sync(&self, when: When) -> u64 {
        let report = self.consumer.sync(when).unwrap();
        assert_eq!(report.warnings, Vec::<String>::new());
        assert!(!report.postponed);
        let of = |kind| report.logs.iter().find(move |l| l.kind == kind);
        let own = of(LogKind::Userfault).unwrap().found.0;
        let marks = of(LogKind::Reported).unwrap().found.0;
        assert_eq!(own + marks, report.found.0);
        report.found.0
    }

    /// All pending pages, as (block, page).
    pub fn take(&self) -> BTreeSet<(usize, usize)> {
        let mut pages = BTreeSet::new();
        let mut cursor = Cursor::default();
        loop {
            let all = Pages(u64::MAX);
            let taken = self.consumer.take(&mut cursor, 64, all).unwrap();
            for run in taken.runs() {
                for page in run.pages.first().0..run.pages.end().0 {
                    let fresh = pages.insert((run.block.id().index(), page as usize));
                    assert!(fresh, "page {page} was handed out twice");
                }
            }
            if taken.is_empty() {
                return pages;
            }
            taken.delivered();
        }
    }

    pub fn found(&self) -> BTreeSet<(usize, usize)> {
        let found = self.sync(When::Running);
        let pages = self.take();
        assert_eq!(found, pages.len() as u64);
        pages
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn new(what: &str) -> Random {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_nanos() as u64
        });
        println!("{what}: SEED={seed}");
        Random(seed)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Ten blocks, of every kind of memory and of sizes that no power of two divides.
pub fn ten_blocks() -> Vec<Ram> {
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

impl Tracked {
    pub fn found_while_written(&self) -> BTreeSet<(usize, usize)> {
        self.sync(When::Running);
        self.take()
    }
}

/// Runs `work` in a child process, and returns its answer.
pub fn asked_of_a_child(work: impl FnOnce() -> bool) -> bool {
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

pub fn in_a_child(work: impl FnOnce() -> bool) {
    assert!(asked_of_a_child(work));
}
