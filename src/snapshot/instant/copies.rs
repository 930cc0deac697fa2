//! Copies of pages that the guest writes before the image has them: at most so many bytes.

use crate::sys::own::OwnMemory;
use crate::units::PAGE_SIZE;

/// Pages that are allocated at once: 1 MiB, or all of a smaller limit.
const CHUNK: usize = 256;

/// The number of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// See the file's description. Memory is taken as it is needed, and kept until the end.
#[derive(Debug)]
pub(super) struct Copies {
    chunks: Vec<OwnMemory>,
    free: Vec<u32>,
    /// Pages that may still be allocated.
    left: usize,
    /// Pages that were given out.
    used: usize,
    most: usize,
}

impl Copies {
    /// No copies yet, and later copies of at most `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Copies {
        let most = usize::try_from(bytes / PAGE_SIZE).unwrap_or(usize::MAX);
        Copies {
            chunks: Vec::new(),
            free: Vec::new(),
            left: most,
            used: 0,
            most,
        }
    }

    /// A place for one more page. `None` at the limit, and where there is no memory.
    pub(super) fn take(&mut self) -> Option<Slot> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let slot = self.free.pop().map(Slot)?;
        self.used += 1;
        Some(slot)
    }

    /// [`Copies::take`] for a page that nobody waits for. One half is kept for those who do.
    pub(super) fn take_spare(&mut self) -> Option<Slot> {
        match self.used < self.most / 2 {
            true => self.take(),
            false => None,
        }
    }

    fn grow(&mut self) -> Option<()> {
        let pages = CHUNK.min(self.left);
        if pages == 0 || self.chunks.try_reserve(1).is_err() {
            return None;
        }
        // Every copy has a place in the list, so that giving one back never allocates.
        let all = self.chunks.len() * CHUNK + pages;
        self.free.try_reserve(all).ok()?;
        let memory = OwnMemory::new(pages * PAGE_SIZE as usize, "copies of pages").ok()?;
        let first = u32::try_from(self.chunks.len() * CHUNK).ok()?;
        self.chunks.push(memory);
        self.left -= pages;
        self.free.extend(first..first + pages as u32);
        Some(())
    }

    /// The page's bytes.
    pub(super) fn bytes_mut(&mut self, slot: Slot) -> &mut [u8] {
        let (chunk, page) = (slot.0 as usize / CHUNK, slot.0 as usize % CHUNK);
        let at = page * PAGE_SIZE as usize;
        &mut self.chunks[chunk][at..at + PAGE_SIZE as usize]
    }

    /// The copy is not needed any more.
    pub(super) fn give_back(&mut self, slot: Slot) {
        self.free.push(slot.0);
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_take_no_more_memory_than_the_limit_and_a_place_discarded_is_used_again() {
        let limit = (CHUNK as u64 + 7) * PAGE_SIZE;
        let mut copies = Copies::new(limit + PAGE_SIZE - 1);
        let taken: Vec<Slot> = std::iter::from_fn(|| copies.take()).collect();
        assert_eq!(taken.len() as u64, limit / PAGE_SIZE);
        for (value, slot) in (0..).zip(&taken) {
            copies.bytes_mut(*slot).fill((value % 251) as u8);
        }
        for (value, slot) in (0..).zip(&taken) {
            let expected = (value % 251) as u8;
            assert!(copies.bytes_mut(*slot).iter().all(|b| *b == expected));
        }
        copies.give_back(taken[5]);
        assert_eq!(copies.take_spare(), None);
        assert_eq!(copies.take(), Some(taken[5]));
        assert_eq!(copies.take(), None);
        assert_eq!(Copies::new(PAGE_SIZE - 1).take(), None);
    }
}
