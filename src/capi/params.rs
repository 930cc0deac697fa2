//! Parameters of a migration, 0 meaning what ships.

use super::error::invalid;
use super::structs::{read, sized};
use crate::error::Result;
use crate::migrate::Params;
use std::time::Duration;

/// In a time limit: none.
pub const BRANT_NO_LIMIT: u64 = 0xffff_ffff_ffff_ffff;

/// Parameters of a migration. 0 is the default everywhere; what is out of range is
/// BRANT_E_INVALID with the range in the message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_params {
    /// sizeof(brant_params).
    pub size: usize,
    /// The longest that the guest shall stand still, milliseconds, 1 to 3600000; default 300.
    /// A ceiling for the decision to switch over: not a promise, and not a target. Where the
    /// rest fits, passes go on as long as the last one made it smaller, so a guest that writes
    /// little stands still for much less.
    pub downtime_limit_ms: u64,
    /// Bytes a second that sending may use while the guest runs, 64 KiB/s to 1 TiB/s; default
    /// no cap. The switchover is not capped, and the link is not taken to be as slow as the cap:
    /// now and then a batch is timed until it has arrived.
    pub max_bandwidth: u64,
    /// Bytes a second that will be there at the switchover, when you know better than a
    /// measurement can (behind a cap, on a link that others will use then); same range; default
    /// as measured.
    pub switchover_bandwidth: u64,
    /// The longest that a migration may take, milliseconds, 1 to 30 days; BRANT_NO_LIMIT. At the
    /// source from its start to the switchover, default one hour. At the destination from the
    /// source's first record to the hand-over, default one day: waiting for somebody to connect
    /// does not count. Whatever is waited for ends with the earliest of all limits that apply.
    pub total_timeout_ms: u64,
    /// For connecting, and once more for agreeing on versions, configuration and layout;
    /// milliseconds, 1 to 3600000; default 10000. At the source the destination's `early_load` is
    /// part of the second. A listener gives each connection as long for its first record.
    pub connect_timeout_ms: u64,
    /// For a peer that moves not one byte; also for one record, which has beyond it the time that
    /// its bytes take at 64 KiB/s. Milliseconds, 1 to 3600000; default 30000. Between two
    /// records a destination waits for the switchover timeout if that is longer: the source's
    /// VMM may be saving.
    pub io_timeout_ms: u64,
    /// From the pause to the hand-over, past which the source takes the guest back, and at the
    /// destination from ready to the hand-over, where the source's hand-over timeout is not
    /// shorter; milliseconds, 1 to 3600000; default 30000.
    pub switchover_timeout_ms: u64,
    /// Source: how long a hand-over counts once the destination is ready, which is told so;
    /// milliseconds, 1 to 3600000; default 30000. `release` comes in this time. When it has run
    /// out, the source sends no hand-over and keeps the guest, and the destination runs nothing
    /// on one that is under way. One second later the destination has begun `run` or
    /// never will, and only then is a migration that was handed over unanswered.
    pub handover_timeout_ms: u64,
    /// Destination: the most bytes of early configuration, and of device state, that it takes;
    /// 4 KiB to 1 TiB; default 256 MiB.
    pub max_state_bytes: u64,
    /// Connections; 1.
    pub channels: u32,
    /// 0.
    pub reserved: u32,
    /// BRANT_BALLOONED_*: what becomes of ballooned pages.
    pub ballooned: u32,
    /// 0.
    pub reserved2: u32,
}

/// In `brant_params.ballooned`, the default. The source neither reads nor sends ballooned pages;
/// the destination discards their memory. No page is ballooned unless the guest must tell first
/// (`brant_guest_must_tell_host`).
pub const BRANT_BALLOONED_SKIP: u32 = 0;
/// In `brant_params.ballooned`: ballooned pages are sent like any other. A destination wants it so
/// if it must not lose the memory behind them, because devices assigned to the guest have pinned
/// it. At the source free-page hints do nothing then.
pub const BRANT_BALLOONED_SEND: u32 = 1;

sized!(brant_params);

/// Parameters as C gave them; null is what ships.
///
/// # Safety
/// Null or a structure as its size says.
pub(super) unsafe fn params(from: *const brant_params) -> Result<Params> {
    let d = Params::default();
    if from.is_null() {
        return Ok(d);
    }
    // SAFETY: the caller's contract.
    let p = unsafe { read(from) }?;
    if p.reserved != 0 || p.reserved2 != 0 {
        return Err(invalid(
            "brant_params.reserved or brant_params.reserved2 is not 0",
        ));
    }
    if p.ballooned > BRANT_BALLOONED_SEND {
        return Err(invalid(format!(
            "brant_params.ballooned is BRANT_BALLOONED_SKIP (0) or BRANT_BALLOONED_SEND (1), not {}",
            p.ballooned
        )));
    }
    let ms = |value: u64, default: Duration| match value {
        0 => default,
        ms => Duration::from_millis(ms),
    };
    let some = |value: u64| (value != 0).then_some(value);
    let total = |value: u64, default: Option<Duration>| match value {
        0 => default,
        BRANT_NO_LIMIT => None,
        limit => Some(Duration::from_millis(limit)),
    };
    let params = Params {
        downtime_limit: ms(p.downtime_limit_ms, d.downtime_limit),
        max_bandwidth: some(p.max_bandwidth),
        switchover_bandwidth: some(p.switchover_bandwidth),
        total_timeout: total(p.total_timeout_ms, d.total_timeout),
        incoming_timeout: total(p.total_timeout_ms, d.incoming_timeout),
        connect_timeout: ms(p.connect_timeout_ms, d.connect_timeout),
        io_timeout: ms(p.io_timeout_ms, d.io_timeout),
        switchover_timeout: ms(p.switchover_timeout_ms, d.switchover_timeout),
        handover_timeout: ms(p.handover_timeout_ms, d.handover_timeout),
        channels: if p.channels == 0 {
            d.channels
        } else {
            p.channels
        },
        max_state_bytes: if p.max_state_bytes == 0 {
            d.max_state_bytes
        } else {
            p.max_state_bytes
        },
        skip_ballooned: p.ballooned == BRANT_BALLOONED_SKIP,
    };
    params.check()?;
    Ok(params)
}
