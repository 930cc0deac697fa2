"""`python -m brant`: each command on a region of its own, events files, and pictures."""

import io
import json
import os
import re
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
