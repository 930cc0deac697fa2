"""What a person sees: one bar that fits the terminal, and figures that are true."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from conftest import Program, guest, listening, quietly

# Slow enough that the bar is renewed some times: 64 MiB, half of it filled, in about a second.
# The guest writes a tenth of that, so that an end is in sight.
SLOW = ["--after", "0", "--bandwidth", "40M", "--rate", "1000"]


def check_bar(program: Program) -> None:
    """A bar that was renewed in place: it never wrapped, and left one row and nothing else."""
    bars = program.bars()
    assert len(bars) >= 2, program.text[-2000:]
    assert len(set(bars)) >= 2, "it never moved"
    # What the engine has to say meanwhile is a line of its own, which may wrap.
    for bar in bars:
        assert len(bar) < program.columns, "%d columns: %r" % (program.columns, bar)
    screen = program.screen()
    shown = [row for row in screen if re.match(r"\[[#-]+\] ", row)]
    assert shown == [bars[-1]], "\n".join(screen)
    # A row is a whole text of the program's or, beyond the width, the rest of one.
    whole = "".join(line[:200] for line in screen)
    assert whole.count("%") == 1, "rubble:\n" + "\n".join(screen)


@pytest.mark.parametrize("columns", [250, 100, 80, 60, 40, 24])
def test_the_bar_fits_the_terminal_and_leaves_one_line(minivmm: Callable[..., Program], columns: int) -> None:
    demo = minivmm("demo", *guest(), *SLOW, columns=columns)
    assert demo.end() == 0, demo.text[-2000:]
    check_bar(demo)
    assert "100.0 %" in demo.bars()[-1]
    assert all("done" in bar for bar in demo.bars() if "100.0 %" in bar and columns >= 40), "too early"


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_receive_shows_the_bar_too(minivmm: Callable[..., Program], columns: int) -> None:
    receiver, where = listening(minivmm, columns=columns)
    sent = minivmm("send", *guest(), "--to", where, *SLOW, columns=columns)
    assert sent.end() == 0, sent.text[-2000:]
    receiver.until("page writes counted")
    # On a terminal the guest runs until somebody ends it.
    receiver.until(r"page writes, \d+ a second")
    receiver.type("\x03")
    assert receiver.end() == 0, receiver.text[-2000:]
    check_bar(receiver)
    assert "100.0 %" in receiver.bars()[-1]
    check_bar(sent)


def test_a_terminal_too_narrow_for_a_bar_shows_what_fits(minivmm: Callable[..., Program]) -> None:
    demo = minivmm("demo", *guest(), *SLOW, columns=8)
    assert demo.end() == 0, demo.text[-2000:]
    assert demo.frames() and all(len(frame) < 8 for frame in demo.frames())


def test_without_a_terminal_there_are_lines_and_no_escapes() -> None:
    ended = quietly("demo", *guest(), *SLOW)
    assert ended.returncode == 0, ended
    assert "\r" not in ended.stdout and "\x1b" not in ended.stdout
    assert re.search(r"^ *\d+\.\d %  pass \d+  sending ", ended.stdout, re.M)


def test_what_is_not_known_yet_is_shown_as_unknown() -> None:
    ended = quietly("demo", *guest(), "--after", "0", "--workload", "idle", "--bandwidth", "16M")
    assert ended.returncode == 0, ended
    first = next(line for line in ended.stdout.splitlines() if " %  " in line)
    assert "dirtied ?" in first and "left ?" in first and "downtime ?" in first


def test_a_guest_that_writes_flat_out_is_never_shown_as_idle() -> None:
    # Whether it gets there is another matter: the guest is faster than the cap.
    ended = quietly("demo", *guest(), "--after", "0", "--rate", "0", "--bandwidth", "40M", "--timeout", "4")
    assert ended.returncode in (0, 1), ended
    rates = re.findall(r"dirtied (\?|[\d.]+ \w*B/s)", ended.stdout)
    known = [rate for rate in rates if rate != "?"]
    assert known and "0 B/s" not in known, ended.stdout
    # Nor is an end promised that never comes: weeks are no forecast.
    assert not re.search(r"left \d+ d", ended.stdout), ended.stdout


def test_the_last_line_names_the_limit_beside_the_downtime(minivmm: Callable[..., Program]) -> None:
    ended = quietly("demo", *guest(), "--downtime", "1234")
    assert ended.returncode == 0, ended
    last = ended.stdout.splitlines()[-1]
    assert re.search(r"downtime \d+\.\d ms \(limit 1234 ms\)$", last), last
    receiver, where = listening(minivmm)
    ended = quietly("send", *guest(), "--to", where, "--downtime", "777")
    assert ended.returncode == 0, ended
    assert re.search(r"downtime \d+\.\d ms \(limit 777 ms\)$", ended.stdout.splitlines()[-1])
    receiver.until("runs here")


@pytest.mark.parametrize("options, first", [
    (["--vcpus", "3"], "with 3 vCPUs writes up to 20000 pages a second (sweep)"),
    (["--workload", "hot", "--rate", "0"], "with 1 vCPU writes as many pages as it can (hot)"),
    (["--workload", "idle"], "with 1 vCPU writes nothing (idle)"),
])
def test_what_the_guest_does_is_said_truly(options: list[str], first: str) -> None:
    ended = quietly("demo", *guest(), *options, "--downtime", "3000")
    assert ended.returncode == 0, ended
    assert first in ended.stdout.splitlines()[0], ended.stdout
    rate = re.search(r"^the guest runs: (\d+) page writes a second$", ended.stdout, re.M)
    assert rate, ended.stdout
    if "idle" in options:
        assert int(rate[1]) == 0
    elif "hot" in options:
        assert int(rate[1]) > 0
    else:
        # A busy machine may keep it from writing that much, and nothing makes it write more
        # (but for what it catches up on, and what it writes while somebody looks).
        assert 0 < int(rate[1]) < 30000


@pytest.mark.skipif(guest()[1] != "kvm", reason="/dev/kvm cannot be opened")
@pytest.mark.parametrize("options, found", [
    (["--log", "get-and-clear"], r"KVM's dirty log \(get and clear\)"),
    (["--log", "manual"], r"KVM's dirty log \(manual protect\)"),
    (["--log", "initially-set"], r"KVM's dirty log \(manual protect, initially set\)"),
    (["--log", "auto"], r"KVM's dirty (log|rings) \(.+\)"),
    (["--log", "measured"], r"KVM's dirty (log|rings) \(.+\)"),
    (["--ring", "--vcpus", "2"], r"KVM's dirty rings \(2, each of \d+ entries\)"),
])
def test_the_kind_of_log_is_said_truly(options: list[str], found: str) -> None:
    ended = quietly("demo", *guest(), *options)
    assert ended.returncode == 0, ended
    assert re.search(r", found by " + found + ";", ended.stdout), ended.stdout


def test_the_guest_does_at_the_destination_what_it_did_at_the_source(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    ended = quietly("send", *guest(), "--to", where, "--rate", "3000", "--workload", "random")
    assert ended.returncode == 0, ended
    for _ in range(3):
        rate = receiver.until(r"page writes, (\d+) a second", len(receiver.text))[1]
        assert 0 < int(rate) < 4500
