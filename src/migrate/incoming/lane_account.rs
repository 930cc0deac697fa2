//! Where arriving pages go in the destination's guest memory, found by the source's block numbers.
//!
//! A destination's memory is not assumed to be zero. Pages that were never touched are known to be
//! zero, and stay untouched when a zero page arrives for them, so that an idle guest costs no
//! memory. For every other page that arrives as zero, zeros are written.
//!
//! Each lane has an account of its own, and no lane waits for another. The targets are read through
//! the lane's own view. What is known to be zero is kept in one cache line for each stretch, and
//! the pages of a stretch come on one lane.

use super::changed;
use super::targets::{Target, View};
use crate::error::Result;
use crate::fallible;
use crate::memory::contents::Contents;
use crate::memory::host;
use crate::memory::{BlockPin, Memory, PageRun};
use crate::units::Pages;
use crate::wire::{self, Header};
use std::ops::Range;
use std::sync::Arc;

/// The account of one lane, as the file's description says.
pub(super) struct LaneAccount {
    memory: Arc<Memory>,
    view: View,
    /// Finds out what our blocks' pages hold.
    contents: Contents,
}

impl LaneAccount {
    pub(super) fn new(memory: Arc<Memory>, view: View) -> Self {
        LaneAccount {
            memory,
            view,
            contents: Contents::new(),
        }
    }

    /// Called when our memory's state may have changed: what was read of it before is forgotten.
    pub(super) fn refresh(&mut self) {
        self.contents.refresh();
    }

    /// The target of a run of pages, and the run in our pinned block. When the block is gone here,
    /// there is no place: pages of a block that both sides have removed may still be on their way,
    /// and are dropped.
    fn target(&mut self, header: &Header) -> Result<(&Target, Option<Place>, &mut Contents)> {
        let target = self.view.get(header.block)?;
        target.check_copied()?;
        header.check_run(target.pages)?;
        let pin = target.block.as_ref().and_then(|b| self.memory.pin(b));
        let (first, count) = (Pages(header.first_page), Pages(u64::from(header.count)));
        let place = match pin {
            Some(block) => {
                let run = block.run(first, count)?;
                Some((block, run))
            }
            None => None,
        };
        Ok((target, place, &mut self.contents))
    }

    /// Where the contents of a run of pages go. `None` when they are dropped.
    pub(super) fn data(&mut self, header: &Header) -> Result<Option<Place>> {
        let (target, place, _) = self.target(header)?;
        if let Some((block, run)) = &place {
            target.zero.written(block, pages_of(run));
            block.ballooned().arrived(pages_of(run));
            block.poisoned().arrived(pages_of(run));
        }
        Ok(place)
    }

    /// Where the contents of a list of runs go: returns the pinned block, and replaces the contents
    /// of `runs` by the runs in it. `None` when the contents are dropped.
    pub(super) fn list(
        &mut self,
        header: &Header,
        list: &[u8],
        runs: &mut Vec<PageRun>,
    ) -> Result<Option<BlockPin>> {
        let (target, pin, _) = self.listed(header, list, runs)?;
        // Nothing is noted as written before the whole list is known to be valid.
        if let Some(block) = &pin {
            for run in &*runs {
                target.zero.written(block, pages_of(run));
                block.ballooned().arrived(pages_of(run));
                block.poisoned().arrived(pages_of(run));
            }
        }
        Ok(pin)
    }

    /// The target of a list of runs, our pinned block, and the runs in it. When the block is gone
    /// here: `None`, and no runs.
    fn listed(
        &mut self,
        header: &Header,
        list: &[u8],
        runs: &mut Vec<PageRun>,
    ) -> Result<(&Target, Option<BlockPin>, &mut Contents)> {
        let target = self.view.get(header.block)?;
        target.check_copied()?;
        let pin = target.block.as_ref().and_then(|b| self.memory.pin(b));
        runs.clear();
        fallible::reserve(runs, header.count as usize, "a list of pages")?;
        wire::decode_list(header, list, target.pages, |first, count| {
            if let Some(block) = &pin {
                runs.push(block.run(first, Pages(u64::from(count)))?);
            }
            Ok(())
        })?;
        Ok((target, pin, &mut self.contents))
    }

    /// Takes a DELTA record whose payload is `payload`: applies each changed page to the version of
    /// the page in our memory. When the block is gone here, the pages are dropped.
    pub(super) fn changed(&mut self, header: &Header, payload: &[u8]) -> Result<()> {
        let target = self.view.get(header.block)?;
        target.check_copied()?;
        let changed = wire::decode_delta(header, payload, target.pages)?;
        let Some(block) = target.block.as_ref().and_then(|b| self.memory.pin(b)) else {
            return Ok(());
        };
        for delta in changed {
            let run = block.run(delta.page, Pages(1))?;
            target.zero.written(&block, pages_of(&run));
            changed::apply(&block, run, &delta)?;
            block.ballooned().arrived(pages_of(&run));
            self.memory.tell_written(run.block(), pages_of(&run));
        }
        Ok(())
    }

    /// The name of the source's block with the number `id`.
    pub(super) fn name_of(&mut self, id: u32) -> Option<&str> {
        self.view.get(id).ok().map(|target| target.name.as_str())
    }

    /// Pins the block of a record again. `None` when the block is gone here.
    pub(super) fn pin_block(&mut self, header: &Header) -> Option<BlockPin> {
        let block = self.view.get(header.block).ok()?.block.as_ref()?;
        self.memory.pin(block)
    }

    /// Whether the host has to back pages of a run first, and only the kernel does the backing.
    pub(super) fn wants_backing(&mut self, place: &Place) -> bool {
        let (block, run) = place;
        self.contents.wants_backing(block, run.range())
    }

    /// Pins the block of a run again, and says where the rest of its contents goes. `None` when
    /// they are dropped.
    pub(super) fn pin(&mut self, header: &Header) -> Result<Option<Place>> {
        Ok(self.target(header)?.1)
    }

    /// Called when all or a part of a run's contents have been written. A tracker of this guest may
    /// have consumers, such as a backup from before the guest left: they have to hear of the write.
    pub(super) fn arrived(&self, run: &PageRun) {
        self.memory.tell_written(run.block(), pages_of(run));
    }

    /// Takes a run of zero pages.
    pub(super) fn zeros(&mut self, header: &Header) -> Result<()> {
        let (target, place, contents) = self.target(header)?;
        let Some((block, run)) = place else {
            return Ok(());
        };
        block.ballooned().arrived(pages_of(&run));
        block.poisoned().arrived(pages_of(&run));
        let made = target.zero.make_zero(contents, &block, &[run]);
        self.arrived(&run);
        made
    }

    /// Takes a list of runs of zero pages. `runs` is a buffer for them.
    pub(super) fn zeros_list(
        &mut self,
        header: &Header,
        list: &[u8],
        runs: &mut Vec<PageRun>,
    ) -> Result<()> {
        let (target, pin, contents) = self.listed(header, list, runs)?;
        let Some(block) = pin else {
            return Ok(());
        };
        for run in &*runs {
            block.ballooned().arrived(pages_of(run));
            block.poisoned().arrived(pages_of(run));
        }
        let made = target.zero.make_zero(contents, &block, runs);
        runs.iter().for_each(|run| self.arrived(run));
        made
    }

    /// Takes a run of ballooned pages.
    pub(super) fn ballooned(&mut self, header: &Header) -> Result<()> {
        let memory = Arc::clone(&self.memory);
        let (target, place, contents) = self.target(header)?;
        let Some((block, run)) = place else {
            return Ok(());
        };
        let range = pages_of(&run);
        block.poisoned().arrived(range.clone());
        let mut whole = Vec::new();
        // A guest's balloon has no pages of a ROM, so a peer must not make holes in the ROM's file.
        if !block.flags().rom {
            memory.inflate_from_source(&block, range.clone(), |pages| whole.push(pages));
        }
        for pages in whole {
            // Memory that cannot be discarded is written below.
            let _ = host::discard(contents, &block, Pages(pages.start)..Pages(pages.end));
        }
        // Zeros for the rest: parts of larger host pages, and memory that cannot be discarded.
        let made = target.zero.make_zero(contents, &block, &[run]);
        self.arrived(&run);
        made
    }
}

/// A run in our pinned block.
pub(super) type Place = (BlockPin, PageRun);

/// The page numbers of a run.
fn pages_of(run: &PageRun) -> Range<u64> {
    run.first().0..run.end().0
}
