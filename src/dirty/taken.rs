//! [`Taken`]: pages that left a consumer's pending and are not delivered yet.
//!
//! Example of the loss that this type prevents: a take clears the bits of 512 pages, and then the
//! encoder panics. The bits are in no bitmap any more, and no account of sent pages has the pages
//! either. A later walk finds nothing, and the destination keeps the old contents. Putting pages
//! back by hand, on each way out of each function, covers only the ways that somebody thought of.
//! So the pages belong to a value. The code that has delivered them says so ([`Taken::delivered`]).
//! Every other end of the value, the unwinding of a panic included, makes the pages pending again.
//!
//! Until then, the value may wait in an account of sent pages without its pins ([`Taken::unpin`]),
//! and may be split ([`Taken::split_off`]).

use super::lease::Lease;
use super::run::{Kept, Manner, Run};
use crate::error::Result;
use crate::fallible;
use crate::memory::{Block, BlockId, BlockPin, PageRun};
use crate::units::Pages;
use std::sync::Arc;

/// Pages that left a consumer's pending and are not delivered yet. Every end of this value but
/// [`Taken::delivered`] makes them pending again, a panic's unwinding included.
/// [`Consumer::take`](super::consumer::Consumer::take) makes it.
///
/// The memory of its pages stays in use until the value is delivered, dropped or unpinned.
/// [`Memory::remove_block`](crate::memory::Memory::remove_block) refuses to remove their blocks for
/// that long ([`Kind::Busy`](crate::Kind::Busy)).
///
/// Dropping it puts its pages back. That takes the tracker's lock, so it must not be dropped while
/// that is held, and allocates nothing. Pages of blocks that were removed meanwhile are ignored. As
/// long as the value exists its consumer exists too: that consumer's pending pages stay, and so do
/// the logs if it is started.
#[must_use = "dropped, it puts the pages back"]
#[derive(Debug)]
pub struct Taken {
    lease: Arc<Lease>,
    runs: Vec<Kept>,
    /// One pin for each block, by block number.
    pins: Vec<BlockPin>,
    manner: Manner,
}

impl Taken {
    pub(super) fn nothing(lease: &Arc<Lease>, manner: Manner) -> Self {
        Taken {
            lease: Arc::clone(lease),
            runs: Vec::new(),
            pins: Vec::new(),
            manner,
        }
    }

    /// Makes room for one more run, which may be of another block.
    pub(super) fn make_room(&mut self) -> Result<()> {
        fallible::reserve(&mut self.runs, 1, "runs of pages")?;
        fallible::reserve(&mut self.pins, 1, "pins of blocks")
    }

    /// Adds a run of `block`, for which there is room. Returns `false`, and adds nothing, if the
    /// block is just being removed. A take adds runs in ascending order of block numbers.
    pub(super) fn push(&mut self, block: &Arc<Block>, run: Kept) -> Result<bool> {
        if self.pins.last().is_none_or(|pin| pin.id() != block.id()) {
            let pin = match self.manner {
                Manner::Held => BlockPin::hold(block, &self.lease.holder)?,
                Manner::Recallable => Some(BlockPin::new(block)),
            };
            let Some(pin) = pin else {
                return Ok(false);
            };
            self.pins.push(pin);
        }
        self.runs.push(run);
        Ok(true)
    }

    /// Whether it has no page.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The number of runs.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// The number of pages in all runs.
    pub fn pages(&self) -> Pages {
        Pages(self.runs.iter().map(|run| run.pages.count().0).sum())
    }

    /// The runs in order, each with its block. After [`Taken::unpin`] there are none.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> + Clone {
        self.runs.iter().filter_map(|run| {
            Some(Run {
                block: self.pin_of(run.pages.block())?,
                pages: run.pages,
                content: run.content,
                first_time: run.first_time,
            })
        })
    }

    fn pin_of(&self, block: BlockId) -> Option<&BlockPin> {
        let at = self.pins.binary_search_by_key(&block, |pin| pin.id());
        self.pins.get(at.ok()?)
    }

    /// The blocks of the pages, each once, as long as they are pinned.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.pins.iter().map(|pin| &**pin)
    }

    /// Lets go of the blocks, so that they may be removed. The pages still have to be delivered, or
    /// are put back, but their memory can no longer be read through this value.
    pub fn unpin(&mut self) {
        self.pins = Vec::new();
    }

    /// Pins of the same blocks, for whoever uses the memory for longer than this is pinned.
    pub(crate) fn pins(&self) -> Result<Vec<BlockPin>> {
        let mut pins = Vec::new();
        fallible::reserve(&mut pins, self.pins.len(), "pins of blocks")?;
        pins.extend_from_slice(&self.pins);
        Ok(pins)
    }

    /// Splits off the runs for which `which` holds, for another lane: it is asked with each run's
    /// block. Of a block that is not pinned any more, nothing is split off. Each part pins the blocks
    /// that it has runs of.
    ///
    /// # Errors
    /// [`crate::error::Kind::NoMemory`]. Nothing was split off then.
    pub fn split_off(&mut self, mut which: impl FnMut(&Block, &PageRun) -> bool) -> Result<Taken> {
        let mut other = Taken::nothing(&self.lease, self.manner);
        fallible::reserve(&mut other.runs, self.runs.len(), "runs of pages")?;
        fallible::reserve(&mut other.pins, self.pins.len(), "pins of blocks")?;
        let (runs, pins) = (&mut other.runs, &mut other.pins);
        let held = &self.pins;
        self.runs.retain(|run| {
            let block = run.pages.block();
            let at = held.binary_search_by_key(&block, |pin| pin.id());
            let pin = at.ok().map(|at| &held[at]);
            let goes = pin.is_some_and(|pin| which(pin, &run.pages));
            if goes {
                if pins.last().is_none_or(|pin| pin.id() != block) {
                    pins.extend(pin.cloned());
                }
                runs.push(*run);
            }
            !goes
        });
        let left = &self.runs;
        self.pins.retain(|pin| {
            left.binary_search_by_key(&pin.id(), |run| run.pages.block())
                .is_ok()
        });
        Ok(other)
    }

    /// Puts the runs back whose blocks `gone` names, and lets go of those blocks. Allocates nothing:
    /// whoever removes a block calls it for pages that wait for a lane.
    pub(crate) fn leave_out(&mut self, gone: impl Fn(BlockId) -> bool) {
        if !self.pins.iter().any(|pin| gone(pin.id())) {
            return;
        }
        self.pins.retain(|pin| !gone(pin.id()));
        let left_out = |run: &Kept| gone(run.pages.block());
        let runs = self.runs.iter().filter(|run| left_out(run));
        self.lease.put_back(runs.map(|run| run.pages));
        self.runs.retain(|run| !left_out(run));
    }

    /// The pages have arrived at their destination, and are no longer pending.
    pub fn delivered(mut self) {
        self.runs.clear();
    }

    /// [`Taken::delivered`], with the memory still in use: for a caller that passes the pages on to
    /// a reader of its own, as the C interface does.
    #[cfg(feature = "capi")]
    pub(crate) fn delivered_in_use(mut self) -> Vec<BlockPin> {
        self.runs.clear();
        std::mem::take(&mut self.pins)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // The pins go first, so that the removal of a block does not also wait for the tracker's
        // lock.
        self.pins.clear();
        if !self.runs.is_empty() {
            self.lease.put_back(self.runs.iter().map(|run| run.pages));
        }
    }
}

#[cfg(test)]
mod tests;
