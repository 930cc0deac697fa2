//! Who brings absent pages, and by what they get into memory.

use crate::error::{Error, Result};
use crate::memory::block::Block;
use crate::units::Pages;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Who brings absent pages.
pub trait Supplier: Send + Sync {
    /// A thread waits for these pages. Called once for a page, on the thread that serves faults, also
    /// before [`Served::begin`](super::Served::begin) has returned; and by
    /// [`Served::ask_again`](super::Served::ask_again). Must not block, touch guest memory, or call
    /// the [`Served`](super::Served). [`Supplier::all_wanted`] follows.
    fn wanted(&self, block: &Arc<Block>, pages: Range<Pages>);

    /// Called behind one or several calls of [`Supplier::wanted`], on the same thread and by the same
    /// rules: these are all for now.
    fn all_wanted(&self) {}

    /// All pages are here or given up. Called once, on the thread that placed or gave up the last
    /// one. Not called where no page was absent from the beginning, nor when the
    /// [`Served`](super::Served) is dropped.
    fn all_here(&self) {}

    /// A fault cannot be answered at this moment. The thread that serves faults goes on trying.
    fn failed(&self, error: &Error) {
        let _ = error;
    }

    /// A thread waits for these pages: brings them on the thread that serves faults, if that can begin
    /// at once. `false`: [`Supplier::wanted`] is called with them next. Must not block.
    fn at_once(&self, here: &dyn Place, block: &Arc<Block>, pages: &Range<Pages>) -> bool {
        let _ = (here, block, pages);
        false
    }

    /// A descriptor that is readable when [`Supplier::came`] has something to do.
    fn coming(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Places what has come of the pages that [`Supplier::at_once`] has begun with, on the thread that
    /// serves faults. Must not block.
    fn came(&self, here: &dyn Place) {
        let _ = here;
    }
}

/// Puts pages into memory that is served. Any thread.
pub trait Place {
    /// Puts contents (whole pages) into the pages from `first` on, where nothing has arrived yet, and
    /// wakes the threads that wait for them. Pages that are not absent keep what they have. A piece
    /// of a huge page is kept until the whole page has arrived. Returns how many pages are here by
    /// this call.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind::Invalid) for pages outside of the block, or a block that is not served; the kernel's.
    /// The pages that were not placed are absent as before.
    fn place(&self, block: &Block, first: Pages, contents: &[u8]) -> Result<Pages>;

    /// [`Place::place`] for pages of zeros.
    ///
    /// # Errors
    /// Those of [`Place::place`].
    fn place_zeros(&self, block: &Block, pages: Range<Pages>) -> Result<Pages>;

    /// Gives absent pages up: an access raises SIGBUS from now on (SIGSEGV before Linux 6.6), as if
    /// the hardware had lost them, and they count as declared lost
    /// ([`Memory::mark_poisoned`](crate::memory::Memory::mark_poisoned)). Pages that are here stay.
    /// Of a huge page all is given up. Returns how many pages were given up.
    ///
    /// # Errors
    /// Those of [`Place::place`].
    fn lose(&self, block: &Block, pages: Range<Pages>) -> Result<Pages>;
}
