//! A block's descriptor against what the block is mapped from.

use crate::error::{Error, Kind, Result};
use crate::memory::block::{BackingFile, BlockDescription, BlockId};
use crate::memory::{HostMemory, Memory};
use crate::units::Bytes;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

const LENGTH: usize = 64 << 10;

/// A shared mapping of a file, unmapped at the end.
struct Mapped(*mut u8);

impl Mapped {
    fn from(file: &File) -> Mapped {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at.cast())
    }

    /// The block of this memory, with a descriptor that is said to be of its file.
    fn add(&self, fd: OwnedFd) -> Result<BlockId> {
        // SAFETY: mapped until the end of the test, after the block's memory object.
        let host = unsafe { HostMemory::new(self.0) };
        Memory::new()?.add_block(BlockDescription {
            file: Some(BackingFile { fd, offset: 0 }),
            ..BlockDescription::new("ram", host, Bytes(LENGTH as u64))
        })
    }

    fn refused(&self, fd: OwnedFd) -> Error {
        let error = self.add(fd).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(
            error.message().starts_with("block `ram`: expected "),
            "{error}"
        );
        error
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped above, and nobody uses it any more.
        unsafe { libc::munmap(self.0.cast(), LENGTH) };
    }
}

fn memfd() -> File {
    // SAFETY: makes a descriptor, which is ours.
    let file =
        unsafe { File::from_raw_fd(libc::memfd_create(c"mapped".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(LENGTH as u64).unwrap();
    file
}

fn opened(path: impl AsRef<Path>) -> OwnedFd {
    File::open(path).unwrap().into()
}

#[test]
fn a_descriptor_that_no_memory_can_be_mapped_from_is_refused_by_what_it_is() {
    let mapped = Mapped::from(&memfd());
    let directory = tempfile::tempdir().unwrap();
    let (reads, writes) = std::io::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: makes a descriptor, which is ours.
    let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    for (fd, words) in [
        (reads.into(), "found a pipe, from which no memory"),
        (writes.into(), "found a pipe that is open for writing only"),
        (socket.into(), "found a socket"),
        (event, "found a descriptor that is neither"),
        (
            opened("/dev/null"),
            "found a character device, from which no memory",
        ),
        (opened(directory.path()), "found a directory"),
    ] {
        let error = mapped.refused(fd);
        assert!(error.message().contains(words), "{words}: {error}");
    }
}

#[test]
fn a_descriptor_of_another_file_is_refused_on_whatever_file_system_it_is() {
    let file = memfd();
    let mapped = Mapped::from(&file);
    let on_disk = tempfile::tempfile().unwrap();
    on_disk.set_len(LENGTH as u64).unwrap();
    let ours = {
        use std::os::unix::fs::MetadataExt;
        format!("inode {})", file.metadata().unwrap().ino())
    };
    for (fd, words) in [
        (memfd().into(), "one of another file (a file;"),
        (
            on_disk.try_clone().unwrap().into(),
            "one of another file (a file;",
        ),
        (
            opened("/dev/zero"),
            "one of another file (a character device;",
        ),
    ] {
        let error = mapped.refused(fd);
        assert!(error.message().contains(words), "{words}: {error}");
        assert!(error.message().contains(&ours), "{ours}: {error}");
    }
    mapped.add(file.try_clone().unwrap().into()).unwrap();
    // The same the other way round, with a file that has another file system's device.
    let mapped = Mapped::from(&on_disk);
    mapped.refused(file.into());
    mapped.add(on_disk.into()).unwrap();
}

#[test]
fn a_descriptor_that_is_open_for_writing_only_is_refused_and_one_for_reading_only_is_not() {
    let file = memfd();
    let mapped = Mapped::from(&file);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let writes = File::options().write(true).open(&path).unwrap();
    let error = mapped.refused(writes.into());
    assert!(error.message().contains("open for writing only"), "{error}");
    mapped.add(opened(&path)).unwrap();
}

#[test]
fn nothing_stays_mapped_of_a_file_that_was_compared() {
    let file = memfd();
    let mapped = Mapped::from(&file);
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .filter(|line| line.contains("/memfd:mapped"))
            .count()
    };
    // Other tests of this process map files of that name too, so only the growth of many says
    // something.
    let before = mappings();
    for _ in 0..200 {
        mapped.add(file.try_clone().unwrap().into()).unwrap();
    }
    assert!(mappings() < before + 100);
}
