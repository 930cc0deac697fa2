//! The address of a block's memory in this process, and the promise that the memory stays there.
//!
//! An address is only a number; that memory lies there and stays is a promise. The VMM gives the
//! promise in an `unsafe` block when it makes a [`HostMemory`] from a number. Or a [`HostMemory`]
//! holds the mapping itself, which keeps the promise ([`HostMemory::region`]). All accesses of
//! brant's to a block's memory rest on this promise.

use std::any::Any;
use std::sync::Arc;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The first byte of a block's memory, and the promise that the memory stays mapped: given by the
/// VMM ([`HostMemory::new`], unsafe), or kept by the value itself ([`HostMemory::region`]).
#[derive(Debug, Clone)]
pub struct HostMemory {
    start: *mut u8,
    /// Keeps the memory mapped, where the VMM does not.
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
    /// From `start` on, as many bytes as the block is long are mapped until
    /// [`crate::memory::Memory::remove_block`] has returned for it, or the
    /// [`crate::memory::Memory`] and all that was made of it (trackers, migrations, pins) are
    /// dropped. They can be read, and written unless the block is a ROM at a source. Other code
    /// accesses them by raw pointers or volatile accesses only: there is no Rust reference to them.
    /// A page that cannot be accessed when its turn comes is an error and not unsound (see
    /// `access.rs`).
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
