//! `/proc/self/pagemap` and `/proc/self/maps`: which pages of this process's
//! memory were ever touched, and what kind of mapping holds them.
//!
//! `PAGEMAP_SCAN` (6.7) is per process: it sees the page tables of the caller.
//! So it tells the truth about private anonymous memory only; a page of shared
//! memory can be in the page cache and not in our tables.

use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;

const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// The page is in the page tables.
pub const PRESENT: u64 = 8;
/// The page is in swap.
pub const SWAPPED: u64 = 16;
/// The page is the shared zero page: it was read, never written.
pub const PFNZERO: u64 = 32;
/// The page was written since it was last write-protected (asynchronous userfaultfd).
pub const WRITTEN: u64 = 2;

/// Write-protect what matches, in the same walk.
pub const WP_MATCHING: u64 = 1;
/// Fail with `EPERM` on memory not registered for asynchronous write-protection.
pub const CHECK_WPASYNC: u64 = 2;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`: `start..end` are addresses.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Which of the asked categories hold.
    pub categories: u64,
}

/// What to look for. A page matches when `(categories ^ inverted)` has all of
/// `all` and, if it is not 0, one of `any`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// [`WP_MATCHING`], [`CHECK_WPASYNC`].
    pub flags: u64,
    /// Categories whose sense is turned round first.
    pub inverted: u64,
    /// Categories that must all hold.
    pub all: u64,
    /// Categories of which one must hold.
    pub any: u64,
    /// Categories reported (regions are cut where these differ).
    pub report: u64,
}

/// An open `/proc/self/pagemap`.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it; [`Kind::Unsupported`] where the kernel has no `PAGEMAP_SCAN`.
    pub fn open() -> Result<Self> {
        let file = File::open("/proc/self/pagemap")
            .map_err(|e| Error::os("opening /proc/self/pagemap", e))?;
        let pagemap = Pagemap(file);
        // An empty range is a valid question everywhere the ioctl exists.
        let page = 4096;
        match pagemap.scan(
            page..page,
            &Query {
                all: PRESENT,
                report: PRESENT,
                ..Query::default()
            },
            &mut [Region::default()],
        ) {
            Ok(_) => Ok(pagemap),
            Err(e) => Err(Error::new(
                Kind::Unsupported,
                format!("this kernel has no PAGEMAP_SCAN (Linux 6.7 has): {e}"),
            )),
        }
    }

    /// Scans `range` (addresses, page-aligned) into `regions`: how many were
    /// filled, and the address where the walk ended. Short of `range.end`, go on from there.
    pub fn scan(
        &self,
        range: std::ops::Range<u64>,
        query: &Query,
        regions: &mut [Region],
    ) -> Result<(usize, u64)> {
        let mut arg = ScanArg {
            size: std::mem::size_of::<ScanArg>() as u64,
            flags: query.flags,
            start: range.start,
            end: range.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: query.inverted,
            category_mask: query.all,
            category_anyof_mask: query.any,
            return_mask: query.report,
            ..ScanArg::default()
        };
        // SAFETY: `vec` and `vec_len` are the slice, which is borrowed for writing.
        let found = unsafe { self.ask(&mut arg) }?;
        Ok((found, arg.walk_end))
    }

    /// Write-protects what matches in `range` and reports nothing ([`WP_MATCHING`] is added
    /// to the flags): the address where the walk ended.
    pub fn protect(&self, range: std::ops::Range<u64>, query: &Query) -> Result<u64> {
        let mut arg = ScanArg {
            size: std::mem::size_of::<ScanArg>() as u64,
            flags: query.flags | WP_MATCHING,
            start: range.start,
            end: range.end,
            category_inverted: query.inverted,
            category_mask: query.all,
            category_anyof_mask: query.any,
            return_mask: query.report,
            ..ScanArg::default()
        };
        // SAFETY: there is no vector.
        unsafe { self.ask(&mut arg) }?;
        Ok(arg.walk_end)
    }

    /// The call itself.
    ///
    /// # Safety
    /// `vec` is the address of `vec_len` writable regions.
    unsafe fn ask(&self, arg: &mut ScanArg) -> Result<usize> {
        // SAFETY: the kernel writes at most `vec_len` regions to `vec`, by the caller's
        // promise, and `walk_end` into the structure; both outlive the call.
        let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN as _, arg) };
        if found < 0 {
            return Err(Error::last_os("PAGEMAP_SCAN"));
        }
        Ok(found as usize)
    }
}

/// What a stretch of address space is mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Private memory with no file behind it.
    PrivateAnonymous,
    /// Shared with one file or memfd all through, in its order.
    Shared {
        /// Device that the file is on, as `major << 32 | minor`.
        device: u64,
        /// Inode number of the file.
        inode: u64,
        /// Where in the file the first byte lies.
        offset: u64,
    },
    /// Private to a file, of several kinds, or not mapped all through.
    Other,
}

/// What `length` bytes at `start` are mapped to, all of them.
pub fn mapping_of(start: u64, length: u64) -> Result<Mapping> {
    let file =
        File::open("/proc/self/maps").map_err(|e| Error::os("opening /proc/self/maps", e))?;
    let end = start.saturating_add(length);
    let mut at = start;
    let mut kind: Option<Mapping> = None;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::os("reading /proc/self/maps", e))?;
        if read == 0 {
            break;
        }
        // A file's name is bytes, not text; it comes last, and nothing here asks for it.
        let Some((from, to, this)) = parse_line(&String::from_utf8_lossy(&line)) else {
            continue;
        };
        if to <= at {
            continue;
        }
        if from > at {
            return Ok(Mapping::Other);
        }
        // As this piece would have it at `start`: then all pieces of one mapping are equal.
        let this = match this {
            Mapping::Shared {
                device,
                inode,
                offset,
            } => Mapping::Shared {
                device,
                inode,
                offset: offset.wrapping_add(start).wrapping_sub(from),
            },
            other => other,
        };
        match kind {
            None => kind = Some(this),
            Some(k) if k == this => {}
            Some(_) => return Ok(Mapping::Other),
        }
        at = to;
        if at >= end {
            return Ok(kind.unwrap_or(Mapping::Other));
        }
    }
    Ok(Mapping::Other)
}

/// One line of `/proc/self/maps`: `from-to perms offset dev inode [path]`.
fn parse_line(line: &str) -> Option<(u64, u64, Mapping)> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let from = u64::from_str_radix(from, 16).ok()?;
    let to = u64::from_str_radix(to, 16).ok()?;
    let shared = fields.next()?.as_bytes().get(3) == Some(&b's');
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device =
        u64::from_str_radix(major, 16).ok()? << 32 | u64::from_str_radix(minor, 16).ok()?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let kind = match (shared, inode) {
        (true, 0) => Mapping::Other,
        (true, inode) => Mapping::Shared {
            device,
            inode,
            offset,
        },
        (false, 0) => Mapping::PrivateAnonymous,
        (false, _) => Mapping::Other,
    };
    Some((from, to, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maps_line_is_read_by_its_fields_whatever_the_path_holds() {
        assert_eq!(
            parse_line("7f00-7f10 rw-s 00002000 00:1f 1037 /memfd:a b (deleted)"),
            Some((
                0x7f00,
                0x7f10,
                Mapping::Shared {
                    device: 0x1f,
                    inode: 1037,
                    offset: 0x2000
                }
            ))
        );
        assert_eq!(
            parse_line("7f00-7f10 rw-p 00000000 00:00 0 "),
            Some((0x7f00, 0x7f10, Mapping::PrivateAnonymous))
        );
        assert_eq!(
            parse_line("7f00-7f10 r-xp 00001000 fe:00 55 /usr/lib/x"),
            Some((0x7f00, 0x7f10, Mapping::Other))
        );
        assert_eq!(parse_line("garbage"), None);
    }
}
