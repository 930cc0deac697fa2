//! Where a block's memory lies in this process, together with the promise that goes with it.
//!
//! An address is a number; that memory lies there, and stays, is a promise. Whoever makes a
//! [`HostMemory`] from a number gives it, in an `unsafe` block; or a mapping is handed over with it
//! and keeps it by itself ([`HostMemory::region`]). Everything that brant does to a block's memory
//! rests on this.

use std::any::Any;
use std::sync::Arc;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The first byte of a block's memory. See the file's description.
#[derive(Debug, Clone)]
pub struct HostMemory {
    start: *mut u8,
    /// What keeps the memory mapped, where it is not the VMM.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: an address, which threads of the VMM, the guest and the kernel share anyway; and an
// owner that is Send and Sync.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Memory that the VMM mapped at `start`.
    ///
    /// # Safety
    /// As many bytes from `start` on as the block is long are mapped until
    /// [`crate::memory::Memory::remove_block`] has returned for it, or the [`crate::memory::Memory`]
    /// and all that was made of it (trackers, migrations, pins) are dropped. They can be read, and
    /// written unless the block is a ROM at a source. Other code accesses them by raw pointers or
    /// volatile accesses only: there is no Rust reference to them. A page that cannot be accessed
    /// when its turn comes is an error and not unsound (see `access.rs`).
    pub const unsafe fn new(start: *mut u8) -> Self {
        HostMemory {
            start,
            _owner: None,
        }
    }

    /// The region of `memory` that begins at `at`, and how many bytes it has; `None` if there is
    /// no such region. It stays mapped as long as the block is known.
    pub fn region<B>(memory: &GuestMemoryMmap<B>, at: GuestAddress) -> Option<(Self, u64)>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let region: &GuestRegionMmap<B> = memory.find_region(at)?;
        if region.start_addr() != at {
            return None;
        }
        let (start, length) = (region.as_ptr(), region.len());
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(memory.clone());
        Some((
            HostMemory {
                start,
                _owner: Some(owner),
            },
            length,
        ))
    }

    /// The address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }
}
