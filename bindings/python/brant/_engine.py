"""Handles whose free waits for a thread of the library's, which may be inside an operation in Python.

Example: a program drops a migration that is running. The free cancels it and waits for its thread,
whose last call is the operation ``resume``. So the free must not run inside an operation, where it
would wait for itself. It must have ended before the interpreter does, because no operation can be
called after that.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Callable, List, Optional
from weakref import finalize

from . import _native as native
from ._declared import CONSTANTS
from ._native import BrantError
from .operations import Operations


class EngineHandle(native.Handle):
    """A handle of a guest with operations. ``joins``: its free waits for a thread that calls them."""

    def __init__(
        self,
        owner: object,
        what: str,
        value: int,
        free: Callable[[int], Any],
        keep: Any,
        operations: Optional[Operations],
        *,
        joins: bool,
    ) -> None:
        state = _EngineState(what, value, free, keep, operations, joins)
        self._state: _EngineState = state
        self.keep = keep
        # Also called at the interpreter's end, before modules are removed.
        self._finalizer = finalize(owner, state.drop)


class _EngineState(native._State):
    def __init__(
        self,
        what: str,
        value: int,
        free: Callable[[int], Any],
        keep: Any,
        operations: Optional[Operations],
        joins: bool,
    ) -> None:
        super().__init__(what, value, free)
        #: As long as the library may access memory or call an operation.
        self.keep = keep
        self.operations, self.joins = operations, joins
        self.freed = threading.Event()
        self.process = os.getpid()
        #: The threads inside calls, each as often as it is.
        self.threads: List[int] = []

    def enter(self) -> int:
        self.threads.append(threading.get_ident())
        return super().enter()

    def leave(self) -> None:
        try:
            self.threads.remove(threading.get_ident())
        except ValueError:
            pass
        super().leave()

    def _inside(self) -> bool:
        """Whether this thread is inside an operation of the guest."""
        return self.operations is not None and self.operations.inside()

    def close(self) -> None:
        """Frees it, and returns when it is freed: at once, or when another thread's call ends."""
        inside = self._inside()
        if inside and self.joins and not self.closed:
            raise BrantError(
                CONSTANTS["BRANT_E_CALLBACK"],
                "this %s cannot be closed inside an operation of its guest: close it when the "
                "operation has returned" % self.what,
            )
        super().close()
        if self.operations is None or inside or threading.get_ident() in self.threads:
            return
        self.freed.wait()

    def drop(self) -> None:
        """Nothing refers to its owner any more, or the interpreter ends."""
        if os.getpid() != self.process:
            return  # After a fork its threads are the parent's.
        if self.joins and self._inside():
            # The collector ran inside an operation.
            try:
                threading.Thread(target=self.close, name="brant-close").start()
            except RuntimeError:
                pass  # The interpreter ends; the process ends with the thread.
            return
        self.close()

    def _free(self) -> None:
        try:
            free = self.free.pop()
        except IndexError:
            return
        code: Any = 0
        try:
            code = free(self.value)
        finally:
            # An interrupt of the wait for the end is raised here, when the library has freed it.
            if code == CONSTANTS["BRANT_E_CALLBACK"]:
                # Inside a callback that is none of the guest's operations.
                self.free.append(free)
                threading.Thread(target=self._free, name="brant-close").start()
            else:
                self.keep = None
                self.freed.set()
