//! The protocol of one ring: whose each entry is, and what may be concluded from its flags.
//!
//! An entry goes round: free (0), pushed by the kernel ([`DIRTY`]), harvested by us
//! ([`RESET`]), free again once the kernel's RESET has protected its page. The kernel writes slot
//! and offset before it sets `DIRTY` (release), we read them after we saw it (acquire), and set
//! `RESET` after we read them (release). The kernel's RESET goes strictly in order and
//! ends at the first entry that is not flagged, so nothing may be skipped.
//!
//! Pure: memory in, pages out; no call is made here. All indexes run on and are cut to the
//! ring's size where an entry is looked at. `tests/loom` compiles this file a second time.

use crate::runtime::sync::Ordering;
use crate::sys::kvm_ring::Entry;

/// `KVM_DIRTY_GFN_F_DIRTY`: pushed by the kernel, ours to read.
pub const DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`: read, the kernel's to reset. It goes by this bit alone, so both
/// together count as this.
pub const RESET: u32 = 2;
/// Flagged while looking for the kernel's position, and dirty before.
const FOUND: u32 = DIRTY | RESET;

fn at(ring: &[Entry], index: u64) -> &Entry {
    &ring[index as usize & (ring.len() - 1)]
}

fn flags(ring: &[Entry], index: u64) -> u32 {
    at(ring, index).flags.load(Ordering::Acquire)
}

fn read(entry: &Entry) -> (u32, u64) {
    // After the acquiring load of the flags; nobody writes them until we flag the entry.
    (
        entry.slot.load(Ordering::Relaxed),
        entry.offset.load(Ordering::Relaxed),
    )
}

/// How a ring stands after a RESET that did not consume all that was flagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// All of it was consumed, as far as one sees.
    All,
    /// The kernel stopped before this entry: it was interrupted. Another RESET goes on there.
    Before(u64),
    /// The kernel pushed onto an entry that was ours: an overrun.
    Overwritten,
}

/// What a look at the whole ring shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No dirty entry anywhere.
    Clean,
    /// The next dirty entry is where it should be.
    InOrder,
    /// There are dirty entries, but not where the next one should be: the kernel has entries in
    /// use that hold nothing. The last dirty one, in the ring's order, is at this index.
    Gap(u64),
}

/// Where we are in a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The next entry to harvest.
    head: u64,
    /// The first one that was harvested and not reset yet.
    reset: u64,
}

impl Position {
    /// Takes every entry that is dirty from here on, in order, and flags it. Never more than the
    /// ring has: that many at once say that it overran, and the rest is not to be trusted.
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

    /// All that was flagged has been reset.
    pub fn settle(&mut self) {
        self.reset = self.head;
    }

    /// Finds out from the flags how far a RESET came.
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

    /// Makes dirty again what was flagged and not reset: it will be harvested once more.
    pub fn unflag(&mut self, ring: &[Entry]) {
        for entry in ring {
            let (done, failed) = (Ordering::AcqRel, Ordering::Acquire);
            let _ = entry.flags.compare_exchange(RESET, DIRTY, done, failed);
        }
        self.head = self.reset;
    }

    /// Whether more than 1/`part` of the ring is dirty. One load.
    pub fn fills(&self, ring: &[Entry], part: u64) -> bool {
        flags(ring, self.head + ring.len() as u64 / part) == DIRTY
    }

    /// The pages of the last `n` entries before index `end`, as far as they are still there.
    pub fn before(ring: &[Entry], end: u64, n: u64, mut page: impl FnMut(u32, u64)) {
        for index in end.saturating_sub(n.min(ring.len() as u64))..end {
            let (slot, offset) = read(at(ring, index));
            page(slot, offset);
        }
    }

    /// Whether the kernel may have pushed onto the entries from `from` to `end` after they were reset:
    /// asked after they were read. It writes an entry before it flags it, so the one before them,
    /// which is pushed first, counts too.
    pub fn came_round(ring: &[Entry], from: u64, end: u64) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        let len = ring.len() as u64;
        (from + len - 1..end + len).any(|i| flags(ring, i) == DIRTY)
    }

    /// Where the next harvest begins.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Looks at every entry. Costs a read of the ring.
    pub fn look(&self, ring: &[Entry]) -> Seen {
        let all = self.head..self.head + ring.len() as u64;
        let Some(first) = all.clone().find(|&i| flags(ring, i) == DIRTY) else {
            return Seen::Clean;
        };
        // Pushes are made in order: whoever sees a later one (acquire) sees the
        // earlier ones too. So if one between is still not dirty, it was never pushed.
        if first == self.head || (self.head..first).any(|i| flags(ring, i) == DIRTY) {
            return Seen::InOrder;
        }
        Seen::Gap(self.last_dirty(ring).unwrap_or(first))
    }

    /// The dirty entry that is farthest from here.
    pub fn last_dirty(&self, ring: &[Entry]) -> Option<u64> {
        let all = self.head..self.head + ring.len() as u64;
        all.rev().find(|&i| flags(ring, i) == DIRTY)
    }

    /// Whether the ring was never used: nothing has been written to any entry.
    pub fn is_untouched(ring: &[Entry]) -> bool {
        let untouched = |e: &Entry| e.flags.load(Ordering::Acquire) == 0 && read(e) == (0, 0);
        ring.iter().all(untouched)
    }

    /// Gives `n` entries from here on to the kernel although they hold nothing: for a kernel that
    /// believes them to be in use. After its RESET, see [`Position::took`].
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

    /// How many of the `n` given ones the kernel took; those that it did not take are free again
    /// and the position is where it stopped. 0 if it is not here.
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

    /// To another place, as far as the ring is concerned.
    pub fn move_by(&mut self, n: u64) {
        self.head += n;
        self.reset = self.head;
    }
}

/// Finding the place where the kernel's RESET stands, without knowing anything but one dirty entry.
///
/// Everything is flagged but that entry, the *barrier*. Then a RESET consumes what lies
/// between the kernel's place and the barrier and cannot pass it. That is never too much: the
/// barrier was pushed and is in use, so everything before it is too, be it
/// a page or a phantom. Afterwards the entries that were not reached are made what they were.
#[derive(Debug, Clone, Copy)]
pub struct Resync {
    barrier: u64,
    found: u64,
}

/// What a resync came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resynced {
    /// Where the kernel is now; `None` if the ring moved on too fast to tell.
    pub position: Option<Position>,
    /// Entries that the kernel had in use and that held nothing.
    pub phantoms: u64,
}

impl Resync {
    /// Flags everything but the entry at `barrier`, which is dirty. `page` gets each page found.
    pub fn begin(ring: &[Entry], barrier: u64, mut page: impl FnMut(u32, u64)) -> Resync {
        let mut found = 0;
        for index in barrier + 1..barrier + ring.len() as u64 {
            let entry = at(ring, index);
            // The vCPU may be running: what it pushes meanwhile must not be overwritten.
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

    /// After the RESET, which consumed `count` entries: makes the rest what it was, and says
    /// where the kernel is.
    pub fn end(self, ring: &[Entry], count: u64) -> Resynced {
        let len = ring.len() as u64;
        // Consumed are those that are free now, up to the place; all between it and the barrier are
        // flagged, or the barrier itself stopped the kernel.
        let all = || self.barrier + 1..self.barrier + 1 + len;
        let place = if count > 0 {
            let free = all().rev().find(|&i| flags(ring, i) == 0);
            free.map(|free| free + 1)
        } else {
            // Stopped at once: by the barrier, unless something was pushed meanwhile.
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
