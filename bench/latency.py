"""Round-trip times of single packets through a server, client to peer and back, with or without traffic beside them."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

from bench.errors import BenchError
from bench.mmsg import Datagram, Mirror, ReceiveBatch, SendBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.fleet import Fleet, Send

PROBE_SIZE = 200
"""Bytes of payload of a probe; the first eight are its number."""
PROBE_TIMEOUT_NS = 20_000_000
"""A probe that takes 20 ms counts as lost."""
BACKGROUND_POLL = 16
"""The far end of the background is emptied once in so many packets, to leave the clock to the probes."""


class Beside(NamedTuple):
    """Traffic beside the probes: what to send, how often a second, and the peer's descriptor where it arrives."""

    sends: Sequence[Send]
    rate: float
    fd: int


class RoundTrips(NamedTuple):
    """Times in microseconds of the probes that came back."""

    times: list[float]
    sent: int
    beside_sent: int
    beside_relayed: int


def round_trips(fleet: Fleet, rate: float, seconds: float, beside: Beside | None = None) -> RoundTrips:
    """Send `rate` probes a second from the first client of the fleet to its peer, which sends them back at once.

    One probe is under way at a time, and the generator never sleeps: what is measured is the server and the kernel.
    """
    probes = _Probes(fleet)
    interval = 1e9 / rate
    beside_interval = 1e9 / beside.rate if beside else 0.0
    turns = itertools.cycle(beside.sends) if beside else itertools.cycle([lambda: 0])
    sink = ReceiveBatch()
    sent = relayed = 0
    started = now = time.perf_counter_ns()
    due, beside_due = started + interval, float(started)
    deadline = started + int(seconds * 1e9)
    while now < deadline:
        if now >= due and not probes.pending:
            probes.send(now)
            due = max(due + interval, now - interval)
        if beside and now >= beside_due:
            sent += next(turns)()
            beside_due = max(beside_due + beside_interval, now - PROBE_TIMEOUT_NS)
            if sent % BACKGROUND_POLL == 0:
                relayed += sink.receive(beside.fd)
        if probes.pending:
            probes.poll()
        now = time.perf_counter_ns()
    while beside and relayed < sent and time.perf_counter_ns() < deadline + 5 * PROBE_TIMEOUT_NS:
        relayed += sink.receive(beside.fd)
    return RoundTrips(probes.times, probes.sent, sent, relayed)


class _Probes:
    def __init__(self, fleet: Fleet) -> None:
        member = fleet.clients[0]
        self._fd = member.sock.fileno()
        self._peer = fleet.peer.fileno()
        frame = fleet.framed(bytes(PROBE_SIZE))
        self._batch = SendBatch([Datagram(frame, fleet.server.udp, member.source)])
        self._mirror = Mirror(4)
        self._back = ReceiveBatch(4)
        self._at = 0
        self.pending = False
        self.sent = 0
        self.times: list[float] = []

    def send(self, now: int) -> None:
        self.sent += 1
        self._batch.payloads[0][4:12] = self.sent.to_bytes(8, "big")
        if not self._batch.send(self._fd):
            raise BenchError("the generator's own socket was full")
        self._at = now
        self.pending = True

    def poll(self) -> None:
        self._mirror.reflect(self._peer)
        count = self._back.receive(self._fd)
        now = time.perf_counter_ns()
        number = self.sent.to_bytes(8, "big")
        for index in range(count):
            if self._back.datagram(index)[4:12] == number:
                self.times.append((now - self._at) / 1000)
                self.pending = False
        if now - self._at > PROBE_TIMEOUT_NS:
            self.pending = False
