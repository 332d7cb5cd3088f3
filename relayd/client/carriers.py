"""What carries a data connection to the server: TCP or TLS as it is, and WebSocket in binary messages (RFC 6062 over
draft-chenxin-behave-turn-websocket). They go the way of the control connection, its proxy included.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.client.data_connection import DataConnection
from relayd.client.transports.server import Connection, Server
from relayd.client.transports.streams import endpoint_to, silent_factory
from relayd.client.transports.websocket import ALPN as HTTP
from relayd.client.transports.websocket import WebSocketConnection
from relayd.client.transports.wording import explain, wording
from relayd.dtls import ALPN as TURN
from relayd.errors import ServerUnavailable
from relayd.pipe.unsent import unsent
from relayd.websocket_frames import GOING_AWAY, NORMAL_CLOSURE

LARGEST_MESSAGE = 16_384  # bytes in one binary message: little enough to share the way, enough to cost little
CLOSE_GRACE = 10.0  # seconds that a server has to answer a Close frame, behind all that was written, or to take ours
MOST_UNSENT = 1_048_576  # bytes under way to the server beyond which its pings are not answered: it reads nothing


@implementer(IHalfCloseableProtocol)
class StreamCarrier(StreamProtocol):
    """TCP or TLS. Half-closing is TCP's."""

    largest_write = 1 << 62  # a stream has no messages

    def __init__(self, data: DataConnection, can_half_close: bool) -> None:
        self.can_half_close = can_half_close
        self._data = data

    @property
    def stream(self) -> Any:
        """See `Carrier`."""
        return self.transport

    def write(self, data: bytes) -> None:
        """See `Carrier`."""
        self.stream.write(data)

    def leave(self) -> None:
        """See `Carrier`."""
        if not self.can_half_close:
            self.stream.resumeProducing()  # TLS is closed by the answer, which who is paused would not read
        self.stream.loseConnection()

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.stream):
            self.stream.setTcpNoDelay(True)
        self._data.carried_by(self)

    def dataReceived(self, data: bytes) -> None:
        self._data.received(data)

    def readConnectionLost(self) -> None:
        self._data.heard_all()

    def writeConnectionLost(self) -> None:
        self._data.said_all()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        self._data.lost(reason, wording(reason))


class WebSocketCarrier(WebSocketConnection):
    """A WebSocket whose messages' boundaries mean nothing. A Close frame is the end of the stream, and its absence a
    reset (docs/protocol.rst).
    """

    can_half_close = False
    largest_write = LARGEST_MESSAGE

    def __init__(self, clock: Any, server: Server, data: DataConnection) -> None:
        """Raises ConfigurationError as `WebSocketConnection` does."""
        super().__init__(clock, server, self)
        self._data = data
        self._has_left = False
        self._is_clean = False

    @property
    def stream(self) -> Any:
        """See `Carrier`."""
        return self.transport

    @property
    def is_congested(self) -> bool:
        # The transport tells who produces the peer's data of that, and nobody else.
        return unsent(self._transport) > MOST_UNSENT

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        if self._has_left and reason.check(ConnectionDone):
            self._is_clean = True  # all was sent, whether it was answered or not
        super().connectionLost(reason)

    def begin(self) -> None:
        """The WebSocket is open."""
        self._transport.unregisterProducer()  # ours; who produces the peer's data comes in our place
        self._data.carried_by(self)

    def leave(self) -> None:
        """See `Carrier`. What waits goes first, however long that takes: nothing is cut."""
        frames = self._frames
        if frames is None or not frames.is_speaking():
            self._transport.loseConnection()
            return
        self._has_left = True
        frames.end(NORMAL_CLOSURE)
        self._transport.resumeProducing()  # for the answer
        self._wait(CLOSE_GRACE, self._transport.loseConnection)

    def binary_message(self, data: bytes) -> None:
        self._data.received(data)

    def close_received(self, code: int | None, reason: bytes) -> None:
        self._is_clean = self._is_clean or code in (None, NORMAL_CLOSURE, GOING_AWAY)
        super().close_received(code, reason)
        if self._is_clean:
            self._data.heard_all()

    def message_received(self, data: bytes) -> None:
        """Nothing is taken for a message."""

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        """A stream is never in doubt."""

    def connection_lost(self, error: ServerUnavailable) -> None:
        reason = Failure(ConnectionDone() if self._is_clean else ConnectionLost(str(error)))
        self._data.lost(reason, str(error))

    def _leave(self, goodbye: Any) -> None:
        # Autobahn's answer is under way, and behind it the end. Twisted would wait for a producer that it has paused.
        self._data.unregisterProducer()
        self._wait(CLOSE_GRACE, self._transport.abortConnection)
        goodbye()

    def _judge(self) -> None:
        # Who makes us wait, or whom we make wait, answers no ping. The control connection tells whether the server is
        # there; pings here are for the proxies in between.
        self._arrived = True
        super()._judge()


def open_data_connection(reactor: Any, server: Server, trust_root: Any, data: DataConnection) -> Deferred[Any]:
    """Open one, and bind it. Fires with the protocol that `data` is the transport of.

    Fails as `DataConnection` says. Raises ConfigurationError as `endpoint_to` does.
    """
    kind = server.app_connection
    if kind in (AppConnection.WS, AppConnection.WSS):
        carrier = WebSocketCarrier(reactor, server, data)
        endpoint = endpoint_to(reactor, server, trust_root, HTTP if kind is AppConnection.WSS else None)
        opening: Deferred[Any] = endpoint.connect(silent_factory(lambda: carrier))
        opening.addCallback(lambda _: carrier.opened).addErrback(explain, server.host)

        def begin(_: Connection) -> Deferred[Any]:
            carrier.begin()
            return data.opened

        return opening.addCallback(begin)
    protocols = [TURN[0]] if kind is AppConnection.TLS else None
    opening = endpoint_to(reactor, server, trust_root, protocols).connect(
        silent_factory(lambda: StreamCarrier(data, kind is AppConnection.TCP))
    )
    return opening.addErrback(explain, server.host).addCallback(lambda _: data.opened)
