"""TCP and TLS from a client to its server: whole messages out of a stream, congestion, and an end in good time."""

from __future__ import annotations

import os
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.client.server import Connection, Receiver, Server
from relayd.dtls import ALPN
from relayd.errors import ConfigurationError, DecodeError, ServerUnavailable
from relayd.stun.framing import MIN_CHANNEL, StreamSplitter

CONNECT_TIMEOUT = 10.0  # seconds for a TCP handshake
CLOSE_GRACE = 3.0  # seconds that a server has to close a stream, before it is cut


@implementer(IPushProducer)
class StreamConnection(StreamProtocol):
    """A TCP or TLS connection. Its transport tells it, as a producer, when the way is congested."""

    def __init__(self, clock: Any, receiver: Receiver) -> None:
        self.dropped = 0
        self._clock = clock
        self._receiver = receiver
        self._splitter = StreamSplitter()
        self._is_congested = False
        self._is_turn = False
        self._fault: str | None = None
        self._closed: Deferred[None] | None = None
        self._is_lost = False
        self._cut: IDelayedCall | None = None

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self._transport):
            # Datagrams must not wait for the acknowledgement of the one before.
            self._transport.setTcpNoDelay(True)
        self._transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def write_data(self, data: bytes) -> None:
        if self._is_congested:
            self.dropped += 1
        else:
            self._transport.write(data)

    def close(self) -> Deferred[None]:
        if self._closed is None:
            self._closed = Deferred()
            if self._is_lost:
                self._closed.callback(None)
            else:
                self._transport.unregisterProducer()
                self._transport.loseConnection()
                self._cut = self._clock.callLater(CLOSE_GRACE, self._transport.abortConnection)
        return self._closed

    def dataReceived(self, data: bytes) -> None:
        try:
            # The first thing to come is the answer to a request: ASCII, in which most other protocols begin, would pass
            # for the beginning of very long ChannelData.
            if not self._is_turn and data[0] >= MIN_CHANNEL >> 8:
                raise DecodeError("not STUN")
            self._is_turn = True
            messages = self._splitter.receive(data)
        except DecodeError:
            self._fault = "what answers there is no TURN server"
            self._transport.abortConnection()
            return
        for message in messages:
            self._receiver.message_received(message)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        self._is_lost = True
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        if self._closed is not None:
            self._closed.callback(None)
        self._receiver.connection_lost(ServerUnavailable(self._fault or _wording(reason)))

    def pauseProducing(self) -> None:
        self._is_congested = True

    def resumeProducing(self) -> None:
        self._is_congested = False

    def stopProducing(self) -> None:
        self._is_congested = True

    @property
    def _transport(self) -> Any:
        return self.transport


def connect_stream(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Connect over TCP, to whichever address of the server answers first. Fails with ServerUnavailable, or
    ConfigurationError for a name that no certificate can be for.
    """
    endpoint: Any = HostnameEndpoint(reactor, server.host, server.port, timeout=CONNECT_TIMEOUT)
    if server.app_connection is AppConnection.TLS:
        try:
            # RFC 7443: the first one is stun.turn
            options = optionsForClientTLS(server.tls_name, trustRoot=trust_root, acceptableProtocols=[ALPN[0]])
        except (ValueError, UnicodeError):
            return fail(ConfigurationError(f"{server.tls_name!r}: no certificate can be for such a name"))
        endpoint = wrapClientTLS(options, endpoint)
    opened: Deferred[Connection] = endpoint.connect(Factory.forProtocol(lambda: StreamConnection(reactor, receiver)))
    return opened.addErrback(_explain, server.host)


def _explain(failure: Failure, host: str) -> Failure:
    return Failure(ServerUnavailable(f"{host}: {_wording(failure)}"))


def _wording(reason: Failure) -> str:
    """Why a connection failed or ended, in a few words."""
    error = reason.value
    if isinstance(error, ConnectionDone):
        return "the server closed the connection"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args and isinstance(error.args[0], list) else []
        words = "; ".join(str(detail[-1]) for detail in details if detail)
        return f"TLS: {words or 'the handshake failed'}"
    if isinstance(error, ConnectError) and isinstance(error.osError, int):
        return os.strerror(error.osError)
    text = " ".join(str(error).split()) if error is not None else ""
    return text.rstrip(".") or type(error).__name__
