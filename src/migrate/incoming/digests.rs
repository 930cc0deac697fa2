//! What the destination's memory holds once all pages have arrived: a checksum for each page, for a
//! source that verifies the migration.
//!
//! The checksums are computed before the VMM loads the device state, so that they do not cover what
//! loading writes. They are sent once the guest runs, and need no look at memory then. The guest
//! stands still while they are computed, so as many threads compute as the session has channels.
//! Holes stay untouched.
//!
//! They take 4 bytes for each page, but none for an aligned 2 MiB of zero pages: at most a
//! thousandth of the guest.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::contents::Contents;
use crate::memory::digest::{of_pages, OF_ZEROS, PIECE};
use crate::memory::{Block, Memory};
use crate::migrate::callbacks::Callbacks;
use crate::runtime::thread::{catch, spawn, Role};
use crate::runtime::Cancel;
use crate::units::{Pages, STRETCH_PAGES};
use crate::wire::{Digest, Record, DIGEST_PAGES_MAX};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

/// About this many bytes of records are sent in one call.
const AT_ONCE: usize = 64 << 10;

const WHAT: &str = "checksums of pages";

/// The checksums of a stretch's pages; empty when all of them are zero.
type Sums = Vec<u32>;

/// The checksums of one block.
#[derive(Debug, PartialEq, Eq)]
struct OfBlock {
    /// The source's number of it.
    id: u32,
    pages: Pages,
    /// Of each stretch.
    stretches: Vec<Sums>,
}

/// The checksums of all pages, as the file's description says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Digests {
    blocks: Vec<OfBlock>,
}

impl Digests {
    /// Computes the checksums of `blocks`, which have the source's numbers, with at most `threads`
    /// threads. A block that is removed meanwhile is left out.
    ///
    /// # Errors
    /// When a page cannot be read, when there is no memory for the checksums, and when `cancel`
    /// comes.
    pub(super) fn compute(
        memory: &Arc<Memory>,
        blocks: Vec<(u32, Arc<Block>)>,
        threads: usize,
        cancel: &Cancel,
        vmm: &Callbacks,
    ) -> Result<Digests> {
        let mut digests = Digests::of(&blocks)?;
        let work = Arc::new(Work::new(memory, blocks, cancel)?);
        let helpers = threads.min(work.pieces.len()).saturating_sub(1);
        let mut helping = Vec::new();
        fallible::reserve(&mut helping, helpers, "threads")?;
        for _ in 0..helpers {
            let (work, vmm) = (Arc::clone(&work), vmm.clone());
            let help = move || vmm.thread_start(Role::Digest).and_then(|()| work.do_some());
            match spawn(Role::Digest, |_| (), help) {
                Ok(join) => helping.push(join),
                // The threads that there are do all of the work.
                Err(_) => break,
            }
        }
        // A panic is reported once no thread is left.
        let ours = catch(|| work.do_some()).and_then(|done| done);
        let mut done = work.stop_after(ours);
        for helper in helping {
            let theirs = work.stop_after(helper.join().and_then(|done| done));
            done = done.and_then(|mut ours| {
                let theirs = theirs?;
                fallible::reserve(&mut ours, theirs.len(), WHAT)?;
                ours.extend(theirs);
                Ok(ours)
            });
        }
        digests.take(done?);
        Ok(digests)
    }

    /// Room for the checksums of `blocks`.
    fn of(blocks: &[(u32, Arc<Block>)]) -> Result<Digests> {
        let mut digests = Digests::default();
        for (id, block) in blocks {
            let mut stretches = Vec::new();
            let count = block.pages().0.div_ceil(STRETCH_PAGES) as usize;
            fallible::reserve(&mut stretches, count, WHAT)?;
            stretches.resize_with(count, Sums::new);
            let of_block = OfBlock {
                id: *id,
                pages: block.pages(),
                stretches,
            };
            fallible::push(&mut digests.blocks, of_block, WHAT)?;
        }
        Ok(digests)
    }

    fn take(&mut self, done: Vec<Done>) {
        let mut gone = Vec::new();
        for Done { piece, stretches } in done {
            let Some(stretches) = stretches else {
                gone.push(self.blocks[piece.block].id);
                continue;
            };
            let first = (piece.first.0 / STRETCH_PAGES) as usize;
            let places = self.blocks[piece.block].stretches[first..].iter_mut();
            for (place, sums) in places.zip(stretches) {
                *place = sums;
            }
        }
        self.blocks.retain(|block| !gone.contains(&block.id));
    }

    /// Forgets a block that the source has removed.
    pub(super) fn remove(&mut self, id: u32) {
        self.blocks.retain(|block| block.id != id);
    }

    /// How many pages the checksums cover.
    pub(super) fn pages(&self) -> u64 {
        self.blocks.iter().map(|block| block.pages.0).sum()
    }

    /// Calls `send` with the records that say all checksums, some at once.
    ///
    /// # Errors
    /// Those of `send`; and when there is no memory for a record.
    pub(super) fn records(&self, mut send: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        for block in &self.blocks {
            let mut at = 0;
            while at < block.pages.0 {
                let (pages, sums) = block.run(at)?;
                let digest = Digest {
                    block: block.id,
                    first_page: Pages(at),
                    pages,
                    sums,
                };
                Record::Digest(digest).encode(&mut bytes)?;
                at += u64::from(pages);
                if bytes.len() >= AT_ONCE {
                    send(&bytes)?;
                    bytes.clear();
                }
            }
        }
        match bytes.is_empty() {
            true => Ok(()),
            false => send(&bytes),
        }
    }
}

impl OfBlock {
    /// The pages and checksums of the record that begins at page `at`, a stretch's first.
    fn run(&self, at: u64) -> Result<(u32, Sums)> {
        let first = (at / STRETCH_PAGES) as usize;
        let left = self.pages.0 - at;
        let sums = &self.stretches[first];
        if !sums.is_empty() {
            let mut copy = Sums::new();
            fallible::reserve(&mut copy, sums.len(), WHAT)?;
            copy.extend_from_slice(sums);
            return Ok((copy.len() as u32, copy));
        }
        let most = u64::from(DIGEST_PAGES_MAX) / STRETCH_PAGES;
        let zeros = self.stretches[first..].iter().take(most as usize);
        let zeros = zeros.take_while(|sums| sums.is_empty()).count() as u64;
        Ok(((zeros * STRETCH_PAGES).min(left) as u32, Sums::new()))
    }
}

/// Some pages of one block.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// The place of the block in the list.
    block: usize,
    first: Pages,
}

/// A piece and the checksums of its stretches. `None`: its block is gone.
struct Done {
    piece: Piece,
    stretches: Option<Vec<Sums>>,
}

/// What the threads share.
struct Work {
    memory: Arc<Memory>,
    blocks: Vec<(u32, Arc<Block>)>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    /// A thread has failed, so the others need not go on.
    stopped: AtomicBool,
    cancel: Cancel,
}

impl Work {
    fn new(memory: &Arc<Memory>, blocks: Vec<(u32, Arc<Block>)>, cancel: &Cancel) -> Result<Self> {
        let mut pieces = Vec::new();
        for (at, (_, block)) in blocks.iter().enumerate() {
            let count = block.pages().0.div_ceil(PIECE.0);
            fallible::reserve(&mut pieces, count as usize, WHAT)?;
            pieces.extend((0..count).map(|piece| Piece {
                block: at,
                first: Pages(piece * PIECE.0),
            }));
        }
        Ok(Work {
            memory: Arc::clone(memory),
            blocks,
            pieces,
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            cancel: cancel.clone(),
        })
    }

    /// Stops the other threads when this one has failed.
    fn stop_after<T>(&self, done: Result<T>) -> Result<T> {
        if done.is_err() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Does pieces until none is left.
    fn do_some(&self) -> Result<Vec<Done>> {
        let (mut contents, mut sums, mut done) = (Contents::new(), Vec::new(), Vec::new());
        while let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            let stretches = self.stop_after(self.one(*piece, &mut contents, &mut sums))?;
            let one = Done {
                piece: *piece,
                stretches,
            };
            self.stop_after(fallible::push(&mut done, one, WHAT))?;
        }
        Ok(done)
    }

    fn one(
        &self,
        piece: Piece,
        contents: &mut Contents,
        sums: &mut Vec<u32>,
    ) -> Result<Option<Vec<Sums>>> {
        self.cancel.check("computing checksums")?;
        let (_, block) = self.blocks.get(piece.block).ok_or_else(no_block)?;
        // Pinned for one piece only, so that a removal of the block does not wait for all of them.
        let Some(block) = self.memory.pin(block) else {
            return Ok(None);
        };
        let end = (piece.first + PIECE).min(block.pages());
        contents.refresh();
        of_pages(contents, &block, piece.first..end, sums)?;
        let mut stretches = Vec::new();
        fallible::reserve(&mut stretches, (PIECE.0 / STRETCH_PAGES) as usize, WHAT)?;
        for all in sums.chunks(STRETCH_PAGES as usize) {
            let mut kept = Sums::new();
            if all.iter().any(|sum| *sum != OF_ZEROS) {
                fallible::reserve(&mut kept, all.len(), WHAT)?;
                kept.extend_from_slice(all);
            }
            stretches.push(kept);
        }
        Ok(Some(stretches))
    }
}

fn no_block() -> Error {
    Error::new(Kind::Internal, "a piece of no block")
}

#[cfg(test)]
mod tests;
