"""What a migration, a save and a restore have in common: they go on by themselves, are watched, waited
for, cancelled and closed."""

from __future__ import annotations

import ctypes
import time
from ctypes import byref
from typing import Any, Optional, Type

from . import _native as native
from ._native import BrantError, constant
from .guest import _Blocks, _Closes, handle_of

#: Milliseconds that one call waits, so that Ctrl-C and a close by another thread are noticed.
_SLICE_MS = 100


class Job(_Closes):
    """Something that goes on by itself once it is started."""

    #: The beginning of its functions' names.
    _what: str
    #: The name in messages.
    _name: str

    def _make(self, blocks: _Blocks, of: native.Handle, params: Any) -> None:
        new = getattr(native.lib, self._what + "new")
        with of.use() as value:
            made = native.made(new, value, None if params is None else byref(params))
        free = getattr(native.lib, self._what + "free")
        self._handle = handle_of(self, self._name, made, free, blocks, joins=True)

    def _call(self, name: str, *arguments: Any) -> None:
        with self._handle.use() as handle:
            native.call(getattr(native.lib, self._what + name), handle, *arguments)

    def cancel(self) -> None:
        """Ends it, and returns when that is done. Inside an operation it only asks. One that is over
        stays as it is. From any thread."""
        self._call("cancel")

    def fileno(self) -> int:
        """An eventfd that becomes readable when the figures have changed, for ``select`` and
        ``poll``; :func:`os.read` of 8 bytes resets it. Do not close it."""
        with self._handle.use() as handle:
            return int(getattr(native.lib, self._what + "event_fd")(handle))

    def wait(self, timeout_ms: Optional[int] = None) -> bool:
        """Waits until it is over: True when it has succeeded, False when it is still in progress
        after ``timeout_ms`` milliseconds. A failure raises its :class:`BrantError`, whose
        ``__cause__`` is the exception of an operation, if that was the reason. Other threads run
        meanwhile, and Ctrl-C ends the wait (and not what is waited for)."""
        return self._wait("wait", timeout_ms)

    def _wait(self, name: str, timeout_ms: Optional[int]) -> bool:
        if timeout_ms is None:
            ends = None
        else:
            ends = time.monotonic() + native.number(timeout_ms, "timeout_ms") / 1000
        operations = self._blocks.operations
        while True:
            left = _SLICE_MS
            if ends is not None:
                left = max(0, min(left, int((ends - time.monotonic()) * 1000 + 0.999)))
            try:
                self._call(name, left)
                return True
            except BrantError as why:
                if why.code == constant("E_PENDING"):
                    if ends is not None and time.monotonic() >= ends:
                        return False
                    continue
                failed = None if operations is None else operations.failed
                if why.code == constant("E_VMM") and failed is not None:
                    raise why from failed
                raise

    def stats(self) -> Any:
        """The figures as they are now, of the kind's own class."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not. Inside an operation it has not."""
        try:
            return self.wait(0)
        except BrantError as why:
            if why.code == constant("E_CALLBACK"):
                return False
            # One that was never started, or one that has failed for a state.
            return why.code != constant("E_STATE") or self.stats().state != "idle"

    def _text(self, name: str, *arguments: Any) -> str:
        """The text of a function with a buffer, its capacity and the room that is needed."""
        needed = ctypes.c_size_t(4096)
        while True:
            room = ctypes.create_string_buffer(needed.value)
            before = needed.value
            self._call(name, *arguments, room, before, byref(needed))
            if needed.value <= before:
                return room.value.decode()

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Any,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "<brant.%s" % type(self).__name__
        if self.closed:
            return name + ", closed>"
        try:
            now = self.stats()
        except (BrantError, ValueError):
            return name + ">"
        return "%s: %s, %.2f %%>" % (name, now.state, now.progress / 100)
