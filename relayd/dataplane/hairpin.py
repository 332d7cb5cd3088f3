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
    """Translates between advertised and bound addresses, for relayed addresses that are open and no others.

    What else this host serves, on whatever port, is reached by its public address through the NAT and the firewall that
    stand there, not around them and around the peer rules.
    """

    def __init__(self, addresses: Iterable[RelayAddress] = ()) -> None:
        behind_nat = [address for address in addresses if address.bound.ip != address.advertised.ip]
        self._bound = {address.advertised.ip: address.bound for address in behind_nat}
        self._advertised = {address.bound.ip: address.advertised for address in behind_nat}
        self._open: set[TransportAddress] = set()

    def opened(self, bound: TransportAddress) -> None:
        """A relayed address was opened, there."""
        if bound.ip in self._advertised:
            self._open.add(bound)

    def closed(self, bound: TransportAddress) -> None:
        """It is given back: the port may be another program's next."""
        self._open.discard(bound)

    def to_bound(self, peer: TransportAddress) -> TransportAddress:
        """Where to send what a client sends to `peer`."""
        address = self._bound.get(peer.ip)
        if address is None:
            return peer
        bound = address.with_port(peer.port)
        return bound if bound in self._open else peer

    def to_advertised(self, peer: TransportAddress) -> TransportAddress:
        """What clients call the `peer` that something came from."""
        return self._advertised[peer.ip].with_port(peer.port) if peer in self._open else peer
