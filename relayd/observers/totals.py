"""Totals since the start, by labels from closed lists only: what a metrics page or a status page shows. Never a user
name.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from zope.interface import implementer

from relayd.address import AppConnection
from relayd.interfaces import Counters, IAllocationObserver
from relayd.observers.log import sum_counters
from relayd.turn.outputs import AllocationCreated, AllocationEnded, EndReason, RequestRefused


@implementer(IAllocationObserver)
class Totals:
    """Counts what the service did. `traffic()` includes the allocations that are still going on."""

    def __init__(self) -> None:
        self.started: Counter[AppConnection] = Counter()
        self.ended: Counter[tuple[AppConnection, EndReason]] = Counter()
        self.refused: Counter[int] = Counter()  # by STUN error code; 0: dropped without an answer
        self._live: dict[str, AllocationCreated] = {}
        self._ended_traffic: dict[AppConnection, Counters] = {kind: Counters() for kind in AppConnection}

    def observe(self, event: Any) -> None:
        if isinstance(event, AllocationCreated):
            self.started[event.path.app_connection] += 1
            self._live[event.session_id] = event
        elif isinstance(event, AllocationEnded):
            self.ended[event.path.app_connection, event.reason] += 1
            self._live.pop(event.session_id, None)
            _add(self._ended_traffic[event.path.app_connection], sum_counters(event.relays))
        elif isinstance(event, RequestRefused):
            self.refused[event.code] += 1

    @property
    def allocations(self) -> Counter[AppConnection]:
        """Allocations that are going on now."""
        return Counter(created.path.app_connection for created in self._live.values())

    def traffic(self) -> dict[AppConnection, Counters]:
        """Datagrams and payload bytes relayed since the start, by app_connection."""
        totals: dict[AppConnection, Counters] = {}
        for kind, ended in self._ended_traffic.items():
            totals[kind] = Counters()
            _add(totals[kind], ended)
        for created in self._live.values():
            _add(totals[created.path.app_connection], sum_counters(created.relays))
        return totals


def _add(total: Counters, more: Counters) -> None:
    for name in Counters.__slots__:
        setattr(total, name, getattr(total, name) + getattr(more, name))
