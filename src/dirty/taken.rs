//! [`Taken`]: pages that left a consumer's pending and are not delivered yet.
//!
//! Example of the loss that it prevents: a take clears the bits of 512 pages; while they are
//! encoded, something panics. Nobody has the bits any more: they are not pending, and no account
//! of sent pages has them either. A later walk finds nothing, and the destination keeps the old
//! contents. Putting pages back by hand, on each way out of each function, mends the ways that
//! somebody thought of. So the pages belong to a value: whoever has delivered them says so
//! ([`Taken::delivered`]), and every other end of the value, a panic's unwinding included, makes
//! the pages pending again.
//!
//! Between the two, the value may wait in an account of what is on its way, without its pins
//! ([`Taken::unpin`]), and may be split ([`Taken::split_off`]).

use super::lease::Lease;
use super::run::{Kept, Manner, Run};
use crate::error::Result;
use crate::fallible;
use crate::memory::{Block, BlockId, BlockPin, PageRun};
use crate::units::Pages;
use std::sync::Arc;

/// See the file's description. [`super::consumer::Consumer::take`] makes it.
///
/// It keeps the memory of its pages in use: until it is delivered, dropped or unpinned,
/// [`Memory::remove_block`](crate::memory::Memory::remove_block) refuses to remove their blocks
/// ([`Kind::Busy`](crate::Kind::Busy)).
///
/// Dropping it puts its pages back: it takes the tracker's lock, so it is not dropped where that is
/// held, and allocates nothing. Blocks that were removed meanwhile are passed over. As long as it
/// exists its consumer counts as existing, and so what is pending for that consumer, and the logs
/// if it is started, stay.
#[must_use = "dropped, it puts the pages back"]
#[derive(Debug)]
pub struct Taken {
    lease: Arc<Lease>,
    runs: Vec<Kept>,
    /// One for each block, by number.
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

    /// Makes room for one more run, of another block maybe.
    pub(super) fn make_room(&mut self) -> Result<()> {
        fallible::reserve(&mut self.runs, 1, "runs of pages")?;
        fallible::reserve(&mut self.pins, 1, "pins of blocks")
    }

    /// Adds a run of `block`, for which there is room; `false`, and no run, where the block is just
    /// being removed. In a take blocks come by number, ascending.
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

    /// Whether there is no page in it.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many runs there are.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// How many pages there are in all.
    pub fn pages(&self) -> Pages {
        Pages(self.runs.iter().map(|run| run.pages.count().0).sum())
    }

    /// The runs in order, each with its block. None of a block that is not pinned any more: see
    /// [`Taken::unpin`].
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

    /// The blocks that the pages belong to, each once, while they are pinned.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.pins.iter().map(|pin| &**pin)
    }

    /// Lets go of the blocks. The pages are still to be delivered, or put back; their memory is not
    /// looked at any more, so a block may be removed meanwhile.
    pub fn unpin(&mut self) {
        self.pins = Vec::new();
    }

    /// Splits off the runs for which `which` holds, for another lane. Pins both where this is pinned.
    ///
    /// # Errors
    /// [`crate::error::Kind::NoMemory`]; then nothing was split off.
    pub fn split_off(&mut self, mut which: impl FnMut(&PageRun) -> bool) -> Result<Taken> {
        let mut other = Taken::nothing(&self.lease, self.manner);
        fallible::reserve(&mut other.runs, self.runs.len(), "runs of pages")?;
        fallible::reserve(&mut other.pins, self.pins.len(), "pins of blocks")?;
        let (runs, pins) = (&mut other.runs, &mut other.pins);
        let held = &self.pins;
        self.runs.retain(|run| {
            let goes = which(&run.pages);
            if goes {
                let block = run.pages.block();
                if pins.last().is_none_or(|pin| pin.id() != block) {
                    let at = held.binary_search_by_key(&block, |pin| pin.id());
                    pins.extend(at.ok().map(|at| held[at].clone()));
                }
                runs.push(*run);
            }
            !goes
        });
        Ok(other)
    }

    /// They have arrived where they were to go, and are pending no more.
    pub fn delivered(mut self) {
        self.runs.clear();
    }

    /// The same, with the memory in use on: for whoever hands it to a reader of its own, as the C
    /// interface does.
    #[cfg(feature = "capi")]
    pub(crate) fn delivered_in_use(mut self) -> Vec<BlockPin> {
        self.runs.clear();
        std::mem::take(&mut self.pins)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Whoever removes a block does not wait for the tracker's lock as well.
        self.pins.clear();
        if !self.runs.is_empty() {
            self.lease.put_back(self.runs.iter().map(|run| run.pages));
        }
    }
}

#[cfg(test)]
mod tests;
