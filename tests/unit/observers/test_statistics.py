"""Promises of relayd.observers.statistics: counters that never fall, a history that costs nothing in silence."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.interfaces import Counters
from relayd.observers.refusals import CODES, Refusal, refusal_of
from relayd.observers.statistics import SERIES, Statistics
from relayd.stun.message import Method
from relayd.turn.outputs import (
    AllocationCreated,
    AllocationEnded,
    AllocationRefreshed,
    EndReason,
    PeerConnectionEnded,
    PeerConnectionOpened,
    RequestRefused,
)
from relayd.turn.transaction import REASONS

RELAYED = TransportAddress.parse("192.0.2.9", 50000)


def path(kind: AppConnection = AppConnection.UDP, port: int = 4000) -> Path:
    client, server = TransportAddress.parse("198.51.100.7", port), TransportAddress.parse("192.0.2.1", 3478)
    return Path(FiveTuple(client, server, 17), kind)


class StubRelay:
    def __init__(self) -> None:
        self.counters = Counters()

    def move(self, packets: int, size: int) -> None:
        """So many datagrams each way, and one that is dropped."""
        counters = self.counters
        counters.sent_packets += packets
        counters.received_packets += packets
        counters.sent_bytes += packets * size
        counters.received_bytes += packets * size
        counters.dropped += 1


class House:
    """Statistics, and allocations that come and go."""

    def __init__(self, clock: Clock | None = None, statistics: Statistics | None = None) -> None:
        self.clock = clock if clock is not None else Clock()
        self.statistics = statistics if statistics is not None else Statistics(self.clock)
        self.created: dict[str, AllocationCreated] = {}

    def begin(self, session: str, kind: AppConnection = AppConnection.UDP, relays: int = 1) -> list[StubRelay]:
        made = [StubRelay() for _ in range(relays)]
        event = AllocationCreated(session, path(kind), "alice", tuple((each, RELAYED) for each in made), 17, 600)
        self.created[session] = event
        self.statistics.observe(event)
        return made

    def end(self, session: str, reason: EndReason = EndReason.DELETED) -> None:
        event = self.created.pop(session)
        self.statistics.observe(AllocationEnded(session, event.path, "alice", event.relays, reason, 1.0))

    def seconds(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(1.0)

    def counted(self, name: str) -> list[int]:
        """The history of one counter."""
        return self.statistics.history().since(0)[0][SERIES.index(name)]


def test_connections_with_peers() -> None:
    """They count by the way of their client while they last, and all that there were; strangers' do not."""
    house = House()
    house.begin("a", AppConnection.WSS)
    for session in ("a", "a", "unknown"):
        house.statistics.observe(PeerConnectionOpened(session, RELAYED))
    house.statistics.observe(PeerConnectionEnded("a", RELAYED))
    assert house.statistics.peer_connections == {AppConnection.WSS: 1}
    assert house.statistics.peer_connections_opened == {AppConnection.WSS: 2}


def test_an_allocation_is_followed_through_its_life() -> None:
    """Its traffic counts while it lasts, and once when it has ended; both halves of a dual one count."""
    house = House()
    one, other = house.begin("a", AppConnection.WSS, relays=2)
    assert house.statistics.allocations[AppConnection.WSS] == 1
    one.move(3, 100)
    other.move(2, 10)
    for last in (False, True):
        if last:
            house.end("a", EndReason.EXPIRED)
        traffic = house.statistics.traffic()[AppConnection.WSS]
        assert (traffic.sent_packets, traffic.sent_bytes, traffic.dropped) == (5, 320, 2)
        assert (traffic.received_packets, traffic.received_bytes) == (5, 320)
    assert house.statistics.allocations[AppConnection.WSS] == 0
    assert house.statistics.started[AppConnection.WSS] == 1
    assert house.statistics.ended[AppConnection.WSS, EndReason.EXPIRED] == 1


def test_other_events_count_nothing() -> None:
    """Events that it does not know, and the end of what it never saw begin, change nothing."""
    house = House()
    house.statistics.observe(AllocationRefreshed("a", path(), 600))
    house.begin("a")
    house.created["b"] = house.created["a"]
    house.end("b")
    assert house.statistics.allocations[AppConnection.UDP] == 1
    assert not house.statistics.ended


@pytest.mark.parametrize(
    ("method", "code", "refusal"),
    [
        (0, 0, Refusal.MALFORMED),
        (Method.BINDING, 0, Refusal.THROTTLED),
        (Method.ALLOCATE, 401, Refusal.UNAUTHORIZED),
        (Method.ALLOCATE, 403, Refusal.FORBIDDEN),
        (Method.CHANNEL_BIND, 403, Refusal.PEER_FORBIDDEN),
        (Method.CREATE_PERMISSION, 403, Refusal.PEER_FORBIDDEN),
        (Method.ALLOCATE, 486, Refusal.QUOTA),
        (Method.ALLOCATE, 599, Refusal.OTHER),
    ],
)
def test_refusals_are_counted_by_reason(method: int, code: int, refusal: Refusal) -> None:
    """Each refusal counts under one word of a closed list, whatever code a policy makes up."""
    statistics = House().statistics
    for _ in range(2):
        statistics.observe(RequestRefused(path(), method, code, "x" * 500))
    assert statistics.refused == {refusal: 2}


def test_every_reason_has_a_code() -> None:
    """All but the one for what is not in the list, and each comes about by its code."""
    assert set(CODES) == set(Refusal) - {Refusal.OTHER}
    for refusal, code in CODES.items():
        methods = (0, Method.ALLOCATE, Method.CHANNEL_BIND)
        assert refusal in {refusal_of(RequestRefused(path(), method, code)) for method in methods}


def test_every_code_has_a_reason() -> None:
    """Whatever the relay itself answers counts under a word of its own; `other` is left to policies."""
    for code in REASONS:
        assert refusal_of(RequestRefused(path(), Method.CONNECT, code)) is not Refusal.OTHER


def test_no_history_costs_no_delayed_call() -> None:
    """A relay without pages never wakes up for them."""
    house = House()
    house.begin("a")
    assert house.clock.getDelayedCalls() == []


def test_history_follows_the_traffic() -> None:
    """Second by second there is what went through in it, with the number of allocations at its end."""
    house = House()
    house.statistics.keep_history()
    house.seconds(2)
    (relay,) = house.begin("a")
    for packets in (5, 0, 7):
        relay.move(packets, 100)
        house.seconds(1)
    assert house.counted("sent_packets") == [0, 0, 5, 0, 7]
    assert house.counted("received_bytes") == [0, 0, 500, 0, 700]
    assert house.counted("dropped") == [0, 0, 1, 1, 1]
    assert house.statistics.history().since(0)[1] == [0, 0, 1, 1, 1]


def test_history_of_allocations_that_began_before_it() -> None:
    """Pages that are opened late show what goes on from then."""
    house = House()
    (relay,) = house.begin("a")
    relay.move(50, 100)
    house.statistics.keep_history()
    relay.move(4, 100)
    house.seconds(1)
    assert house.counted("sent_packets") == [4]


def test_nothing_wakes_up_in_silence() -> None:
    """With the last allocation the sampling ends, and what it moved last is in the second in which it did."""
    house = House()
    house.statistics.keep_history()
    house.begin("a")
    (relay,) = house.begin("b")
    house.end("a")
    assert len(house.clock.getDelayedCalls()) == 1
    house.clock.advance(0.5)
    relay.move(9, 10)
    house.end("b")
    assert house.clock.getDelayedCalls() == []
    house.clock.advance(9.5)
    assert house.counted("sent_packets") == [9, *[0] * 9]
    house.begin("c")
    house.seconds(1)
    assert house.statistics.history().since(9)[1] == [0, 1]
    house.end("c")
    assert house.clock.getDelayedCalls() == []


def test_the_busiest_come_first() -> None:
    """Sessions are ordered by what they move now, smoothed over some seconds; then by what they have moved."""
    house = House()
    house.statistics.keep_history()
    relays = {name: house.begin(name)[0] for name in "abcd"}
    relays["d"].move(1, 5)
    for _ in range(30):
        relays["b"].move(10, 100)
        house.seconds(1)
    first = house.statistics.busiest(3)
    assert [each.session_id for each in first] == ["b", "d", "a"]
    assert first[0].sent_rate == pytest.approx(1000, rel=0.01)
    for _ in range(30):
        relays["c"].move(1, 100)
        house.seconds(1)
    assert [each.session_id for each in house.statistics.busiest(2)] == ["c", "b"]


def test_rates_outlive_a_clock_that_is_set_back() -> None:
    """An hour less on the clock makes no rate negative, and no division by zero."""
    house = House()
    house.statistics.keep_history()
    (relay,) = house.begin("a")
    house.seconds(3)
    house.clock.rightNow -= 2.0
    for _ in range(3):
        relay.move(1, 100)
        house.statistics._take_sample()
    (session,) = house.statistics.busiest(1)
    assert session.sent_rate >= 0
    assert session.sent_bytes == 300


def test_counters_never_fall() -> None:
    """What a scraper sees grows, or stays, as allocations come, move data and end in any order."""
    house: Any = House()
    house.statistics.keep_history()
    seen = [0] * len(SERIES)
    for number in range(40):
        for relay in house.begin(str(number), list(AppConnection)[number % 7]):
            relay.move(number, 10)
        if number % 3 == 2:
            house.end(str(number - 1))
        house.seconds(number % 2)
        totals = [sum(getattr(each, name) for each in house.statistics.traffic().values()) for name in SERIES]
        assert all(new >= old for new, old in zip(totals, seen, strict=True))
        seen = totals
