"""A stream to a server: what it does with congestion, garbage, a slow end, and what it says of errors."""

from __future__ import annotations

from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IHostResolution, IReactorPluggableNameResolver, IResolutionReceiver
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.client.transports.server import Server
from relayd.client.transports.streams import CLOSE_GRACE
from relayd.client.transports.turn_stream import TurnStream, connect_stream
from relayd.client.transports.wording import wording
from relayd.errors import ServerUnavailable
from relayd.stun.framing import encode_channel_data
from relayd.stun.message import Class, Method, encode


class Collected:
    """A receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.errors: list[ServerUnavailable] = []

    def message_received(self, data: bytes) -> None:
        self.messages.append(data)

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        raise AssertionError("a stream never doubts")

    def connection_lost(self, error: ServerUnavailable) -> None:
        self.errors.append(error)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collected() -> Collected:
    return Collected()


@pytest.fixture
def connection(clock: Clock, collected: Collected) -> Any:
    made = TurnStream(clock, collected)
    made.makeConnection(StringTransport())  # type: ignore[no-untyped-call]
    return made


def test_congestion(connection: Any) -> None:
    """While the transport is full, data for peers is dropped and counted, requests still go; then all goes again."""
    connection.transport.producer.pauseProducing()
    connection.write_data(b"dropped")
    connection.write(b"request,")
    connection.transport.producer.resumeProducing()
    connection.write_data(b"data")
    assert connection.transport.value() == b"request,data"
    assert connection.dropped == 1


def test_messages_are_put_together(connection: Any, collected: Collected) -> None:
    """What comes in pieces of one byte comes out as whole messages."""
    answer = encode(Method.ALLOCATE, Class.SUCCESS, bytes(12))
    for each in answer + encode_channel_data(0x4000, b"hello", padded=True):
        connection.dataReceived(bytes([each]))
    assert collected.messages == [answer, encode_channel_data(0x4000, b"hello", padded=False)]


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b"\xff"])
def test_garbage(connection: Any, collected: Collected, garbage: bytes) -> None:
    """What is no TURN stream is cut at once, and named as the reason."""
    cut: list[None] = []
    connection.transport.abortConnection = lambda: cut.append(None)
    connection.dataReceived(garbage)
    assert cut == [None]
    connection.connectionLost(Failure(ConnectionLost()))
    assert [str(error) for error in collected.errors] == ["what answers there is no TURN server"]


def test_a_slow_end(connection: Any, clock: Clock) -> None:
    """A server that does not close its side is cut off after a while; closing is then done, once and for all."""
    cut: list[None] = []
    connection.transport.abortConnection = lambda: cut.append(None)
    closed = connection.close()
    assert connection.transport.disconnecting
    assert connection.transport.producer is None
    clock.advance(CLOSE_GRACE)
    assert cut == [None]
    assert not closed.called
    connection.connectionLost(Failure(ConnectionLost()))
    assert closed.called
    assert connection.close().called
    assert clock.getDelayedCalls() == []


def test_close_after_the_end(connection: Any, clock: Clock) -> None:
    """A connection that is gone already is closed at once."""
    connection.connectionLost(Failure(ConnectionDone()))
    assert connection.close().called
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionDone(), "the server closed the connection"),
        (ConnectError(osError=111), "Connection refused"),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), "TLS: certificate verify failed"),
        (SSL.Error(), "TLS: the handshake failed"),
        (DNSLookupError("no results\nfor it."), "DNS lookup failed: no results for it"),
        (ConnectTimeout(), "no answer"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def testwording(error: BaseException, words: str) -> None:
    """Each fault is a few words on one line."""
    assert wording(Failure(error)) == words


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    """One whose resolver answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nameResolver: Any = self
        self.asked: list[IResolutionReceiver] = []

    def installNameResolver(self, resolver: Any) -> Any:
        raise AssertionError("nobody does")

    def resolveHostName(self, receiver: IResolutionReceiver, *_: Any, **__: Any) -> IHostResolution:
        self.asked.append(receiver)
        return IHostResolution(self, None)

    def answer(self) -> None:
        for receiver in self.asked:
            receiver.addressResolved(IPv4Address("TCP", "192.0.2.1", 3478))
            receiver.resolutionComplete()


@pytest.mark.parametrize("stage", ["resolving", "connecting"])
def test_cancelled_on_the_way(stage: str, collected: Collected) -> None:
    """Who does not want to wait is told just that, wherever it was, and nothing goes on behind."""
    reactor = Reactor()
    server = Server("relay.example", 3478, AppConnection.TCP, "relay.example")
    opening = connect_stream(reactor, server, None, collected)
    results: list[Any] = []
    opening.addBoth(results.append)
    if stage == "connecting":
        reactor.answer()
    opening.cancel()
    (failure,) = results
    assert failure.check(CancelledError)
    if stage == "resolving":
        reactor.answer()
        assert reactor.tcpClients == []
    else:
        assert [connector.stoppedConnecting for connector in reactor.connectors] == [True]
    assert reactor.getDelayedCalls() == []


def test_connected(collected: Collected) -> None:
    """Whoever waits has the connection, at the first address that the name has."""
    reactor = Reactor()
    server = Server("relay.example", 3478, AppConnection.TCP, "relay.example")
    results: list[Any] = []
    connect_stream(reactor, server, None, collected).addBoth(results.append)
    reactor.answer()
    ((host, port, factory, *_),) = reactor.tcpClients
    assert (host, port) == ("192.0.2.1", 3478)
    made: Any = factory.buildProtocol(None)
    made.makeConnection(StringTransport())
    (connection,) = results
    assert isinstance(connection, TurnStream)
    assert reactor.getDelayedCalls() == []
