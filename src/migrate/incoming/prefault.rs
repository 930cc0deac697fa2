//! Backing guest memory just before contents are read into it.
//!
//! The first write to a page that is not backed is a fault. A read from a socket into such pages
//! takes one fault a page, and costs two to three times what the copy does. When the kernel is
//! asked to back 64 pages at once, half of the cost of their faults is saved. Another thread can
//! ask for the next 64 pages while the connection's thread still copies into these.
//!
//! Only a run whose header has been read is backed. So memory is backed at most one run (2 MiB)
//! ahead of what has arrived, and a page that arrives as zero, or never, stays untouched. Two kinds
//! of memory are left alone: a run whose pages are backed already, and memory that a userfaultfd
//! watches.
//!
//! The two threads share one list of pieces, and the thread that is free takes the next piece. The
//! connection's thread itself backs a piece that it is about to read and that nobody has taken. So
//! a helper that gets no processor delays nothing.
//!
//! When a piece cannot be backed, prefaulting ends and the VMM hears why (`EventKind::Warning`).
//! Reading into that piece fails too, with a system call's error, and the reader explains that
//! error.
//!
//! Prefaulting meets no limit on memory (of a cgroup, a tmpfs or a pool of huge pages) sooner than
//! the contents would: all memory that is backed is written a moment later.
//!
//! The helper pins a block for one piece at a time, so the removal of a block waits for one piece.

use super::lane_account::{LaneAccount, Place};
use crate::error::Error;
use crate::memory::{host, Block, Memory, PageRun};
use crate::migrate::callbacks::Callbacks;
use crate::runtime::thread::{spawn, Join, Role};
use crate::sys::mem;
use crate::units::Pages;
use crate::vmm::EventKind;
use std::ops::{AddAssign, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The pages that are backed at once: 256 KiB. The kernel zeroes them, and the copy finds them in
/// the cache.
const PIECE: Pages = Pages(64);
/// For runs shorter than this, the look whether they are backed costs more than it saves.
const SHORTEST: Pages = Pages(8);

/// The part of the run being received that neither thread has taken.
struct Left {
    block: Arc<Block>,
    pages: Range<Pages>,
}

impl Left {
    /// Takes the next piece, which consists of whole pages of the host's.
    fn take(&mut self) -> Range<Pages> {
        let host_page = self.block.page_size().pages_down().0;
        let end = (self.pages.start.0 + PIECE.0).next_multiple_of(host_page);
        let end = Pages(end).min(self.pages.end);
        let piece = self.pages.start..end;
        self.pages.start = end;
        piece
    }

    fn is_empty(&self) -> bool {
        self.pages.start >= self.pages.end
    }
}

/// What was backed ahead, for the statistics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backed {
    /// Pages that the host was asked to back.
    pub(super) pages: u64,
    /// Pieces that the host could not back.
    pub(super) failures: u64,
}

impl AddAssign for Backed {
    fn add_assign(&mut self, more: Backed) {
        self.pages += more.pages;
        self.failures += more.failures;
    }
}

#[derive(Default)]
struct State {
    left: Option<Left>,
    /// Whether prefaulting has ended: a piece could not be backed, or the kernel has no call for
    /// it.
    off: bool,
    /// Why a piece could not be backed. Taken when the VMM is told.
    failed: Option<Error>,
    done: Backed,
    ends: bool,
    /// The number of pieces that the helper has backed.
    #[cfg(test)]
    helped: u64,
}

/// What the connection's thread and the helper share.
struct Shared {
    memory: Arc<Memory>,
    state: Mutex<State>,
    /// Wakes the helper: there is a run, or the helper is to end.
    asked: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Backs a piece of `block`, which is pinned.
    fn back(&self, block: &Block, piece: Range<Pages>) {
        let pages = (piece.end - piece.start).0;
        let backed = host::prefault(block, piece);
        let mut state = self.lock();
        match backed {
            Ok(()) => state.done.pages += pages,
            Err(e) => {
                state.done.failures += 1;
                state.failed.get_or_insert(e);
                state.off = true;
                state.left = None;
            }
        }
    }

    /// The helper's work.
    fn help(&self) {
        let mut state = self.lock();
        while !state.ends {
            let taken = state.left.as_mut().filter(|left| !left.is_empty());
            let Some(left) = taken else {
                state = self.asked.wait(state).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            let (block, piece) = (Arc::clone(&left.block), left.take());
            drop(state);
            // A block that is gone needs no backing.
            if let Some(pin) = self.memory.pin(&block) {
                self.back(&pin, piece);
            }
            state = self.lock();
            #[cfg(test)]
            {
                state.helped += 1;
            }
        }
    }
}

/// Prefaulting for one connection, as the file's description says.
pub(super) struct Prefault {
    shared: Arc<Shared>,
    /// For `thread_start`.
    vmm: Callbacks,
    helper: Helper,
}

enum Helper {
    /// No run has needed the helper so far.
    Unborn,
    Lives(Join<()>),
    /// There are too few processors, or no thread could be started.
    Never,
}

impl Prefault {
    /// Prefaulting for one of `lanes` connections. There is a helper where the machine has
    /// processors for as many helpers as connections.
    pub(super) fn new(memory: Arc<Memory>, vmm: Callbacks, lanes: usize) -> Self {
        let alone = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2 * lanes);
        Prefault {
            shared: Arc::new(Shared {
                memory,
                state: Mutex::new(State {
                    // Before Linux 5.14 the kernel has no call that backs pages.
                    off: !mem::can_populate(),
                    ..State::default()
                }),
                asked: Condvar::new(),
            }),
            vmm,
            helper: if alone { Helper::Never } else { Helper::Unborn },
        }
    }

    /// Called when contents for the run `place` come next. `None` when the run needs no
    /// prefaulting.
    pub(super) fn ahead(&mut self, account: &mut LaneAccount, place: &Place) -> Option<Ahead<'_>> {
        let (block, run) = place;
        if run.count() < SHORTEST || self.is_off() || !account.wants_backing(place) {
            return None;
        }
        let mut left = Left {
            block: block.shared(),
            pages: run.range(),
        };
        let first = left.take();
        let more = !left.is_empty();
        self.shared.lock().left = Some(left);
        if more {
            self.wake();
        }
        let ahead = Ahead {
            shared: &self.shared,
            run: *run,
        };
        self.shared.back(block, first);
        Some(ahead)
    }

    /// The pages and failures so far.
    pub(super) fn done(&self) -> Backed {
        self.shared.lock().done
    }

    /// Whether prefaulting has ended. The first call after a failure tells the VMM why.
    fn is_off(&self) -> bool {
        let mut state = self.shared.lock();
        let (off, failed) = (state.off, state.failed.take());
        drop(state);
        if let Some(error) = failed {
            self.vmm.event(
                EventKind::Warning,
                format!("memory is no longer backed ahead of its contents: {error}"),
            );
        }
        off
    }

    fn wake(&mut self) {
        if let Helper::Unborn = self.helper {
            let (vmm, shared) = (self.vmm.clone(), Arc::clone(&self.shared));
            // When the VMM's `thread_start` panics, the thread ends without doing anything.
            let help = move || {
                if vmm.thread_start(Role::Prefault).is_ok() {
                    shared.help();
                }
            };
            self.helper = match spawn(Role::Prefault, |_| (), help) {
                Ok(join) => Helper::Lives(join),
                Err(_) => Helper::Never,
            };
        }
        self.shared.asked.notify_one();
    }

    /// Called when all contents have arrived. The helper ends soon, and this call does not wait for
    /// it.
    pub(super) fn finish(&mut self) {
        self.is_off();
        let mut state = self.shared.lock();
        state.ends = true;
        state.left = None;
        drop(state);
        self.shared.asked.notify_one();
    }
}

impl Drop for Prefault {
    /// Waits for the helper, which has at most one piece to finish.
    fn drop(&mut self) {
        self.finish();
        if let Helper::Lives(join) = std::mem::replace(&mut self.helper, Helper::Never) {
            let _ = join.join();
        }
    }
}

/// One run whose contents are being read. When this value is dropped, the rest of the run is no
/// longer backed ahead.
pub(super) struct Ahead<'a> {
    shared: &'a Shared,
    run: PageRun,
}

impl Ahead<'_> {
    /// Called before contents are read into `page` of `block`. When it returns, that page is
    /// backed, or a thread is backing it. Returns the page up to which that is so.
    pub(super) fn reach(&self, block: &Block, page: Pages) -> Pages {
        loop {
            let mut state = self.shared.lock();
            let Some(left) = &mut state.left else {
                return self.run.end();
            };
            if left.pages.start > page {
                return left.pages.start;
            }
            let piece = left.take();
            drop(state);
            self.shared.back(block, piece);
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.shared.lock().left = None;
    }
}

#[cfg(test)]
mod tests;
