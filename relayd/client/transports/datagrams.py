"""UDP from a client to its server: a socket that hears that server alone, and outlives what ICMP says of it."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.udp import Port
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.client.transports.server import Connection, Receiver, Server
from relayd.errors import ConfigurationError, ServerUnavailable

LARGEST_DATAGRAM = 65_535  # bytes

_PASSING = frozenset((errno.EAGAIN, errno.ENOBUFS))  # what a full socket says: the datagram is lost, as any may be


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
        self.dropped = 0
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
            self.dropped += 1  # too long for one datagram: lost on the way, only earlier
        except OSError as error:
            self.dropped += 1
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


def connect_udp(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Open a socket to the first address of the server that there is a way to. Fails with ServerUnavailable.

    Raises ConfigurationError as `resolve` does.
    """

    def open_first(addresses: list[str]) -> Connection:
        reason = "the name has no address"
        for address in addresses:
            connection = UdpConnection(receiver)
            try:
                connection.open(reactor, address, server.port)
                return connection
            except OSError as error:
                reason = error.strerror or str(error)
        raise ServerUnavailable(f"{server.host}: {reason}")

    return resolve(reactor, server.host).addCallback(open_first)


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


def resolve(reactor: Any, host: str) -> Deferred[list[str]]:
    """The addresses of a name; none where it has none. Raises ConfigurationError for what is no name of a host."""
    try:
        host.encode("idna")
    except UnicodeError:  # over which Twisted's resolver would stumble, and never say anything
        raise ConfigurationError(f"{host!r} is not the name of a host") from None
    addresses = _Addresses()
    reactor.nameResolver.resolveHostName(addresses, host, transportSemantics="UDP")
    return addresses.complete
