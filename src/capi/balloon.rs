//! A guest's balloon: which pages it holds.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::structs::{handle, put};
use vm_memory::GuestAddress;

/// Tells brant whether the guest announces each ballooned page that it is about to use again.
/// `must` is 1 if VIRTIO_BALLOON_F_MUST_TELL_HOST was negotiated, else 0. Call this when the
/// balloon's driver is set up, and again after each reset of the device.
///
/// - Before the first call, and after a call with 0, no page counts as ballooned, and
///   `brant_guest_mark_ballooned` and `brant_guest_clear_ballooned` do nothing.
/// - At each call, pages that counted as ballooned stop being ballooned and count as written in
///   every tracker: after a reset of the device nobody knows whether they are still in the balloon.
/// - At a destination make the call in `load` at the latest, with the value that the source's guest
///   negotiated. There a call with 1 keeps the ballooned pages, because the source has named them.
///   Without a call they stop counting as ballooned when the guest runs.
/// - An image names no ballooned pages. After a restore they read as zero and count as in use,
///   until the VMM marks those that its device still has: call this with 1 and mark them, in
///   `load`.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_must_tell_host(
    guest: *mut brant_guest,
    must: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        if must > 1 {
            return Err(invalid(format!("must is 0 or 1, not {must}")));
        }
        guest.memory.set_must_tell_host(must != 0);
        Ok(())
    })
}

/// Tells brant that the guest's balloon has taken `length` bytes at a guest physical address
/// (inflate): their pages are ballooned. Only whole pages of 4 KiB count; a larger host page
/// (`brant_ram_block.page_size`) is ballooned when all of it is. A migration neither reads nor
/// sends a ballooned page. At the destination the page reads as zero and costs no memory.
///
/// - Any thread, whether a migration runs or not. The call takes a lock that is held for
///   microseconds, and never waits for a migration.
/// - The VMM discards the memory (MADV_DONTNEED) before the call or after it. The VMM does not mark
///   the discarded memory as written.
/// - Not for pages of VIRTIO_BALLOON_F_REPORTING, which the guest uses again without a word, nor
///   for a guest that relies on what ballooned pages hold (VIRTIO_BALLOON_F_PAGE_POISON with a
///   value other than 0).
/// - NULL and addresses without memory are ignored.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_mark_ballooned(
    guest: *const brant_guest,
    guest_address: u64,
    length: u64,
) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(g) = unsafe { guest.as_ref() } {
            g.memory.mark_ballooned(GuestAddress(guest_address), length);
        }
    })
}

/// Tells brant that the guest takes `length` bytes at a guest physical address out of its balloon
/// (deflate) and will use them again. Call this before the VMM tells the guest that it may, which
/// is before the VMM puts the deflate request into the used ring. Every page with a byte in the
/// range stops being ballooned and counts as written, in every tracker of the guest. Threads and
/// ignored arguments as for `brant_guest_mark_ballooned`.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_clear_ballooned(
    guest: *const brant_guest,
    guest_address: u64,
    length: u64,
) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(g) = unsafe { guest.as_ref() } {
            g.memory
                .clear_ballooned(GuestAddress(guest_address), length);
        }
    })
}

/// Returns when the contents of `length` bytes at a guest physical address may be discarded. Call it
/// before guest memory is discarded (MADV_DONTNEED, a hole punched into the file),
/// whatever the reason: a balloon, free page reporting, virtio-mem.
///
/// While a save with BRANT_IMAGE_INSTANT_START is in progress, the call waits until the image has the
/// memory: milliseconds as a rule, and as long as the disk is behind. At all other times it costs a
/// lock. Memory that is discarded without this call while such a save needs it fails the save
/// (BRANT_E_STATE), and the guest runs on. A hole that is punched through a descriptor is not
/// noticed: the image then holds zeros there.
///
/// Any thread that does not stand still for `pause`. Every page with a byte in the range counts;
/// addresses without memory are ignored. BRANT_E_CALLBACK inside an operation of that save.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_before_discard(
    guest: *mut brant_guest,
    guest_address: u64,
    length: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        guest
            .memory
            .before_discard(GuestAddress(guest_address), length)
    })
}

/// Counts the ballooned pages with a byte in a range of guest physical addresses, and puts the
/// count into `*ballooned`. At a destination these are the pages that the source named as
/// ballooned.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_count_ballooned(
    guest: *const brant_guest,
    guest_address: u64,
    length: u64,
    ballooned: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        let count = guest
            .memory
            .count_ballooned(GuestAddress(guest_address), length);
        // SAFETY: null or a place by contract.
        unsafe { put(ballooned, "ballooned", count) }
    })
}
