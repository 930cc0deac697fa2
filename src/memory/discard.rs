//! The VMM's word before it discards guest memory.
//!
//! Example: a save is to hold the guest as it was a minute ago, and has not come to page 5 yet. The
//! guest's balloon takes page 5, and the VMM discards it. Nothing can stop that call or bring the
//! page back. So the VMM says so *before* it discards, and the save reads the page first.

use super::map::Memory;
use super::needed::NeedsContents;
use crate::error::Result;
use crate::units::{Bytes, PAGE_SIZE};
use std::sync::Weak;
use vm_memory::GuestAddress;

impl Memory {
    /// Returns when the contents of `length` bytes from a guest address on may be discarded. Call it
    /// before guest memory is discarded to the host (`MADV_DONTNEED`, a hole punched into the
    /// file), whatever the reason: a balloon, free page reporting, virtio-mem.
    ///
    /// While a save is in progress whose instant is its start
    /// ([`SaveInstant::Start`](crate::snapshot::SaveInstant::Start)), the call waits until the image
    /// has the memory: milliseconds as a rule, and as long as the disk is behind. At all other times
    /// it costs a lock. Memory that is discarded without this call while such a save needs it fails
    /// the save, and the guest runs on.
    ///
    /// Any thread that does not stand still for the VMM's `pause`. Every page with a byte in the
    /// range counts; addresses without memory are ignored.
    ///
    /// # Errors
    /// [`Kind::Callback`](crate::Kind::Callback) inside an operation of that save.
    pub fn before_discard(&self, address: GuestAddress, length: u64) -> Result<()> {
        let Some(needs) = self.needed.get() else {
            return Ok(());
        };
        let map = self.map();
        let end = address.0.saturating_add(length);
        let first = GuestAddress(address.0 / PAGE_SIZE * PAGE_SIZE);
        let pages = Bytes(end - first.0).pages_up();
        for part in map.block_parts(first, pages) {
            let Some(block) = map.block(part.block) else {
                continue;
            };
            let from = block.host() as u64 + part.first.bytes().0;
            needs.let_go_of(&(from..from + part.pages.bytes().0))?;
        }
        Ok(())
    }

    /// Has discards wait for `who`, as long as it exists.
    pub(crate) fn contents_are_needed_by(&self, who: Weak<dyn NeedsContents>) {
        self.needed.set(who);
    }
}
