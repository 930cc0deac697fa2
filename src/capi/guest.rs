//! A guest: its memory blocks and where they appear, and pages that are lost.

use super::error::{brant_error, invalid};
use super::ops::{brant_ops, Ops};
use super::structs::{duplicated, handle, put, put_optional, read, sized, text};
use crate::error::Result;
use crate::memory::{BackingFile, BlockDescription, BlockFlags, BlockId, Memory, SlotDescription};
use crate::migrate::Blockers;
use crate::units::Bytes;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// A guest: its blocks of memory, their places at guest physical addresses and in KVM memory slots,
/// and its blockers. Make one for each virtual machine.
///
/// The object also knows who has the virtual machine (`brant_guest_get_state`), across all
/// migrations and for as long as the object lives. A guest that was handed over is not handed over
/// again. A guest that runs here is not overwritten. One migration of a guest goes on at a time.
/// When the guest state forbids a migration, its start is BRANT_E_STATE; when another migration has
/// to end first, its start is BRANT_E_BUSY. So keep one object for each virtual machine, and use it
/// for every migration of that machine: brant knows nothing of another object for the same machine.
///
/// Threads: any, several at once; changes wait for one another. `brant_guest_free` is the last
/// call: all others on it have returned before it begins. Trackers and migrations made from it keep
/// what they need, and may be used and freed later.
pub struct brant_guest {
    pub(super) memory: Arc<Memory>,
    pub(super) blockers: Blockers,
    pub(super) ops: Arc<Ops>,
}

/// In `brant_ram_block.flags`: the guest cannot write the block. A migration sends the block once,
/// and again only the pages of it that the VMM marks.
pub const BRANT_RAM_ROM: u32 = 1;
/// In `brant_ram_block.flags`, at a destination: the block is known to read as zero, so brant need
/// not look. Without this flag brant assumes nothing of the block's contents. The flag counts until
/// a page with contents arrives for the block, all pages have arrived, a migration from here
/// starts, or brant_guest_runs_here, brant_guest_reclaim or brant_guest_give_up is called for a
/// guest that was here. So when an incoming migration breaks before that, the next one may use the
/// same block, as it was added.
pub const BRANT_RAM_ZEROED: u32 = 2;
/// In `brant_ram_block.flags`: the block is a mapping, shared as a rule, of the file or memfd that
/// `fd` names. Without this flag the block is private memory, or shared memory whose file brant
/// does not know, and `fd` is 0 or -1.
pub const BRANT_RAM_FILE: u32 = 4;

/// A RAM block: guest memory that is contiguous in this process.
///
/// The VMM may register the memory with a userfaultfd of its own that fills pages when they are
/// touched (for a guest that is being restored from an image, say), before or after the block is
/// added. A migration then touches all of this memory, waits for each page, and sends the contents
/// that the page gets. Register the memory before a migration from here starts, or mark the memory
/// that is registered later (`brant_tracker_mark`): the contents of its pages change by the
/// registration, and no log sees that.
///
/// Memory that brant cannot read or write gives BRANT_E_MEMORY and no signal: brant asks the kernel
/// before its own code accesses a page. A page that breaks between the question and the access (a
/// file is truncated at that moment, say) still ends the process with SIGBUS or SIGSEGV.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_ram_block {
    /// sizeof(brant_ram_block).
    pub size: usize,
    /// 1 to 255 bytes of UTF-8 without control characters, unique in the guest. The destination's
    /// block has the same name.
    pub name: *const c_char,
    /// Address of the first byte, page-aligned. The memory stays the VMM's, which keeps it mapped
    /// until `brant_guest_remove_block` has returned.
    pub host: *mut c_void,
    /// Bytes; a multiple of `page_size`.
    pub length: u64,
    /// Size of the host pages that back the block, bytes: a power of two from 4096 to 1 GiB; 0
    /// means 4096.
    pub page_size: u64,
    /// With BRANT_RAM_FILE: the descriptor of the file or memfd that the block is mapped from. By
    /// it brant sees holes of the file. When the block is mapped from another file or offset, or is
    /// private memory without a file, adding it is BRANT_E_INVALID. So is the descriptor of
    /// something that cannot be mapped (a pipe, a socket, a terminal, /dev/null), and one that is
    /// open for writing only. To compare, brant maps a page of the descriptor's file and looks at
    /// both mappings in /proc/self/maps. brant believes a descriptor of a file without comparing it
    /// when /proc/self/maps cannot be read, and when the block consists of several mappings. Any
    /// number from 0 up is a descriptor; -1, the result of a failed dup, is BRANT_E_INVALID. brant
    /// keeps a descriptor of its own. The file position of the VMM's descriptor stays where it is,
    /// unless /proc is missing. Without BRANT_RAM_FILE: 0 or -1.
    pub fd: i32,
    /// BRANT_RAM_*.
    pub flags: u32,
    /// Where in the file the block begins, bytes.
    pub fd_offset: u64,
}

/// In `brant_slot.slot`: the part of the block has guest addresses, but is no KVM memory slot.
pub const BRANT_NO_SLOT: u32 = 0xffff_ffff;

/// Part of a block as it appears to the guest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_slot {
    /// sizeof(brant_slot).
    pub size: usize,
    /// The block's number.
    pub block: u32,
    /// KVM's slot number, with the address space in the upper 16 bits; BRANT_NO_SLOT if this is no
    /// KVM slot.
    pub slot: u32,
    /// Where in the block the slot begins, bytes, page-aligned.
    pub offset: u64,
    /// Bytes, page-aligned. For a KVM slot this is exactly KVM's size: KVM writes a bitmap of its
    /// own size into the room that brant made for this length.
    pub length: u64,
    /// Guest physical address of its first byte, page-aligned. The slot ends at 2^52 or below (2^59
    /// on RISC-V): no architecture has more addresses.
    pub guest_address: u64,
    /// The KVM_MEM_* flags that the VMM set it with, without KVM_MEM_LOG_DIRTY_PAGES: brant
    /// repeats them when it switches logging on and off.
    pub kvm_flags: u32,
    /// 0.
    pub reserved: u32,
}

sized!(brant_ram_block, brant_slot);

/// Makes a guest without memory. `ops` are the VMM's operations, for all objects that are made from
/// this guest: its migrations in both directions and its trackers. The table is copied. With NULL
/// the guest can be tracked and not migrated. A call that needs an operation says so. brant passes
/// `opaque` to each operation, until the guest and all objects that were made from it are freed.
/// BRANT_E_UNSUPPORTED where the host's pages are not 4 KiB.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_new(
    ops: *const brant_ops,
    opaque: *mut c_void,
    guest: *mut *mut brant_guest,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let ops = unsafe { Ops::new(ops, opaque) }?;
        if guest.is_null() {
            return Err(invalid("guest is NULL"));
        }
        let made = Box::new(brant_guest {
            memory: Arc::new(Memory::new()?),
            blockers: Blockers::new(),
            ops: Arc::new(ops),
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(guest, "guest", Box::into_raw(made)) }
    })
}

/// Frees a guest; NULL is fine. The guest state is lost by this. Blockers of the guest may be freed
/// afterwards.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_free(guest: *mut brant_guest) {
    boundary!(or(), {
        if !guest.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(guest) });
        }
    })
}

/// Adds the block that the structure describes.
///
/// # Safety
/// The name is null or a string, the descriptor is open during the call, and the memory is as the
/// structure says.
unsafe fn add_block(guest: &brant_guest, b: &brant_ram_block) -> Result<BlockId> {
    // SAFETY: null or a string by contract.
    let name = unsafe { text(b.name, "brant_ram_block.name") }?;
    if b.flags & !(BRANT_RAM_ROM | BRANT_RAM_ZEROED | BRANT_RAM_FILE) != 0 {
        return Err(invalid(format!(
            "block `{name}`: flags are BRANT_RAM_ROM, BRANT_RAM_ZEROED and BRANT_RAM_FILE; \
             found {:#x}",
            b.flags
        )));
    }
    let of_file = b.flags & BRANT_RAM_FILE != 0;
    if !of_file && !matches!(b.fd, 0 | -1) {
        return Err(invalid(format!(
            "block `{name}`: fd is {}, and flags lack BRANT_RAM_FILE, which says that the \
             block is mapped from its file; without that flag fd is 0 or -1",
            b.fd
        )));
    }
    let file = match of_file {
        false => None,
        true => Some(BackingFile {
            // SAFETY: open during the call by contract.
            fd: unsafe { duplicated(b.fd, "brant_ram_block.fd") }?,
            offset: b.fd_offset,
        }),
    };
    guest.memory.add_block(BlockDescription {
        name: name.to_owned(),
        // SAFETY: by contract of the C interface, as the structure says.
        host: unsafe { crate::memory::HostMemory::new(b.host.cast()) },
        length: Bytes(b.length),
        page_size: Bytes(if b.page_size == 0 { 4096 } else { b.page_size }),
        file,
        flags: BlockFlags {
            rom: b.flags & BRANT_RAM_ROM != 0,
            zeroed: b.flags & BRANT_RAM_ZEROED != 0,
        },
    })
}

/// Adds a block, one of at most 4096. `*id` (may be NULL) gets its number. Every other call and
/// every taken run names the block by this number. No other block of the guest ever gets the same
/// number, even after this block was removed. The name of a block is for the other side of a
/// migration: the two sides match blocks by name. While the guest is tracked, all pages of the new
/// block count as dirty.
///
/// While the guest migrates, add the block first at the destination, then at the source, and while
/// the source is in BRANT_SOURCE_COPYING. Before BRANT_SOURCE_COPYING the two sides compare their
/// blocks, and a block that only one side has is BRANT_E_LAYOUT. A block that is added at the
/// source after `pause` was called may come too late to be sent: then the migration fails with
/// BRANT_E_STATE before the hand-over.
///
/// While the guest is saved to an image, blocks may be added and removed at any time. The image has
/// the blocks that the guest had when the last page was written, each with all of its pages. A
/// restore needs the same blocks: add them before the restore, or in `early_load`.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_block(
    guest: *mut brant_guest,
    block: *const brant_ram_block,
    id: *mut u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let b = unsafe { read(block) }?;
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: what the structure names, by contract.
        let made = unsafe { add_block(guest, &b) }?;
        // SAFETY: null or a place by contract.
        unsafe { put_optional(id, made.0) };
        Ok(())
    })
}

/// Adds a block, and all of it as one slot: `brant_guest_add_block` and `brant_guest_add_slot` in one
/// call. `guest_address` is where the guest sees the first byte, `slot` KVM's number of the slot (with no
/// KVM_MEM_* flags), or BRANT_NO_SLOT. `*id` (may be NULL) gets the block's number. When the slot cannot
/// be added, the block is not there either.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_ram(
    guest: *mut brant_guest,
    block: *const brant_ram_block,
    guest_address: u64,
    slot: u32,
    id: *mut u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let b = unsafe { read(block) }?;
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: what the structure names, by contract.
        let made = unsafe { add_block(guest, &b) }?;
        let whole = SlotDescription::new(made, GuestAddress(guest_address), Bytes(b.length));
        if let Err(e) = guest.memory.add_slot(&SlotDescription { slot, ..whole }) {
            // Nobody else knows its number. If it cannot be removed, it is a block without a slot.
            let _ = guest.memory.remove_block(made);
            return Err(e);
        }
        // SAFETY: null or a place by contract.
        unsafe { put_optional(id, made.0) };
        Ok(())
    })
}

/// Finds the number of the block with this name and puts it into `*id`. Example: an `early_load`
/// gets a name from the source and needs the number. BRANT_E_NOT_FOUND if no block has the name.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_find_block(
    guest: *const brant_guest,
    name: *const c_char,
    id: *mut u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let found = guest.memory.find_block(unsafe { text(name, "name") }?)?;
        // SAFETY: null or a place by contract.
        unsafe { put(id, "id", found.0) }
    })
}

/// Removes a block and its slots; BRANT_E_NOT_FOUND if the block is gone already. In this order:
///
/// 1. Make sure that nothing writes to the block any more: the vCPUs are stopped, or the guest no
///    longer uses the block. Marks of the block may still come; they are ignored.
/// 2. Call this function. It reads the logs of the slots and switches their logging off, so the
///    slots must still be in KVM (see brant_guest_remove_slot). It returns when brant no longer
///    touches the memory: within milliseconds, however slow the peer of a migration is. (Pages that
///    are being sent to the peer are sent from a copy.) With BRANT_ZERO_COPY_ON it may take longer:
///    the call waits until the kernel has sent the pages of the block that are on their way, for at
///    most the I/O timeout of a peer that takes nothing. A cancel of the migration from another
///    thread ends that wait.
/// 3. Delete the slots from KVM, and unmap the memory.
///
/// BRANT_E_BUSY while runs of the block that `brant_tracker_take` or `brant_consumer_take` handed
/// out are in use. Such runs are in use until the same consumer takes again, is stopped or is
/// freed; the message names the consumer. The call then returns at once and has changed nothing.
/// Call it again when the use has ended.
///
/// While the guest migrates, remove the block first at the source, then, when that call has
/// returned, at the destination. This may happen at any moment from BRANT_SOURCE_COPYING on, also
/// while the guest is paused. The destination ignores pages of the block that still arrive.
/// Example: the VMM removes the block in its operation `save`, says so in the state, and removes
/// the block at the destination in `load`. A block that only the source removes is fine too: it
/// stays at the destination. Before BRANT_SOURCE_COPYING the two sides compare their blocks: a
/// block that is gone at the source and still there at the destination ends the migration with
/// BRANT_E_LAYOUT. A block that is gone only at the destination ends the migration with
/// BRANT_E_LAYOUT at any time before the destination is ready, and the guest stays at the source.
/// When the destination is ready its guest is complete. From then on, a block that is removed only
/// at the destination is missing when the guest runs.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_remove_block(
    guest: *mut brant_guest,
    block: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest.memory.remove_block(BlockId(block))
    })
}

/// Adds a slot: part of a block at a guest address. A KVM slot has to exist in KVM already, with
/// the size and place given here. So add a slot to KVM first and then to brant; remove it from
/// brant first (brant_guest_remove_slot) and then from KVM. When the VMM replaces a KVM slot by one
/// of another size and does not tell brant first, brant cannot read its log: all its pages count as
/// dirty at each sync, with a warning. While the guest is tracked, brant switches the new slot's
/// logging on (or has the VMM do it), and all its pages count as dirty. A block may have any number
/// of slots, at any page. Marks by guest address reach the slot when this call has returned.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_slot(
    guest: *mut brant_guest,
    slot: *const brant_slot,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a structure by contract.
        let s = unsafe { read(slot) }?;
        if s.reserved != 0 {
            return Err(invalid("brant_slot.reserved is not 0"));
        }
        guest.memory.add_slot(&SlotDescription {
            slot: s.slot,
            flags: s.kvm_flags,
            block: BlockId(s.block),
            offset: Bytes(s.offset),
            length: Bytes(s.length),
            guest_address: GuestAddress(s.guest_address),
        })
    })
}

/// Removes the slot with this number (or BRANT_NO_SLOT) at this guest address. The block stays.
/// To delete a slot, or to move, resize or replace it:
///
/// 1. Stop the vCPUs, or know that the guest does not use the slot. No thread may be between a
///    write to the slot and its mark by guest address: after step 2 such a mark finds no memory.
/// 2. Call this function while KVM's slot is as it was described. brant reads the slot's log, and
///    switches its logging off by setting the slot once more as it was.
/// 3. Delete or move the slot in KVM (KVM_SET_USER_MEMORY_REGION), and make the slot that takes its
///    place.
/// 4. Describe the new slot with brant_guest_add_slot: all its pages count as dirty.
/// 5. Let the vCPUs run.
///
/// Another order is worse. When the slot was deleted in KVM first, its log is lost, and all its
/// pages count as dirty. When the slot was moved in KVM first, step 2 sets it back to its old
/// place.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_remove_slot(
    guest: *mut brant_guest,
    slot: u32,
    guest_address: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest.memory.remove_slot(slot, GuestAddress(guest_address))
    })
}

/// Declares that the contents of `length` bytes at `offset` of a block are lost: the hardware
/// failed, and the kernel said so with SIGBUS (BUS_MCEERR_AO, BUS_MCEERR_AR; `si_addr_lsb` gives
/// the length). Without the declaration a migration that comes to such a page fails with
/// BRANT_E_MEMORY, and the guest runs on. With the declaration the migration goes on: the page is
/// neither read nor sent, however often it is found dirty, and counts in `poisoned_pages`. At the
/// destination the page reads as zero. If the page was sent before its contents were lost, and was
/// not written since, it has the contents that were sent. brant does not tell the destination's VMM
/// of poisoned pages: when the destination's VMM should raise a machine check in its guest, put the
/// list of pages into the device state (`save`).
///
/// Every page with a byte in the range counts. When larger host pages back the block, each of those
/// pages counts whole. Any thread, whether a migration runs or not, but no signal handler: the call
/// takes a lock and may allocate. BRANT_E_NOT_FOUND if there is no such block, BRANT_E_INVALID if
/// the range is empty or reaches past the end of the block. When an incoming migration brings
/// contents for the page, the declaration ends. When it brings a delta for the page
/// (`brant_params.delta_cache_bytes`), there is nothing that the delta could change, and the
/// migration fails with BRANT_E_MEMORY.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_mark_poisoned(
    guest: *mut brant_guest,
    block: u32,
    offset: u64,
    length: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest
            .memory
            .mark_poisoned(BlockId(block), Bytes(offset), Bytes(length))
    })
}

/// Declares that poisoned pages have contents again: the VMM has mapped other memory in their
/// place, or resets the guest. Make the call after that. The pages count as written in every
/// tracker of the guest. Pages of the range that were not declared poisoned stay as they are.
/// Threads and errors as for `brant_guest_mark_poisoned`.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_clear_poisoned(
    guest: *mut brant_guest,
    block: u32,
    offset: u64,
    length: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest
            .memory
            .clear_poisoned(BlockId(block), Bytes(offset), Bytes(length))
    })
}
