//! Memory that changes hands by descriptors: this part of the source's driver finds the blocks that
//! need no copy, announces them with their files, and keeps logs and walk away from them.
//!
//! Blocks that are added later are copied, also while others were handed over.

use super::Driver;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::handed::by_descriptor;
use crate::memory::{BlockId, Map};
use crate::migrate::outgoing::untouched::{Untouched, Written};
use crate::migrate::params::HandOver;
use crate::units::Bytes;
use crate::vmm::EventKind;
use crate::wire;
use std::collections::HashSet;

const BLOCKS: &str = "the blocks that are handed over";

impl Driver {
    /// Whether this side offers descriptors to the destination.
    ///
    /// # Errors
    /// When the VMM wants nothing else and that cannot be: over another connection than a unix
    /// socket, or with a block that has to be copied.
    pub(super) fn offers_descriptors(&mut self) -> Result<bool> {
        let wanted = self.common.shared.params.hand_over;
        if wanted == HandOver::Off {
            return Ok(false);
        }
        let channel = self.first()?.channel();
        if !channel.carries_descriptors() {
            return match wanted {
                HandOver::Only => Err(Error::new(
                    Kind::Unsupported,
                    format!(
                        "hand-over only: expected a unix socket, with which descriptors can travel, \
                         found a connection to {}",
                        channel.peer()
                    ),
                )),
                _ => Ok(false),
            };
        }
        // A migration that cannot be says so before it says HELLO.
        let map = self.common.shared.guest.tracker.memory().map();
        self.blocks_to_hand_over(&map)?;
        Ok(true)
    }

    /// The blocks of `map` that go by descriptor.
    ///
    /// # Errors
    /// When the VMM wants nothing else, and a block has to be copied.
    pub(super) fn blocks_to_hand_over(&self, map: &Map) -> Result<HashSet<BlockId>> {
        let mut blocks = HashSet::new();
        for block in map.blocks() {
            match by_descriptor(block) {
                Ok(_) => {
                    fallible::add(&mut blocks, block.id(), BLOCKS)?;
                }
                Err(e) if self.common.shared.params.hand_over == HandOver::Only => {
                    return Err(e.context("hand-over only"));
                }
                Err(_) => {}
            }
        }
        Ok(blocks)
    }

    /// The destination has taken the files of `blocks`: from now on both processes have their
    /// memory, so no page of them is sent and no log watches them.
    pub(super) fn share(&mut self, map: &Map, blocks: &HashSet<BlockId>) -> Result<()> {
        let shared = map.blocks().iter().filter(|b| blocks.contains(&b.id()));
        let bytes = shared.map(|block| block.length().0).sum();
        self.common.stats.shared_bytes = bytes;
        let only = self.common.shared.params.hand_over == HandOver::Only;
        self.announced.share(blocks, only)?;
        if !blocks.is_empty() {
            self.common.shared.guest.memory_is_shared();
            let ids = fallible::collect(blocks.iter().copied(), BLOCKS)?;
            self.consumer.leave_out(ids);
        }
        Ok(())
    }

    /// The guest stands still: notes what the shared memory holds, when the migration is verified.
    pub(super) fn note_shared(&mut self) -> Result<()> {
        let shared = &self.common.shared;
        if !shared.params.verify || self.announced.shared().next().is_none() {
            return Ok(());
        }
        let memory = shared.guest.tracker.memory();
        let blocks = self.announced.shared();
        self.untouched = Some(Untouched::of(memory, blocks, &shared.handle.cancel)?);
        Ok(())
    }

    /// Tells the VMM of shared memory that was written since [`Driver::note_shared`]. `outcome` says
    /// what becomes of it.
    pub(super) fn tell_written(&mut self, outcome: &str) {
        let Some(before) = self.untouched.take() else {
            return;
        };
        let memory = self.common.shared.guest.tracker.memory();
        let written = match before.written(memory) {
            Ok(written) => written,
            Err(e) => {
                let text = format!("whether shared memory was written is not known: {e}");
                self.common.vmm.event(EventKind::Warning, text);
                return;
            }
        };
        for Written { name, pages, first } in written {
            self.common.stats.mismatched_pages += pages;
            self.written_early += pages;
            let text = format!(
                "block `{name}`: {pages} pages of memory that was handed over by descriptor were \
                 written between the pause and the hand-over, the first is page {first}, at offset \
                 {:#x}: nothing may write it before `run`{outcome}",
                first.bytes().0
            );
            self.common.vmm.event(EventKind::Mismatch, text);
        }
    }

    /// The destination has sent an ABORT with this code after the hand-over. With every code but one
    /// it says that it never called `run` and never will.
    pub(super) fn note_abort(&mut self) {
        let code = self.lanes.as_mut().and_then(|l| l.first().abort_code());
        if code.is_some_and(|code| code != Kind::Unanswered as i32) {
            self.common.shared.guest.destination_never_ran();
        }
    }
}

/// The record that goes with a block's descriptor.
pub(super) fn file_of(id: BlockId, offset: u64, length: Bytes) -> wire::BlockFd {
    wire::BlockFd {
        id: id.0,
        offset,
        length: length.0,
    }
}
