//! A sample of a guest's pages, which are read twice: which pages, and a checksum of their first
//! contents. Pages that the host never backed are not read, so that they stay unbacked. The probe
//! calls this file.

use super::estimate::{choose, Sampled};
use crate::error::{Error, Result};
use crate::fallible;
use crate::memory::access;
use crate::memory::contents::{Contents, Seen};
use crate::memory::{Block, BlockPin, Memory};
use crate::units::{Pages, PAGE_SIZE};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// Pages in a GiB.
const GIB_PAGES: u64 = 1 << 18;
/// The most pages of a sample: 64 MiB of notes, and 16 GiB to read. They are enough for an error of
/// a two-thousandth of memory, whatever its size.
const MOST: u64 = 4 << 20;
/// Pages that are read under one pin of their block.
const AT_ONCE: usize = 256;

/// A page, and its contents at the first reading.
struct Note {
    page: Pages,
    sum: u32,
}

/// The sample of one block.
struct Part {
    /// Not pinned, so the block may be removed.
    block: Arc<Block>,
    gone: bool,
    notes: Vec<Note>,
}

/// See the file's description.
pub(super) struct Sample {
    parts: Vec<Part>,
    contents: Contents,
    zero: u32,
}

impl Sample {
    /// Chooses `per_gib` pages of each GiB of `memory`, at least one in all.
    pub(super) fn choose(memory: &Memory, per_gib: u32) -> Result<Sample> {
        let map = memory.map();
        let total: u64 = map.blocks().iter().map(|b| b.pages().0).sum();
        let wanted = u128::from(total) * u128::from(per_gib) / u128::from(GIB_PAGES);
        let count = (wanted as u64).clamp(1, MOST).min(total);
        // A seed that the guest cannot foresee.
        let seed = RandomState::new().build_hasher().finish();
        let mut chosen = choose(Pages(total), count, seed).peekable();
        let mut parts = Vec::new();
        let mut before = Pages(0);
        for block in map.blocks() {
            let end = before + block.pages();
            // The block's share of the pages, and one more for each edge.
            let room = (u128::from(count) * u128::from(block.pages().0) / u128::from(total.max(1)))
                as usize
                + 2;
            let mut notes = Vec::new();
            notes.try_reserve_exact(room).map_err(|_| {
                let bytes = room * size_of::<Note>();
                Error::no_memory("sample of guest memory", bytes as u64)
            })?;
            while let Some(page) = chosen.next_if(|page| *page < end) {
                notes.push(Note {
                    page: page - before,
                    sum: 0,
                });
            }
            let part = Part {
                block: Arc::clone(block),
                gone: false,
                notes,
            };
            fallible::push(&mut parts, part, "sample of guest memory")?;
            before = end;
        }
        Ok(Sample {
            parts,
            contents: Contents::new(),
            zero: crc32fast::hash(&[0; PAGE_SIZE as usize]),
        })
    }

    /// Calls `f` with each note and the page's contents now. Notes for blocks that are gone are
    /// dropped.
    fn each(
        &mut self,
        memory: &Memory,
        check: impl Fn() -> Result<()>,
        mut f: impl FnMut(&mut Note, u32),
    ) -> Result<()> {
        let Sample {
            parts,
            contents,
            zero,
        } = self;
        for part in parts.iter_mut() {
            for notes in part.notes.chunks_mut(AT_ONCE) {
                check()?;
                let Some(block) = memory.pin(&part.block) else {
                    part.gone = true;
                    break;
                };
                contents.refresh();
                for note in notes {
                    let now = checksum(contents, &block, note.page, *zero)?;
                    f(note, now);
                }
            }
        }
        parts.retain(|part| !part.gone);
        Ok(())
    }

    /// Reads every page for the first time.
    pub(super) fn read(&mut self, memory: &Memory, check: impl Fn() -> Result<()>) -> Result<()> {
        self.each(memory, check, |note, now| note.sum = now)
    }

    /// Reads every page again, and counts those that have changed.
    pub(super) fn compare(
        &mut self,
        memory: &Memory,
        check: impl Fn() -> Result<()>,
    ) -> Result<Sampled> {
        let mut changed = 0;
        self.each(memory, check, |note, now| {
            changed += u64::from(note.sum != now);
        })?;
        let read = self.parts.iter().map(|part| part.notes.len() as u64).sum();
        let total = self.parts.iter().map(|part| part.block.pages().0).sum();
        Ok(Sampled {
            total: Pages(total),
            read: Pages(read),
            changed: Pages(changed),
        })
    }
}

/// A checksum of a page's contents, in 32 bits. Two different contents have the same one by chance
/// once in 2^32. The page is copied first, because the guest may be writing it.
///
/// A page that is not there yet, because another userfaultfd fills it at the first touch, is not
/// touched for this. It counts as never written. If it is there at the second reading it counts as
/// written, which it may be.
fn checksum(contents: &mut Contents, block: &BlockPin, page: Pages, zero: u32) -> Result<u32> {
    let just = page..page + Pages(1);
    if block.poisoned().next(just.clone()).is_some() {
        // There is no contents to read, so the page counts as unchanged.
        return Ok(zero);
    }
    match contents.see(block, page)? {
        Seen::Empty => return Ok(zero),
        Seen::Absent => return Ok(!zero),
        Seen::Filled => {}
    }
    access::readable(block, just)?;
    let mut copy = [0u8; PAGE_SIZE as usize];
    block.slice(page, Pages(1))?.copy_to(&mut copy[..]);
    Ok(crc32fast::hash(&copy))
}
