//! Which blocks can change hands by descriptor, and which descriptors are taken.

use super::*;
use crate::memory::{BackingFile, BlockDescription, HostMemory, Memory};
use crate::units::Bytes;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const LENGTH: u64 = 16 * 4096;

fn memfd(flags: u32, length: u64) -> OwnedFd {
    // SAFETY: a new descriptor of this test's.
    let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC | flags) };
    assert!(fd >= 0);
    // SAFETY: it is open and nobody else has it.
    unsafe {
        assert_eq!(libc::ftruncate(fd, length as i64), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn sealable(length: u64) -> OwnedFd {
    memfd(libc::MFD_ALLOW_SEALING, length)
}

/// Memory of `fd` (or without a file), unmapped at the end.
struct Mapped(*mut u8);

impl Mapped {
    fn of(fd: Option<BorrowedFd<'_>>, flags: i32) -> Mapped {
        let (fd, flags) = match fd {
            Some(fd) => (fd.as_raw_fd(), flags),
            None => (-1, flags | libc::MAP_ANONYMOUS),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH as usize,
                protection,
                flags,
                fd,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at.cast())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping.
        unsafe { libc::munmap(self.0.cast(), LENGTH as usize) };
    }
}

/// Why a block at `mapped` that is said to be of `file` has to be copied.
fn reason(mapped: &Mapped, file: Option<&OwnedFd>) -> Option<String> {
    let memory = Memory::new().unwrap();
    // SAFETY: mapped until after the guest is gone.
    let host = unsafe { HostMemory::new(mapped.0) };
    let id = memory
        .add_block(BlockDescription {
            file: file.map(|fd| BackingFile {
                fd: fd.try_clone().unwrap(),
                offset: 0,
            }),
            ..BlockDescription::new("ram", host, Bytes(LENGTH))
        })
        .unwrap();
    let map = memory.map();
    let found = by_descriptor(map.block(id).unwrap());
    found.err().map(|e| e.message().to_owned())
}

#[test]
fn a_shared_mapping_of_a_memfd_that_can_be_sealed_needs_no_copy() {
    let fd = sealable(LENGTH);
    let mapped = Mapped::of(Some(fd.as_fd()), libc::MAP_SHARED);
    assert_eq!(reason(&mapped, Some(&fd)), None);
    seals::add(fd.as_fd(), libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL).unwrap();
    assert_eq!(reason(&mapped, Some(&fd)), None);
}

#[test]
fn every_other_block_has_to_be_copied_for_a_reason_that_names_it() {
    let fd = sealable(LENGTH);
    let unsealable = memfd(0, LENGTH);
    let private = Mapped::of(Some(fd.as_fd()), libc::MAP_PRIVATE);
    let shared = Mapped::of(Some(unsealable.as_fd()), libc::MAP_SHARED);
    let anonymous = Mapped::of(None, libc::MAP_PRIVATE);
    for (mapped, file, why) in [
        (&anonymous, None, "has given no descriptor"),
        (&private, Some(&fd), "mapped privately (MAP_PRIVATE)"),
        (&shared, Some(&unsealable), "MFD_ALLOW_SEALING"),
    ] {
        let found = reason(mapped, file).unwrap();
        assert!(found.contains("block `ram` has to be copied"), "{found}");
        assert!(found.contains(why), "{found}");
    }
}

#[test]
fn a_descriptor_that_comes_is_checked_by_type_size_access_and_seals() {
    let part = FilePart {
        offset: 4096,
        length: LENGTH,
        written: true,
    };
    let good = sealable(LENGTH + 4096);
    check_received("ram", good.as_fd(), part).unwrap();
    assert_eq!(seals::of(good.as_fd()).unwrap(), libc::F_SEAL_SHRINK);
    // SAFETY: the file is this test's.
    let shrunk = unsafe { libc::ftruncate(good.as_raw_fd(), 4096) };
    assert_eq!(shrunk, -1, "the seal holds");

    let written = sealable(LENGTH + 4096);
    seals::add(written.as_fd(), libc::F_SEAL_FUTURE_WRITE).unwrap();
    let path = format!("/proc/self/fd/{}", good.as_raw_fd());
    let disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    disk.set_len(LENGTH + 4096).unwrap();
    let table: [(OwnedFd, &str); 7] = [
        (std::io::pipe().unwrap().1.into(), "found a pipe"),
        (disk.into(), "found a file of another file system"),
        (
            std::fs::File::open("/dev/zero").unwrap().into(),
            "found a character device",
        ),
        (
            sealable(LENGTH),
            "after offset 4096, found one of 65536 bytes",
        ),
        (
            memfd(0, LENGTH + 4096),
            "found one with the seals F_SEAL_SEAL",
        ),
        (written, "F_SEAL_FUTURE_WRITE"),
        (
            std::fs::File::open(path).unwrap().into(),
            "not open for writing",
        ),
    ];
    for (fd, found) in table {
        let error = check_received("ram", fd.as_fd(), part).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.message().contains("block `ram`"), "{error}");
        assert!(error.message().contains(found), "{found:?} in: {error}");
    }
    // A ROM is only read.
    let rom = FilePart {
        written: false,
        ..part
    };
    let path = format!("/proc/self/fd/{}", good.as_raw_fd());
    let read_only: OwnedFd = std::fs::File::open(path).unwrap().into();
    check_received("rom", read_only.as_fd(), rom).unwrap();
}
