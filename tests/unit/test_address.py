"""Promises of relayd.address: addresses are packed values, read strictly and shown without surprises."""

from __future__ import annotations

import pytest

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.errors import DecodeError

V4 = TransportAddress(bytes((192, 0, 2, 1)), 3478)
V6 = TransportAddress(bytes.fromhex("20010db8000000000000000000000001"), 3478)


@pytest.mark.parametrize(
    ("host", "packed", "family"),
    [
        ("192.0.2.1", "c0000201", Family.IPV4),
        ("0.0.0.0", "00000000", Family.IPV4),
        ("2001:DB8::1", "20010db8000000000000000000000001", Family.IPV6),
        ("::", "00" * 16, Family.IPV6),
        ("::ffff:192.0.2.1", "c0000201", Family.IPV4),
        ("::192.0.2.1", "00" * 12 + "c0000201", Family.IPV6),
    ],
)
def test_parse(host: str, packed: str, family: Family) -> None:
    """Text becomes packed bytes; IPv4 that is mapped into IPv6 becomes IPv4, other embeddings stay as they are."""
    address = TransportAddress.parse(host, 443)
    assert address == TransportAddress(bytes.fromhex(packed), 443)
    assert address.family is family


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", 1),
        ("example.org", 1),
        ("192.0.2", 1),
        ("192.0.2.256", 1),
        ("192.0.2.01", 1),
        ("192.0.2.1/32", 1),
        ("[2001:db8::1]", 1),
        ("2001:db8::1%", 1),
        ("2001:db8::g", 1),
        (" 192.0.2.1", 1),
        ("192.0.2.1", -1),
        ("192.0.2.1", 65_536),
    ],
)
def test_not_an_address(host: str, port: int) -> None:
    """Names, prefixes, brackets, odd numbers and ports beyond 16 bits are a DecodeError."""
    with pytest.raises(DecodeError):
        TransportAddress.parse(host, port)


@pytest.mark.parametrize(
    ("host", "scope"),
    [("fe80::1", 7), ("fe80::1%3", 3), ("fe80::1%eth0", 7), ("fe80::1%\u00b2", 7), ("fe80::1%" + "9" * 5000, 7)],
)
def test_zone(host: str, scope: int) -> None:
    """A zone that is a number counts; a name, other digits and absurd numbers leave the scope that the caller knows."""
    assert TransportAddress.parse(host, 1, 7).scope == scope


def test_text() -> None:
    """In text IPv6 stands in brackets, compressed, and never with its zone."""
    assert str(V4) == "192.0.2.1:3478"
    assert str(V6) == "[2001:db8::1]:3478"
    assert str(TransportAddress.parse("fe80::1%3", 5)) == "[fe80::1]:5"
    assert V6.host == "2001:db8::1"


def test_values() -> None:
    """Addresses are equal and hash by value, and the scope is part of it: two zones may use one link-local address."""
    assert TransportAddress.parse("192.0.2.1", 3478) == V4
    assert hash(TransportAddress.parse("192.0.2.1", 3478)) == hash(V4)
    assert TransportAddress.parse("fe80::1%3", 5) != TransportAddress.parse("fe80::1%4", 5)


def test_with_port() -> None:
    """Another port of the same host, in the same zone."""
    assert V4.with_port(9) == TransportAddress(V4.ip, 9)
    assert TransportAddress.parse("fe80::1%3", 5).with_port(9) == TransportAddress.parse("fe80::1%3", 9)


def test_path() -> None:
    """A path is told apart by 5-tuple, app_connection and virtual channel, and says all of it in text."""
    client = V4.with_port(50_000)
    path = Path(FiveTuple(client, V4, 17), AppConnection.UDP)
    assert path.client == client
    assert str(path) == "192.0.2.1:50000->192.0.2.1:3478/udp"
    virtual = path._replace(app_connection=AppConnection.WSS, channel_id=5)
    assert str(virtual) == "192.0.2.1:50000->192.0.2.1:3478/wss/5"
    assert len({path, virtual, path._replace(app_connection=AppConnection.DTLS)}) == 3


def test_kinds_of_connection() -> None:
    """Datagrams are retransmitted and streams are padded; WebSockets are neither."""
    assert [kind.value for kind in AppConnection if kind.is_datagram] == ["udp", "dtls", "dc"]
    assert [kind.value for kind in AppConnection if kind.is_stream] == ["tcp", "tls"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::2", False),
        ("fe80::1", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """The addresses that never leave this host, in both families."""
    assert TransportAddress.parse(host, 1).is_loopback is loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_wildcard(host: str) -> None:
    """It stands for every address of the host, and no other one does."""
    assert TransportAddress.parse(host, 1).is_wildcard
    assert not TransportAddress.parse("0.0.0.1", 1).is_wildcard
    assert not TransportAddress.parse("::1", 1).is_wildcard
