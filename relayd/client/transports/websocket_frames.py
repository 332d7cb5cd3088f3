"""The frames of a WebSocket from a client: what `relayd.websocket_frames` leaves to this end.

What we send is masked by the system's entropy (RFC 6455 section 10.3): what is relayed may be chosen by somebody else,
and proxies are in between.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol

from relayd.client.transports.websocket_handshake import accept_of
from relayd.websocket_frames import NORMAL_CLOSURE, OPTIONS, FramedConnection, WebSocketFrames


class FrameReader(FramedConnection, Protocol):
    """What a client's connection hears beside that."""

    def close_received(self, code: int | None, reason: bytes) -> None:
        """The server has sent a Close frame, and was answered."""

    def violated(self, reason: str) -> None:
        """The server broke the rules, and was told so."""


class Frames(WebSocketFrames, WebSocketClientProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """The client's end."""

    def __init__(self, connection: FrameReader, key: bytes) -> None:
        super().__init__(connection, _FACTORY)
        self._key = key

    def open(self) -> None:
        """Begin after a handshake that has been judged already."""
        self._connectionMade()
        self.websocket_key = self._key
        accept = accept_of(self._key)
        self.received(
            "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )

    # --- what Autobahn calls for want of a transport ---

    def startHandshake(self) -> None:
        """It is over already."""

    def _closeConnection(self, abort: bool = False) -> None:
        """The connection was told why before, and closes itself."""

    def _fail_connection(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        super()._fail_connection(code, reason)
        self._connection.violated(reason)

    # --- what it hears ---

    def _onConnect(self, response: Any) -> None:
        """There is nothing in it."""

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> Any:  # noqa: N803
        result = super().onCloseFrame(code, reasonRaw)
        self._connection.close_received(code, reasonRaw or b"")
        return result


def _frames_factory() -> WebSocketClientFactory:
    """What Autobahn wants to know once for all connections.

    Without timers it needs no reactor, and would install one if it were given none.
    """
    factory = WebSocketClientFactory(reactor=object())
    factory.setProtocolOptions(**OPTIONS, serverConnectionDropTimeout=0)
    return factory


_FACTORY = _frames_factory()
