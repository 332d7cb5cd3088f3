"""TURN over UDP: opens client-side ports through the data plane and passes what no flow takes to the service.

A wildcard interface is one port for each local address. With `alternateInterface=` it opens four ports, both addresses
with both port numbers, between which a server for NAT behaviour discovery must be able to choose (RFC 5780 section 6);
they know each other as siblings.
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from relayd.address import AppConnection, TransportAddress
from relayd.interfaces import IClientPath, IDatagramReceiver, IDataPlane, IListener, IRelayService, TurnedAway
from relayd.listeners.client_ports import ClientPorts, Hosts
from relayd.listeners.endpoint import Endpoint, cannot_listen
from relayd.local_addresses import local_addresses

ARGUMENTS = ("interface", "alternateInterface", "alternatePort")


@implementer(IListener, IDatagramReceiver)
class UdpListener:
    """One UDP endpoint: a single port, one for each address of a wildcard, or the four of RFC 5780."""

    kind = "turn"
    app_connection = AppConnection.UDP.value
    behind_proxy = False

    def __init__(self, service: IRelayService, hosts: Hosts = local_addresses) -> None:
        self._service = service
        self._ports = ClientPorts(self.app_connection, self, hosts)
        self.turned_away: Counter[TurnedAway] = Counter()  # there are no connections

    @property
    def addresses(self) -> list[TransportAddress]:
        """Where it listens."""
        return self._ports.addresses

    @property
    def description(self) -> str:
        return self._ports.description

    def open(self, endpoint: Endpoint, data_plane: IDataPlane) -> None:
        """Open the ports, all or none. Raises ConfigurationError."""
        first = endpoint.address()
        second, other_port = self._alternate(endpoint, first)
        ports = self._ports
        try:
            ports.open(first, data_plane)
            if second is not None:
                # Where port 0 was asked for, both addresses share what the system gave the first one.
                chosen = ports.opened[0].address.port
                ports.open(first.with_port(other_port), data_plane)
                other_port = ports.opened[1].address.port
                ports.open(second.with_port(chosen), data_plane)
                ports.open(second.with_port(other_port), data_plane)
                for port in ports.opened:
                    port.siblings = list(ports.opened)
        except OSError as error:
            raise cannot_listen(endpoint.description, error) from error

    def datagram_received(self, client: IClientPath, data: bytes) -> None:
        """See `IDatagramReceiver`."""
        self._service.receive(client, data)

    def close(self) -> Deferred[None]:
        """Close the ports. Allocations stay until they expire: over UDP there is no connection to end."""
        self._ports.close()
        return succeed(None)

    @staticmethod
    def _alternate(endpoint: Endpoint, first: TransportAddress) -> tuple[TransportAddress | None, int]:
        """The second address and port number, or None where none is configured."""
        if "alternateInterface" not in endpoint.options:
            if "alternatePort" in endpoint.options:
                raise endpoint.error("alternatePort= does nothing alone: give alternateInterface= too")
            return None, 0
        second = endpoint.address("alternateInterface")
        if first.is_wildcard or second.is_wildcard:
            raise endpoint.error(
                "alternateInterface= needs two addresses of this machine: give interface= one, not a wildcard"
            )
        if second.ip == first.ip or second.family is not first.family:
            raise endpoint.error("alternateInterface= must be another address of the same family as interface=")
        other_port = endpoint.alternate_port("alternatePort", endpoint.port + 1 if endpoint.port else 0)
        if other_port == endpoint.port != 0:
            raise endpoint.error("alternatePort= must differ from the port")
        return second, other_port


def open_udp(
    description: str, service: IRelayService, data_plane: IDataPlane, hosts: Hosts = local_addresses
) -> UdpListener:
    """Open `udp:PORT` with `interface=`, `alternateInterface=` and `alternatePort=`. Raises ConfigurationError."""
    listener = UdpListener(service, hosts)
    listener.open(Endpoint(description, ARGUMENTS), data_plane)
    return listener
