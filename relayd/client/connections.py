"""Ways from a client to its server: UDP, TCP, TLS. They carry whole messages and know nothing of what these say.

Another way in is another row of `_CONNECTORS`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from OpenSSL import SSL
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone, MessageLengthError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostResolution,
    IPushProducer,
    IResolutionReceiver,
)
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.udp import Port
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.dtls import ALPN
from relayd.errors import ConfigurationError, DecodeError, ServerUnavailable
from relayd.stun.framing import StreamSplitter

CONNECT_TIMEOUT = 10.0  # seconds for a TCP handshake
CLOSE_GRACE = 3.0  # seconds that a server has to close a stream, before it is cut
LARGEST_DATAGRAM = 65_535  # bytes

_PASSING = frozenset((errno.EAGAIN, errno.ENOBUFS))  # what a full socket says: the datagram is lost, as any may be


class Server(NamedTuple):
    """A server and the way to it. `tls_name` is whom its certificate has to be for."""

    host: str
    port: int
    app_connection: AppConnection
    tls_name: str


class Receiver(Protocol):
    """Whom a connection reports to."""

    def message_received(self, data: bytes) -> None:
        """A whole message."""

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        """Something says that the server cannot be reached, and may be wrong or forged (ICMP)."""

    def connection_lost(self, error: ServerUnavailable) -> None:
        """It is over."""


class Connection(Protocol):
    """One open way to a server."""

    def write(self, data: bytes) -> None:
        """Send a request."""

    def write_data(self, data: bytes) -> None:
        """Send a datagram on its way to a peer; dropped where the way is congested."""

    def close(self) -> Deferred[None]:
        """Close it; fires when it is closed."""


def connect(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Open a way to `server`. `trust_root` is Twisted's, None for the platform's.

    Fails with ServerUnavailable, or ConfigurationError for a way that is not there.
    """
    connector = _CONNECTORS.get(server.app_connection)
    if connector is None:
        return fail(ConfigurationError(f"this client does not speak TURN over {server.app_connection.value}"))
    return connector(reactor, server, trust_root, receiver)


# --- UDP ------------------------------------------------------------------------------------------------------------


class _ConnectedPort(Port):
    """A connected UDP port that outlives ICMP errors.

    Twisted's epoll reactor takes the error that such a socket reports for its end.
    """

    _is_stopping = False

    def stopListening(self) -> Any:
        self._is_stopping = True
        return super().stopListening()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._is_stopping:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]
            return
        # Asking for the error clears it.
        self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.startReading()  # type: ignore[no-untyped-call]
        self.protocol.connectionRefused()


class UdpConnection(DatagramProtocol):
    """A UDP socket that hears its server alone."""

    noisy = False

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._port: Any = None

    def open(self, reactor: Any, address: str, port: int) -> None:
        """Raises OSError where there is no way to `address`."""
        interface = "::" if ":" in address else ""
        self._port = _ConnectedPort(0, self, interface, LARGEST_DATAGRAM, reactor)  # type: ignore[no-untyped-call]
        self._port.startListening()
        try:
            self._port.connect(address, port)
        except OSError:
            self._port.stopListening()
            raise

    def write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except MessageLengthError:
            return  # too long for one datagram: lost on the way, only earlier
        except OSError as error:
            if error.errno not in _PASSING:
                self._receiver.connection_doubtful(ServerUnavailable(error.strerror or "the network is unreachable"))

    write_data = write

    def close(self) -> Deferred[None]:
        stopped: Any = self._port.stopListening()
        return succeed(None) if stopped is None else stopped

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._receiver.message_received(datagram)

    def connectionRefused(self) -> None:
        self._receiver.connection_doubtful(ServerUnavailable("nothing listens on that port"))


def _connect_udp(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    def open_first(addresses: list[str]) -> Connection:
        connection = UdpConnection(receiver)
        reason = "the name has no address"
        for address in addresses:
            try:
                connection.open(reactor, address, server.port)
                return connection
            except OSError as error:
                reason = error.strerror or str(error)
        raise ServerUnavailable(f"{server.host}: {reason}")

    return _resolve(reactor, server.host).addCallback(open_first)


@implementer(IResolutionReceiver)
class _Addresses:
    """Gathers the addresses of a name."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self.complete: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:  # noqa: N802, N803 (Twisted's)
        return

    def addressResolved(self, address: IAddress) -> None:  # noqa: N802 (Twisted's)
        host = getattr(address, "host", None)
        if host is not None and host not in self._found:
            self._found.append(host)

    def resolutionComplete(self) -> None:  # noqa: N802 (Twisted's)
        if not self.complete.called:
            self.complete.callback(self._found)


def _resolve(reactor: Any, host: str) -> Deferred[list[str]]:
    addresses = _Addresses()
    reactor.nameResolver.resolveHostName(addresses, host, transportSemantics="UDP")
    return addresses.complete


# --- streams --------------------------------------------------------------------------------------------------------


@implementer(IPushProducer)
class StreamConnection(StreamProtocol):
    """A TCP or TLS connection. Its transport tells it, as a producer, when the way is congested."""

    def __init__(self, clock: Any, receiver: Receiver) -> None:
        self._clock = clock
        self._receiver = receiver
        self._splitter = StreamSplitter()
        self._is_congested = False
        self._fault: str | None = None
        self._closed: Deferred[None] | None = None
        self._is_lost = False
        self._cut: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def write_data(self, data: bytes) -> None:
        if not self._is_congested:
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


def _connect_stream(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    endpoint: Any = HostnameEndpoint(reactor, server.host, server.port, timeout=CONNECT_TIMEOUT)
    if server.app_connection is AppConnection.TLS:
        try:
            # RFC 7443: the first one is stun.turn
            options = optionsForClientTLS(server.tls_name, trustRoot=trust_root, acceptableProtocols=[ALPN[0]])
        except (ValueError, UnicodeError):
            return fail(ConfigurationError(f"{server.tls_name}: no certificate can be for such a name"))
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
    text = " ".join(str(error).split()) if error is not None else ""
    return text.rstrip(".") or type(error).__name__


_CONNECTORS: dict[AppConnection, Callable[[Any, Server, Any, Receiver], Deferred[Connection]]] = {
    AppConnection.UDP: _connect_udp,
    AppConnection.TCP: _connect_stream,
    AppConnection.TLS: _connect_stream,
}
