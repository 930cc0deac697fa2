"""What users give to the library and get from it, as dataclasses.

Fields have the names and units of the header's structures: times that a user gives are
milliseconds (``_ms``) or microseconds (``_us``), times that were measured nanoseconds (``_ns``);
sizes are bytes, and a page has 4096. A field that the library does not know yet is None. Of a
structure that a user gives, 0 is the default of each number.

Written by scripts/declared.py from include/brant.h; do not edit: make header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Union

#: As a time limit: none.
NO_LIMIT = 18446744073709551615

#: Of what a user gives, each dataclass's fields that are the name of a constant.
CHOICES: Dict[str, Dict[str, Dict[str, int]]] = {
    "Params": {
        "compression": {
            "off": 0,
            "adaptive": 1,
            "always": 2,
        },
        "page_checksums": {
            "default": 0,
            "on": 1,
            "off": 2,
        },
        "verify": {
            "off": 0,
            "on": 1,
        },
        "zero_copy": {
            "off": 0,
            "on": 1,
        },
        "prefault": {
            "on": 0,
            "off": 1,
        },
        "ballooned": {
            "skip": 0,
            "send": 1,
        },
        "overrun": {
            "fail": 0,
            "carry-on": 1,
        },
        "hand_over": {
            "off": 0,
            "possible": 1,
            "only": 2,
        },
        "postcopy": {
            "off": 0,
            "allowed": 1,
        },
    },
    "Policy": {
        "slowing": {
            "off": 0,
            "all": 1,
            "writers": 2,
        },
        "on_deadline": {
            "cancel": 0,
            "carry-on": 1,
            "pause": 2,
            "postcopy": 3,
        },
    },
    "RateParams": {
        "way": {
            "log": 0,
            "sampling": 1,
        },
    },
    "SaveParams": {
        "guest": {
            "resume": 0,
            "stay-paused": 1,
            "already-paused": 2,
        },
        "cache": {
            "direct": 0,
            "cached": 1,
        },
        "instant": {
            "end": 0,
            "start": 1,
        },
    },
    "MergeParams": {
        "cache": {
            "direct": 0,
            "cached": 1,
        },
    },
    "RestoreParams": {
        "guest": {
            "resume": 0,
            "stay-paused": 1,
        },
        "cache": {
            "direct": 0,
            "cached": 1,
        },
    },
}

#: Of what the library fills: the name of each constant.
NAMES: Dict[str, Dict[str, Dict[int, str]]] = {
    "Stats": {
        "state": {
            0: "idle",
            1: "connecting",
            2: "negotiating",
            3: "copying",
            4: "pausing",
            5: "saving",
            6: "last-sync",
            7: "sending-last",
            8: "awaiting-ready",
            9: "releasing",
            10: "committing",
            11: "handing-over",
            12: "awaiting-running",
            13: "resuming",
            14: "completed",
            15: "failed",
            16: "resume-failed",
            17: "unanswered",
            18: "taken-back",
            19: "given-up",
            20: "in-doubt",
            21: "verifying",
            22: "aborting-pause",
            23: "serving",
            24: "interrupted",
            25: "recovering",
            32: "idle",
            33: "listening",
            34: "negotiating",
            35: "receiving",
            36: "loading",
            37: "ready",
            38: "awaiting-handover",
            39: "committing",
            40: "starting",
            41: "running",
            42: "failed",
            43: "start-failed",
            44: "completing",
            45: "interrupted",
            46: "incomplete",
        },
        "stall": {
            0: "none",
            1: "link",
            2: "destination",
            3: "throttled",
            4: "dirtying",
        },
        "zero_copy": {
            0: "off",
            1: "on",
            2: "unsupported",
            3: "copied",
            4: "limit",
            5: "encoded",
        },
    },
    "LaneStats": {
        "state": {
            0: "closed",
            1: "idle",
            2: "busy",
        },
    },
    "ImageStats": {
        "state": {
            0: "idle",
            1: "preparing",
            2: "copying",
            3: "paused",
            4: "finishing",
            5: "filling",
            6: "loading",
            7: "starting",
            8: "completed",
            9: "failed",
        },
    },
    "KvmInfo": {
        "mode": {
            0: "auto",
            1: "get-and-clear",
            2: "manual-protect",
            3: "initially-set",
            4: "ring",
        },
    },
}


@dataclass(frozen=True)
class Params:
    """Parameters of a migration. A field that is 0 has its default. A value out of range is
    BRANT_E_INVALID, with the range in the message. A field that says "Source" has no effect at a
    destination, and one that says "Destination" has none at a source; its value has to be in range
    there too. The header's ``brant_params``."""

    #: The longest that the guest shall stand still, milliseconds, 1 to 3600000; default 300. It is
    #: a ceiling and not a target. The guest is paused only when the whole downtime is expected to
    #: fit: the remaining pages, the device state, two round trips, and the operations of both VMMs
    #: as far as `expected_pause_us` and its neighbours state them. When it fits, passes go on as
    #: long as the last pass made the rest smaller. So a guest that writes little stands still for
    #: much less. When the parts without the pages exceed the limit, no pass helps. `overrun` then
    #: decides.
    downtime_limit_ms: int = 0
    #: Bytes a second that sending may use while the guest runs, all channels together, 64 KiB/s to
    #: 1 TiB/s; default no cap. In no second does brant give the kernel more than 2 % above the cap
    #: to send, headers included. Example: a cap of 100 MB/s is 102 MB in any second at most.
    #: `brant_outgoing_set_max_bandwidth` changes it. The switchover is not capped by it. brant does
    #: not take the cap for the speed of the link: now and then it measures how long a batch takes
    #: to arrive.
    max_bandwidth: int = 0
    #: Bytes a second that the link will carry at the switchover, if you know that better than a
    #: measurement can (behind a cap, on a link that others will use then). Same range; default: the
    #: measured bandwidth. The expected downtime counts with this value, or else with the measured
    #: bandwidth; where `switchover_max_bandwidth` is less than that, with
    #: `switchover_max_bandwidth`. This value is an estimate: it holds nothing back.
    switchover_bandwidth: int = 0
    #: Source: how far the downtime may exceed its limit before a pause is aborted, milliseconds, at
    #: most 3600000; default 0. When the guest stands still, the downtime is expected once more:
    #: after `pause`, and after `save`. If it would exceed the limit by more than this, `resume` is
    #: called and passes go on. (Once the limit has risen, what counts is the policy's
    #: `downtime_ceiling_ms`.) That happens at most three times; then `overrun` decides. Each
    #: aborted pause is in `brant_stats.aborted_pause_ns`.
    downtime_slack_ms: int = 0
    #: Source: how long `pause` will take at this side, microseconds, at most 3600000000; 0 when
    #: unknown. This and the next five fields count in the expected downtime. A part that is unknown
    #: counts as zero, so the guest may stand still for longer than the limit by that part.
    expected_pause_us: int = 0
    #: Source: how long `save` will take at this side, as `expected_pause_us`.
    expected_save_us: int = 0
    #: Source: how long `load` and `loaded` will take at the destination, for all blobs together, as
    #: `expected_pause_us`.
    expected_load_us: int = 0
    #: Source: how long `release` will take at this side, as `expected_pause_us`.
    expected_release_us: int = 0
    #: Source: how long `run` will take at the destination, as `expected_pause_us`.
    expected_run_us: int = 0
    #: Source: how many bytes of device state `save` will put, at most 1 TiB; 0 when unknown.
    expected_state_bytes: int = 0
    #: The longest that a migration may take, milliseconds, 1 to 30 days; BRANT_NO_LIMIT. At the
    #: source it counts from the start to the switchover, default one hour. At the destination it
    #: counts from the source's first record to the hand-over, default one day: waiting for a
    #: connection does not count. Every wait ends with the earliest of all limits that apply to it.
    total_timeout_ms: int = 0
    #: The limit for connecting, and once more for agreeing on versions, configuration and layout;
    #: milliseconds, 1 to 3600000; default 10000. At the source the second limit includes the
    #: destination's `early_load`. A listener gives each connection the same time for its first
    #: record.
    connect_timeout_ms: int = 0
    #: The limit for a peer that moves no byte. One record has this time and the time that its bytes
    #: take at 64 KiB/s. Milliseconds, 1 to 3600000; default 30000. Between two records a
    #: destination waits for the switchover timeout if that is longer: the source's VMM may be
    #: saving.
    io_timeout_ms: int = 0
    #: The limit from the call of `pause` to the hand-over: when it runs out, the source takes the
    #: guest back. At the destination it is the limit from ready to the hand-over, unless the
    #: source's hand-over timeout is shorter. Milliseconds, 1 to 3600000; default 30000.
    switchover_timeout_ms: int = 0
    #: Source: how long a hand-over counts once the destination is ready; milliseconds, 1 to
    #: 3600000; default 30000. The source tells the destination. `release` is called in this time.
    #: When the time has run out, the source sends no hand-over and keeps the guest. A hand-over
    #: that is still under way then starts no guest at the destination. One second later the
    #: destination has begun `run` or never will. Only then is a migration that was handed over
    #: unanswered. Example: with the default, a guest whose destination dies at the hand-over stands
    #: still for 31 seconds before BRANT_E_UNANSWERED.
    handover_timeout_ms: int = 0
    #: Destination: the most bytes of early configuration, and of device state, that brant takes; 4
    #: KiB to 1 TiB; default 256 MiB.
    max_state_bytes: int = 0
    #: Destination: the most bytes of devices' state (brant_guest_add_device) that wait in memory
    #: because something before them has not come; 1 MiB to 1 TiB; default 256 MiB. Beyond it
    #: connections wait. Each connection has a mebibyte more in hand.
    max_device_buffer: int = 0
    #: Source: the most memory for copies of sent pages, over all connections together; 1 MiB to 1
    #: TiB; default 0, none. With such a cache, a page that is sent again goes as what has changed
    #: in it, where that is less than the page. A destination that does not know deltas is refused
    #: (BRANT_E_VERSION). The memory is taken as pages come back. It is freed when the migration
    #: ends.
    delta_cache_bytes: int = 0
    #: Source: bytes a second that sending may use from the pause on, 64 KiB/s to 1 TiB/s; default
    #: no cap. With a cap the guest stands still for longer. The expected downtime counts with the
    #: cap (see `switchover_bandwidth`), so the guest is paused when less is left to send.
    switchover_max_bandwidth: int = 0
    #: Source: connections to the destination, 1 to 64; default 1. Destination: the most connections
    #: that it takes of a source, 1 to 64; default 64. A source that wants more is refused.
    channels: int = 0
    #: Source: BRANT_COMPRESSION_*: whether contents of pages are compressed. One of: "off",
    #: "adaptive", "always".
    compression: str = "off"
    #: Source: the level of zstd, 1 to 19; default 1. A higher level compresses more and takes
    #: longer.
    compression_level: int = 0
    #: BRANT_CHECKSUMS_*: whether contents of pages travel with a checksum. One of: "default", "on",
    #: "off".
    page_checksums: str = "default"
    #: Source: BRANT_VERIFY_*: whether the destination's memory is compared with the memory here at
    #: the end. One of: "off", "on".
    verify: str = "off"
    #: BRANT_ZERO_COPY_OFF or BRANT_ZERO_COPY_ON. Source only. One of: "off", "on".
    zero_copy: str = "off"
    #: Destination: BRANT_PREFAULT_*: whether memory is backed just before contents arrive for it.
    #: One of: "on", "off".
    prefault: str = "on"
    #: BRANT_BALLOONED_*: whether ballooned pages are sent. One of: "skip", "send".
    ballooned: str = "skip"
    #: Source: BRANT_OVERRUN_*: what becomes of a migration whose downtime limit cannot be kept. One
    #: of: "fail", "carry-on".
    overrun: str = "fail"
    #: Source: BRANT_HAND_OVER_*: whether a destination on the same host gets memory by descriptors,
    #: without a copy. One of: "off", "possible", "only".
    hand_over: str = "off"
    #: Source: BRANT_POSTCOPY_*: whether the guest may run at the destination before all of its
    #: memory is there. One of: "off", "allowed".
    postcopy: str = "off"


@dataclass(frozen=True)
class Policy:
    """What is done about a migration that does not converge by itself. A field that is 0 has its
    default. A structure of zeros is the policy of a migration that was given none: nothing is done,
    and the migration runs until it fits its limit or its total timeout is over. The header's
    ``brant_policy``."""

    #: The ceiling up to which the downtime limit rises, milliseconds: from
    #: `brant_params.downtime_limit_ms` to 3600000; 0: the limit does not rise. The limit becomes
    #: half as long again after each pass that leaves more than 0.97 of what it sent, after each
    #: aborted pause, and when what no pass makes smaller exceeds the limit. The rest is taken as
    #: soon as it fits. Once the limit has risen, no pause is aborted that stays below the ceiling:
    #: the limit rises to what the pause takes.
    downtime_ceiling_ms: int = 0
    #: The time for the whole migration, milliseconds from its start: 1 to 2592000000, and at most
    #: `brant_params.total_timeout_ms`; 0: no deadline. `on_deadline` says what happens then. The
    #: total timeout ends the migration with an error, whatever the policy says, and a deadline
    #: later than it is BRANT_E_INVALID.
    deadline_ms: int = 0
    #: A migration without a new lowest rest for so long has stalled, and so has one in which
    #: nothing moves for so long in the middle of a pass. Milliseconds: 1 to 86400000; default
    #: 10000. See BRANT_EVENT_STALLED.
    stall_ms: int = 0
    #: The time between two syncs in the middle of a pass, milliseconds: 100 to 3600000; default
    #: 2000. Only a policy that slows the guest syncs there. While dirty rings keep the limits of
    #: vCPUs, the vCPUs' counts are read there instead, because a sync would empty full rings.
    sync_ms: int = 0
    #: BRANT_SLOWING_*: how a guest is slowed that dirties too much. One of: "off", "all",
    #: "writers".
    slowing: str = "off"
    #: The most by which a vCPU is slowed, 1 to 99 percent of its time; default 99. Has no effect on
    #: limits that dirty rings keep.
    throttle_max: int = 0
    #: BRANT_DEADLINE_*: what happens at the deadline. One of: "cancel", "carry-on", "pause",
    #: "postcopy".
    on_deadline: str = "cancel"


@dataclass(frozen=True)
class RateParams:
    """What a measurement measures. A field that is 0 has its default. The header's
    ``brant_rate_params``."""

    #: The period of the measurement, milliseconds, 10 to 60000; default 1000. The rate depends on
    #: the period: see brant_dirty_rate.
    period_ms: int = 0
    #: BRANT_RATE_BY_*. One of: "log", "sampling".
    way: str = "log"
    #: By sampling: how many pages of each GiB are read, 1 to 262144; default 512. At most 16 GiB
    #: are read, twice.
    samples_per_gib: int = 0


@dataclass(frozen=True)
class SaveParams:
    """How a guest is saved. A field that is 0 has its default. A value out of range is
    BRANT_E_INVALID, with the range in the message. The header's ``brant_image_save_params``."""

    #: Passes go on until the remaining pages can be written in half of this time; milliseconds, 1
    #: to 3600000; default 300. When the guest writes as fast as the disk, it is paused all the
    #: same.
    downtime_limit_ms: int = 0
    #: After so many passes the guest is paused, however many pages remain; 1 to 1000; default 30.
    max_passes: int = 0
    #: Threads that write; 1 to 64; default 2.
    writers: int = 0
    #: BRANT_IMAGE_RESUME, BRANT_IMAGE_STAY_PAUSED or BRANT_IMAGE_ALREADY_PAUSED. One of: "resume",
    #: "stay-paused", "already-paused".
    guest: str = "resume"
    #: BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. One of: "direct", "cached".
    cache: str = "direct"
    #: Bytes of pages a second that are written while the guest runs, by all threads together; 64
    #: KiB/s to 1 TiB/s; default no cap. When the save has paused the guest, the rest is not capped.
    #: With BRANT_IMAGE_ALREADY_PAUSED and BRANT_IMAGE_INSTANT_START the cap holds to the end.
    max_bandwidth: int = 0
    #: With BRANT_IMAGE_INSTANT_START: bytes of memory for copies of pages that the guest writes
    #: before the image has them; 1 MiB to 1 TiB; default 64 MiB. At the limit, threads of the guest
    #: wait until their pages are read. Each writer has buffers of 4 MiB besides.
    max_copy_bytes: int = 0
    #: BRANT_IMAGE_INSTANT_END or BRANT_IMAGE_INSTANT_START. One of: "end", "start".
    instant: str = "end"


@dataclass(frozen=True)
class MergeParams:
    """How images are merged. A field that is 0 has its default. A value out of range is
    BRANT_E_INVALID, with the range in the message. The header's ``brant_image_merge_params``."""

    #: BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. One of: "direct", "cached".
    cache: str = "direct"


@dataclass(frozen=True)
class RestoreParams:
    """How a guest is restored. A field that is 0 has its default. A value out of range is
    BRANT_E_INVALID, with the range in the message. The header's ``brant_image_restore_params``."""

    #: The most bytes of early configuration and device state that brant takes; 4 KiB to 1 TiB;
    #: default 256 MiB.
    max_state_bytes: int = 0
    #: Threads that read; 1 to 64; default 4.
    readers: int = 0
    #: BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. One of: "direct", "cached".
    cache: str = "direct"
    #: BRANT_IMAGE_RESUME: `run` is called at the end. BRANT_IMAGE_STAY_PAUSED: `run` is not called,
    #: and the VMM starts the guest itself, after `brant_guest_runs_here`. One of: "resume",
    #: "stay-paused".
    guest: str = "resume"
    #: 0: the guest starts when all of its memory is here. 1: the guest starts at once
    #: (BRANT_GUEST_INCOMPLETE), and a thread that touches a page of it waits until the page is
    #: here. In the background brant reads ahead through the file. The restore is over when all
    #: pages are here; `brant_image_restore_finish` brings them in faster. Needs a userfaultfd that
    #: is told of the kernel's own accesses (CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or
    #: access to /dev/userfaultfd) and memory that it can watch, which no other userfaultfd watches:
    #: BRANT_E_UNSUPPORTED or BRANT_E_EXISTS names the block and the reason, before the first page
    #: is touched. `load` and `run` may touch the guest's memory; `thread_start` must not.
    #: A page that is damaged in the file, or cannot be read, never becomes wrong memory. When it is
    #: found before `run`, the restore fails and no guest is here. When the guest may be running, an
    #: access of the page raises SIGBUS, as of memory that the hardware has lost (a vCPU's: in the
    #: thread that called KVM_RUN), a BRANT_EVENT_WARNING says so, and the restore fails with
    #: BRANT_E_IMAGE, or the code of the failed read, when all other pages are here. The guest's
    #: state is then BRANT_GUEST_HERE, and those pages count as declared lost.
    lazy: bool = False
    #: 1: the VMM trusts the image: nobody cuts it or writes to it as long as this guest exists. The
    #: image's file is mapped privately (MAP_PRIVATE, MAP_FIXED) in place of the blocks' memory, and
    #: the guest starts at once. The kernel reads a page when it is touched, and nobody checks it: a
    #: damaged page is wrong memory, and the access of a page that was cut off raises SIGBUS. Advice
    #: that the VMM gave for the memory (madvise, mlock, mbind) ends, and pages that a device had
    #: pinned are not the guest's any more. Refused by name before anything is touched:
    #: BRANT_E_UNSUPPORTED for blocks of shared memory, of a file or of huge pages, for an image
    #: that holds what changed (`brant_image_merge` makes a full one), and for one of older
    #: software; BRANT_E_EXISTS for memory that a userfaultfd watches; BRANT_E_INVALID with `lazy`.
    #: `data_pages` and `zero_pages` stay 0.
    trusted: bool = False


@dataclass(frozen=True)
class Stats:
    """The figures of a migration, at either side. Times are nanoseconds, sizes bytes, pages 4 KiB.
    Some figures tell the present and may fall: `total_bytes`, `remaining_bytes`,
    `unacknowledged_pages`, `unacknowledged_bytes`, `throughput`, `bandwidth`,
    `switchover_bandwidth`, `round_trip_ns`, `dirty_pages_per_second`, `time_left_ns`,
    `expected_downtime_ns`, `sync_ns`, `downtime_limit_ns`, `throttle`, `limited_vcpus`, `stall`,
    `device_left_bytes`, `missing_pages`, `fault_waiting`, `fault_p50_ns` and `fault_p99_ns`. All
    others only grow, until a pause is aborted: the figures of that pause and its promise are 0
    then. (`state` is a name and not a figure: it goes from BRANT_SOURCE_IN_DOUBT to what follows,
    from BRANT_SOURCE_ABORTING_PAUSE back to BRANT_SOURCE_COPYING, between BRANT_SOURCE_SERVING,
    BRANT_SOURCE_INTERRUPTED and BRANT_SOURCE_RECOVERING in any direction, and back to
    BRANT_SOURCE_UNANSWERED where `brant_outgoing_resolve` cannot resume the guest.) The header's
    ``brant_stats``.

    `state`, `error` and `elapsed_ns` are those of the moment. The migration's thread brings all
    other figures up to date, about every 50 ms while it sends or receives. While that thread waits
    (for room in a connection, for its peer, or for an operation of the VMM's), `throughput` falls
    to 0 within a second, and the others stay as they were."""

    #: The migration's state: BRANT_SOURCE_* or BRANT_DESTINATION_*. One of: "idle", "connecting",
    #: "negotiating", "copying", "pausing", "saving", "last-sync", "sending-last", "awaiting-ready",
    #: "releasing", "committing", "handing-over", "awaiting-running", "resuming", "completed",
    #: "failed", "resume-failed", "unanswered", "taken-back", "given-up", "in-doubt", "verifying",
    #: "aborting-pause", "serving", "interrupted", "recovering", "listening", "receiving",
    #: "loading", "ready", "awaiting-handover", "starting", "running", "start-failed", "completing",
    #: "incomplete".
    state: str
    #: The pass over memory, from 1; 0 before the first.
    pass_: int
    #: BRANT_E_*, why it failed; 0 if it has not failed.
    error: int
    #: How far the migration is, in hundredths of a percent, 0 to 10000. Source: pages sent so far,
    #: divided by the sum of those, the remaining pages and the pages that later passes will send by
    #: the forecast. Destination: pages received so far, divided by the sum of those and the
    #: remaining pages. Never falls. 10000 when the guest runs at the destination, and not before;
    #: with postcopy at the source from the switch on, at the destination when all pages are there,
    #: and `missing_pages` tells the rest. After a failure or a cancel it keeps its last value, at
    #: most 9999. `state` and `error` tell that the migration is over.
    progress: int
    #: The guest's memory.
    total_bytes: int
    #: Of these, what both processes have in common because it was handed over by descriptor
    #: (`brant_params.hand_over`): nothing of it is sent.
    shared_bytes: int
    #: Source: bytes that are pending now; `total_bytes` before the first pass. Destination:
    #: `total_bytes` less the pages received so far. 0 when the migration has completed; after a
    #: failure or a cancel it keeps its last value.
    remaining_bytes: int
    #: Bytes that went over all connections, headers included. At the source, bytes count when the
    #: records that they belong to have been sent: the figure stands still while a batch of pages
    #: (at most 2 MiB) is being sent, and then grows by all of it.
    wire_bytes: int
    #: Pages sent (received) with their contents; a page sent twice counts twice.
    data_pages: int
    #: Pages sent (received) as zero, without contents: holes, ballooned and free pages included.
    zero_pages: int
    #: Of the zero pages, those that were never touched and so never read. Source only.
    hole_pages: int
    #: Pages sent that the destination has not acknowledged. Source only.
    unacknowledged_pages: int
    #: Bytes of pages sent that the destination has not acknowledged: they are in buffers on the
    #: way. Source only.
    unacknowledged_bytes: int
    #: Of the data pages, those that went (came) compressed: `compressed_pages` times 4096 bytes
    #: became `compressed_bytes`.
    compressed_pages: int
    #: What the compressed pages became, in bytes.
    compressed_bytes: int
    #: Since the start.
    elapsed_ns: int
    #: Bytes a second over the last second or so, everything included.
    throughput: int
    #: Bytes a second that the link carries, as measured by what the destination acknowledged; None
    #: until enough was sent to measure it. `brant_params.switchover_bandwidth` and
    #: `switchover_max_bandwidth` do not change it.
    bandwidth: Optional[int]
    #: Bytes a second that `expected_downtime_ns` counts with: `brant_params.switchover_bandwidth`,
    #: or else `bandwidth`; at most `brant_params.switchover_max_bandwidth`. None until one is
    #: known. Source only.
    switchover_bandwidth: Optional[int]
    #: The time from a message to the destination's answer when nothing else is on its way. None
    #: until it is measured, at the end of the first pass. Source only.
    round_trip_ns: Optional[int]
    #: Pages a second that the guest wrote, as found by syncs that came when all pages of the sync
    #: before had been sent. A page that was written many times between two syncs counts once. None
    #: before the first such sync, so during the whole first pass.
    dirty_pages_per_second: Optional[int]
    #: The time until the remaining pages fit the downtime limit, at these rates. None while one of
    #: the rates is unknown, when the link is not clearly faster than the guest, and after a
    #: failure.
    time_left_ns: Optional[int]
    #: The downtime if the switchover came now: everything from the call of `pause` to the
    #: destination's word that the guest runs. The VMMs' operations and the size of the device state
    #: count as `brant_params` states them (`expected_pause_us` and so on), and as zero when nothing
    #: was stated or measured. None before the first pass, and until a bandwidth is measured,
    #: `brant_params.switchover_bandwidth` states one, or a pass has ended.
    expected_downtime_ns: Optional[int]
    #: `expected_downtime_ns` as it was when the guest was about to be paused, to compare with
    #: `downtime_ns`. 0 before. It does not change afterwards. None where the guest was switched to
    #: postcopy before anything was measured. Its parts follow; the part that was measured stands in
    #: brackets.
    promised_downtime_ns: Optional[int]
    #: Of the promise: the VMM's `pause` (`pause_ns`).
    promised_pause_ns: int
    #: Of the promise: the harvests of all logs (`last_sync_ns`).
    promised_sync_ns: int
    #: Of the promise: the VMM's `save` (`save_ns`).
    promised_save_ns: int
    #: Of the promise: sending the last pages (`memory_ns`).
    promised_memory_ns: int
    #: Of the promise: sending the device state (`state_sent_ns`).
    promised_state_ns: int
    #: Of the promise: the destination's `load` (`load_ns`).
    promised_load_ns: int
    #: Of the promise: the waits for the destination's answers (`round_trips_ns`).
    promised_round_trips_ns: int
    #: Of the promise: the VMM's `release` (`release_ns`).
    promised_release_ns: int
    #: Of the promise: the destination's `run` (`run_ns`).
    promised_run_ns: int
    #: How long the guest stood still: from the call of `pause` to the destination's word that the
    #: guest runs, or else to the return of `resume`. 0 before. When the guest still stands
    #: (unanswered, or not resumed), the time ends when that was known.
    downtime_ns: int
    #: Of the downtime: the VMM's `pause`.
    pause_ns: int
    #: Of the downtime: the VMM's `save`.
    save_ns: int
    #: Of the downtime: the harvests of all logs.
    last_sync_ns: int
    #: Of the downtime: sending the last pages and the state.
    last_send_ns: int
    #: Of the downtime: waiting for the destination to receive and load.
    ready_ns: int
    #: Of the downtime: the VMM's `release`.
    release_ns: int
    #: Of the downtime: the hand-over and the destination's `run`.
    handover_ns: int
    #: Destination: the VMM's `load` (told to the source).
    load_ns: int
    #: Destination: computing checksums of its memory, before `load` (told to the source); 0 unless
    #: the migration is verified (`brant_params.verify`). No promise counts with it.
    digest_ns: int
    #: Destination: the VMM's `run` (told to the source).
    run_ns: int
    #: Of the downtime: how long the last pages were on the link. The time from the first of them to
    #: the destination's READY, less `load_ns`, `digest_ns` and a round trip, is divided between
    #: pages and device state by their bytes. Source only.
    memory_ns: int
    #: Of the downtime: how long the device state was on the link. Source only.
    state_sent_ns: int
    #: Of the downtime: the two round trips that the answers READY and RUNNING took. Source only.
    round_trips_ns: int
    #: How much longer than the downtime limit the guest stood still, after a migration that
    #: completed; 0 when the limit was kept. A BRANT_EVENT_DOWNTIME says which parts took longer
    #: than promised. Source only.
    overrun_ns: int
    #: Pauses that were aborted because the downtime would have exceeded its limit. The guest ran on
    #: after each. At most 3. Source only.
    aborted_pauses: int
    #: How long the guest stood still in each of these pauses, the first one first. Source only.
    aborted_pause_ns: Tuple[int, ...]
    #: The downtime limit in use: `brant_params.downtime_limit_ms`, as it was changed since, and as
    #: far as the policy has raised it. Source only.
    downtime_limit_ns: int
    #: The percentage of their time that the policy takes from all vCPUs now. Source only.
    throttle: int
    #: How many vCPUs the policy slows by a limit of their own now. Source only.
    limited_vcpus: int
    #: BRANT_STALL_*: why the migration makes no progress now. When nothing moves for
    #: `brant_policy.stall_ms` in the middle of a pass, this is BRANT_STALL_LINK or
    #: BRANT_STALL_DESTINATION until something moves again. Source only. One of: "none", "link",
    #: "destination", "throttled", "dirtying".
    stall: str
    #: Pages sent while the guest was paused.
    last_pages: int
    #: Bytes of device state in blobs.
    state_bytes: int
    #: Bytes of devices' state (brant_guest_add_device) that were sent (loaded) while the guest ran.
    device_running_bytes: int
    #: Bytes of devices' state that were sent (loaded) after the pause.
    device_stopped_bytes: int
    #: Bytes of devices' state that are not sent, as the devices last said. Source only.
    device_left_bytes: int
    #: How long callbacks have read (loaded) devices' state.
    device_time_ns: int
    #: Of the downtime: reading devices' state after the pause, and sending it. Source only.
    device_stopped_ns: int
    #: Syncs made.
    syncs: int
    #: The last sync that was made with the guest running.
    sync_ns: int
    #: Pages that syncs found.
    found_pages: int
    #: Calls that cleared chunks.
    clear_calls: int
    #: The longest restoring of one chunk.
    longest_clear_ns: int
    #: Pages put back into the tracker after a failure.
    put_back_pages: int
    #: Of the zero pages, the ballooned ones: the source names them, and neither reads nor sends
    #: them. A page that is named again counts again.
    ballooned_pages: int
    #: Pages that were pending and that free-page hints spared. Source only.
    hinted_pages: int
    #: Of the zero pages, those whose contents the VMM has declared lost
    #: (brant_guest_mark_poisoned), which are neither read nor sent. A page that is named again
    #: counts again. Source only.
    poisoned_pages: int
    #: Of the data pages, those that were sent again as what had changed in them
    #: (`brant_params.delta_cache_bytes`). Source only.
    delta_pages: int
    #: Bytes that these pages would have taken more if they had been sent whole. Source only.
    delta_saved_bytes: int
    #: Pages that were sent again, and whole because the cache did not hold their last version. A
    #: page enters the cache when it is sent for the second time, because most pages are sent only
    #: once. So the second sending of a page is always a miss. Source only.
    delta_missed_pages: int
    #: Pages that were sent again, and whole because too much had changed in them. Source only.
    delta_overflowed_pages: int
    #: For how long one channel had more pages than it could send while another had none: what
    #: several channels lose because each 2 MiB of memory belong to one of them. Divided by
    #: `elapsed_ns` it is a share of the migration. Source only; 0 with one channel.
    uneven_ns: int
    #: Pages that the host was asked to back just before their contents arrived
    #: (`brant_params.prefault`). Destination only.
    prefaulted_pages: int
    #: How often the host could not back pages ahead of their contents. Destination only.
    prefault_failures: int
    #: Bytes of pages that the kernel sent from guest memory without a copy
    #: (`brant_params.zero_copy`). Source only.
    zero_copied_bytes: int
    #: Bytes of pages that were to go without a copy and that the kernel copied after all. Source
    #: only.
    copied_anyway_bytes: int
    #: Sends that the kernel refused to make without a copy for want of memory that may be locked
    #: (RLIMIT_MEMLOCK, net.core.optmem_max), and that were copied. Source only.
    zero_copy_refused: int
    #: Whether pages go without a copy now, and why not: BRANT_ZERO_COPY_*. Source only. One of:
    #: "off", "on", "unsupported", "copied", "limit", "encoded".
    zero_copy: str
    #: Pages whose contents at the destination were compared with those here
    #: (`brant_params.verify`). Source only.
    verified_pages: int
    #: Pages that were not compared, because they were sent without being read: ballooned, hinted
    #: and poisoned ones, those of a block that was removed meanwhile, and the rest when the
    #: comparison ended early. Source only.
    unverified_pages: int
    #: Of the verified pages, those that differed, and pages of memory that was handed over by
    #: descriptor and was written before `run`. Source only.
    mismatched_pages: int
    #: The block of the first page that differed; None when none did. Source only.
    first_mismatch_block: Optional[int]
    #: The first page that differed, counted from the beginning of that block; None when none did.
    #: Source only.
    first_mismatch_page: Optional[int]
    #: For how long the pages were compared, after the downtime. The destination's part of the work
    #: is `digest_ns`. Source only.
    verify_ns: int
    #: Of the data pages, those that brant copied itself: to send them with a checksum, compressed
    #: or as a delta, or to keep them for later deltas. None of these can go without a copy. Source
    #: only.
    encoded_pages: int
    #: Postcopy: pages that have not arrived since the switch; at the source, that were not
    #: acknowledged. 0 when the switch was dropped or failed. Tells the present.
    missing_pages: int
    #: Postcopy: pages that arrived because somebody at the destination waited for them; at the
    #: source, those that were acknowledged on the urgent connection.
    urgent_pages: int
    #: Postcopy: pages that arrived after the switch before anybody waited for them; at the source,
    #: those that were acknowledged on all other connections.
    bulk_pages: int
    #: Postcopy: page faults of the guest on memory that was not here. A fault that the kernel tells
    #: of twice counts twice. Destination only.
    faults: int
    #: Postcopy: threads that wait for a page now. Tells the present. Destination only.
    fault_waiting: int
    #: Postcopy: half of the waits for a page were no longer, to an eighth. May fall. Destination
    #: only.
    fault_p50_ns: int
    #: Postcopy: 99 of 100 waits for a page were no longer, to an eighth. May fall. Destination
    #: only.
    fault_p99_ns: int
    #: Postcopy: the longest wait for a page that has ended. Destination only.
    fault_max_ns: int
    #: Postcopy: how long threads have waited for pages, the sum over all threads
    #: (`brant_incoming_get_blocked` has each). Destination only.
    fault_blocked_ns: int
    #: Postcopy: faults on pages that were not missing, which were answered here. Destination only.
    local_faults: int
    #: Postcopy: pages that were given up (`brant_incoming_give_up`). Destination only.
    lost_pages: int
    #: Postcopy: requests of the destination for pages that its guest waited for. A request may name
    #: several runs of pages. Source only.
    requests: int
    #: Postcopy: pages in these requests. Some of them were on their way already. Source only.
    requested_pages: int
    #: Postcopy: how often the migration went on over new connections. At the source a recovery
    #: counts once a page has arrived over them, or the session is complete; at the destination once
    #: both sides have agreed on them.
    recoveries: int


@dataclass(frozen=True)
class LaneStats:
    """The figures of one channel of a migration, and of the thread that sends or receives on it.
    Times are nanoseconds, sizes bytes, pages 4 KiB. `state`, `unacknowledged_pages`, `queued_pages`
    and `silence_ns` tell the present and may fall; all others only grow. The header's
    ``brant_lane_stats``.

    At the source the migration's thread brings the figures of all channels up to date. While that
    thread waits for room in a connection, the figures stay as they were before the wait. Example:
    the destination's process is stopped. A channel is BRANT_LANE_BUSY, and its `silence_ns` and
    `send_wait_ns` do not grow until the wait ends. At the destination the thread of each channel
    brings the figures of that channel up to date after each record."""

    #: BRANT_LANE_*. One of: "closed", "idle", "busy".
    state: str
    #: Bytes that went over the connection, headers included.
    wire_bytes: int
    #: Pages sent (received) with their contents.
    data_pages: int
    #: Pages sent (received) as zero, without contents.
    zero_pages: int
    #: Pages sent that the destination has not acknowledged. Source only.
    unacknowledged_pages: int
    #: Pages that wait for the channel. Source only; 0 when there is one channel.
    queued_pages: int
    #: For how long the other channels waited because as many pages waited for this one as may wait.
    #: Source only; 0 on channel 0.
    queue_wait_ns: int
    #: For how long the connection had no room. Source only.
    send_wait_ns: int
    #: For how long the channel had nothing to do. Source: 0 on channel 0. Destination: for how long
    #: it waited for bytes.
    idle_ns: int
    #: For how long the destination has had something to acknowledge and has acknowledged nothing; 0
    #: when it has nothing. Source only.
    silence_ns: int


@dataclass(frozen=True)
class Forecast:
    """A forecast of a migration: whether it will converge and what it will take. It assumes that
    guest and link go on as they were seen last. Example: 64 GiB over 10 Gb/s take 55 s. Meanwhile
    the guest writes 6 GiB of them again, so a second pass takes 5 s and a third one less. The
    forecast walks through these passes beforehand. The header's ``brant_forecast``.

    When the migration will not converge, `limit_us`, `bandwidth` and `throttle` say what would make
    it converge: the smallest of each, the two others being as they are. They are 0 when no value of
    this one alone is enough, and when the migration converges as it is.

    Experimental: what is forecast, and from which figures, may change."""

    #: 1 when the migration ends with a switchover, else 0.
    converges: bool
    #: Passes over memory in all, from the first.
    passes: int
    #: Microseconds from the migration's start to its end.
    time_us: int
    #: Bytes sent in all. What is to come counts as compressed as what was sent.
    bytes: int
    #: Microseconds that the guest will stand still. When the migration does not converge: what they
    #: would be after so many passes.
    downtime_us: int
    #: The lowest downtime limit with which the migration converges, microseconds.
    limit_us: int
    #: The lowest bandwidth with which the migration converges, bytes a second.
    bandwidth: int
    #: The lowest throttle of all vCPUs with which the migration converges, in percent of the time
    #: that they run now.
    throttle: int
    #: 1 as long as no sync has shown what the guest writes: it then counts as writing nothing, so
    #: passes, time, bytes and downtime are the least that they can be, and `converges` is a guess.
    #: Without a policy that slows the guest, that is the whole first pass. Else 0.
    guessed: bool


@dataclass(frozen=True)
class DirtyRate:
    """A dirty rate: distinct pages of 4 KiB that were written in the period, divided by its
    seconds. A page that is written many times counts once. So a short period gives about the speed
    at which the guest writes, and a long period tends to the number of different pages that it
    writes. The header's ``brant_dirty_rate``."""

    #: Distinct pages written in the period, divided by its seconds.
    pages_per_second: int
    #: pages_per_second in bytes: what a migration would have to send if it sent each page whole.
    bytes_per_second: int
    #: How far pages_per_second may be off, up or down. By sampling: half of the interval that holds
    #: the true figure in 95 of 100 measurements. By log: the uncertainty of when the period began
    #: and ended for each page.
    error_pages_per_second: int
    #: Distinct pages written in the period: counted, or estimated.
    written_pages: int
    #: Nanoseconds: how long the period really was.
    period_ns: int
    #: By log: of written_pages, those written in both halves of the period. If these are few, the
    #: guest goes on to new pages, and a longer period would find more. If these are nearly all, the
    #: guest writes to the same pages again and again, and written_pages is how many they are. None
    #: by sampling.
    rewritten_pages: Optional[int]
    #: By sampling: pages that were read. None by log.
    sampled_pages: Optional[int]
    #: By sampling: of those, pages that had changed. None by log.
    changed_pages: Optional[int]
    #: By log: 1 when a log failed, so that all its pages were counted, or when a log will deliver
    #: some pages only later; else 0.
    warnings: bool


@dataclass(frozen=True)
class ImageStats:
    """The figures of a save or a restore. Times are nanoseconds, sizes bytes, pages 4 KiB. The
    header's ``brant_image_stats``."""

    #: The state: BRANT_IMAGE_*, from _IDLE to _FAILED. One of: "idle", "preparing", "copying",
    #: "paused", "finishing", "filling", "loading", "starting", "completed", "failed".
    state: str
    #: Save: the pass over memory, from 1; 0 before the first.
    pass_: int
    #: BRANT_E_*, why it failed; 0 if it has not failed.
    error: int
    #: How far it is, in hundredths of a percent, 0 to 10000. Never falls; 10000 once it has
    #: completed, and not before.
    progress: int
    #: The guest's memory.
    total_bytes: int
    #: Bytes of the guest's memory that remain to be written or read. May grow while a guest that is
    #: saved runs.
    remaining_bytes: int
    #: Pages with contents; a page that is written again counts again.
    data_pages: int
    #: Pages that are zero, ballooned ones included; they take no room in the file. A page that is
    #: named again counts again.
    zero_pages: int
    #: Save, of the zero pages: ballooned ones.
    ballooned_pages: int
    #: Save, of the zero pages: those whose contents the VMM has declared lost.
    poisoned_pages: int
    #: Bytes of early configuration and device state.
    state_bytes: int
    #: The length of the file; zero pages take no room on the disk. 0 until the length is known.
    file_bytes: int
    #: Since the start.
    elapsed_ns: int
    #: Save: how long the guest stood still, from the call of `pause` to the return of `resume`;
    #: None before, and when brant did not call both.
    downtime_ns: Optional[int]
    #: Restore with `lazy`: pages that a thread waited for. All others were here before.
    urgent_pages: int
    #: Restore with `lazy`: pages that are damaged in the image, or could not be read, and that the
    #: guest runs without.
    lost_pages: int
    #: Restore with `lazy`: page faults, those on pages that were here included. Save with
    #: BRANT_IMAGE_INSTANT_START: how often a thread waited because it touched a page that the image
    #: did not have yet.
    faults: int
    #: Restore with `lazy`: half of the waits for a page were no longer, to an eighth. 0 without a
    #: wait.
    fault_p50_ns: int
    #: Restore with `lazy`: 99 of 100 waits for a page were no longer, to an eighth.
    fault_p99_ns: int
    #: Restore with `lazy`: the longest wait for a page.
    fault_max_ns: int
    #: Save with BRANT_IMAGE_INSTANT_START: how long protecting memory took, which is part of
    #: `downtime_ns`; None before that, and in other saves.
    protecting_ns: Optional[int]
    #: Save with BRANT_IMAGE_INSTANT_START, of the data pages: those that were copied because the
    #: guest wrote them first, or the pages before them.
    copied_pages: int
    #: Save with BRANT_IMAGE_INSTANT_START, of the faults: those that waited for a buffer or the
    #: disk, because there was no room for a copy.
    held_faults: int


@dataclass(frozen=True)
class KvmInfo:
    """Which of KVM's dirty logs was chosen, and the totals of its rings. All fields but the first
    six are about rings, and 0 in other modes. The header's ``brant_kvm_info``."""

    #: BRANT_KVM_*; BRANT_KVM_AUTO only as long as no KVM log was added. One of: "auto",
    #: "get-and-clear", "manual-protect", "initially-set", "ring".
    mode: str
    #: 1 if a bitmap is read besides the rings, for writes that no vCPU makes.
    with_bitmap: bool
    #: vCPUs added.
    vcpus: int
    #: Bytes of each vCPU's ring; 16 an entry.
    ring_bytes: int
    #: Bytes of the bitmaps that hold the rings' pages between syncs.
    heap_bytes: int
    #: Rounds over all rings, each with one KVM_RESET_DIRTY_RINGS at most.
    rounds: int
    #: Entries harvested. A page that is written, harvested and written again counts twice.
    harvested: int
    #: Calls of `brant_tracker_ring_full`.
    full_exits: int
    #: Times that a ring overran: the kernel pushed onto a full one.
    overruns: int
    #: Pushes that were lost in overruns, as far as brant knows. No page is lost: see `recoveries`.
    lost_pushes: int
    #: Times that all slots were protected again and every page counted as dirty, after a loss of
    #: pushes.
    recoveries: int
    #: Resets that were interrupted, or may have been: the process was stopped, traced or frozen.
    interrupted: int
    #: Pages that may have lost their protection in an interrupted reset; every sync reports them.
    doubtful_pages: int
    #: Entries that named no page of the guest.
    stray_entries: int
    #: vCPUs that have a dirty limit now.
    limited_vcpus: int
    #: Calls of `brant_tracker_ring_full` that waited a slice because the vCPU was over its dirty
    #: limit.
    limit_waits: int


@dataclass(frozen=True)
class MissingRun:
    """Some pages of a block that have not arrived. Pages are 4 KiB. The header's
    ``brant_missing_run``."""

    #: The block, by the number that `brant_guest_add_block` gave.
    block: int
    #: The first page, counted from the beginning of the block.
    first_page: int
    #: How many pages.
    pages: int


@dataclass(frozen=True)
class Blocked:
    """How long a thread has waited for pages that had not arrived. The header's ``brant_blocked``."""

    #: The thread's number in the kernel (gettid), by which the VMM knows its vCPU threads. 0: all
    #: threads beyond the first 1024, and those of other processes.
    thread: int
    #: The thread's page faults on memory that was not here.
    faults: int
    #: How long it waited, a wait in progress included; nanoseconds.
    blocked_ns: int


#: What is given to the library.
Given = Union[Params, Policy, RateParams, SaveParams, MergeParams, RestoreParams]
