"""Reads the header of the PROXY protocol, version 1 and 2, in whatever pieces it comes. Decides nothing about trust.

The protocol is HAProxy's (proxy-protocol.txt); sections in comments are of that text.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from relayd.address import TransportAddress
from relayd.errors import DecodeError

MAX_TEXT = 107  # bytes of a header of version 1, with its line end (section 2.1)
MAX_BINARY = 4096  # bytes behind the fixed part of version 2: addresses, and what a proxy may say of a certificate

_TEXT = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # bytes: signature, version and command, family and protocol, length
_IP_SIZES = {1: 4, 2: 16}  # bytes of an address by family, AF_INET and AF_INET6
_UNIX = 3
_UNIX_SIZE = 216  # bytes of both addresses
_LOCAL, _PROXY = 0, 1
_TLV_SSL = 0x20
_CLIENT_SSL = 0x01


class ProxyHeader(NamedTuple):
    """Who connected to whom. Both are None where the proxy speaks for itself, or knows no address.

    `secure` says that the client came over TLS, which the proxy ended; version 1 cannot tell.
    """

    client: TransportAddress | None
    server: TransportAddress | None
    secure: bool = False


_UNKNOWN = ProxyHeader(None, None)


def read_proxy_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """The header at the start of a connection, and its size in bytes; None as long as it is not all there.

    Raises DecodeError as soon as it cannot become one.
    """
    if data[: len(_TEXT)] == _TEXT[: len(data)]:
        return _read_text(data)
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _read_binary(data) if len(data) >= _FIXED else None
    raise DecodeError("no PROXY header")


def _read_text(data: bytes) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\r\n", 0, MAX_TEXT)
    if end < 0:
        if len(data) >= MAX_TEXT:
            raise DecodeError("a PROXY header without an end")
        return None
    fields = data[:end].decode("latin-1").split(" ")
    if fields[1] == "UNKNOWN":
        return _UNKNOWN, end + 2  # section 2.1: the rest of the line is to be ignored
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
        raise DecodeError("a PROXY header that does not read")
    is_ipv6 = fields[1] == "TCP6"
    client, server = (_address(fields[at], fields[at + 2], is_ipv6) for at in (2, 3))
    return ProxyHeader(client, server), end + 2


def _address(host: str, port: str, is_ipv6: bool) -> TransportAddress:
    if not (port.isascii() and port.isdigit() and len(port) <= 5) or (":" in host) is not is_ipv6:
        raise DecodeError("a PROXY header with an address that is none")
    return TransportAddress.parse(host, int(port))


def _read_binary(data: bytes) -> tuple[ProxyHeader, int] | None:
    version, command = data[12] >> 4, data[12] & 0x0F
    family, protocol = data[13] >> 4, data[13] & 0x0F
    size = int.from_bytes(data[14:_FIXED])
    # Section 2.2: what is not assigned must be rejected.
    if version != 2 or command not in (_LOCAL, _PROXY) or family > _UNIX or protocol > 2:
        raise DecodeError("a PROXY header of a kind that is not known")
    if size > MAX_BINARY:
        raise DecodeError(f"a PROXY header of {size} bytes")
    if len(data) < _FIXED + size:
        return None
    rest = data[_FIXED : _FIXED + size]
    return _read_addresses(family, protocol, rest) if command == _PROXY else _UNKNOWN, _FIXED + size


def _read_addresses(family: int, protocol: int, rest: bytes) -> ProxyHeader:
    ip = _IP_SIZES.get(family, 0)
    addresses = 2 * ip + 4 if ip else _UNIX_SIZE if family == _UNIX else 0
    if len(rest) < addresses:
        raise DecodeError("a PROXY header without its addresses")
    secure = _came_over_tls(rest[addresses:])
    if not ip or not protocol:
        return ProxyHeader(None, None, secure)
    ports = [int.from_bytes(rest[at : at + 2]) for at in (2 * ip, 2 * ip + 2)]
    hosts = [str(ip_address(rest[at * ip : (at + 1) * ip])) for at in (0, 1)]
    client, server = (TransportAddress.parse(host, port) for host, port in zip(hosts, ports, strict=True))
    return ProxyHeader(client, server, secure)


def _came_over_tls(rest: bytes) -> bool:
    """Walk the type-length-value fields behind the addresses (section 2.2)."""
    secure = False
    while rest:
        end = 3 + int.from_bytes(rest[1:3])
        if len(rest) < end:
            raise DecodeError("a PROXY header that ends in the middle of a field")
        if rest[0] == _TLV_SSL:
            secure = bool(rest[3:4]) and bool(rest[3] & _CLIENT_SSL)
        rest = rest[end:]
    return secure
