//! What is done about a migration that does not converge, and what an operator changes while it runs.

use super::error::{brant_error, invalid};
use super::outgoing::brant_outgoing;
use super::structs::{handle, read, sized};
use crate::error::Result;
use crate::migrate::{OnDeadline, Policy, Slowing};
use std::time::Duration;

/// What is done about a migration that does not converge by itself. A field that is 0 has its
/// default. A structure of zeros is the policy of a migration that was given none: nothing is done,
/// and the migration runs until it fits its limit or its total timeout is over.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_policy {
    /// sizeof(brant_policy).
    pub size: usize,
    /// The ceiling up to which the downtime limit rises, milliseconds: from
    /// `brant_params.downtime_limit_ms` to 3600000; 0: the limit does not rise. The limit becomes
    /// half as long again after each pass that leaves more than 0.97 of what it sent, after each aborted
    /// pause, and when what no pass makes smaller exceeds the limit. The rest is taken as soon as it fits.
    /// Once the limit has risen, no pause is aborted that stays below the ceiling: the limit rises to what
    /// the pause takes.
    pub downtime_ceiling_ms: u64,
    /// The time for the whole migration, milliseconds from its start: 1 to 2592000000, and at most
    /// `brant_params.total_timeout_ms`; 0: no deadline. `on_deadline` says what happens then. The
    /// total timeout ends the migration with an error, whatever the policy says, and a deadline later
    /// than it is BRANT_E_INVALID.
    pub deadline_ms: u64,
    /// A migration without a new lowest rest for so long has stalled, and so has one in which nothing
    /// moves for so long in the middle of a pass. Milliseconds: 1 to 86400000; default 10000. See
    /// BRANT_EVENT_STALLED.
    pub stall_ms: u64,
    /// The time between two syncs in the middle of a pass, milliseconds: 100 to 3600000; default
    /// 2000. Only a policy that slows the guest syncs there. While dirty rings keep the limits of vCPUs,
    /// the vCPUs' counts are read there instead, because a sync would empty full rings.
    pub sync_ms: u64,
    /// BRANT_SLOWING_*: how a guest is slowed that dirties too much.
    pub slowing: u32,
    /// The most by which a vCPU is slowed, 1 to 99 percent of its time; default 99. Has no effect on
    /// limits that dirty rings keep.
    pub throttle_max: u32,
    /// BRANT_DEADLINE_*: what happens at the deadline.
    pub on_deadline: u32,
    /// 0.
    pub reserved: u32,
}

/// In `brant_policy.slowing`, the default: the guest is not slowed.
pub const BRANT_SLOWING_OFF: u32 = 0;
/// In `brant_policy.slowing`: all vCPUs are slowed by the same percentage (auto-converge). The first
/// percentage is computed from the guest's dirty rate and the link's bandwidth. It rises when passes
/// do not halve the rest, and falls when the guest dirties less. Needs the operation `throttle`.
pub const BRANT_SLOWING_ALL: u32 = 1;
/// In `brant_policy.slowing`: only vCPUs that dirty are slowed, by a limit on the pages that each may
/// write. Needs a log that tells vCPUs apart: KVM's dirty rings. The rings keep the limits
/// themselves, in `brant_tracker_ring_full`, so the operation `throttle` is not needed. Each sync
/// empties the rings, so a pass leaves a whole ring of each writing vCPU: where
/// `ring_bytes` / 16 pages of 4 KiB for each writer take longer than the downtime limit, the
/// migration does not converge. Example: 100 MB/s and 300 ms leave room for 7,300 pages, one ring of
/// 64 KiB. Enable rings of such a size (`docs/steering.md` has the formula).
pub const BRANT_SLOWING_WRITERS: u32 = 2;

/// In `brant_policy.on_deadline`, the default: the migration fails with BRANT_E_NOT_CONVERGED, and
/// the guest runs on.
pub const BRANT_DEADLINE_CANCEL: u32 = 0;
/// In `brant_policy.on_deadline`: the migration goes on until it converges or its total timeout is
/// over. An event says that the deadline has passed.
pub const BRANT_DEADLINE_CARRY_ON: u32 = 1;
/// In `brant_policy.on_deadline`: the guest is paused so early that everything is sent by the
/// deadline, however long it stands still. Such a pause is not aborted. A migration that has stalled
/// is paused at the next rest that is about as small as the smallest of the last passes, and does not
/// wait for the deadline. No downtime limit is too short for this policy: see BRANT_OVERRUN_CARRY_ON.
pub const BRANT_DEADLINE_PAUSE: u32 = 2;
/// In `brant_policy.on_deadline`: the guest is sent ahead of its memory at the deadline (postcopy). A
/// migration that has stalled, or whose downtime limit cannot be kept, does not wait for the deadline.
/// When the guest would stand still for longer than the limit even so, the migration fails with
/// BRANT_E_NOT_CONVERGED and the figure, and the guest runs on. Needs BRANT_POSTCOPY_ALLOWED.
pub const BRANT_DEADLINE_POSTCOPY: u32 = 3;

sized!(brant_policy);

/// A policy as C gave it.
///
/// # Safety
/// Null or a structure as its size says.
pub(super) unsafe fn policy(from: *const brant_policy) -> Result<Policy> {
    // SAFETY: the caller's contract.
    let p = unsafe { read(from) }?;
    if p.reserved != 0 {
        return Err(invalid(format!(
            "brant_policy.reserved is {}, not 0",
            p.reserved
        )));
    }
    let slowing = match p.slowing {
        BRANT_SLOWING_OFF => Slowing::Off,
        BRANT_SLOWING_ALL => Slowing::AutoConverge,
        BRANT_SLOWING_WRITERS => Slowing::DirtyLimit,
        other => {
            return Err(invalid(format!(
                "brant_policy.slowing is BRANT_SLOWING_OFF (0), BRANT_SLOWING_ALL (1) or \
                 BRANT_SLOWING_WRITERS (2), not {other}"
            )))
        }
    };
    let on_deadline = match p.on_deadline {
        BRANT_DEADLINE_CANCEL => OnDeadline::Cancel,
        BRANT_DEADLINE_CARRY_ON => OnDeadline::CarryOn,
        BRANT_DEADLINE_PAUSE => OnDeadline::PauseToFinish,
        BRANT_DEADLINE_POSTCOPY => OnDeadline::Postcopy,
        other => {
            return Err(invalid(format!(
            "brant_policy.on_deadline is BRANT_DEADLINE_CANCEL (0), BRANT_DEADLINE_CARRY_ON (1), \
                 BRANT_DEADLINE_PAUSE (2) or BRANT_DEADLINE_POSTCOPY (3), not {other}"
        )))
        }
    };
    let d = Policy::default();
    let some = |ms: u64| (ms != 0).then(|| Duration::from_millis(ms));
    Ok(Policy {
        slowing,
        throttle_max: match p.throttle_max {
            0 => d.throttle_max,
            // What does not fit is out of the range that is checked later.
            percent => u8::try_from(percent).unwrap_or(u8::MAX),
        },
        ceiling: some(p.downtime_ceiling_ms),
        deadline: some(p.deadline_ms),
        on_deadline,
        patience: some(p.stall_ms).unwrap_or(d.patience),
        sync: some(p.sync_ms).unwrap_or(d.sync),
    })
}

/// Sets the policy of a migration: before its start, the policy to begin with; while it runs, the
/// policy from the next batch of pages on. While the link takes nothing, no batch ends: then only
/// `deadline_ms` with BRANT_DEADLINE_CANCEL and `stall_ms` count, within a fifth of a second. The new
/// policy counts as if it had been in force from the start; its deadline, too, is counted from the
/// start of the migration. BRANT_E_INVALID for a field
/// out of range (the message has the range), and for a policy that needs `throttle` where the VMM has
/// none. BRANT_E_UNSUPPORTED for BRANT_SLOWING_WRITERS where no log tells vCPUs apart. Before the
/// start, only the ranges are checked here, and the rest at the start. After an error the policy is as
/// it was. From the pause on, and after the end, the call has no effect. Any thread, also inside
/// callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_set_policy(
    outgoing: *mut brant_outgoing,
    policy: *const brant_policy,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let outgoing = unsafe { handle(outgoing, "outgoing") }?;
        // SAFETY: null or a structure by contract.
        let policy = unsafe { self::policy(policy) }?;
        outgoing.outgoing.set_policy(policy)
    })
}

/// Changes the downtime limit (`brant_params.downtime_limit_ms`) of a migration, started or not: 1 to
/// 3600000 milliseconds, and at most the policy's ceiling. Counts from the next batch of pages on, and
/// for a pause in progress: a limit that is raised in time keeps that pause from being aborted.
/// BRANT_E_INVALID for a limit out of range; the limit then stays as it was. After the end the call
/// has no effect. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_set_downtime_limit(
    outgoing: *mut brant_outgoing,
    downtime_limit_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(outgoing, "outgoing") }?
            .outgoing
            .set_downtime_limit(Duration::from_millis(downtime_limit_ms))
    })
}

/// Switches over as soon as possible, however long the guest stands still: the pass ends with a sync,
/// the guest is paused, and neither the downtime limit nor its slack aborts that pause. A
/// BRANT_EVENT_DOWNTIME says how long the guest is expected to stand still. Returns at once; the rest
/// goes as after any other decision to switch over. A migration that has not started, or has sent
/// nothing yet, first sends as much as shows the link's bandwidth, so that the promise about the
/// downtime is one. Called again, it does nothing. From the pause on, and after the end: BRANT_E_STATE.
/// Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_outgoing_switch_over(
    outgoing: *mut brant_outgoing,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(outgoing, "outgoing") }?
            .outgoing
            .switch_over()
    })
}
