//! Calls on memory: where a file has holes, discarding pages, and letting the kernel make an access
//! first that would otherwise end the process if it failed.

use super::{kernel, pipe};
use crate::error::{Error, Kind, Result};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

const MADV_POPULATE_READ: libc::c_int = 22;
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// The first byte of data at or after `offset`; `None` when only a hole follows.
pub fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> Result<Option<u64>> {
    seek(fd, offset, libc::SEEK_DATA, "SEEK_DATA")
}

/// The first byte of a hole at or after `offset`; the end of the file counts as one. `None` if
/// `offset` lies past the end.
pub fn seek_hole(fd: BorrowedFd<'_>, offset: u64) -> Result<Option<u64>> {
    seek(fd, offset, libc::SEEK_HOLE, "SEEK_HOLE")
}

fn seek(fd: BorrowedFd<'_>, offset: u64, whence: libc::c_int, what: &str) -> Result<Option<u64>> {
    let at = i64::try_from(offset).map_err(|_| {
        Error::new(
            Kind::Invalid,
            format!("{what}: offset {offset} is past 2^63"),
        )
    })?;
    // SAFETY: lseek accesses no memory. It moves the position of a descriptor that only brant uses
    // (`sys::fd::with_own_position`).
    let found = unsafe { kernel::lseek(fd.as_raw_fd(), at, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(Error::os(what, error)),
    }
}

/// Discards private anonymous pages: they read as zero afterwards (`MADV_DONTNEED`).
///
/// # Safety
/// `address..address+length` is page-aligned, and is private anonymous memory of the VMM's that
/// only guest code and brant use.
pub unsafe fn discard_private(address: *mut u8, length: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    let result = unsafe { kernel::madvise(address.cast(), length, libc::MADV_DONTNEED) };
    if result != 0 {
        return Err(Error::last_os("MADV_DONTNEED"));
    }
    Ok(())
}

/// Runs of private anonymous pages that are discarded together: as [`discard_private`] for each, and many
/// in one call where the kernel can do that (`process_madvise` of the process itself, Linux 6.15). Most of
/// the cost of a single page's discard is that of the call: 2.7 us, and 0.4 us together with others.
#[derive(Debug)]
pub struct Discards {
    runs: [libc::iovec; Discards::TOGETHER],
    count: usize,
    /// The kernel takes one at a time.
    alone: bool,
}

impl Default for Discards {
    fn default() -> Self {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Discards {
            runs: [none; Discards::TOGETHER],
            count: 0,
            alone: false,
        }
    }
}

impl Discards {
    /// Runs of one call. The kernel takes 1024.
    const TOGETHER: usize = 512;

    /// Has a run discarded: now, or by a later call.
    ///
    /// # Safety
    /// As for [`discard_private`], until [`Discards::all`] has returned; and no contents that are needed
    /// get there meanwhile.
    pub unsafe fn add(&mut self, address: *mut u8, length: usize) -> Result<()> {
        self.runs[self.count] = libc::iovec {
            iov_base: address.cast(),
            iov_len: length,
        };
        self.count += 1;
        match self.count < Discards::TOGETHER {
            true => Ok(()),
            false => self.all(),
        }
    }

    /// Discards what was added and is left.
    pub fn all(&mut self) -> Result<()> {
        let runs = &self.runs[..std::mem::take(&mut self.count)];
        if runs.len() > 1 && !self.alone {
            let bytes: usize = runs.iter().map(|run| run.iov_len).sum();
            // SAFETY: the promises of `add` for each run; the list outlives the call.
            let done =
                unsafe { kernel::process_madvise(runs.as_ptr(), runs.len(), libc::MADV_DONTNEED) };
            if usize::try_from(done) == Ok(bytes) {
                return Ok(());
            }
            // An older kernel, or a filter that refuses the call. What was discarded is discarded again.
            self.alone = true;
        }
        runs.iter().try_for_each(|run| {
            // SAFETY: the promises of `add`.
            unsafe { discard_private(run.iov_base.cast(), run.iov_len) }
        })
    }
}

/// Drops the entries of shared memory from this process's page tables. Its contents stay in the file
/// (`MADV_DONTNEED`), and the next access is a fault.
///
/// # Safety
/// `address..address+length` is page-aligned, and is a shared mapping of the VMM's.
pub unsafe fn drop_entries(address: *mut u8, length: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { discard_private(address, length) }
}

/// Punches a hole into the file behind shared memory (`MADV_REMOVE`), which need not have a
/// descriptor: the range reads as zero afterwards, in every mapping.
///
/// # Safety
/// `address..address+length` is page-aligned, and is a shared mapping of the VMM's whose contents
/// there nobody needs.
pub unsafe fn remove_shared(address: *mut u8, length: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    if unsafe { kernel::madvise(address.cast(), length, libc::MADV_REMOVE) } != 0 {
        return Err(Error::last_os("MADV_REMOVE"));
    }
    Ok(())
}

/// Forbids every access of memory: each raises SIGSEGV from now on.
///
/// # Safety
/// `address..address+length` is page-aligned memory of the VMM's, and an access there would find
/// something worse than a signal.
pub unsafe fn forbid(address: *mut u8, length: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    if unsafe { kernel::mprotect(address.cast(), length, libc::PROT_NONE) } != 0 {
        return Err(Error::last_os("mprotect"));
    }
    Ok(())
}

/// Maps a file's pages in place of a range of private memory. Writes do not reach the file.
///
/// # Safety
/// The range is mapped, is the caller's to replace, and no reference to it exists.
pub unsafe fn map_file_privately(
    address: *mut u8,
    length: usize,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> Result<()> {
    let Ok(offset) = libc::off_t::try_from(offset) else {
        let what = format!("an offset of {offset} bytes reaches past 2^63");
        return Err(Error::new(Kind::Invalid, what));
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the caller's contract.
    unsafe { map_over(address, length, flags, fd.as_raw_fd(), offset) }
}

/// Maps new private memory, all zero, in place of a range.
///
/// # Safety
/// As for [`map_file_privately`].
pub unsafe fn map_zeros(address: *mut u8, length: usize) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the caller's contract.
    unsafe { map_over(address, length, flags, -1, 0) }
}

/// # Safety
/// As for [`map_file_privately`].
unsafe fn map_over(
    address: *mut u8,
    length: usize,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: libc::off_t,
) -> Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's contract.
    let at = unsafe { kernel::mmap(address.cast(), length, access, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os("mmap"));
    }
    Ok(())
}

/// Punches a hole into a file: the range reads as zero afterwards, in every mapping of it.
pub fn punch_hole(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    let (Ok(at), Ok(len)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(Error::new(
            Kind::Invalid,
            format!("a hole of {length} bytes at {offset} reaches past 2^63"),
        ));
    };
    // SAFETY: changes the file, not our address space.
    let result = unsafe {
        kernel::fallocate(
            fd.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            at,
            len,
        )
    };
    if result != 0 {
        return Err(Error::last_os("FALLOC_FL_PUNCH_HOLE"));
    }
    Ok(())
}

/// Has the kernel fault in pages for reading (`MADV_POPULATE_READ`, 5.14). An error where a read
/// would raise a signal. `EINVAL`: the kernel does not have the call, or the mapping is of a kind
/// (device memory) or has permissions for which the call gives no answer.
///
/// It changes no contents, so any range of addresses is allowed. Do not use it for a hole of a
/// file, which a read allocates.
pub fn populate_read(address: *const u8, length: usize) -> io::Result<()> {
    advise(address, length, MADV_POPULATE_READ)
}

/// [`populate_read`] for writing (`MADV_POPULATE_WRITE`, 5.14): pages are allocated, and their
/// contents kept.
pub fn populate_write(address: *mut u8, length: usize) -> io::Result<()> {
    advise(address, length, MADV_POPULATE_WRITE)
}

/// Asks for huge pages behind memory of brant's own (`MADV_HUGEPAGE`), before it is touched. Nothing
/// comes of it where the kernel has none to give, so there is no error.
pub fn prefer_huge_pages(address: *const u8, length: usize) {
    let _ = advise(address, length, libc::MADV_HUGEPAGE);
}

/// Has the kernel make no transparent huge pages there (`MADV_NOHUGEPAGE`). Kernels without such
/// pages refuse the advice, and need it not.
pub fn forbid_huge_pages(address: *const u8, length: usize) {
    let _ = advise(address, length, libc::MADV_NOHUGEPAGE);
}

fn advise(address: *const u8, length: usize, advice: libc::c_int) -> io::Result<()> {
    loop {
        // SAFETY: the advices passed here fault in pages as an access would, or say how large pages
        // may be. They change neither contents nor addresses.
        let result = unsafe { kernel::madvise(address.cast_mut().cast(), length, advice) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether this kernel has the calls of `populate_read` and `populate_write`.
pub fn can_populate() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    // A range of no pages is valid on every kernel that has the advice.
    *KNOWN.get_or_init(|| populate_read(std::ptr::null(), 0).is_ok())
}

/// Whether anything is mapped at a page (`mincore`).
pub fn is_mapped(page: *const u8) -> bool {
    let mut resident = 0u8;
    // SAFETY: writes one byte for one page, to the place given.
    let result = unsafe { kernel::mincore(page.cast_mut().cast(), 1, &mut resident) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOMEM)
}

/// A pipe through which the kernel reads or writes memory for brant: it answers `EFAULT` where an
/// access of brant's would raise a signal. For memory on which `populate_read` and `populate_write`
/// give no answer.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    /// How many pages one question covers at most.
    pub const PAGES: usize = 256;

    /// A new pipe, empty and closed on exec.
    pub fn new() -> io::Result<Pipe> {
        let (reader, writer) = pipe::pipe(libc::O_NONBLOCK)?;
        Ok(Pipe { reader, writer })
    }

    /// Has the kernel read a byte of each of `pages` pages, at most [`Pipe::PAGES`].
    pub fn reads(&self, first: *const u8, pages: usize) -> io::Result<()> {
        let pages = pages.min(Pipe::PAGES);
        let mut parts = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; Pipe::PAGES];
        for (i, part) in parts.iter_mut().enumerate().take(pages) {
            part.iov_base = first.wrapping_add(i * 4096).cast_mut().cast();
            part.iov_len = 1;
        }
        let writer = self.writer.as_raw_fd();
        // SAFETY: the first `pages` parts; the kernel reads their bytes, or answers EFAULT.
        let put = unsafe { kernel::writev(writer, parts.as_ptr(), pages as libc::c_int) };
        let moved = Pipe::moved(put, pages);
        // Bytes of a partial write must not stay in the pipe for the next question.
        let mut bytes = [0u8; Pipe::PAGES];
        let reader = self.reader.as_raw_fd();
        // SAFETY: a buffer of this function's, of that length.
        let got = unsafe { kernel::read(reader, bytes.as_mut_ptr().cast(), bytes.len()) };
        moved.and_then(|()| Pipe::moved(got, pages))
    }

    /// Writes zeros over `length` bytes of guest memory, at most 4096. After an error the pipe
    /// cannot be used any more.
    ///
    /// # Safety
    /// As for [`Pipe::write`].
    pub unsafe fn zero(&self, address: *mut u8, length: usize) -> io::Result<()> {
        static ZEROS: [u8; 4096] = [0; 4096];
        // SAFETY: the caller's contract.
        unsafe { self.write(address, &ZEROS[..length.min(ZEROS.len())]) }
    }

    /// Writes `bytes`, at most 4096, to memory. After an error the pipe cannot be used any more.
    ///
    /// # Safety
    /// No Rust reference covers the range, and its contents are not needed.
    pub unsafe fn write(&self, address: *mut u8, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len();
        // SAFETY: those bytes.
        let put = unsafe { kernel::write(self.writer.as_raw_fd(), bytes.as_ptr().cast(), length) };
        Pipe::moved(put, length)?;
        // SAFETY: the kernel writes there, by the caller's promise, or answers EFAULT.
        let got = unsafe { kernel::read(self.reader.as_raw_fd(), address.cast(), length) };
        Pipe::moved(got, length)
    }

    fn moved(moved: isize, wanted: usize) -> io::Result<()> {
        match usize::try_from(moved) {
            Ok(moved) if moved == wanted => Ok(()),
            // The kernel wrote some bytes before a fault: the range covers two pages, and the
            // second one failed.
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

/// The length of a regular file in bytes; `None` for any other file (a device has none).
pub fn file_length(fd: BorrowedFd<'_>) -> Result<Option<u64>> {
    let stat = stat(fd)?;
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(regular.then_some(stat.st_size.max(0) as u64))
}

/// Whether the file system of a file has no room left.
pub fn file_system_is_full(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: an all-zero statfs is a valid value of that plain structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    let result = unsafe { kernel::fstatfs(fd.as_raw_fd(), &mut stat) };
    // A file system without a limit reports 0 of 0 blocks.
    result == 0 && stat.f_blocks > 0 && stat.f_bavail == 0
}

fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { kernel::fstat(fd.as_raw_fd(), &mut stat) } != 0 {
        return Err(Error::last_os("fstat of a block's descriptor"));
    }
    Ok(stat)
}

/// The device (as `major << 32 | minor`) and inode number of a descriptor, and whether it is a
/// regular file (a memfd is one).
pub fn inode_of(fd: BorrowedFd<'_>) -> Result<(u64, u64, bool)> {
    let stat = stat(fd)?;
    let device = u64::from(libc::major(stat.st_dev)) << 32 | u64::from(libc::minor(stat.st_dev));
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok((device, stat.st_ino, regular))
}

/// What a file's holes prove about its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// tmpfs (memfd, /dev/shm): holes are exactly the pages that were never written through any
    /// mapping, because the page cache is the file.
    Tmpfs,
    /// hugetlbfs: the same holds, but no call tells where the holes are. `read` finds zeros there,
    /// and allocates nothing.
    Hugetlbfs,
    /// Any other file. Its answer to `SEEK_HOLE` may leave out pages that are in the page cache.
    Other,
}

/// The kind of the file behind a descriptor, which may be a path descriptor.
pub fn file_kind(fd: BorrowedFd<'_>) -> FileKind {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    // SAFETY: an all-zero statfs is a valid value of that plain structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    let result = unsafe { kernel::fstatfs(fd.as_raw_fd(), &mut stat) };
    let regular = inode_of(fd).is_ok_and(|(_, _, regular)| regular);
    match stat.f_type as u64 {
        TMPFS_MAGIC if result == 0 && regular => FileKind::Tmpfs,
        HUGETLBFS_MAGIC if result == 0 && regular => FileKind::Hugetlbfs,
        _ => FileKind::Other,
    }
}

/// The page size in bytes of mappings of a file: that of its huge pages if it is on hugetlbfs, else
/// 4 KiB.
pub fn page_size_of(fd: BorrowedFd<'_>) -> usize {
    match (file_kind(fd), stat(fd)) {
        (FileKind::Hugetlbfs, Ok(stat)) => (stat.st_blksize as usize).max(4096),
        _ => 4096,
    }
}

/// How many pages of a part of a tmpfs file have contents, in memory or in swap (`cachestat`, 6.5).
/// Looks at that part only, whatever lies around it.
pub fn pages_with_contents(fd: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<u64> {
    #[repr(C)]
    struct Part {
        offset: u64,
        length: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let part = Part { offset, length };
    let mut counts = Counts::default();
    // SAFETY: the kernel reads the one structure and fills the other; both outlive the call.
    let result = unsafe { kernel::cachestat(fd.as_raw_fd(), &part, &mut counts) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(counts.cached + counts.evicted)
}

/// Which of `pages` have an ordinary page in this process's page tables, asked in one call
/// (`move_pages` that moves nothing). `found` gets 0 or more for those, and less for every other
/// page: one without an entry, one in swap, the kernel's page of zeros. Touches none of them.
pub fn ordinary_pages(pages: &[*const u8], found: &mut [i32]) -> io::Result<()> {
    let count = pages.len().min(found.len());
    // SAFETY: both slices have room for `count`.
    let asked = unsafe { kernel::move_pages(count as _, pages.as_ptr(), found.as_mut_ptr()) };
    match asked {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Which pages from `address` on are in memory: one byte each, with its lowest bit set if so
/// (`mincore`).
pub fn resident(address: *const u8, pages: &mut [u8]) -> io::Result<()> {
    let length = pages.len() * 4096;
    // SAFETY: writes one byte for each page, for which the slice has room.
    if unsafe { kernel::mincore(address.cast_mut().cast(), length, pages.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether this machine has any swap, or is giving up some at the moment.
pub fn has_swap() -> bool {
    // SAFETY: an all-zero sysinfo is a valid value of that plain structure.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    let result = unsafe { kernel::sysinfo(&mut info) };
    result != 0 || info.totalswap != 0
}

/// The device of memfds and shared anonymous memory: the kernel's own tmpfs, which is mounted
/// nowhere.
pub fn shared_memory_device() -> Result<u64> {
    // SAFETY: takes a string, makes a descriptor.
    let fd = unsafe { kernel::memfd_create(c"brant".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os("memfd_create"));
    }
    // SAFETY: just made, and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    inode_of(fd.as_fd()).map(|(device, _, _)| device)
}

/// Reads all of `buffer` from a file at `offset`.
pub fn read_at(fd: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let at = (offset + done as u64) as libc::off_t;
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`.
        let got =
            unsafe { kernel::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(got) {
            Ok(0) => return Err(Error::new(Kind::Memory, "the file ended before its block")),
            Ok(got) => done += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(Error::os("reading the file behind a block", error));
                }
            }
        }
    }
    Ok(())
}

/// The size of the kernel's base page, in bytes.
pub fn base_page_size() -> u64 {
    // SAFETY: sysconf touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    size.max(0) as u64
}

/// Fills a buffer with random bytes from the kernel.
pub fn random(buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`.
        let got = unsafe { kernel::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        if got < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                continue;
            }
            return Err(Error::os("getrandom", error));
        }
        filled += got as usize;
    }
    Ok(())
}
