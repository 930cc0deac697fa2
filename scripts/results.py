"""target/bench/results.json: the figures that were measured, and how they are printed. scripts/bench,
scripts/bench-peers and scripts/bench-docs use it.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from figures import GROUPS, KEPT, MISSED, UNDECIDED, find, judge  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "target", "bench")
RESULTS = os.path.join(OUT, "results.json")


def load():
    try:
        with open(RESULTS) as f:
            return json.load(f)
    except FileNotFoundError:
        return []


def show(rows):
    """The figures by group, each with what it means, and then the goals; how many are missed."""
    verdicts = []
    for group, figures in GROUPS + [(None, [None])]:
        here = [row for row in rows if find(row["name"])[0] == group]
        if not here:
            continue
        title = group or "Not described in scripts/figures.py"
        print("\n%s\n%s" % (title, "=" * len(title)))
        for figure in figures:
            those = [row for row in here if find(row["name"])[1] == figure]
            if those and figure:
                print("\n%s" % figure.meaning)
            for row in those:
                goal, verdict = judge(row)
                print("  %-44s %10.4g %-6s %10.4g %-20s %8.3f  %s" % (
                    row["name"], row["value"], row["unit"], row["peer_value"], row["peer"], row["ratio"],
                    (goal + " " + verdict).strip()))
                if verdict:
                    verdicts.append((group, verdict, row, goal))
    print("\n%-18s %5s %10s %7s" % ("goals", "kept", "undecided", "missed"))
    for group in [name for name, _ in GROUPS] + ["all"]:
        these = [v for g, v, _, _ in verdicts if group in (g, "all")]
        if these:
            print("%-18s %5d %10d %7d" % (group.split(":")[0], *(these.count(v) for v in (KEPT, UNDECIDED, MISSED))))
    for sought in (MISSED, UNDECIDED):
        for _, verdict, row, goal in verdicts:
            if verdict == sought:
                span = " (%.2f to %.2f; by the clock %.2f)" % (row["low"], row["high"], row["by_clock"]) \
                    if "low" in row else ""
                print("  %-9s %-44s %.3f%s, to be %s" % (verdict, row["name"], row["ratio"], span, goal))
    return sum(verdict == MISSED for _, verdict, _, _ in verdicts)


def add(new):
    """Rows take the place of those of the same names."""
    names = {row["name"] for row in new}
    rows = [row for row in load() if row["name"] not in names] + new
    rows.sort(key=lambda row: row["name"])
    os.makedirs(OUT, exist_ok=True)
    with open(RESULTS + ".new", "w") as f:
        json.dump(rows, f, indent=1)
        f.write("\n")
    os.replace(RESULTS + ".new", RESULTS)
