"""Which peers may be reached at all: the built-in list of refused ranges, the operator's allow and deny lists, and
ourselves.

An address is made canonical once, then compared as a whole integer with sorted ranges. What a policy thinks of a user
or a peer is not known here.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from typing import TypeAlias

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED_BY_DEFAULT: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        # IANA's special-purpose and multicast registries: no peer on the public Internet has one of these.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "::1/128",
        "64:ff9b:1::/48",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/23",
        "2001:db8::/32",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)

_MAPPED = bytes(10) + b"\xff\xff"
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)
_6TO4 = b"\x20\x02"
_UNSPECIFIED_OR_LOOPBACK = (bytes(16), bytes(15) + b"\x01")


def canonical(ip: bytes) -> bytes:
    """The IPv4 address inside an IPv6 one (mapped, compatible, 6to4, NAT64), or the address as it is. 4 or 16 bytes
    each.
    """
    if len(ip) == 4:
        return ip
    if ip.startswith((_MAPPED, _NAT64)):
        return ip[12:]
    if ip.startswith(_6TO4):
        return ip[2:6]
    if ip.startswith(bytes(12)) and ip not in _UNSPECIFIED_OR_LOOPBACK:
        return ip[12:]
    return ip


def parse_cidr(text: str) -> Network:
    """A range in CIDR notation, or one address. Raises ConfigurationError."""
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ConfigurationError(
            f"not an address range: {text!r}: write it like 192.0.2.0/24 or 2001:db8::/32"
        ) from None
    if str(network.network_address) != str(ipaddress.ip_interface(text.strip()).ip):
        raise ConfigurationError(f"address range {text!r} has bits set beyond its prefix: did you mean {network}?")
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.packed.startswith(_MAPPED):
        return ipaddress.ip_network((network.network_address.packed[12:], network.prefixlen - 96))
    return network


def is_in(address: TransportAddress, networks: Iterable[Network]) -> bool:
    """Whether one of the networks has that address, as it is. For short lists: `PeerRules` has the long one."""
    ip = ipaddress.ip_address(address.ip)
    return any(ip in network for network in networks)


class _Ranges:
    """Networks of both families, for one membership test in logarithmic time."""

    __slots__ = ("_first", "_last")

    def __init__(self, networks: Iterable[Network]) -> None:
        given = list(networks)
        self._first: dict[int, list[int]] = {}
        self._last: dict[int, list[int]] = {}
        four = ipaddress.collapse_addresses(n for n in given if isinstance(n, ipaddress.IPv4Network))
        six = ipaddress.collapse_addresses(n for n in given if isinstance(n, ipaddress.IPv6Network))
        for size, ranges in (
            (4, [(int(n[0]), int(n[-1])) for n in four]),
            (16, [(int(n[0]), int(n[-1])) for n in six]),
        ):
            self._first[size] = [first for first, _ in ranges]
            self._last[size] = [last for _, last in ranges]

    def __contains__(self, ip: bytes) -> bool:
        size, value = len(ip), int.from_bytes(ip, "big")
        at = bisect_right(self._first[size], value) - 1
        return at >= 0 and value <= self._last[size][at]


class PeerRules:
    """The rules that hold for every user. `own` are the endpoints that the relay itself listens on, by address and
    port.
    """

    def __init__(
        self,
        allow: Iterable[Network] = (),
        deny: Iterable[Network] = (),
        own: Iterable[TransportAddress] = (),
    ) -> None:
        self._allow = _Ranges(allow)
        self._deny = _Ranges((*REFUSED_BY_DEFAULT, *deny))
        self._own = frozenset((canonical(endpoint.ip), endpoint.port) for endpoint in own)

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        """Whether a peer may be reached, by whatever user. Our own endpoints never; otherwise an allow wins over
        every deny.

        A permission has no port (RFC 8656 section 2.3): port 0 asks about the address alone, and each packet and
        channel asks again with the port.
        """
        ip = peer.ip
        plain = canonical(ip)
        if (plain, peer.port) in self._own:
            return False
        if plain in self._allow or (plain is not ip and ip in self._allow):
            return True
        return not (plain in self._deny or (plain is not ip and ip in self._deny))
