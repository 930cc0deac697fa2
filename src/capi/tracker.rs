//! Level two: which pages were written, found by every log and handed out once.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::ops::Ops;
use super::reader::{brant_run, brant_sync, Reader};
use super::structs::{handle, put, read, sized, write};
use crate::dirty::kvm::Used;
use crate::dirty::tracker::{Clearing, Tracker};
use crate::memory::BlockId;
use crate::migrate::Blockers;
use crate::units::{Bytes, Pages};
use std::ffi::c_void;
use std::sync::{Arc, Mutex};
use vm_memory::GuestAddress;

/// Tracks which pages of a guest are written. A sync merges the pages that all logs find into
/// pending. A take hands pending pages out after it has restored their protection.
///
/// Each consumer of the tracker has pending pages of its own. Consumers are the VMM itself
/// (`brant_tracker_start`, `_sync`, `_take`, `_put_back`, `_stop`), each consumer that the VMM
/// makes with `brant_consumer_new`, a migration, and a measurement of the dirty rate. A sync by any
/// consumer adds the pages that it found to the pending pages of every consumer. A take removes
/// pages from the pending pages of the taker alone. So a migration may run on a tracker that is in
/// use. However the migration ends, every other consumer still has all its pending pages and all
/// pages that were written since.
///
/// Threads: any, several at once. Marks (`brant_tracker_mark*`) never wait. Every other function,
/// except `brant_tracker_ring_full`, waits for a sync or take that is in progress.
/// `brant_tracker_free` is the last call: all others on it, those of vCPU threads too, have
/// returned before it begins. The tracker's consumers, measurements and migrations may be freed
/// later.
pub struct brant_tracker {
    pub(super) tracker: Arc<Tracker>,
    /// The VMM itself.
    own: Reader,
    kvm: Mutex<Option<Used>>,
    /// The guest's, for a migration of it.
    pub(super) ops: Arc<Ops>,
    pub(super) blockers: Blockers,
}

impl brant_tracker {
    /// What is used of KVM, once it was added.
    pub(super) fn kvm(&self) -> std::sync::MutexGuard<'_, Option<Used>> {
        self.kvm.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// In `brant_tracker_config.clearing`: chunk by chunk, each before its first page is handed out.
pub const BRANT_CLEAR_CHUNKED: u32 = 0;
/// In `brant_tracker_config.clearing`: a whole slot at each sync.
pub const BRANT_CLEAR_AT_SYNC: u32 = 1;

/// How a tracker works. A field that is 0 has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_tracker_config {
    /// sizeof(brant_tracker_config).
    pub size: usize,
    /// BRANT_CLEAR_*: how brant restores protection after a harvest, in the modes in which KVM
    /// leaves that to brant.
    pub clearing: u32,
    /// log2 of the pages in a chunk, 6 to 31; 0 means 18, 1 GiB. A value out of range is clamped,
    /// and the next migration gives a BRANT_EVENT_WARNING.
    pub chunk_shift: u32,
}

/// Running totals. The totals of pages found, pending and put back are those of the VMM as a
/// consumer (see brant_tracker), since `brant_tracker_start`. The other totals are of all consumers
/// together, since the first of them started.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_tracker_stats {
    /// sizeof(brant_tracker_stats).
    pub size: usize,
    /// Pages pending now for the VMM.
    pub pending_pages: u64,
    /// Syncs made, whoever asked.
    pub syncs: u64,
    /// Pages that became pending for the VMM.
    pub found_pages: u64,
    /// Calls that cleared chunks.
    pub clear_calls: u64,
    /// Bits they cleared.
    pub cleared_pages: u64,
    /// Nanoseconds: the longest restoring of one chunk.
    pub longest_clear_ns: u64,
    /// Pages that the VMM put back.
    pub put_back_pages: u64,
    /// Marks at addresses without memory, bits of vhost logs included, since the tracker was
    /// made.
    pub stray_marks: u64,
    /// Bytes of bitmaps and rings that brant holds for the guest's memory, in all its logs; the
    /// kernel's own bitmaps are not included.
    pub heap_bytes: u64,
    /// The chunk shift in use; 0 when chunks are off.
    pub chunk_shift: u32,
    /// Whether tracking is on, for any consumer: 1 or 0.
    pub started: u32,
    /// Ballooned pages that a consumer named instead of reading; a page that is named again counts
    /// again.
    pub ballooned_pages: u64,
    /// Ballooned pages that a log found written: they are no longer ballooned.
    pub ballooned_written_pages: u64,
    /// Pages that free-page hints took out of pending.
    pub hinted_pages: u64,
    /// Free-page hints that came after their round was over, and so did nothing.
    pub stale_hints: u64,
}

sized!(brant_tracker_config, brant_tracker_stats);

/// Makes a tracker of a guest. The VMM tells the tracker of its own writes by marks; add KVM's log
/// next. `config` may be NULL for the defaults. Free the tracker with `brant_tracker_free`.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_new(
    guest: *mut brant_guest,
    config: *const brant_tracker_config,
    tracker: *mut *mut brant_tracker,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        if tracker.is_null() {
            return Err(invalid("tracker is NULL"));
        }
        let clearing = if config.is_null() {
            Clearing::default()
        } else {
            // SAFETY: a structure by contract.
            let config = unsafe { read(config) }?;
            match (config.clearing, config.chunk_shift) {
                (BRANT_CLEAR_CHUNKED, 0) => Clearing::default(),
                (BRANT_CLEAR_CHUNKED, shift) => Clearing::Chunked { shift },
                (BRANT_CLEAR_AT_SYNC, _) => Clearing::AtSync,
                (other, _) => {
                    return Err(invalid(format!(
                        "brant_tracker_config.clearing is BRANT_CLEAR_CHUNKED (0) or \
                         BRANT_CLEAR_AT_SYNC (1), not {other}"
                    )))
                }
            }
        };
        let inner = Tracker::new(Arc::clone(&guest.memory), clearing)?;
        let made = Box::new(brant_tracker {
            own: Reader::of(&inner, true),
            tracker: inner,
            kvm: Mutex::default(),
            ops: Arc::clone(&guest.ops),
            blockers: guest.blockers.clone(),
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(tracker, "tracker", Box::into_raw(made)) }
    })
}

/// Frees a tracker; NULL is fine. Tracking stops. While a migration or another consumer uses the
/// tracker, tracking stops when the last of them ends.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_free(tracker: *mut brant_tracker) {
    boundary!(or(), {
        if !tracker.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(tracker) });
        }
    })
}

/// Marks `length` bytes at a guest physical address as written by the VMM. Call it after the write.
/// Any thread; the call is lock-free and never waits, and costs nearly nothing while nobody tracks.
/// Addresses without memory are counted (`stray_marks`) and otherwise ignored. NULL is ignored.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_mark(
    tracker: *const brant_tracker,
    guest_address: u64,
    length: u64,
) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(t) = unsafe { tracker.as_ref() } {
            t.tracker.mark_guest(GuestAddress(guest_address), length);
        }
    })
}

/// `brant_tracker_mark` for a bitmap of pages: bit i of `words` (bit i % 64 of word i / 64) is the
/// page of 4 KiB at `guest_address` + 4096 i, for `pages` bits. It is for the log of a device that
/// the VMM has read itself: the dirty bitmap of VFIO_IOMMU_UNMAP_DMA, or a vhost log of the VMM's
/// own. Each set bit without memory counts in `stray_marks`. NULL is ignored.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_mark_bitmap(
    tracker: *const brant_tracker,
    guest_address: u64,
    words: *const u64,
    pages: u64,
) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        let Some(t) = (unsafe { tracker.as_ref() }) else {
            return;
        };
        if words.is_null() {
            return;
        }
        // By way of a copy, because C may have aligned the words less than we need them to be.
        let mut some = [0u64; 512];
        let bits = some.len() as u64 * 64;
        let mut at = 0;
        while at < pages {
            let pages = (pages - at).min(bits);
            let count = pages.div_ceil(64) as usize;
            let from = words.wrapping_add((at / 64) as usize).cast::<u8>();
            // SAFETY: `pages` bits by contract, in whole words; ours has room for `count` of them.
            unsafe { from.copy_to_nonoverlapping(some.as_mut_ptr().cast::<u8>(), count * 8) };
            let address = guest_address.saturating_add(Pages(at).bytes().0);
            t.tracker
                .mark_words(GuestAddress(address), &some[..count], pages);
            at += pages;
        }
    })
}

/// `brant_tracker_mark` for `length` bytes at an offset in a block.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_mark_block(
    tracker: *const brant_tracker,
    block: u32,
    offset: u64,
    length: u64,
) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(t) = unsafe { tracker.as_ref() } {
            t.tracker.mark_block(BlockId(block), Bytes(offset), length);
        }
    })
}

/// `brant_tracker_mark` for `length` bytes at an address of this process, as device code has them (a
/// buffer, the parts of an iovec). Marks every block that has some of these bytes, and so each guest
/// address that shows them. Bytes that are in no block are ignored, and counted as one stray mark. A
/// block that was mapped a second time is known by the address that it was added with.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_mark_host(
    tracker: *const brant_tracker,
    host: *const c_void,
    length: u64,
) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        if let Some(t) = unsafe { tracker.as_ref() } {
            t.tracker.mark_host(host.cast(), length);
        }
    })
}

/// Starts tracking for the VMM, with BRANT_START_ALL or BRANT_START_CLEAN. Pages that were pending
/// for the VMM before are forgotten. A migration starts tracking by itself and does not need this
/// call.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_start(
    tracker: *mut brant_tracker,
    with: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(tracker, "tracker") }?.own.start(with)
    })
}

/// Stops tracking for the VMM, after a last harvest. Pages that are pending for the VMM stay so and
/// can be taken.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_stop(
    tracker: *mut brant_tracker,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(tracker, "tracker") }?.own.stop()
    })
}

/// Harvests all logs into pending, for the VMM and for every other consumer. `when` is
/// BRANT_SYNC_RUNNING or BRANT_SYNC_STOPPED. `report`, which gets the figures of the VMM as a
/// consumer, may be NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_sync(
    tracker: *mut brant_tracker,
    when: u32,
    report: *mut brant_sync,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let own = &unsafe { handle(tracker, "tracker") }?.own;
        // SAFETY: null or a structure by contract.
        unsafe { own.sync(when, report) }
    })
}

/// Takes runs of pages that are pending for the VMM, in the order of blocks and pages, from where
/// the last call ended. At most `capacity` runs are put into `runs`, and their number into
/// `*count`. The call restores the protection of a run's pages before it hands the run out, so a
/// later sync finds later writes: read the pages after the call has returned. 0 runs mean that the
/// walk has come to its end, and that the next call begins at the first block.
///
/// The runs are in use until the next take, until `brant_tracker_stop` or until
/// `brant_tracker_free`. While runs are in use, the removal of their blocks is BRANT_E_BUSY. A take
/// that hands out 0 runs ends the use as well. A take with a capacity of 0 ends the use too; it
/// takes nothing and leaves the walk where it is, and `runs` may then be NULL.
///
/// Example: a backup writes the last run that it took to its file, and has nothing else to take for
/// an hour. The backup calls this function with a capacity of 0. Before that call the block of the
/// run cannot be removed.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_take(
    tracker: *mut brant_tracker,
    runs: *mut brant_run,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let own = &unsafe { handle(tracker, "tracker") }?.own;
        // SAFETY: room for `capacity` runs and a place for their number by contract.
        unsafe { own.take(runs, capacity, count) }
    })
}

/// Makes taken pages pending for the VMM again, when they were not delivered. Works after
/// `brant_tracker_stop` too. Pages of a block that is gone are ignored. This call does not end the
/// use of runs (see `brant_tracker_take`).
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_put_back(
    tracker: *mut brant_tracker,
    block: u32,
    first_page: u64,
    pages: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let own = &unsafe { handle(tracker, "tracker") }?.own;
        own.put_back(block, first_page, pages)
    })
}

/// Fills in the tracker's totals.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_get_stats(
    tracker: *const brant_tracker,
    stats: *mut brant_tracker_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let handle = unsafe { handle(tracker, "tracker") }?;
        let (tracker, own) = (&handle.tracker, handle.own.consumer());
        let (now, ours) = (tracker.stats(), own.stats());
        let filled = brant_tracker_stats {
            size: 0,
            pending_pages: own.pending().0,
            syncs: now.syncs,
            found_pages: ours.found.0,
            clear_calls: now.clear_calls,
            cleared_pages: now.clear_bits,
            longest_clear_ns: now.longest_clear.as_nanos() as u64,
            put_back_pages: ours.put_back.0,
            stray_marks: tracker.stray_marks(),
            heap_bytes: tracker.heap_bytes(),
            chunk_shift: match tracker.clearing() {
                Clearing::Chunked { shift } => shift,
                Clearing::AtSync => 0,
            },
            started: u32::from(tracker.is_started()),
            ballooned_pages: now.ballooned.0,
            ballooned_written_pages: now.ballooned_written.0,
            hinted_pages: now.hinted.0,
            stale_hints: now.stale_hints,
        };
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &filled) }
    })
}
