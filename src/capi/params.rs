//! Parameters of a migration, 0 meaning what ships.

use super::error::invalid;
use super::structs::{read, sized};
use crate::error::Result;
use crate::migrate::{Compression, HandOver, Operations, Overrun, PageChecksums, Params};
use std::time::Duration;

/// As the value of a time limit: no limit.
pub const BRANT_NO_LIMIT: u64 = 0xffff_ffff_ffff_ffff;

/// Parameters of a migration. A field that is 0 has its default. A value out of range is
/// BRANT_E_INVALID, with the range in the message. A field that says "Source" has no effect at a
/// destination, and one that says "Destination" has none at a source; its value has to be in range
/// there too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_params {
    /// sizeof(brant_params).
    pub size: usize,
    /// The longest that the guest shall stand still, milliseconds, 1 to 3600000; default 300. It is a
    /// ceiling and not a target. The guest is paused only when the whole downtime is expected to fit:
    /// the remaining pages, the device state, two round trips, and the operations of both VMMs as far
    /// as `expected_pause_us` and its neighbours state them. When it fits, passes go on as long as
    /// the last pass made the rest smaller. So a guest that writes little stands still for much less.
    /// When the parts without the pages exceed the limit, no pass helps. `overrun` then decides.
    pub downtime_limit_ms: u64,
    /// Bytes a second that sending may use while the guest runs, all channels together, 64 KiB/s to
    /// 1 TiB/s; default no cap. In no second does brant give the kernel more than 2 % above the cap
    /// to send, headers included. Example: a cap of 100 MB/s is 102 MB in any second at most.
    /// `brant_outgoing_set_max_bandwidth` changes it. The switchover is not capped by it. brant does
    /// not take the cap for the speed of the link: now and then it measures how long a batch takes
    /// to arrive.
    pub max_bandwidth: u64,
    /// Bytes a second that the link will carry at the switchover, if you know that better than a
    /// measurement can (behind a cap, on a link that others will use then). Same range; default:
    /// the measured bandwidth. The expected downtime counts with this value, or else with the
    /// measured bandwidth; where `switchover_max_bandwidth` is less than that, with
    /// `switchover_max_bandwidth`. This value is an estimate: it holds nothing back.
    pub switchover_bandwidth: u64,
    /// Source: how far the downtime may exceed its limit before a pause is aborted, milliseconds, at
    /// most 3600000; default 0. When the guest stands still, the downtime is expected once more:
    /// after `pause`, and after `save`. If it would exceed the limit by more than this, `resume` is
    /// called and passes go on. (Once the limit has risen, what counts is the policy's
    /// `downtime_ceiling_ms`.) That happens at most three times; then `overrun` decides. Each
    /// aborted pause is in `brant_stats.aborted_pause_ns`.
    pub downtime_slack_ms: u64,
    /// Source: how long `pause` will take at this side, microseconds, at most 3600000000; 0 when
    /// unknown. This and the next five fields count in the expected downtime. A part that is unknown
    /// counts as zero, so the guest may stand still for longer than the limit by that part.
    pub expected_pause_us: u64,
    /// Source: how long `save` will take at this side, as `expected_pause_us`.
    pub expected_save_us: u64,
    /// Source: how long `load` and `loaded` will take at the destination, for all blobs together, as
    /// `expected_pause_us`.
    pub expected_load_us: u64,
    /// Source: how long `release` will take at this side, as `expected_pause_us`.
    pub expected_release_us: u64,
    /// Source: how long `run` will take at the destination, as `expected_pause_us`.
    pub expected_run_us: u64,
    /// Source: how many bytes of device state `save` will put, at most 1 TiB; 0 when unknown.
    pub expected_state_bytes: u64,
    /// The longest that a migration may take, milliseconds, 1 to 30 days; BRANT_NO_LIMIT. At the
    /// source it counts from the start to the switchover, default one hour. At the destination it
    /// counts from the source's first record to the hand-over, default one day: waiting for a
    /// connection does not count. Every wait ends with the earliest of all limits that apply to it.
    pub total_timeout_ms: u64,
    /// The limit for connecting, and once more for agreeing on versions, configuration and layout;
    /// milliseconds, 1 to 3600000; default 10000. At the source the second limit includes the
    /// destination's `early_load`. A listener gives each connection the same time for its first
    /// record.
    pub connect_timeout_ms: u64,
    /// The limit for a peer that moves no byte. One record has this time and the time that its
    /// bytes take at 64 KiB/s. Milliseconds, 1 to 3600000; default 30000. Between two records a
    /// destination waits for the switchover timeout if that is longer: the source's VMM may be
    /// saving.
    pub io_timeout_ms: u64,
    /// The limit from the call of `pause` to the hand-over: when it runs out, the source takes the
    /// guest back. At the destination it is the limit from ready to the hand-over, unless the
    /// source's hand-over timeout is shorter. Milliseconds, 1 to 3600000; default 30000.
    pub switchover_timeout_ms: u64,
    /// Source: how long a hand-over counts once the destination is ready; milliseconds, 1 to
    /// 3600000; default 30000. The source tells the destination. `release` is called in this time.
    /// When the time has run out, the source sends no hand-over and keeps the guest. A hand-over
    /// that is still under way then starts no guest at the destination. One second later the
    /// destination has begun `run` or never will. Only then is a migration that was handed over
    /// unanswered. Example: with the default, a guest whose destination dies at the hand-over
    /// stands still for 31 seconds before BRANT_E_UNANSWERED.
    pub handover_timeout_ms: u64,
    /// Destination: the most bytes of early configuration, and of device state, that brant takes; 4
    /// KiB to 1 TiB; default 256 MiB.
    pub max_state_bytes: u64,
    /// Destination: the most bytes of devices' state (brant_guest_add_device) that wait in memory
    /// because something before them has not come; 1 MiB to 1 TiB; default 256 MiB. Beyond it
    /// connections wait. Each connection has a mebibyte more in hand.
    pub max_device_buffer: u64,
    /// Source: the most memory for copies of sent pages, over all connections together; 1 MiB to 1
    /// TiB; default 0, none. With such a cache, a page that is sent again goes as what has changed
    /// in it, where that is less than the page. A destination that does not know deltas is refused
    /// (BRANT_E_VERSION). The memory is taken as pages come back. It is freed when the migration
    /// ends.
    pub delta_cache_bytes: u64,
    /// Source: bytes a second that sending may use from the pause on, 64 KiB/s to 1 TiB/s; default
    /// no cap. With a cap the guest stands still for longer. The expected downtime counts with the
    /// cap (see `switchover_bandwidth`), so the guest is paused when less is left to send.
    pub switchover_max_bandwidth: u64,
    /// Source: connections to the destination, 1 to 64; default 1. Destination: the most connections
    /// that it takes of a source, 1 to 64; default 64. A source that wants more is refused.
    pub channels: u32,
    /// Source: BRANT_COMPRESSION_*: whether contents of pages are compressed.
    pub compression: u32,
    /// Source: the level of zstd, 1 to 19; default 1. A higher level compresses more and takes
    /// longer.
    pub compression_level: i32,
    /// BRANT_CHECKSUMS_*: whether contents of pages travel with a checksum.
    pub page_checksums: u32,
    /// Source: BRANT_VERIFY_*: whether the destination's memory is compared with the memory here at
    /// the end.
    pub verify: u32,
    /// BRANT_ZERO_COPY_OFF or BRANT_ZERO_COPY_ON. Source only.
    pub zero_copy: u32,
    /// Destination: BRANT_PREFAULT_*: whether memory is backed just before contents arrive for it.
    pub prefault: u32,
    /// BRANT_BALLOONED_*: whether ballooned pages are sent.
    pub ballooned: u32,
    /// Source: BRANT_OVERRUN_*: what becomes of a migration whose downtime limit cannot be kept.
    pub overrun: u32,
    /// Source: BRANT_HAND_OVER_*: whether a destination on the same host gets memory by descriptors,
    /// without a copy.
    pub hand_over: u32,
    /// Source: BRANT_POSTCOPY_*: whether the guest may run at the destination before all of its memory
    /// is there.
    pub postcopy: u32,
    /// 0.
    pub reserved: u32,
}

/// In `brant_params.hand_over`, the default: all blocks are copied.
pub const BRANT_HAND_OVER_OFF: u32 = 0;
/// In `brant_params.hand_over`: over a unix socket, a block goes to the destination by the descriptor
/// of its file, where that is possible. Nothing of it is copied: both processes map the same pages, and
/// the guest stands still equally long whatever its size. Possible for a block that was described with
/// the descriptor of its file, is mapped from it with MAP_SHARED, and whose file is a memfd (of huge
/// pages too) that is sealed with F_SEAL_SHRINK or can be (MFD_ALLOW_SEALING). The destination's table
/// of operations needs `map_block`. All other blocks are copied. See `docs/hand-over.md`.
pub const BRANT_HAND_OVER_POSSIBLE: u32 = 1;
/// In `brant_params.hand_over`: every block goes by descriptor. When one has to be copied, the
/// migration fails with BRANT_E_UNSUPPORTED, and the message names the block and the reason. A
/// destination that takes no descriptors is refused (BRANT_E_VERSION).
pub const BRANT_HAND_OVER_ONLY: u32 = 2;

/// In `brant_params.postcopy`, the default: the guest runs at the destination when all of its memory is
/// there.
pub const BRANT_POSTCOPY_OFF: u32 = 0;
/// In `brant_params.postcopy`: brant_outgoing_start_postcopy and BRANT_DEADLINE_POSTCOPY may send the
/// guest ahead of its memory. There is one connection more than `channels`, for pages that the guest
/// waits for: with brant_outgoing_start_fds it is the last one. A destination that cannot serve the
/// faults of its guest refuses the source before the first page, and says which block and why. Not
/// together with BRANT_VERIFY_ON.
pub const BRANT_POSTCOPY_ALLOWED: u32 = 1;

/// In `brant_params.overrun`, the default: a migration whose downtime limit cannot be kept fails with
/// BRANT_E_NOT_CONVERGED, and the guest runs on. The message names the part that alone exceeds the
/// limit. Example: with a round trip of 100 ms and a limit of 50 ms the migration ends before the
/// first page is sent.
pub const BRANT_OVERRUN_FAIL: u32 = 0;
/// In `brant_params.overrun`: when the parts without the pages exceed the limit, the limit counts for
/// the pages alone, and the guest stands still for longer. A fourth pause is not aborted, whatever the
/// guest has written.
pub const BRANT_OVERRUN_CARRY_ON: u32 = 1;

/// In `brant_params.compression`, the default: pages are sent as they are. A destination takes
/// compressed pages all the same.
pub const BRANT_COMPRESSION_OFF: u32 = 0;
/// In `brant_params.compression`: contents are compressed (zstd) where that makes the migration
/// faster. Each connection measures what it carries with and without compression. Runs that do not
/// become smaller by an eighth are sent as they are. A destination that cannot decompress gets plain
/// pages.
pub const BRANT_COMPRESSION_ADAPTIVE: u32 = 1;
/// In `brant_params.compression`: contents are always compressed, but for runs that do not become
/// smaller by an eighth. For links where bytes cost more than time. A destination that cannot
/// decompress is refused (BRANT_E_VERSION). A library without the feature "compression" refuses this
/// value and BRANT_COMPRESSION_ADAPTIVE (BRANT_E_UNSUPPORTED).
pub const BRANT_COMPRESSION_ALWAYS: u32 = 2;

/// In `brant_params.zero_copy`, the default: the kernel copies pages when they are sent.
pub const BRANT_ZERO_COPY_OFF: u32 = 0;
/// In `brant_params.zero_copy`: pages go from guest memory to the network device without a copy
/// (MSG_ZEROCOPY), over TCP and vsock. It pays for links of 10 Gbit/s and more. The process needs
/// memory that it may lock (RLIMIT_MEMLOCK, net.core.optmem_max): a send that the kernel refuses
/// for want of it is copied. Pages that travel with a checksum, compressed or as a delta are copied
/// too (`brant_stats.encoded_pages`): with BRANT_CHECKSUMS_ON nothing goes without a copy. Where the
/// kernel copies all the same, as it does on loopback, brant goes back to copies after 32 sends in a
/// row, which are about 30 MB. All channels between the same two addresses find that out together.
/// `brant_stats.zero_copy` tells. The removal of a block waits until the kernel has sent the pages
/// of it that are on their way. When the destination takes nothing for the I/O timeout, the
/// migration fails, and the removal returns. A cancel from another thread ends that wait within 100
/// ms.
pub const BRANT_ZERO_COPY_ON: u32 = 1;

/// In `brant_params.page_checksums`, the default. Source: off. Destination: as the source wants.
pub const BRANT_CHECKSUMS_DEFAULT: u32 = 0;
/// In `brant_params.page_checksums`: contents of pages travel with a checksum (CRC-32). The
/// destination compares it before they reach guest memory. Damaged contents fail the migration with
/// BRANT_E_PROTOCOL, and the message names the block and the pages. The source copies pages to
/// compute the checksum, because the guest writes meanwhile. A peer that has checksums off, or does
/// not know them, is refused (BRANT_E_VERSION). Device state and control records always have
/// checksums.
pub const BRANT_CHECKSUMS_ON: u32 = 1;
/// In `brant_params.page_checksums`: no checksums of contents. A destination refuses a source that
/// has them on.
pub const BRANT_CHECKSUMS_OFF: u32 = 2;

/// In `brant_params.verify`, the default: memory is not compared.
pub const BRANT_VERIFY_OFF: u32 = 0;
/// In `brant_params.verify`: when all pages have arrived and before `load` is called, the destination
/// computes a checksum of each page (CRC-32). When the guest runs there, the source compares the
/// checksums with its own memory, in which nothing may be written from `release` to the end of the
/// migration. It leaves out what was sent without being read (ballooned, hinted and poisoned pages),
/// and what `load` writes comes later. Pages that differ are an event (BRANT_EVENT_MISMATCH), and
/// `brant_stats` counts them. They are no failure, and neither is a connection that breaks meanwhile:
/// the guest runs at the destination by then. An aid for testing. The guest stands still longer by the
/// time that the destination takes to read its memory (`digest_ns`), which `downtime_limit_ms` and
/// `expected_downtime_ns` do not count; `switchover_timeout_ms` has to leave room for it. At the
/// source the migration is over, and `brant_outgoing_wait` returns, only when all is compared or
/// `brant_outgoing_cancel` has ended the comparison. A destination that does not know this is refused (BRANT_E_VERSION).
pub const BRANT_VERIFY_ON: u32 = 1;

/// In `brant_params.prefault`, the default. The host backs memory just before contents arrive for
/// it, at most 2 MiB or one huge page ahead, and a thread of brant's (BRANT_ROLE_PREFAULT) helps.
/// Memory that is backed already, and memory that a userfaultfd watches, is left alone. Nothing is
/// backed for pages that arrive as zero. When the host cannot back a page, an event says why, no
/// more memory is backed ahead, and the read into that page fails the migration if it cannot be
/// backed then either.
pub const BRANT_PREFAULT_ON: u32 = 0;
/// In `brant_params.prefault`: the kernel backs a page when its contents are copied to it.
pub const BRANT_PREFAULT_OFF: u32 = 1;

/// In `brant_params.ballooned`, the default. The source neither reads nor sends ballooned pages;
/// the destination discards their memory. No page is ballooned unless the guest must tell first
/// (`brant_guest_must_tell_host`).
pub const BRANT_BALLOONED_SKIP: u32 = 0;
/// In `brant_params.ballooned`: ballooned pages are sent like any other. A destination sets this if
/// it must keep the memory of ballooned pages, because devices assigned to the guest have pinned
/// it. At a source that sets this, free-page hints do nothing.
pub const BRANT_BALLOONED_SEND: u32 = 1;

sized!(brant_params);

/// A time limit of C's.
pub(super) fn limit(timeout_ms: u64) -> Option<Duration> {
    (timeout_ms != BRANT_NO_LIMIT).then(|| Duration::from_millis(timeout_ms))
}

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
    if p.reserved != 0 {
        return Err(invalid(format!(
            "brant_params.reserved is {}, not 0",
            p.reserved
        )));
    }
    let hand_over = match p.hand_over {
        BRANT_HAND_OVER_OFF => HandOver::Off,
        BRANT_HAND_OVER_POSSIBLE => HandOver::WherePossible,
        BRANT_HAND_OVER_ONLY => HandOver::Only,
        other => {
            return Err(invalid(format!(
            "brant_params.hand_over is BRANT_HAND_OVER_OFF (0), BRANT_HAND_OVER_POSSIBLE (1) or \
                 BRANT_HAND_OVER_ONLY (2), not {other}"
        )))
        }
    };
    if p.postcopy > BRANT_POSTCOPY_ALLOWED {
        return Err(invalid(format!(
            "brant_params.postcopy is BRANT_POSTCOPY_OFF (0) or BRANT_POSTCOPY_ALLOWED (1), not {}",
            p.postcopy
        )));
    }
    if p.verify > BRANT_VERIFY_ON {
        return Err(invalid(format!(
            "brant_params.verify is BRANT_VERIFY_OFF (0) or BRANT_VERIFY_ON (1), not {}",
            p.verify
        )));
    }
    let overrun = match p.overrun {
        BRANT_OVERRUN_FAIL => Overrun::Fail,
        BRANT_OVERRUN_CARRY_ON => Overrun::CarryOn,
        other => {
            return Err(invalid(format!(
                "brant_params.overrun is BRANT_OVERRUN_FAIL (0) or BRANT_OVERRUN_CARRY_ON (1), not \
                 {other}"
            )))
        }
    };
    if p.zero_copy > BRANT_ZERO_COPY_ON {
        return Err(invalid(format!(
            "brant_params.zero_copy is BRANT_ZERO_COPY_OFF (0) or BRANT_ZERO_COPY_ON (1), not {}",
            p.zero_copy
        )));
    }
    if p.prefault > BRANT_PREFAULT_OFF {
        return Err(invalid(format!(
            "brant_params.prefault is BRANT_PREFAULT_ON (0) or BRANT_PREFAULT_OFF (1), not {}",
            p.prefault
        )));
    }
    if p.ballooned > BRANT_BALLOONED_SEND {
        return Err(invalid(format!(
            "brant_params.ballooned is BRANT_BALLOONED_SKIP (0) or BRANT_BALLOONED_SEND (1), not {}",
            p.ballooned
        )));
    }
    let compression = match p.compression {
        BRANT_COMPRESSION_OFF => Compression::Off,
        BRANT_COMPRESSION_ADAPTIVE => Compression::Adaptive,
        BRANT_COMPRESSION_ALWAYS => Compression::Always,
        other => {
            return Err(invalid(format!(
                "brant_params.compression is BRANT_COMPRESSION_OFF (0), BRANT_COMPRESSION_ADAPTIVE (1) or \
                 BRANT_COMPRESSION_ALWAYS (2), not {other}"
            )))
        }
    };
    let page_checksums = match p.page_checksums {
        BRANT_CHECKSUMS_DEFAULT => PageChecksums::Default,
        BRANT_CHECKSUMS_ON => PageChecksums::On,
        BRANT_CHECKSUMS_OFF => PageChecksums::Off,
        other => {
            return Err(invalid(format!(
                "brant_params.page_checksums is BRANT_CHECKSUMS_DEFAULT (0), BRANT_CHECKSUMS_ON (1) or \
                 BRANT_CHECKSUMS_OFF (2), not {other}"
            )))
        }
    };
    let ms = |value: u64, default: Duration| match value {
        0 => default,
        ms => Duration::from_millis(ms),
    };
    let some = |value: u64| (value != 0).then_some(value);
    let micros = |value: u64| some(value).map(Duration::from_micros);
    let total = |value: u64, default: Option<Duration>| match value {
        0 => default,
        BRANT_NO_LIMIT => None,
        limit => Some(Duration::from_millis(limit)),
    };
    let params = Params {
        downtime_limit: ms(p.downtime_limit_ms, d.downtime_limit),
        max_bandwidth: some(p.max_bandwidth),
        switchover_bandwidth: some(p.switchover_bandwidth),
        expected: Operations {
            pause: micros(p.expected_pause_us),
            save: micros(p.expected_save_us),
            load: micros(p.expected_load_us),
            release: micros(p.expected_release_us),
            run: micros(p.expected_run_us),
            state_bytes: some(p.expected_state_bytes),
        },
        downtime_slack: Duration::from_millis(p.downtime_slack_ms),
        overrun,
        policy: d.policy,
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
        incoming_channels: if p.channels == 0 {
            d.incoming_channels
        } else {
            p.channels
        },
        max_state_bytes: if p.max_state_bytes == 0 {
            d.max_state_bytes
        } else {
            p.max_state_bytes
        },
        max_device_buffer: if p.max_device_buffer == 0 {
            d.max_device_buffer
        } else {
            p.max_device_buffer
        },
        compression,
        compression_level: p.compression_level,
        page_checksums,
        verify: p.verify == BRANT_VERIFY_ON,
        hand_over,
        delta_cache_bytes: some(p.delta_cache_bytes),
        switchover_max_bandwidth: some(p.switchover_max_bandwidth),
        zero_copy: p.zero_copy == BRANT_ZERO_COPY_ON,
        prefault: p.prefault == BRANT_PREFAULT_ON,
        skip_ballooned: p.ballooned == BRANT_BALLOONED_SKIP,
        postcopy: p.postcopy == BRANT_POSTCOPY_ALLOWED,
    };
    params.check()?;
    Ok(params)
}
