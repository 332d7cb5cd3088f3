"""The addresses of this host: of its interfaces, and the one that packets to the outside leave from. Sends nothing."""

from __future__ import annotations

import ipaddress
import socket

import ifaddr

from relayd.address import Family, TransportAddress

# Destinations that stand for "outside". Connecting a UDP socket only looks up the route: no packet is sent.
_OUTSIDE = {Family.IPV4: (socket.AF_INET, "192.0.2.1"), Family.IPV6: (socket.AF_INET6, "2001:db8::1")}
_DISCARD = 9  # any port will do
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")  # RFC 4291 section 2.4


def local_addresses(family: Family) -> list[TransportAddress]:
    """Every address (port 0) of every interface in that family, each once; those that reach furthest come first.

    Link-local IPv6 addresses carry the zone of their interface, without which they cannot be bound.
    """
    found: set[TransportAddress] = set()
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            host, _, zone = (each.ip, 0, 0) if isinstance(each.ip, str) else each.ip
            address = TransportAddress.parse(host, 0)
            if address.family is family:
                found.add(TransportAddress(address.ip, 0, zone if is_link_local(address) else 0))
    return sorted(found, key=lambda address: (_nearness(address), address))


def is_link_local(address: TransportAddress) -> bool:
    """Whether it is an IPv6 address of fe80::/10, which means something on one link only."""
    return ipaddress.ip_address(address.ip) in _LINK_LOCAL


def _nearness(address: TransportAddress) -> int:
    if is_link_local(address):
        return 2
    return 1 if address.is_loopback else 0


def default_source(family: Family) -> TransportAddress | None:
    """The address (port 0) from which this host reaches the outside, or None where it has no route in that family."""
    kind, outside = _OUTSIDE[family]
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, _DISCARD))
            host = probe.getsockname()[0]
    except OSError:
        return None
    return TransportAddress.parse(host, 0)


def has_ipv6_loopback() -> bool:
    """Whether ::1 can be bound: containers often have no IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there over TCP, as far as can be known beforehand."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the listener does
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def own_endpoints(listening: list[TransportAddress]) -> set[TransportAddress]:
    """Where our listeners can really be reached: a wildcard stands for every address of this host of its family."""
    endpoints = set()
    for address in listening:
        hosts = local_addresses(address.family) if address.is_wildcard else [address]
        endpoints |= {host.with_port(address.port) for host in hosts}
    return endpoints
