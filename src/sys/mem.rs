//! The memory calls: where a file has holes, giving pages back, touching them ahead.

use crate::error::{Error, Kind, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

const MADV_POPULATE_WRITE: libc::c_int = 23;

/// The first byte of data at or after `offset`; `None` when only a hole follows.
pub fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> Result<Option<u64>> {
    seek(fd, offset, libc::SEEK_DATA, "SEEK_DATA")
}

/// The first byte of a hole at or after `offset` (the end of the file is one);
/// `None` when `offset` lies past the end.
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
    // SAFETY: lseek touches no memory. It moves the file position, which nobody
    // uses: guest memory is reached through its mapping.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), at, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(Error::os(what, error)),
    }
}

/// Gives private anonymous pages back: they read as zero afterwards (`MADV_DONTNEED`).
///
/// # Safety
/// `address..address+length` is private anonymous memory of the VMM's that nothing
/// but guest code and brant uses, page-aligned.
pub unsafe fn discard_private(address: *mut u8, length: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::madvise(address.cast(), length, libc::MADV_DONTNEED) };
    if result != 0 {
        return Err(Error::last_os("MADV_DONTNEED"));
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
        libc::fallocate(
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

/// Backs pages with memory ahead of their first write (`MADV_POPULATE_WRITE`, 5.14), contents kept.
///
/// # Safety
/// `address..address+length` is mapped memory of the VMM's, page-aligned.
pub unsafe fn populate(address: *mut u8, length: usize) -> Result<()> {
    // SAFETY: the caller's promise; the call changes no contents.
    let result = unsafe { libc::madvise(address.cast(), length, MADV_POPULATE_WRITE) };
    if result != 0 {
        return Err(Error::last_os("MADV_POPULATE_WRITE"));
    }
    Ok(())
}

/// The device (as `major << 32 | minor`) and inode number behind a descriptor, and whether it is
/// a regular file (a memfd is one).
pub fn inode_of(fd: BorrowedFd<'_>) -> Result<(u64, u64, bool)> {
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) } != 0 {
        return Err(Error::last_os("fstat of a block's descriptor"));
    }
    let device = u64::from(libc::major(stat.st_dev)) << 32 | u64::from(libc::minor(stat.st_dev));
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok((device, stat.st_ino, regular))
}

/// Whether a file's holes are exactly the pages that were never written, through whatever
/// mapping: true of tmpfs (memfd, /dev/shm) and hugetlbfs, whose page cache is the file.
pub fn holes_are_exact(fd: BorrowedFd<'_>) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    // SAFETY: an all-zero statfs is a valid value of that plain structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    let result = unsafe { libc::fstatfs(fd.as_raw_fd(), &mut stat) };
    result == 0 && matches!(stat.f_type as u64, TMPFS_MAGIC | HUGETLBFS_MAGIC)
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
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
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
