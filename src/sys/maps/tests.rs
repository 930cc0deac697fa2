//! The kernel's answers about single mappings, compared with its text.

use super::*;
use std::os::fd::{AsFd, FromRawFd};

const LENGTH: usize = 4 * 4096;

struct Mapped(*mut u8);

impl Mapped {
    fn new(flags: libc::c_int, fd: libc::c_int, offset: i64) -> Mapped {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, rw, flags, fd, offset) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapped(at.cast())
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping.
        unsafe { libc::munmap(self.0.cast(), LENGTH) };
    }
}

fn memfd(name: &std::ffi::CStr) -> File {
    // SAFETY: the kernel returns a new descriptor.
    let file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.set_len(16 * 4096).unwrap();
    file
}

/// Both answers about the page at an address. (Only that page is compared, because a neighbour that
/// another test maps meanwhile may enlarge the area.)
fn both(address: u64) -> Option<Area> {
    let page = |area: Area| {
        assert!(area.start <= address && address + 4096 <= area.end);
        Area {
            start: address,
            end: address + 4096,
            offset: match area.inode {
                0 => 0,
                _ => area.offset + (address - area.start),
            },
            ..area
        }
    };
    let asked = Maps::open().unwrap().at(address).unwrap().map(page);
    let asked = asked.map(|area| {
        assert!(area.page_size == 4096 || area.page_size == 0);
        Area {
            page_size: 0,
            ..area
        }
    });
    let mut read = None;
    by_text(address..address + 1, |area| {
        read = Some(page(area));
        false
    })
    .unwrap();
    assert_eq!(asked, read, "the text says otherwise");
    asked
}

#[test]
fn a_question_and_the_text_agree_on_what_a_mapping_is() {
    // A name that is not UTF-8 and ends its line early.
    let file = memfd(c"brant \xff\n x");
    let fd = file.as_raw_fd();
    use std::os::unix::fs::MetadataExt;
    let inode = file.metadata().unwrap().ino();
    let shared = Mapped::new(libc::MAP_SHARED, fd, 8192);
    let area = both(shared.address() + 4096).unwrap();
    assert!(area.shared && area.inode == inode && !area.huge_anonymous);
    assert_eq!(area.offset, 8192 + 4096);
    let copied = Mapped::new(libc::MAP_PRIVATE, fd, 0);
    let area = both(copied.address()).unwrap();
    assert!(!area.shared && area.inode == inode);
    let anonymous = Mapped::new(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
    let area = both(anonymous.address()).unwrap();
    assert!(!area.shared && area.inode == 0 && !area.huge_anonymous);
    assert_eq!(both(4096), None);
}

#[test]
fn mappings_of_a_range_come_in_order_and_end_at_a_hole() {
    let mapped = Mapped::new(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
    let start = mapped.address();
    // SAFETY: this test's own mapping: its second page becomes one that is mapped otherwise.
    unsafe { libc::mprotect(mapped.0.add(4096).cast(), 4096, libc::PROT_READ) };
    let queries = Maps::open().unwrap();
    let text = Maps {
        queries: false,
        ..Maps::open().unwrap()
    };
    for maps in [&queries, &text] {
        let mut ends = Vec::new();
        let range = start..start + LENGTH as u64;
        maps.over(range.clone(), |area| {
            ends.push(area.end.min(range.end) - start);
            true
        })
        .unwrap();
        assert_eq!(ends, [4096, 2 * 4096, 4 * 4096]);
        let mut seen = 0;
        maps.over(range, |_| {
            seen += 1;
            false
        })
        .unwrap();
        assert_eq!(seen, 1);
        // The lowest addresses are never mapped.
        maps.over(4096..8192, |area| panic!("{area:?}")).unwrap();
    }
}

#[test]
fn a_maps_line_is_read_by_its_fields_whatever_the_path_holds() {
    let area = parse(b"7f00-7f10 rw-s 00002000 00:1f 1037 /memfd:a b \xff (deleted)").unwrap();
    assert_eq!(
        (area.range(), area.shared, area.device, area.inode),
        (0x7f00..0x7f10, true, 0x1f, 1037)
    );
    assert_eq!(area.offset, 0x2000);
    let area = parse(b"7f00-7f10 rw-p 00000000 00:00 0 ").unwrap();
    assert!(!area.shared && area.inode == 0);
    let huge = b"7f00-7f10 rw-p 00000000 00:10 55       /anon_hugepage (deleted)";
    assert!(parse(huge).unwrap().huge_anonymous);
    let shared = b"7f00-7f10 rw-s 00000000 00:10 55       /anon_hugepage (deleted)";
    assert!(!parse(shared).unwrap().huge_anonymous);
    let other = b"7f00-7f10 rw-p 00000000 00:10 55       /x/anon_hugepage (deleted)";
    assert!(!parse(other).unwrap().huge_anonymous);
    for other in ["garbage", "VmFlags: rd wr um", "Size:    4 kB", "-", ""] {
        assert_eq!(parse(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn flags_say_whether_somebody_serves_missing_pages() {
    assert!(is_served(b" rd wr mr um me"));
    assert!(is_served(b" rd ui"));
    assert!(!is_served(b" rd wr mr mw me uw"));
}

#[test]
fn the_file_behind_a_mapping_is_the_one_that_was_mapped_and_devices_are_not_opened() {
    use std::os::unix::fs::MetadataExt;
    let maps = Maps::open().unwrap();
    let file = memfd(c"brant-test");
    let mapped = Mapped::new(libc::MAP_SHARED, file.as_raw_fd(), 0);
    let area = maps.at(mapped.address()).unwrap().unwrap();
    let Some(fd) = file_behind(&area, |_| true) else {
        eprintln!("skipped: no right to open /proc/self/map_files");
        return;
    };
    let found = File::from(fd.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(
        found.metadata().unwrap().ino(),
        file.metadata().unwrap().ino()
    );
    assert!(file_behind(&area, |_| false).is_none());
}
