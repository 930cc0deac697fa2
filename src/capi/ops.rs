//! The VMM's operations: one table of callbacks, and the trait in `vmm.rs` over it.

use super::error::{brant_error, invalid};
use super::structs::{handle, read, sized, text};
use crate::error::{Error, Kind, Result};
use crate::gate::Gate;
use crate::vmm::{Event, MappedBlock, Role, StateBlob, StateSink, States, Vmm};
use std::cell::RefCell;
use std::ffi::{c_char, c_void, CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

/// Where a callback that fails says why: `brant_reason_set`.
///
/// Threads: the callback's own, and only until it returns. There is nothing to free.
pub struct brant_reason {
    text: RefCell<String>,
}

/// Where `save` and `early_save` put state: `brant_saver_put`.
///
/// Threads: the callback's own, and only until it returns. There is nothing to free.
pub struct brant_saver {
    sink: *mut (dyn StateSink + 'static),
    /// Why a blob could not be put, the first time.
    refused: RefCell<Option<Error>>,
}

/// One blob of device state or early configuration, as `load` and `early_load` get it. Valid during
/// the callback only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_state_blob {
    /// sizeof(brant_state_blob) as brant knows it.
    pub size: usize,
    /// What it is the state of.
    pub name: *const c_char,
    /// The bytes, as they were saved.
    pub data: *const c_void,
    /// How many.
    pub length: u64,
    /// Which one of several of that name.
    pub instance: u32,
    /// Version of the format of the data, the VMM's own numbering.
    pub version: u32,
}

/// The migration entered another state; the message names it.
pub const BRANT_EVENT_STATE: u32 = 1;
/// A pass over memory ended and a sync followed.
pub const BRANT_EVENT_PASS: u32 = 2;
/// A warning, not an error. Examples: a parameter was clamped; a log failed, so all its pages count
/// as dirty.
pub const BRANT_EVENT_WARNING: u32 = 3;
/// The migration is over and has succeeded.
pub const BRANT_EVENT_COMPLETED: u32 = 4;
/// The migration is over: it failed or was cancelled. On a source the guest runs on.
pub const BRANT_EVENT_FAILED: u32 = 5;
/// The guest was handed over without an answer: it stays paused until `brant_outgoing_resolve`. Also the
/// last event of an interrupted postcopy that the VMM gave up; its guest never runs here again.
pub const BRANT_EVENT_UNANSWERED: u32 = 6;
/// Source: pages at the destination differ from those here (`brant_params.verify`). The message names
/// the block, the first such page and their number; there is one event for each block. The guest
/// runs at the destination, and the migration succeeds all the same.
pub const BRANT_EVENT_MISMATCH: u32 = 7;
/// Source: about the time in which the guest stands still. The message says which: a pause was aborted
/// (`brant_params.downtime_slack_ms`), after how long and why; the downtime was longer than its limit,
/// and which parts took longer than promised; the limit rises (`brant_policy.downtime_ceiling_ms`);
/// or the guest is paused however long that takes, and why.
pub const BRANT_EVENT_DOWNTIME: u32 = 8;
/// Source: the migration has stalled, also without a policy. Either for `brant_policy.stall_ms` no pass
/// left less than every pass before it: told at the end of a pass, when such a stall begins and when
/// its cause changes. Or nothing has moved for so long in the middle of a pass: told then, once until
/// something moves again, and `brant_outgoing_event_fd` becomes readable. The message says for how long
/// and why; `brant_stats.stall` is the cause. With `brant_params.zero_copy`, do not remove a block inside
/// this event: the removal would wait for the link.
pub const BRANT_EVENT_STALLED: u32 = 9;
/// Source: the guest is slowed by another percentage than before, or other vCPUs are, or none
/// (`brant_policy.slowing`).
pub const BRANT_EVENT_THROTTLE: u32 = 10;
/// Postcopy: the connections were lost after the guest was handed over, and pages of its memory are not
/// at the destination. The guest runs there until it needs one of them, and waits for it. Both sides keep
/// what they have until their VMMs recover or resolve the migration. The message says why, and how many
/// pages are missing. The state is BRANT_SOURCE_INTERRUPTED or BRANT_DESTINATION_INTERRUPTED, and waiting
/// for the end of the migration goes on. It comes also when a recovery has failed, and then says so.
pub const BRANT_EVENT_INTERRUPTED: u32 = 11;
/// Postcopy: an interrupted migration goes on over new connections. The message says how many pages are
/// missing. The state is BRANT_SOURCE_SERVING or BRANT_DESTINATION_COMPLETING. Also at a destination in
/// BRANT_DESTINATION_RUNNING: a source that recovered late knows by now that nothing is missing.
pub const BRANT_EVENT_RECOVERED: u32 = 12;

/// Something that happened. Valid during the callback only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_event {
    /// sizeof(brant_event) as brant knows it.
    pub size: usize,
    /// One sentence, UTF-8.
    pub message: *const c_char,
    /// BRANT_EVENT_*.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
}

/// A thread that walks memory, decides, and sends or receives.
pub const BRANT_ROLE_MIGRATION: u32 = 1;
/// A thread that sends, or receives, on one of several channels. A migration has one for each
/// channel but channel 0, which is the migration thread's. It calls no operation but `thread_start`.
pub const BRANT_ROLE_CHANNEL: u32 = 2;
/// A thread that has the host back a destination's memory just before contents arrive for it
/// (MADV_POPULATE_WRITE). An incoming migration has at most one for each channel, and only for
/// memory that is not backed already. The thread calls no operation but `thread_start`.
pub const BRANT_ROLE_PREFAULT: u32 = 4;
/// A thread that harvests dirty rings before they fill, while a tracker in mode ring tracks.
/// Besides the KVM_RESET_DIRTY_RINGS ioctl it calls futex and getrusage. It calls no operation but
/// `thread_start`.
pub const BRANT_ROLE_REAPER: u32 = 5;
/// A thread that serves page faults of a guest whose memory has not arrived whole
/// (BRANT_GUEST_INCOMPLETE). Such a guest has one. The thread calls no operation but `thread_start`,
/// and must never touch the guest's memory: a page that it waits for would never come. While it does
/// not run, threads that touch absent pages wait, vCPUs among them.
pub const BRANT_ROLE_FAULT: u32 = 6;
/// A thread that saves a guest to an image, or restores one from it, and calls the operations.
pub const BRANT_ROLE_SNAPSHOT: u32 = 7;
/// A thread that writes pages to an image, or reads them from it. It calls no operation but
/// `thread_start`.
pub const BRANT_ROLE_IMAGE: u32 = 9;
/// A thread that computes checksums of a destination's memory for a source that verifies the
/// migration (`brant_params.verify`), while the guest stands still. An incoming migration has one
/// for each channel but one. It calls no operation but `thread_start`.
pub const BRANT_ROLE_DIGEST: u32 = 10;
/// A thread of a migration whose guest has devices (`brant_guest_add_device`): at the total timeout or
/// the switchover timeout it asks a device in a call to return (`brant_device.cancel`).
pub const BRANT_ROLE_WATCH: u32 = 11;
/// A thread that writes the recording of a migration (`brant_outgoing_record`). It calls no operation but
/// `thread_start`.
pub const BRANT_ROLE_RECORD: u32 = 12;

/// The VMM's operations. An operation that the VMM does not have is NULL. Operations belong to a
/// guest: `brant_guest_new` copies the table, and takes the `opaque` that each operation gets.
///
/// A migration calls its operations one at a time on its own thread, unless an operation says
/// otherwise below. In the same way a save calls the operations of a source, and a restore those of
/// a destination, each on its own thread. All signals are masked on that thread, except in the
/// operations that may make threads. `early_load`, `load`, `loaded`, `run` and `resume` have the
/// signal mask of the thread that started the migration. So a vCPU thread that is made in one of
/// them can be kicked by a signal, and a signal handler of the VMM's may run on brant's thread
/// meanwhile. A thread that is made in any other operation inherits a mask of all signals: the new
/// thread has to clear the mask (pthread_sigmask) first. An operation returns 0, or any other value
/// for a failure; then it may set the reason. Inside an operation, waiting for or freeing the
/// migration that calls it is BRANT_E_CALLBACK, and cancelling that migration only asks for its
/// end. Every other call is allowed.
///
/// The own thread of a migration, a save or a restore has a stack of 8 MiB, every other thread of
/// brant's has 2 MiB. The thread-local variables of the process take their part of the stack.
///
/// A guest's memory depends on two contracts:
/// - Paused means: every vCPU is out of KVM_RUN with pending I/O retired, no thread stands between
///   a write to guest memory and its mark, and no device writes guest memory. To retire I/O after
///   an I/O or MMIO exit, set immediate_exit and enter KVM_RUN again until it fails with EINTR: one
///   retirement can be followed by another exit. A KVM_RUN that fails with EINTR leaves the
///   exit_reason of the exit before, so look at the return value of KVM_RUN first.
/// - Write first, then mark: a sync can collect a mark that was made too early before the write
///   lands. Then the write is lost.
///
/// A vCPU thread that ends while the guest migrates, because the guest has shut down, counts as
/// paused in `pause` and as outside of KVM_RUN in `kick`; keep its vCPU descriptor open until the
/// migration is over. Unless the guest is to start again at the destination, cancel the migration.
///
/// brant_outgoing_cancel, brant_incoming_cancel, the waits and the frees wait for the migration's
/// thread, which may be inside an operation. So do not call them while you hold a lock that an
/// operation takes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_ops {
    /// sizeof(brant_ops).
    pub size: usize,
    /// Source, required: stop the guest; return when the guest is paused in the sense above. From
    /// before this call until `resume` has returned 0, brant calls no `kick` for any tracker of the
    /// guest. Kicks that began earlier have ended before this call. A guest that its user has
    /// paused already is fine: return 0, and remember for `resume` that the user wants it paused.
    pub pause: Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// Source, required: let the guest run on, because a migration that had paused it did not
    /// happen. Also called when `pause` failed, and by a save once the last page is written. Takes
    /// back what `release` let go. brant does not know whether the guest stood still before
    /// `pause`: leave a guest paused that its user has paused, before the migration or since, and
    /// return 0. When `brant_outgoing_resolve` decides that the guest runs on, this is called on
    /// the thread of that call. When this fails, the guest counts as standing still here
    /// (BRANT_GUEST_STANDS).
    pub resume: Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// Source, guest paused: put all device and vCPU state into `saver`. May write guest memory:
    /// the last harvest comes after `save`. When a pause is aborted (`brant_params.downtime_slack_ms`),
    /// `resume` follows, and the next pause calls `save` again. So `save` must leave every device able
    /// to run on.
    pub save: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            saver: *mut brant_saver,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Destination: all memory is here; take one blob of device state. Called once for each blob,
    /// in the order of saving. May write guest memory, except blocks that came by descriptor
    /// (`map_block`): no page arrives after this call. When a tracker of this guest is started here (a backup's, from before the guest went away), mark
    /// the writes of `load`. A failure refuses the switchover, and the guest runs on at the source.
    pub load: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            blob: *const brant_state_blob,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Destination: every blob was loaded; the last chance to refuse.
    pub loaded: Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// Source, guest running, before memory is sent: put the configuration that the destination
    /// needs in order to build its guest into `saver`.
    pub early_save: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            saver: *mut brant_saver,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Destination, before the layouts are compared: take one blob of configuration. Blocks and
    /// slots may be added here.
    pub early_load: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            blob: *const brant_state_blob,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Source, guest paused, destination ready: let go of everything that only one side may hold,
    /// disk locks for example. The hand-over comes next, or `resume`.
    pub release:
        Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// Destination, required: the guest is yours, let it run. Start the guest at once, without long
    /// work before. A guest that its user had paused at the source may stay paused here, if the
    /// source's `save` said so: return 0. When this is called the hand-over was in time. One second
    /// after the hand-over's limit the source's VMM assumes that `run` was called here, or never
    /// will be. When this fails, the guest has to be stopped.
    pub run: Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// Switch dirty logging on for `count` KVM memory slots, with BRANT_SWITCHED_BY_VMM. Called on
    /// the thread that starts tracking or adds a slot, under brant's own locks. So inside `log_on`
    /// and `log_off` call no function of brant's but marks, and take no lock that another thread
    /// holds around a brant_guest_* or brant_tracker_* call.
    pub log_on: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            slots: *const u32,
            count: usize,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Switch dirty logging off again. Called on the thread that stops tracking or removes a
    /// slot.
    pub log_off: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            slots: *const u32,
            count: usize,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Something happened. Must not block for long.
    pub event: Option<unsafe extern "C" fn(opaque: *mut c_void, event: *const brant_event)>,
    /// A new thread of brant's calls this first: the place for affinity and seccomp. `role` is
    /// BRANT_ROLE_*.
    pub thread_start: Option<unsafe extern "C" fn(opaque: *mut c_void, role: u32)>,
    /// Make every vCPU leave KVM_RUN once and go on; return when each vCPU has left, or was
    /// outside. Called with dirty rings (`brant_tracker_add_kvm`), before each sync of a running
    /// guest. A processor with page-modification logging hands over its entries only at an exit. So
    /// without a kick such a sync misses some pages, which a later sync finds. Called on the thread
    /// that syncs, under brant's own locks: the rules of `log_on` count. Also do not wait for a
    /// thread that is inside a call of brant's; waiting for `brant_tracker_ring_full` and for marks
    /// is fine.
    ///
    /// A kick may pause the guest and resume it, because brant calls `kick` only when the guest
    /// runs here by all that brant knows (BRANT_GUEST_UNKNOWN, _HERE, _LEAVING and _SAVING). A
    /// guest that its user has paused must stay paused after a kick. brant never calls it between
    /// `pause` and `resume`, after a hand-over, or where a guest arrives or should have arrived.
    /// The call of `pause` waits for kicks that have begun.
    pub kick: Option<unsafe extern "C" fn(opaque: *mut c_void, reason: *mut brant_reason) -> i32>,
    /// Source, guest running: slow one vCPU, or all of them when `vcpu` is BRANT_ALL_VCPUS. From then
    /// on the vCPU sleeps for `percent` of its time, 0 to 99, in slices of a few milliseconds. The
    /// percentage replaces the one before; a call for all vCPUs replaces those of each. 0 lets the
    /// vCPU run freely. Must not wait for a vCPU. `vcpu` is the VMM's number of the vCPU.
    ///
    /// Called when the policy slows the guest (`brant_policy.slowing`). Once the guest was slowed, a
    /// call with 0 for all vCPUs follows before `pause`, and at every end of the migration. It may
    /// come while a vCPU sleeps, so `pause` must end such a sleep. When this fails, an event says so,
    /// and the migration goes on without slowing the guest.
    pub throttle: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            vcpu: u32,
            percent: u32,
            reason: *mut brant_reason,
        ) -> i32,
    >,
    /// Destination, after `early_load` and before the layouts are compared: map `length` bytes of the
    /// file `fd` from `offset` on, with MAP_SHARED, and put the address into `address`. Called once for
    /// each block that comes by descriptor from a source on the same host (`brant_params.hand_over`).
    /// `fd` is brant's: duplicate it to keep it. After the call the block `name` is in the guest's map,
    /// without a slot: find its number by its name (`brant_guest_find_block`). When the VMM has added a
    /// block of that name before, map the file over its memory (MAP_FIXED) and return the same
    /// address: the new block then has a new number, and the old one's slots.
    ///
    /// Nothing may write this memory before `run`: not this operation, not `load`, not `loaded`, no
    /// device, no other process. It is the memory of the guest that runs at the source, which keeps the
    /// guest when the migration fails. What must write waits for `run`. KVM writes the guest's clock
    /// page when the MSR of its wall clock is set: set that MSR in `run`. Do not map with MAP_POPULATE,
    /// which would fill the file's holes. `brant_params.verify` at the source finds such writes.
    pub map_block: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            name: *const c_char,
            fd: i32,
            length: u64,
            offset: u64,
            address: *mut *mut c_void,
            reason: *mut brant_reason,
        ) -> i32,
    >,
}

/// As the vCPU of `brant_ops.throttle`: all vCPUs.
pub const BRANT_ALL_VCPUS: u32 = 0xffff_ffff;

sized!(brant_ops, brant_state_blob, brant_event);

/// Runs `put` with the sink behind a saver. As with `brant_saver_put`, a failure counts as a failure of the
/// whole operation.
pub(super) fn saving(
    saver: &brant_saver,
    put: impl FnOnce(&mut dyn StateSink) -> Result<()>,
) -> Result<()> {
    // SAFETY: the sink outlives the callback, in which alone the saver is valid, and is used by this
    // thread only.
    put(unsafe { &mut *saver.sink }).inspect_err(|e| {
        saver.refused.borrow_mut().get_or_insert(e.clone());
    })
}

/// Sets the reason why a callback fails, in UTF-8. The migration's error shows the reason, with
/// U+FFFD in place of bytes that are not UTF-8. NULL is ignored.
#[no_mangle]
pub unsafe extern "C" fn brant_reason_set(reason: *mut brant_reason, message: *const c_char) {
    boundary!(or(), {
        // SAFETY: null or ours by contract.
        let Some(reason) = (unsafe { reason.as_ref() }) else {
            return;
        };
        if message.is_null() {
            return;
        }
        // SAFETY: not null, and a string by contract.
        let message = unsafe { CStr::from_ptr(message) };
        *reason.text.borrow_mut() = message.to_string_lossy().into_owned();
    })
}

/// Puts one blob of state: `name` of 1 to 128 bytes, `instance` for several of that name, the VMM's
/// own `version` of the format, and `length` bytes at `data`, which are copied. A blob has at most
/// about 1 GiB; there are at most 65536 blobs. A blob that is refused would be missing at the
/// destination. So `save` then counts as failed, whatever it returns, and the refusal is the reason
/// unless `save` sets another.
#[no_mangle]
pub unsafe extern "C" fn brant_saver_put(
    saver: *mut brant_saver,
    name: *const c_char,
    instance: u32,
    version: u32,
    data: *const c_void,
    length: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let saver = unsafe { handle(saver, "saver") }?;
        saving(saver, |sink| {
            // SAFETY: null or a string by contract.
            let name = unsafe { text(name, "name") }?;
            if data.is_null() && length > 0 {
                return Err(invalid(format!("state `{name}`: data is NULL")));
            }
            // More than this is no memory of anybody's: -1 in disguise.
            if isize::try_from(length).is_err() {
                return Err(invalid(format!(
                    "state `{name}`: it cannot have {length} bytes"
                )));
            }
            let data = if length == 0 {
                &[][..]
            } else {
                // SAFETY: `length` readable bytes by contract, not written during the call.
                unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) }
            };
            sink.put(&StateBlob {
                name,
                instance,
                version,
                data,
            })
        })
    })
}

/// What an operation of the VMM's returned that is not 0, and the reason that it gave.
struct Failed {
    code: i32,
    reason: String,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Error::new(
            Kind::Vmm,
            if failed.reason.is_empty() {
                format!("returned {}", failed.code)
            } else {
                failed.reason
            },
        )
    }
}

fn try_call_back(
    opaque: *mut c_void,
    call: impl FnOnce(*mut c_void, *mut brant_reason) -> i32,
) -> std::result::Result<(), Failed> {
    let mut reason = brant_reason {
        text: RefCell::default(),
    };
    match call(opaque, &mut reason) {
        0 => Ok(()),
        code => Err(Failed {
            code,
            reason: reason.text.into_inner(),
        }),
    }
}

/// Calls one operation of the VMM's and makes its answer a result.
pub(super) fn call_back(
    opaque: *mut c_void,
    call: impl FnOnce(*mut c_void, *mut brant_reason) -> i32,
) -> Result<()> {
    Ok(try_call_back(opaque, call)?)
}

/// The table as the trait that the crate asks for.
pub(super) struct Ops {
    table: brant_ops,
    opaque: *mut c_void,
    /// Carries out four of the operations, beside the table's.
    gate: OnceLock<Arc<Gate>>,
    /// State that needs no operation.
    states: States,
}

// SAFETY: the VMM gave table and opaque for use on brant's threads; that is the contract of
// `brant_ops`.
unsafe impl Send for Ops {}
// SAFETY: as above; each operation says on which threads it runs.
unsafe impl Sync for Ops {}

impl Ops {
    /// Reads the table; null is a table without operations.
    ///
    /// # Safety
    /// `table` is null or points to a structure as its size says.
    pub(super) unsafe fn new(table: *const brant_ops, opaque: *mut c_void) -> Result<Self> {
        let table = if table.is_null() {
            // SAFETY: all zero is a table without operations.
            unsafe { std::mem::zeroed() }
        } else {
            // SAFETY: the caller's contract.
            unsafe { read(table) }?
        };
        let gate = OnceLock::new();
        Ok(Ops {
            table,
            opaque,
            gate,
            states: States::default(),
        })
    }

    /// State that is saved and loaded beside the table's operations.
    pub(super) fn states(&self) -> &States {
        &self.states
    }

    pub(super) fn has_gate(&self) -> bool {
        self.gate.get().is_some()
    }

    /// Lets the gate carry out `pause`, `resume`, `run` and `kick`.
    pub(super) fn use_gate(&self, gate: &Arc<Gate>) {
        // Only the first one counts, for which the caller has looked.
        let _ = self.gate.set(Arc::clone(gate));
    }

    /// What the gate does, after the table's operation when that comes first. `otherwise` without a gate
    /// and without an operation.
    fn by_gate(
        &self,
        table: Option<Result<()>>,
        gate: impl FnOnce(&Gate) -> Result<()>,
        otherwise: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match (table, self.gate.get()) {
            (Some(Err(e)), _) => Err(e),
            (_, Some(of)) => gate(of),
            (Some(Ok(())), None) => Ok(()),
            (None, None) => otherwise(),
        }
    }

    /// The operations that `what` cannot do without, each with whether the table has it.
    fn require(what: &str, operations: &[(&str, bool)]) -> Result<()> {
        match operations.iter().find(|(_, there)| !there) {
            None => Ok(()),
            Some((name, _)) => Err(invalid(format!(
                "{what} needs the operation `{name}`, and brant_guest_new was given none"
            ))),
        }
    }

    /// Whether a migration from here can be made.
    pub(super) fn check_source(&self) -> Result<()> {
        Self::require(
            "a migration from here",
            &[
                ("pause", self.table.pause.is_some() || self.has_gate()),
                ("resume", self.table.resume.is_some() || self.has_gate()),
            ],
        )
    }

    /// Whether a migration to here can be made.
    pub(super) fn check_destination(&self) -> Result<()> {
        let run = ("run", self.table.run.is_some() || self.has_gate());
        Self::require("a migration to here", &[run])
    }

    /// Whether the VMM can switch KVM's dirty logging.
    pub(super) fn check_log_switch(&self) -> Result<()> {
        Self::require(
            "BRANT_SWITCHED_BY_VMM",
            &[
                ("log_on", self.table.log_on.is_some()),
                ("log_off", self.table.log_off.is_some()),
            ],
        )
    }

    fn call(&self, call: impl FnOnce(*mut c_void, *mut brant_reason) -> i32) -> Result<()> {
        call_back(self.opaque, call)
    }

    fn with_saver(
        &self,
        sink: &mut dyn StateSink,
        call: unsafe extern "C" fn(*mut c_void, *mut brant_saver, *mut brant_reason) -> i32,
    ) -> Result<()> {
        let sink: *mut (dyn StateSink + '_) = sink;
        let mut saver = brant_saver {
            // SAFETY: only the lifetime changes; the saver is gone when this returns, before
            // the sink is.
            sink: unsafe {
                std::mem::transmute::<*mut (dyn StateSink + '_), *mut (dyn StateSink + 'static)>(
                    sink,
                )
            },
            refused: RefCell::default(),
        };
        // SAFETY: the VMM's function, called as the table says.
        let saved = try_call_back(self.opaque, |opaque, reason| unsafe {
            call(opaque, &mut saver, reason)
        });
        match (saver.refused.into_inner(), saved) {
            (Some(refused), Ok(())) => Err(refused),
            (Some(refused), Err(failed)) if failed.reason.is_empty() => Err(refused),
            (_, saved) => saved.map_err(Failed::into),
        }
    }

    fn with_state(
        &self,
        blob: &StateBlob<'_>,
        call: unsafe extern "C" fn(*mut c_void, *const brant_state_blob, *mut brant_reason) -> i32,
    ) -> Result<()> {
        let name = c_text(blob.name);
        let state = brant_state_blob {
            size: size_of::<brant_state_blob>(),
            name: name.as_ptr(),
            data: blob.data.as_ptr().cast(),
            length: blob.data.len() as u64,
            instance: blob.instance,
            version: blob.version,
        };
        // SAFETY: the VMM's function, called as the table says; state and name outlive the call.
        self.call(|opaque, reason| unsafe { call(opaque, &state, reason) })
    }
}

/// Text as C takes it; a NUL in it, which only a hostile peer could have put there, is a space.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Calls an operation that has no arguments of its own, or does `$otherwise` without it.
macro_rules! plain {
    ($self:ident, $name:ident, $otherwise:expr) => {
        match $self.table.$name {
            // SAFETY: the VMM's function, called as the table says.
            Some(f) => $self.call(|opaque, reason| unsafe { f(opaque, reason) }),
            None => $otherwise,
        }
    };
}

/// The answer of the table's operation, if it has one.
macro_rules! own {
    ($self:ident, $name:ident) => {
        // SAFETY: the VMM's function, called as the table says.
        ($self.table.$name).map(|f| $self.call(|opaque, reason| unsafe { f(opaque, reason) }))
    };
}

fn has_none(what: &str) -> Result<()> {
    Err(Error::new(
        Kind::Vmm,
        format!("the table of operations has no `{what}`"),
    ))
}

impl Vmm for Ops {
    fn pause(&self) -> Result<()> {
        let gate = self.gate.get();
        gate.map_or(Ok(()), |gate| gate.on_pause())?;
        let otherwise = || gate.map_or_else(|| has_none("pause"), |_| Ok(()));
        plain!(self, pause, otherwise())
    }
    fn resume(&self) -> Result<()> {
        let gate = |gate: &Gate| {
            gate.on_resume();
            Ok(())
        };
        self.by_gate(own!(self, resume), gate, || has_none("resume"))
    }
    fn loaded(&self) -> Result<()> {
        self.states.loaded()?;
        plain!(self, loaded, Ok(()))
    }
    fn release(&self) -> Result<()> {
        plain!(self, release, Ok(()))
    }
    fn run(&self) -> Result<()> {
        self.by_gate(own!(self, run), Gate::on_run, || has_none("run"))
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        if let Some(f) = self.table.save {
            self.with_saver(sink, f)?;
        }
        self.states.save(sink)
    }
    fn early_save(&self, sink: &mut dyn StateSink) -> Result<()> {
        match self.table.early_save {
            Some(f) => self.with_saver(sink, f),
            None => Ok(()),
        }
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        if self.states.load(blob)? {
            return Ok(());
        }
        match self.table.load {
            Some(f) => self.with_state(blob, f),
            None => Err(Error::new(
                Kind::Vmm,
                format!(
                    "there is no such operation and the source sent `{}`",
                    blob.name
                ),
            )),
        }
    }
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        match self.table.early_load {
            Some(f) => self.with_state(blob, f),
            None => Err(Error::new(
                Kind::Vmm,
                format!(
                    "there is no such operation and the source sent `{}`",
                    blob.name
                ),
            )),
        }
    }
    fn log_on(&self, slots: &[u32]) -> Result<()> {
        match self.table.log_on {
            // SAFETY: the VMM's function, called as the table says.
            Some(f) => self.call(|o, reason| unsafe { f(o, slots.as_ptr(), slots.len(), reason) }),
            None => has_none("log_on"),
        }
    }
    fn log_off(&self, slots: &[u32]) -> Result<()> {
        match self.table.log_off {
            // SAFETY: the VMM's function, called as the table says.
            Some(f) => self.call(|o, reason| unsafe { f(o, slots.as_ptr(), slots.len(), reason) }),
            None => has_none("log_off"),
        }
    }
    fn kick(&self) -> Result<()> {
        self.by_gate(own!(self, kick), Gate::on_kick, || Ok(()))
    }
    fn throttle(&self, vcpu: Option<u32>, percent: u8) -> Result<()> {
        match self.table.throttle {
            Some(f) => self.call(|opaque, reason| {
                let vcpu = vcpu.unwrap_or(BRANT_ALL_VCPUS);
                // SAFETY: the VMM's function, called as the table says.
                unsafe { f(opaque, vcpu, u32::from(percent), reason) }
            }),
            None => has_none("throttle"),
        }
    }
    fn can_throttle(&self) -> bool {
        self.table.throttle.is_some()
    }
    fn map_block(
        &self,
        name: &str,
        file: BorrowedFd<'_>,
        length: u64,
        offset: u64,
    ) -> Result<MappedBlock> {
        let Some(f) = self.table.map_block else {
            return Err(Error::new(
                Kind::Vmm,
                "the table of operations has no `map_block`",
            ));
        };
        let name = c_text(name);
        let mut address = std::ptr::null_mut();
        self.call(|opaque, reason| {
            let fd = file.as_raw_fd();
            // SAFETY: the VMM's function, called as the table says; name and address outlive the call.
            unsafe {
                f(
                    opaque,
                    name.as_ptr(),
                    fd,
                    length,
                    offset,
                    &mut address,
                    reason,
                )
            }
        })?;
        // SAFETY: the table's contract for `map_block`.
        Ok(unsafe { MappedBlock::new(address.cast()) })
    }
    fn can_map_blocks(&self) -> bool {
        self.table.map_block.is_some()
    }
    fn event(&self, event: &Event) {
        if let Some(f) = self.table.event {
            let message = c_text(&event.message);
            let event = brant_event {
                size: size_of::<brant_event>(),
                message: message.as_ptr(),
                kind: event.kind as u32,
                reserved: 0,
            };
            // SAFETY: the VMM's function, called as the table says; event and message outlive it.
            unsafe { f(self.opaque, &event) };
        }
    }
    fn thread_start(&self, role: Role) {
        if let Some(f) = self.table.thread_start {
            // SAFETY: the VMM's function, called as the table says.
            unsafe { f(self.opaque, role.number()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::EventKind;

    #[test]
    fn a_reason_that_is_not_utf_8_is_shown_all_the_same() {
        let failed = |reason: Option<&CStr>| {
            let text = reason.map_or(std::ptr::null(), CStr::as_ptr);
            let error = call_back(std::ptr::null_mut(), |_, reason| {
                // SAFETY: a reason that brant made; null or a string.
                unsafe { brant_reason_set(reason, text) };
                -5
            });
            error.unwrap_err().message().to_owned()
        };
        let shown = failed(Some(c"disk \xff\xfe is full"));
        assert!(shown.contains("disk \u{fffd}\u{fffd} is full"), "{shown}");
        assert!(failed(Some(c"Platte ist v\u{f6}ll")).contains("v\u{f6}ll"));
        assert!(failed(None).contains("-5"));
    }

    #[test]
    fn event_and_role_numbers_are_those_of_the_header() {
        let events = [
            (EventKind::State, BRANT_EVENT_STATE),
            (EventKind::Pass, BRANT_EVENT_PASS),
            (EventKind::Warning, BRANT_EVENT_WARNING),
            (EventKind::Completed, BRANT_EVENT_COMPLETED),
            (EventKind::Failed, BRANT_EVENT_FAILED),
            (EventKind::Unanswered, BRANT_EVENT_UNANSWERED),
            (EventKind::Mismatch, BRANT_EVENT_MISMATCH),
            (EventKind::Downtime, BRANT_EVENT_DOWNTIME),
            (EventKind::Stalled, BRANT_EVENT_STALLED),
            (EventKind::Throttle, BRANT_EVENT_THROTTLE),
            (EventKind::Interrupted, BRANT_EVENT_INTERRUPTED),
            (EventKind::Recovered, BRANT_EVENT_RECOVERED),
        ];
        for (kind, number) in events {
            assert_eq!(kind as u32, number);
        }
        assert_eq!(Role::Migration.number(), BRANT_ROLE_MIGRATION);
        assert_eq!(Role::Channel.number(), BRANT_ROLE_CHANNEL);
        assert_eq!(Role::Prefault.number(), BRANT_ROLE_PREFAULT);
        assert_eq!(Role::Reaper.number(), BRANT_ROLE_REAPER);
        assert_eq!(Role::Fault.number(), BRANT_ROLE_FAULT);
        assert_eq!(Role::Snapshot.number(), BRANT_ROLE_SNAPSHOT);
        assert_eq!(Role::Image.number(), BRANT_ROLE_IMAGE);
        assert_eq!(Role::Digest.number(), BRANT_ROLE_DIGEST);
        assert_eq!(Role::Watch.number(), BRANT_ROLE_WATCH);
        assert_eq!(Role::Record.number(), BRANT_ROLE_RECORD);
    }
}
