//! Memory of every kind that a guest can have, a pool of huge pages for as long as a test runs, and
//! a filler that serves missing pages through a userfaultfd of its own.
//!
//! Only the kernel's interfaces are used here, and nothing of brant: the library's unit tests use
//! this file too.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

pub const PAGE: usize = 4096;
pub const HUGE: usize = 2 << 20;

/// The kinds of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Anonymous,
    SharedAnonymous,
    Memfd,
    /// A memfd whose descriptor brant does not get.
    MemfdUntold,
    MemfdPrivate,
    MemfdPrivateUntold,
    /// A file on a tmpfs that is mounted somewhere.
    Tmpfs,
    TmpfsUntold,
    /// A file on a disk.
    Disk,
    Huge,
    HugeMemfd,
    HugeMemfdPrivate,
}

pub const SMALL: [Made; 9] = [
    Made::Anonymous,
    Made::SharedAnonymous,
    Made::Memfd,
    Made::MemfdUntold,
    Made::MemfdPrivate,
    Made::MemfdPrivateUntold,
    Made::Tmpfs,
    Made::TmpfsUntold,
    Made::Disk,
];

pub const HUGE_KINDS: [Made; 3] = [Made::Huge, Made::HugeMemfd, Made::HugeMemfdPrivate];

impl Made {
    pub fn is_huge(self) -> bool {
        HUGE_KINDS.contains(&self)
    }

    pub fn is_shared(self) -> bool {
        !matches!(
            self,
            Made::Anonymous
                | Made::MemfdPrivate
                | Made::MemfdPrivateUntold
                | Made::Huge
                | Made::HugeMemfdPrivate
        )
    }

    /// Whether brant gets the descriptor.
    pub fn is_told(self) -> bool {
        matches!(
            self,
            Made::Memfd
                | Made::MemfdPrivate
                | Made::Tmpfs
                | Made::Disk
                | Made::HugeMemfd
                | Made::HugeMemfdPrivate
        )
    }

    pub fn page_size(self) -> usize {
        if self.is_huge() {
            HUGE
        } else {
            PAGE
        }
    }
}

/// A mapping, unmapped when dropped.
pub struct Area {
    pub made: Made,
    pub at: *mut u8,
    pub length: usize,
    /// The file that it is mapped from.
    pub file: Option<File>,
    /// Bytes at both ends that are mapped with it. Without them an adjacent mapping of the same
    /// kind would look like a part of this one.
    apart: usize,
}

// SAFETY: an address; accesses are volatile.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping, that nobody uses any more.
        unsafe {
            let from = self.at.sub(self.apart);
            libc::munmap(from.cast(), self.length + 2 * self.apart)
        };
    }
}

fn memfd(flags: libc::c_uint) -> Option<File> {
    // SAFETY: a new descriptor from a static name.
    let fd = unsafe { libc::memfd_create(c"kinds".as_ptr(), libc::MFD_CLOEXEC | flags) };
    // SAFETY: just made, and nobody else owns it.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })
}

fn unlinked(directory: PathBuf) -> Option<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("brant-test-{}-{number}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .ok()?;
    let _ = std::fs::remove_file(path);
    Some(file)
}

impl Area {
    /// Maps `length` bytes; `None` if this machine has no such memory.
    pub fn new(made: Made, length: usize) -> Option<Area> {
        let file = match made {
            Made::Anonymous | Made::SharedAnonymous | Made::Huge => None,
            Made::Tmpfs | Made::TmpfsUntold => Some(unlinked("/dev/shm".into())?),
            Made::Disk => Some(unlinked(std::env::temp_dir())?),
            Made::HugeMemfd | Made::HugeMemfdPrivate => Some(memfd(libc::MFD_HUGETLB)?),
            _ => Some(memfd(0)?),
        };
        if let Some(file) = &file {
            file.set_len(length as u64).ok()?;
        }
        let mut flags = libc::MAP_NORESERVE
            | if made.is_shared() {
                libc::MAP_SHARED
            } else {
                libc::MAP_PRIVATE
            };
        if file.is_none() {
            flags |= libc::MAP_ANONYMOUS;
        }
        if made == Made::Huge {
            flags |= libc::MAP_HUGETLB;
        }
        let fd = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let apart = if made.is_huge() { 0 } else { PAGE };
        // SAFETY: a new mapping at an address of the kernel's choice, and one over the inside of it.
        let at = unsafe {
            let mut over = std::ptr::null_mut();
            if apart > 0 {
                let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                let whole = length + 2 * apart;
                let all = libc::mmap(over, whole, libc::PROT_NONE, nothing, -1, 0);
                assert_ne!(all, libc::MAP_FAILED);
                over = all.add(apart);
                flags |= libc::MAP_FIXED;
            }
            libc::mmap(over, length, rw, flags, fd, 0)
        };
        if at == libc::MAP_FAILED {
            return None;
        }
        if !made.is_huge() {
            // A transparent huge page would be touched as a whole.
            // SAFETY: advice about this object's own mapping.
            unsafe { libc::madvise(at, length, libc::MADV_NOHUGEPAGE) };
        }
        Some(Area {
            made,
            at: at.cast(),
            length,
            file,
            apart,
        })
    }

    pub fn pages(&self) -> usize {
        self.length / PAGE
    }

    pub fn page(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages());
        self.at.wrapping_add(page * PAGE)
    }

    pub fn write(&self, page: usize, value: u8) {
        // SAFETY: inside the mapping.
        unsafe { self.page(page).write_volatile(value) };
    }

    pub fn read(&self, page: usize) -> u8 {
        // SAFETY: inside the mapping.
        unsafe { self.page(page).read_volatile() }
    }

    /// Writes past the mapping: to its file, through another mapping (hugetlbfs has no `write`).
    pub fn write_file(&self, page: usize, value: u8) {
        let file = self.file.as_ref().expect("a file");
        let at = page * PAGE / self.made.page_size() * self.made.page_size();
        let length = self.made.page_size();
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, gone again before this returns.
        unsafe {
            let other = libc::mmap(
                std::ptr::null_mut(),
                length,
                rw,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                at as libc::off_t,
            );
            assert_ne!(other, libc::MAP_FAILED);
            let to = other.cast::<u8>().add(page * PAGE - at);
            to.write_volatile(value);
            libc::munmap(other, length);
        }
    }

    /// How many bytes of memory it takes.
    pub fn backed(&self) -> usize {
        use std::os::unix::fs::MetadataExt;
        let file = self.file.as_ref().map_or(0, |file| {
            // The copies of a private mapping are not included.
            file.metadata().unwrap().blocks() as usize * 512
        });
        let mine = match (self.made.is_shared(), self.made) {
            (true, Made::SharedAnonymous) | (false, _) => smaps(self.at as u64, self.made),
            _ => 0,
        };
        file + mine
    }
}

/// How many bytes smaps counts as this process' own in the mappings at an address (for huge pages,
/// all that is mapped).
fn smaps(address: u64, made: Made) -> usize {
    let text = std::fs::read("/proc/self/smaps").unwrap();
    let text = String::from_utf8_lossy(&text);
    let wanted: &[&str] = match made {
        Made::Huge | Made::HugeMemfdPrivate => &["Private_Hugetlb:"],
        Made::SharedAnonymous => &["Rss:"],
        _ => &["Anonymous:"],
    };
    let mut inside = false;
    let mut kilobytes = 0;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|r| r.split_once('-'));
        let hex = |s| u64::from_str_radix(s, 16).ok();
        if let Some((Some(from), Some(to))) = range.map(|(a, b)| (hex(a), hex(b))) {
            inside = (from..to).contains(&address);
        } else if inside && wanted.iter().any(|w| line.starts_with(w)) {
            let number = line.split_ascii_whitespace().nth(1).unwrap();
            kilobytes += number.parse::<usize>().unwrap();
        }
    }
    kilobytes << 10
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages that are reserved for a test, and released after it. One test at a time, on the whole
/// machine.
pub struct HugePool {
    before: String,
    _turn: File,
}

impl HugePool {
    /// A pool of exactly `pages` free huge pages of 2 MiB; `None`, with a message on stderr, if
    /// that is not possible.
    pub fn new(pages: usize) -> Option<HugePool> {
        let skip = |why: String| eprintln!("skipped: {pages} huge pages cannot be had: {why}");
        let turn = File::create(std::env::temp_dir().join("brant-huge-pages.lock"));
        let turn = turn.map_err(|e| skip(e.to_string())).ok()?;
        // SAFETY: waits for a lock on a descriptor of this function's.
        unsafe { libc::flock(turn.as_raw_fd(), libc::LOCK_EX) };
        let before = std::fs::read_to_string(POOL);
        let before = before.map_err(|e| skip(e.to_string())).ok()?;
        let pool = HugePool {
            before,
            _turn: turn,
        };
        if let Err(e) = std::fs::write(POOL, pages.to_string()) {
            skip(e.to_string());
            return None;
        }
        let free = HugePool::free();
        if free != pages {
            skip(format!("{free} are free"));
            return None;
        }
        Some(pool)
    }

    /// How many huge pages are free.
    pub fn free() -> usize {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("HugePages_Free:"));
        line.map_or(0, |n| n.trim().parse().unwrap())
    }
}

impl Drop for HugePool {
    fn drop(&mut self) {
        let _ = std::fs::write(POOL, self.before.trim());
    }
}

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_CONTINUE: u64 = 0xc020_aa07;
pub const MISSING: u64 = 1;
pub const MINOR: u64 = 4;
pub const USER_MODE_ONLY: libc::c_int = 1;

/// A thread that serves missing pages: page `n` gets `n + 1` in each of its 64-bit words.
pub struct Filler {
    fd: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// The contents of page `page` after it was filled.
pub fn filling(page: usize) -> u64 {
    page as u64 + 1
}

impl Filler {
    /// Serves missing pages of `pages` of `area`. `flags` are those of the system call. `None`,
    /// with a message on stderr, if that is not possible.
    pub fn new(area: &Area, pages: Range<usize>, flags: libc::c_int) -> Option<Filler> {
        Filler::by(area, pages, flags, MISSING)
    }

    /// Serves pages of a file that are in the page cache and not mapped (minor faults): what the file
    /// holds counts only once he has written it anew, which he does when a page is touched.
    pub fn minor(area: &Area, pages: Range<usize>) -> Option<Filler> {
        Filler::by(area, pages, 0, MINOR)
    }

    fn by(area: &Area, pages: Range<usize>, flags: libc::c_int, mode: u64) -> Option<Filler> {
        // SAFETY: takes an integer; a new descriptor.
        let fd = unsafe {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | flags;
            libc::syscall(libc::SYS_userfaultfd, flags)
        };
        if fd < 0 {
            let e = std::io::Error::last_os_error();
            eprintln!("skipped: userfaultfd: {e}");
            return None;
        }
        // SAFETY: just made, and nobody else owns it.
        let fd = Arc::new(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
        // Missing pages of huge and of shared memory; minor faults of shared memory.
        let minor = if mode == MINOR { 1 << 10 } else { 0 };
        let mut api = [0xaau64, 1 << 4 | 1 << 5 | minor, 0];
        // SAFETY: the kernel fills three words.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut api) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let start = area.at as u64 + (pages.start * PAGE) as u64;
        let length = (pages.len() * PAGE) as u64;
        let mut register = [start, length, mode, 0];
        // SAFETY: the kernel reads and fills four words.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER as _, &mut register) };
        if result != 0 {
            let e = std::io::Error::last_os_error();
            eprintln!("skipped: {:?} cannot be registered: {e}", area.made);
            return None;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let (base, page_size) = (area.at as u64, area.made.page_size());
        let thread = {
            let (fd, stop, served) = (Arc::clone(&fd), Arc::clone(&stop), Arc::clone(&served));
            let file = area.file.as_ref().filter(|_| mode == MINOR);
            let file = file.map(|file| file.try_clone().unwrap());
            std::thread::spawn(move || serve(&fd, base, page_size, file, &stop, &served))
        };
        Some(Filler {
            fd,
            stop,
            served,
            thread: Some(thread),
        })
    }

    /// How many faults it has served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    fd: &OwnedFd,
    base: u64,
    page_size: usize,
    file: Option<File>,
    stop: &AtomicBool,
    served: &AtomicU64,
) {
    while !stop.load(Ordering::SeqCst) {
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure.
        unsafe { libc::poll(&mut poll, 1, 10) };
        let mut message = [0u64; 4];
        // SAFETY: 32 bytes of ours.
        let got = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
        if got != 32 {
            continue;
        }
        assert_eq!(message[0] & 0xff, 0x12, "a page fault");
        let address = message[2] / page_size as u64 * page_size as u64;
        let first = ((address - base) / PAGE as u64) as usize;
        let mut contents = Vec::new();
        for page in first..first + page_size / PAGE {
            contents.resize(contents.len() + PAGE / 8, filling(page));
        }
        if let Some(file) = &file {
            let bytes: Vec<u8> = contents
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            file.write_all_at(&bytes, (first * PAGE) as u64).unwrap();
            let mut go_on = [address, page_size as u64, 0, 0];
            // SAFETY: the kernel maps a page for which a thread waits.
            unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_CONTINUE as _, &mut go_on) };
            served.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let mut copy = [address, contents.as_ptr() as u64, page_size as u64, 0, 0];
        // SAFETY: the kernel reads the contents and fills a page for which a thread waits. If the
        // page came meanwhile the call fails, and the page is there.
        unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_COPY as _, &mut copy) };
        served.fetch_add(1, Ordering::SeqCst);
    }
}

const UFFDIO_POISON: u64 = 0xc020_aa08;
const POISON: u64 = 1 << 14;

/// Loses the contents of pages, as the hardware would (`UFFDIO_POISON`), until the returned value
/// is dropped. `None`, with a message on stderr, if this machine or this memory cannot do so.
pub fn poison(at: *mut u8, length: usize) -> Option<OwnedFd> {
    // SAFETY: a new descriptor, then ioctls that read and fill local words, for memory of the
    // test's own.
    unsafe {
        let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
        let fd = libc::syscall(libc::SYS_userfaultfd, flags);
        if fd < 0 {
            eprintln!("skipped: no userfaultfd");
            return None;
        }
        let fd = OwnedFd::from_raw_fd(fd as libc::c_int);
        let ask = |request: u64, argument: &mut [u64]| {
            libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr())
        };
        let (start, bytes) = (at as u64, length as u64);
        if ask(UFFDIO_API, &mut [0xaa, POISON, 0]) != 0 {
            eprintln!("skipped: no UFFDIO_POISON");
            return None;
        }
        if ask(UFFDIO_REGISTER, &mut [start, bytes, MISSING, 0]) != 0 {
            eprintln!("skipped: no userfaultfd for this memory");
            return None;
        }
        // An existing entry would not be replaced.
        assert_eq!(libc::madvise(at.cast(), length, libc::MADV_DONTNEED), 0);
        if ask(UFFDIO_POISON, &mut [start, bytes, 0, 0]) != 0 {
            eprintln!("skipped: a guard page there cannot be poisoned");
            return None;
        }
        Some(fd)
    }
}

/// A protection key that forbids all access to the thread that made it, and to threads that it
/// starts.
pub struct Key(libc::c_long);

impl Key {
    /// A new key; `None`, with a message on stderr, if the processor has no keys.
    pub fn new() -> Option<Key> {
        const DISABLE_ACCESS: libc::c_long = 1;
        // SAFETY: takes integers.
        let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, DISABLE_ACCESS) };
        if key < 0 {
            eprintln!("skipped: no protection keys");
        }
        (key >= 0).then_some(Key(key))
    }

    /// Puts the key on readable and writable memory, or removes it.
    pub fn put(&self, at: *mut u8, length: usize, on: bool) {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let key = if on { self.0 } else { 0 };
        // SAFETY: memory of the test's own.
        let done = unsafe { libc::syscall(libc::SYS_pkey_mprotect, at, length, access, key) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: takes an integer.
        unsafe { libc::syscall(libc::SYS_pkey_free, self.0) };
    }
}

/// The differences between two contents of pages, for a message.
pub fn differing(pages: &BTreeMap<usize, (u64, u64)>) -> String {
    let shown: Vec<String> = pages
        .iter()
        .take(5)
        .map(|(page, (is, should))| format!("page {page} holds {is:#x}, not {should:#x}"))
        .collect();
    format!("{} pages: {}", pages.len(), shown.join("; "))
}
