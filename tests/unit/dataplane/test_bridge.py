"""Promises of relayd.dataplane.bridge about what waits: order, turns, bounds, and that nothing is left."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from relayd.address import TransportAddress
from relayd.dataplane.bridge import SERVED_PER_TURN, WAITING_BYTES, Bridge, Queue
from relayd.interfaces import Counters

HERE = TransportAddress.parse("192.0.2.1", 0)


class StubRelay:
    """What the bridge needs of a relay. `flows` has what the flow's client took."""

    def __init__(self, bridge: Bridge, port: int, told: list[Any]) -> None:
        self.address = HERE.with_port(port)
        self.key = port
        self.flows: dict[int, list[bytes]] = {}
        self.counters = Counters()
        self.neighbours: dict[TransportAddress, Any] = {}
        self.waiting: Queue | None = None
        self.told = told
        self.then: Any = lambda: None
        relay: Any = self
        bridge.opened(relay)

    def pass_down(self, flow: list[bytes], payload: bytes) -> None:
        flow.append(payload)

    def hand_up(self, peer: TransportAddress, data: bytes) -> None:
        self.told.append((self, peer.port, data))
        self.then()


class House:
    def __init__(self) -> None:
        self.clock = Clock()
        self.bridge = Bridge(self.clock)
        self.told: list[Any] = []

    def relay(self, port: int) -> Any:
        return StubRelay(self.bridge, port, self.told)

    def turn(self) -> None:
        """One turn of the reactor: what is armed in it is for the next. (`Clock.advance` would call it too.)"""
        armed: Any = self.clock.getDelayedCalls()
        for call in armed:
            function = call.func
            call.cancel()
            function()


@pytest.fixture
def house() -> House:
    return House()


def test_a_flow_takes_it_at_once(house: House) -> None:
    """Where the target has a flow for the sender nothing waits, and no call is armed."""
    sender, target = house.relay(1), house.relay(2)
    taken: list[bytes] = []
    target.flows[1] = taken
    assert house.bridge.cross(sender, target, b"x")
    assert taken == [b"x"]
    assert sender.counters.bridged == 1
    assert house.clock.getDelayedCalls() == []


def test_each_relay_in_turn(house: House) -> None:
    """One datagram of each relay in rotation, and no more in one turn than its share; the rest in the next ones."""
    sender, flooded, quiet = house.relay(1), house.relay(2), house.relay(3)
    for index in range(SERVED_PER_TURN):
        house.bridge.cross(sender, flooded, b"%d" % index)
    house.bridge.cross(sender, quiet, b"first")
    house.bridge.cross(sender, quiet, b"second")
    assert house.told == []
    house.turn()
    assert [each[0] for each in house.told[:5]] == [flooded, quiet, flooded, quiet, flooded]
    assert len(house.told) == SERVED_PER_TURN
    house.turn()
    assert [data for relay, _, data in house.told if relay is flooded] == [b"%d" % i for i in range(SERVED_PER_TURN)]
    assert (flooded.waiting, quiet.waiting) == (None, None)
    assert house.clock.getDelayedCalls() == []


def test_the_bound(house: House) -> None:
    """What exceeds the bound in bytes is dropped and counted at the target, and there is room again afterwards."""
    sender, target = house.relay(1), house.relay(2)
    for _ in range(5):
        assert house.bridge.cross(sender, target, bytes(WAITING_BYTES // 4))
    assert target.counters.dropped == 1
    house.turn()
    assert len(house.told) == 4
    for _ in range(4):
        house.bridge.cross(sender, target, bytes(WAITING_BYTES // 4))
    assert target.counters.dropped == 1


def test_a_flow_does_not_overtake(house: House) -> None:
    """What is sent after a flow came waits behind what was sent before, and all of it takes the flow."""
    sender, target = house.relay(1), house.relay(2)
    house.bridge.cross(sender, target, b"before")
    taken: list[bytes] = []
    target.flows[1] = taken
    house.bridge.cross(sender, target, b"after")
    assert taken == []
    house.turn()
    assert taken == [b"before", b"after"]
    assert house.told == []


def test_what_is_sent_while_one_is_told_waits(house: House) -> None:
    """A receiver that sends when it is told is served again in its turn, with one call armed, and not within."""
    one, two = house.relay(1), house.relay(2)
    two.then = lambda: house.bridge.cross(two, one, b"answer")
    house.bridge.cross(one, two, b"question")
    house.bridge.cross(one, two, b"question")
    house.turn()
    assert [relay for relay, _, _ in house.told] == [two, two, one, one]
    house.turn()
    assert len(house.told) == 4
    assert house.clock.getDelayedCalls() == []


def test_closing_leaves_nothing(house: House) -> None:
    """A relay that closes takes what waits for it along; the last one takes the delayed call along."""
    sender, one, two = house.relay(1), house.relay(2), house.relay(3)
    for target in (one, one, two, two):
        house.bridge.cross(sender, target, b"x")
    house.bridge.closed(one)
    house.turn()
    assert [relay for relay, _, _ in house.told] == [two, two]
    house.turn()
    house.bridge.cross(sender, two, b"x")
    for relay in (two, sender, sender):
        house.bridge.closed(relay)
    assert house.clock.getDelayedCalls() == []
    assert house.bridge.relays == {}


def test_closing_while_one_is_told(house: House) -> None:
    """The receiver may close any relay when it is told: what waits for it is not delivered."""
    sender, one, two = house.relay(1), house.relay(2), house.relay(3)
    for target in (one, two, one, two):
        house.bridge.cross(sender, target, b"x")

    def close_both() -> None:
        for relay in (one, two):
            house.bridge.closed(relay)

    one.then = close_both
    house.turn()
    assert [relay for relay, _, _ in house.told] == [one]
    assert house.clock.getDelayedCalls() == []


def test_an_address_that_is_used_again(house: House) -> None:
    """Closing the old relay late does not take the new one at its address out of reach."""
    old = house.relay(1)
    new = house.relay(1)
    house.bridge.closed(old)
    assert house.bridge.relays == {HERE.with_port(1): new}


def test_the_longest(house: House) -> None:
    """What UDP over IPv4 could not carry is refused, and counts for nothing."""
    sender, target = house.relay(1), house.relay(2)
    assert not house.bridge.cross(sender, target, bytes(65_508))
    assert house.bridge.cross(sender, target, bytes(65_507))
    assert (sender.counters.bridged, target.counters.dropped) == (1, 0)
