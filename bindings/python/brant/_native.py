"""The loaded library, and how it is called: errors, handles, and arguments that are checked.

What the header declares is in ``_declared.py``. Not for use from outside the package.
"""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from contextlib import contextmanager
from ctypes import CDLL, byref, c_void_p
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple, Type
from weakref import finalize

from ._declared import CONSTANTS, PROTOTYPES

#: Bytes of a page, the unit in which memory is tracked, counted and handed out.
PAGE_SIZE = 4096

def _places() -> Iterator[Tuple[str, str]]:
    """The places where the library may be, the best first, each with who names it."""
    told = os.environ.get("BRANT_LIBRARY")
    if told:
        yield told, "BRANT_LIBRARY"
        return
    beside = Path(__file__).resolve().parent / "libbrant.so"
    if beside.exists():
        yield str(beside), "the package"
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
        return type(self), (self.code, self.message)


class UnansweredError(BrantError):
    """A guest was handed over, and the destination has not said whether it runs there. The guest is
    paused here until :meth:`Outgoing.resolve`."""


class CancelledError(BrantError):
    """It was cancelled, here or by the peer."""


_KINDS: Dict[int, Type[BrantError]] = {
    CONSTANTS["BRANT_E_UNANSWERED"]: UnansweredError,
    CONSTANTS["BRANT_E_CANCELLED"]: CancelledError,
}


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function whose last parameter is a place for an error, and raises that error."""
    error = c_void_p()
    code = function(*arguments, byref(error))
    if code == 0:
        return
    message = lib.brant_error_message(error).decode()
    lib.brant_error_free(error)
    raise _KINDS.get(code, BrantError)(code, message)


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
