"""TURN over WebSocket (draft-chenxin-behave-turn-websocket): a binary message carries one STUN or ChannelData message.

Several whole messages in one, padded to four bytes, are taken too. Autobahn reads the frames
(`relayd.websocket_frames`), but for those of bound channels, which pass it by (`relayd.listeners.channel_frames`); its
own counts of traffic, that nobody reads, do not grow with these.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.web.server import Site

from relayd.address import AppConnection, TransportAddress
from relayd.errors import DecodeError
from relayd.listeners.channel_frames import read_channel_frames
from relayd.listeners.connection import ClientConnection, ConnectionHost
from relayd.listeners.forwarding import Forwarded, read_forwarded
from relayd.listeners.handshake import VERSION, Handshake, RequestHeaders
from relayd.listeners.http import WebChannel, WebSite
from relayd.listeners.liveness import Liveness
from relayd.pipe.stream_end import StreamEnd
from relayd.stun.framing import split_message
from relayd.websocket_frames import (
    GOING_AWAY,
    INVALID_PAYLOAD,
    NORMAL_CLOSURE,
    OPTIONS,
    WebSocketFrames,
    frame_header,
)

MAX_LINGERING = 262_144  # bytes that are read and dropped while a client finishes its last message and hears why
PING_INTERVAL = 25.0  # seconds: web proxies give up connections on which a server says nothing for 60
PONG_TIMEOUT = 20.0  # seconds after a ping in which something, not necessarily the pong, has to come


class Frames(WebSocketFrames, WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """The server's end."""

    data: bytes  # what Autobahn has not read yet

    def __init__(self, connection: WebClient, factory: WebSocketServerFactory, subprotocol: str | None) -> None:
        super().__init__(connection, factory)
        self._subprotocol = subprotocol

    def open(self, key: bytes) -> None:
        """Answer a handshake that has been judged already."""
        self._connectionMade()
        headers = [
            b"GET /turn HTTP/1.1",
            b"Host: relay",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Version: " + VERSION,
            b"Sec-WebSocket-Key: " + key,
        ]
        if self._subprotocol is not None:
            headers.append(b"Sec-WebSocket-Protocol: " + self._subprotocol.encode("ascii"))
        self.received(b"\r\n".join(headers) + b"\r\n\r\n")

    def received(self, data: bytes) -> None:
        """Bytes from the client."""
        takes_turn = self.is_speaking() and not self._connection.is_bound
        if takes_turn and self.current_frame is None and not self.inside_message:
            # Autobahn is between two messages: all that it remembers is the beginning of a header.
            waiting = self.data + data
            frames = read_channel_frames(waiting)
            if frames.messages or frames.more:
                self.data, data = b"", waiting[frames.size :]
                self._connection.serve(frames.messages)
                if frames.more:
                    self.data = data  # so that this frame, too, can be read in one go when it is whole
                    return
        if data:
            super().received(data)

    def begun(self) -> bytes:
        """What has come of a message that is not whole yet, which is forgotten here."""
        message, self._message = self._message, bytearray()
        return bytes(message)

    def lift_limits(self) -> None:
        """Take messages of any length: they are passed on piece by piece."""
        self.maxFramePayloadSize = self.maxMessagePayloadSize = 0

    # --- what Autobahn calls for want of a transport ---

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self._connection.closing()

    def _closeConnection(self, abort: bool = False) -> None:
        self._connection.hang_up()

    # --- what it hears ---

    def onConnect(self, request: Any) -> str | None:
        return self._subprotocol

    def onMessageFrameData(self, payload: bytes) -> None:
        if not self._connection.carries_bytes:
            super().onMessageFrameData(payload)
        elif not self.failedByMe:
            self._connection.bytes_received(payload)

    def onMessageEnd(self) -> None:
        if not self._connection.carries_bytes:
            super().onMessageEnd()

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> Any:  # noqa: N803
        result = super().onCloseFrame(code, reasonRaw)
        if not self.failedByMe:
            self._connection.heard_close()
        return result


def make_frames_factory(clock: Any) -> WebSocketServerFactory:
    """What Autobahn wants to know once for all connections of a listener."""
    factory = WebSocketServerFactory(server="", reactor=clock)
    factory.setProtocolOptions(
        **OPTIONS,
        versions=[int(VERSION)],
        webStatus=False,
        tcpNoDelay=True,
        perMessageCompressionAccept=_no_compression,
    )
    return factory


def _no_compression(offers: object) -> None:
    """What is relayed is encrypted as a rule; and a small message must not become a large one."""


class DataMessages:
    """A WebSocket as a transport of Twisted's: what is written goes as binary messages, which have no meaning."""

    def __init__(self, connection: WebClient, below: Any) -> None:
        self.transport = below
        self._connection = connection
        self.pauseProducing = below.pauseProducing
        self.resumeProducing = below.resumeProducing
        self.unregisterProducer = below.unregisterProducer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._connection.source = producer
        self.transport.registerProducer(self._connection, streaming)

    def write(self, data: bytes) -> None:
        self._connection.write_frames(self._connection.framed(data))

    def loseConnection(self) -> None:
        self._connection.say_goodbye(NORMAL_CLOSURE)

    def abortConnection(self) -> None:
        self._connection.abort()


class WebHost(ConnectionHost, Protocol):
    """What a connection to the site needs of the listener that accepted it."""

    site: WebSite
    frames_factory: Any


class WebClient(ClientConnection):
    """One connection to the site, which speaks HTTP until it becomes a WebSocket, and only then is a path."""

    plain = AppConnection.WS
    secure = AppConnection.WSS
    padded = False
    frames = Frames

    def __init__(self, listener: WebHost, site: Site | None = None) -> None:
        """`site` instead of the listener's."""
        super().__init__(listener)
        self._frames_factory = listener.frames_factory
        self._http: WebChannel | None = WebChannel(self, site or listener.site)
        self._frames: Frames | None = None
        self._arrived = False  # anything, since the last sweep
        self._told: TransportAddress | None = None  # the client's address in the path
        self._lingering = 0
        self._behind: list[bytes] = []  # messages that came behind a ConnectionBind
        self.source: Any = None  # who produces what a data connection takes
        self._next_ping = self._give_up = 0.0

    # --- what the transport calls ---

    def dataReceived(self, data: bytes) -> None:
        self._arrived = True
        self._begin_turn()
        if self._frames is not None:
            self._feed(self._frames, data)
        elif self._http is not None and self._ready():
            self._http.dataReceived(data)  # type: ignore[no-untyped-call]
        self._end_turn()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._http is not None:
            self._http.connectionLost(reason)  # type: ignore[no-untyped-call]
            self._http = None
        if self._frames is not None:
            self._frames.lost()
        if self._data is not None:
            reason = Failure(ConnectionLost())  # without a Close frame (RFC 6455 section 7.1.5) that is no orderly end
        super().connectionLost(reason)
        self._frames = None  # they refer to each other
        if self._told is not None:
            self._listener.told.free(self._told)
            self._told = None

    def pauseProducing(self) -> None:
        super().pauseProducing()
        if self.source is not None:
            self.source.pauseProducing()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self.source is not None:
            self.source.resumeProducing()

    # --- what HTTP calls ---

    def heard(self) -> None:
        """A whole request has come."""
        self._liveness.heard = True

    def forwarded(self, headers: RequestHeaders) -> Forwarded | None:
        """See `relayd.listeners.http.Upgradable`."""
        listener = self._listener
        if not listener.trusts(self.remote):
            return None
        try:
            return read_forwarded(headers, listener.trusts)
        except DecodeError as why:
            listener.warn_once(
                "forwarding",
                f"refused a request ({why}): have the proxy in front set one of them, and remove the other",
            )
            raise

    def admit(self, forwarded: Forwarded | None) -> bool:
        """See `relayd.listeners.http.Upgradable`."""
        named, secure = forwarded or Forwarded(None, None)
        client = named or self.remote or self._listener.told.invent()
        if not client.port and self.remote is not None:
            client = client.with_port(self.remote.port)
        told = self._listener.told.take(client)
        if told is None:
            return False
        if named is not None and not self._claim(named):
            self._listener.told.free(told)
            return False
        self._told = told
        self._set_path(told, self._is_secure() if secure is None else secure)
        return True

    def upgrade(self, handshake: Handshake) -> None:
        """See `relayd.listeners.http.Upgradable`."""
        http, self._http = self._http, None
        assert http is not None  # there is no second upgrade
        http.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call]
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.registerProducer(self, True)
        transport.resumeProducing()
        now = self._listener.clock.seconds()
        self._liveness = Liveness(now)
        self._next_ping = now + PING_INTERVAL
        self._frames = self.frames(self, self._frames_factory, handshake.subprotocol)
        self._frames.open(handshake.key)

    def early(self, data: bytes) -> None:
        """Frames that the client sent without waiting for the answer to its handshake."""
        if self._frames is not None:
            self._feed(self._frames, data)

    # --- what the frames call ---

    @property
    def is_congested(self) -> bool:
        """See `FramedConnection`: the client does not read."""
        return self._paused

    def write_frames(self, data: bytes) -> None:
        """See `FramedConnection`: for the end of this turn."""
        self._write(data)

    def closing(self) -> None:
        """A Close frame was sent: there is nothing more to say."""
        self._begin_to_close()

    def heard_close(self) -> None:
        """A Close frame came: what the client had to say is whole, whatever becomes of the connection."""
        if self._data is not None:
            self._data.heard_all()

    def hang_up(self) -> None:
        """Nothing more is to be said, in HTTP or between the frames."""
        self._hang_up()

    @property
    def is_bound(self) -> bool:
        """Whether what comes may be a peer's bytes that happen to look like TURN."""
        return self._binding

    @property
    def carries_bytes(self) -> bool:
        """Whether it is a client data connection, on which the boundaries of messages mean nothing."""
        return self._data is not None

    def bytes_received(self, data: bytes) -> None:
        """A piece of a binary message."""
        assert self._data is not None  # it was asked for
        self._data.received(data)

    def binary_message(self, data: bytes) -> None:
        """See `FramedConnection`."""
        if self._binding:
            self._behind.append(data)
        else:
            self._serve(self._split(data))

    def say_goodbye(self, code: int) -> None:
        """Close with that code behind what was written, once the client has answered, or `CLOSE_GRACE` is over."""
        if self._frames is not None:
            self._frames.end(code)
            self.flush()

    def serve(self, messages: list[bytes]) -> None:
        """The messages in several frames."""
        if messages:
            self._serve(messages)

    # --- what the service and the listener call ---

    def framed(self, message: bytes) -> bytes:
        return frame_header(len(message)) + message

    def channel_frame(self, number: int, size: int) -> tuple[bytes, bytes]:
        before, after = super().channel_frame(number, size)
        return frame_header(len(before) + size) + before, after

    def close(self) -> None:
        """Say goodbye, and close once the client has answered, or `CLOSE_GRACE` is over."""
        if self._frames is None or self._data is not None:
            super().close()
        elif not self._closing:
            self.say_goodbye(GOING_AWAY)

    def sweep(self, now: float) -> None:
        """End the connection if it is silent, closing or dead for too long; see that it does not look idle."""
        if self._frames is not None and not self._closing:
            self._ping(self._frames, now)
        super().sweep(now)

    # --- within ---

    def _split(self, data: bytes) -> list[bytes]:
        """The messages in one of the WebSocket's; none, and the end of the connection, where it has others."""
        try:
            return split_message(data)
        except DecodeError:
            frames = self._frames
            assert frames is not None  # the message came through it
            frames.fail(INVALID_PAYLOAD, "not whole STUN or ChannelData messages")
            return []

    def _make_end(self, transport: Any) -> StreamEnd:
        assert self._frames is not None  # the ConnectionBind came through them
        self._frames.lift_limits()
        end = StreamEnd(DataMessages(self, transport), self._listener.clock, half_closes=False)
        for message in self._behind:
            end.received(message)
        end.received(self._frames.begun())
        return end

    def _behind_bind(self) -> list[bytes]:
        behind, self._behind = self._behind, []
        return [message for data in behind for message in self._split(data)]

    def _start(self, transport: Any) -> None:
        if self._http is not None:
            # It registers itself as the producer.
            self._http.makeConnection(transport)  # type: ignore[no-untyped-call]

    def _welcome(self) -> bool:
        return self._claim_remote()

    def _is_path(self) -> bool:
        return self._frames is not None

    def _feed(self, frames: Frames, data: bytes) -> None:
        if self._closing and not self._is_leaving:
            self._lingering += len(data)
            if self._lingering > MAX_LINGERING:
                self.abort()
                return
        frames.received(data)

    def _ping(self, frames: Frames, now: float) -> None:
        if self._arrived:
            self._arrived = False
            self._give_up = 0.0
        if self._give_up and now >= self._give_up:
            self.abort()
        elif now >= self._next_ping:
            self._next_ping = now + PING_INTERVAL
            if not self.carries_bytes:  # else the peer may make it wait for as long as it likes, and its pongs with it
                self._give_up = now + PONG_TIMEOUT
            if not self._paused:  # else there is enough under way that waits for an acknowledgement
                frames.sendPing()
