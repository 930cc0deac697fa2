"""Guests that write all the time, migrated by QEMU and by brant: the part of scripts/bench-peers whose
figures are `converge.`.

Both have the same guest: the ROM benches/peers/rom.S, one vCPU, memory that is a memfd. The link is a cap
on the bandwidth of each side; brant's holds after the pause too. QEMU's guest is slowed by
auto-converge, and by its dirty limit: the migration's own one where QEMU has it, else
`set-vcpu-dirty-limit` at half of the link. The clock begins before the migrate call and ends when the
source says that it is over. Work is what the guest counted meanwhile.
"""

import collections
import contextlib
import mmap
import os
import statistics
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from packages import Cannot  # noqa: E402
from qmp import Qmp, expect, free_port, process  # noqa: E402
from runner import ROOT, make  # noqa: E402

BUSY = os.path.join(ROOT, "target", "bench", "busy")
ROM = os.path.join(ROOT, "target", "bench", "rom.bin")
MIB = 1 << 20
PAGE = 4096
COUNTER = 0x1000
# The guest counts batches of so many pages.
BATCH = 16
# BRANT_SLOWING_*.
ALL, WRITERS = 1, 2

# `memory` and `region` in bytes, `writes` as a part of `link` (None: flat out), `link` in bytes a second,
# the downtime limit `limit` in milliseconds, and `patience`: a migration that is not over after so many
# seconds has not converged.
Guest = collections.namedtuple("Guest", "memory region writes link limit patience")
# How a migration ended: "converged", or why not; seconds, bytes, downtime in milliseconds, passes, and
# pages that the guest wrote.
Moved = collections.namedtuple("Moved", "ended seconds bytes downtime_ms passes work")

SWEEP = Guest(1024 * MIB, 512 * MIB, None, 300_000_000, 50, 60)
TABLE = [Guest(64 * MIB, 48 * MIB, writes, 100_000_000, 50, 15) for writes in (0.3, 0.9, 1.5, 3)]


def rom(guest, ticks_a_second, path):
    """Writes the ROM of a guest."""
    with open(ROM, "rb") as file:
        image = bytearray(file.read())
    ticks = 0 if guest.writes is None else \
        int(ticks_a_second * BATCH * PAGE / (guest.writes * guest.link))
    struct.pack_into("<III", image, 0, MIB, MIB + guest.region, ticks)
    with open(path, "wb") as file:
        file.write(image)


@contextlib.contextmanager
def memories(size):
    """Two memfds, the source's with content that is not zero."""
    fds = [os.memfd_create(name) for name in ("from", "to")]
    try:
        page = os.urandom(MIB)
        for at in range(0, size, MIB):
            os.pwrite(fds[0], page, at)
        os.ftruncate(fds[1], size)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


class Work:
    """The guest's counter, in the source's memory."""

    def __init__(self, fd):
        self.map = mmap.mmap(fd, COUNTER + PAGE)
        self.before = self.count()

    def count(self):
        return struct.unpack_from("<I", self.map, COUNTER)[0]

    def pages(self):
        return (self.count() - self.before) % (1 << 32) * BATCH

    def await_begin(self):
        until = time.monotonic() + 20
        while self.count() == self.before:
            if time.monotonic() > until:
                raise Cannot("the guest does not run")
            time.sleep(0.01)
        self.before = self.count()


def by_brant(guest, slowing, image):
    port = free_port()
    address = "tcp:127.0.0.1:%d" % port
    with memories(guest.memory) as (from_fd, to_fd):
        work = Work(from_fd)

        def side(which, fd, *more):
            command = [BUSY, which, address, str(fd), str(guest.memory), image, *map(str, more)]
            return process(command, fd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

        with side("destination", to_fd) as destination, \
                side("source", from_fd, guest.link, guest.limit, slowing, guest.patience * 1000) as source:
            expect(destination, "ready")
            expect(source, "ready")
            work.await_begin()
            begun = time.monotonic()
            source.stdin.write(b".")
            word, downtime, sent, passes, _ = source.stdout.readline().decode().split()
            took = time.monotonic() - begun
            ended = "converged" if word == "moved" else "not over after %g s" % guest.patience
            return Moved(ended, took, int(sent), int(downtime) / 1000, int(passes), work.pages())


@contextlib.contextmanager
def qemu_side(command, guest, fd, directory, name, image, accel, *more):
    """QEMU with a guest whose memory is a file, or private (None)."""
    path = os.path.join(directory, name)
    backend = "memory-backend-ram,id=ram,size=%d,prealloc=on" % guest.memory if fd is None else \
        "memory-backend-file,id=ram,size=%d,mem-path=/proc/self/fd/%d,share=on,prealloc=on" % (guest.memory, fd)
    command = [*command, "-accel", accel, "-cpu", "host", "-machine", "pc,memory-backend=ram",
               "-m", "%dM" % (guest.memory // MIB), "-object", backend, "-smp", "1", "-bios", image,
               "-nodefaults", "-display", "none", "-qmp", "unix:%s,server=on,wait=off" % path, *more]
    with process(command, fd) as child:
        qmp = Qmp(path)
        try:
            yield child, qmp
        finally:
            qmp.close()


def slow(qmp, by_limit, guest):
    """Has QEMU slow its guest while it migrates."""
    capability = "dirty-limit" if by_limit else "auto-converge"
    half = max(1, guest.link // 2 // MIB)
    try:
        qmp.call("migrate-set-capabilities", capabilities=[{"capability": capability, "state": True}])
        if by_limit:
            qmp.call("migrate-set-parameters", **{"vcpu-dirty-limit": half})
    except Cannot:
        if not by_limit:
            raise
        qmp.call("set-vcpu-dirty-limit", **{"dirty-rate": half})


def by_qemu(guest, by_limit, image, command, directory):
    port = free_port()
    accel = "kvm,dirty-ring-size=4096" if by_limit else "kvm"
    parameters = {"max-bandwidth": guest.link, "downtime-limit": guest.limit}
    with memories(guest.memory) as (from_fd, to_fd):
        work = Work(from_fd)
        with qemu_side(command, guest, to_fd, directory, "to", image, accel, "-incoming", "defer") as (_, to), \
                qemu_side(command, guest, from_fd, directory, "from", image, accel) as (_, at):
            for qmp in (to, at):
                qmp.call("migrate-set-parameters", **parameters)
            to.call("migrate-incoming", uri="tcp:127.0.0.1:%d" % port)
            work.await_begin()
            begun = time.monotonic()
            slow(at, by_limit, guest)
            at.call("migrate", uri="tcp:127.0.0.1:%d" % port)
            while True:
                said = at.call("query-migrate")
                took = time.monotonic() - begun
                if said.get("status") == "completed":
                    ended = "converged"
                    break
                if said.get("status") in ("failed", "cancelled"):
                    raise Cannot("QEMU's migration has failed")
                if took > guest.patience:
                    ended = "not over after %g s, throttle %s %%" % (
                        guest.patience, said.get("cpu-throttle-percentage", 0))
                    break
                time.sleep(0.005)
            ram = said["ram"]
            return Moved(ended, took, ram["transferred"], said.get("downtime"), ram["dirty-sync-count"],
                         work.pages())


def row(name, unit, value, peer, peer_value, runs, **more):
    return {"name": name, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value,
            "ratio": value / peer_value, "runs": runs, **more}


def swept(only, pairs, ticks, command, directory, peer):
    """A guest that sweeps half of its memory flat out."""
    image = os.path.join(directory, "sweep")
    rom(SWEEP, ticks, image)
    for suffix, slowing in (("", ALL), ("/dirty-limit", WRITERS)):
        names = ["converge.qemu_time" + suffix, "converge.qemu_bytes" + suffix]
        if not any(name.startswith(only) for name in names):
            continue
        ours, theirs = [], []
        for pair in range(pairs if not suffix else 1):
            turns = [(ours, lambda: by_brant(SWEEP, slowing, image)),
                     (theirs, lambda: by_qemu(SWEEP, slowing == WRITERS, image, command, directory))]
            for side, migrate in turns if pair % 2 == 0 else reversed(turns):
                side.append(migrate())
                print("    %s: %s" % ("brant" if side is ours else peer, side[-1]), flush=True)
        for name, unit, of, scale in ((names[0], "s", "seconds", 1), (names[1], "GB", "bytes", 1e9)):
            value, peer_value = [statistics.median(getattr(moved, of) / scale for moved in side)
                                 for side in (ours, theirs)]
            yield row(name, unit, value, peer, peer_value, len(ours), ended=ours[-1].ended,
                      peer_ended=theirs[-1].ended, downtime_ms=ours[-1].downtime_ms,
                      peer_downtime_ms=theirs[-1].downtime_ms, passes=ours[-1].passes,
                      peer_passes=theirs[-1].passes)


def table(only, ticks, command, directory):
    """QEMU's rows of the table that `make bench` measures of brant."""
    for guest in TABLE:
        image = os.path.join(directory, "table")
        rom(guest, ticks, image)
        for name, by_limit in (("qemu-auto-converge", False), ("qemu-dirty-limit", True)):
            name = "converge.table/%g/%s" % (guest.writes, name)
            if not name.startswith(only):
                continue
            try:
                moved = by_qemu(guest, by_limit, image, command, directory)
            except Cannot as e:
                print("  skipped %s: %s" % (name, e), flush=True)
                continue
            print("    %s: %s" % (name, moved), flush=True)
            wanted = guest.writes * guest.link / PAGE * moved.seconds
            yield row(name, "s", moved.seconds, "memory sent once", guest.memory / guest.link, 1,
                      ended=moved.ended, converged=moved.ended == "converged", bytes=moved.bytes,
                      downtime_ms=moved.downtime_ms, limit_ms=guest.limit, passes=moved.passes,
                      writer=moved.work / wanted)


def rows(only, pairs, command, directory, peer):
    """All figures of this file whose names begin so."""
    if not ("converge.".startswith(only) or only.startswith("converge.")):
        return []
    for target in (BUSY, ROM):
        built = make(os.path.relpath(target, ROOT))
        if not built.good:
            sys.exit(built.text)
    said = subprocess.run([BUSY, "ticks"], check=True, capture_output=True, text=True).stdout
    measured = []
    for part in (lambda: swept(only, pairs, int(said), command, directory, peer),
                 lambda: table(only, int(said), command, directory)):
        try:
            measured += part()
        except Cannot as e:
            print("  skipped converge.: %s" % e, flush=True)
    return measured
