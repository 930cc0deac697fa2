//! Whether a run of pages can be read, found by one question a run, if its pages are present in our
//! page tables.
//!
//! [`access::readable`] has the kernel read each page first. That takes 30 to 130 ns for a page of
//! 4 KiB, which was a tenth of a migration's processor time. A walk over page tables
//! (`PAGEMAP_SCAN`) takes 2 ns, and was often made already, to find holes.
//!
//! A load from mapped memory raises a signal for one of three reasons:
//!
//! 1. *The page is not there, and the kernel cannot bring it.* It is poisoned (by the hardware, or
//!    by `UFFDIO_POISON`), a guard page, in a swap that cannot be read, or cut off its file, or
//!    there is no memory for it. `PAGEMAP_SCAN` calls none of these PRESENT: the first three are
//!    markers in place of a page, which it calls SWAPPED, and the others have no entry. (Cutting a
//!    file also removes entries beyond its new end, those of private copies included.)
//! 2. *The mapping forbids it* (`PROT_NONE`). The entries can be PRESENT all the same.
//! 3. *A protection key forbids it* to this thread. The entries are PRESENT, and `PROCMAP_QUERY`
//!    calls the mapping readable.
//!
//! The second and the third reason hold for a whole mapping, and `MADV_POPULATE_READ` finds both.
//! So a run can be read if all its entries are PRESENT, and if one page of each of its mappings can
//! be read. `PROCMAP_QUERY` only tells where a mapping ends. Two more kinds of present page cost a
//! fault but raise no signal: one that waits for NUMA balancing, and one that a userfaultfd
//! protects from writes.
//!
//! The scan comes first, then the mappings, then the read, all within one call of
//! [`super::contents`]. A call about many runs scans for some of them at a time, and remembers the
//! last mapping. Nothing is remembered between calls. So memory can change between question and
//! read only as it can with [`access::readable`], where that is documented.
//!
//! In every other case each page is asked about: a run with an entry that is not PRESENT, a kernel
//! before 6.11, no /proc, a mapping of a device (`PAGEMAP_SCAN` skips it).

use super::access;
use super::block::Block;
use crate::error::Result;
use crate::sys::maps::Maps;
use crate::sys::mem;
use crate::sys::pagemap::{PageRegion, Pagemap, Query, PRESENT};
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;

/// What is known of pages' entries in our page tables. The order is from the worst to the best news
/// for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entries {
    /// At least one is not PRESENT.
    Absent,
    /// They were not looked at.
    Unknown,
    /// All are PRESENT.
    Present,
}

/// For runs of up to this many pages with unknown entries, asking about each page costs less than
/// the questions here.
const SHORT: u64 = 8;

/// Asks whether pages can be read. Used for one call only, because it remembers a mapping.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    maps: Option<&'a Maps>,
    pagemap: Option<&'a Pagemap>,
    /// The addresses of the last mapping of which a page could be read.
    mapping: &'a mut Range<u64>,
}

impl<'a> Reading<'a> {
    /// `mapping` is none at the beginning of a call of [`super::contents`].
    pub(super) fn new(
        maps: Option<&'a Maps>,
        pagemap: Option<&'a Pagemap>,
        mapping: &'a mut Range<u64>,
    ) -> Self {
        Reading {
            maps,
            pagemap,
            mapping,
        }
    }

    /// After `Ok` a load from these pages of `block` raises no signal, unless they break meanwhile.
    /// The errors are those of [`access::readable`].
    pub(super) fn check(
        &mut self,
        block: &Block,
        range: Range<Pages>,
        entries: Entries,
    ) -> Result<()> {
        if self.in_one_look(block, &range, entries) {
            return Ok(());
        }
        access::readable(block, range)
    }

    /// Whether the questions here are enough, and their answers allow the read.
    fn in_one_look(&mut self, block: &Block, range: &Range<Pages>, entries: Entries) -> bool {
        if range.start >= range.end || range.end > block.pages() {
            return false;
        }
        let host = block.host() as u64;
        let addresses = host + range.start.bytes().0..host + range.end.bytes().0;
        let present = match entries {
            Entries::Absent => false,
            Entries::Unknown if range.end.0 - range.start.0 <= SHORT => false,
            Entries::Unknown => self.are_present(&addresses),
            Entries::Present => true,
        };
        present && self.mappings_let(addresses)
    }

    /// Whether the entries of all pages are PRESENT, so that one region covers them. (Finding no
    /// entry that is *not* PRESENT would prove less, because the scan skips some mappings.)
    fn are_present(&self, addresses: &Range<u64>) -> bool {
        let query = Query {
            all: PRESENT,
            report: PRESENT,
            ..Query::default()
        };
        let mut region = [PageRegion::default()];
        let found = match self.pagemap {
            Some(pagemap) => pagemap.scan(addresses.clone(), &query, &mut region),
            None => return false,
        };
        let [region] = region;
        matches!(found, Ok((1, _)))
            && region.start <= addresses.start
            && region.end >= addresses.end
    }

    /// Whether the mappings let this thread read, tried with one present page of each.
    fn mappings_let(&mut self, addresses: Range<u64>) -> bool {
        let Some(maps) = self.maps else {
            return false;
        };
        let mut at = addresses.start;
        while at < addresses.end {
            if !self.mapping.contains(&at) {
                let Some(mapping) = maps.bounds(at) else {
                    return false;
                };
                if mem::populate_read(at as *const u8, PAGE_SIZE as usize).is_err() {
                    return false;
                }
                *self.mapping = mapping;
            }
            at = self.mapping.end;
        }
        true
    }
}

#[cfg(test)]
mod tests;
