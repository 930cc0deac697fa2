//! [`Outlet`]: where a walk sends pages.
//!
//! A walk chooses the pages. An outlet sends them: over a connection, into an image, into a test's
//! memory. A walk passes pages as [`Taken`], whose undelivered pages become pending again. So an
//! outlet needs no repair of its own after an error.

use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::runtime::Recall;
use crate::units::Pages;
use std::ops::AddAssign;
use std::time::Duration;

/// Where a walk sends pages: over a connection, into an image, into a test's memory.
pub trait Outlet {
    /// Takes pages and sends them on. The outlet keeps `taken` until the pages have arrived, and
    /// then calls [`Taken::delivered`]. It may unpin them before.
    ///
    /// The removal of a block waits for the block's pins and raises `recall`. An outlet that waits
    /// for a peer or a disk while pages are pinned also waits for `recall`. When `recall` is
    /// raised, the outlet gives up the pins.
    ///
    /// # Errors
    /// Those of sending. The pages become pending again, at once or when the outlet is dropped.
    fn put(&mut self, taken: Taken, recall: &Recall) -> Result<Put>;

    /// Handles acknowledgements and failures of earlier pages, without waiting. Called between two
    /// puts.
    ///
    /// # Errors
    /// Those of sending earlier pages.
    fn progress(&mut self) -> Result<()>;

    /// Waits until all pages that were put have arrived and are delivered.
    ///
    /// # Errors
    /// Those of sending, and when a time limit or a cancel ends the wait.
    fn barrier(&mut self) -> Result<()>;

    /// Says that no more pages come. Earlier pages may still be on their way.
    ///
    /// # Errors
    /// Those of sending.
    fn finish(&mut self) -> Result<()>;
}

/// What became of pages that an outlet took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// Bytes sent or written, headers included.
    pub bytes: u64,
    /// Pages that went with their contents.
    pub data_pages: u64,
    /// Pages that went as zero: zero pages, holes, and all pages that were not read.
    pub zero_pages: u64,
    /// Of the zero pages, those that were never touched.
    pub hole_pages: u64,
    /// Of the zero pages, ballooned ones.
    pub ballooned_pages: u64,
    /// Of the zero pages, those that the guest hinted to be free.
    pub free_pages: u64,
    /// Of the zero pages, those whose contents are lost, as the VMM has declared.
    pub poisoned_pages: u64,
    /// Of the pages that went with their contents, those that went compressed.
    pub compressed_pages: u64,
    /// What those became, in bytes.
    pub compressed_bytes: u64,
    /// Of the data pages, those that went as what had changed in them.
    pub delta_pages: u64,
    /// Bytes that these pages would have taken more.
    pub delta_saved: u64,
    /// Of the other data pages, re-sent ones whose last version was not at hand.
    pub delta_misses: u64,
    /// Of the other data pages, re-sent ones in which too much had changed.
    pub delta_overflows: u64,
    /// Of the data pages, those that left from a copy that this side made: with a checksum,
    /// compressed, as a change, or to be kept for later changes.
    pub copied_pages: u64,
    /// From the look at the first page until the last byte was sent or written. Where several
    /// threads send: the time in which all of them together have sent this.
    pub time: Duration,
}

impl Put {
    /// Pages that went with contents, or were found to be zero or holes.
    pub fn read_pages(&self) -> u64 {
        let unread = self.ballooned_pages + self.free_pages + self.poisoned_pages;
        self.data_pages + self.zero_pages - unread
    }

    /// What came since it was `before`; no time.
    #[must_use]
    pub fn since(&self, before: &Put) -> Put {
        Put {
            bytes: self.bytes - before.bytes,
            data_pages: self.data_pages - before.data_pages,
            zero_pages: self.zero_pages - before.zero_pages,
            hole_pages: self.hole_pages - before.hole_pages,
            ballooned_pages: self.ballooned_pages - before.ballooned_pages,
            free_pages: self.free_pages - before.free_pages,
            poisoned_pages: self.poisoned_pages - before.poisoned_pages,
            compressed_pages: self.compressed_pages - before.compressed_pages,
            compressed_bytes: self.compressed_bytes - before.compressed_bytes,
            delta_pages: self.delta_pages - before.delta_pages,
            delta_saved: self.delta_saved - before.delta_saved,
            delta_misses: self.delta_misses - before.delta_misses,
            delta_overflows: self.delta_overflows - before.delta_overflows,
            copied_pages: self.copied_pages - before.copied_pages,
            time: Duration::ZERO,
        }
    }

    /// The bytes, if the pages that went compressed had gone as they are: what the link carried, in
    /// the unit that the rest of the guest's memory is counted in.
    pub fn carried(&self) -> u64 {
        self.bytes - self.compressed_bytes + Pages(self.compressed_pages).bytes().0
    }

    /// Whether the time measures the link. It does not if most of it went into finding zero pages or
    /// making deltas.
    pub fn measures_the_link(&self) -> bool {
        2 * (self.data_pages - self.delta_pages) >= self.read_pages()
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
        self.compressed_pages += more.compressed_pages;
        self.compressed_bytes += more.compressed_bytes;
        self.delta_pages += more.delta_pages;
        self.delta_saved += more.delta_saved;
        self.delta_misses += more.delta_misses;
        self.delta_overflows += more.delta_overflows;
        self.copied_pages += more.copied_pages;
        self.time += more.time;
    }
}
