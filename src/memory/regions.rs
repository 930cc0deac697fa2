//! Guest memory of vm-memory: each region becomes a block and a slot, and stays mapped as long as
//! brant knows the block. For VMMs in Rust; VMMs in C describe blocks and slots themselves.

use super::address::HostMemory;
use super::block::{BackingFile, BlockDescription, BlockFlags, BlockId};
use super::map::{Memory, SlotDescription, NO_SLOT};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::sys::file;
use crate::units::{Bytes, PAGE_SIZE};
use std::os::fd::AsFd;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

impl Memory {
    /// Adds all of a guest's memory: for each region a block and a slot, in order of addresses. The
    /// first slot has KVM's number `first_slot`, the next one `first_slot + 1`, and so on. With
    /// [`NO_SLOT`] no slot is KVM's. The slots must exist in KVM already. Either all regions are
    /// added or none.
    ///
    /// A block is named after its guest address, for example `ram-0x100000000`. So both sides of a
    /// migration have the same names if they have the same regions. Memory backed by huge pages,
    /// ROMs and slots with flags are added one by one: [`Memory::add_region`],
    /// [`Memory::add_block`].
    ///
    /// ```
    /// use brant::memory::{Memory, NO_SLOT};
    /// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
    ///
    /// # fn main() -> brant::Result<()> {
    /// // 2 MiB at 0, and 4 MiB above the hole for devices.
    /// let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(4 << 30), 4 << 20)];
    /// let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges)?;
    /// let memory = Memory::new()?;
    /// memory.add_guest_memory(&ram, NO_SLOT)?;
    ///
    /// let map = memory.map();
    /// assert!(map.block_named("ram-0x0").is_some());
    /// assert_eq!(map.block_named("ram-0x100000000").unwrap().pages().0, 1024);
    /// assert_eq!(map.guest_end(), (4 << 30) + (4 << 20));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Memory::add_block`] and [`Memory::add_slot`], whose limits apply.
    pub fn add_guest_memory<B>(
        &self,
        memory: &GuestMemoryMmap<B>,
        first_slot: u32,
    ) -> Result<Vec<BlockId>>
    where
        B: vm_memory::bitmap::Bitmap + Send + Sync + 'static,
    {
        let mut added = Vec::new();
        let result = self.add_regions(memory, first_slot, &mut added);
        if let Err(e) = result {
            // The first error is the one that is returned.
            for block in added {
                let _ = self.remove_block(block);
            }
            return Err(e);
        }
        Ok(added)
    }

    fn add_regions<B>(
        &self,
        memory: &GuestMemoryMmap<B>,
        first_slot: u32,
        added: &mut Vec<BlockId>,
    ) -> Result<()>
    where
        B: vm_memory::bitmap::Bitmap + Send + Sync + 'static,
    {
        fallible::reserve(
            added,
            memory.num_regions(),
            "the regions of the guest's memory",
        )?;
        let mut slot = first_slot;
        for region in memory.iter() {
            let at = region.start_addr();
            added.push(self.add_region(&name(at), memory, at, slot, 0)?);
            // After the last number comes 0. If another slot has that number, this one is refused.
            slot = match first_slot {
                NO_SLOT => NO_SLOT,
                _ => slot.wrapping_add(1) % NO_SLOT,
            };
        }
        Ok(())
    }

    /// Adds a block from the region of `memory` that begins at `at`, and a slot that maps all of it
    /// there, with KVM's number `slot` (or [`NO_SLOT`]). The region stays mapped as long as brant
    /// knows the block. [`Kind::NotFound`] if no region begins at `at`.
    pub fn add_region<B>(
        &self,
        name: &str,
        memory: &GuestMemoryMmap<B>,
        at: GuestAddress,
        slot: u32,
        flags: u32,
    ) -> Result<BlockId>
    where
        B: vm_memory::bitmap::Bitmap + Send + Sync + 'static,
    {
        use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
        let Some((host, length)) = HostMemory::region(memory, at) else {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "block `{name}`: no region begins at guest address {:#x}",
                    at.0
                ),
            ));
        };
        let file = match memory.find_region(at).and_then(|r| r.file_offset()) {
            Some(at) => Some(BackingFile {
                fd: file::duplicate(at.file().as_fd()).map_err(|e| {
                    Error::os(format_args!("block `{name}`: duplicating its file"), e)
                })?,
                offset: at.start(),
            }),
            None => None,
        };
        let id = self.add_block(BlockDescription {
            name: name.to_owned(),
            host,
            length: Bytes(length),
            page_size: Bytes(PAGE_SIZE),
            file,
            flags: BlockFlags::default(),
        })?;
        let added = self.add_slot(&SlotDescription {
            slot,
            flags,
            block: id,
            offset: Bytes(0),
            length: Bytes(length),
            guest_address: at,
        });
        if let Err(e) = added {
            // Block and slot are both added or neither is. The first error is the one that is
            // returned.
            let _ = self.remove_block(id);
            return Err(e);
        }
        Ok(id)
    }
}

/// The name of the block for the region at `at`.
fn name(at: GuestAddress) -> String {
    format!("ram-{:#x}", at.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(ranges: &[(u64, usize)]) -> GuestMemoryMmap {
        let ranges = ranges
            .iter()
            .map(|(at, length)| (GuestAddress(*at), *length));
        GuestMemoryMmap::from_ranges(&ranges.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn all_regions_become_blocks_with_slots_that_follow_one_another() {
        let memory = Memory::new().unwrap();
        let ram = regions(&[(0, 8192), (1 << 20, 4096), (1 << 32, 16384)]);
        let blocks = memory.add_guest_memory(&ram, 5).unwrap();
        let map = memory.map();
        assert_eq!(blocks.len(), 3);
        for (slot, (id, at)) in (5..).zip(blocks.iter().zip([0, 1 << 20, 1 << 32])) {
            let shown = map.slot(slot).unwrap();
            assert_eq!((shown.block, shown.guest_address.0), (*id, at));
            assert_eq!(map.block(*id).unwrap().name(), format!("ram-{at:#x}"));
        }
        // brant's block keeps the region mapped after the VMM's own reference is gone.
        drop(ram);
        let block = map.block_named("ram-0x100000000").unwrap();
        // SAFETY: inside the region.
        unsafe { block.host().add(16383).write_volatile(1) };
    }

    #[test]
    fn of_memory_with_a_region_that_is_refused_none_is_added() {
        let memory = Memory::new().unwrap();
        let there = regions(&[(1 << 20, 4096)]);
        memory.add_guest_memory(&there, 7).unwrap();
        let before = memory.map();
        // The number of the second region's slot is taken.
        let ram = regions(&[(0, 8192), (1 << 32, 4096)]);
        let refused = memory.add_guest_memory(&ram, 6).unwrap_err();
        assert_eq!(refused.kind(), Kind::Exists);
        let after = memory.map();
        assert_eq!(after.blocks().len(), before.blocks().len());
        assert_eq!(after.slots().len(), before.slots().len());
        // Afterwards the memory can be added with other numbers.
        memory.add_guest_memory(&ram, 8).unwrap();
    }

    #[test]
    fn regions_that_are_no_slots_of_kvms_have_no_numbers() {
        let memory = Memory::new().unwrap();
        let ram = regions(&[(0, 8192), (1 << 20, 4096)]);
        memory.add_guest_memory(&ram, NO_SLOT).unwrap();
        assert!(memory
            .map()
            .slots()
            .into_iter()
            .all(|slot| slot.slot == NO_SLOT));
    }
}
