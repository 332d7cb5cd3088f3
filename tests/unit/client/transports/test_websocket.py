"""A WebSocket to a server, byte by byte: its handshake, frames both ways, pings, and each way in which it ends."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from relayd.address import AppConnection
from relayd.client.transports.server import Server
from relayd.client.transports.streams import CLOSE_GRACE
from relayd.client.transports.websocket import HANDSHAKE_TIMEOUT, PING_INTERVAL, PONG_TIMEOUT, WebSocketConnection
from relayd.errors import ConfigurationError, ServerUnavailable
from relayd.stun.framing import encode_channel_data
from relayd.stun.message import MAX_MESSAGE, Class, Method, encode
from relayd.websocket_frames import masked_frame

ANSWER = encode(Method.ALLOCATE, Class.SUCCESS, bytes(12))
DATA = encode_channel_data(0x4000, b"hello", padded=False)
SERVER = Server("192.0.2.1", 443, AppConnection.WSS, "relay.example", "/turn?a=b")


class Transport(StringTransport):
    """One whose end has to be told by the test."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


def make_transport() -> Any:
    return Transport()  # type: ignore[no-untyped-call]


class Case:
    """A client that has sent its handshake, and what it heard."""

    def __init__(self, server: Server = SERVER) -> None:
        self.clock = Clock()
        self.transport = make_transport()
        self.messages: list[bytes] = []
        self.errors: list[str] = []
        self.opened: list[Any] = []
        self.connection = WebSocketConnection(self.clock, server, self)
        self.connection.opened.addBoth(self.opened.append)
        self.connection.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        self.request: str = self.transport.value().decode("ascii")
        self.transport.clear()

    def message_received(self, data: bytes) -> None:
        self.messages.append(data)

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        raise AssertionError("a stream never doubts")

    def connection_lost(self, error: ServerUnavailable) -> None:
        self.errors.append(str(error))

    @property
    def key(self) -> str:
        return self.request.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]

    def upgrade(self, *headers: str, accept: str | None = None) -> bytes:
        """The answer that opens the WebSocket. RFC 6455 section 1.3 has the constant."""
        proof = hashlib.sha1(self.key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accept = base64.b64encode(proof).decode() if accept is None else accept
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: WebSocket", "Connection: Upgrade"]
        return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", *headers, "", ""]).encode()

    def open(self) -> Case:
        self.connection.dataReceived(self.upgrade())
        assert self.opened == [self.connection]
        return self

    def sent(self) -> list[tuple[int, bytes]]:
        """The frames that were sent since the last call: their first byte, and the payload, which has to be masked."""
        data = self.transport.value()
        self.transport.clear()
        frames = []
        while data:
            size, at = data[1] & 0x7F, 2
            assert data[1] & 0x80, "a client's frames are masked"
            if size > 125:
                at = 4 if size == 126 else 10
                size = int.from_bytes(data[2:at])
            mask = data[at : at + 4]
            payload = bytes(each ^ mask[i % 4] for i, each in enumerate(data[at + 4 : at + 4 + size]))
            frames.append((data[0], payload))
            data = data[at + 4 + size :]
        return frames

    def lose(self, reason: Exception | None = None) -> None:
        self.connection.connectionLost(Failure(reason or ConnectionLost()))
        assert self.clock.getDelayedCalls() == [], "timers outlived the connection"

    def end(self) -> str:
        """What its user is told at the end."""
        self.lose()
        (error,) = self.errors
        return error

    def refused(self) -> str:
        """What its user is told where it did not open."""
        assert self.transport.aborted
        self.lose()
        assert self.errors == []
        (failure,) = self.opened
        assert isinstance(failure.value, ServerUnavailable)
        return str(failure.value)


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """One from a server."""
    size = len(payload)
    return bytes((first, size)) + payload if size < 126 else bytes((first, 126)) + size.to_bytes(2) + payload


# --- the handshake ----------------------------------------------------------------------------------------------------


def test_the_request() -> None:
    """It asks the name that the certificate has to prove, and offers neither protocol nor extension."""
    case = Case()
    assert case.request.startswith("GET /turn?a=b HTTP/1.1\r\nHost: relay.example\r\n")
    assert case.request.endswith("\r\n\r\n")
    assert "Sec-WebSocket-Version: 13\r\n" in case.request
    assert len(base64.b64decode(case.key)) == 16
    assert not {"Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Origin"} & set(case.request.split())
    assert Case().key != case.key


@pytest.mark.parametrize(
    ("kind", "name", "port", "host"),
    [
        (AppConnection.WS, "relay.example", 80, "relay.example"),
        (AppConnection.WS, "relay.example", 443, "relay.example:443"),
        (AppConnection.WSS, "2001:db8::1", 8443, "[2001:db8::1]:8443"),
        (AppConnection.WSS, "2001:db8::1", 443, "[2001:db8::1]"),
    ],
)
def test_the_host(kind: AppConnection, name: str, port: int, host: str) -> None:
    """The port is said where it is not the usual one, and IPv6 is in brackets."""
    assert f"\r\nHost: {host}\r\n" in Case(Server("192.0.2.1", port, kind, name)).request


def test_a_host_that_cannot_be_named() -> None:
    """No request is made for what is no host name."""
    with pytest.raises(ConfigurationError):
        Case(SERVER._replace(tls_name="a\x00b"))


def test_opening_in_pieces() -> None:
    """The answer may come byte by byte, and messages right behind it."""
    case = Case()
    for each in case.upgrade() + frame(ANSWER) + frame(DATA):
        case.connection.dataReceived(bytes([each]))
    assert case.opened == [case.connection]
    assert case.messages == [ANSWER, DATA]


def test_messages_in_the_same_segment() -> None:
    """What comes in one segment with the answer is not lost."""
    case = Case()
    case.connection.dataReceived(case.upgrade() + frame(ANSWER))
    assert case.messages == [ANSWER]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("HTTP/1.1 403 Forbidden", "403 Forbidden: the relay, or a web proxy in front of it, does not let us in"),
        ("HTTP/1.1 404 Not Found", "404 Not Found: there is no TURN at that path"),
        ("HTTP/1.1 301 Moved\r\nLocation: https://elsewhere.example/", "301 Moved: it is elsewhere"),
        ("HTTP/1.1 502 Bad Gateway", "502 Bad Gateway: a web proxy does not reach the relay"),
        ("HTTP/1.1 200 OK", "200 OK: there is no WebSocket"),
        ("HTTP/1.1 101 OK\r\nUpgrade: h2c\r\nConnection: Upgrade", "switches to something that is no WebSocket"),
        ("SSH-2.0-OpenSSH", "no web server"),
    ],
)
def test_refusals(answer: str, words: str) -> None:
    """What is answered instead of opening is told with what may help, and the host; then the connection is cut."""
    case = Case()
    case.connection.dataReceived(answer.encode() + b"\r\n\r\n")
    error = case.refused()
    assert error.startswith("192.0.2.1: ")
    assert words in error


@pytest.mark.parametrize(
    ("headers", "accept", "words"),
    [
        ((), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "has not read our key"),
        (("Sec-WebSocket-Accept: again",), None, "has not read our key"),
        (("Sec-WebSocket-Extensions: permessage-deflate",), None, "nobody offered"),
        (("Sec-WebSocket-Protocol: chat",), None, "nobody offered"),
    ],
)
def test_a_false_opening(headers: tuple[str, ...], accept: str | None, words: str) -> None:
    """An answer of somebody who has not read the request, or grants what was not asked for, opens nothing."""
    case = Case()
    case.connection.dataReceived(case.upgrade(*headers, accept=accept))
    assert words in case.refused()


def test_no_answer() -> None:
    """A server that does not answer the handshake is not waited for."""
    case = Case()
    case.connection.dataReceived(b"HTTP/1.1 101")
    case.clock.advance(HANDSHAKE_TIMEOUT)
    assert "no answer to the WebSocket handshake within 10 seconds" in case.refused()


def test_closed_before_it_opened() -> None:
    """A connection that ends first is an error, once."""
    case = Case()
    case.lose(ConnectionDone())
    assert "the server closed the connection" in str(case.opened[0].value)
    assert case.errors == []


def test_cancelled() -> None:
    """Who does not want to wait cuts the connection, and nothing is left."""
    case = Case()
    case.connection.opened.cancel()
    assert case.transport.aborted
    assert case.opened[0].check(CancelledError)
    case.lose()


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 65_535, 65_536])
def test_what_is_sent(size: int) -> None:
    """Each message is one whole binary frame with a mask, whatever its size."""
    case = Case().open()
    message = bytes(range(256)) * 257
    case.connection.write(message[:size])
    case.connection.write_data(b"next")
    assert case.sent() == [(0x82, message[:size]), (0x82, b"next")]


def test_masks_differ() -> None:
    """The same message is never twice the same on the wire (RFC 6455 section 10.3), but for one time in 2**32."""
    case = Case().open()
    frames = set()
    for _ in range(8):
        case.connection.write(ANSWER)
        frames.add(case.transport.value())
        case.transport.clear()
    assert len(frames) > 1


def test_the_mask_of_the_rfc() -> None:
    """The masked "Hello" of RFC 6455 section 5.7, as a binary message."""
    assert masked_frame(b"Hello", bytes.fromhex("37fa213d")) == bytes.fromhex("828537fa213d7f9f4d5158")


def test_fragments() -> None:
    """A proxy may cut a message into frames and put a ping between: it comes out whole, and the ping is answered."""
    case = Case().open()
    for piece in (frame(ANSWER[:7], 0x02), frame(b"alive?", 0x89), frame(b"", 0x00), frame(ANSWER[7:], 0x80)):
        case.connection.dataReceived(piece)
    assert case.messages == [ANSWER]
    assert case.sent() == [(0x8A, b"alive?")]


def test_several_messages_in_one() -> None:
    """A server may join whole messages, padded to four bytes."""
    case = Case().open()
    case.connection.dataReceived(frame(encode_channel_data(0x4000, b"hello", padded=True) + ANSWER))
    assert case.messages == [DATA, ANSWER]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(b"text", 0x81), 1003),
        (frame(b"\xff\xff\xff\xff"), 1007),
        (frame(ANSWER[:-1]), 1007),
        (frame(b""), 1007),
        (b"\x82\x7f" + (MAX_MESSAGE + 1).to_bytes(8), 1009),
        (frame(ANSWER, 0xC2), 1002),
        (frame(b"", 0x83), 1002),
        (frame(ANSWER, 0x80), 1002),
        (masked_frame(ANSWER, b"mask"), 1002),
    ],
)
def test_broken_rules(data: bytes, code: int) -> None:
    """Text, garbage, halves, floods and bad frames end it with the right code; what follows is not heard."""
    case = Case().open()
    case.connection.dataReceived(data + frame(ANSWER))
    ((first, payload),) = case.sent()
    assert (first, int.from_bytes(payload[:2])) == (0x88, code)
    assert case.transport.disconnecting
    assert case.messages == []
    assert "does not keep to WebSocket" in case.end()


def test_a_flood_in_small_frames() -> None:
    """However small its fragments are, a message has a largest size."""
    case = Case().open()
    case.connection.dataReceived(frame(bytes(60_000), 0x02))
    case.connection.dataReceived(frame(bytes(MAX_MESSAGE - 60_000), 0x00))
    assert case.sent() == []
    case.connection.dataReceived(frame(b"x", 0x00))
    ((first, payload),) = case.sent()
    assert (first, payload[:2]) == (0x88, (1009).to_bytes(2))


def test_congestion() -> None:
    """While the transport is full, data for peers is dropped and counted, requests go, and pings get no answer."""
    case = Case().open()
    case.transport.producer.pauseProducing()
    case.connection.write_data(b"dropped")
    case.connection.write(b"request")
    case.connection.dataReceived(frame(b"", 0x89))
    case.transport.producer.resumeProducing()
    case.connection.write_data(b"data")
    assert case.sent() == [(0x82, b"request"), (0x82, b"data")]
    assert case.connection.dropped == 1


# --- pings ------------------------------------------------------------------------------------------------------------


def test_pings() -> None:
    """A ping goes out every 25 seconds, for as long as anything comes after each: its answer, data, or a ping."""
    case = Case().open()
    for arriving in (frame(b"", 0x8A), frame(DATA), frame(b"", 0x89)) * 3:
        case.clock.pump([1.0] * (int(PING_INTERVAL) - 1))
        assert case.sent() == []
        case.clock.advance(1.0)
        assert [first for first, _ in case.sent()] == [0x89]
        case.connection.dataReceived(arriving)
        case.transport.clear()
    assert not case.transport.aborted


def test_silence() -> None:
    """A server that says nothing after a ping is given up."""
    case = Case().open()
    case.clock.advance(PING_INTERVAL)
    case.clock.advance(PONG_TIMEOUT)
    assert case.transport.aborted
    assert case.end() == "the server does not answer pings"


# --- the end ----------------------------------------------------------------------------------------------------------


def test_closing() -> None:
    """We say that we are done, hang up once the server has answered, and then it is closed."""
    case = Case().open()
    closed = case.connection.close()
    assert case.sent() == [(0x88, (1000).to_bytes(2))]
    assert not case.transport.disconnecting
    case.connection.write(b"too late")
    assert case.sent() == []
    case.connection.dataReceived(frame((1000).to_bytes(2), 0x88))
    assert case.transport.disconnecting
    case.lose(ConnectionDone())
    assert closed.called
    assert case.connection.close().called


def test_closing_a_server_that_does_not_answer() -> None:
    """It is cut after a while."""
    case = Case().open()
    closed = case.connection.close()
    case.clock.advance(CLOSE_GRACE)
    assert case.transport.aborted
    case.lose()
    assert closed.called


def test_closing_before_it_opened() -> None:
    """Nobody has to wait for a handshake to leave."""
    case = Case()
    closed = case.connection.close()
    assert case.transport.disconnecting
    case.lose(ConnectionDone())
    assert closed.called


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "the server closed the WebSocket without a code"),
        ((1001).to_bytes(2), "the server closed the WebSocket with code 1001: it is going away"),
        ((4321).to_bytes(2), "the server closed the WebSocket with code 4321"),
        (
            (1008).to_bytes(2) + "no\x1b[31m n\u00e9".encode(),
            "the server closed the WebSocket with code 1008: no[31m n",
        ),
    ],
)
def test_the_server_closes(payload: bytes, words: str) -> None:
    """Its Close is answered, and its user told why; what a stranger writes has no control characters by then."""
    case = Case().open()
    case.connection.dataReceived(frame(payload, 0x88))
    ((first, _),) = case.sent()
    assert first == 0x88
    assert case.transport.disconnecting
    assert case.end() == words


def test_the_server_vanishes() -> None:
    """A connection that is cut is told as such, once."""
    case = Case().open()
    assert "non-clean" in case.end() or "lost" in case.errors[0]
