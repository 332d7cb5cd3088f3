"""The addresses of this host: of its interfaces, and the one that packets to the outside leave from. Sends nothing."""

from __future__ import annotations

import ipaddress
import socket

import ifaddr

from relayd.address import Family, TransportAddress

# Destinations that stand for "outside". Connecting a UDP socket only looks up the route: no packet is sent.
_OUTSIDE = {Family.IPV4: (socket.AF_INET, "192.0.2.1"), Family.IPV6: (socket.AF_INET6, "2001:db8::1")}
_DISCARD = 9  # any port will do


def interface_addresses() -> set[bytes]:
    """Every address of every interface of this host, packed."""
    addresses = set()
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            host = each.ip if isinstance(each.ip, str) else each.ip[0]
            addresses.add(ipaddress.ip_address(host).packed)
    return addresses


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


def own_endpoints(listening: list[TransportAddress]) -> set[TransportAddress]:
    """Where our listeners can really be reached: a wildcard stands for every address of this host of its family."""
    endpoints = set()
    for address in listening:
        if any(address.ip):
            endpoints.add(address)
            continue
        hosts = {ip for ip in interface_addresses() if len(ip) == len(address.ip)}
        endpoints |= {TransportAddress(ip, address.port) for ip in hosts}
    return endpoints
