//! The tracker merges the pages that all logs find into *pending*, and restores protection chunk by
//! chunk before it hands pages out.
//!
//! The bitmaps between the kernel and the consumers, and why each exists:
//! - the kernel's own, which brant only reads and clears;
//! - *pending*, one per block and consumer: pages still to be read, plain words under the
//!   tracker's lock;
//! - the *copy* of each slot's bitmap in manual-protect mode (see [`super::kvm::log`]): the
//!   argument of the clear;
//! - *reported*, for marks from any thread without a lock (see [`super::reported`]);
//! - *ballooned*, kept with the block and not here (see [`crate::memory::ballooned`];
//!   `ballooned.rs` says what a walk does with such pages);
//! - *chunks*: one bit for each 2^shift pages. A set bit says that the chunk must be cleared before
//!   its next page is handed out.
//!
//! **Clear before copy.** [`super::consumer::Consumer::take`] is the only way to get at a pending
//! page, and it restores the protection of the chunk first. The caller then reads the page, or sees
//! that it need not be read. Either way a later sync finds each later write. Chunk bits belong to
//! the tracker: the first take from a chunk restores its protection for every consumer, and a later
//! harvest sets the bit again for every consumer.
//!
//! **Nothing is lost.** A page leaves a consumer's pending only when that consumer takes it.
//! [`super::consumer`] describes the consumers.

use super::beside::Hints;
use super::figures::{Figures, Slow};
use super::guarded::Guarded;
use super::led::{Change, Log};
use super::pending::Blocks;
use super::reported::{Reported, ReportedLog};
use super::state::Inner;
use super::vcpus::Vcpus;
use super::{DirtyLog, LogKind};
use crate::error::{Error, Kind, Result};
use crate::memory::{BlockId, Map, MapObserver, Memory, WrittenObserver};
use crate::runtime::fair::{Fair, FairGuard};
use crate::units::Pages;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use vm_memory::GuestAddress;

pub use super::report::{Clearing, ConsumerStats, LogReport, StartWith, SyncReport, TrackerStats};

/// Merges the pages that all of a guest's dirty logs find, for any number of consumers
/// ([`Tracker::consumer`]), and restores the protection of pages before it hands them out.
///
/// Marks come from any thread and take no lock. Everything else takes
/// the tracker's lock, which may be held across the kernel's log calls and no other blocking call.
/// Queries do not wait for the lock: they answer with the figures at its last release.
pub struct Tracker {
    memory: Arc<Memory>,
    reported: Arc<Reported>,
    warning: Option<String>,
    clearing: Clearing,
    pub(super) inner: Fair<Inner>,
    pub(super) figures: Mutex<Figures>,
    /// Of the logs that tell vCPUs apart. Beside the logs, so that nobody waits for a sync.
    vcpus: Mutex<Vec<Arc<dyn Vcpus>>>,
    /// The last change of the map has happened and cannot be undone any more.
    change_happened: AtomicBool,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker")
            .field("started", &self.figures().started)
            .field("clearing", &self.clearing)
            .finish_non_exhaustive()
    }
}

impl Tracker {
    /// A tracker of `memory` whose only log is the VMM's own marks; add the other logs next. A
    /// chunk shift out of range is clamped, and [`Tracker::warning`] says so.
    pub fn new(memory: Arc<Memory>, clearing: Clearing) -> Result<Arc<Self>> {
        let (clearing, warning) = match clearing {
            Clearing::Chunked { shift } => {
                let (clamped, changed) = crate::bits::chunks::clamp_shift(shift);
                let warning = changed.then(|| {
                    format!("chunk shift {shift} is outside 6 to 31; {clamped} is used instead")
                });
                (Clearing::Chunked { shift: clamped }, warning)
            }
            Clearing::AtSync => (clearing, None),
        };
        let reported = Arc::new(Reported::new(Arc::clone(&memory)));
        let tracker = Arc::new(Tracker {
            figures: Mutex::default(),
            vcpus: Mutex::default(),
            change_happened: AtomicBool::new(false),
            inner: Fair::new(Inner {
                clearing,
                logs: vec![Log::new(Box::new(ReportedLog::new(Arc::clone(&reported))))],
                change: None,
                map: memory.map(),
                whole: memory.map(),
                unwatched: Vec::new(),
                blocks: Blocks::default(),
                members: Vec::new(),
                consumers: 0,
                started: false,
                stats: TrackerStats::default(),
                hints: Hints::default(),
                slow: Slow::default(),
            }),
            clearing,
            reported,
            warning,
            memory: Arc::clone(&memory),
        });
        let observer: Weak<dyn MapObserver> = {
            let weak: Weak<Tracker> = Arc::downgrade(&tracker);
            weak
        };
        let marks: Weak<dyn WrittenObserver> = {
            let weak: Weak<Reported> = Arc::downgrade(&tracker.reported);
            weak
        };
        memory.observe_written(marks);
        let now = memory.observe(observer);
        let mut inner = tracker.lock();
        // An observer's call may have brought a later map in the meantime.
        if inner.map.generation() < now.generation() {
            inner.whole = Arc::clone(&now);
            inner.map = now;
        }
        drop(inner);
        Ok(tracker)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Which parameter was clamped, in words.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// How protection is restored.
    pub fn clearing(&self) -> Clearing {
        self.clearing
    }

    /// Adds a log, while no consumer is started.
    ///
    /// # Errors
    /// [`Kind::State`] while a consumer is started. Stop every consumer, add the log, and start each
    /// with [`StartWith::Everything`]: nobody knows which pages
    /// the log would have found.
    pub fn add_log(&self, log: Box<dyn DirtyLog>) -> Result<()> {
        let mut inner = self.lock();
        if inner.started {
            return Err(Error::new(
                Kind::State,
                "a log is added while nothing is tracked, and a consumer of this tracker is \
                 started: stop every consumer, add the log, and start each with all pages, because \
                 nobody knows which pages the log would have found",
            ));
        }
        let at_sync = inner.clearing == Clearing::AtSync;
        let mut log = Guarded::new(log, at_sync)?;
        log.joins(self.memory.ownership());
        if let Some(vcpus) = log.vcpus() {
            self.vcpus().push(vcpus);
        }
        inner.logs.push(Log::new(Box::new(log)));
        Ok(())
    }

    pub(super) fn vcpus(&self) -> MutexGuard<'_, Vec<Arc<dyn Vcpus>>> {
        self.vcpus.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The log that takes the VMM's marks.
    pub(super) fn reported(&self) -> &Arc<Reported> {
        &self.reported
    }

    /// Reports a write at a guest address: see [`Reported::mark_guest`].
    pub fn mark_guest(&self, address: GuestAddress, length: u64) {
        self.reported.mark_guest(address, length);
    }

    /// Reports writes by a bitmap of `pages` pages from a guest address on: see
    /// [`Reported::mark_words`].
    pub fn mark_words(&self, address: GuestAddress, words: &[u64], pages: u64) {
        self.reported.mark_words(address, words, pages);
    }

    /// Reports a write in a block: see [`Reported::mark_block`].
    pub fn mark_block(&self, block: BlockId, offset: crate::units::Bytes, length: u64) {
        self.reported.mark_block(block, offset, length);
    }

    /// Reports a write at an address of this process: see [`Reported::mark_host`].
    pub fn mark_host(&self, host: *const u8, length: u64) {
        self.reported.mark_host(host as u64, length);
    }

    /// The number of stray marks since the tracker was made: marks by the VMM or by a log of another
    /// process (vhost) that name an address outside of every block. A mark of memory that was
    /// removed is one too. Strays are ignored and lose no page; many of them mean that the VMM's map
    /// and brant's differ.
    pub fn stray_marks(&self) -> u64 {
        self.reported.strays() + self.slow_figures().strays
    }

    /// The kinds of its logs, in the order in which they were added.
    pub(crate) fn kinds(&self) -> Vec<LogKind> {
        self.lock().logs.iter().map(|log| log.kind()).collect()
    }

    /// Whether tracking is on: whether any consumer is started.
    pub fn is_started(&self) -> bool {
        self.figures().started
    }

    /// Totals since tracking started.
    pub fn stats(&self) -> TrackerStats {
        self.figures().stats
    }

    /// Bytes of bitmaps and rings for the memory tracked: each consumer's pending, the chunks, and
    /// the logs' own. Words that were never touched count too, the kernel's memory does not.
    pub fn heap_bytes(&self) -> u64 {
        self.slow_figures().heap_bytes
    }
}

impl Tracker {
    /// Restores the protection of every chunk that waits for it. It takes the lock for one chunk at
    /// a time, so that consumers can take pages in between. Chunks that a sync arms meanwhile are
    /// left alone.
    pub(super) fn rearm_slowly(&self) -> Result<()> {
        let mut at = (BlockId(0), 0);
        loop {
            let mut inner = self.lock();
            match inner.rearm_next(at)? {
                Some(next) => at = next,
                None => return Ok(()),
            }
        }
    }
}

impl Drop for Tracker {
    /// Switches logging off: a logged guest is slow, and nobody else is left to do it.
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.started {
            inner.stop_logs();
        }
    }
}

/// Holds the tracker's lock, and publishes the figures before it lets go.
pub(super) struct Locked<'a> {
    tracker: &'a Tracker,
    inner: FairGuard<'a, Inner>,
}

impl Deref for Locked<'_> {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.tracker.change_happened.swap(false, Ordering::SeqCst) {
            self.inner.change = None;
        }
        for member in self.inner.members.iter().flatten() {
            member.published.publish(member.figures());
        }
        let now = self.inner.figures();
        *self.tracker.published() = now;
    }
}

impl Tracker {
    /// The lock, in turn.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            tracker: self,
            inner: self.inner.lock(),
        }
    }

    /// The figures published last. Never waits for the tracker's lock.
    pub(super) fn figures(&self) -> Figures {
        *self.published()
    }

    /// [`Figures::slow`], counted now if nobody holds the lock.
    pub(super) fn slow_figures(&self) -> Slow {
        match self.inner.try_lock() {
            Some(inner) => {
                let mut inner = Locked {
                    tracker: self,
                    inner,
                };
                inner.count_slowly();
                inner.slow
            }
            None => self.figures().slow,
        }
    }

    /// Locks the published figures, which are only a few words to copy.
    fn published(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl MapObserver for Tracker {
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.hints.close();
        if self.change_happened.swap(false, Ordering::SeqCst) {
            inner.change = None;
        }
        match inner.change.take() {
            Some(change) if change.is_taken_back_by(new) => inner.take_back(change),
            _ if inner.unwatched.is_empty() => inner.follow(Change::new(old, new)?)?,
            _ => {
                let narrow = Arc::new(new.without(&inner.unwatched));
                inner.follow(Change::narrowed(&inner.map, &narrow, old, new)?)?
            }
        }
        Ok(())
    }

    fn map_changed(&self, _: &Map, _: &Map) {
        // Drops what was pending of blocks that are gone. Waiting for the lock may take a whole
        // sync and is not worth it: the thread that holds the lock does this at its release.
        match self.inner.try_lock() {
            Some(mut inner) => inner.change = None,
            None => self.change_happened.store(true, Ordering::SeqCst),
        }
    }
}

impl WrittenObserver for Reported {
    fn written(&self, block: BlockId, first: Pages, count: Pages) {
        self.mark_block(block, first.bytes(), count.bytes().0);
    }
}

#[cfg(test)]
mod tests;
