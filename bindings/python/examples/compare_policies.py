"""Two policies on one guest: how long each migration takes, and how long the guest stands still.

The guest writes a quarter of its memory faster than the link carries it. Writes an events file for
each policy, prints both outcomes, and draws them beside one another where matplotlib is there:
python3 compare_policies.py [DIRECTORY]
"""

import mmap
import os
import socket
import sys
import tempfile

import brant
from brant import events, plots
from brant.workload import Region

POLICIES = {
    "slowed": brant.Policy(slowing="all"),
    "paused after 2 s": brant.Policy(deadline_ms=2000, on_deadline="pause"),
}
MIB, LINK = 32, 100_000_000  # bytes a second


def migrated(path: str, name: str, policy: brant.Policy) -> events.Recording:
    """One migration of a new guest that writes the same pages each time."""
    with brant.Recorder(path, what=name) as recorder:
        region = Region(MIB << 20, hot=0.25, rate=60_000, seed=1)
        there = brant.Guest(run=lambda: None)
        there.add_block("region", mmap.mmap(-1, region.bytes))
        params = brant.Params(
            downtime_limit_ms=20, max_bandwidth=LINK, switchover_bandwidth=LINK,
            switchover_max_bandwidth=LINK,
        )
        ours, theirs = socket.socketpair()
        with region, brant.Tracker(region.guest) as tracker, brant.Incoming(there) as incoming:
            tracker.add_userfault()
            with brant.Outgoing(tracker, params) as outgoing:
                outgoing.set_policy(policy)
                incoming.start(theirs)
                recorder.watch(outgoing)
                outgoing.start(ours)
                outgoing.wait()
                recorder.close()
    return events.read(path)


directory = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="brant-policies-")
recordings = []
for number, (name, policy) in enumerate(POLICIES.items()):
    path = os.path.join(directory, "policy%d.jsonl" % number)
    recordings.append(migrated(path, name, policy))
    print("%s: %s" % (name, events.outcome(recordings[-1])))
try:
    picture = os.path.join(directory, "policies.html")
    plots.write(plots.timeline(recordings), picture, "Two policies", recordings)
    print("drawn:", picture)
except plots.PlotError as why:
    print("not drawn:", why)
