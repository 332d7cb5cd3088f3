"""UDP sockets as both data planes want them: how they are opened, which options they get, how ICMP errors are read.

Everything here is plain `socket`; options that only Linux has are left out elsewhere, and `HAS_ICMP_ERRORS` and
`HAS_DONT_FRAGMENT` say so.
"""

from __future__ import annotations

import socket
import struct
import sys
from functools import lru_cache
from typing import Any, NamedTuple

from relayd.address import TransportAddress

_LINUX = sys.platform == "linux"

HAS_ICMP_ERRORS = _LINUX
"""Whether ICMP errors about what we sent can be had. Elsewhere an unconnected socket is not told of them."""

HAS_DONT_FRAGMENT = _LINUX
"""Whether single datagrams can be sent with the DF bit. Elsewhere `send(..., dont_fragment=True)` gives False."""

CLIENT_BUFFER = 4 * 1024 * 1024
"""Bytes asked of the system for each direction of a client-side port, which all clients share. It may give less."""

MAX_DATAGRAM = 65_535
"""Bytes; no UDP payload is longer."""

LARGEST_PAYLOAD = {4: 65_507, 16: 65_527}
"""Bytes of payload that UDP carries, by the length of the IP address: IPv4 counts its own header in, IPv6 does not."""

# From linux/in.h, linux/in6.h and linux/errqueue.h: the socket module of Python 3.11 does not name them.
_IP_MTU_DISCOVER = 10
_IP_RECVERR = 11
_IPV6_MTU_DISCOVER = 23
_IPV6_RECVERR = 25
_PMTUDISC_DONT = 0
_PMTUDISC_PROBE = 3
_PMTUDISC_OMIT = 5
_ORIGIN_ICMP = 2
_ORIGIN_ICMP6 = 3
_EXTENDED_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err: errno, origin, type, code, info, data
_ANCILLARY_SPACE = 256  # bytes; the extended error and the address of the router that sent it, with room to spare


class PeerError(NamedTuple):
    """An ICMP error about a datagram to `peer`. `data` is the 32-bit field of the ICMP message: the MTU, mostly."""

    peer: TransportAddress
    icmp_type: int
    icmp_code: int
    data: int


@lru_cache(maxsize=16_384)
def to_sockaddr(address: TransportAddress) -> tuple[Any, ...]:
    """As the socket module wants it. Remembered, because a client or peer is written to again and again."""
    if len(address.ip) == 4:
        return (socket.inet_ntop(socket.AF_INET, address.ip), address.port)
    return (socket.inet_ntop(socket.AF_INET6, address.ip), address.port, 0, address.scope)


@lru_cache(maxsize=16_384)
def from_sockaddr(sockaddr: tuple[Any, ...]) -> TransportAddress:
    """As the socket module gives it."""
    if len(sockaddr) == 2:
        return TransportAddress(socket.inet_pton(socket.AF_INET, sockaddr[0]), sockaddr[1])
    return TransportAddress(socket.inet_pton(socket.AF_INET6, sockaddr[0]), sockaddr[1], sockaddr[3])


def local_address(opened: socket.socket) -> TransportAddress:
    """Where a socket is bound. Asked for once, and so not remembered."""
    return from_sockaddr.__wrapped__(opened.getsockname())


def open_udp(address: TransportAddress) -> socket.socket:
    """A bound, non-blocking UDP socket. SO_REUSEPORT stays off: a port in use is an error. Raises OSError."""
    family = socket.AF_INET if len(address.ip) == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(to_sockaddr.__wrapped__(address))
    except OSError:
        opened.close()
        raise
    return opened


def enlarge_buffers(opened: socket.socket) -> None:
    """Ask for room for a burst from many clients. Best effort: the system's own limit holds."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try:
            opened.setsockopt(socket.SOL_SOCKET, option, CLIENT_BUFFER)
        except OSError:  # macOS refuses what Linux would silently cut down
            continue


def prepare_relayed(opened: socket.socket) -> None:
    """DF clear, and ICMP errors kept for `next_peer_error`."""
    if not _LINUX:
        return
    if opened.family == socket.AF_INET:
        # OMIT and not DONT: both leave DF clear and let a long datagram be fragmented, but with DONT the kernel keeps
        # "fragmentation needed" to itself, and that is the very error that a client which asked for DF waits for.
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
        opened.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        # Routers do not fragment IPv6, so the path MTU must be heeded: DONT does, and reports errors all the same.
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


def set_dont_fragment(opened: socket.socket, on: bool) -> None:
    """Send with DF from now on, or as `prepare_relayed` left it. PROBE: the client discovers the path MTU, not we."""
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE if on else _PMTUDISC_OMIT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE if on else _PMTUDISC_DONT)


def take_error(opened: socket.socket) -> tuple[bool, PeerError | None]:
    """Take the oldest entry off the error queue: (whether there was one, what it says if it came by ICMP)."""
    if not HAS_ICMP_ERRORS:
        return False, None
    try:
        _, ancillary, _, sockaddr = opened.recvmsg(0, _ANCILLARY_SPACE, socket.MSG_ERRQUEUE)
    except OSError:
        return False, None
    for level, kind, data in ancillary:
        if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
            _, origin, icmp_type, icmp_code, info, _ = _EXTENDED_ERROR.unpack_from(data)
            if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6) and sockaddr:
                return True, PeerError(from_sockaddr(sockaddr), icmp_type, icmp_code, info)
    return True, None
