"""Reads an events file (:mod:`brant.record` says what is in it) into what pictures and text need."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

#: The parts of the downtime: name, the promised figure, the measured one.
PARTS = (
    ("pause", "promised_pause_ns", "pause_ns"),
    ("save", "promised_save_ns", "save_ns"),
    ("sync", "promised_sync_ns", "last_sync_ns"),
    ("memory", "promised_memory_ns", "memory_ns"),
    ("state", "promised_state_ns", "state_sent_ns"),
    ("load", "promised_load_ns", "load_ns"),
    ("round trips", "promised_round_trips_ns", "round_trips_ns"),
    ("release", "promised_release_ns", "release_ns"),
    ("run", "promised_run_ns", "run_ns"),
)


class EventsError(ValueError):
    """A file that is no events file; the text has the line and what was expected."""


@dataclass
class Recording:
    """A migration as an events file has it. Times are seconds from the beginning of the file."""

    #: The name of the file.
    name: str
    #: What the first line says of it.
    what: str = ""
    #: The figures, each with its time.
    stats: List[Tuple[float, Dict[str, Any]]] = field(default_factory=list)
    #: The events: time, kind, message.
    events: List[Tuple[float, str, str]] = field(default_factory=list)
    #: The library's code at the end; None when the file ends before.
    error: Optional[int] = None
    #: The error's message.
    message: str = ""

    @property
    def last(self) -> Dict[str, Any]:
        """The last figures."""
        return self.stats[-1][1] if self.stats else {}

    def series(self, name: str, scale: float = 1.0) -> Tuple[List[float], List[float]]:
        """One figure over time, without the times at which it was not known."""
        found = [(t, s[name]) for t, s in self.stats if isinstance(s.get(name), (int, float))]
        return [t for t, _ in found], [value * scale for _, value in found]

    def phases(self) -> List[Tuple[str, float, float]]:
        """The states of the migration: name, begin, end."""
        found: List[Tuple[str, float, float]] = []
        for time, figures in self.stats:
            state = str(figures.get("state", "?"))
            if found and found[-1][0] == state:
                found[-1] = (state, found[-1][1], time)
            else:
                if found:
                    found[-1] = (found[-1][0], found[-1][1], time)
                found.append((state, time, time))
        return found

    def lanes(self) -> List[Tuple[List[float], List[float]]]:
        """The rate of each channel over time, bytes a second."""
        count = max((len(s.get("lanes") or ()) for _, s in self.stats), default=0)
        found = []
        for n in range(count):
            times: List[float] = []
            rates: List[float] = []
            before: Optional[Tuple[float, int]] = None
            for time, figures in self.stats:
                lanes = figures.get("lanes") or ()
                if n >= len(lanes):
                    continue
                sent = int(lanes[n].get("wire_bytes", 0))
                if before is not None and time > before[0]:
                    times.append(time)
                    rates.append(max(0, sent - before[1]) / (time - before[0]))
                before = (time, sent)
            found.append((times, rates))
        return found

    def downtime(self) -> List[Tuple[str, float, float]]:
        """The parts of the downtime: name, milliseconds promised, milliseconds measured."""
        return [
            (name, (self.last.get(promised) or 0) / 1e6, (self.last.get(measured) or 0) / 1e6)
            for name, promised, measured in PARTS
        ]


def parse(lines: Iterable[str], name: str) -> Recording:
    """A recording from the lines of a file."""
    found = Recording(name)
    number = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            kind, time = item["kind"], item["time_ns"] / 1e9
        except (ValueError, KeyError, TypeError) as why:
            raise EventsError(
                "%s, line %d: expected an object with kind and time_ns, as brant.Recorder writes "
                "them (%s)" % (name, number, why)
            ) from None
        if kind == "begin":
            if item.get("version", 1) != 1:
                raise EventsError(
                    "%s has version %s of the format; this package reads version 1"
                    % (name, item["version"])
                )
            found.what = str(item.get("what", ""))
        elif kind == "stats":
            found.stats.append((time, item))
        elif kind == "event":
            found.events.append((time, str(item.get("event")), str(item.get("message"))))
        elif kind == "end":
            found.error, found.message = item.get("error"), str(item.get("message", ""))
    if not found.stats:
        raise EventsError("%s has no figures of a migration in %d lines" % (name, number))
    return found


def read(path: Union[str, "os.PathLike[str]"]) -> Recording:
    """A recording from a file."""
    with open(path, encoding="utf-8") as file:
        return parse(file, os.path.basename(os.fspath(path)))


def outcome(recording: Recording) -> str:
    """How a recorded migration ended, in a sentence."""
    last = recording.last
    sent = (last.get("wire_bytes") or 0) / (1 << 20)
    took = (last.get("elapsed_ns") or 0) / 1e9
    figures = "%.1f MiB sent in %.2f s, %d passes" % (sent, took, last.get("pass") or 0)
    if recording.error is None:
        return "not over when the file ends: " + figures
    if recording.error:
        return "failed (%s): %s" % (recording.message, figures)
    promised = last.get("promised_downtime_ns")
    return "completed: %s, downtime %.1f ms (%s, limit %.0f ms)" % (
        figures,
        (last.get("downtime_ns") or 0) / 1e6,
        "nothing promised" if promised is None else "promised %.1f ms" % (promised / 1e6),
        (last.get("downtime_limit_ns") or 0) / 1e6,
    )


def text(recording: Recording, width: int = 60) -> List[str]:
    """A recording as lines of text: what happened when, and the parts of the downtime."""
    lines = ["%s: %s" % (recording.name, outcome(recording)), ""]
    happened = [(t, "  %-12s %s" % (kind, message)) for t, kind, message in recording.events]
    if not happened:
        happened = [(begin, "  state        %s" % name) for name, begin, _ in recording.phases()]
    lines += ["%9.3f s%s" % one for one in sorted(happened)]
    if recording.last.get("downtime_ns"):
        parts = recording.downtime()
        most = max([max(promised, measured) for _, promised, measured in parts] + [1e-9])
        lines += ["", "downtime       promised ms  measured ms"]
        for name, promised, measured in parts:
            bar = "#" * int(measured / most * (width - 40) + 0.5)
            lines.append("  %-11s %12.3f %12.3f  %s" % (name, promised, measured, bar))
    return [line.rstrip() for line in lines]
