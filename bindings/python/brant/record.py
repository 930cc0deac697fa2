"""Writes what happens in a migration to an events file: JSON lines, for pictures and for programs.

Each line is an object. ``time_ns`` counts from the beginning of the file, and ``kind`` is

- ``"begin"``, the first line: ``version`` of the format (1), ``library`` and ``what`` was recorded;
- ``"stats"``: the figures as :meth:`Outgoing.json` has them, and ``lanes``, a list of the channels'
  figures; written when the figures have changed;
- ``"event"``: ``event``, its kind, and ``message``;
- ``"end"``, the last line: ``error``, the library's code (0: it has succeeded), and ``message``.

Any program may write such a file. A reader ignores fields and kinds that it does not know.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict
from typing import IO, Any, Dict, Optional, Union

from ._native import BrantError, constant, version
from .migration import Incoming, Outgoing
from .operations import Event

VERSION = 1


class Recorder:
    """Records one migration to a file.

    ::

        with brant.Recorder("migration.jsonl") as recorder:
            guest = brant.Guest(pause=stop, resume=go, event=recorder.event)
            ...
            recorder.watch(outgoing)           # before or after its start
            outgoing.start(...)
            outgoing.wait()

    ``event`` is for the operation of that name; without it the file has figures only. A thread
    writes the figures, about 20 times a second at most. Leaving the with-block waits until the last
    figures of a migration that is over are written.
    """

    def __init__(self, file: Union[str, "os.PathLike[str]", IO[str]], *, what: str = "") -> None:
        if isinstance(file, (str, os.PathLike)):
            self._file: IO[str] = open(file, "w", encoding="utf-8")
            self._mine = True
        else:
            self._file, self._mine = file, False
        self._lock = threading.Lock()
        self._start = time.monotonic_ns()
        self._thread: Optional[threading.Thread] = None
        self._stop = threading.Event()
        self._write("begin", version=VERSION, library=version(), what=what)

    def _write(self, kind: str, **fields: Any) -> None:
        line = {"time_ns": time.monotonic_ns() - self._start, "kind": kind, **fields}
        text = json.dumps(line, separators=(",", ":"))
        with self._lock:
            if not self._file.closed:
                self._file.write(text + "\n")

    def event(self, event: Event) -> None:
        """The operation ``event``."""
        self._write("event", event=event.kind, message=event.message)

    def watch(self, migration: Union[Outgoing, Incoming]) -> None:
        """Begins to write the figures of a migration, on a thread."""
        if self._thread is not None:
            raise ValueError("a recorder watches one migration")
        self._thread = threading.Thread(
            target=self._watch, args=(migration,), name="brant-record", daemon=True
        )
        self._thread.start()

    def _watch(self, migration: Union[Outgoing, Incoming]) -> None:
        before: Dict[str, Any] = {}
        try:
            while True:
                over = migration.over
                figures = migration.json()
                lanes = [asdict(migration.lane_stats(n)) for n in range(migration.channels)]
                while len(lanes) > 1 and lanes[-1]["wire_bytes"] == 0:
                    lanes.pop()
                if {**figures, "elapsed_ns": 0} != before:
                    before = {**figures, "elapsed_ns": 0}
                    self._write("stats", **figures, lanes=lanes)
                if over or self._stop.is_set():
                    break
                self._stop.wait(0.05)
            try:
                ended = migration.wait(0)
                if ended:
                    self._write("end", error=0, message="")
            except BrantError as why:
                self._write("end", error=why.code, message=why.message)
        except ValueError:
            # It was closed meanwhile, which cancels it.
            self._write("end", error=constant("E_CANCELLED"), message="it was closed")

    def close(self) -> None:
        """Ends the recording. Again is fine."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            if self._mine:
                self._file.close()
            elif not self._file.closed:
                self._file.flush()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *of: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<brant.Recorder to %r>" % getattr(self._file, "name", self._file)
