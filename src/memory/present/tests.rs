//! When one question says that pages can be read, the kernel can read them. When pages are simply
//! there, one question is enough. The tests themselves never read the memory.

use super::*;
use crate::error::Kind;
use crate::memory::testing::kinds::{
    poison, Area, HugePool, Key, Made, HUGE, HUGE_KINDS, PAGE, SMALL,
};
use crate::memory::{BackingFile, BlockDescription, BlockFlags, HostMemory, Memory};
use crate::sys::mem::Pipe;
use crate::units::Bytes;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const PAGES: usize = 64;
/// A guard page: an access raises a signal (Linux 6.13).
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// The files that are asked. `None`, with a message on stderr, before Linux 6.11.
struct Asked(Maps, Pagemap);

impl Asked {
    fn new() -> Option<Asked> {
        let (maps, pagemap) = (Maps::open().unwrap(), Pagemap::open().ok()?);
        let here = Asked::new as *const () as u64;
        if maps.bounds(here).is_none() {
            eprintln!("skipped: this kernel has no PROCMAP_QUERY");
            return None;
        }
        Some(Asked(maps, pagemap))
    }

    fn one_look(&self, block: &Block, range: &Range<usize>, entries: Entries) -> bool {
        let range = Pages(range.start as u64)..Pages(range.end as u64);
        Reading::new(Some(&self.0), Some(&self.1), &mut (0..0)).in_one_look(block, &range, entries)
    }

    /// What a scan reports of the entries.
    fn scanned(&self, block: &Block, range: &Range<usize>) -> Entries {
        let host = block.host() as u64;
        let addresses = host + (range.start * PAGE) as u64..host + (range.end * PAGE) as u64;
        match Reading::new(None, Some(&self.1), &mut (0..0)).are_present(&addresses) {
            true => Entries::Present,
            false => Entries::Absent,
        }
    }

    fn check(&self, block: &Block, range: &Range<usize>) -> Result<()> {
        let pages = Pages(range.start as u64)..Pages(range.end as u64);
        let entries = self.scanned(block, range);
        Reading::new(Some(&self.0), Some(&self.1), &mut (0..0)).check(block, pages, entries)
    }
}

/// Memory of a kind, with every page written, and a block over it.
fn written(made: Made, length: usize) -> Option<(Area, Arc<Block>)> {
    let area = Area::new(made, length)?;
    (0..area.pages()).for_each(|page| area.write(page, 1));
    let memory = Memory::new().unwrap();
    let file = area.file.as_ref().filter(|_| made.is_told());
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own mapping, which is there until the end of the test.
            host: unsafe { HostMemory::new(area.at) },
            length: Bytes(length as u64),
            page_size: Bytes(made.page_size() as u64),
            file: file.map(|file| BackingFile {
                fd: file.try_clone().unwrap().into(),
                offset: 0,
            }),
            flags: BlockFlags::default(),
        })
        .unwrap();
    let block = Arc::clone(&memory.map().blocks()[0]);
    Some((area, block))
}

/// The defects of a page, and of the pages after it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrong {
    Forbidden,
    ByKey,
    Poisoned,
    Guarded,
    CutOff,
    Unmapped,
}

const WRONG: [Wrong; 6] = [
    Wrong::Forbidden,
    Wrong::ByKey,
    Wrong::Poisoned,
    Wrong::Guarded,
    Wrong::CutOff,
    Wrong::Unmapped,
];

/// Objects that keep pages in their state.
#[derive(Default)]
struct Kept {
    keys: Vec<Key>,
    poison: Vec<OwnedFd>,
}

/// Gives a page a defect. `false` if this machine or this memory cannot have it.
fn make(area: &Area, wrong: Wrong, page: usize, kept: &mut Kept) -> bool {
    let at = area.page(page);
    // SAFETY: a page of the test's own mapping, which nobody reads.
    unsafe {
        match wrong {
            Wrong::Forbidden => libc::mprotect(at.cast(), PAGE, libc::PROT_NONE) == 0,
            Wrong::ByKey => {
                if kept.keys.is_empty() {
                    kept.keys.extend(Key::new());
                }
                let key = kept.keys.first();
                key.inspect(|key| key.put(at, PAGE, true)).is_some()
            }
            Wrong::Poisoned => {
                let fd = poison(at, PAGE);
                let made = fd.is_some();
                kept.poison.extend(fd);
                made
            }
            Wrong::Guarded => libc::madvise(at.cast(), PAGE, MADV_GUARD_INSTALL) == 0,
            Wrong::CutOff => match &area.file {
                Some(file) => file.set_len((page * PAGE) as u64).is_ok(),
                None => false,
            },
            Wrong::Unmapped => libc::munmap(at.cast(), PAGE) == 0,
        }
    }
}

#[test]
fn pages_that_are_there_are_not_asked_about_one_by_one() {
    let Some(asked) = Asked::new() else {
        return;
    };
    let pool = HugePool::new(2);
    let huge = HUGE_KINDS.iter().filter(|_| pool.is_some());
    for &made in SMALL.iter().chain(huge) {
        let length = PAGES * PAGE;
        let length = if made.is_huge() { HUGE } else { length };
        let Some((area, block)) = written(made, length) else {
            continue;
        };
        let all = 0..area.pages();
        assert_eq!(asked.scanned(&block, &all), Entries::Present, "{made:?}");
        for entries in [Entries::Unknown, Entries::Present] {
            assert!(asked.one_look(&block, &all, entries), "{made:?}");
            assert!(asked.one_look(&block, &(3..20), entries), "{made:?}");
        }
        // Several mappings, all of them readable.
        if !made.is_huge() {
            // SAFETY: a page of the test's own mapping.
            let done = unsafe { libc::mprotect(area.page(9).cast(), PAGE, libc::PROT_READ) };
            assert_eq!(done, 0);
            assert!(asked.one_look(&block, &all, Entries::Unknown), "{made:?}");
        }
    }
}

#[test]
fn one_look_is_not_enough_where_a_page_would_be_a_signal_and_the_page_is_named() {
    const BAD: usize = 40;
    let Some(asked) = Asked::new() else {
        return;
    };
    for made in SMALL {
        for wrong in WRONG {
            let Some((area, block)) = written(made, PAGES * PAGE) else {
                continue;
            };
            let mut kept = Kept::default();
            if !make(&area, wrong, BAD, &mut kept) {
                continue;
            }
            let named = format!("{made:?}, {wrong:?}");
            for range in [0..PAGES, BAD..BAD + 1, 20..BAD + 1, BAD..PAGES] {
                let scanned = asked.scanned(&block, &range);
                for entries in [Entries::Unknown, scanned] {
                    assert!(!asked.one_look(&block, &range, entries), "{named}");
                }
                let error = asked.check(&block, &range).unwrap_err();
                assert_eq!(error.kind(), Kind::Memory, "{named}: {error}");
                let page = format!("page at offset {:#x} ", BAD * PAGE);
                assert!(error.message().contains(&page), "{named}: {error}");
            }
            let before = 0..BAD;
            assert!(asked.one_look(&block, &before, Entries::Unknown), "{named}");
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// The kernel is asked to read each page (through a pipe). Whatever was done to the memory, in any
/// order: one question never says yes where that read fails.
#[test]
fn one_look_never_says_more_than_the_kernel_can_read() {
    let Some(asked) = Asked::new() else {
        return;
    };
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = seed.unwrap_or_else(|| now.unwrap().as_nanos() as u64);
    println!("one look: SEED={seed}");
    let mut random = Random(seed);
    let pipe = Pipe::new().unwrap();
    let (mut yes, mut no) = (0, 0);
    for _ in 0..60 {
        let made = SMALL[random.below(SMALL.len())];
        let Some((area, block)) = written(made, PAGES * PAGE) else {
            continue;
        };
        let mut kept = Kept::default();
        for _ in 0..random.below(6) {
            let page = random.below(PAGES);
            let (at, length) = (area.page(page), (1 + random.below(PAGES - page)) * PAGE);
            let again = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the test's own mapping, which nobody reads but the kernel; what was unmapped
            // of it stays so, or the call fails.
            unsafe {
                match random.below(4) {
                    0 => drop(libc::mprotect(at.cast(), length, again)),
                    1 => drop(libc::madvise(at.cast(), length, libc::MADV_DONTNEED)),
                    _ => drop(make(&area, WRONG[random.below(5)], page, &mut kept)),
                }
            }
        }
        for _ in 0..20 {
            let first = random.below(PAGES);
            let range = first..first + 1 + random.below(PAGES - first);
            let scanned = asked.scanned(&block, &range);
            for entries in [scanned, Entries::Unknown] {
                if !asked.one_look(&block, &range, entries) {
                    no += 1;
                    continue;
                }
                yes += 1;
                for page in range.clone() {
                    let read = pipe.reads(area.page(page), 1);
                    assert!(read.is_ok(), "{made:?}: page {page} of {range:?}");
                }
            }
        }
    }
    assert!(yes > 100 && no > 100, "{yes} and {no}");
}
