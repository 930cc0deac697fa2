"""Pictures, by matplotlib: the timeline of migrations, and the curve of a dirty rate over intervals.
A file's name says what is written: .png, .svg, or .html, one page with everything in it."""

from __future__ import annotations

import html
import importlib
import io
import os
from typing import Any, Dict, List, Sequence, Tuple

from .events import Recording, outcome, text

#: How to get what is missing.
MISSING = (
    "pictures need matplotlib, which is not here: pip install matplotlib (Debian: apt install "
    "python3-matplotlib). `python -m brant timeline` and `python -m brant rate` print the same as "
    "text, without it"
)
KINDS = (".png", ".svg", ".html")


class PlotError(Exception):
    """A picture that cannot be made; the text says why, and what to do."""


def _pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise PlotError(MISSING) from None


def _panels(recordings: Sequence[Recording]) -> List[Tuple[str, List[Tuple[str, Any, Any]]]]:
    """The panels of a timeline: the label of the axis, and each line's name, times and values. A
    panel without anything but zeros is left out."""
    several = len(recordings) > 1
    mib = 1 / (1 << 20)
    wanted: List[Tuple[str, List[Tuple[str, str, float]]]] = [
        ("MiB/s", [("sent", "throughput", mib), ("link", "switchover_bandwidth", mib)]),
        ("dirty pages/s", [("dirty rate", "dirty_pages_per_second", 1)]),
        ("pending, MiB", [("pending", "remaining_bytes", mib)]),
        (
            "downtime, ms",
            [
                ("expected", "expected_downtime_ns", 1e-6),
                ("limit", "downtime_limit_ns", 1e-6),
            ],
        ),
        ("throttle, %", [("throttle", "throttle", 1)]),
        ("missing pages", [("missing", "missing_pages", 1)]),
    ]
    panels = []
    for label, lines in wanted:
        drawn = []
        for recording in recordings:
            for name, figure, scale in lines:
                times, values = recording.series(figure, scale)
                if times:
                    drawn.append((_named(recording, name, several), times, values))
        if any(any(values) for _, _, values in drawn):
            panels.append((label, drawn))
    lanes = []
    for recording in recordings:
        for n, (times, rates) in enumerate(recording.lanes()):
            lanes.append((_named(recording, "lane %d" % n, several), times, [r * mib for r in rates]))
    if len(lanes) > len(recordings):
        panels.append(("lanes, MiB/s", lanes))
    return panels


def _named(recording: Recording, name: str, several: bool) -> str:
    return "%s: %s" % (recording.what or recording.name, name) if several else name


def timeline(recordings: Sequence[Recording]) -> Any:
    """A figure of one migration over time, or of several to compare, and of the parts of their
    downtimes."""
    pyplot = _pyplot()
    panels = _panels(recordings)
    last = [r for r in recordings if r.last.get("downtime_ns")]
    count = len(panels) + (1 if last else 0)
    if count == 0:
        raise PlotError("there is nothing to draw: no figure in the file is known or other than 0")
    figure, axes = pyplot.subplots(count, 1, figsize=(9, 1.6 + 1.7 * count), squeeze=False)
    ends = max(t for r in recordings for t, _ in r.stats)
    for axis, (label, lines) in zip(axes[:, 0], panels):
        for name, times, values in lines:
            axis.plot(times, values, label=name, linewidth=1.3, marker=".", markersize=3)
        if len(recordings) == 1:
            for at, (_, begin, end) in enumerate(recordings[0].phases()):
                if at % 2:
                    axis.axvspan(begin, end, color="0.94", linewidth=0)
            for time, kind, _ in recordings[0].events:
                if kind in ("pass", "throttle", "downtime", "stalled", "interrupted", "recovered"):
                    axis.axvline(time, color="0.6", linewidth=0.6, linestyle=":")
        axis.set_ylabel(label)
        axis.set_xlim(0, ends * 1.01)
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper right", fontsize="small", frameon=False)
    if panels:
        axes[len(panels) - 1, 0].set_xlabel("seconds")
    if last:
        axis = axes[-1, 0]
        high = 0.8 / (2 * len(last))
        names = [name for name, _, _ in last[0].downtime()]
        for n, recording in enumerate(last):
            for k, (what, column) in enumerate((("expected", 1), ("actual", 2))):
                rows = [row + (2 * n + k) * high for row in range(len(names))]
                widths = [part[column] for part in recording.downtime()]
                axis.barh(rows, widths, high, label=_named(recording, what, len(last) > 1))
        axis.set_yticks([row + 0.4 - high / 2 for row in range(len(names))])
        axis.set_yticklabels(names, fontsize="small")
        axis.invert_yaxis()
        axis.set_xlabel("parts of the downtime, ms")
        axis.legend(loc="lower right", fontsize="small", frameon=False)
    figure.suptitle(", ".join(r.what or r.name for r in recordings))
    figure.tight_layout()
    return figure


def rate_curve(curves: Sequence[Tuple[str, List[Dict[str, Any]]]]) -> Any:
    """A figure of dirty rates over the interval in which they were measured: pages a second, and how
    many different pages the guest has written."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True)
    for name, points in curves:
        points = sorted(points, key=lambda point: float(point["period_ns"]))
        periods = [point["period_ns"] / 1e9 for point in points]
        rates = [point["pages_per_second"] for point in points]
        errors = [point.get("error_pages_per_second") or 0 for point in points]
        axes[0].errorbar(periods, rates, yerr=errors, marker="o", capsize=3, label=name)
        axes[1].plot(periods, [p["written_pages"] / 256 for p in points], marker="o", label=name)
    axes[0].set_ylabel("dirty pages/s")
    axes[1].set_ylabel("written, MiB")
    axes[1].set_xlabel("interval, seconds")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="small", frameon=False)
    figure.tight_layout()
    return figure


def write(figure: Any, path: str, title: str, recordings: Sequence[Recording] = ()) -> None:
    """Writes a figure to a file. A page of HTML has the recordings as text too."""
    kind = os.path.splitext(path)[1].lower()
    if kind not in KINDS:
        raise PlotError("%s: a picture's name ends with %s" % (path, ", ".join(KINDS)))
    if kind != ".html":
        figure.savefig(path, dpi=110)
    else:
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
        # Without the XML declaration, which has no place inside a page.
        drawing = drawn.getvalue()
        drawing = drawing[drawing.index("<svg") :]
        with open(path, "w", encoding="utf-8") as file:
            file.write(_page(title, drawing, recordings))
    _pyplot().close(figure)


def _page(title: str, drawing: str, recordings: Sequence[Recording]) -> str:
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>%s</title>\n'
        "<style>body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "svg{max-width:100%%;height:auto}pre{overflow-x:auto;background:#f4f4f4;padding:1em}"
        "td,th{padding:.1em .8em;text-align:right}td:first-child{text-align:left}</style></head>"
        "<body>\n<h1>%s</h1>\n%s\n" % (html.escape(title), html.escape(title), drawing)
    ]
    for recording in recordings:
        parts.append("<h2>%s</h2>\n<p>%s</p>\n" % (
            html.escape(recording.what or recording.name), html.escape(outcome(recording))))
        rows = "".join(
            "<tr><td>%s</td><td>%.3f</td><td>%.3f</td></tr>" % (html.escape(name), promised, measured)
            for name, promised, measured in recording.downtime()
        )
        parts.append(
            "<table><tr><th>part of the downtime</th><th>expected, ms</th><th>actual, ms</th></tr>"
            "%s</table>\n<pre>%s</pre>\n" % (rows, html.escape("\n".join(text(recording))))
        )
    return "".join(parts) + "</body></html>\n"
