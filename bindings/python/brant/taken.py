"""Pages that left pending: a run of them, an array of runs, and how undelivered pages become
pending again.

An exception (Ctrl-C) can come between any two bytecodes: after the library has handed pages out and
before Python has stored them, or between a call's return and the assignment in its caller. So each
hand-out is recorded (:class:`Held`) before it happens, and the tracker keeps the record. When a
record has no user any more, the tracker's next operation puts its pages back.
"""

from __future__ import annotations

import inspect
import sys
from array import array
from ctypes import c_size_t
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Dict, Generator, Iterator, Optional, Tuple, Type
from weakref import ReferenceType, ref

from . import _declared as declared
from ._native import PAGE_SIZE

#: The most runs that the library takes in one call.
ARRAY_BATCH = 4096

#: The address that an empty array shows: its own is 0, which numpy refuses.
_NOTHING = array("Q", (0, 0, 0))


@dataclass(frozen=True)
class Run:
    """A run of written pages that was taken: read them now, or put them back."""

    #: The name of the block.
    block: str
    #: The block's number.
    block_number: int
    #: First page, in the block.
    first_page: int
    #: The number of pages, which do not cross a 2 MiB boundary of the block.
    pages: int
    #: The memory itself, and no copy. Its buffer cannot be closed as long as this exists.
    memory: memoryview = field(repr=False, compare=False)

    @property
    def offset(self) -> int:
        """The offset in the block, in bytes."""
        return self.first_page * PAGE_SIZE

    def __iter__(self) -> Iterator[int]:
        """The numbers of the pages in the block."""
        return iter(range(self.first_page, self.first_page + self.pages))


class Batch:
    """The runs that the library hands out in one call."""

    def __init__(self, size: int) -> None:
        self.runs: Any = (declared.brant_run * size)()
        #: Filled by the library itself, in the same call as the runs.
        self.count = c_size_t()
        #: The first run that is not accounted for.
        self.given = 0

    def rest(self) -> Iterator[Tuple[int, int, int]]:
        """The runs that are not accounted for: block, first page, pages."""
        for run in self.runs[self.given : self.count.value]:
            yield run.block, run.first_page, run.pages

    def settle(self) -> None:
        """Notes that all runs are accounted for."""
        self.count.value = 0


class Held:
    """Pages that the library has handed out and that are not delivered yet. The tracker keeps this.
    """

    def __init__(self, size: int) -> None:
        self.batch = Batch(size)

    def over(self) -> bool:
        """Whether the record has no user any more."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Notes that the record has no user from now on."""
        raise NotImplementedError

    def rest(self) -> Iterator[Tuple[int, int, int]]:
        """The runs that have to be put back: block, first page, pages. A run may come twice."""
        return self.batch.rest()

    def settle(self) -> None:
        """Notes that no run has to be put back any more."""
        self.batch.settle()


class Walking(Held):
    """An iteration over runs."""

    walk: Optional["ReferenceType[Generator[Run, None, None]]"] = None

    def over(self) -> bool:
        # A traceback may keep a generator that has ended.
        walk = self.walk() if self.walk is not None else None
        return walk is None or inspect.getgeneratorstate(walk) == inspect.GEN_CLOSED

    def give_up(self) -> None:
        self.walk = None


class Gathered(Held):
    """The numbers of a :class:`Taken`, three for each run, and the batch that comes next."""

    def __init__(self, numbers: "array[int]") -> None:
        super().__init__(ARRAY_BATCH)
        self.numbers = numbers
        self.settled = False
        self.owner: Optional["ReferenceType[partial[None]]"] = None

    def keep(self) -> None:
        """Moves the batch to the array."""
        batch = self.batch
        count = batch.count.value
        words = array("Q")
        # Host address, first page, pages, block. The upper half of the last one is 0.
        words.frombytes(memoryview(batch.runs).cast("B")[: 32 * count])
        triples = array("Q", bytes(24 * count))
        triples[0::3] = words[3::4]
        triples[1::3] = words[1::4]
        triples[2::3] = words[2::4]
        self.numbers.extend(triples)
        batch.given = count

    def over(self) -> bool:
        return self.settled or self.owner is None or self.owner() is None

    def give_up(self) -> None:
        self.owner = None

    def deliver(self) -> None:
        """Decides that no run is put back, unless the opposite was decided already."""
        if not self.over():
            self.settle()

    def rest(self) -> Iterator[Tuple[int, int, int]]:
        if not self.settled:
            numbers = iter(self.numbers)
            yield from zip(numbers, numbers, numbers)
            yield from self.batch.rest()

    def settle(self) -> None:
        self.settled = True
        # The tracker may keep this for a while. The owner of the Taken has the numbers.
        self.numbers = array("Q")


def _leave(
    held: Gathered,
    undo: Callable[[Held], None],
    kind: Optional[Type[BaseException]],
    error: Optional[BaseException],
    trace: Optional[TracebackType],
) -> None:
    """The end of a with-block."""
    if kind is None:
        held.deliver()
    elif not held.settled:
        undo(held)


class _Exit(property):
    """``__exit__`` of a :class:`Taken`: a with-statement that looks it up becomes the owner of the
    pages.

    Ctrl-C can come in the first bytecode of an ``__exit__``, before any line of it runs. If the
    variable (``as taken``) owned the pages, they would wait as long as the variable lives, neither
    delivered nor pending. So the owner is the callable that the with-statement calls at its end.
    Only the statement has it, and CPython drops it when the statement is left in any way.

    A Python function in between would not do, because a traceback keeps its variables. This look-up
    and the callable, a ``partial``, have none.
    """

    def __call__(self, taken: Taken, *of: Any) -> None:
        # contextlib.ExitStack takes it from the class, and calls it with the object.
        taken._give()(*of)


class Taken:
    """All pages that were pending at one moment, from :meth:`Tracker.take_array`. They are yours to
    read, and become pending again unless you say that they are delivered.

    A with-block that ends without an exception delivers them::

        with tracker.take_array() as taken:
            runs = numpy.asarray(taken)          # one row for each run: block, first page, pages

    The with-statement owns the pages, and not the variable. When an exception leaves the block the
    pages are pending again. That holds even for an exception that comes while the block is being
    left (Ctrl-C), and even if the variable still has this object.

    Without a with-block this object owns them: call :meth:`delivered`. They become pending again by
    :meth:`put_back`, or when the object ends before one of the two has returned. If you keep the
    object after an exception you keep the pages, so call one of the two then. In a
    ``contextlib.ExitStack`` the object owns them too.

    "Pending again" means: at the latest with the next sync, take or query of figures of the tracker
    or consumer that they came from. The first of these calls decides, and later ones do nothing.
    The numbers can be read afterwards too.

    Length and iteration are by runs: each is a tuple of the block's number, the first page in the
    block and the number of pages. ``numpy.asarray(taken)`` is the same memory, read-only and n by
    3. It keeps this object alive, and so the pages of one without a with-block.
    """

    def __init__(self, undo: Callable[[Held], None]) -> None:
        self._undo = undo
        self._numbers = array("Q")
        self._held = held = Gathered(self._numbers)
        # The owner of this value owns the pages: this object, until a with-statement takes it out.
        owner = partial(_leave, held, undo)
        held.owner = ref(owner)
        # A second with-statement gets a value that owns no pages.
        again = partial(_leave, held, undo)
        self._give: Callable[[], Callable[..., None]] = partial({0: owner}.pop, 0, again)

    @property
    def array(self) -> "array[int]":
        """The numbers, one run after the other: ``taken.array[2::3]`` has all lengths."""
        return self._numbers

    @property
    def pages(self) -> int:
        """The number of pages in all runs."""
        return sum(self._numbers[2::3])

    def delivered(self) -> None:
        """Says that the pages have arrived where they should be, so they are not handed out again.
        """
        self._held.deliver()

    def put_back(self) -> None:
        """Makes all pages pending again now, unless they were delivered."""
        if not self._held.settled:
            self._undo(self._held)

    def __enter__(self) -> "Taken":
        return self

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: Optional[Type[BaseException]],
            error: Optional[BaseException],
            trace: Optional[TracebackType],
        ) -> None: ...

    else:
        __exit__ = _Exit(methodcaller("_give"))

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[Tuple[int, int, int]]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, numbers)

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        """The array interface, by which numpy reads the numbers without a copy."""
        # Their address must stay, so the array must not grow while it is exported.
        self._shown = memoryview(self._numbers)
        # numpy keeps the object that an address belongs to: this one.
        address, _ = (self._numbers or _NOTHING).buffer_info()
        order = "<" if sys.byteorder == "little" else ">"
        return {
            "version": 3,
            "typestr": order + "u8",
            "shape": (len(self), 3),
            "data": (address, True),
        }

    def __reduce__(self) -> Tuple[Any, ...]:
        raise TypeError("a %s is not copied or pickled" % type(self).__name__)

    def __repr__(self) -> str:
        return "<brant.Taken: %d runs, %d pages>" % (len(self), self.pages)
