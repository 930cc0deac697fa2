"""However a migration ends, the program says where the guest runs, and there it does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable

from conftest import Program, guest, listening, quietly

# It would take minutes: each of these ends in the middle.
ENDLESS = ["--after", "0", "--bandwidth", "64k"]


def counted(program: Program) -> int:
    """The next count of page writes that the bottom line shows."""
    return int(program.until(r"(\d+) page writes, \d+ a second", len(program.text))[1])


def test_ctrl_c_at_send_cancels_and_the_guest_runs_on(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    sent = minivmm("send", *guest(), "--to", where, *ENDLESS)
    sent.until(r"\] +[1-9]\d*\.\d %|\] +0\.[1-9] %")
    sent.type("\x03")
    sent.until("the migration is cancelled: the guest runs on here")
    sent.until("the guest ran on here: ")
    first, second = counted(sent), counted(sent)
    assert second > first > 0
    assert sent.child.poll() is None
    sent.type("\x03")
    assert sent.end() == 128 + signal.SIGINT
    # The other side knows too, and never ran it.
    assert receiver.end() == 1
    assert "the guest never ran here" in receiver.text


def test_a_request_to_terminate_cancels_and_ends(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    sent = minivmm("send", *guest(), "--to", where, *ENDLESS)
    # From here on the receiver has a session. Before it has one, the source that goes away is a
    # stranger at the listener, and the receiver waits for the next.
    receiver.until("receiving")
    os.kill(sent.child.pid, signal.SIGTERM)
    assert sent.end() == 128 + signal.SIGTERM, sent.text
    assert receiver.end() == 1


def test_ctrl_c_at_receive_cancels_and_the_source_keeps_its_guest(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    sent = minivmm("send", *guest(), "--to", where, *ENDLESS)
    receiver.until("receiving")
    receiver.type("\x03")
    assert receiver.end() == 128 + signal.SIGINT, receiver.text
    assert "the guest never ran here: whoever sends it has it still" in receiver.text
    sent.until("the migration failed: the guest runs on here")
    assert counted(sent) > 0
    sent.type("\x03")
    assert sent.end() == 1


def test_ctrl_c_at_receive_before_anybody_came(minivmm: Callable[..., Program]) -> None:
    receiver, _ = listening(minivmm)
    receiver.type("\x03")
    assert receiver.end() == 128 + signal.SIGINT, receiver.text


def test_ctrl_c_at_a_demo_leaves_nothing_behind(minivmm: Callable[..., Program]) -> None:
    demo = minivmm("demo", *guest(), "--transport", "unix", *ENDLESS)
    child = int(demo.until(r"to process (\d+) ")[1])
    demo.until("%")
    demo.type("\x03")
    assert demo.end() == 128 + signal.SIGINT, demo.text
    assert "the migration is cancelled: the guest runs on here" in demo.text
    assert not os.path.exists("/proc/%d" % child)


def test_ctrl_c_before_the_migration_ends_at_once(minivmm: Callable[..., Program]) -> None:
    demo = minivmm("demo", *guest(), "--after", "86400")
    demo.until("moves it to process")
    demo.type("\x03")
    assert demo.end() == 128 + signal.SIGINT, demo.text


def test_where_nobody_listens_the_guest_runs_on(minivmm: Callable[..., Program]) -> None:
    with socket.socket() as bound:  # a port that is taken, and that nobody listens on
        bound.bind(("127.0.0.1", 0))
        ended = quietly("send", *guest(), "--after", "0", "--to", "tcp:127.0.0.1:%d" % bound.getsockname()[1])
    assert ended.returncode == 1
    assert "the migration failed: the guest runs on here" in ended.stdout
    assert "all of its pages are as it left them" in ended.stdout


def test_a_source_that_dies_leaves_a_word_at_the_destination(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    sent = minivmm("send", *guest(), "--to", where, *ENDLESS)
    receiver.until("receiving")
    sent.close()
    assert receiver.end() == 1
    assert "the guest never ran here" in receiver.text


def test_machines_that_differ_are_refused_by_name(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    ended = quietly("send", *guest(), "--vcpus", "2", "--after", "0", "--to", where)
    assert ended.returncode == 1
    assert re.search(r"guest of 2 vCPUs, the destination a .* guest of 1", ended.stderr), ended
    assert receiver.end() == 1


def test_a_timeout_is_kept_and_the_guest_runs_on(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    ended = quietly("send", *guest(), "--to", where, *ENDLESS, "--timeout", "1", "--json")
    assert ended.returncode == 1
    assert "the guest runs on here" in ended.stdout
    figures = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))
    assert figures["progress"] < 10000 and figures["error"] != 0
    assert receiver.end() == 1


def test_sigusr1_pauses_the_guest_now_and_switches_over(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm)
    sent = minivmm("send", *guest(), "--to", where, *ENDLESS)
    sent.until(r"\] +[1-9]\d*\.\d %|\] +0\.[1-9] %")
    os.kill(sent.child.pid, signal.SIGUSR1)
    assert sent.end() == 0, sent.text
    assert counted(receiver) > 0
