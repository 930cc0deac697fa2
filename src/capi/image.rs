//! A guest in a file: saves and restores.

use super::chain::brant_image_chain;
use super::error::{brant_error, invalid, BRANT_E_INTERNAL};
use super::guest::brant_guest;
use super::ops::Ops;
use super::params::limit;
use super::stats::BRANT_UNKNOWN;
use super::structs::{free, handle, lent_fd, put, read, sized, write};
use super::tracker::brant_tracker;
use crate::error::Result;
use crate::snapshot::{Chain, Restore, RestoreParams, Save, SaveInstant, SaveParams, Stats};
use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

/// A save of a guest to a file: its memory as it is at one moment, and the blobs of `early_save`
/// and `save`. The guest runs while most pages are written, and stands still for the last pages.
/// One object is one save. Migrations, saves and restores of one guest exclude each other:
/// BRANT_E_BUSY.
///
/// The file gets its name when it is whole and on its device. Until then an older file of that name
/// stays. A save that fails or is cancelled leaves no file, and the guest runs on. A process that
/// is killed during a save leaves a file named `.brant-image-` and 16 hexadecimal digits, which
/// nobody reads.
///
/// Threads: any, several at once. `brant_image_save_cancel` may be called by any number of threads,
/// also while others wait, whose waits it ends. `brant_image_save_free` is the last call: all
/// others on it have returned before it begins. Inside a callback of the same save, waiting and
/// freeing are BRANT_E_CALLBACK, and cancelling only asks.
pub struct brant_image_save {
    save: Save,
}

/// A restore of a guest from a file that a save made, into a guest whose blocks match by name,
/// length and page size; `early_load` may add blocks. One object is one restore. A file that is
/// damaged, cut off or something else is BRANT_E_IMAGE, with the place in the file, what was
/// expected and what was found. A page with a wrong checksum never reaches guest memory. After a
/// failure no guest is here.
///
/// Threads: any, several at once. `brant_image_restore_cancel` may be called by any number of
/// threads, also while others wait, whose waits it ends. `brant_image_restore_free` is the last
/// call: all others on it have returned before it begins. Inside a callback of the same restore,
/// waiting and freeing are BRANT_E_CALLBACK, and cancelling only asks.
pub struct brant_image_restore {
    restore: Restore,
}

/// In `brant_image_save_params.guest`: the guest runs, is paused for the last pages and resumed.
pub const BRANT_IMAGE_RESUME: u32 = 0;
/// In `brant_image_save_params.guest`: the guest runs, is paused for the last pages and stays so.
/// After a failure or a cancel it is resumed. After a success the guest's state is
/// BRANT_GUEST_STANDS: call `brant_guest_runs_here` before the vCPUs run again.
pub const BRANT_IMAGE_STAY_PAUSED: u32 = 1;
/// In `brant_image_save_params.guest`: the guest is paused when the save is started and stays so.
/// Neither `pause` nor `resume` is called. Afterwards the guest's state is what it was before,
/// BRANT_GUEST_UNKNOWN or BRANT_GUEST_HERE, and the VMM starts the guest without a word to brant.
/// `kick` may be called from the end of the save on, and must leave a guest standing that the VMM
/// has paused. A guest that was BRANT_GUEST_STANDS or BRANT_GUEST_EMPTY before is
/// BRANT_GUEST_STANDS: call `brant_guest_runs_here` before the vCPUs run again.
pub const BRANT_IMAGE_ALREADY_PAUSED: u32 = 2;

/// In `brant_image_save_params.instant`, the default: the image holds the guest as it is at the end
/// of the save. Memory is written while the guest runs, what the guest writes meanwhile is written
/// again, and the guest is paused for the last pages.
pub const BRANT_IMAGE_INSTANT_END: u32 = 0;
/// In `brant_image_save_params.instant`: the image holds the guest as it is at the start of the save.
/// The guest is paused while its state is saved and its memory is protected from writes
/// (userfaultfd; Linux 5.19, and 5.7 for private memory), and runs on at once. A page that it writes
/// before the image has it is copied first. With BRANT_IMAGE_RESUME only.
///
/// Such a save sees writes through the block's own mapping: by vCPUs, by threads of this process,
/// and by the kernel for either. It fails before the pause with BRANT_E_UNSUPPORTED for a tracker
/// with a vhost, VFIO or iommufd log and for a guest with a VFIO or vhost-user device, and with
/// BRANT_E_EXISTS where another userfaultfd watches some of the memory. It is the VMM's duty that
/// nothing else writes guest memory through another mapping or past page tables until the save is
/// over: no other process, no DMA, no O_DIRECT or io_uring read into guest memory. Before guest
/// memory is discarded, call `brant_guest_before_discard`.
///
/// While such a save is in progress no block is removed (BRANT_E_BUSY). A block that is added after
/// the pause is not in the image.
pub const BRANT_IMAGE_INSTANT_START: u32 = 1;

/// In `brant_image_save_params.cache` and `brant_image_restore_params.cache`, the default: long
/// reads and writes go past the page cache (O_DIRECT), where the file system lets them.
pub const BRANT_IMAGE_DIRECT: u32 = 0;
/// In `brant_image_save_params.cache` and `brant_image_restore_params.cache`: everything goes
/// through the page cache. For an image that is restored soon on the same host.
pub const BRANT_IMAGE_CACHED: u32 = 1;

/// How a guest is saved. A field that is 0 has its default. A value out of range is
/// BRANT_E_INVALID, with the range in the message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_image_save_params {
    /// sizeof(brant_image_save_params).
    pub size: usize,
    /// Passes go on until the remaining pages can be written in half of this time; milliseconds, 1
    /// to 3600000; default 300. When the guest writes as fast as the disk, it is paused all the
    /// same.
    pub downtime_limit_ms: u64,
    /// After so many passes the guest is paused, however many pages remain; 1 to 1000; default
    /// 30.
    pub max_passes: u32,
    /// Threads that write; 1 to 64; default 2.
    pub writers: u32,
    /// BRANT_IMAGE_RESUME, BRANT_IMAGE_STAY_PAUSED or BRANT_IMAGE_ALREADY_PAUSED.
    pub guest: u32,
    /// BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED.
    pub cache: u32,
    /// Bytes of pages a second that are written while the guest runs, by all threads together; 64
    /// KiB/s to 1 TiB/s; default no cap. When the save has paused the guest, the rest is not capped.
    /// With BRANT_IMAGE_ALREADY_PAUSED and BRANT_IMAGE_INSTANT_START the cap holds to the end.
    pub max_bandwidth: u64,
    /// With BRANT_IMAGE_INSTANT_START: bytes of memory for copies of pages that the guest writes
    /// before the image has them; 1 MiB to 1 TiB; default 64 MiB. At the limit, threads of the guest
    /// wait until their pages are read. Each writer has buffers of 4 MiB besides.
    pub max_copy_bytes: u64,
    /// BRANT_IMAGE_INSTANT_END or BRANT_IMAGE_INSTANT_START.
    pub instant: u32,
    /// 0.
    pub reserved: u32,
    /// The chain of which the image becomes the next, or NULL: the image holds all of memory. The
    /// chain is of the same tracker, else BRANT_E_INVALID. It may be freed while the save is there.
    pub chain: *mut brant_image_chain,
}

/// How a guest is restored. A field that is 0 has its default. A value out of range is
/// BRANT_E_INVALID, with the range in the message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_image_restore_params {
    /// sizeof(brant_image_restore_params).
    pub size: usize,
    /// The most bytes of early configuration and device state that brant takes; 4 KiB to 1 TiB;
    /// default 256 MiB.
    pub max_state_bytes: u64,
    /// Threads that read; 1 to 64; default 4.
    pub readers: u32,
    /// BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED.
    pub cache: u32,
    /// BRANT_IMAGE_RESUME: `run` is called at the end. BRANT_IMAGE_STAY_PAUSED: `run` is not
    /// called, and the VMM starts the guest itself, after `brant_guest_runs_here`.
    pub guest: u32,
    /// 0: the guest starts when all of its memory is here. 1: the guest starts at once
    /// (BRANT_GUEST_INCOMPLETE), and a thread that touches a page of it waits until the page is here.
    /// In the background brant reads ahead through the file. The restore is over when all pages are
    /// here; `brant_image_restore_finish` brings them in faster. Needs a userfaultfd that is told of
    /// the kernel's own accesses (CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or access to
    /// /dev/userfaultfd) and memory that it can watch, which no other userfaultfd watches:
    /// BRANT_E_UNSUPPORTED or BRANT_E_EXISTS names the block and the reason, before the first page is
    /// touched. `load` and `run` may touch the guest's memory; `thread_start` must not.
    ///
    /// A page that is damaged in the file, or cannot be read, never becomes wrong memory. When it is
    /// found before `run`, the restore fails and no guest is here. When the guest may be running, an
    /// access of the page raises SIGBUS, as of memory that the hardware has lost (a vCPU's: in the
    /// thread that called KVM_RUN), a BRANT_EVENT_WARNING says so, and the restore fails with
    /// BRANT_E_IMAGE, or the code of the failed read, when all other pages are here. The guest's state
    /// is then BRANT_GUEST_HERE, and those pages count as declared lost.
    pub lazy: u32,
    /// 1: the VMM trusts the image: nobody cuts it or writes to it as long as this guest exists. The
    /// image's file is mapped privately (MAP_PRIVATE, MAP_FIXED) in place of the blocks' memory, and the
    /// guest starts at once. The kernel reads a page when it is touched, and nobody checks it: a damaged
    /// page is wrong memory, and the access of a page that was cut off raises SIGBUS. Advice that the VMM
    /// gave for the memory (madvise, mlock, mbind) ends, and pages that a device had pinned are not the
    /// guest's any more. Refused by name before anything is touched: BRANT_E_UNSUPPORTED for blocks of
    /// shared memory, of a file or of huge pages, for an image that holds what changed
    /// (`brant_image_merge` makes a full one), and for one of older software; BRANT_E_EXISTS for memory
    /// that a userfaultfd watches; BRANT_E_INVALID with `lazy`. `data_pages` and `zero_pages` stay 0.
    pub trusted: u32,
    /// 0.
    pub reserved: u32,
}

/// Not started.
pub const BRANT_IMAGE_IDLE: u32 = 0;
/// Save: making the file. Restore: opening it, comparing memory layouts.
pub const BRANT_IMAGE_PREPARING: u32 = 1;
/// Save: writing memory while the guest runs.
pub const BRANT_IMAGE_COPYING: u32 = 2;
/// Save: the guest is paused; its state is saved and the last pages are written.
pub const BRANT_IMAGE_PAUSED: u32 = 3;
/// Save: the last page is written; the file is made whole and gets its name.
pub const BRANT_IMAGE_FINISHING: u32 = 4;
/// Restore: memory is being read.
pub const BRANT_IMAGE_FILLING: u32 = 5;
/// Restore: the VMM loads its state.
pub const BRANT_IMAGE_LOADING: u32 = 6;
/// Restore: the VMM starts the guest.
pub const BRANT_IMAGE_STARTING: u32 = 7;
/// It is done.
pub const BRANT_IMAGE_COMPLETED: u32 = 8;
/// It failed, or was cancelled.
pub const BRANT_IMAGE_FAILED: u32 = 9;

/// The figures of a save or a restore. Times are nanoseconds, sizes bytes, pages 4 KiB.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_image_stats {
    /// sizeof(brant_image_stats).
    pub size: usize,
    /// The state: BRANT_IMAGE_*, from _IDLE to _FAILED.
    pub state: u32,
    /// Save: the pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// BRANT_E_*, why it failed; 0 if it has not failed.
    pub error: i32,
    /// How far it is, in hundredths of a percent, 0 to 10000. Never falls; 10000 once it has
    /// completed, and not before.
    pub progress: u32,
    /// The guest's memory.
    pub total_bytes: u64,
    /// Bytes of the guest's memory that remain to be written or read. May grow while a guest that
    /// is saved runs.
    pub remaining_bytes: u64,
    /// Pages with contents; a page that is written again counts again.
    pub data_pages: u64,
    /// Pages that are zero, ballooned ones included; they take no room in the file. A page that is
    /// named again counts again.
    pub zero_pages: u64,
    /// Save, of the zero pages: ballooned ones.
    pub ballooned_pages: u64,
    /// Save, of the zero pages: those whose contents the VMM has declared lost.
    pub poisoned_pages: u64,
    /// Bytes of early configuration and device state.
    pub state_bytes: u64,
    /// The length of the file; zero pages take no room on the disk. 0 until the length is known.
    pub file_bytes: u64,
    /// Since the start.
    pub elapsed_ns: u64,
    /// Save: how long the guest stood still, from the call of `pause` to the return of `resume`;
    /// BRANT_UNKNOWN before, and when brant did not call both.
    pub downtime_ns: u64,
    /// Restore with `lazy`: pages that a thread waited for. All others were here before.
    pub urgent_pages: u64,
    /// Restore with `lazy`: pages that are damaged in the image, or could not be read, and that the
    /// guest runs without.
    pub lost_pages: u64,
    /// Restore with `lazy`: page faults, those on pages that were here included. Save with
    /// BRANT_IMAGE_INSTANT_START: how often a thread waited because it touched a page that the image
    /// did not have yet.
    pub faults: u64,
    /// Restore with `lazy`: half of the waits for a page were no longer, to an eighth. 0 without a
    /// wait.
    pub fault_p50_ns: u64,
    /// Restore with `lazy`: 99 of 100 waits for a page were no longer, to an eighth.
    pub fault_p99_ns: u64,
    /// Restore with `lazy`: the longest wait for a page.
    pub fault_max_ns: u64,
    /// Save with BRANT_IMAGE_INSTANT_START: how long protecting memory took, which is part of
    /// `downtime_ns`; BRANT_UNKNOWN before that, and in other saves.
    pub protecting_ns: u64,
    /// Save with BRANT_IMAGE_INSTANT_START, of the data pages: those that were copied because the
    /// guest wrote them first, or the pages before them.
    pub copied_pages: u64,
    /// Save with BRANT_IMAGE_INSTANT_START, of the faults: those that waited for a buffer or the disk,
    /// because there was no room for a copy.
    pub held_faults: u64,
}

sized!(
    brant_image_save_params,
    brant_image_restore_params,
    brant_image_stats
);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(BRANT_UNKNOWN - 1)
}

impl From<&Stats> for brant_image_stats {
    fn from(stats: &Stats) -> Self {
        brant_image_stats {
            size: size_of::<Self>(),
            state: stats.state as u32,
            pass: stats.pass,
            error: stats.error.map_or(0, |kind| kind as i32),
            progress: stats.progress,
            total_bytes: stats.total_bytes,
            remaining_bytes: stats.remaining_bytes,
            data_pages: stats.data_pages,
            zero_pages: stats.zero_pages,
            ballooned_pages: stats.ballooned_pages,
            poisoned_pages: stats.poisoned_pages,
            state_bytes: stats.state_bytes,
            file_bytes: stats.file_bytes,
            elapsed_ns: nanos(stats.elapsed),
            downtime_ns: stats.downtime.map_or(BRANT_UNKNOWN, nanos),
            urgent_pages: stats.urgent_pages,
            lost_pages: stats.lost_pages,
            faults: stats.faults,
            fault_p50_ns: nanos(stats.fault_p50),
            fault_p99_ns: nanos(stats.fault_p99),
            fault_max_ns: nanos(stats.fault_max),
            protecting_ns: stats.protecting.map_or(BRANT_UNKNOWN, nanos),
            copied_pages: stats.copied_pages,
            held_faults: stats.held_faults,
        }
    }
}

fn direct(cache: u32) -> Result<bool> {
    match cache {
        BRANT_IMAGE_DIRECT => Ok(true),
        BRANT_IMAGE_CACHED => Ok(false),
        other => Err(invalid(format!(
            "cache is BRANT_IMAGE_DIRECT (0) or BRANT_IMAGE_CACHED (1), not {other}"
        ))),
    }
}

fn or<T: PartialEq + Default>(value: T, default: T) -> T {
    if value == T::default() {
        default
    } else {
        value
    }
}

/// # Safety
/// Null or a structure as its size says.
unsafe fn save_params(from: *const brant_image_save_params) -> Result<SaveParams> {
    let mut params = SaveParams::default();
    if from.is_null() {
        return Ok(params);
    }
    // SAFETY: the caller's contract.
    let p = unsafe { read(from) }?;
    if p.guest > BRANT_IMAGE_ALREADY_PAUSED {
        return Err(invalid(format!(
            "guest is BRANT_IMAGE_RESUME (0), BRANT_IMAGE_STAY_PAUSED (1) or \
             BRANT_IMAGE_ALREADY_PAUSED (2), not {}",
            p.guest
        )));
    }
    let limit = or(
        p.downtime_limit_ms,
        params.downtime_limit.as_millis() as u64,
    );
    params.downtime_limit = Duration::from_millis(limit);
    params.max_passes = or(p.max_passes, params.max_passes);
    params.writers = or(p.writers, params.writers);
    params.max_bandwidth = (p.max_bandwidth != 0).then_some(p.max_bandwidth);
    if p.reserved != 0 {
        return Err(invalid("brant_image_save_params.reserved is not 0"));
    }
    params.instant = match p.instant {
        BRANT_IMAGE_INSTANT_END => SaveInstant::End,
        BRANT_IMAGE_INSTANT_START => SaveInstant::Start,
        other => {
            return Err(invalid(format!(
                "instant is BRANT_IMAGE_INSTANT_END (0) or BRANT_IMAGE_INSTANT_START (1), not \
                 {other}"
            )))
        }
    };
    params.max_copy_bytes = or(p.max_copy_bytes, params.max_copy_bytes);
    params.stay_paused = p.guest == BRANT_IMAGE_STAY_PAUSED;
    params.already_paused = p.guest == BRANT_IMAGE_ALREADY_PAUSED;
    params.direct = direct(p.cache)?;
    Ok(params)
}

/// The chain in the parameters.
///
/// # Safety
/// Null or a structure as its size says, whose chain is null or lives for `'a`.
unsafe fn chain_of<'a>(from: *const brant_image_save_params) -> Result<Option<&'a Chain>> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract.
    let chain = unsafe { read(from) }?.chain;
    match chain.is_null() {
        true => Ok(None),
        // SAFETY: the caller's contract.
        false => Ok(Some(&unsafe { handle(chain, "chain") }?.chain)),
    }
}

/// # Safety
/// Null or a structure as its size says.
unsafe fn restore_params(from: *const brant_image_restore_params) -> Result<RestoreParams> {
    let mut params = RestoreParams::default();
    if from.is_null() {
        return Ok(params);
    }
    // SAFETY: the caller's contract.
    let p = unsafe { read(from) }?;
    if p.lazy > 1 {
        return Err(invalid(format!(
            "brant_image_restore_params.lazy is 0 or 1, not {}",
            p.lazy
        )));
    }
    if p.trusted > 1 || p.reserved != 0 {
        return Err(invalid(format!(
            "brant_image_restore_params.trusted is 0 or 1, not {}, and reserved is 0, not {}",
            p.trusted, p.reserved
        )));
    }
    if p.guest > BRANT_IMAGE_STAY_PAUSED {
        return Err(invalid(format!(
            "guest is BRANT_IMAGE_RESUME (0) or BRANT_IMAGE_STAY_PAUSED (1), not {}",
            p.guest
        )));
    }
    params.max_state_bytes = or(p.max_state_bytes, params.max_state_bytes);
    params.readers = or(p.readers, params.readers);
    params.stay_paused = p.guest == BRANT_IMAGE_STAY_PAUSED;
    params.direct = direct(p.cache)?;
    params.lazy = p.lazy == 1;
    params.trusted = p.trusted == 1;
    Ok(params)
}

/// Makes a save of the guest that `tracker` was made from. The operations of that guest must have
/// `pause` and `resume`, except with BRANT_IMAGE_ALREADY_PAUSED: else BRANT_E_INVALID. `parameters`
/// may be NULL for the defaults. Nothing happens before the start.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_new(
    tracker: *mut brant_tracker,
    parameters: *const brant_image_save_params,
    save: *mut *mut brant_image_save,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        // SAFETY: null or a structure by contract.
        let params = unsafe { save_params(parameters) }?;
        if !params.already_paused {
            tracker.ops.check_source()?;
        }
        if save.is_null() {
            return Err(invalid("save is NULL"));
        }
        // SAFETY: null or a structure by contract, and a chain in it null or ours.
        let chain = unsafe { chain_of(parameters) }?;
        let (blockers, ops) = (tracker.blockers.clone(), Arc::<Ops>::clone(&tracker.ops));
        let made = Box::new(brant_image_save {
            save: match chain {
                None => Save::new(Arc::clone(&tracker.tracker), blockers, ops, params)?,
                Some(chain) if Arc::ptr_eq(chain.tracker(), &tracker.tracker) => {
                    Save::in_chain(chain, blockers, ops, params)?
                }
                Some(_) => {
                    return Err(invalid(
                        "brant_image_save_params.chain was made of another tracker",
                    ))
                }
            },
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(save, "save", Box::into_raw(made)) }
    })
}

/// Cancels a save that is in progress, waits for its end, and frees it; NULL is fine. Returns 0, or
/// BRANT_E_CALLBACK inside one of the save's own callbacks, where nothing is freed.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_free(save: *mut brant_image_save) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null, or from Box::into_raw above and not freed before, by contract.
        unsafe { free(save, |object| object.save.in_callback()) }
    })
}

/// Starts the save to `path` and returns at once. A regular file at `path` is replaced when the
/// image is whole; anything else at `path` is refused. The image needs room beside the file that it
/// replaces. Only its owner may read and write the image, because it holds all contents of the
/// guest's memory. BRANT_E_BUSY, BRANT_E_STATE or BRANT_E_BLOCKED when the guest cannot be saved
/// now. BRANT_E_INVALID for an empty path.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_start(
    save: *mut brant_image_save,
    path: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let save = unsafe { handle(save, "save") }?;
        // SAFETY: null or a string by contract.
        save.save.start(unsafe { super::structs::path(path) }?)
    })
}

/// Ends the save and returns when the guest runs on and the file is gone: within 100 ms, unless a
/// callback or a kernel call is in progress; a callback of a device is asked to return
/// (`brant_device.cancel`). Inside one of its own callbacks the call only asks for
/// the end. A save that has ended stays as it is.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_cancel(
    save: *mut brant_image_save,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(save, "save") }?.save.cancel();
        Ok(())
    })
}

/// Waits until the save is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever;
/// 0: not at all). Returns 0 if the image is whole, has its name and is on its device,
/// BRANT_E_PENDING if the save is still in progress, else the code that says why it failed. After a
/// failure there is no image, and the guest runs on. (If `resume` itself failed, the guest stands
/// still: BRANT_GUEST_STANDS.) A directory that does not exist is BRANT_E_NOT_FOUND. A disk without
/// room is BRANT_E_KERNEL, with the system's words and the place in the file. One failure leaves
/// the image whole and with its name, in place of the older file: the sync of its directory. The
/// error says so; a crash of the host may undo the rename.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_wait(
    save: *mut brant_image_save,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let save = unsafe { handle(save, "save") }?;
        save.save.wait(limit(timeout_ms))
    })
}

/// Fills in the figures as they are now. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_get_stats(
    save: *const brant_image_save,
    stats: *mut brant_image_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let now = unsafe { handle(save, "save") }?.save.stats();
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// An eventfd that becomes readable when the figures have changed, for poll; reading it resets it.
/// The descriptor stays the save's: do not close it. A negative code if `save` is NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_image_save_event_fd(save: *const brant_image_save) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        unsafe { lent_fd(save, |object| object.save.notify_fd()) }
    })
}

/// Makes a restore into `guest`, whose operations must have `run`: else BRANT_E_INVALID. The
/// operations need `load` too if the image holds device state, and `early_load` if it holds early
/// configuration. `parameters` may be NULL for the defaults. Nothing happens before the start.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_new(
    guest: *mut brant_guest,
    parameters: *const brant_image_restore_params,
    restore: *mut *mut brant_image_restore,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a structure by contract.
        let params = unsafe { restore_params(parameters) }?;
        if !params.stay_paused {
            guest.ops.check_destination()?;
        }
        if restore.is_null() {
            return Err(invalid("restore is NULL"));
        }
        let made = Box::new(brant_image_restore {
            restore: Restore::new(
                Arc::clone(&guest.memory),
                Arc::<Ops>::clone(&guest.ops),
                params,
            )?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(restore, "restore", Box::into_raw(made)) }
    })
}

/// Cancels a restore that is in progress, waits for its end, and frees it; NULL is fine. A guest
/// that runs here runs on: when it was started before its memory was here, the call first brings in
/// the rest, as `brant_image_restore_finish` does. Returns 0, or BRANT_E_CALLBACK inside one of the restore's own
/// callbacks, where nothing is freed.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_free(restore: *mut brant_image_restore) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null, or from Box::into_raw above and not freed before, by contract.
        unsafe { free(restore, |object| object.restore.in_callback()) }
    })
}

/// Starts the restore from the image at `path`, and returns at once. BRANT_E_BUSY or BRANT_E_STATE
/// when another migration, save or restore of the guest is in progress, or when a guest is here.
/// BRANT_E_INVALID for an empty path.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_start(
    restore: *mut brant_image_restore,
    path: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let restore = unsafe { handle(restore, "restore") }?;
        // SAFETY: null or a string by contract.
        restore
            .restore
            .start(unsafe { super::structs::path(path) }?)
    })
}

/// Ends the restore and returns when its threads have ended: within 100 ms, unless a callback or a
/// kernel call is in progress; a callback of a device is asked to return (`brant_device.cancel`). Inside one of its own callbacks the call only asks for the end. A
/// restore that has ended stays as it is; brant_image_restore_wait says whether the guest runs.
///
/// When the guest was started before its memory was here (`brant_image_restore_params.lazy`), the
/// pages that are not here are given up, and an access of one ends as after brant_incoming_give_up:
/// SIGBUS in a thread, EFAULT in a system call, in KVM_RUN EFAULT or KVM_EXIT_MMIO at an address of
/// RAM. So cancel such a restore only when nobody needs the guest.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_cancel(
    restore: *mut brant_image_restore,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(restore, "restore") }?.restore.cancel();
        Ok(())
    })
}

/// Waits until the restore is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
/// ever; 0: not at all). Returns 0 if the guest runs here (or stands still, with
/// BRANT_IMAGE_STAY_PAUSED), BRANT_E_PENDING if the restore is still in progress, else the code
/// that says why it failed: BRANT_E_NOT_FOUND when there is no file, BRANT_E_IMAGE,
/// BRANT_E_VERSION, BRANT_E_LAYOUT and others. After a
/// failure no guest is here, unless `run` itself failed: BRANT_GUEST_STANDS.
///
/// With `brant_image_restore_params.lazy` the restore is in progress, and the call BRANT_E_PENDING,
/// until all pages are here, although the guest runs by then. When a page is lost after `run` was
/// called, the restore fails and the guest stays: the guest state is BRANT_GUEST_HERE.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_wait(
    restore: *mut brant_image_restore,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let restore = unsafe { handle(restore, "restore") }?;
        restore.restore.wait(limit(timeout_ms))
    })
}

/// Brings in the rest of a guest that was started before its memory was here
/// (`brant_image_restore_params.lazy`), with all of the restore's readers, and waits as
/// brant_image_restore_wait does. Without this call the rest comes in by one reader, which leaves
/// processor and disk to the pages that the guest waits for. For another restore, and before the
/// guest was started, the call only waits; the hurry then begins with the guest.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_finish(
    restore: *mut brant_image_restore,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let restore = unsafe { handle(restore, "restore") }?;
        restore.restore.finish(limit(timeout_ms))
    })
}

/// Fills in the figures as they are now. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_get_stats(
    restore: *const brant_image_restore,
    stats: *mut brant_image_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let now = unsafe { handle(restore, "restore") }?.restore.stats();
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// An eventfd that becomes readable when the restore enters another state, for poll; reading it
/// resets it. The descriptor stays the restore's: do not close it. A negative code if `restore` is
/// NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_image_restore_event_fd(restore: *const brant_image_restore) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        unsafe { lent_fd(restore, |object| object.restore.notify_fd()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::State;

    #[test]
    fn the_numbers_of_states_are_those_of_the_header() {
        let numbers = [
            (State::Idle, BRANT_IMAGE_IDLE),
            (State::Preparing, BRANT_IMAGE_PREPARING),
            (State::Copying, BRANT_IMAGE_COPYING),
            (State::Paused, BRANT_IMAGE_PAUSED),
            (State::Finishing, BRANT_IMAGE_FINISHING),
            (State::Filling, BRANT_IMAGE_FILLING),
            (State::Loading, BRANT_IMAGE_LOADING),
            (State::Starting, BRANT_IMAGE_STARTING),
            (State::Completed, BRANT_IMAGE_COMPLETED),
            (State::Failed, BRANT_IMAGE_FAILED),
        ];
        for (state, number) in numbers {
            assert_eq!(state as u32, number);
        }
    }
}
