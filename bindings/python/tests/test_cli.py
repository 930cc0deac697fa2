"""`python -m brant`: each command on a region of its own, events files, and pictures."""

import io
import json
import os
import re
import socket
import subprocess
import sys

import brant
import pytest
from brant import cli, events, plots

from conftest import PACKAGE

SMALL = ["--mib", "4", "--rate", "20000"]


def main(capsys, *words):
    """The status, output and complaints of a command."""
    status = cli.main(words)
    told = capsys.readouterr()
    for missing in ("asynchronous write protection", "no userfaultfd"):
        if missing in told.err:
            pytest.skip(told.err.strip())
    return status, told.out, told.err


def test_track_prints_what_each_interval_finds(capsys):
    status, out, _ = main(capsys, "track", *SMALL, "--intervals", "3", "--interval-ms", "50")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and len(lines) == 4
    # All of the hot pages at most, and something in each interval.
    assert all(0 < int(line[1]) <= 256 for line in lines[1:])


@pytest.mark.parametrize("way", ["log", "sampling"])
def test_rate_measures_intervals_and_its_file_is_drawn(capsys, tmp_path, way):
    points = str(tmp_path / "rate.json")
    status, out, _ = main(
        capsys, "rate", *SMALL, "--periods", "20,60", "--way", way, "--out", points,
        "--bandwidth", "1000000000",
    )
    assert status == 0 and "a migration at 1000 MB/s converges" in out
    with open(points) as file:
        assert len(json.load(file)["points"]) == 2
    drawn(capsys, tmp_path, points)


def drawn(capsys, tmp_path, *files):
    """The pictures of files in each format, or the error that says how to get matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        status, _, err = main(capsys, "plot", *files, "-o", str(tmp_path / "a.png"))
        assert status == 1 and "pip install matplotlib" in err
        pytest.skip("there is no matplotlib here")
    pictures = {}
    for kind in plots.KINDS:
        path = tmp_path / ("picture" + kind)
        assert main(capsys, "plot", *files, "-o", str(path))[0] == 0
        pictures[kind] = path.read_bytes()
    assert pictures[".png"].startswith(b"\x89PNG") and b"<svg" in pictures[".svg"]
    page = pictures[".html"].decode()
    assert page.startswith("<!DOCTYPE html>") and page.count("<svg") == 1
    # Nothing is fetched: no script, style sheet or image from elsewhere.
    assert not re.search(r"(src|href)=\"(?!#)[^\"]*\"", re.sub(r"xlink:href=\"#[^\"]*\"", "", page))
    return page


def test_a_recorded_migration_is_told_and_drawn(capsys, tmp_path):
    file = str(tmp_path / "a.jsonl")
    status, out, err = main(
        capsys, "record", *SMALL, file, "--policy", "throttle", "--bandwidth", "40000000",
        "--channels", "2",
    )
    assert (status, err) == (0, "") and "completed: " in out
    found = events.read(file)
    assert found.error == 0 and found.what == "throttle"
    assert found.last["state"] == "completed" and len(found.lanes()) == 2
    assert {kind for _, kind, _ in found.events} >= {"state", "pass", "completed"}
    assert [name for name, _, _ in found.phases()][-1] == "completed"
    status, out, _ = main(capsys, "timeline", file)
    assert status == 0 and "pass 1 done" in out and "round trips" in out
    page = drawn(capsys, tmp_path, file)
    assert "pass 1 done" in page and "expected, ms" in page
    # Several, to compare.
    assert main(capsys, "plot", file, file, "-o", str(tmp_path / "two.png"))[0] == 0


def test_what_is_in_an_image_is_printed(capsys, tmp_path):
    from test_migration import Side

    side, path = Side(), str(tmp_path / "guest.image")
    with brant.Tracker(side.guest) as tracker, brant.ImageSave(tracker) as save:
        save.start(path)
        save.wait()
    status, out, _ = main(capsys, "image", path)
    assert status == 0 and out.startswith("%s: full, complete\n  format 1, checksum " % path)
    assert re.search(r"block +ram +4.0 MiB in pages of 4096: .*1024 zero pages", out)
    assert re.search(r"state +counter +\d+ bytes, instance 7, version 2", out)
    status, out, _ = main(capsys, "image", "--json", path, path)
    assert status == 0 and [json.loads(line)["kind"] for line in out.splitlines()] == ["full"] * 2
    status, _, err = main(capsys, "image", "/dev/null")
    assert status == 1 and "/dev/null" in err


def moved(*recorders):
    """A guest that moves inside this process while a recorder of each side watches."""
    from test_migration import Side

    here, there = Side(), Side()
    with brant.Tracker(here.guest) as tracker, brant.Incoming(there.guest) as incoming:
        with brant.Outgoing(tracker) as outgoing:
            for recorder, side in zip(recorders, (outgoing, incoming)):
                recorder.watch(side)
            ends = socket.socketpair()
            incoming.start(ends[1])
            outgoing.start(ends[0])
            assert outgoing.wait() and incoming.wait()
            for recorder in recorders:
                recorder.close()


def test_both_sides_are_recorded_to_a_path_and_to_what_has_no_descriptor(tmp_path):
    text = io.StringIO()
    here, there = brant.Recorder(tmp_path / "here", what="a test", interval_ms=10), brant.Recorder(text)
    moved(here, there)
    found = [events.read(tmp_path / "here"), events.parse(text.getvalue().splitlines(), "there")]
    assert [one.error for one in found] == [0, 0] and found[0].what == "a test"
    assert [one.last["state"] for one in found] == ["completed", "running"]
    assert {"state", "pass", "completed"} <= {kind for _, kind, _ in found[0].events}
    with open(tmp_path / "here") as file:
        assert (here.lines, here.dropped) == (len(file.readlines()), 0)
    assert there.lines == text.getvalue().count("\n") and not text.closed


def test_a_pipe_that_nobody_reads_or_that_is_closed_holds_up_no_migration(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"\n" * 4096)
    except BlockingIOError:
        pass
    full = brant.Recorder(os.fdopen(writer, "w"))
    moved(full)
    assert full.lines == 0 and full.dropped > 2
    os.close(reader)
    reader, writer = os.pipe()
    os.close(reader)
    gone = brant.Recorder(os.fdopen(writer, "w"))
    with pytest.raises(brant.BrantError, match="nobody reads"):
        moved(gone)


def test_a_recorder_watches_one_migration_and_a_closed_one_is_recorded_to_its_end(tmp_path):
    from test_migration import Side

    side, path = Side(), tmp_path / "events"
    with brant.Tracker(side.guest) as tracker:
        with brant.Recorder(path) as recorder, brant.Outgoing(tracker) as outgoing:
            recorder.watch(outgoing)
            with pytest.raises(ValueError, match="one migration"):
                recorder.watch(outgoing)
            with pytest.raises(brant.BrantError, match="recorded already"):
                brant.Recorder(tmp_path / "other").watch(outgoing)
            with pytest.raises(brant.BrantError, match="10 to 3600000"):
                brant.Recorder(tmp_path / "other", interval_ms=5).watch(outgoing)
        with pytest.raises(TypeError):
            brant.Recorder(tmp_path / "other").watch(tracker)
    found = events.read(path)
    assert found.last["state"] == "idle" and found.error is None


def test_what_is_no_events_file_is_named_with_its_line(capsys, tmp_path):
    for text, expected in (
        ("", "no figures of a migration in 0 lines"),
        ('{"kind":"begin","time_ns":0}\nx\n', "line 2: expected an object"),
        ("[1]\n", "line 1"),
        ('{"kind":"begin","time_ns":0,"version":9}\n', "version 9"),
    ):
        path = tmp_path / "wrong.jsonl"
        path.write_text(text)
        status, _, err = main(capsys, "timeline", str(path))
        assert status == 1 and "wrong.jsonl" in err and expected in err
    assert main(capsys, "timeline", str(tmp_path / "none"))[0] == 1


def test_fields_and_kinds_of_a_later_writer_are_ignored():
    lines = [
        '{"kind":"begin","time_ns":0,"version":1,"colour":"red"}',
        '{"kind":"weather","time_ns":1}',
        '{"kind":"stats","time_ns":1000000000,"state":"copying","throughput":5,"bandwidth":null}',
    ]
    found = events.parse(lines, "x")
    assert found.series("throughput") == ([1.0], [5]) and found.series("bandwidth") == ([], [])
    assert found.error is None and events.outcome(found).startswith("not over")
    assert events.text(found)[-1] == "    1.000 s  state        copying"


def test_a_picture_without_matplotlib_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    file = tmp_path / "x.jsonl"
    file.write_text('{"kind":"stats","time_ns":1,"throughput":5}\n')
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = main(capsys, "plot", str(file), "-o", str(tmp_path / "x.png"))
    assert status == 1 and "pip install matplotlib" in err and "timeline" in err


def test_the_package_is_a_program():
    ended = subprocess.run(
        [sys.executable, "-m", "brant", "--version"],
        env=dict(os.environ, PYTHONPATH=PACKAGE), stdout=subprocess.PIPE, text=True, timeout=60,
    )
    assert ended.returncode == 0 and ended.stdout.startswith("brant %s, " % brant.version())
    for wrong in (["fly"], ["plot", "x"], []):
        with pytest.raises(SystemExit):
            cli.main(wrong)


@pytest.mark.parametrize("how", ["tqdm", "text", "bar"])
def test_progress_is_shown_to_the_end(monkeypatch, tmp_path, how):
    from test_migration import Side

    class Bar:
        said, shown, closed = [], 0.0, False

        def set_postfix_str(self, words, refresh=True):
            self.said.append(words)

        def update(self, more):
            self.shown += more

        def close(self):
            self.closed = True

    if how == "tqdm":
        pytest.importorskip("tqdm")
    if how == "text":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    side, out = Side(), io.StringIO()
    bar = Bar() if how == "bar" else None
    with brant.Tracker(side.guest) as tracker, brant.ImageSave(tracker) as save:
        save.start(tmp_path / "image")
        brant.follow(save, file=out, bar=bar)
    if bar is not None:
        assert bar.closed and round(bar.shown) == 100 and bar.said[-1].startswith("completed")
    else:
        assert "100" in out.getvalue() and "completed" in out.getvalue()
