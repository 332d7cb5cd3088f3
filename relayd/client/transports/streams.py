"""What every connection over TCP has, with or without TLS and a proxy: congestion, an end in good time, and its reason.

`relayd.client.transports.turn_stream` and `relayd.client.transports.websocket` say how messages are told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.client.transports.server import Receiver, Server
from relayd.client.transports.tunnel import TunnelEndpoint
from relayd.client.transports.wording import wording
from relayd.errors import ConfigurationError, ServerUnavailable
from relayd.tls.client import TlsClientOptions
from relayd.tls.stream import TlsFactory

CONNECT_TIMEOUT = 10.0  # seconds for a TCP handshake
CLOSE_GRACE = 3.0  # seconds that a server has to close a stream, before it is cut


@implementer(IPushProducer)
class StreamConnection(StreamProtocol):
    """A TCP or TLS connection. Its transport tells it, as a producer, when the way is congested."""

    def __init__(self, clock: Any, receiver: Receiver) -> None:
        self.dropped = 0
        self._clock = clock
        self._receiver = receiver
        self._is_congested = False
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
            self.write(data)

    def close(self) -> Deferred[None]:
        if self._closed is None:
            self._closed = Deferred()
            if self._is_lost:
                self._closed.callback(None)
            else:
                self._leave(self._hang_up)
        return self._closed

    @property
    def remote(self) -> str:
        """The IP address of who is at the other end, be it a proxy."""
        return str(self._transport.getPeer().host)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        self._is_lost = True
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        closed = self._closed
        self._lost(ServerUnavailable(self._fault or wording(reason)))
        if closed is not None:
            closed.callback(None)

    def pauseProducing(self) -> None:
        self._is_congested = True

    def resumeProducing(self) -> None:
        self._is_congested = False

    def stopProducing(self) -> None:
        self._is_congested = True

    # --- what kinds of connection have of their own -----------------------------------------------------------------

    def _hang_up(self) -> None:
        """Say goodbye: the connection ends of itself after that, or is cut."""
        self._transport.loseConnection()

    def _leave(self, goodbye: Callable[[], None]) -> None:
        """Say goodbye, and see that the end comes."""
        if self._cut is None:
            self._transport.unregisterProducer()
            self._cut = self._clock.callLater(CLOSE_GRACE, self._transport.abortConnection)
        goodbye()

    def _lost(self, error: ServerUnavailable) -> None:
        """It is over."""
        self._receiver.connection_lost(error)

    def _fail(self, fault: str) -> None:
        """Cut the connection for something that the server did."""
        self._fault = self._fault or fault
        self._transport.abortConnection()

    @property
    def _transport(self) -> Any:
        return self.transport


class _HostEndpoint(HostnameEndpoint):
    """Twisted's, except that who cancels while the name is looked up is told so, and not that there is no such name."""

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        connecting = super().connect(protocolFactory)

        def cancel(_: Deferred[Any]) -> None:
            connected.errback(CancelledError())
            connecting.cancel()

        def settle(result: Any) -> None:
            if not connected.called:
                connected.callback(result)

        connected: Deferred[Any] = Deferred(cancel)
        connecting.addBoth(settle)
        return connected


def silent_factory(build: Callable[[], StreamProtocol]) -> Any:
    """A factory of what `build` builds, which has no line in the application's log for each connection."""
    factory = Factory.forProtocol(build)
    factory.noisy = False
    return factory


def endpoint_to(reactor: Any, server: Server, trust_root: Any, protocols: list[bytes] | None) -> Any:
    """The stream endpoint that leads to a server, whichever of its addresses answers first, by way of its proxy.

    There is TLS, with `protocols` for ALPN, unless `protocols` is None. Raises ConfigurationError for a name that no
    certificate, or no request to a proxy, can be for.
    """
    proxy = server.proxy
    if proxy is None:
        endpoint: Any = _HostEndpoint(reactor, server.host, server.port, timeout=CONNECT_TIMEOUT)
    else:
        below = _HostEndpoint(reactor, proxy.host, proxy.port, timeout=CONNECT_TIMEOUT)
        endpoint = TunnelEndpoint(reactor, below, proxy, server.host, server.port)
    if protocols is None:
        return endpoint
    try:
        options = TlsClientOptions(server.tls_name, trust_root, protocols)
    except ValueError:
        raise ConfigurationError(f"{server.tls_name!r}: no certificate can be for such a name") from None
    return _OverTls(reactor, endpoint, options)


@implementer(IStreamClientEndpoint)
class _OverTls:
    """An endpoint that leads to the same place as another one, over TLS."""

    def __init__(self, reactor: Any, below: Any, options: Any) -> None:
        self._reactor = reactor
        self._below = below
        self._options = options

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See `IStreamClientEndpoint.connect`."""
        factory = TlsFactory(self._options, True, protocolFactory, self._reactor)
        connecting: Deferred[Any] = self._below.connect(factory)
        return connecting.addCallback(lambda tls: tls.wrappedProtocol)
