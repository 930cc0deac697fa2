//! Whether a userfaultfd watches an address: the answer, compared with the test's own registrations
//! and with smaps.

use super::*;
use crate::sys::maps;
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

const LENGTH: usize = 4 << 20;
/// Longer than a child takes from fork to exec on any machine.
const LONG: Duration = Duration::from_secs(30);
/// Missing and minor faults of shared memory and of huge pages, write protection of them.
const FEATURES: u64 = 1 << 4 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 12;

struct Mapped(*mut libc::c_void);

impl Mapped {
    fn new(flags: libc::c_int, fd: libc::c_int) -> Option<Mapped> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, rw, flags, fd, 0) };
        (at != libc::MAP_FAILED).then_some(Mapped(at))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping.
        unsafe { libc::munmap(self.0, LENGTH) };
    }
}

fn memfd(flags: libc::c_uint) -> Option<OwnedFd> {
    // SAFETY: the kernel returns a new descriptor.
    let fd = unsafe { libc::memfd_create(c"brant-test".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just made, and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a descriptor of ours.
    (unsafe { libc::ftruncate(fd.as_raw_fd(), LENGTH as i64) } == 0).then_some(fd)
}

fn other(features: u64) -> OwnedFd {
    let fd = new_fd(false).unwrap();
    api(&fd, features).unwrap();
    fd
}

#[test]
fn whether_a_userfaultfd_is_told_of_an_address_is_known_for_every_kind_of_memory() {
    let probe = match WatchProbe::open() {
        Ok(probe) => probe,
        Err(e) => {
            eprintln!("skipped: {e}");
            return;
        }
    };
    let (private, shared) = (libc::MAP_PRIVATE, libc::MAP_SHARED);
    let none = libc::MAP_NORESERVE;
    let file = memfd(0).unwrap();
    let huge = memfd(libc::MFD_HUGETLB);
    let anonymous = private | libc::MAP_ANONYMOUS | none;
    let mut kinds = vec![
        ("anonymous", Mapped::new(anonymous, -1)),
        ("memfd", Mapped::new(shared, file.as_raw_fd())),
        ("memfd, private", Mapped::new(private, file.as_raw_fd())),
        ("huge", Mapped::new(anonymous | libc::MAP_HUGETLB, -1)),
    ];
    if let Some(huge) = &huge {
        let mapped = Mapped::new(shared | none, huge.as_raw_fd());
        kinds.push(("huge memfd", mapped));
    }
    let modes = [
        REGISTER_MODE_MISSING,
        REGISTER_MODE_WP,
        REGISTER_MODE_MINOR,
        REGISTER_MODE_MISSING | REGISTER_MODE_WP,
    ];
    for (kind, mapped) in &kinds {
        let Some(mapped) = mapped else {
            eprintln!("skipped: no {kind} memory is to be had");
            continue;
        };
        let start = mapped.0 as u64;
        let range = start..start + LENGTH as u64;
        let served = |mode: u64| mode & (REGISTER_MODE_MISSING | REGISTER_MODE_MINOR) != 0;
        assert!(!probe.is_watched(start), "{kind}, before");
        for mode in modes {
            let other = other(FEATURES);
            if let Err(e) = register(&other, &range, mode) {
                eprintln!("{kind} cannot be registered in mode {mode}: {e}");
                continue;
            }
            for at in [start, range.end - 4096] {
                assert!(probe.is_watched(at), "{kind}, mode {mode}");
            }
            let text = maps::served_by_userfault(range.clone()).unwrap();
            let found = text
                .iter()
                .any(|area| area.start <= start && area.end >= range.end);
            assert_eq!(found, served(mode), "{kind}, mode {mode}: {text:x?}");
            drop(other);
            // A child that another test is starting has the descriptor up to its exec.
            let begun = Instant::now();
            while probe.is_watched(start) {
                assert!(begun.elapsed() < LONG, "{kind}, after mode {mode}");
                std::thread::yield_now();
            }
        }
    }
    // The question itself leaves nothing behind.
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure.
    assert_eq!(unsafe { libc::fstat(file.as_raw_fd(), &mut stat) }, 0);
    assert_eq!(stat.st_blocks, 0);
    // An address that is not mapped is not watched.
    assert!(!probe.is_watched(4096 * 16));
}
