"""The command line of the bench: which rows, which servers, how long; runs the rounds and prints the table."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.client import raise_descriptor_limit
from bench.errors import BenchError
from bench.report import Figure, number, ratio, table, verdict
from bench.rows import BASELINE, ORDINARY, ROWS, SUBJECT, UNBRIDGED, Row, Sample
from bench.servers import Server, given_server, pinned, start_coturn, start_relayd

DEFAULT_SECONDS = 2.0
DEFAULT_ROUNDS = 5
QUICK_SECONDS = 0.5
ATTEMPTS = 3
"""A disturbed round is worth repeating; one that is invalid time after time is so for a reason, which is told."""
SHARES = frozenset(("loss", "beside loss", "busy", "wait"))
"""Facts that are shares of one."""

Starts = dict[str, Callable[[Path], Server]]
Samples = dict[str, list[Sample]]


def options() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one short round: does everything still work? No figure to quote"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only rows that match, such as 'udp-up-*'; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--rounds", type=int, help=f"rounds, of which the median counts (default {DEFAULT_ROUNDS})")
    parser.add_argument("--seconds", type=float, help=f"length of each measurement (default {DEFAULT_SECONDS:g})")
    parser.add_argument("--server-core", type=int, default=0, metavar="N", help="the core of the servers (default 0)")
    parser.add_argument(
        "--generator-core", type=int, default=1, metavar="N", help="the core of the generator (default 1)"
    )
    parser.add_argument("--data-plane", default="batched", metavar="NAME", help="of relayd (default batched)")
    parser.add_argument("--alone", choices=(BASELINE, SUBJECT), help="measure only that one, without a comparison")
    given = parser.add_argument_group("a server that runs already")
    given.add_argument("--server", metavar="HOST:PORT", help="load this TURN server; the peer is this machine")
    given.add_argument("--user", default="", help="its long-term credentials")
    given.add_argument("--password", default="", help="visible in the process list: use a user made for the test")
    given.add_argument("--pid", type=int, default=0, help="its process, if it runs here: for CPU and memory")
    given.add_argument("--tls-port", type=int, default=0, help="for the rows over TLS")
    given.add_argument("--ws-port", type=int, default=0, help="for the rows over WebSocket, which is at /turn")
    given.add_argument("--wss-port", type=int, default=0, help="for the rows over WebSocket and TLS")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; the exit status."""
    given = options().parse_args(arguments)
    rows = chosen(given.only)
    if given.list:
        print("\n".join(f"{row.name:16} {row.title}" for row in rows))
        return 0
    try:
        if not rows:
            raise BenchError(f"no row matches --only {' '.join(given.only)}: see --list")
        raise_descriptor_limit()
        if given.server:
            with pinned(given.generator_core):
                return _one(given, rows)
        if given.server_core == given.generator_core:
            raise BenchError("server and generator need a core each")
        with pinned(given.generator_core), tempfile.TemporaryDirectory(prefix="relayd-bench-") as directory:
            return _side_by_side(given, rows, Path(directory))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def chosen(patterns: Sequence[str] | None) -> list[Row]:
    """The rows whose names match one of the patterns; all without any."""
    return [row for row in ROWS if not patterns or any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def _length(given: argparse.Namespace) -> tuple[int, float]:
    rounds = given.rounds or (1 if given.quick else DEFAULT_ROUNDS)
    return rounds, given.seconds or (QUICK_SECONDS if given.quick else DEFAULT_SECONDS)


# --- side by side -------------------------------------------------------------------------------------------------


def _side_by_side(given: argparse.Namespace, rows: Sequence[Row], directory: Path) -> int:
    starts: Starts = {
        BASELINE: partial(start_coturn, given.server_core),
        ORDINARY: partial(start_relayd, given.server_core, data_plane=given.data_plane, web="ordinary", name=ORDINARY),
        UNBRIDGED: partial(start_relayd, given.server_core, data_plane="unbridged", name=UNBRIDGED),
        SUBJECT: partial(start_relayd, given.server_core, data_plane=given.data_plane),
    }
    rounds, seconds = _length(given)
    releases: dict[str, str] = {}
    body: list[list[str]] = []
    beside: list[str] = []
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        names = [given.alone] if given.alone else [row.baseline, SUBJECT]
        samples = _measure(row, {name: starts[name] for name in names}, rounds, seconds, directory, releases)
        body += lines(row, samples)
        beside += notes(row, samples)
    print(_conditions(releases, rounds, seconds))
    print(table(["what", "unit", BASELINE, SUBJECT, "ratio", "goal", "so"], body))
    print("\n" + "\n".join(beside))
    return 0


def _measure(
    row: Row, starts: Starts, rounds: int, seconds: float, directory: Path, releases: dict[str, str]
) -> Samples:
    """All rounds of one row, turn and turn about, so that what disturbs the machine disturbs both."""
    samples: Samples = {name: [] for name in starts}
    running: dict[str, Server] = {}
    try:
        for turn in range(rounds):
            for name in list(starts)[:: -1 if turn % 2 else 1]:
                sample = Sample({}, invalid="not measured")
                for _ in range(ATTEMPTS):
                    try:
                        if name not in running:
                            running[name] = starts[name](directory)
                            releases[name] = running[name].release
                        sample = row.measure(running[name], seconds)
                    except BenchError as error:
                        sample = Sample({}, invalid=str(error).splitlines()[0])
                        print(f"{row.name}: {name}: {error}\n{_end(running, name)}", file=sys.stderr)
                        break
                    if row.fresh:
                        _end(running, name)
                    if not sample.invalid:
                        break
                samples[name].append(sample)
    finally:
        for name in list(running):
            _end(running, name)
    return samples


def _end(running: dict[str, Server], name: str) -> str:
    """Stop a server; the end of its log, or why there is none."""
    server = running.pop(name, None)
    if server is None:
        return ""
    try:
        server.stop()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
    return server.tail()


def lines(row: Row, samples: Samples) -> list[list[str]]:
    """The lines of the table for one row: one for each figure that it has."""
    columns: list[str] = []
    for sample in (sample for taken in samples.values() for sample in taken):
        columns += [column for column in sample.figures if column not in columns]
    made = []
    for column in columns or [next(iter(row.goals), "")]:
        theirs, ours = (_values(samples.get(name, []), column) for name in (row.baseline, SUBJECT))
        times, goal = ratio(ours, theirs) if len(ours) == len(theirs) else None, row.goals.get(column)
        title = row.title if column in ("cpu", "memory", "") else f"{row.title}, {column}"
        said = ["" if times is None else f"{times:.2f}", "" if goal is None else f"{goal:g}", verdict(times, goal)]
        if (most := row.most.get(column)) is not None:
            figure = Figure.of(ours)
            said[1:] = [f"{most:g} {row.unit}", verdict(figure.median if figure.valid else None, most)]
        cells = (_cell(samples.get(name, []), values) for name, values in ((row.baseline, theirs), (SUBJECT, ours)))
        made.append([title, row.unit, *cells, *said])
    return made


def _cell(samples: Sequence[Sample], values: Sequence[float | None]) -> str:
    measured = any(sample.invalid for sample in samples) or any(value is not None for value in values)
    return str(Figure.of(values)) if measured else "not measured"


def _values(samples: Sequence[Sample], column: str) -> list[float | None]:
    return [None if sample.invalid else sample.figures.get(column) for sample in samples]


def notes(row: Row, samples: Samples) -> list[str]:
    """Rates and losses of the round in the middle, and what was wrong with any round."""
    made = []
    for name, taken in samples.items():
        facts = taken[len(taken) // 2].facts
        said = ", ".join(
            f"{key} {value:.1%}" if key in SHARES else f"{number(value)} {key}" for key, value in facts.items()
        )
        wrong = sorted({sample.invalid for sample in taken if sample.invalid})
        made.append(f"* {row.name}, {name}: {'; '.join(filter(None, [said, *wrong])) or 'nothing to tell'}")
    return made


def _conditions(releases: dict[str, str], rounds: int, seconds: float) -> str:
    servers = ", ".join(f"{name} {release}" for name, release in releases.items())
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"\n{today}: {servers}; {python}, Linux {platform.release()}, {_processor()}.\n"
        f"Each server on one core, the generator on another; {rounds} rounds of {seconds:g} s, turn and turn about.\n"
        "Medians (lowest-highest) of each, and the median of the rounds' ratios. CPU time is that of the\n"
        f"server process; load average {os.getloadavg()[0]:.1f}. {BASELINE} speaks no WebSocket: beside WS and\n"
        f"WSS it is measured over TCP and TLS. ({ORDINARY}) is relayd with Autobahn's ordinary path for each message.\n"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as lines_:
        return next(
            (line.partition(":")[2].strip() for line in lines_ if line.startswith("model name")), platform.machine()
        )


# --- a server that runs already -----------------------------------------------------------------------------------


def _one(given: argparse.Namespace, rows: Sequence[Row]) -> int:
    server = given_server(given.server, given.user, given.password, given.pid, given.tls_port)
    server.ws, server.wss = given.ws_port, given.wss_port
    rounds, seconds = _length(given)
    body: list[list[str]] = []
    beside: list[str] = []
    for row in rows:
        if (row.needs_pid and not server.pid) or not server.port(row.transport) or row.baseline != BASELINE:
            continue
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        samples = [_sample(row, server, seconds) for _ in range(rounds)]
        body += [[*line[:2], line[3]] for line in lines(row, {SUBJECT: samples})]
        beside += notes(row, {server.name: samples})
    print(table(["what", "unit", server.name], body))
    print("\n" + "\n".join(beside))
    return 0


def _sample(row: Row, server: Server, seconds: float) -> Sample:
    try:
        return row.measure(server, seconds)
    except BenchError as error:
        return Sample({}, invalid=str(error).splitlines()[0])
