//! The dirty log of writes that the VMM reports itself: those of its device emulation, which KVM
//! does not see.
//!
//! [`Reported`] is shared by any number of marking threads, which never wait, and by one collector:
//! the tracker, through [`ReportedLog`]. A mark comes after the write that it reports.

use crate::bits::concurrent::ConcurrentBitmap;
use crate::bits::words;
use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Sink, When};
use crate::error::{Error, Kind, Result};
use crate::memory::tree::{Index, Tree};
use crate::memory::{BlockId, Map, Memory};
use crate::runtime::grace::pin;
use crate::runtime::snapshot::Retired;
use crate::runtime::snapshot::Snapshot;
use crate::runtime::sync::{fence, Arc, AtomicBool, AtomicU64, Ordering};
use crate::runtime::Cancel;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::ops::Range;
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

/// How long a harvest waits for threads that are inside a mark. A mark takes nanoseconds; a thread
/// that is preempted in one comes back within a few time slices.
const GRACE: Duration = Duration::from_millis(100);
/// How long the last harvest waits for them. No later harvest reads what it leaves. A busy machine
/// can keep a thread away for longer than [`GRACE`], and then the migration would fail.
const GRACE_LAST: Duration = Duration::from_secs(2);

/// The most pages that are marked under one pin: 128 MiB, which takes microseconds.
const PAGES_A_PIN: u64 = 32 << 10;

/// The marks of one block.
#[derive(Clone)]
struct Marks {
    block: BlockId,
    shared: Arc<ConcurrentBitmap>,
}

/// Marks of many blocks, by block.
struct ByBlock;

impl Index for ByBlock {
    type Value = Marks;
    type Key = BlockId;
    type Reach = ();
    fn key(marks: &Marks) -> BlockId {
        marks.block
    }
    fn reach(_: &Marks) {}
}

/// The marks of all blocks of a map. Replaced as a whole when the map changes.
#[derive(Default)]
struct Table {
    map: Map,
    marks: Tree<ByBlock>,
}

impl Table {
    fn of(&self, block: BlockId) -> Option<&ConcurrentBitmap> {
        self.marks.get(&block).map(|marks| &*marks.shared)
    }
}

/// The marks of all blocks. Cheap to share. See the file's description.
pub struct Reported {
    memory: Arc<Memory>,
    active: AtomicBool,
    table: Snapshot<Table>,
    /// Marks that named addresses without a block.
    strays: AtomicU64,
}

impl Reported {
    /// Marks for the blocks of `memory`. They are recorded only while a log of them is started.
    pub fn new(memory: Arc<Memory>) -> Self {
        Reported {
            memory,
            active: AtomicBool::new(false),
            table: Snapshot::default(),
            strays: AtomicU64::new(0),
        }
    }

    /// Whether marks are recorded now. While they are not, a mark costs a load and a fence.
    fn is_active(&self) -> bool {
        if self.active.load(Ordering::Relaxed) {
            return true;
        }
        // The write that is reported may still be in this processor's store buffer. A migration
        // that starts the log right now would then read the page without it. After the fence every
        // processor sees the write. So if this second load does not see a start, the migration that
        // makes that start reads memory with the write in it.
        fence(Ordering::SeqCst);
        self.active.load(Ordering::Relaxed)
    }

    /// Reports a write of `length` bytes at a guest address. May be called on any thread; takes no
    /// lock and never waits. Addresses outside of guest memory are counted and otherwise ignored.
    pub fn mark_guest(&self, address: GuestAddress, length: u64) {
        if length == 0 || !self.is_active() {
            return;
        }
        let first = address.0 / PAGE_SIZE;
        let last = address.0.saturating_add(length - 1) / PAGE_SIZE;
        let mut found = 0;
        // In pieces, so that no pin is held for long: the collector waits for pins.
        let mut next = Some(first);
        while let Some(at) = next {
            next = self.mark_some(at, last, &mut found);
        }
        // With aliases more pages can be found than the range has, never fewer.
        if found < last - first + 1 {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Under one pin, marks the first of the guest's pages `first` to `last` that some block has,
    /// and adds their number to `found`. Returns where to go on, or `None` at the end. Addresses
    /// without a slot cost nothing, however many there are.
    fn mark_some(&self, first: u64, last: u64, found: &mut u64) -> Option<u64> {
        let from = |page: u64| GuestAddress(page * PAGE_SIZE);
        let pinned = pin();
        let map = self.memory.map_pinned(&pinned);
        let table = self.table.get(&pinned);
        let mut begin = first;
        if last - first >= PAGES_A_PIN {
            let mut ahead = map.block_parts(from(first), Pages(last - first + 1));
            begin += ahead.next()?.before.0;
        }
        let pages = (last - begin + 1).min(PAGES_A_PIN);
        for part in map.block_parts(from(begin), Pages(pages)) {
            // A block of the map that has no marks is one that nobody wants to hear of.
            *found += part.pages.0;
            if let Some(shared) = table.of(part.block) {
                shared.mark_pinned(&pinned, part.first.index(), part.pages.index());
            }
        }
        let next = begin + pages;
        (next <= last).then_some(next)
    }

    /// Reports writes of the first `pages` pages from a guest address, as far as `words` has bits
    /// set for them. May be called on any thread; takes no lock. Each bit without memory counts as
    /// a stray.
    pub fn mark_words(&self, address: GuestAddress, words: &[u64], pages: u64) {
        if !self.is_active() {
            return;
        }
        let first = address.0 / PAGE_SIZE;
        let pages = pages.min(words.len() as u64 * 64);
        let mut at = 0;
        while at < pages {
            let some = (pages - at).min(PAGES_A_PIN);
            self.mark_some_words(first.saturating_add(at), words, at, some);
            at += some;
        }
    }

    /// Marks by the `pages` bits of `words` from bit `skip` on. That bit stands for the guest's
    /// page `first`.
    fn mark_some_words(&self, first: u64, words: &[u64], skip: u64, pages: u64) {
        let count = |range: Range<u64>| {
            let (from, len) = (range.start as usize, (range.end - range.start) as usize);
            words::count_range(words, from, len)
        };
        let mut strays = count(skip..skip + pages);
        if strays == 0 {
            return;
        }
        // Saturating: the largest page numbers have no address.
        let from = GuestAddress(first.saturating_mul(PAGE_SIZE));
        let pinned = pin();
        let map = self.memory.map_pinned(&pinned);
        let table = self.table.get(&pinned);
        // Two slots can show the same address, in two address spaces.
        let mut known = skip;
        for part in map.block_parts(from, Pages(pages)) {
            let begin = skip + part.before.0;
            let end = begin + part.pages.0;
            if let Some(shared) = table.of(part.block) {
                let (first, n) = (part.first.index(), part.pages.index());
                shared.mark_words(&pinned, first, words, begin as usize, n);
            }
            if known < end {
                strays -= count(begin.max(known)..end);
                known = end;
            }
        }
        drop(pinned);
        self.strays.fetch_add(strays, Ordering::Relaxed);
    }

    /// Reports a write of `length` bytes at an offset in a block. May be called on any thread;
    /// takes no lock.
    pub fn mark_block(&self, block: BlockId, offset: Bytes, length: u64) {
        if length == 0 || !self.is_active() {
            return;
        }
        let first = offset.0 / PAGE_SIZE;
        let last = offset.0.saturating_add(length - 1) / PAGE_SIZE;
        let pages = (last - first + 1) as usize;
        let pinned = pin();
        let many = match self.table.get(&pinned).marks.get(&block) {
            None => {
                let known = self.memory.map_pinned(&pinned).block(block).is_some();
                self.strays.fetch_add(u64::from(!known), Ordering::Relaxed);
                return;
            }
            Some(marks) if last - first < PAGES_A_PIN => {
                marks.shared.mark_pinned(&pinned, first as usize, pages);
                return;
            }
            Some(marks) => Arc::clone(&marks.shared),
        };
        // Too many pages for one pin. `mark` makes pins of its own, and cuts the range at the
        // block's end.
        drop(pinned);
        many.mark(first as usize, pages);
    }

    /// Reports a write of `length` bytes at an address of this process, in every block that has some of
    /// them. May be called on any thread; takes no lock. Bytes that are in no block count as one stray.
    pub fn mark_host(&self, host: u64, length: u64) {
        if length == 0 || !self.is_active() {
            return;
        }
        let end = host.saturating_add(length);
        let (mut at, mut found) = (host, 0);
        while at < end {
            let part = {
                let pinned = pin();
                self.memory.map_pinned(&pinned).host_part(at, end)
            };
            let Some(part) = part else { break };
            // If the block is removed right now, its marks are wanted no more.
            self.mark_block(part.block, part.offset, part.length);
            found += part.length;
            at = part.host + part.length;
        }
        if found < length {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many marks named addresses without a block.
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    /// Makes the table fit `map`. Blocks that stay keep their marks. The old table is returned: a
    /// thread may still be marking in it, but only for blocks that stay or that are gone.
    fn fit(&self, map: &Map) -> Result<Retired<Table>> {
        let old = self.table.load();
        let mut marks = old.marks.clone();
        for block in map.blocks_not_in(&old.map)? {
            marks.insert(Marks {
                block: block.id(),
                shared: Arc::new(ConcurrentBitmap::new(block.pages().index())?),
            });
        }
        for block in old.map.blocks_not_in(map)? {
            marks.remove(&block.id());
        }
        let map = map.clone();
        Ok(self.table.retire(Arc::new(Table { map, marks })))
    }
}

/// The collecting side of [`Reported`].
pub struct ReportedLog {
    reported: Arc<Reported>,
    /// [`GRACE`], or a shorter time in a test.
    grace: Duration,
    /// Tables in which a thread of the VMM may still be marking. Starts, stops and changes of the
    /// map do not wait for that thread, which may have lost its processor there.
    retired: Vec<Retired<Table>>,
}

impl ReportedLog {
    /// The log of the marks in `reported`.
    pub fn new(reported: Arc<Reported>) -> Self {
        ReportedLog {
            reported,
            grace: GRACE,
            retired: Vec::new(),
        }
    }

    fn keep(&mut self, retired: Retired<Table>) {
        self.retired.retain(|old| !old.is_free());
        self.retired.push(retired);
    }
}

/// The error of a sync that had to leave a buffer for the next one. Its text is the same each time,
/// so that the VMM is told once.
fn still_inside(grace: Duration) -> Error {
    Error::new(
        Kind::Timeout,
        format!(
            "a thread of the VMM has been inside a mark for {grace:?}, which is as long as a sync \
             waits; what it marks is found by a later sync"
        ),
    )
}

impl DirtyLog for ReportedLog {
    fn kind(&self) -> LogKind {
        LogKind::Reported
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for block in map.blocks() {
            each(Extent::all_of(block));
        }
    }

    fn heap_bytes(&self) -> u64 {
        self.reported.table.with(|table| {
            let marks = table.marks.iter();
            marks.map(|marks| marks.shared.heap_bytes() as u64).sum()
        })
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        let old = self.reported.fit(map)?;
        self.keep(old);
        // SeqCst, to be ordered against the fence in `is_active`.
        self.reported.active.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Ok(Initial::Clean)
    }

    fn stop(&mut self, _map: &Map) -> Result<()> {
        self.reported.active.store(false, Ordering::SeqCst);
        let old = self.reported.table.retire(Arc::new(Table::default()));
        self.keep(old);
        Ok(())
    }

    fn harvest(&mut self, _map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        self.retired.retain(|old| !old.is_free());
        let table = self.reported.table.load();
        let given_up = sink.given_up();
        let given_up = || given_up.as_ref().is_some_and(Cancel::is_cancelled);
        let mut late = false;
        // One limit for all blocks: the thread that the first block waits for holds up the others
        // too.
        let begun = Instant::now();
        let grace = match when {
            When::Running => self.grace,
            When::Stopped => GRACE_LAST,
        };
        for Marks { block, shared } in table.marks.iter() {
            let done = sink.block(*block, &mut |pending| {
                let left = grace.saturating_sub(begun.elapsed());
                Ok(shared.collect_unless(left, &given_up, pending)?.marked)
            });
            match done {
                // A thread stood inside a mark for longer than the limit. Its buffer is kept, and
                // the next sync reads it. The blocks after it have no time left, and add no error
                // of their own.
                Err(e) if e.kind() == Kind::Timeout => late = true,
                done => done?,
            }
        }
        Ok(match late {
            true if given_up() => Harvested::Postponed(Error::new(
                Kind::Cancelled,
                "cancelled while a thread of the VMM was inside a mark",
            )),
            true => Harvested::Postponed(still_inside(grace)),
            false => Harvested::Complete,
        })
    }

    fn map_changes(&mut self, _old: &Map, new: &Map, _sink: &mut dyn Sink) -> Result<()> {
        if self.reported.active.load(Ordering::SeqCst) {
            let old = self.reported.fit(new)?;
            self.keep(old);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "reported/tests.rs"] // tests/loom has this file elsewhere
mod tests;
