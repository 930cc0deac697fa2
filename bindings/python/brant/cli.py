"""``python -m brant``: looks at memory, rates and migrations from a shell."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket
import sys
import time
from dataclasses import asdict
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import events, plots
from . import image as images
from ._native import BrantError, library_path, version
from .figures import Params, Policy, RateParams
from .guest import Guest
from .migration import Incoming, Outgoing
from .rate import Rate
from .record import Recorder
from .tracker import Tracker
from .workload import Region


def _numbers(text: str) -> List[int]:
    """A list of milliseconds."""
    return [int(part) for part in text.split(",")]


def _region(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the region of memory, which a thread writes")
    group.add_argument("--mib", type=int, default=64, help="its size (default 64)")
    group.add_argument("--hot", type=float, default=0.25, help="part that is written (0.25)")
    group.add_argument("--rate", type=float, default=20000, help="pages written a second (20000)")
    group.add_argument("--seed", type=int, default=1, help="of the order of the pages (1)")


def _made(arguments: argparse.Namespace) -> Region:
    if not 0 < arguments.hot <= 1 or arguments.mib < 1 or arguments.rate < 0:
        raise SystemExit("brant: --mib from 1, --hot above 0 up to 1, --rate from 0 are expected")
    return Region(
        arguments.mib << 20,
        hot=arguments.hot,
        rate=arguments.rate,
        seed=arguments.seed,
    )


def track(arguments: argparse.Namespace) -> None:
    """Tracks a region, and prints what each interval's sync finds."""
    region = _made(arguments)
    with region, Tracker(region.guest) as tracker:
        tracker.add_userfault()
        tracker.start()
        print("%10s %12s %12s %10s %8s" % ("seconds", "dirty pages", "pages/s", "runs", "sync ms"))
        begin = last = time.monotonic()
        for _ in range(arguments.intervals):
            time.sleep(arguments.interval_ms / 1000)
            sync = tracker.sync()
            now = time.monotonic()
            with tracker.take_array() as taken:
                runs = len(taken)
            rate = sync.found_pages / (now - last)
            print(
                "%10.2f %12d %12.0f %10d %8.3f"
                % (now - begin, sync.found_pages, rate, runs, sync.time_ns / 1e6)
            )
            last = now


def rate(arguments: argparse.Namespace) -> None:
    """Measures a region's dirty rate over several intervals."""
    points: List[Dict[str, Any]] = []
    region = _made(arguments)
    with region, Tracker(region.guest) as tracker:
        if arguments.way == "log":
            tracker.add_userfault()
            tracker.start()
        print("%12s %12s %12s %12s" % ("interval ms", "pages/s", "give or take", "written"))
        for period in arguments.periods:
            params = RateParams(period_ms=period, way=arguments.way)
            with Rate(tracker, params) as measurement:
                found = measurement.measure()
                points.append(asdict(found))
                print(
                    "%12d %12d %12d %12d"
                    % (
                        found.period_ns // 1_000_000,
                        found.pages_per_second,
                        found.error_pages_per_second,
                        found.written_pages,
                    )
                )
                if arguments.bandwidth and period == arguments.periods[-1]:
                    told = measurement.forecast(arguments.bandwidth)
                    print(
                        "a migration at %.0f MB/s %s: %d passes, %.2f s, downtime %.1f ms"
                        % (
                            arguments.bandwidth / 1e6,
                            "converges" if told.converges else "does not converge",
                            told.passes,
                            told.time_us / 1e6,
                            told.downtime_us / 1e3,
                        )
                    )
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"kind": "rate", "what": arguments.way, "points": points}, file)


def record(arguments: argparse.Namespace) -> None:
    """Migrates a region inside this process, and writes an events file."""
    policy = Policy(
        slowing="all" if arguments.policy == "throttle" else "off",
        on_deadline="pause" if arguments.policy == "pause" else "cancel",
        deadline_ms=arguments.deadline_ms,
        downtime_ceiling_ms=3_600_000 if arguments.policy == "rise" else 0,
    )
    params = Params(
        downtime_limit_ms=arguments.downtime_ms,
        max_bandwidth=arguments.bandwidth,
        switchover_bandwidth=arguments.bandwidth,
        switchover_max_bandwidth=arguments.bandwidth,
        channels=arguments.channels,
    )
    with Recorder(arguments.out, what=arguments.what or arguments.policy) as recorder:
        region = _made(arguments)
        memory = mmap.mmap(-1, region.bytes)
        target = Guest(run=lambda: None)
        target.add_block("region", memory)
        pairs = [socket.socketpair() for _ in range(arguments.channels)]
        with region, Tracker(region.guest) as tracker, target, Incoming(target) as incoming:
            tracker.add_userfault()
            with Outgoing(tracker, params) as outgoing:
                outgoing.set_policy(policy)
                incoming.start([there for _, there in pairs])
                recorder.watch(outgoing)
                outgoing.start([here for here, _ in pairs])
                try:
                    outgoing.wait()
                except BrantError:
                    pass  # The file says so.
                recorder.close()
    print(events.text(events.read(arguments.out))[0])


def timeline(arguments: argparse.Namespace) -> None:
    """Prints a recorded migration as text."""
    for n, path in enumerate(arguments.files):
        print("\n".join([""] * bool(n) + events.text(events.read(path))))


def image(arguments: argparse.Namespace) -> None:
    """Prints what is in an image."""
    for path in arguments.files:
        if arguments.json:
            print(images.text(path))
        else:
            print("\n".join(images.lines(images.describe(path), path)))


def _curve(path: str) -> Optional[Tuple[str, List[Dict[str, Any]]]]:
    """A file that ``rate --out`` wrote; None if it is none."""
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError:
            return None  # JSON lines, or something else.
    if not isinstance(found, dict) or found.get("kind") != "rate":
        return None
    return "%s: %s" % (os.path.basename(path), found.get("what", "")), list(found["points"])


def plot(arguments: argparse.Namespace) -> None:
    """Draws events files, or files of rates."""
    curves = [(path, _curve(path)) for path in arguments.files]
    rates = [curve for _, curve in curves if curve is not None]
    if rates and len(rates) < len(curves):
        raise plots.PlotError("events files and files of rates go into pictures of their own")
    title = arguments.title or ", ".join(os.path.basename(path) for path in arguments.files)
    if rates:
        plots.write(plots.rate_curve(rates), arguments.out, title)
    else:
        recordings = [events.read(path) for path in arguments.files]
        plots.write(plots.timeline(recordings), arguments.out, title, recordings)
    print(arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brant", description="Looks at dirty memory and migrations."
    )
    parser.add_argument(
        "--version", action="version", version="brant %s, %s" % (version(), library_path())
    )
    parts = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        part = parts.add_parser(name, help=run.__doc__, description=run.__doc__)
        part.set_defaults(run=run)
        return part

    part = command("track", track)
    _region(part)
    part.add_argument("--intervals", type=int, default=10, help="how many (10)")
    part.add_argument("--interval-ms", type=int, default=200, help="of each (200)")

    part = command("rate", rate)
    _region(part)
    part.add_argument(
        "--periods", type=_numbers, default=[10, 30, 100, 300, 1000],
        help="intervals in ms, with commas between (10,30,100,300,1000)",
    )
    part.add_argument("--way", choices=("log", "sampling"), default="log", help="(log)")
    part.add_argument("--bandwidth", type=int, default=0, help="bytes/s: forecasts a migration")
    part.add_argument("--out", help="writes the points to this file, for plot")

    part = command("record", record)
    _region(part)
    part.add_argument("out", help="the events file")
    part.add_argument(
        "--policy", choices=("none", "throttle", "rise", "pause"), default="none",
        help="none; throttle slows the guest; rise raises the downtime limit; pause keeps the deadline",
    )
    part.add_argument("--deadline-ms", type=int, default=20000, help="for the migration (20000)")
    part.add_argument("--bandwidth", type=int, default=100_000_000, help="bytes/s (100000000)")
    part.add_argument("--downtime-ms", type=int, default=50, help="the downtime limit (50)")
    part.add_argument("--channels", type=int, default=1, help="connections (1)")
    part.add_argument("--what", help="the name in pictures (the policy)")

    part = command("timeline", timeline)
    part.add_argument("files", nargs="+", metavar="EVENTS", help="an events file")

    part = command("image", image)
    part.add_argument("files", nargs="+", metavar="FILE", help="an image")
    part.add_argument("--json", action="store_true", help="as the library's JSON, one line for each")

    part = command("plot", plot)
    part.add_argument("files", nargs="+", metavar="FILE", help="events files, or files of rate --out")
    part.add_argument("-o", "--out", required=True, help="the picture: .png, .svg or .html")
    part.add_argument("--title", help="of a page (the files' names)")
    return parser


def main(words: Optional[Sequence[str]] = None) -> int:
    """Runs a command; returns the status of the process."""
    arguments = _parser().parse_args(words)
    try:
        arguments.run(arguments)
    except BrokenPipeError:
        # What reads the output has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except (BrantError, plots.PlotError, events.EventsError, OSError) as why:
        print("brant: %s" % why, file=sys.stderr)
        return 1
    return 0
