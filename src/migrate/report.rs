//! The figures of a migration that a user sees, as one structure.
//!
//! The drivers fill the figures. `arithmetic` computes those that follow from others, `json` writes them
//! as text, `lanes` has those of single channels, and `renew` decides how often they are renewed.

mod arithmetic;
mod json;
mod lanes;
mod renew;
mod zero_copy;

use super::state::State;
use super::steering::fits_downtime::ABORTED_PAUSES_MAX;
use super::steering::stall::Cause;
use super::steering::Parts;
use crate::error::Kind;
use serde::Serialize;
use std::time::Duration;

pub use json::JSON_MAX;
pub use lanes::{LaneState, LaneStats};
pub(super) use renew::{Meter, Renewed, RENEW};
pub use zero_copy::ZeroCopyState;

/// The figures of a migration, at either side. Pages are 4 KiB. Figures of the present moment may
/// fall: `total_bytes`, `remaining_bytes`, `unacknowledged_pages`, `unacknowledged_bytes`,
/// `throughput`, `bandwidth`, `switchover_bandwidth`, `round_trip`, `dirty_pages_per_second`,
/// `time_left`, `expected_downtime`, `device_left_bytes`, `sync`, `downtime_limit`, `throttle`,
/// `limited_vcpus` and `stall`. All others only grow, until a pause is aborted: the
/// figures of that pause and its promise are forgotten then.
///
/// `None` means that the figure is not known yet, or never known at this side.
///
/// ```
/// use brant::migrate::Stats;
///
/// /// One line for a person who waits.
/// fn line(stats: &Stats) -> String {
///     let left = match stats.time_left {
///         Some(left) => format!("{:.1} s left", left.as_secs_f64()),
///         None => "time left unknown".into(),
///     };
///     format!("{:.1} %, {left}", f64::from(stats.progress) / 100.0)
/// }
///
/// assert_eq!(line(&Stats::default()), "0.0 %, time left unknown");
/// ```
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The migration state.
    pub state: State,
    /// The pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// Why the migration failed.
    #[serde(serialize_with = "json::as_code")]
    pub error: Option<Kind>,
    /// The progress in hundredths of a percent, 0 to 10000. Source: pages sent so far, as a part of
    /// these, the pages that remain, and those that later passes will send by the forecast.
    /// Destination: pages received so far, as a part of these and the pages that remain. It never
    /// falls, and is 10000 only once the guest runs at the destination. After a failure or a cancel
    /// it keeps its last value, at most 9999. `state` and `error` tell that the migration is over.
    pub progress: u32,
    /// The guest's memory.
    pub total_bytes: u64,
    /// Of these, what both processes have in common because it was handed over by descriptor
    /// ([`Params::hand_over`](crate::migrate::Params::hand_over)): nothing of it is sent.
    pub shared_bytes: u64,
    /// Source: bytes pending now; `total_bytes` before the first pass. Destination: `total_bytes`
    /// less the pages received so far. 0 after success; after a failure or a cancel, the last
    /// value.
    pub remaining_bytes: u64,
    /// Bytes that went over the connection, headers included.
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
    /// Of the data pages, those that were sent (received) compressed.
    pub compressed_pages: u64,
    /// The size of the compressed pages after compression, in bytes.
    pub compressed_bytes: u64,
    /// Time since the start.
    #[serde(rename = "elapsed_ns", serialize_with = "json::as_nanos")]
    pub elapsed: Duration,
    /// Bytes a second over about the last second, everything included.
    pub throughput: u64,
    /// Bytes a second that the link carries, as measured while sending. What [`Params`] says about
    /// the switchover's bandwidth does not change it. `None` until enough was sent to measure it.
    ///
    /// [`Params`]: crate::migrate::Params
    pub bandwidth: Option<u64>,
    /// Bytes a second that the expected downtime counts with: the stated bandwidth, or else the
    /// measured one; at most the cap of the switchover. `None` until one is known. Source only.
    pub switchover_bandwidth: Option<u64>,
    /// The time from a message to the destination's answer when nothing else is on its way. `None`
    /// until it is measured, at the end of the first pass. Source only.
    #[serde(rename = "round_trip_ns", serialize_with = "json::as_nanos_or_null")]
    pub round_trip: Option<Duration>,
    /// Pages a second that the guest wrote. Only syncs before which every pending page had been
    /// sent count. A page that was written many times between two syncs counts once. `None` before
    /// the first such sync, so during the whole first pass.
    pub dirty_pages_per_second: Option<u64>,
    /// Time until the rest fits the downtime limit, by `bandwidth` and `dirty_pages_per_second`.
    /// `None` while one of the two is unknown, when the link is not clearly faster than the guest,
    /// and after a failure.
    #[serde(rename = "time_left_ns", serialize_with = "json::as_nanos_or_null")]
    pub time_left: Option<Duration>,
    /// The downtime if the switchover came now. `None` before the first pass, and until a bandwidth
    /// is measured, is stated ([`Params::switchover_bandwidth`]), or a pass has ended.
    ///
    /// [`Params::switchover_bandwidth`]: crate::migrate::Params::switchover_bandwidth
    #[serde(
        rename = "expected_downtime_ns",
        serialize_with = "json::as_nanos_or_null"
    )]
    pub expected_downtime: Option<Duration>,
    /// The downtime that was expected when the guest was paused, to compare with `downtime`. `None`
    /// before, and where nothing was known by then: a switch to postcopy may be asked for before
    /// anything was measured.
    #[serde(
        rename = "promised_downtime_ns",
        serialize_with = "json::as_nanos_or_null"
    )]
    pub promised_downtime: Option<Duration>,
    /// The parts of `promised_downtime`, when the decider is brant's own. Each stands beside what
    /// happened: `pause`, `last_sync`, `save`, `memory`, `state_sent`, `load`, `round_trips`,
    /// `release` and `run`. Zero before, and for a part that nobody stated or measured. Source only.
    #[serde(flatten, serialize_with = "json::as_promised")]
    pub promised: Parts,
    /// How long the guest stood still: from the call of `pause` to the destination's word that the
    /// guest runs, or to the return of `resume` after a failure. `None` before. When the guest
    /// still stands (unanswered, or not resumed), the time until this became known.
    #[serde(rename = "downtime_ns", serialize_with = "json::as_nanos_or_0")]
    pub downtime: Option<Duration>,
    /// Of the downtime: the VMM's `pause`.
    #[serde(rename = "pause_ns", serialize_with = "json::as_nanos_or_0")]
    pub pause: Option<Duration>,
    /// Of the downtime: the VMM's `save`.
    #[serde(rename = "save_ns", serialize_with = "json::as_nanos_or_0")]
    pub save: Option<Duration>,
    /// Of the downtime: the harvests of all logs.
    #[serde(rename = "last_sync_ns", serialize_with = "json::as_nanos_or_0")]
    pub last_sync: Option<Duration>,
    /// Of the downtime: sending the last pages and the state.
    #[serde(rename = "last_send_ns", serialize_with = "json::as_nanos_or_0")]
    pub last_send: Option<Duration>,
    /// Of the downtime: waiting for the destination to receive and load.
    #[serde(rename = "ready_ns", serialize_with = "json::as_nanos_or_0")]
    pub ready: Option<Duration>,
    /// Of the downtime: the VMM's `release`.
    #[serde(rename = "release_ns", serialize_with = "json::as_nanos_or_0")]
    pub release: Option<Duration>,
    /// Of the downtime: the hand-over and the destination's `run`.
    #[serde(rename = "handover_ns", serialize_with = "json::as_nanos_or_0")]
    pub handover: Option<Duration>,
    /// Destination: the VMM's `load` (told to the source).
    #[serde(rename = "load_ns", serialize_with = "json::as_nanos_or_0")]
    pub load: Option<Duration>,
    /// Destination: computing checksums of its memory, before `load` (told to the source). `None`
    /// unless the migration is verified ([`Params::verify`](crate::migrate::Params::verify)). No
    /// promise counts with it.
    #[serde(rename = "digest_ns", serialize_with = "json::as_nanos_or_0")]
    pub digest: Option<Duration>,
    /// Destination: the VMM's `run` (told to the source).
    #[serde(rename = "run_ns", serialize_with = "json::as_nanos_or_0")]
    pub run: Option<Duration>,
    /// Of the downtime: how long the last pages were on the link. The time from the first of them to
    /// READY, less `load`, `digest` and a round trip, is divided between pages and device state by
    /// their bytes. Source only.
    #[serde(rename = "memory_ns", serialize_with = "json::as_nanos_or_0")]
    pub memory: Option<Duration>,
    /// Of the downtime: how long the device state was on the link. Source only.
    #[serde(rename = "state_sent_ns", serialize_with = "json::as_nanos_or_0")]
    pub state_sent: Option<Duration>,
    /// Of the downtime: the round trips that READY and RUNNING took, as long as the hand-over's. Source
    /// only.
    #[serde(rename = "round_trips_ns", serialize_with = "json::as_nanos_or_0")]
    pub round_trips: Option<Duration>,
    /// How much longer than the downtime limit the guest stood still, after a migration that
    /// completed. An event says which parts took longer than promised. Source only.
    #[serde(rename = "overrun_ns", serialize_with = "json::as_nanos")]
    pub overrun: Duration,
    /// Pauses that were aborted because the downtime would have exceeded its limit. The guest ran on
    /// after each. Source only.
    pub aborted_pauses: u64,
    /// How long the guest stood still in each of the aborted pauses, the first one first. Source only.
    #[serde(rename = "aborted_pause_ns", serialize_with = "json::as_list_of_nanos")]
    pub aborted_pause: [Duration; ABORTED_PAUSES_MAX as usize],
    /// The downtime limit in use: [`Params::downtime_limit`](crate::migrate::Params::downtime_limit),
    /// as it was changed since, and as far as the policy has raised it. Source only.
    #[serde(rename = "downtime_limit_ns", serialize_with = "json::as_nanos_or_0")]
    pub downtime_limit: Option<Duration>,
    /// The percentage of their time that the policy takes from all vCPUs now. Source only.
    pub throttle: u64,
    /// How many vCPUs the policy slows by a limit of their own now. Source only.
    pub limited_vcpus: u64,
    /// Why the migration makes no progress now. In JSON a number, 0 without a stall. When nothing
    /// moves for [`Policy::patience`](crate::migrate::Policy::patience) in the middle of a pass, this
    /// is [`Cause::Link`] or [`Cause::Destination`] until something moves again
    /// ([`EventKind::Stalled`](crate::vmm::EventKind::Stalled)). Source only.
    #[serde(serialize_with = "json::as_cause")]
    pub stall: Option<Cause>,
    /// Pages sent while the guest was paused.
    pub last_pages: u64,
    /// Bytes of device state in blobs.
    pub state_bytes: u64,
    /// Bytes of devices' state that were sent (loaded) while the guest ran.
    pub device_running_bytes: u64,
    /// Bytes of devices' state that were sent (loaded) after the pause.
    pub device_stopped_bytes: u64,
    /// Bytes of devices' state that are not sent, as the devices last said. Source only.
    pub device_left_bytes: u64,
    /// How long calls have read (loaded) devices' state.
    #[serde(rename = "device_time_ns", serialize_with = "json::as_nanos")]
    pub device_time: Duration,
    /// Of the downtime: reading devices' state after the pause, and sending it. Source only.
    #[serde(rename = "device_stopped_ns", serialize_with = "json::as_nanos_or_0")]
    pub device_stopped: Option<Duration>,
    /// Syncs made.
    pub syncs: u64,
    /// Time of the last sync that was made with the guest running.
    #[serde(rename = "sync_ns", serialize_with = "json::as_nanos_or_0")]
    pub sync: Option<Duration>,
    /// Pages that became pending by syncs.
    pub found_pages: u64,
    /// Calls that cleared chunks.
    pub clear_calls: u64,
    /// The longest restoring of one chunk.
    #[serde(rename = "longest_clear_ns", serialize_with = "json::as_nanos")]
    pub longest_clear: Duration,
    /// Pages put back into the tracker after a failure.
    pub put_back_pages: u64,
    /// Of the zero pages, the ballooned ones: neither read nor sent (received as ballooned). A page
    /// that is named again counts again.
    pub ballooned_pages: u64,
    /// Pages that free-page hints took out of pending. Source only.
    pub hinted_pages: u64,
    /// Of the zero pages, the poisoned ones, whose contents the VMM has declared lost: neither read
    /// nor sent. A page that is named again counts again. Source only.
    pub poisoned_pages: u64,
    /// Of the data pages, those that were sent again as deltas. Source only.
    pub delta_pages: u64,
    /// Bytes that deltas saved: the size of the delta pages less the size of their deltas. Source
    /// only.
    pub delta_saved_bytes: u64,
    /// Pages that were sent again as a whole because the cache did not hold their last version. A
    /// page enters the cache when it is sent for the second time, so the second sending of every
    /// page counts here. Source only.
    pub delta_missed_pages: u64,
    /// Pages that were sent again as a whole because too much had changed in them. Source only.
    pub delta_overflowed_pages: u64,
    /// How long one channel had more pages than it could send while another had none. Several
    /// channels lose this time because each stretch of memory belongs to one of them. Divided by
    /// `elapsed`, it is a share of the migration. Source only; 0 with one channel.
    #[serde(rename = "uneven_ns", serialize_with = "json::as_nanos")]
    pub uneven: Duration,
    /// Pages that the host was asked to back just before their contents arrived. Destination only.
    pub prefaulted_pages: u64,
    /// How often the host could not back pages ahead of their contents. Destination only.
    pub prefault_failures: u64,
    /// Bytes of pages that the kernel sent from guest memory without a copy. Source only.
    pub zero_copied_bytes: u64,
    /// Bytes of pages that brant sent without a copy and that the kernel copied all the same. On
    /// loopback the kernel always does. Source only.
    pub copied_anyway_bytes: u64,
    /// Sends that the kernel refused to make without a copy, and that were then copied. The reason
    /// is a limit on locked memory (`RLIMIT_MEMLOCK`, `net.core.optmem_max`). Source only.
    pub zero_copy_refused: u64,
    /// Whether pages are sent without a copy, and why not. Source only.
    pub zero_copy: ZeroCopyState,
    /// Pages whose contents at the destination were compared with those here
    /// ([`Params::verify`](crate::migrate::Params::verify)). Source only.
    pub verified_pages: u64,
    /// Pages that were not compared, because they were sent without being read: ballooned, hinted
    /// and poisoned pages, those of a block that was removed meanwhile, and the rest when the
    /// comparison ended early. Source only.
    pub unverified_pages: u64,
    /// Of the verified pages, those that differed, and pages of memory that was handed over by
    /// descriptor and was written before `run`. Source only.
    pub mismatched_pages: u64,
    /// The block of the first page that differed, by its number. Source only.
    pub first_mismatch_block: Option<u32>,
    /// The first page that differed, in that block. Source only.
    pub first_mismatch_page: Option<u64>,
    /// How long the comparison took, after the downtime. The destination's part of the work is
    /// `digest`. Source only.
    #[serde(rename = "verify_ns", serialize_with = "json::as_nanos_or_0")]
    pub verify: Option<Duration>,
    /// Of the data pages, those that brant copied itself: to send them with a checksum, compressed or
    /// as a delta, or to keep them for later deltas. None of these can go without a copy. Source
    /// only.
    pub encoded_pages: u64,
    /// Postcopy: pages that have not arrived since the switch; at the source, that were not acknowledged.
    /// 0 when the switch was dropped or failed.
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
    /// Postcopy: threads that wait for a page now. Destination only.
    pub fault_waiting: u64,
    /// Postcopy: half of the waits for a page were no longer, to an eighth. Destination only.
    #[serde(rename = "fault_p50_ns", serialize_with = "json::as_nanos")]
    pub fault_p50: Duration,
    /// Postcopy: 99 of 100 waits for a page were no longer, to an eighth. Destination only.
    #[serde(rename = "fault_p99_ns", serialize_with = "json::as_nanos")]
    pub fault_p99: Duration,
    /// Postcopy: the longest wait for a page that has ended. Destination only.
    #[serde(rename = "fault_max_ns", serialize_with = "json::as_nanos")]
    pub fault_max: Duration,
    /// Postcopy: how long threads have waited for pages, the sum over all threads. Destination only.
    #[serde(rename = "fault_blocked_ns", serialize_with = "json::as_nanos")]
    pub fault_blocked: Duration,
    /// Postcopy: faults on pages that were not missing, which were answered here. Destination only.
    pub local_faults: u64,
    /// Postcopy: pages that were given up. Destination only.
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

/// Whole nanoseconds.
pub(crate) fn nanos(time: Duration) -> u64 {
    // In C the largest number means "unknown".
    u64::try_from(time.as_nanos()).map_or(u64::MAX - 1, |ns| ns.min(u64::MAX - 1))
}
