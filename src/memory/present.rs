//! Whether a run of pages can be read, asked once a run: for pages that are present in our page
//! tables.
//!
//! [`access::readable`] has the kernel read each page first: 30 to 130 ns for one of 4 KiB, which
//! was a tenth of a migration's processor time. A walk over page tables (`PAGEMAP_SCAN`) costs
//! 2 ns, and often was made already, to find out what is empty.
//!
//! A load from mapped memory is a signal for one of three reasons:
//!
//! 1. *The page is not there, and the kernel cannot bring it.* It is poisoned (by the hardware, or
//!    by `UFFDIO_POISON`), a guard page, in a swap that cannot be read, cut off its file, or there
//!    is no memory for it. None of these is an entry that `PAGEMAP_SCAN` calls PRESENT: the
//!    first three are markers in place of a page, which it calls SWAPPED, and the others have no
//!    entry. (Cutting a file takes away entries beyond its new end, those of private copies too.)
//! 2. *The mapping forbids it* (`PROT_NONE`). Entries are PRESENT all the same.
//! 3. *A protection key forbids it* to this thread. Entries are PRESENT, and `PROCMAP_QUERY` calls
//!    the mapping readable.
//!
//! So a run can be read if all its entries are PRESENT, and one page of each mapping that it lies
//! in can be: the second and the third reason hold for a mapping as a whole, and
//! `MADV_POPULATE_READ` finds both. `PROCMAP_QUERY` only says where a mapping ends. Two more kinds
//! of present page cost a fault and no signal: one that waits for NUMA balancing, and one that a
//! userfaultfd protects from writes.
//!
//! The scan comes first, the mappings after it, then the read, all in one call of
//! [`super::contents`]. Nothing is remembered from one call to the next, so what may change between
//! question and read is what may change with [`access::readable`] too. It is documented there.
//!
//! Where anything is not as described, each page is asked about: a run with an entry that is not
//! PRESENT, a kernel before 6.11, no /proc, a mapping of a device (`PAGEMAP_SCAN` passes it over).

use super::access;
use super::block::Block;
use crate::error::Result;
use crate::sys::maps::Maps;
use crate::sys::mem;
use crate::sys::pagemap::{PageRegion, Pagemap, Query, PRESENT};
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;

/// What is known of the entries of pages in our page tables, from little to much for who wants to
/// read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entries {
    /// One at least is not PRESENT.
    Absent,
    /// Nobody looked.
    Unknown,
    /// All are PRESENT.
    Present,
}

/// For so few pages of which nothing is known the questions here cost more than one about each.
const SHORT: u64 = 8;

/// Asks whether pages can be read. For one call: mappings are remembered.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    maps: Option<&'a Maps>,
    pagemap: Option<&'a Pagemap>,
    /// Addresses of the last mapping of which a page could be read.
    mapping: Range<u64>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(maps: Option<&'a Maps>, pagemap: Option<&'a Pagemap>) -> Self {
        Reading {
            maps,
            pagemap,
            mapping: 0..0,
        }
    }

    /// After `Ok` a load from pages of `block` is no signal, unless they break meanwhile. Errors as
    /// those of [`access::readable`].
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

    /// Whether the questions asked here are enough, and answered well.
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

    /// Whether the entries of all pages are PRESENT: one region covers them. (That no entry is
    /// *not* PRESENT would prove less. The scan says nothing of mappings that it passes over.)
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

    /// Whether the mappings let this thread read, by a page of each that is present.
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
                self.mapping = mapping;
            }
            at = self.mapping.end;
        }
        true
    }
}

#[cfg(test)]
mod tests;
