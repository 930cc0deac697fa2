//! [`Watch`]: the guest's memory registered with a userfaultfd from before the pause until the image
//! has it, and the thread that serves its faults.
//!
//! **What is registered.** Private memory without a file is registered for missing pages and for
//! protection, because its pages that are not there have nothing that could be protected. All other
//! memory (memfds, shared anonymous memory, huge pages) is registered for protection alone: there
//! the kernel puts a marker in place of each page that this process has not mapped. Example of the
//! loss without markers: the VMM's other process has filled a memfd, and this mapping has touched
//! none of it. The guest writes a page after the instant. The page was in the page cache, so it was
//! not missing; it had no entry, so it was not protected; and nobody is told.
//!
//! **Whoever waits is let go.** Ending a registration wakes its threads and lifts the protection.
//! So every way out of a save ends with [`Shared::release`]: the last step of a save that succeeds,
//! dropping a [`Watch`] after an error, and an error of the fault thread itself, which then calls it
//! at once. The VMM's own threads touch guest memory inside operations that the save waits for: with
//! a fault thread that is gone, both would wait for ever.
//!
//! **What the fault thread touches.** It reads a page only to copy it, and only one that is there.
//! The VMM may discard memory meanwhile (`MADV_DONTNEED`). The kernel holds that up until the
//! fault thread has read a message about it. The thread looks at those messages before the faults
//! that came with them. Memory that is discarded before the image has it fails the save, so no page
//! is copied from then on that could be gone.

use super::super::chain::Source;
use super::ledger::{no_room, Answer, Kept, Ledger, Tally, Touched, Unit};
use crate::error::{Error, Kind, Result};
use crate::image::Announce;
use crate::memory::{Block, BlockPin, Holder, Map, Memory, NeedsContents};
use crate::runtime::{catch, spawn, Cancel, Join, Notify, Role};
use crate::sys::event::{self, Poll, READABLE};
use crate::sys::maps::Maps;
use crate::sys::mem;
use crate::sys::pagemap::{Pagemap, Query, PRESENT};
use crate::sys::thread;
use crate::sys::uffd::{Fault, Faults, Modes, Stopped};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// The longest time that threads wait for the walk to begin, which begins when `resume` has
/// returned. `resume` may wait for one of those threads.
const RESUMING: Duration = Duration::from_secs(5);
/// How often that time is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How soon an answer is tried again that an unread message held up.
const AGAIN: Duration = Duration::from_millis(1);
/// Behind the walk, registrations end in pieces of at least this many bytes. Each piece costs a
/// change of the process's mappings, for which all of its threads that fault wait a moment.
const RELEASED_AT_ONCE: u64 = 256 << 20;

/// What is shared with the fault thread.
struct Shared {
    faults: Faults,
    inner: Mutex<Inner>,
    /// A unit is done, or everything is over.
    changed: Condvar,
    /// The ranges that are registered.
    registered: Mutex<Vec<Range<u64>>>,
    /// Ends the save's waits when the fault thread fails.
    failed: Cancel,
    /// The save's thread, which reads memory: its number in the kernel.
    walker: u32,
    /// `None`: which pages are there cannot be asked, so only pages that were written are copied.
    pagemap: Option<Pagemap>,
}

struct Inner {
    ledger: Ledger,
    /// No memory is watched any more.
    over: bool,
    error: Option<Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn registered(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.registered.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The save fails. The first error counts.
    fn fail(&self, error: Error) {
        self.lock().error.get_or_insert(error);
        self.release();
        self.failed.cancel();
    }

    /// Ends all registrations: no page is protected, and nobody waits. May be called again.
    fn release(&self) {
        self.lock().over = true;
        self.changed.notify_all();
        let mut registered = self.registered();
        registered.retain(|range| {
            // Where the VMM has unmapped the memory, nothing is registered any more. Otherwise a
            // failure leaves the rest to the end of the descriptor.
            self.faults.unregister(range.clone()).is_err()
        });
    }

    /// As [`Faults::try_unprotect`], with an error that says whose memory this is.
    fn try_unprotect(&self, range: &Range<u64>) -> Result<bool> {
        let done = self.faults.try_unprotect(range.clone());
        done.map_err(|error| self.explain(range, error))
    }

    /// The error of a change of the protection of `range`, with the block's name. The kernel knows
    /// the memory no more where the VMM has changed the mapping.
    fn explain(&self, range: &Range<u64>, error: Error) -> Error {
        let name = self.lock().ledger.name_at(range.start).map(str::to_owned);
        let whose = name.map_or("guest memory".to_owned(), |name| format!("block `{name}`"));
        error.context(format_args!(
            "{whose} is not watched any more: as a rule its memory was unmapped or mapped anew while \
             the save needed it; let the save end, or cancel it, before memory is mapped anew"
        ))
    }

    /// Lifts the protection of a range, and wakes its threads. Waits while a message about memory
    /// that is discarded is unread, so not for the fault thread, which reads it.
    fn unprotect(&self, range: &Range<u64>) -> Result<()> {
        while !self.try_unprotect(range)? {
            if self.lock().over {
                return Ok(());
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// See the file's description.
pub(super) struct Watch {
    shared: Arc<Shared>,
    /// The watched blocks, by their numbers in the ledger. A block that is held is not removed.
    blocks: Vec<BlockPin>,
    holder: Arc<Holder>,
    maps: Option<Maps>,
    stop: Notify,
    thread: Option<Join<()>>,
}

impl Watch {
    /// Watches all blocks of `memory`. Copies take at most `copies` bytes. `failed` is cancelled when
    /// the fault thread fails.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the kernel or the process lacks what it takes; [`Kind::Exists`]
    /// for memory that another userfaultfd watches; [`Kind::Invalid`] for memory that cannot be
    /// watched. The message names the block.
    pub(super) fn begin(
        memory: &Memory,
        copies: u64,
        failed: &Cancel,
        announce: &Announce,
    ) -> Result<Watch> {
        let maps = Maps::open().ok();
        let map = memory.map();
        let shared_memory = map
            .blocks()
            .iter()
            .any(|block| !is_private(maps.as_ref(), block));
        let shared = Arc::new(Shared {
            faults: Faults::open_protecting(shared_memory)?,
            inner: Mutex::new(Inner {
                ledger: Ledger::new(copies),
                over: false,
                error: None,
            }),
            changed: Condvar::new(),
            registered: Mutex::default(),
            failed: failed.clone(),
            walker: thread::number(),
            pagemap: Pagemap::open().ok(),
        });
        let stop = Notify::new()?;
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = {
            let (shared, stop, announce) = (Arc::clone(&shared), stop.clone(), announce.clone());
            spawn(
                Role::Fault,
                |_| (),
                move || {
                    // The VMM's operation comes before anything is registered.
                    let announced = announce(Role::Fault);
                    let goes_on = announced.is_ok();
                    let _ = ready.send(announced);
                    if goes_on {
                        let served = catch(|| serve(&shared, &stop)).and_then(|served| served);
                        if let Err(error) = served {
                            shared.fail(error);
                        }
                    }
                },
            )?
        };
        let mut watch = Watch {
            shared,
            blocks: Vec::new(),
            holder: Arc::new(Holder {
                who: "a save to an image".to_owned(),
                until: "its memory is in the image",
            }),
            maps,
            stop,
            thread: Some(thread),
        };
        is_ready
            .recv()
            .map_err(|_| Error::new(Kind::Internal, "the fault thread has ended"))??;
        watch.register_all(&map)?;
        let needs: Weak<dyn NeedsContents> = {
            let weak: Weak<Shared> = Arc::downgrade(&watch.shared);
            weak
        };
        memory.contents_are_needed_by(needs);
        Ok(watch)
    }

    /// Registers the blocks of `map` that are not registered.
    fn register_all(&mut self, map: &Map) -> Result<()> {
        for block in map.blocks().iter() {
            if self.blocks.iter().all(|known| known.id() != block.id()) {
                self.register(block)
                    .map_err(|e| e.context(format_args!("block `{}`", block.name())))?;
            }
        }
        Ok(())
    }

    fn register(&mut self, block: &Arc<Block>) -> Result<()> {
        let Some(pin) = BlockPin::hold(block, &self.holder)? else {
            return Err(Error::new(Kind::Busy, "it is being removed"));
        };
        let host = block.host() as u64;
        let range = host..host + block.length().0;
        let modes = Modes {
            missing: is_private(self.maps.as_ref(), block),
            protect: true,
            minor: false,
        };
        crate::fallible::reserve(&mut self.blocks, 1, "blocks of the guest")?;
        crate::fallible::reserve(&mut self.shared.registered(), 1, "blocks of the guest")?;
        // Before the registration, so that a fault is never an unknown one.
        let mut inner = self.shared.lock();
        let number = inner
            .ledger
            .add(block.name(), range.clone(), block.page_size().0)?;
        drop(inner);
        debug_assert_eq!(number, self.blocks.len());
        self.blocks.push(pin);
        let can = self.shared.faults.register(range.clone(), modes);
        let can = can.map_err(|error| self.refused(&range, error))?;
        self.shared.registered().push(range);
        if !can.protect || (modes.missing && !can.zero) {
            return Err(Error::new(
                Kind::Unsupported,
                "the kernel cannot protect this kind of memory by userfaultfd",
            ));
        }
        Ok(())
    }

    /// The kernel's refusal to watch a range, in words that say what to do where the memory is mapped
    /// from a file, as after the restore of a trusted image.
    fn refused(&self, range: &Range<u64>, error: Error) -> Error {
        let mut of_file = false;
        if let (Kind::Invalid, Some(maps)) = (error.kind(), &self.maps) {
            let looked = maps.over(range.clone(), |area| {
                of_file |= area.is_private_file();
                !of_file
            });
            of_file &= looked.is_ok();
        }
        match of_file {
            false => error,
            true => Error::new(
                Kind::Unsupported,
                "it is a private mapping of a file, as after a restore of a trusted image, and \
                 userfaultfd cannot protect such memory from writes; save the guest as it is at the end, \
                 or restore it without trust in the image",
            ),
        }
    }

    /// The instant: protects all blocks of `map`, which is the paused guest's, or those parts in
    /// which pages of `changed` lie.
    pub(super) fn arm(&mut self, map: &Map, changed: Option<&Source>) -> Result<()> {
        self.register_all(map)?;
        self.shared.lock().ledger.arm();
        for (area, block) in self.blocks.iter().enumerate() {
            let taken = changed.map(|source| source.taken(block.id()));
            let mut at = block.host() as u64;
            let end = at + block.length().0;
            while at < end {
                // What is left out is done before its protection would be, so nobody waits for it.
                let range = match taken {
                    None => Some(at..end),
                    Some(None) => self.shared.lock().ledger.leave_out(area, at, |_| false),
                    Some(Some(taken)) => self.shared.lock().ledger.leave_out(area, at, |pages| {
                        let (first, end) = (pages.start.index(), pages.end.index());
                        taken.next_set_before(first, end).is_some()
                    }),
                };
                let Some(range) = range else {
                    break;
                };
                at = range.end;
                self.shared
                    .faults
                    .protect(range.clone())
                    .map_err(|e| self.shared.explain(&range, e))?;
            }
        }
        self.check()
    }

    /// The error of the fault thread, if it has failed.
    pub(super) fn check(&self) -> Result<()> {
        self.shared.lock().error.clone().map_or(Ok(()), Err)
    }

    /// The walk begins.
    pub(super) fn walk(&self) {
        self.shared.lock().ledger.walk();
    }

    /// The next unit for the walk.
    pub(super) fn next(&self) -> Option<Unit> {
        self.shared.lock().ledger.next()
    }

    /// The block of a unit, and its pages.
    pub(super) fn pages(&self, unit: Unit) -> (Arc<Block>, Range<Pages>) {
        let pages = self.shared.lock().ledger.pages(unit);
        (self.blocks[unit.area].shared(), pages)
    }

    /// The walk begins to read a unit.
    pub(super) fn read_begins(&self, unit: Unit) -> Vec<Kept> {
        self.shared.lock().ledger.begin(unit)
    }

    /// Calls `read` with a copy.
    pub(super) fn with_copy<R>(
        &self,
        kept: super::copies::Slot,
        read: impl FnOnce(&[u8]) -> R,
    ) -> R {
        read(self.shared.lock().ledger.copy_of(kept))
    }

    /// All of a unit was read: lifts its protection, and wakes its threads.
    pub(super) fn read_ends(&self, unit: Unit, kept: &[Kept]) -> Result<()> {
        let (range, behind) = {
            let mut inner = self.shared.lock();
            let range = inner.ledger.done(unit, kept);
            (range, inner.ledger.behind(unit.area))
        };
        self.shared.unprotect(&range)?;
        self.shared.changed.notify_all();
        self.release_behind(&behind);
        Ok(())
    }

    /// Ends the registration of memory that the walk has left behind, in large pieces. From then on
    /// the guest's first touch of a hole there is the kernel's business again.
    fn release_behind(&self, behind: &Range<u64>) {
        let mut registered = self.shared.registered();
        let Some(range) = registered
            .iter_mut()
            .find(|range| (behind.start..behind.end).contains(&range.start))
        else {
            return;
        };
        let piece = range.start..behind.end.min(range.end);
        let is_last = piece.end == range.end;
        if piece.end - piece.start >= RELEASED_AT_ONCE && !is_last {
            // After a failure the memory stays registered until the end.
            if self.shared.faults.unregister(piece.clone()).is_ok() {
                range.start = piece.end;
            }
        }
    }

    /// Bytes that the walk has not read.
    pub(super) fn left(&self) -> Bytes {
        self.shared.lock().ledger.left()
    }

    /// What happened so far.
    pub(super) fn tally(&self) -> Tally {
        self.shared.lock().ledger.tally
    }
}

impl NeedsContents for Shared {
    fn let_go_of(&self, memory: &Range<u64>) -> Result<()> {
        let mut inner = self.lock();
        while !inner.over && inner.ledger.want(memory)? {
            if thread::number() == self.walker {
                return Err(Error::new(
                    Kind::Callback,
                    "memory is discarded inside an operation of the save that needs it",
                ));
            }
            inner = self.changed.wait(inner).unwrap_or_else(|e| e.into_inner());
        }
        Ok(())
    }
}

impl Drop for Watch {
    /// Lets everybody go. The fault thread serves until nothing is registered any more.
    fn drop(&mut self) {
        self.shared.release();
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether all of a block is private memory without a file, whose pages that are not there have no
/// contents. Without /proc every block of ordinary pages is taken for such memory: missing faults
/// are served in all kinds of memory.
fn is_private(maps: Option<&Maps>, block: &Block) -> bool {
    if block.page_size().0 != PAGE_SIZE {
        return false;
    }
    let Some(maps) = maps else {
        return true;
    };
    let (mut at, end) = (block.host() as u64, block.host() as u64 + block.length().0);
    while at < end {
        match maps.at(at) {
            Ok(Some(area)) if area.inode == 0 && !area.shared => at = area.end,
            _ => return false,
        }
    }
    true
}

/// The body of the fault thread.
fn serve(shared: &Shared, stop: &Notify) -> Result<()> {
    let (mut faults, mut again) = (Vec::new(), Vec::new());
    let mut waits_since: Option<Instant> = None;
    loop {
        let mut polls = [
            Poll::new(shared.faults.as_fd(), READABLE),
            Poll::new(stop.fd(), READABLE),
        ];
        let limit = match waits_since {
            _ if !again.is_empty() => Some(AGAIN),
            Some(_) => Some(LOOK),
            None => None,
        };
        match event::poll(&mut polls, limit) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::os("poll", e)),
        }
        let mut discarded = Ok(());
        shared.faults.read_all(&mut faults, |memory| {
            let inner = shared.lock();
            if let Err(error) = inner.ledger.discarded(&memory) {
                if discarded.is_ok() {
                    discarded = Err(error);
                }
            }
        })?;
        discarded?;
        for answer in std::mem::take(&mut again) {
            carry_out(shared, answer, &mut again)?;
        }
        for fault in faults.drain(..) {
            let answer = decide(shared, &fault)?;
            carry_out(shared, answer, &mut again)?;
        }
        if polls[1].found() != 0 {
            return Ok(());
        }
        if !shared.lock().ledger.waits_for_the_walk() {
            waits_since = None;
        } else if waits_since.get_or_insert_with(Instant::now).elapsed() >= RESUMING {
            return Err(no_room("guest memory"));
        }
    }
}

fn decide(shared: &Shared, fault: &Fault) -> Result<Answer> {
    let touched = Touched {
        address: fault.address,
        protected: fault.protected,
        by_walk: fault.thread == shared.walker,
    };
    let mut inner = shared.lock();
    if inner.over {
        let page = fault.address..fault.address + PAGE_SIZE;
        return Ok(Answer::Wake(page));
    }
    let ledger = &mut inner.ledger;
    let copy = |address: u64, to: &mut [u8]| {
        // SAFETY: a page of a block that is held, so mapped. It is there, because it is protected,
        // and nobody has taken it away since (see the file's description). The kernel lets no thread
        // write it before the answer.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) };
    };
    let answer = ledger.touched(touched, |to| copy(fault.address, to))?;
    match (answer, &shared.pagemap) {
        (Answer::Unprotect(page), Some(pagemap)) if !touched.by_walk => {
            let end = ledger.copy_ahead(&page, |behind| there(pagemap, behind), copy)?;
            Ok(Answer::Unprotect(page.start..end))
        }
        (answer, _) => Ok(answer),
    }
}

/// Up to which address pages are there and can be read.
fn there(pagemap: &Pagemap, behind: Range<u64>) -> u64 {
    let absent = Query {
        inverted: PRESENT,
        all: PRESENT,
        report: PRESENT,
        ..Query::default()
    };
    let end = match pagemap.first(behind.clone(), &absent) {
        Ok(first) => first.unwrap_or(behind.end),
        Err(_) => behind.start,
    };
    let length = (end - behind.start) as usize;
    // The VMM may have forbidden access.
    match length > 0 && mem::populate_read(behind.start as *mut u8, length).is_ok() {
        true => end,
        false => behind.start,
    }
}

/// What cannot be done now, because a message is unread, is put into `again`.
fn carry_out(shared: &Shared, answer: Answer, again: &mut Vec<Answer>) -> Result<()> {
    let later = match &answer {
        Answer::Leave => false,
        Answer::Wake(range) => {
            // An error says that nothing is mapped there any more.
            let _ = shared.faults.wake(range.clone());
            false
        }
        Answer::Unprotect(range) => match shared.try_unprotect(range) {
            Ok(done) => !done,
            // Its registration has ended meanwhile, which woke its threads.
            Err(_) if shared.lock().over => false,
            Err(error) => return Err(error),
        },
        Answer::Zero(range) => match shared.faults.zero(range.clone(), true) {
            Ok(filled) => match filled.stopped {
                None => false,
                Some(Stopped::Changing | Stopped::Failed) => true,
                // Nobody was woken.
                Some(Stopped::Present | Stopped::Unwatched | Stopped::Gone) => {
                    let _ = shared.faults.wake(range.clone());
                    false
                }
            },
            Err(_) if shared.lock().over => false,
            Err(error) => return Err(error),
        },
    };
    if later {
        crate::fallible::push(again, answer, "answers to page faults")?;
    }
    Ok(())
}
