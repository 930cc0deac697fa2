//! A restore whose guest runs before its pages are here: they come from the image when a thread
//! touches them, and in the background one after the other.
//!
//! One of the reader threads brings only what somebody waits for; another one reads ahead through the
//! file in between. The others join it when the VMM asks for the rest ([`Lazy::hurry`]), because
//! until then they would take processor and disk from whoever waits.
//!
//! A page that a thread waits for is read without a reader thread where that can begin at once: the
//! thread that serves faults has the kernel read it, and places it when it has come
//! ([`Singles`]). Each thread that one fault goes through costs its waking, 15 to 50 us here. While
//! such faults come, reading ahead leaves the disk to them.
//!
//! A page that the image does not have whole never becomes wrong memory. While no guest runs yet, the
//! page is zeros, so that the VMM's operation that waits for it returns, and the restore fails before
//! `run`. Once the guest may run, the page is given up: its access raises SIGBUS.

use super::sequence::Sequence;
use crate::error::{Error, Result};
use crate::fallible;
use crate::image::{Announce, Begun, Filled, Picked, Picker, Room, Singles};
use crate::memory::served::{Place, Served, Supplier};
use crate::memory::{Block, BlockId};
use crate::runtime::{catch, spawn, Cancel, Join, Notify, Role};
use crate::units::{Pages, PAGE_SIZE, STRETCH_PAGES};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Pages that are read ahead in the background at once: as many as a record has.
const BACKGROUND: u64 = STRETCH_PAGES;
/// The same while a thread has waited for a page a moment ago.
const BACKGROUND_GENTLY: u64 = 64;
/// Reading ahead waits until no thread has faulted for so long,
const QUIET: Duration = Duration::from_millis(2);
/// and for so long at most.
const PATIENCE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    /// Pages that threads wait for.
    urgent: VecDeque<(usize, Range<u64>)>,
    /// A page was asked for, and there was no memory to note that.
    forgotten: bool,
    /// By block.
    last: Vec<Sequence>,
    /// Block and page where the background reads on.
    background: (usize, u64),
    /// A thread has waited since the background read last.
    gently: bool,
    /// When a thread faulted last, and when the background read last.
    faulted: Option<Instant>,
    read_ahead: Option<Instant>,
    hurry: bool,
    /// The guest may run.
    runs: bool,
    /// Nothing more is to be brought.
    over: bool,
    /// Why the first page cannot be had, and how many pages were given up unread.
    lost: Option<(Error, u64)>,
}

impl State {
    /// A thread faulted on a page. Returns whether the page lies alone: not behind the last ones.
    fn alone(&mut self, entry: usize, page: u64) -> bool {
        self.gently = true;
        self.faulted = Some(Instant::now());
        let last = &mut self.last[entry];
        if last.goes_on(page) {
            return false;
        }
        last.had(page + 1, 0);
        true
    }

    /// For how long reading ahead leaves the disk to those who wait. `None`: it need not.
    fn quiet_in(&self) -> Option<Duration> {
        let left = |since: Option<Instant>, limit: Duration| {
            let left = limit.checked_sub(since?.elapsed())?;
            (!left.is_zero()).then_some(left)
        };
        let quiet = left(self.faulted, QUIET).filter(|_| !self.hurry)?;
        let patience = left(self.read_ahead, PATIENCE)?;
        Some(quiet.min(patience))
    }
}

/// See the file's description. Any thread.
pub(super) struct Lazy {
    picker: Picker,
    /// Pages that threads wait for, read on the thread that serves faults. `None`: the kernel does not.
    singles: Option<Singles>,
    /// The guest's blocks in the order of the image's.
    blocks: Vec<Arc<Block>>,
    entries: HashMap<BlockId, usize>,
    state: Mutex<State>,
    /// Something is to be done, or all is over.
    more: Condvar,
    filled: Arc<Filled>,
    /// Cancelled when all pages are here or given up.
    pub(super) all_here: Cancel,
    /// Raised when a page cannot be had.
    pub(super) trouble: Notify,
}

impl Supplier for Lazy {
    fn wanted(&self, block: &Arc<Block>, pages: Range<Pages>) {
        let Some(entry) = self.entries.get(&block.id()) else {
            return;
        };
        let mut state = self.lock();
        match fallible::reserve_back(&mut state.urgent, 1, "pages that threads wait for") {
            Ok(()) => state.urgent.push_back((*entry, pages.start.0..pages.end.0)),
            Err(_) => state.forgotten = true,
        }
        state.gently = true;
        drop(state);
        // Whoever is woken may be one that does not read ahead, and that one brings it too.
        self.more.notify_one();
    }

    fn at_once(&self, here: &dyn Place, block: &Arc<Block>, pages: &Range<Pages>) -> bool {
        let (Some(singles), Some(entry)) = (&self.singles, self.entries.get(&block.id())) else {
            return false;
        };
        let page = pages.start.0;
        if pages.end.0 != page + 1 || !self.lock().alone(*entry, page) {
            return false;
        }
        match singles.begin(&self.picker, *entry, page) {
            Begun::Coming => true,
            Begun::Zeros => self
                .put(here, *entry, page..page + 1, Picked::Zeros)
                .is_ok(),
            Begun::No => false,
        }
    }

    fn coming(&self) -> Option<BorrowedFd<'_>> {
        self.singles.as_ref().map(Singles::coming)
    }

    fn came(&self, here: &dyn Place) {
        let Some(singles) = &self.singles else {
            return;
        };
        singles.came(|entry, page, contents| {
            let placed = contents.is_some_and(|bytes| {
                let put = self.put(here, entry, page..page + 1, Picked::Data(bytes));
                put.is_ok()
            });
            if !placed {
                // A reader thread finds out why.
                self.wanted(&self.blocks[entry], Pages(page)..Pages(page + 1));
            }
        });
    }

    fn all_here(&self) {
        self.all_here.cancel();
        self.end();
    }
}

impl Lazy {
    pub(super) fn new(
        picker: Picker,
        blocks: Vec<Arc<Block>>,
        filled: Arc<Filled>,
    ) -> Result<Lazy> {
        let mut entries = HashMap::new();
        for (entry, block) in blocks.iter().enumerate() {
            fallible::insert(&mut entries, block.id(), entry, "blocks")?;
        }
        let last = fallible::collect(
            blocks.iter().map(|_| Sequence::new(Sequence::NEAR)),
            "blocks",
        )?;
        Ok(Lazy {
            picker,
            singles: Singles::new().ok(),
            blocks,
            entries,
            state: Mutex::new(State {
                last,
                ..State::default()
            }),
            more: Condvar::new(),
            filled,
            all_here: Cancel::new()?,
            trouble: Notify::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts the reader threads: `readers`, and two at least.
    pub(super) fn start(
        self: &Arc<Self>,
        served: &Arc<Served>,
        readers: u32,
        announce: &Announce,
    ) -> Result<Vec<Join<()>>> {
        if served.left().0 == 0 {
            self.all_here();
        }
        let mut threads = Vec::new();
        for number in 0..readers.max(2) {
            let (ours, announce) = (Arc::clone(self), Arc::clone(announce));
            let served = Arc::clone(served);
            let work = move || {
                let done =
                    catch(|| announce(Role::Image).and_then(|()| ours.read(number, &served)));
                if let Err(error) = done.and_then(|done| done) {
                    ours.fail(error, served.left().0);
                }
            };
            match spawn(Role::Image, |_| (), work) {
                Ok(thread) => fallible::push(&mut threads, thread, "threads")?,
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    /// All threads read ahead from now on.
    pub(super) fn hurry(&self) {
        self.lock().hurry = true;
        self.more.notify_all();
    }

    /// The reader threads end.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.more.notify_all();
    }

    /// The guest may run from now on.
    ///
    /// # Errors
    /// When a page could not be had. Then the guest must not run.
    pub(super) fn may_run(&self) -> Result<()> {
        let mut state = self.lock();
        match &state.lost {
            Some((error, _)) => Err(error.clone()),
            None => {
                state.runs = true;
                Ok(())
            }
        }
    }

    /// Why the first page could not be had, and how many were given up unread.
    pub(super) fn lost(&self) -> Option<(Error, u64)> {
        self.lock().lost.clone()
    }

    /// A thread cannot go on. All that is absent is lost.
    fn fail(&self, error: Error, left: u64) {
        self.note(error, left);
        self.all_here.cancel();
        self.end();
    }

    /// Notes that pages cannot be had, of which so many are given up unread. Returns whether the guest
    /// may be running.
    fn note(&self, error: Error, pages: u64) -> bool {
        let mut state = self.lock();
        let (_, lost) = state.lost.get_or_insert((error, 0));
        *lost += pages;
        let runs = state.runs;
        drop(state);
        self.trouble.raise();
        runs
    }

    /// The work of reader thread `number`.
    fn read(&self, number: u32, served: &Served) -> Result<()> {
        let mut room = Room::new()?;
        loop {
            let Some((entry, pages, ahead)) = self.next(number, served) else {
                return Ok(());
            };
            self.bring(served, entry, pages.clone(), &mut room)?;
            if ahead > 0 {
                let end = (pages.end + ahead).min(self.blocks[entry].pages().0);
                self.bring(served, entry, pages.end..end, &mut room)?;
            }
        }
    }

    /// The next pages for a thread, and how many behind them are worth reading. `None`: all is over.
    fn next(&self, number: u32, served: &Served) -> Option<(usize, Range<u64>, u64)> {
        let mut state = self.lock();
        loop {
            if state.over {
                return None;
            }
            if let Some((entry, pages)) = state.urgent.pop_front() {
                let last = &mut state.last[entry];
                let ahead = match self.blocks[entry].page_size().0 > PAGE_SIZE {
                    // A huge page is much already.
                    true => 0,
                    false => last.ahead_of(pages.start),
                };
                last.had(pages.end + ahead, ahead);
                return Some((entry, pages, ahead));
            }
            if std::mem::take(&mut state.forgotten) {
                drop(state);
                served.ask_again();
                state = self.lock();
                continue;
            }
            let reads_ahead = number == 1 || state.hurry;
            let quiet = state.quiet_in().filter(|_| reads_ahead);
            let next =
                (reads_ahead && quiet.is_none()).then(|| self.background(&mut state, served));
            if let Some((entry, pages)) = next.flatten() {
                state.read_ahead = Some(Instant::now());
                return Some((entry, pages, 0));
            }
            if let Some(quiet) = quiet {
                let waited = self.more.wait_timeout(state, quiet);
                state = waited.unwrap_or_else(|e| e.into_inner()).0;
                continue;
            }
            state = self.more.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// The next pages of the background, if any are absent.
    fn background(&self, state: &mut State, served: &Served) -> Option<(usize, Range<u64>)> {
        let gently = std::mem::take(&mut state.gently) && !state.hurry;
        let most = if gently {
            BACKGROUND_GENTLY
        } else {
            BACKGROUND
        };
        loop {
            let (entry, page) = state.background;
            let block = self.blocks.get(entry)?;
            match served.next_absent(block, Pages(page)..block.pages()) {
                None => state.background = (entry + 1, 0),
                Some(run) => {
                    let end = run.end.0.min(run.start.0 + most);
                    state.background = (entry, end);
                    return Some((entry, run.start.0..end));
                }
            }
        }
    }

    /// Brings those of `pages` that are absent.
    fn bring(
        &self,
        served: &Served,
        entry: usize,
        pages: Range<u64>,
        room: &mut Room,
    ) -> Result<()> {
        let block = &self.blocks[entry];
        let mut at = Pages(pages.start);
        while let Some(run) = served.next_absent(block, at..Pages(pages.end)) {
            at = run.end;
            self.picker.pick(
                entry,
                run.start.0..run.end.0,
                room,
                |run, picked| match self.put(served.here(), entry, run.clone(), picked) {
                    Ok(()) => Ok(()),
                    Err(error) => self.lose(served, block, run, error),
                },
            )?;
        }
        Ok(())
    }

    /// Puts what the image has for some pages into memory.
    fn put(&self, here: &dyn Place, entry: usize, run: Range<u64>, what: Picked<'_>) -> Result<()> {
        let block = &self.blocks[entry];
        let pages = Pages(run.start)..Pages(run.end);
        match what {
            Picked::Data(bytes) => here
                .place(block, pages.start, bytes)
                .map(|new| self.filled.add_data(new.0)),
            Picked::Zeros => here
                .place_zeros(block, pages)
                .map(|new| self.filled.add_zero(new.0)),
            Picked::Lost(error) => Err(error),
        }
    }

    /// Pages cannot be had, or not be placed. Those that another thread has brought are not lost.
    fn lose(&self, served: &Served, block: &Block, run: Range<u64>, error: Error) -> Result<()> {
        let pages = Pages(run.start)..Pages(run.end);
        if served.next_absent(block, pages.clone()).is_none() {
            return Ok(());
        }
        match self.note(error, 0) {
            false => served.place_zeros(block, pages).map(drop),
            true => {
                // The memory counts them: two threads can come upon the same page.
                served.lose(block, pages)?;
                self.trouble.raise();
                Ok(())
            }
        }
    }
}
