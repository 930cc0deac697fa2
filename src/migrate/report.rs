//! The figures of a migration that a user sees, as one structure and as JSON.
//!
//! The drivers fill the figures. The arithmetic here (progress, time left) is pure. So is the
//! decision how often the figures are renewed.

use super::state::State;
use super::steering::budget::millis;
use super::steering::fits_downtime::ABORTED_PAUSES_MAX;
use super::steering::forecast::Forecast;
use super::steering::stall::Cause;
use super::steering::Parts;
use super::switchover::source;
use crate::channel::{Copying, ZeroCopy};
use crate::error::{Error, Kind, Result};
use crate::runtime::probes;
use crate::units::PAGE_SIZE;
use serde::{Serialize, Serializer};
use std::time::{Duration, Instant};

/// A part that took less than this longer than promised explains no overrun.
const WORTH_TELLING: Duration = Duration::from_millis(1);

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
    #[serde(serialize_with = "as_code")]
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
    #[serde(rename = "elapsed_ns", serialize_with = "as_nanos")]
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
    #[serde(rename = "round_trip_ns", serialize_with = "as_nanos_or_null")]
    pub round_trip: Option<Duration>,
    /// Pages a second that the guest wrote. Only syncs before which every pending page had been
    /// sent count. A page that was written many times between two syncs counts once. `None` before
    /// the first such sync, so during the whole first pass.
    pub dirty_pages_per_second: Option<u64>,
    /// Time until the rest fits the downtime limit, by `bandwidth` and `dirty_pages_per_second`.
    /// `None` while one of the two is unknown, when the link is not clearly faster than the guest,
    /// and after a failure.
    #[serde(rename = "time_left_ns", serialize_with = "as_nanos_or_null")]
    pub time_left: Option<Duration>,
    /// The downtime if the switchover came now. `None` before the first pass, and until a bandwidth
    /// is measured, is stated ([`Params::switchover_bandwidth`]), or a pass has ended.
    ///
    /// [`Params::switchover_bandwidth`]: crate::migrate::Params::switchover_bandwidth
    #[serde(rename = "expected_downtime_ns", serialize_with = "as_nanos_or_null")]
    pub expected_downtime: Option<Duration>,
    /// The downtime that was expected when the guest was paused, to compare with `downtime`. `None`
    /// before, and where nothing was known by then: a switch to postcopy may be asked for before
    /// anything was measured.
    #[serde(rename = "promised_downtime_ns", serialize_with = "as_nanos_or_null")]
    pub promised_downtime: Option<Duration>,
    /// The parts of `promised_downtime`, when the decider is brant's own. Each stands beside what
    /// happened: `pause`, `last_sync`, `save`, `memory`, `state_sent`, `load`, `round_trips`,
    /// `release` and `run`. Zero before, and for a part that nobody stated or measured. Source only.
    #[serde(flatten, serialize_with = "as_promised")]
    pub promised: Parts,
    /// How long the guest stood still: from the call of `pause` to the destination's word that the
    /// guest runs, or to the return of `resume` after a failure. `None` before. When the guest
    /// still stands (unanswered, or not resumed), the time until this became known.
    #[serde(rename = "downtime_ns", serialize_with = "as_nanos_or_0")]
    pub downtime: Option<Duration>,
    /// Of the downtime: the VMM's `pause`.
    #[serde(rename = "pause_ns", serialize_with = "as_nanos_or_0")]
    pub pause: Option<Duration>,
    /// Of the downtime: the VMM's `save`.
    #[serde(rename = "save_ns", serialize_with = "as_nanos_or_0")]
    pub save: Option<Duration>,
    /// Of the downtime: the harvests of all logs.
    #[serde(rename = "last_sync_ns", serialize_with = "as_nanos_or_0")]
    pub last_sync: Option<Duration>,
    /// Of the downtime: sending the last pages and the state.
    #[serde(rename = "last_send_ns", serialize_with = "as_nanos_or_0")]
    pub last_send: Option<Duration>,
    /// Of the downtime: waiting for the destination to receive and load.
    #[serde(rename = "ready_ns", serialize_with = "as_nanos_or_0")]
    pub ready: Option<Duration>,
    /// Of the downtime: the VMM's `release`.
    #[serde(rename = "release_ns", serialize_with = "as_nanos_or_0")]
    pub release: Option<Duration>,
    /// Of the downtime: the hand-over and the destination's `run`.
    #[serde(rename = "handover_ns", serialize_with = "as_nanos_or_0")]
    pub handover: Option<Duration>,
    /// Destination: the VMM's `load` (told to the source).
    #[serde(rename = "load_ns", serialize_with = "as_nanos_or_0")]
    pub load: Option<Duration>,
    /// Destination: computing checksums of its memory, before `load` (told to the source). `None`
    /// unless the migration is verified ([`Params::verify`](crate::migrate::Params::verify)). No
    /// promise counts with it.
    #[serde(rename = "digest_ns", serialize_with = "as_nanos_or_0")]
    pub digest: Option<Duration>,
    /// Destination: the VMM's `run` (told to the source).
    #[serde(rename = "run_ns", serialize_with = "as_nanos_or_0")]
    pub run: Option<Duration>,
    /// Of the downtime: how long the last pages were on the link. The time from the first of them to
    /// READY, less `load`, `digest` and a round trip, is divided between pages and device state by
    /// their bytes. Source only.
    #[serde(rename = "memory_ns", serialize_with = "as_nanos_or_0")]
    pub memory: Option<Duration>,
    /// Of the downtime: how long the device state was on the link. Source only.
    #[serde(rename = "state_sent_ns", serialize_with = "as_nanos_or_0")]
    pub state_sent: Option<Duration>,
    /// Of the downtime: the round trips that READY and RUNNING took, as long as the hand-over's. Source
    /// only.
    #[serde(rename = "round_trips_ns", serialize_with = "as_nanos_or_0")]
    pub round_trips: Option<Duration>,
    /// How much longer than the downtime limit the guest stood still, after a migration that
    /// completed. An event says which parts took longer than promised. Source only.
    #[serde(rename = "overrun_ns", serialize_with = "as_nanos")]
    pub overrun: Duration,
    /// Pauses that were aborted because the downtime would have exceeded its limit. The guest ran on
    /// after each. Source only.
    pub aborted_pauses: u64,
    /// How long the guest stood still in each of the aborted pauses, the first one first. Source only.
    #[serde(rename = "aborted_pause_ns", serialize_with = "as_list_of_nanos")]
    pub aborted_pause: [Duration; ABORTED_PAUSES_MAX as usize],
    /// The downtime limit in use: [`Params::downtime_limit`](crate::migrate::Params::downtime_limit),
    /// as it was changed since, and as far as the policy has raised it. Source only.
    #[serde(rename = "downtime_limit_ns", serialize_with = "as_nanos_or_0")]
    pub downtime_limit: Option<Duration>,
    /// The percentage of their time that the policy takes from all vCPUs now. Source only.
    pub throttle: u64,
    /// How many vCPUs the policy slows by a limit of their own now. Source only.
    pub limited_vcpus: u64,
    /// Why the migration makes no progress now. In JSON a number, 0 without a stall. When nothing
    /// moves for [`Policy::patience`](crate::migrate::Policy::patience) in the middle of a pass, this
    /// is [`Cause::Link`] or [`Cause::Destination`] until something moves again
    /// ([`EventKind::Stalled`](crate::vmm::EventKind::Stalled)). Source only.
    #[serde(serialize_with = "as_cause")]
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
    #[serde(rename = "device_time_ns", serialize_with = "as_nanos")]
    pub device_time: Duration,
    /// Of the downtime: reading devices' state after the pause, and sending it. Source only.
    #[serde(rename = "device_stopped_ns", serialize_with = "as_nanos_or_0")]
    pub device_stopped: Option<Duration>,
    /// Syncs made.
    pub syncs: u64,
    /// Time of the last sync that was made with the guest running.
    #[serde(rename = "sync_ns", serialize_with = "as_nanos_or_0")]
    pub sync: Option<Duration>,
    /// Pages that became pending by syncs.
    pub found_pages: u64,
    /// Calls that cleared chunks.
    pub clear_calls: u64,
    /// The longest restoring of one chunk.
    #[serde(rename = "longest_clear_ns", serialize_with = "as_nanos")]
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
    #[serde(rename = "uneven_ns", serialize_with = "as_nanos")]
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
    #[serde(rename = "verify_ns", serialize_with = "as_nanos_or_0")]
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
    #[serde(rename = "fault_p50_ns", serialize_with = "as_nanos")]
    pub fault_p50: Duration,
    /// Postcopy: 99 of 100 waits for a page were no longer, to an eighth. Destination only.
    #[serde(rename = "fault_p99_ns", serialize_with = "as_nanos")]
    pub fault_p99: Duration,
    /// Postcopy: the longest wait for a page that has ended. Destination only.
    #[serde(rename = "fault_max_ns", serialize_with = "as_nanos")]
    pub fault_max: Duration,
    /// Postcopy: how long threads have waited for pages, the sum over all threads. Destination only.
    #[serde(rename = "fault_blocked_ns", serialize_with = "as_nanos")]
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

/// Whether pages are sent without a copy
/// ([`Params::zero_copy`](crate::migrate::Params::zero_copy)), and why not. The numbers are part of
/// the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
#[non_exhaustive]
pub enum ZeroCopyState {
    /// Sending without a copy was not asked for.
    #[default]
    Off = 0,
    /// Pages are sent without a copy, but for [`Stats::encoded_pages`] and records of fewer than four
    /// pages.
    On = 1,
    /// The kernel cannot send without a copy on this kind of connection.
    Unsupported = 2,
    /// The kernel copied every page all the same, so brant has pages copied at once.
    Copied = 3,
    /// Not even the memory of one send may be locked (`RLIMIT_MEMLOCK`, `net.core.optmem_max`).
    Limit = 4,
    /// Nothing can go without a copy, and so far nothing has: pages travel with a checksum,
    /// compressed or as deltas ([`Stats::encoded_pages`]). With checksums that stays so. With
    /// compression, the first pages that are not worth compressing turn this into
    /// [`ZeroCopyState::On`].
    Encoded = 5,
}

impl ZeroCopyState {
    /// The state of a source that asked to send without a copy. `checksums`: no page goes without
    /// a checksum. `encoded`: some pages went from a copy that brant made.
    pub(super) fn of(found: &ZeroCopy, checksums: bool, encoded: bool) -> ZeroCopyState {
        match found.copying {
            Copying::Asked => ZeroCopyState::Off,
            Copying::No if found.calls == 0 && (checksums || encoded) => ZeroCopyState::Encoded,
            Copying::No => ZeroCopyState::On,
            Copying::Unsupported => ZeroCopyState::Unsupported,
            Copying::Anyway => ZeroCopyState::Copied,
            Copying::Limit => ZeroCopyState::Limit,
        }
    }

    /// Why pages are copied although sending without a copy was asked for.
    pub(super) fn why_off(self) -> Option<&'static str> {
        match self {
            ZeroCopyState::Off | ZeroCopyState::On => None,
            ZeroCopyState::Unsupported => {
                Some("the kernel cannot send without a copy on this kind of connection")
            }
            ZeroCopyState::Copied => Some(
                "the kernel copied each time although it was asked not to, as it does on loopback",
            ),
            ZeroCopyState::Limit => Some(
                "not even one send's memory may be locked: raise RLIMIT_MEMLOCK or \
                 net.core.optmem_max",
            ),
            ZeroCopyState::Encoded => Some(
                "pages travel with a checksum, compressed or as deltas, and those bytes are copies \
                 already",
            ),
        }
    }
}

impl Serialize for ZeroCopyState {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_u64(*self as u64)
    }
}

fn as_cause<S: Serializer>(cause: &Option<Cause>, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u32(cause.map_or(0, |cause| cause as u32))
}

/// The longest JSON of [`Stats::to_json`] and of the figures with their forecast, in bytes.
pub const JSON_MAX: usize = 8191;

fn json(figures: &impl Serialize) -> Result<String> {
    serde_json::to_string(figures).map_err(|e| Error::new(Kind::Internal, format!("JSON: {e}")))
}

impl Stats {
    /// The figures as one JSON object with a field for each of the structure's. Durations are
    /// nanoseconds, and their names end in `_ns`. An unknown figure is `null`, but an unknown
    /// downtime, part of it or `sync` is 0. `error` is 0 or the number of the [`Kind`]; `state` is
    /// the state's name.
    pub fn to_json(&self) -> Result<String> {
        json(self)
    }

    /// [`Stats::to_json`] with one more field, `forecast`.
    pub(super) fn to_json_with(self, forecast: Option<&Forecast>) -> Result<String> {
        #[derive(Serialize)]
        struct Both<'a> {
            #[serde(flatten)]
            stats: Stats,
            forecast: Option<&'a Forecast>,
        }
        let both = Both {
            stats: self,
            forecast,
        };
        json(&both)
    }

    /// Divides what happened between `pause` and "running" into the parts that have no clock of their
    /// own. `pages` is how many bytes were sent after the pause before the device state.
    pub(super) fn account_for(&mut self, pages: u64) {
        let known = |part: Option<Duration>| part.unwrap_or_default();
        // The way to RUNNING and back was measured, that to READY is the one measured before the pause.
        let to_running = known(self.handover).saturating_sub(known(self.run));
        let link = (known(self.last_send) + known(self.ready))
            .saturating_sub(known(self.load))
            .saturating_sub(known(self.digest));
        let to_ready = known(self.round_trip).min(link);
        let link = link.saturating_sub(to_ready);
        let state = self.state_bytes + self.device_stopped_bytes;
        let share = pages as f64 / (pages + state).max(1) as f64;
        let memory = link.mul_f64(share.clamp(0.0, 1.0));
        self.round_trips = Some(to_ready + to_running);
        self.memory = Some(memory);
        self.state_sent = Some(link.saturating_sub(memory));
        for (name, part) in self.parts().named() {
            probes::downtime_part(name, part);
        }
    }

    /// Forgets a pause that was aborted after `stood`.
    pub(super) fn forget_pause(&mut self, stood: Duration) {
        let number = self.aborted_pauses as usize;
        if let Some(length) = self.aborted_pause.get_mut(number) {
            *length = stood;
        }
        self.aborted_pauses += 1;
        self.promised_downtime = None;
        self.promised = Parts::default();
        (self.pause, self.save, self.last_sync) = (None, None, None);
        self.state_bytes = 0;
        self.device_stopped = None;
    }

    /// The parts of the downtime as they were.
    fn parts(&self) -> Parts {
        let known = |part: Option<Duration>| part.unwrap_or_default();
        Parts {
            pause: known(self.pause),
            sync: known(self.last_sync),
            save: known(self.save),
            memory: known(self.memory),
            state: known(self.state_sent),
            state_running: Duration::ZERO,
            verify: known(self.digest),
            load: known(self.load),
            round_trips: known(self.round_trips),
            release: known(self.release),
            run: known(self.run),
        }
    }

    /// Why the downtime was longer than `limit`: which parts took longer than promised, the worst
    /// first, at most three; and the longest part, when the promise was above the limit.
    pub(super) fn why_longer(&self, limit: Duration) -> String {
        if self.promised_downtime.is_none() {
            return "nothing was promised, because nothing was measured before the pause"
                .to_owned();
        }
        let promised = self.promised.named();
        let mut longer: Vec<_> = (self.parts().named().into_iter().zip(promised))
            .map(|((name, took), (_, promised))| {
                (took.saturating_sub(promised), name, took, promised)
            })
            .filter(|(more, ..)| *more >= WORTH_TELLING)
            .collect();
        longer.sort_unstable_by_key(|(more, ..)| std::cmp::Reverse(*more));
        let words = longer.iter().take(3).map(|(_, name, took, promised)| {
            format!(
                "{name} took {}, promised were {}",
                millis(*took),
                millis(*promised)
            )
        });
        let mut words: Vec<_> = words.collect();
        let all = self.promised.total();
        if all > limit {
            let (name, part) = self.promised.longest();
            words.insert(
                0,
                format!(
                    "{} were promised, of which {name} was to take {}",
                    millis(all),
                    millis(part)
                ),
            );
        }
        match words.is_empty() {
            true => "no part took much longer than promised".to_owned(),
            false => words.join("; "),
        }
    }

    /// Computes a destination's progress anew: the pages received, as a part of these and the pages
    /// that remain. It never falls.
    pub(super) fn advance(&mut self) {
        let done = self.data_pages + self.zero_pages;
        let left = self.remaining_bytes / PAGE_SIZE;
        if done + left == 0 {
            return;
        }
        // Before the guest runs at the other side the progress is at most 99.99 %.
        let now = (u128::from(done) * 10_000 / u128::from(done + left)).min(9_999) as u32;
        self.progress = self.progress.max(now);
    }

    /// Makes figures that were renewed `age` ago those of now: nothing has moved since.
    pub(super) fn age(&mut self, age: Duration) {
        self.elapsed = self.elapsed.saturating_add(age);
        // Figures are renewed every 50 ms while something moves.
        if age > RENEW * 4 {
            let still = 1.0 - age.as_secs_f64();
            self.throughput = (self.throughput as f64 * still.max(0.0)) as u64;
        }
    }

    /// Shows that nothing moves in the middle of a pass. Passes that do not end judge nothing.
    pub(super) fn stands_still(&mut self, cause: Cause) {
        if self.state == State::Source(source::State::Copying) {
            self.stall = Some(cause);
        }
    }

    /// Predicts the time until the rest fits: the rest shrinks by the link's rate less the guest's.
    /// `None` when the rest does not shrink, and while either rate is unknown. `switchover` is the
    /// rate of the switchover in bytes a second, when it differs from the link's.
    ///
    /// Both rates are measured, and vary by a tenth or more from one pass to the next. When they
    /// differ by less than a fifth, the difference is chance, and no time follows from it.
    pub(super) fn predict(&mut self, downtime_limit: Duration, switchover: Option<f64>) {
        self.time_left = None;
        let (Some(bandwidth), Some(dirty)) = (self.bandwidth, self.dirty_pages_per_second) else {
            return;
        };
        let link = bandwidth as f64;
        let dirty = dirty as f64 * PAGE_SIZE as f64;
        let fits = switchover.unwrap_or(link) * downtime_limit.as_secs_f64();
        let excess = self.remaining_bytes as f64 - fits;
        if excess <= 0.0 {
            self.time_left = Some(Duration::ZERO);
        } else if dirty < link * 0.8 {
            self.time_left = Duration::try_from_secs_f64(excess / (link - dirty)).ok();
        }
    }
}

/// What a lane is doing. The numbers are part of the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum LaneState {
    /// There is no connection yet, or the migration is over.
    #[default]
    Closed = 0,
    /// All work of the lane is done and acknowledged.
    Idle = 1,
    /// The lane has work, or waits for its peer.
    Busy = 2,
}

/// The figures of one lane of a migration: a connection, and its encoder or decoder.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneStats {
    /// What the lane is doing.
    pub state: LaneState,
    /// Bytes that went over the connection, headers included.
    pub wire_bytes: u64,
    /// Pages sent (received) with their contents.
    pub data_pages: u64,
    /// Pages sent (received) as zero.
    pub zero_pages: u64,
    /// Pages sent that the destination has not acknowledged. Source only.
    pub unacknowledged_pages: u64,
    /// Pages that wait for the lane. Source only; 0 when there is one channel.
    pub queued_pages: u64,
    /// How long the migration's thread waited because this lane's queue was full. Source only; 0 on
    /// channel 0.
    pub queue_wait: Duration,
    /// How long the connection had no room. Source only.
    pub send_wait: Duration,
    /// How long the lane had nothing to do. Source: 0 on channel 0. Destination: how long it waited
    /// for bytes.
    pub idle: Duration,
    /// How long the destination has had something to acknowledge and has acknowledged nothing;
    /// `None` when it has nothing to acknowledge. Source only.
    pub silence: Option<Duration>,
}

/// Whole nanoseconds.
pub(crate) fn nanos(time: Duration) -> u64 {
    // In C the largest number means "unknown".
    u64::try_from(time.as_nanos()).map_or(u64::MAX - 1, |ns| ns.min(u64::MAX - 1))
}

fn as_code<S: Serializer>(error: &Option<Kind>, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_i32(error.map_or(0, |kind| kind as i32))
}

fn as_nanos<S: Serializer>(time: &Duration, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u64(nanos(*time))
}

fn as_nanos_or_0<S: Serializer>(
    time: &Option<Duration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u64(time.map_or(0, nanos))
}

fn as_nanos_or_null<S: Serializer>(
    time: &Option<Duration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    time.map(nanos).serialize(to)
}

fn as_list_of_nanos<S: Serializer>(
    times: &[Duration],
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(times.iter().copied().map(nanos))
}

fn as_promised<S: Serializer>(parts: &Parts, to: S) -> std::result::Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let fields = [
        ("promised_pause_ns", parts.pause),
        ("promised_sync_ns", parts.sync),
        ("promised_save_ns", parts.save),
        ("promised_memory_ns", parts.memory),
        ("promised_state_ns", parts.state),
        ("promised_load_ns", parts.load),
        ("promised_round_trips_ns", parts.round_trips),
        ("promised_release_ns", parts.release),
        ("promised_run_ns", parts.run),
    ];
    let mut map = to.serialize_map(Some(fields.len()))?;
    for (name, part) in fields {
        map.serialize_entry(name, &nanos(part))?;
    }
    map.end()
}

/// How often the figures are renewed and the VMM is notified.
pub(super) const RENEW: Duration = Duration::from_millis(50);

/// When a migration's figures were renewed last.
#[derive(Debug, Default)]
pub(super) struct Renewed(Option<Instant>);

impl Renewed {
    /// The current time if the figures are to be renewed: when [`RENEW`] has passed, or when `now`
    /// is set.
    pub(super) fn due(&mut self, now: bool) -> Option<Instant> {
        let at = Instant::now();
        let due = now || self.0.is_none_or(|last| at - last >= RENEW);
        due.then(|| *self.0.insert(at))
    }
}

/// Bytes a second over about the last second.
#[derive(Debug, Default)]
pub(super) struct Meter {
    at: Duration,
    bytes: u64,
    rate: u64,
}

impl Meter {
    /// Takes the total of `bytes` sent until `now`. Returns the rate, which is renewed every half
    /// second.
    pub(super) fn rate(&mut self, now: Duration, bytes: u64) -> u64 {
        let passed = now.saturating_sub(self.at);
        let first = self.at.is_zero() && !passed.is_zero();
        if passed >= Duration::from_millis(500) || first {
            self.rate = (bytes.saturating_sub(self.bytes) as f64 / passed.as_secs_f64()) as u64;
            if passed >= Duration::from_millis(500) {
                self.at = now;
                self.bytes = bytes;
            }
        }
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back_and_is_whole_only_at_the_end() {
        let mut stats = Stats {
            data_pages: 900,
            remaining_bytes: 100 * PAGE_SIZE,
            ..Stats::default()
        };
        stats.advance();
        assert_eq!(stats.progress, 9000);
        // A sync found much.
        stats.remaining_bytes = 5000 * PAGE_SIZE;
        stats.advance();
        assert_eq!(stats.progress, 9000);
        stats.remaining_bytes = 0;
        stats.advance();
        assert_eq!(stats.progress, 9999);
    }

    #[test]
    fn figures_that_are_not_renewed_show_a_link_that_stands_still() {
        let mut stats = Stats {
            elapsed: Duration::from_secs(3),
            throughput: 1_000_000,
            wire_bytes: 5,
            ..Stats::default()
        };
        stats.age(RENEW);
        assert_eq!(stats.elapsed, Duration::from_millis(3050));
        assert_eq!(stats.throughput, 1_000_000);
        stats.age(Duration::from_millis(750));
        assert_eq!(stats.throughput, 250_000);
        stats.age(Duration::from_secs(100));
        assert_eq!((stats.throughput, stats.wire_bytes), (0, 5));
        assert_eq!(stats.elapsed, Duration::from_millis(103_800));
    }

    #[test]
    fn a_standstill_shows_only_while_memory_is_copied() {
        use source::State as S;
        for (state, shows) in [(S::Copying, true), (S::Pausing, false), (S::Failed, false)] {
            let mut stats = Stats {
                state: state.into(),
                ..Stats::default()
            };
            stats.stands_still(Cause::Link);
            assert_eq!(stats.stall.is_some(), shows, "{state:?}");
        }
    }

    #[test]
    fn the_time_left_is_unknown_unless_the_link_is_clearly_faster_than_the_guest() {
        // Each row: bytes a second of the link, pages a second of the guest, and the time left. The
        // rest is 590.4 MB more than fits.
        let table = [
            (Some(1_000_000_000), Some(100_000), Some(1_000_000_000)),
            (Some(1_000_000_000), Some(0), Some(590_400_000)),
            // Before the first sync.
            (Some(1_000_000_000), None, None),
            (None, Some(100_000), None),
            (Some(1_000_000_000), Some(300_000), None),
            // The rates are 1 % apart. By their difference alone the time left would be nine days.
            (Some(1_000_000_000), Some(241_700), None),
        ];
        for (bandwidth, dirty_pages_per_second, left) in table {
            let mut stats = Stats {
                bandwidth,
                dirty_pages_per_second,
                remaining_bytes: 890_400_000,
                ..Stats::default()
            };
            stats.predict(Duration::from_millis(300), None);
            let row = (bandwidth, dirty_pages_per_second);
            assert_eq!(stats.time_left.map(nanos), left, "{row:?}");
        }
        let mut fits = Stats {
            bandwidth: Some(1_000_000_000),
            dirty_pages_per_second: Some(300_000),
            ..Stats::default()
        };
        fits.predict(Duration::from_millis(300), None);
        assert_eq!(fits.time_left, Some(Duration::ZERO));
    }

    #[test]
    fn the_time_left_counts_with_the_rate_of_the_switchover() {
        let mut stats = Stats {
            bandwidth: Some(1_000_000_000),
            dirty_pages_per_second: Some(0),
            remaining_bytes: 130_000_000,
            ..Stats::default()
        };
        // At 100 MB/s, 30 MB fit into 300 ms. The other 100 MB are sent before that, at the link's
        // rate.
        stats.predict(Duration::from_millis(300), Some(1e8));
        assert_eq!(stats.time_left, Some(Duration::from_millis(100)));
    }

    #[test]
    fn the_parts_of_a_downtime_are_what_was_measured_and_the_links_time_is_divided_by_bytes() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let mut stats = Stats {
            pause: ms(1),
            last_sync: ms(2),
            save: ms(3),
            // 100 ms of pages, 300 ms of state, `load`, checksums and a round trip.
            last_send: ms(250),
            ready: ms(250),
            load: ms(70),
            digest: ms(10),
            release: ms(4),
            // A round trip and `run`.
            handover: ms(25),
            run: ms(5),
            round_trip: ms(20),
            state_bytes: 3_000_000,
            ..Stats::default()
        };
        stats.account_for(1_000_000);
        assert_eq!((stats.memory, stats.state_sent), (ms(100), ms(300)));
        assert_eq!(stats.round_trips, ms(40));
        let sum = stats.parts().total();
        assert_eq!(sum, Duration::from_millis(1 + 2 + 3 + 500 + 4 + 25));
        let nothing = "nothing was promised, because nothing was measured before the pause";
        assert_eq!(stats.why_longer(Duration::from_secs(1)), nothing);
        stats.promised_downtime = ms(450);
        stats.promised.state = Duration::from_millis(310);
        stats.promised.load = Duration::from_millis(10);
        stats.promised.round_trips = Duration::from_millis(30);
        stats.promised.memory = Duration::from_millis(100);
        assert_eq!(
            stats.why_longer(Duration::from_secs(1)),
            "`load` took 70.0 ms, promised were 10.0 ms; verifying took 10.0 ms, promised were 0.0 \
             ms; the round trips took 40.0 ms, promised were 30.0 ms"
        );
    }

    #[test]
    fn json_has_every_field_and_null_for_what_is_unknown() {
        let json = Stats::default().to_json().unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["state"], "idle");
        let unknown = [
            "bandwidth",
            "dirty_pages_per_second",
            "time_left_ns",
            "expected_downtime_ns",
            "promised_downtime_ns",
            "switchover_bandwidth",
            "round_trip_ns",
            "first_mismatch_block",
            "first_mismatch_page",
        ];
        for (name, value) in value.as_object().unwrap() {
            match name.as_str() {
                "state" => {}
                "aborted_pause_ns" => assert_eq!(*value, serde_json::json!([0, 0, 0])),
                name if unknown.contains(&name) => assert!(value.is_null(), "{name}"),
                name => assert_eq!(value, 0, "{name}"),
            }
        }
        assert_eq!(value.as_object().unwrap().len(), 102);
    }

    /// The largest JSON: each number has as many digits as there can be, and the state the longest name.
    #[test]
    fn no_json_is_longer_than_the_longest() {
        use crate::migrate::steering::forecast::Remedies;
        let forecast = Forecast {
            passes: u32::MAX,
            time: Duration::MAX,
            bytes: f64::MAX,
            downtime: Duration::MAX,
            remedies: Remedies {
                limit: Some(Duration::MAX),
                bandwidth: Some(f64::MAX),
                throttle: Some(u8::MAX),
            },
            ..Forecast::default()
        };
        let json = Stats::default().to_json_with(Some(&forecast)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        fn fill(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::Array(list) => list.iter_mut().for_each(fill),
                serde_json::Value::Number(_) | serde_json::Value::Null => *value = u64::MAX.into(),
                _ => {}
            }
        }
        for (name, value) in value.as_object_mut().unwrap() {
            match name.as_str() {
                // No state has so long a name.
                "state" => *value = "s".repeat(40).into(),
                _ => fill(value),
            }
        }
        let longest = value.to_string().len();
        println!("{longest}");
        assert!((JSON_MAX / 2..=JSON_MAX).contains(&longest), "{longest}");
    }

    #[test]
    fn json_tells_times_in_nanoseconds_and_the_error_by_its_number() {
        let stats = Stats {
            error: Some(Kind::Timeout),
            elapsed: Duration::from_millis(3),
            downtime: Some(Duration::from_nanos(7)),
            time_left: Some(Duration::MAX),
            ..Stats::default()
        };
        let value: serde_json::Value = serde_json::from_str(&stats.to_json().unwrap()).unwrap();
        assert_eq!(value["error"], -11);
        assert_eq!(value["elapsed_ns"], 3_000_000);
        assert_eq!(value["downtime_ns"], 7);
        assert_eq!(value["time_left_ns"], u64::MAX - 1);
    }
}
