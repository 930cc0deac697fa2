//! Devices whose state a migration streams.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::ops::{brant_reason, call_back};
use super::structs::{handle, read, sized, text};
use crate::error::Result;
use crate::vmm::device::{Device, Left};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// In `brant_device_left.stopped`: the device does not know.
pub const BRANT_LEFT_UNKNOWN: u64 = u64::MAX;

/// How much state a device has left to give, filled by `left`. All fields but `size` are 0 before the
/// call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_device_left {
    /// sizeof(brant_device_left) in brant's version; the callback may leave it.
    pub size: usize,
    /// Bytes that the destination has to load before the guest is paused, and that `read_running`
    /// has not given yet. They are a part of `running`. The guest is not paused before this is 0
    /// and the destination has loaded all that was given until then. There may be such bytes again
    /// later, and after an aborted pause: they are waited for in the same way.
    pub initial: u64,
    /// Bytes that `read_running` would give now.
    pub running: u64,
    /// Bytes that only `read_stopped` gives, if the device stopped now, without those of `running`;
    /// BRANT_LEFT_UNKNOWN counts as 0.
    pub stopped: u64,
}

/// A device whose state a migration streams: a part of it while the guest runs, and the rest in
/// pieces after the pause, over all connections. Small state belongs into `save`.
///
/// The state is the sequence of the bytes that `read_running` and then `read_stopped` give. Whatever
/// `read_running` has not given, `read_stopped` gives: a device may be stopped at any time, and a
/// save to an image never calls `read_running`.
///
/// Order at the source: `begin` of every device before the first page; `left` and `read_running`
/// while the guest runs; the VMM's `pause`; `quiesce` of every device; `stop` of every device; a sync
/// of all dirty logs; the VMM's `save`; the last sync; `read_stopped` of one device after the other.
/// When the pause is aborted or the migration fails: `wake` of every device that was quiesced,
/// `resume` of each, the VMM's `resume`. `end` comes last, whatever the outcome. Rounds of
/// `read_running` go on after an aborted pause.
///
/// Order at the destination: `load_running` while memory arrives. When all of memory is here:
/// `load_stopped` of one device after the other, in the order in which the source added them; the
/// VMM's `load` of all blobs; `loaded` of every device; the VMM's `loaded`. After the hand-over:
/// `wake` of every device, `run` of each, the VMM's `run`. When the migration fails before that:
/// `reset` of every device.
///
/// Each callback that returns int32_t returns 0, or anything else for a failure whose reason it may
/// set (brant_reason_set). It gets `opaque` first.
///
/// Threads: at the source one call at a time, on the migration's thread; `wake` and `resume` after
/// brant_outgoing_resolve on its caller's. At the destination `load_running` and `load_stopped` run
/// on any thread of the migration, one at a time for one device, those of different devices at the
/// same time. `cancel` runs on any thread, at any time. In all others all signals are masked. They
/// may block, and delay the migration by that. A callback must add and remove no blocks, and wait for
/// no object that called it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_device {
    /// sizeof(brant_device).
    pub size: usize,
    /// 1 to 128 bytes of UTF-8 without control characters; copied. Name and `instance` together name
    /// the device at both sides.
    pub name: *const c_char,
    /// Passed to each callback.
    pub opaque: *mut c_void,
    /// Tells devices of one name apart.
    pub instance: u32,
    /// The version of the format of the state, by the device's own numbering. A destination with
    /// another version refuses the migration before the first page.
    pub version: u32,
    /// Source: a migration begins. NULL: nothing to do.
    pub begin: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Source: fills how much is left. Called before each round of reads, and after a pause. NULL:
    /// the device has no running part, and does not know the size of the stopped one.
    pub left:
        Option<unsafe extern "C" fn(*mut c_void, *mut brant_device_left, *mut brant_reason) -> i32>,
    /// Source, guest running: puts at most `length` bytes into `buffer` and their number into
    /// `*read`, which is 0 before; 0 when there is nothing now. NULL: the device has no running
    /// part.
    pub read_running: Option<
        unsafe extern "C" fn(*mut c_void, *mut c_void, usize, *mut usize, *mut brant_reason) -> i32,
    >,
    /// Source, after `pause`: begin nothing that reaches another device, but still answer others. A
    /// device may write guest memory until its `stop` has returned. NULL: nothing to do.
    pub quiesce: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Source, all devices quiesced: stop, and write no guest memory from the return on. Required at
    /// a source.
    pub stop: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Source, stopped: as `read_running`; 0 bytes are the end of the state. Required at a source.
    pub read_stopped: Option<
        unsafe extern "C" fn(*mut c_void, *mut c_void, usize, *mut usize, *mut brant_reason) -> i32,
    >,
    /// Source before `resume`, destination before `run`: answer other devices, and begin nothing
    /// yet. NULL: nothing to do.
    pub wake: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Source: run on, after an aborted pause or a failure. Once after each `quiesce` or `stop`,
    /// whether or not that succeeded, unless the guest went away. Required at a source.
    pub resume: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Source: the migration is over, whatever its outcome. Once after each `begin`. After an
    /// unanswered hand-over `wake` and `resume` may still follow. NULL: nothing to do.
    pub end: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Destination: takes the next bytes of the running part, in the source's order and divided in
    /// any way. Must not write guest memory, and must not depend on another device. Required at a
    /// destination when the source's device has a running part.
    pub load_running:
        Option<unsafe extern "C" fn(*mut c_void, *const c_void, usize, *mut brant_reason) -> i32>,
    /// Destination: takes the next bytes of the stopped part. All of memory is here. Required at a
    /// destination.
    pub load_stopped:
        Option<unsafe extern "C" fn(*mut c_void, *const c_void, usize, *mut brant_reason) -> i32>,
    /// Destination: all state of all devices is here. A failure is the last chance to refuse the
    /// guest. NULL: nothing to do.
    pub loaded: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Destination: the guest is this side's; run. Required at a destination. When `wake` or `run` of
    /// one device fails, no further device and no VMM's `run` is called, and brant calls no `reset`:
    /// stop the devices that run by then before the source takes the guest back
    /// (BRANT_RESOLVE_RESUME).
    pub run: Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>,
    /// Destination: the migration failed. Drop what was loaded, so that another can begin. NULL:
    /// nothing to do.
    pub reset: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Either side: the migration, save or restore was cancelled, or a timeout of the migration has
    /// passed during a callback of a device. A callback of this device that is in progress should
    /// return soon, with any failure: the cancel waits for it, and the timeout holds no sooner. Called
    /// once, on the thread that cancels or on one of brant's (BRANT_ROLE_WATCH), at the same time as any
    /// other callback; must not block, and must call nothing of the migration.
    /// Comes between `begin` and `end`, or before `run` or `reset`, and never after the hand-over.
    /// NULL: nothing to do.
    pub cancel: Option<unsafe extern "C" fn(*mut c_void)>,
}

sized!(brant_device, brant_device_left);

struct OfC {
    table: brant_device,
}

// SAFETY: the VMM gave table and opaque for use on brant's threads; that is the contract of
// `brant_device`.
unsafe impl Send for OfC {}
// SAFETY: as above; the structure says on which threads each callback runs.
unsafe impl Sync for OfC {}

type Plain = Option<unsafe extern "C" fn(*mut c_void, *mut brant_reason) -> i32>;
type Read = Option<
    unsafe extern "C" fn(*mut c_void, *mut c_void, usize, *mut usize, *mut brant_reason) -> i32,
>;
type Load =
    Option<unsafe extern "C" fn(*mut c_void, *const c_void, usize, *mut brant_reason) -> i32>;

impl OfC {
    fn plain(&self, f: Plain) -> Result<()> {
        match f {
            // SAFETY: the VMM's function, called as the structure says.
            Some(f) => call_back(self.table.opaque, |o, reason| unsafe { f(o, reason) }),
            None => Ok(()),
        }
    }

    fn required(&self, f: Plain, name: &str) -> Result<()> {
        match f {
            None => Err(has_none(name)),
            f => self.plain(f),
        }
    }

    fn read(&self, f: Read, name: &str, buffer: &mut [u8]) -> Result<usize> {
        let f = f.ok_or_else(|| has_none(name))?;
        let mut read = 0;
        let (at, length) = (buffer.as_mut_ptr().cast(), buffer.len());
        call_back(self.table.opaque, |o, reason| {
            // SAFETY: the VMM's function, called as the structure says; buffer and number outlive
            // the call.
            unsafe { f(o, at, length, &mut read, reason) }
        })?;
        Ok(read)
    }

    fn load(&self, f: Load, name: &str, data: &[u8]) -> Result<()> {
        let f = f.ok_or_else(|| has_none(name))?;
        call_back(self.table.opaque, |o, reason| {
            // SAFETY: the VMM's function, called as the structure says; the data outlive the call.
            unsafe { f(o, data.as_ptr().cast(), data.len(), reason) }
        })
    }
}

/// The first callback that `table` lacks for a source.
fn source_lacks(table: &brant_device) -> Option<&'static str> {
    let required = [
        ("stop", table.stop.is_some()),
        ("read_stopped", table.read_stopped.is_some()),
        ("resume", table.resume.is_some()),
    ];
    let lacking = required.into_iter().find(|(_, there)| !there);
    lacking.map(|(name, _)| name)
}

fn has_none(name: &str) -> crate::error::Error {
    crate::error::Error::new(
        crate::error::Kind::Vmm,
        format!("brant_device.{name} is NULL"),
    )
}

impl Device for OfC {
    fn begin(&self) -> Result<()> {
        // Said here, and not when the guest stands still.
        if let Some(name) = source_lacks(&self.table) {
            return Err(has_none(name));
        }
        self.plain(self.table.begin)
    }
    fn left(&self) -> Result<Left> {
        let mut left = brant_device_left {
            size: size_of::<brant_device_left>(),
            initial: 0,
            running: 0,
            stopped: 0,
        };
        if self.table.left.is_none() {
            left.stopped = BRANT_LEFT_UNKNOWN;
        }
        if let Some(f) = self.table.left {
            call_back(self.table.opaque, |o, reason| {
                // SAFETY: the VMM's function, called as the structure says; `left` outlives it.
                unsafe { f(o, &mut left, reason) }
            })?;
        }
        let running = if self.table.read_running.is_some() {
            left.running
        } else {
            0
        };
        Ok(Left {
            initial: left.initial.min(running),
            running,
            stopped: (left.stopped != BRANT_LEFT_UNKNOWN).then_some(left.stopped),
        })
    }
    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        self.read(self.table.read_running, "read_running", buffer)
    }
    fn quiesce(&self) -> Result<()> {
        self.plain(self.table.quiesce)
    }
    fn stop(&self) -> Result<()> {
        self.required(self.table.stop, "stop")
    }
    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        self.read(self.table.read_stopped, "read_stopped", buffer)
    }
    fn wake(&self) -> Result<()> {
        self.plain(self.table.wake)
    }
    fn resume(&self) -> Result<()> {
        self.required(self.table.resume, "resume")
    }
    fn end(&self) {
        if let Some(f) = self.table.end {
            // SAFETY: the VMM's function, called as the structure says.
            unsafe { f(self.table.opaque) };
        }
    }
    fn cancel(&self) {
        if let Some(f) = self.table.cancel {
            // SAFETY: the VMM's function, called as the structure says.
            unsafe { f(self.table.opaque) };
        }
    }
    fn load_running(&self, data: &[u8]) -> Result<()> {
        self.load(self.table.load_running, "load_running", data)
    }
    fn load_stopped(&self, data: &[u8]) -> Result<()> {
        self.load(self.table.load_stopped, "load_stopped", data)
    }
    fn loaded(&self) -> Result<()> {
        self.plain(self.table.loaded)
    }
    fn run(&self) -> Result<()> {
        self.required(self.table.run, "run")
    }
    fn reset(&self) {
        if let Some(f) = self.table.reset {
            // SAFETY: the VMM's function, called as the structure says.
            unsafe { f(self.table.opaque) };
        }
    }
}

/// Adds a device whose state migrations of this guest stream, behind all that were added before. At
/// most 256. The structure is copied; callbacks and `opaque` stay valid until
/// brant_guest_remove_device has returned, or guest and all objects made from it are freed.
///
/// Both sides have the same devices. A destination that lacks one, has one more, or has another
/// version of one refuses the migration by name before the first page (BRANT_E_LAYOUT); one whose
/// brant does not know devices, by the feature "device-streams" (BRANT_E_VERSION). At a destination,
/// add devices before the migration or in `early_load`.
///
/// The same device serves as source and destination. So `stop`, `read_stopped` and `resume` are set,
/// or `load_stopped` and `run`, or all five. BRANT_E_INVALID when neither set is complete, for a bad
/// name, for a second device of the same name and instance, and for one too many. BRANT_E_BUSY while a
/// migration, a save or a restore uses the guest's devices.
///
/// Threads: any.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_device(
    guest: *mut brant_guest,
    device: *const brant_device,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let table = unsafe { read(device) }?;
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let name = unsafe { text(table.name, "brant_device.name") }?.to_owned();
        let destination = table.load_stopped.is_some() && table.run.is_some();
        if source_lacks(&table).is_some() && !destination {
            return Err(invalid(format!(
                "device `{name}`: a source needs `stop`, `read_stopped` and `resume`, a destination \
                 `load_stopped` and `run`; found neither"
            )));
        }
        let (instance, version) = (table.instance, table.version);
        let device = OfC {
            table: brant_device {
                name: std::ptr::null(),
                ..table
            },
        };
        guest
            .memory
            .add_device(&name, instance, version, Arc::new(device))
    })
}

/// Removes the device of this name and instance. Its callbacks are not called from the return on.
/// BRANT_E_NOT_FOUND when there is none; BRANT_E_BUSY as for brant_guest_add_device. Threads: any.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_remove_device(
    guest: *mut brant_guest,
    name: *const c_char,
    instance: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let name = unsafe { text(name, "name") }?;
        guest.memory.remove_device(name, instance)
    })
}
