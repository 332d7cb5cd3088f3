"""A relayed port is to its protocol what a UDP socket is: also when that protocol, or a peer, fails."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.address import IPv6Address
from twisted.internet.interfaces import IUDPTransport
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import ILogObserver, Logger
from zope.interface.verify import verifyObject

from relayd.address import TransportAddress
from relayd.client.relayed import RelayedPort
from relayd.client.transports.uri import TurnUri
from relayd.errors import ServerUnavailable
from relayd.stun.attributes import Icmp
from relayd.turn.client_outputs import Allocated

RELAYED = TransportAddress.parse("2001:db8::9", 50_000)
PEER = TransportAddress.parse("192.0.2.7", 5000)
PEER6 = TransportAddress.parse("2001:db8::7", 5000)


class FakeSession:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.owner: Any = None
        self.dropped = 3
        self.sent: list[tuple[TransportAddress, bytes]] = []

    def send(self, peer: TransportAddress, data: bytes) -> None:
        self.sent.append((peer, data))


class Frail(DatagramProtocol):
    """Fails at everything."""

    noisy = False

    def __init__(self) -> None:
        self.refused = 0

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        raise RuntimeError("a bug in an application")

    def stopProtocol(self) -> None:
        raise RuntimeError("another one")

    def connectionRefused(self) -> None:
        self.refused += 1


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the port logs."""
    events: list[Any] = []
    monkeypatch.setattr(RelayedPort, "_log", Logger(observer=cast(ILogObserver, events.append)))
    return events


def made(protocol: Any = None) -> RelayedPort:
    session: Any = FakeSession()
    allocated = Allocated((RELAYED,), None, 600)
    port = RelayedPort(session, allocated, protocol or DatagramProtocol(), TurnUri.parse("turn:192.0.2.1"))
    port.start()
    return port


def test_it_is_a_udp_transport() -> None:
    """It has all that Twisted asks of a UDP transport, and its own address."""
    port = made()
    assert verifyObject(IUDPTransport, port)
    assert port.getHost() == IPv6Address("UDP", "2001:db8::9", 50_000)
    assert not port.getBroadcastAllowed()
    port.setBroadcastAllowed(False)
    with pytest.raises(ServerUnavailable):
        port.setBroadcastAllowed(True)
    assert port.dropped == 3


def test_a_protocol_that_fails(logged: list[Any]) -> None:
    """A bug in the protocol is logged, ends nothing, and keeps nobody from hearing of the end."""
    port = made(Frail())
    port.data_received(PEER, b"x")
    ended = port.when_ended()
    lost = ServerUnavailable("gone")
    port.session_ended(lost)
    told: list[Any] = []
    ended.addCallback(told.append)
    port.when_ended().addCallback(told.append)
    assert told == [lost, lost]
    assert len(logged) == 2


@pytest.mark.parametrize(
    ("peer", "icmp", "refused"),
    [
        (PEER, Icmp(3, 3, 0), 1),
        (PEER6, Icmp(1, 4, 0), 1),
        (PEER, Icmp(3, 4, 1280), 0),
        (PEER6, Icmp(3, 3, 0), 0),
    ],
)
def test_refused(peer: TransportAddress, icmp: Icmp, refused: int) -> None:
    """A connected port passes on that nobody listens at its peer, as a socket does; no other port does."""
    protocol = Frail()
    port = made(protocol)
    port.icmp_received(peer, icmp)
    assert protocol.refused == 0
    port.connect(peer.host, peer.port)
    port.icmp_received(peer, icmp)
    assert protocol.refused == refused


def test_a_protocol_that_cannot_begin(logged: list[Any]) -> None:
    """Its failure is told to who allocated, and nothing is said of an end that it never had."""

    class Stillborn(DatagramProtocol):
        noisy = False

        def startProtocol(self) -> None:
            raise RuntimeError("a bug in an application")

    session: Any = FakeSession()
    port = RelayedPort(session, Allocated((RELAYED,), None, 600), Stillborn(), TurnUri.parse("turn:192.0.2.1"))
    ended: list[Any] = []
    port.when_ended().addCallback(ended.append)
    with pytest.raises(RuntimeError):
        port.start()
    assert ended == []
    session.owner.session_ended(None)
    assert ended == [None]
    assert logged == []
