//! [`Outlet`]: where a walk sends pages.
//!
//! A walk knows which pages, an outlet knows where to: over a connection, into an image, into
//! a test's memory. Between them stands [`Taken`]: whatever an outlet does not deliver becomes
//! pending again, so no outlet has to think of what it owes after an error.

use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::runtime::Recall;
use std::ops::AddAssign;
use std::time::Duration;

/// See the file's description.
pub trait Outlet {
    /// Takes pages and sends them on. The outlet keeps `taken` until the pages have arrived, and
    /// then says so ([`Taken::delivered`]); it may unpin them before.
    ///
    /// Whoever removes a block waits for its pins and raises `recall`. An outlet that waits for
    /// somebody else (a peer, a disk) while pages are pinned waits for that too, and then makes
    /// do without the pins.
    ///
    /// # Errors
    /// Of sending. The pages are pending again, now or when the outlet is dropped.
    fn put(&mut self, taken: Taken, recall: &Recall) -> Result<Put>;

    /// Looks at what became of earlier pages, without waiting. Called between two puts.
    ///
    /// # Errors
    /// Of sending, found out since.
    fn progress(&mut self) -> Result<()>;

    /// Waits until all that was put has arrived and is delivered.
    ///
    /// # Errors
    /// Of sending, and when a time limit or a cancel ends the wait.
    fn barrier(&mut self) -> Result<()>;

    /// Says that no more pages come. They may still be on their way.
    ///
    /// # Errors
    /// Of sending.
    fn finish(&mut self) -> Result<()>;
}

/// What became of pages that an outlet took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// Bytes given away, headers included.
    pub bytes: u64,
    /// Pages that went with their contents.
    pub data_pages: u64,
    /// Pages that went as zero: holes, and all that was not read.
    pub zero_pages: u64,
    /// Of those, pages that were never touched.
    pub hole_pages: u64,
    /// Of the zero pages, ballooned ones.
    pub ballooned_pages: u64,
    /// Of the zero pages, those that the guest hinted to be free.
    pub free_pages: u64,
    /// Of the zero pages, those whose contents are lost, as the VMM has declared.
    pub poisoned_pages: u64,
    /// From looking at the first page to having given the last byte away.
    pub time: Duration,
}

impl Put {
    /// Pages that went with contents, or were found to be zero or holes.
    pub fn read_pages(&self) -> u64 {
        let unread = self.ballooned_pages + self.free_pages + self.poisoned_pages;
        self.data_pages + self.zero_pages - unread
    }

    /// Whether the time says something of the link: not if most of it went into finding zeros.
    pub fn measures_the_link(&self) -> bool {
        2 * self.data_pages >= self.read_pages()
    }
}

impl AddAssign for Put {
    fn add_assign(&mut self, more: Put) {
        self.bytes += more.bytes;
        self.data_pages += more.data_pages;
        self.zero_pages += more.zero_pages;
        self.hole_pages += more.hole_pages;
        self.ballooned_pages += more.ballooned_pages;
        self.free_pages += more.free_pages;
        self.poisoned_pages += more.poisoned_pages;
        self.time += more.time;
    }
}
