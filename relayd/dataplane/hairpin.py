"""Peers that are relayed addresses of this same relay, where a one-to-one NAT stands before it. Sends nothing.

Two clients of one relay know each other's relayed address by the advertised IP address. Sent there, a packet would
depend on the NAT to turn it around (hairpinning, RFC 4787 section 6), which many clouds do not, and would come back
from an address that nobody has a permission for. So it is sent to where that address is bound.
"""

from __future__ import annotations

from collections.abc import Iterable

from relayd.address import TransportAddress
from relayd.config import RelayAddress


class Hairpin:
    """Translates between advertised and bound addresses, within the relayed ports (inclusive) only.

    Beyond them the public address leads to other services of this host, if at all: by way of the NAT and whatever
    firewall stands there, not around them.
    """

    def __init__(self, addresses: Iterable[RelayAddress] = (), lowest_port: int = 0, highest_port: int = 65535) -> None:
        behind_nat = [address for address in addresses if address.bound.ip != address.advertised.ip]
        self._bound = {address.advertised.ip: address.bound for address in behind_nat}
        self._advertised = {address.bound.ip: address.advertised for address in behind_nat}
        self._lowest_port = lowest_port
        self._highest_port = highest_port

    def to_bound(self, peer: TransportAddress) -> TransportAddress:
        """Where to send what a client sends to `peer`."""
        return self._translate(peer, self._bound)

    def to_advertised(self, peer: TransportAddress) -> TransportAddress:
        """What clients call the `peer` that something came from."""
        return self._translate(peer, self._advertised)

    def _translate(self, peer: TransportAddress, table: dict[bytes, TransportAddress]) -> TransportAddress:
        other = table.get(peer.ip)
        if other is None or not self._lowest_port <= peer.port <= self._highest_port:
            return peer
        return other.with_port(peer.port)
