//! The protocol of one ring: who owns an entry, and what its flags prove.
//!
//! An entry goes round. It is free (flags 0), then pushed by the kernel ([`DIRTY`]), then harvested
//! by brant ([`RESET`]), and free again once the kernel's RESET has protected its page. The kernel
//! writes slot and offset before it sets `DIRTY` (release). Brant reads them after it saw `DIRTY`
//! (acquire), and sets `RESET` after it read them (release). The kernel's RESET goes strictly in
//! order and ends at the first entry without `RESET`, so no entry may be skipped.
//!
//! This file is pure: it reads and flags entries in memory, and makes no call. Indexes grow without
//! end; they are cut to the ring's size where an entry is accessed. `tests/loom` compiles this file
//! a second time.

use crate::runtime::sync::Ordering;
use crate::sys::kvm_ring::Entry;

/// `KVM_DIRTY_GFN_F_DIRTY`: the kernel has pushed the entry, and brant may read it.
pub const DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`: brant has read the entry, and the kernel may reset it. The kernel looks
/// at this bit alone, so an entry with both flags counts as one with `RESET`.
pub const RESET: u32 = 2;
/// An entry that was dirty already when [`Resync`] flagged it.
const FOUND: u32 = DIRTY | RESET;

fn at(ring: &[Entry], index: u64) -> &Entry {
    &ring[index as usize & (ring.len() - 1)]
}

fn flags(ring: &[Entry], index: u64) -> u32 {
    at(ring, index).flags.load(Ordering::Acquire)
}

fn read(entry: &Entry) -> (u32, u64) {
    // The flags were loaded before (acquire), and the kernel does not write the entry until it is
    // flagged.
    (
        entry.slot.load(Ordering::Relaxed),
        entry.offset.load(Ordering::Relaxed),
    )
}

/// The state of a ring after a RESET that consumed fewer entries than were flagged in all rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// As far as the flags show, every flagged entry of this ring was consumed.
    All,
    /// The kernel was interrupted before this entry. The next RESET goes on there.
    Before(u64),
    /// The kernel pushed onto an entry that was not reset yet: an overrun.
    Overwritten,
}

/// What a look at every entry of a ring shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No entry is dirty.
    Clean,
    /// The entry at the position is dirty, as it should be.
    InOrder,
    /// Some entry is dirty, but the one at the position is not: the kernel counts entries as in use
    /// that hold no page. The number is the index of the last dirty entry, in the ring's order.
    Gap(u64),
}

/// Brant's place in a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The next entry to harvest.
    head: u64,
    /// The first entry that was harvested and is not reset yet.
    reset: u64,
}

impl Position {
    /// Harvests and flags the dirty entries from here on, in order, and returns their number. Never
    /// harvests more entries than the ring has: that many in one harvest prove an overrun, and
    /// entries after them cannot be trusted.
    pub fn harvest(&mut self, ring: &[Entry], mut page: impl FnMut(u32, u64)) -> u64 {
        let begun = self.head;
        while self.head - self.reset < ring.len() as u64 {
            let entry = at(ring, self.head);
            if entry.flags.load(Ordering::Acquire) != DIRTY {
                break;
            }
            let (slot, offset) = read(entry);
            page(slot, offset);
            entry.flags.store(RESET, Ordering::Release);
            self.head += 1;
        }
        self.head - begun
    }

    /// Entries harvested and not reset.
    pub fn flagged(&self) -> u64 {
        self.head - self.reset
    }

    /// Notes that every flagged entry has been reset.
    pub fn settle(&mut self) {
        self.reset = self.head;
    }

    /// Finds from the flags how far a RESET came.
    pub fn settle_by_flags(&mut self, ring: &[Entry]) -> Settled {
        while self.reset < self.head {
            match flags(ring, self.reset) {
                0 => self.reset += 1,
                DIRTY => return Settled::Overwritten,
                _ => return Settled::Before(self.reset),
            }
        }
        Settled::All
    }

    /// Makes entries dirty again that were flagged and not reset, so that they are harvested once
    /// more.
    pub fn unflag(&mut self, ring: &[Entry]) {
        for entry in ring {
            let (done, failed) = (Ordering::AcqRel, Ordering::Acquire);
            let _ = entry.flags.compare_exchange(RESET, DIRTY, done, failed);
        }
        self.head = self.reset;
    }

    /// Whether more than 1/`part` of the ring is dirty. Costs one load.
    pub fn fills(&self, ring: &[Entry], part: u64) -> bool {
        flags(ring, self.head + ring.len() as u64 / part) == DIRTY
    }

    /// Names the pages of the last `n` entries before index `end`, as far as the entries still hold
    /// them.
    pub fn before(ring: &[Entry], end: u64, n: u64, mut page: impl FnMut(u32, u64)) {
        for index in end.saturating_sub(n.min(ring.len() as u64))..end {
            let (slot, offset) = read(at(ring, index));
            page(slot, offset);
        }
    }

    /// Whether the kernel may have pushed onto the entries from `from` to `end` after they were
    /// reset. Call it after those entries were read. The kernel writes an entry before it flags it,
    /// so an entry may change before its flag shows it. The entry before `from` is pushed first,
    /// and so it is looked at too.
    pub fn came_round(ring: &[Entry], from: u64, end: u64) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        let len = ring.len() as u64;
        (from + len - 1..end + len).any(|i| flags(ring, i) == DIRTY)
    }

    /// Where the next harvest begins.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Looks at every entry. Costs one read of the whole ring.
    pub fn look(&self, ring: &[Entry]) -> Seen {
        let all = self.head..self.head + ring.len() as u64;
        let Some(first) = all.clone().find(|&i| flags(ring, i) == DIRTY) else {
            return Seen::Clean;
        };
        // The kernel pushes in order: whoever sees a later push (acquire) sees the earlier ones
        // too. So if an entry in between is still not dirty, it was never pushed.
        if first == self.head || (self.head..first).any(|i| flags(ring, i) == DIRTY) {
            return Seen::InOrder;
        }
        Seen::Gap(self.last_dirty(ring).unwrap_or(first))
    }

    /// The index of the dirty entry that is farthest from here.
    pub fn last_dirty(&self, ring: &[Entry]) -> Option<u64> {
        let all = self.head..self.head + ring.len() as u64;
        all.rev().find(|&i| flags(ring, i) == DIRTY)
    }

    /// Whether the ring was never used, so that every entry is all zero.
    pub fn is_untouched(ring: &[Entry]) -> bool {
        let untouched = |e: &Entry| e.flags.load(Ordering::Acquire) == 0 && read(e) == (0, 0);
        ring.iter().all(untouched)
    }

    /// Flags the `n` entries from here on, which hold no page, for a kernel that counts them as in
    /// use. After the RESET that follows, call [`Position::took`].
    pub fn give(&self, ring: &[Entry], n: u64) {
        for index in self.head..self.head + n {
            let _ = at(ring, index).flags.compare_exchange(
                0,
                RESET,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
    }

    /// Ends [`Position::give`]. `count` is what the RESET consumed. Entries that the kernel did not
    /// consume are free again. If it consumed any, the position moves behind the `n` entries.
    pub fn took(&mut self, ring: &[Entry], n: u64, count: u64) {
        for index in self.head..self.head + n {
            let _ = at(ring, index).flags.compare_exchange(
                RESET,
                0,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
        if count > 0 {
            self.head += n;
            self.reset = self.head;
        }
    }

    /// Moves the position by `n` entries, without a change to the ring.
    pub fn move_by(&mut self, n: u64) {
        self.head += n;
        self.reset = self.head;
    }
}

/// Finds where the kernel's RESET stands. All that is known before is one dirty entry.
///
/// Every entry but that one, the *barrier*, is flagged. A RESET then consumes the entries between
/// the kernel's place and the barrier, and cannot pass the barrier. It never consumes too much: the
/// barrier was pushed and is in use, so every entry between is in use too, with a page or as a
/// phantom. Afterwards the entries that the RESET did not reach get their old flags back.
#[derive(Debug, Clone, Copy)]
pub struct Resync {
    barrier: u64,
    found: u64,
}

/// The result of a resync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resynced {
    /// The kernel's place; `None` if the ring moved on too fast to tell.
    pub position: Option<Position>,
    /// How many entries the kernel counted as in use although they held no page.
    pub phantoms: u64,
}

impl Resync {
    /// Flags every entry but the dirty one at `barrier`. `page` gets each page found.
    pub fn begin(ring: &[Entry], barrier: u64, mut page: impl FnMut(u32, u64)) -> Resync {
        let mut found = 0;
        for index in barrier + 1..barrier + ring.len() as u64 {
            let entry = at(ring, index);
            // The vCPU may be running. An entry that it pushes meanwhile must not be overwritten.
            loop {
                let was = entry.flags.load(Ordering::Acquire);
                let now = if was == 0 { RESET } else { FOUND };
                let pages = read(entry);
                let done =
                    entry
                        .flags
                        .compare_exchange(was, now, Ordering::AcqRel, Ordering::Acquire);
                if done.is_ok() {
                    if was == DIRTY {
                        page(pages.0, pages.1);
                    }
                    found += u64::from(now == FOUND);
                    break;
                }
            }
        }
        Resync { barrier, found }
    }

    /// Ends the resync after a RESET that consumed `count` entries: gives the other entries their
    /// old flags back, and says where the kernel is.
    pub fn end(self, ring: &[Entry], count: u64) -> Resynced {
        let len = ring.len() as u64;
        // The kernel consumed the entries that are free now, up to its place. Every entry between
        // that place and the barrier is still flagged, unless the barrier itself stopped the
        // kernel.
        let all = || self.barrier + 1..self.barrier + 1 + len;
        let place = if count > 0 {
            let free = all().rev().find(|&i| flags(ring, i) == 0);
            free.map(|free| free + 1)
        } else {
            // The RESET stopped at once: at the barrier, unless an entry was pushed meanwhile.
            let dirty = all().filter(|&i| flags(ring, i) == DIRTY).count();
            (dirty == 1).then_some(self.barrier)
        };
        let mut left = 0;
        for index in all() {
            let entry = at(ring, index);
            for (flagged, was) in [(RESET, 0), (FOUND, DIRTY)] {
                let undone =
                    entry
                        .flags
                        .compare_exchange(flagged, was, Ordering::AcqRel, Ordering::Acquire);
                left += u64::from(undone.is_ok() && was == DIRTY);
            }
        }
        Resynced {
            position: place.map(|place| Position {
                head: place,
                reset: place,
            }),
            phantoms: count.saturating_sub(self.found.saturating_sub(left)),
        }
    }
}
