"""The C interface as ctypes sees it: the library, its structures, constants and functions.

Written by hand from ``include/brant.h`` and compared with it, field by field and parameter by
parameter, by ``tests/test_layout.py``. Not for use from outside the package.
"""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from contextlib import contextmanager
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple
from weakref import finalize

#: Bytes of a page, the unit in which memory is tracked, counted and handed out.
PAGE_SIZE = 4096

#: The header's constants that are used here, under the header's names.
CONSTANTS: Dict[str, int] = {
    "BRANT_BITMAP_BITS_MAX": 1 << 40,
    "BRANT_E_INVALID": -1,
    "BRANT_E_STATE": -2,
    "BRANT_E_BUSY": -3,
    "BRANT_E_NOT_FOUND": -4,
    "BRANT_E_EXISTS": -5,
    "BRANT_E_NO_MEMORY": -6,
    "BRANT_E_UNSUPPORTED": -7,
    "BRANT_E_KERNEL": -8,
    "BRANT_E_IO": -9,
    "BRANT_E_PEER_GONE": -10,
    "BRANT_E_TIMEOUT": -11,
    "BRANT_E_CANCELLED": -12,
    "BRANT_E_PROTOCOL": -13,
    "BRANT_E_LAYOUT": -14,
    "BRANT_E_VERSION": -15,
    "BRANT_E_REFUSED": -16,
    "BRANT_E_VMM": -17,
    "BRANT_E_NOT_CONVERGED": -18,
    "BRANT_E_BLOCKED": -19,
    "BRANT_E_UNANSWERED": -20,
    "BRANT_E_CALLBACK": -21,
    "BRANT_E_INTERNAL": -22,
    "BRANT_E_PENDING": -23,
    "BRANT_E_MEMORY": -24,
    "BRANT_E_IMAGE": -25,
    "BRANT_RAM_ROM": 1,
    "BRANT_RAM_ZEROED": 2,
    "BRANT_RAM_FILE": 4,
    "BRANT_NO_SLOT": 0xFFFFFFFF,
    "BRANT_CLEAR_CHUNKED": 0,
    "BRANT_CLEAR_AT_SYNC": 1,
    "BRANT_KVM_AUTO": 0,
    "BRANT_KVM_GET_AND_CLEAR": 1,
    "BRANT_KVM_MANUAL_PROTECT": 2,
    "BRANT_KVM_INITIALLY_SET": 3,
    "BRANT_KVM_RING": 4,
    "BRANT_SWITCHED_BY_BRANT": 0,
    "BRANT_START_ALL": 0,
    "BRANT_START_CLEAN": 1,
    "BRANT_SYNC_RUNNING": 0,
    "BRANT_SYNC_STOPPED": 1,
}


class brant_ram_block(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("host", c_void_p),
        ("length", c_uint64),
        ("page_size", c_uint64),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("fd_offset", c_uint64),
    ]


class brant_slot(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("block", c_uint32),
        ("slot", c_uint32),
        ("offset", c_uint64),
        ("length", c_uint64),
        ("guest_address", c_uint64),
        ("kvm_flags", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_tracker_config(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("clearing", c_uint32),
        ("chunk_shift", c_uint32),
    ]


class brant_kvm_log(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("vm_fd", c_int32),
        ("mode", c_uint32),
        ("switched_by", c_uint32),
        ("reserved", c_uint32),
        ("ring_bytes", c_uint64),
        ("costs", c_void_p),
    ]


class brant_kvm_workload(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("memory_bytes", c_uint64),
        ("dirty_pages_per_second", c_uint64),
        ("limit_ms", c_uint64),
    ]


class brant_kvm_cost(Structure):
    _fields_ = [
        ("measured", c_uint64),
        ("first_write_ns", c_uint64),
        ("busy_write_ns", c_uint64),
        ("sync_page_ns", c_uint64),
        ("sync_gib_ns", c_uint64),
    ]


class brant_kvm_costs(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("recommended", c_uint64),
        ("memory_bytes", c_uint64),
        ("dirty_pages_per_second", c_uint64),
        ("untracked_write_ns", c_uint64),
        ("get_and_clear", brant_kvm_cost),
        ("manual_protect", brant_kvm_cost),
        ("initially_set", brant_kvm_cost),
        ("ring", brant_kvm_cost),
    ]


class brant_sync(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("found_pages", c_uint64),
        ("written_pages", c_uint64),
        ("observed_pages", c_uint64),
        ("pending_pages", c_uint64),
        ("time_ns", c_uint64),
        ("kvm_ns", c_uint64),
        ("kvm_pages", c_uint64),
        ("reported_ns", c_uint64),
        ("reported_pages", c_uint64),
        ("warnings", c_uint64),
        ("vhost_ns", c_uint64),
        ("vhost_pages", c_uint64),
        ("vfio_ns", c_uint64),
        ("vfio_pages", c_uint64),
        ("userfault_ns", c_uint64),
        ("userfault_pages", c_uint64),
    ]


class brant_run(Structure):
    _fields_ = [
        ("host", c_void_p),
        ("first_page", c_uint64),
        ("pages", c_uint64),
        ("block", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_consumer_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pending_pages", c_uint64),
        ("syncs", c_uint64),
        ("found_pages", c_uint64),
        ("put_back_pages", c_uint64),
        ("started", c_uint64),
        ("number", c_uint64),
    ]


class brant_tracker_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pending_pages", c_uint64),
        ("syncs", c_uint64),
        ("found_pages", c_uint64),
        ("clear_calls", c_uint64),
        ("cleared_pages", c_uint64),
        ("longest_clear_ns", c_uint64),
        ("put_back_pages", c_uint64),
        ("stray_marks", c_uint64),
        ("heap_bytes", c_uint64),
        ("chunk_shift", c_uint32),
        ("started", c_uint32),
        ("ballooned_pages", c_uint64),
        ("ballooned_written_pages", c_uint64),
        ("hinted_pages", c_uint64),
        ("stale_hints", c_uint64),
    ]


STRUCTURES: Tuple[type, ...] = (
    brant_ram_block,
    brant_slot,
    brant_tracker_config,
    brant_kvm_log,
    brant_kvm_workload,
    brant_kvm_cost,
    brant_kvm_costs,
    brant_sync,
    brant_run,
    brant_tracker_stats,
    brant_consumer_stats,
)

_handle = c_void_p
_place = POINTER(c_void_p)
_number = POINTER(c_uint64)

#: The result and the parameters of each function.
PROTOTYPES: Dict[str, Tuple[Any, List[Any]]] = {
    "brant_version": (c_char_p, []),
    "brant_has_feature": (c_int32, [c_char_p]),
    "brant_error_code": (c_int32, [_handle]),
    "brant_error_message": (c_char_p, [_handle]),
    "brant_error_free": (None, [_handle]),
    "brant_error_name": (c_char_p, [c_int32]),
    "brant_bitmap_new": (c_int32, [c_uint64, _place, _place]),
    "brant_bitmap_free": (None, [_handle]),
    "brant_bitmap_count": (c_uint64, [_handle]),
    "brant_bitmap_test": (c_int32, [_handle, c_uint64]),
    "brant_bitmap_set": (c_int32, [_handle, c_uint64, c_uint64, _number, _place]),
    "brant_bitmap_clear": (c_int32, [_handle, c_uint64, c_uint64, _number, _place]),
    "brant_bitmap_merge_words": (
        c_int32,
        [_handle, c_uint64, _number, c_uint64, _number, _place],
    ),
    "brant_bitmap_merge": (c_int32, [_handle, _handle, _number, _place]),
    "brant_bitmap_next_run": (c_int32, [_handle, c_uint64, c_uint64, _number, _number]),
    # The operations are for migrations and for a VMM that switches logging itself, and not for
    # Python.
    "brant_guest_new": (c_int32, [c_void_p, c_void_p, _place, _place]),
    "brant_guest_free": (None, [_handle]),
    "brant_guest_add_block": (
        c_int32,
        [_handle, POINTER(brant_ram_block), POINTER(c_uint32), _place],
    ),
    "brant_guest_find_block": (c_int32, [_handle, c_char_p, POINTER(c_uint32), _place]),
    "brant_guest_remove_block": (c_int32, [_handle, c_uint32, _place]),
    "brant_guest_add_slot": (c_int32, [_handle, POINTER(brant_slot), _place]),
    "brant_guest_remove_slot": (c_int32, [_handle, c_uint32, c_uint64, _place]),
    "brant_tracker_new": (c_int32, [_handle, POINTER(brant_tracker_config), _place, _place]),
    "brant_tracker_free": (None, [_handle]),
    "brant_tracker_add_kvm": (c_int32, [_handle, POINTER(brant_kvm_log), _place]),
    "brant_kvm_measure": (
        c_int32,
        [
            c_int32,
            POINTER(brant_kvm_workload),
            POINTER(brant_kvm_costs),
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            _place,
        ],
    ),
    "brant_tracker_add_userfault": (c_int32, [_handle, _place]),
    "brant_tracker_mark": (None, [_handle, c_uint64, c_uint64]),
    "brant_tracker_mark_block": (None, [_handle, c_uint32, c_uint64, c_uint64]),
    "brant_tracker_start": (c_int32, [_handle, c_uint32, _place]),
    "brant_tracker_stop": (c_int32, [_handle, _place]),
    "brant_tracker_sync": (c_int32, [_handle, c_uint32, POINTER(brant_sync), _place]),
    "brant_tracker_take": (
        c_int32,
        [_handle, POINTER(brant_run), c_size_t, POINTER(c_size_t), _place],
    ),
    "brant_tracker_put_back": (c_int32, [_handle, c_uint32, c_uint64, c_uint64, _place]),
    "brant_tracker_get_stats": (c_int32, [_handle, POINTER(brant_tracker_stats), _place]),
    "brant_consumer_new": (c_int32, [_handle, c_uint32, _place, _place]),
    "brant_consumer_free": (None, [_handle]),
    "brant_consumer_stop": (c_int32, [_handle, _place]),
    "brant_consumer_sync": (c_int32, [_handle, c_uint32, POINTER(brant_sync), _place]),
    "brant_consumer_take": (
        c_int32,
        [_handle, POINTER(brant_run), c_size_t, POINTER(c_size_t), _place],
    ),
    "brant_consumer_put_back": (c_int32, [_handle, c_uint32, c_uint64, c_uint64, _place]),
    "brant_consumer_get_stats": (c_int32, [_handle, POINTER(brant_consumer_stats), _place]),
}


def _places() -> Iterator[Tuple[str, str]]:
    """The places where the library may be, the best first, each with who names it."""
    told = os.environ.get("BRANT_LIBRARY")
    if told:
        yield told, "BRANT_LIBRARY"
        return
    root = Path(__file__).resolve().parents[3]
    built = root / "target" / "c" / "libbrant.so"
    if (root / "include" / "brant.h").exists() and built.exists():
        yield str(built), "the repository"
    yield "libbrant.so.0", "the system's loader"


def _load() -> Tuple[CDLL, str]:
    tried = []
    for path, who in _places():
        try:
            library = CDLL(path)
        except OSError as why:
            tried.append("%s (%s): %s" % (path, who, why))
            continue
        for name, (returned, taken) in PROTOTYPES.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise ImportError(
                    "%s (%s) has no function %s: it is older than this package, or no libbrant"
                    % (path, who, name)
                ) from None
            function.restype, function.argtypes = returned, taken
        return library, path
    raise ImportError(
        "libbrant.so was not found. Build it (`make lib` in brant's repository) or install it, or "
        "say where it is in BRANT_LIBRARY. Tried: " + "; ".join(tried)
    )


lib, _path = _load()


def library_path() -> str:
    """The library in use: a path, or the name that the system's loader was given."""
    return _path


def version() -> str:
    """The library's version, as "0.1.0"."""
    found: bytes = lib.brant_version()
    return found.decode()


def has_feature(name: str) -> bool:
    """Whether the library was built with a feature: "bitmap", "tracker", "kvm-log", "reported",
    "userfault", and others that the header names."""
    return bool(lib.brant_has_feature(text(name, "name")))


class BrantError(Exception):
    """A call that failed.

    ``code`` is one of the library's ``BRANT_E_*`` numbers, ``name`` its short name ("busy"),
    ``message`` the sentence that says what was expected and what was found.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.name: str = lib.brant_error_name(code).decode()
        self.message = message
        super().__init__(message or self.name)

    def __reduce__(self) -> Tuple[Any, ...]:
        return BrantError, (self.code, self.message)


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function whose last parameter is a place for an error, and raises that error."""
    error = c_void_p()
    code = function(*arguments, byref(error))
    if code == 0:
        return
    message = lib.brant_error_message(error).decode()
    lib.brant_error_free(error)
    raise BrantError(code, message)


def number(value: int, name: str, bits: int = 64) -> int:
    """Checks an unsigned number, because ctypes cuts one that does not fit without an error."""
    value = operator.index(value)
    if not 0 <= value < 1 << bits:
        raise ValueError("%s is a number from 0 to 2^%d - 1, not %d" % (name, bits, value))
    return value


def text(value: str, name: str) -> bytes:
    """Text for C."""
    if not isinstance(value, str):
        raise TypeError("%s is a str, not %s" % (name, type(value).__name__))
    encoded = value.encode()
    if b"\0" in encoded:
        raise ValueError("%s has a NUL in it" % name)
    return encoded


class Handle:
    """A handle of the library's that is freed once: by ``close``, or when nothing refers to it any
    more. While a call uses it, freeing waits for the end of that call.

    ``keep`` is an object that has to live as long as the library may use it."""

    def __init__(
        self,
        owner: object,
        what: str,
        value: int,
        free: Callable[[int], None],
        keep: Any = None,
    ) -> None:
        state = _State(what, value, free)
        self._state = state
        self.keep = keep
        # Also called at the interpreter's end, before modules are removed.
        self._finalizer = finalize(owner, state.close)

    @contextmanager
    def use(self) -> Iterator[int]:
        """The pointer, for the duration of a call."""
        # Another thread may close it meanwhile. Then the end of this call frees it.
        keep = self.keep
        value = self._state.enter()
        try:
            yield value
        finally:
            self._state.leave()
            del keep

    @property
    def closed(self) -> bool:
        return self._state.closed

    def close(self) -> None:
        self._state.close()
        self._finalizer.detach()
        self.keep = None


class _State:
    def __init__(self, what: str, value: int, free: Callable[[int], None]) -> None:
        self.what, self.value = what, value
        #: The thread that frees it empties this list. Taking the last element is one step, however
        #: the interpreter is interrupted.
        self.free = [free]
        self.closed = False
        self.users = 0
        # A finalizer or a signal handler can run anywhere, even in the middle of `enter` on the
        # same thread. So a user is counted before it looks, and a value to be freed is taken first.
        self.lock = threading.RLock()

    def enter(self) -> int:
        with self.lock:
            self.users += 1
            closed = self.closed
        if closed:
            self.leave()
            raise ValueError("this %s is closed" % self.what)
        return self.value

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            last = self.closed and self.users == 0
        if last:
            self._free()

    def close(self) -> None:
        with self.lock:
            if self.closed:
                return
            self.closed = True
            last = self.users == 0
        if last:
            self._free()

    def _free(self) -> None:
        try:
            free = self.free.pop()
        except IndexError:
            return
        free(self.value)


def made(function: Callable[..., int], *arguments: Any) -> int:
    """The handle that a function made. Its place is the parameter before the error's."""
    place = c_void_p()
    call(function, *arguments, byref(place))
    assert place.value is not None
    return place.value


def constant(name: str) -> int:
    """A constant of the header's, by its name without ``BRANT_``."""
    return CONSTANTS["BRANT_" + name]


def sized(structure: type, **fields: Any) -> Any:
    """A structure with its size and these fields set, and all others 0."""
    return structure(size=ctypes.sizeof(structure), **fields)


def choice(names: Dict[str, int], value: str, what: str) -> int:
    """The constant for the name of a setting."""
    if not isinstance(value, str):
        raise TypeError("%s is a str, not %s" % (what, type(value).__name__))
    try:
        return names[value]
    except KeyError:
        expected = ", ".join(repr(name) for name in names)
        raise ValueError("%s is one of %s, not %r" % (what, expected, value)) from None
