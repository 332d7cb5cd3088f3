"""Which allocation a forwarded TCP connection takes, and what becomes of it when there is none."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from relayd.address import TransportAddress
from relayd.client.forward.pairs import MAX_CONNECTIONS, Side
from relayd.client.forward.streams import (
    IDLE_TIMEOUT,
    SWEEP,
    StreamAudience,
    StreamForwarding,
    StreamRoute,
)
from relayd.errors import RelaydError, RemoteError, ServerUnavailable

PEER = TransportAddress.parse("192.0.2.9", 80)
OTHER = TransportAddress.parse("192.0.2.9", 81)


class Transport(StringTransport):
    """A connection in memory, which tells its protocol when it is cut."""

    def __init__(self, protocol: Side) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.protocol = protocol
        self.is_cut = False

    def abortConnection(self) -> None:
        self.is_cut = True
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def loseWriteConnection(self) -> None:
        pass


class Allocation:
    """A TCP allocation, and the transports of its connections."""

    def __init__(self) -> None:
        self.ended: Deferred[RelaydError | None] = Deferred()
        self.asked: list[TransportAddress] = []
        self.connected: list[Transport] = []
        self.error: RelaydError | None = None
        self.is_closed = False

    def connect(self, peer: TransportAddress, tls: object, factory: Any) -> Deferred[Any]:
        self.asked.append(peer)
        if self.error is not None:
            return fail(self.error)
        protocol = factory.buildProtocol(None)
        self.connected.append(Transport(protocol))
        protocol.makeConnection(self.connected[-1])
        return succeed(protocol)

    def when_ended(self) -> Deferred[RelaydError | None]:
        return self.ended

    def close(self) -> Deferred[None]:
        self.is_closed = True
        return succeed(None)


class Ears(StreamAudience):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tcp_allocated(self, allocation: Any) -> None:
        self.told.append("allocated")

    def tcp_lost(self, error: RelaydError) -> None:
        self.told.append(error)

    def connection_refused(self, peer: TransportAddress, error: RelaydError) -> None:
        self.told.append((peer, error))

    def connections_crowded(self) -> None:
        self.told.append("crowded")


class Office:
    """A forwarding of two ports, whose allocations are counted."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.made: list[Allocation] = []
        self.error: RelaydError | None = None
        self.ears = Ears()
        client: Any = self
        self.forwarding = StreamForwarding(self.reactor, client, self.ears)
        self.serving = Deferred.fromCoroutine(
            self.forwarding.serve([StreamRoute("127.0.0.1", 8080, PEER), StreamRoute("127.0.0.1", 8081, OTHER)])
        )

    def allocate_tcp(self) -> Deferred[Any]:
        if self.error is not None:
            return fail(self.error)
        self.made.append(Allocation())
        return succeed(self.made[-1])

    def arrive(self, number: int = 0) -> Transport:
        """A local connection to one of the ports."""
        factory: Any = self.reactor.tcpServers[number][1]
        protocol = factory.buildProtocol(None)
        transport = Transport(protocol)
        protocol.makeConnection(transport)
        return transport

    def connections(self) -> list[int]:
        """How many each allocation has had."""
        return [len(each.connected) for each in self.made]


def test_one_allocation_for_each_connection_to_a_peer() -> None:
    """Other peers share it; when a connection ends its allocation serves the next one; what idles is given back."""
    office = Office()
    assert office.connections() == [0]
    office.arrive()
    office.arrive(1)
    assert office.connections() == [2]
    office.arrive()
    assert office.connections() == [2, 1]
    office.made[1].connected[0].abortConnection()
    office.arrive()
    assert office.connections() == [2, 2]
    office.made[1].connected[1].abortConnection()
    office.reactor.pump([SWEEP] * int(IDLE_TIMEOUT / SWEEP + 1))
    assert [each.is_closed for each in office.made] == [False, True]
    assert office.ears.told == ["allocated"]


def test_bytes_go_through() -> None:
    """Both ways, and the end behind them."""
    office = Office()
    local = office.arrive()
    remote = office.made[0].connected[0]
    local.protocol.dataReceived(b"question")
    assert remote.io.getvalue() == b"question"
    remote.protocol.dataReceived(b"answer")
    assert local.io.getvalue() == b"answer"
    remote.protocol.connectionLost(Failure(ConnectionDone()))
    local.protocol.connectionLost(Failure(ConnectionDone()))
    assert office.forwarding.pairs.connections == 0


def test_a_connection_that_the_relay_still_has() -> None:
    """446 leads to another allocation, and to no error; from a new one it is told."""
    office = Office()
    office.made[0].error = RemoteError(446, "Connection Already Exists")
    assert not office.arrive().is_cut
    assert office.connections() == [0, 1]
    assert office.ears.told == ["allocated"]


def test_a_refusal() -> None:
    """It cuts the local connection and is told, and the allocation can be used again."""
    office = Office()
    office.made[0].error = RemoteError(447, "Connection Timeout or Failure")
    assert office.arrive().is_cut
    assert office.ears.told[1:] == [(PEER, office.made[0].error)]
    office.made[0].error = None
    assert not office.arrive().is_cut
    assert office.connections() == [1]


def test_too_many() -> None:
    """One more than there may be is cut at once, and makes room for nobody."""
    office = Office()
    several = [office.arrive() for _ in range(MAX_CONNECTIONS)]
    assert not any(each.is_cut for each in several)
    assert office.arrive().is_cut
    assert office.ears.told == ["allocated", "crowded"]
    several[0].abortConnection()
    assert not office.arrive().is_cut


def test_a_lost_relay() -> None:
    """The next connection finds another allocation, or is cut where there is none."""
    office = Office()
    gone = ServerUnavailable("gone")
    office.made[0].ended.callback(gone)
    assert office.ears.told == ["allocated", gone]
    office.error = ServerUnavailable("still gone")
    assert office.arrive().is_cut
    assert office.ears.told[-1] == (PEER, office.error)
    office.error = None
    assert not office.arrive().is_cut
    assert office.connections() == [0, 1]
    assert office.ears.told[-1] == "allocated"


def test_stopped() -> None:
    """Everything is closed, and `serve` is done."""
    office = Office()
    local = office.arrive()
    done: list[Any] = []
    Deferred.fromCoroutine(office.forwarding.stop()).addCallback(done.append)
    office.serving.addCallback(done.append)
    assert done == [None, None]
    assert local.is_cut
    assert office.made[0].is_closed
    assert office.reactor.getDelayedCalls() == []
