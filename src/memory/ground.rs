//! What is mapped at a block's address at this moment, and which proof that a page holds nothing
//! follows from it.
//!
//! A block is an address and a length. The mapping there can change after the VMM has described the
//! block: the VMM registers the memory with a userfaultfd, maps another file over it, or cuts its
//! file off. So nothing is remembered from `add_block`. [`Looks::at`] asks the kernel which mapping
//! holds a page, and keeps the answer until [`Looks::refresh`], which [`super::contents`] calls
//! before each batch.
//!
//! | memory | a page holds nothing when |
//! |---|---|
//! | private, no file (huge pages too) | it has no entry in our page tables |
//! | shared, a tmpfs file | the file has a hole there |
//! | shared, a hugetlbfs file | the file reads as zero there |
//! | private, one of those files | it has no entry, and the file holds nothing there |
//! | shared memory whose file is not known | it is not in the page cache, and there is no swap |
//! | any other; any that a userfaultfd of somebody else's watches | never: it is read |
//!
//! Why each row of the table is proof: a write to private memory makes an entry. Only the VMM
//! itself can remove the entry (`MADV_DONTNEED`), and then the page does read as zero. A page in
//! swap, or on its way to another node, has an entry too. tmpfs and hugetlbfs keep contents in the
//! page cache or in swap and nowhere else, so the file knows of writes through every mapping. A
//! userfaultfd can give a page any contents at its first touch, and its markers in page tables look
//! like entries. So where a userfaultfd watches, neither an entry nor its absence is proof.

use super::block::{Block, BlockId};
use super::present::Reading;
use crate::error::Result;
use crate::sys::maps::{self, Area, Maps};
use crate::sys::mem::{self, FileKind};
use crate::sys::pagemap::{PageRegion, Pagemap, Query, WPALLOWED};
use crate::sys::uffd::WatchProbe;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What this process's page tables prove about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tables {
    /// Nothing.
    Silent,
    /// A present page holds something. Other pages may hold something too.
    Present,
    /// A page with any entry may hold something. For the other pages [`Below`] decides.
    Private,
}

/// What a page holds when it has no entry, or when entries prove nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    /// Unknown contents.
    Unknown,
    /// Zeros.
    Zero,
    /// The contents of a tmpfs file.
    Tmpfs(FileAt),
    /// The contents of a hugetlbfs file.
    Hugetlbfs(FileAt),
    /// The contents of the page cache, if there is no swap.
    Cached,
}

/// Where a block lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileAt {
    /// Whether the descriptor is the block's own, or one that was found behind the mapping.
    given: bool,
    /// Offset of the block's first byte in the file. It wraps around if the mapping begins inside
    /// of the block.
    start: u64,
}

impl FileAt {
    /// Whether the VMM gave the descriptor.
    pub(super) fn is_given(self) -> bool {
        self.given
    }

    /// Offset of a page of the block in the file.
    pub(super) fn offset(self, page: Pages) -> u64 {
        self.start.wrapping_add(page.bytes().0)
    }
}

/// Which userfaultfd the memory is registered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watcher {
    Nobody,
    /// That of brant's own log, which only protects pages.
    Log,
    /// Another one, which may fill pages when they are touched; or it is unknown.
    Somebody,
}

/// The kind of memory of some pages of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ground {
    pub(super) start: Pages,
    pub(super) end: Pages,
    pub(super) tables: Tables,
    pub(super) below: Below,
    pub(super) watcher: Watcher,
    /// The size of the huge pages behind the memory, if they come from a pool that was set aside. A
    /// read of an empty page takes a whole huge page from that pool. In other private memory such a
    /// read takes no memory: the kernel maps its page of zeros.
    pub(super) huge: Option<Pages>,
}

impl Ground {
    /// Pages of an unknown kind.
    fn unknown(pages: Range<Pages>) -> Ground {
        Ground {
            start: pages.start,
            end: pages.end,
            tables: Tables::Silent,
            below: Below::Unknown,
            watcher: Watcher::Nobody,
            huge: None,
        }
    }
}

/// A file that was found behind a mapping though nobody gave its descriptor.
#[derive(Debug)]
struct Found {
    block: BlockId,
    device: u64,
    inode: u64,
    file: Option<(OwnedFd, FileKind)>,
}

/// The answer of smaps, for a process that cannot have a userfaultfd and so has no quicker
/// question. Reading smaps walks all page tables of the process. The answer is therefore kept for a
/// while, so that at most one part in [`SHARE`] of the time goes into reading it. A userfaultfd
/// that is registered meanwhile is seen late.
#[derive(Debug)]
struct Served {
    range: Range<u64>,
    areas: Vec<Range<u64>>,
    asked: Instant,
    cost: Duration,
}

/// See [`Served`].
const SHARE: u32 = 20;

/// Looks at mappings of the process that made it, and keeps the last answer. For one thread.
#[derive(Debug)]
pub(super) struct Looks {
    /// `None` without /proc.
    maps: Option<Maps>,
    /// `None` without /proc, and where the kernel has no `PAGEMAP_SCAN`.
    pagemap: Option<Pagemap>,
    /// `None` where userfaultfd cannot be had.
    probe: Option<WatchProbe>,
    last: Option<(BlockId, Ground)>,
    /// Whether files are looked for behind mappings.
    finds_files: bool,
    found: Option<Found>,
    served: Option<Served>,
    /// Device of the kernel's own tmpfs, where memfds and shared anonymous memory are.
    shared_device: Option<u64>,
    /// See [`Looks::watch_ourselves`].
    ours: bool,
}

impl Looks {
    pub(super) fn new() -> Looks {
        Looks {
            maps: Maps::open().ok(),
            pagemap: Pagemap::open().ok(),
            probe: WatchProbe::open().ok(),
            last: None,
            finds_files: true,
            found: None,
            served: None,
            shared_device: None,
            ours: false,
        }
    }

    /// All memory that is asked about is watched by a userfaultfd of the caller's. It protects pages,
    /// fills a page that is not there with zeros, and lets no other userfaultfd in. So what an entry
    /// or its absence proves stays proven.
    pub(super) fn watch_ourselves(&mut self) {
        self.ours = true;
    }

    /// Behaves as on a kernel before 6.11.
    #[cfg(test)]
    pub(super) fn ask_text_only(&mut self) {
        self.maps = self.maps.take().map(Maps::text_only);
    }

    /// Behaves as where userfaultfd is not available.
    #[cfg(test)]
    pub(super) fn ask_smaps_only(&mut self) {
        self.probe = None;
    }

    /// Behaves as without the right to look behind mappings.
    #[cfg(test)]
    pub(super) fn find_no_files(&mut self) {
        self.finds_files = false;
    }

    /// The check for a caller that is about to read pages, and what it knows of mappings.
    pub(super) fn reading<'a>(&'a self, mapping: &'a mut Range<u64>) -> Reading<'a> {
        Reading::new(self.maps.as_ref(), self.pagemap.as_ref(), mapping)
    }

    pub(super) fn pagemap(&self) -> Option<&Pagemap> {
        self.pagemap.as_ref()
    }

    /// Forgets the last answer: the next question asks the kernel.
    pub(super) fn refresh(&mut self) {
        self.last = None;
        let old = |s: &Served| s.asked.elapsed() > s.cost * SHARE;
        if self.served.as_ref().is_some_and(old) {
            self.served = None;
        }
    }

    /// The kind of memory at `page` of `block`, and how many pages from there on are of that kind.
    pub(super) fn at(&mut self, block: &Block, page: Pages) -> Ground {
        if let Some((id, ground)) = &self.last {
            if *id == block.id() && (ground.start..ground.end).contains(&page) {
                return *ground;
            }
        }
        let ground = self
            .look(block, page)
            .unwrap_or_else(|_| Ground::unknown(page..block.pages()));
        self.last = Some((block.id(), ground));
        ground
    }

    /// The descriptor that a [`FileAt`] of `block` means.
    pub(super) fn file<'a>(&'a self, block: &'a Block, at: FileAt) -> Option<BorrowedFd<'a>> {
        if at.given {
            return block.file().map(|file| file.fd.as_fd());
        }
        let found = self.found.as_ref().filter(|f| f.block == block.id())?;
        found.file.as_ref().map(|(fd, _)| fd.as_fd())
    }

    fn look(&mut self, block: &Block, page: Pages) -> Result<Ground> {
        let host = block.host() as u64;
        let address = host + page.bytes().0;
        let area = match &self.maps {
            Some(maps) => maps.at(address)?,
            None => None,
        };
        let Some(area) = area else {
            return Ok(Ground::unknown(page..block.pages()));
        };
        let start = Bytes(area.start.max(host) - host).pages_down();
        let end = Bytes(area.end.min(host + block.length().0) - host).pages_down();
        let mut ground = Ground::unknown(start..end);
        if area.inode == 0 || area.huge_anonymous {
            // Shared memory always has a file, sometimes one of the kernel's own.
            if !area.shared && self.pagemap.is_some() {
                ground.tables = Tables::Private;
                ground.below = Below::Zero;
                ground.huge = area
                    .huge_anonymous
                    .then(|| Bytes(area.page_size).pages_down());
            }
        } else {
            self.look_at_file(block, &area, page, &mut ground);
        }
        if ground.below != Below::Unknown {
            ground.watcher = self.watcher(block, &area);
        }
        Ok(ground)
    }

    fn look_at_file(&mut self, block: &Block, area: &Area, page: Pages, ground: &mut Ground) {
        let start = area.offset.wrapping_add(block.host() as u64);
        let start = start.wrapping_sub(area.start);
        let below = match self.file_of(block, area) {
            Some((given, FileKind::Tmpfs)) => Below::Tmpfs(FileAt { given, start }),
            Some((given, FileKind::Hugetlbfs)) => Below::Hugetlbfs(FileAt { given, start }),
            _ if Some(area.device) == self.shared_device() => Below::Cached,
            _ => return,
        };
        let tables = match (area.shared, below) {
            (false, _) => Tables::Private,
            (true, Below::Hugetlbfs(_)) => Tables::Present,
            (true, _) => Tables::Silent,
        };
        if tables != Tables::Silent && self.pagemap.is_none() {
            return;
        }
        // Pages behind the end of the file cannot be read at all, and must not pass for holes.
        if let Below::Tmpfs(at) | Below::Hugetlbfs(at) = below {
            let length = self.file(block, at).map(mem::file_length);
            let Some(Ok(Some(length))) = length else {
                return;
            };
            let left = Bytes(length.saturating_sub(at.offset(page))).pages_up();
            if left.0 == 0 {
                return;
            }
            ground.end = ground.end.min(page + left);
        }
        ground.tables = tables;
        ground.below = below;
    }

    /// Whether the file behind `area` is known (and by the block's own descriptor), and its kind.
    fn file_of(&mut self, block: &Block, area: &Area) -> Option<(bool, FileKind)> {
        let same = |device, inode| device == area.device && inode == area.inode;
        if let Some(own) = block.identity().filter(|own| same(own.device, own.inode)) {
            return Some((true, own.kind));
        }
        let known = self
            .found
            .as_ref()
            .is_some_and(|f| f.block == block.id() && same(f.device, f.inode));
        if !known && self.finds_files {
            let exact = |fd: BorrowedFd<'_>| mem::file_kind(fd) != FileKind::Other;
            let file = maps::file_behind(area, exact).and_then(|fd| {
                let (device, inode, _) = mem::inode_of(fd.as_fd()).ok()?;
                let kind = mem::file_kind(fd.as_fd());
                same(device, inode).then_some((fd, kind))
            });
            self.found = Some(Found {
                block: block.id(),
                device: area.device,
                inode: area.inode,
                file,
            });
        }
        let found = self.found.as_ref()?.file.as_ref();
        found.map(|(_, kind)| (false, *kind))
    }

    fn shared_device(&mut self) -> Option<u64> {
        if self.shared_device.is_none() {
            self.shared_device = mem::shared_memory_device().ok();
        }
        self.shared_device
    }

    fn watcher(&mut self, block: &Block, area: &Area) -> Watcher {
        if self.ours {
            return Watcher::Nobody;
        }
        let start = area.start.max(block.host() as u64);
        if block.hidden_holes().is_some() && self.is_protected(start) {
            return Watcher::Log;
        }
        let watched = match &self.probe {
            Some(probe) => probe.is_watched(start),
            None => self.is_served(block, area),
        };
        if watched {
            Watcher::Somebody
        } else {
            Watcher::Nobody
        }
    }

    /// Whether the memory at a page is registered for asynchronous protection, as brant's log does.
    fn is_protected(&self, address: u64) -> bool {
        let query = Query {
            all: WPALLOWED,
            report: WPALLOWED,
            ..Query::default()
        };
        let page = address..address + PAGE_SIZE;
        self.pagemap.as_ref().is_some_and(|pagemap| {
            let found = pagemap.scan(page, &query, &mut [PageRegion::default()]);
            matches!(found, Ok((1, _)))
        })
    }

    fn is_served(&mut self, block: &Block, area: &Area) -> bool {
        let host = block.host() as u64;
        let whole = host..host + block.length().0;
        if self.served.as_ref().is_none_or(|s| s.range != whole) {
            let asked = Instant::now();
            let Ok(areas) = maps::served_by_userfault(whole.clone()) else {
                return true;
            };
            self.served = Some(Served {
                range: whole,
                areas,
                asked,
                cost: asked.elapsed(),
            });
        }
        self.served.iter().any(|served| {
            let mut areas = served.areas.iter();
            areas.any(|a| a.start < area.end && area.start < a.end)
        })
    }
}
