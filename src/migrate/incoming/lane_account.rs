//! Where arriving pages go: the destination's guest memory, through the source's block numbers.
//!
//! A destination's memory is not assumed to be zero. Pages that were never touched there are
//! known to be (and stay untouched when a zero page arrives for them, so that an idle guest
//! costs no memory); every other page is written.
//!
//! Each lane has one, and no lane waits for another: the targets are read through a view of the
//! lane's own, what is known to be zero is kept in a cache line a stretch, and a stretch belongs to
//! one lane.

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

/// See the file's description.
pub(super) struct LaneAccount {
    memory: Arc<Memory>,
    view: View,
    /// What our blocks' pages hold.
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

    /// What our memory is may have changed: it is asked anew.
    pub(super) fn refresh(&mut self) {
        self.contents.refresh();
    }

    /// The target of a run of pages, and the run in our block, pinned; `None` for a block that is gone
    /// here. Its pages may still be on their way when both sides have removed it, and go nowhere.
    fn target(&mut self, header: &Header) -> Result<(&Target, Option<Place>, &mut Contents)> {
        let target = self.view.get(header.block)?;
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

    /// Where the contents of a run of pages go; `None` if they go nowhere.
    pub(super) fn data(&mut self, header: &Header) -> Result<Option<Place>> {
        let (target, place, _) = self.target(header)?;
        if let Some((block, run)) = &place {
            target.zero.written(block, pages_of(run));
            block.ballooned().arrived(pages_of(run));
            block.poisoned().arrived(pages_of(run));
        }
        Ok(place)
    }

    /// Where the contents of a list of runs go: the block, pinned, and the runs in it, which take the
    /// place of what `runs` has; `None` if they go nowhere.
    pub(super) fn list(
        &mut self,
        header: &Header,
        list: &[u8],
        runs: &mut Vec<PageRun>,
    ) -> Result<Option<BlockPin>> {
        let (target, pin, _) = self.listed(header, list, runs)?;
        // Not before all of it is known to be good.
        if let Some(block) = &pin {
            for run in &*runs {
                target.zero.written(block, pages_of(run));
                block.ballooned().arrived(pages_of(run));
                block.poisoned().arrived(pages_of(run));
            }
        }
        Ok(pin)
    }

    /// The target of a list of runs, and our block, pinned, with the runs in it; `None` and no runs where
    /// it is gone here.
    fn listed(
        &mut self,
        header: &Header,
        list: &[u8],
        runs: &mut Vec<PageRun>,
    ) -> Result<(&Target, Option<BlockPin>, &mut Contents)> {
        let target = self.view.get(header.block)?;
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

    /// Takes changed pages, a DELTA record whose payload is `payload`: each onto the version of it
    /// that is in our memory. They go nowhere if the block is gone here.
    pub(super) fn changed(&mut self, header: &Header, payload: &[u8]) -> Result<()> {
        let target = self.view.get(header.block)?;
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

    /// The name of the source's block of this number.
    pub(super) fn name_of(&mut self, id: u32) -> Option<&str> {
        self.view.get(id).ok().map(|target| target.name.as_str())
    }

    /// The block that a record is about, pinned anew; `None` if it is gone here.
    pub(super) fn pin_block(&mut self, header: &Header) -> Option<BlockPin> {
        let block = self.view.get(header.block).ok()?.block.as_ref()?;
        self.memory.pin(block)
    }

    /// Whether the host has to back pages of a run first, and it is the kernel's affair alone.
    pub(super) fn wants_backing(&mut self, place: &Place) -> bool {
        let (block, run) = place;
        self.contents.wants_backing(block, run.range())
    }

    /// Where the rest of a run's contents goes, the block pinned anew; `None` if it goes nowhere.
    pub(super) fn pin(&mut self, header: &Header) -> Result<Option<Place>> {
        Ok(self.target(header)?.1)
    }

    /// The contents of a run have been written, all or a part of them: users of a tracker of this
    /// guest, a backup from before it went away, have to hear of it.
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

    /// Takes a list of runs of zero pages. `runs` is room for them.
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
        // No guest's balloon has a ROM; it is not for a peer to say that its file has holes.
        if !block.flags().rom {
            memory.inflate_from_source(&block, range.clone(), |pages| whole.push(pages));
        }
        for pages in whole {
            // What cannot be discarded is written below.
            let _ = host::discard(contents, &block, Pages(pages.start)..Pages(pages.end));
        }
        // What is left: part of a larger host page, or memory that cannot be discarded.
        let made = target.zero.make_zero(contents, &block, &[run]);
        self.arrived(&run);
        made
    }
}

/// A run of our block's, pinned.
pub(super) type Place = (BlockPin, PageRun);

/// The pages of a run.
fn pages_of(run: &PageRun) -> Range<u64> {
    run.first().0..run.end().0
}
