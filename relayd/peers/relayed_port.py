"""The sockets of a relayed TCP address, on transports of Twisted's: one port to listen on and to connect from.

That takes SO_REUSEPORT on the listening socket and on those that connect. The listening one gets it after it is bound:
so a port that another program or another relay listens on is still refused to us.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.tcp import Client, Connector, Port, _reservedFD

from relayd.address import TransportAddress

BACKLOG = 16  # peers that knock at one relayed address at the same moment


def listening_socket(address: TransportAddress) -> socket.socket:
    """Bind and listen there (port 0: any). Raises OSError."""
    family = socket.AF_INET if len(address.ip) == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((address.host, address.port))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


class RelayedPort(Port):
    """Accepts on a socket that listens. Twisted's own writes a line into the log when it starts and one when it stops,
    which no `noisy` prevents: here that would be two for each allocation.
    """

    def __init__(self, listening: socket.socket, factory: Any, reactor: Any) -> None:
        super().__init__(None, factory, None, listening.getsockname()[0], reactor)  # type: ignore[arg-type]
        self.socket = listening

    def startListening(self) -> None:
        """As Twisted's, from where the socket listens."""
        _reservedFD.reserve()
        self._realPortNumber = self.socket.getsockname()[1]
        self.factory.doStart()  # type: ignore[union-attr]
        self.connected = True
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()  # type: ignore[no-untyped-call]

    def _logConnectionLostMsg(self) -> None:  # noqa: N802
        """See the class."""


class _FromRelayed(Client):
    """A connection that leaves from a port on which we listen."""

    def createInternetSocket(self) -> socket.socket:  # noqa: N802
        opened: socket.socket = super().createInternetSocket()  # type: ignore[no-untyped-call]
        if self.addressFamily == socket.AF_INET6:  # no IPv4 inside IPv6, which would leave from another address
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return opened


class RelayedConnector(Connector):
    """Makes connections that leave from a port on which we listen."""

    def _makeTransport(self) -> Client:  # noqa: N802
        return _FromRelayed(  # type: ignore[no-untyped-call]
            self.host, self.port, self.bindAddress, self, self.reactor
        )
