"""The operations of a guest: Python callables that the library calls from its threads.

An exception in an operation makes the operation fail, and its type and text are the reason in the
error of the migration. No operation is called with the interpreter's lock held by a thread that
waits in this package.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

from . import _declared as declared
from . import _native as native
from ._declared import CONSTANTS


def _names(prefix: str) -> Dict[int, str]:
    return {
        value: name[len(prefix) :].lower().replace("_", "-")
        for name, value in CONSTANTS.items()
        if name.startswith(prefix)
    }


_EVENTS = _names("BRANT_EVENT_")
_ROLES = _names("BRANT_ROLE_")
#: The types of the operations, by name.
_TYPES: Dict[str, Any] = {
    field[0]: field[1] for field in declared.brant_ops._fields_ if field[0] != "size"
}
#: The names of all operations.
NAMES = tuple(_TYPES)


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    #: "state", "pass", "warning", "completed", "failed", "unanswered", "mismatch", "downtime",
    #: "stalled", "throttle", "interrupted" or "recovered": the header's BRANT_EVENT_*.
    kind: str
    #: One sentence.
    message: str


@dataclass(frozen=True)
class Blob:
    """One blob of device state or early configuration, as ``save`` or ``early_save`` put it."""

    #: The name of what it is the state of.
    name: str
    #: The bytes, a copy.
    data: bytes
    #: Which one of several of that name.
    instance: int
    #: The version of the format of the data, the VMM's own numbering.
    version: int


class Saver:
    """Where ``save`` and ``early_save`` put state. Works until the operation returns."""

    def __init__(self, place: Optional[int]) -> None:
        self._place = place

    def put(self, name: str, data: Any, *, instance: int = 0, version: int = 0) -> None:
        """Puts one blob: ``name`` of 1 to 128 bytes, ``data`` any object with the buffer protocol,
        at most about 1 GiB. At most 65536 blobs."""
        if self._place is None:
            raise ValueError("state is put while the operation runs, and not later")
        content = bytes(data)
        native.call(
            native.lib.brant_saver_put,
            self._place,
            native.text(name, "name"),
            native.number(instance, "instance", 32),
            native.number(version, "version", 32),
            content,
            len(content),
        )

    def __repr__(self) -> str:
        return "<brant.Saver%s>" % (", over" if self._place is None else "")


def reason_of(why: BaseException) -> str:
    """The text of an exception, for the library's error."""
    if isinstance(why, native.BrantError):
        return why.message or why.name
    text = str(why)
    return "%s: %s" % (type(why).__name__, text) if text else type(why).__name__


def address_of(memory: Any) -> int:
    """The address of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Operations:
    """The table of a guest's operations, for C, and the thread's place in it."""

    def __init__(self, callables: Dict[str, Callable[..., Any]]) -> None:
        for name, function in callables.items():
            if name not in _TYPES:
                raise TypeError("there is no operation %r: %s" % (name, ", ".join(NAMES)))
            if not callable(function):
                raise TypeError("the operation %s is not callable" % name)
        self.names = tuple(callables)
        #: The last exception of an operation, which is the cause of the migration's error.
        self.failed: Optional[BaseException] = None
        #: The memory that ``map_block`` has mapped, by the block's name.
        self.mapped: Dict[str, memoryview] = {}
        self._here = threading.local()
        self.table = native.sized(declared.brant_ops)
        for name, function in callables.items():
            wrap = getattr(self, "_of_" + name, self._plain)
            # The table keeps the callback.
            setattr(self.table, name, _TYPES[name](wrap(function)))

    def inside(self) -> bool:
        """Whether this thread is inside one of the operations."""
        return getattr(self._here, "depth", 0) > 0

    def _guarded(self, reason: Optional[int], function: Callable[..., Any], *arguments: Any) -> int:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            function(*arguments)
            return 0
        except BaseException as why:
            if reason is None:
                # Nobody takes a reason from it: ctypes prints it, as one of a finalizer.
                raise
            self.failed = why
            text = reason_of(why).replace("\0", "?").encode(errors="replace")
            native.lib.brant_reason_set(reason, text)
            return -1
        finally:
            self._here.depth -= 1

    def _plain(self, function: Callable[[], Any]) -> Callable[..., int]:
        return lambda opaque, reason: self._guarded(reason, function)

    def _of_save(self, function: Callable[[Saver], Any]) -> Callable[..., int]:
        def save(opaque: int, place: int, reason: int) -> int:
            saver = Saver(place)
            try:
                return self._guarded(reason, function, saver)
            finally:
                saver._place = None

        return save

    _of_early_save = _of_save

    def _of_load(self, function: Callable[[Blob], Any]) -> Callable[..., int]:
        def load(blob: Any) -> None:
            given = blob.contents
            function(
                Blob(
                    given.name.decode(errors="replace"),
                    ctypes.string_at(given.data, given.length) if given.length else b"",
                    given.instance,
                    given.version,
                )
            )

        return lambda opaque, blob, reason: self._guarded(reason, load, blob)

    _of_early_load = _of_load

    def _of_log_on(self, function: Callable[[List[int]], Any]) -> Callable[..., int]:
        return lambda opaque, slots, count, reason: self._guarded(reason, function, slots[:count])

    _of_log_off = _of_log_on

    def _of_event(self, function: Callable[[Event], Any]) -> Callable[..., None]:
        def event(opaque: int, happened: Any) -> None:
            kind, message = happened.contents.kind, happened.contents.message
            told = Event(_EVENTS.get(kind, str(kind)), message.decode(errors="replace"))
            self._guarded(None, function, told)

        return event

    def _of_thread_start(self, function: Callable[[str], Any]) -> Callable[..., None]:
        def thread_start(opaque: int, role: int) -> None:
            self._guarded(None, function, _ROLES.get(role, str(role)))

        return thread_start

    def _of_throttle(self, function: Callable[[Optional[int], int], Any]) -> Callable[..., int]:
        everyone = CONSTANTS["BRANT_ALL_VCPUS"]

        def throttle(opaque: int, vcpu: int, percent: int, reason: int) -> int:
            return self._guarded(reason, function, None if vcpu == everyone else vcpu, percent)

        return throttle

    def _of_map_block(self, function: Callable[[str, int, int, int], Any]) -> Callable[..., int]:
        def map_block(
            opaque: int, name: bytes, fd: int, length: int, offset: int, place: Any, reason: int
        ) -> int:
            def mapped() -> None:
                shown = name.decode(errors="replace")
                view = memoryview(function(shown, fd, length, offset)).cast("B")
                if view.nbytes != length:
                    raise ValueError(
                        "map_block gave %d bytes for the block %r of %d"
                        % (view.nbytes, shown, length)
                    )
                self.mapped[shown] = view
                place[0] = c_void_p(address_of(view))

            return self._guarded(reason, mapped)

        return map_block


def of(given: object, callables: Dict[str, Optional[Callable[..., Any]]]) -> Optional[Operations]:
    """The operations that an object's methods and these callables are; None if there are none."""
    found: Dict[str, Callable[..., Any]] = {}
    if given is not None:
        for name in NAMES:
            function = getattr(given, name, None)
            if function is not None:
                found[name] = function
        if not found:
            raise TypeError(
                "%r has none of the operations: %s" % (type(given).__name__, ", ".join(NAMES))
            )
    found.update({name: function for name, function in callables.items() if function is not None})
    return Operations(found) if found else None


def pointer(operations: Optional[Operations]) -> Any:
    """The table for C; NULL without operations."""
    return None if operations is None else byref(operations.table)
