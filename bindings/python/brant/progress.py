"""Shows how far a migration, a save or a restore is: by tqdm when it is there, else a line of text."""

from __future__ import annotations

import importlib
import sys
from typing import IO, Any, Optional

from ._job import Job


def follow(job: Job, *, file: Optional[IO[str]] = None, bar: Any = None) -> None:
    """Waits as :meth:`Outgoing.wait` does, and shows the progress on ``file`` (stderr) meanwhile.

    ``bar`` is a progress bar with tqdm's interface, whose total is 100; None makes one of tqdm's if
    the package is here, and otherwise a line that is written anew."""
    out = sys.stderr if file is None else file
    if bar is None:
        try:
            module = importlib.import_module("tqdm")
            bar = module.tqdm(total=100, unit="%", file=out, bar_format="{l_bar}{bar}| {postfix}")
        except ImportError:
            bar = _Line(out)
    shown = 0.0
    try:
        while True:
            over = job.wait(100)
            shown = _show(job, bar, shown)
            if over:
                return
    finally:
        bar.close()


def _show(job: Any, bar: Any, shown: float) -> float:
    now = job.stats()
    progress = float(now.progress) / 100
    speed = getattr(now, "throughput", None)
    left = getattr(now, "time_left_ns", None)
    words = [now.state]
    if speed:
        words.append("%.0f MB/s" % (speed / 1e6))
    if left:
        words.append("%.1f s left" % (left / 1e9))
    bar.set_postfix_str(", ".join(words), refresh=False)
    bar.update(progress - shown)
    return progress


class _Line:
    """A progress bar without tqdm."""

    def __init__(self, out: IO[str]) -> None:
        self.out, self.progress, self.words = out, 0.0, ""

    def set_postfix_str(self, words: str, refresh: bool = True) -> None:
        self.words = words

    def update(self, more: float) -> None:
        self.progress += more
        self.out.write("\r%6.2f %%  %-50s" % (self.progress, self.words))
        self.out.flush()

    def close(self) -> None:
        self.out.write("\n")
