"""Memory moves to another process."""

import mmap
import os
import socket

import brant

here, there = socket.socketpair()
memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
if os.fork() == 0:  # The destination, whose memory is its own and is zero.
    guest = brant.Guest(run=lambda: print("there:", memory[12288:12302].decode(), flush=True))
    guest.add_block("memory", memory)
    with brant.Incoming(guest) as incoming:
        incoming.start(there)
        incoming.wait()
else:
    memory[12288:12302] = b"a guest's page"
    stop, go = (lambda: print("here: paused", flush=True)), (lambda: print("here: runs on"))
    guest = brant.Guest(pause=stop, resume=go)
    guest.add_block("memory", memory)
    with brant.Tracker(guest) as tracker, brant.Outgoing(tracker) as outgoing:
        outgoing.start(here)
        outgoing.wait()
        moved = outgoing.stats()
    os.wait()
    print("here: %d page sent, %d zero" % (moved.data_pages, moved.zero_pages))
