"""Promises of relayd.dataplane.hairpin: what is translated, and what is left alone."""

from __future__ import annotations

from relayd.address import TransportAddress
from relayd.config import RelayAddress
from relayd.dataplane.hairpin import Hairpin

BOUND, PUBLIC = TransportAddress.parse("10.0.0.5", 0), TransportAddress.parse("198.51.7.9", 0)
DIRECT = TransportAddress.parse("2600::5", 0)
ADDRESSES = [RelayAddress(BOUND, PUBLIC), RelayAddress(DIRECT, DIRECT)]


def test_there_and_back() -> None:
    """An open relay at the public address is the one at the bound address, and the other way around."""
    hairpin = Hairpin(ADDRESSES)
    for port in (1024, 50_000, 65_535):
        hairpin.opened(BOUND.with_port(port))
        assert hairpin.to_bound(PUBLIC.with_port(port)) == BOUND.with_port(port)
        assert hairpin.to_advertised(BOUND.with_port(port)) == PUBLIC.with_port(port)


def test_other_ports_are_not_ours() -> None:
    """No peer rule, and no firewall before the public address, is passed by to what else this host serves."""
    hairpin = Hairpin(ADDRESSES)
    hairpin.opened(BOUND.with_port(50_000))
    hairpin.opened(BOUND.with_port(50_001))
    hairpin.closed(BOUND.with_port(50_001))
    for port in (0, 53, 3478, 49_999, 50_001, 51_820):
        assert hairpin.to_bound(PUBLIC.with_port(port)) == PUBLIC.with_port(port)
        assert hairpin.to_advertised(BOUND.with_port(port)) == BOUND.with_port(port)


def test_other_addresses_stay() -> None:
    """Everybody else, and an address without NAT, is who it is."""
    hairpin = Hairpin(ADDRESSES)
    hairpin.opened(BOUND.with_port(50_000))
    hairpin.opened(DIRECT.with_port(50_000))
    for peer in (TransportAddress.parse("198.51.7.10", 50_000), DIRECT.with_port(50_000)):
        assert hairpin.to_bound(peer) == peer
        assert hairpin.to_advertised(peer) == peer
    assert Hairpin().to_bound(PUBLIC.with_port(50_000)) == PUBLIC.with_port(50_000)
