//! The tracker: merges what all logs find into what is *pending*, and restores
//! protection chunk by chunk before pages are handed out.
//!
//! The bitmaps that stand between the kernel and whoever reads pages, and why each exists:
//! - the kernel's own (not ours);
//! - *pending*, one per block: pages still to be read, plain words under the tracker's lock;
//! - the *copy* of each slot's bitmap in manual-protect mode (see [`super::kvm::log`]): the
//!   argument of the clear;
//! - *reported*, for marks from any thread without a lock (see [`super::reported`]);
//! - *skip*, kept with the block and not here: pages that the guest has given back (see
//!   [`crate::memory::returned`], and `skip.rs` for what becomes of them in a walk);
//! - *chunks*: one bit for each 2^shift pages, saying that the chunk must be cleared before
//!   the next page of it is handed out.
//!
//! **Clear before copy.** [`Lease::take`] is the only way to get at a pending page, and it
//! restores the protection of the chunk first. So whatever the caller then decides, by
//! reading the page or by seeing that it need not be read, a write that comes later is found
//! by a later sync.
//!
//! **Nothing is lost.** A page leaves pending only through `take`. Whoever took it and
//! could not bring it where it belongs gives it back with [`Lease::put_back`].

use super::blocks::Blocks;
use super::figures::{Figures, Slow};
use super::guarded::Guarded;
use super::merge::{Nowhere, PendingSink};
use super::reported::{Reported, ReportedLog};
use super::skip::Hints;
use super::{DirtyLog, Harvested, Initial, LogKind, Origin, Rearmed, Sink, When};
use crate::bits::chunks::CHUNK_SHIFT_DEFAULT;
use crate::error::{Error, Kind, Result};
use crate::memory::returned::{Claim, TakenBack};
use crate::memory::{BlockId, BlockPin, Map, MapObserver, Memory};
use crate::runtime::fair::Fair;
use crate::units::{Pages, STRETCH_PAGES};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

/// How protection is restored where a log leaves that to its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clearing {
    /// Chunks of 2^shift pages, each before the first of its pages is handed out.
    Chunked {
        /// 6 to 31; 18 is 1 GiB.
        shift: u32,
    },
    /// The whole slot at each sync.
    AtSync,
}

impl Default for Clearing {
    fn default() -> Self {
        Clearing::Chunked {
            shift: CHUNK_SHIFT_DEFAULT,
        }
    }
}

/// What is pending when tracking starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartWith {
    /// Every page: whoever reads them all, and then what was written since, has a copy.
    Everything,
    /// No page: only what is written from now on is found.
    Nothing,
}

/// What one log did in a sync.
#[derive(Debug, Clone)]
pub struct LogReport {
    /// The log.
    pub kind: LogKind,
    /// How long it took, kernel calls and merging.
    pub time: Duration,
    /// Pages that became pending through it.
    pub found: Pages,
}

/// What a sync found and what it cost.
#[derive(Debug, Clone, Default)]
pub struct SyncReport {
    /// Pages that became pending; a page that was pending already does not count again.
    pub found: Pages,
    /// Pages that became pending because the guest has given them back since the last sync:
    /// whoever has a copy is to be told. Only while given-back pages are skipped.
    pub given_back: Pages,
    /// Pages pending afterwards.
    pub pending: Pages,
    /// Of those, pages given back: they are neither read nor sent.
    pub returned: Pages,
    /// All of it.
    pub time: Duration,
    /// Each log's share.
    pub logs: Vec<LogReport>,
    /// A log will deliver some of what it holds in the next sync.
    pub postponed: bool,
    /// A log failed, and what it covers counts as found: nobody knows how much was written.
    pub failed: bool,
    /// Logs that failed (their pages were all taken as dirty) or come later, in words.
    pub warnings: Vec<String>,
}

/// Where a walk over pending is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    block: u32,
    page: u64,
}

/// A run of pages taken out of pending. Their protection is restored; read them now, or put
/// them back.
#[derive(Debug, Clone)]
pub struct Run {
    /// The block, held so that its memory stays.
    pub block: BlockPin,
    /// First page.
    pub first: Pages,
    /// How many; they lie in one stretch.
    pub count: Pages,
    /// Whether they are to be read at all.
    pub content: Content,
}

/// What a run of pages is. Everything is [`Content::Used`] unless given-back pages are
/// skipped ([`Lease::skip_returned`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The guest uses it.
    Used,
    /// The guest has given it back, and must tell before it uses it again.
    Returned,
    /// The guest hinted that it was free, and has not written it since as far as is known.
    /// Whoever has no copy of it yet makes one of zeros.
    Free,
}

/// Running totals since tracking started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrackerStats {
    /// Syncs made.
    pub syncs: u64,
    /// Pages found by them.
    pub found: Pages,
    /// Clear calls made for chunks.
    pub clear_calls: u64,
    /// Bits they cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk.
    pub longest_clear: Duration,
    /// Pages put back.
    pub put_back: Pages,
    /// Given-back pages that were handed out as such, neither read nor sent. One that is told
    /// again counts again.
    pub skipped: Pages,
    /// Given-back pages that were found written all the same, and count as taken back.
    pub broken: Pages,
    /// Pages that free-page hints took out of pending.
    pub hinted: Pages,
    /// Hints that came too late: their round was over.
    pub stale_hints: u64,
}

pub(super) struct Inner {
    clearing: Clearing,
    pub(super) logs: Vec<Box<dyn DirtyLog>>,
    /// The map that the logs know: the memory's, with the changes announced to us.
    pub(super) map: Arc<Map>,
    pub(super) blocks: Blocks,
    pub(super) started: bool,
    start_with: StartWith,
    pub(super) stats: TrackerStats,
    /// Whether the lease's holder has given-back pages skipped.
    pub(super) skipping: bool,
    /// Whether it wants every page, hinted at or not.
    pub(super) hints_off: bool,
    /// Of what is pending, given-back pages as of the last sync or start, less those handed out.
    pub(super) returned: u64,
    pub(super) hints: Hints,
    pub(super) slow: Slow,
}

/// Pages that a walk looks ahead: 8 GiB, 64 words of a summary.
const WINDOW: u64 = 1 << 21;

/// What a walk wants.
#[derive(Clone, Copy)]
struct Wanted {
    /// Given-back pages are told apart.
    skipping: bool,
    /// Only what is not read.
    unread: bool,
}

/// See the file's description. Marks come from any thread and take no lock; everything else
/// takes the tracker's lock, which is never held across anything but the kernel's log calls. Queries
/// do not wait for it: they tell what was so when it was last let go of.
pub struct Tracker {
    memory: Arc<Memory>,
    reported: Arc<Reported>,
    leased: AtomicBool,
    warning: Option<String>,
    clearing: Clearing,
    pub(super) inner: Fair<Inner>,
    pub(super) figures: Mutex<Figures>,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let now = self.figures();
        f.debug_struct("Tracker")
            .field("started", &now.started)
            .field("clearing", &self.clearing)
            .field("pending", &now.pending)
            .finish_non_exhaustive()
    }
}

/// The right to sync and take, held by one user at a time.
///
/// A migration holds it for as long as it runs, so that nobody takes pages that it believes
/// it still has to send.
#[derive(Debug)]
pub struct Lease(Arc<Tracker>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.lock().stop_skipping();
        self.0.leased.store(false, Ordering::Release);
    }
}

impl std::ops::Deref for Lease {
    type Target = Arc<Tracker>;
    fn deref(&self) -> &Arc<Tracker> {
        &self.0
    }
}

impl Tracker {
    /// A tracker of `memory` that knows the VMM's own marks; add the other logs next. A chunk
    /// shift out of range is clamped, and [`Tracker::warning`] says so.
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
            inner: Fair::new(Inner {
                clearing,
                logs: vec![Box::new(ReportedLog::new(Arc::clone(&reported)))],
                map: memory.map(),
                blocks: Blocks::default(),
                started: false,
                start_with: StartWith::Everything,
                stats: TrackerStats::default(),
                skipping: false,
                hints_off: false,
                returned: 0,
                hints: Hints::default(),
                slow: Slow::default(),
            }),
            clearing,
            reported,
            leased: AtomicBool::new(false),
            warning,
            memory: Arc::clone(&memory),
        });
        let observer: Weak<dyn MapObserver> = {
            let weak: Weak<Tracker> = Arc::downgrade(&tracker);
            weak
        };
        let marks: Weak<dyn TakenBack> = {
            let weak: Weak<Reported> = Arc::downgrade(&tracker.reported);
            weak
        };
        memory.observe_taken(marks);
        let now = memory.observe(observer);
        let mut inner = tracker.lock();
        // We may have been told of a later one in the meantime.
        if inner.map.generation() < now.generation() {
            inner.map = now;
        }
        drop(inner);
        Ok(tracker)
    }

    /// The memory it tracks.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What was changed of what was asked for.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// How protection is restored.
    pub fn clearing(&self) -> Clearing {
        self.clearing
    }

    /// Adds a log; before tracking starts.
    pub fn add_log(&self, log: Box<dyn DirtyLog>) -> Result<()> {
        let mut inner = self.lock();
        if inner.started {
            return Err(Error::new(
                Kind::State,
                "logs are added before tracking starts",
            ));
        }
        let at_sync = inner.clearing == Clearing::AtSync;
        let mut log = Guarded::new(log, at_sync)?;
        log.joins(self.memory.ownership());
        inner.logs.push(Box::new(log));
        Ok(())
    }

    /// Reports a write at a guest address: see [`Reported::mark_guest`].
    pub fn mark_guest(&self, address: GuestAddress, length: u64) {
        self.reported.mark_guest(address, length);
    }

    /// Reports writes of the pages that `words` has bits for, the first `pages` of them, counted
    /// from a guest address: see [`Reported::mark_words`].
    pub fn mark_words(&self, address: GuestAddress, words: &[u64], pages: u64) {
        self.reported.mark_words(address, words, pages);
    }

    /// Reports a write in a block: see [`Reported::mark_block`].
    pub fn mark_block(&self, block: BlockId, offset: crate::units::Bytes, length: u64) {
        self.reported.mark_block(block, offset, length);
    }

    /// How many marks, of the VMM's or in a log that is shared with others, named addresses
    /// where no block is.
    pub fn stray_marks(&self) -> u64 {
        self.reported.strays() + self.slow_figures().strays
    }

    /// Becomes the one user who may start, stop, sync, take and put back.
    pub fn lease(self: &Arc<Self>) -> Result<Lease> {
        if self
            .leased
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            return Err(Error::new(
                Kind::Busy,
                "the tracker is in use by a migration, or by another call on it",
            ));
        }
        Ok(Lease(Arc::clone(self)))
    }

    /// Whether tracking is on.
    pub fn is_started(&self) -> bool {
        self.figures().started
    }

    /// Pages pending now.
    pub fn pending(&self) -> Pages {
        self.figures().pending
    }

    /// Totals since tracking started.
    pub fn stats(&self) -> TrackerStats {
        self.figures().stats
    }

    /// Pages that each vCPU wrote, by the harvests since the start, where a log can tell.
    pub fn vcpu_counts(&self) -> Option<Vec<u64>> {
        let inner = self.lock();
        let mut known = inner.logs.iter().filter_map(|log| log.vcpu_counts());
        let first = known.next()?;
        Some(known.fold(first, |mut sum, counts| {
            sum.resize(sum.len().max(counts.len()), 0);
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += count;
            }
            sum
        }))
    }

    /// Bytes of bitmaps and rings held for the memory tracked: what is pending, chunks, and
    /// the logs' own. The kernel's are not counted. Words that were never touched count too.
    pub fn heap_bytes(&self) -> u64 {
        self.slow_figures().heap_bytes
    }
}

impl Drop for Tracker {
    /// Nobody is left to switch logging off, and a logged guest is a slow one.
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.started {
            inner.stop();
        }
    }
}

/// Everything that needs the lease.
impl Lease {
    /// Starts all logs. What was pending before is forgotten.
    pub fn start(&self, with: StartWith) -> Result<()> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.started {
            return Err(Error::new(Kind::State, "tracking is started already"));
        }
        // Not the memory's current map: a change that we were told of already may not have
        // taken effect there yet, and nobody would tell us again.
        let map = Arc::clone(&inner.map);
        inner.blocks.clear();
        inner.stats = TrackerStats::default();
        inner.hints.close();
        for block in map.blocks() {
            inner.make_block(block)?;
        }
        // Before the logs start: of a page given back later they may know from before that.
        inner.forget_news();
        let mut unprotected = Vec::new();
        for i in 0..inner.logs.len() {
            match inner.logs[i].start(&map) {
                Ok(Initial::Clean) => {}
                Ok(Initial::Unprotected) => unprotected.push(i),
                Err(e) => {
                    let name = inner.logs[i].name();
                    for log in &mut inner.logs[..i] {
                        // The first error is the one to tell.
                        let _ = log.stop(&map);
                    }
                    inner.blocks.clear();
                    return Err(e.context(format_args!("starting {name}")));
                }
            }
        }
        inner.started = true;
        inner.start_with = with;
        let begun = match with {
            StartWith::Everything => {
                for block in inner.blocks.iter_mut() {
                    block.pending.set_all();
                    // Nothing is handed out before its chunk is cleared. Where the log
                    // protected all at its start, that finds nothing to do.
                    if let Some(chunks) = &mut block.chunks {
                        chunks.arm_all();
                    }
                }
                inner.protect_now(&map, &unprotected, |log| !log.rearms())
            }
            StartWith::Nothing => inner.protect_now(&map, &unprotected, |_| true),
        };
        if let Err(e) = begun {
            inner.stop();
            return Err(e);
        }
        inner.count_returned();
        inner.count_slowly();
        Ok(())
    }

    /// Makes every page pending, as a start with [`StartWith::Everything`] does, while
    /// tracking goes on.
    pub fn mark_all(&self) {
        let mut inner = self.lock();
        inner.hints.close();
        for block in inner.blocks.iter_mut() {
            block.pending.set_all();
            block.beside.forget();
            if let Some(chunks) = &mut block.chunks {
                chunks.arm_all();
            }
        }
        inner.count_returned();
    }

    /// Stops all logs, after taking what they hold. What is pending stays.
    pub fn stop(&self) -> Result<()> {
        let mut inner = self.lock();
        if !inner.started {
            return Ok(());
        }
        // What a stopped log still holds is gone afterwards, so it is read first; and where it
        // could not be read to the end, every page may have been written.
        let harvested = inner.sync(When::Running);
        inner.stop();
        if harvested.as_ref().map_or(true, |report| report.postponed) {
            for block in inner.blocks.iter_mut() {
                block.pending.set_all();
            }
        }
        harvested.map(|_| ())
    }

    /// Harvests all logs into pending.
    ///
    /// With [`When::Stopped`] the harvest is the last before memory counts as frozen, and a
    /// log that fails, or that has to postpone, is an error; otherwise what a failed log
    /// covers is taken as dirty and the report has a warning.
    pub fn sync(&self, when: When) -> Result<SyncReport> {
        let mut inner = self.lock();
        if !inner.started {
            return Err(Error::new(Kind::State, "tracking is not started"));
        }
        inner.sync(when)
    }

    /// Takes runs of pending pages from `cursor` on, in order, into `runs` (which is emptied
    /// first): at most `max_runs` of them and about `max_pages` pages. No run crosses a
    /// stretch. Before a run is handed out, the chunks it lies in are cleared.
    ///
    /// Nothing in `runs` afterwards means that the walk has come to the end; the cursor is
    /// at the beginning again.
    pub fn take(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        self.take_what(cursor, max_runs, max_pages, false, runs)
    }

    /// [`Lease::take`], or of what that would hand out, only what is not read.
    pub(super) fn take_what(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
        unread: bool,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        runs.clear();
        if max_runs == 0 || max_pages.0 == 0 {
            // Nothing was asked for; that says nothing of the walk.
            return Ok(());
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        let begun = *cursor;
        let mut left = max_pages.0;
        let what = Wanted {
            skipping: inner.skipping && self.memory.must_tell_host(),
            unread,
        };
        while runs.len() < max_runs && left > 0 {
            match inner.take_one(cursor, left, what) {
                Ok(Some(run)) => {
                    // A run that is not read costs a header, however long it is.
                    if run.content == Content::Used {
                        left -= run.count.0;
                    }
                    runs.push(run);
                }
                Ok(None) => break,
                Err(e) => {
                    for run in runs.drain(..) {
                        inner.put_back(run.block.id(), run.first, run.count);
                    }
                    *cursor = begun;
                    return Err(e);
                }
            }
        }
        if runs.is_empty() {
            *cursor = Cursor::default();
        }
        Ok(())
    }

    /// Makes pages pending again that were taken and did not arrive. Blocks that are gone
    /// are passed over. Works after [`Lease::stop`] too.
    pub fn put_back(&self, block: BlockId, first: Pages, count: Pages) {
        let mut inner = self.lock();
        let new = inner.put_back(block, first, count);
        inner.stats.put_back += new;
    }
}

impl Inner {
    pub(super) fn pending(&self) -> Pages {
        self.blocks.pending()
    }

    fn make_block(&mut self, block: &Arc<crate::memory::Block>) -> Result<()> {
        let shift = match self.clearing {
            Clearing::Chunked { shift } => Some(shift),
            Clearing::AtSync => None,
        };
        self.blocks.add(block, shift)
    }

    /// Restores the protection of everything, right at the start, for logs that began
    /// unprotected and that `which` selects.
    fn protect_now(
        &mut self,
        map: &Map,
        unprotected: &[usize],
        which: impl Fn(&dyn DirtyLog) -> bool,
    ) -> Result<()> {
        for &i in unprotected {
            let log = &mut self.logs[i];
            if !which(&**log) {
                continue;
            }
            if log.rearms() {
                for block in map.blocks() {
                    log.rearm(map, block.id(), 0..block.pages().0)?;
                }
            } else {
                // It clears in its harvest; what that finds is all, and known already.
                log.harvest(map, When::Running, &mut Nowhere)?;
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.started = false;
        self.hints.close();
        let map = Arc::clone(&self.map);
        for log in &mut self.logs {
            // A log that cannot be switched off costs speed, not correctness.
            let _ = log.stop(&map);
        }
    }

    fn sync(&mut self, when: When) -> Result<SyncReport> {
        let begun = Instant::now();
        // A hint given before what is found now must not undo it.
        self.hints.close();
        // Before the harvest: what is found below may have been written before the page was
        // given back, what is found later was not.
        let mut report = SyncReport {
            given_back: self.harvest_news(),
            ..SyncReport::default()
        };
        let map = Arc::clone(&self.map);
        let Inner { logs, blocks, .. } = self;
        for log in logs {
            let log_begun = Instant::now();
            let mut sink = PendingSink {
                map: &map,
                blocks,
                arms: log.rearms(),
                found: 0,
            };
            let outcome = log.harvest(&map, when, &mut sink);
            match outcome {
                Ok(Harvested::Complete) => {}
                Ok(Harvested::Told(told)) => {
                    let named = told.into_iter().map(|t| format!("{}: {t}", log.name()));
                    report.warnings.extend(named);
                }
                Ok(Harvested::Postponed(e)) => {
                    if when == When::Stopped {
                        return Err(e.context(format_args!("the last harvest of {}", log.name())));
                    }
                    report.postponed = true;
                    report.warnings.push(format!("{}: {e}", log.name()));
                }
                Err(e) => {
                    for extent in log.covered(&map) {
                        sink.everything(
                            Origin::Block {
                                block: extent.block,
                                page: Pages(extent.pages.start),
                            },
                            Pages(extent.pages.end - extent.pages.start),
                        );
                    }
                    if when == When::Stopped {
                        return Err(e.context(format_args!("the last harvest of {}", log.name())));
                    }
                    report.failed = true;
                    report.warnings.push(format!(
                        "{} failed, so all that it covers counts as dirty: {e}",
                        log.name()
                    ));
                }
            }
            let found = Pages(sink.found);
            report.found += found;
            report.logs.push(LogReport {
                kind: log.kind(),
                time: log_begun.elapsed(),
                found,
            });
        }
        report.found += self.take_back_broken();
        report.pending = self.pending();
        report.returned = self.count_returned();
        self.count_slowly();
        report.time = begun.elapsed();
        self.stats.syncs += 1;
        self.stats.found += report.found;
        Ok(report)
    }

    fn take_one(
        &mut self,
        cursor: &mut Cursor,
        max_pages: u64,
        what: Wanted,
    ) -> Result<Option<Run>> {
        loop {
            let Some((id, state)) = self.blocks.at_or_after(BlockId(cursor.block)) else {
                return Ok(None);
            };
            if id.0 != cursor.block {
                *cursor = Cursor {
                    block: id.0,
                    page: 0,
                };
            }
            let next_block = Cursor {
                block: cursor.block + 1,
                page: 0,
            };
            if state.pending.is_empty() && state.beside.none_free() {
                *cursor = next_block;
                continue;
            }
            // Not all of a large block at once: of two bitmaps, the one with nothing for a long way
            // would be looked through anew for each run of the other.
            let window = cursor.page.saturating_add(WINDOW);
            let found = if what.unread && !what.skipping {
                None
            } else if what.unread {
                state.next_returned(cursor.page, window)
            } else {
                state.next_pending(cursor.page, window)
            };
            // A hinted page that was found written since is pending, and that wins.
            let before = found.as_ref().map_or(window, |found| found.start);
            if let Some(free) = state.next_free(cursor.page, before) {
                cursor.page = free.end;
                return Ok(Some(state.run(free, Content::Free)));
            }
            let Some(found) = found else {
                cursor.page = window;
                if window >= state.pin_source.pages().0 {
                    *cursor = next_block;
                }
                continue;
            };
            let first = found.start;
            let stretch_end = (first / STRETCH_PAGES + 1) * STRETCH_PAGES;
            let end = found
                .end
                .min(stretch_end)
                .min(first.saturating_add(max_pages));
            // Rule: protection comes back before anybody looks at the page, be it only to
            // decide that it need not be read. (GET, the page is a hole, the guest writes
            // it, CLEAR with the old copy: bit and page are both gone.)
            self.rearm(id, first..end)?;
            let Some(state) = self.blocks.get_mut(id) else {
                return Ok(None);
            };
            let (count, content) = if what.skipping {
                match state.claim(first..end) {
                    Claim::Used(count) => (count, Content::Used),
                    Claim::Returned(count) => (count, Content::Returned),
                    Claim::Broken(used) => {
                        // Written although it was given back: all of the host page is the
                        // guest's again. Its pages are pending now, this one among them.
                        self.stats.broken += Pages(used.end - used.start);
                        // Some may lie before this one, and the walk is to end with none left.
                        cursor.page = cursor.page.min(used.start);
                        continue;
                    }
                }
            } else {
                (end - first, Content::Used)
            };
            if what.unread && content == Content::Used {
                // Taken back a moment ago.
                cursor.page = first + count;
                continue;
            }
            let taken = first..first + count;
            state.pending.clear_range(first as usize, count as usize);
            state.beside.handed_out(taken.clone(), content);
            cursor.page = taken.end;
            let run = state.run(taken, content);
            if content == Content::Returned {
                self.returned = self.returned.saturating_sub(count);
                self.stats.skipped += Pages(count);
            }
            return Ok(Some(run));
        }
    }

    /// Clears the armed chunks that `pages` lie in.
    pub(super) fn rearm(&mut self, id: BlockId, pages: std::ops::Range<u64>) -> Result<()> {
        let Inner {
            logs,
            blocks,
            map,
            stats,
            ..
        } = self;
        let Some(state) = blocks.get_mut(id) else {
            return Ok(());
        };
        let Some(chunks) = &mut state.chunks else {
            return Ok(());
        };
        let last = chunks.chunk_of(pages.end as usize - 1);
        for chunk in chunks.chunk_of(pages.start as usize)..=last {
            if !chunks.is_armed(chunk) {
                continue;
            }
            let range = chunks.pages_of(chunk);
            let begun = Instant::now();
            let mut done = Rearmed::default();
            for log in logs.iter_mut().filter(|log| log.rearms()) {
                let this = log
                    .rearm(map, id, range.start as u64..range.end as u64)
                    .map_err(|e| {
                        e.context(format_args!(
                            "restoring the protection of pages {} to {} of block `{}`",
                            range.start,
                            range.end,
                            state.pin_source.name()
                        ))
                    })?;
                done.calls += this.calls;
                done.bits += this.bits;
            }
            // Disarmed only now: after an error the chunk is still to be cleared.
            chunks.disarm(chunk);
            stats.clear_calls += done.calls;
            stats.clear_bits += done.bits;
            stats.longest_clear = stats.longest_clear.max(begun.elapsed());
        }
        Ok(())
    }

    /// Makes room for the blocks that are not in `old` and has all logs follow a change;
    /// if one refuses, those before it are led back.
    fn follow(&mut self, old: &Map, new: &Map) -> Result<()> {
        for block in new.blocks_not_in(old) {
            self.make_block(&block)?;
        }
        let Inner { logs, blocks, .. } = self;
        for i in 0..logs.len() {
            let mut sink = PendingSink {
                map: old,
                blocks,
                arms: logs[i].rearms(),
                found: 0,
            };
            let Err(e) = logs[i].map_changes(old, new, &mut sink) else {
                continue;
            };
            for log in &mut logs[..i] {
                let mut sink = PendingSink {
                    map: new,
                    blocks,
                    arms: log.rearms(),
                    found: 0,
                };
                // The first error is the one to tell.
                let _ = log.map_changes(new, old, &mut sink);
            }
            return Err(e.context(format_args!(
                "{}: following a change of the memory map",
                logs[i].name()
            )));
        }
        Ok(())
    }

    /// Makes everything pending that is in `new` and not in `old`.
    fn mark_fresh(&mut self, old: &Map, new: &Map) {
        let (slots, blocks) = (new.slots_not_in(old), new.blocks_not_in(old));
        let ranges = slots
            .iter()
            .map(|s| (s.block, s.first, s.pages))
            .chain(blocks.iter().map(|b| (b.id(), Pages(0), b.pages())));
        for (block, first, pages) in ranges {
            if let Some(state) = self.blocks.get_mut(block) {
                state.pending.set_range(first.index(), pages.index());
                if let Some(chunks) = &mut state.chunks {
                    chunks.arm_range(first.index(), pages.index());
                }
            }
        }
    }

    /// Forgets the blocks that `before` has and `map` has not.
    fn forget_gone(&mut self, before: &Map, map: &Map) {
        for block in before.blocks_not_in(map) {
            self.blocks.remove(block.id());
        }
    }

    fn put_back(&mut self, block: BlockId, first: Pages, count: Pages) -> Pages {
        match self.blocks.get_mut(block) {
            Some(state) => {
                // Nobody wrote it for that: if it is given back, it still is.
                state
                    .beside
                    .put_back(first.0..first.0.saturating_add(count.0));
                Pages(state.pending.set_range(first.index(), count.index()))
            }
            _ => Pages(0),
        }
    }
}

impl MapObserver for Tracker {
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.hints.close();
        if !inner.started {
            // Pages can be pending after tracking was stopped; not those of a block that goes.
            inner.forget_gone(old, new);
            inner.map = Arc::clone(new);
            return Ok(());
        }
        if let Err(e) = inner.follow(old, new) {
            // What a log that was led back knew of them, it may have forgotten.
            inner.mark_fresh(new, old);
            inner.forget_gone(new, old);
            return Err(e);
        }
        // What a new slot's pages hold was written before anybody logged it.
        inner.mark_fresh(old, new);
        inner.forget_gone(old, new);
        inner.map = Arc::clone(new);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
