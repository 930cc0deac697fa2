//! The probe on memory of this process, with marks for the logs and writes for the sampling.
//! `c-tests/rate.c` has a real guest.

use super::*;
use crate::dirty::tracker::Clearing;
use crate::memory::contents::Contents;
use crate::memory::{BackingFile, BlockDescription, BlockFlags, BlockId, Memory};
use crate::units::{Bytes, PAGE_SIZE};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Memory in blocks of the given numbers of pages.
struct Guest {
    memory: Arc<Memory>,
    tracker: Arc<Tracker>,
    ram: *mut u8,
    pages: u64,
}

// SAFETY: the memory is only accessed by volatile loads and stores.
unsafe impl Sync for Guest {}

impl Guest {
    /// In private anonymous memory.
    fn new(blocks: &[u64]) -> Guest {
        Guest::of(blocks, None)
    }

    /// All blocks in one memfd, mapped shared.
    fn shared(blocks: &[u64]) -> Guest {
        // SAFETY: a new descriptor, and a string that ends with NUL.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor was just made, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let file = std::fs::File::from(fd);
        file.set_len(blocks.iter().sum::<u64>() * PAGE_SIZE)
            .unwrap();
        Guest::of(blocks, Some(file.into()))
    }

    fn of(blocks: &[u64], file: Option<OwnedFd>) -> Guest {
        let pages: u64 = blocks.iter().sum();
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let ram = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (pages * PAGE_SIZE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_NORESERVE,
                fd,
                0,
            )
        };
        assert_ne!(ram, libc::MAP_FAILED);
        let memory = Arc::new(Memory::new().unwrap());
        let mut before = 0;
        for (i, pages) in blocks.iter().enumerate() {
            memory
                .add_block(BlockDescription {
                    name: format!("b{i}"),
                    // SAFETY: the test's own memory, or an address that is never accessed.
                    host: unsafe {
                        crate::memory::HostMemory::new(
                            ram.cast::<u8>().wrapping_add((before * PAGE_SIZE) as usize),
                        )
                    },
                    length: Bytes(pages * PAGE_SIZE),
                    page_size: Bytes(PAGE_SIZE),
                    file: file.as_ref().map(|file| BackingFile {
                        fd: file.try_clone().unwrap(),
                        offset: before * PAGE_SIZE,
                    }),
                    flags: BlockFlags::default(),
                })
                .unwrap();
            before += pages;
        }
        let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
        Guest {
            memory,
            tracker,
            ram: ram.cast(),
            pages,
        }
    }

    /// A tracker of a guest that has no memory yet.
    fn without_memory() -> Guest {
        let guest = Guest::new(&[1]);
        guest
            .memory
            .remove_block(guest.memory.find_block("b0").unwrap())
            .unwrap();
        guest
    }

    fn probe(&self, way: Way, period: Duration) -> Probe {
        Probe::new(Arc::clone(&self.tracker), Params { way, period }).unwrap()
    }

    fn write(&self, page: u64) {
        assert!(page < self.pages);
        let at = self.ram.wrapping_add((page * PAGE_SIZE) as usize);
        // SAFETY: inside the mapping, as just checked.
        unsafe { at.write_volatile(at.read_volatile().wrapping_add(1)) };
    }

    fn touched(&self) -> u64 {
        let mut touched = 0;
        for block in self.memory.map().blocks() {
            let all = Pages(0)..block.pages();
            Contents::new()
                .touched(block, all, |run| touched += run.end.0 - run.start.0)
                .unwrap();
        }
        touched
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping, which no thread reads any more.
        unsafe { libc::munmap(self.ram.cast(), (self.pages * PAGE_SIZE) as usize) };
    }
}

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
const EVERY: Way = Way::Sample {
    per_gib: SAMPLES_MAX,
};

/// Measures on another thread. `during` runs again and again from the beginning of the period to
/// its end.
fn during(probe: &Probe, mut during: impl FnMut()) -> Result<Rate> {
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| probe.measure());
        while !(1..ENDING).contains(&probe.progress()) && !measuring.is_finished() {
            std::thread::yield_now();
        }
        while !measuring.is_finished() && probe.progress() < ENDING {
            during();
            std::thread::yield_now();
        }
        measuring.join().unwrap()
    })
}

#[test]
fn by_log_every_page_written_in_the_period_counts_once() {
    let guest = Guest::new(&[1000, 70]);
    let pages: BTreeSet<(u32, u64)> = (0..97)
        .map(|i| (0, i * i % 1000))
        .chain((3..40).map(|page| (1, page)))
        .collect();
    let probe = guest.probe(Way::Log, LONG);
    for _ in 0..2 {
        let rate = during(&probe, || {
            for (block, page) in &pages {
                let offset = Bytes(page * PAGE_SIZE);
                guest.tracker.mark_block(BlockId(*block), offset, 8);
            }
            probe.finish();
        })
        .unwrap();
        assert_eq!(rate.written, Pages(pages.len() as u64));
        assert!(rate.rewritten.unwrap() <= rate.written);
        let written = rate.pages_per_second * rate.period.as_secs_f64();
        assert!((written - pages.len() as f64).abs() < 1e-6);
        assert!(rate.error > 0.0 && !rate.warned && rate.per_vcpu.is_none());
        assert_eq!(probe.progress(), DONE);
        assert!(!guest.tracker.is_started());
    }
}

#[test]
fn by_log_pages_written_in_both_halves_are_told() {
    let guest = Guest::new(&[500]);
    let probe = guest.probe(Way::Log, SHORT * 2);
    let mut rounds = 0;
    let rate = during(&probe, || {
        // 50 pages all the time, and one more page in each half.
        let second = probe.progress() > DONE / 2;
        guest
            .tracker
            .mark_block(BlockId(0), Bytes(0), 50 * PAGE_SIZE);
        let other = 100 + u64::from(second);
        guest
            .tracker
            .mark_block(BlockId(0), Bytes(other * PAGE_SIZE), 1);
        rounds += 1;
    })
    .unwrap();
    assert!(rounds > 1);
    // The progress and the halves have slightly different clocks, and the writing thread can have
    // slept through a half.
    assert!(
        rate.written >= Pages(51) && rate.written <= Pages(52),
        "{rate:?}"
    );
    assert!(rate.rewritten.unwrap() <= Pages(52), "{rate:?}");
}

#[test]
fn by_log_an_idle_guest_dirties_nothing() {
    let guest = Guest::new(&[5000]);
    let rate = guest.probe(Way::Log, PERIOD_MIN).measure().unwrap();
    assert_eq!((rate.written, rate.rewritten), (Pages(0), Some(Pages(0))));
    assert_eq!((rate.pages_per_second, rate.error), (0.0, 0.0));
}

#[test]
fn by_sample_of_every_page_what_changed_is_counted_and_holes_stay_holes() {
    for make in [Guest::new, Guest::shared] {
        let guest = make(&[300, 211]);
        // Every second page was never touched.
        for page in (0..511).step_by(2) {
            guest.write(page);
        }
        let touched = guest.touched();
        let probe = guest.probe(EVERY, LONG);
        let mut once = false;
        let rate = during(&probe, || {
            if !std::mem::replace(&mut once, true) {
                // Pages of both kinds.
                (0..511).step_by(5).for_each(|page| guest.write(page));
                probe.finish();
            }
        })
        .unwrap();
        let all = Pages(511);
        assert_eq!(rate.sampled, Some((all, Pages(103))));
        assert_eq!((rate.written, rate.error), (Pages(103), 0.0));
        let more = (0..511).step_by(5).filter(|page| page % 2 == 1).count();
        assert_eq!(guest.touched(), touched + more as u64);
    }
}

#[test]
fn by_sample_it_works_while_the_tracker_is_in_use_and_started() {
    let guest = Guest::new(&[2000]);
    let consumer = guest.tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    let rate = guest.probe(Way::Sample { per_gib: 1 }, PERIOD_MIN);
    let rate = rate.measure().unwrap();
    assert_eq!(rate.sampled, Some((Pages(1), Pages(0))));
    assert!(rate.error > 0.0);
    assert_eq!(consumer.pending(), Pages(2000));
    assert!(consumer.is_started());
}

#[test]
fn by_sample_a_block_that_goes_meanwhile_is_left_out() {
    let guest = Guest::new(&[300, 200]);
    let probe = guest.probe(EVERY, LONG);
    let mut gone = false;
    let rate = during(&probe, || {
        if !std::mem::replace(&mut gone, true) {
            guest
                .memory
                .remove_block(guest.memory.find_block("b0").unwrap())
                .unwrap();
            probe.finish();
        }
    })
    .unwrap();
    assert_eq!(rate.sampled, Some((Pages(200), Pages(0))));
}

#[test]
fn by_log_blocks_that_come_and_go_meanwhile_are_counted_and_fail_nothing() {
    let guest = Guest::new(&[100, 30]);
    let (b1, length) = (
        guest.ram.wrapping_add(100 * PAGE_SIZE as usize),
        Bytes(30 * PAGE_SIZE),
    );
    let probe = guest.probe(Way::Log, SHORT * 2);
    let mut rounds = 0u64;
    let rate = during(&probe, || {
        // In either half, and mostly a block that goes before any sync of the probe's.
        guest
            .memory
            .remove_block(
                guest
                    .memory
                    .find_block(if rounds == 0 { "b1" } else { "again" })
                    .unwrap(),
            )
            .unwrap();
        guest
            .memory
            .add_block(BlockDescription {
                name: "again".to_owned(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { crate::memory::HostMemory::new(b1) },
                length,
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        rounds += 1;
    })
    .unwrap();
    // Every page of a new block counts as written, and each time it is another block. Pages of a
    // block that went before they were taken do not count.
    assert!(rate.written >= Pages(30), "{rate:?}");
    assert_eq!(rate.written.0 % 30, 0, "{rate:?}");
    assert_eq!(rate.rewritten, Some(Pages(0)), "{rate:?}");
}

#[test]
fn by_log_others_who_use_the_tracker_lose_nothing() {
    let guest = Guest::new(&[100]);
    let mark = |page: u64| {
        let offset = Bytes(page * PAGE_SIZE);
        guest.tracker.mark_block(BlockId(0), offset, 1);
    };
    let other = guest.tracker.consumer();
    other.start(StartWith::Nothing).unwrap();
    mark(3);
    other.sync(When::Running).unwrap();
    mark(4);
    let probe = guest.probe(Way::Log, LONG);
    let mut marked = false;
    let rate = during(&probe, || {
        if !std::mem::replace(&mut marked, true) {
            mark(7);
            probe.finish();
        }
    })
    .unwrap();
    assert_eq!(rate.written, Pages(1), "what was written before is not its");
    assert!(other.is_started() && guest.tracker.is_started());
    assert_eq!(other.pending(), Pages(3));
    mark(8);
    other.sync(When::Running).unwrap();
    assert_eq!(other.pending(), Pages(4));
}

#[test]
fn a_measurement_is_cancelled_from_any_thread_and_leaves_the_tracker_stopped() {
    for way in [Way::Log, EVERY] {
        let guest = Guest::new(&[100]);
        let probe = guest.probe(way, LONG);
        let error = during(&probe, || probe.cancel()).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
        assert!(!guest.tracker.is_started());
        // A cancelled probe stays cancelled.
        assert_eq!(probe.measure().unwrap_err().kind(), Kind::Cancelled);
    }
}

#[test]
fn a_period_that_is_ended_early_gives_what_was_found_until_then() {
    for way in [Way::Log, EVERY] {
        let guest = Guest::new(&[100]);
        let probe = guest.probe(way, LONG);
        // Before there is a measurement, this does nothing.
        probe.finish();
        let rate = during(&probe, || {
            // The first reading of a sample may still be in progress.
            guest.write(7);
            guest
                .tracker
                .mark_block(BlockId(0), Bytes(7 * PAGE_SIZE), 1);
            probe.finish();
        })
        .unwrap();
        assert!(rate.period < LONG && rate.written <= Pages(1));
        if way == Way::Log {
            assert_eq!(rate.written, Pages(1));
        }
    }
}

#[test]
fn one_probe_measures_once_at_a_time() {
    let guest = Guest::new(&[100]);
    let probe = guest.probe(EVERY, LONG);
    let mut asked = false;
    let ended = during(&probe, || {
        // Asked only once: after the cancel the first measurement may be over, and then the probe
        // is not busy.
        if !std::mem::replace(&mut asked, true) {
            assert_eq!(probe.measure().unwrap_err().kind(), Kind::Busy);
            probe.cancel();
        }
    });
    assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
}

#[test]
fn limits_are_refused_by_name() {
    let guest = Guest::new(&[1]);
    let refused = |way, period| {
        let error = Probe::new(Arc::clone(&guest.tracker), Params { way, period }).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        error.message().to_owned()
    };
    let tick = Duration::from_nanos(1);
    for period in [
        Duration::ZERO,
        PERIOD_MIN - tick,
        PERIOD_MAX + tick,
        Duration::MAX,
    ] {
        assert!(refused(Way::Log, period).contains("10 to 60000 ms"));
    }
    for per_gib in [0, SAMPLES_MAX + 1] {
        assert!(refused(Way::Sample { per_gib }, SHORT).contains("1 to 262144"));
    }
    let none = Guest::without_memory();
    for way in [Way::Log, EVERY] {
        let rate = none.probe(way, PERIOD_MIN).measure().unwrap();
        assert_eq!(rate.written, Pages(0));
    }
}

/// A guest of 256 MiB in a memfd, in which every page has contents.
fn full_memfd() -> Guest {
    let guest = Guest::shared(&[FULL]);
    (0..FULL).for_each(|page| guest.write(page));
    guest
}

const FULL: u64 = 64 << 10;

#[test]
fn by_sample_a_page_of_a_full_memfd_does_not_cost_a_walk_over_the_file() {
    // A question where the next hole begins is a walk to the end of the data. For each of these
    // pages that takes minutes.
    let guest = full_memfd();
    let probe = guest.probe(EVERY, PERIOD_MIN);
    let begun = Instant::now();
    let rate = probe.measure().unwrap();
    assert_eq!(rate.sampled, Some((Pages(FULL), Pages(0))));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn by_sample_a_cancel_is_heard_while_a_full_memfd_is_read() {
    let guest = full_memfd();
    let probe = guest.probe(EVERY, PERIOD_MIN);
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| (probe.measure(), Instant::now()));
        while !probe.state().measuring && !measuring.is_finished() {
            std::thread::yield_now();
        }
        let cancelled = Instant::now();
        probe.cancel();
        let (result, ended) = measuring.join().unwrap();
        assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
        // The promise is 100 ms. A loaded machine may take ten times as long.
        let took = ended.saturating_duration_since(cancelled);
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
}
