//! Contents into memory, and the waking of the threads that wait for them.

use super::kind::{Kind, Way};
use super::marks::{Arrived, Found, Marks};
use super::meter::Meter;
use super::staging::{Piece, Staging};
use super::supplier::Supplier;
use crate::bits::Stretches;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::fallible;
use crate::memory::block::{Block, BlockId, BlockPin};
use crate::memory::map::Memory;
use crate::sys::own::OwnMemory;
use crate::sys::uffd::{Fault, Faults, Fill, Filled, Stopped};
use crate::sys::{disk, mem};
use crate::units::{Pages, PAGE_SIZE};
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Instant;

/// Pages from a fault on that are mapped with it where they are in the file already: a fault for
/// each page of a guest that is mostly here would cost more than all others together.
const AROUND: u64 = 64;

/// Pages of a block that are not here.
#[derive(Debug)]
pub struct Absent {
    /// The block.
    pub block: Arc<Block>,
    /// A bit for each of its pages.
    pub pages: Stretches,
}

/// Where another process maps a part of a block that its userfaultfd watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Theirs {
    /// Addresses in that process.
    pub addresses: Range<u64>,
    /// The block.
    pub block: BlockId,
    /// The block's page at the first address.
    pub first: Pages,
}

/// A userfaultfd of another process, and what it watches.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) faults: Faults,
    /// In order of addresses; the number is that of the block here.
    pub(super) map: Vec<(Theirs, usize)>,
}

impl Other {
    /// The addresses in that process of some pages of a block.
    fn addresses(&self, block: usize, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let pages = pages.clone();
        let maps = self.map.iter().filter(move |(_, number)| *number == block);
        maps.filter_map(move |(theirs, _)| {
            let length = theirs.addresses.end - theirs.addresses.start;
            let first = theirs.first.0;
            let from = pages.start.max(first);
            let to = pages.end.min(first + length / PAGE_SIZE);
            let at = |page: u64| theirs.addresses.start + Pages(page - first).bytes().0;
            (from < to).then(|| at(from)..at(to))
        })
    }
}

/// One block that is served.
#[derive(Debug)]
pub(super) struct Watched {
    /// Keeps the block mapped, and its removal refused.
    pub(super) block: BlockPin,
    pub(super) shared: Arc<Block>,
    pub(super) marks: Marks,
    pub(super) kind: Kind,
    /// Zeros of a huge page, for memory that knows no page of zeros.
    zeros: OnceLock<OwnMemory>,
}

impl Watched {
    pub(super) fn new(block: BlockPin, marks: Marks, kind: Kind) -> Watched {
        Watched {
            shared: block.shared(),
            block,
            marks,
            kind,
            zeros: OnceLock::new(),
        }
    }

    /// The block's addresses here.
    pub(super) fn addresses(&self) -> Range<u64> {
        let host = self.block.host() as u64;
        host..host + self.block.length().0
    }

    fn at(&self, pages: &Range<u64>) -> Range<u64> {
        let host = self.block.host() as u64;
        host + Pages(pages.start).bytes().0..host + Pages(pages.end).bytes().0
    }

    /// The host page that has a page.
    pub(super) fn unit(&self, page: u64) -> Range<u64> {
        let unit = self.kind.unit.0;
        let first = page / unit * unit;
        first..first + unit
    }
}

/// What all threads share.
pub(super) struct Inner {
    pub(super) memory: Arc<Memory>,
    /// By address.
    pub(super) blocks: Vec<Watched>,
    pub(super) numbers: HashMap<BlockId, usize>,
    pub(super) own: Faults,
    pub(super) others: RwLock<Arc<Vec<Arc<Other>>>>,
    pub(super) left: AtomicU64,
    /// Our own addresses are watched no longer.
    pub(super) ended: AtomicBool,
    pub(super) meter: Meter,
    pub(super) supplier: Arc<dyn Supplier>,
    staging: Staging,
}

impl Inner {
    pub(super) fn new(
        memory: Arc<Memory>,
        blocks: Vec<Watched>,
        own: Faults,
        left: u64,
        supplier: Arc<dyn Supplier>,
    ) -> Result<Inner> {
        let mut numbers = HashMap::new();
        for (number, watched) in blocks.iter().enumerate() {
            fallible::insert(&mut numbers, watched.block.id(), number, "blocks")?;
        }
        memory.ownership().set_left(left);
        Ok(Inner {
            memory,
            blocks,
            numbers,
            own,
            others: RwLock::default(),
            left: AtomicU64::new(left),
            ended: AtomicBool::new(false),
            meter: Meter::new(),
            supplier,
            staging: Staging::default(),
        })
    }

    pub(super) fn others(&self) -> Arc<Vec<Arc<Other>>> {
        Arc::clone(&self.others.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// The number of a block that is served, and the block.
    pub(super) fn watched(&self, block: BlockId) -> Option<(usize, &Watched)> {
        let number = *self.numbers.get(&block)?;
        Some((number, &self.blocks[number]))
    }

    /// Puts what has arrived for `pages` where nothing has arrived yet. Returns how many pages are
    /// here by this call.
    pub(super) fn arrive(&self, number: usize, pages: Range<u64>, piece: Piece<'_>) -> Result<u64> {
        let watched = &self.blocks[number];
        let unit = watched.kind.unit.0;
        if unit == 1 {
            return self.whole(number, pages.start, &pages, piece);
        }
        let mut new = 0;
        let mut at = pages.start;
        while at < pages.end {
            let whole = watched.unit(at);
            if at == whole.start && pages.end >= whole.end {
                let run = at..pages.end / unit * unit;
                at = run.end;
                new += self.whole(number, run.start, &run, piece.part(pages.start, &run))?;
                let mut units = run.step_by(unit as usize);
                units
                    .by_ref()
                    .for_each(|first| self.staging.forget(number, first));
                continue;
            }
            let part = at..pages.end.min(whole.end);
            at = part.end;
            if !watched.marks.is_absent(whole.start) {
                continue;
            }
            let piece = piece.part(pages.start, &part);
            if let Some(contents) = self.staging.gather(number, &whole, &part, piece)? {
                new += self.whole(number, whole.start, &whole, Piece::Data(&contents))?;
            }
        }
        Ok(new)
    }

    /// [`Inner::arrive`] for whole host pages. `piece` begins with page `first`.
    fn whole(
        &self,
        number: usize,
        first: u64,
        pages: &Range<u64>,
        piece: Piece<'_>,
    ) -> Result<u64> {
        let watched = &self.blocks[number];
        let mut new = 0;
        // A page of zeros is nowhere in private memory and in holes. It need not be made before
        // somebody touches it.
        if matches!(piece, Piece::Zeros) && watched.kind.way != Way::Overwrite {
            let arrived = watched.marks.skip(pages.clone());
            return Ok(self.arrived(number, pages, &arrived, true));
        }
        let mut at = pages.start;
        while let Some(run) = watched.marks.claim(at..pages.end) {
            at = run.end;
            let (done, placed) = match piece.part(first, &run) {
                Piece::Data(bytes) => self.data(number, &run, bytes),
                // Old contents may be in the file.
                Piece::Zeros => {
                    let at = watched.at(&run);
                    // SAFETY: the block's shared memory; by its marks nothing in it is newer.
                    let removed = unsafe {
                        mem::remove_shared(at.start as *mut u8, (at.end - at.start) as usize)
                    };
                    match removed {
                        Ok(()) => (run.end, Ok(())),
                        Err(error) => (run.start, Err(error)),
                    }
                }
            };
            // The pages before an error are here, and their threads may have written to them.
            watched.marks.give_back(done..run.end);
            let run = run.start..done;
            let arrived = watched.marks.placed(run.clone());
            let zero = matches!(piece, Piece::Zeros);
            new += self.arrived(number, &run, &arrived, zero);
            placed?;
        }
        Ok(new)
    }

    /// Pages that this thread has claimed get contents. Returns the first page that has not got them.
    fn data(&self, number: usize, run: &Range<u64>, bytes: &[u8]) -> (u64, Result<()>) {
        let watched = &self.blocks[number];
        let at = watched.at(run);
        let page = |address: u64| run.start + (address - at.start) / PAGE_SIZE;
        let from = |address: u64| &bytes[(address - at.start) as usize..];
        let how = Fill {
            protect: false,
            wake: true,
        };
        let copy = |rest: Range<u64>| self.own.copy(rest.start, from(rest.start), how);
        if watched.kind.way != Way::Overwrite {
            let (end, done) = self.each(number, at.clone(), copy);
            return (page(end), done);
        }
        let mut next = at.start;
        while next < at.end {
            match copy(next..at.end) {
                Err(error) => return (page(next), Err(error)),
                Ok(filled) => {
                    next += filled.bytes;
                    match filled.stopped {
                        None | Some(Stopped::Changing | Stopped::Failed) => {}
                        // The file has old contents.
                        Some(Stopped::Present) => break,
                        // For the error.
                        Some(_) => {
                            let (end, done) = self.each(number, next..at.end, copy);
                            return (page(end), done);
                        }
                    }
                }
            }
        }
        if next == at.end {
            return (run.end, Ok(()));
        }
        if let Err(error) = overwrite(&watched.block, page(next), from(next)) {
            return (page(next), Err(error));
        }
        let (end, done) = self.each(number, next..at.end, |rest| self.own.resume(rest, true));
        (page(end), done)
    }

    /// Pages of zeros, for threads that wait for them. Pages that are there are left alone.
    fn zeros(&self, number: usize, run: &Range<u64>) -> Result<()> {
        let watched = &self.blocks[number];
        let at = watched.at(run);
        if watched.kind.can.zero {
            return self.each(number, at, |rest| self.own.zero(rest, true)).1;
        }
        let unit = watched.kind.unit.bytes().0;
        let zeros = match watched.zeros.get() {
            Some(zeros) => zeros,
            None => {
                let zeros = OwnMemory::new(unit as usize, "a huge page of zeros")?;
                watched.zeros.get_or_init(|| zeros)
            }
        };
        let how = Fill {
            protect: false,
            wake: true,
        };
        let mut start = at.start;
        while start < at.end {
            let filled = self.each(number, start..start + unit, |rest| {
                let length = (rest.end - rest.start) as usize;
                self.own.copy(rest.start, &zeros[..length], how)
            });
            filled.1?;
            start += unit;
        }
        Ok(())
    }

    /// Fills addresses of a block by `fill`. Pages that are there already are left alone, and whoever
    /// waits for them is woken: `fill` does not do that. Returns how far it came.
    fn each(
        &self,
        number: usize,
        addresses: Range<u64>,
        mut fill: impl FnMut(Range<u64>) -> Result<Filled>,
    ) -> (u64, Result<()>) {
        let unit = self.blocks[number].kind.unit.bytes().0;
        let mut at = addresses.start;
        while at < addresses.end {
            let filled = match fill(at..addresses.end) {
                Ok(filled) => filled,
                Err(error) => return (at, Err(error)),
            };
            at += filled.bytes;
            let why = match filled.stopped {
                None => continue,
                Some(Stopped::Present) => {
                    if let Err(error) = self.own.wake(at..at + unit) {
                        return (at, Err(error));
                    }
                    at += unit;
                    continue;
                }
                // The kernel tells of changes only those who have asked for it.
                Some(Stopped::Changing) => {
                    std::thread::yield_now();
                    continue;
                }
                // The next call has the reason.
                Some(Stopped::Failed) => continue,
                // Nobody waits where nobody watches.
                Some(Stopped::Unwatched) if self.ended.load(Ordering::Acquire) => {
                    return (addresses.end, Ok(()))
                }
                Some(Stopped::Unwatched) => "no userfaultfd of brant's watches it any more",
                Some(Stopped::Gone) => "the process has ended",
            };
            let what = format!("the page at {at:#x} cannot be filled: {why}");
            return (at, Err(Error::new(ErrorKind::Memory, what)));
        }
        (at, Ok(()))
    }

    /// Pages are no longer absent: those who wait, figures, trackers, the end. Pages of zeros are
    /// made for those who wait for them; contents are there already, and have woken them. Returns how
    /// many pages there are.
    fn arrived(&self, number: usize, pages: &Range<u64>, arrived: &Arrived, zero: bool) -> u64 {
        if arrived.pages == 0 {
            return 0;
        }
        let watched = &self.blocks[number];
        let mut waited = 0;
        for run in &arrived.waited {
            waited += run.end - run.start;
            if zero && self.zeros(number, run).is_err() {
                // Whoever waits faults again, and is answered when there is memory.
                let _ = self.own.wake(watched.at(run));
            }
            self.wake_others(number, run);
        }
        if let Some(among) = &arrived.among {
            let _ = self.own.wake(watched.at(among));
            self.wake_others(number, among);
        }
        let count = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        count(&self.meter.urgent, waited);
        count(&self.meter.bulk, arrived.pages - waited);
        if zero {
            count(&self.meter.zero, arrived.pages);
        }
        watched.block.ballooned().arrived(pages.clone());
        watched.block.poisoned().arrived(pages.clone());
        watched.block.zeroed_no_more();
        self.memory.tell_written(watched.block.id(), pages.clone());
        self.gone(arrived.pages, true);
        arrived.pages
    }

    /// Nobody waits any more for these pages: here in the figures, and in other processes.
    fn wake_others(&self, number: usize, run: &Range<u64>) {
        self.meter.ends(number, run, Instant::now());
        for other in self.others().iter() {
            for theirs in other.addresses(number, run) {
                // A process that has ended waits for nothing.
                let _ = other.faults.wake(theirs);
            }
        }
    }

    /// So many pages are no longer absent. `tell`: the supplier hears when they were the last.
    fn gone(&self, pages: u64, tell: bool) {
        let before = self.left.fetch_sub(pages, Ordering::AcqRel);
        self.memory.ownership().set_left(before - pages);
        if before == pages && tell {
            self.supplier.all_here();
        }
    }

    /// Gives absent pages up: an access raises a signal from now on. Returns how many there were.
    /// `tell`: the supplier hears when they were the last.
    pub(super) fn lose(&self, number: usize, pages: Range<u64>, tell: bool) -> Result<u64> {
        let watched = &self.blocks[number];
        let unit = watched.kind.unit.0;
        let pages = pages.start / unit * unit..pages.end.next_multiple_of(unit);
        if unit > 1 {
            let mut units = pages.clone().step_by(unit as usize);
            units
                .by_ref()
                .for_each(|first| self.staging.forget(number, first));
        }
        let mut lost = 0;
        let mut from = pages.start;
        while let Some(run) = watched.marks.claim(from..pages.end) {
            from = run.end;
            let at = watched.at(&run);
            let (start, length) = (at.start as *mut u8, (at.end - at.start) as usize);
            if watched.kind.way != Way::Private {
                // Other processes must not find the old contents either.
                // SAFETY: the block's shared memory; by its marks nothing in it is of use.
                let _ = unsafe { mem::remove_shared(start, length) };
            }
            let poisoned = match watched.kind.can.poison {
                true => self.each(number, at, |rest| self.own.poison(rest)).1,
                // SAFETY: the block's own memory, where any access would find wrong contents.
                false => unsafe { mem::forbid(start, length) },
            };
            if let Err(error) = poisoned {
                watched.marks.give_back(run);
                return Err(error);
            }
            let _ = watched.block.poisoned().set(&run, true);
            let arrived = watched.marks.placed(run.clone());
            for run in arrived.waited.iter().chain(&arrived.among) {
                // A forbidden page wakes nobody by itself.
                let _ = self.own.wake(watched.at(run));
                self.wake_others(number, run);
            }
            let pages = arrived.pages;
            self.meter.lost.fetch_add(pages, Ordering::Relaxed);
            lost += pages;
            self.gone(pages, tell);
        }
        Ok(lost)
    }

    /// A thread of this process waits. Returns the pages to ask for, if it is the first.
    pub(super) fn fault(&self, fault: &Fault, now: Instant) -> Result<Option<(usize, Range<u64>)>> {
        let number = self
            .blocks
            .partition_point(|it| it.addresses().end <= fault.address);
        let found = self
            .blocks
            .get(number)
            .filter(|it| it.addresses().start <= fault.address);
        let Some(watched) = found else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("a fault at {:#x}, where no block is", fault.address),
            ));
        };
        let page = (fault.address - watched.addresses().start) / PAGE_SIZE;
        let unit = watched.unit(page);
        match self.waits(number, &unit, fault.thread, now) {
            Found::First => return Ok(Some((number, unit))),
            Found::Coming => return Ok(None),
            Found::Here => {}
        }
        self.here(number, &unit, fault.minor)?;
        self.meter.ends(number, &unit, Instant::now());
        Ok(None)
    }

    /// A thread waits for a host page: counts it, and tells what is to be done.
    fn waits(&self, number: usize, unit: &Range<u64>, thread: u32, now: Instant) -> Found {
        self.meter.begins(thread, number, unit.start, now);
        let found = self.blocks[number].marks.fault(unit.clone());
        if found == Found::Here {
            // Before the thread is woken: figures that it looks at have its fault.
            self.meter.answered_here();
        }
        found
    }

    /// A thread waits for a page that is not absent.
    fn here(&self, number: usize, unit: &Range<u64>, minor: bool) -> Result<()> {
        let watched = &self.blocks[number];
        if !minor {
            return self.zeros(number, unit);
        }
        let at = watched.at(unit);
        match self.own.resume(at.clone(), true) {
            Ok(Filled { stopped: None, .. }) => {}
            // It is there meanwhile, or was punched out. The thread looks again.
            _ => return self.own.wake(at),
        }
        // As many of the pages behind it as are here.
        let end = (unit.end + AROUND).min(watched.block.pages().0);
        let absent = watched.marks.next_absent(unit.end..end);
        let around = unit.end..absent.map_or(end, |run| run.start);
        if !around.is_empty() {
            // It stops at the first page that the file has not, or that is mapped.
            let _ = self.own.resume(watched.at(&around), true);
        }
        Ok(())
    }

    /// A thread of another process waits.
    pub(super) fn fault_of(
        &self,
        other: &Other,
        fault: &Fault,
        now: Instant,
    ) -> Result<Option<(usize, Range<u64>)>> {
        let has = |it: &(Theirs, usize)| it.0.addresses.end <= fault.address;
        let found = other.map.get(other.map.partition_point(has));
        let Some((theirs, number)) = found.filter(|it| it.0.addresses.start <= fault.address)
        else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "another process faults at {:#x}, which the map of its userfaultfd does not have",
                    fault.address
                ),
            ));
        };
        let number = *number;
        let watched = &self.blocks[number];
        let page = theirs.first.0 + (fault.address - theirs.addresses.start) / PAGE_SIZE;
        let unit = watched.unit(page);
        match self.waits(number, &unit, fault.thread, now) {
            Found::First => return Ok(Some((number, unit))),
            Found::Coming => return Ok(None),
            Found::Here => {}
        }
        // The file gets the page, if it has none. Then their thread finds it there.
        let at = watched.at(&unit);
        if self.ended.load(Ordering::Acquire) {
            let made = mem::populate_write(at.start as *mut u8, (at.end - at.start) as usize);
            made.map_err(|e| Error::os("a page for another process", e))?;
        } else {
            self.zeros(number, &unit)?;
        }
        for theirs in other.addresses(number, &unit) {
            if fault.minor {
                let _ = other.faults.resume(theirs.clone(), true);
            }
            let _ = other.faults.wake(theirs);
        }
        self.meter.ends(number, &unit, Instant::now());
        Ok(None)
    }
}

/// Writes contents of the pages of a block from `page` on to its file.
fn overwrite(block: &Block, page: u64, mut bytes: &[u8]) -> Result<()> {
    let Some(file) = block.file() else {
        let what = "a file that was here is gone";
        return Err(Error::new(ErrorKind::Internal, what));
    };
    let mut offset = file.offset + Pages(page).bytes().0;
    while !bytes.is_empty() {
        let put = disk::write_some(file.fd.as_fd(), bytes, offset).map_err(|e| {
            let name = block.name();
            Error::os(
                format_args!("block `{name}`: writing to its file at {offset}"),
                e,
            )
        })?;
        (bytes, offset) = (&bytes[put..], offset + put as u64);
    }
    Ok(())
}
