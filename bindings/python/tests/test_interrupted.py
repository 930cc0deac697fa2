"""No exception loses a page, whichever bytecode it comes at. Nothing that is closed, copied or
given up in an odd order is used afterwards, and no finalizer complains about it."""

import copy
import gc
import mmap
import pickle
import random
import signal
import sys
import threading
from array import array
from contextlib import ExitStack

import brant
import brant.taken
import brant.tracker
import pytest

PAGE = brant.PAGE_SIZE
PAGES = 512

#: Pages of the tests that interrupt every bytecode, which take the longer the more runs there are, and
#: how many runs are then one batch: three batches, so that an exception meets the first, the last and
#: one between two others.
FEW, BATCH = 12, 2


#: The files whose bytecodes are counted.
PACKAGE = {brant.tracker.__file__, brant.taken.__file__}


class Interrupt(BaseException):
    """Like KeyboardInterrupt, but not handled by pytest."""


@pytest.fixture
def marked():
    memory = mmap.mmap(-1, PAGES * PAGE)
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        tracker.start()
        yield tracker


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(brant.tracker, "_BATCH", BATCH)
    for module in (brant.tracker, brant.taken):
        monkeypatch.setattr(module, "ARRAY_BATCH", BATCH)


def mark_scattered(tracker, pages=PAGES):
    expected = set(range(0, pages, 2))
    for page in expected:
        tracker.mark_block("ram", page * PAGE, 1)
    tracker.sync()
    return expected


def rest(tracker):
    return {page for run in tracker.take() for page in run}


def interrupted_at(number, action, *callers):
    """Runs ``action``, and raises at a given bytecode of the package and of the functions
    ``callers``. Returns the exception if it came to that. As long as you keep it, all of their
    variables stay."""
    codes = {caller.__code__ for caller in callers}
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        code = frame.f_code
        if code not in codes and code.co_filename not in PACKAGE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == number:
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except Interrupt as why:
        return why
    finally:
        sys.settrace(None)
    return None


@pytest.mark.parametrize("of", ["tracker", "consumer"])
def test_an_exception_at_any_bytecode_of_a_walk_loses_no_page(marked, small_batches, of):
    reader = marked if of == "tracker" else marked.consumer()
    number = 0
    while True:
        number += 1
        expected = mark_scattered(marked, FEW)
        seen = []

        def walk():
            for run in reader.take():
                seen.append(run)

        came = interrupted_at(number, walk)
        had = {page for run in seen for page in run}
        assert had | rest(reader) >= expected, "bytecode %d" % number
        if came is None:
            break
    assert number > 400


def in_a_block(reader, got):
    with reader.take_array() as taken:
        pages = {p for _, first, count in taken for p in range(first, first + count)}
        got.update(pages)


def failing_block(reader, got):
    try:
        with reader.take_array() as taken:
            raise OSError(len(taken))
    except OSError:
        pass


def two_blocks(reader, got):
    taken = reader.take_array()
    with taken:
        got.update(first for _, first, _ in taken)
    with taken:
        pass


def with_a_word(reader, got):
    taken = reader.take_array()
    pages = {p for _, first, count in taken for p in range(first, first + count)}
    got.update(pages)
    taken.delivered()


def by_numpy(reader, got):
    numpy = pytest.importorskip("numpy")
    with reader.take_array() as taken:
        shown = numpy.asarray(taken)
        got.update(shown[:, 1].tolist())


def dropped(reader, got):
    reader.take_array()


def interrupted_everywhere(marked, use, reader, kept):
    """Runs ``use`` with an exception at each of its bytecodes. Pages that it has not delivered are
    pending again, even while the exception and all variables of ``use`` are ``kept``."""
    number = 0
    while True:
        number += 1
        expected = mark_scattered(marked, FEW)
        got = set()
        # The caller's own bytecodes too, for example between the return and the assignment.
        came = interrupted_at(number, lambda: use(reader, got), use)
        ended = came is None
        if not kept:
            del came
        assert got | rest(reader) >= expected, "bytecode %d" % number
        if ended:
            break
    assert number > 150


@pytest.mark.parametrize("use", [in_a_block, failing_block, by_numpy])
@pytest.mark.parametrize("of", ["tracker", "consumer"])
def test_an_exception_at_any_bytecode_of_a_block_loses_no_page_though_its_variable_lives(
    marked, small_batches, of, use
):
    reader = marked if of == "tracker" else marked.consumer()
    interrupted_everywhere(marked, use, reader, kept=True)


@pytest.mark.parametrize("use", [with_a_word, dropped, two_blocks])
def test_an_exception_at_any_bytecode_of_an_array_and_its_use_loses_no_page(
    marked, small_batches, use
):
    interrupted_everywhere(marked, use, marked, kept=False)


def test_an_exception_in_the_first_bytecode_of_the_end_of_a_block_makes_its_pages_pending(marked):
    for fault in (None, OSError):
        expected = mark_scattered(marked)

        def trace(frame, event, _):
            if frame.f_code is brant.taken._leave.__code__:
                sys.settrace(None)
                raise Interrupt

        try:
            with marked.take_array() as taken:
                sys.settrace(trace)
                if fault is not None:
                    raise fault
        except Interrupt:
            # The traceback and the variable still exist.
            assert marked.stats().pending_pages == len(expected) == len(taken)
        else:
            pytest.fail("the end of the block is not where this test looks for it")
        finally:
            sys.settrace(None)
        taken.delivered()
        assert rest(marked) == expected


def test_an_array_without_a_block_waits_for_a_word_as_long_as_somebody_has_it(marked):
    expected = mark_scattered(marked)
    taken = marked.take_array()
    # As when Ctrl-C comes before delivered() has begun.
    assert interrupted_at(1, taken.delivered) is not None
    assert marked.stats().pending_pages == 0
    taken.put_back()
    assert rest(marked) == expected
    mark_scattered(marked)
    taken = marked.take_array()
    taken.delivered()
    del taken
    assert marked.stats().pending_pages == 0


def test_an_iterator_that_is_kept_keeps_its_runs_after_an_exception(marked):
    expected = mark_scattered(marked)
    runs = marked.take()
    with pytest.raises(Interrupt):
        failed = next(runs)
        raise Interrupt
    assert marked.stats().pending_pages < len(expected)
    # The next run is asked for, so the one that failed counts as taken.
    had = {page for run in runs for page in run}
    assert had == expected - set(failed) and rest(marked) == set()
    mark_scattered(marked)
    runs = marked.take()
    next(runs)
    runs.close()
    assert rest(marked) == expected


def test_an_array_in_an_exit_stack_is_delivered_at_its_end_or_put_back(marked):
    expected = mark_scattered(marked)
    with pytest.raises(Interrupt):
        with ExitStack() as stack:
            stack.enter_context(marked.take_array())
            raise Interrupt
    assert marked.stats().pending_pages == len(expected)
    with ExitStack() as stack:
        taken = stack.enter_context(marked.take_array())
    assert marked.stats().pending_pages == 0 and len(taken) == len(expected)


def test_an_array_that_enters_twice_is_settled_by_the_end_that_comes_first(marked):
    expected = mark_scattered(marked)
    taken = marked.take_array()
    with pytest.raises(Interrupt):
        with taken:
            raise Interrupt
    with taken:
        pass
    assert rest(marked) == expected
    mark_scattered(marked)
    with pytest.raises(Interrupt):
        with marked.take_array() as taken:
            with taken:
                pass
            raise Interrupt
    assert rest(marked) == set()


def test_a_block_that_ends_well_delivers_and_one_that_an_exception_leaves_does_not(marked):
    expected = mark_scattered(marked)
    with pytest.raises(Interrupt):
        with marked.take_array() as taken:
            assert len(taken) == len(expected) and marked.stats().pending_pages == 0
            raise Interrupt
    # At once, although the exception and with it `taken` still exist.
    assert marked.stats().pending_pages == len(expected)
    with marked.take_array() as taken:
        assert {first for _, first, _ in taken} == expected
    taken.put_back()
    assert marked.stats().pending_pages == 0 and len(taken) == len(expected)


def test_an_array_that_is_put_back_is_pending_and_delivering_it_then_does_nothing(marked):
    expected = mark_scattered(marked)
    with marked.take_array() as taken:
        taken.put_back()
        assert marked.stats().pending_pages == len(expected)
    taken.delivered()
    assert rest(marked) == expected


def test_an_array_that_nobody_has_is_pending_and_one_that_numpy_shows_is_not(marked):
    numpy = pytest.importorskip("numpy")
    expected = mark_scattered(marked)
    shown = numpy.asarray(marked.take_array())
    gc.collect()
    assert marked.stats().pending_pages == 0
    assert shown.shape == (len(expected), 3) and not shown.flags.writeable
    assert set(shown[:, 1].tolist()) == expected
    del shown
    assert marked.stats().pending_pages == len(expected)
    taken = marked.take_array()
    numpy.asarray(taken)
    with pytest.raises(BufferError):
        taken.array.append(1)
    taken.delivered()


def test_an_empty_array_is_one_for_numpy_too(marked):
    numpy = pytest.importorskip("numpy")
    with marked.take_array() as taken:
        shown = numpy.asarray(taken)
    assert shown.shape == (0, 3) and shown.dtype == numpy.uint64 and shown.tolist() == []
    assert taken.pages == len(taken) == 0 and numpy.array(taken).sum() == 0


def test_an_array_of_what_is_closed_delivers_and_puts_back_nothing(marked):
    reader = marked.consumer()
    mark_scattered(marked)
    with reader.take_array() as taken:
        reader.close()
    reader = marked.consumer(everything=True)
    taken = reader.take_array()
    reader.close()
    taken.put_back()
    assert taken.pages == PAGES


def test_a_storm_of_signals_loses_no_page(marked):
    def interrupt(_signal, _frame):
        raise Interrupt

    seed = random.randrange(1 << 32)
    print("seed", seed)
    numbers = random.Random(seed)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            expected, seen = mark_scattered(marked), []
            try:
                signal.setitimer(signal.ITIMER_REAL, numbers.uniform(1e-5, 2e-3))
                for run in marked.take():
                    seen.append(run)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                pass
            assert {page for run in seen for page in run} | rest(marked) >= expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_array_has_block_first_page_and_pages_of_each_run(marked):
    mark_scattered(marked)
    marked.mark_block("ram", 10 * PAGE, 2 * PAGE)
    marked.sync()
    with marked.take_array() as taken:
        numbers = taken.array
    assert isinstance(numbers, array) and numbers.typecode == "Q"
    assert list(taken)[:6] == [(0, page, 1) for page in (0, 2, 4, 6, 8)] + [(0, 10, 3)]
    assert list(zip(numbers[0::3], numbers[1::3], numbers[2::3])) == list(taken)
    assert taken.pages == PAGES // 2 + 1
    assert len(marked.take_array()) == 0 and marked.stats().pending_pages == 0


def test_each_consumer_takes_what_is_pending_for_it(marked):
    with marked.consumer() as other, brant.Consumer(marked, everything=True) as every:
        expected = mark_scattered(marked)
        assert rest(marked) == expected and marked.stats().pending_pages == 0
        assert other.stats().pending_pages == len(expected) and other.stats().syncs == 1
        assert rest(other) == expected
        assert rest(every) == set(range(PAGES))
        other.stop()
        assert not other.stats().started and marked.stats().started
        mark_scattered(marked)
        assert other.stats().pending_pages == 0
    with pytest.raises(ValueError, match="closed"):
        other.sync()


def test_names_of_a_wrong_type_are_type_errors(marked):
    guest = brant.Guest()
    for wrong in (3, b"ram", None, ["ram"]):
        for use in (
            lambda: guest.add_block(wrong, mmap.mmap(-1, PAGE)),
            lambda: guest.remove_block(wrong),
            lambda: guest.add_slot(wrong, 0, length=PAGE),
            lambda: brant.Tracker(guest, clearing=wrong),
            lambda: marked.add_kvm(0, mode=wrong),
            lambda: brant.has_feature(wrong),
            lambda: brant.Tracker(wrong),
            lambda: brant.Consumer(wrong),
            lambda: marked.put_back(wrong),
        ):
            with pytest.raises(TypeError):
                use()
    guest.close()


def test_what_the_library_frees_is_not_copied(marked):
    consumer, bitmap, guest = marked.consumer(), brant.Bitmap(10), brant.Guest()
    for whole in (marked, consumer, bitmap, guest, marked.take_array()):
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="copied"):
                way(whole)
    consumer.close()
    guest.close()


def test_odd_orders_of_closing_leave_nothing_for_a_finalizer_to_say(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: said.append(repr(what.exc_value)))
    for order in range(60):
        numbers = random.Random(order)
        memory = mmap.mmap(-1, PAGES * PAGE)
        guest = brant.Guest()
        tracker = brant.Tracker(guest)
        guest.add_block("ram", memory)
        tracker.start()
        things = {"guest": guest, "tracker": tracker, "consumer": tracker.consumer()}
        mark_scattered(tracker)
        things["walk"] = tracker.take()
        things["other"] = things["consumer"].take()
        next(things["walk"])
        if order % 2:
            next(things["other"])
        del guest, tracker
        closer = None
        if order % 3 == 0:
            closer = threading.Thread(target=things["tracker"].close)
            closer.start()
        names = list(things)
        numbers.shuffle(names)
        for name in names:
            thing = things.pop(name)
            if hasattr(thing, "close") and numbers.random() < 0.6:
                thing.close()
                thing.close()
            del thing
            gc.collect(0)
        if closer is not None:
            closer.join()
    gc.collect()
    assert said == []
