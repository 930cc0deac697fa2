"""A guest without a virtual machine: a region of memory that a thread of Python writes. For trials,
pictures and examples."""

from __future__ import annotations

import mmap
import random
import threading
import time
from typing import Any, Optional

from ._native import PAGE_SIZE
from .guest import Guest


class Region:
    """Memory of which a thread writes pages: ``hot`` is the part that it writes to (0 to 1), and
    ``rate`` the pages a second that it writes there (0: as fast as it can), one after the other or
    ``scattered``. Its operations are those of a source: it can be migrated and saved."""

    def __init__(
        self,
        bytes: int = 64 << 20,
        *,
        hot: float = 0.25,
        rate: float = 20_000,
        scattered: bool = True,
        seed: int = 1,
        event: Any = None,
    ) -> None:
        self.bytes = bytes // PAGE_SIZE * PAGE_SIZE
        self.memory = mmap.mmap(-1, self.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fill = random.Random(seed).randbytes(PAGE_SIZE)
        for at in range(0, self.bytes, PAGE_SIZE):
            self.memory[at : at + PAGE_SIZE] = fill
        pages = max(1, int(self.bytes // PAGE_SIZE * hot))
        self.order = list(range(pages))
        if scattered:
            random.Random(seed).shuffle(self.order)
        # Each sweep writes a value that the page does not hold yet, so that samples of contents change too.
        self._first = fill[8] + 1
        self.rate = rate
        #: The part of its time that the thread sleeps, in percent: the operation ``throttle``.
        self.slowed = 0
        self.written = 0
        self._runs, self._ends = threading.Event(), False
        self._still = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self.guest = Guest(self, event=event)
        self.guest.add_block("region", self.memory)

    def pause(self) -> None:
        """Stops the thread between two writes."""
        self._runs.clear()
        with self._still:
            pass

    def resume(self) -> None:
        """Lets the thread write."""
        self._runs.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="brant-region", daemon=True)
            self._thread.start()

    def throttle(self, vcpu: Optional[int], percent: int) -> None:
        """Lets the thread sleep for so much of its time."""
        self.slowed = percent

    def _write(self) -> None:
        memory, order, at = self.memory, self.order, 0
        while True:
            self._runs.wait()
            if self._ends:
                return
            began = time.perf_counter()
            with self._still:
                if not self._runs.is_set():
                    continue
                count = min(256, max(1, int(self.rate / 500))) if self.rate else 256
                for _ in range(count):
                    page = order[at]
                    at = at + 1 if at + 1 < len(order) else 0
                    memory[page * PAGE_SIZE + 8] = (self._first + self.written // len(order)) & 255
                    self.written += 1
            took = time.perf_counter() - began
            asleep = took * self.slowed / max(1, 100 - self.slowed)
            if self.rate:
                asleep = max(asleep, count / self.rate * 100 / max(1, 100 - self.slowed) - took)
            time.sleep(max(0.0, asleep))

    def __enter__(self) -> "Region":
        self.resume()
        return self

    def __exit__(self, *of: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread and frees the guest. Close trackers and migrations first."""
        self._ends = True
        self._runs.set()
        if self._thread is not None:
            self._thread.join()
        self.guest.close()
