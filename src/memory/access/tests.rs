//! Inaccessible memory of every kind that can be made here. An access without a check ends the test
//! process, which is a failure too.

use super::*;
use crate::memory::testing::kinds::poison;
use crate::memory::{BackingFile, BlockDescription, BlockFlags, Memory};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

const PAGES: u64 = 64;
const LENGTH: usize = (PAGES * PAGE_SIZE) as usize;

/// A mapping and a block over it. If there is a file, the block knows it or does not.
struct Area {
    block: Arc<Block>,
    file: Option<File>,
}

/// The kinds of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Made {
    Private,
    Memfd,
    MemfdWithoutDescriptor,
    MemfdPrivate,
}

const ALL: [Made; 4] = [
    Made::Private,
    Made::Memfd,
    Made::MemfdWithoutDescriptor,
    Made::MemfdPrivate,
];

impl Area {
    /// Makes memory with every page written.
    fn new(made: Made) -> Area {
        let file = (made != Made::Private).then(|| {
            // SAFETY: makes a descriptor, which is ours.
            let file = unsafe {
                File::from_raw_fd(libc::memfd_create(c"access".as_ptr(), libc::MFD_CLOEXEC))
            };
            file.set_len(LENGTH as u64).unwrap();
            file
        });
        let area = Area::of(file, made);
        for page in 0..PAGES {
            // SAFETY: inside this test's own mapping.
            unsafe { area.page(page).write_volatile(9) };
        }
        area
    }

    fn of(file: Option<File>, made: Made) -> Area {
        let (flags, fd) = match (&file, made) {
            (None, _) => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            (Some(file), Made::MemfdPrivate) => (libc::MAP_PRIVATE, file.as_raw_fd()),
            (Some(file), _) => (libc::MAP_SHARED, file.as_raw_fd()),
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(std::ptr::null_mut(), LENGTH, access, flags, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            libc::madvise(at, LENGTH, libc::MADV_NOHUGEPAGE);
            at
        };
        let known = made != Made::MemfdWithoutDescriptor;
        let memory = Memory::new().unwrap();
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { crate::memory::HostMemory::new(at.cast()) },
                length: Pages(PAGES).bytes(),
                page_size: Bytes(PAGE_SIZE),
                file: file.as_ref().filter(|_| known).map(|file| BackingFile {
                    fd: file.try_clone().unwrap().into(),
                    offset: 0,
                }),
                flags: BlockFlags::default(),
            })
            .unwrap();
        let block = Arc::clone(&memory.map().blocks()[0]);
        Area { block, file }
    }

    fn page(&self, page: u64) -> *mut u8 {
        self.block.page_address(Pages(page))
    }

    fn protect(&self, page: u64, protection: libc::c_int) {
        // SAFETY: a page of this test's own mapping.
        let result = unsafe { libc::mprotect(self.page(page).cast(), 4096, protection) };
        assert_eq!(result, 0);
    }

    /// The results of both kinds of access to a range.
    fn both(&self, range: Range<u64>) -> [Result<()>; 2] {
        let range = || Pages(range.start)..Pages(range.end);
        [
            readable(&self.block, range()),
            self.block.write_zeros(range()),
        ]
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.block.host().cast(), LENGTH) };
    }
}

/// Checks for an error of this kind, about the page at that offset of block `ram`, with these
/// words.
fn assert_names(result: Result<()>, kind: Kind, page: u64, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let offset = format!("block `ram`: the page at offset {:#x} ", page * PAGE_SIZE);
    for part in [offset.as_str(), words] {
        assert!(error.message().contains(part), "{part} in {error}");
    }
}

#[test]
fn memory_that_is_there_is_readable_and_takes_zeros() {
    for made in ALL {
        let area = Area::new(made);
        for result in area.both(3..61) {
            result.unwrap();
        }
        for page in 0..PAGES {
            // SAFETY: inside this test's own mapping.
            let holds = unsafe { area.page(page).read_volatile() };
            assert_eq!(
                holds,
                if (3..61).contains(&page) { 0 } else { 9 },
                "{made:?}"
            );
        }
        for result in area.both(PAGES..PAGES) {
            result.unwrap();
        }
        for result in area.both(PAGES..PAGES + 1) {
            assert_eq!(result.unwrap_err().kind(), Kind::Invalid);
        }
    }
}

#[test]
fn a_page_without_permission_is_named_and_its_neighbours_are_not() {
    for made in ALL {
        let area = Area::new(made);
        area.protect(7, libc::PROT_NONE);
        area.protect(8, libc::PROT_READ);
        let [read, write] = area.both(0..PAGES);
        assert_names(read, Kind::Memory, 7, "does not let it be read");
        assert_names(write, Kind::Memory, 7, "does not let it be written");
        let [read, write] = area.both(8..PAGES);
        read.unwrap();
        assert_names(write, Kind::Memory, 8, "does not let it be written");
        for result in area.both(9..PAGES) {
            result.unwrap();
        }
    }
}

#[test]
fn what_was_cut_off_a_file_is_named_with_what_is_left() {
    for made in [
        Made::Memfd,
        Made::MemfdWithoutDescriptor,
        Made::MemfdPrivate,
    ] {
        let area = Area::new(made);
        let file = area.file.as_ref().unwrap();
        file.set_len(40 * PAGE_SIZE + 1).unwrap();
        let words = if made == Made::MemfdWithoutDescriptor {
            "was it cut"
        } else {
            "has 163841 bytes now"
        };
        for result in area.both(5..PAGES) {
            assert_names(result, Kind::Memory, 41, words);
        }
        for result in area.both(0..41) {
            result.unwrap();
        }
    }
}

#[test]
fn a_poisoned_page_is_named_as_such() {
    for made in [Made::Private, Made::Memfd, Made::MemfdPrivate] {
        let area = Area::new(made);
        let Some(_uffd) = poison(area.page(20), 2 * 4096) else {
            return;
        };
        for result in area.both(0..PAGES) {
            assert_names(result, Kind::Memory, 20, "poisoned");
        }
        for result in area.both(21..22) {
            assert_names(result, Kind::Memory, 21, "poisoned");
        }
        for result in area.both(22..PAGES) {
            result.unwrap();
        }
    }
}

#[test]
fn where_nothing_is_mapped_is_said() {
    let area = Area::new(Made::Private);
    // SAFETY: a page of this test's own mapping, not used after.
    unsafe { libc::munmap(area.page(63).cast(), 4096) };
    for result in area.both(0..PAGES) {
        assert_names(result, Kind::Memory, 63, "nothing is mapped there");
    }
}

#[test]
fn the_pipe_that_asks_where_populating_says_nothing_finds_the_same_pages() {
    for made in ALL {
        let area = Area::new(made);
        let all = || Pages(0)..Pages(PAGES);
        by_reading(&area.block, all()).unwrap();
        area.protect(33, libc::PROT_NONE);
        assert_names(by_reading(&area.block, all()), Kind::Memory, 33, "be read");
        assert_names(
            by_writing(&area.block, all()),
            Kind::Memory,
            33,
            "be written",
        );
        for page in 0..PAGES {
            if page != 33 {
                // SAFETY: inside this test's own mapping.
                let holds = unsafe { area.page(page).read_volatile() };
                assert_eq!(holds, if page < 33 { 0 } else { 9 });
            }
        }
        by_reading(&area.block, Pages(34)..Pages(PAGES)).unwrap();
        by_writing(&area.block, Pages(34)..Pages(PAGES)).unwrap();
        area.protect(33, libc::PROT_READ);
        assert_names(
            by_writing(&area.block, all()),
            Kind::Memory,
            33,
            "be written",
        );
    }
}

#[test]
fn a_file_that_was_cut_has_no_holes_there() {
    let area = Area::new(Made::Memfd);
    let file = area.file.as_ref().unwrap();
    let whole = Pages(0)..Pages(PAGES);
    file_reaches(&area.block, &whole, Access::Write).unwrap();
    file.set_len(8 * PAGE_SIZE).unwrap();
    for (access, words) in [(Access::Write, "be written: "), (Access::Read, "be read: ")] {
        let error = file_reaches(&area.block, &whole, access);
        assert_names(error, Kind::Memory, 8, words);
    }
    let mut contents = crate::memory::contents::Contents::new();
    for range in [whole, Pages(8)..Pages(9), Pages(7)..Pages(PAGES)] {
        let error = contents.split(&area.block, range, |_, _| ());
        assert_names(error, Kind::Memory, 8, "has 32768 bytes now");
    }
    let mut pages = 0;
    contents
        .split(&area.block, Pages(0)..Pages(8), |run, _| {
            pages += run.end.0 - run.start.0
        })
        .unwrap();
    assert_eq!(pages, 8);
}

#[test]
fn a_descriptor_of_another_file_than_what_is_mapped_is_refused() {
    let memfd = || {
        // SAFETY: makes a descriptor, which is ours.
        let file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"mapped".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(2 * LENGTH as u64).unwrap();
        file
    };
    let (mapped, other) = (memfd(), memfd());
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), libc::O_PATH);
    let by_path = options
        .open(format!("/proc/self/fd/{}", mapped.as_raw_fd()))
        .unwrap();
    let shared = Some((&mapped, libc::MAP_SHARED));
    let private = Some((&mapped, libc::MAP_PRIVATE));
    let page = PAGE_SIZE;
    // Protection and flags of the mapping, its offset, the descriptor, the offset that the VMM
    // tells, and the error.
    let cases = [
        (None, 0, &mapped, 0, Some("private memory without a file")),
        (shared, 0, &other, 0, Some("another file")),
        (private, 0, &other, 0, Some("another file")),
        (shared, page, &mapped, 0, Some("from offset 4096")),
        (private, page, &mapped, 0, Some("from offset 4096")),
        (shared, 0, &mapped, page, Some("from offset 0")),
        (shared, page, &mapped, page, None),
        (private, page, &mapped, page, None),
        (shared, 0, &by_path, 0, Some("open for its path only")),
    ];
    for (number, (mapping, offset, descriptor, told, wanted)) in cases.into_iter().enumerate() {
        let (flags, fd) = match mapping {
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Some((file, flags)) => (flags, file.as_raw_fd()),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                access,
                flags,
                fd,
                offset as i64,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        let added = Memory::new().unwrap().add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory.
            host: unsafe { crate::memory::HostMemory::new(at.cast()) },
            length: Bytes(LENGTH as u64),
            page_size: Bytes(PAGE_SIZE),
            file: Some(BackingFile {
                fd: descriptor.try_clone().unwrap().into(),
                offset: told,
            }),
            flags: BlockFlags::default(),
        });
        match (added, wanted) {
            (Ok(_), None) => {}
            (Err(error), Some(words)) => {
                assert_eq!(error.kind(), Kind::Invalid, "{number}: {error}");
                assert!(error.message().contains(words), "{number}: {error}");
            }
            (added, _) => panic!("{number}: {added:?}"),
        }
        // SAFETY: mapped above, and nobody uses it any more.
        unsafe { libc::munmap(at, LENGTH) };
    }
}
