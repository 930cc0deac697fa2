//! Blocks that a consumer leaves out: it hears of no page of them, and while every started consumer
//! leaves a block out, no log watches it.
//!
//! A migration leaves out the blocks that its destination takes over by their file's descriptor. Both
//! processes have the same pages, so no page of these blocks is sent. A log of such a block would
//! cost a sync the time that its size takes, and the guest a fault for each page that it writes.
//!
//! The logs are led by a map without these blocks: the *narrow* map ([`Inner::map`]), beside the whole
//! one ([`Inner::whole`]). When a consumer starts that leaves out less, the logs follow a change of the
//! map, as if the blocks had just been added.

use super::consumer::Consumer;
use super::led::Change;
use super::pending::{Phase, Seat};
use super::state::Inner;
use crate::error::{Error, Kind, Result};
use crate::memory::BlockId;
use std::sync::Arc;

impl Consumer {
    /// From now on this consumer hears of no page of `blocks`. Pages of them that are pending for it
    /// are forgotten. When the consumer starts the logs, they do not watch these blocks. Blocks that
    /// were left out before are not any more, and nothing of them is pending.
    pub(crate) fn leave_out(&self, blocks: Vec<BlockId>) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        for id in &blocks {
            inner.drop_set(self.seat(), *id);
        }
        if let Some(member) = inner.member(self.seat()) {
            member.left_out = blocks;
        }
        inner.count_ballooned();
    }

    /// Ends [`Consumer::leave_out`]. With `dirty`, every page of the blocks that were left out becomes
    /// pending: nobody has watched them. Blocks that are gone are passed over.
    pub(crate) fn take_in(&self, dirty: bool) -> Result<()> {
        let seat = self.seat();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let Some(member) = inner.member(seat) else {
            return Ok(());
        };
        let (blocks, phase) = (std::mem::take(&mut member.left_out), member.phase);
        let total = Arc::clone(&member.total);
        if phase != Phase::Stopped {
            inner.widen()?;
        }
        for id in blocks {
            let Some(block) = inner.whole.block(id).cloned() else {
                continue;
            };
            if inner.blocks.get_mut(id).is_none() {
                inner.make_block(&block)?;
            }
            let Some(state) = inner.blocks.get_mut(id) else {
                continue;
            };
            state.make_set(seat, &total)?;
            if let Some(set) = state.set_mut(seat) {
                set.phase = phase;
                if dirty {
                    set.pending.set_all();
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Whether a consumer leaves a block out.
    pub(super) fn leaves_out(&self, seat: Seat, block: BlockId) -> bool {
        let member = self.members.get(seat).and_then(Option::as_ref);
        member.is_some_and(|member| member.left_out.contains(&block))
    }

    fn drop_set(&mut self, seat: Seat, block: BlockId) {
        let aside = self.change.as_mut().map(|change| &mut change.aside);
        let places = [Some(&mut self.blocks), aside];
        for blocks in places.into_iter().flatten() {
            if let Some(state) = blocks.get_mut(block) {
                state.drop_set(seat);
            }
        }
    }

    /// Before the logs start for the first consumer, `seat`: they get a map without the blocks that
    /// it leaves out. In the middle of a change of the map they get the whole one, which costs only
    /// time.
    pub(super) fn narrow(&mut self, seat: Seat) {
        self.watch_all();
        let member = self.members.get(seat).and_then(Option::as_ref);
        let left_out = member.map(|member| &member.left_out[..]);
        let left_out = left_out.filter(|blocks| !blocks.is_empty() && self.change.is_none());
        let Some(left_out) = left_out else {
            return;
        };
        self.map = Arc::new(self.whole.without(left_out));
        self.unwatched = left_out.to_vec();
    }

    /// When `seat` starts beside others: has the logs watch the blocks that only others leave out.
    pub(super) fn widen_for(&mut self, seat: Seat) -> Result<()> {
        match self.unwatched.iter().all(|id| self.leaves_out(seat, *id)) {
            true => Ok(()),
            false => self.widen(),
        }
    }

    /// Has the logs watch every block.
    fn widen(&mut self) -> Result<()> {
        if self.unwatched.is_empty() {
            return Ok(());
        }
        if self.change.is_some() {
            return Err(Error::new(
                Kind::Busy,
                "a block or a slot is being added or removed just now: try again",
            ));
        }
        let whole = Arc::clone(&self.whole);
        let change = Change::of_logs(&self.map, &whole)?;
        let unwatched = std::mem::take(&mut self.unwatched);
        if let Err(e) = self.follow(change) {
            self.unwatched = unwatched;
            return Err(e);
        }
        // It has happened: the memory's map is the same as before.
        self.change = None;
        Ok(())
    }

    /// The logs are off: they start with the whole map again.
    pub(super) fn watch_all(&mut self) {
        if !std::mem::take(&mut self.unwatched).is_empty() {
            self.map = Arc::clone(&self.whole);
        }
    }
}

#[cfg(test)]
mod tests;
