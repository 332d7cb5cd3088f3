"""A stream to a server: what it does with congestion, garbage, a slow end, and what it says of errors."""

from __future__ import annotations

from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from relayd.client.streams import CLOSE_GRACE
from relayd.client.turn_stream import TurnStream
from relayd.client.wording import wording
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
