"""Turns our addresses into those of Twisted, and those of Twisted into ours."""

from __future__ import annotations

from typing import Literal

from twisted.internet.address import IPv4Address, IPv6Address

from relayd.address import Family, TransportAddress

TwistedAddress = IPv4Address | IPv6Address


def to_twisted(address: TransportAddress, transport: Literal["TCP", "UDP"] = "TCP") -> TwistedAddress:
    """What `getHost` and `getPeer` give. The zone of link-local IPv6 is lost."""
    kind = IPv4Address if address.family is Family.IPV4 else IPv6Address
    return kind(transport, address.host, address.port)


def from_twisted(address: object) -> TransportAddress | None:
    """None for what is no IP address, such as that of a Unix socket."""
    if isinstance(address, IPv4Address | IPv6Address):
        return TransportAddress.parse(address.host, address.port)
    return None
