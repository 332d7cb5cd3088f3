"""What the relay did since its start and does now, in numbers: what its pages and metrics show. Never a user name.

Counters are read off the relays of the allocations that last, so a datagram costs nothing here. Reading 5,000 of them
takes a few milliseconds; it is done when somebody asks and, once a history is kept, each second in which there are
allocations.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.interfaces import Counters, IAllocationObserver
from relayd.observers.history import History
from relayd.observers.refusals import Refusal, refusal_of
from relayd.turn.outputs import (
    AllocationCreated,
    AllocationEnded,
    EndReason,
    PeerConnectionEnded,
    PeerConnectionOpened,
    RequestRefused,
)

SAMPLE_INTERVAL = 1.0  # seconds: what the history resolves
SERIES = Counters.__slots__
"""The counters of a history, in its order."""

RATE_MEMORY = 5.0  # seconds over which the rate of a session is smoothed, so that a list ordered by it can be read


class Session:
    """An allocation that lasts. Bytes and rates are as of the last sample; rates are in bytes a second."""

    __slots__ = (
        "session_id",
        "app_connection",
        "started",
        "counters",
        "sent_bytes",
        "received_bytes",
        "sent_rate",
        "received_rate",
    )

    def __init__(self, event: AllocationCreated, now: float) -> None:
        self.session_id = event.session_id
        self.app_connection = event.path.app_connection
        self.started = now
        relays: Sequence[Any] = [relay for relay, _ in event.relays]
        self.counters: list[Counters] = [relay.counters for relay in relays]
        self.sent_bytes = self.received_bytes = 0
        self.sent_rate = self.received_rate = 0.0

    @property
    def rate(self) -> float:
        """Both directions together."""
        return self.sent_rate + self.received_rate


@implementer(IAllocationObserver)
class Statistics:
    """An observer that counts. What it counts never falls, whatever ends."""

    def __init__(self, clock: IReactorTime) -> None:
        self.started: Counter[AppConnection] = Counter()
        self.ended: Counter[tuple[AppConnection, EndReason]] = Counter()
        self.refused: Counter[Refusal] = Counter()
        self.allocations: Counter[AppConnection] = Counter()  # that last
        self.peer_connections: Counter[AppConnection] = Counter()  # over TCP, that last
        self.peer_connections_opened: Counter[AppConnection] = Counter()
        self._clock = clock
        self._live: dict[str, Session] = {}
        self._ended_traffic = {kind: Counters() for kind in AppConnection}
        self._history: History | None = None
        self._sampled = 0.0
        self._call: IDelayedCall | None = None

    def observe(self, event: Any) -> None:
        if isinstance(event, AllocationCreated):
            self._begin(event)
        elif isinstance(event, AllocationEnded):
            self._end(event)
        elif isinstance(event, RequestRefused):
            self.refused[refusal_of(event)] += 1
        elif isinstance(event, PeerConnectionOpened):
            self._count_connection(event.session_id, 1)
        elif isinstance(event, PeerConnectionEnded):
            self._count_connection(event.session_id, -1)

    # --- what is asked ------------------------------------------------------------------------------------------------

    def traffic(self) -> dict[AppConnection, Counters]:
        """Datagrams and payload bytes relayed since the start, by app_connection, up to this moment."""
        totals: dict[AppConnection, Counters] = {}
        for kind, ended in self._ended_traffic.items():
            totals[kind] = Counters()
            totals[kind].add(ended)
        for session in self._live.values():
            for counters in session.counters:
                totals[session.app_connection].add(counters)
        return totals

    def keep_history(self) -> None:
        """From now on, and until no allocation lasts, one delayed call at a time samples the counters."""
        if self._history is None:
            now = self._clock.seconds()
            self._history = History(self._read(now), now)
            self._sample_later()

    def history(self) -> History:
        """The last minutes: `SERIES`, and the number of allocations. `keep_history` has to have been called before.

        Where nothing is sampled, because there is no allocation, it goes on all the same.
        """
        assert self._history is not None
        if self._call is None:
            self._sample()
        return self._history

    def busiest(self, count: int) -> list[Session]:
        """The sessions with the highest rates; among equals, those that have moved most."""
        return heapq.nlargest(count, self._live.values(), attrgetter("rate", "sent_bytes", "received_bytes"))

    # --- within -------------------------------------------------------------------------------------------------------

    def _begin(self, event: AllocationCreated) -> None:
        if self._history is not None and self._call is None:
            self._sample()  # up to here there was silence
        kind = event.path.app_connection
        self.started[kind] += 1
        self.allocations[kind] += 1
        self._live[event.session_id] = Session(event, self._clock.seconds())
        self._sample_later()

    def _end(self, event: AllocationEnded) -> None:
        session = self._live.pop(event.session_id, None)
        if session is None:
            return
        kind = session.app_connection
        self.ended[kind, event.reason] += 1
        self.allocations[kind] -= 1
        for counters in session.counters:
            self._ended_traffic[kind].add(counters)
        if not self._live and self._call is not None:
            self._call.cancel()
            self._call = None
            self._sample()

    def _count_connection(self, session_id: str, change: int) -> None:
        session = self._live.get(session_id)
        if session is not None:
            self.peer_connections[session.app_connection] += change
            self.peer_connections_opened[session.app_connection] += change > 0

    def _sample_later(self) -> None:
        if self._history is not None and self._live and self._call is None:
            self._call = self._clock.callLater(SAMPLE_INTERVAL, self._take_sample)

    def _take_sample(self) -> None:
        self._call = None
        self._sample()
        self._sample_later()

    def _sample(self) -> None:
        assert self._history is not None
        now = self._clock.seconds()
        self._history.add(now, self._read(now), len(self._live))

    def _read(self, now: float) -> list[int]:
        """Where `SERIES` stand; brings the sessions up to date."""
        elapsed, self._sampled = now - self._sampled, now
        ended = self._ended_traffic.values()
        totals = [sum(getattr(counters, name) for counters in ended) for name in SERIES]
        sent_packets, sent_bytes, received_packets, received_bytes, dropped, bridged = totals
        keep = math.exp(-elapsed / RATE_MEMORY) if elapsed > 0 else 1.0
        per_second = (1.0 - keep) / elapsed if elapsed > 0 else 0.0
        # Written out: this is run for every allocation each second.
        for session in self._live.values():
            sent = received = 0
            for counters in session.counters:
                sent += counters.sent_bytes
                received += counters.received_bytes
                sent_packets += counters.sent_packets
                received_packets += counters.received_packets
                dropped += counters.dropped
                bridged += counters.bridged
            session.sent_rate = session.sent_rate * keep + (sent - session.sent_bytes) * per_second
            session.received_rate = session.received_rate * keep + (received - session.received_bytes) * per_second
            session.sent_bytes, session.received_bytes = sent, received
            sent_bytes += sent
            received_bytes += received
        return [sent_packets, sent_bytes, received_packets, received_bytes, dropped, bridged]
