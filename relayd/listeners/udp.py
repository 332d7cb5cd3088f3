"""TURN over UDP: opens client-side ports through the data plane and passes what no flow takes to the service.

With `alternateInterface=` it opens four ports, both addresses with both port numbers, between which a server for NAT
behaviour discovery must be able to choose (RFC 5780 section 6); they know each other as siblings.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from relayd.address import AppConnection, TransportAddress
from relayd.interfaces import IClientPath, IDatagramPort, IDatagramReceiver, IDataPlane, IListener, IRelayService
from relayd.listeners.endpoint import Endpoint, cannot_listen

ARGUMENTS = ("interface", "alternateInterface", "alternatePort")


@implementer(IListener, IDatagramReceiver)
class UdpListener:
    """One UDP endpoint: a single port, or the four of RFC 5780. `open` makes it."""

    kind = "turn"
    app_connection = AppConnection.UDP.value

    def __init__(self, service: IRelayService) -> None:
        self._service = service
        self._ports: list[IDatagramPort] = []

    @property
    def addresses(self) -> list[TransportAddress]:
        """Where it listens; a wildcard address stands for every address of its family."""
        return [port.address for port in self._ports]

    @property
    def description(self) -> str:
        return "udp " + " ".join(str(address) for address in self.addresses)

    def open(self, endpoint: Endpoint, data_plane: IDataPlane) -> None:
        """Open the ports, all or none. Raises ConfigurationError."""
        first = endpoint.address()
        second, other_port = self._alternate(endpoint, first)
        try:
            self._open_port(first, data_plane)
            if second is not None:
                # Where port 0 was asked for, both addresses share what the system gave the first one.
                chosen = self._ports[0].address.port
                self._open_port(first.with_port(other_port), data_plane)
                other_port = self._ports[1].address.port
                self._open_port(second.with_port(chosen), data_plane)
                self._open_port(second.with_port(other_port), data_plane)
                for port in self._ports:
                    port.siblings = list(self._ports)
        except OSError as error:
            self._close_ports()
            raise cannot_listen(endpoint.description, error) from error

    def datagram_received(self, client: IClientPath, data: bytes) -> None:
        """See `IDatagramReceiver`."""
        self._service.receive(client, data)

    def close(self) -> Deferred[None]:
        """Close the ports. Allocations stay until they expire: over UDP there is no connection to end."""
        self._close_ports()
        return succeed(None)

    def _open_port(self, address: TransportAddress, data_plane: IDataPlane) -> None:
        try:
            self._ports.append(data_plane.open_port(address, self.app_connection, self))
        except OSError as error:
            # Which of the four it was is worth a word.
            raise OSError(error.errno, f"{address}: {error.strerror}") from error

    def _close_ports(self) -> None:
        while self._ports:
            self._ports.pop().close()

    @staticmethod
    def _alternate(endpoint: Endpoint, first: TransportAddress) -> tuple[TransportAddress | None, int]:
        """The second address and port number, or None where none is configured."""
        if "alternateInterface" not in endpoint.options:
            if "alternatePort" in endpoint.options:
                raise endpoint.error("alternatePort= does nothing alone: give alternateInterface= too")
            return None, 0
        second = endpoint.address("alternateInterface")
        if not any(first.ip) or not any(second.ip):
            raise endpoint.error(
                "alternateInterface= needs two addresses of this machine: give interface= one, not a wildcard"
            )
        if second.ip == first.ip or second.family is not first.family:
            raise endpoint.error("alternateInterface= must be another address of the same family as interface=")
        other_port = endpoint.alternate_port("alternatePort", endpoint.port + 1 if endpoint.port else 0)
        if other_port == endpoint.port != 0:
            raise endpoint.error("alternatePort= must differ from the port")
        return second, other_port


def open_udp(description: str, service: IRelayService, data_plane: IDataPlane) -> UdpListener:
    """Open `udp:PORT` with `interface=`, `alternateInterface=` and `alternatePort=`. Raises ConfigurationError."""
    listener = UdpListener(service)
    listener.open(Endpoint(description, ARGUMENTS), data_plane)
    return listener
