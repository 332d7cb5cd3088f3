"""Promises of relayd.dataplane.hairpin: what is translated, and what is left alone."""

from __future__ import annotations

from relayd.address import TransportAddress
from relayd.config import RelayAddress
from relayd.dataplane.hairpin import Hairpin

BOUND, PUBLIC = TransportAddress.parse("10.0.0.5", 0), TransportAddress.parse("198.51.7.9", 0)
DIRECT = TransportAddress.parse("2600::5", 0)
HAIRPIN = Hairpin([RelayAddress(BOUND, PUBLIC), RelayAddress(DIRECT, DIRECT)], 50_000, 50_100)


def test_there_and_back() -> None:
    """A relayed port at the public address is one at the bound address, and the other way around."""
    for port in (50_000, 50_050, 50_100):
        assert HAIRPIN.to_bound(PUBLIC.with_port(port)) == BOUND.with_port(port)
        assert HAIRPIN.to_advertised(BOUND.with_port(port)) == PUBLIC.with_port(port)


def test_other_ports_are_not_ours() -> None:
    """No firewall before the public address is passed by to what else this host serves."""
    for port in (0, 53, 3478, 49_999, 50_101, 65_535):
        assert HAIRPIN.to_bound(PUBLIC.with_port(port)) == PUBLIC.with_port(port)
        assert HAIRPIN.to_advertised(BOUND.with_port(port)) == BOUND.with_port(port)


def test_other_addresses_stay() -> None:
    """Everybody else, and an address without NAT, is who it is."""
    for peer in (TransportAddress.parse("198.51.7.10", 50_000), DIRECT.with_port(50_000)):
        assert HAIRPIN.to_bound(peer) == peer
        assert HAIRPIN.to_advertised(peer) == peer
    assert Hairpin().to_bound(PUBLIC.with_port(50_000)) == PUBLIC.with_port(50_000)
