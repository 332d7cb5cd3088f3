"""The frames of a WebSocket from a client: Autobahn reads them, and is given neither the transport nor a clock.

What we send is masked by the system's entropy (RFC 6455 section 10.3): what is relayed may be chosen by somebody else,
and proxies are in between.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.logger import Logger

from relayd.client.websocket_handshake import accept_of
from relayd.stun.message import MAX_MESSAGE

# RFC 6455 section 7.4.1
NORMAL = 1000
UNSUPPORTED_DATA = 1003
INVALID_PAYLOAD = 1007


class FrameReader(Protocol):
    """Whom the frames report to, and through whom they write."""

    @property
    def is_congested(self) -> bool:
        """Whether what we send has to wait already."""

    def write_frames(self, data: bytes) -> None:
        """Send frames that carry no data for the relay."""

    def binary_message(self, data: bytes) -> None:
        """A whole binary message has come."""

    def close_received(self, code: int | None, reason: bytes) -> None:
        """The server has sent a Close frame, and was answered."""

    def violated(self, reason: str) -> None:
        """The server broke the rules, and was told so."""


def masked_frame(message: bytes, mask: bytes) -> bytes:
    """One whole binary message from a client (RFC 6455 section 5.2). `mask` is four random bytes."""
    size = len(message)
    if size < 126:
        head = bytes((0x82, 0x80 | size))
    elif size < 65_536:
        head = b"\x82\xfe" + size.to_bytes(2)
    else:
        head = b"\x82\xff" + size.to_bytes(8)
    pad = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(message) ^ int.from_bytes(pad)
    return head + mask + masked.to_bytes(size)


class _OnlyFaults:
    """What Autobahn is given for a log: that strangers break the rules is told to our user, in our words."""

    _log = Logger(namespace="autobahn")

    def error(self, message: str, **values: Any) -> None:
        self._log.error(message, **values)

    def debug(self, *message: Any, **values: Any) -> None:
        """Nobody wants to know."""

    info = warn = debug


class Frames(WebSocketClientProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """Reads the frames of one connection, and writes those that are no data. Knows nothing of TURN."""

    log = _OnlyFaults()

    def __init__(self, connection: FrameReader, key: bytes) -> None:
        super().__init__()
        self.factory = _FACTORY
        self._connection = connection
        self._key = key
        self._message = bytearray()

    def open(self) -> None:
        """Begin after a handshake that has been judged already."""
        self._connectionMade()
        self.websocket_key = self._key
        accept = accept_of(self._key)
        self.received(
            "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )

    def received(self, data: bytes) -> None:
        """Bytes from the server."""
        self._dataReceived(data)

    def lost(self) -> None:
        """The connection is gone."""
        self._connectionLost(None)

    def is_speaking(self) -> bool:
        """Whether no Close frame has been sent or answered yet."""
        return bool(self.state == self.STATE_OPEN)

    def end(self, code: int) -> None:
        """Send a Close frame, unless one was sent."""
        if self.is_speaking():
            self.sendCloseFrame(code)

    def fail(self, code: int, reason: str) -> None:
        """The same, and listen to nothing more that the server says (RFC 6455 section 7.1.7)."""
        if self.is_speaking():
            self._fail_connection(code, reason)

    # --- what Autobahn calls for want of a transport ---

    def startHandshake(self) -> None:
        """It is over already."""

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self._connection.write_frames(data)

    def unregisterProducer(self) -> None:
        """The connection does that when it is closed."""

    def _closeConnection(self, abort: bool = False) -> None:
        """The connection was told why before, and closes itself."""

    def _fail_connection(self, code: int = NORMAL, reason: str = "") -> None:
        super()._fail_connection(code, reason)
        self._connection.violated(reason)

    # --- what it hears ---

    def _onConnect(self, response: Any) -> None:
        """There is nothing in it."""

    def _onOpen(self) -> None:
        """Nor is there anything to do."""

    def onPing(self, payload: bytes) -> None:
        if not self._connection.is_congested:
            self.sendPong(payload)

    def onPong(self, payload: bytes) -> None:
        """Bytes came, which is all that was asked for."""

    def onMessageBegin(self, isBinary: bool) -> None:
        super().onMessageBegin(isBinary)
        self._message = bytearray()
        if not isBinary:
            self.fail(UNSUPPORTED_DATA, "text instead of binary messages")

    def onMessageFrameData(self, payload: bytes) -> None:
        if not self.failedByMe:
            self._message += payload

    def onMessageEnd(self) -> None:
        message, self._message = self._message, bytearray()
        if self.is_speaking():
            self._connection.binary_message(bytes(message))

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> Any:  # noqa: N803
        result = super().onCloseFrame(code, reasonRaw)
        self._connection.close_received(code, reasonRaw or b"")
        return result

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection knows."""


def _frames_factory() -> WebSocketClientFactory:
    """What Autobahn wants to know once for all connections: above all, that no timer is its own.

    So it needs no reactor, and would install one if it were given none.
    """
    factory = WebSocketClientFactory(reactor=object())
    factory.setProtocolOptions(
        utf8validateIncoming=False,  # text is refused whatever it says
        maxFramePayloadSize=MAX_MESSAGE,
        maxMessagePayloadSize=MAX_MESSAGE,
        failByDrop=False,  # the server is to hear the code
        openHandshakeTimeout=0,
        closeHandshakeTimeout=0,
        serverConnectionDropTimeout=0,
        autoPingInterval=0,
        autoPingTimeout=0,
    )
    return factory


_FACTORY = _frames_factory()
