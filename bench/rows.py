"""The rows of the comparison: what is measured, how, in which unit, and how much of coturn's figure relayd may need."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench import accounting
from bench.cycles import run_cycles
from bench.fleet import Fleet, Transport, bursts, interleaved
from bench.latency import Beside, RoundTrips, round_trips
from bench.pairs import Pairs
from bench.report import percentile
from bench.streams import Direction, Streams, StreamTransport
from bench.traffic import Flowed, full_rate, paced, sink_for
from relayd.pipe.stream_end import MAX_BUFFERED

if TYPE_CHECKING:
    from bench.servers import Server

BASELINE, ORDINARY, UNBRIDGED, SUBJECT = "coturn", "autobahn", "unbridged", "relayd"
"""What is compared: coturn; a relayd whose WebSocket is Autobahn's ordinary path; one that does not bridge; and relayd
as it is.
"""
WINDOWS = {200: 256, 1200: 96}
"""Packets on their way at full rate, by payload size: no server runs dry, and its socket buffer holds them."""
LATENCY_PERCENTILES = (50, 90, 99)
PROBES_PER_SECOND = 1000
BESIDE_PER_SECOND = 20_000
PACED_PER_SECOND = 50_000
IDLE_ALLOCATIONS = 5000
STALLED = 50
IDLE_CLIENTS = 1000
WARM_SECONDS = 0.2
SETTLE_SECONDS = 0.3
"""After the load, so that work that the server puts off is charged to it."""

LEAST_BUSY = 0.9
"""A server that ran, or waited for its core, less of the time than this was not at full rate: it is the generator's."""
MOST_WAIT = 0.25
"""A server that waited longer for its core, because others used it, found fuller queues than its load made."""
MOST_LOSS = 0.01
MOST_LATE = 0.1
"""Share of packets that may miss their pace before a paced run is worth nothing."""


@dataclass
class Sample:
    """One measurement on one server: a figure for each column of the row, and what there is to say about it."""

    figures: dict[str, float]
    facts: dict[str, float] = field(default_factory=dict)
    invalid: str = ""


@dataclass(frozen=True)
class Row:
    """`measure` takes a server and seconds; `goals` are ratios to the baseline by column, `most` figures that relayd
    itself may have at most; `fresh`: on a new server.
    """

    name: str
    title: str
    unit: str
    measure: Callable[[Server, float], Sample]
    goals: dict[str, float] = field(default_factory=dict)
    fresh: bool = False
    transport: Transport = "udp"
    needs_pid: bool = True
    baseline: str = BASELINE
    most: dict[str, float] = field(default_factory=dict)


def relay_cost(
    server: Server, seconds: float, *, direction: str, size: int, clients: int, transport: Transport
) -> Sample:
    """CPU time per relayed packet at full rate: bursts of 32 with up to 10 clients, fully interleaved with more."""
    transport = server.nearest(transport)
    order = bursts(clients) if clients <= 10 else interleaved(clients)
    with Fleet.of(server, clients, transport) as fleet:
        if direction != "down":
            sends = fleet.up(size, order)
        else:
            sends = fleet.down(size, order) if transport == "udp" else fleet.down_segmented(size, order)
        run = partial(full_rate, sends, window=WINDOWS[size])
        run(sink_for(fleet, direction, size), seconds=WARM_SECONDS)
        sample = _cost(server, lambda: run(sink_for(fleet, direction, size), seconds=seconds))
    if server.pid and sample.facts["busy"] < LEAST_BUSY:
        sample.invalid = sample.invalid or f"generator too slow (server busy {sample.facts['busy']:.0%})"
    return sample


def across_cost(server: Server, seconds: float, *, transport: Transport) -> Sample:
    """CPU time per packet from client to client of one relay at full rate: 5 pairs, 200 bytes, bursts of 32."""
    with Pairs.of(server, 10, transport) as pairs:
        run = partial(full_rate, pairs.across(200, bursts(10)), window=WINDOWS[200])
        run(sink_for(pairs, "across", 200), seconds=WARM_SECONDS)
        return _cost(server, lambda: run(sink_for(pairs, "across", 200), seconds=seconds))


def paced_cost(server: Server, seconds: float, *, direction: str) -> Sample:
    """CPU time per relayed packet when they come one by one, 200 bytes, 10 clients in turn."""
    with Fleet.of(server, 10) as fleet:
        order = list(range(10))
        sends = fleet.down(200, order, 1) if direction == "down" else fleet.up(200, order, 1)
        run = partial(paced, sends, rate=PACED_PER_SECOND)
        run(sink_for(fleet, direction, 200), seconds=WARM_SECONDS)
        return _cost(server, lambda: run(sink_for(fleet, direction, 200), seconds=seconds))


def _cost(server: Server, run: Callable[[], Flowed]) -> Sample:
    time.sleep(SETTLE_SECONDS)
    before = accounting.cpu_time(server.pid) if server.pid else None
    flowed = run()
    facts = {"packets/s": flowed.relayed / flowed.seconds, "loss": flowed.loss}
    figures: dict[str, float] = {}
    if before is not None:
        # Read once it is idle again: a thread on the core is accounted for only up to the last tick.
        busy_until = time.monotonic_ns()
        time.sleep(SETTLE_SECONDS)
        used = accounting.cpu_time(server.pid).since(before)
        facts["busy"] = used._replace(at=int(flowed.seconds * 1e9)).busy
        facts["wait"] = used.wait / max(1, busy_until - before.at)
        if flowed.relayed:
            figures["cpu"] = used.run / 1000 / flowed.relayed
    invalid = ""
    if flowed.loss > MOST_LOSS:
        invalid = f"{flowed.loss:.1%} of the packets were lost"
    elif flowed.late > MOST_LATE:
        invalid = f"generator too slow ({flowed.late:.0%} of the packets late)"
    else:
        invalid = _disturbed(facts.get("wait", 0.0))
    return Sample(figures, facts, invalid)


def stream_cost(
    server: Server, seconds: float, *, direction: Direction, count: int, transport: StreamTransport
) -> Sample:
    """CPU time per megabyte on relayed TCP connections."""
    if transport == "ws" and not server.ws:
        transport = "tcp"
    with Streams.of(server, count, transport) as streams:
        streams.run(direction, WARM_SECONDS)
        before = accounting.cpu_time(server.pid)
        megabytes, took = streams.run(direction, seconds)
        used = accounting.cpu_time(server.pid).since(before)
    facts = {"MB/s": megabytes / took, "wait": used.wait / used.at}
    if not megabytes:
        return Sample({}, facts, "nothing came through")
    return Sample({"cpu": used.run / 1000 / megabytes}, facts, _disturbed(facts["wait"]))


def stalled_memory(server: Server, seconds: float) -> Sample:
    """Resident memory for each relayed connection whose receiver does not read, while its sender sends what it may."""
    with Streams.of(server, STALLED, "tcp") as streams:
        streams.run("up", WARM_SECONDS)
        before = accounting.resident(server.pid)
        streams.stall(seconds)
        after = accounting.resident(server.pid)
    return Sample({"memory": (after - before) / 1024 / STALLED}, {"RSS MB": after / (1 << 20)})


def cycle_cost(server: Server, seconds: float) -> Sample:
    """CPU time per allocation cycle."""
    run_cycles(server, WARM_SECONDS)
    time.sleep(SETTLE_SECONDS)
    before = accounting.cpu_time(server.pid) if server.pid else None
    cycles, silences = run_cycles(server, seconds)
    facts = {"cycles/s": cycles / seconds}
    invalid = "requests had to be repeated" if silences else ""
    if before is None or not cycles:
        return Sample({}, facts, invalid)
    time.sleep(SETTLE_SECONDS)
    used = accounting.cpu_time(server.pid).since(before)
    return Sample({"cpu": used.run / 1000 / cycles}, facts, invalid)


def idle_memory(
    server: Server, _seconds: float, *, allocations: int = IDLE_ALLOCATIONS, transport: Transport = "udp"
) -> Sample:
    """Resident memory per allocation that does nothing, with one permission and one channel."""
    transport = server.nearest(transport)
    with Fleet.of(server, 100, transport):
        pass  # The code that allocates and relays is resident from here on.
    fleet = Fleet(server, transport)
    try:
        before = accounting.resident(server.pid)
        for _ in range(allocations):
            fleet.add()
        time.sleep(SETTLE_SECONDS)
        after = accounting.resident(server.pid)
        for member in fleet.clients[:: max(1, allocations // 50)]:
            fleet.prove(member)
    finally:
        fleet.close()
    return Sample({"memory": (after - before) / 1024 / allocations}, {"RSS MB": after / (1 << 20)})


def latency(server: Server, seconds: float, *, beside: bool) -> Sample:
    """Percentiles of the round trip, alone or with other clients' packets passing at the same time."""
    with Fleet.of(server, 1) as probe, Fleet.of(server, 10) as others:
        traffic = None
        if beside:
            traffic = Beside(others.up(200, list(range(10)), 1), BESIDE_PER_SECOND, others.peer.fileno())
        before = accounting.cpu_time(server.pid) if server.pid else None
        sample = _trips_sample(round_trips(probe, PROBES_PER_SECOND, seconds, traffic))
        if before is not None:
            used = accounting.cpu_time(server.pid).since(before)
            sample.facts["wait"] = used.wait / used.at
            sample.invalid = sample.invalid or _disturbed(sample.facts["wait"])
        return sample


def _disturbed(wait: float) -> str:
    return f"others used the server's core (it waited {wait:.0%} of the time)" if wait > MOST_WAIT else ""


def _trips_sample(trips: RoundTrips) -> Sample:
    times = sorted(trips.times)
    lost = 1 - len(times) / trips.sent if trips.sent else 1.0
    facts = {"loss": lost}
    if trips.beside_sent:
        facts["beside loss"] = 1 - trips.beside_relayed / trips.beside_sent
    figures = {f"p{rank}": percentile(times, rank) for rank in LATENCY_PERCENTILES} if times else {}
    worst = max(facts.values())
    return Sample(figures, facts, f"{worst:.1%} of the packets were lost" if worst > MOST_LOSS else "")


def _relay_row(
    direction: str,
    size: int,
    clients: int,
    goal: float | None,
    transport: Transport = "udp",
    baseline: str = BASELINE,
) -> Row:
    spread = "bursts of 32" if clients <= 10 else "interleaved"
    name = f"{transport}-{direction}-{size}" + (f"-{clients}" if clients != 10 else "")
    title = f"{transport.upper()} {direction}, {size} B, {clients} allocations, {spread}"
    if baseline != BASELINE:
        name += f"-{baseline}"
        title += f" ({baseline})"
    measure = partial(relay_cost, direction=direction, size=size, clients=clients, transport=transport)
    goals = {} if goal is None else {"cpu": goal}
    return Row(name, title, "us/packet", measure, goals, transport=transport, needs_pid=False, baseline=baseline)


def _across_row(transport: Transport) -> Row:
    title = f"{transport.upper()} to {transport.upper()}, 200 B, 5 pairs on one relay, bursts of 32 (unbridged)"
    measure = partial(across_cost, transport=transport)
    return Row(
        f"{transport}-across-200", title, "us/packet", measure, {"cpu": 0.6}, transport=transport, baseline=UNBRIDGED
    )


def _stream_row(transport: StreamTransport, direction: Direction, count: int) -> Row:
    title = f"TCP relayed {direction} over {transport.upper()}, {count} stream{'s' if count > 1 else ''}"
    measure = partial(stream_cost, direction=direction, count=count, transport=transport)
    # 0.8, and over WebSocket 0.5, of the megabytes that coturn relays in a second of CPU time
    goal = 1.25 if transport == "tcp" else 2.0
    return Row(f"relay-{transport}-{direction}-{count}", title, "us/MB", measure, {"cpu": goal}, transport=transport)


_WAYS = ("up", "down", "echo")
_STREAMS: tuple[tuple[Transport, float], ...] = (("tcp", 1.5), ("tls", 2.0), ("ws", 2.0), ("wss", 2.0))
"""With their goals; coturn, which speaks no WebSocket, is measured over the stream below it."""
_ACROSS: tuple[Transport, ...] = ("udp", "ws")
_RELAYED: tuple[StreamTransport, ...] = ("tcp", "ws")
_RELAYED_WAYS: tuple[Direction, ...] = ("up", "down")
ROWS: tuple[Row, ...] = (
    *(_relay_row(way, 200, 10, None if way == "echo" else 0.9) for way in _WAYS),
    *(_relay_row(way, 1200, 10, None) for way in _WAYS),
    *(_relay_row(way, 200, 200, 1.5) for way in ("up", "down")),
    *(
        Row(
            f"paced-{way}",
            f"UDP {way}, 200 B, paced 50,000/s",
            "us/packet",
            partial(paced_cost, direction=way),
            {"cpu": 1.5},
        )
        for way in ("up", "down")
    ),
    *(_relay_row(way, 200, 10, goal, transport) for transport, goal in _STREAMS for way in ("up", "down")),
    *(_relay_row(way, 200, 10, 0.35, "ws", ORDINARY) for way in ("up", "down")),
    *(_across_row(transport) for transport in _ACROSS),
    *(_stream_row(kind, way, count) for kind in _RELAYED for way in _RELAYED_WAYS for count in (1, 50)),
    Row("cycles", "401, Allocate, CreatePermission, Refresh(0)", "us/cycle", cycle_cost, {"cpu": 4.0}),
    Row("memory", f"idle allocation ({IDLE_ALLOCATIONS:,} of them)", "KB", idle_memory, {"memory": 0.5}, fresh=True),
    Row(
        "memory-ws",
        f"idle WebSocket client with an allocation ({IDLE_CLIENTS:,} of them)",
        "KB",
        partial(idle_memory, allocations=IDLE_CLIENTS, transport="ws"),
        fresh=True,
        transport="ws",
        most={"memory": 60.0},
    ),
    Row(
        "memory-stalled",
        f"relayed TCP connection with a receiver that stalls ({STALLED} of them)",
        "KB",
        stalled_memory,
        fresh=True,
        transport="tcp",
        most={"memory": MAX_BUFFERED / 1024},
    ),
    Row("latency", "round trip at 1,000/s, idle", "us", partial(latency, beside=False), {"p50": 1.5}, needs_pid=False),
    Row(
        "latency-loaded",
        "round trip at 1,000/s beside 20,000/s",
        "us",
        partial(latency, beside=True),
        {"p50": 1.5},
        needs_pid=False,
    ),
)
