"""A migration by Python: both sides are guests of this process, over sockets or an endpoint."""

import gc
import json
import mmap
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref

import brant
import pytest

from conftest import PACKAGE

PAGE = brant.PAGE_SIZE
BYTES = 4 << 20


class Vmm:
    """Remembers what it was asked, and runs nothing."""

    def __init__(self, **instead):
        self.calls, self.threads, self.events, self.loaded_blobs = [], [], [], []
        self.instead = instead
        self.calling = threading.Event()

    def _call(self, name):
        self.calls.append(name)
        self.threads.append(threading.get_ident())
        self.calling.set()
        if name in self.instead:
            self.instead[name]()

    def pause(self):
        self._call("pause")

    def resume(self):
        self._call("resume")

    def save(self, saver):
        self.saver = saver
        saver.put("counter", b"\1\2\3", instance=7, version=2)
        saver.put("nothing", b"")
        self._call("save")

    def load(self, blob):
        self.loaded_blobs.append(blob)
        self._call("load")

    def run(self):
        self._call("run")

    def event(self, event):
        self.events.append(event)

    def thread_start(self, role):
        self._call("thread-start " + role)


class Side:
    """A guest with memory."""

    bytes = BYTES

    def __init__(self, **instead):
        self.memory = mmap.mmap(-1, self.bytes)
        self.vmm = Vmm(**instead)
        self.guest = brant.Guest(self.vmm)
        self.guest.add_block("ram", self.memory)


@pytest.fixture
def sides():
    """A source whose memory has contents, its tracker, and a destination."""
    made = []

    def make(source=None, destination=None):
        here, there = Side(**(source or {})), Side(**(destination or {}))
        for page in range(0, BYTES // PAGE, 3):
            here.memory[page * PAGE : page * PAGE + 8] = page.to_bytes(8, "little")
        here.tracker = brant.Tracker(here.guest)
        made.extend((here.tracker, here.guest, there.guest))
        return here, there

    yield make
    for one in made:
        one.close()


def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def started(here, there, params=None):
    a, b = pair()
    outgoing, incoming = brant.Outgoing(here.tracker, params), brant.Incoming(there.guest)
    incoming.start(b)
    outgoing.start(a)
    return outgoing, incoming


@pytest.fixture
def stopped_link(sides):
    """A migration whose destination takes nothing: it goes on until it is cancelled."""
    here, _ = sides()
    a, b = pair()
    outgoing = brant.Outgoing(here.tracker)
    outgoing.start(a)
    yield here, outgoing
    outgoing.close()
    b.close()


def test_a_guest_moves_with_memory_and_state(sides):
    here, there = sides()
    with brant.Incoming(there.guest) as incoming, brant.Outgoing(here.tracker) as outgoing:
        a, b = pair()
        incoming.start(b)
        outgoing.start(a)
        assert outgoing.wait() and incoming.wait()
        assert a.fileno() == b.fileno() == -1
        assert there.memory[:] == here.memory[:]
        assert there.vmm.loaded_blobs == [
            brant.Blob("counter", b"\1\2\3", 7, 2),
            brant.Blob("nothing", b"", 0, 0),
        ]
        assert [c for c in here.vmm.calls if " " not in c] == ["pause", "save"]
        assert [c for c in there.vmm.calls if " " not in c] == ["load", "load", "run"]
        assert "thread-start migration" in here.vmm.calls
        assert threading.get_ident() not in here.vmm.threads
        assert (here.guest.state, there.guest.state) == ("handed-over", "here")
        stats = outgoing.stats()
        assert (stats.state, stats.progress, stats.error) == ("completed", 10000, 0)
        # A page that is zero because its contents are 0 counts as data or zero, once.
        assert stats.data_pages + stats.zero_pages == BYTES // PAGE
        assert stats.first_mismatch_block is None and len(stats.aborted_pause_ns) == 3
        assert incoming.stats().state == "running"
        assert repr(outgoing) == "<brant.Outgoing: completed, 100.00 %>"
        assert outgoing.over and outgoing.lane_stats().wire_bytes == stats.wire_bytes
        said = outgoing.json()
        assert said["data_pages"] == stats.data_pages and said["state"] == "completed"
        assert json.dumps(said)
        assert {e.kind for e in here.vmm.events} >= {"state", "completed"}
    assert repr(outgoing) == "<brant.Outgoing, closed>"


def test_endpoints_of_unix_sockets_and_tcp_with_several_channels(sides, tmp_path):
    for endpoint in ("unix:%s" % (tmp_path / "s"), "tcp:127.0.0.1:0"):
        here, there = sides()
        with brant.Incoming(there.guest) as incoming:
            at = incoming.listen(endpoint)
            assert at == incoming.endpoint and not at.endswith(":0")
            with brant.Outgoing(here.tracker, brant.Params(channels=3)) as outgoing:
                outgoing.start(at)
                assert outgoing.wait(20_000) and incoming.wait(20_000)
        assert there.memory[:] == here.memory[:]


def test_sockets_one_for_each_channel(sides):
    here, there = sides()
    pairs = [pair() for _ in range(2)]
    with brant.Incoming(there.guest) as incoming:
        with brant.Outgoing(here.tracker, brant.Params(channels=2)) as outgoing:
            incoming.start([b for _, b in pairs])
            # A descriptor is a number as well.
            outgoing.start([pairs[0][0].detach(), pairs[1][0]])
            assert outgoing.wait() and incoming.wait()


def test_a_wrong_list_of_sockets_takes_none_of_them(sides):
    here, _ = sides()
    a, b = pair()
    with brant.Outgoing(here.tracker) as outgoing:
        for wrong, error in (([], ValueError), ([a, a], ValueError), ([a, "x"], TypeError)):
            with pytest.raises(error):
                outgoing.start(wrong)
        assert a.fileno() >= 0
    with pytest.raises(ValueError, match="closed"):
        outgoing.start(a)
    assert a.fileno() >= 0
    a.close()
    b.close()


def failing():
    raise OSError("the disk is\0 gone \udce4")


@pytest.mark.parametrize("where, operation", [("source", "save"), ("destination", "load")])
def test_an_exception_in_an_operation_is_the_reason_of_the_error(sides, where, operation):
    here, there = sides(**{where: {operation: failing}})
    outgoing, incoming = started(here, there)
    with pytest.raises(brant.BrantError, match="OSError: the disk is. gone") as failed:
        outgoing.wait()
    assert here.vmm.calls[-1] == "resume" and here.guest.state == "here"
    if where == "source":
        assert failed.value.name == "the VMM failed" or failed.value.code == -17
        assert isinstance(failed.value.__cause__, OSError)
    with pytest.raises(brant.BrantError):
        incoming.wait()
    outgoing.close()
    incoming.close()


def test_a_saver_is_over_when_its_operation_has_returned(sides):
    here, there = sides()
    outgoing, incoming = started(here, there)
    outgoing.wait()
    with pytest.raises(ValueError, match="while the operation runs"):
        here.vmm.saver.put("late", b"")
    outgoing.close()
    incoming.close()


def test_operations_as_callables_and_wrong_ones(sides):
    ran = threading.Event()
    here, _ = sides()
    there = Side()
    guest = brant.Guest(run=ran.set, load=lambda blob: None)
    guest.add_block("ram", there.memory)
    a, b = pair()
    with brant.Outgoing(here.tracker) as outgoing, brant.Incoming(guest) as incoming:
        incoming.start(b)
        outgoing.start(a)
        outgoing.wait()
        assert ran.wait(10)
    with pytest.raises(TypeError, match="not callable"):
        brant.Guest(pause=3)
    with pytest.raises(TypeError, match="has none of the operations"):
        brant.Guest(object())
    with pytest.raises(brant.BrantError, match="pause"):
        brant.Outgoing(brant.Tracker(brant.Guest(run=ran.set)))


def test_cancel_from_another_thread_ends_a_wait(stopped_link):
    here, outgoing = stopped_link
    assert outgoing.wait(20) is False
    timer = threading.Timer(0.1, outgoing.cancel)
    timer.start()
    with pytest.raises(brant.CancelledError):
        outgoing.wait()
    timer.join()
    assert outgoing.over and outgoing.stats().state == "failed"
    assert here.guest.state == "here"


def test_a_wait_lets_other_threads_run(stopped_link):
    _, outgoing = stopped_link
    counted, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    outgoing.wait(200)
    assert counted[0] > before + 100
    stop.set()
    thread.join()


def test_limits_change_while_it_runs_and_before(stopped_link):
    _, outgoing = stopped_link
    outgoing.set_max_bandwidth(1 << 30)
    outgoing.set_downtime_limit(77)
    outgoing.set_policy(brant.Policy(deadline_ms=60_000, on_deadline="pause"))
    outgoing.switch_over()
    assert outgoing.forecast() is None
    for wrong in (
        lambda: outgoing.set_max_bandwidth(1),
        lambda: outgoing.set_downtime_limit(0),
        lambda: outgoing.set_policy(brant.Policy(throttle_max=100)),
    ):
        with pytest.raises(brant.BrantError) as refused:
            wrong()
        assert refused.value.code == -1
    with pytest.raises(ValueError, match="on_deadline is one of 'cancel', 'carry-on'"):
        outgoing.set_policy(brant.Policy(on_deadline="never"))
    with pytest.raises(TypeError):
        outgoing.set_policy(brant.Params())
    with pytest.raises(brant.BrantError, match="postcopy"):
        outgoing.start_postcopy()
    with pytest.raises(brant.BrantError):
        outgoing.resolve(runs_here=True)


def test_parameters_are_checked_by_name_type_and_range(sides):
    here, _ = sides()
    with pytest.raises(TypeError):
        brant.Params(downtime_limit=3)
    with pytest.raises(TypeError, match="Params"):
        brant.Outgoing(here.tracker, brant.Policy())
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match="downtime_limit_ms"):
            brant.Outgoing(here.tracker, brant.Params(downtime_limit_ms=wrong))
    with pytest.raises(ValueError, match="compression is one of 'off', 'adaptive', 'always'"):
        brant.Outgoing(here.tracker, brant.Params(compression="yes"))
    with pytest.raises(brant.BrantError, match="downtime"):
        brant.Outgoing(here.tracker, brant.Params(downtime_limit_ms=1 << 40))
    with brant.Outgoing(here.tracker, brant.Params(total_timeout_ms=brant.NO_LIMIT)):
        pass


def test_the_descriptor_of_a_migration_says_when_figures_have_changed(sides):
    here, there = sides()
    outgoing, incoming = started(here, there)
    assert select.select([outgoing], [], [], 20)[0] == [outgoing]
    os.read(outgoing.fileno(), 8)
    outgoing.wait()
    outgoing.close()
    incoming.close()


def test_what_is_closed_is_an_exception(sides):
    here, there = sides()
    outgoing, incoming = started(here, there)
    outgoing.wait()
    incoming.wait()
    for one in (outgoing, incoming):
        one.close()
        one.close()
        for use in (one.stats, one.json, one.wait, one.cancel, one.fileno, one.__enter__):
            with pytest.raises(ValueError, match="migration is closed"):
                use()
    with pytest.raises(TypeError, match="not copied or pickled"):
        outgoing.__reduce__()


def test_a_close_by_another_thread_ends_a_wait_and_returns_when_it_is_freed(stopped_link):
    here, outgoing = stopped_link
    ended = []

    def wait():
        try:
            outgoing.wait()
        except (ValueError, brant.CancelledError) as why:
            ended.append(why)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.05)
    outgoing.close()
    # The guest is free for the next one at once.
    assert here.guest.state == "here"
    waiting.join(10)
    assert len(ended) == 1


def test_a_close_inside_an_operation_is_refused_and_changes_nothing(sides):
    refused, ours = [], []

    def close():
        try:
            ours[0].close()
        except brant.BrantError as why:
            refused.append(why)
        try:
            ours[0].wait()
        except brant.BrantError as why:
            refused.append(why)

    here, there = sides(source={"save": close})
    a, b = pair()
    outgoing, incoming = brant.Outgoing(here.tracker), brant.Incoming(there.guest)
    ours.append(outgoing)
    incoming.start(b)
    outgoing.start(a)
    # Another thread waits meanwhile: the close must not wait for it.
    assert outgoing.wait() and incoming.wait()
    assert [why.code for why in refused] == [-21, -21]
    outgoing.close()
    incoming.close()


def test_what_is_dropped_while_it_runs_is_cancelled_and_freed(sides):
    here, _ = sides()
    a, b = pair()
    outgoing = brant.Outgoing(here.tracker)
    outgoing.start(a)
    kept = weakref.ref(outgoing)
    del outgoing
    gc.collect()
    assert kept() is None
    assert here.guest.state == "here"
    with brant.Outgoing(here.tracker):
        pass
    b.close()


def test_guest_and_tracker_may_be_closed_before_their_migration(sides):
    here, there = sides()
    outgoing, incoming = started(here, there)
    for one in (here.tracker, here.guest, there.guest):
        one.close()
    gc.collect()
    assert outgoing.wait() and incoming.wait()
    assert there.memory[:] == here.memory[:]
    outgoing.close()
    incoming.close()


def test_threads_that_use_and_close_at_random_never_crash(sides):
    here, there = sides()
    for _ in range(12):
        outgoing, incoming = started(here, there)
        odd = []

        def use(outgoing=outgoing, incoming=incoming, odd=odd):
            try:
                for _ in range(50):
                    outgoing.stats()
                    incoming.json()
                    outgoing.cancel()
                    outgoing.wait(1)
            except (ValueError, brant.BrantError):
                pass
            except BaseException as why:
                odd.append(why)

        threads = [threading.Thread(target=use) for _ in range(3)]
        threads += [threading.Thread(target=one.close) for one in (outgoing, incoming, outgoing)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert odd == []
        if here.guest.state == "handed-over":
            there.guest.give_up()
            here.guest.reclaim()


EXIT = """
import brant, mmap, socket, threading, sys, time
def guest(**operations):
    made = brant.Guest(**operations)
    made.add_block("ram", mmap.mmap(-1, 8 << 20))
    return made
calls = []
here = guest(pause=lambda: calls.append(1), resume=lambda: calls.append(2),
             event=lambda e: calls.append(e), throttle=lambda vcpu, percent: None)
there = guest(run=lambda: None, event=lambda e: calls.append(e))
tracker = brant.Tracker(here)
a, b = socket.socketpair()
outgoing, incoming = brant.Outgoing(tracker), brant.Incoming(there)
%s
print("end")
"""


@pytest.mark.parametrize(
    "state",
    [
        "",
        "outgoing.start(a)",
        "outgoing.start(a); incoming.start(b)",
        "outgoing.start(a); incoming.start(b); outgoing.wait()",
        # A thread that nobody joins is inside a call at the end.
        "outgoing.start(a); threading.Thread(target=outgoing.wait, daemon=True).start()",
        "incoming.start(b); threading.Thread(target=incoming.wait, daemon=True).start()\n"
        "outgoing.start(a); time.sleep(0.02)",
        "loop = [outgoing]; loop.append(loop); outgoing.start(a); del outgoing, loop",
    ],
)
def test_a_program_may_end_in_any_state_of_a_migration(state):
    ended = subprocess.run(
        [sys.executable, "-c", EXIT % state],
        env=dict(os.environ, PYTHONPATH=PACKAGE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "end\n"), ended.stderr
    assert "Fatal" not in ended.stderr and "Exception ignored" not in ended.stderr


def test_a_forked_child_ends_without_its_parent_s_migration(stopped_link):
    _, outgoing = stopped_link
    child = os.fork()
    if child == 0:
        outgoing._handle._finalizer()
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert outgoing.wait(0) is False


def test_an_unanswered_migration_is_resolved(sides):
    """The destination takes the hand-over and goes: nobody knows whether its guest runs."""
    here, there = sides(destination={"run": lambda: os.close(took[0].detach())})
    # The destination's operation `run` closes the link: its answer never comes.
    relay, took = socket.socketpair(), [None]
    link = socket.socketpair()
    params = brant.Params(handover_timeout_ms=300)

    def carry(one, other):
        try:
            while True:
                data = one.recv(1 << 16)
                if not data:
                    break
                other.sendall(data)
        except OSError:
            pass
        finally:
            for each in (one, other):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    took[0] = link[0].dup()
    there.vmm.instead["run"] = lambda: took[0].shutdown(socket.SHUT_RDWR)
    threads = [
        threading.Thread(target=carry, args=(relay[1], link[0])),
        threading.Thread(target=carry, args=(link[0], relay[1])),
    ]
    for thread in threads:
        thread.start()
    with brant.Incoming(there.guest) as incoming:
        with brant.Outgoing(here.tracker, params) as outgoing:
            incoming.start(link[1])
            outgoing.start(relay[0])
            with pytest.raises(brant.UnansweredError) as failed:
                outgoing.wait()
            assert failed.value.name and here.guest.state == "unanswered"
            outgoing.resolve(runs_here=False)
            assert here.guest.state == "given-up"
            assert there.vmm.calls[-1] == "run"
    for thread in threads:
        thread.join(10)
    took[0].close()


def test_memory_of_a_block_is_seen_without_a_copy(sides):
    here, _ = sides()
    view = here.guest.memory("ram")
    view[5] = 99
    assert here.memory[5] == 99 and len(view) == BYTES
    with pytest.raises(KeyError, match="no block named 'rom'"):
        here.guest.memory("rom")
    numpy = pytest.importorskip("numpy")
    array = here.guest.array("ram", numpy.uint64)
    array[7] = 1 << 63
    assert here.memory[56:64] == (1 << 63).to_bytes(8, "little")
    del array, view


def test_a_guest_that_is_blocked_says_why(sides):
    here, _ = sides()
    with here.guest.blocked("a tape is being written"):
        a, b = pair()
        with brant.Outgoing(here.tracker) as outgoing:
            with pytest.raises(brant.BrantError, match="a tape is being written"):
                outgoing.start(a)
                outgoing.wait()
    b.close()


def test_ballooned_and_poisoned_pages_are_not_sent(sides):
    here, there = sides()
    here.guest.add_slot("ram", 0)
    here.guest.must_tell_host(True)
    here.guest.mark_ballooned(0, 3 * PAGE)
    here.guest.clear_ballooned(0, PAGE)
    assert here.guest.count_ballooned(0, BYTES) == 2
    here.guest.mark_poisoned("ram", 6 * PAGE, 1)
    here.guest.before_discard(0, PAGE)
    outgoing, incoming = started(here, there)
    outgoing.wait()
    stats = outgoing.stats()
    assert (stats.ballooned_pages, stats.poisoned_pages) == (2, 1)
    outgoing.close()
    incoming.close()


def test_memory_changes_hands_by_descriptor(sides):
    fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, BYTES)
    memory = mmap.mmap(fd, BYTES)
    memory[: 2 * PAGE] = b"x" * (2 * PAGE)
    came = {}

    def map_block(name, fd, length, offset):
        came[name] = mmap.mmap(fd, length, offset=offset)
        return came[name]

    source = brant.Guest(pause=lambda: None, resume=lambda: None)
    source.add_block("ram", memory, fd=fd)
    target = brant.Guest(run=lambda: None, map_block=map_block)
    with brant.Tracker(source) as tracker, brant.Incoming(target) as incoming:
        a, b = pair()
        with brant.Outgoing(tracker, brant.Params(hand_over="only")) as outgoing:
            incoming.start(b)
            outgoing.start(a)
            outgoing.wait()
            incoming.wait()
            assert outgoing.stats().shared_bytes == BYTES
    memory[5] = ord("y")
    assert came["ram"][5] == ord("y")
    with brant.Tracker(target) as there:
        there.start(everything=True)
        assert next(iter(there.take())).memory[:3] == b"xxx"
        assert len(target.memory("ram")) == BYTES
    os.close(fd)


#: A destination that is slow to run: the source's close waits for its answer, and is interrupted.
INTERRUPTED_CLOSE = """
import mmap, socket, threading, _thread
import brant

memory = lambda: mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
runs, goes_on = threading.Event(), threading.Event()
def run():
    runs.set()
    goes_on.wait(30)
here = brant.Guest(pause=lambda: 0, resume=lambda: 0)
there = brant.Guest(run=run)
here.add_block("ram", memory())
there.add_block("ram", memory())
outgoing, incoming = brant.Outgoing(brant.Tracker(here)), brant.Incoming(there)
a, b = socket.socketpair()
incoming.start(b)
outgoing.start(a)
assert runs.wait(30)
def interrupt():
    _thread.interrupt_main()
    goes_on.set()
threading.Timer(0.1, interrupt).start()
try:
    outgoing.close()
    print("not interrupted")
except KeyboardInterrupt:
    pass
incoming.wait()
outgoing.close()
print("closed")
"""


def test_a_close_that_was_interrupted_leaves_nothing_that_a_later_one_waits_for():
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED_CLOSE], timeout=60, stdout=subprocess.PIPE,
                           env={**os.environ, "PYTHONPATH": PACKAGE}, text=True, check=True)
    assert ended.stdout == "closed\n"
