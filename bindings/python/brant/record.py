"""Has what happens in a migration written to an events file: JSON lines, for pictures and for programs.

The library writes them (``brant_outgoing_record``); ``docs/recording.md`` of its repository has all
fields. Each line is an object. ``time_ns`` counts from the beginning of the recording, and ``kind`` is

- ``"begin"``, the first line: ``version`` of the format (1), ``library``, ``what`` was recorded and
  ``interval_ns``;
- ``"stats"``: the figures as :meth:`Outgoing.json` has them, ``lanes``, a list of the channels'
  figures, and ``dropped``, how many lines were dropped so far; written when the figures have changed;
- ``"event"``: ``event``, its kind, and ``message``;
- ``"end"``, the last line: ``error``, the library's code (0: it has succeeded), ``message``, ``dropped``.

Any program may write such a file. A reader ignores fields and kinds that it does not know.
"""

from __future__ import annotations

import io
import os
import threading
from ctypes import byref
from typing import IO, Any, Optional, Union

from . import _declared as declared
from . import _native as native
from ._native import BrantError, constant
from .migration import Incoming, Outgoing

VERSION: int = constant("RECORD_VERSION")


class Recorder:
    """Records one migration to a file.

    ::

        with brant.Recorder("migration.jsonl") as recorder:
            recorder.watch(outgoing)           # before or after its start
            outgoing.start(...)
            outgoing.wait()

    The library looks at the figures every ``interval_ms`` milliseconds (10 to 3600000), and hears every
    event. It never holds up the migration: lines that the file does not take are dropped, and
    :attr:`dropped` has their number when the recorder is closed. Leaving the with-block waits until the
    last figures of a migration that is over are written. ``file`` is a path, or anything with a
    ``write`` for text; what has a descriptor is written to directly.
    """

    #: Lines that were written, and that were dropped; known when the recorder is closed.
    lines: Optional[int] = None
    dropped: Optional[int] = None

    def __init__(
        self,
        file: Union[str, "os.PathLike[str]", IO[str]],
        *,
        what: str = "",
        interval_ms: int = 50,
    ) -> None:
        if isinstance(file, (str, os.PathLike)):
            self._file: IO[str] = open(file, "w", encoding="utf-8")
            self._mine = True
        else:
            self._file, self._mine = file, False
        self._what = native.text(what, "what")
        self._interval = native.number(interval_ms, "interval_ms")
        self._watched: Optional[Union[Outgoing, Incoming]] = None
        #: Copies what comes through a pipe to a file without a descriptor.
        self._copying: Optional[threading.Thread] = None

    def watch(self, migration: Union[Outgoing, Incoming]) -> None:
        """Begins to record a migration: its figures and its events from now on."""
        if self._watched is not None:
            raise ValueError("a recorder watches one migration")
        if not isinstance(migration, (Outgoing, Incoming)):
            raise TypeError("a migration is recorded, not %s" % type(migration).__name__)
        try:
            self._file.flush()
            fd, pipe = self._file.fileno(), None
        except (AttributeError, io.UnsupportedOperation):
            pipe, fd = os.pipe()
        try:
            migration._call("record", fd, self._interval, self._what)
        except BaseException:
            if pipe is not None:
                os.close(pipe)
            raise
        finally:
            if pipe is not None:
                # The library has one of its own.
                os.close(fd)
        self._watched = migration
        if pipe is not None:
            self._copying = threading.Thread(
                target=self._copy, args=(pipe,), name="brant-record", daemon=True
            )
            self._copying.start()

    def _copy(self, pipe: int) -> None:
        with open(pipe, encoding="utf-8") as lines:
            for line in lines:
                self._file.write(line)

    def close(self) -> None:
        """Ends the recording. Again is fine. Raises the :class:`BrantError` of a write that failed."""
        watched, self._watched = self._watched, None
        try:
            if watched is not None:
                self._end(watched)
        finally:
            if self._copying is not None and self._copying is not threading.current_thread():
                self._copying.join()
            if self._mine:
                self._file.close()
            elif not self._file.closed:
                self._file.flush()

    def _end(self, watched: Union[Outgoing, Incoming]) -> None:
        recorded = native.sized(declared.brant_recorded)
        try:
            watched._call("end_record", byref(recorded))
        except BrantError as why:
            if why.code == constant("E_STATE"):
                return
            self.lines, self.dropped = recorded.lines, recorded.dropped
            raise
        except ValueError:
            # It was closed meanwhile, which ended the recording.
            return
        self.lines, self.dropped = recorded.lines, recorded.dropped

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *of: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<brant.Recorder to %r>" % getattr(self._file, "name", self._file)
