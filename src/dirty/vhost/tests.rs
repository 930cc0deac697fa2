//! The vhost log under a real tracker: threads and another process write and mark by atomics, the
//! log grows meanwhile, and a model says page by page what must be found.

mod shared;
mod staying;

use super::*;
use crate::dirty::consumer::Consumer;
use crate::dirty::testing::{sync_all, take_all, Guest};
use crate::dirty::tracker::StartWith;
use crate::dirty::Origin;
use crate::sys::shm::Shm;
use crate::units::Pages;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use vm_memory::GuestAddress;

/// Back ends that keep what they were given, and that refuse when told to.
#[derive(Default)]
struct Ends {
    /// The log in use, as `log_on` passed it, mapped a second time by a duplicate of its
    /// descriptor.
    log: RwLock<Option<Mapped>>,
    said: Mutex<Vec<String>>,
    /// Where the kernel's vhost would write: the last mapping that `log_on` named.
    address: AtomicUsize,
    refuse_on: AtomicBool,
    refuse_off: AtomicBool,
    /// Moves to a log that it refuses.
    moves_anyway: AtomicBool,
}

/// A log as a back end in another process has it: by the descriptor alone.
struct Mapped {
    _fd: OwnedFd,
    words: &'static [AtomicU64],
}

impl Mapped {
    fn of(memory: &LogMemory) -> Mapped {
        let fd = memory.fd().try_clone_to_owned().unwrap();
        let len = memory.length() as usize;
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped {
            _fd: fd,
            // SAFETY: mapped just now, and unmapped when this is dropped.
            words: unsafe { std::slice::from_raw_parts(at.cast(), len / 8) },
        }
    }

    /// Sets a bit. Returns whether it was clear before.
    fn set(&self, page: u64) -> bool {
        let (word, bit) = (&self.words[page as usize / 64], 1 << (page % 64));
        word.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`.
        unsafe { libc::munmap(self.words.as_ptr().cast_mut().cast(), self.words.len() * 8) };
    }
}

impl Ends {
    fn set(&self, page: u64) -> bool {
        self.log.read().unwrap().as_ref().unwrap().set(page)
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.said.lock().unwrap())
    }
}

impl VhostBackEnds for Ends {
    fn log_on(&self, memory: &LogMemory) -> Result<()> {
        self.said
            .lock()
            .unwrap()
            .push(format!("on {}", memory.length()));
        self.address
            .store(memory.address() as usize, Ordering::Relaxed);
        let refuses = self.refuse_on.load(Ordering::Relaxed);
        if !refuses || self.moves_anyway.load(Ordering::Relaxed) {
            // The lock waits for marks in progress, so every back end has moved when this returns.
            *self.log.write().unwrap() = Some(Mapped::of(memory));
        }
        match refuses {
            true => Err(Error::new(Kind::Vmm, "the back end of disk 2 hung up")),
            false => Ok(()),
        }
    }

    fn log_off(&self) -> Result<()> {
        self.said.lock().unwrap().push("off".to_owned());
        match self.refuse_off.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Vmm, "the back end of disk 3 hung up")),
            false => Ok(()),
        }
    }
}

fn tracker(guest: &Guest, ends: &Arc<Ends>, reach: u64) -> Consumer {
    let back_ends = Arc::clone(ends) as Arc<dyn VhostBackEnds>;
    guest.tracker(Box::new(VhostLog::new(back_ends, reach).unwrap()))
}

/// A guest of one block at guest page 0.
fn simple(pages: u64) -> (Guest, Arc<Ends>, Consumer) {
    let guest = Guest::new(pages as usize + 4);
    guest.block("ram", pages);
    guest.slot("ram", 0, pages, 0).unwrap();
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 0);
    (guest, ends, consumer)
}

#[test]
fn a_bit_is_found_once_in_the_page_it_stands_for() {
    let (_guest, ends, consumer) = simple(1000);
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(ends.said(), ["on 4096"]);
    for page in [0, 63, 64, 511, 512, 999] {
        ends.set(page);
    }
    let report = consumer.sync(When::Running).unwrap();
    assert_eq!(report.found.0, 6);
    let vhost = report.logs.iter().find(|l| l.kind == LogKind::Vhost);
    assert_eq!(vhost.unwrap().found.0, 6);
    let expected: BTreeSet<_> = [0, 63, 64, 511, 512, 999].map(|p| (0, p)).into();
    assert_eq!(take_all(&consumer), expected);
    assert!(sync_all(&consumer).is_empty());
    consumer.stop().unwrap();
    assert_eq!(ends.said(), ["off"]);
}

#[test]
fn a_log_reaches_to_the_end_of_ram_or_as_far_as_asked() {
    for (ram_end, reach, expected) in [
        (1u64, 0u64, 4096u64),
        (32768, 0, 4096),
        (32769, 0, 8192),
        (1, 1 << 40, 32 << 20),
        (1, (1 << 27) + 1, 8192),
        // Sparse: of the log's 8 GiB one page is backed.
        (REACH_MAX / PAGE_SIZE, 0, REACH_MAX >> 15),
    ] {
        let guest = Guest::new(1);
        guest.block("ram", 1);
        guest.slot("ram", 0, 1, ram_end - 1).unwrap();
        let ends = Arc::new(Ends::default());
        let consumer = tracker(&guest, &ends, reach);
        consumer.start(StartWith::Nothing).unwrap();
        assert_eq!(ends.said(), [format!("on {expected}")]);
        ends.set(ram_end - 1);
        assert_eq!(sync_all(&consumer), [(0, 0)].into());
    }
}

#[test]
fn memory_beyond_what_a_log_can_reach_is_an_error() {
    let guest = Guest::new(1);
    guest.block("ram", 1);
    guest.slot("ram", 0, 1, REACH_MAX / PAGE_SIZE).unwrap();
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 0);
    let error = consumer.start(StartWith::Nothing).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(VhostLog::new(ends, u64::MAX).is_err());
}

#[test]
fn bits_outside_of_ram_are_counted_and_harm_nothing() {
    let guest = Guest::new(100);
    guest.block("ram", 100);
    guest.slot("ram", 0, 50, 10).unwrap();
    guest.slot("ram", 50, 50, 100).unwrap();
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 1 << 30);
    consumer.start(StartWith::Nothing).unwrap();
    for page in [9, 10, 59, 60, 99, 100, 149, 150, (1 << 18) - 1] {
        ends.set(page);
    }
    assert_eq!(sync_all(&consumer), [0, 49, 50, 99].map(|p| (0, p)).into());
    assert_eq!(consumer.stray_marks(), 5);
}

/// The versions of pages. A mark says that a version has changed.
struct Versions(Shm);

impl Versions {
    fn at(&self, page: u64) -> &AtomicU64 {
        &self.0.words()[page as usize]
    }
}

const THREADS: u64 = 2;
const HAMMERED: u64 = 5000;

/// Writes and marks as a back end does, again and again. Returns how many bits were clear before.
fn hammer(
    versions: &Versions,
    set: impl Fn(u64) -> bool,
    mut seed: u64,
    stop: impl Fn(u64) -> bool,
) -> u64 {
    let (mut n, mut new) = (0, 0);
    while !stop(n) {
        // A plain generator, because another process uses it after a fork.
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let among = if seed >> 63 == 0 { 256 } else { HAMMERED };
        let page = (seed >> 33) % among;
        versions.at(page).fetch_add(1, Ordering::Relaxed);
        new += u64::from(set(page));
        n += 1;
    }
    new
}

/// Copies the versions of found pages. At the end no version may be missing.
struct Follower<'a> {
    versions: &'a Versions,
    copy: Vec<u64>,
}

impl Follower<'_> {
    /// Syncs, and copies the found pages of the first block. Returns how many there were.
    fn follow(&mut self, consumer: &Consumer) -> u64 {
        let found = sync_all(consumer);
        for &(_, page) in found.iter().filter(|(block, _)| *block == 0) {
            self.copy[page as usize] = self.versions.at(page).load(Ordering::Relaxed);
        }
        found.len() as u64
    }

    fn missed(&self) -> Vec<u64> {
        let all = 0..HAMMERED;
        all.filter(|&p| self.copy[p as usize] != self.versions.at(p).load(Ordering::Relaxed))
            .collect()
    }
}

#[test]
fn no_write_of_threads_or_of_another_process_is_missed() {
    let (_guest, ends, consumer) = simple(HAMMERED);
    consumer.start(StartWith::Nothing).unwrap();
    let versions = Versions(Shm::new(c"versions", HAMMERED.next_multiple_of(512) * 8).unwrap());
    let stop = AtomicBool::new(false);
    let log_fd = {
        let log = ends.log.read().unwrap();
        log.as_ref().unwrap()._fd.as_raw_fd()
    };
    // SAFETY: the child makes system calls and uses atomics, nothing else; it never returns.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // By the descriptor, as in a process to which it was sent.
        // SAFETY: a new mapping of this process.
        let log = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                log_fd,
                0,
            )
        };
        if log == libc::MAP_FAILED {
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) };
        }
        // SAFETY: the mapping, of 512 words.
        let words = unsafe { std::slice::from_raw_parts(log.cast::<AtomicU64>(), 512) };
        let set = |page: u64| {
            let bit = 1 << (page % 64);
            words[page as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
        };
        let new = hammer(&versions, set, 99, |n| n == 2_000_000);
        versions.at(HAMMERED).store(new, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    let mut follower = Follower {
        versions: &versions,
        copy: vec![0; HAMMERED as usize],
    };
    let (mut status, mut found) = (0, 0);
    let set: u64 = std::thread::scope(|scope| {
        let hammers: Vec<_> = (0..THREADS)
            .map(|i| {
                let (ends, versions, stop) = (&ends, &versions, &stop);
                scope.spawn(move || {
                    hammer(
                        versions,
                        |p| ends.set(p),
                        i,
                        |_| stop.load(Ordering::Relaxed),
                    )
                })
            })
            .collect();
        // As long as the other process writes.
        // SAFETY: this test's child; `status` outlives the call.
        while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
            found += follower.follow(&consumer);
        }
        stop.store(true, Ordering::Relaxed);
        hammers.into_iter().map(|h| h.join().unwrap()).sum()
    });
    assert_eq!(status, 0);
    found += follower.follow(&consumer);
    // Each bit that was set was found once, neither less nor more.
    assert_eq!(found, set + versions.at(HAMMERED).load(Ordering::Relaxed));
    assert_eq!(follower.missed(), Vec::<u64>::new());
    assert_eq!(consumer.stray_marks(), 0);
}

#[test]
fn each_bit_that_is_set_is_taken_exactly_once() {
    let mut log = LogBits::new(LogMemory::new(1).unwrap(), false);
    let mapped = Mapped::of(log.memory());
    let running = AtomicUsize::new(THREADS as usize);
    // Without a map every bit is a stray, and strays are counted.
    let mut taken = 0;
    let set: u64 = std::thread::scope(|scope| {
        let hammers: Vec<_> = (0..THREADS)
            .map(|i| {
                let (mapped, running) = (&mapped, &running);
                scope.spawn(move || {
                    // So few pages that a word is filled again while it is taken.
                    let pages = (0..3_000_000u64).map(|n| (n * 7 + i * 31) % 256);
                    let new = pages.filter(|&page| mapped.set(page)).count() as u64;
                    running.fetch_sub(1, Ordering::Relaxed);
                    new
                })
            })
            .collect();
        while running.load(Ordering::Relaxed) > 0 {
            taken += log.take_pages(0..512, &[], &mut Nothing).unwrap();
        }
        hammers.into_iter().map(|h| h.join().unwrap()).sum()
    });
    taken += log.take_all(&[], &mut Nothing).unwrap();
    assert_eq!(taken, set);
}

#[test]
fn growing_under_the_hands_of_writers_loses_nothing() {
    let guest = Guest::new(HAMMERED as usize + 64);
    guest.block("ram", HAMMERED);
    guest.slot("ram", 0, HAMMERED, 3).unwrap();
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 0);
    consumer.start(StartWith::Nothing).unwrap();
    let versions = Versions(Shm::new(c"versions", HAMMERED.next_multiple_of(512) * 8).unwrap());
    let stop = AtomicBool::new(false);
    let marks = AtomicU64::new(0);
    let mut follower = Follower {
        versions: &versions,
        copy: vec![0; HAMMERED as usize],
    };
    guest.block("more", 64);
    std::thread::scope(|scope| {
        for i in 0..THREADS {
            let (ends, versions, stop, marks) = (&ends, &versions, &stop, &marks);
            scope.spawn(move || {
                let set = |page: u64| {
                    marks.fetch_add(1, Ordering::Relaxed);
                    ends.set(page + 3)
                };
                hammer(versions, set, i, |_| stop.load(Ordering::Relaxed));
            });
        }
        for step in 0..64u64 {
            let before = marks.load(Ordering::Relaxed);
            while marks.load(Ordering::Relaxed) < before + 2000 {
                std::thread::yield_now();
            }
            // Each slot is one page of the log further up: 128 MiB.
            guest.slot("more", step, 1, (step + 1) * 32768).unwrap();
            if step % 3 == 0 {
                follower.follow(&consumer);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    follower.follow(&consumer);
    assert_eq!(follower.missed(), Vec::<u64>::new());
    let moves = ends.said().len() - 1;
    assert!((20..50).contains(&moves), "{moves} moves to a longer log");
}

/// If a call of `fallocate`, a `SEEK` in the log or a move depended on the guest's size, this would
/// take minutes.
#[test]
fn memory_in_thousands_of_slots_costs_what_comes_or_goes() {
    const SLOTS: u64 = 4000;
    // One page of the log apart: 128 MiB.
    const APART: u64 = 32768;
    let guest = Guest::new(SLOTS as usize + 1);
    guest.block("first", 1);
    guest.slot("first", 0, 1, 0).unwrap();
    guest.block("ram", SLOTS);
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 0);
    consumer.start(StartWith::Nothing).unwrap();
    for i in 0..SLOTS {
        guest.slot("ram", i, 1, (i + 1) * APART).unwrap();
    }
    take_all(&consumer);
    // 8 ln(4000 / 8), and the first 8.
    let moves = ends.said().len() - 1;
    assert!(moves < 100, "{moves} moves to a longer log");
    for i in 0..SLOTS {
        ends.set((i + 1) * APART);
    }
    let gone = |i: u64| {
        let at = GuestAddress((i + 1) * APART * PAGE_SIZE);
        guest
            .memory
            .remove_slot(crate::memory::NO_SLOT, at)
            .unwrap();
    };
    // Of the log only the bit of the slot that goes is read.
    gone(SLOTS / 2);
    assert_eq!(consumer.pending().0, 1);
    assert_eq!(take_all(&consumer), [(1, SLOTS / 2)].into());
    (0..SLOTS).filter(|i| *i != SLOTS / 2).for_each(gone);
    let found = take_all(&consumer);
    assert_eq!(found.len() as u64, SLOTS - 1);
    assert_eq!(consumer.stray_marks(), 0);
}

#[test]
fn a_log_that_grows_grows_by_an_eighth_or_to_the_furthest_there_is() {
    let before = LogMemory::new(REACH_MAX).unwrap();
    assert_eq!(roomy(&before, 1), REACH_MAX);
    let before = LogMemory::new(64 << 27).unwrap();
    assert_eq!(roomy(&before, 1), 72 << 27);
    assert_eq!(roomy(&before, 100 << 27), 100 << 27);
}

#[test]
fn a_bit_set_in_the_old_log_while_back_ends_move_is_found() {
    /// A write at the last moment at which the old log may be used: just before the move returns.
    struct Late {
        ends: Ends,
        first: AtomicBool,
    }
    impl VhostBackEnds for Late {
        fn log_on(&self, memory: &LogMemory) -> Result<()> {
            if !self.first.swap(false, Ordering::Relaxed) {
                self.ends.set(7);
            }
            self.ends.log_on(memory)
        }
        fn log_off(&self) -> Result<()> {
            self.ends.log_off()
        }
    }
    let guest = Guest::new(20);
    guest.block("ram", 20);
    guest.slot("ram", 0, 10, 0).unwrap();
    let late = Arc::new(Late {
        ends: Ends::default(),
        first: AtomicBool::new(true),
    });
    let log = VhostLog::new(Arc::clone(&late) as Arc<dyn VhostBackEnds>, 0).unwrap();
    let consumer = guest.tracker(Box::new(log));
    consumer.start(StartWith::Nothing).unwrap();
    guest.slot("ram", 10, 10, 1 << 20).unwrap();
    // The new slot's pages count as dirty anyhow.
    let expected: BTreeSet<_> = (10..20).chain([7]).map(|p| (0, p)).collect();
    assert_eq!(sync_all(&consumer), expected);
}

#[test]
fn what_was_logged_of_a_slot_is_found_after_it_is_gone() {
    let (guest, ends, consumer) = simple(10);
    guest.slot("ram", 0, 10, 100).unwrap();
    consumer.start(StartWith::Nothing).unwrap();
    ends.set(103);
    guest
        .memory
        .remove_slot(crate::memory::NO_SLOT, GuestAddress(100 * PAGE_SIZE))
        .unwrap();
    assert_eq!(sync_all(&consumer), [(0, 3)].into());
    // The page is nowhere from now on.
    ends.set(104);
    assert!(sync_all(&consumer).is_empty());
    assert_eq!(consumer.stray_marks(), 1);
    assert_eq!(ends.said(), ["on 4096"]);
}

#[test]
fn a_refused_log_refuses_the_change_with_the_reason_and_loses_nothing() {
    let (guest, ends, consumer) = simple(100);
    consumer.start(StartWith::Nothing).unwrap();
    guest.block("more", 4);
    ends.set(1);
    ends.refuse_on.store(true, Ordering::Relaxed);
    let error = guest.slot("more", 0, 4, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Kind::Vmm);
    assert!(error.message().contains("disk 2 hung up"), "{error}");
    assert_eq!(guest.memory.map().slots().len(), 1);
    // The log before is still in use.
    ends.set(2);
    let new_block = (0..4).map(|p| (1, p));
    let expected: BTreeSet<_> = [(0, 1), (0, 2)].into_iter().chain(new_block).collect();
    assert_eq!(sync_all(&consumer), expected);
    // A back end that moved in spite of the refusal is read too.
    ends.moves_anyway.store(true, Ordering::Relaxed);
    assert!(guest.slot("more", 0, 4, 1 << 20).is_err());
    ends.set(3);
    ends.moves_anyway.store(false, Ordering::Relaxed);
    assert!(sync_all(&consumer).contains(&(0, 3)));
    // However often this happens, the number of kept logs is bounded.
    for step in 1..10 {
        assert!(guest.slot("more", 0, 4, (1 << 20) + (step << 16)).is_err());
    }
    // In the end the VMM agrees, and a log that was refused before is used.
    ends.refuse_on.store(false, Ordering::Relaxed);
    guest.slot("more", 0, 4, 1 << 20).unwrap();
    ends.set((1 << 20) + 1);
    ends.set(99);
    let found = sync_all(&consumer);
    assert!(
        found.contains(&(1, 1)) && found.contains(&(0, 99)),
        "{found:?}"
    );
    consumer.stop().unwrap();
}

#[test]
fn back_ends_that_refuse_at_the_start_are_switched_off_again() {
    let (_guest, ends, consumer) = simple(10);
    ends.refuse_on.store(true, Ordering::Relaxed);
    let error = consumer.start(StartWith::Nothing).unwrap_err();
    assert!(error.message().contains("disk 2 hung up"), "{error}");
    assert_eq!(ends.said(), ["on 4096", "off"]);
    assert!(!consumer.is_started());
    ends.refuse_on.store(false, Ordering::Relaxed);
    consumer.start(StartWith::Nothing).unwrap();
    ends.set(3);
    assert_eq!(sync_all(&consumer), [(0, 3)].into());
}

#[test]
fn a_log_that_could_not_be_switched_off_stays_where_it_may_be_written_to() {
    let (_guest, ends, consumer) = simple(10);
    consumer.start(StartWith::Nothing).unwrap();
    ends.refuse_off.store(true, Ordering::Relaxed);
    // Tracking is off, whether this fails or not.
    let _ = consumer.stop();
    assert!(!consumer.is_started());
    let address = ends.address.load(Ordering::Relaxed);
    // SAFETY: the promise under test: the log is still mapped.
    let word = unsafe { AtomicU64::from_ptr(address as *mut u64) };
    word.fetch_or(1 << 4, Ordering::AcqRel);
    // The same memory is used again.
    ends.refuse_off.store(false, Ordering::Relaxed);
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(ends.address.load(Ordering::Relaxed), address);
    ends.set(5);
    let found = sync_all(&consumer);
    assert!(found.contains(&(0, 5)), "{found:?}");
}

#[test]
fn a_log_that_could_not_be_switched_off_outlives_the_tracker() {
    for start in [true, false] {
        let (guest, ends, consumer) = simple(10);
        ends.refuse_off.store(true, Ordering::Relaxed);
        ends.refuse_on.store(!start, Ordering::Relaxed);
        assert_eq!(consumer.start(StartWith::Nothing).is_ok(), start);
        let address = ends.address.load(Ordering::Relaxed);
        drop((consumer, guest));
        // The kernel's vhost would write to that address. It must not be another object's memory by
        // now.
        let next = Shm::new(c"brant-test", 4096).unwrap();
        assert_ne!(
            next.address() as usize,
            address,
            "the memory was given away"
        );
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps
            .lines()
            .find(|l| l.starts_with(&format!("{address:x}-")));
        assert!(
            line.is_some_and(|l| l.contains("brant-vhost-log")),
            "{line:?}"
        );
    }
}

#[test]
fn memory_that_was_never_written_to_is_not_read_and_takes_no_memory() {
    // Two pages of RAM, 64 TiB apart: 2 GiB of log.
    let guest = Guest::new(2);
    guest.block("ram", 2);
    guest.slot("ram", 0, 1, 0).unwrap();
    guest.slot("ram", 1, 1, (1 << 34) - 1).unwrap();
    let ends = Arc::new(Ends::default());
    let consumer = tracker(&guest, &ends, 0);
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(ends.said(), [format!("on {}", 2u64 << 30)]);
    for _ in 0..100 {
        assert!(sync_all(&consumer).is_empty());
    }
    ends.set((1 << 34) - 1);
    assert_eq!(sync_all(&consumer), [(0, 1)].into());
    let log = ends.log.read().unwrap();
    let fd = log.as_ref().unwrap()._fd.as_raw_fd();
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure.
    assert_eq!(unsafe { libc::fstat(fd, &mut stat) }, 0);
    assert!(
        stat.st_blocks * 512 <= 16 << 10,
        "{} blocks",
        stat.st_blocks
    );
}

/// First page of the block, number of pages, and the hole before it.
type SlotOf = (u64, u64, u64);

#[derive(Debug, Clone)]
struct Layout {
    /// Pages of each block, and its slots.
    blocks: Vec<(u64, Vec<SlotOf>)>,
    /// The guest pages that are marked before each sync.
    marks: Vec<Vec<u64>>,
}

fn layouts() -> impl Strategy<Value = Layout> {
    let slots = |pages: u64| {
        prop::collection::vec((0..pages, 1..=pages, 0u64..300), 1..4).prop_map(move |slots| {
            let cut = |(first, n, gap): (u64, u64, u64)| (first, n.min(pages - first), gap);
            slots.into_iter().map(cut).collect::<Vec<_>>()
        })
    };
    let block = (1u64..400).prop_flat_map(move |pages| (Just(pages), slots(pages)));
    (
        prop::collection::vec(block, 1..4),
        prop::collection::vec(prop::collection::vec(0u64..3000, 0..60), 1..4),
    )
        .prop_map(|(blocks, marks)| Layout { blocks, marks })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_page_is_found_that_a_model_page_by_page_says(layout in layouts()) {
        let guest = Guest::new(1600);
        let mut slots = Vec::new();
        let mut at = 0;
        for (i, (pages, of)) in layout.blocks.iter().enumerate() {
            let id = guest.block(&format!("b{i}"), *pages);
            for &(first, n, gap) in of {
                at += gap;
                guest.slot(&format!("b{i}"), first, n, at).unwrap();
                slots.push((at, n, id.0, first));
                at += n;
            }
        }
        let ends = Arc::new(Ends::default());
        // The log reaches far enough for all marks.
        let consumer = tracker(&guest, &ends, 8192 * PAGE_SIZE);
        consumer.start(StartWith::Nothing).unwrap();
        let mut strays = 0;
        for marks in &layout.marks {
            let mut expected = BTreeSet::new();
            for &page in marks.iter().collect::<BTreeSet<_>>() {
                ends.set(page);
                let shown = slots.iter().filter(|s| (s.0..s.0 + s.1).contains(&page));
                let before = expected.len();
                let mut any = false;
                for &(start, _, block, first) in shown {
                    expected.insert((block, first + page - start));
                    any = true;
                }
                strays += u64::from(!any);
                prop_assert!(any || expected.len() == before);
            }
            prop_assert_eq!(sync_all(&consumer), expected);
        }
        prop_assert_eq!(consumer.stray_marks(), strays);
    }
}

/// A sink that drops everything.
struct Nothing;

impl Sink for Nothing {
    fn bitmap(&mut self, _: Origin, _: &[u64], _: Pages) {}
    fn lasting_bitmap(&mut self, _: Origin, _: &[u64], _: Pages, _: Pages) -> u64 {
        0
    }
    fn list(&mut self, _: Origin, _: &[u64]) {}
    fn block(
        &mut self,
        _: BlockId,
        _: &mut dyn FnMut(&mut crate::bits::Bitmap) -> Result<u64>,
    ) -> Result<()> {
        Ok(())
    }
    fn everything(&mut self, _: Origin, _: Pages) {}
}
