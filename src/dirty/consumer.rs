//! A consumer: somebody who wants to know which pages were written, each page once.
//!
//! A tracker can have several at a time: a migration, an incremental backup, whoever measures a
//! rate. Each has a *pending* of its own. A sync, whoever asks for it, adds what it found to the
//! pending of every consumer that is started; a take empties the taker's only. So whatever one
//! of them does, or whatever becomes of it, the others have all they had and all that was written
//! since.
//!
//! What they share is the protection of pages: the logs run while any consumer is started, and a
//! chunk that one of them takes from is cleared for all. An example of what that must not
//! lose: a sync harvests page 5 for a backup. A second consumer starts and wants to hear only of
//! writes from now on. The guest writes page 5, which is still unprotected because nobody has
//! cleared its chunk. The backup takes it: the clear drops the bit, and the second consumer never
//! hears of the write. The ways out: a consumer that starts clean gets every page that others
//! have pending (too many), or the protection of everything is restored before it starts. The
//! second is what [`Consumer::start`] does.
//!
//! **Clear before copy** holds for each of them: [`Consumer::take`] restores the protection of a
//! chunk before it hands out the first page of it. A chunk that another consumer's take has
//! cleared needs no second clear: what was written since is in the kernel's log, and a later
//! sync brings it to everybody.

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
use crate::memory::{BlockId, Holder};
use crate::runtime::Cancel;
use crate::units::Pages;
use std::sync::Arc;

pub use super::run::{Content, Cursor, Run};

/// One user of a tracker's findings; see the file's description. All methods may be called from
/// any thread; those that only ask tell what was so when the tracker's lock was last let go of, and
/// do not wait. Dropping it ends it once nothing that it took is on its way any more, and if it was
/// the last one that was started, the logs.
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
    /// Another consumer, not started. It needs no memory until it is.
    pub fn consumer(self: &Arc<Self>) -> Consumer {
        self.consumer_that(
            |number| format!("consumer {number} of the tracker"),
            "what it took is delivered or dropped",
        )
    }

    /// One whose use of pages is told in other words, for whoever is refused the removal of a block:
    /// `who` of the consumer's number, and what ends the use ([`Holder`]).
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

    /// Which of the tracker's it is: 1 for the first that was made, a migration's and a
    /// measurement's counted. A refused removal of a block names it so.
    pub fn number(&self) -> u64 {
        self.lease.number
    }

    /// The tracker it is one of.
    pub fn tracker(&self) -> &Arc<Tracker> {
        &self.lease.tracker
    }

    /// Starts it: from here on every write is found for it. What was pending for it before is
    /// forgotten. Starts the logs if no other consumer has.
    ///
    /// With [`StartWith::Nothing`] beside other consumers, the logs are harvested first (for the
    /// others), and the protection of every chunk that still waits for it is restored.
    pub fn start(&self, with: StartWith) -> Result<()> {
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

    /// Whether it is started.
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

    /// Stops it, after taking what the logs hold. What is pending stays and can be taken. Stops
    /// the logs if no other consumer is started.
    pub fn stop(&self) -> Result<()> {
        let mut inner = self.lock();
        let harvested = match inner.member(self.seat()).map(|m| m.phase) {
            // What a stopped log still holds is gone afterwards, so it is read first.
            Some(Phase::Following) => inner.sync(When::Running, Some(self.seat())),
            Some(Phase::Frozen) => Ok(SyncReport::default()),
            _ => return Ok(()),
        };
        inner.set_phase(self.seat(), Phase::Stopped);
        inner.stop_logs_if_unused();
        // Where it could not be read to the end, every page may have been written.
        if harvested.as_ref().map_or(true, |report| report.postponed) {
            for set in inner.all_sets(self.seat()) {
                set.pending.set_all();
            }
        }
        harvested.map(|_| ())
    }

    /// Stops it without a last harvest: what is pending says nothing any more.
    pub fn abandon(&self) {
        let mut inner = self.lock();
        inner.set_phase(self.seat(), Phase::Stopped);
        inner.stop_logs_if_unused();
    }

    /// The guest stands still and the last harvest is in: what later syncs of others find is not
    /// for this consumer. (A device that reports all that it may write to, at each sync, would
    /// have the last pages sent again for as long as somebody syncs.) New memory is pending all
    /// the same.
    ///
    /// To be undone by [`Consumer::unfreeze`] *before* the guest runs again.
    pub fn freeze(&self) {
        let mut inner = self.lock();
        if inner.member(self.seat()).map(|m| m.phase) == Some(Phase::Following) {
            inner.set_phase(self.seat(), Phase::Frozen);
        }
    }

    /// Has it told of what syncs find again.
    pub fn unfreeze(&self) {
        let mut inner = self.lock();
        if inner.member(self.seat()).map(|m| m.phase) == Some(Phase::Frozen) {
            inner.set_phase(self.seat(), Phase::Following);
        }
    }

    /// Harvests all logs into the pending of every consumer that is started, this one included,
    /// and reports what it was for this one.
    ///
    /// With [`When::Stopped`] the harvest is the last before memory counts as frozen, and a
    /// log that fails, or that has to postpone, is an error; otherwise what a failed log
    /// covers is taken as dirty and the report has a warning.
    pub fn sync(&self, when: When) -> Result<SyncReport> {
        self.sync_by(when, None)
    }

    /// [`Consumer::sync`], which waits for no thread of the VMM's any more once `cancel` is cancelled.
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

    /// Pages pending for it now.
    pub fn pending(&self) -> Pages {
        self.published().now().pending
    }

    /// Its totals since it started.
    pub fn stats(&self) -> ConsumerStats {
        self.published().now().stats
    }

    /// Takes runs of pending pages from `cursor` on, in order: at most `max_runs` of them and about
    /// `max_pages` pages. No run crosses a stretch of 2 MiB. Before a run is handed out, the chunks
    /// it lies in are cleared.
    ///
    /// An empty answer means that the walk has come to the end; the cursor is at the beginning
    /// again. After an error nothing was taken.
    ///
    /// **What is taken is in use** until the [`Taken`] is delivered, dropped or unpinned: as long as
    /// that lasts, [`Memory::remove_block`](crate::memory::Memory::remove_block) is refused for its
    /// blocks. It names this consumer ([`Consumer::number`]). A walk that comes to a block in the
    /// moment of its removal passes over it.
    pub fn take(&self, cursor: &mut Cursor, max_runs: usize, max_pages: Pages) -> Result<Taken> {
        self.take_what(cursor, max_runs, max_pages, false, Manner::Held)
    }

    /// [`Consumer::take`], for whoever is done with the pages at once or hears of removals: a
    /// removal of a block waits for it.
    pub(crate) fn take_recallable(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
    ) -> Result<Taken> {
        self.take_what(cursor, max_runs, max_pages, false, Manner::Recallable)
    }

    /// [`Consumer::take_unread`], for the same.
    pub(crate) fn take_unread_recallable(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
    ) -> Result<Taken> {
        let all = Pages(u64::MAX);
        self.take_what(cursor, max_runs, all, true, Manner::Recallable)
    }

    /// [`Consumer::take`], or of what that would hand out, only what is not read.
    fn take_what(
        &self,
        cursor: &mut Cursor,
        max_runs: usize,
        max_pages: Pages,
        unread: bool,
        manner: Manner,
    ) -> Result<Taken> {
        // Before the lock, so that it is dropped, and puts back, after the lock: whatever happens.
        let mut taken = Taken::nothing(&self.lease, manner);
        if max_runs == 0 || max_pages.0 == 0 {
            // Nothing was asked for; that says nothing of the walk.
            return Ok(taken);
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        let begun = *cursor;
        let mut left = max_pages.0;
        let skip_ballooned = inner.member(self.seat()).is_some_and(|m| m.skip_ballooned);
        let what = Wanted {
            seat: self.seat(),
            skip_ballooned: skip_ballooned && self.memory().must_tell_host(),
            unread,
        };
        while taken.run_count() < max_runs && left > 0 {
            // Room first: a page that was taken could go nowhere.
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

    /// Has ballooned pages told apart from others in what is handed out, and hinted pages
    /// handed out as [`super::consumer::Content::Free`]; or neither, which is so unless it is said. Before
    /// [`Consumer::start`].
    pub fn skip_ballooned(&self, on: bool) {
        let seat = self.seat();
        let mut inner = self.lock();
        inner.read_ballooned_too(seat);
        if let Some(member) = inner.member(seat) {
            member.skip_ballooned = on;
        }
    }

    /// Pages that are pending and have to be read: what is known to be ballooned is left out.
    pub fn to_read(&self) -> Pages {
        let now = self.published().now();
        Pages(now.pending.0.saturating_sub(now.ballooned))
    }

    /// [`Consumer::take`] of what is not read: ballooned and free pages.
    pub fn take_unread(&self, cursor: &mut Cursor, max_runs: usize) -> Result<Taken> {
        let all = Pages(u64::MAX);
        self.take_what(cursor, max_runs, all, true, Manner::Held)
    }

    /// Makes pages pending again whose [`Taken`] was given up by [`Taken::delivered`] and that did not
    /// arrive after all. Blocks that are gone are passed over. Works after [`Consumer::stop`] too.
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
            if !everything {
                // What a sync has armed since: see the file's description.
                self.rearm_all()?;
            }
        } else {
            // Before the logs start: of a page ballooned later they may know from before that.
            self.forget_news(seat);
            self.start_logs(everything)?;
        }
        let Some(total) = self.member(seat).map(|m| Arc::clone(&m.total)) else {
            return Ok(());
        };
        for state in self.all_blocks() {
            state.make_set(seat, &total)?;
            if let Some(set) = state.set_mut(seat).filter(|_| everything) {
                // The chunks need no arming. What has been cleared since it was harvested is
                // protected, or in the kernel's log: a write is found, whoever reads the page
                // first.
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
