//! What the host says of pages, against what was really done to them.

use super::*;
use crate::memory::{BackingFile, BlockDescription, BlockFlags, Memory};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

const PAGES: u64 = 300;
/// Bytes of the file before the block.
const OFFSET: u64 = 3 * PAGE_SIZE;

struct Area {
    at: *mut u8,
    block: Arc<Block>,
}

impl Area {
    fn new(file: Option<&File>) -> Area {
        let (kind, fd) = match file {
            Some(file) => (libc::MAP_SHARED, std::os::fd::AsRawFd::as_raw_fd(file)),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let offset = if file.is_some() { OFFSET } else { 0 };
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (PAGES * PAGE_SIZE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                kind,
                fd,
                offset as i64,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        // Huge pages would be touched whole.
        // SAFETY: advice about our own mapping.
        unsafe { libc::madvise(at, (PAGES * PAGE_SIZE) as usize, libc::MADV_NOHUGEPAGE) };
        let memory = Memory::new().unwrap();
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
                host: unsafe { crate::memory::HostMemory::new(at.cast()) },
                length: Pages(PAGES).bytes(),
                page_size: Bytes(PAGE_SIZE),
                file: file.map(|file| BackingFile {
                    fd: file.try_clone().unwrap().into(),
                    offset,
                }),
                flags: BlockFlags::default(),
            })
            .unwrap();
        let block = Arc::clone(&memory.map().blocks()[0]);
        Area {
            at: at.cast(),
            block,
        }
    }

    fn page(&self, page: u64) -> *mut u8 {
        self.block.page_address(Pages(page))
    }

    fn write(&self, page: u64) {
        // SAFETY: inside our own mapping.
        unsafe { self.page(page).write_volatile(9) };
    }

    fn read(&self, page: u64) -> u8 {
        // SAFETY: inside our own mapping.
        unsafe { self.page(page).read_volatile() }
    }

    fn touched(&self, view: &HostView, range: Range<u64>) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut last = range.start;
        let pages = Pages(range.start)..Pages(range.end);
        view.touched(&self.block, pages, |run| {
            assert!(run.start.0 >= last && run.end <= Pages(range.end) && run.start < run.end);
            last = run.end.0;
            found.extend(run.start.0..run.end.0);
        })
        .unwrap();
        found
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the block is not used after this.
        unsafe { libc::munmap(self.at.cast(), (PAGES * PAGE_SIZE) as usize) };
    }
}

fn memfd() -> File {
    // SAFETY: the name is a C string; the kernel returns a new descriptor.
    let fd = unsafe { libc::memfd_create(c"brant-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made, and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(OFFSET + PAGES * PAGE_SIZE).unwrap();
    file
}

fn set(pages: &[u64]) -> BTreeSet<u64> {
    pages.iter().copied().collect()
}

#[test]
fn written_pages_of_private_memory_are_touched_and_read_ones_are_not() {
    let (area, view) = (Area::new(None), HostView::new());
    assert_eq!(area.block.backing(), Backing::PrivateAnonymous);
    if !view.sees_holes(&area.block) {
        eprintln!("skipped: this kernel has no PAGEMAP_SCAN");
        return;
    }
    assert_eq!(area.touched(&view, 0..PAGES), set(&[]));
    for page in [0, 1, 63, 64, 150, 299] {
        area.write(page);
    }
    // The shared zero page.
    assert_eq!((area.read(2), area.read(200)), (0, 0));
    assert_eq!(
        area.touched(&view, 0..PAGES),
        set(&[0, 1, 63, 64, 150, 299])
    );
    assert_eq!(area.touched(&view, 1..64), set(&[1, 63]));
    assert_eq!(area.touched(&view, 5..5), set(&[]));
    // More runs than one scan holds.
    for page in (0..PAGES).step_by(2) {
        area.write(page);
    }
    let mut all: BTreeSet<u64> = (0..PAGES).step_by(2).collect();
    all.extend([1, 63, 299]);
    assert_eq!(area.touched(&view, 0..PAGES), all);
    discard(&area.block, Pages(10)..Pages(290)).unwrap();
    all.retain(|p| !(10..290).contains(p));
    assert_eq!(area.touched(&view, 0..PAGES), all);
    assert_eq!((area.read(0), area.read(150)), (9, 0));
}

#[test]
fn pages_of_a_memfd_are_touched_whoever_wrote_them() {
    let (file, view) = (memfd(), HostView::new());
    let area = Area::new(Some(&file));
    assert_eq!(area.block.backing(), Backing::SharedFile);
    // Before and at the block's start in the file, and by another way than the mapping.
    use std::os::unix::fs::FileExt;
    file.write_all_at(&[9], OFFSET - 1).unwrap();
    assert_eq!(area.touched(&view, 0..PAGES), set(&[]));
    file.write_all_at(&[9], OFFSET + 77 * PAGE_SIZE + 5)
        .unwrap();
    area.write(0);
    area.write(299);
    assert_eq!(area.touched(&view, 0..PAGES), set(&[0, 77, 299]));
    assert_eq!(area.touched(&view, 1..299), set(&[77]));
    assert_eq!(area.touched(&view, 78..299), set(&[]));
    discard(&area.block, Pages(0)..Pages(100)).unwrap();
    assert_eq!(area.touched(&view, 0..PAGES), set(&[299]));
    assert_eq!((area.read(0), area.read(299)), (0, 9));
}

#[test]
fn memory_of_an_unknown_kind_is_touched_all_over_and_not_given_back() {
    let file = memfd();
    let view = HostView::new();
    // A shared mapping without its descriptor.
    let mut area = Area::new(Some(&file));
    let memory = Memory::new().unwrap();
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { crate::memory::HostMemory::new(area.at) },
            length: Pages(PAGES).bytes(),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    area.block = Arc::clone(&memory.map().blocks()[0]);
    assert_eq!(area.block.backing(), Backing::Unknown);
    assert!(!view.sees_holes(&area.block));
    assert_eq!(area.touched(&view, 3..9), (3..9).collect());
    let error = discard(&area.block, Pages(0)..Pages(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("`ram`"));
}

#[test]
fn prefaulting_backs_pages_and_keeps_what_they_hold() {
    let (area, view) = (Area::new(None), HostView::new());
    area.write(5);
    prefault(&area.block, Pages(4)..Pages(8)).unwrap();
    assert_eq!((area.read(4), area.read(5)), (0, 9));
    if view.sees_holes(&area.block) {
        assert_eq!(area.touched(&view, 0..PAGES), set(&[4, 5, 6, 7]));
    }
    prefault(&area.block, Pages(PAGES)..Pages(PAGES)).unwrap();
}

#[test]
fn ranges_past_the_end_of_a_block_are_refused_by_name() {
    let (area, view) = (Area::new(None), HostView::new());
    let past = Pages(PAGES - 1)..Pages(PAGES + 1);
    for error in [
        view.touched(&area.block, past.clone(), |_| ()).unwrap_err(),
        discard(&area.block, past.clone()).unwrap_err(),
        prefault(&area.block, past).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains("`ram` has 300 pages"), "{error}");
    }
}

#[test]
fn a_descriptor_of_another_file_than_the_mapped_one_is_refused() {
    let (file, other) = (memfd(), memfd());
    let area = Area::new(Some(&file));
    let error = Memory::new()
        .unwrap()
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { crate::memory::HostMemory::new(area.at) },
            length: Pages(PAGES).bytes(),
            page_size: Bytes(PAGE_SIZE),
            file: Some(BackingFile {
                fd: other.into(),
                offset: OFFSET,
            }),
            flags: BlockFlags::default(),
        })
        .unwrap_err();
    assert!(
        error.message().contains("mapped from another file"),
        "{error}"
    );
}

#[test]
fn a_block_whose_descriptor_or_offset_is_not_what_is_mapped_is_refused() {
    let file = memfd();
    let other = memfd();
    // SAFETY: a new mapping where the kernel likes.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            (PAGES * PAGE_SIZE) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            OFFSET as i64,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    // Two mappings of the same file, one behind the other, are as good as one.
    // SAFETY: inside our own mapping.
    unsafe { libc::mprotect(at, (100 * PAGE_SIZE) as usize, libc::PROT_READ) };
    let add = |fd: &File, offset| {
        Memory::new().unwrap().add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { crate::memory::HostMemory::new(at.cast()) },
            length: Pages(PAGES).bytes(),
            page_size: Bytes(PAGE_SIZE),
            file: Some(BackingFile {
                fd: fd.try_clone().unwrap().into(),
                offset,
            }),
            flags: BlockFlags::default(),
        })
    };
    add(&file, OFFSET).unwrap();
    let error = add(&file, 0).unwrap_err();
    assert!(error.message().contains("offset 12288"), "{error}");
    let error = add(&other, OFFSET).unwrap_err();
    assert!(error.message().contains("another file"), "{error}");
    // SAFETY: our own mapping, not used any more.
    unsafe { libc::munmap(at, (PAGES * PAGE_SIZE) as usize) };
}
