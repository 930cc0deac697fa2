//! How a tracker follows a change of the memory map with all its logs and blocks, and how it is led
//! back.

use super::led::Change;
use super::pending::{BlockState, PageSet, Seat};
use super::state::Inner;
use crate::error::Result;
use crate::memory::{Block, BlockId};
use std::sync::Arc;

impl Inner {
    /// Has the logs and the blocks follow a change, which may still be taken back.
    pub(super) fn follow(&mut self, mut change: Change) -> Result<()> {
        if self.started {
            if let Err(e) = self.lead_logs(&change) {
                // A log that was led back may have forgotten what it knew of these pages.
                self.mark_fresh(&change.hidden, &change.gone);
                self.forget(&change.came);
                return Err(e);
            }
            // The contents of a new slot's pages were written before any log watched them.
            self.mark_fresh(&change.shown, &change.came);
        }
        // Pages can be pending after tracking was stopped too. Only the pages of a block that goes
        // are dropped.
        self.blocks
            .move_into(&mut change.aside, &change.gone, false);
        self.map = Arc::clone(&change.new);
        self.whole = Arc::clone(&change.whole.1);
        self.change = Some(change);
        Ok(())
    }

    /// Undoes a change that was followed. Apart from the logs, no step needs memory.
    pub(super) fn take_back(&mut self, mut change: Change) {
        self.forget(&change.came);
        change.aside.move_into(&mut self.blocks, &change.gone, true);
        self.whole = Arc::clone(&change.whole.0);
        self.map = match self.unwatched.is_empty() {
            // The logs may have stopped in the middle of the change.
            true => Arc::clone(&self.whole),
            false => Arc::clone(&change.old),
        };
        if self.started {
            let Inner { logs, blocks, .. } = self;
            for log in logs {
                log.lead_back(&change.new, &change.old, blocks);
            }
            self.mark_fresh(&change.hidden, &change.gone);
        }
    }

    /// Makes room for the blocks that come, and has all logs follow. If a log refuses, the logs
    /// before it are led back.
    fn lead_logs(&mut self, change: &Change) -> Result<()> {
        for block in &change.came {
            self.make_block(block)?;
            self.make_started_sets(block.id())?;
        }
        let Inner { logs, blocks, .. } = self;
        for i in 0..logs.len() {
            let Err(e) = logs[i].lead(&change.old, &change.new, blocks) else {
                continue;
            };
            let name = logs[i].name();
            for log in &mut logs[..i] {
                log.lead_back(&change.new, &change.old, blocks);
            }
            return Err(e.context(format_args!("{name}: following a change of the memory map")));
        }
        Ok(())
    }

    /// Every block, including those set aside. A consumer's change of state in the middle of a
    /// change of the map applies to these too, in case they come back.
    pub(super) fn all_blocks(&mut self) -> impl Iterator<Item = &mut BlockState> {
        let aside = self.change.iter_mut().flat_map(|c| c.aside.iter_mut());
        self.blocks.iter_mut().chain(aside)
    }

    /// A consumer's pages of each block, including those set aside.
    pub(super) fn all_sets(&mut self, seat: Seat) -> impl Iterator<Item = &mut PageSet> {
        self.all_blocks()
            .filter_map(move |state| state.set_mut(seat))
    }

    /// A consumer's pages of one block, which may be set aside.
    pub(super) fn any_set(&mut self, seat: Seat, block: BlockId) -> Option<&mut PageSet> {
        let state = match self.blocks.get_mut(block) {
            None => self.change.as_mut()?.aside.get_mut(block)?,
            Some(state) => state,
        };
        state.set_mut(seat)
    }

    fn forget(&mut self, gone: &[Arc<Block>]) {
        for block in gone {
            self.blocks.remove(block.id());
        }
    }
}

#[cfg(test)]
mod tests;
