"""Peers that call a relayed address are led to their ports, at one relayed address after the other."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from relayd.address import TransportAddress
from relayd.client.forward.narration import INTERVAL, Narration
from relayd.client.forward.pairs import MAX_CONNECTIONS
from relayd.client.forward.reception import Reception, ReceptionAudience
from relayd.client.forward.words import Welcome
from relayd.client.succession import FIRST_PAUSE
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable

ONE, OTHER = Welcome("192.0.2.9", "127.0.0.1", 8001), Welcome("192.0.2.10", "127.0.0.1", 8002)
CALLER = TransportAddress.parse(ONE.peer, 5000)
GONE = ServerUnavailable("gone")
FORBIDDEN = RemoteError(403, "Forbidden")


class Transport(StringTransport):
    """A connection in memory, which tells its protocol when it is cut."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.protocol = protocol
        self.is_cut = False
        protocol.makeConnection(self)

    def written(self) -> bytes:
        return bytes(self.io.getvalue())

    def abortConnection(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def loseWriteConnection(self) -> None:
        pass


class Allocation:
    """A TCP allocation: keeps who is permitted, and is called by the test."""

    uri = TurnUri.parse("turn:192.0.2.1?transport=tcp")

    def __init__(self, number: int) -> None:
        self.relayed_addresses = (TransportAddress.parse("192.0.2.1", 50_000 + number),)
        self.permitted: dict[str, Deferred[None]] = {}
        self.ended: Deferred[RelaydError | None] = Deferred()
        self.factory: Any = None
        self.failed: Any = None
        self.is_closed = False

    def permit(self, host: str) -> Deferred[None]:
        self.permitted[host] = Deferred()
        return self.permitted[host]

    def listen(self, factory: Any, failed: Any) -> None:
        self.factory, self.failed = factory, failed

    def when_ended(self) -> Deferred[RelaydError | None]:
        return self.ended

    def close(self) -> Deferred[None]:
        self.is_closed = True
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def grant(self) -> None:
        for answer in self.permitted.values():
            answer.callback(None)

    def call(self, peer: TransportAddress = CALLER) -> Transport:
        protocol = self.factory.buildProtocol(IPv4Address("TCP", peer.host, peer.port))
        return Transport(protocol)


class Ears(ReceptionAudience):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def receiving(self, allocation: Any, welcomes: Any, is_tls: bool) -> None:
        self.told.append((str(allocation.relayed_addresses[0]), list(welcomes), is_tls))

    def waiting(self, error: RelaydError, pause: float) -> None:
        self.told.append(error)

    def caller_refused(self, peer: str, error: RelaydError) -> None:
        self.told.append((peer, error))

    def call_failed(self, peer: TransportAddress, error: RelaydError) -> None:
        self.told.append((peer, str(error)))

    def connections_crowded(self) -> None:
        self.told.append("crowded")


class House:
    """A reception for two peers. Its dice always fall on the highest number."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.attempts: list[Deferred[Any]] = []
        self.ears = Ears()
        self.reception = Reception(self.reactor, self._allocate, True, self.ears, lambda size: b"\xff" * size)
        self.outcome: list[Any] = []
        Deferred.fromCoroutine(self.reception.serve([ONE, OTHER])).addBoth(self.outcome.append)

    def _allocate(self) -> Deferred[Any]:
        self.attempts.append(Deferred())
        return self.attempts[-1]

    def succeed(self) -> Allocation:
        """The latest attempt gets an allocation."""
        allocation = Allocation(len(self.attempts))
        self.attempts[-1].callback(allocation)
        return allocation

    def open(self) -> Allocation:
        """All is well from the beginning."""
        allocation = self.succeed()
        allocation.grant()
        return allocation

    def local(self, number: int = 0) -> Transport:
        """The connection with a local port succeeds."""
        factory: Any = self.reactor.tcpClients[number][2]
        return Transport(factory.buildProtocol(None))

    def stop(self) -> None:
        done: list[Any] = []
        Deferred.fromCoroutine(self.reception.stop()).addBoth(done.append)
        assert done == [None]
        assert self.reactor.getDelayedCalls() == []
        assert self.reception.pairs.connections == 0


@pytest.fixture
def house() -> House:
    return House()


def test_permissions_come_first(house: House) -> None:
    """The relayed address is told once both peers may call it."""
    allocation = house.succeed()
    assert set(allocation.permitted) == {ONE.peer, OTHER.peer}
    allocation.permitted[ONE.peer].callback(None)
    assert house.ears.told == []
    allocation.permitted[OTHER.peer].callback(None)
    assert house.ears.told == [("192.0.2.1:50001", [ONE, OTHER], True)]
    house.stop()
    assert allocation.is_closed


def test_callers_reach_their_ports(house: House) -> None:
    """Each peer its own; nothing is read of a caller before that, and then bytes go both ways, and the end as well."""
    allocation = house.open()
    caller = allocation.call()
    allocation.call(TransportAddress.parse(OTHER.peer, 5000))
    assert [client[:2] for client in house.reactor.tcpClients] == [("127.0.0.1", 8001), ("127.0.0.1", 8002)]
    assert caller.producerState == "paused"
    caller.protocol.dataReceived(b"TLS had it, ")
    local = house.local()
    assert caller.producerState == "producing"
    caller.protocol.dataReceived(b"question")
    assert local.written() == b"TLS had it, question"
    local.protocol.dataReceived(b"answer")
    assert caller.written() == b"answer"
    assert (house.reception.pairs.connections, house.reception.pairs.made) == (2, 1)
    local.protocol.connectionLost(Failure(ConnectionDone()))
    caller.protocol.connectionLost(Failure(ConnectionDone()))
    assert house.reception.pairs.connections == 1
    house.stop()


def test_a_stranger(house: House) -> None:
    """Whoever is not expected, but was let through, is hung up on."""
    allocation = house.open()
    assert allocation.factory.buildProtocol(IPv4Address("TCP", "192.0.2.11", 5000)) is None
    assert house.reactor.tcpClients == []


def test_nobody_serves(house: House) -> None:
    """A local port that does not answer costs its caller the connection, and is told with its reason."""
    caller = house.open().call()
    factory: Any = house.reactor.tcpClients[0][2]
    factory.clientConnectionFailed(None, Failure(ConnectError(111, "Connection refused")))
    house.reactor.advance(1.0)  # until which other addresses of the host would be tried
    assert caller.is_cut
    assert house.ears.told[1:] == [(CALLER, "127.0.0.1:8001: Connection refused")]
    house.stop()


def test_a_caller_that_does_not_come_through(house: House) -> None:
    """What keeps a connection from us is told, and harms nothing."""
    allocation = house.open()
    allocation.failed(CALLER, GONE)
    assert house.ears.told[1:] == [(CALLER, "gone")]
    assert not allocation.call().is_cut
    house.stop()


def test_too_many(house: House) -> None:
    """One more than there may be is cut at once, and makes room for nobody."""
    allocation = house.open()
    callers = [allocation.call(CALLER.with_port(1 + number)) for number in range(MAX_CONNECTIONS)]
    assert not any(caller.is_cut for caller in callers)
    assert allocation.call().is_cut
    assert house.ears.told[1:] == ["crowded"]
    callers[0].abortConnection()
    assert not allocation.call().is_cut
    house.stop()


def test_a_peer_that_may_not_call(house: House) -> None:
    """Where the relay refuses it from the beginning there is no reception, and the error says whom."""
    allocation = house.succeed()
    allocation.permitted[ONE.peer].callback(None)
    allocation.permitted[OTHER.peer].errback(FORBIDDEN)
    (failure,) = house.outcome
    assert isinstance(failure.value, ConfigurationError)
    assert str(failure.value) == "the relay does not let 192.0.2.10 call us: 403 Forbidden"
    assert house.ears.told == []
    house.stop()
    assert allocation.is_closed


@pytest.mark.parametrize("error", [GONE, RemoteError(442, "Unsupported Transport Protocol")])
def test_no_first_allocation(house: House, error: RelaydError) -> None:
    """It is told at once, whatever the reason."""
    house.attempts[0].errback(error)
    assert [failure.value for failure in house.outcome] == [error]
    house.stop()


def test_from_one_relayed_address_to_the_next(house: House) -> None:
    """A lost one is told, and followed by another, which is told when peers may call it; who may not is told, too."""
    first = house.open()
    first.ended.callback(GONE)
    house.reactor.advance(FIRST_PAUSE)
    house.attempts[1].errback(RemoteError(486, "Allocation Quota Reached"))
    house.reactor.advance(2 * FIRST_PAUSE)
    second = house.succeed()
    second.permitted[ONE.peer].callback(None)
    assert house.ears.told[1] == GONE
    assert len(house.ears.told) == 3
    second.permitted[OTHER.peer].errback(FORBIDDEN)
    assert house.ears.told[3:] == [(OTHER.peer, FORBIDDEN), ("192.0.2.1:50003", [ONE], True)]
    caller = second.call()
    house.local().protocol.dataReceived(b"welcome")
    assert caller.written() == b"welcome"
    house.stop()
    assert (first.is_closed, second.is_closed) == (False, True)


def test_lost_before_it_began(house: House) -> None:
    """An allocation that ends while its permissions are asked for is followed by another one, too."""
    first = house.succeed()
    for answer in first.permitted.values():
        answer.errback(GONE)
    first.ended.callback(GONE)
    house.reactor.advance(FIRST_PAUSE)
    house.succeed().grant()
    assert house.ears.told[-1] == ("192.0.2.1:50002", [ONE, OTHER], True)
    house.stop()


def test_refused_for_good(house: House) -> None:
    """Where no other relayed address will be had, that ends it."""
    house.open().ended.callback(GONE)
    house.reactor.advance(FIRST_PAUSE)
    refused = RemoteError(401, "Unauthorized")
    house.attempts[1].errback(refused)
    assert house.outcome == [refused]
    house.stop()


@pytest.mark.parametrize("when", ["allocating", "permitting", "called", "joined", "paused", "allocating again"])
def test_stopped(house: House, when: str) -> None:
    """At any time, and then nothing is left: no connection, no allocation, nothing to happen."""
    transports = []
    allocation = None
    if when == "permitting":
        allocation = house.succeed()
    elif when != "allocating":
        allocation = house.open()
    if allocation is not None and when in ("called", "joined"):
        transports.append(allocation.call())
    if when == "joined":
        transports.append(house.local())
    if allocation is not None and when in ("paused", "allocating again"):
        allocation.ended.callback(GONE)
        allocation = None
    if when == "allocating again":
        house.reactor.advance(FIRST_PAUSE)
    house.stop()
    if allocation is not None:
        assert allocation.is_closed
        allocation.ended.callback(None)
    assert all(transport.is_cut for transport in transports)
    assert house.outcome == [None]


def test_what_is_said() -> None:
    """Where to call, and where that leads; the same trouble not more than once a minute."""
    lines: list[str] = []
    reactor = MemoryReactorClock()
    narration = Narration(reactor, lines.append)
    allocation: Any = Allocation(1)
    narration.receiving(allocation, [ONE, OTHER._replace(host="::1")], False)
    narration.receiving(allocation, [ONE], True)
    for port in range(5000, 5003):
        narration.call_failed(CALLER.with_port(port), GONE)
    narration.caller_refused(ONE.peer, FORBIDDEN)
    assert lines == [
        "relayed address: 192.0.2.1:50001, by turn:192.0.2.1:3478?transport=tcp, for TCP from peers",
        "accepting: 192.0.2.9, for 127.0.0.1:8001",
        "accepting: 192.0.2.10, for [::1]:8002",
        "relayed address: 192.0.2.1:50001, by turn:192.0.2.1:3478?transport=tcp, for TLS from peers",
        "accepting: 192.0.2.9 with TLS, for 127.0.0.1:8001",
        "a connection from 192.0.2.9:5000 came to nothing: gone",
        "the relay does not let 192.0.2.9 call us any more: 403 Forbidden",
    ]
    reactor.advance(INTERVAL)
    narration.call_failed(CALLER, GONE)
    assert len(lines) == 8
