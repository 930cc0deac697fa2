"""Taking 32,768 scattered pages: take_array(), beside the same calls of the library alone.

    PYTHONPATH=bindings/python python3 bindings/python/benches/take_array.py

At most 2 times C is the aim. The median of 9 alternating pairs; nothing is judged here.
"""

import ctypes
import mmap
import statistics
import time

import brant
from brant import _native as native

PAGES = 1 << 16
BATCH = 4096


def mark(tracker: brant.Tracker) -> None:
    for page in range(0, PAGES, 2):
        tracker.mark_block(0, page * brant.PAGE_SIZE, 1)
    tracker.sync()


def by_python(tracker: brant.Tracker) -> float:
    begun = time.perf_counter()
    with tracker.take_array() as taken:
        pass
    took = time.perf_counter() - begun
    assert len(taken) == taken.pages == PAGES // 2
    return took


def by_c(tracker: brant.Tracker) -> float:
    runs = (native.brant_run * BATCH)()
    count, error = ctypes.c_size_t(), ctypes.c_void_p()
    places = (runs, BATCH, ctypes.byref(count), ctypes.byref(error))
    with tracker._handle.use() as handle:
        begun = time.perf_counter()
        while True:
            assert native.lib.brant_tracker_take(handle, *places) == 0
            if not count.value:
                return time.perf_counter() - begun


def main() -> None:
    memory = mmap.mmap(-1, PAGES * brant.PAGE_SIZE)
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        tracker.start()
        python, c = [], []
        for _ in range(9):
            mark(tracker)
            python.append(by_python(tracker))
            mark(tracker)
            c.append(by_c(tracker))
    ours, theirs = statistics.median(python), statistics.median(c)
    print("take_array %.2f ms, C %.2f ms, ratio %.2f" % (ours * 1e3, theirs * 1e3, ours / theirs))


if __name__ == "__main__":
    main()
