"""Opens relayed UDP addresses from the configured addresses and port range. Moves no packet: that is the data plane's.

Which ports are free is known by the operating system and nobody else, so nothing is booked here that could leak: a
port is tried by opening it, and is free again when its relay is closed. Candidates come in random order (RFC 8656
section 7.2 asks for RFC 6056) by a random stride through the range, which meets each port once and builds no runs of
used ports.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from errno import EACCES, EADDRINUSE, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress, RelaySettings
from relayd.core import Entropy
from relayd.errors import ConfigurationError, RelayUnavailable
from relayd.interfaces import IDataPlane, IPeerTransport, IPeerTransportFactory, IRelay, IRelayReceiver

UDP = 17  # IP protocol number

MAX_TRIES = 256  # ports tried for one request: at a few microseconds each, finds one in a range that is 98 % full

_TAKEN = frozenset({EADDRINUSE, EACCES})  # this port cannot be had, another one might
_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})

Opened = tuple[IRelay, TransportAddress]


@implementer(IPeerTransport)
class UdpPeers:
    """Relayed UDP transport addresses, through one data plane. Its Deferreds have fired when they are returned."""

    transport = UDP

    def __init__(self, data_plane: IDataPlane, settings: RelaySettings, entropy: Entropy = secrets.token_bytes) -> None:
        self._data_plane = data_plane
        self._settings = settings
        self._entropy = entropy
        self.families = frozenset(address.family for address in settings.addresses)
        self.default_family = Family.IPV4 if Family.IPV4 in self.families else Family.IPV6
        # The last relay on each address, closed or not: an address is only ever opened again after that one was closed.
        self._last: dict[TransportAddress, IRelay] = {}

    def open(
        self, family: Family, receiver: IRelayReceiver, even_port: bool = False, reserve_next: bool = False
    ) -> Deferred[tuple[IRelay, TransportAddress, Opened | None]]:
        """See `IPeerTransport.open`. `reserve_next` asks for an even port too, as EVEN-PORT's R bit does."""
        try:
            for address, port in self._candidates(family, even_port or reserve_next, reserve_next):
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
        """Close every relay that is still open."""
        relays = list(self._last.values())
        self._last.clear()
        for relay in relays:
            relay.close()

    def _candidates(self, family: Family, even: bool, pair: bool) -> Iterator[tuple[RelayAddress, int]]:
        lowest, highest = self._settings.lowest_port, self._settings.highest_port
        ports = range(lowest + (lowest & 1), highest + 1, 2) if even else range(lowest, highest + 1)
        if pair and ports and ports[-1] == highest:
            ports = ports[:-1]
        addresses = [address for address in self._settings.addresses if address.family is family]
        count = len(addresses) * len(ports)
        if not count:
            return
        start = self._below(count)
        stride = 1 + self._below(count)
        while math.gcd(stride, count) != 1:
            stride += 1
        for turn in range(min(count, MAX_TRIES)):
            which, at = divmod((start + turn * stride) % count, len(ports))
            yield addresses[which], ports[at]

    def _below(self, count: int) -> int:
        return int.from_bytes(self._entropy(8), "big") % count

    def _open_at(self, address: RelayAddress, port: int, receiver: IRelayReceiver) -> Opened | None:
        """None: that port is taken. Raises RelayUnavailable where another port would fare no better."""
        try:
            relay = self._data_plane.open_relay(address.bound.with_port(port), receiver)
        except OSError as error:
            if error.errno in _TAKEN:
                return None
            reason = f"cannot relay from {address.bound.host}: {error.strerror or error}"
            raise RelayUnavailable(reason, exhausted=error.errno in _EXHAUSTED) from error
        self._last[relay.address] = relay
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

    def make(self, reactor: Any, data_plane: IDataPlane, settings: RelaySettings) -> UdpPeers:
        """See `IPeerTransportFactory.make`."""
        if not settings.addresses:
            raise ConfigurationError("no relay address: give at least one with --relay-address")
        if not 1 <= settings.lowest_port <= settings.highest_port <= 65535:
            ports = f"{settings.lowest_port}-{settings.highest_port}"
            raise ConfigurationError(f"relay ports {ports}: give LOW-HIGH within 1-65535 with --relay-ports")
        for address in settings.addresses:
            try:
                data_plane.open_relay(address.bound.with_port(0), _Nobody()).close()
            except OSError as error:
                raise ConfigurationError(
                    f"cannot relay from {address.bound.host}: {error.strerror or error}; "
                    "give --relay-address an address of this machine"
                ) from error
        return UdpPeers(data_plane, settings)
