//! A guest is restored from a file.

use super::error::{brant_error, invalid, BRANT_E_INTERNAL};
use super::guest::brant_guest;
use super::image::{brant_image_stats, direct, or};
use super::image_save::BRANT_IMAGE_STAY_PAUSED;
use super::ops::Ops;
use super::params::limit;
use super::structs::{free, handle, lent_fd, path_of, put, read, sized, write};
use crate::error::Result;
use crate::snapshot::{Restore, RestoreParams};
use std::ffi::c_char;
use std::sync::Arc;

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

sized!(brant_image_restore_params);

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
    if p.trusted > 1 {
        return Err(invalid(format!(
            "brant_image_restore_params.trusted is 0 (pages are read and checked) or 1 (the image's file \
             is mapped as memory, and nobody checks it), not {}",
            p.trusted
        )));
    }
    if p.reserved != 0 {
        return Err(invalid(format!(
            "brant_image_restore_params.reserved is 0, not {}",
            p.reserved
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
        let path = unsafe { path_of(path, "path") }?;
        restore.restore.start(path)
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
