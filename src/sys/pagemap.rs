//! `/proc/self/pagemap`: which pages of this process's memory were ever touched.
//!
//! `PAGEMAP_SCAN` (6.7) reads the page tables of the calling process. So its answer is complete for
//! private anonymous memory only: a page of shared memory can be in the page cache without being in
//! these page tables.

use super::maps::Maps;
use super::{file, kernel};
use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::os::fd::AsRawFd;

const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// The mapping is registered with a userfaultfd in asynchronous mode.
pub const WPALLOWED: u64 = 1;
/// The page is in the page tables.
pub const PRESENT: u64 = 8;
/// The page is one of a file, or of shared memory.
pub const FILE: u64 = 4;
/// The page is in swap.
pub const SWAPPED: u64 = 16;
/// The page is the kernel's page of zeros: it was read and never written.
pub const PFNZERO: u64 = 32;
/// The page was written since it was last write-protected (asynchronous userfaultfd).
pub const WRITTEN: u64 = 2;

/// Write-protect matching pages in the same walk.
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
pub struct PageRegion {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Those of the reported categories that hold.
    pub categories: u64,
}

/// What to look for. A page matches if `(categories ^ inverted)` has all bits of `all` and, unless
/// `any` is 0, one bit of `any`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// [`WP_MATCHING`], [`CHECK_WPASYNC`].
    pub flags: u64,
    /// Categories that are inverted first.
    pub inverted: u64,
    /// Categories that must all hold.
    pub all: u64,
    /// Categories of which one must hold.
    pub any: u64,
    /// Categories to report. Regions are cut where these differ.
    pub report: u64,
}

/// An open `/proc/self/pagemap`.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it. [`Kind::Unsupported`] if the kernel has no `PAGEMAP_SCAN`.
    pub fn open() -> Result<Self> {
        let file = file::open("/proc/self/pagemap")
            .map_err(|e| Error::os("opening /proc/self/pagemap", e))?;
        let pagemap = Pagemap(file);
        // An empty range is valid on every kernel that has the ioctl.
        let page = 4096;
        match pagemap.scan(
            page..page,
            &Query {
                all: PRESENT,
                report: PRESENT,
                ..Query::default()
            },
            &mut [PageRegion::default()],
        ) {
            Ok(_) => Ok(pagemap),
            Err(e) => Err(Error::new(
                Kind::Unsupported,
                format!("this kernel has no PAGEMAP_SCAN (Linux 6.7 has): {e}"),
            )),
        }
    }

    /// Scans `range` (addresses, page-aligned) into `regions`. Returns how many were filled, and
    /// the address where the walk ended. If that is before `range.end`, go on from there.
    pub fn scan(
        &self,
        range: std::ops::Range<u64>,
        query: &Query,
        regions: &mut [PageRegion],
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

    /// The first page in `range` that matches.
    pub fn first(&self, range: std::ops::Range<u64>, query: &Query) -> Result<Option<u64>> {
        let mut region = PageRegion::default();
        let mut arg = ScanArg {
            size: std::mem::size_of::<ScanArg>() as u64,
            flags: query.flags,
            start: range.start,
            end: range.end,
            vec: std::ptr::from_mut(&mut region) as u64,
            vec_len: 1,
            max_pages: 1,
            category_inverted: query.inverted,
            category_mask: query.all,
            category_anyof_mask: query.any,
            return_mask: query.report,
            ..ScanArg::default()
        };
        // SAFETY: `vec` and `vec_len` are the one region.
        let found = unsafe { self.ask(&mut arg) }?;
        Ok((found > 0).then_some(region.start))
    }

    /// Write-protects matching pages in `range` and reports nothing ([`WP_MATCHING`] is added to
    /// the flags). Returns the address where the walk ended.
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

    /// Makes the call.
    ///
    /// # Safety
    /// `vec` is the address of `vec_len` writable regions.
    unsafe fn ask(&self, arg: &mut ScanArg) -> Result<usize> {
        // SAFETY: the kernel writes at most `vec_len` regions to `vec`, by the caller's
        // promise, and `walk_end` into the structure; both outlive the call.
        let found = unsafe { kernel::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN as _, arg) };
        if found < 0 {
            return Err(Error::last_os("PAGEMAP_SCAN"));
        }
        Ok(found as usize)
    }
}

/// The kind of mapping behind a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Private memory with no file behind it.
    PrivateAnonymous,
    /// Shared memory of one file or memfd throughout, in the file's order.
    Shared {
        /// Device that the file is on, as `major << 32 | minor`.
        device: u64,
        /// Inode number of the file.
        inode: u64,
        /// The offset in the file of the first byte.
        offset: u64,
    },
    /// The same, but private: writes do not go to the file.
    PrivateFile {
        /// Device that the file is on, as `major << 32 | minor`.
        device: u64,
        /// Inode number of the file.
        inode: u64,
        /// The offset in the file of the first byte.
        offset: u64,
    },
    /// Of several kinds, or not mapped throughout.
    Other,
}

/// The kind of mapping behind all of `length` bytes at `start`.
pub fn mapping_of(maps: &Maps, start: u64, length: u64) -> Result<Mapping> {
    let end = start.saturating_add(length);
    let mut at = start;
    let mut kind: Option<Mapping> = None;
    maps.over(start..end, |area| {
        let (device, inode) = (area.device, area.inode);
        // The offset that `start` would have by this piece: it is equal for all pieces of one
        // mapping.
        let offset = area.offset.wrapping_add(start).wrapping_sub(area.start);
        let this = match (area.shared, inode) {
            (true, 0) => Mapping::Other,
            (false, 0) => Mapping::PrivateAnonymous,
            (true, _) => Mapping::Shared {
                device,
                inode,
                offset,
            },
            (false, _) => Mapping::PrivateFile {
                device,
                inode,
                offset,
            },
        };
        at = area.end;
        let same = kind.is_none_or(|kind| kind == this);
        kind = Some(if same { this } else { Mapping::Other });
        same
    })?;
    // Mappings that end before `end` do not cover the range.
    Ok(kind.filter(|_| at >= end).unwrap_or(Mapping::Other))
}
