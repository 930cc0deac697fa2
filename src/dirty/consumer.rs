//! A consumer: a user of the tracker who hears of each written page once.
//!
//! A tracker can have several consumers at a time: a migration, an incremental backup, a
//! measurement of the dirty rate. Each has a *pending* of its own. A sync by any of them adds the
//! pages that it found to the pending of every started consumer. A take removes pages from the
//! taker's pending only. So no consumer loses a page through what another one does.
//!
//! Consumers share the protection of pages. The logs run while any consumer is started, and a take
//! by one consumer clears the chunk for all. Example of a write that must not be lost: a sync
//! harvests page 5 for a backup. A second consumer starts and wants to hear only of writes from now
//! on. The guest writes page 5, which is still unprotected because nobody has cleared its chunk.
//! The backup takes page 5: the clear drops the bit, and the second consumer never hears of the
//! write. There are two ways out. A consumer that starts clean could get every page that others
//! have pending, which is too many. Or the protection of every chunk is restored before it starts:
//! [`Consumer::start`] does that.
//!
//! **Clear before copy** holds for each consumer: [`Consumer::take`] restores the protection of a
//! chunk before it hands out the chunk's first page. A chunk that another consumer's take has
//! cleared needs no second clear. The kernel's log holds the writes since, and a later sync brings
//! them to every consumer.

use super::figures::Published;
use super::lease::Lease;
use super::pending::{Phase, Seat};
use super::report::{ConsumerStats, StartWith, SyncReport};
use super::run::Manner;
use super::state::{Inner, Member};
use super::take::Wanted;
use super::taken::Taken;
use super::tracker::Tracker;
use super::When;
use crate::error::{Error, Kind, Result};
use crate::memory::{BlockId, Holder, Map};
use crate::runtime::Cancel;
use crate::units::Pages;
use std::sync::Arc;

pub use super::run::{Content, Cursor, Run};

/// One user of a tracker's pages; see the file's description. All methods may be called from any
/// thread. Queries do not wait for the tracker's lock: they answer with the figures at its last
/// release. A dropped consumer ends when none of the pages that it took are on their way any more.
/// If no other consumer is started, the logs stop then.
///
/// A backup needs no migration:
///
/// ```
/// use brant::dirty::consumer::{Consumer, Cursor};
/// use brant::dirty::tracker::{Clearing, StartWith, Tracker};
/// use brant::dirty::{When, WriteMarks};
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::units::Pages;
/// use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// use std::sync::Arc;
///
/// /// Copies what is pending into an image of the guest's one block; how many pages that were.
/// fn back_up(consumer: &Consumer, image: &mut [u8]) -> brant::Result<u64> {
///     let (mut cursor, mut copied) = (Cursor::default(), 0);
///     loop {
///         let taken = consumer.take(&mut cursor, 256, Pages(512))?;
///         if taken.is_empty() {
///             return Ok(copied);
///         }
///         for run in taken.runs() {
///             let memory = run.block.slice(run.pages.first(), run.pages.count())?;
///             let at = run.pages.first().bytes().0 as usize;
///             memory.copy_to(&mut image[at..at + memory.len()]);
///             copied += run.pages.count().0;
///         }
///         // Whatever ends this before here, an error or a panic, makes the pages pending again.
///         taken.delivered();
///     }
/// }
///
/// # fn main() -> brant::Result<()> {
/// let ram = GuestMemoryMmap::<WriteMarks>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
/// WriteMarks::connect(&ram, &tracker);
///
/// let backup = tracker.consumer();
/// backup.start(StartWith::Everything)?;
/// let mut image = vec![0; 1 << 20];
/// assert_eq!(back_up(&backup, &mut image)?, 256); // all of it, once
///
/// ram.write_obj(7u8, GuestAddress(0x5000))?;
/// backup.sync(When::Running)?;
/// assert_eq!(back_up(&backup, &mut image)?, 1); // and then what changed
/// assert_eq!(image[0x5000], 7);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Consumer {
    lease: Arc<Lease>,
}

impl std::ops::Deref for Consumer {
    type Target = Arc<Tracker>;
    fn deref(&self) -> &Arc<Tracker> {
        &self.lease.tracker
    }
}

impl Tracker {
    /// Another consumer, not started. It needs memory only once it is started.
    pub fn consumer(self: &Arc<Self>) -> Consumer {
        self.consumer_that(
            |number| format!("consumer {number} of the tracker"),
            "what it took is delivered or dropped",
        )
    }

    /// [`Tracker::consumer`] with words of its own for a refused removal of a block: `who` makes
    /// the consumer's name from its number, and `until` says what ends the use of the pages
    /// ([`Holder`]).
    pub(crate) fn consumer_that(
        self: &Arc<Self>,
        who: impl FnOnce(u64) -> String,
        until: &'static str,
    ) -> Consumer {
        let published = Arc::default();
        let mut inner = self.lock();
        inner.consumers += 1;
        let number = inner.consumers;
        let member = Member::new(&published);
        let seat = match inner.members.iter().position(Option::is_none) {
            Some(free) => {
                inner.members[free] = Some(member);
                free
            }
            None => {
                inner.members.push(Some(member));
                inner.members.len() - 1
            }
        };
        drop(inner);
        Consumer {
            lease: Arc::new(Lease {
                tracker: Arc::clone(self),
                seat,
                published,
                number,
                holder: Arc::new(Holder {
                    who: who(number),
                    until,
                }),
            }),
        }
    }
}

impl Consumer {
    pub(super) fn seat(&self) -> Seat {
        self.lease.seat
    }

    pub(super) fn published(&self) -> &Published {
        &self.lease.published
    }

    /// The consumer's number in its tracker, from 1 in the order of making; those of migrations and
    /// measurements count. A refused removal of a block names it.
    pub fn number(&self) -> u64 {
        self.lease.number
    }

    /// The consumer's tracker.
    pub fn tracker(&self) -> &Arc<Tracker> {
        &self.lease.tracker
    }

    /// Starts the consumer: it hears of every write from here on. Pages that were pending for it
    /// before are forgotten. Starts the logs if no other consumer has.
    ///
    /// With [`StartWith::Nothing`] beside other consumers, the call first harvests the logs for the
    /// others, and then restores the protection of every chunk that waits for it.
    ///
    /// # Errors
    /// [`Kind::Busy`] while some of the guest's memory has not arrived
    /// ([`Incomplete`](crate::memory::Whose::Incomplete)): a page that arrives enters no log, and one
    /// that has not looks like a hole. Those of the logs.
    pub fn start(&self, with: StartWith) -> Result<()> {
        let memory = self.lease.tracker.memory();
        memory.ownership().is_whole("tracking its writes")?;
        if with == StartWith::Nothing {
            let mut inner = self.lock();
            inner.check_stopped(self.seat())?;
            if inner.started {
                inner.sync(When::Running, None)?;
                drop(inner);
                self.lease.tracker.rearm_slowly()?;
            }
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.check_stopped(self.seat())?;
        let begun = inner.begin(self.seat(), with);
        if begun.is_err() {
            inner.forget_sets(self.seat());
            inner.stop_logs_if_unused();
        }
        begun
    }

    /// Whether the consumer is started.
    pub fn is_started(&self) -> bool {
        self.published().now().started
    }

    /// Makes every page pending, as a start with [`StartWith::Everything`] does, while
    /// tracking goes on.
    pub fn mark_all(&self) {
        let mut inner = self.lock();
        inner.hints.close();
        for set in inner.all_sets(self.seat()) {
            set.pending.set_all();
            set.beside.forget();
            set.fresh_from = 0;
        }
        inner.count_ballooned();
    }

    /// Stops the consumer after a last harvest. Pending pages stay and can still be taken. Stops
    /// the logs if no other consumer is started.
    pub fn stop(&self) -> Result<()> {
        let mut inner = self.lock();
        let harvested = match inner.member(self.seat()).map(|m| m.phase) {
            // Stopping a log loses the pages that it holds, so they are harvested first.
            Some(Phase::Following) => inner.sync(When::Running, Some(self.seat())),
            Some(Phase::Frozen) => Ok(SyncReport::default()),
            _ => return Ok(()),
        };
        inner.set_phase(self.seat(), Phase::Stopped);
        inner.stop_logs_if_unused();
        // If the harvest was not complete, any page may have been written.
        if harvested.as_ref().map_or(true, |report| report.postponed) {
            for set in inner.all_sets(self.seat()) {
                set.pending.set_all();
            }
        }
        harvested.map(|_| ())
    }

    /// Stops the consumer without a last harvest. Its pending pages mean nothing afterwards.
    pub fn abandon(&self) {
        let mut inner = self.lock();
        inner.set_phase(self.seat(), Phase::Stopped);
        inner.stop_logs_if_unused();
    }

    /// For a paused guest, after the last harvest: this consumer gets no page from later syncs of
    /// others. Otherwise a device that reports at each sync all pages that it may write to would
    /// have them sent again with every sync. Pages of new memory still become pending.
    ///
    /// [`Consumer::unfreeze`] must follow *before* the guest runs again.
    pub fn freeze(&self) {
        let mut inner = self.lock();
        if inner.member(self.seat()).map(|m| m.phase) == Some(Phase::Following) {
            inner.set_phase(self.seat(), Phase::Frozen);
        }
    }

    /// Lets the consumer get pages from syncs again.
    pub fn unfreeze(&self) {
        let mut inner = self.lock();
        if inner.member(self.seat()).map(|m| m.phase) == Some(Phase::Frozen) {
            inner.set_phase(self.seat(), Phase::Following);
        }
    }

    /// Harvests all logs into the pending of every started consumer, and reports the figures for
    /// this one.
    ///
    /// With [`When::Stopped`] the harvest is the last before memory counts as frozen: a log that
    /// fails or postpones is an error. With [`When::Running`] all pages that a failed log covers
    /// are taken as dirty, and the report has a warning.
    pub fn sync(&self, when: When) -> Result<SyncReport> {
        self.sync_by(when, None)
    }

    /// [`Consumer::sync`] that stops waiting for threads of the VMM's when `cancel` is cancelled.
    pub(crate) fn sync_unless(&self, when: When, cancel: &Cancel) -> Result<SyncReport> {
        self.sync_by(when, Some(cancel))
    }

    fn sync_by(&self, when: When, cancel: Option<&Cancel>) -> Result<SyncReport> {
        let mut inner = self.lock();
        if inner.member(self.seat()).map(|m| m.phase) != Some(Phase::Following) {
            return Err(Error::new(Kind::State, "tracking is not started"));
        }
        inner.sync_unless(when, Some(self.seat()), cancel)
    }

    /// The number of pages pending for this consumer.
    pub fn pending(&self) -> Pages {
        self.published().now().pending
    }

    /// The number of pages pending for this consumer in the blocks of `map`. `None` if the tracker
    /// does not know all of these blocks.
    ///
    /// While a block is being removed its pages are set aside: [`Consumer::pending`] leaves them
    /// out, and a walk passes over them. This counts them, because the removal can still be refused.
    pub(crate) fn pending_in(&self, map: &Map) -> Option<Pages> {
        let mut inner = self.lock();
        let mut pages = 0;
        for block in map.blocks() {
            if inner.leaves_out(self.seat(), block.id()) {
                continue;
            }
            pages += inner.any_set(self.seat(), block.id())?.pending.count();
        }
        Some(Pages(pages))
    }

    /// The consumer's totals since it started.
    pub fn stats(&self) -> ConsumerStats {
        self.published().now().stats
    }

    /// Takes runs of pending pages from `cursor` on, in order: at most `max_runs` of them and about
    /// `max_pages` pages. No run crosses a stretch of 2 MiB. Before a run is handed out, the chunks
    /// it lies in are cleared.
    ///
    /// An empty answer means that the walk has come to its end; the cursor is at the beginning
    /// again. After an error no page was taken.
    ///
    /// **Taken pages are in use** until the [`Taken`] is delivered, dropped or unpinned. Until then
    /// [`Memory::remove_block`](crate::memory::Memory::remove_block) of their blocks is refused,
    /// with an error that names this consumer by [`Consumer::number`]. A walk passes over a block
    /// that is being removed.
    pub fn take(&self, cursor: &mut Cursor, max_runs: usize, max_pages: Pages) -> Result<Taken> {
        self.take_what(cursor, max_runs, max_pages, false, Manner::Held)
    }

    /// [`Consumer::take`] for a caller that is done with the pages at once, or that hears of
    /// removals. A removal of a block waits for this caller instead of being refused.
    pub(crate) fn take_recallable(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
    ) -> Result<Taken> {
        self.take_what(cursor, max_runs, max_pages, false, Manner::Recallable)
    }

    /// [`Consumer::take_unread`] for such a caller.
    pub(crate) fn take_unread_recallable(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
    ) -> Result<Taken> {
        let all = Pages(u64::MAX);
        self.take_what(cursor, max_runs, all, true, Manner::Recallable)
    }

    /// [`Consumer::take`] or [`Consumer::take_unread`].
    fn take_what(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
        unread: bool,
        manner: Manner,
    ) -> Result<Taken> {
        self.take_within(cursor, max_runs, max_pages, (unread, None), manner)
    }

    /// The same for pages of one block before one of its pages, if `which` names them. `which` also says
    /// whether only pages are meant that are not read.
    pub(super) fn take_within(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
        which: (bool, Option<(BlockId, u64)>),
        manner: Manner,
    ) -> Result<Taken> {
        // Made before the lock is taken, so that it is dropped after the lock: the drop puts pages
        // back and takes the lock itself.
        let mut taken = Taken::nothing(&self.lease, manner);
        if max_runs == 0 || max_pages.0 == 0 {
            // A take of no run does not mean that the walk is at its end.
            return Ok(taken);
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        let begun = *cursor;
        let mut left = max_pages.0;
        let skip_ballooned = inner.member(self.seat()).is_some_and(|m| m.skip_ballooned);
        let (unread, within) = which;
        let what = Wanted {
            seat: self.seat(),
            skip_ballooned: skip_ballooned && self.memory().must_tell_host(),
            unread,
            within,
        };
        while taken.run_count() < max_runs && left > 0 {
            // Makes room first: without room a taken page could not be kept.
            match taken.make_room() {
                Ok(()) => {}
                Err(e) if taken.is_empty() => return Err(e),
                Err(_) => break,
            }
            match inner.take_one(cursor, left, what, &mut taken) {
                Ok(Some(run)) => {
                    // A run that is not read costs a header, however long it is.
                    if run.content == Content::Used {
                        left -= run.pages.count().0;
                    }
                }
                Ok(None) => break,
                Err(e) => {
                    *cursor = begun;
                    return Err(e);
                }
            }
        }
        if taken.is_empty() {
            *cursor = Cursor::default();
        }
        Ok(taken)
    }

    /// Sets whether takes tell ballooned pages apart from others, and hand out hinted pages as
    /// [`super::consumer::Content::Free`]. Off by default. Call it before [`Consumer::start`].
    pub fn skip_ballooned(&self, on: bool) {
        let seat = self.seat();
        let mut inner = self.lock();
        inner.read_ballooned_too(seat);
        if let Some(member) = inner.member(seat) {
            member.skip_ballooned = on;
        }
    }

    /// The number of pending pages that have to be read: ballooned pages do not count.
    pub fn to_read(&self) -> Pages {
        let now = self.published().now();
        Pages(now.pending.0.saturating_sub(now.ballooned))
    }

    /// [`Consumer::take`] of pages that are not read: ballooned and free ones.
    pub fn take_unread(&self, cursor: &mut Cursor, max_runs: usize) -> Result<Taken> {
        let all = Pages(u64::MAX);
        self.take_what(cursor, max_runs, all, true, Manner::Held)
    }

    /// Makes pages pending again that did not arrive although [`Taken::delivered`] was called for
    /// them. Blocks that are gone are passed over. Works after [`Consumer::stop`] too.
    pub fn put_back(&self, block: BlockId, first: Pages, count: Pages) {
        self.lock().put_back(self.seat(), block, first, count);
    }
}

impl Inner {
    fn check_stopped(&mut self, seat: Seat) -> Result<()> {
        match self.member(seat).map(|m| m.phase) {
            Some(Phase::Stopped) => Ok(()),
            _ => Err(Error::new(Kind::State, "tracking is started already")),
        }
    }

    fn begin(&mut self, seat: Seat, with: StartWith) -> Result<()> {
        let everything = with == StartWith::Everything;
        if self.started {
            self.widen_for(seat)?;
            if !everything {
                // Restores the chunks that a sync has armed since: see the file's description.
                self.rearm_all()?;
            }
        } else {
            // Before the logs start, because a log may have found a page before it is ballooned.
            self.forget_news(seat);
            self.narrow(seat);
            self.start_logs(everything)?;
        }
        let Some(total) = self.member(seat).map(|m| Arc::clone(&m.total)) else {
            return Ok(());
        };
        let left_out = self.member(seat).map(|m| m.left_out.clone());
        let left_out = left_out.unwrap_or_default();
        for state in self.all_blocks() {
            if left_out.contains(&state.pin_source.id()) {
                continue;
            }
            state.make_set(seat, &total)?;
            if let Some(set) = state.set_mut(seat).filter(|_| everything) {
                // The chunks need no arming. A page that was cleared since its harvest is
                // protected, or the kernel's log holds its write. So the write is found, whichever
                // consumer reads the page first.
                set.pending.set_all();
            }
        }
        if let Some(member) = self.member(seat) {
            member.stats = ConsumerStats::default();
        }
        self.set_phase(seat, Phase::Following);
        self.count_ballooned();
        self.count_slowly();
        Ok(())
    }

    fn forget_sets(&mut self, seat: Seat) {
        for state in self.all_blocks() {
            state.drop_set(seat);
        }
    }
}

#[cfg(test)]
mod tests;
