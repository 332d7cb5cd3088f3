"""Opens relayed UDP addresses from the configured addresses and port range. The data plane moves the packets."""

from __future__ import annotations

import secrets

from twisted.internet.defer import Deferred, fail, succeed
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress, RelaySettings
from relayd.core import Entropy
from relayd.errors import RelayUnavailable
from relayd.interfaces import IDataPlane, IPeerTransport, IPeerTransportFactory, IRelay, IRelayReceiver
from relayd.peers.ports import RelayPorts, cannot_relay, check_settings

UDP = 17  # IP protocol number

Opened = tuple[IRelay, TransportAddress]


@implementer(IPeerTransport)
class UdpPeers:
    """Relayed UDP transport addresses, through one data plane. Its Deferreds have fired when they are returned."""

    transport = UDP

    def __init__(self, data_plane: IDataPlane, settings: RelaySettings, entropy: Entropy = secrets.token_bytes) -> None:
        self._data_plane = data_plane
        self._ports = RelayPorts(settings, entropy)
        self.families = self._ports.families
        self.default_family = self._ports.default_family

    def open(
        self, family: Family, receiver: IRelayReceiver, even_port: bool = False, reserve_next: bool = False
    ) -> Deferred[tuple[IRelay, TransportAddress, Opened | None]]:
        """See `IPeerTransport.open`. `reserve_next` asks for an even port too, as EVEN-PORT's R bit does."""
        try:
            for address, port in self._ports.candidates(family, even_port or reserve_next, reserve_next):
                opened = self._open_at(address, port, receiver)
                if opened is None:
                    continue
                if not reserve_next:
                    return succeed((*opened, None))
                reserved = self._open_after(opened, address, port + 1, receiver)
                if reserved is not None:
                    return succeed((*opened, reserved))
        except RelayUnavailable as error:
            return fail(error)
        return fail(RelayUnavailable(f"no relayed {family.name} port is free"))

    def close(self) -> None:
        """Nothing to do: whatever is still open is closed by the data plane, which is closed next."""

    def _open_at(self, address: RelayAddress, port: int, receiver: IRelayReceiver) -> Opened | None:
        """None: that port is taken. Raises RelayUnavailable where another port would fare no better."""
        try:
            relay = self._data_plane.open_relay(address.bound.with_port(port), receiver)
        except OSError as error:
            unavailable = cannot_relay(address, error)
            if unavailable is None:
                return None
            raise unavailable from error
        return relay, address.advertised.with_port(relay.address.port)

    def _open_after(self, opened: Opened, address: RelayAddress, port: int, receiver: IRelayReceiver) -> Opened | None:
        """The reserved port; without one the even port is given back."""
        reserved = None
        try:
            reserved = self._open_at(address, port, receiver)
        finally:
            if reserved is None:
                opened[0].close()
        return reserved


@implementer(IRelayReceiver)
class _Nobody:
    def peer_datagram(self, relay: IRelay, peer: TransportAddress, data: bytes) -> None:
        """Too early for any peer."""

    def peer_error(self, relay: IRelay, peer: TransportAddress, icmp_type: int, icmp_code: int, data: int) -> None:
        """Nothing was sent."""

    def relay_failed(self, relay: IRelay) -> None:
        """It is closed at once anyway."""


@implementer(IPlugin, IPeerTransportFactory)
class UdpPeersFactory:
    """Makes `UdpPeers`, once every configured address has proved to be one of this machine's."""

    kind = "udp"
    transport = UDP
    help = "Relays UDP datagrams. Relayed addresses come from --relay-address, their ports from --relay-ports."

    def make(self, reactor: object, data_plane: IDataPlane, settings: RelaySettings) -> UdpPeers:
        """See `IPeerTransportFactory.make`."""
        check_settings(settings, lambda address: data_plane.open_relay(address, _Nobody()).close())
        return UdpPeers(data_plane, settings)
