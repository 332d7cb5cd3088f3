"""Promises of relayd.listeners.proxy_header: both versions, in any pieces, and nothing but what is there."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.listeners.proxy_header import MAX_BINARY, MAX_TEXT, ProxyHeader, read_proxy_header

CLIENT, SERVER = TransportAddress.parse("198.51.100.7", 50000), TransportAddress.parse("192.0.2.1", 443)
CLIENT6, SERVER6 = TransportAddress.parse("2001:db8::7", 50000), TransportAddress.parse("2001:db8::1", 443)
UNKNOWN = ProxyHeader(None, None)


def binary(kind: int, rest: bytes = b"", command: int = 0x21, size: int | None = None) -> bytes:
    """A header of version 2: `kind` is family and protocol."""
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, kind]) + (len(rest) if size is None else size).to_bytes(2) + rest


def addresses(client: str, server: str, ports: tuple[int, int] = (50000, 443)) -> bytes:
    return b"".join(ipaddress.ip_address(host).packed for host in (client, server)) + b"".join(
        port.to_bytes(2) for port in ports
    )


def field(kind: int, value: bytes) -> bytes:
    """A type-length-value field."""
    return bytes([kind]) + len(value).to_bytes(2) + value


IPV4, IPV6 = addresses("198.51.100.7", "192.0.2.1"), addresses("2001:db8::7", "2001:db8::1")
SSL, NO_SSL = field(0x20, b"\x07" + bytes(4) + field(0x21, b"TLSv1.3")), field(0x20, bytes(5))

HEADERS = [
    (b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443\r\n", ProxyHeader(CLIENT, SERVER)),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n", ProxyHeader(CLIENT6, SERVER6)),
    (b"PROXY TCP6 ::ffff:198.51.100.7 ::ffff:192.0.2.1 50000 443\r\n", ProxyHeader(CLIENT, SERVER)),
    (b"PROXY UNKNOWN\r\n", UNKNOWN),
    (b"PROXY UNKNOWN ffff:f...f:ffff whatever 65535\r\n", UNKNOWN),
    (binary(0x11, IPV4), ProxyHeader(CLIENT, SERVER)),
    (binary(0x12, IPV4), ProxyHeader(CLIENT, SERVER)),
    (binary(0x21, IPV6), ProxyHeader(CLIENT6, SERVER6)),
    (binary(0x21, addresses("::ffff:198.51.100.7", "2001:db8::1")), ProxyHeader(CLIENT, SERVER6)),
    (binary(0x11, IPV4 + field(0x04, b"") + SSL + field(0xE0, bytes(300))), ProxyHeader(CLIENT, SERVER, True)),
    (binary(0x11, IPV4 + NO_SSL), ProxyHeader(CLIENT, SERVER)),
    (binary(0x11, IPV4 + field(0x20, b"")), ProxyHeader(CLIENT, SERVER)),
    (binary(0x11, IPV4 + field(0x05, bytes(MAX_BINARY - 15))), ProxyHeader(CLIENT, SERVER)),
    (binary(0x31, bytes(216)), UNKNOWN),
    (binary(0x00), UNKNOWN),
    (binary(0x00, SSL), ProxyHeader(None, None, True)),
    (binary(0x00, command=0x20), UNKNOWN),
    (binary(0x11, IPV4 + SSL, command=0x20), UNKNOWN),
]
NO_HEADERS = [
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"\0\1\0\0",
    b"PROXY\r\n",
    b"PROXY  TCP4 198.51.100.7 192.0.2.1 50000 443\r\n",
    b"PROXY TCP4 198.51.100.7 192.0.2.1 50000\r\n",
    b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443 \r\n",
    b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 70000\r\n",
    b"PROXY TCP4 198.51.100.7 192.0.2.1 -1 443\r\n",
    "PROXY TCP4 198.51.100.7 192.0.2.1 \u00b2 443\r\n".encode("latin-1"),
    b"PROXY TCP4 2001:db8::7 2001:db8::1 50000 443\r\n",
    b"PROXY TCP6 198.51.100.7 192.0.2.1 50000 443\r\n",
    b"PROXY TCP4 somewhere 192.0.2.1 50000 443\r\n",
    b"PROXY UDP4 198.51.100.7 192.0.2.1 50000 443\r\n",
    b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443" + b" " * 70 + b"\r\n",
    b"PROXY UNKNOWN" + b"x" * MAX_TEXT,
    b"\r\n\r\n\0\r\nQUIX\n",
    binary(0x11, IPV4, command=0x11),
    binary(0x11, IPV4, command=0x22),
    binary(0x41, IPV4),
    binary(0x13, IPV4),
    binary(0x11, IPV4[:-1]),
    binary(0x31, bytes(215)),
    binary(0x11, IPV4 + b"\x20"),
    binary(0x11, IPV4 + SSL[:-1]),
    binary(0x11, IPV4, size=MAX_BINARY + 1),
]


@pytest.mark.parametrize(("header", "meaning"), HEADERS)
def test_headers(header: bytes, meaning: ProxyHeader) -> None:
    """Read whole, with more behind it, and byte by byte, of which only the last one completes it."""
    for rest in (b"", b"\r\n", b"PROXY UNKNOWN\r\n", b"\0\1\0\0"):
        assert read_proxy_header(header + rest) == (meaning, len(header))
    assert all(read_proxy_header(header[:size]) is None for size in range(len(header)))


@pytest.mark.parametrize("data", NO_HEADERS)
def test_no_headers(data: bytes) -> None:
    """What cannot become a header is refused, at the latest when it is all there, and more bytes make it no better."""
    for rest in (b"", b"\r\n" * 60):
        with pytest.raises(DecodeError):
            read_proxy_header(data + rest)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY TCP4 ", binary(0x11)[:12], binary(0x11)[:14]]))
def test_any_bytes(data: bytes, beginning: bytes) -> None:
    """A header, a wish for more, or a DecodeError; and a verdict stands, however much more is read at once."""
    data = beginning + data
    verdicts = []
    for size in range(len(data) + 1):
        try:
            verdicts.append(read_proxy_header(data[:size]))
        except DecodeError:
            verdicts.append("refused")  # type: ignore[arg-type]
    decided = [verdict for verdict in verdicts if verdict is not None]
    assert decided == decided[:1] * len(decided)
    assert verdicts[: len(verdicts) - len(decided)] == [None] * (len(verdicts) - len(decided))
