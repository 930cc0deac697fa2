//! The mappings of this process, one at a time, by address.
//!
//! `PROCMAP_QUERY` (Linux 6.11) answers for one address. Older kernels have only the whole text of
//! `/proc/self/maps`, which grows with the number of mappings. `/proc/self/smaps` also tells which
//! of them a userfaultfd watches, but walks all page tables for the rest of its contents. What a
//! mapping is *good for* is decided in the layers above.

use super::fd::is_write_only;
use super::file::{self, Reader};
use super::kernel;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const PROCMAP_QUERY: u64 = 0xc068_6611;
const QUERY_SHARED: u64 = 8;

/// The kernel's name for private memory of huge pages without a file of the VMM's.
const HUGE_ANONYMOUS: &[u8] = b"/anon_hugepage (deleted)";

/// `struct procmap_query`.
#[repr(C)]
#[derive(Debug, Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Whether writes go to the file, or to other processes that share it.
    pub shared: bool,
    /// Device that the file is on, as `major << 32 | minor`; 0 without a file.
    pub device: u64,
    /// Inode number of the file; 0 without one.
    pub inode: u64,
    /// The offset in the file of the first byte.
    pub offset: u64,
    /// Bytes in one of its pages; 0 if only the text could be read.
    pub page_size: u64,
    /// Private memory of huge pages that has no file of the VMM's. Its inode is one of the kernel's
    /// own, which no other code can reach.
    pub huge_anonymous: bool,
}

impl Area {
    /// The mapping's addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Whether it is a private mapping of a file of the VMM's: what is not written there is the file's.
    pub fn is_private_file(&self) -> bool {
        !self.shared && self.inode != 0 && !self.huge_anonymous
    }
}

/// An open `/proc/self/maps`, for the process that opened it.
#[derive(Debug)]
pub struct Maps {
    file: File,
    /// Whether the kernel answers for single addresses.
    queries: bool,
}

impl Maps {
    /// Opens `/proc/self/maps`.
    pub fn open() -> Result<Maps> {
        let file =
            file::open("/proc/self/maps").map_err(|e| Error::os("opening /proc/self/maps", e))?;
        let mut maps = Maps {
            file,
            queries: true,
        };
        // No healthy process maps address 0, so another answer than "nothing mapped" comes from an
        // old kernel.
        maps.queries = !matches!(
            maps.query(0, None),
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT))
        );
        Ok(maps)
    }

    /// Behaves as on a kernel without `PROCMAP_QUERY`.
    #[cfg(test)]
    pub(crate) fn text_only(mut self) -> Maps {
        self.queries = false;
        self
    }

    /// The mapping at an address; `None` if nothing is mapped there.
    pub fn at(&self, address: u64) -> Result<Option<Area>> {
        let mut found = None;
        self.over(address..address.saturating_add(1), |area| {
            found = Some(area);
            false
        })?;
        Ok(found)
    }

    /// The addresses of the mapping at an address. `None` if nothing is mapped there, and on
    /// kernels that have only the text: reading that costs more than the answer is worth.
    pub fn bounds(&self, address: u64) -> Option<Range<u64>> {
        if !self.queries {
            return None;
        }
        let found = self.query(address, None).ok()?;
        Some(found.vma_start..found.vma_end)
    }

    /// Calls `each` with the mappings that overlap a range of addresses, in order. Ends at an
    /// address where nothing is mapped, and when `each` returns false.
    pub fn over(&self, range: Range<u64>, mut each: impl FnMut(Area) -> bool) -> Result<()> {
        if !self.queries {
            return by_text(range, each);
        }
        let mut at = range.start;
        while at < range.end {
            let Some(area) = self.ask(at)? else {
                return Ok(());
            };
            at = area.end;
            if !each(area) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn ask(&self, address: u64) -> Result<Option<Area>> {
        let found = match self.query(address, None) {
            Ok(found) => found,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(Error::os(format_args!("PROCMAP_QUERY of {address:#x}"), e)),
        };
        let shared = found.vma_flags & QUERY_SHARED != 0;
        let huge_anonymous = !shared && found.inode != 0 && {
            let mut name = [0u8; 64];
            // A longer name is an error, and cannot be the one looked for.
            self.query(address, Some(&mut name)).is_ok_and(|q| {
                let length = (q.vma_name_size as usize).saturating_sub(1);
                q.inode == found.inode && name.get(..length) == Some(HUGE_ANONYMOUS)
            })
        };
        Ok(Some(Area {
            start: found.vma_start,
            end: found.vma_end,
            shared,
            device: u64::from(found.dev_major) << 32 | u64::from(found.dev_minor),
            inode: found.inode,
            offset: found.vma_offset,
            page_size: found.vma_page_size,
            huge_anonymous,
        }))
    }

    fn query(&self, address: u64, name: Option<&mut [u8]>) -> std::io::Result<ProcmapQuery> {
        let (at, length) = name.map_or((0, 0), |name| (name.as_mut_ptr() as u64, name.len()));
        let mut query = ProcmapQuery {
            size: std::mem::size_of::<ProcmapQuery>() as u64,
            query_addr: address,
            vma_name_addr: at,
            vma_name_size: length as u32,
            ..ProcmapQuery::default()
        };
        // SAFETY: the kernel writes the structure, and at most `vma_name_size` bytes at
        // `vma_name_addr`, which is the caller's slice. Both outlive the call.
        let result =
            unsafe { kernel::ioctl(self.file.as_raw_fd(), PROCMAP_QUERY as _, &mut query) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(query)
    }
}

/// [`Maps::over`] from the text, for kernels before 6.11.
fn by_text(range: Range<u64>, mut each: impl FnMut(Area) -> bool) -> Result<()> {
    let mut at = range.start;
    lines("/proc/self/maps", |line| {
        let Some(area) = parse(line).filter(|area| area.end > at) else {
            return true;
        };
        if area.start > at || at >= range.end {
            return false;
        }
        at = area.end;
        each(area)
    })
}

/// The mappings in a range of addresses for which a userfaultfd gets faults on missing pages, or on
/// pages that are only in the page cache. Walks all page tables of the process, so it is for
/// kernels where nothing else answers.
pub fn served_by_userfault(range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut area = None;
    lines("/proc/self/smaps", |line| {
        if let Some(next) = parse(line) {
            area = Some(next.range());
            return next.start < range.end;
        }
        if let (Some(area), Some(flags)) = (&area, line.strip_prefix(b"VmFlags:")) {
            if area.end > range.start && is_served(flags) {
                found.push(area.clone());
            }
        }
        true
    })?;
    Ok(found)
}

/// Calls `each` with every mapping of this process, and with the VMM's advice on transparent huge pages
/// there: to use them, not to, or none. Walks all page tables of the process.
///
/// # Errors
/// Those of `each`, and when smaps cannot be read.
pub fn huge_page_advice(
    mut each: impl FnMut(Range<u64>, Option<bool>) -> Result<()>,
) -> Result<()> {
    let mut area = None;
    let mut result = Ok(());
    lines("/proc/self/smaps", |line| {
        if let Some(next) = parse(line) {
            area = Some(next.range());
        } else if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let has = |wanted: &[u8]| {
                flags
                    .split(|c| c.is_ascii_whitespace())
                    .any(|f| f == wanted)
            };
            let advice = match (has(b"hg"), has(b"nh")) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            };
            if let Some(area) = area.take() {
                result = each(area, advice);
            }
        }
        result.is_ok()
    })?;
    result
}

/// Whether the system uses transparent huge pages wherever it can, unasked.
pub fn huge_pages_always() -> bool {
    let mut always = false;
    let _ = lines("/sys/kernel/mm/transparent_hugepage/enabled", |line| {
        always |= line.windows(8).any(|word| word == b"[always]");
        true
    });
    always
}

/// `um`: missing pages. `ui`: pages that are only in the page cache.
fn is_served(flags: &[u8]) -> bool {
    flags
        .split(|c| c.is_ascii_whitespace())
        .any(|flag| matches!(flag, b"um" | b"ui"))
}

/// Calls `each` with each line of a file until `each` returns false. Names in a line need not be
/// UTF-8.
fn lines(path: &str, mut each: impl FnMut(&[u8]) -> bool) -> Result<()> {
    let read = |e| Error::os(format_args!("reading {path}"), e);
    let mut reader = BufReader::with_capacity(1 << 16, Reader(file::open(path).map_err(read)?));
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(read)? == 0 {
            return Ok(());
        }
        if !each(line.trim_ascii_end()) {
            return Ok(());
        }
    }
}

/// One line of `/proc/self/maps`: `from-to perms offset dev inode [path]`. `None` for the other
/// lines of smaps.
fn parse(line: &[u8]) -> Option<Area> {
    let mut fields = line.splitn(6, |c| *c == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let shared = field()?.as_bytes().get(3) == Some(&b's');
    let offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let device = hex(major)? << 32 | hex(minor)?;
    let inode = field()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    Some(Area {
        start,
        end,
        shared,
        device,
        inode,
        offset,
        page_size: 0,
        huge_anonymous: !shared && name == HUGE_ANONYMOUS,
    })
}

/// A descriptor of the file behind a mapping for which the VMM gave none. `None` without the right
/// to ask (`CAP_CHECKPOINT_RESTORE`), and for anything but a regular file that `accept` accepts.
pub fn file_behind(area: &Area, accept: impl Fn(BorrowedFd<'_>) -> bool) -> Option<OwnedFd> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;
    let link = format!("/proc/self/map_files/{:x}-{:x}", area.start, area.end);
    // Opening a device can have any effect. A path descriptor has none yet.
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC);
    let path = kernel::open(&options, link.as_ref()).ok()?;
    if !accept(path.as_fd()) {
        return None;
    }
    let file = file::open(format!("/proc/self/fd/{}", path.as_raw_fd())).ok()?;
    Some(file.into())
}

/// What `/proc/self/maps` shows of memory that is mapped from a descriptor's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// This file, which need not have the device that `fstat` tells.
    File {
        /// Device that the file is on, as `major << 32 | minor`.
        device: u64,
        /// Inode number of the file.
        inode: u64,
    },
    /// No memory can be mapped from it: a pipe, a socket, a directory, `/dev/null`.
    NoMemory,
    /// The descriptor is open for writing only.
    WriteOnly,
    /// The mapping could not be made or looked at: without /proc, or without address space.
    Unknown,
}

/// What `/proc/self/maps` shows of memory that is mapped from this descriptor's file. Maps a page of
/// the file and unmaps it again. The page is not touched, and takes no memory. `maps` is `None` where
/// `/proc/self/maps` cannot be opened.
pub fn shown_for(maps: Option<&Maps>, fd: BorrowedFd<'_>) -> Shown {
    // A mapping of huge pages is as long as one of them, and is unmapped with that length only.
    let length = super::mem::page_size_of(fd);
    // SAFETY: a new mapping, where the kernel likes, which nobody can access.
    let at = unsafe {
        kernel::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            fd.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::ENODEV) => Shown::NoMemory,
            Some(libc::EACCES) if is_write_only(fd) => Shown::WriteOnly,
            _ => Shown::Unknown,
        };
    }
    let area = maps.map(|maps| maps.at(at as u64));
    // SAFETY: the mapping made above.
    unsafe { kernel::munmap(at, length) };
    match area {
        Some(Ok(Some(area))) => Shown::File {
            device: area.device,
            inode: area.inode,
        },
        _ => Shown::Unknown,
    }
}

#[cfg(test)]
mod tests;
