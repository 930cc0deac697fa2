//! A guest is saved to a file.

use super::chain::brant_image_chain;
use super::error::{brant_error, invalid, BRANT_E_INTERNAL};
use super::image::{brant_image_stats, direct, or};
use super::ops::Ops;
use super::params::limit;
use super::structs::{free, handle, lent_fd, path_of, put, read, sized, write};
use super::tracker::brant_tracker;
use crate::error::Result;
use crate::snapshot::{Chain, Save, SaveInstant, SaveParams};
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

sized!(brant_image_save_params);

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
        save.save.start(unsafe { path_of(path, "path") }?)
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
