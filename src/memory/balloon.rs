//! The calls for the VMM's balloon device: pages with which the guest inflated the balloon, or by
//! which it deflated it.
//!
//! This file turns guest addresses into pages of blocks, and tells trackers which pages count as
//! written. `ballooned` decides which pages are ballooned after a call.

use super::ballooned::{Forgotten, SLICE};
use super::block::Block;
use super::map::Memory;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

impl Memory {
    /// Says whether the guest has to tell before it uses a ballooned page again
    /// (`VIRTIO_BALLOON_F_MUST_TELL_HOST` was negotiated). A destination calls this before the
    /// guest runs. With `false`, no page is ballooned any longer. The same holds when `true` is
    /// said a second time: the device was reset then, and its driver knows nothing of the pages
    /// ballooned before. Pages that a source has named stay ballooned until its guest runs here.
    pub fn set_must_tell_host(&self, must: bool) {
        if self.gate.set(must) {
            drop(self.forget_ballooned());
        }
    }

    /// Whether pages may be ballooned.
    pub fn must_tell_host(&self) -> bool {
        self.gate.is_open()
    }

    /// Called before the guest begins to run here, while it stands still. If nobody has promised
    /// that the guest tells, no page is ballooned any longer.
    pub(crate) fn settle_ballooned(&self) -> Forgotten {
        self.gate.arrives_no_more();
        if self.must_tell_host() {
            return Forgotten::default();
        }
        self.forget_ballooned()
    }

    /// The guest of a source will not run here after all. The pages that the source named mean
    /// nothing for another guest, so they are forgotten.
    pub(crate) fn abandon_ballooned(&self) {
        if self.gate.arrives_no_more() {
            drop(self.forget_ballooned());
        }
    }

    fn forget_ballooned(&self) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for block in self.map().blocks() {
            let Some(state) = block.ballooned().forget() else {
                continue;
            };
            // Without an observer a pattern of a million runs is not walked through.
            let mut at = 0;
            while self.has_written_observers() {
                let Some(run) = state.counting().next_run(at, SLICE) else {
                    break;
                };
                self.tell_written(block.id(), run.start as u64..run.end as u64);
                at = run.end;
            }
            forgotten.add(state);
        }
        forgotten
    }

    /// The guest has inflated its balloon with `length` bytes at a guest address. Only whole pages
    /// count. May be called on any thread.
    pub fn mark_ballooned(&self, address: GuestAddress, length: u64) {
        let first = address.0.div_ceil(PAGE_SIZE);
        let end = address.0.saturating_add(length) / PAGE_SIZE;
        self.each_part(first..end, |block, range| {
            block
                .ballooned()
                .inflate(range, || self.must_tell_host(), |_| {});
        });
    }

    /// The guest deflates its balloon by these bytes. Tell it that it may use them after this call.
    /// Every page that has a byte in the range counts as written. May be called on any thread;
    /// never waits for a migration.
    pub fn clear_ballooned(&self, address: GuestAddress, length: u64) {
        let first = address.0 / PAGE_SIZE;
        let end = address.0.saturating_add(length).div_ceil(PAGE_SIZE);
        self.each_part(first..end, |block, range| {
            let used = block.ballooned().deflate(range);
            self.tell_written(block.id(), used);
        });
    }

    /// How many pages of a guest range are ballooned.
    pub fn count_ballooned(&self, address: GuestAddress, length: u64) -> u64 {
        let first = address.0 / PAGE_SIZE;
        let end = address.0.saturating_add(length).div_ceil(PAGE_SIZE);
        let mut pages = 0;
        self.each_part(first..end, |block, range| {
            pages += block.ballooned().count_range(range);
        });
        pages
    }

    /// Takes the source's word that pages are ballooned. The source has the guest's promise.
    pub(crate) fn inflate_from_source(
        &self,
        block: &Block,
        range: Range<u64>,
        whole: impl FnMut(Range<u64>),
    ) {
        let allowed = || !self.gate.is_shut();
        self.gate.arrives();
        block.ballooned().inflate(range, allowed, whole);
    }

    fn each_part(&self, pages: Range<u64>, mut each: impl FnMut(&Arc<Block>, Range<u64>)) {
        if pages.is_empty() {
            return;
        }
        // Held by reference count, because an epoch must not stay pinned across a lock.
        let map = self.map();
        let from = GuestAddress(pages.start.saturating_mul(PAGE_SIZE));
        for part in map.block_parts(from, Pages(pages.end - pages.start)) {
            let Some(block) = map.block(part.block) else {
                continue;
            };
            // In slices, so that no thread waits for the lock while the bits of a whole guest are
            // moved.
            let (mut at, end) = (part.first.0, part.first.0 + part.pages.0);
            while at < end {
                let stop = (at + SLICE as u64).min(end);
                each(block, at..stop);
                at = stop;
            }
        }
    }
}
