//! A guest: its memory blocks and where they appear, and pages that are lost.

use super::error::{brant_error, invalid};
use super::ops::{brant_ops, Ops};
use super::structs::{duplicated, handle, put, put_optional, read, sized, text};
use crate::memory::{BackingFile, BlockDescription, BlockFlags, BlockId, Memory, SlotDescription};
use crate::migrate::Blockers;
use crate::units::Bytes;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// What a guest is to brant: blocks of memory, where they appear at guest physical addresses
/// and in KVM memory slots, and reasons why it cannot move. One for each virtual machine.
///
/// It also knows who has the virtual machine (`brant_guest_get_state`), whatever uses it and for as
/// long as it lives. A guest that was handed over is not handed over again, one that runs here is
/// not overwritten, and one migration goes on at a time: what a migration must not begin with is
/// BRANT_E_STATE, what it must wait for BRANT_E_BUSY. So keep one object for each virtual machine
/// and use it for every migration of it; brant knows nothing of what another object does.
///
/// Threads: any, several at once; changes wait for one another. `brant_guest_free` is the last
/// call: all others on it have returned before it begins. Trackers and migrations made from it keep
/// what they need, and may be used and freed later.
pub struct brant_guest {
    pub(super) memory: Arc<Memory>,
    pub(super) blockers: Blockers,
    pub(super) ops: Arc<Ops>,
}

/// In `brant_ram_block.flags`: the guest cannot write the block. It is sent once, and again
/// only what is marked.
pub const BRANT_RAM_ROM: u32 = 1;
/// In `brant_ram_block.flags`, at a destination: the block is known to read as zero, so brant need
/// not look. Without it nothing is assumed of what is there. The flag counts until a page with
/// contents arrives for the block, or all pages have arrived, or a migration from here starts, or
/// brant_guest_runs_here, brant_guest_reclaim or brant_guest_give_up speaks of a guest that was
/// here. So an incoming after one that broke may use the same block, as it was added.
pub const BRANT_RAM_ZEROED: u32 = 2;
/// In `brant_ram_block.flags`: the block is a mapping, shared as a rule, of the file or memfd that
/// `fd` names. Without it the block is private memory, or shared memory whose file brant is not
/// told, and `fd` is 0 or -1.
pub const BRANT_RAM_FILE: u32 = 4;

/// A RAM block: guest memory that is contiguous in this process.
///
/// Memory may be registered with a userfaultfd of the VMM's that fills pages when they are touched
/// (a guest that is being restored from an image, say), before or after it is added. A migration
/// then touches all of it, waits for each page, and sends what the page is filled with. Register it
/// before a migration from here starts, or mark what is registered later (`brant_tracker_mark`):
/// what a page holds changes by that, and no log sees it.
///
/// Memory that cannot be read or written when its turn comes is BRANT_E_MEMORY and no signal: the
/// kernel is asked before brant's own code looks. A page that breaks between that question and the
/// look (a file is truncated at that moment, say) still ends the process with SIGBUS or SIGSEGV.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_ram_block {
    /// sizeof(brant_ram_block).
    pub size: usize,
    /// 1 to 255 bytes of UTF-8 without control characters, unique in the guest; the destination's
    /// block has the same.
    pub name: *const c_char,
    /// Address of the first byte, page-aligned. The memory stays the VMM's, and mapped until
    /// `brant_guest_remove_block` has returned.
    pub host: *mut c_void,
    /// Bytes; a multiple of `page_size`.
    pub length: u64,
    /// What backs it, bytes: a power of two from 4096 to 1 GiB; 0 means 4096.
    pub page_size: u64,
    /// With BRANT_RAM_FILE: the descriptor of the file or memfd that the block is mapped from;
    /// makes its holes visible. BRANT_E_INVALID where the block is mapped from another file or
    /// offset, or is private memory without a file. That is asked of /proc/self/maps; where that
    /// cannot be read, where the block consists of several mappings, and where a file system shows
    /// another device there than in fstat (btrfs, some overlays), the descriptor is believed. Any
    /// number from 0 up is a descriptor; -1, the result of a failed dup, is BRANT_E_INVALID. brant
    /// keeps a descriptor of its own; the file position of this one stays where it is, unless /proc
    /// is missing. Without that flag: 0 or -1.
    pub fd: i32,
    /// BRANT_RAM_*.
    pub flags: u32,
    /// Where in the file the block begins, bytes.
    pub fd_offset: u64,
}

/// In `brant_slot.slot`: maps to guest addresses without being a KVM memory slot.
pub const BRANT_NO_SLOT: u32 = 0xffff_ffff;

/// Part of a block as it appears to the guest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_slot {
    /// sizeof(brant_slot).
    pub size: usize,
    /// The block's number.
    pub block: u32,
    /// KVM's slot number, the address space in the upper 16 bits; BRANT_NO_SLOT if it is none.
    pub slot: u32,
    /// Where in the block it begins, bytes, page-aligned.
    pub offset: u64,
    /// Bytes, page-aligned. Of a KVM slot, exactly its size: KVM writes a bitmap of that size to
    /// where brant made room for this one.
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

/// Makes a guest without memory. `ops` are the VMM's operations, for all that is made from this
/// guest: its migrations in both directions and its trackers. The table is copied. NULL: a guest
/// that is tracked and not migrated. Which operations a call cannot do without, that call says.
/// `opaque` is given to each operation, until the guest and all that was made from it are freed.
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

/// Frees a guest; NULL is fine. What is known of who has it is gone then. Blockers of it may be
/// taken back afterwards.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_free(guest: *mut brant_guest) {
    boundary!(or(), {
        if !guest.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(guest) });
        }
    })
}

/// Adds a block. `*id` (may be NULL) gets its number, by which every other call names the block,
/// and every run that is taken. No other block of the guest ever has that number, also after this
/// one was removed. Names are for the other side of a migration: they say which block is which
/// there. While the guest is tracked all of the new block counts as dirty. At most 4096.
///
/// While it migrates: first at the destination, then at the source, and while the source is in
/// BRANT_SOURCE_COPYING. Before that the two sides compare their blocks, and one too many is a
/// BRANT_E_LAYOUT. A block that is added at the source after `pause` was called may come too late
/// to be sent: then the migration fails with BRANT_E_STATE before anything is handed over.
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
        if b.fd > 0 && !of_file {
            return Err(invalid(format!(
                "block `{name}`: fd is {}, and flags lack BRANT_RAM_FILE, which says that the \
                 block is a shared mapping of it",
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
        let made = guest.memory.add_block(BlockDescription {
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
        })?;
        // SAFETY: null or a place by contract.
        unsafe { put_optional(id, made.0) };
        Ok(())
    })
}

/// The number of the block with this name, into `*id`: for whoever has only the name, as an
/// `early_load` that reads what the source wrote. BRANT_E_NOT_FOUND where there is none.
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

/// Removes a block and its slots; BRANT_E_NOT_FOUND where it is gone already. In this order:
///
/// 1. See to it that nothing writes to the block any more: vCPUs stopped, or the guest has
///    let go of it. Marks of it may still come; they are ignored.
/// 2. Call this. What the slots logged is read and their logging switched off, so they must
///    still be in KVM (see brant_guest_remove_slot). It returns when brant does not touch the
///    memory any more: within milliseconds, however slow the peer of a migration is. (Pages
///    that are on their way to it go on from a copy.)
/// 3. Delete the slots from KVM, and unmap the memory.
///
/// BRANT_E_BUSY while runs of the block that `brant_tracker_take` or `brant_consumer_take` handed
/// out are in use. Such runs are in use until the same consumer takes again, is stopped or is
/// freed: the message names it. The call waits for nobody and has changed nothing; make it again
/// afterwards.
///
/// While it migrates: first at the source, then, once that call has returned, at the destination,
/// at any moment from BRANT_SOURCE_COPYING on, also while the guest is paused. What the source
/// still has on its way for the block goes nowhere. Example: the VMM removes it in its operation
/// `save`, says so in the state, and removes it at the destination in `load`. A block that only the
/// source removes is fine too: it stays at the destination. Before BRANT_SOURCE_COPYING the two
/// sides compare their blocks: one that is gone at the source and is still there at the destination
/// ends the migration with BRANT_E_LAYOUT. One that is gone at the destination and not at the
/// source ends it so at any time before the destination is ready, and the guest stays at the
/// source. From then on the destination's guest is complete, and its blocks are its VMM's: one that
/// is removed only there is missing when the guest runs.
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

/// Adds a slot: part of a block at a guest address. A KVM slot exists in KVM already, with the
/// size and place given here: KVM first, then this call; to take it away, this side first
/// (brant_guest_remove_slot). A KVM slot that was replaced by one of another size before brant
/// heard of it cannot be read: all of it counts as dirty at each sync, with a warning. While the
/// guest is tracked, brant switches the slot's logging on (or has the VMM do it) and all of it
/// counts as dirty. A block may have any number of slots, at any page. Marks by guest address
/// find it once this has returned.
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
///    write to it and the mark of that by guest address: from here on such a mark finds
///    nothing.
/// 2. Call this, with KVM's slot as it was described: what it has logged is read, and its
///    logging switched off by setting it once more as it was.
/// 3. Delete or move it in KVM (KVM_SET_USER_MEMORY_REGION), and make what takes its place.
/// 4. Describe that with brant_guest_add_slot: all of it counts as dirty.
/// 5. Let the vCPUs run.
///
/// The other way round is worse: of a slot that was deleted before, the log is lost with it,
/// and all its pages count as dirty; one that was moved before is set back to where it was.
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

/// The contents of `length` bytes at `offset` of a block are lost: the hardware failed, and the
/// kernel said so with SIGBUS (BUS_MCEERR_AO, BUS_MCEERR_AR; `si_addr_lsb` gives the length).
/// Without this a migration that comes to such a page fails with BRANT_E_MEMORY and the guest runs
/// on. With it the migration goes on: the page is neither read nor sent, however often it is found
/// dirty, and counts in `poisoned_pages`. At the destination it reads as zero; if it had been sent
/// before it was lost, and not written since, it holds what it held. brant tells the destination's
/// VMM nothing of it: where that is to raise a machine check in its guest, put the list into the
/// state (`save`).
///
/// Every page with a byte in the range counts, and where the block is backed by larger pages, every
/// such page whole. Any thread, whether a migration runs or not, but no signal handler: it takes a
/// lock and may allocate. BRANT_E_NOT_FOUND for a block that is not there, BRANT_E_INVALID for a
/// range that is empty or reaches past its end. Contents that arrive here in an incoming migration
/// take the declaration back.
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

/// Pages that were declared poisoned have contents again: the VMM has mapped other memory in their
/// place, or resets the guest. Call it after that. They count as written in every tracker of the
/// guest. Pages of the range that were not declared stay as they are. Threads and errors as
/// above.
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
