//! Images of a chain become one full image, and any image is described. Neither needs a guest.

use super::error::{brant_error, invalid, BRANT_E_INTERNAL};
use super::image::{brant_image_stats, direct};
use super::params::limit;
use super::structs::{check_room, handle, lent_fd, path_of, put, put_text, read, sized, write};
use crate::error::Result;
use crate::snapshot::{Merge, MergeParams};
use std::ffi::c_char;

/// A merge of an image and those before it into one full image, as `brant_image_merge` makes it, on a
/// thread of its own. One object is one merge. No guest is needed, and no callback is called: the thread
/// (`brant-snapshot`) has all signals masked.
///
/// The new file gets its name when it is whole and on its device. Until then an older file of that name
/// stays. A merge that fails or is cancelled leaves no file.
///
/// Threads: any, several at once. `brant_image_merging_cancel` may be called by any number of threads, also
/// while others wait, whose waits it ends. `brant_image_merging_free` is the last call: all others on it
/// have returned before it begins.
pub struct brant_image_merging {
    merge: Merge,
}

/// How images are merged. A field that is 0 has its default. A value out of range is BRANT_E_INVALID, with
/// the range in the message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_image_merge_params {
    /// sizeof(brant_image_merge_params).
    pub size: usize,
    /// BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED.
    pub cache: u32,
    /// 0.
    pub reserved: u32,
}

sized!(brant_image_merge_params);

/// # Safety
/// Null or a structure as its size says.
unsafe fn merge_params(from: *const brant_image_merge_params) -> Result<MergeParams> {
    let mut params = MergeParams::default();
    if from.is_null() {
        return Ok(params);
    }
    // SAFETY: the caller's contract.
    let p = unsafe { read(from) }?;
    if p.reserved != 0 {
        return Err(invalid(format!(
            "brant_image_merge_params.reserved is 0, not {}",
            p.reserved
        )));
    }
    params.direct = direct(p.cache)?;
    Ok(params)
}

/// Makes a merge. `parameters` may be NULL for the defaults. Nothing happens before the start.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_new(
    parameters: *const brant_image_merge_params,
    merging: *mut *mut brant_image_merging,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let params = unsafe { merge_params(parameters) }?;
        if merging.is_null() {
            return Err(invalid("merging is NULL"));
        }
        let made = Box::new(brant_image_merging {
            merge: Merge::new(params)?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(merging, "merging", Box::into_raw(made)) }
    })
}

/// Cancels a merge that is in progress, waits for its end, and frees it; NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_free(merging: *mut brant_image_merging) {
    boundary!(or(), {
        if !merging.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(merging) });
        }
    })
}

/// Starts to make one full image, which gets the name `to`, of the image at the path `image` and those
/// before it, and returns at once. What is found out about the files is an error of
/// `brant_image_merging_wait`, with the codes of `brant_image_merge`. BRANT_E_STATE for a merge that was
/// started before; BRANT_E_CANCELLED after `brant_image_merging_cancel`; BRANT_E_INVALID for an empty path.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_start(
    merging: *mut brant_image_merging,
    image: *const c_char,
    to: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let merging = unsafe { handle(merging, "merging") }?;
        // SAFETY: null or strings by contract.
        let (image, to) = unsafe { (path_of(image, "image")?, path_of(to, "to")?) };
        merging.merge.start(image, to)
    })
}

/// Ends the merge and returns when its file is gone: within 100 ms, unless a kernel call is in progress. A
/// merge that has ended stays as it is.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_cancel(
    merging: *mut brant_image_merging,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(merging, "merging") }?.merge.cancel();
        Ok(())
    })
}

/// Waits until the merge is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever; 0: not
/// at all). Returns 0 if the new image is whole, has its name and is on its device, BRANT_E_PENDING if the
/// merge is still in progress, else the code that says why it failed: those of `brant_image_merge`, and
/// BRANT_E_CANCELLED.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_wait(
    merging: *mut brant_image_merging,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let merging = unsafe { handle(merging, "merging") }?;
        merging.merge.wait(limit(timeout_ms))
    })
}

/// Fills in the figures as they are now: `state` is BRANT_IMAGE_IDLE, _PREPARING, _COPYING (pages are
/// written), _FINISHING, _COMPLETED or _FAILED; `progress`, the sizes, `data_pages`, `zero_pages` and
/// `elapsed_ns` are those of the merge. All other figures are 0, and times that are unknown are
/// BRANT_UNKNOWN. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_get_stats(
    merging: *const brant_image_merging,
    stats: *mut brant_image_stats,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let now = unsafe { handle(merging, "merging") }?.merge.stats();
        // SAFETY: null or a structure by contract.
        unsafe { write(stats, &(&now).into()) }
    })
}

/// An eventfd that becomes readable when the figures have changed, for poll; reading it resets it. The
/// descriptor stays the merge's: do not close it. A negative code if `merging` is NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merging_event_fd(merging: *const brant_image_merging) -> i32 {
    boundary!(or BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        unsafe { lent_fd(merging, |object| object.merge.notify_fd()) }
    })
}

/// Makes one full image, which gets the name `to`, of the image at the path `image` and those before it:
/// the guest at the moment of that image. Needs no guest, and returns when the new image is whole and on
/// its device: all pages are read, checked and written in this call, which nothing can end
/// (`brant_image_merging` can be watched and cancelled). Any thread. `to` may be `image` itself, whose file
/// is replaced; images that hold what changed since are of no use then.
///
/// BRANT_E_NOT_FOUND, BRANT_E_IMAGE or BRANT_E_VERSION, with the image's path, when an image is not
/// there, is damaged, or is not the one that belongs there; BRANT_E_INVALID when `to` is an image before
/// `image`; BRANT_E_KERNEL for a full disk. There is no new file then.
#[no_mangle]
pub unsafe extern "C" fn brant_image_merge(
    image: *const c_char,
    to: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or strings by contract.
        let (image, to) = unsafe { (path_of(image, "image")?, path_of(to, "to")?) };
        crate::snapshot::merge(image, to)
    })
}

/// Describes the image at `path` as one JSON object, without a guest. Header, index and the file's tables
/// of checksums are read and checked; pages and state are not. The text in `buffer` is NUL-terminated and
/// cut to `capacity` bytes; `*needed` (may be NULL) gets the bytes that the whole text takes, with its NUL. 64 KiB are
/// enough for an image of some hundred blocks and states. Any thread.
///
/// Sizes are bytes, pages 4 KiB; what is unknown is null. A reader ignores fields that it does not know.
///
/// - `kind`: "full", or "changes" for an image that holds what changed since the image before; `format`: the
///   version of the format; `id` and `checksum`: the image's random number and the checksum of its header,
///   which covers all other checksums, in hexadecimal;
/// - `complete`: whether the file and all images before it are there and belong together; `problem`: why
///   not, or null; `mappable`: whether a VMM that trusts the image can map it
///   (`brant_image_restore_params.trusted`);
/// - `file_bytes`; `disk_bytes`: what the file takes on its disk; `memory_bytes`: the guest's memory;
///   `state_bytes`: the VMM's state;
/// - `blocks`: of each `name`, `bytes`, `page_size`, `rom`, `offset` (in the file), `data_pages` (in the
///   file), `zero_pages` (holes of the file), `unchanged_pages` (as in the image before);
/// - `states`: of each `kind` ("early", "device" or "state"), `name`, `instance`, `version`, `bytes`;
/// - `parents`: the images before it, the newest first, each with `file` (its name in the same directory),
///   `found`, `id`, `checksum`, `file_bytes`.
///
/// BRANT_E_NOT_FOUND when there is no file, BRANT_E_IMAGE for one that is no image, is not whole or is
/// damaged in its header or index, BRANT_E_VERSION for one of a format that this library does not read.
///
/// Experimental: fields may be added.
#[no_mangle]
pub unsafe extern "C" fn brant_image_describe(
    path: *const c_char,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a string by contract.
        let path = unsafe { path_of(path, "path") }?;
        check_room(buffer, capacity)?;
        let json = crate::snapshot::describe(path)?.to_json()?;
        // SAFETY: a buffer of that capacity and a place for a number, by contract.
        unsafe { put_text(&json, buffer, capacity, needed) }
    })
}
