"""Level two: which pages of memory were written. Each written page is handed out once."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_size_t
from dataclasses import dataclass, fields
from typing import Any, Generator, List, Optional, Union
from weakref import ref

from . import _declared as declared
from . import _native as native
from ._native import PAGE_SIZE, constant
from .guest import Guest, _Closes, handle_of
from .measure import KvmCosts
from .rings import Rings
from .taken import ARRAY_BATCH, Batch, Held, Run, Taken, Walking

_CLEARING = {"chunked": constant("CLEAR_CHUNKED"), "at-sync": constant("CLEAR_AT_SYNC")}
_KVM_MODES = {
    "auto": constant("KVM_AUTO"),
    "get-and-clear": constant("KVM_GET_AND_CLEAR"),
    "manual-protect": constant("KVM_MANUAL_PROTECT"),
    "initially-set": constant("KVM_INITIALLY_SET"),
    "ring": constant("KVM_RING"),
}
_BATCH = 64


@dataclass(frozen=True)
class Sync:
    """The findings of a sync, and its cost."""

    #: Pages that became pending. A page that was pending already does not count again.
    found_pages: int
    #: Pages that the logs found written, pending or not, once for each log and sync.
    written_pages: int
    #: The number of pages of which a write since the last sync could be found: all but those that
    #: were found before and wait for a take to restore their protection. The dirty rate of the
    #: memory is ``written_pages`` over this.
    observed_pages: int
    #: Pages pending now.
    pending_pages: int
    #: Nanoseconds of the whole sync.
    time_ns: int
    #: Nanoseconds for KVM's logs.
    kvm_ns: int
    #: Pages found by them.
    kvm_pages: int
    #: Nanoseconds for marks.
    reported_ns: int
    #: Pages found by marks that no log had found before.
    reported_pages: int
    #: Logs that failed, so that every page they cover counts as written, or that deliver some pages
    #: later.
    warnings: int
    #: Nanoseconds for vhost's logs.
    vhost_ns: int
    #: Pages found by them.
    vhost_pages: int
    #: Nanoseconds for VFIO's and iommufd's logs.
    vfio_ns: int
    #: Pages found by them.
    vfio_pages: int
    #: Nanoseconds for userfaultfd's write protection.
    userfault_ns: int
    #: Pages found by it.
    userfault_pages: int


@dataclass(frozen=True)
class TrackerStats:
    """Running totals since tracking started."""

    #: Pages pending now.
    pending_pages: int
    #: Syncs made.
    syncs: int
    #: Pages found by them.
    found_pages: int
    #: Calls that cleared chunks.
    clear_calls: int
    #: Bits they cleared.
    cleared_pages: int
    #: The longest time in nanoseconds for restoring the protection of one chunk.
    longest_clear_ns: int
    #: Pages put back.
    put_back_pages: int
    #: Marks at addresses without a block, including bits of vhost logs, since the tracker was made.
    stray_marks: int
    #: Bytes of bitmaps and rings for the memory, including those of each log.
    heap_bytes: int
    #: log2 of the pages of a chunk; 0 when chunks are off.
    chunk_shift: int
    #: Whether tracking is on.
    started: bool
    #: Ballooned pages that were named instead of read. A page that is named again counts again.
    ballooned_pages: int
    #: Ballooned pages that were found written all the same, and are no longer ballooned.
    ballooned_written_pages: int
    #: Pages that free-page hints took out of pending.
    hinted_pages: int
    #: Hints that came after their round had ended, and did nothing.
    stale_hints: int


class _Takes(_Closes):
    """An object with pending pages: the tracker for itself, or one of its consumers."""

    _what: str

    def _prepare(self, handle: native.Handle) -> None:
        self._handle = handle
        self._midway = False
        self._held: List[Held] = []
        # The library has one walk for each user, so a second sync or take waits here.
        self._lock = threading.RLock()
        self._blocks.taken_by(self)

    def _uses(self, block: int) -> bool:
        """Whether runs of the block are handed out, and neither delivered nor put back."""
        with self._lock:
            if self.closed:
                return False
            self._reclaim()
            return any(number == block for held in self._held for number, _, _ in held.rest())

    def _end_use(self) -> None:
        """For the library the last taken runs are in use until the next take. This is a take of no
        runs."""
        try:
            self._call("take", None, 0, byref(c_size_t()))
        except ValueError:
            # The thread that closed it meanwhile has ended all use.
            if not self.closed:
                raise

    def _call(self, name: str, *arguments: Any) -> None:
        with self._handle.use() as handle:
            native.call(getattr(native.lib, self._what + name), handle, *arguments)

    def stop(self) -> None:
        """Stops tracking after a last harvest. Pending pages stay pending and can be taken."""
        with self._lock:
            self._call("stop")

    def sync(self, *, stopped: bool = False) -> Sync:
        """Harvests all logs for every consumer, and reports the figures of this one. ``stopped``:
        nothing writes any more. A log that fails is an error then; otherwise it is a warning, and
        every page that it covers counts as dirty."""
        report = native.sized(declared.brant_sync)
        with self._lock:
            self._reclaim()
            when = constant("SYNC_STOPPED" if stopped else "SYNC_RUNNING")
            self._call("sync", when, byref(report))
        return Sync(**{f.name: getattr(report, f.name) for f in fields(Sync)})

    def take(self) -> Generator[Run, None, None]:
        """Takes every pending page, run by run, in the order of blocks and pages.

        A run's protection is restored before it is handed out, so a later sync finds a later write.
        A run counts as taken when the next one is asked for, or when the iteration has come to its
        end. So an iteration that is given up, or that an exception ends, loses no page: the run
        that was handed out last is pending again, and so are those after it. If an exception leaves
        the loop and you keep the iterator, they wait in the iterator: its next run counts the one
        that failed as taken, and ``close()`` makes all of them pending again.
        """
        walking = Walking(_BATCH)
        walk = self._walk(walking)
        walking.walk = ref(walk)
        self._held.append(walking)
        return walk

    def _walk(self, walking: Walking) -> Generator[Run, None, None]:
        batch = walking.batch
        try:
            # To the end of a walk from the beginning, because an iteration that was given up has
            # left one in the middle.
            whole = False
            while not whole:
                self._reclaim()
                whole = not self._midway
                while self._fill(batch, _BATCH):
                    while batch.given < batch.count.value:
                        run = self._run(batch.runs[batch.given])
                        if run is not None:
                            yield run
                        batch.given += 1
        finally:
            self._give_back(walking)

    def take_array(self) -> Taken:
        """Takes every pending page at once, as a :class:`Taken`: three numbers for each run.

        ::

            with tracker.take_array() as taken:
                for block, first_page, pages in taken:
                    ...                                # read them, send them

        The pages count as delivered when the with-block ends without an exception, or after
        :meth:`Taken.delivered`. An exception at any place before that (in this call, in the block,
        while the block is being left) makes them pending again. So does the end of a :class:`Taken`
        without a with-block that nothing refers to any more.
        """
        # A traceback keeps the value of a variable, but not a value that is just being returned.
        only = [Taken(self._undo)]
        held = only[0]._held
        # Before the library hands out the first page.
        self._held.append(held)
        try:
            with self._lock:
                whole = False
                while not whole:
                    self._reclaim()
                    whole = not self._midway
                    while self._fill(held.batch, ARRAY_BATCH):
                        held.keep()
            held.batch = Batch(0)
            return only.pop()
        except BaseException:
            # A traceback may keep it.
            held.give_up()
            raise

    def _undo(self, held: Held) -> None:
        """Makes those pages of ``held`` pending again now that are not accounted for."""
        with self._lock:
            held.give_up()
            self._give_back(held)

    def _fill(self, batch: Batch, size: int) -> bool:
        """Takes the next runs into a batch whose own runs are all accounted for."""
        with self._lock:
            batch.count.value = 0
            batch.given = 0
            # After an exception right behind the call, a walk must not look finished.
            self._midway = True
            self._call("take", batch.runs, size, byref(batch.count))
            self._midway = batch.count.value > 0
            return self._midway

    def _give_back(self, held: Held) -> None:
        """Makes pending again what of ``held`` is not accounted for. Done in part, it can be done
        again."""
        with self._lock:
            try:
                for block, first_page, pages in held.rest():
                    self._call("put_back", block, first_page, pages)
            except ValueError:
                # A tracker that was closed meanwhile has nothing pending any more.
                if not self.closed:
                    raise
            held.settle()
            self._let_go(held)
            self._end_use()

    def _let_go(self, held: Held) -> None:
        try:
            self._held.remove(held)
        except ValueError:
            pass  # Another thread was quicker.

    def _reclaim(self) -> None:
        """Puts back the pages that interrupted iterations and lost arrays have left."""
        with self._lock:
            for held in list(self._held):
                if held.over():
                    self._give_back(held)

    def _run(self, run: Any) -> Optional[Run]:
        block = self._blocks.by_number.get(run.block)
        if block is None:
            # Removed since the take.
            return None
        start = run.first_page * PAGE_SIZE
        memory = block.view[start : start + run.pages * PAGE_SIZE]
        return Run(block.name, block.number, run.first_page, run.pages, memory)

    def put_back(self, run: Run) -> None:
        """Makes the pages of a run pending again. Works after :meth:`stop` too. A block that is
        gone is ignored."""
        if not isinstance(run, Run):
            raise TypeError("a Run is put back, not %s" % type(run).__name__)
        with self._lock:
            self._call("put_back", run.block_number, run.first_page, run.pages)


class Tracker(_Takes):
    """Finds the written pages of a guest, by its logs and by marks, and hands each out once.

    ``clearing`` says how protection is restored for a log that leaves this to the tracker (KVM's).
    "chunked": each chunk of 2^``chunk_shift`` pages is cleared before the first of its pages is
    handed out (6 to 31; 0: 18, which is 1 GiB). "at-sync": every page at each sync.

    The pages that :meth:`sync` finds become pending for the tracker itself and for each of its
    :class:`Consumer` objects. Each takes only its own pending pages.
    """

    _what = "brant_tracker_"

    def __init__(self, guest: Guest, *, clearing: str = "chunked", chunk_shift: int = 0) -> None:
        if not isinstance(guest, Guest):
            raise TypeError("a Guest is tracked, not %s" % type(guest).__name__)
        config = native.sized(
            declared.brant_tracker_config,
            clearing=native.choice(_CLEARING, clearing, "clearing"),
            chunk_shift=native.number(chunk_shift, "chunk_shift", 32),
        )
        blocks = guest._handle.keep
        with guest._changing, guest._handle.use() as of:
            blocks.adopt(of)
            value = native.made(native.lib.brant_tracker_new, of, byref(config))
        free = native.lib.brant_tracker_free
        self._prepare(handle_of(self, "tracker", value, free, blocks, joins=False))

    def __enter__(self) -> "Tracker":
        with self._handle.use():
            return self

    def close(self) -> None:
        """Stops tracking, and frees the tracker. A second call does nothing."""
        self._handle.close()

    def add_userfault(self) -> None:
        """Lets userfaultfd watch all blocks. Call it before tracking starts. It watches any memory
        of this process, without KVM; Linux 6.7. It does not see writes to shared memory through
        another mapping, by ``pwrite`` or by another process: the writer has to mark them."""
        with self._handle.use() as tracker:
            native.call(native.lib.brant_tracker_add_userfault, tracker)

    def add_kvm(
        self, vm_fd: int, *, mode: str = "auto", costs: Optional[KvmCosts] = None
    ) -> None:
        """Lets KVM's dirty log watch the guest's KVM slots. Call it before tracking starts.
        ``vm_fd`` is what KVM_CREATE_VM returned, and stays the caller's. ``mode`` is "auto",
        "get-and-clear", "manual-protect", "initially-set" or "ring" (see :attr:`rings`). "auto"
        takes rings if the machine has them, and otherwise uses ``costs``, from
        :func:`measure_kvm`, if they are given."""
        chosen = native.choice(_KVM_MODES, mode, "mode")
        figures = None
        if costs is not None:
            figures = ctypes.pointer(declared.brant_kvm_costs.from_buffer_copy(costs.filled))
        with self._handle.use() as tracker:
            kvm = native.sized(declared.brant_kvm_log, vm_fd=vm_fd, mode=chosen)
            kvm.costs = figures
            native.call(native.lib.brant_tracker_add_kvm, tracker, byref(kvm))

    @property
    def rings(self) -> Rings:
        """Each vCPU's dirty ring, for a machine with rings (:func:`enable_kvm_ring`)."""
        return Rings(self._handle)

    def mark(self, guest_address: int, length: int) -> None:
        """Marks ``length`` bytes at a guest address as written. Call it after the write. An address
        without memory is counted (``stray_marks``) and otherwise ignored."""
        address, length = native.number(guest_address, "address"), native.number(length, "length")
        with self._handle.use() as tracker:
            native.lib.brant_tracker_mark(tracker, address, length)

    def mark_block(self, block: Union[str, int], offset: int, length: int) -> None:
        """Marks ``length`` bytes at an offset in a block, by the block's name or number."""
        offset, length = native.number(offset, "offset"), native.number(length, "length")
        with self._handle.use() as tracker:
            number = self._blocks.number(block)
            native.lib.brant_tracker_mark_block(tracker, number, offset, length)

    def start(self, *, everything: bool = False) -> None:
        """Starts tracking. ``everything``: all pages are pending at first, for a user that copies
        all of them and then the changes. Otherwise none is."""
        with self._lock, self._handle.use() as tracker:
            # Their pages must not go into the pages that are pending from the start on.
            self._reclaim()
            how = constant("START_ALL" if everything else "START_CLEAN")
            native.call(native.lib.brant_tracker_start, tracker, how)
            self._midway = False

    def consumer(self, *, everything: bool = False) -> "Consumer":
        """Makes one more consumer, which starts at once: see :class:`Consumer`. ``everything``: all
        pages are pending for it at first. Otherwise none is."""
        return Consumer(self, everything=everything)

    def stats(self) -> TrackerStats:
        """Totals since tracking started."""
        now = native.sized(declared.brant_tracker_stats)
        self._reclaim()
        with self._handle.use() as tracker:
            native.call(native.lib.brant_tracker_get_stats, tracker, byref(now))
        values = {f.name: getattr(now, f.name) for f in fields(TrackerStats)}
        return TrackerStats(**dict(values, started=bool(now.started)))

    def __repr__(self) -> str:
        return "<brant.Tracker%s>" % (", closed" if self.closed else "")


@dataclass(frozen=True)
class ConsumerStats:
    """Running totals of a consumer since it was made."""

    #: Pages pending now.
    pending_pages: int
    #: Syncs that brought pages to it, whoever made them.
    syncs: int
    #: Pages that became pending by these syncs.
    found_pages: int
    #: Pages put back.
    put_back_pages: int
    #: Whether it is started, and is told of written pages.
    started: bool
    #: Its number among the tracker's consumers, which messages use. The tracker itself is 1.
    number: int


class Consumer(_Takes):
    """A user of the tracker's pages beside the tracker itself, who is told of every written page
    once: a backup, or a monitor. No other user, and no migration, takes its pending pages. It may
    outlive the tracker. Made by :meth:`Tracker.consumer`."""

    _what = "brant_consumer_"

    def __init__(self, tracker: Tracker, *, everything: bool = False) -> None:
        if not isinstance(tracker, Tracker):
            raise TypeError("a consumer is of a Tracker, not of %s" % type(tracker).__name__)
        blocks = tracker._handle.keep
        how = constant("START_ALL" if everything else "START_CLEAN")
        with tracker._handle.use() as of:
            value = native.made(native.lib.brant_consumer_new, of, how)
        free = native.lib.brant_consumer_free
        self._prepare(handle_of(self, "consumer", value, free, blocks, joins=False))

    def __enter__(self) -> "Consumer":
        with self._handle.use():
            return self

    def stats(self) -> ConsumerStats:
        """Totals since it was made."""
        now = native.sized(declared.brant_consumer_stats)
        self._reclaim()
        with self._handle.use() as consumer:
            native.call(native.lib.brant_consumer_get_stats, consumer, byref(now))
        values = {f.name: getattr(now, f.name) for f in fields(ConsumerStats)}
        return ConsumerStats(**dict(values, started=bool(now.started)))

    def __repr__(self) -> str:
        return "<brant.Consumer%s>" % (", closed" if self.closed else "")
