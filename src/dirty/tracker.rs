//! The tracker: merges what all logs find into what is *pending*, and restores
//! protection chunk by chunk before pages are handed out.
//!
//! The bitmaps that stand between the kernel and whoever reads pages, and why each exists:
//! - the kernel's own (not ours);
//! - *pending*, one per block and consumer: pages still to be read, plain words under the
//!   tracker's lock;
//! - the *copy* of each slot's bitmap in manual-protect mode (see [`super::kvm::log`]): the
//!   argument of the clear;
//! - *reported*, for marks from any thread without a lock (see [`super::reported`]);
//! - *skip*, kept with the block and not here: pages that the guest has given back (see
//!   [`crate::memory::returned`], and `skip.rs` for what becomes of them in a walk);
//! - *chunks*: one bit for each 2^shift pages, saying that the chunk must be cleared before
//!   the next page of it is handed out.
//!
//! **Clear before copy.** [`super::consumer::Consumer::take`] is the only way to get at a pending
//! page, and it restores the protection of the chunk first. So whatever the caller then decides, by
//! reading the page or by seeing that it need not be read, a write that comes later is found
//! by a later sync. Chunk bits belong to the tracker: whoever takes first from a chunk restores
//! its protection for every consumer, and a later harvest arms it again for every consumer.
//!
//! **Nothing is lost.** A page leaves a consumer's pending only through its own take. What of
//! each consumer is in [`super::consumer`].

use super::beside::Hints;
use super::blocks::{Blocks, Phase, Seat};
use super::figures::{ConsumerFigures, Figures, Published, Slow};
use super::guarded::Guarded;
use super::merge::{Nowhere, PendingSink};
use super::reported::{Reported, ReportedLog};
use super::{DirtyLog, Harvested, Initial, LogKind, Rearmed, When};
use crate::bits::chunks::CHUNK_SHIFT_DEFAULT;
use crate::error::{Error, Kind, Result};
use crate::memory::returned::TakenBack;
use crate::memory::{Block, BlockId, Map, MapObserver, Memory, Slot};
use crate::runtime::fair::Fair;
use crate::units::Pages;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// What is pending when a consumer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartWith {
    /// Every page: whoever reads them all, and then what was written since, has a copy.
    Everything,
    /// No page: only what is written from now on is found.
    Nothing,
}

/// What one log did in a sync.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogReport {
    /// What the log is.
    pub kind: LogKind,
    /// Its name: several logs may be of one kind.
    pub name: &'static str,
    /// How long it took, kernel calls and merging.
    pub time: Duration,
    /// Pages that became pending through it.
    pub found: Pages,
}

/// What a sync found and what it cost.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SyncReport {
    /// Pages that became pending for the consumer that asked; a page that was pending there
    /// already does not count again.
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

/// Running totals since tracking started, whoever asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerStats {
    /// Syncs made.
    pub syncs: u64,
    /// Clear calls made for chunks.
    pub clear_calls: u64,
    /// Bits they cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk.
    pub longest_clear: Duration,
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

/// Running totals of one consumer since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Syncs that it heard of, whoever asked for them.
    pub syncs: u64,
    /// Those of them in which a log failed, so that all that it covers was found.
    pub failed_syncs: u64,
    /// Pages that became pending by them.
    pub found: Pages,
    /// Pages put back.
    pub put_back: Pages,
    /// Clear calls made for chunks meanwhile, whoever took from them.
    pub clear_calls: u64,
    /// Bits they cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk meanwhile.
    pub longest_clear: Duration,
    /// Given-back pages that were handed out as such. One that is told again counts again.
    pub skipped: Pages,
    /// Given-back pages that were found written all the same, and count as taken back.
    pub broken: Pages,
    /// Pages that free-page hints took out of pending.
    pub hinted: Pages,
}

/// What the tracker knows of one consumer, its pages apart: those are with the blocks.
pub(super) struct Member {
    pub(super) phase: Phase,
    /// Whether it has given-back pages told apart, and hints used.
    pub(super) skipping: bool,
    /// Of what is pending, given-back pages as of the last sync or start, less those handed out.
    pub(super) returned: u64,
    pub(super) stats: ConsumerStats,
    /// Pages pending for it in all blocks.
    pub(super) total: Arc<AtomicU64>,
    pub(super) published: Arc<Published>,
}

impl Member {
    pub(super) fn new(published: &Arc<Published>) -> Self {
        Member {
            phase: Phase::Stopped,
            skipping: false,
            returned: 0,
            stats: ConsumerStats::default(),
            total: Arc::default(),
            published: Arc::clone(published),
        }
    }

    fn pending(&self) -> Pages {
        Pages(self.total.load(Ordering::Relaxed))
    }

    pub(super) fn figures(&self) -> ConsumerFigures {
        ConsumerFigures {
            stats: self.stats,
            started: self.phase != Phase::Stopped,
            pending: self.pending(),
            returned: self.returned,
        }
    }
}

pub(super) struct Inner {
    clearing: Clearing,
    pub(super) logs: Vec<Box<dyn DirtyLog>>,
    /// The map that the logs know: the memory's, with the changes announced to us.
    pub(super) map: Arc<Map>,
    pub(super) blocks: Blocks,
    /// By seat.
    pub(super) members: Vec<Option<Member>>,
    /// Whether the logs are on: while any consumer is started.
    pub(super) started: bool,
    pub(super) stats: TrackerStats,
    pub(super) hints: Hints,
    pub(super) slow: Slow,
}

/// See the file's description. Marks come from any thread and take no lock; everything else
/// takes the tracker's lock, which is never held across anything but the kernel's log calls. Queries
/// do not wait for it: they tell what was so when it was last let go of.
pub struct Tracker {
    memory: Arc<Memory>,
    reported: Arc<Reported>,
    warning: Option<String>,
    clearing: Clearing,
    pub(super) inner: Fair<Inner>,
    pub(super) figures: Mutex<Figures>,
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
                members: Vec::new(),
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

    /// Whether tracking is on: whether any consumer is started.
    pub fn is_started(&self) -> bool {
        self.figures().started
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

    /// Bytes of bitmaps and rings held for the memory tracked: what is pending for each
    /// consumer, chunks, and the logs' own. The kernel's are not counted. Words that were never touched count too.
    pub fn heap_bytes(&self) -> u64 {
        self.slow_figures().heap_bytes
    }
}

impl Drop for Tracker {
    /// Nobody is left to switch logging off, and a logged guest is a slow one.
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.started {
            inner.stop_logs();
        }
    }
}

impl Inner {
    pub(super) fn pending(&self, seat: Seat) -> Pages {
        let member = self.members.get(seat).and_then(Option::as_ref);
        member.map_or(Pages(0), Member::pending)
    }

    pub(super) fn member(&mut self, seat: Seat) -> Option<&mut Member> {
        self.members.get_mut(seat)?.as_mut()
    }

    /// The consumers in this phase.
    pub(super) fn seats(&self, phase: Phase) -> Vec<Seat> {
        let members = self.members.iter().enumerate();
        let those = members.filter(|(_, m)| m.as_ref().is_some_and(|m| m.phase == phase));
        those.map(|(seat, _)| seat).collect()
    }

    /// Has a consumer told of what `phase` says from here on.
    pub(super) fn set_phase(&mut self, seat: Seat, phase: Phase) {
        if let Some(member) = self.member(seat) {
            member.phase = phase;
        }
        for set in self.blocks.sets_mut(seat) {
            set.phase = phase;
        }
    }

    /// Room for a block: its chunks, none armed, and nobody's pages.
    fn make_block(&mut self, block: &Arc<crate::memory::Block>) -> Result<()> {
        let shift = match self.clearing {
            Clearing::Chunked { shift } => Some(shift),
            Clearing::AtSync => None,
        };
        self.blocks.add(block, shift)
    }

    /// Room for a block's pages, for each consumer that is started.
    fn make_started_sets(&mut self, block: BlockId) -> Result<()> {
        let Some(state) = self.blocks.get_mut(block) else {
            return Ok(());
        };
        for (seat, member) in self.members.iter().enumerate() {
            let Some(member) = member.as_ref().filter(|m| m.phase != Phase::Stopped) else {
                continue;
            };
            state.make_set(seat, &member.total)?;
            if let Some(set) = state.set_mut(seat) {
                set.phase = member.phase;
            }
        }
        Ok(())
    }

    /// Switches all logs on; nobody is started yet. With `everything`, the first consumer has
    /// every page pending, and chunks are cleared when it takes; else all is protected when this
    /// returns.
    pub(super) fn start_logs(&mut self, everything: bool) -> Result<()> {
        // Not the memory's current map: a change that we were told of already may not have
        // taken effect there yet, and nobody would tell us again.
        let map = Arc::clone(&self.map);
        self.stats = TrackerStats::default();
        self.hints.close();
        for block in map.blocks() {
            self.make_block(block)?;
        }
        let mut unprotected = Vec::new();
        for i in 0..self.logs.len() {
            match self.logs[i].start(&map) {
                Ok(Initial::Clean) => {}
                Ok(Initial::Unprotected) => unprotected.push(i),
                Err(e) => {
                    let name = self.logs[i].name();
                    for log in &mut self.logs[..i] {
                        // The first error is the one to tell.
                        let _ = log.stop(&map);
                    }
                    return Err(e.context(format_args!("starting {name}")));
                }
            }
        }
        self.started = true;
        let begun = if everything {
            for block in self.blocks.iter_mut() {
                // Nothing is handed out before its chunk is cleared. Where the log
                // protected all at its start, that finds nothing to do.
                if let Some(chunks) = &mut block.chunks {
                    chunks.arm_all();
                }
            }
            self.protect_now(&map, &unprotected, |log| !log.rearms())
        } else {
            self.protect_now(&map, &unprotected, |_| true)
        };
        if let Err(e) = begun {
            self.stop_logs();
            return Err(e);
        }
        Ok(())
    }

    /// Switches all logs off when no consumer is started any more.
    pub(super) fn stop_logs_if_unused(&mut self) {
        let used = self.members.iter().flatten();
        if self.started && used.filter(|m| m.phase != Phase::Stopped).count() == 0 {
            self.stop_logs();
        }
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

    fn stop_logs(&mut self) {
        self.started = false;
        self.hints.close();
        let map = Arc::clone(&self.map);
        for log in &mut self.logs {
            // A log that cannot be switched off costs speed, not correctness.
            let _ = log.stop(&map);
        }
    }

    /// Harvests all logs into every consumer that follows, and reports what that was for `whose`.
    pub(super) fn sync(&mut self, when: When, whose: Option<Seat>) -> Result<SyncReport> {
        let begun = Instant::now();
        let mut others = self.seats(Phase::Following);
        others.retain(|seat| Some(*seat) != whose);
        let before: Vec<Pages> = others.iter().map(|seat| self.pending(*seat)).collect();
        // A hint given before what is found now must not undo it.
        self.hints.close();
        // Before the harvest: what is found below may have been written before the page was
        // given back, what is found later was not.
        let mut report = SyncReport {
            given_back: self.harvest_news(whose),
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
                whose,
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
                    log.covered(&map, &mut |extent| extent.everything(&mut sink));
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
                name: log.name(),
                time: log_begun.elapsed(),
                found,
            });
        }
        report.found += self.take_back_broken(whose);
        self.count_returned();
        if let Some(seat) = whose {
            report.pending = self.pending(seat);
            if let Some(member) = self.member(seat) {
                report.returned = Pages(member.returned);
                member.stats.found += report.found;
            }
        }
        for (seat, before) in others.into_iter().zip(before) {
            let now = self.pending(seat);
            if let Some(member) = self.member(seat) {
                member.stats.found += now - before;
            }
        }
        self.count_slowly();
        self.stats.syncs += 1;
        let members = self.members.iter_mut().flatten();
        for member in members.filter(|m| m.phase == Phase::Following) {
            member.stats.syncs += 1;
            member.stats.failed_syncs += u64::from(report.failed);
        }
        report.time = begun.elapsed();
        Ok(report)
    }

    /// Clears the armed chunks that `pages` lie in.
    pub(super) fn rearm(&mut self, id: BlockId, pages: std::ops::Range<u64>) -> Result<()> {
        let Inner {
            logs,
            blocks,
            members,
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
            let time = begun.elapsed();
            stats.clear_calls += done.calls;
            stats.clear_bits += done.bits;
            stats.longest_clear = stats.longest_clear.max(time);
            for member in members.iter_mut().flatten() {
                member.stats.clear_calls += done.calls;
                member.stats.clear_bits += done.bits;
                member.stats.longest_clear = member.stats.longest_clear.max(time);
            }
        }
        Ok(())
    }

    /// Restores the protection of the next armed chunk at or after `at`, a block and a chunk of
    /// it. `None` when there is none.
    pub(super) fn rearm_next(&mut self, at: (BlockId, usize)) -> Result<Option<(BlockId, usize)>> {
        let (mut block, mut chunk) = at;
        while let Some((id, state)) = self.blocks.at_or_after(block) {
            if id != block {
                chunk = 0;
            }
            let armed = state
                .chunks
                .as_ref()
                .and_then(|c| c.next_armed(chunk).map(|n| (n, c.pages_of(n))));
            if let Some((n, pages)) = armed {
                self.rearm(id, pages.start as u64..pages.end as u64)?;
                return Ok(Some((id, n + 1)));
            }
            (block, chunk) = (BlockId(id.0 + 1), 0);
        }
        Ok(None)
    }

    /// Restores the protection of every chunk that waits for it.
    pub(super) fn rearm_all(&mut self) -> Result<()> {
        let mut at = (BlockId(0), 0);
        while let Some(next) = self.rearm_next(at)? {
            at = next;
        }
        Ok(())
    }

    /// Makes room for the blocks that are not in `old` and has all logs follow a change;
    /// if one refuses, those before it are led back.
    fn follow(&mut self, old: &Map, new: &Map) -> Result<()> {
        for block in new.blocks_not_in(old)? {
            self.make_block(&block)?;
            self.make_started_sets(block.id())?;
        }
        let Inner { logs, blocks, .. } = self;
        for i in 0..logs.len() {
            let mut sink = PendingSink {
                map: old,
                blocks,
                arms: logs[i].rearms(),
                whose: None,
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
                    whose: None,
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

    /// Makes all that these slots and blocks show pending.
    fn mark_fresh(&mut self, slots: &[Arc<Slot>], blocks: &[Arc<Block>]) {
        let ranges = slots
            .iter()
            .map(|s| (s.block, s.first, s.pages))
            .chain(blocks.iter().map(|b| (b.id(), Pages(0), b.pages())));
        for (block, first, pages) in ranges {
            if let Some(state) = self.blocks.get_mut(block) {
                state.set_for_all(first.index(), pages.index());
                if let Some(chunks) = &mut state.chunks {
                    chunks.arm_range(first.index(), pages.index());
                }
            }
        }
    }

    /// Forgets these blocks.
    fn forget_gone(&mut self, gone: &[Arc<Block>]) {
        for block in gone {
            self.blocks.remove(block.id());
        }
    }
}

impl MapObserver for Tracker {
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.hints.close();
        // Listed before anything changes: afterwards nothing may fail.
        let (gone, came) = (old.blocks_not_in(new)?, new.blocks_not_in(old)?);
        let (hidden, shown) = (old.slots_not_in(new)?, new.slots_not_in(old)?);
        if !inner.started {
            // Pages can be pending after tracking was stopped; not those of a block that goes.
            inner.forget_gone(&gone);
            inner.map = Arc::clone(new);
            return Ok(());
        }
        if let Err(e) = inner.follow(old, new) {
            // What a log that was led back knew of them, it may have forgotten.
            inner.mark_fresh(&hidden, &gone);
            inner.forget_gone(&came);
            return Err(e);
        }
        // What a new slot's pages hold was written before anybody logged it.
        inner.mark_fresh(&shown, &came);
        inner.forget_gone(&gone);
        inner.map = Arc::clone(new);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
