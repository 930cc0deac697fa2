"""What each figure of `make bench` means, what it is to be, and whether it is: a table, and the
judge over it. scripts/bench prints by it, scripts/bench-docs writes pages by it. Measures nothing.
"""

import collections
import re

# The most that a cost may have grown by the clock, other work on the machine included: by a wait
# that is one factor of the size too long it is 8.
BY_CLOCK = 3

KEPT, UNDECIDED, MISSED = "kept", "undecided", "MISSED"

# Figures whose name matches `pattern` mean `meaning`; their ratio is to be at least (">=") or at
# most ("<=") `bound`, or anything (None).
Figure = collections.namedtuple("Figure", "pattern meaning sense bound", defaults=(None, None))

# The first that matches a name counts.
GROUPS = [
    ("Sending memory", [
        Figure(r"stream\.bare_fraction$", "1 GiB of data by TCP and one connection: throughput over a bare send and "
               "recv in C", ">=", 0.95),
        Figure(r"stream\.bare2_fraction$", "the same by two channels, over two bare streams with a thread each", ">=", 0.95),
        Figure(r"stream\.channels/", "1 GiB of data by so many channels: throughput over one channel"),
        Figure(r"stream\.cold_ratio$", "the same into memory that is freshly mapped, in a kernel whose own memory the host has "
               "backed: the destination backs what comes just before it does", ">=", 1.3),
        Figure(r"stream\.checksum_ratio$", "1 GiB of data with a checksum over its contents: throughput over that without (on by "
               "default if at least 0.95)"),
        Figure(r"compress\.gbps/", "contents compressed by zstd at the level: throughput over a memcpy of them, by contents and "
               "level"),
        Figure(r"compress\.size/", "the bytes that these contents become, over their own"),
        Figure(r"compress\.decode/", "these frames decompressed: throughput over a memcpy of the contents"),
        Figure(r"zero\.scan_fraction$", "2 GiB of touched zeros: throughput over one vector pass that reads them", ">=", 0.85),
        Figure(r"scatter\.bare_fraction/", "every so manyth page of 2 GiB: throughput over a bare writev of these pages, "
               "received in blocks of 256", ">=", 0.85),
        Figure(r"delta\.gbps/", "64 MiB of changed pages encoded, by what has changed in each page: throughput over an encoder "
               "in C that compares a word at a time", ">=", 1.0),
        Figure(r"delta\.sent_bytes$", "4,096 hot pages that get a word each between 12 passes: bytes behind the first sending of "
               "each page, with deltas over without", "<=", 0.3),
        Figure(r"delta\.size/", "the length of these encodings, over that encoder's", "<=", 1.0),
    ]),
    ("Beside QEMU (make bench-peers)", [
        Figure(r"stream\.qemu_ratio$", "2 GiB of data by TCP and one connection, from the migrate call to the running destination: "
               "throughput over QEMU's", ">=", 1.8),
        Figure(r"stream\.qemu_multifd_ratio$", "the same by two connections, over QEMU's multifd", ">=", 1),
        Figure(r"cpu\.qemu_ratio$", "processor time of both sides for one GiB of data, over QEMU's", "<=", 0.8),
        Figure(r"cpu\.qemu_ratio/", "the same by several connections, over QEMU's multifd"),
        Figure(r"zero\.qemu_ratio$", "2 GiB of zeros that were written: throughput over QEMU's", ">=", 2.5),
        Figure(r"untouched\.qemu_ratio$", "2 GiB that were never touched: throughput over QEMU's", ">=", 50),
        Figure(r"postcopy\.qemu_blackout", "a guest that sweeps 256 MiB flat out and is switched to postcopy after half a second, over a link "
               "of 300 MB/s; by memory (a memfd of 1 GiB, if the name has none): how long it stands still, over QEMU's"),
        Figure(r"postcopy\.qemu_blocked", "the same: how long its vCPU waits for pages, over QEMU's"),
        Figure(r"snapshot\.qemu_guest_loss(/(private|memfd|huge).*)?$", "a guest that sweeps 512 MiB flat out and is saved as it is at 300 MB/s; by memory: the part of its "
               "rate that it loses until the file is whole, over that of QEMU's background-snapshot", "<=", 1 / 1.5),
        Figure(r"snapshot\.qemu_guest_loss/", "the same of a guest that sweeps 48 MiB, and as fast as the disk is"),
        Figure(r"snapshot\.qemu_lost_s", "the same in seconds of the guest's work, over QEMU's"),
    ]),
    ("A guest in a file", [
        Figure(r"image\.write_fraction$", "1 GiB of data saved to a new file and synced: throughput over bare sequential "
               "O_DIRECT writes and fsync", ">=", 0.9),
        Figure(r"image\.write_direct$", "the same, over a save through the page cache"),
        Figure(r"image\.read_fraction$", "1 GiB of data restored: throughput over bare sequential O_DIRECT reads",
               ">=", 0.9),
        Figure(r"snapshot\.write_fraction$", "1 GiB saved as it is when the save begins: throughput over bare sequential "
               "writes of the same bytes", ">=", 0.9),
        Figure(r"snapshot\.guest_loss$", "the part of its rate that a guest loses during such a save, over that lost during a save "
               "by the dirty log"),
        Figure(r"restore\.first_ms(/(private|memfd).*)?$", "until a guest that starts before its memory is read has read a random hundredth "
               "of its pages, over reading all of the image first; by memory (private memory of 1 GiB, if the name has none)",
               "<=", 0.2),
        Figure(r"restore\.first_ms/", "the same in pages of 2 MiB, each of which has one of them"),
        Figure(r"restore\.first_over_bare", "the same pages, over bare O_DIRECT reads of their places in the file, one after the other"),
        Figure(r"restore\.run_ms", "until the guest runs, over reading all of the image first", "<=", 0.05),
        Figure(r"restore\.mapped_ms", "the same pages read by a guest in a private mapping of a trusted image, over those of a guest "
               "whose pages come by fault"),
        Figure(r"restore\.mapped_run_ms", "until that guest runs, over one whose pages come by fault"),
    ]),
    ("Standing still", [
        Figure(r"standstill\.idle_blocks/", "downtime of an idle guest of that many blocks, over that of an idle guest of "
               "1 MiB", "<=", 40),
        Figure(r"standstill\.idle_", "downtime of an idle guest, by size and memory at the destination, over that of an "
               "idle guest of 1 MiB", "<=", 10),
        Figure(r"downtime\.kept$", "switchovers, aborted pauses among them, that kept the downtime limit: limits of 50 and "
               "300 ms, guests that write 0.3 to 1.5 of the link, buffers of 0 to 8 MiB, round trips of 0 to 100 ms; share of "
               "all", ">=", 0.99),
        Figure(r"downtime\.overrun_by_steal$", "switchovers beyond the limit in runs in which the host took the processor "
               "away; share of all"),
        Figure(r"downtime\.refused$", "migrations that said that the limit cannot be kept; share of all"),
        Figure(r"downtime\.promise_error$", "difference of downtime and promise, over the promise; median", "<=", 0.1),
        Figure(r"downtime\.promise_error/p95$", "the same, the 95th percentile"),
        Figure(r"forecast\.error/(time|bytes|passes)$", "how far a forecast was off that was issued before a quarter of the "
               "time had passed; simulated guests of 256 GiB that write as recorded ones did, and in bursts and phases; median",
               "<=", 0.15),
        Figure(r"forecast\.error/worst_", "the same, the worst of them"),
        Figure(r"forecast\.error/real_", "the same of a KVM guest of 64 MiB over a link of 30 MB/s, which dirties 0.3 to 3 times as "
               "much", "<=", 0.15),
        Figure(r"handover\.downtime_ratio$", "downtime of a hand-over on one host: 16 GiB of a memfd over 1 GiB, equally much of "
               "it touched", "<=", 1.2),
        Figure(r"postcopy\.fault_p99$", "postcopy, nothing else on a loopback connection: the 99th percentile of the waits of a thread that touches "
               "missing pages, over that of a round trip whose answer is a page, which is copied", "<=", 2),
        Figure(r"postcopy\.fault_p50$", "the same, the medians"),
        Figure(r"postcopy\.fault_p\d+/bulk$", "the same over a link of 100 MB/s, 1 ms and 256 KiB of buffer, on which four lanes "
               "send the rest meanwhile; over a round trip on that link while it is idle"),
        Figure(r"postcopy\.fault_p\d+/bulk_capped$", "the same with the four lanes capped at 80 MB/s"),
        Figure(r"postcopy\.blackout/", "downtime of a switch to postcopy by guest and missing pages, scattered, over that of a "
               "switchover with nothing to send"),
        Figure(r"postcopy\.description/", "missing pages written down or read, 1 % of 1 TiB, over one read of the bitmap"),
        Figure(r"standstill\.writes/", "downtime of a guest that writes so many pages a second, over the downtime limit",
               "<=", 0.3),
    ]),
    ("Guests that outrun the link", [
        Figure(r"converge\.table/", "a guest that writes so much of what the link carries, by policy: time until it runs at the "
               "destination, or until the migration gave up, over the time to send its memory once"),
        Figure(r"converge\.qemu_time$", "1 GiB of memory, half of it swept flat out, a link of 300 MB/s, a limit of 50 ms: time "
               "with all vCPUs slowed, over QEMU's with auto-converge (make bench-peers)", "<=", 1 / 3),
        Figure(r"converge\.qemu_bytes$", "the same: bytes sent, over QEMU's", "<=", 0.5),
        Figure(r"converge\.qemu_time/", "the same with writers limited: time over QEMU's with its dirty limit"),
        Figure(r"converge\.qemu_bytes/", "the same: bytes sent, over QEMU's"),
    ]),
    ("Tracking", [
        Figure(r"sync\.over_kernel/", "a sync without KVM's own time, over a memcpy of the bitmap, by guest and dirty "
               "pages", "<=", 1.5),
        Figure(r"sync\.misaligned_ratio$", "a sync of slots that begin beside multiples of 64 pages, over aligned ones; "
               "without KVM's time", "<=", 1.1),
        Figure(r"sync\.misaligned_ratio/with-kernel$", "the same with KVM's time", "<=", 1.1),
        Figure(r"sync\.clear_ioctls$", "clears that a misaligned block of 4 MiB takes, over those of an aligned one",
               "<=", 1),
        Figure(r"sync\.parts/", "a part of a sync (KVM's GET, merging, marks, 24 vhost logs) over the whole sync"),
        Figure(r"vhost\.shared/", "a sync of 256 GiB with one log that 24 vhost back ends share, 10 % dirty: the whole sync over "
               "KVM's part and its merge", "<=", 2),
        Figure(r"vhost\.separate/", "the part of 24 separate logs in such a sync, over that of one shared log with the same bits"),
        Figure(r"vhost\.clear/", "clearing these bits chunk by chunk, in the takes between two syncs, over the whole sync"),
        Figure(r"ring\.sync_us$", "a sync of 1,000 pages by dirty ring: the slowest size of guest over the fastest",
               "<=", 1.2),
        Figure(r"ring\.sync_us/own$", "brant's own part of it, without KVM's reset of the rings: in a guest of 1 TiB over one of "
               "1 GiB", "<=", 1.2),
        Figure(r"ring\.sync_us/.*/own$", "brant's own part of a sync by dirty ring"),
        Figure(r"ring\.sync_us/.*/kernel$", "KVM's part (its reset of the rings) of a sync by dirty ring"),
        Figure(r"ring\.sync_us/", "a sync of 1,000 pages by dirty ring, over one by bitmap, by guest"),
        Figure(r"clear\.longest_ms$", "the longest clear of one chunk, over one clear of the whole slot"),
        Figure(r"layers\.bytes_per_page/", "bytes that tracking holds a page, over three bitmaps, by mode"),
        Figure(r"guest\.slowdown/", "a real guest's write rate while it is tracked, over untracked, by mode"),
    ]),
    ("Collecting marks", [
        Figure(r"collect\.memcpy_ratio/0%$", "collecting a bitmap of 256 MiB with nothing in it, over a memcpy of it",
               "<=", 0.05),
        Figure(r"collect\.memcpy_ratio/", "collecting a bitmap of 256 MiB while it is set, over a memcpy of it, by what is "
               "set", "<=", 1.5),
        Figure(r"collect\.onto_ratio/", "the same onto a bitmap that has bits already"),
        Figure(r"collect\.xchg_ratio/", "the same, over exchanging each word with zero"),
        Figure(r"collect\.rwlock_ratio/", "the same, over a lock that setters take for reading"),
        Figure(r"collect\.setter_stall/", "the longest that a setter waits meanwhile, over its wait for that lock"),
    ]),
    ("Reading with care", [
        Figure(r"readable\.share/", "processor time of asking whether memory can be read, over a whole migration's"),
        Figure(r"readable\.each/", "the same, if each page were asked about"),
    ]),
    ("Growth: the cost of eight times the size, over eight times the cost (or over the cost, where nothing may grow)", [
        Figure(r"growth\.(add|remove)_blocks$", "512 and 4,096 blocks are added, or removed", "<=", 1.3),
        Figure(r"growth\.(add|remove)_slots", "4,000 and 32,000 slots are added, or removed; with a log that follows them",
               "<=", 1.3),
        Figure(r"growth\.layout_exchange$", "the two sides agree about 512 and 4,096 blocks", "<=", 1.3),
        Figure(r"growth\.mark_last_slot$", "a mark in the last of 4,000 and of 32,000 slots", "<=", 1.3),
        Figure(r"growth\.(mark|sync|take)/runs$", "16,384 and 131,072 runs of one page are marked, synced, or taken",
               "<=", 1.3),
        Figure(r"growth\.(start|sync|stop)/vcpus$", "tracking starts, syncs, or stops with 8 and 64 dirty rings",
               "<=", 1.3),
        Figure(r"growth\.(start|stop|sync/0\.1%|take/0\.1%)$", "tracking starts or stops, or one page in 1,000 is synced or "
               "taken, in 64 and 512 GiB", "<=", 1.3),
        Figure(r"growth\.(mark_bitmap|balloon_told_again|hint)$", "the VMM marks by bitmap, balloons again, or hints: 64 "
               "and 512 GiB", "<=", 1.3),
        Figure(r"growth\.(destination_start|cancel)$", "a destination starts, or a migration is cancelled, in small and "
               "large guests", "<=", 1.3),
        Figure(r"growth\.send_(data|zeros|holes)/", "a migration of data, zeros or holes, by kind of memory", "<=", 1.3),
        Figure(r"growth\.", "another cost that grows with the guest", "<=", 1.3),
    ]),
    ("Python", [
        Figure(r"python\.take_array$", "taking 32,768 scattered pages from Python, over the library's own calls", "<=", 2),
    ]),
]

# What answers "is it fast?" within two minutes: the transport, the wait, the sync, the marks.
QUICK = ["stream.bare_fraction", "standstill.idle_touched/2GiB", "standstill.writes/", "sync.over_kernel/256GiB-1%",
         "sync.clear_ioctls", "ring.sync_us", "collect.memcpy_ratio/1%-random", "growth.sync/runs",
         "growth.mark/runs", "growth.take/runs"]


def find(name):
    """A figure's group and entry; (None, None) of a name that nobody has described."""
    for group, figures in GROUPS:
        for figure in figures:
            if re.match(figure.pattern, name):
                return group, figure
    return None, None


def goal(figure):
    return "%s %.3g" % (figure.sense, figure.bound) if figure and figure.sense else ""


def judge(row):
    """What a figure is to be, and whether it is."""
    figure = find(row["name"])[1]
    if not goal(figure):
        return "", ""
    low, high = row.get("low", row["ratio"]), row.get("high", row["ratio"])
    at_least = figure.sense == ">="
    meets = [ratio >= figure.bound if at_least else ratio <= figure.bound for ratio in (low, high)]
    if row.get("by_clock", 0) > BY_CLOCK:
        return goal(figure), MISSED
    return goal(figure), KEPT if all(meets) else UNDECIDED if any(meets) else MISSED
