//! A guest's balloon: which pages it holds.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::structs::{handle, put};
use vm_memory::GuestAddress;

/// Says whether the guest must tell before it uses a ballooned page again: 1 if
/// VIRTIO_BALLOON_F_MUST_TELL_HOST was negotiated, else 0. Say it when the balloon's driver is set
/// up, and again after each reset of the device.
///
/// - Before it is said, and after 0, no page counts as ballooned and the marks below do nothing.
/// - Each call ends what was known: pages that counted as ballooned count as written in every
///   tracker, because after a reset nobody knows of them any more.
/// - At a destination say it in `load` at the latest, with what the source's guest had negotiated.
///   There 1 ends nothing: which pages are ballooned the source has told. Where nothing is said,
///   they stop counting as ballooned when the guest runs.
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

/// The guest's balloon has taken `length` bytes at a guest physical address (inflate): they are
/// ballooned. Whole pages of 4 KiB count; a host page that is larger (`brant_ram_block.page_size`)
/// is ballooned when all of it is. A migration neither reads nor sends a ballooned page. At the
/// destination it reads as zero and costs no memory.
///
/// - Any thread, whether a migration runs or not. Takes a lock that is held for microseconds and
///   never waits for a migration.
/// - The VMM discards the memory (MADV_DONTNEED) before the call or after it. It does not mark the
///   memory as written for that.
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

/// The guest takes bytes out of its balloon (deflate) and uses them again. Call it before the guest
/// is told that it may, which is before the deflate request is put into the used ring. Every page
/// with a byte in the range stops being ballooned and counts as written, in every tracker of the
/// guest. Threads and ignored arguments as for `brant_guest_mark_ballooned`.
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

/// How many pages with a byte in a range of guest physical addresses are ballooned, into
/// `*ballooned`. At a destination: what the source said of them.
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
