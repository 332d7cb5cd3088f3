"""TURN over WebSocket from a client to its server (draft-chenxin-behave-turn-websocket): one message in each frame."""

from __future__ import annotations

import base64
import secrets
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from relayd.address import AppConnection
from relayd.client.transports.http import ResponseReader, printable
from relayd.client.transports.server import Connection, Receiver, Server
from relayd.client.transports.streams import StreamConnection, endpoint_to, silent_factory
from relayd.client.transports.websocket_frames import Frames
from relayd.client.transports.websocket_handshake import handshake_request, refusal
from relayd.client.transports.wording import explain
from relayd.errors import DecodeError, ServerUnavailable
from relayd.stun.framing import split_message
from relayd.websocket_frames import INVALID_PAYLOAD, NORMAL_CLOSURE, masked_frame

HANDSHAKE_TIMEOUT = 10.0  # seconds for the opening handshake, that of TLS included
PING_INTERVAL = 25.0  # seconds: web proxies give up connections on which a client says nothing for 60
PONG_TIMEOUT = 20.0  # seconds after a ping in which something, not necessarily the pong, has to come
ALPN = [b"http/1.1"]  # RFC 7301; a WebSocket in HTTP/2 (RFC 8441) is another thing

_CODES = {  # RFC 6455 section 7.4.1, and those registered since
    1000: "it is done",
    1001: "it is going away",
    1002: "it saw an error in the protocol",
    1003: "it takes no such data",
    1007: "it saw a message that makes no sense",
    1008: "it has a rule against us",
    1009: "a message was too long for it",
    1011: "it failed",
    1012: "it restarts",
    1013: "it is overloaded",
}


class WebSocketConnection(StreamConnection):
    """A WebSocket over TCP or TLS. `opened` fires with it, or fails with ServerUnavailable."""

    def __init__(self, clock: Any, server: Server, receiver: Receiver) -> None:
        """Raises ConfigurationError for a host that no request can name."""
        super().__init__(clock, receiver)
        self.opened: Deferred[Connection] = Deferred(lambda _: self._fail("cancelled"))
        self._key = base64.b64encode(secrets.token_bytes(16))
        self._request = handshake_request(server, self._key)
        self._where = server.host
        self._reader = ResponseReader()
        self._frames: Frames | None = None
        self._timer: IDelayedCall | None = None  # of the handshake, then of pings and their answers
        self._arrived = False  # anything, since the last ping

    # --- what the transport calls ---

    def connectionMade(self) -> None:
        super().connectionMade()
        fault = f"no answer to the WebSocket handshake within {HANDSHAKE_TIMEOUT:g} seconds"
        self._wait(HANDSHAKE_TIMEOUT, self._fail, fault)
        self._transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._arrived = True
        if self._frames is not None:
            self._frames.received(data)
        elif self._fault is None:
            self._answered(data)

    # --- what the session calls ---

    def write(self, data: bytes) -> None:
        if self._frames is not None and self._frames.is_speaking():
            self._transport.write(masked_frame(data, secrets.token_bytes(4)))

    # --- what the frames call ---

    @property
    def is_congested(self) -> bool:
        """Whether what we send has to wait already."""
        return self._is_congested

    def write_frames(self, data: bytes) -> None:
        """See `FrameReader`."""
        self._transport.write(data)

    def binary_message(self, data: bytes) -> None:
        """See `FrameReader`. A server may join several of TURN's messages in one."""
        try:
            messages = split_message(data)
        except DecodeError:
            assert self._frames is not None  # it is the one that calls
            self._frames.fail(INVALID_PAYLOAD, "not whole STUN or ChannelData messages")
            return
        for message in messages:
            self._receiver.message_received(message)

    def close_received(self, code: int | None, reason: bytes) -> None:
        """See `FrameReader`."""
        words = printable(reason.decode("latin-1")) or _CODES.get(code or 0, "")
        number = "without a code" if code is None else f"with code {code}"
        self._fault = self._fault or f"the server closed the WebSocket {number}{': ' if words else ''}{words}"
        self._leave(self._transport.loseConnection)

    def violated(self, reason: str) -> None:
        """See `FrameReader`."""
        self._fault = self._fault or f"the server does not keep to WebSocket: {printable(reason)}"
        self._leave(self._transport.loseConnection)

    # --- within ---

    def _hang_up(self) -> None:
        if self._frames is not None and self._frames.is_speaking():
            self._frames.end(NORMAL_CLOSURE)  # RFC 6455 section 7.1.1: it is the server that closes TCP then
        else:
            self._transport.loseConnection()

    def _lost(self, error: ServerUnavailable) -> None:
        self._stop_waiting()
        frames, self._frames = self._frames, None  # they refer to each other
        if frames is not None:
            frames.lost()
            self._receiver.connection_lost(error)
        elif not self.opened.called:
            self.opened.errback(ServerUnavailable(f"{self._where}: {error}"))

    def _answered(self, data: bytes) -> None:
        try:
            answer = self._reader.receive(data)
        except DecodeError:
            self._fail("what answers there is no web server")
            return
        if answer is None:
            return
        response, rest = answer
        fault = refusal(response, self._key)
        if fault is not None:
            self._fail(fault)
            return
        frames = self._frames = Frames(self, self._key)
        frames.open()
        self._wait(PING_INTERVAL, self._ping)
        self.opened.callback(self)
        if rest:
            frames.received(rest)

    def _ping(self) -> None:
        if self._frames is not None and self._frames.is_speaking():
            self._arrived = False
            if not self.is_congested:  # else there is enough under way that waits for an acknowledgement
                self._frames.sendPing()
            self._wait(PONG_TIMEOUT, self._judge)

    def _judge(self) -> None:
        if self._arrived:
            self._wait(PING_INTERVAL - PONG_TIMEOUT, self._ping)
        else:
            self._fail("the server does not answer pings")

    def _wait(self, seconds: float, then: Any, *arguments: Any) -> None:
        self._stop_waiting()
        self._timer = self._clock.callLater(seconds, then, *arguments)

    def _stop_waiting(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def connect_websocket(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Connect, and open a WebSocket at the server's resource. Fails with ServerUnavailable.

    Raises ConfigurationError as `endpoint_to` does, and for a host that no request can name.
    """
    connection = WebSocketConnection(reactor, server, receiver)
    endpoint = endpoint_to(reactor, server, trust_root, ALPN if server.app_connection is AppConnection.WSS else None)
    connecting: Deferred[Connection] = endpoint.connect(silent_factory(lambda: connection))
    return connecting.addCallback(lambda _: connection.opened).addErrback(explain, server.host)
