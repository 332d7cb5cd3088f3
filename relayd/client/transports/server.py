"""What a server is to a client, and what a connection to it has to offer. The seam between sessions and ways in."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from relayd.address import AppConnection
from relayd.client.transports.proxy import HttpProxy
from relayd.client.transports.uri import DEFAULT_RESOURCE
from relayd.errors import ServerUnavailable


class Server(NamedTuple):
    """A server and the way to it.

    `tls_name` is whom its certificate has to be for, and the host that a WebSocket handshake names. `resource` is where
    its WebSocket is. `proxy` is what carries the connection, if it is no datagrams.
    """

    host: str
    port: int
    app_connection: AppConnection
    tls_name: str
    resource: str = DEFAULT_RESOURCE
    proxy: HttpProxy | None = None


class Receiver(Protocol):
    """Whom a connection reports to."""

    def message_received(self, data: bytes) -> None:
        """A whole message."""

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        """Something says that the server cannot be reached, and may be wrong or forged (ICMP)."""

    def connection_lost(self, error: ServerUnavailable) -> None:
        """It is over."""


class Connection(Protocol):
    """One open way to a server. `dropped` counts what `write_data` did."""

    dropped: int

    def write(self, data: bytes) -> None:
        """Send a request."""

    def write_data(self, data: bytes) -> None:
        """Send a datagram on its way to a peer; dropped where the way is congested."""

    def close(self) -> Deferred[None]:
        """Close it; fires when it is closed."""
