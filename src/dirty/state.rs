//! A tracker's state, as its lock guards it: the logs, the map that they know, the pending pages of
//! each block, and the consumers. This file switches the logs on and off. Other files each add one
//! thing that is done with the state ([`super::rearm`], [`super::sync`], [`super::take`],
//! [`super::follow`]).

use super::beside::Hints;
use super::figures::{ConsumerFigures, Figures, Published, Slow};
use super::led::{Change, Log};
use super::merge::Nowhere;
use super::pending::{Blocks, Phase, Seat};
use super::report::{Clearing, ConsumerStats, TrackerStats};
use super::{DirtyLog, Initial, When};
use crate::error::Result;
use crate::memory::{Block, BlockId, Map, Slot};
use crate::units::Pages;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The tracker's data on one consumer. Its pages are not here but with the blocks.
pub(super) struct Member {
    pub(super) phase: Phase,
    /// Whether ballooned pages are named for it instead of read, and free-page hints used.
    pub(super) skip_ballooned: bool,
    /// How many of its pending pages were ballooned at the last sync or start, less those handed
    /// out since.
    pub(super) ballooned: u64,
    /// The blocks of which it hears of no page.
    pub(super) left_out: Vec<BlockId>,
    pub(super) stats: ConsumerStats,
    /// How many pages are pending for it in all blocks.
    pub(super) total: Arc<AtomicU64>,
    pub(super) published: Arc<Published>,
}

impl Member {
    pub(super) fn new(published: &Arc<Published>) -> Self {
        Member {
            phase: Phase::Stopped,
            skip_ballooned: false,
            ballooned: 0,
            left_out: Vec::new(),
            stats: ConsumerStats::default(),
            total: Arc::default(),
            published: Arc::clone(published),
        }
    }

    fn pending(&self) -> Pages {
        Pages(self.total.load(Ordering::Relaxed))
    }

    pub(super) fn figures(&self) -> ConsumerFigures {
        ConsumerFigures {
            stats: self.stats,
            started: self.phase != Phase::Stopped,
            pending: self.pending(),
            ballooned: self.ballooned,
        }
    }
}

pub(super) struct Inner {
    pub(super) clearing: Clearing,
    pub(super) logs: Vec<Log>,
    /// The map that the logs know: [`Inner::whole`], without the blocks that no log watches.
    pub(super) map: Arc<Map>,
    /// The memory's map, with every announced change.
    pub(super) whole: Arc<Map>,
    /// The blocks that no log watches, because every started consumer leaves them out.
    pub(super) unwatched: Vec<BlockId>,
    /// The last change of that map, until it has happened.
    pub(super) change: Option<Change>,
    pub(super) blocks: Blocks,
    /// The consumers, by seat.
    pub(super) members: Vec<Option<Member>>,
    /// How many consumers were ever made.
    pub(super) consumers: u64,
    /// Whether the logs are on. They are while any consumer is started.
    pub(super) started: bool,
    pub(super) stats: TrackerStats,
    pub(super) hints: Hints,
    pub(super) slow: Slow,
}

impl Inner {
    pub(super) fn pending(&self, seat: Seat) -> Pages {
        let member = self.members.get(seat).and_then(Option::as_ref);
        member.map_or(Pages(0), Member::pending)
    }

    pub(super) fn member(&mut self, seat: Seat) -> Option<&mut Member> {
        self.members.get_mut(seat)?.as_mut()
    }

    /// The consumers in this phase.
    pub(super) fn seats(&self, phase: Phase) -> Vec<Seat> {
        let members = self.members.iter().enumerate();
        let those = members.filter(|(_, m)| m.as_ref().is_some_and(|m| m.phase == phase));
        those.map(|(seat, _)| seat).collect()
    }

    /// Puts a consumer into a phase.
    pub(super) fn set_phase(&mut self, seat: Seat, phase: Phase) {
        if let Some(member) = self.member(seat) {
            member.phase = phase;
        }
        for set in self.all_sets(seat) {
            set.phase = phase;
        }
    }

    /// Makes room for a block: chunks, none of them armed, and no consumer's pages.
    pub(super) fn make_block(&mut self, block: &Arc<crate::memory::Block>) -> Result<()> {
        let shift = match self.clearing {
            Clearing::Chunked { shift } => Some(shift),
            Clearing::AtSync => None,
        };
        self.blocks.add(block, shift)
    }

    /// Makes room for a block's pages, for each consumer that is started.
    pub(super) fn make_started_sets(&mut self, block: BlockId) -> Result<()> {
        let Some(state) = self.blocks.get_mut(block) else {
            return Ok(());
        };
        for (seat, member) in self.members.iter().enumerate() {
            let Some(member) = member.as_ref().filter(|m| m.phase != Phase::Stopped) else {
                continue;
            };
            if member.left_out.contains(&block) {
                continue;
            }
            state.make_set(seat, &member.total)?;
            if let Some(set) = state.set_mut(seat) {
                set.phase = member.phase;
            }
        }
        Ok(())
    }

    /// Switches all logs on, while no consumer is started yet. With `everything` the first consumer
    /// begins with every page pending, and chunks are cleared when it takes pages. Otherwise every
    /// page is protected when this returns.
    pub(super) fn start_logs(&mut self, everything: bool) -> Result<()> {
        // The tracker's own map, and not the memory's current one: an announced change may not have
        // taken effect there yet, and it would not be announced again.
        let map = Arc::clone(&self.map);
        self.stats = TrackerStats::default();
        self.hints.close();
        for block in map.blocks() {
            self.make_block(block)?;
        }
        if let Some(change) = &mut self.change {
            change.make_aside(self.clearing.shift())?;
        }
        let mut unprotected = Vec::new();
        for i in 0..self.logs.len() {
            match self.logs[i].start(&map) {
                Ok(Initial::Clean) => self.logs[i].knows_the_map(),
                Ok(Initial::Unprotected) => {
                    self.logs[i].knows_the_map();
                    unprotected.push(i);
                }
                Err(e) => {
                    let name = self.logs[i].name();
                    for log in &mut self.logs[..i] {
                        // The first error is the one that is returned.
                        let _ = log.stop(&map);
                    }
                    self.watch_all();
                    return Err(e.context(format_args!("starting {name}")));
                }
            }
        }
        self.started = true;
        let begun = if everything {
            for block in self.blocks.iter_mut() {
                // No page is handed out before its chunk is cleared. If the log protected
                // everything at its start, the clear finds nothing to do.
                if let Some(chunks) = &mut block.chunks {
                    chunks.arm_all();
                }
            }
            self.protect_now(&map, &unprotected, |log| !log.rearms())
        } else {
            self.protect_now(&map, &unprotected, |_| true)
        };
        if let Err(e) = begun {
            self.stop_logs();
            return Err(e);
        }
        Ok(())
    }

    /// Switches all logs off if no consumer is started any more.
    pub(super) fn stop_logs_if_unused(&mut self) {
        let used = self.members.iter().flatten();
        if self.started && used.filter(|m| m.phase != Phase::Stopped).count() == 0 {
            self.stop_logs();
        }
    }

    /// Restores the protection of every page right at the start, for the logs that `which` selects
    /// and that began unprotected.
    fn protect_now(
        &mut self,
        map: &Map,
        unprotected: &[usize],
        which: impl Fn(&dyn DirtyLog) -> bool,
    ) -> Result<()> {
        for &i in unprotected {
            let log = &mut self.logs[i];
            if !which(&**log) {
                continue;
            }
            if log.rearms() {
                for block in map.blocks() {
                    log.rearm(map, block.id(), 0..block.pages().0)?;
                }
            } else {
                // The log clears in its harvest. What the harvest finds is everything, and is
                // pending already.
                log.harvest(map, When::Running, &mut Nowhere)?;
            }
        }
        Ok(())
    }

    pub(super) fn stop_logs(&mut self) {
        self.started = false;
        self.hints.close();
        let map = Arc::clone(&self.map);
        for log in &mut self.logs {
            // A log that cannot be switched off costs speed, not correctness.
            let _ = log.stop(&map);
            log.knows_the_map();
        }
        self.watch_all();
    }

    /// Makes all pages of these slots and blocks pending.
    pub(super) fn mark_fresh(&mut self, slots: &[Arc<Slot>], blocks: &[Arc<Block>]) {
        let ranges = slots
            .iter()
            .map(|s| (s.block, s.first, s.pages))
            .chain(blocks.iter().map(|b| (b.id(), Pages(0), b.pages())));
        for (block, first, pages) in ranges {
            if let Some(state) = self.blocks.get_mut(block) {
                state.set_for_all(first.index(), pages.index());
                if let Some(chunks) = &mut state.chunks {
                    chunks.arm_range(first.index(), pages.index());
                }
            }
        }
    }
}

impl Inner {
    pub(super) fn figures(&self) -> Figures {
        Figures {
            stats: self.stats,
            started: self.started,
            slow: self.slow,
        }
    }

    /// Brings [`Figures::slow`] up to date.
    pub(super) fn count_slowly(&mut self) {
        self.slow = Slow {
            heap_bytes: self.blocks.heap_bytes()
                + self.logs.iter().map(|log| log.heap_bytes()).sum::<u64>(),
            strays: self.logs.iter().map(|log| log.strays()).sum(),
        };
    }
}

impl Inner {
    pub(super) fn put_back(&mut self, seat: Seat, block: BlockId, first: Pages, count: Pages) {
        let Some(set) = self.any_set(seat, block) else {
            return;
        };
        // These pages become pending although nobody wrote them, so ballooned ones stay ballooned.
        set.beside
            .put_back(first.0..first.0.saturating_add(count.0));
        let new = Pages(set.pending.set_range(first.index(), count.index()));
        if let Some(member) = self.member(seat) {
            member.stats.put_back += new;
        }
    }
}
