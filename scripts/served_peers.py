"""Guests whose pages follow them, and guests that are saved while they run, by QEMU and by brant: the part
of scripts/bench-peers whose figures are `postcopy.qemu_` and `snapshot.qemu_`.

The guest is that of scripts/busy_peers.py: one vCPU that goes round a range of pages. Its memory is a memfd,
private memory in transparent huge pages, or huge pages of a pool; all of it is backed on both sides, and
the source's holds what no compressor makes smaller.

A migration is switched to postcopy after half a second, over a cap on the bandwidth of each side. The
guest stands still from the moment at which its vCPU is out at the source until the destination starts it:
QEMU's events STOP and RESUME, brant's `pause` and `run`, by the clock of this machine. How long the vCPU
has waited for pages is what each destination says (QEMU: postcopy-blocktime).

A save is QEMU's background-snapshot and brant's save of the start, to a file on the same disk, synced. QEMU
saves into a pipe, from which `busy disk` writes past the page cache; it has no cap for such saves, so `busy disk`
is as slow as the cap. The figures are the part of its rate that the guest loses until the file is whole, and how
many seconds of its work that is: a save that is over sooner loses a larger part of a shorter time.
"""

import collections
import contextlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from busy_peers import BUSY, COUNTER, MIB, PAGE, ROM, Guest, Work, qemu_side, rom, row  # noqa: E402
from packages import Cannot  # noqa: E402
from qmp import expect, free_port, process  # noqa: E402
from runner import ROOT, make  # noqa: E402

GIB = 1024 * MIB
HUGE = 2 * MIB
POOL = "/proc/sys/vm/nr_hugepages"
SWITCH_AFTER = 0.5
# Seconds in which the guest's rate before a save is counted.
BEFORE = 2.0
IMAGE = os.path.join(ROOT, "target", "bench", "peers.image")

# Both are swept flat out: a guest that waits between its writes hides what each of them costs. `limit` is that
# of the switch.
FOLLOWED = Guest(GIB, 256 * MIB, None, 300_000_000, 1000, 60)
SAVED = Guest(GIB, 512 * MIB, None, 300_000_000, 300, 60)

# A row of figures: what follows their names, the guest, its memory, QEMU's further capabilities, and whether a
# save is as fast as the disk.
Case = collections.namedtuple("Case", "suffix guest kind capabilities uncapped", defaults=("memfd", (), False))


def cases(guest, *more):
    """The guest in each kind of memory, and in a larger one."""
    large = guest._replace(memory=4 * GIB)
    return [Case("", guest), *more, Case("/memfd-4GiB", large), Case("/private-1GiB", guest, "private"),
            Case("/private-4GiB", large, "private"), Case("/huge-1GiB", guest, "huge")]


POSTCOPY = ["postcopy.qemu_blackout", "postcopy.qemu_blocked"]
FOLLOWS = cases(FOLLOWED, Case("/preempt", FOLLOWED, "memfd", ("postcopy-preempt",)))
SAVE = ["snapshot.qemu_guest_loss", "snapshot.qemu_lost_s"]
SAVES = cases(SAVED, Case("/uncapped", SAVED, "memfd", (), True), Case("/hot-48MiB", SAVED._replace(region=48 * MIB)))


# --- memory ------------------------------------------------------------------------
@contextlib.contextmanager
def pool(kind, pages):
    """So many huge pages more, for the kind that needs them."""
    if kind != "huge":
        yield
        return
    with open(POOL, encoding="ascii") as file:
        before = int(file.read())
    try:
        with open(POOL, "r+", encoding="ascii") as file:
            file.write(str(before + pages))
        with open(POOL, encoding="ascii") as file:
            if int(file.read()) < before + pages:
                raise Cannot("%d huge pages of 2 MiB cannot be had" % pages)
        yield
    except OSError as e:
        raise Cannot("%s: %s" % (POOL, e)) from None
    finally:
        with contextlib.suppress(OSError), open(POOL, "r+", encoding="ascii") as file:
            file.write(str(before))


@contextlib.contextmanager
def memories(kind, size, count):
    """The source's memory, and the destination's if there is one: a descriptor, or None for private memory."""
    if kind == "private":
        yield [None] * count
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(pool(kind, count * size // HUGE))
        fds = []
        for number in range(count):
            fds.append(os.memfd_create("ram", os.MFD_HUGETLB if kind == "huge" else 0))
            stack.callback(os.close, fds[-1])
            os.ftruncate(fds[-1], size)
            tile = os.urandom(HUGE) if number == 0 else bytes(HUGE)
            # hugetlbfs has no write.
            with mmap.mmap(fds[-1], size) as mapped:
                for at in range(0, size, HUGE):
                    mapped[at:at + HUGE] = tile
        yield fds


class Seen(Work):
    """The guest's counter, seen in the process that runs it."""

    def __init__(self, child, size):
        self.file = os.open("/proc/%d/mem" % child.pid, os.O_RDWR | os.O_CLOEXEC)
        self.at, self.size = mapping(child.pid, size), size
        self.before = self.count()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.file)

    def count(self):
        return int.from_bytes(os.pread(self.file, 4, self.at + COUNTER), "little")

    def await_sweeps(self, guest):
        """Until it has been round twice: KVM has mapped what it writes."""
        self.await_begin()
        while self.pages() < 2 * guest.region // PAGE:
            time.sleep(0.01)
        self.before = self.count()

    def fill(self):
        """All but the first MiB, which QEMU uses before the guest runs."""
        tile = os.urandom(HUGE)
        for at in range(MIB, self.size, HUGE):
            os.pwrite(self.file, tile[:self.size - at], self.at + at)


def mapping(pid, size):
    """The address of a process's mapping of that length."""
    with open("/proc/%d/maps" % pid, encoding="ascii", errors="replace") as file:
        for line in file:
            area, access = line.split(maxsplit=2)[:2]
            start, end = (int(number, 16) for number in area.split("-"))
            if end - start == size and access.startswith("rw"):
                return start
    raise Cannot("no mapping of %d bytes in process %d" % (size, pid))


# --- both sides ----------------------------------------------------------------------
def brant_side(guest, image, which, where, fd, *more):
    command = [BUSY, which, where, str(-1 if fd is None else fd), str(guest.memory), image, *map(str, more)]
    return process(command, fd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


@contextlib.contextmanager
def qemu_source(command, guest, fd, directory, image):
    """QEMU's guest before it runs, and its counter."""
    with qemu_side(command, guest, fd, directory, "from", image, "kvm", "-S") as (child, at), \
            Seen(child, guest.memory) as work:
        if fd is None:
            work.fill()
        yield at, work


def capable(qmp, *names):
    qmp.call("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in names])


# --- postcopy: milliseconds of standing still, and of waits for pages; seconds of the whole -------------
def followed_by_brant(case, image):
    guest = case.guest
    address = "tcp:127.0.0.1:%d" % free_port()
    with memories(case.kind, guest.memory, 2) as (from_fd, to_fd), \
            brant_side(guest, image, "destination", address, to_fd) as destination, \
            brant_side(guest, image, "source", address, from_fd, guest.link, guest.limit, 0,
                       guest.patience * 1000, "postcopy") as source:
        expect(destination, "ready")
        expect(source, "ready")
        with Seen(source, guest.memory) as work:
            work.await_sweeps(guest)
        begun = time.monotonic()
        source.stdin.write(b".")
        time.sleep(SWITCH_AFTER)
        source.stdin.write(b".")
        word, _, _, _, stood = source.stdout.readline().decode().split()
        if word != "moved":
            raise Cannot("brant's side said %r" % word)
        expect(destination, "runs")
        blocked, ran = destination.stdout.readline().decode().split()
        took = time.monotonic() - begun
        return (int(ran) - int(stood)) / 1000, int(blocked) / 1000, took


def followed_by_qemu(case, image, command, directory):
    guest = case.guest
    port = free_port()
    parameters = {"max-bandwidth": guest.link, "max-postcopy-bandwidth": guest.link, "downtime-limit": guest.limit}
    with memories(case.kind, guest.memory, 2) as (from_fd, to_fd), \
            qemu_side(command, guest, to_fd, directory, "to", image, "kvm", "-incoming", "defer") as (_, to), \
            qemu_source(command, guest, from_fd, directory, image) as (at, work):
        for qmp in (to, at):
            capable(qmp, "postcopy-ram", "postcopy-blocktime", *case.capabilities)
            qmp.call("migrate-set-parameters", **parameters)
        to.call("migrate-incoming", uri="tcp:127.0.0.1:%d" % port)
        at.call("cont")
        work.await_sweeps(guest)
        begun = time.monotonic()
        at.call("migrate", uri="tcp:127.0.0.1:%d" % port)
        time.sleep(SWITCH_AFTER)
        at.call("migrate-start-postcopy")
        at.await_completed()
        to.await_completed()
        took = time.monotonic() - begun
        stood = to.await_event("RESUME") - at.await_event("STOP")
        return stood * 1000, to.call("query-migrate")["postcopy-blocktime"], took


# --- a save: the lost part of the guest's rate, as many seconds, and seconds of the whole ---------------
def lost(guest, work, save):
    """`save` returns when it has begun."""
    work.await_sweeps(guest)
    begun = time.monotonic()
    time.sleep(BEFORE)
    alone = work.pages() / (time.monotonic() - begun)
    work.before = work.count()
    begun = time.monotonic()
    save()
    while not os.path.exists(IMAGE):
        if time.monotonic() - begun > SAVED.patience:
            raise Cannot("no image after %g s" % SAVED.patience)
        time.sleep(0.002)
    took = time.monotonic() - begun
    part = 1 - work.pages() / took / alone
    return part, part * took, took


def saved_by_brant(case, image):
    guest = case.guest
    with memories(case.kind, guest.memory, 1) as (fd,), \
            brant_side(guest, image, "save", IMAGE, fd, 0 if case.uncapped else guest.link) as child:
        expect(child, "ready")
        with Seen(child, guest.memory) as work:
            found = lost(guest, work, lambda: child.stdin.write(b"."))
            if not child.stdout.readline().startswith(b"saved"):
                raise Cannot("brant's save has failed")
            return found


def saved_by_qemu(case, image, command, directory):
    guest = case.guest
    cap = 0 if case.uncapped else guest.link
    with memories(case.kind, guest.memory, 1) as (fd,), \
            qemu_source(command, guest, fd, directory, image) as (at, work):
        capable(at, "background-snapshot")
        at.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        at.call("cont")
        return lost(guest, work, lambda: at.call("migrate", uri="exec:%s disk %s %d" % (BUSY, IMAGE, cap)))


# --- figures -------------------------------------------------------------------------
def turns(pairs, peer, ours, theirs):
    """The medians of what both return, by turns."""
    all_of = ([], [])
    for pair in range(pairs):
        for side, measure in list(enumerate((ours, theirs)))[::1 if pair % 2 == 0 else -1]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(IMAGE)
            all_of[side].append(measure())
            print("    %s: %s" % (peer if side else "brant", json.dumps(all_of[side][-1])), flush=True)
    with contextlib.suppress(FileNotFoundError):
        os.remove(IMAGE)
    return [[statistics.median(column) for column in zip(*side)] for side in all_of]


def wanted(only, *names):
    """Names begin with `only`; with a $ at its end, one is it."""
    return any(name == only[:-1] if only.endswith("$") else name.startswith(only) for name in names)


def measured(case, pairs, ticks, command, directory, peer, names, ours, theirs, units):
    image = os.path.join(directory, "served")
    rom(case.guest, ticks, image)
    gib = case.guest.memory // GIB
    print("  %s: %d GiB (%s), of which a vCPU sweeps %d MiB" % (
        ", ".join(names), gib, case.kind, case.guest.region // MIB), flush=True)
    values = turns(pairs, peer, lambda: ours(case, image), lambda: theirs(case, image, command, directory))
    for name, unit, value, peer_value in zip(names, units, *values):
        yield row(name, unit, value, peer, peer_value, pairs, seconds=values[0][-1], peer_seconds=values[1][-1])


def rows(only, pairs, command, directory, peer):
    """All figures of this file whose names begin so."""
    families = ((FOLLOWS, POSTCOPY, followed_by_brant, followed_by_qemu, ("ms", "ms")),
                (SAVES, SAVE, saved_by_brant, saved_by_qemu, ("of rate", "s")))
    chosen = []
    for all_cases, names, ours, theirs, units in families:
        for case in all_cases:
            named = [name + case.suffix for name in names]
            if wanted(only, *named):
                chosen.append((case, named, ours, theirs, units))
    if not chosen:
        return []
    for target in (BUSY, ROM):
        built = make(os.path.relpath(target, ROOT))
        if not built.good:
            sys.exit(built.text)
    ticks = int(subprocess.run([BUSY, "ticks"], check=True, capture_output=True, text=True).stdout)
    found = []
    for case, named, ours, theirs, units in chosen:
        try:
            found += measured(case, pairs, ticks, command, directory, peer, named, ours, theirs, units)
        except Cannot as e:
            print("  skipped %s: %s" % (", ".join(named), e), flush=True)
    return found
