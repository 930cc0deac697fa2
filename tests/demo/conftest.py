"""What the tests of the example VMM's program share: build/minivmm in a terminal of any
width, and what that terminal then shows. `make test` builds it first.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MINIVMM = os.environ.get("MINIVMM") or os.path.join(ROOT, "build", "minivmm")
# No test takes longer than this, on a machine that is busy ten times over.
SECONDS = 60.0


class Late(AssertionError):
    """Something was awaited and did not come."""


class Program:
    """minivmm in a terminal of its own; everything it writes is kept."""

    def __init__(self, *arguments: str, columns: int = 80) -> None:
        self.columns = columns
        self.text = ""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        # A session of its own, whose terminal this is: Ctrl-C typed there is a signal here.
        self.child = subprocess.Popen(
            [MINIVMM, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.ends = time.monotonic() + SECONDS

    def _read(self) -> bool:
        """Some more of what it writes; False: there will be no more."""
        left = self.ends - time.monotonic()
        if left <= 0 or not select.select([self.master], [], [], left)[0]:
            raise Late("it did not come within %.0f s:\n%s" % (SECONDS, self.text[-2000:]))
        try:
            more = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the terminal any more
            return False
        self.text += more.decode()
        return bool(more)

    def until(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Waits until it has written `pattern` (at `after` in the text, or later)."""
        while True:
            found = re.compile(pattern).search(self.text, after)
            if found:
                return found
            if not self._read():
                raise AssertionError("it ended and never wrote %r:\n%s" % (pattern, self.text[-2000:]))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Waits for its end; its exit status."""
        while self._read():
            pass
        return self.child.wait(max(0.1, self.ends - time.monotonic()))

    def close(self) -> None:
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def frames(self) -> list[str]:
        """Each text that was at the bottom line, in order."""
        return [part.split("\r\n")[0] for part in self.text.split("\r\x1b[K")[1:]]

    def bars(self) -> list[str]:
        return [frame for frame in self.frames() if re.match(r"\[[#-]+\] ", frame)]

    def screen(self) -> list[str]:
        """The rows that a terminal of this width shows in the end, as many as there are."""
        return rows(self.text, self.columns)


def rows(text: str, columns: int) -> list[str]:
    """What a terminal makes of `text`: carriage return, newline, erase to the end of the line,
    and a character past the last column begins a new row."""
    shown, row, column = [[]], 0, 0  # type: tuple[list[list[str]], int, int]
    at = 0
    while at < len(text):
        if text.startswith("\x1b[K", at):
            del shown[row][column:]
            at += 3
            continue
        c = text[at]
        at += 1
        if c == "\r":
            column = 0
        elif c == "\n":
            row += 1
        else:
            assert c >= " " and c != "\x7f", "control character %r at %d" % (c, at)
            if column == columns:
                row, column = row + 1, 0
            line = shown[row] if row < len(shown) else []
            if row == len(shown):
                shown.append(line)
            line.extend(" " * (column + 1 - len(line)))
            line[column] = c
            column += 1
        if row == len(shown):
            shown.append([])
    return ["".join(line).rstrip() for line in shown]


@pytest.fixture
def minivmm() -> Iterator[object]:
    """Starts minivmm; whatever was started is gone after the test."""
    started: list[Program] = []

    def start(*arguments: str, columns: int = 80) -> Program:
        program = Program(*arguments, columns=columns)
        started.append(program)
        return program

    yield start
    for program in started:
        program.close()


def quietly(*arguments: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs minivmm without a terminal, to its end."""
    return subprocess.run([MINIVMM, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=seconds, start_new_session=True)


def guest() -> list[str]:
    """A small guest of whatever kind can be had."""
    kind = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "process"
    return ["--kind", kind, "--memory", "64M"]


def listening(minivmm: object, *more: str, columns: int = 80) -> tuple[Program, str]:
    """A `minivmm receive`, and where it listens."""
    receiver = minivmm("receive", *guest(), "--listen", "tcp:127.0.0.1:0", *more,  # type: ignore[operator]
                       columns=columns)
    where = receiver.until(r"waiting on (tcp:127\.0\.0\.1:\d+)")[1]
    return receiver, where
