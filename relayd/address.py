"""Transport addresses and 5-tuples as values. No sockets, no name lookups.

Addresses are packed bytes (4 or 16), so that they compare, hash and go into STUN attributes without being formatted.
"""

from __future__ import annotations

import ipaddress
import re
from enum import IntEnum, StrEnum
from typing import NamedTuple

from relayd.errors import DecodeError

_IPV4_MAPPED = bytes(10) + b"\xff\xff"
_IPV6_LOOPBACK = bytes(15) + b"\x01"
_ZONE_NUMBER = re.compile(r"[0-9]{1,9}")  # an interface index: always fits 32 bits


class Family(IntEnum):
    """Address families by STUN's numbers (RFC 8489 section 14.1)."""

    IPV4 = 1
    IPV6 = 2


class AppConnection(StrEnum):
    """How the client's messages reach us: the flag of draft-chenxin section 4, extended to every way in."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"
    DTLS = "dtls"
    WS = "ws"
    WSS = "wss"
    DC = "dc"

    @property
    def is_datagram(self) -> bool:
        """Whether a message may be lost or duplicated on the way, so that clients retransmit."""
        return self in (AppConnection.UDP, AppConnection.DTLS, AppConnection.DC)

    @property
    def is_stream(self) -> bool:
        """Whether messages share a byte stream and ChannelData is padded to four bytes (RFC 8656 section 12.5)."""
        return self in (AppConnection.TCP, AppConnection.TLS)


def source_of(ip: bytes) -> bytes:
    """What counts as one source where somebody is limited: an IPv4 address, or the /64 that an IPv6 host can choose its
    addresses from.
    """
    return ip if len(ip) == 4 else ip[:8]


class TransportAddress(NamedTuple):
    """An IP address and a port. `ip` is 4 or 16 bytes in network order, `scope` the zone of link-local IPv6."""

    ip: bytes
    port: int
    scope: int = 0

    @classmethod
    def parse(cls, host: str, port: int, scope: int = 0) -> TransportAddress:
        """From an address in text; IPv4-mapped IPv6 becomes IPv4. Raises DecodeError for anything but an address.

        A zone in `host` counts if it is a number; a name ("%eth0") cannot be resolved here, and `scope` holds instead.
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise DecodeError(f"not an IP address: {host!r}") from None
        if not 0 <= port <= 0xFFFF:
            raise DecodeError(f"not a port: {port}")
        packed = address.packed
        if packed.startswith(_IPV4_MAPPED):
            return cls(packed[12:], port)
        zone = getattr(address, "scope_id", None)
        return cls(packed, port, int(zone) if zone is not None and _ZONE_NUMBER.fullmatch(zone) else scope)

    @property
    def family(self) -> Family:
        return Family.IPV4 if len(self.ip) == 4 else Family.IPV6

    @property
    def host(self) -> str:
        """The address in text, without zone or brackets."""
        if len(self.ip) == 4:
            first, second, third, fourth = self.ip
            return f"{first}.{second}.{third}.{fourth}"  # each log line has three of these
        return str(ipaddress.IPv6Address(self.ip))

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of this host: 0.0.0.0 and ::."""
        return not any(self.ip)

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can be meant: 127.0.0.0/8 and ::1."""
        return self.ip[0] == 127 if len(self.ip) == 4 else self.ip == _IPV6_LOOPBACK

    def with_port(self, port: int) -> TransportAddress:
        return TransportAddress(self.ip, port, self.scope)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if len(self.ip) == 4 else f"[{self.host}]:{self.port}"


class FiveTuple(NamedTuple):
    """The connection between a client and us (RFC 8656 section 2.2). `transport` is the IP protocol: 17 or 6."""

    client: TransportAddress
    server: TransportAddress
    transport: int


class Path(NamedTuple):
    """How one client is reached, and the key of its allocation: 5-tuple, app_connection, virtual channel (0: none)."""

    five_tuple: FiveTuple
    app_connection: AppConnection
    channel_id: int = 0

    @property
    def client(self) -> TransportAddress:
        return self.five_tuple.client

    def __str__(self) -> str:
        channel = f"/{self.channel_id}" if self.channel_id else ""
        return f"{self.five_tuple.client}->{self.five_tuple.server}/{self.app_connection}{channel}"
