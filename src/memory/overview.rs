//! One look at our page tables for many runs of pages that lie near each other.
//!
//! Example: a batch has every second page of 2 MiB. A question about each page takes 256 system
//! calls, and a third of the time in which the pages are sent. One `PAGEMAP_SCAN` over the whole
//! span is one call. It takes a few nanoseconds for each page, including those between the runs.
//!
//! Pages that lie further apart are looked up one by one, but by one call too (`move_pages`). It
//! tells which pages are there, and proves of no other page what it is: each of those is asked
//! about by itself.
//!
//! An overview is made by one system call, and dropped before [`super::contents`] returns to its
//! caller. So its answer is that of one `PAGEMAP_SCAN` for each run: the call comes after the
//! protection of all the runs was restored, and their pages are read after it.

use super::block::Block;
use crate::error::Result;
use crate::fallible;
use crate::sys::mem;
use crate::sys::pagemap::{PageRegion, Pagemap, Query, PFNZERO, PRESENT, SWAPPED, WRITTEN};
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;

/// How many pages between two runs may be passed over: that costs less than a question of its own.
const NEAR: u64 = 64;
/// A page that is looked up costs as much as so many pages that are passed over.
const LOOKED_UP: u64 = 20;
/// Longer runs are never looked up page by page.
const SHORT: u64 = 8;
/// The most pages of runs for one look. The answer about a page must not be older than the one
/// about the last page of a single long run.
const PAGES_MAX: u64 = 512;
/// The most regions of one answer, which is more than the runs of a batch.
const REGIONS: usize = 512;

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Overview {
    /// The pages that were looked at; empty for none.
    span: Range<u64>,
    /// The regions of pages with an entry, in order, as pages of the block.
    regions: Vec<PageRegion>,
    found: usize,
    /// Room for what is looked up.
    pages: Vec<*const u8>,
    nodes: Vec<i32>,
    /// The kernel, or a filter, lets nobody look up pages.
    refused: bool,
}

// SAFETY: the addresses are numbers to whoever has the overview: only the kernel gets them.
unsafe impl Send for Overview {}

impl Overview {
    /// How many of the first `runs`, pages of one block, are better looked up page by page: short runs
    /// with much between them; 0 where there are fewer than two.
    pub(super) fn apart(&self, runs: impl Iterator<Item = Range<Pages>>) -> usize {
        let (mut count, mut pages) = (0, 0);
        let mut span: Option<Range<Pages>> = None;
        for run in runs {
            let length = (run.end - run.start).0;
            let first = span.as_ref().map_or(run.start, |span| span.start);
            let ascends = span.as_ref().is_none_or(|span| run.start >= span.end);
            if length > SHORT || !ascends || pages + length > PAGES_MAX {
                break;
            }
            pages += length;
            count += 1;
            span = Some(first..run.end);
        }
        let passed = span.map_or(0, |span| (span.end - span.start).0);
        if self.refused || count < 2 || passed <= LOOKED_UP * pages {
            return 0;
        }
        count
    }

    /// Looks up the pages of `runs` of `block`, in order. Nothing is found where the kernel refuses.
    pub(super) fn look_up(
        &mut self,
        block: &Block,
        runs: impl Iterator<Item = Range<Pages>> + Clone,
    ) -> Result<()> {
        self.forget();
        self.pages.clear();
        for page in runs.clone().flat_map(|run| run.start.0..run.end.0) {
            let address = block.page_address(Pages(page)).cast_const();
            fallible::push(&mut self.pages, address, "pages to look up")?;
        }
        let count = self.pages.len();
        fallible::reserve(&mut self.nodes, count, "pages to look up")?;
        self.nodes.clear();
        self.nodes.resize(count, -1);
        self.room()?;
        if mem::ordinary_pages(&self.pages, &mut self.nodes).is_err() {
            self.refused = true;
            return Ok(());
        }
        let pages = runs.flat_map(|run| run.start.0..run.end.0);
        let there = pages.zip(&self.nodes).filter(|(_, node)| **node >= 0);
        for ((page, _), region) in there.zip(&mut self.regions) {
            *region = PageRegion {
                start: page,
                end: page + 1,
                categories: PRESENT,
            };
            self.found += 1;
        }
        Ok(())
    }

    fn room(&mut self) -> Result<()> {
        let missing = REGIONS - self.regions.len();
        fallible::reserve(&mut self.regions, missing, "a look at page tables")?;
        self.regions.resize(REGIONS, PageRegion::default());
        Ok(())
    }

    /// For how many of the first `runs`, pages of one block, one look is made; 0 if the first run
    /// is too long for it.
    pub(super) fn reach(runs: impl Iterator<Item = Range<Pages>>) -> usize {
        let (mut count, mut pages) = (0, 0);
        let mut last: Option<Pages> = None;
        for run in runs {
            pages += (run.end - run.start).0;
            let near = last.is_none_or(|end| run.start >= end && (run.start - end).0 <= NEAR);
            if !near || pages > PAGES_MAX {
                break;
            }
            last = Some(run.end);
            count += 1;
        }
        count
    }

    /// Looks at `span` of `block`. Pages that do not fit into the answer are not covered. If the
    /// kernel refuses, the overview covers nothing.
    pub(super) fn look(
        &mut self,
        pagemap: &Pagemap,
        block: &Block,
        span: Range<Pages>,
    ) -> Result<()> {
        self.forget();
        self.room()?;
        // No more regions than there can be, because the kernel allocates as much memory.
        let most = (span.end - span.start).index().min(REGIONS);
        let query = Query {
            any: PRESENT | SWAPPED,
            report: PRESENT | SWAPPED | PFNZERO | WRITTEN,
            ..Query::default()
        };
        let host = block.host() as u64;
        let addresses = host + span.start.bytes().0..host + span.end.bytes().0;
        let Ok((found, walked)) =
            pagemap.scan(addresses.clone(), &query, &mut self.regions[..most])
        else {
            return Ok(());
        };
        let page =
            |address: u64| (address.clamp(addresses.start, addresses.end) - host) / PAGE_SIZE;
        // A huge page is reported as a whole.
        for region in &mut self.regions[..found] {
            (region.start, region.end) = (page(region.start), page(region.end));
        }
        self.found = found;
        self.span = span.start.0..page(walked);
        Ok(())
    }

    /// Forgets the answer, which is of the past.
    pub(super) fn forget(&mut self) {
        self.span = 0..0;
        self.found = 0;
    }

    /// Whether all of `range` was looked at.
    pub(super) fn covers(&self, range: &Range<Pages>) -> bool {
        self.span.start <= range.start.0 && range.end.0 <= self.span.end
    }

    /// Whether all pages of `range` are PRESENT and none is the kernel's page of zeros.
    pub(super) fn has_pages(&self, range: &Range<Pages>) -> bool {
        let mut at = range.start.0;
        for region in self.over(range) {
            let is = region.categories;
            if region.start > at || is & PRESENT == 0 || is & PFNZERO != 0 {
                return false;
            }
            at = region.end;
        }
        at >= range.end.0
    }

    /// Calls `each` with the runs of pages of `range` whose entries match `query`, in order.
    pub(super) fn entries(
        &self,
        range: Range<Pages>,
        query: &Query,
        mut each: impl FnMut(Range<Pages>, u64) -> Result<()>,
    ) -> Result<()> {
        for region in self.over(&range) {
            let is = region.categories;
            if is & query.all == query.all && (query.any == 0 || is & query.any != 0) {
                let start = Pages(region.start).max(range.start);
                each(start..Pages(region.end).min(range.end), is)?;
            }
        }
        Ok(())
    }

    /// The regions with a page of `range`.
    fn over(&self, range: &Range<Pages>) -> impl Iterator<Item = &PageRegion> {
        let all = &self.regions[..self.found];
        let (start, end) = (range.start.0, range.end.0);
        let first = all.partition_point(|region| region.end <= start);
        all[first..].iter().take_while(move |r| r.start < end)
    }
}

#[cfg(test)]
mod tests;
