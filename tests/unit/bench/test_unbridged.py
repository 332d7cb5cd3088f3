"""The relay that the bench compares bridging with."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from bench.unbridged import NoBridge
from tests.unit.dataplane.test_bridge import StubRelay


def test_no_relay_has_a_neighbour() -> None:
    """Relays that are open do not know each other, and closing them is as ever."""
    bridge = NoBridge(Clock())
    relays: list[Any] = [StubRelay(bridge, port, []) for port in (1, 2)]
    for relay in relays:
        assert relay.neighbours == bridge.relays == {}
        bridge.closed(relay)
