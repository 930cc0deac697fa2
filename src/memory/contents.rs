//! The contents of a block's pages: which of them are holes and need not be read, which are zero,
//! which are data. No other file decides this, for sending, receiving or sampling pages.
//!
//! That a page is a hole must be proven: a page with contents that is taken for a hole is lost
//! without a word. What proves it depends on the kind of memory, and is in `ground`. A page without
//! proof is read.
//!
//! Callers restore the protection of a range *before* they ask (clear before copy). Example of the
//! loss otherwise: page 5 is found to be a hole; the guest writes it; its dirty bit is cleared with
//! the rest of the chunk. Every answer comes from questions that are asked during the call. So a
//! write from before the protection came back is seen, and a later one is logged.
//!
//! Reading a page also touches it: it fills a hole of a file, or takes a huge page from the pool.
//! So nothing in this file reads a page to find out whether it is a hole.

use super::access;
use super::block::{Block, BlockId};
use super::ground::{Below, FileAt, Ground, Looks, Tables, Watcher};
use super::hidden_holes::HiddenHoles;
use super::overview::Overview;
use super::page_run::PageRun;
use super::present::{Entries, Reading};
use crate::error::{Error, Kind, Result};
use crate::page::zero;
use crate::sys::mem;
use crate::sys::pagemap::{PageRegion, Pagemap, Query, PFNZERO, PRESENT, SWAPPED, WRITTEN};
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The contents of a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// A hole, known without reading it. It reads as zero.
    Hole,
    /// Zeros, found by reading.
    Zero,
    /// Data.
    Data,
}

/// What is known of one page without touching it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was never written, and reads as zero.
    Empty,
    /// It is not there. A userfaultfd of somebody else's decides what it will hold when it is
    /// touched.
    Absent,
    /// It may have contents.
    Filled,
}

/// Up to this many pages of a file are asked about one by one if the kernel cannot count them.
const ONE_BY_ONE: u64 = 32;
/// Of so many runs ahead the first bytes are fetched.
const FETCHED: usize = 8;
/// How many pages of a file are read in one call.
const AT_ONCE: usize = 16;
/// For how many pages one call asks whether they are resident.
const RESIDENCE: usize = 512;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; PAGE_SIZE as usize]);

/// Tells the contents of pages. Each asking thread has one of its own, which works in the process
/// that made it.
#[derive(Debug)]
pub struct Contents {
    looks: Looks,
    scratch: Scratch,
    /// The answer of one look at many runs. Empty between two calls.
    overview: Overview,
}

/// Buffers and findings that are kept between questions.
#[derive(Default)]
struct Scratch {
    /// Pages that were read from a file.
    pages: Vec<Page>,
    /// This kernel has no `cachestat`.
    counts_nothing: bool,
    /// Part of a file that is known to be data up to its end, for a walk that goes on in it.
    known: Option<(BlockId, Range<u64>)>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch")
            .field("counts_nothing", &self.counts_nothing)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Default for Contents {
    fn default() -> Self {
        Contents::new()
    }
}

impl Contents {
    /// Opens the files through which this kernel is asked. If one cannot be opened, less is proven
    /// and more is read.
    pub fn new() -> Self {
        Contents {
            looks: Looks::new(),
            scratch: Scratch::default(),
            overview: Overview::default(),
        }
    }

    /// [`Contents::new`] for blocks that the caller watches by a userfaultfd, which protects pages
    /// from writes and fills pages that are not there with zeros.
    pub(crate) fn of_watched() -> Self {
        let mut contents = Contents::new();
        contents.looks.watch_ourselves();
        contents
    }

    /// Forgets what was found about mappings. Call it before each batch of pages.
    pub fn refresh(&mut self) {
        self.looks.refresh();
    }

    /// Calls `each` with runs of pages and their contents. The runs come in order and cover
    /// `range`. Holes are not touched. An error if a page that may have contents cannot be read.
    pub fn split(
        &mut self,
        block: &Block,
        range: Range<Pages>,
        mut each: impl FnMut(Range<Pages>, Held),
    ) -> Result<()> {
        self.split_on_ground(block, range, &mut (0..0), &mut each)
    }

    /// [`Contents::split`] for many runs of `block`, in order. Runs that lie near each other share
    /// one look at page tables.
    pub fn split_runs(
        &mut self,
        block: &Block,
        runs: &[PageRun],
        mut each: impl FnMut(PageRun, Held),
    ) -> Result<()> {
        let (mut rest, mut mapping) = (runs, 0..0);
        while !rest.is_empty() {
            let looked = self.look_over(block, rest)?;
            let (these, others) = rest.split_at(looked.max(1));
            let split = these.iter().enumerate().try_for_each(|(i, run)| {
                // What is looked at first of a page is in no cache. The fetches overlap.
                if let Some(soon) = these.get(i + FETCHED) {
                    zero::fetch(block.page_address(soon.first()));
                }
                self.split_on_ground(block, run.range(), &mut mapping, &mut |range, held| {
                    each(run.part(range), held)
                })
            });
            self.overview.forget();
            split?;
            rest = others;
        }
        Ok(())
    }

    /// Looks at page tables for the first of `runs` together. Returns for how many, or 0 where page
    /// tables prove nothing.
    fn look_over(&mut self, block: &Block, runs: &[PageRun]) -> Result<usize> {
        let apart = self.overview.apart(runs.iter().map(PageRun::range));
        let near = match apart {
            0 => Overview::reach(runs.iter().map(PageRun::range)),
            apart => apart,
        };
        let Some(first) = runs.first().filter(|_| near > 0) else {
            return Ok(0);
        };
        let ground = self.looks.at(block, first.first());
        let here = runs[..near].iter();
        let here = here.take_while(|run| run.end() <= ground.end).count();
        let (Some(pagemap), Some(last)) = (self.looks.pagemap(), runs[..here].last()) else {
            return Ok(0);
        };
        if ground.watcher == Watcher::Somebody || ground.below == Below::Unknown {
            return Ok(0);
        }
        if apart > 0 {
            let pages = runs[..here].iter().map(PageRun::range);
            self.overview.look_up(block, pages)?;
            return Ok(here);
        }
        let span = first.first()..last.end();
        self.overview.look(pagemap, block, span)?;
        let covered = runs[..here].iter();
        let covered = covered.take_while(|run| self.overview.covers(&run.range()));
        Ok(covered.count())
    }

    /// `mapping` has addresses of which a page could be read. It is valid within the caller's call
    /// only.
    fn split_on_ground(
        &mut self,
        block: &Block,
        range: Range<Pages>,
        mapping: &mut Range<u64>,
        each: &mut impl FnMut(Range<Pages>, Held),
    ) -> Result<()> {
        self.on_ground(block, range, |this, ground, range| {
            let asked = if ground.watcher == Watcher::Somebody {
                Some(Entries::Unknown)
            } else if this.overview.has_pages(&range) {
                // A present page may have contents, whatever it is a page of.
                Some(Entries::Present)
            } else {
                None
            };
            if let Some(entries) = asked {
                let mut reading = this.looks.reading(mapping);
                return this.read(block, &ground, range, entries, &mut reading, each);
            }
            let mut at = range.start;
            // The pages are read after all questions, because the answers use one descriptor.
            let mut filled = Vec::new();
            this.filled(block, &ground, range.clone(), &mut |run, entries| {
                filled.push((run, entries));
            })?;
            let mut reading = this.looks.reading(mapping);
            for (run, entries) in filled {
                if at < run.start {
                    each(at..run.start, Held::Hole);
                }
                at = run.end;
                this.read(block, &ground, run, entries, &mut reading, each)?;
            }
            if at < range.end {
                each(at..range.end, Held::Hole);
            }
            Ok(())
        })
    }

    /// Calls `filled` with each run of pages of `range` that may have contents, in order. All other
    /// pages of `range` read as zero. No page is touched.
    pub fn touched(
        &mut self,
        block: &Block,
        range: Range<Pages>,
        mut filled: impl FnMut(Range<Pages>),
    ) -> Result<()> {
        self.on_ground(block, range, |this, ground, range| {
            if ground.watcher == Watcher::Somebody {
                filled(range);
                return Ok(());
            }
            this.filled(block, &ground, range, &mut |run, _| filled(run))
        })
    }

    /// An error if a page of `range` that may have contents cannot be read. Asks the questions of
    /// [`Contents::split`], and reads nothing.
    pub fn readable(&mut self, block: &Block, range: Range<Pages>) -> Result<()> {
        self.on_ground(block, range, |this, ground, range| {
            let mut filled = Vec::new();
            this.filled(block, &ground, range, &mut |run, entries| {
                filled.push((run, entries));
            })?;
            let mut mapping = 0..0;
            let mut reading = this.looks.reading(&mut mapping);
            let mut runs = filled.into_iter();
            runs.try_for_each(|(run, entries)| reading.check(block, run, entries))
        })
    }

    /// Whether the next write to some pages of `range` makes the host back them, as a decision of
    /// the kernel alone: no userfaultfd watches the pages, and the memory below them is known.
    /// Touches nothing. `false` if the kernel cannot be asked.
    pub fn wants_backing(&mut self, block: &Block, range: Range<Pages>) -> bool {
        let mut wants = false;
        let asked = self.on_ground(block, range, |this, ground, range| {
            let known = ground.below != Below::Unknown && ground.watcher == Watcher::Nobody;
            let Some(pagemap) = this.looks.pagemap().filter(|_| known) else {
                return Err(Error::new(Kind::Unsupported, "not to be backed ahead"));
            };
            // A page of zeros that a read has mapped is replaced by the first write.
            let query = Query {
                inverted: PFNZERO,
                all: PRESENT | PFNZERO,
                report: PRESENT,
                ..Query::default()
            };
            let host = block.host() as u64;
            let addresses = host + range.start.bytes().0..host + range.end.bytes().0;
            let mut region = [PageRegion::default()];
            let (found, _) = pagemap.scan(addresses.clone(), &query, &mut region)?;
            let [region] = region;
            let backed =
                found == 1 && region.start <= addresses.start && region.end >= addresses.end;
            wants |= !backed;
            Ok(())
        });
        asked.is_ok() && wants
    }

    /// What is known of one page without touching it.
    pub fn see(&mut self, block: &Block, page: Pages) -> Result<Seen> {
        let mut seen = Seen::Empty;
        self.on_ground(block, page..page + Pages(1), |this, ground, range| {
            if ground.watcher == Watcher::Somebody {
                seen = Seen::Absent;
            }
            this.filled(block, &ground, range, &mut |_, _| seen = Seen::Filled)
        })?;
        Ok(seen)
    }

    /// Calls `f` with each part of `range` that is one kind of memory.
    pub(super) fn on_ground(
        &mut self,
        block: &Block,
        range: Range<Pages>,
        mut f: impl FnMut(&mut Self, Ground, Range<Pages>) -> Result<()>,
    ) -> Result<()> {
        if range.end > block.pages() {
            return Err(Error::new(
                Kind::Invalid,
                format!("block `{}` has {} pages", block.name(), block.pages()),
            ));
        }
        let mut at = range.start;
        while at < range.end {
            let ground = self.looks.at(block, at);
            let end = ground.end.min(range.end);
            f(self, ground, at..end)?;
            at = end;
        }
        Ok(())
    }

    /// The descriptor of the file that the memory is mapped from.
    pub(super) fn file<'a>(&'a self, block: &'a Block, at: FileAt) -> Option<BorrowedFd<'a>> {
        self.looks.file(block, at)
    }

    /// Passes on pages that may have contents, whether or not a userfaultfd watches them.
    fn filled(
        &mut self,
        block: &Block,
        ground: &Ground,
        range: Range<Pages>,
        filled: &mut Filled<'_>,
    ) -> Result<()> {
        let file = match ground.below {
            Below::Tmpfs(at) | Below::Hugetlbfs(at) => self.looks.file(block, at),
            _ => None,
        };
        let mut question = Question {
            block,
            ground,
            pagemap: self.looks.pagemap(),
            file,
            hidden_holes: match ground.watcher {
                Watcher::Log => block.hidden_holes(),
                _ => None,
            },
            scratch: &mut self.scratch,
            overview: &self.overview,
        };
        let mut merged = Merged {
            run: range.start..range.start,
            entries: Entries::Present,
            filled,
        };
        question.tables(range, &mut |run, entries| merged.add(run, entries))?;
        merged.end();
        Ok(())
    }

    /// Reads every byte of pages that may have contents.
    fn read(
        &self,
        block: &Block,
        ground: &Ground,
        range: Range<Pages>,
        entries: Entries,
        reading: &mut Reading<'_>,
        each: &mut impl FnMut(Range<Pages>, Held),
    ) -> Result<()> {
        let count = Pages(range.end.0.saturating_sub(range.start.0));
        let slice = block.slice(range.start, count)?;
        // No other place reads guest memory that no question has just covered. So this is where the
        // memory is checked for being readable.
        let readable = reading.check(block, range.clone(), entries);
        if readable.is_err() && ground.watcher == Watcher::Somebody {
            self.have_filled(block, range.clone())?;
            access::readable(block, range.clone())?;
        } else {
            readable?;
        }
        // SAFETY: the pages lie in the block, page-aligned, mapped while `block` is borrowed.
        for run in unsafe { zero::split(slice.ptr_guard().as_ptr(), count.index()) } {
            let first = range.start + Pages(run.start as u64);
            let held = if run.zero { Held::Zero } else { Held::Data };
            each(first..first + Pages(run.len as u64), held);
        }
        Ok(())
    }

    /// Touches pages that are not there, as guest code would. Some userfaultfds serve only faults
    /// of user code (`UFFD_USER_MODE_ONLY`), and the kernel's own read of such a page is refused.
    fn have_filled(&self, block: &Block, range: Range<Pages>) -> Result<()> {
        let Some(pagemap) = self.looks.pagemap() else {
            return Ok(());
        };
        let touch = |absent: Range<Pages>| {
            for page in absent.start.0..absent.end.0 {
                // SAFETY: a page of the block without an entry. This thread waits until its
                // userfaultfd has filled it.
                unsafe { block.page_address(Pages(page)).read_volatile() };
            }
        };
        let mut at = range.start;
        let any = Query {
            any: PRESENT | SWAPPED,
            report: PRESENT | SWAPPED,
            ..Query::default()
        };
        entries(pagemap, block, range.clone(), &any, |run, _| {
            touch(at..run.start);
            at = run.end;
            Ok(())
        })?;
        touch(at..range.end);
        Ok(())
    }
}

/// Takes runs of pages that may have contents, with what is known of their entries.
type Filled<'a> = dyn FnMut(Range<Pages>, Entries) + 'a;

/// Joins adjacent runs. For the joined run, the less that is known of either's entries counts.
struct Merged<'a> {
    run: Range<Pages>,
    entries: Entries,
    filled: &'a mut Filled<'a>,
}

impl Merged<'_> {
    fn add(&mut self, run: Range<Pages>, entries: Entries) {
        if run.start >= run.end {
            return;
        }
        if self.run.end == run.start && self.run.start < self.run.end {
            self.run.end = run.end;
            self.entries = self.entries.min(entries);
            return;
        }
        self.end();
        self.run = run;
        self.entries = entries;
    }

    fn end(&mut self) {
        if self.run.start < self.run.end {
            (self.filled)(self.run.clone(), self.entries);
        }
    }
}

/// A question about pages of one kind of memory.
struct Question<'a> {
    block: &'a Block,
    ground: &'a Ground,
    pagemap: Option<&'a Pagemap>,
    file: Option<BorrowedFd<'a>>,
    hidden_holes: Option<Arc<HiddenHoles>>,
    scratch: &'a mut Scratch,
    overview: &'a Overview,
}

impl Question<'_> {
    /// Asks the page tables, and for pages of which they tell nothing the memory below.
    fn tables(&mut self, range: Range<Pages>, filled: &mut Filled<'_>) -> Result<()> {
        let (block, ground) = (self.block, self.ground);
        let pagemap = match (ground.tables, self.pagemap) {
            (Tables::Silent, _) | (_, None) => {
                return self.below(range, Entries::Unknown, filled);
            }
            (_, Some(pagemap)) => pagemap,
        };
        let private = ground.tables == Tables::Private;
        let swapped = if private { SWAPPED } else { 0 };
        let written = if self.hidden_holes.is_some() {
            WRITTEN
        } else {
            0
        };
        let query = Query {
            any: PRESENT | swapped,
            report: PRESENT | SWAPPED | PFNZERO | written,
            ..Query::default()
        };
        let mut at = range.start;
        let (hidden_holes, overview) = (self.hidden_holes.clone(), self.overview);
        let each = |run: Range<Pages>, is: u64| {
            // A read has mapped the kernel's page of zeros, and nobody has written.
            if is & PFNZERO != 0 && ground.below == Below::Zero {
                return Ok(());
            }
            let here = match is & PRESENT {
                0 => Entries::Absent,
                _ => Entries::Present,
            };
            // The marker of brant's own log looks like a page in swap. If the mark is off, the page
            // was written. If the log has no note of it, the page had contents when it was
            // protected.
            if let Some(hidden_holes) = hidden_holes
                .as_ref()
                .filter(|_| is & (PRESENT | WRITTEN) == 0)
            {
                let mut noted = Vec::new();
                hidden_holes.runs(run.clone(), |run| noted.push(run));
                let mut from = run.start;
                for hidden in noted {
                    self.entry(&mut at, from..hidden.start, here, filled)?;
                    from = hidden.end;
                }
                return self.entry(&mut at, from..run.end, here, filled);
            }
            self.entry(&mut at, run, here, filled)
        };
        if overview.covers(&range) {
            overview.entries(range.clone(), &query, each)?;
        } else {
            entries(pagemap, block, range.clone(), &query, each)?;
        }
        self.below(at..range.end, Entries::Absent, filled)
    }

    /// Takes pages that have an entry, and so may have contents. The pages from `at` up to them
    /// have none.
    fn entry(
        &mut self,
        at: &mut Pages,
        run: Range<Pages>,
        entries: Entries,
        filled: &mut Filled<'_>,
    ) -> Result<()> {
        if run.start < run.end {
            self.below(*at..run.start, Entries::Absent, filled)?;
            *at = run.end;
            filled(run, entries);
        }
        Ok(())
    }

    /// Asks the memory below about pages of which page tables tell nothing, or that have no entry.
    fn below(
        &mut self,
        range: Range<Pages>,
        entries: Entries,
        filled: &mut Filled<'_>,
    ) -> Result<()> {
        if range.start >= range.end {
            return Ok(());
        }
        match (self.ground.below, self.file) {
            (Below::Zero, _) => Ok(()),
            (Below::Tmpfs(at), Some(file)) => self.tmpfs(file, at, range, entries, filled),
            (Below::Hugetlbfs(at), Some(file)) => {
                self.hugetlbfs(file, at, range, &mut |run| filled(run, entries));
                Ok(())
            }
            (Below::Cached, _) => {
                self.cached(range, &mut |run| filled(run, entries));
                Ok(())
            }
            (Below::Unknown | Below::Tmpfs(_) | Below::Hugetlbfs(_), _) => {
                filled(range, entries);
                Ok(())
            }
        }
    }

    /// Asks about a tmpfs file. Counting the pages of a range costs that range alone. Asking where
    /// a hole begins (`SEEK_HOLE`) costs a walk to the end of the data.
    fn tmpfs(
        &mut self,
        file: BorrowedFd<'_>,
        at: FileAt,
        range: Range<Pages>,
        known: Entries,
        filled: &mut Filled<'_>,
    ) -> Result<()> {
        if self.scratch.counts_nothing {
            return self.by_seeking(file, at, range, &mut |run| filled(run, known));
        }
        let pages = range.end - range.start;
        let count = match count(file, at, &range) {
            Ok(count) => count,
            Err(e) => {
                // A process may not ask about some files, and some kernels do not have the call.
                self.scratch.counts_nothing = e.raw_os_error() == Some(libc::ENOSYS);
                return self.by_seeking(file, at, range, &mut |run| filled(run, known));
            }
        };
        if count == 0 {
            return Ok(());
        }
        if count >= pages.0 {
            filled(range, known);
            return Ok(());
        }
        // The range has holes and data. Most of the data is in our page tables as a rule, which
        // tell at once.
        let (Some(pagemap), Tables::Silent) = (self.pagemap, self.ground.tables) else {
            halves(file, at, range, &mut |run| filled(run, known));
            return Ok(());
        };
        let present = Query {
            all: PRESENT,
            report: PRESENT,
            ..Query::default()
        };
        let mut from = range.start;
        entries(pagemap, self.block, range.clone(), &present, |run, _| {
            if from < run.start {
                halves(file, at, from..run.start, &mut |run| {
                    filled(run, Entries::Absent)
                });
            }
            from = run.end;
            filled(run, Entries::Present);
            Ok(())
        })?;
        if from < range.end {
            halves(file, at, from..range.end, &mut |run| {
                filled(run, Entries::Absent)
            });
        }
        Ok(())
    }

    /// Asks about a tmpfs file on a kernel that cannot count pages (before 6.5). A part that is
    /// known to be data is not asked about again. Whether a page is a hole is asked each time,
    /// which costs little.
    fn by_seeking(
        &mut self,
        file: BorrowedFd<'_>,
        at: FileAt,
        range: Range<Pages>,
        filled: &mut dyn FnMut(Range<Pages>),
    ) -> Result<()> {
        let first = at.offset(range.start);
        let page = |offset: u64| range.start + Pages((offset - first) / PAGE_SIZE);
        let end = at.offset(range.end);
        let mut from = first;
        // A walk that begins anew asks anew, because holes may have been punched.
        let mut known = self.scratch.known.take().filter(|(block, known)| {
            *block == self.block.id() && known.start <= first && first < known.end
        });
        while from < end {
            let (data, to) = match &mut known {
                Some((_, known)) if known.contains(&from) => {
                    known.start = from;
                    (from, known.end.min(end))
                }
                _ => {
                    let data = mem::seek_data(file, from)?.unwrap_or(end) & !(PAGE_SIZE - 1);
                    if data >= end {
                        break;
                    }
                    let data = data.max(from);
                    if (end - first) / PAGE_SIZE <= ONE_BY_ONE {
                        (data, data + PAGE_SIZE)
                    } else {
                        let hole = mem::seek_hole(file, data)?.unwrap_or(end);
                        let hole = hole.next_multiple_of(PAGE_SIZE).max(data + PAGE_SIZE);
                        known = Some((self.block.id(), data..hole));
                        (data, hole.min(end))
                    }
                }
            };
            filled(page(data)..page(to));
            from = to;
        }
        self.scratch.known = known;
        Ok(())
    }

    /// Asks about a hugetlbfs file. The file does not tell its holes, but reading *the file* finds
    /// zeros there, and takes no huge page from the pool as reading the mapping would.
    fn hugetlbfs(
        &mut self,
        file: BorrowedFd<'_>,
        at: FileAt,
        range: Range<Pages>,
        filled: &mut dyn FnMut(Range<Pages>),
    ) {
        let pages = &mut self.scratch.pages;
        pages.resize(AT_ONCE, Page([0; PAGE_SIZE as usize]));
        let mut from = range.start;
        while from < range.end {
            let count = ((range.end - from).0 as usize).min(AT_ONCE);
            let to = from + Pages(count as u64);
            let bytes = count * PAGE_SIZE as usize;
            // SAFETY: the pages are initialised bytes without padding, one behind the other.
            let buffer =
                unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), bytes) };
            match mem::read_at(file, at.offset(from), buffer) {
                // SAFETY: the buffer has this many pages, is aligned, and is ours.
                Ok(()) => unsafe { zero::split(buffer.as_ptr(), count) }
                    .filter(|run| !run.zero)
                    .for_each(|run| {
                        let first = from + Pages(run.start as u64);
                        filled(first..first + Pages(run.len as u64));
                    }),
                // The reader of the page will find and report the error.
                Err(_) => filled(from..to),
            }
            from = to;
        }
    }

    /// Asks about shared memory for which brant has no descriptor. A page that is not in the page
    /// cache is in swap or nowhere. A page that is in swap at this moment stays there until the
    /// swap entry is given up, so the second question is asked after the first.
    fn cached(&mut self, range: Range<Pages>, filled: &mut dyn FnMut(Range<Pages>)) {
        let mut from = range.start;
        while from < range.end {
            let count = ((range.end - from).0 as usize).min(RESIDENCE);
            let to = from + Pages(count as u64);
            let mut here = [0u8; RESIDENCE];
            let here = &mut here[..count];
            let asked = mem::resident(self.block.page_address(from), here);
            if asked.is_err() || (here.contains(&0) && mem::has_swap()) {
                filled(from..to);
            } else {
                for (i, _) in here.iter().enumerate().filter(|(_, is)| **is & 1 != 0) {
                    let page = from + Pages(i as u64);
                    filled(page..page + Pages(1));
                }
            }
            from = to;
        }
    }
}

fn count(file: BorrowedFd<'_>, at: FileAt, range: &Range<Pages>) -> std::io::Result<u64> {
    let length = (range.end - range.start).bytes().0;
    mem::pages_with_contents(file, at.offset(range.start), length)
}

/// Finds the holes of a part of a tmpfs file by halving it. Each half is counted by itself: a
/// difference of two counts would not be true at any one moment.
fn halves(
    file: BorrowedFd<'_>,
    at: FileAt,
    range: Range<Pages>,
    filled: &mut dyn FnMut(Range<Pages>),
) {
    let pages = (range.end - range.start).0;
    match count(file, at, &range) {
        Ok(0) => {}
        Ok(count) if count < pages && pages > 1 => {
            let middle = range.start + Pages(pages / 2);
            halves(file, at, range.start..middle, filled);
            halves(file, at, middle..range.end, filled);
        }
        _ => filled(range),
    }
}

/// Calls `each` with each run of pages whose entries match the query, and their categories.
fn entries(
    pagemap: &Pagemap,
    block: &Block,
    range: Range<Pages>,
    query: &Query,
    mut each: impl FnMut(Range<Pages>, u64) -> Result<()>,
) -> Result<()> {
    let base = block.host() as u64;
    let page = |address: u64| Pages((address - base) / PAGE_SIZE);
    let mut at = base + range.start.bytes().0;
    let end = base + range.end.bytes().0;
    let mut regions = [PageRegion::default(); 64];
    while at < end {
        let (found, walked) = pagemap.scan(at..end, query, &mut regions)?;
        for region in &regions[..found] {
            // A huge page is reported as a whole.
            let (start, to) = (region.start.max(at), region.end.min(end));
            if start < to {
                each(page(start)..page(to), region.categories)?;
            }
        }
        if walked <= at {
            return Err(Error::new(
                Kind::Kernel,
                format!("PAGEMAP_SCAN made no progress at {at:#x}"),
            ));
        }
        at = walked;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
