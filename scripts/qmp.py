"""Processes of one migration, and QEMU's control socket. scripts/bench-peers, scripts/busy_peers.py
and scripts/served_peers.py use it.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from packages import Cannot  # noqa: E402

# Longer than any migration of these takes.
SECONDS = 120


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def process(command, fd, **how):
    """A process that has a descriptor of ours, if any."""
    child = subprocess.Popen(command, pass_fds=[] if fd is None else [fd], **how)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()


def expect(child, word):
    line = child.stdout.readline().decode().strip()
    if line != word:
        raise Cannot("brant's side said %r instead of %r" % (line, word))


class Qmp:
    """QEMU's control socket: a JSON object a line."""

    def __init__(self, path):
        deadline = time.monotonic() + SECONDS
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise Cannot("QEMU does not answer") from None
                time.sleep(0.01)
        self.socket.settimeout(SECONDS)
        self.file = self.socket.makefile("rwb")
        self.version = json.loads(self.file.readline())["QMP"]["version"]["qemu"]
        # The time of day of the last one of each name, in seconds.
        self.events = {}
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "event" in answer:
                self.note(answer)
            elif "error" in answer:
                raise Cannot("QEMU: %s" % answer["error"]["desc"])
            else:
                return answer["return"]

    def await_event(self, name):
        while name not in self.events:
            answer = json.loads(self.file.readline())
            if "event" in answer:
                self.note(answer)
        return self.events[name]

    def note(self, event):
        at = event["timestamp"]
        self.events[event["event"]] = at["seconds"] + at["microseconds"] / 1e6

    def await_completed(self):
        while True:
            status = self.call("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise Cannot("QEMU's migration has failed")
            time.sleep(0.005)

    def close(self):
        self.file.close()
        self.socket.close()
