"""Guests and trackers, on real memory of this process and on the real kernel."""

import array
import contextlib
import ctypes
import fcntl
import gc
import itertools
import mmap
import os
import pickle
import random
import struct
import sys
import threading
import time
import weakref

import pytest

import brant
from brant import _native as native
from conftest import PAGE, add_userfault, taken, write


def test_exactly_the_written_pages_are_found(watched):
    _, tracker, memory = watched
    seed = time.time_ns()
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(50):
        pages = set(chance.sample(range(64), chance.randrange(20)))
        write(memory, *pages)
        found = tracker.sync()
        assert found.found_pages == found.userfault_pages == found.pending_pages == len(pages)
        assert found.warnings == 0 and found.time_ns >= found.userfault_ns
        assert taken(tracker) == {("ram", page) for page in pages}
        assert tracker.sync(stopped=True).found_pages == 0


def test_runs_show_the_memory_itself(watched):
    guest, tracker, memory = watched
    memory[5 * PAGE : 5 * PAGE + 5] = b"hello"
    memory[6 * PAGE] = 33
    tracker.sync()
    (run,) = tracker.take()
    assert (run.block, run.block_number, run.first_page, run.pages) == ("ram", 0, 5, 2)
    assert run.offset == 5 * PAGE and list(run) == [5, 6]
    assert bytes(run.memory[:5]) == b"hello" and run.memory.nbytes == 2 * PAGE
    memory[5 * PAGE] = 74
    assert run.memory[0] == 74


def test_a_page_that_is_put_back_comes_again(watched):
    _, tracker, memory = watched
    write(memory, 1, 2, 3)
    tracker.sync()
    (run,) = tracker.take()
    tracker.put_back(run)
    assert tracker.stats().put_back_pages == 3
    assert taken(tracker) == {("ram", 1), ("ram", 2), ("ram", 3)}


def test_what_an_iteration_that_is_given_up_did_not_hand_out_stays_pending(watched):
    _, tracker, memory = watched
    write(memory, *range(0, 64, 2))
    tracker.sync()
    walk = tracker.take()
    had = [next(walk).first_page for _ in range(5)]
    del walk
    # The last run may never have arrived, because an exception can come before it is looked at.
    assert tracker.stats().pending_pages == 32 - 4
    # The next iteration begins in the middle of memory, and gets every page nevertheless.
    tracker.put_back(brant.Run("ram", 0, had[0], 1, memoryview(b"")))
    assert taken(tracker) == {("ram", page) for page in set(range(0, 64, 2)) - set(had[1:4])}


def test_marks_by_block_and_by_guest_address_count(memory):
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        number = guest.add_block("ram", memory)
        guest.add_slot("ram", 1 << 32, offset=8 * PAGE)
        tracker.start()
        tracker.mark_block("ram", 3 * PAGE - 1, 2)
        tracker.mark_block(number, 0, 1)
        tracker.mark(1 << 32, 1)
        tracker.mark(0, 1)
        found = tracker.sync()
        assert (found.reported_pages, found.userfault_pages) == (4, 0)
        assert taken(tracker) == {("ram", page) for page in (0, 2, 3, 8)}
        assert tracker.stats().stray_marks == 1
        guest.remove_slot(1 << 32)
        with pytest.raises(KeyError):
            tracker.mark_block("rom", 0, 1)


def test_everything_is_pending_for_who_asks_for_it(memory):
    with brant.Guest() as guest, brant.Tracker(guest, chunk_shift=6) as tracker:
        guest.add_block("ram", memory)
        tracker.start(everything=True)
        stats = tracker.stats()
        assert (stats.pending_pages, stats.started, stats.chunk_shift) == (64, True, 6)
        assert len(taken(tracker)) == 64
        tracker.stop()
        assert tracker.stats().started is False
    with brant.Guest() as guest, brant.Tracker(guest, clearing="at-sync") as tracker:
        assert tracker.stats().chunk_shift == 0


def test_blocks_come_and_go_while_they_are_tracked(watched):
    guest, tracker, memory = watched
    more = mmap.mmap(-1, 3 * PAGE)
    number = guest.add_block("more", more)
    assert taken(tracker) == {("more", page) for page in range(3)}
    write(more, 1)
    write(memory, 1)
    tracker.sync()
    assert taken(tracker) == {("more", 1), ("ram", 1)}
    with pytest.raises(BufferError):
        more.close()
    guest.remove_block("more")
    more.close()
    assert guest.add_block("more", mmap.mmap(-1, PAGE)) != number
    with pytest.raises(brant.BrantError) as wrong:
        guest.remove_block("none")
    assert wrong.value.name == "not found"


@pytest.fixture(params=["tracker", "consumer"])
def taker(request):
    """A guest of two blocks of two pages, and a user with all pages pending."""
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        for name in ("a", "b"):
            guest.add_block(name, mmap.mmap(-1, 2 * PAGE))
        if request.param == "consumer":
            with tracker.consumer(everything=True) as consumer:
                yield guest, consumer
        else:
            tracker.start(everything=True)
            yield guest, tracker


def is_busy(guest, name):
    with pytest.raises(brant.BrantError) as wrong:
        guest.remove_block(name)
    return wrong.value.name == "busy" and repr(name) in wrong.value.message.replace("`", "'")


def test_a_block_that_an_iteration_has_come_to_is_removed_once_that_is_over(taker):
    guest, takes = taker
    for run in takes.take():
        assert is_busy(guest, run.block)
    guest.remove_block("b")
    # An iteration that is given up in the middle.
    for page in (0, 1):
        guest.add_block("more%d" % page, mmap.mmap(-1, PAGE))
    walk = takes.take()
    assert next(walk).block == "more0"
    assert is_busy(guest, "more0")
    walk.close()
    guest.remove_block("more0")
    guest.remove_block("a")
    assert [run.block for run in takes.take()] == ["more1"]


def test_a_block_of_an_array_is_removed_once_that_is_delivered_or_put_back(taker):
    guest, takes = taker
    with takes.take_array() as taken:
        assert len(taken) == 2
        assert is_busy(guest, "a") and is_busy(guest, "b")
    guest.remove_block("a")
    guest.add_block("more", mmap.mmap(-1, PAGE))
    taken = takes.take_array()
    assert is_busy(guest, "more")
    taken.put_back()
    guest.remove_block("more")
    # An object that nothing refers to any more.
    guest.add_block("more", mmap.mmap(-1, PAGE))
    taken = takes.take_array()
    del taken
    gc.collect()
    guest.remove_block("more")


def test_a_sync_tells_what_was_written_from_what_is_new(watched):
    _, tracker, memory = watched
    write(memory, 1, 2)
    first = tracker.sync()
    write(memory, 2, 3)
    again = tracker.sync()
    assert (first.found_pages, first.written_pages) == (2, 2)
    assert (again.found_pages, again.written_pages, again.pending_pages) == (1, 2, 3)
    assert first.observed_pages == again.observed_pages == len(memory) // PAGE


def memory_of(kind):
    """Sixteen pages as objects of some kind: the object that is passed, and the one to write to."""
    memory = mmap.mmap(-1, 16 * PAGE)
    if kind == "part of a memoryview":
        whole = mmap.mmap(-1, 20 * PAGE)
        return memoryview(whole)[2 * PAGE : 18 * PAGE]
    if kind == "memoryview of words":
        return memoryview(memory).cast("Q")
    if kind == "numpy":
        return pytest.importorskip("numpy").frombuffer(memory, dtype="float64")
    if kind == "numpy in two dimensions":
        return pytest.importorskip("numpy").frombuffer(memory, dtype="uint32").reshape(16, -1)
    return memory


@pytest.mark.parametrize(
    "kind", ["mmap", "part of a memoryview", "memoryview of words", "numpy", "numpy in two dimensions"]
)
def test_any_writable_buffer_is_a_block(kind):
    memory = memory_of(kind)
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        add_userfault(tracker)
        tracker.start()
        view = memoryview(memory).cast("B")
        view[7 * PAGE] = 1
        tracker.sync()
        assert taken(tracker) == {("ram", 7)}


def test_a_file_s_descriptor_stays_the_caller_s():
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    shared = mmap.mmap(fd, 16 * PAGE)
    open_before = len(os.listdir("/proc/self/fd"))
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", shared, fd=fd)
        add_userfault(tracker)
        tracker.start()
        write(shared, 3)
        # A write past the mapping, which is marked, as the documentation says.
        os.pwrite(fd, b"x", 9 * PAGE)
        tracker.mark_block("ram", 9 * PAGE, 1)
        tracker.sync()
        assert taken(tracker) == {("ram", 3), ("ram", 9)}
        with pytest.raises(brant.BrantError):
            guest.add_block("again", shared, fd=fd)
    assert len(os.listdir("/proc/self/fd")) == open_before
    os.close(fd)


@pytest.mark.parametrize("memory", [b"x" * PAGE, bytearray(0), array.array("B", bytes(100)), "text", None])
def test_what_cannot_be_a_block_is_refused(memory):
    with brant.Guest() as guest:
        with pytest.raises((TypeError, ValueError, brant.BrantError)):
            guest.add_block("ram", memory)
        assert repr(guest) == "<brant.Guest with blocks >"


def test_an_error_has_a_code_a_name_and_a_sentence(memory):
    with brant.Guest() as guest:
        guest.add_block("ram", memory)
        with pytest.raises(brant.BrantError) as wrong:
            guest.add_block("ram", mmap.mmap(-1, PAGE))
        error = wrong.value
        assert (error.code, error.name) == (-5, "already exists")
        assert error.message == str(error) and "`ram`" in error.message
        again = pickle.loads(pickle.dumps(error))
        assert (again.code, again.message) == (error.code, error.message)
        with pytest.raises(ValueError, match="NUL"):
            guest.add_block("a\0b", memory)
        with pytest.raises(ValueError, match="'chunked', 'at-sync', not 'never'"):
            brant.Tracker(guest, clearing="never")
        with brant.Tracker(guest) as tracker, pytest.raises(brant.BrantError, match="not started"):
            tracker.sync()


def test_a_closed_object_is_closed_twice_and_used_no_more(memory):
    guest = brant.Guest()
    guest.add_block("ram", memory)
    tracker = brant.Tracker(guest)
    tracker.start(everything=True)
    walk = tracker.take()
    next(walk)
    for _ in range(2):
        tracker.close()
        guest.close()
    assert tracker.closed and guest.closed
    uses = [tracker.sync, tracker.start, tracker.stop, tracker.stats, tracker.add_userfault]
    uses += [lambda: tracker.mark(0, 1), lambda: list(tracker.take()), lambda: brant.Tracker(guest)]
    uses += [lambda: guest.add_block("more", memory), lambda: guest.remove_block("ram")]
    uses += [lambda: tracker.add_kvm(0), lambda: next(walk), guest.__enter__, tracker.__enter__]
    for use in uses:
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_memory_cannot_be_unmapped_while_anything_may_look_at_it(memory):
    guest = brant.Guest()
    guest.add_block("ram", memory)
    tracker = brant.Tracker(guest)
    tracker.start(everything=True)
    (run,) = tracker.take()
    for nearer in (guest.close, tracker.close, lambda: None):
        with pytest.raises(BufferError):
            memory.close()
        nearer()
    del run
    memory.close()


def test_a_tracker_outlives_its_guest(watched):
    guest, tracker, memory = watched
    guest.close()
    write(memory, 9)
    assert tracker.sync().found_pages == 1
    assert taken(tracker) == {("ram", 9)}


def test_objects_are_collected_in_any_order_and_leave_nothing():
    open_before = len(os.listdir("/proc/self/fd"))
    for order in itertools.permutations(["guest", "tracker", "memory", "walk", "bitmap"]):
        have = {"memory": mmap.mmap(-1, 64 * PAGE), "guest": brant.Guest()}
        have["guest"].add_block("ram", have["memory"])
        have["tracker"] = brant.Tracker(have["guest"])
        add_userfault(have["tracker"])
        have["tracker"].start(everything=True)
        have["walk"] = have["tracker"].take()
        next(have["walk"])
        have["bitmap"] = brant.Bitmap(100)
        memory = weakref.ref(have["memory"])
        for name in order:
            del have[name]
        assert memory() is None, order
    # In a cycle, where the collector chooses the order.
    for _ in range(50):
        memory, guest = mmap.mmap(-1, 8 * PAGE), brant.Guest()
        guest.add_block("ram", memory)
        tracker = brant.Tracker(guest)
        add_userfault(tracker)
        tracker.start()
        guest.cycle, tracker.cycle = tracker, guest
        last = weakref.ref(memory)
        del memory, guest, tracker
    gc.collect()
    assert last() is None
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_closing_in_one_thread_while_others_use_it_is_safe():
    for _ in range(20):
        memory = mmap.mmap(-1, 256 * PAGE)
        guest = brant.Guest()
        guest.add_block("ram", memory)
        tracker = brant.Tracker(guest)
        add_userfault(tracker)
        tracker.start()
        wrong, ready = [], threading.Barrier(4)

        def use(what):
            ready.wait()
            try:
                while True:
                    what()
            except ValueError as closed:
                if "is closed" not in str(closed):
                    wrong.append(closed)
            except Exception as other:
                wrong.append(other)

        uses = [tracker.sync, lambda: list(tracker.take()), lambda: tracker.mark_block(0, 0, 1)]
        threads = [threading.Thread(target=use, args=(what,)) for what in uses]
        for thread in threads:
            thread.start()
        ready.wait()
        tracker.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        guest.close()
        assert wrong == []
        memory.close()


def test_writers_at_full_speed_lose_nothing(watched):
    _, tracker, memory = watched
    stop, records = threading.Event(), [set() for _ in range(3)]
    copy = bytearray(64 * PAGE)

    def writer(number):
        chance, value = random.Random(number), 0
        while not stop.is_set():
            value += 1
            page = chance.randrange(64)
            struct.pack_into("=Q", memory, page * PAGE + number * 512, value)
            records[number].add(page)

    def follow():
        for run in tracker.take():
            copy[run.offset : run.offset + run.memory.nbytes] = run.memory
            found.update(run)

    found = set()
    threads = [threading.Thread(target=writer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        tracker.sync()
        follow()
    stop.set()
    for thread in threads:
        thread.join()
    tracker.sync(stopped=True)
    follow()
    assert set.union(*records) <= found
    assert copy == memory[:]
    assert tracker.sync(stopped=True).found_pages == 0


KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION = 0xAE01, 0x4020AE46


@pytest.mark.parametrize("mode", ["auto", "get-and-clear", "manual-protect", "initially-set"])
def test_kvm_s_log_is_switched_on_and_off(mode, memory):
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    except OSError as why:
        pytest.skip("no KVM: %s" % why)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    slot = struct.pack("=IIQQQ", 3, 0, 1 << 20, 64 * PAGE, address)
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, slot)
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        guest.add_slot("ram", 1 << 20, slot=3)
        tracker.add_kvm(vm, mode=mode)
        tracker.start()
        assert tracker.sync().found_pages == 0
        tracker.mark(1 << 20, 2 * PAGE)
        found = tracker.sync()
        assert (found.found_pages, found.reported_pages, found.kvm_pages) == (2, 2, 0)
        assert found.kvm_ns > 0
        tracker.stop()
        with pytest.raises(ValueError, match="mode is one of"):
            tracker.add_kvm(vm, mode="fast")
        with open("/dev/null") as null, pytest.raises(brant.BrantError, match="KVM_CREATE_VM returned"):
            tracker.add_kvm(null.fileno())
    os.fstat(vm)
    os.close(vm)
    os.close(kvm)


def test_kvm_s_logs_are_measured_and_auto_goes_by_the_figures(memory):
    try:
        costs = brant.measure_kvm(limit_ms=10_000)
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except (OSError, brant.BrantError) as why:
        pytest.skip("no KVM that can be measured: %s" % why)
    assert costs.untracked_write_ns > 0
    assert costs.get_and_clear is not None and costs.get_and_clear.first_write_ns > 0
    assert costs.recommended.split("-")[0] in costs.reason or "rings" in costs.reason
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        tracker.add_kvm(vm, costs=costs)
        with pytest.raises(brant.BrantError, match="20 to 10000 ms"):
            brant.measure_kvm(limit_ms=10_001)
    os.close(vm)
    os.close(kvm)


def test_syncs_of_several_threads_wait_for_one_another():
    # So much memory that a sync takes a while, in which the other threads run.
    memory = mmap.mmap(-1, 512 << 20)
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        add_userfault(tracker)
        tracker.start()
        wrong = []

        def syncs():
            try:
                for _ in range(40):
                    tracker.sync()
                    list(tracker.take())
            except brant.BrantError as why:
                wrong.append(why)

        threads = [threading.Thread(target=syncs) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert tracker.stats().syncs == 160


def test_what_a_call_is_using_is_freed_at_the_end_of_that_call():
    freed, owner = [], lambda: None
    handle = native.Handle(owner, "thing", 1234, freed.append)
    with handle.use() as one:
        with handle.use() as two:
            handle.close()
            assert (one, two, freed) == (1234, 1234, [])
            with pytest.raises(ValueError, match="this thing is closed"):
                handle.use().__enter__()
        assert freed == []
    assert freed == [1234]
    handle.close()
    del owner
    gc.collect()
    assert freed == [1234]


def test_what_nobody_refers_to_any_more_is_freed_once():
    freed, owner = [], lambda: None
    native.Handle(owner, "thing", 1234, freed.append)
    del owner
    gc.collect()
    assert freed == [1234]


def test_a_close_that_interrupts_a_call_anywhere_frees_once_and_not_under_it():
    # As a signal handler or a finalizer does: after the n-th instruction, in the same thread.
    watched = (native._State.enter.__code__, native._State.leave.__code__)
    for n in itertools.count():
        freed, left = [], [n]
        state = native._State("thing", 1234, freed.append)

        def trace(frame, event, _):
            if frame.f_code not in watched:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left[0] -= 1
                if left[0] == -1:
                    sys.settrace(None)
                    state.close()
            return trace

        under = []
        sys.settrace(trace)
        try:
            state.enter()
            under = list(freed)
            state.leave()
        except ValueError:
            pass
        finally:
            sys.settrace(None)
        if left[0] >= 0:
            # It was not interrupted any more.
            assert n > 20 and freed == []
            return
        assert (under, freed) == ([], [1234]), "instruction %d" % n


def test_a_block_that_comes_while_its_namesake_goes_is_kept(monkeypatch):
    guest = brant.Guest()
    guest.add_block("ram", mmap.mmap(-1, PAGE))
    removed, added = threading.Event(), threading.Event()
    call, adding = native.call, []

    def add():
        removed.wait()
        memory = mmap.mmap(-1, PAGE)
        adding.append(weakref.ref(memory))
        guest.add_block("ram", memory)
        added.set()

    def slow(function, *arguments):
        call(function, *arguments)
        if function is native.lib.brant_guest_remove_block:
            # Another thread gets its turn here: it adds, or waits for the end of this.
            removed.set()
            added.wait(0.2)

    monkeypatch.setattr(native, "call", slow)
    thread = threading.Thread(target=add)
    thread.start()
    guest.remove_block("ram")
    thread.join()
    gc.collect()
    assert adding[0]() is not None
    with pytest.raises(brant.BrantError):
        guest.add_block("ram", mmap.mmap(-1, PAGE))


def test_a_guest_that_is_closed_in_the_middle_of_an_add_leaves_the_block_to_its_tracker(
    monkeypatch,
):
    guest = brant.Guest()
    tracker = brant.Tracker(guest)
    memory = mmap.mmap(-1, PAGE)
    kept = weakref.ref(memory)
    use = native.Handle.use

    @contextlib.contextmanager
    def closed_meanwhile(handle):
        with use(handle) as value:
            if handle is guest._handle:
                guest.close()
            yield value

    monkeypatch.setattr(native.Handle, "use", closed_meanwhile)
    guest.add_block("ram", memory)
    monkeypatch.undo()
    del memory
    gc.collect()
    assert kept() is not None
    tracker.mark_block("ram", 0, 1)
    tracker.close()
