//! The figures of a migration as C sees them: one structure, the same on both sides.

use super::structs::sized;
use crate::migrate::report::nanos;
use crate::migrate::{LaneStats, Stats};

/// As the value of a time or a rate: not known yet.
pub const BRANT_UNKNOWN: u64 = 0xffff_ffff_ffff_ffff;

/// Source: not started.
pub const BRANT_SOURCE_IDLE: u32 = 0;
/// Source: making the connection.
pub const BRANT_SOURCE_CONNECTING: u32 = 1;
/// Source: agreeing on versions, configuration and memory layout.
pub const BRANT_SOURCE_NEGOTIATING: u32 = 2;
/// Source: sending memory while the guest runs.
pub const BRANT_SOURCE_COPYING: u32 = 3;
/// Source: waiting for the VMM to stop the guest.
pub const BRANT_SOURCE_PAUSING: u32 = 4;
/// Source: The VMM saves its state.
pub const BRANT_SOURCE_SAVING: u32 = 5;
/// Source: the last harvest of all logs.
pub const BRANT_SOURCE_LAST_SYNC: u32 = 6;
/// Source: sending the last pages, the end marker and the state.
pub const BRANT_SOURCE_SENDING_LAST: u32 = 7;
/// Source: the destination loads.
pub const BRANT_SOURCE_AWAITING_READY: u32 = 8;
/// Source: The VMM lets go of what only one may hold.
pub const BRANT_SOURCE_RELEASING: u32 = 9;
/// Source: racing a cancel for the gate.
pub const BRANT_SOURCE_COMMITTING: u32 = 10;
/// Source: the hand-over is being sent: too late to cancel.
pub const BRANT_SOURCE_HANDING_OVER: u32 = 11;
/// Source: handed over; the destination has not said yet that it runs.
pub const BRANT_SOURCE_AWAITING_RUNNING: u32 = 12;
/// Source: It failed before the hand-over: the VMM resumes the guest.
pub const BRANT_SOURCE_RESUMING: u32 = 13;
/// Source: the guest runs at the destination.
pub const BRANT_SOURCE_COMPLETED: u32 = 14;
/// Source: It failed; the guest runs here, as if nothing had been.
pub const BRANT_SOURCE_FAILED: u32 = 15;
/// Source: It failed and the VMM could not resume the guest, which stands paused here.
pub const BRANT_SOURCE_RESUME_FAILED: u32 = 16;
/// Source: handed over and never answered: the guest stands paused here until it is resolved.
pub const BRANT_SOURCE_UNANSWERED: u32 = 17;
/// Source: unanswered, and the VMM took the guest back.
pub const BRANT_SOURCE_TAKEN_BACK: u32 = 18;
/// Source: unanswered, and the VMM gave the guest up here.
pub const BRANT_SOURCE_GIVEN_UP: u32 = 19;
/// Source: handed over, and no answer can come any more; waiting until the destination has begun to
/// run the guest or never will.
pub const BRANT_SOURCE_IN_DOUBT: u32 = 20;
/// Source: the guest runs at the destination, and the memory there is compared with the memory here
/// (`brant_params.verify`).
pub const BRANT_SOURCE_VERIFYING: u32 = 21;
/// Source: a pause is aborted because the downtime would exceed its limit: the VMM resumes the guest.
/// BRANT_SOURCE_COPYING follows.
pub const BRANT_SOURCE_ABORTING_PAUSE: u32 = 22;
/// Source, postcopy: the guest runs at the destination, and the rest of its memory is being sent.
pub const BRANT_SOURCE_SERVING: u32 = 23;
/// Source, postcopy: the connections were lost after the hand-over. The rest of the guest's memory is kept
/// here until brant_outgoing_recover or brant_outgoing_resolve.
pub const BRANT_SOURCE_INTERRUPTED: u32 = 24;
/// Source, postcopy: the VMM has called brant_outgoing_recover, and the new connections are made.
/// BRANT_SOURCE_SERVING follows, or BRANT_SOURCE_INTERRUPTED after the connect timeout.
pub const BRANT_SOURCE_RECOVERING: u32 = 25;
/// Destination: not started.
pub const BRANT_DESTINATION_IDLE: u32 = 32;
/// Destination: waiting for a connection.
pub const BRANT_DESTINATION_LISTENING: u32 = 33;
/// Destination: agreeing on versions, configuration and memory layout.
pub const BRANT_DESTINATION_NEGOTIATING: u32 = 34;
/// Destination: memory arrives.
pub const BRANT_DESTINATION_RECEIVING: u32 = 35;
/// Destination: all of it is here; the state is being read and loaded.
pub const BRANT_DESTINATION_LOADING: u32 = 36;
/// Destination: telling the source so.
pub const BRANT_DESTINATION_READY: u32 = 37;
/// Destination: waiting for the hand-over.
pub const BRANT_DESTINATION_AWAITING_HANDOVER: u32 = 38;
/// Destination: racing a cancel for the gate.
pub const BRANT_DESTINATION_COMMITTING: u32 = 39;
/// Destination: The VMM starts the guest: too late to cancel.
pub const BRANT_DESTINATION_STARTING: u32 = 40;
/// Destination: the guest runs here.
pub const BRANT_DESTINATION_RUNNING: u32 = 41;
/// Destination: It failed, or the hand-over came too late: the guest never ran here and never will.
pub const BRANT_DESTINATION_FAILED: u32 = 42;
/// Destination: the guest was handed over and did not start.
pub const BRANT_DESTINATION_START_FAILED: u32 = 43;
/// Destination, postcopy: the guest runs here, and pages of its memory still arrive.
pub const BRANT_DESTINATION_COMPLETING: u32 = 44;
/// Destination, postcopy: the guest runs here, and the connections were lost before all of its memory
/// came. Whoever needs a missing page waits for it. The VMM decides (`brant_incoming_recover`,
/// `brant_incoming_give_up`).
pub const BRANT_DESTINATION_INTERRUPTED: u32 = 45;
/// Destination, postcopy: the guest runs here, and the VMM has given up pages of its memory.
pub const BRANT_DESTINATION_INCOMPLETE: u32 = 46;

/// In `brant_stats.stall`: the migration makes progress, or has not been without it for long enough.
pub const BRANT_STALL_NONE: u64 = 0;
/// In `brant_stats.stall`: the link carries less than half of what it did, or stands still.
pub const BRANT_STALL_LINK: u64 = 1;
/// In `brant_stats.stall`: the destination takes the time to acknowledge pages.
pub const BRANT_STALL_DESTINATION: u64 = 2;
/// In `brant_stats.stall`: the guest cannot be slowed further, and dirties as much as the link
/// carries.
pub const BRANT_STALL_THROTTLED: u64 = 3;
/// In `brant_stats.stall`: the guest dirties as much as the link carries.
pub const BRANT_STALL_DIRTYING: u64 = 4;

/// The figures of a migration, at either side. Times are nanoseconds, sizes bytes, pages 4 KiB.
/// Some figures tell the present and may fall: `total_bytes`, `remaining_bytes`,
/// `unacknowledged_pages`, `unacknowledged_bytes`, `throughput`, `bandwidth`,
/// `switchover_bandwidth`, `round_trip_ns`, `dirty_pages_per_second`, `time_left_ns`,
/// `expected_downtime_ns`, `sync_ns`, `downtime_limit_ns`, `throttle`, `limited_vcpus`, `stall`,
/// `device_left_bytes`, `missing_pages`, `fault_waiting`, `fault_p50_ns` and `fault_p99_ns`. All others only grow, until a pause is aborted: the figures of that pause
/// and its promise are 0 then. (`state` is a name and not a figure:
/// it goes from BRANT_SOURCE_IN_DOUBT to what follows, from
/// BRANT_SOURCE_ABORTING_PAUSE back to BRANT_SOURCE_COPYING, between BRANT_SOURCE_SERVING,
/// BRANT_SOURCE_INTERRUPTED and BRANT_SOURCE_RECOVERING in any direction, and back to BRANT_SOURCE_UNANSWERED where
/// `brant_outgoing_resolve` cannot resume the guest.)
///
/// `state`, `error` and `elapsed_ns` are those of the moment. The migration's thread brings all other
/// figures up to date, about every 50 ms while it sends or receives. While that thread waits (for
/// room in a connection, for its peer, or for an operation of the VMM's), `throughput` falls to 0
/// within a second, and the others stay as they were.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_stats {
    /// sizeof(brant_stats).
    pub size: usize,
    /// The migration's state: BRANT_SOURCE_* or BRANT_DESTINATION_*.
    pub state: u32,
    /// The pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// BRANT_E_*, why it failed; 0 if it has not failed.
    pub error: i32,
    /// How far the migration is, in hundredths of a percent, 0 to 10000. Source: pages sent so far,
    /// divided by the sum of those, the remaining pages and the pages that later passes will send
    /// by the forecast. Destination: pages received so far, divided by the sum of those and the
    /// remaining pages. Never falls. 10000 when the guest runs at the destination, and not before; with
    /// postcopy at the source from the switch on, at the destination when all pages are there, and
    /// `missing_pages` tells the rest. After a failure or a cancel it keeps its last value, at most 9999. `state` and `error` tell that the migration is over.
    pub progress: u32,
    /// The guest's memory.
    pub total_bytes: u64,
    /// Of these, what both processes have in common because it was handed over by descriptor
    /// (`brant_params.hand_over`): nothing of it is sent.
    pub shared_bytes: u64,
    /// Source: bytes that are pending now; `total_bytes` before the first pass. Destination:
    /// `total_bytes` less the pages received so far. 0 when the migration has completed; after a
    /// failure or a cancel it keeps its last value.
    pub remaining_bytes: u64,
    /// Bytes that went over all connections, headers included. At the source, bytes count when the
    /// records that they belong to have been sent: the figure stands still while a batch of pages
    /// (at most 2 MiB) is being sent, and then grows by all of it.
    pub wire_bytes: u64,
    /// Pages sent (received) with their contents; a page sent twice counts twice.
    pub data_pages: u64,
    /// Pages sent (received) as zero, without contents: holes, ballooned and free pages included.
    pub zero_pages: u64,
    /// Of the zero pages, those that were never touched and so never read. Source only.
    pub hole_pages: u64,
    /// Pages sent that the destination has not acknowledged. Source only.
    pub unacknowledged_pages: u64,
    /// Bytes of pages sent that the destination has not acknowledged: they are in buffers on the way.
    /// Source only.
    pub unacknowledged_bytes: u64,
    /// Of the data pages, those that went (came) compressed: `compressed_pages` times 4096 bytes
    /// became `compressed_bytes`.
    pub compressed_pages: u64,
    /// What the compressed pages became, in bytes.
    pub compressed_bytes: u64,
    /// Since the start.
    pub elapsed_ns: u64,
    /// Bytes a second over the last second or so, everything included.
    pub throughput: u64,
    /// Bytes a second that the link carries, as measured by what the destination acknowledged;
    /// BRANT_UNKNOWN until enough was sent to measure it. `brant_params.switchover_bandwidth` and `switchover_max_bandwidth` do
    /// not change it.
    pub bandwidth: u64,
    /// Bytes a second that `expected_downtime_ns` counts with: `brant_params.switchover_bandwidth`, or
    /// else `bandwidth`; at most `brant_params.switchover_max_bandwidth`. BRANT_UNKNOWN until one is
    /// known. Source only.
    pub switchover_bandwidth: u64,
    /// The time from a message to the destination's answer when nothing else is on its way.
    /// BRANT_UNKNOWN until it is measured, at the end of the first pass. Source only.
    pub round_trip_ns: u64,
    /// Pages a second that the guest wrote, as found by syncs that came when all pages of the sync
    /// before had been sent. A page that was written many times between two syncs counts once.
    /// BRANT_UNKNOWN before the first such sync, so during the whole first pass.
    pub dirty_pages_per_second: u64,
    /// The time until the remaining pages fit the downtime limit, at these rates. BRANT_UNKNOWN
    /// while one of the rates is unknown, when the link is not clearly faster than the guest, and
    /// after a failure.
    pub time_left_ns: u64,
    /// The downtime if the switchover came now: everything from the call of `pause` to the
    /// destination's word that the guest runs. The VMMs' operations and the size of the device state
    /// count as `brant_params` states them (`expected_pause_us` and so on), and as zero when nothing
    /// was stated or measured. BRANT_UNKNOWN before the first pass, and until a bandwidth is
    /// measured, `brant_params.switchover_bandwidth` states one, or a pass has ended.
    pub expected_downtime_ns: u64,
    /// `expected_downtime_ns` as it was when the guest was about to be paused, to compare with
    /// `downtime_ns`. 0 before. It does not change afterwards. BRANT_UNKNOWN where the guest was switched
    /// to postcopy before anything was measured. Its parts follow; the part that was measured stands in
    /// brackets.
    pub promised_downtime_ns: u64,
    /// Of the promise: the VMM's `pause` (`pause_ns`).
    pub promised_pause_ns: u64,
    /// Of the promise: the harvests of all logs (`last_sync_ns`).
    pub promised_sync_ns: u64,
    /// Of the promise: the VMM's `save` (`save_ns`).
    pub promised_save_ns: u64,
    /// Of the promise: sending the last pages (`memory_ns`).
    pub promised_memory_ns: u64,
    /// Of the promise: sending the device state (`state_sent_ns`).
    pub promised_state_ns: u64,
    /// Of the promise: the destination's `load` (`load_ns`).
    pub promised_load_ns: u64,
    /// Of the promise: the waits for the destination's answers (`round_trips_ns`).
    pub promised_round_trips_ns: u64,
    /// Of the promise: the VMM's `release` (`release_ns`).
    pub promised_release_ns: u64,
    /// Of the promise: the destination's `run` (`run_ns`).
    pub promised_run_ns: u64,
    /// How long the guest stood still: from the call of `pause` to the destination's word that the
    /// guest runs, or else to the return of `resume`. 0 before. When the guest still stands
    /// (unanswered, or not resumed), the time ends when that was known.
    pub downtime_ns: u64,
    /// Of the downtime: the VMM's `pause`.
    pub pause_ns: u64,
    /// Of the downtime: the VMM's `save`.
    pub save_ns: u64,
    /// Of the downtime: the harvests of all logs.
    pub last_sync_ns: u64,
    /// Of the downtime: sending the last pages and the state.
    pub last_send_ns: u64,
    /// Of the downtime: waiting for the destination to receive and load.
    pub ready_ns: u64,
    /// Of the downtime: the VMM's `release`.
    pub release_ns: u64,
    /// Of the downtime: the hand-over and the destination's `run`.
    pub handover_ns: u64,
    /// Destination: the VMM's `load` (told to the source).
    pub load_ns: u64,
    /// Destination: computing checksums of its memory, before `load` (told to the source); 0 unless the
    /// migration is verified (`brant_params.verify`). No promise counts with it.
    pub digest_ns: u64,
    /// Destination: the VMM's `run` (told to the source).
    pub run_ns: u64,
    /// Of the downtime: how long the last pages were on the link. The time from the first of them to
    /// the destination's READY, less `load_ns`, `digest_ns` and a round trip, is divided between pages
    /// and device state by their bytes. Source only.
    pub memory_ns: u64,
    /// Of the downtime: how long the device state was on the link. Source only.
    pub state_sent_ns: u64,
    /// Of the downtime: the two round trips that the answers READY and RUNNING took. Source only.
    pub round_trips_ns: u64,
    /// How much longer than the downtime limit the guest stood still, after a migration that
    /// completed; 0 when the limit was kept. A BRANT_EVENT_DOWNTIME says which parts took longer than
    /// promised. Source only.
    pub overrun_ns: u64,
    /// Pauses that were aborted because the downtime would have exceeded its limit. The guest ran on
    /// after each. At most 3. Source only.
    pub aborted_pauses: u64,
    /// How long the guest stood still in each of these pauses, the first one first. Source only.
    pub aborted_pause_ns: [u64; 3],
    /// The downtime limit in use: `brant_params.downtime_limit_ms`, as it was changed since, and as far
    /// as the policy has raised it. Source only.
    pub downtime_limit_ns: u64,
    /// The percentage of their time that the policy takes from all vCPUs now. Source only.
    pub throttle: u64,
    /// How many vCPUs the policy slows by a limit of their own now. Source only.
    pub limited_vcpus: u64,
    /// BRANT_STALL_*: why the migration makes no progress now. When nothing moves for
    /// `brant_policy.stall_ms` in the middle of a pass, this is BRANT_STALL_LINK or
    /// BRANT_STALL_DESTINATION until something moves again. Source only.
    pub stall: u64,
    /// Pages sent while the guest was paused.
    pub last_pages: u64,
    /// Bytes of device state in blobs.
    pub state_bytes: u64,
    /// Bytes of devices' state (brant_guest_add_device) that were sent (loaded) while the guest ran.
    pub device_running_bytes: u64,
    /// Bytes of devices' state that were sent (loaded) after the pause.
    pub device_stopped_bytes: u64,
    /// Bytes of devices' state that are not sent, as the devices last said. Source only.
    pub device_left_bytes: u64,
    /// How long callbacks have read (loaded) devices' state.
    pub device_time_ns: u64,
    /// Of the downtime: reading devices' state after the pause, and sending it. Source only.
    pub device_stopped_ns: u64,
    /// Syncs made.
    pub syncs: u64,
    /// The last sync that was made with the guest running.
    pub sync_ns: u64,
    /// Pages that syncs found.
    pub found_pages: u64,
    /// Calls that cleared chunks.
    pub clear_calls: u64,
    /// The longest restoring of one chunk.
    pub longest_clear_ns: u64,
    /// Pages put back into the tracker after a failure.
    pub put_back_pages: u64,
    /// Of the zero pages, the ballooned ones: the source names them, and neither reads nor sends
    /// them. A page that is named again counts again.
    pub ballooned_pages: u64,
    /// Pages that were pending and that free-page hints spared. Source only.
    pub hinted_pages: u64,
    /// Of the zero pages, those whose contents the VMM has declared lost
    /// (brant_guest_mark_poisoned), which are neither read nor sent. A page that is named again
    /// counts again. Source only.
    pub poisoned_pages: u64,
    /// Of the data pages, those that were sent again as what had changed in them
    /// (`brant_params.delta_cache_bytes`). Source only.
    pub delta_pages: u64,
    /// Bytes that these pages would have taken more if they had been sent whole. Source only.
    pub delta_saved_bytes: u64,
    /// Pages that were sent again, and whole because the cache did not hold their last version. A
    /// page enters the cache when it is sent for the second time, because most pages are sent only
    /// once. So the second sending of a page is always a miss. Source only.
    pub delta_missed_pages: u64,
    /// Pages that were sent again, and whole because too much had changed in them. Source only.
    pub delta_overflowed_pages: u64,
    /// For how long one channel had more pages than it could send while another had none: what
    /// several channels lose because each 2 MiB of memory belong to one of them. Divided by
    /// `elapsed_ns` it is a share of the migration. Source only; 0 with one channel.
    pub uneven_ns: u64,
    /// Pages that the host was asked to back just before their contents arrived
    /// (`brant_params.prefault`). Destination only.
    pub prefaulted_pages: u64,
    /// How often the host could not back pages ahead of their contents. Destination only.
    pub prefault_failures: u64,
    /// Bytes of pages that the kernel sent from guest memory without a copy
    /// (`brant_params.zero_copy`). Source only.
    pub zero_copied_bytes: u64,
    /// Bytes of pages that were to go without a copy and that the kernel copied after all. Source
    /// only.
    pub copied_anyway_bytes: u64,
    /// Sends that the kernel refused to make without a copy for want of memory that may be locked
    /// (RLIMIT_MEMLOCK, net.core.optmem_max), and that were copied. Source only.
    pub zero_copy_refused: u64,
    /// Whether pages go without a copy now, and why not: BRANT_ZERO_COPY_*. Source only.
    pub zero_copy: u64,
    /// Pages whose contents at the destination were compared with those here
    /// (`brant_params.verify`). Source only.
    pub verified_pages: u64,
    /// Pages that were not compared, because they were sent without being read: ballooned, hinted and
    /// poisoned ones, those of a block that was removed meanwhile, and the rest when the comparison
    /// ended early. Source only.
    pub unverified_pages: u64,
    /// Of the verified pages, those that differed, and pages of memory that was handed over by
    /// descriptor and was written before `run`. Source only.
    pub mismatched_pages: u64,
    /// The block of the first page that differed; BRANT_UNKNOWN when none did. Source only.
    pub first_mismatch_block: u64,
    /// The first page that differed, counted from the beginning of that block; BRANT_UNKNOWN when none
    /// did. Source only.
    pub first_mismatch_page: u64,
    /// For how long the pages were compared, after the downtime. The destination's part of the work is
    /// `digest_ns`. Source only.
    pub verify_ns: u64,
    /// Of the data pages, those that brant copied itself: to send them with a checksum, compressed or
    /// as a delta, or to keep them for later deltas. None of these can go without a copy. Source
    /// only.
    pub encoded_pages: u64,
    /// Postcopy: pages that have not arrived since the switch; at the source, that were not acknowledged.
    /// 0 when the switch was dropped or failed. Tells the present.
    pub missing_pages: u64,
    /// Postcopy: pages that arrived because somebody at the destination waited for them; at the source,
    /// those that were acknowledged on the urgent connection.
    pub urgent_pages: u64,
    /// Postcopy: pages that arrived after the switch before anybody waited for them; at the source, those
    /// that were acknowledged on all other connections.
    pub bulk_pages: u64,
    /// Postcopy: page faults of the guest on memory that was not here. A fault that the kernel tells of
    /// twice counts twice. Destination only.
    pub faults: u64,
    /// Postcopy: threads that wait for a page now. Tells the present. Destination only.
    pub fault_waiting: u64,
    /// Postcopy: half of the waits for a page were no longer, to an eighth. May fall. Destination only.
    pub fault_p50_ns: u64,
    /// Postcopy: 99 of 100 waits for a page were no longer, to an eighth. May fall. Destination only.
    pub fault_p99_ns: u64,
    /// Postcopy: the longest wait for a page that has ended. Destination only.
    pub fault_max_ns: u64,
    /// Postcopy: how long threads have waited for pages, the sum over all threads
    /// (`brant_incoming_get_blocked` has each). Destination only.
    pub fault_blocked_ns: u64,
    /// Postcopy: faults on pages that were not missing, which were answered here. Destination only.
    pub local_faults: u64,
    /// Postcopy: pages that were given up (`brant_incoming_give_up`). Destination only.
    pub lost_pages: u64,
    /// Postcopy: requests of the destination for pages that its guest waited for. A request may name
    /// several runs of pages. Source only.
    pub requests: u64,
    /// Postcopy: pages in these requests. Some of them were on their way already. Source only.
    pub requested_pages: u64,
    /// Postcopy: how often the migration went on over new connections. At the source a recovery counts
    /// once a page has arrived over them, or the session is complete; at the destination once both
    /// sides have agreed on them.
    pub recoveries: u64,
}

/// In `brant_stats.zero_copy`, beside BRANT_ZERO_COPY_OFF (it was not asked for) and
/// BRANT_ZERO_COPY_ON: the kernel cannot on this kind of connection.
pub const BRANT_ZERO_COPY_UNSUPPORTED: u32 = 2;
/// In `brant_stats.zero_copy`: the kernel copied each time all the same, so pages are copied at
/// once.
pub const BRANT_ZERO_COPY_COPIED: u32 = 3;
/// In `brant_stats.zero_copy`: not one send's memory may be locked.
pub const BRANT_ZERO_COPY_LIMIT: u32 = 4;
/// In `brant_stats.zero_copy`: nothing can go without a copy, and so far nothing has, because pages
/// travel with a checksum, compressed or as deltas (`encoded_pages`). With checksums that stays so.
/// With compression, the first pages that are not worth compressing turn this into
/// BRANT_ZERO_COPY_ON.
pub const BRANT_ZERO_COPY_ENCODED: u32 = 5;

sized!(brant_stats);

/// A channel: there is no connection yet, or the migration is over.
pub const BRANT_LANE_CLOSED: u32 = 0;
/// A channel: everything that was given to it is done and acknowledged.
pub const BRANT_LANE_IDLE: u32 = 1;
/// A channel: it has something to do, or waits for its peer.
pub const BRANT_LANE_BUSY: u32 = 2;

/// The figures of one channel of a migration, and of the thread that sends or receives on it. Times
/// are nanoseconds, sizes bytes, pages 4 KiB. `state`, `unacknowledged_pages`, `queued_pages` and
/// `silence_ns` tell the present and may fall; all others only grow.
///
/// At the source the migration's thread brings the figures of all channels up to date. While that
/// thread waits for room in a connection, the figures stay as they were before the wait. Example: the
/// destination's process is stopped. A channel is BRANT_LANE_BUSY, and its `silence_ns` and
/// `send_wait_ns` do not grow until the wait ends. At the destination the thread of each channel brings
/// the figures of that channel up to date after each record.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_lane_stats {
    /// sizeof(brant_lane_stats).
    pub size: usize,
    /// BRANT_LANE_*.
    pub state: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes that went over the connection, headers included.
    pub wire_bytes: u64,
    /// Pages sent (received) with their contents.
    pub data_pages: u64,
    /// Pages sent (received) as zero, without contents.
    pub zero_pages: u64,
    /// Pages sent that the destination has not acknowledged. Source only.
    pub unacknowledged_pages: u64,
    /// Pages that wait for the channel. Source only; 0 when there is one channel.
    pub queued_pages: u64,
    /// For how long the other channels waited because as many pages waited for this one as may wait.
    /// Source only; 0 on channel 0.
    pub queue_wait_ns: u64,
    /// For how long the connection had no room. Source only.
    pub send_wait_ns: u64,
    /// For how long the channel had nothing to do. Source: 0 on channel 0. Destination: for how long
    /// it waited for bytes.
    pub idle_ns: u64,
    /// For how long the destination has had something to acknowledge and has acknowledged nothing;
    /// 0 when it has nothing. Source only.
    pub silence_ns: u64,
}

sized!(brant_lane_stats);

impl From<&LaneStats> for brant_lane_stats {
    fn from(s: &LaneStats) -> Self {
        brant_lane_stats {
            size: size_of::<Self>(),
            state: s.state as u32,
            reserved: 0,
            wire_bytes: s.wire_bytes,
            data_pages: s.data_pages,
            zero_pages: s.zero_pages,
            unacknowledged_pages: s.unacknowledged_pages,
            queued_pages: s.queued_pages,
            queue_wait_ns: nanos(s.queue_wait),
            send_wait_ns: nanos(s.send_wait),
            idle_ns: nanos(s.idle),
            silence_ns: s.silence.map_or(0, nanos),
        }
    }
}

impl From<&Stats> for brant_stats {
    fn from(s: &Stats) -> Self {
        brant_stats {
            size: size_of::<Self>(),
            state: s.state.number(),
            pass: s.pass,
            error: s.error.map_or(0, |kind| kind as i32),
            progress: s.progress,
            total_bytes: s.total_bytes,
            shared_bytes: s.shared_bytes,
            remaining_bytes: s.remaining_bytes,
            wire_bytes: s.wire_bytes,
            data_pages: s.data_pages,
            zero_pages: s.zero_pages,
            hole_pages: s.hole_pages,
            unacknowledged_pages: s.unacknowledged_pages,
            unacknowledged_bytes: s.unacknowledged_bytes,
            compressed_pages: s.compressed_pages,
            compressed_bytes: s.compressed_bytes,
            elapsed_ns: nanos(s.elapsed),
            throughput: s.throughput,
            bandwidth: s.bandwidth.unwrap_or(BRANT_UNKNOWN),
            switchover_bandwidth: s.switchover_bandwidth.unwrap_or(BRANT_UNKNOWN),
            round_trip_ns: s.round_trip.map_or(BRANT_UNKNOWN, nanos),
            dirty_pages_per_second: s.dirty_pages_per_second.unwrap_or(BRANT_UNKNOWN),
            time_left_ns: s.time_left.map_or(BRANT_UNKNOWN, nanos),
            expected_downtime_ns: s.expected_downtime.map_or(BRANT_UNKNOWN, nanos),
            promised_downtime_ns: match (s.promised_downtime, s.pause) {
                (Some(promised), _) => nanos(promised),
                // The guest was paused, and nobody knew for how long.
                (None, Some(_)) => BRANT_UNKNOWN,
                (None, None) => 0,
            },
            promised_pause_ns: nanos(s.promised.pause),
            promised_sync_ns: nanos(s.promised.sync),
            promised_save_ns: nanos(s.promised.save),
            promised_memory_ns: nanos(s.promised.memory),
            promised_state_ns: nanos(s.promised.state),
            promised_load_ns: nanos(s.promised.load),
            promised_round_trips_ns: nanos(s.promised.round_trips),
            promised_release_ns: nanos(s.promised.release),
            promised_run_ns: nanos(s.promised.run),
            downtime_ns: s.downtime.map_or(0, nanos),
            pause_ns: s.pause.map_or(0, nanos),
            save_ns: s.save.map_or(0, nanos),
            last_sync_ns: s.last_sync.map_or(0, nanos),
            last_send_ns: s.last_send.map_or(0, nanos),
            ready_ns: s.ready.map_or(0, nanos),
            release_ns: s.release.map_or(0, nanos),
            handover_ns: s.handover.map_or(0, nanos),
            load_ns: s.load.map_or(0, nanos),
            digest_ns: s.digest.map_or(0, nanos),
            run_ns: s.run.map_or(0, nanos),
            memory_ns: s.memory.map_or(0, nanos),
            state_sent_ns: s.state_sent.map_or(0, nanos),
            round_trips_ns: s.round_trips.map_or(0, nanos),
            overrun_ns: nanos(s.overrun),
            aborted_pauses: s.aborted_pauses,
            aborted_pause_ns: s.aborted_pause.map(nanos),
            downtime_limit_ns: s.downtime_limit.map_or(0, nanos),
            throttle: s.throttle,
            limited_vcpus: s.limited_vcpus,
            stall: s
                .stall
                .map_or(BRANT_STALL_NONE, |cause| u64::from(cause as u32)),
            last_pages: s.last_pages,
            state_bytes: s.state_bytes,
            device_running_bytes: s.device_running_bytes,
            device_stopped_bytes: s.device_stopped_bytes,
            device_left_bytes: s.device_left_bytes,
            device_time_ns: nanos(s.device_time),
            device_stopped_ns: s.device_stopped.map_or(0, nanos),
            syncs: s.syncs,
            sync_ns: s.sync.map_or(0, nanos),
            found_pages: s.found_pages,
            clear_calls: s.clear_calls,
            longest_clear_ns: nanos(s.longest_clear),
            put_back_pages: s.put_back_pages,
            ballooned_pages: s.ballooned_pages,
            hinted_pages: s.hinted_pages,
            poisoned_pages: s.poisoned_pages,
            delta_pages: s.delta_pages,
            delta_saved_bytes: s.delta_saved_bytes,
            delta_missed_pages: s.delta_missed_pages,
            delta_overflowed_pages: s.delta_overflowed_pages,
            prefaulted_pages: s.prefaulted_pages,
            prefault_failures: s.prefault_failures,
            uneven_ns: nanos(s.uneven),
            zero_copied_bytes: s.zero_copied_bytes,
            copied_anyway_bytes: s.copied_anyway_bytes,
            zero_copy_refused: s.zero_copy_refused,
            zero_copy: s.zero_copy as u64,
            verified_pages: s.verified_pages,
            unverified_pages: s.unverified_pages,
            mismatched_pages: s.mismatched_pages,
            first_mismatch_block: s.first_mismatch_block.map_or(BRANT_UNKNOWN, u64::from),
            first_mismatch_page: s.first_mismatch_page.unwrap_or(BRANT_UNKNOWN),
            verify_ns: s.verify.map_or(0, nanos),
            encoded_pages: s.encoded_pages,
            missing_pages: s.missing_pages,
            urgent_pages: s.urgent_pages,
            bulk_pages: s.bulk_pages,
            faults: s.faults,
            fault_waiting: s.fault_waiting,
            fault_p50_ns: nanos(s.fault_p50),
            fault_p99_ns: nanos(s.fault_p99),
            fault_max_ns: nanos(s.fault_max),
            fault_blocked_ns: nanos(s.fault_blocked),
            local_faults: s.local_faults,
            lost_pages: s.lost_pages,
            requests: s.requests,
            requested_pages: s.requested_pages,
            recoveries: s.recoveries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::migrate::switchover::{destination, source};
    use std::time::Duration;

    #[test]
    fn what_is_not_known_has_the_headers_number_and_what_has_not_come_is_0() {
        let unknown = brant_stats::from(&Stats::default());
        let rates = [unknown.bandwidth, unknown.dirty_pages_per_second];
        let times = [unknown.time_left_ns, unknown.expected_downtime_ns];
        let used = [unknown.switchover_bandwidth, unknown.round_trip_ns];
        assert_eq!([rates, times, used], [[BRANT_UNKNOWN; 2]; 3]);
        assert_eq!((unknown.downtime_ns, unknown.promised_downtime_ns), (0, 0));
        assert_eq!((unknown.pause_ns, unknown.error), (0, 0));
        let unpromised = brant_stats::from(&Stats {
            pause: Some(Duration::ZERO),
            ..Stats::default()
        });
        assert_eq!(unpromised.promised_downtime_ns, BRANT_UNKNOWN);
        let known = brant_stats::from(&Stats {
            bandwidth: Some(5),
            time_left: Some(Duration::MAX),
            downtime: Some(Duration::from_nanos(7)),
            error: Some(Kind::Timeout),
            ..Stats::default()
        });
        assert_eq!((known.bandwidth, known.downtime_ns), (5, 7));
        // Longer than can be told, and still known.
        assert_eq!(known.time_left_ns, BRANT_UNKNOWN - 1);
        assert_eq!(known.error, -11);
    }

    #[test]
    fn lane_states_are_those_of_the_header() {
        use crate::migrate::LaneState as L;
        for (ours, header) in [
            (L::Closed, BRANT_LANE_CLOSED),
            (L::Idle, BRANT_LANE_IDLE),
            (L::Busy, BRANT_LANE_BUSY),
        ] {
            assert_eq!(ours as u32, header);
        }
        assert_eq!(brant_lane_stats::from(&LaneStats::default()).silence_ns, 0);
    }

    #[test]
    fn state_numbers_are_those_of_the_header() {
        use destination::State as D;
        use source::State as S;
        let all = [
            (S::Idle as u32, BRANT_SOURCE_IDLE),
            (S::Connecting as u32, BRANT_SOURCE_CONNECTING),
            (S::Negotiating as u32, BRANT_SOURCE_NEGOTIATING),
            (S::Copying as u32, BRANT_SOURCE_COPYING),
            (S::Pausing as u32, BRANT_SOURCE_PAUSING),
            (S::Saving as u32, BRANT_SOURCE_SAVING),
            (S::LastSync as u32, BRANT_SOURCE_LAST_SYNC),
            (S::SendingLast as u32, BRANT_SOURCE_SENDING_LAST),
            (S::AwaitingReady as u32, BRANT_SOURCE_AWAITING_READY),
            (S::Releasing as u32, BRANT_SOURCE_RELEASING),
            (S::Committing as u32, BRANT_SOURCE_COMMITTING),
            (S::HandingOver as u32, BRANT_SOURCE_HANDING_OVER),
            (S::AwaitingRunning as u32, BRANT_SOURCE_AWAITING_RUNNING),
            (S::Resuming as u32, BRANT_SOURCE_RESUMING),
            (S::Completed as u32, BRANT_SOURCE_COMPLETED),
            (S::Failed as u32, BRANT_SOURCE_FAILED),
            (S::ResumeFailed as u32, BRANT_SOURCE_RESUME_FAILED),
            (S::Unanswered as u32, BRANT_SOURCE_UNANSWERED),
            (S::InDoubt as u32, BRANT_SOURCE_IN_DOUBT),
            (S::Verifying as u32, BRANT_SOURCE_VERIFYING),
            (S::AbortingPause as u32, BRANT_SOURCE_ABORTING_PAUSE),
            (S::Serving as u32, BRANT_SOURCE_SERVING),
            (S::Interrupted as u32, BRANT_SOURCE_INTERRUPTED),
            (S::Recovering as u32, BRANT_SOURCE_RECOVERING),
            (S::TakenBack as u32, BRANT_SOURCE_TAKEN_BACK),
            (S::GivenUp as u32, BRANT_SOURCE_GIVEN_UP),
            (D::Idle as u32, BRANT_DESTINATION_IDLE),
            (D::Listening as u32, BRANT_DESTINATION_LISTENING),
            (D::Negotiating as u32, BRANT_DESTINATION_NEGOTIATING),
            (D::Receiving as u32, BRANT_DESTINATION_RECEIVING),
            (D::Loading as u32, BRANT_DESTINATION_LOADING),
            (D::Ready as u32, BRANT_DESTINATION_READY),
            (
                D::AwaitingHandover as u32,
                BRANT_DESTINATION_AWAITING_HANDOVER,
            ),
            (D::Committing as u32, BRANT_DESTINATION_COMMITTING),
            (D::Starting as u32, BRANT_DESTINATION_STARTING),
            (D::Running as u32, BRANT_DESTINATION_RUNNING),
            (D::Failed as u32, BRANT_DESTINATION_FAILED),
            (D::StartFailed as u32, BRANT_DESTINATION_START_FAILED),
            (D::Completing as u32, BRANT_DESTINATION_COMPLETING),
            (D::Interrupted as u32, BRANT_DESTINATION_INTERRUPTED),
            (D::Incomplete as u32, BRANT_DESTINATION_INCOMPLETE),
        ];
        for (ours, header) in all {
            assert_eq!(ours, header);
        }
    }
}
