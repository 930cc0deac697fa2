//! The rules without which pages are lost or threads wait for ever.

use super::{marks, quiet, Asked, Guest, KINDS};
use crate::error::Kind;
use crate::memory::served::{Absent, How, Served, Theirs};
use crate::memory::testing::kinds::{Area, Filler, HugePool, Made, HUGE, PAGE};
use crate::memory::Memory;
use crate::sys::uffd::{Faults, Modes};
use crate::units::Pages;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn an_absent_page_with_old_contents_is_waited_for_and_never_shows_them() {
    for made in KINDS {
        for how in [How { punch: false }, How { punch: true }] {
            let old = |area: &Area| (0..64).for_each(|page| area.write(page, 0xee));
            let guest = Guest::new(made, 64, &[3..5, 40..64], how, old).unwrap();
            let reader = guest.reader(4);
            assert_eq!(guest.wanted.recv().unwrap(), 4..5, "{made:?}");
            assert_eq!(guest.place(4, 1, 7), 1);
            assert_eq!(reader.join().unwrap(), 7, "{made:?}");
            // A page of zeros over old contents.
            let reader = guest.reader(3);
            assert_eq!(guest.wanted.recv().unwrap(), 3..4);
            assert_eq!(guest.zeros(3..4), 1);
            assert_eq!(reader.join().unwrap(), 0, "{made:?}");
            assert_eq!(guest.zeros(40..50), 10);
            assert_eq!(guest.area.read(45), 0, "{made:?}");
            assert_eq!(guest.place(50, 14, 9), 14);
            assert_eq!(guest.area.read(63), 9);
            // Pages that are not absent have kept what they had.
            assert_eq!(guest.area.read(0), 0xee, "{made:?}");
            assert_eq!(guest.area.read(39), 0xee, "{made:?}");
            guest.all_here.recv().unwrap();
            guest.served().finish().unwrap();
            assert_eq!(guest.area.read(45), 0);
        }
    }
}

/// The destination prefaults memory, and its VMM may have read or written zeros anywhere: pages that the
/// source never sent are present then, and would read as zero without a fault.
#[test]
fn an_absent_page_that_was_never_sent_but_is_present_is_waited_for_too() {
    for made in KINDS {
        for how in [How { punch: false }, How { punch: true }] {
            let touched = |area: &Area| {
                for page in 0..64 {
                    match page % 2 {
                        0 => area.write(page, 0),
                        _ => assert_eq!(area.read(page), 0),
                    }
                }
            };
            let guest = Guest::new(made, 64, &[8..10, 40..64], how, touched).unwrap();
            for page in [8, 9, 63] {
                let reader = guest.reader(page);
                let wanted = guest.wanted.recv_timeout(LONG);
                let page = page as u64;
                assert_eq!(wanted.unwrap(), page..page + 1, "{made:?}");
                assert_eq!(guest.place(page as usize, 1, 7), 1);
                assert_eq!(reader.join().unwrap(), 7, "{made:?}");
            }
            assert_eq!(guest.area.read(7), 0, "{made:?}");
            guest.zeros(40..63);
            guest.all_here.recv().unwrap();
        }
    }
}

#[test]
fn a_page_that_is_nowhere_and_not_absent_reads_as_zero_at_once() {
    for made in KINDS {
        let guest = Guest::new(made, 64, &[0..1], How::default(), |_| ()).unwrap();
        assert_eq!(guest.area.read(33), 0, "{made:?}");
        guest.area.write(34, 5);
        assert_eq!(guest.area.read(34), 5);
        assert!(guest.served().figures().local >= 2);
        assert!(guest.wanted.try_recv().is_err(), "nobody was asked");
        assert_eq!(guest.place(0, 1, 1), 1);
    }
}

#[test]
fn pages_of_shared_memory_that_are_in_the_file_are_mapped_again_without_the_supplier() {
    // Every second page is absent: so many runs that all entries are dropped.
    let absent: Vec<_> = (0..512).map(|n| 2 * n..2 * n + 1).collect();
    let old = |area: &Area| (0..1024).for_each(|page| area.write(page, page as u8 | 1));
    let guest = Guest::new(Made::Memfd, 1024, &absent, How::default(), old).unwrap();
    for page in (1..1024).step_by(2) {
        assert_eq!(guest.area.read(page), page as u8 | 1);
    }
    assert!(guest.wanted.try_recv().is_err(), "nobody was asked");
}

#[test]
fn pages_around_a_minor_fault_are_mapped_with_it() {
    let old = |area: &Area| (0..2048).for_each(|page| area.write(page, 3));
    let absent: Vec<_> = (0..25).map(|n| 80 * n..80 * n + 1).collect();
    let guest = Guest::new(Made::Memfd, 2048, &absent, How::default(), old).unwrap();
    for page in (1..2048).filter(|page| page % 80 != 0) {
        assert_eq!(guest.area.read(page), 3);
    }
    let faults = guest.served().figures().faults;
    assert!((1..200).contains(&faults), "{faults} faults for 2023 pages");
}

#[test]
fn the_first_arrival_of_a_page_counts() {
    for made in KINDS {
        let guest = Guest::new(made, 64, &[0..64], How::default(), |_| ()).unwrap();
        assert_eq!(guest.place(10, 10, 1), 10, "{made:?}");
        guest.area.write(12, 2);
        // The same pages once more, and some that are new.
        assert_eq!(guest.place(8, 14, 9), 4, "{made:?}");
        assert_eq!(guest.zeros(5..30), 11, "{made:?}");
        let found = [7, 8, 10, 12, 21, 22].map(|page| guest.area.read(page));
        assert_eq!(found, [0, 9, 1, 2, 9, 0], "{made:?}");
        // Discarded by the VMM, a page does not come back by a late arrival.
        assert_eq!(guest.served().left().0, 64 - 25);
    }
}

#[test]
fn a_page_is_asked_for_once_however_many_threads_wait_and_all_of_them_are_woken() {
    let guest = Guest::new(Made::Anonymous, 8, &[0..8], How::default(), |_| ()).unwrap();
    let readers: Vec<_> = (0..8).map(|_| guest.reader(3)).collect();
    // All of them wait.
    while guest.served().figures().waiting < 8 {
        std::thread::yield_now();
    }
    assert_eq!(guest.wanted.recv().unwrap(), 3..4);
    assert!(guest.wanted.try_recv().is_err(), "asked for once");
    guest.served().ask_again();
    assert_eq!(guest.wanted.recv().unwrap(), 3..4);
    guest.place(3, 1, 6);
    for reader in readers {
        assert_eq!(reader.join().unwrap(), 6);
    }
    guest.served().ask_again();
    assert!(guest.wanted.try_recv().is_err(), "nobody waits");
    let figures = guest.served().figures();
    assert_eq!(
        (figures.waiting, figures.urgent, figures.latency.count),
        (0, 1, 8)
    );
    assert_eq!(figures.threads.len(), 8);
    assert!(figures
        .threads
        .iter()
        .all(|it| it.faults >= 1 && !it.time.is_zero()));
}

#[test]
fn with_transparent_huge_pages_a_write_makes_no_neighbours_present() {
    let always = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if always.is_ok_and(|text| text.contains("[never]")) {
        eprintln!("skipped: no transparent huge pages here");
        return;
    }
    let huge = |area: &Area| {
        // SAFETY: advice on the test's own mapping.
        unsafe { libc::madvise(area.at.cast(), area.length, libc::MADV_HUGEPAGE) };
        (0..4096).step_by(512).for_each(|page| area.write(page, 1));
    };
    // The first page of each stretch is here.
    let absent: Vec<_> = (0..8).map(|n| 512 * n + 1..512 * n + 512).collect();
    let guest = Guest::new(Made::Anonymous, 4096, &absent, How::default(), huge).unwrap();
    (0..4096)
        .step_by(512)
        .for_each(|page| guest.area.write(page, 2));
    let reader = guest.reader(1000);
    assert_eq!(guest.wanted.recv().unwrap(), 1000..1001);
    guest.place(1000, 1, 4);
    assert_eq!(reader.join().unwrap(), 4);
}

#[test]
fn huge_pages_are_allowed_again_at_the_end_where_they_were() {
    let advise = |area: &Area, advice| {
        // SAFETY: advice on the test's own mapping.
        unsafe { libc::madvise(area.at.cast(), area.length, advice) };
    };
    let advice_of = |at: u64| {
        let mut found = None;
        crate::sys::maps::huge_page_advice(|range, advice| {
            if range.contains(&at) {
                found = advice;
            }
            Ok(())
        })
        .unwrap();
        found
    };
    for (advice, after) in [(libc::MADV_HUGEPAGE, true), (libc::MADV_NOHUGEPAGE, false)] {
        let before = |area: &Area| advise(area, advice);
        let guest = Guest::new(Made::Anonymous, 1024, &[0..1], How::default(), before).unwrap();
        let at = guest.area.at as u64;
        assert_eq!(advice_of(at), Some(false));
        guest.zeros(0..1);
        guest.served().finish().unwrap();
        assert_eq!(advice_of(at), Some(after));
    }
}

#[test]
fn reads_and_writes_of_the_kernel_wait_for_absent_pages_too() {
    use std::io::{Read, Write};
    for made in KINDS {
        let guest = Guest::new(made, 8, &[0..8], How::default(), |_| ()).unwrap();
        let area = Arc::clone(&guest.area);
        let kernel = std::thread::spawn(move || {
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            // SAFETY: pages of the test's mapping, which nobody else uses meanwhile.
            let pages = unsafe { std::slice::from_raw_parts_mut(area.page(0), 3 * PAGE) };
            // write(2) reads the first page, read(2) writes to the third.
            writer.write_all(&pages[..PAGE]).unwrap();
            reader.read_exact(&mut pages[2 * PAGE..]).unwrap();
            pages[2 * PAGE]
        });
        assert_eq!(guest.wanted.recv().unwrap(), 0..1, "{made:?}");
        guest.place(0, 1, 8);
        assert_eq!(guest.wanted.recv().unwrap(), 2..3, "{made:?}");
        guest.place(2, 1, 9);
        assert_eq!(kernel.join().unwrap(), 8);
    }
}

#[test]
fn a_huge_page_is_placed_whole_from_its_pieces_and_zero_without_a_call_for_that() {
    let Some(_pool) = HugePool::new(8) else {
        return;
    };
    let unit = HUGE / PAGE;
    for made in [Made::Huge, Made::HugeMemfd] {
        let old = |area: &Area| (0..3).for_each(|n| area.write(n * unit, 0xee));
        let absent = unit..4 * unit;
        let Some(guest) = Guest::new(made, 4 * unit, &[absent], How::default(), old) else {
            eprintln!("skipped: no {made:?}");
            continue;
        };
        assert_eq!(guest.area.read(0), 0xee, "{made:?}");
        let reader = guest.reader(unit + 7);
        let wanted = guest.wanted.recv().unwrap();
        assert_eq!(wanted, unit as u64..2 * unit as u64, "{made:?}");
        // Pieces in any order, one of them twice.
        assert_eq!(guest.place(unit + 100, 412, 5), 0);
        assert_eq!(guest.place(unit + 100, 10, 5), 0);
        assert_eq!(guest.zeros(unit..unit + 5), 0);
        assert!(!reader.is_finished());
        assert_eq!(guest.place(unit + 5, 95, 7), unit as u64);
        assert_eq!(reader.join().unwrap(), 7);
        let found = [0, 5, 99, 100, 511].map(|page| guest.area.read(unit + page));
        assert_eq!(found, [0, 7, 7, 5, 5], "{made:?}");
        // Two whole ones in one piece, one of them of zeros that a thread waits for.
        let reader = guest.reader(2 * unit);
        guest.wanted.recv().unwrap();
        assert_eq!(guest.zeros(2 * unit..3 * unit), unit as u64);
        assert_eq!(reader.join().unwrap(), 0, "{made:?}");
        assert_eq!(guest.place(2 * unit, 2 * unit, 3), unit as u64);
        assert_eq!(
            (guest.area.read(2 * unit), guest.area.read(3 * unit)),
            (0, 3)
        );
        guest.all_here.recv().unwrap();
        guest.served().finish().unwrap();
    }
}

#[test]
fn what_cannot_be_served_is_named_with_the_reason_before_anything_happens() {
    let refused = |made: Made, kind: Kind, words: &str| {
        let area = Area::new(made, 64 * PAGE).unwrap();
        let memory = Memory::new().unwrap();
        memory.add_block(super::describe(&area)).unwrap();
        let error = Served::check(&memory).unwrap_err();
        assert_eq!(error.kind(), kind, "{made:?}: {error}");
        assert!(error.message().contains("block `ram`"), "{error}");
        assert!(error.message().contains(words), "{made:?}: {error}");
    };
    refused(
        Made::MemfdPrivate,
        Kind::Unsupported,
        "private mapping of a file",
    );
    refused(
        Made::MemfdPrivateUntold,
        Kind::Unsupported,
        "private mapping of a file",
    );
    refused(Made::Disk, Kind::Unsupported, "UFFDIO_REGISTER");
    let area = Area::new(Made::Anonymous, 64 * PAGE).unwrap();
    let memory = Memory::new().unwrap();
    memory.add_block(super::describe(&area)).unwrap();
    Served::check(&memory).unwrap();
    // Somebody else's userfaultfd, on some pages only.
    let Some(filler) = Filler::new(&area, 30..40, 0) else {
        return;
    };
    let error = Served::check(&memory).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    drop(filler);
    // A memfd that is sealed against writes other than through mappings there are.
    let sealed = Area::new(Made::Memfd, 64 * PAGE).unwrap();
    let file = sealed.file.as_ref().unwrap();
    use std::os::fd::AsRawFd;
    // SAFETY: takes an integer.
    let done = unsafe {
        libc::fcntl(
            file.as_raw_fd(),
            libc::F_ADD_SEALS,
            libc::F_SEAL_FUTURE_WRITE,
        )
    };
    if done == 0 {
        let memory = Memory::new().unwrap();
        memory.add_block(super::describe(&sealed)).unwrap();
        let error = Served::check(&memory).unwrap_err();
        assert!(error.message().contains("sealed"), "{error}");
    }
}

#[test]
fn absent_pages_that_are_part_of_a_huge_page_are_refused() {
    let Some(_pool) = HugePool::new(2) else {
        return;
    };
    let unit = HUGE / PAGE;
    let area = Area::new(Made::Huge, 2 * HUGE).unwrap();
    let memory = Arc::new(Memory::new().unwrap());
    let id = memory.add_block(super::describe(&area)).unwrap();
    let block = Arc::clone(memory.map().block(id).unwrap());
    let checked = Served::check(&memory).unwrap();
    area.write(0, 5);
    let absent = vec![Absent {
        block,
        pages: marks(2 * unit, &[3..unit]),
    }];
    let supplier = Arc::new(Asked {
        wanted: Mutex::new(channel().0),
        all_here: Mutex::new(channel().0),
    });
    let begun = Served::begin(&memory, &checked, absent, How::default(), supplier, quiet());
    let error = begun.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(
        error.message().contains("whole huge pages of 512 pages"),
        "{error}"
    );
    assert_eq!(area.read(0), 5);
}

#[test]
fn a_thread_that_waits_for_a_page_is_woken_also_when_somebody_else_has_made_it() {
    // A back end has written to the file of shared memory. What arrives then is refused by the kernel,
    // which wakes nobody.
    for made in [Made::Memfd, Made::MemfdUntold] {
        let guest = Guest::new(made, 64, &[3..9], How { punch: true }, |_| ()).unwrap();
        for (page, zero) in [(3, false), (5, true)] {
            let reader = guest.reader(page);
            let wanted = guest.wanted.recv_timeout(LONG).unwrap();
            assert_eq!(wanted, page as u64..page as u64 + 1, "{made:?}");
            guest.area.write_file(page, 9);
            match zero {
                true => assert_eq!(guest.zeros(page..page + 1), 1),
                false => assert_eq!(guest.place(page, 1, 7), 1),
            }
            let begun = Instant::now();
            while !reader.is_finished() {
                assert!(
                    begun.elapsed() < LONG,
                    "{made:?}, page {page}: nobody woke it"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(reader.join().unwrap(), 9, "{made:?}");
        }
    }
}

/// Another process's mapping of the same memory: here a second mapping of this process with a
/// userfaultfd of its own.
#[test]
fn a_page_wakes_the_threads_that_wait_for_it_in_every_userfaultfd() {
    for minor in [false, true] {
        let how = How { punch: !minor };
        let old = |area: &Area| (0..16).for_each(|page| area.write(page, 0xee));
        let guest = Guest::new(Made::Memfd, 16, &[4..12], how, old).unwrap();
        let file = guest.area.file.as_ref().unwrap();
        let theirs = Arc::new(Second::new(file, 16 * PAGE));
        let at = theirs.0 as u64;
        let faults = Faults::open().unwrap();
        let modes = Modes {
            missing: true,
            minor,
            protect: false,
        };
        faults.register(at..at + 16 * PAGE as u64, modes).unwrap();
        let map = |from: u64, to: u64| Theirs {
            addresses: at + from * PAGE as u64..at + to * PAGE as u64,
            block: guest.block.id(),
            first: Pages(from),
        };
        let twice = guest
            .served()
            .add_uffd(Faults::open().unwrap(), vec![map(0, 8), map(7, 9)]);
        assert_eq!(twice.unwrap_err().kind(), Kind::Invalid);
        let outside = guest
            .served()
            .add_uffd(Faults::open().unwrap(), vec![map(8, 17)]);
        assert_eq!(outside.unwrap_err().kind(), Kind::Invalid);
        guest
            .served()
            .add_uffd(faults, vec![map(8, 16), map(0, 8)])
            .unwrap();
        let read = |page: usize| {
            let theirs = Arc::clone(&theirs);
            // SAFETY: inside of that mapping.
            std::thread::spawn(move || unsafe { theirs.0.add(page * PAGE).read_volatile() })
        };
        // Both wait for one page, which is asked for once.
        let (one, two) = (read(5), guest.reader(5));
        assert_eq!(guest.wanted.recv().unwrap(), 5..6);
        while guest.served().figures().waiting < 2 {
            std::thread::yield_now();
        }
        assert!(guest.wanted.try_recv().is_err());
        guest.place(5, 1, 6);
        assert_eq!(
            (one.join().unwrap(), two.join().unwrap()),
            (6, 6),
            "minor: {minor}"
        );
        let one = read(9);
        guest.wanted.recv().unwrap();
        guest.zeros(9..10);
        assert_eq!(one.join().unwrap(), 0, "minor: {minor}");
        // Not absent: answered here.
        assert_eq!(read(1).join().unwrap(), 0xee, "minor: {minor}");
        guest.place(4, 8, 1);
        guest.all_here.recv().unwrap();
        guest.served().finish().unwrap();
        // Faults of other processes are served after the end too.
        file.set_len(8 * PAGE as u64).unwrap();
        file.set_len(16 * PAGE as u64).unwrap();
        assert_eq!(read(14).join().unwrap(), 0, "minor: {minor}");
    }
}

struct Second(*mut u8, usize);

// SAFETY: an address; accesses are volatile.
unsafe impl Send for Second {}
// SAFETY: as above.
unsafe impl Sync for Second {}

impl Second {
    fn new(file: &std::fs::File, length: usize) -> Second {
        use std::os::fd::AsRawFd;
        let (rw, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                rw,
                shared,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Second(at.cast(), length)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // SAFETY: the test's own mapping.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}
