"""Taking 32,768 scattered pages by take_array(), compared with the same calls of the library alone.

    make bench ONLY=python

or, after `make lib`, this program alone, which appends its figure to the file of `--out`. The
figure is the median of 9 alternating pairs, in processor time; scripts/bench judges it. numpy is
not needed.
"""

import argparse
import ctypes
import json
import mmap
import statistics
import time

import brant
from brant import _declared as declared
from brant import _native as native

PAGES = 1 << 16
BATCH = 4096


def mark(tracker: brant.Tracker) -> None:
    for page in range(0, PAGES, 2):
        tracker.mark_block(0, page * brant.PAGE_SIZE, 1)
    tracker.sync()


def by_python(tracker: brant.Tracker) -> float:
    begun = time.process_time()
    with tracker.take_array() as taken:
        pass
    took = time.process_time() - begun
    assert len(taken) == taken.pages == PAGES // 2
    return took


def by_c(tracker: brant.Tracker) -> float:
    runs = (declared.brant_run * BATCH)()
    count, error = ctypes.c_size_t(), ctypes.c_void_p()
    places = (runs, BATCH, ctypes.byref(count), ctypes.byref(error))
    with tracker._handle.use() as handle:
        begun = time.process_time()
        while True:
            assert native.lib.brant_tracker_take(handle, *places) == 0
            if not count.value:
                return time.process_time() - begun


def main(out: str) -> None:
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
    ratio = ours / theirs
    print("  python.take_array: %.2f ms, the library's calls %.2f ms, ratio %.2f" % (ours * 1e3, theirs * 1e3, ratio))
    if out:
        row = {"name": "python.take_array", "value": ours * 1e3, "unit": "ms", "peer": "the library's calls",
               "peer_value": theirs * 1e3, "ratio": ratio, "runs": len(python)}
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", metavar="FILE")
    main(parser.parse_args().out)
