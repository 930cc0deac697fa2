"""Level one: bitmaps with a summary, for programs that work on dirty bits."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_uint64
from types import TracebackType
from typing import Any, Iterator, Optional, Tuple, Type

from . import _native as native

_ALL = (1 << 64) - 1


class Bitmap:
    """A bitmap of ``bits`` bits, 0 to 2^40, all clear.

    The cost of walking and merging grows with the set bits and not with the length. Memory is taken
    when bits are set. Bit i is bit i % 64 of the 64-bit word i // 64, as in KVM's logs.
    """

    def __init__(self, bits: int) -> None:
        self._bits = native.number(bits, "bits")
        value = native.made(native.lib.brant_bitmap_new, self._bits)
        self._handle = native.Handle(self, "bitmap", value, native.lib.brant_bitmap_free)
        # The library wants one thread at a time.
        self._lock = threading.Lock()

    def close(self) -> None:
        """Frees the bitmap. A second call does nothing."""
        self._handle.close()

    def __enter__(self) -> "Bitmap":
        with self._handle.use():
            return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __reduce__(self) -> Tuple[Any, ...]:
        raise TypeError("a Bitmap is not copied or pickled; merge it into another")

    def __len__(self) -> int:
        """The number of bits, set or not."""
        return self._bits

    def __repr__(self) -> str:
        if self._handle.closed:
            return "<brant.Bitmap, closed>"
        return "<brant.Bitmap of %d bits, %d set>" % (self._bits, self.count())

    def count(self) -> int:
        """How many bits are set."""
        with self._lock, self._handle.use() as bitmap:
            return int(native.lib.brant_bitmap_count(bitmap))

    def test(self, bit: int) -> bool:
        """Whether a bit is set. False past the end."""
        with self._lock, self._handle.use() as bitmap:
            return bool(native.lib.brant_bitmap_test(bitmap, native.number(bit, "bit")))

    def __contains__(self, bit: object) -> bool:
        return isinstance(bit, int) and 0 <= bit <= _ALL and self.test(bit)

    def set(self, first: int, count: int = 1) -> int:
        """Sets ``count`` bits from ``first`` on. Returns how many of them were clear."""
        return self._change(native.lib.brant_bitmap_set, first, count)

    def clear(self, first: int, count: int = 1) -> int:
        """Clears ``count`` bits from ``first`` on. Returns how many of them were set."""
        return self._change(native.lib.brant_bitmap_clear, first, count)

    def _change(self, function: Any, first: int, count: int) -> int:
        changed = c_uint64()
        first, count = native.number(first, "first"), native.number(count, "count")
        with self._lock, self._handle.use() as bitmap:
            native.call(function, bitmap, first, count, byref(changed))
        return changed.value

    def merge(self, other: "Bitmap") -> int:
        """Sets the bits that are set in ``other``, which has the same length. Returns how many
        became set."""
        changed = c_uint64()
        if other is self:
            return 0
        # The locks are taken in one order everywhere. Otherwise two merges in opposite directions
        # would wait for each other.
        one, two = sorted((self, other), key=id)
        with one._lock, two._lock, self._handle.use() as bitmap, other._handle.use() as of:
            native.call(native.lib.brant_bitmap_merge, bitmap, of, byref(changed))
        return changed.value

    def merge_words(self, at: int, words: Any, count: Optional[int] = None) -> int:
        """Sets the bits that are set in 64-bit words. The first bit of ``words`` stands for bit
        ``at``. Returns how many became set.

        ``words`` is any object with the buffer protocol (bytes, array, a numpy array), with a whole
        number of words in the machine's byte order. ``count`` is how many bits count; None means
        all.
        """
        view = memoryview(words).cast("B")
        if view.nbytes % 8:
            raise ValueError("words are 8 bytes each; found %d bytes" % view.nbytes)
        bits = view.nbytes * 8 if count is None else native.number(count, "count")
        if bits > view.nbytes * 8:
            raise ValueError("%d bits are not in %d bytes" % (bits, view.nbytes))
        # An aligned copy, which nothing else uses.
        copied = (c_uint64 * (view.nbytes // 8 or 1)).from_buffer_copy(view.tobytes() or bytes(8))
        pointer = ctypes.cast(copied, ctypes.POINTER(c_uint64))
        changed = c_uint64()
        at = native.number(at, "at")
        with self._lock, self._handle.use() as bitmap:
            native.call(
                native.lib.brant_bitmap_merge_words, bitmap, at, pointer, bits, byref(changed)
            )
        return changed.value

    def runs(self, longest: int = _ALL) -> Iterator[Tuple[int, int]]:
        """Each run of set bits, as (first bit, length), in order, cut to ``longest`` bits.

        Each run is found in the bitmap as it is when the run is asked for."""
        native.number(longest, "longest")
        if longest == 0:
            raise ValueError("a run has 1 bit or more")
        return self._runs(longest)

    def _runs(self, longest: int) -> Iterator[Tuple[int, int]]:
        first, count, at = c_uint64(), c_uint64(), 0
        while True:
            with self._lock, self._handle.use() as bitmap:
                found = native.lib.brant_bitmap_next_run(
                    bitmap, at, longest, byref(first), byref(count)
                )
            if found < 0:
                raise native.BrantError(found, "")
            if found == 0:
                return
            at = first.value + count.value
            yield first.value, count.value

    def __iter__(self) -> Iterator[int]:
        """The set bits, in order."""
        for first, count in self.runs():
            yield from range(first, first + count)
