"""The command line: what does nothing is refused, ranges are named, all before a guest runs."""

from __future__ import annotations

import re

import pytest
from conftest import guest, quietly


def refused(*arguments: str) -> str:
    """The one line that refuses a command line; nothing else is said or done."""
    ended = quietly(*arguments, seconds=10)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("minivmm: "), ended.stderr
    return ended.stderr


TO = ["--to", "tcp:127.0.0.1:9"]
LISTEN = ["--listen", "tcp:127.0.0.1:0"]


@pytest.mark.parametrize("option, value, takes", [
    ("--memory", "12345", "16M to 64T"),
    ("--memory", "8M", "16M to 64T"),
    ("--memory", "-1", "16M to 64T"),
    ("--memory", "99999999999T", "16M to 64T"),
    ("--vcpus", "0", "1 to 64"),
    ("--vcpus", "65", "1 to 64"),
    ("--vcpus", "two", "1 to 64"),
    ("--workload", "busy", "sweep, random, hot, mixed or idle"),
    ("--kind", "xen", "auto, kvm or process"),
    ("--rate", "-5", "0 to 1000M"),
    ("--fill", "101", "0 to 100"),
    ("--after", "86401", "0 to 86400"),
    ("--downtime", "0", "1 to 3600000"),
    ("--downtime", "3600001", "1 to 3600000"),
    ("--bandwidth", "1000", "64k to 1T"),
    ("--timeout", "0", "1 to 2592000"),
    ("--policy", "slow", "none, auto-converge or dirty-limit"),
    ("--throttle", "100", "1 to 99"),
    ("--ceiling", "0", "1 to 3600000"),
    ("--deadline", "0", "1 to 2592000"),
    ("--on-deadline", "postcopy", "cancel, carry-on or pause"),
    ("--log", "ring", "auto, get-and-clear"),
    ("--chunk-shift", "5", "6 to 31"),
    ("--chunk-shift", "32", "6 to 31"),
    ("--transport", "rdma", "tcp, unix or fd"),
])
def test_a_value_out_of_range_is_refused_and_the_range_named(option: str, value: str, takes: str) -> None:
    said = refused("demo", option, value)
    assert option in said and value in said and takes in said


@pytest.mark.parametrize("arguments, named", [
    (["receive", *LISTEN, "--downtime", "5"], "--downtime"),
    (["receive", *LISTEN, "--rate", "5"], "--rate"),
    (["receive", *LISTEN, "--workload", "idle"], "--workload"),
    (["receive", *LISTEN, "--bandwidth", "1M"], "--bandwidth"),
    (["receive", *LISTEN, "--ring"], "--ring"),
    (["receive", *LISTEN, "--policy", "none"], "--policy"),
    (["demo", "--throttle", "50"], "--throttle"),
    (["demo", "--policy", "dirty-limit"], "--ring"),
    (["demo", "--ceiling", "100"], "--ceiling"),
    (["demo", "--on-deadline", "carry-on"], "--deadline"),
    (["receive", *LISTEN, "--to", "tcp:127.0.0.1:9"], "--to"),
    (["send", *TO, "--transport", "unix"], "--transport"),
    (["send", *TO, "--listen", "tcp:127.0.0.1:0"], "--listen"),
    (["demo", "--to", "tcp:127.0.0.1:9"], "--to"),
    (["demo", "--listen", "tcp:127.0.0.1:0"], "--listen"),
    (["demo", "--workload", "idle", "--rate", "100"], "--rate"),
    (["demo", "--kind", "process", "--ring"], "--ring"),
    (["demo", "--kind", "process", "--log", "manual"], "--log"),
    (["demo", "--kind", "process", "--chunk-shift", "9"], "--chunk-shift"),
    (["demo", "--kind", "process", "--clear-at-sync"], "--clear-at-sync"),
])
def test_an_option_that_does_nothing_is_refused(arguments: list[str], named: str) -> None:
    assert named in refused(*arguments)


@pytest.mark.skipif(guest()[1] != "kvm", reason="/dev/kvm cannot be opened")
@pytest.mark.parametrize("arguments, named", [
    (["--ring", "--log", "manual"], "--log"),
    (["--ring", "--chunk-shift", "9"], "--chunk-shift"),
    (["--log", "get-and-clear", "--chunk-shift", "9"], "--chunk-shift"),
    (["--log", "get-and-clear", "--clear-at-sync"], "--clear-at-sync"),
    (["--clear-at-sync", "--chunk-shift", "9"], "--chunk-shift"),
    (["--log", "marks"], "--log"),
])
def test_an_option_that_does_nothing_for_a_kvm_guest_is_refused(arguments: list[str], named: str) -> None:
    assert named in refused("demo", "--kind", "kvm", *arguments)


@pytest.mark.parametrize("endpoint", [
    "tcp:127.0.0.1", "tcp:127.0.0.1:0", "tcp:127.0.0.1:70000", "tcp:example.org:1", "tcp:[::1:4", "tcp:::1:4444",
    "unix:relative", "unix:/" + "x" * 120, "ssh:there", "",
])
def test_an_endpoint_that_cannot_be_is_refused_before_a_guest_runs(endpoint: str) -> None:
    assert "--to: %s: " % endpoint in refused("send", "--to", endpoint)


@pytest.mark.parametrize("arguments, named", [
    ([], "which command"), (["migrate"], "migrate"), (["demo", "--nonsense"], "--nonsense"), (["demo", "-x"], "-x"),
    (["demo", "more"], "more"), (["demo", "--memory"], "--memory"), (["send"], "--to"), (["receive"], "--listen"),
])
def test_a_command_line_that_says_nothing_is_refused(arguments: list[str], named: str) -> None:
    assert named in refused(*arguments)


def test_memory_that_is_not_there_is_refused() -> None:
    assert "available" in refused("demo", "--memory", "60T")


@pytest.mark.parametrize("arguments", [["--version"], ["demo", "--version"]])
def test_version_names_the_library(arguments: list[str]) -> None:
    ended = quietly(*arguments)
    assert ended.returncode == 0
    assert re.fullmatch(r"minivmm, with brant \d+\.\d+\.\d+ .*\n", ended.stdout)


def test_help_lists_every_option() -> None:
    ended = quietly("--help")
    assert ended.returncode == 0
    for option in ("memory", "downtime", "listen", "version", "chunk-shift", "json"):
        assert "--" + option in ended.stdout
