"""RelayService as a shell: it carries out what the core decides, holds no client longer than the core does, and no
fault of one of its neighbours reaches another.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.errors import RelayUnavailable
from relayd.interfaces import Counters
from relayd.rate import TokenBucket
from relayd.service import RelayService
from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm
from relayd.turn import outputs as out

SERVER = TransportAddress.parse("192.0.2.1", 3478)
PEER = TransportAddress.parse("198.51.100.9", 9000)
ADVERTISED = TransportAddress.parse("203.0.113.1", 50000)


def path(port: int = 4000) -> Path:
    return Path(FiveTuple(TransportAddress.parse("198.51.100.7", port), SERVER, 17), AppConnection.UDP)


class ScriptedCore:
    """Stands in for the TURN core: puts out what the test says, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.outputs: deque[Any] = deque()
        self.on_receive: list[Any] = []
        self.on_answer: list[Any] = []
        self.held: set[Path] = set()
        self.fault: Exception | None = None

    def receive(self, path: Path, data: bytes, now: float) -> None:
        self.told.append(("receive", path, data))
        self.outputs.extend(self.on_receive)
        if self.fault is not None:
            raise self.fault

    def answer(self, id: int, result: Any, now: float) -> None:
        self.told.append(("answer", id, result))
        self.outputs.extend(self.on_answer)

    def receive_from_peer(self, relay: Any, peer: TransportAddress, data: bytes, now: float) -> None:
        self.told.append(("peer", relay, peer, data))
        self.outputs.extend(self.on_receive)

    def path_closed(self, path: Path, now: float) -> None:
        self.told.append(("closed", path))

    def shutdown(self, now: float) -> None:
        self.told.append(("shutdown",))

    def holds(self, path: Path) -> bool:
        return path in self.held

    def handle_timer(self, now: float) -> None: ...

    def next_timer(self) -> float | None:
        return None

    def next_output(self) -> Any:
        return self.outputs.popleft() if self.outputs else None


class StubClient:
    def __init__(self, port: int = 4000, takes: bool = True) -> None:
        self.path = path(port)
        self.flows: dict[int, Any] = {}
        self.sent: list[Any] = []
        self.takes = takes

    def send(self, data: bytes) -> bool:
        if self.takes:
            self.sent.append(data)
        return self.takes

    def send_from(self, source: TransportAddress, destination: TransportAddress, data: bytes) -> bool:
        self.sent.append((source, destination, data))
        return True


class StubRelay:
    def __init__(self) -> None:
        self.address = SERVER.with_port(50_000)
        self.counters = Counters()
        self.limit: TokenBucket | None = None
        self.sent: list[Any] = []
        self.closed = False

    def send(self, peer: TransportAddress, data: bytes, dont_fragment: bool = False) -> bool:
        self.sent.append((peer, data, dont_fragment))
        return True

    def close(self) -> None:
        self.closed = True


class StubTransport:
    transport = 17

    def __init__(self) -> None:
        self.opened: list[StubRelay] = []
        self.faults: dict[Family, Exception] = {}

    def open(self, family: Family, receiver: Any, even_port: bool = False, reserve_next: bool = False) -> Deferred[Any]:
        if family in self.faults:
            return fail(self.faults[family])
        relay = StubRelay()
        self.opened.append(relay)
        reserved = (StubRelay(), ADVERTISED.with_port(50001)) if reserve_next else None
        return succeed((relay, ADVERTISED, reserved))


class StubPlane:
    def __init__(self) -> None:
        self.flows: list[Any] = []

    def install_flow(self, flow: Any) -> None:
        self.flows.append(flow)

    def remove_flow(self, flow: Any) -> None:
        self.flows.remove(flow)


class StubAuthenticator:
    def __init__(self) -> None:
        self.waiting: list[Deferred[Any]] = []

    def authenticate(self, request: out.AuthenticateUser) -> Deferred[Any]:
        self.waiting.append(Deferred())
        return self.waiting[-1]


class House:
    """A service among stubs."""

    def __init__(self, policies: Any = (), observers: Any = (), max_bandwidth: int | None = None) -> None:
        self.core, self.plane, self.transport = ScriptedCore(), StubPlane(), StubTransport()
        self.authenticator, self.clock = StubAuthenticator(), Clock()
        core: Any = self.core
        plane: Any = self.plane
        transports: Any = [self.transport]
        self.service = RelayService(
            self.clock, core, plane, transports, self.authenticator, policies, observers, max_bandwidth
        )

    def receive(self, client: Any, data: bytes = b"x") -> None:
        self.service.receive(client, data)

    def answers(self) -> list[Any]:
        return [told[2] for told in self.core.told if told[0] == "answer"]

    def ask(self, **changes: Any) -> Any:
        request = {"id": 7, "path": path(), "username": "alice", "transport": 17, "families": (Family.IPV4,)}
        self.core.on_receive = [out.OpenRelay(**{**request, **changes})]
        self.receive(StubClient())
        return self.answers()[-1]


@pytest.fixture
def logged() -> Any:
    """What the Twisted log was told during the test."""
    events: list[Any] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


def test_an_answer_finds_its_client_and_nothing_is_kept() -> None:
    """A client that the core does not hold is forgotten once it is answered: a flood of sources fills no table."""
    house = House()
    for port in range(1000, 1100):
        client = StubClient(port)
        house.core.on_receive = [out.Send(client.path, b"answer")]
        house.receive(client)
        assert client.sent == [b"answer"]
    assert house.service._clients == {}


def test_a_held_client_stays_until_its_allocation_ends() -> None:
    """The last answer (to a deleting Refresh) still reaches the client, and then the client is forgotten."""
    house, client = House(), StubClient()
    house.core.held = {client.path}
    house.receive(client)
    house.core.held = set()
    house.core.on_receive = [
        out.AllocationEnded("s", client.path, "alice", (), out.EndReason.DELETED, 1.0),
        out.Send(client.path, b"deleted"),
    ]
    house.receive(client)
    assert client.sent == [b"deleted"]
    assert house.service._clients == {}


def test_a_client_that_fails_to_authenticate_later_is_forgotten() -> None:
    """While a slow checker thinks, the client is held; once it was refused it is not."""
    house, client = House(), StubClient()
    proof = IntegrityProof(b"", b"", "sha1")
    house.core.on_receive = [out.AuthenticateUser(1, client.path, "r", PasswordAlgorithm.MD5, proof, username="bob")]
    house.core.held = {client.path}
    house.receive(client)
    house.core.held = set()
    house.core.on_answer = [out.Send(client.path, b"401")]
    house.authenticator.waiting[0].callback(out.NotAuthenticated())
    assert client.sent == [b"401"]
    assert house.service._clients == {}


def test_a_failing_authenticator_is_a_refusal(logged: list[Any]) -> None:
    """A checker that breaks lets nobody in, and the client gets its answer all the same."""
    house, client = House(), StubClient()
    proof = IntegrityProof(b"", b"", "sha1")
    house.core.on_receive = [out.AuthenticateUser(1, client.path, "r", PasswordAlgorithm.MD5, proof, username="bob")]
    house.receive(client)
    house.authenticator.waiting[0].errback(RuntimeError("database on fire"))
    assert house.answers() == [out.NotAuthenticated()]
    assert any("log_failure" in event for event in logged)


def test_a_fault_in_the_core_ends_with_the_message_that_caused_it(logged: list[Any]) -> None:
    """Whatever goes wrong inside is logged; the listener that called never sees an exception."""
    house = House()
    house.core.fault = RuntimeError("bug")
    house.receive(StubClient())
    assert any("log_failure" in event for event in logged)
    assert house.service._clients == {}


def test_a_broken_observer_keeps_nobody_else_from_being_told(logged: list[Any]) -> None:
    """Observers behind one that raises still hear of the event."""
    seen: list[Any] = []

    class Broken:
        def observe(self, event: Any) -> None:
            raise RuntimeError("observer")

    class Good:
        def observe(self, event: Any) -> None:
            seen.append(event)

    house = House(observers=[Broken(), Good()])
    event = out.RequestRefused(path(), 3, 401)
    house.core.on_receive = [event]
    house.receive(StubClient())
    assert seen == [event]


def test_discovery_answers_leave_from_where_they_should() -> None:
    """A Send with another source or destination goes through send_from (RFC 5780)."""
    house, client = House(), StubClient()
    other = TransportAddress.parse("192.0.2.2", 3479)
    house.core.on_receive = [out.Send(client.path, b"x", source=other)]
    house.receive(client)
    assert client.sent == [(other, client.path.client, b"x")]


def test_flows_are_installed_and_removed_as_told() -> None:
    """A flow in the data plane lives from InstallFlow to RemoveFlow."""
    house, client, relay = House(), StubClient(), StubRelay()
    house.core.on_receive = [out.InstallFlow(client.path, 0x4000, relay, PEER)]
    house.receive(client)
    (flow,) = house.plane.flows
    assert (flow.client, flow.number, flow.relay, flow.peer) == (client, 0x4000, relay, PEER)
    house.core.on_receive = [out.RemoveFlow(client.path, 0x4000, relay, PEER)] * 2
    house.receive(client)
    assert house.plane.flows == []
    assert house.service._flows == {}


def test_what_a_peer_sent_is_counted_when_it_was_passed_on() -> None:
    """Delivered datagrams count as received; those that a client would not take count as dropped."""
    house, relay = House(), StubRelay()
    willing, unwilling = StubClient(1), StubClient(2, takes=False)
    for client in (willing, unwilling):
        house.core.on_receive = [out.Deliver(client.path, relay, b"wrapped", 5)]
        house.receive(client)
    counters = relay.counters
    assert (counters.received_packets, counters.received_bytes, counters.dropped) == (1, 5, 1)


def test_bandwidth_bounds_the_slow_path_too() -> None:
    """What exceeds the allocation's bandwidth is dropped and counted, whichever way it goes."""
    house, relay, client = House(), StubRelay(), StubClient()
    relay.limit = TokenBucket(rate=10, burst=100, now=0.0)
    house.core.on_receive = [out.Deliver(client.path, relay, b"wrapped", 60)] * 2
    house.receive(client)
    assert client.sent == [b"wrapped"]
    assert relay.counters.dropped == 1


def test_both_families_share_one_bandwidth() -> None:
    """The limit is of the allocation: its two relays draw from one bucket, which lets the largest datagram through."""
    house = House(max_bandwidth=1000)
    opened = house.ask(families=(Family.IPV4, Family.IPV6))
    (first, _), (second, _) = opened.relays
    assert first.limit is second.limit
    assert first.limit.rate == 1000
    assert first.limit.take(65_507, 0.0)


def test_the_least_bandwidth_wins() -> None:
    """A policy can lower the configured rate, not raise it."""

    class Slow:
        def may_allocate(self, request: Any) -> None:
            return None

        def bandwidth(self, username: str) -> int:
            return 300

    assert House(policies=[Slow()], max_bandwidth=1000).ask().relays[0][0].limit.rate == 300
    assert House(policies=[Slow()], max_bandwidth=100).ask().relays[0][0].limit.rate == 100


def test_one_family_of_two_is_better_than_none() -> None:
    """Where only one of two families can be had, that one is given and the other one's error told (RFC 8656 7.2)."""
    house = House()
    house.transport.faults[Family.IPV6] = RelayUnavailable("no port left")
    opened = house.ask(families=(Family.IPV4, Family.IPV6))
    assert [address for _, address in opened.relays] == [ADVERTISED]
    assert opened.failed == (Family.IPV6, 508)


def test_running_out_of_descriptors_is_508_and_told_once(logged: list[Any]) -> None:
    """However many allocations fail for want of descriptors, one line says so, and another after it had worked
    again.
    """
    house = House()
    house.transport.faults[Family.IPV4] = RelayUnavailable("too many open files", exhausted=True)
    for _ in range(5):
        assert house.ask() == out.RelayRefused(508)
    told = [event for event in logged if event.get("what") == "relayed address"]
    assert len(told) == 1
    house.transport.faults.clear()
    house.ask()
    house.transport.faults[Family.IPV4] = RelayUnavailable("too many open files", exhausted=True)
    house.ask()
    told = [event for event in logged if event.get("what") == "relayed address"]
    assert len(told) == 2


def test_one_family_that_is_always_exhausted_is_told_once(logged: list[Any]) -> None:
    """Dual allocations that keep getting one family only do not fill the log about the other one."""
    house = House()
    house.transport.faults[Family.IPV6] = RelayUnavailable("no port left")
    for _ in range(5):
        house.ask(families=(Family.IPV4, Family.IPV6))
    told = [event for event in logged if event.get("what") == "relayed address"]
    assert len(told) == 1


def test_an_unexpected_fault_leaves_no_relay_open(logged: list[Any]) -> None:
    """When the second family breaks in a way that nobody foresaw, the first one's relay is closed and the answer is
    500.
    """
    house = House()
    house.transport.faults[Family.IPV6] = RuntimeError("bug")
    assert house.ask(families=(Family.IPV4, Family.IPV6)) == out.RelayRefused(500)
    assert [relay.closed for relay in house.transport.opened] == [True]


def test_an_unexpected_fault_of_a_connect_is_answered(logged: list[Any]) -> None:
    """The client hears 447 at once, and the log has the fault."""
    house, relay = House(), StubRelay()
    for fault in (RuntimeError("bug"), fail(RuntimeError("bug"))):
        relay.connect = lambda peer, tls, fault=fault: raise_or_give(fault)  # type: ignore[attr-defined]
        house.core.on_receive = [out.ConnectToPeer(7, path(), relay, PEER)]
        house.receive(StubClient())
    assert house.answers() == [out.PeerNotConnected(447)] * 2
    assert sum("could not connect to a peer" in str(event.get("log_format")) for event in logged) == 2


def raise_or_give(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def test_a_policy_refuses_before_anything_is_opened() -> None:
    """What a policy answers is what the client gets, now or later, and no relay was opened for it."""
    refusal = out.RelayRefused(300, alternate=PEER)

    class Later:
        def __init__(self) -> None:
            self.decided: Deferred[Any] = Deferred()

        def may_allocate(self, request: Any) -> Deferred[Any]:
            return self.decided

        def bandwidth(self, username: str) -> None:
            return None

    policy = Later()
    house = House(policies=[policy])
    house.core.on_receive = [out.OpenRelay(7, path(), "alice", 17, (Family.IPV4,))]
    house.receive(StubClient())
    assert house.answers() == []
    policy.decided.callback(refusal)
    assert house.answers() == [refusal]
    assert house.transport.opened == []


def test_a_reserved_port_is_handed_over_once() -> None:
    """The reserved relay of an even port serves a later Allocate with its own advertised address."""
    house = House()
    opened = house.ask(even_port=True, reserve_next=True)
    second = house.ask(reservation=opened.reserved)
    assert second.relays == ((opened.reserved, ADVERTISED.with_port(50001)),)
    assert house.service._reserved == {}


def test_a_reservation_given_back_leaves_nothing() -> None:
    """Closing an unused reserved relay closes its port and forgets its address."""
    house = House()
    opened = house.ask(even_port=True, reserve_next=True)
    house.core.on_receive = [out.CloseRelay(opened.reserved)]
    house.receive(StubClient())
    assert opened.reserved.closed
    assert house.service._reserved == {}


def test_a_reserved_port_that_was_closed_while_a_policy_decided(logged: list[Any]) -> None:
    """A client that claims a reserved port and leaves before the policy answers causes no fault, and gets no port."""

    class Later:
        decided: Deferred[Any] = succeed(None)

        def may_allocate(self, request: Any) -> Deferred[Any]:
            return self.decided

        def bandwidth(self, username: str) -> None:
            return None

    policy = Later()
    house = House(policies=[policy])
    opened = house.ask(even_port=True, reserve_next=True)
    policy.decided = Deferred()
    house.core.on_receive = [
        out.OpenRelay(8, path(), "alice", 17, (Family.IPV4,), reservation=opened.reserved),
        out.CloseRelay(opened.reserved),
    ]
    house.receive(StubClient())
    policy.decided.callback(None)
    assert house.answers()[-1] == out.RelayRefused(508)
    assert not [event for event in logged if event.get("log_failure") is not None]


def test_an_unknown_peer_transport_is_442() -> None:
    """A transport for which no plugin is there is unsupported (RFC 8656 section 7.2)."""
    assert House().ask(transport=6) == out.RelayRefused(442)


def test_closing_tells_the_core_and_leaves_no_delayed_call() -> None:
    """After close nothing is scheduled any more."""
    house = House()
    house.service.close()
    assert ("shutdown",) in house.core.told
    assert house.clock.getDelayedCalls() == []
