//! Faults of a thread of the test's, served as a guest's are.

use super::*;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
const PAGES: u64 = 16;
const LONG: Duration = Duration::from_secs(30);

/// Some pages of memory, private or of a file, and a second mapping of the file.
struct Ram {
    at: u64,
    other: Option<u64>,
}

impl Ram {
    fn private() -> Ram {
        Ram {
            at: map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            other: None,
        }
    }

    fn shared() -> Ram {
        let file = memfd(PAGES * PAGE);
        let map = || map(libc::MAP_SHARED, file.as_raw_fd());
        Ram {
            at: map(),
            other: Some(map()),
        }
    }

    fn range(&self) -> Range<u64> {
        self.at..self.at + PAGES * PAGE
    }

    fn page(&self, page: u64) -> Range<u64> {
        self.at + page * PAGE..self.at + (page + 1) * PAGE
    }

    fn byte(&self, page: u64) -> &AtomicU8 {
        // SAFETY: inside the mapping, which lives as long as `self`, and used by atomic accesses.
        unsafe { AtomicU8::from_ptr((self.at + page * PAGE) as *mut u8) }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        for at in [Some(self.at), self.other].into_iter().flatten() {
            // SAFETY: this test's own mapping.
            unsafe { libc::munmap(at as *mut _, (PAGES * PAGE) as usize) };
        }
    }
}

fn map(flags: libc::c_int, fd: libc::c_int) -> u64 {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            (PAGES * PAGE) as usize,
            rw,
            flags,
            fd,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    at as u64
}

fn memfd(length: u64) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel returns a new descriptor.
    let fd = unsafe { libc::memfd_create(c"brant-test".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: just made, and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a descriptor of ours.
    assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), length as i64) }, 0);
    fd
}

/// `None` where the machine allows no faults of the kernel.
fn faults() -> Option<Faults> {
    Faults::open()
        .inspect_err(|e| eprintln!("skipped: {e}"))
        .ok()
}

/// The next fault, waited for.
fn next(faults: &Faults) -> Fault {
    let begun = Instant::now();
    let mut found = Vec::new();
    while found.is_empty() {
        assert!(begun.elapsed() < LONG, "no fault");
        faults.read(&mut found).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

const WAKE: Fill = Fill {
    protect: false,
    wake: true,
};

/// All of `bytes` was filled.
fn whole(bytes: u64) -> Filled {
    Filled {
        bytes,
        stopped: None,
    }
}

#[test]
fn a_thread_waits_for_a_missing_page_and_reads_what_was_copied() {
    let Some(faults) = faults() else { return };
    for ram in [Ram::private(), Ram::shared()] {
        let missing = Modes {
            missing: true,
            ..Modes::default()
        };
        let can = faults.register(ram.range(), missing).unwrap();
        assert!(can.zero);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| ram.byte(3).load(SeqCst));
            let fault = next(&faults);
            assert_eq!(fault.address, ram.page(3).start);
            assert!(!fault.write && !fault.minor && !fault.protected);
            assert_ne!(fault.thread, 0);
            let filled = faults.copy(fault.address, &[7; PAGE as usize], WAKE);
            assert_eq!(filled.unwrap(), whole(PAGE));
            assert_eq!(reader.join().unwrap(), 7);
            let writer = scope.spawn(|| ram.byte(4).fetch_add(1, SeqCst));
            assert!(next(&faults).write);
            assert_eq!(faults.zero(ram.page(4), true).unwrap(), whole(PAGE));
            assert_eq!(writer.join().unwrap(), 0);
        });
        faults.unregister(ram.range()).unwrap();
        assert_eq!(ram.byte(5).load(SeqCst), 0);
    }
}

#[test]
fn a_call_stops_at_a_page_that_is_present_and_says_how_far_it_came() {
    let Some(faults) = faults() else { return };
    let ram = Ram::private();
    let missing = Modes {
        missing: true,
        ..Modes::default()
    };
    faults.register(ram.range(), missing).unwrap();
    let at_once = vec![1; PAGE as usize];
    faults.copy(ram.page(2).start, &at_once, WAKE).unwrap();
    let stopped = Filled {
        bytes: 2 * PAGE,
        stopped: Some(Stopped::Present),
    };
    let all = vec![9; (PAGES * PAGE) as usize];
    assert_eq!(faults.copy(ram.at, &all, WAKE).unwrap(), stopped);
    assert_eq!([ram.byte(1).load(SeqCst), ram.byte(2).load(SeqCst)], [9, 1]);
    let none = |stopped| Filled {
        bytes: 0,
        stopped: Some(stopped),
    };
    assert_eq!(
        faults.zero(ram.page(2), true).unwrap(),
        none(Stopped::Present)
    );
    faults.unregister(ram.range()).unwrap();
    let unwatched = faults.copy(ram.page(8).start, &at_once, WAKE).unwrap();
    assert_eq!(unwatched, none(Stopped::Unwatched));
}

#[test]
fn a_page_that_only_the_file_has_is_a_minor_fault_and_is_mapped() {
    let Some(faults) = faults() else { return };
    let ram = Ram::shared();
    // SAFETY: inside the second mapping.
    unsafe { *(ram.other.unwrap() as *mut u8) = 5 };
    let modes = Modes {
        missing: true,
        minor: true,
        ..Modes::default()
    };
    assert!(faults.register(ram.range(), modes).unwrap().resume);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| ram.byte(0).load(SeqCst));
        assert!(next(&faults).minor);
        // What has changed by then is what the thread reads.
        // SAFETY: inside the second mapping.
        unsafe { *(ram.other.unwrap() as *mut u8) = 6 };
        assert_eq!(faults.resume(ram.page(0), true).unwrap(), whole(PAGE));
        assert_eq!(reader.join().unwrap(), 6);
    });
    let present = faults.resume(ram.page(0), true).unwrap();
    assert_eq!(present.stopped, Some(Stopped::Present));
    assert!(faults.resume(ram.page(1), true).is_err());
}

#[test]
fn a_protected_page_is_read_freely_and_written_only_when_the_protection_is_lifted() {
    let Some(faults) = faults() else { return };
    for ram in [Ram::private(), Ram::shared()] {
        ram.byte(0).store(1, SeqCst);
        let modes = Modes {
            missing: true,
            protect: true,
            ..Modes::default()
        };
        assert!(faults.register(ram.range(), modes).unwrap().protect);
        faults.protect(ram.range()).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| ram.byte(0).swap(2, SeqCst));
            let fault = next(&faults);
            assert!(fault.protected && fault.write);
            assert_eq!(ram.byte(0).load(SeqCst), 1);
            faults.unprotect(ram.page(0), true).unwrap();
            assert_eq!(writer.join().unwrap(), 1);
        });
        assert_eq!(ram.byte(0).load(SeqCst), 2);
    }
}

#[test]
fn a_wake_lets_a_thread_try_again_and_it_faults_again() {
    let Some(faults) = faults() else { return };
    let ram = Ram::private();
    let missing = Modes {
        missing: true,
        ..Modes::default()
    };
    faults.register(ram.range(), missing).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| ram.byte(1).load(SeqCst));
        let first = next(&faults);
        let quiet = Fill {
            protect: false,
            wake: false,
        };
        faults.wake(ram.page(1)).unwrap();
        assert_eq!(next(&faults), first);
        faults
            .copy(first.address, &[3; PAGE as usize], quiet)
            .unwrap();
        faults.wake(ram.page(1)).unwrap();
        assert_eq!(reader.join().unwrap(), 3);
    });
}
