"""The frames of a WebSocket (RFC 6455) at either end. Autobahn reads them, and is given neither transport nor clock.

So every limit, every timeout and every write belongs to who has the connection. Knows nothing of TURN, nor of HTTP.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketAdapterProtocol
from twisted.logger import Logger

from relayd.stun.message import MAX_MESSAGE

# RFC 6455 section 7.4.1
NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
INVALID_PAYLOAD = 1007

MASKED = 0x80  # RFC 6455 section 5.2: the bit before the length, which all frames of clients have and none of servers

OPTIONS = {
    "utf8validateIncoming": False,  # text is refused whatever it says
    "maxFramePayloadSize": MAX_MESSAGE,  # several messages in one share that
    "maxMessagePayloadSize": MAX_MESSAGE,
    "failByDrop": False,  # the other end is to hear the code
    "openHandshakeTimeout": 0,
    "closeHandshakeTimeout": 0,
    "autoPingInterval": 0,
    "autoPingTimeout": 0,
}
"""For `setProtocolOptions` of a factory of Autobahn's: above all, that no timer is its own."""


@lru_cache(maxsize=4096)
def frame_header(size: int, masked: int = 0) -> bytes:
    """What goes before a whole binary message of `size` bytes (RFC 6455 section 5.2).

    `masked` is `MASKED` for a client, whose masking key then follows.
    """
    if size < 126:
        return bytes((0x82, masked | size))
    if size < 65_536:
        return bytes((0x82, masked | 126)) + size.to_bytes(2)
    return bytes((0x82, masked | 127)) + size.to_bytes(8)


def masked_frame(message: bytes, mask: bytes) -> bytes:
    """One whole binary message from a client (RFC 6455 section 5.3). `mask` is four random bytes."""
    size = len(message)
    pad = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(message) ^ int.from_bytes(pad)
    return frame_header(size, MASKED) + mask + masked.to_bytes(size)


class FramedConnection(Protocol):
    """Whom the frames report to, and through whom they write."""

    @property
    def is_congested(self) -> bool:
        """Whether what we send has to wait already."""

    def write_frames(self, data: bytes) -> None:
        """Send frames as they are."""

    def binary_message(self, data: bytes) -> None:
        """A whole binary message has come."""


class _OnlyFaults:
    """What Autobahn is given for a log: that it is broken is news, that strangers break the rules is ours to tell."""

    _log = Logger(namespace="autobahn")

    def error(self, message: str, **values: Any) -> None:
        self._log.error(message, **values)

    def debug(self, *message: Any, **values: Any) -> None:
        """Nobody wants to know."""

    info = warn = debug


class WebSocketFrames(WebSocketAdapterProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """Reads the frames of one connection, joins messages, and writes what is no message. To be put before Autobahn's
    protocol of a client or a server, which say the rest.
    """

    log = _OnlyFaults()

    def __init__(self, connection: FramedConnection, factory: Any) -> None:
        super().__init__()
        self.factory = factory
        self._connection: Any = connection  # each end asks more of its own
        self._message = bytearray()

    def received(self, data: bytes) -> None:
        """Bytes from the other end."""
        if self.state != self.STATE_CLOSED:  # else Autobahn would keep them, and read them never
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
        """The same, and listen to nothing more that the other end says (RFC 6455 section 7.1.7)."""
        if self.is_speaking():
            self._fail_connection(code, reason)

    # --- what Autobahn calls for want of a transport ---

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self._connection.write_frames(data)

    def unregisterProducer(self) -> None:
        """The connection does that when it hangs up."""

    # --- what it hears ---

    def _onOpen(self) -> None:
        """It would look for a TLS channel and for certificates."""

    def onPing(self, payload: bytes) -> None:
        # Who does not read gets no pongs, of which it could ask for any number.
        if not self._connection.is_congested:
            self.sendPong(payload)

    def onPong(self, payload: bytes) -> None:
        """Bytes came, which is all that was asked for."""

    def onMessageBegin(self, isBinary: bool) -> None:
        super().onMessageBegin(isBinary)
        self._message = bytearray()
        if not isBinary:
            self.fail(UNSUPPORTED_DATA, "binary messages only")

    def onMessageFrameData(self, payload: bytes) -> None:
        # Autobahn would keep a list of the pieces, in which a message of very many very small ones takes megabytes.
        if not self.failedByMe:
            self._message += payload

    def onMessageEnd(self) -> None:
        message, self._message = self._message, bytearray()
        if self.is_speaking():
            self._connection.binary_message(bytes(message))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection knows."""
